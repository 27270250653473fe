/* The training core: a model, its trainable tensors and the segments that run over them.
 *
 * Life: create (reads config.json, computes the shape of a step), set_layout (where everything
 * lies: builds the schedules), commit (allocates one arena a tier, loads what is pinned,
 * initialises adapters), then steps and evaluations in any order. A step allocates nothing. */
#ifndef PS_TRAIN_TRAINER_H
#define PS_TRAIN_TRAINER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/data/batch.h"
#include "runtime/device/cuda_plugin.h"
#include "runtime/device/device.h"
#include "runtime/model/config.h"
#include "runtime/model/linear.h"
#include "runtime/model/params.h"
#include "runtime/train/executor.h"
#include "runtime/train/optimizer.h"
#include "runtime/train/step.h"
#include "runtime/train/state_store.h"
#include "runtime/train/storage.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is trained. */
enum ps_train_mode {
    PS_MODE_NONE,    /* evaluation, generation, export; an adapter may be active */
    PS_MODE_ADAPTER, /* adapters only, base frozen */
    PS_MODE_FULL,    /* base weights */
};

/* How a streaming run reaches its files; the session fills it from offload/. */
struct ps_trainer_io {
    /* Open a storage back end for one lane. NULL: nothing can be streamed. */
    int (*open)(void *arg, struct ps_storage **out, const struct ps_storage_options *opt,
                struct ps_error *err);
    void *arg;
    uint32_t depth, chunk_bytes; /* 0: the back end's defaults */
    /* The spill file of layer boundaries, `bytes` long: make it; add its files to a lane's storage
     * (fresh, so file numbers begin at 0); cut [offset, offset + bytes) into at most `max`
     * transfers. */
    int (*spill_create)(void *arg, uint64_t bytes, struct ps_error *err);
    int (*spill_attach)(void *arg, struct ps_storage *st, struct ps_error *err);
    int (*spill_map)(void *arg, uint64_t offset, uint64_t bytes, struct ps_transfer *out, int max);
    bool moves_nothing; /* the `null` back end: what comes back is not what was written */
    /* Path of one of its files, for messages; may be NULL. */
    const char *(*spill_path)(void *arg, uint32_t file);
    const char *checksum_path; /* table of the model files' checksums; NULL: none is kept */
};

/* Units that are streamed from another file than the model's, in another form: see
 * ps_trainer_set_codec. */
struct ps_unit_codec {
    /* The units, number by number those of ps_trainer_staged_sources: the same near slots, other
     * raw ones, and every extent in file 0. */
    const struct ps_unit_sources *source;
    const char *path;     /* file 0; NULL: only for planning, commit is not allowed */
    uint64_t piece_bytes; /* a device with memory of its own receives pieces of so many bytes */
    /* Bytes [begin, begin + bytes) of a unit's near slot into `near`, from its raw slot (host
     * addresses); begin and, but for the last piece, bytes are multiples of piece_bytes, or the
     * slot is decoded whole. Finds out by itself whether the raw bytes are those that were stored
     * (PS_ECHECKSUM names file and remedy). On the thread of the h2d lane. */
    int (*decode)(void *arg, uint32_t unit_idx, uint64_t begin, uint64_t bytes, void *near,
                  const void *raw, struct ps_error *err);
    void *arg;
};

/* Elements of an update granule: 2 Mi, 20 MiB of bf16 remainder and fp32 moments. */
/* Most bytes of a commit.s run state. */
#define PS_TRAINER_RUN_STATE_MAX ((size_t)1 << 20)
#define PS_TRAINER_GRANULE_DEFAULT ((uint64_t)2 << 20)

/* Where a run is when a step has been decided, for the state that is committed with it. */
struct ps_run_point {
    uint64_t step;          /* of the batcher: the next one to do is step + 1 */
    uint64_t updates;       /* completed, this step's included */
    int64_t tokens, labels; /* of this step */
    double loss, grad_norm, learning_rate;
    float clip_coef;
    bool skipped;
};

