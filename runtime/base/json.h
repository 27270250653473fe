/* JSON reading on top of jansson, with limits and with errors that name file and field. */
#ifndef PS_BASE_JSON_H
#define PS_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Depth limit of every reader: reliability rules, section 4.2. */
#define PS_JSON_DEPTH_MAX 64

enum ps_json_mode {
    PS_JSON_PLAIN = 0,  /* RFC 8259; duplicate keys: the last wins; any root value */
    PS_JSON_STRICT = 1, /* also rejects duplicate keys and NUL in strings; used for model files */
};

/* Parse `len` bytes of UTF-8. Depth is limited to PS_JSON_DEPTH_MAX in strict mode (jansson's own
 * limit, 2048, in plain mode). On success *out is a new reference (json_decref).
 * Returns 0, PS_EFORMAT (message has line and column) or -ENOMEM. `file` is for the message only
 * and may be NULL. */
int ps_json_parse(const char *text, size_t len, enum ps_json_mode mode, const char *file,
                  json_t **out, struct ps_error *err) PS_WARN_UNUSED;

/* Read a regular file of at most `bytes_max` and parse it in strict mode. Returns as above, or
 * -errno of open/read, or PS_EFORMAT when the file is larger. */
int ps_json_load(const char *path, size_t bytes_max, json_t **out,
                 struct ps_error *err) PS_WARN_UNUSED;

/* Typed access to members of the object `obj`. Absent or null members store `fallback`. A member
 * of another type or outside [min, max] is PS_EFORMAT; the message names `file` and `key`.
 * Numbers: integers accept no fraction; reals accept integers and must be finite. */
int ps_json_get_int(const json_t *obj, const char *key, int64_t min, int64_t max, int64_t fallback,
                    const char *file, int64_t *out, struct ps_error *err) PS_WARN_UNUSED;
int ps_json_get_real(const json_t *obj, const char *key, double min, double max, double fallback,
                     const char *file, double *out, struct ps_error *err) PS_WARN_UNUSED;
int ps_json_get_bool(const json_t *obj, const char *key, bool fallback, const char *file, bool *out,
                     struct ps_error *err) PS_WARN_UNUSED;
/* *out points into obj (or is `fallback`) and lives as long as obj. */
int ps_json_get_string(const json_t *obj, const char *key, const char *fallback, const char *file,
                       const char **out, struct ps_error *err) PS_WARN_UNUSED;

/* Append `text` to buf[*len..cap) as a quoted JSON string (control characters, quotes and
 * backslashes escaped; UTF-8 kept). Never allocates. Returns false if it does not fit (buf then
 * holds an incomplete string). */
bool ps_json_quote(char *buf, size_t cap, size_t *len, const char *text, size_t text_len);

#ifdef __cplusplus
}
#endif
#endif
