/* The 8-bit map with AVX-512: the operations of dynamic_map_internal.h, the choice of the decade by
 * permuted tables. The bits are the same. */
#include <immintrin.h>
#include <math.h>

#include "optim/dynamic_map_variants.h"

#define INLINE static inline __attribute__((always_inline))

/* [unsigned, signed][exponent of the value & 31], exponents 96 ... 127: the edge between two
 * decades that lies in the octave, and the decade of the octave's lower end. */
#define NONE INFINITY
#define EDGE(ten, parts) (float)((ten) * (1 + 0.9 / (parts)))
static const float edges[2][32] = {
    {NONE,           NONE, NONE,          NONE,           NONE, NONE,
     NONE,           NONE, NONE,          NONE,           NONE, EDGE(1e-6, 2),
     NONE,           NONE, EDGE(1e-5, 4), NONE,           NONE, EDGE(1e-4, 8),
     NONE,           NONE, NONE,          EDGE(1e-3, 16), NONE, NONE,
     EDGE(1e-2, 32), NONE, NONE,          EDGE(1e-1, 64), NONE, NONE,
     NONE,           NONE},
    {NONE,           NONE, NONE,          NONE,           NONE, NONE,          NONE,          NONE,
     NONE,           NONE, NONE,          EDGE(1e-6, 1),  NONE, NONE,          EDGE(1e-5, 2), NONE,
     NONE,           NONE, EDGE(1e-4, 4), NONE,           NONE, EDGE(1e-3, 8), NONE,          NONE,
     EDGE(1e-2, 16), NONE, NONE,          EDGE(1e-1, 32), NONE, NONE,          NONE,          NONE},
};
static const int32_t decades[2][32] = {
    {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2,
     2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 6},
    {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2,
     2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 6},
};

/* By the decade; entries beyond the last are not used. 10^(6 - d), parts / 0.9, parts - 1. */
#define NINTH(parts) ((parts) * (1 / 0.9f))
static const float ups[16] = {1e6f, 1e5f, 1e4f, 1e3f, 1e2f, 1e1f, 1.0f};
static const float parts_ninth[2][16] = {
    {NINTH(2), NINTH(4), NINTH(8), NINTH(16), NINTH(32), NINTH(64), NINTH(128)},
    {NINTH(1), NINTH(2), NINTH(4), NINTH(8), NINTH(16), NINTH(32), NINTH(64)}};
static const float lasts[2][16] = {{1, 3, 7, 15, 31, 63, 127}, {0, 1, 3, 7, 15, 31, 63}};

struct tables {
    __m512 up, parts_ninth, last, edge[2];
    __m512i decade[2], first;
    float zero, one; /* below, from: values 0 and 1 */
};

INLINE struct tables load_tables(bool is_signed)
{
    return (struct tables){
        .up = _mm512_loadu_ps(ups),
        .parts_ninth = _mm512_loadu_ps(parts_ninth[is_signed]),
        .last = _mm512_loadu_ps(lasts[is_signed]),
        .edge = {_mm512_loadu_ps(edges[is_signed]), _mm512_loadu_ps(edges[is_signed] + 16)},
        .decade = {_mm512_loadu_si512(decades[is_signed]),
                   _mm512_loadu_si512(decades[is_signed] + 16)},
        .first = _mm512_set1_epi32(is_signed ? 1 : 2),
        .zero = is_signed ? 2.75e-7f : 1.625e-7f,
        .one = is_signed ? (float)(1 - 0.225 / 64) : (float)(1 - 0.225 / 128)};
}

INLINE __m512i number_of(const struct tables *t, __m512 v, bool is_signed)
{
    __m512 clamped = _mm512_max_ps(v, _mm512_set1_ps(0x1p-30f));
    __m512i octave = _mm512_srli_epi32(_mm512_castps_si512(clamped), 23);
    __m512i d = _mm512_permutex2var_epi32(t->decade[0], octave, t->decade[1]);
    __m512 edge = _mm512_permutex2var_ps(t->edge[0], octave, t->edge[1]);
    __mmask16 above = _mm512_cmp_ps_mask(v, edge, _CMP_GE_OQ);
    d = _mm512_mask_add_epi32(d, above, d, _mm512_set1_epi32(1));
    __m512 part = _mm512_mul_ps(v, _mm512_permutexvar_ps(d, t->up));
    part = _mm512_mul_ps(_mm512_sub_ps(part, _mm512_set1_ps(0.1f)),
                         _mm512_permutexvar_ps(d, t->parts_ninth));
    part = _mm512_max_ps(part, _mm512_setzero_ps());
    part = _mm512_min_ps(part, _mm512_permutexvar_ps(d, t->last));
    __m512i q = _mm512_add_epi32(_mm512_sllv_epi32(t->first, d), _mm512_cvttps_epi32(part));
    __mmask16 zero = _mm512_cmp_ps_mask(v, _mm512_set1_ps(t->zero), _CMP_LT_OQ);
    __mmask16 one = _mm512_cmp_ps_mask(v, _mm512_set1_ps(t->one), _CMP_GE_OQ);
    q = _mm512_mask_mov_epi32(q, zero, _mm512_set1_epi32(is_signed ? 0 : 1));
    return _mm512_mask_mov_epi32(q, one, _mm512_set1_epi32(is_signed ? 128 : 256));
}

