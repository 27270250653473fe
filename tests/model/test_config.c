/* config.json: every family, every RoPE form, defaults, ranges, refusals by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/model/config.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static int parse(const char *text, struct ps_model_config *c, struct ps_error *err)
{
    memset(err, 0, sizeof *err);
    memset(c, 0xcc, sizeof *c);
    return ps_model_config_parse(c, text, strlen(text), "dir/config.json", err);
}

/* A small valid config of `type`, with the members of `change` set (null: JSON null) and the key
 * `drop` removed. */
static int parse_with(const char *type, const char *change, const char *drop,
                      struct ps_model_config *c, struct ps_error *err)
{
    char text[2000];
    struct ps_error je = {0};
    json_t *base, *more;
    int n = snprintf(text, sizeof text,
                     "{\"model_type\":\"%s\",\"hidden_size\":64,\"intermediate_size\":96,"
                     "\"num_hidden_layers\":4,\"num_attention_heads\":8,"
                     "\"num_key_value_heads\":2,\"vocab_size\":512,\"rms_norm_eps\":1e-5}",
                     type);
    assert_int_equal(ps_json_parse(text, (size_t)n, PS_JSON_STRICT, NULL, &base, &je), 0);
    assert_int_equal(ps_json_parse(change, strlen(change), PS_JSON_STRICT, NULL, &more, &je), 0);
    assert_int_equal(json_object_update(base, more), 0);
    if (drop)
        assert_int_equal(json_object_del(base, drop), 0);
    char *full = json_dumps(base, 0);
    json_decref(base);
    json_decref(more);
    assert_non_null(full);
    int ret = parse(full, c, err);
    free(full);
    return ret;
}

static void llama_has_its_defaults(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err;
    assert_int_equal(parse_with("llama", "{}", NULL, &c, &err), 0);
    assert_string_equal(c.model_type, "llama");
    assert_string_equal(c.architecture, "LlamaForCausalLM");
    assert_int_equal(c.hidden_size, 64);
    assert_int_equal(c.intermediate_size, 96);
    assert_int_equal(c.n_layer, 4);
    assert_int_equal(c.n_head, 8);
    assert_int_equal(c.n_kv_head, 2);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.vocab_size, 512);
    assert_int_equal(c.max_position_embeddings, 2048);
    assert_true(c.rms_norm_eps == 1e-5f);
    assert_false(c.tie_word_embeddings);
    assert_false(c.qkv_bias || c.o_bias || c.mlp_bias || c.qk_norm);
    assert_int_equal(c.sliding_window, 0);
    assert_int_equal(c.rope_type, PS_ROPE_DEFAULT);
    assert_true(c.rope_theta == 10000);
    assert_int_equal(c.bos_token_id, 1);
    assert_int_equal(c.eos_count, 1);
    assert_int_equal(c.eos_token_id[0], 2);
    assert_int_equal(c.torch_dtype, -1);
    assert_true(c.initializer_range == 0.02);
    assert_int_equal(
        parse_with("llama", "{\"rms_norm_eps\":null}", "num_key_value_heads", &c, &err), 0);
    assert_int_equal(c.n_kv_head, 8);
    assert_true(c.rms_norm_eps == 1e-6f);
}

static void families_differ_where_transformers_differs(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err;
    assert_int_equal(
        parse_with("llama", "{\"attention_bias\":true,\"mlp_bias\":true}", NULL, &c, &err), 0);
    assert_true(c.qkv_bias && c.o_bias && c.mlp_bias && !c.qk_norm);
    assert_int_equal(parse_with("mistral", "{}", NULL, &c, &err), 0);
    assert_int_equal(c.sliding_window, 4096);
    assert_false(c.qkv_bias || c.o_bias);
    assert_int_equal(parse_with("qwen2", "{}", NULL, &c, &err), 0);
    assert_true(c.qkv_bias && !c.o_bias && !c.qk_norm);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.eos_count, 0);
    assert_int_equal(c.bos_token_id, -1);
    assert_int_equal(parse_with("qwen2", "{\"attention_bias\":true}", NULL, &c, &err), 0);
    assert_true(c.qkv_bias && !c.o_bias);
    assert_int_equal(parse_with("qwen3", "{}", NULL, &c, &err), 0);
    assert_true(c.qk_norm && !c.qkv_bias && !c.o_bias);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(
        parse_with("qwen3", "{\"attention_bias\":true,\"head_dim\":16}", NULL, &c, &err), 0);
    assert_true(c.qkv_bias && c.o_bias);
    assert_int_equal(c.head_dim, 16);
    const char *const *names = ps_model_families();
    for (int i = 0; i < 4; i++) {
        assert_non_null(names[i]);
        assert_int_equal(parse_with(names[i], "{}", NULL, &c, &err), 0);
        assert_string_equal(c.model_type, names[i]);
    }
    assert_null(names[4]);
}

