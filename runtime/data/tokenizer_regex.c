/* Regular expressions of tokenizer.json on PCRE2, with limits.
 *
 * Design: the files are written for Oniguruma (Ruby syntax, UTF-8). Patterns are translated where
 * PCRE2 reads the same text differently: \s (PCRE2 counts U+180E as a space), \w (PCRE2 10.42
 * leaves out marks and connectors; Oniguruma's is Alphabetic, M, Nd and Pc), \h, \uHHHH, the option
 * letter m, and ^ $ that always work by line. What cannot be translated is refused. The subject is
 * validated once by the caller, so every match runs with PCRE2_NO_UTF_CHECK: with the check, many
 * short matches over one long subject would be quadratic.
 *
 * Character classes are those of PCRE2's Unicode version (14 in 10.42). Over all code points this
 * differs from the reference in 120 digits that were assigned later, and nowhere else.
 *
 * Limits: each match by PCRE2's match, depth and heap limits and the JIT stack; all matches of
 * one encode by CPU time, because a pattern whose single matches stay just below the limit at
 * every position would still take hours. The time is far above what any honest pattern needs
 * (about 0.05 us a byte), so it decides nothing but hostile cases. */
#include "runtime/data/tokenizer_internal.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MATCH_LIMIT_BASE 1000000u
#define MATCH_LIMIT_PER_BYTE 32u
#define DEPTH_LIMIT 1000000u
#define HEAP_LIMIT_KIB 65536u
#define STARTS_MAX 1024u /* places at which one call may begin a match */
#define JIT_STACK_MAX ((size_t)4 << 20)
#define CPU_BASE_S 2.0
#define CPU_PER_BYTE_S 5e-6

struct ps__tok_regex {
    pcre2_code *code;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    const char *file, *field;    /* borrowed from the tokenizer */
    struct ps__tok_meter *meter; /* the tokenizer's */
    char shown[160];             /* the pattern, shortened, for messages */
};

struct translation {
    char *out;
    size_t len, capacity;
    const char *why; /* what is not supported, or NULL */
};

static int put(struct translation *t, const char *text, size_t n)
{
    int ret = ps__tok_reserve((void **)&t->out, &t->capacity, t->len + n + 1, 1);
    if (ret < 0)
        return ret;
    memcpy(t->out + t->len, text, n);
    t->len += n;
    return 0;
}

