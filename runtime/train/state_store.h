/* The store of mutable state on disk, as the ground floor knows it; offload/spill_store.* fills the
 * table. Weights and optimizer states of trained units lie in it as extents.
 *
 * An extent has two slots (one in `inplace` mode). Reads come from the latest copy; writes go to
 * the slot that the committed map does not name; commit makes the latest copies the committed ones.
 * An extent is written and read in chunks, fixed when the store is made; each chunk has a checksum,
 * seeded with run, extent, chunk and generation.
 *
 * The store moves no data itself: `map` says which transfers a chunk needs, the lanes carry them
 * out with their own storage (attach), and tell seal (before a write) and check (after a read).
 *
 * Threads: map, seal and check may be called by several lanes at a time, for different chunks; a
 * chunk that is being written is not read. note_written, revert and commit: one thread at a time
 * and not beside another call on the same extents (the schedule sees to that); but the latest copy
 * may be read (map_read, check) while a commit is under way. */
#ifndef PS_TRAIN_STATE_STORE_H
#define PS_TRAIN_STATE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/train/storage.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One extent, as the trainer asks for it. Extents of a model are the same whatever the budgets,
 * placement and strategy. */
struct ps_store_extent {
    char name[64];                /* "layer.3.weights", "layer.3.state", "embed.weights", ... */
    uint64_t bytes;               /* a multiple of 4096; 0: there is nothing of this */
    const uint64_t *chunk_offset; /* (chunk_count + 1,) multiples of 4096, the last is `bytes` */
    uint32_t chunk_count;
};

enum ps_store_copy {
    PS_COPY_LATEST,    /* the last one written */
    PS_COPY_COMMITTED, /* what recovery would find */
};

struct ps_state_store_ops;

struct ps_state_store {
    const struct ps_state_store_ops *ops;
};

struct ps_state_store_ops {
    /* Add the files to a lane's storage (fresh: file numbers begin at 0). */
    int (*attach)(struct ps_state_store *s, struct ps_storage *st, bool writable,
                  struct ps_error *err);
    /* Transfers of one chunk, at most `max` (map_max says how many at most for any chunk); memory
     * page-aligned. Returns their count. */
    int (*map_read)(const struct ps_state_store *s, uint32_t extent, uint32_t chunk,
                    enum ps_store_copy copy, void *memory, struct ps_transfer *out, int max);
    int (*map_write)(const struct ps_state_store *s, uint32_t extent, uint32_t chunk, void *memory,
                     struct ps_transfer *out, int max);
    int (*map_max)(const struct ps_state_store *s);
    /* Remember the checksum of a chunk that is about to be written. */
    void (*seal)(struct ps_state_store *s, uint32_t extent, uint32_t chunk, const void *memory);
    /* Is this what was written? PS_ECHECKSUM names file, extent, chunk, generation and remedy. */
    int (*check)(const struct ps_state_store *s, uint32_t extent, uint32_t chunk,
                 enum ps_store_copy copy, const void *memory, struct ps_error *err);
    /* All chunks of the extent have been written: from now on the latest copy is the new one. */
    void (*note_written)(struct ps_state_store *s, uint32_t extent);
    /* Forget what was written since the last commit, all extents: the latest copy is the committed
     * one again. */
    void (*revert)(struct ps_state_store *s);
    /* Flush, write the table of the new generation and a superblock with the run's state (`bytes`,
     * opaque; at most run_state_max). When this returns 0, recovery finds this generation. An error
     * is final: nothing more may be written; the generation before stays valid. */
    int (*commit)(struct ps_state_store *s, const void *run_state, size_t bytes,
                  struct ps_error *err);
    /* Generation of the last commit: 0 when nothing has been committed. */
    uint64_t (*generation)(const struct ps_state_store *s);
    /* Two slots an extent: revert and PS_COPY_COMMITTED mean something (not in `inplace` mode). */
    bool (*shadow)(const struct ps_state_store *s);
};

#ifdef __cplusplus
}
#endif
#endif
