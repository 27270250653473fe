/* The shape of a training step, where everything in it lies, and the builder of its segments.
 *
 * A strategy chooses a layout; the builder turns shape and layout into schedules. Memory is what
 * the schedules' buffers say: the planner adds them up, the trainer allocates them, the checker
 * guards them.
 *
 * Segments:
 *   train     one pass of `group` micro-batches through all layers and back, all micro-batches of a
 *             layer before the next layer (group 1: the usual order). A step runs it
 *             ceil(micro-batches / group) times; micro-batches that a window lacks are empty tasks.
 *   update    norm, clip, update of every trained unit; no weights are moved. (Streamed updates:
 * see below.) eval      forward and loss of `eval_group` micro-batches; also logits and generation.
 *   prologue_train, prologue_eval   bring into the slots what the segment expects there.
 *
 * Weights. Units in forward order: embedding (row blocks when streamed), layers, head with final
 * norm. A unit is pinned (tier DEVICE), kept in host memory (HOST; discrete devices) or streamed
 * (DISK) through `near_slots` slots; streamed unit number j always uses slot j mod near_slots. A
 * unit that is still in its slot when it is needed is not read again: that is the cache at the
 * turns, and between passes. The end of a pass reads what the next one needs first (trailing
 * tasks). A head that is not trained is pinned, and so is what is head and embedding at once.
 *
 * Full fine-tuning. With layout.update RESIDENT weights, gradients and states of trained units lie
 * near and segment update updates them there. Otherwise segment train holds the updates too; they
 * run on the host (lane cpu_optim), in granules, and where states (and weights) lie on disk every
 * granule's are read from the store, updated and written back:
 *
 *   AFTER         after the backward pass, last layer first; norm and clipping before
 *   INSIDE        a layer as soon as its gradient is complete; for embedding, head and deferred
 *                 layers see ps_step_unit_update. The coefficient is not known yet: where it turns
 *                 out below 1, or a gradient not finite, the store's copies from before are taken
 *                 again (and segment update redoes the step from the kept gradients)
 *   NEXT_FORWARD  a unit just before the forward pass of the next step uses it, from the kept
 *                 gradient; segment update catches up where no next step comes
 *
 * Passes of a step but the last run segment train_inner (AFTER alone can have several). The
 * gradient of a unit is made in a place of its own or in one of grad_slots near slots, over which
 * those of embedding and head lie too where they can (ps_step_grad_shared), and is kept until the
 * update there (tier DEVICE), in host memory, or, granule by granule, on disk.
 *
 * Without gradients (shape.zeroth; MeZO). A step is a forward pass at two points: every micro-batch
 * counts twice, the first half of a pass's group goes through weights moved one way, the second half
 * through weights moved the other way. Each unit is brought near once; its trained weights, moved
 * both ways, are written as two images (a pair) that the tasks of the two halves compute with, and
 * the weights themselves are never touched: nothing drifts, whatever a slot holds stays true, and the
 * random direction is all that is made anew. RESIDENT: segment update follows. Otherwise the update
 * is that of NEXT_FORWARD: a granule of the last step's is updated, moved both ways and written back
 * while its weights and states are there, so that a step reads and writes each of them once. A tied
 * embedding's images wait for the head. On discrete devices all of this is the host's work, and the
 * images are copied.
 *
 * Layer boundaries x[l][m] (input of layer l): kept near, or moved to host or disk and back for the
 * backward pass; the last ones that are still near then are not moved at all (forwarding).
 *
 * Saved sets: what a layer keeps at its level (recompute.h) waits near or is moved in the same way,
 * through saved_ring near buffers; the rest is made again in one piece that all layers share. */
#ifndef PS_TRAIN_STEP_H
#define PS_TRAIN_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/model/recompute.h"
#include "runtime/model/unit_source.h"
#include "runtime/train/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A piece of a trained tensor: elements [begin, begin + n). */
struct ps_slice {
    uint32_t tensor; /* number among the trained tensors */
    uint64_t begin, n;
    uint64_t weight_offset; /* bytes, in the unit's weight image (the layout of a pinned unit) */
    uint64_t grad_offset;   /* elements, in the unit's gradient */
    uint64_t state_offset; /* bytes, in the granule's states: | remainder | state 0 | state 1 | ...,
                              64-aligned each */
};

