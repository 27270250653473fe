/* Causal grouped-query attention: workspace, forward pass and decoding. See attention.h for the
 * contract, attention_internal.h for the tile layout, attention_backward.c for the backward pass.
 *
 * Design: heads are processed in waves of key-value heads, so that scratch that grows with the
 * number of tokens (the packed K and V of the forward pass, the fp32 dQ of the backward pass) is
 * bounded by WAVE_TOKENS tokens a thread, or by one head's: waves change what is in memory, never a
 * bit.
 *
 * NaN or Inf: P = 0 at masked places, but 0 * NaN = NaN, so a non-finite value of a token may reach
 * the other tokens of its own tile of 64, earlier ones included; never another document. */
#include "runtime/kernels/attention.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "runtime/kernels/attention_internal.h"

enum { WAVE_TOKENS = 4096, TASKS_PER_THREAD = 8, HI_MAX = 1 << 20 };

void ps__attention_ops_select(struct ps__attention_ops *ops, enum ps_isa isa, enum ps_dtype dtype)
{
    ps__attention_ops_portable(ops, dtype);
    if (isa >= PS_ISA_AVX2)
        ps__attention_ops_avx2(ops);
    if (isa >= PS_ISA_AVX512)
        ps__attention_ops_avx512(ops);
    if (isa >= PS_ISA_AVX512_BF16 && dtype == PS_DTYPE_BF16)
        ps__attention_ops_avx512_bf16(ops);
}

void ps__attention_multiply(const struct ps__attention_ops *ops, const struct ps__attention_gemm *g,
                            enum ps__attention_trim trim)
{
    if (trim == PS__ATTENTION_TRIM_NONE) {
        ops->gemm(g);
        return;
    }
    size_t kg = ops->k_group, size = kg == 2 ? sizeof(uint16_t) : sizeof(float);
    size_t end = trim == PS__ATTENTION_TRIM_DEPTH_COL ? g->n : g->m;
    for (size_t at = 0; at < end; at += PS__ATTENTION_LANE) {
        struct ps__attention_gemm part = *g;
        size_t a = 0, b = 0; /* elements */
        if (trim == PS__ATTENTION_TRIM_DEPTH_COL) {
            part.n = PS__ATTENTION_LANE;
            part.k = at + PS__ATTENTION_LANE < g->k ? at + PS__ATTENTION_LANE : g->k;
            part.c += at;
            b = at * kg;
        } else {
            part.m = end - at < PS__ATTENTION_LANE ? end - at : PS__ATTENTION_LANE;
            part.c += at * g->ldc;
            a = at * g->lda;
            if (trim == PS__ATTENTION_TRIM_COLS) {
                part.n -= at;
                part.c += at;
                b = at * kg;
            } else {
                part.k -= at;
                a += at;
                b = at * g->ldb;
            }
        }
        part.a = (const char *)g->a + a * size;
        part.b = (const char *)g->b + b * size;
        ops->gemm(&part);
    }
}

size_t ps__attention_wave_tokens(size_t n_tok, size_t n_kv_head, int thread_count)
{
    size_t limit = (size_t)WAVE_TOKENS * (size_t)thread_count;
    size_t all = n_tok * n_kv_head;
    size_t most = all < limit ? all : limit;
    return most > n_tok ? most : n_tok;
}

/* Tokens of dQ scratch for a stream: documents longer than a tile, padded to LANE. */
static size_t slot_count_max(size_t n_tok)
{
    return n_tok + n_tok / 4 + PS__ATTENTION_LANE;
}

/* Key tiles of one task of the backward pass: the more, the fewer times queries are packed; the
 * accumulators of a block should stay in the second-level cache. Never changes a bit. */
static int32_t block_tiles(size_t head_dim)
{
    return head_dim <= 128 ? 4 : head_dim <= 256 ? 2 : 1;
}

