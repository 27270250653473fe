/* (IA)^3: see ia3.h. */
#include "peft/ia3.h"

#include "peft/lowrank.h"

#define ALIGN ((size_t)64)

bool ps_ia3_scales_input(enum ps_role role)
{
    return role == PS_ROLE_DOWN;
}

static bool on_input(const struct ps_adapter_site *s)
{
    return ps_ia3_scales_input(s->role);
}

static int tensors(const struct ps_adapter_site *s,
                   struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX], struct ps_error *err)
{
    (void)err;
    tensor[0] = (struct ps_adapter_tensor){.suffix = "ia3_l", .rank = 2};
    tensor[0].shape[0] = on_input(s) ? 1 : s->out;
    tensor[0].shape[1] = on_input(s) ? s->in : 1;
    return 1;
}

static int init(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                struct ps_error *err)
{
    (void)base;
    (void)err;
    int64_t n = on_input(s) ? s->in : s->out;
    for (int64_t i = 0; i < n; i++)
        s->tensor[0][i] = 1;
    return 0;
}

static size_t saved_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype)
{
    return on_input(s) ? 0 : n_tok * (size_t)s->out * ps_dtype_size(dtype);
}

/* The scaled input and the gradient of it, or the scaled gradient of the output. */
static size_t scratch_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype)
{
    size_t n = n_tok * (size_t)(on_input(s) ? s->in : s->out) * ps_dtype_size(dtype);
    return (n + ALIGN - 1) & ~(ALIGN - 1);
}

static void scale(const struct ps_linear_call *c, int64_t n, void *y, const void *x,
                  const void *residual)
{
    struct ps_scale_columns_args a = {.n_tok = c->n_tok,
                                      .n = (size_t)n,
                                      .dtype = c->cx->dtype,
                                      .y = y,
                                      .x = x,
                                      .scale = c->site->tensor[0],
                                      .residual = residual};
    c->cx->k->scale_columns(c->cx, &a);
}

static void save(const struct ps_linear_call *c)
{
    if (on_input(c->site))
        return;
    struct ps_gemm_args g;
    ps_linear_gemm_forward(c, &g);
    g.residual = NULL;
    g.c = c->saved;
    ps_compute_gemm(c->cx, &g);
}

static void forward(const struct ps_linear_call *c)
{
    if (!on_input(c->site)) {
        save(c);
        scale(c, c->out, c->y, c->saved, c->residual);
        return;
    }
    scale(c, c->in, c->scratch, c->x, NULL);
    struct ps_gemm_args g;
    ps_linear_gemm_forward(c, &g);
    g.a.data = c->scratch;
    ps_compute_gemm(c->cx, &g);
}

static void backward(const struct ps_linear_call *c)
{
    float *dl = c->site->grad[0];
    struct ps_gemm_args g;
    ps_linear_gemm_backward(c, &g);
    if (!on_input(c->site)) {
        c->cx->k->column_dot(c->cx, dl, c->dy, c->saved, NULL, c->n_tok, (size_t)c->out,
                             c->accumulate);
        if (!c->dx)
            return;
        scale(c, c->out, c->scratch, c->dy, NULL);
        g.a.data = c->scratch;
        ps_compute_gemm(c->cx, &g);
        return;
    }
    g.residual = NULL;
    g.c = c->scratch;
    ps_compute_gemm(c->cx, &g);
    c->cx->k->column_dot(c->cx, dl, c->scratch, c->x, NULL, c->n_tok, (size_t)c->in, c->accumulate);
    if (c->dx)
        scale(c, c->in, c->dx, c->scratch, c->dx_add);
}

static int merge(const struct ps_adapter_site *s, int64_t row_begin, int64_t rows, float *w)
{
    const float *l = s->tensor[0];
    size_t in = (size_t)s->in;
    for (size_t i = 0; i < (size_t)rows; i++)
        for (size_t j = 0; j < in; j++)
            w[i * in + j] *= on_input(s) ? l[j] : l[(size_t)row_begin + i];
    return 0;
}

static void merge_bias(const struct ps_adapter_site *s, float *bias)
{
    for (int64_t i = 0; !on_input(s) && i < s->out; i++)
        bias[i] *= s->tensor[0][i];
}

static const struct ps_peft_method method = {.peft_type = "IA3"};

const struct ps_adapter_ops ps_ia3_ops = {
    .name = "ia3",
    .tensors = tensors,
    .init = init,
    .saved_bytes = saved_bytes,
    .scratch_bytes = scratch_bytes,
    .forward = forward,
    .save = save,
    .backward = backward,
    .merge = merge,
    .merge_bias = merge_bias,
    .own = &method,
};
