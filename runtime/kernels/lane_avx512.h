/* Sixteen-lane loads and stores of any element type, for the AVX-512 kernels. The type and the mask
 * are constants at each call, so that the branches fold away. Rounding to bf16 is integer work that
 * agrees with ps_f32_to_bf16 bit for bit, subnormals included (vcvtneps2bf16 would flush them).
 * Private to runtime/kernels. */
#ifndef PS_KERNELS_LANE_AVX512_H
#define PS_KERNELS_LANE_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"

#define PS__LANE_INLINE static inline __attribute__((always_inline))
#define PS__LANE_FULL ((__mmask16)0xffff)

/* Mask of the lanes below n, n in [0, 16]. */
PS__LANE_INLINE __mmask16 ps__lane_mask(size_t n)
{
    return (__mmask16)((1u << n) - 1u);
}

PS__LANE_INLINE __m256i ps__lane_load16(const uint16_t *p, __mmask16 k)
{
    if (k == PS__LANE_FULL)
        return _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm256_maskz_loadu_epi16(k, p);
}

PS__LANE_INLINE void ps__lane_store16(uint16_t *p, __mmask16 k, __m256i v)
{
    if (k == PS__LANE_FULL)
        _mm256_storeu_si256((__m256i *)(void *)p, v);
    else
        _mm256_mask_storeu_epi16(p, k, v);
}

/* Lanes outside the mask read as 0. */
PS__LANE_INLINE __m512 ps__lane_load(const void *p, enum ps_dtype t, size_t at, __mmask16 k)
{
    if (t == PS_DTYPE_F32) {
        const float *f = (const float *)p + at;
        return k == PS__LANE_FULL ? _mm512_loadu_ps(f) : _mm512_maskz_loadu_ps(k, f);
    }
    __m256i h = ps__lane_load16((const uint16_t *)p + at, k);
    if (t == PS_DTYPE_F16)
        return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* Round to bf16 in the upper half of each lane; the lower half is rubbish. */
PS__LANE_INLINE __m512i ps__lane_round_bf16(__m512 v)
{
    __m512i u = _mm512_castps_si512(v);
    __mmask16 odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000));
    __m512i r = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
    r = _mm512_mask_add_epi32(r, odd, r, _mm512_set1_epi32(1));
    /* where v is a NaN (classes 0 and 1) take v made quiet, else keep r */
    __m512 fixed = _mm512_fixupimm_ps(_mm512_castsi512_ps(r), v, _mm512_set1_epi32(0x22), 0);
    return _mm512_castps_si512(fixed);
}

PS__LANE_INLINE __m256i ps__lane_to_bf16(__m512 v)
{
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(ps__lane_round_bf16(v), 16));
}

PS__LANE_INLINE void ps__lane_store(void *p, enum ps_dtype t, size_t at, __mmask16 k, __m512 v)
{
    if (t == PS_DTYPE_F32) {
        float *f = (float *)p + at;
        if (k == PS__LANE_FULL)
            _mm512_storeu_ps(f, v);
        else
            _mm512_mask_storeu_ps(f, k, v);
        return;
    }
    __m256i h = t == PS_DTYPE_F16
                    ? _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                    : ps__lane_to_bf16(v);
    ps__lane_store16((uint16_t *)p + at, k, h);
}

/* Sum of the lanes in a fixed tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1. */
PS__LANE_INLINE float ps__lane_sum(__m512 v)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    b = _mm_add_ss(b, _mm_movehdup_ps(b));
    return _mm_cvtss_f32(b);
}

/* Thirty-two elements in two vectors, in the order that is cheapest for a type: a bf16 pair holds
 * the even and the odd elements (a shift and a mask instead of two widening shuffles), every other
 * pair the first and the last sixteen. Element-wise work between pairs of one order never notices.
 */
struct ps__pair {
    __m512 a, b;
};

/* 32 elements of type t in the order of type `order`. */
PS__LANE_INLINE struct ps__pair ps__pair_load(const void *p, enum ps_dtype t, size_t at,
                                              enum ps_dtype order)
{
    struct ps__pair v;
    if (t == PS_DTYPE_BF16 && order == PS_DTYPE_BF16) {
        __m512i h = _mm512_loadu_si512((const uint16_t *)p + at);
        v.a = _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
        v.b = _mm512_castsi512_ps(_mm512_and_si512(h, _mm512_set1_epi32((int)0xffff0000u)));
        return v;
    }
    v.a = ps__lane_load(p, t, at, PS__LANE_FULL);
    v.b = ps__lane_load(p, t, at + 16, PS__LANE_FULL);
    if (order == PS_DTYPE_BF16) {
        const __m512i even =
            _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        __m512 a = _mm512_permutex2var_ps(v.a, even, v.b);
        v.b = _mm512_permutex2var_ps(v.a, _mm512_or_si512(even, _mm512_set1_epi32(1)), v.b);
        v.a = a;
    }
    return v;
}

/* Store as type t, F32 or BF16, a pair that is in the order of type `order`: t itself, or BF16. */
PS__LANE_INLINE void ps__pair_store(void *p, enum ps_dtype t, size_t at, struct ps__pair v,
                                    enum ps_dtype order)
{
    if (t == PS_DTYPE_BF16) {
        __m512i low = _mm512_srli_epi32(ps__lane_round_bf16(v.a), 16);
        __m512i high = ps__lane_round_bf16(v.b);
        __m512i h = _mm512_mask_blend_epi16(0xaaaaaaaau, low, high);
        _mm512_storeu_si512((uint16_t *)p + at, h);
        return;
    }
    if (order == PS_DTYPE_BF16) {
        const __m512i low =
            _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        __m512 a = _mm512_permutex2var_ps(v.a, low, v.b);
        v.b = _mm512_permutex2var_ps(v.a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), v.b);
        v.a = a;
    }
    ps__lane_store(p, t, at, PS__LANE_FULL, v.a);
    ps__lane_store(p, t, at + 16, PS__LANE_FULL, v.b);
}

/* Ask for the lines of 32 elements that are needed soon; beyond the end of a tensor is harmless. */
PS__LANE_INLINE void ps__pair_prefetch(const void *p, enum ps_dtype t, size_t at)
{
    const char *c = (const char *)((uintptr_t)p + at * ps_dtype_size(t));
    _mm_prefetch(c, _MM_HINT_T0);
    if (t == PS_DTYPE_F32)
        _mm_prefetch(c + 64, _MM_HINT_T0);
}

#endif
