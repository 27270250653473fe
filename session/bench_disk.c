/* The disk part of the benchmark: see bench.h.
 *
 * Order: fill (written once: unwritten extents would be measured otherwise), latency, reads over
 * sizes and depths, writes over fewer (they wear the drive), both at once at the best sizes, and
 * last the sustained rates, writing before reading: a drive's fast cache is then full and must be
 * emptied while it reads. The sustained rate is that of the second half of the time. */
#include "session/bench_internal.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/storage.h"

#define KIB (1u << 10)
#define MIB (1u << 20)
#define WINDOWS 20
#define NEAR_BEST 0.97 /* the smallest buffers within 3% of the best rate are the best */

static const uint32_t read_chunks[] = {256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB};
static const uint32_t read_depths[] = {1, 2, 4, 8, 16, 32};
static const uint32_t write_chunks[] = {MIB, 4 * MIB, 8 * MIB};
static const uint32_t write_depths[] = {1, 4, 16};
static const uint32_t quick_chunks[] = {256 * KIB, 4 * MIB};
static const uint32_t quick_depths[] = {1, 8};

struct disk {
    struct ps__bench *b;
    struct ps__bench_file file;
    struct ps_profile_disk *p;
    struct ps_bench_disk *d;
    uint32_t write_chunk, write_depth;
};

static int measure_cell(struct disk *k, bool write, uint32_t chunk, uint32_t depth,
                        struct ps_error *err)
{
    if ((uint64_t)chunk * depth > k->file.reader.memory_bytes ||
        k->d->cell_count == PS_BENCH_CELL_MAX)
        return 0;
    struct ps__bench_flow flow = {write, chunk, depth, k->b->quick ? 0.02 : 0.15, NULL, NULL};
    double rate;
    int ret = ps__bench_stream(&k->file, &flow, &rate, err);
    if (ret)
        return ret;
    struct ps_bench_cell cell = {chunk, depth, write, rate};
    k->d->cell[k->d->cell_count++] = cell;
    return 0;
}

/* The best rate of one direction, and the smallest buffers that come near it. */
static double choose(const struct disk *k, bool write, uint32_t *chunk, uint32_t *depth)
{
    double best = 0;
    for (int i = 0; i < k->d->cell_count; i++)
        if (k->d->cell[i].write == write && k->d->cell[i].rate > best)
            best = k->d->cell[i].rate;
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < k->d->cell_count; i++) {
        const struct ps_bench_cell *c = &k->d->cell[i];
        uint64_t bytes = (uint64_t)c->chunk_bytes * c->depth;
        if (c->write != write || c->rate < NEAR_BEST * best || bytes >= least)
            continue;
        least = bytes;
        *chunk = c->chunk_bytes;
        *depth = c->depth;
    }
    return best;
}

