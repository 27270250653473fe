/* A new spill store: its space allocated and written once, its files known by their headers.
 *
 * Order, for a kill at any point: directory, lock, then per file a header of ours (synced) before
 * anything that costs space, then zeros. Without a superblock there is no store, so that the next
 * creation removes what has such a header, or is empty, and nothing else. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "offload/spill_store_internal.h"
#include "runtime/base/huge.h"

enum { ZERO_BYTES = 4 << 20, PROGRESS_S = 5 };

struct creation {
    struct ps_spill_store *s;
    const struct ps_spill_store_options *opt;
    char *zero; /* ZERO_BYTES on huge pages */
    uint64_t total, done;
    time_t said;
};

static int check_options(const struct ps_spill_store_options *opt, struct ps_error *err)
{
    uint8_t run[16];
    if (opt->path_count == 0 || opt->path_count > PS__SPILL_FILES_MAX)
        return ps_error_set(err, PS_EUSAGE, "a spill store needs 1 to %d paths",
                            PS__SPILL_FILES_MAX);
    if (opt->unit_bytes % PS__SPILL_BLOCK != 0 || opt->unit_bytes > PS__SPILL_UNIT_MAX)
        return ps_error_set(err, PS_EUSAGE, "a stripe unit of %llu bytes",
                            (unsigned long long)opt->unit_bytes);
    if (!ps__spill_uuid_parse(run, opt->run_uuid))
        return ps_error_set(err, PS_EUSAGE,
                            "the run's UUID is not of the form "
                            "01234567-89ab-cdef-0123-456789abcdef");
    return 0;
}

/* Two paths that are one directory. */
static int check_distinct(const struct ps_spill_store *s, struct ps_error *err)
{
    for (uint32_t i = 1; i < s->dir_count; i++) {
        for (uint32_t j = 0; j < i; j++) {
            struct stat a, b;
            if (fstat(s->dir[i].parent, &a) == 0 && fstat(s->dir[j].parent, &b) == 0 &&
                a.st_ino == b.st_ino && a.st_dev == b.st_dev)
                return ps_error_full(err, PS_EUSAGE, s->dir[i].root, NULL, "name each disk once",
                                     "two paths of the spill store are one directory");
        }
    }
    return 0;
}

static void warn_of_file_system(const struct ps_spill_store *s, const struct ps__spill_dir *d)
{
    struct statfs f;
    if (fstatfs(d->fd, &f) != 0)
        return;
    unsigned long type = (unsigned long)f.f_type & 0xffffffffUL;
    if (type == 0x01021994UL || type == 0x858458f6UL)
        ps_log(&s->log, PS_LOG_WARN,
               "%s: the spill store lies in memory (tmpfs): it ends with this boot", d->root);
    else if (type == 0x6969UL || type == 0xff534d42UL || type == 0xfe534d42UL)
        ps_log(&s->log, PS_LOG_WARN,
               "%s: the spill store lies on a network file system: slow, and only as safe as that",
               d->root);
}

/* --- what an earlier creation left behind --- */

enum leftover { LEFT_NONE, LEFT_OURS, LEFT_FOREIGN };

static int classify(const struct ps_spill_store *s, const struct ps__spill_dir *d, uint32_t index,
                    enum leftover *out, struct ps_error *err)
{
    char name[16];
    struct stat sb;
    struct ps__spill_header h;
    ps__spill_file_name(name, index);
    *out = LEFT_NONE;
    int rc = ps__spill_read_block(d, name, 0, s->super, &sb, err);
    if (rc < 0)
        return rc == -ENOENT ? 0 : rc;
    enum ps__super_state state = ps__spill_header_decode(&h, s->super, s->shape.run);
    bool empty = state == PS__SUPER_BLANK && (uint64_t)sb.st_size <= PS__SPILL_BLOCK;
    *out = empty || (state == PS__SUPER_OK && h.index == index) ? LEFT_OURS : LEFT_FOREIGN;
    if (*out != LEFT_OURS || index != 0)
        return 0;
    int written = 0;
    for (uint32_t i = 0; i < 2; i++) {
        struct ps__spill_super b;
        rc = ps__spill_read_block(d, name, PS__SPILL_SUPER_AT * (i + 1), s->super, &sb, err);
        if (rc < 0)
            return rc;
        state = ps__spill_super_decode(&b, s->super, i, s->shape.run);
        /* One that is torn, and no other: the very first commit was interrupted. */
        written += state == PS__SUPER_BLANK ? 0 : state == PS__SUPER_BAD ? 1 : 2;
    }
    if (written < 2)
        return 0;
    return ps_error_full(err, -EEXIST, d->path, NULL,
                         "resume that run, or remove the directory to give its state up",
                         "a spill store with committed state exists");
}

