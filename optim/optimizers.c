/* The registry of optimizers: see optimizers.h. */
#include "optim/optimizers.h"

#include <string.h>

const struct ps_optimizer_ops *const *ps_optimizers(void)
{
    static const struct ps_optimizer_ops *const all[] = {
        &ps_adamw_ops, /* one line each */
        &ps_adamw8bit_ops,
        &ps_sgd_ops,
        &ps_lion_ops,
        NULL,
    };
    return all;
}

const struct ps_optimizer_ops *ps_optimizer_find(const char *name)
{
    const struct ps_optimizer_ops *const *all = ps_optimizers();
    for (; *all; all++)
        if (strcmp((*all)->name, name) == 0)
            return *all;
    return NULL;
}
