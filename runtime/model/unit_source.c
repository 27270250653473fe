/* Where the weights of a unit lie in the files: see unit_source.h.
 *
 * Design: the tensors and extents of all units live in two blocks of memory, which the first unit's
 * pointers begin. Tensors stay in the parameter table's order; only a list of pieces is sorted by
 * place, so that a directory written in any order gives the same near slots. */
#include "runtime/model/unit_source.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/checked.h"
#include "runtime/model/safetensors_internal.h"
#include "runtime/model/weights.h"
#include "runtime/train/schedule.h"

#define EXTENT_ALIGN ((uint64_t)4096)
#define NEAR_ALIGN ((size_t)64)
/* A gap below this is read along: one longer request costs less than two. */
#define GAP_BYTES ((uint64_t)65536)

/* Where a parameter lies. */
struct place {
    uint32_t file;
    enum ps_dtype dtype;
    uint64_t offset, file_size;
};

/* A tensor, or the rows of it, that a unit needs. */
struct piece {
    const struct place *place;
    uint64_t offset, bytes; /* in the file */
    uint32_t tensor_idx;    /* in the unit */
};

struct builder {
    struct ps_unit_sources s;
    const struct ps_param_table *params;
    const struct ps_unit_options *opt;
    struct place *place;           /* (params->count,) */
    struct ps_unit_tensor *tensor; /* block of all tensors */
    struct ps_extent *extent;      /* block of all extents */
    size_t tensor_used, extent_used;
};

static int no_memory(const char *model_dir, struct ps_error *err)
{
    return ps_error_full(err, -ENOMEM, model_dir, NULL, NULL,
                         "not enough memory to plan the model's units");
}

static int place_in_files(struct place *place, const struct ps_param_table *params,
                          const struct ps_st_set *files, const char *model_dir,
                          struct ps_error *err)
{
    size_t file_count = ps_st_set_file_count(files);
    for (size_t i = 0; i < params->count; i++) {
        const struct ps_st_tensor *t;
        const struct ps_st_file *f;
        int ret = ps_weights_find(files, model_dir, &params->param[i], &t, &f, err);
        if (ret < 0)
            return ret;
        size_t idx = 0;
        while (idx < file_count && ps_st_set_file(files, idx) != f)
            idx++;
        assert(idx < file_count);
        place[i] = (struct place){.file = (uint32_t)idx,
                                  .dtype = (enum ps_dtype)t->dtype,
                                  .offset = t->offset,
                                  .file_size = f->size};
    }
    return 0;
}

/* As if one file without a header held the table as BF16. */
static int place_from_config(struct place *place, const struct ps_param_table *params,
                             const char *model_dir, struct ps_error *err)
{
    size_t total = 0;
    for (size_t i = 0; i < params->count; i++) {
        size_t bytes;
        place[i] = (struct place){.dtype = PS_DTYPE_BF16, .offset = total};
        if (!ps_mul_size(params->param[i].elements, 2, &bytes) ||
            !ps_add_size(total, bytes, &total) || total > INT64_MAX)
            return ps_error_full(err, PS_EFORMAT, model_dir, params->param[i].name, NULL,
                                 "the model would be larger than 2^63 bytes");
    }
    for (size_t i = 0; i < params->count; i++)
        place[i].file_size = total;
    return 0;
}

/* The dtype that compute gets: see trainer_plan.c, which must agree. */
static enum ps_dtype near_dtype(const struct builder *b, size_t param_idx)
{
    if (b->opt->dtype == PS_DTYPE_BF16)
        return PS_DTYPE_BF16;
    if (b->opt->trained && b->opt->trained[param_idx])
        return PS_DTYPE_F32;
    return b->place[param_idx].dtype;
}

