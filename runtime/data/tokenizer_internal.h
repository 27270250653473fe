/* What the files of the tokenizer share. Not for other folders' use.
 *
 * Flow of ps_tokenizer_encode:
 *
 *   text --(added tokens, raw)--> sections --normalizer--> sections --(added tokens, normalised)-->
 *   sections --pre-tokenizer--> pieces --BPE--> tokens --template--> ids
 *
 * Text that has been changed carries, for each byte, the range of the original text that it stands
 * for; unchanged text is a view of the caller's bytes and copies nothing.
 *
 * Source of every rule: the behaviour of huggingface/tokenizers, checked against it by
 * tests/golden/tokenizer. */
#ifndef PS_DATA_TOKENIZER_INTERNAL_H
#define PS_DATA_TOKENIZER_INTERNAL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/data/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Limits: reliability rules, section 4.3. */
enum {
    PS__TOK_ID_MAX = 1 << 21,          /* ids are below this */
    PS__TOK_MERGES_MAX = 1 << 21,      /* merges */
    PS__TOK_TOKEN_BYTES_MAX = 4096,    /* bytes of one token, added token or content string */
    PS__TOK_PATTERN_BYTES_MAX = 16384, /* bytes of one regular expression */
    PS__TOK_STEPS_MAX = 32,            /* flattened normalizers, pre-tokenizers or decoders */
    PS__TOK_TEMPLATE_MAX = 64,         /* special tokens before or after the text */
};

struct ps__tok_str {
    const char *bytes; /* NUL-terminated, in the arena */
    uint32_t len;
};

/* ---- tokenizer_table.c: memory and tables ---- */

/* Bump allocator: blocks are chained, strings never move. */
struct ps__tok_arena {
    struct ps__tok_block *head;
};
void ps__tok_arena_fini(struct ps__tok_arena *arena);
/* A NUL-terminated copy, or NULL when out of memory. */
char *ps__tok_arena_copy(struct ps__tok_arena *arena, const char *bytes, size_t len);

/* Grow *items to at least `need` elements of `size` bytes (doubling). 0 or -ENOMEM. */
int ps__tok_reserve(void **items, size_t *capacity, size_t need, size_t size) PS_WARN_UNUSED;

/* String -> index into an array of ps__tok_str that the caller owns. Open addressing, seeded. */
struct ps__tok_map {
    uint64_t *slots; /* (mask + 1,): high half a hash tag, low half index + 1; 0 is free */
    size_t mask;
    uint64_t seed;
};
int ps__tok_map_init(struct ps__tok_map *map, size_t count) PS_WARN_UNUSED;
void ps__tok_map_fini(struct ps__tok_map *map);
/* Index of the key, or -1. `stride` is the distance between keys in bytes. */
int32_t ps__tok_map_find(const struct ps__tok_map *map, const void *keys, size_t stride,
                         const char *bytes, size_t len);
/* Insert keys[idx]; returns the index already there with the same content, or idx. */
int32_t ps__tok_map_insert(struct ps__tok_map *map, const void *keys, size_t stride, int32_t idx);

/* 64-bit key -> (rank, id). At most 60 % full. */
struct ps__tok_pair {
    uint64_t key; /* UINT64_MAX is free */
    uint32_t rank;
    int32_t id;
};
struct ps__tok_pairs {
    struct ps__tok_pair *slots; /* (mask + 1,) */
    size_t mask;
    size_t count;
    uint64_t seed;
};
int ps__tok_pairs_init(struct ps__tok_pairs *pairs, size_t count) PS_WARN_UNUSED;
void ps__tok_pairs_fini(struct ps__tok_pairs *pairs);
const struct ps__tok_pair *ps__tok_pairs_find(const struct ps__tok_pairs *pairs, uint64_t key);
/* Insert or overwrite; grows. */
int ps__tok_pairs_put(struct ps__tok_pairs *pairs, uint64_t key, uint32_t rank,
                      int32_t id) PS_WARN_UNUSED;

