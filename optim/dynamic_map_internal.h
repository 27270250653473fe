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

/* q of the value nearest to x >= 0; NaN gives some q. */
PS__INLINE int32_t ps__dynamic_number(float x, bool is_signed)
{
    float first = is_signed ? 1.0f : 2.0f, p = first, up = 1e6f;
    int32_t zero = is_signed ? 0 : 1, one = is_signed ? 128 : 256;
    /* edges: b + 2 h with b the boundary and h = 0.45 b / parts the half step of the decade below
     */
#define PS__DECADE(d, tens, ten_up)                                                                \
    {                                                                                              \
        float edge = is_signed ? (float)((tens) * (1 + 0.9 / (1 << ((d)-1))))                      \
                               : (float)((tens) * (1 + 0.9 / (2 << ((d)-1))));                     \
        p = x >= edge ? first * (1 << (d)) : p;                                                    \
        up = x >= edge ? (ten_up) : up;                                                            \
    }
    PS__DECADE(1, 1e-6, 1e5f)
    PS__DECADE(2, 1e-5, 1e4f)
    PS__DECADE(3, 1e-4, 1e3f)
    PS__DECADE(4, 1e-3, 1e2f)
    PS__DECADE(5, 1e-2, 1e1f)
    PS__DECADE(6, 1e-1, 1.0f)
#undef PS__DECADE
    float part = (x * up - 0.1f) * (p * (1 / 0.9f));
    part = part > 0 ? part : 0; /* rounding at the lowest edge */
    part = part < p - 1 ? part : p - 1;
    int32_t q = (int32_t)p + (int32_t)part;
    q = x < (is_signed ? 2.75e-7f : 1.625e-7f) ? zero : q;
    return x >= (is_signed ? (float)(1 - 0.225 / 64) : (float)(1 - 0.225 / 128)) ? one : q;
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
            number[i] = q == 1 && magnitude > 0 ? 1 : q - 1;
        }
    }
    for (size_t i = 0; i < n; i++)
        code[i] = (uint8_t)number[i];
}

#endif
