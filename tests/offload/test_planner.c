/* The planner on made-up models: what fits, what is chosen, and that the numbers agree with the
 * simulator. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "offload/planner_internal.h"
#include "tests/helpers/step_shape.h"

#define MIB ((uint64_t)1 << 20)

static const struct shape_spec small_model = {.n_layer = 8,
                                              .embed_blocks = 2,
                                              .layer_bytes = 8 << 20,
                                              .embed_block_bytes = 6 << 20,
                                              .head_bytes = 12 << 20,
                                              .x_bytes = 256 << 10,
                                              .saved_bytes = 5 << 20,
                                              .layer_flops = 4e9,
                                              .direct = true};

/* A machine without interference: rates only. */
static void plain_profile(struct ps_profile *p, double flops, double read)
{
    ps_profile_conservative(p);
    for (int i = 0; i < p->gemm_count; i++)
        p->gemm[i].flops = flops;
    p->attention_flops = 0;
    p->copy_host = p->memory = 1e15;
    p->copy_h2d = p->copy_d2h = 4e9;
    p->disk_count = 1;
    p->disk[0] = (struct ps_profile_disk){
        .read = read, .write = read, .mixed_read = read, .mixed_write = read};
    p->compute_by_disk = p->compute_by_optim = p->compute_by_copy = 1;
    p->disk_by_compute = p->optim_by_compute = p->copy_by_compute = 1;
    p->step_overhead_s = 0;
}

struct fixture {
    struct made_shape m;
    struct ps_profile profile;
    struct ps_planner_request req;
};

static void set_up(struct fixture *f, const struct shape_spec *spec, bool discrete, double flops,
                   double read)
{
    made_shape_init(&f->m, spec);
    plain_profile(&f->profile, flops, read);
    f->req = (struct ps_planner_request){.shape = &f->m.shape,
                                         .profile = &f->profile,
                                         .cost = {.dtype = PS_DTYPE_BF16,
                                                  .tokens = 512,
                                                  .hidden_size = 1024,
                                                  .intermediate_size = 4096,
                                                  .discrete = discrete},
                                         .discrete = discrete,
                                         .micro_count = 8,
                                         .eval_max = 4,
                                         .tokens = 512,
                                         .device_budget = UINT64_MAX,
                                         .host_budget = UINT64_MAX,
                                         .disk_budget = UINT64_MAX,
                                         .strategy = "auto",
                                         .offload_weights = -1,
                                         .offload_activations = -1,
                                         .offload_optimizer = -1};
}

static void tear_down(struct fixture *f)
{
    made_shape_fini(&f->m);
}

static int choose(struct ps_plan *plan, const struct ps_planner_request *req)
{
    struct ps_error err = {0};
    int ret = ps_planner_choose(plan, req, &err);
    if (ret < 0 && ret != PS_ENOFIT)
        print_message("%s\n", err.message);
    if (ret < 0)
        assert_int_equal(err.code, ret);
    return ret;
}

static void must_choose(struct ps_plan *plan, const struct ps_planner_request *req)
{
    assert_int_equal(choose(plan, req), 0);
    assert_true(plan->device_bytes <= req->device_budget);
    assert_true(plan->host_bytes <= req->host_budget);
    assert_true(plan->disk_bytes <= req->disk_budget);
    assert_true(plan->step_s > 0);
    assert_true(plan->candidate_count > 0);
    assert_true(plan->why[0] != '\0');
}

static double chosen_time(const struct ps_planner_request *req)
{
    struct ps_plan plan;
    must_choose(&plan, req);
    double s = plan.step_s * (plan.layout.update != PS_UPDATE_RESIDENT && plan.disk_write > 0 ? 1.25
                              : plan.disk_write > 0                                           ? 1.05
                                                                                              : 1);
    ps_plan_fini(&plan);
    return s;
}

static const char *const names[] = {"auto", "resident", "stream-lora", "horizontal"};
#define NAMES (sizeof names / sizeof *names)
static const char *const full_names[] = {
    "auto",     "resident", "zero-offload",       "zero-infinity",
    "vertical", "fuyou",    "update-next-forward"};
#define FULL_NAMES (sizeof full_names / sizeof *full_names)

