/* LoRA: see lora.h; the arithmetic is in lowrank.c. */
#include "peft/lora.h"

#include <string.h>

int ps_lora_tensors(const struct ps_adapter_site *s,
                    struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX], struct ps_error *err)
{
    int ret = ps_lowrank_check(s, err);
    if (ret < 0)
        return ret;
    int32_t r = s->config->r;
    tensor[PS_LORA_A] = (struct ps_adapter_tensor){
        .suffix = "lora_A.weight", .rank = 2, .shape = {r, s->in}, .decay = true};
    tensor[PS_LORA_B] = (struct ps_adapter_tensor){
        .suffix = "lora_B.weight", .rank = 2, .shape = {s->out, r}, .decay = true, .rate_group = 1};
    return 2;
}

int ps_lora_init(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                 struct ps_error *err)
{
    (void)base;
    (void)err;
    ps_lowrank_uniform(s, 0, s->config->r, s->in, s->tensor[PS_LORA_A]);
    memset(s->tensor[PS_LORA_B], 0, (size_t)s->out * (size_t)s->config->r * sizeof(float));
    return 0;
}

struct ps_lowrank ps_lora_view(const struct ps_adapter_site *s)
{
    return (struct ps_lowrank){.r = (size_t)s->config->r,
                               .scale = ps_lora_scale(s->config),
                               .a = s->tensor[PS_LORA_A],
                               .b = s->tensor[PS_LORA_B],
                               .da = s->grad[PS_LORA_A],
                               .db = s->grad[PS_LORA_B]};
}

static const struct ps_peft_method method = {.view = ps_lora_view, .peft_type = "LORA"};

const struct ps_adapter_ops ps_lora_ops = {
    .name = "lora",
    .tensors = ps_lora_tensors,
    .init = ps_lora_init,
    .saved_bytes = ps_lowrank_saved_bytes,
    .scratch_bytes = ps_lowrank_scratch_bytes,
    .forward = ps_lowrank_forward,
    .save = ps_lowrank_save,
    .backward = ps_lowrank_backward,
    .merge = ps_lowrank_merge,
    .own = &method,
};
