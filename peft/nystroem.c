/* The Nystroem family: see nystroem.h. */
#include "peft/nystroem.h"

#include <string.h>

#include "peft/decompose.h"
#include "peft/lowrank.h"

/* Singular values of W's first block below this share of the largest are left out of its inverse.
 */
#define RCOND 1e-3

/* nlora keeps A0' = N0 A0 and B0, inttune N0. */
enum { TENSOR_A, TENSOR_N, TENSOR_B, TENSOR_A0, TENSOR_B0, NLORA_COUNT };
enum { SLORA_COUNT = TENSOR_B + 1, TENSOR_N0 = TENSOR_B + 1, INTTUNE_COUNT };

static int tensors(const struct ps_adapter_site *s,
                   struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX], struct ps_error *err)
{
    int ret = ps_lowrank_check(s, err);
    if (ret < 0)
        return ret;
    int32_t r = s->config->r;
    tensor[TENSOR_A] = (struct ps_adapter_tensor){
        .suffix = "lora_A.weight", .rank = 2, .shape = {r, s->in}, .decay = true};
    tensor[TENSOR_N] = (struct ps_adapter_tensor){
        .suffix = "lora_N.weight", .rank = 2, .shape = {r, r}, .decay = true};
    tensor[TENSOR_B] = (struct ps_adapter_tensor){
        .suffix = "lora_B.weight", .rank = 2, .shape = {s->out, r}, .decay = true, .rate_group = 1};
    return SLORA_COUNT;
}

static int tensors_nlora(const struct ps_adapter_site *s,
                         struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX],
                         struct ps_error *err)
{
    int ret = tensors(s, tensor, err);
    if (ret < 0)
        return ret;
    int32_t r = s->config->r;
    tensor[TENSOR_A0] = (struct ps_adapter_tensor){
        .suffix = "lora_A0.weight", .rank = 2, .shape = {r, s->in}, .frozen = true};
    tensor[TENSOR_B0] = (struct ps_adapter_tensor){
        .suffix = "lora_B0.weight", .rank = 2, .shape = {s->out, r}, .frozen = true};
    return NLORA_COUNT;
}

static int tensors_inttune(const struct ps_adapter_site *s,
                           struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX],
                           struct ps_error *err)
{
    int ret = tensors(s, tensor, err);
    if (ret < 0)
        return ret;
    tensor[TENSOR_A].frozen = true;
    tensor[TENSOR_B].frozen = true;
    tensor[TENSOR_N0] = tensor[TENSOR_N];
    tensor[TENSOR_N0].suffix = "lora_N0.weight";
    tensor[TENSOR_N0].frozen = true;
    return INTTUNE_COUNT;
}

static int init_slora(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                      struct ps_error *err)
{
    (void)base;
    (void)err;
    int32_t r = s->config->r;
    ps_lowrank_uniform(s, TENSOR_A, r, s->in, s->tensor[TENSOR_A]);
    ps_lowrank_uniform(s, TENSOR_N, r, r, s->tensor[TENSOR_N]);
    memset(s->tensor[TENSOR_B], 0, (size_t)s->out * (size_t)r * sizeof(float));
    return 0;
}

static int from_weight(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                       struct ps_error *err)
{
    return ps_decompose_nystroem(base, s->out, s->in, s->config->r, RCOND, s->tensor[TENSOR_A],
                                 s->tensor[TENSOR_N], s->tensor[TENSOR_B], err);
}

static int init_nlora(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                      struct ps_error *err)
{
    int ret = from_weight(s, base, err);
    size_t r = (size_t)s->config->r;
    size_t in = (size_t)s->in;
    for (size_t k = 0; ret == 0 && k < r; k++)
        for (size_t j = 0; j < in; j++) {
            double sum = 0;
            for (size_t l = 0; l < r; l++)
                sum += (double)s->tensor[TENSOR_N][k * r + l] *
                       (double)s->tensor[TENSOR_A][l * in + j];
            s->tensor[TENSOR_A0][k * in + j] = (float)sum;
        }
    if (ret == 0)
        memcpy(s->tensor[TENSOR_B0], s->tensor[TENSOR_B], (size_t)s->out * r * sizeof(float));
    return ret;
}

static int init_inttune(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                        struct ps_error *err)
{
    int ret = from_weight(s, base, err);
    size_t r = (size_t)s->config->r;
    if (ret == 0)
        memcpy(s->tensor[TENSOR_N0], s->tensor[TENSOR_N], r * r * sizeof(float));
    return ret;
}

static struct ps_lowrank view(const struct ps_adapter_site *s)
{
    return (struct ps_lowrank){.r = (size_t)s->config->r,
                               .scale = ps_lora_scale(s->config),
                               .a = s->tensor[TENSOR_A],
                               .b = s->tensor[TENSOR_B],
                               .mid = s->tensor[TENSOR_N],
                               .da = s->grad[TENSOR_A],
                               .db = s->grad[TENSOR_B],
                               .dmid = s->grad[TENSOR_N]};
}

static struct ps_lowrank view_nlora(const struct ps_adapter_site *s)
{
    struct ps_lowrank v = view(s);
    v.a0 = s->tensor[TENSOR_A0];
    v.b0 = s->tensor[TENSOR_B0];
    return v;
}

static struct ps_lowrank view_inttune(const struct ps_adapter_site *s)
{
    struct ps_lowrank v = view(s);
    v.mid0 = s->tensor[TENSOR_N0];
    return v;
}

static const struct ps_peft_method slora = {
    .view = view, .has_mid = true, .peft_type = "LORA", .folds = true};
static const struct ps_peft_method nlora = {
    .view = view_nlora, .has_mid = true, .has_pair = true, .peft_type = "LORA", .folds = true};
static const struct ps_peft_method inttune = {
    .view = view_inttune, .has_mid = true, .peft_type = "LORA", .folds = true};

#define OPS(method_name, describe, begin, method)                                                  \
    {                                                                                              \
        .name = (method_name), .tensors = (describe), .init = (begin),                             \
        .needs_base = (begin) != init_slora, .saved_bytes = ps_lowrank_saved_bytes,                \
        .scratch_bytes = ps_lowrank_scratch_bytes, .forward = ps_lowrank_forward,                  \
        .save = ps_lowrank_save, .backward = ps_lowrank_backward, .merge = ps_lowrank_merge,       \
        .own = (method)                                                                            \
    }

const struct ps_adapter_ops ps_nlora_ops = OPS("nlora", tensors_nlora, init_nlora, &nlora);
const struct ps_adapter_ops ps_slora_ops = OPS("slora", tensors, init_slora, &slora);
const struct ps_adapter_ops ps_inttune_ops =
    OPS("inttune", tensors_inttune, init_inttune, &inttune);
