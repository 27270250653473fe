/* The virtual clock: hand-computed contention, ties and throttles; and the executor driven by it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/device/virtual_clock.h"
#include "runtime/train/executor.h"

#define MS 1000000u /* ns */

/* 1 byte = 1 ms on every lane but compute, 1 flop = 1 ms there. */
static struct ps_cost_model ms_model(void)
{
    struct ps_cost_model m;
    memset(&m, 0, sizeof m);
    for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
        m.flop_rate[k] = 1000;
    for (int l = 0; l < PS_LANE_COUNT; l++)
        m.byte_rate[l] = 1000;
    return m;
}

static struct ps_task work(enum ps_lane lane, uint32_t ms)
{
    struct ps_task t;
    memset(&t, 0, sizeof t);
    t.kind = lane == PS_LANE_CPU_OPTIM ? PS_TASK_UPDATE_HOST : PS_TASK_COPY_BATCH;
    t.lane = lane;
    if (lane == PS_LANE_COMPUTE)
        t.flops = ms;
    else
        t.bytes = ms;
    return t;
}

static struct ps_vclock *make_clock(const struct ps_cost_model *m)
{
    struct ps_vclock *c = NULL;
    assert_int_equal(ps_vclock_create(&c, m), 0);
    assert_int_equal(ps_vclock_now_ns(c), 0);
    assert_int_equal(ps_vclock_running(c), 0);
    return c;
}

static void begin(struct ps_vclock *c, enum ps_lane lane, uint32_t ms, uint64_t token)
{
    struct ps_task t = work(lane, ms);
    ps_vclock_begin(c, &t, token);
}

#define assert_next(c, token, us)                                                                  \
    do {                                                                                           \
        assert_int_equal(ps_vclock_next(c), token);                                                \
        assert_int_equal(ps_vclock_now_ns(c), (uint64_t)(us)*1000);                                \
    } while (0)

static void a_task_alone_takes_its_solo_time(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    m.overhead_s[PS_TASK_COPY_BATCH] = 0.0005;
    m.use[PS_LANE_H2D][PS_RESOURCE_LINK] = 1;
    struct ps_vclock *c = make_clock(&m);
    begin(c, PS_LANE_H2D, 7, 1);
    assert_int_equal(ps_vclock_running(c), 1);
    assert_int_equal(ps_vclock_now_ns(c), 0);
    assert_next(c, 1, 7500);
    assert_int_equal(ps_vclock_throttle_ns(c), 0);
    begin(c, PS_LANE_COMPUTE, 2, 2);
    assert_next(c, 2, 10000);
    assert_int_equal(ps_vclock_running(c), 0);
    ps_vclock_destroy(c);
    ps_vclock_destroy(NULL);
}

static void shares_above_one_slow_all_users_down_by_the_sum(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_HOST_MEMORY] = 0.8;
    m.use[PS_LANE_H2D][PS_RESOURCE_HOST_MEMORY] = 0.6;
    struct ps_vclock *c = make_clock(&m);
    begin(c, PS_LANE_COMPUTE, 10, 1);
    begin(c, PS_LANE_H2D, 20, 2);
    begin(c, PS_LANE_D2H, 3, 3); /* uses nothing: not slowed */
    assert_next(c, 3, 3000);
    assert_next(c, 1, 14000); /* 10 * 1.4 */
    assert_next(c, 2, 24000); /* 10 of 20 done, the rest alone */
    ps_vclock_destroy(c);
}

static void shares_up_to_one_cost_nothing(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_HOST_MEMORY] = 0.5;
    m.use[PS_LANE_H2D][PS_RESOURCE_HOST_MEMORY] = 0.5;
    struct ps_vclock *c = make_clock(&m);
    begin(c, PS_LANE_COMPUTE, 10, 1);
    begin(c, PS_LANE_H2D, 20, 2);
    assert_next(c, 1, 10000);
    assert_next(c, 2, 20000);
    ps_vclock_destroy(c);
}

