/* Plans of full fine-tuning on made-up models: what every strategy proposes can be built, is
 * counted right, and the choice is the one that budgets and limits ask for. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "offload/planner_internal.h"
#include "runtime/device/virtual_clock.h"
#include "runtime/train/executor.h"
#include "tests/helpers/step_shape.h"

#define MIB ((uint64_t)1 << 20)

static const struct shape_spec model = {.n_layer = 6,
                                        .embed_blocks = 1,
                                        .layer_bytes = 8 << 20,
                                        .embed_block_bytes = 6 << 20,
                                        .head_bytes = 6 << 20,
                                        .x_bytes = 256 << 10,
                                        .saved_bytes = 2 << 20,
                                        .layer_flops = 4e9,
                                        .direct = true,
                                        .full = true,
                                        .granule_params = 1 << 20,
                                        .micro_max = 4};

struct fixture {
    struct made_shape m;
    struct ps_profile profile;
    struct ps_planner_request req;
    struct ps_cost_model cost;
};

static void set_up(struct fixture *f, const struct shape_spec *spec, bool discrete)
{
    struct ps_profile *p = &f->profile;
    made_shape_init(&f->m, spec);
    ps_profile_conservative(p);
    for (int i = 0; i < p->gemm_count; i++)
        p->gemm[i].flops = 1e12;
    p->attention_flops = 0;
    p->disk_count = 1;
    p->disk[0] = (struct ps_profile_disk){
        .read = 1e9, .write = 8e8, .mixed_read = 1e9, .mixed_write = 8e8, .latency_s = 1e-4};
    f->req = (struct ps_planner_request){.shape = &f->m.shape,
                                         .profile = p,
                                         .cost = {.dtype = PS_DTYPE_BF16,
                                                  .tokens = 512,
                                                  .hidden_size = 1024,
                                                  .intermediate_size = 4096,
                                                  .discrete = discrete},
                                         .discrete = discrete,
                                         .micro_count = spec->micro_max,
                                         .eval_max = 4,
                                         .tokens = 512,
                                         .device_budget = UINT64_MAX,
                                         .host_budget = UINT64_MAX,
                                         .clip_share = 1,
                                         .disk_budget = UINT64_MAX,
                                         .strategy = "auto",
                                         .offload_weights = -1,
                                         .offload_activations = -1,
                                         .offload_optimizer = -1};
    ps_profile_cost(p, &f->req.cost, &f->cost);
}

static void tear_down(struct fixture *f)
{
    made_shape_fini(&f->m);
}

static int choose(struct ps_plan *plan, const struct ps_planner_request *req, struct ps_error *err)
{
    *err = (struct ps_error){0};
    int ret = ps_planner_choose(plan, req, err);
    if (ret < 0)
        assert_int_equal(err->code, ret);
    return ret;
}

static void must_choose(struct ps_plan *plan, const struct ps_planner_request *req)
{
    struct ps_error err;
    if (choose(plan, req, &err) < 0)
        fail_msg("%s: %s", req->strategy, err.message);
    assert_true(plan->device_bytes <= req->device_budget);
    assert_true(plan->host_bytes <= req->host_budget);
    assert_true(plan->disk_bytes <= req->disk_budget);
}

/* --- what strategies propose --- */

static bool all_states(const struct ps_step_layout *l, int32_t n_layer, enum ps_tier tier)
{
    for (int32_t i = 0; i < n_layer + 2; i++)
        if (l->state[i] != tier)
            return false;
    return true;
}

