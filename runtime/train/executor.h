/* Walks schedules with real work: one thread a lane, each lane in order, tasks waiting only for
 * their own dependencies.
 *
 * A schedule is bound once; a run is one period of it. Tasks marked PS_TASK_TRAILS go on in the
 * background after ps_executor_run has returned; later periods wait for them through their
 * dependencies, ps_executor_drain waits for all. Nothing is allocated between bind and destroy.
 *
 * Queues. On a device with queues (device_queue.h) the task functions of compute, h2d and d2h only
 * launch their work. Those lanes go ahead of the device by up to PS_EXECUTOR_AHEAD tasks each: a
 * task is launched when what it depends on in other queues has been launched (its queue waits for
 * their marks) and what it depends on in other lanes has ended. A task of a queue ends when the
 * device has passed its mark.
 *
 * Threads: one caller at a time. Task functions of a lane run on that lane's thread, one at a time.
 */
#ifndef PS_TRAIN_EXECUTOR_H
#define PS_TRAIN_EXECUTOR_H

#include "runtime/base/status.h"
#include "runtime/device/device_queue.h"
#include "runtime/train/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Work of one kind. Lanes that are not async: run. Async lanes (disk): start queues the requests
 * and returns, finish waits for them; the executor may start the next task before it finishes this
 * one, and finishes in lane order. A negative result stops the run: no further task starts
 * anywhere, but every task whose start succeeded is still finished. err may be left empty. */
struct ps_task_ops {
    int (*run)(void *ctx, const struct ps_task *task, struct ps_error *err);
    int (*start)(void *ctx, const struct ps_task *task, struct ps_error *err);
    int (*finish)(void *ctx, const struct ps_task *task, struct ps_error *err);
};

/* When each task of the last complete period ran, ns of CLOCK_MONOTONIC (or of the virtual clock).
 * For a throttled task the wait is included in end_ns and told apart in throttle_ns. */
struct ps_task_record {
    uint64_t ready_ns; /* its lane was free to start it */
    uint64_t start_ns; /* its dependencies were satisfied too */
    uint64_t end_ns;
    uint64_t throttle_ns;
    int32_t waited_on; /* task that it waited for last, or -1 */
};

/* Sums over the runs since the last ps_executor_stats_reset. */
struct ps_lane_stats {
    uint64_t busy_ns;
    uint64_t stall_ns[PS_LANE_COUNT]; /* ready, but waiting for a task of that lane */
    uint64_t bytes;
    uint64_t tasks;
};

#define PS_EXECUTOR_AHEAD 8
#define PS_EXECUTOR_MARKS 16 /* of each queue, ps_queue_ops.open */

struct ps_vclock; /* runtime/device/virtual_clock.h */

struct ps_executor_options {
    struct ps_task_ops ops[PS_TASK_KIND_COUNT];
    void *ctx;
    double throttle[PS_LANE_COUNT]; /* FLOP/s on compute, bytes/s elsewhere; 0: none */
    bool serial;         /* one task at a time, in program order, on the caller's thread */
    uint64_t delay_seed; /* not 0: a random wait of up to delay_max_ns before each task ends */
    uint64_t delay_max_ns;
    /* not NULL: durations and order are the virtual clock's, throttles those of its cost model
     * (throttle[] above is not used), delays pass in real time only. The clock stands still while
     * the caller is outside of run and drain. It must outlive the executor. */
    struct ps_vclock *vclock;
    /* NULL: no queues, tasks are done when their functions return. Not with vclock. Serial runs and
     * those with a throttle on a lane with a queue wait for each task. Open queues, of
     * PS_EXECUTOR_MARKS marks, which must outlive the executor; timed: records and stats have the
     * device's durations. */
    const struct ps_queue_ops *queue_ops;
    struct ps_queues *queues;
};

struct ps_executor;

int ps_executor_create(struct ps_executor **out, const struct ps_executor_options *opt,
                       struct ps_error *err) PS_WARN_UNUSED;
/* Drains, joins the threads. NULL is legal. */
void ps_executor_destroy(struct ps_executor *ex);

/* Make a schedule known (it must live as long as the executor and not change). Returns its handle
 * >= 0, -ENOMEM, or the error of pthread_create (threads start here, one a lane that is used). At
 * most 8. */
int ps_executor_bind(struct ps_executor *ex, const struct ps_schedule *s) PS_WARN_UNUSED;

/* Run one period and return when all tasks that do not trail have ended. On an error every lane
 * stops and err tells the first failure (also of a task that trailed); no task runs any more when
 * this returns, and the executor can then only be destroyed. PS_EUSAGE: the schedule cannot go on
 * (dependencies and lane order contradict each other; the message names the tasks). */
int ps_executor_run(struct ps_executor *ex, int handle, struct ps_error *err) PS_WARN_UNUSED;
/* Wait for trailing tasks. */
int ps_executor_drain(struct ps_executor *ex, struct ps_error *err) PS_WARN_UNUSED;
/* After a drain: the next run of this schedule counts as its first period. */
void ps_executor_restart(struct ps_executor *ex, int handle);

/* The records of the last complete period of a schedule (task_count of them): all of its tasks have
 * ended, those that trail too, so that right after a run with trailing tasks it may be the period
 * before; drain first to be sure. NULL before there is one. Valid until the next run of this
 * schedule. */
const struct ps_task_record *ps_executor_records(const struct ps_executor *ex, int handle);
void ps_executor_stats(const struct ps_executor *ex, struct ps_lane_stats out[PS_LANE_COUNT]);
void ps_executor_stats_reset(struct ps_executor *ex);

/* Serial run in a random order that lane order and dependencies allow (seeded), calling before(arg,
 * task) and after(arg, task) around each task: the checker protects undeclared pages there. Runs
 * `periods` periods as one unrolled schedule, the first one as after a restart, those that trail to
 * their end. A task starts only after all tasks of the period before that do not trail, as in
 * ps_executor_run. Nothing else may run; records, stats and the periods counted by ps_executor_run
 * are left alone. After an error the executor can be used again. -ENOMEM, PS_EUSAGE as above, or
 * what a callback returned. */
struct ps_random_run {
    uint64_t seed;
    uint32_t periods;
    void *arg;
    int (*before)(void *arg, const struct ps_task *task, struct ps_error *err);
    int (*after)(void *arg, const struct ps_task *task, struct ps_error *err);
    /* called once the tasks of a period that do not trail have ended and before any task of the
     * next one, `period` (1 ..), starts (fill its batch); may be NULL */
    int (*between)(void *arg, uint32_t period, struct ps_error *err);
};
int ps_executor_run_random(struct ps_executor *ex, int handle, const struct ps_random_run *r,
                           struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