static void a_task_goes_at_the_pace_of_its_slowest_resource(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    m.use[PS_LANE_DISK_WEIGHTS][PS_RESOURCE_DISK] = 1;
    m.use[PS_LANE_DISK_WEIGHTS][PS_RESOURCE_HOST_MEMORY] = 0.5;
    m.use[PS_LANE_DISK_WRITE][PS_RESOURCE_DISK] = 0.5;
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_HOST_MEMORY] = 0.9;
    struct ps_vclock *c = make_clock(&m);
    begin(c, PS_LANE_DISK_WEIGHTS, 10, 1); /* disk 1.5, memory 1.4: 1.5 */
    begin(c, PS_LANE_DISK_WRITE, 20, 2);   /* disk 1.5 */
    begin(c, PS_LANE_COMPUTE, 10, 3);      /* memory 1.4 */
    assert_next(c, 3, 14000);
    assert_next(c, 1, 15000);
    assert_next(c, 2, 25000); /* 10 of 20 done at 15 ms, then alone */
    ps_vclock_destroy(c);
}

static void a_task_that_begins_later_slows_what_is_left(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_CORES] = 1;
    m.use[PS_LANE_CPU_OPTIM][PS_RESOURCE_CORES] = 1;
    struct ps_vclock *c = make_clock(&m);
    begin(c, PS_LANE_COMPUTE, 10, 1);
    begin(c, PS_LANE_H2D, 4, 2);
    assert_next(c, 2, 4000);
    begin(c, PS_LANE_CPU_OPTIM, 3, 3); /* 3 * 2 */
    assert_next(c, 3, 10000);
    assert_next(c, 1, 13000); /* 4 + 3 done at 10 ms */
    ps_vclock_destroy(c);
}

static void a_throttled_task_stays_but_gives_its_resources_back(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    m.use[PS_LANE_H2D][PS_RESOURCE_LINK] = 1;
    m.use[PS_LANE_D2H][PS_RESOURCE_LINK] = 1;
    m.throttle[PS_LANE_H2D] = 1000.0 / 3; /* 3 ms a byte */
    struct ps_vclock *c = make_clock(&m);
    begin(c, PS_LANE_H2D, 10, 1); /* work until 20 ms, stays until 30 */
    begin(c, PS_LANE_D2H, 15, 2); /* 10 done at 20 ms, 5 alone */
    assert_next(c, 2, 25000);
    assert_next(c, 1, 30000);
    assert_int_equal(ps_vclock_throttle_ns(c), 10 * MS);
    ps_vclock_destroy(c);
}

static void a_throttle_counts_from_the_beginning_and_not_after_contention(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    m.use[PS_LANE_H2D][PS_RESOURCE_LINK] = 1;
    m.use[PS_LANE_D2H][PS_RESOURCE_LINK] = 1;
    m.throttle[PS_LANE_H2D] = 1000 / 1.5; /* asks for 15 ms, contention takes 20 */
    m.throttle[PS_LANE_COMPUTE] = 500;    /* flops */
    struct ps_vclock *c = make_clock(&m);
    begin(c, PS_LANE_H2D, 10, 1);
    begin(c, PS_LANE_D2H, 30, 2);
    begin(c, PS_LANE_COMPUTE, 4, 3);
    assert_next(c, 3, 8000);
    assert_next(c, 1, 20000);
    assert_int_equal(ps_vclock_throttle_ns(c), 0);
    assert_next(c, 2, 40000);
    ps_vclock_destroy(c);
}

static void ties_go_to_the_lower_lane_then_to_the_earlier_begun(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    for (int l = 0; l < PS_LANE_COUNT; l++)
        m.use[l][PS_RESOURCE_CORES] = 0.7;
    struct ps_vclock *c = make_clock(&m);
    begin(c, PS_LANE_CPU_OPTIM, 3, 70);
    begin(c, PS_LANE_D2H, 3, 20);
    begin(c, PS_LANE_COMPUTE, 3, 3);
    begin(c, PS_LANE_D2H, 3, 10);
    begin(c, PS_LANE_H2D, 3, 11);
    uint64_t order[] = {3, 11, 20, 10, 70};
    for (int i = 0; i < 5; i++)
        assert_next(c, order[i], 10500); /* 3 * 5 * 0.7 */
    ps_vclock_destroy(c);
}

