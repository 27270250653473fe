/* Making an import: see import.h.
 *
 * Design: a unit's files are read into a raw slot and their checksums verified, so that what is
 * stored derives from bytes that were checked; then groups of chunks are converted, encoded,
 * decoded again and compared on the pool, packed and appended. Everything happens in a directory
 * that gets its final name only when it is whole and synced. A lock lets the next build remove what
 * a killed one left. */
#include "offload/import_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <xxhash.h>

#include "runtime/base/checked.h"
#include "runtime/base/file.h"

#define GROUP_CHUNKS ((size_t)16)
/* Written bytes are flushed as often as this, so that few dirty pages count against a memory limit.
 */
#define FLUSH_BYTES ((uint64_t)64 << 20)

static const char magic[8] = "PSIMPORT";

struct build_thread {
    struct ps__import_coder *coder;
    unsigned char *near, *again; /* (chunk,) converted; decoded again */
};

struct build {
    const struct ps_import_options *opt;
    struct ps_unit_sources *plan;
    const struct ps_st_set *files;
    int thread_count, lock_fd, fd;
    struct build_thread *thread; /* (thread_count,) */
    unsigned char *raw, *packed; /* largest raw slot; (GROUP_CHUNKS, chunk) */
    struct ps__import_header header;
    struct ps__import_unit *unit;
    struct ps__import_chunk *chunk;
    uint64_t chunk_used, written, flushed, done_bytes, total_bytes;
    char temp[PATH_MAX], weights[PATH_MAX];
    /* of the group that the pool works on */
    const struct ps_unit_source *u;
    uint64_t group_begin; /* first chunk, in the unit */
    int failed;           /* atomic: an error of a task, 0: none */
};

static uint64_t raw_most(const struct ps_unit_sources *plan)
{
    uint64_t most = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++)
        most = plan->unit[k].raw_bytes > most ? plan->unit[k].raw_bytes : most;
    return most;
}

uint64_t ps_import_build_bytes(const struct ps_unit_sources *plan, int thread_count)
{
    /* two chunks and a coder's planes and contexts each, chunk tables, packed records */
    uint64_t chunks = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++)
        chunks += ps__import_chunks(plan->unit[k].near_bytes);
    return raw_most(plan) + GROUP_CHUNKS * PS_IMPORT_CHUNK_BYTES +
           (uint64_t)thread_count * (4 * PS_IMPORT_CHUNK_BYTES + ((uint64_t)1 << 20)) +
           2 * chunks * sizeof(struct ps__import_chunk);
}

uint64_t ps_import_disk_bytes(const struct ps_unit_sources *plan, double ratio)
{
    uint64_t sum = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++) {
        uint64_t near = plan->unit[k].near_bytes;
        double stored = (double)near / (ratio > 1 ? ratio : 1);
        uint64_t chunks = ps__import_chunks(near);
        sum += ps_align_up((size_t)stored + chunks * PS_IMPORT_RECORD_ALIGN, PS_IMPORT_UNIT_ALIGN);
        sum += sizeof(struct ps__import_unit) + chunks * sizeof(struct ps__import_chunk);
    }
    return sum + 2 * PS_IMPORT_UNIT_ALIGN;
}

/* ---- set-up ---- */

static int no_memory(const struct build *b, struct ps_error *err)
{
    return ps_error_full(
        err, -ENOMEM, b->opt->path, NULL, NULL,
        "not enough memory to make an import: %llu MiB are needed",
        (unsigned long long)(ps_import_build_bytes(b->plan, b->thread_count) >> 20));
}

static int allocate(struct build *b, struct ps_error *err)
{
    uint64_t chunks = 0;
    for (uint32_t k = 0; k < b->plan->unit_count; k++) {
        chunks += ps__import_chunks(b->plan->unit[k].near_bytes);
        b->total_bytes += b->plan->unit[k].near_bytes;
    }
    b->thread_count = ps_pool_thread_count(b->opt->pool);
    b->thread = calloc((size_t)b->thread_count, sizeof *b->thread);
    b->raw = aligned_alloc(PS_IMPORT_UNIT_ALIGN, (size_t)raw_most(b->plan));
    b->packed = malloc(GROUP_CHUNKS * PS_IMPORT_CHUNK_BYTES);
    b->unit = calloc(b->plan->unit_count, sizeof *b->unit);
    b->chunk = calloc(chunks, sizeof *b->chunk);
    if (!b->thread || !b->raw || !b->packed || !b->unit || !b->chunk)
        return no_memory(b, err);
    for (int i = 0; i < b->thread_count; i++) {
        struct build_thread *t = &b->thread[i];
        t->coder = ps__import_coder_create(true);
        t->near = malloc(PS_IMPORT_CHUNK_BYTES);
        t->again = malloc(PS_IMPORT_CHUNK_BYTES);
        if (!t->coder || !t->near || !t->again)
            return no_memory(b, err);
    }
    return 0;
}

