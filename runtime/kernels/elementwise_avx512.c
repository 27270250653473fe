/* Element-wise operations with AVX-512: see elementwise.h. */
#include <string.h>

#include "runtime/kernels/elementwise_internal.h"
#include "runtime/kernels/lane_avx512.h"

/* Convert */

PS__LANE_INLINE void convert(void *dst, enum ps_dtype dt, const void *src, enum ps_dtype st,
                             size_t n)
{
    size_t j = 0;
    for (; j + 16 <= n; j += 16)
        ps__lane_store(dst, dt, j, PS__LANE_FULL, ps__lane_load(src, st, j, PS__LANE_FULL));
    if (j < n) {
        __mmask16 k = ps__lane_mask(n - j);
        ps__lane_store(dst, dt, j, k, ps__lane_load(src, st, j, k));
    }
}

void ps__convert_avx512(void *dst, enum ps_dtype dt, const void *src, enum ps_dtype st, size_t n)
{
    if (dt == PS_DTYPE_F32 && st == PS_DTYPE_BF16)
        convert(dst, PS_DTYPE_F32, src, PS_DTYPE_BF16, n);
    else if (dt == PS_DTYPE_F32)
        convert(dst, PS_DTYPE_F32, src, PS_DTYPE_F16, n);
    else if (dt == PS_DTYPE_BF16 && st == PS_DTYPE_F32)
        convert(dst, PS_DTYPE_BF16, src, PS_DTYPE_F32, n);
    else if (dt == PS_DTYPE_BF16)
        convert(dst, PS_DTYPE_BF16, src, PS_DTYPE_F16, n);
    else if (st == PS_DTYPE_F32)
        convert(dst, PS_DTYPE_F16, src, PS_DTYPE_F32, n);
    else
        convert(dst, PS_DTYPE_F16, src, PS_DTYPE_BF16, n);
}

/* Add */

PS__LANE_INLINE void add(void *y, const void *a, const void *b, enum ps_dtype d, size_t n)
{
    size_t j = 0;
    for (; j + 32 <= n; j += 32) {
        struct ps__pair u = ps__pair_load(a, d, j, d), v = ps__pair_load(b, d, j, d);
        u.a = _mm512_add_ps(u.a, v.a);
        u.b = _mm512_add_ps(u.b, v.b);
        ps__pair_store(y, d, j, u, d);
    }
    for (; j < n; j += 16) {
        __mmask16 k = ps__lane_mask(n - j < 16 ? n - j : 16);
        __m512 sum = _mm512_add_ps(ps__lane_load(a, d, j, k), ps__lane_load(b, d, j, k));
        ps__lane_store(y, d, j, k, sum);
    }
}

void ps__add_avx512(void *y, const void *a, const void *b, enum ps_dtype dtype, size_t n)
{
    if (dtype == PS_DTYPE_F32)
        add(y, a, b, PS_DTYPE_F32, n);
    else
        add(y, a, b, PS_DTYPE_BF16, n);
}

/* Dropout: sixteen Philox blocks at a time. Lane i computes block 4 * (i % 4) + i / 4, so that the
 * transposition of four words by sixteen blocks needs no step across 128-bit lanes. */

struct philox {
    uint32_t key0, key1; /* of the second evaluation */
    uint32_t c2, c3;     /* upper half of its counter */
};

/* The first evaluation of rng.c, which folds the stream's key; test_elementwise compares the words
 * with ps_rng_block. */
static void philox_fold(const struct ps_rng_key *key, struct philox *out)
{
    uint32_t seed0 = (uint32_t)key->seed, seed1 = (uint32_t)(key->seed >> 32);
    uint32_t k0 = seed0 ^ (key->site * 0x85EBCA6Bu), k1 = seed1 ^ key->site;
    uint32_t c[4] = {(uint32_t)key->step, (uint32_t)(key->step >> 32), key->micro_batch,
                     key->layer};
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)p1;
        c[3] = (uint32_t)p0;
        c[0] = n0;
        c[2] = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out->c2 = c[0];
    out->c3 = c[1];
    out->key0 = seed0 ^ c[2];
    out->key1 = seed1 ^ c[3];
}