static void the_smallest_budgets_named_suffice_and_a_byte_less_does_not(void **state)
{
    (void)state;
    for (int discrete = 0; discrete < 2; discrete++) {
        for (size_t i = 0; i < NAMES; i++) {
            struct fixture f;
            struct ps_plan plan;
            set_up(&f, &small_model, discrete, 1e12, 1e9);
            f.req.strategy = names[i];
            f.req.device_budget = 0;
            f.req.host_budget = 0;
            assert_int_equal(choose(&plan, &f.req), PS_ENOFIT);
            uint64_t device = plan.device_bytes, host = plan.host_bytes;
            assert_true(device > 0);
            f.req.device_budget = device;
            f.req.host_budget = host;
            f.req.disk_budget = plan.disk_bytes;
            must_choose(&plan, &f.req);
            ps_plan_fini(&plan);
            f.req.device_budget = device - 1;
            assert_int_equal(choose(&plan, &f.req), PS_ENOFIT);
            if (discrete) {
                assert_true(host > 0);
                f.req.device_budget = device;
                f.req.host_budget = host - 1;
                assert_int_equal(choose(&plan, &f.req), PS_ENOFIT);
            } else {
                assert_int_equal(host, 0);
            }
            tear_down(&f);
        }
    }
}

static void without_disk_the_smallest_budget_holds_the_boundaries_too(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan with, without;
    set_up(&f, &small_model, false, 1e12, 1e9);
    f.req.device_budget = 0;
    assert_int_equal(choose(&with, &f.req), PS_ENOFIT);
    f.req.disk_budget = 0;
    assert_int_equal(choose(&without, &f.req), PS_ENOFIT);
    assert_true(with.disk_bytes > 0);
    assert_int_equal(without.disk_bytes, 0);
    assert_true(without.device_bytes > with.device_bytes);
    f.req.device_budget = without.device_bytes;
    must_choose(&with, &f.req);
    ps_plan_fini(&with);
    f.req.device_budget = without.device_bytes - 1;
    assert_int_equal(choose(&with, &f.req), PS_ENOFIT);
    tear_down(&f);
}

/* Times as the planner weighs them: ties of half a per cent go to other merits. */
static void more_memory_is_never_slower(void **state)
{
    (void)state;
    static const double flops[] = {5e10, 1e12, 2e13};
    for (int discrete = 0; discrete < 2; discrete++) {
        for (size_t k = 0; k < 3; k++) {
            struct fixture f;
            set_up(&f, &small_model, discrete, flops[k], 1e9);
            double before = INFINITY;
            for (uint64_t mib = 64; mib <= 512; mib += 32) {
                f.req.device_budget = mib * MIB;
                double now = chosen_time(&f.req);
                if (now > before * 1.011)
                    fail_msg("%llu MiB: %g s, with less %g s (flops %g, discrete %d)",
                             (unsigned long long)mib, now, before, flops[k], discrete);
                before = now < before ? now : before;
            }
            tear_down(&f);
        }
    }
}

static void auto_is_the_best_of_the_strategies(void **state)
{
    (void)state;
    static const double flops[] = {5e10, 1e12, 2e13};
    for (int discrete = 0; discrete < 2; discrete++) {
        for (size_t k = 0; k < 3; k++) {
            for (uint64_t mib = 96; mib <= 480; mib += 64) {
                struct fixture f;
                set_up(&f, &small_model, discrete, flops[k], 1e9);
                f.req.device_budget = mib * MIB;
                double best = INFINITY;
                for (size_t i = 1; i < NAMES; i++) {
                    struct ps_plan plan;
                    f.req.strategy = names[i];
                    if (choose(&plan, &f.req) < 0)
                        continue;
                    ps_plan_fini(&plan);
                    double s = chosen_time(&f.req);
                    best = s < best ? s : best;
                }
                f.req.strategy = "auto";
                double s = chosen_time(&f.req);
                assert_true(s <= best * 1.006);
                assert_true(s >= best * 0.994);
                tear_down(&f);
            }
        }
    }
}

