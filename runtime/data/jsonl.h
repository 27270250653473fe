/* Reads the rows of a JSONL file, or the elements of one JSON array, a row at a time.
 *
 * The first byte that is not space decides: '[' is an array, anything else is JSONL. A byte order
 * mark at the start, CRLF, blank lines and a missing final newline are accepted. A row has at most
 * PS_JSONL_ROW_BYTES_MAX bytes and must be valid UTF-8; whether it is valid JSON is the caller's
 * question. Memory: one buffer that grows to the longest row. The file of every error is
 * "path:line". */
#ifndef PS_DATA_JSONL_H
#define PS_DATA_JSONL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_JSONL_ROW_BYTES_MAX ((size_t)16 << 20)

struct ps_jsonl;

/* One row: `text` points into the reader and is valid until the next call. */
struct ps_jsonl_row {
    const char *text; /* (len,) not NUL-terminated */
    size_t len;
    uint64_t line;  /* 1-based line on which the row begins */
    uint64_t index; /* 0-based row number, blank lines not counted */
};

/* Open a regular file (symlinks followed; FIFOs, devices and directories are PS_EFORMAT). The path
 * is copied. Returns 0, -errno, PS_EFORMAT or -ENOMEM. */
int ps_jsonl_open(struct ps_jsonl **out, const char *path, struct ps_error *err) PS_WARN_UNUSED;

/* The same over `len` bytes that must live until close; `name` stands for the path in messages. */
int ps_jsonl_open_memory(struct ps_jsonl **out, const char *data, size_t len, const char *name,
                         struct ps_error *err) PS_WARN_UNUSED;

/* NULL is legal. */
void ps_jsonl_close(struct ps_jsonl *r);

/* Next row. Returns 1 and fills *row, 0 at the end, or an error: PS_EFORMAT (a row that is too
 * long, a broken array), PS_EDATA (invalid UTF-8), -errno of the read, -ENOMEM. */
int ps_jsonl_next(struct ps_jsonl *r, struct ps_jsonl_row *row,
                  struct ps_error *err) PS_WARN_UNUSED;

/* As ps_error_full, with "path:line" as the file (line 0: the path alone). */
int ps_jsonl_error(struct ps_error *err, int code, const char *path, uint64_t line,
                   const char *field, const char *advice, const char *fmt, ...) PS_PRINTF(7, 8);

/* True if the file is one JSON array. Known after the first call of ps_jsonl_next. */
bool ps_jsonl_is_array(const struct ps_jsonl *r);

#ifdef __cplusplus
}
#endif
#endif
