/* The spill store's bytes: seeds of checksums; blocks, layout and table to structs and back.
 *
 * Everything is little-endian and written field by field, so that no struct of this machine is the
 * format. docs/spill-store.md has the tables; a change here is a new version there. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "offload/spill_store_internal.h"
#include "runtime/base/checked.h"

enum {
    VERSION = 1,
    AREA_HEAD = PS__SPILL_AREA_HEAD,
    FILE_BYTES = PS__SPILL_FILE_ENTRY,
    EXTENT_BYTES = PS__SPILL_EXTENT_ENTRY,
    NAME_BYTES = 64,
    BLOCK = 4096,
    SUM_AT = BLOCK - 8,
    SUPER_UUIDS = 512,
};

static_assert(16 + PS__SPILL_PATH_BYTES == FILE_BYTES, "a file's entry of the layout");
static_assert(SUPER_UUIDS + 16 * PS__SPILL_FILES_MAX <= SUM_AT, "uuids fit into a superblock");

static const char magic_file[8] = "PSSPILLF", magic_super[8] = "PSSPILLS";
static const char magic_layout[8] = "PSSPILLL", magic_table[8] = "PSSPILLT";

/* Seeds of what is no chunk. */
#define SEED_TABLE UINT32_MAX
#define SEED_LAYOUT (UINT32_MAX - 1)

static void put32(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

static void put64(unsigned char *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

static uint32_t get32(const unsigned char *p)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++)
        v |= (uint32_t)p[i] << (8 * i);
    return v;
}

static uint64_t get64(const unsigned char *p)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static bool all_zero(const void *p, size_t n)
{
    const unsigned char *c = p;
    for (size_t i = 0; i < n; i++) {
        if (c[i] != 0)
            return false;
    }
    return true;
}

/* --- checksums --- */

static uint64_t seeded(const struct ps__spill_shape *h, uint32_t extent, uint32_t chunk,
                       uint64_t generation, const void *memory, uint64_t bytes)
{
    unsigned char who[32];
    memcpy(who, h->run, 16);
    put32(who + 16, extent);
    put32(who + 20, chunk);
    put64(who + 24, generation);
    return XXH3_64bits_withSeed(memory, (size_t)bytes, XXH3_64bits(who, sizeof who));
}

uint64_t ps__spill_chunk_sum(const struct ps__spill_shape *h, uint32_t extent, uint32_t chunk,
                             uint64_t generation, const void *memory)
{
    return seeded(h, extent, chunk, generation, memory, ps__spill_chunk_bytes(h, extent, chunk));
}

uint64_t ps__spill_layout_sum(const struct ps__spill_shape *h, const void *area, uint64_t bytes)
{
    return seeded(h, SEED_LAYOUT, 0, 0, area, bytes);
}

uint64_t ps__spill_table_sum(const struct ps__spill_shape *h, uint64_t generation,
                             const void *table, uint64_t bytes)
{
    return seeded(h, SEED_TABLE, 0, generation, table, bytes);
}

/* --- blocks --- */

static void seal_block(unsigned char *p)
{
    put64(p + SUM_AT, XXH3_64bits(p, SUM_AT));
}

static enum ps__super_state open_block(const unsigned char *p, const char magic[8])
{
    if (all_zero(p, BLOCK))
        return PS__SUPER_BLANK;
    if (memcmp(p, magic, 8) != 0 || get32(p + 8) != VERSION ||
        get64(p + SUM_AT) != XXH3_64bits(p, SUM_AT))
        return PS__SUPER_BAD;
    return PS__SUPER_OK;
}

void ps__spill_header_encode(void *block, const uint8_t run[16], const struct ps__spill_file *f,
                             uint32_t index, uint32_t file_count)
{
    unsigned char *p = block;
    memset(p, 0, BLOCK);
    memcpy(p, magic_file, 8);
    put32(p + 8, VERSION);
    put32(p + 12, index);
    memcpy(p + 16, run, 16);
    memcpy(p + 32, f->uuid, 16);
    put64(p + 48, f->bytes);
    put32(p + 56, file_count);
    seal_block(p);
}

