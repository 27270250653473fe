/* An import that exists: opening, the plan that reads it, decoding. See import.h. */
#include "offload/import_internal.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "runtime/base/checked.h"
#include "runtime/base/file.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the index is read as it lies");

static const char magic[8] = "PSIMPORT";

struct ps_import {
    char *index; /* index.bin as read */
    struct ps__import_header header;
    const struct ps__import_unit *unit;   /* in index */
    const struct ps__import_chunk *chunk; /* in index */
    char dir[PATH_MAX];
    char weights[PATH_MAX];
};

static int nothing(char why[256], const char *text)
{
    if (why)
        snprintf(why, 256, "%s", text);
    return 0;
}

void ps_import_close(struct ps_import *im)
{
    if (!im)
        return;
    free(im->index);
    free(im);
}

static size_t index_bytes(uint64_t unit_count, uint64_t chunk_count)
{
    return sizeof(struct ps__import_header) + unit_count * sizeof(struct ps__import_unit) +
           chunk_count * sizeof(struct ps__import_chunk) + sizeof(uint64_t);
}

static bool chunk_ok(const struct ps__import_chunk *c, uint64_t near, uint64_t unit_bytes)
{
    uint64_t words = near / 2;
    return c->exponent_bytes >= 1 && c->exponent_bytes <= words && c->mantissa_bytes >= 1 &&
           c->mantissa_bytes <= words && c->offset <= unit_bytes &&
           (uint64_t)c->exponent_bytes + c->mantissa_bytes <= unit_bytes - c->offset;
}

/* The units follow the plan and lie in weights.bin, the chunks in their units. */
static bool tables_ok(const struct ps_import *im, const struct ps_unit_sources *plan)
{
    uint64_t chunk = 0, at = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++) {
        const struct ps__import_unit *u = &im->unit[k];
        if (u->near_bytes != plan->unit[k].near_bytes || u->chunk_begin != chunk ||
            u->offset != at || u->bytes % PS_IMPORT_UNIT_ALIGN != 0 ||
            u->bytes > im->header.weights_bytes - at)
            return false;
        at += u->bytes;
        for (uint64_t i = 0; i < ps__import_chunks(u->near_bytes); i++, chunk++)
            if (chunk >= im->header.chunk_count ||
                !chunk_ok(&im->chunk[chunk], ps__import_chunk_near(u->near_bytes, i), u->bytes))
                return false;
    }
    return chunk == im->header.chunk_count && at == im->header.weights_bytes;
}

/* Check an index of len bytes (im->index) against the plan and the hash. */
static bool index_ok(struct ps_import *im, size_t len, const struct ps_unit_sources *plan,
                     const char *hex)
{
    struct ps__import_header *h = &im->header;
    uint64_t own;
    if (len < index_bytes(0, 0))
        return false;
    memcpy(h, im->index, sizeof *h);
    memcpy(&own, im->index + len - sizeof own, sizeof own);
    uint64_t chunks = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++)
        chunks += ps__import_chunks(plan->unit[k].near_bytes);
    if (memcmp(h->magic, magic, sizeof magic) || h->version != PS_IMPORT_VERSION ||
        h->chunk_bytes != PS_IMPORT_CHUNK_BYTES || h->unit_count != plan->unit_count ||
        h->chunk_count != chunks || len != index_bytes(h->unit_count, h->chunk_count) ||
        memcmp(h->hash, hex, PS_IMPORT_HEX) || own != XXH3_64bits(im->index, len - sizeof own))
        return false;
    im->unit = (const struct ps__import_unit *)(const void *)(im->index + sizeof *h);
    im->chunk = (const struct ps__import_chunk *)(const void *)(im->unit + h->unit_count);
    return tables_ok(im, plan);
}

/* A directory that we own and nobody else may write to: what lies in it was made by us. */
static int directory_ok(const char *dir, char why[256])
{
    struct stat st;
    if (lstat(dir, &st) < 0)
        return errno == ENOENT ? nothing(why, "there is no import of this model yet") : -errno;
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022))
        return nothing(why, "the import's directory is a link, or others may write to it");
    return 1;
}

static int open_in(struct ps_import *im, const struct ps_unit_sources *plan, const char *hex,
                   char why[256], struct ps_error *err)
{
    char path[PATH_MAX];
    struct stat st;
    size_t len, most = index_bytes(plan->unit_count, 0);
    if (!ps_path_join(path, sizeof path, im->dir, "index.bin") ||
        !ps_path_join(im->weights, sizeof im->weights, im->dir, "weights.bin"))
        return ps_error_full(err, -ENAMETOOLONG, im->dir, NULL, NULL, "path too long");
    for (uint32_t k = 0; k < plan->unit_count; k++)
        most += ps__import_chunks(plan->unit[k].near_bytes) * sizeof(struct ps__import_chunk);
    struct ps_error own = {0};
    int ret = ps_file_read(path, most, &im->index, &len, &own);
    if (ret == -ENOENT || ret == PS_EFORMAT)
        return nothing(why, "the import's index is missing or damaged");
    if (ret) {
        if (err)
            *err = own;
        return ret;
    }
    if (!index_ok(im, len, plan, hex))
        return nothing(why, "the import's index is damaged");
    if (lstat(im->weights, &st) < 0 || !S_ISREG(st.st_mode) ||
        (uint64_t)st.st_size != im->header.weights_bytes)
        return nothing(why, "the import's weights are missing or cut short");
    return 1;
}