/* What gives a strategy its name. */
static void check_character(const struct ps_step_layout *l, const struct ps_step_shape *p,
                            int32_t whole)
{
    enum ps_tier memory = l->discrete ? PS_TIER_HOST : PS_TIER_DEVICE;
    if (!strcmp(l->strategy, "resident")) {
        assert_int_equal(l->update, PS_UPDATE_RESIDENT);
        return;
    }
    if (!strcmp(l->strategy, "zero-offload")) {
        assert_int_equal(l->update, PS_UPDATE_AFTER);
        assert_true(all_states(l, p->n_layer, memory));
    } else if (!strcmp(l->strategy, "zero-infinity")) {
        assert_int_equal(l->update, PS_UPDATE_AFTER);
        assert_int_equal(l->group, 1);
        assert_false(all_states(l, p->n_layer, memory));
    } else if (!strcmp(l->strategy, "update-next-forward")) {
        assert_int_equal(l->update, PS_UPDATE_NEXT_FORWARD);
        assert_int_equal(l->group, whole);
    } else {
        assert_true(all_states(l, p->n_layer, PS_TIER_DISK));
        assert_int_equal(l->group, whole);
        if (!strcmp(l->strategy, "fuyou"))
            assert_int_equal(l->update, PS_UPDATE_INSIDE);
    }
    for (int32_t i = 0; l->discrete && i < p->n_layer + 2; i++)
        assert_true(l->grad[i] != PS_TIER_DEVICE && l->state[i] != PS_TIER_DEVICE);
}

static void check_builds(const struct ps_step_shape *p, const struct ps_step_layout *l)
{
    struct ps_step_map map;
    struct ps_error err = {0};
    int ret = ps_step_map_create(&map, p, l, &err);
    for (int s = 0; ret == 0 && s < PS_SEGMENT_COUNT; s++) {
        struct ps_schedule made;
        ret = ps_step_build(&made, (enum ps_segment)s, p, l, &map, &err);
        ps_schedule_fini(&made);
    }
    if (ret < 0)
        fail_msg("%s: %s (%s)", l->strategy, err.message, err.advice);
    ps_step_map_fini(&map);
}

static int check_proposals(struct fixture *f, int stride)
{
    int seen = 0;
    struct ps_error err = {0};
    int32_t whole = ps__choice_whole_step(&f->req);
    for (int s = 0; ps_strategy_at(s); s++) {
        const struct ps_strategy *strategy = ps_strategy_at(s);
        for (int i = 0; strategy->full; i++) {
            struct ps_step_layout l;
            int ret = strategy->candidate(&f->req, i, &l, &err);
            bool last = ret == 1;
            if (last)
                ret = strategy->smallest(&f->req, &l, &err);
            if (ret < 0)
                fail_msg("%s: %s (%s)", strategy->name, err.message, err.advice);
            assert_string_equal(l.strategy, strategy->name);
            check_character(&l, &f->m.shape, whole);
            if (i % stride == 0 || last)
                check_builds(&f->m.shape, &l);
            ps_step_layout_fini(&l);
            seen++;
            if (last)
                break;
        }
    }
    return seen;
}

static void every_proposal_can_be_built(void **state)
{
    (void)state;
    static const int32_t layers[] = {1, 2, 5};
    static const uint64_t budgets[] = {0, 60 * MIB, 150 * MIB, UINT64_MAX};
    int seen = 0;
    for (int k = 0; k < 3; k++)
        for (int variant = 0; variant < 16; variant++) {
            struct fixture f;
            struct shape_spec spec = model;
            spec.n_layer = layers[k];
            spec.micro_max = variant & 1 ? 5 : 1;
            spec.tied = variant & 2;
            spec.granule_params = variant & 4 ? 0 : 1 << 19;
            set_up(&f, &spec, variant & 8);
            f.req.device_budget = budgets[(variant + k) % 4];
            f.req.host_budget = budgets[(variant / 2 + k) % 4];
            f.req.clip = (enum ps_clip_mode)((variant + k) % 4);
            seen += check_proposals(&f, 7);
            tear_down(&f);
        }
    assert_true(seen > 3000);
}

/* --- what they cost --- */

/* Nothing that an estimate guesses: boundaries are all near. */
static bool counted_exactly(const struct ps_step_layout *l, int32_t n_layer)
{
    for (int32_t i = 0; i < n_layer; i++)
        if (l->boundary[i] != PS_TIER_DEVICE)
            return false;
    return true;
}

