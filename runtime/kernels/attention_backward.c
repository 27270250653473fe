/* Backward pass of causal attention: see attention.h and attention_internal.h.
 *
 * Design: five tile products. A task owns a run of key tiles of one document and key-value head and
 * walks the heads of the group and, ascending, the query tiles that see it: dK and dV are sums in
 * its own scratch. dQ is summed in fp32 over the tasks of a document in ascending order of key
 * tiles: a task waits for its turn at each query tile. Tasks are handed out in ascending order, so
 * the task waited for is running or done, and a neighbour is only a few tiles ahead: threads follow
 * each other down the queries like a wavefront and rarely wait. Rejected: two passes (seven
 * products), dQ partial sums per thread (bits would depend on the split, or memory on the keys).
 *
 * Order of sums: dK, dV of a tile over (head of the group, query tile) ascending; dQ over key tiles
 * ascending. Neither depends on how many tiles a task owns, nor on the threads. */
#include "runtime/kernels/attention.h"

#include <math.h>
#include <sched.h>
#include <string.h>

#include "runtime/kernels/attention_internal.h"

enum { SPIN_COUNT = 2000 };

/* Scratch of a task. Per key tile i of the block, at i * (TILE * dn) floats. */
struct area {
    float *dk, *dv;         /* (rows, dn) */
    char *k_a, *v_a, *k_at; /* operands */
    void *q_bt, *do_bt, *q_b, *do_b;
    float *dq; /* of documents that fit in one block */
    float *s, *dp;
    void *p_a, *ds_a, *ds_b;
    float *lse2, *delta, *factor;
};

/* What a task works on. */
struct job {
    const struct ps__attention_ctx *ctx;
    const struct ps__attention_block *block;
    int32_t kv, head;
    int32_t doc_tile; /* first tile of the document in the table */
    struct area area;
};

static size_t tile_floats(const struct ps__attention_ctx *ctx)
{
    return PS__ATTENTION_TILE * ctx->dn;
}

static struct area carve(const struct ps__attention_ctx *ctx, int thread_idx, size_t tiles)
{
    char *at = ctx->scratch + (size_t)thread_idx * ctx->scratch_bytes;
    size_t wide = tile_floats(ctx) * sizeof(float);
    size_t square = PS__ATTENTION_TILE * PS__ATTENTION_TILE * sizeof(float);
    size_t line = PS__ATTENTION_TILE * sizeof(float);
    struct area s;
    s.dk = ps__attention_take(&at, tiles * wide);
    s.dv = ps__attention_take(&at, tiles * wide);
    s.k_a = ps__attention_take(&at, tiles * wide);
    s.v_a = ps__attention_take(&at, tiles * wide);
    s.k_at = ps__attention_take(&at, tiles * wide);
    s.q_bt = ps__attention_take(&at, wide);
    s.do_bt = ps__attention_take(&at, wide);
    s.q_b = ps__attention_take(&at, wide);
    s.do_b = ps__attention_take(&at, wide);
    s.dq = ps__attention_take(&at, wide);
    s.s = ps__attention_take(&at, square);
    s.dp = ps__attention_take(&at, square);
    s.p_a = ps__attention_take(&at, square);
    s.ds_a = ps__attention_take(&at, square);
    s.ds_b = ctx->ops.k_group == 1 ? s.ds_a : ps__attention_take(&at, square);
    s.lse2 = ps__attention_take(&at, line);
    s.delta = ps__attention_take(&at, line);
    s.factor = ps__attention_take(&at, line);
    return s;
}

static const struct ps__attention_tile *key_tile(const struct job *j, int32_t i)
{
    return &j->ctx->tile[j->block->tile + i];
}

