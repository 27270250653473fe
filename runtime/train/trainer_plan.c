/* Planning: which tensors exist and how large everything in a step is. Where it lies is the
 * layout's matter: see step.h. */
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
#define TENSOR_ALIGN ((size_t)64)
/* Row blocks of a streamed embedding are at most as large as a layer, and not above this. */
#define EMBED_BLOCK_MAX ((uint64_t)256 << 20)

bool ps__trainer_param_trained(const struct ps_trainer *t, const struct ps_param_info *p)
{
    if (t->opt.mode != PS_MODE_FULL)
        return false;
    if (!t->opt.layer_on)
        return true;
    return p->layer >= 0 && t->opt.layer_on[p->layer];
}

int32_t ps__trainer_param_unit(const struct ps_param_info *p)
{
    if (p->layer >= 0)
        return p->layer;
    return p->role == PS_ROLE_EMBED ? PS_UNIT_EMBED : PS_UNIT_HEAD;
}

bool ps__trainer_two_parts(const struct ps_trainer *t, const struct ps_trainable *x)
{
    return t->cfg.tie_word_embeddings && t->opt.mode == PS_MODE_FULL && x->unit == PS_UNIT_EMBED;
}

bool ps__trainer_has_remainder(const struct ps_trainable *x)
{
    return x->dtype == PS_DTYPE_BF16 && x->layout.remainder;
}

static int alloc_tables(struct ps_trainer *t)
{
    size_t n = t->params.count;
    size_t layers = (size_t)t->cfg.n_layer;
    int ret = ps__trainer_alloc_adapter(t);
    if (ret < 0)
        return ret;
    t->trainable_capacity = n + t->entry_capacity;
    t->weight = calloc(n, sizeof *t->weight);
    t->remainder = calloc(n, sizeof *t->remainder);
    t->grad = calloc(n, sizeof *t->grad);
    t->param_offset = calloc(n, sizeof *t->param_offset);
    t->block = calloc(layers, sizeof *t->block);
    t->trainable = calloc(t->trainable_capacity, sizeof *t->trainable);
    t->trainable_device = calloc(t->trainable_capacity, sizeof *t->trainable_device);
    t->home = calloc(t->trainable_capacity, sizeof *t->home);
    t->trainable_param = calloc(t->trainable_capacity, sizeof *t->trainable_param);
    t->unit_bytes = calloc(4 * (layers + 2), sizeof *t->unit_bytes);
    bool ok = t->weight && t->remainder && t->grad && t->param_offset && t->block && t->trainable &&
              t->trainable_device && t->unit_bytes && t->home && t->trainable_param;
    return ok ? 0 : -ENOMEM;
}

struct ps_trainable *ps__trainer_add_trainable(struct ps_trainer *t, const char *name, int32_t unit,
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
    x->rate = 1;
    x->tensor = (struct ps_opt_tensor){.name = name,
                                       .id = (uint32_t)(t->trainable_count - 1),
                                       .rank = rank,
                                       .rows = shape[0],
                                       .cols = rank == 2 ? shape[1] : 1,
                                       .n = x->n,
                                       .dtype = PS_DTYPE_F32};
    return x;
}

static uint64_t *bytes_of(const struct ps_trainer *t, int what, int32_t unit)
{
    size_t units = (size_t)t->cfg.n_layer + 2;
    size_t i = unit >= 0 ? (size_t)unit + 1 : unit == PS_UNIT_EMBED ? 0 : units - 1;
    return &t->unit_bytes[(size_t)what * units + i];
}

enum { ADAPTER, GRAD, STATE, PINNED };

/* Put `bytes` behind what the unit already has of this; returns the offset. Weights that are
 * trained begin on pages: the store and the updates on the host take them in pieces of whole pages.
 */
static size_t place(struct ps_trainer *t, int what, int32_t unit, size_t bytes)
{
    uint64_t *at = bytes_of(t, what, unit);
    size_t offset = (size_t)*at;
    bool pages = what == PINNED && t->opt.mode == PS_MODE_FULL;
    *at += ps_align_up(bytes, pages ? (size_t)4096 : TENSOR_ALIGN);
    return offset;
}

size_t ps__trainer_place_adapter(struct ps_trainer *t, int32_t unit, size_t bytes)
{
    return place(t, ADAPTER, unit, bytes);
}

