/* Loading of data sets: see dataset.h. The rows' formats are in dataset_rows.c. */
#include "runtime/data/dataset.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/base/checked.h"
#include "runtime/base/rng.h"
#include "runtime/data/dataset_internal.h"

static bool is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The file of a data directory for a split, or of a plain path, into out. */
static int find_file(const char *path, const char *split, char *out, size_t size,
                     struct ps_error *err)
{
    static const char *const train[] = {"train", NULL};
    static const char *const valid[] = {"valid", "validation", "val", "eval", NULL};
    static const char *const test[] = {"test", NULL};
    static const char *const suffix[] = {"jsonl", "json"};
    if (!is_dir(path)) {
        if (strlen(path) >= size)
            return ps_error_full(err, -ENAMETOOLONG, path, NULL, NULL, "the path is too long");
        memcpy(out, path, strlen(path) + 1);
        return 0;
    }
    const char *const *names = !split || strcmp(split, "train") == 0 ? train
                               : strcmp(split, "test") == 0          ? test
                                                                     : valid;
    for (size_t i = 0; names[i]; i++)
        for (size_t k = 0; k < 2; k++) {
            int n = snprintf(out, size, "%s/%s.%s", path, names[i], suffix[k]);
            struct stat st;
            if (n < 0 || (size_t)n >= size)
                return ps_error_full(err, -ENAMETOOLONG, path, NULL, NULL, "the path is too long");
            if (stat(out, &st) == 0)
                return 0;
        }
    return ps_error_full(err, -ENOENT, path, NULL,
                         names == train ? "name the file itself, or call it train.jsonl"
                                        : "name the file itself, or call it valid.jsonl",
                         "the directory has no %s.jsonl or %s.json", names[0], names[0]);
}

static void load_fini(struct ps__load *ld)
{
    free(ld->row_ids);
    free(ld->row_labels);
    free(ld->text);
    free(ld->messages);
    free(ld->muted);
    for (size_t i = 0; i < ld->owned_count; i++)
        free(ld->owned[i]);
    free(ld->owned);
    ps_encoding_fini(&ld->enc);
}

static uint64_t grown(uint64_t cap, uint64_t need)
{
    uint64_t next = cap + cap / 2 + 4096;
    return next > need ? next : need;
}

/* Room for `tokens` more tokens and one more row. */
static int reserve(struct ps__load *ld, size_t tokens)
{
    struct ps_dataset *ds = ld->ds;
    uint64_t need = ds->token_count + tokens;
    if (need >= ld->token_cap) {
        uint64_t cap = grown(ld->token_cap, need);
        int32_t *ids = realloc(ds->ids, cap * sizeof *ids);
        if (ids)
            ds->ids = ids;
        int32_t *labels = realloc(ds->labels, cap * sizeof *labels);
        if (labels)
            ds->labels = labels;
        if (!ids || !labels)
            return ps__row_error(ld, -ENOMEM, NULL, NULL, "out of memory");
        ld->token_cap = cap;
    }
    if (ds->row_count + 1 > ld->rows_cap) {
        uint64_t cap = grown(ld->rows_cap, ds->row_count + 1);
        uint64_t *begin = realloc(ds->row_begin, (cap + 1) * sizeof *begin);
        if (begin)
            ds->row_begin = begin;
        uint64_t *line = realloc(ds->row_line, cap * sizeof *line);
        if (line)
            ds->row_line = line;
        if (!begin || !line)
            return ps__row_error(ld, -ENOMEM, NULL, NULL, "out of memory");
        ld->rows_cap = cap;
    }
    return 0;
}

/* Labels of the row labels[begin, begin + len) that count: its first token is no one's target. */
static uint64_t count_labels(const int32_t *labels, uint64_t begin, uint64_t len)
{
    uint64_t count = 0;
    for (uint64_t i = 1; i < len; i++)
        count += labels[begin + i] != PS_LABEL_IGNORE;
    return count;
}

