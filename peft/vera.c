/* VeRA: see vera.h. */
#include "peft/vera.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "peft/lowrank.h"
#include "runtime/kernels/elementwise.h"

#define ALIGN ((size_t)64)

enum { TENSOR_D, TENSOR_B, TENSOR_SHARED_A, TENSOR_SHARED_B, TENSOR_COUNT };

static int tensors(const struct ps_adapter_site *s,
                   struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX], struct ps_error *err)
{
    const struct ps_adapter_config *c = s->config;
    if (c->r < 1)
        return ps_error_full(err, PS_EUSAGE, NULL, "lora-r", "use a larger --lora-r",
                             "rank %d is too small", c->r);
    tensor[TENSOR_D] = (struct ps_adapter_tensor){
        .suffix = "vera_lambda_d", .rank = 1, .shape = {c->r, 0}, .rate_group = 1};
    tensor[TENSOR_B] = (struct ps_adapter_tensor){
        .suffix = "vera_lambda_b", .rank = 1, .shape = {s->out, 0}, .rate_group = 1};
    tensor[TENSOR_SHARED_A] = (struct ps_adapter_tensor){.suffix = "base_model.vera_A",
                                                         .rank = 2,
                                                         .shape = {c->r, c->in_max},
                                                         .frozen = true,
                                                         .shared = true};
    tensor[TENSOR_SHARED_B] = (struct ps_adapter_tensor){.suffix = "base_model.vera_B",
                                                         .rank = 2,
                                                         .shape = {c->out_max, c->r},
                                                         .frozen = true,
                                                         .shared = true};
    return TENSOR_COUNT;
}

/* Kaiming uniform: +-sqrt(6 / fan_in). */
static void draw(const struct ps_adapter_site *s, int tensor, int64_t rows, int64_t fan_in)
{
    struct ps_rng_key key = {
        .seed = s->config->seed, .step = (uint64_t)tensor, .site = PS_RNG_INIT_ADAPTER};
    float bound = (float)sqrt(6.0 / (double)fan_in);
    for (int64_t i = 0; i < rows * fan_in; i++)
        s->tensor[tensor][i] = (2.0f * ps_rng_uniform(&key, (uint64_t)i) - 1.0f) * bound;
}

static int init(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                struct ps_error *err)
{
    (void)base;
    (void)err;
    const struct ps_adapter_config *c = s->config;
    for (int32_t i = 0; i < c->r; i++)
        s->tensor[TENSOR_D][i] = 0.1f;
    memset(s->tensor[TENSOR_B], 0, (size_t)s->out * sizeof(float));
    if (s->first) {
        draw(s, TENSOR_SHARED_A, c->r, c->in_max);
        draw(s, TENSOR_SHARED_B, c->out_max, c->r);
    }
    return 0;
}

static size_t saved_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype)
{
    return n_tok * (size_t)s->config->r * ps_dtype_size(dtype);
}

/* M = diag(b) B diag(d) and dy^T H, both (out, r) fp32, and P = dy M (n_tok, r). */
struct room {
    float *m, *g;
    void *p;
    void *xd; /* with dropout: the masked input, then its gradient, (n_tok, in) */
};

static size_t carve(struct room *x, unsigned char *base, const struct ps_adapter_site *s,
                    size_t n_tok, enum ps_dtype dtype)
{
    size_t r = (size_t)s->config->r;
    size_t matrix = ((size_t)s->out * r * sizeof(float) + ALIGN - 1) & ~(ALIGN - 1);
    size_t p = (n_tok * r * ps_dtype_size(dtype) + ALIGN - 1) & ~(ALIGN - 1);
    size_t xd = s->config->dropout > 0 ? n_tok * (size_t)s->in * ps_dtype_size(dtype) : 0;
    if (base) {
        x->m = (float *)(void *)base;
        x->g = (float *)(void *)(base + matrix);
        x->p = base + 2 * matrix;
        x->xd = base + 2 * matrix + p;
    }
    return 2 * matrix + p + xd;
}

static size_t scratch_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype)
{
    struct room x;
    return carve(&x, NULL, s, n_tok, dtype);
}

static struct ps_gemm_mat f32(const float *data, size_t ld, int trans)
{
    return (struct ps_gemm_mat){.data = data, .ld = ld, .dtype = PS_DTYPE_F32, .trans = trans};
}

static void save(const struct ps_linear_call *c)
{
    const struct ps_adapter_site *s = c->site;
    size_t r = (size_t)s->config->r;
    const void *input = c->x;
    if (ps_lowrank_drops(c)) {
        struct room x;
        carve(&x, c->scratch, s, c->n_tok, c->cx->dtype);
        struct ps_rng_key key = ps_lowrank_dropout_key(c);
        c->cx->k->dropout(c->cx, x.xd, c->x, c->n_tok, (size_t)c->in, (float)s->config->dropout,
                          &key, 0);
        input = x.xd;
    }
    struct ps_gemm_args h = {.m = c->n_tok,
                             .n = r,
                             .k = (size_t)c->in,
                             .a = {.data = input, .ld = (size_t)c->in, .dtype = c->cx->dtype},
                             .b = f32(s->tensor[TENSOR_SHARED_A], (size_t)s->config->in_max, 1),
                             .c = c->saved,
                             .c_ld = r,
                             .c_dtype = c->cx->dtype,
                             .math = c->cx->math};
    ps_compute_gemm(c->cx, &h);
}

