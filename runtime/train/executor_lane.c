/* Lane threads: waiting for dependencies, doing tasks, ending them; the virtual clock's turn.
 *
 * Design: every lane has one thread, so that a task's time is the lane's time and a stall is seen
 * where it happens. A waiting lane names one unfinished dependency; whoever ends that task looks
 * for the next unfinished one on the lane's behalf and wakes it only when there is none: no
 * needless wake-ups, and the number of lanes that can go on is exact at any moment, which the
 * virtual clock needs. */
#include <assert.h>
#include <errno.h>
#include <sys/prctl.h>
#include <time.h>

#include "runtime/device/virtual_clock.h"
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
                   uint32_t *missing, uint64_t *count)
{
    const struct ps_dep *d = b->s->dep + task->dep_begin;
    for (uint32_t i = 0; i < task->dep_count; i++) {
        uint64_t need = period + 1 - d[i].distance;
        if (b->done[d[i].task] < need) {
            *missing = d[i].task;
            *count = need;
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

void ps__task_rest(struct ps_executor *ex, pthread_cond_t *wake, const struct ps__flight *f,
                   uint64_t begin_ns)
{
    const struct ps_task *t = f->task;
    double rate = ex->opt.throttle[t->lane];
    if (rate > 0 && !ex->opt.vclock) {
        double amount = t->lane == PS_LANE_COMPUTE ? t->flops : (double)t->bytes;
        uint64_t now = monotonic_ns();
        uint64_t until = begin_ns + (uint64_t)(amount / rate * 1e9);
        if (until > now) {
            sleep_until(ex, wake, until);
            f->record->throttle_ns = monotonic_ns() - now;
        }
    }
    if (ex->opt.delay_seed && ex->opt.delay_max_ns) {
        uint64_t handle = (uint64_t)(f->bound - ex->bound);
        uint64_t h = ps__hash(ex->opt.delay_seed, handle << 32 | t->id, f->period);
        sleep_until(ex, wake, monotonic_ns() + h % (ex->opt.delay_max_ns + 1));
    }
}

static void make_runnable(struct ps_executor *ex, struct ps__lane *l)
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
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        struct ps__lane *l = &ex->lane[i];
        if (l->state != PS__LANE_WAITING || l->wait_bound != b || l->wait_task != id ||
            b->done[id] < l->wait_count)
            continue;
        const struct ps__entry *e = &l->queue[l->queue_head];
        const struct ps_task *t = &b->s->task[b->lane_task[e->at]];
        if (ps__deps_done(b, t, e->period, &l->wait_task, &l->wait_count))
            make_runnable(ex, l);
    }
    if (ex->caller_until && *ex->caller_until == 0) {
        ex->caller_until = NULL;
        pthread_cond_signal(&ex->caller_wake);
    }
}

static void drop_flight(struct ps__lane *l)
{
    assert(l->flight_count > 0);
    l->flight[0] = l->flight[1];
    l->flight_count--;
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
            drop_flight(l);
            make_runnable(ex, l); /* it may have another task to finish */
        }
        pthread_cond_signal(&l->wake);
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
        drop_flight(l);
        make_runnable(ex, l);
    }
}

/* Stand still until another thread says go on; false: the executor is destroyed. Locked. */
static bool park(struct ps__lane *l, enum ps__lane_state state)
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

/* The dependency that ended last after the lane was ready, or -1. */
static int32_t waited_on(const struct ps__bound *b, const struct ps_task *t, uint64_t ready_ns)
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

/* Start the task at the head of the queue, whose dependencies are done: all of its work, or on an
 * async lane its requests. Locked; gives up the lock meanwhile. */
static void launch(struct ps__lane *l)
{
    struct ps_executor *ex = l->ex;
    struct ps__entry *e = &l->queue[l->queue_head];
    struct ps__bound *b = e->bound;
    const struct ps_task *t = &b->s->task[b->lane_task[e->at]];
    struct ps__flight f = {.bound = b,
                           .task = t,
                           .record = &b->record[e->set][t->id],
                           .period = e->period,
                           .set = e->set};
    uint64_t now = ps__executor_now(ex);
    uint64_t ready = l->free_ns > e->queued_ns ? l->free_ns : e->queued_ns;
    bool ahead = l->flight_count > 0;
    *f.record = (struct ps_task_record){.ready_ns = ahead ? now : ready, .start_ns = now};
    f.record->waited_on = ahead ? -1 : waited_on(b, t, ready);
    if (++e->at == b->lane_begin[l->id + 1]) {
        l->queue_head = (l->queue_head + 1) % PS__QUEUE_MAX;
        l->queue_count--;
    }
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
        drop_flight(l);
        return true;
    }
    if (ex->opt.vclock) {
        f->record->start_ns = ps_vclock_now_ns(ex->opt.vclock);
        if (f->record->start_ns > f->record->ready_ns && f->record->waited_on < 0)
            f->record->ready_ns = f->record->start_ns; /* started ahead: served only now */
        ps_vclock_begin(ex->opt.vclock, f->task, l->id);
        return park(l, PS__LANE_IN_CLOCK);
    }
    ps__task_end(ex, f, ps__executor_now(ex));
    drop_flight(l);
    return true;
}

/* One move of a lane; false: destroyed. Locked. */
static bool lane_step(struct ps__lane *l)
{
    struct ps_executor *ex = l->ex;
    if (ex->failed)
        return l->flight_count > 0 ? land(l) : park(l, PS__LANE_STOPPED);
    if (l->flight_count == 0 && l->queue_count == 0)
        return park(l, PS__LANE_IDLE);
    bool room =
        l->flight_count == 0 || (ps_lane_is_async(l->id) && l->flight_count < PS__FLIGHT_MAX);
    if (room && l->queue_count > 0) {
        const struct ps__entry *e = &l->queue[l->queue_head];
        const struct ps_task *t = &e->bound->s->task[e->bound->lane_task[e->at]];
        uint32_t missing = 0;
        uint64_t count = 0;
        if (ps__deps_done(e->bound, t, e->period, &missing, &count)) {
            launch(l);
            return true;
        }
        if (l->flight_count == 0) {
            l->wait_bound = e->bound;
            l->wait_task = missing;
            l->wait_count = count;
            return park(l, PS__LANE_WAITING);
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
