/* penstock plan: what a run would need and how fast it would go. */
#include <stdio.h>
#include <stdlib.h>

#include "session/plan_report.h"
#include "tools/tool.h"

int cmd_plan(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_plan_adopt_machine(opt, err);
    if (ret == 0)
        ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    char *text;
    ret = ps_session_plan(opt, tool_log(opt), &text, err);
    if (text)
        fputs(text, stdout);
    free(text);
    return ret;
}
