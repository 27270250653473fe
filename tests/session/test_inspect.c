/* inspect: models, safetensors files, adapters, checkpoints; what is unusable and what is broken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/model/config.h"
#include "runtime/model/params.h"
#include "runtime/model/safetensors.h"
#include "session/inspect.h"

#define CONFIG                                                                                     \
    "\"model_type\":\"qwen2\",\"hidden_size\":8,\"intermediate_size\":12,"                         \
    "\"num_hidden_layers\":2,\"num_attention_heads\":2,\"num_key_value_heads\":1,"                 \
    "\"vocab_size\":20,\"tie_word_embeddings\":true"
/* embedding 160; a layer: q 64+8, k and v 32+4, o 64, three of 96, norms 16; final norm 8 */
#define PARAMETERS (160 + 2 * (64 + 8 + 2 * 36 + 64 + 3 * 96 + 16) + 8)

static void write_text(const char *path, const char *text)
{
    struct ps_error err = {0};
    assert_int_equal(ps_file_write(path, text, strlen(text), &err), 0);
}

static void write_zeros(const char *path, const struct ps_st_spec *spec, size_t count)
{
    struct ps_error err = {0};
    struct ps_st_writer *w;
    assert_int_equal(ps_st_writer_create(&w, path, spec, count, &err), 0);
    for (size_t i = 0; i < count; i++) {
        size_t bytes = ps_dtype_size(spec[i].dtype);
        for (int d = 0; d < spec[i].rank; d++)
            bytes *= (size_t)spec[i].shape[d];
        void *zero = calloc(1, bytes + 1);
        assert_non_null(zero);
        assert_int_equal(ps_st_writer_append(w, zero, bytes, &err), 0);
        free(zero);
    }
    assert_int_equal(ps_st_writer_close(w, &err), 0);
}

/* A model directory with every tensor of CONFIG but `drop` (may be NULL), and `extra` if given. */
static void write_model(const char *dir, const char *drop, const char *extra)
{
    struct ps_model_config c;
    struct ps_param_table table;
    struct ps_error err = {0};
    char path[100];
    assert_int_equal(ps_file_make_dirs(dir, &err), 0);
    assert_non_null(ps_path_join(path, sizeof path, dir, "config.json"));
    write_text(path, "{" CONFIG "}");
    assert_int_equal(ps_model_config_load(&c, dir, &err), 0);
    assert_int_equal(ps_param_table_create(&table, &c), 0);
    struct ps_st_spec spec[64];
    size_t n = 0;
    for (size_t i = 0; i < table.count; i++) {
        const struct ps_param_info *p = &table.param[i];
        if (drop && strcmp(p->name, drop) == 0)
            continue;
        assert_true(n < 63);
        spec[n++] =
            (struct ps_st_spec){p->name, PS_DTYPE_BF16, p->rank, {p->shape[0], p->shape[1]}};
    }
    if (extra)
        spec[n++] = (struct ps_st_spec){extra, PS_DTYPE_F32, 1, {3}};
    assert_non_null(ps_path_join(path, sizeof path, dir, "model.safetensors"));
    write_zeros(path, spec, n);
    ps_param_table_fini(&table);
}

static void write_adapter(const char *dir, const char *more)
{
    struct ps_error err = {0};
    char path[100], text[300];
    const struct ps_st_spec spec[] = {
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", PS_DTYPE_F32, 2, {4, 8}},
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", PS_DTYPE_F32, 2, {8, 4}},
    };
    assert_int_equal(ps_file_make_dirs(dir, &err), 0);
    assert_non_null(ps_path_join(path, sizeof path, dir, "adapter_config.json"));
    PS_IGNORE(snprintf(text, sizeof text,
                       "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"target_modules\":["
                       "\"q_proj\"],\"base_model_name_or_path\":\"some/base\"%s}",
                       more) < 0,
              "fits");
    write_text(path, text);
    assert_non_null(ps_path_join(path, sizeof path, dir, "adapter_model.safetensors"));
    write_zeros(path, spec, 2);
}

