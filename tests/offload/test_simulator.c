/* The simulator: hand-computed schedules, and random ones against two slow walks written here (one
 * exact without contention, one in small steps with it). Rates are 1, so bytes and FLOPs are
 * seconds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "offload/simulator.h"
#include "runtime/base/rng.h"

/* Memory that runs out at the n-th call. The sanitizers bring allocators of their own. */
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CAN_FAIL 1
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t a, size_t b);
static int calls_left = -1;

static int out_of_memory(void)
{
    return calls_left >= 0 && calls_left-- == 0;
}

void *malloc(size_t n)
{
    return out_of_memory() ? NULL : __libc_malloc(n);
}

void *calloc(size_t a, size_t b)
{
    return out_of_memory() ? NULL : __libc_calloc(a, b);
}
#else
#define CAN_FAIL 0
static int calls_left = -1;
#endif

#define CLOSE 1e-9

static void near_at(double got, double want, double tolerance, int line)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("line %d: %.12g, expected %.12g", line, got, want);
}
#define assert_near(got, want, tolerance) near_at(got, want, tolerance, __LINE__)

static struct ps_cost_model unit_model(void)
{
    struct ps_cost_model m = {0};
    for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
        m.flop_rate[k] = 1;
    for (int l = 0; l < PS_LANE_COUNT; l++)
        m.byte_rate[l] = 1;
    return m;
}

static enum ps_task_kind kind_of(enum ps_lane l)
{
    static const enum ps_task_kind kind[PS_LANE_COUNT] = {
        PS_TASK_LAYER_FORWARD, PS_TASK_COPY_WEIGHTS, PS_TASK_SPILL_OUT, PS_TASK_READ_WEIGHTS,
        PS_TASK_SPILL_READ,    PS_TASK_SPILL_WRITE,  PS_TASK_UPDATE,    PS_TASK_UPDATE};
    return kind[l];
}

/* A task of `seconds` solo time. */
static uint32_t add(struct ps_schedule *s, enum ps_lane lane, unsigned seconds)
{
    uint32_t id = ps_schedule_task(s, kind_of(lane), lane, 0);
    if (lane == PS_LANE_COMPUTE)
        s->task[id].flops = seconds;
    else
        s->task[id].bytes = seconds;
    return id;
}

static void trail(struct ps_schedule *s, uint32_t id)
{
    s->task[id].flags |= PS_TASK_TRAILS;
}

static struct ps_sim_result simulate(const struct ps_sim_options *o)
{
    struct ps_sim_result r;
    struct ps_error err = {0};
    if (ps_simulate(&r, o, &err) < 0)
        fail_msg("%s", err.message);
    return r;
}

static struct ps_sim_result once(const struct ps_schedule *s, const struct ps_cost_model *m)
{
    struct ps_sim_segment seg = {.schedule = s, .repeat = 1};
    return simulate(
        &(struct ps_sim_options){.model = m, .segment = &seg, .segment_count = 1, .rounds = 1});
}

/* Read i into slot i mod 2, compute with it. */
static void double_buffer(struct ps_schedule *s, int n, unsigned read, unsigned compute)
{
    uint32_t done[64];
    ps_schedule_init(s, "double buffer");
    for (int i = 0; i < n; i++) {
        uint32_t r = add(s, PS_LANE_DISK_WEIGHTS, read);
        if (i >= 2)
            ps_schedule_dep(s, done[i - 2], 0);
        done[i] = add(s, PS_LANE_COMPUTE, compute);
        ps_schedule_dep(s, r, 0);
    }
    assert_int_equal(s->fault, 0);
}

static void compute_bound_pipeline_takes_first_read_and_all_compute(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    double_buffer(&s, 10, 2, 3);
    struct ps_sim_result r = once(&s, &m);
    assert_near(r.seconds, 2 + 10 * 3, CLOSE);
    assert_near(r.busy_s[PS_LANE_COMPUTE], 30, CLOSE);
    assert_near(r.busy_s[PS_LANE_DISK_WEIGHTS], 20, CLOSE);
    assert_near(r.stall_s[PS_LANE_COMPUTE][PS_LANE_DISK_WEIGHTS], 2, CLOSE);
    /* from the third on, a read waits 1 s for its slot */
    assert_near(r.stall_s[PS_LANE_DISK_WEIGHTS][PS_LANE_COMPUTE], 8, CLOSE);
    assert_int_equal(r.bytes[PS_LANE_DISK_WEIGHTS], 20);
    ps_schedule_fini(&s);
}

