/* Rotary position embedding with AVX-512: see rope.h. Products are rounded before they are added,
 * as in the portable code, so that both give the same bits. */
#include "runtime/kernels/lane_avx512.h"
#include "runtime/kernels/rope_internal.h"

/* Rotates the elements a and b = a + half by cosine c and sine s. */
PS__LANE_INLINE void rotate(__m512 *a, __m512 *b, __m512 c, __m512 s)
{
    __m512 lo = _mm512_sub_ps(_mm512_mul_ps(*a, c), _mm512_mul_ps(*b, s));
    *b = _mm512_add_ps(_mm512_mul_ps(*b, c), _mm512_mul_ps(*a, s));
    *a = lo;
}

PS__LANE_INLINE void head(void *x, enum ps_dtype d, size_t half, const float *cosine,
                          const float *sine, float sign)
{
    __m512 vsign = _mm512_set1_ps(sign);
    size_t j = 0;
    for (; j + 32 <= half; j += 32) {
        struct ps__pair a = ps__pair_load(x, d, j, d), b = ps__pair_load(x, d, half + j, d);
        struct ps__pair c = ps__pair_load(cosine, PS_DTYPE_F32, j, d);
        struct ps__pair s = ps__pair_load(sine, PS_DTYPE_F32, j, d);
        rotate(&a.a, &b.a, c.a, _mm512_mul_ps(vsign, s.a));
        rotate(&a.b, &b.b, c.b, _mm512_mul_ps(vsign, s.b));
        ps__pair_store(x, d, j, a, d);
        ps__pair_store(x, d, half + j, b, d);
    }
    for (; j < half; j += 16) {
        __mmask16 k = ps__lane_mask(half - j < 16 ? half - j : 16);
        __m512 a = ps__lane_load(x, d, j, k), b = ps__lane_load(x, d, half + j, k);
        __m512 s = _mm512_mul_ps(vsign, ps__lane_load(sine, PS_DTYPE_F32, j, k));
        rotate(&a, &b, ps__lane_load(cosine, PS_DTYPE_F32, j, k), s);
        ps__lane_store(x, d, j, k, a);
        ps__lane_store(x, d, half + j, k, b);
    }
}

void ps__rope_head_avx512(void *x, enum ps_dtype dtype, size_t half, const float *cosine,
                          const float *sine, float sign)
{
    if (dtype == PS_DTYPE_F32)
        head(x, PS_DTYPE_F32, half, cosine, sine, sign);
    else
        head(x, PS_DTYPE_BF16, half, cosine, sine, sign);
}
