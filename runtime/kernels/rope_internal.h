/* What the RoPE variants share. Private to runtime/kernels. */
#ifndef PS_KERNELS_ROPE_INTERNAL_H
#define PS_KERNELS_ROPE_INTERNAL_H

#include "runtime/kernels/rope.h"

/* Rotate one head, x (2 * half,), by the angles whose cosines and sines (half,) are given; sign is
 * 1 or -1 (inverse). */
void ps__rope_head_avx512(void *x, enum ps_dtype dtype, size_t half, const float *cosine,
                          const float *sine, float sign);

#endif
