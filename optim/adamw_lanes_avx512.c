/* AdamW with AVX-512 where weights or moments are rounded at random: the operation sequence of
 * adamw.h in the loop of lanes_avx512_internal.h.
 *
 * Bytes a parameter with fp32 gradient: 24 with rounded weights, 16 with rounded moments too.
 * Instructions for 16 parameters: about 55 and 95, one division and one root among them. */
#include "optim/update_lanes_internal.h"
#include "optim/lanes_avx512_internal.h"

PS__INLINE512 void adamw(void *method, size_t i, __mmask16 k, __m512 *w, __m512 g, __m512 *m,
                         __m512 *v)
{
    const struct ps_adamw_scalars *s = method;
    (void)i;
    (void)k;
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(-s->decay), *w, *w);
    *m = _mm512_fmadd_ps(_mm512_set1_ps(s->beta1), *m,
                         _mm512_mul_ps(_mm512_set1_ps(s->one_minus_beta1), g));
    __m512 g2 = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(s->one_minus_beta2), g), g);
    *v = _mm512_fmadd_ps(_mm512_set1_ps(s->beta2), *v, g2);
    __m512 denominator =
        _mm512_fmadd_ps(_mm512_sqrt_ps(*v), _mm512_set1_ps(s->rsqrt_c2), _mm512_set1_ps(s->eps));
    *w = _mm512_fmadd_ps(_mm512_set1_ps(-s->step_size), _mm512_div_ps(*m, denominator), p);
}

void ps__adamw_lanes_avx512(const struct ps_update *u, const void *arg, size_t at, size_t n)
{
    struct ps_adamw_scalars s = *(const struct ps_adamw_scalars *)arg;
    ps__lanes512(u, 0, 2, adamw, &s, at, at + n);
}
