/* Bodies of dynamic_map.h for loops of several instruction sets: selections instead of tables, so
 * that the compiler vectorises them without gathers. Private to optim. */
#ifndef PS_OPTIM_DYNAMIC_MAP_INTERNAL_H
#define PS_OPTIM_DYNAMIC_MAP_INTERNAL_H

#include "optim/dynamic_map.h"
#include "optim/tile_internal.h"

/* A magnitude is numbered q = 2^d + part, d its decade (unsigned: d + 1). q is in [1, 127] signed,
 * [2, 255] unsigned; one more is the value 1, and one less than the first is 0. */
PS__INLINE float ps__dynamic_magnitude(float q, bool is_signed)
{
    float first = is_signed ? 1.0f : 2.0f; /* of the lowest decade */
    float p = ps__float_of(ps__bits_of(q) & 0x7f800000u);
    float inverse = ps__float_of(0x7f000000u - ps__bits_of(p)); /* 1 / p */
    float decade = 1e-6f;
    decade = q >= first * 2 ? 1e-5f : decade;
    decade = q >= first * 4 ? 1e-4f : decade;
    decade = q >= first * 8 ? 1e-3f : decade;
    decade = q >= first * 16 ? 1e-2f : decade;
    decade = q >= first * 32 ? 1e-1f : decade;
    decade = q >= first * 64 ? 1.0f : decade;
    float v = decade * (0.1f + 0.9f * ((q - p + 0.5f) * inverse));
    v = q >= first * 128 ? 1.0f : v;
    return q < first ? 0.0f : v;
}

/* Where a value goes to the next decade, the last but one column being the first one's beginning
 * and the last one where it becomes 1: halfway between the values beside it, b + 2 h with b the
 * boundary and h = 0.45 b / parts the half step of the decade below, but for the last four bits,
 * which the AVX-512 code needs: off by less than 6e-8. */
static const float ps__map_edges[2][8] = {
    {0x1.853b2ep-20f, 0x1.9b0abp-17f, 0x1.d29dd2p-14f, 0x1.14e3b4p-10f, 0x1.50e556p-7f,
     0x1.9f5c38p-4f, 0x1.5cf74cp-23f, 0x1.ff199ap-1f},
    {0x1.fe0708p-20f, 0x1.e68a0ap-17f, 0x1.00e6acp-13f, 0x1.23a28ep-10f, 0x1.5a1cbp-7f,
     0x1.a51eb2p-4f, 0x1.274766p-22f, 0x1.fe3334p-1f}};

/* q of the value nearest to x >= 0; NaN becomes zero. In a decade q = p + trunc((x up - 0.1) p /
 * 0.9) = trunc(x slope + p 8 / 9), or 1 + trunc(... - 1) unsigned; half a step beyond the decade's
 * end still belong to it. */
PS__INLINE int32_t ps__dynamic_number(float x, bool is_signed)
{
    const float *edge = ps__map_edges[is_signed];
    float first = is_signed ? 1.0f : 2.0f, p = first, up = 1e6f;
    int32_t zero = is_signed ? 0 : 1, one = is_signed ? 128 : 256;
    x = x > 0x1p-30f ? x : 0x1p-30f;
#define PS__DECADE(d, ten_up)                                                                      \
    p = x >= edge[(d)-1] ? first * (1 << (d)) : p;                                                 \
    up = x >= edge[(d)-1] ? (ten_up) : up;
    PS__DECADE(1, 1e5f)
    PS__DECADE(2, 1e4f)
    PS__DECADE(3, 1e3f)
    PS__DECADE(4, 1e2f)
    PS__DECADE(5, 1e1f)
    PS__DECADE(6, 1.0f)
#undef PS__DECADE
    float less = is_signed ? 0 : 1; /* codes begin with 0 there */
    float number = x * (up * (p * (1 / 0.9f))) + (p * (8 / 9.0f) - less);
    float limit = 2 * p - 0.5f - less;
    int32_t q = (int32_t)(number < limit ? number : limit) + (int32_t)less;
    q = x < edge[6] ? zero : q;
    return x >= edge[7] ? one : q;
}

/* n <= PS_BLOCK8. Bytes are widened and narrowed in loops of their own: one loop would be as wide
 * as its bytes, and its floats would not fit the registers. */
PS__INLINE void ps__decode(const uint8_t *restrict code, float scale, size_t n, bool is_signed,
                           float *restrict x)
{
    int32_t number[PS_BLOCK8];
    for (size_t i = 0; i < n; i++)
        number[i] = (int32_t)code[i] - (is_signed ? 127 : -1);
    for (size_t i = 0; i < n; i++) {
        int32_t q = number[i];
        float a = ps__dynamic_magnitude((float)(q < 0 ? -q : q), is_signed) * scale;
        x[i] = q < 0 ? -a : a;
    }
}

PS__INLINE void ps__encode(const float *restrict x, size_t n, bool is_signed,
                           uint8_t *restrict code, float *restrict scale)
{
    uint32_t most = 0; /* of the magnitudes' bits, which are in the order of their values */
    for (size_t i = 0; i < n; i++) {
        uint32_t b = ps__bits_of(x[i]) & 0x7fffffffu;
        most = b > most ? b : most;
    }
    float a = ps__float_of(most);
    float lift = a < 0x1p-100f ? 0x1p100f : 1.0f; /* 1 / a must not overflow */
    float inverse = a > 0 ? 1 / (a * lift) : 0;
    *scale = a;
    int32_t number[PS_BLOCK8];
    for (size_t i = 0; i < n; i++) {
        float magnitude = ps__float_of(ps__bits_of(x[i]) & 0x7fffffffu);
        int32_t q = ps__dynamic_number(magnitude * lift * inverse, is_signed);
        if (is_signed) {
            int32_t below = 127 - (q < 127 ? q : 127);
            number[i] = x[i] < 0 ? below : 127 + q;
        } else {
            number[i] = x[i] > 0 ? (q > 2 ? q - 1 : 1) : 0;
        }
    }
    for (size_t i = 0; i < n; i++)
        code[i] = (uint8_t)number[i];
}

#endif
