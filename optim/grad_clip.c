/* Exact clipping by the global gradient norm: see grad_clip.h. */
#include "optim/grad_clip.h"

#include <math.h>

void ps_grad_clip(struct ps_grad_clip *out, const double *part, size_t part_count, double max_norm)
{
    double sum = 0;
    for (size_t i = 0; i < part_count; i++)
        sum += part[i];
    out->norm = sqrt(sum);
    out->finite = isfinite(out->norm) != 0;
    out->coef = 1.0f;
    if (!out->finite || !(max_norm > 0))
        return;
    double coef = max_norm / (out->norm + 1e-6);
    if (coef < 1)
        out->coef = (float)coef;
}
