/* The table of kernels that one kind of device computes with: what block, linear, head, adapters and
 * the trainer call. `cpu` and `emu` share the CPU's (kernels_cpu.c); a CUDA device brings its own.
 *
 * Addresses are those of the device's threads. On the CPU a call has been done when it returns; a CUDA
 * table queues it on cx->stream and remembers the first failure in *cx->fault. Semantics are those of
 * the operations' own headers. All activations are dense and of cx->dtype. */
#ifndef PS_KERNELS_KERNELS_H
#define PS_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/rng.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/attention.h"
#include "runtime/kernels/columns.h"
#include "runtime/kernels/gemm.h"
#include "runtime/kernels/kernels_cuda.h"
#include "runtime/kernels/rmsnorm.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_kernels;

/* Where and how to compute: shared by every operation of a run, constant after set-up. */
struct ps_compute {
    const struct ps_kernels *k;
    struct ps_pool *pool;
    enum ps_isa isa;
    enum ps_dtype dtype;    /* of activations: F32 or BF16 */
    enum ps_gemm_math math; /* F32 or BF16, goes with dtype */
    void *gemm_workspace;   /* k->gemm_workspace_bytes, of gemm_workspace_bytes */
    size_t gemm_workspace_bytes;
    void *stream;           /* CUDA: the compute stream; NULL on the CPU */
    void *blas;             /* CUDA: the plug-in's own */
    int *fault;             /* CUDA: first failure of a launch; NULL on the CPU */
};

struct ps_kernels {
    const char *name;
    /* For products of at most mn_max elements (m * n). */
    size_t (*gemm_workspace_bytes)(const struct ps_compute *cx, size_t mn_max);
    void (*gemm)(const struct ps_compute *cx, const struct ps_gemm_args *g);
    void (*rmsnorm_forward)(const struct ps_compute *cx, const struct ps_rmsnorm_args *a);
    void (*rmsnorm_backward)(const struct ps_compute *cx, const struct ps_rmsnorm_args *a,
                             void *workspace);
    void (*rope_apply)(const struct ps_compute *cx, void *x, size_t n_tok, size_t n_head,
                       size_t head_dim, const int32_t *position, const float *cos_sin, int inverse);
    void (*swiglu_forward)(const struct ps_compute *cx, size_t n_tok, size_t n, const void *gate,
                           const void *up, void *y);
    /* dgate may be gate, dup may be up */
    void (*swiglu_backward)(const struct ps_compute *cx, size_t n_tok, size_t n, const void *gate,
                            const void *up, const void *dy, void *dgate, void *dup);
    /* args->doc_start is host memory on a CUDA device, which reads doc instead: (n_tok, 2), the first
     * token of each token's document and one past its last. */
    size_t (*attention_workspace_bytes)(const struct ps_compute *cx, int32_t n_tok_max,
                                        int32_t n_head, int32_t n_kv_head, int32_t head_dim);
    void (*attention_forward)(const struct ps_compute *cx, const struct ps_attention_args *a,
                              const int32_t *doc, void *workspace);
    void (*attention_backward)(const struct ps_compute *cx, const struct ps_attention_args *a,
                               const int32_t *doc, void *workspace);
    void (*attention_decode)(const struct ps_compute *cx, const struct ps_attention_args *a,
                             int32_t n_past, void *workspace);
    /* Rows [row_begin, row_end) of the embedding: tokens with other ids are left alone. */
    void (*embedding_forward)(const struct ps_compute *cx, const void *table,
                              enum ps_dtype table_dtype, size_t n, int64_t row_begin,
                              int64_t row_end, const int32_t *ids, size_t n_tok, void *y);
    void (*embedding_backward)(const struct ps_compute *cx, float *dtable, size_t n,
                               const int32_t *ids, size_t n_tok, const void *dy);
    void (*cross_entropy)(const struct ps_compute *cx, float *logits, size_t rows, size_t vocab,
                          const int32_t *target, double *loss, float dscale, int write_grad);
    void (*gather_rows)(const struct ps_compute *cx, void *y, const void *x, const int32_t *row,
                        size_t row_count, size_t n);
    void (*scatter_rows)(const struct ps_compute *cx, void *y, const void *x, const int32_t *row,
                         size_t row_count, size_t n);
    void (*dropout)(const struct ps_compute *cx, void *y, const void *x, size_t n_tok, size_t n,
                    float p, const struct ps_rng_key *key, int how);
    void (*column_sum)(const struct ps_compute *cx, float *out, const void *x, size_t ld,
                       size_t n_tok, size_t n, int accumulate);
    /* For adapters with vectors; see columns.h. dtype is cx->dtype; NULL on a device that cannot. */
    void (*scale_columns)(const struct ps_compute *cx, const struct ps_scale_columns_args *a);
    void (*column_dot)(const struct ps_compute *cx, float *out, const void *a, const void *b,
                       const float *divisor, size_t n_tok, size_t n, int accumulate);
    void (*scale_matrix)(const struct ps_compute *cx, float *y, const float *x, const float *row,
                         const float *col, size_t rows, size_t cols);
    void (*matrix_dots)(const struct ps_compute *cx, const struct ps_matrix_dots_args *a);
    void (*row_norms)(const struct ps_compute *cx, const struct ps_row_norms_args *a);
    void (*square_sum)(const struct ps_compute *cx, double *out, const float *x, size_t n);
    void (*round_bf16)(const struct ps_compute *cx, float *x, size_t n);
    /* y[i] += x[i] */
    void (*add_f32)(const struct ps_compute *cx, float *y, const float *x, size_t n);
    /* out[0] = sum of x in ascending order */
    void (*sum_f64)(const struct ps_compute *cx, double *out, const double *x, size_t n);
    void (*zero)(const struct ps_compute *cx, void *p, size_t bytes);
    /* Copy to host memory when everything queued before has been done. 0 or PS_ECUDA. */
    int (*fetch)(const struct ps_compute *cx, void *host, const void *device, size_t bytes);
    /* Wait until everything queued has been done, through an event; 0 or the first fault. NULL: calls
     * are done when they return. */
    int (*finish)(const struct ps_compute *cx);
    /* NULL on the CPU, where the optimizers bring their own. */
    void (*adamw)(const struct ps_compute *cx, const struct ps_adamw_cuda_args *a);
};

extern const struct ps_kernels ps_kernels_cpu;

static inline void ps_compute_gemm(const struct ps_compute *cx, const struct ps_gemm_args *g)
{
    cx->k->gemm(cx, g);
}

#ifdef __cplusplus
}
#endif
#endif
