/* A store in memory: its parts allocated, its storage opened, found and locked by
 * ps_spill_store_open. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "offload/spill_store_internal.h"
#include "offload/storage_backends.h"

void *ps__spill_page_aligned(uint64_t bytes)
{
    uint64_t n = (bytes + PS__SPILL_BLOCK - 1) / PS__SPILL_BLOCK * PS__SPILL_BLOCK;
    return aligned_alloc(PS__SPILL_BLOCK, (size_t)n);
}

int ps__spill_no_memory(struct ps_error *err)
{
    return ps_error_set(err, -ENOMEM, "spill store: out of memory");
}

int ps__spill_alloc(struct ps_spill_store **out, const struct ps_spill_store_options *opt,
                    struct ps_error *err)
{
    struct ps_spill_store *s = calloc(1, sizeof *s);
    if (!s)
        return ps__spill_no_memory(err);
    *out = s;
    ps__spill_set_ops(s);
    if (opt->log)
        s->log = *opt->log;
    s->dir = calloc(opt->path_count, sizeof *s->dir);
    s->super = ps__spill_page_aligned(2 * PS__SPILL_BLOCK);
    if (!s->dir || !s->super)
        return ps__spill_no_memory(err);
    for (uint32_t i = 0; i < opt->path_count; i++) {
        struct ps__spill_dir *d = &s->dir[i];
        d->parent = d->fd = d->lock = -1;
        s->dir_count++;
        size_t n = strlen(opt->path[i]);
        if (n == 0 || n >= sizeof d->root)
            return ps_error_set(err, PS_EUSAGE, "a path of the spill store is empty or too long");
        memcpy(d->root, opt->path[i], n + 1);
        while (n > 1 && d->root[n - 1] == '/') /* a trailing slash would follow a symlink */
            d->root[--n] = '\0';
    }
    return 0;
}

int ps__spill_alloc_files(struct ps_spill_store *s, struct ps_error *err)
{
    s->file = calloc(s->shape.stripe.file_count, sizeof *s->file);
    if (!s->file)
        return ps__spill_no_memory(err);
    for (uint32_t i = 0; i < s->shape.stripe.file_count; i++)
        s->file[i].dir = PS__SPILL_NO_DIR;
    return 0;
}

int ps__spill_alloc_tables(struct ps_spill_store *s, struct ps_error *err)
{
    const struct ps__spill_shape *h = &s->shape;
    uint64_t bytes = h->layout_bytes > h->table_bytes_max ? h->layout_bytes : h->table_bytes_max;
    size_t chunks = (size_t)h->chunk_count + 1;
    int rc = s->file ? 0 : ps__spill_alloc_files(s, err);
    if (rc < 0)
        return rc;
    s->committed = calloc(h->extent_count, sizeof *s->committed);
    s->latest = calloc(h->extent_count, sizeof *s->latest);
    s->sum[0] = calloc(chunks, sizeof *s->sum[0]);
    s->sum[1] = h->mode == PS_SPILL_INPLACE ? NULL : calloc(chunks, sizeof *s->sum[1]);
    s->table = ps__spill_page_aligned(bytes);
    if (!s->committed || !s->latest || !s->sum[0] || !s->table ||
        (!s->sum[1] && h->mode != PS_SPILL_INPLACE))
        return ps__spill_no_memory(err);
    memset(s->table, 0, (size_t)bytes); /* its pages are there before training begins */
    for (uint32_t i = 0; i < h->extent_count; i++)
        s->committed[i] = s->latest[i] = -1;
    return 0;
}

static int open_auto(struct ps_storage **out, const struct ps_storage_options *opt,
                     struct ps_error *err)
{
    return ps_storage_open_auto(out, NULL, opt, NULL, err);
}

int ps__spill_open_storage(struct ps_spill_store *s, const struct ps_spill_store_options *opt,
                           struct ps_error *err)
{
    struct ps_storage_options o = opt->storage;
    o.arena = NULL; /* not the lanes': our tables are elsewhere */
    o.arena_bytes = 0;
    o.depth = 2;
    o.transfer_max = 8;
    o.file_max = s->shape.stripe.file_count;
    if (!o.log)
        o.log = opt->log;
    return (opt->open ? opt->open : open_auto)(&s->st, &o, err);
}

int ps__spill_add_files(struct ps_spill_store *s, struct ps_storage *st, uint32_t first,
                        bool writable, struct ps_error *err)
{
    for (uint32_t i = first; i < s->shape.stripe.file_count; i++) {
        int n = st->ops->add_file(st, s->file[i].path, writable, NULL, err);
        if (n < 0)
            return n;
        if ((uint32_t)n != i)
            return ps_error_full(err, -EINVAL, s->file[i].path, NULL, NULL,
                                 "a storage that has other files cannot be attached to a store");
    }
    return 0;
}

