/* Recovery: the newest generation whose superblock and table are whole.
 *
 * Nothing is guessed and nothing is repaired here: a damaged superblock is overwritten by the next
 * commit, because that goes to the one that is not the valid one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "offload/spill_store_internal.h"
#include "runtime/base/file.h"

#define RESTART "start the run anew, or from a checkpoint"

static int give_error(struct ps_error *err, const struct ps_error *e)
{
    if (err)
        *err = *e;
    return e->code;
}

/* --- files --- */

static int wrong_file(const struct ps__spill_dir *d, const char *name, int code, const char *what,
                      struct ps_error *err)
{
    return ps_error_full(err, code, d->path, name,
                         "put the file that the run wrote there, or name its directory with "
                         "--nvme-path",
                         "%s/%s %s", d->path, name, what);
}

/* Look at file `index` in directory d. -ENOENT without a message: not there. uuid: NULL takes any.
 */
static int try_file(struct ps_spill_store *s, uint32_t dir, uint32_t index, const uint8_t *uuid,
                    struct ps__spill_header *h, struct stat *sb, struct ps_error *err)
{
    const struct ps__spill_dir *d = &s->dir[dir];
    char name[16];
    if (d->fd < 0)
        return -ENOENT;
    ps__spill_file_name(name, index);
    int rc = ps__spill_read_block(d, name, 0, s->super, sb, err);
    if (rc < 0)
        return rc;
    enum ps__super_state state = ps__spill_header_decode(h, s->super, s->shape.run);
    if (state == PS__SUPER_BLANK)
        return wrong_file(d, name, PS_EFORMAT, "is empty: its creation was interrupted", err);
    if (state == PS__SUPER_BAD)
        return wrong_file(d, name, PS_ECHECKSUM, "has a damaged header", err);
    if (state == PS__SUPER_FOREIGN) {
        char text[64] = "is of another run, ";
        ps__spill_uuid_text(text + strlen(text), h->run);
        return wrong_file(d, name, PS_ECHECKSUM, text, err);
    }
    if (h->index != index) {
        char text[64];
        PS_IGNORE(snprintf(text, sizeof text, "is file %u of the store, swapped", h->index) < 0,
                  "fits");
        return wrong_file(d, name, PS_ECHECKSUM, text, err);
    }
    if (uuid && memcmp(uuid, h->uuid, 16) != 0)
        return wrong_file(d, name, PS_ECHECKSUM,
                          "is of another store of this run: not the file that belongs here", err);
    if ((uint64_t)sb->st_size < h->bytes)
        return wrong_file(d, name, PS_EFORMAT, "is shorter than it was made", err);
    return 0;
}

static int set_file(struct ps_spill_store *s, uint32_t dir, uint32_t index, const struct stat *sb,
                    struct ps_error *err)
{
    struct ps__spill_file *f = &s->file[index];
    char name[16];
    ps__spill_file_name(name, index);
    f->dir = dir;
    f->inode = sb->st_ino;
    if (!ps_path_join(f->path, sizeof f->path, s->dir[dir].path, name))
        return ps_error_full(err, -ENAMETOOLONG, s->dir[dir].path, NULL, NULL,
                             "the path is too long");
    return 0;
}

static int missing(const struct ps_spill_store *s, uint32_t index, struct ps_error *err)
{
    char name[16];
    ps__spill_file_name(name, index);
    const char *was = s->file ? s->file[index].recorded : "";
    return ps_error_full(err, -ENOENT, s->dir_count ? s->dir[0].path : NULL, name,
                         "name all directories of the store with --nvme-path",
                         "%s of the spill store is missing%s%s%s", name,
                         was[0] ? " (the run had it under " : "", was, was[0] ? ")" : "");
}

int ps__spill_find_files(struct ps_spill_store *s, struct ps_error *err)
{
    for (uint32_t i = 0; i < s->shape.stripe.file_count; i++) {
        struct ps_error wrong = {0};
        struct ps__spill_header h;
        struct stat sb;
        int rc = -ENOENT;
        for (uint32_t d = 0; rc != 0 && d < s->dir_count; d++) {
            struct ps_error now = {0};
            int got = try_file(s, d, i, s->file[i].uuid, &h, &sb, &now);
            if (got != -ENOENT && got != 0 && wrong.code == 0)
                wrong = now;
            rc = got == 0 ? set_file(s, d, i, &sb, &now) : rc;
        }
        if (rc != 0 && wrong.code != 0)
            return give_error(err, &wrong);
        if (rc != 0)
            return missing(s, i, err);
        if (h.bytes != s->file[i].bytes)
            return wrong_file(&s->dir[s->file[i].dir], "", PS_ECHECKSUM, "has another size", err);
    }
    return ps__spill_add_files(s, s->st, 1, s->writable, err);
}

