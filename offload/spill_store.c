/* The spill store at work: where chunks lie, what they must sum to, commits.
 *
 * Invariants.
 * 1. A slot that the committed map names is never written (but in `inplace` mode, which has one).
 * 2. committed[] and generation change only after the superblock's flush has returned.
 * 3. The superblock that is valid, and the table that it names, are never written.
 * 4. After the first error of a commit nothing is written and nothing is flushed any more.
 * 5. Nothing here allocates, but close's counterpart does not either. */
#include "offload/spill_store.h"

#include <assert.h>
#include <fcntl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "offload/spill_store_internal.h"

static struct ps_spill_store *store_of(struct ps_state_store *s)
{
    return (struct ps_spill_store *)(void *)s;
}

static const struct ps_spill_store *const_store_of(const struct ps_state_store *s)
{
    return (const struct ps_spill_store *)(const void *)s;
}

static int32_t write_slot(const struct ps_spill_store *s, uint32_t extent)
{
    return s->shape.mode == PS_SPILL_SHADOW && s->committed[extent] == 0 ? 1 : 0;
}

static int32_t read_slot(const struct ps_spill_store *s, uint32_t extent, enum ps_store_copy copy)
{
    return copy == PS_COPY_LATEST || s->shape.mode == PS_SPILL_INPLACE ? s->latest[extent]
                                                                       : s->committed[extent];
}

static int store_attach(struct ps_state_store *state, struct ps_storage *st, bool writable,
                        struct ps_error *err)
{
    return ps__spill_add_files(store_of(state), st, 0, writable, err);
}

static int map_chunk(const struct ps_spill_store *s, uint32_t extent, uint32_t chunk, int32_t slot,
                     bool write, void *memory, struct ps_transfer *out, int max)
{
    const struct ps__spill_shape *h = &s->shape;
    assert(extent < h->extent_count);
    assert(chunk < h->extent[extent].chunk_count);
    uint64_t bytes = ps__spill_chunk_bytes(h, extent, chunk);
    assert(max >= (int)ps_stripe_map_max(&h->stripe, bytes));
    (void)max;
    uint32_t n = ps_stripe_map(&h->stripe, 0, write, ps__spill_chunk_at(h, extent, chunk, slot),
                               bytes, memory, out);
    for (uint32_t i = 0; i < n; i++)
        out[i].offset += h->data_at[out[i].file > 0];
    return (int)n;
}

static int store_map_read(const struct ps_state_store *state, uint32_t extent, uint32_t chunk,
                          enum ps_store_copy copy, void *memory, struct ps_transfer *out, int max)
{
    const struct ps_spill_store *s = const_store_of(state);
    int32_t slot = read_slot(s, extent, copy);
    /* Of what was never written, check says so. */
    return map_chunk(s, extent, chunk, slot < 0 ? 0 : slot, false, memory, out, max);
}

static int store_map_write(const struct ps_state_store *state, uint32_t extent, uint32_t chunk,
                           void *memory, struct ps_transfer *out, int max)
{
    const struct ps_spill_store *s = const_store_of(state);
    return map_chunk(s, extent, chunk, write_slot(s, extent), true, memory, out, max);
}

static int store_map_max(const struct ps_state_store *state)
{
    const struct ps__spill_shape *h = &const_store_of(state)->shape;
    return (int)ps_stripe_map_max(&h->stripe, h->chunk_bytes_max);
}

static void store_seal(struct ps_state_store *state, uint32_t extent, uint32_t chunk,
                       const void *memory)
{
    struct ps_spill_store *s = store_of(state);
    const struct ps__spill_shape *h = &s->shape;
    uint64_t generation = s->generation + 1;
    s->sum[write_slot(s, extent)][h->chunk_first[extent] + chunk] = (struct ps__spill_sum){
        .sum = ps__spill_chunk_sum(h, extent, chunk, generation, memory),
        .generation = generation,
    };
}

