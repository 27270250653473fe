/* The optimizer's entry in its wing's table (optim/): the ground floor knows only the table. */
#ifndef PS_TRAIN_OPTIMIZER_H
#define PS_TRAIN_OPTIMIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_OPTIMIZER_STATE_MAX 4

/* Scalars that the user sets; each optimizer reads its own. */
struct ps_optimizer_hyper {
    double beta1, beta2, eps, weight_decay;
};

/* One tensor's update. Weight F32, or BF16 with a 16-bit remainder (exact fp32 master). */
struct ps_update {
    const struct ps_compute *cx; /* NULL, or where to compute when cx->k has the update itself */
    struct ps_pool *pool;
    enum ps_isa isa;
    const struct ps_optimizer_hyper *hyper;
    void *weight;
    enum ps_dtype weight_dtype;
    uint16_t *remainder; /* NULL for F32 */
    const float *grad;   /* before clipping */
    void *state[PS_OPTIMIZER_STATE_MAX];
    size_t n;
    uint64_t t; /* 1-based update count of this tensor */
    double lr;
    bool decay;       /* weight decay applies to this tensor */
    float grad_scale; /* clip coefficient */
};

struct ps_optimizer_ops {
    const char *name;
    int state_count;
    const char
        *state_name[PS_OPTIMIZER_STATE_MAX]; /* as in optimizer.safetensors: "exp_avg", ... */
    size_t (*state_bytes)(int state_idx,
                          size_t n); /* for a tensor of n elements; states are fp32 */
    void (*update)(const struct ps_update *u);
};

#ifdef __cplusplus
}
#endif
#endif
