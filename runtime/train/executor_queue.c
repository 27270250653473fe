/* Lanes that launch ahead of a device's queue: see executor.h and device_queue.h.
 *
 * Design: two threads a lane. The lane's own launches: it makes its queue wait for the marks of the
 * other queues, launches the task's work, sets a mark, and goes on with the next task. Its lander
 * sleeps on the oldest mark and ends that task, for the lanes of the host that wait for it and for
 * the records. One thread for both would launch nothing while it sleeps, and the device would stand
 * still from the end of a task until the next one has come.
 *
 * A queue is told to wait outside of the lock: the mark may have been set anew by then, for a later
 * task that has been launched too. The wait is then longer than it needs to be, never shorter, and
 * the device goes on all the same (invariant 6). With twice as many marks as tasks in flight that
 * hardly happens. */
#include <assert.h>

#include "runtime/train/executor_internal.h"

static_assert(PS_EXECUTOR_MARKS >= 2 * PS_EXECUTOR_AHEAD, "marks of tasks that have just ended");

enum ps_queue ps__lane_queue(const struct ps_executor *ex, enum ps_lane lane)
{
    if (!ex->opt.queue_ops)
        return PS_QUEUE_COUNT;
    switch (lane) {
    case PS_LANE_COMPUTE:
        return PS_QUEUE_COMPUTE;
    case PS_LANE_H2D:
        return PS_QUEUE_H2D;
    case PS_LANE_D2H:
        return PS_QUEUE_D2H;
    default:
        return PS_QUEUE_COUNT;
    }
}

/* For each other queue the number of the mark after which the task may run, plus 1; 0: none. Of two
 * tasks of one queue the later one says it all. Locked. */
static void marks_before(const struct ps_executor *ex, const struct ps__flight *f,
                         uint64_t after[PS_QUEUE_COUNT])
{
    const struct ps__bound *b = f->bound;
    const struct ps_dep *d = b->s->dep + f->task->dep_begin;
    for (int i = 0; i < PS_QUEUE_COUNT; i++)
        after[i] = 0;
    for (uint32_t i = 0; i < f->task->dep_count; i++) {
        enum ps_lane lane = b->s->task[d[i].task].lane;
        enum ps_queue q = ps__lane_queue(ex, lane);
        uint64_t need = f->period + 1 - d[i].distance;
        if (q == PS_QUEUE_COUNT || lane == f->task->lane || b->done[d[i].task] >= need)
            continue;
        uint64_t mark = b->mark[2 * d[i].task + (need - 1) % 2] + 1;
        after[q] = mark > after[q] ? mark : after[q];
    }
}

/* Launch a task behind what it depends on. Unlocked. */
static int launch_behind(const struct ps_executor *ex, const struct ps__flight *f,
                         const uint64_t after[PS_QUEUE_COUNT], struct ps_error *err)
{
    const struct ps_queue_ops *ops = ex->opt.queue_ops;
    struct ps_queues *queues = ex->opt.queues;
    enum ps_queue own = ps__lane_queue(ex, f->task->lane);
    uint32_t mark = (uint32_t)(f->mark % PS_EXECUTOR_MARKS);
    int ret = 0;
    for (int q = 0; ret == 0 && q < PS_QUEUE_COUNT; q++)
        if (after[q] > 0)
            ret = ops->wait(queues, own, (enum ps_queue)q,
                            (uint32_t)((after[q] - 1) % PS_EXECUTOR_MARKS), err);
    if (ret == 0)
        ret = ops->begin(queues, own, mark, err);
    if (ret == 0)
        ret = ex->opt.ops[f->task->kind].run(ex->opt.ctx, f->task, err);
    if (ret >= 0)
        ret = ops->end(queues, own, mark, err);
    if (ret >= 0)
        return 0;
    ret = ps__task_error(f->task, ret, err);
    /* What it had launched before it failed comes to an end here. */
    uint64_t ns;
    if (ops->end(queues, own, mark, NULL) == 0)
        PS_IGNORE(ops->sync(queues, own, mark, &ns, NULL), "the first failure is reported");
    return ret;
}

/* The device's failure, in words that tell where it was. */
static int queue_error(const struct ps_task *task, int ret, struct ps_error *err)
{
    struct ps_error why = *err;
    return ps_error_full(err, ret, NULL, NULL, "see --gpu-mem, and the driver's log (dmesg)",
                         "the device failed in %s of unit %d: %s", ps_task_kind_name(task->kind),
                         task->unit, why.code ? why.message : ps_status_text(ret));
}

