/* LoRA-FA: see lora_fa.h. */
#include "peft/lora_fa.h"

#include "peft/lora.h"

static int tensors(const struct ps_adapter_site *s,
                   struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX], struct ps_error *err)
{
    int count = ps_lora_tensors(s, tensor, err);
    if (count > 0)
        tensor[PS_LORA_A].frozen = true;
    return count;
}

static const struct ps_peft_method method = {.view = ps_lora_view, .peft_type = "LORA"};

const struct ps_adapter_ops ps_lora_fa_ops = {
    .name = "lora-fa",
    .tensors = tensors,
    .init = ps_lora_init,
    .saved_bytes = ps_lowrank_saved_bytes,
    .scratch_bytes = ps_lowrank_scratch_bytes,
    .forward = ps_lowrank_forward,
    .save = ps_lowrank_save,
    .backward = ps_lowrank_backward,
    .merge = ps_lowrank_merge,
    .adapts_head = true,
    .own = &method,
};
