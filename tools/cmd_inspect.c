/* penstock inspect: what a model directory, safetensors file, adapter, checkpoint or spill store
 * holds. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "session/inspect.h"
#include "tools/tool.h"

int cmd_inspect(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    if (!opt->target)
        return ps_error_full(err, PS_EUSAGE, NULL, NULL, "penstock inspect PATH",
                             "`inspect` needs the path of what to look at");
    char *text;
    ret = ps_inspect(opt->target, opt->json, &text, err);
    if (ret == -ENOENT ||
        ret == -ENOTDIR) { /* what the user named is not there: bad input, not a failure */
        err->code = PS_EDATA;
        return PS_EDATA;
    }
    if (ret)
        return ret;
    fputs(text, stdout);
    if (opt->json)
        putchar('\n');
    free(text);
    return 0;
}
