/* Spill files on disk: made, proven to have their space, removed.
 *
 * Design. Every path is opened once, without following a symlink, and all further names are
 * relative to that descriptor. Zeros are written directly, past the page cache; a file system
 * without O_DIRECT gets buffered ones. The lock on a directory is the only sign that it is in use:
 * the kernel drops it with the process, so there is no pid to compare. */
#include "offload/stripe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define DIR_PREFIX "penstock-spill-"
enum { SUFFIX_BYTES = 6, NAME_BYTES = 32, ZERO_BYTES = 4 << 20, TRIES = 100 };

struct stripe_file {
    int parent;          /* the user's directory; -1: not opened */
    int dir;             /* ours, locked; -1: not made */
    char root[PATH_MAX]; /* as the user gave it, without trailing slashes */
    char dir_name[NAME_BYTES];
    char path[PATH_MAX + 2 * NAME_BYTES];
    char file_name[NAME_BYTES]; /* "": not made */
    uint64_t bytes;
};

struct ps_stripe {
    struct ps_stripe_layout layout;
    uint64_t bytes;
    bool skip_zeros;
    const struct ps_log *log;
    struct stripe_file *file; /* file_count */
};

static int errno_error(struct ps_error *err, const char *path, const char *what)
{
    int code = -errno;
    const char *advice = NULL;
    if (code == -EROFS)
        advice = "the file system is read-only: mount it writable, or use another path";
    else if (code == -ENOSPC || code == -EDQUOT)
        advice = "free space there, or inodes (df -i), or use another path";
    return ps_error_full(err, code, path, NULL, advice, "%s: %s", what, ps_status_text(code));
}

