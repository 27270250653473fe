/* Disks: io_uring, and of each directory its file system, direct transfers, free space. See
 * doctor.h. */
#include "session/doctor_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "offload/storage_backends.h"
#include "session/host_disk.h"

#define PROBE_BYTES ((size_t)1 << 20)
#define ALIGN 4096
#define FREE_LEAST ((uint64_t)1 << 30)

void ps__doctor_uring(struct ps_doctor_report *r)
{
    struct ps_storage *st;
    struct ps_error err = {0};
    struct ps_storage_options o = {.depth = 8};
    int ret = ps_storage_open_uring(&st, &o, &err);
    if (ret == 0) {
        st->ops->close(st);
        ps__doctor_add(r, "io_uring", PS_DOCTOR_OK, "allowed");
        return;
    }
    char line[32];
    bool known = ps__doctor_line("/proc/sys/kernel/io_uring_disabled", line, sizeof line);
    bool off = known && strcmp(line, "0") != 0;
    struct ps_doctor_check *c = ps__doctor_add(
        r, "io_uring", PS_DOCTOR_WARN,
        "refused (%s%s%s): threads with pread and pwrite do its work, with more "
        "processor time",
        ps_status_text(ret), off ? ", kernel.io_uring_disabled = " : "", off ? line : "");
    if (off)
        ps__doctor_advise(c, "`sysctl kernel.io_uring_disabled=0` as root");
    else if (ret == -ENOSYS)
        ps__doctor_advise(c, "the kernel has no io_uring (Linux 5.6 and later do), or the "
                             "container hides it");
    else if (ret == -EPERM || ret == -EACCES)
        ps__doctor_advise(c, "a seccomp filter forbids it, as containers do by default: with "
                             "Docker, a profile that allows io_uring_setup, io_uring_enter and "
                             "io_uring_register (--security-opt seccomp=FILE)");
    else if (ret == -ENOMEM)
        ps__doctor_advise(c, "raise the memlock limit");
}

