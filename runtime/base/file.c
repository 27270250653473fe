/* Small-file helpers: see file.h. */
#include "runtime/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <xxhash.h>

#define PIECE_BYTES ((size_t)1 << 20)

static int fail(struct ps_error *err, int code, const char *path, const char *doing)
{
    const char *advice = NULL;
    if (code == -EROFS)
        advice = "the file system is read-only: mount it writable, or use another path";
    else if (code == -ENOSPC || code == -EDQUOT)
        advice = "free space there, or inodes (df -i), or use another path";
    return ps_error_full(err, code, path, NULL, advice, "cannot %s: %s", doing,
                         ps_status_text(code));
}

/* Directory part of a path: "." when it has none. */
static int parent_of(const char *path, char *dir, size_t size)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 1;
    const char *from = slash ? path : ".";
    if (slash == path)
        len = 1;
    if (len + 1 > size)
        return -ENAMETOOLONG;
    memcpy(dir, from, len);
    dir[len] = '\0';
    return 0;
}

int ps_file_open_regular(const char *path, int *fd, uint64_t *size, struct ps_error *err)
{
    /* O_NONBLOCK: the open of a FIFO must not wait for a writer */
    int f = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (f < 0)
        return fail(err, -errno, path, "open the file");
    struct stat st;
    if (fstat(f, &st) < 0) {
        int ret = fail(err, -errno, path, "examine the file");
        close(f);
        return ret;
    }
    if (!S_ISREG(st.st_mode)) {
        close(f);
        const char *kind = S_ISDIR(st.st_mode)    ? "a directory"
                           : S_ISFIFO(st.st_mode) ? "a FIFO"
                                                  : "a device or socket";
        return ps_error_full(err, PS_EFORMAT, path, NULL, NULL, "expected a regular file, found %s",
                             kind);
    }
    *fd = f;
    *size = (uint64_t)st.st_size;
    return 0;
}

/* Read to the end of the file into *buf, which is grown up to bytes_max + 1 (a byte for the NUL).
 */
static int read_rest(int fd, char **buf, size_t cap, size_t bytes_max, size_t *len)
{
    size_t n = 0;
    for (;;) {
        if (n == cap - 1) {
            if (cap - 1 >= bytes_max) {
                char probe;
                ssize_t more = read(fd, &probe, 1);
                if (more < 0 && errno == EINTR)
                    continue;
                *len = n;
                return more < 0 ? -errno : more ? PS_EFORMAT : 0;
            }
            size_t next = cap - 1 > bytes_max / 2 ? bytes_max + 1 : 2 * cap;
            char *grown = realloc(*buf, next);
            if (!grown)
                return -ENOMEM;
            *buf = grown;
            cap = next;
        }
        ssize_t got = read(fd, *buf + n, cap - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0) {
            *len = n;
            return 0;
        }
        n += (size_t)got;
    }
}

int ps_file_read(const char *path, size_t bytes_max, char **out, size_t *len, struct ps_error *err)
{
    int fd;
    uint64_t size;
    int ret = ps_file_open_regular(path, &fd, &size, err);
    if (ret)
        return ret;
    if (bytes_max > SIZE_MAX - 2)
        bytes_max = SIZE_MAX - 2;
    char *buf = NULL;
    size_t n = 0;
    if (size > bytes_max) {
        ret = PS_EFORMAT;
    } else {
        /* 1 more than the size, so that the end is seen without growing */
        size_t cap = (size_t)size + 2 > bytes_max + 1 ? bytes_max + 1 : (size_t)size + 2;
        buf = malloc(cap);
        ret = buf ? read_rest(fd, &buf, cap, bytes_max, &n) : -ENOMEM;
    }
    close(fd);
    if (ret) {
        free(buf);
        if (ret == PS_EFORMAT)
            return ps_error_full(err, ret, path, NULL, NULL,
                                 "the file is larger than the %zu bytes allowed here", bytes_max);
        return fail(err, ret, path, "read the file");
    }
    buf[n] = '\0';
    *out = buf;
    *len = n;
    return 0;
}

int ps_file_temp_open(const char *path, char *temp, int *fd, struct ps_error *err)
{
    for (unsigned attempt = 0; attempt < 1000; attempt++) {
        int n = snprintf(temp, PS_FILE_TEMP_MAX, "%s.tmp-%ld-%u", path, (long)getpid(), attempt);
        if (n < 0 || n >= PS_FILE_TEMP_MAX)
            return fail(err, -ENAMETOOLONG, path, "create the file");
        int f = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (f >= 0) {
            *fd = f;
            return 0;
        }
        if (errno != EEXIST)
            return fail(err, -errno, path, "create the file");
    }
    return fail(err, -EEXIST, path, "create a temporary file beside it");
}

static int write_failed(int fd, int code, size_t len, const char *path, struct ps_error *err)
{
    struct statvfs vfs;
    if ((code == -ENOSPC || code == -EDQUOT) && fstatvfs(fd, &vfs) == 0)
        return ps_error_full(err, code, path, NULL, "free space on that disk and run again",
                             "disk full: %zu more bytes needed, %llu free", len,
                             (unsigned long long)vfs.f_bavail * vfs.f_frsize);
    return ps_error_full(err, code, path, NULL, NULL, "cannot write the file (%zu more bytes): %s",
                         len, ps_status_text(code));
}

