/* Lane threads: waiting for dependencies, doing tasks, ending them; the virtual clock's turn.
 *
 * Design: every lane has one thread, so that a task's time is the lane's time and a stall is seen
 * where it happens. A waiting lane names one unfinished dependency; whoever ends that task looks
 * for the next unfinished one on the lane's behalf and wakes it only when there is none: no
 * needless wake-ups, and the number of lanes that can go on is exact at any moment, which the
 * virtual clock needs. */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "runtime/device/virtual_clock.h"
#include "runtime/train/cost.h"
#include "runtime/train/executor_internal.h"

#define NS_PER_S 1000000000u

static uint64_t monotonic_ns(void)
{
    struct timespec t;
    int ret = clock_gettime(CLOCK_MONOTONIC, &t);
    assert(ret == 0);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

uint64_t ps__executor_now(const struct ps_executor *ex)
{
    return ex->opt.vclock ? ps_vclock_now_ns(ex->opt.vclock) : monotonic_ns();
}

uint64_t ps__hash(uint64_t seed, uint64_t a, uint64_t b)
{
    uint64_t x = seed + 0x9e3779b97f4a7c15u * (a + 1) + 0xd1b54a32d192ed03u * (b + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

bool ps__deps_done(const struct ps__bound *b, const struct ps_task *task, uint64_t period,
                   uint32_t *missing)
{
    const struct ps_dep *d = b->s->dep + task->dep_begin;
    for (uint32_t i = 0; i < task->dep_count; i++)
        if (b->done[d[i].task] + d[i].distance < period + 1) {
            *missing = d[i].task;
            return false;
        }
    return true;
}

bool ps__deps_ready(const struct ps_executor *ex, const struct ps__bound *b,
                    const struct ps_task *task, uint64_t period, uint32_t *missing)
{
    const struct ps_dep *d = b->s->dep + task->dep_begin;
    bool ahead = ex->lane[task->lane].ahead;
    for (uint32_t i = 0; i < task->dep_count; i++) {
        bool launched = ahead && ex->lane[b->s->task[d[i].task].lane].ahead;
        const uint64_t *have = launched ? b->launched : b->done;
        if (have[d[i].task] + d[i].distance < period + 1) {
            *missing = d[i].task;
            return false;
        }
    }
    return true;
}

int ps__task_error(const struct ps_task *task, int ret, struct ps_error *err)
{
    if (!err->code)
        return ps_error_set(err, ret, "task %u (%s of unit %d) failed: %s", task->id,
                            ps_task_kind_name(task->kind), task->unit, ps_status_text(ret));
    return ret;
}

/* What has been launched is done. */
static int wait_for_queue(const struct ps_executor *ex, enum ps_queue queue, struct ps_error *err)
{
    uint64_t ns;
    int ret = ex->opt.queue_ops->begin(ex->opt.queues, queue, 0, err);
    if (ret == 0)
        ret = ex->opt.queue_ops->end(ex->opt.queues, queue, 0, err);
    return ret < 0 ? ret : ex->opt.queue_ops->sync(ex->opt.queues, queue, 0, &ns, err);
}

int ps__task_work(const struct ps_executor *ex, const struct ps_task *task, struct ps_error *err)
{
    const struct ps_task_ops *ops = &ex->opt.ops[task->kind];
    int ret;
    if (ps_lane_is_async(task->lane)) {
        assert(ops->start);
        assert(ops->finish);
        ret = ops->start(ex->opt.ctx, task, err);
        if (ret >= 0)
            ret = ops->finish(ex->opt.ctx, task, err);
    } else {
        assert(ops->run);
        ret = ops->run(ex->opt.ctx, task, err);
        if (ret >= 0 && ps__lane_queue(ex, task->lane) != PS_QUEUE_COUNT)
            ret = wait_for_queue(ex, ps__lane_queue(ex, task->lane), err);
    }
    return ret < 0 ? ps__task_error(task, ret, err) : 0;
}

/* Sleep until the real clock shows `until_ns` or something fails. Locked; the wait gives up the
 * lock. */
static void sleep_until(struct ps_executor *ex, pthread_cond_t *wake, uint64_t until_ns)
{
    struct timespec t = {.tv_sec = (time_t)(until_ns / NS_PER_S),
                         .tv_nsec = (long)(until_ns % NS_PER_S)};
    while (!ex->failed && monotonic_ns() < until_ns) {
        int ret = pthread_cond_timedwait(wake, &ex->m, &t);
        assert(ret == 0 || ret == ETIMEDOUT);
    }
}

void ps__task_delay(struct ps_executor *ex, pthread_cond_t *wake, const struct ps__flight *f,
                    uint64_t salt)
{
    if (!ex->opt.delay_seed || !ex->opt.delay_max_ns)
        return;
    uint64_t handle = (uint64_t)(f->bound - ex->bound);
    uint64_t h = ps__hash(ex->opt.delay_seed + salt, handle << 32 | f->task->id, f->period);
    sleep_until(ex, wake, monotonic_ns() + h % (ex->opt.delay_max_ns + 1));
}

void ps__task_rest(struct ps_executor *ex, pthread_cond_t *wake, const struct ps__flight *f,
                   uint64_t begin_ns)
{
    const struct ps_task *t = f->task;
    double rate = ex->opt.throttle[t->lane];
    if (rate > 0 && !ex->opt.vclock) {
        double amount = ps_task_amount(t);
        uint64_t now = monotonic_ns();
        uint64_t until = begin_ns + (uint64_t)(amount / rate * 1e9);
        if (until > now) {
            sleep_until(ex, wake, until);
            f->record->throttle_ns = monotonic_ns() - now;
        }
    }
    ps__task_delay(ex, wake, f, 0);
}

void ps__lane_go_on(struct ps_executor *ex, struct ps__lane *l)
{
    assert(l->state != PS__LANE_RUNNING);
    l->state = PS__LANE_RUNNING;
    ex->runnable++;
    pthread_cond_signal(&l->wake);
}

static void add_stats(struct ps_executor *ex, const struct ps__flight *f, uint64_t end_ns)
{
    const struct ps_task *t = f->task;
    const struct ps_task_record *r = f->record;
    struct ps__lane *l = &ex->lane[t->lane];
    /* Of two requests in flight the lane is busy once. */
    uint64_t begin = r->start_ns > l->free_ns ? r->start_ns : l->free_ns;
    l->stats.busy_ns += end_ns - begin;
    if (r->waited_on >= 0 && r->start_ns > r->ready_ns)
        l->stats.stall_ns[f->bound->s->task[r->waited_on].lane] += r->start_ns - r->ready_ns;
    l->stats.bytes += t->bytes;
    l->stats.tasks++;
    l->free_ns = end_ns;
}

void ps__wake_waiting(struct ps_executor *ex, const struct ps__bound *b, uint32_t id)
{
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        struct ps__lane *l = &ex->lane[i];
        if (l->state != PS__LANE_WAITING || l->wait_bound != b || l->wait_task != id)
            continue;
        const struct ps__entry *e = &l->queue[l->queue_head];
        const struct ps_task *t = &b->s->task[b->lane_task[e->at]];
        if (ps__deps_ready(ex, b, t, e->period, &l->wait_task))
            ps__lane_go_on(ex, l);
    }
}

void ps__task_end(struct ps_executor *ex, const struct ps__flight *f, uint64_t end_ns)
{
    struct ps__bound *b = f->bound;
    uint32_t id = f->task->id;
    f->record->end_ns = end_ns;
    add_stats(ex, f, end_ns);
    assert(b->done[id] == f->period);
    b->done[id]++;
    b->end_ns[id] = end_ns;
    if (!(f->task->flags & PS_TASK_TRAILS))
        b->left_must[f->set]--;
    ex->left--;
    if (--b->left_all[f->set] == 0)
        b->last = b->record[f->set];
    ps__wake_waiting(ex, b, id);
    if (ex->caller_until && *ex->caller_until == 0) {
        ex->caller_until = NULL;
        pthread_cond_signal(&ex->caller_wake);
    }
}

void ps__drop_flight(struct ps__lane *l)
{
    assert(l->flight_count > 0);
    l->flight_count--;
    memmove(&l->flight[0], &l->flight[1], l->flight_count * sizeof l->flight[0]);
}

void ps__executor_fail(struct ps_executor *ex, int code, const struct ps_error *err)
{
    if (ex->failed)
        return;
    ex->failed = code;
    ex->error = *err;
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        struct ps__lane *l = &ex->lane[i];
        if (l->state == PS__LANE_IN_CLOCK) {
            ps__drop_flight(l);
            ps__lane_go_on(ex, l); /* it may have another task to finish */
        }
        pthread_cond_signal(&l->wake);
        pthread_cond_signal(&l->land);
    }
    while (ex->opt.vclock && ps_vclock_running(ex->opt.vclock) > 0)
        PS_IGNORE(ps_vclock_next(ex->opt.vclock), "tasks given up");
    pthread_cond_signal(&ex->caller_wake);
}

/* No lane can go on and the clock is empty. Locked. */
static void fail_stuck(struct ps_executor *ex)
{
    struct ps_error err = {0};
    int ret = ps_error_set(&err, PS_EUSAGE, "the schedule cannot go on");
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        const struct ps__lane *l = &ex->lane[i];
        if (l->state != PS__LANE_WAITING)
            continue;
        const struct ps__entry *e = &l->queue[l->queue_head];
        ret = ps_error_set(
            &err, PS_EUSAGE, "the schedule \"%s\" cannot go on: task %u on %s waits for task %u",
            e->bound->s->name, e->bound->lane_task[e->at], ps_lane_name(l->id), l->wait_task);
        break;
    }
    ps__executor_fail(ex, ret, &err);
}