static void disk_bound_pipeline_takes_all_reads_and_last_compute(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    double_buffer(&s, 10, 5, 3);
    struct ps_sim_result r = once(&s, &m);
    assert_near(r.seconds, 10 * 5 + 3, CLOSE);
    assert_near(r.stall_s[PS_LANE_COMPUTE][PS_LANE_DISK_WEIGHTS], 5 + 9 * 2, CLOSE);
    assert_near(r.stall_s[PS_LANE_DISK_WEIGHTS][PS_LANE_COMPUTE], 0, CLOSE);
    ps_schedule_fini(&s);
}

static void overheads_and_rates_add_up(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    ps_schedule_init(&s, "one");
    add(&s, PS_LANE_COMPUTE, 10);
    s.task[0].bytes = 6;
    m.overhead_s[PS_TASK_LAYER_FORWARD] = 0.25;
    m.flop_rate[PS_TASK_LAYER_FORWARD] = 4;
    m.byte_rate[PS_LANE_COMPUTE] = 2;
    assert_near(once(&s, &m).seconds, 0.25 + 2.5 + 3, CLOSE);
    m.flop_rate[PS_TASK_LAYER_FORWARD] = 0;
    m.byte_rate[PS_LANE_COMPUTE] = 0;
    assert_near(once(&s, &m).seconds, 0.25, CLOSE);
    ps_schedule_fini(&s);
}

static void record_of(struct ps_task_record *rec, const struct ps_schedule *s,
                      const struct ps_cost_model *m, uint32_t repeat, uint32_t rounds)
{
    struct ps_sim_segment seg = {.schedule = s, .repeat = repeat};
    simulate(&(struct ps_sim_options){
        .model = m, .segment = &seg, .segment_count = 1, .rounds = rounds, .record = rec});
}

static void two_lanes_on_one_resource_go_at_half_speed(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    struct ps_task_record rec[3];
    ps_schedule_init(&s, "two");
    add(&s, PS_LANE_COMPUTE, 10);
    add(&s, PS_LANE_DISK_WEIGHTS, 4);
    add(&s, PS_LANE_H2D, 9); /* uses something else */
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_CORES] = 1;
    m.use[PS_LANE_DISK_WEIGHTS][PS_RESOURCE_CORES] = 1;
    m.use[PS_LANE_H2D][PS_RESOURCE_LINK] = 1;
    record_of(rec, &s, &m, 1, 1);
    assert_int_equal(rec[1].end_ns, 8000000000);  /* 4 s at half speed */
    assert_int_equal(rec[0].end_ns, 14000000000); /* 4 of 10 done then, 6 alone */
    assert_int_equal(rec[2].end_ns, 9000000000);
    ps_schedule_fini(&s);
}

static void shares_below_one_slow_by_their_sum(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    struct ps_task_record rec[2];
    ps_schedule_init(&s, "shares");
    add(&s, PS_LANE_COMPUTE, 12);
    add(&s, PS_LANE_DISK_WEIGHTS, 5);
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_CORES] = 0.5;
    m.use[PS_LANE_DISK_WEIGHTS][PS_RESOURCE_CORES] = 0.5;
    record_of(rec, &s, &m, 1, 1); /* they fit beside each other */
    assert_int_equal(rec[0].end_ns, 12000000000);
    assert_int_equal(rec[1].end_ns, 5000000000);
    m.use[PS_LANE_DISK_WEIGHTS][PS_RESOURCE_CORES] = 0.7; /* 1.2: 5 s become 6 */
    record_of(rec, &s, &m, 1, 1);
    assert_int_equal(rec[1].end_ns, 6000000000);
    assert_int_equal(rec[0].end_ns, 13000000000); /* 5 of 12 done, 7 alone */
    ps_schedule_fini(&s);
}

static void a_task_goes_at_the_pace_of_its_slowest_resource(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    struct ps_task_record rec[3];
    ps_schedule_init(&s, "slowest");
    add(&s, PS_LANE_COMPUTE, 3);
    add(&s, PS_LANE_DISK_STATE, 6);
    add(&s, PS_LANE_DISK_WRITE, 2);
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_CORES] = 1;
    m.use[PS_LANE_DISK_STATE][PS_RESOURCE_CORES] = 0.5; /* 1.5 with compute */
    m.use[PS_LANE_DISK_STATE][PS_RESOURCE_DISK] = 1;    /* 2 with the write */
    m.use[PS_LANE_DISK_WRITE][PS_RESOURCE_DISK] = 1;
    record_of(rec, &s, &m, 1, 1);
    assert_int_equal(rec[2].end_ns, 4000000000); /* state: 2 of 6 done; compute: 4 / 1.5 */
    assert_int_equal(rec[0].end_ns, 4500000000);
    /* state: 2 until 4 s, 0.5 / 1.5 until 4.5 s, the rest alone */
    assert_near((double)rec[1].end_ns * 1e-9, 4.5 + 6 - 2 - 0.5 / 1.5, 2e-9);
    ps_schedule_fini(&s);
}

