/* AdamW with AVX2 and FMA: the operation sequence of adamw.h, eight elements at a time; the last
 * few go through the portable code, which gives the same bits. */
#include <immintrin.h>

#include "optim/adamw_internal.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i load_u16(const uint16_t *p)
{
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* Low halves of the lanes, which must be below 65536. */
INLINE void store_u16(uint16_t *p, __m256i v)
{
    __m256i packed = _mm256_packus_epi32(v, v);
    packed = _mm256_permute4x64_epi64(packed, 0x08);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(packed));
}

INLINE __m256 master_join(const uint16_t *weight, const uint16_t *remainder)
{
    __m256i hi = load_u16(weight), lo = load_u16(remainder);
    hi = _mm256_sub_epi32(hi, _mm256_srli_epi32(lo, 15));
    return _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(hi, 16), lo));
}

INLINE void master_split(__m256 p, uint16_t *weight, uint16_t *remainder)
{
    __m256i u = _mm256_castps_si256(p);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(p, p, _CMP_UNORD_Q));
    __m256i hi = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x8000)), 16);
    __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
    hi = _mm256_blendv_epi8(hi, quiet, nan);
    __m256i lo = _mm256_andnot_si256(nan, _mm256_and_si256(u, _mm256_set1_epi32(0xffff)));
    store_u16(weight, hi);
    store_u16(remainder, lo);
}

INLINE void step(const struct ps_adamw_scalars *s, const struct ps_adamw_slice *a,
                 enum ps_dtype weight_dtype, enum ps_dtype grad_dtype, size_t i)
{
    __m256 g, p;
    if (grad_dtype == PS_DTYPE_F32)
        g = _mm256_loadu_ps((const float *)a->grad + i);
    else
        g = _mm256_castsi256_ps(_mm256_slli_epi32(load_u16((const uint16_t *)a->grad + i), 16));
    if (weight_dtype == PS_DTYPE_F32)
        p = _mm256_loadu_ps((const float *)a->weight + i);
    else
        p = master_join((const uint16_t *)a->weight + i, a->remainder + i);

    g = _mm256_mul_ps(g, _mm256_set1_ps(s->grad_scale));
    p = _mm256_fmadd_ps(_mm256_set1_ps(-s->decay), p, p);
    __m256 m = _mm256_fmadd_ps(_mm256_set1_ps(s->beta1), _mm256_loadu_ps(a->exp_avg + i),
                               _mm256_mul_ps(_mm256_set1_ps(s->one_minus_beta1), g));
    __m256 g2 = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(s->one_minus_beta2), g), g);
    __m256 v = _mm256_fmadd_ps(_mm256_set1_ps(s->beta2), _mm256_loadu_ps(a->exp_avg_sq + i), g2);
    __m256 denominator =
        _mm256_fmadd_ps(_mm256_sqrt_ps(v), _mm256_set1_ps(s->rsqrt_c2), _mm256_set1_ps(s->eps));
    p = _mm256_fmadd_ps(_mm256_set1_ps(-s->step_size), _mm256_div_ps(m, denominator), p);

    _mm256_storeu_ps(a->exp_avg + i, m);
    _mm256_storeu_ps(a->exp_avg_sq + i, v);
    if (weight_dtype == PS_DTYPE_F32)
        _mm256_storeu_ps((float *)a->weight + i, p);
    else
        master_split(p, (uint16_t *)a->weight + i, a->remainder + i);
}

INLINE void update(const struct ps_adamw_scalars *s, const struct ps_adamw_slice *a,
                   enum ps_dtype weight_dtype, enum ps_dtype grad_dtype, size_t begin, size_t end)
{
    const struct ps_adamw_scalars scalars = *s; /* stores cannot change it: stays in registers */
    size_t i = begin;
    for (; i + 8 <= end; i += 8)
        step(&scalars, a, weight_dtype, grad_dtype, i);
    ps__adamw_update_portable(s, a, i, end);
}

void ps__adamw_update_avx2(const struct ps_adamw_scalars *s, const struct ps_adamw_slice *slice,
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
