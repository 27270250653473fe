/* The library side of `penstock data inspect`, `data tokenize` and `data render`: each writes its
 * report to a stream. opt must have been resolved (ps_options_resolve). Data errors name file and
 * line. All return 0, -EIO when the stream cannot be written, -ENOMEM, or what is said at each. */
#ifndef PS_SESSION_DATA_COMMANDS_H
#define PS_SESSION_DATA_COMMANDS_H

#include <stdio.h>

#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "session/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the rows of opt->data hold and what training at opt->max_seq_len makes of them: format,
 * lengths, rows too long and rows without labels, share of trained tokens, packing; with
 * opt->show_mask the first rows with the trained tokens between [[ and ]]. Needs opt->model (its
 * tokenizer) except for rows of input_ids. With opt->json one object:
 *
 *   {"version":1, "path", "format", "loss_on", "rows", "tokens", "label_tokens",
 *    "rows_too_long", "rows_unlabelled", "max_seq_len", "overlength",
 *    "length":{"min","mean","median","p90","p99","max"}, "histogram":[{"begin","end","rows"}],
 *    "trained":{"rows","rows_truncated","rows_dropped","rows_split","rows_unlabelled","tokens",
 *               "label_tokens","label_share"},
 *    "packing":{"sequences","efficiency","efficiency_unpacked"} or null,
 *    "mask":[{"line","tokens","label_tokens","shown","segments":[{"trained","begin","end","text"}]}]}
 *
 * "rows_unlabelled" at the top counts whole rows, in "trained" rows as cut. Histogram bins are
 * half-open. A row of which nothing is left is no error here. Errors are those of ps_dataset_load
 * and ps_tokenizer_open. */
int ps_data_inspect(const struct ps_options *opt, const struct ps_log *log, FILE *to,
                    struct ps_error *err) PS_WARN_UNUSED;

/* One JSON array of token ids for opt->text, or for each row's "text" in opt->data; BOS and EOS
 * only with opt->add_special_tokens. PS_EDATA for a row without a text. */
int ps_data_tokenize(const struct ps_options *opt, FILE *to, struct ps_error *err) PS_WARN_UNUSED;

/* One JSON string for each row of opt->data, a template context: "messages",
 * "add_generation_prompt" (false), "bos_token" and "eos_token" (those of opt->model's tokenizer if
 * given, else ""). The template is the built-in opt->chat_template; PS_EUSAGE without one. PS_EDATA
 * for what it cannot express. */
int ps_data_render(const struct ps_options *opt, FILE *to, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