/* What is updated together; a fixed function of model and optimizer. */
struct ps_granule {
    int32_t unit;
    uint32_t slice_begin, slice_count;
    uint64_t weight_offset, weight_bytes; /* in the unit's weight image, multiples of 4096 */
    uint64_t state_offset, state_bytes;   /* in the unit's state image, multiples of 4096 */
    uint64_t grad_begin, grad_n; /* elements, in the unit's gradient: from the first slice to the end
                                    of the last */
    uint64_t params;
    double flops; /* of updates, beside one pass over the parameters */
};

/* Sizes in bytes; a pure function of model, method, batch and number formats. */
struct ps_step_shape {
    int32_t n_layer;
    int32_t first_trained; /* lowest layer with something to train; n_layer: none */
    bool trains;           /* false: only the eval segment exists */
    bool frozen;           /* no base weight is trained: weights may be streamed */
    bool zeroth;           /* trains, but by forward passes alone: see above */
    bool embed_trained, head_trained, tied;
    bool embed_adapted; /* tasks of the embedding use the adapter's scratch and products */
    uint64_t x_bytes;     /* one layer boundary of one micro-batch */
    /* One saved set by its level: what is kept, and the rest (kept_bytes of R0: all of it) */
    uint64_t kept_bytes[PS_RECOMPUTE_COUNT], rest_bytes[PS_RECOMPUTE_COUNT];
    uint64_t scratch_bytes, head_bytes, batch_bytes, rope_bytes, gemm_bytes;
    uint64_t cache_bytes;  /* key-value cache of one layer and prompt, keys and values; 0: none */
    uint64_t logits_bytes; /* of one prompt's last row (generation) */
    uint64_t partial_bytes;
    uint64_t workspace_bytes; /* of the optimizer, for one update */
    /* update granules, units in index order; those of unit index i are granule_begin[i] ..
     * granule_begin[i + 1] */
    const struct ps_granule *granule;
    const struct ps_slice *slice;
    const uint32_t *granule_begin;     /* (n_layer + 3) */
    const uint64_t *state_image_bytes; /* by unit index: all granules' states */
    bool grad_rounds;                  /* gradients are rounded to bf16 before the norm */
    int32_t micro_max;                 /* most micro-batches of a step */
    /* trained things by unit: index 0 embedding, 1 .. n_layer layers, n_layer + 1 head */
    const uint64_t *adapter_bytes, *grad_bytes, *state_bytes;
    const uint64_t *pinned_bytes; /* weights of a pinned unit, tensors 64-byte aligned */
    const struct ps_unit_sources *source;
    /* FLOPs of the planned micro-batch */
    double layer_flops;          /* linears and attention, forward */
    double layer_backward_flops; /* without recompute */
    double recompute_flops[PS_RECOMPUTE_COUNT];
    double head_flops, head_backward_flops;
};

/* Without gradients: making a pair of images, and an update, each take as long as so many updates by
 * AdamW (measured: 220 million parameters a second and core, where AdamW does 700). */
#define PS_ZEROTH_PASSES 3

/* ... and the bytes of a unit's image: of its weights, or of its adapters. */
static inline uint64_t ps_step_image_bytes(const struct ps_step_shape *p, int32_t unit_idx)
{
    return p->frozen ? p->adapter_bytes[unit_idx] : p->pinned_bytes[unit_idx];
}

static inline int32_t ps_step_unit_idx(const struct ps_step_shape *p, int32_t unit)
{
    return unit >= 0 ? unit + 1 : unit == PS_UNIT_EMBED ? 0 : p->n_layer + 1;
}

/* Ideas that can be switched off, to measure them. */
enum ps_ablation {
    PS_ABLATE_PREFETCH = 1,    /* reads wait for the compute task before them: no reading ahead */
    PS_ABLATE_TURNS = 2,       /* nothing stays in the slots at the turns */
    PS_ABLATE_CROSS_STEP = 4,  /* nothing is read ahead for the next pass */
    PS_ABLATE_FORWARDING = 8,  /* every moved boundary is written and read back */
    PS_ABLATE_LAYER_MAJOR = 16 /* group 1 */
};
/* "prefetch", "turns", "cross-step", "forwarding", "layer-major"; 0 for another name. */
unsigned ps_ablation_find(const char *name);
const char *ps_ablation_name(unsigned bit);

enum ps_update_when {
    PS_UPDATE_RESIDENT,
    PS_UPDATE_AFTER,
    PS_UPDATE_INSIDE,
    PS_UPDATE_NEXT_FORWARD,
    PS_UPDATE_WHEN_COUNT,
};
/* "resident", "after-backward", "inside-backward", "next-forward". */
const char *ps_update_when_name(enum ps_update_when w);

