/* The byte ranges of each kind of task: see step.h. */
#include <assert.h>

#include "runtime/train/step_internal.h"

struct declare {
    struct ps_schedule *s;
    const struct ps_task *t;
    enum ps_segment segment;
    const struct ps_step_shape *p;
    const struct ps_step_layout *l;
    const struct ps_step_map *m;
};

static void whole(const struct declare *d, enum ps_step_buffer b, bool write)
{
    ps_schedule_access(d->s, (uint32_t)b, write, 0, d->m->bytes[b]);
}

/* Element idx of a buffer of elements of `stride` bytes. */
static void element(const struct declare *d, enum ps_step_buffer b, bool write, int64_t idx,
                    uint64_t stride)
{
    ps_schedule_access(d->s, (uint32_t)b, write, (uint64_t)idx * stride, stride);
}

static void x(const struct declare *d, enum ps_task_arg arg, bool write)
{
    element(d, PS_BUF_X, write, d->t->arg[arg], d->m->x_stride);
}

static void batch(const struct declare *d, bool write)
{
    element(d, PS_BUF_BATCH, write, d->t->micro, ps__page_up(d->p->batch_bytes));
}

/* The weights of a unit where compute uses them. */
static void weights(const struct declare *d, int32_t unit, int32_t slot, int32_t block, bool write)
{
    int32_t i = ps_step_unit_idx(d->p, unit);
    if (slot < 0) {
        if (d->m->pinned_offset[i] != UINT64_MAX)
            ps_schedule_access(d->s, PS_BUF_PINNED, write, d->m->pinned_offset[i],
                               d->p->pinned_bytes[i]);
        return;
    }
    uint32_t number = ps__source_number(d->p, unit, block);
    ps_schedule_access(d->s, PS_BUF_SLOTS, write, (uint64_t)slot * d->m->slot_bytes,
                       d->p->source->unit[number].near_bytes);
}

/* The perturbed images of a unit, whole or the part of the task's granule; side -1: both. */
static void images(const struct declare *d, enum ps_step_buffer b, int32_t unit, int32_t pair,
                   int32_t side, bool write)
{
    int32_t granule = d->t->arg[PS_ARG_GRANULE];
    const struct ps_granule *g = granule < 0 ? NULL : &d->p->granule[granule];
    uint64_t whole_bytes = ps_step_image_bytes(d->p, ps_step_unit_idx(d->p, unit));
    for (int32_t s = 0; s < 2; s++)
        if (side < 0 || side == s)
            ps_schedule_access(d->s, (uint32_t)b, write,
                               ps__image_offset(d->m, pair, s) + (g ? g->weight_offset : 0),
                               g ? g->weight_bytes : whole_bytes);
}

/* The weights of a unit as a task of a micro-batch finds them: images where they are perturbed. Of
 * adapters the frozen part is the base's. */
static void used_weights(const struct declare *d, int32_t unit, int32_t slot, int32_t block)
{
    int32_t pair = d->t->arg[PS_ARG_IMAGE];
    if (pair >= 0)
        images(d, PS_BUF_PERTURBED, unit, pair, ps__side(d->l, d->t->micro), false);
    if (pair < 0 || d->p->frozen)
        weights(d, unit, slot, block, false);
}

static void by_unit(const struct declare *d, enum ps_step_buffer b, bool write, int32_t unit,
                    const uint64_t *offset, const uint64_t *bytes)
{
    int32_t i = ps_step_unit_idx(d->p, unit);
    if (bytes)
        ps_schedule_access(d->s, (uint32_t)b, write, offset[i], bytes[i]);
}

static void adapter(const struct declare *d, bool write)
{
    by_unit(d, PS_BUF_ADAPTER, write, d->t->unit, d->m->adapter_offset, d->p->adapter_bytes);
    if (!write) /* what all sites share */
        by_unit(d, PS_BUF_ADAPTER, false, PS_UNIT_EMBED, d->m->adapter_offset, d->p->adapter_bytes);
}

