/* Adapter directories in PEFT's format: round trip, configuration, refusals by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <jansson.h>
#include <math.h>
#include <sys/stat.h>

#include "peft/adapters.h"
#include "peft/lora.h"
#include "tests/helpers/tiny_model.h"

#define SITES (3 * PS_LINEAR_COUNT)

/* A trainer over a tiny model of three layers; site_on NULL: everywhere. */
static struct ps_trainer *trainer(const bool *site_on, int32_t r)
{
    struct tiny_model m = {.dir = "m", .type = "llama", .n_layer = 3};
    tiny_model_write(&m);
    struct ps_trainer_options o = tiny_options(m.dir, PS_MODE_ADAPTER);
    o.adapter = &ps_lora_ops;
    o.adapter_config = (struct ps_adapter_config){
        .method = "lora", .r = r, .alpha = 6, .dropout = 0.05, .use_rslora = r == 2};
    o.site_on = site_on;
    return tiny_trainer(&o);
}

static void save(struct ps_trainer *t, const char *dir, enum ps_dtype dtype)
{
    struct ps_error err = {0};
    assert_int_equal(ps_file_make_dirs(dir, &err), 0);
    if (ps_adapter_dir_save(dir, t, "base/model", dtype, &err) < 0)
        fail_msg("%s", err.message);
}

static json_t *config(const char *dir)
{
    char path[128];
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    json_t *root = json_load_file(path, 0, NULL);
    assert_non_null(root);
    return root;
}

static void a_saved_adapter_loads_bit_for_bit(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct ps_error err = {0};
        struct ps_trainer *a = trainer(NULL, 3);
        struct ps_trainer *b = trainer(NULL, 3);
        tiny_randomise_adapters(a);
        save(a, "fresh", bf16 ? PS_DTYPE_BF16 : PS_DTYPE_F32);
        assert_int_equal(ps_adapter_dir_load("fresh", b, &err), 0);
        for (size_t i = 0; i < ps_trainer_trainable_count(a); i++) {
            const struct ps_trainable *x = ps_trainer_trainable(a, i);
            float *want = x->weight;
            if (bf16)
                for (size_t k = 0; k < x->n; k++)
                    want[k] = ps_bf16_to_f32(ps_f32_to_bf16(want[k]));
            assert_memory_equal(ps_trainer_trainable(b, i)->weight, want, x->n * sizeof(float));
        }
        struct ps_st_file *f;
        assert_int_equal(ps_st_open(&f, "fresh/adapter_model.safetensors", &err), 0);
        assert_int_equal(ps_st_count(f), 2 * SITES);
        const struct ps_st_tensor *t =
            ps_st_find(f, "base_model.model.model.layers.2.mlp.down_proj.lora_A.weight");
        assert_non_null(t);
        assert_int_equal(t->dtype, bf16 ? PS_DTYPE_BF16 : PS_DTYPE_F32);
        assert_int_equal(t->shape[0], 3);
        assert_int_equal(t->shape[1], TINY_INTER);
        ps_st_close(f);
        ps_trainer_destroy(a);
        ps_trainer_destroy(b);
    }
}

static void the_configuration_says_what_peft_needs(void **state)
{
    (void)state;
    struct ps_trainer *t = trainer(NULL, 2);
    save(t, "config", PS_DTYPE_F32);
    json_t *root = config("config");
    json_t *want = json_pack("{s:s, s:s, s:s, s:b, s:i, s:i, s:b, s:b, s:b, s:s, s:n, s:b}",
                             "peft_type", "LORA", "task_type", "CAUSAL_LM",
                             "base_model_name_or_path", "base/model", "inference_mode", 1, "r", 2,
                             "lora_alpha", 6, "use_rslora", 1, "use_dora", 0, "fan_in_fan_out", 0,
                             "bias", "none", "layers_to_transform", "init_lora_weights", 1);
    const char *key;
    json_t *value;
    json_object_foreach(want, key, value) if (!json_equal(json_object_get(root, key), value))
        fail_msg("%s is not as expected", key);
    assert_true(json_real_value(json_object_get(root, "lora_dropout")) == 0.05);
    assert_int_equal(json_array_size(json_object_get(root, "target_modules")), 7);
    json_decref(want);
    json_decref(root);
    struct ps_adapter_config c = {0};
    bool on[SITES + 2];
    struct ps_error err = {0};
    assert_int_equal(ps_adapter_dir_config("config", ps_trainer_config(t), &c, on, NULL, &err), 0);
    assert_string_equal(c.method, "lora");
    assert_int_equal(c.r, 2);
    assert_true(c.alpha == 6);
    assert_true(c.dropout == 0.05);
    assert_true(c.use_rslora);
    for (int i = 0; i < SITES; i++)
        assert_true(on[i]);
    ps_trainer_destroy(t);
}

