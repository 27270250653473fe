/* The executor's random order. */
#include "tests/train/executor_recorder.h"

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
    ps_schedule_dep(&s, 4, 1);
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
        check_order(&q->r, 2);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_runs_visit_all_tasks_in_valid_orders),
        cmocka_unit_test(random_runs_find_every_order_and_repeat_with_the_seed),
        cmocka_unit_test(random_runs_stop_at_any_callback_that_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
