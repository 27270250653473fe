/* The executor: order, overlap, failure, throttles, records; with a recorder that sees every start
 * and end and is compared with the schedule afterwards, independently of the executor's counters.
 */
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

/* Memory that runs out at the n-th call. The sanitizers bring allocators of their own. */
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CAN_FAIL 1
void *__libc_calloc(size_t a, size_t b);
static int calls_left = -1;

void *calloc(size_t a, size_t b)
{
    return calls_left >= 0 && calls_left-- == 0 ? NULL : __libc_calloc(a, b);
}
#else
#define CAN_FAIL 0
static int calls_left = -1;
#endif

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
    int gate_task;
    uint32_t gate_on, gate_count;
    bool gate_timed_out;
    bool failed;
    uint32_t begun_after_failure;
};

static void sleep_ns(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    PS_IGNORE(nanosleep(&t, NULL), "a shorter sleep is as good");
}

static void recorder_init(struct recorder *r, const struct ps_schedule *s)
{
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->m, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->s = s;
    r->fail_task = -1;
    r->gate_task = -1;
    r->one_thread = true;
}

static int failure(struct recorder *r, const struct ps_task *t, struct ps_error *err)
{
    r->failed = true;
    r->active[t->lane]--;
    pthread_cond_broadcast(&r->changed);
    if (r->silent)
        return -EIO;
    return ps_error_full(err, -EIO, "weights.bin", NULL, NULL, "task %u was told to fail", t->id);
}

static int begin(void *ctx, const struct ps_task *t, struct ps_error *err)
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
    pthread_mutex_unlock(&r->m);
    return ret;
}

static int end(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    struct recorder *r = ctx;
    if (r->sleep_ns[t->id])
        sleep_ns(r->sleep_ns[t->id]);
    pthread_mutex_lock(&r->m);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    while (r->gate_task == (int)t->id && r->begins[r->gate_on] < r->gate_count && !r->failed &&
           !r->gate_timed_out)
        r->gate_timed_out = pthread_cond_timedwait(&r->changed, &r->m, &until) == ETIMEDOUT;
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

static int run_task(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    int ret = begin(ctx, t, err);
    return ret < 0 ? ret : end(ctx, t, err);
}

static struct ps_executor *executor(struct recorder *r, struct ps_executor_options *opt)
{
    for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
        opt->ops[k] = (struct ps_task_ops){.run = run_task, .start = begin, .finish = end};
    opt->ctx = r;
    struct ps_executor *ex = NULL;
    struct ps_error err = {0};
    assert_int_equal(ps_executor_create(&ex, opt, &err), 0);
    return ex;
}

static uint32_t add(struct ps_schedule *s, enum ps_lane lane, uint32_t flags)
{
    uint32_t id = ps_schedule_task(s, PS_TASK_EMBED, lane, 0);
    s->task[id].flags = flags;
    return id;
}

/* What must be ordered was ordered, over `periods` periods; counts what it looked at. */
static size_t check_order(const struct recorder *r, uint32_t periods)
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

static void returned(struct recorder *r, uint32_t period)
{
    pthread_mutex_lock(&r->m);
    r->run_returned[period] = ++r->clock;
    pthread_mutex_unlock(&r->m);
}

static uint64_t mix(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    uint64_t x = *state;
    x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9u;
    return x ^ (x >> 29);
}

/* Tasks on random lanes, dependencies of both distances, some tasks that trail. */
static void random_schedule(struct ps_schedule *s, uint64_t seed)
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

static void order_holds_in_200_random_graphs_under_random_delays(void **state)
{
    (void)state;
    struct recorder *r = malloc(sizeof *r);
    size_t checked = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct ps_schedule s;
        random_schedule(&s, seed);
        recorder_init(r, &s);
        struct ps_executor_options opt = {.delay_seed = seed, .delay_max_ns = 20000};
        struct ps_executor *ex = executor(r, &opt);
        int h = ps_executor_bind(ex, &s);
        assert_int_equal(h, 0);
        struct ps_error err = {0};
        for (uint32_t p = 0; p < 4; p++) {
            assert_int_equal(ps_executor_run(ex, h, &err), 0);
            returned(r, p);
        }
        assert_int_equal(ps_executor_drain(ex, &err), 0);
        checked += check_order(r, 4);
        assert_true(r->one_thread);
        ps_executor_destroy(ex);
        ps_schedule_fini(&s);
    }
    assert_true(checked > 100000);
    free(r);
}

