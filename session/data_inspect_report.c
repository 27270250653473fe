/* The report of data inspect as text and as JSON: see data_commands.h. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data/tokenizer.h"
#include "session/data_inspect_internal.h"

static const char *loss_name(const struct ps__inspection *in)
{
    static const char *const names[] = {"auto", "assistant", "completion", "all"};
    return in->rows.format == PS_DATA_TOKENS ? "labels" : names[in->rows.loss_on];
}

static double label_share(const struct ps_dataset *ds)
{
    return ds->token_count ? (double)ds->label_count / (double)ds->token_count : 0;
}

/* Tokens of the row that a preview shows: what fits max_seq_len. */
static uint64_t shown_tokens(const struct ps__inspection *in, uint64_t row)
{
    uint64_t len = in->rows.row_begin[row + 1] - in->rows.row_begin[row];
    uint64_t max = in->opt->max_seq_len > 0 ? (uint64_t)in->opt->max_seq_len : len;
    return len < max ? len : max;
}

/* Text of ids[begin, end) as it stands in the text of ids[0, len): a token's text may depend on
 * what comes before it. Where the decoder does not work from left to right, the tokens are decoded
 * alone. */
static char *decode_part(const struct ps__inspection *in, const int32_t *ids, uint64_t begin,
                         uint64_t end)
{
    char *upto = NULL, *before = NULL;
    size_t upto_len, before_len;
    if (ps_tokenizer_decode(in->tok, ids, end, false, &upto, &upto_len, NULL) < 0)
        return NULL;
    if (begin == 0)
        return upto;
    if (ps_tokenizer_decode(in->tok, ids, begin, false, &before, &before_len, NULL) < 0) {
        free(upto);
        return NULL;
    }
    char *part = NULL;
    if (before_len <= upto_len && memcmp(before, upto, before_len) == 0) {
        part = strdup(upto + before_len);
    } else {
        size_t len;
        if (ps_tokenizer_decode(in->tok, ids + begin, end - begin, false, &part, &len, NULL) < 0)
            part = NULL;
    }
    free(before);
    free(upto);
    return part;
}

