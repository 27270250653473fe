/* RMSNorm: y[t,:] = w * x[t,:] * rstd[t], rstd[t] = 1 / sqrt(mean(x[t,:]^2) + eps).
 *
 * Statistics and arithmetic in fp32 (sum of squares in a fixed order), one rounding of y.
 * A "row" is one token for the block norms and one (token, head) pair for per-head norms: row r
 * starts at x + (r / rows_per_tok) * x_ld + (r % rows_per_tok) * n, likewise y, dy, dx.
 * Results of a row do not depend on the other rows or on the thread count.
 * Source: Zhang & Sennrich 2019, arXiv:1910.07467. */
#ifndef PS_KERNELS_RMSNORM_H
#define PS_KERNELS_RMSNORM_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_rmsnorm_args {
    size_t n_tok;
    size_t rows_per_tok; /* 1, or the number of heads */
    size_t n;            /* row length */
    float eps;
    enum ps_dtype dtype;    /* of x, y, dy, dx: F32 or BF16 */
    const void *x;
    size_t x_ld;
    const void *weight;     /* (n,) */
    enum ps_dtype weight_dtype; /* F32, BF16 or F16 */
    void *y;                /* may be x */
    size_t y_ld;
    float *rstd;            /* (n_tok * rows_per_tok,), written by forward, read by backward */
    /* backward: dx[r] = rstd (w*dy - xhat * mean(xhat*w*dy)) [+ dx_add[r]], one rounding */
    const void *dy;
    size_t dy_ld;
    void *dx;               /* may be dy or dx_add when the leading dimensions agree */
    size_t dx_ld;
    const void *dx_add;     /* or NULL: gradient that bypasses the norm (residual), same dtype */
    size_t dx_add_ld;
    float *dweight;         /* (n,) fp32 or NULL: sum over rows of dy * xhat */
    int accumulate;         /* dweight += instead of = */
};

void ps_rmsnorm_forward(struct ps_pool *pool, enum ps_isa isa, const struct ps_rmsnorm_args *args);

/* Reads x, rstd, weight, dy. `workspace` holds ps_rmsnorm_workspace_bytes when dweight != NULL:
 * partial sums over blocks of 64 rows, combined in ascending order. */
size_t ps_rmsnorm_workspace_bytes(size_t row_count_max, size_t n);
void ps_rmsnorm_backward(struct ps_pool *pool, enum ps_isa isa, const struct ps_rmsnorm_args *args,
                         void *workspace);

void ps_rmsnorm_forward_reference(const struct ps_rmsnorm_args *args);
void ps_rmsnorm_backward_reference(const struct ps_rmsnorm_args *args);

#ifdef __cplusplus
}
#endif
#endif
