/* Blocks of the 8-bit map by instruction set; all give the same bits. Private to optim. */
#ifndef PS_OPTIM_DYNAMIC_MAP_VARIANTS_H
#define PS_OPTIM_DYNAMIC_MAP_VARIANTS_H

#include "optim/dynamic_map.h"
#include "runtime/base/isa.h"

typedef void (*ps__block8_encode_fn)(const float *x, size_t n, bool is_signed, uint8_t *code,
                                     float *scale);
typedef void (*ps__block8_decode_fn)(const uint8_t *code, float scale, size_t n, bool is_signed,
                                     float *x);

ps__block8_encode_fn ps__block8_encode_for(enum ps_isa isa);
ps__block8_decode_fn ps__block8_decode_for(enum ps_isa isa);

/* dynamic_map_avx512.c */
void ps__block8_encode_avx512(const float *x, size_t n, bool is_signed, uint8_t *code,
                              float *scale);
void ps__block8_decode_avx512(const uint8_t *code, float scale, size_t n, bool is_signed, float *x);

#endif
