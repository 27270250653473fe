/* Row reader for JSONL and JSON arrays: see jsonl.h.
 *
 * Design: both kinds share one sliding buffer. A row is found by a scan that never parses: the next
 * newline, or in an array the end of the element by counting brackets outside strings. Brackets
 * of the two kinds are counted together: a mismatch is still one row, and the JSON parser refuses
 * it with the position. So an array of any size needs memory for one element only.
 *
 * Invariants:
 *   1. begin <= at <= end <= cap; the current row starts at begin, bytes before it are dropped by
 * fill.
 *   2. line is the line of buf[at]. */
#include "runtime/data/jsonl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { KIND_UNKNOWN, KIND_LINES, KIND_ARRAY };

struct ps_jsonl {
    char *path;
    int fd;           /* -1 when reading from memory */
    const char *data; /* memory source; what remains of it */
    size_t data_len;
    char *buf;
    size_t cap, begin, at, end;
    uint64_t line, index;
    enum kind kind;
    bool eof;
    bool closed; /* the array's ']' was read */
};

static int open_common(struct ps_jsonl **out, const char *name, struct ps_error *err)
{
    struct ps_jsonl *r = calloc(1, sizeof *r);
    if (r) {
        r->fd = -1;
        r->line = 1;
        r->cap = (size_t)64 << 10;
        r->path = strdup(name);
        r->buf = malloc(r->cap);
    }
    if (!r || !r->path || !r->buf) {
        ps_jsonl_close(r);
        return ps_error_full(err, -ENOMEM, name, NULL, NULL, "out of memory");
    }
    *out = r;
    return 0;
}

int ps_jsonl_open_memory(struct ps_jsonl **out, const char *data, size_t len, const char *name,
                         struct ps_error *err)
{
    struct ps_jsonl *r;
    int ret = open_common(&r, name, err);
    if (ret < 0)
        return ret;
    r->data = data;
    r->data_len = len;
    *out = r;
    return 0;
}

int ps_jsonl_open(struct ps_jsonl **out, const char *path, struct ps_error *err)
{
    struct ps_jsonl *r;
    int ret = open_common(&r, path, err);
    if (ret < 0)
        return ret;
    /* O_NONBLOCK: opening a FIFO must not hang; it has no effect on regular files. */
    r->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (r->fd < 0) {
        ret = -errno;
        ps_error_full(err, ret, path, NULL, NULL, "%s", strerror(-ret));
        goto fail;
    }
    struct stat st;
    if (fstat(r->fd, &st) < 0) {
        ret = -errno;
        ps_error_full(err, ret, path, NULL, NULL, "%s", strerror(-ret));
        goto fail;
    }
    if (!S_ISREG(st.st_mode)) {
        ret = ps_error_full(err, PS_EFORMAT, path, NULL, "name a regular .jsonl or .json file",
                            "not a regular file");
        goto fail;
    }
    *out = r;
    return 0;

fail:
    ps_jsonl_close(r);
    return ret;
}

void ps_jsonl_close(struct ps_jsonl *r)
{
    if (!r)
        return;
    if (r->fd >= 0)
        close(r->fd);
    free(r->path);
    free(r->buf);
    free(r);
}

bool ps_jsonl_is_array(const struct ps_jsonl *r)
{
    return r->kind == KIND_ARRAY;
}

int ps_jsonl_error(struct ps_error *err, int code, const char *path, uint64_t line,
                   const char *field, const char *advice, const char *fmt, ...)
{
    char where[sizeof err->file], what[sizeof err->message];
    int n = line ? snprintf(where, sizeof where, "%s:%llu", path, (unsigned long long)line)
                 : snprintf(where, sizeof where, "%s", path);
    PS_IGNORE(n < 0, "truncation is acceptable in a message");
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(what, sizeof what, fmt, ap) < 0, "truncation is acceptable in a message");
    va_end(ap);
    return ps_error_full(err, code, where, field, advice, "%s", what);
}

static int too_long(struct ps_jsonl *r, uint64_t line, struct ps_error *err)
{
    return ps_jsonl_error(err, PS_EFORMAT, r->path, line, NULL, "cut the row into shorter ones",
                          "the row is longer than %zu MiB", PS_JSONL_ROW_BYTES_MAX >> 20);
}

