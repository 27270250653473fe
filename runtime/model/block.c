/* One decoder block: see block.h. */
#include "runtime/model/block.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "runtime/kernels/attention.h"
#include "runtime/kernels/rmsnorm.h"
#include "runtime/kernels/rope.h"
#include "runtime/kernels/swiglu.h"

#define ALIGN ((size_t)64)

static void *take(unsigned char *base, size_t *used, size_t bytes)
{
    size_t at = *used;
    *used += (bytes + ALIGN - 1) & ~(ALIGN - 1);
    return base ? base + at : NULL;
}

struct widths {
    size_t h, f, a, kv;
};

static struct widths widths_of(const struct ps_model_config *cfg)
{
    size_t d = (size_t)cfg->head_dim;
    return (struct widths){.h = (size_t)cfg->hidden_size,
                           .f = (size_t)cfg->intermediate_size,
                           .a = (size_t)cfg->n_head * d,
                           .kv = (size_t)cfg->n_kv_head * d};
}

const char *ps_recompute_name(enum ps_recompute level)
{
    static const char *const name[PS_RECOMPUTE_COUNT] = {"R0", "R1", "R2", "R3", "R4"};
    assert(level < PS_RECOMPUTE_COUNT);
    return name[level];
}

/* Where the pieces are carved from. */
struct carver {
    const struct ps_block_saved_place *at;
    struct ps_block_saved_bytes used;
};

/* What is kept up to a level. */
static void *keep_until(struct carver *c, enum ps_recompute level, size_t bytes)
{
    return c->at->level <= level ? take(c->at->kept, &c->used.kept, bytes)
                                 : take(c->at->rest, &c->used.rest, bytes);
}

/* What the adapter of a linear keeps goes with the linear's output. */
static void keep_adapter(struct carver *c, enum ps_recompute level, struct ps_block_saved *out,
                         const struct ps_block *block, enum ps_role role, enum ps_dtype dtype,
                         size_t n_tok)
{
    const struct ps_adapter_site *s = block->site[role];
    if (s)
        out->adapter[role] = keep_until(c, level, s->ops->saved_bytes(s, n_tok, dtype));
}

static void carve_input(struct carver *c, struct ps_block_saved *out, const struct ps_block *block,
                        enum ps_dtype dtype, size_t n_tok)
{
    const struct ps_model_config *cfg = block->cfg;
    const enum ps_recompute level = PS_RECOMPUTE_R1;
    struct widths w = widths_of(cfg);
    size_t e = ps_dtype_size(dtype);
    if (cfg->qk_norm) {
        out->rstd_q = keep_until(c, level, n_tok * (size_t)cfg->n_head * sizeof(float));
        out->rstd_k = keep_until(c, level, n_tok * (size_t)cfg->n_kv_head * sizeof(float));
        out->q_pre = keep_until(c, level, n_tok * w.a * e);
        out->k_pre = keep_until(c, level, n_tok * w.kv * e);
    }
    out->q = keep_until(c, level, n_tok * w.a * e);
    out->k = keep_until(c, level, n_tok * w.kv * e);
    out->v = keep_until(c, level, n_tok * w.kv * e);
    keep_adapter(c, level, out, block, PS_ROLE_Q, dtype, n_tok);
    keep_adapter(c, level, out, block, PS_ROLE_K, dtype, n_tok);
    keep_adapter(c, level, out, block, PS_ROLE_V, dtype, n_tok);
}

struct ps_block_saved_bytes ps_block_saved_carve(struct ps_block_saved *out,
                                                 const struct ps_block_saved_place *at,
                                                 const struct ps_block *block, enum ps_dtype dtype,
                                                 size_t n_tok)
{
    const struct ps_model_config *cfg = block->cfg;
    struct widths w = widths_of(cfg);
    struct carver c = {.at = at};
    size_t e = ps_dtype_size(dtype);
    memset(out, 0, sizeof *out);
    out->level = at->level;
    out->lse = keep_until(&c, PS_RECOMPUTE_R3, n_tok * (size_t)cfg->n_head * sizeof(float));
    out->o = keep_until(&c, PS_RECOMPUTE_R3, n_tok * w.a * e);
    out->x1 = keep_until(&c, PS_RECOMPUTE_R2, n_tok * w.h * e);
    keep_adapter(&c, PS_RECOMPUTE_R2, out, block, PS_ROLE_O, dtype, n_tok);
    carve_input(&c, out, block, dtype, n_tok);
    out->rstd1 = keep_until(&c, PS_RECOMPUTE_R0, n_tok * sizeof(float)); /* backward makes both */
    out->rstd2 = keep_until(&c, PS_RECOMPUTE_R0, n_tok * sizeof(float));
    out->gate = keep_until(&c, PS_RECOMPUTE_R0, n_tok * w.f * e);
    out->up = keep_until(&c, PS_RECOMPUTE_R0, n_tok * w.f * e);
    keep_adapter(&c, PS_RECOMPUTE_R0, out, block, PS_ROLE_GATE, dtype, n_tok);
    keep_adapter(&c, PS_RECOMPUTE_R0, out, block, PS_ROLE_UP, dtype, n_tok);
    keep_adapter(&c, PS_RECOMPUTE_R0, out, block, PS_ROLE_DOWN, dtype, n_tok);
    return c.used;
}