/* Save with these sites and compare the two fields. */
static void targets(const bool *on, const char *dir, const char *modules, const char *layers)
{
    struct ps_trainer *t = trainer(on, 3);
    struct ps_error err = {0};
    struct ps_adapter_config c = {0};
    bool back[SITES + 2];
    save(t, dir, PS_DTYPE_F32);
    json_t *root = config(dir);
    const char *const want[] = {modules, layers};
    static const char *const key[] = {"target_modules", "layers_to_transform"};
    for (int i = 0; i < 2; i++) {
        json_t *w = json_loads(want[i], JSON_DECODE_ANY, NULL);
        assert_non_null(w);
        if (!json_equal(json_object_get(root, key[i]), w))
            fail_msg("%s: %s is not %s", dir, key[i], want[i]);
        json_decref(w);
    }
    json_decref(root);
    assert_int_equal(ps_adapter_dir_config(dir, ps_trainer_config(t), &c, back, NULL, &err), 0);
    assert_memory_equal(back, on, SITES * sizeof *on);
    ps_trainer_destroy(t);
}

/* PEFT 0.21 loads these three with exactly the tensors that the files hold (tried by hand). */
static void targets_are_names_layers_or_whole_paths(void **state)
{
    (void)state;
    bool on[SITES + 2] = {false};
    for (int l = 0; l < 3; l++)
        on[l * 7 + PS_ROLE_Q] = on[l * 7 + PS_ROLE_UP] = true;
    targets(on, "uniform", "[\"q_proj\", \"up_proj\"]", "null");
    on[PS_ROLE_Q] = on[PS_ROLE_UP] = false;
    targets(on, "partial", "[\"q_proj\", \"up_proj\"]", "[1, 2]");
    on[7 + PS_ROLE_Q] = false;
    targets(on, "irregular",
            "[\"model.layers.1.mlp.up_proj\", \"model.layers.2.self_attn.q_proj\", "
            "\"model.layers.2.mlp.up_proj\"]",
            "null");
}

/* The saved file again, with one tensor renamed, dropped, reshaped or spoilt, or one added. */
enum damage { RENAMED, DROPPED, RESHAPED, SPOILT, ADDED };
#define VICTIM "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"

static void damage(const char *dir, enum damage d, const char *new_name)
{
    char path[128];
    struct ps_error err = {0};
    struct ps_st_file *f;
    struct ps_st_spec spec[2 * SITES + 1] = {0};
    size_t index[2 * SITES + 1];
    size_t n = 0;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    assert_int_equal(ps_st_open(&f, path, &err), 0);
    for (size_t i = 0; i < ps_st_count(f); i++) {
        const struct ps_st_tensor *t = ps_st_at(f, i);
        bool hit = strcmp(t->name, VICTIM) == 0;
        if (hit && d == DROPPED)
            continue;
        index[n] = i;
        spec[n] =
            (struct ps_st_spec){.name = t->name, .rank = 2, .shape = {t->shape[0], t->shape[1]}};
        if (hit && d == RENAMED)
            spec[n].name = new_name;
        if (hit && d == RESHAPED) {
            spec[n].shape[0] = t->shape[1];
            spec[n].shape[1] = t->shape[0];
        }
        n++;
        if (hit && d == ADDED) {
            spec[n] = spec[n - 1];
            spec[n].name = new_name;
            index[n++] = i;
        }
    }
    struct ps_st_writer *w;
    assert_int_equal(ps_st_writer_create(&w, path, spec, n, &err), 0);
    for (size_t i = 0; i < n; i++) {
        float x[256];
        const struct ps_st_tensor *t = ps_st_at(f, index[i]);
        assert_true(t->elements <= 256);
        assert_int_equal(ps_st_read_as(f, t, PS_DTYPE_F32, x, &err), 0);
        if (d == SPOILT && strcmp(t->name, VICTIM) == 0)
            x[t->elements - 1] = NAN;
        assert_int_equal(ps_st_writer_append(w, x, (size_t)t->elements * 4, &err), 0);
    }
    assert_int_equal(ps_st_writer_close(w, &err), 0);
    ps_st_close(f);
}

