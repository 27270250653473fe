/* The 8-bit map sixteen values at a time: the operations of dynamic_map_internal.h, choices by
 * permuted tables. Private to the *_avx512.c files of optim.
 *
 * Instructions for 16 values, without loads and stores: decoding 13 (signed) and 10, encoding 17
 * and 16, and one and a half more to make bytes of them. */
#ifndef PS_OPTIM_DYNAMIC_MAP_AVX512_INTERNAL_H
#define PS_OPTIM_DYNAMIC_MAP_AVX512_INTERNAL_H

#include <immintrin.h>
#include <math.h>

#include "optim/dynamic_map.h"
#include "optim/lanes_avx512_internal.h"

/* By the exponent of the value & 31, exponents 96 ... 127: the bits of the edge between two regions
 * (0: what becomes zero, 1 ... 7: the decades, 8: one) that lies in the octave, or a NaN. The last
 * four bits are the number of the region below it, plus 6 (signed: 3) modulo 16: the index of the
 * next tables. */
static const uint32_t ps__map_edge[2][32] = {
    {
        0x7fc00006, 0x7fc00006, 0x7fc00006, 0x7fc00006, 0x7fc00006, 0x7fc00006, 0x7fc00006,
        0x7fc00006, 0x342e7ba6, 0x7fc00007, 0x7fc00007, 0x35c29d97, 0x7fc00008, 0x7fc00008,
        0x374d8558, 0x7fc00009, 0x7fc00009, 0x38e94ee9, 0x7fc0000a, 0x7fc0000a, 0x7fc0000a,
        0x3a8a71da, 0x7fc0000b, 0x7fc0000b, 0x3c2872ab, 0x7fc0000c, 0x7fc0000c, 0x3dcfae1c,
        0x7fc0000d, 0x7fc0000d, 0x3f7f8ccd, 0x7fc0000e,
    },
    {
        0x7fc00003, 0x7fc00003, 0x7fc00003, 0x7fc00003, 0x7fc00003, 0x7fc00003, 0x7fc00003,
        0x7fc00003, 0x7fc00003, 0x3493a3b3, 0x7fc00004, 0x35ff0384, 0x7fc00005, 0x7fc00005,
        0x37734505, 0x7fc00006, 0x7fc00006, 0x7fc00006, 0x39007356, 0x7fc00007, 0x7fc00007,
        0x3a91d147, 0x7fc00008, 0x7fc00008, 0x3c2d0e58, 0x7fc00009, 0x7fc00009, 0x3dd28f59,
        0x7fc0000a, 0x7fc0000a, 0x3f7f199a, 0x7fc0000b,
    }};

/* By the region: number = trunc(min(value * slope + start, limit)), of the unsigned map less 1,
 * which makes it the code. */
#define PS__SLOPE(up, parts) ((up) * ((parts) * (1 / 0.9f)))
#define PS__START(parts) ((parts) * (8 / 9.0f))
static const float ps__map_slope[2][16] = {
    {0, 0, 0, 0, 0, 0, 0, PS__SLOPE(1e6f, 2), PS__SLOPE(1e5f, 4), PS__SLOPE(1e4f, 8),
     PS__SLOPE(1e3f, 16), PS__SLOPE(1e2f, 32), PS__SLOPE(1e1f, 64), PS__SLOPE(1e0f, 128), 0, 0},
    {0, 0, 0, 0, PS__SLOPE(1e6f, 1), PS__SLOPE(1e5f, 2), PS__SLOPE(1e4f, 4), PS__SLOPE(1e3f, 8),
     PS__SLOPE(1e2f, 16), PS__SLOPE(1e1f, 32), PS__SLOPE(1e0f, 64), 0, 0, 0, 0, 0}};
static const float ps__map_start[2][16] = {
    {0, 0, 0, 0, 0, 0, 1, PS__START(2) - 1, PS__START(4) - 1, PS__START(8) - 1, PS__START(16) - 1,
     PS__START(32) - 1, PS__START(64) - 1, PS__START(128) - 1, 255, 0},
    {0, 0, 0, 0, PS__START(1), PS__START(2), PS__START(4), PS__START(8), PS__START(16),
     PS__START(32), PS__START(64), 128, 0, 0, 0, 0}};
static const float ps__map_limit[2][16] = {
    {0, 0, 0, 0, 0, 0, 1, 2.5f, 6.5f, 14.5f, 30.5f, 62.5f, 126.5f, 254.5f, 255, 0},
    {0, 0, 0, 0, 1.5f, 3.5f, 7.5f, 15.5f, 31.5f, 63.5f, 127.5f, 128, 0, 0, 0, 0}};

struct ps__map512 {
    __m512 slope, start, limit, edge[2];
};

PS__INLINE512 struct ps__map512 ps__map512_load(bool is_signed)
{
    return (struct ps__map512){
        .slope = _mm512_loadu_ps(ps__map_slope[is_signed]),
        .start = _mm512_loadu_ps(ps__map_start[is_signed]),
        .limit = _mm512_loadu_ps(ps__map_limit[is_signed]),
        .edge = {_mm512_castsi512_ps(_mm512_loadu_si512(ps__map_edge[is_signed])),
                 _mm512_castsi512_ps(_mm512_loadu_si512(ps__map_edge[is_signed] + 16))}};
}

