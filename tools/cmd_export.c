/* penstock export: an adapter directory, or the base with the adapter merged in. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/tool.h"

/* A checkpoint holds a result: an adapter on --model, or (method full) a model of its own. */
static int use_checkpoint(struct ps_options *opt, struct ps_error *err)
{
    char probe[4096];
    int n = snprintf(probe, sizeof probe, "%s/adapter_config.json", opt->checkpoint);
    if (n < 0 || (size_t)n >= sizeof probe)
        return ps_error_full(err, -ENAMETOOLONG, opt->checkpoint, "checkpoint", NULL,
                             "the path is too long");
    char **to = access(probe, F_OK) == 0 ? &opt->adapter : &opt->model;
    char *copy = strdup(opt->checkpoint);
    if (!copy)
        return ps_error_set(err, -ENOMEM, "out of memory");
    free(*to);
    *to = copy;
    return 0;
}

int cmd_export(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret == 0 && opt->checkpoint)
        ret = use_checkpoint(opt, err);
    if (ret)
        return ret;
    struct ps_session *s = NULL;
    ret = ps_session_open(&s, opt, tool_log(opt), err);
    if (ret == 0)
        ret = ps_session_export(s, opt->format, opt->output, err);
    ps_session_close(s);
    if (ret)
        return ret;
    if (opt->json)
        return tool_print_json(json_pack("{s:s,s:s}", "format", opt->format, "output", opt->output),
                               err);
    printf("%s: %s written and verified\n", opt->output,
           !strcmp(opt->format, "peft") ? "adapter"
           : opt->adapter               ? "merged model"
                                        : "model");
    return 0;
}