/* Operands of the keys and values of the block; empty sums. */
static void pack_keys(const struct job *j)
{
    const struct ps__attention_ctx *ctx = j->ctx;
    const struct ps_attention_args *a = ctx->args;
    for (int32_t i = 0; i < j->block->tile_count; i++) {
        const struct ps__attention_tile *t = key_tile(j, i);
        size_t rows = ps__attention_tile_len(t), at = (size_t)i * tile_floats(ctx) * sizeof(float);
        struct ps__attention_src k = ps__attention_src(ctx, a->k, a->k_ld, t->start, rows, j->kv);
        struct ps__attention_src v = ps__attention_src(ctx, a->v, a->v_ld, t->start, rows, j->kv);
        ctx->ops.pack_a(&k, j->area.k_a + at, ctx->dk);
        ctx->ops.pack_a(&v, j->area.v_a + at, ctx->dk);
        ctx->ops.pack_at(&k, j->area.k_at + at, ps__attention_round(rows, ctx->ops.k_group));
    }
    size_t bytes = (size_t)j->block->tile_count * tile_floats(ctx) * sizeof(float);
    memset(j->area.dk, 0, bytes);
    memset(j->area.dv, 0, bytes);
}

static void prefetch_queries(const struct job *j, const struct ps__attention_tile *qt, int32_t head)
{
    const struct ps_attention_args *a = j->ctx->args;
    size_t rows = ps__attention_tile_len(qt);
    struct ps__attention_src q = ps__attention_src(j->ctx, a->q, a->q_ld, qt->start, rows, head);
    struct ps__attention_src g =
        ps__attention_src(j->ctx, a->dout, a->dout_ld, qt->start, rows, head);
    ps__attention_prefetch(&q);
    ps__attention_prefetch(&g);
}

/* Operands and statistics of a tile of queries. */
static void pack_queries(const struct job *j, const struct ps__attention_tile *qt)
{
    const struct ps__attention_ctx *ctx = j->ctx;
    const struct ps_attention_args *a = ctx->args;
    const struct area *s = &j->area;
    size_t cols = ps__attention_tile_len(qt), ld = ps__attention_round(cols, PS__ATTENTION_LANE);
    struct ps__attention_src q = ps__attention_src(ctx, a->q, a->q_ld, qt->start, cols, j->head);
    struct ps__attention_src g =
        ps__attention_src(ctx, a->dout, a->dout_ld, qt->start, cols, j->head);
    ctx->ops.pack_bt(&q, s->q_bt, ld);
    ctx->ops.pack_bt(&g, s->do_bt, ld);
    ctx->ops.pack_b(&q, s->q_b, ctx->dn);
    ctx->ops.pack_b(&g, s->do_b, ctx->dn);
    size_t local = (size_t)(j->head - ctx->kv_begin * ctx->group);
    size_t at = local * (size_t)a->doc_start[a->doc_count] + (size_t)qt->start;
    memcpy(s->lse2, ctx->lse2 + at, cols * sizeof(float));
    memcpy(s->delta, ctx->delta + at, cols * sizeof(float));
    for (size_t i = cols; i < ld; i++)
        s->lse2[i] = s->delta[i] = 0;
}

/* P^T, dS^T of one tile and its part of dV and dK. */
static void tile_keys(const struct job *j, int32_t i, const struct ps__attention_scores *t)
{
    const struct ps__attention_ctx *ctx = j->ctx;
    const struct ps__attention_ops *ops = &ctx->ops;
    const struct area *s = &j->area;
    size_t at = (size_t)i * tile_floats(ctx);
    enum ps__attention_trim scores = t->lo == 0 ? PS__ATTENTION_TRIM_COLS : PS__ATTENTION_TRIM_NONE;
    enum ps__attention_trim sums =
        t->lo == 0 ? PS__ATTENTION_TRIM_DEPTH_ROW : PS__ATTENTION_TRIM_NONE;
    struct ps__attention_gemm g = {
        .lda = ctx->dk, .ldb = t->ld, .ldc = t->ld, .m = (size_t)t->rows, .n = t->ld, .k = ctx->dk};
    g.c = s->s, g.a = s->k_a + at * sizeof(float), g.b = s->q_bt;
    ps__attention_multiply(ops, &g, scores);
    g.c = s->dp, g.a = s->v_a + at * sizeof(float), g.b = s->do_bt;
    ps__attention_multiply(ops, &g, scores);
    ps__attention_flip(ctx, t);
    ops->grad(t, s->dp, s->lse2, s->delta, s->p_a, s->ds_a, s->ds_b, ops->round_bf16);

    g.lda = t->ld;
    g.ldb = g.ldc = g.n = ctx->dn;
    g.k = ps__attention_round((size_t)t->cols, ops->k_group);
    g.accumulate = 1;
    g.c = s->dv + at, g.a = s->p_a, g.b = s->do_b;
    ps__attention_multiply(ops, &g, sums);
    g.c = s->dk + at, g.a = s->ds_a, g.b = s->q_b;
    ps__attention_multiply(ops, &g, sums);
}