/* manifest.json over the named files, as checkpoints have it. */
static void write_manifest(const char *dir, const char *const *names, size_t count)
{
    char path[100], text[2000];
    struct ps_error err = {0};
    size_t len = (size_t)snprintf(text, sizeof text, "{\"version\":1,\"files\":{");
    for (size_t i = 0; i < count; i++) {
        uint64_t hash;
        assert_non_null(ps_path_join(path, sizeof path, dir, names[i]));
        assert_int_equal(ps_file_hash(path, &hash, &err), 0);
        len += (size_t)snprintf(text + len, sizeof text - len, "%s\"%s\":\"%016" PRIx64 "\"",
                                i ? "," : "", names[i], hash);
    }
    PS_IGNORE(snprintf(text + len, sizeof text - len, "}}") < 0, "fits");
    assert_non_null(ps_path_join(path, sizeof path, dir, "manifest.json"));
    write_text(path, text);
}

static json_t *inspect(const char *path)
{
    struct ps_error err = {0};
    char *text = NULL;
    json_t *v;
    int ret = ps_inspect(path, true, &text, &err);
    if (ret)
        fail_msg("%s: %d %s", path, ret, err.message);
    assert_int_equal(ps_json_parse(text, strlen(text), PS_JSON_STRICT, NULL, &v, &err), 0);
    free(text);
    return v;
}

static void assert_report(const json_t *v, const char *kind, const char *why, int64_t parameters,
                          size_t tensors)
{
    assert_string_equal(json_string_value(json_object_get(v, "kind")), kind);
    assert_true(json_is_boolean(json_object_get(v, "supported")));
    assert_int_equal(json_is_true(json_object_get(v, "supported")), why == NULL);
    const char *got = json_string_value(json_object_get(v, "why_not"));
    if (why && (!got || !strstr(got, why)))
        fail_msg("why_not is \"%s\", wanted \"%s\"", got ? got : "null", why);
    if (!why)
        assert_true(json_is_null(json_object_get(v, "why_not")));
    assert_int_equal(json_integer_value(json_object_get(v, "parameters")), parameters);
    assert_int_equal(json_array_size(json_object_get(v, "tensors")), tensors);
}

static const json_t *find(const json_t *v, const char *name)
{
    size_t i;
    json_t *t;
    json_array_foreach(json_object_get(v, "tensors"), i,
                       t) if (strcmp(json_string_value(json_object_get(t, "name")), name) ==
                              0) return t;
    return NULL;
}

static void a_whole_model_is_supported_and_counted(void **state)
{
    (void)state;
    write_model("model", NULL, NULL);
    json_t *v = inspect("model");
    assert_report(v, "model", NULL, PARAMETERS, 2 + 2 * 12);
    const json_t *t = find(v, "model.layers.1.mlp.up_proj.weight");
    assert_non_null(t);
    assert_string_equal(json_string_value(json_object_get(t, "dtype")), "BF16");
    assert_string_equal(json_string_value(json_object_get(t, "file")), "model.safetensors");
    const json_t *shape = json_object_get(t, "shape");
    assert_int_equal(json_array_size(shape), 2);
    assert_int_equal(json_integer_value(json_array_get(shape, 0)), 12);
    assert_int_equal(json_integer_value(json_array_get(shape, 1)), 8);
    const json_t *d = json_object_get(v, "details");
    assert_string_equal(json_string_value(json_object_get(d, "model_type")), "qwen2");
    assert_int_equal(json_integer_value(json_object_get(d, "layers")), 2);
    assert_null(json_object_get(d, "unused_tensors"));
    json_decref(v);
}

/* Columns do not matter here: runs of spaces become one. */
static char *one_space(char *text)
{
    char *w = text;
    for (const char *r = text; *r; r++)
        if (*r != ' ' || r[1] != ' ')
            *w++ = *r;
    *w = '\0';
    return text;
}