static void head_dim_may_differ_from_hidden_over_heads(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err;
    assert_int_equal(parse_with("mistral", "{\"head_dim\":32}", NULL, &c, &err), 0);
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(parse_with("llama", "{\"head_dim\":null}", NULL, &c, &err), 0);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(parse_with("llama", "{\"hidden_size\":60}", NULL, &c, &err), PS_EFORMAT);
    assert_string_equal(err.field, "hidden_size");
    assert_int_equal(parse_with("mistral", "{\"hidden_size\":60,\"head_dim\":10}", NULL, &c, &err),
                     0);
    assert_int_equal(parse_with("llama", "{\"hidden_size\":72}", NULL, &c, &err), PS_EFORMAT);
    assert_string_equal(err.field, "head_dim");
    assert_int_equal(
        parse_with("llama", "{\"hidden_size\":8192,\"head_dim\":null}", NULL, &c, &err),
        PS_EFORMAT);
    assert_string_equal(err.field, "head_dim");
}

static void tied_tokens_and_dtype_are_read_in_both_spellings(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err;
    assert_int_equal(parse_with("llama",
                                "{\"tie_word_embeddings\":true,\"eos_token_id\":[5,6,5],"
                                "\"bos_token_id\":null,\"torch_dtype\":\"bfloat16\","
                                "\"architectures\":[\"LlamaForCausalLM\"]}",
                                NULL, &c, &err),
                     0);
    assert_true(c.tie_word_embeddings);
    assert_int_equal(c.eos_count, 2);
    assert_int_equal(c.eos_token_id[1], 6);
    assert_int_equal(c.bos_token_id, -1);
    assert_int_equal(c.torch_dtype, PS_DTYPE_BF16);
    assert_int_equal(
        parse_with("llama", "{\"dtype\":\"float16\",\"torch_dtype\":\"float32\"}", NULL, &c, &err),
        0);
    assert_int_equal(c.torch_dtype, PS_DTYPE_F16);
    assert_int_equal(parse_with("llama", "{\"eos_token_id\":null}", NULL, &c, &err), 0);
    assert_int_equal(c.eos_count, 0);
    assert_int_equal(parse_with("llama", "{\"eos_token_id\":[1,\"2\"]}", NULL, &c, &err),
                     PS_EFORMAT);
    assert_string_equal(err.field, "eos_token_id");
    assert_int_equal(parse_with("llama", "{\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", NULL, &c, &err),
                     PS_EUNSUPPORTED);
    assert_string_equal(err.field, "eos_token_id");
}

static void both_spellings_of_rope_give_the_same(void **state)
{
    (void)state;
    struct ps_model_config a, b;
    struct ps_error err;
#define LLAMA3                                                                                     \
    "\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1,\"high_freq_factor\":4.0,"      \
    "\"original_max_position_embeddings\":8192"
    static const struct {
        const char *now, *old;
        enum ps_rope_type type;
        double theta, factor;
    } t[] = {
        {"{\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":5e5}}",
         "{\"rope_theta\":500000,\"rope_scaling\":null}", PS_ROPE_DEFAULT, 5e5, 1},
        {"{\"rope_parameters\":{\"rope_type\":\"linear\",\"rope_theta\":1e4,\"factor\":4}}",
         "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}}", PS_ROPE_LINEAR, 1e4, 4},
        {"{\"rope_parameters\":{\"rope_theta\":5e5," LLAMA3 "}}",
         "{\"rope_theta\":500000.0,\"rope_scaling\":{" LLAMA3 "}}", PS_ROPE_LLAMA3, 5e5, 8},
        {"{\"rope_parameters\":{\"rope_theta\":5e5," LLAMA3 "}}",
         "{\"rope_theta\":1.0,\"rope_scaling\":{\"rope_theta\":500000.0," LLAMA3 "}}",
         PS_ROPE_LLAMA3, 5e5, 8},
    };
    for (size_t i = 0; i < COUNT(t); i++) {
        assert_int_equal(parse_with("llama", t[i].now, NULL, &a, &err), 0);
        assert_int_equal(parse_with("llama", t[i].old, NULL, &b, &err), 0);
        assert_int_equal(a.rope_type, t[i].type);
        assert_true(a.rope_theta == t[i].theta && a.rope_factor == t[i].factor);
        assert_true(b.rope_type == a.rope_type && b.rope_theta == a.rope_theta);
        assert_true(b.rope_factor == a.rope_factor);
        assert_true(b.rope_low_freq_factor == a.rope_low_freq_factor);
        assert_true(b.rope_high_freq_factor == a.rope_high_freq_factor);
        assert_true(b.rope_original_max_position == a.rope_original_max_position);
    }
    assert_true(a.rope_low_freq_factor == 1 && a.rope_high_freq_factor == 4);
    assert_true(a.rope_original_max_position == 8192);
}

