/* The registry of adapter methods: see adapters.h. */
#include "peft/adapters.h"

#include <string.h>

#include "peft/dora.h"
#include "peft/ia3.h"
#include "peft/lora.h"
#include "peft/lora_fa.h"
#include "peft/nystroem.h"
#include "peft/pissa.h"
#include "peft/vectors.h"
#include "peft/vera.h"

const struct ps_adapter_ops *const *ps_adapters(void)
{
    static const struct ps_adapter_ops *const all[] = {
        &ps_lora_ops,  &ps_lora_fa_ops, &ps_dora_ops, &ps_pissa_ops, &ps_olora_ops, &ps_nlora_ops,
        &ps_slora_ops, &ps_inttune_ops, &ps_vera_ops, &ps_ia3_ops,   &ps_norms_ops, &ps_bias_ops,
        NULL};
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