static const struct ps_granule *granule(const struct declare *d)
{
    int32_t g = d->t->arg[PS_ARG_GRANULE];
    return g < 0 ? NULL : &d->p->granule[g];
}

/* The gradient of a unit where it is made: a place of its own, or the task's near slot; only that
 * of granule g where there is one. */
static void grad_part(const struct declare *d, int32_t unit, const struct ps_granule *g, bool write)
{
    int32_t i = ps_step_unit_idx(d->p, unit);
    if (!d->p->trains || d->p->zeroth || d->p->grad_bytes[i] == 0)
        return;
    uint64_t at = d->m->grad_offset[i];
    if (at == UINT64_MAX)
        at = d->m->grad_slot_base + (uint64_t)d->t->arg[PS_ARG_GRAD] * d->m->grad_slot_bytes;
    ps_schedule_access(d->s, PS_BUF_GRAD, write, at + (g ? g->grad_begin * sizeof(float) : 0),
                       g ? g->grad_n * sizeof(float) : d->p->grad_bytes[i]);
}

static void grad(const struct declare *d, int32_t unit, bool write)
{
    grad_part(d, unit, NULL, write);
}

/* The kept gradient in host memory: the unit's in a place of its own, or the granule's in a ring
 * buffer. */
static void kept(const struct declare *d, bool write)
{
    int32_t i = ps_step_unit_idx(d->p, d->t->unit);
    int32_t ring = d->t->arg[PS_ARG_GRAD_HOST];
    if (ring < 0)
        ps_schedule_access(d->s, PS_BUF_GRAD_HOST, write, d->m->keep_offset[i],
                           ps_step_keep_bytes(d->p, d->m, i));
    else
        ps_schedule_access(d->s, PS_BUF_GRAD_HOST, write,
                           d->m->grad_ring_base + (uint64_t)ring * d->m->grad_ring_bytes,
                           ps_step_piece_bytes(d->p, d->m, d->t->arg[PS_ARG_GRANULE]));
}

static void kept_disk(const struct declare *d, bool write)
{
    int32_t g = d->t->arg[PS_ARG_GRANULE];
    ps_schedule_access(d->s, PS_BUF_DISK_GRAD, write, d->m->piece_offset[g],
                       ps_step_piece_bytes(d->p, d->m, g));
}

static void state_ring(const struct declare *d, bool write)
{
    element(d, PS_BUF_STATE_RING, write, d->t->arg[PS_ARG_STATE], d->m->state_slot_bytes);
}

/* The weights of a granule, or of the whole unit, where the host updates them. */
static void host_weights(const struct declare *d, bool write)
{
    const struct ps_task *t = d->t;
    int32_t i = ps_step_unit_idx(d->p, t->unit);
    const struct ps_granule *g = granule(d);
    uint64_t offset = g ? g->weight_offset : 0;
    uint64_t bytes = g ? g->weight_bytes : d->p->pinned_bytes[i];
    if (offset + bytes > d->p->pinned_bytes[i])
        bytes = d->p->pinned_bytes[i] - offset;
    enum ps_step_buffer b = PS_BUF_PINNED;
    uint64_t base = d->m->pinned_offset[i];
    if (t->arg[PS_ARG_RAW] >= 0) {
        b = PS_BUF_RAW;
        base = (uint64_t)t->arg[PS_ARG_RAW] * d->m->raw_slot_bytes;
    } else if (d->l->discrete) {
        b = PS_BUF_HOST_UNITS;
        base = d->m->host_offset[ps__source_number(d->p, t->unit, 0)];
    } else if (t->arg[PS_ARG_SLOT] >= 0) {
        b = PS_BUF_SLOTS;
        base = (uint64_t)t->arg[PS_ARG_SLOT] * d->m->slot_bytes;
    }
    ps_schedule_access(d->s, (uint32_t)b, write, base + offset, bytes);
}

