/* What trainer.c, trainer_plan.c, trainer_bind.c, trainer_io.c, trainer_task.c and trainer_step.c
 * share: see trainer.h. */
#ifndef PS_TRAIN_TRAINER_INTERNAL_H
#define PS_TRAIN_TRAINER_INTERNAL_H

#include <stdatomic.h>

#include "runtime/model/block.h"
#include "runtime/model/head.h"
#include "runtime/model/safetensors.h"
#include "runtime/train/step_internal.h"
#include "runtime/train/trainer.h"

/* What the evaluation segment's head task does. */
enum ps__head_mode {
    PS__HEAD_LOSS,
    PS__HEAD_NOTHING, /* the caller computes logits afterwards */
    PS__HEAD_LAST,    /* logits of the last token (generation) */
};

/* What the tasks need of a batch beside struct ps_batch; in the same memory. */
struct ps__batch_extra {
    int32_t *row, *target; /* labelled tokens, ascending: index and target; (rows,) */
    int32_t *doc;          /* (n_tok, 2): first token of the document, one past its last */
    size_t rows;
};

/* Where a trainable's weight and gradient begin: bytes in its unit's image, and in its gradients.
 */
struct ps__home {
    size_t weight_offset, grad_offset;
};

/* What a step decides, for updates that run later. */
struct ps__order {
    bool go;    /* gradients and loss are finite */
    float coef; /* of every gradient; per tensor: see tensor_coef */
    double lr;
    uint64_t step; /* completed updates before */
};

struct ps_trainer {
    struct ps_trainer_options opt; /* constant after create */
    struct ps_model_config cfg;
    struct ps_param_table params;
    struct ps_pool *pool;
    struct ps_compute cx;
    struct ps_st_set *files; /* NULL with plan_only */
    bool committed;

    /* sizes: constant after create */
    struct ps_unit_sources source;     /* in the model's files; shape.source is what is streamed */
    const struct ps_unit_codec *codec; /* NULL: units come from the model's files */
    struct ps_step_shape shape;
    uint64_t *unit_bytes; /* four arrays of n_layer + 2 for the shape */
    size_t *param_offset; /* (params.count) in its pinned unit */
    size_t adapter_scratch;
    size_t cache_half; /* bytes of the keys of one layer and sequence */

    int32_t *trainable_param; /* (trainable_capacity,) full training: its parameter */
    struct ps__home *home;    /* (trainable_capacity,) */
    struct ps_granule *granule;
    struct ps_slice *slice;
    uint32_t *granule_begin;
    uint64_t *state_image_bytes;
    uint64_t *chunk_offset;
    struct ps_store_extent *extent;      /* (2 * (n_layer + 2)): weights and states by unit index */
    struct ps_unit_sources store_source; /* full training: units as the store holds them */
    struct ps_unit_tensor *store_tensor;

    /* where everything lies: set_layout */
    struct ps_step_layout layout;
    struct ps_step_map map;
    bool has_layout;
    struct ps_schedule segment[PS_SEGMENT_COUNT];
    bool has_segment[PS_SEGMENT_COUNT];

    /* memory: commit */
    struct ps_device *near, *host;       /* host NULL: no host buffers */
    unsigned char *buffer[PS_BUF_COUNT]; /* DEVICE tier: addresses for the device's threads */
    struct ps_queues *queues; /* of the CUDA device; NULL: tasks are done when they return */
    struct ps_executor *ex;
    int handle[PS_SEGMENT_COUNT];
    enum ps_segment loaded; /* whose live-in the slots hold; PS_SEGMENT_COUNT: nobody's */

    /* per parameter; addresses for the device's threads */
    struct ps_weight *weight; /* (params.count,) data NULL: streamed */
    uint16_t **remainder;     /* (params.count,) NULL: none */
    float **grad;             /* (params.count,) NULL: frozen */

    struct ps_block *block; /* (n_layer,) */
    struct ps_head head;
    struct ps_adapter_site *site;          /* (ps_site_count,), ops NULL: not adapted */
    struct ps_adapter_site *site_host;     /* the same with host addresses (mirror), for files */
    struct ps_adapter_config *site_config; /* (ps_site_count,) */
    struct ps_adapter_entry *entry;        /* tensors of adapters */
    char (*entry_name)[192];
    size_t entry_count, entry_capacity;
    struct ps_weight *vector; /* (params.count,) trained in the base's place; data NULL: not */

    struct ps_trainable *trainable;        /* host addresses */
    struct ps_trainable *trainable_device; /* the same with addresses for the device's threads */
    size_t trainable_count, trainable_capacity;
    size_t partial_count;

