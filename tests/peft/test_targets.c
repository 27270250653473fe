/* --lora-target and --lora-layers: which linears they choose, and every error. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "peft/targets.h"
#include "runtime/model/params.h"

#define LAYERS 12

/* Layers as a bit mask. */
static unsigned layers(const char *text)
{
    bool on[LAYERS + 1];
    on[LAYERS] = true; /* canary */
    struct ps_error err = {0};
    if (ps_layers_parse(on, LAYERS, text, "lora-layers", &err) < 0)
        fail_msg("%s", err.message);
    assert_true(on[LAYERS]);
    unsigned mask = 0;
    for (int i = 0; i < LAYERS; i++)
        mask |= on[i] ? 1u << i : 0;
    return mask;
}

static void layers_are_read_in_every_form(void **state)
{
    (void)state;
    assert_int_equal(layers("all"), 0xfff);
    assert_int_equal(layers("last:1"), 0x800);
    assert_int_equal(layers("last:12"), 0xfff);
    assert_int_equal(layers("0-11"), 0xfff);
    assert_int_equal(layers("3"), 0x008);
    assert_int_equal(layers("3-3"), 0x008);
    assert_int_equal(layers("0,2-4,11"), 0x81d);
    assert_int_equal(layers("4,4,4-5"), 0x030);
}

static void layers_that_cannot_be_read_name_the_option_and_the_range(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "last:",
                                      "last:0",
                                      "last:13",
                                      "last:1 ",
                                      "last:-1",
                                      "12",
                                      "0-12",
                                      "5-4",
                                      "-3",
                                      "3-",
                                      "1,,2",
                                      "1,",
                                      ",1",
                                      "1 2",
                                      "x",
                                      "All",
                                      "1-2-3",
                                      "0x1",
                                      "99999999999999999999",
                                      "0-99999999999999999999",
                                      "last:99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        bool on[LAYERS];
        struct ps_error err = {0};
        if (ps_layers_parse(on, LAYERS, bad[i], "train-layers", &err) != PS_EUSAGE)
            fail_msg("'%s' was accepted", bad[i]);
        assert_string_equal(err.field, "train-layers");
        assert_non_null(strstr(err.message, "0 to 11"));
        assert_true(strlen(err.advice) > 0);
    }
}

static bool site_on[LAYERS * PS_LINEAR_COUNT + 2];

static int choose(const char *target, const char *layer, struct ps_error *err)
{
    struct ps_model_config cfg = {.n_layer = LAYERS};
    memset(err, 0, sizeof *err);
    memset(site_on, 1, sizeof site_on); /* stale */
    return ps_targets_select(site_on, &cfg, target, layer, err);
}

/* Linears of every chosen layer equal `mask`; the others have none. */
static void expect(const char *target, const char *layer, unsigned layer_mask, unsigned mask)
{
    struct ps_error err;
    if (choose(target, layer, &err) < 0)
        fail_msg("%s", err.message);
    for (int i = 0; i < LAYERS * PS_LINEAR_COUNT; i++) {
        bool want =
            (layer_mask >> (i / PS_LINEAR_COUNT) & 1) && (mask >> (i % PS_LINEAR_COUNT) & 1);
        if (site_on[i] != want)
            fail_msg("%s %s: layer %d, %s", target, layer, i / PS_LINEAR_COUNT,
                     ps_linear_name((enum ps_role)(i % PS_LINEAR_COUNT)));
    }
}

static void expect_outside(bool embed, bool head)
{
    assert_int_equal(site_on[ps_site_idx(LAYERS, -1, PS_ROLE_EMBED)], embed);
    assert_int_equal(site_on[ps_site_idx(LAYERS, -1, PS_ROLE_HEAD)], head);
}

static void the_embedding_and_the_head_are_chosen_by_name_or_path(void **state)
{
    (void)state;
    expect("all", "all", 0xfff, 0x7f);
    expect_outside(false, false);
    expect("q_proj,embed_tokens", "last:1", 0x800, 0x01);
    expect_outside(true, false);
    expect("lm_head,all", "0", 0x001, 0x7f);
    expect_outside(false, true);
    expect("embed_tokens", "all", 0xfff, 0);
    expect_outside(true, false);
    expect("model\\.embed_tokens|lm_head|.*q_proj", "1", 0x002, 0x01);
    expect_outside(true, true);
    expect(".*self_attn.*", "all", 0xfff, 0x0f);
    expect_outside(false, false);
}

