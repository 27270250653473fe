/* What the storage tests share: files of known bytes, a log that is remembered, aligned memory. */
#ifndef PS_TESTS_OFFLOAD_STORAGE_CHECK_H
#define PS_TESTS_OFFLOAD_STORAGE_CHECK_H

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "offload/storage_backends.h"
#include "runtime/base/rng.h"

/* The log's text, one line each, newline after each. */
struct heard {
    char text[16384];
    size_t used;
    struct ps_log log;
};

static inline void heard_fn(void *arg, enum ps_log_level level, const char *message)
{
    struct heard *h = arg;
    (void)level;
    size_t n = strlen(message);
    if (h->used + n + 2 > sizeof h->text)
        return;
    memcpy(h->text + h->used, message, n);
    h->used += n;
    h->text[h->used++] = '\n';
    h->text[h->used] = '\0';
}

static inline void heard_init(struct heard *h)
{
    memset(h, 0, sizeof *h);
    h->log = (struct ps_log){heard_fn, h};
}

static inline int heard_count(const struct heard *h, const char *what)
{
    int n = 0;
    for (const char *p = h->text; (p = strstr(p, what)) != NULL; p++)
        n++;
    return n;
}

/* The byte that lies at `offset` of the file with this seed. */
static inline uint8_t file_byte(uint64_t offset, uint64_t seed)
{
    uint64_t x = (offset >> 3) * 0x9e3779b97f4a7c15ULL + seed;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 32;
    return (uint8_t)(x >> (8 * (offset & 7)));
}

static inline void make_file(const char *path, uint64_t bytes, uint64_t seed)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    for (uint64_t i = 0; i < bytes; i++)
        assert_int_not_equal(putc(file_byte(i, seed), f), EOF);
    assert_int_equal(fclose(f), 0);
}

static inline bool holds_file(const void *memory, uint64_t offset, uint64_t bytes, uint64_t seed)
{
    const uint8_t *m = memory;
    for (uint64_t i = 0; i < bytes; i++) {
        if (m[i] != file_byte(offset + i, seed))
            return false;
    }
    return true;
}

static inline bool holds_byte(const void *memory, uint64_t bytes, uint8_t byte)
{
    const uint8_t *m = memory;
    for (uint64_t i = 0; i < bytes; i++) {
        if (m[i] != byte)
            return false;
    }
    return true;
}

static inline void *aligned(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 4096, bytes ? bytes : 4096), 0);
    memset(p, 0xa5, bytes);
    return p;
}

/* read_bytes of /proc/self/io: what this process had the disks read; 0 where the kernel does not
 * say. */
static inline unsigned long long kernel_read_bytes(void)
{
    FILE *f = fopen("/proc/self/io", "r");
    char line[128];
    unsigned long long n = 0;
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "read_bytes: %llu", &n) == 1)
            break;
    }
    if (f)
        fclose(f);
    return n;
}

#define NAMES 3
static const char *const names[NAMES] = {"io_uring", "threads", "ram"};

static inline struct ps_storage *open_named(const char *name, const struct ps_storage_options *opt)
{
    struct ps_storage *st = NULL;
    struct ps_error err = {0};
    int rc = ps_storage_open_auto(&st, name, opt, NULL, &err);
    if (rc != 0)
        print_error("%s: %s\n", name, err.message);
    assert_int_equal(rc, 0);
    return st;
}

/* Read [offset, offset + bytes), bytes a multiple of 4096, `expect` of them present; the result of
 * wait. */
static inline int read_once(struct ps_storage *st, int file, uint64_t offset, uint64_t bytes,
                            uint64_t expect, void *memory, struct ps_error *err)
{
    struct ps_transfer x = {.file = (uint32_t)file,
                            .offset = offset,
                            .bytes = bytes,
                            .expect = expect,
                            .memory = memory};
    uint64_t ticket = 0;
    int rc = st->ops->submit(st, &x, &ticket, err);
    return rc < 0 ? rc : st->ops->wait(st, ticket, err);
}

static inline int write_once(struct ps_storage *st, int file, uint64_t offset, uint64_t bytes,
                             void *memory, struct ps_error *err)
{
    struct ps_transfer x = {.file = (uint32_t)file,
                            .write = true,
                            .offset = offset,
                            .bytes = bytes,
                            .expect = bytes,
                            .memory = memory};
    uint64_t ticket = 0;
    int rc = st->ops->submit(st, &x, &ticket, err);
    return rc < 0 ? rc : st->ops->wait(st, ticket, err);
}

#endif
