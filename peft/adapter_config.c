/* Reading adapter_config.json and runtime_adapter.json: see adapter_config.h. */
#include "peft/adapter_config.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "peft/ia3.h"
#include "peft/lowrank.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"

#define CONFIG_BYTES_MAX ((size_t)1 << 20)

static int join(char *buf, size_t size, const char *dir, const char *name, struct ps_error *err)
{
    if (ps_path_join(buf, size, dir, name))
        return 0;
    return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
}

static int unsupported(struct ps_error *err, const char *path, const char *field, const char *why)
{
    return ps_error_full(err, PS_EUNSUPPORTED, path, field, "use a plain LoRA adapter",
                         "the adapter uses %s: %s", field, why);
}

static bool is_off(const json_t *v)
{
    return !v || json_is_null(v) || json_is_false(v) ||
           ((json_is_object(v) || json_is_array(v)) && json_object_size(v) == 0 &&
            json_array_size(v) == 0);
}

static const char *const bias_name[] = {"none", "all", "lora_only"};

const char *ps_adapter_bias_name(enum ps_adapter_bias bias)
{
    return bias_name[bias];
}

bool ps_adapter_bias_find(enum ps_adapter_bias *out, const char *name)
{
    for (int i = 0; i < 3; i++) {
        if (strcmp(bias_name[i], name) != 0)
            continue;
        *out = (enum ps_adapter_bias)i;
        return true;
    }
    return false;
}

/* Fields that change what the adapter computes and that Penstock does not apply. */
static int check_plain(const json_t *root, const char *path, struct ps_error *err)
{
    static const char *const falsy[] = {"fan_in_fan_out",
                                        "lora_bias",
                                        "layer_replication",
                                        "alora_invocation_tokens",
                                        "trainable_token_indices",
                                        "corda_config",
                                        "eva_config",
                                        "target_parameters",
                                        "arrow_config",
                                        "use_qalora",
                                        "use_bdlora",
                                        "kasa_config",
                                        "monteclora_config",
                                        "velora_config",
                                        "megatron_config"};
    for (size_t i = 0; i < sizeof falsy / sizeof falsy[0]; i++)
        if (!is_off(json_object_get(root, falsy[i])))
            return unsupported(err, path, falsy[i], "this version does not apply it");
    const json_t *init = json_object_get(root, "init_lora_weights");
    if (json_is_string(init) && strcmp(json_string_value(init), "gaussian") != 0)
        return unsupported(err, path, "init_lora_weights",
                           "this initialisation changes the base weights when PEFT loads it");
    return 0;
}

static int read_pattern(const json_t *root, const char *name, const char *path,
                        struct ps_pattern **out, size_t *count, struct ps_error *err)
{
    json_t *object = json_object_get(root, name);
    if (is_off(object))
        return 0;
    if (!json_is_object(object))
        return ps_error_full(err, PS_EFORMAT, path, name, NULL, "%s must be an object", name);
    *out = calloc(json_object_size(object), sizeof **out);
    if (!*out)
        return ps_error_set(err, -ENOMEM, "out of memory");
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        if (!json_is_number(value))
            return ps_error_full(err, PS_EFORMAT, path, name, NULL, "%s holds no number for '%s'",
                                 name, key);
        struct ps_pattern *p = &(*out)[*count];
        p->key = strdup(key);
        if (!p->key)
            return ps_error_set(err, -ENOMEM, "out of memory");
        p->value = json_number_value(value);
        ++*count;
    }
    return 0;
}

/* The embedding and the head may be saved beside an adapter, nothing else. */
static int read_saved(struct ps_adapter_config *c, const json_t *root, const char *path,
                      struct ps_error *err)
{
    const json_t *list = json_object_get(root, "modules_to_save");
    size_t i;
    const json_t *item;
    if (!is_off(list) && !json_is_array(list))
        return unsupported(err, path, "modules_to_save", "it must be a list");
    json_array_foreach(list, i, item)
    {
        const char *name = json_string_value(item);
        if (name && strcmp(name, "lm_head") == 0)
            c->save_head = true;
        else if (name && strcmp(name, "embed_tokens") == 0)
            c->save_embed = true;
        else
            return unsupported(err, path, "modules_to_save",
                               "only lm_head and embed_tokens can be saved whole");
    }
    return 0;
}