static void release(struct build *b)
{
    for (int i = 0; b->thread && i < b->thread_count; i++) {
        ps__import_coder_destroy(b->thread[i].coder);
        free(b->thread[i].near);
        free(b->thread[i].again);
    }
    free(b->thread);
    free(b->raw);
    free(b->packed);
    free(b->unit);
    free(b->chunk);
    if (b->fd >= 0)
        close(b->fd);
    if (b->lock_fd >= 0)
        close(b->lock_fd);
}

static int take_lock(struct build *b, struct ps_error *err)
{
    char path[PATH_MAX];
    if (!ps_path_join(path, sizeof path, b->opt->path, "penstock-import.lock") ||
        !ps_path_join(b->temp, sizeof b->temp, b->opt->path, PS_IMPORT_NAME "tmp") ||
        !ps_path_join(b->weights, sizeof b->weights, b->temp, "weights.bin"))
        return ps_error_full(err, -ENAMETOOLONG, b->opt->path, NULL, NULL, "path too long");
    b->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (b->lock_fd < 0)
        return ps_error_full(err, -errno, path, NULL, NULL, "cannot create the import's lock: %s",
                             strerror(errno));
    while (flock(b->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno == EINTR)
            continue;
        int busy = errno == EWOULDBLOCK;
        return ps_error_full(err, busy ? -EBUSY : -errno, path, NULL,
                             busy ? "wait until it has finished, or use another --nvme-path" : NULL,
                             busy ? "another process is making an import here"
                                  : "cannot lock the import's directory");
    }
    return 0;
}

static int check_space(const struct build *b, struct ps_error *err)
{
    struct statvfs vfs;
    if (statvfs(b->opt->path, &vfs) < 0)
        return ps_error_full(err, -errno, b->opt->path, NULL, NULL, "cannot examine the disk: %s",
                             strerror(errno));
    uint64_t need = ps_import_disk_bytes(b->plan, b->opt->ratio);
    uint64_t have = (uint64_t)vfs.f_bavail * vfs.f_frsize;
    if (need <= have)
        return 0;
    return ps_error_full(err, -ENOSPC, b->opt->path, NULL,
                         "free space there, or train without an import",
                         "the import needs %llu bytes, %llu are free", (unsigned long long)need,
                         (unsigned long long)have);
}

