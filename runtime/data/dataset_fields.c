/* Names of the fields, --field-map, and what format the rows have: see dataset_internal.h. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/data/dataset_internal.h"

static const char *const field_name[PS__FIELD_COUNT] = {
    [PS__FIELD_TEXT] = "text",
    [PS__FIELD_PROMPT] = "prompt",
    [PS__FIELD_COMPLETION] = "completion",
    [PS__FIELD_INSTRUCTION] = "instruction",
    [PS__FIELD_INPUT] = "input",
    [PS__FIELD_OUTPUT] = "output",
    [PS__FIELD_MESSAGES] = "messages",
    [PS__FIELD_CONVERSATIONS] = "conversations",
    [PS__FIELD_INPUT_IDS] = "input_ids",
    [PS__FIELD_LABELS] = "labels",
    [PS__FIELD_ROLE] = "role",
    [PS__FIELD_CONTENT] = "content",
    [PS__FIELD_FROM] = "from",
    [PS__FIELD_VALUE] = "value",
};

#define BIT(f) (1u << (f))

/* In the order of detection. */
static const struct rule {
    enum ps_data_format format;
    uint32_t required, uses;
    enum ps_loss_on loss_on;
} rules[] = {
    {PS_DATA_MESSAGES, BIT(PS__FIELD_MESSAGES),
     BIT(PS__FIELD_MESSAGES) | BIT(PS__FIELD_ROLE) | BIT(PS__FIELD_CONTENT), PS_LOSS_ASSISTANT},
    {PS_DATA_SHAREGPT, BIT(PS__FIELD_CONVERSATIONS),
     BIT(PS__FIELD_CONVERSATIONS) | BIT(PS__FIELD_FROM) | BIT(PS__FIELD_VALUE), PS_LOSS_ASSISTANT},
    {PS_DATA_COMPLETION, BIT(PS__FIELD_PROMPT) | BIT(PS__FIELD_COMPLETION),
     BIT(PS__FIELD_PROMPT) | BIT(PS__FIELD_COMPLETION), PS_LOSS_COMPLETION},
    {PS_DATA_ALPACA, BIT(PS__FIELD_INSTRUCTION) | BIT(PS__FIELD_OUTPUT),
     BIT(PS__FIELD_INSTRUCTION) | BIT(PS__FIELD_INPUT) | BIT(PS__FIELD_OUTPUT), PS_LOSS_COMPLETION},
    {PS_DATA_TEXT, BIT(PS__FIELD_TEXT), BIT(PS__FIELD_TEXT), PS_LOSS_ALL},
    {PS_DATA_TOKENS, BIT(PS__FIELD_INPUT_IDS), BIT(PS__FIELD_INPUT_IDS) | BIT(PS__FIELD_LABELS),
     PS_LOSS_AUTO},
};

#define RULE_COUNT (sizeof rules / sizeof *rules)

static const char *const loss_name[] = {"auto", "assistant", "completion", "all"};

const char *ps_data_format_name(enum ps_data_format f)
{
    static const char *const names[] = {"auto",     "text",     "completion", "alpaca",
                                        "messages", "sharegpt", "tokens"};
    return (size_t)f < sizeof names / sizeof *names ? names[f] : "?";
}

int ps__row_error(struct ps__load *ld, int code, const char *field, const char *advice,
                  const char *fmt, ...)
{
    char what[768];
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(what, sizeof what, fmt, ap) < 0, "truncation is acceptable in a message");
    va_end(ap);
    return ps_jsonl_error(ld->err, code, ld->ds->path, ld->line, field, advice, "%s", what);
}

