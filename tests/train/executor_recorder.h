/* What the executor's tests share: random schedules, and task functions that note every start and
 * end in one global order, to be compared with the schedule independently of the executor's
 * counters. */
#ifndef PS_TESTS_TRAIN_EXECUTOR_RECORDER_H
#define PS_TESTS_TRAIN_EXECUTOR_RECORDER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/train/executor.h"

enum { TASK_MAX = 64, PERIOD_MAX = 64 };

/* Everything that happened, in one global order. guarded by m */
struct recorder {
    pthread_mutex_t m;
    pthread_cond_t changed;
    const struct ps_schedule *s; /* constant */
    uint64_t clock;
    uint64_t began[PERIOD_MAX][TASK_MAX], ended[PERIOD_MAX][TASK_MAX]; /* 0: not */
    uint32_t begins[TASK_MAX], ends[TASK_MAX];
    uint64_t run_returned[PERIOD_MAX];
    int active[PS_LANE_COUNT], active_max[PS_LANE_COUNT];
    pthread_t thread[PS_LANE_COUNT];
    bool thread_seen[PS_LANE_COUNT], one_thread;
    /* set before the run: the task that fails, at which of its runs, in which function; how long
     * tasks take; a task that ends only when another has begun gate_count times */
    int fail_task;
    uint32_t fail_at;
    bool fail_start;
    bool silent; /* the failure says nothing */
    uint64_t sleep_ns[TASK_MAX];
    struct gate {
        int task; /* -1: none */
        uint32_t on, count;
    } gate, start_gate; /* of the end (or finish), of the start */
    bool gate_timed_out;
    bool failed;
    uint32_t begun_after_failure;
};

static inline void sleep_ns(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    PS_IGNORE(nanosleep(&t, NULL), "a shorter sleep is as good");
}

static inline void recorder_init(struct recorder *r, const struct ps_schedule *s)
{
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->m, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->s = s;
    r->fail_task = -1;
    r->gate.task = r->start_gate.task = -1;
    r->one_thread = true;
}

static inline int failure(struct recorder *r, const struct ps_task *t, struct ps_error *err)
{
    r->failed = true;
    r->active[t->lane]--;
    pthread_cond_broadcast(&r->changed);
    if (r->silent)
        return -EIO;
    return ps_error_full(err, -EIO, "weights.bin", NULL, NULL, "task %u was told to fail", t->id);
}

/* Locked. */
static inline void pass(struct recorder *r, const struct gate *g, const struct ps_task *t)
{
    struct timespec until;
    if (clock_gettime(CLOCK_REALTIME, &until))
        abort();
    until.tv_sec += 10;
    while (g->task == (int)t->id && r->begins[g->on] < g->count && !r->failed && !r->gate_timed_out)
        r->gate_timed_out = pthread_cond_timedwait(&r->changed, &r->m, &until) == ETIMEDOUT;
}

static inline int begin(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    struct recorder *r = ctx;
    pthread_mutex_lock(&r->m);
    uint32_t p = r->begins[t->id]++;
    if (p < PERIOD_MAX)
        r->began[p][t->id] = ++r->clock;
    r->begun_after_failure += r->failed;
    int a = ++r->active[t->lane];
    r->active_max[t->lane] = a > r->active_max[t->lane] ? a : r->active_max[t->lane];
    if (r->thread_seen[t->lane] && !pthread_equal(r->thread[t->lane], pthread_self()))
        r->one_thread = false;
    r->thread_seen[t->lane] = true;
    r->thread[t->lane] = pthread_self();
    pthread_cond_broadcast(&r->changed);
    int ret = 0;
    if (r->fail_task == (int)t->id && r->fail_start && p == r->fail_at)
        ret = failure(r, t, err);
    pass(r, &r->start_gate, t);
    pthread_mutex_unlock(&r->m);
    return ret;
}

