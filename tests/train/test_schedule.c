/* Schedules: what the validator refuses, what the resident segments contain, how they are run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/schedule.h"

/* Memory that runs out at the n-th call. The sanitizers bring allocators of their own. */
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CAN_FAIL 1
void *__libc_realloc(void *p, size_t n);
void *__libc_calloc(size_t a, size_t b);
static int calls_left = -1;

static int out_of_memory(void)
{
    return calls_left >= 0 && calls_left-- == 0;
}

void *realloc(void *p, size_t n)
{
    return out_of_memory() ? NULL : __libc_realloc(p, n);
}

void *calloc(size_t a, size_t b)
{
    return out_of_memory() ? NULL : __libc_calloc(a, b);
}
#else
#define CAN_FAIL 0
static int calls_left = -1;
#endif

static int validate(const struct ps_schedule *s, struct ps_error *err)
{
    memset(err, 0, sizeof *err);
    return ps_schedule_validate(s, err);
}

/* Two tasks on two lanes; the second reads what the first writes, `shift` bytes on. */
static void two_tasks(struct ps_schedule *s, enum ps_lane lane, bool dep, uint64_t shift,
                      bool write)
{
    ps_schedule_init(s, "pair");
    uint32_t b = ps_schedule_buffer(s, 100, "bytes of %s", "two");
    ps_schedule_task(s, PS_TASK_EMBED, PS_LANE_COMPUTE, 0, 0);
    ps_schedule_access(s, b, write, 10, 20);
    ps_schedule_task(s, PS_TASK_HEAD, lane, 0, 0);
    if (dep)
        ps_schedule_dep(s, 0);
    ps_schedule_access(s, b, false, 10 + shift, 20);
}

static void unordered_conflict_is_refused_and_names_both_tasks(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err;
    two_tasks(&s, PS_LANE_H2D, false, 19, true);
    assert_int_equal(validate(&s, &err), PS_EUSAGE);
    assert_non_null(strstr(err.message, "tasks 0 (embed) and 1 (head)"));
    ps_schedule_fini(&s);
}

static void ordered_or_disjoint_or_read_only_tasks_are_accepted(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err;
    two_tasks(&s, PS_LANE_H2D, true, 0, true); /* a dependency */
    assert_int_equal(validate(&s, &err), 0);
    ps_schedule_fini(&s);
    two_tasks(&s, PS_LANE_COMPUTE, false, 0, true); /* the same lane */
    assert_int_equal(validate(&s, &err), 0);
    ps_schedule_fini(&s);
    two_tasks(&s, PS_LANE_H2D, false, 20, true); /* the next byte */
    assert_int_equal(validate(&s, &err), 0);
    ps_schedule_fini(&s);
    two_tasks(&s, PS_LANE_H2D, false, 0, false); /* two readers */
    assert_int_equal(validate(&s, &err), 0);
    ps_schedule_fini(&s);
}

static void order_is_followed_through_other_tasks_and_lanes(void **state)
{
    (void)state;
    struct ps_error err;
    for (int broken = 0; broken < 2; broken++) {
        struct ps_schedule s;
        ps_schedule_init(&s, "chain");
        uint32_t b = ps_schedule_buffer(&s, 8, "b");
        /* more than 64 tasks: several words of the relation */
        ps_schedule_task(&s, PS_TASK_EMBED, PS_LANE_H2D, 0, 0);
        ps_schedule_access(&s, b, true, 0, 8);
        for (uint32_t i = 1; i < 150; i++) {
            ps_schedule_task(&s, PS_TASK_LAYER_FORWARD, PS_LANE_COMPUTE, 0, 0);
            if (i == (broken ? 149 : 3))
                ps_schedule_dep(&s, broken ? 140 : 0);
        }
        uint32_t last = ps_schedule_task(&s, PS_TASK_HEAD, PS_LANE_D2H, 0, 0);
        ps_schedule_dep(&s, last - 1);
        ps_schedule_access(&s, b, true, 0, 8);
        assert_int_equal(validate(&s, &err), broken ? PS_EUSAGE : 0);
        ps_schedule_fini(&s);
    }
}

static void a_dependency_on_itself_or_a_later_task_is_refused(void **state)
{
    (void)state;
    struct ps_error err;
    for (uint32_t on = 1; on < 4; on++) {
        struct ps_schedule s;
        ps_schedule_init(&s, "forward");
        ps_schedule_task(&s, PS_TASK_EMBED, PS_LANE_COMPUTE, 0, 0);
        ps_schedule_task(&s, PS_TASK_HEAD, PS_LANE_COMPUTE, 0, 0);
        ps_schedule_dep(&s, on);
        ps_schedule_task(&s, PS_TASK_CLIP, PS_LANE_COMPUTE, 0, 0);
        assert_int_equal(validate(&s, &err), PS_EUSAGE);
        assert_non_null(strstr(err.message, "later task"));
        ps_schedule_fini(&s);
    }
}

