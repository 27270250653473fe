/* Tile code of attention for vdpbf16ps: operands are bf16, pairs along K (k_group 2). See
 * attention_internal.h for the layouts and what each function does. The instruction flushes
 * subnormal inputs and results to zero. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "runtime/kernels/attention_internal.h"

#define INLINE static inline __attribute__((always_inline))

enum { W = PS__ATTENTION_LANE };

INLINE __m512bh as_bh(__m512i x)
{
    union {
        __m512i i;
        __m512bh h;
    } u = {.i = x};
    return u.h;
}

INLINE __m512i bh_bits(__m512bh x)
{
    union {
        __m512bh h;
        __m512i i;
    } u = {.h = x};
    return u.i;
}

/* A pair of neighbouring elements, any alignment. */
INLINE int32_t pair(const uint16_t *p)
{
    int32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* C[i .. i+mr) x [j .. j + 16 nv) in registers; mr and nv are constants. */
INLINE void micro(const struct ps__attention_gemm *g, size_t i, size_t j, const int mr,
                  const int nv)
{
    __m512 acc[16][4];
    const uint16_t *a = (const uint16_t *)g->a + i * g->lda, *b = (const uint16_t *)g->b + 2 * j;
    float *c = g->c + i * g->ldc + j;
    for (int r = 0; r < mr; r++) {
        for (int v = 0; v < nv; v++) {
            acc[r][v] = g->accumulate ? _mm512_loadu_ps(c + (size_t)r * g->ldc + W * v)
                                      : _mm512_setzero_ps();
        }
    }
    size_t lda = g->lda, ldb = g->ldb;
    for (size_t k = 0; k < g->k; k += 2) {
        __m512bh y[4];
        for (int v = 0; v < nv; v++)
            y[v] = as_bh(_mm512_loadu_si512(b + 2 * W * v));
        for (int r = 0; r < mr; r++) {
            __m512bh x = as_bh(_mm512_set1_epi32(pair(a + (size_t)r * lda)));
            for (int v = 0; v < nv; v++)
                acc[r][v] = _mm512_dpbf16_ps(acc[r][v], x, y[v]);
        }
        a += 2;
        b += 2 * ldb;
    }
    for (int r = 0; r < mr; r++) {
        for (int v = 0; v < nv; v++)
            _mm512_storeu_ps(c + (size_t)r * g->ldc + W * v, acc[r][v]);
    }
}

/* Every row of a panel of 16 nv columns, mr rows at a time. */
INLINE void panel(const struct ps__attention_gemm *g, size_t j, const int mr, const int nv)
{
    size_t i = 0;
    for (; i + (size_t)mr <= g->m; i += (size_t)mr)
        micro(g, i, j, mr, nv);
    for (; i + 4 <= g->m; i += 4)
        micro(g, i, j, 4, nv);
    for (; i < g->m; i++)
        micro(g, i, j, 1, nv);
}

static void gemm(const struct ps__attention_gemm *g)
{
    size_t vectors = g->n / W, panels = (vectors + 3) / 4, at = 0;
    for (size_t p = 0; p < panels; p++) {
        size_t nv = (vectors - at) / (panels - p);
        switch (nv) {
        case 4:
            panel(g, at * W, 6, 4);
            break;
        case 3:
            panel(g, at * W, 8, 3);
            break;
        case 2:
            panel(g, at * W, 12, 2);
            break;
        default:
            panel(g, at * W, 12, 1);
        }
        at += nv;
    }
}

/* Masked places of the 16 columns from q of row r are 0 bits. */
INLINE __mmask16 visible(const struct ps__attention_scores *t, int32_t r, int32_t q)
{
    int32_t lo = r + t->lo - q, hi = r + t->hi - q, end = t->cols - q;
    if (r >= t->rows)
        return 0; /* the odd row of a pair */
    hi = hi < end ? hi : end;
    lo = lo < 0 ? 0 : lo > W ? W : lo;
    hi = hi < lo ? lo : hi > W ? W : hi;
    return (__mmask16)((1u << hi) - (1u << lo));
}

/* No mask anywhere, and no odd row. */
INLINE int all_visible(const struct ps__attention_scores *t)
{
    return t->lo + t->rows <= 1 && t->hi >= t->cols && (size_t)t->cols == t->ld && t->rows % 2 == 0;
}

INLINE __m512 exp2_ps(__m512 y)
{
    __mmask16 live = _mm512_cmp_ps_mask(y, _mm512_set1_ps(PS__EXP2_MIN), _CMP_NLT_UQ);
    __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(y, n);
    __m512 p = _mm512_set1_ps(PS__EXP2_C6);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(PS__EXP2_C5));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(PS__EXP2_C4));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(PS__EXP2_C3));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(PS__EXP2_C2));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(PS__EXP2_C1));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(PS__EXP2_C0));
    return _mm512_maskz_scalef_ps(live, p, n);
}

