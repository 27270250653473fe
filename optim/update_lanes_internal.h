/* What the element-wise methods share with their AVX-512 files. Private to optim.
 *
 * Each function updates elements [at, at + n) of the slice in any form of weights, gradients and
 * states (lanes_avx512_internal.h), as ps_update_tiles calls it; n up to PS__LANE_TASK. */
#ifndef PS_OPTIM_UPDATE_LANES_INTERNAL_H
#define PS_OPTIM_UPDATE_LANES_INTERNAL_H

#include <stdbool.h>

#include "optim/adamw.h"
#include "optim/weight_io.h"

/* Elements of one task. The result does not depend on it: the update is element-wise. */
#define PS__LANE_TASK 16384

struct ps__sgd_scalars {
    float lr, decay, momentum, undamped; /* undamped: 1 - dampening */
    bool nesterov, first;                /* first: of the tensor */
};

struct ps__lion_scalars {
    float lr, decay, beta1, beta2, one_minus_beta1, one_minus_beta2;
};

/* arg: struct ps__sgd_scalars */
void ps__sgd_plain_avx512(const struct ps_update *u, const void *arg, size_t at, size_t n);
void ps__sgd_momentum_avx512(const struct ps_update *u, const void *arg, size_t at, size_t n);
/* arg: struct ps__lion_scalars */
void ps__lion_avx512(const struct ps_update *u, const void *arg, size_t at, size_t n);
/* arg: struct ps_adamw_scalars, whose grad_scale is 1 (u->grad_scale counts) */
void ps__adamw_lanes_avx512(const struct ps_update *u, const void *arg, size_t at, size_t n);

#endif