static void throttle_holds_the_lane_and_frees_the_resource(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    struct ps_task_record rec[3];
    ps_schedule_init(&s, "throttle");
    add(&s, PS_LANE_DISK_WEIGHTS, 10);
    add(&s, PS_LANE_DISK_WEIGHTS, 1);
    add(&s, PS_LANE_COMPUTE, 20);
    m.use[PS_LANE_COMPUTE][PS_RESOURCE_CORES] = 1;
    m.use[PS_LANE_DISK_WEIGHTS][PS_RESOURCE_CORES] = 1;
    m.throttle[PS_LANE_DISK_WEIGHTS] = 0.25; /* 40 s for the first, 4 s for the second */
    record_of(rec, &s, &m, 1, 1);
    /* shared until 20 s (10 of 20 done), then compute is alone until 30 s */
    assert_int_equal(rec[0].end_ns, 40000000000);
    assert_int_equal(rec[0].throttle_ns, 20000000000);
    assert_int_equal(rec[2].end_ns, 30000000000);
    assert_int_equal(rec[1].start_ns, 40000000000);
    assert_int_equal(rec[1].end_ns, 44000000000);
    m.throttle[PS_LANE_DISK_WEIGHTS] = 2; /* asks for less than the work takes */
    record_of(rec, &s, &m, 1, 1);
    assert_int_equal(rec[0].end_ns, 20000000000);
    assert_int_equal(rec[0].throttle_ns, 0);
    ps_schedule_fini(&s);
}

static void throttle_of_compute_counts_flops(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    ps_schedule_init(&s, "flops");
    add(&s, PS_LANE_COMPUTE, 10);
    m.throttle[PS_LANE_COMPUTE] = 0.5;
    assert_near(once(&s, &m).seconds, 20, CLOSE);
    assert_near(once(&s, &m).busy_s[PS_LANE_COMPUTE], 20, CLOSE);
    ps_schedule_fini(&s);
}

/* compute 3 s, then a trailing read of 2 s that the next period's compute waits for */
static void trailing_pair(struct ps_schedule *s)
{
    ps_schedule_init(s, "trailing");
    add(s, PS_LANE_COMPUTE, 3);
    ps_schedule_dep(s, 1, 1);
    uint32_t r = add(s, PS_LANE_DISK_WEIGHTS, 2);
    ps_schedule_dep(s, 0, 0);
    trail(s, r);
}

static void trailing_reads_reach_into_the_next_period(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    trailing_pair(&s);
    struct ps_sim_segment seg = {.schedule = &s, .repeat = 3};
    struct ps_sim_options o = {.model = &m, .segment = &seg, .segment_count = 1, .rounds = 1};
    struct ps_sim_result r = simulate(&o);
    assert_near(r.seconds, 3 + 5 + 5, CLOSE);
    assert_near(r.stall_s[PS_LANE_COMPUTE][PS_LANE_DISK_WEIGHTS], 4, CLOSE);
    /* the read waits for compute from the period's begin, the first time 3 s and then 2 + 3 less
     * its own 2; the last read lies behind the end and is not counted */
    assert_near(r.stall_s[PS_LANE_DISK_WEIGHTS][PS_LANE_COMPUTE], 3 + 3 + 3, CLOSE);
    assert_near(r.busy_s[PS_LANE_DISK_WEIGHTS], 4, CLOSE);
    assert_int_equal(r.bytes[PS_LANE_DISK_WEIGHTS], 6);
    o.rounds = 2; /* now the round begins with a read that is under way */
    assert_near(simulate(&o).seconds, 15, CLOSE);
    assert_near(simulate(&o).busy_s[PS_LANE_DISK_WEIGHTS], 6, CLOSE);
    ps_schedule_fini(&s);
}