/* Replacement of an escape \c, or NULL to keep it. */
static const char *escape_text(char c, bool in_class, const char **why)
{
#define SPACE "\\p{Z}\\x09-\\x0d\\x{85}"
#define CIRCLED "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
#define WORD "\\p{L}\\p{M}\\p{Nl}\\p{Nd}\\p{Pc}" CIRCLED
    switch (c) {
    case 's':
        return in_class ? SPACE : "[" SPACE "]";
    case 'S':
        return in_class ? NULL : "[^" SPACE "]";
    case 'w':
        return in_class ? WORD : "[" WORD "]";
    case 'W':
        if (in_class)
            *why = "\\W inside a character class";
        return "[^" WORD "]";
    case 'h':
        return in_class ? "0-9a-fA-F" : "[0-9a-fA-F]";
    case 'H':
        if (in_class)
            *why = "\\H inside a character class";
        return "[^0-9a-fA-F]";
    case 'd':
        return "\\p{Nd}";
    case 'D':
        return "\\P{Nd}";
    case 'C':
        *why = "\\C";
        return NULL;
    case 'K':
        *why = "\\K";
        return NULL;
    case 'G':
        *why = "\\G";
        return NULL;
    default:
        return NULL;
    }
#undef SPACE
#undef WORD
#undef CIRCLED
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* An escape at p[i]; returns the bytes it takes, or -errno. */
static int translate_escape(struct translation *t, const char *p, size_t len, size_t i,
                            bool in_class)
{
    if (i + 1 >= len)
        return put(t, p + i, 1) < 0 ? -ENOMEM : 1;
    if (p[i + 1] == 'u' && i + 5 < len && is_hex(p[i + 2]) && is_hex(p[i + 3]) &&
        is_hex(p[i + 4]) && is_hex(p[i + 5])) {
        char text[10];
        int n = snprintf(text, sizeof text, "\\x{%.4s}", p + i + 2);
        return put(t, text, (size_t)n) < 0 ? -ENOMEM : 6;
    }
    const char *text = escape_text(p[i + 1], in_class, &t->why);
    int ret = text ? put(t, text, strlen(text)) : put(t, p + i, 2);
    return ret < 0 ? ret : 2;
}

/* "(?imx-imx" at p[i]: the letter m means dot-all in Ruby. Returns the bytes it takes. */
static int translate_group(struct translation *t, const char *p, size_t len, size_t i)
{
    size_t j = i + 2;
    while (j < len && (p[j] == 'i' || p[j] == 'm' || p[j] == 'x' || p[j] == '-'))
        j++;
    bool options = j < len && j > i + 2 && (p[j] == ':' || p[j] == ')');
    if (!options)
        j = i + 2;
    for (size_t k = i; k < j; k++) {
        char c = options && p[k] == 'm' ? 's' : p[k];
        if (put(t, &c, 1) < 0)
            return -ENOMEM;
    }
    return (int)(j - i);
}

static int translate(struct translation *t, const char *p, size_t len)
{
    bool in_class = false;
    size_t class_at = 0;
    for (size_t i = 0; i < len;) {
        int n = 1;
        if (p[i] == '\\') {
            n = translate_escape(t, p, len, i, in_class);
        } else if (!in_class && p[i] == '(' && i + 1 < len && p[i + 1] == '?') {
            n = translate_group(t, p, len, i);
        } else if (!in_class && p[i] == '(' && i + 1 < len && p[i + 1] == '*') {
            t->why = "(* verbs";
        } else if (in_class && p[i] == '[' && i + 1 < len && p[i + 1] == ':') {
            const char *close = memmem(p + i, len - i, ":]", 2);
            n = close ? (int)(close - (p + i)) + 2 : 1;
            n = put(t, p + i, (size_t)n) < 0 ? -ENOMEM : n;
        } else {
            if (in_class && p[i] == '[')
                t->why = "a character class inside a character class";
            if (in_class && p[i] == '&' && i + 1 < len && p[i + 1] == '&')
                t->why = "an intersection (&&) of character classes";
            if (!in_class && p[i] == '[') {
                in_class = true;
                class_at = i + 1 < len && p[i + 1] == '^' ? i + 1 : i;
            } else if (in_class && p[i] == ']' && i > class_at + 1) {
                in_class = false;
            }
            n = put(t, p + i, 1) < 0 ? -ENOMEM : 1;
        }
        if (n < 0)
            return n;
        if (t->why)
            return 0;
        i += (size_t)n;
    }
    return put(t, "", 0);
}

void ps__tok_regex_destroy(struct ps__tok_regex *regex)
{
    if (!regex)
        return;
    pcre2_jit_stack_free(regex->stack);
    pcre2_match_context_free(regex->context);
    pcre2_match_data_free(regex->match);
    pcre2_code_free(regex->code);
    free(regex);
}

static int compile(struct ps__tok_regex *re, const char *pattern, size_t len, struct ps_error *err)
{
    int code;
    PCRE2_SIZE at;
    uint32_t options =
        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT;
    pcre2_compile_context *cc = pcre2_compile_context_create(NULL);
    if (!cc)
        return -ENOMEM;
    PS_IGNORE(pcre2_set_newline(cc, PCRE2_NEWLINE_LF), "a constant that PCRE2 knows");
    re->code = pcre2_compile((PCRE2_SPTR)pattern, len, options, &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (!re->code && code == PCRE2_ERROR_HEAP_FAILED)
        return -ENOMEM;
    if (!re->code) {
        char text[120];
        PS_IGNORE(pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text) < 0,
                  "truncation is fine");
        return ps_error_full(err, PS_EFORMAT, re->file, re->field, NULL,
                             "regular expression does not compile: %s: %s", text, re->shown);
    }
    /* Without JIT (other processors, no executable memory) the interpreter does the same. */
    PS_IGNORE(pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE), "optional");
    re->match = pcre2_match_data_create(1, NULL);
    re->context = pcre2_match_context_create(NULL);
    re->stack = pcre2_jit_stack_create(32768, JIT_STACK_MAX, NULL);
    if (!re->match || !re->context)
        return -ENOMEM;
    if (re->stack)
        pcre2_jit_stack_assign(re->context, NULL, re->stack);
    PS_IGNORE(pcre2_set_depth_limit(re->context, DEPTH_LIMIT), "always 0");
    PS_IGNORE(pcre2_set_heap_limit(re->context, HEAP_LIMIT_KIB), "always 0");
    return 0;
}

