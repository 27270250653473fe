/* fuyou: full fine-tuning, a layer is updated inside the backward pass as soon as its gradient is
 * complete, from optimizer states that all lie on disk; layer boundaries are swapped out and back
 * (Fuyou, arXiv:2403.06504). */
#include "offload/strategy_internal.h"

static const enum ps__keep_choice keep_choices[] = {PS__KEEP_NONE, PS__KEEP_BALANCED, PS__KEEP_MOST,
                                                    PS__KEEP_SWAPPED};
static const enum ps__cache_choice cache_choices[] = {PS__CACHE_PINS_3, PS__CACHE_SLOTS,
                                                      PS__CACHE_EMBED_PINS};
static const enum ps__order_choice order_choices[] = {PS__ORDER_GRADS, PS__ORDER_WEIGHTS,
                                                      PS__ORDER_SLOTS};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static struct ps__choice base(const struct ps_planner_request *req)
{
    return (struct ps__choice){.strategy = ps_strategy_fuyou.name,
                               .stream = true,
                               .group = ps__choice_whole_step(req),
                               .x = PS__X_MOVED,
                               .update = PS_UPDATE_INSIDE,
                               .state = PS__STATE_DISK,
                               .grad = ps__choice_inside_grad(req)};
}

static int candidate(const struct ps_planner_request *req, int i, struct ps_step_layout *out,
                     struct ps_error *err)
{
    int cache, keep, order;
    struct ps__choice c = base(req);
    i = ps__choice_pick(i, COUNT(cache_choices), &cache);
    i = ps__choice_pick(i, COUNT(order_choices), &order);
    i = ps__choice_pick(i, COUNT(keep_choices), &keep);
    if (i > 0)
        return 1;
    c.cache = cache_choices[cache];
    c.order = order_choices[order];
    c.keep = keep_choices[keep];
    return ps__choice_layout(req, &c, out, err);
}

static int smallest(const struct ps_planner_request *req, struct ps_step_layout *out,
                    struct ps_error *err)
{
    struct ps__choice c = base(req);
    c.cache = PS__CACHE_LEAST;
    return ps__choice_layout(req, &c, out, err);
}

const struct ps_strategy ps_strategy_fuyou = {
    .name = "fuyou",
    .help = "full fine-tuning, updates inside the backward pass, activations swapped",
    .full = true,
    .disk_states = true,
    .candidate = candidate,
    .smallest = smallest,
};
