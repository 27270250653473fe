/* What trainer.c, trainer_plan.c and trainer_step.c share: see trainer.h. */
#ifndef PS_TRAIN_TRAINER_INTERNAL_H
#define PS_TRAIN_TRAINER_INTERNAL_H

#include "runtime/model/block.h"
#include "runtime/model/head.h"
#include "runtime/model/safetensors.h"
#include "runtime/train/schedule.h"
#include "runtime/train/trainer.h"

struct ps_trainer {
    struct ps_trainer_options opt; /* constant after create */
    struct ps_model_config cfg;
    struct ps_param_table params;
    struct ps_pool *pool;
    struct ps_compute cx;
    struct ps_arena *arena;
    struct ps_st_set *files; /* closed after commit */
    bool committed;

    /* per parameter */
    struct ps_weight *weight; /* (params.count,) */
    uint16_t **remainder;     /* (params.count,) NULL: none */
    float **grad;             /* (params.count,) NULL: frozen */

    struct ps_block *block; /* (n_layer,) */
    struct ps_head head;
    struct ps_adapter_site *site; /* (n_layer * 7,), ops NULL: not adapted */
    char (*site_name)[192];       /* (trainable_count,) for adapters */

    struct ps_trainable *trainable;
    size_t trainable_count, trainable_capacity;
    double *partials;
    size_t partial_count;

    /* memory of the segments */
    unsigned char *x; /* (n_x, n_tok_max, hidden): layer boundaries */
    size_t x_stride;  /* bytes of one boundary */
    unsigned char *saved;
    size_t saved_stride; /* bytes of one layer's saved set */
    unsigned char *scratch_mem, *head_mem, *dx;
    float *cos_sin, *inv_freq;
    unsigned char *cache; /* (n_layer, 2, cache_tok_max, kv) */
    size_t cache_stride;  /* bytes of one of them */
    float *decode_logits;
    struct ps_block_scratch scratch;
    struct ps_head_scratch head_scratch;
    struct ps_batch batch;

    struct ps_schedule micro, update, eval;
    struct ps_resident_shape shape;
    uint64_t *unit_bytes; /* three arrays of n_layer for the shape */

    uint64_t updates;

    /* of the segment that runs now */
    uint64_t step;
    int32_t micro_idx;
    bool training;
    float dscale;
    double loss_sum;
    int64_t label_count;
    double norm, lr;
    float clip_coef;
    bool skip;
};

/* Slot of the three trainable unit kinds. */
bool ps__trainer_trains(const struct ps_trainer *t);

/* Plan every buffer and build the schedules. */
int ps__trainer_plan(struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;

/* Fill blocks, head and trainables with addresses, after the arena is committed. */
void ps__trainer_bind(struct ps_trainer *t);

#endif
