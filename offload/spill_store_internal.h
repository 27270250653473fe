/* What the files of the spill store share. docs/spill-store.md describes the format.
 *
 *   spill_store_shape.c    sizes and offsets
 *   spill_store_format.c   seeds of checksums; blocks and tables to bytes and back
 *   spill_store_dir.c      directories, locks, names, what may be removed
 *   spill_store_create.c   a new store
 *   spill_store_open.c     memory, storage; a store that exists
 *   spill_store_recover.c  its files, superblocks and table found
 *   spill_store.c          the table for the trainer; commit; close and remove
 *   spill_store_info.c     what `inspect` shows; verify */
#ifndef PS_OFFLOAD_SPILL_STORE_INTERNAL_H
#define PS_OFFLOAD_SPILL_STORE_INTERNAL_H

#include <limits.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "offload/spill_store.h"
#include "offload/stripe.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS__SPILL_BLOCK ((uint64_t)4096)
#define PS__SPILL_SUPER_AT ((uint64_t)1 << 20) /* of superblock 0; 1 is as far behind it */
#define PS__SPILL_UNIT ((uint64_t)4 << 20)
#define PS__SPILL_UNIT_MAX ((uint64_t)1 << 40)
#define PS__SPILL_FILES_MAX PS_STRIPE_PATHS_MAX
#define PS__SPILL_EXTENTS_MAX ((uint64_t)1 << 20)
#define PS__SPILL_CHUNKS_MAX ((uint64_t)1 << 26)
#define PS__SPILL_RUN_STATE ((uint64_t)1 << 20) /* run_state_max by default */
#define PS__SPILL_STATE_MAX ((uint64_t)1 << 30)
#define PS__SPILL_PATH_BYTES 496 /* of a recorded path, with its NUL */
/* Sizes of the layout's and the table's heads and entries. */
#define PS__SPILL_AREA_HEAD 64
#define PS__SPILL_FILE_ENTRY 512
#define PS__SPILL_EXTENT_ENTRY 80
#define PS__SPILL_NO_DIR UINT32_MAX

/* A chunk as it was last written to a slot; generation 0: never. */
struct ps__spill_sum {
    uint64_t sum, generation;
};

/* What never changes after creation: written to the layout area, named by every superblock. */
struct ps__spill_shape {
    uint8_t run[16];
    enum ps_spill_mode mode;
    struct ps_stripe_layout stripe;
    uint64_t run_state_max;
    uint32_t extent_count;
    struct ps_store_extent *extent; /* chunk_offset points into chunk_offset below */
    uint64_t *chunk_offset;         /* chunk_count + extent_count, each extent's own list */
    uint64_t *extent_at;            /* of an extent within a slot's region */
    uint64_t *chunk_first;          /* number of an extent's first chunk among all */
    uint64_t chunk_count, chunk_bytes_max;
    uint64_t slot_bytes; /* all extents together */
    /* Where things lie in file 0. */
    uint64_t layout_at, layout_bytes, table_at[2], table_bytes_max, data_at[2]; /* file 0, others */
};

struct ps__spill_file {
    uint8_t uuid[16];
    uint64_t bytes;
    uint32_t dir; /* in ps_spill_store.dir; PS__SPILL_NO_DIR: not found or not made */
    ino_t inode;  /* to remove only what is ours */
    char path[PATH_MAX + 128];
    char recorded[PS__SPILL_PATH_BYTES]; /* directory at creation, "" when too long */
};

struct ps__spill_dir {
    int parent; /* the user's directory; -1: not opened */
    int fd;     /* ours; -1 */
    int lock;   /* -1: not locked */
    bool made;  /* by this process */
    char root[PATH_MAX];
    char path[PATH_MAX + 64];
};

/* A superblock, decoded. */
struct ps__spill_super {
    uint8_t run[16];
    uint32_t index;
    uint64_t generation, config_hash;
    uint32_t mode, file_count, extent_count;
    uint64_t unit_bytes, run_state_max;
    uint64_t layout_at, layout_bytes, layout_sum;
    uint64_t table_at, table_bytes, table_sum;
    uint8_t file_uuid[PS__SPILL_FILES_MAX][16];
};

