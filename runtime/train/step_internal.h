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

#endif
