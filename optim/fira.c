/* Fira: GaLore plus what its subspace leaves out, scaled by channel as Adam scales inside.
 *
 *   R, M, V, N, P as GaLore;   a = optim-scale;   E = G - a back(R)
 *   phi_j = |N_j| / (|R_j| + 1e-8)       j: a row (right side) or a column (left), norms over the
 * rank S = E o phi;   S <- S / l            l = max(|S| / (s + 1e-8), gamma) / gamma, s = |S| of
 * the step before, after limiting; no s: l = 1 W <- W - lr (sqrt(c2) / c1) (a back(N) + S);   then
 * W <- W - lr decay W
 *
 * gamma is norm-growth-max (1.01; 0: no limiter). a multiplies the projection that is taken off
 * too, as in the authors' code: for a < 1 S keeps (1 - a) of the gradient inside the subspace. A
 * step with S = 0 leaves s as it was: the authors' code stores 0, from which S would recover by 1%
 * a step. Other tensors: AdamW of the same form.
 *
 * State: GaLore's and s. FLOPs of an update: 6 m n r (the residual's norm takes a back projection
 * of its own; the step takes one, of N and R together). G is read three times.
 * Source: Chen et al. 2024, arXiv:2410.01623. */
#include "optim/low_rank_adam.h"
#include "optim/optimizers.h"

static const struct ps_low_rank_method method = {.rank = 128, .update_gap = 200, .products = 3};

static int fira_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                       struct ps_opt_layout *out, struct ps_error *err)
{
    const struct ps_opt_state own[] = {
        {.name = "residual_norm", .dtype = PS_DTYPE_F32, .count = 1}};
    return ps_low_rank_layout(&method, h, tensor, own, 1, out, err);
}

/* direction (-N) plus factor * phi o R, in place: a back projection of it is both parts at once. */
static void join_residual(const struct ps_low_rank *l, float factor)
{
    const struct ps_projector *p = &l->p;
    size_t rows = p->right ? p->length : p->rank, cols = p->right ? p->rank : p->length;
    for (size_t i = 0; i < rows; i++) {
        float *d = l->direction + i * cols;
        const float *r = l->low + i * cols;
        for (size_t j = 0; j < cols; j++)
            d[j] += factor * l->channel[p->right ? i : j] * r[j];
    }
}

static int fira_update(const struct ps_update *u, struct ps_error *err)
{
    struct ps_low_rank l;
    if (!ps_low_rank_projects(u->tensor))
        return ps_low_rank_plain(u, err);
    int ret = ps_low_rank_begin(&method, u, &l, err);
    if (ret < 0)
        return ret;
    double scale = u->hyper->scale;
    ret = ps_low_rank_adam(u, &l, err);
    if (ret < 0)
        return ret;
    ps_low_rank_channels(&l, false);
    double norm = ps_low_rank_residual_norm(u, &l, (float)scale);
    double factor = ps_low_rank_limit(norm, u->hyper->norm_growth_max, u->state[l.own]);
    join_residual(&l, (float)factor);
    ps_low_rank_apply(u, &l, l.direction, l.rate * scale, l.rate * factor);
    return 0;
}

static const struct ps_optimizer_option options[] = {{"beta1", 0.9},
                                                     {"beta2", 0.999},
                                                     {"eps", 1e-6},
                                                     {"optim-rank", 0},
                                                     {"optim-update-gap", 200},
                                                     {"optim-scale", 0.25},
                                                     {"optim-proj-type", PS_PROJECTION_STD},
                                                     {"optim-basis", PS_BASIS_RANDOMIZED},
                                                     {"optim-moments", PS_MOMENTS_KEEP},
                                                     {"optim-refresh-together", 0},
                                                     {"norm-growth-max", 1.01},
                                                     {NULL, 0}};

const struct ps_optimizer_ops ps_fira_ops = {
    .name = "fira",
    .options = options,
    .states = "fp32|bf16|8bit",
    .layout = fira_layout,
    .update = fira_update,
};
