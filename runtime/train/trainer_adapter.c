/* Adapters: which tensors there are, where they lie, how they begin. See trainer.h.
 *
 * Design: every tensor of an adapter is an *entry*; the trained ones are trainables too. All are
 * fp32 and lie in the adapter buffer of their unit, also the vectors of the base that a method
 * trains (norms, biases): the streamed copy of such a vector is passed over, so a unit may be
 * streamed whatever is trained of it. What all sites share lies in the embedding's unit. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/trainer_internal.h"

static size_t site_count(const struct ps_trainer *t)
{
    return ps_site_count(t->cfg.n_layer);
}

int ps__trainer_alloc_adapter(struct ps_trainer *t)
{
    size_t sites = site_count(t);
    size_t most = t->opt.adapter ? sites * PS_ADAPTER_TENSOR_MAX + t->params.count : 0;
    t->entry_capacity = most;
    t->site = calloc(sites, sizeof *t->site);
    t->site_host = calloc(sites, sizeof *t->site_host);
    t->site_config = calloc(sites, sizeof *t->site_config);
    t->entry = calloc(most + 1, sizeof *t->entry);
    t->entry_name = calloc(most + 1, sizeof *t->entry_name);
    t->vector = calloc(t->params.count, sizeof *t->vector);
    bool ok = t->site && t->site_host && t->site_config && t->entry && t->entry_name && t->vector;
    return ok ? 0 : -ENOMEM;
}

void ps__trainer_free_adapter(struct ps_trainer *t)
{
    free(t->site);
    free(t->site_host);
    free(t->site_config);
    free(t->entry);
    free(t->entry_name);
    free(t->vector);
}

static struct ps_adapter_entry *add_entry(struct ps_trainer *t, int32_t unit,
                                          const struct ps_adapter_tensor *tensor)
{
    assert(t->entry_count < t->entry_capacity);
    struct ps_adapter_entry *e = &t->entry[t->entry_count];
    *e = (struct ps_adapter_entry){
        .name = t->entry_name[t->entry_count],
        .unit = unit,
        .rank = tensor->rank,
        .shape = {tensor->shape[0], tensor->rank == 2 ? tensor->shape[1] : 0},
        .n = (size_t)tensor->shape[0] * (size_t)(tensor->rank == 2 ? tensor->shape[1] : 1),
        .frozen = tensor->frozen,
        .transposed = tensor->transposed,
        .param_idx = -1,
        .trainable = -1};
    t->entry_count++;
    e->offset = ps__trainer_place_adapter(t, unit, e->n * sizeof(float));
    return e;
}

static void train_entry(struct ps_trainer *t, struct ps_adapter_entry *e,
                        const struct ps_adapter_tensor *tensor)
{
    const struct ps_adapter_config *c = &t->opt.adapter_config;
    struct ps_trainable *x = ps__trainer_add_trainable(t, e->name, e->unit, e->rank, tensor->shape);
    e->trainable = (int32_t)t->trainable_count - 1;
    t->home[e->trainable].weight_offset = e->offset;
    x->tensor.layer = e->unit >= 0 ? e->unit : -1;
    x->tensor.hidden = e->rank == 2;
    x->tensor.adapter = true;
    x->decay = tensor->decay;
    x->rate = tensor->rate_group == 1 && c->rate_ratio > 0 ? c->rate_ratio : 1;
    if (tensor->rate_group == 2 && c->embed_rate > 0)
        x->rate = c->embed_rate;
}

/* The largest linears, for the shapes of what is shared. */
static void measure(const struct ps_trainer *t, int64_t *out_max, int64_t *in_max)
{
    *out_max = *in_max = 0;
    for (int r = 0; r < PS_LINEAR_COUNT; r++) {
        bool on = false;
        for (int32_t l = 0; l < t->cfg.n_layer; l++)
            on |= !t->opt.site_on || t->opt.site_on[(size_t)l * PS_LINEAR_COUNT + (size_t)r];
        int64_t out;
        int64_t in;
        ps_linear_shape(&t->cfg, (enum ps_role)r, &out, &in);
        *out_max = on && out > *out_max ? out : *out_max;
        *in_max = on && in > *in_max ? in : *in_max;
    }
}

