/* The header of a safetensors file: one pass over its JSON, then checks of the whole.
 *
 * Design: the header has one fixed form, so it is parsed by hand rather than through a JSON
 * library: errors name the tensor, integers never become doubles, duplicate keys are seen at every
 * level after unescaping, nothing recurses, and a header of 100 MB needs no tree ten times its
 * size. Strings are unescaped in place and end with a NUL where their closing quote was.
 *
 * Invariants after success:
 *  1. tensors sorted by offset tile the data section exactly: no hole, no overlap, nothing after;
 *  2. bytes == elements * size of the type, computed without overflow;
 *  3. names are unique, 1 to 1024 bytes of valid UTF-8 without control characters. */
#include "runtime/model/safetensors_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct type {
    const char *name;
    int bits;
    int dtype;
};

static const struct type types[] = {
    {"F32", 32, PS_DTYPE_F32}, {"BF16", 16, PS_DTYPE_BF16},
    {"F16", 16, PS_DTYPE_F16}, {"I32", 32, PS_DTYPE_I32},
    {"U16", 16, PS_DTYPE_U16}, {"I64", 64, PS_DTYPE_I64},
    {"U8", 8, PS_DTYPE_U8},    {"F64", 64, PS_DTYPE_F64},
    {"BOOL", 8, -1},           {"I8", 8, -1},
    {"I16", 16, -1},           {"U32", 32, -1},
    {"U64", 64, -1},           {"C64", 64, -1},
    {"F8_E5M2", 8, -1},        {"F8_E4M3", 8, -1},
    {"F8_E8M0", 8, -1},        {"F8_E4M3FNUZ", 8, -1},
    {"F8_E5M2FNUZ", 8, -1},    {"F4", 4, -1},
    {"F6_E2M3", 6, -1},        {"F6_E3M2", 6, -1},
};

enum { FIELD_DTYPE = 1, FIELD_SHAPE = 2, FIELD_OFFSETS = 4, FIELD_ALL = 7 };

struct parser {
    struct ps_st_file *f;
    char *begin, *p, *end; /* *end is a NUL that ends every scan */
    const char *tensor;    /* being parsed, or NULL: for messages */
    size_t tensor_cap, metadata_cap;
    struct ps_error *err;
};

/* Replace what must not reach a terminal, and cut. */
static const char *printable(char buf[200], const char *name)
{
    size_t n = 0;
    for (; name[n] && n < 199; n++)
        buf[n] = (unsigned char)name[n] < 0x20 || name[n] == 0x7f ? '?' : name[n];
    while (name[n] && n > 0 && ((unsigned char)name[n] & 0xc0) == 0x80)
        n--; /* never half a character */
    buf[n] = '\0';
    return buf;
}

PS_PRINTF(3, 4) static int fail(struct parser *s, int code, const char *fmt, ...)
{
    char text[400];
    char name[200];
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(text, sizeof text, fmt, ap) < 0, "truncation is fine");
    va_end(ap);
    if (s->tensor)
        return ps_error_full(s->err, code, s->f->path, printable(name, s->tensor), NULL,
                             "tensor \"%s\": %s", name, text);
    return ps_error_full(s->err, code, s->f->path, NULL, NULL, "safetensors header: %s", text);
}

static int syntax(struct parser *s, const char *expected)
{
    size_t at = (size_t)(s->p - s->begin);
    if (s->p >= s->end)
        return fail(s, PS_EFORMAT, "ends where %s should stand", expected);
    return fail(s, PS_EFORMAT, "expected %s at byte %zu of the header", expected, at);
}

static void skip_space(struct parser *s)
{
    while (*s->p == ' ' || *s->p == '\n' || *s->p == '\t' || *s->p == '\r')
        s->p++;
}

static int expect(struct parser *s, char c)
{
    skip_space(s);
    if (s->p >= s->end || *s->p != c) {
        const char what[] = {'"', c, '"', '\0'};
        return syntax(s, what);
    }
    s->p++;
    return 0;
}

