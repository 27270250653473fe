/* JSON reading on top of jansson: see json.h.
 *
 * Design: jansson's recursive parser does the work; what it does not limit or does not accept is
 * handled before it sees the text. Depth is counted by an iterative scan, so hostile nesting never
 * reaches the recursion. jansson refuses "\u0000" in object keys even with JSON_ALLOW_NUL, where
 * RFC 8259 allows it: in plain mode such a key is read with U+FFFD in its place (no key that
 * Penstock looks up contains either). jansson replaces the locale's decimal point itself. */
#include "runtime/base/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"

/* Skip a string that starts at text[at] == '"'. Returns the index after the closing quote, or len.
 */
static size_t skip_string(const char *text, size_t len, size_t at)
{
    for (at++; at < len; at++) {
        if (text[at] == '\\')
            at++;
        else if (text[at] == '"')
            return at + 1;
    }
    return len;
}

/* True when the nesting never exceeds depth_max. *at receives the offset of the bracket too many.
 * Works on malformed text too: it may only err on the side that the parser then refuses. */
static bool depth_ok(const char *text, size_t len, int depth_max, size_t *at)
{
    int depth = 0;
    size_t i = 0;
    while (i < len) {
        char c = text[i];
        if (c == '"') {
            i = skip_string(text, len, i);
            continue;
        }
        if (c == '{' || c == '[') {
            if (++depth > depth_max) {
                *at = i;
                return false;
            }
        } else if (c == '}' || c == ']') {
            depth--;
        }
        i++;
    }
    return true;
}

static void line_column(const char *text, size_t at, int *line, int *column)
{
    *line = 1;
    *column = 1;
    for (size_t i = 0; i < at; i++) {
        if (text[i] == '\n') {
            ++*line;
            *column = 1;
        } else {
            ++*column;
        }
    }
}

/* Replace the "\u0000" escapes of a key, text[begin, end) with its quotes. Returns how many. */
static size_t mend_key(char *text, size_t begin, size_t end)
{
    size_t count = 0;
    for (size_t i = begin + 1; i + 1 < end; i++) {
        if (text[i] != '\\')
            continue;
        if (i + 6 < end && memcmp(text + i, "\\u0000", 6) == 0) {
            memcpy(text + i, "\\ufffd", 6);
            count++;
        }
        i++;
    }
    return count;
}

/* A copy of the text without NUL in keys, or NULL when there is none (or no memory). */
static char *mend_keys(const char *text, size_t len)
{
    if (!memmem(text, len, "\\u0000", 6))
        return NULL;
    char *copy = malloc(len);
    if (!copy)
        return NULL;
    memcpy(copy, text, len);
    size_t count = 0;
    size_t i = 0;
    while (i < len) {
        if (copy[i] != '"') {
            i++;
            continue;
        }
        size_t end = skip_string(copy, len, i);
        size_t next = end;
        while (next < len && strchr(" \t\r\n", copy[next]) && copy[next])
            next++;
        if (next < len && copy[next] == ':')
            count += mend_key(copy, i, end);
        i = end;
    }
    if (!count) {
        free(copy);
        return NULL;
    }
    return copy;
}

static json_t *decode(const char *text, size_t len, enum ps_json_mode mode, json_error_t *je)
{
    if (mode == PS_JSON_STRICT)
        return json_loadb(text, len, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, je);
    json_t *root = json_loadb(text, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, je);
    if (root || json_error_code(je) != json_error_null_byte_in_key)
        return root;
    char *copy = mend_keys(text, len);
    if (!copy)
        return NULL;
    root = json_loadb(copy, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, je);
    free(copy);
    return root;
}

int ps_json_parse(const char *text, size_t len, enum ps_json_mode mode, const char *file,
                  json_t **out, struct ps_error *err)
{
    /* no JSON text holds a raw NUL; jansson loses one that follows a number */
    const char *nul = len ? memchr(text, '\0', len) : NULL;
    size_t at = nul ? (size_t)(nul - text) : 0;
    if (nul) {
        int line, column;
        line_column(text, at, &line, &column);
        return ps_error_full(err, PS_EFORMAT, file, NULL, NULL,
                             "not valid JSON: line %d column %d: NUL byte", line, column);
    }
    if (mode == PS_JSON_STRICT && !depth_ok(text, len, PS_JSON_DEPTH_MAX, &at)) {
        int line, column;
        line_column(text, at, &line, &column);
        return ps_error_full(err, PS_EFORMAT, file, NULL, NULL,
                             "not valid JSON: line %d column %d: nested deeper than %d levels",
                             line, column, PS_JSON_DEPTH_MAX);
    }
    /* jansson tells lack of memory as one error or another, or none: what can be read the second
     * time was not malformed */
    json_error_t je;
    json_t *root = decode(text, len, mode, &je);
    if (!root)
        root = decode(text, len, mode, &je);
    if (root) {
        *out = root;
        return 0;
    }
    if (json_error_code(&je) == json_error_out_of_memory || je.text[0] == '\0')
        return ps_error_full(err, -ENOMEM, file, NULL, NULL, "not enough memory to parse JSON");
    /* jansson quotes the offending bytes: keep the message printable */
    for (char *p = je.text; *p; p++)
        if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7f)
            *p = '?';
    return ps_error_full(err, PS_EFORMAT, file, NULL, NULL, "not valid JSON: line %d column %d: %s",
                         je.line > 0 ? je.line : 1, je.column > 0 ? je.column : 1, je.text);
}