struct ps_trainer_options {
    const char *model_dir;
    enum ps_train_mode mode;
    enum ps_dtype dtype; /* F32 or BF16 */
    enum ps_isa isa;
    int thread_count;
    uint64_t seed;
    /* adapters (any mode but FULL); adapter NULL: none */
    const struct ps_adapter_ops *adapter;
    struct ps_adapter_config adapter_config;
    const bool *site_on; /* (ps_site_count): what is adapted; NULL: all linears */
    const struct ps_adapter_config
        *site_config;    /* (ps_site_count): ranks and alphas that differ; NULL */
    bool adapter_loaded; /* values will be read from a file: leave out the initial ones */
    /* FULL: which layers are trained; NULL: everything, embedding, head and final norm included */
    const bool *layer_on; /* (n_layer,) */
    /* optimizer (modes ADAPTER and FULL) */
    const struct ps_optimizer_ops *optimizer;
    struct ps_optimizer_hyper hyper;
    double max_grad_norm; /* <= 0: no clipping */
    enum ps_clip_mode clip_mode;
    /* From partial square sums of the gradient, tensors in order, to norm and coefficient; returns
     * false when the norm is not finite. */
    bool (*clip)(const double *partial, size_t count, double max_norm, double *norm, float *coef);
    double (*lr_at)(const void *arg, uint64_t completed_steps);
    const void *lr_arg;
    /* Exact master weights: split a fp32 value into bf16 weight and remainder, and join them. */
    void (*master_split)(float master, uint16_t *weight, uint16_t *remainder);
    float (*master_join)(uint16_t weight, uint16_t remainder);
    /* capacities */
    int32_t n_tok_max, doc_max;
    int32_t micro_max;     /* most micro-batches of a window; 0: 1 */
    int32_t position_max;  /* rows of the RoPE table */
    int32_t cache_tok_max; /* > 0: room for a key-value cache (generation) */
    const struct ps_log *log;
    bool plan_only; /* a config.json suffices; commit is not allowed */
    /* where and how it runs */
    const struct ps_device_ops *device; /* NULL: cpu */
    const struct ps_cuda_plugin *cuda;  /* not NULL: its device and kernels */
    struct ps_trainer_io io;
    /* The state that a commit carries, into out (at most max bytes); returns its bytes. On the
     * compute lane's thread, or the caller's. NULL: none. */
    size_t (*run_state)(void *arg, const struct ps_run_point *p, void *out, size_t max);
    void *run_state_arg;
    /* For looking at gradients: called for each trained tensor when its gradient is complete,
     * before clipping (streamed updates alone: others keep theirs in struct ps_trainable); host
     * memory, valid during the call, on the compute lane's thread. NULL: none. */
    void (*grad_sink)(void *arg, size_t idx, const float *grad, size_t n);
    void *grad_sink_arg;
    uint64_t granule_elements; /* 0: the default; else a multiple of 2048 (tests) */
    double throttle[PS_LANE_COUNT];
    bool serial;
    bool drop_unlabelled; /* steps leave out tokens that no gradient comes from: ps_batch_drop_* */
    uint64_t delay_seed, delay_max_ns;
    struct ps_vclock *vclock;
};

/* One tensor that is trained, or one adapter tensor in mode NONE (then without gradient and state).
 */
struct ps_trainable {
    const char *name; /* Hugging Face name, or PEFT name with "base_model.model." */
    int32_t unit;     /* layer, PS_UNIT_EMBED or PS_UNIT_HEAD */
    int32_t rank;
    int64_t shape[2];
    size_t n;
    /* NULL for what lies on disk, and on a device whose updates run on the host: see
     * ps_trainer_part_read. Else addresses in the arena, or, on a device with memory of its own, in
     * the host mirror of it: see ps_trainer_pull. */
    void *weight;
    enum ps_dtype dtype; /* F32, or BF16 with remainder */
    uint16_t *remainder;
    float *grad;
    void *state[PS_OPTIMIZER_STATE_MAX];
    struct ps_opt_tensor tensor;
    struct ps_opt_layout layout; /* what the optimizer keeps of it */
    bool decay;
    double rate;          /* factor of the learning rate */
    uint64_t t;           /* updates so far */
    size_t partial_begin; /* first square sum of the gradient, one for 65536 elements */
    size_t partial_count;
};

