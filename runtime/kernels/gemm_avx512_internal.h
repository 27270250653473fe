/* What both AVX-512 kernels share, included by files compiled for AVX-512 only. The functions are
 * longer than inline functions in headers may be: they live in registers and must be inlined. */
#ifndef PS_KERNELS_GEMM_AVX512_INTERNAL_H
#define PS_KERNELS_GEMM_AVX512_INTERNAL_H

#include <immintrin.h>

#include "runtime/kernels/gemm_internal.h"

#define PS__GEMM_MR 12
#define PS__GEMM_NR 32

/* The lowest n of 16 lanes; n may exceed 16. */
PS__INLINE __mmask16 ps__lanes(size_t n)
{
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1u);
}

/* Elements [idx, idx + 16) of data as fp32; lanes outside the mask are 0 and not touched. */
PS__INLINE __m512 ps__load_f32(const void *data, enum ps_dtype dtype, size_t idx, __mmask16 mask)
{
    if (dtype == PS_DTYPE_F32)
        return _mm512_maskz_loadu_ps(mask, (const float *)data + idx);
    __m256i h = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)data + idx);
    if (dtype == PS_DTYPE_F16)
        return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* fp32 to bf16 in the high halves, nearest even, low halves 0; as ps_f32_to_bf16, NaN included. */
PS__INLINE __m512i ps__round_bf16(__m512 f)
{
    __m512i u = _mm512_castps_si512(f);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
    __m512i r = _mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000u));
}

/* Transpose 16 rows of 16 units in place: row i holds unit i of each row afterwards. */
PS__INLINE void ps__transpose_16x16(__m512i r[16])
{
    __m512i t[16];
    PS__UNROLL
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    PS__UNROLL
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    PS__UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    PS__UNROLL
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

#endif
