/* update-next-forward: full fine-tuning, all micro-batches of a layer before the next; a unit is
 * updated just before the forward pass of the next step uses it, when the norm of the whole
 * gradient has long been known: exact clipping, and nothing waits for it. Gradients are kept till
 * then, in host memory, else on disk (the deferred update of GreedySnake, arXiv:2512.17570). */
#include "offload/strategy_internal.h"

static const enum ps__x_choice x_choices[] = {PS__X_NEAR, PS__X_MIXED, PS__X_MOVED};
static const enum ps__keep_choice keep_choices[] = {PS__KEEP_NONE, PS__KEEP_BALANCED,
                                                    PS__KEEP_MOST};
static const enum ps__cache_choice cache_choices[] = {PS__CACHE_PINS_3, PS__CACHE_SLOTS,
                                                      PS__CACHE_EMBED_PINS};
static const struct {
    enum ps__state_choice state;
    enum ps__grad_choice grad;
    enum ps__order_choice order;
} update_choices[] = {{PS__STATE_DISK, PS__GRAD_MIXED, PS__ORDER_GRADS},
                      {PS__STATE_DISK, PS__GRAD_MIXED, PS__ORDER_WEIGHTS},
                      {PS__STATE_DISK, PS__GRAD_MIXED, PS__ORDER_SLOTS},
                      {PS__STATE_MIXED, PS__GRAD_MIXED, PS__ORDER_STATES}};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static struct ps__choice base(const struct ps_planner_request *req)
{
    return (struct ps__choice){.strategy = ps_strategy_update_next_forward.name,
                               .stream = true,
                               .group = ps__choice_whole_step(req),
                               .update = PS_UPDATE_NEXT_FORWARD};
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
    c.state = update_choices[update].state;
    c.grad = update_choices[update].grad;
    c.order = update_choices[update].order;
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
    return ps__choice_layout(req, &c, out, err);
}

const struct ps_strategy ps_strategy_update_next_forward = {
    .name = "update-next-forward",
    .help = "full fine-tuning, a layer is updated just before its next forward pass",
    .full = true,
    .disk_states = true,
    .candidate = candidate,
    .smallest = smallest,
};
