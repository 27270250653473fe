/* DoRA: see dora.h. */
#include "peft/dora.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "peft/lora.h"
#include "runtime/kernels/elementwise.h"

#define ALIGN ((size_t)64)

enum { TENSOR_M = PS_LORA_B + 1 };

static int tensors(const struct ps_adapter_site *s,
                   struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX], struct ps_error *err)
{
    int count = ps_lora_tensors(s, tensor, err);
    if (count < 0)
        return count;
    tensor[TENSOR_M] = (struct ps_adapter_tensor){
        .suffix = "lora_magnitude_vector", .rank = 1, .shape = {s->out, 0}, .rate_group = 1};
    return TENSOR_M + 1;
}

/* What row_norms computes with B = 0. */
static int init(const struct ps_adapter_site *s, const struct ps_adapter_base *base,
                struct ps_error *err)
{
    int ret = ps_lora_init(s, base, err);
    size_t r = (size_t)s->config->r;
    size_t in = (size_t)s->in;
    float *row = calloc(in + 3 * r, sizeof *row);
    if (!row)
        return ps_error_set(err, -ENOMEM, "out of memory");
    for (int64_t i = 0; ret == 0 && i < s->out; i++) {
        ret = base->read(base->arg, i, 1, row, err);
        struct ps_row_norms_args a = {.out = 1,
                                      .in = in,
                                      .r = r,
                                      .w = row,
                                      .w_dtype = PS_DTYPE_F32,
                                      .b = row + in,
                                      .q = row + in + r,
                                      .bg = row + in + 2 * r,
                                      .s = 1,
                                      .n = s->tensor[TENSOR_M] + i};
        if (ret == 0)
            ps_row_norms(NULL, &a);
    }
    free(row);
    return ret;
}

/* Pieces of the saved bytes and of the scratch; NULL bases only measure. */
struct room {
    float *norm, *c; /* (out,) */
    void *h, *u;     /* (n_tok, r), (n_tok, out) */
    /* scratch; Q, BG (out, r) and G (r, r) in forward, P (n_tok, r) and dU (n_tok, out) in backward
     */
    float *q, *g, *bg;
    void *p, *du;
    void *xd; /* with dropout, in both: see masked */
};

static void *take(void *base, size_t *used, size_t bytes)
{
    void *at = base ? (unsigned char *)base + *used : NULL;
    *used += (bytes + ALIGN - 1) & ~(ALIGN - 1);
    return at;
}

static void carve(struct room *m, void *saved, void *scratch, const struct ps_adapter_site *s,
                  size_t n_tok, enum ps_dtype dtype, size_t bytes[2])
{
    size_t e = ps_dtype_size(dtype);
    size_t r = (size_t)s->config->r;
    size_t out = (size_t)s->out;
    size_t forward = 0;
    size_t backward = 0;
    bytes[0] = 0;
    m->norm = take(saved, &bytes[0], out * sizeof(float));
    m->c = take(saved, &bytes[0], out * sizeof(float));
    m->h = take(saved, &bytes[0], n_tok * r * e);
    m->u = take(saved, &bytes[0], n_tok * out * e);
    m->q = take(scratch, &forward, out * r * sizeof(float));
    m->bg = take(scratch, &forward, out * r * sizeof(float));
    m->g = take(scratch, &forward, r * r * sizeof(float));
    m->p = take(scratch, &backward, n_tok * r * e);
    m->du = take(scratch, &backward, n_tok * out * e);
    bytes[1] = forward > backward ? forward : backward;
    if (s->config->dropout > 0)
        m->xd = take(scratch, &bytes[1], n_tok * (size_t)s->in * e);
}

static size_t saved_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype)
{
    struct room m;
    size_t bytes[2];
    carve(&m, NULL, NULL, s, n_tok, dtype, bytes);
    return bytes[0];
}

static size_t scratch_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype)
{
    struct room m;
    size_t bytes[2];
    carve(&m, NULL, NULL, s, n_tok, dtype, bytes);
    return bytes[1];
}

static struct room room_of(const struct ps_linear_call *c)
{
    struct room m;
    size_t bytes[2];
    carve(&m, c->saved, c->scratch, c->site, c->n_tok, c->cx->dtype, bytes);
    return m;
}

static struct ps_gemm_mat f32(const float *data, size_t ld, int trans)
{
    return (struct ps_gemm_mat){.data = data, .ld = ld, .dtype = PS_DTYPE_F32, .trans = trans};
}

static void small_product(const struct ps_linear_call *c, size_t m, size_t n, size_t k,
                          struct ps_gemm_mat a, struct ps_gemm_mat b, float *to)
{
    struct ps_gemm_args g = {.m = m,
                             .n = n,
                             .k = k,
                             .a = a,
                             .b = b,
                             .c = to,
                             .c_ld = n,
                             .c_dtype = PS_DTYPE_F32,
                             .math = PS_GEMM_F32};
    ps_compute_gemm(c->cx, &g);
}

