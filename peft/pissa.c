/* PiSSA and OLoRA: see pissa.h. */
#include "peft/pissa.h"

#include <math.h>
#include <string.h>

#include "peft/decompose.h"
#include "peft/lora.h"

/* Times W^T and W of the randomized decomposition; any factors give a valid start. */
#define ITERATIONS 4

enum { TENSOR_A0 = PS_LORA_B + 1, TENSOR_B0, TENSOR_COUNT };

static int tensors(const struct ps_adapter_site *s,
                   struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX], struct ps_error *err)
{
    int count = ps_lora_tensors(s, tensor, err);
    if (count < 0)
        return count;
    int32_t r = s->config->r;
    tensor[TENSOR_A0] = (struct ps_adapter_tensor){
        .suffix = "lora_A0.weight", .rank = 2, .shape = {r, s->in}, .frozen = true};
    tensor[TENSOR_B0] = (struct ps_adapter_tensor){
        .suffix = "lora_B0.weight", .rank = 2, .shape = {s->out, r}, .frozen = true};
    return TENSOR_COUNT;
}

static void keep_initial(const struct ps_adapter_site *s)
{
    size_t r = (size_t)s->config->r;
    memcpy(s->tensor[TENSOR_A0], s->tensor[PS_LORA_A], r * (size_t)s->in * sizeof(float));
    memcpy(s->tensor[TENSOR_B0], s->tensor[PS_LORA_B], r * (size_t)s->out * sizeof(float));
}

static int init_pissa(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                      struct ps_error *err)
{
    struct ps_rng_key key = {
        .seed = s->config->seed, .layer = s->site_idx, .site = PS_RNG_INIT_ADAPTER};
    int iterations = s->config->iterations > 0 ? s->config->iterations : ITERATIONS;
    float *a = s->tensor[PS_LORA_A];
    float *b = s->tensor[PS_LORA_B];
    int ret = ps_decompose_svd(base, s->out, s->in, s->config->r, iterations, &key, a, b, err);
    if (ret < 0)
        return ret;
    float root = (float)(1 / sqrt(ps_lora_scale(s->config)));
    for (int64_t i = 0; i < s->config->r * s->in; i++)
        a[i] *= root;
    for (int64_t i = 0; i < s->config->r * s->out; i++)
        b[i] *= root;
    keep_initial(s);
    return 0;
}

static int init_olora(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                      struct ps_error *err)
{
    int ret = ps_decompose_qr(base, s->out, s->in, s->config->r, s->tensor[PS_LORA_A],
                              s->tensor[PS_LORA_B], err);
    if (ret == 0)
        keep_initial(s);
    return ret;
}

static struct ps_lowrank view(const struct ps_adapter_site *s)
{
    struct ps_lowrank v = ps_lora_view(s);
    v.a0 = s->tensor[TENSOR_A0];
    v.b0 = s->tensor[TENSOR_B0];
    return v;
}

static const struct ps_peft_method method = {
    .view = view, .has_pair = true, .peft_type = "LORA", .folds = true};

const struct ps_adapter_ops ps_pissa_ops = {
    .name = "pissa",
    .tensors = tensors,
    .init = init_pissa,
    .needs_base = true,
    .saved_bytes = ps_lowrank_saved_bytes,
    .scratch_bytes = ps_lowrank_scratch_bytes,
    .forward = ps_lowrank_forward,
    .save = ps_lowrank_save,
    .backward = ps_lowrank_backward,
    .merge = ps_lowrank_merge,
    .own = &method,
};

const struct ps_adapter_ops ps_olora_ops = {
    .name = "olora",
    .tensors = tensors,
    .init = init_olora,
    .needs_base = true,
    .saved_bytes = ps_lowrank_saved_bytes,
    .scratch_bytes = ps_lowrank_scratch_bytes,
    .forward = ps_lowrank_forward,
    .save = ps_lowrank_save,
    .backward = ps_lowrank_backward,
    .merge = ps_lowrank_merge,
    .own = &method,
};