size_t ps_block_adapter_scratch(const struct ps_block *block, enum ps_dtype dtype, size_t n_tok)
{
    size_t most = 0;
    for (int i = 0; i < PS_LINEAR_COUNT; i++) {
        const struct ps_adapter_site *s = block->site[i];
        size_t n = s ? s->ops->scratch_bytes(s, n_tok, dtype) : 0;
        most = n > most ? n : most;
    }
    return most;
}

size_t ps_block_scratch_carve(struct ps_block_scratch *out, void *base,
                              const struct ps_model_config *cfg, const struct ps_compute *cx,
                              size_t n_tok, size_t adapter_bytes, bool backward)
{
    struct widths w = widths_of(cfg);
    size_t e = ps_dtype_size(cx->dtype);
    size_t used = 0;
    memset(out, 0, sizeof *out);
    out->norm = take(base, &used, n_tok * w.h * e);
    out->act = take(base, &used, n_tok * w.f * e);
    out->attention = take(base, &used,
                          cx->k->attention_workspace_bytes(cx, (int32_t)n_tok, cfg->n_head,
                                                           cfg->n_kv_head, cfg->head_dim));
    out->adapter = take(base, &used, adapter_bytes);
    if (backward) {
        size_t rows = n_tok * (size_t)(cfg->qk_norm ? cfg->n_head : 1);
        size_t norm = ps_rmsnorm_workspace_bytes(n_tok, w.h);
        size_t head_norm = ps_rmsnorm_workspace_bytes(rows, (size_t)cfg->head_dim);
        out->dact = take(base, &used, n_tok * w.f * e);
        out->dnorm = take(base, &used, n_tok * w.h * e);
        out->dout = take(base, &used, n_tok * w.a * e);
        out->dq = take(base, &used, n_tok * w.a * e);
        out->dk = take(base, &used, n_tok * w.kv * e);
        out->dv = take(base, &used, n_tok * w.kv * e);
        out->rmsnorm = take(base, &used, norm > head_norm ? norm : head_norm);
    }
    return used;
}

static double linear_flops(const struct ps_model_config *cfg, enum ps_role role)
{
    int64_t out;
    int64_t in;
    ps_linear_shape(cfg, role, &out, &in);
    return 2.0 * (double)out * (double)in;
}

double ps_block_linear_flops(const struct ps_model_config *cfg)
{
    double sum = 0;
    for (int i = 0; i < PS_LINEAR_COUNT; i++)
        sum += linear_flops(cfg, (enum ps_role)i);
    return sum;
}

double ps_block_recompute_flops(const struct ps_model_config *cfg, enum ps_recompute level)
{
    double sum = 0;
    if (level >= PS_RECOMPUTE_R1)
        sum += linear_flops(cfg, PS_ROLE_GATE) + linear_flops(cfg, PS_ROLE_UP);
    if (level >= PS_RECOMPUTE_R2)
        sum += linear_flops(cfg, PS_ROLE_Q) + linear_flops(cfg, PS_ROLE_K) +
               linear_flops(cfg, PS_ROLE_V);
    if (level >= PS_RECOMPUTE_R3)
        sum += linear_flops(cfg, PS_ROLE_O);
    return sum;
}

/* Common part of a call to linear `role`. */
static struct ps_linear_call linear_call(const struct ps_block *b, const struct ps_block_run *run,
                                         struct ps_block_saved *saved, enum ps_role role,
                                         const void *x)
{
    struct ps_linear_call c = {
        .cx = run->cx,
        .n_tok = run->n_tok,
        .weight = &b->weight[role],
        .bias = &b->weight[PS_ROLE_Q_BIAS + (int)role],
        .site = b->site[role],
        .saved = saved->adapter[role],
        .scratch = run->scratch->adapter,
        .training = run->training,
        .key = run->key,
        .x = x,
        .accumulate = run->accumulate,
        .dweight = b->grad[role],
        .dbias = b->grad[PS_ROLE_Q_BIAS + (int)role],
    };
    ps_linear_shape(b->cfg, role, &c.out, &c.in);
    return c;
}

