/* The dynamic 8-bit map: 256 values with more relative precision near the block's maximum.
 *
 * Signed: for each decade i = 0..6 the interval [0.1, 1] is cut into 2^i equal parts; their middles
 * times 10^(i-6), with both signs, and 0 and +1 (-1 is not there). Unsigned: 2^(i+1) parts, and 0
 * and 1. Codes ascend: signed zero is 127, unsigned zero 0. Values are computed in fp32 by one
 * formula, within 3 units in the last place of the exact ones.
 *
 * A block of up to PS_BLOCK8 values is stored as one scale, its largest magnitude, and the code of
 * the value nearest to x / scale each. A block of zeros has scale 0. Encoding a value above 0 in
 * the unsigned map never gives code 0 but at least 1: second moments that vanish while the first
 * ones do not would make steps of any size.
 *
 * Source: Dettmers et al. 2022, arXiv:2110.02861; the code-1 rule is ours. */
#ifndef PS_OPTIM_DYNAMIC_MAP_H
#define PS_OPTIM_DYNAMIC_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PS_BLOCK8 256

/* Value of a code, in [-1, 1] or [0, 1]. */
float ps_dynamic_value(uint8_t code, bool is_signed);

/* Encode n <= PS_BLOCK8 values as one block; unsigned ones must not be negative. */
void ps_block8_encode(const float *x, size_t n, bool is_signed, uint8_t *code, float *scale);

/* x[i] = value(code[i]) * scale. */
void ps_block8_decode(const uint8_t *code, float scale, size_t n, bool is_signed, float *x);

#ifdef __cplusplus
}
#endif
#endif
