/* Planning: which tensors exist, how large every buffer is, and the schedules over them.
 *
 * Order in the arena: weights, adapters, gradients, optimizer states, activations, workspaces,
 * batch. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/checked.h"
#include "runtime/kernels/gemm.h"
#include "runtime/model/weights.h"
#include "runtime/train/trainer_internal.h"

#define SQUARE_BLOCK ((size_t)65536)

static bool param_trained(const struct ps_trainer *t, const struct ps_param_info *p)
{
    if (t->opt.mode != PS_MODE_FULL)
        return false;
    if (!t->opt.layer_on)
        return true;
    return p->layer >= 0 && t->opt.layer_on[p->layer];
}

static int32_t param_unit(const struct ps_param_info *p)
{
    if (p->layer >= 0)
        return p->layer;
    return p->role == PS_ROLE_EMBED ? PS_UNIT_EMBED : PS_UNIT_HEAD;
}

static int alloc_tables(struct ps_trainer *t)
{
    size_t n = t->params.count;
    size_t layers = (size_t)t->cfg.n_layer;
    size_t sites = layers * PS_LINEAR_COUNT;
    t->trainable_capacity = n + (t->opt.adapter ? sites * PS_ADAPTER_TENSOR_MAX : 0);
    t->weight = calloc(n, sizeof *t->weight);
    t->remainder = calloc(n, sizeof *t->remainder);
    t->grad = calloc(n, sizeof *t->grad);
    t->block = calloc(layers, sizeof *t->block);
    t->site = calloc(sites, sizeof *t->site);
    t->site_name = calloc(t->opt.adapter ? sites * PS_ADAPTER_TENSOR_MAX : 1, sizeof *t->site_name);
    t->trainable = calloc(t->trainable_capacity, sizeof *t->trainable);
    t->unit_bytes = calloc(3 * layers, sizeof *t->unit_bytes);
    bool ok = t->weight && t->remainder && t->grad && t->block && t->site && t->site_name &&
              t->trainable && t->unit_bytes;
    return ok ? 0 : -ENOMEM;
}

static struct ps_trainable *add_trainable(struct ps_trainer *t, const char *name, int32_t unit,
                                          int32_t rank, const int64_t *shape)
{
    assert(t->trainable_count < t->trainable_capacity);
    struct ps_trainable *x = &t->trainable[t->trainable_count++];
    x->name = name;
    x->unit = unit;
    x->rank = rank;
    x->shape[0] = shape[0];
    x->shape[1] = rank == 2 ? shape[1] : 0;
    x->n = (size_t)shape[0] * (size_t)(rank == 2 ? shape[1] : 1);
    x->dtype = PS_DTYPE_F32;
    return x;
}

/* Weights of the base model; trained ones with remainder, gradient and trainable entry. */
static int plan_params(struct ps_trainer *t, struct ps_error *err)
{
    for (size_t i = 0; i < t->params.count; i++) {
        const struct ps_param_info *p = &t->params.param[i];
        const struct ps_st_tensor *tensor;
        const struct ps_st_file *file;
        int ret = ps_weights_find(t->files, t->opt.model_dir, p, &tensor, &file, err);
        if (ret < 0)
            return ret;
        bool trained = param_trained(t, p);
        struct ps_weight *w = &t->weight[i];
        if (t->opt.dtype == PS_DTYPE_BF16)
            w->dtype = PS_DTYPE_BF16;
        else
            w->dtype = trained ? PS_DTYPE_F32 : (enum ps_dtype)tensor->dtype;
        ps_arena_add(t->arena, PS_ARENA_WEIGHTS, &w->data, p->elements * ps_dtype_size(w->dtype));
        if (!trained)
            continue;
        struct ps_trainable *x = add_trainable(t, p->name, param_unit(p), p->rank, p->shape);
        x->dtype = w->dtype;
        x->decay = p->decay;
    }
    return 0;
}