/* --- superblocks --- */

static int find_first(struct ps_spill_store *s, struct ps_error *err)
{
    struct ps__spill_header h;
    struct stat sb;
    int rc = -ENOENT;
    uint32_t d = 0;
    for (; rc == -ENOENT && d < s->dir_count; d++)
        rc = try_file(s, d, 0, NULL, &h, &sb, err);
    if (rc == -ENOENT)
        return missing(s, 0, err);
    if (rc < 0)
        return rc;
    if (h.file_count == 0 || h.file_count > PS__SPILL_FILES_MAX)
        return wrong_file(&s->dir[d - 1], "data-0", PS_EFORMAT, "lists too many files", err);
    s->shape.stripe.file_count = h.file_count;
    rc = ps__spill_alloc_files(s, err);
    if (rc < 0)
        return rc;
    memcpy(s->file[0].uuid, h.uuid, 16);
    return set_file(s, d - 1, 0, &sb, err);
}

static const char *const state_text[] = {
    [PS__SUPER_BLANK] = "blank",
    [PS__SUPER_BAD] = "damaged",
    [PS__SUPER_FOREIGN] = "of another run",
    [PS__SUPER_OK] = "whole",
};

static int no_generation(const struct ps_spill_store *s, const char *path, struct ps_error *err)
{
    const enum ps__super_state *x = s->super_state;
    int blank = (x[0] == PS__SUPER_BLANK) + (x[1] == PS__SUPER_BLANK);
    int bad = (x[0] == PS__SUPER_BAD) + (x[1] == PS__SUPER_BAD);
    if (blank == 2 || (blank == 1 && bad == 1))
        return ps_error_full(err, PS_EFORMAT, path, "superblock", RESTART,
                             "nothing has been committed to this spill store");
    return ps_error_full(err, PS_ECHECKSUM, path, "superblock",
                         "resume from a checkpoint; check the disk (dmesg, smartctl)",
                         "no superblock of the spill store can be used: 0 is %s, 1 is %s",
                         state_text[x[0]], state_text[x[1]]);
}

static int load_layout(struct ps_spill_store *s, const struct ps__spill_super *b,
                       struct ps_error *err)
{
    struct ps__spill_shape *h = &s->shape;
    const char *path = s->file[0].path;
    void *area = ps__spill_page_aligned(b->layout_bytes);
    if (!area)
        return ps__spill_no_memory(err);
    h->mode = b->mode == PS_SPILL_INPLACE ? PS_SPILL_INPLACE : PS_SPILL_SHADOW;
    h->stripe.unit_bytes = b->unit_bytes;
    h->run_state_max = b->run_state_max;
    int rc = ps__spill_move(s, false, b->layout_at, b->layout_bytes, area, err);
    if (rc == 0 && ps__spill_layout_sum(h, area, b->layout_bytes) != b->layout_sum)
        rc = ps_error_full(err, PS_ECHECKSUM, path, "layout", RESTART,
                           "the list of extents of the spill store is damaged");
    if (rc == 0)
        rc = ps__spill_layout_decode(h, s->file, area, b->layout_bytes, err);
    free(area);
    if (rc == 0 && (b->layout_at != h->layout_at || b->extent_count != h->extent_count))
        rc = ps_error_full(err, PS_EFORMAT, path, "layout", RESTART,
                           "superblock and list of extents contradict each other");
    if (rc == 0)
        rc = ps__spill_alloc_tables(s, err);
    s->layout_sum = b->layout_sum;
    return ps_error_file(rc < 0 ? err : NULL, rc, path);
}