enum ps__super_state ps__spill_header_decode(struct ps__spill_header *out, const void *block,
                                             const uint8_t run[16])
{
    const unsigned char *p = block;
    enum ps__super_state state = open_block(p, magic_file);
    memset(out, 0, sizeof *out);
    if (state != PS__SUPER_OK)
        return state;
    out->index = get32(p + 12);
    memcpy(out->run, p + 16, 16);
    memcpy(out->uuid, p + 32, 16);
    out->bytes = get64(p + 48);
    out->file_count = get32(p + 56);
    return run && memcmp(run, out->run, 16) != 0 ? PS__SUPER_FOREIGN : PS__SUPER_OK;
}

void ps__spill_super_encode(void *block, const struct ps__spill_super *b)
{
    unsigned char *p = block;
    memset(p, 0, BLOCK);
    memcpy(p, magic_super, 8);
    put32(p + 8, VERSION);
    put32(p + 12, b->index);
    memcpy(p + 16, b->run, 16);
    put64(p + 32, b->generation);
    put64(p + 40, b->config_hash);
    put32(p + 48, b->mode);
    put32(p + 52, b->file_count);
    put32(p + 56, b->extent_count);
    put64(p + 64, b->unit_bytes);
    put64(p + 72, b->run_state_max);
    put64(p + 80, b->layout_at);
    put64(p + 88, b->layout_bytes);
    put64(p + 96, b->layout_sum);
    put64(p + 104, b->table_at);
    put64(p + 112, b->table_bytes);
    put64(p + 120, b->table_sum);
    memcpy(p + SUPER_UUIDS, b->file_uuid, (size_t)16 * b->file_count);
    seal_block(p);
}

enum ps__super_state ps__spill_super_decode(struct ps__spill_super *b, const void *block,
                                            uint32_t index, const uint8_t run[16])
{
    const unsigned char *p = block;
    enum ps__super_state state = open_block(p, magic_super);
    memset(b, 0, sizeof *b);
    if (state != PS__SUPER_OK)
        return state;
    b->index = get32(p + 12);
    memcpy(b->run, p + 16, 16);
    b->generation = get64(p + 32);
    b->config_hash = get64(p + 40);
    b->mode = get32(p + 48);
    b->file_count = get32(p + 52);
    b->extent_count = get32(p + 56);
    b->unit_bytes = get64(p + 64);
    b->run_state_max = get64(p + 72);
    b->layout_at = get64(p + 80);
    b->layout_bytes = get64(p + 88);
    b->layout_sum = get64(p + 96);
    b->table_at = get64(p + 104);
    b->table_bytes = get64(p + 112);
    b->table_sum = get64(p + 120);
    memcpy(b->file_uuid, p + SUPER_UUIDS, sizeof b->file_uuid);
    if (run && memcmp(run, b->run, 16) != 0)
        return PS__SUPER_FOREIGN;
    uint64_t area = (uint64_t)1 << 34;
    bool ok = b->index == index && b->generation > 0 && b->mode <= PS_SPILL_INPLACE &&
              b->file_count >= 1 && b->file_count <= PS__SPILL_FILES_MAX && b->extent_count >= 1 &&
              b->extent_count <= PS__SPILL_EXTENTS_MAX && b->unit_bytes >= BLOCK &&
              b->unit_bytes <= PS__SPILL_UNIT_MAX && b->unit_bytes % BLOCK == 0 &&
              b->run_state_max <= PS__SPILL_STATE_MAX && b->layout_bytes <= area &&
              b->layout_bytes >= BLOCK && b->layout_bytes % BLOCK == 0 && b->table_bytes >= BLOCK &&
              b->table_bytes <= area && b->table_bytes % BLOCK == 0 && b->layout_at % BLOCK == 0 &&
              b->table_at % BLOCK == 0;
    return ok ? PS__SUPER_OK : PS__SUPER_BAD;
}

