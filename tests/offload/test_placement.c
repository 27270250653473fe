/* Placement files: what is written reads back; every wrong member is refused with its name. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "offload/planner.h"
#include "runtime/base/file.h"
#include "tests/helpers/step_shape.h"

static const struct shape_spec three_layers = {.n_layer = 3,
                                               .embed_blocks = 2,
                                               .layer_bytes = 8192,
                                               .embed_block_bytes = 4096,
                                               .head_bytes = 4096,
                                               .x_bytes = 4096,
                                               .saved_bytes = 4096,
                                               .layer_flops = 1e6,
                                               .direct = true};

static void fill(struct ps_step_layout *l, const struct ps_step_shape *p, bool discrete)
{
    assert_int_equal(ps_step_layout_init(l, p), 0);
    l->strategy = ps_strategy_stream_lora.name;
    l->discrete = discrete;
    l->group = 4;
    l->eval_group = 3;
    l->near_slots = 2;
    l->raw_slots = 2;
    l->x_ring = 7;
    l->host_ring = discrete ? 3 : 0;
    l->weight[0] = PS_TIER_DISK;
    l->weight[2] = discrete ? PS_TIER_HOST : PS_TIER_DISK;
    l->weight[3] = PS_TIER_DISK;
    l->recompute[2] = PS_RECOMPUTE_R0;
    l->boundary[0] = PS_TIER_DISK;
    l->boundary[1] = discrete ? PS_TIER_HOST : PS_TIER_DEVICE;
}

static void a_saved_placement_reads_back_the_same(void **state)
{
    (void)state;
    for (int discrete = 0; discrete < 2; discrete++) {
        struct made_shape m;
        struct ps_step_layout l, r;
        struct ps_error err = {0};
        made_shape_init(&m, &three_layers);
        fill(&l, &m.shape, discrete);
        assert_int_equal(ps_placement_save(&l, &m.shape, "p.json", &err), 0);
        assert_int_equal(ps_placement_load(&r, "p.json", &m.shape, discrete, &err), 0);
        assert_string_equal(r.strategy, l.strategy);
        assert_int_equal(r.discrete, discrete);
        assert_int_equal(r.group, l.group);
        assert_int_equal(r.eval_group, l.eval_group);
        assert_int_equal(r.near_slots, l.near_slots);
        assert_int_equal(r.raw_slots, l.raw_slots);
        assert_int_equal(r.x_ring, l.x_ring);
        assert_int_equal(r.host_ring, l.host_ring);
        assert_memory_equal(r.weight, l.weight, 5 * sizeof *l.weight);
        assert_memory_equal(r.recompute, l.recompute, 3 * sizeof *l.recompute);
        assert_memory_equal(r.boundary, l.boundary, 3 * sizeof *l.boundary);
        ps_step_layout_fini(&l);
        ps_step_layout_fini(&r);
        made_shape_fini(&m);
    }
}

/* What every strategy of full fine-tuning proposes, through a file and back. */
static void placements_of_full_fine_tuning_read_back_the_same(void **state)
{
    (void)state;
    struct shape_spec spec = three_layers;
    struct ps_profile profile;
    int seen = 0;
    spec.full = true;
    spec.embed_blocks = 1;
    spec.micro_max = 2;
    ps_profile_conservative(&profile);
    for (int discrete = 0; discrete < 2; discrete++) {
        struct made_shape m;
        made_shape_init(&m, &spec);
        struct ps_planner_request req = {.shape = &m.shape,
                                         .profile = &profile,
                                         .cost = {.dtype = PS_DTYPE_BF16,
                                                  .tokens = 8,
                                                  .hidden_size = 32,
                                                  .intermediate_size = 64,
                                                  .discrete = discrete},
                                         .discrete = discrete,
                                         .micro_count = 2,
                                         .eval_max = 1,
                                         .tokens = 8,
                                         .device_budget = 150000,
                                         .host_budget = 300000,
                                         .disk_budget = UINT64_MAX,
                                         .strategy = "auto",
                                         .clip = PS_CLIP_NONE,
                                         .offload_weights = -1,
                                         .offload_activations = -1,
                                         .offload_optimizer = -1};
        for (int s = 0; ps_strategy_at(s); s++) {
            for (int i = 0; ps_strategy_at(s)->full && i < 30; i++) {
                struct ps_step_layout l, r;
                struct ps_error err = {0};
                if (ps_strategy_at(s)->candidate(&req, i, &l, &err))
                    break;
                assert_int_equal(ps_placement_save(&l, &m.shape, "f.json", &err), 0);
                if (ps_placement_load(&r, "f.json", &m.shape, discrete, &err) < 0)
                    fail_msg("%s: %s", l.strategy, err.message);
                assert_string_equal(r.strategy, l.strategy);
                assert_int_equal(r.update, l.update);
                assert_memory_equal(r.weight, l.weight, 5 * sizeof *l.weight);
                if (l.update != PS_UPDATE_RESIDENT) {
                    assert_memory_equal(r.state, l.state, 5 * sizeof *l.state);
                    assert_memory_equal(r.grad, l.grad, 5 * sizeof *l.grad);
                }
                assert_int_equal(r.grad_slots, l.grad_slots);
                assert_int_equal(r.grad_ring, l.grad_ring);
                assert_int_equal(r.state_slots, l.state_slots);
                ps_step_layout_fini(&l);
                ps_step_layout_fini(&r);
                seen++;
            }
        }
        made_shape_fini(&m);
    }
    assert_true(seen > 100);
}

