/* Training rows: JSONL files or JSON arrays -> token ids and labels, all in memory before step 1.
 *
 * Labels are aligned as in Hugging Face: labels[i] belongs to token i (the model shifts); -100 is
 * ignored. Every data error names file and line. */
#ifndef PS_DATA_DATASET_H
#define PS_DATA_DATASET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/data/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_LABEL_IGNORE (-100)

enum ps_data_format {
    PS_DATA_AUTO,
    PS_DATA_TEXT,       /* {"text"}: all tokens trained, EOS appended, BOS as the tokenizer adds */
    PS_DATA_COMPLETION, /* {"prompt","completion"}: raw concatenation, EOS appended */
    PS_DATA_ALPACA,     /* {"instruction","input"?,"output"}: Stanford Alpaca prompt text */
    PS_DATA_MESSAGES,   /* {"messages":[{"role","content"}]}: a named template is needed */
    PS_DATA_SHAREGPT,   /* {"conversations":[{"from","value"}]}: likewise */
    PS_DATA_TOKENS,     /* {"input_ids","labels"?}: used as they are */
};

enum ps_loss_on { PS_LOSS_AUTO, PS_LOSS_ASSISTANT, PS_LOSS_COMPLETION, PS_LOSS_ALL };
enum ps_overlength { PS_OVERLENGTH_TRUNCATE, PS_OVERLENGTH_DROP, PS_OVERLENGTH_SPLIT,
                     PS_OVERLENGTH_ERROR };

struct ps_dataset_options {
    const char *path;          /* FILE.jsonl, FILE.json (array), or a directory with train.jsonl */
    const char *split;         /* in a directory: "train" or "valid" (also validation, val, eval) */
    enum ps_data_format format;
    const char *field_map;     /* "prompt=question,completion=answer", or NULL */
    const char *chat_template; /* "auto" or a built-in name; NULL is auto */
    enum ps_loss_on loss_on;
    enum ps_overlength overlength;
    int32_t max_seq_len;       /* 0: no limit */
    int32_t vocab_size;        /* ids and labels must be below it */
    int32_t eos_token_id;      /* terminator of a row; -1: none (then a warning) */
    bool keep_unlabelled;      /* keep rows without labels (data inspect) */
    uint64_t rows_max;         /* read at most this many rows; 0: all */
    const struct ps_log *log;
};

struct ps_dataset {
    uint64_t row_count;
    uint64_t *row_begin; /* (row_count + 1,) offsets into ids and labels */
    int32_t *ids;
    int32_t *labels;
    uint64_t *row_line;  /* (row_count,) line (or array index + 1) in the source */
    enum ps_data_format format; /* as detected */
    enum ps_loss_on loss_on;    /* as resolved */
    /* statistics */
    uint64_t rows_read, rows_unlabelled, rows_truncated, rows_dropped, rows_split;
    uint64_t token_count, label_count; /* label_count: labels that count after the shift */
    char path[512];            /* the file that was read */
};

/* tok may be NULL for PS_DATA_TOKENS only. Returns 0, -errno, PS_EFORMAT or PS_EDATA (nothing left to
 * train on, a bad field), PS_EUSAGE (messages without a named template; bad field map). */
int ps_dataset_load(struct ps_dataset *out, const struct ps_dataset_options *opt,
                    struct ps_tokenizer *tok, struct ps_error *err) PS_WARN_UNUSED;

void ps_dataset_fini(struct ps_dataset *ds);

/* Move each row with probability `fraction` (counter-based, by row index) from `from` to a new data
 * set `to`, both in file order; at least one row stays on each side, else PS_EDATA. */
int ps_dataset_split(struct ps_dataset *from, struct ps_dataset *to, double fraction, uint64_t seed,
                     struct ps_error *err) PS_WARN_UNUSED;

const char *ps_data_format_name(enum ps_data_format f);

#ifdef __cplusplus
}
#endif
#endif