static void another_segment_hides_trailing_reads(void **state)
{
    (void)state;
    struct ps_schedule s, other;
    struct ps_cost_model m = unit_model();
    trailing_pair(&s);
    ps_schedule_init(&other, "update");
    add(&other, PS_LANE_COMPUTE, 4);
    struct ps_sim_segment seg[] = {{.schedule = &s, .repeat = 1},
                                   {.schedule = &other, .repeat = 1}};
    struct ps_sim_options o = {.model = &m, .segment = seg, .segment_count = 2, .rounds = 3};
    struct ps_sim_result r = simulate(&o);
    assert_near(r.seconds, 7, CLOSE);
    assert_near(r.stall_s[PS_LANE_COMPUTE][PS_LANE_DISK_WEIGHTS], 0, CLOSE);
    assert_near(r.busy_s[PS_LANE_DISK_WEIGHTS], 2, CLOSE);
    /* where the other segment is too short for the read, the rest is seen */
    other.task[0].flops = 0.5;
    r = simulate(&o);
    assert_near(r.seconds, 5, CLOSE);
    assert_near(r.stall_s[PS_LANE_COMPUTE][PS_LANE_DISK_WEIGHTS], 1.5, CLOSE);
    ps_schedule_fini(&other);
    ps_schedule_fini(&s);
}

static void tasks_of_the_next_period_queue_behind_trailing_ones(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    struct ps_task_record rec[3];
    ps_schedule_init(&s, "queue");
    add(&s, PS_LANE_DISK_WEIGHTS, 1);
    add(&s, PS_LANE_COMPUTE, 1);
    ps_schedule_dep(&s, 0, 0);
    trail(&s, add(&s, PS_LANE_DISK_WEIGHTS, 7));
    record_of(rec, &s, &m, 2, 1);
    /* first period: read [0, 1), compute [1, 2), trailing [1, 8); second: read [8, 9) */
    assert_int_equal(rec[0].ready_ns, 8000000000);
    assert_int_equal(rec[0].start_ns, 8000000000);
    assert_int_equal(rec[1].ready_ns, 2000000000);
    assert_int_equal(rec[1].start_ns, 9000000000);
    assert_int_equal(rec[1].waited_on, 0);
    assert_int_equal(rec[0].waited_on, -1);
    assert_int_equal(rec[2].end_ns, 16000000000);
    ps_schedule_fini(&s);
}

static void two_periods_of_a_schedule_are_under_way_at_most(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    ps_schedule_init(&s, "slow tail");
    add(&s, PS_LANE_COMPUTE, 1);
    trail(&s, add(&s, PS_LANE_DISK_WRITE, 10));
    struct ps_sim_segment seg = {.schedule = &s, .repeat = 3};
    struct ps_sim_options o = {.model = &m, .segment = &seg, .segment_count = 1, .rounds = 1};
    assert_near(simulate(&o).seconds, 11, CLOSE); /* the third waits for the first one's write */
    seg.repeat = 2;
    assert_near(simulate(&o).seconds, 2, CLOSE);
    o.rounds = 3; /* compute, then the write of the period before the last: 10 s each */
    assert_near(simulate(&o).seconds, 20, CLOSE);
    ps_schedule_fini(&s);
}

static void a_stall_is_laid_to_the_dependency_that_ended_last(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    ps_schedule_init(&s, "blame");
    uint32_t a = add(&s, PS_LANE_H2D, 4);
    uint32_t b = add(&s, PS_LANE_DISK_STATE, 6);
    uint32_t c = add(&s, PS_LANE_D2H, 5);
    uint32_t own = add(&s, PS_LANE_COMPUTE, 1);
    add(&s, PS_LANE_COMPUTE, 1);
    ps_schedule_dep(&s, own, 0);
    ps_schedule_dep(&s, a, 0);
    ps_schedule_dep(&s, b, 0);
    ps_schedule_dep(&s, c, 0);
    struct ps_sim_result r = once(&s, &m);
    for (int l = 0; l < PS_LANE_COUNT; l++)
        for (int on = 0; on < PS_LANE_COUNT; on++)
            assert_near(r.stall_s[l][on], l == PS_LANE_COMPUTE && on == PS_LANE_DISK_STATE ? 5 : 0,
                        CLOSE);
    assert_near(r.seconds, 7, CLOSE);
    ps_schedule_fini(&s);
}

static void waiting_for_the_end_of_the_period_is_no_stall(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    ps_schedule_init(&s, "end");
    add(&s, PS_LANE_COMPUTE, 1);
    add(&s, PS_LANE_H2D, 9);
    struct ps_sim_segment seg = {.schedule = &s, .repeat = 4};
    struct ps_sim_result r = simulate(
        &(struct ps_sim_options){.model = &m, .segment = &seg, .segment_count = 1, .rounds = 2});
    assert_near(r.seconds, 36, CLOSE);
    for (int on = 0; on < PS_LANE_COUNT; on++)
        assert_near(r.stall_s[PS_LANE_COMPUTE][on], 0, CLOSE);
    ps_schedule_fini(&s);
}