static void accesses_outside_their_buffer_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t buffer;
        uint64_t offset, bytes;
        int want;
    } c[] = {{0, 0, 100, 0},
             {0, 99, 1, 0},
             {0, 0, 101, PS_EUSAGE},
             {0, 100, 1, PS_EUSAGE},
             {0, UINT64_MAX, 2, PS_EUSAGE},
             {0, 1, UINT64_MAX, PS_EUSAGE},
             {1, 0, 1, PS_EUSAGE}};
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        struct ps_schedule s;
        struct ps_error err;
        ps_schedule_init(&s, "range");
        ps_schedule_buffer(&s, 100, "b");
        ps_schedule_task(&s, PS_TASK_EMBED, PS_LANE_COMPUTE, 0, 0);
        ps_schedule_access(&s, c[i].buffer, true, c[i].offset, c[i].bytes);
        assert_int_equal(validate(&s, &err), c[i].want);
        ps_schedule_fini(&s);
    }
}

static void an_empty_schedule_is_legal(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err;
    ps_schedule_init(&s, "empty");
    assert_int_equal(validate(&s, &err), 0);
    ps_schedule_fini(&s);
}

#define LAYERS 3
static const uint64_t layer_bytes[LAYERS] = {10, 20, 30};
static const uint64_t no_bytes[LAYERS] = {0, 0, 0};
static const uint64_t last_bytes[LAYERS] = {0, 0, 30};

static struct ps_resident_shape full_shape(bool recompute)
{
    return (struct ps_resident_shape){.n_layer = LAYERS,
                                      .embed_trained = true,
                                      .head_trained = true,
                                      .recompute = recompute,
                                      .x_bytes = 64,
                                      .saved_bytes = 128,
                                      .scratch_bytes = 32,
                                      .head_bytes = 16,
                                      .batch_bytes = 8,
                                      .layer_weight_bytes = layer_bytes,
                                      .layer_grad_bytes = layer_bytes,
                                      .layer_state_bytes = layer_bytes,
                                      .embed_weight_bytes = 5,
                                      .embed_grad_bytes = 5,
                                      .embed_state_bytes = 5,
                                      .head_weight_bytes = 7,
                                      .head_grad_bytes = 7,
                                      .head_state_bytes = 7,
                                      .layer_flops = 1};
}

static struct ps_resident_shape last_layer_shape(bool recompute)
{
    struct ps_resident_shape p = full_shape(recompute);
    p.first_trained = LAYERS - 1;
    p.embed_trained = p.head_trained = false;
    p.layer_grad_bytes = p.layer_state_bytes = last_bytes;
    p.embed_grad_bytes = p.embed_state_bytes = p.head_grad_bytes = p.head_state_bytes = 0;
    return p;
}

static uint32_t count_kind(const struct ps_schedule *s, enum ps_task_kind k)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->task_count; i++)
        n += s->task[i].kind == k;
    return n;
}

static void micro_segments_hold_the_tasks_that_the_strategy_needs(void **state)
{
    (void)state;
    struct ps_error err = {0};
    for (int recompute = 0; recompute < 2; recompute++)
        for (int tied = 0; tied < 2; tied++) {
            struct ps_schedule s;
            struct ps_resident_shape p = full_shape(recompute);
            p.tied = tied;
            assert_int_equal(ps_resident_build_micro(&s, &p, &err), 0);
            assert_int_equal(count_kind(&s, PS_TASK_EMBED), 1);
            assert_int_equal(count_kind(&s, PS_TASK_LAYER_FORWARD), LAYERS);
            assert_int_equal(count_kind(&s, PS_TASK_HEAD), 1);
            assert_int_equal(count_kind(&s, PS_TASK_LAYER_RECOMPUTE), recompute ? LAYERS : 0);
            assert_int_equal(count_kind(&s, PS_TASK_LAYER_BACKWARD), LAYERS);
            assert_int_equal(count_kind(&s, PS_TASK_EMBED_BACKWARD), 1);
            assert_int_equal(s.task_count, 3 + LAYERS * (recompute ? 3 : 2));
            ps_schedule_fini(&s);
        }
    struct ps_schedule s;
    struct ps_resident_shape p = last_layer_shape(true);
    assert_int_equal(ps_resident_build_micro(&s, &p, &err), 0);
    assert_int_equal(count_kind(&s, PS_TASK_LAYER_FORWARD), LAYERS);
    assert_int_equal(count_kind(&s, PS_TASK_LAYER_RECOMPUTE), 1);
    assert_int_equal(count_kind(&s, PS_TASK_LAYER_BACKWARD), 1);
    assert_int_equal(count_kind(&s, PS_TASK_EMBED_BACKWARD), 0);
    assert_int_equal(s.task[s.task_count - 1].unit, LAYERS - 1);
    ps_schedule_fini(&s);
}