#define WEIGHTS                                                                                    \
    "\"weights\":{\"embed\":\"host\",\"layers\":[\"disk\",\"disk\",\"host\"],\"head\":\"host\"}"
#define A "{\"keep\":false,\"boundary\":\"host\"}"
#define ACTS "\"activations\":[" A "," A "," A "]"
#define HEAD "\"version\":1,\"strategy\":\"stream-lora\",\"near_slots\":2"

static int load(const char *text, struct ps_step_layout *out, struct ps_error *err)
{
    struct made_shape m;
    *err = (struct ps_error){0};
    assert_int_equal(ps_file_write("q.json", text, strlen(text), err), 0);
    made_shape_init(&m, &three_layers);
    int ret = ps_placement_load(out, "q.json", &m.shape, false, err);
    made_shape_fini(&m);
    return ret;
}

static void a_short_file_gets_defaults(void **state)
{
    (void)state;
    struct ps_step_layout l;
    struct ps_error err;
    assert_int_equal(load("{" HEAD "," WEIGHTS "," ACTS "}", &l, &err), 0);
    assert_int_equal(l.group, 1);
    assert_int_equal(l.x_ring, 1);
    assert_int_equal(l.weight[1], PS_TIER_DISK);
    assert_int_equal(l.weight[3], PS_TIER_DEVICE); /* one memory: host is where compute reads */
    assert_int_equal(l.boundary[0], PS_TIER_DEVICE);
    ps_step_layout_fini(&l);
}