/* Read more bytes behind `end`, dropping what lies before `begin`. Sets eof. `line` is that of the
 * row. */
static int fill(struct ps_jsonl *r, uint64_t line, struct ps_error *err)
{
    if (r->begin > 0) {
        memmove(r->buf, r->buf + r->begin, r->end - r->begin);
        r->at -= r->begin;
        r->end -= r->begin;
        r->begin = 0;
    }
    if (r->end == r->cap) {
        /* CRLF and one byte to see that the row does not end belong to the largest buffer. */
        size_t cap_max = PS_JSONL_ROW_BYTES_MAX + 3;
        if (r->cap == cap_max)
            return too_long(r, line, err);
        size_t cap = r->cap * 2 < cap_max ? r->cap * 2 : cap_max;
        char *buf = realloc(r->buf, cap);
        if (!buf)
            return ps_jsonl_error(err, -ENOMEM, r->path, line, NULL, NULL, "out of memory");
        r->buf = buf;
        r->cap = cap;
    }
    size_t room = r->cap - r->end;
    size_t got;
    if (r->fd < 0) {
        got = r->data_len < room ? r->data_len : room;
        if (got > 0) {
            memcpy(r->buf + r->end, r->data, got);
            r->data += got;
            r->data_len -= got;
        }
    } else {
        ssize_t n;
        do {
            n = read(r->fd, r->buf + r->end, room);
        } while (n < 0 && errno == EINTR);
        if (n < 0) {
            int code = -errno;
            return ps_jsonl_error(err, code, r->path, line, NULL, NULL, "%s", strerror(-code));
        }
        got = (size_t)n;
    }
    r->end += got;
    if (got == 0)
        r->eof = true;
    return 0;
}

