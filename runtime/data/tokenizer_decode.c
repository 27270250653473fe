/* Ids to text: the decoders of a tokenizer.json.
 *
 * Design: the tokens are one buffer and the end of each; every step maps that to another such
 * pair. The steps and their order come from the file. */
#include "runtime/data/tokenizer_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "runtime/base/json.h"

static int parse_one(struct ps_tokenizer *tok, const json_t *obj, const char *type,
                     struct ps_error *err)
{
    if (tok->dec_count == PS__TOK_STEPS_MAX)
        return ps_error_full(err, PS_EFORMAT, tok->file, "decoder", NULL, "more than %d decoders",
                             PS__TOK_STEPS_MAX);
    struct ps__tok_dec *step = &tok->decs[tok->dec_count];
    *step = (struct ps__tok_dec){0};
    tok->dec_count++;
    if (strcmp(type, "ByteLevel") == 0) {
        step->kind = PS__TOK_DEC_BYTE_LEVEL;
    } else if (strcmp(type, "ByteFallback") == 0) {
        step->kind = PS__TOK_DEC_BYTE_FALLBACK;
    } else if (strcmp(type, "Fuse") == 0) {
        step->kind = PS__TOK_DEC_FUSE;
    } else if (strcmp(type, "Replace") == 0) {
        step->kind = PS__TOK_DEC_REPLACE;
        int ret = ps__tok_pattern_parse(tok, json_object_get(obj, "pattern"), "decoder.pattern",
                                        &step->pattern, err);
        return ret < 0 ? ret : ps__tok_string(tok, obj, "content", &step->content, err);
    } else if (strcmp(type, "Strip") == 0) {
        int64_t start = 0, stop = 0;
        step->kind = PS__TOK_DEC_STRIP;
        int ret = ps__tok_string(tok, obj, "content", &step->content, err);
        if (ret == 0)
            ret = ps_json_get_int(obj, "start", 0, INT32_MAX, 0, tok->file, &start, err);
        if (ret == 0)
            ret = ps_json_get_int(obj, "stop", 0, INT32_MAX, 0, tok->file, &stop, err);
        step->start = (size_t)start;
        step->stop = (size_t)stop;
        if (ret == 0 && step->content.len == 0)
            ret = ps_error_full(err, PS_EFORMAT, tok->file, "decoder.content", NULL,
                                "nothing to strip");
        return ret;
    } else if (strcmp(type, "Metaspace") == 0) {
        const char *scheme;
        bool add_prefix;
        step->kind = PS__TOK_DEC_METASPACE;
        int ret = ps__tok_string(tok, obj, "replacement", &step->content, err);
        if (ret == 0)
            ret = ps_json_get_bool(obj, "add_prefix_space", true, tok->file, &add_prefix, err);
        if (ret == 0)
            ret = ps_json_get_string(obj, "prepend_scheme", add_prefix ? "always" : "never",
                                     tok->file, &scheme, err);
        if (ret == 0 && step->content.len == 0)
            ret = ps_error_full(err, PS_EFORMAT, tok->file, "decoder.replacement", NULL,
                                "the replacement of Metaspace must be one character");
        if (ret == 0)
            step->strip_first = strcmp(scheme, "never") != 0;
        return ret;
    } else {
        tok->dec_count--;
        return ps__tok_unsupported(tok, "decoder", type, err);
    }
    return 0;
}

