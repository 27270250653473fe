/* Small element-wise and reduction operations: fp32 arithmetic, one rounding, fixed order. */
#ifndef PS_KERNELS_ELEMENTWISE_H
#define PS_KERNELS_ELEMENTWISE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/rng.h"
#include "runtime/base/thread_pool.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Convert n elements between F32, BF16 and F16 (nearest even), split over the pool. */
void ps_convert(struct ps_pool *pool, enum ps_isa isa, void *dst, enum ps_dtype dst_dtype,
                const void *src, enum ps_dtype src_dtype, size_t n);

/* y = a + b, n elements of dtype F32 or BF16; y may be a or b. */
void ps_add(struct ps_pool *pool, enum ps_isa isa, void *y, const void *a, const void *b,
            enum ps_dtype dtype, size_t n);

/* Gather rows: y[i,:] = x[row[i],:], dtype kept. Scatter: y[row[i],:] = x[i,:]; rows distinct. */
void ps_gather_rows(struct ps_pool *pool, void *y, const void *x, const int32_t *row,
                    size_t row_count, size_t n, enum ps_dtype dtype);
void ps_scatter_rows(struct ps_pool *pool, void *y, const void *x, const int32_t *row,
                     size_t row_count, size_t n, enum ps_dtype dtype);

/* Inverted dropout: y[t,j] = keep(t,j) ? x[t,j] / (1-p) : 0 with keep(t,j) = uniform(key, index) >= p,
 * index = (uint64)t * n + j. x, y (n_tok, n) dense, dtype F32 or BF16; y may be x. With
 * PS_DROPOUT_REST it is what dropout takes away, x[t,j] minus that value; with PS_DROPOUT_ADD y[t,j] += it
 * (each in fp32, one rounding at the end). */
enum { PS_DROPOUT_ADD = 1, PS_DROPOUT_REST = 2 };
void ps_dropout(struct ps_pool *pool, enum ps_isa isa, void *y, const void *x, enum ps_dtype dtype,
                size_t n_tok, size_t n, float p, const struct ps_rng_key *key, int how);

/* Column sums, for bias gradients: out[j] (+)= sum over t ascending of x[t,j]; x (n_tok, n) with
 * leading dimension ld, F32 or BF16; fp32 partial sums over blocks of 64 rows, combined in order. */
void ps_column_sum(struct ps_pool *pool, enum ps_isa isa, float *out, const void *x, size_t ld,
                   enum ps_dtype dtype, size_t n_tok, size_t n, int accumulate);

/* Partial sums of squares: out[b] = sum of x[i]^2 over elements [b*65536, (b+1)*65536), fp64 sums of
 * fp32 values in a fixed order; x F32 or BF16; out holds (n + 65535) / 65536 doubles. The sum of the
 * partials in order, tensors in order, is the squared gradient norm. NaN and Inf propagate. */
void ps_square_sum(struct ps_pool *pool, enum ps_isa isa, double *out, const void *x,
                   enum ps_dtype dtype, size_t n);

#ifdef __cplusplus
}
#endif
#endif