static void wrong_files_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *text, *field;
        int code;
    } cases[] = {
        {"[]", "", PS_EFORMAT},
        {"{" WEIGHTS "," ACTS "}", "version", PS_EFORMAT},
        {"{\"version\":2,\"strategy\":\"resident\"," WEIGHTS "," ACTS "}", "version", PS_EFORMAT},
        {"{\"version\":1,\"strategy\":\"x\"," WEIGHTS "," ACTS "}", "strategy", PS_EFORMAT},
        {"{\"version\":1,\"strategy\":5," WEIGHTS "," ACTS "}", "strategy", PS_EFORMAT},
        {"{" HEAD "," WEIGHTS "," ACTS ",\"grup\":1}", "", PS_EFORMAT},
        {"{" HEAD ",\"group\":0," WEIGHTS "," ACTS "}", "group", PS_EFORMAT},
        {"{" HEAD ",\"group\":1e30," WEIGHTS "," ACTS "}", "group", PS_EFORMAT},
        {"{" HEAD ",\"x_ring\":-1," WEIGHTS "," ACTS "}", "x_ring", PS_EFORMAT},
        {"{" HEAD ",\"raw_slots\":\"2\"," WEIGHTS "," ACTS "}", "raw_slots", PS_EFORMAT},
        {"{" HEAD "," ACTS "}", "weights", PS_EFORMAT},
        {"{" HEAD "," WEIGHTS "," ACTS ",\"update\":\"never\"}", "update", PS_EFORMAT},
        {"{" HEAD "," WEIGHTS "," ACTS ",\"update\":\"inside-backward\"}", "optimizer", PS_EFORMAT},
        {"{" HEAD "," WEIGHTS "}", "activations", PS_EFORMAT},
        {"{" HEAD "," WEIGHTS ",\"activations\":[" A "," A "]}", "activations", PS_EFORMAT},
        {"{" HEAD "," WEIGHTS ",\"activations\":[" A "," A ",7]}", "activations[2]", PS_EFORMAT},
        {"{" HEAD "," WEIGHTS ",\"activations\":[" A "," A ",{\"keep\":1,\"boundary\":\"host\"}]}",
         "activations[2]", PS_EFORMAT},
        {"{" HEAD "," WEIGHTS ",\"activations\":[" A "," A
         ",{\"keep\":true,\"boundary\":\"tape\"}]}",
         "activations[2]", PS_EFORMAT},
        {"{" HEAD ",\"weights\":{\"embed\":\"host\",\"layers\":[\"disk\",\"disk\"],\"head\":"
         "\"host\"}," ACTS "}",
         "layers", PS_EFORMAT},
        {"{" HEAD ",\"weights\":{\"embed\":\"host\",\"layers\":[\"disk\",\"disk\",3],\"head\":"
         "\"host\"}," ACTS "}",
         "weights.layers[2]", PS_EFORMAT},
        {"{" HEAD ",\"weights\":{\"embed\":\"host\",\"layers\":[\"disk\",\"disk\",\"disk\"]}," ACTS
         "}",
         "weights.head", PS_EFORMAT},
        /* parts that do not go together */
        {"{" HEAD ",\"weights\":{\"embed\":\"host\",\"layers\":[\"disk\",\"disk\",\"disk\"],"
         "\"head\":\"disk\"}," ACTS "}",
         "placement", PS_EUSAGE},
        {"{" HEAD ",\"group\":4,\"x_ring\":2," WEIGHTS "," ACTS "}", "placement", PS_EUSAGE},
        {"{\"version\":1,\"strategy\":\"stream-lora\"," WEIGHTS "," ACTS "}", "placement",
         PS_EUSAGE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ps_step_layout l;
        struct ps_error err;
        int ret = load(cases[i].text, &l, &err);
        if (ret != cases[i].code || strcmp(err.field, cases[i].field) || strcmp(err.file, "q.json"))
            fail_msg("case %zu: %d, field '%s', file '%s': %s", i, ret, err.field, err.file,
                     err.message);
    }
}

static void every_cut_of_a_good_file_is_refused(void **state)
{
    (void)state;
    const char *good = "{" HEAD "," WEIGHTS "," ACTS "}";
    char text[512];
    for (size_t len = 0; len < strlen(good); len++) {
        struct ps_step_layout l;
        struct ps_error err;
        memcpy(text, good, len);
        text[len] = '\0';
        assert_int_equal(load(text, &l, &err), PS_EFORMAT);
    }
}

static void what_holds_a_placement_stands_for_it(void **state)
{
    (void)state;
    struct ps_step_layout l;
    struct ps_error err;
    assert_int_equal(load("{\"fits\":true,\"placement\":{" HEAD "," WEIGHTS "," ACTS
                          "},\"why\":\"\"}",
                          &l, &err),
                     0);
    assert_int_equal(l.near_slots, 2);
    assert_int_equal(l.weight[1], PS_TIER_DISK);
    ps_step_layout_fini(&l);
    assert_int_equal(load("{\"placement\":[]}", &l, &err), PS_EFORMAT);
    assert_int_equal(load("{\"placement\":{\"placement\":{}}}", &l, &err), PS_EFORMAT);
}

static void a_missing_file_is_named(void **state)
{
    (void)state;
    struct made_shape m;
    struct ps_step_layout l;
    struct ps_error err = {0};
    made_shape_init(&m, &three_layers);
    assert_int_equal(ps_placement_load(&l, "none.json", &m.shape, false, &err), -ENOENT);
    assert_string_equal(err.file, "none.json");
    made_shape_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_saved_placement_reads_back_the_same),
        cmocka_unit_test(placements_of_full_fine_tuning_read_back_the_same),
        cmocka_unit_test(a_short_file_gets_defaults),
        cmocka_unit_test(wrong_files_are_refused_by_name),
        cmocka_unit_test(every_cut_of_a_good_file_is_refused),
        cmocka_unit_test(what_holds_a_placement_stands_for_it),
        cmocka_unit_test(a_missing_file_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
