/* LoRA: y = W x + s B A drop(x), s = alpha / r (alpha / sqrt(r) with rsLoRA).
 *
 * Tensors: A (r, in) uniform in +-1/sqrt(in) (Kaiming uniform with a = sqrt 5), B (out, r) zero;
 * fp32. Keeps H = s drop(x) A^T (n_tok, r) from forward to backward, in the activations' dtype.
 * Sources: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rsLoRA). */
#ifndef PS_PEFT_LORA_H
#define PS_PEFT_LORA_H

#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ps_adapter_ops ps_lora_ops;

/* The scale s of a configuration. */
double ps_lora_scale(const struct ps_adapter_config *cfg);

#ifdef __cplusplus
}
#endif
#endif