static void slow_compute_hides_the_disk_and_fast_compute_waits_for_it(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    set_up(&f, &small_model, false, 1e10, 1e9);
    f.req.device_budget = 90 * MIB;
    must_choose(&plan, &f.req);
    assert_int_equal(plan.bottleneck, PS_LANE_COMPUTE);
    assert_true(plan.tokens_per_pass > plan.break_even_tokens);
    assert_true(plan.slowdown < 1.05);
    ps_plan_fini(&plan);
    tear_down(&f);

    set_up(&f, &small_model, false, 1e14, 1e9);
    f.req.device_budget = 90 * MIB;
    must_choose(&plan, &f.req);
    assert_string_equal(plan.layout.strategy, "stream-lora");
    assert_int_equal(plan.bottleneck, PS_LANE_DISK_WEIGHTS);
    assert_int_equal(plan.layout.group, 8);
    assert_true(plan.tokens_per_pass < plan.break_even_tokens);
    assert_true(plan.slowdown > 2);
    double layer_major = plan.step_s;
    ps_plan_fini(&plan);
    f.req.strategy = "horizontal";
    must_choose(&plan, &f.req);
    assert_int_equal(plan.layout.group, 1);
    assert_true(plan.step_s > 2 * layer_major);
    ps_plan_fini(&plan);
    tear_down(&f);
}

/* Forward needs a third of the compute and half of the reads, so at N* itself neither hides the
 * other quite. Same layout, tokens scaled from N*-quarter to four N*: the step is the longer of
 * reads and compute. */
static void break_even_tokens_are_where_compute_takes_as_long_as_the_reads(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan, scaled;
    struct shape_spec deep = small_model;
    deep.n_layer = 24;
    set_up(&f, &deep, false, 1e12, 1e9);
    f.req.device_budget = 120 * MIB;
    f.req.strategy = "stream-lora";
    f.req.prefetch_depth = 2;
    f.req.offload_activations = PS_PLAN_RECOMPUTE;
    f.req.tokens = 512000;
    must_choose(&plan, &f.req);
    assert_true(plan.break_even_tokens > 0);
    double reads = (double)plan.disk_read / 1e9;
    static const double times[] = {0.25, 0.5, 1, 2, 4};
    for (size_t i = 0; i < 5; i++) {
        struct fixture g;
        double tokens = times[i] * plan.break_even_tokens;
        double scale = tokens / plan.tokens_per_pass;
        struct shape_spec spec = deep;
        spec.layer_flops *= scale;
        set_up(&g, &spec, false, 1e12, 1e9);
        g.req.tokens = (int64_t)(512000 * scale + 0.5);
        g.req.cost.tokens = 512;
        g.req.placement = &plan.layout;
        must_choose(&scaled, &g.req);
        double longer = reads * (times[i] > 1 ? times[i] : 1);
        assert_true(scaled.step_s >= longer * 0.999);
        if (!(scaled.step_s <= longer * (times[i] == 1 ? 1.25 : 1.1)))
            fail_msg("%g N*: %g s, reads or compute %g s", times[i], scaled.step_s, longer);
        /* N* is a property of layout and machine, not of the tokens. */
        assert_true(fabs(scaled.break_even_tokens / plan.break_even_tokens - 1) < 0.01);
        ps_plan_fini(&scaled);
        tear_down(&g);
    }
    ps_plan_fini(&plan);
    tear_down(&f);
}

/* Every proposal of every strategy, simulated. */
static void bounds_are_below_the_simulated_time_and_reads_are_exact(void **state)
{
    (void)state;
    int compared = 0;
    for (int discrete = 0; discrete < 2; discrete++) {
        for (int direct = 0; direct < 2; direct++) {
            struct shape_spec spec = small_model;
            spec.direct = direct;
            for (uint64_t mib = 120; mib <= 360; mib += 120) {
                struct fixture f;
                struct ps_cost_model cost;
                struct ps_error err = {0};
                set_up(&f, &spec, discrete, 2e12, 1e9);
                f.m.shape.first_trained = mib == 240 ? 3 : 0;
                f.req.device_budget = mib * MIB;
                f.req.host_budget = 30 * MIB;
                ps_profile_cost(&f.profile, &f.req.cost, &cost);
                for (int s = 0; ps_strategy_at(s); s++) {
                    struct ps__trial t = {0};
                    if (!ps_strategy_at(s)->frozen)
                        continue;
                    for (int i = 0; i < 60; i++) {
                        uint64_t tasks = 0;
                        int ret = ps_strategy_at(s)->candidate(&f.req, i, &t.layout, &err);
                        assert_true(ret >= 0);
                        if (ret)
                            break;
                        assert_int_equal(ps__estimate_layout(&t.estimate, &f.req, &cost, &t.layout),
                                         0);
                        assert_int_equal(ps__trial_simulate(&t, &f.req, &cost, false, &tasks, &err),
                                         0);
                        assert_true(t.estimate.bound_s <= t.step_s * 1.0001);
                        assert_int_equal(t.estimate.read_bytes, t.sim.bytes[PS_LANE_DISK_WEIGHTS]);
                        ps_step_layout_fini(&t.layout);
                        compared++;
                    }
                }
                tear_down(&f);
            }
        }
    }
    assert_true(compared > 500);
}

