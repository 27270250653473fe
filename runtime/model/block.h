/* One decoder block (Llama family), forward and backward on preallocated buffers.
 *
 *   n1 = norm(x0);  q, k, v = n1 Wq, n1 Wk, n1 Wv;  [q, k = norm per head];  q, k = rope(q),
 * rope(k) o = attention(q, k, v);  x1 = x0 + o Wo;  n2 = norm(x1);  g, u = n2 Wg, n2 Wu m = silu(g)
 * * u;  x2 = x1 + m Wd
 *
 * All tensors are dense, tokens first: (n_tok, width) of the compute dtype. Backward needs the
 * minimal saved set (x0, 1/rms, q, k, v, o, lse, x1, g, u and what adapters keep); n1, n2, m are
 * recomputed. How much of the set waits and how much is computed again is its level (recompute.h).
 */
#ifndef PS_MODEL_BLOCK_H
#define PS_MODEL_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/model/config.h"
#include "runtime/model/linear.h"
#include "runtime/model/params.h"
#include "runtime/model/recompute.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One layer: its weights, where their gradients go (NULL: frozen), its adapters. */
struct ps_block {
    const struct ps_model_config *cfg;
    int32_t layer;
    struct ps_weight weight[PS_ROLE_LAYER_COUNT];
    float *grad[PS_ROLE_LAYER_COUNT];
    const struct ps_adapter_site *site[PS_LINEAR_COUNT];
    bool trains; /* some gradient or adapter here is wanted */
};

/* The saved set of one layer, carved out of two pieces of memory: what is kept at its level, and
 * the rest, which is computed again and may be shared by all layers. At R0 the rest is empty, at R4
 * what is kept. */
struct ps_block_saved {
    enum ps_recompute level;
    float *rstd1, *rstd2;   /* (n_tok,) */
    float *rstd_q, *rstd_k; /* (n_tok * heads,), only with norms per head */
    float *lse;             /* (n_tok, n_head) */
    void *q_pre, *k_pre;    /* before the norm per head, only with it */
    void *q, *k, *v, *o;    /* after RoPE; (n_tok, heads * head_dim) */
    void *x1;               /* (n_tok, hidden) */
    void *gate, *up;        /* (n_tok, intermediate); backward overwrites them */
    void *adapter[PS_LINEAR_COUNT];
};

/* Where the two pieces are, at which level; NULL: nowhere. */
struct ps_block_saved_place {
    enum ps_recompute level;
    void *kept, *rest;
};
struct ps_block_saved_bytes {
    size_t kept, rest;
};

/* Carve `out` for n_tok tokens; returns the bytes used. Pieces that are NULL are only measured. The
 * adapters of `block` count. */
struct ps_block_saved_bytes ps_block_saved_carve(struct ps_block_saved *out,
                                                 const struct ps_block_saved_place *at,
                                                 const struct ps_block *block, enum ps_dtype dtype,
                                                 size_t n_tok);

/* Buffers that all layers share. */
struct ps_block_scratch {
    void *norm;      /* (n_tok, hidden) */
    void *act;       /* (n_tok, intermediate): m */
    void *attention; /* ps_attention_workspace_bytes */
    void *adapter;   /* largest scratch of any adapter */
    /* backward only */
    void *dact;  /* (n_tok, intermediate) */
    void *dnorm; /* (n_tok, hidden) */
    void *dout;  /* (n_tok, n_head * head_dim) */
    void *dq, *dk, *dv;
    void *rmsnorm; /* ps_rmsnorm_workspace_bytes of the largest norm */
};

/* Carve as above. `backward` false leaves the backward buffers out. adapter_bytes: largest scratch.
 */
size_t ps_block_scratch_carve(struct ps_block_scratch *out, void *base,
                              const struct ps_model_config *cfg, const struct ps_compute *cx,
                              size_t n_tok, size_t adapter_bytes, bool backward);

/* Largest adapter scratch of a block for n_tok tokens. */
size_t ps_block_adapter_scratch(const struct ps_block *block, enum ps_dtype dtype, size_t n_tok);

/* The tokens that pass, and how. */
struct ps_block_run {
    const struct ps_compute *cx;
    size_t n_tok;
    const int32_t *doc_start;
    int32_t doc_count;
    const int32_t *position;
    const int32_t *doc;    /* (n_tok, 2), for devices that read it: see kernels.h; else NULL */
    const float *cos_sin;  /* ps_rope_table */
    bool training;         /* dropout is active */
    struct ps_rng_key key; /* seed, step, micro-batch */
    bool accumulate;       /* gradients += */
    const struct ps_block_scratch *scratch;
    /* generation: keys and values go to rows [n_past, n_past + n_tok) of a cache (rows, n_kv_head *
     * head_dim); NULL otherwise. With n_past > 0, n_tok is 1. */
    void *k_cache, *v_cache;
    int32_t n_past;
};

/* x2 may be x0. x2 NULL: compute the rest of the saved set again from x0 and what was kept at its
 * level; the last GEMM is left out. */
void ps_block_forward(const struct ps_block *b, const struct ps_block_run *run, const void *x0,
                      void *x2, struct ps_block_saved *saved);

/* dx: gradient of x2 on entry, of x0 on return (undefined on return when need_dx is false: nothing
 * below this layer trains). */
void ps_block_backward(const struct ps_block *b, const struct ps_block_run *run, const void *x0,
                       struct ps_block_saved *saved, void *dx, bool need_dx);

/* FLOPs of the linears of one layer for one token, forward: 2 * sum of out * in. */
double ps_block_linear_flops(const struct ps_model_config *cfg);
/* The same of what is computed again at a level (R4: attention comes on top). */
double ps_block_recompute_flops(const struct ps_model_config *cfg, enum ps_recompute level);

#ifdef __cplusplus
}
#endif
#endif
