/* What the tokenizer refuses, and what it does when memory is short: every rule by name, hostile
 * patterns as errors and not as hangs, the overrides of tokenizer_config.json. */
#include "tests/data/tokenizer_check.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- allocations that fail ----
 *
 * This program's malloc, calloc, realloc and free stand before libc's (with sanitizers the
 * sanitizer has that place: the tests of it are skipped then). fail_at counts down to the one that
 * fails; live counts blocks. */
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CAN_FAIL 1
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#undef CAN_FAIL
#define CAN_FAIL 0
#endif
#endif
#else
#define CAN_FAIL 0
#endif

#if CAN_FAIL
static long fail_at, live;

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void __libc_free(void *block);

static bool fails(void)
{
    return fail_at > 0 && --fail_at == 0;
}

void *malloc(size_t size)
{
    void *p = fails() ? NULL : __libc_malloc(size);
    live += p != NULL;
    return p;
}

void *calloc(size_t count, size_t size)
{
    void *p = fails() ? NULL : __libc_calloc(count, size);
    live += p != NULL;
    return p;
}

void *realloc(void *old, size_t size)
{
    void *p = fails() ? NULL : __libc_realloc(old, size);
    live += p != NULL && !old;
    return p;
}

void free(void *block)
{
    live -= block != NULL;
    __libc_free(block);
}

/* jansson 2.14 itself crashes on some failures of its own allocations: it never sees one here. */
static void *json_allocate(size_t size)
{
    void *p = __libc_malloc(size);
    live += p != NULL;
    return p;
}

static int spare_jansson(void **state)
{
    (void)state;
    json_set_alloc_funcs(json_allocate, free);
    return 0;
}

/* A small file with every kind of step that allocates. */
static const char small_json[] =
    "{\"added_tokens\":[{\"id\":6,\"content\":\"<s>\",\"special\":true,\"normalized\":false},"
    "{\"id\":7,\"content\":\"Xy\",\"normalized\":true}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKC\"},"
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"x+\"},\"content\":\"a\"}]},"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Metaspace\",\"replacement\":\"b\",\"prepend_scheme\":\"always\"},"
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"c\"},\"behavior\":\"Isolated\"}]},"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},"
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"b\"},\"content\":\" \"},{\"type\":\"Fuse\"}]},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
    "\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[6]}}},"
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,"
    "\"?\":4,\"abab\":5},\"merges\":[\"a b\",\"ab ab\"]}}";

static void every_failed_allocation_of_opening_is_reported_and_leaks_nothing(void **state)
{
    (void)state;
    static const char config[] = "{\"bos_token\":{\"content\":\"<s>\"}}";
    struct ps_error err = {0};
    long n = 0, before;
    int ret;
    do {
        struct ps_tokenizer *tok = NULL;
        before = live;
        fail_at = ++n;
        ret = ps_tokenizer_parse(&tok, small_json, sizeof small_json - 1, config, sizeof config - 1,
                                 &err);
        bool reached = fail_at == 0;
        fail_at = 0;
        if (ret == 0)
            ps_tokenizer_close(tok);
        else
            assert_null(tok);
        assert_int_equal(live, before);
        /* PCRE2 does without its JIT when that has no memory: then opening succeeds. */
        if (ret == 0 && !reached)
            break;
        assert_true(ret == 0 || ret == -ENOMEM);
    } while (n < 100000);
    assert_in_range(n, 30, 99999);
}

static void every_failed_allocation_of_encoding_is_reported_and_leaks_nothing(void **state)
{
    (void)state;
    char text[600];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = "ab xcX\xC3\xA9y "[i % 9];
    size_t len = sizeof text / 9 * 9;
    for (long n = 1; n < 100000; n++) {
        struct ps_tokenizer *tok = NULL;
        struct ps_encoding enc = {0};
        struct ps_error err = {0};
        long before = live;
        char *decoded = NULL;
        size_t decoded_len;
        assert_int_equal(ps_tokenizer_parse(&tok, small_json, sizeof small_json - 1, NULL, 0, &err),
                         0);
        fail_at = n;
        int ret = ps_tokenizer_encode(tok, text, len, true, &enc, &err);
        if (ret == 0)
            ret = ps_tokenizer_decode(tok, enc.ids, enc.count, false, &decoded, &decoded_len, &err);
        bool reached = fail_at == 0;
        fail_at = 0;
        assert_true(ret == 0 || ret == -ENOMEM);
        if (ret == 0)
            free(decoded);
        /* The tokenizer and the encoding stay usable. */
        assert_int_equal(ps_tokenizer_encode(tok, text, len, true, &enc, &err), 0);
        assert_in_range(enc.count, 100, 600);
        ps_encoding_fini(&enc);
        ps_tokenizer_close(tok);
        assert_int_equal(live, before);
        if (!reached) {
            assert_in_range(n, 10, 99999);
            return;
        }
    }
    fail();
}
#else
static int spare_jansson(void **state)
{
    (void)state;
    return 0;
}