/* One thread's scratch: the backward pass needs the most (see struct area there). */
static size_t scratch_bytes(size_t head_dim)
{
    size_t tile = PS__ATTENTION_TILE;
    size_t dn = ps__attention_round(head_dim, PS__ATTENTION_LANE);
    size_t block = (size_t)block_tiles(head_dim) * tile;
    size_t words = 5 * block * dn + 5 * tile * dn + 5 * tile * tile + 16 * tile;
    return ps__attention_round(words * sizeof(float), 4096);
}

/* Offsets of the workspace:
 *   [tile table | block table | turn counters | thread scratch | packed K, V  or  lse, D, dQ] */
struct layout {
    size_t block, turn, scratch, wave, total;
};

static struct layout lay_out(size_t n_tok, size_t n_head, size_t n_kv_head, size_t head_dim,
                             int thread_count)
{
    size_t group = n_head / n_kv_head;
    size_t wave_tok = ps__attention_wave_tokens(n_tok, n_kv_head, thread_count);
    size_t slots = slot_count_max(wave_tok) + PS__ATTENTION_LANE * n_kv_head;
    struct layout l;
    l.block = ps__attention_round(n_tok * sizeof(struct ps__attention_tile), 64);
    l.turn = l.block + ps__attention_round(n_tok * sizeof(struct ps__attention_block), 64);
    l.scratch =
        l.turn + ps__attention_round(slots / PS__ATTENTION_LANE * group * sizeof(atomic_int), 64);
    l.wave = l.scratch + (size_t)thread_count * scratch_bytes(head_dim);
    size_t forward = 2 * ps__attention_round(wave_tok * head_dim * sizeof(float), 64);
    size_t backward = 2 * ps__attention_round(wave_tok * group * sizeof(float), 64) +
                      slots * group * head_dim * sizeof(float);
    l.total = l.wave + (forward > backward ? forward : backward);
    return l;
}

size_t ps_attention_workspace_bytes(int32_t n_tok_max, int32_t n_head, int32_t n_kv_head,
                                    int32_t head_dim, int thread_count)
{
    size_t n_tok = n_tok_max > 0 ? (size_t)n_tok_max : 1;
    return lay_out(n_tok, (size_t)n_head, (size_t)n_kv_head, (size_t)head_dim, thread_count).total;
}

/* Cut documents into tiles and runs of tiles. */
static void build_tables(struct ps__attention_ctx *ctx, const struct ps_attention_args *a)
{
    int32_t per_block = block_tiles(ctx->head_dim), slot = 0;
    ctx->tile_count = ctx->block_count = 0;
    for (int32_t d = 0; d < a->doc_count; d++) {
        int32_t begin = a->doc_start[d], end = a->doc_start[d + 1];
        int is_long = end - begin > per_block * PS__ATTENTION_TILE;
        int32_t first = ctx->tile_count;
        for (int32_t s = begin; s < end; s += PS__ATTENTION_TILE) {
            ctx->tile[ctx->tile_count++] = (struct ps__attention_tile){
                .begin = begin, .end = end, .start = s, .slot = is_long ? slot + s - begin : -1};
        }
        if (is_long)
            slot += (int32_t)ps__attention_round((size_t)(end - begin), PS__ATTENTION_LANE);
        for (int32_t t = first; t < ctx->tile_count; t += per_block) {
            int32_t left = ctx->tile_count - t;
            ctx->block[ctx->block_count++] =
                (struct ps__attention_block){.tile = t,
                                             .tile_count = left < per_block ? left : per_block,
                                             .idx = (t - first) / per_block};
        }
    }
    ctx->slot_count = (size_t)slot;
}

