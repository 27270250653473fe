/* Weighted merging: see adapter_blend.h. */
#include "peft/adapter_blend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peft/adapter_config.h"
#include "peft/adapters.h"
#include "peft/lowrank.h"

/* One adapter: its sites, and its tensors behind one another in `value`. */
struct part {
    double weight;
    const struct ps_adapter_ops *ops;
    struct ps_adapter_config *config; /* (sites) */
    struct ps_adapter_site *site;     /* (sites), ops NULL: not adapted */
    struct ps_adapter_entry *entry;
    char (*name)[192];
    size_t entry_count;
    bool *on;
};

struct ps_adapter_blend {
    const struct ps_param_table *params;
    size_t count;
    struct part part[];
};

static size_t entry_max(const struct ps_param_table *params)
{
    return ps_site_count(params->n_layer) * PS_ADAPTER_TENSOR_MAX + params->count;
}

static int part_init(struct part *p, const struct ps_param_table *params, struct ps_error *err)
{
    size_t sites = ps_site_count(params->n_layer);
    p->config = calloc(sites, sizeof *p->config);
    p->site = calloc(sites, sizeof *p->site);
    p->on = calloc(sites, sizeof *p->on);
    p->entry = calloc(entry_max(params), sizeof *p->entry);
    p->name = calloc(entry_max(params), sizeof *p->name);
    bool ok = p->config && p->site && p->on && p->entry && p->name;
    return ok ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
}

static void part_fini(struct part *p)
{
    for (size_t i = 0; p->entry && i < p->entry_count; i++)
        free(p->entry[i].value);
    free(p->config);
    free(p->site);
    free(p->on);
    free(p->entry);
    free(p->name);
}

static struct ps_adapter_entry *add(struct part *p, int32_t rank, const int64_t *shape)
{
    struct ps_adapter_entry *e = &p->entry[p->entry_count];
    *e = (struct ps_adapter_entry){.name = p->name[p->entry_count],
                                   .rank = rank,
                                   .shape = {shape[0], rank == 2 ? shape[1] : 0},
                                   .n = (size_t)shape[0] * (size_t)(rank == 2 ? shape[1] : 1),
                                   .site = -1,
                                   .param_idx = -1,
                                   .trainable = -1};
    e->value = malloc(e->n * sizeof *e->value);
    if (e->value)
        p->entry_count++;
    return e->value ? e : NULL;
}

static float *shared_value(const struct part *p, const char *name)
{
    for (size_t i = 0; i < p->entry_count; i++)
        if (strcmp(p->name[i], name) == 0)
            return p->entry[i].value;
    return NULL;
}

static int add_site(struct part *p, const struct ps_model_config *model, size_t i,
                    struct ps_error *err)
{
    struct ps_adapter_site *s = &p->site[i];
    *s = (struct ps_adapter_site){.config = &p->config[i], .site_idx = (uint32_t)i};
    ps_site_at(model->n_layer, i, &s->layer, &s->role);
    ps_linear_shape(model, s->role, &s->out, &s->in);
    struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX] = {0};
    int count = p->ops->tensors(s, tensor, err);
    if (count < 0)
        return count;
    for (int k = 0; k < count; k++) {
        s->tensor[k] = tensor[k].shared ? shared_value(p, tensor[k].suffix) : NULL;
        if (s->tensor[k])
            continue;
        struct ps_adapter_entry *e = add(p, tensor[k].rank, tensor[k].shape);
        if (!e)
            return ps_error_set(err, -ENOMEM, "out of memory");
        s->tensor[k] = e->value;
        e->transposed = tensor[k].transposed;
        char *name = p->name[p->entry_count - 1];
        char path[PS_SITE_PATH_MAX];
        ps_site_path(path, s->layer, s->role);
        PS_IGNORE((tensor[k].shared ? snprintf(name, sizeof p->name[0], "%s", tensor[k].suffix)
                                    : snprintf(name, sizeof p->name[0], "base_model.model.%s.%s",
                                               path, tensor[k].suffix)) < 0,
                  "fits");
    }
    s->tensor_count = count;
    s->ops = p->ops;
    return 0;
}

