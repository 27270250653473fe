/* The low-rank family: see lowrank.h.
 *
 * Design: without a pair the rank-r product continues the accumulators of the base GEMM (second
 * operand pair), so base and adapter are added in fp32 and rounded once, and the output is written
 * once. With a pair the difference is made in an fp32 buffer that the base GEMM adds: two equal
 * products cancel to exact zeros. With dropout the input of A is masked in scratch, and its
 * gradient is masked before it joins dx. */
#include "peft/lowrank.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN ((size_t)64)

static size_t align_up(size_t n)
{
    return (n + ALIGN - 1) & ~(ALIGN - 1);
}

double ps_lora_scale(const struct ps_adapter_config *cfg)
{
    return cfg->use_rslora ? cfg->alpha / sqrt((double)cfg->r) : cfg->alpha / (double)cfg->r;
}

int ps_lowrank_check(const struct ps_adapter_site *s, struct ps_error *err)
{
    int32_t r = s->config->r;
    int64_t least = s->out < s->in ? s->out : s->in;
    if (r >= 1 && r <= least)
        return 0;
    return ps_error_full(err, PS_EUSAGE, NULL, "lora-r", "use a smaller --lora-r",
                         "rank %d does not fit a linear of %lld x %lld (1..%lld)", r,
                         (long long)s->out, (long long)s->in, (long long)least);
}

static enum ps_dtype kept_dtype(bool has_pair, enum ps_dtype dtype)
{
    return has_pair ? PS_DTYPE_F32 : dtype;
}

const struct ps_peft_method *ps_peft_method_of(const struct ps_adapter_ops *ops)
{
    return ops->own;
}

static struct ps_lowrank view_of(const struct ps_adapter_site *s)
{
    return ps_peft_method_of(s->ops)->view(s);
}

size_t ps_lowrank_saved_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype)
{
    bool has_pair = ps_peft_method_of(s->ops)->has_pair;
    return n_tok * (size_t)s->config->r * ps_dtype_size(kept_dtype(has_pair, dtype));
}

/* Pieces of the scratch; a NULL base only measures. */
struct room {
    void *p;    /* (n_tok, r): s dy B, in the dtype of H */
    float *mid; /* (n_tok, r): H M^T, then its gradient */
    float *p0;  /* (n_tok, r): s x A0^T, then s dy B0 */
    float *sum; /* (n_tok, max(out, in)): what the pair leaves */
    void *xd;   /* (n_tok, in): masked input or gradient */
};

static void *take(unsigned char *base, size_t *used, size_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += align_up(bytes);
    return at;
}

static size_t carve(struct room *m, unsigned char *base, const struct ps_adapter_site *s,
                    size_t n_tok, enum ps_dtype dtype)
{
    bool has_mid = ps_peft_method_of(s->ops)->has_mid;
    bool has_pair = ps_peft_method_of(s->ops)->has_pair;
    size_t used = 0;
    size_t low = n_tok * (size_t)s->config->r;
    size_t wide = (size_t)(s->out > s->in ? s->out : s->in);
    memset(m, 0, sizeof *m);
    m->p = take(base, &used, low * ps_dtype_size(kept_dtype(has_pair, dtype)));
    if (has_mid)
        m->mid = take(base, &used, low * sizeof(float));
    if (has_pair) {
        m->p0 = take(base, &used, low * sizeof(float));
        m->sum = take(base, &used, n_tok * wide * sizeof(float));
    }
    if (s->config->dropout > 0)
        m->xd = take(base, &used, n_tok * (size_t)s->in * ps_dtype_size(dtype));
    return used;
}

size_t ps_lowrank_scratch_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype)
{
    struct room measure;
    return carve(&measure, NULL, s, n_tok, dtype);
}

static struct room room_of(const struct ps_linear_call *c)
{
    struct room m;
    carve(&m, c->scratch, c->site, c->n_tok, c->cx->dtype);
    return m;
}

struct ps_rng_key ps_lowrank_dropout_key(const struct ps_linear_call *c)
{
    struct ps_rng_key key = c->key;
    key.layer = c->logits ? UINT32_MAX - c->key.layer
                          : (uint32_t)c->site->layer * 16u + (uint32_t)c->site->role;
    key.site = PS_RNG_DROPOUT;
    return key;
}

bool ps_lowrank_drops(const struct ps_linear_call *c)
{
    return c->training && c->site->config->dropout > 0;
}