static void serial_is_the_sum_with_throttles_and_without_contention(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    struct ps_task_record rec[20];
    double_buffer(&s, 10, 5, 3);
    for (int l = 0; l < PS_LANE_COUNT; l++)
        m.use[l][PS_RESOURCE_CORES] = 1;
    m.throttle[PS_LANE_DISK_WEIGHTS] = 0.5; /* 10 s each */
    struct ps_sim_segment seg = {.schedule = &s, .repeat = 2};
    struct ps_sim_options o = {.model = &m,
                               .segment = &seg,
                               .segment_count = 1,
                               .rounds = 2,
                               .serial = true,
                               .record = rec};
    struct ps_sim_result r = simulate(&o);
    assert_near(r.seconds, 2 * 10 * (10 + 3), CLOSE);
    assert_near(r.busy_s[PS_LANE_DISK_WEIGHTS], 200, CLOSE);
    assert_int_equal(r.bytes[PS_LANE_DISK_WEIGHTS], 100);
    assert_int_equal(rec[0].start_ns, 130000000000);
    assert_int_equal(rec[0].throttle_ns, 5000000000);
    assert_int_equal(rec[19].end_ns, 260000000000);
    ps_schedule_fini(&s);
}

static void nothing_to_do_takes_no_time(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    ps_schedule_init(&s, "empty");
    struct ps_sim_segment seg[] = {{.schedule = &s, .repeat = 3}, {.schedule = &s, .repeat = 0}};
    struct ps_sim_options o = {.model = &m, .segment = seg, .segment_count = 2, .rounds = 2};
    assert_near(simulate(&o).seconds, 0, 0);
    seg[0].repeat = 0;
    assert_near(simulate(&o).seconds, 0, 0);
    o.segment_count = 0;
    assert_near(simulate(&o).seconds, 0, 0);
    ps_schedule_fini(&s);
}

static void segments_repeated_zero_times_are_passed_over(void **state)
{
    (void)state;
    struct ps_schedule s, other;
    struct ps_cost_model m = unit_model();
    double_buffer(&s, 3, 1, 2);
    ps_schedule_init(&other, "other");
    add(&other, PS_LANE_COMPUTE, 100);
    struct ps_sim_segment seg[] = {{.schedule = &other},
                                   {.schedule = &s, .repeat = 1},
                                   {.schedule = &other},
                                   {.schedule = &other}};
    struct ps_sim_options o = {.model = &m, .segment = seg, .segment_count = 4, .rounds = 2};
    assert_near(simulate(&o).seconds, 7, CLOSE);
    ps_schedule_fini(&other);
    ps_schedule_fini(&s);
}

static void bad_schedules_are_refused(void **state)
{
    (void)state;
    struct ps_cost_model m = unit_model();
    struct ps_sim_result r = {.seconds = -7};
    struct ps_error err;
    for (int bad = 0; bad < 5; bad++) {
        struct ps_schedule s;
        ps_schedule_init(&s, "bad");
        add(&s, PS_LANE_COMPUTE, 1);
        ps_schedule_dep(&s, bad == 0 ? 1 : 0, bad == 1 ? 2 : bad == 0 ? 0 : 1);
        add(&s, PS_LANE_H2D, 1);
        if (bad == 2)
            s.task[1].flops = (double)NAN;
        if (bad == 3)
            s.task[0].flops = -1;
        if (bad == 4)
            s.dep[0].task = 99;
        struct ps_sim_segment seg = {.schedule = &s, .repeat = 1};
        struct ps_sim_options o = {.model = &m, .segment = &seg, .segment_count = 1, .rounds = 1};
        memset(&err, 0, sizeof err);
        assert_int_equal(ps_simulate(&r, &o, &err), PS_EUSAGE);
        assert_non_null(strstr(err.message, "bad"));
        assert_near(r.seconds, -7, 0);
        ps_schedule_fini(&s);
    }
}

/* --- random schedules --- */

#define RANDOM_MAX 40
#define PERIOD_MAX 4

static struct ps_rng_key key;
static uint64_t counter;

static unsigned draw(unsigned n)
{
    return ps_rng_u32(&key, counter++) % n;
}

static void random_schedule(struct ps_schedule *s, int n)
{
    ps_schedule_init(s, "random");
    for (int i = 0; i < n; i++) {
        uint32_t id = add(s, (enum ps_lane)draw(PS_LANE_COUNT), draw(8));
        for (unsigned d = draw(4); d > 0; d--) {
            uint32_t distance = draw(3) == 0;
            if (distance || i > 0)
                ps_schedule_dep(s, draw(distance ? (unsigned)n : (unsigned)i), distance);
        }
        if (draw(4) == 0)
            trail(s, id);
    }
    assert_int_equal(s->fault, 0);
}

