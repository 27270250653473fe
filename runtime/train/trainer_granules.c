/* Update granules, and the store's extents: fixed functions of model, method and optimizer, so that
 * what one run stored another can read under other budgets. See step.h, state_store.h. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/checked.h"
#include "runtime/train/trainer_internal.h"

#define PAGE ((uint64_t)4096)
#define STATE_ALIGN ((uint64_t)64)
/* Chunks of weights that nothing updates. */
#define FROZEN_CHUNK ((uint64_t)8 << 20)

/* Pieces begin on pages of the weight image: 2048 elements of two bytes are one. */
static_assert(PS_TRAINER_GRANULE_DEFAULT % 65536 == 0, "granules hold whole blocks");

struct plan {
    struct ps_trainer *t;
    uint64_t granule_elements;
    size_t slice_count, granule_count; /* with t->slice NULL only counted */
    struct ps_granule cur;
    bool open;
};

static uint64_t state_bytes(const struct ps_trainable *x, uint64_t n)
{
    uint64_t sum = 0;
    if (ps__trainer_has_remainder(x))
        sum += ps_align_up((size_t)n * sizeof(uint16_t), STATE_ALIGN);
    for (int k = 0; k < x->layout.state_count; k++)
        sum += ps_align_up((size_t)ps_opt_state_bytes(&x->layout.state[k], n), STATE_ALIGN);
    return sum;
}

static void close_granule(struct plan *p, uint64_t weight_end)
{
    if (!p->open)
        return;
    p->cur.weight_bytes = ps__page_up(weight_end) - p->cur.weight_offset;
    p->cur.state_bytes = ps__page_up(p->cur.state_bytes);
    if (p->t->granule)
        p->t->granule[p->granule_count] = p->cur;
    p->granule_count++;
    p->open = false;
}

static void add_slice(struct plan *p, size_t tensor, uint64_t begin, uint64_t n)
{
    const struct ps_trainable *x = &p->t->trainable[tensor];
    const struct ps__home *home = &p->t->home[tensor];
    uint64_t size = ps_dtype_size(x->dtype);
    uint64_t offset = home->weight_offset + begin * size;
    if (!p->open) {
        p->cur = (struct ps_granule){.unit = x->unit,
                                     .slice_begin = (uint32_t)p->slice_count,
                                     .grad_begin = home->grad_offset / sizeof(float) + begin,
                                     .weight_offset = offset / PAGE * PAGE};
        p->open = true;
    }
    if (p->t->slice)
        p->t->slice[p->slice_count] =
            (struct ps_slice){.tensor = (uint32_t)tensor,
                              .begin = begin,
                              .n = n,
                              .weight_offset = offset,
                              .grad_offset = home->grad_offset / sizeof(float) + begin,
                              .state_offset = p->cur.state_bytes};
    p->slice_count++;
    p->cur.slice_count++;
    p->cur.grad_n = home->grad_offset / sizeof(float) + begin + n - p->cur.grad_begin;
    p->cur.params += n;
    p->cur.flops += x->layout.flops * (double)n / (double)x->n;
    p->cur.state_bytes += state_bytes(x, n);
}

static void add_tensor(struct plan *p, size_t tensor, bool splits)
{
    const struct ps_trainable *x = &p->t->trainable[tensor];
    uint64_t most = p->granule_elements;
    uint64_t begin_byte = p->t->home[tensor].weight_offset;
    if (p->open && splits && p->cur.params + x->n > most)
        close_granule(p, begin_byte);
    if (!splits || x->layout.granule == 0 || x->n <= most) {
        add_slice(p, tensor, 0, x->n);
        return;
    }
    for (uint64_t at = 0; at < x->n; at += most) {
        uint64_t n = x->n - at < most ? x->n - at : most;
        add_slice(p, tensor, at, n);
        close_granule(p, begin_byte + (at + n) * ps_dtype_size(x->dtype));
    }
}

/* All units in index order; a unit's tensors lie in its image in the order of the trainables. */
static void walk(struct plan *p)
{
    struct ps_trainer *t = p->t;
    int32_t units = t->cfg.n_layer + 2;
    bool splits = t->opt.mode == PS_MODE_FULL;
    for (int32_t i = 0; i < units; i++) {
        int32_t unit = i == 0 ? PS_UNIT_EMBED : i == units - 1 ? PS_UNIT_HEAD : i - 1;
        if (t->granule_begin)
            t->granule_begin[i] = (uint32_t)p->granule_count;
        uint64_t end = 0;
        for (size_t k = 0; k < t->trainable_count; k++) {
            const struct ps_trainable *x = &t->trainable[k];
            if (x->unit != unit)
                continue;
            add_tensor(p, k, splits);
            end = t->home[k].weight_offset + x->n * ps_dtype_size(x->dtype);
        }
        close_granule(p, end);
    }
    if (t->granule_begin)
        t->granule_begin[units] = (uint32_t)p->granule_count;
}

static void state_offsets(struct ps_trainer *t)
{
    for (int32_t i = 0; i < t->cfg.n_layer + 2; i++) {
        uint64_t at = 0;
        for (uint32_t g = t->granule_begin[i]; g < t->granule_begin[i + 1]; g++) {
            t->granule[g].state_offset = at;
            at += t->granule[g].state_bytes;
        }
        t->state_image_bytes[i] = at;
    }
}

