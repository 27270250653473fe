/* Learning-rate schedules: pure functions of the number of completed updates, so that a resumed run
 * needs no state.
 *
 * With s completed updates, W warm-up steps, T total steps and floor r = min_ratio, the rate is
 * peak times
 *
 *   s < W       (s + 1) / W
 *   constant    1
 *   linear      1 - (1 - r) x                          x = min(1, (s - W) / (T - W))
 *   cosine      r + (1 - r) (1 + cos(pi x)) / 2
 *   wsd         1 until S = T - D, then 1 - (1 - r) y  y = min(1, (s - S) / D),
 *               D = wsd_decay_ratio * T steps, rounded, at least 1, at most T - W
 *
 * At s = T and beyond the rate stays at its floor. The first update (s = 0) of a schedule with
 * warm-up already moves the weights, unlike Hugging Face's, whose first rate is 0.
 * Source: Loshchilov & Hutter 2017, 1608.03983 (cosine); Hu et al. 2024, 2404.06395 (WSD). */
#ifndef PS_OPTIM_LR_SCHEDULE_H
#define PS_OPTIM_LR_SCHEDULE_H

#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_lr_schedule_kind {
    PS_LR_CONSTANT = 0,
    PS_LR_LINEAR = 1,
    PS_LR_COSINE = 2,
    PS_LR_WSD = 3,
};

struct ps_lr_schedule {
    enum ps_lr_schedule_kind kind;
    double peak;           /* finite, >= 0 */
    double min_ratio;      /* floor as a share of peak, in [0, 1] */
    uint64_t warmup_steps; /* may exceed total_steps: then it never ends */
    uint64_t total_steps;
    double wsd_decay_ratio; /* share of total_steps in the final decay, in (0, 1]; 0 means 0.1 */
};

/* Rate of the update that follows `completed_steps` updates. Any thread. */
double ps_lr_at(const struct ps_lr_schedule *schedule, uint64_t completed_steps);

/* "constant", "linear", "cosine" or "wsd" into *kind. Returns 0 or PS_EUSAGE (unknown name; the
 * advice lists the names; *kind untouched). */
int ps_lr_schedule_from_name(const char *name, enum ps_lr_schedule_kind *kind,
                             struct ps_error *err) PS_WARN_UNUSED;

/* The name of a kind. Static storage. */
const char *ps_lr_schedule_name(enum ps_lr_schedule_kind kind);

#ifdef __cplusplus
}
#endif
#endif