static int start_directory(struct build *b, struct ps_error *err)
{
    if (mkdir(b->temp, 0700) < 0)
        return ps_error_full(err, -errno, b->temp, NULL, NULL, "cannot create the directory: %s",
                             strerror(errno));
    b->fd = open(b->weights, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (b->fd < 0)
        return ps_error_full(err, -errno, b->weights, NULL, NULL, "cannot create the file: %s",
                             strerror(errno));
    return 0;
}

/* ---- units ---- */

static void fail_task(struct build *b, int code)
{
    int none = 0;
    __atomic_compare_exchange_n(&b->failed, &none, code, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* Convert, encode, decode again and compare one chunk of the group. */
static void encode_task(void *arg, size_t task_idx, int thread_idx)
{
    struct build *b = arg;
    struct build_thread *t = &b->thread[thread_idx];
    uint64_t idx = b->group_begin + task_idx;
    size_t n = ps__import_chunk_near(b->u->near_bytes, idx);
    unsigned char *record = b->packed + task_idx * PS_IMPORT_CHUNK_BYTES;
    struct ps__import_chunk *x = &b->chunk[b->chunk_used + task_idx];
    ps__import_window(b->u, idx * PS_IMPORT_CHUNK_BYTES, n, t->near, b->raw);
    int ret = ps__import_encode(t->coder, t->near, n, record, x);
    if (!ret)
        ret = ps__import_decode(t->coder, record, x, t->again, n);
    if (!ret && memcmp(t->near, t->again, n) != 0)
        ret = PS_ECHECKSUM;
    if (ret)
        fail_task(b, ret);
}

static int append(struct build *b, const void *data, size_t n, struct ps_error *err)
{
    int ret = ps_file_write_all(b->fd, data, n, b->weights, err);
    if (ret)
        return ret;
    b->written += n;
    if (b->written - b->flushed < FLUSH_BYTES)
        return 0;
    if (fdatasync(b->fd) < 0)
        return ps_error_full(err, -errno, b->weights, NULL, NULL, "cannot flush the file: %s",
                             strerror(errno));
    PS_IGNORE(posix_fadvise(b->fd, 0, 0, POSIX_FADV_DONTNEED), "only frees page cache sooner");
    b->flushed = b->written;
    return 0;
}

/* Pack the group's records: at multiples of 64, the gaps zero. */
static int append_group(struct build *b, size_t count, uint64_t unit_begin, struct ps_error *err)
{
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        struct ps__import_chunk *x = &b->chunk[b->chunk_used + i];
        size_t n = (size_t)x->exponent_bytes + x->mantissa_bytes;
        x->offset = b->written - unit_begin + at;
        memmove(b->packed + at, b->packed + i * PS_IMPORT_CHUNK_BYTES, n);
        size_t end = ps_align_up(at + n, PS_IMPORT_RECORD_ALIGN);
        /* a chunk is a multiple of 64: the gap ends at or before the next record's first place */
        memset(b->packed + at + n, 0, end - at - n);
        at = end;
    }
    b->chunk_used += count;
    return append(b, b->packed, at, err);
}

/* Read a unit into its raw slot and compare, or remember, its checksums. */
static int read_verified(struct ps_unit_sources *plan, const struct ps_unit_source *u,
                         const struct ps_st_set *files, unsigned char *raw, struct ps_error *err)
{
    int ret = ps__import_read_unit(u, files, raw, err);
    for (uint32_t i = 0; !ret && i < u->extent_count; i++)
        ret = ps_unit_verify(plan, &u->extent[i], raw + u->extent[i].raw_offset,
                             ps_st_path(ps_st_set_file(files, u->extent[i].file)), err);
    return ret;
}

int ps_import_scan(struct ps_unit_sources *plan, const struct ps_st_set *files,
                   struct ps_error *err)
{
    unsigned char *raw = malloc(raw_most(plan));
    if (!raw)
        return ps_error_set(err, -ENOMEM, "not enough memory to read the model");
    int ret = 0;
    for (uint32_t k = 0; !ret && k < plan->unit_count; k++)
        ret = read_verified(plan, &plan->unit[k], files, raw, err);
    free(raw);
    return ret;
}

static int add_unit(struct build *b, uint32_t k, const struct ps_param_table *params,
                    struct ps_error *err)
{
    static const unsigned char zeros[PS_IMPORT_UNIT_ALIGN];
    const struct ps_unit_source *u = &b->plan->unit[k];
    uint64_t begin = b->written, chunks = ps__import_chunks(u->near_bytes);
    int ret = read_verified(b->plan, u, b->files, b->raw, err);
    if (!ret)
        ret = ps_unit_check_finite(u, b->raw, params,
                                   ps_st_path(ps_st_set_file(b->files, u->extent[0].file)), err);
    if (ret)
        return ret;
    b->u = u;
    b->unit[k] = (struct ps__import_unit){
        .offset = begin, .near_bytes = u->near_bytes, .chunk_begin = b->chunk_used};
    for (uint64_t c = 0; c < chunks; c += GROUP_CHUNKS) {
        size_t count = chunks - c < GROUP_CHUNKS ? (size_t)(chunks - c) : GROUP_CHUNKS;
        b->group_begin = c;
        ps_pool_run(b->opt->pool, encode_task, b, count);
        if (b->failed)
            return ps_error_full(err, b->failed, b->weights, NULL, NULL,
                                 "cannot compress the weights: %s", ps_status_text(b->failed));
        ret = append_group(b, count, begin, err);
        if (ret)
            return ret;
        uint64_t end = (c + count) * PS_IMPORT_CHUNK_BYTES;
        uint64_t done = b->done_bytes + (end < u->near_bytes ? end : u->near_bytes);
        if (b->opt->progress && !b->opt->progress(b->opt->arg, done, b->total_bytes))
            return ps_error_set(err, PS_ESTOPPED, "stopped while importing the model");
    }
    b->done_bytes += u->near_bytes;
    size_t pad = ps_align_up((size_t)b->written, PS_IMPORT_UNIT_ALIGN) - (size_t)b->written;
    ret = append(b, zeros, pad, err);
    b->unit[k].bytes = b->written - begin;
    return ret;
}

/* ---- finish ---- */

static int write_index(struct build *b, const char *hex, struct ps_error *err)
{
    char path[PATH_MAX];
    if (!ps_path_join(path, sizeof path, b->temp, "index.bin"))
        return ps_error_full(err, -ENAMETOOLONG, b->temp, NULL, NULL, "path too long");
    struct ps__import_header *h = &b->header;
    *h = (struct ps__import_header){.version = PS_IMPORT_VERSION,
                                    .unit_count = b->plan->unit_count,
                                    .chunk_count = b->chunk_used,
                                    .chunk_bytes = PS_IMPORT_CHUNK_BYTES,
                                    .weights_bytes = b->written};
    memcpy(h->magic, magic, sizeof magic);
    memcpy(h->hash, hex, PS_IMPORT_HEX);
    size_t units = h->unit_count * sizeof *b->unit;
    size_t chunks = (size_t)h->chunk_count * sizeof *b->chunk;
    size_t bytes = sizeof *h + units + chunks + sizeof(uint64_t);
    unsigned char *index = malloc(bytes);
    if (!index)
        return no_memory(b, err);
    memcpy(index, h, sizeof *h);
    memcpy(index + sizeof *h, b->unit, units);
    memcpy(index + sizeof *h + units, b->chunk, chunks);
    uint64_t own = XXH3_64bits(index, bytes - sizeof own);
    memcpy(index + bytes - sizeof own, &own, sizeof own);
    int ret = ps_file_write(path, index, bytes, err);
    free(index);
    return ret;
}

/* Sync and give the directory its name. */
static int publish(struct build *b, const char *hex, struct ps_error *err)
{
    char dir[PATH_MAX], name[sizeof PS_IMPORT_NAME + PS_IMPORT_HEX];
    snprintf(name, sizeof name, PS_IMPORT_NAME "%s", hex);
    if (!ps_path_join(dir, sizeof dir, b->opt->path, name))
        return ps_error_full(err, -ENAMETOOLONG, b->opt->path, NULL, NULL, "path too long");
    if (fsync(b->fd) < 0)
        return ps_error_full(err, -errno, b->weights, NULL, NULL, "cannot flush the file: %s",
                             strerror(errno));
    int ret = write_index(b, hex, err);
    if (!ret)
        ret = ps_file_remove_tree(dir, err); /* a damaged one */
    if (ret)
        return ret;
    if (rename(b->temp, dir) < 0)
        return ps_error_full(err, -errno, dir, NULL, NULL, "cannot name the import: %s",
                             strerror(errno));
    return ps_file_sync_dir(b->opt->path, err);
}

static int build(struct build *b, const struct ps_param_table *params, char hex[PS_IMPORT_HEX],
                 struct ps_error *err)
{
    int ret = ps_file_remove_tree(b->temp, err); /* of a build that was killed */
    if (!ret)
        ret = check_space(b, err);
    if (!ret)
        ret = allocate(b, err);
    if (!ret)
        ret = start_directory(b, err);
    for (uint32_t k = 0; !ret && k < b->plan->unit_count; k++)
        ret = add_unit(b, k, params, err);
    for (size_t i = 0; !ret && i < ps_st_set_file_count(b->files); i++)
        ret = ps_st_check_unchanged(ps_st_set_file(b->files, i), err);
    if (ret)
        return ret;
    ret = ps__import_hash(b->plan, b->files, hex);
    if (ret)
        return ps_error_full(err, ret, b->opt->path, NULL, NULL, "cannot identify the model: %s",
                             ps_status_text(ret));
    return publish(b, hex, err);
}

int ps_import_build(struct ps_import **out, struct ps_unit_sources *plan,
                    const struct ps_param_table *params, const struct ps_st_set *files,
                    const struct ps_import_options *opt, struct ps_error *err)
{
    struct build b = {.opt = opt, .plan = plan, .files = files, .lock_fd = -1, .fd = -1};
    char hex[PS_IMPORT_HEX];
    int ret = ps__import_require(plan, err);
    if (ret)
        return ret;
    ret = take_lock(&b, err);
    if (!ret) {
        ret = build(&b, params, hex, err);
        if (ret)
            PS_IGNORE(ps_file_remove_tree(b.temp, NULL), "the first error is the one to tell");
    }
    release(&b);
    if (ret)
        return ret;
    char why[256] = "";
    ret = ps__import_open_hash(out, opt->path, plan, hex, why, err);
    if (ret == 0)
        return ps_error_full(err, PS_ECHECKSUM, opt->path, NULL, "check the disk",
                             "the import that was just written cannot be opened: %s", why);
    return ret < 0 ? ret : 0;
}
