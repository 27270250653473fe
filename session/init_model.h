/* A Hugging Face model directory with random weights: for tests, benchmarks and training from
 * scratch. */
#ifndef PS_SESSION_INIT_MODEL_H
#define PS_SESSION_INIT_MODEL_H

#include <stdint.h>

#include "runtime/base/log.h"
#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_init_options {
    const char *config;    /* config.json, or a directory with one */
    const char *output;    /* new directory, or one without config.json */
    const char *tokenizer; /* directory whose tokenizer files are copied; NULL: none */
    uint64_t seed;
    int dtype;            /* enum ps_dtype F32 or BF16; -1: the config's torch_dtype, else BF16 */
    int threads;          /* 0: physical cores */
    uint64_t shard_bytes; /* largest data of one file; 0: 4 GiB. A larger tensor has a file alone */
    const struct ps_log *log;
};

struct ps_init_result {
    uint64_t parameters, tensors, files, bytes; /* files and bytes of weights */
};

/* Write config.json (byte for byte, but for torch_dtype where --dtype differs),
 * generation_config.json, the weights (model.safetensors, or shards with
 * model.safetensors.index.json), and the tokenizer's files. config.json is written last: a
 * directory without it is not a model.
 *
 * Matrices are normal(0, initializer_range), rounded to nearest even; norms are 1, biases 0.
 * Elements 4b to 4b + 3 of parameter p come from block b of the key {seed, layer = p, site
 * PS_RNG_INIT_WEIGHT}, words u, v giving sqrt(-2 ln u) times cos and sin of 2 pi v (Box and
 * Muller), in double. The bytes depend on seed, config and dtype alone. Memory is bounded, whatever
 * the model's size (under 64 MiB).
 *
 * Returns 0; PS_EUSAGE (output holds a model already, the tokenizer has more ids than the model);
 * PS_EFORMAT or PS_EUNSUPPORTED for the config; -ENOSPC before anything is written when the disk is
 * too small; -errno. */
int ps_init_model(const struct ps_init_options *opt, struct ps_init_result *out,
                  struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