static void rounding_does_not_decide_a_tie(void **state)
{
    (void)state;
    for (int k = 1; k <= 200; k++) {
        struct ps_cost_model m = ms_model();
        m.byte_rate[PS_LANE_DISK_WRITE] =
            1000.0 / k * 7; /* k / 7 ms a byte: ten of one are one of ten */
        m.byte_rate[PS_LANE_H2D] = m.byte_rate[PS_LANE_CPU_OPTIM] = m.byte_rate[PS_LANE_DISK_WRITE];
        struct ps_vclock *c = make_clock(&m);
        begin(c, PS_LANE_DISK_WRITE, 10, 1);
        begin(c, PS_LANE_H2D, 1, 2);
        begin(c, PS_LANE_CPU_OPTIM, 1, 3);
        for (int i = 1; i < 10; i++) {
            assert_int_equal(ps_vclock_next(c), 2);
            begin(c, PS_LANE_H2D, 1, 2);
            assert_int_equal(ps_vclock_next(c), 3);
            begin(c, PS_LANE_CPU_OPTIM, 1, 3);
        }
        assert_int_equal(ps_vclock_next(c), 2);
        assert_int_equal(ps_vclock_next(c), 1);
        assert_int_equal(ps_vclock_next(c), 3);
        ps_vclock_destroy(c);
    }
}

static void a_task_that_costs_nothing_ends_at_once(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    struct ps_vclock *c = make_clock(&m);
    begin(c, PS_LANE_COMPUTE, 5, 1);
    begin(c, PS_LANE_CPU_OPTIM, 0, 2);
    assert_next(c, 2, 0);
    assert_next(c, 1, 5000);
    ps_vclock_destroy(c);
}

static void many_small_tasks_add_up_without_drift(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_CORES] = 1;
    m.use[PS_LANE_CPU_OPTIM][PS_RESOURCE_CORES] = 0.1;
    struct ps_vclock *c = make_clock(&m);
    begin(c, PS_LANE_CPU_OPTIM, 1000000, 9); /* with compute always running: 1100 s */
    for (uint64_t i = 1; i <= 20000; i++) {
        begin(c, PS_LANE_COMPUTE, 50, 1);
        assert_int_equal(ps_vclock_next(c), 1);
        assert_true(llabs((long long)(ps_vclock_now_ns(c) - i * 55 * MS)) <= 2);
    }
    assert_int_equal(ps_vclock_next(c), 9);
    assert_true(llabs((long long)(ps_vclock_now_ns(c) - 1100000ull * MS)) <= 2);
    ps_vclock_destroy(c);
}

/* --- driven by the executor --- */

struct sleeper {
    uint64_t seed; /* real time each task takes: none of the clock's business */
    uint32_t slept_us;
};

static int nap(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    struct sleeper *s = ctx;
    (void)err;
    if (s->slept_us) {
        uint64_t x = (s->seed + t->id) * 0x9e3779b97f4a7c15u;
        struct timespec d = {.tv_nsec = (long)((x >> 40) % (s->slept_us * 1000ul))};
        PS_IGNORE(nanosleep(&d, NULL), "any sleep will do");
    }
    return 0;
}

static struct ps_executor *make_executor(struct sleeper *s, struct ps_vclock *c, uint64_t delay,
                                         bool serial)
{
    struct ps_executor_options opt;
    memset(&opt, 0, sizeof opt);
    for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
        opt.ops[k] = (struct ps_task_ops){.run = nap, .start = nap, .finish = nap};
    opt.ctx = s;
    opt.vclock = c;
    opt.serial = serial;
    opt.delay_seed = delay;
    opt.delay_max_ns = delay ? 100000 : 0;
    struct ps_executor *ex = NULL;
    struct ps_error err = {0};
    assert_int_equal(ps_executor_create(&ex, &opt, &err), 0);
    return ex;
}

static uint32_t add(struct ps_schedule *s, enum ps_lane lane, uint32_t ms)
{
    uint32_t id = ps_schedule_task(s, PS_TASK_COPY_BATCH, lane, 0);
    if (lane == PS_LANE_COMPUTE)
        s->task[id].flops = ms;
    else
        s->task[id].bytes = ms;
    return id;
}

/* Reads of 8 ms feed compute of 10 ms through two slots; the last read is the next period's first.
 */