int ps__tok_regex_create(struct ps_tokenizer *tok, struct ps__tok_regex **out, const char *pattern,
                         size_t len, const char *field, struct ps_error *err)
{
    const char *file = tok->file;
    if (len > PS__TOK_PATTERN_BYTES_MAX)
        return ps_error_full(err, PS_EFORMAT, file, field, NULL,
                             "regular expression of %zu bytes; at most %d are accepted", len,
                             PS__TOK_PATTERN_BYTES_MAX);
    struct ps__tok_regex *re = calloc(1, sizeof *re);
    if (!re)
        return ps_error_set(err, -ENOMEM, "out of memory");
    re->file = file;
    re->field = field;
    re->meter = &tok->meter;
    PS_IGNORE(snprintf(re->shown, sizeof re->shown, "%s", pattern) < 0, "truncation is fine");
    struct translation t = {0};
    int ret = translate(&t, pattern, len);
    if (ret == 0 && t.why)
        ret = ps_error_full(err, PS_EUNSUPPORTED, file, field, NULL,
                            "regular expression uses %s: %s", t.why, re->shown);
    else if (ret == 0)
        ret = compile(re, t.out, t.len, err);
    free(t.out);
    if (ret < 0) {
        ps__tok_regex_destroy(re);
        return ret == -ENOMEM ? ps_error_set(err, ret, "out of memory") : ret;
    }
    *out = re;
    return 0;
}

static double cpu_seconds(void)
{
    struct timespec ts = {0};
    PS_IGNORE(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts), "zero disables the time limit only");
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

void ps__tok_meter_start(struct ps__tok_meter *meter, size_t text_len)
{
    *meter = (struct ps__tok_meter){.start = -1,
                                    .budget_s = CPU_BASE_S + CPU_PER_BYTE_S * (double)text_len};
}

/* Count one match; now and then look at the clock. */
static bool meter_exceeded(struct ps__tok_meter *meter)
{
    if (++meter->count % 16 != 0)
        return false;
    double now = cpu_seconds();
    if (meter->start < 0)
        meter->start = now;
    return now - meter->start > meter->budget_s;
}

static int too_slow(const struct ps__tok_regex *re, size_t at, const char *what,
                    struct ps_error *err)
{
    return ps_error_full(err, PS_EFORMAT, re->file, re->field,
                         "check where this tokenizer.json comes from; the pattern may be hostile",
                         "regular expression fails at byte %zu of a text (%s): %s", at, what,
                         re->shown);
}

static int match_failed(const struct ps__tok_regex *re, int rc, size_t at, struct ps_error *err)
{
    char text[120];
    if (rc == PCRE2_ERROR_NOMEMORY)
        return ps_error_set(err, -ENOMEM, "out of memory");
    PS_IGNORE(pcre2_get_error_message(rc, (PCRE2_UCHAR *)text, sizeof text) < 0,
              "truncation is fine");
    return too_slow(re, at, text, err);
}

