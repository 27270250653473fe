/* Final norm, output head and cross-entropy: see head.h. */
#include "runtime/model/head.h"

#include "runtime/kernels/rmsnorm.h"

/* 64 MiB of logits at most; at least 64 rows, so that the head's weights are not read too often. */
#define CHUNK_ELEMENTS ((size_t)16 << 20)

size_t ps_head_chunk_rows(const struct ps_model_config *cfg)
{
    size_t rows = CHUNK_ELEMENTS / (size_t)cfg->vocab_size;
    size_t chunk = 64;
    while (chunk * 2 <= rows && chunk < 1024)
        chunk *= 2;
    return chunk;
}

size_t ps_head_scratch_carve(struct ps_head_scratch *out, void *base,
                             const struct ps_model_config *cfg, const struct ps_adapter_site *site,
                             enum ps_dtype dtype, size_t n_tok, bool backward)
{
    size_t hidden = n_tok * (size_t)cfg->hidden_size * ps_dtype_size(dtype);
    size_t rows = ps_head_chunk_rows(cfg);
    rows = rows < n_tok ? rows : n_tok;
    struct {
        void **slot;
        size_t bytes;
    } part[] = {
        {(void **)&out->loss, n_tok * sizeof(double)},
        {(void **)&out->rstd, n_tok * sizeof(float)},
        {&out->x, hidden},
        {&out->normed, hidden},
        {(void **)&out->logits, rows * (size_t)cfg->vocab_size * sizeof(float)},
        {&out->dnormed, backward ? hidden : 0},
        {&out->rmsnorm, backward ? ps_rmsnorm_workspace_bytes(n_tok, (size_t)cfg->hidden_size) : 0},
        {&out->saved, site ? site->ops->saved_bytes(site, rows, dtype) : 0},
        {&out->adapter, site ? site->ops->scratch_bytes(site, rows, dtype) : 0},
    };
    size_t used = 0;
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        *part[i].slot = base && part[i].bytes ? (unsigned char *)base + used : NULL;
        used += (part[i].bytes + 63) & ~(size_t)63;
    }
    return used;
}

/* The head applied to `rows` normed rows, or its backward pass: logits are both. */
static struct ps_linear_call head_call(const struct ps_head *h, const struct ps_compute *cx,
                                       const struct ps_head_scratch *s, const void *normed,
                                       size_t rows, float *logits)
{
    return (struct ps_linear_call){
        .cx = cx,
        .n_tok = rows,
        .out = h->cfg->vocab_size,
        .in = h->cfg->hidden_size,
        .weight = &h->head,
        .site = h->site,
        .saved = s->saved,
        .scratch = s->adapter,
        .logits = true,
        .x = normed,
        .y = logits,
        .dy = logits,
    };
}

static struct ps_rmsnorm_args final_norm(const struct ps_head *h, const struct ps_compute *cx,
                                         size_t rows, const void *x, void *y, float *rstd)
{
    size_t n = (size_t)h->cfg->hidden_size;
    return (struct ps_rmsnorm_args){
        .n_tok = rows,
        .rows_per_tok = 1,
        .n = n,
        .eps = h->cfg->rms_norm_eps,
        .dtype = cx->dtype,
        .x = x,
        .x_ld = n,
        .weight = h->norm.data,
        .weight_dtype = h->norm.dtype,
        .y = y,
        .y_ld = n,
        .rstd = rstd,
    };
}

/* Gradients of one chunk: logits now hold dlogits. */
static void chunk_backward(const struct ps_head *h, const struct ps_head_call *c,
                           struct ps_linear_call *call, size_t first)
{
    size_t skip = first * (size_t)h->cfg->hidden_size * ps_dtype_size(c->cx->dtype);
    call->dx = (unsigned char *)c->scratch->dnormed + skip;
    call->dweight = h->dhead;
    call->accumulate = c->accumulate || first > 0;
    ps_linear_backward(call);
}

