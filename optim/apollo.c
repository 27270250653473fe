/* APOLLO and APOLLO-Mini: the gradient itself, scaled by channel or as a whole by how Adam would
 * scale its random projection.
 *
 *   P (rank, short side): N(0, 1) / sqrt(rank), new every update_gap updates, never stored
 *   R = project(G);   M, V of R;   N = M / (sqrt(V) + eps)
 *   apollo:      phi_j = |N_j| / (|R_j| + 1e-8)      j: a row (right side) or a column (left)
 *   apollo-mini: phi   = |N| / (|R| + 1e-8)          rank 1, one factor for the matrix
 *   S = G o phi, limited as in Fira (gamma = norm-growth-max, 0: off), times sqrt(scale): after the
 *   limiter, or before it (scale-front)
 *   W <- W - lr (sqrt(c2) / c1) S;   then W <- W - lr decay W
 *
 * Moments are kept when P changes. Other tensors: AdamW of the same form.
 *
 * State: 2 rank max(m, n) fp32 and the norm. FLOPs of an update: 2 m n r, and rank * short side
 * normal numbers; G is read three times, W once. Source: Zhu et al. 2024, arXiv:2412.05270. */
#include <math.h>

#include "optim/low_rank_adam.h"
#include "optim/optimizers.h"

static const struct ps_low_rank_method by_channel = {
    .rank = 256, .update_gap = 200, .products = 1, .random = true};
static const struct ps_low_rank_method by_tensor = {
    .rank = 1, .update_gap = 200, .products = 1, .random = true};

static int layout_of(const struct ps_low_rank_method *method, const struct ps_optimizer_hyper *h,
                     const struct ps_opt_tensor *tensor, struct ps_opt_layout *out,
                     struct ps_error *err)
{
    const struct ps_opt_state own[] = {{.name = "scaled_norm", .dtype = PS_DTYPE_F32, .count = 1}};
    return ps_low_rank_layout(method, h, tensor, own, 1, out, err);
}

static int apollo_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                         struct ps_opt_layout *out, struct ps_error *err)
{
    return layout_of(&by_channel, h, tensor, out, err);
}

static int mini_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                       struct ps_opt_layout *out, struct ps_error *err)
{
    return layout_of(&by_tensor, h, tensor, out, err);
}

static int update_by(const struct ps_low_rank_method *method, const struct ps_update *u,
                     struct ps_error *err)
{
    struct ps_low_rank l;
    if (!ps_low_rank_projects(u->tensor))
        return ps_low_rank_plain(u, err);
    int ret = ps_low_rank_begin(method, u, &l, err);
    if (ret < 0)
        return ret;
    ret = ps_low_rank_adam(u, &l, err);
    if (ret < 0)
        return ret;
    ps_low_rank_channels(&l, method == &by_tensor);
    double scale = sqrt(u->hyper->scale), front = u->hyper->scale_front ? scale : 1;
    double norm = front * ps_low_rank_residual_norm(u, &l, 0);
    double factor = ps_low_rank_limit(norm, u->hyper->norm_growth_max, u->state[l.own]);
    ps_low_rank_apply(u, &l, NULL, 0, l.rate * scale * factor);
    return 0;
}

static int apollo_update(const struct ps_update *u, struct ps_error *err)
{
    return update_by(&by_channel, u, err);
}

static int mini_update(const struct ps_update *u, struct ps_error *err)
{
    return update_by(&by_tensor, u, err);
}

static const struct ps_optimizer_option apollo_options[] = {{"beta1", 0.9},
                                                            {"beta2", 0.999},
                                                            {"eps", 1e-6},
                                                            {"optim-rank", 0},
                                                            {"optim-update-gap", 200},
                                                            {"optim-scale", 1},
                                                            {"optim-proj-type", PS_PROJECTION_STD},
                                                            {"optim-refresh-together", 0},
                                                            {"norm-growth-max", 1.01},
                                                            {"scale-front", 0},
                                                            {NULL, 0}};

static const struct ps_optimizer_option mini_options[] = {{"beta1", 0.9},
                                                          {"beta2", 0.999},
                                                          {"eps", 1e-6},
                                                          {"optim-rank", 1},
                                                          {"optim-update-gap", 200},
                                                          {"optim-scale", 128},
                                                          {"optim-proj-type", PS_PROJECTION_STD},
                                                          {"optim-refresh-together", 0},
                                                          {"norm-growth-max", 1.01},
                                                          {"scale-front", 0},
                                                          {NULL, 0}};

const struct ps_optimizer_ops ps_apollo_ops = {
    .name = "apollo",
    .options = apollo_options,
    .states = "fp32|bf16|8bit",
    .layout = apollo_layout,
    .update = apollo_update,
};

const struct ps_optimizer_ops ps_apollo_mini_ops = {
    .name = "apollo-mini",
    .options = mini_options,
    .states = "fp32|bf16|8bit",
    .layout = mini_layout,
    .update = mini_update,
};