static int add_vectors(struct part *p, const struct ps_param_table *params, struct ps_error *err)
{
    for (size_t i = 0; i < params->count; i++) {
        const struct ps_param_info *info = &params->param[i];
        if (info->rank != 1 || !p->ops->vector(info->role))
            continue;
        struct ps_adapter_entry *e = add(p, 1, info->shape);
        if (!e)
            return ps_error_set(err, -ENOMEM, "out of memory");
        e->param_idx = (int32_t)i;
        PS_IGNORE(snprintf(p->name[p->entry_count - 1], sizeof p->name[0],
                           "base_model.model.%.*s.%s", (int)(strrchr(info->name, '.') - info->name),
                           info->name, p->ops->vector_suffix) < 0,
                  "fits");
    }
    return 0;
}

/* As the trainer names them. */
static int add_biases(struct part *p, const struct ps_param_table *params,
                      const struct ps_adapter_config *c, struct ps_error *err)
{
    for (size_t i = 0; i < params->count; i++) {
        const struct ps_param_info *info = &params->param[i];
        if (info->role < PS_ROLE_Q_BIAS || info->role > PS_ROLE_DOWN_BIAS)
            continue;
        enum ps_role linear = (enum ps_role)((int)info->role - (int)PS_ROLE_Q_BIAS);
        bool adapted = p->on[ps_site_idx(params->n_layer, info->layer, linear)];
        if (!ps_adapter_bias_trained(c, info->role, adapted))
            continue;
        struct ps_adapter_entry *e = add(p, 1, info->shape);
        if (!e)
            return ps_error_set(err, -ENOMEM, "out of memory");
        e->param_idx = (int32_t)i;
        PS_IGNORE(snprintf(p->name[p->entry_count - 1], sizeof p->name[0],
                           "base_model.model.%.*s.%s", (int)(strrchr(info->name, '.') - info->name),
                           info->name, adapted ? "base_layer.bias" : "bias") < 0,
                  "fits");
    }
    return 0;
}

static int add_saved(struct part *p, const struct ps_param_table *params, enum ps_role role,
                     struct ps_error *err)
{
    int32_t i = ps_param_find(params, -1, role);
    const struct ps_param_info *info = &params->param[i];
    struct ps_adapter_entry *e = add(p, 2, info->shape);
    if (!e)
        return ps_error_set(err, -ENOMEM, "out of memory");
    e->param_idx = i;
    PS_IGNORE(snprintf(p->name[p->entry_count - 1], sizeof p->name[0], "base_model.model.%s",
                       info->name) < 0,
              "fits");
    return 0;
}

static int read_part(struct part *p, const char *dir, const struct ps_model_config *model,
                     const struct ps_param_table *params, struct ps_error *err)
{
    struct ps_adapter_config c = {0};
    int ret = part_init(p, params, err);
    if (ret == 0)
        ret = ps_adapter_dir_config(dir, model, &c, p->on, p->config, err);
    if (ret < 0)
        return ret;
    size_t sites = ps_site_count(params->n_layer);
    p->ops = ps_adapter_find(c.method);
    for (size_t i = 0; i < sites; i++) {
        int64_t out;
        int64_t in;
        int32_t layer;
        enum ps_role role;
        ps_site_at(model->n_layer, i, &layer, &role);
        ps_linear_shape(model, role, &out, &in);
        c.out_max = p->on[i] && out > c.out_max ? out : c.out_max;
        c.in_max = p->on[i] && in > c.in_max ? in : c.in_max;
    }
    for (size_t i = 0; ret == 0 && i < sites; i++) {
        p->config[i].out_max = c.out_max;
        p->config[i].in_max = c.in_max;
        if (p->on[i])
            ret = add_site(p, model, i, err);
    }
    if (ret == 0 && p->ops->vector)
        ret = add_vectors(p, params, err);
    if (ret == 0 && !p->ops->vector)
        ret = add_biases(p, params, &c, err);
    if (ret == 0 && c.save_embed)
        ret = add_saved(p, params, PS_ROLE_EMBED, err);
    if (ret == 0 && c.save_head)
        ret = add_saved(p, params, PS_ROLE_HEAD, err);
    return ret < 0 ? ret : ps_adapter_dir_entries(dir, p->ops, p->entry, p->entry_count, err);
}

