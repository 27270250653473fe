/* What the files of the configuration reader share. */
#ifndef PS_MODEL_CONFIG_INTERNAL_H
#define PS_MODEL_CONFIG_INTERNAL_H

#include "runtime/base/json.h"
#include "runtime/model/config.h"

/* Fill in the rope_ fields of `out`, whose head_dim and max_position_embeddings are set, from
 * rope_parameters, or rope_scaling and rope_theta. */
int ps__model_config_rope(struct ps_model_config *out, const json_t *root, const char *file,
                          struct ps_error *err) PS_WARN_UNUSED;

/* PS_EUNSUPPORTED with the reason why this model_type cannot be trained. */
int ps__model_config_refuse_type(const char *model_type, const char *file,
                                 struct ps_error *err) PS_WARN_UNUSED;

#endif
