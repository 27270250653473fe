/* Checksums of the model's files as units read them, and their table on disk: see unit_source.h.
 *
 * The table is a cache: one that is absent, damaged or another model's is made again on the next
 * pass, never an error. A file that has another modification time is not trusted even when its size
 * is the same, since the table could only say that the bytes differ, not which ones are right.
 *
 *   struct table_header | struct table_file (file_count,) | u64 checksum (checksum_count,) | u64
 * XXH3
 *
 * Little-endian; the last word covers all bytes before it. */
#include "runtime/model/unit_source.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "runtime/base/checked.h"
#include "runtime/base/file.h"
#include "runtime/model/safetensors_internal.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the table is written as it lies");

#define TABLE_VERSION 1u
#define NAME_BYTES 256

struct table_header {
    char magic[8];
    uint32_t version;
    uint32_t file_count;
    uint64_t chunk_bytes;
    uint64_t checksum_count;
    uint64_t layout; /* XXH3 of every extent's file, offset and expect */
};
static_assert(sizeof(struct table_header) == 40, "on-disk layout");

struct table_file {
    char name[NAME_BYTES]; /* bare name, NUL-padded */
    uint64_t size;
    int64_t mtime_s, mtime_ns;
};
static_assert(sizeof(struct table_file) == NAME_BYTES + 24, "on-disk layout");

static const char magic[8] = "PSUNITCK";

static uint64_t chunk_hash(const void *p, size_t n)
{
    uint64_t h = XXH3_64bits(p, n);
    return h ? h : 1; /* 0 means: not yet known */
}

int ps_unit_verify(struct ps_unit_sources *s, const struct ps_extent *e, const void *raw,
                   const char *file, struct ps_error *err)
{
    const unsigned char *p = raw;
    uint64_t idx = e->checksum_idx;
    for (uint64_t at = 0; at < e->expect; at += PS_UNIT_CHUNK_BYTES, idx++) {
        uint64_t n = e->expect - at < PS_UNIT_CHUNK_BYTES ? e->expect - at : PS_UNIT_CHUNK_BYTES;
        uint64_t h = chunk_hash(p + at, (size_t)n);
        assert(idx < s->checksum_count);
        if (s->checksum[idx] == 0)
            s->checksum[idx] = h;
        else if (s->checksum[idx] != h)
            return ps_error_full(
                err, PS_ECHECKSUM, file, NULL,
                "the file changed, or the disk or the memory damaged it: compare it with its "
                "source "
                "and run again",
                "bytes %llu to %llu of the file do not match the checksum of an earlier read",
                (unsigned long long)(e->offset + at), (unsigned long long)(e->offset + at + n));
    }
    return 0;
}

static uint64_t layout_hash(const struct ps_unit_sources *s)
{
    uint64_t h = 0;
    for (uint32_t i = 0; i < s->unit_count; i++)
        for (uint32_t j = 0; j < s->unit[i].extent_count; j++) {
            const struct ps_extent *e = &s->unit[i].extent[j];
            uint64_t word[4] = {h, e->file, e->offset, e->expect};
            h = XXH3_64bits(word, sizeof word);
        }
    return h;
}

static const char *bare_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void describe(struct table_file *out, const struct ps_st_file *f)
{
    memset(out, 0, sizeof *out);
    /* cannot truncate: a file name has at most 255 bytes */
    snprintf(out->name, sizeof out->name, "%s", bare_name(f->path));
    out->size = f->size;
    out->mtime_s = f->mtime.tv_sec;
    out->mtime_ns = f->mtime.tv_nsec;
}

static size_t table_bytes(size_t file_count, uint64_t checksum_count)
{
    return sizeof(struct table_header) + file_count * sizeof(struct table_file) +
           ((size_t)checksum_count + 1) * sizeof(uint64_t);
}

