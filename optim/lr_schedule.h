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
 *               D = wsd_decay_ratio * T steps, rounded, at least 1, at most T - W;
 *               or y = (1 - cos(pi y)) / 2, or y = sqrt(y), as wsd_decay says
 *   cosine-restarts  as cosine, x = cycles x modulo 1; r at the end
 *   inverse-sqrt     1 / sqrt((s - W + tau) / tau), tau = timescale, else W, else 10000
 *   power            min(1, a n^-b / peak), n = (s + 1) tokens_per_step, for all s (the warm-up
 *                    leads to its value at W); and the decay of wsd at the end
 *   refined          table[s] (0 past its end)
 *
 * At s = T and beyond the rate stays at its floor. The first update (s = 0) of a schedule with
 * warm-up already moves the weights, unlike Hugging Face's, whose first rate is 0.
 * Source: Loshchilov & Hutter 2017, 1608.03983 (cosine); Hu et al. 2024, 2404.06395 (WSD); Shen et
 * al. 2024, 2408.13359 (power); Defazio et al. 2023, 2310.07831 (refined). */
#ifndef PS_OPTIM_LR_SCHEDULE_H
#define PS_OPTIM_LR_SCHEDULE_H

#include <stdbool.h>
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
    PS_LR_COSINE_RESTARTS = 4,
    PS_LR_INVERSE_SQRT = 5,
    PS_LR_POWER = 6,
    PS_LR_REFINED = 7,
    PS_LR_KIND_COUNT = 8,
};

enum ps_wsd_decay { PS_WSD_LINEAR, PS_WSD_COSINE, PS_WSD_SQRT };

struct ps_lr_schedule {
    enum ps_lr_schedule_kind kind;
    double peak;           /* finite, >= 0 */
    double min_ratio;      /* floor as a share of peak, in [0, 1] */
    uint64_t warmup_steps; /* may exceed total_steps: then it never ends */
    uint64_t total_steps;
    double wsd_decay_ratio; /* share of total_steps in the final decay, in (0, 1]; 0 means 0.1 */
    enum ps_wsd_decay wsd_decay;
    uint32_t cycles;    /* cosine-restarts; 0 means 1 */
    uint64_t timescale; /* inverse-sqrt; 0: see above */
    double power_a, power_b, tokens_per_step;
    const double *table; /* (table_count,): refined; must live as long */
    uint64_t table_count;
};

/* Rate of the update that follows `completed_steps` updates. Any thread. */
double ps_lr_at(const struct ps_lr_schedule *schedule, uint64_t completed_steps);

/* The refined schedule of a run of `steps` steps from the gradient norms (before clipping) of the
 * steps of an earlier one, norm (count,), resampled when it had another length: median filter of a
 * tenth of the steps (odd, reflected at the ends), w = norm^-2 (square: for sgd) or 1 / norm (else;
 * the paper takes 1-norms there, a run logs 2-norms), factor_s = w_s sum of w_p, p > s, over its
 * maximum. scratch: (steps,). Returns 0, or PS_EFORMAT when a norm is not finite and above 0 after
 * filtering, or there are none. */
int ps_lr_refine(double *factor, uint64_t steps, const double *norm, uint64_t count, bool square,
                 double *scratch, struct ps_error *err) PS_WARN_UNUSED;

/* The name of a schedule, as "cosine", into *kind. Returns 0 or PS_EUSAGE (unknown name; the
 * advice lists the names; *kind untouched). */
int ps_lr_schedule_from_name(const char *name, enum ps_lr_schedule_kind *kind,
                             struct ps_error *err) PS_WARN_UNUSED;

/* The name of a kind. Static storage. */
const char *ps_lr_schedule_name(enum ps_lr_schedule_kind kind);

#ifdef __cplusplus
}
#endif
#endif