static void wait_for_turn(atomic_int *turn, int value)
{
    int spin = 0;
    /* acquire: orders our use of the dQ tile after the release of the task before us */
    while (atomic_load_explicit(turn, memory_order_acquire) != value) {
        if (++spin > SPIN_COUNT)
            sched_yield();
    }
}

/* One tile of queries against the key tiles of the block. */
static void query_tile(const struct job *j, int32_t tile_idx, int32_t first)
{
    const struct ps__attention_ctx *ctx = j->ctx;
    const struct ps_attention_args *a = ctx->args;
    const struct area *s = &j->area;
    const struct ps__attention_tile *qt = &ctx->tile[tile_idx];
    size_t cols = ps__attention_tile_len(qt), ld = ps__attention_round(cols, PS__ATTENTION_LANE);
    size_t local = (size_t)(j->head - ctx->kv_begin * ctx->group);
    float *dq = s->dq;
    atomic_int *turn = NULL;
    if (qt->slot >= 0) {
        size_t at = local * ctx->slot_count + (size_t)qt->slot;
        dq = ctx->dq + at * ctx->head_dim;
        turn = ctx->turn + at / PS__ATTENTION_LANE;
    }
    pack_queries(j, qt);
    int32_t block_first = j->block->tile - j->doc_tile, query = tile_idx - j->doc_tile;
    for (int32_t i = 0; i < j->block->tile_count; i++) {
        int32_t key = block_first + i;
        if (key < first || key > query)
            continue;
        const struct ps__attention_tile *kt = key_tile(j, i);
        size_t rows = ps__attention_tile_len(kt);
        struct ps__attention_scores t =
            ps__attention_scores(ctx, s->s, kt->start, rows, qt->start, cols);
        tile_keys(j, i, &t);
        if (turn && i == 0 && key > first)
            wait_for_turn(turn, j->block->idx);
        size_t rows_k = ps__attention_round(rows, ctx->ops.k_group);
        struct ps__attention_gemm g = {.c = dq,
                                       .ldc = ld,
                                       .a = s->k_at + (size_t)i * tile_floats(ctx) * sizeof(float),
                                       .lda = rows_k,
                                       .b = s->ds_b,
                                       .ldb = ld,
                                       .m = ctx->head_dim,
                                       .n = ld,
                                       .k = rows_k,
                                       .accumulate = key > first};
        ps__attention_multiply(&ctx->ops, &g,
                               t.lo == 0 ? PS__ATTENTION_TRIM_DEPTH_COL : PS__ATTENTION_TRIM_NONE);
    }
    if (query < block_first + j->block->tile_count) {
        struct ps__attention_dst out =
            ps__attention_dst(ctx, a->dq, a->dq_ld, qt->start, cols, j->head);
        ctx->ops.store_t(dq, ld, s->factor, &out);
    } else {
        /* release: our sums are in memory before the next task's acquire */
        atomic_store_explicit(turn, j->block->idx + 1, memory_order_release);
    }
}

