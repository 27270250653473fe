/* What only the files of runtime/data share: the state of one ps_dataset_load. */
#ifndef PS_DATA_DATASET_INTERNAL_H
#define PS_DATA_DATASET_INTERNAL_H

#include "runtime/base/json.h"
#include "runtime/data/chat_template.h"
#include "runtime/data/dataset.h"
#include "runtime/data/jsonl.h"

/* The string that ends an assistant turn in a built-in template, or NULL when that is the
 * tokenizer's EOS. `name` is a built-in. */
const char *ps__chat_template_terminator(const char *name);

/* Fields of rows and messages that --field-map may rename. */
enum ps__field {
    PS__FIELD_TEXT,
    PS__FIELD_PROMPT,
    PS__FIELD_COMPLETION,
    PS__FIELD_INSTRUCTION,
    PS__FIELD_INPUT,
    PS__FIELD_OUTPUT,
    PS__FIELD_MESSAGES,
    PS__FIELD_CONVERSATIONS,
    PS__FIELD_INPUT_IDS,
    PS__FIELD_LABELS,
    PS__FIELD_ROLE,
    PS__FIELD_CONTENT,
    PS__FIELD_FROM,
    PS__FIELD_VALUE,
    PS__FIELD_COUNT,
};

struct ps__load {
    struct ps_dataset *ds;
    const struct ps_dataset_options *opt;
    struct ps_tokenizer *tok;
    struct ps_error *err;
    /* the row at hand, for messages */
    uint64_t line;
    /* resolved options */
    char source[PS__FIELD_COUNT][64]; /* name of each field in the rows */
    uint32_t mapped;                  /* bit f: --field-map names field f */
    int32_t bos_id, eos_id;
    const char *bos, *eos; /* token texts, "" when there are none */
    /* the row being built; row_ids and row_labels have row_cap entries */
    int32_t *row_ids, *row_labels;
    size_t row_len, row_cap;
    bool row_prompted; /* some label of the row is masked as a prompt */
    struct ps_encoding enc;
    char *text;
    size_t text_cap;
    struct ps_message *messages;
    bool *muted; /* (message_cap,) assistant turn with weight 0 */
    size_t message_count, message_cap;
    char **owned; /* texts of the row's messages that had to be put together */
    size_t owned_count, owned_cap;
    /* ids and labels of the data set */
    uint64_t token_cap, rows_cap;
};

/* dataset_fields.c */

/* Parse --field-map into source and mapped. Returns 0 or PS_EUSAGE. */
int ps__fields_init(struct ps__load *ld);
/* Decide format and loss from the options and the first row. */
int ps__fields_detect(struct ps__load *ld, const json_t *row);
/* Set an error of the row at hand: "path:line" as the file. */
int ps__row_error(struct ps__load *ld, int code, const char *field, const char *advice,
                  const char *fmt, ...) PS_PRINTF(5, 6);
/* The string member `field` of obj. Absent: *out = NULL if optional, else PS_EDATA. null and other
 * types are PS_EDATA. */
int ps__row_string(struct ps__load *ld, const json_t *obj, enum ps__field field, bool optional,
                   const char **out);
/* The array member `field` of a row; absent, null and other types are PS_EDATA. */
int ps__row_array(struct ps__load *ld, const json_t *obj, enum ps__field field, const json_t **out);

/* dataset_rows.c */

/* Build row_ids and row_labels from one row of the detected format. */
int ps__row_build(struct ps__load *ld, const json_t *row);
/* Append one token to the row. */
int ps__row_push(struct ps__load *ld, int32_t id, int32_t label);

/* dataset_messages.c */

/* Read messages or conversations into ld->messages and ld->muted; the texts belong to row or to
 * ld->owned. */
int ps__row_messages(struct ps__load *ld, const json_t *row);

#endif
