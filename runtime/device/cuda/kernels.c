/* The table of kernels of the CUDA device: see kernels.h. Calls are queued on cx->stream; the first
 * failure is remembered in *cx->fault, and nothing is queued after it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "runtime/base/status.h"
#include "runtime/device/cuda/cuda_internal.h"

static struct ps__cuda_state *state_of(const struct ps_compute *cx)
{
    return cx->blas;
}

/* Remember a failure in words; the error that is pending, if any, says more. */
static void note(const struct ps_compute *cx, const char *what, int ret)
{
    if (ret == 0 || *cx->fault != 0)
        return;
    *cx->fault = ret;
    cudaError_t e = cudaGetLastError();
    snprintf(state_of(cx)->text, sizeof state_of(cx)->text, "%s: %s%s%s", what, ps_status_text(ret),
             e ? ": " : "", e ? cudaGetErrorString(e) : "");
}

static void note_cuda(const struct ps_compute *cx, const char *what, cudaError_t e)
{
    if (e == cudaSuccess || *cx->fault != 0)
        return;
    *cx->fault = PS_ECUDA;
    PS_IGNORE(cudaGetLastError(), "said here");
    snprintf(state_of(cx)->text, sizeof state_of(cx)->text, "%s: %s (error %d: %s)", what,
             ps_status_text(PS_ECUDA), (int)e, cudaGetErrorString(e));
}

#define RUN(cx, call)                                                                              \
    do {                                                                                           \
        if (*(cx)->fault == 0)                                                                     \
            note((cx), __func__, (call));                                                          \
    } while (0)

static size_t gemm_workspace_bytes(const struct ps_compute *cx, size_t mn_max)
{
    (void)cx;
    return ps_cuda_blas_workspace_bytes(mn_max);
}

/* The library's handle comes with the first product: its workspace is known by then. */
static int open_blas(const struct ps_compute *cx)
{
    struct ps__cuda_state *s = state_of(cx);
    struct ps_error err = {0};
    if (s->blas)
        return 0;
    int ret = ps_cuda_blas_open(&s->blas, cx->gemm_workspace, cx->gemm_workspace_bytes, &err);
    if (ret && *cx->fault == 0) {
        *cx->fault = ret;
        snprintf(s->text, sizeof s->text, "%.255s", err.message);
    }
    return ret;
}

static void gemm(const struct ps_compute *cx, const struct ps_gemm_args *g)
{
    if (*cx->fault != 0 || open_blas(cx))
        return;
    int ret = ps_cuda_gemm(state_of(cx)->blas, cx->stream, g);
    if (ret == 0)
        return;
    char what[128];
    snprintf(what, sizeof what, "product of %zu x %zu x %zu + %zu", g->m, g->n, g->k, g->k2);
    note(cx, what, ret);
}

static void rmsnorm_forward(const struct ps_compute *cx, const struct ps_rmsnorm_args *a)
{
    RUN(cx, ps_rmsnorm_forward_cuda(cx->stream, a));
}

static void rmsnorm_backward(const struct ps_compute *cx, const struct ps_rmsnorm_args *a,
                             void *workspace)
{
    RUN(cx, ps_rmsnorm_backward_cuda(cx->stream, a, workspace));
}

static void rope_apply(const struct ps_compute *cx, void *x, size_t n_tok, size_t n_head,
                       size_t head_dim, const int32_t *position, const float *cos_sin, int inverse)
{
    RUN(cx, ps_rope_apply_cuda(cx->stream, x, n_head * head_dim, cx->dtype, n_tok, n_head, head_dim,
                               position, cos_sin, inverse));
}

static void swiglu_forward(const struct ps_compute *cx, size_t n_tok, size_t n, const void *gate,
                           const void *up, void *y)
{
    RUN(cx, ps_swiglu_forward_cuda(cx->stream, cx->dtype, n_tok, n, gate, n, up, n, y, n));
}

static void swiglu_backward(const struct ps_compute *cx, size_t n_tok, size_t n, const void *gate,
                            const void *up, const void *dy, void *dgate, void *dup)
{
    RUN(cx, ps_swiglu_backward_cuda(cx->stream, cx->dtype, n_tok, n, gate, n, up, n, dy, n, dgate,
                                    n, dup, n));
}

static size_t attention_workspace_bytes(const struct ps_compute *cx, int32_t n_tok_max,
                                        int32_t n_head, int32_t n_kv_head, int32_t head_dim)
{
    (void)cx;
    (void)n_kv_head;
    (void)head_dim;
    return ps_attention_workspace_bytes_cuda(n_tok_max, n_head);
}

static void attention_forward(const struct ps_compute *cx, const struct ps_attention_args *a,
                              const int32_t *doc, void *workspace)
{
    (void)workspace;
    RUN(cx, ps_attention_forward_cuda(cx->stream, a, doc, a->doc_start[a->doc_count]));
}

static void attention_backward(const struct ps_compute *cx, const struct ps_attention_args *a,
                               const int32_t *doc, void *workspace)
{
    RUN(cx, ps_attention_backward_cuda(cx->stream, a, doc, a->doc_start[a->doc_count], workspace));
}

static void attention_decode(const struct ps_compute *cx, const struct ps_attention_args *a,
                             int32_t n_past, void *workspace)
{
    (void)workspace;
    RUN(cx, ps_attention_decode_cuda(cx->stream, a, n_past));
}