static void bad_rope_parameters_name_their_field(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err;
    static const struct {
        const char *change;
        int code;
        const char *field;
    } t[] = {
        {"{\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", PS_EUNSUPPORTED, "rope_scaling"},
        {"{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}}", PS_EUNSUPPORTED,
         "rope_scaling"},
        {"{\"rope_parameters\":{\"rope_type\":\"longrope\"}}", PS_EUNSUPPORTED, "rope_parameters"},
        {"{\"rope_scaling\":{\"type\":\"su\"}}", PS_EUNSUPPORTED, "rope_scaling"},
        {"{\"rope_scaling\":{\"rope_type\":\"linear\"}}", PS_EFORMAT, "factor"},
        {"{\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0}}", PS_EFORMAT, "factor"},
        {"{\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":\"2\"}}", PS_EFORMAT, "factor"},
        {"{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1}}",
         PS_EFORMAT, "high_freq_factor"},
        {"{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
         "\"high_freq_factor\":4}}",
         PS_EFORMAT, "high_freq_factor"},
        {"{\"rope_scaling\":7}", PS_EFORMAT, "rope_scaling"},
        {"{\"rope_scaling\":{\"rope_type\":7}}", PS_EFORMAT, "rope_type"},
        {"{\"rope_theta\":0}", PS_EFORMAT, "rope_theta"},
        {"{\"rope_theta\":-10000.0}", PS_EFORMAT, "rope_theta"},
        {"{\"rope_theta\":\"10000\"}", PS_EFORMAT, "rope_theta"},
        {"{\"partial_rotary_factor\":0.5}", PS_EUNSUPPORTED, "partial_rotary_factor"},
        {"{\"rope_parameters\":{\"partial_rotary_factor\":0.75}}", PS_EUNSUPPORTED,
         "partial_rotary_factor"},
        {"{\"rope_interleaved\":true}", PS_EUNSUPPORTED, "rope_interleaved"},
        {"{\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}", PS_EUNSUPPORTED,
         "rope_parameters"},
        {"{\"rope_parameters\":{\"rope_type\":\"default\"},\"rope_scaling\":{\"type\":\"linear\","
         "\"factor\":2}}",
         PS_EFORMAT, "rope_parameters"},
    };
    for (size_t i = 0; i < COUNT(t); i++) {
        int ret = parse_with("llama", t[i].change, NULL, &c, &err);
        if (ret != t[i].code || strcmp(err.field, t[i].field) != 0 ||
            strcmp(err.file, "dir/config.json") != 0)
            fail_msg("%s: %d %s (%s)", t[i].change, ret, err.message, err.field);
    }
    assert_int_equal(parse_with("llama",
                                "{\"partial_rotary_factor\":1.0,\"rope_scaling\":{"
                                "\"rope_type\":\"llama3\",\"factor\":8,"
                                "\"low_freq_factor\":1,\"high_freq_factor\":4}}",
                                NULL, &c, &err),
                     0);
    assert_true(c.rope_original_max_position == 2048);
}

