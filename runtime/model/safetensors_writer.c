/* Writing safetensors files: see safetensors.h.
 *
 * Design: the space of the whole file is reserved first, so that a full disk is found before hours
 * of work are written to it; small appends are gathered in a buffer. */
#include "runtime/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <xxhash.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/model/safetensors_internal.h"

#define BUFFER_BYTES ((size_t)1 << 20)
/* Room that the fixed parts of one header entry need: keys, dtype, 8 dimensions, 2 offsets. */
#define ENTRY_BYTES 300

struct ps_st_writer {
    char *path;
    char temp[PS_FILE_TEMP_MAX];
    int fd; /* -1 when closed */
    XXH3_state_t *hash;
    unsigned char *buffer; /* (BUFFER_BYTES,) */
    size_t buffered;
    uint64_t data_len; /* of all tensors */
    uint64_t appended;
    int failed; /* first error of an append, or 0 */
};

static int by_text(const void *a, const void *b)
{
    const char *const *x = a, *const *y = b;
    return strcmp(*x, *y);
}

static int bad_spec(const char *path, const char *name, const char *what, struct ps_error *err)
{
    return ps_error_full(err, -EINVAL, path, name, NULL, "tensor \"%.200s\": %s", name, what);
}

static int check_names(const char *path, const struct ps_st_spec *spec, size_t count,
                       struct ps_error *err)
{
    const char **names = malloc((count + 1) * sizeof *names);
    if (!names)
        return ps_error_full(err, -ENOMEM, path, NULL, NULL, "not enough memory for the header");
    int ret = 0;
    for (size_t i = 0; i < count && !ret; i++) {
        size_t len = strlen(spec[i].name);
        names[i] = spec[i].name;
        if (len < 1 || len > PS_ST_NAME_MAX || strcmp(spec[i].name, "__metadata__") == 0)
            ret = bad_spec(path, spec[i].name, "the name cannot be written", err);
    }
    if (!ret && count)
        qsort(names, count, sizeof *names, by_text);
    for (size_t i = 1; i < count && !ret; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            ret = bad_spec(path, names[i], "the name appears twice", err);
    free(names);
    return ret;
}

/* Bytes of one tensor, or false when the spec makes no sense. */
static bool spec_bytes(const struct ps_st_spec *s, uint64_t *bytes)
{
    if (s->rank < 0 || s->rank > PS_ST_RANK_MAX || (unsigned)s->dtype >= PS_DTYPE_COUNT)
        return false;
    uint64_t n = ps_dtype_size(s->dtype);
    for (int i = 0; i < s->rank; i++)
        if (s->shape[i] < 0 || __builtin_mul_overflow(n, (uint64_t)s->shape[i], &n))
            return false;
    *bytes = n;
    return n <= PS_ST_INT_MAX;
}

static bool put(char *buf, size_t cap, size_t *len, const char *text)
{
    size_t n = strlen(text);
    if (n > cap - *len)
        return false;
    memcpy(buf + *len, text, n);
    *len += n;
    return true;
}

static bool put_entry(char *buf, size_t cap, size_t *len, const struct ps_st_spec *s,
                      uint64_t begin, uint64_t end)
{
    char num[64];
    bool ok = put(buf, cap, len, ",") && ps_json_quote(buf, cap, len, s->name, strlen(s->name)) &&
              put(buf, cap, len, ":{\"dtype\":\"") && put(buf, cap, len, ps_dtype_name(s->dtype)) &&
              put(buf, cap, len, "\",\"shape\":[");
    for (int i = 0; i < s->rank && ok; i++) {
        PS_IGNORE(snprintf(num, sizeof num, "%s%" PRId64, i ? "," : "", s->shape[i]) < 0, "fits");
        ok = put(buf, cap, len, num);
    }
    PS_IGNORE(snprintf(num, sizeof num, "%" PRIu64 ",%" PRIu64 "]}", begin, end) < 0, "fits");
    return ok && put(buf, cap, len, "],\"data_offsets\":[") && put(buf, cap, len, num);
}

/* The header with its 8-byte prefix, padded so that the data begin at a multiple of 8. */
static int build_header(const char *path, const struct ps_st_spec *spec, size_t count, char **out,
                        size_t *out_len, uint64_t *data_len, struct ps_error *err)
{
    size_t cap = 64;
    for (size_t i = 0; i < count; i++)
        cap += 6 * strlen(spec[i].name) + ENTRY_BYTES;
    char *buf = malloc(cap);
    if (!buf)
        return ps_error_full(err, -ENOMEM, path, NULL, NULL, "not enough memory for the header");
    size_t len = 8;
    uint64_t at = 0;
    bool ok = put(buf, cap, &len, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < count && ok; i++) {
        uint64_t bytes;
        if (!spec_bytes(&spec[i], &bytes) || at + bytes > PS_ST_INT_MAX) {
            free(buf);
            return bad_spec(path, spec[i].name, "its dtype or shape cannot be written", err);
        }
        ok = put_entry(buf, cap, &len, &spec[i], at, at + bytes);
        at += bytes;
    }
    ok = ok && put(buf, cap, &len, "}");
    while (ok && len % 8)
        ok = put(buf, cap, &len, " ");
    if (!ok || len - 8 > PS_ST_HEADER_MAX) {
        free(buf);
        return ps_error_full(err, -EOVERFLOW, path, NULL, NULL, "too many tensors for one file");
    }
    for (int i = 0; i < 8; i++)
        buf[i] = (char)((len - 8) >> (8 * i) & 0xff);
    *out = buf;
    *out_len = len;
    *data_len = at;
    return 0;
}

static int reserve(const struct ps_st_writer *w, uint64_t total, struct ps_error *err)
{
    if (fallocate(w->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)total) == 0)
        return 0;
    if (errno != ENOSPC && errno != EDQUOT)
        return 0; /* not every file system can: the writes will tell */
    int code = -errno;
    struct statvfs vfs;
    unsigned long long available = 0;
    if (fstatvfs(w->fd, &vfs) == 0)
        available = (unsigned long long)vfs.f_bavail * vfs.f_frsize;
    return ps_error_full(err, code, w->path, NULL, "free space on that disk and run again",
                         "disk full: the file needs %llu bytes, %llu are free",
                         (unsigned long long)total, available);
}