int ps_file_write_all(int fd, const void *data, size_t len, const char *path, struct ps_error *err)
{
    const char *p = data;
    while (len > 0) {
        ssize_t n = write(fd, p, len < SSIZE_MAX ? len : SSIZE_MAX);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return write_failed(fd, n < 0 ? -errno : -EIO, len, path, err);
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

void ps_file_temp_discard(int fd, const char *temp)
{
    close(fd);
    unlink(temp);
}

int ps_file_temp_commit(int fd, const char *temp, const char *path, struct ps_error *err)
{
    if (fsync(fd) < 0) {
        int ret = write_failed(fd, -errno, 0, path, err);
        ps_file_temp_discard(fd, temp);
        return ret;
    }
    int ret = close(fd) < 0 ? -errno : 0;
    if (!ret && rename(temp, path) < 0)
        ret = -errno;
    if (ret) {
        unlink(temp);
        return fail(err, ret, path, "put the file under its name");
    }
    char dir[PATH_MAX];
    ret = parent_of(path, dir, sizeof dir);
    if (ret)
        return fail(err, ret, path, "sync the directory");
    return ps_file_sync_dir(dir, err);
}

int ps_file_write(const char *path, const void *data, size_t len, struct ps_error *err)
{
    char temp[PS_FILE_TEMP_MAX];
    int fd;
    int ret = ps_file_temp_open(path, temp, &fd, err);
    if (ret)
        return ret;
    ret = ps_file_write_all(fd, data, len, path, err);
    if (ret) {
        ps_file_temp_discard(fd, temp);
        return ret;
    }
    return ps_file_temp_commit(fd, temp, path, err);
}

/* Read up to cap bytes, short reads continued. Returns the count or -errno. */
static ssize_t read_piece(int fd, void *buf, size_t cap)
{
    size_t n = 0;
    while (n < cap) {
        ssize_t got = read(fd, (char *)buf + n, cap - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        n += (size_t)got;
    }
    return (ssize_t)n;
}

static int copy_bytes(int in, int out, const char *from, const char *to, struct ps_error *err)
{
    void *buf = malloc(PIECE_BYTES);
    if (!buf)
        return fail(err, -ENOMEM, from, "copy the file");
    ssize_t n;
    int ret = 0;
    while ((n = read_piece(in, buf, PIECE_BYTES)) > 0) {
        ret = ps_file_write_all(out, buf, (size_t)n, to, err);
        if (ret)
            break;
    }
    free(buf);
    return n < 0 ? fail(err, (int)n, from, "read the file") : ret;
}

int ps_file_copy(const char *from, const char *to, struct ps_error *err)
{
    int in, out;
    uint64_t size;
    char temp[PS_FILE_TEMP_MAX];
    int ret = ps_file_open_regular(from, &in, &size, err);
    if (ret)
        return ret;
    ret = ps_file_temp_open(to, temp, &out, err);
    if (ret)
        goto done;
    ret = copy_bytes(in, out, from, to, err);
    if (ret)
        ps_file_temp_discard(out, temp);
    else
        ret = ps_file_temp_commit(out, temp, to, err);
done:
    close(in);
    return ret;
}

int ps_file_make_dirs(const char *path, struct ps_error *err)
{
    char buf[PATH_MAX];
    size_t len = strlen(path);
    if (len == 0)
        return fail(err, -ENOENT, path, "create the directory");
    if (len >= sizeof buf)
        return fail(err, -ENAMETOOLONG, path, "create the directory");
    memcpy(buf, path, len + 1);
    for (size_t i = 1; i <= len; i++) {
        if (buf[i] != '/' && buf[i] != '\0')
            continue;
        char keep = buf[i];
        buf[i] = '\0';
        /* an existing parent may refuse with EROFS or EACCES instead of EEXIST: stat decides */
        int ret = mkdir(buf, 0777) < 0 ? -errno : 0;
        struct stat st;
        if (ret && stat(buf, &st) == 0)
            ret = S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
        if (ret)
            return fail(err, ret, buf, "create the directory");
        buf[i] = keep;
    }
    return 0;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path) < 0 && errno != ENOENT ? errno : 0;
}

int ps_file_remove_tree(const char *path, struct ps_error *err)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : fail(err, -errno, path, "remove");
    int ret = nftw(path, remove_entry, 32, FTW_DEPTH | FTW_PHYS);
    if (ret < 0)
        ret = errno;
    return ret && ret != ENOENT ? fail(err, -ret, path, "remove") : 0;
}

int ps_file_sync_dir(const char *path, struct ps_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fail(err, -errno, path, "open the directory");
    int ret = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    /* some file systems cannot sync a directory, and say so */
    if (ret && ret != -EINVAL && ret != -EROFS)
        return fail(err, ret, path, "sync the directory");
    return 0;
}

int ps_file_hash(const char *path, uint64_t *out, struct ps_error *err)
{
    int fd;
    uint64_t size;
    int ret = ps_file_open_regular(path, &fd, &size, err);
    if (ret)
        return ret;
    void *buf = malloc(PIECE_BYTES);
    XXH3_state_t *state = XXH3_createState();
    if (!buf || !state || XXH3_64bits_reset(state) != XXH_OK) {
        ret = fail(err, -ENOMEM, path, "hash the file");
        goto done;
    }
    ssize_t n;
    while ((n = read_piece(fd, buf, PIECE_BYTES)) > 0) {
        if (XXH3_64bits_update(state, buf, (size_t)n) != XXH_OK) {
            n = -EIO;
            break;
        }
    }
    if (n < 0)
        ret = fail(err, (int)n, path, "read the file");
    else
        *out = XXH3_64bits_digest(state);
done:
    XXH3_freeState(state);
    free(buf);
    close(fd);
    return ret;
}

char *ps_path_join(char *buf, size_t size, const char *dir, const char *name)
{
    size_t len = strlen(dir);
    const char *sep = len > 0 && dir[len - 1] != '/' ? "/" : "";
    int n = snprintf(buf, size, "%s%s%s", dir, sep, name);
    return n >= 0 && (size_t)n < size ? buf : NULL;
}