void ps__executor_settle(struct ps_executor *ex)
{
    struct ps_vclock *clock = ex->opt.vclock;
    while (ex->runnable == 0 && ex->caller_until && !ex->failed) {
        if (!clock || ps_vclock_running(clock) == 0) {
            fail_stuck(ex);
            return;
        }
        uint64_t token = ps_vclock_next(clock);
        assert(token < PS_LANE_COUNT);
        struct ps__lane *l = &ex->lane[token];
        assert(l->state == PS__LANE_IN_CLOCK);
        l->flight[0].record->throttle_ns = ps_vclock_throttle_ns(clock);
        ps__task_end(ex, &l->flight[0], ps_vclock_now_ns(clock));
        ps__drop_flight(l);
        ps__lane_go_on(ex, l);
    }
}

bool ps__lane_park(struct ps__lane *l, enum ps__lane_state state)
{
    struct ps_executor *ex = l->ex;
    l->state = state;
    ex->runnable--;
    ps__executor_settle(ex);
    if (ex->failed && ex->runnable == 0)
        pthread_cond_signal(&ex->caller_wake);
    while (l->state != PS__LANE_RUNNING && !ex->quit)
        pthread_cond_wait(&l->wake, &ex->m);
    return !ex->quit;
}

int32_t ps__waited_on(const struct ps__bound *b, const struct ps_task *t, uint64_t ready_ns)
{
    const struct ps_dep *d = b->s->dep + t->dep_begin;
    int32_t last = -1;
    uint64_t last_ns = ready_ns;
    for (uint32_t i = 0; i < t->dep_count; i++)
        if (b->end_ns[d[i].task] > last_ns) {
            last_ns = b->end_ns[d[i].task];
            last = (int32_t)d[i].task;
        }
    return last;
}

