/* Rotary position embedding, rotate-half (NeoX) layout: pairs (i, i + d/2), in place.
 *
 *   y[i]       = x[i] cos - x[i+d/2] sin
 *   y[i+d/2]   = x[i+d/2] cos + x[i] sin        angle = position * inv_freq[i]
 *
 * cos and sin in fp32 from a table, one rounding. inverse != 0 rotates by the negative angle (the
 * backward pass). Source: Su et al. 2021, arXiv:2104.09864; layout of transformers. */
#ifndef PS_KERNELS_ROPE_H
#define PS_KERNELS_ROPE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fill cos_sin (position_count, 2, half) fp32 from inv_freq (half,): for each position the cosines,
 * then the sines. The angle is the fp32 product position * inv_freq, as in transformers. */
void ps_rope_table(float *cos_sin, const float *inv_freq, size_t position_count, size_t half);

/* x (n_tok, n_head * head_dim), leading dimension ld, F32 or BF16; position (n_tok,), each below the
 * table's position_count; head_dim even. */
void ps_rope_apply(struct ps_pool *pool, enum ps_isa isa, void *x, size_t ld, enum ps_dtype dtype,
                   size_t n_tok, size_t n_head, size_t head_dim, const int32_t *position,
                   const float *cos_sin, int inverse);

#ifdef __cplusplus
}
#endif
#endif
