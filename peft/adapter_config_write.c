/* Writing adapter_config.json and runtime_adapter.json: see adapter_config.h. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peft/adapter_config.h"
#include "peft/lowrank.h"
#include "runtime/base/file.h"

static int join(char *buf, size_t size, const char *dir, const char *name, struct ps_error *err)
{
    if (ps_path_join(buf, size, dir, name))
        return 0;
    return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
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

/* Paths of what is adapted. */
static json_t *all_paths(const struct ps_trainer *t)
{
    json_t *list = json_array();
    int32_t n_layer = ps_trainer_config(t)->n_layer;
    for (size_t i = 0; i < ps_site_count(n_layer); i++) {
        int32_t layer;
        enum ps_role role;
        char path[PS_SITE_PATH_MAX];
        ps_site_at(n_layer, i, &layer, &role);
        ps_site_path(path, layer, role);
        if (ps_trainer_site(t, layer, role))
            json_array_append_new(list, json_string(path));
    }
    return list;
}

/* target_modules: bare names when every adapted layer has the same linears, else full paths; what
 * lies outside the layers is not found beside a list of layers. */
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
    bool embed = ps_trainer_site(t, -1, PS_ROLE_EMBED);
    bool head = ps_trainer_site(t, -1, PS_ROLE_HEAD);
    *uniform = *uniform && (*every_layer || (!embed && !head));
    if (!*uniform)
        return all_paths(t);
    json_t *list = json_array();
    for (int r = 0; r < PS_LINEAR_COUNT; r++)
        if (common >> r & 1)
            json_array_append_new(list, json_string(ps_linear_name((enum ps_role)r)));
    if (embed)
        json_array_append_new(list, json_string("embed_tokens"));
    if (head)
        json_array_append_new(list, json_string("lm_head"));
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
    int32_t n_layer = ps_trainer_config(t)->n_layer;
    for (size_t i = 0; i < ps_site_count(n_layer); i++) {
        int32_t layer;
        enum ps_role role;
        ps_site_at(n_layer, i, &layer, &role);
        const struct ps_adapter_site *s = ps_trainer_site(t, layer, role);
        if (!s)
            continue;
        int32_t site_r;
        double site_a;
        in_file(ops, s->config, &site_r, &site_a);
        if (own) {
            site_r = s->config->r;
            site_a = s->config->alpha;
        }
        char path[PS_SITE_PATH_MAX];
        ps_site_path(path, layer, role);
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
        "target_modules", targets, "exclude_modules", "bias",
        ops->vector ? "all" : ps_adapter_bias_name(c->bias), "fan_in_fan_out", 0, "use_rslora",
        (int)rslora, "use_dora", (int)(strcmp(ops->name, "dora") == 0), "init_lora_weights", 1,
        "modules_to_save", saved_modules(c), "layers_to_transform", layers, "layers_pattern",
        "rank_pattern", pattern(t, false, false), "alpha_pattern", pattern(t, true, false),
        "auto_mapping", "megatron_config", "megatron_core", "megatron.core", "layer_replication",
        "loftq_config");
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
        json_decref(targets);
        targets = all_paths(t);
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
    json_t *root =
        json_pack("{s:i, s:s, s:i, s:o, s:f, s:b, s:o, s:o, s:o, s:s}", "version", 1, "method",
                  ps_trainer_adapter_ops(t)->name, "r", (int)c->r, "alpha", number(c->alpha),
                  "dropout", c->dropout, "use_rslora", (int)c->use_rslora, "rank_pattern",
                  pattern(t, false, true), "alpha_pattern", pattern(t, true, true),
                  "modules_to_save", saved_modules(c), "bias", ps_adapter_bias_name(c->bias));
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