/* High halves of the 64-bit products of 32-bit lanes. */
PS__LANE_INLINE __m512i mul_high(__m512i a, __m512i m)
{
    __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(a, m), 32);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
    return _mm512_mask_blend_epi32(0xaaaa, even, odd);
}

/* word[0..3]: the 64 words of blocks [block, block + 16) in order. */
PS__LANE_INLINE void philox_words(const struct philox *s, uint64_t block, __m512i word[4])
{
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512i m0 = _mm512_set1_epi32((int)0xD2511F53u),
                  m1 = _mm512_set1_epi32((int)0xCD9E8D57u);
    __m512i low = _mm512_set1_epi32((int)(uint32_t)block);
    __m512i c0 = _mm512_add_epi32(low, order);
    /* carry into the upper word where the lower one wrapped */
    __m512i c1 = _mm512_set1_epi32((int)(uint32_t)(block >> 32));
    c1 = _mm512_mask_add_epi32(c1, _mm512_cmplt_epu32_mask(c0, low), c1, _mm512_set1_epi32(1));
    __m512i c2 = _mm512_set1_epi32((int)s->c2), c3 = _mm512_set1_epi32((int)s->c3);
    uint32_t k0 = s->key0, k1 = s->key1;
    for (int round = 0; round < 10; round++) {
        __m512i h0 = mul_high(c0, m0), l0 = _mm512_mullo_epi32(c0, m0);
        __m512i h1 = mul_high(c2, m1), l1 = _mm512_mullo_epi32(c2, m1);
        c0 = _mm512_ternarylogic_epi32(h1, c1, _mm512_set1_epi32((int)k0), 0x96);
        c2 = _mm512_ternarylogic_epi32(h0, c3, _mm512_set1_epi32((int)k1), 0x96);
        c1 = l1;
        c3 = l0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    __m512i t0 = _mm512_unpacklo_epi32(c0, c1), t1 = _mm512_unpackhi_epi32(c0, c1);
    __m512i t2 = _mm512_unpacklo_epi32(c2, c3), t3 = _mm512_unpackhi_epi32(c2, c3);
    word[0] = _mm512_unpacklo_epi64(t0, t2);
    word[1] = _mm512_unpackhi_epi64(t0, t2);
    word[2] = _mm512_unpacklo_epi64(t1, t3);
    word[3] = _mm512_unpackhi_epi64(t1, t3);
}

PS__LANE_INLINE void dropout_step(const struct ps__dropout_args *a, enum ps_dtype d, __m512i word,
                                  size_t j, __mmask16 k)
{
    __m512 uniform =
        _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(word, 8)), _mm512_set1_ps(0x1p-24f));
    __mmask16 keep = _mm512_cmp_ps_mask(uniform, _mm512_set1_ps(a->p), _CMP_GE_OQ);
    __m512 x = ps__lane_load(a->x, d, j, k);
    __m512 v = _mm512_maskz_div_ps(keep, x, _mm512_set1_ps(1.0f - a->p));
    x = a->how & PS_DROPOUT_REST ? _mm512_sub_ps(x, v) : v;
    if (a->how & PS_DROPOUT_ADD)
        x = _mm512_add_ps(x, ps__lane_load(a->y, d, j, k));
    ps__lane_store(a->y, d, j, k, x);
}

PS__LANE_INLINE void dropout(const struct ps__dropout_args *a, enum ps_dtype d, size_t begin,
                             size_t end)
{
    struct philox s;
    philox_fold(a->key, &s);
    __m512i word[4];
    size_t j = begin;
    for (; j + 64 <= end; j += 64) {
        philox_words(&s, j / 4, word);
        for (size_t i = 0; i < 4; i++)
            dropout_step(a, d, word[i], j + 16 * i, PS__LANE_FULL);
    }
    if (j < end)
        philox_words(&s, j / 4, word);
    for (size_t i = 0; j < end; i++, j += 16)
        dropout_step(a, d, word[i], j, ps__lane_mask(end - j < 16 ? end - j : 16));
}

