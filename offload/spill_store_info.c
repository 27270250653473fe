/* A spill store from outside: what it holds, and whether every committed byte is what was written.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "offload/spill_store_internal.h"
#include "offload/storage_backends.h"
#include "runtime/base/file.h"

/* Open `dir`, the store's own directory, without its lock. */
static int open_own_dir(struct ps__spill_dir *d, const char *path, struct ps_error *err)
{
    d->parent = d->fd = d->lock = -1;
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof d->root)
        return ps_error_set(err, PS_EUSAGE, "the path of the spill store is empty or too long");
    memcpy(d->path, path, n + 1);
    while (n > 1 && d->path[n - 1] == '/')
        d->path[--n] = '\0';
    d->fd = open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return d->fd >= 0 ? 0
                      : ps__spill_errno(err, d->path, "cannot open the spill store",
                                        "name a directory penstock-UUID");
}

/* The directories of the other files, as the run had them. */
static int open_recorded(struct ps_spill_store *s, struct ps_error *err)
{
    uint32_t files = s->shape.stripe.file_count;
    struct ps__spill_dir *more = realloc(s->dir, (files + (size_t)1) * sizeof *more);
    if (!more)
        return ps_error_set(err, -ENOMEM, "spill store: out of memory");
    s->dir = more;
    char uuid[37];
    ps__spill_uuid_text(uuid, s->shape.run);
    for (uint32_t i = 1; i < files; i++) {
        struct ps__spill_dir *d = &s->dir[s->dir_count];
        char path[sizeof d->path];
        memset(d, 0, sizeof *d);
        d->parent = d->fd = d->lock = -1;
        if (!s->file[i].recorded[0])
            continue;
        int n = snprintf(path, sizeof path, "%s/penstock-%s", s->file[i].recorded, uuid);
        if (n > 0 && (size_t)n < sizeof d->root && open_own_dir(d, path, NULL) == 0)
            s->dir_count++;
    }
    return 0;
}

/* The run's UUID is that of file 0's header. */
static int find_run(struct ps_spill_store *s, struct ps_error *err)
{
    struct ps__spill_header h;
    struct stat sb;
    const char *path = s->dir[0].path;
    int rc = ps__spill_read_block(&s->dir[0], "data-0", 0, s->super, &sb, err);
    if (rc == -ENOENT)
        return ps_error_full(err, rc, path, "data-0",
                             "name the directory that has the first file of the store",
                             "the directory holds no file data-0 of a spill store");
    if (rc < 0)
        return rc;
    enum ps__super_state state = ps__spill_header_decode(&h, s->super, NULL);
    if (state == PS__SUPER_BLANK)
        return ps_error_full(err, PS_EFORMAT, path, "data-0", "start the run anew",
                             "the spill store is unfinished: its creation was interrupted");
    if (state != PS__SUPER_OK)
        return ps_error_full(err, PS_ECHECKSUM, path, "data-0", "resume from a checkpoint",
                             "data-0 has a damaged header, or is no file of a spill store");
    memcpy(s->shape.run, h.run, sizeof h.run);
    return 0;
}

/* A store to look at; *out may be set on failure too. */
static int open_look(struct ps_spill_store **out, const char *dir, bool lock,
                     struct ps_error *damage, struct ps_error *err)
{
    const struct ps_spill_store_options opt = {.path = &dir, .path_count = 1};
    int rc = ps__spill_alloc(out, &opt, err);
    if (rc < 0)
        return rc;
    struct ps_spill_store *s = *out;
    rc = open_own_dir(&s->dir[0], dir, err);
    if (rc == 0 && lock)
        rc = ps__spill_dir_lock(&s->dir[0], false, err);
    if (rc == 0)
        rc = find_run(s, err);
    if (rc == 0)
        rc = ps__spill_recover(s, &opt, damage, err);
    if (rc == 0)
        rc = open_recorded(s, err);
    return rc;
}

static int fill_info(struct ps_spill_info *out, struct ps_spill_store *s, struct ps_error *err)
{
    const struct ps__spill_shape *h = &s->shape;
    size_t n = h->extent_count;
    out->generation = s->generation;
    out->config_hash = s->config_hash;
    out->mode = h->mode;
    out->file_count = h->stripe.file_count;
    for (uint32_t i = 0; i < h->stripe.file_count; i++)
        out->bytes += s->file[i].bytes;
    out->extent = calloc(n, sizeof *out->extent);
    out->slot = calloc(n, sizeof *out->slot);
    out->run_state = malloc((size_t)s->run_state_bytes + 1);
    if (!out->extent || !out->slot || !out->run_state)
        return ps_error_set(err, -ENOMEM, "spill store: out of memory");
    out->extent_count = h->extent_count;
    for (size_t i = 0; i < n; i++) {
        out->extent[i] = h->extent[i];
        out->extent[i].chunk_offset = NULL;
    }
    memcpy(out->slot, s->committed, n * sizeof *out->slot);
    memcpy(out->run_state, s->table + s->run_state_at, (size_t)s->run_state_bytes);
    ((char *)out->run_state)[s->run_state_bytes] = '\0';
    out->run_state_bytes = (size_t)s->run_state_bytes;
    return 0;
}

