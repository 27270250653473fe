/* SGD with momentum and Nesterov's variant; decay is coupled, added to the gradient.
 *
 *   g <- g + decay p                                       (g = grad * grad_scale)
 *   b <- g at the tensor's first update, else momentum b + (1 - dampening) g
 *   d  = g without momentum, g + momentum b with nesterov, else b
 *   p <- p - lr d
 *
 * Each operator is rounded once, nothing is fused. Without momentum there is no state.
 * Source: Sutskever et al. 2013 (ICML); torch.optim.SGD. */
#include "optim/update_lanes_internal.h"
#include "optim/optimizers.h"
#include "optim/tile_internal.h"

static int sgd_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                      struct ps_opt_layout *out, struct ps_error *err)
{
    (void)tensor;
    if (h->nesterov && !(h->momentum > 0))
        return ps_error_full(err, PS_EUSAGE, NULL, "nesterov", "give --momentum, as 0.9",
                             "`nesterov` needs a momentum");
    if (h->nesterov && h->dampening > 0)
        return ps_error_full(err, PS_EUSAGE, NULL, "dampening", "remove one of the two",
                             "`dampening` has no place in `nesterov`");
    if (h->dampening > 0 && !(h->momentum > 0))
        return ps_error_full(err, PS_EUSAGE, NULL, "dampening", "give --momentum, as 0.9",
                             "`dampening` has no effect without `momentum`");
    *out = (struct ps_opt_layout){
        .state_count = h->momentum > 0 ? 1 : 0,
        .state = {{.name = "momentum_buffer", .dtype = h->state_dtype, .per = 1}},
        .granule = 1,
        .remainder = !h->stochastic_rounding,
    };
    return 0;
}

PS__INLINE void plain_loop(const struct ps__lanes *l, const struct ps__sgd_scalars *a, size_t n,
                           bool f32, bool g32)
{
    const struct ps__sgd_scalars s = *a;
    PS__LANES(l);
    (void)x;
    for (size_t i = 0; i < n; i++) {
        float w = PS__LANE_WEIGHT(i), g = PS__LANE_GRAD(i);
        w = w - s.lr * (s.decay != 0 ? g + s.decay * w : g);
        PS__LANE_STORE(i, w);
    }
}

PS__INLINE void plain(PS__TILE_ARGS)
{
    PS__RUN_LANES(plain_loop, (const struct ps__sgd_scalars *)arg);
}
PS__TILE_VARIANTS(plain)

PS__INLINE void momentum_loop(const struct ps__lanes *l, const struct ps__sgd_scalars *a, size_t n,
                              bool f32, bool g32)
{
    const struct ps__sgd_scalars s = *a;
    PS__LANES(l);
    for (size_t i = 0; i < n; i++) {
        float w = PS__LANE_WEIGHT(i), g = PS__LANE_GRAD(i);
        float d = s.decay != 0 ? g + s.decay * w : g;
        float b = s.first ? d : s.momentum * x[i] + s.undamped * d;
        x[i] = b;
        w = w - s.lr * (s.nesterov ? d + s.momentum * b : b);
        PS__LANE_STORE(i, w);
    }
}

PS__INLINE void with_momentum(PS__TILE_ARGS)
{
    PS__RUN_LANES(momentum_loop, (const struct ps__sgd_scalars *)arg);
}
PS__TILE_VARIANTS(with_momentum)

static int sgd_update(const struct ps_update *u, struct ps_error *err)
{
    (void)err;
    const struct ps_optimizer_hyper *h = u->hyper;
    struct ps__sgd_scalars s = {.lr = (float)u->lr,
                                .decay = (float)(u->decay ? h->weight_decay : 0),
                                .momentum = (float)h->momentum,
                                .undamped = (float)(1 - h->dampening),
                                .nesterov = h->nesterov,
                                .first = u->t == 1};
    bool momentum = u->layout->state_count > 0;
    if (u->isa >= PS_ISA_AVX512) {
        ps_update_tiles(u, PS__LANE_TASK, momentum ? ps__sgd_momentum_avx512 : ps__sgd_plain_avx512,
                        &s);
        return 0;
    }
    ps_update_tiles(u, PS_TILE, momentum ? with_momentum_for(u->isa) : plain_for(u->isa), &s);
    return 0;
}

static const struct ps_optimizer_option sgd_options[] = {
    {"momentum", 0}, {"dampening", 0}, {"nesterov", 0}, {NULL, 0}};

const struct ps_optimizer_ops ps_sgd_ops = {
    .name = "sgd",
    .options = sgd_options,
    .states = "fp32|bf16",
    .layout = sgd_layout,
    .update = sgd_update,
};
