/* Causal grouped-query attention over packed documents, in tiles: memory linear in the number of
 * tokens, forward and backward.
 *
 * Tokens of one micro-batch form one stream of n_tok tokens cut into documents [doc_start[d],
 * doc_start[d+1]). Token i attends to the tokens j of its own document with j <= i and, with a
 * sliding window W > 0, i - j < W. Head h uses key-value head h / (n_head / n_kv_head).
 *
 *   S = scale * Q K^T, P = softmax(S), O = P V, lse = log sum exp(S)
 *
 * dtype F32: all fp32. dtype BF16: Q, K, V, O, dO, dQ, dK, dV are bf16; S, softmax and lse fp32; P and
 * dS are rounded to bf16 as GEMM operands; accumulation fp32; one rounding of each output.
 * Results do not depend on the thread count, and a document's results do not depend on what else is
 * in the stream, nor on its position in it. Deterministic, no atomics. Tile sizes depend on head_dim only.
 * Source: Dao et al., FlashAttention (2205.14135), FlashAttention-2 (2307.08691). */
#ifndef PS_KERNELS_ATTENTION_H
#define PS_KERNELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_attention_args {
    const int32_t *doc_start; /* (doc_count + 1,), ascending, doc_start[0] == 0 */
    int32_t doc_count;
    int32_t n_head, n_kv_head, head_dim; /* n_head % n_kv_head == 0; head_dim 1..512, any parity */
    int32_t sliding_window;              /* 0: none */
    float scale;
    enum ps_dtype dtype; /* F32 or BF16, of every tensor below but lse and delta */
    /* (n_tok, heads * head_dim) with leading dimension *_ld in elements */
    const void *q, *k, *v;
    size_t q_ld, k_ld, v_ld;
    void *out;
    size_t out_ld;
    float *lse; /* (n_tok, n_head) */
    /* backward only; dq, dk, dv are overwritten (=) */
    const void *dout;
    size_t dout_ld;
    void *dq, *dk, *dv;
    size_t dq_ld, dk_ld, dv_ld;
};

/* Bytes of scratch for streams of at most n_tok_max tokens (linear in n_tok_max), forward and
 * backward alike. */
size_t ps_attention_workspace_bytes(int32_t n_tok_max, int32_t n_head, int32_t n_kv_head,
                                    int32_t head_dim, int thread_count);

/* workspace: 64-byte aligned. out may not overlap q, k, v. */
void ps_attention_forward(struct ps_pool *pool, enum ps_isa isa,
                          const struct ps_attention_args *args, void *workspace);

/* Needs q, k, v, out, lse of the forward pass. dq, dk, dv overlap nothing else. */
void ps_attention_backward(struct ps_pool *pool, enum ps_isa isa,
                           const struct ps_attention_args *args, void *workspace);

/* One new token per sequence against a cache, for generation: q (n_head*head_dim), k_cache and
 * v_cache (n_past + 1, n_kv_head*head_dim) with leading dimensions; out (n_head*head_dim).
 * The window counts as above. Same dtype rules. */
void ps_attention_decode(struct ps_pool *pool, enum ps_isa isa,
                         const struct ps_attention_args *args, int32_t n_past, void *workspace);

/* Readable references in double for tests: forward fills out and lse; backward fills dq, dk, dv. They
 * may allocate. */
void ps_attention_forward_reference(const struct ps_attention_args *args);
void ps_attention_backward_reference(const struct ps_attention_args *args);

#ifdef __cplusplus
}
#endif
#endif