struct ps__flight ps__take_task(struct ps__lane *l, uint64_t now)
{
    struct ps__entry *e = &l->queue[l->queue_head];
    struct ps__bound *b = e->bound;
    const struct ps_task *t = &b->s->task[b->lane_task[e->at]];
    struct ps__flight f = {.bound = b,
                           .task = t,
                           .record = &b->record[e->set][t->id],
                           .period = e->period,
                           .set = e->set,
                           .queued_ns = e->queued_ns};
    uint64_t ready = l->free_ns > e->queued_ns ? l->free_ns : e->queued_ns;
    bool others = l->flight_count > 0;
    *f.record = (struct ps_task_record){.ready_ns = others ? now : ready, .start_ns = now};
    f.record->waited_on = others ? -1 : ps__waited_on(b, t, ready);
    if (++e->at == b->lane_begin[l->id + 1]) {
        l->queue_head = (l->queue_head + 1) % PS__QUEUE_MAX;
        l->queue_count--;
    }
    return f;
}

/* Start the task at the head of the queue, whose dependencies are done: all of its work, or on an
 * async lane its requests. Locked; gives up the lock meanwhile. */
static void launch(struct ps__lane *l)
{
    struct ps_executor *ex = l->ex;
    struct ps__flight f = ps__take_task(l, ps__executor_now(ex));
    const struct ps_task *t = f.task;
    const struct ps_task_ops *ops = &ex->opt.ops[t->kind];
    struct ps_error err = {0};
    int ret;
    pthread_mutex_unlock(&ex->m);
    if (ps_lane_is_async(l->id)) {
        assert(ops->start);
        ret = ops->start(ex->opt.ctx, t, &err);
        if (ret < 0)
            ret = ps__task_error(t, ret, &err);
    } else {
        ret = ps__task_work(ex, t, &err);
    }
    pthread_mutex_lock(&ex->m);
    if (ret < 0)
        ps__executor_fail(ex, ret, &err);
    else
        l->flight[l->flight_count++] = f;
}