void ps__attention_ctx_init(struct ps__attention_ctx *ctx, struct ps_pool *pool, enum ps_isa isa,
                            const struct ps_attention_args *args, void *workspace)
{
    assert(args->dtype == PS_DTYPE_F32 || args->dtype == PS_DTYPE_BF16);
    assert(args->n_kv_head > 0 && args->n_head % args->n_kv_head == 0);
    assert(args->head_dim >= 1 && args->head_dim <= 512);
    assert((uintptr_t)workspace % 64 == 0);
    memset(ctx, 0, sizeof *ctx);
    ctx->args = args;
    ps__attention_ops_select(&ctx->ops, isa, args->dtype);
    ctx->head_dim = (size_t)args->head_dim;
    ctx->dk = ps__attention_round(ctx->head_dim, ctx->ops.k_group);
    ctx->dn = ps__attention_round(ctx->head_dim, PS__ATTENTION_LANE);
    ctx->group = args->n_head / args->n_kv_head;
    ctx->flip = args->scale < 0;

    int threads = ps_pool_thread_count(pool);
    size_t n_tok = args->doc_count > 0 ? (size_t)args->doc_start[args->doc_count] : 0;
    n_tok = n_tok ? n_tok : 1;
    struct layout l =
        lay_out(n_tok, (size_t)args->n_head, (size_t)args->n_kv_head, ctx->head_dim, threads);
    char *base = workspace;
    ctx->tile = (struct ps__attention_tile *)workspace;
    ctx->block = (struct ps__attention_block *)(void *)(base + l.block);
    ctx->turn = (atomic_int *)(void *)(base + l.turn);
    ctx->scratch = base + l.scratch;
    ctx->scratch_bytes = scratch_bytes(ctx->head_dim);
    size_t wave = ps__attention_wave_tokens(n_tok, (size_t)args->n_kv_head, threads);
    ctx->key_pack = base + l.wave;
    ctx->value_pack = ctx->key_pack + ps__attention_round(wave * ctx->head_dim * sizeof(float), 64);
    char *at = base + l.wave;
    size_t line_bytes = wave * (size_t)ctx->group * sizeof(float);
    ctx->lse2 = ps__attention_take(&at, line_bytes);
    ctx->delta = ps__attention_take(&at, line_bytes);
    ctx->dq = (float *)(void *)at;
    ctx->kv_count = (int32_t)(wave / n_tok);
    build_tables(ctx, args);
}

struct ps__attention_src ps__attention_src(const struct ps__attention_ctx *ctx, const void *data,
                                           size_t ld, int32_t start, size_t rows, int32_t head)
{
    size_t at = (size_t)start * ld + (size_t)head * ctx->head_dim;
    enum ps_dtype t = ctx->args->dtype;
    return (struct ps__attention_src){.data = (const char *)data + at * ps_dtype_size(t),
                                      .ld = ld,
                                      .dtype = t,
                                      .rows = rows,
                                      .cols = ctx->head_dim};
}

struct ps__attention_dst ps__attention_dst(const struct ps__attention_ctx *ctx, void *data,
                                           size_t ld, int32_t start, size_t rows, int32_t head)
{
    size_t at = (size_t)start * ld + (size_t)head * ctx->head_dim;
    enum ps_dtype t = ctx->args->dtype;
    return (struct ps__attention_dst){.data = (char *)data + at * ps_dtype_size(t),
                                      .ld = ld,
                                      .dtype = t,
                                      .rows = rows,
                                      .cols = ctx->head_dim};
}

void ps__attention_prefetch(const struct ps__attention_src *m)
{
    size_t size = ps_dtype_size(m->dtype), bytes = m->cols * size;
    const char *row = m->data;
    for (size_t i = 0; i < m->rows; i++, row += m->ld * size) {
        for (size_t b = 0; b < bytes; b += 64)
            __builtin_prefetch(row + b, 0, 2);
    }
}

struct ps__attention_scores ps__attention_scores(const struct ps__attention_ctx *ctx, float *s,
                                                 int32_t k0, size_t rows, int32_t q0, size_t cols)
{
    int64_t window = ctx->args->sliding_window;
    int64_t hi = window > 0 ? (int64_t)k0 - q0 + window : HI_MAX;
    return (struct ps__attention_scores){.s = s,
                                         .ld = ps__attention_round(cols, PS__ATTENTION_LANE),
                                         .rows = (int32_t)rows,
                                         .cols = (int32_t)cols,
                                         .lo = k0 - q0,
                                         .hi = (int32_t)(hi < HI_MAX ? hi : HI_MAX),
                                         .c = fabsf(ctx->args->scale) * PS__LOG2E};
}