static void streaming(struct ps_schedule *s)
{
    ps_schedule_init(s, "streaming");
    uint32_t r1 = add(s, PS_LANE_DISK_WEIGHTS, 8); /* 0: for compute 1 */
    uint32_t c0 = add(s, PS_LANE_COMPUTE, 10);     /* 1: uses what trailed */
    ps_schedule_dep(s, 4, 1);
    uint32_t c1 = add(s, PS_LANE_COMPUTE, 10); /* 2 */
    ps_schedule_dep(s, r1, 0);
    uint32_t w = add(s, PS_LANE_DISK_WRITE, 3); /* 3 */
    ps_schedule_dep(s, c1, 0);
    uint32_t r0 = add(s, PS_LANE_DISK_WEIGHTS, 8); /* 4: into the slot of compute 0 */
    ps_schedule_dep(s, c0, 0);
    s->task[r0].flags = PS_TASK_TRAILS;
    (void)w;
    assert_int_equal(r0, 4);
}

#define assert_record(r, ready_ms, start_ms, end_ms, waited)                                       \
    do {                                                                                           \
        assert_int_equal((r).ready_ns, (uint64_t)(ready_ms)*MS);                                   \
        assert_int_equal((r).start_ns, (uint64_t)(start_ms)*MS);                                   \
        assert_int_equal((r).end_ns, (uint64_t)(end_ms)*MS);                                       \
        assert_int_equal((r).waited_on, waited);                                                   \
    } while (0)

static void the_executor_keeps_virtual_time_exactly(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    struct ps_schedule s;
    streaming(&s);
    struct sleeper z = {.seed = 1, .slept_us = 300};
    struct ps_vclock *c = make_clock(&m);
    struct ps_executor *ex = make_executor(&z, c, 0, false);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    assert_int_equal(ps_executor_run(ex, h, &err), 0);
    assert_int_equal(ps_vclock_now_ns(c), 23 * MS); /* the write ends; read 4 began at 10 */
    assert_int_equal(ps_executor_drain(ex, &err), 0);
    assert_int_equal(ps_vclock_now_ns(c), 23 * MS); /* it had ended at 18 */
    const struct ps_task_record *r = ps_executor_records(ex, h);
    assert_record(r[0], 0, 0, 8, -1);
    assert_record(r[1], 0, 0, 10, -1);
    assert_record(r[2], 10, 10, 20, -1);
    assert_record(r[3], 0, 20, 23, 2);
    assert_record(r[4], 8, 10, 18, 1);
    assert_int_equal(ps_executor_run(ex, h, &err), 0);
    assert_int_equal(ps_vclock_now_ns(c), 46 * MS);
    struct ps_lane_stats st[PS_LANE_COUNT];
    ps_executor_stats(ex, st);
    assert_int_equal(st[PS_LANE_COMPUTE].busy_ns, 40 * MS);
    assert_int_equal(st[PS_LANE_DISK_WEIGHTS].busy_ns, 32 * MS);
    assert_int_equal(st[PS_LANE_DISK_WEIGHTS].stall_ns[PS_LANE_COMPUTE], 4 * MS);
    assert_int_equal(st[PS_LANE_DISK_WRITE].stall_ns[PS_LANE_COMPUTE], 40 * MS);
    assert_int_equal(st[PS_LANE_COMPUTE].stall_ns[PS_LANE_DISK_WEIGHTS], 0);
    assert_int_equal(st[PS_LANE_DISK_WEIGHTS].tasks, 4);
    assert_int_equal(st[PS_LANE_DISK_WEIGHTS].bytes, 32);
    ps_executor_destroy(ex);
    ps_vclock_destroy(c);
    ps_schedule_fini(&s);
}