/* --- data --- */

/* Tasks that compute from what their dependencies left, without a lock of their own: only the
 * executor orders them (a race is seen by the thread sanitizer, a wrong order by the values). */
struct data {
    const struct ps_schedule *s;
    uint64_t value[4][TASK_MAX];
    uint32_t runs[TASK_MAX];
};

static int compute(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    struct data *d = ctx;
    (void)err;
    uint32_t p = d->runs[t->id]++;
    uint64_t x = t->id + 1;
    for (uint32_t i = 0; i < t->dep_count; i++) {
        const struct ps_dep *dep = &d->s->dep[t->dep_begin + i];
        if (dep->distance <= p)
            x = x * 31 + d->value[p - dep->distance][dep->task];
    }
    d->value[p][t->id] = x;
    return 0;
}

static int nothing(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    (void)ctx;
    (void)t;
    (void)err;
    return 0;
}

static void results_pass_between_lanes_and_equal_the_serial_run(void **state)
{
    (void)state;
    struct data *d[2] = {malloc(sizeof **d), malloc(sizeof **d)};
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct ps_schedule s;
        random_schedule(&s, seed);
        for (int serial = 0; serial < 2; serial++) {
            memset(d[serial], 0, sizeof **d);
            d[serial]->s = &s;
            struct ps_executor_options opt = {.ctx = d[serial], .serial = serial};
            for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
                opt.ops[k] =
                    (struct ps_task_ops){.run = compute, .start = nothing, .finish = compute};
            struct ps_executor *ex = NULL;
            struct ps_error err = {0};
            assert_int_equal(ps_executor_create(&ex, &opt, &err), 0);
            int h = ps_executor_bind(ex, &s);
            for (int p = 0; p < 4; p++)
                assert_int_equal(ps_executor_run(ex, h, &err), 0);
            ps_executor_destroy(ex);
        }
        assert_memory_equal(d[0]->value, d[1]->value, sizeof d[0]->value);
        ps_schedule_fini(&s);
    }
    free(d[0]);
    free(d[1]);
}

/* --- overlap --- */