int ps__tok_regex_find(struct ps__tok_regex *re, const char *bytes, size_t len,
                       struct ps__tok_spans *out, struct ps_error *err)
{
    size_t at = 0, last_end = SIZE_MAX;
    uint64_t limit = MATCH_LIMIT_BASE + (uint64_t)MATCH_LIMIT_PER_BYTE * len;
    PS_IGNORE(pcre2_set_match_limit(re->context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit),
              "always 0");
    const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(re->match);
    while (at <= len) {
        if (meter_exceeded(re->meter))
            return too_slow(re, at, "time limit exceeded", err);
        /* A failing call looks at no more than STARTS_MAX places: JIT code counts little of what
         * it does, and the clock is only read between calls. */
        size_t last = len - at > STARTS_MAX ? at + STARTS_MAX : len;
        PS_IGNORE(pcre2_set_offset_limit(re->context, last), "always 0");
        int rc = pcre2_match(re->code, (PCRE2_SPTR)bytes, len, at, PCRE2_NO_UTF_CHECK, re->match,
                             re->context);
        if (rc == PCRE2_ERROR_NOMATCH && last < len) {
            for (at = last + 1; at < len && ((unsigned char)bytes[at] & 0xC0) == 0x80;)
                at++;
            continue;
        }
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0)
            return match_failed(re, rc, at, err);
        if (ov[0] < at || ov[1] < ov[0])
            return too_slow(re, at, "matches out of order", err);
        if (ov[0] == ov[1] && ov[0] == last_end) {
            /* An empty match right after a match does not count: go on one character later. */
            size_t size = 1;
            if (at < len)
                PS_IGNORE(ps__tok_char_at(bytes, len, at, &size) < 0, "text is valid");
            at += size;
            continue;
        }
        int ret = ps__tok_spans_put(out, ov[0], ov[1]);
        if (ret < 0)
            return ps_error_set(err, ret, "out of memory");
        at = last_end = ov[1];
    }
    return 0;
}

int ps__tok_pattern_parse(struct ps_tokenizer *tok, const json_t *obj, const char *field,
                          struct ps__tok_pattern *out, struct ps_error *err)
{
    const json_t *text = json_object_get(obj, "String");
    const json_t *regex = json_object_get(obj, "Regex");
    if (json_is_string(obj)) /* old files: a plain string */
        text = obj;
    if (json_is_string(regex))
        return ps__tok_regex_create(tok, &out->regex, json_string_value(regex),
                                    json_string_length(regex), field, err);
    if (!json_is_string(text) || json_string_length(text) == 0 ||
        json_string_length(text) > PS__TOK_TOKEN_BYTES_MAX)
        return ps_error_full(err, PS_EFORMAT, tok->file, field, NULL,
                             "pattern must be {\"String\": ...} or {\"Regex\": ...}, 1 to %d bytes",
                             PS__TOK_TOKEN_BYTES_MAX);
    out->literal.len = (uint32_t)json_string_length(text);
    out->literal.bytes = ps__tok_arena_copy(&tok->arena, json_string_value(text), out->literal.len);
    return out->literal.bytes ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
}

void ps__tok_pattern_fini(struct ps__tok_pattern *pattern)
{
    ps__tok_regex_destroy(pattern->regex);
    pattern->regex = NULL;
}

int ps__tok_pattern_find(const struct ps__tok_pattern *pattern, const char *bytes, size_t len,
                         struct ps__tok_spans *out, struct ps_error *err)
{
    out->count = 0;
    if (pattern->regex)
        return ps__tok_regex_find(pattern->regex, bytes, len, out, err);
    size_t n = pattern->literal.len;
    for (size_t at = 0; at + n <= len;) {
        const char *hit = memmem(bytes + at, len - at, pattern->literal.bytes, n);
        if (!hit)
            break;
        at = (size_t)(hit - bytes) + n;
        int ret = ps__tok_spans_put(out, at - n, at);
        if (ret < 0)
            return ps_error_set(err, ret, "out of memory");
    }
    return 0;
}