static void random_throttles(struct ps_cost_model *m)
{
    for (int l = 0; l < PS_LANE_COUNT; l++)
        if (draw(3) == 0)
            m->throttle[l] = 0.5 + draw(8) / 4.0;
}

/* Without contention: earliest times in program order, the end of each period known before the
 * next. */
static double walk_alone(const struct ps_schedule *s, const struct ps_cost_model *m, int periods)
{
    static double end[PERIOD_MAX][RANDOM_MAX];
    double lane_end[PS_LANE_COUNT] = {0}, released = 0;
    for (int p = 0; p < periods; p++) {
        for (uint32_t j = 0; p >= 2 && j < s->task_count; j++)
            released = fmax(released, end[p - 2][j]); /* two periods at most are under way */
        double next = released;
        for (uint32_t i = 0; i < s->task_count; i++) {
            const struct ps_task *t = &s->task[i];
            double start = fmax(released, lane_end[t->lane]);
            for (uint32_t d = 0; d < t->dep_count; d++) {
                const struct ps_dep *on = &s->dep[t->dep_begin + d];
                if (p >= (int)on->distance)
                    start = fmax(start, end[p - (int)on->distance][on->task]);
            }
            end[p][i] = lane_end[t->lane] =
                start + fmax(ps_cost_solo_s(m, t), ps_cost_throttle_s(m, t));
            if (!(t->flags & PS_TASK_TRAILS))
                next = fmax(next, end[p][i]);
        }
        released = next;
    }
    return released;
}

static void without_contention_time_is_the_longest_path(void **state)
{
    (void)state;
    key.seed = 11;
    counter = 0;
    for (int g = 0; g < 400; g++) {
        struct ps_schedule s;
        struct ps_cost_model m = unit_model();
        int n = 1 + (int)draw(RANDOM_MAX), periods = 1 + (int)draw(PERIOD_MAX);
        random_schedule(&s, n);
        random_throttles(&m);
        struct ps_sim_segment seg = {.schedule = &s, .repeat = (uint32_t)periods};
        struct ps_sim_options o = {.model = &m, .segment = &seg, .segment_count = 1, .rounds = 1};
        double want = walk_alone(&s, &m, periods);
        double got = simulate(&o).seconds;
        if (fabs(want - got) > CLOSE)
            fail_msg("graph %d: %.9g s, longest path %.9g s", g, got, want);
        /* one segment repeated is the same segment named again, and one in more rounds */
        struct ps_sim_segment again[PERIOD_MAX];
        for (int i = 0; i < periods; i++)
            again[i] = (struct ps_sim_segment){.schedule = &s, .repeat = 1};
        o.segment = again;
        o.segment_count = periods;
        assert_near(simulate(&o).seconds, want, CLOSE);
        if (periods > 1) {
            o.segment_count = 1;
            o.rounds = (uint32_t)periods;
            assert_near(simulate(&o).seconds, want - walk_alone(&s, &m, periods - 1), CLOSE);
        }
        ps_schedule_fini(&s);
    }
}

static void random_uses(struct ps_cost_model *m)
{
    for (int l = 0; l < PS_LANE_COUNT; l++)
        for (int r = 0; r < PS_RESOURCE_COUNT; r++)
            m->use[l][r] = draw(3) ? 0 : (1 + draw(4)) / 4.0;
}

/* One period in steps of dt, each task moving on at the pace that the state at the step's begin
 * gives. */