/* Length of the valid UTF-8 character of two bytes or more at p, or 0. A NUL ends the text. */
static size_t utf8_len(const char *text)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    bool overlong = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90);
    bool surrogate = p[0] == 0xed && p[1] >= 0xa0;
    bool beyond = p[0] == 0xf4 && p[1] >= 0x90;
    return overlong || surrogate || beyond ? 0 : n;
}

static char *put_utf8(char *w, uint32_t c)
{
    if (c < 0x80) {
        *w++ = (char)c;
        return w;
    }
    int tail = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const unsigned char lead[] = {0, 0xc0, 0xe0, 0xf0};
    *w++ = (char)(lead[tail] | (c >> (6 * tail)));
    while (tail-- > 0)
        *w++ = (char)(0x80 | ((c >> (6 * tail)) & 0x3f));
    return w;
}

/* Four hexadecimal digits at p, or -1. */
static int32_t hex4(const char *p)
{
    int32_t v = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            return -1;
        v = v * 16 + d;
    }
    return v;
}

/* One escape; s->p is after the backslash. Returns the code point, or -1. */
static int32_t parse_escape(struct parser *s)
{
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    char c = *s->p++;
    const char *at = c ? strchr(from, c) : NULL;
    if (at)
        return to[at - from];
    if (c != 'u')
        return -1;
    int32_t u = hex4(s->p);
    if (u < 0)
        return -1;
    s->p += 4;
    if (u < 0xd800 || u > 0xdfff)
        return u;
    if (u > 0xdbff || s->p[0] != '\\' || s->p[1] != 'u')
        return -1; /* lone surrogate */
    int32_t low = hex4(s->p + 2);
    if (low < 0xdc00 || low > 0xdfff)
        return -1;
    s->p += 6;
    return 0x10000 + ((u - 0xd800) << 10) + (low - 0xdc00);
}

/* A string, unescaped in place: it is never longer than its source. */
static int parse_string(struct parser *s, char **out)
{
    skip_space(s);
    if (s->p >= s->end || *s->p != '"')
        return syntax(s, "a string");
    char *w = ++s->p;
    *out = w;
    while (*s->p != '"') {
        unsigned char c = (unsigned char)*s->p;
        if (s->p >= s->end)
            return fail(s, PS_EFORMAT, "ends inside a string");
        if (c < 0x20)
            return fail(s, PS_EFORMAT, "control character in a string at byte %zu of the header",
                        (size_t)(s->p - s->begin));
        if (c == '\\') {
            size_t at = (size_t)(s->p - s->begin);
            s->p++;
            int32_t u = parse_escape(s);
            if (u <= 0)
                return fail(s, PS_EFORMAT, "%s at byte %zu of the header",
                            u == 0 ? "NUL in a string" : "bad escape", at);
            w = put_utf8(w, (uint32_t)u);
        } else if (c >= 0x80) {
            size_t n = utf8_len(s->p);
            if (n == 0)
                return fail(s, PS_EFORMAT, "not valid UTF-8 at byte %zu of the header",
                            (size_t)(s->p - s->begin));
            memmove(w, s->p, n);
            w += n;
            s->p += n;
        } else {
            *w++ = *s->p++;
        }
    }
    s->p++;
    *w = '\0';
    return 0;
}

/* A plain decimal integer up to 2^53: never through a double. */
static int parse_int(struct parser *s, const char *field, uint64_t *out)
{
    skip_space(s);
    const char *from = s->p;
    uint64_t v = 0;
    bool big = false;
    while (*s->p >= '0' && *s->p <= '9') {
        v = v * 10 + (uint64_t)(*s->p++ - '0');
        big = big || v > PS_ST_INT_MAX;
        v = big ? 0 : v;
    }
    if (s->p == from || (*from == '0' && s->p > from + 1) || (*s->p && strchr(".eE+-", *s->p)))
        return fail(s, PS_EFORMAT, "%s holds something else than plain decimal integers", field);
    if (big)
        return fail(s, PS_EFORMAT, "%s holds an integer above 2^53", field);
    *out = v;
    return 0;
}