/* Layers at each level. */
static void count_levels(const struct ps_plan *plan, int32_t count[PS_RECOMPUTE_COUNT])
{
    memset(count, 0, PS_RECOMPUTE_COUNT * sizeof *count);
    for (int32_t l = 0; l < 8; l++)
        count[plan->layout.recompute[l]]++;
}

static void more_memory_recomputes_less_a_level_at_a_time(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    int32_t count[PS_RECOMPUTE_COUNT];
    set_up(&f, &small_model, false, 1e12, 1e9);
    f.req.strategy = "resident";
    f.req.offload_activations = PS_PLAN_RECOMPUTE;
    must_choose(&plan, &f.req);
    const uint64_t least = plan.device_bytes;
    const double all_again = plan.step_s;
    double before = plan.step_s;
    ps_plan_fini(&plan);
    f.req.offload_activations = -1;
    f.req.disk_budget = 0;
    int between = 0;
    for (int k = 0; k <= 40; k++) { /* a layer is 5 MiB */
        f.req.device_budget = least + (uint64_t)k * MIB;
        must_choose(&plan, &f.req);
        count_levels(&plan, count);
        between += count[1] + count[2] + count[3] > 0;
        assert_true(plan.step_s <= before * 1.0001);
        before = plan.step_s;
        if (k == 20) {
            assert_true(plan.step_s < 0.95 * all_again);
            assert_true(count[0] > 1 && count[4] > 1);
        }
        ps_plan_fini(&plan);
    }
    assert_true(between > 20);
    assert_true(before < 0.8 * all_again);
    tear_down(&f);
}

static void dear_attention_is_kept_in_all_layers_first(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    int32_t count[PS_RECOMPUTE_COUNT];
    set_up(&f, &small_model, false, 1e12, 1e9);
    f.m.shape.recompute_flops[PS_RECOMPUTE_R4] *= 2; /* attention as much as all the rest */
    f.req.strategy = "resident";
    f.req.offload_activations = PS_PLAN_RECOMPUTE;
    must_choose(&plan, &f.req);
    const uint64_t least = plan.device_bytes;
    ps_plan_fini(&plan);
    f.req.offload_activations = -1;
    f.req.disk_budget = 0;
    for (int k = 0; k < 30; k++) {
        f.req.device_budget = least + (uint64_t)k * MIB;
        must_choose(&plan, &f.req);
        count_levels(&plan, count);
        if (count[4] > 1) /* the last layer never computes anything again */
            assert_int_equal(count[0] + count[1] + count[2], 0);
        if (k == 25)
            assert_true(count[4] == 1 && count[0] > 0 && count[3] > 0);
        ps_plan_fini(&plan);
    }
    tear_down(&f);
}

/* As far as the link has time for it. */
static void kept_activations_are_moved_while_the_link_has_time(void **state)
{
    (void)state;
    static const double link[] = {40e9, 1e6};
    int32_t moved[2] = {0};
    for (size_t i = 0; i < 2; i++) {
        struct fixture f;
        struct ps_plan plan;
        set_up(&f, &small_model, true, 1e12, 1e9);
        f.profile.copy_h2d = f.profile.copy_d2h = link[i];
        f.req.strategy = "resident";
        f.req.offload_activations = PS_PLAN_RECOMPUTE;
        must_choose(&plan, &f.req);
        const double again = plan.step_s;
        f.req.device_budget = plan.device_bytes + 12 * MIB;
        ps_plan_fini(&plan);
        f.req.offload_activations = -1;
        f.req.disk_budget = 0;
        must_choose(&plan, &f.req);
        for (int32_t l = 0; l < 8; l++) {
            assert_true(plan.layout.saved[l] != PS_TIER_DISK);
            moved[i] += plan.layout.saved[l] == PS_TIER_HOST;
        }
        assert_true(plan.step_s <= again);
        if (i == 0)
            assert_true(plan.step_s < 0.8 * again);
        ps_plan_fini(&plan);
        tear_down(&f);
    }
    assert_int_equal(moved[0], 7); /* the last one computes nothing again */
    assert_int_equal(moved[1], 0);
}

