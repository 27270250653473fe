/* The launchers of the CUDA kernels: what runtime/kernels/x.h computes, on device pointers, queued on a
 * stream. Seen from C; no CUDA header is needed.
 *
 * Rules for all: `stream` is a cudaStream_t, never the default stream. A launcher checks its arguments,
 * launches, checks the launch, and returns without waiting: 0, -EINVAL for a shape that it does not
 * take, or PS_ECUDA. It allocates nothing and synchronises nothing. Struct arguments are read before it
 * returns; the memory that they point to is device memory and must live until the stream has passed.
 * Semantics, dtypes, rounding points and overlap rules are those of the CPU header of the same name;
 * results agree with the CPU's within tolerance and are the same from run to run, whatever the grid, the
 * other rows and the device. bf16 and fp32 where the CPU header has F32 and BF16.
 *
 * Each launcher lives in runtime/kernels/<stem>.cu, beside the CPU reference. */
#ifndef PS_KERNELS_KERNELS_CUDA_H
#define PS_KERNELS_KERNELS_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/rng.h"
#include "runtime/kernels/attention.h"
#include "runtime/kernels/columns.h"
#include "runtime/kernels/gemm.h"
#include "runtime/kernels/rmsnorm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* rmsnorm.cu. workspace as ps_rmsnorm_workspace_bytes (backward with dweight). */
int ps_rmsnorm_forward_cuda(void *stream, const struct ps_rmsnorm_args *args);
int ps_rmsnorm_backward_cuda(void *stream, const struct ps_rmsnorm_args *args, void *workspace);

/* rope.cu */
int ps_rope_apply_cuda(void *stream, void *x, size_t ld, enum ps_dtype dtype, size_t n_tok,
                       size_t n_head, size_t head_dim, const int32_t *position,
                       const float *cos_sin, int inverse);

/* swiglu.cu */
int ps_swiglu_forward_cuda(void *stream, enum ps_dtype dtype, size_t n_tok, size_t n,
                           const void *gate, size_t gate_ld, const void *up, size_t up_ld, void *y,
                           size_t y_ld);
int ps_swiglu_backward_cuda(void *stream, enum ps_dtype dtype, size_t n_tok, size_t n,
                            const void *gate, size_t gate_ld, const void *up, size_t up_ld,
                            const void *dy, size_t dy_ld, void *dgate, size_t dgate_ld, void *dup,
                            size_t dup_ld);

/* embedding.cu. rows: tokens whose id lies in [row_begin, row_end) alone are written, table is the
 * address of row row_begin (a streamed block); the whole table: 0 and vocab. backward as in the CPU
 * header: ascending order of tokens, one thread a column. */
int ps_embedding_forward_cuda(void *stream, const void *table, enum ps_dtype table_dtype, size_t n,
                              int64_t row_begin, int64_t row_end, const int32_t *ids, size_t n_tok,
                              void *y, enum ps_dtype dtype);
int ps_embedding_backward_cuda(void *stream, float *dtable, size_t n, const int32_t *ids,
                               size_t n_tok, const void *dy, enum ps_dtype dtype);

/* cross_entropy.cu. rows with target < 0 give loss 0 and, with write_grad, zeros. */
int ps_cross_entropy_cuda(void *stream, float *logits, size_t ld, size_t rows, size_t vocab,
                          const int32_t *target, double *loss, float dscale, int write_grad);

/* elementwise.cu */
int ps_convert_cuda(void *stream, void *dst, enum ps_dtype dst_dtype, const void *src,
                    enum ps_dtype src_dtype, size_t n);
int ps_gather_rows_cuda(void *stream, void *y, const void *x, const int32_t *row, size_t row_count,
                        size_t n, enum ps_dtype dtype);
int ps_scatter_rows_cuda(void *stream, void *y, const void *x, const int32_t *row,
                         size_t row_count, size_t n, enum ps_dtype dtype);
int ps_dropout_cuda(void *stream, void *y, const void *x, enum ps_dtype dtype, size_t n_tok,
                    size_t n, float p, const struct ps_rng_key *key, int how);
int ps_column_sum_cuda(void *stream, float *out, const void *x, size_t ld, enum ps_dtype dtype,
                       size_t n_tok, size_t n, int accumulate);
int ps_scale_columns_cuda(void *stream, const struct ps_scale_columns_args *a);
int ps_column_dot_cuda(void *stream, float *out, const void *a, const void *b, enum ps_dtype dtype,
                       const float *divisor, size_t n_tok, size_t n, int accumulate);
int ps_scale_matrix_cuda(void *stream, float *y, const float *x, const float *row, const float *col,
                         size_t rows, size_t cols);
int ps_matrix_dots_cuda(void *stream, const struct ps_matrix_dots_args *a);
int ps_row_norms_cuda(void *stream, const struct ps_row_norms_args *a);
int ps_square_sum_cuda(void *stream, double *out, const void *x, enum ps_dtype dtype, size_t n);
/* x[i] = fp32(bf16(x[i])), nearest even. */
int ps_round_bf16_cuda(void *stream, float *x, size_t n);
/* y[i] += x[i], fp32, device, element alignment. */
int ps_add_f32_cuda(void *stream, float *y, const float *x, size_t n);
/* out[0] = sum of x in ascending order, fp64 (n small: partial sums, losses). */
int ps_sum_f64_cuda(void *stream, double *out, const double *x, size_t n);
/* The end of a GEMM whose accumulator was written as fp32 (m, n) dense: v = acc; v += bias; v +=
 * residual; if accumulate v += C; C = v, one rounding. args as in gemm.h (a, b are not looked at). */
int ps_gemm_epilogue_cuda(void *stream, const struct ps_gemm_args *args, const float *acc);

/* attention_forward.cu, attention_backward.cu, attention_decode.cu. doc_start in device memory as well
 * as on the host: `doc` has for each token the first token of its document and one past its last,
 * (n_tok, 2) int32, device memory. dtype BF16: tensor cores for head_dim 64, 80, 96, 128, 256; any
 * other head_dim up to 512 and dtype F32 by a plain kernel. lse is (n_tok, n_head) as on the CPU.
 * backward's workspace: ps_attention_workspace_bytes_cuda. */
int ps_attention_forward_cuda(void *stream, const struct ps_attention_args *args, const int32_t *doc,
                              int32_t n_tok);
size_t ps_attention_workspace_bytes_cuda(int32_t n_tok_max, int32_t n_head);
int ps_attention_backward_cuda(void *stream, const struct ps_attention_args *args,
                               const int32_t *doc, int32_t n_tok, void *workspace);
int ps_attention_decode_cuda(void *stream, const struct ps_attention_args *args, int32_t n_past);

/* optim/adamw.cu: the update of optim/adamw.h, the same IEEE operations in the same order as the CPU
 * (bits equal). The scalars are those of struct ps_adamw_scalars, copied field by field: the host
 * computes them in double (ps_adamw_prepare). */
struct ps_adamw_cuda_args {
    void *weight;        /* F32, or BF16 with remainder */
    enum ps_dtype weight_dtype;
    uint16_t *remainder; /* NULL for F32 */
    const float *grad;
    float *exp_avg, *exp_avg_sq;
    size_t n;
    float beta1, beta2, one_minus_beta1, one_minus_beta2;
    float step_size;  /* lr / c1 */
    float rsqrt_c2;   /* 1 / sqrt(c2) */
    float eps;
    float decay;      /* lr * weight_decay, 0 when it does not apply */
    float grad_scale;
};
int ps_adamw_update_cuda(void *stream, const struct ps_adamw_cuda_args *args);

#ifdef __cplusplus
}
#endif
#endif
