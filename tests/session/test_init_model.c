/* Random models: the same bytes for the same seed, the right statistics, shards, side files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/dtype.h"
#include "runtime/base/file.h"
#include "runtime/model/config.h"
#include "runtime/model/safetensors.h"
#include "session/init_model.h"
#include "session/init_model_internal.h"

/* Odd sizes, biases on q, k and v (qwen2), torch_dtype inside a string and a nested object too. */
static const char config_text[] =
    "{\n \"note\": \"\\\"torch_dtype\\\": {\", \"extra\": {\"torch_dtype\": \"int8\"},\n"
    " \"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\",\n"
    " \"hidden_size\": 72, \"intermediate_size\": 100, \"num_hidden_layers\": 3,\n"
    " \"num_attention_heads\": 6, \"num_key_value_heads\": 2, \"vocab_size\": 301,\n"
    " \"rms_norm_eps\": 1e-06, \"max_position_embeddings\": 128, \"rope_theta\": 10000.0,\n"
    " \"tie_word_embeddings\": false, \"torch_dtype\" : \"float32\",\n"
    " \"initializer_range\": 0.05, \"hidden_act\": \"silu\",\n"
    " \"bos_token_id\": 7, \"eos_token_id\": [8, 9]\n}\n";

static void write_text(const char *path, const char *text)
{
    struct ps_error err = {0};
    if (ps_file_write(path, text, strlen(text), &err))
        fail_msg("%s", err.message);
}

static char *read_text(const char *path)
{
    struct ps_error err = {0};
    char *text;
    size_t len;
    if (ps_file_read(path, (size_t)1 << 26, &text, &len, &err))
        fail_msg("%s: %s", path, err.message);
    return text;
}

static uint64_t hash(const char *path)
{
    struct ps_error err = {0};
    uint64_t h;
    if (ps_file_hash(path, &h, &err))
        fail_msg("%s: %s", path, err.message);
    return h;
}

static struct ps_init_result make(const char *output, uint64_t seed, int dtype, int threads,
                                  uint64_t shard_bytes)
{
    struct ps_init_options opt = {.config = "config.json",
                                  .output = output,
                                  .seed = seed,
                                  .dtype = dtype,
                                  .threads = threads,
                                  .shard_bytes = shard_bytes};
    struct ps_init_result r;
    struct ps_error err = {0};
    if (ps_init_model(&opt, &r, &err))
        fail_msg("%s (%s)", err.message, err.file);
    return r;
}

/* A whole tensor as fp32; the caller frees it. */
static float *load(const char *dir, const char *name, int64_t *count)
{
    struct ps_error err = {0};
    struct ps_st_set *set;
    if (ps_st_set_open(&set, dir, &err))
        fail_msg("%s", err.message);
    const struct ps_st_file *file;
    const struct ps_st_tensor *t = ps_st_set_find(set, name, &file);
    assert_non_null(t);
    float *v = malloc((size_t)t->elements * sizeof *v);
    assert_non_null(v);
    assert_int_equal(ps_st_read_as(file, t, PS_DTYPE_F32, v, &err), 0);
    *count = t->elements;
    ps_st_set_close(set);
    return v;
}

static int set_up(void **state)
{
    (void)state;
    struct ps_error err;
    static const char *const dirs[] = {"a", "b", "c", "out"};
    for (size_t i = 0; i < sizeof dirs / sizeof dirs[0]; i++)
        if (ps_file_remove_tree(dirs[i], &err))
            return -1;
    write_text("config.json", config_text);
    if (remove("generation_config.json") && access("generation_config.json", F_OK) == 0)
        return -1;
    return 0;
}