/* --- layout and table --- */

void ps__spill_layout_encode(void *area, const struct ps__spill_shape *h,
                             const struct ps__spill_file *file)
{
    unsigned char *p = area;
    memset(p, 0, (size_t)h->layout_bytes);
    memcpy(p, magic_layout, 8);
    put32(p + 8, VERSION);
    put32(p + 12, h->extent_count);
    put64(p + 16, h->chunk_count);
    put32(p + 24, h->stripe.file_count);
    p += AREA_HEAD;
    for (uint32_t i = 0; i < h->stripe.file_count; i++, p += FILE_BYTES) {
        put64(p, file[i].bytes);
        memcpy(p + 16, file[i].recorded, PS__SPILL_PATH_BYTES);
    }
    for (uint32_t i = 0; i < h->extent_count; i++, p += EXTENT_BYTES) {
        memcpy(p, h->extent[i].name, strlen(h->extent[i].name));
        put64(p + NAME_BYTES, h->extent[i].bytes);
        put32(p + NAME_BYTES + 8, h->extent[i].chunk_count);
    }
    for (uint32_t i = 0; i < h->extent_count; i++) {
        for (uint32_t c = 0; c < h->extent[i].chunk_count; c++, p += 8)
            put64(p, h->extent[i].chunk_offset[c + 1]);
    }
}

static int bad_layout(struct ps_error *err)
{
    return ps_error_set(err, PS_EFORMAT, "spill store: the layout area contradicts itself");
}

/* The extents of a layout area whose head has been checked; `ends` are the chunks' ends. */
static bool read_extents(struct ps_store_extent *extent, uint64_t *offset, uint32_t extent_count,
                         uint64_t chunk_count, const unsigned char *p)
{
    const unsigned char *ends = p + (size_t)EXTENT_BYTES * extent_count;
    uint64_t left = chunk_count;
    for (uint32_t i = 0; i < extent_count; i++, p += EXTENT_BYTES) {
        struct ps_store_extent *e = &extent[i];
        memcpy(e->name, p, NAME_BYTES);
        e->bytes = get64(p + NAME_BYTES);
        e->chunk_count = get32(p + NAME_BYTES + 8);
        if (e->name[NAME_BYTES - 1] != '\0' || e->chunk_count > left)
            return false;
        left -= e->chunk_count;
        e->chunk_offset = offset;
        *offset++ = 0;
        for (uint32_t c = 0; c < e->chunk_count; c++, ends += 8)
            *offset++ = get64(ends);
    }
    return left == 0;
}

int ps__spill_layout_decode(struct ps__spill_shape *h, struct ps__spill_file *file,
                            const void *area, uint64_t bytes, struct ps_error *err)
{
    const unsigned char *p = area;
    uint32_t extents = get32(p + 12), files = get32(p + 24);
    uint64_t chunks = get64(p + 16);
    if (memcmp(p, magic_layout, 8) != 0 || get32(p + 8) != VERSION || extents == 0 ||
        extents > PS__SPILL_EXTENTS_MAX || chunks > PS__SPILL_CHUNKS_MAX ||
        files != h->stripe.file_count ||
        AREA_HEAD + (uint64_t)FILE_BYTES * files + (uint64_t)EXTENT_BYTES * extents + 8 * chunks >
            bytes)
        return bad_layout(err);
    p += AREA_HEAD;
    for (uint32_t i = 0; i < files; i++, p += FILE_BYTES) {
        file[i].bytes = get64(p);
        memcpy(file[i].recorded, p + 16, PS__SPILL_PATH_BYTES);
        file[i].recorded[PS__SPILL_PATH_BYTES - 1] = '\0';
    }
    struct ps_store_extent *extent = calloc(extents, sizeof *extent);
    uint64_t *offset = calloc((size_t)(chunks + extents), sizeof *offset);
    int rc = -ENOMEM;
    if (!extent || !offset)
        PS_IGNORE(ps_error_set(err, rc, "spill store: out of memory"), "it is returned below");
    else if (!read_extents(extent, offset, extents, chunks, p))
        rc = bad_layout(err);
    else
        rc = ps__spill_shape_init(h, extent, extents, err);
    free(extent);
    free(offset);
    if (rc == PS_EUSAGE)
        rc = bad_layout(err);
    for (uint32_t i = 0; rc == 0 && i < files; i++) {
        if (file[i].bytes != ps__spill_file_bytes(h, i) || bytes != h->layout_bytes)
            rc = bad_layout(err);
    }
    return rc;
}