static void forward_linear(const struct ps_block *b, const struct ps_block_run *run,
                           struct ps_block_saved *saved, enum ps_role role, const void *x, void *y,
                           const void *residual)
{
    struct ps_linear_call c = linear_call(b, run, saved, role, x);
    c.y = y;
    c.residual = residual;
    ps_linear_forward(&c);
}

static void backward_linear(const struct ps_block *b, const struct ps_block_run *run,
                            struct ps_block_saved *saved, enum ps_role role, const void *x,
                            const void *dy, void *dx, const void *dx_add)
{
    struct ps_linear_call c = linear_call(b, run, saved, role, x);
    c.dy = dy;
    c.dx = dx;
    c.dx_add = dx_add;
    ps_linear_backward(&c);
}

/* A norm over tokens (heads == 1) or over heads of tokens. */
static struct ps_rmsnorm_args norm_args(const struct ps_block *b, const struct ps_block_run *run,
                                        enum ps_role role, size_t heads, size_t n, const void *x,
                                        void *y, float *rstd)
{
    return (struct ps_rmsnorm_args){
        .n_tok = run->n_tok,
        .rows_per_tok = heads,
        .n = n,
        .eps = b->cfg->rms_norm_eps,
        .dtype = run->cx->dtype,
        .x = x,
        .x_ld = heads * n,
        .weight = b->weight[role].data,
        .weight_dtype = b->weight[role].dtype,
        .y = y,
        .y_ld = heads * n,
        .rstd = rstd,
        .dweight = b->grad[role],
        .accumulate = run->accumulate,
    };
}

static void norm_forward(const struct ps_block *b, const struct ps_block_run *run,
                         enum ps_role role, size_t heads, size_t n, const void *x, void *y,
                         float *rstd)
{
    struct ps_rmsnorm_args a = norm_args(b, run, role, heads, n, x, y, rstd);
    run->cx->k->rmsnorm_forward(run->cx, &a);
}

static void norm_backward(const struct ps_block *b, const struct ps_block_run *run,
                          enum ps_role role, size_t heads, size_t n, const void *x, float *rstd,
                          const void *dy, void *dx, const void *dx_add)
{
    struct ps_rmsnorm_args a = norm_args(b, run, role, heads, n, x, NULL, rstd);
    a.dy = dy;
    a.dy_ld = heads * n;
    a.dx = dx;
    a.dx_ld = heads * n;
    a.dx_add = dx_add;
    a.dx_add_ld = heads * n;
    run->cx->k->rmsnorm_backward(run->cx, &a, run->scratch->rmsnorm);
}

static void rope(const struct ps_block *b, const struct ps_block_run *run, void *x, int32_t heads,
                 int inverse)
{
    size_t d = (size_t)b->cfg->head_dim;
    run->cx->k->rope_apply(run->cx, x, run->n_tok, (size_t)heads, d, run->position, run->cos_sin,
                           inverse);
}

static struct ps_attention_args attention_args(const struct ps_block *b,
                                               const struct ps_block_run *run,
                                               const struct ps_block_saved *s)
{
    struct widths w = widths_of(b->cfg);
    return (struct ps_attention_args){
        .doc_start = run->doc_start,
        .doc_count = run->doc_count,
        .n_head = b->cfg->n_head,
        .n_kv_head = b->cfg->n_kv_head,
        .head_dim = b->cfg->head_dim,
        .sliding_window = b->cfg->sliding_window,
        .scale = 1.0f / sqrtf((float)b->cfg->head_dim),
        .dtype = run->cx->dtype,
        .q = s->q,
        .k = s->k,
        .v = s->v,
        .q_ld = w.a,
        .k_ld = w.kv,
        .v_ld = w.kv,
        .out = s->o,
        .out_ld = w.a,
        .lse = s->lse,
    };
}

/* A saved set whose keys and values go to the cache, where there is one. */
static struct ps_block_saved cached(const struct ps_block *b, const struct ps_block_run *run,
                                    const struct ps_block_saved *s)
{
    struct ps_block_saved at = *s;
    if (run->k_cache) {
        size_t width = widths_of(b->cfg).kv;
        size_t skip = (size_t)run->n_past * width * ps_dtype_size(run->cx->dtype);
        at.k = (unsigned char *)run->k_cache + skip;
        at.v = (unsigned char *)run->v_cache + skip;
    }
    return at;
}