int32_t ps__attention_first_tile(const struct ps__attention_ctx *ctx,
                                 const struct ps__attention_tile *query)
{
    int32_t window = ctx->args->sliding_window, q0 = query->start - query->begin;
    if (window <= 0 || q0 < window)
        return 0;
    return (q0 - window + 1) / PS__ATTENTION_TILE;
}

void ps__attention_flip(const struct ps__attention_ctx *ctx, const struct ps__attention_scores *t)
{
    if (!ctx->flip)
        return;
    for (size_t i = 0; i < (size_t)t->rows * t->ld; i++)
        t->s[i] = -t->s[i];
}

/* Scratch of a forward task. */
struct area {
    void *q_bt, *p;
    float *s, *o;
    float *m, *l, *alpha;
    void *k_a, *v_at; /* decoding only */
};

static struct area carve(const struct ps__attention_ctx *ctx, int thread_idx)
{
    char *at = ctx->scratch + (size_t)thread_idx * ctx->scratch_bytes;
    size_t tile = PS__ATTENTION_TILE, square = tile * tile * sizeof(float);
    size_t wide = tile * ctx->dn * sizeof(float);
    struct area s;
    s.q_bt = ps__attention_take(&at, wide);
    s.o = ps__attention_take(&at, wide);
    s.k_a = ps__attention_take(&at, wide);
    s.v_at = ps__attention_take(&at, wide);
    s.s = ps__attention_take(&at, square);
    s.p = ps__attention_take(&at, square);
    s.m = ps__attention_take(&at, tile * sizeof(float));
    s.l = ps__attention_take(&at, tile * sizeof(float));
    s.alpha = ps__attention_take(&at, tile * sizeof(float));
    return s;
}

static void start_rows(const struct area *s, size_t ld)
{
    for (size_t i = 0; i < ld; i++) {
        s->m[i] = -INFINITY;
        s->l[i] = 0;
    }
}

/* One tile of keys for one tile of queries: t is the mask, k_a and v_at the packed operands. */
static void forward_tile(const struct ps__attention_ctx *ctx, const struct area *s,
                         const struct ps__attention_scores *t, const void *k_a, const void *v_at,
                         int first)
{
    const struct ps__attention_ops *ops = &ctx->ops;
    size_t rows = (size_t)t->rows, rows_k = ps__attention_round(rows, ops->k_group);
    int diagonal = t->lo == 0;
    struct ps__attention_gemm g = {.c = s->s,
                                   .ldc = t->ld,
                                   .a = k_a,
                                   .lda = ctx->dk,
                                   .b = s->q_bt,
                                   .ldb = t->ld,
                                   .m = rows,
                                   .n = t->ld,
                                   .k = ctx->dk};
    ps__attention_multiply(ops, &g, diagonal ? PS__ATTENTION_TRIM_COLS : PS__ATTENTION_TRIM_NONE);
    ps__attention_flip(ctx, t);
    int moved = ops->softmax(t, s->m, s->l, s->alpha, s->p, ops->round_bf16);
    if (moved && !first)
        ops->scale_cols(s->o, ctx->head_dim, t->ld, s->alpha);
    g.c = s->o, g.a = v_at, g.b = s->p;
    g.m = ctx->head_dim;
    g.k = g.lda = rows_k;
    g.accumulate = !first;
    ps__attention_multiply(ops, &g,
                           diagonal ? PS__ATTENTION_TRIM_DEPTH_COL : PS__ATTENTION_TRIM_NONE);
}

/* O = O^T / l; the statistics become lse. */
static void finish_rows(const struct ps__attention_ctx *ctx, const struct area *s, size_t ld,
                        const struct ps__attention_dst *out, float *lse, size_t lse_ld)
{
    for (size_t i = 0; i < out->rows; i++) {
        if (lse)
            lse[i * lse_ld] = s->m[i] * fabsf(ctx->args->scale) + logf(s->l[i]);
        s->l[i] = 1.0f / s->l[i];
    }
    ctx->ops.store_t(s->o, ld, s->l, out);
}

