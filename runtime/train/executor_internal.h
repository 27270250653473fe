/* The executor's insides, shared by executor.c (the caller's side), executor_lane.c (lane threads
 * and the virtual clock), executor_queue.c (lanes whose work a device does later) and
 * executor_random.c.
 *
 * A lane is in one state; ps_executor.runnable counts the lanes that are RUNNING, and the landers
 * that have something in flight:
 *
 *   IDLE     nothing queued          -> RUNNING when a period is queued
 *   WAITING  head of queue, deps     -> RUNNING by whoever completes the last dependency
 *   IN_CLOCK task in virtual clock   -> RUNNING when the clock ends it, or by a failure
 *   FULL     PS_EXECUTOR_AHEAD tasks launched -> RUNNING by its lander
 *   RUNNING  its thread works, sleeps for a throttle, or is about to wake
 *   STOPPED  after a failure
 *
 * Invariants: (1) a lane leaves a blocked state by another thread's hand, which counts it as
 * runnable in the same critical section, so that `runnable == 0` means that nothing can happen by
 * itself; (2) the virtual clock advances only then, and only while the caller waits too; (3) tasks
 * of a lane end in lane order; (4) at most two periods of a schedule are incomplete; (5) a lane
 * that launches ahead appends to its flights, its lander takes them away, oldest first; (6) what
 * has been launched depends on what has been launched or has ended, so that the device always goes
 * on. */
#ifndef PS_TRAIN_EXECUTOR_INTERNAL_H
#define PS_TRAIN_EXECUTOR_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/train/executor.h"

#define PS__SCHEDULE_MAX 8
#define PS__RECORD_SETS 3 /* two periods that are incomplete and the last complete one */
#define PS__QUEUE_MAX (2 * PS__SCHEDULE_MAX)
#define PS__FLIGHT_MAX PS_EXECUTOR_AHEAD
#define PS__REQUESTS_MAX 2 /* tasks in flight of an async lane */

/* A schedule that was bound. Constant after bind unless marked. */
struct ps__bound {
    const struct ps_schedule *s;
    uint32_t lane_begin[PS_LANE_COUNT + 1]; /* in lane_task */
    uint32_t *lane_task;                    /* (task_count) ids by lane, program order */
    uint32_t must_count;                    /* tasks that do not trail */
    /* guarded by m */
    uint64_t *done;     /* (task_count) periods completed since restart */
    uint64_t *launched; /* (task_count) periods launched since restart; only of lanes ahead */
    uint64_t *mark;     /* (task_count, 2) number of its mark in its queue, by period % 2 */
    uint64_t *end_ns;   /* (task_count) when it ended last */
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
    uint64_t mark, queued_ns; /* of a lane ahead */
};

enum ps__lane_state {
    PS__LANE_IDLE,
    PS__LANE_WAITING,
    PS__LANE_IN_CLOCK,
    PS__LANE_FULL,
    PS__LANE_RUNNING,
    PS__LANE_STOPPED,
};

struct ps__lane {
    struct ps_executor *ex; /* constant after init */
    enum ps_lane id;        /* constant after init */
    pthread_t thread;       /* caller only */
    bool threaded;          /* caller only */
    bool ahead;             /* constant after init: launches ahead of a queue */
    pthread_t lander;       /* caller only; ends the tasks of a lane ahead */
    bool landed;            /* caller only: there is a lander */
    pthread_cond_t wake, land;
    /* guarded by m */
    enum ps__lane_state state;
    struct ps__entry queue[PS__QUEUE_MAX]; /* ring */
    uint32_t queue_head, queue_count;
    struct ps__flight flight[PS__FLIGHT_MAX]; /* oldest first */
    uint32_t flight_count;
    const struct ps__bound *wait_bound; /* WAITING: for this task */
    uint32_t wait_task;
    uint64_t free_ns; /* end of the task before */
    uint64_t mark;    /* number of the next mark; lane thread only */
    bool landing;     /* the lander has something in flight, and counts as runnable */
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

/* Whether the dependencies of `task` in `period` are done; else *missing is the first that is not.
 * Locked. */
bool ps__deps_done(const struct ps__bound *b, const struct ps_task *task, uint64_t period,
                   uint32_t *missing);
/* Whether `task` may start: those in queues need only be launched where its lane is one ahead.
 * Locked. */
bool ps__deps_ready(const struct ps_executor *ex, const struct ps__bound *b,
                    const struct ps_task *task, uint64_t period, uint32_t *missing);

/* The queue of a lane, or PS_QUEUE_COUNT. */
enum ps_queue ps__lane_queue(const struct ps_executor *ex, enum ps_lane lane);

/* The task's own work, done on return: run, and what it has launched, or start and finish.
 * Unlocked.
 */
int ps__task_work(const struct ps_executor *ex, const struct ps_task *task, struct ps_error *err);
/* err filled in where the task's function left it empty; returns ret. */
int ps__task_error(const struct ps_task *task, int ret, struct ps_error *err);

/* Random wait of up to delay_max_ns, where that is asked for. Locked, sleeps on `wake`. */
void ps__task_delay(struct ps_executor *ex, pthread_cond_t *wake, const struct ps__flight *f,
                    uint64_t salt);
/* After its work, before it ends: throttle and delay of a task whose lane began to serve it at
 * `begin_ns`. Locked, sleeps on `wake`; throttle_ns of the record is set. */
void ps__task_rest(struct ps_executor *ex, pthread_cond_t *wake, const struct ps__flight *f,
                   uint64_t begin_ns);

/* A task has ended: record, stats, counters; lanes and caller that waited for it become runnable.
 * Locked. */
void ps__task_end(struct ps_executor *ex, const struct ps__flight *f, uint64_t end_ns);

/* The dependency that ended last after the lane was ready, or -1. Locked. */
int32_t ps__waited_on(const struct ps__bound *b, const struct ps_task *t, uint64_t ready_ns);
/* Task `id` has been launched, or has ended: lanes that waited for it and may go on do. Locked. */
void ps__wake_waiting(struct ps_executor *ex, const struct ps__bound *b, uint32_t id);
/* From a blocked state to RUNNING. Locked. */
void ps__lane_go_on(struct ps_executor *ex, struct ps__lane *l);
/* Stand still until another thread says go on; false: the executor is destroyed. Locked. */
bool ps__lane_park(struct ps__lane *l, enum ps__lane_state state);
/* The oldest task in flight is none any more. Locked. */
void ps__drop_flight(struct ps__lane *l);
/* The task at the head of the lane's queue, taken off it. Locked. */
struct ps__flight ps__take_task(struct ps__lane *l, uint64_t now);

/* One move of a lane ahead; false: destroyed. Locked. */
bool ps__ahead_step(struct ps__lane *l);
/* Thread that ends what a lane has launched ahead. */
void *ps__lander_main(void *lane);

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
