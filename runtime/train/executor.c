/* The executor as its caller sees it: binding, running, draining, the serial run. See executor.h;
 * the lane threads are in executor_lane.c. */
#include "runtime/train/executor.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/device/virtual_clock.h"
#include "runtime/train/executor_internal.h"

static int cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;
    int ret = pthread_condattr_init(&attr);
    if (ret)
        return ret;
    ret = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    if (!ret)
        ret = pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
    return ret;
}

/* A throttle holds back the end of a task, for which what is launched ahead does not wait. */
static bool goes_ahead(const struct ps_executor_options *opt)
{
    return opt->queue_ops && !opt->serial && opt->throttle[PS_LANE_COMPUTE] <= 0 &&
           opt->throttle[PS_LANE_H2D] <= 0 && opt->throttle[PS_LANE_D2H] <= 0;
}

int ps_executor_create(struct ps_executor **out, const struct ps_executor_options *opt,
                       struct ps_error *err)
{
    struct ps_executor *ex = calloc(1, sizeof *ex);
    if (!ex)
        return ps_error_set(err, -ENOMEM, "no memory for the executor");
    ex->opt = *opt;
    assert(!opt->queue_ops || !opt->vclock);
    bool ahead = goes_ahead(opt);
    int lane = 0;
    int ret = pthread_mutex_init(&ex->m, NULL);
    if (ret)
        goto fail_mutex;
    ret = cond_init(&ex->caller_wake);
    if (ret)
        goto fail_caller;
    for (; lane < PS_LANE_COUNT; lane++) {
        struct ps__lane *l = &ex->lane[lane];
        l->ex = ex;
        l->id = (enum ps_lane)lane;
        l->ahead = ahead && ps__lane_queue(ex, l->id) != PS_QUEUE_COUNT;
        ret = cond_init(&l->wake);
        if (ret)
            goto fail_lane;
        ret = cond_init(&l->land);
        if (ret) {
            pthread_cond_destroy(&l->wake);
            goto fail_lane;
        }
    }
    *out = ex;
    return 0;

fail_lane:
    while (lane-- > 0) {
        pthread_cond_destroy(&ex->lane[lane].wake);
        pthread_cond_destroy(&ex->lane[lane].land);
    }
    pthread_cond_destroy(&ex->caller_wake);
fail_caller:
    pthread_mutex_destroy(&ex->m);
fail_mutex:
    free(ex);
    return ps_error_set(err, -ret, "cannot create the executor: %s", ps_status_text(-ret));
}

static void bound_fini(struct ps__bound *b)
{
    free(b->lane_task);
    free(b->done);
    free(b->launched);
    free(b->mark);
    free(b->end_ns);
    for (int i = 0; i < PS__RECORD_SETS; i++)
        free(b->record[i]);
    memset(b, 0, sizeof *b);
}

/* Wait until *until is 0, or, after a failure, until every lane stands still. Locked. */
static int caller_wait(struct ps_executor *ex, const uint32_t *until, struct ps_error *err)
{
    if (*until > 0 && !ex->failed) {
        ex->caller_until = until;
        ps__executor_settle(ex);
        while (ex->caller_until && !ex->failed)
            pthread_cond_wait(&ex->caller_wake, &ex->m);
        ex->caller_until = NULL;
    }
    if (!ex->failed)
        return 0;
    while (ex->runnable > 0)
        pthread_cond_wait(&ex->caller_wake, &ex->m);
    if (err)
        *err = ex->error;
    return ex->failed;
}

void ps_executor_destroy(struct ps_executor *ex)
{
    if (!ex)
        return;
    pthread_mutex_lock(&ex->m);
    PS_IGNORE(caller_wait(ex, &ex->left, NULL), "a failure was reported, or nobody asks any more");
    ex->quit = true;
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        pthread_cond_signal(&ex->lane[i].wake);
        pthread_cond_signal(&ex->lane[i].land);
    }
    pthread_mutex_unlock(&ex->m);
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        struct ps__lane *l = &ex->lane[i];
        if (l->threaded)
            PS_IGNORE(pthread_join(l->thread, NULL), "our own thread, joined once");
        if (l->landed)
            PS_IGNORE(pthread_join(l->lander, NULL), "our own thread, joined once");
        pthread_cond_destroy(&l->wake);
        pthread_cond_destroy(&l->land);
    }
    pthread_cond_destroy(&ex->caller_wake);
    pthread_mutex_destroy(&ex->m);
    for (int i = 0; i < ex->bound_count; i++)
        bound_fini(&ex->bound[i]);
    free(ex);
}

