/* The 8-bit map for single blocks: see dynamic_map.h. */
#include "optim/dynamic_map.h"

#include <assert.h>

#include "optim/dynamic_map_internal.h"

float ps_dynamic_value(uint8_t code, bool is_signed)
{
    float x;
    ps__decode(&code, 1, 1, is_signed, &x);
    return x;
}

void ps_block8_encode(const float *x, size_t n, bool is_signed, uint8_t *code, float *scale)
{
    assert(n <= PS_BLOCK8);
    ps__encode(x, n, is_signed, code, scale);
}

void ps_block8_decode(const uint8_t *code, float scale, size_t n, bool is_signed, float *x)
{
    ps__decode(code, scale, n, is_signed, x);
}