/* "[a, b, ...]" of at most cap integers. */
static int parse_ints(struct parser *s, const char *field, uint64_t *out, int cap, int *count)
{
    skip_space(s);
    if (*s->p != '[')
        return fail(s, PS_EFORMAT, "%s must be an array of integers", field);
    s->p++;
    *count = 0;
    skip_space(s);
    if (*s->p == ']') {
        s->p++;
        return 0;
    }
    for (;;) {
        if (*count == cap)
            return fail(s, PS_EFORMAT, "%s has more than %d members", field, cap);
        int ret = parse_int(s, field, &out[*count]);
        if (ret)
            return ret;
        ++*count;
        skip_space(s);
        if (*s->p == ']') {
            s->p++;
            return 0;
        }
        ret = expect(s, ',');
        if (ret)
            return ret;
    }
}

static int parse_dtype(struct parser *s, const struct type **out)
{
    skip_space(s);
    if (*s->p != '"')
        return fail(s, PS_EFORMAT, "dtype must be a string");
    char *name;
    int ret = parse_string(s, &name);
    if (ret)
        return ret;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(name, types[i].name) != 0)
            continue;
        if (types[i].bits % 8)
            return fail(s, PS_EUNSUPPORTED,
                        "dtype %s, with elements smaller than a byte, is not "
                        "supported",
                        name);
        *out = &types[i];
        return 0;
    }
    char shown[200];
    return fail(s, PS_EFORMAT, "unknown dtype \"%s\"", printable(shown, name));
}

/* Element count and bytes, checked; offsets against the data section. */
static int finish_tensor(struct parser *s, struct ps_st_tensor *t, const struct type *type,
                         const uint64_t *shape, const uint64_t *offsets, uint64_t data_len)
{
    uint64_t elements = 1;
    for (int i = 0; i < t->rank; i++) {
        if (__builtin_mul_overflow(elements, shape[i], &elements))
            return fail(s, PS_EFORMAT, "shape overflows 64 bits");
        t->shape[i] = (int64_t)shape[i];
    }
    uint64_t bytes;
    if (__builtin_mul_overflow(elements, (uint64_t)type->bits / 8, &bytes) || bytes > INT64_MAX)
        return fail(s, PS_EFORMAT, "the size of its shape overflows 64 bits");
    if (offsets[0] > offsets[1])
        return fail(s, PS_EFORMAT, "data_offsets [%llu, %llu] end before they begin",
                    (unsigned long long)offsets[0], (unsigned long long)offsets[1]);
    if (offsets[1] > data_len)
        return fail(s, PS_EFORMAT, "data_offsets end at %llu, but the file has %llu bytes of data",
                    (unsigned long long)offsets[1], (unsigned long long)data_len);
    if (offsets[1] - offsets[0] != bytes)
        return fail(s, PS_EFORMAT,
                    "data_offsets span %llu bytes, but its shape and dtype need %llu",
                    (unsigned long long)(offsets[1] - offsets[0]), (unsigned long long)bytes);
    t->dtype_text = type->name;
    t->dtype = type->dtype;
    t->offset = offsets[0];
    t->bytes = bytes;
    t->elements = (int64_t)elements;
    return 0;
}

static int parse_field(struct parser *s, unsigned *seen, const struct type **type, uint64_t *shape,
                       int *rank, uint64_t *offsets)
{
    char *key;
    int count;
    int ret = parse_string(s, &key);
    if (ret)
        return ret;
    unsigned bit = strcmp(key, "dtype") == 0          ? FIELD_DTYPE
                   : strcmp(key, "shape") == 0        ? FIELD_SHAPE
                   : strcmp(key, "data_offsets") == 0 ? FIELD_OFFSETS
                                                      : 0;
    char shown[200];
    if (!bit)
        return fail(s, PS_EFORMAT, "unknown field \"%s\"", printable(shown, key));
    if (*seen & bit)
        return fail(s, PS_EFORMAT, "field \"%s\" appears twice", key);
    *seen |= bit;
    ret = expect(s, ':');
    if (ret)
        return ret;
    if (bit == FIELD_DTYPE)
        return parse_dtype(s, type);
    if (bit == FIELD_SHAPE)
        return parse_ints(s, "shape", shape, PS_ST_RANK_MAX, rank);
    ret = parse_ints(s, "data_offsets", offsets, 2, &count);
    if (!ret && count != 2)
        return fail(s, PS_EFORMAT, "data_offsets must hold two integers, not %d", count);
    return ret;
}

