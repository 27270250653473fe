/* The executor's insides, shared by executor.c (the caller's side), executor_lane.c (lane threads
 * and the virtual clock) and executor_random.c.
 *
 * A lane is in one state; ps_executor.runnable counts the lanes that are RUNNING:
 *
 *   IDLE     nothing queued          -> RUNNING when a period is queued
 *   WAITING  head of queue, deps     -> RUNNING by whoever completes the last dependency
 *   IN_CLOCK task in virtual clock   -> RUNNING when the clock ends it, or by a failure
 *   RUNNING  its thread works, sleeps for a throttle, or is about to wake
 *   STOPPED  after a failure
 *
 * Invariants: (1) a lane leaves a blocked state by another thread's hand, which counts it as
 * runnable in the same critical section, so that `runnable == 0` means that nothing can happen by
 * itself; (2) the virtual clock advances only then, and only while the caller waits too; (3) tasks
 * of a lane end in lane order; (4) at most two periods of a schedule are incomplete. */
#ifndef PS_TRAIN_EXECUTOR_INTERNAL_H
#define PS_TRAIN_EXECUTOR_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/train/executor.h"

#define PS__SCHEDULE_MAX 8
#define PS__RECORD_SETS 3 /* two periods that are incomplete and the last complete one */
#define PS__QUEUE_MAX (2 * PS__SCHEDULE_MAX)
#define PS__FLIGHT_MAX 2

/* A schedule that was bound. Constant after bind unless marked. */
struct ps__bound {
    const struct ps_schedule *s;
    uint32_t lane_begin[PS_LANE_COUNT + 1]; /* in lane_task */
    uint32_t *lane_task;                    /* (task_count) ids by lane, program order */
    uint32_t must_count;                    /* tasks that do not trail */
    /* guarded by m */
    uint64_t *done;   /* (task_count) periods completed since restart */
    uint64_t *end_ns; /* (task_count) when it ended last */
    struct ps_task_record *record[PS__RECORD_SETS];
    uint32_t left_all[PS__RECORD_SETS], left_must[PS__RECORD_SETS];
    uint64_t period;   /* the next one to be run, since restart */
    uint64_t sequence; /* the same without restarts: record set sequence % PS__RECORD_SETS */
    const struct ps_task_record *last; /* of the last complete period, or NULL */
};

/* One period of one schedule on one lane. */
struct ps__entry {
    struct ps__bound *bound;
    uint64_t period;
    uint32_t set; /* its record set */
    uint32_t at;  /* index into lane_task of the next task to start */
    uint64_t queued_ns;
};

/* A task that has been started and has not ended. */
struct ps__flight {
    struct ps__bound *bound;
    const struct ps_task *task;
    struct ps_task_record *record;
    uint64_t period;
    uint32_t set;
};

enum ps__lane_state {
    PS__LANE_IDLE,
    PS__LANE_WAITING,
    PS__LANE_IN_CLOCK,
    PS__LANE_RUNNING,
    PS__LANE_STOPPED,
};

struct ps__lane {
    struct ps_executor *ex; /* constant after init */
    enum ps_lane id;        /* constant after init */
    pthread_t thread;       /* caller only */
    bool threaded;          /* caller only */
    pthread_cond_t wake;
    /* guarded by m */
    enum ps__lane_state state;
    struct ps__entry queue[PS__QUEUE_MAX]; /* ring */
    uint32_t queue_head, queue_count;
    struct ps__flight flight[PS__FLIGHT_MAX]; /* oldest first */
    uint32_t flight_count;
    const struct ps__bound *wait_bound; /* WAITING: for done[wait_task] >= wait_count */
    uint32_t wait_task;
    uint64_t wait_count;
    uint64_t free_ns; /* end of the task before */
    struct ps_lane_stats stats;
};

struct ps_executor {
    struct ps_executor_options opt; /* constant after init */
    pthread_mutex_t m;
    pthread_cond_t caller_wake;
    struct ps__lane lane[PS_LANE_COUNT];
    struct ps__bound bound[PS__SCHEDULE_MAX];
    int bound_count; /* caller only */
    /* guarded by m */
    uint32_t runnable;
    uint32_t left;                /* tasks queued and not ended */
    const uint32_t *caller_until; /* the caller waits until this is 0; NULL: it does not wait */
    int failed;                   /* first failure, or 0 */
    struct ps_error error;
    bool quit;
};

/* Clock of the executor. Locked. */
uint64_t ps__executor_now(const struct ps_executor *ex);

/* Whether the dependencies of `task` in `period` are done; else *missing is the first that is not
 * and *count what its done counter must reach. Locked. */
bool ps__deps_done(const struct ps__bound *b, const struct ps_task *task, uint64_t period,
                   uint32_t *missing, uint64_t *count);

/* The task's own work: run, or start and finish. Unlocked. */
int ps__task_work(const struct ps_executor *ex, const struct ps_task *task, struct ps_error *err);
/* err filled in where the task's function left it empty; returns ret. */
int ps__task_error(const struct ps_task *task, int ret, struct ps_error *err);

/* After its work, before it ends: throttle and delay of a task whose lane began to serve it at
 * `begin_ns`. Locked, sleeps on `wake`; throttle_ns of the record is set. */
void ps__task_rest(struct ps_executor *ex, pthread_cond_t *wake, const struct ps__flight *f,
                   uint64_t begin_ns);

/* A task has ended: record, stats, counters; lanes and caller that waited for it become runnable.
 * Locked. */
void ps__task_end(struct ps_executor *ex, const struct ps__flight *f, uint64_t end_ns);

/* Remember the first failure, stop every lane. Locked. */
void ps__executor_fail(struct ps_executor *ex, int code, const struct ps_error *err);
/* Nothing can go on by itself and the caller waits: advance the virtual clock, or find that the
 * schedule is stuck. Locked. */
void ps__executor_settle(struct ps_executor *ex);

/* Thread of a lane. */
void *ps__lane_main(void *lane);

/* Seeded 64 bits of three numbers. */
uint64_t ps__hash(uint64_t seed, uint64_t a, uint64_t b);

#endif