static int plan_tensor(struct ps_trainer *t, struct ps_adapter_site *s, int j,
                       const struct ps_adapter_tensor *tensor)
{
    if (tensor->shared && !s->first) {
        for (size_t k = 0; k < t->entry_count; k++)
            if (strcmp(t->entry[k].name, tensor->suffix) == 0)
                return (int)k;
        assert(false);
    }
    int32_t unit = s->role == PS_ROLE_HEAD          ? PS_UNIT_HEAD
                   : s->layer < 0 || tensor->shared ? PS_UNIT_EMBED
                                                    : s->layer;
    struct ps_adapter_entry *e = add_entry(t, unit, tensor);
    char *name = t->entry_name[t->entry_count - 1];
    char path[PS_SITE_PATH_MAX];
    ps_site_path(path, s->layer, s->role);
    int len = tensor->shared ? snprintf(name, sizeof t->entry_name[0], "%s", tensor->suffix)
                             : snprintf(name, sizeof t->entry_name[0], "base_model.model.%s.%s",
                                        path, tensor->suffix);
    assert(len > 0 && (size_t)len < sizeof t->entry_name[0]);
    PS_IGNORE(len < 0, "checked");
    e->site = tensor->shared ? -1 : (int32_t)s->site_idx;
    e->index = j;
    if (!tensor->frozen)
        train_entry(t, e, tensor);
    return (int)t->entry_count - 1;
}

/* Not every method adapts the embedding and the head. */
static int check_site(const struct ps_trainer *t, const struct ps_adapter_site *s,
                      struct ps_error *err)
{
    const struct ps_adapter_ops *ops = t->opt.adapter;
    const struct ps_adapter_config *c = &t->opt.adapter_config;
    bool embed = s->role == PS_ROLE_EMBED;
    const char *name = embed ? "embed_tokens" : "lm_head";
    if (s->layer >= 0)
        return 0;
    if (embed ? !ops->embed_forward : !ops->adapts_head)
        return ps_error_full(err, PS_EUSAGE, NULL, "lora-target",
                             "leave it out, use `--method lora`, or see --modules-to-save",
                             "the method %s does not adapt %s", ops->name, name);
    if (embed ? c->save_embed : c->save_head)
        return ps_error_full(err, PS_EUSAGE, NULL, "modules-to-save",
                             "leave it out of one of both lists",
                             "%s is to be adapted and to be trained whole", name);
    if (!embed && t->cfg.tie_word_embeddings)
        return ps_error_full(err, PS_EUSAGE, NULL, "lora-target",
                             "use embed_tokens (its lookups are adapted, the logits are not)",
                             "embedding and head of this model are one tensor");
    return 0;
}

static int plan_sites(struct ps_trainer *t, struct ps_error *err)
{
    struct ps_adapter_config *all = &t->opt.adapter_config;
    measure(t, &all->out_max, &all->in_max);
    bool any = false;
    for (size_t i = 0; i < site_count(t); i++) {
        struct ps_adapter_site *s = &t->site[i];
        ps_site_at(t->cfg.n_layer, i, &s->layer, &s->role);
        if (t->opt.site_on ? !t->opt.site_on[i] : s->layer < 0)
            continue;
        s->site_idx = (uint32_t)i;
        s->first = !any;
        any = true;
        t->site_config[i] = t->opt.site_config ? t->opt.site_config[i] : *all;
        t->site_config[i].out_max = all->out_max;
        t->site_config[i].in_max = all->in_max;
        s->config = &t->site_config[i];
        ps_linear_shape(&t->cfg, s->role, &s->out, &s->in);
        struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX] = {0};
        int ret = check_site(t, s, err);
        int count = ret == 0 ? t->opt.adapter->tensors(s, tensor, err) : ret;
        if (count < 0)
            return count;
        s->ops = t->opt.adapter;
        s->tensor_count = count;
        for (int j = 0; j < count; j++) {
            s->entry[j] = plan_tensor(t, s, j, &tensor[j]);
            s->n[j] = t->entry[s->entry[j]].n;
        }
        t->site_host[i] = *s; /* addresses follow */
    }
    if (!any)
        return ps_error_full(err, PS_EUSAGE, NULL, "lora-target",
                             "see --lora-target and --lora-layers",
                             "the chosen targets and layers match no linear of this model");
    return 0;
}