/* Byte trie for leftmost-longest matching. */
struct ps__tok_trie {
    struct ps__tok_pairs edges; /* node << 8 | byte -> node */
    int32_t root[256];          /* node after the first byte, or -1 */
    int32_t *values;            /* (node_count,) pattern index or -1 */
    size_t node_count;
    size_t node_capacity;
    size_t pattern_count;
};
int ps__tok_trie_init(struct ps__tok_trie *trie) PS_WARN_UNUSED;
void ps__tok_trie_fini(struct ps__tok_trie *trie);
/* The first pattern of the same bytes stays. */
int ps__tok_trie_add(struct ps__tok_trie *trie, const char *bytes, size_t len,
                     int32_t value) PS_WARN_UNUSED;
/* Leftmost-longest match at or after `at`: true, and [*begin, *end) and *value are set. */
bool ps__tok_trie_next(const struct ps__tok_trie *trie, const char *bytes, size_t len, size_t at,
                       size_t *begin, size_t *end, int32_t *value);

/* ---- text with alignments ---- */

struct ps__tok_span {
    uint32_t begin, end;
};
struct ps__tok_spans {
    struct ps__tok_span *items;
    size_t count, capacity;
};
int ps__tok_spans_put(struct ps__tok_spans *spans, size_t begin, size_t end) PS_WARN_UNUSED;

/* Bytes and the original range of each; begin and end NULL mean byte i is [origin+i, origin+i+1) */
struct ps__tok_view {
    const char *bytes;
    size_t len;
    const uint32_t *begin, *end;
    uint32_t origin;
};

/* A buffer that a step writes its result to. */
struct ps__tok_text {
    char *bytes;
    uint32_t *begin, *end;
    size_t len, capacity;
};

static inline uint32_t ps__tok_view_begin(const struct ps__tok_view *v, size_t i)
{
    return v->begin ? v->begin[i] : v->origin + (uint32_t)i;
}

/* Original end of the byte before position i (i > 0), so that [i, j) covers
 * [ps__tok_view_begin(v, i), ps__tok_view_end(v, j)). */
static inline uint32_t ps__tok_view_end(const struct ps__tok_view *v, size_t i)
{
    return v->end ? v->end[i - 1] : v->origin + (uint32_t)i;
}

struct ps__tok_view ps__tok_view_slice(const struct ps__tok_view *v, size_t begin, size_t end);
struct ps__tok_view ps__tok_text_view(const struct ps__tok_text *text);
void ps__tok_text_fini(struct ps__tok_text *text);
/* Append v[begin..end) with its alignment. */
int ps__tok_text_copy(struct ps__tok_text *text, const struct ps__tok_view *v, size_t begin,
                      size_t end) PS_WARN_UNUSED;
/* Append n bytes that all stand for the original range `at`. */
int ps__tok_text_put(struct ps__tok_text *text, const char *bytes, size_t n,
                     struct ps__tok_span at) PS_WARN_UNUSED;

/* ---- tokenizer_regex.c ---- */

/* CPU time of all matches of one encode or decode. */
struct ps__tok_meter {
    unsigned count; /* matches so far */
    double start;   /* thread CPU time of the first look, or negative */
    double budget_s;
};
void ps__tok_meter_start(struct ps__tok_meter *meter, size_t text_len);

struct ps__tok_regex;
/* Compile an Oniguruma (Ruby syntax) pattern with PCRE2. `field` is for messages. */
int ps__tok_regex_create(struct ps_tokenizer *tok, struct ps__tok_regex **out, const char *pattern,
                         size_t len, const char *field, struct ps_error *err) PS_WARN_UNUSED;
void ps__tok_regex_destroy(struct ps__tok_regex *regex);
/* Append every match in valid UTF-8, as Oniguruma's iterator finds them. A pattern that runs past
 * its limits is PS_EFORMAT. */
int ps__tok_regex_find(struct ps__tok_regex *regex, const char *bytes, size_t len,
                       struct ps__tok_spans *out, struct ps_error *err) PS_WARN_UNUSED;

/* A literal string or a regular expression. */
struct ps__tok_pattern {
    struct ps__tok_str literal;
    struct ps__tok_regex *regex; /* NULL: the literal counts */
};
/* Parse {"String": s} or {"Regex": r}. */
int ps__tok_pattern_parse(struct ps_tokenizer *tok, const json_t *obj, const char *field,
                          struct ps__tok_pattern *out, struct ps_error *err) PS_WARN_UNUSED;
