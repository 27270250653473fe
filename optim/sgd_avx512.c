/* SGD with AVX-512: the operations of sgd.c.
 *
 * Bytes a parameter with fp32 gradient and momentum: 20 with exact masters, 16 with bf16 weights
 * rounded at random. Instructions for 16 parameters, loads, stores and branches in: 24 with fp32
 * weights, 33 with remainder, 52 rounded: the memory bounds all. */
#include "optim/update_lanes_internal.h"
#include "optim/lanes_avx512_internal.h"

PS__INLINE512 __m512 decayed(const struct ps__sgd_scalars *s, __m512 g, __m512 w)
{
    return s->decay != 0 ? _mm512_add_ps(g, _mm512_mul_ps(_mm512_set1_ps(s->decay), w)) : g;
}

PS__INLINE512 void plain(void *method, size_t i, __mmask16 k, __m512 *w, __m512 g, __m512 *x0,
                         __m512 *x1)
{
    const struct ps__sgd_scalars *s = method;
    (void)i;
    (void)k;
    (void)x0;
    (void)x1;
    *w = _mm512_sub_ps(*w, _mm512_mul_ps(_mm512_set1_ps(s->lr), decayed(s, g, *w)));
}

PS__INLINE512 void momentum(void *method, size_t i, __mmask16 k, __m512 *w, __m512 g, __m512 *x0,
                            __m512 *x1)
{
    const struct ps__sgd_scalars *s = method;
    (void)i;
    (void)k;
    (void)x1;
    __m512 d = decayed(s, g, *w), m = _mm512_set1_ps(s->momentum);
    __m512 b = s->first ? d
                        : _mm512_add_ps(_mm512_mul_ps(m, *x0),
                                        _mm512_mul_ps(_mm512_set1_ps(s->undamped), d));
    *x0 = b;
    __m512 step = s->nesterov ? _mm512_add_ps(d, _mm512_mul_ps(m, b)) : b;
    *w = _mm512_sub_ps(*w, _mm512_mul_ps(_mm512_set1_ps(s->lr), step));
}

void ps__sgd_plain_avx512(const struct ps_update *u, const void *arg, size_t at, size_t n)
{
    struct ps__sgd_scalars s = *(const struct ps__sgd_scalars *)arg;
    ps__lanes512(u, 0, 0, plain, &s, at, at + n);
}

void ps__sgd_momentum_avx512(const struct ps_update *u, const void *arg, size_t at, size_t n)
{
    struct ps__sgd_scalars s = *(const struct ps__sgd_scalars *)arg;
    ps__lanes512(u, 0, 1, momentum, &s, at, at + n);
}