static void stored_weights(const struct declare *d, bool write)
{
    const struct ps_granule *g = granule(d);
    int32_t i = ps_step_unit_idx(d->p, d->t->unit);
    ps_schedule_access(d->s, PS_BUF_DISK_WEIGHTS, write,
                       d->m->weight_image_offset[i] + (g ? g->weight_offset : 0),
                       g ? g->weight_bytes : d->p->pinned_bytes[i]);
}

static void stored_state(const struct declare *d, bool write)
{
    const struct ps_granule *g = granule(d);
    int32_t i = ps_step_unit_idx(d->p, d->t->unit);
    ps_schedule_access(d->s, PS_BUF_DISK_STATE, write,
                       d->m->state_image_offset[i] + g->state_offset, g->state_bytes);
}

/* For the next pass: what this one writes counts once the whole unit has been written. */
static void read_stored_state(const struct declare *d)
{
    int32_t i = ps_step_unit_idx(d->p, d->t->unit);
    if (d->t->flags & PS_TASK_TRAILS)
        ps_schedule_access(d->s, PS_BUF_DISK_STATE, false, d->m->state_image_offset[i],
                           d->p->state_image_bytes[i]);
    else
        stored_state(d, false);
}

static void update_host(const struct declare *d)
{
    const struct ps_task *t = d->t;
    int32_t i = ps_step_unit_idx(d->p, t->unit);
    ps_schedule_access(d->s, PS_BUF_NORM, false, ps__page_up(d->p->partial_bytes), 4096);
    whole(d, PS_BUF_WORKSPACE, true);
    if (d->l->grad[i] == PS_TIER_DEVICE || d->p->zeroth)
        grad(d, t->unit, false);
    else
        kept(d, false);
    if (t->arg[PS_ARG_STATE] >= 0)
        state_ring(d, true);
    else
        by_unit(d, PS_BUF_STATE, true, t->unit, d->m->state_offset, d->p->state_bytes);
    host_weights(d, true);
    if (t->arg[PS_ARG_IMAGE] >= 0)
        images(d, d->l->discrete ? PS_BUF_PERTURBED_HOST : PS_BUF_PERTURBED, t->unit,
               t->arg[PS_ARG_IMAGE], -1, true);
}

static void commit(const struct declare *d)
{
    whole(d, PS_BUF_DISK_WEIGHTS, false);
    whole(d, PS_BUF_DISK_STATE, false);
    ps_schedule_access(d->s, PS_BUF_NORM, false, ps__page_up(d->p->partial_bytes), 4096);
}

/* Tasks of streamed updates. */
static void streamed(const struct declare *d)
{
    switch (d->t->kind) {
    case PS_TASK_GRAD_OUT:
        grad_part(d, d->t->unit, granule(d), false);
        kept(d, true);
        break;
    case PS_TASK_GRAD_IN:
        kept(d, false);
        grad_part(d, d->t->unit, granule(d), true);
        break;
    case PS_TASK_GRAD_WRITE:
        kept(d, false);
        kept_disk(d, true);
        break;
    case PS_TASK_GRAD_READ:
        kept_disk(d, false);
        kept(d, true);
        break;
    case PS_TASK_READ_STATE:
        read_stored_state(d);
        state_ring(d, true);
        break;
    case PS_TASK_UPDATE_HOST:
        update_host(d);
        break;
    case PS_TASK_WRITE_STATE:
        state_ring(d, false);
        stored_state(d, true);
        break;
    case PS_TASK_WRITE_WEIGHTS:
        host_weights(d, false);
        stored_weights(d, true);
        break;
    default:
        commit(d);
    }
}

/* What is kept is made by the forward pass and read from then on, but at R0 backward overwrites
 * some of it; the rest is made again. */