/* The input of A: x itself, or its masked copy in scratch. */
static const void *adapter_input(const struct ps_linear_call *c, const struct room *m)
{
    if (!ps_lowrank_drops(c))
        return c->x;
    struct ps_rng_key key = ps_lowrank_dropout_key(c);
    c->cx->k->dropout(c->cx, m->xd, c->x, c->n_tok, (size_t)c->in, (float)c->site->config->dropout,
                      &key, 0);
    return m->xd;
}

static enum ps_gemm_math math_of(const struct ps_linear_call *c, const struct ps_lowrank *v)
{
    return v->a0 ? PS_GEMM_F32 : c->cx->math;
}

/* c (m, n) = alpha * a op(b), fp32 b. */
static void product(const struct ps_linear_call *c, size_t m, size_t n, size_t k,
                    struct ps_gemm_mat a, struct ps_gemm_mat b, double alpha, void *to,
                    enum ps_dtype to_dtype, enum ps_gemm_math math, int accumulate)
{
    struct ps_gemm_args g = {.m = m,
                             .n = n,
                             .k = k,
                             .a = a,
                             .b = b,
                             .alpha = (float)alpha,
                             .c = to,
                             .c_ld = n,
                             .c_dtype = to_dtype,
                             .accumulate = accumulate,
                             .math = math};
    ps_compute_gemm(c->cx, &g);
}

static struct ps_gemm_mat mat(const void *data, size_t ld, enum ps_dtype dtype, int trans)
{
    return (struct ps_gemm_mat){.data = data, .ld = ld, .dtype = dtype, .trans = trans};
}

static struct ps_gemm_mat f32(const float *data, size_t ld, int trans)
{
    return mat(data, ld, PS_DTYPE_F32, trans);
}

static void keep(const struct ps_linear_call *c, const struct ps_lowrank *v)
{
    struct room m = room_of(c);
    size_t in = (size_t)c->in;
    product(c, c->n_tok, v->r, in, mat(adapter_input(c, &m), in, c->cx->dtype, 0), f32(v->a, in, 1),
            v->scale, c->saved, kept_dtype(v->a0, c->cx->dtype), math_of(c, v), 0);
}

void ps_lowrank_save(const struct ps_linear_call *c)
{
    struct ps_lowrank v = view_of(c->site);
    keep(c, &v);
}

/* The left factor of B: H, or H M^T in scratch. */
static struct ps_gemm_mat left_of(const struct ps_linear_call *c, const struct ps_lowrank *v,
                                  const struct room *m)
{
    struct ps_gemm_mat h = mat(c->saved, v->r, kept_dtype(v->a0, c->cx->dtype), 0);
    if (!v->mid)
        return h;
    product(c, c->n_tok, v->r, v->r, h, f32(v->mid, v->r, 1), 1, m->mid, PS_DTYPE_F32, PS_GEMM_F32,
            0);
    if (v->mid0)
        product(c, c->n_tok, v->r, v->r, h, f32(v->mid0, v->r, 1), -1, m->mid, PS_DTYPE_F32,
                PS_GEMM_F32, 1);
    return f32(m->mid, v->r, 0);
}

void ps_lowrank_forward(const struct ps_linear_call *c)
{
    struct ps_lowrank view = view_of(c->site);
    const struct ps_lowrank *v = &view;
    struct room m = room_of(c);
    size_t in = (size_t)c->in;
    size_t out = (size_t)c->out;
    keep(c, v);
    struct ps_gemm_mat left = left_of(c, v, &m);
    struct ps_gemm_args g;
    ps_linear_gemm_forward(c, &g);
    if (!v->a0) {
        g.k2 = v->r;
        g.a2 = left;
        g.b2 = f32(v->b, v->r, 1);
        ps_compute_gemm(c->cx, &g);
        return;
    }
    struct ps_gemm_args sum = {.m = c->n_tok,
                               .n = out,
                               .k = v->r,
                               .a = left,
                               .b = f32(v->b, v->r, 1),
                               .residual = g.residual,
                               .residual_ld = g.residual_ld,
                               .residual_dtype = g.residual_dtype,
                               .c = m.sum,
                               .c_ld = out,
                               .c_dtype = PS_DTYPE_F32,
                               .math = PS_GEMM_F32};
    ps_compute_gemm(c->cx, &sum);
    product(c, c->n_tok, v->r, in, mat(c->x, in, c->cx->dtype, 0), f32(v->a0, in, 1), v->scale,
            m.p0, PS_DTYPE_F32, PS_GEMM_F32, 0);
    product(c, c->n_tok, out, v->r, f32(m.p0, v->r, 0), f32(v->b0, v->r, 1), -1, m.sum,
            PS_DTYPE_F32, PS_GEMM_F32, 1);
    g.residual = m.sum;
    g.residual_ld = out;
    g.residual_dtype = PS_DTYPE_F32;
    ps_compute_gemm(c->cx, &g);
}