static int plan_sites(struct ps_trainer *t, struct ps_error *err)
{
    if (!t->opt.adapter)
        return 0;
    size_t sites = (size_t)t->cfg.n_layer * PS_LINEAR_COUNT;
    size_t name_idx = 0;
    for (size_t i = 0; i < sites; i++) {
        if (t->opt.site_on && !t->opt.site_on[i])
            continue;
        struct ps_adapter_site *s = &t->site[i];
        s->layer = (int32_t)(i / PS_LINEAR_COUNT);
        s->role = (enum ps_role)(i % PS_LINEAR_COUNT);
        s->site_idx = (uint32_t)i;
        s->config = &t->opt.adapter_config;
        ps_linear_shape(&t->cfg, s->role, &s->out, &s->in);
        struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX];
        int count = t->opt.adapter->tensors(s->config, s->out, s->in, tensor, err);
        if (count < 0)
            return count;
        s->ops = t->opt.adapter;
        s->tensor_count = count;
        for (int j = 0; j < count; j++) {
            char *name = t->site_name[name_idx++];
            int len = snprintf(
                name, sizeof t->site_name[0], "base_model.model.model.layers.%d.%s.%s.%s", s->layer,
                ps_linear_parent(s->role), ps_linear_name(s->role), tensor[j].suffix);
            assert(len > 0 && (size_t)len < sizeof t->site_name[0]);
            struct ps_trainable *x =
                add_trainable(t, name, s->layer, tensor[j].rank, tensor[j].shape);
            x->decay = tensor[j].decay;
            ps_arena_add(t->arena, PS_ARENA_ADAPTER, (void **)&s->tensor[j], x->n * sizeof(float));
        }
    }
    if (name_idx == 0)
        return ps_error_full(err, PS_EUSAGE, NULL, "lora-target",
                             "see --lora-target and --lora-layers",
                             "the chosen targets and layers match no linear of this model");
    return 0;
}

/* Remainders, gradients, states, partial sums. */
static void plan_training(struct ps_trainer *t)
{
    if (!ps__trainer_trains(t))
        return;
    for (size_t i = 0; i < t->params.count; i++) {
        const struct ps_param_info *p = &t->params.param[i];
        if (!param_trained(t, p))
            continue;
        if (t->weight[i].dtype == PS_DTYPE_BF16)
            ps_arena_add(t->arena, PS_ARENA_OPTIMIZER, (void **)&t->remainder[i],
                         p->elements * sizeof(uint16_t));
        ps_arena_add(t->arena, PS_ARENA_GRADIENTS, (void **)&t->grad[i],
                     p->elements * sizeof(float));
    }
    for (size_t i = 0; i < (size_t)t->cfg.n_layer * PS_LINEAR_COUNT; i++) {
        struct ps_adapter_site *s = &t->site[i];
        struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX];
        if (!s->ops || s->ops->tensors(s->config, s->out, s->in, tensor, NULL) < 0)
            continue;
        for (int j = 0; j < s->tensor_count; j++) {
            size_t n =
                (size_t)tensor[j].shape[0] * (size_t)(tensor[j].rank == 2 ? tensor[j].shape[1] : 1);
            ps_arena_add(t->arena, PS_ARENA_GRADIENTS, (void **)&s->grad[j], n * sizeof(float));
        }
    }
    for (size_t i = 0; i < t->trainable_count; i++) {
        struct ps_trainable *x = &t->trainable[i];
        for (int k = 0; k < t->opt.optimizer->state_count; k++)
            ps_arena_add(t->arena, PS_ARENA_OPTIMIZER, &x->state[k],
                         t->opt.optimizer->state_bytes(k, x->n));
        x->partial_count = (x->n + SQUARE_BLOCK - 1) / SQUARE_BLOCK;
        t->partial_count += x->partial_count;
    }
    ps_arena_add(t->arena, PS_ARENA_WORKSPACE, (void **)&t->partials,
                 t->partial_count * sizeof(double));
}

static size_t saved_bytes(struct ps_trainer *t, size_t *adapter_scratch)
{
    size_t most = 0;
    *adapter_scratch = 0;
    size_t n = (size_t)t->opt.n_tok_max;
    for (int32_t l = 0; l < t->cfg.n_layer; l++) {
        struct ps_block *b = &t->block[l];
        b->cfg = &t->cfg;
        b->layer = l;
        for (int r = 0; r < PS_LINEAR_COUNT; r++) {
            const struct ps_adapter_site *s = &t->site[(size_t)l * PS_LINEAR_COUNT + (size_t)r];
            b->site[r] = s->ops ? s : NULL;
            b->trains |= s->ops && ps__trainer_trains(t);
        }
        b->trains |= t->opt.mode == PS_MODE_FULL && (!t->opt.layer_on || t->opt.layer_on[l]);
        struct ps_block_saved measure;
        size_t bytes = ps_block_saved_carve(&measure, NULL, b, t->opt.dtype, n);
        size_t scratch = ps_block_adapter_scratch(b, t->opt.dtype, n);
        most = bytes > most ? bytes : most;
        *adapter_scratch = scratch > *adapter_scratch ? scratch : *adapter_scratch;
    }
    return most;
}

/* a * b, or a size that the arena reports as an overflow. */
static size_t times(size_t a, size_t b)
{
    size_t product;
    return ps_mul_size(a, b, &product) ? product : SIZE_MAX;
}