/* Make at least one byte available at `at`: 1, 0 at the end of the file, or an error. */
static int peek(struct ps_jsonl *r, uint64_t line, struct ps_error *err)
{
    while (r->at == r->end) {
        if (r->eof)
            return 0;
        int ret = fill(r, line, err);
        if (ret < 0)
            return ret;
    }
    return 1;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Skip white space, counting lines: 1 if a byte follows, 0 at the end, or an error. */
static int skip_space(struct ps_jsonl *r, struct ps_error *err)
{
    for (;;) {
        r->begin = r->at;
        int ret = peek(r, r->line, err);
        if (ret <= 0)
            return ret;
        char c = r->buf[r->at];
        if (!is_space(c))
            return 1;
        if (c == '\n')
            r->line++;
        r->at++;
    }
}

static int detect(struct ps_jsonl *r, struct ps_error *err)
{
    while (r->end < 3 && !r->eof) {
        int ret = fill(r, 1, err);
        if (ret < 0)
            return ret;
    }
    if (r->end >= 3 && memcmp(r->buf, "\xEF\xBB\xBF", 3) == 0)
        r->at = 3;
    int ret = skip_space(r, err);
    if (ret < 0)
        return ret;
    r->kind = KIND_LINES;
    if (ret > 0 && r->buf[r->at] == '[') {
        r->kind = KIND_ARRAY;
        r->at++;
    }
    return 0;
}

/* Offset of the first byte that is not valid UTF-8 (overlong forms, surrogates and values above
 * U+10FFFF included), or len. */
static size_t utf8_bad(const unsigned char *s, size_t len)
{
    size_t i = 0;
    while (i < len) {
        unsigned c = s[i];
        size_t n = c < 0x80 ? 0 : c >= 0xC2 && c <= 0xDF ? 1 : (c & 0xF0) == 0xE0 ? 2 : 3;
        if (n == 3 && (c < 0xF0 || c > 0xF4))
            return i;
        if (n > len - i - 1)
            return i;
        for (size_t k = 1; k <= n; k++)
            if ((s[i + k] & 0xC0) != 0x80)
                return i;
        if ((c == 0xE0 && s[i + 1] < 0xA0) || (c == 0xED && s[i + 1] > 0x9F) ||
            (c == 0xF0 && s[i + 1] < 0x90) || (c == 0xF4 && s[i + 1] > 0x8F))
            return i;
        i += n + 1;
    }
    return len;
}

static int emit(struct ps_jsonl *r, struct ps_jsonl_row *row, size_t len, uint64_t line,
                struct ps_error *err)
{
    if (len > PS_JSONL_ROW_BYTES_MAX)
        return too_long(r, line, err);
    const char *text = r->buf + r->begin;
    size_t bad = utf8_bad((const unsigned char *)text, len);
    if (bad < len)
        return ps_jsonl_error(err, PS_EDATA, r->path, line, NULL, "save the file as UTF-8",
                              "invalid UTF-8: byte 0x%02X at column %zu", (unsigned char)text[bad],
                              bad + 1);
    *row = (struct ps_jsonl_row){.text = text, .len = len, .line = line, .index = r->index++};
    return 1;
}

static int next_line(struct ps_jsonl *r, struct ps_jsonl_row *row, struct ps_error *err)
{
    int ret = skip_space(r, err);
    if (ret <= 0)
        return ret;
    uint64_t line = r->line;
    for (;;) {
        char *nl = memchr(r->buf + r->at, '\n', r->end - r->at);
        if (nl) {
            r->at = (size_t)(nl - r->buf);
            break;
        }
        r->at = r->end;
        if (r->eof)
            break;
        ret = fill(r, line, err);
        if (ret < 0)
            return ret;
    }
    size_t len = r->at - r->begin;
    if (len > 0 && r->buf[r->at - 1] == '\r')
        len--;
    return emit(r, row, len, line, err);
}

static int array_broken(struct ps_jsonl *r, const char *what, struct ps_error *err)
{
    return ps_jsonl_error(err, PS_EFORMAT, r->path, r->line, NULL, NULL, "%s", what);
}

/* Advance `at` to the ',' or ']' that ends the element at `begin`. */
static int scan_element(struct ps_jsonl *r, uint64_t line, struct ps_error *err)
{
    size_t depth = 0;
    bool in_string = false, escaped = false;
    for (;; r->at++) {
        int ret = peek(r, line, err);
        if (ret < 0)
            return ret;
        if (ret == 0)
            return array_broken(r, "the file ends inside the JSON array", err);
        char c = r->buf[r->at];
        if (c == '\n')
            r->line++;
        if (in_string) {
            if (escaped)
                escaped = false;
            else if (c == '\\')
                escaped = true;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (depth == 0 && (c == ',' || c == ']')) {
            return 0;
        } else if (c == '}' || c == ']') {
            if (depth == 0)
                return array_broken(r, "a closing bracket without an opening one", err);
            depth--;
        }
    }
}

static int next_element(struct ps_jsonl *r, struct ps_jsonl_row *row, struct ps_error *err)
{
    int ret = skip_space(r, err);
    if (ret < 0)
        return ret;
    if (r->closed) {
        if (ret > 0)
            return array_broken(r, "text after the end of the JSON array", err);
        return 0;
    }
    if (ret == 0)
        return array_broken(r, "the JSON array has no end", err);
    char c = r->buf[r->at];
    if (c == ']') {
        r->at++;
        r->closed = true;
        return next_element(r, row, err);
    }
    if (r->index > 0) {
        if (c != ',')
            return array_broken(r, "a comma is missing between two rows", err);
        r->at++;
        ret = skip_space(r, err);
        if (ret < 0)
            return ret;
        if (ret == 0 || r->buf[r->at] == ']')
            return array_broken(r, "a row is missing after the comma", err);
        c = r->buf[r->at];
    }
    if (c == ',')
        return array_broken(r, "a row is missing before the comma", err);
    uint64_t line = r->line;
    ret = scan_element(r, line, err);
    if (ret < 0)
        return ret;
    size_t len = r->at - r->begin;
    while (len > 0 && is_space(r->buf[r->begin + len - 1]))
        len--;
    return emit(r, row, len, line, err);
}

int ps_jsonl_next(struct ps_jsonl *r, struct ps_jsonl_row *row, struct ps_error *err)
{
    if (r->kind == KIND_UNKNOWN) {
        int ret = detect(r, err);
        if (ret < 0)
            return ret;
    }
    return r->kind == KIND_ARRAY ? next_element(r, row, err) : next_line(r, row, err);
}