/* Signed: code - 127 in [-128, 128], where -128 stands for -127; unsigned: the code. v is x over
 * the scale. */
PS__INLINE512 __m512i ps__map512_number(const struct ps__map512 *t, __m512 x, __m512 v,
                                        bool is_signed)
{
    const __m512 least = _mm512_set1_ps(0x1p-30f), sign = _mm512_set1_ps(-0.0f);
    /* NaN becomes least; signed: the larger magnitude */
    v = is_signed ? _mm512_range_ps(v, least, 0x0b) : _mm512_max_ps(v, least);
    __m512i octave = _mm512_srli_epi32(_mm512_castps_si512(v), 23);
    __m512 edge = _mm512_permutex2var_ps(t->edge[0], octave, t->edge[1]);
    __m512i region = _mm512_castps_si512(edge);
    __mmask16 above = _mm512_cmp_ps_mask(v, edge, _CMP_GE_OQ);
    region = _mm512_mask_add_epi32(region, above, region, _mm512_set1_epi32(1));
    __m512 number = _mm512_mul_ps(v, _mm512_permutexvar_ps(region, t->slope));
    number = _mm512_add_ps(number, _mm512_permutexvar_ps(region, t->start));
    number = _mm512_min_ps(number, _mm512_permutexvar_ps(region, t->limit));
    if (is_signed) {
        __m512i bits = _mm512_ternarylogic_epi32(
            _mm512_castps_si512(number), _mm512_castps_si512(x), _mm512_castps_si512(sign), 0xd8);
        return _mm512_cvttps_epi32(_mm512_castsi512_ps(bits));
    }
    __mmask16 some = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_maskz_cvttps_epi32(some, number);
}

/* Codes of 64 numbers as above. */
PS__INLINE512 __m512i ps__map512_bytes(const __m512i number[4], bool is_signed)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i a = _mm512_packs_epi32(number[0], number[1]);
    __m512i b = _mm512_packs_epi32(number[2], number[3]);
    if (is_signed) {
        a = _mm512_add_epi16(a, _mm512_set1_epi16(127));
        b = _mm512_add_epi16(b, _mm512_set1_epi16(127));
    }
    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b)); /* -1 becomes 0 */
}

/* By the low four bits of the exponent of the number and a half: 126 (14): zero, 127 (15) ... The
 * last one times 0.1 + 0.9 / 256 (0.9 / 512) is 1. */
static const float ps__map_decade[2][16] = {
    {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f, 0x1.3a78ep+3f, 0, 0, 0, 0, 0, 0, 0, 0},
    {1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f, 0x1.3521dp+3f, 0, 0, 0, 0, 0, 0, 0, 0, 1e-6f}};

/* Values of the codes (one a lane) times the scale. */
PS__INLINE512 __m512 ps__map512_value(__m512i code, __m512 decade, __m512 scale, bool is_signed)
{
    __m512i number = is_signed ? _mm512_sub_epi32(code, _mm512_set1_epi32(127)) : code;
    __m512 q = _mm512_cvtepi32_ps(is_signed ? _mm512_abs_epi32(number) : number);
    /* the middle of the part; its mantissa less 1 is exact */
    q = _mm512_add_ps(q, _mm512_set1_ps(is_signed ? 0.5f : 1.5f));
    __m512i bits = _mm512_castps_si512(q);
    __m512i mantissa = _mm512_ternarylogic_epi32(bits, _mm512_set1_epi32(0x007fffff),
                                                 _mm512_set1_epi32(0x3f800000), 0xea);
    __m512 part = _mm512_sub_ps(_mm512_castsi512_ps(mantissa), _mm512_set1_ps(1));
    part = _mm512_add_ps(_mm512_set1_ps(0.1f), _mm512_mul_ps(_mm512_set1_ps(0.9f), part));
    __m512 ten = _mm512_permutexvar_ps(_mm512_srli_epi32(bits, 23), decade);
    __m512 v = _mm512_mul_ps(_mm512_mul_ps(ten, part), scale);
    if (!is_signed)
        return v;
    __m512i flipped = _mm512_ternarylogic_epi32(_mm512_castps_si512(v), number,
                                                _mm512_set1_epi32((int)0x80000000u), 0x78);
    return _mm512_castsi512_ps(flipped);
}

/* What values are multiplied by to encode them: 1 / a, by way of a power of two where that would
 * overflow. */
struct ps__map_scale {
    float a, lift, inverse;
};

PS__INLINE512 struct ps__map_scale ps__map_scale_of(__m512i most)
{
    __m512i top = _mm512_set1_epi32((int)_mm512_reduce_max_epu32(most));
    float a = _mm512_cvtss_f32(_mm512_castsi512_ps(top));
    float lift = a < 0x1p-100f ? 0x1p100f : 1.0f;
    return (struct ps__map_scale){.a = a, .lift = lift, .inverse = a > 0 ? 1 / (a * lift) : 0};
}

PS__INLINE512 __m512i ps__map512_most(__m512i most, __m512 x)
{
    return _mm512_max_epu32(
        most, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)));
}

#endif