static void plan_activations(struct ps_trainer *t)
{
    const struct ps_model_config *cfg = &t->cfg;
    size_t n = (size_t)t->opt.n_tok_max;
    bool train = ps__trainer_trains(t);
    size_t layers = (size_t)cfg->n_layer;
    size_t e = ps_dtype_size(t->opt.dtype);
    size_t adapter_scratch;
    t->x_stride = (n * (size_t)cfg->hidden_size * e + 63) & ~(size_t)63;
    t->saved_stride = saved_bytes(t, &adapter_scratch);
    size_t saved_count = train && !t->opt.recompute ? layers : 1;
    struct ps_block_scratch measure;
    struct ps_head_scratch head_measure;
    t->shape.scratch_bytes =
        ps_block_scratch_carve(&measure, NULL, cfg, t->opt.dtype, n, adapter_scratch, train,
                               ps_pool_thread_count(t->pool));
    t->shape.head_bytes = ps_head_scratch_carve(&head_measure, NULL, cfg, t->opt.dtype, n, train);
    struct ps_arena *a = t->arena;
    ps_arena_add(a, PS_ARENA_ACTIVATIONS, (void **)&t->x,
                 times(t->x_stride, train ? layers + 1 : 1));
    ps_arena_add(a, PS_ARENA_ACTIVATIONS, (void **)&t->saved, times(t->saved_stride, saved_count));
    ps_arena_add(a, PS_ARENA_ACTIVATIONS, (void **)&t->dx, train ? t->x_stride : 0);
    if (t->opt.cache_tok_max > 0) {
        size_t kv = (size_t)cfg->n_kv_head * (size_t)cfg->head_dim;
        t->cache_stride = ((size_t)t->opt.cache_tok_max * kv * e + 63) & ~(size_t)63;
        ps_arena_add(a, PS_ARENA_ACTIVATIONS, (void **)&t->cache,
                     times(t->cache_stride, 2 * layers));
        ps_arena_add(a, PS_ARENA_WORKSPACE, (void **)&t->decode_logits,
                     (size_t)cfg->vocab_size * sizeof(float));
    }
    ps_arena_add(a, PS_ARENA_WORKSPACE, (void **)&t->scratch_mem, t->shape.scratch_bytes);
    ps_arena_add(a, PS_ARENA_WORKSPACE, (void **)&t->head_mem, t->shape.head_bytes);
    ps_arena_add(a, PS_ARENA_WORKSPACE, &t->cx.gemm_workspace,
                 ps_gemm_workspace_bytes(ps_pool_thread_count(t->pool)));
    size_t half = (size_t)cfg->head_dim / 2;
    ps_arena_add(a, PS_ARENA_WORKSPACE, (void **)&t->inv_freq, half * sizeof(float));
    ps_arena_add(a, PS_ARENA_WORKSPACE, (void **)&t->cos_sin,
                 (size_t)t->opt.position_max * 2 * half * sizeof(float));
    ps_arena_add(a, PS_ARENA_BATCH, (void **)&t->batch.ids, n * sizeof(int32_t));
    ps_arena_add(a, PS_ARENA_BATCH, (void **)&t->batch.target, n * sizeof(int32_t));
    ps_arena_add(a, PS_ARENA_BATCH, (void **)&t->batch.position, n * sizeof(int32_t));
    size_t docs = (size_t)t->opt.doc_max;
    ps_arena_add(a, PS_ARENA_BATCH, (void **)&t->batch.doc_start, (docs + 1) * sizeof(int32_t));
    ps_arena_add(a, PS_ARENA_BATCH, (void **)&t->batch.doc_row, docs * sizeof(uint64_t));
    t->shape.batch_bytes = (3 * n + docs + 1) * sizeof(int32_t) + docs * sizeof(uint64_t);
}