INLINE __m512i code_of(const struct tables *t, __m512 x, __m512 lift, __m512 inverse,
                       bool is_signed)
{
    __m512 magnitude = _mm512_abs_ps(x);
    __m512 v = _mm512_mul_ps(_mm512_mul_ps(magnitude, lift), inverse);
    __m512i q = number_of(t, v, is_signed);
    if (is_signed) {
        __m512i middle = _mm512_set1_epi32(127);
        __m512i code = _mm512_add_epi32(middle, q);
        __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
        return _mm512_mask_sub_epi32(code, below, middle, _mm512_min_epi32(q, middle));
    }
    __m512i code = _mm512_sub_epi32(q, _mm512_set1_epi32(1));
    __mmask16 some = _mm512_cmp_ps_mask(magnitude, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_max_epi32(code, some, code, _mm512_set1_epi32(1));
}

INLINE void encode(const float *x, size_t n, uint8_t *code, float *scale, bool is_signed)
{
    __m512i most = _mm512_setzero_si512(), bits = _mm512_set1_epi32(0x7fffffff);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512i b = _mm512_maskz_loadu_epi32(k, x + i);
        most = _mm512_max_epu32(most, _mm512_and_si512(b, bits));
    }
    __m512i top = _mm512_set1_epi32((int)_mm512_reduce_max_epu32(most));
    float a = _mm512_cvtss_f32(_mm512_castsi512_ps(top));
    float lift = a < 0x1p-100f ? 0x1p100f : 1.0f;
    float inverse = a > 0 ? 1 / (a * lift) : 0;
    struct tables t = load_tables(is_signed);
    *scale = a;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512i c = code_of(&t, _mm512_maskz_loadu_ps(k, x + i), _mm512_set1_ps(lift),
                            _mm512_set1_ps(inverse), is_signed);
        _mm512_mask_cvtepi32_storeu_epi8(code + i, k, c);
    }
}

INLINE void decode(const uint8_t *code, float scale, size_t n, float *x, bool is_signed)
{
    /* by the low four bits of the exponent: signed 127 (15), 128 (0) ...; unsigned 128 (0) ... */
    const float one_less = is_signed ? 1e-6f : 0.0f; /* below 2: unsigned that is 0 */
    __m512 decade = is_signed ? _mm512_setr_ps(1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f, 0, 0, 0, 0,
                                               0, 0, 0, 0, 0, one_less)
                              : _mm512_setr_ps(1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f, 0, 0,
                                               0, 0, 0, 0, 0, 0, one_less);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512i c = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(k, code + i));
        __m512i number = _mm512_sub_epi32(c, _mm512_set1_epi32(is_signed ? 127 : -1));
        __m512 q = _mm512_cvtepi32_ps(is_signed ? _mm512_abs_epi32(number) : number);
        __m512i b = _mm512_castps_si512(q);
        __m512i p = _mm512_and_si512(b, _mm512_set1_epi32(0x7f800000));
        __m512 inverse = _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_set1_epi32(0x7f000000), p));
        __m512 part = _mm512_add_ps(_mm512_sub_ps(q, _mm512_castsi512_ps(p)), _mm512_set1_ps(0.5f));
        part = _mm512_mul_ps(_mm512_set1_ps(0.9f), _mm512_mul_ps(part, inverse));
        part = _mm512_add_ps(_mm512_set1_ps(0.1f), part);
        __m512 v = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(b, 23), decade), part);
        __mmask16 one =
            _mm512_cmp_epi32_mask(number, _mm512_set1_epi32(is_signed ? 128 : 256), _MM_CMPINT_EQ);
        v = _mm512_mask_mov_ps(v, one, _mm512_set1_ps(1));
        if (is_signed)
            v = _mm512_maskz_mov_ps(_mm512_test_epi32_mask(number, number), v);
        v = _mm512_mul_ps(v, _mm512_set1_ps(scale));
        if (is_signed)
            v = _mm512_mask_xor_ps(v, _mm512_movepi32_mask(number), v, _mm512_set1_ps(-0.0f));
        _mm512_mask_storeu_ps(x + i, k, v);
    }
}

void ps__block8_decode_avx512(const uint8_t *code, float scale, size_t n, bool is_signed, float *x)
{
    if (is_signed)
        decode(code, scale, n, x, true);
    else
        decode(code, scale, n, x, false);
}

void ps__block8_encode_avx512(const float *x, size_t n, bool is_signed, uint8_t *code, float *scale)
{
    if (is_signed)
        encode(x, n, code, scale, true);
    else
        encode(x, n, code, scale, false);
}