static void every_failed_allocation_of_opening_is_reported_and_leaks_nothing(void **state)
{
    (void)state;
    print_message("skip: allocations cannot be made to fail under a sanitizer\n");
    skip();
}

static void every_failed_allocation_of_encoding_is_reported_and_leaks_nothing(void **state)
{
    (void)state;
    print_message("skip: allocations cannot be made to fail under a sanitizer\n");
    skip();
}
#endif

/* ---- refusals ---- */

struct refusal {
    const char *base;
    const char *patch; /* members put into the file */
    int code;
    const char *field;   /* expected in err.field */
    const char *message; /* expected in err.message */
};

static const struct refusal refusals[] = {
    {"bytes", "{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", PS_EUNSUPPORTED, "model.type",
     "Unigram"},
    {"bytes", "{\"model\":null}", PS_EFORMAT, "model", "no model"},
    {"bytes", "{\"dropout\":0.1}", PS_EUNSUPPORTED, "model.dropout", "dropout"},
    {"bytes", "{\"vocab\":[1]}", PS_EFORMAT, "model.vocab", "object"},
    {"bytes", "{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}", PS_EFORMAT, "model.vocab", "one id"},
    {"bytes", "{\"vocab\":{\"a\":-1},\"merges\":[]}", PS_EFORMAT, "model.vocab", "[0, 2097152)"},
    {"bytes", "{\"vocab\":{\"a\":2097152},\"merges\":[]}", PS_EFORMAT, "model.vocab", "2097152"},
    {"bytes", "{\"vocab\":{\"a\":1.5},\"merges\":[]}", PS_EFORMAT, "model.vocab", "integer"},
    {"pieces", "{\"unk_token\":\"nowhere\"}", PS_EFORMAT, "model.unk_token", "nowhere"},
    {"bytes", "{\"merges\":{}}", PS_EFORMAT, "model.merges", "array"},
    {"bytes", "{\"merges\":[\"ab\"]}", PS_EFORMAT, "model.merges", "one space"},
    {"bytes", "{\"merges\":[\"a b c\"]}", PS_EFORMAT, "model.merges", "one space"},
    {"bytes", "{\"merges\":[[\"a\"]]}", PS_EFORMAT, "model.merges", "left"},
    {"bytes", "{\"merges\":[\"a nowhere\"]}", PS_EFORMAT, "model.merges", "nowhere"},
    {"bytes", "{\"merges\":[\"Z Q\"]}", PS_EFORMAT, "model.merges", "result of merge 0"},
    {"bytes", "{\"added_tokens\":[{\"id\":400,\"content\":\"\"}]}", PS_EFORMAT, "added_tokens",
     "empty"},
    {"bytes", "{\"added_tokens\":[{\"content\":\"x\"}]}", PS_EFORMAT, "added_tokens", "no id"},
    {"bytes", "{\"added_tokens\":[{\"id\":2097152,\"content\":\"xx\"}]}", PS_EFORMAT, "id", "id"},
    {"bytes", "{\"added_tokens\":[{\"id\":7,\"content\":\"new\"}]}", PS_EFORMAT, "added_tokens",
     "another token"},
    {"bytes", "{\"added_tokens\":[{\"id\":400,\"content\":\"a\"}]}", PS_EFORMAT, "added_tokens",
     "gives it"},
    {"bytes",
     "{\"added_tokens\":[{\"id\":400,\"content\":\"xx\"},{\"id\":401,\"content\":\"xx\"}]}",
     PS_EFORMAT, "added_tokens", "twice"},
    {"bytes",
     "{\"added_tokens\":[{\"id\":400,\"content\":\"xx\"},{\"id\":400,\"content\":\"yy\"}]}",
     PS_EFORMAT, "added_tokens", "id 400"},
    {"bytes",
     "{\"added_tokens\":[{\"id\":400,\"content\":\"  \",\"normalized\":true}],\"normalizer\":"
     "{\"type\":\"Strip\"}}",
     PS_EFORMAT, "added_tokens", "leaves nothing"},
    {"bytes", "{\"normalizer\":{\"type\":\"BertNormalizer\"}}", PS_EUNSUPPORTED, "normalizer",
     "BertNormalizer"},
    {"bytes", "{\"normalizer\":{\"type\":\"Precompiled\"}}", PS_EUNSUPPORTED, "normalizer",
     "Precompiled"},
    {"bytes", "{\"normalizer\":{}}", PS_EFORMAT, "normalizer", "type"},
    {"bytes", "{\"normalizer\":{\"type\":\"Prepend\"}}", PS_EFORMAT, "prepend", "string"},
    {"bytes",
     "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"x\"}}",
     PS_EFORMAT, "normalizer.pattern", "pattern"},
    {"bytes", "{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}}", PS_EUNSUPPORTED,
     "pre_tokenizer", "BertPreTokenizer"},
    {"bytes",
     "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Odd\"}}",
     PS_EFORMAT, "pre_tokenizer.behavior", "Odd"},
    {"bytes",
     "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":"
     "\"Isolated\"}}",
     PS_EFORMAT, "pre_tokenizer.pattern", "does not compile"},
    {"bytes",
     "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-z&&[b]]\"},\"behavior\":"
     "\"Isolated\"}}",
     PS_EUNSUPPORTED, "pre_tokenizer.pattern", "[a-z&&[b]]"},
    {"bytes", "{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"__\"}}", PS_EFORMAT,
     "pre_tokenizer.replacement", "one character"},
    {"bytes",
     "{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"x\"}}",
     PS_EFORMAT, "pre_tokenizer.prepend_scheme", "\"x\""},
    {"bytes", "{\"post_processor\":{\"type\":\"BertProcessing\"}}", PS_EUNSUPPORTED,
     "post_processor", "BertProcessing"},
    {"bytes", "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}}", PS_EFORMAT,
     "post_processor.single", "once"},
    {"bytes",
     "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
     "\"q\"}}],\"special_tokens\":{}}}",
     PS_EFORMAT, "post_processor.special_tokens", "\"q\""},
    {"bytes",
     "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
     "\"q\"}}],\"special_tokens\":{\"q\":{\"ids\":[9999]}}}}",
     PS_EFORMAT, "post_processor.special_tokens", "without a token"},
    {"bytes", "{\"decoder\":{\"type\":\"WordPiece\"}}", PS_EUNSUPPORTED, "decoder", "WordPiece"},
    {"bytes", "{\"decoder\":{\"type\":\"Strip\",\"content\":\"\"}}", PS_EFORMAT, "decoder.content",
     "strip"},
};

