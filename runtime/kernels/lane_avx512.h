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

PS__LANE_INLINE __m256i ps__lane_to_bf16(__m512 v)
{
    __m512i u = _mm512_castps_si512(v), hi = _mm512_srli_epi32(u, 16);
    __m512i bias =
        _mm512_add_epi32(_mm512_and_si512(hi, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, bias), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, hi, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(rounded);
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

#endif