static int open_parent(struct stripe_file *f, struct ps_error *err)
{
    f->parent = open(f->root, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (f->parent < 0) {
        struct stat sb;
        if (lstat(f->root, &sb) == 0 && S_ISLNK(sb.st_mode))
            return ps_error_full(err, PS_EUSAGE, f->root, NULL, "name the directory itself",
                                 "the path for spill files is a symlink");
        return errno_error(err, f->root, "cannot open the directory for spill files");
    }
    struct stat sb;
    if (fstat(f->parent, &sb) != 0)
        return errno_error(err, f->root, "fstat");
    if ((sb.st_mode & S_IWOTH) && !(sb.st_mode & S_ISVTX))
        return ps_error_full(err, PS_EUSAGE, f->root, NULL, "chmod o-w, or use another directory",
                             "everybody may write to the directory for spill files");
    return 0;
}

/* Free space of each path against what it needs; paths on one file system add up. */
static int check_space(const struct ps_stripe *s, struct ps_error *err)
{
    uint32_t n = s->layout.file_count;
    for (uint32_t i = 0; i < n; i++) {
        struct stat si;
        struct statvfs v;
        if (fstat(s->file[i].parent, &si) != 0 || fstatvfs(s->file[i].parent, &v) != 0)
            return errno_error(err, s->file[i].root, "cannot ask for the free space");
        uint64_t need = 0, have = (uint64_t)v.f_bavail * v.f_frsize;
        for (uint32_t j = 0; j < n; j++) {
            struct stat sj;
            if (fstat(s->file[j].parent, &sj) == 0 && sj.st_dev == si.st_dev)
                need += s->file[j].bytes;
        }
        if (need > have)
            return ps_error_full(err, PS_ENOFIT, s->file[i].root, NULL,
                                 "free space there, or give another or one more path",
                                 "spill files need %llu bytes on this disk, %llu are free",
                                 (unsigned long long)need, (unsigned long long)have);
    }
    return 0;
}

static bool is_our_name(const char *name)
{
    size_t prefix = strlen(DIR_PREFIX);
    return strncmp(name, DIR_PREFIX, prefix) == 0 && strlen(name) == prefix + SUFFIX_BYTES;
}

/* Remove what a killed run left in `name`, if nobody has it locked and it holds nothing else. */
static bool remove_stale(int parent, const char *name)
{
    int dir = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat sb;
    bool removed = false;
    if (dir < 0)
        return false;
    if (fstat(dir, &sb) == 0 && sb.st_uid == geteuid() && (sb.st_mode & 0777) == 0700 &&
        flock(dir, LOCK_EX | LOCK_NB) == 0) {
        char file[NAME_BYTES];
        for (unsigned i = 0; i < PS_STRIPE_PATHS_MAX; i++) {
            snprintf(file, sizeof file, "stripe-%u", i);
            if (fstatat(dir, file, &sb, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(sb.st_mode))
                PS_IGNORE(unlinkat(dir, file, 0) != 0, "then the directory stays too");
        }
        removed = unlinkat(parent, name, AT_REMOVEDIR) == 0;
    }
    close(dir);
    return removed;
}

static void sweep(const struct ps_stripe *s, const struct stripe_file *f)
{
    int fd = openat(f->parent, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (!d) {
        if (fd >= 0)
            close(fd);
        return;
    }
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (is_our_name(e->d_name) && remove_stale(f->parent, e->d_name))
            ps_log(s->log, PS_LOG_INFO, "removed spill files of an ended run: %s/%s", f->root,
                   e->d_name);
    }
    closedir(d);
}

static int random_name(char *name)
{
    static const char letter[] = "abcdefghijklmnopqrstuvwxyz012345";
    unsigned char r[SUFFIX_BYTES];
    if (getrandom(r, sizeof r, 0) != (ssize_t)sizeof r)
        return -EIO;
    size_t n = (size_t)snprintf(name, NAME_BYTES, DIR_PREFIX);
    for (int i = 0; i < SUFFIX_BYTES; i++)
        name[n++] = letter[r[i] & 31];
    name[n] = '\0';
    return 0;
}

/* Our directory, locked. Another run's sweep may take it away between its making and its locking:
 * then it has no name any more, and a new one is made. */
static int make_dir(struct stripe_file *f, struct ps_error *err)
{
    for (int i = 0; i < TRIES; i++) {
        if (random_name(f->dir_name) < 0)
            return ps_error_set(err, -EIO, "no random numbers from the kernel");
        if (mkdirat(f->parent, f->dir_name, 0700) != 0) {
            if (errno == EEXIST)
                continue;
            return errno_error(err, f->root, "cannot make a directory for spill files");
        }
        int fd = openat(f->parent, f->dir_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        struct stat sb;
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &sb) == 0 &&
            sb.st_nlink > 0 && fchmod(fd, 0700) == 0) {
            f->dir = fd;
            return 0;
        }
        if (fd >= 0)
            close(fd);
        PS_IGNORE(unlinkat(f->parent, f->dir_name, AT_REMOVEDIR) != 0, "it may be gone already");
    }
    return ps_error_full(err, -EBUSY, f->root, NULL, "use a local file system",
                         "cannot lock a directory for spill files");
}

static int write_zeros(int fd, uint64_t bytes, const char *zero)
{
    uint64_t at = 0;
    int stalls = 0;
    while (at < bytes) {
        size_t len = bytes - at < ZERO_BYTES ? (size_t)(bytes - at) : (size_t)ZERO_BYTES;
        ssize_t n = pwrite(fd, zero, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EINVAL && at == 0) { /* no direct writes here */
            int flags = fcntl(fd, F_GETFL);
            if (flags >= 0 && (flags & O_DIRECT) && fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0)
                continue;
            return -EINVAL;
        }
        if (n < 0)
            return -errno;
        uint64_t whole = (uint64_t)n / PS_STORAGE_ALIGN * PS_STORAGE_ALIGN;
        if (whole == 0 && ++stalls > 3)
            return -EIO;
        at += whole;
    }
    return 0;
}

static int no_space(const struct stripe_file *f, int fd, int code, struct ps_error *err)
{
    struct statvfs v;
    unsigned long long have = 0;
    if (fstatvfs(fd, &v) == 0)
        have = (unsigned long long)v.f_bavail * v.f_frsize;
    return ps_error_full(err, code, f->path, NULL,
                         "free space there, or give another or one more path",
                         "a spill file of %llu bytes cannot be made: %s (%llu bytes are free now)",
                         (unsigned long long)f->bytes, ps_status_text(code), have);
}

static int make_file(const struct ps_stripe *s, struct stripe_file *f, uint32_t i, const char *zero,
                     struct ps_error *err)
{
    int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "stripe-%u", i);
    snprintf(f->path, sizeof f->path, "%s/%s/%s", f->root, f->dir_name, name);
    int fd = openat(f->dir, name, flags | O_DIRECT, 0600);
    if (fd < 0 && errno == EINVAL) { /* some file systems create the file and then refuse */
        PS_IGNORE(unlinkat(f->dir, name, 0) != 0, "it may not be there");
        fd = openat(f->dir, name, flags, 0600);
    }
    if (fd < 0)
        return errno_error(err, f->path, "cannot create a spill file");
    memcpy(f->file_name, name, sizeof name);
    int rc = 0;
    if (fchmod(fd, 0600) != 0)
        rc = -errno;
    if (rc == 0 && f->bytes > 0) {
        do
            rc = fallocate(fd, 0, 0, (off_t)f->bytes) == 0 ? 0 : -errno;
        while (rc == -EINTR);
        if (rc == -EOPNOTSUPP)
            rc = s->skip_zeros && ftruncate(fd, (off_t)f->bytes) != 0 ? -errno : 0;
        if (rc == 0 && !s->skip_zeros)
            rc = write_zeros(fd, f->bytes, zero);
    }
    if (rc == 0 && fsync(fd) != 0)
        rc = -errno;
    if (rc == 0 && fsync(f->dir) != 0)
        rc = -errno;
    if (rc < 0)
        rc = no_space(f, fd, rc, err);
    close(fd);
    return rc;
}