static int store_check(const struct ps_state_store *state, uint32_t extent, uint32_t chunk,
                       enum ps_store_copy copy, const void *memory, struct ps_error *err)
{
    const struct ps_spill_store *s = const_store_of(state);
    const struct ps__spill_shape *h = &s->shape;
    int32_t slot = read_slot(s, extent, copy);
    const struct ps__spill_sum none = {0, 0};
    const struct ps__spill_sum *x =
        slot < 0 ? &none : &s->sum[slot][h->chunk_first[extent] + chunk];
    if (x->generation != 0 &&
        ps__spill_chunk_sum(h, extent, chunk, x->generation, memory) == x->sum)
        return 0;
    uint64_t at = ps__spill_chunk_at(h, extent, chunk, slot < 0 ? 0 : slot);
    uint64_t unit = at / h->stripe.unit_bytes, k = h->stripe.file_count;
    uint32_t file = (uint32_t)(unit % k);
    uint64_t offset = unit / k * h->stripe.unit_bytes + at % h->stripe.unit_bytes;
    if (x->generation == 0)
        return ps_error_full(err, PS_ECHECKSUM, s->file[file].path, h->extent[extent].name,
                             "resume from a checkpoint",
                             "%s, chunk %u: read before it was ever written",
                             h->extent[extent].name, chunk);
    return ps_error_full(err, PS_ECHECKSUM, s->file[file].path, h->extent[extent].name,
                         "resume from a checkpoint; check disk and memory (dmesg, smartctl)",
                         "silent corruption: %s, chunk %u of generation %llu at offset %llu is not "
                         "what was written",
                         h->extent[extent].name, chunk, (unsigned long long)x->generation,
                         (unsigned long long)(offset + h->data_at[file > 0]));
}

static void store_note_written(struct ps_state_store *state, uint32_t extent)
{
    struct ps_spill_store *s = store_of(state);
    s->latest[extent] = write_slot(s, extent);
}

static void store_revert(struct ps_state_store *state)
{
    struct ps_spill_store *s = store_of(state);
    if (s->shape.mode == PS_SPILL_INPLACE) /* there is no other copy */
        return;
    memcpy(s->latest, s->committed, s->shape.extent_count * sizeof *s->latest);
}

/* --- commit --- */

static void fill_super(struct ps_spill_store *s, void *block, uint64_t generation,
                       uint64_t table_bytes)
{
    const struct ps__spill_shape *h = &s->shape;
    struct ps__spill_super b = {
        .index = s->super_next,
        .generation = generation,
        .config_hash = s->config_hash,
        .mode = h->mode,
        .file_count = h->stripe.file_count,
        .extent_count = h->extent_count,
        .unit_bytes = h->stripe.unit_bytes,
        .run_state_max = h->run_state_max,
        .layout_at = h->layout_at,
        .layout_bytes = h->layout_bytes,
        .layout_sum = s->layout_sum,
        .table_at = h->table_at[s->table_next],
        .table_bytes = table_bytes,
        .table_sum = ps__spill_table_sum(h, generation, s->table, table_bytes),
    };
    memcpy(b.run, h->run, sizeof b.run);
    for (uint32_t i = 0; i < h->stripe.file_count; i++)
        memcpy(b.file_uuid[i], s->file[i].uuid, 16);
    ps__spill_super_encode(block, &b);
}

static int write_commit(struct ps_spill_store *s, const void *run_state, size_t bytes,
                        struct ps_error *err)
{
    const struct ps__spill_shape *h = &s->shape;
    struct ps_storage *st = s->st;
    uint64_t generation = s->generation + 1;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < h->stripe.file_count; i++)
        rc = st->ops->flush(st, i, err);
    if (rc < 0)
        return rc;
    uint64_t table_bytes = ps__spill_table_encode(s, generation, run_state, bytes);
    rc = ps__spill_move(s, true, h->table_at[s->table_next], table_bytes, s->table, err);
    if (rc == 0)
        rc = st->ops->flush(st, 0, err);
    if (rc < 0)
        return rc;
    fill_super(s, s->super, generation, table_bytes);
    rc = ps__spill_move(s, true, PS__SPILL_SUPER_AT * (s->super_next + 1), PS__SPILL_BLOCK,
                        s->super, err);
    return rc < 0 ? rc : st->ops->flush(st, 0, err);
}