    struct ps_block_scratch scratch;
    struct ps_head_scratch head_scratch;
    struct ps__batch_extra *extra,
        *extra_host;      /* (batch_count) beside the batches, the same views */
    double *partial_host; /* (partial_count) */
    float *row_host; /* (vocab,) on a device with memory of its own, outside training; else NULL */
    int fault;       /* first failed launch (CUDA) */
    bool pinned;     /* the host arena is page-locked (CUDA) */
    struct ps_batch *batch;      /* (batch_count) as the device's threads see them */
    struct ps_batch *batch_host; /* (batch_count) as they are filled; the same memory on cpu */
    int32_t *n_past;             /* (batch_count) generation */

    /* storage, by lane; each used by its lane's thread alone after commit */
    struct ps_storage *storage[PS_LANE_COUNT];
    struct {
        struct ps_storage *st;
        uint64_t first, last; /* tickets */
    } in_flight[PS_LANE_COUNT][4];
    uint32_t in_flight_head[PS_LANE_COUNT], in_flight_tail[PS_LANE_COUNT];
    struct {
        _Atomic uint64_t read, written; /* atomic: written by the lane, read by the caller */
    } moved[PS_LANE_COUNT];
    struct ps_transfer *cut[PS_LANE_COUNT]; /* (cut_max,) of the spill lanes; lane thread only */
    int cut_max;
    bool checksums_kept;
    bool *unit_seen;              /* (source units) read and checked once; disk_weights lane only */
    struct ps_state_store *store; /* set_store; NULL: none */
    struct ps_storage *store_storage[PS_LANE_COUNT]; /* COMMIT: of the caller's thread */
    struct ps_transfer *store_cut[PS_LANE_COUNT];    /* (store_cut_max,) */
    int store_cut_max;
    unsigned char *bounce_weight, *bounce_state; /* one granule each; caller's thread only */
    size_t bounce_weight_bytes, bounce_state_bytes;
    uint64_t held_weight,
        held_state;             /* extent and chunk + 1 that they hold for part_read; 0: none */
    uint64_t *grad_sum;         /* (granules) XXH3 of kept gradients on disk, as spill_sum */
    bool redoing;               /* segment update runs */
    bool *unit_updated;         /* (n_layer + 2) by the last update task of the unit */
    struct ps_pool *optim_pool; /* streamed updates; cpu_optim lane only */
    void *far_workspace;        /* of methods without kernels on the device */
    void *run_state;            /* of the next commit; written by clip, read by commit */
    size_t run_state_bytes;
    bool commit_due;
    struct ps__order now, pending_order;
    bool pending;        /* deferred updates wait for the next forward pass */
    bool revoked;        /* INSIDE: what this step stored must be taken back */
    double norm_before;  /* of the last step that updated; < 0: none (delayed clipping) */
    float *tensor_coef;  /* (trainable_count,) per-tensor clipping */
    uint64_t *spill_sum; /* XXH3 of each boundary as it was written; disk_write sets it, disk_state
                            reads it, one after the other as the schedule says */
    unsigned char
        *convert_piece; /* host memory for conversions on a discrete device; h2d lane only */
    bool piece_pinned;  /* (CUDA) */

    uint64_t updates;

    /* of the segment that runs now: written between runs, read by the lanes */
    uint64_t step;
    int32_t micro_base, present; /* first micro-batch of this pass, how many there are */
    bool training;
    enum ps__head_mode head_mode;
    float dscale;
    double loss_sum;
    int64_t label_count, tokens;
    bool settled; /* no step since the last ps_trainer_settle */
    /* bytes read and written: counters where the next step's count begins, and what came after a
       step's end but belongs to it */
    uint64_t *ahead_step; /* (granules) update for which a deferred one's states are read ahead */
    uint64_t io_mark[2], io_rest[2];
    double norm;
};

/* Some tensor of this trainer is trained; by gradients. */
bool ps__trainer_trains(const struct ps_trainer *t);
static inline bool ps__trainer_backward(const struct ps_trainer *t)
{
    return ps__trainer_trains(t) && !t->opt.optimizer->perturb;
}
bool ps__trainer_param_trained(const struct ps_trainer *t, const struct ps_param_info *p);
/* The gradient of a tied embedding has two parts, the head's and that of looking up, each summed
 * over the micro-batches by itself, so that the order of additions does not depend on how many of
 * them pass a layer at a time. The second part lies behind the first; the sum is made before the
 * norm. */