/* When gradients are scaled by the norm: exact by this step's, delayed by the step's before; each
 * tensor by its own; not at all. */
enum ps_clip_mode { PS_CLIP_EXACT, PS_CLIP_DELAYED, PS_CLIP_PER_TENSOR, PS_CLIP_NONE };

struct ps_step_layout {
    const char *strategy;   /* static storage */
    bool discrete;          /* the device has memory of its own */
    int32_t group;          /* micro-batches a pass */
    int32_t eval_group;     /* sequences a forward pass (prompts in generation) */
    enum ps_tier *weight;   /* (n_layer + 2) by unit index: DEVICE, HOST, DISK */
    int32_t near_slots;     /* 0 when nothing is streamed, else >= 1 */
    int32_t raw_slots;      /* host slots that files are read into; 0: directly into near slots */
    /* (n_layer) what of a layer's saved sets waits for backward, and what is computed again */
    enum ps_recompute *recompute;
    enum ps_tier *saved; /* (n_layer) where that waits: DEVICE, HOST (discrete), DISK */
    int32_t saved_ring;  /* near buffers for those that are moved; >= 1 then */
    enum ps_tier *boundary; /* (n_layer) where x[l] waits: DEVICE, HOST (discrete), DISK */
    int32_t x_ring; /* buffers for boundaries that are not kept: >= group, > group when any moves
                       (a lot of `interleave` in place of the group: twice as many and one) */
    /* 0: all micro-batches go forward, then all back. n > 0: in lots of n, the backward pass of a
     * lot beside the forward pass of the next, so that boundaries leave and come back all the time;
     * for pinned weights (streamed ones would be read again for each lot). */
    int32_t interleave;
    int32_t host_ring; /* discrete, boundaries or kept pieces on disk: host buffers on the way; >= 2 */
    /* full fine-tuning */
    enum ps_update_when update;
    /* INSIDE: so many layers, the first of them and others spread evenly, with embedding and head,
       are updated before the next forward pass uses them, as with NEXT_FORWARD: what gets its
       gradient last is needed first, and the host has work in the forward pass too. 0: none, and
       embedding and head at the end of the pass */
    int32_t deferred;
    bool ends_own; /* embedding's and head's gradients have places of their own where they could
                      share the layers' (ps_step_grad_shared): nothing waits for their updates */
    enum ps_clip_mode clip;
    enum ps_tier *state; /* (n_layer + 2) by unit index. Update RESIDENT: DEVICE. Otherwise where
                            the states wait: in memory (HOST on discrete devices, DEVICE elsewhere)
                            or DISK. All on disk: every step is committed; INSIDE asks for that */
    enum ps_tier
        *grad; /* (n_layer + 2) where a complete gradient waits for the update: DEVICE where
                  it was made (not on discrete devices), HOST or DISK */
    int32_t grad_slots;  /* near slots for the gradients of layers; 0: each has a place of its own.
                            Without being kept elsewhere only INSIDE and not redone. See
                            ps_step_grad_shared for embedding and head */
    int32_t grad_ring;   /* host buffers of granules' gradients on their way to and from the disk;
                            >= 2 */
    int32_t state_slots; /* host buffers of granules' states; >= 1 when any lies on disk */
    int32_t image_pairs; /* without gradients: pairs of perturbed images; 0 is 1 */
    unsigned ablate;
};

/* Which gradient is needed when: the head's from its tasks, at the turn, until it is complete there; a
 * layer's while the pass is at that layer; the embedding's at the end, after all layers. In a pass
 * of all micro-batches of a step they are never needed together, unless the update wants them where
 * they were made. Then embedding and head (unit index 0, n_layer + 1) lie over the slots, from their
 * beginning: the space is that of the largest of them. A tied embedding has a place of its own: the
 * head begins its gradient. */
bool ps_step_grad_shared(const struct ps_step_shape *shape, const struct ps_step_layout *layout,
                         int32_t unit_idx);
/* When a unit is updated. With INSIDE: a layer that is not deferred as soon as its gradient is
 * complete; so the head, and the embedding unless its gradient has a place of its own and layers are
 * deferred, where gradients are made in slots and kept nowhere. The others in the next forward pass
 * where any is deferred, else after the backward pass. */
enum ps_update_when ps_step_unit_update(const struct ps_step_shape *shape,
                                        const struct ps_step_layout *layout, int32_t unit_idx);