static void the_bytes_depend_on_seed_and_config_alone(void **state)
{
    (void)state;
    make("a", 5, PS_DTYPE_BF16, 1, 0);
    make("b", 5, PS_DTYPE_BF16, 3, 0);
    make("c", 6, PS_DTYPE_BF16, 1, 0);
    assert_true(hash("a/model.safetensors") == hash("b/model.safetensors"));
    assert_true(hash("a/config.json") == hash("b/config.json"));
    assert_true(hash("a/model.safetensors") != hash("c/model.safetensors"));
}

static void matrices_are_normal_norms_one_biases_zero(void **state)
{
    (void)state;
    struct ps_init_result r = make("a", 1, PS_DTYPE_F32, 2, 0);
    /* embedding and head 2 * 301 * 72; a layer: q and o 72 * 72, k and v 24 * 72, mlp 3 * 100 * 72,
     * norms 2 * 72, biases 72 + 2 * 24; final norm 72 */
    uint64_t layer = 2 * 72 * 72 + 2 * 24 * 72 + 3 * 100 * 72 + 2 * 72 + 72 + 2 * 24;
    assert_int_equal(r.parameters, 2 * 301 * 72 + 3 * layer + 72);
    assert_int_equal(r.bytes, 4 * r.parameters);
    assert_int_equal(r.tensors, 2 + 3 * 12 + 1);
    static const char *const matrix[] = {"model.embed_tokens.weight", "lm_head.weight",
                                         "model.layers.2.mlp.down_proj.weight"};
    double first[3];
    for (size_t k = 0; k < 3; k++) {
        int64_t n;
        float *v = load("a", matrix[k], &n);
        double sum = 0;
        double square = 0;
        double fourth = 0;
        for (int64_t i = 0; i < n; i++) {
            double z = v[i] / 0.05;
            sum += z;
            square += z * z;
            fourth += z * z * z * z;
        }
        first[k] = v[0];
        /* n numbers: the mean has deviation 1/sqrt(n), the mean square sqrt(2/n), the mean fourth
         * power sqrt(96/n); 5 deviations */
        double d = 1.0 / sqrt((double)n);
        assert_true(fabs(sum / (double)n) < 5 * d);
        assert_true(fabs(square / (double)n - 1) < 5 * sqrt(2) * d);
        assert_true(fabs(fourth / (double)n - 3) < 5 * sqrt(96) * d);
        free(v);
    }
    assert_true(first[0] != first[1] && first[0] != first[2] && first[1] != first[2]);
    int64_t n;
    float *norm = load("a", "model.layers.1.input_layernorm.weight", &n);
    float *bias = load("a", "model.layers.1.self_attn.k_proj.bias", &n);
    for (int64_t i = 0; i < 24; i++)
        assert_true(norm[i] == 1.0f && bias[i] == 0.0f);
    free(norm);
    free(bias);
}

static void bf16_is_fp32_rounded_once(void **state)
{
    (void)state;
    make("a", 1, PS_DTYPE_F32, 2, 0);
    make("b", 1, PS_DTYPE_BF16, 2, 0);
    int64_t n;
    float *full = load("a", "lm_head.weight", &n);
    float *half = load("b", "lm_head.weight", &n);
    for (int64_t i = 0; i < n; i++)
        assert_true(ps_bf16_to_f32(ps_f32_to_bf16(full[i])) == half[i]);
    free(full);
    free(half);
}

static void shards_hold_the_same_weights(void **state)
{
    (void)state;
    make("a", 1, PS_DTYPE_F32, 2, 0);
    struct ps_init_result r = make("b", 1, PS_DTYPE_F32, 2, 100000);
    assert_true(r.files > 2);
    assert_int_equal(access("b/model.safetensors", F_OK), -1);
    char name[64];
    snprintf(name, sizeof name, "b/model-%05d-of-%05d.safetensors", (int)r.files, (int)r.files);
    assert_int_equal(access(name, F_OK), 0);
    char *index = read_text("b/model.safetensors.index.json");
    snprintf(name, sizeof name, "\"total_size\": %llu", (unsigned long long)r.bytes);
    assert_non_null(strstr(index, name));
    free(index);
    struct ps_error err;
    struct ps_st_set *set;
    assert_int_equal(ps_st_set_open(&set, "a", &err), 0);
    const struct ps_st_file *whole = ps_st_set_file(set, 0);
    assert_int_equal(ps_st_count(whole), r.tensors);
    for (size_t i = 0; i < ps_st_count(whole); i++) {
        int64_t n;
        int64_t m;
        float *one = load("a", ps_st_at(whole, i)->name, &n);
        float *two = load("b", ps_st_at(whole, i)->name, &m);
        assert_int_equal(n, m);
        assert_memory_equal(one, two, (size_t)n * sizeof *one);
        free(one);
        free(two);
    }
    ps_st_set_close(set);
}

