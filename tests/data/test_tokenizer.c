/* Tokenizers against the reference: self-made variants (tests/golden/tokenizer), real ones where
 * the shared data is there, and the properties that hold for all. */
#include "tests/data/tokenizer_check.h"

#include <unistd.h>

static bool same_ids(const struct ps_encoding *enc, const json_t *want)
{
    if (enc->count != json_array_size(want))
        return false;
    for (size_t i = 0; i < enc->count; i++)
        if (enc->ids[i] != json_integer_value(json_array_get(want, i)))
            return false;
    return true;
}

static size_t widen(const char *text, size_t len, size_t at, int step)
{
    while (at > 0 && at < len && ((unsigned char)text[at] & 0xC0) == 0x80)
        at = step < 0 ? at - 1 : at + 1;
    return at;
}

/* Offsets of the reference are whole characters; ours may be bytes within one. */
static bool same_offsets(const struct ps_encoding *enc, const char *text, const json_t *want)
{
    size_t len = strlen(text);
    for (size_t i = 0; i < enc->count; i++) {
        json_int_t begin = json_integer_value(json_array_get(want, 2 * i));
        json_int_t end = json_integer_value(json_array_get(want, 2 * i + 1));
        if (enc->begin[i] > enc->end[i] || enc->end[i] > len ||
            (size_t)begin != widen(text, len, enc->begin[i], -1) ||
            (size_t)end != widen(text, len, enc->end[i], 1))
            return false;
    }
    return json_array_size(want) == 2 * enc->count;
}

static bool same_text(struct ps_tokenizer *tok, const struct ps_encoding *enc, bool skip,
                      const char *want, size_t want_len)
{
    char *text = NULL;
    size_t len = 0;
    struct ps_error err = {0};
    if (ps_tokenizer_decode(tok, enc->ids, enc->count, skip, &text, &len, &err) != 0)
        return false;
    bool same = want_len == len && memcmp(text, want, len + 1) == 0;
    if (!same)
        print_error("decoded \"%s\" instead of \"%s\"\n", text, want);
    free(text);
    return same;
}

static size_t check_variant(const json_t *golden, const json_t *variant)
{
    json_t *root = patched(golden, json_string_value(json_object_get(variant, "base")),
                           json_object_get(variant, "patch"));
    struct ps_tokenizer *tok = must_parse(root, NULL);
    struct ps_encoding enc = {0};
    const json_t *cases = json_object_get(variant, "cases");
    size_t bad = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        const char *text = json_string_value(json_array_get(c, 0));
        const char *decoded = json_string_value(json_array_get(c, 2));
        const char *skipped = json_string_value(json_array_get(c, 3));
        const json_t *offsets = json_array_get(c, 4);
        skipped = skipped ? skipped : decoded;
        struct ps_error err = {0};
        const char *what = NULL;
        if (ps_tokenizer_encode(tok, text, strlen(text), true, &enc, &err) != 0)
            what = err.message;
        else if (!same_ids(&enc, json_array_get(c, 1)))
            what = "ids";
        else if (offsets && !same_offsets(&enc, text, offsets))
            what = "offsets";
        else if (!same_text(tok, &enc, false, decoded, strlen(decoded)))
            what = "decoded text";
        else if (!same_text(tok, &enc, true, skipped, strlen(skipped)))
            what = "decoded text without special tokens";
        if (what) {
            print_error("%s: \"%s\": %s\n", json_string_value(json_object_get(variant, "name")),
                        text, what);
            bad++;
        }
    }
    ps_encoding_fini(&enc);
    ps_tokenizer_close(tok);
    json_decref(root);
    return bad;
}

static void every_golden_variant_is_exact(void **state)
{
    (void)state;
    json_t *golden = load_golden();
    const json_t *variants = json_object_get(golden, "variants");
    size_t bad = 0;
    assert_in_range(json_array_size(variants), 38, 1000);
    for (size_t i = 0; i < json_array_size(variants); i++)
        bad += check_variant(golden, json_array_get(variants, i));
    json_decref(golden);
    assert_int_equal(bad, 0);
}