static inline int end(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    struct recorder *r = ctx;
    pthread_mutex_lock(&r->m);
    pass(r, &r->gate, t);
    pthread_mutex_unlock(&r->m);
    if (r->sleep_ns[t->id])
        sleep_ns(r->sleep_ns[t->id]);
    pthread_mutex_lock(&r->m);
    uint32_t p = r->ends[t->id]++;
    if (p < PERIOD_MAX)
        r->ended[p][t->id] = ++r->clock;
    int ret = 0;
    if (r->fail_task == (int)t->id && !r->fail_start && p == r->fail_at)
        ret = failure(r, t, err);
    else
        r->active[t->lane]--;
    pthread_mutex_unlock(&r->m);
    return ret;
}

static inline int run_task(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    int ret = begin(ctx, t, err);
    return ret < 0 ? ret : end(ctx, t, err);
}

static inline struct ps_executor *executor(struct recorder *r, struct ps_executor_options *opt)
{
    for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
        opt->ops[k] = (struct ps_task_ops){.run = run_task, .start = begin, .finish = end};
    opt->ctx = r;
    struct ps_executor *ex = NULL;
    struct ps_error err = {0};
    assert_int_equal(ps_executor_create(&ex, opt, &err), 0);
    return ex;
}

static inline uint32_t add(struct ps_schedule *s, enum ps_lane lane, uint32_t flags)
{
    uint32_t id = ps_schedule_task(s, PS_TASK_EMBED, lane, 0);
    s->task[id].flags = flags;
    return id;
}

/* What must be ordered was ordered, over `periods` periods; counts what it looked at. */
static inline size_t check_order(const struct recorder *r, uint32_t periods)
{
    const struct ps_schedule *s = r->s;
    size_t checked = 0;
    for (uint32_t p = 0; p < periods; p++)
        for (uint32_t i = 0; i < s->task_count; i++) {
            const struct ps_task *t = &s->task[i];
            assert_true(r->began[p][i] > 0);
            assert_true(r->ended[p][i] > r->began[p][i]);
            for (uint32_t d = 0; d < t->dep_count; d++, checked++) {
                const struct ps_dep *dep = &s->dep[t->dep_begin + d];
                if (dep->distance <= p)
                    assert_true(r->ended[p - dep->distance][dep->task] < r->began[p][i]);
            }
            /* the task before it on its lane */
            for (uint32_t j = 0; j < s->task_count; j++) {
                if (s->task[j].lane != t->lane || (j >= i && p == 0))
                    continue;
                uint32_t q = j < i ? p : p - 1;
                assert_true(r->began[q][j] < r->began[p][i]);
                assert_true(r->ended[q][j] < r->ended[p][i]);
                if (!ps_lane_is_async(t->lane))
                    assert_true(r->ended[q][j] < r->began[p][i]);
                checked++;
            }
            if (!(t->flags & PS_TASK_TRAILS) && r->run_returned[p])
                assert_true(r->ended[p][i] < r->run_returned[p]);
            if (p > 0 && r->run_returned[p - 1])
                assert_true(r->began[p][i] > r->run_returned[p - 1]);
        }
    return checked;
}

static inline void returned(struct recorder *r, uint32_t period)
{
    pthread_mutex_lock(&r->m);
    r->run_returned[period] = ++r->clock;
    pthread_mutex_unlock(&r->m);
}

static inline uint64_t mix(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    uint64_t x = *state;
    x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9u;
    return x ^ (x >> 29);
}

/* Tasks on random lanes, dependencies of both distances, some tasks that trail. */
static inline void random_schedule(struct ps_schedule *s, uint64_t seed)
{
    uint64_t x = seed;
    ps_schedule_init(s, "random");
    uint32_t n = 2 + (uint32_t)(mix(&x) % 38);
    uint32_t lanes = 1 + (uint32_t)(mix(&x) % PS_LANE_COUNT);
    for (uint32_t i = 0; i < n; i++) {
        bool trails = i > n / 2 && mix(&x) % 3 == 0;
        add(s, (enum ps_lane)(mix(&x) % lanes), trails ? PS_TASK_TRAILS : 0);
        for (uint64_t d = mix(&x) % 4; d > 0 && i > 0; d--)
            ps_schedule_dep(s, (uint32_t)(mix(&x) % i), 0);
        if (mix(&x) % 2)
            ps_schedule_dep(s, (uint32_t)(mix(&x) % n), 1);
    }
    assert_int_equal(s->fault, 0);
}

#endif
