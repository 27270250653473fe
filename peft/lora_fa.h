/* LoRA-FA: LoRA whose A stays as it was drawn; only B is trained, and backward needs H but not x.
 *
 * Half of the states, the same files as LoRA. Source: Zhang et al. 2023, arXiv:2308.03303. */
#ifndef PS_PEFT_LORA_FA_H
#define PS_PEFT_LORA_FA_H

#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ps_adapter_ops ps_lora_fa_ops;

#ifdef __cplusplus
}
#endif
#endif