int ps_unit_checksums_save(const struct ps_unit_sources *s, const struct ps_st_set *files,
                           const char *path, struct ps_error *err)
{
    size_t file_count = ps_st_set_file_count(files);
    size_t bytes = table_bytes(file_count, s->checksum_count);
    unsigned char *table = malloc(bytes);
    if (!table)
        return ps_error_full(err, -ENOMEM, path, NULL, NULL,
                             "not enough memory for the table of checksums");
    struct table_header h = {.version = TABLE_VERSION,
                             .file_count = (uint32_t)file_count,
                             .chunk_bytes = PS_UNIT_CHUNK_BYTES,
                             .checksum_count = s->checksum_count,
                             .layout = layout_hash(s)};
    memcpy(h.magic, magic, sizeof magic);
    memcpy(table, &h, sizeof h);
    size_t at = sizeof h;
    for (size_t i = 0; i < file_count; i++, at += sizeof(struct table_file)) {
        struct table_file f;
        describe(&f, ps_st_set_file(files, i));
        memcpy(table + at, &f, sizeof f);
    }
    size_t sums = (size_t)s->checksum_count * sizeof(uint64_t);
    memcpy(table + at, s->checksum, sums);
    at += sums;
    uint64_t own = XXH3_64bits(table, at);
    memcpy(table + at, &own, sizeof own);
    assert(at + sizeof own == bytes);
    int ret = ps_file_write(path, table, bytes, err);
    free(table);
    return ret;
}

static int not_ours(char why[256], const char *text)
{
    if (why)
        snprintf(why, 256, "%s", text);
    return 0;
}

/* 1 when the table was made of these files, else 0 with *why. */
static int files_match(const unsigned char *table, const struct ps_st_set *files, char why[256])
{
    for (size_t i = 0; i < ps_st_set_file_count(files); i++) {
        struct table_file was, now;
        memcpy(&was, table + i * sizeof was, sizeof was);
        describe(&now, ps_st_set_file(files, i));
        const char *what = memcmp(was.name, now.name, sizeof now.name) ? "is another file"
                           : was.size != now.size                      ? "has another size"
                           : was.mtime_s != now.mtime_s || was.mtime_ns != now.mtime_ns
                               ? "has another modification time"
                               : NULL;
        if (!what)
            continue;
        if (why)
            snprintf(why, 256, "%.180s %s than when it was checksummed", now.name, what);
        return 0;
    }
    return 1;
}

/* Check a table of `len` bytes and take its checksums. 1 or 0. */
static int take_table(struct ps_unit_sources *s, const struct ps_st_set *files,
                      const unsigned char *table, size_t len, char why[256])
{
    struct table_header h;
    uint64_t own;
    if (len < sizeof h + sizeof own)
        return not_ours(why, "the table of checksums is cut short");
    memcpy(&h, table, sizeof h);
    memcpy(&own, table + len - sizeof own, sizeof own);
    if (memcmp(h.magic, magic, sizeof magic) || h.version != TABLE_VERSION ||
        h.chunk_bytes != PS_UNIT_CHUNK_BYTES)
        return not_ours(why, "the table of checksums has another format");
    if (own != XXH3_64bits(table, len - sizeof own))
        return not_ours(why, "the table of checksums is damaged");
    if (h.file_count != ps_st_set_file_count(files))
        return not_ours(why, "the model has another number of files than when it was checksummed");
    if (len != table_bytes(h.file_count, s->checksum_count) ||
        h.checksum_count != s->checksum_count || h.layout != layout_hash(s)) {
        /* the files say more than the layout when both differ */
        if (len >= table_bytes(h.file_count, 0) && !files_match(table + sizeof h, files, why))
            return 0;
        return not_ours(why, "the units are read in other pieces than when they were checksummed");
    }
    if (!files_match(table + sizeof h, files, why))
        return 0;
    memcpy(s->checksum, table + sizeof h + h.file_count * sizeof(struct table_file),
           (size_t)s->checksum_count * sizeof(uint64_t));
    return 1;
}

int ps_unit_checksums_load(struct ps_unit_sources *s, const struct ps_st_set *files,
                           const char *path, char why[256], struct ps_error *err)
{
    char *table;
    size_t len;
    size_t max = table_bytes(ps_st_set_file_count(files), s->checksum_count);
    struct ps_error own = {0};
    if (why)
        why[0] = '\0';
    /* room for one of a model cut differently, so that its first difference can be named */
    int ret = ps_file_read(path, 2 * max + 65536, &table, &len, &own);
    if (ret == -ENOENT)
        return not_ours(why, "there is no table of checksums yet");
    if (ret == PS_EFORMAT)
        return not_ours(why, "the table of checksums is another model's");
    if (ret) {
        if (err)
            *err = own;
        return ret;
    }
    ret = take_table(s, files, (const unsigned char *)table, len, why);
    free(table);
    return ret;
}