static int parse_tensor(struct parser *s, struct ps_st_tensor *t, uint64_t data_len)
{
    const struct type *type = NULL;
    uint64_t shape[PS_ST_RANK_MAX] = {0};
    uint64_t offsets[2] = {0, 0};
    unsigned seen = 0;
    skip_space(s);
    if (*s->p != '{')
        return fail(s, PS_EFORMAT, "its entry must be an object");
    s->p++;
    skip_space(s);
    while (*s->p != '}') {
        int ret = seen ? expect(s, ',') : 0;
        if (!ret)
            ret = parse_field(s, &seen, &type, shape, &t->rank, offsets);
        if (ret)
            return ret;
        skip_space(s);
    }
    s->p++;
    if (seen != FIELD_ALL)
        return fail(s, PS_EFORMAT, "field \"%s\" is missing",
                    !(seen & FIELD_DTYPE)   ? "dtype"
                    : !(seen & FIELD_SHAPE) ? "shape"
                                            : "data_offsets");
    return finish_tensor(s, t, type, shape, offsets, data_len);
}

/* Make room for one more element of an array that doubles. */
static int grow(struct parser *s, void *array, size_t count, size_t *cap, size_t size)
{
    if (count < *cap)
        return 0;
    size_t next = *cap ? 2 * *cap : 64;
    void *p;
    memcpy(&p, array, sizeof p);
    p = realloc(p, next * size);
    if (!p)
        return fail(s, -ENOMEM, "not enough memory for it");
    memcpy(array, &p, sizeof p);
    *cap = next;
    return 0;
}

static int parse_metadata(struct parser *s)
{
    struct ps_st_file *f = s->f;
    int ret = expect(s, '{');
    if (ret)
        return ret;
    skip_space(s);
    while (*s->p != '}') {
        char *key, *value;
        ret = f->metadata_count ? expect(s, ',') : 0;
        if (!ret)
            ret = parse_string(s, &key);
        if (!ret)
            ret = expect(s, ':');
        if (ret)
            return ret;
        skip_space(s);
        char shown[200];
        if (*s->p != '"')
            return fail(s, PS_EFORMAT, "the value of __metadata__ key \"%s\" must be a string",
                        printable(shown, key));
        ret = parse_string(s, &value);
        if (!ret)
            ret = grow(s, &f->metadata, f->metadata_count, &s->metadata_cap, sizeof *f->metadata);
        if (ret)
            return ret;
        f->metadata[f->metadata_count++] = (struct ps_st_pair){key, value};
        skip_space(s);
    }
    s->p++;
    return 0;
}

static int check_name(struct parser *s, const char *name)
{
    size_t len = strlen(name);
    if (len == 0)
        return fail(s, PS_EFORMAT, "a tensor has an empty name");
    s->tensor = name;
    if (len > PS_ST_NAME_MAX)
        return fail(s, PS_EFORMAT, "name longer than %d bytes", PS_ST_NAME_MAX);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return fail(s, PS_EFORMAT, "control character in the name");
    return 0;
}

