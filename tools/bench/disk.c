/* Rates of the storage back ends, by chunk and depth.
 *
 *   disk FILE MIB [--backend NAME] [--op read|write] [--chunk KIB] [--depth N] [--passes N]
 *                 [--pages huge|small] [--unregistered] [--raw] [--keep]
 *
 * FILE is created with MIB MiB, allocated and written once (not with --keep: then an earlier call
 * did), and overwritten by the write passes. KIB is a multiple of 512. Without
 * --backend, --op, --chunk and --depth all of io_uring, threads, both ops, 1 and 4 MiB, depths 1, 4
 * and 8 are measured. Prints median (least, greatest) MB/s of the passes; with --raw the rates
 * alone, one a line.
 *
 * Pattern: the file once from the beginning, one transfer a chunk, `depth` buffers, the oldest
 * waited for and its buffer used for the next. More buffers cost rate where the disk is another's
 * page cache: 8 MiB instead of 4 MiB at depth 1 read 5% slower. Each chunk carries its number;
 * reads check it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "offload/storage_backends.h"
#include "runtime/base/huge.h"

enum { PASSES_MAX = 64, DEPTH_MAX = 1024 };

struct plan {
    const char *path, *backend;
    uint64_t file_bytes;
    uint32_t chunk_bytes, depth;
    int passes;
    bool write, small_pages, unregistered;
    bool raw;   /* rates alone */
    bool quiet; /* nothing at all */
    bool keep;  /* the file is as an earlier call left it */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int less(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void die(const struct ps_error *err)
{
    fprintf(stderr, "disk: %s %s\n", err->file, err->message);
    exit(1);
}

static void say(void *arg, enum ps_log_level level, const char *message)
{
    (void)arg;
    (void)level;
    fprintf(stderr, "disk: %s\n", message);
}

/* Both write passes and the file's making leave, in each 512 KiB, where it lies. */
enum { MARK_BYTES = 512 << 10 };

static void mark(char *m, uint64_t offset, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += MARK_BYTES) {
        uint64_t v = offset + at;
        memcpy(m + at, &v, sizeof v);
    }
}

static bool marked(const char *m, uint64_t offset, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += MARK_BYTES) {
        uint64_t v;
        memcpy(&v, m + at, sizeof v);
        if (v != offset + at)
            return false;
    }
    return true;
}

static void make_file(const char *path, uint64_t bytes)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || posix_fallocate(fd, 0, (off_t)bytes) != 0 || ftruncate(fd, (off_t)bytes) != 0) {
        fprintf(stderr, "disk: cannot make %s: %s\n", path, strerror(errno));
        exit(1);
    }
    close(fd);
}

static double pass(const struct plan *p, struct ps_storage *st, int file, char *arena,
                   uint32_t slots, uint64_t *ticket)
{
    struct ps_error err = {0};
    uint64_t chunks = p->file_bytes / p->chunk_bytes;
    double begin = now();
    for (uint64_t i = 0; i < chunks + slots; i++) {
        uint32_t slot = (uint32_t)(i % slots);
        char *m = arena + (uint64_t)slot * p->chunk_bytes;
        if (i >= slots && i - slots < chunks) {
            if (st->ops->wait(st, ticket[slot], &err) < 0)
                die(&err);
            uint64_t was = (i - slots) * p->chunk_bytes;
            if (!p->write && !marked(m, was, p->chunk_bytes)) {
                fprintf(stderr, "disk: wrong data at %llu\n", (unsigned long long)was);
                exit(1);
            }
        }
        if (i >= chunks)
            continue;
        struct ps_transfer x = {.file = (uint32_t)file,
                                .write = p->write,
                                .offset = i * p->chunk_bytes,
                                .bytes = p->chunk_bytes,
                                .expect = p->chunk_bytes,
                                .memory = m};
        if (p->write)
            mark(m, x.offset, x.bytes);
        if (st->ops->submit(st, &x, &ticket[slot], &err) < 0)
            die(&err);
    }
    return (double)(chunks * p->chunk_bytes) / (now() - begin) / 1e6;
}

static void measure(const struct plan *p, char *arena, uint64_t arena_bytes)
{
    struct ps_log log = {say, NULL};
    struct ps_storage_options opt = {.depth = p->depth,
                                     .chunk_bytes = p->chunk_bytes,
                                     .arena = p->unregistered ? NULL : arena,
                                     .arena_bytes = arena_bytes,
                                     .log = &log};
    struct ps_storage *st = NULL;
    struct ps_error err = {0};
    uint64_t ticket[DEPTH_MAX];
    uint32_t slots = p->depth;
    if (ps_storage_open_auto(&st, p->backend, &opt, NULL, &err) < 0)
        die(&err);
    int file = st->ops->add_file(st, p->path, p->write, NULL, &err);
    if (file < 0)
        die(&err);
    double rate[PASSES_MAX];
    for (int i = 0; i < p->passes; i++) {
        rate[i] = pass(p, st, file, arena, slots, ticket);
        if (p->raw && !p->quiet)
            printf("%.0f\n", rate[i]);
    }
    qsort(rate, (size_t)p->passes, sizeof *rate, less);
    if (!p->raw && !p->quiet)
        printf("%-9s %-5s chunk %5u KiB depth %3u: %6.0f MB/s (%.0f .. %.0f)\n", p->backend,
               p->write ? "write" : "read", p->chunk_bytes >> 10, p->depth, rate[p->passes / 2],
               rate[0], rate[p->passes - 1]);
    fflush(stdout);
    st->ops->close(st);
}