/* Bytes of weights, gradients and states of each unit, for the schedules' declared ranges. */
static void plan_shape(struct ps_trainer *t)
{
    struct ps_resident_shape *p = &t->shape;
    size_t layers = (size_t)t->cfg.n_layer;
    uint64_t *weight = t->unit_bytes;
    uint64_t *grad = weight + layers;
    uint64_t *state = grad + layers;
    for (size_t i = 0; i < t->params.count; i++) {
        const struct ps_param_info *info = &t->params.param[i];
        int32_t unit = param_unit(info);
        uint64_t bytes = info->elements * ps_dtype_size(t->weight[i].dtype);
        *(unit >= 0               ? &weight[unit]
          : unit == PS_UNIT_EMBED ? &p->embed_weight_bytes
                                  : &p->head_weight_bytes) += bytes;
    }
    for (size_t i = 0; i < t->trainable_count && ps__trainer_trains(t); i++) {
        const struct ps_trainable *x = &t->trainable[i];
        uint64_t bytes = x->n * sizeof(float);
        uint64_t held = 0;
        for (int k = 0; k < t->opt.optimizer->state_count; k++)
            held += t->opt.optimizer->state_bytes(k, x->n);
        *(x->unit >= 0               ? &grad[x->unit]
          : x->unit == PS_UNIT_EMBED ? &p->embed_grad_bytes
                                     : &p->head_grad_bytes) += bytes;
        *(x->unit >= 0               ? &state[x->unit]
          : x->unit == PS_UNIT_EMBED ? &p->embed_state_bytes
                                     : &p->head_state_bytes) += held;
    }
    p->n_layer = t->cfg.n_layer;
    p->first_trained = t->cfg.n_layer;
    for (int32_t l = t->cfg.n_layer - 1; l >= 0; l--)
        if (t->block[l].trains)
            p->first_trained = l;
    p->embed_trained = p->embed_grad_bytes > 0;
    p->head_trained = p->head_grad_bytes > 0;
    p->eval_only = !ps__trainer_trains(t);
    p->recompute = t->opt.recompute || p->eval_only;
    p->x_bytes = t->x_stride;
    p->saved_bytes = t->saved_stride;
    p->layer_weight_bytes = weight;
    p->layer_grad_bytes = grad;
    p->layer_state_bytes = state;
    p->tied = t->cfg.tie_word_embeddings;
    p->layer_flops = ps_block_linear_flops(&t->cfg);
}

int ps__trainer_plan(struct ps_trainer *t, struct ps_error *err)
{
    int ret = alloc_tables(t);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    ret = plan_params(t, err);
    if (ret < 0)
        return ret;
    ret = plan_sites(t, err);
    if (ret < 0)
        return ret;
    plan_training(t);
    plan_activations(t);
    plan_shape(t);
    ret = ps_resident_build_eval(&t->eval, &t->shape, err);
    if (ret < 0 || !ps__trainer_trains(t))
        return ret;
    ret = ps_resident_build_micro(&t->micro, &t->shape, err);
    if (ret < 0)
        return ret;
    return ps_resident_build_update(&t->update, &t->shape, err);
}

static void bind_block(struct ps_trainer *t, struct ps_block *b)
{
    for (int r = 0; r < PS_ROLE_LAYER_COUNT; r++) {
        int32_t i = ps_param_find(&t->params, b->layer, (enum ps_role)r);
        if (i < 0)
            continue;
        b->weight[r] = t->weight[i];
        b->grad[r] = t->grad[i];
    }
}

void ps__trainer_bind(struct ps_trainer *t)
{
    for (int32_t l = 0; l < t->cfg.n_layer; l++)
        bind_block(t, &t->block[l]);
    int32_t norm = ps_param_find(&t->params, -1, PS_ROLE_FINAL_NORM);
    int32_t head = ps_param_find(&t->params, -1, PS_ROLE_HEAD);
    t->head = (struct ps_head){.cfg = &t->cfg,
                               .norm = t->weight[norm],
                               .head = t->weight[head],
                               .dnorm = t->grad[norm],
                               .dhead = t->grad[head]};
    size_t at = 0;
    double *partial = t->partials;
    for (size_t i = 0; i < t->params.count; i++) {
        if (!param_trained(t, &t->params.param[i]))
            continue;
        struct ps_trainable *x = &t->trainable[at++];
        x->weight = t->weight[i].data;
        x->remainder = t->remainder[i];
        x->grad = t->grad[i];
    }
    for (size_t i = 0; i < (size_t)t->cfg.n_layer * PS_LINEAR_COUNT; i++) {
        struct ps_adapter_site *s = &t->site[i];
        for (int j = 0; s->ops && j < s->tensor_count; j++) {
            struct ps_trainable *x = &t->trainable[at++];
            x->weight = s->tensor[j];
            x->grad = s->grad[j];
        }
    }
    assert(at == t->trainable_count);
    for (size_t i = 0; i < t->trainable_count; i++) {
        t->trainable[i].partial = partial;
        partial += t->trainable[i].partial_count;
    }
    size_t adapter_scratch;
    saved_bytes(t, &adapter_scratch);
    size_t n = (size_t)t->opt.n_tok_max;
    bool train = ps__trainer_trains(t);
    ps_block_scratch_carve(&t->scratch, t->scratch_mem, &t->cfg, t->opt.dtype, n, adapter_scratch,
                           train, ps_pool_thread_count(t->pool));
    ps_head_scratch_carve(&t->head_scratch, t->head_mem, &t->cfg, t->opt.dtype, n, train);
}
