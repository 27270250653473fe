/* Pre-tokenizers of a tokenizer.json: cut a section into the pieces that the model merges.
 *
 * Design: steps that only cut keep the text and replace the list of pieces; steps that write
 * (a prefix, a replacement, the byte-level alphabet) build a new text. A ByteLevel that comes last
 * writes nothing: the model takes its bytes directly (byte_mode). */
#include "runtime/data/tokenizer_internal.h"

#include <errno.h>
#include <string.h>

#include "runtime/base/json.h"

/* The pattern of ByteLevel with use_regex: GPT-2 (Radford et al. 2019, encoder.py). */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static int parse_split(struct ps_tokenizer *tok, const json_t *obj, struct ps__tok_pre *step,
                       struct ps_error *err)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name;
    int ret = ps_json_get_string(obj, "behavior", "", tok->file, &name, err);
    if (ret < 0)
        return ret;
    int k = 0;
    while (k < 5 && strcmp(name, names[k]) != 0)
        k++;
    if (k == 5)
        return ps_error_full(err, PS_EFORMAT, tok->file, "pre_tokenizer.behavior", NULL,
                             "unknown split behavior \"%.60s\"", name);
    step->behavior = (enum ps__tok_behavior)k;
    ret = ps_json_get_bool(obj, "invert", false, tok->file, &step->invert, err);
    if (ret < 0)
        return ret;
    return ps__tok_pattern_parse(tok, json_object_get(obj, "pattern"), "pre_tokenizer.pattern",
                                 &step->pattern, err);
}

static int parse_byte_level(struct ps_tokenizer *tok, const json_t *obj, struct ps__tok_pre *step,
                            struct ps_error *err)
{
    int ret =
        ps_json_get_bool(obj, "add_prefix_space", true, tok->file, &step->add_prefix_space, err);
    if (ret == 0)
        ret = ps_json_get_bool(obj, "use_regex", true, tok->file, &step->use_regex, err);
    if (ret < 0 || !step->use_regex)
        return ret;
    step->behavior = PS__TOK_ISOLATED;
    return ps__tok_regex_create(tok, &step->pattern.regex, gpt2_pattern, sizeof gpt2_pattern - 1,
                                "pre_tokenizer", err);
}

static int parse_metaspace(struct ps_tokenizer *tok, const json_t *obj, struct ps__tok_pre *step,
                           struct ps_error *err)
{
    const char *scheme;
    bool add_prefix;
    size_t size = 0;
    int ret = ps__tok_string(tok, obj, "replacement", &step->replacement, err);
    if (ret == 0)
        ret = ps_json_get_bool(obj, "add_prefix_space", true, tok->file, &add_prefix, err);
    if (ret == 0)
        ret = ps_json_get_bool(obj, "split", true, tok->file, &step->split, err);
    if (ret == 0)
        ret = ps_json_get_string(obj, "prepend_scheme", add_prefix ? "always" : "never", tok->file,
                                 &scheme, err);
    if (ret < 0)
        return ret;
    if (step->replacement.len)
        PS_IGNORE(ps__tok_char_at(step->replacement.bytes, step->replacement.len, 0, &size) < 0,
                  "valid text");
    if (size == 0 || size != step->replacement.len)
        return ps_error_full(err, PS_EFORMAT, tok->file, "pre_tokenizer.replacement", NULL,
                             "the replacement of Metaspace must be one character");
    if (strcmp(scheme, "always") == 0)
        step->prepend = PS__TOK_PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        step->prepend = PS__TOK_PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0)
        step->prepend = PS__TOK_PREPEND_NEVER;
    else
        return ps_error_full(err, PS_EFORMAT, tok->file, "pre_tokenizer.prepend_scheme", NULL,
                             "unknown prepend_scheme \"%.60s\"", scheme);
    if (!add_prefix && step->prepend != PS__TOK_PREPEND_NEVER)
        return ps_error_full(err, PS_EFORMAT, tok->file, "pre_tokenizer.prepend_scheme", NULL,
                             "add_prefix_space false contradicts prepend_scheme \"%s\"", scheme);
    /* Cutting at the replacement uses the Split machinery. */
    step->pattern.literal = step->replacement;
    step->behavior = PS__TOK_MERGED_WITH_NEXT;
    return 0;
}