/* x0 -> q, k, v */
static void project(const struct ps_block *b, const struct ps_block_run *run, const void *x0,
                    struct ps_block_saved *s)
{
    const struct ps_model_config *cfg = b->cfg;
    size_t d = (size_t)cfg->head_dim;
    void *n1 = run->scratch->norm;
    norm_forward(b, run, PS_ROLE_ATTN_NORM, 1, (size_t)cfg->hidden_size, x0, n1, s->rstd1);
    forward_linear(b, run, s, PS_ROLE_Q, n1, cfg->qk_norm ? s->q_pre : s->q, NULL);
    forward_linear(b, run, s, PS_ROLE_K, n1, cfg->qk_norm ? s->k_pre : s->k, NULL);
    forward_linear(b, run, s, PS_ROLE_V, n1, s->v, NULL);
    if (cfg->qk_norm) {
        norm_forward(b, run, PS_ROLE_Q_NORM, (size_t)cfg->n_head, d, s->q_pre, s->q, s->rstd_q);
        norm_forward(b, run, PS_ROLE_K_NORM, (size_t)cfg->n_kv_head, d, s->k_pre, s->k, s->rstd_k);
    }
    rope(b, run, s->q, cfg->n_head, 0);
    rope(b, run, s->k, cfg->n_kv_head, 0);
}

/* q, k, v -> o, lse */
static void attend(const struct ps_block *b, const struct ps_block_run *run,
                   const struct ps_block_saved *s)
{
    struct ps_attention_args a = attention_args(b, run, s);
    if (run->n_past > 0) {
        assert(run->n_tok == 1);
        a.k = run->k_cache;
        a.v = run->v_cache;
        run->cx->k->attention_decode(run->cx, &a, run->n_past, run->scratch->attention);
        return;
    }
    run->cx->k->attention_forward(run->cx, &a, run->doc, run->scratch->attention);
}

static void mlp_activation(const struct ps_block *b, const struct ps_block_run *run,
                           const struct ps_block_saved *s)
{
    size_t f = (size_t)b->cfg->intermediate_size;
    run->cx->k->swiglu_forward(run->cx, run->n_tok, f, s->gate, s->up, run->scratch->act);
}

void ps_block_forward(const struct ps_block *b, const struct ps_block_run *run, const void *x0,
                      void *x2, struct ps_block_saved *s)
{
    size_t h = (size_t)b->cfg->hidden_size;
    void *n2 = run->scratch->norm;
    /* what is missing: all of it, or what the level has dropped */
    enum ps_recompute level = x2 ? PS_RECOMPUTE_R4 : s->level;
    assert(level >= PS_RECOMPUTE_R1);
    if (level >= PS_RECOMPUTE_R2) {
        struct ps_block_saved at = cached(b, run, s);
        project(b, run, x0, &at);
        if (level >= PS_RECOMPUTE_R4)
            attend(b, run, &at);
    }
    if (level >= PS_RECOMPUTE_R3)
        forward_linear(b, run, s, PS_ROLE_O, s->o, s->x1, x0);
    norm_forward(b, run, PS_ROLE_MLP_NORM, 1, h, s->x1, n2, s->rstd2);
    forward_linear(b, run, s, PS_ROLE_GATE, n2, s->gate, NULL);
    forward_linear(b, run, s, PS_ROLE_UP, n2, s->up, NULL);
    const struct ps_adapter_site *down = b->site[PS_ROLE_DOWN];
    if (!x2 && !down)
        return;
    mlp_activation(b, run, s);
    if (x2) {
        forward_linear(b, run, s, PS_ROLE_DOWN, run->scratch->act, x2, s->x1);
        return;
    }
    struct ps_linear_call c = linear_call(b, run, s, PS_ROLE_DOWN, run->scratch->act);
    down->ops->save(&c);
}

/* Is a gradient of this parameter or its adapter wanted? */
static bool trains(const struct ps_block *b, enum ps_role role)
{
    if (b->grad[role])
        return true;
    if ((int)role >= PS_LINEAR_COUNT)
        return false;
    const struct ps_adapter_site *s = b->site[role];
    bool adapter = false;
    for (int i = 0; s && i < s->tensor_count; i++)
        adapter |= s->grad[i] != NULL;
    return adapter || b->grad[PS_ROLE_Q_BIAS + (int)role];
}

/* What of the layer has to be passed back to when nothing below it trains: each part includes those
 * that come before it in the forward pass. */
struct reach {
    bool input; /* norm, q, k, v */
    bool out;   /* o */
    bool mlp;   /* norm, gate, up */
};