int ps__import_open_hash(struct ps_import **out, const char *path,
                         const struct ps_unit_sources *plan, const char *hex, char why[256],
                         struct ps_error *err)
{
    char name[sizeof PS_IMPORT_NAME + PS_IMPORT_HEX];
    struct ps_import *im = calloc(1, sizeof *im);
    if (!im)
        return ps_error_full(err, -ENOMEM, path, NULL, NULL, "not enough memory for an import");
    snprintf(name, sizeof name, PS_IMPORT_NAME "%s", hex);
    int ret;
    if (!ps_path_join(im->dir, sizeof im->dir, path, name)) {
        ret = ps_error_full(err, -ENAMETOOLONG, path, NULL, NULL, "path too long");
    } else {
        ret = directory_ok(im->dir, why);
        if (ret < 0)
            ret = ps_error_full(err, ret, im->dir, NULL, NULL, "cannot examine the import: %s",
                                ps_status_text(ret));
    }
    if (ret == 1)
        ret = open_in(im, plan, hex, why, err);
    if (ret == 1)
        *out = im;
    else
        ps_import_close(im);
    return ret;
}

int ps_import_open(struct ps_import **out, const char *path, const struct ps_unit_sources *plan,
                   const struct ps_st_set *files, char why[256], struct ps_error *err)
{
    char hex[PS_IMPORT_HEX];
    if (why)
        why[0] = '\0';
    int ret = ps__import_require(plan, err);
    if (ret)
        return ret;
    ret = ps__import_hash(plan, files, hex);
    if (ret == -ENODATA)
        return nothing(why, "the model's files have not been read whole yet");
    if (ret)
        return ps_error_full(err, ret, path, NULL, NULL, "cannot identify the model: %s",
                             ps_status_text(ret));
    return ps__import_open_hash(out, path, plan, hex, why, err);
}

const char *ps_import_path(const struct ps_import *im)
{
    return im->weights;
}

uint64_t ps_import_bytes(const struct ps_import *im)
{
    return im->header.weights_bytes;
}

/* ---- the plan ---- */

static uint64_t checksums_of(uint64_t bytes)
{
    return (bytes + PS_UNIT_CHUNK_BYTES - 1) / PS_UNIT_CHUNK_BYTES;
}

void ps_import_unit_extent(const struct ps_import *im, uint32_t unit_idx, struct ps_extent *out)
{
    assert(unit_idx < im->header.unit_count);
    const struct ps__import_unit *u = &im->unit[unit_idx];
    *out = (struct ps_extent){.offset = u->offset, .bytes = u->bytes, .expect = u->bytes};
    for (uint32_t k = 0; k < unit_idx; k++)
        out->checksum_idx += checksums_of(im->unit[k].bytes);
}

int ps_import_sources(const struct ps_import *im, const struct ps_unit_sources *plan,
                      struct ps_unit_sources *out, struct ps_error *err)
{
    assert(plan->unit_count == im->header.unit_count);
    return ps__import_sources_of(im->unit, plan, out, err);
}

/* ---- decoding ---- */

struct ps_import_decoder {
    int thread_count;
    struct ps__import_coder *coder[]; /* (thread_count,) */
};

int ps_import_decoder_create(struct ps_import_decoder **out, int thread_count)
{
    assert(thread_count >= 1);
    struct ps_import_decoder *d = calloc(1, sizeof *d + (size_t)thread_count * sizeof d->coder[0]);
    if (!d)
        return -ENOMEM;
    for (; d->thread_count < thread_count; d->thread_count++) {
        d->coder[d->thread_count] = ps__import_coder_create(false);
        if (!d->coder[d->thread_count]) {
            ps_import_decoder_destroy(d);
            return -ENOMEM;
        }
    }
    *out = d;
    return 0;
}

void ps_import_decoder_destroy(struct ps_import_decoder *d)
{
    if (!d)
        return;
    for (int i = 0; i < d->thread_count; i++)
        ps__import_coder_destroy(d->coder[i]);
    free(d);
}

uint64_t ps_import_decoder_bytes(int thread_count)
{
    /* two planes and a zstd context, which is about 160 KiB */
    return (uint64_t)thread_count * (2 * PS_IMPORT_PLANE_BYTES + ((uint64_t)256 << 10));
}

