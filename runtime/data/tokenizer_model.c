/* The BPE model of a tokenizer.json: vocabulary, merges, and the tables for encoding. */
#include "runtime/data/tokenizer_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/json.h"

static const size_t stride = sizeof(struct ps__tok_vocab_entry);

int32_t ps__tok_vocab_id(const struct ps__tok_model *m, const char *bytes, size_t len)
{
    int32_t idx = ps__tok_map_find(&m->vocab_map, m->vocab, stride, bytes, len);
    return idx < 0 ? -1 : m->vocab[idx].id;
}

int32_t ps__tok_char_id(const struct ps__tok_model *m, const char *bytes, size_t size, int32_t c)
{
    return c < 65536 ? m->char_ids[c] : ps__tok_vocab_id(m, bytes, size);
}

const struct ps__tok_vocab_entry *ps__tok_vocab_entry(const struct ps__tok_model *m, int32_t id)
{
    if (id < 0)
        return NULL;
    if ((size_t)id < m->vocab_count && m->vocab[id].id == id)
        return &m->vocab[id];
    size_t lo = 0, hi = m->vocab_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (m->vocab[mid].id < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < m->vocab_count && m->vocab[lo].id == id ? &m->vocab[lo] : NULL;
}

static int by_id(const void *a, const void *b)
{
    int32_t x = ((const struct ps__tok_vocab_entry *)a)->id;
    int32_t y = ((const struct ps__tok_vocab_entry *)b)->id;
    return (x > y) - (x < y);
}

static int bad(const struct ps_tokenizer *tok, struct ps_error *err, const char *field,
               const char *what, const char *token)
{
    return ps_error_full(err, PS_EFORMAT, tok->file, field, NULL, "%s: \"%.200s\"", what, token);
}

static int read_entry(struct ps_tokenizer *tok, const char *key, const json_t *value,
                      struct ps__tok_vocab_entry *out, struct ps_error *err)
{
    size_t len = strlen(key);
    if (len > PS__TOK_TOKEN_BYTES_MAX)
        return bad(tok, err, "model.vocab", "token longer than 4096 bytes", key);
    if (!json_is_integer(value))
        return bad(tok, err, "model.vocab", "id is not an integer", key);
    json_int_t id = json_integer_value(value);
    if (id < 0 || id >= PS__TOK_ID_MAX)
        return bad(tok, err, "model.vocab", "id is not in [0, 2097152)", key);
    out->id = (int32_t)id;
    out->text.len = (uint32_t)len;
    out->text.bytes = ps__tok_arena_copy(&tok->arena, key, len);
    return out->text.bytes ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
}

static int read_vocab(struct ps_tokenizer *tok, json_t *vocab, struct ps_error *err)
{
    struct ps__tok_model *m = &tok->model;
    if (!json_is_object(vocab))
        return ps_error_full(err, PS_EFORMAT, tok->file, "model.vocab", NULL,
                             "the vocabulary must be an object of token: id");
    size_t count = json_object_size(vocab);
    if (count > PS__TOK_ID_MAX)
        return ps_error_full(err, PS_EFORMAT, tok->file, "model.vocab", NULL, "more than %d tokens",
                             PS__TOK_ID_MAX);
    m->vocab = calloc(count + 1, sizeof *m->vocab);
    if (!m->vocab)
        return ps_error_set(err, -ENOMEM, "out of memory");
    bool sorted = true;
    for (void *it = json_object_iter(vocab); it; it = json_object_iter_next(vocab, it)) {
        size_t i = m->vocab_count;
        int ret = read_entry(tok, json_object_iter_key(it), json_object_iter_value(it),
                             &m->vocab[i], err);
        if (ret < 0)
            return ret;
        sorted = sorted && (i == 0 || m->vocab[i - 1].id < m->vocab[i].id);
        m->vocab_count++;
    }
    if (!sorted)
        qsort(m->vocab, m->vocab_count, sizeof *m->vocab, by_id);
    int ret = ps__tok_map_init(&m->vocab_map, m->vocab_count);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    for (size_t i = 0; i < m->vocab_count; i++) {
        if (i > 0 && m->vocab[i - 1].id == m->vocab[i].id)
            return bad(tok, err, "model.vocab", "two tokens with one id", m->vocab[i].text.bytes);
        if (ps__tok_map_insert(&m->vocab_map, m->vocab, stride, (int32_t)i) != (int32_t)i)
            return bad(tok, err, "model.vocab", "token given twice", m->vocab[i].text.bytes);
    }
    return 0;
}

/* Both spellings: "left right" and ["left", "right"]. */
static int read_merge(struct ps_tokenizer *tok, const json_t *item, struct ps__tok_str side[2],
                      struct ps_error *err)
{
    if (json_is_string(item)) {
        const char *text = json_string_value(item), *space = strchr(text, ' ');
        if (!space || strchr(space + 1, ' '))
            return bad(tok, err, "model.merges", "a merge must be two tokens and one space", text);
        side[0] = (struct ps__tok_str){text, (uint32_t)(space - text)};
        side[1] = (struct ps__tok_str){space + 1, (uint32_t)strlen(space + 1)};
        return 0;
    }
    for (size_t k = 0; k < 2; k++) {
        const json_t *s = json_array_size(item) == 2 ? json_array_get(item, k) : NULL;
        if (!json_is_string(s))
            return ps_error_full(err, PS_EFORMAT, tok->file, "model.merges", NULL,
                                 "a merge must be \"left right\" or [\"left\", \"right\"]");
        side[k] = (struct ps__tok_str){json_string_value(s), (uint32_t)json_string_length(s)};
    }
    return 0;
}

static int add_merge(struct ps_tokenizer *tok, const json_t *item, uint32_t rank,
                     struct ps_error *err)
{
    struct ps__tok_model *m = &tok->model;
    struct ps__tok_str side[2];
    char joined[2 * PS__TOK_TOKEN_BYTES_MAX];
    int ret = read_merge(tok, item, side, err);
    if (ret < 0)
        return ret;
    int32_t left = ps__tok_vocab_id(m, side[0].bytes, side[0].len);
    int32_t right = ps__tok_vocab_id(m, side[1].bytes, side[1].len);
    if (left < 0 || right < 0)
        return bad(tok, err, "model.merges", "a merge names a token that is not in the vocabulary",
                   side[left < 0 ? 0 : 1].bytes);
    size_t skip = m->prefix.len < side[1].len ? m->prefix.len : side[1].len;
    size_t len = side[0].len + (side[1].len - skip);
    memcpy(joined, side[0].bytes, side[0].len);
    memcpy(joined + side[0].len, side[1].bytes + skip, side[1].len - skip);
    int32_t id = ps__tok_vocab_id(m, joined, len);
    if (id < 0)
        return ps_error_full(err, PS_EFORMAT, tok->file, "model.merges", NULL,
                             "the result of merge %u is not in the vocabulary: \"%.*s\"", rank,
                             len > 200 ? 200 : (int)len, joined);
    /* A pair given twice has the later rank, as in the reference. */
    ret = ps__tok_pairs_put(&m->merges, (uint64_t)left << 32 | (uint32_t)right, rank, id);
    return ret < 0 ? ps_error_set(err, ret, "out of memory") : 0;
}

static int read_merges(struct ps_tokenizer *tok, const json_t *merges, struct ps_error *err)
{
    if (!json_is_array(merges))
        return ps_error_full(err, PS_EFORMAT, tok->file, "model.merges", NULL,
                             "the merges must be an array");
    size_t count = json_array_size(merges);
    if (count > PS__TOK_MERGES_MAX)
        return ps_error_full(err, PS_EFORMAT, tok->file, "model.merges", NULL,
                             "more than %d merges", PS__TOK_MERGES_MAX);
    int ret = ps__tok_pairs_init(&tok->model.merges, count);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    for (size_t i = 0; i < count; i++) {
        ret = add_merge(tok, json_array_get(merges, i), (uint32_t)i, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int index_characters(struct ps__tok_model *m)
{
    m->char_ids = malloc(65536 * sizeof *m->char_ids);
    if (!m->char_ids)
        return -ENOMEM;
    memset(m->char_ids, -1, 65536 * sizeof *m->char_ids);
    for (size_t i = 0; i < m->vocab_count; i++) {
        const struct ps__tok_str *s = &m->vocab[i].text;
        size_t size = 0;
        if (s->len == 0 || s->len > 3)
            continue;
        int32_t c = ps__tok_char_at(s->bytes, s->len, 0, &size);
        if (size == s->len && c < 65536)
            m->char_ids[c] = m->vocab[i].id;
    }
    for (unsigned b = 0; b < 256; b++) {
        char text[8];
        size_t len = ps__tok_byte_spell(b, text);
        m->byte_ids[b] = ps__tok_vocab_id(m, text, len);
        int n = snprintf(text, sizeof text, "<0x%02X>", b);
        m->fallback_ids[b] = ps__tok_vocab_id(m, text, (size_t)n);
    }
    return 0;
}

/* Symbols that an entry can begin (at_end false) or end with: its character, or, as a byte token
 * or the unknown token, itself. */
static void edge_symbols(const struct ps__tok_model *m, const struct ps__tok_vocab_entry *e,
                         bool at_end, int32_t out[2])
{
    size_t at = at_end ? e->text.len : 0, size = 0;
    out[0] = -1;
    out[1] = e->id;
    if (e->text.len == 0)
        return;
    if (at_end)
        do
            at--;
        while (at > 0 && ((unsigned char)e->text.bytes[at] & 0xC0) == 0x80);
    int32_t c = ps__tok_char_at(e->text.bytes, e->text.len, at, &size);
    out[0] = ps__tok_char_id(m, e->text.bytes + at, size, c);
}

int ps__tok_model_index_joins(struct ps__tok_model *m)
{
    if (m->prefix.len || m->suffix.len || m->ignore_merges)
        return 0;
    int ret = ps__tok_pairs_init(&m->joins, 1024);
    for (size_t i = 0; ret == 0 && i <= m->merges.mask; i++) {
        uint64_t key = m->merges.slots[i].key;
        if (key == UINT64_MAX)
            continue;
        int32_t left[2], right[2];
        edge_symbols(m, ps__tok_vocab_entry(m, (int32_t)(key >> 32)), true, left);
        edge_symbols(m, ps__tok_vocab_entry(m, (int32_t)(uint32_t)key), false, right);
        for (size_t k = 0; ret == 0 && k < 4; k++) {
            int32_t a = left[k / 2], b = right[k % 2];
            if (a >= 0 && b >= 0)
                ret = ps__tok_pairs_put(&m->joins, (uint64_t)a << 32 | (uint32_t)b, 0, 0);
        }
    }
    return ret;
}

static int optional_string(struct ps_tokenizer *tok, const json_t *model, const char *key,
                           struct ps__tok_str *out, struct ps_error *err)
{
    const json_t *value = json_object_get(model, key);
    *out = (struct ps__tok_str){"", 0};
    if (!value || json_is_null(value))
        return 0;
    return ps__tok_string(tok, model, key, out, err);
}

static int read_options(struct ps_tokenizer *tok, const json_t *model, struct ps_error *err)
{
    struct ps__tok_model *m = &tok->model;
    double dropout;
    int ret = ps_json_get_real(model, "dropout", 0, 1, 0, tok->file, &dropout, err);
    if (ret == 0 && dropout > 0)
        ret = ps_error_full(err, PS_EUNSUPPORTED, tok->file, "model.dropout",
                            "set dropout to null: encoding must give the same ids every time",
                            "BPE dropout is not supported");
    if (ret == 0)
        ret = ps_json_get_bool(model, "fuse_unk", false, tok->file, &m->fuse_unk, err);
    if (ret == 0)
        ret = ps_json_get_bool(model, "byte_fallback", false, tok->file, &m->byte_fallback, err);
    if (ret == 0)
        ret = ps_json_get_bool(model, "ignore_merges", false, tok->file, &m->ignore_merges, err);
    if (ret == 0)
        ret = optional_string(tok, model, "continuing_subword_prefix", &m->prefix, err);
    if (ret == 0)
        ret = optional_string(tok, model, "end_of_word_suffix", &m->suffix, err);
    return ret;
}

int ps__tok_model_parse(struct ps_tokenizer *tok, const json_t *model, struct ps_error *err)
{
    struct ps__tok_model *m = &tok->model;
    const char *type = ps__tok_type(model);
    m->unk_id = -1;
    if (!json_is_object(model))
        return ps_error_full(err, PS_EFORMAT, tok->file, "model", NULL, "no model");
    if (type ? strcmp(type, "BPE") != 0 : !json_object_get(model, "merges"))
        return ps_error_full(
            err, PS_EUNSUPPORTED, tok->file, "model.type", "Penstock reads BPE tokenizers only",
            "tokenizer model of type \"%.60s\" is not supported", type ? type : "");
    int ret = read_options(tok, model, err);
    if (ret == 0)
        ret = read_vocab(tok, json_object_get(model, "vocab"), err);
    if (ret == 0)
        ret = read_merges(tok, json_object_get(model, "merges"), err);
    if (ret < 0)
        return ret;
    ret = index_characters(m);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    struct ps__tok_str unk;
    ret = optional_string(tok, model, "unk_token", &unk, err);
    if (ret == 0 && unk.len)
        m->unk_id = ps__tok_vocab_id(m, unk.bytes, unk.len);
    return ret;
}

void ps__tok_model_fini(struct ps__tok_model *m)
{
    free(m->vocab);
    free(m->char_ids);
    ps__tok_map_fini(&m->vocab_map);
    ps__tok_pairs_fini(&m->merges);
    ps__tok_pairs_fini(&m->joins);
}
