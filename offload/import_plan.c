/* What an import is made of: which plans can be imported, what identifies one, any window of a
 * unit's near slot. See import.h. */
#include "offload/import_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

bool ps_import_possible(const struct ps_unit_sources *plan, const char **why)
{
    static const char *const direct = "the plan uses weights where they lie in the files";
    static const char *const wide =
        "an import holds bf16 weights, this run keeps wider or other ones";
    for (uint32_t k = 0; k < plan->unit_count; k++) {
        const struct ps_unit_source *u = &plan->unit[k];
        bool narrow = true;
        for (uint32_t i = 0; i < u->tensor_count; i++)
            narrow &= u->tensor[i].near_dtype == PS_DTYPE_BF16;
        if (narrow && !u->direct)
            continue;
        if (why)
            *why = narrow ? direct : wide;
        return false;
    }
    return true;
}

int ps__import_require(const struct ps_unit_sources *plan, struct ps_error *err)
{
    const char *why;
    if (ps_import_possible(plan, &why))
        return 0;
    return ps_error_full(err, PS_EUSAGE, NULL, "import", "train in bf16, or without an import",
                         "this model cannot be imported: %s", why);
}

static void hash_unit(XXH3_state_t *h, const struct ps_unit_source *u, const uint64_t *checksum)
{
    int64_t unit[6] = {u->unit,         u->block,        (int64_t)u->near_bytes,
                       u->tensor_count, u->extent_count, (int64_t)PS_UNIT_CHUNK_BYTES};
    XXH3_128bits_update(h, unit, sizeof unit);
    for (uint32_t i = 0; i < u->tensor_count; i++) {
        const struct ps_unit_tensor *t = &u->tensor[i];
        uint64_t x[5] = {(uint64_t)t->param_idx, (uint64_t)t->src_dtype, t->elements, t->raw_offset,
                         t->near_offset};
        XXH3_128bits_update(h, x, sizeof x);
    }
    for (uint32_t i = 0; i < u->extent_count; i++) {
        const struct ps_extent *e = &u->extent[i];
        uint64_t x[3] = {e->file, e->offset, e->expect};
        uint64_t chunks = (e->expect + PS_UNIT_CHUNK_BYTES - 1) / PS_UNIT_CHUNK_BYTES;
        XXH3_128bits_update(h, x, sizeof x);
        XXH3_128bits_update(h, checksum + e->checksum_idx, chunks * sizeof *checksum);
    }
}

static int hash_file(XXH3_state_t *h, const struct ps_st_file *f)
{
    struct stat st;
    if (fstat(ps_st_fd(f), &st) < 0)
        return -errno;
    const char *path = ps_st_path(f);
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    int64_t size = st.st_size;
    XXH3_128bits_update(h, name, strlen(name) + 1);
    XXH3_128bits_update(h, &size, sizeof size);
    return 0;
}

int ps__import_hash(const struct ps_unit_sources *plan, const struct ps_st_set *files,
                    char hex[PS_IMPORT_HEX])
{
    for (uint64_t i = 0; i < plan->checksum_count; i++)
        if (plan->checksum[i] == 0)
            return -ENODATA;
    XXH3_state_t *h = XXH3_createState();
    if (!h)
        return -ENOMEM;
    uint32_t format[2] = {PS_IMPORT_VERSION, (uint32_t)PS_IMPORT_CHUNK_BYTES};
    int ret = XXH3_128bits_reset(h) == XXH_OK ? 0 : -EINVAL;
    XXH3_128bits_update(h, format, sizeof format);
    for (size_t i = 0; !ret && i < ps_st_set_file_count(files); i++)
        ret = hash_file(h, ps_st_set_file(files, i));
    for (uint32_t k = 0; k < plan->unit_count; k++)
        hash_unit(h, &plan->unit[k], plan->checksum);
    XXH128_hash_t digest = XXH3_128bits_digest(h);
    XXH3_freeState(h);
    if (!ret)
        snprintf(hex, PS_IMPORT_HEX, "%016llx%016llx", (unsigned long long)digest.high64,
                 (unsigned long long)digest.low64);
    return ret;
}