static void forward_head(const struct ps__attention_ctx *ctx, const struct area *s,
                         int32_t tile_idx, int32_t head)
{
    const struct ps_attention_args *a = ctx->args;
    const struct ps__attention_tile *qt = &ctx->tile[tile_idx];
    size_t cols = ps__attention_tile_len(qt), ld = ps__attention_round(cols, PS__ATTENTION_LANE);
    size_t n_tok = (size_t)a->doc_start[a->doc_count];
    size_t kv = (size_t)(head / ctx->group - ctx->kv_begin);
    struct ps__attention_src q = ps__attention_src(ctx, a->q, a->q_ld, qt->start, cols, head);
    ctx->ops.pack_bt(&q, s->q_bt, ld);
    if (head + 1 < a->n_head) {
        q = ps__attention_src(ctx, a->q, a->q_ld, qt->start, cols, head + 1);
        ps__attention_prefetch(&q);
    }
    start_rows(s, ld);
    int32_t diagonal = (qt->start - qt->begin) / PS__ATTENTION_TILE;
    int32_t begin = ps__attention_first_tile(ctx, qt);
    for (int32_t j = begin; j <= diagonal; j++) {
        const struct ps__attention_tile *kt = &ctx->tile[tile_idx - diagonal + j];
        size_t at = (kv * n_tok + (size_t)kt->start) * ctx->head_dim * sizeof(float);
        struct ps__attention_scores t =
            ps__attention_scores(ctx, s->s, kt->start, ps__attention_tile_len(kt), qt->start, cols);
        forward_tile(ctx, s, &t, ctx->key_pack + at, ctx->value_pack + at, j == begin);
    }
    size_t n_head = (size_t)a->n_head;
    float *lse = a->lse ? a->lse + (size_t)qt->start * n_head + (size_t)head : NULL;
    struct ps__attention_dst out = ps__attention_dst(ctx, a->out, a->out_ld, qt->start, cols, head);
    finish_rows(ctx, s, ld, &out, lse, n_head);
}

static void pack_task(void *arg, size_t task_idx, int thread_idx)
{
    const struct ps__attention_ctx *ctx = arg;
    const struct ps_attention_args *a = ctx->args;
    (void)thread_idx;
    size_t kv = task_idx % (size_t)ctx->kv_count;
    const struct ps__attention_tile *t = &ctx->tile[task_idx / (size_t)ctx->kv_count];
    size_t rows = ps__attention_tile_len(t), n_tok = (size_t)a->doc_start[a->doc_count];
    size_t at = (kv * n_tok + (size_t)t->start) * ctx->head_dim * sizeof(float);
    int32_t head = ctx->kv_begin + (int32_t)kv;
    struct ps__attention_src k = ps__attention_src(ctx, a->k, a->k_ld, t->start, rows, head);
    struct ps__attention_src v = ps__attention_src(ctx, a->v, a->v_ld, t->start, rows, head);
    ctx->ops.pack_a(&k, ctx->key_pack + at, ctx->dk);
    ctx->ops.pack_at(&v, ctx->value_pack + at, ps__attention_round(rows, ctx->ops.k_group));
}

/* Tasks run from the last tile to the first: the longest rows first. */
static void forward_task(void *arg, size_t task_idx, int thread_idx)
{
    const struct ps__attention_ctx *ctx = arg;
    struct area s = carve(ctx, thread_idx);
    int32_t per_tile = ctx->kv_count * ctx->group / ctx->head_step;
    int32_t tile = ctx->tile_count - 1 - (int32_t)(task_idx / (size_t)per_tile);
    int32_t head = (int32_t)(task_idx % (size_t)per_tile) * ctx->head_step;
    head += ctx->kv_begin * ctx->group;
    for (int32_t h = head; h < head + ctx->head_step; h++)
        forward_head(ctx, &s, tile, h);
}