static void the_cache_at_the_turns_saves_what_fits(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    set_up(&f, &small_model, false, 1e14, 1e9);
    f.req.device_budget = 72 * MIB;
    f.req.strategy = "stream-lora";
    f.req.micro_count = 1;
    must_choose(&plan, &f.req);
    int32_t pinned = 0;
    for (int32_t l = 0; l < 8; l++)
        pinned += plan.layout.weight[l + 1] == PS_TIER_DEVICE;
    int32_t held = pinned + plan.layout.near_slots;
    assert_true(held >= 3);
    assert_true(held < 8);
    uint64_t embed = plan.layout.weight[0] == PS_TIER_DISK ? 12 * MIB : 0;
    /* 2 (L - K) layers and the embedding; slots that the embedding takes hold no layer at the turn.
     */
    assert_true(plan.disk_read >= 2 * (uint64_t)(8 - held) * 8 * MIB + embed);
    assert_true(plan.disk_read <= 2 * (uint64_t)(8 - held + 2) * 8 * MIB + embed);
    uint64_t cached = plan.disk_read;
    ps_plan_fini(&plan);
    f.req.ablate = PS_ABLATE_TURNS | PS_ABLATE_CROSS_STEP;
    must_choose(&plan, &f.req);
    assert_true(plan.disk_read > cached);
    assert_int_equal(plan.layout.ablate, f.req.ablate);
    ps_plan_fini(&plan);
    tear_down(&f);
}

static void what_the_request_says_of_weights_and_activations_is_honoured(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    set_up(&f, &small_model, true, 1e12, 1e9);
    f.req.device_budget = 300 * MIB;
    f.req.offload_weights = PS_TIER_DISK;
    must_choose(&plan, &f.req);
    for (int32_t l = 0; l < 8; l++)
        assert_int_equal(plan.layout.weight[l + 1], PS_TIER_DISK);
    ps_plan_fini(&plan);
    f.req.offload_weights = PS_TIER_HOST;
    must_choose(&plan, &f.req);
    for (int32_t l = 0; l < 8; l++)
        assert_int_equal(plan.layout.weight[l + 1], PS_TIER_HOST);
    assert_int_equal(plan.disk_read, 0);
    ps_plan_fini(&plan);
    f.req.offload_weights = PS_TIER_DEVICE;
    must_choose(&plan, &f.req);
    assert_string_equal(plan.layout.strategy, "resident");
    ps_plan_fini(&plan);
    f.req.strategy = "stream-lora";
    assert_int_equal(choose(&plan, &f.req), PS_EUSAGE);
    f.req.strategy = "auto";
    f.req.offload_weights = -1;
    static const int acts[] = {PS_TIER_DISK, PS_TIER_HOST, PS_TIER_DEVICE, PS_PLAN_RECOMPUTE};
    for (size_t i = 0; i < 4; i++) {
        f.req.offload_activations = acts[i];
        must_choose(&plan, &f.req);
        for (int32_t l = 0; l < 8; l++) {
            if (acts[i] != PS_PLAN_RECOMPUTE)
                assert_int_equal(plan.layout.boundary[l], acts[i]);
            assert_int_equal(plan.layout.recompute[l] == PS_RECOMPUTE_R0,
                             acts[i] == PS_TIER_DEVICE);
        }
        ps_plan_fini(&plan);
    }
    f.req.offload_activations = -1;
    f.req.strategy = "stream-lora";
    f.req.prefetch_depth = 4;
    f.req.micro_count = 1;
    must_choose(&plan, &f.req);
    assert_int_equal(plan.layout.near_slots, 5);
    ps_plan_fini(&plan);
    f.req.micro_count = 8;
    f.req.ablate = PS_ABLATE_LAYER_MAJOR;
    must_choose(&plan, &f.req);
    assert_int_equal(plan.layout.group, 1);
    ps_plan_fini(&plan);
    tear_down(&f);
}