/* Places of lo in the even halves, of hi in the odd ones: a row of a B operand from two rows. */
INLINE __m512i interleave(__m512 lo, __m512 hi)
{
    __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                     23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, bh_bits(_mm512_cvtne2ps_pbh(hi, lo)));
}

INLINE __m512 column_max(const struct ps__attention_scores *t, int32_t q, __m512 max,
                         const int full)
{
    int32_t end = ps__attention_rows_end(t, q);
    __m512 other = max;
    for (int32_t r = 0; r < end; r += 2) {
        const float *s = t->s + (size_t)r * t->ld + q;
        if (full) {
            max = _mm512_max_ps(_mm512_loadu_ps(s), max);
            other = _mm512_max_ps(_mm512_loadu_ps(s + t->ld), other);
        } else {
            max = _mm512_mask_max_ps(max, visible(t, r, q), _mm512_loadu_ps(s), max);
            __mmask16 on = visible(t, r + 1, q);
            other = _mm512_mask_max_ps(other, on, _mm512_maskz_loadu_ps(on, s + t->ld), other);
        }
    }
    return _mm512_max_ps(max, other);
}

INLINE int softmax_cols(const struct ps__attention_scores *t, float *m, float *l, float *alpha,
                        uint16_t *p, const int full)
{
    const __m512 minus_inf = _mm512_set1_ps(-INFINITY), c = _mm512_set1_ps(t->c);
    int moved = 0;
    for (int32_t q = 0; q < (int32_t)t->ld; q += W) {
        int32_t end = ps__attention_rows_end(t, q);
        __m512 old = _mm512_loadu_ps(m + q), max = column_max(t, q, old, full);
        __mmask16 some = _mm512_cmp_ps_mask(max, minus_inf, _CMP_NEQ_UQ);
        __mmask16 had = _mm512_cmp_ps_mask(old, minus_inf, _CMP_NEQ_UQ);
        __m512 mc = _mm512_maskz_mul_ps(some, max, c);
        __m512 scale = _mm512_maskz_mov_ps(had, exp2_ps(_mm512_fmsub_ps(old, c, mc)));
        moved |= _mm512_cmp_ps_mask(scale, _mm512_set1_ps(1), _CMP_NEQ_UQ) != 0;
        _mm512_storeu_ps(m + q, max);
        _mm512_storeu_ps(alpha + q, scale);
        __m512 sum = _mm512_setzero_ps(), sum1 = _mm512_setzero_ps();
        for (int32_t r = 0; r < end; r += 2) {
            const float *s = t->s + (size_t)r * t->ld + q;
            __m512 x, y;
            if (full) {
                x = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(s), c, mc));
                y = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(s + t->ld), c, mc));
            } else {
                __mmask16 on = visible(t, r, q), on1 = visible(t, r + 1, q);
                x = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(s), c, mc));
                y = exp2_ps(_mm512_fmsub_ps(_mm512_maskz_loadu_ps(on1, s + t->ld), c, mc));
                x = _mm512_maskz_mov_ps(on, x);
                y = _mm512_maskz_mov_ps(on1, y);
            }
            sum = _mm512_add_ps(sum, x);
            sum1 = _mm512_add_ps(sum1, y);
            _mm512_storeu_si512(p + (size_t)r * t->ld + 2 * (size_t)q, interleave(x, y));
        }
        sum = _mm512_add_ps(sum, sum1);
        _mm512_storeu_ps(l + q, _mm512_fmadd_ps(_mm512_loadu_ps(l + q), scale, sum));
    }
    return moved;
}

static int softmax(const struct ps__attention_scores *t, float *m, float *l, float *alpha, void *p,
                   int round_bf16)
{
    (void)round_bf16;
    return all_visible(t) ? softmax_cols(t, m, l, alpha, p, 1) : softmax_cols(t, m, l, alpha, p, 0);
}

/* 16 columns of a row as bf16. */
INLINE void store_half(uint16_t *to, __m512 x)
{
    union {
        __m256bh h;
        __m256i i;
    } u = {.h = _mm512_cvtneps_pbh(x)};
    _mm256_storeu_si256((__m256i *)(void *)to, u.i);
}

INLINE void grad_cols(const struct ps__attention_scores *t, const float *dp, const float *lse2,
                      const float *delta, uint16_t *p_a, uint16_t *ds_a, uint16_t *ds_b,
                      const int full)
{
    const __m512 c = _mm512_set1_ps(t->c);
    for (int32_t q = 0; q < (int32_t)t->ld; q += W) {
        int32_t end = ps__attention_rows_end(t, q);
        __m512 lse = _mm512_loadu_ps(lse2 + q), del = _mm512_loadu_ps(delta + q);
        for (int32_t r = 0; r < end; r += 2) {
            size_t at = (size_t)r * t->ld + (size_t)q;
            __m512 p[2], ds[2];
            for (int i = 0; i < 2; i++) {
                size_t from = at + (size_t)i * t->ld;
                __mmask16 on = full ? 0xffff : visible(t, r + i, q);
                __m512 s =
                    full ? _mm512_loadu_ps(t->s + from) : _mm512_maskz_loadu_ps(on, t->s + from);
                __m512 g = full ? _mm512_loadu_ps(dp + from) : _mm512_maskz_loadu_ps(on, dp + from);
                p[i] = exp2_ps(_mm512_fmsub_ps(s, c, lse));
                if (!full)
                    p[i] = _mm512_maskz_mov_ps(on, p[i]);
                ds[i] = _mm512_maskz_mul_ps(on, p[i], _mm512_sub_ps(g, del));
                if (full || r + i < t->rows) {
                    store_half(p_a + from, p[i]);
                    store_half(ds_a + from, ds[i]);
                }
            }
            _mm512_storeu_si512(ds_b + at + (size_t)q, interleave(ds[0], ds[1]));
        }
    }
}

