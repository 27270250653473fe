/* SwiGLU with AVX-512: see swiglu.h. */
#include "runtime/kernels/lane_avx512.h"
#include "runtime/kernels/swiglu_internal.h"
#include "runtime/kernels/vexp_avx512.h"

/* 1 + exp(-g) */
PS__LANE_INLINE __m512 one_plus_exp(__m512 g)
{
    __m512 minus = _mm512_xor_ps(g, _mm512_set1_ps(-0.0f));
    return _mm512_add_ps(ps__vexp_avx512(minus), _mm512_set1_ps(1.0f));
}

PS__LANE_INLINE void forward_step(const struct ps__swiglu_args *a, enum ps_dtype d, size_t t,
                                  size_t j, __mmask16 k)
{
    __m512 g = ps__lane_load(a->gate, d, t * a->gate_ld + j, k);
    __m512 u = ps__lane_load(a->up, d, t * a->up_ld + j, k);
    __m512 silu = _mm512_div_ps(g, one_plus_exp(g));
    ps__lane_store(a->y, d, t * a->y_ld + j, k, _mm512_mul_ps(silu, u));
}

PS__LANE_INLINE void forward_row(const struct ps__swiglu_args *a, enum ps_dtype d, size_t t)
{
    size_t j = 0;
    for (; j + 16 <= a->n; j += 16)
        forward_step(a, d, t, j, PS__LANE_FULL);
    if (j < a->n)
        forward_step(a, d, t, j, ps__lane_mask(a->n - j));
}

void ps__swiglu_forward_avx512(const struct ps__swiglu_args *a, size_t t)
{
    if (a->dtype == PS_DTYPE_F32)
        forward_row(a, PS_DTYPE_F32, t);
    else
        forward_row(a, PS_DTYPE_BF16, t);
}

PS__LANE_INLINE void backward_step(const struct ps__swiglu_args *a, enum ps_dtype d, size_t t,
                                   size_t j, __mmask16 k)
{
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 g = ps__lane_load(a->gate, d, t * a->gate_ld + j, k);
    __m512 u = ps__lane_load(a->up, d, t * a->up_ld + j, k);
    __m512 dy = ps__lane_load(a->dy, d, t * a->dy_ld + j, k);
    __m512 sig = _mm512_div_ps(one, one_plus_exp(g));
    __m512 slope = _mm512_fmadd_ps(g, _mm512_sub_ps(one, sig), one);
    __m512 dg = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(dy, u), sig), slope);
    ps__lane_store(a->dgate, d, t * a->dgate_ld + j, k, dg);
    ps__lane_store(a->dup, d, t * a->dup_ld + j, k, _mm512_mul_ps(dy, _mm512_mul_ps(g, sig)));
}

PS__LANE_INLINE void backward_row(const struct ps__swiglu_args *a, enum ps_dtype d, size_t t)
{
    size_t j = 0;
    for (; j + 16 <= a->n; j += 16)
        backward_step(a, d, t, j, PS__LANE_FULL);
    if (j < a->n)
        backward_step(a, d, t, j, ps__lane_mask(a->n - j));
}

void ps__swiglu_backward_avx512(const struct ps__swiglu_args *a, size_t t)
{
    if (a->dtype == PS_DTYPE_F32)
        backward_row(a, PS_DTYPE_F32, t);
    else
        backward_row(a, PS_DTYPE_BF16, t);
}