uint64_t ps__spill_table_encode(struct ps_spill_store *s, uint64_t generation,
                                const void *run_state, size_t bytes)
{
    const struct ps__spill_shape *h = &s->shape;
    unsigned char *start = (unsigned char *)s->table, *p = start;
    assert(bytes <= h->run_state_max);
    memset(p, 0, AREA_HEAD);
    memcpy(p, magic_table, 8);
    put32(p + 8, VERSION);
    put32(p + 12, h->extent_count);
    put64(p + 16, generation);
    put64(p + 24, h->chunk_count);
    put64(p + 32, bytes);
    p += AREA_HEAD;
    for (uint32_t i = 0; i < h->extent_count; i++, p += 8) {
        put32(p, (uint32_t)s->latest[i]);
        put32(p + 4, 0);
    }
    for (uint32_t i = 0; i < h->extent_count; i++) {
        uint64_t first = h->chunk_first[i];
        for (uint32_t c = 0; c < h->extent[i].chunk_count; c++, p += 16) {
            struct ps__spill_sum none = {0, 0};
            const struct ps__spill_sum *x =
                s->latest[i] < 0 ? &none : &s->sum[s->latest[i]][first + c];
            put64(p, x->sum);
            put64(p + 8, x->generation);
        }
    }
    if (bytes > 0)
        memcpy(p, run_state, bytes);
    p += bytes;
    uint64_t used = (uint64_t)(p - start), padded = ps_align_up(used, PS__SPILL_BLOCK);
    assert(padded <= h->table_bytes_max);
    memset(p, 0, (size_t)(padded - used));
    return padded;
}

int ps__spill_table_decode(struct ps_spill_store *s, uint64_t generation, uint64_t bytes,
                           struct ps_error *err)
{
    const struct ps__spill_shape *h = &s->shape;
    const unsigned char *start = (const unsigned char *)s->table, *p = start;
    uint64_t state = get64(p + 32), fixed = AREA_HEAD + 8 * (uint64_t)h->extent_count;
    fixed += 16 * h->chunk_count;
    bool ok = memcmp(p, magic_table, 8) == 0 && get32(p + 8) == VERSION &&
              get32(p + 12) == h->extent_count && get64(p + 16) == generation &&
              get64(p + 24) == h->chunk_count && state <= h->run_state_max &&
              ps_align_up(fixed + state, PS__SPILL_BLOCK) == bytes;
    p += AREA_HEAD;
    int32_t slots = h->mode == PS_SPILL_INPLACE ? 1 : 2;
    for (uint32_t i = 0; ok && i < h->extent_count; i++, p += 8) {
        s->committed[i] = s->latest[i] = (int32_t)get32(p);
        ok = s->latest[i] >= -1 && s->latest[i] < slots;
    }
    for (uint32_t i = 0; ok && i < h->extent_count; i++) {
        uint64_t first = h->chunk_first[i];
        for (uint32_t c = 0; ok && c < h->extent[i].chunk_count; c++, p += 16) {
            struct ps__spill_sum x = {get64(p), get64(p + 8)};
            ok = x.generation <= generation;
            if (s->latest[i] >= 0)
                s->sum[s->latest[i]][first + c] = x;
        }
    }
    if (!ok)
        return ps_error_set(err, PS_EFORMAT,
                            "spill store: the table of generation %llu "
                            "contradicts itself",
                            (unsigned long long)generation);
    s->run_state_at = fixed;
    s->run_state_bytes = state;
    return 0;
}