static void sliding_windows_are_whole_or_refused(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err;
    static const struct {
        const char *type, *change;
        int window; /* or the error */
        const char *field;
    } t[] = {
        {"mistral", "{\"sliding_window\":null}", 0, ""},
        {"mistral", "{\"sliding_window\":16}", 16, ""},
        {"mistral", "{\"sliding_window\":0}", PS_EFORMAT, "sliding_window"},
        {"mistral",
         "{\"sliding_window\":16,\"layer_types\":[\"full_attention\","
         "\"full_attention\",\"full_attention\",\"full_attention\"]}",
         PS_EUNSUPPORTED, "layer_types"},
        {"llama", "{\"sliding_window\":16}", 0, ""},
        {"qwen2", "{\"sliding_window\":16,\"use_sliding_window\":false}", 0, ""},
        {"qwen2", "{\"sliding_window\":16,\"use_sliding_window\":true,\"max_window_layers\":4}", 0,
         ""},
        {"qwen2", "{\"sliding_window\":16,\"use_sliding_window\":true,\"max_window_layers\":0}", 16,
         ""},
        {"qwen2", "{\"sliding_window\":16,\"use_sliding_window\":true,\"max_window_layers\":3}",
         PS_EUNSUPPORTED, "max_window_layers"},
        {"qwen2", "{\"sliding_window\":null,\"use_sliding_window\":true,\"max_window_layers\":3}",
         0, ""},
        {"qwen3",
         "{\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\","
         "\"full_attention\"]}",
         0, ""},
        {"qwen3",
         "{\"layer_types\":[\"full_attention\",\"sliding_attention\",\"full_attention\","
         "\"full_attention\"]}",
         PS_EUNSUPPORTED, "layer_types"},
        {"qwen3", "{\"layer_types\":[\"full_attention\"]}", PS_EFORMAT, "layer_types"},
        {"qwen3",
         "{\"layer_types\":[\"full_attention\",\"linear_attention\",\"full_attention\","
         "\"full_attention\"]}",
         PS_EUNSUPPORTED, "layer_types"},
        {"qwen3",
         "{\"sliding_window\":16,\"use_sliding_window\":true,\"layer_types\":["
         "\"sliding_attention\",\"sliding_attention\",\"sliding_attention\","
         "\"sliding_attention\"]}",
         16, ""},
        {"qwen3",
         "{\"layer_types\":[\"sliding_attention\",\"sliding_attention\","
         "\"sliding_attention\",\"sliding_attention\"]}",
         PS_EUNSUPPORTED, "layer_types"},
    };
    for (size_t i = 0; i < COUNT(t); i++) {
        int ret = parse_with(t[i].type, t[i].change, NULL, &c, &err);
        int got = ret ? ret : c.sliding_window;
        if (got != t[i].window || (ret && strcmp(err.field, t[i].field) != 0))
            fail_msg("%s %s: %d %s (%s)", t[i].type, t[i].change, got, err.message, err.field);
    }
}

static void features_that_would_change_results_are_refused(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err;
    static const struct {
        const char *type, *change, *field, *message;
    } t[] = {
        {"llama", "{\"hidden_act\":\"gelu\"}", "hidden_act", "gelu"},
        {"llama", "{\"attention_dropout\":0.1}", "attention_dropout", "0.1"},
        {"llama", "{\"quantization_config\":{\"quant_method\":\"gptq\"}}", "quantization_config",
         "gptq"},
        {"llama", "{\"quantization_config\":{}}", "quantization_config", "quantised"},
        {"mistral", "{\"attention_bias\":true}", "attention_bias", "mistral"},
        {"qwen3", "{\"mlp_bias\":true}", "mlp_bias", "qwen3"},
        {"llama", "{\"architectures\":[\"LlamaForSequenceClassification\"]}", "architectures",
         "LlamaForSequenceClassification"},
        {"llama", "{\"architectures\":[\"MistralForCausalLM\"]}", "architectures",
         "MistralForCausalLM"},
    };
    for (size_t i = 0; i < COUNT(t); i++) {
        assert_int_equal(parse_with(t[i].type, t[i].change, NULL, &c, &err), PS_EUNSUPPORTED);
        assert_string_equal(err.field, t[i].field);
        assert_non_null(strstr(err.message, t[i].message));
    }
    assert_int_equal(parse_with("llama", "{\"hidden_act\":\"swish\",\"quantization_config\":null}",
                                NULL, &c, &err),
                     0);
}

static void other_model_types_are_refused_by_name_with_the_reason(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err;
    static const char *const types[] = {
        "gemma2",    "gemma3",      "gemma3_text", "phi3",  "gpt2",     "mixtral", "qwen2_moe",
        "qwen3_moe", "deepseek_v3", "smollm3",     "mamba", "qwen2_vl", "llama4",  "something"};
    for (size_t i = 0; i < COUNT(types); i++) {
        assert_int_equal(parse_with(types[i], "{}", NULL, &c, &err), PS_EUNSUPPORTED);
        assert_string_equal(err.field, "model_type");
        assert_non_null(strstr(err.message, types[i]));
        assert_non_null(strchr(err.message, ':'));
        assert_non_null(strstr(err.advice, "qwen3"));
    }
    assert_int_equal(parse_with("gemma2", "{}", NULL, &c, &err), PS_EUNSUPPORTED);
    assert_non_null(strstr(err.message, "soft-capped"));
}

