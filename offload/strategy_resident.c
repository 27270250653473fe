/* resident: all weights lie where compute uses them; one micro-batch after the other. What is
 * chosen is which layers keep their activations and where the boundaries wait. */
#include "offload/strategy_internal.h"

static int candidate(const struct ps_planner_request *req, int i, struct ps_step_layout *out,
                     struct ps_error *err)
{
    static const struct {
        enum ps__x_choice x;
        enum ps__keep_choice keep;
    } choices[] = {
        {PS__X_NEAR, PS__KEEP_MOST},  {PS__X_NEAR, PS__KEEP_NONE},  {PS__X_MIXED, PS__KEEP_NONE},
        {PS__X_MOVED, PS__KEEP_MOST}, {PS__X_MOVED, PS__KEEP_NONE}, {PS__X_NEAR, PS__KEEP_SWAPPED},
    };
    const int count = req->shape->trains ? (int)(sizeof choices / sizeof *choices) : 1;
    if (i >= count)
        return 1;
    struct ps__choice c = {.strategy = ps_strategy_resident.name,
                           .group = 1,
                           .x = choices[i].x,
                           .keep = choices[i].keep};
    return ps__choice_layout(req, &c, out, err);
}

static int smallest(const struct ps_planner_request *req, struct ps_step_layout *out,
                    struct ps_error *err)
{
    struct ps__choice c = {.strategy = ps_strategy_resident.name,
                           .group = 1,
                           .x = PS__X_MOVED,
                           .keep = PS__KEEP_NONE,
                           .cache = PS__CACHE_LEAST};
    return ps__choice_layout(req, &c, out, err);
}

const struct ps_strategy ps_strategy_resident = {
    .name = "resident",
    .help = "all weights in memory; nothing is streamed",
    .frozen = true,
    .full = true,
    .memory_states = true,
    .candidate = candidate,
    .smallest = smallest,
};