static void estimates_are_lower_bounds_and_count_traffic_exactly(void **state)
{
    (void)state;
    int compared = 0;
    int exact = 0;
    for (int variant = 0; variant < 8; variant++) {
        struct fixture f;
        struct ps_error err = {0};
        struct shape_spec spec = model;
        spec.tied = variant & 2;
        set_up(&f, &spec, variant & 1);
        f.req.device_budget = (variant & 4 ? 90 : 160) * MIB;
        f.req.host_budget = 400 * MIB;
        f.req.clip = variant & 4 ? PS_CLIP_NONE : PS_CLIP_EXACT;
        for (int s = 0; ps_strategy_at(s); s++) {
            for (int i = 0; ps_strategy_at(s)->full; i += 3) {
                struct ps__trial t = {0};
                uint64_t tasks = 0;
                if (ps_strategy_at(s)->candidate(&f.req, i, &t.layout, &err))
                    break;
                assert_int_equal(ps__estimate_layout(&t.estimate, &f.req, &f.cost, &t.layout), 0);
                assert_int_equal(ps__trial_simulate(&t, &f.req, &f.cost, false, &tasks, &err), 0);
                if (t.estimate.bound_s > t.step_s * 1.0001)
                    fail_msg("%s %d (variant %d): bound %.6f s, simulated %.6f s",
                             t.layout.strategy, i, variant, t.estimate.bound_s, t.step_s);
                if (t.step_s > t.estimate.serial_s * 1.0001)
                    fail_msg("%s %d: %.6f s, one after the other %.6f s", t.layout.strategy, i,
                             t.step_s, t.estimate.serial_s);
                assert_int_equal(t.estimate.read_bytes, t.sim.bytes[PS_LANE_DISK_WEIGHTS]);
                if (counted_exactly(&t.layout, spec.n_layer)) {
                    assert_int_equal(t.estimate.write_bytes, t.sim.bytes[PS_LANE_DISK_WRITE]);
                    exact++;
                }
                ps_step_layout_fini(&t.layout);
                compared++;
            }
        }
        tear_down(&f);
    }
    assert_true(compared > 200);
    assert_true(exact > 50);
}

/* The executor on the virtual clock, in the order of ps_trainer_step: inner passes, drained, the
 * last one. */
static int nothing(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    (void)ctx;
    (void)task;
    (void)err;
    return 0;
}

static double executed_step(const struct ps__schedules *s, const struct ps_cost_model *cost)
{
    struct ps_error err = {0};
    struct ps_vclock *clock;
    struct ps_executor *ex;
    int handle[2] = {-1, -1};
    assert_int_equal(ps_vclock_create(&clock, cost), 0);
    struct ps_executor_options o = {.vclock = clock};
    for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
        o.ops[k] = (struct ps_task_ops){.run = nothing, .start = nothing, .finish = nothing};
    assert_int_equal(ps_executor_create(&ex, &o, &err), 0);
    for (int i = 0; i < s->segment_count; i++) {
        handle[i] = ps_executor_bind(ex, s->segment[i].schedule);
        assert_true(handle[i] >= 0);
    }
    double begin = 0;
    for (int round = 0; round < 4; round++) {
        begin = ps_vclock_now_s(clock);
        for (int i = 0; i < s->segment_count; i++) {
            if (s->segment[i].drained) {
                assert_int_equal(ps_executor_drain(ex, &err), 0);
                ps_executor_restart(ex, handle[i]);
            }
            for (uint32_t k = 0; k < s->segment[i].repeat; k++)
                if (ps_executor_run(ex, handle[i], &err) < 0)
                    fail_msg("%s", err.message);
        }
    }
    double end = ps_vclock_now_s(clock);
    assert_int_equal(ps_executor_drain(ex, &err), 0);
    ps_executor_destroy(ex);
    ps_vclock_destroy(clock);
    return end - begin;
}

static void the_virtual_clock_takes_the_time_that_the_simulator_says(void **state)
{
    (void)state;
    static const char *const names[] = {"zero-offload", "zero-infinity", "vertical", "fuyou",
                                        "update-next-forward"};
    for (int discrete = 0; discrete < 2; discrete++) {
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            struct fixture f;
            struct ps_plan plan;
            struct ps__schedules s;
            struct ps_error err = {0};
            set_up(&f, &model, discrete);
            f.req.strategy = names[k];
            f.req.device_budget = k == 0 ? UINT64_MAX : 130 * MIB;
            must_choose(&plan, &f.req);
            assert_int_equal(ps__schedules_build(&s, &f.req, &plan.layout, false, &err), 0);
            double ran = executed_step(&s, &f.cost);
            if (fabs(ran - plan.step_s) > 1e-9)
                fail_msg("%s: %.9f s on the virtual clock, %.9f s simulated", names[k], ran,
                         plan.step_s);
            if (!strcmp(names[k], "zero-infinity"))
                assert_true(s.segment_count == 2 && s.segment[0].repeat == 3);
            ps__schedules_fini(&s);
            ps_plan_fini(&plan);
            tear_down(&f);
        }
    }
}