/* ---- real tokenizers ---- */

static struct ps_tokenizer *open_shared(const char *name, char *dir, size_t size)
{
    char below[256];
    struct ps_tokenizer *tok = NULL;
    struct ps_error err = {0};
    snprintf(below, sizeof below, "../shared/data/%s", name);
    root_path(dir, size, below);
    if (access(dir, R_OK) != 0) {
        print_message("skip: %s is missing\n", dir);
        skip();
    }
    int ret = ps_tokenizer_open(&tok, dir, &err);
    if (ret != 0)
        print_error("%s: %s\n", err.file, err.message);
    assert_int_equal(ret, 0);
    return tok;
}

static char *read_text(const char *dir, const char *name, size_t *len)
{
    char path[4400];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    long size = ftell(f);
    assert_true(size >= 0);
    rewind(f);
    char *text = malloc((size_t)size + 1);
    assert_non_null(text);
    *len = fread(text, 1, (size_t)size, f);
    assert_int_equal(*len, (size_t)size);
    text[*len] = 0;
    fclose(f);
    return text;
}

/* Texts are separated by a marker line; ids stand one case a line. */
static size_t check_vectors(struct ps_tokenizer *tok, const char *dir, size_t *count)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    size_t in_len, out_len, bad = 0;
    char *in = read_text(dir, "vectors.inp", &in_len);
    char *out = read_text(dir, "vectors.out", &out_len);
    assert_non_null(in);
    assert_non_null(out);
    struct ps_encoding enc = {0};
    char *line = out;
    for (char *text = in; text; (*count)++) {
        char *next = strstr(text, mark);
        struct ps_error err = {0};
        size_t len = next ? (size_t)(next - text) : strlen(text);
        assert_int_equal(ps_tokenizer_encode(tok, text, len, false, &enc, &err), 0);
        bool same = true;
        for (size_t i = 0; i < enc.count; i++) {
            char *end;
            long id = strtol(line, &end, 10);
            same = same && id == enc.ids[i] && end > line;
            line = end;
        }
        char *eol = line + strcspn(line, "\n");
        same = same && strspn(line, " \r") == (size_t)(eol - line);
        if (!same) {
            print_error("%s: vector %zu\n", dir, *count);
            bad++;
        }
        line = *eol ? eol + 1 : eol;
        text = next ? next + sizeof mark - 1 : NULL;
    }
    ps_encoding_fini(&enc);
    free(in);
    free(out);
    return bad;
}

static bool same_tokens(const struct ps_tokenizer *tok, const struct ps_encoding *enc,
                        const json_t *want)
{
    if (enc->count != json_array_size(want))
        return false;
    for (size_t i = 0; i < enc->count; i++)
        if (strcmp(ps_tokenizer_token_text(tok, enc->ids[i]),
                   json_string_value(json_array_get(want, i))) != 0)
            return false;
    return true;
}

/* Cases: ids with special tokens, tokens without, text decoded from the ids. */
static size_t check_cases(struct ps_tokenizer *tok, const char *dir, size_t *count)
{
    char path[4400];
    size_t bad = 0;
    struct ps_encoding enc = {0};
    snprintf(path, sizeof path, "%s/cases.json", dir);
    json_t *cases = json_load_file(path, JSON_ALLOW_NUL, NULL);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        const char *text = json_string_value(json_object_get(c, "text"));
        size_t len = json_string_length(json_object_get(c, "text"));
        struct ps_error err = {0};
        assert_int_equal(ps_tokenizer_encode(tok, text, len, false, &enc, &err), 0);
        bool same = same_tokens(tok, &enc, json_object_get(c, "tokens"));
        assert_int_equal(ps_tokenizer_encode(tok, text, len, true, &enc, &err), 0);
        const json_t *decoded = json_object_get(c, "decoded");
        same = same && same_ids(&enc, json_object_get(c, "ids")) &&
               same_text(tok, &enc, false, json_string_value(decoded), json_string_length(decoded));
        if (!same) {
            print_error("%s: case %zu (%s)\n", dir, i,
                        json_string_value(json_object_get(c, "name")));
            bad++;
        }
        ++*count;
    }
    ps_encoding_fini(&enc);
    json_decref(cases);
    return bad;
}

