/* Added tokens: strings that are recognised in the text before the model sees it.
 *
 * Tokens with normalized=false are looked for in the raw text, the others in each normalised
 * section, spelled as the normalizer spells them. Matching is leftmost-longest; a match that fails
 * its word boundary test is passed over whole, as in the reference. */
#include "runtime/data/tokenizer_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/json.h"

static const size_t stride = sizeof(struct ps__tok_added);

static int parse_one(struct ps_tokenizer *tok, const json_t *obj, struct ps__tok_added *out,
                     struct ps_error *err)
{
    static const char field[] = "added_tokens";
    int64_t id;
    int ret = ps__tok_string(tok, obj, "content", &out->text, err);
    if (ret == 0 && out->text.len == 0)
        ret = ps_error_full(err, PS_EFORMAT, tok->file, field, NULL, "an added token is empty");
    if (ret == 0)
        ret = ps_json_get_int(obj, "id", 0, PS__TOK_ID_MAX - 1, -1, tok->file, &id, err);
    if (ret == 0 && id < 0)
        ret = ps_error_full(err, PS_EFORMAT, tok->file, field, NULL,
                            "added token \"%.200s\" has no id", out->text.bytes);
    if (ret < 0)
        return ret;
    out->id = (int32_t)id;
    ret = ps_json_get_bool(obj, "special", false, tok->file, &out->special, err);
    if (ret == 0)
        ret = ps_json_get_bool(obj, "single_word", false, tok->file, &out->single_word, err);
    if (ret == 0)
        ret = ps_json_get_bool(obj, "lstrip", false, tok->file, &out->lstrip, err);
    if (ret == 0)
        ret = ps_json_get_bool(obj, "rstrip", false, tok->file, &out->rstrip, err);
    if (ret == 0)
        ret = ps_json_get_bool(obj, "normalized", !out->special, tok->file, &out->normalized, err);
    return ret;
}

/* An added token is either an entry of the vocabulary under its id, or new under a free id. */
static int check_id(const struct ps_tokenizer *tok, const struct ps__tok_added *a,
                    struct ps_error *err)
{
    int32_t own = ps__tok_vocab_id(&tok->model, a->text.bytes, a->text.len);
    const struct ps__tok_vocab_entry *other = ps__tok_vocab_entry(&tok->model, a->id);
    if (own >= 0 ? own == a->id : !other)
        return 0;
    return ps_error_full(err, PS_EFORMAT, tok->file, "added_tokens", NULL,
                         "added token \"%.200s\" has id %d, but the vocabulary gives %s %d",
                         a->text.bytes, a->id, own >= 0 ? "it" : "another token",
                         own >= 0 ? own : a->id);
}

