/* Opening files for direct transfers, and the clock of the storage engines.
 *
 * A file system may refuse O_DIRECT when the file is opened (EINVAL), report that it cannot
 * (STATX_DIOALIGN), or refuse the first request; each leads to buffered I/O. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "offload/storage_internal.h"

double ps__now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void ps__sleep_s(double s)
{
    if (s <= 0)
        return;
    struct timespec t = {.tv_sec = (time_t)s};
    t.tv_nsec = (long)((s - (double)t.tv_sec) * 1e9);
    nanosleep(&t, NULL); /* an early return is harmless: callers look at the clock */
}

/* Whether the kernel says that transfers aligned to PS_STORAGE_ALIGN can be direct. STATX_DIOALIGN
 * (Linux 6.1) is newer than the C library's header: its two fields are the words after stx_mnt_id.
 * File systems that report nothing are tried. */
static bool dio_alignment_fits(int fd)
{
    enum { DIOALIGN = 0x2000, MEM_ALIGN_AT = 0x98, OFFSET_ALIGN_AT = 0x9c };
    struct statx sx;
    memset(&sx, 0, sizeof sx);
    static_assert(sizeof sx >= OFFSET_ALIGN_AT + sizeof(uint32_t), "struct statx");
    if (statx(fd, "", AT_EMPTY_PATH, DIOALIGN, &sx) != 0 || !(sx.stx_mask & DIOALIGN))
        return true;
    uint32_t mem, offset;
    memcpy(&mem, (const char *)&sx + MEM_ALIGN_AT, sizeof mem);
    memcpy(&offset, (const char *)&sx + OFFSET_ALIGN_AT, sizeof offset);
    return mem > 0 && offset > 0 && PS_STORAGE_ALIGN % mem == 0 && PS_STORAGE_ALIGN % offset == 0;
}

static int drop_flags(int fd, int drop)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~drop) < 0)
        return -errno;
    return 0;
}

static int open_retry(const char *path, int flags)
{
    int fd;
    do
        fd = open(path, flags);
    while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

int ps__file_open(struct ps__file *f, const char *path, bool writable, bool direct,
                  struct ps_error *err)
{
    /* O_NONBLOCK: a FIFO in place of the file must not hang the open. */
    int flags = O_CLOEXEC | O_NONBLOCK | (writable ? O_RDWR | O_NOFOLLOW : O_RDONLY);
    memset(f, 0, sizeof *f);
    int fd = -EINVAL;
    if (direct)
        fd = open_retry(path, flags | O_DIRECT);
    bool is_direct = fd >= 0;
    if (fd == -EINVAL)
        fd = open_retry(path, flags);
    if (fd < 0)
        return ps_error_full(err, fd, path, NULL, "check that the file exists and its permissions",
                             "cannot open the file: %s", ps_status_text(fd));
    int rc;
    struct stat sb;
    if (fstat(fd, &sb) != 0) {
        rc = ps_error_full(err, -errno, path, NULL, NULL, "fstat: %s", strerror(errno));
        goto fail;
    }
    if (!S_ISREG(sb.st_mode)) {
        rc = ps_error_full(err, PS_EFORMAT, path, NULL, NULL, "not a regular file");
        goto fail;
    }
    rc = drop_flags(fd, O_NONBLOCK);
    if (rc == 0 && is_direct && !dio_alignment_fits(fd)) {
        rc = drop_flags(fd, O_DIRECT);
        is_direct = false;
    }
    if (rc < 0) {
        rc = ps_error_full(err, rc, path, NULL, NULL, "fcntl: %s", ps_status_text(rc));
        goto fail;
    }
    f->path = strdup(path);
    if (!f->path) {
        rc = ps_error_full(err, -ENOMEM, path, NULL, NULL, "out of memory");
        goto fail;
    }
    f->fd = fd;
    f->writable = writable;
    f->direct = is_direct;
    f->size = (uint64_t)sb.st_size;
    return 0;

fail:
    close(fd);
    return rc;
}

int ps__file_make_buffered(struct ps__file *f)
{
    f->direct = false;
    return drop_flags(f->fd, O_DIRECT);
}

void ps__file_close(struct ps__file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    f->fd = -1;
    f->path = NULL;
}