static void many_granules_are_planned_some_at_a_time_with_the_same_result(void **state)
{
    (void)state;
    struct fixture f;
    struct ps__coarse c;
    struct ps_step_layout l;
    struct shape_spec spec = model;
    spec.granule_params = 2048 * 4;
    spec.n_layer = 12;
    set_up(&f, &spec, false);
    const struct ps_step_shape *p = &f.m.shape;
    uint32_t units = (uint32_t)p->n_layer + 2;
    assert_true(p->granule_begin[units] > 6000);
    assert_int_equal(ps_step_layout_init(&l, p), 0);
    l.state_slots = 5;
    assert_int_equal(ps__coarse_init(&c, p, &l, false), 0);
    assert_true(c.shape.granule_begin[units] <= 6000 + units);
    assert_int_equal(c.layout.state_slots, 3);
    for (uint32_t i = 0; i < units; i++) {
        uint64_t params = 0, state_bytes = 0, weight_end = 0;
        for (uint32_t g = c.shape.granule_begin[i]; g < c.shape.granule_begin[i + 1]; g++) {
            assert_int_equal(c.shape.granule[g].weight_offset, weight_end);
            weight_end += c.shape.granule[g].weight_bytes;
            params += c.shape.granule[g].params;
            state_bytes += c.shape.granule[g].state_bytes;
        }
        assert_int_equal(params, p->pinned_bytes[i] / 2);
        assert_int_equal(state_bytes, p->state_image_bytes[i]);
    }
    ps__coarse_fini(&c);
    ps_step_layout_fini(&l);
    tear_down(&f);
}

/* --- what is chosen --- */

static void the_smallest_budgets_named_suffice_and_a_byte_less_does_not(void **state)
{
    (void)state;
    static const char *const names[] = {"auto",     "zero-offload", "zero-infinity",
                                        "vertical", "fuyou",        "update-next-forward"};
    for (int discrete = 0; discrete < 2; discrete++)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            struct fixture f;
            struct ps_plan plan;
            struct ps_error err;
            set_up(&f, &model, discrete);
            f.req.strategy = names[i];
            f.req.device_budget = f.req.host_budget = 0;
            assert_int_equal(choose(&plan, &f.req, &err), PS_ENOFIT);
            uint64_t device = plan.device_bytes;
            f.req.device_budget = device;
            f.req.host_budget = plan.host_bytes;
            f.req.disk_budget = plan.disk_bytes;
            uint64_t disk = plan.disk_bytes;
            must_choose(&plan, &f.req);
            ps_plan_fini(&plan);
            f.req.device_budget = device - 1;
            if (choose(&plan, &f.req, &err) == 0)
                fail_msg("%s fits into a byte less than it needs", names[i]);
            f.req.device_budget = device;
            f.req.disk_budget = disk / 2;
            if (disk == 0)
                continue;
            assert_int_equal(choose(&plan, &f.req, &err), PS_ENOFIT);
            tear_down(&f);
        }
}

static void a_store_has_two_slots_or_as_many_as_the_request_says(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    struct ps_step_map map;
    struct ps_error err;
    set_up(&f, &model, false);
    f.req.strategy = "vertical";
    must_choose(&plan, &f.req);
    assert_int_equal(ps_step_map_create(&map, &f.m.shape, &plan.layout, &err), 0);
    uint64_t slot = ps_step_map_store_bytes(&map);
    uint64_t spill = ps_step_map_tier_bytes(&map, PS_TIER_DISK);
    assert_true(slot >= 12 * (8 * 6 + 12) / 2 * MIB);
    assert_int_equal(plan.disk_bytes, spill + 2 * slot);
    ps_step_map_fini(&map);
    f.req.store_bytes = slot + 12345;
    f.req.placement = &plan.layout;
    struct ps_plan again;
    must_choose(&again, &f.req);
    assert_int_equal(again.disk_bytes, spill + slot + 12345);
    f.req.disk_budget = again.disk_bytes - 1;
    ps_plan_fini(&again);
    assert_int_equal(choose(&again, &f.req, &err), PS_ENOFIT);
    assert_string_equal(err.field, "nvme-mem");
    ps_plan_fini(&plan);
    tear_down(&f);
}

