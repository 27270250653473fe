/* The executor: order, results, overlap, throttles, records, stats. */
#include "tests/train/executor_recorder.h"

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
    /* its requests are there only when task 1 has been started */
    r.gate = (struct gate){.task = 0, .on = 1, .count = 1};
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

/* Task 1 trails; it ends only when task 0, on `lane`, has begun in the next period. */
static void run_trailing(enum ps_lane lane)
{
    struct ps_schedule s;
    ps_schedule_init(&s, "trailing");
    add(&s, lane, 0);
    add(&s, PS_LANE_DISK_WEIGHTS, PS_TASK_TRAILS);
    ps_schedule_dep(&s, 0, 0);
    add(&s, PS_LANE_COMPUTE, 0);
    struct recorder r;
    recorder_init(&r, &s);
    r.gate = (struct gate){.task = 1, .on = 0, .count = 2};
    /* it has just been started when the next period is queued: task 2 tells */
    r.start_gate = (struct gate){.task = 1, .on = 2, .count = 2};
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
    run_trailing(PS_LANE_COMPUTE);
}

static void an_async_lane_starts_ahead_into_the_next_period(void **state)
{
    (void)state;
    run_trailing(PS_LANE_DISK_WEIGHTS);
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
    bool some = rec[1].throttle_ns > 0;
    for (int i = 0; i < 4; i += 2) {
        assert_true(rec[i].end_ns - rec[i].start_ns >= 5000000);
        some |= rec[i].throttle_ns > 0; /* none where the machine took longer itself */
        assert_true(rec[i].throttle_ns <= rec[i].end_ns - rec[i].start_ns);
    }
    assert_true(some);
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
    add(&s, PS_LANE_COMPUTE, 0); /* 40 ms */
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
    for (uint32_t p = 1; p <= 2; p++) {
        r.gate = (struct gate){.task = 0, .on = 1, .count = p}; /* the read is surely done first */
        assert_int_equal(ps_executor_run(ex, h, &err), 0);
        ps_executor_stats(ex, st);
        assert_int_equal(st[PS_LANE_H2D].bytes, 1000 * p);
        assert_int_equal(st[PS_LANE_H2D].tasks, p);
        assert_true(st[PS_LANE_COMPUTE].busy_ns >= 40000000ull * p);
        assert_true(st[PS_LANE_H2D].stall_ns[PS_LANE_COMPUTE] >= 30000000ull * p);
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
        cmocka_unit_test(serial_runs_in_program_order_on_the_callers_thread),
        cmocka_unit_test(throttled_tasks_last_as_long_as_their_amount_asks),
        cmocka_unit_test(throttles_hold_in_serial_runs),
        cmocka_unit_test(stats_count_busy_time_bytes_and_stalls_by_cause),
        cmocka_unit_test(an_empty_schedule_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
