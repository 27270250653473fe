/* The random direction of MeZO, for tests: see mezo.c. */
#ifndef PS_OPTIM_MEZO_H
#define PS_OPTIM_MEZO_H

#include "runtime/train/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* z of the slice, (u->n,), at u->step. */
void ps_mezo_direction(const struct ps_update *u, float *z);

#ifdef __cplusplus
}
#endif
#endif