struct ps__spill_header {
    uint8_t run[16], uuid[16];
    uint32_t index, file_count;
    uint64_t bytes;
};

/* What a block is: zeros; torn or damaged; whole, but of another run; ours. */
enum ps__super_state { PS__SUPER_BLANK, PS__SUPER_BAD, PS__SUPER_FOREIGN, PS__SUPER_OK };

struct ps_spill_store {
    struct ps_state_store state;
    struct ps__spill_shape shape; /* constant after open */
    struct ps__spill_dir *dir;    /* (dir_count,) */
    uint32_t dir_count;
    struct ps__spill_file *file; /* (shape.stripe.file_count,) */
    struct ps_storage *st;
    struct ps_log log;
    bool writable;
    uint64_t config_hash, layout_sum;
    uint64_t generation;
    enum ps__super_state super_state[2];    /* as found at open */
    uint32_t super_next, table_next;        /* where the next commit goes */
    int failed;                             /* the first error of a commit; final */
    int32_t *committed, *latest;            /* (extent_count,) slots; -1: none */
    struct ps__spill_sum *sum[2];           /* by slot: (chunk_count,) */
    char *table;                            /* table_bytes_max, page-aligned */
    char *super;                            /* two blocks, page-aligned */
    uint64_t run_state_at, run_state_bytes; /* in table, after recovery */
};

/* --- spill_store_shape.c --- */

/* 36 characters to 16 bytes; false when it is no UUID of lower-case digits. */
bool ps__spill_uuid_parse(uint8_t out[16], const char *text);
void ps__spill_uuid_text(char out[37], const uint8_t uuid[16]);

/* Sizes and offsets from extents, mode, stripe and run_state_max. -EOVERFLOW, PS_EUSAGE. */
int ps__spill_shape_init(struct ps__spill_shape *h, const struct ps_store_extent *extent,
                         uint32_t extent_count, struct ps_error *err) PS_WARN_UNUSED;
void ps__spill_shape_fini(struct ps__spill_shape *h);
uint64_t ps__spill_file_bytes(const struct ps__spill_shape *h, uint32_t file);
/* Where slot `slot` of a chunk begins in the logical file. */
uint64_t ps__spill_chunk_at(const struct ps__spill_shape *h, uint32_t extent, uint32_t chunk,
                            int32_t slot);
uint64_t ps__spill_chunk_bytes(const struct ps__spill_shape *h, uint32_t extent, uint32_t chunk);

/* --- spill_store_format.c --- */

uint64_t ps__spill_chunk_sum(const struct ps__spill_shape *h, uint32_t extent, uint32_t chunk,
                             uint64_t generation, const void *memory);

/* The block at the start of every file. run: NULL takes any. */
void ps__spill_header_encode(void *block, const uint8_t run[16], const struct ps__spill_file *f,
                             uint32_t index, uint32_t file_count);
enum ps__super_state ps__spill_header_decode(struct ps__spill_header *out, const void *block,
                                             const uint8_t run[16]);

void ps__spill_super_encode(void *block, const struct ps__spill_super *b);
enum ps__super_state ps__spill_super_decode(struct ps__spill_super *b, const void *block,
                                            uint32_t index, const uint8_t run[16]);

/* The layout area: layout_bytes at layout_at. */
void ps__spill_layout_encode(void *area, const struct ps__spill_shape *h,
                             const struct ps__spill_file *file);
/* Fills h (but for run, mode, stripe.unit_bytes and run_state_max, which are set) and the files'
 * bytes and recorded paths. */
int ps__spill_layout_decode(struct ps__spill_shape *h, struct ps__spill_file *file,
                            const void *area, uint64_t bytes, struct ps_error *err) PS_WARN_UNUSED;
uint64_t ps__spill_layout_sum(const struct ps__spill_shape *h, const void *area, uint64_t bytes);

/* The table of `generation` with the latest slots, in s->table; returns its bytes, padded. */
uint64_t ps__spill_table_encode(struct ps_spill_store *s, uint64_t generation,
                                const void *run_state, size_t bytes);