bool ps__trainer_two_parts(const struct ps_trainer *t, const struct ps_trainable *x);
static inline float *ps__trainer_lookup_part(float *grad, size_t n)
{
    return grad + ((n + 15) & ~(size_t)15);
}
/* Its weight is the upper half of an exact master; after the plan. */
bool ps__trainer_has_remainder(const struct ps_trainable *x);
int32_t ps__trainer_param_unit(const struct ps_param_info *p);

/* Compute the shape. */
int ps__trainer_plan(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
/* Arrays of one batch in memory of batch_bytes; returns the bytes (with base NULL only measures).
 */
size_t ps__trainer_carve_batch(const struct ps_trainer *t, struct ps_batch *b,
                               struct ps__batch_extra *extra, void *base);

struct ps_trainable *ps__trainer_add_trainable(struct ps_trainer *t, const char *name, int32_t unit,
                                               int32_t rank, const int64_t *shape);
/* Room in the adapter buffer of a unit, in the order of the entries. */
size_t ps__trainer_place_adapter(struct ps_trainer *t, int32_t unit, size_t bytes);

/* trainer_adapter.c */
int ps__trainer_alloc_adapter(struct ps_trainer *t) PS_WARN_UNUSED;
void ps__trainer_free_adapter(struct ps_trainer *t);
int ps__trainer_plan_adapter(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
/* Vectors of a layer's base are trained. */
bool ps__trainer_vector_trained(const struct ps_trainer *t, int32_t layer);
void ps__trainer_bind_entry(struct ps_trainer *t, size_t i, void *device, void *host);
void ps__trainer_bind_sites(struct ps_trainer *t);
/* The adapter of the head, or NULL. */
const struct ps_adapter_site *ps__trainer_head_site(const struct ps_trainer *t);
/* Initial values, to the device. After the pinned weights are there. */
int ps__trainer_init_adapter(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;

/* Fill blocks, head, trainables and batches with addresses, after the arenas are there. */
int ps__trainer_bind(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
/* Weights of a layer, those of a slot included (slot -1: pinned), in *b. */
void ps__trainer_block(const struct ps_trainer *t, int32_t layer, int32_t slot, struct ps_block *b);

/* The head; of a slot, as above. */
void ps__trainer_head(const struct ps_trainer *t, int32_t slot, struct ps_head *head);

void ps__trainer_block_grads(const struct ps_trainer *t, struct ps_block *b, int32_t near_slot);

/* Zero states (before the weights are loaded: remainders are states) and the initial adapters, to
 * the device. */
int ps__trainer_clear_states(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
int ps__trainer_push_adapters(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;

/* trainer_io.c: storage of the lanes, and the tasks that move bytes. */
int ps__trainer_io_open(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
void ps__trainer_io_close(struct ps_trainer *t);
int ps__trainer_load_pinned(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
void ps__trainer_io_ops(struct ps_task_ops ops[PS_TASK_KIND_COUNT]);
void ps__trainer_io_bytes(const struct ps_trainer *t, uint64_t *read, uint64_t *written);

/* trainer_granules.c. -ENOMEM. */
int ps__trainer_plan_granules(struct ps_trainer *t) PS_WARN_UNUSED;
int ps__trainer_plan_store_sources(struct ps_trainer *t) PS_WARN_UNUSED;

/* Are updates streamed? */
static inline bool ps__trainer_streams(const struct ps_trainer *t)
{
    return t->layout.update != PS_UPDATE_RESIDENT && t->shape.trains;
}

/* trainer_update_far.c: whether a resident tensor is updated on the host though it lies on a
 * device; the scratch memory for it; the update, complete on return, as `near` says but for the
 * addresses. */
bool ps__trainer_updates_far(const struct ps_trainer *t, const struct ps_opt_layout *layout);
int ps__trainer_open_far(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
int ps__trainer_update_far(struct ps_trainer *t, size_t i, const struct ps_update *near,
                           struct ps_error *err) PS_WARN_UNUSED;

/* Before a step: what updates inside its backward pass go by. */
void ps__trainer_begin_order(struct ps_trainer *t);
/* Losses of the pass that has just run. */
int ps__trainer_add_losses(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
/* Host batch `i` has been filled. */
void ps__trainer_batch_filled(struct ps_trainer *t, int32_t i);
/* Run a segment, with the slots as it expects them. */
int ps__trainer_run_segment(struct ps_trainer *t, enum ps_segment segment,
                            struct ps_error *err) PS_WARN_UNUSED;
/* The update of the step before, where one waited, has been made in the pass that has ended. */
void ps__trainer_pending_done(struct ps_trainer *t);
/* The order of this step's update has been given (it may be not to go): count it, or let it wait.
 * redone: all of it has been made by itself. */
void ps__trainer_count_step(struct ps_trainer *t, bool redone);
/* The statistics of a step: from here; what the trainer and its lanes know when it has ended. */
void ps__trainer_begin_stats(struct ps_trainer *t, struct ps_trainer_stats *stats);
void ps__trainer_end_stats(struct ps_trainer *t, struct ps_trainer_stats *stats);
/* Keep the table of checksums once every unit has been read. */
void ps__trainer_keep_checksums(struct ps_trainer *t);

/* trainer_zeroth.c: perturbed weights. Those of a task's micro-batch in place of a layer's or the
 * head's (`site`: room for adapters), of a site (returned), or of one tensor: NULL, the site itself
 * and nothing where the task computes with the weights as they are. */
void ps__trainer_move_block(const struct ps_trainer *t, const struct ps_task *task,
                            struct ps_block *b, struct ps_adapter_site *site);
void ps__trainer_move_head(const struct ps_trainer *t, const struct ps_task *task,
                           struct ps_head *head, struct ps_adapter_site *site);
const struct ps_adapter_site *ps__trainer_move_site(const struct ps_trainer *t,
                                                    const struct ps_task *task,
                                                    const struct ps_adapter_site *site,
                                                    struct ps_adapter_site *room);
void *ps__trainer_moved(const struct ps_trainer *t, const struct ps_task *task, int32_t param_idx);
/* Both images of a slice, from the weights and, of bf16 ones, u->remainder; all pointers as in
 * update. */
void ps__trainer_perturb(const struct ps_trainer *t, const struct ps_task *task,
                         const struct ps_update *u, uint64_t weight_offset);
void ps__trainer_zeroth_ops(struct ps_task_ops ops[PS_TASK_KIND_COUNT]);
/* ps_trainer_step of a method without gradients. */
int ps__trainer_zeroth_step(struct ps_trainer *t, struct ps_batcher *b, uint64_t step,
                            struct ps_trainer_stats *stats, struct ps_error *err) PS_WARN_UNUSED;
/* The step has been decided (clip, on the compute lane): prepare its commit. */
void ps__trainer_decided(struct ps_trainer *t);

/* trainer_store.c: the store, from the caller's thread while no lane works. */
int ps__trainer_store_open(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
void ps__trainer_store_close(struct ps_trainer *t);
/* Do weights and states come from the store (else from the model's files)? */
bool ps__trainer_from_store(const struct ps_trainer *t);
/* Fill an empty store with the model; bring what lies in memory from it. */
int ps__trainer_store_load(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
/* The near copies of pinned weights, anew. */
int ps__trainer_store_reload_pinned(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
/* Queue one chunk's transfers on a lane; *first, *last: tickets (first > last: none). */
int ps__trainer_store_submit(struct ps_trainer *t, enum ps_lane lane, uint32_t extent,
                             uint32_t chunk, bool write, void *memory, uint64_t *first,
                             uint64_t *last, struct ps_error *err) PS_WARN_UNUSED;

/* trainer_update.c: the tasks of streamed updates. */
void ps__trainer_update_ops(struct ps_task_ops ops[PS_TASK_KIND_COUNT]);
/* Where the host updates a unit's weights. */
unsigned char *ps__trainer_host_weights(const struct ps_trainer *t, int32_t unit, int32_t slot,
                                        int32_t raw);
/* A trainable's gradient where it is made (near slot, -1: its own place). */
float *ps__trainer_grad(const struct ps_trainer *t, size_t idx, int32_t near_slot);
void ps__trainer_push_tickets(struct ps_trainer *t, enum ps_lane l, struct ps_storage *st,
                              uint64_t first, uint64_t last);
int ps__trainer_wait_tickets(struct ps_trainer *t, enum ps_lane l,
                             struct ps_error *err) PS_WARN_UNUSED;
/* Copies between the host and an address of the device's threads; queued where the device has
 * queues. */
int ps__trainer_to_device(struct ps_trainer *t, void *mapped, const void *host, size_t bytes,
                          struct ps_error *err) PS_WARN_UNUSED;
int ps__trainer_to_host(struct ps_trainer *t, void *host, const void *mapped, size_t bytes,
                        struct ps_error *err) PS_WARN_UNUSED;
void *ps__trainer_device_address(const struct ps_trainer *t, const void *mapped);

/* trainer_task.c: the tasks that compute. */
void ps__trainer_task_ops(struct ps_task_ops ops[PS_TASK_KIND_COUNT]);
void *ps__trainer_x(const struct ps_trainer *t, int32_t idx);

#endif