static void numbers_out_of_range_and_missing_ones_name_their_field(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err;
    static const struct {
        const char *field;
        const char *bad[6];
    } t[] = {
        {"hidden_size", {"0", "-64", "65537", "64.0", "\"64\"", "[64]"}},
        {"intermediate_size", {"0", "1048577", "true"}},
        {"num_hidden_layers", {"0", "1025", "9223372036854775807"}},
        {"num_attention_heads", {"0", "1025"}},
        {"num_key_value_heads", {"0", "3", "16"}},
        {"vocab_size", {"0", "2097153"}},
        {"head_dim", {"0", "7", "514", "-2"}},
        {"max_position_embeddings", {"0", "67108865"}},
        {"rms_norm_eps", {"0", "-1e-6", "2", "\"1e-6\""}},
        {"initializer_range", {"-0.1", "11"}},
        {"attention_dropout", {"-0.1", "1.5"}},
        {"tie_word_embeddings", {"1", "\"true\""}},
        {"attention_bias", {"0"}},
        {"bos_token_id", {"-2", "2097152", "[1]"}},
        {"eos_token_id", {"-1", "2097152", "1.5", "{}"}},
        {"hidden_act", {"1"}},
        {"architectures", {"\"LlamaForCausalLM\"", "[1]"}},
        {"model_type", {"1", "null"}},
    };
    for (size_t i = 0; i < COUNT(t); i++) {
        for (size_t k = 0; k < COUNT(t[i].bad) && t[i].bad[k]; k++) {
            char change[100];
            PS_IGNORE(snprintf(change, sizeof change, "{\"%s\":%s}", t[i].field, t[i].bad[k]) < 0,
                      "fits");
            int ret = parse_with("llama", change, NULL, &c, &err);
            if (ret != PS_EFORMAT || strcmp(err.field, t[i].field) != 0)
                fail_msg("%s: %d %s (%s)", change, ret, err.message, err.field);
            assert_non_null(strstr(err.message, t[i].field));
        }
    }
    static const char *const required[] = {"hidden_size",       "intermediate_size",
                                           "num_hidden_layers", "num_attention_heads",
                                           "vocab_size",        "model_type"};
    for (size_t i = 0; i < COUNT(required); i++) {
        assert_int_equal(parse_with("llama", "{}", required[i], &c, &err), PS_EFORMAT);
        assert_string_equal(err.field, required[i]);
        assert_non_null(strstr(err.message, "missing"));
    }
}

static void text_that_is_no_object_is_refused(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err;
    static const char *const bad[] = {
        "", "[]", "7", "{", "{\"model_type\":\"llama\",}", "{\"a\":1,\"a\":2}", "null"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_int_equal(parse(bad[i], &c, &err), PS_EFORMAT);
        assert_string_equal(err.file, "dir/config.json");
        assert_int_equal(c.hidden_size, (int32_t)0xcccccccc);
    }
}

static void a_directory_is_read_with_its_generation_config(void **state)
{
    (void)state;
    struct ps_model_config c;
    struct ps_error err = {0};
    const char *text = "{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":96,"
                       "\"num_hidden_layers\":4,\"num_attention_heads\":8,\"vocab_size\":512,"
                       "\"eos_token_id\":3}";
    assert_int_equal(mkdir("m", 0777), 0);
    assert_int_equal(ps_model_config_load(&c, "m", &err), -ENOENT);
    assert_string_equal(err.file, "m/config.json");
    assert_int_equal(ps_file_write("m/config.json", text, strlen(text), &err), 0);
    assert_int_equal(ps_model_config_load(&c, "m", &err), 0);
    assert_int_equal(c.eos_count, 1);
    const char *gen = "{\"eos_token_id\":[3,7,9]}";
    assert_int_equal(ps_file_write("m/generation_config.json", gen, strlen(gen), &err), 0);
    assert_int_equal(ps_model_config_load(&c, "m/", &err), 0);
    assert_int_equal(c.eos_count, 3);
    assert_int_equal(c.eos_token_id[0], 3);
    assert_int_equal(c.eos_token_id[2], 9);
    assert_int_equal(ps_model_config_load(&c, "m/config.json", &err), 0);
    assert_int_equal(c.eos_count, 1);
    assert_int_equal(ps_file_write("m/generation_config.json", "{", 1, &err), 0);
    assert_int_equal(ps_model_config_load(&c, "m", &err), PS_EFORMAT);
    assert_string_equal(err.file, "m/generation_config.json");
}