static int hash(struct ps_st_writer *w, const void *data, size_t len, struct ps_error *err)
{
    if (len && XXH3_64bits_update(w->hash, data, len) != XXH_OK)
        return ps_error_full(err, -EIO, w->path, NULL, NULL, "cannot hash the file");
    return 0;
}

static int flush(struct ps_st_writer *w, struct ps_error *err)
{
    size_t len = w->buffered;
    w->buffered = 0;
    return len ? ps_file_write_all(w->fd, w->buffer, len, w->path, err) : 0;
}

int ps_st_writer_create(struct ps_st_writer **out, const char *path, const struct ps_st_spec *spec,
                        size_t count, struct ps_error *err)
{
    char *header = NULL;
    size_t header_len = 0;
    struct ps_st_writer *w = calloc(1, sizeof *w);
    if (!w)
        return ps_error_full(err, -ENOMEM, path, NULL, NULL, "not enough memory for a writer");
    w->fd = -1;
    w->path = strdup(path);
    w->hash = XXH3_createState();
    w->buffer = malloc(BUFFER_BYTES);
    int ret = -ENOMEM;
    if (!w->path || !w->hash || !w->buffer || XXH3_64bits_reset(w->hash) != XXH_OK) {
        ret = ps_error_full(err, ret, path, NULL, NULL, "not enough memory for a writer");
        goto fail;
    }
    ret = check_names(path, spec, count, err);
    if (!ret)
        ret = build_header(path, spec, count, &header, &header_len, &w->data_len, err);
    if (!ret)
        ret = ps_file_temp_open(path, w->temp, &w->fd, err);
    if (!ret)
        ret = reserve(w, header_len + w->data_len, err);
    if (!ret)
        ret = hash(w, header, header_len, err);
    if (!ret)
        ret = ps_file_write_all(w->fd, header, header_len, w->path, err);
    free(header);
    if (ret)
        goto fail;
    *out = w;
    return 0;

fail:
    ps_st_writer_abort(w);
    return ret;
}

int ps_st_writer_append(struct ps_st_writer *w, const void *data, size_t bytes,
                        struct ps_error *err)
{
    if (w->failed)
        return ps_error_full(err, w->failed, w->path, NULL, NULL,
                             "an earlier write to the file failed");
    if (bytes > w->data_len - w->appended) {
        w->failed = PS_EFORMAT;
        return ps_error_full(err, PS_EFORMAT, w->path, NULL, NULL,
                             "more data than its tensors hold");
    }
    const unsigned char *from = data;
    w->appended += bytes;
    w->failed = hash(w, data, bytes, err);
    if (!w->failed && bytes > BUFFER_BYTES - w->buffered)
        w->failed = flush(w, err);
    if (!w->failed && bytes >= BUFFER_BYTES) {
        w->failed = ps_file_write_all(w->fd, from, bytes, w->path, err);
    } else if (!w->failed && bytes > 0) {
        memcpy(w->buffer + w->buffered, from, bytes);
        w->buffered += bytes;
    }
    return w->failed;
}

int ps_st_writer_close(struct ps_st_writer *w, struct ps_error *err)
{
    int ret = w->failed;
    if (ret)
        ret = ps_error_full(err, ret, w->path, NULL, NULL, "the file could not be written");
    else if (w->appended != w->data_len)
        ret = ps_error_full(
            err, PS_EFORMAT, w->path, NULL, NULL, "%llu of %llu bytes of data are missing",
            (unsigned long long)(w->data_len - w->appended), (unsigned long long)w->data_len);
    if (!ret)
        ret = flush(w, err);
    if (!ret) {
        ret = ps_file_temp_commit(w->fd, w->temp, w->path, err);
        w->fd = -1;
    }
    ps_st_writer_abort(w);
    return ret;
}

void ps_st_writer_abort(struct ps_st_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0)
        ps_file_temp_discard(w->fd, w->temp);
    XXH3_freeState(w->hash);
    free(w->buffer);
    free(w->path);
    free(w);
}

uint64_t ps_st_writer_hash(const struct ps_st_writer *w)
{
    return XXH3_64bits_digest(w->hash);
}
