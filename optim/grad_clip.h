/* Exact clipping by the global gradient norm: the arithmetic only.
 *
 *   norm = sqrt(sum of part[i], i ascending);  coef = min(1, max_norm / (norm + 1e-6))
 *
 * The parts are the fp64 partial sums of squares of ps_square_sum, tensors in order, so that norm
 * and coefficient do not depend on threads, placement or history. Same rule as
 * torch.nn.utils.clip_grad_norm_ (which computes it in fp32 throughout). */
#ifndef PS_OPTIM_GRAD_CLIP_H
#define PS_OPTIM_GRAD_CLIP_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ps_grad_clip {
    double norm; /* before clipping; NaN or Inf where a gradient was */
    float coef;  /* multiply every gradient by it: in (0, 1], 1 exactly when nothing is clipped */
    bool finite; /* false: apply nothing; coef is then 1 */
};

/* part (part_count,), host; NULL when part_count is 0 (norm 0). max_norm <= 0: no clipping, the
 * norm is computed all the same. Allocates nothing; any thread. */
void ps_grad_clip(struct ps_grad_clip *out, const double *part, size_t part_count, double max_norm);

#ifdef __cplusplus
}
#endif
#endif
