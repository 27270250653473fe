/* BAdam: AdamW on one layer at a time, in turns of so many steps.
 *
 * Turn k (of `interval` steps) trains layer n_layer - 1 - k mod n_layer (descending), k mod n_layer
 * (ascending), the k-th of a permutation that is drawn anew after each round (random), or always
 * the last layer (fixed). Embedding, head and final norm never train and have no state. Each turn
 * begins with moments and t of 0; the exact master of bf16 weights stays (the official code drops
 * it).
 *
 * Source: Luo et al. 2024, arXiv:2404.02827. */
#include "optim/active_layers.h"
#include "optim/adamw.h"
#include "optim/optimizers.h"

static int badam_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                        struct ps_opt_layout *out, struct ps_error *err)
{
    int ret = ps_adamw_ops.layout(h, tensor, out, err);
    if (ret == 0 && tensor->layer < 0)
        out->state_count = 0;
    return ret;
}

static bool badam_active(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                         uint64_t step)
{
    uint64_t turn = step / (uint64_t)h->interval, layers = (uint64_t)h->n_layer;
    int32_t place = (int32_t)(turn % layers);
    if (tensor->layer < 0)
        return false;
    switch (h->switch_mode) {
    case PS_SWITCH_DESCENDING:
        return tensor->layer == h->n_layer - 1 - place;
    case PS_SWITCH_ASCENDING:
        return tensor->layer == place;
    case PS_SWITCH_RANDOM:
        return ps_layer_place(h->seed, turn / layers, h->n_layer, tensor->layer) == place;
    case PS_SWITCH_FIXED:
        break;
    }
    return tensor->layer == h->n_layer - 1;
}

static int badam_update(const struct ps_update *u, struct ps_error *err)
{
    (void)err;
    if (badam_active(u->hyper, u->tensor, u->step))
        ps_adamw_step(u, ps_moments_renew(u, u->hyper->interval));
    return 0;
}

static const struct ps_optimizer_option badam_options[] = {{"beta1", 0.9},
                                                           {"beta2", 0.999},
                                                           {"eps", 1e-8},
                                                           {"switch-block-every", 50},
                                                           {"switch-mode", PS_SWITCH_DESCENDING},
                                                           {NULL, 0}};

const struct ps_optimizer_ops ps_badam_ops = {
    .name = "badam",
    .options = badam_options,
    .states = "fp32|bf16",
    .layout = badam_layout,
    .update = badam_update,
    .active = badam_active,
};