static int parse_one(struct ps_tokenizer *tok, const json_t *obj, const char *type,
                     struct ps_error *err)
{
    if (tok->pre_count == PS__TOK_STEPS_MAX)
        return ps_error_full(err, PS_EFORMAT, tok->file, "pre_tokenizer", NULL,
                             "more than %d pre-tokenizers", PS__TOK_STEPS_MAX);
    struct ps__tok_pre *step = &tok->pres[tok->pre_count];
    *step = (struct ps__tok_pre){0};
    if (strcmp(type, "Split") == 0) {
        tok->pre_count++;
        step->kind = PS__TOK_PRE_SPLIT;
        return parse_split(tok, obj, step, err);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        tok->pre_count++;
        step->kind = PS__TOK_PRE_BYTE_LEVEL;
        return parse_byte_level(tok, obj, step, err);
    }
    if (strcmp(type, "Metaspace") == 0) {
        tok->pre_count++;
        step->kind = PS__TOK_PRE_METASPACE;
        return parse_metaspace(tok, obj, step, err);
    }
    if (strcmp(type, "Digits") == 0) {
        bool individual;
        int ret = ps_json_get_bool(obj, "individual_digits", false, tok->file, &individual, err);
        step->kind = PS__TOK_PRE_DIGITS;
        step->behavior = individual ? PS__TOK_ISOLATED : PS__TOK_CONTIGUOUS;
        tok->pre_count++;
        return ret;
    }
    return ps__tok_unsupported(tok, "pre_tokenizer", type, err);
}

