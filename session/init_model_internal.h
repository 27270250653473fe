/* The files beside the weights of a new model directory. */
#ifndef PS_SESSION_INIT_MODEL_INTERNAL_H
#define PS_SESSION_INIT_MODEL_INTERNAL_H

#include <stddef.h>

#include "runtime/model/config.h"
#include "session/init_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The configuration that a model is made from. */
struct ps__init_config {
    char *text; /* the bytes of config.json */
    size_t len;
    char path[512];
};

/* Read and check it. */
int ps__init_read_config(const struct ps_init_options *opt, struct ps__init_config *config,
                         struct ps_model_config *cfg, struct ps_error *err) PS_WARN_UNUSED;
void ps__init_config_fini(struct ps__init_config *config);

/* Tokenizer files, generation_config.json, and config.json last. */
int ps__init_write_side_files(const struct ps_init_options *opt,
                              const struct ps__init_config *config,
                              const struct ps_model_config *cfg, enum ps_dtype dtype,
                              struct ps_error *err) PS_WARN_UNUSED;

/* A copy of the JSON object `text` with its torch_dtype (or dtype) replaced by `name`, or put first
 * when it has none; everything else byte for byte. NULL when out of memory. */
char *ps__init_set_dtype(const char *text, size_t len, const char *name, size_t *out_len);

#ifdef __cplusplus
}
#endif
#endif