static void a_placement_is_taken_as_it_is(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan, again;
    set_up(&f, &small_model, true, 1e12, 1e9);
    f.req.device_budget = 120 * MIB;
    f.req.host_budget = 100 * MIB;
    must_choose(&plan, &f.req);
    f.req.placement = &plan.layout;
    must_choose(&again, &f.req);
    assert_true(again.step_s == plan.step_s);
    assert_int_equal(again.device_bytes, plan.device_bytes);
    assert_int_equal(again.candidate_count, 1);
    ps_plan_fini(&again);
    f.req.device_budget = plan.device_bytes - 1;
    assert_int_equal(choose(&again, &f.req), PS_ENOFIT);
    assert_int_equal(again.device_bytes, plan.device_bytes);
    ps_plan_fini(&plan);
    tear_down(&f);
}

static void trained_base_weights_that_fit_stay_where_they_are(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    struct shape_spec spec = small_model;
    spec.full = true;
    spec.embed_blocks = 1;
    set_up(&f, &spec, false, 1e12, 1e9);
    must_choose(&plan, &f.req);
    assert_string_equal(plan.layout.strategy, "resident");
    assert_int_equal(plan.layout.near_slots, 0);
    assert_true(plan.break_even_tokens == 0);
    ps_plan_fini(&plan);
    f.req.strategy = "stream-lora";
    assert_int_equal(choose(&plan, &f.req), PS_EUSAGE);
    f.req.strategy = "nonsense";
    assert_int_equal(choose(&plan, &f.req), PS_EUSAGE);
    tear_down(&f);
}

static void generation_takes_all_prompts_through_one_pass(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    /* Whole prompts would hide the reads many times over; single tokens do not. */
    set_up(&f, &small_model, false, 1e11, 1e9);
    f.m.shape.trains = false;
    f.m.shape.cache_bytes = MIB;
    f.req.eval_max = 6;
    f.req.device_budget = 90 * MIB;
    must_choose(&plan, &f.req);
    assert_int_equal(plan.layout.eval_group, 6);
    assert_true(plan.tokens_per_pass == 6);
    assert_int_equal(plan.bottleneck, PS_LANE_DISK_WEIGHTS);
    assert_true(fabs(plan.tokens_per_s * plan.step_s - 6) < 1e-6);
    ps_plan_fini(&plan);
    f.req.device_budget = 60 * MIB;
    must_choose(&plan, &f.req);
    assert_true(plan.layout.eval_group < 6);
    assert_true(plan.layout.eval_group >= 1);
    ps_plan_fini(&plan);
    tear_down(&f);
}

static void an_evaluation_takes_enough_sequences_to_hide_the_reads(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    set_up(&f, &small_model, false, 1e12, 1e9);
    f.m.shape.trains = false;
    f.req.eval_max = 64;
    f.req.device_budget = 60 * MIB;
    must_choose(&plan, &f.req);
    assert_true(plan.tokens_per_pass > plan.break_even_tokens);
    assert_true(plan.slowdown < 1.2);
    ps_plan_fini(&plan);
    tear_down(&f);
}

static void a_plan_that_writes_is_chosen_only_where_it_pays(void **state)
{
    (void)state;
    struct fixture f;
    struct ps_plan plan;
    set_up(&f, &small_model, false, 1e9, 1e9); /* compute alone counts */
    for (uint64_t mib = 64; mib <= 200; mib += 8) {
        f.req.device_budget = mib * MIB;
        f.req.offload_activations = PS_PLAN_RECOMPUTE;
        must_choose(&plan, &f.req);
        assert_int_equal(plan.disk_write, 0);
        ps_plan_fini(&plan);
    }
    tear_down(&f);
}

static uint64_t random_state;

static uint64_t random_below(uint64_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (random_state >> 33) % n;
}