static double walk_steps(const struct ps_schedule *s, const struct ps_cost_model *m, double dt)
{
    double done[RANDOM_MAX] = {0}, stay[RANDOM_MAX] = {0};
    bool ended[RANDOM_MAX] = {false};
    for (double now = 0;; now += dt) {
        bool begun[PS_LANE_COUNT] = {false}, all = true;
        double load[PS_RESOURCE_COUNT] = {0};
        int run[PS_LANE_COUNT];
        for (int l = 0; l < PS_LANE_COUNT; l++)
            run[l] = -1;
        for (uint32_t i = 0; i < s->task_count; i++) {
            const struct ps_task *t = &s->task[i];
            if (!ended[i] && done[i] >= ps_cost_solo_s(m, t) - dt / 2 &&
                stay[i] >= ps_cost_throttle_s(m, t) - dt / 2 && !begun[t->lane]) {
                bool ready = true;
                for (uint32_t d = 0; d < t->dep_count; d++)
                    ready &=
                        s->dep[t->dep_begin + d].distance || ended[s->dep[t->dep_begin + d].task];
                ended[i] = ready;
            }
            all &= ended[i] || (t->flags & PS_TASK_TRAILS);
            if (ended[i] || begun[t->lane])
                continue;
            begun[t->lane] = true;
            bool ready = true;
            for (uint32_t d = 0; d < t->dep_count; d++)
                ready &= s->dep[t->dep_begin + d].distance || ended[s->dep[t->dep_begin + d].task];
            if (ready)
                run[t->lane] = (int)i;
        }
        if (all)
            return now;
        for (int l = 0; l < PS_LANE_COUNT; l++)
            for (int r = 0; run[l] >= 0 && r < PS_RESOURCE_COUNT; r++)
                if (done[run[l]] < ps_cost_solo_s(m, &s->task[run[l]]))
                    load[r] += m->use[l][r];
        for (int l = 0; l < PS_LANE_COUNT; l++) {
            if (run[l] < 0)
                continue;
            double most = 1;
            for (int r = 0; r < PS_RESOURCE_COUNT; r++)
                if (m->use[l][r] > 0)
                    most = fmax(most, load[r]);
            done[run[l]] += dt / most;
            stay[run[l]] += dt;
        }
    }
}

static void with_contention_time_is_that_of_small_steps(void **state)
{
    (void)state;
    key.seed = 12;
    counter = 0;
    const double dt = 1.0 / 512;
    for (int g = 0; g < 40; g++) {
        struct ps_schedule s;
        struct ps_cost_model m = unit_model();
        random_schedule(&s, 14);
        random_uses(&m);
        random_throttles(&m);
        double want = walk_steps(&s, &m, dt), got = once(&s, &m).seconds;
        /* every task may end a step late, and slow others meanwhile */
        if (fabs(want - got) > 3 * 14 * dt)
            fail_msg("graph %d: %.9g s, in small steps %.9g s", g, got, want);
        ps_schedule_fini(&s);
    }
}

static void contention_lies_between_the_bounds_and_stalls_add_up(void **state)
{
    (void)state;
    key.seed = 13;
    counter = 0;
    for (int g = 0; g < 400; g++) {
        struct ps_schedule s;
        struct ps_cost_model m = unit_model();
        int n = 1 + (int)draw(RANDOM_MAX);
        random_schedule(&s, n);
        random_uses(&m);
        for (uint32_t i = 0; i < s.task_count; i++)
            s.task[i].flags = 0;
        struct ps_sim_segment seg = {.schedule = &s, .repeat = 1};
        struct ps_sim_options o = {.model = &m, .segment = &seg, .segment_count = 1, .rounds = 1};
        struct ps_sim_result r = simulate(&o);
        o.serial = true;
        struct ps_sim_result serial = simulate(&o);
        assert_true(r.seconds >= walk_alone(&s, &m, 1) - CLOSE);
        /* k tasks slow each other at most k times, so together they do at least 1 s a second */
        assert_true(r.seconds <= serial.seconds + CLOSE);
        for (int l = 0; l < PS_LANE_COUNT; l++) {
            double sum = r.busy_s[l];
            assert_true(r.busy_s[l] >= serial.busy_s[l] - CLOSE);
            assert_int_equal(r.bytes[l], serial.bytes[l]);
            assert_near(r.stall_s[l][l], 0, 0);
            for (int on = 0; on < PS_LANE_COUNT; on++)
                sum += r.stall_s[l][on];
            /* a lane works or stalls until its last task ends */
            struct ps_task_record rec[RANDOM_MAX];
            o.serial = false;
            o.record = rec;
            simulate(&o);
            double last = 0;
            for (uint32_t i = 0; i < s.task_count; i++)
                if (s.task[i].lane == (enum ps_lane)l)
                    last = fmax(last, (double)rec[i].end_ns * 1e-9);
            assert_near(sum, last, 1e-7);
            o.record = NULL;
        }
        ps_schedule_fini(&s);
    }
}

static void two_simulations_give_the_same_bits(void **state)
{
    (void)state;
    key.seed = 14;
    counter = 0;
    for (int g = 0; g < 20; g++) {
        struct ps_schedule s;
        struct ps_cost_model m = unit_model();
        struct ps_task_record rec[2][RANDOM_MAX];
        random_schedule(&s, RANDOM_MAX);
        random_uses(&m);
        struct ps_sim_segment seg = {.schedule = &s, .repeat = 3};
        struct ps_sim_result r[2];
        for (int i = 0; i < 2; i++)
            r[i] = simulate(&(struct ps_sim_options){
                .model = &m, .segment = &seg, .segment_count = 1, .rounds = 2, .record = rec[i]});
        assert_memory_equal(&r[0], &r[1], sizeof r[0]);
        for (int i = 0; i < RANDOM_MAX; i++) {
            assert_int_equal(rec[0][i].ready_ns, rec[1][i].ready_ns);
            assert_int_equal(rec[0][i].start_ns, rec[1][i].start_ns);
            assert_int_equal(rec[0][i].end_ns, rec[1][i].end_ns);
            assert_int_equal(rec[0][i].waited_on, rec[1][i].waited_on);
        }
        ps_schedule_fini(&s);
    }
}

