/* LoRA: y = W x + s B A drop(x), s = alpha / r (alpha / sqrt(r) with rsLoRA).
 *
 * Tensors: A (r, in) uniform in +-1/sqrt(in) (Kaiming uniform with a = sqrt 5), B (out, r) zero;
 * fp32. Keeps H = s drop(x) A^T (n_tok, r) from forward to backward, in the activations' dtype.
 *
 * The embedding: x[t] += s B A[:, id[t]], A (r, vocab) zero, B (hidden, r) standard normal, as in
 * PEFT; no dropout. In memory A lies as (vocab, r). With tied weights only lookups are adapted. The
 * head is one more linear, whose tokens come in chunks.
 * Sources: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rsLoRA). */
#ifndef PS_PEFT_LORA_H
#define PS_PEFT_LORA_H

#include "peft/lowrank.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ps_adapter_ops ps_lora_ops;

/* What methods with the same tensors share. */
enum { PS_LORA_A, PS_LORA_B };
int ps_lora_tensors(const struct ps_adapter_site *s,
                    struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX], struct ps_error *err);
int ps_lora_init(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                 struct ps_error *err);
struct ps_lowrank ps_lora_view(const struct ps_adapter_site *s);

#ifdef __cplusplus
}
#endif
#endif