void ps__dropout_avx512(const struct ps__dropout_args *a, size_t begin, size_t end)
{
    if (a->dtype == PS_DTYPE_F32)
        dropout(a, PS_DTYPE_F32, begin, end);
    else
        dropout(a, PS_DTYPE_BF16, begin, end);
}

/* Sums */

PS__LANE_INLINE void square_step(__m512d s[4], int i, const void *x, enum ps_dtype d, size_t at,
                                 __mmask16 k)
{
    __m512 v = ps__lane_load(x, d, at, k);
    __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
    __m512d hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
    s[2 * i] = _mm512_fmadd_pd(lo, lo, s[2 * i]);
    s[2 * i + 1] = _mm512_fmadd_pd(hi, hi, s[2 * i + 1]);
}

PS__LANE_INLINE void square_sum(double lane[32], const void *x, enum ps_dtype d, size_t at,
                                size_t n)
{
    __m512d s[4];
    s[0] = s[1] = s[2] = s[3] = _mm512_setzero_pd();
    size_t j = 0;
    for (; j + 32 <= n; j += 32) {
        square_step(s, 0, x, d, at + j, PS__LANE_FULL);
        square_step(s, 1, x, d, at + j + 16, PS__LANE_FULL);
    }
    for (int i = 0; j < n; i++, j += 16)
        square_step(s, i, x, d, at + j, ps__lane_mask(n - j < 16 ? n - j : 16));
    for (int i = 0; i < 4; i++)
        _mm512_storeu_pd(lane + 8 * i, s[i]);
}

void ps__square_sum_avx512(double lane[32], const void *x, enum ps_dtype dtype, size_t at, size_t n)
{
    if (dtype == PS_DTYPE_F32)
        square_sum(lane, x, PS_DTYPE_F32, at, n);
    else
        square_sum(lane, x, PS_DTYPE_BF16, at, n);
}

/* Sixteen rows ahead are asked for: a column block jumps from row to row, which no hardware
 * prefetcher follows. */
PS__LANE_INLINE void column_rows(float *sum, const void *x, enum ps_dtype d, size_t ld,
                                 size_t begin, size_t end, size_t at, size_t n)
{
    for (size_t t = begin; t < end; t++) {
        size_t x_at = t * ld + at, j = 0;
        for (; j + 32 <= n; j += 32) {
            struct ps__pair v = ps__pair_load(x, d, x_at + j, d);
            struct ps__pair s = ps__pair_load(sum, PS_DTYPE_F32, j, PS_DTYPE_F32);
            ps__pair_prefetch(x, d, x_at + 16 * ld + j);
            s.a = _mm512_add_ps(s.a, v.a);
            s.b = _mm512_add_ps(s.b, v.b);
            ps__pair_store(sum, PS_DTYPE_F32, j, s, PS_DTYPE_F32);
        }
        for (; j < n; j += 16) {
            __mmask16 k = ps__lane_mask(n - j < 16 ? n - j : 16);
            __m512 s = _mm512_add_ps(ps__lane_load(sum, PS_DTYPE_F32, j, k),
                                     ps__lane_load(x, d, x_at + j, k));
            ps__lane_store(sum, PS_DTYPE_F32, j, k, s);
        }
    }
    /* whole pairs were summed in the order of x */
    for (size_t j = 0; d == PS_DTYPE_BF16 && j + 32 <= n; j += 32) {
        struct ps__pair s = ps__pair_load(sum, PS_DTYPE_F32, j, PS_DTYPE_F32);
        ps__pair_store(sum, PS_DTYPE_F32, j, s, PS_DTYPE_BF16);
    }
}

void ps__column_sum_avx512(float *sum, const void *x, enum ps_dtype dtype, size_t ld, size_t begin,
                           size_t end, size_t at, size_t n)
{
    memset(sum, 0, n * sizeof *sum);
    if (dtype == PS_DTYPE_F32)
        column_rows(sum, x, PS_DTYPE_F32, ld, begin, end, at, n);
    else
        column_rows(sum, x, PS_DTYPE_BF16, ld, begin, end, at, n);
}
