/* Tile code of attention for AVX2 and FMA, operands fp32: see attention_internal.h. In bf16 mode
 * operands hold values rounded to bf16. Packing is left to the portable code. */
#include <immintrin.h>
#include <math.h>

#include "runtime/kernels/attention_internal.h"

#define INLINE static inline __attribute__((always_inline))

enum { W = 8 };

/* C[i .. i+mr) x [j .. j+16) in registers; mr is a constant. */
INLINE void micro(const struct ps__attention_gemm *g, size_t i, size_t j, const int mr)
{
    __m256 acc[6][2];
    const float *a = (const float *)g->a + i * g->lda, *b = (const float *)g->b + j;
    float *c = g->c + i * g->ldc + j;
    for (int r = 0; r < mr; r++) {
        for (int v = 0; v < 2; v++) {
            acc[r][v] = g->accumulate ? _mm256_loadu_ps(c + (size_t)r * g->ldc + W * v)
                                      : _mm256_setzero_ps();
        }
    }
    size_t lda = g->lda, ldb = g->ldb;
    for (size_t k = 0; k < g->k; k++) {
        __m256 y0 = _mm256_loadu_ps(b), y1 = _mm256_loadu_ps(b + W);
        for (int r = 0; r < mr; r++) {
            __m256 x = _mm256_broadcast_ss(a + (size_t)r * lda);
            acc[r][0] = _mm256_fmadd_ps(x, y0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(x, y1, acc[r][1]);
        }
        a++;
        b += ldb;
    }
    for (int r = 0; r < mr; r++) {
        for (int v = 0; v < 2; v++)
            _mm256_storeu_ps(c + (size_t)r * g->ldc + W * v, acc[r][v]);
    }
}

static void gemm(const struct ps__attention_gemm *g)
{
    for (size_t j = 0; j < g->n; j += 2 * W) {
        size_t i = 0;
        for (; i + 6 <= g->m; i += 6)
            micro(g, i, j, 6);
        for (; i + 2 <= g->m; i += 2)
            micro(g, i, j, 2);
        for (; i < g->m; i++)
            micro(g, i, j, 1);
    }
}

/* All bits of the visible places of the 8 columns from q of row r. */
INLINE __m256 visible(const struct ps__attention_scores *t, int32_t r, int32_t q)
{
    int32_t end = r + t->hi < t->cols ? r + t->hi : t->cols;
    __m256i col = _mm256_add_epi32(_mm256_set1_epi32(q), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i early = _mm256_cmpgt_epi32(_mm256_set1_epi32(r + t->lo), col);
    __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), col);
    return _mm256_castsi256_ps(_mm256_andnot_si256(early, before));
}

INLINE int all_visible(const struct ps__attention_scores *t)
{
    return t->lo + t->rows <= 1 && t->hi >= t->cols && (size_t)t->cols == t->ld;
}

INLINE __m256 exp2_ps(__m256 y)
{
    __m256 live = _mm256_cmp_ps(y, _mm256_set1_ps(PS__EXP2_MIN), _CMP_NLT_UQ);
    y = _mm256_min_ps(_mm256_set1_ps(PS__EXP2_MAX), y); /* NaN stays NaN */
    __m256 n = _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 f = _mm256_sub_ps(y, n);
    __m256 p = _mm256_set1_ps(PS__EXP2_C6);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(PS__EXP2_C5));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(PS__EXP2_C4));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(PS__EXP2_C3));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(PS__EXP2_C2));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(PS__EXP2_C1));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(PS__EXP2_C0));
    __m256i bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23)));
    return _mm256_and_ps(live, p);
}

/* To bf16 and back, nearest even; NaN stays NaN. */
INLINE __m256 round_bf16_ps(__m256 x)
{
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    r = _mm256_and_si256(r, _mm256_set1_epi32((int)0xffff0000u));
    __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_blendv_ps(_mm256_castsi256_ps(r), x, nan);
}