/* Weights of the base model; trained ones get a trainable entry. */
static int plan_params(struct ps_trainer *t, struct ps_error *err)
{
    for (size_t i = 0; i < t->params.count; i++) {
        const struct ps_param_info *p = &t->params.param[i];
        const struct ps_st_tensor *tensor = NULL;
        const struct ps_st_file *file;
        int ret =
            t->files ? ps_weights_find(t->files, t->opt.model_dir, p, &tensor, &file, err) : 0;
        if (ret < 0)
            return ret;
        bool trained = ps__trainer_param_trained(t, p);
        struct ps_weight *w = &t->weight[i];
        if (t->opt.dtype == PS_DTYPE_BF16)
            w->dtype = PS_DTYPE_BF16;
        else
            w->dtype = trained  ? PS_DTYPE_F32
                       : tensor ? (enum ps_dtype)tensor->dtype
                                : PS_DTYPE_BF16;
        t->param_offset[i] =
            place(t, PINNED, ps__trainer_param_unit(p), p->elements * ps_dtype_size(w->dtype));
        if (!trained)
            continue;
        struct ps_trainable *x =
            ps__trainer_add_trainable(t, p->name, ps__trainer_param_unit(p), p->rank, p->shape);
        x->dtype = w->dtype;
        x->tensor.dtype = w->dtype;
        x->tensor.layer = p->layer;
        x->tensor.hidden = p->layer >= 0 && p->rank == 2;
        t->home[t->trainable_count - 1].weight_offset = t->param_offset[i];
        x->decay = p->decay;
    }
    return 0;
}

/* Gradients, remainders and states of the trained tensors, in the order of the trainables: see
 * bind_trainables. */
static int plan_training(struct ps_trainer *t, struct ps_error *err)
{
    if (!ps__trainer_trains(t))
        return 0;
    for (size_t i = 0; i < t->trainable_count; i++) {
        struct ps_trainable *x = &t->trainable[i];
        t->home[i].grad_offset = place(t, GRAD, x->unit, x->n * sizeof(float));
        if (ps__trainer_two_parts(t, x))
            PS_IGNORE(place(t, GRAD, x->unit, x->n * sizeof(float)) == 0,
                      "see ps__trainer_lookup_part");
        int ret = t->opt.optimizer->layout(&t->opt.hyper, &x->tensor, &x->layout, err);
        if (ret < 0)
            return ret;
        if (ps__trainer_has_remainder(x))
            place(t, STATE, x->unit, x->n * sizeof(uint16_t));
        for (int k = 0; k < x->layout.state_count; k++)
            place(t, STATE, x->unit, (size_t)ps_opt_state_bytes(&x->layout.state[k], x->n));
        if (x->layout.workspace_bytes > t->shape.workspace_bytes)
            t->shape.workspace_bytes = x->layout.workspace_bytes;
        x->partial_begin = t->partial_count;
        x->partial_count = (x->n + SQUARE_BLOCK - 1) / SQUARE_BLOCK;
        t->partial_count += x->partial_count;
    }
    return 0;
}

/* Largest pieces of saved sets, by level, and adapter scratch of any layer; prepares the blocks. */
static void plan_blocks(struct ps_trainer *t)
{
    struct ps_step_shape *p = &t->shape;
    size_t n = (size_t)t->opt.n_tok_max;
    t->adapter_scratch = 0;
    for (int32_t l = 0; l < t->cfg.n_layer; l++) {
        struct ps_block *b = &t->block[l];
        b->cfg = &t->cfg;
        b->layer = l;
        for (int r = 0; r < PS_LINEAR_COUNT; r++) {
            const struct ps_adapter_site *s = &t->site[(size_t)l * PS_LINEAR_COUNT + (size_t)r];
            b->site[r] = s->ops ? s : NULL;
            b->trains |= s->ops && ps__trainer_backward(t);
        }
        b->trains |= ps__trainer_backward(t) && ps__trainer_vector_trained(t, l);
        b->trains |= t->opt.mode == PS_MODE_FULL && ps__trainer_backward(t) &&
                     (!t->opt.layer_on || t->opt.layer_on[l]);
        for (int level = 0; level < PS_RECOMPUTE_COUNT; level++) {
            struct ps_block_saved measure;
            struct ps_block_saved_place nowhere = {.level = (enum ps_recompute)level};
            struct ps_block_saved_bytes bytes =
                ps_block_saved_carve(&measure, &nowhere, b, t->opt.dtype, n);
            if (bytes.kept > p->kept_bytes[level])
                p->kept_bytes[level] = bytes.kept;
            if (bytes.rest > p->rest_bytes[level])
                p->rest_bytes[level] = bytes.rest;
        }
        size_t scratch = ps_block_adapter_scratch(b, t->opt.dtype, n);
        t->adapter_scratch = scratch > t->adapter_scratch ? scratch : t->adapter_scratch;
    }
    const struct ps_adapter_site *embed = &t->site[ps_site_idx(t->cfg.n_layer, -1, PS_ROLE_EMBED)];
    size_t scratch = embed->ops ? embed->ops->scratch_bytes(embed, n, t->opt.dtype) : 0;
    t->adapter_scratch = scratch > t->adapter_scratch ? scratch : t->adapter_scratch;
}

