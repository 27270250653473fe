/* The parameter table: see params.h. */
#include "runtime/model/params.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const role_suffix[PS_ROLE_LAYER_COUNT] = {
    [PS_ROLE_Q] = "self_attn.q_proj.weight",
    [PS_ROLE_K] = "self_attn.k_proj.weight",
    [PS_ROLE_V] = "self_attn.v_proj.weight",
    [PS_ROLE_O] = "self_attn.o_proj.weight",
    [PS_ROLE_GATE] = "mlp.gate_proj.weight",
    [PS_ROLE_UP] = "mlp.up_proj.weight",
    [PS_ROLE_DOWN] = "mlp.down_proj.weight",
    [PS_ROLE_ATTN_NORM] = "input_layernorm.weight",
    [PS_ROLE_MLP_NORM] = "post_attention_layernorm.weight",
    [PS_ROLE_Q_NORM] = "self_attn.q_norm.weight",
    [PS_ROLE_K_NORM] = "self_attn.k_norm.weight",
    [PS_ROLE_Q_BIAS] = "self_attn.q_proj.bias",
    [PS_ROLE_K_BIAS] = "self_attn.k_proj.bias",
    [PS_ROLE_V_BIAS] = "self_attn.v_proj.bias",
    [PS_ROLE_O_BIAS] = "self_attn.o_proj.bias",
    [PS_ROLE_GATE_BIAS] = "mlp.gate_proj.bias",
    [PS_ROLE_UP_BIAS] = "mlp.up_proj.bias",
    [PS_ROLE_DOWN_BIAS] = "mlp.down_proj.bias",
};

const char *ps_linear_name(enum ps_role role)
{
    static const char *const name[PS_LINEAR_COUNT] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                      "gate_proj", "up_proj", "down_proj"};
    assert((int)role < PS_LINEAR_COUNT);
    return name[role];
}

const char *ps_linear_parent(enum ps_role role)
{
    return role <= PS_ROLE_O ? "self_attn" : "mlp";
}

void ps_linear_shape(const struct ps_model_config *cfg, enum ps_role role, int64_t *out,
                     int64_t *in)
{
    int64_t h = cfg->hidden_size;
    int64_t f = cfg->intermediate_size;
    int64_t a = (int64_t)cfg->n_head * cfg->head_dim;
    int64_t kv = (int64_t)cfg->n_kv_head * cfg->head_dim;
    switch (role) {
    case PS_ROLE_Q:
        *out = a, *in = h;
        return;
    case PS_ROLE_K:
    case PS_ROLE_V:
        *out = kv, *in = h;
        return;
    case PS_ROLE_O:
        *out = h, *in = a;
        return;
    case PS_ROLE_GATE:
    case PS_ROLE_UP:
        *out = f, *in = h;
        return;
    case PS_ROLE_EMBED:
        *out = h, *in = cfg->vocab_size;
        return;
    case PS_ROLE_HEAD:
        *out = cfg->vocab_size, *in = h;
        return;
    default:
        assert(role == PS_ROLE_DOWN);
        *out = h, *in = f;
    }
}

size_t ps_site_idx(int32_t n_layer, int32_t layer, enum ps_role role)
{
    size_t linears = (size_t)n_layer * PS_LINEAR_COUNT;
    if (role == PS_ROLE_EMBED || role == PS_ROLE_HEAD)
        return linears + (role == PS_ROLE_HEAD);
    assert((int)role < PS_LINEAR_COUNT);
    return (size_t)layer * PS_LINEAR_COUNT + (size_t)role;
}

void ps_site_at(int32_t n_layer, size_t site, int32_t *layer, enum ps_role *role)
{
    size_t linears = (size_t)n_layer * PS_LINEAR_COUNT;
    assert(site < linears + 2);
    *layer = site < linears ? (int32_t)(site / PS_LINEAR_COUNT) : -1;
    *role = site < linears    ? (enum ps_role)(site % PS_LINEAR_COUNT)
            : site == linears ? PS_ROLE_EMBED
                              : PS_ROLE_HEAD;
}

void ps_site_path(char path[PS_SITE_PATH_MAX], int32_t layer, enum ps_role role)
{
    int len = role == PS_ROLE_EMBED ? snprintf(path, PS_SITE_PATH_MAX, "model.embed_tokens")
              : role == PS_ROLE_HEAD
                  ? snprintf(path, PS_SITE_PATH_MAX, "lm_head")
                  : snprintf(path, PS_SITE_PATH_MAX, "model.layers.%d.%s.%s", layer,
                             ps_linear_parent(role), ps_linear_name(role));
    assert(len > 0 && len < PS_SITE_PATH_MAX);
    PS_IGNORE(len < 0, "checked");
}

static bool layer_has(const struct ps_model_config *cfg, enum ps_role role)
{
    switch (role) {
    case PS_ROLE_Q_NORM:
    case PS_ROLE_K_NORM:
        return cfg->qk_norm;
    case PS_ROLE_Q_BIAS:
    case PS_ROLE_K_BIAS:
    case PS_ROLE_V_BIAS:
        return cfg->qkv_bias;
    case PS_ROLE_O_BIAS:
        return cfg->o_bias;
    case PS_ROLE_GATE_BIAS:
    case PS_ROLE_UP_BIAS:
    case PS_ROLE_DOWN_BIAS:
        return cfg->mlp_bias;
    default:
        return true;
    }
}