int ps__tok_dec_parse(struct ps_tokenizer *tok, const json_t *obj, struct ps_error *err)
{
    if (!obj || json_is_null(obj))
        return 0;
    tok->has_decoder = true;
    const char *type = ps__tok_type(obj);
    if (!type)
        return ps_error_full(err, PS_EFORMAT, tok->file, "decoder", NULL,
                             "a decoder without a type");
    if (strcmp(type, "Sequence") != 0)
        return parse_one(tok, obj, type, err);
    const json_t *list = json_object_get(obj, "decoders");
    if (!json_is_array(list))
        return ps_error_full(err, PS_EFORMAT, tok->file, "decoder.decoders", NULL,
                             "a sequence of decoders must be an array");
    for (size_t i = 0; i < json_array_size(list); i++) {
        int ret = ps__tok_dec_parse(tok, json_array_get(list, i), err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* ---- running ---- */

struct parts {
    char *bytes;
    size_t len, capacity;
    size_t *ends;
    size_t count, end_capacity;
    size_t len_max;
};

static int parts_put(struct parts *p, const char *bytes, size_t n)
{
    if (n > p->len_max - p->len)
        return -E2BIG;
    int ret = ps__tok_reserve((void **)&p->bytes, &p->capacity, p->len + n + 1, 1);
    if (ret < 0)
        return ret;
    if (n)
        memcpy(p->bytes + p->len, bytes, n);
    p->len += n;
    return 0;
}

static int parts_end(struct parts *p)
{
    int ret = ps__tok_reserve((void **)&p->ends, &p->end_capacity, p->count + 1, sizeof *p->ends);
    if (ret < 0)
        return ret;
    p->ends[p->count++] = p->len;
    return 0;
}

static int parts_add(struct parts *p, const char *bytes, size_t n)
{
    int ret = parts_put(p, bytes, n);
    return ret < 0 ? ret : parts_end(p);
}

static const char replacement_char[] = "\xEF\xBF\xBD";

/* Length of the bytes that one U+FFFD stands for at an invalid place: the longest prefix of a
 * well-formed character, at least one byte (Unicode 3.9, U+FFFD substitution of maximal subparts).
 */
static size_t maximal_subpart(const unsigned char *b, size_t len)
{
    unsigned low = 0x80, high = 0xBF;
    size_t need = 0;
    if (b[0] >= 0xC2 && b[0] <= 0xDF)
        need = 1;
    else if (b[0] >= 0xE0 && b[0] <= 0xEF)
        need = 2;
    else if (b[0] >= 0xF0 && b[0] <= 0xF4)
        need = 3;
    if (b[0] == 0xE0)
        low = 0xA0;
    else if (b[0] == 0xED)
        high = 0x9F;
    else if (b[0] == 0xF0)
        low = 0x90;
    else if (b[0] == 0xF4)
        high = 0x8F;
    size_t n = 1;
    while (n <= need && n < len && b[n] >= low && b[n] <= high) {
        low = 0x80;
        high = 0xBF;
        n++;
    }
    return n;
}

/* Append bytes with U+FFFD for what is not UTF-8. */
static int put_lossy(struct parts *p, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len;) {
        size_t good = ps__tok_utf8_valid(bytes + i, len - i);
        int ret = parts_put(p, bytes + i, good);
        i += good;
        if (ret == 0 && i < len) {
            i += maximal_subpart((const unsigned char *)bytes + i, len - i);
            ret = parts_put(p, replacement_char, 3);
        }
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* A token spelled in the byte-level alphabet gives its bytes; any other token its own text. */
static int put_unspelled(struct parts *p, const char *bytes, size_t len)
{
    size_t begin = p->len;
    for (size_t i = 0, size; i < len; i += size) {
        int b = ps__tok_byte_unspell(ps__tok_char_at(bytes, len, i, &size));
        char c = (char)b;
        if (b < 0) {
            p->len = begin;
            return parts_put(p, bytes, len);
        }
        int ret = parts_put(p, &c, 1);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int run_byte_level(const struct parts *in, struct parts *out)
{
    struct parts raw = {.len_max = out->len_max};
    int ret = 0;
    for (size_t i = 0, at = 0; ret == 0 && i < in->count; at = in->ends[i++])
        ret = put_unspelled(&raw, in->bytes + at, in->ends[i] - at);
    if (ret == 0)
        ret = put_lossy(out, raw.bytes, raw.len);
    if (ret == 0)
        ret = parts_end(out);
    free(raw.bytes);
    return ret;
}

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Byte of "<0xNN>", or -1. */
static int fallback_byte(const char *t, size_t len)
{
    if (len != 6 || memcmp(t, "<0x", 3) != 0 || t[5] != '>' || hex(t[3]) < 0 || hex(t[4]) < 0)
        return -1;
    return hex(t[3]) * 16 + hex(t[4]);
}

/* A run of byte tokens becomes its text, or one U+FFFD a byte when it is not UTF-8. */
static int flush_bytes(struct parts *raw, struct parts *out)
{
    int ret = 0;
    if (raw->len == 0)
        return 0;
    if (ps__tok_utf8_valid(raw->bytes, raw->len) == raw->len)
        ret = parts_add(out, raw->bytes, raw->len);
    else
        for (size_t i = 0; ret == 0 && i < raw->len; i++)
            ret = parts_add(out, replacement_char, 3);
    raw->len = 0;
    return ret;
}

static int run_byte_fallback(const struct parts *in, struct parts *out)
{
    struct parts raw = {.len_max = out->len_max};
    int ret = 0;
    for (size_t i = 0, at = 0; ret == 0 && i < in->count; at = in->ends[i++]) {
        const char *t = in->bytes + at;
        size_t n = in->ends[i] - at;
        int b = fallback_byte(t, n);
        char c = (char)b;
        if (b >= 0) {
            ret = parts_put(&raw, &c, 1);
            continue;
        }
        ret = flush_bytes(&raw, out);
        if (ret == 0)
            ret = parts_add(out, t, n);
    }
    if (ret == 0)
        ret = flush_bytes(&raw, out);
    free(raw.bytes);
    return ret;
}

static int run_replace(struct ps_tokenizer *tok, const struct ps__tok_dec *step,
                       const struct parts *in, struct parts *out, struct ps_error *err)
{
    for (size_t i = 0, at = 0; i < in->count; at = in->ends[i++]) {
        const char *t = in->bytes + at;
        size_t n = in->ends[i] - at, done = 0;
        int ret = ps__tok_pattern_find(&step->pattern, t, n, &tok->matches, err);
        for (size_t k = 0; ret == 0 && k < tok->matches.count; k++) {
            struct ps__tok_span m = tok->matches.items[k];
            ret = parts_put(out, t + done, m.begin - done);
            if (ret == 0)
                ret = parts_put(out, step->content.bytes, step->content.len);
            done = m.end;
        }
        if (ret == 0)
            ret = parts_add(out, t + done, n - done);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int run_strip(const struct ps__tok_dec *step, const struct parts *in, struct parts *out)
{
    const char *what = step->content.bytes;
    size_t w = step->content.len;
    for (size_t i = 0, at = 0; i < in->count; at = in->ends[i++]) {
        size_t begin = at, end = in->ends[i];
        for (size_t k = 0; k < step->start && end - begin >= w; k++) {
            if (memcmp(in->bytes + begin, what, w) != 0)
                break;
            begin += w;
        }
        for (size_t k = 0; k < step->stop && end - begin >= w; k++) {
            if (memcmp(in->bytes + end - w, what, w) != 0)
                break;
            end -= w;
        }
        int ret = parts_add(out, in->bytes + begin, end - begin);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int run_metaspace(const struct ps__tok_dec *step, const struct parts *in, struct parts *out)
{
    size_t w = step->content.len;
    for (size_t i = 0, at = 0; i < in->count; at = in->ends[i++]) {
        for (size_t k = at; k < in->ends[i];) {
            bool mark = in->ends[i] - k >= w && memcmp(in->bytes + k, step->content.bytes, w) == 0;
            int ret = 0;
            if (!mark)
                ret = parts_put(out, in->bytes + k, 1);
            else if (i > 0 || !step->strip_first)
                ret = parts_put(out, " ", 1);
            if (ret < 0)
                return ret;
            k += mark ? w : 1;
        }
        int ret = parts_end(out);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int run_step(struct ps_tokenizer *tok, const struct ps__tok_dec *step,
                    const struct parts *in, struct parts *out, struct ps_error *err)
{
    out->len = out->count = 0;
    switch (step->kind) {
    case PS__TOK_DEC_BYTE_LEVEL:
        return run_byte_level(in, out);
    case PS__TOK_DEC_REPLACE:
        return run_replace(tok, step, in, out, err);
    case PS__TOK_DEC_BYTE_FALLBACK:
        return run_byte_fallback(in, out);
    case PS__TOK_DEC_FUSE:
        return parts_add(out, in->bytes, in->len);
    case PS__TOK_DEC_STRIP:
        return run_strip(step, in, out);
    case PS__TOK_DEC_METASPACE:
        return run_metaspace(step, in, out);
    }
    return 0;
}

/* clean_up_tokenization_spaces of transformers: these replacements, one after the other. */
static void clean_up(struct parts *p)
{
    static const char *const from[] = {" .",   " ?",  " !",  " ,",   " ' ",
                                       " n't", " 'm", " 's", " 've", " 're"};
    for (size_t k = 0; k < sizeof from / sizeof from[0]; k++) {
        size_t n = strlen(from[k]), to = 0;
        for (size_t i = 0; i < p->len;) {
            if (p->len - i >= n && memcmp(p->bytes + i, from[k], n) == 0) {
                size_t keep = strcmp(from[k], " ' ") == 0 ? 1 : n - 1;
                memmove(p->bytes + to, p->bytes + i + 1, keep);
                to += keep;
                i += n;
            } else {
                p->bytes[to++] = p->bytes[i++];
            }
        }
        p->len = to;
    }
}

static int collect(const struct ps_tokenizer *tok, const int32_t *ids, size_t count,
                   bool skip_special, struct parts *p, struct ps_error *err)
{
    size_t id_count = ps_tokenizer_vocab_size(tok);
    for (size_t i = 0; i < count; i++) {
        const struct ps__tok_added *added = ps__tok_added_by_id(tok, ids[i]);
        const struct ps__tok_vocab_entry *entry =
            added ? NULL : ps__tok_vocab_entry(&tok->model, ids[i]);
        if (ids[i] < 0 || (size_t)ids[i] >= id_count)
            return ps_error_full(err, PS_EDATA, tok->file, NULL, NULL,
                                 "token id %d is not in [0, %zu)", ids[i], id_count);
        /* An id in a gap of the vocabulary has no text. */
        if ((!added && !entry) || (added && added->special && skip_special))
            continue;
        const struct ps__tok_str *s = added ? &added->normal : &entry->text;
        int ret = 0;
        if (!tok->has_decoder && p->count)
            ret = parts_put(p, " ", 1);
        if (ret == 0)
            ret = parts_add(p, s->bytes, s->len);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int ps_tokenizer_decode(struct ps_tokenizer *tok, const int32_t *ids, size_t count,
                        bool skip_special, char **text, size_t *len, struct ps_error *err)
{
    struct parts a = {.len_max = SIZE_MAX / 4}, b = {0};
    int ret = collect(tok, ids, count, skip_special, &a, err);
    ps__tok_meter_start(&tok->meter, a.len);
    a.len_max = b.len_max = 64 * a.len + 65536;
    for (size_t i = 0; ret == 0 && i < tok->dec_count; i++) {
        ret = run_step(tok, &tok->decs[i], &a, &b, err);
        struct parts swap = a;
        a = b;
        b = swap;
    }
    if (ret == 0 && tok->clean_up)
        clean_up(&a);
    a.len_max = SIZE_MAX / 4;
    if (ret == 0)
        ret = parts_put(&a, "", 0); /* room for the NUL even when there is no text */
    free(b.bytes);
    free(a.ends);
    free(b.ends);
    if (ret < 0) {
        free(a.bytes);
        if (ret == -ENOMEM)
            return ps_error_set(err, ret, "out of memory");
        if (ret == -E2BIG)
            return ps_error_full(err, PS_EFORMAT, tok->file, "decoder", NULL,
                                 "the decoder makes the text more than 64 times longer");
        return ret;
    }
    a.bytes[a.len] = 0;
    *text = a.bytes;
    *len = a.len;
    return 0;
}
