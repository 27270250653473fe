/* Reading config.json: see config.h. RoPE is in config_rope.c, refused types in config_refused.c.
 *
 * Design: what transformers would compute differently is refused by name, never ignored; sizes are
 * required rather than guessed from the defaults of a 7B model. */
#include "runtime/model/config.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/model/config_internal.h"

#define CONFIG_BYTES_MAX ((size_t)1 << 20)
#define TOKEN_MAX (1 << 21)

enum bias_rule {
    BIAS_NONE,      /* never */
    BIAS_KEY,       /* q, k, v and o when attention_bias */
    BIAS_QKV_ALWAYS /* q, k, v; not in the file */
};

enum window_rule { WINDOW_NONE, WINDOW_KEY, WINDOW_LAYERS };

struct family {
    const char *model_type;
    const char *architecture;
    enum bias_rule bias;
    bool mlp_bias_key;
    bool qk_norm;
    enum window_rule window;
    int32_t head_dim; /* 0: hidden_size / num_attention_heads */
    int32_t max_position_embeddings;
    int32_t bos, eos; /* -1: none */
};

static const struct family families[] = {
    {"llama", "LlamaForCausalLM", BIAS_KEY, true, false, WINDOW_NONE, 0, 2048, 1, 2},
    {"mistral", "MistralForCausalLM", BIAS_NONE, false, false, WINDOW_KEY, 0, 131072, 1, 2},
    {"qwen2", "Qwen2ForCausalLM", BIAS_QKV_ALWAYS, false, false, WINDOW_LAYERS, 0, 32768, -1, -1},
    {"qwen3", "Qwen3ForCausalLM", BIAS_KEY, false, true, WINDOW_LAYERS, 128, 32768, -1, -1},
};
#define FAMILY_COUNT (sizeof families / sizeof families[0])

struct reader {
    struct ps_model_config *out;
    const json_t *root;
    const struct family *family;
    const char *file;
    struct ps_error *err;
};

const char *const *ps_model_families(void)
{
    static const char *const names[] = {"llama", "mistral", "qwen2", "qwen3", NULL};
    return names;
}

static const json_t *member(const struct reader *r, const char *key)
{
    const json_t *v = json_object_get(r->root, key);
    return json_is_null(v) ? NULL : v;
}

PS_PRINTF(3, 4)
static int refuse(const struct reader *r, const char *key, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(text, sizeof text, fmt, ap) < 0, "truncation is fine");
    va_end(ap);
    return ps_error_full(r->err, PS_EUNSUPPORTED, r->file, key, NULL, "%s", text);
}

static int get_int(const struct reader *r, const char *key, int64_t min, int64_t max,
                   int64_t fallback, int32_t *out)
{
    int64_t v;
    int ret = ps_json_get_int(r->root, key, min, max, fallback, r->file, &v, r->err);
    if (!ret)
        *out = (int32_t)v;
    return ret;
}

static int read_family(struct reader *r)
{
    const char *type;
    int ret = ps_json_get_string(r->root, "model_type", NULL, r->file, &type, r->err);
    if (ret)
        return ret;
    if (!type)
        return ps_error_full(r->err, PS_EFORMAT, r->file, "model_type",
                             "this is not the config.json of a transformers model",
                             "\"model_type\" is missing");
    for (size_t i = 0; i < FAMILY_COUNT; i++)
        if (strcmp(type, families[i].model_type) == 0)
            r->family = &families[i];
    if (!r->family)
        return ps__model_config_refuse_type(type, r->file, r->err);
    const json_t *list = member(r, "architectures");
    const char *name = r->family->architecture;
    if (list && !json_is_array(list))
        return ps_error_full(r->err, PS_EFORMAT, r->file, "architectures", NULL,
                             "\"architectures\" must be an array");
    if (list && json_array_size(list) > 0)
        name = json_string_value(json_array_get(list, 0));
    if (!name)
        return ps_error_full(r->err, PS_EFORMAT, r->file, "architectures", NULL,
                             "\"architectures\" must hold strings");
    if (strcmp(name, r->family->architecture) != 0 && strcmp(name, "LLaMAForCausalLM") != 0)
        return refuse(r, "architectures",
                      "architecture \"%.64s\" is not supported: for model type \"%s\" it must be "
                      "%s",
                      name, type, r->family->architecture);
    memcpy(r->out->model_type, type, strlen(type) + 1);
    memcpy(r->out->architecture, name, strlen(name) + 1);
    return 0;
}