void ps__tok_pattern_fini(struct ps__tok_pattern *pattern);
/* Replace what is in `out` by the matches. */
int ps__tok_pattern_find(const struct ps__tok_pattern *pattern, const char *bytes, size_t len,
                         struct ps__tok_spans *out, struct ps_error *err) PS_WARN_UNUSED;

/* ---- steps ---- */

enum ps__tok_norm_kind {
    PS__TOK_NORM_NFC,
    PS__TOK_NORM_NFD,
    PS__TOK_NORM_NFKC,
    PS__TOK_NORM_NFKD,
    PS__TOK_NORM_LOWERCASE,
    PS__TOK_NORM_REPLACE,
    PS__TOK_NORM_PREPEND,
    PS__TOK_NORM_STRIP,
    PS__TOK_NORM_BYTE_LEVEL,
};
struct ps__tok_norm {
    enum ps__tok_norm_kind kind;
    struct ps__tok_pattern pattern; /* Replace */
    struct ps__tok_str content;     /* Replace, Prepend */
    bool left, right;               /* Strip */
};

enum ps__tok_behavior {
    PS__TOK_REMOVED,
    PS__TOK_ISOLATED,
    PS__TOK_MERGED_WITH_PREVIOUS,
    PS__TOK_MERGED_WITH_NEXT,
    PS__TOK_CONTIGUOUS,
};
enum ps__tok_pre_kind {
    PS__TOK_PRE_SPLIT,
    PS__TOK_PRE_DIGITS,
    PS__TOK_PRE_BYTE_LEVEL,
    PS__TOK_PRE_METASPACE,
};
enum ps__tok_prepend { PS__TOK_PREPEND_ALWAYS, PS__TOK_PREPEND_FIRST, PS__TOK_PREPEND_NEVER };
struct ps__tok_pre {
    enum ps__tok_pre_kind kind;
    struct ps__tok_pattern pattern; /* Split; ByteLevel with use_regex */
    enum ps__tok_behavior behavior; /* Split, Digits */
    bool invert;                    /* Split */
    bool add_prefix_space;          /* ByteLevel */
    bool use_regex;                 /* ByteLevel */
    bool split;                     /* Metaspace */
    enum ps__tok_prepend prepend;   /* Metaspace */
    struct ps__tok_str replacement; /* Metaspace */
};

enum ps__tok_dec_kind {
    PS__TOK_DEC_BYTE_LEVEL,
    PS__TOK_DEC_REPLACE,
    PS__TOK_DEC_BYTE_FALLBACK,
    PS__TOK_DEC_FUSE,
    PS__TOK_DEC_STRIP,
    PS__TOK_DEC_METASPACE,
};
struct ps__tok_dec {
    enum ps__tok_dec_kind kind;
    struct ps__tok_pattern pattern; /* Replace */
    struct ps__tok_str content;     /* Replace, Strip; Metaspace: the replacement character */
    size_t start, stop;             /* Strip */
    bool strip_first;               /* Metaspace: prepend_scheme is not never */
};

/* ---- model ---- */

struct ps__tok_vocab_entry {
    struct ps__tok_str text;
    int32_t id;
};

struct ps__tok_added {
    struct ps__tok_str text;
    struct ps__tok_str normal; /* what it looks like in the text, and decodes to */
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
};

struct ps__tok_symbol {
    int32_t id;
    uint32_t begin, end; /* bytes of the piece */
    int32_t prev, next;  /* heap merging only */
};
struct ps__tok_heap_item {
    uint64_t key; /* rank << 32 | position */
    int32_t id;
};
struct ps__tok_cache_slot; /* tokenizer_bpe.c */

struct ps__tok_model {
    struct ps__tok_vocab_entry *vocab; /* (vocab_count,) ascending by id */
    size_t vocab_count;
    struct ps__tok_map vocab_map;
    struct ps__tok_pairs merges;       /* left id << 32 | right id -> rank, merged id */
    struct ps__tok_str prefix, suffix; /* continuing_subword_prefix, end_of_word_suffix */
    int32_t unk_id;                    /* -1: none */
    bool fuse_unk, byte_fallback, ignore_merges;
    int32_t byte_ids[256];     /* byte-level alphabet; -1 absent */
    int32_t fallback_ids[256]; /* <0xNN>; -1 absent */
    int32_t *char_ids;         /* (65536,) one-character tokens of the basic plane; -1 absent */
    /* First symbols left id << 32 | right id between which some merge may happen; slots NULL: not
     * built, because a prefix, a suffix or ignore_merges makes pieces indivisible. */
    struct ps__tok_pairs joins;
};

