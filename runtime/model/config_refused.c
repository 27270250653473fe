/* Model types that Penstock does not train, each with its reason. */
#include "runtime/model/config_internal.h"

#include <string.h>

struct refused {
    const char *model_type;
    const char *reason;
};

static const char experts[] = "its feed-forward layers are a mixture of experts";
static const char latent[] = "it has latent attention (MLA) and a mixture of experts";
static const char images[] = "it is multimodal";
static const char hybrid[] = "its layers are not all softmax attention";
static const char gelu_norm[] = "its norms, activation and embedding scale differ from Llama's";
static const char layer_norm[] = "it uses LayerNorm and another layer structure than Llama's";
static const char encoder[] = "it is not a decoder-only causal language model";

static const struct refused table[] = {
    {"gemma", gelu_norm},
    {"gemma2", "it has soft-capped attention scores and logits, alternating sliding windows and "
               "(1 + w) norms"},
    {"gemma3", "it is multimodal, with two RoPE bases, alternating sliding windows and (1 + w) "
               "norms"},
    {"gemma3_text", "it has two RoPE bases, alternating sliding windows and (1 + w) norms"},
    {"gemma3n", images},
    {"phi", layer_norm},
    {"phi3", "its attention and MLP weights are fused (qkv_proj, gate_up_proj)"},
    {"phimoe", experts},
    {"gpt2", "it has learned positions, LayerNorm and transposed Conv1D weights"},
    {"gpt_neo", layer_norm},
    {"gpt_neox", layer_norm},
    {"gptj", layer_norm},
    {"gpt_oss", experts},
    {"opt", layer_norm},
    {"bloom", layer_norm},
    {"falcon", layer_norm},
    {"mpt", layer_norm},
    {"stablelm", layer_norm},
    {"starcoder2", layer_norm},
    {"mixtral", experts},
    {"qwen2_moe", experts},
    {"qwen3_moe", experts},
    {"olmoe", experts},
    {"granitemoe", experts},
    {"dbrx", experts},
    {"deepseek", experts},
    {"deepseek_v2", latent},
    {"deepseek_v3", latent},
    {"kimi_k2", latent},
    {"llama4", "it is multimodal, with a mixture of experts"},
    {"llama4_text", experts},
    {"mllama", images},
    {"llava", images},
    {"mistral3", images},
    {"pixtral", images},
    {"qwen2_vl", images},
    {"qwen2_5_vl", images},
    {"qwen3_vl", images},
    {"smolvlm", images},
    {"idefics3", images},
    {"ministral", "its layers mix sliding-window and full attention"},
    {"smollm3", "some of its layers have no RoPE (no_rope_layers)"},
    {"cohere", "it uses LayerNorm, parallel layers and scaled logits"},
    {"cohere2", "it uses LayerNorm, parallel layers and scaled logits"},
    {"granite", "it scales embeddings, residuals, attention and logits"},
    {"olmo", "its norms have no weights"},
    {"olmo2", "its norms stand after the layers"},
    {"olmo3", "its norms stand after the layers"},
    {"exaone4", "its norms stand after the layers"},
    {"glm", "its RoPE turns a part of each head only"},
    {"glm4", "its RoPE turns a part of each head only"},
    {"nemotron", "its RoPE turns a part of each head only, and its MLP is not gated"},
    {"minicpm", "it scales embeddings, residuals and logits"},
    {"minicpm3", "it has latent attention (MLA)"},
    {"mamba", hybrid},
    {"mamba2", hybrid},
    {"falcon_mamba", hybrid},
    {"jamba", hybrid},
    {"bamba", hybrid},
    {"rwkv", hybrid},
    {"recurrent_gemma", hybrid},
    {"qwen3_next", hybrid},
    {"qwen3_5", hybrid},
    {"lfm2", hybrid},
    {"bert", encoder},
    {"roberta", encoder},
    {"modernbert", encoder},
    {"deberta-v2", encoder},
    {"t5", encoder},
    {"bart", encoder},
    {"whisper", encoder},
    {"clip", encoder},
};

int ps__model_config_refuse_type(const char *model_type, const char *file, struct ps_error *err)
{
    const char *reason = "Penstock does not know this architecture";
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strcmp(model_type, table[i].model_type) == 0)
            reason = table[i].reason;
    return ps_error_full(err, PS_EUNSUPPORTED, file, "model_type",
                         "use a llama, mistral, qwen2 or qwen3 model",
                         "model type \"%.64s\" is not supported: %s", model_type, reason);
}