static int read_sizes(const struct reader *r)
{
    struct ps_model_config *c = r->out;
    const struct {
        const char *key;
        int64_t max;
        int32_t *out;
    } table[] = {
        {"hidden_size", 65536, &c->hidden_size},
        {"intermediate_size", 1 << 20, &c->intermediate_size},
        {"num_hidden_layers", 1024, &c->n_layer},
        {"num_attention_heads", 1024, &c->n_head},
        {"vocab_size", TOKEN_MAX, &c->vocab_size},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (!member(r, table[i].key))
            return ps_error_full(r->err, PS_EFORMAT, r->file, table[i].key, NULL,
                                 "\"%s\" is missing", table[i].key);
        int ret = get_int(r, table[i].key, 1, table[i].max, 0, table[i].out);
        if (ret)
            return ret;
    }
    int ret = get_int(r, "num_key_value_heads", 1, 1024, c->n_head, &c->n_kv_head);
    if (!ret)
        ret = get_int(r, "head_dim", 2, 512, 0, &c->head_dim);
    if (!ret)
        ret = get_int(r, "max_position_embeddings", 1, 1 << 26, r->family->max_position_embeddings,
                      &c->max_position_embeddings);
    return ret;
}

static int check_heads(const struct reader *r)
{
    struct ps_model_config *c = r->out;
    if (c->n_head % c->n_kv_head)
        return ps_error_full(r->err, PS_EFORMAT, r->file, "num_key_value_heads", NULL,
                             "\"num_attention_heads\" (%d) must be a multiple of "
                             "\"num_key_value_heads\" (%d)",
                             c->n_head, c->n_kv_head);
    if (!c->head_dim)
        c->head_dim = r->family->head_dim;
    if (!c->head_dim) {
        if (c->hidden_size % c->n_head)
            return ps_error_full(r->err, PS_EFORMAT, r->file, "hidden_size", NULL,
                                 "\"hidden_size\" (%d) must be a multiple of "
                                 "\"num_attention_heads\" (%d)",
                                 c->hidden_size, c->n_head);
        c->head_dim = c->hidden_size / c->n_head;
    }
    if (c->head_dim % 2)
        return ps_error_full(r->err, PS_EFORMAT, r->file, "head_dim", NULL,
                             "\"head_dim\" is %d, but RoPE needs an even one", c->head_dim);
    if (c->head_dim > 512)
        return ps_error_full(r->err, PS_EFORMAT, r->file, "head_dim", NULL,
                             "\"head_dim\" is %d, must be at most 512", c->head_dim);
    return 0;
}

static int read_switches(const struct reader *r)
{
    struct ps_model_config *c = r->out;
    bool attention_bias = false;
    double eps = 0, dropout = 0;
    const char *act = NULL;
    int ret = ps_json_get_bool(r->root, "attention_bias", false, r->file, &attention_bias, r->err);
    if (!ret)
        ret = ps_json_get_bool(r->root, "mlp_bias", false, r->file, &c->mlp_bias, r->err);
    if (!ret)
        ret = ps_json_get_bool(r->root, "tie_word_embeddings", false, r->file,
                               &c->tie_word_embeddings, r->err);
    if (!ret)
        ret = ps_json_get_real(r->root, "rms_norm_eps", 1e-20, 1, 1e-6, r->file, &eps, r->err);
    if (!ret)
        ret = ps_json_get_real(r->root, "initializer_range", 0, 10, 0.02, r->file,
                               &c->initializer_range, r->err);
    if (!ret)
        ret = ps_json_get_real(r->root, "attention_dropout", 0, 1, 0, r->file, &dropout, r->err);
    if (!ret)
        ret = ps_json_get_string(r->root, "hidden_act", "silu", r->file, &act, r->err);
    if (ret)
        return ret;
    c->rms_norm_eps = (float)eps;
    c->qk_norm = r->family->qk_norm;
    c->qkv_bias = r->family->bias == BIAS_QKV_ALWAYS || attention_bias;
    c->o_bias = r->family->bias == BIAS_KEY && attention_bias;
    if (attention_bias && r->family->bias == BIAS_NONE)
        return refuse(r, "attention_bias", "\"attention_bias\" is true, but %s has no such biases",
                      c->model_type);
    if (c->mlp_bias && !r->family->mlp_bias_key)
        return refuse(r, "mlp_bias", "\"mlp_bias\" is true, but %s has no such biases",
                      c->model_type);
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        return refuse(r, "hidden_act", "activation \"%.64s\" is not supported, only silu is", act);
    if (dropout > 0)
        return refuse(r, "attention_dropout",
                      "\"attention_dropout\" is %g: dropout inside attention is not supported; set "
                      "it to 0.0",
                      dropout);
    return 0;
}

