/* Lion with AVX-512: the operations of lion.c. Bytes a parameter: as SGD with momentum. */
#include "optim/update_lanes_internal.h"
#include "optim/lanes_avx512_internal.h"

PS__INLINE512 void lion(void *method, size_t i, __mmask16 k, __m512 *w, __m512 g, __m512 *x0,
                        __m512 *x1)
{
    const struct ps__lion_scalars *s = method;
    (void)i;
    (void)k;
    (void)x1;
    __m512 m = *x0, zero = _mm512_setzero_ps(), lr = _mm512_set1_ps(s->lr);
    __m512 c = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(s->beta1), m),
                             _mm512_mul_ps(_mm512_set1_ps(s->one_minus_beta1), g));
    __m512 step = _mm512_mul_ps(c, zero); /* NaN stays NaN */
    step = _mm512_mask_mov_ps(step, _mm512_cmp_ps_mask(c, zero, _CMP_GT_OQ), lr);
    step = _mm512_mask_sub_ps(step, _mm512_cmp_ps_mask(c, zero, _CMP_LT_OQ), zero, lr);
    *w = _mm512_sub_ps(*w, _mm512_mul_ps(_mm512_set1_ps(s->decay), *w));
    *w = _mm512_sub_ps(*w, step);
    *x0 = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(s->beta2), m),
                        _mm512_mul_ps(_mm512_set1_ps(s->one_minus_beta2), g));
}

void ps__lion_avx512(const struct ps_update *u, const void *arg, size_t at, size_t n)
{
    struct ps__lion_scalars s = *(const struct ps__lion_scalars *)arg;
    ps__lanes512(u, 0, 1, lion, &s, at, at + n);
}