/* Distance of two finite positive floats in units in the last place. */
static int64_t ulps(float a, uint32_t b)
{
    uint32_t u;
    memcpy(&u, &a, sizeof u);
    return llabs((int64_t)u - (int64_t)b);
}

/* Golden: tests/golden/make_rope_inv_freq.py. torch's fp32 power may be off by 1 ulp where ours is
 * rounded correctly; the subtraction in llama3's smoothing turns that into 2. */
static void inverse_frequencies_equal_those_of_transformers(void **state)
{
    (void)state;
    const char *root = getenv("PENSTOCK_ROOT");
    char path[PATH_MAX];
    struct ps_error err = {0};
    char *text;
    size_t len;
    int cases = 0, values = 0, apart = 0;
    assert_non_null(
        ps_path_join(path, sizeof path, root ? root : ".", "tests/golden/rope_inv_freq.jsonl"));
    assert_int_equal(ps_file_read(path, 1 << 20, &text, &len, &err), 0);
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        json_t *j;
        struct ps_model_config c;
        assert_int_equal(ps_json_parse(line, strlen(line), PS_JSON_STRICT, NULL, &j, &err), 0);
        char *config = json_dumps(json_object_get(j, "config"), 0);
        assert_int_equal(parse(config, &c, &err), 0);
        free(config);
        const json_t *bits = json_object_get(j, "bits");
        float inv[260];
        for (int i = 0; i < 260; i++)
            inv[i] = -7;
        ps_model_rope_inv_freq(&c, inv);
        assert_int_equal(json_array_size(bits), c.head_dim / 2);
        assert_true(inv[c.head_dim / 2] == -7);
        int64_t limit = c.rope_type == PS_ROPE_LLAMA3 ? 2 : 1;
        for (int i = 0; i < c.head_dim / 2; i++) {
            uint32_t want = (uint32_t)json_integer_value(json_array_get(bits, (size_t)i));
            assert_true(ulps(inv[i], want) <= limit);
            apart += ulps(inv[i], want) != 0;
            values++;
        }
        cases++;
        json_decref(j);
    }
    free(text);
    assert_int_equal(cases, 12);
    assert_true(apart * 50 <= values);
}

static void the_real_model_of_the_shared_data_is_read(void **state)
{
    (void)state;
    const char *root = getenv("PENSTOCK_ROOT");
    char path[PATH_MAX];
    struct stat st;
    struct ps_model_config c;
    struct ps_error err = {0};
    assert_non_null(
        ps_path_join(path, sizeof path, root ? root : ".", "../shared/data/models/stories260K"));
    if (stat(path, &st) < 0) {
        print_message("skip: no model at %s\n", path);
        skip();
    }
    assert_int_equal(ps_model_config_load(&c, path, &err), 0);
    assert_int_equal(c.n_kv_head, 4);
    assert_true(c.tie_word_embeddings);
    assert_int_equal(c.torch_dtype, PS_DTYPE_F32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_has_its_defaults),
        cmocka_unit_test(families_differ_where_transformers_differs),
        cmocka_unit_test(head_dim_may_differ_from_hidden_over_heads),
        cmocka_unit_test(tied_tokens_and_dtype_are_read_in_both_spellings),
        cmocka_unit_test(both_spellings_of_rope_give_the_same),
        cmocka_unit_test(bad_rope_parameters_name_their_field),
        cmocka_unit_test(sliding_windows_are_whole_or_refused),
        cmocka_unit_test(features_that_would_change_results_are_refused),
        cmocka_unit_test(other_model_types_are_refused_by_name_with_the_reason),
        cmocka_unit_test(numbers_out_of_range_and_missing_ones_name_their_field),
        cmocka_unit_test(text_that_is_no_object_is_refused),
        cmocka_unit_test(a_directory_is_read_with_its_generation_config),
        cmocka_unit_test(inverse_frequencies_equal_those_of_transformers),
        cmocka_unit_test(the_real_model_of_the_shared_data_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
