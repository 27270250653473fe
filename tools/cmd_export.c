/* penstock export: an adapter directory, or the base with the adapter merged in. */
#include <stdio.h>
#include <string.h>

#include "tools/tool.h"

int cmd_export(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    struct ps_session *s = NULL;
    ret = ps_session_open(&s, opt, &tool_log, err);
    if (ret == 0)
        ret = ps_session_export(s, opt->format, opt->output, err);
    ps_session_close(s);
    if (ret)
        return ret;
    if (opt->json)
        return tool_print_json(json_pack("{s:s,s:s}", "format", opt->format, "output", opt->output),
                               err);
    printf("%s: %s written and verified\n", opt->output,
           strcmp(opt->format, "peft") ? "merged model" : "adapter");
    return 0;
}
