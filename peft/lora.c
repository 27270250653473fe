/* LoRA: see lora.h.
 *
 * Design: the rank-r product continues the accumulators of the base GEMM (second operand pair), so
 * base and adapter are added in fp32 and rounded once, and the output is written once. With dropout
 * the input of A is masked in scratch, and its gradient is masked before it joins dx. */
#include "peft/lora.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "runtime/kernels/elementwise.h"

enum { TENSOR_A, TENSOR_B };

double ps_lora_scale(const struct ps_adapter_config *cfg)
{
    return cfg->use_rslora ? cfg->alpha / sqrt((double)cfg->r) : cfg->alpha / (double)cfg->r;
}

static int lora_tensors(const struct ps_adapter_config *cfg, int64_t out, int64_t in,
                        struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX],
                        struct ps_error *err)
{
    int64_t least = out < in ? out : in;
    if (cfg->r < 1 || cfg->r > least)
        return ps_error_full(err, PS_EUSAGE, NULL, "lora-r", "use a smaller --lora-r",
                             "rank %d does not fit a linear of %lld x %lld (1..%lld)", cfg->r,
                             (long long)out, (long long)in, (long long)least);
    tensor[TENSOR_A] = (struct ps_adapter_tensor){
        .suffix = "lora_A.weight", .rank = 2, .shape = {cfg->r, in}, .decay = true};
    tensor[TENSOR_B] = (struct ps_adapter_tensor){.suffix = "lora_B.weight",
                                                  .rank = 2,
                                                  .shape = {out, cfg->r},
                                                  .decay = true,
                                                  .rate_group = 1};
    return 2;
}

static void lora_init(const struct ps_adapter_site *s)
{
    struct ps_rng_key key = {
        .seed = s->config->seed, .layer = s->site_idx, .site = PS_RNG_INIT_ADAPTER};
    float bound = (float)(1.0 / sqrt((double)s->in));
    size_t n = (size_t)s->config->r * (size_t)s->in;
    for (size_t i = 0; i < n; i++)
        s->tensor[TENSOR_A][i] = (2.0f * ps_rng_uniform(&key, i) - 1.0f) * bound;
    memset(s->tensor[TENSOR_B], 0, (size_t)s->out * (size_t)s->config->r * sizeof(float));
}

static size_t lora_saved_bytes(const struct ps_adapter_config *cfg, int64_t out, int64_t in,
                               size_t n_tok, enum ps_dtype dtype)
{
    (void)out;
    (void)in;
    return n_tok * (size_t)cfg->r * ps_dtype_size(dtype);
}

/* P (n_tok, r), then with dropout one (n_tok, in) buffer. */
static size_t lora_scratch_bytes(const struct ps_adapter_config *cfg, int64_t out, int64_t in,
                                 size_t n_tok, enum ps_dtype dtype)
{
    (void)out;
    size_t p = (n_tok * (size_t)cfg->r * ps_dtype_size(dtype) + 63) & ~(size_t)63;
    return p + (cfg->dropout > 0 ? n_tok * (size_t)in * ps_dtype_size(dtype) : 0);
}

static void *masked_buffer(const struct ps_linear_call *c)
{
    size_t p = c->n_tok * (size_t)c->site->config->r * ps_dtype_size(c->cx->dtype);
    return (unsigned char *)c->scratch + ((p + 63) & ~(size_t)63);
}

static struct ps_rng_key dropout_key(const struct ps_linear_call *c)
{
    struct ps_rng_key key = c->key;
    key.layer = (uint32_t)c->site->layer * 16u + (uint32_t)c->site->role;
    key.site = PS_RNG_DROPOUT;
    return key;
}

static bool drops(const struct ps_linear_call *c)
{
    return c->training && c->site->config->dropout > 0;
}

/* The input of A: x itself, or its masked copy in scratch. */
static const void *adapter_input(const struct ps_linear_call *c)
{
    if (!drops(c))
        return c->x;
    struct ps_rng_key key = dropout_key(c);
    void *xd = masked_buffer(c);
    c->cx->k->dropout(c->cx, xd, c->x, c->n_tok, (size_t)c->in, (float)c->site->config->dropout,
                      &key, 0);
    return xd;
}

static void lora_save(const struct ps_linear_call *c)
{
    const struct ps_adapter_site *s = c->site;
    size_t r = (size_t)s->config->r;
    size_t in = (size_t)c->in;
    struct ps_gemm_args h = {
        .m = c->n_tok,
        .n = r,
        .k = in,
        .a = {.data = adapter_input(c), .ld = in, .dtype = c->cx->dtype},
        .b = {.data = s->tensor[TENSOR_A], .ld = in, .dtype = PS_DTYPE_F32, .trans = 1},
        .alpha = (float)ps_lora_scale(s->config),
        .c = c->saved,
        .c_ld = r,
        .c_dtype = c->cx->dtype,
        .math = c->cx->math,
    };
    ps_compute_gemm(c->cx, &h);
}

