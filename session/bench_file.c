/* The benchmark's test file: made, opened by two storage back ends, unlinked at once, then filled.
 *
 * Design: from the moment the back ends have opened it the file has no name, so nothing is left
 * behind however the program ends. It is filled with random bytes (a drive may compress) before
 * anything is read: unwritten extents are read without a disk. Filling stops after a while on a
 * slow disk: what is filled by then is the file. */
#include "session/bench_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "offload/storage_backends.h"
#include "session/host_disk.h"

#define UNIT ((uint64_t)8 << 20) /* of the file's size: the largest chunk */
#define DEPTH_MAX 32
#define FILE_MIN (2 * UNIT)

static int stream_open(struct ps__bench_stream *s, struct ps__bench_file *f,
                       const struct ps__bench *b, const char *path, bool writable,
                       struct ps_error *err)
{
    s->memory_bytes = b->memory_bytes < (uint64_t)512 << 20 ? (size_t)16 << 20 : (size_t)64 << 20;
    s->memory = ps__bench_alloc(s->memory_bytes);
    if (!s->memory)
        return ps_error_set(err, -ENOMEM, "out of memory for %zu bytes of disk buffers",
                            s->memory_bytes);
    uint64_t x = 0x2545f4914f6cdd1dull;
    for (size_t i = 0; i < s->memory_bytes; i += sizeof x) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(s->memory + i, &x, sizeof x);
    }
    struct ps_storage_options o = {.depth = DEPTH_MAX,
                                   .chunk_bytes = (uint32_t)UNIT,
                                   .transfer_max = 2 * DEPTH_MAX,
                                   .file_max = 1,
                                   .arena = s->memory,
                                   .arena_bytes = s->memory_bytes,
                                   .log = b->opt->log};
    int ret = ps_storage_open_auto(&s->st, NULL, &o, f->why, err);
    if (ret) {
        s->st = NULL;
        return ret;
    }
    ret = s->st->ops->add_file(s->st, path, writable, &f->direct, err);
    if (ret < 0)
        return ret;
    s->file = (uint32_t)ret;
    PS_IGNORE(snprintf(f->backend, sizeof f->backend, "%s", s->st->ops->name) < 0, "fits");
    return 0;
}

static void stream_close(struct ps__bench_stream *s)
{
    if (s->st)
        s->st->ops->close(s->st);
    ps__bench_free(s->memory, s->memory_bytes);
    s->st = NULL;
    s->memory = NULL;
}

static int cannot_create(const char *dir, int code, struct ps_error *err)
{
    if (code == -ENOENT || code == -ENOTDIR)
        return ps_error_full(err, PS_EUSAGE, dir, "nvme-path", "name an existing directory",
                             "there is no such directory");
    return ps_error_full(err, code, dir, NULL, "name a directory of yours with --nvme-path",
                         "cannot create the test file: %s", ps_status_text(code));
}

/* How large the file becomes; -ENOSPC where even the smallest does not fit. */
static int choose_bytes(const struct ps__bench *b, const char *dir, char *fs, size_t fs_size,
                        uint64_t *bytes, struct ps_error *err)
{
    struct ps_host_disk disk;
    int ret = ps_host_disk(&disk, dir, err);
    if (ret)
        return ret;
    PS_IGNORE(snprintf(fs, fs_size, "%s", disk.name) < 0, "fits");
    uint64_t want = b->opt->disk_bytes;
    if (want == 0) {
        uint64_t most = b->quick                         ? (uint64_t)64 << 20
                        : b->opt->parts == PS_BENCH_DISK ? (uint64_t)8 << 30
                                                         : (uint64_t)2 << 30;
        want = disk.free_bytes / 4 < most ? disk.free_bytes / 4 : most;
    }
    want = want < FILE_MIN ? FILE_MIN : want / UNIT * UNIT;
    if (want > disk.free_bytes)
        return ps_error_full(err, -ENOSPC, dir, NULL,
                             "free space there, or name another directory with --nvme-path or "
                             "another --disk-size",
                             "the test file needs %llu bytes, %llu are free",
                             (unsigned long long)want, (unsigned long long)disk.free_bytes);
    *bytes = want;
    return 0;
}

static int reserve(int fd, uint64_t bytes, const char *dir, struct ps_error *err)
{
    int ret = ftruncate(fd, (off_t)bytes) < 0 ? -errno : 0;
    if (ret == 0 && fallocate(fd, 0, 0, (off_t)bytes) < 0 && errno != EOPNOTSUPP && errno != ENOSYS)
        ret = -errno;
    if (ret == 0)
        return 0;
    return ps_error_full(err, ret, dir, NULL, "free space there, or use a smaller --disk-size",
                         "cannot reserve %llu bytes for the test file: %s",
                         (unsigned long long)bytes, ps_status_text(ret));
}