static void sites_paths_and_numbers_belong_together(void **state)
{
    (void)state;
    for (size_t i = 0; i < ps_site_count(LAYERS); i++) {
        int32_t layer;
        enum ps_role role;
        char path[PS_SITE_PATH_MAX];
        ps_site_at(LAYERS, i, &layer, &role);
        assert_int_equal(ps_site_idx(LAYERS, layer, role), i);
        ps_site_path(path, layer, role);
        if (i == 10 * PS_LINEAR_COUNT + 6)
            assert_string_equal(path, "model.layers.10.mlp.down_proj");
        if (i == LAYERS * PS_LINEAR_COUNT)
            assert_string_equal(path, "model.embed_tokens");
        if (i == LAYERS * PS_LINEAR_COUNT + 1)
            assert_string_equal(path, "lm_head");
    }
}

static void words_and_lists_choose_their_linears(void **state)
{
    (void)state;
    expect("all", "all", 0xfff, 0x7f);
    expect("attn", "last:2", 0xc00, 0x0f);
    expect("q_proj", "all", 0xfff, 0x01);
    expect("v_proj,q_proj", "0,11", 0x801, 0x05);
    expect("gate_proj,up_proj,down_proj", "1-2", 0x006, 0x70);
    expect("o_proj,o_proj", "all", 0xfff, 0x08);
    expect("attn,down_proj", "0", 0x001, 0x4f);
}

static void regexes_match_the_whole_module_path(void **state)
{
    (void)state;
    expect(".*self_attn\\.[qv]_proj", "all", 0xfff, 0x05);
    expect(".*(q|k)_proj", "3", 0x008, 0x03);
    expect("model\\.layers\\.(0|11)\\..*down_proj", "all", 0x801, 0x40);
    expect("model\\.layers\\.1\\..*", "all", 0x002, 0x7f); /* not 10 or 11 */
    expect(".*\\.mlp\\..*", "all", 0xfff, 0x70);
}

static void targets_that_match_nothing_are_errors_with_the_names(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "query",
                                      "q_proj,",
                                      ",q_proj",
                                      "q_proj,wrong",
                                      "Q_PROJ",
                                      "q_proj k_proj",
                                      ".*fc1",
                                      "self_attn.q_proj", /* a part of the path */
                                      "model\\.layers\\.12\\..*"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct ps_error err;
        if (choose(bad[i], "all", &err) != PS_EUSAGE)
            fail_msg("'%s' was accepted", bad[i]);
        assert_string_equal(err.field, "lora-target");
        assert_non_null(strstr(err.advice, "down_proj"));
    }
    struct ps_error err;
    /* a target that exists, outside the chosen layers */
    assert_int_equal(choose("model\\.layers\\.0\\..*", "last:1", &err), PS_EUSAGE);
}

static void a_wrong_regex_or_layer_is_named(void **state)
{
    (void)state;
    struct ps_error err;
    assert_int_equal(choose(".*(q_proj", "all", &err), PS_EUSAGE);
    assert_string_equal(err.field, "lora-target");
    assert_non_null(strstr(err.message, "(q_proj"));
    assert_int_equal(choose("all", "last:0", &err), PS_EUSAGE);
    assert_string_equal(err.field, "lora-layers");
    assert_int_equal(choose(".*q_proj", "12", &err), PS_EUSAGE);
    assert_string_equal(err.field, "lora-layers");
}

static void a_regex_that_explodes_is_stopped(void **state)
{
    (void)state;
    struct ps_error err;
    assert_int_equal(choose("((([a-z._0-9]*)*)*)*!", "all", &err), PS_EUSAGE);
    assert_string_equal(err.field, "lora-target");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_are_read_in_every_form),
        cmocka_unit_test(layers_that_cannot_be_read_name_the_option_and_the_range),
        cmocka_unit_test(words_and_lists_choose_their_linears),
        cmocka_unit_test(the_embedding_and_the_head_are_chosen_by_name_or_path),
        cmocka_unit_test(sites_paths_and_numbers_belong_together),
        cmocka_unit_test(regexes_match_the_whole_module_path),
        cmocka_unit_test(targets_that_match_nothing_are_errors_with_the_names),
        cmocka_unit_test(a_wrong_regex_or_layer_is_named),
        cmocka_unit_test(a_regex_that_explodes_is_stopped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