/* s->table holds `bytes`: fills committed, latest, sums and the place of the run state. */
int ps__spill_table_decode(struct ps_spill_store *s, uint64_t generation, uint64_t bytes,
                           struct ps_error *err) PS_WARN_UNUSED;
uint64_t ps__spill_table_sum(const struct ps__spill_shape *h, uint64_t generation,
                             const void *table, uint64_t bytes);

/* --- spill_store_dir.c --- */

int ps__spill_errno(struct ps_error *err, const char *path, const char *what, const char *advice);
void ps__spill_file_name(char name[16], uint32_t index);
/* Open the user's directory: no symlink, not writable by everybody. d->root is set. */
int ps__spill_dir_parent(struct ps__spill_dir *d, struct ps_error *err) PS_WARN_UNUSED;
/* Open our directory below it; 0 with d->fd = -1 when there is none. make: make it. */
int ps__spill_dir_open(struct ps__spill_dir *d, const char *run_uuid, bool make,
                       struct ps_error *err) PS_WARN_UNUSED;
/* Lock it for the life of the descriptor; -EBUSY names the holder. writable: makes the lock file
 * and writes our pid for the message of others. */
int ps__spill_dir_lock(struct ps__spill_dir *d, bool writable, struct ps_error *err) PS_WARN_UNUSED;
/* Whether somebody else holds it. */
bool ps__spill_dir_is_locked(const struct ps__spill_dir *d);
/* Remove lock file and directory, when nothing else is in it; then close. */
void ps__spill_dir_remove(struct ps__spill_dir *d);
void ps__spill_dir_close(struct ps__spill_dir *d);
/* The block at `offset` of a file, opened without following links; zeros behind its end. -ENOENT,
 * without a message, when there is no such name. */
int ps__spill_read_block(const struct ps__spill_dir *d, const char *name, uint64_t offset,
                         void *block, struct stat *sb, struct ps_error *err) PS_WARN_UNUSED;

/* --- spill_store_open.c --- */

/* A store that has nothing but room for its directories (roots set from opt->path). */
int ps__spill_alloc(struct ps_spill_store **out, const struct ps_spill_store_options *opt,
                    struct ps_error *err) PS_WARN_UNUSED;
/* Close everything; remove: the files that this process made or found, and the directories. */
void ps__spill_destroy(struct ps_spill_store *s, bool remove);
/* s->file, for shape.stripe.file_count files. */
int ps__spill_alloc_files(struct ps_spill_store *s, struct ps_error *err) PS_WARN_UNUSED;
/* Arrays and buffers by shape. */
int ps__spill_alloc_tables(struct ps_spill_store *s, struct ps_error *err) PS_WARN_UNUSED;
/* Open s->st and add file `first` and the following. */
int ps__spill_open_storage(struct ps_spill_store *s, const struct ps_spill_store_options *opt,
                           struct ps_error *err) PS_WARN_UNUSED;
int ps__spill_add_files(struct ps_spill_store *s, struct ps_storage *st, uint32_t first,
                        bool writable, struct ps_error *err) PS_WARN_UNUSED;
/* Transfer within file 0 and wait for it. */
int ps__spill_move(struct ps_spill_store *s, bool write, uint64_t at, uint64_t bytes, void *memory,
                   struct ps_error *err) PS_WARN_UNUSED;
void *ps__spill_page_aligned(uint64_t bytes);
int ps__spill_no_memory(struct ps_error *err);

/* --- spill_store_recover.c --- */

/* Directories are open (and locked, where that is wanted): find file 0 there, the superblocks, the
 * layout and the table. damage: what did not hinder recovery; code 0: nothing. */
int ps__spill_recover(struct ps_spill_store *s, const struct ps_spill_store_options *opt,
                      struct ps_error *damage, struct ps_error *err) PS_WARN_UNUSED;
/* Find the other files in the directories, by name and header, and add them to the storage. */
int ps__spill_find_files(struct ps_spill_store *s, struct ps_error *err) PS_WARN_UNUSED;

/* --- spill_store.c --- */

void ps__spill_set_ops(struct ps_spill_store *s);

#ifdef __cplusplus
}
#endif
#endif
