/* adapter_config.json and runtime_adapter.json: see adapter_config.h. */
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
    const char *bias;
    int ret = ps_json_get_string(root, "bias", "none", path, &bias, err);
    if (ret < 0)
        return ret;
    if (strcmp(bias, "none") != 0)
        return unsupported(err, path, "bias", "trained biases beside an adapter are not read");
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

static json_t *saved_modules(const struct ps_adapter_config *c)
{
    if (!c->save_embed && !c->save_head)
        return json_null();
    json_t *list = json_array();
    if (c->save_embed)
        json_array_append_new(list, json_string("embed_tokens"));
    if (c->save_head)
        json_array_append_new(list, json_string("lm_head"));
    return list;
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

/* target_modules: bare names when every adapted layer has the same linears, else full paths. */
static json_t *target_modules(const struct ps_trainer *t, bool *uniform, bool *every_layer)
{
    int32_t n_layer = ps_trainer_config(t)->n_layer;
    unsigned common = 0;
    *uniform = true;
    *every_layer = true;
    for (int32_t l = 0; l < n_layer; l++) {
        unsigned mask = 0;
        for (int r = 0; r < PS_LINEAR_COUNT; r++)
            mask |= ps_trainer_site(t, l, (enum ps_role)r) ? 1u << r : 0;
        if (!mask)
            *every_layer = false;
        else if (common && mask != common)
            *uniform = false;
        if (mask)
            common = mask;
    }
    json_t *list = json_array();
    for (int r = 0; *uniform && r < PS_LINEAR_COUNT; r++)
        if (common >> r & 1)
            json_array_append_new(list, json_string(ps_linear_name((enum ps_role)r)));
    for (int32_t i = 0; !*uniform && i < n_layer * PS_LINEAR_COUNT; i++) {
        enum ps_role r = (enum ps_role)(i % PS_LINEAR_COUNT);
        char path[96];
        PS_IGNORE(snprintf(path, sizeof path, "model.layers.%d.%s.%s", i / PS_LINEAR_COUNT,
                           ps_linear_parent(r), ps_linear_name(r)) < 0,
                  "cannot fail");
        if (ps_trainer_site(t, i / PS_LINEAR_COUNT, r))
            json_array_append_new(list, json_string(path));
    }
    return list;
}

static json_t *adapted_layers(const struct ps_trainer *t)
{
    json_t *list = json_array();
    for (int32_t l = 0; l < ps_trainer_config(t)->n_layer; l++) {
        bool any = false;
        for (int r = 0; r < PS_LINEAR_COUNT; r++)
            any |= ps_trainer_site(t, l, (enum ps_role)r) != NULL;
        if (any)
            json_array_append_new(list, json_integer(l));
    }
    return list;
}

static json_t *number(double v)
{
    return floor(v) == v && fabs(v) < 1e9 ? json_integer((json_int_t)v) : json_real(v);
}

/* Rank and alpha of a site, as PEFT's file has them. */
static void in_file(const struct ps_adapter_ops *ops, const struct ps_adapter_config *c, int32_t *r,
                    double *alpha)
{
    const struct ps_peft_method *m = ps_peft_method_of(ops);
    *r = ops->vector ? 1 : m->has_pair ? 2 * c->r : c->r;
    *alpha = m->folds ? (double)*r : c->alpha;
}

/* Sites whose rank or alpha differs from the adapter's. `own`: alphas of the method, not the
 * file's.
 */
static json_t *pattern(const struct ps_trainer *t, bool alpha, bool own)
{
    const struct ps_adapter_config *all = ps_trainer_adapter_config(t);
    const struct ps_adapter_ops *ops = ps_trainer_adapter_ops(t);
    json_t *object = json_object();
    int32_t r;
    double a;
    in_file(ops, all, &r, &a);
    if (own) {
        r = all->r;
        a = all->alpha;
    }
    for (int32_t i = 0; i < ps_trainer_config(t)->n_layer * PS_LINEAR_COUNT; i++) {
        enum ps_role role = (enum ps_role)(i % PS_LINEAR_COUNT);
        const struct ps_adapter_site *s = ps_trainer_site(t, i / PS_LINEAR_COUNT, role);
        if (!s)
            continue;
        int32_t site_r;
        double site_a;
        in_file(ops, s->config, &site_r, &site_a);
        if (own) {
            site_r = s->config->r;
            site_a = s->config->alpha;
        }
        char path[96];
        PS_IGNORE(snprintf(path, sizeof path, "model.layers.%d.%s.%s", s->layer,
                           ps_linear_parent(role), ps_linear_name(role)) < 0,
                  "cannot fail");
        if (alpha ? site_a != a : site_r != r)
            json_object_set_new(object, path, alpha ? number(site_a) : json_integer(site_r));
    }
    return object;
}

/* Paths of the modules whose vectors are trained. */
static json_t *vector_modules(const struct ps_trainer *t)
{
    json_t *list = json_array();
    for (size_t i = 0; i < ps_trainer_adapter_count(t); i++) {
        const struct ps_param_info *p =
            &ps_trainer_params(t)->param[ps_trainer_adapter_at(t, i)->param_idx];
        char path[128];
        PS_IGNORE(snprintf(path, sizeof path, "%.*s", (int)(strrchr(p->name, '.') - p->name),
                           p->name) < 0,
                  "cannot fail");
        json_array_append_new(list, json_string(path));
    }
    return list;
}

static json_t *lora_config(const struct ps_trainer *t, json_t *base)
{
    const struct ps_adapter_config *c = ps_trainer_adapter_config(t);
    const struct ps_adapter_ops *ops = ps_trainer_adapter_ops(t);
    bool uniform;
    bool every_layer;
    json_t *targets = target_modules(t, &uniform, &every_layer);
    json_t *layers = uniform && !every_layer && !ops->vector ? adapted_layers(t) : json_null();
    if (ops->vector) {
        json_decref(targets);
        targets = vector_modules(t);
    }
    int32_t r;
    double alpha;
    in_file(ops, c, &r, &alpha);
    bool rslora = c->use_rslora && !ps_peft_method_of(ops)->folds;
    return json_pack(
        "{s:s, s:s, s:o, s:n, s:b, s:i, s:o, s:f, s:o, s:n, s:s, s:b, s:b, s:b, s:b, s:o, s:o, s:n,"
        " s:o, s:o, s:n, s:n, s:s, s:n, s:{}}",
        "peft_type", "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path", base, "revision",
        "inference_mode", 1, "r", (int)r, "lora_alpha", number(alpha), "lora_dropout", c->dropout,
        "target_modules", targets, "exclude_modules", "bias", ops->vector ? "all" : "none",
        "fan_in_fan_out", 0, "use_rslora", (int)rslora, "use_dora",
        (int)(strcmp(ops->name, "dora") == 0), "init_lora_weights", 1, "modules_to_save",
        saved_modules(c), "layers_to_transform", layers, "layers_pattern", "rank_pattern",
        pattern(t, false, false), "alpha_pattern", pattern(t, true, false), "auto_mapping",
        "megatron_config", "megatron_core", "megatron.core", "layer_replication", "loftq_config");
}

static json_t *ia3_config(const struct ps_trainer *t, json_t *base)
{
    bool uniform;
    bool every_layer;
    json_t *targets = target_modules(t, &uniform, &every_layer);
    json_t *inputs = json_array();
    size_t i;
    const json_t *item;
    if (uniform && !every_layer) { /* IA3 has no list of layers */
        json_array_clear(targets);
        for (int32_t k = 0; k < ps_trainer_config(t)->n_layer * PS_LINEAR_COUNT; k++) {
            enum ps_role r = (enum ps_role)(k % PS_LINEAR_COUNT);
            char path[96];
            PS_IGNORE(snprintf(path, sizeof path, "model.layers.%d.%s.%s", k / PS_LINEAR_COUNT,
                               ps_linear_parent(r), ps_linear_name(r)) < 0,
                      "cannot fail");
            if (ps_trainer_site(t, k / PS_LINEAR_COUNT, r))
                json_array_append_new(targets, json_string(path));
        }
    }
    json_array_foreach(targets, i, item)
    {
        const char *s = json_string_value(item);
        const char *down = ps_linear_name(PS_ROLE_DOWN);
        size_t n = strlen(s);
        if (n >= strlen(down) && strcmp(s + n - strlen(down), down) == 0)
            json_array_append_new(inputs, json_string(s));
    }
    return json_pack("{s:s, s:s, s:o, s:n, s:b, s:o, s:o, s:b, s:b, s:n, s:n}", "peft_type", "IA3",
                     "task_type", "CAUSAL_LM", "base_model_name_or_path", base, "revision",
                     "inference_mode", 1, "target_modules", targets, "feedforward_modules", inputs,
                     "fan_in_fan_out", 0, "init_ia3_weights", 1, "modules_to_save",
                     "exclude_modules");
}

static json_t *vera_config(const struct ps_trainer *t, json_t *base)
{
    const struct ps_adapter_config *c = ps_trainer_adapter_config(t);
    bool uniform;
    bool every_layer;
    json_t *targets = target_modules(t, &uniform, &every_layer);
    json_t *layers = uniform && !every_layer ? adapted_layers(t) : json_null();
    return json_pack("{s:s, s:s, s:o, s:n, s:b, s:i, s:o, s:i, s:b, s:f, s:f, s:b, s:s, s:b, s:n,"
                     " s:o, s:n}",
                     "peft_type", "VERA", "task_type", "CAUSAL_LM", "base_model_name_or_path", base,
                     "revision", "inference_mode", 1, "r", (int)c->r, "target_modules", targets,
                     "projection_prng_key", 0, "save_projection", 1, "vera_dropout", c->dropout,
                     "d_initial", 0.1, "fan_in_fan_out", 0, "bias", "none", "init_weights", 1,
                     "modules_to_save", "layers_to_transform", layers, "layers_pattern");
}

static json_t *norms_config(const struct ps_trainer *t, json_t *base)
{
    return json_pack("{s:s, s:s, s:o, s:n, s:b, s:o, s:n, s:n}", "peft_type", "LN_TUNING",
                     "task_type", "CAUSAL_LM", "base_model_name_or_path", base, "revision",
                     "inference_mode", 1, "target_modules", vector_modules(t), "exclude_modules",
                     "modules_to_save");
}

static int write_json(const char *path, json_t *root, struct ps_error *err)
{
    char *text =
        root ? json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    if (!text)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = ps_file_write(path, text, strlen(text), err);
    free(text);
    return ret;
}

static int write_own(const char *path, const struct ps_trainer *t, struct ps_error *err)
{
    const struct ps_adapter_config *c = ps_trainer_adapter_config(t);
    json_t *root = json_pack(
        "{s:i, s:s, s:i, s:o, s:f, s:b, s:o, s:o, s:o}", "version", 1, "method",
        ps_trainer_adapter_ops(t)->name, "r", (int)c->r, "alpha", number(c->alpha), "dropout",
        c->dropout, "use_rslora", (int)c->use_rslora, "rank_pattern", pattern(t, false, true),
        "alpha_pattern", pattern(t, true, true), "modules_to_save", saved_modules(c));
    return write_json(path, root, err);
}

int ps_adapter_config_write(const char *dir, const struct ps_trainer *t, const char *base_name,
                            struct ps_error *err)
{
    const struct ps_adapter_ops *ops = ps_trainer_adapter_ops(t);
    const char *type = ps_peft_method_of(ops)->peft_type;
    char path[1024];
    char own[1024];
    int ret = join(path, sizeof path, dir, PS_ADAPTER_CONFIG_NAME, err);
    if (ret == 0)
        ret = join(own, sizeof own, dir, PS_ADAPTER_OWN_CONFIG_NAME, err);
    if (ret < 0)
        return ret;
    /* A path that is not UTF-8 has no spelling in JSON; PEFT accepts null. */
    json_t *base = json_string(base_name);
    base = base ? base : json_null();
    json_t *root = strcmp(type, "IA3") == 0         ? ia3_config(t, base)
                   : strcmp(type, "VERA") == 0      ? vera_config(t, base)
                   : strcmp(type, "LN_TUNING") == 0 ? norms_config(t, base)
                                                    : lora_config(t, base);
    ret = write_json(path, root, err);
    bool named = strcmp(type, "LORA") != 0 || strcmp(ops->name, "lora") == 0 ||
                 strcmp(ops->name, "dora") == 0;
    return ret < 0 || named ? ret : write_own(own, t, err);
}