/* "model.norm.weight" -> "base_model.model.model.norm." and the method's suffix. */
static void vector_name(char *name, size_t size, const char *hf, const char *suffix)
{
    const char *dot = strrchr(hf, '.');
    int len = snprintf(name, size, "base_model.model.%.*s.%s", (int)(dot - hf), hf, suffix);
    assert(len > 0 && (size_t)len < size);
    PS_IGNORE(len < 0, "checked");
}

static int plan_vectors(struct ps_trainer *t, struct ps_error *err)
{
    for (size_t i = 0; i < t->params.count; i++) {
        const struct ps_param_info *p = &t->params.param[i];
        if (p->rank != 1 || !t->opt.adapter->vector(p->role))
            continue;
        struct ps_adapter_tensor tensor = {.rank = 1, .shape = {p->shape[0], 0}, .rate_group = 1};
        struct ps_adapter_entry *e = add_entry(t, ps__trainer_param_unit(p), &tensor);
        vector_name(t->entry_name[t->entry_count - 1], sizeof t->entry_name[0], p->name,
                    t->opt.adapter->vector_suffix);
        e->param_idx = (int32_t)i;
        e->site = -1;
        train_entry(t, e, &tensor);
    }
    if (t->entry_count == 0)
        return ps_error_full(err, PS_EUSAGE, NULL, "method", "choose another --method",
                             "this model has no vectors that the method %s trains",
                             t->opt.adapter->name);
    return 0;
}

bool ps_adapter_bias_trained(const struct ps_adapter_config *c, enum ps_role role, bool adapted)
{
    if (role < PS_ROLE_Q_BIAS || role > PS_ROLE_DOWN_BIAS)
        return false;
    return c->bias == PS_ADAPTER_BIAS_ALL || (c->bias == PS_ADAPTER_BIAS_ADAPTED && adapted);
}

/* Biases beside the adapters, under PEFT's names. */
static int plan_biases(struct ps_trainer *t, struct ps_error *err)
{
    const struct ps_adapter_config *c = &t->opt.adapter_config;
    bool any = false;
    for (size_t i = 0; i < t->params.count; i++) {
        const struct ps_param_info *p = &t->params.param[i];
        if (p->role < PS_ROLE_Q_BIAS || p->role > PS_ROLE_DOWN_BIAS)
            continue;
        enum ps_role linear = (enum ps_role)((int)p->role - (int)PS_ROLE_Q_BIAS);
        bool adapted = t->site[ps_site_idx(t->cfg.n_layer, p->layer, linear)].ops;
        if (!ps_adapter_bias_trained(c, p->role, adapted))
            continue;
        any = true;
        struct ps_adapter_tensor tensor = {.rank = 1, .shape = {p->shape[0], 0}, .rate_group = 1};
        struct ps_adapter_entry *e = add_entry(t, p->layer, &tensor);
        vector_name(t->entry_name[t->entry_count - 1], sizeof t->entry_name[0], p->name,
                    adapted ? "base_layer.bias" : "bias");
        e->param_idx = (int32_t)i;
        e->site = -1;
        train_entry(t, e, &tensor);
    }
    if (c->bias == PS_ADAPTER_BIAS_NONE || any)
        return 0;
    return ps_error_full(err, PS_EUSAGE, NULL, "lora-bias", "leave it out",
                         "%s of this model has a bias",
                         c->bias == PS_ADAPTER_BIAS_ALL ? "no linear" : "no adapted linear");
}

/* The embedding or the head, whole and in fp32, beside the adapters. */
static int plan_saved(struct ps_trainer *t, enum ps_role role, struct ps_error *err)
{
    int32_t i = ps_param_find(&t->params, -1, role);
    const struct ps_param_info *p = &t->params.param[i];
    if (t->cfg.tie_word_embeddings)
        return ps_error_full(err, PS_EUSAGE, NULL, "modules-to-save",
                             "leave them out, or use `--method full`",
                             "embedding and head of this model are one tensor");
    struct ps_adapter_tensor tensor = {
        .rank = 2, .shape = {p->shape[0], p->shape[1]}, .decay = p->decay};
    struct ps_adapter_entry *e = add_entry(t, ps__trainer_param_unit(p), &tensor);
    PS_IGNORE(snprintf(t->entry_name[t->entry_count - 1], sizeof t->entry_name[0],
                       "base_model.model.%s", p->name) < 0,
              "fits");
    e->param_idx = i;
    e->site = -1;
    train_entry(t, e, &tensor);
    t->trainable[e->trainable].tensor.hidden = false;
    return 0;
}