static void check_real(const char *name, size_t count_min)
{
    char dir[4096], below[256];
    size_t count = 0;
    snprintf(below, sizeof below, "tokenizers/%s", name);
    struct ps_tokenizer *tok = open_shared(below, dir, sizeof dir);
    size_t bad = check_vectors(tok, dir, &count) + check_cases(tok, dir, &count);
    ps_tokenizer_close(tok);
    assert_int_equal(bad, 0);
    assert_in_range(count, count_min, 10000);
}

static void gpt2_vectors_and_cases_are_exact(void **state)
{
    (void)state;
    check_real("gpt2", 99);
}

static void llama3_vectors_and_cases_are_exact(void **state)
{
    (void)state;
    check_real("llama3", 84);
}

static void qwen2_5_vectors_are_exact(void **state)
{
    (void)state;
    check_real("qwen2_5", 47);
}

static void llama2_vectors_and_cases_are_exact(void **state)
{
    (void)state;
    check_real("llama2", 84);
}

static void stories260k_reference_ids_are_exact(void **state)
{
    (void)state;
    char dir[4096], path[4400];
    struct ps_tokenizer *tok = open_shared("models/stories260K", dir, sizeof dir);
    snprintf(path, sizeof path, "%s/reference.json", dir);
    json_t *ref = json_load_file(path, 0, NULL);
    const json_t *texts = json_object_get(ref, "cases");
    struct ps_encoding enc = {0};
    assert_int_equal(json_array_size(texts), 6);
    for (size_t i = 0; i < 6; i++) {
        const json_t *row = json_array_get(texts, i);
        const char *text = json_string_value(json_object_get(row, "text"));
        struct ps_error err = {0};
        assert_int_equal(ps_tokenizer_encode(tok, text, strlen(text), true, &enc, &err), 0);
        const json_t *ids = json_object_get(row, "ids");
        if (json_array_size(ids) == 512) { /* the long text is cut to the model's length */
            assert_in_range(enc.count, 513, 1000);
            enc.count = 512;
        }
        assert_true(same_ids(&enc, ids));
    }
    assert_int_equal(ps_tokenizer_special_id(tok, "bos_token"), 1);
    assert_int_equal(ps_tokenizer_special_id(tok, "eos_token"), 2);
    ps_encoding_fini(&enc);
    ps_tokenizer_close(tok);
    json_decref(ref);
}

static void llama3_opens_within_a_second_and_a_half(void **state)
{
    (void)state;
    char dir[4096];
    double start = cpu_now();
    struct ps_tokenizer *tok = open_shared("tokenizers/llama3", dir, sizeof dir);
    double used = cpu_now() - start;
    assert_int_equal(ps_tokenizer_vocab_size(tok), 128256);
    ps_tokenizer_close(tok);
    assert_true(used < 1.5 * SLOWNESS);
}

/* ---- no quadratic behaviour ---- */

static void check_letters(struct ps_tokenizer *tok, const char *name)
{
    static const char *const letters[] = {"a", " ", "\xCC\x81", "\xE5\xAD\x97"};
    enum { BYTES = 1 << 20 };
    char *text = malloc(BYTES);
    assert_non_null(text);
    struct ps_encoding enc = {0};
    for (size_t k = 0; k < sizeof letters / sizeof letters[0]; k++) {
        size_t size = strlen(letters[k]), len = BYTES / size * size;
        for (size_t i = 0; i < len; i++)
            text[i] = letters[k][i % size];
        struct ps_error err = {0};
        double start = cpu_now();
        assert_int_equal(ps_tokenizer_encode(tok, text, len, false, &enc, &err), 0);
        double used = cpu_now() - start;
        if (used >= 2 * SLOWNESS)
            print_error("%s: 1 MiB of \"%s\" took %.2f s\n", name, letters[k], used);
        assert_true(used < 2 * SLOWNESS);
        assert_in_range(enc.count, 1, 2 * BYTES);
        assert_int_equal(enc.end[enc.count - 1], len);
    }
    ps_encoding_fini(&enc);
    free(text);
}