/* The part of tensor t that lies in [begin, begin + n) of the near slot: *at bytes into the window,
 * elements [*first, *first + count). Returns count. */
static size_t overlap(const struct ps_unit_tensor *t, uint64_t begin, size_t n, size_t *at,
                      uint64_t *first)
{
    uint64_t from = t->near_offset > begin ? t->near_offset : begin;
    uint64_t end = t->near_offset + 2 * t->elements;
    uint64_t to = end < begin + n ? end : begin + n;
    if (from >= to)
        return 0;
    *at = (size_t)(from - begin);
    *first = (from - t->near_offset) / 2;
    return (size_t)(to - from) / 2;
}

void ps__import_window(const struct ps_unit_source *u, uint64_t begin, size_t n, void *near,
                       const void *raw)
{
    assert(begin % 2 == 0 && n % 2 == 0);
    memset(near, 0, n);
    for (uint32_t i = 0; i < u->tensor_count; i++) {
        const struct ps_unit_tensor *t = &u->tensor[i];
        size_t at;
        uint64_t first;
        size_t count = overlap(t, begin, n, &at, &first);
        uint64_t from = t->raw_offset + first * ps_dtype_size(t->src_dtype);
        if (count)
            ps_unit_convert_elements((unsigned char *)near + at, PS_DTYPE_BF16,
                                     (const unsigned char *)raw + from, t->src_dtype, count);
    }
}

/* The extent that holds a byte of the raw slot. */
static const struct ps_extent *extent_at(const struct ps_unit_source *u, uint64_t raw_offset)
{
    uint32_t i = u->extent_count - 1;
    while (i > 0 && u->extent[i].raw_offset > raw_offset)
        i--;
    return &u->extent[i];
}