static int measure_grid(struct disk *k, struct ps_error *err)
{
    bool quick = k->b->quick;
    const size_t rc = quick ? 2 : sizeof read_chunks / sizeof read_chunks[0];
    const size_t rd = quick ? 2 : sizeof read_depths / sizeof read_depths[0];
    const size_t wc = quick ? 2 : sizeof write_chunks / sizeof write_chunks[0];
    const size_t wd = quick ? 2 : sizeof write_depths / sizeof write_depths[0];
    int ret = 0;
    for (size_t i = 0; i < rc; i++)
        for (size_t j = 0; j < rd && !ret; j++)
            ret = measure_cell(k, false, quick ? quick_chunks[i] : read_chunks[i],
                               quick ? quick_depths[j] : read_depths[j], err);
    for (size_t i = 0; i < wc; i++)
        for (size_t j = 0; j < wd && !ret; j++)
            ret = measure_cell(k, true, quick ? quick_chunks[i] : write_chunks[i],
                               quick ? quick_depths[j] : write_depths[j], err);
    if (ret)
        return ret;
    k->p->read = choose(k, false, &k->p->chunk_bytes, &k->p->depth);
    k->p->write = choose(k, true, &k->write_chunk, &k->write_depth);
    return 0;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median time of a single read of 4 KiB. */
static int measure_latency(struct disk *k, struct ps_error *err)
{
    enum { READS = 200 };
    struct ps__bench_stream *s = &k->file.reader;
    double time[READS];
    uint64_t x = 88172645463325252ull;
    for (int i = 0; i < READS; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        struct ps_transfer t = {.file = s->file,
                                .offset = x % (k->file.bytes / 4096) * 4096,
                                .bytes = 4096,
                                .expect = 4096,
                                .memory = s->memory};
        uint64_t ticket;
        double begin = ps__bench_now();
        int ret = s->st->ops->submit(s->st, &t, &ticket, err);
        if (ret == 0)
            ret = s->st->ops->wait(s->st, ticket, err);
        if (ret)
            return ret;
        time[i] = ps__bench_now() - begin;
    }
    qsort(time, READS, sizeof time[0], compare);
    k->p->latency_s = time[READS / 2];
    return 0;
}

/* ---- reading and writing at once ------------------------------------------------------------ */

struct writer {
    struct ps__bench_file *file;
    struct ps__bench_flow flow;
    double rate;
    int ret;
    struct ps_error err;
};

static void *writer_thread(void *arg)
{
    struct writer *w = arg;
    w->ret = ps__bench_stream(w->file, &w->flow, &w->rate, &w->err);
    return NULL;
}

static int measure_mixed(struct disk *k, struct ps_error *err)
{
    double seconds = k->b->quick ? 0.05 : 1;
    struct writer w = {.file = &k->file,
                       .flow = {true, k->write_chunk, k->write_depth, seconds, NULL, NULL}};
    pthread_t thread;
    int ret = pthread_create(&thread, NULL, writer_thread, &w);
    if (ret)
        return ps_error_set(err, -ret, "cannot start a thread: %s", ps_status_text(-ret));
    struct ps__bench_flow flow = {false, k->p->chunk_bytes, k->p->depth, seconds, NULL, NULL};
    ret = ps__bench_stream(&k->file, &flow, &k->p->mixed_read, err);
    PS_IGNORE(pthread_join(thread, NULL), "it was started");
    if (ret == 0 && w.ret) {
        if (err)
            *err = w.err;
        ret = w.ret;
    }
    k->p->mixed_write = w.rate;
    return ret;
}

/* ---- sustained ------------------------------------------------------------------------------ */

static int sustain(struct disk *k, bool write, double seconds, double *first, double *rate,
                   struct ps_error *err)
{
    struct ps__bench_flow flow = {write,
                                  write ? k->write_chunk : k->p->chunk_bytes,
                                  write ? k->write_depth : k->p->depth,
                                  seconds / WINDOWS,
                                  NULL,
                                  NULL};
    double late = 0;
    for (int i = 0; i < WINDOWS; i++) {
        double r;
        int ret = ps__bench_stream(&k->file, &flow, &r, err);
        if (ret)
            return ret;
        if (i == 0)
            *first = r;
        if (i >= WINDOWS / 2)
            late += 1 / r; /* equal times would add rates; equal bytes add times: the careful one */
    }
    *rate = (WINDOWS - WINDOWS / 2) / late;
    return 0;
}

static double sustained_seconds(const struct ps__bench *b)
{
    if (b->opt->disk_seconds >= 0)
        return b->opt->disk_seconds;
    return b->quick ? 0.2 : b->opt->parts == PS_BENCH_DISK ? 120 : 5;
}

static int measure_sustained(struct disk *k, struct ps_error *err)
{
    double seconds = sustained_seconds(k->b);
    if (seconds <= 0)
        return 0;
    ps_log(k->b->opt->log, PS_LOG_INFO,
           "disk: sustained, %.3g s of writing (about %.0f GB) and %.3g s of reading", seconds,
           seconds * k->p->write * 1e-9, seconds);
    int ret = sustain(k, true, seconds, &k->d->first_write, &k->p->sustained_write, err);
    if (ret == 0)
        ret = sustain(k, false, seconds, &k->d->first_read, &k->p->sustained_read, err);
    if (ret == 0)
        k->d->sustained_s = seconds;
    return ret;
}

static int measure_disk(struct ps__bench *b, const char *dir, int idx, struct ps_error *err)
{
    struct disk k = {.b = b, .p = &b->out->profile.disk[idx], .d = &b->out->disk[idx]};
    memset(k.p, 0, sizeof *k.p);
    memset(k.d, 0, sizeof *k.d);
    char real[PATH_MAX];
    ps_log(b->opt->log, PS_LOG_INFO, "disk: filling the test file in %s",
           realpath(dir, real) ? real : dir);
    int ret = ps__bench_file_open(&k.file, b, dir, &k.d->fill_rate, err);
    if (ret)
        return ret;
    PS_IGNORE(snprintf(k.p->path, sizeof k.p->path, "%.255s", k.file.path) < 0, "cut if need be");
    memcpy(k.d->backend, k.file.backend, sizeof k.d->backend);
    memcpy(k.d->why, k.file.why, sizeof k.d->why);
    memcpy(k.d->fs, k.file.fs, sizeof k.d->fs);
    k.d->direct = k.file.direct;
    k.d->file_bytes = k.file.bytes;
    ps_log(b->opt->log, PS_LOG_INFO, "disk: sizes and depths, %llu MiB, %s%s",
           (unsigned long long)(k.file.bytes >> 20), k.file.backend,
           k.file.direct ? ", direct" : ", through the page cache");
    ret = measure_latency(&k, err);
    if (ret == 0)
        ret = measure_grid(&k, err);
    if (ret == 0)
        ret = measure_mixed(&k, err);
    if (ret == 0)
        ret = measure_sustained(&k, err);
    k.d->written_bytes = k.file.written_bytes;
    if (ret == 0 && idx == 0 && (b->opt->parts & PS_BENCH_INTERFERENCE)) {
        b->file = k.file;
        b->file_open = true;
    } else {
        ps__bench_file_close(&k.file);
    }
    return ret;
}

int ps__bench_disks(struct ps__bench *b, struct ps_error *err)
{
    const char *here = ".";
    size_t count = b->opt->path_count > 0 ? b->opt->path_count : 1;
    const char *const *path = b->opt->path_count > 0 ? b->opt->paths : &here;
    for (size_t i = 0; i < count; i++) {
        int ret = measure_disk(b, path[i], (int)i, err);
        if (ret)
            return ret;
    }
    b->out->profile.disk_count = (int)count;
    return 0;
}