/* "5 6 7" for rows without a tokenizer. */
static char *list_ids(const int32_t *ids, uint64_t begin, uint64_t end)
{
    char *text = NULL;
    size_t len;
    FILE *to = open_memstream(&text, &len);
    if (!to)
        return NULL;
    for (uint64_t i = begin; i < end; i++)
        fprintf(to, i > begin ? " %d" : "%d", ids[i]);
    if (fclose(to) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

/* One run of tokens that are all trained or all not. */
struct segment {
    bool trained;
    uint64_t begin, end;
    char *text; /* owned by the iteration */
};

/* The next run of the row; false at its end or without memory (*failed). Frees the previous text.
 */
static bool next_segment(const struct ps__inspection *in, uint64_t row, struct segment *s,
                         bool *failed)
{
    const int32_t *ids = in->rows.ids + in->rows.row_begin[row];
    const int32_t *labels = in->rows.labels + in->rows.row_begin[row];
    uint64_t len = shown_tokens(in, row);
    free(s->text);
    s->text = NULL;
    s->begin = s->end;
    if (s->begin == len)
        return false;
    /* the first token is no one's target */
    s->trained = s->begin > 0 && labels[s->begin] != PS_LABEL_IGNORE;
    for (s->end = s->begin + 1; s->end < len; s->end++)
        if ((labels[s->end] != PS_LABEL_IGNORE) != s->trained)
            break;
    s->text = in->tok ? decode_part(in, ids, s->begin, s->end) : list_ids(ids, s->begin, s->end);
    if (!s->text)
        *failed = true;
    return s->text != NULL;
}

static uint64_t mask_rows(const struct ps__inspection *in)
{
    uint64_t want = in->opt->show_mask > 0 ? (uint64_t)in->opt->show_mask : 0;
    return want < in->rows.row_count ? want : in->rows.row_count;
}

static uint64_t shown_labels(const struct ps__inspection *in, uint64_t row)
{
    const int32_t *labels = in->rows.labels + in->rows.row_begin[row];
    uint64_t count = 0;
    for (uint64_t i = 1; i < shown_tokens(in, row); i++)
        count += labels[i] != PS_LABEL_IGNORE;
    return count;
}

/* Control characters but newline and tab as \xNN: nothing in the data reaches the terminal's ears.
 */
static void put_visible(const char *text, FILE *to)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if ((*p < 0x20 && *p != '\n' && *p != '\t') || *p == 0x7F)
            fprintf(to, "\\x%02x", *p);
        else
            fputc(*p, to);
}

static int print_mask(const struct ps__inspection *in, FILE *to)
{
    for (uint64_t r = 0; r < mask_rows(in); r++) {
        uint64_t len = in->rows.row_begin[r + 1] - in->rows.row_begin[r];
        struct segment s = {0};
        bool failed = false;
        fprintf(to, "\nrow %llu (%s:%llu): %llu tokens, %llu trained", (unsigned long long)r + 1,
                in->rows.path, (unsigned long long)in->rows.row_line[r], (unsigned long long)len,
                (unsigned long long)shown_labels(in, r));
        if (shown_tokens(in, r) < len)
            fprintf(to, ", the first %llu shown", (unsigned long long)shown_tokens(in, r));
        fputc('\n', to);
        while (next_segment(in, r, &s, &failed)) {
            fputs(s.trained ? "[[" : !in->tok && s.begin ? " " : "", to);
            put_visible(s.text, to);
            fputs(s.trained ? "]]" : !in->tok ? " " : "", to);
        }
        fputc('\n', to);
        if (failed)
            return -ENOMEM;
    }
    return 0;
}

static void print_histogram(const struct ps__inspection *in, FILE *to)
{
    static const char bar[] = "########################################";
    uint64_t top = 1;
    for (uint64_t i = 0; i < in->bins; i++)
        top = in->bin[i] > top ? in->bin[i] : top;
    fprintf(to, "\n%21s  rows\n", "tokens");
    for (uint64_t i = 0; i < in->bins; i++) {
        int width = (int)((in->bin[i] * (sizeof bar - 1) + top - 1) / top);
        fprintf(to, "%9llu - %9llu  %-9llu %.*s\n", (unsigned long long)(i * in->bin_size),
                (unsigned long long)((i + 1) * in->bin_size - 1), (unsigned long long)in->bin[i],
                width, bar);
    }
}

static int print_text(const struct ps__inspection *in, FILE *to)
{
    const struct ps_dataset *d = &in->rows, *t = &in->trained;
    const struct ps__lengths *l = &in->length;
    fprintf(to, "%s: %s rows, loss on %s\n", d->path, ps_data_format_name(d->format),
            loss_name(in));
    fprintf(to, "read      %llu rows, %llu tokens, %llu to train on; %llu rows without any\n",
            (unsigned long long)d->row_count, (unsigned long long)d->token_count,
            (unsigned long long)d->label_count, (unsigned long long)d->rows_unlabelled);
    fprintf(to,
            "length    min %llu, mean %.1f, median %llu, 90%% %llu, 99%% %llu, max %llu tokens\n",
            (unsigned long long)l->min, l->mean, (unsigned long long)l->median,
            (unsigned long long)l->p90, (unsigned long long)l->p99, (unsigned long long)l->max);
    fprintf(
        to, "too long  %llu rows for max-seq-len %d: %llu truncated, %llu dropped, %llu split%s\n",
        (unsigned long long)in->rows_too_long, in->opt->max_seq_len,
        (unsigned long long)t->rows_truncated, (unsigned long long)t->rows_dropped,
        (unsigned long long)t->rows_split,
        in->rows_too_long && !strcmp(in->opt->overlength, "error") ? " (train would stop)" : "");
    fprintf(to,
            "trained   %llu rows, %llu tokens, %llu of them labels (%.1f%%); %llu without labels "
            "dropped\n",
            (unsigned long long)t->row_count, (unsigned long long)t->token_count,
            (unsigned long long)t->label_count, 100 * label_share(t),
            (unsigned long long)t->rows_unlabelled);
    if (in->packs)
        fprintf(to, "packing   %llu sequences, %.1f%% full (%.1f%% without packing)\n",
                (unsigned long long)in->sequences, 100 * in->efficiency,
                100 * in->efficiency_unpacked);
    else
        fprintf(to, "packing   nothing is left to train on\n");
    print_histogram(in, to);
    return print_mask(in, to);
}

static json_t *mask_json(const struct ps__inspection *in)
{
    json_t *mask = json_array();
    for (uint64_t r = 0; mask && r < mask_rows(in); r++) {
        struct segment s = {0};
        bool failed = false;
        json_t *segments = json_array();
        while (segments && next_segment(in, r, &s, &failed))
            if (json_array_append_new(segments, json_pack("{s:b,s:I,s:I,s:s}", "trained", s.trained,
                                                          "begin", (json_int_t)s.begin, "end",
                                                          (json_int_t)s.end, "text", s.text)) < 0) {
                free(s.text);
                failed = true;
                break;
            }
        uint64_t len = in->rows.row_begin[r + 1] - in->rows.row_begin[r];
        json_t *row =
            json_pack("{s:I,s:I,s:I,s:I,s:o}", "line", (json_int_t)in->rows.row_line[r], "tokens",
                      (json_int_t)len, "label_tokens", (json_int_t)shown_labels(in, r), "shown",
                      (json_int_t)shown_tokens(in, r), "segments", segments);
        if (json_array_append_new(mask, row) < 0 || failed) {
            json_decref(mask);
            return NULL;
        }
    }
    return mask;
}

static json_t *histogram_json(const struct ps__inspection *in)
{
    json_t *h = json_array();
    for (uint64_t i = 0; h && i < in->bins; i++)
        if (json_array_append_new(h, json_pack("{s:I,s:I,s:I}", "begin",
                                               (json_int_t)(i * in->bin_size), "end",
                                               (json_int_t)((i + 1) * in->bin_size), "rows",
                                               (json_int_t)in->bin[i])) < 0) {
            json_decref(h);
            return NULL;
        }
    return h;
}

static json_t *trained_json(const struct ps_dataset *t)
{
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f}", "rows", (json_int_t)t->row_count,
                     "rows_truncated", (json_int_t)t->rows_truncated, "rows_dropped",
                     (json_int_t)t->rows_dropped, "rows_split", (json_int_t)t->rows_split,
                     "rows_unlabelled", (json_int_t)t->rows_unlabelled, "tokens",
                     (json_int_t)t->token_count, "label_tokens", (json_int_t)t->label_count,
                     "label_share", label_share(t));
}

