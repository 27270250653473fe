/* One linear layer applied to a stream of tokens, with an optional adapter: forward and backward.
 *
 *   y = x W^T + b [+ adapter(x)] [+ residual]        W (out, in) as in Hugging Face checkpoints
 *   dx = dy W [+ adapter] [+ dx_add];  dW (+)= dy^T x;  db (+)= column sums of dy
 *
 * The adapter is a table of functions that a wing fills (peft/): the ground floor knows only the
 * table. */
#ifndef PS_MODEL_LINEAR_H
#define PS_MODEL_LINEAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/rng.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/kernels.h"
#include "runtime/model/params.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A weight where it lies. */
struct ps_weight {
    void *data; /* NULL: the model has no such parameter */
    enum ps_dtype dtype;
};

struct ps_linear_call;
struct ps_embed_call;

/* Tensors of one adapter site. */
#define PS_ADAPTER_TENSOR_MAX 6
struct ps_adapter_tensor {
    const char *suffix; /* of the PEFT name, e.g. "lora_A.weight"; static storage */
    int32_t rank;
    int64_t shape[2];
    bool decay;         /* weight decay applies */
    int32_t rate_group; /* learning-rate group (LoRA+ separates A and B) */
    bool frozen;        /* no gradient and no state: an initial value that the method keeps */
    bool shared;        /* frozen, one for all sites; `suffix` is its whole name */
    bool transposed;    /* files hold the transpose */
};

/* Biases of the base that are trained beside an adapter. */
enum ps_adapter_bias {
    PS_ADAPTER_BIAS_NONE,
    PS_ADAPTER_BIAS_ALL,     /* of all linears */
    PS_ADAPTER_BIAS_ADAPTED, /* of those that are adapted */
};

struct ps_adapter_config {
    const char *method; /* "lora" */
    int32_t r;
    double alpha;
    double dropout; /* probability, 0 <= p < 1 */
    bool use_rslora;
    uint64_t seed;
    double rate_ratio;  /* learning rate of group 1 over that of group 0 (LoRA+); 0: 1 */
    int32_t iterations; /* of a randomized decomposition at the start; 0: the method's default */
    enum ps_adapter_bias bias;
    bool save_embed, save_head; /* the embedding and the head are trained beside the adapter */
    double embed_rate;          /* likewise of the embedding's tensors; 0: 1 */
    int64_t out_max, in_max;    /* largest linear that is adapted: shapes of shared tensors; the
                                   trainer    sets them */
};

/* The base weight of a site, wherever it lies, while adapters are initialised. */
struct ps_adapter_base {
    /* Rows [row_begin, row_begin + rows) as fp32 (rows, in). */
    int (*read)(void *arg, int64_t row_begin, int64_t rows, float *out, struct ps_error *err);
    void *arg;
    struct ps_pool *pool;
    enum ps_isa isa;
};

/* One adapted linear. `tensor`, `grad`: fp32, in the order of ops->tensors; addresses in the arena;
 * grad NULL: frozen. */
struct ps_adapter_site {
    const struct ps_adapter_ops *ops;
    const struct ps_adapter_config *config;
    int32_t layer;
    enum ps_role role;
    int64_t out, in;
    int32_t tensor_count;
    int32_t entry[PS_ADAPTER_TENSOR_MAX]; /* the trainer's numbers of them */
    float *tensor[PS_ADAPTER_TENSOR_MAX];
    float *grad[PS_ADAPTER_TENSOR_MAX];
    size_t n[PS_ADAPTER_TENSOR_MAX]; /* elements of each */
    uint32_t site_idx;               /* unique, for the random initialisation */
    bool first;                      /* of all sites: init fills the shared tensors too */
};

