/* Byte pair encoding of one piece: repeatedly merge the adjacent pair of lowest rank, the leftmost
 * first among equals (Sennrich et al. 2016, arXiv:1508.07909).
 *
 * Design: short pieces (nearly all, in byte-level tokenizers) rescan an array of ranks, O(n^2) in
 * a handful of symbols; long ones (SentencePiece-style files make one piece of a whole text) use
 * a heap of candidate pairs over a linked list, O(n log n). Both give the same result. Results of
 * short pieces are kept in a direct-mapped cache.
 *
 * A long piece is first cut where no merge can ever happen: between two symbols such that no merge
 * has a left token ending in the one and a right token beginning with the other. Parts cannot
 * influence each other, so the result is the same; in SentencePiece-style vocabularies they are
 * words, and a text becomes as fast as with a pre-tokenizer (measured: 5 times).
 *
 * Invariants of the heap: an item whose symbols have changed since it was pushed is stale and is
 * recognised when it is popped, because the pair at its position no longer merges to its id. */
#include "runtime/data/tokenizer_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define SHORT_SYMBOLS 40
#define CACHE_SLOTS 16384
#define CACHE_KEY_BYTES 24
#define CACHE_TOKENS 6

struct ps__tok_cache_slot {
    char key[CACHE_KEY_BYTES];
    uint8_t key_len; /* 0: free */
    uint8_t count;
    uint8_t ends[CACHE_TOKENS];
    int32_t ids[CACHE_TOKENS];
};

void ps__tok_bpe_fini(struct ps_tokenizer *tok)
{
    free(tok->symbols);
    free(tok->heap);
    free(tok->word);
    free(tok->cache);
}

static int add_symbol(struct ps_tokenizer *tok, int32_t id, size_t begin, size_t end)
{
    int ret = ps__tok_reserve((void **)&tok->symbols, &tok->symbol_capacity, tok->symbol_count + 1,
                              sizeof *tok->symbols);
    if (ret < 0)
        return ret;
    tok->symbols[tok->symbol_count++] =
        (struct ps__tok_symbol){.id = id, .begin = (uint32_t)begin, .end = (uint32_t)end};
    return 0;
}

/* ---- first symbols ---- */

/* Id of one character with the prefix and suffix that its place asks for, or -1. */
static int32_t char_id(const struct ps__tok_model *m, const char *bytes, size_t size, int32_t c,
                       bool first, bool last)
{
    size_t before = first ? 0 : m->prefix.len, after = last ? m->suffix.len : 0;
    if (before + after == 0)
        return ps__tok_char_id(m, bytes, size, c);
    char text[2 * PS__TOK_TOKEN_BYTES_MAX + 4];
    memcpy(text, m->prefix.bytes, before);
    memcpy(text + before, bytes, size);
    memcpy(text + before + size, m->suffix.bytes, after);
    return ps__tok_vocab_id(m, text, before + size + after);
}

/* An unknown stretch that has not been emitted yet; end == 0: none. */
struct unknown {
    size_t begin, end;
};

static int flush_unknown(struct ps_tokenizer *tok, struct unknown *u)
{
    if (u->end == 0)
        return 0;
    int ret = add_symbol(tok, tok->model.unk_id, u->begin, u->end);
    u->end = 0;
    return ret;
}

static int add_unknown(struct ps_tokenizer *tok, struct unknown *u, size_t begin, size_t end)
{
    if (tok->model.unk_id < 0)
        return 0; /* the reference drops the character too */
    if (u->end && tok->model.fuse_unk) {
        u->end = end;
        return 0;
    }
    int ret = flush_unknown(tok, u);
    u->begin = begin;
    u->end = end;
    return ret;
}

/* The fallback tokens of the bytes of one spelled character. Returns 1 when all exist. */
static int add_fallback(struct ps_tokenizer *tok, const char *bytes, size_t begin, size_t size)
{
    const int32_t *ids = tok->model.fallback_ids;
    for (size_t k = 0; k < size; k++)
        if (ids[(unsigned char)bytes[begin + k]] < 0)
            return 0;
    for (size_t k = 0; k < size; k++) {
        int ret = add_symbol(tok, ids[(unsigned char)bytes[begin + k]], begin + k, begin + k + 1);
        if (ret < 0)
            return ret;
    }
    return 1;
}

static int first_symbols(struct ps_tokenizer *tok, const char *bytes, size_t len)
{
    const struct ps__tok_model *m = &tok->model;
    struct unknown u = {0};
    for (size_t i = 0, size; i < len; i += size) {
        int32_t c = ps__tok_char_at(bytes, len, i, &size);
        int32_t id = char_id(m, bytes + i, size, c, i == 0, i + size == len);
        int ret;
        if (id >= 0) {
            ret = flush_unknown(tok, &u);
            if (ret == 0)
                ret = add_symbol(tok, id, i, i + size);
        } else {
            /* A pending unknown stays behind the fallback bytes: so does the reference. */
            ret = m->byte_fallback ? add_fallback(tok, bytes, i, size) : 0;
            if (ret == 0)
                ret = add_unknown(tok, &u, i, i + size);
        }
        if (ret < 0)
            return ret;
    }
    return flush_unknown(tok, &u);
}