/* A file without a name, open for direct transfers when `direct`; or -errno. */
static int open_nameless(const char *dir, bool direct)
{
    int flags = O_RDWR | O_CLOEXEC | (direct ? O_DIRECT : 0);
    int fd = open(dir, flags | O_TMPFILE, 0600);
    if (fd >= 0)
        return fd;
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/penstock-doctor-%ld.tmp", dir, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof path)
        return -ENAMETOOLONG;
    fd = open(path, flags | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    int ret = fd < 0 ? -errno : fd;
    /* a file system may create the file and then refuse O_DIRECT */
    if (fd >= 0 || ret == -EINVAL)
        unlink(path);
    return ret;
}

static ssize_t move_all(int fd, unsigned char *buf, bool write)
{
    size_t done = 0;
    while (done < PROBE_BYTES) {
        ssize_t n = write ? pwrite(fd, buf + done, PROBE_BYTES - done, (off_t)done)
                          : pread(fd, buf + done, PROBE_BYTES - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return 0;
}

/* Write 1 MiB and read it back. 0, -EBADMSG where other bytes came back, or -errno. */
static int probe(int fd)
{
    unsigned char *buf = aligned_alloc(ALIGN, 2 * PROBE_BYTES);
    if (!buf)
        return -ENOMEM;
    for (size_t i = 0; i < PROBE_BYTES; i++)
        buf[i] = (unsigned char)(i * 131 >> 3);
    memset(buf + PROBE_BYTES, 0xa5, PROBE_BYTES);
    int ret = (int)move_all(fd, buf, true);
    if (ret == 0)
        ret = (int)move_all(fd, buf + PROBE_BYTES, false);
    if (ret == 0 && memcmp(buf, buf + PROBE_BYTES, PROBE_BYTES) != 0)
        ret = -EBADMSG;
    free(buf);
    return ret;
}

static void check_direct(struct ps_doctor_report *r, const char *path, enum ps_doctor_state worst)
{
    int fd = open_nameless(path, true);
    int ret = fd < 0 ? fd : probe(fd);
    if (fd >= 0)
        close(fd);
    if (ret == 0) {
        ps__doctor_add(r, "o_direct", PS_DOCTOR_OK, "%s: works", path);
        return;
    }
    struct ps_doctor_check *c;
    if (ret == -EBADMSG) {
        c = ps__doctor_add(r, "o_direct", worst, "%s: other bytes came back than were written",
                           path);
        ps__doctor_advise(c, "do not train on this disk: back up what is on it");
        return;
    }
    int direct = ret;
    fd = open_nameless(path, false);
    ret = fd < 0 ? fd : probe(fd);
    if (fd >= 0)
        close(fd);
    if (ret) {
        c = ps__doctor_add(r, "o_direct", worst, "%s: cannot write a file there: %s", path,
                           ps_status_text(ret));
        ps__doctor_advise(c, ret == -ENOSPC || ret == -EDQUOT
                                 ? "free space there"
                                 : "name a directory of yours with --nvme-path");
        return;
    }
    c = ps__doctor_add(r, "o_direct", PS_DOCTOR_WARN,
                       "%s: refused (%s): transfers go through the page cache, slower and at the "
                       "cost of memory bandwidth",
                       path, ps_status_text(direct));
    ps__doctor_advise(c, "name a directory on a local ext4 or xfs drive with --nvme-path");
}

static void check_system(struct ps_doctor_report *r, const char *path, const struct ps_host_disk *d)
{
    static const struct {
        const char *what, *advice;
    } kinds[] = {
        [PS_FS_LOCAL] = {"", ""},
        [PS_FS_MEMORY] = {": memory, not a disk",
                          "what is streamed from there takes the memory that streaming should "
                          "save: name a directory on a drive with --nvme-path"},
        [PS_FS_NETWORK] = {": over the network",
                           "rates and errors are the network's: name a directory on a local drive "
                           "with --nvme-path"},
        [PS_FS_LAYERED] = {": a layer above another file system",
                           "direct transfers may be refused or slow there: mount a drive or a "
                           "volume and name it with --nvme-path"},
        [PS_FS_UNKNOWN] = {": not known to this program", "prefer ext4 or xfs on a local drive"},
    };
    struct ps_doctor_check *c =
        ps__doctor_add(r, "filesystem", d->kind == PS_FS_LOCAL ? PS_DOCTOR_OK : PS_DOCTOR_WARN,
                       "%s: %s%s", path, d->name, kinds[d->kind].what);
    ps__doctor_advise(c, "%s", kinds[d->kind].advice);
}

static void check_space(struct ps_doctor_report *r, const char *path, const struct ps_host_disk *d)
{
    char left[24], all[24];
    bool little = d->free_bytes < FREE_LEAST;
    struct ps_doctor_check *c =
        ps__doctor_add(r, "free_space", little ? PS_DOCTOR_WARN : PS_DOCTOR_OK, "%s: %s of %s",
                       path, ps__doctor_bytes(left, sizeof left, d->free_bytes),
                       ps__doctor_bytes(all, sizeof all, d->total_bytes));
    if (little)
        ps__doctor_advise(c, "free space there: `penstock plan` says how much a run needs");
}

void ps__doctor_path(struct ps_doctor_report *r, const char *path, bool given)
{
    enum ps_doctor_state worst = given ? PS_DOCTOR_BAD : PS_DOCTOR_WARN;
    char real[PATH_MAX];
    const char *shown = realpath(path, real) ? real : path;
    struct ps_host_disk disk;
    struct ps_error err = {0};
    int ret = ps_host_disk(&disk, path, &err);
    int fd = ret ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (ret == 0 && fd < 0)
        ret = -errno;
    if (fd >= 0)
        close(fd);
    if (ret) {
        ps__doctor_advise(
            ps__doctor_add(r, "filesystem", worst, "%s: %s", shown, ps_status_text(ret)),
            "name an existing directory with --nvme-path");
        return;
    }
    check_system(r, shown, &disk);
    check_direct(r, shown, worst);
    check_space(r, shown, &disk);
}
