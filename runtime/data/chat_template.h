/* Built-in chat templates by name: chatml, llama3, mistral, gemma, phi3, zephyr, alpaca.
 *
 * A model's own Jinja template is never guessed: `auto` on messages is an error that lists the names. */
#ifndef PS_DATA_CHAT_TEMPLATE_H
#define PS_DATA_CHAT_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_message {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* UTF-8, NUL-terminated */
};

/* A rendered conversation: text, and the byte ranges that are trained under assistant-only loss (each
 * assistant turn with its terminator). Freed with ps_rendering_fini. */
struct ps_rendering {
    char *text;
    size_t len;
    size_t *span; /* (2 * span_count,): begin, end */
    size_t span_count;
};

/* Names of the built-ins, NULL-terminated. */
const char *const *ps_chat_template_names(void);

/* bos and eos are the token strings that the template may need ("" when there is none). Unknown names
 * are PS_EUSAGE; a role or order that the template cannot express is PS_EDATA. */
int ps_chat_render(struct ps_rendering *out, const char *name, const struct ps_message *messages,
                   size_t count, bool add_generation_prompt, const char *bos, const char *eos,
                   struct ps_error *err) PS_WARN_UNUSED;

void ps_rendering_fini(struct ps_rendering *r);

#ifdef __cplusplus
}
#endif
#endif
