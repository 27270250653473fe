/* The registry of adapter methods, and adapter directories in PEFT's format.
 *
 * A directory holds adapter_config.json and adapter_model.safetensors; keys are
 * base_model.model.<module path>.<suffix>. For methods that PEFT lacks these two are a plain LoRA
 * with the same function, and runtime_adapter.json with runtime_adapter.safetensors keep the method
 * and its own tensors. Source: huggingface/peft. */
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

/* Read the configuration of an adapter directory, what it adapts (from the tensors that
 * the file holds; site_on (ps_site_count)) and, in site_config (ps_site_count) unless NULL, the
 * rank and alpha of each. cfg->seed is kept. Options that Penstock does not apply are refused by
 * name, so that no adapter loads as something else. */
int ps_adapter_dir_config(const char *dir, const struct ps_model_config *model,
                          struct ps_adapter_config *cfg, bool *site_on,
                          struct ps_adapter_config *site_config,
                          struct ps_error *err) PS_WARN_UNUSED;

/* Read the tensors into the trainer's sites; every tensor of the file must have its place and the
 * other way round, shapes must agree, values must be finite. */
int ps_adapter_dir_load(const char *dir, struct ps_trainer *t, struct ps_error *err) PS_WARN_UNUSED;

/* The same into any entries of a method (value, name, rank and shape count). */
int ps_adapter_dir_entries(const char *dir, const struct ps_adapter_ops *ops,
                           const struct ps_adapter_entry *entry, size_t count,
                           struct ps_error *err) PS_WARN_UNUSED;

/* Write the adapter's files into the existing directory `dir`, then
 * re-open them and compare names, shapes and values with memory. dtype F32 or BF16. base_name goes
 * to base_model_name_or_path. Non-finite values are PS_ENUMERIC and nothing is written. */
int ps_adapter_dir_save(const char *dir, struct ps_trainer *t, const char *base_name,
                        enum ps_dtype dtype, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
