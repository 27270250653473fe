/* Addresses: from buffers and offsets to blocks, adapters, trainables and batches. See trainer.h.
 *
 * Two views of every trained tensor: the device's (what tasks use) and the host's (what files are
 * written from). They are the same memory unless the device has memory of its own; then the host's
 * is a mirror: | adapters | states | gradients | trained weights |. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/checked.h"
#include "runtime/train/trainer_internal.h"

#define TENSOR_ALIGN ((size_t)64)

/* Where the mirror of a buffer begins, or the buffer itself where there is no mirror. */
static unsigned char *host_view(const struct ps_trainer *t, enum ps_step_buffer b)
{
    if (!t->opt.device->discrete || (ps__trainer_streams(t) && t->map.tier[b] == PS_TIER_HOST))
        return t->buffer[b];
    if (ps__trainer_streams(t))
        return NULL;
    const uint64_t *bytes = t->map.bytes;
    unsigned char *at = t->buffer[PS_BUF_MIRROR];
    switch (b) {
    case PS_BUF_ADAPTER:
        return at;
    case PS_BUF_STATE:
        return at + bytes[PS_BUF_ADAPTER];
    case PS_BUF_GRAD:
        return at + bytes[PS_BUF_ADAPTER] + bytes[PS_BUF_STATE];
    default:
        assert(b == PS_BUF_PINNED);
        return t->shape.frozen
                   ? NULL
                   : at + bytes[PS_BUF_ADAPTER] + bytes[PS_BUF_STATE] + bytes[PS_BUF_GRAD];
    }
}

static size_t unit_idx(const struct ps_trainer *t, int32_t unit)
{
    return (size_t)ps_step_unit_idx(&t->shape, unit);
}

static void bind_params(struct ps_trainer *t)
{
    for (size_t i = 0; i < t->params.count; i++) {
        size_t u = unit_idx(t, ps__trainer_param_unit(&t->params.param[i]));
        uint64_t at = t->map.pinned_offset[u];
        t->weight[i].data =
            at == UINT64_MAX ? NULL : t->buffer[PS_BUF_PINNED] + at + t->param_offset[i];
    }
}

/* Walks the units' memory in the order in which the plan placed things there. */
struct cursor {
    unsigned char *device, *host; /* bases of the buffer */
    const uint64_t *offset;       /* by unit */
    size_t *used;                 /* by unit */
};

static void next(struct cursor *c, size_t unit, size_t bytes, void **device, void **host)
{
    size_t at = (size_t)c->offset[unit] + c->used[unit];
    bool there = c->offset[unit] != UINT64_MAX; /* else in a slot, or on disk */
    c->used[unit] += ps_align_up(bytes, TENSOR_ALIGN);
    *device = there ? c->device + at : NULL;
    *host = there && c->host ? c->host + at : NULL;
}

static void bind_states(struct ps_trainer *t, struct cursor *grad, struct cursor *state)
{
    for (size_t i = 0; i < t->trainable_count; i++) {
        struct ps_trainable *x = &t->trainable[i];
        struct ps_trainable *d = &t->trainable_device[i];
        size_t u = unit_idx(t, x->unit);
        void *a;
        void *b;
        next(grad, u, x->n * sizeof(float), &a, &b);
        d->grad = a;
        x->grad = b;
        if (ps__trainer_two_parts(t, x)) {
            void *second[2];
            next(grad, u, x->n * sizeof(float), &second[0], &second[1]);
        }
        if (ps__trainer_has_remainder(x)) {
            next(state, u, x->n * sizeof(uint16_t), &a, &b);
            d->remainder = a;
            x->remainder = b;
        }
        for (int k = 0; k < x->layout.state_count; k++)
            next(state, u, (size_t)ps_opt_state_bytes(&x->layout.state[k], x->n), &d->state[k],
                 &x->state[k]);
    }
}

/* Trained parameters: weights, and where their gradients go. */
static void bind_trained_params(struct ps_trainer *t)
{
    size_t at = 0;
    unsigned char *host = host_view(t, PS_BUF_PINNED);
    for (size_t i = 0; i < t->params.count; i++) {
        if (!ps__trainer_param_trained(t, &t->params.param[i]))
            continue;
        t->trainable_param[at] = (int32_t)i;
        struct ps_trainable *x = &t->trainable[at];
        struct ps_trainable *d = &t->trainable_device[at++];
        unsigned char *w = t->weight[i].data;
        d->weight = w;
        x->weight = w && host ? host + (w - t->buffer[PS_BUF_PINNED]) : NULL;
        t->grad[i] = d->grad;
        t->remainder[i] = d->remainder;
    }
}

