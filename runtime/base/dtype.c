/* Element types and their conversions: see dtype.h. */
#include "runtime/base/dtype.h"

#include <assert.h>

const char *ps_dtype_name(enum ps_dtype t)
{
    static const char *const name[PS_DTYPE_COUNT] = {"F32", "BF16", "F16", "I32",
                                                     "U16", "I64",  "U8",  "F64"};
    assert(t < PS_DTYPE_COUNT);
    return name[t];
}

float ps_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exp = (h >> 10) & 0x1fu;
    uint32_t man = h & 0x3ffu;
    uint32_t u;
    if (exp == 0x1f) {
        u = sign | 0x7f800000u | (man << 13);
    } else if (exp) {
        u = sign | ((exp + 112) << 23) | (man << 13);
    } else if (man) {
        unsigned shift = (unsigned)__builtin_clz(man) - 21; /* bring the leading 1 to bit 10 */
        man = (man << shift) & 0x3ffu;
        u = sign | ((113 - shift) << 23) | (man << 13);
    } else {
        u = sign;
    }
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

uint16_t ps_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    uint32_t abs = u & 0x7fffffffu;
    if (abs > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (abs >= 0x477ff000u) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00u);
    if (abs < 0x38800000u) { /* subnormal half, or zero */
        if (abs < 0x33000000u)
            return sign;
        uint32_t man = (abs & 0x7fffffu) | 0x800000u;
        unsigned shift = 126 - (abs >> 23);
        uint32_t half = man >> shift;
        uint32_t rest = man & ((1u << shift) - 1);
        uint32_t tie = 1u << (shift - 1);
        half += rest > tie || (rest == tie && (half & 1));
        return (uint16_t)(sign | half);
    }
    uint32_t half = ((abs >> 23) - 112) << 10 | ((abs >> 13) & 0x3ffu);
    uint32_t rest = abs & 0x1fffu;
    half += rest > 0x1000u || (rest == 0x1000u && (half & 1));
    return (uint16_t)(sign | half);
}

static uint16_t load_u16(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

/* Widen (n,) BF16 or F16 to F32. */
static void widen(unsigned char *dst, const unsigned char *src, enum ps_dtype src_type, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = load_u16(src + 2 * i);
        float f = src_type == PS_DTYPE_BF16 ? ps_bf16_to_f32(h) : ps_f16_to_f32(h);
        memcpy(dst + 4 * i, &f, sizeof f);
    }
}

/* Narrow (n,) F32 to BF16 or F16. */
static void narrow(unsigned char *dst, enum ps_dtype dst_type, const unsigned char *src, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float f;
        memcpy(&f, src + 4 * i, sizeof f);
        uint16_t h = dst_type == PS_DTYPE_BF16 ? ps_f32_to_bf16(f) : ps_f32_to_f16(f);
        memcpy(dst + 2 * i, &h, sizeof h);
    }
}

/* Between BF16 and F16, through F32: one rounding, as widening is exact. */
static void swap_halves(unsigned char *dst, enum ps_dtype dst_type, const unsigned char *src,
                        size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = load_u16(src + 2 * i);
        h = dst_type == PS_DTYPE_BF16 ? ps_f32_to_bf16(ps_f16_to_f32(h))
                                      : ps_f32_to_f16(ps_bf16_to_f32(h));
        memcpy(dst + 2 * i, &h, sizeof h);
    }
}

void ps_dtype_convert(void *dst, enum ps_dtype dst_type, const void *src, enum ps_dtype src_type,
                      size_t n)
{
    assert(dst_type <= PS_DTYPE_F16);
    assert(src_type <= PS_DTYPE_F16);
    if (dst_type == src_type) {
        if (dst != src && n)
            memcpy(dst, src, n * ps_dtype_size(dst_type));
        return;
    }
    if (dst_type == PS_DTYPE_F32)
        widen(dst, src, src_type, n);
    else if (src_type == PS_DTYPE_F32)
        narrow(dst, dst_type, src, n);
    else
        swap_halves(dst, dst_type, src, n);
}
