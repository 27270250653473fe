/* Tuning of the base's own vectors: `norms` trains the weights of every norm, `bias` every bias of
 * the linears (BitFit; Ben Zaken et al. 2021, arXiv:2106.10199). Values begin as the base's, are
 * kept in fp32 and take the base's place in every layer, wherever its weights lie. Files for PEFT:
 * LN_TUNING for norms; a LoRA without effect that brings its biases (bias: all) for bias. */
#ifndef PS_PEFT_VECTORS_H
#define PS_PEFT_VECTORS_H

#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ps_adapter_ops ps_norms_ops;
extern const struct ps_adapter_ops ps_bias_ops;

#ifdef __cplusplus
}
#endif
#endif