/* Byte-level alphabet: one symbol a byte (never with a prefix or suffix: see byte_mode). */
static int first_bytes(struct ps_tokenizer *tok, const char *bytes, size_t len)
{
    struct unknown u = {0};
    for (size_t i = 0; i < len; i++) {
        int32_t id = tok->model.byte_ids[(unsigned char)bytes[i]];
        int ret = id < 0 ? add_unknown(tok, &u, i, i + 1) : flush_unknown(tok, &u);
        if (ret == 0 && id >= 0)
            ret = add_symbol(tok, id, i, i + 1);
        if (ret < 0)
            return ret;
    }
    return flush_unknown(tok, &u);
}

/* ---- merging ---- */

static const struct ps__tok_pair *find_merge(const struct ps__tok_model *m, int32_t left,
                                             int32_t right)
{
    return ps__tok_pairs_find(&m->merges, (uint64_t)left << 32 | (uint32_t)right);
}

static void merge_short(struct ps_tokenizer *tok)
{
    const struct ps__tok_pair *pair[SHORT_SYMBOLS];
    struct ps__tok_symbol *s = tok->symbols;
    size_t n = tok->symbol_count;
    for (size_t i = 0; i + 1 < n; i++)
        pair[i] = find_merge(&tok->model, s[i].id, s[i + 1].id);
    while (n > 1) {
        size_t best = n;
        for (size_t i = 0; i + 1 < n; i++)
            if (pair[i] && (best == n || pair[i]->rank < pair[best]->rank))
                best = i;
        if (best == n)
            break;
        s[best].id = pair[best]->id;
        s[best].end = s[best + 1].end;
        memmove(&s[best + 1], &s[best + 2], (n - best - 2) * sizeof *s);
        memmove(&pair[best], &pair[best + 1], (n - best - 2) * sizeof(pair[0]));
        n--;
        if (best > 0)
            pair[best - 1] = find_merge(&tok->model, s[best - 1].id, s[best].id);
        if (best + 1 < n)
            pair[best] = find_merge(&tok->model, s[best].id, s[best + 1].id);
    }
    tok->symbol_count = n;
}

static int heap_push(struct ps_tokenizer *tok, size_t pos)
{
    const struct ps__tok_symbol *s = &tok->symbols[pos];
    const struct ps__tok_pair *pair =
        s->next < 0 ? NULL : find_merge(&tok->model, s->id, tok->symbols[s->next].id);
    if (!pair)
        return 0;
    int ret = ps__tok_reserve((void **)&tok->heap, &tok->heap_capacity, tok->heap_count + 1,
                              sizeof *tok->heap);
    if (ret < 0)
        return ret;
    struct ps__tok_heap_item *h = tok->heap;
    struct ps__tok_heap_item item = {.key = (uint64_t)pair->rank << 32 | (uint32_t)pos,
                                     .id = pair->id};
    size_t i = tok->heap_count++;
    for (; i > 0 && h[(i - 1) / 2].key > item.key; i = (i - 1) / 2)
        h[i] = h[(i - 1) / 2];
    h[i] = item;
    return 0;
}

static struct ps__tok_heap_item heap_pop(struct ps_tokenizer *tok)
{
    struct ps__tok_heap_item *h = tok->heap, top = h[0];
    size_t n = --tok->heap_count, i = 0;
    struct ps__tok_heap_item last = h[n];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && h[child + 1].key < h[child].key)
            child++;
        if (h[child].key >= last.key)
            break;
        h[i] = h[child];
    }
    h[i] = last;
    return top;
}

