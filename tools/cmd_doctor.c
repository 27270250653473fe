/* penstock doctor: only its options so far. */
#include <errno.h>

#include "tools/tool.h"

int cmd_doctor(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    return ps_error_set(err, -ENOSYS, "`doctor` is not in this version");
}