static void embedding_forward(const struct ps_compute *cx, const void *table,
                              enum ps_dtype table_dtype, size_t n, int64_t row_begin,
                              int64_t row_end, const int32_t *ids, size_t n_tok, void *y)
{
    RUN(cx, ps_embedding_forward_cuda(cx->stream, table, table_dtype, n, row_begin, row_end, ids,
                                      n_tok, y, cx->dtype));
}

static void embedding_backward(const struct ps_compute *cx, float *dtable, size_t n,
                               const int32_t *ids, size_t n_tok, const void *dy)
{
    RUN(cx, ps_embedding_backward_cuda(cx->stream, dtable, n, ids, n_tok, dy, cx->dtype));
}

static void cross_entropy(const struct ps_compute *cx, float *logits, size_t rows, size_t vocab,
                          const int32_t *target, double *loss, float dscale, int write_grad)
{
    RUN(cx, ps_cross_entropy_cuda(cx->stream, logits, vocab, rows, vocab, target, loss, dscale,
                                  write_grad));
}

static void gather_rows(const struct ps_compute *cx, void *y, const void *x, const int32_t *row,
                        size_t row_count, size_t n)
{
    RUN(cx, ps_gather_rows_cuda(cx->stream, y, x, row, row_count, n, cx->dtype));
}

static void scatter_rows(const struct ps_compute *cx, void *y, const void *x, const int32_t *row,
                         size_t row_count, size_t n)
{
    RUN(cx, ps_scatter_rows_cuda(cx->stream, y, x, row, row_count, n, cx->dtype));
}

static void dropout(const struct ps_compute *cx, void *y, const void *x, size_t n_tok, size_t n,
                    float p, const struct ps_rng_key *key, int how)
{
    RUN(cx, ps_dropout_cuda(cx->stream, y, x, cx->dtype, n_tok, n, p, key, how));
}

static void column_sum(const struct ps_compute *cx, float *out, const void *x, size_t ld,
                       size_t n_tok, size_t n, int accumulate)
{
    RUN(cx, ps_column_sum_cuda(cx->stream, out, x, ld, cx->dtype, n_tok, n, accumulate));
}

static void scale_columns(const struct ps_compute *cx, const struct ps_scale_columns_args *a)
{
    RUN(cx, ps_scale_columns_cuda(cx->stream, a));
}

static void column_dot(const struct ps_compute *cx, float *out, const void *a, const void *b,
                       const float *divisor, size_t n_tok, size_t n, int accumulate)
{
    RUN(cx, ps_column_dot_cuda(cx->stream, out, a, b, cx->dtype, divisor, n_tok, n, accumulate));
}

static void scale_matrix(const struct ps_compute *cx, float *y, const float *x, const float *row,
                         const float *col, size_t rows, size_t cols)
{
    RUN(cx, ps_scale_matrix_cuda(cx->stream, y, x, row, col, rows, cols));
}

static void matrix_dots(const struct ps_compute *cx, const struct ps_matrix_dots_args *a)
{
    RUN(cx, ps_matrix_dots_cuda(cx->stream, a));
}

static void row_norms(const struct ps_compute *cx, const struct ps_row_norms_args *a)
{
    RUN(cx, ps_row_norms_cuda(cx->stream, a));
}

static void square_sum(const struct ps_compute *cx, double *out, const float *x, size_t n)
{
    RUN(cx, ps_square_sum_cuda(cx->stream, out, x, PS_DTYPE_F32, n));
}

static void round_bf16(const struct ps_compute *cx, float *x, size_t n)
{
    RUN(cx, ps_round_bf16_cuda(cx->stream, x, n));
}

static void add_f32(const struct ps_compute *cx, float *y, const float *x, size_t n)
{
    RUN(cx, ps_add_f32_cuda(cx->stream, y, x, n));
}

static void sum_f64(const struct ps_compute *cx, double *out, const double *x, size_t n)
{
    RUN(cx, ps_sum_f64_cuda(cx->stream, out, x, n));
}

static void zero(const struct ps_compute *cx, void *p, size_t bytes)
{
    if (*cx->fault == 0 && bytes > 0)
        note_cuda(cx, "zero", cudaMemsetAsync(p, 0, bytes, cx->stream));
}

static void adamw(const struct ps_compute *cx, const struct ps_adamw_cuda_args *a)
{
    RUN(cx, ps_adamw_update_cuda(cx->stream, a));
}

/* Wait, asleep, until the stream has passed everything queued. */
static cudaError_t wait_stream(const struct ps_compute *cx)
{
    cudaError_t e = cudaEventRecord(state_of(cx)->event, cx->stream);
    return e ? e : cudaEventSynchronize(state_of(cx)->event);
}

static int fetch(const struct ps_compute *cx, void *host, const void *device, size_t bytes)
{
    struct ps__cuda_state *s = state_of(cx);
    for (size_t at = 0; at < bytes && *cx->fault == 0; at += PS__CUDA_STAGING) {
        size_t n = bytes - at < PS__CUDA_STAGING ? bytes - at : PS__CUDA_STAGING;
        cudaError_t e = cudaMemcpyAsync(s->staging, (const unsigned char *)device + at, n,
                                        cudaMemcpyDeviceToHost, cx->stream);
        if (!e)
            e = wait_stream(cx);
        note_cuda(cx, "fetch", e);
        if (!e)
            memcpy((unsigned char *)host + at, s->staging, n);
    }
    return *cx->fault;
}

static int finish(const struct ps_compute *cx)
{
    note_cuda(cx, "finish", wait_stream(cx));
    return *cx->fault;
}

const struct ps_kernels ps__cuda_kernels = {
    .name = "cuda",
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
    .finish = finish,
    .adamw = adamw,
};