static int append(struct ps__load *ld, size_t from, size_t len, uint64_t line)
{
    struct ps_dataset *ds = ld->ds;
    uint64_t labels = count_labels(ld->row_labels, from, len);
    if (labels == 0) {
        ds->rows_unlabelled++;
        if (!ld->opt->keep_unlabelled)
            return 0;
    }
    int ret = reserve(ld, len);
    if (ret < 0)
        return ret;
    if (len > 0) {
        memcpy(ds->ids + ds->token_count, ld->row_ids + from, len * sizeof *ds->ids);
        memcpy(ds->labels + ds->token_count, ld->row_labels + from, len * sizeof *ds->labels);
    }
    ds->row_line[ds->row_count] = line;
    ds->row_begin[ds->row_count++] = ds->token_count;
    ds->token_count += len;
    ds->row_begin[ds->row_count] = ds->token_count;
    ds->label_count += labels;
    return 0;
}

/* The built row goes into the data set, cut to max_seq_len as --overlength says. */
static int finish_row(struct ps__load *ld, uint64_t source_line)
{
    const struct ps_dataset_options *opt = ld->opt;
    struct ps_dataset *ds = ld->ds;
    for (size_t i = 0; ds->format != PS_DATA_TOKENS && opt->vocab_size > 0 && i < ld->row_len; i++)
        if (ld->row_ids[i] < 0 || ld->row_ids[i] >= opt->vocab_size)
            return ps__row_error(ld, PS_EDATA, NULL, "use the tokenizer that belongs to the model",
                                 "token id %d is not below the model's vocab_size %d",
                                 ld->row_ids[i], opt->vocab_size);
    if (ld->row_len > INT32_MAX)
        return ps__row_error(ld, PS_EDATA, NULL, NULL, "the row has more than %d tokens",
                             INT32_MAX);
    size_t max = opt->max_seq_len > 0 ? (size_t)opt->max_seq_len : SIZE_MAX;
    if (ld->row_len <= max)
        return append(ld, 0, ld->row_len, source_line);
    switch (opt->overlength) {
    case PS_OVERLENGTH_TRUNCATE:
        ds->rows_truncated++;
        return append(ld, 0, max, source_line);
    case PS_OVERLENGTH_DROP:
        ds->rows_dropped++;
        return 0;
    case PS_OVERLENGTH_SPLIT:
        break;
    case PS_OVERLENGTH_ERROR:
        return ps__row_error(ld, PS_EDATA, NULL,
                             "raise --max-seq-len, or use --overlength truncate, drop or split",
                             "the row has %zu tokens, --max-seq-len is %zu", ld->row_len, max);
    }
    if (ld->row_prompted)
        return ps_jsonl_error(ld->err, PS_EUSAGE, ds->path, ld->line, "overlength",
                              "use --overlength truncate, drop or error",
                              "the row has %zu tokens and masked labels and cannot be split",
                              ld->row_len);
    ds->rows_split++;
    for (size_t at = 0; at < ld->row_len; at += max) {
        size_t len = ld->row_len - at < max ? ld->row_len - at : max;
        int ret = append(ld, at, len, source_line);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int parse_row(struct ps__load *ld, const struct ps_jsonl_row *row, json_t **out)
{
    struct ps_error local = {0};
    int ret = ps_json_parse(row->text, row->len, PS_JSON_STRICT, NULL, out, &local);
    if (ret < 0)
        return ps_jsonl_error(ld->err, ret, ld->ds->path, row->line, local.field, local.advice,
                              "%s", local.message);
    if (json_is_object(*out))
        return 0;
    json_decref(*out);
    return ps__row_error(ld, PS_EDATA, NULL, NULL, "the row is not a JSON object");
}

static int read_rows(struct ps__load *ld, struct ps_jsonl *reader)
{
    struct ps_dataset *ds = ld->ds;
    const struct ps_dataset_options *opt = ld->opt;
    while (!opt->rows_max || ds->rows_read < opt->rows_max) {
        struct ps_jsonl_row row;
        int ret = ps_jsonl_next(reader, &row, ld->err);
        if (ret <= 0)
            return ret;
        json_t *json;
        ld->line = row.line;
        ret = parse_row(ld, &row, &json);
        if (ret < 0)
            return ret;
        if (ds->rows_read == 0)
            ret = ps__fields_detect(ld, json);
        ds->rows_read++;
        if (ret == 0)
            ret = ps__row_build(ld, json);
        json_decref(json);
        if (ret == 0)
            ret = finish_row(ld, ps_jsonl_is_array(reader) ? row.index + 1 : row.line);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Token strings and ids that rows need; a warning for what will be missing. */
static void resolve_specials(struct ps__load *ld)
{
    ld->bos_id = -1;
    ld->eos_id = ld->opt->eos_token_id;
    ld->bos = ld->eos = "";
    if (!ld->tok)
        return;
    ld->bos_id = ps_tokenizer_special_id(ld->tok, "bos_token");
    int32_t eos_id = ps_tokenizer_special_id(ld->tok, "eos_token");
    if (eos_id < 0)
        eos_id = ld->eos_id;
    const char *bos = ld->bos_id >= 0 ? ps_tokenizer_token_text(ld->tok, ld->bos_id) : NULL;
    const char *eos = eos_id >= 0 ? ps_tokenizer_token_text(ld->tok, eos_id) : NULL;
    ld->bos = bos ? bos : "";
    ld->eos = eos ? eos : "";
}

static void log_result(const struct ps__load *ld)
{
    const struct ps_dataset *ds = ld->ds;
    const struct ps_log *log = ld->opt->log;
    ps_log(log, PS_LOG_INFO, "%s: %llu rows, %llu tokens, %llu labels", ds->path,
           (unsigned long long)ds->row_count, (unsigned long long)ds->token_count,
           (unsigned long long)ds->label_count);
    if (ds->rows_truncated || ds->rows_dropped || ds->rows_split)
        ps_log(log, PS_LOG_WARN,
               "%s: longer than --max-seq-len %d: %llu rows truncated, %llu dropped, %llu split",
               ds->path, ld->opt->max_seq_len, (unsigned long long)ds->rows_truncated,
               (unsigned long long)ds->rows_dropped, (unsigned long long)ds->rows_split);
    if (ds->rows_unlabelled)
        ps_log(log, PS_LOG_WARN, "%s: %llu rows have no label to train on%s", ds->path,
               (unsigned long long)ds->rows_unlabelled,
               ld->opt->keep_unlabelled ? "" : " and were dropped");
    if (ds->format == PS_DATA_TOKENS)
        return;
    if (ds->format == PS_DATA_MESSAGES || ds->format == PS_DATA_SHAREGPT) {
        const char *end = ps__chat_template_terminator(ld->opt->chat_template);
        if (end ? ps_tokenizer_token_id(ld->tok, end) < 0 : !*ld->eos)
            ps_log(log, PS_LOG_WARN,
                   "%s: the tokenizer has no token \"%s\", which ends a turn in the template %s",
                   ds->path, end ? end : "eos_token", ld->opt->chat_template);
    } else if (ld->eos_id < 0) {
        ps_log(log, PS_LOG_WARN,
               "%s: no EOS token is known: rows have no terminator and the model will not learn "
               "to stop",
               ds->path);
    }
}

static int check_not_empty(const struct ps__load *ld)
{
    const struct ps_dataset *ds = ld->ds;
    if (ds->row_count > 0)
        return 0;
    if (ds->rows_read == 0)
        return ps_error_full(ld->err, PS_EDATA, ds->path, NULL, "put one JSON object on each line",
                             "the file has no rows");
    return ps_error_full(
        ld->err, PS_EDATA, ds->path, NULL,
        ds->rows_truncated || ds->rows_dropped
            ? "raise --max-seq-len: the trained part lies behind it"
            : "see what is trained with: penstock data inspect --show-mask 3",
        "none of the %llu rows has a label to train on (%llu without labels, %llu truncated, %llu "
        "dropped)",
        (unsigned long long)ds->rows_read, (unsigned long long)ds->rows_unlabelled,
        (unsigned long long)ds->rows_truncated, (unsigned long long)ds->rows_dropped);
}

int ps_dataset_load(struct ps_dataset *out, const struct ps_dataset_options *opt,
                    struct ps_tokenizer *tok, struct ps_error *err)
{
    struct ps_dataset ds = {0};
    struct ps__load ld = {.ds = &ds, .opt = opt, .tok = tok, .err = err};
    struct ps_jsonl *reader = NULL;
    int ret = ps__fields_init(&ld);
    if (ret == 0)
        ret = find_file(opt->path, opt->split, ds.path, sizeof ds.path, err);
    if (ret == 0)
        ret = ps_jsonl_open(&reader, ds.path, err);
    if (ret == 0) {
        resolve_specials(&ld);
        ret = read_rows(&ld, reader);
    }
    if (ret == 0)
        ret = check_not_empty(&ld);
    if (ret == 0)
        log_result(&ld);
    ps_jsonl_close(reader);
    load_fini(&ld);
    if (ret < 0) {
        ps_dataset_fini(&ds);
        return ret;
    }
    *out = ds;
    return 0;
}

void ps_dataset_fini(struct ps_dataset *ds)
{
    free(ds->row_begin);
    free(ds->ids);
    free(ds->labels);
    free(ds->row_line);
    *ds = (struct ps_dataset){0};
}

static void copy_row(struct ps_dataset *to, const struct ps_dataset *from, uint64_t row)
{
    uint64_t begin = from->row_begin[row], len = from->row_begin[row + 1] - begin;
    uint64_t at = to->token_count, line = from->row_line[row];
    uint64_t labels = count_labels(from->labels, begin, len);
    /* to may be from: rows only move towards the front, so row_begin[row + 1] is still whole */
    memmove(to->ids + at, from->ids + begin, len * sizeof *to->ids);
    memmove(to->labels + at, from->labels + begin, len * sizeof *to->labels);
    to->row_line[to->row_count] = line;
    to->row_begin[to->row_count++] = at;
    to->token_count = at + len;
    to->label_count += labels;
}

static bool moves(const struct ps_rng_key *key, uint64_t row, double fraction)
{
    return (double)ps_rng_uniform(key, row) < fraction;
}

int ps_dataset_split(struct ps_dataset *from, struct ps_dataset *to, double fraction, uint64_t seed,
                     struct ps_error *err)
{
    struct ps_rng_key key = {.seed = seed, .site = PS_RNG_SPLIT};
    uint64_t rows = 0, tokens = 0;
    for (uint64_t r = 0; r < from->row_count; r++)
        if (moves(&key, r, fraction)) {
            rows++;
            tokens += from->row_begin[r + 1] - from->row_begin[r];
        }
    if (rows == 0 || rows == from->row_count)
        return ps_error_full(err, PS_EDATA, from->path, "val-split",
                             "change the fraction, or name a file with --eval-data",
                             "a split of %g leaves %s of the %llu rows for evaluation", fraction,
                             rows == 0 ? "none" : "all", (unsigned long long)from->row_count);
    struct ps_dataset ds = *from;
    ds.row_count = ds.token_count = ds.label_count = 0;
    ds.rows_read = rows;
    ds.rows_unlabelled = ds.rows_truncated = ds.rows_dropped = ds.rows_split = 0;
    ds.ids = malloc((tokens + 1) * sizeof *ds.ids);
    ds.labels = malloc((tokens + 1) * sizeof *ds.labels);
    ds.row_begin = malloc((rows + 1) * sizeof *ds.row_begin);
    ds.row_line = malloc(rows * sizeof *ds.row_line);
    if (!ds.ids || !ds.labels || !ds.row_begin || !ds.row_line) {
        ps_dataset_fini(&ds);
        return ps_error_full(err, -ENOMEM, from->path, NULL, NULL, "out of memory");
    }
    uint64_t row_count = from->row_count;
    from->row_count = from->token_count = from->label_count = 0;
    for (uint64_t r = 0; r < row_count; r++)
        copy_row(moves(&key, r, fraction) ? &ds : from, from, r);
    from->row_begin[from->row_count] = from->token_count;
    ds.row_begin[ds.row_count] = ds.token_count;
    *to = ds;
    return 0;
}
