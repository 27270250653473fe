/* Which linears get an adapter: --lora-target and --lora-layers resolved against a model. */
#ifndef PS_PEFT_TARGETS_H
#define PS_PEFT_TARGETS_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/model/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Parse a layer selection: "all", "last:N", "A-B" (both ends included), or a comma list of A-B and
 * numbers, into on (n_layer,). PS_EUSAGE names `option`. */
int ps_layers_parse(bool *on, int32_t n_layer, const char *text, const char *option,
                    struct ps_error *err) PS_WARN_UNUSED;

/* site_on (ps_site_count): `target` is a comma list of "all" (the seven linears), "attn" (q, k, v,
 * o) and module names (q_proj, ..., embed_tokens, lm_head), or a regular expression that must match
 * the whole module path (model.layers.0.self_attn.q_proj), as PEFT's target_modules string does;
 * `layers`, as above, chooses among the layers' linears. A target that matches nothing is PS_EUSAGE
 * with the names that exist. */
int ps_targets_select(bool *site_on, const struct ps_model_config *cfg, const char *target,
                      const char *layers, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