INLINE __m256 column_max(const struct ps__attention_scores *t, int32_t q, __m256 max,
                         const int full)
{
    int32_t end = ps__attention_rows_end(t, q);
    for (int32_t r = 0; r < end; r++) {
        __m256 s = _mm256_loadu_ps(t->s + (size_t)r * t->ld + q), more = _mm256_max_ps(s, max);
        max = full ? more : _mm256_blendv_ps(max, more, visible(t, r, q));
    }
    return max;
}

INLINE int softmax_cols(const struct ps__attention_scores *t, float *m, float *l, float *alpha,
                        float *p, int round_bf16, const int full)
{
    const __m256 minus_inf = _mm256_set1_ps(-INFINITY), c = _mm256_set1_ps(t->c);
    int moved = 0;
    for (int32_t q = 0; q < (int32_t)t->ld; q += W) {
        int32_t end = ps__attention_rows_end(t, q);
        __m256 old = _mm256_loadu_ps(m + q), max = column_max(t, q, old, full);
        __m256 some = _mm256_cmp_ps(max, minus_inf, _CMP_NEQ_UQ);
        __m256 had = _mm256_cmp_ps(old, minus_inf, _CMP_NEQ_UQ);
        __m256 mc = _mm256_and_ps(some, _mm256_mul_ps(max, c));
        __m256 scale = _mm256_and_ps(had, exp2_ps(_mm256_fmsub_ps(old, c, mc)));
        __m256 changed = _mm256_cmp_ps(scale, _mm256_set1_ps(1), _CMP_NEQ_UQ);
        moved |= _mm256_movemask_ps(changed);
        _mm256_storeu_ps(m + q, max);
        _mm256_storeu_ps(alpha + q, scale);
        __m256 sum = _mm256_setzero_ps();
        for (int32_t r = 0; r < end; r++) {
            size_t at = (size_t)r * t->ld + (size_t)q;
            __m256 x = exp2_ps(_mm256_fmsub_ps(_mm256_loadu_ps(t->s + at), c, mc));
            if (!full)
                x = _mm256_and_ps(visible(t, r, q), x);
            sum = _mm256_add_ps(sum, x);
            _mm256_storeu_ps(p + at, round_bf16 ? round_bf16_ps(x) : x);
        }
        _mm256_storeu_ps(l + q, _mm256_fmadd_ps(_mm256_loadu_ps(l + q), scale, sum));
    }
    return moved != 0;
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
    const __m256 c = _mm256_set1_ps(t->c), ones = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    float *p_to = p_a, *ds_to = ds_a;
    int full = all_visible(t);
    (void)ds_b; /* the same operand */
    for (int32_t q = 0; q < (int32_t)t->ld; q += W) {
        int32_t end = ps__attention_rows_end(t, q);
        __m256 lse = _mm256_loadu_ps(lse2 + q), del = _mm256_loadu_ps(delta + q);
        for (int32_t r = 0; r < end; r++) {
            size_t at = (size_t)r * t->ld + (size_t)q;
            __m256 on = full ? ones : visible(t, r, q);
            __m256 p = exp2_ps(_mm256_fmsub_ps(_mm256_loadu_ps(t->s + at), c, lse));
            p = _mm256_and_ps(on, p);
            __m256 ds = _mm256_mul_ps(p, _mm256_sub_ps(_mm256_loadu_ps(dp + at), del));
            ds = _mm256_and_ps(on, ds);
            _mm256_storeu_ps(p_to + at, round_bf16 ? round_bf16_ps(p) : p);
            _mm256_storeu_ps(ds_to + at, round_bf16 ? round_bf16_ps(ds) : ds);
        }
    }
}

static void scale_cols(float *x, size_t rows, size_t ld, const float *f)
{
    for (size_t j = 0; j < ld; j += W) {
        __m256 by = _mm256_loadu_ps(f + j);
        for (size_t i = 0; i < rows; i++) {
            float *at = x + i * ld + j;
            _mm256_storeu_ps(at, _mm256_mul_ps(_mm256_loadu_ps(at), by));
        }
    }
}

void ps__attention_ops_avx2(struct ps__attention_ops *ops)
{
    ops->gemm = gemm;
    ops->softmax = softmax;
    ops->grad = grad;
    ops->scale_cols = scale_cols;
}
