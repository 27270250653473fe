/* PiSSA and OLoRA: LoRA that begins with a part of the weight, y = W x + s (B A - B0 A0) x.
 *
 * PiSSA: B0 A0 is the largest r singular triplets of W over s, split evenly (Meng et al. 2024,
 * arXiv:2404.02948). OLoRA: the first r columns of Q and rows of R of W = Q R (Bueyuekakyuez 2024,
 * arXiv:2406.01775). The weights on disk are not changed: the initial factors are kept as frozen
 * tensors, so the residual is never rounded. Files for PEFT: a LoRA of rank 2r on the original
 * base. */
#ifndef PS_PEFT_PISSA_H
#define PS_PEFT_PISSA_H

#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ps_adapter_ops ps_pissa_ops;
extern const struct ps_adapter_ops ps_olora_ops;

#ifdef __cplusplus
}
#endif
#endif
