/* The simulator predicts what the executor does on the virtual clock: random schedules, resources,
 * throttles, segments with trailing tasks. The two were written apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "offload/simulator.h"
#include "runtime/base/rng.h"
#include "runtime/device/virtual_clock.h"
#include "runtime/train/executor.h"

#define TASK_MAX 31
#define PERIODS 3

static struct ps_rng_key key;
static uint64_t counter;

static unsigned draw(unsigned n)
{
    return ps_rng_u32(&key, counter++) % n;
}

static int nothing(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    (void)ctx;
    (void)task;
    (void)err;
    return 0;
}

/* Times of a kind that do not coincide by chance: 1 .. 2 s in steps of 1/1000003 s. */
static void random_schedule(struct ps_schedule *s, int n, bool trailing)
{
    static const enum ps_task_kind kind[PS_LANE_COUNT] = {
        PS_TASK_LAYER_FORWARD, PS_TASK_COPY_WEIGHTS, PS_TASK_SPILL_OUT, PS_TASK_READ_WEIGHTS,
        PS_TASK_SPILL_READ,    PS_TASK_SPILL_WRITE,  PS_TASK_COMMIT,    PS_TASK_UPDATE_HOST};
    ps_schedule_init(s, "random");
    for (int i = 0; i < n; i++) {
        enum ps_lane lane = (enum ps_lane)draw(PS_LANE_COUNT);
        uint32_t id = ps_schedule_task(s, kind[lane], lane, 0);
        unsigned amount = 1000000 + draw(1000000);
        if (lane == PS_LANE_COMPUTE)
            s->task[id].flops = amount;
        else
            s->task[id].bytes = amount;
        for (unsigned d = draw(4); d > 0; d--) {
            uint32_t distance = draw(3) == 0;
            if (distance || i > 0)
                ps_schedule_dep(s, draw(distance ? (unsigned)n : (unsigned)i), distance);
        }
        if (trailing && draw(4) == 0)
            s->task[id].flags |= PS_TASK_TRAILS;
    }
}

static void random_model(struct ps_cost_model *m)
{
    memset(m, 0, sizeof *m);
    for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
        m->flop_rate[k] = 1000003;
    for (int l = 0; l < PS_LANE_COUNT; l++) {
        m->byte_rate[l] = 1000003;
        m->throttle[l] = draw(3) ? 0 : 700001 + draw(500000);
        for (int r = 0; r < PS_RESOURCE_COUNT; r++)
            m->use[l][r] = draw(3) ? 0 : (1 + draw(1000)) / 1000.0;
    }
}

struct pair {
    struct ps_schedule s[2];
    struct ps_cost_model m;
    struct ps_vclock *clock;
    struct ps_executor *ex;
    int handle[2];
};

static void executor_open(struct pair *p, bool serial)
{
    struct ps_error err = {0};
    struct ps_executor_options o = {.serial = serial, .vclock = p->clock};
    for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
        o.ops[k] = (struct ps_task_ops){.run = nothing, .start = nothing, .finish = nothing};
    memcpy(o.throttle, p->m.throttle, sizeof o.throttle);
    assert_int_equal(ps_executor_create(&p->ex, &o, &err), 0);
    for (int i = 0; i < 2; i++) {
        p->handle[i] = ps_executor_bind(p->ex, &p->s[i]);
        assert_true(p->handle[i] >= 0);
    }
}

static void pair_open(struct pair *p, bool serial, bool trailing)
{
    random_model(&p->m);
    assert_int_equal(ps_vclock_create(&p->clock, &p->m), 0);
    for (int i = 0; i < 2; i++)
        random_schedule(&p->s[i], 1 + (int)draw(TASK_MAX - 1), trailing);
    executor_open(p, serial);
}

static void pair_close(struct pair *p)
{
    ps_executor_destroy(p->ex);
    ps_vclock_destroy(p->clock);
    ps_schedule_fini(&p->s[0]);
    ps_schedule_fini(&p->s[1]);
}

/* Segment 0 PERIODS times, segment 1 once; returns the virtual seconds until the last has returned.
 */
static double run(struct pair *p)
{
    struct ps_error err = {0};
    int ret = 0;
    for (int i = 0; i < PERIODS && ret == 0; i++)
        ret = ps_executor_run(p->ex, p->handle[0], &err);
    if (ret == 0)
        ret = ps_executor_run(p->ex, p->handle[1], &err);
    double end = ps_vclock_now_s(p->clock);
    if (ret == 0)
        ret = ps_executor_drain(p->ex, &err);
    if (ret < 0)
        fail_msg("%s", err.message);
    return end;
}