/* dx += mask(P A), through scratch */
static void add_masked(const struct ps_linear_call *c, const struct ps_lowrank *v,
                       const struct room *m, struct ps_gemm_mat p)
{
    size_t in = (size_t)c->in;
    product(c, c->n_tok, in, v->r, p, f32(v->a, in, 0), 1, m->xd, c->cx->dtype, math_of(c, v), 0);
    struct ps_rng_key key = ps_lowrank_dropout_key(c);
    c->cx->k->dropout(c->cx, c->dx, m->xd, c->n_tok, in, (float)c->site->config->dropout, &key, 1);
}

/* dx = dy W + mask(P A) - s dy B0 A0 */
static void backward_dx(const struct ps_linear_call *c, const struct ps_lowrank *v,
                        const struct room *m, struct ps_gemm_mat p)
{
    size_t in = (size_t)c->in;
    size_t out = (size_t)c->out;
    bool drops = ps_lowrank_drops(c);
    struct ps_gemm_args g;
    ps_linear_gemm_backward(c, &g);
    if (!v->a0 && !drops) {
        g.k2 = v->r;
        g.a2 = p;
        g.b2 = f32(v->a, in, 0);
    }
    if (v->a0) {
        product(c, c->n_tok, v->r, out, mat(c->dy, out, ps_linear_out_dtype(c), 0),
                f32(v->b0, v->r, 0), v->scale, m->p0, PS_DTYPE_F32, PS_GEMM_F32, 0);
        struct ps_gemm_args sum = {.m = c->n_tok,
                                   .n = in,
                                   .k = v->r,
                                   .a = f32(m->p0, v->r, 0),
                                   .b = f32(v->a0, in, 0),
                                   .alpha = -1,
                                   .residual = g.residual,
                                   .residual_ld = g.residual_ld,
                                   .residual_dtype = g.residual_dtype,
                                   .c = m->sum,
                                   .c_ld = in,
                                   .c_dtype = PS_DTYPE_F32,
                                   .math = PS_GEMM_F32};
        ps_compute_gemm(c->cx, &sum);
        if (!drops)
            product(c, c->n_tok, in, v->r, p, f32(v->a, in, 0), 1, m->sum, PS_DTYPE_F32,
                    PS_GEMM_F32, 1);
        g.residual = m->sum;
        g.residual_ld = in;
        g.residual_dtype = PS_DTYPE_F32;
    }
    ps_compute_gemm(c->cx, &g);
    if (drops)
        add_masked(c, v, m, p);
}

/* dM = (dy B)^T H, and in scratch the gradient of H times s. */
static struct ps_gemm_mat backward_mid(const struct ps_linear_call *c, const struct ps_lowrank *v,
                                       const struct room *m)
{
    enum ps_dtype kept = kept_dtype(v->a0, c->cx->dtype);
    if (v->dmid)
        product(c, v->r, v->r, c->n_tok, mat(m->p, v->r, kept, 1), mat(c->saved, v->r, kept, 0), 1,
                v->dmid, PS_DTYPE_F32, math_of(c, v), c->accumulate);
    product(c, c->n_tok, v->r, v->r, mat(m->p, v->r, kept, 0), f32(v->mid, v->r, 0), v->scale,
            m->mid, PS_DTYPE_F32, PS_GEMM_F32, 0);
    if (v->mid0)
        product(c, c->n_tok, v->r, v->r, mat(m->p, v->r, kept, 0), f32(v->mid0, v->r, 0), -v->scale,
                m->mid, PS_DTYPE_F32, PS_GEMM_F32, 1);
    return f32(m->mid, v->r, 0);
}

