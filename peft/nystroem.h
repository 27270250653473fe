/* The Nystroem family: LoRA with a matrix N (r, r) between B and A. Wang et al. 2025,
 * arXiv:2502.14482.
 *
 *   slora    y = W x + s B N A x; A and N drawn as LoRA's A, B zero; all three are trained
 *   nlora    y = W x + s (B N A - B0 N0 A0) x; begins with W's first rows, first columns and the
 *            pseudo-inverse of its first block; all three are trained. The initial product is taken
 *            off exactly, so training starts at the base (the authors' code leaves both out)
 *   inttune  y = W x + s B (N - N0) A x from the same start; only N is trained, backward needs H =
 * A x but not x
 *
 * Files for PEFT: plain LoRA with A' = N A (rank r; nlora 2r). */
#ifndef PS_PEFT_NYSTROEM_H
#define PS_PEFT_NYSTROEM_H

#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ps_adapter_ops ps_nlora_ops;
extern const struct ps_adapter_ops ps_slora_ops;
extern const struct ps_adapter_ops ps_inttune_ops;

#ifdef __cplusplus
}
#endif
#endif
