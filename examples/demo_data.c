/* Everything that the demo needs besides the program: its texts, its task, its tokenizer, its
 * score.
 *
 *   demo_data base COUNT SEED                 training texts of the base model, as {"text"} rows
 *   demo_data tokenizer COUNT SEED VOCAB      a byte-level BPE tokenizer.json learnt from such
 * texts demo_data task train|test COUNT SEED      rows {"prompt","completion"} of the task
 *   demo_data score ROWS.jsonl OUT.jsonl      exact match of `penstock generate --json` with the
 * rows demo_data show COUNT ROWS.jsonl BEFORE.jsonl AFTER.jsonl     generations side by side
 *
 * The base texts tell in words who has how many things, and how numbers are written in digits. The
 * task asks for the sum or difference in digits, which no base text does. A pair of numbers belongs
 * either to the training or to the test rows, never to both: every fifth pair (by a hash of the
 * pair) is a test pair. */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_MAX 20
#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

static const char *const number_word[] = {
    "zero",        "one",          "two",          "three",        "four",         "five",
    "six",         "seven",        "eight",        "nine",         "ten",          "eleven",
    "twelve",      "thirteen",     "fourteen",     "fifteen",      "sixteen",      "seventeen",
    "eighteen",    "nineteen",     "twenty",       "twenty-one",   "twenty-two",   "twenty-three",
    "twenty-four", "twenty-five",  "twenty-six",   "twenty-seven", "twenty-eight", "twenty-nine",
    "thirty",      "thirty-one",   "thirty-two",   "thirty-three", "thirty-four",  "thirty-five",
    "thirty-six",  "thirty-seven", "thirty-eight", "thirty-nine",  "forty"};
static const char *const name_of[] = {"Mia", "Tom", "Ana", "Ben", "Lea",  "Max",  "Zoe",  "Sam",
                                      "Ida", "Leo", "Eva", "Jon", "Nora", "Paul", "Lily", "Omar"};
static const char *const thing_of[] = {"apples", "books", "shells",  "stamps", "coins",   "pens",
                                       "cards",  "cups",  "pebbles", "keys",   "ribbons", "nuts"};
static const char *const place_of[] = {"the garden", "the market", "school",   "the beach",
                                       "the park",   "home",       "the barn", "the river"};
static const char *const more_of[] = {"finds", "buys", "gets"};
static const char *const less_of[] = {"loses", "sells", "gives away"};