static void lora_forward(const struct ps_linear_call *c)
{
    const struct ps_adapter_site *s = c->site;
    size_t r = (size_t)s->config->r;
    lora_save(c);
    struct ps_gemm_args g;
    ps_linear_gemm_forward(c, &g);
    g.k2 = r;
    g.a2 = (struct ps_gemm_mat){.data = c->saved, .ld = r, .dtype = c->cx->dtype};
    g.b2 = (struct ps_gemm_mat){
        .data = s->tensor[TENSOR_B], .ld = r, .dtype = PS_DTYPE_F32, .trans = 1};
    ps_compute_gemm(c->cx, &g);
}

/* dx = dy W + mask(P A), the masked part added after the base part. */
static void backward_dx(const struct ps_linear_call *c, const void *p)
{
    const struct ps_adapter_site *s = c->site;
    size_t r = (size_t)s->config->r;
    size_t in = (size_t)c->in;
    struct ps_gemm_mat a2 = {.data = p, .ld = r, .dtype = c->cx->dtype};
    struct ps_gemm_mat b2 = {.data = s->tensor[TENSOR_A], .ld = in, .dtype = PS_DTYPE_F32};
    struct ps_gemm_args g;
    ps_linear_gemm_backward(c, &g);
    if (!drops(c)) {
        g.k2 = r;
        g.a2 = a2;
        g.b2 = b2;
        ps_compute_gemm(c->cx, &g);
        return;
    }
    ps_compute_gemm(c->cx, &g);
    void *tmp = masked_buffer(c);
    struct ps_gemm_args pa = {.m = c->n_tok,
                              .n = in,
                              .k = r,
                              .a = a2,
                              .b = b2,
                              .c = tmp,
                              .c_ld = in,
                              .c_dtype = c->cx->dtype,
                              .math = c->cx->math};
    ps_compute_gemm(c->cx, &pa);
    struct ps_rng_key key = dropout_key(c);
    c->cx->k->dropout(c->cx, c->dx, tmp, c->n_tok, in, (float)s->config->dropout, &key, 1);
}

static void lora_backward(const struct ps_linear_call *c)
{
    const struct ps_adapter_site *s = c->site;
    size_t r = (size_t)s->config->r;
    size_t in = (size_t)c->in;
    size_t out = (size_t)c->out;
    enum ps_dtype dtype = c->cx->dtype;
    struct ps_gemm_mat dy = {.data = c->dy, .ld = out, .dtype = dtype};
    struct ps_gemm_mat dy_t = {.data = c->dy, .ld = out, .dtype = dtype, .trans = 1};
    /* dB = dy^T H; the scale is in H */
    struct ps_gemm_args db = {.m = out,
                              .n = r,
                              .k = c->n_tok,
                              .a = dy_t,
                              .b = {.data = c->saved, .ld = r, .dtype = dtype},
                              .c = s->grad[TENSOR_B],
                              .c_ld = r,
                              .c_dtype = PS_DTYPE_F32,
                              .accumulate = c->accumulate,
                              .math = c->cx->math};
    ps_compute_gemm(c->cx, &db);
    /* P = s dy B */
    struct ps_gemm_args p = {.m = c->n_tok,
                             .n = r,
                             .k = out,
                             .a = dy,
                             .b = {.data = s->tensor[TENSOR_B], .ld = r, .dtype = PS_DTYPE_F32},
                             .alpha = (float)ps_lora_scale(s->config),
                             .c = c->scratch,
                             .c_ld = r,
                             .c_dtype = dtype,
                             .math = c->cx->math};
    ps_compute_gemm(c->cx, &p);
    /* dA = P^T drop(x) */
    struct ps_gemm_args da = {.m = r,
                              .n = in,
                              .k = c->n_tok,
                              .a = {.data = c->scratch, .ld = r, .dtype = dtype, .trans = 1},
                              .b = {.data = adapter_input(c), .ld = in, .dtype = dtype},
                              .c = s->grad[TENSOR_A],
                              .c_ld = in,
                              .c_dtype = PS_DTYPE_F32,
                              .accumulate = c->accumulate,
                              .math = c->cx->math};
    ps_compute_gemm(c->cx, &da);
    if (c->dx)
        backward_dx(c, c->scratch);
}

static void lora_merge(const struct ps_adapter_site *s, int64_t row_begin, int64_t rows,
                       float *delta)
{
    size_t r = (size_t)s->config->r;
    size_t in = (size_t)s->in;
    double scale = ps_lora_scale(s->config);
    for (size_t i = 0; i < (size_t)rows; i++) {
        const float *b = s->tensor[TENSOR_B] + ((size_t)row_begin + i) * r;
        for (size_t j = 0; j < in; j++) {
            double sum = 0;
            for (size_t k = 0; k < r; k++)
                sum += (double)b[k] * (double)s->tensor[TENSOR_A][k * in + j];
            delta[i * in + j] = (float)(scale * sum);
        }
    }
}

const struct ps_adapter_ops ps_lora_ops = {
    .name = "lora",
    .tensors = lora_tensors,
    .init = lora_init,
    .saved_bytes = lora_saved_bytes,
    .scratch_bytes = lora_scratch_bytes,
    .forward = lora_forward,
    .save = lora_save,
    .backward = lora_backward,
    .merge = lora_merge,
};