static void saved(const struct declare *d)
{
    const struct ps_task *t = d->t;
    struct ps__saved_place at = ps__saved_place(d->p, d->l, d->m, t->unit, t->arg[PS_ARG_SAVED]);
    bool writes = t->kind == PS_TASK_LAYER_FORWARD ||
                  (t->kind == PS_TASK_LAYER_BACKWARD && at.level == PS_RECOMPUTE_R0);
    ps_schedule_access(d->s, PS_BUF_SAVED, writes, at.kept, at.kept_bytes);
    ps_schedule_access(d->s, PS_BUF_SAVED, true, at.rest, at.rest_bytes);
}

static void layer(const struct declare *d)
{
    const struct ps_task *t = d->t;
    used_weights(d, t->unit, t->arg[PS_ARG_SLOT], 0);
    adapter(d, false);
    batch(d, false);
    whole(d, PS_BUF_ROPE, false);
    x(d, PS_ARG_X_IN, false);
    saved(d);
    whole(d, PS_BUF_SCRATCH, true);
    whole(d, PS_BUF_GEMM, true);
    if (t->kind == PS_TASK_LAYER_FORWARD)
        x(d, PS_ARG_X_OUT, true);
    if (t->kind == PS_TASK_LAYER_FORWARD && d->segment == PS_SEGMENT_EVAL)
        element(d, PS_BUF_CACHE, true, (int64_t)t->micro * d->p->n_layer + t->unit,
                ps__page_up(d->p->cache_bytes));
    if (t->kind == PS_TASK_LAYER_BACKWARD) {
        element(d, PS_BUF_DX, true, t->arg[PS_ARG_DX], d->m->x_stride);
        grad(d, t->unit, true);
    }
}

static void head(const struct declare *d)
{
    used_weights(d, PS_UNIT_HEAD, d->t->arg[PS_ARG_SLOT], 0);
    adapter(d, false);
    if (d->p->tied && d->m->image_own_bytes > 0 && d->segment != PS_SEGMENT_EVAL)
        images(d, PS_BUF_PERTURBED, PS_UNIT_EMBED, d->m->image_pairs, ps__side(d->l, d->t->micro),
               false);
    else if (d->p->tied)
        weights(d, PS_UNIT_EMBED, -1, 0, false);
    batch(d, false);
    x(d, PS_ARG_X_IN, false);
    whole(d, PS_BUF_HEAD_SCRATCH, true);
    element(d, PS_BUF_LOSS, true, d->t->micro, 64);
    whole(d, PS_BUF_GEMM, true);
    if (d->segment == PS_SEGMENT_EVAL) {
        element(d, PS_BUF_LOGITS, true, d->t->micro, ps__page_up(d->p->logits_bytes));
        return;
    }
    if (d->p->zeroth)
        return;
    element(d, PS_BUF_DX, true, d->t->arg[PS_ARG_DX], d->m->x_stride);
    grad(d, PS_UNIT_HEAD, true);
    if (d->p->tied)
        grad(d, PS_UNIT_EMBED, true);
}

static void embed_adapter(const struct declare *d)
{
    if (!d->p->embed_adapted)
        return;
    whole(d, PS_BUF_SCRATCH, true);
    whole(d, PS_BUF_GEMM, true);
}

static void copy_weights(const struct declare *d)
{
    const struct ps_task *t = d->t;
    uint32_t number = ps__source_number(d->p, t->unit, t->arg[PS_ARG_BLOCK]);
    const struct ps_unit_source *u = &d->p->source->unit[number];
    if (t->arg[PS_ARG_RAW] >= 0)
        ps_schedule_access(d->s, PS_BUF_RAW, false,
                           (uint64_t)t->arg[PS_ARG_RAW] * d->m->raw_slot_bytes, u->raw_bytes);
    else
        ps_schedule_access(d->s, PS_BUF_HOST_UNITS, false, d->m->host_offset[number], u->raw_bytes);
    weights(d, t->unit, t->arg[PS_ARG_SLOT], t->arg[PS_ARG_BLOCK], true);
}