static const char *value(int argc, char **argv, int *i)
{
    if (++*i >= argc) {
        fprintf(stderr, "disk: %s needs a value\n", argv[*i - 1]);
        exit(2);
    }
    return argv[*i];
}

static void usage(void)
{
    fprintf(stderr,
            "usage: disk FILE MIB [--backend NAME] [--op read|write] [--chunk KIB] "
            "[--depth N] [--passes N] [--pages huge|small] [--unregistered] [--raw] [--keep]\n");
    exit(2);
}

static void *reserve(const struct plan *p, size_t bytes)
{
    void *m = NULL;
    const char *kind = "4 KiB pages, as asked for";
    struct ps_error err = {0};
    if (p->small_pages) {
        if (posix_memalign(&m, 4096, bytes) != 0)
            usage();
        memset(m, 1, bytes);
    } else if (ps_huge_reserve(&m, bytes, &kind, &err) < 0) {
        die(&err);
    }
    if (!p->raw)
        printf("# %zu MiB of buffers on %s, file of %llu MiB\n", bytes >> 20, kind,
               (unsigned long long)(p->file_bytes >> 20));
    return m;
}

/* All passes that were asked for; what was not is the grid. */
static void measure_grid(const struct plan *p, const char *op, char *arena, uint64_t arena_bytes)
{
    static const uint32_t chunk[] = {1 << 20, 4 << 20}, depth[] = {1, 4, 8};
    static const char *const backend[] = {"io_uring", "threads"};
    int backends = p->backend ? 1 : 2, ops = op ? 1 : 2;
    int chunks = p->chunk_bytes ? 1 : 2, depths = p->depth ? 1 : 3;
    for (int i = 0; i < backends * ops * chunks * depths; i++) {
        struct plan q = *p;
        int d = i % depths, c = i / depths % chunks, w = i / depths / chunks % ops;
        q.backend = p->backend ? p->backend : backend[i / depths / chunks / ops];
        q.write = op ? strcmp(op, "write") == 0 : w == 1;
        q.chunk_bytes = p->chunk_bytes ? p->chunk_bytes : chunk[c];
        q.depth = p->depth ? p->depth : depth[d];
        measure(&q, arena, arena_bytes);
    }
}

/* The file with its marks everywhere and its extents written. */
static void fill(const struct plan *p, char *arena, uint64_t arena_bytes)
{
    struct plan q = *p;
    make_file(q.path, q.file_bytes);
    q.backend = "threads";
    q.write = q.quiet = true;
    q.chunk_bytes = q.chunk_bytes ? q.chunk_bytes : 4 << 20;
    q.depth = 1;
    q.passes = 1;
    measure(&q, arena, arena_bytes);
}

static const char *parse(struct plan *p, int argc, char **argv)
{
    const char *op = NULL;
    if (argc < 3)
        usage();
    p->path = argv[1];
    p->file_bytes = strtoull(argv[2], NULL, 10) << 20;
    for (int i = 3; i < argc; i++) {
        if (strcmp(argv[i], "--backend") == 0)
            p->backend = value(argc, argv, &i);
        else if (strcmp(argv[i], "--op") == 0)
            op = value(argc, argv, &i);
        else if (strcmp(argv[i], "--chunk") == 0)
            p->chunk_bytes = (uint32_t)strtoul(value(argc, argv, &i), NULL, 10) << 10;
        else if (strcmp(argv[i], "--depth") == 0)
            p->depth = (uint32_t)strtoul(value(argc, argv, &i), NULL, 10);
        else if (strcmp(argv[i], "--passes") == 0)
            p->passes = atoi(value(argc, argv, &i));
        else if (strcmp(argv[i], "--pages") == 0)
            p->small_pages = strcmp(value(argc, argv, &i), "small") == 0;
        else if (strcmp(argv[i], "--unregistered") == 0)
            p->unregistered = true;
        else if (strcmp(argv[i], "--raw") == 0)
            p->raw = true;
        else if (strcmp(argv[i], "--keep") == 0)
            p->keep = true;
        else
            usage();
    }
    uint32_t chunk = p->chunk_bytes ? p->chunk_bytes : 4 << 20;
    if (p->file_bytes == 0 || p->depth > DEPTH_MAX || p->passes < 1 || p->passes > PASSES_MAX ||
        chunk % MARK_BYTES != 0 || p->file_bytes % chunk != 0)
        usage();
    return op;
}

int main(int argc, char **argv)
{
    struct plan p = {.passes = 3};
    const char *op = parse(&p, argc, argv);
    uint32_t chunk_max = p.chunk_bytes ? p.chunk_bytes : 4 << 20, depth_max = p.depth ? p.depth : 8;
    uint64_t arena_bytes = (uint64_t)chunk_max * depth_max;
    char *arena = reserve(&p, arena_bytes);
    if (!p.keep)
        fill(&p, arena, arena_bytes);
    measure_grid(&p, op, arena, arena_bytes);
    if (p.small_pages)
        free(arena);
    else
        ps_huge_release(arena, arena_bytes);
    return 0;
}