struct ps_tokenizer {
    const char *file; /* name for messages, in the arena */
    struct ps__tok_arena arena;
    struct ps__tok_model model;

    struct ps__tok_added *added; /* (added_count,) in file order */
    size_t added_count;
    struct ps__tok_map added_map;
    int32_t *added_by_id; /* (added_count,) indices ascending by id */
    struct ps__tok_trie raw_trie, normalized_trie;

    struct ps__tok_norm norms[PS__TOK_STEPS_MAX];
    size_t norm_count;
    struct ps__tok_pre pres[PS__TOK_STEPS_MAX];
    size_t pre_count;
    bool byte_mode; /* the last pre-tokenizer is ByteLevel: the model takes raw bytes */
    struct ps__tok_dec decs[PS__TOK_STEPS_MAX];
    size_t dec_count;
    bool has_decoder;
    bool clean_up; /* clean_up_tokenization_spaces */

    int32_t prefix_ids[PS__TOK_TEMPLATE_MAX], suffix_ids[PS__TOK_TEMPLATE_MAX];
    size_t prefix_count, suffix_count;
    int32_t special_ids[4]; /* bos, eos, pad, unk */

    /* Scratch of one call; no meaning between calls. */
    struct ps__tok_meter meter;
    size_t growth_left; /* bytes that normalization may still produce in this call */
    struct ps__tok_text norm_text[2], pre_text[2];
    struct ps__tok_spans matches, pieces[2];
    int32_t *code_points; /* Unicode normalization of one segment */
    size_t code_point_capacity;
    struct ps__tok_symbol *symbols; /* result of ps__tok_bpe_word */
    size_t symbol_count, symbol_capacity;
    struct ps__tok_heap_item *heap;
    size_t heap_count, heap_capacity;
    char *word; /* byte-level spelling of a piece */
    size_t word_capacity;
    struct ps__tok_cache_slot *cache; /* NULL until first use, and when memory is short */
};

/* tokenizer_model.c: vocabulary, merges and their tables. */
int ps__tok_model_parse(struct ps_tokenizer *tok, const json_t *model,
                        struct ps_error *err) PS_WARN_UNUSED;
void ps__tok_model_fini(struct ps__tok_model *model);
/* Build model->joins, where pieces may be divided. 0 or -ENOMEM. */
int ps__tok_model_index_joins(struct ps__tok_model *model) PS_WARN_UNUSED;
/* Id of the vocabulary entry of one character, or -1. */
int32_t ps__tok_char_id(const struct ps__tok_model *model, const char *bytes, size_t size,
                        int32_t c);
/* Id of a vocabulary entry, or -1. */
int32_t ps__tok_vocab_id(const struct ps__tok_model *model, const char *bytes, size_t len);
/* Vocabulary entry of an id, or NULL. */
const struct ps__tok_vocab_entry *ps__tok_vocab_entry(const struct ps__tok_model *model,
                                                      int32_t id);

/* tokenizer_bpe.c: merge one piece; the result is in tok->symbols[0..symbol_count). */
int ps__tok_bpe_word(struct ps_tokenizer *tok, const char *bytes, size_t len,
                     struct ps_error *err) PS_WARN_UNUSED;
/* Length of the first part of a piece that no merge can leave: parts may be merged one by one. */
size_t ps__tok_bpe_part(const struct ps_tokenizer *tok, const char *bytes, size_t len);
void ps__tok_bpe_fini(struct ps_tokenizer *tok);

/* tokenizer_added.c */
int ps__tok_added_parse(struct ps_tokenizer *tok, const json_t *list,
                        struct ps_error *err) PS_WARN_UNUSED;
/* Build the matchers; the normalizer must be there. */
int ps__tok_added_index(struct ps_tokenizer *tok, struct ps_error *err) PS_WARN_UNUSED;
const struct ps__tok_added *ps__tok_added_by_id(const struct ps_tokenizer *tok, int32_t id);
/* Walk over text in order: each call yields either a stretch without added tokens (*added NULL) or
 * an added token, as [*begin, *end). */
