/* Layers that train in an interval: see active_layers.h. */
#include "optim/active_layers.h"

#include <string.h>

#include "runtime/base/rng.h"

int32_t ps_layer_place(uint64_t seed, uint64_t interval, int32_t n_layer, int32_t layer)
{
    struct ps_rng_key key = {.seed = seed, .step = interval, .site = PS_RNG_ACTIVE};
    uint64_t own = ps_rng_u64(&key, (uint64_t)layer);
    int32_t place = 0;
    for (int32_t i = 0; i < n_layer; i++) {
        uint64_t other = ps_rng_u64(&key, (uint64_t)i);
        place += other < own || (other == own && i < layer);
    }
    return place;
}

bool ps_layer_is_drawn(uint64_t seed, uint64_t interval, int32_t n_layer, int32_t count,
                       int32_t layer)
{
    return ps_layer_place(seed, interval, n_layer, layer) < count;
}

uint64_t ps_moments_renew(const struct ps_update *u, int32_t steps)
{
    uint64_t t = u->step % (uint64_t)steps + 1;
    for (int k = 0; t == 1 && k < u->layout->state_count; k++)
        memset(u->state[k], 0, (size_t)ps_opt_state_bytes(&u->layout->state[k], u->n));
    return t;
}