static int check_options(const struct ps_stripe_options *opt, struct ps_error *err)
{
    if (opt->path_count == 0 || opt->path_count > PS_STRIPE_PATHS_MAX)
        return ps_error_set(err, PS_EUSAGE, "spill files need 1 to %d paths", PS_STRIPE_PATHS_MAX);
    if (opt->unit_bytes % PS_STRIPE_UNIT_MULTIPLE != 0)
        return ps_error_set(err, PS_EUSAGE, "a stripe of %llu bytes is no multiple of 1 MiB",
                            (unsigned long long)opt->unit_bytes);
    if (opt->bytes == 0 || opt->bytes > (uint64_t)INT64_MAX / 2)
        return ps_error_set(err, PS_EUSAGE, "a spill file of %llu bytes",
                            (unsigned long long)opt->bytes);
    for (uint32_t i = 0; i < opt->path_count; i++) {
        if (!opt->path[i][0] || strlen(opt->path[i]) >= PATH_MAX)
            return ps_error_set(err, PS_EUSAGE, "the path for spill files is empty or too long");
    }
    return 0;
}

static void init_files(struct ps_stripe *s, const struct ps_stripe_options *opt)
{
    for (uint32_t i = 0; i < opt->path_count; i++) {
        struct stripe_file *f = &s->file[i];
        f->parent = f->dir = -1;
        f->bytes = ps_stripe_layout_file_bytes(&s->layout, s->bytes, i);
        size_t n = strlen(opt->path[i]);
        memcpy(f->root, opt->path[i], n + 1);
        while (n > 1 && f->root[n - 1] == '/') /* a trailing slash would follow a symlink */
            f->root[--n] = '\0';
    }
}

static int make_all(struct ps_stripe *s, struct ps_error *err)
{
    uint32_t n = s->layout.file_count;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < n; i++)
        rc = open_parent(&s->file[i], err);
    for (uint32_t i = 0; rc == 0 && i < n; i++)
        sweep(s, &s->file[i]);
    if (rc == 0)
        rc = check_space(s, err);
    void *zero = MAP_FAILED;
    if (rc == 0) {
        zero = mmap(NULL, ZERO_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (zero == MAP_FAILED)
            return ps_error_set(err, -ENOMEM, "out of memory");
        memset(zero, 0, ZERO_BYTES);
    }
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        rc = make_dir(&s->file[i], err);
        if (rc == 0)
            rc = make_file(s, &s->file[i], i, zero, err);
    }
    if (zero != MAP_FAILED)
        munmap(zero, ZERO_BYTES);
    return rc;
}

int ps_stripe_open(struct ps_stripe **out, const struct ps_stripe_options *opt,
                   struct ps_error *err)
{
    int rc = check_options(opt, err);
    if (rc < 0)
        return rc;
    struct ps_stripe *s = calloc(1, sizeof *s);
    if (!s || !(s->file = calloc(opt->path_count, sizeof *s->file))) {
        free(s);
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    s->layout.file_count = opt->path_count;
    s->layout.unit_bytes = opt->unit_bytes ? opt->unit_bytes : (uint64_t)4 << 20;
    s->bytes = (opt->bytes + PS_STORAGE_ALIGN - 1) / PS_STORAGE_ALIGN * PS_STORAGE_ALIGN;
    s->skip_zeros = opt->skip_zeros;
    s->log = opt->log;
    init_files(s, opt);
    rc = make_all(s, err);
    if (rc < 0) {
        ps_stripe_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void ps_stripe_unlink(struct ps_stripe *s)
{
    for (uint32_t i = 0; i < s->layout.file_count; i++) {
        struct stripe_file *f = &s->file[i];
        if (f->dir < 0)
            continue;
        if (f->file_name[0])
            PS_IGNORE(unlinkat(f->dir, f->file_name, 0) != 0, "the next run sweeps it");
        PS_IGNORE(unlinkat(f->parent, f->dir_name, AT_REMOVEDIR) != 0, "the next run sweeps it");
        close(f->dir);
        f->dir = -1;
    }
}

void ps_stripe_close(struct ps_stripe *s)
{
    if (!s)
        return;
    ps_stripe_unlink(s);
    for (uint32_t i = 0; i < s->layout.file_count; i++) {
        if (s->file[i].parent >= 0)
            close(s->file[i].parent);
    }
    free(s->file);
    free(s);
}

uint32_t ps_stripe_file_count(const struct ps_stripe *s)
{
    return s->layout.file_count;
}

const char *ps_stripe_file_path(const struct ps_stripe *s, uint32_t i)
{
    return s->file[i].path;
}

uint64_t ps_stripe_file_bytes(const struct ps_stripe *s, uint32_t i)
{
    return s->file[i].bytes;
}

uint64_t ps_stripe_bytes(const struct ps_stripe *s)
{
    return s->bytes;
}

struct ps_stripe_layout ps_stripe_get_layout(const struct ps_stripe *s)
{
    return s->layout;
}

int ps_stripe_add_files(const struct ps_stripe *s, struct ps_storage *st, uint32_t *file_base,
                        struct ps_error *err)
{
    for (uint32_t i = 0; i < s->layout.file_count; i++) {
        int f = st->ops->add_file(st, s->file[i].path, true, NULL, err);
        if (f < 0)
            return f;
        if (i == 0)
            *file_base = (uint32_t)f;
    }
    return 0;
}