/* Locked; gives up the lock meanwhile. */
static void launch_ahead(struct ps__lane *l)
{
    struct ps_executor *ex = l->ex;
    struct ps__flight f = ps__take_task(l, ps__executor_now(ex));
    struct ps_error err = {0};
    uint64_t after[PS_QUEUE_COUNT];
    f.mark = l->mark++;
    ps__task_delay(ex, &l->wake, &f, 1);
    marks_before(ex, &f, after);
    pthread_mutex_unlock(&ex->m);
    int ret = launch_behind(ex, &f, after, &err);
    pthread_mutex_lock(&ex->m);
    if (ret < 0) {
        ps__executor_fail(ex, ret, &err);
        return;
    }
    struct ps__bound *b = f.bound;
    b->mark[2 * f.task->id + f.period % 2] = f.mark;
    b->launched[f.task->id]++;
    assert(b->launched[f.task->id] == f.period + 1);
    l->flight[l->flight_count++] = f;
    if (!l->landing) {
        l->landing = true;
        ex->runnable++;
        pthread_cond_signal(&l->land);
    }
    ps__wake_waiting(ex, b, f.task->id);
}

bool ps__ahead_step(struct ps__lane *l)
{
    struct ps_executor *ex = l->ex;
    if (ex->failed)
        return ps__lane_park(l, PS__LANE_STOPPED);
    if (l->queue_count == 0)
        return ps__lane_park(l, PS__LANE_IDLE);
    if (l->flight_count == PS_EXECUTOR_AHEAD)
        return ps__lane_park(l, PS__LANE_FULL);
    const struct ps__entry *e = &l->queue[l->queue_head];
    const struct ps_task *t = &e->bound->s->task[e->bound->lane_task[e->at]];
    l->wait_bound = e->bound;
    if (!ps__deps_ready(ex, e->bound, t, e->period, &l->wait_task))
        return ps__lane_park(l, PS__LANE_WAITING);
    launch_ahead(l);
    return true;
}

/* When the device was at it: until now, for as long as it says, or else since it could begin. */
static void fill_record(const struct ps__lane *l, const struct ps__flight *f, uint64_t ns,
                        uint64_t now)
{
    struct ps_task_record *r = f->record;
    const struct ps__bound *b = f->bound;
    uint64_t ready = l->free_ns > f->queued_ns ? l->free_ns : f->queued_ns;
    uint64_t start = r->start_ns > ready ? r->start_ns : ready; /* launched then */
    int32_t last = ps__waited_on(b, f->task, ready);
    if (last >= 0 && b->end_ns[last] > start)
        start = b->end_ns[last];
    if (ns != UINT64_MAX && now - start > ns)
        start = now - ns;
    r->ready_ns = ready < now ? ready : now;
    r->start_ns = start < now ? start : now;
    r->waited_on = last;
}

/* Sleep until the device has done the oldest task in flight, and end it. Locked; gives up the lock
 * meanwhile. */
static void land_oldest(struct ps__lane *l)
{
    struct ps_executor *ex = l->ex;
    struct ps__flight f = l->flight[0];
    struct ps_error err = {0};
    uint64_t ns = UINT64_MAX;
    uint32_t missing;
    pthread_mutex_unlock(&ex->m);
    int ret = ex->opt.queue_ops->sync(ex->opt.queues, ps__lane_queue(ex, l->id),
                                      (uint32_t)(f.mark % PS_EXECUTOR_MARKS), &ns, &err);
    pthread_mutex_lock(&ex->m);
    if (ret < 0)
        ps__executor_fail(ex, queue_error(f.task, ret, &err), &err);
    /* What it depended on is done too; the other landers say so in a moment. */
    while (!ex->failed && !ps__deps_done(f.bound, f.task, f.period, &missing))
        pthread_cond_wait(&l->land, &ex->m);
    uint64_t end = ps__executor_now(ex);
    if (!ex->failed)
        fill_record(l, &f, ns, end);
    if (!ex->failed)
        ps__task_delay(ex, &l->land, &f, 0);
    if (!ex->failed)
        ps__task_end(ex, &f, end);
}

void *ps__lander_main(void *arg)
{
    struct ps__lane *l = arg;
    struct ps_executor *ex = l->ex;
    pthread_mutex_lock(&ex->m);
    while (!ex->quit) {
        if (l->flight_count == 0) {
            if (l->landing) {
                l->landing = false;
                ex->runnable--;
                ps__executor_settle(ex);
                if (ex->failed && ex->runnable == 0)
                    pthread_cond_signal(&ex->caller_wake);
            }
            pthread_cond_wait(&l->land, &ex->m);
            continue;
        }
        land_oldest(l);
        ps__drop_flight(l);
        if (l->state == PS__LANE_FULL)
            ps__lane_go_on(ex, l);
        for (int i = 0; i < PS_LANE_COUNT; i++)
            if (ex->lane[i].landing)
                pthread_cond_signal(&ex->lane[i].land);
    }
    pthread_mutex_unlock(&ex->m);
    return NULL;
}
