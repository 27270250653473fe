/* Tiles of causal attention: what the drivers (attention.c, attention_backward.c) and the tile code
 * of each instruction set share.
 *
 * Design: every score tile is held transposed, keys as rows and queries as columns, because then
 *   S^T  = K Q^T       (rows of K from memory as broadcast operand, Q^T packed once a query tile)
 *   O^T += V^T P^T     and  dQ^T += K^T dS^T
 *   dV  += P^T dO      and  dK   += dS^T Q
 * all have the shape C += A B with A read by broadcasts (row-major, any leading dimension) and B
 * read by vectors, softmax statistics run down the rows, one vector lane a query, without any
 * horizontal reduction, and P^T and dS^T are written by vectors in both operand layouts: nothing in
 * the inner loop is ever transposed.
 *
 * Layouts. kg = ops->k_group is 1 (operands fp32) or 2 (operands bf16, pairs along K):
 *   A operand  (m, lda)              row-major, lda >= K, K a multiple of kg, zero padded
 *   B operand  (K / kg, ldb, kg)     ldb >= N, N a multiple of PS__ATTENTION_LANE, zero padded
 *
 * Invariants
 *  1. An element of C is one accumulator chain in ascending k, started from C when accumulating; it
 *     does not depend on m, n or its place in the tile.
 *  2. Tiles start at multiples of PS__ATTENTION_TILE from the start of their document. */
#ifndef PS_KERNELS_ATTENTION_INTERNAL_H
#define PS_KERNELS_ATTENTION_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/kernels/attention.h"

enum { PS__ATTENTION_TILE = 64, PS__ATTENTION_LANE = 16 };

/* 2^x for |x| <= 1/2: minimax polynomial of degree 6, relative error 1.9e-9 before rounding. With
 * exponent scaling at most 1 ulp for results that are normal numbers; smaller results become 0, and from 2^127.5
 * on they may be Inf (probabilities stay near 1). */
#define PS__EXP2_C0 1.0f
#define PS__EXP2_C1 0x1.62e430p-1f
#define PS__EXP2_C2 0x1.ebfbdap-3f
#define PS__EXP2_C3 0x1.c6aed4p-5f
#define PS__EXP2_C4 0x1.3b2dbcp-7f
#define PS__EXP2_C5 0x1.5f456ap-10f
#define PS__EXP2_C6 0x1.41d334p-13f
#define PS__EXP2_MIN (-126.0f)
#define PS__EXP2_MAX 128.0f
#define PS__LOG2E 0x1.715476p+0f
#define PS__LN2 0x1.62e430p-1f

/* C (m, n; leading dimension ldc, fp32) = or += A B. */
struct ps__attention_gemm {
    float *c;
    const void *a, *b;
    size_t ldc, lda, ldb;
    size_t m, n, k;
    int accumulate;
};

/* A matrix of the caller: (rows, cols), F32 or BF16, leading dimension in elements. */
struct ps__attention_src {
    const void *data;
    size_t ld;
    enum ps_dtype dtype;
    size_t rows, cols;
};

struct ps__attention_dst {
    void *data;
    size_t ld;
    enum ps_dtype dtype;
    size_t rows, cols;
};

/* A tile of transposed scores, before scaling. Column q of row r is visible if lo + r <= q < hi + r
 * and q < cols; exponents are y = c * s - (statistic of the column). */
struct ps__attention_scores {
    float *s;  /* (rows, ld) */
    size_t ld; /* cols rounded up to LANE: also the ld of every operand made from the tile */
    int32_t rows, cols;
    int32_t lo, hi;
    float c; /* |scale| * log2(e) */
};

struct ps__attention_ops {
    size_t k_group;
    int round_bf16; /* operands are fp32 but rounded to bf16 values (kg == 1) */

    void (*gemm)(const struct ps__attention_gemm *g);