static void the_configuration_is_copied_byte_for_byte(void **state)
{
    (void)state;
    make("a", 1, -1, 1, 0); /* the config says float32 */
    char *copy = read_text("a/config.json");
    assert_string_equal(copy, config_text);
    free(copy);
    char *generation = read_text("a/generation_config.json");
    assert_non_null(strstr(generation, "\"bos_token_id\": 7"));
    assert_non_null(strstr(generation, "8"));
    free(generation);
    int64_t n;
    float *v = load("a", "lm_head.weight", &n);
    assert_true(ps_bf16_to_f32(ps_f32_to_bf16(v[0])) != v[0] ||
                ps_bf16_to_f32(ps_f32_to_bf16(v[1])) != v[1]);
    free(v);
}

static void torch_dtype_follows_the_weights(void **state)
{
    (void)state;
    make("a", 1, PS_DTYPE_BF16, 1, 0);
    char *copy = read_text("a/config.json");
    char *expected = strdup(config_text);
    assert_non_null(expected);
    char *at = strstr(expected, "\"float32\"");
    assert_non_null(at);
    size_t rest = strlen(at + 9) + 1;
    char *want = malloc(strlen(expected) + 8);
    assert_non_null(want);
    memcpy(want, expected, (size_t)(at - expected));
    memcpy(want + (at - expected), "\"bfloat16\"", 10);
    memcpy(want + (at - expected) + 10, at + 9, rest);
    assert_string_equal(copy, want);
    struct ps_model_config cfg;
    struct ps_error err;
    assert_int_equal(ps_model_config_load(&cfg, "a", &err), 0);
    assert_int_equal(cfg.torch_dtype, PS_DTYPE_BF16);
    free(copy);
    free(expected);
    free(want);
}

static void a_missing_or_null_dtype_is_filled_in(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *want;
    } cases[] = {
        {"{\"a\":1}", "{\n  \"torch_dtype\": \"bfloat16\",\"a\":1}"},
        {"{\"dtype\":null}", "{\"dtype\":\"bfloat16\"}"},
        {"{ \"torch_dtype\" :\n \"f\\\"x\" , \"b\":2}",
         "{ \"torch_dtype\" :\n \"bfloat16\" , \"b\":2}"},
        {"{\"x\":[{\"dtype\":\"q\"}],\"dtype\":\"float16\"}",
         "{\"x\":[{\"dtype\":\"q\"}],\"dtype\":\"bfloat16\"}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t len;
        char *out = ps__init_set_dtype(cases[i].text, strlen(cases[i].text), "bfloat16", &len);
        assert_non_null(out);
        assert_string_equal(out, cases[i].want);
        assert_int_equal(len, strlen(out));
        free(out);
    }
}

static void a_tied_model_has_no_head(void **state)
{
    (void)state;
    char *text = strdup(config_text);
    assert_non_null(text);
    char *at = strstr(text, "false");
    memcpy(at, "true ", 5);
    write_text("config.json", text);
    free(text);
    make("a", 1, PS_DTYPE_BF16, 1, 0);
    struct ps_error err;
    struct ps_st_set *set;
    assert_int_equal(ps_st_set_open(&set, "a", &err), 0);
    const struct ps_st_file *f;
    assert_null(ps_st_set_find(set, "lm_head.weight", &f));
    assert_non_null(ps_st_set_find(set, "model.embed_tokens.weight", &f));
    ps_st_set_close(set);
}

