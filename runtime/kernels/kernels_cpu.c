/* The CPU's table of kernels: see kernels.h. */
#include <string.h>

#include "runtime/kernels/cross_entropy.h"
#include "runtime/kernels/elementwise.h"
#include "runtime/kernels/embedding.h"
#include "runtime/kernels/kernels.h"
#include "runtime/kernels/rope.h"
#include "runtime/kernels/swiglu.h"

#define ROUND_BLOCK ((size_t)65536)

static size_t gemm_workspace_bytes(const struct ps_compute *cx, size_t mn_max)
{
    (void)mn_max;
    return ps_gemm_workspace_bytes(ps_pool_thread_count(cx->pool));
}

static void gemm(const struct ps_compute *cx, const struct ps_gemm_args *g)
{
    ps_gemm(cx->pool, cx->isa, g, cx->gemm_workspace);
}

static void rmsnorm_forward(const struct ps_compute *cx, const struct ps_rmsnorm_args *a)
{
    ps_rmsnorm_forward(cx->pool, cx->isa, a);
}

static void rmsnorm_backward(const struct ps_compute *cx, const struct ps_rmsnorm_args *a,
                             void *workspace)
{
    ps_rmsnorm_backward(cx->pool, cx->isa, a, workspace);
}

static void rope_apply(const struct ps_compute *cx, void *x, size_t n_tok, size_t n_head,
                       size_t head_dim, const int32_t *position, const float *cos_sin, int inverse)
{
    ps_rope_apply(cx->pool, cx->isa, x, n_head * head_dim, cx->dtype, n_tok, n_head, head_dim,
                  position, cos_sin, inverse);
}

static void swiglu_forward(const struct ps_compute *cx, size_t n_tok, size_t n, const void *gate,
                           const void *up, void *y)
{
    ps_swiglu_forward(cx->pool, cx->isa, cx->dtype, n_tok, n, gate, n, up, n, y, n);
}

static void swiglu_backward(const struct ps_compute *cx, size_t n_tok, size_t n, const void *gate,
                            const void *up, const void *dy, void *dgate, void *dup)
{
    ps_swiglu_backward(cx->pool, cx->isa, cx->dtype, n_tok, n, gate, n, up, n, dy, n, dgate, n, dup,
                       n);
}

static size_t attention_workspace_bytes(const struct ps_compute *cx, int32_t n_tok_max,
                                        int32_t n_head, int32_t n_kv_head, int32_t head_dim)
{
    return ps_attention_workspace_bytes(n_tok_max, n_head, n_kv_head, head_dim,
                                        ps_pool_thread_count(cx->pool));
}

static void attention_forward(const struct ps_compute *cx, const struct ps_attention_args *a,
                              const int32_t *doc, void *workspace)
{
    (void)doc;
    ps_attention_forward(cx->pool, cx->isa, a, workspace);
}

static void attention_backward(const struct ps_compute *cx, const struct ps_attention_args *a,
                               const int32_t *doc, void *workspace)
{
    (void)doc;
    ps_attention_backward(cx->pool, cx->isa, a, workspace);
}

static void attention_decode(const struct ps_compute *cx, const struct ps_attention_args *a,
                             int32_t n_past, void *workspace)
{
    ps_attention_decode(cx->pool, cx->isa, a, n_past, workspace);
}

static void embedding_forward(const struct ps_compute *cx, const void *table,
                              enum ps_dtype table_dtype, size_t n, int64_t row_begin,
                              int64_t row_end, const int32_t *ids, size_t n_tok, void *y)
{
    ps_embedding_forward(cx->pool, cx->isa, table, table_dtype, n, row_begin, row_end, ids, n_tok,
                         y, cx->dtype);
}

static void embedding_backward(const struct ps_compute *cx, float *dtable, size_t n,
                               const int32_t *ids, size_t n_tok, const void *dy)
{
    ps_embedding_backward(cx->pool, cx->isa, dtable, n, ids, n_tok, dy, cx->dtype);
}

static void cross_entropy(const struct ps_compute *cx, float *logits, size_t rows, size_t vocab,
                          const int32_t *target, double *loss, float dscale, int write_grad)
{
    ps_cross_entropy(cx->pool, cx->isa, logits, vocab, rows, vocab, target, loss, dscale,
                     write_grad);
}

static void gather_rows(const struct ps_compute *cx, void *y, const void *x, const int32_t *row,
                        size_t row_count, size_t n)
{
    ps_gather_rows(cx->pool, y, x, row, row_count, n, cx->dtype);
}

static void scatter_rows(const struct ps_compute *cx, void *y, const void *x, const int32_t *row,
                         size_t row_count, size_t n)
{
    ps_scatter_rows(cx->pool, y, x, row, row_count, n, cx->dtype);
}