static int read_bias(struct ps_adapter_config *c, const json_t *root, const char *path,
                     struct ps_error *err)
{
    const char *bias;
    int ret = ps_json_get_string(root, "bias", "none", path, &bias, err);
    if (ret < 0 || ps_adapter_bias_find(&c->bias, bias))
        return ret;
    return unsupported(err, path, "bias", "it must be none, all or lora_only");
}

static int read_lora(struct ps_adapter_file *f, const json_t *root, const char *path,
                     struct ps_error *err)
{
    struct ps_adapter_config *c = &f->config;
    int64_t r = 0;
    bool rslora = false;
    bool dora = false;
    int ret = check_plain(root, path, err);
    if (ret == 0)
        ret = ps_json_get_int(root, "r", 1, 65536, 8, path, &r, err);
    if (ret == 0)
        ret = ps_json_get_real(root, "lora_alpha", 1e-9, 1e9, 8, path, &c->alpha, err);
    if (ret == 0)
        ret = ps_json_get_real(root, "lora_dropout", 0, 0.999, 0, path, &c->dropout, err);
    if (ret == 0)
        ret = ps_json_get_bool(root, "use_rslora", false, path, &rslora, err);
    if (ret == 0)
        ret = ps_json_get_bool(root, "use_dora", false, path, &dora, err);
    if (ret == 0)
        ret = read_pattern(root, "rank_pattern", path, &f->rank, &f->rank_count, err);
    if (ret == 0)
        ret = read_pattern(root, "alpha_pattern", path, &f->alpha, &f->alpha_count, err);
    if (ret == 0)
        ret = read_saved(c, root, path, err);
    if (ret == 0)
        ret = read_bias(c, root, path, err);
    if (ret == 0) {
        c->method = dora ? "dora" : "lora";
        c->r = (int32_t)r;
        c->use_rslora = rslora;
    }
    return ret;
}

static int read_vera(struct ps_adapter_file *f, const json_t *root, const char *path,
                     struct ps_error *err)
{
    static const char *const falsy[] = {"fan_in_fan_out", "modules_to_save"};
    for (size_t i = 0; i < sizeof falsy / sizeof falsy[0]; i++)
        if (!is_off(json_object_get(root, falsy[i])))
            return unsupported(err, path, falsy[i], "this version does not apply it");
    if (json_is_false(json_object_get(root, "save_projection")))
        return ps_error_full(err, PS_EUNSUPPORTED, path, "save_projection",
                             "save it again with save_projection=True",
                             "the adapter's projections are not in its file");
    struct ps_adapter_config *c = &f->config;
    int64_t r = 0;
    int ret = ps_json_get_int(root, "r", 1, 65536, 256, path, &r, err);
    if (ret == 0)
        ret = ps_json_get_real(root, "vera_dropout", 0, 0.999, 0, path, &c->dropout, err);
    c->method = "vera";
    c->r = (int32_t)r;
    return ret;
}

static int read_vectors(struct ps_adapter_file *f, const json_t *root, const char *path,
                        const char *name, struct ps_error *err)
{
    static const char *const falsy[] = {"fan_in_fan_out", "modules_to_save"};
    for (size_t i = 0; i < sizeof falsy / sizeof falsy[0]; i++)
        if (!is_off(json_object_get(root, falsy[i])))
            return unsupported(err, path, falsy[i], "this version does not apply it");
    f->config.method = name;
    f->config.r = 1;
    f->config.alpha = 1;
    return 0;
}

/* Which linears' inputs (IA)^3 scales is fixed here. */
static int check_ia3(const json_t *root, const char *path, struct ps_error *err)
{
    const json_t *list = json_object_get(root, "feedforward_modules");
    size_t i;
    const json_t *item;
    json_array_foreach(list, i, item)
    {
        const char *s = json_string_value(item);
        const char *dot = s ? strrchr(s, '.') : NULL;
        if (!s || strcmp(dot ? dot + 1 : s, "down_proj") != 0)
            return unsupported(err, path, "feedforward_modules", "only down_proj can be one");
    }
    return 0;
}