static void update_segments_hold_one_norm_and_one_update_a_trained_unit(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_schedule s;
    struct ps_resident_shape p = full_shape(false);
    assert_int_equal(ps_resident_build_update(&s, &p, &err), 0);
    assert_int_equal(count_kind(&s, PS_TASK_GRAD_NORM), LAYERS + 2);
    assert_int_equal(count_kind(&s, PS_TASK_CLIP), 1);
    assert_int_equal(count_kind(&s, PS_TASK_UPDATE), LAYERS + 2);
    assert_int_equal(s.task[0].unit, PS_UNIT_EMBED);
    assert_int_equal(s.task[LAYERS + 1].unit, PS_UNIT_HEAD);
    ps_schedule_fini(&s);
    p = last_layer_shape(false);
    assert_int_equal(ps_resident_build_update(&s, &p, &err), 0);
    assert_int_equal(s.task_count, 3);
    ps_schedule_fini(&s);
}

static void evaluation_holds_no_backward_task(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_schedule s;
    struct ps_resident_shape p = full_shape(true);
    p.eval_only = true;
    p.embed_trained = p.head_trained = false;
    p.first_trained = LAYERS;
    p.layer_grad_bytes = p.layer_state_bytes = no_bytes;
    assert_int_equal(ps_resident_build_eval(&s, &p, &err), 0);
    assert_int_equal(s.task_count, LAYERS + 2);
    assert_int_equal(count_kind(&s, PS_TASK_LAYER_BACKWARD), 0);
    ps_schedule_fini(&s);
}

typedef int (*builder)(struct ps_schedule *s, const struct ps_resident_shape *p,
                       struct ps_error *err);
static const builder builders[] = {ps_resident_build_micro, ps_resident_build_update,
                                   ps_resident_build_eval};

/* Each task of each segment uses or feeds its neighbours: cut loose (another lane, no dependencies
 * in or out), it must be noticed. */
static void every_task_cut_loose_is_noticed(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof builders / sizeof builders[0]; k++)
        for (int recompute = 0; recompute < 2; recompute++) {
            struct ps_error err = {0};
            struct ps_schedule s;
            struct ps_resident_shape p = full_shape(recompute);
            assert_int_equal(builders[k](&s, &p, &err), 0);
            for (uint32_t i = 0; i < s.task_count; i++) {
                struct ps_task was = s.task[i];
                s.task[i].lane = PS_LANE_CPU_OPTIM;
                s.task[i].dep_count = 0;
                uint32_t out = i + 1 < s.task_count ? s.task[i + 1].dep_count : 0;
                if (i + 1 < s.task_count)
                    s.task[i + 1].dep_count = 0;
                if (validate(&s, &err) != PS_EUSAGE)
                    fail_msg("%s: task %u (%s) may run at any time", s.name, i,
                             ps_task_kind_name(was.kind));
                if (i + 1 < s.task_count)
                    s.task[i + 1].dep_count = out;
                s.task[i] = was;
                assert_int_equal(validate(&s, &err), 0);
            }
            ps_schedule_fini(&s);
        }
}

/* A task that keeps its own dependencies while nothing waits for it any more. Updates of different
 * units do not feed one another, and nothing follows the last task. */
static void results_that_nobody_waits_for_are_noticed(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof builders / sizeof builders[0]; k++)
        for (int recompute = 0; recompute < 2; recompute++) {
            struct ps_error err = {0};
            struct ps_schedule s;
            struct ps_resident_shape p = full_shape(recompute);
            assert_int_equal(builders[k](&s, &p, &err), 0);
            for (uint32_t i = 0; i + 1 < s.task_count; i++) {
                if (s.task[i].kind == PS_TASK_UPDATE)
                    continue;
                uint32_t deps = s.task[i + 1].dep_count;
                s.task[i].lane = PS_LANE_CPU_OPTIM;
                s.task[i + 1].dep_count = 0;
                if (validate(&s, &err) != PS_EUSAGE)
                    fail_msg("%s: nothing waits for task %u (%s)", s.name, i,
                             ps_task_kind_name(s.task[i].kind));
                s.task[i].lane = PS_LANE_COMPUTE;
                s.task[i + 1].dep_count = deps;
            }
            ps_schedule_fini(&s);
        }
}