static void bind_adapters(struct ps_trainer *t, struct cursor *adapter)
{
    for (size_t i = 0; i < t->entry_count; i++) {
        void *device;
        void *host;
        next(adapter, unit_idx(t, t->entry[i].unit), t->entry[i].n * sizeof(float), &device, &host);
        ps__trainer_bind_entry(t, i, device, host);
    }
    ps__trainer_bind_sites(t);
}

static int bind_trainables(struct ps_trainer *t)
{
    size_t units = (size_t)t->cfg.n_layer + 2;
    size_t *used = calloc(3 * units, sizeof *used);
    if (!used)
        return -ENOMEM;
    for (size_t i = 0; i < t->trainable_count; i++)
        t->trainable_device[i] = t->trainable[i];
    struct cursor adapter = {t->buffer[PS_BUF_ADAPTER], host_view(t, PS_BUF_ADAPTER),
                             t->map.adapter_offset, used};
    struct cursor grad = {t->buffer[PS_BUF_GRAD], host_view(t, PS_BUF_GRAD), t->map.grad_offset,
                          used + units};
    struct cursor state = {t->buffer[PS_BUF_STATE], host_view(t, PS_BUF_STATE), t->map.state_offset,
                           used + 2 * units};
    if (ps__trainer_trains(t))
        bind_states(t, &grad, &state);
    bind_trained_params(t);
    bind_adapters(t, &adapter);
    free(used);
    return 0;
}

static int bind_batches(struct ps_trainer *t)
{
    size_t count = (size_t)t->map.batch_count;
    size_t stride = (size_t)ps__page_up(t->shape.batch_bytes);
    t->batch = calloc(count, sizeof *t->batch);
    t->batch_host = calloc(count, sizeof *t->batch_host);
    t->n_past = calloc(count, sizeof *t->n_past);
    t->extra = calloc(count, sizeof *t->extra);
    t->extra_host = calloc(count, sizeof *t->extra_host);
    t->partial_host = calloc(t->partial_count + 1, sizeof *t->partial_host);
    if (!t->batch || !t->batch_host || !t->n_past || !t->extra || !t->extra_host ||
        !t->partial_host)
        return -ENOMEM;
    if (t->opt.device->discrete && !t->shape.trains) {
        t->row_host = calloc((size_t)t->cfg.vocab_size, sizeof *t->row_host);
        if (!t->row_host)
            return -ENOMEM;
    }
    unsigned char *host = t->buffer[t->opt.device->discrete ? PS_BUF_BATCH_HOST : PS_BUF_BATCH];
    for (size_t i = 0; i < count; i++) {
        ps__trainer_carve_batch(t, &t->batch[i], &t->extra[i],
                                t->buffer[PS_BUF_BATCH] + i * stride);
        ps__trainer_carve_batch(t, &t->batch_host[i], &t->extra_host[i], host + i * stride);
    }
    return 0;
}

static void bind_block(struct ps_trainer *t, struct ps_block *b)
{
    for (int r = 0; r < PS_ROLE_LAYER_COUNT; r++) {
        int32_t i = ps_param_find(&t->params, b->layer, (enum ps_role)r);
        if (i < 0)
            continue;
        b->weight[r] = t->vector[i].data ? t->vector[i] : t->weight[i];
        b->grad[r] = t->grad[i];
    }
}

void ps__trainer_block(const struct ps_trainer *t, int32_t layer, int32_t slot, struct ps_block *b)
{
    *b = t->block[layer];
    if (slot < 0)
        return;
    const struct ps_unit_source *u =
        &t->shape.source->unit[t->shape.source->embed_block_count + (uint32_t)layer];
    unsigned char *base = t->buffer[PS_BUF_SLOTS] + (size_t)slot * t->map.slot_bytes;
    for (uint32_t i = 0; i < u->tensor_count; i++) {
        const struct ps_unit_tensor *x = &u->tensor[i];
        enum ps_role role = t->params.param[x->param_idx].role;
        if (t->vector[x->param_idx].data)
            continue;
        b->weight[role] = (struct ps_weight){.data = base + x->near_offset, .dtype = x->near_dtype};
    }
}

