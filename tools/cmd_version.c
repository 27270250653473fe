/* penstock version: version, commit and build. */
#include <stdio.h>

#include "session/catalog.h"
#include "tools/tool.h"

int cmd_version(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    if (opt->json)
        return tool_print_json(json_pack("{s:s,s:s,s:{s:s,s:b,s:s}}", "version", PS_VERSION,
                                         "commit", ps_catalog_commit(), "build", "compiler",
                                         ps_catalog_compiler(), "cuda", 0, "isa", ps_catalog_isa()),
                               err);
    printf("penstock %s\ncommit %s\nbuilt with %s, without CUDA\nthis machine: %s\n", PS_VERSION,
           ps_catalog_commit(), ps_catalog_compiler(), ps_catalog_isa());
    return 0;
}
