/* The optimizer's entry in its wing's table (optim/): the ground floor knows only the table.
 *
 * A tensor is updated in slices: [begin, begin + n) of its elements. An optimizer says for each
 * tensor what it keeps, where slices may be cut and how much scratch memory an update needs; the
 * caller decides where everything lies and in what order slices come. The result may depend on
 * neither: element-wise methods take any slice, block-wise ones multiples of their block, methods
 * that need the whole matrix get it whole. */
#ifndef PS_TRAIN_OPTIMIZER_H
#define PS_TRAIN_OPTIMIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_OPTIMIZER_STATE_MAX 8

struct ps_optimizer_ops;

/* Low-rank methods: which side of a matrix (out, in) the basis spans. STD: the shorter one (columns
 * where it is square), REVERSE_STD: the longer one, LEFT: rows, RIGHT: columns. */
enum ps_projection {
    PS_PROJECTION_STD,
    PS_PROJECTION_REVERSE_STD,
    PS_PROJECTION_LEFT,
    PS_PROJECTION_RIGHT,
};

/* ... how the basis is found, and what becomes of moments when it changes. */
enum ps_basis { PS_BASIS_RANDOMIZED, PS_BASIS_SVD };
enum ps_moments { PS_MOMENTS_KEEP, PS_MOMENTS_RESET, PS_MOMENTS_ROTATE };

/* badam: the order of the blocks. RANDOM: a new permutation each round. */
enum ps_switch_mode {
    PS_SWITCH_DESCENDING,
    PS_SWITCH_ASCENDING,
    PS_SWITCH_RANDOM,
    PS_SWITCH_FIXED, /* the last layer all the time */
};

/* What the user sets; each optimizer reads its own. Fields that a method does not have are refused
 * by the session before they come here. */
struct ps_optimizer_hyper {
    double beta1, beta2, eps, weight_decay;
    double momentum;
    int32_t rank;              /* low-rank methods; 0: the method's default */
    int32_t update_gap;        /* steps between refreshes; 0: the method's default */
    double scale;              /* of a low-rank update; 0: the method's default */
    enum ps_dtype state_dtype; /* F32, or BF16 where the method allows it */
    uint64_t seed;
    int32_t n_layer;          /* of the model */
    bool stochastic_rounding; /* bf16 weights without a remainder: layout.remainder = false */
    double dampening;         /* of momentum */
    bool nesterov;
    /* adafactor */
    double eps2, clip_threshold, decay_rate;
    bool scale_parameter, relative_step, warmup_init;
    /* microadam */
    int32_t window;      /* gradients that are kept */
    double density;      /* share of a gradient that is kept */
    int32_t quant_block; /* elements that share the range of their error codes */
    /* lisa, badam */
    int32_t active_layers;
    int32_t interval; /* steps between two choices of what is active */
    enum ps_switch_mode switch_mode;
    bool keep_state; /* moments of frozen layers wait instead of beginning anew */
    /* mezo */
    double zo_eps;
    /* methods that need a whole matrix */
    int32_t thread_count; /* of the pool that updates run on: sizes their scratch; 0: one thread */
    enum ps_projection projection;
    enum ps_basis basis;
    enum ps_moments moments;
    bool refresh_together;  /* all tensors at the same steps, as the official codes */
    double norm_growth_max; /* limiter of fira and apollo; 0: off */
    bool scale_front;       /* apollo: scale before the limiter */
    int32_t history;        /* natural-galore: gradients remembered */
    double damping;         /* natural-galore */
    int32_t ns_steps;       /* muon: Newton-Schulz iterations */
    bool match_rms_adamw;   /* muon: 0.2 sqrt(max(out, in)), not sqrt(max(1, out / in)) */
    double aux_lr_ratio;    /* muon: rate of what AdamW updates, over the rate */
    /* average of the weights beside any method, see optim/weight_average.c */
    double ema_decay;
    const struct ps_optimizer_ops *averaged; /* the method itself */
};

/* What an optimizer is told of a tensor. */
struct ps_opt_tensor {
    const char *name;
    uint32_t id;        /* its number among the trained tensors: a key of random numbers */
    int32_t layer;      /* -1: embedding, head, final norm */
    int32_t rank;       /* 1 or 2 */
    int64_t rows, cols; /* (out, in) as in checkpoints; rank 1: (n, 1) */
    size_t n;
    bool hidden; /* a matrix of attention, MLP or of an adapter; not embedding or head */
    bool adapter;
    enum ps_dtype dtype; /* of the weight */
};