/* Is anything updated in the pass after the one that made its gradient? */
static inline bool ps_step_defers(const struct ps_step_layout *l)
{
    return l->update == PS_UPDATE_NEXT_FORWARD ||
           (l->update == PS_UPDATE_INSIDE && l->deferred > 0);
}

/* Allocate the arrays, everything pinned, kept near and recomputed, group 1. 0 or -ENOMEM. */
int ps_step_layout_init(struct ps_step_layout *l, const struct ps_step_shape *shape) PS_WARN_UNUSED;
int ps_step_layout_copy(struct ps_step_layout *to, const struct ps_step_layout *from,
                        const struct ps_step_shape *shape) PS_WARN_UNUSED;
void ps_step_layout_fini(struct ps_step_layout *l);

/* Buffers: the same numbers in every segment of a layout. */
enum ps_step_buffer {
    PS_BUF_BATCH,      /* (max(group, eval_group), batch_bytes) */
    PS_BUF_BATCH_HOST, /* the same on the host; discrete only */
    PS_BUF_ROPE,
    PS_BUF_X,     /* (x_count, x_bytes): kept boundaries, then the ring */
    PS_BUF_DX,    /* (group, x_bytes) */
    PS_BUF_SAVED, /* kept pieces of saved sets by layer and micro-batch, their ring, the shared rest */
    PS_BUF_SCRATCH,
    PS_BUF_HEAD_SCRATCH,
    PS_BUF_GEMM,
    PS_BUF_PINNED,     /* near copies of the pinned units, unit index order, 4096-aligned each */
    PS_BUF_SLOTS,      /* (near_slots, slot_bytes) */
    PS_BUF_RAW,        /* (raw_slots, raw_slot_bytes) host */
    PS_BUF_HOST_UNITS, /* raw bytes of the units kept in host memory */
    PS_BUF_HOST_X,     /* boundaries in host memory, then the host ring */
    PS_BUF_DISK_X,     /* spill file */
    PS_BUF_ADAPTER,    /* by unit, 4096-aligned each */
    PS_BUF_GRAD,       /* by unit, then grad_slots slots */
    PS_BUF_STATE,
    PS_BUF_WORKSPACE,    /* of the optimizer */
    PS_BUF_NORM,         /* partial square sums, then 4096 bytes for the coefficient */
    PS_BUF_LOSS,         /* (batch_count) fp64 sums of losses, 64 bytes each */
    PS_BUF_CACHE,        /* (eval_group, n_layer, cache_bytes) */
    PS_BUF_LOGITS,       /* (eval_group, logits_bytes) */
    PS_BUF_STATE_RING,   /* (state_slots, state_slot_bytes) */
    PS_BUF_GRAD_HOST,    /* kept gradients by unit, then grad_ring buffers */
    PS_BUF_DISK_GRAD,    /* spill file, behind PS_BUF_DISK_X: kept gradients */
    PS_BUF_DISK_WEIGHTS, /* the store: weight images of the trained units */
    PS_BUF_DISK_STATE,   /* the store: state images */
    PS_BUF_HOST_SAVED, /* kept pieces in host memory, then the host ring */
    PS_BUF_DISK_SAVED, /* spill file, behind PS_BUF_DISK_GRAD */
    PS_BUF_MIRROR, /* host; discrete: adapters, states, gradients, trained weights, for files */
    PS_BUF_PERTURBED, /* (image_pairs, 2, image_bytes), then the tied embedding's own two */
    PS_BUF_PERTURBED_HOST, /* the same on the host; discrete only */
    PS_BUF_COUNT,
};

