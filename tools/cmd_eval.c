/* penstock eval: mean loss over the labelled tokens, perplexity, and on demand the logits. */
#include <stdio.h>

#include "tools/tool.h"

static int report(const struct ps_options *opt, const struct ps_eval_stats *e, struct ps_error *err)
{
    if (opt->json)
        return tool_print_json(json_pack("{s:o,s:o,s:I,s:I,s:I,s:o}", "loss", tool_real(e->loss),
                                         "perplexity", tool_real(e->perplexity), "rows",
                                         (json_int_t)e->rows, "tokens", (json_int_t)e->tokens,
                                         "label_tokens", (json_int_t)e->label_tokens,
                                         "tokens_per_s", tool_real(e->tokens_per_s)),
                               err);
    printf("loss %.6f  perplexity %.4f  rows %llu  tokens %llu  labelled %llu  %.0f tokens/s\n",
           e->loss, e->perplexity, (unsigned long long)e->rows, (unsigned long long)e->tokens,
           (unsigned long long)e->label_tokens, e->tokens_per_s);
    return 0;
}

int cmd_eval(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    struct ps_session *s = NULL;
    struct ps_eval_stats e;
    ret = ps_session_open(&s, opt, tool_log(opt), err);
    if (ret == 0)
        ret = ps_session_eval(s, &e, err);
    if (ret == 0 && opt->logits)
        ret = ps_session_write_logits(s, opt->logits, err);
    ps_session_close(s);
    return ret ? ret : report(opt, &e, err);
}
