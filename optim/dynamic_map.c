/* The 8-bit map for single blocks: see dynamic_map.h. */
#include "optim/dynamic_map.h"

#include <assert.h>

#include "optim/dynamic_map_internal.h"
#include "optim/dynamic_map_variants.h"

float ps_dynamic_value(uint8_t code, bool is_signed)
{
    float x;
    ps__decode(&code, 1, 1, is_signed, &x);
    return x;
}

void ps_block8_encode(const float *x, size_t n, bool is_signed, uint8_t *code, float *scale)
{
    assert(n <= PS_BLOCK8);
    if (is_signed)
        ps__encode(x, n, true, code, scale);
    else
        ps__encode(x, n, false, code, scale);
}

void ps_block8_decode(const uint8_t *code, float scale, size_t n, bool is_signed, float *x)
{
    assert(n <= PS_BLOCK8);
    if (is_signed)
        ps__decode(code, scale, n, true, x);
    else
        ps__decode(code, scale, n, false, x);
}

PS__AVX2 static void encode_avx2(const float *x, size_t n, bool is_signed, uint8_t *code,
                                 float *scale)
{
    if (is_signed)
        ps__encode(x, n, true, code, scale);
    else
        ps__encode(x, n, false, code, scale);
}

PS__AVX2 static void decode_avx2(const uint8_t *code, float scale, size_t n, bool is_signed,
                                 float *x)
{
    if (is_signed)
        ps__decode(code, scale, n, true, x);
    else
        ps__decode(code, scale, n, false, x);
}

ps__block8_encode_fn ps__block8_encode_for(enum ps_isa isa)
{
    return isa >= PS_ISA_AVX512 ? ps__block8_encode_avx512
           : isa == PS_ISA_AVX2 ? encode_avx2
                                : ps_block8_encode;
}

ps__block8_decode_fn ps__block8_decode_for(enum ps_isa isa)
{
    return isa >= PS_ISA_AVX512 ? ps__block8_decode_avx512
           : isa == PS_ISA_AVX2 ? decode_avx2
                                : ps_block8_decode;
}
