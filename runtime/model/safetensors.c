/* Reading safetensors files: see safetensors.h. */
#include "runtime/model/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/file.h"
#include "runtime/model/safetensors_internal.h"

/* One pread moves at most this much: Linux stops at 2 GiB by itself. */
#define PREAD_MAX ((uint64_t)1 << 30)
/* Conversions go through a buffer of this size. */
#define PIECE_BYTES ((size_t)1 << 20)

/* Read exactly len bytes. Returns 0, -errno, or PS_EFORMAT at the end of the file. */
static int read_exactly(int fd, void *dst, uint64_t len, uint64_t offset)
{
    unsigned char *p = dst;
    while (len > 0) {
        size_t want = (size_t)(len < PREAD_MAX ? len : PREAD_MAX);
        ssize_t n = pread(fd, p, want, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return PS_EFORMAT;
        p += n;
        len -= (uint64_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static uint64_t load_u64(const unsigned char *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static int read_header(struct ps_st_file *f, struct ps_error *err)
{
    unsigned char prefix[8];
    if (f->size < 8)
        return ps_error_full(err, PS_EFORMAT, f->path, NULL, NULL,
                             "not a safetensors file: %llu bytes are less than the 8 of its prefix",
                             (unsigned long long)f->size);
    int ret = read_exactly(f->fd, prefix, 8, 0);
    if (ret)
        return ps_error_full(err, ret, f->path, NULL, NULL, "cannot read the safetensors prefix");
    uint64_t n = load_u64(prefix);
    if (n < 2 || n > PS_ST_HEADER_MAX)
        return ps_error_full(err, PS_EFORMAT, f->path, NULL, NULL,
                             "not a safetensors file: its header length is %llu, must be between 2 "
                             "and %u",
                             (unsigned long long)n, PS_ST_HEADER_MAX);
    if (n > f->size - 8)
        return ps_error_full(err, PS_EFORMAT, f->path, NULL,
                             "the file is cut short: download or copy it again",
                             "the safetensors header has %llu bytes, but the file only %llu",
                             (unsigned long long)n, (unsigned long long)f->size);
    f->header = malloc((size_t)n + 1);
    if (!f->header)
        return ps_error_full(err, -ENOMEM, f->path, NULL, NULL,
                             "not enough memory for a header of %llu bytes", (unsigned long long)n);
    ret = read_exactly(f->fd, f->header, n, 8);
    if (ret)
        return ps_error_full(err, ret, f->path, NULL, NULL, "cannot read the safetensors header");
    f->header[n] = '\0';
    return ps__st_parse_header(f, (size_t)n, 8 + n, f->size - 8 - n, err);
}

int ps_st_open(struct ps_st_file **out, const char *path, struct ps_error *err)
{
    struct ps_st_file *f = calloc(1, sizeof *f);
    int ret = -ENOMEM;
    if (!f)
        goto fail_alloc;
    f->fd = -1;
    f->path = strdup(path);
    if (!f->path)
        goto fail_alloc;
    ret = ps_file_open_regular(path, &f->fd, &f->size, err);
    if (ret)
        goto fail;
    struct stat st;
    if (fstat(f->fd, &st) < 0) {
        ret = ps_error_full(err, -errno, path, NULL, NULL, "cannot examine the file");
        goto fail;
    }
    f->mtime = st.st_mtim;
    ret = read_header(f, err);
    if (ret)
        goto fail;
    *out = f;
    return 0;

fail_alloc:
    ret = ps_error_full(err, -ENOMEM, path, NULL, NULL, "not enough memory to open the file");
fail:
    ps_st_close(f);
    return ret;
}

void ps_st_close(struct ps_st_file *f)
{
    if (!f)
        return;
    if (f->fd >= 0)
        close(f->fd);
    free(f->metadata);
    free(f->by_name);
    free(f->tensor);
    free(f->header);
    free(f->path);
    free(f);
}

size_t ps_st_count(const struct ps_st_file *f)
{
    return f->count;
}

const struct ps_st_tensor *ps_st_at(const struct ps_st_file *f, size_t idx)
{
    assert(idx < f->count);
    return &f->tensor[idx];
}

const struct ps_st_tensor *ps_st_find(const struct ps_st_file *f, const char *name)
{
    size_t lo = 0, hi = f->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(name, f->by_name[mid]->name);
        if (c == 0)
            return f->by_name[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

const char *ps_st_path(const struct ps_st_file *f)
{
    return f->path;
}

int ps_st_fd(const struct ps_st_file *f)
{
    return f->fd;
}

const char *ps_st_metadata(const struct ps_st_file *f, const char *key)
{
    for (size_t i = 0; i < f->metadata_count; i++)
        if (strcmp(f->metadata[i].key, key) == 0)
            return f->metadata[i].value;
    return NULL;
}

int ps_st_read(const struct ps_st_file *f, const struct ps_st_tensor *t, uint64_t begin,
               uint64_t len, void *dst, struct ps_error *err)
{
    assert(begin <= t->bytes);
    assert(len <= t->bytes - begin);
    int ret = read_exactly(f->fd, dst, len, t->offset + begin);
    if (ret == PS_EFORMAT)
        return ps_error_full(err, ret, f->path, t->name,
                             "do not change model files while they are "
                             "in use",
                             "tensor \"%s\": the file became shorter after it was opened", t->name);
    if (ret)
        return ps_error_full(err, ret, f->path, t->name, NULL, "tensor \"%s\": cannot read: %s",
                             t->name, ps_status_text(ret));
    return 0;
}

int ps_st_read_as(const struct ps_st_file *f, const struct ps_st_tensor *t, enum ps_dtype dst_type,
                  void *dst, struct ps_error *err)
{
    assert(dst_type <= PS_DTYPE_F16);
    if (t->dtype < 0 || t->dtype > PS_DTYPE_F16)
        return ps_error_full(err, PS_EUNSUPPORTED, f->path, t->name, NULL,
                             "tensor \"%s\": dtype %s where F32, BF16 or F16 is needed", t->name,
                             t->dtype_text);
    enum ps_dtype src_type = (enum ps_dtype)t->dtype;
    if (src_type == dst_type)
        return ps_st_read(f, t, 0, t->bytes, dst, err);
    void *piece = malloc(PIECE_BYTES);
    if (!piece)
        return ps_error_full(err, -ENOMEM, f->path, t->name, NULL,
                             "not enough memory to convert tensor \"%s\"", t->name);
    size_t src_size = ps_dtype_size(src_type);
    unsigned char *to = dst;
    int ret = 0;
    for (uint64_t at = 0; at < t->bytes && !ret; at += PIECE_BYTES) {
        uint64_t len = t->bytes - at < PIECE_BYTES ? t->bytes - at : PIECE_BYTES;
        ret = ps_st_read(f, t, at, len, piece, err);
        if (ret)
            break;
        ps_dtype_convert(to, dst_type, piece, src_type, (size_t)len / src_size);
        to += (size_t)len / src_size * ps_dtype_size(dst_type);
    }
    free(piece);
    return ret;
}

int ps_st_check_unchanged(const struct ps_st_file *f, struct ps_error *err)
{
    struct stat st;
    if (fstat(f->fd, &st) < 0)
        return ps_error_full(err, -errno, f->path, NULL, NULL, "cannot examine the file");
    if ((uint64_t)st.st_size != f->size || st.st_mtim.tv_sec != f->mtime.tv_sec ||
        st.st_mtim.tv_nsec != f->mtime.tv_nsec)
        return ps_error_full(err, PS_EFORMAT, f->path, NULL,
                             "do not change model files while they are in use",
                             "the file changed while it was read");
    return 0;
}
