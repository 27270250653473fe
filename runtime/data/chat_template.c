/* Built-in chat templates: see chat_template.h.
 *
 * Each follows the Jinja template that its models ship: chatml (ChatML as in transformers'
 * default), llama3 (Meta-Llama-3-8B-Instruct), mistral (Mistral-7B-Instruct-v0.1), gemma
 * (gemma-3-*-it, which equals gemma 1 and 2 where there is no system message), phi3
 * (Phi-3-mini-4k-instruct), zephyr (zephyr-7b-beta). alpaca has no Jinja original: one turn is the
 * Stanford Alpaca prompt text, further turns repeat its "### Instruction:" part; a system message
 * replaces the preamble.
 *
 * A role or an order that the original raises on, drops or garbles is PS_EDATA here. */
#include "runtime/data/chat_template.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data/dataset_internal.h"

#define ALPACA_PREAMBLE                                                                            \
    "Below is an instruction that describes a task. Write a response that appropriately "          \
    "completes the request."

struct writer {
    struct ps_rendering *r;
    size_t cap, span_cap;
    bool failed;
    const struct ps_message *messages;
    size_t count;
    bool add_generation_prompt;
    const char *bos, *eos;
};

typedef void (*render_fn)(struct writer *w);

struct chat_template {
    const char *name;
    render_fn render;
    const char *terminator;     /* of an assistant turn; NULL: EOS */
    bool system_first;          /* a first system message is understood */
    bool system_any, turns_any; /* system messages anywhere; turns in any order */
};

static void put_bytes(struct writer *w, const char *bytes, size_t n)
{
    struct ps_rendering *r = w->r;
    if (w->failed)
        return;
    if (n >= w->cap - r->len) {
        size_t cap = (w->cap + n) * 2 + 64;
        char *text = realloc(r->text, cap);
        if (!text) {
            w->failed = true;
            return;
        }
        r->text = text;
        w->cap = cap;
    }
    memcpy(r->text + r->len, bytes, n);
    r->len += n;
    r->text[r->len] = '\0';
}

static void put(struct writer *w, const char *text)
{
    put_bytes(w, text, strlen(text));
}

static void span_begin(struct writer *w)
{
    struct ps_rendering *r = w->r;
    if (w->failed)
        return;
    if (r->span_count == w->span_cap) {
        size_t cap = w->span_cap * 2 + 4;
        size_t *span = realloc(r->span, cap * 2 * sizeof *span);
        if (!span) {
            w->failed = true;
            return;
        }
        r->span = span;
        w->span_cap = cap;
    }
    r->span[2 * r->span_count] = r->len;
}

static void span_end(struct writer *w)
{
    struct ps_rendering *r = w->r;
    if (w->failed)
        return;
    r->span[2 * r->span_count + 1] = r->len;
    r->span_count++;
}

/* Length of the white-space character (as Python's str.strip sees it) at s, or 0. */
static size_t space_len(const unsigned char *s, size_t n)
{
    if (n >= 1 && ((s[0] >= 0x09 && s[0] <= 0x0D) || (s[0] >= 0x1C && s[0] <= 0x20)))
        return 1;
    if (n >= 2 && s[0] == 0xC2 && (s[1] == 0x85 || s[1] == 0xA0))
        return 2;
    if (n < 3)
        return 0;
    uint32_t c = (uint32_t)s[0] << 16 | (uint32_t)s[1] << 8 | s[2];
    bool space = c == 0xE19A80 /* U+1680 */ || (c >= 0xE28080 && c <= 0xE2808A) /* U+2000-200A */ ||
                 c == 0xE280A8 || c == 0xE280A9 || c == 0xE280AF || c == 0xE2819F || c == 0xE38080;
    return space ? 3 : 0;
}

static void put_trimmed(struct writer *w, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t begin = 0, end = strlen(text), n;
    while ((n = space_len(s + begin, end - begin)) > 0)
        begin += n;
    for (;;) {
        size_t left = end - begin;
        if (left >= 1 && space_len(s + end - 1, 1) == 1)
            end -= 1;
        else if (left >= 2 && space_len(s + end - 2, 2) == 2)
            end -= 2;
        else if (left >= 3 && space_len(s + end - 3, 3) == 3)
            end -= 3;
        else
            break;
    }
    put_bytes(w, text + begin, end - begin);
}