void ps_attention_forward(struct ps_pool *pool, enum ps_isa isa,
                          const struct ps_attention_args *args, void *workspace)
{
    struct ps__attention_ctx ctx;
    ps__attention_ctx_init(&ctx, pool, isa, args, workspace);
    int32_t wave = ctx.kv_count;
    for (int32_t kv = 0; kv < args->n_kv_head; kv += wave) {
        int32_t left = args->n_kv_head - kv;
        ctx.kv_begin = kv;
        ctx.kv_count = left < wave ? left : wave;
        size_t pairs = (size_t)ctx.tile_count * (size_t)ctx.kv_count;
        size_t enough = (size_t)TASKS_PER_THREAD * (size_t)ps_pool_thread_count(pool);
        ctx.head_step = pairs >= enough ? ctx.group : 1;
        ps_pool_run(pool, pack_task, &ctx, pairs);
        ps_pool_run(pool, forward_task, &ctx, pairs * (size_t)(ctx.group / ctx.head_step));
    }
}

/* Decoding: the query heads of one key-value head are the columns of the tile, and every key of the
 * window is visible to each of them. */
static void decode_task(void *arg, size_t task_idx, int thread_idx)
{
    const struct ps__attention_ctx *ctx = arg;
    const struct ps_attention_args *a = ctx->args;
    struct area s = carve(ctx, thread_idx);
    int32_t kv = (int32_t)task_idx, n_key = ctx->tile_count; /* see ps_attention_decode */
    int32_t begin =
        a->sliding_window > 0 && n_key > a->sliding_window ? n_key - a->sliding_window : 0;
    for (int32_t g = 0; g < ctx->group; g += PS__ATTENTION_TILE) {
        int32_t left = ctx->group - g, head = kv * ctx->group + g;
        size_t cols = (size_t)(left < PS__ATTENTION_TILE ? left : PS__ATTENTION_TILE);
        size_t ld = ps__attention_round(cols, PS__ATTENTION_LANE);
        struct ps__attention_src q =
            ps__attention_src(ctx, a->q, ctx->head_dim, head, cols, 0); /* row i is head i */
        ctx->ops.pack_bt(&q, s.q_bt, ld);
        start_rows(&s, ld);
        for (int32_t k0 = begin; k0 < n_key; k0 += PS__ATTENTION_TILE) {
            int32_t n = n_key - k0 < PS__ATTENTION_TILE ? n_key - k0 : PS__ATTENTION_TILE;
            struct ps__attention_src k = ps__attention_src(ctx, a->k, a->k_ld, k0, (size_t)n, kv);
            struct ps__attention_src v = ps__attention_src(ctx, a->v, a->v_ld, k0, (size_t)n, kv);
            ctx->ops.pack_a(&k, s.k_a, ctx->dk);
            ctx->ops.pack_at(&v, s.v_at, ps__attention_round((size_t)n, ctx->ops.k_group));
            struct ps__attention_scores t = {.s = s.s,
                                             .ld = ld,
                                             .rows = n,
                                             .cols = (int32_t)cols,
                                             .lo = -HI_MAX,
                                             .hi = HI_MAX,
                                             .c = fabsf(a->scale) * PS__LOG2E};
            forward_tile(ctx, &s, &t, s.k_a, s.v_at, k0 == begin);
        }
        struct ps__attention_dst out = ps__attention_dst(ctx, a->out, ctx->head_dim, head, cols, 0);
        finish_rows(ctx, &s, ld, &out, a->lse ? a->lse + head : NULL, 1);
    }
}

void ps_attention_decode(struct ps_pool *pool, enum ps_isa isa,
                         const struct ps_attention_args *args, int32_t n_past, void *workspace)
{
    struct ps__attention_ctx ctx;
    struct ps_attention_args a = *args;
    a.doc_count = 0; /* no tables: the workspace serves for scratch alone */
    ps__attention_ctx_init(&ctx, pool, isa, &a, workspace);
    ctx.tile_count = n_past + 1;
    ps_pool_run(pool, decode_task, &ctx, (size_t)args->n_kv_head);
}
