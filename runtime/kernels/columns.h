/* Scaled columns and products summed over rows or columns: what adapters with vectors need (DoRA,
 * VeRA, (IA)^3). fp32 arithmetic, one rounding at the end, sums in a fixed order. */
#ifndef PS_KERNELS_COLUMNS_H
#define PS_KERNELS_COLUMNS_H

#include <stddef.h>

#include "runtime/base/dtype.h"
#include "runtime/base/thread_pool.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y[t,j] = scale[j] * x[t,j] + bias[j] + residual[t,j]; x, y, residual dense (n_tok, n) of dtype
 * (F32 or BF16), y may be either of the others; scale fp32; bias (n,) or NULL, residual may be
 * NULL. */
struct ps_scale_columns_args {
    size_t n_tok, n;
    enum ps_dtype dtype;
    void *y;
    const void *x;
    const float *scale;
    const void *bias;
    enum ps_dtype bias_dtype;
    const void *residual;
};
void ps_scale_columns(struct ps_pool *pool, const struct ps_scale_columns_args *a);

/* out[j] (+)= (sum over t ascending of a[t,j] b[t,j]) / divisor[j]; a, b dense (n_tok, n) of dtype;
 * divisor NULL: 1. fp64 sums. */
void ps_column_dot(struct ps_pool *pool, float *out, const void *a, const void *b,
                   enum ps_dtype dtype, const float *divisor, size_t n_tok, size_t n,
                   int accumulate);

/* y[i,k] = row[i] * x[i,k] * col[k]; fp32, dense (rows, cols). */
void ps_scale_matrix(struct ps_pool *pool, float *y, const float *x, const float *row,
                     const float *col, size_t rows, size_t cols);

/* Of fp32 matrices g, b (rows, cols): row_out[i] (+)= sum over k of g[i,k] b[i,k] col[k] and
 * col_out[k] (+)= sum over i of row[i] g[i,k] b[i,k]. fp64 sums. */
struct ps_matrix_dots_args {
    size_t rows, cols;
    const float *g, *b, *row, *col;
    float *row_out, *col_out;
    int accumulate;
};
void ps_matrix_dots(struct ps_pool *pool, const struct ps_matrix_dots_args *a);

/* Row norms of W + s B A without forming it: n[i]^2 = sum_j W[i,j]^2 + s * sum_k B[i,k] (2 Q[i,k] +
 * s (B G)[i,k]) with Q = W A^T, G = A A^T, all (out, r) fp32; c[i] = m[i] / n[i]. n is at least the
 * square root of FLT_MIN. n or c may be NULL. fp64 sums. */
struct ps_row_norms_args {
    size_t out, in, r;
    const void *w;
    enum ps_dtype w_dtype; /* F32, BF16 or F16 */
    const float *b, *q, *bg;
    float s;
    const float *m;
    float *n, *c;
};
void ps_row_norms(struct ps_pool *pool, const struct ps_row_norms_args *a);

#ifdef __cplusplus
}
#endif
#endif
