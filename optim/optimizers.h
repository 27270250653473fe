/* The registry of optimizers: one line each. */
#ifndef PS_OPTIM_OPTIMIZERS_H
#define PS_OPTIM_OPTIMIZERS_H

#include "runtime/train/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* By the name that --optimizer takes, or NULL. */
const struct ps_optimizer_ops *ps_optimizer_find(const char *name);

/* All of them, NULL-terminated. */
const struct ps_optimizer_ops *const *ps_optimizers(void);

/* Keeps an average of the weights beside the method hyper.averaged: see weight_average.c. Not in the
 * list above: no name of --optimizer. */
extern const struct ps_optimizer_ops ps_weight_average_ops;
extern const struct ps_optimizer_ops ps_weight_average_zeroth_ops; /* of methods that perturb */

/* One file each: optim/<name>.c says what it computes. */
extern const struct ps_optimizer_ops ps_sgd_ops;
extern const struct ps_optimizer_ops ps_adamw_ops;
extern const struct ps_optimizer_ops ps_adamw8bit_ops;
extern const struct ps_optimizer_ops ps_lion_ops;
extern const struct ps_optimizer_ops ps_galore_ops;
extern const struct ps_optimizer_ops ps_natural_galore_ops;
extern const struct ps_optimizer_ops ps_fira_ops;
extern const struct ps_optimizer_ops ps_apollo_ops;
extern const struct ps_optimizer_ops ps_apollo_mini_ops;
extern const struct ps_optimizer_ops ps_muon_ops;
extern const struct ps_optimizer_ops ps_adafactor_ops;
extern const struct ps_optimizer_ops ps_microadam_ops;
extern const struct ps_optimizer_ops ps_lisa_ops;
extern const struct ps_optimizer_ops ps_badam_ops;
extern const struct ps_optimizer_ops ps_mezo_ops;

#ifdef __cplusplus
}
#endif
#endif