static int by_place(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    if (x->place->file != y->place->file)
        return x->place->file < y->place->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static uint64_t round_down(uint64_t n)
{
    return n & ~(EXTENT_ALIGN - 1);
}

static uint64_t round_up(uint64_t n)
{
    return round_down(n + EXTENT_ALIGN - 1);
}

/* Cover the pieces (sorted here) with extents and give each tensor its place in the raw slot. */
static void cover(struct builder *b, struct ps_unit_source *u, struct piece *piece, size_t count)
{
    qsort(piece, count, sizeof *piece, by_place);
    struct ps_extent *e = NULL;
    for (size_t i = 0; i < count; i++) {
        const struct place *p = piece[i].place;
        uint64_t begin = round_down(piece[i].offset);
        uint64_t end = round_up(piece[i].offset + piece[i].bytes);
        bool near_last = e && e->file == p->file && begin < e->offset + e->bytes + GAP_BYTES;
        if (!near_last) {
            uint64_t at = e ? e->raw_offset + e->bytes : 0;
            e = &b->extent[b->extent_used++];
            *e = (struct ps_extent){.file = p->file, .offset = begin, .raw_offset = at};
            u->extent_count++;
        }
        if (end > e->offset + e->bytes)
            e->bytes = end - e->offset;
        uint64_t left = p->file_size - e->offset;
        e->expect = e->bytes < left ? e->bytes : left;
        u->tensor[piece[i].tensor_idx].raw_offset = e->raw_offset + (piece[i].offset - e->offset);
    }
    assert(e);
    u->raw_bytes = e->raw_offset + e->bytes;
    for (uint32_t i = 0; i < u->extent_count; i++) {
        struct ps_extent *x = &u->extent[i];
        u->read_bytes += x->expect;
        x->checksum_idx = b->s.checksum_count;
        b->s.checksum_count += (x->expect + PS_UNIT_CHUNK_BYTES - 1) / PS_UNIT_CHUNK_BYTES;
    }
}

static void lay_out_near(struct builder *b, struct ps_unit_source *u)
{
    u->direct = !b->opt->force_staged;
    for (uint32_t i = 0; i < u->tensor_count; i++) {
        const struct ps_unit_tensor *t = &u->tensor[i];
        if (t->near_dtype != t->src_dtype || t->raw_offset % ps_dtype_size(t->src_dtype))
            u->direct = false;
    }
    uint64_t at = 0;
    for (uint32_t i = 0; i < u->tensor_count; i++) {
        struct ps_unit_tensor *t = &u->tensor[i];
        t->near_offset = u->direct ? t->raw_offset : at;
        at = ps_align_up(at + t->elements * ps_dtype_size(t->near_dtype), NEAR_ALIGN);
    }
    u->near_bytes = u->direct ? u->raw_bytes : at;
    b->s.all_direct &= u->direct;
}

/* Add the unit of the parameters [begin, end); of an embedding only rows [row_begin, row_end). */
static void add_unit(struct builder *b, struct ps_unit_source head, size_t begin, size_t end)
{
    struct piece piece[PS_ROLE_COUNT];
    size_t count = 0;
    struct ps_unit_source *u = &b->s.unit[b->s.unit_count++];
    *u = head;
    u->tensor = &b->tensor[b->tensor_used];
    u->extent = &b->extent[b->extent_used];
    for (size_t i = begin; i < end; i++) {
        const struct ps_param_info *info = &b->params->param[i];
        const struct place *p = &b->place[i];
        uint64_t elements = info->elements, skip = 0;
        if (info->role == PS_ROLE_EMBED) {
            elements = (uint64_t)(head.row_end - head.row_begin) * (uint64_t)info->shape[1];
            skip = (uint64_t)head.row_begin * (uint64_t)info->shape[1];
        }
        size_t size = ps_dtype_size(p->dtype);
        assert(count < PS_ROLE_COUNT);
        piece[count] = (struct piece){.place = p,
                                      .offset = p->offset + skip * size,
                                      .bytes = elements * size,
                                      .tensor_idx = (uint32_t)count};
        u->tensor[count] = (struct ps_unit_tensor){.param_idx = (int32_t)i,
                                                   .src_dtype = p->dtype,
                                                   .near_dtype = near_dtype(b, i),
                                                   .elements = elements};
        count++;
    }
    u->tensor_count = (uint32_t)count;
    b->tensor_used += count;
    cover(b, u, piece, count);
    lay_out_near(b, u);
}

/* Rows of an embedding block. */
static int64_t block_rows(const struct builder *b)
{
    const struct ps_param_info *embed = &b->params->param[0];
    uint64_t row_bytes = (uint64_t)embed->shape[1] * ps_dtype_size(b->place[0].dtype);
    uint64_t rows = b->opt->embed_block_max / row_bytes;
    if (b->opt->embed_block_max == 0 || rows > (uint64_t)embed->shape[0])
        return embed->shape[0];
    return rows ? (int64_t)rows : 1;
}

static void add_units(struct builder *b)
{
    const struct ps_param_table *p = b->params;
    assert(p->param[0].role == PS_ROLE_EMBED);
    int64_t rows = p->param[0].shape[0];
    int64_t step = block_rows(b);
    for (int64_t r = 0; r < rows; r += step) {
        struct ps_unit_source u = {.unit = PS_UNIT_EMBED,
                                   .block = (int32_t)(r / step),
                                   .row_begin = r,
                                   .row_end = rows - r < step ? rows : r + step};
        add_unit(b, u, 0, 1);
    }
    size_t at = 1;
    for (int32_t l = 0; l < p->n_layer; l++) {
        size_t end = at;
        while (end < p->count && p->param[end].layer == l)
            end++;
        assert(end > at);
        add_unit(b, (struct ps_unit_source){.unit = l}, at, end);
        at = end;
    }
    add_unit(b, (struct ps_unit_source){.unit = PS_UNIT_HEAD}, at, p->count);
}

static int build(struct builder *b, const char *model_dir, struct ps_error *err)
{
    int64_t rows = b->params->param[0].shape[0];
    int64_t step = block_rows(b);
    size_t blocks = (size_t)((rows + step - 1) / step);
    size_t tensors = b->params->count - 1 + blocks;
    b->s.embed_block_count = (uint32_t)blocks;
    b->s.all_direct = true;
    b->tensor = calloc(tensors, sizeof *b->tensor);
    b->extent = calloc(tensors, sizeof *b->extent);
    b->s.unit = calloc(blocks + (size_t)b->params->n_layer + 1, sizeof *b->s.unit);
    if (!b->tensor || !b->extent || !b->s.unit)
        goto fail;
    add_units(b);
    assert(b->tensor_used == tensors);
    b->s.checksum = calloc(b->s.checksum_count, sizeof *b->s.checksum);
    if (!b->s.checksum)
        goto fail;
    return 0;

fail:
    free(b->s.unit);
    free(b->extent);
    free(b->tensor);
    return no_memory(model_dir, err);
}

int ps_unit_sources_create(struct ps_unit_sources *out, const struct ps_param_table *params,
                           const struct ps_st_set *files, const char *model_dir,
                           const struct ps_unit_options *opt, struct ps_error *err)
{
    assert(opt->dtype == PS_DTYPE_BF16 || opt->dtype == PS_DTYPE_F32);
    struct builder b = {.params = params, .opt = opt};
    b.place = calloc(params->count, sizeof *b.place);
    if (!b.place)
        return no_memory(model_dir, err);
    int ret = files ? place_in_files(b.place, params, files, model_dir, err)
                    : place_from_config(b.place, params, model_dir, err);
    if (!ret)
        ret = build(&b, model_dir, err);
    free(b.place);
    if (!ret)
        *out = b.s;
    return ret;
}

void ps_unit_sources_fini(struct ps_unit_sources *s)
{
    if (s->unit) {
        free(s->unit[0].tensor);
        free(s->unit[0].extent);
    }
    free(s->unit);
    free(s->checksum);
    memset(s, 0, sizeof *s);
}

/* Find an element whose magnitude is at least `limit` among `bytes` bytes at any address.
 *
 * Each lane of a 64-bit word is cleared of its sign and raised by (top - limit), which sets the
 * lane's top bit exactly for the elements in question and never carries into the next lane. */
static bool any_at_least(const unsigned char *p, size_t bytes, unsigned lane_bits, uint64_t limit)
{
    uint64_t ones = lane_bits == 32 ? 0x0000000100000001u : 0x0001000100010001u;
    uint64_t top = (uint64_t)1 << (lane_bits - 1);
    uint64_t magnitude = ones * (top - 1);
    uint64_t raise = ones * (top - limit);
    uint64_t seen = 0;
    for (; bytes >= 8; p += 8, bytes -= 8) {
        uint64_t x;
        memcpy(&x, p, 8);
        seen |= (x & magnitude) + raise;
    }
    uint64_t rest = 0;
    memcpy(&rest, p, bytes);
    seen |= (rest & magnitude) + raise;
    return (seen & (ones * top)) != 0;
}

static bool tensor_finite(const struct ps_unit_tensor *t, const unsigned char *p)
{
    size_t bytes = (size_t)t->elements * ps_dtype_size(t->src_dtype);
    if (t->src_dtype == PS_DTYPE_F32) {
        /* from 0x7f7f8000 on, rounding to BF16 gives Inf */
        uint64_t limit = t->near_dtype == PS_DTYPE_BF16 ? 0x7f7f8000u : 0x7f800000u;
        return !any_at_least(p, bytes, 32, limit);
    }
    return !any_at_least(p, bytes, 16, t->src_dtype == PS_DTYPE_BF16 ? 0x7f80u : 0x7c00u);
}

int ps_unit_check_finite(const struct ps_unit_source *u, const void *raw,
                         const struct ps_param_table *params, const char *file,
                         struct ps_error *err)
{
    for (uint32_t i = 0; i < u->tensor_count; i++) {
        const struct ps_unit_tensor *t = &u->tensor[i];
        if (tensor_finite(t, (const unsigned char *)raw + t->raw_offset))
            continue;
        const char *name = params->param[t->param_idx].name;
        return ps_error_full(err, PS_EFORMAT, file, name,
                             "the file is damaged or the model diverged; get another copy",
                             "tensor %s holds NaN or Inf", name);
    }
    return 0;
}