static void trailing_tasks_cross_the_period_and_stall_the_next(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    struct ps_schedule s;
    ps_schedule_init(&s, "late");
    add(&s, PS_LANE_COMPUTE, 4);
    ps_schedule_dep(&s, 1, 1);
    add(&s, PS_LANE_DISK_WEIGHTS, 10);
    ps_schedule_dep(&s, 0, 0);
    s.task[1].flags = PS_TASK_TRAILS;
    struct sleeper z = {.seed = 5, .slept_us = 200};
    struct ps_vclock *c = make_clock(&m);
    struct ps_executor *ex = make_executor(&z, c, 0, false);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    for (uint64_t p = 0; p < 5; p++) {
        assert_int_equal(ps_executor_run(ex, h, &err), 0);
        assert_int_equal(ps_vclock_now_ns(c), (4 + 14 * p) * MS);
        struct timespec d = {.tv_nsec = 1000000}; /* between periods no virtual time passes */
        PS_IGNORE(nanosleep(&d, NULL), "any sleep will do");
        assert_int_equal(ps_vclock_now_ns(c), (4 + 14 * p) * MS);
    }
    assert_int_equal(ps_executor_drain(ex, &err), 0);
    assert_int_equal(ps_vclock_now_ns(c), 70 * MS);
    const struct ps_task_record *r = ps_executor_records(ex, h);
    assert_record(r[0], 46, 56, 60, 1); /* ready when the period was queued */
    assert_record(r[1], 56, 60, 70, 0);
    struct ps_lane_stats st[PS_LANE_COUNT];
    ps_executor_stats(ex, st);
    assert_int_equal(st[PS_LANE_COMPUTE].stall_ns[PS_LANE_DISK_WEIGHTS], 40 * MS);
    ps_executor_restart(ex, h); /* what trailed counts as done again */
    assert_int_equal(ps_executor_run(ex, h, &err), 0);
    assert_int_equal(ps_vclock_now_ns(c), 74 * MS);
    ps_executor_destroy(ex); /* drains */
    assert_int_equal(ps_vclock_now_ns(c), 84 * MS);
    ps_vclock_destroy(c);
    ps_schedule_fini(&s);
}

static void contention_is_exact_through_the_executor(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_HOST_MEMORY] = 1;
    m.use[PS_LANE_H2D][PS_RESOURCE_HOST_MEMORY] = 1;
    m.throttle[PS_LANE_H2D] = 250; /* 4 ms a byte */
    struct ps_schedule s;
    ps_schedule_init(&s, "contention");
    add(&s, PS_LANE_COMPUTE, 10);
    add(&s, PS_LANE_H2D, 4); /* work until 8, stays until 16 */
    add(&s, PS_LANE_H2D, 2); /* work from 16, when compute has been done (at 14): 18, until 24 */
    struct sleeper z = {.seed = 2, .slept_us = 100};
    struct ps_vclock *c = make_clock(&m);
    struct ps_executor *ex = make_executor(&z, c, 0, false);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    assert_int_equal(ps_executor_run(ex, h, &err), 0);
    const struct ps_task_record *r = ps_executor_records(ex, h);
    assert_record(r[0], 0, 0, 14, -1);
    assert_record(r[1], 0, 0, 16, -1);
    assert_record(r[2], 16, 16, 24, -1);
    assert_int_equal(r[0].throttle_ns, 0);
    assert_int_equal(r[1].throttle_ns, 8 * MS);
    assert_int_equal(r[2].throttle_ns, 6 * MS);
    ps_executor_destroy(ex);
    ps_vclock_destroy(c);
    ps_schedule_fini(&s);
}

static void serial_takes_the_sum(void **state)
{
    (void)state;
    struct ps_cost_model m = ms_model();
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_CORES] = 1;
    m.use[PS_LANE_DISK_WEIGHTS][PS_RESOURCE_CORES] = 1;
    struct ps_schedule s;
    streaming(&s);
    struct sleeper z = {0};
    struct ps_vclock *c = make_clock(&m);
    struct ps_executor *ex = make_executor(&z, c, 0, true);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    assert_int_equal(ps_executor_run(ex, h, &err), 0);
    assert_int_equal(ps_vclock_now_ns(c), 39 * MS);
    const struct ps_task_record *r = ps_executor_records(ex, h);
    assert_record(r[0], 0, 0, 8, -1);
    assert_record(r[4], 31, 31, 39, -1);
    ps_executor_destroy(ex);
    ps_vclock_destroy(c);
    ps_schedule_fini(&s);
}

static uint64_t mix(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    uint64_t x = *state;
    x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9u;
    return x ^ (x >> 29);
}