void ps__trainer_head(const struct ps_trainer *t, int32_t slot, struct ps_head *head)
{
    *head = t->head;
    if (slot < 0)
        return;
    const struct ps_unit_source *u =
        &t->shape.source->unit[ps__source_number(&t->shape, PS_UNIT_HEAD, 0)];
    unsigned char *base = t->buffer[PS_BUF_SLOTS] + (size_t)slot * t->map.slot_bytes;
    for (uint32_t i = 0; i < u->tensor_count; i++) {
        const struct ps_unit_tensor *x = &u->tensor[i];
        struct ps_weight w = {.data = base + x->near_offset, .dtype = x->near_dtype};
        if (t->params.param[x->param_idx].role == PS_ROLE_HEAD)
            head->head = w;
        else
            head->norm = w;
    }
}

/* Gradients of a layer that are made in a near slot. */
void ps__trainer_block_grads(const struct ps_trainer *t, struct ps_block *b, int32_t near_slot)
{
    if (near_slot < 0)
        return;
    for (size_t k = 0; k < t->trainable_count; k++) {
        if (t->trainable[k].unit != b->layer)
            continue;
        enum ps_role role = t->params.param[t->trainable_param[k]].role;
        b->grad[role] = ps__trainer_grad(t, k, near_slot);
    }
}

int ps__trainer_bind(struct ps_trainer *t, struct ps_error *err)
{
    bind_params(t);
    int ret = bind_trainables(t);
    if (ret == 0)
        ret = bind_batches(t);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    for (int32_t l = 0; l < t->cfg.n_layer; l++)
        bind_block(t, &t->block[l]);
    int32_t norm = ps_param_find(&t->params, -1, PS_ROLE_FINAL_NORM);
    int32_t head = ps_param_find(&t->params, -1, PS_ROLE_HEAD);
    t->head = (struct ps_head){.cfg = &t->cfg,
                               .norm = t->vector[norm].data ? t->vector[norm] : t->weight[norm],
                               .head = t->vector[head].data ? t->vector[head] : t->weight[head],
                               .dnorm = t->grad[norm],
                               .dhead = t->grad[head],
                               .site = ps__trainer_head_site(t)};
    size_t n = (size_t)t->opt.n_tok_max;
    bool train = ps__trainer_backward(t);
    ps_block_scratch_carve(&t->scratch, t->buffer[PS_BUF_SCRATCH], &t->cfg, &t->cx, n,
                           t->adapter_scratch, train);
    ps_head_scratch_carve(&t->head_scratch, t->buffer[PS_BUF_HEAD_SCRATCH], &t->cfg, t->head.site,
                          t->opt.dtype, n, train);
    t->cx.gemm_workspace = t->buffer[PS_BUF_GEMM];
    t->cx.gemm_workspace_bytes = (size_t)t->map.bytes[PS_BUF_GEMM];
    return 0;
}

/* One of the mirrored buffers, to the host or back. */
static int sync_buffer(struct ps_trainer *t, enum ps_step_buffer b, bool to_host,
                       struct ps_error *err)
{
    unsigned char *host = host_view(t, b);
    size_t bytes = (size_t)t->map.bytes[b];
    if (!host || bytes == 0 || host == t->buffer[b])
        return 0;
    unsigned char *base = t->near->ops->map(t->near, t->near->ops->base(t->near));
    unsigned char *device = (unsigned char *)t->near->ops->base(t->near) + (t->buffer[b] - base);
    return to_host ? t->near->ops->copy_d2h(t->near, host, device, bytes, err)
                   : t->near->ops->copy_h2d(t->near, device, host, bytes, err);
}

static int sync_all(struct ps_trainer *t, bool to_host, struct ps_error *err)
{
    static const enum ps_step_buffer mirrored[] = {PS_BUF_ADAPTER, PS_BUF_STATE, PS_BUF_GRAD,
                                                   PS_BUF_PINNED};
    int ret = 0;
    for (size_t i = 0; ret == 0 && t->opt.device->discrete && i < 4; i++)
        ret = sync_buffer(t, mirrored[i], to_host, err);
    return ret;
}

int ps__trainer_push_adapters(struct ps_trainer *t, struct ps_error *err)
{
    return t->opt.device->discrete ? sync_buffer(t, PS_BUF_ADAPTER, false, err) : 0;
}

/* States begin as zeros; the memory of a device does not. */
int ps__trainer_clear_states(struct ps_trainer *t, struct ps_error *err)
{
    return t->opt.device->discrete ? sync_buffer(t, PS_BUF_STATE, false, err) : 0;
}

int ps_trainer_pull(struct ps_trainer *t, struct ps_error *err)
{
    return sync_all(t, true, err);
}

int ps_trainer_push(struct ps_trainer *t, struct ps_error *err)
{
    return sync_all(t, false, err);
}
