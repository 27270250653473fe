/* VeRA: y = W x + b (.) (B (d (.) (A drop(x)))), A and B drawn at random once and shared by all
 * linears, which take the first columns of A (r, largest input) and the first rows of B (largest
 * output, r); d (r,) begins as 0.1 and b (out,) as zero, and only they are trained.
 *
 * Kept for backward: H = drop(x) A^T (n_tok, r). The gradients of both vectors come from dy^T H
 * (out, r); the (n_tok, out) product is never formed. Source: Kopiczko et al. 2023,
 * arXiv:2310.11454. */
#ifndef PS_PEFT_VERA_H
#define PS_PEFT_VERA_H

#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ps_adapter_ops ps_vera_ops;

#ifdef __cplusplus
}
#endif
#endif
