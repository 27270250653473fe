/* Tile code of attention for AVX-512 with fp32 operands (fp32 FMA): see attention_internal.h. In
 * bf16 mode operands hold values rounded to bf16. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "runtime/kernels/attention_internal.h"

#define INLINE static inline __attribute__((always_inline))

enum { W = PS__ATTENTION_LANE };

/* C[i .. i+mr) x [j .. j + 16 nv) in registers; mr and nv are constants. */
INLINE void micro(const struct ps__attention_gemm *g, size_t i, size_t j, const int mr,
                  const int nv)
{
    __m512 acc[16][4];
    const float *a = (const float *)g->a + i * g->lda, *b = (const float *)g->b + j;
    float *c = g->c + i * g->ldc + j;
    for (int r = 0; r < mr; r++) {
        for (int v = 0; v < nv; v++) {
            acc[r][v] = g->accumulate ? _mm512_loadu_ps(c + (size_t)r * g->ldc + W * v)
                                      : _mm512_setzero_ps();
        }
    }
    size_t lda = g->lda, ldb = g->ldb;
    for (size_t k = 0; k < g->k; k++) {
        __m512 y[4];
        for (int v = 0; v < nv; v++)
            y[v] = _mm512_loadu_ps(b + W * v);
        for (int r = 0; r < mr; r++) {
            __m512 x = _mm512_set1_ps(a[(size_t)r * lda]);
            for (int v = 0; v < nv; v++)
                acc[r][v] = _mm512_fmadd_ps(x, y[v], acc[r][v]);
        }
        a++;
        b += ldb;
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
    hi = hi < end ? hi : end;
    lo = lo < 0 ? 0 : lo > W ? W : lo;
    hi = hi < lo ? lo : hi > W ? W : hi;
    return (__mmask16)((1u << hi) - (1u << lo));
}

INLINE int all_visible(const struct ps__attention_scores *t)
{
    return t->lo + t->rows <= 1 && t->hi >= t->cols && (size_t)t->cols == t->ld;
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

/* To bf16 and back, nearest even; NaN stays NaN. */
INLINE __m512 round_bf16_ps(__m512 x)
{
    __m512i u = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    r = _mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000u));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc00000)));
}

/* Running maximum of 16 columns. */
INLINE __m512 column_max(const struct ps__attention_scores *t, int32_t q, __m512 max,
                         const int full)
{
    for (int32_t r = 0; r < t->rows; r++) {
        __m512 s = _mm512_loadu_ps(t->s + (size_t)r * t->ld + q);
        max = full ? _mm512_max_ps(s, max) : _mm512_mask_max_ps(max, visible(t, r, q), s, max);
    }
    return max;
}

INLINE int softmax_cols(const struct ps__attention_scores *t, float *m, float *l, float *alpha,
                        float *p, int round_bf16, const int full)
{
    const __m512 minus_inf = _mm512_set1_ps(-INFINITY), c = _mm512_set1_ps(t->c);
    int moved = 0;
    for (int32_t q = 0; q < (int32_t)t->ld; q += W) {
        __m512 old = _mm512_loadu_ps(m + q), max = column_max(t, q, old, full);
        __mmask16 some = _mm512_cmp_ps_mask(max, minus_inf, _CMP_NEQ_UQ);
        __mmask16 had = _mm512_cmp_ps_mask(old, minus_inf, _CMP_NEQ_UQ);
        __m512 mc = _mm512_maskz_mul_ps(some, max, c);
        __m512 scale = _mm512_maskz_mov_ps(had, exp2_ps(_mm512_fmsub_ps(old, c, mc)));
        moved |= _mm512_cmp_ps_mask(scale, _mm512_set1_ps(1), _CMP_NEQ_UQ) != 0;
        _mm512_storeu_ps(m + q, max);
        _mm512_storeu_ps(alpha + q, scale);
        __m512 sum = _mm512_setzero_ps();
        for (int32_t r = 0; r < t->rows; r++) {
            size_t at = (size_t)r * t->ld + (size_t)q;
            __m512 x = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(t->s + at), c, mc));
            if (!full)
                x = _mm512_maskz_mov_ps(visible(t, r, q), x);
            sum = _mm512_add_ps(sum, x);
            _mm512_storeu_ps(p + at, round_bf16 ? round_bf16_ps(x) : x);
        }
        _mm512_storeu_ps(l + q, _mm512_fmadd_ps(_mm512_loadu_ps(l + q), scale, sum));
    }
    return moved;
}

static int softmax(const struct ps__attention_scores *t, float *m, float *l, float *alpha, void *p,
                   int round_bf16)
{
    return all_visible(t) ? softmax_cols(t, m, l, alpha, p, round_bf16, 1)
                          : softmax_cols(t, m, l, alpha, p, round_bf16, 0);
}

static void grad(const struct ps__attention_scores *t, const float *dp, const float *lse2,
                 const float *delta, void *p_a, void *ds_a, void *ds_b, int round_bf16)
{
    const __m512 c = _mm512_set1_ps(t->c);
    float *p_to = p_a, *ds_to = ds_a;
    int full = all_visible(t);
    (void)ds_b; /* the same operand */
    for (int32_t q = 0; q < (int32_t)t->ld; q += W) {
        __m512 lse = _mm512_loadu_ps(lse2 + q), del = _mm512_loadu_ps(delta + q);
        for (int32_t r = 0; r < t->rows; r++) {
            size_t at = (size_t)r * t->ld + (size_t)q;
            __mmask16 on = full ? 0xffff : visible(t, r, q);
            __m512 p = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(t->s + at), c, lse));
            p = _mm512_maskz_mov_ps(on, p);
            __m512 ds = _mm512_maskz_mul_ps(on, p, _mm512_sub_ps(_mm512_loadu_ps(dp + at), del));
            _mm512_storeu_ps(p_to + at, round_bf16 ? round_bf16_ps(p) : p);
            _mm512_storeu_ps(ds_to + at, round_bf16 ? round_bf16_ps(ds) : ds);
        }
    }
}

static void scale_cols(float *x, size_t rows, size_t ld, const float *f)
{
    for (size_t j = 0; j < ld; j += W) {
        __m512 by = _mm512_loadu_ps(f + j);
        for (size_t i = 0; i < rows; i++) {
            float *at = x + i * ld + j;
            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), by));
        }
    }
}

void ps__attention_ops_avx512(struct ps__attention_ops *ops)
{
    ops->gemm = gemm;
    ops->softmax = softmax;
    ops->grad = grad;
    ops->scale_cols = scale_cols;
}
