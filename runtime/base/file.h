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

/* Format "dir/name" into buf; returns buf, or NULL if it does not fit. */
char *ps_path_join(char *buf, size_t size, const char *dir, const char *name);

#ifdef __cplusplus
}
#endif
#endif
