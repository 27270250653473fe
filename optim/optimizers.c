/* The registry of optimizers: see optimizers.h. */
#include "optim/optimizers.h"

#include <string.h>

const struct ps_optimizer_ops *const *ps_optimizers(void)
{
    static const struct ps_optimizer_ops *const all[] = {
        /* one line each */
        /* clang-format off */
        &ps_adamw_ops,
        &ps_adamw8bit_ops,
        &ps_sgd_ops,
        &ps_lion_ops,
        &ps_galore_ops,
        &ps_natural_galore_ops,
        &ps_fira_ops,
        &ps_apollo_ops,
        &ps_apollo_mini_ops,
        &ps_muon_ops,
        &ps_adafactor_ops,
        &ps_microadam_ops,
        &ps_lisa_ops,
        &ps_badam_ops,
        &ps_mezo_ops,
        NULL,
        /* clang-format on */
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
