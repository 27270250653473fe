/* Hugging Face config.json of the decoder families that Penstock trains.
 *
 * llama (2, 3.x, SmolLM, SmolLM2, TinyLlama, ...), mistral, qwen2 (2, 2.5), qwen3. Everything else
 * is refused by name with the reason (PS_EUNSUPPORTED). Every number is range-checked. */
#ifndef PS_MODEL_CONFIG_H
#define PS_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_rope_type { PS_ROPE_DEFAULT, PS_ROPE_LINEAR, PS_ROPE_LLAMA3 };

#define PS_EOS_MAX 8

struct ps_model_config {
    char model_type[32]; /* "llama", "mistral", "qwen2", "qwen3" */
    char architecture[64];
    int32_t hidden_size;
    int32_t intermediate_size;
    int32_t n_layer;
    int32_t n_head;
    int32_t n_kv_head;
    int32_t head_dim;
    int32_t vocab_size;
    int32_t max_position_embeddings;
    float rms_norm_eps;
    bool tie_word_embeddings;
    bool qkv_bias;          /* bias on q, k, v */
    bool o_bias;            /* bias on o */
    bool mlp_bias;          /* bias on gate, up, down */
    bool qk_norm;           /* RMSNorm per head on q and k before RoPE (qwen3) */
    int32_t sliding_window; /* 0: none */
    enum ps_rope_type rope_type;
    double rope_theta;
    double rope_factor;           /* linear, llama3 */
    double rope_low_freq_factor;  /* llama3 */
    double rope_high_freq_factor; /* llama3 */
    double rope_original_max_position;
    int32_t bos_token_id; /* -1: none */
    int32_t eos_token_id[PS_EOS_MAX];
    int32_t eos_count;
    int torch_dtype; /* enum ps_dtype, or -1 when the file does not say; advisory */
    double initializer_range;
};

/* Parse the text of a config.json. `file` is for messages. */
int ps_model_config_parse(struct ps_model_config *out, const char *text, size_t len,
                          const char *file, struct ps_error *err) PS_WARN_UNUSED;

/* Read a config.json: `path` is the file itself or a model directory. When the directory has a
 * generation_config.json with eos_token_id, those ids are added to the list. */
int ps_model_config_load(struct ps_model_config *out, const char *path,
                         struct ps_error *err) PS_WARN_UNUSED;

/* Inverse frequencies of RoPE, fp64 -> (head_dim / 2,) fp32, for the config's rope type.
 * Source: transformers, modeling_rope_utils. */
void ps_model_rope_inv_freq(const struct ps_model_config *cfg, float *inv_freq);

/* Names of the supported families, NULL-terminated: "llama", "mistral", "qwen2", "qwen3". */
const char *const *ps_model_families(void);

#ifdef __cplusplus
}
#endif
#endif