/* One tensor of an adapter, trained or not. */
struct ps_adapter_entry {
    size_t offset;    /* bytes, in its unit's adapters */
    const char *name; /* PEFT's, or the method's own */
    int32_t unit, rank;
    int64_t shape[2];
    size_t n;
    bool frozen;
    int32_t site, index; /* ps_site_idx (-1: none, or shared), tensor there */
    bool transposed;     /* files hold the transpose */
    int32_t param_idx;   /* vector of the base that it replaces; -1: none */
    int32_t trainable;   /* -1: frozen */
    float *value;        /* as in struct ps_trainable */
    float *device;       /* for the device's threads */
};

/* Is the bias with this role trained beside the adapter? `adapted`: its linear is. */
bool ps_adapter_bias_trained(const struct ps_adapter_config *c, enum ps_role role, bool adapted);

/* What one step did. */
struct ps_trainer_stats {
    double loss, grad_norm, learning_rate;
    float clip_coef;
    int64_t tokens, labels, dropped; /* tokens of the data, dropped ones included */
    double seconds, compute_s, data_s, update_s;
    bool skipped;
    struct ps_lane_stats lane[PS_LANE_COUNT];
    uint64_t redo_bytes; /* moved because an update inside the backward pass was taken back */
    uint64_t read_bytes, write_bytes; /* of the storage lanes, in this step */
};

struct ps_trainer;

/* Read config.json and plan. The strings and arrays of `opt` must live until commit; ops, callbacks
 * and their arguments until destroy. */
int ps_trainer_create(struct ps_trainer **out, const struct ps_trainer_options *opt,
                      struct ps_error *err) PS_WARN_UNUSED;
/* The sizes of a step. */
const struct ps_step_shape *ps_trainer_shape(const struct ps_trainer *t);
/* The model's files, NULL with plan_only; how the units lie in them when every one is copied or
 * converted on its way (also where a run uses them as they are). Free with ps_unit_sources_fini.
 */
const struct ps_st_set *ps_trainer_files(const struct ps_trainer *t);
int ps_trainer_staged_sources(const struct ps_trainer *t, struct ps_unit_sources *out,
                              struct ps_error *err) PS_WARN_UNUSED;
/* Stream the units through a codec (borrowed until destroy), or from the model's files again
 * (NULL). The shape and what it points to change: call ps_trainer_set_layout afterwards, before
 * commit. The caller answers for the model's files: neither checksum_path nor a first pass over
 * them is of use to the trainer then. */
void ps_trainer_set_codec(struct ps_trainer *t, const struct ps_unit_codec *codec);
/* Choose where everything lies (copied); may be called again before commit. Builds and checks the
 * schedules. */
int ps_trainer_set_layout(struct ps_trainer *t, const struct ps_step_layout *layout,
                          struct ps_error *err) PS_WARN_UNUSED;
const struct ps_step_layout *ps_trainer_layout(const struct ps_trainer *t);
const struct ps_step_map *ps_trainer_map(const struct ps_trainer *t);
const struct ps_schedule *ps_trainer_schedule(const struct ps_trainer *t, enum ps_segment segment);
/* Replace a segment by an imported one: the same tasks with the same args, in another order or with
 * other dependencies. Ranges are declared anew from the args, then races, values and the order of
 * sums are checked: what is accepted gives the same bits. PS_EUSAGE says what is wrong. Takes over
 * *s. Before commit. */
int ps_trainer_import_schedule(struct ps_trainer *t, enum ps_segment segment, struct ps_schedule *s,
                               const char *path, struct ps_error *err) PS_WARN_UNUSED;