size_t ps__trainer_carve_batch(const struct ps_trainer *t, struct ps_batch *b,
                               struct ps__batch_extra *extra, void *base)
{
    size_t n = (size_t)t->opt.n_tok_max * sizeof(int32_t);
    size_t docs = (size_t)t->opt.doc_max;
    size_t size[] = {n, n, n, (docs + 1) * sizeof(int32_t), docs * sizeof(uint64_t), n, n, 2 * n};
    enum { COUNT = sizeof size / sizeof *size };
    void *at[COUNT];
    size_t offset = 0;
    for (int i = 0; i < COUNT; i++) {
        at[i] = base ? (unsigned char *)base + offset : NULL;
        offset += ps_align_up(size[i], TENSOR_ALIGN);
    }
    *b = (struct ps_batch){
        .ids = at[0], .target = at[1], .position = at[2], .doc_start = at[3], .doc_row = at[4]};
    *extra = (struct ps__batch_extra){.row = at[5], .target = at[6], .doc = at[7]};
    return offset;
}

/* FLOPs of a full micro-batch; documents are taken to be as long as the longest row. */
static void plan_flops(struct ps_trainer *t)
{
    const struct ps_model_config *cfg = &t->cfg;
    struct ps_step_shape *p = &t->shape;
    double n = (double)t->opt.n_tok_max;
    double len = (double)t->opt.position_max < n ? (double)t->opt.position_max : n;
    double linears = n * ps_block_linear_flops(cfg);
    double attention = 4 * n * (len / 2) * (double)cfg->n_head * (double)cfg->head_dim;
    double head = 2 * n * (double)cfg->hidden_size * (double)cfg->vocab_size;
    bool full = t->opt.mode == PS_MODE_FULL;
    p->layer_flops = linears + attention;
    p->layer_backward_flops = (full ? 2 : 1) * linears + 2.5 * attention;
    for (int level = 0; level < PS_RECOMPUTE_COUNT; level++)
        p->recompute_flops[level] = n * ps_block_recompute_flops(cfg, (enum ps_recompute)level) +
                                    (level == PS_RECOMPUTE_R4 ? attention : 0);
    p->head_flops = head;
    p->head_backward_flops = p->zeroth ? 0 : (p->head_trained ? 2 : 1) * head;
}

/* Elements of the largest product. */
static size_t product_max(const struct ps_trainer *t)
{
    const struct ps_model_config *cfg = &t->cfg;
    size_t n = (size_t)t->opt.n_tok_max;
    size_t hidden = (size_t)cfg->hidden_size;
    size_t vocab = (size_t)cfg->vocab_size;
    size_t heads = (size_t)cfg->n_head * (size_t)cfg->head_dim;
    size_t wide = (size_t)cfg->intermediate_size;
    wide = heads > wide ? heads : wide;
    wide = hidden > wide ? hidden : wide;
    size_t most = n * wide;
    size_t logits = ps_head_chunk_rows(cfg) * vocab;
    size_t weights = t->opt.mode == PS_MODE_FULL && ps__trainer_backward(t)
                         ? hidden * (wide > vocab ? wide : vocab)
                         : 0;
    most = logits > most ? logits : most;
    return weights > most ? weights : most;
}

