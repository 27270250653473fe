/* stream-lora: a frozen base is read once a pass for all micro-batches of the pass (layer-major),
 * as many as the boundaries leave room for; what memory is left caches weights at the turns.
 * Nothing is written but boundaries that find no place in memory. */
#include "offload/strategy_internal.h"

/* Everything that can be combined, the most promising first within each. */
static const enum ps__x_choice x_choices[] = {PS__X_NEAR, PS__X_MIXED, PS__X_MOVED};
static const enum ps__keep_choice keep_choices[] = {PS__KEEP_NONE, PS__KEEP_BALANCED, PS__KEEP_MOST,
                                                    PS__KEEP_SWAPPED};
static const enum ps__cache_choice cache_choices[] = {PS__CACHE_PINS_3,      PS__CACHE_SLOTS,
                                                      PS__CACHE_PINS_2,      PS__CACHE_EMBED_PINS,
                                                      PS__CACHE_EMBED_SLOTS, PS__CACHE_PINS_1};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static int candidate(const struct ps_planner_request *req, int i, struct ps_step_layout *out,
                     struct ps_error *err)
{
    bool trains = req->shape->trains;
    int x_count = trains ? COUNT(x_choices) : 1;
    int keep_count = trains ? COUNT(keep_choices) : 1;
    struct ps__choice c = {.strategy = ps_strategy_stream_lora.name, .stream = true};
    c.cache = cache_choices[i % COUNT(cache_choices)];
    i /= COUNT(cache_choices);
    c.keep = keep_choices[i % keep_count];
    i /= keep_count;
    c.x = x_choices[i % x_count];
    i /= x_count;
    c.group = trains && (req->ablate & PS_ABLATE_LAYER_MAJOR) ? i == 0 : ps__choice_group(req, i);
    return c.group > 0 ? ps__choice_layout(req, &c, out, err) : 1;
}

static int smallest(const struct ps_planner_request *req, struct ps_step_layout *out,
                    struct ps_error *err)
{
    struct ps__choice c = {.strategy = ps_strategy_stream_lora.name,
                           .stream = true,
                           .group = 1,
                           .x = PS__X_MOVED,
                           .keep = PS__KEEP_NONE,
                           .cache = PS__CACHE_LEAST};
    return ps__choice_layout(req, &c, out, err);
}

const struct ps_strategy ps_strategy_stream_lora = {
    .name = "stream-lora",
    .help = "a frozen base is read once a pass for many micro-batches, layer by layer",
    .frozen = true,
    .candidate = candidate,
    .smallest = smallest,
};