/* Write the file once; after `seconds` what is written is the file. */
static int fill(struct ps__bench_file *f, double seconds, double *rate, struct ps_error *err)
{
    uint64_t all = f->bytes;
    uint32_t depth = (uint32_t)(f->writer.memory_bytes / UNIT);
    double begin = ps__bench_now();
    uint64_t done = 0;
    while (done < all && (done < FILE_MIN || ps__bench_now() - begin < seconds)) {
        uint64_t ticket[8];
        uint32_t n = 0;
        for (; n < depth && n < 8 && done < all; n++, done += UNIT) {
            struct ps_transfer x = {.file = f->writer.file,
                                    .write = true,
                                    .offset = done,
                                    .bytes = UNIT,
                                    .expect = UNIT,
                                    .memory = f->writer.memory + n * UNIT};
            int ret = f->writer.st->ops->submit(f->writer.st, &x, &ticket[n], err);
            if (ret)
                return ret;
        }
        for (uint32_t i = 0; i < n; i++) {
            int ret = f->writer.st->ops->wait(f->writer.st, ticket[i], err);
            if (ret)
                return ret;
        }
    }
    int ret = f->writer.st->ops->flush(f->writer.st, f->writer.file, err);
    if (ret)
        return ret;
    *rate = (double)done / (ps__bench_now() - begin);
    f->bytes = done;
    f->written_bytes = done;
    return 0;
}

/* Errors of the back ends name the file, which has no name any more: the directory says more. */
static int in_dir(int ret, const char *dir, struct ps_error *err)
{
    if (ret < 0 && err)
        PS_IGNORE(snprintf(err->file, sizeof err->file, "%.511s", dir) < 0, "cut if need be");
    return ret;
}

int ps__bench_file_open(struct ps__bench_file *f, const struct ps__bench *b, const char *dir,
                        double *fill_rate, struct ps_error *err)
{
    memset(f, 0, sizeof *f);
    f->fd = -1;
    char real[PATH_MAX];
    int n = realpath(dir, real) ? snprintf(f->path, sizeof f->path, "%s", real) : -errno;
    if (n < 0 || (size_t)n >= sizeof f->path)
        return cannot_create(dir, n < 0 ? n : -ENAMETOOLONG, err);
    int ret = choose_bytes(b, f->path, f->fs, sizeof f->fs, &f->bytes, err);
    if (ret)
        return ret;
    char path[PATH_MAX + 64];
    n = snprintf(path, sizeof path, "%s/penstock-bench-%ld.tmp", f->path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof path)
        return cannot_create(dir, -ENAMETOOLONG, err);
    f->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (f->fd < 0)
        return cannot_create(f->path, -errno, err);
    /* sized first, as a back end may look at the size when it opens the file */
    ret = ftruncate(f->fd, (off_t)f->bytes) < 0 ? cannot_create(f->path, -errno, err) : 0;
    if (ret == 0)
        ret = stream_open(&f->writer, f, b, path, true, err);
    if (ret == 0)
        ret = stream_open(&f->reader, f, b, path, false, err);
    unlink(path);
    if (ret == 0)
        ret = reserve(f->fd, f->bytes, f->path, err);
    if (ret == 0)
        ret = fill(f, b->quick ? 1 : b->opt->parts == PS_BENCH_DISK ? 30 : 8, fill_rate, err);
    if (ret)
        ps__bench_file_close(f);
    return in_dir(ret, f->path, err);
}

void ps__bench_file_close(struct ps__bench_file *f)
{
    stream_close(&f->reader);
    stream_close(&f->writer);
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
}

int ps__bench_stream(struct ps__bench_file *f, const struct ps__bench_flow *flow, double *rate,
                     struct ps_error *err)
{
    struct ps__bench_stream *s = flow->write ? &f->writer : &f->reader;
    const struct ps_storage_ops *ops = s->st->ops;
    const uint64_t chunk = flow->chunk_bytes;
    uint64_t ticket[DEPTH_MAX], sent = 0, got = 0;
    uint32_t depth = flow->depth < DEPTH_MAX ? flow->depth : DEPTH_MAX;
    double begin = ps__bench_now();
    int ret = 0;
    for (;;) {
        bool go = ret == 0 && ps__bench_now() - begin < flow->seconds &&
                  !(flow->stop && atomic_load_explicit(flow->stop, memory_order_relaxed));
        if (go && sent - got < depth) {
            if (s->position + chunk > f->bytes)
                s->position = 0;
            struct ps_transfer x = {.file = s->file,
                                    .write = flow->write,
                                    .offset = s->position,
                                    .bytes = chunk,
                                    .expect = chunk,
                                    .memory = s->memory + sent % depth * chunk};
            ret = ops->submit(s->st, &x, &ticket[sent % depth], err);
            if (ret)
                continue;
            s->position += chunk;
            sent++;
            continue;
        }
        if (got == sent)
            break;
        int waited = ops->wait(s->st, ticket[got % depth], ret ? NULL : err);
        ret = ret ? ret : waited;
        got++;
        if (flow->moved)
            atomic_fetch_add_explicit(flow->moved, chunk, memory_order_relaxed);
    }
    if (ret)
        return in_dir(ret, f->path, err);
    double seconds = ps__bench_now() - begin;
    *rate = (double)(got * chunk) / (seconds > 1e-9 ? seconds : 1e-9);
    if (flow->write)
        f->written_bytes += got * chunk;
    return 0;
}