/* The adapter's entry in its wing's table. */
struct ps_adapter_ops {
    const char *name;
    /* Describe the tensors of a site (its config, role and shape are set); returns their count, or
     * PS_EUSAGE. */
    int (*tensors)(const struct ps_adapter_site *site,
                   struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX], struct ps_error *err);
    /* Initial values (the adapted function equals the base function). `base` only where
     * needs_base. */
    int (*init)(const struct ps_adapter_site *site, const struct ps_adapter_base *base,
                struct ps_error *err);
    bool needs_base;
    /* Bytes kept from forward to backward for n_tok tokens, and bytes of scratch for either pass.
     */
    size_t (*saved_bytes)(const struct ps_adapter_site *site, size_t n_tok, enum ps_dtype dtype);
    size_t (*scratch_bytes)(const struct ps_adapter_site *site, size_t n_tok, enum ps_dtype dtype);
    /* The whole linear with the adapter: fills call->y, keeps what it needs in call->saved. */
    void (*forward)(const struct ps_linear_call *call);
    /* Only what forward keeps in call->saved (recomputation; call->y is not touched). */
    void (*save)(const struct ps_linear_call *call);
    /* dx (when call->dx) and the gradients of the adapter's tensors (=, or += when accumulate). */
    void (*backward)(const struct ps_linear_call *call);
    /* w (rows, in) fp32: rows [row_begin, row_begin + rows) of W become those of the linear that
     * computes the same without an adapter. 0 or -ENOMEM. */
    int (*merge)(const struct ps_adapter_site *site, int64_t row_begin, int64_t rows, float *w);
    /* The same for its bias (out,); NULL: the bias stays. */
    void (*merge_bias)(const struct ps_adapter_site *site, float *bias);
    /* The head may be a site: forward and backward take fp32 logits (call->logits). */
    bool adapts_head;
    /* The embedding may be a site: x (n_tok, hidden) += the adapter's part, in place; and the
     * gradients of its tensors from dx. NULL: it may not. */
    void (*embed_forward)(const struct ps_embed_call *call);
    void (*embed_backward)(const struct ps_embed_call *call);
    /* Methods that train vectors of the base instead of linears: which ones, and the end of their
     * PEFT name in place of "weight" or "bias". All of the above but name is NULL then. */
    bool (*vector)(enum ps_role role);
    const char *vector_suffix;
    const void *own; /* the wing's */
};

/* The adapter of the embedding, applied to tokens. */
struct ps_embed_call {
    const struct ps_compute *cx;
    const struct ps_adapter_site *site;
    size_t n_tok;
    const int32_t *ids; /* (n_tok,) */
    void *scratch;      /* ops->scratch_bytes */
    void *x;            /* forward: (n_tok, hidden) of cx->dtype, read and written */
    const void *dx;     /* backward: its gradient */
    bool accumulate;    /* gradients += instead of = */
};

/* One application. Tensors of activations are dense (n_tok, out or in) of cx->dtype. */
struct ps_linear_call {
    const struct ps_compute *cx;
    size_t n_tok;
    int64_t out, in;
    const struct ps_weight *weight;
    const struct ps_weight *bias;       /* NULL or data NULL: none */
    const struct ps_adapter_site *site; /* NULL: no adapter */
    void *saved;                        /* adapter's saved bytes of this layer and linear */
    void *scratch;                      /* adapter's scratch, shared */
    bool training;                      /* dropout is active */
    bool logits;                        /* the head: y and dy are fp32 */
    struct ps_rng_key key; /* seed, step, micro-batch; layer and site are the adapter's to set; of
                              the head the layer is the number of this call in its pass */
    /* forward */
    const void *x;
    void *y;
    const void *residual; /* or NULL; may be y */
    /* backward: x as in forward when the weights or the adapter need it */
    const void *dy;
    void *dx;           /* NULL: not needed */
    const void *dx_add; /* or NULL; may be dx */
    float *dweight;     /* NULL: frozen */
    float *dbias;
    bool accumulate; /* gradients += instead of = */
};

/* The dtype of y and dy. */
static inline enum ps_dtype ps_linear_out_dtype(const struct ps_linear_call *call)
{
    return call->logits ? PS_DTYPE_F32 : call->cx->dtype;
}

void ps_linear_forward(const struct ps_linear_call *call);
void ps_linear_backward(const struct ps_linear_call *call);

/* The GEMMs of the base weight, for adapters to extend with a second operand pair: fills every
 * field of *g but a2, b2, k2. */
void ps_linear_gemm_forward(const struct ps_linear_call *call, struct ps_gemm_args *g);
void ps_linear_gemm_backward(const struct ps_linear_call *call, struct ps_gemm_args *g);

#ifdef __cplusplus
}
#endif
#endif