/* One "target=source" of the map, text[0, len). */
static int map_entry(struct ps__load *ld, const char *text, size_t len)
{
    static const char advice[] = "write it as prompt=question,completion=answer";
    const char *eq = memchr(text, '=', len);
    size_t target_len = eq ? (size_t)(eq - text) : len;
    size_t source_len = eq ? len - target_len - 1 : 0;
    if (target_len == 0 || source_len == 0)
        return ps_error_full(ld->err, PS_EUSAGE, NULL, "field-map", advice,
                             "\"%.*s\" is not target=source", (int)len, text);
    if (source_len >= sizeof ld->source[0])
        return ps_error_full(ld->err, PS_EUSAGE, NULL, "field-map", advice,
                             "the field name \"%.*s\" is too long", (int)source_len, eq + 1);
    for (size_t f = 0; f < PS__FIELD_COUNT; f++) {
        if (strlen(field_name[f]) != target_len || memcmp(field_name[f], text, target_len) != 0)
            continue;
        if (ld->mapped & BIT(f))
            return ps_error_full(ld->err, PS_EUSAGE, NULL, "field-map", advice,
                                 "\"%s\" is mapped twice", field_name[f]);
        ld->mapped |= BIT(f);
        memcpy(ld->source[f], eq + 1, source_len);
        ld->source[f][source_len] = '\0';
        return 0;
    }
    return ps_error_full(ld->err, PS_EUSAGE, NULL, "field-map",
                         "the targets are text, prompt, completion, instruction, input, output, "
                         "messages, conversations, input_ids, labels, role, content, from, value",
                         "\"%.*s\" is not a field that Penstock reads", (int)target_len, text);
}

int ps__fields_init(struct ps__load *ld)
{
    for (size_t f = 0; f < PS__FIELD_COUNT; f++)
        PS_IGNORE(snprintf(ld->source[f], sizeof ld->source[f], "%s", field_name[f]) < 0,
                  "the names are short");
    const char *at = ld->opt->field_map;
    if (!at)
        return 0;
    for (;;) {
        size_t len = strcspn(at, ",");
        int ret = map_entry(ld, at, len);
        if (ret < 0)
            return ret;
        if (!at[len])
            return 0;
        at += len + 1;
    }
}

static bool has_fields(const struct ps__load *ld, const json_t *row, uint32_t fields)
{
    for (size_t f = 0; f < PS__FIELD_COUNT; f++)
        if ((fields & BIT(f)) && !json_object_get(row, ld->source[f]))
            return false;
    return true;
}

/* "a, b, c" of the row's keys, cut to fit. */
static void list_keys(const json_t *row, char *buf, size_t size)
{
    size_t at = 0;
    const char *key;
    json_t *value;
    buf[0] = '\0';
    json_object_foreach((json_t *)(uintptr_t)row, key, value)
    {
        int n = snprintf(buf + at, size - at, "%s%s", at ? ", " : "", key);
        if (n < 0 || (size_t)n >= size - at)
            return;
        at += (size_t)n;
    }
}

static int detect(struct ps__load *ld, const json_t *row, const struct rule **out)
{
    const struct ps_dataset_options *opt = ld->opt;
    for (size_t i = 0; i < RULE_COUNT; i++) {
        const struct rule *r = &rules[i];
        bool fits = !(ld->mapped & ~r->uses);
        if (opt->format == PS_DATA_AUTO ? fits && has_fields(ld, row, r->required)
                                        : fits && opt->format == r->format) {
            *out = r;
            return 0;
        }
    }
    if (opt->format != PS_DATA_AUTO)
        return ps_error_full(ld->err, PS_EUSAGE, NULL, "field-map", NULL,
                             "--field-map names a field that rows of the format \"%s\" do not have",
                             ps_data_format_name(opt->format));
    char keys[256];
    list_keys(row, keys, sizeof keys);
    return ps__row_error(
        ld, PS_EDATA, NULL,
        "rows are text, prompt/completion, instruction/output, messages, conversations or "
        "input_ids; name other fields with --field-map prompt=question,completion=answer",
        "no known row format; the row has the fields: %s", keys);
}

static int check_template(struct ps__load *ld, enum ps_data_format format)
{
    const char *name = ld->opt->chat_template;
    bool automatic = !name || strcmp(name, "auto") == 0;
    bool chat = format == PS_DATA_MESSAGES || format == PS_DATA_SHAREGPT;
    if (!chat && !automatic)
        return ps_error_full(ld->err, PS_EUSAGE, ld->ds->path, "chat-template",
                             "leave --chat-template out, or give messages rows",
                             "a chat template has no effect on rows of the format \"%s\"",
                             ps_data_format_name(format));
    if (!chat)
        return 0;
    if (automatic)
        return ps_error_full(
            ld->err, PS_EUSAGE, ld->ds->path, "chat-template",
            "give --chat-template chatml, llama3, mistral, gemma, phi3, zephyr or "
            "alpaca",
            "rows of the format \"%s\" need a chat template by name; a template is "
            "never guessed",
            ps_data_format_name(format));
    for (const char *const *n = ps_chat_template_names(); *n; n++)
        if (strcmp(*n, name) == 0)
            return 0;
    return ps_error_full(ld->err, PS_EUSAGE, NULL, "chat-template",
                         "use chatml, llama3, mistral, gemma, phi3, zephyr or alpaca",
                         "there is no built-in chat template \"%s\"", name);
}