/* splitmix64: the demo's own small generator. */
static uint64_t next(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static size_t pick(uint64_t *state, size_t n)
{
    return (size_t)(next(state) % n);
}

struct sum {
    int a, b, result;
    bool less;
    const char *name, *thing, *verb;
};

/* A test pair, by hash: the split does not depend on seeds. */
static bool is_test_pair(int a, int b, bool less)
{
    uint64_t h = (uint64_t)a * 64 + (uint64_t)b * 2 + less;
    return next(&h) % 5 == 0;
}

static struct sum draw(uint64_t *state)
{
    struct sum s;
    s.less = pick(state, 2);
    s.a = 2 + (int)pick(state, NUMBER_MAX - 1);
    s.b = 1 + (int)pick(state, s.less ? (size_t)s.a : NUMBER_MAX);
    s.result = s.less ? s.a - s.b : s.a + s.b;
    s.name = name_of[pick(state, COUNT_OF(name_of))];
    s.thing = thing_of[pick(state, COUNT_OF(thing_of))];
    s.verb =
        s.less ? less_of[pick(state, COUNT_OF(less_of))] : more_of[pick(state, COUNT_OF(more_of))];
    return s;
}

static void story(char *buf, size_t size, uint64_t *state)
{
    size_t len = 0;
    for (int i = 0; i < 4; i++) {
        struct sum s = draw(state);
        const char *end = i < 3 ? " " : "";
        size_t kind = pick(state, 8);
        int n = (int)pick(state, 2 * NUMBER_MAX + 1);
        if (kind < 2)
            len += (size_t)snprintf(buf + len, size - len, "The number %s is written %d.%s",
                                    number_word[n], n, end);
        else if (kind == 2)
            len +=
                (size_t)snprintf(buf + len, size - len, "%s walks to %s and looks for %s.%s",
                                 s.name, place_of[pick(state, COUNT_OF(place_of))], s.thing, end);
        else
            len += (size_t)snprintf(
                buf + len, size - len, "%s has %s %s and %s %s%s. Now %s has %s %s.%s", s.name,
                number_word[s.a], s.thing, s.verb, number_word[s.b], s.less ? "" : " more", s.name,
                number_word[s.result], s.thing, end);
    }
}

static int print_base(long count, uint64_t seed)
{
    for (long i = 0; i < count; i++) {
        char text[1024];
        story(text, sizeof text, &seed);
        printf("{\"text\": \"%s\"}\n", text);
    }
    return 0;
}

static int print_task(bool test, long count, uint64_t seed)
{
    for (long i = 0; i < count;) {
        struct sum s = draw(&seed);
        if (is_test_pair(s.a, s.b, s.less) != test)
            continue;
        printf(
            "{\"prompt\": \"%s has %s %s and %s %s%s. Now %s has\", \"completion\": \" %d %s.\"}\n",
            s.name, number_word[s.a], s.thing, s.verb, number_word[s.b], s.less ? "" : " more",
            s.name, s.result, s.thing);
        i++;
    }
    return 0;
}

/* BPE over distinct words with counts; symbols are token ids. */
#define WORDS_MAX 512
#define SYMBOLS_MAX 48
#define VOCAB_MAX 1024

struct word {
    char text[SYMBOLS_MAX];
    int symbol[SYMBOLS_MAX];
    int length;
    long count;
};

struct bpe {
    struct word word[WORDS_MAX];
    int word_count;
    char token[VOCAB_MAX][SYMBOLS_MAX]; /* bytes; a space stands for itself */
    int left[VOCAB_MAX], right[VOCAB_MAX];
    int token_count;
};

/* Cut as the GPT-2 pattern cuts such texts: letters with one leading space, other characters alone.
 */
static void count_words(struct bpe *b, const char *text)
{
    for (const char *at = text; *at;) {
        size_t n = *at == ' ' ? 1 : 0;
        while ((at[n] >= 'a' && at[n] <= 'z') || (at[n] >= 'A' && at[n] <= 'Z'))
            n++;
        n = n ? n : 1;
        int w = 0;
        while (w < b->word_count &&
               (strncmp(b->word[w].text, at, n) != 0 || b->word[w].text[n] != 0))
            w++;
        if (w == WORDS_MAX || n >= SYMBOLS_MAX)
            break; /* cannot happen with the words above */
        if (w == b->word_count) {
            memcpy(b->word[w].text, at, n);
            b->word[w].length = (int)n;
            for (size_t i = 0; i < n; i++)
                b->word[w].symbol[i] = (unsigned char)at[i];
            b->word_count++;
        }
        b->word[w].count++;
        at += n;
    }
}

static void merge(struct word *w, int left, int right, int id)
{
    int out = 0;
    for (int i = 0; i < w->length; i++) {
        bool here = i + 1 < w->length && w->symbol[i] == left && w->symbol[i + 1] == right;
        w->symbol[out++] = here ? id : w->symbol[i];
        i += here;
    }
    w->length = out;
}

/* The most frequent pair becomes the next token; ties: the smaller ids. False when nothing is left.
 */
static bool learn_one(struct bpe *b)
{
    static long count[VOCAB_MAX][VOCAB_MAX];
    memset(count, 0, sizeof count);
    int left = -1;
    int right = -1;
    for (int w = 0; w < b->word_count; w++)
        for (int i = 0; i + 1 < b->word[w].length; i++)
            count[b->word[w].symbol[i]][b->word[w].symbol[i + 1]] += b->word[w].count;
    long most = 0;
    for (int x = 0; x < b->token_count; x++)
        for (int y = 0; y < b->token_count; y++)
            if (count[x][y] > most) {
                most = count[x][y];
                left = x;
                right = y;
            }
    if (most == 0)
        return false;
    int id = b->token_count++;
    b->left[id] = left;
    b->right[id] = right;
    /* Both are parts of one word of under SYMBOLS_MAX bytes. */
    size_t n = strlen(b->token[left]);
    memcpy(b->token[id], b->token[left], n);
    memcpy(b->token[id] + n, b->token[right], strlen(b->token[right]) + 1);
    for (int w = 0; w < b->word_count; w++)
        merge(&b->word[w], left, right, id);
    return true;
}

/* The byte-level alphabet: printable Latin-1 bytes stand for themselves, the others from U+0100 on.
 */
static void put_byte(char *out, unsigned byte)
{
    unsigned code = byte;
    bool plain = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    if (!plain) {
        code = 0x100;
        for (unsigned b = 0; b < byte; b++)
            code += !((b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE);
    }
    size_t n = strlen(out);
    if (code < 0x80) {
        out[n] = (char)code;
        out[n + 1] = 0;
    } else {
        out[n] = (char)(0xC0 | (code >> 6));
        out[n + 1] = (char)(0x80 | (code & 0x3F));
        out[n + 2] = 0;
    }
}

static void spelling(const struct bpe *b, int id, char *out)
{
    out[0] = 0;
    if (id < 256) {
        put_byte(out, (unsigned)id);
        return;
    }
    for (const char *at = b->token[id]; *at; at++)
        put_byte(out, (unsigned char)*at);
}

static int print_tokenizer(long count, uint64_t seed, int vocab)
{
    struct bpe *b = calloc(1, sizeof *b);
    if (!b || vocab < 257 || vocab > VOCAB_MAX)
        return 2;
    for (long i = 0; i < count; i++) {
        char text[1024];
        story(text, sizeof text, &seed);
        count_words(b, text);
    }
    b->token_count = 256;
    for (int i = 0; i < 256; i++)
        b->token[i][0] = (char)i;
    while (b->token_count < vocab - 1 && learn_one(b)) {
    }
    char one[4 * SYMBOLS_MAX];
    char two[4 * SYMBOLS_MAX];
    json_t *words = json_object();
    json_t *merges = json_array();
    for (int i = 0; i < b->token_count; i++) {
        spelling(b, i, one);
        json_object_set_new(words, one, json_integer(i));
        if (i < 256)
            continue;
        spelling(b, b->left[i], one);
        spelling(b, b->right[i], two);
        json_array_append_new(merges, json_pack("[s,s]", one, two));
    }
    int end = b->token_count;
    json_object_set_new(words, "<|endoftext|>", json_integer(end));
    json_t *root = json_pack(
        "{s:s, s:n, s:n, s:[{s:i, s:s, s:b, s:b, s:b, s:b, s:b}], s:n,"
        " s:{s:s, s:[{s:s, s:b}, {s:s, s:b, s:b, s:b}]}, s:n, s:{s:s, s:b, s:b, s:b},"
        " s:{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:o, s:o}}",
        "version", "1.0", "truncation", "padding", "added_tokens", "id", end, "content",
        "<|endoftext|>", "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1,
        "normalizer", "pre_tokenizer", "type", "Sequence", "pretokenizers", "type", "Digits",
        "individual_digits", 1, "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
        "use_regex", 1, "post_processor", "decoder", "type", "ByteLevel", "add_prefix_space", 0,
        "trim_offsets", 1, "use_regex", 1, "model", "type", "BPE", "dropout", "unk_token",
        "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
        "vocab", words, "merges", merges);
    int ret = root ? json_dumpf(root, stdout, JSON_INDENT(1)) : -1;
    json_decref(root);
    free(b);
    return ret ? 1 : 0;
}

/* Line `i` of a JSONL file as an object; NULL at the end. */
static json_t *next_row(FILE *f)
{
    return json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL);
}

static const char *text_of(const json_t *row, const char *key)
{
    const char *s = json_string_value(json_object_get(row, key));
    return s ? s : "";
}

static int score(const char *rows_path, const char *out_path)
{
    FILE *rows = fopen(rows_path, "r");
    FILE *out = fopen(out_path, "r");
    long total = 0;
    long hits = 0;
    json_t *row;
    while (rows && out && (row = next_row(rows))) {
        json_t *got = next_row(out);
        hits += strcmp(text_of(row, "completion"), text_of(got, "text")) == 0;
        total++;
        json_decref(got);
        json_decref(row);
    }
    if (rows)
        fclose(rows);
    if (out)
        fclose(out);
    printf("%.1f%% (%ld of %ld)\n", total ? 100.0 * (double)hits / (double)total : 0.0, hits,
           total);
    return total ? 0 : 1;
}

static void print_flat(const char *label, const char *text)
{
    printf("  %-8s", label);
    for (; *text; text++)
        putchar(*text == '\n' ? ' ' : *text);
    putchar('\n');
}

static int show(long count, char **path)
{
    FILE *f[3] = {fopen(path[0], "r"), fopen(path[1], "r"), fopen(path[2], "r")};
    bool ok = f[0] && f[1] && f[2];
    for (long i = 0; ok && i < count; i++) {
        json_t *row[3];
        for (int k = 0; k < 3; k++)
            row[k] = next_row(f[k]);
        print_flat("prompt", text_of(row[0], "prompt"));
        print_flat("want", text_of(row[0], "completion"));
        print_flat("before", text_of(row[1], "text"));
        print_flat("after", text_of(row[2], "text"));
        putchar('\n');
        for (int k = 0; k < 3; k++)
            json_decref(row[k]);
    }
    for (int k = 0; k < 3; k++)
        if (f[k])
            fclose(f[k]);
    return ok ? 0 : 1;
}

static long number(const char *text)
{
    return strtol(text, NULL, 10);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (argc == 4 && strcmp(what, "base") == 0)
        return print_base(number(argv[2]), strtoull(argv[3], NULL, 10));
    if (argc == 5 && strcmp(what, "tokenizer") == 0)
        return print_tokenizer(number(argv[2]), strtoull(argv[3], NULL, 10), (int)number(argv[4]));
    if (argc == 5 && strcmp(what, "task") == 0)
        return print_task(strcmp(argv[2], "test") == 0, number(argv[3]),
                          strtoull(argv[4], NULL, 10));
    if (argc == 4 && strcmp(what, "score") == 0)
        return score(argv[2], argv[3]);
    if (argc == 6 && strcmp(what, "show") == 0)
        return show(number(argv[2]), argv + 3);
    fprintf(stderr,
            "usage: demo_data base|tokenizer|task|score|show ... (see the head of the source)\n");
    return 2;
}