/* n and c, kept for backward. */
static void norms(const struct ps_linear_call *c, const struct room *m)
{
    const struct ps_adapter_site *s = c->site;
    size_t r = (size_t)s->config->r;
    size_t in = (size_t)c->in;
    size_t out = (size_t)c->out;
    const float *a = s->tensor[PS_LORA_A];
    const float *b = s->tensor[PS_LORA_B];
    struct ps_gemm_mat w = {.data = c->weight->data, .ld = in, .dtype = c->weight->dtype};
    small_product(c, out, r, in, w, f32(a, in, 1), m->q);
    small_product(c, r, r, in, f32(a, in, 0), f32(a, in, 1), m->g);
    small_product(c, out, r, r, f32(b, r, 0), f32(m->g, r, 0), m->bg);
    struct ps_row_norms_args args = {.out = out,
                                     .in = in,
                                     .r = r,
                                     .w = c->weight->data,
                                     .w_dtype = c->weight->dtype,
                                     .b = b,
                                     .q = m->q,
                                     .bg = m->bg,
                                     .s = (float)ps_lora_scale(s->config),
                                     .m = s->tensor[TENSOR_M],
                                     .n = m->norm,
                                     .c = m->c};
    c->cx->k->row_norms(c->cx, &args);
}

/* The input as dropout leaves it (how 0) or what dropout takes away (PS_DROPOUT_REST), in scratch;
 * without dropout the input, and nothing. */
static const void *masked(const struct ps_linear_call *c, const struct room *m, int how)
{
    if (!ps_lowrank_drops(c))
        return how ? NULL : c->x;
    struct ps_rng_key key = ps_lowrank_dropout_key(c);
    c->cx->k->dropout(c->cx, m->xd, c->x, c->n_tok, (size_t)c->in, (float)c->site->config->dropout,
                      &key, how);
    return m->xd;
}

static void save(const struct ps_linear_call *c)
{
    const struct ps_adapter_site *s = c->site;
    struct room m = room_of(c);
    size_t r = (size_t)s->config->r;
    size_t in = (size_t)c->in;
    enum ps_dtype dtype = c->cx->dtype;
    norms(c, &m);
    const void *x = masked(c, &m, 0);
    struct ps_gemm_args h = {.m = c->n_tok,
                             .n = r,
                             .k = in,
                             .a = {.data = x, .ld = in, .dtype = dtype},
                             .b = f32(s->tensor[PS_LORA_A], in, 1),
                             .alpha = (float)ps_lora_scale(s->config),
                             .c = m.h,
                             .c_ld = r,
                             .c_dtype = dtype,
                             .math = c->cx->math};
    ps_compute_gemm(c->cx, &h);
    struct ps_gemm_args u;
    ps_linear_gemm_forward(c, &u);
    u.a.data = x;
    u.bias = NULL;
    u.residual = NULL;
    u.c = m.u;
    u.k2 = r;
    u.a2 = (struct ps_gemm_mat){.data = m.h, .ld = r, .dtype = dtype};
    u.b2 = f32(s->tensor[PS_LORA_B], r, 1);
    ps_compute_gemm(c->cx, &u);
}

static void forward(const struct ps_linear_call *c)
{
    save(c);
    struct room m = room_of(c);
    struct ps_scale_columns_args y = {.n_tok = c->n_tok,
                                      .n = (size_t)c->out,
                                      .dtype = c->cx->dtype,
                                      .y = c->y,
                                      .x = m.u,
                                      .scale = m.c,
                                      .bias = c->bias ? c->bias->data : NULL,
                                      .bias_dtype = c->bias ? c->bias->dtype : PS_DTYPE_F32,
                                      .residual = c->residual};
    c->cx->k->scale_columns(c->cx, &y);
    const void *rest = masked(c, &m, PS_DROPOUT_REST);
    if (!rest)
        return;
    struct ps_gemm_args g; /* what dropout took from the base comes back unscaled */
    ps_linear_gemm_forward(c, &g);
    g.a.data = rest;
    g.bias = NULL;
    g.residual = c->y;
    ps_compute_gemm(c->cx, &g);
}

/* A product of this pass; the adapter's matrices are fp32. */
static void gradient(const struct ps_linear_call *c, size_t m, size_t n, size_t k,
                     struct ps_gemm_mat a, struct ps_gemm_mat b, float alpha, void *to,
                     enum ps_dtype to_dtype, int accumulate)
{
    struct ps_gemm_args g = {.m = m,
                             .n = n,
                             .k = k,
                             .a = a,
                             .b = b,
                             .alpha = alpha,
                             .c = to,
                             .c_ld = n,
                             .c_dtype = to_dtype,
                             .accumulate = accumulate,
                             .math = c->cx->math};
    ps_compute_gemm(c->cx, &g);
}

