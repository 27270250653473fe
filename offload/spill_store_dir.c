/* Directories of a spill store: found or made without following links, locked, removed.
 *
 * Every path is opened once; all further names are relative to that descriptor. The lock is the
 * only sign that a store is in use: the kernel drops it with the process, however it ends. The pid
 * in the lock file is for the message alone. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "offload/spill_store_internal.h"
#include "runtime/base/file.h"

#define LOCK_NAME "lock"
enum { LOCK_TRIES = 15, LOCK_PAUSE_MS = 20 };

int ps__spill_errno(struct ps_error *err, const char *path, const char *what, const char *advice)
{
    int code = -errno;
    if (code == -EROFS)
        advice = "the file system is read-only: mount it writable, or use another path";
    else if (code == -EACCES || code == -EPERM)
        advice = "run as the user who owns it, or use another path";
    else if (!advice && (code == -ENOSPC || code == -EDQUOT))
        advice = "free space there, or inodes (df -i), or use another path";
    else if (code == -EMFILE || code == -ENFILE)
        advice = "raise the limit of open files (ulimit -n)";
    return ps_error_full(err, code, path, NULL, advice, "%s: %s", what, ps_status_text(code));
}

void ps__spill_file_name(char name[16], uint32_t index)
{
    PS_IGNORE(snprintf(name, 16, "data-%u", index % 100) < 0, "fits");
}

int ps__spill_dir_parent(struct ps__spill_dir *d, struct ps_error *err)
{
    struct stat sb;
    d->parent = open(d->root, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (d->parent < 0) {
        int code = errno;
        if (lstat(d->root, &sb) == 0 && S_ISLNK(sb.st_mode))
            return ps_error_full(err, PS_EUSAGE, d->root, NULL, "name the directory itself",
                                 "the path of the spill store is a symlink");
        errno = code;
        return ps__spill_errno(err, d->root, "cannot open the directory for the spill store",
                               "make the directory, or name another one");
    }
    if (fstat(d->parent, &sb) != 0)
        return ps__spill_errno(err, d->root, "fstat", NULL);
    if ((sb.st_mode & S_IWOTH) && !(sb.st_mode & S_ISVTX))
        return ps_error_full(err, PS_EUSAGE, d->root, NULL, "chmod o-w, or use another directory",
                             "everybody may write to the directory of the spill store");
    return 0;
}

static int check_ours(struct ps__spill_dir *d, struct ps_error *err)
{
    struct stat sb;
    if (fstat(d->fd, &sb) != 0)
        return ps__spill_errno(err, d->path, "fstat", NULL);
    if (sb.st_uid != geteuid() && geteuid() != 0)
        return ps_error_full(err, -EACCES, d->path, NULL, "run as the user who owns it",
                             "the spill store belongs to another user");
    return 0;
}

int ps__spill_dir_open(struct ps__spill_dir *d, const char *run_uuid, bool make,
                       struct ps_error *err)
{
    char name[64];
    PS_IGNORE(snprintf(name, sizeof name, "penstock-%s", run_uuid) < 0, "fits");
    if (!ps_path_join(d->path, sizeof d->path, d->root, name))
        return ps_error_full(err, -ENAMETOOLONG, d->root, NULL, NULL, "the path is too long");
    if (make) {
        d->made = mkdirat(d->parent, name, 0700) == 0;
        if (!d->made && errno != EEXIST)
            return ps__spill_errno(err, d->root, "cannot make a directory for the spill store",
                                   NULL);
    }
    d->fd = openat(d->parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (d->fd < 0) {
        if (!make && errno == ENOENT)
            return 0;
        return ps__spill_errno(err, d->path, "cannot open the directory of the spill store",
                               "nothing but Penstock makes this name: see what it is");
    }
    int rc = check_ours(d, err);
    if (rc == 0 && make && fchmod(d->fd, 0700) != 0)
        rc = ps__spill_errno(err, d->path, "cannot make the directory private", NULL);
    if (rc == 0 && make && fsync(d->parent) != 0)
        rc = ps__spill_errno(err, d->root, "cannot sync the directory", NULL);
    return rc;
}

static int busy(const struct ps__spill_dir *d, int fd, struct ps_error *err)
{
    char pid[24] = "";
    ssize_t n = pread(fd, pid, sizeof pid - 1, 0);
    pid[n > 0 ? n : 0] = '\0';
    pid[strspn(pid, "0123456789")] = '\0';
    return ps_error_full(err, -EBUSY, d->path, NULL,
                         "wait until that run has ended, or end it; each run needs its own store",
                         "the spill store is in use by another process%s%s", pid[0] ? ", " : "",
                         pid);
}

static int open_lock(const struct ps__spill_dir *d, bool writable, struct ps_error *err)
{
    int flags = O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
    int fd = openat(d->fd, LOCK_NAME, flags | (writable ? O_RDWR | O_CREAT : O_RDONLY), 0600);
    struct stat sb;
    if (fd < 0)
        return ps__spill_errno(err, d->path, "cannot open the lock file of the spill store", NULL);
    if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode)) {
        close(fd);
        return ps_error_full(err, -EINVAL, d->path, NULL, "remove what has its name",
                             "the lock of the spill store is no regular file");
    }
    return fd;
}

/* Whether fd is still what the name says: who removes a store removes its lock file last. */
static bool still_there(const struct ps__spill_dir *d, int fd)
{
    struct stat a, b;
    return fstat(fd, &a) == 0 && fstatat(d->fd, LOCK_NAME, &b, AT_SYMLINK_NOFOLLOW) == 0 &&
           a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

int ps__spill_dir_lock(struct ps__spill_dir *d, bool writable, struct ps_error *err)
{
    for (int i = 0;; i++) {
        int fd = open_lock(d, writable, err);
        if (fd < 0)
            return fd;
        /* Tried for a moment: a look at the store (inspect) takes a shared lock and drops it. */
        int rc = flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : -errno;
        if (rc == 0 && still_there(d, fd)) {
            char pid[24];
            int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
            if (writable && (ftruncate(fd, 0) != 0 || pwrite(fd, pid, (size_t)n, 0) != n))
                PS_IGNORE(errno, "the pid is for a message only");
            d->lock = fd;
            return 0;
        }
        if (rc == -EWOULDBLOCK && i >= LOCK_TRIES)
            rc = busy(d, fd, err);
        else if (rc == 0 && i >= LOCK_TRIES)
            rc = ps_error_full(err, -EBUSY, d->path, NULL, "try again",
                               "the lock file of the spill store changes all the time");
        else if (rc == 0 || rc == -EWOULDBLOCK || rc == -EINTR)
            rc = 1;
        else
            rc = ps_error_full(err, rc, d->path, NULL, "use a local file system",
                               "cannot lock the spill store: %s", ps_status_text(rc));
        close(fd);
        if (rc < 0)
            return rc;
        struct timespec pause = {0, LOCK_PAUSE_MS * 1000000L};
        nanosleep(&pause, NULL);
    }
}

bool ps__spill_dir_is_locked(const struct ps__spill_dir *d)
{
    struct ps_error err;
    int fd = open_lock(d, false, &err);
    if (fd < 0)
        return false;
    bool locked = flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(fd);
    return locked;
}

void ps__spill_dir_remove(struct ps__spill_dir *d)
{
    if (d->lock >= 0 && still_there(d, d->lock))
        PS_IGNORE(unlinkat(d->fd, LOCK_NAME, 0) != 0, "then the directory stays too");
    if (d->fd >= 0 && d->parent >= 0) {
        const char *name = strrchr(d->path, '/');
        PS_IGNORE(unlinkat(d->parent, name ? name + 1 : d->path, AT_REMOVEDIR) != 0,
                  "something else is in it: not ours to remove");
    }
    ps__spill_dir_close(d);
}

void ps__spill_dir_close(struct ps__spill_dir *d)
{
    int *fd[] = {&d->lock, &d->fd, &d->parent};
    for (int i = 0; i < 3; i++) {
        if (*fd[i] >= 0)
            close(*fd[i]);
        *fd[i] = -1;
    }
}

int ps__spill_read_block(const struct ps__spill_dir *d, const char *name, uint64_t offset,
                         void *block, struct stat *sb, struct ps_error *err)
{
    char path[sizeof d->path + 32];
    PS_IGNORE(snprintf(path, sizeof path, "%s/%s", d->path, name) < 0, "fits");
    int fd = openat(d->fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        if (errno == ENOENT)
            return -ENOENT;
        return ps__spill_errno(err, path, "cannot open a file of the spill store",
                               "nothing but Penstock makes this name: see what it is");
    }
    int rc = 0;
    size_t at = 0;
    memset(block, 0, PS__SPILL_BLOCK);
    if (fstat(fd, sb) != 0)
        rc = ps__spill_errno(err, path, "fstat", NULL);
    else if (!S_ISREG(sb->st_mode))
        rc = ps_error_full(err, -EINVAL, path, NULL, "move it away",
                           "a file of the spill store is no regular file");
    while (rc == 0 && at < PS__SPILL_BLOCK) {
        ssize_t n = pread(fd, (char *)block + at, PS__SPILL_BLOCK - at, (off_t)(offset + at));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = ps__spill_errno(err, path, "cannot read a file of the spill store", NULL);
        if (n <= 0)
            break;
        at += (size_t)n;
    }
    close(fd);
    return rc;
}