static void a_mebibyte_of_one_letter_takes_under_two_seconds(void **state)
{
    (void)state;
    json_t *golden = load_golden();
    const json_t *variants = json_object_get(golden, "variants");
    static const char *const names[] = {"llama3", "qwen", "llama2", "unknown", "gemma", "NFKD"};
    size_t found = 0;
    for (size_t i = 0; i < json_array_size(variants); i++) {
        const json_t *v = json_array_get(variants, i);
        const char *name = json_string_value(json_object_get(v, "name"));
        for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
            if (strcmp(name, names[k]) != 0)
                continue;
            json_t *root = patched(golden, json_string_value(json_object_get(v, "base")),
                                   json_object_get(v, "patch"));
            struct ps_tokenizer *tok = must_parse(root, NULL);
            check_letters(tok, name);
            ps_tokenizer_close(tok);
            json_decref(root);
            found++;
        }
    }
    json_decref(golden);
    assert_int_equal(found, sizeof names / sizeof names[0]);
}

static void check_real_letters(const char *name)
{
    char dir[4096];
    struct ps_tokenizer *tok = open_shared(name, dir, sizeof dir);
    check_letters(tok, name);
    ps_tokenizer_close(tok);
}

static void a_mebibyte_of_one_letter_is_fast_with_real_tokenizers(void **state)
{
    (void)state;
    check_real_letters("tokenizers/gpt2");
    check_real_letters("tokenizers/llama3");
    check_real_letters("tokenizers/qwen2_5");
    check_real_letters("tokenizers/llama2");
    check_real_letters("models/stories260K");
}

/* ---- properties ---- */

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Random text: mostly letters and spaces, some characters of two to four bytes. */
static size_t random_text(uint32_t *seed, char *out, size_t chars)
{
    size_t n = 0;
    for (size_t i = 0; i < chars; i++) {
        uint32_t c = next_random(seed) % 16;
        if (c < 9)
            out[n++] = (char)('a' + next_random(seed) % 6);
        else if (c < 12)
            out[n++] = " \n1"[next_random(seed) % 3];
        else if (c < 14)
            n += (size_t)sprintf(out + n, "\xC3%c", 0x80 + (int)(next_random(seed) % 64));
        else if (c < 15)
            n += (size_t)sprintf(out + n, "\xE4\xB8%c", 0x80 + (int)(next_random(seed) % 64));
        else
            n += (size_t)sprintf(out + n, "\xF0\x9F\x98%c", 0x80 + (int)(next_random(seed) % 64));
    }
    return n;
}

static void byte_level_offsets_partition_the_text_and_decoding_restores_it(void **state)
{
    (void)state;
    struct ps_tokenizer *tok = make_tokenizer("bytes", "{}", NULL);
    struct ps_encoding enc = {0};
    uint32_t seed = 20260801;
    char text[2048];
    for (int round = 0; round < 300; round++) {
        struct ps_error err = {0};
        size_t n = random_text(&seed, text, next_random(&seed) % 400);
        text[n] = 0;
        assert_int_equal(ps_tokenizer_encode(tok, text, n, true, &enc, &err), 0);
        size_t at = 0;
        for (size_t i = 0; i < enc.count; i++) {
            assert_int_equal(enc.begin[i], at);
            assert_true(enc.end[i] > at);
            at = enc.end[i];
        }
        assert_int_equal(at, n);
        assert_true(same_text(tok, &enc, false, text, n));
    }
    ps_encoding_fini(&enc);
    ps_tokenizer_close(tok);
}

