/* Normalizers of a tokenizer.json: text to text, keeping alignments. */
#include "runtime/data/tokenizer_internal.h"

#include <errno.h>
#include <string.h>
#include <utf8proc.h>

#include "runtime/base/json.h"

static int parse_one(struct ps_tokenizer *tok, const json_t *obj, const char *type,
                     struct ps_error *err)
{
    static const struct {
        const char *name;
        enum ps__tok_norm_kind kind;
    } kinds[] = {
        {"NFC", PS__TOK_NORM_NFC},
        {"NFD", PS__TOK_NORM_NFD},
        {"NFKC", PS__TOK_NORM_NFKC},
        {"NFKD", PS__TOK_NORM_NFKD},
        {"Lowercase", PS__TOK_NORM_LOWERCASE},
        {"Replace", PS__TOK_NORM_REPLACE},
        {"Prepend", PS__TOK_NORM_PREPEND},
        {"Strip", PS__TOK_NORM_STRIP},
        {"ByteLevel", PS__TOK_NORM_BYTE_LEVEL},
    };
    size_t k = 0, count = sizeof kinds / sizeof kinds[0];
    while (k < count && strcmp(type, kinds[k].name) != 0)
        k++;
    if (k == count)
        return ps__tok_unsupported(tok, "normalizer", type, err);
    if (tok->norm_count == PS__TOK_STEPS_MAX)
        return ps_error_full(err, PS_EFORMAT, tok->file, "normalizer", NULL,
                             "more than %d normalizers", PS__TOK_STEPS_MAX);
    struct ps__tok_norm *step = &tok->norms[tok->norm_count++];
    *step = (struct ps__tok_norm){.kind = kinds[k].kind};
    int ret = 0;
    if (step->kind == PS__TOK_NORM_REPLACE) {
        ret = ps__tok_pattern_parse(tok, json_object_get(obj, "pattern"), "normalizer.pattern",
                                    &step->pattern, err);
        if (ret == 0)
            ret = ps__tok_string(tok, obj, "content", &step->content, err);
    } else if (step->kind == PS__TOK_NORM_PREPEND) {
        ret = ps__tok_string(tok, obj, "prepend", &step->content, err);
    } else if (step->kind == PS__TOK_NORM_STRIP) {
        ret = ps_json_get_bool(obj, "strip_left", true, tok->file, &step->left, err);
        if (ret == 0)
            ret = ps_json_get_bool(obj, "strip_right", true, tok->file, &step->right, err);
    }
    return ret;
}

