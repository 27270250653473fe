/* Norm and bias tuning: see vectors.h. */
#include "peft/vectors.h"

#include "peft/lowrank.h"

static bool is_norm(enum ps_role role)
{
    return role == PS_ROLE_ATTN_NORM || role == PS_ROLE_MLP_NORM || role == PS_ROLE_Q_NORM ||
           role == PS_ROLE_K_NORM || role == PS_ROLE_FINAL_NORM;
}

static bool is_bias(enum ps_role role)
{
    return role >= PS_ROLE_Q_BIAS && role <= PS_ROLE_DOWN_BIAS;
}

static const struct ps_peft_method norms = {.peft_type = "LN_TUNING"};
static const struct ps_peft_method biases = {.peft_type = "LORA", .folds = true};

const struct ps_adapter_ops ps_norms_ops = {
    .name = "norms", .vector = is_norm, .vector_suffix = "ln_tuning_layers.weight", .own = &norms};

const struct ps_adapter_ops ps_bias_ops = {
    .name = "bias", .vector = is_bias, .vector_suffix = "base_layer.bias", .own = &biases};
