/* penstock data inspect, tokenize and render. */
#include <stdio.h>

#include "session/data_commands.h"
#include "tools/tool.h"

int cmd_data_inspect(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    return ret ? ret : ps_data_inspect(opt, tool_log(opt), stdout, err);
}

int cmd_data_tokenize(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    return ret ? ret : ps_data_tokenize(opt, stdout, err);
}

int cmd_data_render(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    return ret ? ret : ps_data_render(opt, stdout, err);
}