static void dropout(const struct ps_compute *cx, void *y, const void *x, size_t n_tok, size_t n,
                    float p, const struct ps_rng_key *key, int how)
{
    ps_dropout(cx->pool, cx->isa, y, x, cx->dtype, n_tok, n, p, key, how);
}

static void column_sum(const struct ps_compute *cx, float *out, const void *x, size_t ld,
                       size_t n_tok, size_t n, int accumulate)
{
    ps_column_sum(cx->pool, cx->isa, out, x, ld, cx->dtype, n_tok, n, accumulate);
}

static void scale_columns(const struct ps_compute *cx, const struct ps_scale_columns_args *a)
{
    ps_scale_columns(cx->pool, a);
}

static void column_dot(const struct ps_compute *cx, float *out, const void *a, const void *b,
                       const float *divisor, size_t n_tok, size_t n, int accumulate)
{
    ps_column_dot(cx->pool, out, a, b, cx->dtype, divisor, n_tok, n, accumulate);
}

static void scale_matrix(const struct ps_compute *cx, float *y, const float *x, const float *row,
                         const float *col, size_t rows, size_t cols)
{
    ps_scale_matrix(cx->pool, y, x, row, col, rows, cols);
}

static void matrix_dots(const struct ps_compute *cx, const struct ps_matrix_dots_args *a)
{
    ps_matrix_dots(cx->pool, a);
}

static void row_norms(const struct ps_compute *cx, const struct ps_row_norms_args *a)
{
    ps_row_norms(cx->pool, a);
}

static void square_sum(const struct ps_compute *cx, double *out, const float *x, size_t n)
{
    ps_square_sum(cx->pool, cx->isa, out, x, PS_DTYPE_F32, n);
}

struct round_job {
    float *x;
    size_t n;
};

static void round_block(void *arg, size_t block, int thread_idx)
{
    struct round_job *job = arg;
    (void)thread_idx;
    size_t begin = block * ROUND_BLOCK;
    size_t end = begin + ROUND_BLOCK < job->n ? begin + ROUND_BLOCK : job->n;
    for (size_t i = begin; i < end; i++)
        job->x[i] = ps_bf16_to_f32(ps_f32_to_bf16(job->x[i]));
}

static void round_bf16(const struct ps_compute *cx, float *x, size_t n)
{
    struct round_job job = {.x = x, .n = n};
    ps_pool_run(cx->pool, round_block, &job, (n + ROUND_BLOCK - 1) / ROUND_BLOCK);
}

struct add_job {
    float *y;
    const float *x;
    size_t n;
};

static void add_block(void *arg, size_t block, int thread_idx)
{
    const struct add_job *job = arg;
    (void)thread_idx;
    size_t end = (block + 1) * ROUND_BLOCK < job->n ? (block + 1) * ROUND_BLOCK : job->n;
    for (size_t i = block * ROUND_BLOCK; i < end; i++)
        job->y[i] += job->x[i];
}

static void add_f32(const struct ps_compute *cx, float *y, const float *x, size_t n)
{
    struct add_job job = {.y = y, .x = x, .n = n};
    ps_pool_run(cx->pool, add_block, &job, (n + ROUND_BLOCK - 1) / ROUND_BLOCK);
}

static void sum_f64(const struct ps_compute *cx, double *out, const double *x, size_t n)
{
    (void)cx;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    *out = sum;
}

static void zero(const struct ps_compute *cx, void *p, size_t bytes)
{
    (void)cx;
    memset(p, 0, bytes);
}

static int fetch(const struct ps_compute *cx, void *host, const void *device, size_t bytes)
{
    (void)cx;
    memcpy(host, device, bytes);
    return 0;
}

const struct ps_kernels ps_kernels_cpu = {
    .name = "cpu",
    .gemm_workspace_bytes = gemm_workspace_bytes,
    .gemm = gemm,
    .rmsnorm_forward = rmsnorm_forward,
    .rmsnorm_backward = rmsnorm_backward,
    .rope_apply = rope_apply,
    .swiglu_forward = swiglu_forward,
    .swiglu_backward = swiglu_backward,
    .attention_workspace_bytes = attention_workspace_bytes,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .attention_decode = attention_decode,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .cross_entropy = cross_entropy,
    .gather_rows = gather_rows,
    .scatter_rows = scatter_rows,
    .dropout = dropout,
    .column_sum = column_sum,
    .scale_columns = scale_columns,
    .column_dot = column_dot,
    .scale_matrix = scale_matrix,
    .matrix_dots = matrix_dots,
    .row_norms = row_norms,
    .square_sum = square_sum,
    .round_bf16 = round_bf16,
    .add_f32 = add_f32,
    .sum_f64 = sum_f64,
    .zero = zero,
    .fetch = fetch,
};