static int parse_entries(struct parser *s, uint64_t data_len)
{
    struct ps_st_file *f = s->f;
    bool metadata_seen = false;
    bool first = true;
    skip_space(s);
    while (*s->p != '}') {
        char *name;
        int ret = first ? 0 : expect(s, ',');
        first = false;
        if (!ret)
            ret = parse_string(s, &name);
        if (!ret && strcmp(name, "__metadata__") == 0) {
            if (metadata_seen)
                return fail(s, PS_EFORMAT, "__metadata__ appears twice");
            metadata_seen = true;
            ret = expect(s, ':');
            if (!ret)
                ret = parse_metadata(s);
        } else if (!ret) {
            if (f->count == PS_ST_TENSOR_MAX)
                return fail(s, PS_EFORMAT, "more than %u tensors", PS_ST_TENSOR_MAX);
            ret = check_name(s, name);
            if (!ret)
                ret = expect(s, ':');
            if (!ret)
                ret = grow(s, &f->tensor, f->count, &s->tensor_cap, sizeof *f->tensor);
            if (ret)
                return ret;
            struct ps_st_tensor *t = &f->tensor[f->count];
            memset(t, 0, sizeof *t);
            t->name = name;
            ret = parse_tensor(s, t, data_len);
            f->count++;
        }
        if (ret)
            return ret;
        s->tensor = NULL;
        skip_space(s);
    }
    s->p++;
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct ps_st_tensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) /* empty tensors come before the one that shares their offset */
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b)
{
    const struct ps_st_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int by_key(const void *a, const void *b)
{
    const struct ps_st_pair *x = a, *y = b;
    return strcmp(x->key, y->key);
}

/* The tensors must tile the data section; names and keys must be unique. */
static int check_whole(struct parser *s, uint64_t data_begin, uint64_t data_len)
{
    struct ps_st_file *f = s->f;
    uint64_t at = 0;
    char shown[200];
    if (f->count)
        qsort(f->tensor, f->count, sizeof *f->tensor, by_offset);
    f->by_name = malloc((f->count + 1) * sizeof *f->by_name);
    if (!f->by_name)
        return fail(s, -ENOMEM, "not enough memory for %zu tensors", f->count);
    for (size_t i = 0; i < f->count; i++)
        f->by_name[i] = &f->tensor[i];
    qsort(f->by_name, f->count, sizeof *f->by_name, by_name);
    for (size_t i = 1; i < f->count; i++) {
        s->tensor = f->by_name[i]->name;
        if (strcmp(f->by_name[i - 1]->name, s->tensor) == 0)
            return fail(s, PS_EFORMAT, "the name appears twice");
    }
    if (f->metadata_count)
        qsort(f->metadata, f->metadata_count, sizeof *f->metadata, by_key);
    s->tensor = NULL;
    for (size_t i = 1; i < f->metadata_count; i++)
        if (strcmp(f->metadata[i - 1].key, f->metadata[i].key) == 0)
            return fail(s, PS_EFORMAT, "__metadata__ key \"%s\" appears twice",
                        printable(shown, f->metadata[i].key));
    for (size_t i = 0; i < f->count; i++) {
        struct ps_st_tensor *t = &f->tensor[i];
        s->tensor = t->name;
        if (t->offset != at)
            return fail(s, PS_EFORMAT, "its data begin at %llu, where %llu bytes %s",
                        (unsigned long long)t->offset,
                        (unsigned long long)(t->offset > at ? t->offset - at : at - t->offset),
                        t->offset > at ? "before them belong to no tensor"
                                       : "belong to another tensor");
        at += t->bytes;
        t->offset += data_begin;
    }
    s->tensor = NULL;
    if (at != data_len)
        return fail(s, PS_EFORMAT, "%llu bytes after the last tensor belong to no tensor",
                    (unsigned long long)(data_len - at));
    return 0;
}

int ps__st_parse_header(struct ps_st_file *f, size_t len, uint64_t data_begin, uint64_t data_len,
                        struct ps_error *err)
{
    struct parser s = {.f = f, .begin = f->header, .p = f->header, .end = f->header + len};
    s.err = err;
    if (f->header[0] != '{')
        return fail(&s, PS_EFORMAT, "must begin with \"{\"");
    s.p++;
    int ret = parse_entries(&s, data_len);
    if (ret)
        return ret;
    for (; s.p < s.end; s.p++)
        if (*s.p != ' ')
            return fail(&s, PS_EFORMAT, "byte %zu follows its end (only spaces may)",
                        (size_t)(s.p - s.begin));
    return check_whole(&s, data_begin, data_len);
}