static void every_broken_file_is_refused_by_field(void **state)
{
    (void)state;
    json_t *golden = load_golden();
    size_t bad = 0;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const struct refusal *r = &refusals[i];
        json_t *patch = json_loads(r->patch, 0, NULL);
        assert_non_null(patch);
        json_t *root = patched(golden, r->base, patch);
        struct ps_tokenizer *tok = NULL;
        struct ps_error err = {0};
        int ret = parse_value(&tok, root, NULL, &err);
        if (ret != r->code || tok || strcmp(err.field, r->field) != 0 ||
            !strstr(err.message, r->message) || strcmp(err.file, "tokenizer.json") != 0) {
            print_error("%s\n  gave %d, field \"%s\", file \"%s\": %s\n", r->patch, ret, err.field,
                        err.file, err.message);
            bad++;
        }
        if (ret == 0)
            ps_tokenizer_close(tok);
        json_decref(root);
        json_decref(patch);
    }
    json_decref(golden);
    assert_int_equal(bad, 0);
}

static void broken_json_and_long_tokens_are_refused(void **state)
{
    (void)state;
    struct ps_tokenizer *tok = NULL;
    struct ps_error err = {0};
    assert_int_equal(ps_tokenizer_parse(&tok, "{", 1, NULL, 0, &err), PS_EFORMAT);
    assert_int_equal(ps_tokenizer_parse(&tok, "[]", 2, NULL, 0, &err), PS_EFORMAT);
    assert_int_equal(ps_tokenizer_parse(&tok, "", 0, NULL, 0, &err), PS_EFORMAT);
    for (size_t len = 4096; len <= 4097; len++) {
        char text[4400], token[4098];
        memset(token, 'x', len);
        token[len] = 0;
        int n = snprintf(text, sizeof text,
                         "{\"model\":{\"vocab\":{\"%s\":0,\"x\":1},\"merges\":[]}}", token);
        int ret = ps_tokenizer_parse(&tok, text, (size_t)n, NULL, 0, &err);
        assert_int_equal(ret, len == 4096 ? 0 : PS_EFORMAT);
        if (ret == 0)
            ps_tokenizer_close(tok);
        else
            assert_non_null(strstr(err.message, "4096"));
    }
}