/* lse in powers of two, and D = rowsum(dO * O), of a tile of tokens for the heads of the wave. */
static void stats_task(void *arg, size_t task_idx, int thread_idx)
{
    const struct ps__attention_ctx *ctx = arg;
    const struct ps_attention_args *a = ctx->args;
    const struct ps__attention_tile *t = &ctx->tile[task_idx];
    size_t rows = ps__attention_tile_len(t), n_head = (size_t)a->n_head;
    (void)thread_idx;
    int32_t head = ctx->kv_begin * ctx->group, heads = ctx->kv_count * ctx->group;
    size_t n_tok = (size_t)a->doc_start[a->doc_count];
    struct ps__attention_src g = ps__attention_src(ctx, a->dout, a->dout_ld, t->start, rows, head);
    struct ps__attention_src o = ps__attention_src(ctx, a->out, a->out_ld, t->start, rows, head);
    g.cols = o.cols = (size_t)heads * ctx->head_dim;
    ctx->ops.head_dot(&g, &o, ctx->head_dim, ctx->delta + t->start, n_tok);
    const float *lse = a->lse + (size_t)t->start * n_head + (size_t)head;
    for (size_t i = 0; i < rows; i++) {
        for (size_t h = 0; h < (size_t)heads; h++)
            ctx->lse2[h * n_tok + (size_t)t->start + i] = lse[i * n_head + h] * PS__LOG2E;
    }
}

static void backward_task(void *arg, size_t task_idx, int thread_idx)
{
    const struct ps__attention_ctx *ctx = arg;
    const struct ps_attention_args *a = ctx->args;
    struct job j = {.ctx = ctx, .block = &ctx->block[task_idx / (size_t)ctx->kv_count]};
    const struct ps__attention_tile *first_key = &ctx->tile[j.block->tile];
    int32_t block_first = (first_key->start - first_key->begin) / PS__ATTENTION_TILE;
    int32_t doc_tiles = (first_key->end - first_key->begin - 1) / PS__ATTENTION_TILE + 1;
    j.kv = ctx->kv_begin + (int32_t)(task_idx % (size_t)ctx->kv_count);
    j.doc_tile = j.block->tile - block_first;
    j.area = carve(ctx, thread_idx, (size_t)j.block->tile_count);
    for (int32_t i = 0; i < PS__ATTENTION_TILE; i++)
        j.area.factor[i] = a->scale;
    pack_keys(&j);
    for (int32_t g = 0; g < ctx->group; g++) {
        j.head = j.kv * ctx->group + g;
        for (int32_t q = block_first; q < doc_tiles; q++) {
            int32_t first = ps__attention_first_tile(ctx, &ctx->tile[j.doc_tile + q]);
            if (first >= block_first + j.block->tile_count)
                break;
            if (q + 1 < doc_tiles)
                prefetch_queries(&j, &ctx->tile[j.doc_tile + q + 1], j.head);
            else if (g + 1 < ctx->group)
                prefetch_queries(&j, first_key, j.head + 1);
            query_tile(&j, j.doc_tile + q, first);
        }
    }
    for (int32_t i = 0; i < j.block->tile_count; i++) {
        const struct ps__attention_tile *t = key_tile(&j, i);
        size_t rows = ps__attention_tile_len(t), at = (size_t)i * tile_floats(ctx);
        struct ps__attention_dst dk = ps__attention_dst(ctx, a->dk, a->dk_ld, t->start, rows, j.kv);
        struct ps__attention_dst dv = ps__attention_dst(ctx, a->dv, a->dv_ld, t->start, rows, j.kv);
        ctx->ops.store(j.area.dk + at, ctx->dn, a->scale, &dk);
        ctx->ops.store(j.area.dv + at, ctx->dn, 1.0f, &dv);
    }
}

void ps_attention_backward(struct ps_pool *pool, enum ps_isa isa,
                           const struct ps_attention_args *args, void *workspace)
{
    struct ps__attention_ctx ctx;
    ps__attention_ctx_init(&ctx, pool, isa, args, workspace);
    int32_t wave = ctx.kv_count;
    for (int32_t kv = 0; kv < args->n_kv_head; kv += wave) {
        int32_t left = args->n_kv_head - kv;
        ctx.kv_begin = kv;
        ctx.kv_count = left < wave ? left : wave;
        size_t turns = ctx.slot_count / PS__ATTENTION_LANE * (size_t)(ctx.kv_count * ctx.group);
        for (size_t i = 0; i < turns; i++)
            atomic_store_explicit(&ctx.turn[i], 0, memory_order_relaxed);
        ps_pool_run(pool, stats_task, &ctx, (size_t)ctx.tile_count);
        ps_pool_run(pool, backward_task, &ctx, (size_t)ctx.block_count * (size_t)ctx.kv_count);
    }
}
