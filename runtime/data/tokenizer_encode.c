/* Text to ids: the driver of the stages in tokenizer_internal.h. */
#include "runtime/data/tokenizer_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void ps_encoding_fini(struct ps_encoding *enc)
{
    if (!enc)
        return;
    free(enc->ids);
    free(enc->begin);
    free(enc->end);
    memset(enc, 0, sizeof *enc);
}

static int emit(struct ps_encoding *enc, int32_t id, size_t begin, size_t end)
{
    if (enc->count == enc->capacity) {
        size_t need = enc->count + 1, a = enc->capacity, b = a, c = a;
        int ret = ps__tok_reserve((void **)&enc->ids, &a, need, sizeof *enc->ids);
        if (ret == 0)
            ret = ps__tok_reserve((void **)&enc->begin, &b, need, sizeof *enc->begin);
        if (ret == 0)
            ret = ps__tok_reserve((void **)&enc->end, &c, need, sizeof *enc->end);
        if (ret < 0)
            return ret;
        enc->capacity = a;
    }
    enc->ids[enc->count] = id;
    enc->begin[enc->count] = begin;
    enc->end[enc->count++] = end;
    return 0;
}

/* A normalised stretch without added tokens. */
static int encode_stretch(struct ps_tokenizer *tok, const struct ps__tok_view *in,
                          struct ps_encoding *enc, struct ps_error *err)
{
    struct ps__tok_view text;
    int which;
    int ret = ps__tok_pre_run(tok, in, &text, &which, err);
    if (ret < 0)
        return ret;
    const struct ps__tok_spans *pieces = &tok->pieces[which];
    for (size_t i = 0; ret == 0 && i < pieces->count; i++) {
        size_t at = pieces->items[i].begin, end = pieces->items[i].end;
        while (ret == 0 && at < end) {
            size_t n = ps__tok_bpe_part(tok, text.bytes + at, end - at);
            ret = ps__tok_bpe_word(tok, text.bytes + at, n, err);
            for (size_t k = 0; ret == 0 && k < tok->symbol_count; k++) {
                const struct ps__tok_symbol *s = &tok->symbols[k];
                ret = emit(enc, s->id, ps__tok_view_begin(&text, at + s->begin),
                           ps__tok_view_end(&text, at + s->end));
            }
            at += n;
        }
    }
    return ret;
}

/* A stretch of the original text without raw added tokens. */
static int encode_section(struct ps_tokenizer *tok, const struct ps__tok_view *in,
                          struct ps_encoding *enc, struct ps_error *err)
{
    struct ps__tok_view text;
    int ret = ps__tok_norm_run(tok, in, &text, err);
    struct ps__tok_added_iter it = {
        .trie = &tok->normalized_trie, .bytes = text.bytes, .len = text.len};
    size_t begin, end;
    const struct ps__tok_added *added;
    while (ret == 0 && ps__tok_added_next(tok, &it, &begin, &end, &added)) {
        struct ps__tok_view part = ps__tok_view_slice(&text, begin, end);
        ret = added ? emit(enc, added->id, ps__tok_view_begin(&text, begin),
                           ps__tok_view_end(&text, end))
                    : encode_stretch(tok, &part, enc, err);
    }
    return ret;
}

static int encode_all(struct ps_tokenizer *tok, const char *text, size_t len, bool add_special,
                      struct ps_encoding *enc, struct ps_error *err)
{
    struct ps__tok_view whole = {.bytes = text, .len = len};
    struct ps__tok_added_iter it = {.trie = &tok->raw_trie, .bytes = text, .len = len};
    size_t begin, end;
    const struct ps__tok_added *added;
    int ret = 0;
    for (size_t i = 0; add_special && ret == 0 && i < tok->prefix_count; i++)
        ret = emit(enc, tok->prefix_ids[i], 0, 0);
    while (ret == 0 && ps__tok_added_next(tok, &it, &begin, &end, &added)) {
        struct ps__tok_view part = ps__tok_view_slice(&whole, begin, end);
        ret = added ? emit(enc, added->id, begin, end) : encode_section(tok, &part, enc, err);
    }
    for (size_t i = 0; add_special && ret == 0 && i < tok->suffix_count; i++)
        ret = emit(enc, tok->suffix_ids[i], len, len);
    return ret;
}

int ps_tokenizer_encode(struct ps_tokenizer *tok, const char *text, size_t len, bool add_special,
                        struct ps_encoding *enc, struct ps_error *err)
{
    enc->count = 0;
    /* Positions and the text after growth must fit 31 bits. */
    if (len > INT32_MAX / 2)
        return ps_error_set(err, PS_EDATA, "text of %zu bytes; at most %d are encoded at once", len,
                            INT32_MAX / 2);
    size_t valid = ps__tok_utf8_valid(text, len);
    if (valid < len)
        return ps_error_set(err, PS_EDATA, "text is not UTF-8 at byte %zu", valid);
    size_t growth = 64 * len + 65536, growth_max = INT32_MAX - len;
    tok->growth_left = growth < growth_max ? growth : growth_max;
    ps__tok_meter_start(&tok->meter, len);
    int ret = encode_all(tok, text, len, add_special, enc, err);
    if (ret < 0)
        enc->count = 0;
    return ret == -ENOMEM ? ps_error_set(err, ret, "out of memory") : ret;
}
