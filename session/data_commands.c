/* data tokenize and data render: see data_commands.h. data inspect is in data_inspect.c. */
#include "session/data_commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/json.h"
#include "runtime/data/chat_template.h"
#include "runtime/data/jsonl.h"
#include "runtime/data/tokenizer.h"

/* Calls fn for each row of a file, parsed and known to be an object. */
struct row_visitor {
    const char *path;
    uint64_t line;
    void *arg;
    int (*fn)(struct row_visitor *v, const json_t *row, struct ps_error *err);
};

static int out_of_memory(struct ps_error *err)
{
    return ps_error_set(err, -ENOMEM, "out of memory");
}

static int flush(FILE *to, struct ps_error *err)
{
    if (fflush(to) || ferror(to))
        return ps_error_set(err, -EIO, "cannot write the output");
    return 0;
}

static int visit_row(struct row_visitor *v, const struct ps_jsonl_row *row, struct ps_error *err)
{
    struct ps_error local = {0};
    json_t *json;
    v->line = row->line;
    int ret = ps_json_parse(row->text, row->len, PS_JSON_STRICT, NULL, &json, &local);
    if (ret < 0)
        return ps_jsonl_error(err, ret, v->path, row->line, local.field, local.advice, "%s",
                              local.message);
    if (json_is_object(json))
        ret = v->fn(v, json, err);
    else
        ret = ps_jsonl_error(err, PS_EDATA, v->path, row->line, NULL, NULL,
                             "the row is not a JSON object");
    json_decref(json);
    return ret;
}

static int visit_rows(struct row_visitor *v, struct ps_error *err)
{
    struct ps_jsonl *reader;
    struct ps_jsonl_row row;
    int ret = ps_jsonl_open(&reader, v->path, err);
    if (ret < 0)
        return ret;
    while ((ret = ps_jsonl_next(reader, &row, err)) > 0) {
        ret = visit_row(v, &row, err);
        if (ret < 0)
            break;
    }
    ps_jsonl_close(reader);
    return ret;
}

/* A string member of a row. */
static int get_string(const struct row_visitor *v, const json_t *obj, const char *key,
                      const char **out, struct ps_error *err)
{
    const json_t *s = json_object_get(obj, key);
    if (!json_is_string(s))
        return ps_jsonl_error(err, PS_EDATA, v->path, v->line, key, NULL, "the field \"%s\" %s",
                              key, s ? "must be a string" : "is missing");
    *out = json_string_value(s);
    return 0;
}

struct tokenize {
    struct ps_tokenizer *tok;
    struct ps_encoding enc;
    bool add_special;
    FILE *to;
};

static int put_ids(struct tokenize *t, const char *text, struct ps_error *err)
{
    int ret = ps_tokenizer_encode(t->tok, text, strlen(text), t->add_special, &t->enc, err);
    if (ret < 0)
        return ret;
    fputc('[', t->to);
    for (size_t i = 0; i < t->enc.count; i++)
        fprintf(t->to, "%s%d", i ? "," : "", t->enc.ids[i]);
    fputs("]\n", t->to);
    return ferror(t->to) ? flush(t->to, err) : 0;
}

static int tokenize_row(struct row_visitor *v, const json_t *row, struct ps_error *err)
{
    const char *text;
    struct ps_error local = {0};
    int ret = get_string(v, row, "text", &text, err);
    if (ret < 0)
        return ret;
    ret = put_ids(v->arg, text, &local);
    if (ret < 0)
        return ps_jsonl_error(err, ret, v->path, v->line, local.field, local.advice, "%s",
                              local.message);
    return 0;
}

int ps_data_tokenize(const struct ps_options *opt, FILE *to, struct ps_error *err)
{
    struct tokenize t = {.add_special = opt->add_special_tokens, .to = to};
    int ret = ps_tokenizer_open(&t.tok, opt->model, err);
    if (ret < 0)
        return ret;
    if (opt->text) {
        ret = put_ids(&t, opt->text, err);
    } else {
        struct row_visitor v = {.path = opt->data, .arg = &t, .fn = tokenize_row};
        ret = visit_rows(&v, err);
    }
    if (ret == 0)
        ret = flush(to, err);
    ps_encoding_fini(&t.enc);
    ps_tokenizer_close(t.tok);
    return ret;
}

struct render {
    const char *name;
    const char *bos, *eos; /* where a row does not say */
    FILE *to;
};

