/* The RAM engine: files are loaded when they are added, transfers are copies. A writable file is
 * mapped instead, so that what one storage writes another one that has added the same file reads;
 * a write past its size fails with -ENOSPC as on a full disk. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "offload/storage_internal.h"

struct ram_file {
    char *data; /* NULL for an empty file */
    uint64_t bytes;
};

struct ram_engine {
    struct ps__engine e;
    struct ram_file *file; /* file_max */
    uint32_t file_count;
    struct ps__io_done *done; /* depth */
    uint32_t count;
};

static struct ram_engine *ram_of(struct ps__engine *e)
{
    return (struct ram_engine *)(void *)e;
}

static int load(int fd, char *to, uint64_t bytes)
{
    uint64_t at = 0;
    while (at < bytes) {
        ssize_t n = pread(fd, to + at, (size_t)(bytes - at), (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return PS_EFORMAT;
        at += (uint64_t)n;
    }
    return 0;
}

static int ram_add_file(struct ps__engine *e, uint32_t idx, const struct ps__file *f,
                        struct ps_error *err)
{
    struct ram_engine *m = ram_of(e);
    struct ram_file *r = &m->file[idx];
    r->data = NULL;
    r->bytes = f->size;
    if (f->size > 0) {
        int kind = f->writable ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
        void *p =
            mmap(NULL, (size_t)f->size, PROT_READ | PROT_WRITE, kind, f->writable ? f->fd : -1, 0);
        if (p == MAP_FAILED)
            return ps_error_full(err, -errno, f->path, NULL, NULL,
                                 "no memory for %llu bytes of the file: %s",
                                 (unsigned long long)f->size, ps_status_text(-errno));
        r->data = p;
        int rc = f->writable ? 0 : load(f->fd, r->data, f->size);
        if (rc < 0) {
            munmap(r->data, (size_t)r->bytes);
            return ps_error_full(err, rc, f->path, NULL, NULL, "loading the file failed: %s",
                                 ps_status_text(rc));
        }
    }
    m->file_count = idx + 1;
    return 0;
}

static bool ram_issue(struct ps__engine *e, const struct ps__io *io)
{
    struct ram_engine *m = ram_of(e);
    struct ram_file *r = &m->file[io->file];
    uint64_t left = io->offset < r->bytes ? r->bytes - io->offset : 0;
    uint32_t n = left < io->bytes ? (uint32_t)left : io->bytes;
    int32_t res = (int32_t)n;
    if (io->kind == PS__IO_FLUSH)
        res = 0;
    else if (io->kind == PS__IO_WRITE && n == 0)
        res = -ENOSPC;
    else if (io->kind == PS__IO_WRITE)
        memcpy(r->data + io->offset, io->memory, n);
    else if (n > 0)
        memcpy(io->memory, r->data + io->offset, n);
    m->done[m->count++] = (struct ps__io_done){io->slot, res};
    return true;
}

static int ram_kick(struct ps__engine *e)
{
    (void)e;
    return 0;
}

static int ram_reap(struct ps__engine *e, struct ps__io_done *out, uint32_t max, double timeout_s)
{
    struct ram_engine *m = ram_of(e);
    (void)timeout_s;
    uint32_t taken = 0;
    while (m->count > 0 && taken < max)
        out[taken++] = m->done[--m->count];
    return (int)taken;
}

static void ram_destroy(struct ps__engine *e)
{
    struct ram_engine *m = ram_of(e);
    for (uint32_t i = 0; i < m->file_count; i++) {
        if (m->file[i].data)
            munmap(m->file[i].data, (size_t)m->file[i].bytes);
    }
    free(m->file);
    free(m->done);
    free(m);
}

static const struct ps__engine_ops ram_ops = {
    .name = "ram",
    .opens_files = true,
    .add_file = ram_add_file,
    .issue = ram_issue,
    .kick = ram_kick,
    .reap = ram_reap,
    .destroy = ram_destroy,
};

int ps__engine_ram(struct ps__engine **out, const struct ps_storage_options *opt,
                   struct ps_error *err)
{
    struct ram_engine *m = calloc(1, sizeof *m);
    if (!m)
        return ps_error_set(err, -ENOMEM, "storage: out of memory");
    m->file = calloc(opt->file_max, sizeof *m->file);
    m->done = calloc(opt->depth, sizeof *m->done);
    if (!m->file || !m->done) {
        free(m->file);
        free(m->done);
        free(m);
        return ps_error_set(err, -ENOMEM, "storage: out of memory");
    }
    m->e.ops = &ram_ops;
    *out = &m->e;
    return 0;
}
