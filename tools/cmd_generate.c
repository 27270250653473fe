/* penstock generate: continuations of one prompt, or of each line of a file. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/tool.h"

#define LINE_BYTES_MAX ((size_t)16 << 20)

/* A text, or (JSONL rows with "input_ids") token ids. */
struct prompt {
    char *text;
    int32_t *ids;
    size_t id_count;
};

struct prompts {
    struct prompt *list;
    size_t count, cap;
};

static void prompts_fini(struct prompts *p)
{
    for (size_t i = 0; i < p->count; i++) {
        free(p->list[i].text);
        free(p->list[i].ids);
    }
    free(p->list);
}

static int oom(struct ps_error *err)
{
    return ps_error_set(err, -ENOMEM, "out of memory");
}

/* A new empty entry at the end of the list, or NULL. */
static struct prompt *grow(struct prompts *p)
{
    if (p->count == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 16;
        struct prompt *list = realloc(p->list, cap * sizeof *list);
        if (!list)
            return NULL;
        p->list = list;
        p->cap = cap;
    }
    struct prompt *last = &p->list[p->count++];
    memset(last, 0, sizeof *last);
    return last;
}

static int add_text(struct prompts *p, const char *text, struct ps_error *err)
{
    struct prompt *last = grow(p);
    if (!last || !(last->text = strdup(text)))
        return oom(err);
    return 0;
}

static int add_ids(struct prompts *p, const json_t *ids, const char *where, struct ps_error *err)
{
    size_t n = json_array_size(ids);
    struct prompt *last = grow(p);
    if (!last || !(last->ids = malloc((n ? n : 1) * sizeof *last->ids)))
        return oom(err);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(ids, i);
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id > INT32_MAX)
            return ps_error_full(err, PS_EDATA, where, "input_ids", NULL,
                                 "token ids are whole numbers from 0");
        last->ids[i] = (int32_t)id;
    }
    last->id_count = n;
    return n ? 0
             : ps_error_full(err, PS_EDATA, where, "input_ids", NULL, "the list of ids is empty");
}

static int add_row(struct prompts *p, const char *line, size_t len, const char *where,
                   struct ps_error *err)
{
    json_error_t e;
    json_t *row = json_loadb(line, len, JSON_REJECT_DUPLICATES, &e);
    const json_t *text = json_object_get(row, "prompt");
    const json_t *ids = json_object_get(row, "input_ids");
    int ret;
    if (!row)
        ret = ps_error_full(err, PS_EDATA, where, NULL, NULL, "not a JSON row: %s", e.text);
    else if (json_is_string(text))
        ret = add_text(p, json_string_value(text), err);
    else if (!text && json_is_array(ids))
        ret = add_ids(p, ids, where, err);
    else
        ret = ps_error_full(err, PS_EDATA, where, "prompt",
                            "each row is {\"prompt\":\"...\"} or {\"input_ids\":[...]}",
                            "the row has no text as `prompt`");
    json_decref(row);
    return ret;
}

static int add_line(struct prompts *p, bool rows, char *line, size_t len, const char *where,
                    struct ps_error *err)
{
    while (len && (line[len - 1] == '\n' || line[len - 1] == '\r'))
        line[--len] = '\0';
    if (len == 0)
        return 0; /* an empty line is no prompt */
    if (len > LINE_BYTES_MAX || (!rows && strlen(line) != len))
        return ps_error_full(err, PS_EDATA, where, NULL, NULL,
                             "the line is longer than 16 MiB or has a NUL character");
    return rows ? add_row(p, line, len, where, err) : add_text(p, line, err);
}

static int load(struct prompts *p, const char *path, struct ps_error *err)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return ps_error_full(err, -errno, path, NULL, NULL, "cannot open the prompts: %s",
                             strerror(errno));
    const char *dot = strrchr(path, '.');
    bool rows = dot && !strcmp(dot, ".jsonl");
    char *line = NULL;
    size_t cap = 0;
    int ret = 0;
    for (unsigned long long number = 1; ret == 0; number++) {
        ssize_t n = getline(&line, &cap, f);
        if (n < 0)
            break;
        char where[640];
        PS_IGNORE(snprintf(where, sizeof where, "%.600s:%llu", path, number) < 0, "fits");
        ret = add_line(p, rows, line, (size_t)n, where, err);
    }
    if (ret == 0 && ferror(f))
        ret = ps_error_full(err, -EIO, path, NULL, NULL, "cannot read the prompts");
    else if (ret == 0 && p->count == 0)
        ret = ps_error_full(err, PS_EDATA, path, NULL, "one prompt a line, or JSONL rows",
                            "the file has no prompt");
    free(line);
    fclose(f);
    return ret;
}

static json_t *json_ids(const int32_t *ids, size_t count)
{
    json_t *a = json_array();
    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(a, json_integer(ids[i]))) {
            json_decref(a);
            return NULL;
        }
    return a;
}

static int report(const struct ps_options *opt, const struct prompt *p,
                  const struct ps_generation *g, bool several, struct ps_error *err)
{
    const char *text = g->text ? g->text : "";
    if (opt->json)
        return tool_print_json(json_pack("{s:s?,s:o,s:o,s:s}", "prompt", p->text, "prompt_ids",
                                         json_ids(g->prompt_ids, g->prompt_count), "ids",
                                         json_ids(g->ids, g->count), "text", text),
                               err);
    if (several && p->text)
        printf("> %s\n", p->text);
    printf("%s\n%s", text, several ? "\n" : "");
    return tool_flush(err);
}

/* As many prompts as share a pass at a time, so that what is ready is printed. */
static int generate(struct ps_session *s, const struct ps_options *opt, const struct prompts *p,
                    struct ps_error *err)
{
    bool streamed;
    size_t most = ps_session_prompts_per_pass(s, &streamed);
    struct ps_prompt *prompt = calloc(most, sizeof *prompt);
    struct ps_generation *g = calloc(most, sizeof *g);
    int ret = prompt && g ? 0 : oom(err);
    if (ret == 0 && streamed && ps_session_token_seconds(s) > 0)
        ps_log(tool_log(opt), PS_LOG_INFO,
               "the weights are streamed: about %.3g s a token, for %zu prompt%s at a time",
               ps_session_token_seconds(s), most, most == 1 ? "" : "s");
    for (size_t i = 0; ret == 0 && i < p->count; i += most) {
        size_t count = p->count - i < most ? p->count - i : most;
        for (size_t j = 0; j < count; j++)
            prompt[j] = (struct ps_prompt){.text = p->list[i + j].ids ? NULL : p->list[i + j].text,
                                           .ids = p->list[i + j].ids,
                                           .id_count = p->list[i + j].id_count};
        ret = ps_session_generate_many(s, prompt, count, (uint32_t)i, g, err);
        for (size_t j = 0; ret == 0 && j < count; j++)
            ret = report(opt, &p->list[i + j], &g[j], p->count > 1, err);
        for (size_t j = 0; j < count; j++)
            ps_generation_fini(&g[j]);
    }
    free(g);
    free(prompt);
    return ret;
}

int cmd_generate(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    struct prompts p = {0};
    struct ps_session *s = NULL;
    ret = opt->prompt ? add_text(&p, opt->prompt, err) : load(&p, opt->prompts, err);
    opt->prompt_count = p.count < INT32_MAX ? (int)p.count : INT32_MAX;
    if (ret == 0)
        ret = ps_session_open(&s, opt, tool_log(opt), err);
    if (ret == 0)
        ret = generate(s, opt, &p, err);
    ps_session_close(s);
    prompts_fini(&p);
    return ret;
}