/* One state of a tensor; all begin as zero bytes. */
struct ps_opt_state {
    const char *name; /* as in optimizer.safetensors: "exp_avg"; static storage */
    enum ps_dtype dtype;
    uint32_t per;   /* one entry for so many consecutive elements (1: each element has its own,
                       256: one a block, the last block may be shorter); 0: see count */
    uint64_t count; /* per 0: entries of the whole tensor */
};

struct ps_opt_layout {
    int32_t state_count;
    struct ps_opt_state state[PS_OPTIMIZER_STATE_MAX];
    uint64_t granule; /* a slice begins at a multiple of so many elements, at most 65536, a divisor
                         of 65536; 0: the tensor comes whole (states with per 0 need that) */
    uint64_t workspace_bytes; /* scratch for an update of the tensor, or of any slice of it */
    double flops; /* of the products of an update of the whole tensor, on the average: what it takes
                     beside one pass over the elements; for the planner, at the rate of fp32 */
    bool remainder; /* BF16 weights have a 16-bit remainder; false: stochastic rounding */
};

static inline uint64_t ps_opt_state_bytes(const struct ps_opt_state *s, uint64_t n)
{
    uint64_t entries = s->per > 0 ? (n + s->per - 1) / s->per : s->count;
    return entries * ps_dtype_size(s->dtype);
}

/* The update of one slice. */
struct ps_update {
    const struct ps_compute *cx; /* where to compute, when on_device said yes; NULL: the host */
    struct ps_pool *pool;
    enum ps_isa isa;
    const struct ps_optimizer_hyper *hyper;
    const struct ps_opt_tensor *tensor;
    const struct ps_opt_layout *layout;
    size_t begin, n; /* the slice, in elements of the tensor; all pointers are to its beginning */
    void *weight;    /* layout of tensor->dtype */
    uint16_t *remainder;      /* BF16 with layout->remainder: exact fp32 master; else NULL */
    const void *grad;         /* before clipping */
    enum ps_dtype grad_dtype; /* F32, or BF16 (rounded before the norm) */
    void *state[PS_OPTIMIZER_STATE_MAX];
    void *workspace; /* 64-byte aligned; NULL when workspace_bytes is 0 */
    uint64_t t;      /* 1-based update count of this tensor */
    uint64_t step;   /* completed updates of the run before this one */
    double lr;
    bool decay;       /* weight decay applies to this tensor */
    float grad_scale; /* clip coefficient */
};

/* A flag that a method reads (besides learning-rate and weight-decay, which all do), and its value
 * when the user gives none: {"beta2", 0.99}. Booleans are 0 or 1. The session knows which field of
 * struct ps_optimizer_hyper it is, and refuses the flag for methods that do not list it. */
struct ps_optimizer_option {
    const char *flag;
    double fallback;
};

struct ps_optimizer_ops {
    const char *name;
    const struct ps_optimizer_option *options; /* a NULL flag ends them */
    const char *states; /* of --optim-state, "fp32|bf16" (the first is the default); NULL: the
                           method has one form, the flag is refused */
    /* What the method keeps of a tensor. PS_EUSAGE names option and remedy (rank above the matrix,
     * state_dtype that it does not have, ...). */
    int (*layout)(const struct ps_optimizer_hyper *hyper, const struct ps_opt_tensor *tensor,
                  struct ps_opt_layout *out, struct ps_error *err);
    /* Update in place. Negative: see err (a decomposition that failed). */
    int (*update)(const struct ps_update *u, struct ps_error *err);
    /* Zeroth-order methods: make the slice's weights (the plane that the model computes with) those of
     * the masters plus scale times a step along the direction of u->step; `from` are the unperturbed
     * weights, in the layout of u->weight. Such a method has no gradients: update gets grad NULL, and
     * half the difference of the losses at scale 1 and -1 over that step's size as grad_scale. NULL: a
     * method with gradients. */
    void (*perturb)(const struct ps_update *u, const void *from, double scale);
    /* Both at once, scale 1 into `up` and -1 into `down` (the layout of u->weight), with the bits of two
     * calls of perturb; all methods that have one have both. */
    void (*perturb_pair)(const struct ps_update *u, const void *from, void *up, void *down);
    /* Can this device update a tensor of this layout by itself? NULL: only the host can. */
    bool (*on_device)(const struct ps_compute *cx, const struct ps_opt_layout *layout);
    /* Is a tensor updated at this step (completed updates of the run)? NULL: always. A pure
     * function: tensors of one unit (layer, or embedding, or head with final norm) agree. */
    bool (*active)(const struct ps_optimizer_hyper *hyper, const struct ps_opt_tensor *tensor,
                   uint64_t step);
};

#ifdef __cplusplus
}
#endif
#endif