static void states_lie_where_offload_optimizer_says(void **state)
{
    (void)state;
    for (int discrete = 0; discrete < 2; discrete++) {
        struct fixture f;
        struct ps_plan plan;
        struct ps_error err;
        set_up(&f, &model, discrete);
        f.req.offload_optimizer = PS_TIER_DISK;
        must_choose(&plan, &f.req);
        assert_true(all_states(&plan.layout, 6, PS_TIER_DISK));
        assert_true(plan.commits);
        ps_plan_fini(&plan);
        f.req.offload_optimizer = PS_TIER_HOST;
        must_choose(&plan, &f.req);
        assert_string_equal(plan.layout.strategy, discrete ? "zero-offload" : "resident");
        ps_plan_fini(&plan);
        f.req.strategy = "fuyou";
        assert_int_equal(choose(&plan, &f.req, &err), PS_EUSAGE);
        f.req.strategy = "zero-offload";
        f.req.offload_optimizer = PS_TIER_DISK;
        assert_int_equal(choose(&plan, &f.req, &err), PS_EUSAGE);
        tear_down(&f);
    }
}

static void adapters_and_full_fine_tuning_have_their_own_strategies(void **state)
{
    (void)state;
    struct shape_spec spec = model;
    for (int full = 0; full < 2; full++) {
        struct fixture f;
        spec.full = full;
        set_up(&f, &spec, false);
        for (int s = 0; ps_strategy_at(s); s++) {
            struct ps_plan plan;
            struct ps_error err;
            f.req.strategy = ps_strategy_at(s)->name;
            bool can = full ? ps_strategy_at(s)->full : ps_strategy_at(s)->frozen;
            assert_int_equal(choose(&plan, &f.req, &err), can ? 0 : PS_EUSAGE);
            if (can)
                ps_plan_fini(&plan);
            else
                assert_non_null(strstr(err.message, ps_strategy_at(s)->name));
        }
        tear_down(&f);
    }
}

/* 1,000 times the compute: any order of updates is hidden or does not count. */
static void what_fits_is_not_streamed_and_what_does_not_is(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    struct shape_spec spec = model;
    spec.layer_flops *= 1000;
    set_up(&f, &spec, false);
    must_choose(&plan, &f.req);
    assert_string_equal(plan.layout.strategy, "resident");
    assert_int_equal(plan.disk_write, 0);
    assert_false(plan.commits);
    f.req.device_budget = plan.device_bytes / 2;
    ps_plan_fini(&plan);
    must_choose(&plan, &f.req);
    assert_true(plan.layout.update != PS_UPDATE_RESIDENT);
    assert_true(plan.disk_write > 0);
    assert_int_equal(plan.bottleneck, PS_LANE_COMPUTE);
    assert_true(plan.slowdown < 1.1);
    ps_plan_fini(&plan);
    tear_down(&f);
}

/* Updates that overlap compute beat those that wait for all of it. */
static void a_disk_as_slow_as_compute_is_hidden_only_inside_the_passes(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan after, inside;
    struct shape_spec spec = model;
    spec.layer_flops *= 4;
    set_up(&f, &spec, false);
    f.req.device_budget = 200 * MIB;
    f.req.strategy = "vertical";
    f.req.clip = PS_CLIP_NONE;
    must_choose(&inside, &f.req);
    assert_int_equal(inside.layout.update, PS_UPDATE_INSIDE);
    f.req.strategy = "zero-infinity";
    must_choose(&after, &f.req);
    assert_true(after.step_s > 1.15 * inside.step_s);
    ps_plan_fini(&after);
    ps_plan_fini(&inside);
    tear_down(&f);
}