static void damaged_tensors_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        enum damage d;
        const char *name;  /* new */
        const char *field; /* at fault */
        bool config_too;   /* refused already when the directory is examined */
    } c[] = {
        {DROPPED, NULL, VICTIM, false},
        {RESHAPED, NULL, VICTIM, false},
        {SPOILT, NULL, VICTIM, false},
        {ADDED, VICTIM "s", VICTIM "s", false},
        {ADDED, "base_model.model.model.layers.1.self_attn.k_proj.lora_magnitude_vector",
         "base_model.model.model.layers.1.self_attn.k_proj.lora_magnitude_vector", false},
        {ADDED, "base_model.model.lm_head.weight", "base_model.model.lm_head.weight", true},
        {ADDED, "base_model.model.model.layers.3.mlp.up_proj.lora_A.weight",
         "base_model.model.model.layers.3.mlp.up_proj.lora_A.weight", true},
        {ADDED, "base_model.model.model.layers.99999999999999999999.mlp.up_proj.lora_A.weight",
         "base_model.model.model.layers.99999999999999999999.mlp.up_proj.lora_A.weight", true},
        {ADDED, "base_model.model.model.layers.-1.mlp.up_proj.lora_A.weight",
         "base_model.model.model.layers.-1.mlp.up_proj.lora_A.weight", true},
        {ADDED, "base_model.model.model.layers.1.mlp.q_proj.lora_A.weight",
         "base_model.model.model.layers.1.mlp.q_proj.lora_A.weight", true},
        {RENAMED, "x", "x", true},
    };
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        struct ps_error err = {0};
        struct ps_adapter_config cfg = {0};
        bool on[SITES + 2];
        struct ps_trainer *t = trainer(NULL, 3);
        save(t, "hurt", PS_DTYPE_F32);
        damage("hurt", c[i].d, c[i].name);
        int ret = ps_adapter_dir_config("hurt", ps_trainer_config(t), &cfg, on, NULL, &err);
        assert_int_equal(ret, c[i].config_too ? PS_EFORMAT : 0);
        if (!c[i].config_too)
            ret = ps_adapter_dir_load("hurt", t, &err);
        assert_int_equal(ret, PS_EFORMAT);
        assert_string_equal(err.field, c[i].field);
        assert_non_null(strstr(err.file, "adapter_model.safetensors"));
        ps_trainer_destroy(t);
    }
}

/* The saved configuration with one field replaced (JSON text). */
static int with_field(const char *key, const char *json, struct ps_error *err)
{
    static struct ps_model_config model;
    struct ps_adapter_config c = {0};
    bool on[SITES + 2];
    json_t *root = config("fields");
    json_t *was = json_deep_copy(root);
    json_t *value = json_loads(json, JSON_DECODE_ANY, NULL);
    assert_non_null(value);
    json_object_set_new(root, key, value);
    assert_int_equal(json_dump_file(root, "fields/adapter_config.json", 0), 0);
    memset(err, 0, sizeof *err);
    model.n_layer = 3;
    int ret = ps_adapter_dir_config("fields", &model, &c, on, NULL, err);
    assert_int_equal(json_dump_file(was, "fields/adapter_config.json", 0), 0);
    json_decref(root);
    json_decref(was);
    return ret;
}