int ps__tok_pre_parse(struct ps_tokenizer *tok, const json_t *obj, struct ps_error *err)
{
    if (!obj || json_is_null(obj))
        return 0;
    const char *type = ps__tok_type(obj);
    if (!type)
        return ps_error_full(err, PS_EFORMAT, tok->file, "pre_tokenizer", NULL,
                             "a pre-tokenizer without a type");
    if (strcmp(type, "Sequence") != 0)
        return parse_one(tok, obj, type, err);
    const json_t *list = json_object_get(obj, "pretokenizers");
    if (!json_is_array(list))
        return ps_error_full(err, PS_EFORMAT, tok->file, "pre_tokenizer.pretokenizers", NULL,
                             "a sequence of pre-tokenizers must be an array");
    for (size_t i = 0; i < json_array_size(list); i++) {
        int ret = ps__tok_pre_parse(tok, json_array_get(list, i), err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* ---- running ---- */

static int find_digits(const char *bytes, size_t len, struct ps__tok_spans *out)
{
    out->count = 0;
    for (size_t i = 0, size; i < len; i += size) {
        if (!ps__tok_is_numeric(ps__tok_char_at(bytes, len, i, &size)))
            continue;
        int ret = ps__tok_spans_put(out, i, i + size);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Appends the pieces of one split, in order; empty ones vanish. */
struct cutter {
    struct ps__tok_spans *out;
    enum ps__tok_behavior behavior;
    size_t base;
    size_t begin, end; /* piece under construction */
    bool open;         /* there is one */
    bool was_match;    /* the part before was a match */
};

static int cut_flush(struct cutter *c)
{
    int ret = 0;
    if (c->open && c->begin < c->end)
        ret = ps__tok_spans_put(c->out, c->base + c->begin, c->base + c->end);
    c->open = false;
    return ret;
}

/* The next part [begin, end), a match or what is between two. */
static int cut_part(struct cutter *c, size_t begin, size_t end, bool is_match)
{
    bool join = false, drop = false, first = !c->open;
    switch (c->behavior) {
    case PS__TOK_REMOVED:
        drop = is_match;
        break;
    case PS__TOK_ISOLATED:
        break;
    case PS__TOK_CONTIGUOUS:
        join = is_match == c->was_match;
        break;
    case PS__TOK_MERGED_WITH_PREVIOUS:
        join = is_match && !c->was_match;
        break;
    case PS__TOK_MERGED_WITH_NEXT:
        /* A match goes to the part after it, unless that is a match that already has one. */
        join = c->was_match && !is_match;
        break;
    }
    c->was_match = is_match;
    if (join && !first) {
        c->end = end;
        return 0;
    }
    int ret = cut_flush(c);
    c->open = !drop;
    c->begin = begin;
    c->end = end;
    return ret;
}

/* Cut [from, to) of the text by the matches in tok->matches (relative to from). */
static int cut_piece(struct ps_tokenizer *tok, const struct ps__tok_pre *step,
                     struct ps__tok_span piece, struct ps__tok_spans *out)
{
    struct cutter c = {.out = out, .behavior = step->behavior, .base = piece.begin};
    size_t done = 0, len = piece.end - piece.begin;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < tok->matches.count; i++) {
        struct ps__tok_span m = tok->matches.items[i];
        if (done < m.begin)
            ret = cut_part(&c, done, m.begin, step->invert);
        if (ret == 0)
            ret = cut_part(&c, m.begin, m.end, !step->invert);
        done = m.end;
    }
    if (ret == 0 && done < len)
        ret = cut_part(&c, done, len, step->invert);
    return ret == 0 ? cut_flush(&c) : ret;
}

static int cut_all(struct ps_tokenizer *tok, const struct ps__tok_pre *step,
                   const struct ps__tok_view *text, const struct ps__tok_spans *in,
                   struct ps__tok_spans *out, struct ps_error *err)
{
    out->count = 0;
    for (size_t i = 0; i < in->count; i++) {
        struct ps__tok_span piece = in->items[i];
        const char *bytes = text->bytes + piece.begin;
        size_t len = piece.end - piece.begin;
        int ret = step->kind == PS__TOK_PRE_DIGITS
                      ? find_digits(bytes, len, &tok->matches)
                      : ps__tok_pattern_find(&step->pattern, bytes, len, &tok->matches, err);
        if (ret == 0)
            ret = cut_piece(tok, step, piece, out);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static bool starts_with(const struct ps__tok_view *v, const char *bytes, size_t len)
{
    return v->len >= len && memcmp(v->bytes, bytes, len) == 0;
}

/* Write one piece anew: prefix, replacement of spaces. */
static int write_piece(struct ps_tokenizer *tok, const struct ps__tok_pre *step,
                       const struct ps__tok_view *piece, struct ps__tok_text *out)
{
    bool metaspace = step->kind == PS__TOK_PRE_METASPACE;
    struct ps__tok_str mark = metaspace ? step->replacement : (struct ps__tok_str){" ", 1};
    bool prefix = step->add_prefix_space;
    if (metaspace)
        prefix = step->prepend == PS__TOK_PREPEND_ALWAYS ||
                 (step->prepend == PS__TOK_PREPEND_FIRST && ps__tok_view_begin(piece, 0) == 0);
    if (piece->bytes[0] == ' ' || starts_with(piece, mark.bytes, mark.len))
        prefix = false;
    size_t size, grown = prefix ? mark.len : 0, done = 0;
    PS_IGNORE(ps__tok_char_at(piece->bytes, piece->len, 0, &size) < 0, "text is valid");
    struct ps__tok_span at = {ps__tok_view_begin(piece, 0), ps__tok_view_end(piece, size)};
    int ret = prefix ? ps__tok_text_put(out, mark.bytes, mark.len, at) : 0;
    while (metaspace && ret == 0) {
        const char *space = memchr(piece->bytes + done, ' ', piece->len - done);
        if (!space)
            break;
        size_t i = (size_t)(space - piece->bytes);
        at = (struct ps__tok_span){ps__tok_view_begin(piece, i), ps__tok_view_end(piece, i + 1)};
        ret = ps__tok_text_copy(out, piece, done, i);
        if (ret == 0)
            ret = ps__tok_text_put(out, mark.bytes, mark.len, at);
        grown += mark.len;
        done = i + 1;
    }
    if (grown > tok->growth_left)
        return -E2BIG;
    tok->growth_left -= grown;
    return ret == 0 ? ps__tok_text_copy(out, piece, done, piece->len) : ret;
}

/* Rewrite every piece into `out`, or map it to the byte-level alphabet. */
static int write_all(struct ps_tokenizer *tok, const struct ps__tok_pre *step,
                     const struct ps__tok_view *text, bool bytes, const struct ps__tok_spans *in,
                     struct ps__tok_text *out, struct ps__tok_spans *pieces)
{
    out->len = 0;
    pieces->count = 0;
    for (size_t i = 0; i < in->count; i++) {
        struct ps__tok_view piece = ps__tok_view_slice(text, in->items[i].begin, in->items[i].end);
        size_t begin = out->len;
        int ret = 0;
        if (!bytes)
            ret = write_piece(tok, step, &piece, out);
        else if (piece.len > tok->growth_left)
            ret = -E2BIG;
        else
            ret = ps__tok_norm_byte_level(&piece, out);
        if (bytes && ret == 0)
            tok->growth_left -= piece.len;
        if (ret == 0)
            ret = ps__tok_spans_put(pieces, begin, out->len);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* State of a run: the text, its pieces in tok->pieces[which], the buffer that is free next. */
struct run {
    struct ps__tok_view text;
    int which, buffer;
};

static int rewrite(struct ps_tokenizer *tok, const struct ps__tok_pre *step, bool bytes,
                   struct run *r)
{
    int ret = write_all(tok, step, &r->text, bytes, &tok->pieces[r->which],
                        &tok->pre_text[r->buffer], &tok->pieces[!r->which]);
    r->text = ps__tok_text_view(&tok->pre_text[r->buffer]);
    r->buffer = !r->buffer;
    r->which = !r->which;
    return ret;
}

static int run_step(struct ps_tokenizer *tok, const struct ps__tok_pre *step, bool last,
                    struct run *r, struct ps_error *err)
{
    bool byte_level = step->kind == PS__TOK_PRE_BYTE_LEVEL;
    bool metaspace = step->kind == PS__TOK_PRE_METASPACE;
    int ret = 0;
    if (metaspace || (byte_level && step->add_prefix_space))
        ret = rewrite(tok, step, false, r);
    bool cut = metaspace ? step->split : byte_level ? step->use_regex : true;
    if (ret == 0 && cut) {
        ret = cut_all(tok, step, &r->text, &tok->pieces[r->which], &tok->pieces[!r->which], err);
        r->which = !r->which;
    }
    if (ret == 0 && byte_level && !(last && tok->byte_mode))
        ret = rewrite(tok, step, true, r);
    return ret;
}

int ps__tok_pre_run(struct ps_tokenizer *tok, const struct ps__tok_view *in,
                    struct ps__tok_view *text, int *which, struct ps_error *err)
{
    struct run r = {.text = *in};
    tok->pieces[0].count = 0;
    int ret = in->len ? ps__tok_spans_put(&tok->pieces[0], 0, in->len) : 0;
    for (size_t i = 0; ret == 0 && i < tok->pre_count; i++)
        ret = run_step(tok, &tok->pres[i], i + 1 == tok->pre_count, &r, err);
    if (ret == -ENOMEM)
        return ps_error_set(err, ret, "out of memory");
    if (ret == -E2BIG)
        return ps_error_full(err, PS_EFORMAT, tok->file, "pre_tokenizer", NULL,
                             "the pre-tokenizer makes the text more than 64 times longer");
    *text = r.text;
    *which = r.which;
    return ret;
}
