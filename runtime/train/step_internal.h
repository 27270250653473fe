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

/* Where an image of a pair lies in PS_BUF_PERTURBED and PS_BUF_PERTURBED_HOST; side 0 or 1. */
static inline uint64_t ps__image_offset(const struct ps_step_map *m, int32_t pair, int32_t side)
{
    uint64_t first = 2 * (uint64_t)pair * m->image_bytes;
    return first + (uint64_t)side * (pair == m->image_pairs ? m->image_own_bytes : m->image_bytes);
}

/* The side of a micro-batch of a pass without gradients. */
static inline int32_t ps__side(const struct ps_step_layout *l, int32_t micro)
{
    return micro < l->group / 2 ? 0 : 1;
}

static inline uint64_t ps__page_up(uint64_t bytes)
{
    return (bytes + 4095) & ~(uint64_t)4095;
}

/* Where the two pieces of a task's saved set lie in PS_BUF_SAVED: what layer `unit` keeps has
 * number `saved` (PS_ARG_SAVED; -1: nothing is kept), the rest is shared. */
struct ps__saved_place {
    enum ps_recompute level;
    uint64_t kept, kept_bytes, rest, rest_bytes;
};

static inline struct ps__saved_place ps__saved_place(const struct ps_step_shape *p,
                                                     const struct ps_step_layout *l,
                                                     const struct ps_step_map *m, int32_t unit,
                                                     int32_t saved)
{
    struct ps__saved_place at = {.level = saved < 0 ? PS_RECOMPUTE_R4 : l->recompute[unit],
                                 .rest = m->rest_offset};
    at.kept_bytes = p->kept_bytes[at.level];
    at.rest_bytes = p->rest_bytes[at.level];
    if (saved >= m->saved_kept)
        at.kept = m->saved_ring_offset + (uint64_t)(saved - m->saved_kept) * m->saved_slot_bytes;
    else if (saved >= 0)
        at.kept = m->saved_offset[unit] + (uint64_t)(saved % l->group) * ps__page_up(at.kept_bytes);
    return at;
}

/* The same of a kept piece in PS_BUF_HOST_SAVED (number: PS_ARG_HOST_SAVED) and in
 * PS_BUF_DISK_SAVED; pieces are moved in whole pages. */
static inline uint64_t ps__saved_moved_bytes(const struct ps_step_shape *p,
                                             const struct ps_step_layout *l, int32_t unit)
{
    return ps__page_up(p->kept_bytes[l->recompute[unit]]);
}

static inline uint64_t ps__saved_host_offset(const struct ps_step_shape *p,
                                             const struct ps_step_layout *l,
                                             const struct ps_step_map *m, int32_t unit,
                                             int32_t number)
{
    if (number >= m->host_saved_kept)
        return m->host_saved_ring_offset +
               (uint64_t)(number - m->host_saved_kept) * m->saved_slot_bytes;
    return m->saved_offset[unit] +
           (uint64_t)(number % l->group) * ps__saved_moved_bytes(p, l, unit);
}

static inline uint64_t ps__saved_disk_offset(const struct ps_step_shape *p,
                                             const struct ps_step_layout *l,
                                             const struct ps_step_map *m, int32_t unit,
                                             int32_t micro)
{
    return m->saved_offset[unit] + (uint64_t)micro * ps__saved_moved_bytes(p, l, unit);
}

/* Does a PS_TASK_SPILL_* task move a kept piece, not a boundary? */
static inline bool ps__moves_saved(const struct ps_task *t)
{
    return t->arg[PS_ARG_SAVED] >= 0 || t->arg[PS_ARG_HOST_SAVED] >= 0;
}

#endif