/* A member that takes over `value`; remembers a failure in *ok. */
static void set(json_t *obj, const char *key, json_t *value, bool *ok)
{
    if (json_object_set_new(obj, key, value) < 0)
        *ok = false;
}

static int print_json(const struct ps__inspection *in, FILE *to)
{
    const struct ps_dataset *d = &in->rows;
    const struct ps__lengths *l = &in->length;
    bool ok = true;
    json_t *o =
        json_pack("{s:i,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:i,s:s}", "version", 1, "format",
                  ps_data_format_name(d->format), "loss_on", loss_name(in), "rows",
                  (json_int_t)d->row_count, "tokens", (json_int_t)d->token_count, "label_tokens",
                  (json_int_t)d->label_count, "rows_too_long", (json_int_t)in->rows_too_long,
                  "rows_unlabelled", (json_int_t)d->rows_unlabelled, "max_seq_len",
                  in->opt->max_seq_len, "overlength", in->opt->overlength);
    if (!o)
        return -ENOMEM;
    json_t *path = json_string(d->path); /* NULL where a file name is not UTF-8 */
    set(o, "path", path ? path : json_null(), &ok);
    set(o, "length",
        json_pack("{s:I,s:f,s:I,s:I,s:I,s:I}", "min", (json_int_t)l->min, "mean", l->mean, "median",
                  (json_int_t)l->median, "p90", (json_int_t)l->p90, "p99", (json_int_t)l->p99,
                  "max", (json_int_t)l->max),
        &ok);
    set(o, "histogram", histogram_json(in), &ok);
    set(o, "trained", trained_json(&in->trained), &ok);
    set(o, "packing",
        in->packs ? json_pack("{s:I,s:f,s:f}", "sequences", (json_int_t)in->sequences, "efficiency",
                              in->efficiency, "efficiency_unpacked", in->efficiency_unpacked)
                  : json_null(),
        &ok);
    if (in->opt->show_mask > 0)
        set(o, "mask", mask_json(in), &ok);
    int ret = ok ? 0 : -ENOMEM;
    if (ok && (json_dumpf(o, to, JSON_COMPACT) < 0 || fputc('\n', to) == EOF))
        ret = -EIO;
    json_decref(o);
    return ret;
}

int ps__inspection_print(const struct ps__inspection *in, FILE *to, struct ps_error *err)
{
    int ret = in->opt->json ? print_json(in, to) : print_text(in, to);
    if (ret == -ENOMEM)
        return ps_error_set(err, ret, "out of memory");
    if (ret < 0 || fflush(to) || ferror(to))
        return ps_error_set(err, -EIO, "cannot write the output");
    return 0;
}
