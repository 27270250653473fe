/* SwiGLU: y = silu(g) * u, silu(g) = g / (1 + exp(-g)).
 *
 * Element-wise over (n_tok, n) with leading dimensions; fp32 arithmetic, one rounding.
 *   backward: du = dy * silu(g);  dg = dy * u * sig(g) * (1 + g * (1 - sig(g)))
 * exp is a polynomial accurate to 2 ulp or expf; the same function on every path of one instruction
 * set, so that an element's result depends on its inputs alone. Source: Shazeer 2020, 2002.05202. */
#ifndef PS_KERNELS_SWIGLU_H
#define PS_KERNELS_SWIGLU_H

#include <stddef.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"

#ifdef __cplusplus
extern "C" {
#endif

/* All of dtype F32 or BF16, leading dimension n_ld for each tensor in elements. y overlaps nothing. */
void ps_swiglu_forward(struct ps_pool *pool, enum ps_isa isa, enum ps_dtype dtype, size_t n_tok,
                       size_t n, const void *gate, size_t gate_ld, const void *up, size_t up_ld,
                       void *y, size_t y_ld);

/* dgate may be gate, dup may be up, (in place), with equal leading dimensions. */
void ps_swiglu_backward(struct ps_pool *pool, enum ps_isa isa, enum ps_dtype dtype, size_t n_tok,
                        size_t n, const void *gate, size_t gate_ld, const void *up, size_t up_ld,
                        const void *dy, size_t dy_ld, void *dgate, size_t dgate_ld, void *dup,
                        size_t dup_ld);

#ifdef __cplusplus
}
#endif
#endif
