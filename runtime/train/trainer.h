/* The training core: a model, its trainable tensors and the segments that run over them, in one
 * arena.
 *
 * Life: create (reads config.json, plans), commit (allocates, loads the weights, initialises
 * adapters), then steps and evaluations in any order. A step allocates nothing. */
#ifndef PS_TRAIN_TRAINER_H
#define PS_TRAIN_TRAINER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/data/batch.h"
#include "runtime/model/config.h"
#include "runtime/model/linear.h"
#include "runtime/model/params.h"
#include "runtime/train/arena.h"
#include "runtime/train/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is trained. */
enum ps_train_mode {
    PS_MODE_NONE,    /* evaluation, generation, export; an adapter may be active */
    PS_MODE_ADAPTER, /* adapters only, base frozen */
    PS_MODE_FULL,    /* base weights */
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
    const bool *site_on; /* (n_layer * 7): which linears are adapted; NULL: all */
    /* FULL: which layers are trained; NULL: everything, embedding, head and final norm included */
    const bool *layer_on; /* (n_layer,) */
    /* optimizer (modes ADAPTER and FULL) */
    const struct ps_optimizer_ops *optimizer;
    struct ps_optimizer_hyper hyper;
    double max_grad_norm; /* <= 0: no clipping */
    /* From partial square sums of the gradient, tensors in order, to norm and coefficient; returns
     * false when the norm is not finite. */
    bool (*clip)(const double *partial, size_t count, double max_norm, double *norm, float *coef);
    double (*lr_at)(const void *arg, uint64_t completed_steps);
    const void *lr_arg;
    /* Exact master weights: split a fp32 value into bf16 weight and remainder, and join them. */
    void (*master_split)(float master, uint16_t *weight, uint16_t *remainder);
    float (*master_join)(uint16_t weight, uint16_t remainder);
    bool recompute;
    /* capacities */
    int32_t n_tok_max, doc_max;
    int32_t position_max;  /* rows of the RoPE table */
    int32_t cache_tok_max; /* > 0: room for a key-value cache (generation) */
    const struct ps_log *log;
};

/* One tensor that is trained, or one adapter tensor in mode NONE (then without gradient and state).
 */
struct ps_trainable {
    const char *name; /* Hugging Face name, or PEFT name with "base_model.model." */
    int32_t unit;     /* layer, PS_UNIT_EMBED or PS_UNIT_HEAD */
    int32_t rank;
    int64_t shape[2];
    size_t n;
    void *weight;
    enum ps_dtype dtype; /* F32, or BF16 with remainder */
    uint16_t *remainder;
    float *grad;
    void *state[PS_OPTIMIZER_STATE_MAX];
    bool decay;
    uint64_t t;      /* updates so far */
    double *partial; /* square sums of the gradient, (n + 65535) / 65536 */
    size_t partial_count;
};

/* What one step did. */
struct ps_trainer_stats {
    double loss, grad_norm, learning_rate;
    float clip_coef;
    int64_t tokens, labels;
    double seconds, compute_s, data_s, update_s;
    bool skipped;
};

struct ps_trainer;

/* Read config.json and plan. The strings and arrays of `opt` must live until commit; ops, callbacks
 * and their arguments until destroy. */
int ps_trainer_create(struct ps_trainer **out, const struct ps_trainer_options *opt,
                      struct ps_error *err) PS_WARN_UNUSED;
/* Allocate the arena, load weights, initialise adapters. */
int ps_trainer_commit(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;
void ps_trainer_destroy(struct ps_trainer *t);

const struct ps_model_config *ps_trainer_config(const struct ps_trainer *t);
const struct ps_param_table *ps_trainer_params(const struct ps_trainer *t);
const struct ps_arena *ps_trainer_arena(const struct ps_trainer *t);
struct ps_pool *ps_trainer_pool(const struct ps_trainer *t);
const struct ps_adapter_config *ps_trainer_adapter_config(const struct ps_trainer *t);

/* Trainable tensors in order: embedding, layers ascending, final norm, head; within an adapted
 * linear in the order of its tensors. */
size_t ps_trainer_trainable_count(const struct ps_trainer *t);
struct ps_trainable *ps_trainer_trainable(struct ps_trainer *t, size_t idx);
uint64_t ps_trainer_trainable_elements(const struct ps_trainer *t);

/* Adapter site of a linear, or NULL. */
const struct ps_adapter_site *ps_trainer_site(const struct ps_trainer *t, int32_t layer,
                                              enum ps_role role);

/* A base parameter's value as fp32: elements [begin, begin + n), master weights joined. */
void ps_trainer_param_read(const struct ps_trainer *t, int32_t param_idx, size_t begin, size_t n,
                           float *out);
/* The weight where it lies. */
const struct ps_weight *ps_trainer_param(const struct ps_trainer *t, int32_t param_idx);

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

/* Forward over one sequence of n_tok ids; emit(arg, logits, row_begin, rows) receives fp32 logits
 * (rows, vocab) in ascending order. Stops at and returns the first negative value of emit. */
int ps_trainer_logits(struct ps_trainer *t, const int32_t *ids, int32_t n_tok,
                      int (*emit)(void *arg, const float *logits, int32_t row_begin, int32_t rows),
                      void *arg) PS_WARN_UNUSED;

/* Generation: run n_tok ids after n_past cached ones (n_tok == 1 when n_past > 0) and return the
 * fp32 logits (vocab,) of the last one; they live until the next call. n_past + n_tok <=
 * cache_tok_max. */
const float *ps_trainer_decode(struct ps_trainer *t, const int32_t *ids, int32_t n_tok,
                               int32_t n_past);

#ifdef __cplusplus
}
#endif
#endif