/* Finish the oldest task in flight: reap its requests, throttle, delay, end. False: destroyed.
 * Locked; gives up the lock meanwhile. */
static bool land(struct ps__lane *l)
{
    struct ps_executor *ex = l->ex;
    struct ps__flight *f = &l->flight[0];
    if (ps_lane_is_async(l->id)) {
        struct ps_error err = {0};
        pthread_mutex_unlock(&ex->m);
        assert(ex->opt.ops[f->task->kind].finish);
        int ret = ex->opt.ops[f->task->kind].finish(ex->opt.ctx, f->task, &err);
        pthread_mutex_lock(&ex->m);
        if (ret < 0)
            ps__executor_fail(ex, ps__task_error(f->task, ret, &err), &err);
    }
    if (!ex->failed)
        ps__task_rest(ex, &l->wake, f,
                      f->record->start_ns > l->free_ns ? f->record->start_ns : l->free_ns);
    if (ex->failed) {
        ps__drop_flight(l);
        return true;
    }
    if (ex->opt.vclock) {
        f->record->start_ns = ps_vclock_now_ns(ex->opt.vclock);
        if (f->record->start_ns > f->record->ready_ns && f->record->waited_on < 0)
            f->record->ready_ns = f->record->start_ns; /* started ahead: served only now */
        ps_vclock_begin(ex->opt.vclock, f->task, l->id);
        return ps__lane_park(l, PS__LANE_IN_CLOCK);
    }
    ps__task_end(ex, f, ps__executor_now(ex));
    ps__drop_flight(l);
    return true;
}

/* One move of a lane; false: destroyed. Locked. */
static bool lane_step(struct ps__lane *l)
{
    struct ps_executor *ex = l->ex;
    if (l->ahead)
        return ps__ahead_step(l);
    if (ex->failed)
        return l->flight_count > 0 ? land(l) : ps__lane_park(l, PS__LANE_STOPPED);
    if (l->flight_count == 0 && l->queue_count == 0)
        return ps__lane_park(l, PS__LANE_IDLE);
    bool room =
        l->flight_count == 0 || (ps_lane_is_async(l->id) && l->flight_count < PS__REQUESTS_MAX);
    if (room && l->queue_count > 0) {
        const struct ps__entry *e = &l->queue[l->queue_head];
        const struct ps_task *t = &e->bound->s->task[e->bound->lane_task[e->at]];
        uint32_t missing = 0;
        if (ps__deps_ready(ex, e->bound, t, e->period, &missing)) {
            launch(l);
            return true;
        }
        if (l->flight_count == 0) {
            l->wait_bound = e->bound;
            l->wait_task = missing;
            return ps__lane_park(l, PS__LANE_WAITING);
        }
    }
    return land(l);
}

void *ps__lane_main(void *arg)
{
    struct ps__lane *l = arg;
    PS_IGNORE(prctl(PR_SET_TIMERSLACK, 1uL, 0uL, 0uL, 0uL), "throttles end a little later");
    pthread_mutex_lock(&l->ex->m);
    while (l->state != PS__LANE_RUNNING && !l->ex->quit)
        pthread_cond_wait(&l->wake, &l->ex->m);
    bool go = !l->ex->quit;
    while (go)
        go = lane_step(l);
    pthread_mutex_unlock(&l->ex->m);
    return NULL;
}