static void updates_that_may_be_taken_back_are_chosen_where_clipping_is_rare(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan often, seldom;
    struct shape_spec spec = model;
    spec.layer_flops *= 4;
    set_up(&f, &spec, false);
    f.req.device_budget = 200 * MIB;
    f.req.strategy = "vertical";
    f.req.clip = PS_CLIP_EXACT;
    must_choose(&often, &f.req);
    assert_int_equal(often.layout.update, PS_UPDATE_AFTER);
    f.req.clip_share = 0.05;
    must_choose(&seldom, &f.req);
    assert_int_equal(seldom.layout.update, PS_UPDATE_INSIDE);
    assert_true(seldom.step_s < often.step_s);
    ps_plan_fini(&often);
    ps_plan_fini(&seldom);
    tear_down(&f);
}

static void a_write_limit_is_kept_or_what_it_would_have_to_be_is_said(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    struct ps_error err;
    set_up(&f, &model, false);
    f.req.device_budget = 200 * MIB;
    must_choose(&plan, &f.req);
    double day = ps__per_day(plan.disk_write, plan.step_s);
    assert_true(day > 0);
    ps_plan_fini(&plan);
    f.req.write_limit = (uint64_t)day / 1000;
    assert_int_equal(choose(&plan, &f.req, &err), PS_ENOFIT);
    assert_string_equal(err.field, "nvme-write-limit");
    assert_true(plan.needs_write_limit > f.req.write_limit);
    f.req.write_limit = plan.needs_write_limit;
    must_choose(&plan, &f.req);
    assert_true(ps__per_day(plan.disk_write, plan.step_s) <= (double)f.req.write_limit * 1.001);
    ps_plan_fini(&plan);
    /* with the memory for it a limit is met without writing */
    f.req.write_limit = 1;
    f.req.device_budget = UINT64_MAX;
    must_choose(&plan, &f.req);
    assert_int_equal(plan.disk_write, 0);
    ps_plan_fini(&plan);
    tear_down(&f);
}

static void updates_that_are_made_again_count_against_the_write_limit(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    struct ps_error err;
    set_up(&f, &model, false);
    f.req.device_budget = 200 * MIB;
    f.req.strategy = "fuyou";
    f.req.clip = PS_CLIP_NONE;
    must_choose(&plan, &f.req);
    assert_int_equal(plan.redo_write_bytes, 0);
    ps_plan_fini(&plan);
    f.req.clip = PS_CLIP_EXACT;
    must_choose(&plan, &f.req);
    assert_true(plan.redo_s > 0);
    /* all that a step writes but gradients is written once more */
    assert_true(plan.redo_write_bytes > plan.disk_write / 2);
    assert_true(plan.redo_write_bytes <= plan.disk_write);
    ps_plan_fini(&plan);
    f.req.write_limit = 1;
    assert_int_equal(choose(&plan, &f.req, &err), PS_ENOFIT);
    f.req.write_limit = plan.needs_write_limit;
    must_choose(&plan, &f.req);
    double day = ps__per_day(plan.disk_write + plan.redo_write_bytes, plan.step_s + plan.redo_s);
    /* the tables of commits are not among what the limit is held against */
    assert_true(day <= 1.01 * (double)f.req.write_limit);
    ps_plan_fini(&plan);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_proposal_can_be_built),
        cmocka_unit_test(estimates_are_lower_bounds_and_count_traffic_exactly),
        cmocka_unit_test(the_virtual_clock_takes_the_time_that_the_simulator_says),
        cmocka_unit_test(many_granules_are_planned_some_at_a_time_with_the_same_result),
        cmocka_unit_test(the_smallest_budgets_named_suffice_and_a_byte_less_does_not),
        cmocka_unit_test(a_store_has_two_slots_or_as_many_as_the_request_says),
        cmocka_unit_test(states_lie_where_offload_optimizer_says),
        cmocka_unit_test(adapters_and_full_fine_tuning_have_their_own_strategies),
        cmocka_unit_test(what_fits_is_not_streamed_and_what_does_not_is),
        cmocka_unit_test(a_disk_as_slow_as_compute_is_hidden_only_inside_the_passes),
        cmocka_unit_test(updates_that_may_be_taken_back_are_chosen_where_clipping_is_rare),
        cmocka_unit_test(a_write_limit_is_kept_or_what_it_would_have_to_be_is_said),
        cmocka_unit_test(updates_that_are_made_again_count_against_the_write_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