static void builders_report_the_nth_failed_allocation(void **state)
{
    (void)state;
    if (!CAN_FAIL) {
        print_message("skip: the sanitizer's allocator cannot be made to fail here\n");
        skip();
    }
    for (size_t k = 0; k < sizeof builders / sizeof builders[0]; k++) {
        int failures = 0;
        int ret = -1;
        for (int n = 0; ret != 0; n++) {
            assert_true(n < 100);
            struct ps_schedule s;
            struct ps_error err = {0};
            struct ps_resident_shape p = full_shape(true);
            calls_left = n;
            ret = builders[k](&s, &p, &err);
            calls_left = -1;
            if (ret != 0) {
                assert_int_equal(ret, -ENOMEM);
                assert_int_equal(err.code, -ENOMEM);
                failures++;
            }
            ps_schedule_fini(&s);
        }
        assert_true(failures >= 4); /* buffers, tasks, dependencies, accesses */
    }
}

struct trace {
    uint32_t id[32];
    uint32_t count, fail_at;
};

static int record(void *ctx, const struct ps_task *task)
{
    struct trace *t = ctx;
    if (t->count == t->fail_at)
        return -EIO;
    t->id[t->count++] = task->id;
    return 0;
}

static void the_executor_runs_every_task_after_its_dependencies(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_schedule s;
    struct ps_resident_shape p = full_shape(true);
    ps_task_fn fn[PS_TASK_KIND_COUNT];
    for (int i = 0; i < PS_TASK_KIND_COUNT; i++)
        fn[i] = record;
    assert_int_equal(ps_resident_build_micro(&s, &p, &err), 0);
    struct trace t = {.fail_at = UINT32_MAX};
    uint64_t busy[PS_TASK_KIND_COUNT] = {0};
    assert_int_equal(ps_executor_run(&s, fn, &t, busy), 0);
    assert_int_equal(t.count, s.task_count);
    assert_int_equal(busy[PS_TASK_CLIP], 0);
    bool done[32] = {false};
    for (uint32_t i = 0; i < t.count; i++) {
        const struct ps_task *task = &s.task[t.id[i]];
        for (uint32_t d = 0; d < task->dep_count; d++)
            assert_true(done[s.dep[task->dep_begin + d]]);
        assert_false(done[task->id]);
        done[task->id] = true;
    }
    ps_schedule_fini(&s);
}

static void the_executor_stops_at_the_first_error_and_returns_it(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_schedule s;
    struct ps_resident_shape p = full_shape(false);
    ps_task_fn fn[PS_TASK_KIND_COUNT];
    for (int i = 0; i < PS_TASK_KIND_COUNT; i++)
        fn[i] = record;
    assert_int_equal(ps_resident_build_update(&s, &p, &err), 0);
    for (uint32_t i = 0; i < s.task_count; i++) {
        struct trace t = {.fail_at = i};
        assert_int_equal(ps_executor_run(&s, fn, &t, NULL), -EIO);
        assert_int_equal(t.count, i);
    }
    ps_schedule_fini(&s);
}

static void every_kind_and_lane_has_its_own_name(void **state)
{
    (void)state;
    for (int i = 0; i < PS_TASK_KIND_COUNT; i++)
        for (int j = 0; j < i; j++)
            assert_string_not_equal(ps_task_kind_name((enum ps_task_kind)i),
                                    ps_task_kind_name((enum ps_task_kind)j));
    for (int i = 0; i < PS_LANE_COUNT; i++)
        for (int j = 0; j < i; j++)
            assert_string_not_equal(ps_lane_name((enum ps_lane)i), ps_lane_name((enum ps_lane)j));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unordered_conflict_is_refused_and_names_both_tasks),
        cmocka_unit_test(ordered_or_disjoint_or_read_only_tasks_are_accepted),
        cmocka_unit_test(order_is_followed_through_other_tasks_and_lanes),
        cmocka_unit_test(a_dependency_on_itself_or_a_later_task_is_refused),
        cmocka_unit_test(accesses_outside_their_buffer_are_refused),
        cmocka_unit_test(an_empty_schedule_is_legal),
        cmocka_unit_test(micro_segments_hold_the_tasks_that_the_strategy_needs),
        cmocka_unit_test(update_segments_hold_one_norm_and_one_update_a_trained_unit),
        cmocka_unit_test(evaluation_holds_no_backward_task),
        cmocka_unit_test(every_task_cut_loose_is_noticed),
        cmocka_unit_test(results_that_nobody_waits_for_are_noticed),
        cmocka_unit_test(builders_report_the_nth_failed_allocation),
        cmocka_unit_test(the_executor_runs_every_task_after_its_dependencies),
        cmocka_unit_test(the_executor_stops_at_the_first_error_and_returns_it),
        cmocka_unit_test(every_kind_and_lane_has_its_own_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