static void add(struct ps_param_table *t, enum ps_role role, int32_t layer, int64_t rows,
                int64_t cols)
{
    struct ps_param_info *p = &t->param[t->count];
    memset(p, 0, sizeof *p);
    p->role = role;
    p->layer = layer;
    p->rank = cols ? 2 : 1;
    p->shape[0] = rows;
    p->shape[1] = cols;
    p->elements = (size_t)rows * (size_t)(cols ? cols : 1);
    p->decay = p->rank == 2;
    int n;
    if (layer >= 0)
        n = snprintf(p->name, sizeof p->name, "model.layers.%d.%s", layer, role_suffix[role]);
    else
        n = snprintf(p->name, sizeof p->name, "%s",
                     role == PS_ROLE_EMBED        ? "model.embed_tokens.weight"
                     : role == PS_ROLE_FINAL_NORM ? "model.norm.weight"
                                                  : "lm_head.weight");
    assert(n > 0 && (size_t)n < sizeof p->name);
    t->elements += p->elements;
    size_t slot = layer >= 0 ? (size_t)layer * PS_ROLE_LAYER_COUNT + (size_t)role
                             : (size_t)t->n_layer * PS_ROLE_LAYER_COUNT +
                                   (size_t)(role - PS_ROLE_LAYER_COUNT);
    t->index[slot] = (int32_t)t->count;
    t->count++;
}

static void add_layer(struct ps_param_table *t, const struct ps_model_config *cfg, int32_t layer)
{
    static const enum ps_role order[] = {
        PS_ROLE_ATTN_NORM, PS_ROLE_Q,        PS_ROLE_Q_BIAS,   PS_ROLE_K,         PS_ROLE_K_BIAS,
        PS_ROLE_V,         PS_ROLE_V_BIAS,   PS_ROLE_O,        PS_ROLE_O_BIAS,    PS_ROLE_Q_NORM,
        PS_ROLE_K_NORM,    PS_ROLE_MLP_NORM, PS_ROLE_GATE,     PS_ROLE_GATE_BIAS, PS_ROLE_UP,
        PS_ROLE_UP_BIAS,   PS_ROLE_DOWN,     PS_ROLE_DOWN_BIAS};
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        enum ps_role role = order[i];
        if (!layer_has(cfg, role))
            continue;
        int64_t out = cfg->hidden_size;
        int64_t in = 0;
        if ((int)role < PS_LINEAR_COUNT)
            ps_linear_shape(cfg, role, &out, &in);
        else if (role >= PS_ROLE_Q_BIAS)
            ps_linear_shape(cfg, (enum ps_role)(role - PS_ROLE_Q_BIAS), &out, &in), in = 0;
        else if (role == PS_ROLE_Q_NORM || role == PS_ROLE_K_NORM)
            out = cfg->head_dim;
        add(t, role, layer, out, in);
        struct ps_param_info *p = &t->param[t->count - 1];
        if (role == PS_ROLE_Q || role == PS_ROLE_O)
            p->head_count = cfg->n_head;
        else if (role == PS_ROLE_K || role == PS_ROLE_V)
            p->head_count = cfg->n_kv_head;
    }
}

int ps_param_table_create(struct ps_param_table *out, const struct ps_model_config *cfg)
{
    struct ps_param_table t = {.n_layer = cfg->n_layer};
    size_t max = (size_t)cfg->n_layer * PS_ROLE_LAYER_COUNT + 3;
    t.param = calloc(max, sizeof *t.param);
    t.index = malloc(max * sizeof *t.index);
    if (!t.param || !t.index) {
        ps_param_table_fini(&t);
        return -ENOMEM;
    }
    for (size_t i = 0; i < max; i++)
        t.index[i] = -1;
    add(&t, PS_ROLE_EMBED, -1, cfg->vocab_size, cfg->hidden_size);
    for (int32_t l = 0; l < cfg->n_layer; l++)
        add_layer(&t, cfg, l);
    add(&t, PS_ROLE_FINAL_NORM, -1, cfg->hidden_size, 0);
    if (!cfg->tie_word_embeddings)
        add(&t, PS_ROLE_HEAD, -1, cfg->vocab_size, cfg->hidden_size);
    else
        t.param[0].tied_group = 1;
    *out = t;
    return 0;
}

void ps_param_table_fini(struct ps_param_table *t)
{
    free(t->param);
    free(t->index);
    memset(t, 0, sizeof *t);
}

int32_t ps_param_find(const struct ps_param_table *t, int32_t layer, enum ps_role role)
{
    if (role < PS_ROLE_LAYER_COUNT) {
        assert(layer >= 0 && layer < t->n_layer);
        return t->index[(size_t)layer * PS_ROLE_LAYER_COUNT + (size_t)role];
    }
    const int32_t *outer = t->index + (size_t)t->n_layer * PS_ROLE_LAYER_COUNT;
    int32_t i = outer[role - PS_ROLE_LAYER_COUNT];
    return i < 0 && role == PS_ROLE_HEAD ? outer[0] : i;
}
