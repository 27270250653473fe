/* Rotary position embedding with AVX-512: see rope.h. Products are rounded before they are added,
 * as in the portable code, so that both give the same bits. */
#include "runtime/kernels/lane_avx512.h"
#include "runtime/kernels/rope_internal.h"

PS__LANE_INLINE void step(void *x, enum ps_dtype d, size_t half, const float *cosine,
                          const float *sine, __m512 sign, size_t j, __mmask16 k)
{
    __m512 a = ps__lane_load(x, d, j, k), b = ps__lane_load(x, d, half + j, k);
    __m512 c = ps__lane_load(cosine, PS_DTYPE_F32, j, k);
    __m512 s = _mm512_mul_ps(sign, ps__lane_load(sine, PS_DTYPE_F32, j, k));
    __m512 lo = _mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s));
    __m512 hi = _mm512_add_ps(_mm512_mul_ps(b, c), _mm512_mul_ps(a, s));
    ps__lane_store(x, d, j, k, lo);
    ps__lane_store(x, d, half + j, k, hi);
}

PS__LANE_INLINE void head(void *x, enum ps_dtype d, size_t half, const float *cosine,
                          const float *sine, float sign)
{
    __m512 vsign = _mm512_set1_ps(sign);
    size_t j = 0;
    for (; j + 16 <= half; j += 16)
        step(x, d, half, cosine, sine, vsign, j, PS__LANE_FULL);
    if (j < half)
        step(x, d, half, cosine, sine, vsign, j, ps__lane_mask(half - j));
}

void ps__rope_head_avx512(void *x, enum ps_dtype dtype, size_t half, const float *cosine,
                          const float *sine, float sign)
{
    if (dtype == PS_DTYPE_F32)
        head(x, PS_DTYPE_F32, half, cosine, sine, sign);
    else
        head(x, PS_DTYPE_BF16, half, cosine, sine, sign);
}