struct ps__tok_added_iter {
    const struct ps__tok_trie *trie;
    const char *bytes;
    size_t len;
    size_t at;    /* where the matcher goes on */
    size_t done;  /* everything before has been yielded */
    bool pending; /* a match that waits for the stretch before it */
    size_t match_begin, match_end;
    const struct ps__tok_added *match;
};
bool ps__tok_added_next(const struct ps_tokenizer *tok, struct ps__tok_added_iter *it,
                        size_t *begin, size_t *end, const struct ps__tok_added **added);

/* tokenizer_normalize.c, tokenizer_unicode.c */
int ps__tok_norm_parse(struct ps_tokenizer *tok, const json_t *obj,
                       struct ps_error *err) PS_WARN_UNUSED;
/* Normalise a section; *out views the input or tok->norm_text. */
int ps__tok_norm_run(struct ps_tokenizer *tok, const struct ps__tok_view *in,
                     struct ps__tok_view *out, struct ps_error *err) PS_WARN_UNUSED;
/* One of the four normalization forms, appended to out. */
int ps__tok_norm_form(struct ps_tokenizer *tok, enum ps__tok_norm_kind form,
                      const struct ps__tok_view *in, struct ps__tok_text *out) PS_WARN_UNUSED;
int ps__tok_norm_byte_level(const struct ps__tok_view *in, struct ps__tok_text *out) PS_WARN_UNUSED;

/* Valid UTF-8 only: the character at bytes[at], *size its length. */
int32_t ps__tok_char_at(const char *bytes, size_t len, size_t at, size_t *size);
/* Length of the longest valid prefix. */
size_t ps__tok_utf8_valid(const char *bytes, size_t len);
bool ps__tok_is_space(int32_t c);   /* White_Space */
bool ps__tok_is_numeric(int32_t c); /* general category N */
bool ps__tok_is_word(int32_t c);    /* \w of Unicode TR 18 */
/* Byte-level alphabet: spelling of a byte as UTF-8 (1 or 2 bytes), and back (-1: none). */
size_t ps__tok_byte_spell(unsigned byte, char out[2]);
int ps__tok_byte_unspell(int32_t c);

/* tokenizer_pretok.c */
int ps__tok_pre_parse(struct ps_tokenizer *tok, const json_t *obj,
                      struct ps_error *err) PS_WARN_UNUSED;
/* Cut a section into pieces: *text is what the pieces index, tok->pieces[*which] holds them. */
int ps__tok_pre_run(struct ps_tokenizer *tok, const struct ps__tok_view *in,
                    struct ps__tok_view *text, int *which, struct ps_error *err) PS_WARN_UNUSED;

/* tokenizer_decode.c */
int ps__tok_dec_parse(struct ps_tokenizer *tok, const json_t *obj,
                      struct ps_error *err) PS_WARN_UNUSED;

/* tokenizer_template.c: post-processor and tokenizer_config.json. */
/* Parse the text of a tokenizer_config.json, integers beyond 64 bits included. */
int ps__tok_config_read(json_t **out, const char *text, size_t len, const char *file,
                        struct ps_error *err) PS_WARN_UNUSED;
int ps__tok_post_parse(struct ps_tokenizer *tok, const json_t *obj,
                       struct ps_error *err) PS_WARN_UNUSED;
int ps__tok_config_parse(struct ps_tokenizer *tok, const json_t *config,
                         struct ps_error *err) PS_WARN_UNUSED;

/* Shared JSON helpers. `type` member of a component, or NULL. */
const char *ps__tok_type(const json_t *obj);
/* A required string member of at most PS__TOK_TOKEN_BYTES_MAX bytes, copied to the arena. */
int ps__tok_string(struct ps_tokenizer *tok, const json_t *obj, const char *key,
                   struct ps__tok_str *out, struct ps_error *err) PS_WARN_UNUSED;
int ps__tok_unsupported(const struct ps_tokenizer *tok, const char *field, const char *type,
                        struct ps_error *err);

#ifdef __cplusplus
}
#endif
#endif