static void clear_gradients(const struct ps_head *h, const struct ps_compute *cx)
{
    size_t n = (size_t)h->cfg->hidden_size;
    if (h->dnorm)
        cx->k->zero(cx, h->dnorm, n * sizeof(float));
    if (h->dhead)
        cx->k->zero(cx, h->dhead, (size_t)h->cfg->vocab_size * n * sizeof(float));
    for (int32_t i = 0; h->site && i < h->site->tensor_count; i++)
        if (h->site->grad[i])
            cx->k->zero(cx, h->site->grad[i], h->site->n[i] * sizeof(float));
}

/* Gradient of the norm, spread over all tokens. */
static void spread_gradient(const struct ps_head *h, const struct ps_head_call *c, size_t rows)
{
    const struct ps_compute *cx = c->cx;
    const struct ps_head_scratch *s = c->scratch;
    size_t n = (size_t)h->cfg->hidden_size;
    cx->k->zero(cx, c->dx, c->n_tok * n * ps_dtype_size(cx->dtype));
    if (rows == 0) {
        if (!c->accumulate)
            clear_gradients(h, cx);
        return;
    }
    struct ps_rmsnorm_args a = final_norm(h, cx, rows, s->x, NULL, s->rstd);
    a.dy = s->dnormed;
    a.dy_ld = n;
    a.dx = s->dnormed;
    a.dx_ld = n;
    a.dweight = h->dnorm;
    a.accumulate = c->accumulate;
    cx->k->rmsnorm_backward(cx, &a, s->rmsnorm);
    cx->k->scatter_rows(cx, c->dx, s->dnormed, c->row, rows, n);
}

void ps_head_loss(const struct ps_head *h, const struct ps_head_call *c)
{
    const struct ps_compute *cx = c->cx;
    const struct ps_head_scratch *s = c->scratch;
    size_t n = (size_t)h->cfg->hidden_size;
    size_t vocab = (size_t)h->cfg->vocab_size;
    size_t rows = c->rows;
    if (rows > 0) {
        cx->k->gather_rows(cx, s->x, c->x, c->row, rows, n);
        struct ps_rmsnorm_args a = final_norm(h, cx, rows, s->x, s->normed, s->rstd);
        cx->k->rmsnorm_forward(cx, &a);
    }
    size_t chunk = ps_head_chunk_rows(h->cfg);
    for (size_t first = 0; first < rows; first += chunk) {
        size_t count = rows - first < chunk ? rows - first : chunk;
        const unsigned char *x =
            (const unsigned char *)s->normed + first * n * ps_dtype_size(cx->dtype);
        struct ps_linear_call call = head_call(h, cx, s, x, count, s->logits);
        call.training = c->training;
        call.key = c->key;
        call.key.layer = (uint32_t)(first / chunk);
        ps_linear_forward(&call);
        cx->k->cross_entropy(cx, s->logits, count, vocab, c->target + first, s->loss + first,
                             c->dscale, c->dx != NULL);
        if (c->dx)
            chunk_backward(h, c, &call, first);
    }
    cx->k->sum_f64(cx, c->loss, s->loss, rows);
    if (c->dx)
        spread_gradient(h, c, rows);
}

void ps_head_logits(const struct ps_head *h, const struct ps_compute *cx,
                    const struct ps_head_scratch *s, const void *x, size_t row_begin, size_t rows,
                    float *out)
{
    size_t n = (size_t)h->cfg->hidden_size;
    const unsigned char *from = (const unsigned char *)x + row_begin * n * ps_dtype_size(cx->dtype);
    struct ps_rmsnorm_args a = final_norm(h, cx, rows, from, s->normed, s->rstd);
    cx->k->rmsnorm_forward(cx, &a);
    struct ps_linear_call call = head_call(h, cx, s, s->normed, rows, out);
    ps_linear_forward(&call);
}
