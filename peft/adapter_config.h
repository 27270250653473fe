/* adapter_config.json in PEFT's form, and runtime_adapter.json beside it: see adapters.h.
 *
 * runtime_adapter.json is there when PEFT's configuration does not name the method: PEFT reads what
 * lies beside it as plain LoRA. */
#ifndef PS_PEFT_ADAPTER_CONFIG_H
#define PS_PEFT_ADAPTER_CONFIG_H

#include "peft/adapters.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_ADAPTER_CONFIG_NAME "adapter_config.json"
#define PS_ADAPTER_WEIGHTS_NAME "adapter_model.safetensors"
#define PS_ADAPTER_OWN_CONFIG_NAME "runtime_adapter.json"
#define PS_ADAPTER_OWN_WEIGHTS_NAME "runtime_adapter.safetensors"

/* What a file says. Keys of the patterns, and their values, in the file's order. */
struct ps_pattern {
    char *key;
    double value;
};
struct ps_adapter_file {
    struct ps_adapter_config config; /* method in static storage */
    struct ps_pattern *rank, *alpha;
    size_t rank_count, alpha_count;
};

/* Read the directory's configuration; fini also after an error. */
int ps_adapter_file_read(struct ps_adapter_file *out, const char *dir,
                         struct ps_error *err) PS_WARN_UNUSED;
void ps_adapter_file_fini(struct ps_adapter_file *f);

/* "none", "all", "lora_only", as PEFT says it. */
const char *ps_adapter_bias_name(enum ps_adapter_bias bias);
/* False: no such name. */
bool ps_adapter_bias_find(enum ps_adapter_bias *out, const char *name);

/* Write both files. */
int ps_adapter_config_write(const char *dir, const struct ps_trainer *t, const char *base_name,
                            struct ps_error *err) PS_WARN_UNUSED;

/* Set r (or alpha) of every site whose path a key matches, the first key that does, as PEFT does:
 * (.*\.)?(key)$ as a regular expression. `field` is named in errors. */
int ps_patterns_apply(struct ps_adapter_config *site_config, int32_t n_layer,
                      const struct ps_pattern *pattern, size_t count, bool is_alpha,
                      const char *field, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