/* Nothing is removed before every directory has been looked at. */
static int clear_leftovers(struct ps_spill_store *s, bool remove, struct ps_error *err)
{
    for (uint32_t i = 0; i < s->dir_count; i++) {
        for (uint32_t f = 0; !s->dir[i].made && f < PS__SPILL_FILES_MAX; f++) {
            enum leftover left = LEFT_NONE;
            char name[16];
            ps__spill_file_name(name, f);
            int rc = classify(s, &s->dir[i], f, &left, err);
            if (rc < 0)
                return rc;
            if (left == LEFT_FOREIGN && f == i)
                return ps_error_full(err, -EEXIST, s->dir[i].path, name, "move it away",
                                     "%s is in the way, and this run did not make it", name);
            if (!remove || left != LEFT_OURS)
                continue;
            if (unlinkat(s->dir[i].fd, name, 0) != 0)
                return ps__spill_errno(err, s->dir[i].path, "cannot remove an unfinished store",
                                       NULL);
            ps_log(&s->log, PS_LOG_INFO, "%s/%s: removed, of an interrupted creation",
                   s->dir[i].path, name);
        }
        s->dir[i].made |= remove; /* empty again, and ours */
    }
    return 0;
}

/* --- space and files --- */

static int check_space(const struct ps_spill_store *s, struct ps_error *err)
{
    for (uint32_t i = 0; i < s->dir_count; i++) {
        struct stat si;
        struct statvfs v;
        if (fstat(s->dir[i].fd, &si) != 0 || fstatvfs(s->dir[i].fd, &v) != 0)
            return ps__spill_errno(err, s->dir[i].root, "cannot ask for the free space", NULL);
        uint64_t need = 0, have = (uint64_t)v.f_bavail * v.f_frsize;
        for (uint32_t j = 0; j < s->dir_count; j++) {
            struct stat sj;
            if (fstat(s->dir[j].fd, &sj) == 0 && sj.st_dev == si.st_dev)
                need += s->file[j].bytes;
        }
        if (need > have && v.f_blocks > 0)
            return ps_error_full(err, PS_ENOFIT, s->dir[i].root, NULL,
                                 "free space there, give another or one more --nvme-path, or use "
                                 "--spill-mode inplace",
                                 "the spill store needs %llu bytes on this disk, %llu are free",
                                 (unsigned long long)need, (unsigned long long)have);
    }
    return 0;
}

static int write_failed(const struct ps__spill_file *f, int fd, int code, struct ps_error *err)
{
    struct statvfs v;
    unsigned long long have = 0;
    const char *advice = NULL;
    if (fstatvfs(fd, &v) == 0)
        have = (unsigned long long)v.f_bavail * v.f_frsize;
    if (code == -ENOSPC || code == -EDQUOT)
        advice = "free space there, or give another or one more --nvme-path";
    else if (code == -EFBIG)
        advice = "raise the limit of file sizes (RLIMIT_FSIZE, ulimit -f)";
    else if (code == -EROFS)
        advice = "the file system is read-only: mount it writable, or use another path";
    else
        advice = "check the disk (dmesg), or use another path";
    return ps_error_full(err, code, f->path, NULL, advice,
                         "a spill file of %llu bytes cannot be made: %s (%llu bytes are free now)",
                         (unsigned long long)f->bytes, ps_status_text(code), have);
}

static void say_progress(struct creation *c)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec - c->said < PROGRESS_S)
        return;
    c->said = now.tv_sec;
    ps_log(&c->s->log, PS_LOG_INFO, "spill store: %.0f%% of %.1f GiB allocated and written",
           100.0 * (double)c->done / (double)c->total, (double)c->total / (double)(1 << 30));
}