static void hostile_patterns_are_errors_and_not_hangs(void **state)
{
    (void)state;
    static const char *const patterns[] = {"(a+)+$", "(a|a)+b", "(a(?1)?b)", "(?=(a*b))?c"};
    enum { LEN = 200000 };
    char *text = malloc(LEN);
    assert_non_null(text);
    memset(text, 'a', LEN);
    text[LEN - 1] = 'x';
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        char patch[300];
        snprintf(
            patch, sizeof patch,
            "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
            "\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\","
            "\"add_prefix_space\":false,\"use_regex\":false}]}}",
            patterns[i]);
        struct ps_tokenizer *tok = make_tokenizer("bytes", patch, NULL);
        struct ps_encoding enc = {0};
        struct ps_error err = {0};
        double start = cpu_now();
        int ret = ps_tokenizer_encode(tok, text, LEN, false, &enc, &err);
        assert_true(cpu_now() - start < 6 * SLOWNESS);
        /* Either an error that names the pattern, or (where it is cheap after all) a result. */
        if (ret != 0) {
            assert_int_equal(ret, PS_EFORMAT);
            assert_non_null(strstr(err.message, patterns[i]));
            assert_string_equal(err.field, "pre_tokenizer.pattern");
            assert_int_equal(enc.count, 0);
        } else {
            assert_in_range(enc.count, 1, LEN);
        }
        if (i == 0)
            assert_int_equal(ret, PS_EFORMAT);
        ps_encoding_fini(&enc);
        ps_tokenizer_close(tok);
    }
    free(text);
}