static void an_async_lane_starts_the_next_before_it_finishes_the_first(void **state)
{
    (void)state;
    struct ps_schedule s;
    ps_schedule_init(&s, "reads");
    for (int i = 0; i < 6; i++)
        add(&s, PS_LANE_DISK_STATE, 0);
    struct recorder r;
    recorder_init(&r, &s);
    r.gate_task = 0; /* its requests are there only when task 1 has been started */
    r.gate_on = 1;
    r.gate_count = 1;
    struct ps_executor_options opt = {0};
    struct ps_executor *ex = executor(&r, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    assert_int_equal(ps_executor_run(ex, h, &err), 0);
    assert_false(r.gate_timed_out);
    assert_true(r.began[0][1] < r.ended[0][0]);
    assert_int_equal(r.active_max[PS_LANE_DISK_STATE], 2);
    check_order(&r, 1);
    ps_executor_destroy(ex);
    ps_schedule_fini(&s);
}

static void starting_ahead_never_waits_for_a_dependency(void **state)
{
    (void)state;
    struct ps_schedule s;
    ps_schedule_init(&s, "reads");
    add(&s, PS_LANE_DISK_WEIGHTS, 0); /* 0 */
    add(&s, PS_LANE_COMPUTE, 0);      /* 1: needs read 0 */
    ps_schedule_dep(&s, 0, 0);
    add(&s, PS_LANE_DISK_WEIGHTS,
        0); /* 2: its slot is free after 1: cannot be started ahead of 0 */
    ps_schedule_dep(&s, 1, 0);
    struct recorder r;
    recorder_init(&r, &s);
    struct ps_executor_options opt = {0};
    struct ps_executor *ex = executor(&r, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    for (uint32_t p = 0; p < 20; p++)
        assert_int_equal(ps_executor_run(ex, h, &err), 0);
    assert_int_equal(r.active_max[PS_LANE_DISK_WEIGHTS], 1);
    check_order(&r, 20);
    ps_executor_destroy(ex);
    ps_schedule_fini(&s);
}

/* Task 1 trails; it ends only when task `gate_on` of the next period has begun. */
static void run_trailing(enum ps_lane lane, uint32_t gate_on)
{
    struct ps_schedule s;
    ps_schedule_init(&s, "trailing");
    add(&s, gate_on == 0 ? lane : PS_LANE_COMPUTE, 0);
    add(&s, PS_LANE_DISK_WEIGHTS, PS_TASK_TRAILS);
    ps_schedule_dep(&s, 0, 0);
    struct recorder r;
    recorder_init(&r, &s);
    r.gate_task = 1;
    r.gate_on = gate_on;
    r.gate_count = 2;
    struct ps_executor_options opt = {0};
    struct ps_executor *ex = executor(&r, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    assert_null(ps_executor_records(ex, h));
    assert_int_equal(ps_executor_run(ex, h, &err), 0); /* would wait for ever if it waited for 1 */
    returned(&r, 0);
    assert_null(ps_executor_records(ex, h)); /* task 1 has not ended */
    assert_int_equal(ps_executor_run(ex, h, &err), 0);
    returned(&r, 1);
    assert_int_equal(ps_executor_drain(ex, &err), 0);
    assert_false(r.gate_timed_out);
    assert_int_equal(r.ends[1], 2);
    assert_true(r.began[1][0] < r.ended[0][1]);
    assert_true(r.ended[0][1] > r.run_returned[0]);
    assert_non_null(ps_executor_records(ex, h));
    check_order(&r, 2);
    ps_executor_destroy(ex);
    ps_schedule_fini(&s);
}

static void trailing_tasks_overlap_the_next_period(void **state)
{
    (void)state;
    run_trailing(PS_LANE_COMPUTE, 0);
}

static void an_async_lane_starts_ahead_into_the_next_period(void **state)
{
    (void)state;
    run_trailing(PS_LANE_DISK_WEIGHTS, 0);
}

static void schedules_take_turns_behind_what_trails(void **state)
{
    (void)state;
    struct ps_schedule a, b;
    ps_schedule_init(&a, "train");
    add(&a, PS_LANE_COMPUTE, 0);
    ps_schedule_dep(&a, 1, 1);
    add(&a, PS_LANE_DISK_WEIGHTS, PS_TASK_TRAILS);
    ps_schedule_dep(&a, 0, 0);
    ps_schedule_init(&b, "eval");
    add(&b, PS_LANE_DISK_WEIGHTS, 0);
    add(&b, PS_LANE_H2D, 0);
    ps_schedule_dep(&b, 0, 0);
    struct recorder r; /* both: ids overlap, so counts are sums */
    recorder_init(&r, &a);
    r.sleep_ns[1] = 2000000;
    struct ps_executor_options opt = {0};
    struct ps_executor *ex = executor(&r, &opt);
    int ha = ps_executor_bind(ex, &a), hb = ps_executor_bind(ex, &b);
    struct ps_error err = {0};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(ps_executor_run(ex, ha, &err), 0);
        assert_int_equal(ps_executor_run(ex, hb, &err), 0);
        /* the disk lane's task of b came after the one of a that trailed */
        assert_int_equal(r.ends[1], 2 * (i + 1));
        assert_int_equal(r.ends[0], 2 * (i + 1));
        const struct ps_task_record *ra = ps_executor_records(ex, ha);
        const struct ps_task_record *rb = ps_executor_records(ex, hb);
        assert_true(ra[1].end_ns <= rb[0].end_ns);
        assert_int_equal(rb[1].waited_on, 0);
    }
    ps_executor_destroy(ex);
    ps_schedule_fini(&a);
    ps_schedule_fini(&b);
}

static void restart_counts_from_the_first_period_again(void **state)
{
    (void)state;
    struct ps_schedule s;
    ps_schedule_init(&s, "restart");
    add(&s, PS_LANE_COMPUTE, 0);
    ps_schedule_dep(&s, 1, 1);
    add(&s, PS_LANE_DISK_WEIGHTS, PS_TASK_TRAILS);
    ps_schedule_dep(&s, 0, 0);
    struct recorder r;
    recorder_init(&r, &s);
    struct ps_executor_options opt = {0};
    struct ps_executor *ex = executor(&r, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    for (int round = 0; round < 5; round++) {
        for (int p = 0; p < 3; p++)
            assert_int_equal(ps_executor_run(ex, h, &err), 0);
        assert_int_equal(ps_executor_drain(ex, &err), 0);
        ps_executor_restart(ex, h);
    }
    assert_int_equal(r.ends[1], 15);
    check_order(&r, 15);
    ps_executor_destroy(ex);
    ps_schedule_fini(&s);
}

/* --- failures --- */

/* Run until the failure is reported; everything must stand still then. */
static void expect_failure(const struct ps_schedule *s, struct recorder *r, bool serial)
{
    struct ps_executor_options opt = {.serial = serial, .delay_seed = 9, .delay_max_ns = 3000};
    struct ps_executor *ex = executor(r, &opt);
    int h = ps_executor_bind(ex, s);
    struct ps_error err = {0};
    int ret = 0;
    for (int p = 0; p < 3 && ret == 0; p++)
        ret = ps_executor_run(ex, h, &err);
    if (ret == 0)
        ret = ps_executor_drain(ex, &err);
    assert_int_equal(ret, -EIO);
    assert_int_equal(err.code, -EIO);
    if (r->silent) {
        assert_non_null(strstr(err.message, "task "));
    } else {
        assert_string_equal(err.file, "weights.bin");
        assert_non_null(strstr(err.message, "was told to fail"));
    }
    uint64_t clock = r->clock;
    for (int l = 0; l < PS_LANE_COUNT; l++)
        assert_int_equal(r->active[l], 0); /* what was started was finished */
    if (serial)
        assert_int_equal(r->begun_after_failure, 0);
    for (uint32_t i = 0; i < s->task_count; i++)
        for (uint32_t d = 0; d < s->task[i].dep_count; d++) {
            const struct ps_dep *dep = &s->dep[s->task[i].dep_begin + d];
            if ((int)dep->task == r->fail_task)
                assert_true(r->begins[i] <= r->fail_at + dep->distance);
        }
    struct ps_error again = {0};
    assert_int_equal(ps_executor_run(ex, h, &again), -EIO);
    assert_string_equal(again.message, err.message);
    assert_int_equal(ps_executor_drain(ex, &again), -EIO);
    ps_executor_destroy(ex);
    assert_int_equal(r->clock, clock);
}

static void a_failure_of_any_task_stops_everything(void **state)
{
    (void)state;
    struct recorder *r = malloc(sizeof *r);
    size_t runs = 0;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct ps_schedule s;
        random_schedule(&s, seed);
        for (uint32_t i = 0; i < s.task_count; i++)
            for (uint32_t k = 0; k < 4; k++, runs++) {
                recorder_init(r, &s);
                r->fail_task = (int)i;
                r->fail_at = k % 2;
                r->fail_start = k / 2;
                r->silent = (i + k) % 3 == 0;
                expect_failure(&s, r, runs % 5 == 0);
            }
        ps_schedule_fini(&s);
    }
    assert_true(runs > 500);
    free(r);
}

static void a_failure_ends_the_sleep_of_a_throttled_task(void **state)
{
    (void)state;
    struct ps_schedule s;
    ps_schedule_init(&s, "throttled");
    add(&s, PS_LANE_COMPUTE, 0);
    s.task[0].flops = 100; /* 100 s */
    add(&s, PS_LANE_DISK_WRITE, 0);
    s.task[1].bytes = 1;
    struct recorder r;
    recorder_init(&r, &s);
    r.fail_task = 1;
    r.sleep_ns[1] = 3000000;
    struct ps_executor_options opt = {0};
    opt.throttle[PS_LANE_COMPUTE] = 1;
    struct ps_executor *ex = executor(&r, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    time_t t = time(NULL);
    assert_int_equal(ps_executor_run(ex, h, &err), -EIO);
    ps_executor_destroy(ex);
    assert_true(time(NULL) - t < 50);
    ps_schedule_fini(&s);
}

static void the_first_of_two_failures_is_reported(void **state)
{
    (void)state;
    struct ps_schedule s;
    ps_schedule_init(&s, "two reads");
    add(&s, PS_LANE_DISK_WEIGHTS, 0);
    add(&s, PS_LANE_DISK_WEIGHTS, 0);
    struct recorder r;
    recorder_init(&r, &s);
    r.fail_task = 0;
    r.gate_task = 0; /* both in flight when the first fails; the second must still be finished */
    r.gate_on = 1;
    r.gate_count = 1;
    struct ps_executor_options opt = {0};
    struct ps_executor *ex = executor(&r, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    assert_int_equal(ps_executor_run(ex, h, &err), -EIO);
    assert_string_equal(err.message, "task 0 was told to fail");
    assert_int_equal(r.begins[1], 1);
    assert_int_equal(r.ends[1], 1);
    ps_executor_destroy(ex);
    ps_schedule_fini(&s);
}

/* Task 0 waits for task 2, which waits for task 1, which comes after task 0 on its lane. */
static void stuck_schedule(struct ps_schedule *s)
{
    ps_schedule_init(s, "knot");
    add(s, PS_LANE_COMPUTE, 0);
    ps_schedule_dep(s, 2, 0);
    add(s, PS_LANE_COMPUTE, 0);
    add(s, PS_LANE_H2D, 0);
    ps_schedule_dep(s, 1, 0);
}

static void a_schedule_that_cannot_go_on_is_named_and_does_not_hang(void **state)
{
    (void)state;
    struct ps_schedule s;
    stuck_schedule(&s);
    for (int serial = 0; serial < 2; serial++) {
        struct recorder r;
        recorder_init(&r, &s);
        struct ps_executor_options opt = {.serial = serial};
        struct ps_executor *ex = executor(&r, &opt);
        int h = ps_executor_bind(ex, &s);
        struct ps_error err = {0};
        struct ps_random_run random = {.seed = 1, .periods = 1};
        assert_int_equal(ps_executor_run_random(ex, h, &random, &err), PS_EUSAGE);
        assert_non_null(strstr(err.message, "knot"));
        memset(&err, 0, sizeof err);
        assert_int_equal(ps_executor_run(ex, h, &err), PS_EUSAGE);
        assert_non_null(strstr(err.message, "knot"));
        assert_non_null(strstr(err.message, "waits for task"));
        ps_executor_destroy(ex);
    }
    ps_schedule_fini(&s);
}

/* --- serial, throttles, records, stats --- */

static void serial_runs_in_program_order_on_the_callers_thread(void **state)
{
    (void)state;
    struct recorder *r = malloc(sizeof *r);
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct ps_schedule s;
        random_schedule(&s, seed);
        recorder_init(r, &s);
        struct ps_executor_options opt = {.serial = true};
        struct ps_executor *ex = executor(r, &opt);
        int h = ps_executor_bind(ex, &s);
        struct ps_error err = {0};
        uint64_t last = 0;
        for (uint32_t p = 0; p < 3; p++) {
            assert_int_equal(ps_executor_run(ex, h, &err), 0);
            const struct ps_task_record *rec = ps_executor_records(ex, h);
            for (uint32_t i = 0; i < s.task_count; i++) {
                assert_int_equal(r->began[p][i], last + 1);
                assert_int_equal(r->ended[p][i], last + 2);
                last += 2;
                assert_true(rec[i].end_ns >= rec[i].start_ns);
                assert_true(i == 0 || rec[i].start_ns >= rec[i - 1].end_ns);
                assert_int_equal(rec[i].waited_on, -1);
            }
        }
        for (int l = 0; l < PS_LANE_COUNT; l++)
            assert_true(!r->thread_seen[l] || pthread_equal(r->thread[l], pthread_self()));
        assert_int_equal(ps_executor_drain(ex, &err), 0);
        ps_executor_destroy(ex);
        ps_schedule_fini(&s);
    }
    free(r);
}

static void throttled(bool serial)
{
    struct ps_schedule s;
    ps_schedule_init(&s, "throttled");
    for (int i = 0; i < 2; i++) {
        uint32_t c = add(&s, PS_LANE_COMPUTE, 0);
        s.task[c].flops = 5e9; /* 5 ms */
        s.task[c].bytes = 1u << 30;
        uint32_t d = add(&s, PS_LANE_DISK_WEIGHTS, 0);
        s.task[d].bytes = 8000; /* 8 ms; the second is started ahead of the first one's end */
    }
    struct recorder r;
    recorder_init(&r, &s);
    r.sleep_ns[0] = 1000000; /* real work counts */
    struct ps_executor_options opt = {.serial = serial};
    opt.throttle[PS_LANE_COMPUTE] = 1e12;
    opt.throttle[PS_LANE_DISK_WEIGHTS] = 1e6;
    struct ps_executor *ex = executor(&r, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    struct timespec cpu0, cpu1;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu0);
    for (int p = 0; p < 3; p++)
        assert_int_equal(ps_executor_run(ex, h, &err), 0);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu1);
    const struct ps_task_record *rec = ps_executor_records(ex, h);
    for (int i = 0; i < 4; i += 2) {
        assert_true(rec[i].end_ns - rec[i].start_ns >= 5000000);
        assert_true(rec[i].throttle_ns > 0);
        assert_true(rec[i].throttle_ns <= rec[i].end_ns - rec[i].start_ns);
    }
    assert_true(rec[0].throttle_ns <= rec[0].end_ns - rec[0].start_ns - 1000000);
    assert_true(rec[1].end_ns - rec[1].start_ns >= 8000000);
    assert_true(rec[3].end_ns - rec[1].end_ns >= 8000000); /* one after the other */
    struct ps_lane_stats st[PS_LANE_COUNT];
    ps_executor_stats(ex, st);
    assert_true(st[PS_LANE_COMPUTE].busy_ns >= 30000000);
    assert_true(st[PS_LANE_DISK_WEIGHTS].busy_ns >= 48000000);
    assert_int_equal(st[PS_LANE_DISK_WEIGHTS].bytes, 48000);
    /* sleeping uses no processor */
    double cpu_s =
        (double)(cpu1.tv_sec - cpu0.tv_sec) + (double)(cpu1.tv_nsec - cpu0.tv_nsec) / 1e9;
    assert_true(cpu_s < 0.02);
    ps_executor_destroy(ex);
    ps_schedule_fini(&s);
}

static void throttled_tasks_last_as_long_as_their_amount_asks(void **state)
{
    (void)state;
    throttled(false);
}

static void throttles_hold_in_serial_runs(void **state)
{
    (void)state;
    throttled(true);
}

static void stats_count_busy_time_bytes_and_stalls_by_cause(void **state)
{
    (void)state;
    struct ps_schedule s;
    ps_schedule_init(&s, "stats");
    add(&s, PS_LANE_COMPUTE, 0); /* 4 ms */
    add(&s, PS_LANE_DISK_STATE, 0);
    add(&s, PS_LANE_H2D, 0); /* waits for both, for the slower one last */
    ps_schedule_dep(&s, 1, 0);
    ps_schedule_dep(&s, 0, 0);
    s.task[2].bytes = 1000;
    struct recorder r;
    recorder_init(&r, &s);
    r.sleep_ns[0] = 40000000;
    struct ps_executor_options opt = {0};
    struct ps_executor *ex = executor(&r, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    struct ps_lane_stats st[PS_LANE_COUNT];
    for (uint64_t p = 1; p <= 2; p++) {
        assert_int_equal(ps_executor_run(ex, h, &err), 0);
        ps_executor_stats(ex, st);
        assert_int_equal(st[PS_LANE_H2D].bytes, 1000 * p);
        assert_int_equal(st[PS_LANE_H2D].tasks, p);
        assert_true(st[PS_LANE_COMPUTE].busy_ns >= 40000000 * p);
        assert_true(st[PS_LANE_H2D].stall_ns[PS_LANE_COMPUTE] >= 30000000 * p);
        assert_int_equal(st[PS_LANE_H2D].stall_ns[PS_LANE_DISK_STATE], 0);
        assert_int_equal(st[PS_LANE_COMPUTE].stall_ns[PS_LANE_H2D], 0);
        const struct ps_task_record *rec = ps_executor_records(ex, h);
        assert_int_equal(rec[2].waited_on, 0);
        assert_true(rec[2].start_ns >= rec[0].end_ns);
        assert_true(rec[2].ready_ns < rec[0].end_ns);
        assert_int_equal(rec[0].waited_on, -1);
    }
    ps_executor_stats_reset(ex);
    ps_executor_stats(ex, st);
    struct ps_lane_stats zero[PS_LANE_COUNT];
    memset(zero, 0, sizeof zero);
    assert_memory_equal(st, zero, sizeof zero);
    ps_executor_destroy(ex);
    ps_schedule_fini(&s);
}

static void an_empty_schedule_runs(void **state)
{
    (void)state;
    struct ps_schedule s;
    ps_schedule_init(&s, "empty");
    for (int serial = 0; serial < 2; serial++) {
        struct recorder r;
        recorder_init(&r, &s);
        struct ps_executor_options opt = {.serial = serial};
        struct ps_executor *ex = executor(&r, &opt);
        struct ps_error err = {0};
        struct ps_random_run random = {.seed = 1, .periods = 3};
        for (int i = 0; i < 8; i++) {
            int h = ps_executor_bind(ex, &s);
            assert_int_equal(h, i);
            for (int p = 0; p < 5; p++)
                assert_int_equal(ps_executor_run(ex, h, &err), 0);
            assert_int_equal(ps_executor_run_random(ex, h, &random, &err), 0);
        }
        ps_executor_destroy(ex);
        ps_executor_destroy(NULL);
    }
    ps_schedule_fini(&s);
}

/* --- random order --- */

struct random_log {
    struct recorder r;
    uint32_t order[PERIOD_MAX * TASK_MAX], count;
    int inside;      /* before has been called, after has not */
    uint32_t period; /* open */
    uint32_t periods_opened;
    int fail_call; /* the n-th call of a callback fails; -1: none */
};

static int call(struct random_log *q)
{
    return q->fail_call >= 0 && q->fail_call-- == 0 ? -ECANCELED : 0;
}

static int log_before(void *arg, const struct ps_task *t, struct ps_error *err)
{
    struct random_log *q = arg;
    (void)err;
    if (q->inside != -1)
        return -EPROTO;
    q->inside = (int)t->id;
    return call(q);
}

static int log_after(void *arg, const struct ps_task *t, struct ps_error *err)
{
    struct random_log *q = arg;
    (void)err;
    if (q->inside != (int)t->id)
        return -EPROTO;
    q->inside = -1;
    q->order[q->count++] = t->id;
    return call(q);
}

static int log_between(void *arg, uint32_t period, struct ps_error *err)
{
    struct random_log *q = arg;
    (void)err;
    if (period != q->periods_opened + 1 || q->inside != -1)
        return -EPROTO;
    q->r.run_returned[q->periods_opened++] = ++q->r.clock;
    return call(q);
}

static int random_once(struct random_log *q, const struct ps_schedule *s, uint64_t seed,
                       uint32_t periods, int fail_call)
{
    memset(q, 0, sizeof *q);
    recorder_init(&q->r, s);
    q->inside = -1;
    q->fail_call = fail_call;
    struct ps_executor_options opt = {.serial = true};
    struct ps_executor *ex = executor(&q->r, &opt);
    int h = ps_executor_bind(ex, s);
    struct ps_random_run random = {.seed = seed,
                                   .periods = periods,
                                   .arg = q,
                                   .before = log_before,
                                   .after = log_after,
                                   .between = log_between};
    struct ps_error err = {0};
    int ret = ps_executor_run_random(ex, h, &random, &err);
    ps_executor_destroy(ex);
    return ret;
}

static void random_runs_visit_all_tasks_in_valid_orders(void **state)
{
    (void)state;
    struct random_log *q = malloc(sizeof *q);
    size_t out_of_program_order = 0;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct ps_schedule s;
        random_schedule(&s, seed);
        assert_int_equal(random_once(q, &s, seed, 3, -1), 0);
        assert_int_equal(q->count, 3 * s.task_count);
        assert_int_equal(q->periods_opened, 2);
        check_order(&q->r, 3);
        for (uint32_t i = 1; i < q->count; i++)
            out_of_program_order += q->order[i] < q->order[i - 1];
        ps_schedule_fini(&s);
    }
    assert_true(out_of_program_order > 1000);
    free(q);
}

static void random_runs_find_every_order_and_repeat_with_the_seed(void **state)
{
    (void)state;
    struct ps_schedule s;
    ps_schedule_init(&s, "diamond"); /* 0 -> 1, 2 -> 3, and 4 trails after 0 */
    add(&s, PS_LANE_COMPUTE, 0);
    add(&s, PS_LANE_H2D, 0);
    ps_schedule_dep(&s, 0, 0);
    add(&s, PS_LANE_D2H, 0);
    ps_schedule_dep(&s, 0, 0);
    add(&s, PS_LANE_COMPUTE, 0);
    ps_schedule_dep(&s, 1, 0);
    ps_schedule_dep(&s, 2, 0);
    add(&s, PS_LANE_DISK_WEIGHTS, PS_TASK_TRAILS);
    ps_schedule_dep(&s, 0, 0);
    struct random_log *q = malloc(sizeof *q);
    /* one period: 0 first, then 1 and 2 in either order, 3, and 4 in any of 4 places: 8 orders */
    bool seen[8] = {false};
    int orders = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        assert_int_equal(random_once(q, &s, seed, 1, -1), 0);
        int at[5];
        for (int i = 0; i < 5; i++)
            at[q->order[i]] = i;
        int code = (at[1] < at[2]) * 4 + at[4] - 1;
        orders += !seen[code];
        seen[code] = true;
    }
    assert_int_equal(orders, 8);
    /* two periods: the trailing task is seen on both sides of the turn */
    int after_turn = 0;
    uint32_t kept[10];
    for (uint64_t seed = 0; seed < 600; seed++) {
        assert_int_equal(random_once(q, &s, seed, 2, -1), 0);
        after_turn += q->r.ended[0][4] > q->r.run_returned[0];
        memcpy(kept, q->order, sizeof kept);
        assert_int_equal(random_once(q, &s, seed, 2, -1), 0);
        assert_memory_equal(kept, q->order, sizeof kept);
    }
    assert_true(after_turn > 20); /* 600/12 = 50, standard deviation 7 */
    assert_true(after_turn < 80);
    free(q);
    ps_schedule_fini(&s);
}

static void random_runs_stop_at_any_callback_that_fails(void **state)
{
    (void)state;
    struct ps_schedule s;
    random_schedule(&s, 3);
    struct random_log *q = malloc(sizeof *q);
    int n = 0;
    while (random_once(q, &s, 7, 2, n) == -ECANCELED) {
        assert_int_equal(q->fail_call, -1);
        n++;
    }
    assert_int_equal(n, 2 * 2 * s.task_count + 1);
    assert_int_equal(q->count, 2 * s.task_count);
    free(q);
    ps_schedule_fini(&s);
}

static void running_out_of_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    if (!CAN_FAIL)
        skip();
    struct ps_schedule s;
    random_schedule(&s, 5);
    struct recorder *r = malloc(sizeof *r);
    recorder_init(r, &s);
    int n = 0;
    for (bool done = false; !done; n++) {
        struct ps_executor_options opt = {0};
        for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
            opt.ops[k] = (struct ps_task_ops){.run = run_task, .start = begin, .finish = end};
        opt.ctx = r;
        struct ps_executor *ex = NULL;
        struct ps_error err = {0};
        calls_left = n;
        int ret = ps_executor_create(&ex, &opt, &err);
        int h = ret < 0 ? ret : ps_executor_bind(ex, &s);
        struct ps_random_run random = {.seed = 1, .periods = 1};
        int q = h < 0 ? h : ps_executor_run_random(ex, h, &random, &err);
        done = calls_left >= 0;
        calls_left = -1;
        assert_int_equal(done, ret == 0 && h >= 0 && q == 0);
        if (ret < 0)
            assert_null(ex);
        if (ret == 0 && h >= 0) /* still good for a run */
            assert_int_equal(ps_executor_run(ex, h, &err), 0);
        ps_executor_destroy(ex);
    }
    assert_true(n > 8);
    free(r);
    ps_schedule_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_holds_in_200_random_graphs_under_random_delays),
        cmocka_unit_test(results_pass_between_lanes_and_equal_the_serial_run),
        cmocka_unit_test(an_async_lane_starts_the_next_before_it_finishes_the_first),
        cmocka_unit_test(starting_ahead_never_waits_for_a_dependency),
        cmocka_unit_test(trailing_tasks_overlap_the_next_period),
        cmocka_unit_test(an_async_lane_starts_ahead_into_the_next_period),
        cmocka_unit_test(schedules_take_turns_behind_what_trails),
        cmocka_unit_test(restart_counts_from_the_first_period_again),
        cmocka_unit_test(a_failure_of_any_task_stops_everything),
        cmocka_unit_test(a_failure_ends_the_sleep_of_a_throttled_task),
        cmocka_unit_test(the_first_of_two_failures_is_reported),
        cmocka_unit_test(a_schedule_that_cannot_go_on_is_named_and_does_not_hang),
        cmocka_unit_test(serial_runs_in_program_order_on_the_callers_thread),
        cmocka_unit_test(throttled_tasks_last_as_long_as_their_amount_asks),
        cmocka_unit_test(throttles_hold_in_serial_runs),
        cmocka_unit_test(stats_count_busy_time_bytes_and_stalls_by_cause),
        cmocka_unit_test(an_empty_schedule_runs),
        cmocka_unit_test(random_runs_visit_all_tasks_in_valid_orders),
        cmocka_unit_test(random_runs_find_every_order_and_repeat_with_the_seed),
        cmocka_unit_test(random_runs_stop_at_any_callback_that_fails),
        cmocka_unit_test(running_out_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