int ps__trainer_plan_adapter(struct ps_trainer *t, struct ps_error *err)
{
    if (!t->opt.adapter)
        return 0;
    const struct ps_adapter_config *c = &t->opt.adapter_config;
    int ret = t->opt.adapter->vector ? plan_vectors(t, err) : plan_sites(t, err);
    if (ret == 0 && !t->opt.adapter->vector)
        ret = plan_biases(t, err);
    if (ret == 0 && c->save_embed)
        ret = plan_saved(t, PS_ROLE_EMBED, err);
    if (ret == 0 && c->save_head)
        ret = plan_saved(t, PS_ROLE_HEAD, err);
    return ret;
}

bool ps__trainer_vector_trained(const struct ps_trainer *t, int32_t layer)
{
    for (size_t i = 0; i < t->entry_count; i++)
        if (t->entry[i].param_idx >= 0 && t->entry[i].unit == layer)
            return true;
    return false;
}

void ps__trainer_bind_entry(struct ps_trainer *t, size_t i, void *device, void *host)
{
    struct ps_adapter_entry *e = &t->entry[i];
    e->device = device;
    e->value = host;
    if (e->trainable < 0)
        return;
    t->trainable[e->trainable].weight = host;
    t->trainable_device[e->trainable].weight = device;
    if (e->param_idx >= 0) {
        t->vector[e->param_idx] = (struct ps_weight){.data = device, .dtype = PS_DTYPE_F32};
        t->grad[e->param_idx] = t->trainable_device[e->trainable].grad;
    }
}

void ps__trainer_bind_sites(struct ps_trainer *t)
{
    for (size_t i = 0; i < site_count(t); i++) {
        struct ps_adapter_site *s = &t->site[i];
        struct ps_adapter_site *h = &t->site_host[i];
        *h = *s;
        for (int j = 0; s->ops && j < s->tensor_count; j++) {
            const struct ps_adapter_entry *e = &t->entry[s->entry[j]];
            s->tensor[j] = e->device;
            h->tensor[j] = e->value;
            s->grad[j] = e->trainable < 0 ? NULL : t->trainable_device[e->trainable].grad;
            h->grad[j] = e->trainable < 0 ? NULL : t->trainable[e->trainable].grad;
        }
    }
}

const struct ps_adapter_site *ps__trainer_head_site(const struct ps_trainer *t)
{
    const struct ps_adapter_site *s = &t->site[ps_site_idx(t->cfg.n_layer, -1, PS_ROLE_HEAD)];
    return s->ops ? s : NULL;
}

struct reader {
    const struct ps_trainer *t;
    int32_t param_idx;
    size_t in;
};

static int read_rows(void *arg, int64_t row_begin, int64_t rows, float *out, struct ps_error *err)
{
    const struct reader *r = arg;
    return ps_trainer_param_read(r->t, r->param_idx, (size_t)row_begin * r->in,
                                 (size_t)rows * r->in, out, err);
}

int ps__trainer_init_adapter(struct ps_trainer *t, struct ps_error *err)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < t->entry_count; i++)
        if (t->entry[i].param_idx >= 0)
            ret = ps_trainer_param_read(t, t->entry[i].param_idx, 0, t->entry[i].n,
                                        t->entry[i].value, err);
    for (size_t i = 0; ret == 0 && !t->opt.adapter_loaded && i < site_count(t); i++) {
        const struct ps_adapter_site *s = &t->site_host[i];
        if (!s->ops)
            continue;
        struct reader r = {t, ps_param_find(&t->params, s->layer, s->role), (size_t)s->in};
        struct ps_adapter_base base = {
            .read = read_rows, .arg = &r, .pool = t->pool, .isa = t->opt.isa};
        ret = s->ops->init(s, &base, err);
    }
    return ret == 0 && t->opt.adapter ? ps__trainer_push_adapters(t, err) : ret;
}

size_t ps_trainer_adapter_count(const struct ps_trainer *t)
{
    return t->entry_count;
}

const struct ps_adapter_entry *ps_trainer_adapter_at(const struct ps_trainer *t, size_t i)
{
    assert(i < t->entry_count);
    return &t->entry[i];
}

const struct ps_adapter_ops *ps_trainer_adapter_ops(const struct ps_trainer *t)
{
    return t->opt.adapter;
}
