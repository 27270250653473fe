/* The spill store: mutable extents on disk, two slots each, every commit a checkpoint.
 *
 * Per path one preallocated, once-written file (several are striped, unit 4 MiB) in a directory of
 * ours, `PATH/penstock-UUID/` (0700; files 0600, fixed names), locked by flock for the life of the
 * store. The first file holds two superblocks (4 KiB each, 1 MiB apart, written alternately) that
 * list all files; each generation's extent table lies in one of two areas, named by its superblock.
 *
 * Commit: flush every file, write the table, flush, write the superblock that is not the valid one
 * with its own checksum, flush. Recovery: of the superblocks that are whole, belong to this store
 * and name a whole table, the one with the highest generation; none: refuse. After a failed write
 * or flush nothing more is written.
 *
 * See runtime/train/state_store.h for how a trainer uses it. */
#ifndef PS_OFFLOAD_SPILL_STORE_H
#define PS_OFFLOAD_SPILL_STORE_H

#include "runtime/base/log.h"
#include "runtime/train/state_store.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_spill_store;

enum ps_spill_mode {
    PS_SPILL_SHADOW,  /* two slots: the committed copy is never overwritten */
    PS_SPILL_INPLACE, /* one slot: half the space, a kill in the middle of a step loses the run */
};

struct ps_spill_store_options {
    const char *const *path; /* (path_count,) existing directories, one a disk */
    uint32_t path_count;
    const char *run_uuid; /* 36 characters */
    uint64_t config_hash; /* of the options that are numerical; kept, compared by the session */
    enum ps_spill_mode mode;
    const struct ps_store_extent *extent; /* (extent_count,) copied */
    uint32_t extent_count;
    uint64_t run_state_max; /* bytes of run state a commit may carry; 0: 1 MiB */
    uint64_t unit_bytes;    /* of the stripe over several paths, a multiple of 4096; 0: 4 MiB */
    /* Back end for the store's own reads and writes (superblocks, tables), opened like a lane's. */
    ps_storage_open_fn open;
    struct ps_storage_options storage;
    const struct ps_log *log;
    /* Asked while a new store is being written, which takes minutes: true ends it, PS_ESTOPPED. May
     * be NULL. */
    bool (*stop)(void *arg);
    void *stop_arg;
};

/* Bytes on disk that a store of these extents takes, all files together. */
uint64_t ps_spill_store_bytes(const struct ps_store_extent *extent, uint32_t extent_count,
                              enum ps_spill_mode mode, uint64_t run_state_max, uint32_t path_count);

/* Bytes of memory that an open store keeps, without its storage. */
uint64_t ps_spill_store_memory(const struct ps_store_extent *extent, uint32_t extent_count,
                               enum ps_spill_mode mode, uint64_t run_state_max,
                               uint32_t path_count);

/* Make a new store: checks free space first (PS_ENOFIT with need and have), allocates, writes
 * zeros, syncs files and directory. Nothing is committed yet; an interrupted creation is removed by
 * the next one. Errors: PS_EUSAGE (paths), PS_EBUSY-like when another process holds it (message
 * says pid and what to do), -ENOSPC, -EROFS, -EACCES ... with the remedy. */
int ps_spill_store_create(struct ps_spill_store **out, const struct ps_spill_store_options *opt,
                          struct ps_error *err) PS_WARN_UNUSED;

/* Open what a run left behind, whatever killed it; opt->path are the directories that hold the
 * store's own directory (they may differ from those of the run: moved disks), extents must be those
 * of the store (names, sizes and chunks). *run_state (malloc'd, *bytes long) is that of the last
 * commit. PS_EFORMAT: no valid generation; PS_ECHECKSUM: damaged; both with the remedy. */
int ps_spill_store_open(struct ps_spill_store **out, const struct ps_spill_store_options *opt,
                        void **run_state, size_t *bytes, struct ps_error *err) PS_WARN_UNUSED;

/* Unlock and close; the files stay. NULL is legal. */
void ps_spill_store_close(struct ps_spill_store *s);
/* Remove the files of a store that is open, then close it. */
int ps_spill_store_remove(struct ps_spill_store *s, struct ps_error *err) PS_WARN_UNUSED;

/* Give up the store of a run in `path` without opening it: its files, known by name and header, and its
 * directory. Nothing there: 0. -EBUSY: a process has it open. */
int ps_spill_store_discard(const char *path, const char *run_uuid,
                           struct ps_error *err) PS_WARN_UNUSED;

/* The table for a trainer; valid until close. */
struct ps_state_store *ps_spill_store_state(struct ps_spill_store *s);
/* config_hash of the options that the store was made with. */
uint64_t ps_spill_store_config_hash(const struct ps_spill_store *s);

/* What a store directory (PATH/penstock-UUID that has data-0) holds, without locking or changing
 * it: for `inspect`. -ENOENT and PS_ECHECKSUM: it is no store, or its first block is damaged. */
struct ps_spill_info {
    char run_uuid[37];
    uint64_t generation, config_hash, bytes;
    enum ps_spill_mode mode;
    uint32_t file_count, extent_count;
    bool superblock_ok[2];
    bool locked;                    /* a process has it open now */
    bool usable;                    /* recovery would succeed; false: damage says why not */
    struct ps_error damage;         /* what is wrong; code 0: nothing was found. Generation 0: no
                                       commit can be read, extents and run state are absent */
    struct ps_store_extent *extent; /* (extent_count,) names and bytes; malloc'd */
    int32_t *slot;                  /* (extent_count,) committed slot, malloc'd */
    void *run_state;                /* malloc'd */
    size_t run_state_bytes;
};
int ps_spill_info_read(struct ps_spill_info *out, const char *dir,
                       struct ps_error *err) PS_WARN_UNUSED;
void ps_spill_info_fini(struct ps_spill_info *i);
/* Read every chunk of the committed generation and check it; calls bad(arg, extent, chunk, err) for
 * each that is wrong and goes on; extent UINT32_MAX: a superblock or table that recovery did
 * without. The store is locked meanwhile (-EBUSY while a run has it). Other files are looked for in
 * `dir` and where the run had them. Returns how many were wrong, or an error: nothing could be
 * checked. */
int ps_spill_verify(const char *dir,
                    void (*bad)(void *arg, uint32_t extent, uint32_t chunk,
                                const struct ps_error *err),
                    void *arg, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
