/* zero-offload: full fine-tuning with optimizer states and kept gradients in host memory, updated
 * there after the backward pass; weights near as far as they fit (ZeRO-Offload, arXiv:2101.06840).
 * Without a device memory all of it is RAM; what is saved against resident are the gradients, made
 * in shared slots and kept in 16 bits. */
#include "offload/strategy_internal.h"

static const enum ps__x_choice x_choices[] = {PS__X_NEAR, PS__X_MIXED, PS__X_MOVED};
static const enum ps__keep_choice keep_choices[] = {PS__KEEP_NONE, PS__KEEP_BALANCED,
                                                    PS__KEEP_MOST};
static const enum ps__grad_choice grad_choices[] = {PS__GRAD_MEMORY, PS__GRAD_OWN};
static const enum ps__cache_choice cache_choices[] = {PS__CACHE_PINS_3, PS__CACHE_SLOTS,
                                                      PS__CACHE_EMBED_PINS};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static struct ps__choice base(const struct ps_planner_request *req)
{
    return (struct ps__choice){.strategy = ps_strategy_zero_offload.name,
                               .stream = req->discrete,
                               .update = PS_UPDATE_AFTER,
                               .state = PS__STATE_MEMORY};
}

static int candidate(const struct ps_planner_request *req, int i, struct ps_step_layout *out,
                     struct ps_error *err)
{
    int cache, keep, x, grad;
    struct ps__choice c = base(req);
    i = ps__choice_pick(i, c.stream ? COUNT(cache_choices) : 1, &cache);
    i = ps__choice_pick(i, COUNT(grad_choices), &grad);
    i = ps__choice_pick(i, COUNT(keep_choices), &keep);
    i = ps__choice_pick(i, COUNT(x_choices), &x);
    c.cache = cache_choices[cache];
    c.grad = grad_choices[grad];
    c.keep = keep_choices[keep];
    c.x = x_choices[x];
    c.group = req->ablate & PS_ABLATE_LAYER_MAJOR ? i == 0 : ps__choice_group(req, i);
    return c.group > 0 ? ps__choice_layout(req, &c, out, err) : 1;
}

static int smallest(const struct ps_planner_request *req, struct ps_step_layout *out,
                    struct ps_error *err)
{
    struct ps__choice c = base(req);
    c.group = 1;
    c.grad = PS__GRAD_MEMORY;
    c.x = PS__X_MOVED;
    c.cache = PS__CACHE_LEAST;
    return ps__choice_layout(req, &c, out, err);
}

const struct ps_strategy ps_strategy_zero_offload = {
    .name = "zero-offload",
    .help = "full fine-tuning, states and gradients in host memory, updated there",
    .full = true,
    .memory_states = true,
    .candidate = candidate,
    .smallest = smallest,
};