static int refuse_features(const struct reader *r)
{
    const json_t *quant = member(r, "quantization_config");
    if (quant) {
        const char *method = json_string_value(json_object_get(quant, "quant_method"));
        return refuse(r, "quantization_config",
                      "the weights are quantised (%.64s): Penstock needs the F32, BF16 or F16 "
                      "original",
                      method ? method : "unknown method");
    }
    bool interleaved = false;
    int ret = ps_json_get_bool(r->root, "rope_interleaved", false, r->file, &interleaved, r->err);
    if (!ret && interleaved)
        ret = refuse(r, "rope_interleaved", "interleaved RoPE is not supported");
    return ret;
}

/* How many of the layers slide: from layer_types, or from max_window_layers. */
static int count_sliding(const struct reader *r, bool enabled, int32_t *sliding)
{
    const json_t *types = member(r, "layer_types");
    int32_t n_layer = r->out->n_layer;
    *sliding = 0;
    if (!types) {
        int32_t first;
        int ret = get_int(r, "max_window_layers", 0, INT32_MAX, 28, &first);
        if (!ret && enabled)
            *sliding = first < n_layer ? n_layer - first : 0;
        return ret;
    }
    if (!json_is_array(types) || json_array_size(types) != (size_t)n_layer)
        return ps_error_full(r->err, PS_EFORMAT, r->file, "layer_types", NULL,
                             "\"layer_types\" must be an array of %d strings, one a layer",
                             n_layer);
    for (int32_t i = 0; i < n_layer; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (type && strcmp(type, "sliding_attention") == 0)
            ++*sliding;
        else if (!type || strcmp(type, "full_attention") != 0)
            return refuse(r, "layer_types", "layer type \"%.64s\" is not supported",
                          type ? type : "(not a string)");
    }
    return 0;
}

static int read_window(const struct reader *r)
{
    int32_t n_layer = r->out->n_layer;
    int32_t window = 0, sliding = 0;
    bool use = false;
    /* absent is 4096 for these families, null is none */
    int32_t absent = json_object_get(r->root, "sliding_window") ? 0 : 4096;
    int ret = 0;
    if (r->family->window != WINDOW_NONE)
        ret = get_int(r, "sliding_window", 1, 1 << 26, absent, &window);
    if (!ret)
        ret = ps_json_get_bool(r->root, "use_sliding_window", false, r->file, &use, r->err);
    bool enabled = window && (use || r->family->window == WINDOW_KEY);
    if (!ret)
        ret = count_sliding(r, enabled && r->family->window == WINDOW_LAYERS, &sliding);
    if (ret)
        return ret;
    if (r->family->window == WINDOW_KEY && !member(r, "layer_types"))
        sliding = enabled ? n_layer : 0;
    if (sliding > 0 && sliding < n_layer)
        return refuse(r, member(r, "layer_types") ? "layer_types" : "max_window_layers",
                      "%d of %d layers have a sliding window: a mix of sliding and full attention "
                      "is not supported",
                      sliding, n_layer);
    if (sliding > 0 && !enabled)
        return refuse(r, "layer_types",
                      "the layers are \"sliding_attention\", but the model has no sliding window");
    if (sliding == 0 && enabled && r->family->window == WINDOW_KEY)
        return refuse(r, "layer_types",
                      "\"sliding_window\" is %d, but the layers are \"full_attention\"", window);
    r->out->sliding_window = sliding ? window : 0;
    return 0;
}

