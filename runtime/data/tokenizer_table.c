/* Tables and buffers of the tokenizer: see tokenizer_internal.h.
 *
 * Design: hash tables are seeded from the kernel's random source, so that a vocabulary cannot be
 * built to collide; nothing is ever iterated in table order, so results do not depend on it. */
#include "runtime/data/tokenizer_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "runtime/base/checked.h"

#define BLOCK_BYTES ((size_t)1 << 18)

struct ps__tok_block {
    struct ps__tok_block *next;
    size_t used, size;
    char bytes[];
};

void ps__tok_arena_fini(struct ps__tok_arena *arena)
{
    struct ps__tok_block *b = arena->head;
    while (b) {
        struct ps__tok_block *next = b->next;
        free(b);
        b = next;
    }
    arena->head = NULL;
}

char *ps__tok_arena_copy(struct ps__tok_arena *arena, const char *bytes, size_t len)
{
    struct ps__tok_block *b = arena->head;
    if (!b || b->size - b->used < len + 1) {
        size_t size = len + 1 > BLOCK_BYTES ? len + 1 : BLOCK_BYTES;
        b = malloc(sizeof *b + size);
        if (!b)
            return NULL;
        b->next = arena->head;
        b->used = 0;
        b->size = size;
        arena->head = b;
    }
    char *out = b->bytes + b->used;
    if (len)
        memcpy(out, bytes, len);
    out[len] = 0;
    b->used += len + 1;
    return out;
}

int ps__tok_reserve(void **items, size_t *capacity, size_t need, size_t size)
{
    if (need <= *capacity)
        return 0;
    size_t next = *capacity + *capacity / 2 + 64, bytes;
    if (next < need)
        next = need;
    if (!ps_mul_size(next, size, &bytes))
        return -ENOMEM;
    void *p = realloc(*items, bytes);
    if (!p)
        return -ENOMEM;
    *items = p;
    *capacity = next;
    return 0;
}

static uint64_t random_seed(void)
{
    uint64_t seed = 0x9E3779B97F4A7C15u;
    PS_IGNORE(getrandom(&seed, sizeof seed, GRND_NONBLOCK) < 0, "a fixed seed still works");
    return seed;
}

/* Smallest power of two that holds `count` keys at 60 %. */
static size_t table_size(size_t count)
{
    size_t size = 16;
    while (size * 3 < count * 5)
        size *= 2;
    return size;
}

int ps__tok_map_init(struct ps__tok_map *map, size_t count)
{
    size_t size = table_size(count);
    map->slots = calloc(size, sizeof *map->slots);
    if (!map->slots)
        return -ENOMEM;
    map->mask = size - 1;
    map->seed = random_seed();
    return 0;
}

void ps__tok_map_fini(struct ps__tok_map *map)
{
    free(map->slots);
    map->slots = NULL;
}

static const struct ps__tok_str *key_at(const void *keys, size_t stride, size_t idx)
{
    return (const struct ps__tok_str *)(const void *)((const char *)keys + idx * stride);
}

int32_t ps__tok_map_find(const struct ps__tok_map *map, const void *keys, size_t stride,
                         const char *bytes, size_t len)
{
    if (!map->slots)
        return -1;
    uint64_t hash = XXH3_64bits_withSeed(bytes, len, map->seed);
    for (size_t i = hash & map->mask; map->slots[i]; i = (i + 1) & map->mask) {
        if ((map->slots[i] ^ hash) >> 32)
            continue;
        uint32_t idx = (uint32_t)map->slots[i] - 1;
        const struct ps__tok_str *key = key_at(keys, stride, idx);
        if (key->len == len && memcmp(key->bytes, bytes, len) == 0)
            return (int32_t)idx;
    }
    return -1;
}

int32_t ps__tok_map_insert(struct ps__tok_map *map, const void *keys, size_t stride, int32_t idx)
{
    const struct ps__tok_str *key = key_at(keys, stride, (size_t)idx);
    int32_t old = ps__tok_map_find(map, keys, stride, key->bytes, key->len);
    if (old >= 0)
        return old;
    uint64_t hash = XXH3_64bits_withSeed(key->bytes, key->len, map->seed);
    size_t i = hash & map->mask;
    while (map->slots[i])
        i = (i + 1) & map->mask;
    map->slots[i] = (hash >> 32 << 32) | ((uint32_t)idx + 1);
    return idx;
}

