/* Conversations of messages and sharegpt rows: see dataset_internal.h.
 *
 * Content is a string or a list of text parts, put together as they are. `weight`, `loss_weight` (0
 * or 1) and `train` (bool) on an assistant message say whether its turn is trained. What a built-in
 * template cannot express (tools, tool calls, images, weights of other turns) is an error, never
 * dropped. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data/dataset_internal.h"

static int add_message(struct ps__load *ld, const char *role, const char *content, bool muted)
{
    if (ld->message_count == ld->message_cap) {
        size_t cap = ld->message_cap * 2 + 16;
        struct ps_message *m = realloc(ld->messages, cap * sizeof *m);
        if (m)
            ld->messages = m;
        bool *mute = realloc(ld->muted, cap * sizeof *mute);
        if (mute)
            ld->muted = mute;
        if (!m || !mute)
            return ps__row_error(ld, -ENOMEM, NULL, NULL, "out of memory");
        ld->message_cap = cap;
    }
    ld->messages[ld->message_count] = (struct ps_message){.role = role, .content = content};
    ld->muted[ld->message_count++] = muted;
    return 0;
}

/* Text of one part: {"type": "text", "text": ...} ("value" is seen in the wild too). */
static int part_text(struct ps__load *ld, const json_t *part, const char **out)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    const json_t *text = json_object_get(part, "text");
    if (!text)
        text = json_object_get(part, "value");
    if (!type || strcmp(type, "text") != 0 || !json_is_string(text))
        return ps__row_error(ld, PS_EDATA, "content", NULL,
                             "a part of \"content\" is not {\"type\": \"text\", \"text\": ...}");
    *out = json_string_value(text);
    return 0;
}

/* Put the parts together in one string that the row owns. */
static int join_parts(struct ps__load *ld, const json_t *parts, const char **out)
{
    size_t len = 0, i;
    json_t *part;
    const char *text;
    json_array_foreach(parts, i, part)
    {
        int ret = part_text(ld, part, &text);
        if (ret < 0)
            return ret;
        len += strlen(text);
    }
    if (ld->owned_count == ld->owned_cap) {
        size_t cap = ld->owned_cap * 2 + 16;
        char **owned = realloc(ld->owned, cap * sizeof *owned);
        if (!owned)
            return ps__row_error(ld, -ENOMEM, NULL, NULL, "out of memory");
        ld->owned = owned;
        ld->owned_cap = cap;
    }
    char *joined = malloc(len + 1);
    if (!joined)
        return ps__row_error(ld, -ENOMEM, NULL, NULL, "out of memory");
    ld->owned[ld->owned_count++] = joined;
    char *at = joined;
    json_array_foreach(parts, i, part)
    {
        int ret = part_text(ld, part, &text);
        if (ret < 0)
            return ret;
        size_t n = strlen(text);
        memcpy(at, text, n);
        at += n;
    }
    *at = '\0';
    *out = joined;
    return 0;
}

/* weight, loss_weight or train of a message. */
static int read_weight(struct ps__load *ld, const json_t *message, const char *role, bool *muted)
{
    static const char *const keys[] = {"weight", "loss_weight", "train"};
    *muted = false;
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        const json_t *v = json_object_get(message, keys[k]);
        if (!v || json_is_null(v))
            continue;
        double weight = json_is_boolean(v)  ? (json_is_true(v) ? 1 : 0)
                        : json_is_number(v) ? json_number_value(v)
                                            : -1;
        if (weight != 0 && weight != 1) /* exact: other weights are not known here */
            return ps__row_error(ld, PS_EDATA, keys[k], "leave it out, or use 0 or 1",
                                 "the field \"%s\" of a message must be 0 or 1", keys[k]);
        bool assistant = strcmp(role, "assistant") == 0;
        if (!assistant && weight != 0)
            return ps__row_error(ld, PS_EDATA, keys[k], "use --loss-on all to train every turn",
                                 "only assistant messages can be trained; \"%s\" is 1 on a "
                                 "message of the role \"%s\"",
                                 keys[k], role);
        if (assistant && weight == 0)
            *muted = true;
    }
    return 0;
}

static bool is_empty(const json_t *v)
{
    if (json_is_string(v)) {
        const char *s = json_string_value(v);
        return !*s || strcmp(s, "[]") == 0;
    }
    return !v || json_is_null(v) || (json_is_array(v) && json_array_size(v) == 0);
}

static int read_message(struct ps__load *ld, const json_t *message, bool sharegpt)
{
    static const char *const role_map[][2] = {
        {"human", "user"}, {"gpt", "assistant"}, {"chatgpt", "assistant"}};
    enum ps__field role_field = sharegpt ? PS__FIELD_FROM : PS__FIELD_ROLE;
    enum ps__field content_field = sharegpt ? PS__FIELD_VALUE : PS__FIELD_CONTENT;
    if (!json_is_object(message))
        return ps__row_error(ld, PS_EDATA, sharegpt ? "conversations" : "messages", NULL,
                             "a message is not an object");
    const char *role, *content;
    int ret = ps__row_string(ld, message, role_field, false, &role);
    if (ret < 0)
        return ret;
    for (size_t i = 0; sharegpt && i < sizeof role_map / sizeof *role_map; i++)
        if (strcmp(role, role_map[i][0]) == 0)
            role = role_map[i][1];
    if (!is_empty(json_object_get(message, "tool_calls")))
        return ps__row_error(ld, PS_EDATA, "tool_calls", NULL,
                             "a built-in chat template cannot express \"tool_calls\"");
    const json_t *parts = json_object_get(message, ld->source[content_field]);
    if (json_is_array(parts))
        ret = join_parts(ld, parts, &content);
    else
        ret = ps__row_string(ld, message, content_field, false, &content);
    if (ret < 0)
        return ret;
    bool muted;
    ret = read_weight(ld, message, role, &muted);
    if (ret < 0)
        return ret;
    return add_message(ld, role, content, muted);
}

int ps__row_messages(struct ps__load *ld, const json_t *row)
{
    bool sharegpt = ld->ds->format == PS_DATA_SHAREGPT;
    const json_t *list;
    int ret =
        ps__row_array(ld, row, sharegpt ? PS__FIELD_CONVERSATIONS : PS__FIELD_MESSAGES, &list);
    if (ret < 0)
        return ret;
    if (!is_empty(json_object_get(row, "tools")))
        return ps__row_error(ld, PS_EDATA, "tools", NULL,
                             "a built-in chat template cannot express \"tools\"");
    ld->message_count = 0;
    for (size_t i = 0; i < ld->owned_count; i++)
        free(ld->owned[i]);
    ld->owned_count = 0;
    const json_t *system = sharegpt ? json_object_get(row, "system") : NULL;
    if (system && !json_is_null(system)) {
        if (!json_is_string(system))
            return ps__row_error(ld, PS_EDATA, "system", NULL,
                                 "the field \"system\" must be a string");
        if (*json_string_value(system)) {
            ret = add_message(ld, "system", json_string_value(system), false);
            if (ret < 0)
                return ret;
        }
    }
    size_t i;
    json_t *message;
    json_array_foreach(list, i, message)
    {
        ret = read_message(ld, message, sharegpt);
        if (ret < 0)
            return ret;
    }
    return 0;
}