static int bound_init(struct ps__bound *b, const struct ps_schedule *s)
{
    uint32_t n = s->task_count;
    size_t room = n ? n : 1;
    b->s = s;
    b->lane_task = calloc(room, sizeof *b->lane_task);
    b->done = calloc(room, sizeof *b->done);
    b->launched = calloc(room, sizeof *b->launched);
    b->mark = calloc(2 * room, sizeof *b->mark);
    b->end_ns = calloc(room, sizeof *b->end_ns);
    bool ok = b->lane_task && b->done && b->launched && b->mark && b->end_ns;
    for (int i = 0; i < PS__RECORD_SETS; i++) {
        b->record[i] = calloc(room, sizeof *b->record[i]);
        ok = ok && b->record[i];
    }
    if (!ok) {
        bound_fini(b);
        return -ENOMEM;
    }
    uint32_t at = 0;
    for (int lane = 0; lane < PS_LANE_COUNT; lane++) {
        b->lane_begin[lane] = at;
        for (uint32_t i = 0; i < n; i++)
            if ((int)s->task[i].lane == lane)
                b->lane_task[at++] = i;
    }
    b->lane_begin[PS_LANE_COUNT] = at;
    assert(at == n);
    for (uint32_t i = 0; i < n; i++)
        if (!(s->task[i].flags & PS_TASK_TRAILS))
            b->must_count++;
    for (uint32_t i = 0; i < s->dep_count; i++) {
        assert(s->dep[i].task < n);
        assert(s->dep[i].distance <= 1);
    }
    return 0;
}

int ps_executor_bind(struct ps_executor *ex, const struct ps_schedule *s)
{
    assert(ex->bound_count < PS__SCHEDULE_MAX);
    struct ps__bound *b = &ex->bound[ex->bound_count];
    int ret = bound_init(b, s);
    if (ret < 0)
        return ret;
    for (int i = 0; i < PS_LANE_COUNT && !ex->opt.serial; i++) {
        struct ps__lane *l = &ex->lane[i];
        if (b->lane_begin[i] == b->lane_begin[i + 1])
            continue;
        ret = l->threaded ? 0 : pthread_create(&l->thread, NULL, ps__lane_main, l);
        l->threaded = ret == 0 || l->threaded;
        if (ret == 0 && l->ahead && !l->landed) {
            ret = pthread_create(&l->lander, NULL, ps__lander_main, l);
            l->landed = ret == 0;
        }
        if (ret) {
            bound_fini(b);
            return -ret;
        }
    }
    return ex->bound_count++;
}

static struct ps__bound *bound_of(const struct ps_executor *ex, int handle)
{
    assert(handle >= 0);
    assert(handle < ex->bound_count);
    return (struct ps__bound *)&ex->bound[handle];
}

/* A new period: its record set and counters. Locked. */
static uint32_t period_open(struct ps_executor *ex, struct ps__bound *b)
{
    uint32_t set = (uint32_t)(b->sequence++ % PS__RECORD_SETS);
    assert(b->left_all[set] == 0);
    b->left_all[set] = b->s->task_count;
    b->left_must[set] = b->must_count;
    b->period++;
    ex->left += b->s->task_count;
    return set;
}

/* Run every task in program order on this thread. Locked. */
static int run_serial(struct ps_executor *ex, struct ps__bound *b, struct ps_error *err)
{
    uint64_t period = b->period;
    uint32_t set = period_open(ex, b);
    uint64_t free_ns = ps__executor_now(ex);
    for (uint32_t i = 0; i < b->s->task_count; i++) {
        const struct ps_task *t = &b->s->task[i];
        uint32_t missing;
        if (!ps__deps_done(b, t, period, &missing)) {
            struct ps_error e = {0};
            int ret = ps_error_set(&e, PS_EUSAGE,
                                   "the schedule \"%s\" cannot run in program order: task %u "
                                   "waits for task %u, which comes later",
                                   b->s->name, i, missing);
            ps__executor_fail(ex, ret, &e);
            break;
        }
        struct ps__flight f = {.bound = b, .task = t, .period = period, .set = set};
        f.record = &b->record[set][i];
        *f.record = (struct ps_task_record){.ready_ns = free_ns, .waited_on = -1};
        f.record->start_ns = ps__executor_now(ex);
        struct ps_error e = {0};
        pthread_mutex_unlock(&ex->m);
        int ret = ps__task_work(ex, t, &e);
        pthread_mutex_lock(&ex->m);
        if (ret < 0) {
            ps__executor_fail(ex, ret, &e);
            break;
        }
        ps__task_rest(ex, &ex->caller_wake, &f, f.record->start_ns);
        if (ex->opt.vclock) {
            ps_vclock_begin(ex->opt.vclock, t, t->lane);
            uint64_t token = ps_vclock_next(ex->opt.vclock);
            assert(token == t->lane);
            f.record->throttle_ns = ps_vclock_throttle_ns(ex->opt.vclock);
        }
        free_ns = ps__executor_now(ex);
        ps__task_end(ex, &f, free_ns);
    }
    if (!ex->failed)
        return 0;
    if (err)
        *err = ex->error;
    return ex->failed;
}