static size_t pair_slot(const struct ps__tok_pairs *pairs, uint64_t key)
{
    uint64_t h = (key ^ pairs->seed) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    return (size_t)h & pairs->mask;
}

int ps__tok_pairs_init(struct ps__tok_pairs *pairs, size_t count)
{
    size_t size = table_size(count);
    pairs->slots = malloc(size * sizeof *pairs->slots);
    if (!pairs->slots)
        return -ENOMEM;
    for (size_t i = 0; i < size; i++)
        pairs->slots[i] = (struct ps__tok_pair){.key = UINT64_MAX};
    pairs->mask = size - 1;
    pairs->count = 0;
    pairs->seed = random_seed();
    return 0;
}

void ps__tok_pairs_fini(struct ps__tok_pairs *pairs)
{
    free(pairs->slots);
    pairs->slots = NULL;
}

const struct ps__tok_pair *ps__tok_pairs_find(const struct ps__tok_pairs *pairs, uint64_t key)
{
    size_t i = pair_slot(pairs, key);
    while (pairs->slots[i].key != key) {
        if (pairs->slots[i].key == UINT64_MAX)
            return NULL;
        i = (i + 1) & pairs->mask;
    }
    return &pairs->slots[i];
}

int ps__tok_pairs_put(struct ps__tok_pairs *pairs, uint64_t key, uint32_t rank, int32_t id)
{
    if ((pairs->count + 1) * 5 > (pairs->mask + 1) * 3) {
        struct ps__tok_pairs next;
        int ret = ps__tok_pairs_init(&next, (pairs->mask + 1) * 6 / 5);
        if (ret < 0)
            return ret;
        for (size_t i = 0; i <= pairs->mask; i++) {
            const struct ps__tok_pair *p = &pairs->slots[i];
            if (p->key != UINT64_MAX)
                PS_IGNORE(ps__tok_pairs_put(&next, p->key, p->rank, p->id), "sized to hold all");
        }
        free(pairs->slots);
        *pairs = next;
    }
    size_t i = pair_slot(pairs, key);
    while (pairs->slots[i].key != UINT64_MAX && pairs->slots[i].key != key)
        i = (i + 1) & pairs->mask;
    if (pairs->slots[i].key == UINT64_MAX)
        pairs->count++;
    pairs->slots[i] = (struct ps__tok_pair){.key = key, .rank = rank, .id = id};
    return 0;
}

int ps__tok_trie_init(struct ps__tok_trie *trie)
{
    memset(trie, 0, sizeof *trie);
    memset(trie->root, -1, sizeof trie->root);
    return ps__tok_pairs_init(&trie->edges, 0);
}

void ps__tok_trie_fini(struct ps__tok_trie *trie)
{
    ps__tok_pairs_fini(&trie->edges);
    free(trie->values);
    trie->values = NULL;
}

static int trie_node(struct ps__tok_trie *trie, int32_t *out)
{
    int ret = ps__tok_reserve((void **)&trie->values, &trie->node_capacity, trie->node_count + 1,
                              sizeof *trie->values);
    if (ret < 0)
        return ret;
    if (trie->node_count >= INT32_MAX)
        return -ENOMEM;
    trie->values[trie->node_count] = -1;
    *out = (int32_t)trie->node_count++;
    return 0;
}

static uint64_t edge_key(int32_t node, char byte)
{
    return (uint64_t)node << 8 | (unsigned char)byte;
}

int ps__tok_trie_add(struct ps__tok_trie *trie, const char *bytes, size_t len, int32_t value)
{
    int32_t node = trie->root[(unsigned char)bytes[0]];
    if (node < 0) {
        int ret = trie_node(trie, &node);
        if (ret < 0)
            return ret;
        trie->root[(unsigned char)bytes[0]] = node;
    }
    for (size_t i = 1; i < len; i++) {
        const struct ps__tok_pair *edge =
            ps__tok_pairs_find(&trie->edges, edge_key(node, bytes[i]));
        int32_t next = edge ? edge->id : -1;
        if (!edge) {
            int ret = trie_node(trie, &next);
            if (ret < 0)
                return ret;
            ret = ps__tok_pairs_put(&trie->edges, edge_key(node, bytes[i]), 0, next);
            if (ret < 0)
                return ret;
        }
        node = next;
    }
    if (trie->values[node] < 0)
        trie->values[node] = value;
    trie->pattern_count++;
    return 0;
}