static void random_schedule(struct ps_schedule *s, struct ps_cost_model *m, uint64_t seed)
{
    uint64_t x = seed;
    ps_schedule_init(s, "random");
    *m = ms_model();
    for (int l = 0; l < PS_LANE_COUNT; l++) {
        for (int r = 0; r < PS_RESOURCE_COUNT; r++)
            m->use[l][r] = mix(&x) % 3 ? 0 : (double)(mix(&x) % 11) / 10;
        m->throttle[l] = mix(&x) % 4 ? 0 : 300 + (double)(mix(&x) % 1000);
    }
    m->overhead_s[PS_TASK_COPY_BATCH] = 0.0001;
    uint32_t n = 5 + (uint32_t)(mix(&x) % 30);
    for (uint32_t i = 0; i < n; i++) {
        /* few durations: many ties */
        uint32_t id = add(s, (enum ps_lane)(mix(&x) % PS_LANE_COUNT), (uint32_t)(mix(&x) % 4) * 5);
        s->task[id].flags = i > n / 2 && mix(&x) % 3 == 0 ? PS_TASK_TRAILS : 0;
        for (uint64_t d = mix(&x) % 3; d > 0 && i > 0; d--)
            ps_schedule_dep(s, (uint32_t)(mix(&x) % i), 0);
        if (mix(&x) % 3 == 0)
            ps_schedule_dep(s, (uint32_t)(mix(&x) % n), 1);
    }
}

enum { PERIODS = 3 };

static uint64_t run_periods(const struct ps_schedule *s, const struct ps_cost_model *m,
                            uint64_t delay, struct ps_task_record *out)
{
    struct sleeper z = {.seed = delay, .slept_us = delay % 2 ? 60 : 0};
    struct ps_vclock *c = make_clock(m);
    struct ps_executor *ex = make_executor(&z, c, delay, false);
    int h = ps_executor_bind(ex, s);
    struct ps_error err = {0};
    for (int p = 0; p < PERIODS; p++)
        assert_int_equal(ps_executor_run(ex, h, &err), 0);
    assert_int_equal(ps_executor_drain(ex, &err), 0);
    memcpy(out, ps_executor_records(ex, h), s->task_count * sizeof *out);
    uint64_t end = ps_vclock_now_ns(c);
    ps_executor_destroy(ex);
    ps_vclock_destroy(c);
    return end;
}

static void records_are_the_same_whatever_the_threads_do(void **state)
{
    (void)state;
    struct ps_task_record first[64], again[64];
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct ps_schedule s;
        struct ps_cost_model m;
        random_schedule(&s, &m, seed);
        uint64_t end = run_periods(&s, &m, 0, first);
        for (uint64_t k = 1; k <= 4; k++) {
            assert_int_equal(run_periods(&s, &m, 100 * seed + k, again), end);
            assert_memory_equal(first, again, s.task_count * sizeof *first);
        }
        ps_schedule_fini(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_task_alone_takes_its_solo_time),
        cmocka_unit_test(shares_above_one_slow_all_users_down_by_the_sum),
        cmocka_unit_test(shares_up_to_one_cost_nothing),
        cmocka_unit_test(a_task_goes_at_the_pace_of_its_slowest_resource),
        cmocka_unit_test(a_task_that_begins_later_slows_what_is_left),
        cmocka_unit_test(a_throttled_task_stays_but_gives_its_resources_back),
        cmocka_unit_test(a_throttle_counts_from_the_beginning_and_not_after_contention),
        cmocka_unit_test(ties_go_to_the_lower_lane_then_to_the_earlier_begun),
        cmocka_unit_test(rounding_does_not_decide_a_tie),
        cmocka_unit_test(a_task_that_costs_nothing_ends_at_once),
        cmocka_unit_test(many_small_tasks_add_up_without_drift),
        cmocka_unit_test(the_executor_keeps_virtual_time_exactly),
        cmocka_unit_test(trailing_tasks_cross_the_period_and_stall_the_next),
        cmocka_unit_test(contention_is_exact_through_the_executor),
        cmocka_unit_test(serial_takes_the_sum),
        cmocka_unit_test(records_are_the_same_whatever_the_threads_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
