/* Blocks of the 8-bit map with AVX-512. The bits are those of dynamic_map_internal.h. */
#include "optim/dynamic_map_avx512_internal.h"
#include "optim/dynamic_map_variants.h"

PS__INLINE512 void encode(const float *x, size_t n, uint8_t *code, float *scale, bool is_signed)
{
    __m512i most = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 16)
        most = ps__map512_most(most, ps__load_f32(x + i, ps__mask16(n - i)));
    struct ps__map_scale s = ps__map_scale_of(most);
    struct ps__map512 map = ps__map512_load(is_signed);
    *scale = s.a;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = ps__mask16(n - i);
        __m512 v = ps__load_f32(x + i, k);
        __m512 unit =
            _mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(s.lift)), _mm512_set1_ps(s.inverse));
        __m512i c = ps__map512_number(&map, v, unit, is_signed);
        if (is_signed)
            c = _mm512_max_epi32(_mm512_add_epi32(c, _mm512_set1_epi32(127)),
                                 _mm512_setzero_si512());
        _mm512_mask_cvtepi32_storeu_epi8(code + i, k, c);
    }
}

PS__INLINE512 void decode(const uint8_t *code, float scale, size_t n, float *x, bool is_signed)
{
    __m512 decade = _mm512_loadu_ps(ps__map_decade[is_signed]);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = ps__mask16(n - i);
        __m512i c = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(k, code + i));
        ps__store_f32(x + i, k, ps__map512_value(c, decade, _mm512_set1_ps(scale), is_signed));
    }
}

void ps__block8_decode_avx512(const uint8_t *code, float scale, size_t n, bool is_signed, float *x)
{
    if (is_signed)
        decode(code, scale, n, x, true);
    else
        decode(code, scale, n, x, false);
}

void ps__block8_encode_avx512(const float *x, size_t n, bool is_signed, uint8_t *code, float *scale)
{
    if (is_signed)
        encode(x, n, code, scale, true);
    else
        encode(x, n, code, scale, false);
}