static int merge_long(struct ps_tokenizer *tok)
{
    struct ps__tok_symbol *s = tok->symbols;
    size_t n = tok->symbol_count;
    tok->heap_count = 0;
    for (size_t i = 0; i < n; i++) {
        s[i].prev = (int32_t)i - 1;
        s[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i < n; i++) {
        int ret = heap_push(tok, i);
        if (ret < 0)
            return ret;
    }
    while (tok->heap_count) {
        struct ps__tok_heap_item top = heap_pop(tok);
        size_t pos = (uint32_t)top.key;
        if (s[pos].id < 0 || s[pos].next < 0)
            continue;
        struct ps__tok_symbol *right = &s[s[pos].next];
        const struct ps__tok_pair *pair = find_merge(&tok->model, s[pos].id, right->id);
        if (!pair || pair->id != top.id)
            continue;
        s[pos].id = top.id;
        s[pos].end = right->end;
        s[pos].next = right->next;
        right->id = -1;
        if (right->next >= 0)
            s[right->next].prev = (int32_t)pos;
        int ret = s[pos].prev >= 0 ? heap_push(tok, (size_t)s[pos].prev) : 0;
        if (ret == 0)
            ret = heap_push(tok, pos);
        if (ret < 0)
            return ret;
    }
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        if (s[i].id >= 0)
            s[count++] = s[i];
    tok->symbol_count = count;
    return 0;
}

/* ---- cache ---- */

static struct ps__tok_cache_slot *cache_slot(struct ps_tokenizer *tok, const char *bytes,
                                             size_t len)
{
    if (len > CACHE_KEY_BYTES || len == 0)
        return NULL;
    if (!tok->cache)
        tok->cache = calloc(CACHE_SLOTS, sizeof *tok->cache); /* none: only slower */
    if (!tok->cache)
        return NULL;
    return &tok->cache[XXH3_64bits(bytes, len) % CACHE_SLOTS];
}

static void cache_store(const struct ps_tokenizer *tok, struct ps__tok_cache_slot *slot,
                        const char *bytes, size_t len)
{
    if (tok->symbol_count > CACHE_TOKENS)
        return;
    size_t at = 0;
    for (size_t i = 0; i < tok->symbol_count; i++) {
        if (tok->symbols[i].begin != at)
            return; /* a dropped character: the ends alone do not tell */
        at = tok->symbols[i].end;
    }
    memcpy(slot->key, bytes, len);
    slot->key_len = (uint8_t)len;
    slot->count = (uint8_t)tok->symbol_count;
    for (size_t i = 0; i < tok->symbol_count; i++) {
        slot->ids[i] = tok->symbols[i].id;
        slot->ends[i] = (uint8_t)tok->symbols[i].end;
    }
}

static int cache_load(struct ps_tokenizer *tok, const struct ps__tok_cache_slot *slot)
{
    size_t at = 0;
    for (size_t i = 0; i < slot->count; i++) {
        int ret = add_symbol(tok, slot->ids[i], at, slot->ends[i]);
        if (ret < 0)
            return ret;
        at = slot->ends[i];
    }
    return 0;
}

/* Id of a whole piece, or -1. */
static int whole_word(struct ps_tokenizer *tok, const char *bytes, size_t len, int32_t *id)
{
    *id = -1;
    if (len > PS__TOK_TOKEN_BYTES_MAX)
        return 0;
    if (!tok->byte_mode) {
        *id = ps__tok_vocab_id(&tok->model, bytes, len);
        return 0;
    }
    int ret = ps__tok_reserve((void **)&tok->word, &tok->word_capacity, 2 * len, 1);
    if (ret < 0)
        return ret;
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += ps__tok_byte_spell((unsigned char)bytes[i], tok->word + n);
    *id = ps__tok_vocab_id(&tok->model, tok->word, n);
    return 0;
}

size_t ps__tok_bpe_part(const struct ps_tokenizer *tok, const char *bytes, size_t len)
{
    const struct ps__tok_model *m = &tok->model;
    if (tok->byte_mode || !m->joins.slots || len <= CACHE_KEY_BYTES / 2)
        return len;
    int32_t before = -1;
    for (size_t i = 0, size; i < len; i += size) {
        int32_t c = ps__tok_char_at(bytes, len, i, &size);
        int32_t id = ps__tok_char_id(m, bytes + i, size, c);
        /* Next to an unknown character nothing is cut: unknowns may fuse. */
        if (before >= 0 && id >= 0 &&
            !ps__tok_pairs_find(&m->joins, (uint64_t)before << 32 | (uint32_t)id))
            return i;
        before = id;
    }
    return len;
}

int ps__tok_bpe_word(struct ps_tokenizer *tok, const char *bytes, size_t len, struct ps_error *err)
{
    tok->symbol_count = 0;
    struct ps__tok_cache_slot *slot = cache_slot(tok, bytes, len);
    int ret = 0;
    if (slot && slot->key_len == len && memcmp(slot->key, bytes, len) == 0) {
        ret = cache_load(tok, slot);
        return ret < 0 ? ps_error_set(err, ret, "out of memory") : 0;
    }
    int32_t id = -1;
    if (tok->model.ignore_merges)
        ret = whole_word(tok, bytes, len, &id);
    if (ret == 0 && id >= 0)
        ret = add_symbol(tok, id, 0, len);
    else if (ret == 0)
        ret = tok->byte_mode ? first_bytes(tok, bytes, len) : first_symbols(tok, bytes, len);
    if (ret == 0 && tok->symbol_count > SHORT_SYMBOLS)
        ret = merge_long(tok);
    else if (ret == 0)
        merge_short(tok);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    if (slot)
        cache_store(tok, slot, bytes, len);
    return 0;
}
