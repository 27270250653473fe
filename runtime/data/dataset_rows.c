/* One row -> token ids and labels, per format: see dataset.h.
 *
 * Design: a text is tokenised once and whole; what is trained is found afterwards by the byte
 * ranges of the tokens, so a boundary never changes the tokens. A token that straddles the begin of
 * a trained range belongs to it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data/dataset_internal.h"

/* Stanford Alpaca's two prompts (tatsu-lab/stanford_alpaca, train.py). */
#define ALPACA_WITH_INPUT                                                                          \
    "Below is an instruction that describes a task, paired with an input that provides further "   \
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
#define ALPACA_NO_INPUT                                                                            \
    "Below is an instruction that describes a task. Write a response that appropriately "          \
    "completes the request.\n\n### Instruction:\n"

int ps__row_push(struct ps__load *ld, int32_t id, int32_t label)
{
    if (ld->row_len == ld->row_cap) {
        size_t cap = ld->row_cap * 2 + 1024;
        int32_t *ids = realloc(ld->row_ids, cap * sizeof *ids);
        if (ids)
            ld->row_ids = ids;
        int32_t *labels = realloc(ld->row_labels, cap * sizeof *labels);
        if (labels)
            ld->row_labels = labels;
        if (!ids || !labels)
            return ps__row_error(ld, -ENOMEM, NULL, NULL, "out of memory");
        ld->row_cap = cap;
    }
    ld->row_ids[ld->row_len] = id;
    ld->row_labels[ld->row_len++] = label;
    return 0;
}

/* Concatenate into ld->text. */
static int join(struct ps__load *ld, const char *const *piece, size_t count, size_t *len)
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += strlen(piece[i]);
    if (total + 1 > ld->text_cap) {
        char *text = realloc(ld->text, total * 2 + 1);
        if (!text)
            return ps__row_error(ld, -ENOMEM, NULL, NULL, "out of memory");
        ld->text = text;
        ld->text_cap = total * 2 + 1;
    }
    char *at = ld->text;
    for (size_t i = 0; i < count; i++) {
        size_t n = strlen(piece[i]);
        memcpy(at, piece[i], n);
        at += n;
    }
    *at = '\0';
    *len = total;
    return 0;
}

static int encode(struct ps__load *ld, const char *text, size_t len, bool add_special)
{
    struct ps_error *err = ld->err;
    int ret = ps_tokenizer_encode(ld->tok, text, len, add_special, &ld->enc, err);
    if (ret < 0 && err)
        return ps_jsonl_error(err, ret, ld->ds->path, ld->line, NULL, NULL, "%s", err->message);
    return ret;
}

/* Tokens of ld->enc into the row. Trained: everything if `all`, else what overlaps one of the
 * `count` ascending byte ranges in span. */
