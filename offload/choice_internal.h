/* What choice.c and choice_update.c share: the knobs of a layout, and how they are raised. */
#ifndef PS_OFFLOAD_CHOICE_INTERNAL_H
#define PS_OFFLOAD_CHOICE_INTERNAL_H

#include "offload/strategy_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps__knobs {
    int32_t near_x;     /* needed boundaries that stay near */
    int32_t host_x;     /* moved ones that wait in host memory, the others on disk */
    int32_t keep;       /* steps by which layers, the last first, are raised from R4: see
                           choice_recompute.c */
    int32_t swap;       /* steps by which layers, spread evenly, are raised to keep what is moved */
    int32_t host_saved; /* of those, layers whose kept pieces wait in host memory */
    int32_t saved_ring;
    int32_t slots;      /* weight slots */
    int32_t pins;       /* pinned layers */
    int32_t host_units; /* streamed layers in host memory */
    int32_t raw_slots, ring_extra, host_ring;
    bool embed_pinned, head_pinned;
    bool embed_host;     /* the embedding, and a head that is not pinned */
    int32_t image_pairs; /* without gradients */
    /* full fine-tuning */
    int32_t host_grads;      /* layers whose kept gradients wait in memory, the others on disk */
    int32_t host_grads_base; /* so many at least, as the disk has no room for more */
    int32_t memory_states;   /* layers whose states are in memory, the others on disk */
    bool memory_ends;        /* those of embedding and head too */
    int32_t grad_slots, grad_ring, state_slots;
    bool ends_own; /* gradients of embedding and head */
};

struct ps__fill {
    const struct ps_planner_request *req;
    const struct ps__choice *choice;
    struct ps_cost_model cost;
    enum ps_recompute order[PS_RECOMPUTE_COUNT]; /* levels that layers are raised to, R4 first, R0
                                                    last */
    struct ps__knobs k;
    struct ps_step_layout *l;
    struct ps_error *err;
};

/* One of `count` out of n, spread evenly: is element i chosen? */
static inline bool ps__chosen(int32_t i, int32_t count, int32_t n)
{
    return n > 0 && ((int64_t)i + 1) * count / n != (int64_t)i * count / n;
}

static inline int32_t ps__least_of(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* The layout of the knobs as they are: 1 when it fits, 0 when not, or a negative status. */
int ps__fill_fits(const struct ps__fill *f) PS_WARN_UNUSED;
/* Raise a knob to the largest value in [*knob, max] that fits; as it is, it is known to fit. */
int ps__fill_raise(const struct ps__fill *f, int32_t *knob, int32_t max) PS_WARN_UNUSED;
/* Set a knob of two positions if that fits. */
int ps__fill_turn_on(const struct ps__fill *f, bool *knob) PS_WARN_UNUSED;
/* The least value of a knob, at most `max`, with which the disk's budget is kept. 1: it is then; 0:
 * it is not (the knob is left as it was). */
int ps__fill_relieve_disk(struct ps__fill *f, int32_t *knob, int32_t max) PS_WARN_UNUSED;

/* choice_recompute.c. Which levels are worth their bytes, from the cost model. */
void ps__recompute_order(struct ps__fill *f);
/* Steps from R4 to R0 of n layers. */
int32_t ps__recompute_steps(int32_t n);
/* The same of swapping. */
int32_t ps__swap_steps(const struct ps__fill *f, int32_t n);
/* What the last n layers keep, and where that waits. Returns whether any of it waits on disk. */
bool ps__assemble_saved(const struct ps__fill *f, int32_t n);
/* "keep", "recompute", "keep 3, R1 5, recompute 14" */
void ps__recompute_note(const struct ps_step_shape *p, const struct ps_step_layout *l, char *note,
                        size_t size);

/* choice_update.c; all but the first are for choices with streamed updates. */
static inline bool ps__fill_streams_updates(const struct ps__fill *f)
{
    return f->choice->update != PS_UPDATE_RESIDENT && f->req->shape->trains;
}
/* Do a unit's optimizer states lie in memory? False where it is not trained. */
bool ps__fill_state_in_memory(const struct ps__fill *f, int32_t unit_idx);
/* Tiers of states and gradients, and their rings, from the knobs. Weights are placed already. */
void ps__assemble_updates(const struct ps__fill *f);
/* "update inside, 24 of 24 states, 3 gradients on disk" */
void ps__update_note(const struct ps_step_shape *p, const struct ps_step_layout *l, char *note,
                     size_t size);
void ps__begin_updates(struct ps__fill *f);
/* Enough room for every lane to work ahead; then more of it. */
int ps__widen_updates(struct ps__fill *f) PS_WARN_UNUSED;
int ps__widen_updates_more(struct ps__fill *f) PS_WARN_UNUSED;
int ps__relieve_updates(struct ps__fill *f) PS_WARN_UNUSED;
/* Gradients and states into memory, before (first) or after pinned weights. */
void ps__reset_update_cache(struct ps__fill *f);
int ps__fill_update_cache(struct ps__fill *f, bool first) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