void ps_lowrank_backward(const struct ps_linear_call *c)
{
    struct ps_lowrank view = view_of(c->site);
    const struct ps_lowrank *v = &view;
    struct room m = room_of(c);
    size_t in = (size_t)c->in;
    size_t out = (size_t)c->out;
    enum ps_dtype dtype = c->cx->dtype;
    enum ps_dtype kept = kept_dtype(v->a0, dtype);
    enum ps_dtype dy = ps_linear_out_dtype(c);
    /* dB = dy^T H M^T; the scale is in H */
    if (v->db)
        product(c, out, v->r, c->n_tok, mat(c->dy, out, dy, 1), left_of(c, v, &m), 1, v->db,
                PS_DTYPE_F32, math_of(c, v), c->accumulate);
    /* P = s dy B */
    product(c, c->n_tok, v->r, out, mat(c->dy, out, dy, 0), f32(v->b, v->r, 0),
            v->mid ? 1 : v->scale, m.p, kept, math_of(c, v), 0);
    struct ps_gemm_mat p = v->mid ? backward_mid(c, v, &m) : mat(m.p, v->r, kept, 0);
    /* dA = P^T drop(x) */
    if (v->da) {
        struct ps_gemm_mat pt = p;
        pt.trans = 1;
        product(c, v->r, in, c->n_tok, pt, mat(adapter_input(c, &m), in, dtype, 0), 1, v->da,
                PS_DTYPE_F32, math_of(c, v), c->accumulate);
    }
    if (c->dx)
        backward_dx(c, v, &m, p);
}

/* left (rows, r) = rows of B M, doubles. */
static void left_rows(const struct ps_lowrank *v, size_t row, double *left)
{
    const float *b = v->b + row * v->r;
    for (size_t k = 0; k < v->r; k++) {
        if (!v->mid) {
            left[k] = (double)b[k];
            continue;
        }
        double sum = 0;
        for (size_t l = 0; l < v->r; l++) {
            double mid = (double)v->mid[l * v->r + k];
            sum += (double)b[l] * (v->mid0 ? mid - (double)v->mid0[l * v->r + k] : mid);
        }
        left[k] = sum;
    }
}

int ps_lowrank_merge(const struct ps_adapter_site *s, int64_t row_begin, int64_t rows, float *w)
{
    struct ps_lowrank view = view_of(s);
    const struct ps_lowrank *v = &view;
    size_t in = (size_t)s->in;
    double *left = malloc((v->r + in) * sizeof *left);
    if (!left)
        return -ENOMEM;
    double *sum = left + v->r;
    for (size_t i = 0; i < (size_t)rows; i++) {
        size_t row = (size_t)row_begin + i;
        left_rows(v, row, left);
        memset(sum, 0, in * sizeof *sum);
        for (size_t k = 0; k < v->r; k++)
            for (size_t j = 0; j < in; j++)
                sum[j] += left[k] * (double)v->a[k * in + j];
        for (size_t k = 0; v->a0 && k < v->r; k++)
            for (size_t j = 0; j < in; j++)
                sum[j] -= (double)v->b0[row * v->r + k] * (double)v->a0[k * in + j];
        for (size_t j = 0; j < in; j++)
            w[i * in + j] += (float)(v->scale * sum[j]);
    }
    free(left);
    return 0;
}

size_t ps_lowrank_fold_rank(const struct ps_lowrank *v)
{
    return v->a0 ? 2 * v->r : v->r;
}

void ps_lowrank_fold(const struct ps_adapter_site *s, const struct ps_lowrank *v, float *a,
                     float *b)
{
    size_t in = (size_t)s->in;
    size_t rank = ps_lowrank_fold_rank(v);
    for (size_t k = 0; k < v->r; k++)
        for (size_t j = 0; j < in; j++) {
            double sum = 0;
            for (size_t l = 0; v->mid && l < v->r; l++) {
                double mid = (double)v->mid[k * v->r + l];
                mid = v->mid0 ? mid - (double)v->mid0[k * v->r + l] : mid;
                sum += mid * (double)v->a[l * in + j];
            }
            a[k * in + j] = v->mid ? (float)sum : v->a[k * in + j];
        }
    if (v->a0)
        memcpy(a + v->r * in, v->a0, v->r * in * sizeof *a);
    for (size_t i = 0; i < (size_t)s->out; i++)
        for (size_t k = 0; k < rank; k++)
            b[i * rank + k] = (float)(k < v->r ? v->scale * (double)v->b[i * v->r + k]
                                               : -v->scale * (double)v->b0[i * v->r + k - v->r]);
}

void ps_lowrank_uniform(const struct ps_adapter_site *s, uint32_t stream, int64_t rows, int64_t in,
                        float *out)
{
    struct ps_rng_key key = {
        .seed = s->config->seed, .step = stream, .layer = s->site_idx, .site = PS_RNG_INIT_ADAPTER};
    float bound = (float)(1.0 / sqrt((double)in));
    size_t n = (size_t)rows * (size_t)in;
    for (size_t i = 0; i < n; i++)
        out[i] = (2.0f * ps_rng_uniform(&key, i) - 1.0f) * bound;
}
