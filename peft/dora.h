/* DoRA: y = c (.) (x (W + s B A)^T) + b, c = m / n, n the norms of the rows of W + s B A.
 *
 * With dropout, as in PEFT: y = W x + (c - 1) (.) (W drop(x)) + c (.) (s B A drop(x)) + b; then U
 * below is of drop(x), and what dropout took from the base is a product more in forward and in
 * backward.
 *
 * Tensors: A, B as in LoRA, the magnitudes m (out,), at first the norms of W's rows. The norms are
 * computed anew at every application and are constants for the gradient, as in PEFT (paper section
 * 4.3). Kept for backward: H = s x A^T (n_tok, r), U = x (W + s B A)^T (n_tok, out), n and c. The
 * norms need W, x W's size times r / n_tok more arithmetic; W + s B A is never formed. Source: Liu
 * et al. 2024, arXiv:2402.09353. */
#ifndef PS_PEFT_DORA_H
#define PS_PEFT_DORA_H

#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ps_adapter_ops ps_dora_ops;

#ifdef __cplusplus
}
#endif
#endif