static int resolve_loss(struct ps__load *ld, const struct rule *r)
{
    enum ps_loss_on loss = ld->opt->loss_on;
    if (loss == PS_LOSS_AUTO)
        loss = r->loss_on;
    bool ok = loss == r->loss_on || (loss == PS_LOSS_ALL && r->format != PS_DATA_TOKENS);
    if (!ok)
        return ps_error_full(
            ld->err, PS_EUSAGE, ld->ds->path, "loss-on",
            r->format == PS_DATA_TOKENS ? "leave --loss-on out: the labels of the rows decide"
            : r->format == PS_DATA_TEXT ? "use --loss-on all, or prompt/completion rows"
            : r->loss_on == PS_LOSS_COMPLETION ? "use --loss-on completion or all"
                                               : "use --loss-on assistant or all",
            "--loss-on %s does not fit rows of the format \"%s\"", loss_name[loss],
            ps_data_format_name(r->format));
    ld->ds->loss_on = loss;
    return 0;
}

int ps__fields_detect(struct ps__load *ld, const json_t *row)
{
    const struct ps_dataset_options *opt = ld->opt;
    const struct rule *r;
    int ret = detect(ld, row, &r);
    if (ret < 0)
        return ret;
    ret = check_template(ld, r->format);
    if (ret < 0)
        return ret;
    ret = resolve_loss(ld, r);
    if (ret < 0)
        return ret;
    if (opt->overlength == PS_OVERLENGTH_SPLIT && r->format != PS_DATA_TEXT &&
        r->format != PS_DATA_TOKENS)
        return ps_error_full(ld->err, PS_EUSAGE, ld->ds->path, "overlength",
                             "use --overlength truncate, drop or error",
                             "rows of the format \"%s\" have a prompt and cannot be split",
                             ps_data_format_name(r->format));
    if (!ld->tok && r->format != PS_DATA_TOKENS)
        return ps_error_full(
            ld->err, PS_EUSAGE, ld->ds->path, "model", "give --model with a tokenizer.json",
            "rows of the format \"%s\" need a tokenizer", ps_data_format_name(r->format));
    ld->ds->format = r->format;
    ps_log(opt->log, PS_LOG_INFO, "%s: rows are %s, loss on %s", ld->ds->path,
           ps_data_format_name(r->format),
           r->format == PS_DATA_TOKENS ? "the labels given" : loss_name[ld->ds->loss_on]);
    return 0;
}

/* The member under its name in the rows; in messages it names the mapping. */
static int missing(struct ps__load *ld, enum ps__field field, const char *what)
{
    if (ld->mapped & BIT(field))
        return ps__row_error(ld, PS_EDATA, ld->source[field], NULL,
                             "the field \"%s\" (--field-map %s) %s", ld->source[field],
                             field_name[field], what);
    return ps__row_error(ld, PS_EDATA, ld->source[field], NULL, "the field \"%s\" %s",
                         ld->source[field], what);
}

int ps__row_string(struct ps__load *ld, const json_t *obj, enum ps__field field, bool optional,
                   const char **out)
{
    const json_t *v = json_object_get(obj, ld->source[field]);
    *out = NULL;
    if (!v && optional)
        return 0;
    if (!v)
        return missing(ld, field, "is missing");
    if (json_is_null(v))
        return missing(ld, field, "is null, must be a string");
    if (!json_is_string(v))
        return missing(ld, field, "must be a string");
    *out = json_string_value(v);
    return 0;
}

int ps__row_array(struct ps__load *ld, const json_t *obj, enum ps__field field, const json_t **out)
{
    const json_t *v = json_object_get(obj, ld->source[field]);
    if (!v)
        return missing(ld, field, "is missing");
    if (json_is_null(v))
        return missing(ld, field, "is null, must be an array");
    if (!json_is_array(v))
        return missing(ld, field, "must be an array");
    *out = v;
    return 0;
}