/* Write [at, at + bytes) from `from` (repeat: every piece anew), directly where that works. */
static int write_range(struct creation *c, int fd, const char *from, bool repeat, uint64_t at,
                       uint64_t bytes)
{
    uint64_t end = at + bytes;
    int stalls = 0;
    while (at < end) {
        size_t len = end - at < ZERO_BYTES ? (size_t)(end - at) : (size_t)ZERO_BYTES;
        ssize_t n = pwrite(fd, from, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EINVAL) { /* no direct writes here */
            int flags = fcntl(fd, F_GETFL);
            if (flags >= 0 && (flags & O_DIRECT) && fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0)
                continue;
            return -EINVAL;
        }
        if (n < 0)
            return -errno;
        uint64_t whole = (uint64_t)n / PS__SPILL_BLOCK * PS__SPILL_BLOCK;
        if (whole == 0 && ++stalls > 3)
            return -EIO;
        at += whole;
        from += repeat ? 0 : whole;
        c->done += whole;
        say_progress(c);
        if (c->opt->stop && c->opt->stop(c->opt->stop_arg))
            return PS_ESTOPPED;
    }
    return 0;
}

static int fill_file(struct creation *c, const struct ps__spill_file *f, int fd, uint32_t index)
{
    int rc = fchmod(fd, 0600) == 0 ? 0 : -errno;
    ps__spill_header_encode(c->zero, c->s->shape.run, f, index, c->s->shape.stripe.file_count);
    if (rc == 0)
        rc = write_range(c, fd, c->zero, false, 0, PS__SPILL_BLOCK);
    memset(c->zero, 0, PS__SPILL_BLOCK);
    if (rc == 0 && (fsync(fd) != 0 || fsync(c->s->dir[index].fd) != 0))
        rc = -errno;
    if (rc < 0)
        return rc;
    do
        rc = fallocate(fd, 0, 0, (off_t)f->bytes) == 0 ? 0 : -errno;
    while (rc == -EINTR);
    if (rc == 0 || rc == -EOPNOTSUPP)
        rc = write_range(c, fd, c->zero, true, PS__SPILL_BLOCK, f->bytes - PS__SPILL_BLOCK);
    if (rc == 0 && fsync(fd) != 0)
        rc = -errno;
    return rc;
}

static int make_file(struct creation *c, uint32_t index, struct ps_error *err)
{
    struct ps__spill_file *f = &c->s->file[index];
    const struct ps__spill_dir *d = &c->s->dir[index];
    int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    char name[16];
    struct stat sb;
    ps__spill_file_name(name, index);
    int fd = openat(d->fd, name, flags | O_DIRECT, 0600);
    if (fd < 0 && errno == EINVAL) { /* some file systems create the file and then refuse */
        PS_IGNORE(unlinkat(d->fd, name, 0) != 0, "it may not be there");
        fd = openat(d->fd, name, flags, 0600);
    }
    if (fd < 0)
        return ps__spill_errno(err, f->path, "cannot create a file of the spill store", NULL);
    f->dir = index;
    int rc = fstat(fd, &sb) == 0 ? 0 : -errno;
    f->inode = rc == 0 ? sb.st_ino : 0;
    if (rc == 0)
        rc = fill_file(c, f, fd, index);
    if (rc == 0 && fsync(d->fd) != 0)
        rc = -errno;
    if (rc == PS_ESTOPPED)
        rc = ps_error_set(err, rc, "stopped while the spill store was being made");
    else if (rc < 0)
        rc = write_failed(f, fd, rc, err);
    close(fd);
    return rc;
}

static int write_layout(struct ps_spill_store *s, struct ps_error *err)
{
    const struct ps__spill_shape *h = &s->shape;
    ps__spill_layout_encode(s->table, h, s->file);
    s->layout_sum = ps__spill_layout_sum(h, s->table, h->layout_bytes);
    int rc = ps__spill_move(s, true, h->layout_at, h->layout_bytes, s->table, err);
    return rc < 0 ? rc : s->st->ops->flush(s->st, 0, err);
}

/* --- the whole --- */

