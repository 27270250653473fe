/* The strategies, one line each: see planner.h. */
#include <string.h>

#include "offload/planner.h"

static const struct ps_strategy *const strategies[] = {
    &ps_strategy_resident,
    &ps_strategy_stream_lora,
    &ps_strategy_horizontal,
    &ps_strategy_zero_offload,
    &ps_strategy_update_next_forward,
    &ps_strategy_vertical,
    &ps_strategy_fuyou,
    &ps_strategy_zero_infinity,
};

const struct ps_strategy *ps_strategy_at(int i)
{
    const int count = (int)(sizeof strategies / sizeof *strategies);
    return i >= 0 && i < count ? strategies[i] : NULL;
}

const struct ps_strategy *ps_strategy_find(const char *name)
{
    for (int i = 0; ps_strategy_at(i); i++)
        if (strcmp(strategies[i]->name, name) == 0)
            return strategies[i];
    return NULL;
}
