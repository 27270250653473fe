/* What step_build.c and step_declare.c share: see step.h. */
#ifndef PS_TRAIN_STEP_INTERNAL_H
#define PS_TRAIN_STEP_INTERNAL_H

#include "runtime/train/step.h"

/* Number of a source unit: block of the embedding, layer or head. */
static inline uint32_t ps__source_number(const struct ps_step_shape *p, int32_t unit, int32_t block)
{
    uint32_t embeds = p->source->embed_block_count;
    if (unit == PS_UNIT_EMBED)
        return block < 0 ? 0 : (uint32_t)block;
    return unit == PS_UNIT_HEAD ? embeds + (uint32_t)p->n_layer : embeds + (uint32_t)unit;
}

/* Micro-batches of a lot: see ps_step_layout.interleave. */
static inline int32_t ps__layout_lot(const struct ps_step_layout *l)
{
    return l->interleave > 0 && l->interleave < l->group ? l->interleave : l->group;
}

static inline uint64_t ps__page_up(uint64_t bytes)
{
    return (bytes + 4095) & ~(uint64_t)4095;
}

/* Where the two pieces of a task's saved set lie in PS_BUF_SAVED: what is kept has number `saved`
 * (PS_ARG_SAVED), the rest is shared. */
struct ps__saved_place {
    enum ps_recompute level;
    uint64_t kept, kept_bytes, rest, rest_bytes;
};

static inline struct ps__saved_place ps__saved_place(const struct ps_step_shape *p,
                                                     const struct ps_step_layout *l,
                                                     const struct ps_step_map *m, int32_t saved)
{
    struct ps__saved_place at = {.level = PS_RECOMPUTE_R4, .rest = m->rest_offset};
    if (saved >= 0) {
        int32_t layer = m->saved_layer[saved / l->group];
        at.level = l->recompute[layer];
        at.kept_bytes = p->kept_bytes[at.level];
        at.kept =
            m->saved_offset[layer] + (uint64_t)(saved % l->group) * ps__page_up(at.kept_bytes);
    }
    at.rest_bytes = p->rest_bytes[at.level];
    return at;
}

#endif
