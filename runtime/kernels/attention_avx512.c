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
    int32_t end = ps__attention_rows_end(t, q);
    for (int32_t r = 0; r < end; r++) {
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
        int32_t end = ps__attention_rows_end(t, q);
        __m512 old = _mm512_loadu_ps(m + q), max = column_max(t, q, old, full);
        __mmask16 some = _mm512_cmp_ps_mask(max, minus_inf, _CMP_NEQ_UQ);
        __mmask16 had = _mm512_cmp_ps_mask(old, minus_inf, _CMP_NEQ_UQ);
        __m512 mc = _mm512_maskz_mul_ps(some, max, c);
        __m512 scale = _mm512_maskz_mov_ps(had, exp2_ps(_mm512_fmsub_ps(old, c, mc)));
        moved |= _mm512_cmp_ps_mask(scale, _mm512_set1_ps(1), _CMP_NEQ_UQ) != 0;
        _mm512_storeu_ps(m + q, max);
        _mm512_storeu_ps(alpha + q, scale);
        __m512 sum = _mm512_setzero_ps();
        for (int32_t r = 0; r < end; r++) {
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
        int32_t end = ps__attention_rows_end(t, q);
        __m512 lse = _mm512_loadu_ps(lse2 + q), del = _mm512_loadu_ps(delta + q);
        for (int32_t r = 0; r < end; r++) {
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

/* Rows and columns change places in a block of 16 x 16 words of 4 bytes. */
void ps__attention_transpose_avx512(void *block)
{
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++)
        r[i] = _mm512_load_si512((const __m512i *)block + i);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int c = 0; c < 4; c++) { /* r[4g + c]: columns c, c+4, c+8, c+12 of rows 4g .. 4g+3 */
        __m512i even0 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
        __m512i even1 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        __m512i odd0 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        __m512i odd1 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        __m512i *to = (__m512i *)block + c;
        _mm512_store_si512(to, _mm512_shuffle_i32x4(even0, even1, 0x88));
        _mm512_store_si512(to + 4, _mm512_shuffle_i32x4(odd0, odd1, 0x88));
        _mm512_store_si512(to + 8, _mm512_shuffle_i32x4(even0, even1, 0xdd));
        _mm512_store_si512(to + 12, _mm512_shuffle_i32x4(odd0, odd1, 0xdd));
    }
}

/* Lanes of [begin, begin + 16) that lie before end. */
INLINE __mmask16 lanes(size_t begin, size_t end)
{
    size_t n = end > begin ? end - begin : 0;
    return (__mmask16)(n >= W ? 0xffff : (1u << n) - 1);
}

/* 16 columns from col of a row as fp32, 0 beyond the matrix. */
INLINE __m512 load16(const struct ps__attention_src *src, size_t row, size_t col)
{
    __mmask16 on = row < src->rows ? lanes(col, src->cols) : 0;
    size_t at = row * src->ld + col;
    if (src->dtype == PS_DTYPE_F32)
        return _mm512_maskz_loadu_ps(on, (const float *)src->data + at);
    __m256i h = _mm256_maskz_loadu_epi16(on, (const uint16_t *)src->data + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* Round 16 columns from col of a row into the matrix. */
INLINE void store16(const struct ps__attention_dst *dst, size_t row, size_t col, __m512 x)
{
    __mmask16 on = lanes(col, dst->cols);
    size_t at = row * dst->ld + col;
    if (dst->dtype == PS_DTYPE_F32) {
        _mm512_mask_storeu_ps((float *)dst->data + at, on, x);
    } else {
        __m512i u = _mm512_srli_epi32(_mm512_castps_si512(round_bf16_ps(x)), 16);
        _mm256_mask_storeu_epi16((uint16_t *)dst->data + at, on, _mm512_cvtepi32_epi16(u));
    }
}

static void pack_rows(const struct ps__attention_src *src, void *dst, size_t ld)
{
    for (size_t i = 0; i < src->rows; i++) {
        for (size_t j = 0; j < ld; j += W)
            _mm512_mask_storeu_ps((float *)dst + i * ld + j, lanes(j, ld), load16(src, i, j));
    }
}

static void pack_cols(const struct ps__attention_src *src, void *dst, size_t ld)
{
    __attribute__((aligned(64))) float block[16][W];
    for (size_t j = 0; j < src->cols; j += W) {
        size_t cols = src->cols - j < W ? src->cols - j : W;
        for (size_t i = 0; i < ld; i += W) {
            for (size_t r = 0; r < 16; r++)
                _mm512_store_ps(block[r], load16(src, i + r, j));
            ps__attention_transpose_avx512(block);
            for (size_t c = 0; c < cols; c++)
                _mm512_mask_storeu_ps((float *)dst + (j + c) * ld + i, lanes(i, ld),
                                      _mm512_load_ps(block[c]));
        }
    }
}

static void store_t(const float *x, size_t ld, const float *f, const struct ps__attention_dst *dst)
{
    __attribute__((aligned(64))) float block[16][W];
    memset(block, 0, sizeof block);
    for (size_t i = 0; i < dst->rows; i += W) {
        __m512 by = _mm512_loadu_ps(f + i);
        size_t rows = dst->rows - i < W ? dst->rows - i : W;
        for (size_t j = 0; j < dst->cols; j += W) {
            size_t cols = dst->cols - j < W ? dst->cols - j : W;
            for (size_t c = 0; c < cols; c++)
                _mm512_store_ps(block[c], _mm512_mul_ps(_mm512_loadu_ps(x + (j + c) * ld + i), by));
            ps__attention_transpose_avx512(block);
            for (size_t r = 0; r < rows; r++)
                store16(dst, i + r, j, _mm512_load_ps(block[r]));
        }
    }
}

static void store(const float *x, size_t ld, float f, const struct ps__attention_dst *dst)
{
    __m512 by = _mm512_set1_ps(f);
    for (size_t i = 0; i < dst->rows; i++) {
        for (size_t j = 0; j < dst->cols; j += W)
            store16(dst, i, j, _mm512_mul_ps(_mm512_loadu_ps(x + i * ld + j), by));
    }
}

static void head_dot(const struct ps__attention_src *a, const struct ps__attention_src *b,
                     size_t dim, float *out, size_t ld)
{
    for (size_t i = 0; i < a->rows; i++) {
        for (size_t h = 0; h < a->cols / dim; h++) {
            __m512 sum = _mm512_setzero_ps();
            for (size_t j = 0; j < dim; j += W) {
                __mmask16 on = lanes(j, dim); /* the next head follows */
                __m512 x = _mm512_maskz_mov_ps(on, load16(a, i, h * dim + j));
                __m512 y = _mm512_maskz_mov_ps(on, load16(b, i, h * dim + j));
                sum = _mm512_fmadd_ps(x, y, sum);
            }
            out[h * ld + i] = _mm512_reduce_add_ps(sum);
        }
    }
}

void ps__attention_ops_avx512(struct ps__attention_ops *ops)
{
    ops->gemm = gemm;
    ops->softmax = softmax;
    ops->grad = grad;
    ops->pack_a = pack_rows;
    ops->pack_at = pack_cols;
    ops->pack_b = pack_rows;
    ops->pack_bt = pack_cols;
    ops->scale_cols = scale_cols;
    ops->store_t = store_t;
    ops->store = store;
    ops->head_dot = head_dot;
}