static int read_at(const struct ps_st_file *f, unsigned char *dst, size_t n, uint64_t offset,
                   struct ps_error *err)
{
    while (n > 0) {
        ssize_t got = pread(ps_st_fd(f), dst, n, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return ps_error_full(err, -errno, ps_st_path(f), NULL, NULL, "cannot read: %s",
                                 strerror(errno));
        if (got == 0)
            return ps_error_full(err, PS_EFORMAT, ps_st_path(f), NULL,
                                 "do not change model files while they are in use",
                                 "the file became shorter after it was opened");
        dst += got;
        n -= (size_t)got;
        offset += (uint64_t)got;
    }
    return 0;
}

int ps__import_read_unit(const struct ps_unit_source *u, const struct ps_st_set *files, void *raw,
                         struct ps_error *err)
{
    for (uint32_t i = 0; i < u->extent_count; i++) {
        const struct ps_extent *e = &u->extent[i];
        int ret = read_at(ps_st_set_file(files, e->file), (unsigned char *)raw + e->raw_offset,
                          (size_t)e->expect, e->offset, err);
        if (ret)
            return ret;
    }
    return 0;
}

#define PIECE_BYTES 65536

int ps__import_window_read(const struct ps_unit_source *u, const struct ps_st_set *files,
                           uint64_t begin, size_t n, void *near, struct ps_error *err)
{
    unsigned char piece[PIECE_BYTES];
    assert(begin % 2 == 0 && n % 2 == 0);
    memset(near, 0, n);
    for (uint32_t i = 0; i < u->tensor_count; i++) {
        const struct ps_unit_tensor *t = &u->tensor[i];
        size_t at = 0, size = ps_dtype_size(t->src_dtype);
        uint64_t first = 0;
        size_t count = overlap(t, begin, n, &at, &first);
        const struct ps_extent *e = extent_at(u, t->raw_offset);
        uint64_t offset = e->offset + (t->raw_offset - e->raw_offset) + first * size;
        for (size_t step; count > 0; count -= step) {
            step = count < PIECE_BYTES / size ? count : PIECE_BYTES / size;
            int ret = read_at(ps_st_set_file(files, e->file), piece, step * size, offset, err);
            if (ret)
                return ret;
            ps_unit_convert_elements((unsigned char *)near + at, PS_DTYPE_BF16, piece, t->src_dtype,
                                     step);
            at += 2 * step;
            offset += step * size;
        }
    }
    return 0;
}

/* ---- the plan ---- */

static uint64_t checksums_of(uint64_t bytes)
{
    return (bytes + PS_UNIT_CHUNK_BYTES - 1) / PS_UNIT_CHUNK_BYTES;
}

int ps__import_sources_of(const struct ps__import_unit *unit, const struct ps_unit_sources *plan,
                          struct ps_unit_sources *out, struct ps_error *err)
{
    struct ps_unit_sources s = {.unit_count = plan->unit_count,
                                .embed_block_count = plan->embed_block_count};
    size_t tensors = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++) {
        tensors += plan->unit[k].tensor_count;
        s.checksum_count += checksums_of(unit[k].bytes);
    }
    /* as ps_unit_sources_create has it: the first unit's pointers begin the blocks */
    struct ps_unit_tensor *tensor = calloc(tensors, sizeof *tensor);
    struct ps_extent *extent = calloc(s.unit_count, sizeof *extent);
    s.unit = calloc(s.unit_count, sizeof *s.unit);
    s.checksum = calloc(s.checksum_count, sizeof *s.checksum);
    if (!tensor || !extent || !s.unit || !s.checksum) {
        free(tensor);
        free(extent);
        free(s.unit);
        free(s.checksum);
        return ps_error_set(err, -ENOMEM, "not enough memory for the import's plan");
    }
    uint64_t checksum_idx = 0;
    for (uint32_t k = 0; k < s.unit_count; k++) {
        struct ps_unit_source *u = &s.unit[k];
        *u = plan->unit[k];
        memcpy(tensor, u->tensor, u->tensor_count * sizeof *tensor);
        u->tensor = tensor;
        for (uint32_t i = 0; i < u->tensor_count; i++) {
            tensor[i].src_dtype = PS_DTYPE_BF16;
            tensor[i].raw_offset = 0;
        }
        tensor += u->tensor_count;
        u->extent = &extent[k];
        u->extent_count = 1;
        extent[k] = (struct ps_extent){.offset = unit[k].offset,
                                       .bytes = unit[k].bytes,
                                       .expect = unit[k].bytes,
                                       .checksum_idx = checksum_idx};
        checksum_idx += checksums_of(unit[k].bytes);
        u->raw_bytes = u->read_bytes = unit[k].bytes;
    }
    *out = s;
    return 0;
}

int ps_import_expect_sources(const struct ps_unit_sources *plan, double ratio,
                             struct ps_unit_sources *out, struct ps_error *err)
{
    struct ps__import_unit *unit = calloc(plan->unit_count, sizeof *unit);
    uint64_t at = 0;
    int ret = ps__import_require(plan, err);
    if (!ret && !unit)
        ret = ps_error_set(err, -ENOMEM, "not enough memory for the import's plan");
    for (uint32_t k = 0; !ret && k < plan->unit_count; k++) {
        uint64_t near = plan->unit[k].near_bytes;
        uint64_t bytes =
            (uint64_t)((double)near / ratio) + ps__import_chunks(near) * PS_IMPORT_RECORD_ALIGN;
        bytes = (bytes + PS_IMPORT_UNIT_ALIGN - 1) / PS_IMPORT_UNIT_ALIGN * PS_IMPORT_UNIT_ALIGN;
        unit[k] = (struct ps__import_unit){.offset = at, .bytes = bytes, .near_bytes = near};
        at += bytes;
    }
    if (!ret)
        ret = ps__import_sources_of(unit, plan, out, err);
    free(unit);
    return ret;
}
