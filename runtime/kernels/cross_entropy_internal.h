/* What the cross-entropy variants share. Private to runtime/kernels. */
#ifndef PS_KERNELS_CROSS_ENTROPY_INTERNAL_H
#define PS_KERNELS_CROSS_ENTROPY_INTERNAL_H

#include "runtime/kernels/cross_entropy.h"

/* Columns of one fp32 sum: 16 KiB, so that the second look at a block hits the first-level cache.
 */
#define PS__CROSS_ENTROPY_COLUMNS 4096

/* Maximum over z[0, n) with NaN ignored (-Inf if nothing is left), and sum of exp(z - max); where
 * the maximum is not finite *max is 0. n in [1, 4096]. */
void ps__cross_entropy_block_avx512(const float *z, size_t n, float *max, float *sum);

/* z[j] = exp(z[j] - max) * scale, j in [0, n). */
void ps__cross_entropy_scale_avx512(float *z, size_t n, float max, float scale);

#endif
