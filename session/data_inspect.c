/* data inspect: measures what a data set holds and what training makes of it: see data_commands.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data/batch.h"
#include "runtime/data/tokenizer.h"
#include "runtime/model/config.h"
#include "session/data_commands.h"
#include "session/data_inspect_internal.h"
#include "session/dataset_options.h"

static int out_of_memory(struct ps_error *err)
{
    return ps_error_set(err, -ENOMEM, "out of memory");
}

/* Tokenizer, EOS and vocabulary of opt->model. A directory with a tokenizer alone will do. */
static int open_model(struct ps__inspection *in, struct ps_dataset_options *o, struct ps_error *err)
{
    if (!in->opt->model)
        return 0;
    struct ps_model_config cfg;
    struct ps_error ignored = {0};
    bool has_config = ps_model_config_load(&cfg, in->opt->model, &ignored) == 0;
    int ret = ps_tokenizer_open(&in->tok, in->opt->model, err);
    if (ret == -ENOENT && has_config)
        ret = 0; /* rows of input_ids need no tokenizer; others are refused when they are read */
    if (ret < 0)
        return ret;
    if (in->tok) {
        o->vocab_size = (int32_t)ps_tokenizer_vocab_size(in->tok);
        o->eos_token_id = ps_tokenizer_special_id(in->tok, "eos_token");
    }
    if (has_config) {
        o->vocab_size = cfg.vocab_size;
        if (o->eos_token_id < 0 && cfg.eos_count > 0)
            o->eos_token_id = cfg.eos_token_id[0];
    }
    return 0;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Smallest length that at least `share` of the n sorted rows do not exceed. */
static uint64_t quantile(const uint64_t *len, uint64_t n, double share)
{
    uint64_t i = (uint64_t)(share * (double)n);
    return len[i < n ? i : n - 1];
}

static int measure_lengths(struct ps__inspection *in, struct ps_error *err)
{
    const struct ps_dataset *ds = &in->rows;
    uint64_t n = ds->row_count;
    uint64_t *len = malloc((n + 1) * sizeof *len);
    if (!len)
        return out_of_memory(err);
    for (uint64_t r = 0; r < n; r++) {
        len[r] = ds->row_begin[r + 1] - ds->row_begin[r];
        in->rows_too_long += in->opt->max_seq_len > 0 && len[r] > (uint64_t)in->opt->max_seq_len;
    }
    qsort(len, n, sizeof *len, by_value);
    in->length = (struct ps__lengths){.min = len[0],
                                      .median = quantile(len, n, 0.5),
                                      .p90 = quantile(len, n, 0.9),
                                      .p99 = quantile(len, n, 0.99),
                                      .max = len[n - 1],
                                      .mean = (double)ds->token_count / (double)n};
    in->bin_size = 1;
    while (len[n - 1] / in->bin_size >= PS__HISTOGRAM_MAX)
        in->bin_size *= 2;
    in->bins = len[n - 1] / in->bin_size + 1;
    for (uint64_t r = 0; r < n; r++)
        in->bin[len[r] / in->bin_size]++;
    free(len);
    return 0;
}

/* Add tokens [begin, end) of in->rows to in->trained unless no label counts. */
static void add_piece(struct ps__inspection *in, uint64_t row, uint64_t begin, uint64_t end)
{
    struct ps_dataset *to = &in->trained;
    uint64_t labels = 0;
    for (uint64_t i = begin + 1; i < end; i++)
        labels += in->rows.labels[i] != PS_LABEL_IGNORE;
    if (labels == 0) {
        to->rows_unlabelled++;
        return;
    }
    memcpy(to->ids + to->token_count, in->rows.ids + begin, (end - begin) * sizeof *to->ids);
    memcpy(to->labels + to->token_count, in->rows.labels + begin,
           (end - begin) * sizeof *to->labels);
    to->row_line[to->row_count++] = in->rows.row_line[row];
    to->token_count += end - begin;
    to->row_begin[to->row_count] = to->token_count;
    to->label_count += labels;
}

/* What ps_dataset_load would give with max_seq_len, except that `error` cuts as `truncate` does. */
static int cut_rows(struct ps__inspection *in, enum ps_overlength mode, struct ps_error *err)
{
    const struct ps_dataset *from = &in->rows;
    struct ps_dataset *to = &in->trained;
    uint64_t max = in->opt->max_seq_len > 0 ? (uint64_t)in->opt->max_seq_len : UINT64_MAX;
    uint64_t pieces = 1;
    for (uint64_t r = 0; r < from->row_count; r++)
        pieces += 1 + (from->row_begin[r + 1] - from->row_begin[r]) / max;
    to->ids = malloc((from->token_count + 1) * sizeof *to->ids);
    to->labels = malloc((from->token_count + 1) * sizeof *to->labels);
    to->row_line = malloc(pieces * sizeof *to->row_line);
    to->row_begin = malloc((pieces + 1) * sizeof *to->row_begin);
    if (!to->ids || !to->labels || !to->row_line || !to->row_begin)
        return out_of_memory(err);
    to->row_begin[0] = 0;
    for (uint64_t r = 0; r < from->row_count; r++) {
        uint64_t begin = from->row_begin[r], end = from->row_begin[r + 1];
        if (end - begin <= max) {
            add_piece(in, r, begin, end);
        } else if (mode == PS_OVERLENGTH_DROP) {
            to->rows_dropped++;
        } else if (mode == PS_OVERLENGTH_SPLIT) {
            to->rows_split++;
            for (uint64_t at = begin; at < end; at += max)
                add_piece(in, r, at, end - at < max ? end : at + max);
        } else {
            to->rows_truncated++;
            add_piece(in, r, begin, begin + max);
        }
    }
    return 0;
}

static int measure_packing(struct ps__inspection *in, struct ps_error *err)
{
    if (in->trained.row_count == 0)
        return 0;
    /* One window is the whole epoch, so its micro-batches of one sequence count the sequences. */
    struct ps_batch_options o = {.batch_size = 1,
                                 .grad_accum = INT32_MAX,
                                 .max_seq_len = in->opt->max_seq_len,
                                 .packing = true,
                                 .shuffle = in->opt->shuffle,
                                 .seed = in->opt->seed,
                                 .epochs = 1};
    struct ps_batcher *b;
    int ret = ps_batcher_create(&b, &in->trained, &o, err);
    if (ret < 0)
        return ret;
    in->packs = true;
    in->sequences = (uint64_t)ps_batcher_micro_count(b);
    in->efficiency = ps_batcher_packing_efficiency(b);
    in->efficiency_unpacked =
        in->efficiency * (double)in->sequences / (double)in->trained.row_count;
    ps_batcher_destroy(b);
    return 0;
}

int ps_data_inspect(const struct ps_options *opt, const struct ps_log *log, FILE *to,
                    struct ps_error *err)
{
    struct ps__inspection in = {.opt = opt};
    struct ps_dataset_options o;
    int ret = ps_dataset_options_from(&o, opt, opt->data, "train", err);
    if (ret < 0)
        return ret;
    o.max_seq_len = 0;
    o.keep_unlabelled = true;
    o.log = log;
    ret = open_model(&in, &o, err);
    if (ret == 0)
        ret = ps_dataset_load(&in.rows, &o, in.tok, err);
    if (ret == 0)
        ret = measure_lengths(&in, err);
    if (ret == 0)
        ret = cut_rows(&in, o.overlength, err);
    if (ret == 0)
        ret = measure_packing(&in, err);
    if (ret == 0)
        ret = ps__inspection_print(&in, to, err);
    ps_dataset_fini(&in.rows);
    ps_dataset_fini(&in.trained);
    ps_tokenizer_close(in.tok);
    return ret;
}