static void text_has_the_same_facts(void **state)
{
    (void)state;
    struct ps_error err = {0};
    char *text = NULL;
    write_model("text", NULL, NULL);
    assert_int_equal(ps_inspect("text", false, &text, &err), 0);
    one_space(text);
    static const char *const parts[] = {"model text\n", "supported yes\n",
                                        "qwen2",        "model.layers.0.self_attn.k_proj.bias",
                                        "BF16",         "[12, 8]"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        assert_non_null(strstr(text, parts[i]));
    free(text);
    write_model("text2", "model.norm.weight", NULL);
    assert_int_equal(ps_inspect("text2", false, &text, &err), 0);
    assert_non_null(strstr(one_space(text), "supported no: "));
    free(text);
}

static void models_that_cannot_be_trained_say_why(void **state)
{
    (void)state;
    json_t *v;
    write_model("lacks", "model.layers.1.self_attn.v_proj.bias", NULL);
    v = inspect("lacks");
    assert_report(v, "model", "model.layers.1.self_attn.v_proj.bias", PARAMETERS, 25);
    json_decref(v);
    write_model("extra", NULL, "model.layers.0.self_attn.rotary_emb.inv_freq");
    v = inspect("extra");
    assert_report(v, "model", NULL, PARAMETERS, 27);
    const json_t *d = json_object_get(v, "details");
    assert_int_equal(json_integer_value(json_object_get(d, "unused_tensors")), 1);
    json_decref(v);
    write_model("shape", NULL, NULL);
    write_text("shape/config.json", "{" CONFIG ",\"head_dim\":6}");
    v = inspect("shape");
    assert_report(v, "model", "shape", 160 + 2 * (96 + 12 + 2 * 54 + 96 + 3 * 96 + 16) + 8, 26);
    json_decref(v);
    write_model("gemma", NULL, NULL);
    write_text("gemma/config.json", "{\"model_type\":\"gemma2\"}");
    v = inspect("gemma");
    assert_report(v, "model", "gemma2", PARAMETERS, 26);
    json_decref(v);
    assert_int_equal(unlink("gemma/config.json"), 0);
    v = inspect("gemma");
    assert_report(v, "model", "config.json", PARAMETERS, 26);
    json_decref(v);
    write_model("bare", NULL, NULL);
    assert_int_equal(unlink("bare/model.safetensors"), 0);
    v = inspect("bare");
    assert_report(v, "model", "no weights", PARAMETERS, 0);
    json_decref(v);
}

static void a_safetensors_file_is_listed(void **state)
{
    (void)state;
    write_model("file", NULL, NULL);
    json_t *v = inspect("file/model.safetensors");
    assert_report(v, "safetensors", NULL, PARAMETERS, 26);
    json_decref(v);
}

static void adapters_are_listed_and_checked(void **state)
{
    (void)state;
    write_adapter("ad", "");
    json_t *v = inspect("ad");
    assert_report(v, "adapter", NULL, 64, 2);
    const json_t *d = json_object_get(v, "details");
    assert_int_equal(json_integer_value(json_object_get(d, "r")), 4);
    assert_string_equal(json_string_value(json_object_get(d, "base_model_name_or_path")),
                        "some/base");
    json_decref(v);
    write_adapter("odd", ",\"lora_bias\":true");
    v = inspect("odd");
    assert_report(v, "adapter", "lora_bias", 64, 2);
    json_decref(v);
    assert_int_equal(unlink("odd/adapter_model.safetensors"), 0);
    v = inspect("odd");
    assert_report(v, "adapter", "adapter_model.safetensors", 0, 0);
    json_decref(v);
}

static void checkpoints_are_verified(void **state)
{
    (void)state;
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors",
                                        "optimizer.safetensors", "trainer_state.json"};
    const struct ps_st_spec moment = {"x.exp_avg", PS_DTYPE_F32, 1, {5}};
    write_adapter("checkpoint-7", "");
    write_zeros("checkpoint-7/optimizer.safetensors", &moment, 1);
    write_text("checkpoint-7/trainer_state.json", "{\"global_step\":7,\"epoch\":0.5}");
    write_manifest("checkpoint-7", names, 4);
    json_t *v = inspect("checkpoint-7/");
    assert_report(v, "checkpoint", NULL, 64, 3);
    assert_non_null(find(v, "x.exp_avg"));
    const json_t *d = json_object_get(v, "details");
    assert_int_equal(json_integer_value(json_object_get(d, "global_step")), 7);
    assert_int_equal(json_integer_value(json_object_get(d, "r")), 4);
    json_decref(v);
    write_text("checkpoint-7/trainer_state.json", "{\"global_step\":8,\"epoch\":0.5}");
    v = inspect("checkpoint-7");
    assert_report(v, "checkpoint", "trainer_state.json does not match", 64, 3);
    json_decref(v);
    assert_int_equal(unlink("checkpoint-7/trainer_state.json"), 0);
    v = inspect("checkpoint-7");
    assert_report(v, "checkpoint", "trainer_state.json is missing", 64, 3);
    json_decref(v);
}