    /* Online softmax: m, l (cols) are updated, alpha = 2^(c*(m_old - m_new)), p (B operand) =
     * 2^(c*s - c*m_new), 0 where masked. Returns whether any alpha differs from 1. */
    int (*softmax)(const struct ps__attention_scores *t, float *m, float *l, float *alpha, void *p,
                   int round_bf16);
    /* p = 2^(c*s - lse2), ds = p * (dp - delta), both 0 where masked; p_a, ds_a as A operands (rows
     * keys, lda = ld), ds_b as B operand; with kg == 1, ds_b is ds_a. s and dp may be overwritten.
     */
    void (*grad)(const struct ps__attention_scores *t, const float *dp, const float *lse2,
                 const float *delta, void *p_a, void *ds_a, void *ds_b, int round_bf16);

    /* Operands from the caller's matrix; unused places up to ld (and the odd row of a pair) are 0.
     */
    void (*pack_a)(const struct ps__attention_src *src, void *dst, size_t ld);  /* A = src */
    void (*pack_at)(const struct ps__attention_src *src, void *dst, size_t ld); /* A = src^T */
    void (*pack_b)(const struct ps__attention_src *src, void *dst, size_t ld);  /* B = src */
    void (*pack_bt)(const struct ps__attention_src *src, void *dst, size_t ld); /* B = src^T */

    /* x[r][j] *= f[j] for rows r, j < ld. */
    void (*scale_cols)(float *x, size_t rows, size_t ld, const float *f);
    /* dst[i][j] = x[j][i] * f[i], rounded once to the dtype; x has leading dimension ld. */
    void (*store_t)(const float *x, size_t ld, const float *f, const struct ps__attention_dst *dst);
    /* dst[i][j] = x[i][j] * f, rounded once. */
    void (*store)(const float *x, size_t ld, float f, const struct ps__attention_dst *dst);
    /* out[h][i] = sum over j < dim of a[i][h dim + j] * b[i][h dim + j], fp32, for the heads h <
     * cols / dim of rows of the same shape; out has leading dimension ld. */
    void (*head_dot)(const struct ps__attention_src *a, const struct ps__attention_src *b,
                     size_t dim, float *out, size_t ld);
};

/* Fill *ops with the best tile code of the level for the dtype. */
void ps__attention_ops_select(struct ps__attention_ops *ops, enum ps_isa isa, enum ps_dtype dtype);

/* Each level replaces what it does better than the one below. */
void ps__attention_ops_portable(struct ps__attention_ops *ops, enum ps_dtype dtype);
void ps__attention_ops_avx2(struct ps__attention_ops *ops);
void ps__attention_ops_avx512(struct ps__attention_ops *ops);
void ps__attention_ops_avx512_bf16(struct ps__attention_ops *ops);

/* Which products of a tile on the diagonal (keys and queries from the same token) are left out, in
 * steps of LANE: those that the mask makes 0. */
enum ps__attention_trim {
    PS__ATTENTION_TRIM_NONE,
    PS__ATTENTION_TRIM_COLS,      /* C (keys, queries): columns before the row */
    PS__ATTENTION_TRIM_DEPTH_COL, /* B (keys, queries): depth after the column */
    PS__ATTENTION_TRIM_DEPTH_ROW  /* A (keys, queries): depth before the row */
};

/* ops->gemm but for what `trim` leaves out; with TRIM_COLS that part of C is not written. */
void ps__attention_multiply(const struct ps__attention_ops *ops, const struct ps__attention_gemm *g,
                            enum ps__attention_trim trim);

/* Rows of a tile that any of the LANE columns from q sees end here: tile code need write nothing of
 * these columns below. */
static inline int32_t ps__attention_rows_end(const struct ps__attention_scores *t, int32_t q)
{
    int32_t end = q + PS__ATTENTION_LANE - t->lo;
    return end < t->rows ? end : t->rows;
}

