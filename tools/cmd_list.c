/* penstock list: names of what this version has. */
#include <stdio.h>

#include "session/catalog.h"
#include "tools/tool.h"

int cmd_list(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    if (!opt->target)
        return ps_error_full(
            err, PS_EUSAGE, NULL, NULL,
            "choose optimizers, adapters, strategies, models, schedules, quant or methods",
            "`list` needs the kind of names to list");
    const char *names[PS_CATALOG_MAX];
    size_t count;
    ret = ps_catalog_list(opt->target, names, &count, err);
    if (ret)
        return ret;
    if (!opt->json) {
        for (size_t i = 0; i < count; i++)
            printf("%s\n", names[i]);
        return 0;
    }
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(array, json_string(names[i]))) {
            json_decref(array);
            array = NULL;
            break;
        }
    return tool_print_json(array, err);
}
