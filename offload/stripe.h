/* A logical spill file striped over several disks.
 *
 * Unit u (unit_bytes each) of the logical file lies in file u % K at unit u / K:
 *
 *   logical   | 0 | 1 | 2 | 3 | 4 | ...        K = 2, paths A and B
 *   A/…/0     | 0 |   2   |   4   | ...        unit 0, 2, 4: next to each other
 *   B/…/1     | 1 |   3   | ...
 *
 * Each path gets a directory of ours (0700) holding one file (0600), preallocated and written once
 * with zeros, so that later writes neither run out of space nor pay for new extents. Nothing
 * outlives close: the files are scratch space of one run. What a killed run left behind is removed
 * by the next one that uses the path: each directory is locked (flock) while it is in use. */
#ifndef PS_OFFLOAD_STRIPE_H
#define PS_OFFLOAD_STRIPE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/train/storage.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_STRIPE_UNIT_MULTIPLE ((uint64_t)1 << 20)
#define PS_STRIPE_PATHS_MAX 64

struct ps_stripe;

struct ps_stripe_options {
    const char *const *path;  /* (path_count,) existing directories, one a disk */
    uint32_t path_count;      /* 1 .. PS_STRIPE_PATHS_MAX */
    uint64_t bytes;           /* of the logical file; > 0, rounded up to whole blocks */
    uint64_t unit_bytes;      /* a multiple of 1 MiB; 0: 4 MiB */
    bool skip_zeros;          /* only allocate: the first writes are then slower */
    const struct ps_log *log; /* may be NULL; must live until close */
};

/* Check free space, create directories and files, allocate and write zeros. What was created is
 * removed again on failure. Errors: PS_EUSAGE (options; a path that is a symlink, no directory, or
 * writable by everybody without the sticky bit), PS_ENOFIT (not enough free space: message with
 * need and have), -ENOSPC and kin when the space went away meanwhile, -EACCES ... */
int ps_stripe_open(struct ps_stripe **out, const struct ps_stripe_options *opt,
                   struct ps_error *err) PS_WARN_UNUSED;

/* Remove the names now: storages that have added the files keep using them, and the space is free
 * as soon as the process ends, however it ends. No file can be added after that. */
void ps_stripe_unlink(struct ps_stripe *s);

/* Remove files and directories. `s` may be NULL. Storages that have the files open must be closed
 * before. */
void ps_stripe_close(struct ps_stripe *s);

uint32_t ps_stripe_file_count(const struct ps_stripe *s);
/* Path of file i, for ps_storage_ops.add_file (writable). Valid until close. */
const char *ps_stripe_file_path(const struct ps_stripe *s, uint32_t i);
/* Size of file i in bytes. */
uint64_t ps_stripe_file_bytes(const struct ps_stripe *s, uint32_t i);
uint64_t ps_stripe_bytes(const struct ps_stripe *s);

/* Add every file to a storage. file_base receives the index of file 0 there; the others follow. */
int ps_stripe_add_files(const struct ps_stripe *s, struct ps_storage *st, uint32_t *file_base,
                        struct ps_error *err) PS_WARN_UNUSED;

/* Layout alone, without files: for planning and tests. */
struct ps_stripe_layout {
    uint32_t file_count;
    uint64_t unit_bytes;
};

/* How many transfers a logical range needs at most, at any offset. */
uint32_t ps_stripe_map_max(const struct ps_stripe_layout *l, uint64_t bytes);

/* Map the logical range [offset, offset + bytes) of `memory` to transfers, one for each unit that
 * it touches (neighbouring units of one file when K = 1 are one). offset, bytes and memory aligned
 * to PS_STORAGE_ALIGN. x[i].file counts from file_base. Returns how many; at most
 * ps_stripe_map_max(l, bytes) are written. */
uint32_t ps_stripe_map(const struct ps_stripe_layout *l, uint32_t file_base, bool write,
                       uint64_t offset, uint64_t bytes, void *memory, struct ps_transfer *x);

/* The layout of an open stripe. */
struct ps_stripe_layout ps_stripe_get_layout(const struct ps_stripe *s);

/* Bytes of file i of a logical file of `bytes`. */
uint64_t ps_stripe_layout_file_bytes(const struct ps_stripe_layout *l, uint64_t bytes, uint32_t i);

#ifdef __cplusplus
}
#endif
#endif