/* dx = dy W + mask(dU W + P A - dy W) + dx_add */
static void backward_masked(const struct ps_linear_call *c, const struct room *m,
                            struct ps_gemm_args *full)
{
    const struct ps_compute *cx = c->cx;
    struct ps_rng_key key = ps_lowrank_dropout_key(c);
    size_t in = (size_t)c->in;
    float p = (float)c->site->config->dropout;
    struct ps_gemm_args base;
    ps_linear_gemm_backward(c, &base);
    base.residual = full->residual = NULL;
    base.c = full->c = m->xd;
    if (c->dx_add && c->dx_add != c->dx)
        cx->k->dropout(cx, c->dx, c->dx_add, c->n_tok, in, 0, &key, 0); /* a copy */
    ps_compute_gemm(cx, &base);
    cx->k->dropout(cx, c->dx, m->xd, c->n_tok, in, p, &key,
                   PS_DROPOUT_REST | (c->dx_add ? PS_DROPOUT_ADD : 0));
    ps_compute_gemm(cx, full);
    cx->k->dropout(cx, c->dx, m->xd, c->n_tok, in, p, &key, PS_DROPOUT_ADD);
}

static void backward(const struct ps_linear_call *c)
{
    const struct ps_adapter_site *s = c->site;
    struct room m = room_of(c);
    size_t r = (size_t)s->config->r;
    size_t in = (size_t)c->in;
    size_t out = (size_t)c->out;
    size_t n = c->n_tok;
    enum ps_dtype dtype = c->cx->dtype;
    c->cx->k->column_dot(c->cx, s->grad[TENSOR_M], c->dy, m.u, m.norm, n, out, c->accumulate);
    struct ps_scale_columns_args scaled = {
        .n_tok = n, .n = out, .dtype = dtype, .y = m.du, .x = c->dy, .scale = m.c};
    c->cx->k->scale_columns(c->cx, &scaled);
    struct ps_gemm_mat du = {.data = m.du, .ld = out, .dtype = dtype};
    struct ps_gemm_mat du_t = du;
    du_t.trans = 1;
    struct ps_gemm_mat h = {.data = m.h, .ld = r, .dtype = dtype};
    struct ps_gemm_mat p = {.data = m.p, .ld = r, .dtype = dtype};
    struct ps_gemm_mat p_t = p;
    p_t.trans = 1;
    gradient(c, out, r, n, du_t, h, 1, s->grad[PS_LORA_B], PS_DTYPE_F32, c->accumulate);
    gradient(c, n, r, out, du, f32(s->tensor[PS_LORA_B], r, 0), (float)ps_lora_scale(s->config),
             m.p, dtype, 0);
    const void *x = masked(c, &m, 0);
    gradient(c, r, in, n, p_t, (struct ps_gemm_mat){.data = x, .ld = in, .dtype = dtype}, 1,
             s->grad[PS_LORA_A], PS_DTYPE_F32, c->accumulate);
    if (!c->dx)
        return;
    struct ps_gemm_args g;
    ps_linear_gemm_backward(c, &g);
    g.a = du;
    g.k2 = r;
    g.a2 = p;
    g.b2 = f32(s->tensor[PS_LORA_A], in, 0);
    if (ps_lowrank_drops(c))
        backward_masked(c, &m, &g);
    else
        ps_compute_gemm(c->cx, &g);
}

static int merge(const struct ps_adapter_site *s, int64_t row_begin, int64_t rows, float *w)
{
    int ret = ps_lowrank_merge(s, row_begin, rows, w);
    size_t in = (size_t)s->in;
    for (size_t i = 0; ret == 0 && i < (size_t)rows; i++) {
        double square = 0;
        for (size_t j = 0; j < in; j++)
            square += (double)w[i * in + j] * (double)w[i * in + j];
        double c = (double)s->tensor[TENSOR_M][(size_t)row_begin + i] / sqrt(square);
        for (size_t j = 0; j < in && square > 0; j++)
            w[i * in + j] = (float)(c * (double)w[i * in + j]);
    }
    return ret;
}

static const struct ps_peft_method method = {.view = ps_lora_view, .peft_type = "LORA"};

const struct ps_adapter_ops ps_dora_ops = {
    .name = "dora",
    .tensors = tensors,
    .init = init,
    .needs_base = true,
    .saved_bytes = saved_bytes,
    .scratch_bytes = scratch_bytes,
    .forward = forward,
    .save = save,
    .backward = backward,
    .merge = merge,
    .own = &method,
};