static struct room with_factor(const struct ps_linear_call *c)
{
    const struct ps_adapter_site *s = c->site;
    struct room x = {0};
    carve(&x, c->scratch, s, c->n_tok, c->cx->dtype);
    c->cx->k->scale_matrix(c->cx, x.m, s->tensor[TENSOR_SHARED_B], s->tensor[TENSOR_B],
                           s->tensor[TENSOR_D], (size_t)s->out, (size_t)s->config->r);
    return x;
}

static void forward(const struct ps_linear_call *c)
{
    save(c);
    struct room x = with_factor(c);
    size_t r = (size_t)c->site->config->r;
    struct ps_gemm_args g;
    ps_linear_gemm_forward(c, &g);
    g.k2 = r;
    g.a2 = (struct ps_gemm_mat){.data = c->saved, .ld = r, .dtype = c->cx->dtype};
    g.b2 = f32(x.m, r, 1);
    ps_compute_gemm(c->cx, &g);
}

static void backward(const struct ps_linear_call *c)
{
    const struct ps_adapter_site *s = c->site;
    size_t r = (size_t)s->config->r;
    size_t out = (size_t)c->out;
    enum ps_dtype dtype = c->cx->dtype;
    struct room x = with_factor(c);
    struct ps_gemm_args dyh = {.m = out,
                               .n = r,
                               .k = c->n_tok,
                               .a = {.data = c->dy, .ld = out, .dtype = dtype, .trans = 1},
                               .b = {.data = c->saved, .ld = r, .dtype = dtype},
                               .c = x.g,
                               .c_ld = r,
                               .c_dtype = PS_DTYPE_F32,
                               .math = c->cx->math};
    ps_compute_gemm(c->cx, &dyh);
    struct ps_matrix_dots_args dots = {.rows = out,
                                       .cols = r,
                                       .g = x.g,
                                       .b = s->tensor[TENSOR_SHARED_B],
                                       .row = s->tensor[TENSOR_B],
                                       .col = s->tensor[TENSOR_D],
                                       .row_out = s->grad[TENSOR_B],
                                       .col_out = s->grad[TENSOR_D],
                                       .accumulate = c->accumulate};
    c->cx->k->matrix_dots(c->cx, &dots);
    if (!c->dx)
        return;
    struct ps_gemm_args p = {.m = c->n_tok,
                             .n = r,
                             .k = out,
                             .a = {.data = c->dy, .ld = out, .dtype = dtype},
                             .b = f32(x.m, r, 0),
                             .c = x.p,
                             .c_ld = r,
                             .c_dtype = dtype,
                             .math = c->cx->math};
    ps_compute_gemm(c->cx, &p);
    struct ps_gemm_args g;
    struct ps_gemm_mat left = {.data = x.p, .ld = r, .dtype = dtype};
    struct ps_gemm_mat a = f32(s->tensor[TENSOR_SHARED_A], (size_t)s->config->in_max, 0);
    ps_linear_gemm_backward(c, &g);
    if (!ps_lowrank_drops(c)) {
        g.k2 = r;
        g.a2 = left;
        g.b2 = a;
        ps_compute_gemm(c->cx, &g);
        return;
    }
    ps_compute_gemm(c->cx, &g);
    g.residual = NULL;
    g.k = r;
    g.a = left;
    g.b = a;
    g.c = x.xd;
    ps_compute_gemm(c->cx, &g);
    struct ps_rng_key key = ps_lowrank_dropout_key(c);
    c->cx->k->dropout(c->cx, c->dx, x.xd, c->n_tok, (size_t)c->in, (float)s->config->dropout, &key,
                      PS_DROPOUT_ADD);
}

static int merge(const struct ps_adapter_site *s, int64_t row_begin, int64_t rows, float *w)
{
    size_t r = (size_t)s->config->r;
    size_t in = (size_t)s->in;
    size_t ld = (size_t)s->config->in_max;
    double *sum = malloc(in * sizeof *sum);
    if (!sum)
        return -ENOMEM;
    for (size_t i = 0; i < (size_t)rows; i++) {
        size_t row = (size_t)row_begin + i;
        memset(sum, 0, in * sizeof *sum);
        for (size_t k = 0; k < r; k++) {
            double left =
                (double)s->tensor[TENSOR_SHARED_B][row * r + k] * (double)s->tensor[TENSOR_D][k];
            const float *a = s->tensor[TENSOR_SHARED_A] + k * ld;
            for (size_t j = 0; j < in; j++)
                sum[j] += left * (double)a[j];
        }
        for (size_t j = 0; j < in; j++)
            w[i * in + j] += (float)((double)s->tensor[TENSOR_B][row] * sum[j]);
    }
    free(sum);
    return 0;
}

static const struct ps_peft_method method = {.peft_type = "VERA"};

const struct ps_adapter_ops ps_vera_ops = {
    .name = "vera",
    .tensors = tensors,
    .init = init,
    .saved_bytes = saved_bytes,
    .scratch_bytes = scratch_bytes,
    .forward = forward,
    .save = save,
    .backward = backward,
    .merge = merge,
    .own = &method,
};
