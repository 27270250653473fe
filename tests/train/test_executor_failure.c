/* The executor when something fails: a task, a schedule that cannot go on, memory. */
#include "tests/train/executor_recorder.h"

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
    /* both in flight when the first fails; the second must still be finished */
    r.gate = (struct gate){.task = 0, .on = 1, .count = 1};
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
        cmocka_unit_test(a_failure_of_any_task_stops_everything),
        cmocka_unit_test(a_failure_ends_the_sleep_of_a_throttled_task),
        cmocka_unit_test(the_first_of_two_failures_is_reported),
        cmocka_unit_test(a_schedule_that_cannot_go_on_is_named_and_does_not_hang),
        cmocka_unit_test(running_out_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
