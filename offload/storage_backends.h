/* Registry of the storage back ends, and the choice among them.
 *
 *   io_uring   direct I/O through a ring; registered files and buffers where memlock allows
 *   threads    the same semantics with pread and pwrite on up to 8 threads
 *   ram        files are loaded into memory when added; writable ones are mapped, so that all
 *              storages that have added one see what any of them writes
 *   null       completes at once and leaves memory alone: the cost of the machinery without a disk
 *
 * What all of them share (storage_core.c) and the contract does not say by itself:
 *
 * - memory, offset and bytes of a transfer must be multiples of PS_STORAGE_ALIGN (-EINVAL
 * otherwise, in every back end, so that what runs on "ram" runs on a disk). `expect` may be odd.
 * - No request is sent for whole blocks after `expect`.
 * - A transfer that succeeded need not be waited for: its ticket's slot is reused and a later wait
 *   returns 0. One that failed keeps its slot until it has been waited for.
 * - A write or flush that failed is final: every later write or flush of this storage fails with
 * the same code (not for ENOSPC and EDQUOT, which the caller may wait out). After -ETIMEDOUT all
 * calls fail; transfers may then still be under way, so their memory must not be reused before the
 * process ends.
 * - A writer past RLIMIT_FSIZE gets SIGXFSZ from the kernel, whose default ends the process:
 * programs ignore it and get -EFBIG here.
 * - counters.requests counts what was handed to the kernel, continuations and re-reads included;
 *   counters.retries counts re-reads and requests repeated after EAGAIN, EBUSY or EINTR. */
#ifndef PS_OFFLOAD_STORAGE_BACKENDS_H
#define PS_OFFLOAD_STORAGE_BACKENDS_H

#include "runtime/train/storage.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_storage_backend {
    const char *name;
    const char *what; /* one line for a person */
    ps_storage_open_fn open;
};

/* All back ends, *count of them. Static storage. */
const struct ps_storage_backend *ps_storage_backends(size_t *count);

/* The open function of a name, or NULL. */
ps_storage_open_fn ps_storage_find(const char *name);

/* Open `name`, or, with NULL or "auto", io_uring with threads where the kernel refuses it (ENOSYS,
 * EPERM, EACCES, ENOMEM, or one too old). `why`, 128 bytes, receives which is used and why; may be
 * NULL. One line is logged when it is not io_uring by choice of auto. PS_EUSAGE for an unknown
 * name; else the error of the back end. *out must be closed with ops->close. */
int ps_storage_open_auto(struct ps_storage **out, const char *name,
                         const struct ps_storage_options *opt, char *why,
                         struct ps_error *err) PS_WARN_UNUSED;

/* The back ends themselves (ps_storage_open_fn). -EINVAL for options out of range: depth over 1024,
 * chunk_bytes not a multiple of PS_STORAGE_ALIGN or over 1 GiB. */
int ps_storage_open_uring(struct ps_storage **out, const struct ps_storage_options *opt,
                          struct ps_error *err) PS_WARN_UNUSED;
int ps_storage_open_threads(struct ps_storage **out, const struct ps_storage_options *opt,
                            struct ps_error *err) PS_WARN_UNUSED;
int ps_storage_open_ram(struct ps_storage **out, const struct ps_storage_options *opt,
                        struct ps_error *err) PS_WARN_UNUSED;
int ps_storage_open_null(struct ps_storage **out, const struct ps_storage_options *opt,
                         struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