/* The clock that tasks are timed by (`emu`); before commit; must live until destroy. NULL: real
 * time. */
void ps_trainer_set_clock(struct ps_trainer *t, struct ps_vclock *clock);
/* Bytes of a tier under the present layout. */
uint64_t ps_trainer_bytes(const struct ps_trainer *t, enum ps_tier tier);

/* Allocate the arenas, load pinned weights, initialise adapters. */
int ps_trainer_commit(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
void ps_trainer_destroy(struct ps_trainer *t);

const struct ps_model_config *ps_trainer_config(const struct ps_trainer *t);
const struct ps_param_table *ps_trainer_params(const struct ps_trainer *t);
struct ps_pool *ps_trainer_pool(const struct ps_trainer *t);
const struct ps_adapter_config *ps_trainer_adapter_config(const struct ps_trainer *t);

/* Trainable tensors in order: embedding, layers ascending, final norm, head; within an adapted
 * linear in the order of its tensors. */
size_t ps_trainer_trainable_count(const struct ps_trainer *t);
struct ps_trainable *ps_trainer_trainable(struct ps_trainer *t, size_t idx);
uint64_t ps_trainer_trainable_elements(const struct ps_trainer *t);

/* Tensors of the adapter in order, for files; the table that they belong to, NULL: none. */
size_t ps_trainer_adapter_count(const struct ps_trainer *t);
const struct ps_adapter_entry *ps_trainer_adapter_at(const struct ps_trainer *t, size_t i);
const struct ps_adapter_ops *ps_trainer_adapter_ops(const struct ps_trainer *t);

/* Adapter site of a linear, of the embedding or of the head (layer ignored), or NULL. */
const struct ps_adapter_site *ps_trainer_site(const struct ps_trainer *t, int32_t layer,
                                              enum ps_role role);

/* A base parameter's value as fp32: elements [begin, begin + n), master weights joined (call
 * ps_trainer_pull before); a streamed one is read from its file. */
int ps_trainer_param_read(const struct ps_trainer *t, int32_t param_idx, size_t begin, size_t n,
                          float *out, struct ps_error *err) PS_WARN_UNUSED;
/* Its type and, where it is pinned, its address for the device's threads. */
const struct ps_weight *ps_trainer_param(const struct ps_trainer *t, int32_t param_idx);

/* On a device with memory of its own the addresses in struct ps_trainable are those of a host
 * mirror: pull copies the device's state there (call it before reading them), push copies it back
 * (after writing). Nothing happens elsewhere. */
int ps_trainer_pull(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
int ps_trainer_push(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;

/* Where a buffer of the schedules lies: the address for the device's threads, NULL for one on disk,
 * without bytes, or before commit. For checkers. */
unsigned char *ps_trainer_buffer(const struct ps_trainer *t, enum ps_step_buffer b);

/* Executor, and the handle of a segment in it, for traces and checks; NULL before commit. */
struct ps_executor *ps_trainer_executor(struct ps_trainer *t, enum ps_segment segment, int *handle);

/* The store of mutable state (borrowed until destroy); before commit, or, for runs that keep all in
 * memory, also before the first ps_trainer_store_commit. Its extents are those given
 * here, the same for every layout. One that holds a generation is what the run goes on from:
 * weights, states (and adapters) come from it; an empty one is filled with the model. A layout with
 * states on disk needs one. */
const struct ps_store_extent *ps_trainer_store_extents(const struct ps_trainer *t, uint32_t *count);
void ps_trainer_set_store(struct ps_trainer *t, struct ps_state_store *store);
/* Bring the run to rest: an update that waits for the next step is done now, all that trails has
 * ended. Call it before reading states or weights, or closing a run. */
int ps_trainer_settle(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;

/* Bytes that have been read and written for steps and are in no step's statistics yet: of writes
 * that trail behind the last step, of updates that it left. */
void ps_trainer_rest_bytes(struct ps_trainer *t, uint64_t *read, uint64_t *written);
/* Put what lies in memory into the store and commit, with this run state; settles first. For runs
 * that do not commit every step (ps_step_map.commits). */
int ps_trainer_store_commit(struct ps_trainer *t, const void *run_state, size_t bytes,
                            struct ps_error *err) PS_WARN_UNUSED;

/* Raw values of a trained tensor wherever they lie: its weight, remainder or state k, entries
 * [begin, begin + n) of it (of a state by block: of its entries, whole tensors only). Settle first.
 */
enum { PS_PART_WEIGHT = -2, PS_PART_REMAINDER = -1 };
int ps_trainer_part_read(struct ps_trainer *t, size_t idx, int part, size_t begin, size_t n,
                         void *out, struct ps_error *err) PS_WARN_UNUSED;
/* Set every part of every trained tensor: get delivers entries [begin, begin + n) of a part. What
 * lies on disk is written into the store (not committed). Settles first. */
typedef int (*ps_trainer_get_fn)(void *arg, size_t idx, int part, size_t begin, size_t n, void *out,
                                 struct ps_error *err);
int ps_trainer_put_parts(struct ps_trainer *t, ps_trainer_get_fn get, void *arg,
                         struct ps_error *err) PS_WARN_UNUSED;
/* The per-tensor counts and the norm that delayed clipping uses, for resuming. */
double ps_trainer_norm_before(const struct ps_trainer *t);
void ps_trainer_set_norm_before(struct ps_trainer *t, double norm);

/* Completed updates (the schedule's clock); settable for resuming. */
uint64_t ps_trainer_updates(const struct ps_trainer *t);
void ps_trainer_set_updates(struct ps_trainer *t, uint64_t updates);

/* Optimizer step number `step` of the batcher (its data window): all micro-batches, norm, clip,
 * update. With a non-finite loss or gradient nothing is updated and stats->skipped is set; returns
 * 0 then too. */
int ps_trainer_step(struct ps_trainer *t, struct ps_batcher *b, uint64_t step,
                    struct ps_trainer_stats *stats, struct ps_error *err) PS_WARN_UNUSED;

/* Sum of losses and number of labelled tokens over every window of the batcher. */
int ps_trainer_eval(struct ps_trainer *t, struct ps_batcher *b, double *loss_sum, int64_t *labels,
                    int64_t *tokens, struct ps_error *err) PS_WARN_UNUSED;

/* One sequence of a forward pass. */
struct ps_trainer_seq {
    const int32_t *ids; /* (n_tok,) */
    int32_t n_tok;      /* 1 when n_past > 0 */
    int32_t n_past;     /* tokens already in the key-value cache of this place */
};

/* Sequences that one pass over the weights can take. */
int32_t ps_trainer_seq_max(const struct ps_trainer *t);

/* Forward over `count` sequences in one pass over the weights; emit(arg, seq, logits, row_begin,
 * rows) receives fp32 logits (rows, vocab), sequences and rows ascending. Stops at and returns the
 * first negative value of emit. */
int ps_trainer_logits(struct ps_trainer *t, const struct ps_trainer_seq *seq, int32_t count,
                      int (*emit)(void *arg, int32_t seq, const float *logits, int32_t row_begin,
                                  int32_t rows),
                      void *arg, struct ps_error *err) PS_WARN_UNUSED;

/* Generation, all sequences in lockstep: sequence i goes on in cache i (n_past + n_tok <=
 * cache_tok_max). ps_trainer_last_logits(t, i) then gives the fp32 logits (vocab,) of its last
 * token, until the next call. n_tok 0: this place is idle. */
int ps_trainer_decode(struct ps_trainer *t, const struct ps_trainer_seq *seq, int32_t count,
                      struct ps_error *err) PS_WARN_UNUSED;
const float *ps_trainer_last_logits(struct ps_trainer *t, int32_t seq);

#ifdef __cplusplus
}
#endif
#endif