bool ps__tok_trie_next(const struct ps__tok_trie *trie, const char *bytes, size_t len, size_t at,
                       size_t *begin, size_t *end, int32_t *value)
{
    if (!trie->pattern_count)
        return false;
    for (size_t i = at; i < len; i++) {
        int32_t node = trie->root[(unsigned char)bytes[i]];
        if (node < 0)
            continue;
        int32_t found = trie->values[node];
        size_t found_end = i + 1;
        for (size_t j = i + 1; j < len; j++) {
            const struct ps__tok_pair *edge =
                ps__tok_pairs_find(&trie->edges, edge_key(node, bytes[j]));
            if (!edge)
                break;
            node = edge->id;
            if (trie->values[node] >= 0) {
                found = trie->values[node];
                found_end = j + 1;
            }
        }
        if (found >= 0) {
            *begin = i;
            *end = found_end;
            *value = found;
            return true;
        }
    }
    return false;
}

int ps__tok_spans_put(struct ps__tok_spans *spans, size_t begin, size_t end)
{
    int ret = ps__tok_reserve((void **)&spans->items, &spans->capacity, spans->count + 1,
                              sizeof *spans->items);
    if (ret < 0)
        return ret;
    spans->items[spans->count++] =
        (struct ps__tok_span){.begin = (uint32_t)begin, .end = (uint32_t)end};
    return 0;
}

struct ps__tok_view ps__tok_view_slice(const struct ps__tok_view *v, size_t begin, size_t end)
{
    return (struct ps__tok_view){
        .bytes = v->bytes + begin,
        .len = end - begin,
        .begin = v->begin ? v->begin + begin : NULL,
        .end = v->end ? v->end + begin : NULL,
        .origin = v->begin ? 0 : v->origin + (uint32_t)begin,
    };
}

struct ps__tok_view ps__tok_text_view(const struct ps__tok_text *text)
{
    return (struct ps__tok_view){
        .bytes = text->bytes, .len = text->len, .begin = text->begin, .end = text->end};
}

void ps__tok_text_fini(struct ps__tok_text *text)
{
    free(text->bytes);
    free(text->begin);
    free(text->end);
    memset(text, 0, sizeof *text);
}

static int text_reserve(struct ps__tok_text *text, size_t more)
{
    size_t need = text->len + more;
    if (need <= text->capacity)
        return 0;
    size_t capacity = text->capacity, same = capacity, again = capacity;
    int ret = ps__tok_reserve((void **)&text->bytes, &same, need, 1);
    if (ret == 0)
        ret = ps__tok_reserve((void **)&text->begin, &again, need, sizeof *text->begin);
    if (ret == 0)
        ret = ps__tok_reserve((void **)&text->end, &capacity, need, sizeof *text->end);
    if (ret == 0)
        text->capacity = capacity;
    return ret;
}

int ps__tok_text_copy(struct ps__tok_text *text, const struct ps__tok_view *v, size_t begin,
                      size_t end)
{
    size_t n = end - begin;
    if (n == 0)
        return 0;
    int ret = text_reserve(text, n);
    if (ret < 0)
        return ret;
    memcpy(text->bytes + text->len, v->bytes + begin, n);
    if (v->begin) {
        memcpy(text->begin + text->len, v->begin + begin, n * sizeof *text->begin);
        memcpy(text->end + text->len, v->end + begin, n * sizeof *text->end);
    } else {
        for (size_t i = 0; i < n; i++) {
            text->begin[text->len + i] = v->origin + (uint32_t)(begin + i);
            text->end[text->len + i] = v->origin + (uint32_t)(begin + i) + 1;
        }
    }
    text->len += n;
    return 0;
}

int ps__tok_text_put(struct ps__tok_text *text, const char *bytes, size_t n, struct ps__tok_span at)
{
    int ret = text_reserve(text, n);
    if (ret < 0)
        return ret;
    for (size_t i = 0; i < n; i++) {
        text->bytes[text->len + i] = bytes[i];
        text->begin[text->len + i] = at.begin;
        text->end[text->len + i] = at.end;
    }
    text->len += n;
    return 0;
}
