/* The registry of adapter methods: see adapters.h. */
#include "peft/adapters.h"

#include <string.h>

#include "peft/lora.h"

const struct ps_adapter_ops *const *ps_adapters(void)
{
    static const struct ps_adapter_ops *const all[] = {&ps_lora_ops, NULL};
    return all;
}

const struct ps_adapter_ops *ps_adapter_find(const char *name)
{
    const struct ps_adapter_ops *const *all = ps_adapters();
    for (; *all; all++)
        if (strcmp((*all)->name, name) == 0)
            return *all;
    return NULL;
}
