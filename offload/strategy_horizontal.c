/* horizontal: the usual order, for comparison. A frozen base is streamed, and every micro-batch
 * reads it anew; the cache of weights has the same choices as in stream-lora. */
#include "offload/strategy_internal.h"

static int candidate(const struct ps_planner_request *req, int i, struct ps_step_layout *out,
                     struct ps_error *err)
{
    static const enum ps__cache_choice cache[] = {PS__CACHE_PINS_3, PS__CACHE_SLOTS,
                                                  PS__CACHE_PINS_2, PS__CACHE_EMBED_PINS};
    static const struct {
        enum ps__x_choice x;
        enum ps__keep_choice keep;
    } choices[] = {{PS__X_NEAR, PS__KEEP_NONE},
                   {PS__X_NEAR, PS__KEEP_BALANCED},
                   {PS__X_NEAR, PS__KEEP_MOST},
                   {PS__X_MOVED, PS__KEEP_NONE}};
    const int caches = (int)(sizeof cache / sizeof *cache);
    const int count = req->shape->trains ? (int)(sizeof choices / sizeof *choices) : 1;
    if (i >= caches * count)
        return 1;
    struct ps__choice c = {.strategy = ps_strategy_horizontal.name,
                           .stream = true,
                           .group = 1,
                           .x = choices[i / caches].x,
                           .keep = choices[i / caches].keep,
                           .cache = cache[i % caches]};
    return ps__choice_layout(req, &c, out, err);
}

static int smallest(const struct ps_planner_request *req, struct ps_step_layout *out,
                    struct ps_error *err)
{
    struct ps__choice c = {.strategy = ps_strategy_horizontal.name,
                           .stream = true,
                           .group = 1,
                           .x = PS__X_MOVED,
                           .keep = PS__KEEP_NONE,
                           .cache = PS__CACHE_LEAST};
    return ps__choice_layout(req, &c, out, err);
}

const struct ps_strategy ps_strategy_horizontal = {
    .name = "horizontal",
    .help = "the usual order: a frozen base is read anew for every micro-batch",
    .frozen = true,
    .candidate = candidate,
    .smallest = smallest,
};
