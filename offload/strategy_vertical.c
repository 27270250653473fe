/* vertical: full fine-tuning, all micro-batches of a layer before the next, so that weights are
 * read once a pass and a layer's gradient is complete when the pass leaves it (GreedySnake,
 * arXiv:2512.17570). Optimizer states on disk; updated after the backward pass, or inside it and
 * redone where the clipping coefficient turns out below 1; or some layers so, and the others before
 * the next forward pass uses them, which then has updates beside it too. */
#include "offload/strategy_internal.h"

static const enum ps__x_choice x_choices[] = {PS__X_NEAR, PS__X_MIXED, PS__X_MOVED};
static const enum ps__keep_choice keep_choices[] = {PS__KEEP_NONE, PS__KEEP_BALANCED, PS__KEEP_MOST,
                                                    PS__KEEP_SWAPPED};
static const enum ps__cache_choice cache_choices[] = {PS__CACHE_PINS_3, PS__CACHE_SLOTS,
                                                      PS__CACHE_EMBED_PINS};
static const struct {
    enum ps_update_when update;
    enum ps__order_choice order;
    int32_t deferred; /* of sixteen layers */
} update_choices[] = {
    {PS_UPDATE_INSIDE, PS__ORDER_GRADS, 0},  {PS_UPDATE_INSIDE, PS__ORDER_WEIGHTS, 0},
    {PS_UPDATE_INSIDE, PS__ORDER_SLOTS, 0},  {PS_UPDATE_AFTER, PS__ORDER_SLOTS, 0},
    {PS_UPDATE_AFTER, PS__ORDER_GRADS, 0},   {PS_UPDATE_AFTER, PS__ORDER_WEIGHTS, 0},
    {PS_UPDATE_INSIDE, PS__ORDER_GRADS, 1},  {PS_UPDATE_INSIDE, PS__ORDER_SLOTS, 1},
    {PS_UPDATE_INSIDE, PS__ORDER_GRADS, 5},  {PS_UPDATE_INSIDE, PS__ORDER_SLOTS, 5},
    {PS_UPDATE_INSIDE, PS__ORDER_GRADS, 8},  {PS_UPDATE_INSIDE, PS__ORDER_SLOTS, 8}};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static struct ps__choice base(const struct ps_planner_request *req)
{
    return (struct ps__choice){.strategy = ps_strategy_vertical.name,
                               .stream = true,
                               .group = ps__choice_whole_step(req),
                               .update = PS_UPDATE_AFTER,
                               .state = PS__STATE_DISK};
}

static int candidate(const struct ps_planner_request *req, int i, struct ps_step_layout *out,
                     struct ps_error *err)
{
    int cache, keep, x, update;
    struct ps__choice c = base(req);
    i = ps__choice_pick(i, COUNT(cache_choices), &cache);
    i = ps__choice_pick(i, COUNT(update_choices), &update);
    i = ps__choice_pick(i, COUNT(keep_choices), &keep);
    i = ps__choice_pick(i, COUNT(x_choices), &x);
    if (i > 0)
        return 1;
    c.cache = cache_choices[cache];
    c.update = update_choices[update].update;
    c.order = update_choices[update].order;
    c.deferred = update_choices[update].deferred;
    c.grad = c.update == PS_UPDATE_INSIDE ? ps__choice_inside_grad(req) : PS__GRAD_MIXED;
    c.keep = keep_choices[keep];
    c.x = x_choices[x];
    return ps__choice_layout(req, &c, out, err);
}

static int smallest(const struct ps_planner_request *req, struct ps_step_layout *out,
                    struct ps_error *err)
{
    struct ps__choice c = base(req);
    c.x = PS__X_MOVED;
    c.cache = PS__CACHE_LEAST;
    if (ps__choice_inside_grad(req) == PS__GRAD_DROPPED) {
        c.update = PS_UPDATE_INSIDE;
        c.grad = PS__GRAD_DROPPED;
    }
    return ps__choice_layout(req, &c, out, err);
}

const struct ps_strategy ps_strategy_vertical = {
    .name = "vertical",
    .help = "full fine-tuning, layer by layer for all micro-batches, states on disk",
    .full = true,
    .disk_states = true,
    .candidate = candidate,
    .smallest = smallest,
};
