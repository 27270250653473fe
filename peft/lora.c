/* LoRA: see lora.h; the arithmetic is in lowrank.c. */
#include "peft/lora.h"

#include <string.h>

static int embed_tensors(const struct ps_adapter_site *s,
                         struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX])
{
    int32_t r = s->config->r;
    tensor[PS_LORA_A] = (struct ps_adapter_tensor){.suffix = "lora_embedding_A",
                                                   .rank = 2,
                                                   .shape = {s->in, r},
                                                   .decay = true,
                                                   .rate_group = 2,
                                                   .transposed = true};
    tensor[PS_LORA_B] = (struct ps_adapter_tensor){.suffix = "lora_embedding_B",
                                                   .rank = 2,
                                                   .shape = {s->out, r},
                                                   .decay = true,
                                                   .rate_group = 2};
    return 2;
}

int ps_lora_tensors(const struct ps_adapter_site *s,
                    struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX], struct ps_error *err)
{
    int ret = ps_lowrank_check(s, err);
    if (ret < 0)
        return ret;
    if (s->role == PS_ROLE_EMBED)
        return embed_tensors(s, tensor);
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
    size_t b = (size_t)s->out * (size_t)s->config->r;
    if (s->role == PS_ROLE_EMBED) { /* as PEFT: A is zero, B standard normal */
        struct ps_rng_key key = {
            .seed = s->config->seed, .layer = s->site_idx, .site = PS_RNG_INIT_ADAPTER};
        memset(s->tensor[PS_LORA_A], 0, (size_t)s->in * (size_t)s->config->r * sizeof(float));
        for (size_t i = 0; i < b; i++)
            s->tensor[PS_LORA_B][i] = (float)ps_rng_normal(&key, i);
        return 0;
    }
    ps_lowrank_uniform(s, 0, s->config->r, s->in, s->tensor[PS_LORA_A]);
    memset(s->tensor[PS_LORA_B], 0, b * sizeof(float));
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

/* Scratch of an embedding: H = A[ids], or its gradient, (n_tok, r). */
static size_t scratch_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype)
{
    return s->role == PS_ROLE_EMBED ? n_tok * (size_t)s->config->r * ps_dtype_size(dtype)
                                    : ps_lowrank_scratch_bytes(s, n_tok, dtype);
}

static struct ps_gemm_mat mat(const void *data, size_t ld, enum ps_dtype dtype, int trans)
{
    return (struct ps_gemm_mat){.data = data, .ld = ld, .dtype = dtype, .trans = trans};
}

static void look_up(const struct ps_embed_call *c)
{
    const struct ps_adapter_site *s = c->site;
    c->cx->k->embedding_forward(c->cx, s->tensor[PS_LORA_A], PS_DTYPE_F32, (size_t)s->config->r, 0,
                                s->in, c->ids, c->n_tok, c->scratch);
}

/* x += s A[ids] B^T */
static void embed_forward(const struct ps_embed_call *c)
{
    const struct ps_adapter_site *s = c->site;
    size_t r = (size_t)s->config->r;
    size_t hidden = (size_t)s->out;
    look_up(c);
    struct ps_gemm_args g = {.m = c->n_tok,
                             .n = hidden,
                             .k = r,
                             .a = mat(c->scratch, r, c->cx->dtype, 0),
                             .b = mat(s->tensor[PS_LORA_B], r, PS_DTYPE_F32, 1),
                             .alpha = (float)ps_lora_scale(s->config),
                             .residual = c->x,
                             .residual_ld = hidden,
                             .residual_dtype = c->cx->dtype,
                             .c = c->x,
                             .c_ld = hidden,
                             .c_dtype = c->cx->dtype,
                             .math = c->cx->math};
    ps_compute_gemm(c->cx, &g);
}

/* dB = s dx^T A[ids]; dA[ids] += s dx B in ascending order of the tokens */
static void embed_backward(const struct ps_embed_call *c)
{
    const struct ps_adapter_site *s = c->site;
    size_t r = (size_t)s->config->r;
    size_t hidden = (size_t)s->out;
    enum ps_dtype dtype = c->cx->dtype;
    look_up(c);
    struct ps_gemm_args db = {.m = hidden,
                              .n = r,
                              .k = c->n_tok,
                              .a = mat(c->dx, hidden, dtype, 1),
                              .b = mat(c->scratch, r, dtype, 0),
                              .alpha = (float)ps_lora_scale(s->config),
                              .c = s->grad[PS_LORA_B],
                              .c_ld = r,
                              .c_dtype = PS_DTYPE_F32,
                              .accumulate = c->accumulate,
                              .math = c->cx->math};
    ps_compute_gemm(c->cx, &db);
    struct ps_gemm_args dh = {.m = c->n_tok,
                              .n = r,
                              .k = hidden,
                              .a = mat(c->dx, hidden, dtype, 0),
                              .b = mat(s->tensor[PS_LORA_B], r, PS_DTYPE_F32, 0),
                              .alpha = (float)ps_lora_scale(s->config),
                              .c = c->scratch,
                              .c_ld = r,
                              .c_dtype = dtype,
                              .math = c->cx->math};
    ps_compute_gemm(c->cx, &dh);
    if (!c->accumulate)
        c->cx->k->zero(c->cx, s->grad[PS_LORA_A], s->n[PS_LORA_A] * sizeof(float));
    c->cx->k->embedding_backward(c->cx, s->grad[PS_LORA_A], r, c->ids, c->n_tok, c->scratch);
}

/* Rows of the embedding: += s A[row] B^T. */
static int merge(const struct ps_adapter_site *s, int64_t row_begin, int64_t rows, float *w)
{
    if (s->role != PS_ROLE_EMBED)
        return ps_lowrank_merge(s, row_begin, rows, w);
    size_t r = (size_t)s->config->r;
    size_t hidden = (size_t)s->out;
    for (size_t i = 0; i < (size_t)rows; i++) {
        const float *a = s->tensor[PS_LORA_A] + ((size_t)row_begin + i) * r;
        for (size_t j = 0; j < hidden; j++) {
            const float *b = s->tensor[PS_LORA_B] + j * r;
            double sum = 0;
            for (size_t k = 0; k < r; k++)
                sum += (double)a[k] * (double)b[k];
            w[i * hidden + j] += (float)(ps_lora_scale(s->config) * sum);
        }
    }
    return 0;
}

static const struct ps_peft_method method = {.view = ps_lora_view, .peft_type = "LORA"};

const struct ps_adapter_ops ps_lora_ops = {
    .name = "lora",
    .tensors = ps_lora_tensors,
    .init = ps_lora_init,
    .saved_bytes = ps_lowrank_saved_bytes,
    .scratch_bytes = scratch_bytes,
    .forward = ps_lowrank_forward,
    .save = ps_lowrank_save,
    .backward = ps_lowrank_backward,
    .merge = merge,
    .adapts_head = true,
    .embed_forward = embed_forward,
    .embed_backward = embed_backward,
    .own = &method,
};