static void compare(struct pair *p, bool serial, int graph)
{
    struct ps_sim_segment seg[] = {{.schedule = &p->s[0], .repeat = PERIODS},
                                   {.schedule = &p->s[1], .repeat = 1}};
    double seconds = run(p);
    for (int i = 0; i < 2; i++) {
        struct ps_task_record rec[TASK_MAX];
        const struct ps_task_record *ran = ps_executor_records(p->ex, p->handle[i]);
        struct ps_sim_result r;
        struct ps_error err = {0};
        struct ps_sim_options o = {.model = &p->m,
                                   .segment = seg,
                                   .segment_count = 2,
                                   .rounds = 1,
                                   .serial = serial,
                                   .record_segment = i,
                                   .record = rec};
        assert_int_equal(ps_simulate(&r, &o, &err), 0);
        if (fabs(r.seconds - seconds) > 1e-9)
            fail_msg("graph %d: %.9f s on the virtual clock, %.9f s simulated", graph, seconds,
                     r.seconds);
        for (uint32_t t = 0; t < p->s[i].task_count; t++) {
            /* both are rounded to 1 ns */
            if (llabs((long long)(rec[t].end_ns - ran[t].end_ns)) > 1 ||
                llabs((long long)(rec[t].start_ns - ran[t].start_ns)) > 1 ||
                llabs((long long)(rec[t].throttle_ns - ran[t].throttle_ns)) > 2)
                fail_msg("graph %d, segment %d, task %u on %s: %llu to %llu on the virtual clock, "
                         "%llu to %llu simulated",
                         graph, i, t, ps_lane_name(p->s[i].task[t].lane),
                         (unsigned long long)ran[t].start_ns, (unsigned long long)ran[t].end_ns,
                         (unsigned long long)rec[t].start_ns, (unsigned long long)rec[t].end_ns);
        }
    }
}

static void the_executor_ends_every_task_when_the_simulator_says(void **state)
{
    (void)state;
    key.seed = 21;
    counter = 0;
    for (int g = 0; g < 100; g++) {
        struct pair p;
        pair_open(&p, false, true);
        compare(&p, false, g);
        pair_close(&p);
    }
}

static void a_slow_tail_holds_back_the_period_after_next(void **state)
{
    (void)state;
    key.seed = 24;
    counter = 0;
    for (int g = 0; g < 10; g++) {
        struct pair p;
        pair_open(&p, false, true);
        uint32_t id = ps_schedule_task(&p.s[0], PS_TASK_SPILL_WRITE, PS_LANE_COMMIT, 0);
        p.s[0].task[id].bytes = 50000000 + draw(50000000);
        p.s[0].task[id].flags |= PS_TASK_TRAILS;
        ps_executor_destroy(p.ex); /* it knows the schedule without the tail */
        executor_open(&p, false);
        compare(&p, false, g);
        pair_close(&p);
    }
}

static void serial_runs_take_the_time_that_the_simulator_says(void **state)
{
    (void)state;
    key.seed = 22;
    counter = 0;
    for (int g = 0; g < 30; g++) {
        struct pair p;
        pair_open(&p, true, true);
        compare(&p, true, g);
        pair_close(&p);
    }
}

/* What nothing trails past, both count in full. */
static void lanes_are_busy_and_stall_as_the_simulator_says(void **state)
{
    (void)state;
    key.seed = 23;
    counter = 0;
    for (int g = 0; g < 50; g++) {
        struct pair p;
        struct ps_sim_result r;
        struct ps_lane_stats stats[PS_LANE_COUNT];
        struct ps_error err = {0};
        pair_open(&p, false, false);
        struct ps_sim_segment seg[] = {{.schedule = &p.s[0], .repeat = PERIODS},
                                       {.schedule = &p.s[1], .repeat = 1}};
        struct ps_sim_options o = {.model = &p.m, .segment = seg, .segment_count = 2, .rounds = 1};
        run(&p);
        ps_executor_stats(p.ex, stats);
        assert_int_equal(ps_simulate(&r, &o, &err), 0);
        for (int l = 0; l < PS_LANE_COUNT; l++) {
            assert_int_equal(stats[l].bytes, r.bytes[l]);
            if (fabs((double)stats[l].busy_ns * 1e-9 - r.busy_s[l]) > 2e-7)
                fail_msg("graph %d: %s is busy for %.9f s on the virtual clock, %.9f s simulated",
                         g, ps_lane_name((enum ps_lane)l), (double)stats[l].busy_ns * 1e-9,
                         r.busy_s[l]);
            for (int on = 0; on < PS_LANE_COUNT; on++)
                if (fabs((double)stats[l].stall_ns[on] * 1e-9 - r.stall_s[l][on]) > 2e-7)
                    fail_msg("graph %d: %s stalls on %s for %.9f s on the virtual clock, %.9f s "
                             "simulated",
                             g, ps_lane_name((enum ps_lane)l), ps_lane_name((enum ps_lane)on),
                             (double)stats[l].stall_ns[on] * 1e-9, r.stall_s[l][on]);
        }
        pair_close(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_executor_ends_every_task_when_the_simulator_says),
        cmocka_unit_test(a_slow_tail_holds_back_the_period_after_next),
        cmocka_unit_test(serial_runs_take_the_time_that_the_simulator_says),
        cmocka_unit_test(lanes_are_busy_and_stall_as_the_simulator_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