static int store_commit(struct ps_state_store *state, const void *run_state, size_t bytes,
                        struct ps_error *err)
{
    struct ps_spill_store *s = store_of(state);
    if (s->failed)
        return ps_error_full(err, s->failed, s->file[0].path, NULL,
                             "end this run; --resume goes on from the last commit",
                             "an earlier commit failed (%s): nothing more is written",
                             ps_status_text(s->failed));
    if (bytes > s->shape.run_state_max)
        return ps_error_full(err, PS_EUSAGE, s->file[0].path, NULL, NULL,
                             "a run state of %zu bytes is over the %llu that the store was made "
                             "for",
                             bytes, (unsigned long long)s->shape.run_state_max);
    int rc = write_commit(s, run_state, bytes, err);
    if (rc < 0) {
        s->failed = rc;
        return ps_error_advice(err, rc,
                               "the commit before stays valid: see to the disk (dmesg, free "
                               "space), then --resume");
    }
    s->generation++;
    memcpy(s->committed, s->latest, s->shape.extent_count * sizeof *s->committed);
    s->super_next = 1 - s->super_next;
    s->table_next = 1 - s->table_next;
    return 0;
}

static uint64_t store_generation(const struct ps_state_store *state)
{
    return const_store_of(state)->generation;
}

static bool store_shadow(const struct ps_state_store *state)
{
    return const_store_of(state)->shape.mode == PS_SPILL_SHADOW;
}

static const struct ps_state_store_ops store_ops = {
    .attach = store_attach,
    .map_read = store_map_read,
    .map_write = store_map_write,
    .map_max = store_map_max,
    .seal = store_seal,
    .check = store_check,
    .note_written = store_note_written,
    .revert = store_revert,
    .commit = store_commit,
    .generation = store_generation,
    .shadow = store_shadow,
};

void ps__spill_set_ops(struct ps_spill_store *s)
{
    s->state.ops = &store_ops;
}

struct ps_state_store *ps_spill_store_state(struct ps_spill_store *s)
{
    return &s->state;
}

uint64_t ps_spill_store_config_hash(const struct ps_spill_store *s)
{
    return s->config_hash;
}

/* --- the end --- */

/* Only the file that was made or opened under this name. */
static int remove_file(const struct ps_spill_store *s, const struct ps__spill_file *f,
                       struct ps_error *err)
{
    struct stat sb;
    if (f->dir == PS__SPILL_NO_DIR)
        return 0;
    int dir = s->dir[f->dir].fd;
    const char *name = strrchr(f->path, '/') + 1;
    if (fstatat(dir, name, &sb, AT_SYMLINK_NOFOLLOW) != 0 || sb.st_ino != f->inode)
        return 0;
    return unlinkat(dir, name, 0) == 0
               ? 0
               : ps__spill_errno(err, f->path, "cannot remove a file of the spill store", NULL);
}

static void free_store(struct ps_spill_store *s)
{
    ps__spill_shape_fini(&s->shape);
    free(s->dir);
    free(s->file);
    free(s->committed);
    free(s->latest);
    free(s->sum[0]);
    free(s->sum[1]);
    free(s->table);
    free(s->super);
    free(s);
}

void ps__spill_destroy(struct ps_spill_store *s, bool remove)
{
    if (!s)
        return;
    if (s->st)
        s->st->ops->close(s->st);
    for (uint32_t i = 0; remove && s->file && i < s->shape.stripe.file_count; i++)
        PS_IGNORE(remove_file(s, &s->file[i], NULL), "the next creation removes it");
    for (uint32_t i = 0; s->dir && i < s->dir_count; i++) {
        if (remove && s->dir[i].made)
            ps__spill_dir_remove(&s->dir[i]);
        else
            ps__spill_dir_close(&s->dir[i]);
    }
    free_store(s);
}

void ps_spill_store_close(struct ps_spill_store *s)
{
    ps__spill_destroy(s, false);
}

int ps_spill_store_remove(struct ps_spill_store *s, struct ps_error *err)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < s->shape.stripe.file_count; i++)
        rc = remove_file(s, &s->file[i], err);
    for (uint32_t i = 0; i < s->dir_count; i++)
        s->dir[i].made = rc == 0;
    ps__spill_destroy(s, rc == 0);
    return rc;
}
