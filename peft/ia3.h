/* (IA)^3: learned factors. Most linears: y = l (.) (W x + b), l (out, 1). The MLP's last linear
 * (down_proj): y = W (l (.) x) + b, l (1, in). All factors begin as 1.
 *
 * Kept for backward: of outputs W x + b (n_tok, out), of inputs nothing. PEFT calls a linear whose
 * input is scaled a feed-forward module. Source: Liu et al. 2022, arXiv:2205.05638. */
#ifndef PS_PEFT_IA3_H
#define PS_PEFT_IA3_H

#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ps_adapter_ops ps_ia3_ops;

/* Is the input of this linear scaled? */
bool ps_ia3_scales_input(enum ps_role role);

#ifdef __cplusplus
}
#endif
#endif