static int init_files(struct ps_spill_store *s, uint64_t *total, struct ps_error *err)
{
    *total = 0;
    for (uint32_t i = 0; i < s->dir_count; i++) {
        struct ps__spill_file *f = &s->file[i];
        char name[16];
        if (getrandom(f->uuid, sizeof f->uuid, 0) != (ssize_t)sizeof f->uuid)
            return ps_error_set(err, -EIO, "no random numbers from the kernel");
        ps__spill_file_name(name, i);
        PS_IGNORE(snprintf(f->path, sizeof f->path, "%s/%s", s->dir[i].path, name) < 0, "fits");
        char *real = realpath(s->dir[i].root, NULL);
        if (real && strlen(real) < sizeof f->recorded)
            memcpy(f->recorded, real, strlen(real) + 1);
        free(real);
        f->bytes = ps__spill_file_bytes(&s->shape, i);
        *total += f->bytes;
    }
    return 0;
}

static int make_dirs(struct ps_spill_store *s, const char *run_uuid, struct ps_error *err)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < s->dir_count; i++)
        rc = ps__spill_dir_parent(&s->dir[i], err);
    if (rc == 0)
        rc = check_distinct(s, err);
    for (uint32_t i = 0; rc == 0 && i < s->dir_count; i++) {
        rc = ps__spill_dir_open(&s->dir[i], run_uuid, true, err);
        if (rc == 0)
            rc = ps__spill_dir_lock(&s->dir[i], true, err);
        if (rc == 0)
            warn_of_file_system(s, &s->dir[i]);
    }
    return rc;
}

static int make_files(struct creation *c, struct ps_error *err)
{
    struct ps_spill_store *s = c->s;
    void *zero = NULL;
    int rc = init_files(s, &c->total, err);
    if (rc == 0)
        rc = check_space(s, err);
    if (rc == 0)
        rc = ps_huge_reserve(&zero, ZERO_BYTES, NULL, err);
    if (rc < 0)
        return rc;
    c->zero = zero;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    c->said = now.tv_sec;
    for (uint32_t i = 0; rc == 0 && i < s->dir_count; i++)
        rc = make_file(c, i, err);
    ps_huge_release(zero, ZERO_BYTES);
    return rc;
}

static int set_up(struct ps_spill_store *s, const struct ps_spill_store_options *opt,
                  struct ps_error *err)
{
    struct creation c = {.s = s, .opt = opt};
    struct ps__spill_shape *h = &s->shape;
    h->mode = opt->mode;
    h->run_state_max = opt->run_state_max ? opt->run_state_max : PS__SPILL_RUN_STATE;
    h->stripe.file_count = opt->path_count;
    h->stripe.unit_bytes = opt->unit_bytes ? opt->unit_bytes : PS__SPILL_UNIT;
    if (!ps__spill_uuid_parse(h->run, opt->run_uuid))
        assert(0 && "check_options has seen it");
    s->config_hash = opt->config_hash;
    s->writable = true;
    int rc = ps__spill_shape_init(h, opt->extent, opt->extent_count, err);
    if (rc == 0)
        rc = ps__spill_alloc_tables(s, err);
    if (rc == 0)
        rc = make_dirs(s, opt->run_uuid, err);
    if (rc == 0)
        rc = clear_leftovers(s, false, err);
    if (rc < 0)
        return rc;
    rc = clear_leftovers(s, true, err);
    if (rc == 0)
        rc = make_files(&c, err);
    if (rc == 0)
        rc = ps__spill_open_storage(s, opt, err);
    if (rc == 0)
        rc = ps__spill_add_files(s, s->st, 0, true, err);
    if (rc == 0)
        rc = write_layout(s, err);
    return rc;
}

int ps_spill_store_create(struct ps_spill_store **out, const struct ps_spill_store_options *opt,
                          struct ps_error *err)
{
    struct ps_spill_store *s = NULL;
    int rc = check_options(opt, err);
    if (rc == 0)
        rc = ps__spill_alloc(&s, opt, err);
    if (rc == 0)
        rc = set_up(s, opt, err);
    if (rc < 0) {
        ps__spill_destroy(s, true);
        return rc;
    }
    if (opt->mode == PS_SPILL_INPLACE)
        ps_log(&s->log, PS_LOG_WARN,
               "%s: one slot an extent (inplace): a kill in the middle of a step loses the run, "
               "back to its newest checkpoint",
               s->dir[0].path);
    *out = s;
    return 0;
}