int ps__spill_move(struct ps_spill_store *s, bool write, uint64_t at, uint64_t bytes, void *memory,
                   struct ps_error *err)
{
    struct ps_transfer x = {
        .write = write, .offset = at, .bytes = bytes, .expect = bytes, .memory = memory};
    uint64_t ticket = 0;
    int rc = s->st->ops->submit(s->st, &x, &ticket, err);
    return rc < 0 ? rc : s->st->ops->wait(s->st, ticket, err);
}

static int check_same(const struct ps_spill_store *s, const struct ps_spill_store_options *opt,
                      struct ps_error *err)
{
    const struct ps__spill_shape *h = &s->shape;
    bool same = opt->extent_count == h->extent_count;
    uint32_t i = 0;
    for (; same && i < h->extent_count; i++) {
        const struct ps_store_extent *a = &h->extent[i], *b = &opt->extent[i];
        same = strcmp(a->name, b->name) == 0 && a->bytes == b->bytes &&
               a->chunk_count == b->chunk_count;
        if (same && a->chunk_count > 0)
            same = memcmp(a->chunk_offset, b->chunk_offset,
                          (a->chunk_count + (size_t)1) * sizeof *a->chunk_offset) == 0;
        if (!same)
            break;
    }
    if (same)
        return 0;
    const char *name = i < opt->extent_count && i < h->extent_count ? opt->extent[i].name : "count";
    return ps_error_full(err, PS_EUSAGE, s->file[0].path, name,
                         "resume with the model, method and optimizer that the run had",
                         "the spill store holds other extents (%u) than this run has (%u): the "
                         "first difference is at %s",
                         h->extent_count, opt->extent_count, name);
}

static bool seen_before(const struct ps_spill_store *s, uint32_t dir)
{
    struct stat a, b;
    if (fstat(s->dir[dir].fd, &a) != 0)
        return false;
    for (uint32_t i = 0; i < dir; i++) {
        if (s->dir[i].fd >= 0 && fstat(s->dir[i].fd, &b) == 0 && a.st_ino == b.st_ino &&
            a.st_dev == b.st_dev)
            return true;
    }
    return false;
}

static int open_dirs(struct ps_spill_store *s, const char *run_uuid, struct ps_error *err)
{
    for (uint32_t i = 0; i < s->dir_count; i++) {
        struct ps__spill_dir *d = &s->dir[i];
        int rc = ps__spill_dir_parent(d, err);
        if (rc == 0)
            rc = ps__spill_dir_open(d, run_uuid, false, err);
        if (rc == 0 && d->fd >= 0 && seen_before(s, i))
            ps__spill_dir_close(d);
        else if (rc == 0 && d->fd >= 0)
            rc = ps__spill_dir_lock(d, true, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int open_store(struct ps_spill_store *s, const struct ps_spill_store_options *opt,
                      void **run_state, size_t *bytes, struct ps_error *err)
{
    s->writable = true;
    int rc = open_dirs(s, opt->run_uuid, err);
    if (rc == 0)
        rc = ps__spill_recover(s, opt, NULL, err);
    if (rc == 0)
        rc = ps__spill_find_files(s, err);
    if (rc == 0 && opt->extent)
        rc = check_same(s, opt, err);
    if (rc < 0)
        return rc;
    char *state = malloc((size_t)s->run_state_bytes + 1);
    if (!state)
        return ps__spill_no_memory(err);
    memcpy(state, s->table + s->run_state_at, (size_t)s->run_state_bytes);
    state[s->run_state_bytes] = '\0';
    *run_state = state;
    *bytes = (size_t)s->run_state_bytes;
    return 0;
}

int ps_spill_store_open(struct ps_spill_store **out, const struct ps_spill_store_options *opt,
                        void **run_state, size_t *bytes, struct ps_error *err)
{
    struct ps_spill_store *s = NULL;
    uint8_t run[16];
    if (opt->path_count == 0 || opt->path_count > PS__SPILL_FILES_MAX ||
        !ps__spill_uuid_parse(run, opt->run_uuid))
        return ps_error_set(err, PS_EUSAGE, "a spill store needs 1 to %d paths and a run's UUID",
                            PS__SPILL_FILES_MAX);
    int rc = ps__spill_alloc(&s, opt, err);
    if (rc == 0) {
        memcpy(s->shape.run, run, sizeof run);
        rc = open_store(s, opt, run_state, bytes, err);
    }
    if (rc < 0) {
        ps__spill_destroy(s, false);
        return rc;
    }
    *out = s;
    return 0;
}
