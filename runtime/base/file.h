/* Small-file helpers: read whole, write atomically (temporary name, fsync, rename). */
#ifndef PS_BASE_FILE_H
#define PS_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Read a regular file (symlinks followed) of at most bytes_max bytes into a new NUL-terminated
 * buffer (free with free()). FIFOs, devices and directories are PS_EFORMAT. */
int ps_file_read(const char *path, size_t bytes_max, char **out, size_t *len,
                 struct ps_error *err) PS_WARN_UNUSED;

/* Write `len` bytes as `path`: to a temporary name beside it, fsync, rename, fsync the directory.
 * On failure the old file is untouched and the temporary one is removed; a full disk names the
 * bytes needed. Returns 0 or -errno. */
int ps_file_write(const char *path, const void *data, size_t len,
                  struct ps_error *err) PS_WARN_UNUSED;

/* Copy a file byte for byte (same rules as ps_file_write). */
int ps_file_copy(const char *from, const char *to, struct ps_error *err) PS_WARN_UNUSED;

/* mkdir -p. Returns 0 or -errno. */
int ps_file_make_dirs(const char *path, struct ps_error *err) PS_WARN_UNUSED;

/* Remove a directory and everything in it (no symlink is followed); absent is success. */
int ps_file_remove_tree(const char *path, struct ps_error *err) PS_WARN_UNUSED;

/* fsync a directory. */
int ps_file_sync_dir(const char *path, struct ps_error *err) PS_WARN_UNUSED;

/* XXH3-64 of a whole file, read in pieces. */
int ps_file_hash(const char *path, uint64_t *out, struct ps_error *err) PS_WARN_UNUSED;

/* A file that appears under its final name only when whole, written in pieces by the caller:
 *
 *   ps_file_temp_open     creates a new file beside `path`; its name (NUL-terminated) is stored in
 *                         temp, which has room for PS_FILE_TEMP_MAX bytes, and its descriptor in
 * *fd ps_file_write_all     appends; short writes are continued ps_file_temp_commit   fsync, close,
 * rename to `path`, fsync of the directory. The descriptor is closed in every case; on failure the
 * temporary file is removed and an older file of that name is untouched ps_file_temp_discard closes
 * and removes the temporary file
 *
 * Each returns 0 or -errno; `path` is the final name, also for messages. */
#define PS_FILE_TEMP_MAX 4160
int ps_file_temp_open(const char *path, char *temp, int *fd, struct ps_error *err) PS_WARN_UNUSED;
int ps_file_write_all(int fd, const void *data, size_t len, const char *path,
                      struct ps_error *err) PS_WARN_UNUSED;
int ps_file_temp_commit(int fd, const char *temp, const char *path,
                        struct ps_error *err) PS_WARN_UNUSED;
void ps_file_temp_discard(int fd, const char *temp);

/* Open a regular file (symlinks followed) for reading: *fd is the descriptor, *size its length.
 * Anything else (FIFO, device, directory) is PS_EFORMAT and is never waited for. */
int ps_file_open_regular(const char *path, int *fd, uint64_t *size,
                         struct ps_error *err) PS_WARN_UNUSED;

/* Format "dir/name" into buf; returns buf, or NULL if it does not fit. */
char *ps_path_join(char *buf, size_t size, const char *dir, const char *name);

#ifdef __cplusplus
}
#endif
#endif
