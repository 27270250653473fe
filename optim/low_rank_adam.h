/* What GaLore, Natural GaLore, Fira and APOLLO share: Adam on a projected gradient, and AdamW of
 * the same form for every other tensor.
 *
 * H-form, with N = M / (sqrt(V) + eps):
 *
 *   W <- W - lr (sqrt(c2) / c1) U,   then   W <- W - lr decay W      c1 = 1 - beta1^t, c2 = 1 -
 * beta2^t
 *
 * where U = N for tensors that are no hidden matrices, and the method's own combination of N and
 * the gradient for those that are. The moments are those of R, the projected gradient. Where
 * `moments` is `reset`, t counts from the refresh.
 *
 * States: exp_avg, exp_avg_sq (of R: rank * length entries), projection (rank, dim) where the
 * method keeps one, then the method's own. t, the side and the refreshes follow from the update
 * count, the shape and the options; nothing else is remembered.
 *
 * Products of an update, (m, n) of rank r: 2 m n r FLOPs to project and as many to project back;
 * bytes: G twice at most, W read and written, 6 r max(m, n) words of states and scratch. */
#ifndef PS_OPTIM_LOW_RANK_ADAM_H
#define PS_OPTIM_LOW_RANK_ADAM_H

#include "optim/projector.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Channels of a task of ps_low_rank_channels. */
#define PS_LOW_RANK_CHANNELS 256

/* How a method uses this file. */
struct ps_low_rank_method {
    int32_t rank, update_gap; /* defaults */
    double products;          /* of 2 m n rank FLOPs each, of an update */
    bool random;              /* the basis is random numbers: made anew each time, never stored */
};

/* Scratch of one update: see ps_low_rank_begin. All sizes in elements. */
struct ps_low_rank {
    struct ps_projector p;
    struct ps_matrix_cx cx;
    double rate;      /* lr sqrt(c2) / c1 */
    float decay;      /* lr * weight_decay, or 0 */
    bool refreshed;   /* the basis is new */
    int own;          /* first of the method's own states */
    float *basis;     /* (rank, dim) */
    float *low;       /* (rank * length,) R, of the clipped gradient */
    float *direction; /* (rank * length,) -N */
    float *back;      /* (back_rows, cols) */
    size_t back_rows;
    float *channel;   /* (length,) a factor for each row (right) or column (left) */
    double *row_sum;  /* (rows,) */
    double *task_sum; /* (2 * tasks,) of the channels */
};

/* Layout of a hidden matrix or of any other tensor. `own` (own_count) are the method's states. */
int ps_low_rank_layout(const struct ps_low_rank_method *method,
                       const struct ps_optimizer_hyper *hyper, const struct ps_opt_tensor *tensor,
                       const struct ps_opt_state *own, int own_count, struct ps_opt_layout *out,
                       struct ps_error *err) PS_WARN_UNUSED;

/* Is this tensor projected? The others are for ps_low_rank_plain. */
bool ps_low_rank_projects(const struct ps_opt_tensor *tensor);

/* AdamW, H-form, decay after the step. */
int ps_low_rank_plain(const struct ps_update *u, struct ps_error *err) PS_WARN_UNUSED;

/* Refresh the basis if it is time, and project: fills everything but direction, back, channel. */
int ps_low_rank_begin(const struct ps_low_rank_method *method, const struct ps_update *u,
                      struct ps_low_rank *out, struct ps_error *err) PS_WARN_UNUSED;

/* Moments of `low`, then `direction`. */
int ps_low_rank_adam(const struct ps_update *u, const struct ps_low_rank *l,
                     struct ps_error *err) PS_WARN_UNUSED;

/* channel[j] = |N_j| / (|R_j| + 1e-8), over the rank, j a row (right) or column (left); `whole`:
 * one factor of the whole matrix. */
void ps_low_rank_channels(const struct ps_low_rank *l, bool whole);

/* Norm of E o channel, with E = grad * grad_scale - alpha * back(R); alpha 0: of the gradient. */
double ps_low_rank_residual_norm(const struct ps_update *u, const struct ps_low_rank *l,
                                 float alpha);

/* The limiter of fira and apollo: what S of this norm is multiplied by, and the norm that is kept
 * for the next step in *kept (0: none yet; a norm of 0 is not kept, it would hold S down for long
 * after). growth_max 0: no limit. */
double ps_low_rank_limit(double norm, double growth_max, float *kept);

/* W <- W + toward * back(low) - along * channel o G (along 0: without), then decay. */
void ps_low_rank_apply(const struct ps_update *u, const struct ps_low_rank *l, const float *low,
                       double toward, double along);

#ifdef __cplusplus
}
#endif
#endif