/* Rows and columns change places in 16 x 16 words of 4 bytes, 64-byte aligned. AVX-512. */
void ps__attention_transpose_avx512(void *block);

/* One tile of tokens of one document. */
struct ps__attention_tile {
    int32_t begin, end; /* the document */
    int32_t start;      /* first token of the tile */
    int32_t slot;       /* offset of the tile in the dQ scratch, in tokens; -1: needs none */
};

/* A run of key tiles of one document: the unit of the backward pass. */
struct ps__attention_block {
    int32_t tile; /* first tile */
    int32_t tile_count;
    int32_t idx; /* number of the block in its document */
};

/* Everything a task needs; constant while tasks run, but for what the pointers refer to. */
struct ps__attention_ctx {
    const struct ps_attention_args *args;
    struct ps__attention_ops ops;
    size_t head_dim, dk, dn;    /* dk: rounded up to kg; dn: to LANE */
    int32_t group;              /* query heads of one key-value head */
    int32_t kv_begin, kv_count; /* key-value heads of this wave */
    int32_t head_step;          /* forward: heads of one task */
    int flip;                   /* scale is negative: scores are negated and |scale| is used */
    int32_t tile_count, block_count;
    struct ps__attention_tile *tile;   /* (tile_count,) */
    struct ps__attention_block *block; /* (block_count,) */
    char *key_pack, *value_pack;       /* forward: (kv_count, n_tok, head_dim) slots of 4 bytes */
    float *lse2, *delta;               /* backward: (kv_count * group, n_tok) */
    float *dq;                         /* backward: (kv_count * group, slot_count, head_dim) */
    atomic_int *turn; /* backward: (kv_count * group, slot_count / LANE), blocks done; atomic */
    size_t slot_count;
    char *scratch; /* thread_count areas */
    size_t scratch_bytes;
};

/* Tokens of one wave of key-value heads never exceed this, or one head's. */
size_t ps__attention_wave_tokens(size_t n_tok, size_t n_kv_head, int thread_count);

/* Lay the workspace out for args and fill in ctx but for the wave. */
void ps__attention_ctx_init(struct ps__attention_ctx *ctx, struct ps_pool *pool, enum ps_isa isa,
                            const struct ps_attention_args *args, void *workspace);

/* Rows [start, start + rows) of head h of a tensor of the caller. */
struct ps__attention_src ps__attention_src(const struct ps__attention_ctx *ctx, const void *data,
                                           size_t ld, int32_t start, size_t rows, int32_t head);
struct ps__attention_dst ps__attention_dst(const struct ps__attention_ctx *ctx, void *data,
                                           size_t ld, int32_t start, size_t rows, int32_t head);

/* Fetch rows that will be packed next: they are strided, hardware does not foresee them. */
void ps__attention_prefetch(const struct ps__attention_src *m);

/* Mask of the tile of `rows` keys from k0 and `cols` queries from q0, scores in s. */
struct ps__attention_scores ps__attention_scores(const struct ps__attention_ctx *ctx, float *s,
                                                 int32_t k0, size_t rows, int32_t q0, size_t cols);

/* First key tile, counted from the document's start, that a query of the tile sees. */
int32_t ps__attention_first_tile(const struct ps__attention_ctx *ctx,
                                 const struct ps__attention_tile *query);

/* Negate a tile of scores if the scale is negative. */
void ps__attention_flip(const struct ps__attention_ctx *ctx, const struct ps__attention_scores *t);

static inline size_t ps__attention_round(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static inline size_t ps__attention_tile_len(const struct ps__attention_tile *t)
{
    int32_t n = t->end - t->start;
    return (size_t)(n < PS__ATTENTION_TILE ? n : PS__ATTENTION_TILE);
}

/* Cut the next n bytes off a scratch area, 64-byte aligned. */
static inline void *ps__attention_take(char **at, size_t bytes)
{
    void *p = *at;
    *at += ps__attention_round(bytes, 64);
    return p;
}

#endif