static void random_request(struct fixture *f)
{
    struct shape_spec spec = {.n_layer = (int32_t)(1 + random_below(12)),
                              .embed_blocks = (int32_t)(1 + random_below(3)),
                              .layer_bytes = 1 + random_below(4 << 20),
                              .embed_block_bytes = 1 + random_below(4 << 20),
                              .head_bytes = 1 + random_below(1 << 20),
                              .x_bytes = 1 + random_below(256 << 10),
                              .saved_bytes = 1 + random_below(1 << 20),
                              .layer_flops = (double)random_below(1000000000),
                              .direct = random_below(2),
                              .tied = random_below(3) == 0,
                              .full = random_below(5) == 0};
    if (spec.full) {
        spec.embed_blocks = 1;
        spec.granule_params = random_below(2) ? 0 : 1u << (17 + random_below(4));
        spec.micro_max = (int32_t)(1 + random_below(9));
    }
    set_up(f, &spec, random_below(2), 1e10, 1e9);
    struct ps_planner_request *r = &f->req;
    f->m.shape.first_trained = spec.full ? 0 : (int32_t)random_below((uint64_t)spec.n_layer + 1);
    f->m.shape.trains = spec.full || random_below(4) > 0;
    f->m.shape.cache_bytes = f->m.shape.trains ? 0 : random_below(2) * 10000;
    r->micro_count = spec.full ? spec.micro_max : (int32_t)(1 + random_below(9));
    r->eval_max = (int32_t)(1 + random_below(9));
    r->device_budget = random_below(32 << 20);
    r->host_budget = random_below(24 << 20);
    r->disk_budget = random_below(2) ? UINT64_MAX : random_below(4 << 20);
    r->strategy = spec.full ? full_names[random_below(FULL_NAMES)] : names[random_below(NAMES)];
    r->clip = (enum ps_clip_mode)random_below(4);
    r->prefetch_depth = random_below(4) ? 0 : (int32_t)random_below(5);
    r->ablate = random_below(3) ? 0 : (unsigned)random_below(32);
    static const int acts[] = {-1, -1, -1, PS_TIER_DEVICE, PS_TIER_DISK, PS_PLAN_RECOMPUTE};
    r->offload_activations = acts[random_below(6)];
}

static void random_requests_get_a_sound_plan_or_budgets_that_suffice(void **state)
{
    (void)state;
    int fit = 0;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct fixture f;
        struct ps_plan plan;
        random_state = seed;
        random_request(&f);
        int ret = choose(&plan, &f.req);
        if (ret == PS_ENOFIT) {
            f.req.device_budget = plan.device_bytes;
            f.req.host_budget = plan.host_bytes;
            if (plan.disk_bytes > f.req.disk_budget)
                f.req.disk_budget = plan.disk_bytes;
            ret = choose(&plan, &f.req);
        } else {
            fit++;
        }
        if (ret != 0)
            fail_msg("seed %llu: %d", (unsigned long long)seed, ret);
        assert_true(plan.device_bytes <= f.req.device_budget);
        assert_true(plan.host_bytes <= f.req.host_budget || !f.req.discrete);
        assert_true(plan.disk_bytes <= f.req.disk_budget);
        assert_true(plan.serial_s >= plan.step_s * 0.999);
        assert_true(plan.candidate_count <= PS_PLAN_CANDIDATE_MAX);
        ps_plan_fini(&plan);
        tear_down(&f);
    }
    assert_true(fit > 50);
    assert_true(fit < 350);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_smallest_budgets_named_suffice_and_a_byte_less_does_not),
        cmocka_unit_test(without_disk_the_smallest_budget_holds_the_boundaries_too),
        cmocka_unit_test(more_memory_is_never_slower),
        cmocka_unit_test(auto_is_the_best_of_the_strategies),
        cmocka_unit_test(slow_compute_hides_the_disk_and_fast_compute_waits_for_it),
        cmocka_unit_test(break_even_tokens_are_where_compute_takes_as_long_as_the_reads),
        cmocka_unit_test(bounds_are_below_the_simulated_time_and_reads_are_exact),
        cmocka_unit_test(more_memory_recomputes_less_a_level_at_a_time),
        cmocka_unit_test(dear_attention_is_kept_in_all_layers_first),
        cmocka_unit_test(kept_activations_are_moved_while_the_link_has_time),
        cmocka_unit_test(the_cache_at_the_turns_saves_what_fits),
        cmocka_unit_test(what_the_request_says_of_weights_and_activations_is_honoured),
        cmocka_unit_test(a_placement_is_taken_as_it_is),
        cmocka_unit_test(trained_base_weights_that_fit_stay_where_they_are),
        cmocka_unit_test(generation_takes_all_prompts_through_one_pass),
        cmocka_unit_test(an_evaluation_takes_enough_sequences_to_hide_the_reads),
        cmocka_unit_test(random_requests_get_a_sound_plan_or_budgets_that_suffice),
        cmocka_unit_test(a_plan_that_writes_is_chosen_only_where_it_pays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
