/* Adapter directories in PEFT's format: see adapters.h. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peft/adapters.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/model/safetensors.h"

#define CONFIG_NAME "adapter_config.json"
#define WEIGHTS_NAME "adapter_model.safetensors"
#define CONFIG_BYTES_MAX ((size_t)1 << 20)

static int join(char *buf, size_t size, const char *dir, const char *name, struct ps_error *err)
{
    if (ps_path_join(buf, size, dir, name))
        return 0;
    return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
}

/* "base_model.model.model.layers.N.parent.linear.suffix" -> layer and role. */
static bool parse_key(const char *key, int32_t n_layer, int32_t *layer, enum ps_role *role,
                      const char **suffix)
{
    static const char prefix[] = "base_model.model.model.layers.";
    if (strncmp(key, prefix, sizeof prefix - 1) != 0)
        return false;
    const char *at = key + sizeof prefix - 1;
    if (*at < '0' || *at > '9')
        return false;
    char *end;
    long l = strtol(at, &end, 10);
    if (l < 0 || l >= n_layer || *end != '.')
        return false;
    for (int r = 0; r < PS_LINEAR_COUNT; r++) {
        char part[48];
        int len = snprintf(part, sizeof part, ".%s.%s.", ps_linear_parent((enum ps_role)r),
                           ps_linear_name((enum ps_role)r));
        if (strncmp(end, part, (size_t)len) == 0) {
            *layer = (int32_t)l;
            *role = (enum ps_role)r;
            *suffix = end + len;
            return true;
        }
    }
    return false;
}

static int unsupported(struct ps_error *err, const char *path, const char *field, const char *why)
{
    return ps_error_full(err, PS_EUNSUPPORTED, path, field, "use a plain LoRA adapter",
                         "the adapter uses %s: %s", field, why);
}