static void fields_that_change_the_function_are_refused_by_name(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"fan_in_fan_out", "true"},
        {"lora_bias", "true"},
        {"bias", "\"some\""},
        {"modules_to_save", "[\"norm\"]"},
        {"layer_replication", "[[0, 2]]"},
        {"trainable_token_indices", "[1]"},
        {"target_parameters", "[\"x\"]"},
        {"use_qalora", "true"},
        {"use_bdlora", "{\"nblocks\": 2}"},
        {"kasa_config", "{\"a\": 1}"},
        {"monteclora_config", "{\"a\": 1}"},
        {"velora_config", "{\"a\": 1}"},
        {"arrow_config", "{\"a\": 1}"},
        {"alora_invocation_tokens", "[5]"},
        {"init_lora_weights", "\"pissa\""},
        {"init_lora_weights", "\"olora\""},
        {"peft_type", "\"LOHA\""},
    };
    struct ps_error err;
    struct ps_trainer *t = trainer(NULL, 3);
    save(t, "fields", PS_DTYPE_F32);
    ps_trainer_destroy(t);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (with_field(bad[i][0], bad[i][1], &err) != PS_EUNSUPPORTED)
            fail_msg("%s = %s was accepted", bad[i][0], bad[i][1]);
        assert_string_equal(err.field, bad[i][0]);
        assert_string_equal(err.file, "fields/adapter_config.json");
    }
    static const char *const wrong[][2] = {
        {"r", "0"},         {"r", "-4"},           {"r", "\"8\""},           {"lora_alpha", "0"},
        {"r", "3.5"},       {"lora_dropout", "1"}, {"lora_dropout", "-0.1"}, {"use_rslora", "1"},
        {"peft_type", "3"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        if (with_field(wrong[i][0], wrong[i][1], &err) >= 0)
            fail_msg("%s = %s was accepted", wrong[i][0], wrong[i][1]);
        assert_string_equal(err.field, wrong[i][0]);
    }
    static const char *const fine[][2] = {
        {"use_dora", "null"},      {"rank_pattern", "{}"},
        {"modules_to_save", "[]"}, {"init_lora_weights", "true"},
        {"unknown_later", "7"},    {"init_lora_weights", "\"gaussian\""},
        {"lora_alpha", "2.5"},     {"kasa_config", "null"},
    };
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++)
        if (with_field(fine[i][0], fine[i][1], &err) < 0)
            fail_msg("%s = %s: %s", fine[i][0], fine[i][1], err.message);
}

static void missing_files_are_named(void **state)
{
    (void)state;
    struct ps_model_config model = {.n_layer = 3};
    struct ps_adapter_config c = {0};
    struct ps_error err = {0};
    bool on[SITES + 2];
    assert_true(ps_adapter_dir_config("absent", &model, &c, on, NULL, &err) < 0);
    assert_string_equal(err.file, "absent/adapter_config.json");
    struct ps_trainer *t = trainer(NULL, 3);
    save(t, "half", PS_DTYPE_F32);
    assert_int_equal(remove("half/adapter_model.safetensors"), 0);
    assert_true(ps_adapter_dir_config("half", &model, &c, on, NULL, &err) < 0);
    assert_string_equal(err.file, "half/adapter_model.safetensors");
    ps_trainer_destroy(t);
}

static void values_that_are_not_finite_are_not_saved(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, FLT_MAX}; /* the last is too large for bf16 alone */
    for (int i = 0; i < 3; i++) {
        struct stat st;
        struct ps_error err = {0};
        struct ps_trainer *t = trainer(NULL, 3);
        struct ps_trainable *x = ps_trainer_trainable(t, 5);
        ((float *)x->weight)[x->n - 1] = bad[i];
        assert_int_equal(ps_file_make_dirs("none", &err), 0);
        assert_int_equal(ps_adapter_dir_save("none", t, "b", PS_DTYPE_BF16, &err), PS_ENUMERIC);
        assert_string_equal(err.field, x->name);
        assert_true(stat("none/adapter_model.safetensors", &st) < 0);
        assert_true(stat("none/adapter_config.json", &st) < 0);
        ps_trainer_destroy(t);
    }
}

static void a_base_path_that_is_not_utf8_does_not_lose_the_adapter(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_trainer *t = trainer(NULL, 3);
    assert_int_equal(ps_file_make_dirs("raw", &err), 0);
    assert_int_equal(ps_adapter_dir_save("raw", t, "models/\xff", PS_DTYPE_F32, &err), 0);
    json_t *root = config("raw");
    assert_true(json_is_null(json_object_get(root, "base_model_name_or_path")));
    json_decref(root);
    ps_trainer_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_saved_adapter_loads_bit_for_bit),
        cmocka_unit_test(the_configuration_says_what_peft_needs),
        cmocka_unit_test(targets_are_names_layers_or_whole_paths),
        cmocka_unit_test(damaged_tensors_are_refused_by_name),
        cmocka_unit_test(fields_that_change_the_function_are_refused_by_name),
        cmocka_unit_test(missing_files_are_named),
        cmocka_unit_test(values_that_are_not_finite_are_not_saved),
        cmocka_unit_test(a_base_path_that_is_not_utf8_does_not_lose_the_adapter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
