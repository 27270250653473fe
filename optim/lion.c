/* Lion: the sign of an interpolated momentum; decoupled decay before the step.
 *
 *   p <- p - (lr * decay) p
 *   p <- p - lr sign(beta1 m + (1 - beta1) g)              (g = grad * grad_scale, sign(0) = 0)
 *   m <- beta2 m + (1 - beta2) g                           after the weights: they use the old m
 *
 * Each operator is rounded once, nothing is fused.
 * Source: Chen et al. 2023, arXiv:2302.06675; the authors' lion_pytorch. */
#include "optim/update_lanes_internal.h"
#include "optim/optimizers.h"
#include "optim/tile_internal.h"

static int lion_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                       struct ps_opt_layout *out, struct ps_error *err)
{
    (void)tensor;
    (void)err;
    *out = (struct ps_opt_layout){
        .state_count = 1,
        .state = {{.name = "exp_avg", .dtype = h->state_dtype, .per = 1}},
        .granule = 1,
        .remainder = !h->stochastic_rounding,
    };
    return 0;
}

PS__INLINE void loop(const struct ps__lanes *l, const struct ps__lion_scalars *a, size_t n,
                     bool f32, bool g32)
{
    const struct ps__lion_scalars s = *a;
    PS__LANES(l);
    for (size_t i = 0; i < n; i++) {
        float w = PS__LANE_WEIGHT(i), g = PS__LANE_GRAD(i), m = x[i];
        float c = s.beta1 * m + s.one_minus_beta1 * g;
        float step = c > 0 ? s.lr : c < 0 ? -s.lr : c * 0; /* NaN stays NaN */
        w = (w - s.decay * w) - step;
        x[i] = s.beta2 * m + s.one_minus_beta2 * g;
        PS__LANE_STORE(i, w);
    }
}

PS__INLINE void update_tile(PS__TILE_ARGS)
{
    PS__RUN_LANES(loop, (const struct ps__lion_scalars *)arg);
}
PS__TILE_VARIANTS(update_tile)

static int lion_update(const struct ps_update *u, struct ps_error *err)
{
    (void)err;
    const struct ps_optimizer_hyper *h = u->hyper;
    struct ps__lion_scalars s = {.lr = (float)u->lr,
                                 .decay = (float)(u->lr * (u->decay ? h->weight_decay : 0)),
                                 .beta1 = (float)h->beta1,
                                 .beta2 = (float)h->beta2,
                                 .one_minus_beta1 = (float)(1 - h->beta1),
                                 .one_minus_beta2 = (float)(1 - h->beta2)};
    if (u->isa >= PS_ISA_AVX512)
        ps_update_tiles(u, PS__LANE_TASK, ps__lion_avx512, &s);
    else
        ps_update_tiles(u, PS_TILE, update_tile_for(u->isa), &s);
    return 0;
}

static const struct ps_optimizer_option lion_options[] = {
    {"beta1", 0.9}, {"beta2", 0.99}, {NULL, 0}};

const struct ps_optimizer_ops ps_lion_ops = {
    .name = "lion",
    .options = lion_options,
    .states = "fp32|bf16",
    .layout = lion_layout,
    .update = lion_update,
};