static int read_type(struct ps_adapter_file *f, const json_t *root, const char *path,
                     struct ps_error *err)
{
    const char *type;
    int ret = ps_json_get_string(root, "peft_type", "", path, &type, err);
    if (ret < 0)
        return ret;
    if (strcmp(type, "LORA") == 0)
        return read_lora(f, root, path, err);
    if (strcmp(type, "VERA") == 0)
        return read_vera(f, root, path, err);
    if (strcmp(type, "LN_TUNING") == 0)
        return read_vectors(f, root, path, "norms", err);
    if (strcmp(type, "IA3") == 0) {
        ret = check_ia3(root, path, err);
        return ret < 0 ? ret : read_vectors(f, root, path, "ia3", err);
    }
    return ps_error_full(err, PS_EUNSUPPORTED, path, "peft_type", NULL,
                         "adapters of type '%s' are not supported; LORA, VERA, IA3 and LN_TUNING "
                         "are",
                         type);
}

/* The method that PEFT's file does not name. */
static int read_own(struct ps_adapter_file *f, const char *path, struct ps_error *err)
{
    json_t *root;
    int ret = ps_json_load(path, CONFIG_BYTES_MAX, &root, err);
    if (ret < 0)
        return ret;
    const char *name;
    int64_t r = 0;
    bool rslora = false;
    struct ps_adapter_config *c = &f->config;
    ret = ps_json_get_string(root, "method", "", path, &name, err);
    if (ret == 0)
        ret = ps_json_get_int(root, "r", 1, 65536, c->r, path, &r, err);
    if (ret == 0)
        ret = ps_json_get_real(root, "alpha", 1e-9, 1e9, c->alpha, path, &c->alpha, err);
    if (ret == 0)
        ret = ps_json_get_real(root, "dropout", 0, 0.999, 0, path, &c->dropout, err);
    if (ret == 0)
        ret = ps_json_get_bool(root, "use_rslora", false, path, &rslora, err);
    const struct ps_adapter_ops *ops = ret == 0 ? ps_adapter_find(name) : NULL;
    if (ret == 0 && !ops)
        ret = ps_error_full(err, PS_EUNSUPPORTED, path, "method",
                            "remove the file, and the adapter is what its other files say",
                            "there is no method '%s'", name);
    if (ret == 0)
        ret = read_pattern(root, "rank_pattern", path, &f->rank, &f->rank_count, err);
    if (ret == 0)
        ret = read_pattern(root, "alpha_pattern", path, &f->alpha, &f->alpha_count, err);
    if (ret == 0)
        ret = read_saved(c, root, path, err);
    if (ret == 0)
        ret = read_bias(c, root, path, err);
    if (ret == 0) {
        c->method = ops->name;
        c->r = (int32_t)r;
        c->use_rslora = rslora;
    }
    json_decref(root);
    return ret;
}

int ps_adapter_file_read(struct ps_adapter_file *out, const char *dir, struct ps_error *err)
{
    memset(out, 0, sizeof *out);
    char path[1024];
    char own[1024];
    json_t *root = NULL;
    int ret = join(path, sizeof path, dir, PS_ADAPTER_CONFIG_NAME, err);
    if (ret == 0)
        ret = join(own, sizeof own, dir, PS_ADAPTER_OWN_CONFIG_NAME, err);
    if (ret < 0)
        return ret;
    if (access(own, F_OK) == 0)
        return read_own(out, own, err);
    ret = ps_json_load(path, CONFIG_BYTES_MAX, &root, err);
    if (ret < 0)
        return ps_error_advice(err, ret, "--adapter takes a PEFT adapter directory");
    ret = read_type(out, root, path, err);
    json_decref(root);
    return ret;
}

static void free_patterns(struct ps_pattern *p, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(p[i].key);
    free(p);
}

void ps_adapter_file_fini(struct ps_adapter_file *f)
{
    free_patterns(f->rank, f->rank_count);
    free_patterns(f->alpha, f->alpha_count);
}