int ps__tok_norm_parse(struct ps_tokenizer *tok, const json_t *obj, struct ps_error *err)
{
    if (!obj || json_is_null(obj))
        return 0;
    const char *type = ps__tok_type(obj);
    if (!type)
        return ps_error_full(err, PS_EFORMAT, tok->file, "normalizer", NULL,
                             "a normalizer without a type");
    if (strcmp(type, "Sequence") != 0)
        return parse_one(tok, obj, type, err);
    const json_t *list = json_object_get(obj, "normalizers");
    if (!json_is_array(list))
        return ps_error_full(err, PS_EFORMAT, tok->file, "normalizer.normalizers", NULL,
                             "a sequence of normalizers must be an array");
    for (size_t i = 0; i < json_array_size(list); i++) {
        int ret = ps__tok_norm_parse(tok, json_array_get(list, i), err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Bytes that a step invents count against the budget of the call. */
static int put_new(struct ps_tokenizer *tok, struct ps__tok_text *out, const char *bytes, size_t n,
                   struct ps__tok_span at)
{
    if (n > tok->growth_left)
        return -E2BIG;
    tok->growth_left -= n;
    return ps__tok_text_put(out, bytes, n, at);
}

static int lowercase(struct ps_tokenizer *tok, const struct ps__tok_view *in,
                     struct ps__tok_text *out)
{
    for (size_t i = 0, size; i < in->len; i += size) {
        int32_t c = ps__tok_char_at(in->bytes, in->len, i, &size);
        struct ps__tok_span at = {ps__tok_view_begin(in, i), ps__tok_view_end(in, i + size)};
        utf8proc_uint8_t text[8];
        size_t n;
        if (c == 0x130) { /* the one character whose full mapping is longer than its simple one */
            memcpy(text, "i\xCC\x87", 3);
            n = 3;
        } else {
            n = (size_t)utf8proc_encode_char(utf8proc_tolower(c), text);
        }
        int ret = n == size && memcmp(text, in->bytes + i, n) == 0
                      ? ps__tok_text_copy(out, in, i, i + size)
                      : put_new(tok, out, (const char *)text, n, at);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int replace(struct ps_tokenizer *tok, const struct ps__tok_norm *step,
                   const struct ps__tok_view *in, struct ps__tok_text *out, bool *changed,
                   struct ps_error *err)
{
    int ret = ps__tok_pattern_find(&step->pattern, in->bytes, in->len, &tok->matches, err);
    if (ret < 0)
        return ret;
    *changed = tok->matches.count > 0;
    size_t done = 0;
    for (size_t i = 0; *changed && ret == 0 && i < tok->matches.count; i++) {
        struct ps__tok_span m = tok->matches.items[i];
        struct ps__tok_span at = {
            m.begin < in->len ? ps__tok_view_begin(in, m.begin) : ps__tok_view_end(in, in->len), 0};
        at.end = m.end > m.begin ? ps__tok_view_end(in, m.end) : at.begin;
        ret = ps__tok_text_copy(out, in, done, m.begin);
        if (ret == 0)
            ret = put_new(tok, out, step->content.bytes, step->content.len, at);
        done = m.end;
    }
    if (ret == 0 && *changed)
        ret = ps__tok_text_copy(out, in, done, in->len);
    return ret;
}

static struct ps__tok_view strip(const struct ps__tok_norm *step, const struct ps__tok_view *in)
{
    size_t begin = 0, end = in->len, size;
    while (step->left && begin < end &&
           ps__tok_is_space(ps__tok_char_at(in->bytes, in->len, begin, &size)))
        begin += size;
    while (step->right && end > begin) {
        size_t at = end - 1;
        while (at > begin && ((unsigned char)in->bytes[at] & 0xC0) == 0x80)
            at--;
        if (!ps__tok_is_space(ps__tok_char_at(in->bytes, in->len, at, &size)))
            break;
        end = at;
    }
    return ps__tok_view_slice(in, begin, end);
}

int ps__tok_norm_byte_level(const struct ps__tok_view *in, struct ps__tok_text *out)
{
    for (size_t i = 0; i < in->len; i++) {
        char text[2];
        size_t n = ps__tok_byte_spell((unsigned char)in->bytes[i], text);
        struct ps__tok_span at = {ps__tok_view_begin(in, i), ps__tok_view_end(in, i + 1)};
        int ret = ps__tok_text_put(out, text, n, at);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int byte_level(struct ps_tokenizer *tok, const struct ps__tok_view *in,
                      struct ps__tok_text *out)
{
    if (in->len > tok->growth_left)
        return -E2BIG;
    tok->growth_left -= in->len;
    return ps__tok_norm_byte_level(in, out);
}

static bool is_plain(const struct ps__tok_view *in, unsigned char below)
{
    for (size_t i = 0; i < in->len; i++)
        if ((unsigned char)in->bytes[i] >= below)
            return false;
    return true;
}

/* One step from `in` to `out`. *changed false: the result is *in (Strip narrows it in place). */
static int run_step(struct ps_tokenizer *tok, const struct ps__tok_norm *step,
                    struct ps__tok_view *in, struct ps__tok_text *out, bool *changed,
                    struct ps_error *err)
{
    *changed = true;
    switch (step->kind) {
    case PS__TOK_NORM_NFC:
        /* Bytes below 0xCC are characters below U+0300, which NFC leaves alone. */
        *changed = !is_plain(in, 0xCC);
        return *changed ? ps__tok_norm_form(tok, step->kind, in, out) : 0;
    case PS__TOK_NORM_NFD:
    case PS__TOK_NORM_NFKC:
    case PS__TOK_NORM_NFKD:
        *changed = !is_plain(in, 0x80);
        return *changed ? ps__tok_norm_form(tok, step->kind, in, out) : 0;
    case PS__TOK_NORM_LOWERCASE:
        return lowercase(tok, in, out);
    case PS__TOK_NORM_REPLACE:
        return replace(tok, step, in, out, changed, err);
    case PS__TOK_NORM_PREPEND: {
        size_t size = 0;
        if (in->len == 0) {
            *changed = false;
            return 0;
        }
        PS_IGNORE(ps__tok_char_at(in->bytes, in->len, 0, &size) < 0, "text is valid");
        struct ps__tok_span at = {ps__tok_view_begin(in, 0), ps__tok_view_end(in, size)};
        int ret = put_new(tok, out, step->content.bytes, step->content.len, at);
        return ret < 0 ? ret : ps__tok_text_copy(out, in, 0, in->len);
    }
    case PS__TOK_NORM_STRIP:
        *in = strip(step, in);
        *changed = false;
        return 0;
    case PS__TOK_NORM_BYTE_LEVEL:
        return byte_level(tok, in, out);
    }
    return 0;
}

int ps__tok_norm_run(struct ps_tokenizer *tok, const struct ps__tok_view *in,
                     struct ps__tok_view *out, struct ps_error *err)
{
    struct ps__tok_view now = *in;
    int which = 0;
    for (size_t i = 0; i < tok->norm_count; i++) {
        bool changed;
        struct ps__tok_text *to = &tok->norm_text[which];
        to->len = 0;
        int ret = run_step(tok, &tok->norms[i], &now, to, &changed, err);
        if (ret == -E2BIG)
            return ps_error_full(err, PS_EFORMAT, tok->file, "normalizer", NULL,
                                 "the normalizer makes the text more than 64 times longer");
        if (ret < 0)
            return ret == -ENOMEM ? ps_error_set(err, ret, "out of memory") : ret;
        if (changed) {
            now = ps__tok_text_view(to);
            which = !which;
        }
    }
    *out = now;
    return 0;
}
