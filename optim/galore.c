/* GaLore: Adam in a low-rank subspace of each hidden matrix's gradient.
 *
 *   every update_gap updates: P from the leading singular vectors of G
 *   R = project(G);   M, V of R by beta1, beta2;   N = M / (sqrt(V) + eps)
 *   W <- W - lr (sqrt(c2) / c1) scale back(N);     then W <- W - lr decay W
 *
 * Sides, bases and refreshes as in projector.h, all else as in low_rank_adam.h. When the basis
 * changes the moments are kept as they are (official), reset, or rotated (ours). Q-GaLore's lazy
 * refreshes are not here. Other tensors: AdamW of the same form.
 *
 * State, (m, n) with r = rank: 2 r max(m, n) + r min(m, n) fp32 with the standard side.
 * FLOPs of an update: 4 m n r. Source: Zhao et al. 2024, arXiv:2403.03507; galore_torch. */
#include "optim/low_rank_adam.h"
#include "optim/optimizers.h"

static const struct ps_low_rank_method method = {.rank = 128, .update_gap = 200, .products = 2};

static int galore_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                         struct ps_opt_layout *out, struct ps_error *err)
{
    return ps_low_rank_layout(&method, h, tensor, NULL, 0, out, err);
}

static int galore_update(const struct ps_update *u, struct ps_error *err)
{
    struct ps_low_rank l;
    if (!ps_low_rank_projects(u->tensor))
        return ps_low_rank_plain(u, err);
    int ret = ps_low_rank_begin(&method, u, &l, err);
    if (ret < 0)
        return ret;
    ret = ps_low_rank_adam(u, &l, err);
    if (ret < 0)
        return ret;
    ps_low_rank_apply(u, &l, l.direction, l.rate * u->hyper->scale, 0);
    return 0;
}

static const struct ps_optimizer_option options[] = {{"beta1", 0.9},
                                                     {"beta2", 0.999},
                                                     {"eps", 1e-6},
                                                     {"optim-rank", 0},
                                                     {"optim-update-gap", 200},
                                                     {"optim-scale", 0.25},
                                                     {"optim-proj-type", 0},
                                                     {"optim-basis", 0},
                                                     {"optim-moments", 0},
                                                     {"optim-refresh-together", 0},
                                                     {NULL, 0}};

const struct ps_optimizer_ops ps_galore_ops = {
    .name = "galore",
    .options = options,
    .states = "fp32|bf16|8bit",
    .layout = galore_layout,
    .update = galore_update,
};