static int compare_ids(const void *a, const void *b)
{
    const int32_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* added_by_id holds id << 0 pairs flattened: sort (id, index) pairs, then keep the indices. */
static int index_by_id(struct ps_tokenizer *tok, struct ps_error *err)
{
    size_t n = tok->added_count;
    int32_t(*pairs)[2] = calloc(n + 1, sizeof *pairs);
    tok->added_by_id = calloc(n + 1, sizeof *tok->added_by_id);
    int ret = 0;
    if (!pairs || !tok->added_by_id) {
        free(pairs);
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < n; i++) {
        pairs[i][0] = tok->added[i].id;
        pairs[i][1] = (int32_t)i;
    }
    qsort(pairs, n, sizeof *pairs, compare_ids);
    for (size_t i = 0; i < n && ret == 0; i++) {
        tok->added_by_id[i] = pairs[i][1];
        if (i > 0 && pairs[i - 1][0] == pairs[i][0])
            ret = ps_error_full(err, PS_EFORMAT, tok->file, "added_tokens", NULL,
                                "two added tokens with id %d", pairs[i][0]);
    }
    free(pairs);
    return ret;
}

int ps__tok_added_parse(struct ps_tokenizer *tok, const json_t *list, struct ps_error *err)
{
    if (list && !json_is_null(list) && !json_is_array(list))
        return ps_error_full(err, PS_EFORMAT, tok->file, "added_tokens", NULL,
                             "added_tokens must be an array");
    size_t count = json_array_size(list);
    tok->added = calloc(count + 1, sizeof *tok->added);
    int ret = tok->added ? ps__tok_map_init(&tok->added_map, count) : -ENOMEM;
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    for (size_t i = 0; i < count; i++) {
        struct ps__tok_added *a = &tok->added[i];
        ret = parse_one(tok, json_array_get(list, i), a, err);
        if (ret == 0)
            ret = check_id(tok, a, err);
        if (ret < 0)
            return ret;
        tok->added_count++;
        if (ps__tok_map_insert(&tok->added_map, tok->added, stride, (int32_t)i) != (int32_t)i)
            return ps_error_full(err, PS_EFORMAT, tok->file, "added_tokens", NULL,
                                 "added token given twice: \"%.200s\"", a->text.bytes);
    }
    return index_by_id(tok, err);
}

static int add_pattern(struct ps_tokenizer *tok, size_t i, struct ps_error *err)
{
    struct ps__tok_added *a = &tok->added[i];
    struct ps__tok_view text = {.bytes = a->text.bytes, .len = a->text.len};
    int ret = 0;
    if (a->normalized) {
        tok->growth_left = PS__TOK_TOKEN_BYTES_MAX * 4;
        ret = ps__tok_norm_run(tok, &text, &text, err);
        if (ret == 0 && text.len == 0)
            ret = ps_error_full(err, PS_EFORMAT, tok->file, "added_tokens", NULL,
                                "the normalizer leaves nothing of added token \"%.200s\"",
                                a->text.bytes);
    }
    if (ret < 0)
        return ret;
    a->normal.len = (uint32_t)text.len;
    a->normal.bytes = ps__tok_arena_copy(&tok->arena, text.bytes, text.len);
    if (!a->normal.bytes)
        return ps_error_set(err, -ENOMEM, "out of memory");
    ret = ps__tok_trie_add(a->normalized ? &tok->normalized_trie : &tok->raw_trie, text.bytes,
                           text.len, (int32_t)i);
    return ret < 0 ? ps_error_set(err, ret, "out of memory") : 0;
}

int ps__tok_added_index(struct ps_tokenizer *tok, struct ps_error *err)
{
    ps__tok_meter_start(&tok->meter, 0);
    int ret = ps__tok_trie_init(&tok->raw_trie);
    if (ret == 0)
        ret = ps__tok_trie_init(&tok->normalized_trie);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    /* Special tokens first: they win where two normalise to the same bytes. */
    for (int special = 1; special >= 0; special--) {
        for (size_t i = 0; i < tok->added_count; i++) {
            if (tok->added[i].special != (special == 1))
                continue;
            ret = add_pattern(tok, i, err);
            if (ret < 0)
                return ret;
        }
    }
    return 0;
}

const struct ps__tok_added *ps__tok_added_by_id(const struct ps_tokenizer *tok, int32_t id)
{
    size_t lo = 0, hi = tok->added_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (tok->added[tok->added_by_id[mid]].id < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == tok->added_count || tok->added[tok->added_by_id[lo]].id != id)
        return NULL;
    return &tok->added[tok->added_by_id[lo]];
}

/* Start of the character that ends at `end`. */
static size_t char_before(const char *bytes, size_t end)
{
    size_t at = end - 1;
    while (at > 0 && ((unsigned char)bytes[at] & 0xC0) == 0x80)
        at--;
    return at;
}

static bool is_whole_word(const struct ps__tok_added_iter *it, size_t begin, size_t end)
{
    size_t size;
    if (begin > 0 &&
        ps__tok_is_word(ps__tok_char_at(it->bytes, it->len, char_before(it->bytes, begin), &size)))
        return false;
    return end == it->len || !ps__tok_is_word(ps__tok_char_at(it->bytes, it->len, end, &size));
}

/* Find the next match that counts, widened by lstrip and rstrip. */
static bool find_match(const struct ps_tokenizer *tok, struct ps__tok_added_iter *it)
{
    size_t begin, end, size;
    int32_t idx;
    while (ps__tok_trie_next(it->trie, it->bytes, it->len, it->at, &begin, &end, &idx)) {
        const struct ps__tok_added *a = &tok->added[idx];
        it->at = end;
        if (a->single_word && !is_whole_word(it, begin, end))
            continue;
        while (a->lstrip && begin > it->done) {
            size_t at = char_before(it->bytes, begin);
            if (at < it->done || !ps__tok_is_space(ps__tok_char_at(it->bytes, it->len, at, &size)))
                break;
            begin = at;
        }
        while (a->rstrip && end < it->len &&
               ps__tok_is_space(ps__tok_char_at(it->bytes, it->len, end, &size)))
            end += size;
        it->match = a;
        it->match_begin = begin;
        it->match_end = end;
        return true;
    }
    return false;
}

bool ps__tok_added_next(const struct ps_tokenizer *tok, struct ps__tok_added_iter *it,
                        size_t *begin, size_t *end, const struct ps__tok_added **added)
{
    if (!it->pending)
        it->pending = find_match(tok, it);
    size_t stretch_end = it->pending ? it->match_begin : it->len;
    if (it->done < stretch_end) {
        *begin = it->done;
        *end = it->done = stretch_end;
        *added = NULL;
        return true;
    }
    if (!it->pending)
        return false;
    it->pending = false;
    *begin = it->match_begin;
    *end = it->match_end;
    *added = it->match;
    it->done = it->match_end;
    return true;
}