static void read_weights(const struct declare *d)
{
    const struct ps_task *t = d->t;
    if (d->l->update != PS_UPDATE_RESIDENT) {
        int32_t i = ps_step_unit_idx(d->p, t->unit);
        ps_schedule_access(d->s, PS_BUF_DISK_WEIGHTS, false, d->m->weight_image_offset[i],
                           d->p->pinned_bytes[i]);
    }
    uint32_t number = ps__source_number(d->p, t->unit, t->arg[PS_ARG_BLOCK]);
    if (t->arg[PS_ARG_RAW] >= 0)
        ps_schedule_access(d->s, PS_BUF_RAW, true,
                           (uint64_t)t->arg[PS_ARG_RAW] * d->m->raw_slot_bytes,
                           d->p->source->unit[number].raw_bytes);
    else
        weights(d, t->unit, t->arg[PS_ARG_SLOT], t->arg[PS_ARG_BLOCK], true);
}

/* What is kept of a saved set between near memory, host memory and the spill file. */
static void spill_saved(const struct declare *d, bool out, bool disk)
{
    const struct ps_task *t = d->t;
    int32_t near = t->arg[PS_ARG_SAVED];
    int32_t host = t->arg[PS_ARG_HOST_SAVED];
    uint64_t bytes = ps__saved_moved_bytes(d->p, d->l, t->unit);
    if (host >= 0)
        ps_schedule_access(d->s, PS_BUF_HOST_SAVED, disk ? !out : out,
                           ps__saved_host_offset(d->p, d->l, d->m, t->unit, host), bytes);
    if (near >= 0)
        ps_schedule_access(d->s, PS_BUF_SAVED, !out,
                           ps__saved_place(d->p, d->l, d->m, t->unit, near).kept, bytes);
    if (disk)
        ps_schedule_access(d->s, PS_BUF_DISK_SAVED, out,
                           ps__saved_disk_offset(d->p, d->l, d->m, t->unit, t->micro), bytes);
}

/* The same of a boundary. */
static void spill(const struct declare *d)
{
    const struct ps_task *t = d->t;
    bool out = t->kind == PS_TASK_SPILL_OUT || t->kind == PS_TASK_SPILL_WRITE;
    bool disk = t->kind == PS_TASK_SPILL_WRITE || t->kind == PS_TASK_SPILL_READ;
    if (ps__moves_saved(t)) {
        spill_saved(d, out, disk);
        return;
    }
    if (t->arg[PS_ARG_HOST_X] >= 0)
        element(d, PS_BUF_HOST_X, disk ? !out : out, t->arg[PS_ARG_HOST_X], d->m->x_stride);
    if (t->arg[PS_ARG_X_IN] >= 0)
        x(d, PS_ARG_X_IN, false);
    if (t->arg[PS_ARG_X_OUT] >= 0)
        x(d, PS_ARG_X_OUT, true);
    if (disk)
        element(d, PS_BUF_DISK_X, out, (int64_t)d->m->x_disk_idx[t->unit] * d->l->group + t->micro,
                d->m->x_stride);
}

static void update(const struct declare *d)
{
    const struct ps_task *t = d->t;
    uint64_t partials = ps__page_up(d->p->partial_bytes);
    if (t->kind == PS_TASK_GRAD_NORM) {
        grad(d, t->unit, true); /* full bf16 training rounds the gradient here */
        ps_schedule_access(d->s, PS_BUF_NORM, true, 0, partials);
        return;
    }
    if (t->kind == PS_TASK_CLIP) {
        ps_schedule_access(d->s, PS_BUF_NORM, false, 0, partials);
        ps_schedule_access(d->s, PS_BUF_NORM, true, partials, 4096);
        if (d->l->update != PS_UPDATE_RESIDENT)
            whole(d, PS_BUF_LOSS, false);
        return;
    }
    ps_schedule_access(d->s, PS_BUF_NORM, false, partials, 4096);
    whole(d, PS_BUF_WORKSPACE, true);
    grad(d, t->unit, false);
    adapter(d, true);
    by_unit(d, PS_BUF_STATE, true, t->unit, d->m->state_offset, d->p->state_bytes);
    if (!d->p->frozen)
        weights(d, t->unit, -1, 0, true);
    if (d->p->zeroth) /* updated there */
        whole(d, PS_BUF_MIRROR, true);
}

