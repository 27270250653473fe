/* LISA: AdamW on a few layers at a time, drawn anew every so many steps.
 *
 * In each interval of `interval` steps, active_layers of the n_layer layers train, drawn without
 * replacement by the random numbers of (seed, interval number); embedding, head and final norm
 * train always. Layers that were drawn begin with moments and t of 0, unless keep_state: then those
 * of frozen layers wait. The update itself is AdamW's.
 *
 * Source: Pan et al. 2024, arXiv:2403.17919. The paper's runs began each interval anew; the code of
 * LMFlow keeps moments. */
#include <stdio.h>

#include "optim/active_layers.h"
#include "optim/adamw.h"
#include "optim/optimizers.h"

static int lisa_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                       struct ps_opt_layout *out, struct ps_error *err)
{
    if (h->active_layers < 1 || h->active_layers > h->n_layer) {
        char advice[64];
        PS_IGNORE(snprintf(advice, sizeof advice, "take a number from 1 to %d", h->n_layer) < 0,
                  "fits");
        return ps_error_full(err, PS_EUSAGE, NULL, "lisa-activated-layers", advice,
                             "`lisa-activated-layers` %d does not fit a model of %d layers",
                             h->active_layers, h->n_layer);
    }
    return ps_adamw_ops.layout(h, tensor, out, err);
}

static bool lisa_active(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                        uint64_t step)
{
    uint64_t interval = step / (uint64_t)h->interval;
    return tensor->layer < 0 ||
           ps_layer_is_drawn(h->seed, interval, h->n_layer, h->active_layers, tensor->layer);
}

static int lisa_update(const struct ps_update *u, struct ps_error *err)
{
    (void)err;
    const struct ps_optimizer_hyper *h = u->hyper;
    if (!lisa_active(h, u->tensor, u->step))
        return 0;
    uint64_t t = u->t;
    if (u->tensor->layer >= 0 && !h->keep_state)
        t = ps_moments_renew(u, h->interval);
    ps_adamw_step(u, t);
    return 0;
}

static const struct ps_optimizer_option lisa_options[] = {{"beta1", 0.9},
                                                          {"beta2", 0.999},
                                                          {"eps", 1e-8},
                                                          {"lisa-activated-layers", 2},
                                                          {"lisa-interval-steps", 20},
                                                          {"keep-state", 0},
                                                          {NULL, 0}};

const struct ps_optimizer_ops ps_lisa_ops = {
    .name = "lisa",
    .options = lisa_options,
    .states = "fp32|bf16",
    .layout = lisa_layout,
    .update = lisa_update,
    .active = lisa_active,
};
