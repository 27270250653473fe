/* What the RMSNorm variants share. Private to runtime/kernels. */
#ifndef PS_KERNELS_RMSNORM_INTERNAL_H
#define PS_KERNELS_RMSNORM_INTERNAL_H

#include "runtime/kernels/rmsnorm.h"

/* Rows of one partial sum of dweight, and of one task. */
#define PS__RMSNORM_ROWS 64

/* First element of row r of a tensor with leading dimension ld, in elements. */
static inline size_t ps__rmsnorm_row(const struct ps_rmsnorm_args *a, size_t ld, size_t r)
{
    return (r / a->rows_per_tok) * ld + (r % a->rows_per_tok) * a->n;
}

/* Rows [begin, end). `partial` (n,) receives (=) the sum over these rows of dy * xhat, or is NULL.
 */
void ps__rmsnorm_forward_avx512(const struct ps_rmsnorm_args *a, size_t begin, size_t end);
void ps__rmsnorm_backward_avx512(const struct ps_rmsnorm_args *a, size_t begin, size_t end,
                                 float *partial);

#endif