static int push_encoding(struct ps__load *ld, bool all, const size_t *span, size_t count)
{
    const struct ps_encoding *e = &ld->enc;
    size_t first = 0, s = 0;
    /* The text brought its own BOS: the tokenizer's comes on top of it. */
    if (e->count >= 2 && ld->bos_id >= 0 && e->ids[0] == ld->bos_id && e->ids[1] == ld->bos_id &&
        e->begin[0] == e->end[0] && e->begin[1] < e->end[1])
        first = 1;
    for (size_t i = first; i < e->count; i++) {
        bool trained = all && !(i == first && e->ids[i] == ld->bos_id);
        if (!all && e->begin[i] < e->end[i]) {
            while (s < count && span[2 * s + 1] <= e->begin[i])
                s++;
            trained = s < count && e->end[i] > span[2 * s];
        }
        int ret = ps__row_push(ld, e->ids[i], trained ? e->ids[i] : PS_LABEL_IGNORE);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* The terminator, in the loss; one that is there already is not doubled. */
static int push_eos(struct ps__load *ld)
{
    if (ld->eos_id < 0)
        return 0;
    if (ld->row_len > 0 && ld->row_ids[ld->row_len - 1] == ld->eos_id) {
        ld->row_labels[ld->row_len - 1] = ld->eos_id;
        return 0;
    }
    return ps__row_push(ld, ld->eos_id, ld->eos_id);
}

static int build_text(struct ps__load *ld, const json_t *row)
{
    const char *text;
    int ret = ps__row_string(ld, row, PS__FIELD_TEXT, false, &text);
    if (ret < 0)
        return ret;
    ret = encode(ld, text, strlen(text), true);
    if (ret < 0)
        return ret;
    ret = push_encoding(ld, true, NULL, 0);
    return ret < 0 ? ret : push_eos(ld);
}

/* ld->text holds prompt and completion; the completion begins at byte `boundary`. */
static int build_pair(struct ps__load *ld, size_t boundary, size_t len)
{
    int ret = encode(ld, ld->text, len, true);
    if (ret < 0)
        return ret;
    const size_t span[2] = {boundary, len};
    ret = push_encoding(ld, ld->ds->loss_on == PS_LOSS_ALL, span, 1);
    return ret < 0 ? ret : push_eos(ld);
}

static int build_completion(struct ps__load *ld, const json_t *row)
{
    const char *piece[2];
    size_t len;
    int ret = ps__row_string(ld, row, PS__FIELD_PROMPT, false, &piece[0]);
    if (ret == 0)
        ret = ps__row_string(ld, row, PS__FIELD_COMPLETION, false, &piece[1]);
    if (ret == 0)
        ret = join(ld, piece, 2, &len);
    return ret < 0 ? ret : build_pair(ld, strlen(piece[0]), len);
}

static int build_alpaca(struct ps__load *ld, const json_t *row)
{
    const char *instruction, *input, *output;
    int ret = ps__row_string(ld, row, PS__FIELD_INSTRUCTION, false, &instruction);
    if (ret == 0)
        ret = ps__row_string(ld, row, PS__FIELD_INPUT, true, &input);
    if (ret == 0)
        ret = ps__row_string(ld, row, PS__FIELD_OUTPUT, false, &output);
    if (ret < 0)
        return ret;
    const json_t *history = json_object_get(row, "history");
    if (json_is_array(history) && json_array_size(history) > 0)
        return ps__row_error(ld, PS_EDATA, "history", "turn the rows into messages",
                             "the Alpaca prompt cannot express \"history\"");
    bool has_input = input && *input;
    const char *piece[] = {has_input ? ALPACA_WITH_INPUT : ALPACA_NO_INPUT,
                           instruction,
                           has_input ? "\n\n### Input:\n" : "",
                           has_input ? input : "",
                           "\n\n### Response:",
                           output};
    size_t len;
    ret = join(ld, piece, 6, &len);
    return ret < 0 ? ret : build_pair(ld, len - strlen(output), len);
}

static int build_messages(struct ps__load *ld, const json_t *row)
{
    int ret = ps__row_messages(ld, row);
    if (ret < 0)
        return ret;
    struct ps_rendering r;
    ret = ps_chat_render(&r, ld->opt->chat_template, ld->messages, ld->message_count, false,
                         ld->bos, ld->eos, ld->err);
    if (ret < 0) {
        struct ps_error e = ld->err ? *ld->err : (struct ps_error){0};
        return ps__row_error(ld, ret, e.field, e.advice, "%s", e.message);
    }
    /* Spans come in the order of the assistant messages: take out the muted ones. */
    size_t kept = 0, s = 0;
    for (size_t i = 0; i < ld->message_count && s < r.span_count; i++) {
        if (strcmp(ld->messages[i].role, "assistant") != 0)
            continue;
        if (!ld->muted[i]) {
            r.span[2 * kept] = r.span[2 * s];
            r.span[2 * kept + 1] = r.span[2 * s + 1];
            kept++;
        }
        s++;
    }
    ret = encode(ld, r.text, r.len, false);
    if (ret == 0)
        ret = push_encoding(ld, ld->ds->loss_on == PS_LOSS_ALL, r.span, kept);
    ps_rendering_fini(&r);
    return ret;
}

/* Element i of ids or labels as an id below vocab_size; -100 too where it is a label. */
static int read_id(struct ps__load *ld, const json_t *list, size_t i, bool label, int32_t *out)
{
    const json_t *v = json_array_get(list, i);
    const char *name = label ? "labels" : "input_ids";
    int64_t vocab = ld->opt->vocab_size > 0 ? ld->opt->vocab_size : INT32_MAX;
    if (!json_is_integer(v))
        return ps__row_error(ld, PS_EDATA, name, NULL, "%s[%zu] is not an integer", name, i);
    int64_t id = json_integer_value(v);
    if (label && id == PS_LABEL_IGNORE) {
        *out = PS_LABEL_IGNORE;
        return 0;
    }
    if (id < 0 || id >= vocab)
        return ps__row_error(ld, PS_EDATA, name, NULL, "%s[%zu] is %lld, must be in [0, %lld)%s",
                             name, i, (long long)id, (long long)vocab, label ? " or -100" : "");
    *out = (int32_t)id;
    return 0;
}

static int build_tokens(struct ps__load *ld, const json_t *row)
{
    const json_t *ids, *labels = NULL;
    int ret = ps__row_array(ld, row, PS__FIELD_INPUT_IDS, &ids);
    if (ret < 0)
        return ret;
    if (json_object_get(row, ld->source[PS__FIELD_LABELS])) {
        ret = ps__row_array(ld, row, PS__FIELD_LABELS, &labels);
        if (ret < 0)
            return ret;
        if (json_array_size(labels) != json_array_size(ids))
            return ps__row_error(ld, PS_EDATA, "labels", NULL,
                                 "labels has %zu elements, input_ids has %zu",
                                 json_array_size(labels), json_array_size(ids));
    }
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int32_t id, label;
        ret = read_id(ld, ids, i, false, &id);
        if (ret < 0)
            return ret;
        label = id;
        if (labels) {
            ret = read_id(ld, labels, i, true, &label);
            if (ret < 0)
                return ret;
        }
        if (label == PS_LABEL_IGNORE && i > 0)
            ld->row_prompted = true;
        ret = ps__row_push(ld, id, label);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int ps__row_build(struct ps__load *ld, const json_t *row)
{
    ld->row_len = 0;
    ld->row_prompted = false;
    switch (ld->ds->format) {
    case PS_DATA_TEXT:
        return build_text(ld, row);
    case PS_DATA_COMPLETION:
        return build_completion(ld, row);
    case PS_DATA_ALPACA:
        return build_alpaca(ld, row);
    case PS_DATA_MESSAGES:
    case PS_DATA_SHAREGPT:
        return build_messages(ld, row);
    case PS_DATA_TOKENS:
        return build_tokens(ld, row);
    case PS_DATA_AUTO:
        break;
    }
    return ps__row_error(ld, PS_EDATA, NULL, NULL, "no row format was detected");
}