uint32_t ps_import_chunk_count(const struct ps_import *im, uint32_t unit_idx)
{
    assert(unit_idx < im->header.unit_count);
    return (uint32_t)ps__import_chunks(im->unit[unit_idx].near_bytes);
}

/* One chunk to `to`. */
static int decode_chunk(const struct ps_import *im, struct ps_import_decoder *d, int thread_idx,
                        uint32_t unit_idx, uint32_t chunk_idx, void *to, const void *raw,
                        struct ps_error *err)
{
    assert(unit_idx < im->header.unit_count);
    assert(thread_idx >= 0 && thread_idx < d->thread_count);
    const struct ps__import_unit *u = &im->unit[unit_idx];
    assert(chunk_idx < ps__import_chunks(u->near_bytes));
    const struct ps__import_chunk *c = &im->chunk[u->chunk_begin + chunk_idx];
    size_t n = ps__import_chunk_near(u->near_bytes, chunk_idx);
    int ret =
        ps__import_decode(d->coder[thread_idx], (const unsigned char *)raw + c->offset, c, to, n);
    if (ret == 0)
        return 0;
    char advice[384];
    snprintf(advice, sizeof advice, "remove %.300s: the next run makes it again", im->dir);
    return ps_error_full(
        err, ret, im->weights, NULL, advice,
        "the imported weights are damaged in bytes %llu to %llu",
        (unsigned long long)(u->offset + c->offset),
        (unsigned long long)(u->offset + c->offset + c->exponent_bytes + c->mantissa_bytes));
}

int ps_import_decode_chunk(const struct ps_import *im, struct ps_import_decoder *d, int thread_idx,
                           uint32_t unit_idx, uint32_t chunk_idx, void *near, const void *raw,
                           struct ps_error *err)
{
    return decode_chunk(im, d, thread_idx, unit_idx, chunk_idx,
                        (unsigned char *)near + chunk_idx * PS_IMPORT_CHUNK_BYTES, raw, err);
}

struct decode_job {
    const struct ps_import *im;
    struct ps_import_decoder *d;
    uint32_t unit_idx, first;
    unsigned char *near; /* of the first chunk */
    const void *raw;
    uint32_t failed; /* atomic: lowest that failed, counted from the first; UINT32_MAX: none */
};

static int job_chunk(const struct decode_job *j, uint32_t i, int thread_idx, struct ps_error *err)
{
    return decode_chunk(j->im, j->d, thread_idx, j->unit_idx, j->first + i,
                        j->near + i * PS_IMPORT_CHUNK_BYTES, j->raw, err);
}

static void decode_task(void *arg, size_t task_idx, int thread_idx)
{
    struct decode_job *j = arg;
    uint32_t chunk = (uint32_t)task_idx;
    if (job_chunk(j, chunk, thread_idx, NULL) == 0)
        return;
    uint32_t seen = __atomic_load_n(&j->failed, __ATOMIC_RELAXED);
    while (chunk < seen && !__atomic_compare_exchange_n(&j->failed, &seen, chunk, false,
                                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

int ps_import_decode_range(const struct ps_import *im, struct ps_import_decoder *d,
                           struct ps_pool *pool, uint32_t unit_idx, uint64_t begin, uint64_t bytes,
                           void *near, const void *raw, struct ps_error *err)
{
    assert(ps_pool_thread_count(pool) <= d->thread_count);
    assert(unit_idx < im->header.unit_count && begin % PS_IMPORT_CHUNK_BYTES == 0);
    assert(begin + bytes <= im->unit[unit_idx].near_bytes);
    assert(bytes % PS_IMPORT_CHUNK_BYTES == 0 || begin + bytes == im->unit[unit_idx].near_bytes);
    struct decode_job j = {.im = im,
                           .d = d,
                           .unit_idx = unit_idx,
                           .first = (uint32_t)(begin / PS_IMPORT_CHUNK_BYTES),
                           .near = near,
                           .raw = raw,
                           .failed = UINT32_MAX};
    uint32_t count = (uint32_t)ps__import_chunks(bytes);
    ps_pool_run(pool, decode_task, &j, count);
    /* once more, alone, for the message */
    for (uint32_t i = j.failed; i < count; i++) {
        int ret = job_chunk(&j, i, 0, err);
        if (ret)
            return ret;
    }
    return 0;
}

int ps_import_decode_unit(const struct ps_import *im, struct ps_import_decoder *d,
                          struct ps_pool *pool, uint32_t unit_idx, void *near, const void *raw,
                          struct ps_error *err)
{
    assert(unit_idx < im->header.unit_count);
    return ps_import_decode_range(im, d, pool, unit_idx, 0, im->unit[unit_idx].near_bytes, near,
                                  raw, err);
}
