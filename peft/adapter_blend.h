/* Several adapters at once, each with a weight: W + sum of weight_i (W_i - W), W_i what adapter i
 * makes of W. For merging; the adapters' tensors are held in memory, the base is not. */
#ifndef PS_PEFT_ADAPTER_BLEND_H
#define PS_PEFT_ADAPTER_BLEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/model/config.h"
#include "runtime/model/params.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_adapter_blend;

/* Read `count` adapter directories. `params` must live until destroy. */
int ps_adapter_blend_open(struct ps_adapter_blend **out, const char *const *dir,
                          const double *weight, size_t count, const struct ps_model_config *model,
                          const struct ps_param_table *params, struct ps_error *err) PS_WARN_UNUSED;
void ps_adapter_blend_destroy(struct ps_adapter_blend *b);

/* Does any of them change this parameter? */
bool ps_adapter_blend_touches(const struct ps_adapter_blend *b, int32_t param_idx);

/* w: rows [row_begin, row_begin + rows) of the base's parameter as fp32, all of a vector; they
 * become those of the blend. 0 or -ENOMEM. */
int ps_adapter_blend_apply(const struct ps_adapter_blend *b, int32_t param_idx, int64_t row_begin,
                           int64_t rows, float *w) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