static bool is_assistant(const struct ps_message *m)
{
    return strcmp(m->role, "assistant") == 0;
}

static bool is_system(const struct ps_message *m)
{
    return strcmp(m->role, "system") == 0;
}

/* Content and terminator of a turn, as a span when the assistant speaks. */
static void put_turn(struct writer *w, const struct ps_message *m, bool trim, const char *end)
{
    if (is_assistant(m))
        span_begin(w);
    if (trim)
        put_trimmed(w, m->content);
    else
        put(w, m->content);
    put(w, end);
    if (is_assistant(m))
        span_end(w);
}

static void render_chatml(struct writer *w)
{
    for (size_t i = 0; i < w->count; i++) {
        put(w, "<|im_start|>");
        put(w, w->messages[i].role);
        put(w, "\n");
        put_turn(w, &w->messages[i], false, "<|im_end|>");
        put(w, "\n");
    }
    if (w->add_generation_prompt)
        put(w, "<|im_start|>assistant\n");
}

static void render_llama3(struct writer *w)
{
    put(w, w->bos);
    for (size_t i = 0; i < w->count; i++) {
        put(w, "<|start_header_id|>");
        put(w, w->messages[i].role);
        put(w, "<|end_header_id|>\n\n");
        put_turn(w, &w->messages[i], true, "<|eot_id|>");
    }
    if (w->add_generation_prompt)
        put(w, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

static void render_mistral(struct writer *w)
{
    put(w, w->bos);
    for (size_t i = 0; i < w->count; i++) {
        const struct ps_message *m = &w->messages[i];
        if (is_assistant(m)) {
            put_turn(w, m, false, w->eos);
            put(w, " ");
        } else {
            put(w, "[INST] ");
            put_turn(w, m, false, " [/INST]");
        }
    }
}

static void render_gemma(struct writer *w)
{
    put(w, w->bos);
    const char *prefix = NULL;
    for (size_t i = 0; i < w->count; i++) {
        const struct ps_message *m = &w->messages[i];
        if (is_system(m)) {
            prefix = m->content;
            continue;
        }
        put(w, is_assistant(m) ? "<start_of_turn>model\n" : "<start_of_turn>user\n");
        if (prefix) {
            put(w, prefix);
            put(w, "\n\n");
            prefix = NULL;
        }
        put_turn(w, m, true, "<end_of_turn>");
        put(w, "\n");
    }
    if (w->add_generation_prompt)
        put(w, "<start_of_turn>model\n");
}

/* phi3 and zephyr: "<|role|>\n" content end "\n". */
static void put_role_turns(struct writer *w, const char *end)
{
    for (size_t i = 0; i < w->count; i++) {
        put(w, "<|");
        put(w, w->messages[i].role);
        put(w, "|>\n");
        put_turn(w, &w->messages[i], false, end);
        put(w, "\n");
    }
    if (w->add_generation_prompt)
        put(w, "<|assistant|>\n");
}

static void render_phi3(struct writer *w)
{
    put_role_turns(w, "<|end|>");
    if (!w->add_generation_prompt)
        put(w, w->eos);
}

static void render_zephyr(struct writer *w)
{
    put_role_turns(w, w->eos);
}

static void render_alpaca(struct writer *w)
{
    put(w, w->bos);
    bool system = is_system(&w->messages[0]);
    if (system)
        put_trimmed(w, w->messages[0].content);
    else
        put(w, ALPACA_PREAMBLE);
    for (size_t i = system; i < w->count; i++) {
        const struct ps_message *m = &w->messages[i];
        put(w, is_assistant(m) ? "\n\n### Response:" : "\n\n### Instruction:\n");
        put_turn(w, m, false, is_assistant(m) ? w->eos : "");
    }
    if (w->add_generation_prompt)
        put(w, "\n\n### Response:");
}

static const struct chat_template templates[] = {
    {"chatml", render_chatml, "<|im_end|>", true, true, true},
    {"llama3", render_llama3, "<|eot_id|>", true, true, true},
    {"mistral", render_mistral, NULL, false, false, false},
    {"gemma", render_gemma, "<end_of_turn>", true, false, false},
    {"phi3", render_phi3, "<|end|>", true, true, true},
    {"zephyr", render_zephyr, NULL, true, true, true},
    {"alpaca", render_alpaca, NULL, true, false, false},
};

static const struct chat_template *find(const char *name)
{
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++)
        if (strcmp(templates[i].name, name) == 0)
            return &templates[i];
    return NULL;
}

const char *const *ps_chat_template_names(void)
{
    static const char *const names[] = {"chatml", "llama3", "mistral", "gemma",
                                        "phi3",   "zephyr", "alpaca",  NULL};
    return names;
}

const char *ps__chat_template_terminator(const char *name)
{
    const struct chat_template *t = find(name);
    return t ? t->terminator : NULL;
}

static int check_order(const struct chat_template *t, const struct ps_message *messages,
                       size_t count, struct ps_error *err)
{
    if (count == 0)
        return ps_error_full(err, PS_EDATA, NULL, "messages", NULL, "the conversation is empty");
    size_t turn = 0; /* of user and assistant */
    for (size_t i = 0; i < count; i++) {
        const char *role = messages[i].role;
        bool user = strcmp(role, "user") == 0;
        if (!user && !is_assistant(&messages[i]) && !is_system(&messages[i]))
            return ps_error_full(err, PS_EDATA, NULL, "role", "use system, user or assistant",
                                 "message %zu: template \"%s\" cannot express the role \"%s\"",
                                 i + 1, t->name, role);
        if (is_system(&messages[i])) {
            if (t->system_any || (t->system_first && i == 0))
                continue;
            if (!t->system_first)
                return ps_error_full(
                    err, PS_EDATA, NULL, "role", "put its text into the first user message",
                    "message %zu: template \"%s\" has no system messages", i + 1, t->name);
            return ps_error_full(err, PS_EDATA, NULL, "role", "put the system message first",
                                 "message %zu: template \"%s\" allows a system message only at "
                                 "the beginning",
                                 i + 1, t->name);
        }
        if (!t->turns_any && user != (turn % 2 == 0))
            return ps_error_full(err, PS_EDATA, NULL, "role", NULL,
                                 "message %zu: template \"%s\" needs the roles to alternate "
                                 "user/assistant/user/assistant, beginning with user",
                                 i + 1, t->name);
        turn++;
    }
    if (turn == 0 && !t->system_any)
        return ps_error_full(err, PS_EDATA, NULL, "messages", NULL,
                             "template \"%s\" needs a user message after the system message",
                             t->name);
    return 0;
}

int ps_chat_render(struct ps_rendering *out, const char *name, const struct ps_message *messages,
                   size_t count, bool add_generation_prompt, const char *bos, const char *eos,
                   struct ps_error *err)
{
    const struct chat_template *t = find(name);
    if (!t)
        return ps_error_full(err, PS_EUSAGE, NULL, "chat-template",
                             "use chatml, llama3, mistral, gemma, phi3, zephyr or alpaca",
                             "there is no built-in chat template \"%s\"", name);
    int ret = check_order(t, messages, count, err);
    if (ret < 0)
        return ret;
    struct ps_rendering r = {0};
    struct writer w = {.r = &r,
                       .messages = messages,
                       .count = count,
                       .add_generation_prompt = add_generation_prompt,
                       .bos = bos ? bos : "",
                       .eos = eos ? eos : ""};
    put(&w, "");
    t->render(&w);
    if (w.failed) {
        ps_rendering_fini(&r);
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    *out = r;
    return 0;
}

void ps_rendering_fini(struct ps_rendering *r)
{
    free(r->text);
    free(r->span);
    *r = (struct ps_rendering){0};
}