/* A unit's trained weights, moved both ways, where the host or the device's threads can. */
static void perturb(const struct declare *d)
{
    const struct ps_task *t = d->t;
    bool copy = t->kind == PS_TASK_COPY_PERTURBED;
    enum ps_step_buffer made = d->l->discrete ? PS_BUF_PERTURBED_HOST : PS_BUF_PERTURBED;
    images(d, made, t->unit, t->arg[PS_ARG_IMAGE], -1, !copy);
    if (copy) {
        images(d, PS_BUF_PERTURBED, t->unit, t->arg[PS_ARG_IMAGE], -1, true);
        return;
    }
    if (d->l->discrete) {
        whole(d, PS_BUF_MIRROR, false);
        return;
    }
    if (d->p->frozen)
        adapter(d, false);
    else
        weights(d, t->unit, -1, 0, false);
    by_unit(d, PS_BUF_STATE, false, t->unit, d->m->state_offset, d->p->state_bytes);
}

void ps_step_declare(struct ps_schedule *s, const struct ps_task *task, enum ps_segment segment,
                     const struct ps_step_shape *shape, const struct ps_step_layout *layout,
                     const struct ps_step_map *map)
{
    struct declare d = {.s = s, .t = task, .segment = segment, .p = shape, .l = layout, .m = map};
    switch (task->kind) {
    case PS_TASK_EMBED:
        used_weights(&d, PS_UNIT_EMBED, task->arg[PS_ARG_SLOT], task->arg[PS_ARG_BLOCK]);
        adapter(&d, false);
        batch(&d, false);
        x(&d, PS_ARG_X_OUT, true);
        embed_adapter(&d);
        break;
    case PS_TASK_LAYER_FORWARD:
    case PS_TASK_LAYER_RECOMPUTE:
    case PS_TASK_LAYER_BACKWARD:
        layer(&d);
        break;
    case PS_TASK_HEAD:
        head(&d);
        break;
    case PS_TASK_EMBED_BACKWARD:
        batch(&d, false);
        element(&d, PS_BUF_DX, false, task->arg[PS_ARG_DX], map->x_stride);
        grad(&d, PS_UNIT_EMBED, true);
        if (shape->embed_adapted)
            adapter(&d, false);
        embed_adapter(&d);
        break;
    case PS_TASK_GRAD_NORM:
    case PS_TASK_CLIP:
    case PS_TASK_UPDATE:
        update(&d);
        break;
    case PS_TASK_COPY_BATCH:
        element(&d, PS_BUF_BATCH_HOST, false, task->micro, ps__page_up(shape->batch_bytes));
        batch(&d, true);
        break;
    case PS_TASK_READ_WEIGHTS:
        read_weights(&d);
        break;
    case PS_TASK_COPY_WEIGHTS:
        copy_weights(&d);
        break;
    case PS_TASK_SPILL_OUT:
    case PS_TASK_SPILL_WRITE:
    case PS_TASK_SPILL_READ:
    case PS_TASK_SPILL_IN:
        spill(&d);
        break;
    case PS_TASK_GRAD_OUT:
    case PS_TASK_GRAD_IN:
    case PS_TASK_GRAD_WRITE:
    case PS_TASK_GRAD_READ:
    case PS_TASK_READ_STATE:
    case PS_TASK_UPDATE_HOST:
    case PS_TASK_WRITE_STATE:
    case PS_TASK_WRITE_WEIGHTS:
    case PS_TASK_COMMIT:
        streamed(&d);
        break;
    case PS_TASK_PERTURB:
    case PS_TASK_COPY_PERTURBED:
        perturb(&d);
        break;
    case PS_TASK_KIND_COUNT:
        assert(task->kind < PS_TASK_KIND_COUNT);
    }
}
