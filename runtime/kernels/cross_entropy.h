/* Softmax cross-entropy over rows of logits, forward and gradient in one pass.
 *
 *   loss[r] = logsumexp(z[r,:]) - z[r,target[r]]
 *   z[r,j] <- (softmax(z[r,:])[j] - (j == target[r])) * dscale        (when write_grad)
 *
 * logits (rows, vocab) fp32, leading dimension ld; the sum of exponentials runs over fixed blocks of
 * 4096 columns, in fp32 within a block, fp64 across. target in [0, vocab). loss (rows,) fp64.
 * A row's result does not depend on the other rows or on the thread count. NaN and Inf propagate
 * into loss. */
#ifndef PS_KERNELS_CROSS_ENTROPY_H
#define PS_KERNELS_CROSS_ENTROPY_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"

#ifdef __cplusplus
extern "C" {
#endif

void ps_cross_entropy(struct ps_pool *pool, enum ps_isa isa, float *logits, size_t ld, size_t rows,
                      size_t vocab, const int32_t *target, double *loss, float dscale,
                      int write_grad);

#ifdef __cplusplus
}
#endif
#endif
