/* What the instruction sets of AdamW with 8-bit moments share. Private to optim. */
#ifndef PS_OPTIM_ADAMW8BIT_INTERNAL_H
#define PS_OPTIM_ADAMW8BIT_INTERNAL_H

#include "optim/adamw.h"
#include "optim/weight_io.h"

enum { PS__M_CODE, PS__M_SCALE, PS__V_CODE, PS__V_SCALE };

/* Values of the codes, byte by byte: [unsigned, signed][byte of the float][code]. */
struct ps__map_planes {
    _Alignas(64) uint8_t byte[2][4][256];
};

void ps__map_planes_fill(struct ps__map_planes *planes);

/* Whole blocks: elements [at, at + n) of the slice, both multiples of PS_BLOCK8. */
void ps__adamw8bit_avx512(const struct ps_update *u, const struct ps_adamw_scalars *s,
                          const struct ps__map_planes *planes, size_t at, size_t n);

#endif
