/* The registry of adapter methods, and adapter directories in PEFT's format.
 *
 * A directory holds adapter_config.json and adapter_model.safetensors; keys are
 * base_model.model.<module path>.<suffix>. Source: huggingface/peft. */
#ifndef PS_PEFT_ADAPTERS_H
#define PS_PEFT_ADAPTERS_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/model/linear.h"
#include "runtime/train/trainer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* By the name that --method takes, or NULL. */
const struct ps_adapter_ops *ps_adapter_find(const char *name);
/* All of them, NULL-terminated. */
const struct ps_adapter_ops *const *ps_adapters(void);

/* Read the configuration of an adapter directory and which linears it adapts (from the tensors that
 * the file holds; site_on (n_layer * 7)). Options that Penstock does not apply are refused by name,
 * so that no adapter loads as something else. */
int ps_adapter_dir_config(const char *dir, const struct ps_model_config *model,
                          struct ps_adapter_config *cfg, bool *site_on,
                          struct ps_error *err) PS_WARN_UNUSED;

/* Read the tensors into the trainer's sites; every tensor of the file must have its place and the
 * other way round, shapes must agree, values must be finite. */
int ps_adapter_dir_load(const char *dir, struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;

/* Write adapter_config.json and adapter_model.safetensors into the existing directory `dir`, then
 * re-open both and compare names, shapes and values with memory. dtype F32 or BF16. base_name goes
 * to base_model_name_or_path. Non-finite values are PS_ENUMERIC and nothing is written. */
int ps_adapter_dir_save(const char *dir, struct ps_trainer *t, const char *base_name,
                        enum ps_dtype dtype, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