/* Queue one period on its lanes. Locked. */
static uint32_t queue_period(struct ps_executor *ex, struct ps__bound *b)
{
    uint64_t period = b->period;
    uint32_t set = period_open(ex, b);
    uint64_t now = ps__executor_now(ex);
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        if (b->lane_begin[i] == b->lane_begin[i + 1])
            continue;
        struct ps__lane *l = &ex->lane[i];
        assert(l->queue_count < PS__QUEUE_MAX);
        uint32_t slot = (l->queue_head + l->queue_count++) % PS__QUEUE_MAX;
        l->queue[slot] = (struct ps__entry){
            .bound = b, .period = period, .set = set, .at = b->lane_begin[i], .queued_ns = now};
        if (l->state == PS__LANE_IDLE) {
            l->state = PS__LANE_RUNNING;
            ex->runnable++;
            pthread_cond_signal(&l->wake);
        }
    }
    return set;
}

int ps_executor_run(struct ps_executor *ex, int handle, struct ps_error *err)
{
    struct ps__bound *b = bound_of(ex, handle);
    pthread_mutex_lock(&ex->m);
    /* The period before the last must be complete: its record set is the next but one (invariant
     * 4). */
    int ret = caller_wait(ex, &b->left_all[(b->sequence + 1) % PS__RECORD_SETS], err);
    if (ret == 0 && ex->opt.serial) {
        ret = run_serial(ex, b, err);
    } else if (ret == 0) {
        uint32_t set = queue_period(ex, b);
        ret = caller_wait(ex, &b->left_must[set], err);
    }
    pthread_mutex_unlock(&ex->m);
    return ret;
}

int ps_executor_drain(struct ps_executor *ex, struct ps_error *err)
{
    pthread_mutex_lock(&ex->m);
    int ret = caller_wait(ex, &ex->left, err);
    pthread_mutex_unlock(&ex->m);
    return ret;
}

void ps_executor_restart(struct ps_executor *ex, int handle)
{
    struct ps__bound *b = bound_of(ex, handle);
    pthread_mutex_lock(&ex->m);
    for (int i = 0; i < PS__RECORD_SETS; i++)
        assert(b->left_all[i] == 0);
    b->period = 0;
    memset(b->done, 0, b->s->task_count * sizeof *b->done);
    memset(b->launched, 0, b->s->task_count * sizeof *b->launched);
    pthread_mutex_unlock(&ex->m);
}

const struct ps_task_record *ps_executor_records(const struct ps_executor *ex, int handle)
{
    const struct ps__bound *b = bound_of(ex, handle);
    pthread_mutex_t *m = (pthread_mutex_t *)&ex->m;
    pthread_mutex_lock(m);
    const struct ps_task_record *last = b->last;
    pthread_mutex_unlock(m);
    return last;
}

void ps_executor_stats(const struct ps_executor *ex, struct ps_lane_stats out[PS_LANE_COUNT])
{
    pthread_mutex_t *m = (pthread_mutex_t *)&ex->m;
    pthread_mutex_lock(m);
    for (int i = 0; i < PS_LANE_COUNT; i++)
        out[i] = ex->lane[i].stats;
    pthread_mutex_unlock(m);
}

void ps_executor_stats_reset(struct ps_executor *ex)
{
    pthread_mutex_lock(&ex->m);
    for (int i = 0; i < PS_LANE_COUNT; i++)
        memset(&ex->lane[i].stats, 0, sizeof ex->lane[i].stats);
    pthread_mutex_unlock(&ex->m);
}