/* Fields that change what the adapter computes and that Penstock does not apply. */
static int check_plain(const json_t *root, const char *path, struct ps_error *err)
{
    static const char *const falsy[] = {"use_dora",
                                        "fan_in_fan_out",
                                        "lora_bias",
                                        "modules_to_save",
                                        "layer_replication",
                                        "alora_invocation_tokens",
                                        "trainable_token_indices",
                                        "rank_pattern",
                                        "alpha_pattern",
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
    for (size_t i = 0; i < sizeof falsy / sizeof falsy[0]; i++) {
        const json_t *v = json_object_get(root, falsy[i]);
        bool off = !v || json_is_null(v) || json_is_false(v) ||
                   ((json_is_object(v) || json_is_array(v)) && json_object_size(v) == 0 &&
                    json_array_size(v) == 0);
        if (!off)
            return unsupported(err, path, falsy[i], "this version reads plain LoRA only");
    }
    const char *bias;
    int ret = ps_json_get_string(root, "bias", "none", path, &bias, err);
    if (ret < 0)
        return ret;
    if (strcmp(bias, "none") != 0)
        return unsupported(err, path, "bias", "trained biases are not read");
    const json_t *init = json_object_get(root, "init_lora_weights");
    if (json_is_string(init) && strcmp(json_string_value(init), "gaussian") != 0)
        return unsupported(err, path, "init_lora_weights",
                           "this initialisation changes the base weights when PEFT loads it");
    return 0;
}

static int read_config(const char *path, struct ps_adapter_config *cfg, struct ps_error *err)
{
    json_t *root;
    int ret = ps_json_load(path, CONFIG_BYTES_MAX, &root, err);
    if (ret < 0)
        return ps_error_advice(err, ret, "--adapter takes a PEFT adapter directory");
    const char *type;
    int64_t r;
    bool rslora;
    ret = ps_json_get_string(root, "peft_type", "", path, &type, err);
    if (ret == 0 && strcmp(type, "LORA") != 0)
        ret = ps_error_full(err, PS_EUNSUPPORTED, path, "peft_type", NULL,
                            "adapters of type '%s' are not supported; LORA is", type);
    if (ret == 0)
        ret = check_plain(root, path, err);
    if (ret == 0)
        ret = ps_json_get_int(root, "r", 1, 65536, 8, path, &r, err);
    if (ret == 0)
        ret = ps_json_get_real(root, "lora_alpha", 1e-9, 1e9, 8, path, &cfg->alpha, err);
    if (ret == 0)
        ret = ps_json_get_real(root, "lora_dropout", 0, 0.999, 0, path, &cfg->dropout, err);
    if (ret == 0)
        ret = ps_json_get_bool(root, "use_rslora", false, path, &rslora, err);
    if (ret == 0) {
        cfg->method = "lora";
        cfg->r = (int32_t)r;
        cfg->use_rslora = rslora;
    }
    json_decref(root);
    return ret;
}

static int stray_tensor(struct ps_error *err, const char *path, const char *name)
{
    return ps_error_full(
        err, PS_EFORMAT, path, name,
        "keys must be base_model.model.model.layers.N.<module>.lora_A.weight; is the "
        "adapter for another model?",
        "the tensor %s fits no linear of this model", name);
}

int ps_adapter_dir_config(const char *dir, const struct ps_model_config *model,
                          struct ps_adapter_config *cfg, bool *site_on, struct ps_error *err)
{
    char path[1024];
    int ret = join(path, sizeof path, dir, CONFIG_NAME, err);
    if (ret == 0)
        ret = read_config(path, cfg, err);
    if (ret == 0)
        ret = join(path, sizeof path, dir, WEIGHTS_NAME, err);
    struct ps_st_file *f = NULL;
    if (ret == 0)
        ret = ps_st_open(&f, path, err);
    if (ret < 0)
        return ret;
    memset(site_on, 0, (size_t)model->n_layer * PS_LINEAR_COUNT * sizeof *site_on);
    for (size_t i = 0; ret == 0 && i < ps_st_count(f); i++) {
        int32_t layer;
        enum ps_role role;
        const char *suffix;
        const char *name = ps_st_at(f, i)->name;
        if (parse_key(name, model->n_layer, &layer, &role, &suffix))
            site_on[(size_t)layer * PS_LINEAR_COUNT + (size_t)role] = true;
        else
            ret = stray_tensor(err, path, name);
    }
    ps_st_close(f);
    return ret;
}

static int load_tensor(const struct ps_st_file *f, const struct ps_trainable *x,
                       struct ps_error *err)
{
    const char *path = ps_st_path(f);
    const struct ps_st_tensor *t = ps_st_find(f, x->name);
    if (!t)
        return ps_error_full(err, PS_EFORMAT, path, x->name, "the adapter is incomplete",
                             "the adapter has no tensor %s", x->name);
    if (t->rank != x->rank || t->shape[0] != x->shape[0] || t->shape[1] != x->shape[1])
        return ps_error_full(err, PS_EFORMAT, path, x->name, "is the adapter for another model?",
                             "tensor %s has shape [%lld, %lld], the model needs [%lld, %lld]",
                             x->name, (long long)t->shape[0], (long long)t->shape[1],
                             (long long)x->shape[0], (long long)x->shape[1]);
    if (t->dtype < 0 || t->dtype > PS_DTYPE_F16)
        return ps_error_full(err, PS_EUNSUPPORTED, path, x->name, NULL, "tensor %s has dtype %s",
                             x->name, t->dtype_text);
    int ret = ps_st_read_as(f, t, PS_DTYPE_F32, x->weight, err);
    const float *w = x->weight;
    for (size_t i = 0; ret == 0 && i < x->n; i++)
        if (!isfinite(w[i]))
            ret = ps_error_full(err, PS_EFORMAT, path, x->name, "the adapter's training diverged",
                                "tensor %s holds NaN or Inf", x->name);
    return ret;
}

int ps_adapter_dir_load(const char *dir, struct ps_trainer *t, struct ps_error *err)
{
    char path[1024];
    struct ps_st_file *f = NULL;
    int ret = join(path, sizeof path, dir, WEIGHTS_NAME, err);
    if (ret == 0)
        ret = ps_st_open(&f, path, err);
    if (ret < 0)
        return ret;
    size_t count = ps_trainer_trainable_count(t);
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = load_tensor(f, ps_trainer_trainable(t, i), err);
    for (size_t i = 0; ret == 0 && ps_st_count(f) != count && i < ps_st_count(f); i++) {
        bool known = false;
        for (size_t j = 0; j < count && !known; j++)
            known = strcmp(ps_trainer_trainable(t, j)->name, ps_st_at(f, i)->name) == 0;
        if (!known)
            ret = stray_tensor(err, path, ps_st_at(f, i)->name);
    }
    if (ret == 0)
        ret = ps_st_check_unchanged(f, err);
    ps_st_close(f);
    return ret;
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

static int write_config(const char *path, const struct ps_trainer *t, const char *base_name,
                        struct ps_error *err)
{
    const struct ps_adapter_config *c = ps_trainer_adapter_config(t);
    bool uniform;
    bool every_layer;
    json_t *targets = target_modules(t, &uniform, &every_layer);
    json_t *layers = uniform && !every_layer ? adapted_layers(t) : json_null();
    double whole = floor(c->alpha);
    json_t *alpha =
        whole == c->alpha && whole < 1e9 ? json_integer((json_int_t)whole) : json_real(c->alpha);
    /* A path that is not UTF-8 has no spelling in JSON; PEFT accepts null. */
    json_t *base = json_string(base_name);
    json_t *root = json_pack(
        "{s:s, s:s, s:o, s:n, s:b, s:i, s:o, s:f, s:o, s:n, s:s, s:b, s:b, s:b, s:b, s:n, s:o, s:n,"
        " s:{}, s:{}, s:n, s:n, s:s, s:n, s:{}}",
        "peft_type", "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path",
        base ? base : json_null(), "revision", "inference_mode", 1, "r", (int)c->r, "lora_alpha",
        alpha, "lora_dropout", c->dropout, "target_modules", targets, "exclude_modules", "bias",
        "none", "fan_in_fan_out", 0, "use_rslora", (int)c->use_rslora, "use_dora", 0,
        "init_lora_weights", 1, "modules_to_save", "layers_to_transform", layers, "layers_pattern",
        "rank_pattern", "alpha_pattern", "auto_mapping", "megatron_config", "megatron_core",
        "megatron.core", "layer_replication", "loftq_config");
    char *text =
        root ? json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    if (!text)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = ps_file_write(path, text, strlen(text), err);
    free(text);
    return ret;
}

/* A value that is finite as fp32 and too large for bf16 counts as non-finite when that is written.
 */
static int check_finite(struct ps_trainer *t, enum ps_dtype dtype, struct ps_error *err)
{
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        const float *w = x->weight;
        for (size_t j = 0; j < x->n; j++)
            if (!isfinite(dtype == PS_DTYPE_BF16 ? ps_bf16_to_f32(ps_f32_to_bf16(w[j])) : w[j]))
                return ps_error_full(err, PS_ENUMERIC, NULL, x->name, "lower the learning rate",
                                     "the adapter tensor %s holds NaN or Inf and is not saved",
                                     x->name);
    }
    return 0;
}

static int write_weights(const char *path, struct ps_trainer *t, enum ps_dtype dtype, void *piece,
                         struct ps_error *err)
{
    size_t count = ps_trainer_trainable_count(t);
    struct ps_st_spec *spec = calloc(count, sizeof *spec);
    if (!spec)
        return ps_error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        spec[i] = (struct ps_st_spec){
            .name = x->name, .dtype = dtype, .rank = x->rank, .shape = {x->shape[0], x->shape[1]}};
    }
    struct ps_st_writer *w = NULL;
    int ret = ps_st_writer_create(&w, path, spec, count, err);
    free(spec);
    for (size_t i = 0; ret == 0 && i < count; i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        ps_dtype_convert(piece, dtype, x->weight, PS_DTYPE_F32, x->n);
        ret = ps_st_writer_append(w, piece, x->n * ps_dtype_size(dtype), err);
    }
    if (ret == 0)
        return ps_st_writer_close(w, err);
    ps_st_writer_abort(w);
    return ret;
}