/* The definition, quadratic: merge the leftmost pair of lowest rank until there is none. */
static size_t merge_by_definition(int32_t *ids, size_t n, const int32_t (*merges)[3], size_t count)
{
    for (;;) {
        size_t best = count, at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t k = 0; k < best; k++)
                if (merges[k][0] == ids[i] && merges[k][1] == ids[i + 1]) {
                    best = k;
                    at = i;
                }
        if (best == count)
            return n;
        ids[at] = merges[best][2];
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

static void long_pieces_merge_as_the_definition_says(void **state)
{
    (void)state;
    static const char json[] =
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"aa\":4,"
        "\"aab\":5,\"bc\":6,\"abc\":7,\"aabc\":8,\"cc\":9,\"ca\":10,\"aabaab\":11,\"bb\":12},"
        "\"merges\":[\"c a\",\"a a\",\"b c\",\"a b\",[\"a\",\"bc\"],\"aa b\",\"a abc\",\"c c\","
        "\"aab aab\",\"b b\"]}}";
    static const int32_t merges[][3] = {{2, 0, 10}, {0, 0, 4}, {1, 2, 6}, {0, 1, 3},  {0, 6, 7},
                                        {4, 1, 5},  {0, 7, 8}, {2, 2, 9}, {5, 5, 11}, {1, 1, 12}};
    struct ps_tokenizer *tok = NULL;
    struct ps_error err = {0};
    struct ps_encoding enc = {0};
    assert_int_equal(ps_tokenizer_parse(&tok, json, sizeof json - 1, NULL, 0, &err), 0);
    uint32_t seed = 99;
    char text[300];
    int32_t ids[300];
    for (int round = 0; round < 400; round++) {
        size_t n = 1 + next_random(&seed) % 299;
        uint32_t letters = 1 + next_random(&seed) % 3;
        for (size_t i = 0; i < n; i++) {
            ids[i] = (int32_t)(next_random(&seed) % letters);
            text[i] = (char)('a' + ids[i]);
        }
        assert_int_equal(ps_tokenizer_encode(tok, text, n, false, &enc, &err), 0);
        n = merge_by_definition(ids, n, merges, sizeof merges / sizeof merges[0]);
        assert_int_equal(enc.count, n);
        assert_memory_equal(enc.ids, ids, n * sizeof *ids);
    }
    ps_encoding_fini(&enc);
    ps_tokenizer_close(tok);
}

static void offsets_point_into_the_original_through_nfc(void **state)
{
    (void)state;
    struct ps_tokenizer *tok = make_tokenizer("bytes", "{\"normalizer\":{\"type\":\"NFC\"}}", NULL);
    /* e + acute is three bytes that become one character of two; both tokens stand for all three */
    static const char text[] = "xe\xCC\x81y";
    static const size_t want[][2] = {{0, 1}, {1, 4}, {1, 4}, {4, 5}};
    struct ps_encoding enc = {0};
    struct ps_error err = {0};
    assert_int_equal(ps_tokenizer_encode(tok, text, 5, false, &enc, &err), 0);
    assert_in_range(enc.count, 3, 4); /* one or two tokens for the character */
    assert_int_equal(enc.begin[0], 0);
    assert_int_equal(enc.end[0], 1);
    for (size_t i = 1; i + 1 < enc.count; i++) {
        assert_int_equal(enc.begin[i], want[1][0]);
        assert_int_equal(enc.end[i], want[1][1]);
    }
    assert_int_equal(enc.begin[enc.count - 1], 4);
    assert_int_equal(enc.end[enc.count - 1], 5);
    ps_encoding_fini(&enc);
    ps_tokenizer_close(tok);
}

static void texts_of_any_order_give_the_same_ids(void **state)
{
    (void)state;
    /* The word cache must not show: encode the same words between different neighbours. */
    struct ps_tokenizer *tok = make_tokenizer("pieces", "{}", NULL);
    struct ps_tokenizer *fresh = make_tokenizer("pieces", "{}", NULL);
    struct ps_encoding a = {0}, b = {0};
    struct ps_error err = {0};
    uint32_t seed = 5;
    char text[2048];
    for (int round = 0; round < 200; round++) {
        size_t n = random_text(&seed, text, next_random(&seed) % 60);
        assert_int_equal(ps_tokenizer_encode(tok, text, n, false, &a, &err), 0);
        if (round % 20 == 0) {
            ps_tokenizer_close(fresh);
            fresh = make_tokenizer("pieces", "{}", NULL);
        }
        assert_int_equal(ps_tokenizer_encode(fresh, text, n, false, &b, &err), 0);
        assert_int_equal(a.count, b.count);
        if (a.count) {
            assert_memory_equal(a.ids, b.ids, a.count * sizeof *a.ids);
            assert_memory_equal(a.begin, b.begin, a.count * sizeof *a.begin);
            assert_memory_equal(a.end, b.end, a.count * sizeof *a.end);
        }
    }
    ps_encoding_fini(&a);
    ps_encoding_fini(&b);
    ps_tokenizer_close(fresh);
    ps_tokenizer_close(tok);
}

static void a_byte_without_a_token_is_unknown_or_left_out(void **state)
{
    (void)state;
    /* As the reference does; SmolLM2 has no token for byte 04. */
    static const char *const unk[] = {"null", "\"?\""};
    for (int k = 0; k < 2; k++) {
        char json[300];
        int n = snprintf(json, sizeof json,
                         "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                         "\"use_regex\":false},\"model\":{\"unk_token\":%s,\"vocab\":{\"a\":0,"
                         "\"b\":1,\"?\":2,\"ab\":3},\"merges\":[\"a b\"]}}",
                         unk[k]);
        struct ps_tokenizer *tok = NULL;
        struct ps_encoding enc = {0};
        struct ps_error err = {0};
        assert_int_equal(ps_tokenizer_parse(&tok, json, (size_t)n, NULL, 0, &err), 0);
        assert_int_equal(ps_tokenizer_encode(tok,
                                             "ab\x04"
                                             "b",
                                             4, false, &enc, &err),
                         0);
        assert_int_equal(enc.count, 2 + k);
        assert_int_equal(enc.ids[0], 3);
        assert_int_equal(enc.ids[1], k ? 2 : 1);
        assert_int_equal(enc.begin[1], k ? 2 : 3);
        assert_int_equal(enc.end[enc.count - 1], 4);
        ps_encoding_fini(&enc);
        ps_tokenizer_close(tok);
    }
}

static void looks_up_tokens_both_ways(void **state)
{
    (void)state;
    struct ps_tokenizer *tok = make_tokenizer("bytes", "{}", NULL);
    size_t count = ps_tokenizer_vocab_size(tok), found = 0;
    for (size_t id = 0; id < count; id++) {
        const char *text = ps_tokenizer_token_text(tok, (int32_t)id);
        if (!text)
            continue;
        assert_int_equal(ps_tokenizer_token_id(tok, text), id);
        found++;
    }
    assert_in_range(found, 300, count);
    assert_null(ps_tokenizer_token_text(tok, (int32_t)count));
    assert_null(ps_tokenizer_token_text(tok, -1));
    assert_int_equal(ps_tokenizer_token_id(tok, "no such token"), -1);
    ps_tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_golden_variant_is_exact),
        cmocka_unit_test(gpt2_vectors_and_cases_are_exact),
        cmocka_unit_test(llama3_vectors_and_cases_are_exact),
        cmocka_unit_test(qwen2_5_vectors_are_exact),
        cmocka_unit_test(llama2_vectors_and_cases_are_exact),
        cmocka_unit_test(stories260k_reference_ids_are_exact),
        cmocka_unit_test(llama3_opens_within_a_second_and_a_half),
        cmocka_unit_test(a_mebibyte_of_one_letter_takes_under_two_seconds),
        cmocka_unit_test(a_mebibyte_of_one_letter_is_fast_with_real_tokenizers),
        cmocka_unit_test(byte_level_offsets_partition_the_text_and_decoding_restores_it),
        cmocka_unit_test(long_pieces_merge_as_the_definition_says),
        cmocka_unit_test(offsets_point_into_the_original_through_nfc),
        cmocka_unit_test(texts_of_any_order_give_the_same_ids),
        cmocka_unit_test(a_byte_without_a_token_is_unknown_or_left_out),
        cmocka_unit_test(looks_up_tokens_both_ways),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