int ps_adapter_blend_open(struct ps_adapter_blend **out, const char *const *dir,
                          const double *weight, size_t count, const struct ps_model_config *model,
                          const struct ps_param_table *params, struct ps_error *err)
{
    struct ps_adapter_blend *b = calloc(1, sizeof *b + count * sizeof b->part[0]);
    *out = b;
    if (!b)
        return ps_error_set(err, -ENOMEM, "out of memory");
    b->params = params;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < count; i++) {
        b->part[i].weight = weight[i];
        b->count++;
        ret = read_part(&b->part[i], dir[i], model, params, err);
    }
    if (ret == 0)
        return 0;
    ps_adapter_blend_destroy(b);
    *out = NULL;
    return ret;
}

void ps_adapter_blend_destroy(struct ps_adapter_blend *b)
{
    for (size_t i = 0; b && i < b->count; i++)
        part_fini(&b->part[i]);
    free(b);
}

/* The site whose weight, or whose bias, a parameter is. */
static const struct ps_adapter_site *site_of(const struct part *p, int32_t n_layer,
                                             const struct ps_param_info *info)
{
    int role = (int)info->role;
    bool bias = role >= PS_ROLE_Q_BIAS && role <= PS_ROLE_DOWN_BIAS;
    role = bias ? role - PS_ROLE_Q_BIAS : role;
    if (role >= PS_LINEAR_COUNT && role != PS_ROLE_EMBED && role != PS_ROLE_HEAD)
        return NULL;
    const struct ps_adapter_site *s =
        &p->site[ps_site_idx(n_layer, info->layer, (enum ps_role)role)];
    return s->ops && (!bias || s->ops->merge_bias) ? s : NULL;
}

static const float *vector_of(const struct part *p, int32_t param_idx)
{
    for (size_t i = 0; i < p->entry_count; i++)
        if (p->entry[i].param_idx == param_idx)
            return p->entry[i].value;
    return NULL;
}

bool ps_adapter_blend_touches(const struct ps_adapter_blend *b, int32_t param_idx)
{
    bool any = false;
    for (size_t i = 0; i < b->count; i++)
        any |= site_of(&b->part[i], b->params->n_layer, &b->params->param[param_idx]) != NULL ||
               vector_of(&b->part[i], param_idx) != NULL;
    return any;
}

int ps_adapter_blend_apply(const struct ps_adapter_blend *b, int32_t param_idx, int64_t row_begin,
                           int64_t rows, float *w)
{
    const struct ps_param_info *info = &b->params->param[param_idx];
    size_t n = (size_t)rows * (size_t)(info->rank == 2 ? info->shape[1] : 1);
    float *one = malloc(2 * n * sizeof *one);
    if (!one)
        return -ENOMEM;
    float *base = one + n;
    memcpy(base, w, n * sizeof *base);
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < b->count; i++) {
        const struct part *p = &b->part[i];
        const struct ps_adapter_site *s = site_of(p, b->params->n_layer, info);
        const float *vector = vector_of(p, param_idx);
        if (!s && !vector)
            continue;
        size_t skip = (size_t)row_begin * (info->rank == 2 ? (size_t)info->shape[1] : 1);
        memcpy(one, vector ? vector + skip : base, n * sizeof *one);
        if (s && info->rank == 2)
            ret = s->ops->merge(s, row_begin, rows, one);
        else if (s)
            s->ops->merge_bias(s, one);
        for (size_t k = 0; k < n; k++)
            w[k] += (float)(p->weight * ((double)one[k] - (double)base[k]));
    }
    free(one);
    return ret;
}