static void a_model_is_never_overwritten(void **state)
{
    (void)state;
    make("a", 1, PS_DTYPE_BF16, 1, 0);
    uint64_t before = hash("a/model.safetensors");
    struct ps_init_options opt = {.config = "config.json", .output = "a", .seed = 2, .dtype = -1};
    struct ps_init_result r = {.tensors = 77};
    struct ps_error err = {0};
    assert_int_equal(ps_init_model(&opt, &r, &err), PS_EUSAGE);
    assert_string_equal(err.field, "output");
    assert_int_equal(r.tensors, 77);
    assert_true(hash("a/model.safetensors") == before);
}

static void a_bad_configuration_leaves_nothing(void **state)
{
    (void)state;
    static const char *const bad[] = {"{", "{\"model_type\":\"mamba\"}", "[]", ""};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_text("config.json", bad[i]);
        struct ps_init_options opt = {.config = "config.json", .output = "a", .dtype = -1};
        struct ps_init_result r;
        struct ps_error err = {0};
        int ret = ps_init_model(&opt, &r, &err);
        assert_int_equal(ps_status_exit_code(ret), 4);
        assert_string_equal(err.file, "config.json");
        assert_int_equal(access("a", F_OK), -1);
    }
}

/* The tokenizer's files, a tokenizer with more ids than the model, and one that is not there. */
static void the_tokenizer_is_copied_and_checked(void **state)
{
    (void)state;
    char from[1024];
    const char *root = getenv("PENSTOCK_ROOT");
    snprintf(from, sizeof from, "%s/../shared/data/models/stories260K", root ? root : ".");
    if (access(from, F_OK)) {
        print_message("skip: %s is missing\n", from);
        skip();
    }
    struct ps_init_options opt = {
        .config = "config.json", .output = "a", .tokenizer = from, .dtype = -1, .threads = 1};
    struct ps_init_result r;
    struct ps_error err = {0};
    assert_int_equal(ps_init_model(&opt, &r, &err), PS_EUSAGE); /* 512 ids, vocab_size 301 */
    assert_string_equal(err.field, "tokenizer");
    char *text = strdup(config_text);
    assert_non_null(text);
    memcpy(strstr(text, "301"), "600", 3);
    write_text("config.json", text);
    free(text);
    if (ps_init_model(&opt, &r, &err))
        fail_msg("%s", err.message);
    char path[1200];
    snprintf(path, sizeof path, "%s/tokenizer.json", from);
    assert_true(hash("a/tokenizer.json") == hash(path));
    opt.output = "b";
    opt.tokenizer = "nowhere";
    assert_true(ps_init_model(&opt, &r, &err) < 0);
    assert_int_equal(access("b/config.json", F_OK), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_bytes_depend_on_seed_and_config_alone, set_up),
        cmocka_unit_test_setup(matrices_are_normal_norms_one_biases_zero, set_up),
        cmocka_unit_test_setup(bf16_is_fp32_rounded_once, set_up),
        cmocka_unit_test_setup(shards_hold_the_same_weights, set_up),
        cmocka_unit_test_setup(the_configuration_is_copied_byte_for_byte, set_up),
        cmocka_unit_test_setup(torch_dtype_follows_the_weights, set_up),
        cmocka_unit_test_setup(a_missing_or_null_dtype_is_filled_in, set_up),
        cmocka_unit_test_setup(a_tied_model_has_no_head, set_up),
        cmocka_unit_test_setup(a_model_is_never_overwritten, set_up),
        cmocka_unit_test_setup(a_bad_configuration_leaves_nothing, set_up),
        cmocka_unit_test_setup(the_tokenizer_is_copied_and_checked, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
