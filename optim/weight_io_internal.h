/* Stochastic rounding by instruction set. Private to optim. */
#ifndef PS_OPTIM_WEIGHT_IO_INTERNAL_H
#define PS_OPTIM_WEIGHT_IO_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/rng.h"

/* The rounding of weight_io.h for elements [e, e + n) of a tensor, by the stream of the key;
 * weight_io_avx512.c. x and out do not overlap. */
void ps__round_avx512(const struct ps_rng_key *key, uint64_t e, size_t n, const float *x,
                      uint16_t *out);

#endif
