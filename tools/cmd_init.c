/* penstock init: a model directory with random weights. */
#include <stdio.h>

#include "session/init_model.h"
#include "tools/tool.h"

int cmd_init(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    struct ps_init_options init = {
        .config = opt->config,
        .output = opt->output,
        .tokenizer = opt->tokenizer,
        .seed = opt->seed,
        .dtype = opt->dtype,
        .threads = opt->threads,
        .log = tool_log(opt),
    };
    struct ps_init_result r;
    ret = ps_init_model(&init, &r, err);
    if (ret)
        return ret;
    if (opt->json)
        return tool_print_json(json_pack("{s:s,s:I,s:I,s:I,s:I}", "output", opt->output,
                                         "parameters", (json_int_t)r.parameters, "tensors",
                                         (json_int_t)r.tensors, "files", (json_int_t)r.files,
                                         "bytes", (json_int_t)r.bytes),
                               err);
    char size[32];
    printf("%s: %llu parameters in %llu tensors, %s in %llu file%s\n", opt->output,
           (unsigned long long)r.parameters, (unsigned long long)r.tensors,
           tool_bytes(size, sizeof size, r.bytes), (unsigned long long)r.files,
           r.files == 1 ? "" : "s");
    return 0;
}