/* Chunk offsets of a unit's weights and states, and the extents that name them. */
static int plan_extents(struct ps_trainer *t)
{
    int32_t units = t->cfg.n_layer + 2;
    size_t chunks = 0;
    const uint64_t *image = t->opt.mode == PS_MODE_FULL ? t->shape.pinned_bytes : NULL;
    for (int32_t i = 0; i < units; i++) {
        uint64_t frozen = image ? ps__page_up(image[i]) / FROZEN_CHUNK : 0;
        chunks += 2 * (t->granule_begin[i + 1] - t->granule_begin[i] + 2) + (size_t)frozen;
    }
    t->chunk_offset = calloc(chunks, sizeof *t->chunk_offset);
    t->extent = calloc(2 * (size_t)units, sizeof *t->extent);
    if (!t->chunk_offset || !t->extent)
        return -ENOMEM;
    uint64_t *at = t->chunk_offset;
    for (int32_t i = 0; i < units; i++) {
        struct ps_store_extent *w = &t->extent[2 * i];
        struct ps_store_extent *s = &t->extent[2 * i + 1];
        char name[32];
        PS_IGNORE(snprintf(name, sizeof name, "layer.%d", i - 1) < 0, "short");
        const char *unit = i == 0 ? "embed" : i == units - 1 ? "head" : name;
        PS_IGNORE(snprintf(w->name, sizeof w->name, "%s.weights", unit) < 0, "short");
        PS_IGNORE(snprintf(s->name, sizeof s->name, "%s.state", unit) < 0, "short");
        w->chunk_offset = at;
        uint32_t begin = t->granule_begin[i];
        uint32_t end = t->granule_begin[i + 1];
        for (uint32_t g = begin; g < end; g++)
            *at++ = t->granule[g].weight_offset;
        w->chunk_count = end - begin;
        if (end > begin)
            w->bytes = t->granule[end - 1].weight_offset + t->granule[end - 1].weight_bytes;
        else if (image && image[i] > 0)
            w->bytes = ps__page_up(image[i]);
        for (uint64_t b = 0; end == begin && b < w->bytes; b += FROZEN_CHUNK) {
            *at++ = b;
            w->chunk_count++;
        }
        *at++ = w->bytes;
        s->chunk_offset = at;
        for (uint32_t g = begin; g < end; g++)
            *at++ = t->granule[g].state_offset;
        s->chunk_count = t->state_image_bytes[i] > 0 ? end - begin : 0;
        s->bytes = t->state_image_bytes[i];
        *at++ = s->bytes;
    }
    assert((size_t)(at - t->chunk_offset) <= chunks);
    return 0;
}

int ps__trainer_plan_granules(struct ps_trainer *t)
{
    size_t units = (size_t)t->cfg.n_layer + 2;
    struct plan p = {.t = t, .granule_elements = t->opt.granule_elements};
    if (p.granule_elements == 0)
        p.granule_elements = PS_TRAINER_GRANULE_DEFAULT;
    if (ps__trainer_trains(t))
        walk(&p);
    t->granule = calloc(p.granule_count + 1, sizeof *t->granule);
    t->ahead_step = calloc(p.granule_count + 1, sizeof *t->ahead_step);
    t->slice = calloc(p.slice_count + 1, sizeof *t->slice);
    t->granule_begin = calloc(units + 1, sizeof *t->granule_begin);
    t->state_image_bytes = calloc(units, sizeof *t->state_image_bytes);
    if (!t->granule || !t->ahead_step || !t->slice || !t->granule_begin || !t->state_image_bytes)
        return -ENOMEM;
    p.granule_count = p.slice_count = 0;
    if (ps__trainer_trains(t))
        walk(&p);
    state_offsets(t);
    struct ps_step_shape *s = &t->shape;
    s->granule = t->granule;
    s->slice = t->slice;
    s->granule_begin = t->granule_begin;
    s->state_image_bytes = t->state_image_bytes;
    return plan_extents(t);
}

/* Units as they lie in the store: every tensor at its place in the image, one block of embedding.
 */
int ps__trainer_plan_store_sources(struct ps_trainer *t)
{
    size_t units = (size_t)t->cfg.n_layer + 2;
    struct ps_unit_sources *s = &t->store_source;
    s->unit = calloc(units, sizeof *s->unit);
    t->store_tensor = calloc(t->params.count, sizeof *t->store_tensor);
    if (!s->unit || !t->store_tensor)
        return -ENOMEM;
    s->unit_count = (uint32_t)units;
    s->embed_block_count = 1;
    s->all_direct = true;
    size_t at = 0;
    for (size_t i = 0; i < units; i++) {
        struct ps_unit_source *u = &s->unit[i];
        u->unit = i == 0 ? PS_UNIT_EMBED : i == units - 1 ? PS_UNIT_HEAD : (int32_t)i - 1;
        u->tensor = &t->store_tensor[at];
        u->direct = true;
        u->near_bytes = u->raw_bytes = u->read_bytes = ps__page_up(t->shape.pinned_bytes[i]);
        for (size_t k = 0; k < t->params.count; k++) {
            const struct ps_param_info *p = &t->params.param[k];
            if (ps__trainer_param_unit(p) != u->unit)
                continue;
            if (p->role == PS_ROLE_EMBED)
                u->row_end = t->cfg.vocab_size;
            u->tensor[u->tensor_count++] = (struct ps_unit_tensor){
                .param_idx = (int32_t)k,
                .src_dtype = t->weight[k].dtype,
                .near_dtype = t->weight[k].dtype,
                .elements = p->elements,
                .raw_offset = t->param_offset[k],
                .near_offset = t->param_offset[k],
            };
            at++;
        }
    }
    return 0;
}