static void plan_activations(struct ps_trainer *t)
{
    const struct ps_model_config *cfg = &t->cfg;
    struct ps_step_shape *p = &t->shape;
    size_t n = (size_t)t->opt.n_tok_max;
    bool train = ps__trainer_backward(t);
    size_t e = ps_dtype_size(t->opt.dtype);
    struct ps_block_scratch measure;
    struct ps_head_scratch head_measure;
    struct ps_batch batch_measure;
    struct ps__batch_extra extra_measure;
    plan_blocks(t);
    p->x_bytes = n * (size_t)cfg->hidden_size * e;
    p->scratch_bytes =
        ps_block_scratch_carve(&measure, NULL, cfg, &t->cx, n, t->adapter_scratch, train);
    p->head_bytes = ps_head_scratch_carve(&head_measure, NULL, cfg, ps__trainer_head_site(t),
                                          t->opt.dtype, n, train);
    p->batch_bytes = ps__trainer_carve_batch(t, &batch_measure, &extra_measure, NULL);
    size_t half = (size_t)cfg->head_dim / 2;
    p->rope_bytes = ps_align_up(half * sizeof(float), TENSOR_ALIGN) +
                    (size_t)t->opt.position_max * 2 * half * sizeof(float);
    p->gemm_bytes = t->cx.k->gemm_workspace_bytes(&t->cx, product_max(t));
    if (t->opt.cache_tok_max > 0) {
        size_t kv = (size_t)cfg->n_kv_head * (size_t)cfg->head_dim;
        t->cache_half = ps_align_up((size_t)t->opt.cache_tok_max * kv * e, TENSOR_ALIGN);
        p->cache_bytes = 2 * t->cache_half;
        p->logits_bytes = (size_t)cfg->vocab_size * sizeof(float);
    }
    p->partial_bytes = t->partial_count * sizeof(double);
}

/* Where the frozen units lie in the files. */
static int find_sources(const struct ps_trainer *t, bool staged, struct ps_unit_sources *out,
                        struct ps_error *err)
{
    uint64_t layer = *bytes_of(t, PINNED, 0);
    struct ps_unit_options o = {.dtype = t->opt.dtype,
                                .embed_block_max =
                                    layer < EMBED_BLOCK_MAX ? layer : EMBED_BLOCK_MAX,
                                .force_staged = staged};
    return ps_unit_sources_create(out, &t->params, t->files, t->opt.model_dir, &o, err);
}

int ps_trainer_staged_sources(const struct ps_trainer *t, struct ps_unit_sources *out,
                              struct ps_error *err)
{
    return find_sources(t, true, out, err);
}

static int plan_sources(struct ps_trainer *t, struct ps_error *err)
{
    t->shape.source = &t->source;
    int ret = find_sources(t, t->opt.device->discrete, &t->source, err);
    if (ret < 0 || t->opt.mode != PS_MODE_FULL)
        return ret;
    t->shape.source = &t->store_source;
    ret = ps__trainer_plan_store_sources(t);
    return ret < 0 ? ps_error_set(err, ret, "out of memory") : 0;
}

static void plan_shape(struct ps_trainer *t)
{
    struct ps_step_shape *p = &t->shape;
    p->n_layer = t->cfg.n_layer;
    p->trains = ps__trainer_trains(t);
    p->zeroth = p->trains && !ps__trainer_backward(t);
    p->frozen = t->opt.mode != PS_MODE_FULL;
    p->first_trained = t->cfg.n_layer;
    for (int32_t l = t->cfg.n_layer - 1; l >= 0; l--)
        if (t->block[l].trains)
            p->first_trained = l;
    p->embed_trained = !p->zeroth && *bytes_of(t, GRAD, PS_UNIT_EMBED) > 0;
    if (p->embed_trained) /* gradients pass every layer on their way */
        p->first_trained = 0;
    p->embed_adapted = t->site[ps_site_idx(t->cfg.n_layer, -1, PS_ROLE_EMBED)].ops != NULL;
    p->head_trained = *bytes_of(t, GRAD, PS_UNIT_HEAD) > 0;
    p->tied = t->cfg.tie_word_embeddings;
    p->grad_rounds = t->opt.mode == PS_MODE_FULL && t->opt.dtype == PS_DTYPE_BF16;
    p->micro_max = t->opt.micro_max > 0 ? t->opt.micro_max : 1;
    p->micro_max *= p->zeroth ? 2 : 1;
    p->adapter_bytes = bytes_of(t, ADAPTER, PS_UNIT_EMBED);
    p->grad_bytes = bytes_of(t, GRAD, PS_UNIT_EMBED);
    p->state_bytes = bytes_of(t, STATE, PS_UNIT_EMBED);
    p->pinned_bytes = bytes_of(t, PINNED, PS_UNIT_EMBED);
}

int ps__trainer_plan(struct ps_trainer *t, struct ps_error *err)
{
    int ret = alloc_tables(t);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    ret = plan_params(t, err);
    if (ret == 0)
        ret = ps__trainer_plan_adapter(t, err);
    if (ret < 0)
        return ret;
    ret = plan_training(t, err);
    if (ret < 0)
        return ret;
    plan_activations(t);
    plan_shape(t);
    plan_flops(t);
    ret = ps__trainer_plan_granules(t);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    return plan_sources(t, err);
}