static void grad(const struct ps__attention_scores *t, const float *dp, const float *lse2,
                 const float *delta, void *p_a, void *ds_a, void *ds_b, int round_bf16)
{
    (void)round_bf16;
    if (all_visible(t))
        grad_cols(t, dp, lse2, delta, p_a, ds_a, ds_b, 1);
    else
        grad_cols(t, dp, lse2, delta, p_a, ds_a, ds_b, 0);
}

/* Lanes of [begin, begin + 32) that lie before end. */
INLINE __mmask32 lanes32(size_t begin, size_t end)
{
    size_t n = end > begin ? end - begin : 0;
    return n >= 32 ? 0xffffffffu : (1u << n) - 1;
}

/* 32 columns from col of a row, 0 beyond the matrix. */
INLINE __m512i load32(const struct ps__attention_src *src, size_t row, size_t col)
{
    __mmask32 on = row < src->rows ? lanes32(col, src->cols) : 0;
    return _mm512_maskz_loadu_epi16(on, (const uint16_t *)src->data + row * src->ld + col);
}

/* 16 columns from col of a row, each in a word of its own. */
INLINE __m512i load16_wide(const struct ps__attention_src *src, size_t row, size_t col)
{
    __mmask16 on = row < src->rows ? (__mmask16)lanes32(col, src->cols) : 0;
    const uint16_t *from = (const uint16_t *)src->data + row * src->ld + col;
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(on, from));
}

/* The words of 16 columns from col: row in the low half, row + 1 in the high one. */
INLINE __m512i load_pair(const struct ps__attention_src *src, size_t row, size_t col)
{
    __m512i high = _mm512_slli_epi32(load16_wide(src, row + 1, col), 16);
    return _mm512_or_si512(load16_wide(src, row, col), high);
}

static void pack_a(const struct ps__attention_src *src, void *dst, size_t ld)
{
    for (size_t i = 0; i < src->rows; i++) {
        for (size_t j = 0; j < ld; j += 32)
            _mm512_mask_storeu_epi16((uint16_t *)dst + i * ld + j, lanes32(j, ld),
                                     load32(src, i, j));
    }
}

static void pack_at(const struct ps__attention_src *src, void *dst, size_t ld)
{
    __m512i block[16];
    for (size_t j = 0; j < src->cols; j += W) {
        size_t cols = src->cols - j < W ? src->cols - j : W;
        for (size_t i = 0; i < ld; i += 32) {
            for (size_t r = 0; r < 16; r++)
                block[r] = load_pair(src, i + 2 * r, j);
            ps__attention_transpose_avx512(block);
            for (size_t c = 0; c < cols; c++)
                _mm512_mask_storeu_epi16((uint16_t *)dst + (j + c) * ld + i, lanes32(i, ld),
                                         block[c]);
        }
    }
}

static void pack_b(const struct ps__attention_src *src, void *dst, size_t ld)
{
    for (size_t i = 0; i < src->rows; i += 2) {
        for (size_t j = 0; j < ld; j += W)
            _mm512_storeu_si512((uint16_t *)dst + i * ld + 2 * j, load_pair(src, i, j));
    }
}

static void pack_bt(const struct ps__attention_src *src, void *dst, size_t ld)
{
    __m512i block[16];
    for (size_t j = 0; j < src->cols; j += 32) {
        size_t pairs = src->cols - j < 32 ? (src->cols - j + 1) / 2 : W;
        for (size_t i = 0; i < ld; i += W) {
            for (size_t r = 0; r < 16; r++)
                block[r] = load32(src, i + r, j);
            ps__attention_transpose_avx512(block);
            for (size_t c = 0; c < pairs; c++)
                _mm512_storeu_si512((uint16_t *)dst + (j + 2 * c) * ld + 2 * i, block[c]);
        }
    }
}

void ps__attention_ops_avx512_bf16(struct ps__attention_ops *ops)
{
    ops->k_group = 2;
    ops->gemm = gemm;
    ops->softmax = softmax;
    ops->grad = grad;
    ops->pack_a = pack_a;
    ops->pack_at = pack_at;
    ops->pack_b = pack_b;
    ops->pack_bt = pack_bt;
}