static void broken_files_are_errors_that_name_them(void **state)
{
    (void)state;
    struct ps_error err = {0};
    char *text = NULL;
    assert_int_equal(ps_inspect("absent", true, &text, &err), -ENOENT);
    assert_string_equal(err.file, "absent");
    assert_int_equal(mkdir("nothing", 0777), 0);
    assert_int_equal(ps_inspect("nothing", true, &text, &err), PS_EFORMAT);
    write_text("bad.safetensors", "12345678{}");
    assert_int_equal(ps_inspect("bad.safetensors", true, &text, &err), PS_EFORMAT);
    assert_string_equal(err.file, "bad.safetensors");
    write_model("badcfg", NULL, NULL);
    write_text("badcfg/config.json", "{\"model_type\":\"llama\",\"hidden_size\":-1}");
    assert_int_equal(ps_inspect("badcfg", true, &text, NULL), PS_EFORMAT);
    write_model("badst", NULL, NULL);
    write_text("badst/model.safetensors", "x");
    assert_int_equal(ps_inspect("badst", true, &text, &err), PS_EFORMAT);
    assert_string_equal(err.file, "badst/model.safetensors");
    write_adapter("badad", "");
    write_text("badad/adapter_config.json", "[");
    assert_int_equal(ps_inspect("badad", true, &text, &err), PS_EFORMAT);
    assert_string_equal(err.file, "badad/adapter_config.json");
    assert_null(text);
}

static void names_that_are_not_utf8_still_give_json(void **state)
{
    (void)state;
    struct ps_error err = {0};
    char *text = NULL;
    const struct ps_st_spec one = {"a", PS_DTYPE_F32, 1, {1}};
    write_zeros("\xff.safetensors", &one, 1);
    assert_int_equal(ps_inspect("\xff.safetensors", true, &text, &err), 0);
    json_t *v;
    assert_int_equal(ps_json_parse(text, strlen(text), PS_JSON_STRICT, NULL, &v, &err), 0);
    assert_report(v, "safetensors", NULL, 1, 1);
    json_decref(v);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_model_is_supported_and_counted),
        cmocka_unit_test(text_has_the_same_facts),
        cmocka_unit_test(models_that_cannot_be_trained_say_why),
        cmocka_unit_test(a_safetensors_file_is_listed),
        cmocka_unit_test(adapters_are_listed_and_checked),
        cmocka_unit_test(checkpoints_are_verified),
        cmocka_unit_test(broken_files_are_errors_that_name_them),
        cmocka_unit_test(names_that_are_not_utf8_still_give_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