int ps_spill_info_read(struct ps_spill_info *out, const char *dir, struct ps_error *err)
{
    struct ps_spill_store *s = NULL;
    struct ps_error own = {0};
    memset(out, 0, sizeof *out);
    int rc = open_look(&s, dir, false, &out->damage, &own);
    if (s && s->dir_count > 0 && s->dir[0].fd >= 0)
        out->locked = ps__spill_dir_is_locked(&s->dir[0]);
    if (s) {
        ps__spill_uuid_text(out->run_uuid, s->shape.run);
        for (int i = 0; i < 2; i++)
            out->superblock_ok[i] = s->super_state[i] == PS__SUPER_OK;
    }
    if (rc == 0) {
        rc = fill_info(out, s, &own);
        struct ps_error files = {0};
        out->usable = rc == 0 && ps__spill_find_files(s, &files) == 0;
        if (rc == 0 && !out->usable)
            out->damage = files;
    } else if (s && s->st && (rc == PS_EFORMAT || rc == PS_ECHECKSUM)) {
        out->damage = own; /* a store of ours, in which nothing can be read */
        out->file_count = s->shape.stripe.file_count;
        rc = 0;
    }
    ps__spill_destroy(s, false);
    if (rc < 0) {
        ps_spill_info_fini(out);
        if (err)
            *err = own;
    }
    return rc;
}

void ps_spill_info_fini(struct ps_spill_info *i)
{
    free(i->extent);
    free(i->slot);
    free(i->run_state);
    memset(i, 0, sizeof *i);
}

/* --- verify --- */

typedef void (*bad_fn)(void *arg, uint32_t extent, uint32_t chunk, const struct ps_error *err);

/* Read one committed chunk. */
static int read_chunk(struct ps_spill_store *s, uint32_t extent, uint32_t chunk, void *memory,
                      struct ps_transfer *x, int max, struct ps_error *err)
{
    const struct ps_state_store_ops *ops = s->state.ops;
    int n = ops->map_read(&s->state, extent, chunk, PS_COPY_COMMITTED, memory, x, max), rc = 0;
    for (int i = 0; rc == 0 && i < n; i++) {
        uint64_t ticket = 0;
        rc = s->st->ops->submit(s->st, &x[i], &ticket, err);
        if (rc == 0)
            rc = s->st->ops->wait(s->st, ticket, err);
    }
    return rc;
}

static int verify_chunks(struct ps_spill_store *s, bad_fn bad, void *arg, struct ps_error *err)
{
    const struct ps__spill_shape *h = &s->shape;
    int max = s->state.ops->map_max(&s->state), wrong = 0, rc = 0;
    void *memory = aligned_alloc(PS__SPILL_BLOCK, (size_t)h->chunk_bytes_max + PS__SPILL_BLOCK);
    struct ps_transfer *x = calloc((size_t)max + 1, sizeof *x);
    if (!memory || !x)
        rc = ps_error_set(err, -ENOMEM, "spill store: out of memory");
    for (uint32_t e = 0; rc == 0 && e < h->extent_count; e++) {
        for (uint32_t c = 0; s->committed[e] >= 0 && c < h->extent[e].chunk_count; c++) {
            struct ps_error why = {0};
            int code = read_chunk(s, e, c, memory, x, max, &why);
            if (code == 0)
                code = s->state.ops->check(&s->state, e, c, PS_COPY_COMMITTED, memory, &why);
            if (code == 0)
                continue;
            wrong++;
            if (bad)
                bad(arg, e, c, &why);
        }
    }
    free(x);
    free(memory);
    return rc < 0 ? rc : wrong;
}

int ps_spill_verify(const char *dir, bad_fn bad, void *arg, struct ps_error *err)
{
    struct ps_spill_store *s = NULL;
    struct ps_error damage = {0};
    int rc = open_look(&s, dir, true, &damage, err);
    if (rc == 0)
        rc = ps__spill_find_files(s, err);
    if (rc == 0)
        rc = verify_chunks(s, bad, arg, err);
    if (rc >= 0 && damage.code != 0) {
        rc++;
        if (bad)
            bad(arg, UINT32_MAX, 0, &damage);
    }
    ps__spill_destroy(s, false);
    return rc;
}