static void normalizers_that_blow_text_up_are_stopped(void **state)
{
    (void)state;
    static const char step[] = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":"
                               "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}";
    char patch[2000];
    int n =
        snprintf(patch, sizeof patch, "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 8; i++)
        n += snprintf(patch + n, sizeof patch - (size_t)n, "%s%s", i ? "," : "", step);
    snprintf(patch + n, sizeof patch - (size_t)n, "]}}");
    struct ps_tokenizer *tok = make_tokenizer("bytes", patch, NULL);
    struct ps_encoding enc = {0};
    struct ps_error err = {0};
    assert_int_equal(ps_tokenizer_encode(tok, "abc", 3, false, &enc, &err), PS_EFORMAT);
    assert_string_equal(err.field, "normalizer");
    assert_int_equal(ps_tokenizer_encode(tok, "bcd", 3, false, &enc, &err), 0);
    ps_encoding_fini(&enc);
    ps_tokenizer_close(tok);
}

static void invalid_utf8_and_unknown_ids_are_data_errors(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "a\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "abcdefgh\xE4\xB8", "\x80"};
    struct ps_tokenizer *tok = make_tokenizer("bytes", "{}", NULL);
    struct ps_encoding enc = {0};
    struct ps_error err = {0};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        assert_int_equal(ps_tokenizer_encode(tok, texts[i], strlen(texts[i]), false, &enc, &err),
                         PS_EDATA);
    int32_t count = (int32_t)ps_tokenizer_vocab_size(tok);
    const int32_t bad[] = {-1, count, INT32_MAX, INT32_MIN};
    char *text = NULL;
    size_t len = 77;
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(ps_tokenizer_decode(tok, &bad[i], 1, false, &text, &len, &err), PS_EDATA);
    assert_null(text);
    assert_int_equal(len, 77);
    assert_int_equal(ps_tokenizer_decode(tok, NULL, 0, false, &text, &len, &err), 0);
    assert_int_equal(len, 0);
    assert_string_equal(text, "");
    free(text);
    ps_encoding_fini(&enc);
    ps_tokenizer_close(tok);
}

static void incomplete_utf8_decodes_to_replacement_characters(void **state)
{
    (void)state;
    struct ps_tokenizer *tok = make_tokenizer("bytes", "{}", NULL);
    /* F0 9F 98 | C3 | 41 | 80: one U+FFFD each for the cut character, the lone lead, the stray */
    static const char *const tokens[] = {"\xC3\xB0", "\xC4\xBF", "\xC4\xBA",
                                         "\xC3\x83", "A",        "\xC4\xA2"};
    int32_t ids[6];
    for (size_t i = 0; i < 6; i++) {
        ids[i] = ps_tokenizer_token_id(tok, tokens[i]);
        assert_true(ids[i] >= 0);
    }
    char *text = NULL;
    size_t len;
    struct ps_error err = {0};
    assert_int_equal(ps_tokenizer_decode(tok, ids, 6, false, &text, &len, &err), 0);
    assert_string_equal(text, "\xEF\xBF\xBD\xEF\xBF\xBD"
                              "A\xEF\xBF\xBD");
    free(text);
    ps_tokenizer_close(tok);
}

/* ---- tokenizer_config.json ---- */

static void check_ends(const char *config, int32_t first, int32_t last, size_t count)
{
    struct ps_tokenizer *tok = make_tokenizer("pieces", "{}", config);
    struct ps_encoding enc = {0};
    struct ps_error err = {0};
    assert_int_equal(ps_tokenizer_encode(tok, "", 0, true, &enc, &err), 0);
    assert_int_equal(enc.count, count);
    if (first >= 0)
        assert_int_equal(enc.ids[0], first);
    if (last >= 0)
        assert_int_equal(enc.ids[count - 1], last);
    for (size_t i = 0; i < enc.count; i++)
        assert_int_equal(enc.begin[i], enc.end[i]);
    ps_encoding_fini(&enc);
    ps_tokenizer_close(tok);
}

static void llama_classes_override_the_template(void **state)
{
    (void)state;
#define LLAMA "\"tokenizer_class\":\"LlamaTokenizer\",\"bos_token\":\"<s>\",\"eos_token\":"
    check_ends(NULL, 1, 1, 1);
    check_ends("{" LLAMA "\"</s>\"}", 1, 1, 1);
    check_ends("{" LLAMA "\"</s>\",\"add_bos_token\":false}", -1, -1, 0);
    check_ends("{" LLAMA "\"</s>\",\"add_eos_token\":true}", 1, 2, 2);
    check_ends("{" LLAMA "{\"content\":\"</s>\",\"special\":true},\"add_bos_token\":false,"
               "\"add_eos_token\":true}",
               2, 2, 1);
    /* other classes keep what tokenizer.json says */
    check_ends(
        "{\"tokenizer_class\":\"Qwen2Tokenizer\",\"add_bos_token\":false,\"bos_token\":null}", 1, 1,
        1);
#undef LLAMA
    struct ps_tokenizer *tok = NULL;
    json_t *golden = load_golden();
    json_t *none = json_object();
    json_t *root = patched(golden, "pieces", none);
    struct ps_error err = {0};
    assert_int_equal(parse_value(&tok, root,
                                 "{\"tokenizer_class\":\"LlamaTokenizerFast\",\"bos_token\":"
                                 "\"nowhere\",\"add_bos_token\":true}",
                                 &err),
                     PS_EFORMAT);
    assert_string_equal(err.file, "tokenizer_config.json");
    assert_string_equal(err.field, "add_bos_token");
    json_decref(root);
    json_decref(none);
    json_decref(golden);
}

static void special_tokens_come_as_strings_or_objects(void **state)
{
    (void)state;
    struct ps_tokenizer *tok = make_tokenizer(
        "pieces", "{}",
        "{\"bos_token\":{\"content\":\"<s>\",\"lstrip\":false},\"eos_token\":\"</"
        "s>\",\"pad_token\":"
        "null,\"unk_token\":\"nowhere\",\"model_max_length\":1000000000000000019884624838656,"
        "\"note\":\"99999999999999999999999\",\"real\":1.00000000000000000000001,"
        "\"small\":-123456789012345678901234567890}");
    assert_int_equal(ps_tokenizer_special_id(tok, "bos_token"), 1);
    assert_int_equal(ps_tokenizer_special_id(tok, "eos_token"), 2);
    assert_int_equal(ps_tokenizer_special_id(tok, "pad_token"), -1);
    assert_int_equal(ps_tokenizer_special_id(tok, "unk_token"), -1);
    assert_int_equal(ps_tokenizer_special_id(tok, "odd_token"), -1);
    ps_tokenizer_close(tok);
}

static void clean_up_of_spaces_follows_the_config(void **state)
{
    (void)state;
    static const char text[] = "a , b . c ! d n't e 's f ' g 've";
    for (int on = 0; on < 2; on++) {
        struct ps_tokenizer *tok = make_tokenizer("bytes", "{}",
                                                  on ? "{\"clean_up_tokenization_spaces\":true}"
                                                     : "{\"clean_up_tokenization_spaces\":null}");
        struct ps_encoding enc = {0};
        struct ps_error err = {0};
        char *out = NULL;
        size_t len;
        assert_int_equal(ps_tokenizer_encode(tok, text, sizeof text - 1, false, &enc, &err), 0);
        assert_int_equal(ps_tokenizer_decode(tok, enc.ids, enc.count, false, &out, &len, &err), 0);
        assert_string_equal(out, on ? "a, b. c! dn't e's f'g've" : text);
        free(out);
        ps_encoding_fini(&enc);
        ps_tokenizer_close(tok);
    }
}

/* ---- opening a directory ---- */

static void write_file(const char *name, const char *text)
{
    FILE *f = fopen(name, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void a_directory_needs_tokenizer_json_and_no_more(void **state)
{
    (void)state;
    struct ps_tokenizer *tok = NULL;
    struct ps_error err = {0};
    char name[] = "tokenizer_dir_XXXXXX", path[100];
    assert_non_null(mkdtemp(name));
    assert_int_equal(ps_tokenizer_open(&tok, name, &err), -ENOENT);
    assert_non_null(strstr(err.file, "tokenizer.json"));
    assert_non_null(strstr(err.advice, "tokenizer.model"));
    snprintf(path, sizeof path, "%s/tokenizer.json", name);
    write_file(path, "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}");
    assert_int_equal(ps_tokenizer_open(&tok, name, &err), 0);
    assert_int_equal(ps_tokenizer_special_id(tok, "bos_token"), -1);
    ps_tokenizer_close(tok);
    char config[100];
    snprintf(config, sizeof config, "%s/tokenizer_config.json", name);
    write_file(config, "[]");
    tok = NULL;
    assert_int_equal(ps_tokenizer_open(&tok, name, &err), PS_EFORMAT);
    assert_null(tok);
    assert_non_null(strstr(err.file, "tokenizer_config.json"));
    assert_int_equal(unlink(config), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_true(ps_tokenizer_open(&tok, name, &err) < 0); /* and does not wait for a writer */
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(name), 0);
    ps_tokenizer_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_broken_file_is_refused_by_field),
        cmocka_unit_test(broken_json_and_long_tokens_are_refused),
        cmocka_unit_test(hostile_patterns_are_errors_and_not_hangs),
        cmocka_unit_test(normalizers_that_blow_text_up_are_stopped),
        cmocka_unit_test(invalid_utf8_and_unknown_ids_are_data_errors),
        cmocka_unit_test(incomplete_utf8_decodes_to_replacement_characters),
        cmocka_unit_test(llama_classes_override_the_template),
        cmocka_unit_test(special_tokens_come_as_strings_or_objects),
        cmocka_unit_test(clean_up_of_spaces_follows_the_config),
        cmocka_unit_test(a_directory_needs_tokenizer_json_and_no_more),
        cmocka_unit_test(every_failed_allocation_of_opening_is_reported_and_leaks_nothing),
        cmocka_unit_test(every_failed_allocation_of_encoding_is_reported_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, spare_jansson, NULL);
}
