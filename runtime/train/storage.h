/* Storage back ends: the table that the ground floor knows and offload/ fills.
 *
 * One struct ps_storage belongs to one lane and is used by one thread at a time. A transfer is one
 * contiguous range of one file; the back end cuts it into requests of at most chunk_bytes, keeps at most
 * `depth` requests in flight over all transfers, continues short transfers, checks every result. */
#ifndef PS_TRAIN_STORAGE_H
#define PS_TRAIN_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/log.h"
#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_STORAGE_ALIGN ((uint64_t)4096) /* of memory, offset and length of direct transfers */

struct ps_storage_ops;

struct ps_storage {
    const struct ps_storage_ops *ops;
};

struct ps_storage_options {
    uint32_t depth;         /* requests in flight; 0: 8 */
    uint32_t chunk_bytes;   /* 0: 4 MiB; a multiple of PS_STORAGE_ALIGN */
    uint32_t transfer_max;  /* transfers queued or in flight; 0: 4096 */
    uint32_t file_max;      /* 0: 256 */
    void *arena;            /* memory that transfers will use, for registration; may be NULL */
    uint64_t arena_bytes;
    double warn_s, abort_s; /* watchdog: no completion for so long; 0: 30 and 120 */
    const struct ps_log *log;
};

struct ps_transfer {
    uint32_t file; /* of add_file */
    bool write;
    uint64_t offset;   /* in the file */
    uint64_t bytes;    /* to move; a read may end at the end of file: see expect */
    uint64_t expect;   /* bytes that must arrive (<= bytes): min(bytes, file size - offset) */
    void *memory;
};

struct ps_storage_counters {
    uint64_t read_bytes, write_bytes; /* as the kernel counts them: bytes of completed requests */
    uint64_t requests, short_transfers, retries;
};

struct ps_storage_ops {
    const char *name; /* "io_uring", "threads", "ram", "null", "fault" */
    /* Add a file. path is opened here (O_DIRECT when the back end and the file system allow; symlinks
     * are followed for reading). *direct, or NULL, says whether direct transfers are used. Returns the
     * file index, or an error naming the file. */
    int (*add_file)(struct ps_storage *st, const char *path, bool writable, bool *direct,
                    struct ps_error *err);
    /* Queue a transfer; *ticket receives its number (1, 2, ...). Returns 0, or -EAGAIN when
     * transfer_max are queued. */
    int (*submit)(struct ps_storage *st, const struct ps_transfer *x, uint64_t *ticket,
                  struct ps_error *err);
    /* Wait until the transfer is complete. Errors name file, offset and remedy: -EIO and kin after the
     * allowed re-reads, PS_EFORMAT when the file is shorter than planned, -ETIMEDOUT from the watchdog. */
    int (*wait)(struct ps_storage *st, uint64_t ticket, struct ps_error *err);
    /* Make written data durable (fdatasync of a file). A failure is final: never retried. */
    int (*flush)(struct ps_storage *st, uint32_t file, struct ps_error *err);
    void (*counters)(const struct ps_storage *st, struct ps_storage_counters *out);
    /* Waits for what is in flight, closes the files. */
    void (*close)(struct ps_storage *st);
};

/* Opens a back end; the wing's registry fills a table of these. */
typedef int (*ps_storage_open_fn)(struct ps_storage **out, const struct ps_storage_options *opt,
                                  struct ps_error *err);

#ifdef __cplusplus
}
#endif
#endif