static struct reach reach_of(const struct ps_block *b, bool need_dx)
{
    struct reach r;
    r.input = need_dx || trains(b, PS_ROLE_ATTN_NORM) || trains(b, PS_ROLE_Q) ||
              trains(b, PS_ROLE_K) || trains(b, PS_ROLE_V) || trains(b, PS_ROLE_Q_NORM) ||
              trains(b, PS_ROLE_K_NORM);
    r.out = r.input || trains(b, PS_ROLE_O);
    r.mlp =
        r.out || trains(b, PS_ROLE_MLP_NORM) || trains(b, PS_ROLE_GATE) || trains(b, PS_ROLE_UP);
    return r;
}

/* dx (gradient of x2) -> dx (gradient of x1) */
static void mlp_backward(const struct ps_block *b, const struct ps_block_run *run,
                         struct ps_block_saved *s, void *dx, const struct reach *reach)
{
    const struct ps_block_scratch *t = run->scratch;
    size_t f = (size_t)b->cfg->intermediate_size;
    size_t h = (size_t)b->cfg->hidden_size;
    mlp_activation(b, run, s);
    backward_linear(b, run, s, PS_ROLE_DOWN, t->act, dx, reach->mlp ? t->dact : NULL, NULL);
    if (!reach->mlp)
        return;
    run->cx->k->swiglu_backward(run->cx, run->n_tok, f, s->gate, s->up, t->dact, s->gate, s->up);
    norm_forward(b, run, PS_ROLE_MLP_NORM, 1, h, s->x1, t->norm, s->rstd2);
    void *dn = reach->out || trains(b, PS_ROLE_MLP_NORM) ? t->dnorm : NULL;
    backward_linear(b, run, s, PS_ROLE_GATE, t->norm, s->gate, dn, NULL);
    backward_linear(b, run, s, PS_ROLE_UP, t->norm, s->up, dn, dn);
    if (!dn)
        return;
    norm_backward(b, run, PS_ROLE_MLP_NORM, 1, h, s->x1, s->rstd2, t->dnorm, dx, dx);
}

/* dx (gradient of x1) -> dq, dk, dv before RoPE and norms per head */
static void core_backward(const struct ps_block *b, const struct ps_block_run *run,
                          struct ps_block_saved *s, const void *dx, const struct reach *reach)
{
    const struct ps_model_config *cfg = b->cfg;
    const struct ps_block_scratch *t = run->scratch;
    struct widths w = widths_of(cfg);
    size_t d = (size_t)cfg->head_dim;
    backward_linear(b, run, s, PS_ROLE_O, s->o, dx, reach->input ? t->dout : NULL, NULL);
    if (!reach->input)
        return;
    struct ps_attention_args a = attention_args(b, run, s);
    a.dout = t->dout;
    a.dout_ld = w.a;
    a.dq = t->dq;
    a.dk = t->dk;
    a.dv = t->dv;
    a.dq_ld = w.a;
    a.dk_ld = w.kv;
    a.dv_ld = w.kv;
    run->cx->k->attention_backward(run->cx, &a, run->doc, t->attention);
    rope(b, run, t->dq, cfg->n_head, 1);
    rope(b, run, t->dk, cfg->n_kv_head, 1);
    if (cfg->qk_norm) {
        norm_backward(b, run, PS_ROLE_Q_NORM, (size_t)cfg->n_head, d, s->q_pre, s->rstd_q, t->dq,
                      t->dq, NULL);
        norm_backward(b, run, PS_ROLE_K_NORM, (size_t)cfg->n_kv_head, d, s->k_pre, s->rstd_k, t->dk,
                      t->dk, NULL);
    }
}

void ps_block_backward(const struct ps_block *b, const struct ps_block_run *run, const void *x0,
                       struct ps_block_saved *s, void *dx, bool need_dx)
{
    const struct ps_block_scratch *t = run->scratch;
    size_t h = (size_t)b->cfg->hidden_size;
    const struct reach reach = reach_of(b, need_dx);
    mlp_backward(b, run, s, dx, &reach);
    if (reach.out)
        core_backward(b, run, s, dx, &reach);
    if (!reach.input)
        return;
    norm_forward(b, run, PS_ROLE_ATTN_NORM, 1, h, x0, t->norm, s->rstd1);
    bool want = need_dx || b->grad[PS_ROLE_ATTN_NORM];
    void *dn = want ? t->dnorm : NULL;
    backward_linear(b, run, s, PS_ROLE_Q, t->norm, t->dq, dn, NULL);
    backward_linear(b, run, s, PS_ROLE_K, t->norm, t->dk, dn, dn);
    backward_linear(b, run, s, PS_ROLE_V, t->norm, t->dv, dn, dn);
    if (want)
        norm_backward(b, run, PS_ROLE_ATTN_NORM, 1, h, x0, s->rstd1, dn, dx, dx);
}