static int verify(const char *dir, const char *path, struct ps_trainer *t, enum ps_dtype dtype,
                  float *want, float *got, struct ps_error *err)
{
    const struct ps_model_config *model = ps_trainer_config(t);
    struct ps_adapter_config cfg = {0};
    size_t sites = (size_t)model->n_layer * PS_LINEAR_COUNT;
    bool *on = calloc(sites, sizeof *on);
    if (!on)
        return ps_error_set(err, -ENOMEM, "out of memory");
    struct ps_st_file *f = NULL;
    int ret = ps_adapter_dir_config(dir, model, &cfg, on, err);
    const struct ps_adapter_config *mine = ps_trainer_adapter_config(t);
    bool same = cfg.r == mine->r && fabs(cfg.alpha - mine->alpha) <= 1e-6 * mine->alpha &&
                cfg.use_rslora == mine->use_rslora;
    for (size_t i = 0; i < sites; i++)
        same &= on[i] == (ps_trainer_site(t, (int32_t)(i / PS_LINEAR_COUNT),
                                          (enum ps_role)(i % PS_LINEAR_COUNT)) != NULL);
    if (ret == 0)
        ret = ps_st_open(&f, path, err);
    for (size_t i = 0; ret == 0 && same && i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        const struct ps_st_tensor *s = ps_st_find(f, x->name);
        same = s && (size_t)s->elements == x->n;
        if (!same)
            break;
        ret = ps_st_read_as(f, s, PS_DTYPE_F32, got, err);
        ps_dtype_convert(want, dtype, x->weight, PS_DTYPE_F32, x->n);
        if (dtype == PS_DTYPE_BF16) {
            const uint16_t *h = (const uint16_t *)want;
            for (size_t j = 0; j < x->n; j++)
                same &= ps_bf16_to_f32(h[j]) == got[j];
        } else {
            same = memcmp(want, got, x->n * sizeof(float)) == 0;
        }
    }
    ps_st_close(f);
    free(on);
    if (ret == 0 && !same)
        ret = ps_error_full(err, PS_ECHECKSUM, path, NULL, "check the disk and save again",
                            "the saved adapter does not read back as it was written");
    return ret;
}

int ps_adapter_dir_save(const char *dir, struct ps_trainer *t, const char *base_name,
                        enum ps_dtype dtype, struct ps_error *err)
{
    char config[1024];
    char weights[1024];
    int ret = check_finite(t, dtype, err);
    if (ret == 0)
        ret = join(config, sizeof config, dir, CONFIG_NAME, err);
    if (ret == 0)
        ret = join(weights, sizeof weights, dir, WEIGHTS_NAME, err);
    if (ret < 0)
        return ret;
    size_t most = 1;
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        size_t n = ps_trainer_trainable(t, i)->n;
        most = n > most ? n : most;
    }
    float *piece = malloc(2 * most * sizeof *piece);
    if (!piece)
        return ps_error_set(err, -ENOMEM, "out of memory");
    ret = write_weights(weights, t, dtype, piece, err);
    if (ret == 0)
        ret = write_config(config, t, base_name, err);
    if (ret == 0)
        ret = verify(dir, weights, t, dtype, piece, piece + most, err);
    free(piece);
    return ret;
}