/* Add the ids of `key`, an integer or a list of them, that are not there yet. */
static int add_eos(struct ps_model_config *c, const json_t *root, const char *file,
                   struct ps_error *err)
{
    const json_t *v = json_object_get(root, "eos_token_id");
    size_t count = json_is_array(v) ? json_array_size(v) : v && !json_is_null(v) ? 1 : 0;
    for (size_t i = 0; i < count; i++) {
        const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;
        json_int_t id = json_integer_value(one);
        if (!json_is_integer(one) || id < 0 || id >= TOKEN_MAX)
            return ps_error_full(err, PS_EFORMAT, file, "eos_token_id", NULL,
                                 "\"eos_token_id\" must be a token id or a list of them");
        bool known = false;
        for (int32_t k = 0; k < c->eos_count; k++)
            known = known || c->eos_token_id[k] == (int32_t)id;
        if (known)
            continue;
        if (c->eos_count == PS_EOS_MAX)
            return ps_error_full(err, PS_EUNSUPPORTED, file, "eos_token_id", NULL,
                                 "more than %d end-of-sequence tokens are not supported",
                                 PS_EOS_MAX);
        c->eos_token_id[c->eos_count++] = (int32_t)id;
    }
    return 0;
}

static int read_tokens(const struct reader *r)
{
    struct ps_model_config *c = r->out;
    const json_t *bos = json_object_get(r->root, "bos_token_id");
    int ret =
        get_int(r, "bos_token_id", -1, TOKEN_MAX - 1, bos ? -1 : r->family->bos, &c->bos_token_id);
    if (ret)
        return ret;
    if (!json_object_get(r->root, "eos_token_id") && r->family->eos >= 0)
        c->eos_token_id[c->eos_count++] = r->family->eos;
    return add_eos(c, r->root, r->file, r->err);
}

static void read_dtype(const struct reader *r)
{
    const json_t *v = member(r, "dtype") ? member(r, "dtype") : member(r, "torch_dtype");
    const char *name = json_string_value(v);
    r->out->torch_dtype = -1;
    if (name && strcmp(name, "float32") == 0)
        r->out->torch_dtype = PS_DTYPE_F32;
    else if (name && strcmp(name, "bfloat16") == 0)
        r->out->torch_dtype = PS_DTYPE_BF16;
    else if (name && strcmp(name, "float16") == 0)
        r->out->torch_dtype = PS_DTYPE_F16;
}

int ps_model_config_parse(struct ps_model_config *out, const char *text, size_t len,
                          const char *file, struct ps_error *err)
{
    struct ps_model_config cfg = {0};
    json_t *root;
    int ret = ps_json_parse(text, len, PS_JSON_STRICT, file, &root, err);
    if (ret)
        return ret;
    struct reader r = {.out = &cfg, .root = root, .file = file, .err = err};
    if (!json_is_object(root))
        ret = ps_error_full(err, PS_EFORMAT, file, NULL, NULL, "must be a JSON object");
    if (!ret)
        ret = read_family(&r);
    if (!ret)
        ret = refuse_features(&r);
    if (!ret)
        ret = read_sizes(&r);
    if (!ret)
        ret = check_heads(&r);
    if (!ret)
        ret = read_switches(&r);
    if (!ret)
        ret = read_window(&r);
    if (!ret)
        ret = ps__model_config_rope(&cfg, root, file, err);
    if (!ret)
        ret = read_tokens(&r);
    if (!ret) {
        read_dtype(&r);
        *out = cfg;
    }
    json_decref(root);
    return ret;
}

/* The stop tokens of generation_config.json beside it, where there is one. */
static int add_generation_eos(struct ps_model_config *c, const char *dir, struct ps_error *err)
{
    char path[PATH_MAX];
    struct stat st;
    if (!ps_path_join(path, sizeof path, dir, "generation_config.json") || stat(path, &st) < 0)
        return 0;
    json_t *root;
    int ret = ps_json_load(path, CONFIG_BYTES_MAX, &root, err);
    if (ret)
        return ret;
    ret = add_eos(c, root, path, err);
    json_decref(root);
    return ret;
}

int ps_model_config_load(struct ps_model_config *out, const char *path, struct ps_error *err)
{
    char file[PATH_MAX];
    struct stat st;
    bool is_dir = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    if (is_dir && !ps_path_join(file, sizeof file, path, "config.json"))
        return ps_error_full(err, -ENAMETOOLONG, path, NULL, NULL, "path too long");
    const char *name = is_dir ? file : path;
    char *text;
    size_t len;
    int ret = ps_file_read(name, CONFIG_BYTES_MAX, &text, &len, err);
    if (ret)
        return ret;
    struct ps_model_config cfg;
    ret = ps_model_config_parse(&cfg, text, len, name, err);
    free(text);
    if (!ret && is_dir)
        ret = add_generation_eos(&cfg, path, err);
    if (!ret)
        *out = cfg;
    return ret;
}