int ps_json_load(const char *path, size_t bytes_max, json_t **out, struct ps_error *err)
{
    char *text;
    size_t len;
    int ret = ps_file_read(path, bytes_max, &text, &len, err);
    if (ret)
        return ret;
    ret = ps_json_parse(text, len, PS_JSON_STRICT, path, out, err);
    free(text);
    return ret;
}

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

static int wrong_type(const json_t *v, const char *key, const char *want, const char *file,
                      struct ps_error *err)
{
    return ps_error_full(err, PS_EFORMAT, file, key, NULL, "\"%s\" must be %s, not %s", key, want,
                         type_name(v));
}

/* The member, or NULL when it is absent or null. */
static const json_t *member(const json_t *obj, const char *key)
{
    const json_t *v = json_object_get(obj, key);
    return json_is_null(v) ? NULL : v;
}

int ps_json_get_int(const json_t *obj, const char *key, int64_t min, int64_t max, int64_t fallback,
                    const char *file, int64_t *out, struct ps_error *err)
{
    const json_t *v = member(obj, key);
    if (!v) {
        *out = fallback;
        return 0;
    }
    if (!json_is_integer(v))
        return wrong_type(v, key, "an integer", file, err);
    int64_t n = json_integer_value(v);
    if (n < min || n > max)
        return ps_error_full(err, PS_EFORMAT, file, key, NULL,
                             "\"%s\" is %lld, must be between %lld and %lld", key, (long long)n,
                             (long long)min, (long long)max);
    *out = n;
    return 0;
}

int ps_json_get_real(const json_t *obj, const char *key, double min, double max, double fallback,
                     const char *file, double *out, struct ps_error *err)
{
    const json_t *v = member(obj, key);
    if (!v) {
        *out = fallback;
        return 0;
    }
    if (!json_is_number(v))
        return wrong_type(v, key, "a number", file, err);
    double x = json_number_value(v);
    if (!isfinite(x) || x < min || x > max)
        return ps_error_full(err, PS_EFORMAT, file, key, NULL,
                             "\"%s\" is %g, must be between %g and %g", key, x, min, max);
    *out = x;
    return 0;
}

int ps_json_get_bool(const json_t *obj, const char *key, bool fallback, const char *file, bool *out,
                     struct ps_error *err)
{
    const json_t *v = member(obj, key);
    if (!v) {
        *out = fallback;
        return 0;
    }
    if (!json_is_boolean(v))
        return wrong_type(v, key, "true or false", file, err);
    *out = json_is_true(v);
    return 0;
}

int ps_json_get_string(const json_t *obj, const char *key, const char *fallback, const char *file,
                       const char **out, struct ps_error *err)
{
    const json_t *v = member(obj, key);
    if (!v) {
        *out = fallback;
        return 0;
    }
    if (!json_is_string(v))
        return wrong_type(v, key, "a string", file, err);
    *out = json_string_value(v);
    return 0;
}

static bool put(char *buf, size_t cap, size_t *len, const char *bytes, size_t n)
{
    if (n > cap - *len)
        return false;
    memcpy(buf + *len, bytes, n);
    *len += n;
    return true;
}

bool ps_json_quote(char *buf, size_t cap, size_t *len, const char *text, size_t text_len)
{
    static const char hex[] = "0123456789abcdef";
    if (*len > cap || !put(buf, cap, len, "\"", 1))
        return false;
    for (size_t i = 0; i < text_len; i++) {
        unsigned char c = (unsigned char)text[i];
        char esc[6] = {'\\', 'u', '0', '0', 0, 0};
        size_t n = 2;
        if (c == '"' || c == '\\') {
            esc[1] = (char)c;
        } else if (c == '\n') {
            esc[1] = 'n';
        } else if (c == '\r') {
            esc[1] = 'r';
        } else if (c == '\t') {
            esc[1] = 't';
        } else if (c < 0x20 || c == 0x7f) {
            esc[4] = hex[c >> 4];
            esc[5] = hex[c & 15];
            n = 6;
        } else {
            esc[0] = (char)c;
            n = 1;
        }
        if (!put(buf, cap, len, esc, n))
            return false;
    }
    return put(buf, cap, len, "\"", 1);
}
