/* penstock bench: only its options so far. */
#include <errno.h>

#include "tools/tool.h"

int cmd_bench(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    return ps_error_set(err, -ENOSYS, "`bench` is not in this version");
}