/* Where things lie inside the buffers. */
struct ps_step_map {
    uint64_t slot_bytes, raw_slot_bytes, x_stride;
    uint64_t bytes[PS_BUF_COUNT];
    enum ps_tier tier[PS_BUF_COUNT];
    int32_t x_count, x_kept, saved_count, host_x_count, batch_count;
    /* (n_layer) number of a layer's boundaries among the kept, on the host, on disk; of its kept
     * kept pieces of saved sets; -1: none. Multiply by group and add the micro-batch. */
    int32_t *x_kept_idx, *x_host_idx, *x_disk_idx, *saved_idx;
    /* Kept pieces have numbers: those that stay near, [0, saved_kept), then the ring's. Moved ones
     * by number on the host (then its ring) and on disk. */
    int32_t saved_kept, host_saved_kept, host_saved_count;
    int32_t *saved_host_idx, *saved_disk_idx;
    uint64_t *saved_offset; /* (n_layer) of a layer's first piece, in the buffer of its tier */
    uint64_t saved_slot_bytes, saved_ring_offset, host_saved_ring_offset;
    uint64_t rest_offset; /* of the shared piece in PS_BUF_SAVED */
    uint64_t *pinned_offset; /* by unit index; UINT64_MAX: not pinned */
    uint64_t *host_offset;   /* by source unit number; UINT64_MAX: not in host memory */
    uint64_t *adapter_offset, *grad_offset, *state_offset; /* by unit index (n_layer + 2) */
    uint64_t grad_slot_base, grad_slot_bytes, grad_ring_base, grad_ring_bytes, state_slot_bytes;
    enum ps_dtype
        keep_dtype;        /* of kept gradients: BF16 when rounded and made in one pass, else F32 */
    bool several_passes;   /* a step may need more than one */
    bool commits;          /* every step is committed: all states lie on disk */
    bool stored;           /* some lie on disk, if only as weights that have none: there is a store */
    uint64_t *keep_offset; /* by unit index, in PS_BUF_GRAD_HOST or PS_BUF_DISK_GRAD */
    uint64_t *piece_offset; /* by granule, in PS_BUF_DISK_GRAD; of units whose gradients wait there */
    uint64_t *weight_image_offset, *state_image_offset; /* in PS_BUF_DISK_WEIGHTS and _STATE */
    /* images of perturbed weights; pair image_pairs is the tied embedding's */
    uint64_t image_bytes, image_own_bytes; /* of one; 0: there is none */
    int32_t image_pairs;
    int32_t *stream_idx; /* by source unit number: number among the streamed, -1: not streamed */
    int32_t stream_count;
};
int ps_step_map_create(struct ps_step_map *m, const struct ps_step_shape *shape,
                       const struct ps_step_layout *layout, struct ps_error *err) PS_WARN_UNUSED;
void ps_step_map_fini(struct ps_step_map *m);

/* Bytes of a tier: device and host arenas (each buffer rounded up to 4096), spill on disk (the
 * store is apart: ps_step_map_store_bytes gives one slot of it). */
uint64_t ps_step_map_tier_bytes(const struct ps_step_map *m, enum ps_tier tier);

uint64_t ps_step_map_store_bytes(const struct ps_step_map *m);
/* Bytes of a unit's kept gradient. */
uint64_t ps_step_keep_bytes(const struct ps_step_shape *shape, const struct ps_step_map *m,
                            int32_t unit_idx);

/* The same of one granule, which is what moves to and from the disk. */
uint64_t ps_step_piece_bytes(const struct ps_step_shape *shape, const struct ps_step_map *m,
                             int32_t granule);

enum ps_segment {
    PS_SEGMENT_TRAIN,
    PS_SEGMENT_UPDATE,
    PS_SEGMENT_EVAL,
    PS_SEGMENT_PROLOGUE_TRAIN,
    PS_SEGMENT_PROLOGUE_EVAL,
    PS_SEGMENT_TRAIN_INNER, /* a pass that is not the step's last; empty when there is one pass */
    PS_SEGMENT_COUNT,
};
const char *ps_segment_name(enum ps_segment s);

/* Build, derive and validate one segment. */
int ps_step_build(struct ps_schedule *s, enum ps_segment segment, const struct ps_step_shape *shape,
                  const struct ps_step_layout *layout, const struct ps_step_map *map,
                  struct ps_error *err) PS_WARN_UNUSED;

/* Symbolic run of a segment in program order, after its prologue (or NULL): every task finds the
 * values that it needs where it looks for them, over two periods. PS_EUSAGE names the task. For
 * imported schedules; micro and unit numbers must be those of tasks that the builder makes. */
int ps_step_check(const struct ps_schedule *s, const struct ps_schedule *prologue,
                  enum ps_segment segment, const struct ps_step_shape *shape,
                  const struct ps_step_layout *layout, const struct ps_step_map *map,
                  struct ps_error *err) PS_WARN_UNUSED;

/* The declared ranges of a task as its kind, unit, micro-batch and args imply them: what the
 * builder declares and an imported schedule is held against. */
void ps_step_declare(struct ps_schedule *s, const struct ps_task *task, enum ps_segment segment,
                     const struct ps_step_shape *shape, const struct ps_step_layout *layout,
                     const struct ps_step_map *map);

#ifdef __cplusplus
}
#endif
#endif