static void a_hundred_thousand_tasks_take_little_time(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    key.seed = 15;
    counter = 0;
    ps_schedule_init(&s, "large");
    for (uint32_t i = 0; i < 100000; i++) {
        add(&s, (enum ps_lane)draw(PS_LANE_COUNT), 1 + draw(8));
        for (unsigned d = draw(6); d > 0 && i; d--)
            ps_schedule_dep(&s, i - 1 - draw(i < 200 ? i : 200), 0);
    }
    add(&s, PS_LANE_COMPUTE, 1); /* waits for many, as the clip does */
    for (uint32_t i = 0; i < 50000; i++)
        ps_schedule_dep(&s, 99999 - i, 0);
    random_uses(&m);
    struct ps_sim_segment seg = {.schedule = &s, .repeat = 1};
    clock_t begin = clock();
    simulate(
        &(struct ps_sim_options){.model = &m, .segment = &seg, .segment_count = 1, .rounds = 2});
    double cpu_s = (double)(clock() - begin) / CLOCKS_PER_SEC;
    print_message("100001 tasks, 2 rounds: %.3f s of CPU time\n", cpu_s);
    assert_true(cpu_s < 5); /* 0.1 s without sanitizers; anything quadratic takes minutes */
    ps_schedule_fini(&s);
}

static void every_failed_allocation_is_reported(void **state)
{
    (void)state;
    if (!CAN_FAIL)
        skip();
    struct ps_schedule s;
    struct ps_cost_model m = unit_model();
    double_buffer(&s, 4, 1, 1);
    struct ps_sim_segment seg = {.schedule = &s, .repeat = 1};
    struct ps_sim_options o = {.model = &m, .segment = &seg, .segment_count = 1, .rounds = 1};
    int failures = 0;
    for (int ret = -1; ret < 0; failures++) {
        struct ps_sim_result r = {.seconds = -7};
        struct ps_error err = {0};
        calls_left = failures;
        ret = ps_simulate(&r, &o, &err);
        calls_left = -1;
        assert_true(ret == 0 || (ret == -ENOMEM && err.code == -ENOMEM && r.seconds < 0));
    }
    assert_true(failures > 5);
    ps_schedule_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compute_bound_pipeline_takes_first_read_and_all_compute),
        cmocka_unit_test(disk_bound_pipeline_takes_all_reads_and_last_compute),
        cmocka_unit_test(overheads_and_rates_add_up),
        cmocka_unit_test(two_lanes_on_one_resource_go_at_half_speed),
        cmocka_unit_test(shares_below_one_slow_by_their_sum),
        cmocka_unit_test(a_task_goes_at_the_pace_of_its_slowest_resource),
        cmocka_unit_test(throttle_holds_the_lane_and_frees_the_resource),
        cmocka_unit_test(throttle_of_compute_counts_flops),
        cmocka_unit_test(trailing_reads_reach_into_the_next_period),
        cmocka_unit_test(another_segment_hides_trailing_reads),
        cmocka_unit_test(tasks_of_the_next_period_queue_behind_trailing_ones),
        cmocka_unit_test(two_periods_of_a_schedule_are_under_way_at_most),
        cmocka_unit_test(a_stall_is_laid_to_the_dependency_that_ended_last),
        cmocka_unit_test(waiting_for_the_end_of_the_period_is_no_stall),
        cmocka_unit_test(serial_is_the_sum_with_throttles_and_without_contention),
        cmocka_unit_test(nothing_to_do_takes_no_time),
        cmocka_unit_test(segments_repeated_zero_times_are_passed_over),
        cmocka_unit_test(bad_schedules_are_refused),
        cmocka_unit_test(without_contention_time_is_the_longest_path),
        cmocka_unit_test(with_contention_time_is_that_of_small_steps),
        cmocka_unit_test(contention_lies_between_the_bounds_and_stalls_add_up),
        cmocka_unit_test(two_simulations_give_the_same_bits),
        cmocka_unit_test(a_hundred_thousand_tasks_take_little_time),
        cmocka_unit_test(every_failed_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
