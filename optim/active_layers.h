/* Which layers train in an interval, as functions of (seed, interval) alone; for lisa and badam. */
#ifndef PS_OPTIM_ACTIVE_LAYERS_H
#define PS_OPTIM_ACTIVE_LAYERS_H

#include "runtime/train/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The place of `layer` in a random permutation of [0, n_layer) that belongs to (seed, interval):
 * each layer has a random number, its place is how many others come before it. */
int32_t ps_layer_place(uint64_t seed, uint64_t interval, int32_t n_layer, int32_t layer);

/* Is `layer` among `count` layers drawn without replacement? */
bool ps_layer_is_drawn(uint64_t seed, uint64_t interval, int32_t n_layer, int32_t count,
                       int32_t layer);

/* The number of this update, 1-based, among those of its interval of `steps`; at the first one the
 * slice's states are set to 0. */
uint64_t ps_moments_renew(const struct ps_update *u, int32_t steps);

#ifdef __cplusplus
}
#endif
#endif