static int load_table(struct ps_spill_store *s, const struct ps__spill_super *b,
                      struct ps_error *err)
{
    const struct ps__spill_shape *h = &s->shape;
    const char *path = s->file[0].path;
    if ((b->table_at != h->table_at[0] && b->table_at != h->table_at[1]) ||
        b->table_bytes > h->table_bytes_max || b->layout_sum != s->layout_sum)
        return ps_error_full(err, PS_EFORMAT, path, "superblock", RESTART,
                             "a superblock names a table where none can be");
    int rc = ps__spill_move(s, false, b->table_at, b->table_bytes, s->table, err);
    if (rc == 0 && ps__spill_table_sum(h, b->generation, s->table, b->table_bytes) != b->table_sum)
        rc = ps_error_full(err, PS_ECHECKSUM, path, "table",
                           "resume from a checkpoint; check the disk (dmesg, smartctl)",
                           "the table of generation %llu of the spill store is damaged",
                           (unsigned long long)b->generation);
    if (rc == 0)
        rc = ps__spill_table_decode(s, b->generation, b->table_bytes, err);
    if (rc < 0)
        return ps_error_file(err, rc, path);
    s->generation = b->generation;
    s->config_hash = b->config_hash;
    s->super_next = 1 - b->index;
    s->table_next = b->table_at == h->table_at[0];
    return 0;
}

/* The superblocks as they are, b[0] with the higher generation. */
static int read_supers(struct ps_spill_store *s, struct ps__spill_super b[2], int *count,
                       struct ps_error *err)
{
    *count = 0;
    for (uint32_t i = 0; i < 2; i++) {
        void *block = s->super + i * PS__SPILL_BLOCK;
        struct ps__spill_super x;
        int rc =
            ps__spill_move(s, false, PS__SPILL_SUPER_AT * (i + 1), PS__SPILL_BLOCK, block, err);
        if (rc < 0)
            return rc;
        s->super_state[i] = ps__spill_super_decode(&x, block, i, s->shape.run);
        if (s->super_state[i] != PS__SUPER_OK)
            continue;
        if (x.file_count != s->shape.stripe.file_count ||
            memcmp(x.file_uuid[0], s->file[0].uuid, 16) != 0) {
            s->super_state[i] = PS__SUPER_FOREIGN;
            continue;
        }
        b[(*count)++] = x;
    }
    if (*count == 2 && b[1].generation > b[0].generation) {
        struct ps__spill_super x = b[0];
        b[0] = b[1];
        b[1] = x;
    }
    return 0;
}

static void note_damage(struct ps_spill_store *s, const struct ps_error *e, struct ps_error *damage)
{
    ps_log(&s->log, PS_LOG_WARN, "%s: %s", s->file[0].path, e->message);
    if (damage && damage->code == 0)
        *damage = *e;
}

int ps__spill_recover(struct ps_spill_store *s, const struct ps_spill_store_options *opt,
                      struct ps_error *damage, struct ps_error *err)
{
    struct ps__spill_super b[2];
    int count = 0;
    int rc = find_first(s, err);
    if (rc == 0)
        rc = ps__spill_open_storage(s, opt, err);
    if (rc == 0) {
        int n = s->st->ops->add_file(s->st, s->file[0].path, s->writable, NULL, err);
        rc = n < 0 ? n : 0;
    }
    if (rc == 0)
        rc = read_supers(s, b, &count, err);
    if (rc < 0)
        return rc;
    if (count == 0)
        return no_generation(s, s->file[0].path, err);
    for (uint32_t i = 0; i < 2; i++) {
        struct ps_error e = {0};
        if (s->super_state[i] == PS__SUPER_OK ||
            (s->super_state[i] == PS__SUPER_BLANK && b[0].generation == 1))
            continue;
        PS_IGNORE(ps_error_full(&e, PS_ECHECKSUM, s->file[0].path, "superblock",
                                "none needed: the next commit writes it anew",
                                "superblock %u is %s; the other one is used, generation %llu", i,
                                state_text[s->super_state[i]], (unsigned long long)b[0].generation),
                  "it returns the code");
        note_damage(s, &e, damage);
    }
    rc = load_layout(s, &b[0], err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < count; i++) {
        struct ps_error e = {0};
        rc = load_table(s, &b[i], &e);
        if (rc == 0) {
            for (uint32_t f = 0; f < s->shape.stripe.file_count; f++)
                memcpy(s->file[f].uuid, b[i].file_uuid[f], 16);
            return 0;
        }
        /* What cannot be read now may be whole: going back a generation would give it up. */
        if (i + 1 < count && (rc == PS_ECHECKSUM || rc == PS_EFORMAT))
            note_damage(s, &e, damage);
        else
            return give_error(err, &e);
    }
    return rc;
}
