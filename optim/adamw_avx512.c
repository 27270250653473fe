/* AdamW with AVX-512: the operation sequence of adamw.h, sixteen elements at a time. */
#include <immintrin.h>

#include "optim/adamw_internal.h"

#define INLINE static inline __attribute__((always_inline))
#define FULL ((__mmask16)0xffff)

INLINE __m512 load_f32(const float *p, __mmask16 k)
{
    return k == FULL ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(k, p);
}

INLINE void store_f32(float *p, __mmask16 k, __m512 v)
{
    if (k == FULL)
        _mm512_storeu_ps(p, v);
    else
        _mm512_mask_storeu_ps(p, k, v);
}

INLINE __m512i load_u16(const uint16_t *p, __mmask16 k)
{
    __m256i h = k == FULL ? _mm256_loadu_si256((const __m256i *)(const void *)p)
                          : _mm256_maskz_loadu_epi16(k, p);
    return _mm512_cvtepu16_epi32(h);
}

INLINE void store_u16(uint16_t *p, __mmask16 k, __m512i v)
{
    __m256i h = _mm512_cvtepi32_epi16(v);
    if (k == FULL)
        _mm256_storeu_si256((__m256i *)(void *)p, h);
    else
        _mm256_mask_storeu_epi16(p, k, h);
}

INLINE __m512 master_join(const uint16_t *weight, const uint16_t *remainder, __mmask16 k)
{
    __m512i hi = load_u16(weight, k), lo = load_u16(remainder, k);
    hi = _mm512_sub_epi32(hi, _mm512_srli_epi32(lo, 15));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_slli_epi32(hi, 16), lo));
}

INLINE void master_split(__m512 p, uint16_t *weight, uint16_t *remainder, __mmask16 k)
{
    __m512i u = _mm512_castps_si512(p), high = _mm512_srli_epi32(u, 16);
    __mmask16 nan = _mm512_cmp_ps_mask(p, p, _CMP_UNORD_Q);
    __m512i hi = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x8000)), 16);
    hi = _mm512_mask_or_epi32(hi, nan, high, _mm512_set1_epi32(0x40));
    __m512i lo = _mm512_maskz_mov_epi32((__mmask16)~nan, u);
    store_u16(weight, k, hi);
    store_u16(remainder, k, lo);
}

INLINE void step(const struct ps_adamw_scalars *s, const struct ps_adamw_slice *a,
                 enum ps_dtype weight_dtype, enum ps_dtype grad_dtype, size_t i, __mmask16 k)
{
    __m512 g, p;
    if (grad_dtype == PS_DTYPE_F32)
        g = load_f32((const float *)a->grad + i, k);
    else
        g = _mm512_castsi512_ps(_mm512_slli_epi32(load_u16((const uint16_t *)a->grad + i, k), 16));
    if (weight_dtype == PS_DTYPE_F32)
        p = load_f32((const float *)a->weight + i, k);
    else
        p = master_join((const uint16_t *)a->weight + i, a->remainder + i, k);

    g = _mm512_mul_ps(g, _mm512_set1_ps(s->grad_scale));
    p = _mm512_fmadd_ps(_mm512_set1_ps(-s->decay), p, p);
    __m512 m = _mm512_fmadd_ps(_mm512_set1_ps(s->beta1), load_f32(a->exp_avg + i, k),
                               _mm512_mul_ps(_mm512_set1_ps(s->one_minus_beta1), g));
    __m512 g2 = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(s->one_minus_beta2), g), g);
    __m512 v = _mm512_fmadd_ps(_mm512_set1_ps(s->beta2), load_f32(a->exp_avg_sq + i, k), g2);
    __m512 denominator =
        _mm512_fmadd_ps(_mm512_sqrt_ps(v), _mm512_set1_ps(s->rsqrt_c2), _mm512_set1_ps(s->eps));
    p = _mm512_fmadd_ps(_mm512_set1_ps(-s->step_size), _mm512_div_ps(m, denominator), p);

    store_f32(a->exp_avg + i, k, m);
    store_f32(a->exp_avg_sq + i, k, v);
    if (weight_dtype == PS_DTYPE_F32)
        store_f32((float *)a->weight + i, k, p);
    else
        master_split(p, (uint16_t *)a->weight + i, a->remainder + i, k);
}

INLINE void update(const struct ps_adamw_scalars *s, const struct ps_adamw_slice *a,
                   enum ps_dtype weight_dtype, enum ps_dtype grad_dtype, size_t begin, size_t end)
{
    const struct ps_adamw_scalars scalars = *s; /* stores cannot change it: stays in registers */
    size_t i = begin;
    for (; i + 16 <= end; i += 16)
        step(&scalars, a, weight_dtype, grad_dtype, i, FULL);
    if (i < end)
        step(&scalars, a, weight_dtype, grad_dtype, i, (__mmask16)((1u << (end - i)) - 1u));
}

void ps__adamw_update_avx512(const struct ps_adamw_scalars *s, const struct ps_adamw_slice *slice,
                             size_t begin, size_t end)
{
    const struct ps_adamw_slice a = *slice;
    if (a.weight_dtype == PS_DTYPE_F32 && a.grad_dtype == PS_DTYPE_F32)
        update(s, &a, PS_DTYPE_F32, PS_DTYPE_F32, begin, end);
    else if (a.weight_dtype == PS_DTYPE_F32)
        update(s, &a, PS_DTYPE_F32, PS_DTYPE_BF16, begin, end);
    else if (a.grad_dtype == PS_DTYPE_F32)
        update(s, &a, PS_DTYPE_BF16, PS_DTYPE_F32, begin, end);
    else
        update(s, &a, PS_DTYPE_BF16, PS_DTYPE_BF16, begin, end);
}
