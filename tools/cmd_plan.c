/* penstock plan: only its options so far. */
#include <errno.h>

#include "tools/tool.h"

int cmd_plan(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    return ps_error_set(err, -ENOSYS, "`plan` is not in this version");
}