/* Content as one new string: a string, or text parts put together. */
static int get_content(const struct row_visitor *v, const json_t *message, char **out,
                       struct ps_error *err)
{
    const json_t *content = json_object_get(message, "content");
    size_t len = 0, parts = json_is_array(content) ? json_array_size(content) : 0;
    const char *text;
    int ret = 0;
    if (!json_is_array(content)) {
        ret = get_string(v, message, "content", &text, err);
        if (ret < 0)
            return ret;
        *out = strdup(text);
        return *out ? 0 : out_of_memory(err);
    }
    char *joined = calloc(1, 1);
    for (size_t i = 0; joined && i < parts; i++) {
        const json_t *part = json_array_get(content, i);
        const char *key = json_object_get(part, "text") ? "text" : "value";
        ret = get_string(v, part, key, &text, err);
        if (ret < 0) {
            free(joined);
            return ret;
        }
        size_t n = strlen(text);
        char *more = realloc(joined, len + n + 1);
        if (!more)
            free(joined);
        else
            memcpy(more + len, text, n + 1);
        joined = more;
        len += n;
    }
    *out = joined;
    return joined ? 0 : out_of_memory(err);
}

static int put_rendering(const struct row_visitor *v, const json_t *row,
                         const struct ps_message *messages, size_t count, struct ps_error *err)
{
    const struct render *r = v->arg;
    const json_t *add = json_object_get(row, "add_generation_prompt");
    const json_t *bos = json_object_get(row, "bos_token"), *eos = json_object_get(row, "eos_token");
    struct ps_rendering out;
    struct ps_error local = {0};
    int ret = ps_chat_render(&out, r->name, messages, count, json_is_true(add),
                             json_is_string(bos) ? json_string_value(bos) : r->bos,
                             json_is_string(eos) ? json_string_value(eos) : r->eos, &local);
    if (ret < 0)
        return ps_jsonl_error(err, ret, v->path, v->line, local.field, local.advice, "%s",
                              local.message);
    json_t *text = json_stringn(out.text, out.len);
    ps_rendering_fini(&out);
    if (!text)
        return out_of_memory(err);
    if (json_dumpf(text, r->to, JSON_ENCODE_ANY) != 0 || fputc('\n', r->to) == EOF)
        ret = ps_error_set(err, -EIO, "cannot write the output");
    json_decref(text);
    return ret;
}

static int render_row(struct row_visitor *v, const json_t *row, struct ps_error *err)
{
    const json_t *list = json_object_get(row, "messages");
    const json_t *tools = json_object_get(row, "tools");
    if (!json_is_array(list))
        return ps_jsonl_error(err, PS_EDATA, v->path, v->line, "messages", NULL,
                              "the field \"messages\" %s",
                              list ? "must be an array" : "is missing");
    if (json_array_size(tools) > 0)
        return ps_jsonl_error(err, PS_EDATA, v->path, v->line, "tools", NULL,
                              "a built-in chat template cannot express \"tools\"");
    size_t count = json_array_size(list), done = 0;
    struct ps_message *messages = calloc(count + 1, sizeof *messages);
    char **content = calloc(count + 1, sizeof *content);
    int ret = messages && content ? 0 : out_of_memory(err);
    for (; ret == 0 && done < count; done++) {
        const json_t *m = json_array_get(list, done);
        ret = get_string(v, m, "role", &messages[done].role, err);
        if (ret == 0)
            ret = get_content(v, m, &content[done], err);
        if (ret < 0)
            break;
        messages[done].content = content[done];
    }
    if (ret == 0)
        ret = put_rendering(v, row, messages, count, err);
    for (size_t i = 0; content && i < done; i++)
        free(content[i]);
    free(content);
    free(messages);
    return ret;
}

static const char *special_text(const struct ps_tokenizer *tok, const char *name)
{
    int32_t id = tok ? ps_tokenizer_special_id(tok, name) : -1;
    const char *text = id >= 0 ? ps_tokenizer_token_text(tok, id) : NULL;
    return text ? text : "";
}

int ps_data_render(const struct ps_options *opt, FILE *to, struct ps_error *err)
{
    if (!opt->chat_template || strcmp(opt->chat_template, "auto") == 0)
        return ps_error_full(err, PS_EUSAGE, NULL, "chat-template",
                             "give --chat-template chatml, llama3, mistral, gemma, phi3, zephyr or "
                             "alpaca",
                             "a chat template by name is needed; a model's own is not read");
    struct ps_tokenizer *tok = NULL;
    if (opt->model) {
        int ret = ps_tokenizer_open(&tok, opt->model, err);
        if (ret < 0)
            return ret;
    }
    struct render r = {.name = opt->chat_template,
                       .bos = special_text(tok, "bos_token"),
                       .eos = special_text(tok, "eos_token"),
                       .to = to};
    struct row_visitor v = {.path = opt->data, .arg = &r, .fn = render_row};
    int ret = visit_rows(&v, err);
    if (ret == 0)
        ret = flush(to, err);
    ps_tokenizer_close(tok);
    return ret;
}
