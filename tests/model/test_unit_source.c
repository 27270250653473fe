/* Units of a model in its files: every layout of tensors gives the weights that ps_weights_read
 * gives, extents are what a disk lane can read, non-finite values are found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <sys/stat.h>

#include "runtime/model/weights.h"
#include "runtime/train/schedule.h"
#include "tests/helpers/fail_alloc.h"
#include "tests/helpers/unit_model.h"

#define GAP 65536

/* Hidden size 12 and 4096-byte pages: layers of about 7 KB, several to an extent's end. */
static const struct unit_model plain = {.dir = "m",
                                        .n_layer = 3,
                                        .hidden = 12,
                                        .vocab = 101,
                                        .shards = 1,
                                        .dtype = {PS_DTYPE_BF16, PS_DTYPE_BF16, PS_DTYPE_BF16}};

struct opened {
    struct ps_param_table table;
    struct ps_st_set *files;
    struct ps_unit_sources s;
};

static void open_model(struct opened *o, const struct unit_model *m,
                       const struct ps_unit_options *opt)
{
    struct ps_error err = {0};
    unit_model_write(m, &o->table);
    if (ps_st_set_open(&o->files, m->dir, &err) < 0 ||
        ps_unit_sources_create(&o->s, &o->table, o->files, m->dir, opt, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
}

static void close_model(struct opened *o)
{
    ps_unit_sources_fini(&o->s);
    ps_st_set_close(o->files);
    ps_param_table_fini(&o->table);
}

static uint64_t size_of_file(const struct opened *o, uint32_t file)
{
    struct stat st;
    assert_int_equal(fstat(ps_st_fd(ps_st_set_file(o->files, file)), &st), 0);
    return (uint64_t)st.st_size;
}

/* Extents of a unit: aligned, in order, apart, one after the other in the raw slot. */
static void check_extents(const struct opened *o, const struct ps_unit_source *u)
{
    uint64_t raw = 0, read = 0;
    for (uint32_t i = 0; i < u->extent_count; i++) {
        const struct ps_extent *e = &u->extent[i];
        uint64_t size = size_of_file(o, e->file);
        assert_int_equal(e->offset % 4096, 0);
        assert_int_equal(e->bytes % 4096, 0);
        assert_true(e->bytes > 0);
        assert_int_equal(e->raw_offset, raw);
        assert_true(e->offset < size);
        uint64_t left = size - e->offset;
        assert_int_equal(e->expect, e->bytes < left ? e->bytes : left);
        raw += e->bytes;
        read += e->expect;
        if (i == 0)
            continue;
        const struct ps_extent *before = &u->extent[i - 1];
        assert_true(e->file >= before->file);
        if (e->file == before->file)
            assert_true(e->offset >= before->offset + before->bytes + GAP);
    }
    assert_int_equal(u->raw_bytes, raw);
    assert_int_equal(u->read_bytes, read);
}

static void check_tensors(const struct ps_unit_source *u)
{
    bool could_be_direct = true;
    for (uint32_t i = 0; i < u->tensor_count; i++) {
        const struct ps_unit_tensor *t = &u->tensor[i];
        uint64_t src = ps_dtype_size(t->src_dtype), near = ps_dtype_size(t->near_dtype);
        could_be_direct &= t->src_dtype == t->near_dtype && t->raw_offset % src == 0;
        assert_true(t->raw_offset + t->elements * src <= u->raw_bytes);
        assert_true(t->near_offset + t->elements * near <= u->near_bytes);
        if (u->direct) {
            assert_int_equal(t->near_offset, t->raw_offset);
            continue;
        }
        assert_int_equal(t->near_offset % 64, 0);
        if (i > 0) {
            const struct ps_unit_tensor *p = &u->tensor[i - 1];
            assert_true(t->param_idx > p->param_idx);
            assert_true(t->near_offset >=
                        p->near_offset + p->elements * ps_dtype_size(p->near_dtype));
        }
    }
    if (u->direct) {
        assert_true(could_be_direct);
        assert_int_equal(u->near_bytes, u->raw_bytes);
    }
}

/* Units in order, every parameter once, every embedding row once, chunks of checksums in a row. */
static void check_plan(const struct opened *o)
{
    size_t param = 0;
    int64_t row = 0;
    uint64_t chunk = 0;
    bool direct = true;
    for (uint32_t k = 0; k < o->s.unit_count; k++) {
        const struct ps_unit_source *u = &o->s.unit[k];
        bool embed = k < o->s.embed_block_count;
        assert_int_equal(u->unit, embed                      ? PS_UNIT_EMBED
                                  : k + 1 == o->s.unit_count ? PS_UNIT_HEAD
                                                             : (int)(k - o->s.embed_block_count));
        assert_int_equal(u->block, embed ? (int)k : 0);
        if (embed) {
            assert_int_equal(u->row_begin, row);
            assert_true(u->row_end > row);
            assert_int_equal(u->tensor_count, 1);
            assert_int_equal(u->tensor[0].param_idx, 0);
            assert_int_equal(u->tensor[0].elements,
                             (u->row_end - row) * o->table.param[0].shape[1]);
            row = u->row_end;
            param = 1;
        }
        for (uint32_t i = 0; !embed && i < u->tensor_count; i++) {
            assert_int_equal(u->tensor[i].param_idx, param);
            assert_int_equal(u->tensor[i].elements, o->table.param[param].elements);
            param++;
        }
        for (uint32_t i = 0; i < u->extent_count; i++) {
            assert_int_equal(u->extent[i].checksum_idx, chunk);
            chunk += (u->extent[i].expect + PS_UNIT_CHUNK_BYTES - 1) / PS_UNIT_CHUNK_BYTES;
        }
        check_extents(o, u);
        check_tensors(u);
        direct &= u->direct;
    }
    assert_int_equal(row, o->table.param[0].shape[0]);
    assert_int_equal(param, o->table.count);
    assert_int_equal(chunk, o->s.checksum_count);
    assert_int_equal(direct, o->s.all_direct);
}

/* Read each unit as the disk lane does, convert it, and compare with ps_weights_read. */
static void check_weights(const struct opened *o)
{
    struct ps_error err = {0};
    for (uint32_t k = 0; k < o->s.unit_count; k++) {
        const struct ps_unit_source *u = &o->s.unit[k];
        unsigned char *raw = unit_model_read(u, o->files);
        unsigned char *near = malloc((size_t)u->near_bytes + 64);
        assert_non_null(near);
        memset(near, 0xcc, (size_t)u->near_bytes + 64);
        assert_int_equal(ps_unit_check_finite(u, raw, &o->table, "f", &err), 0);
        ps_unit_convert(u, near, raw);
        for (uint32_t i = 0; i < u->tensor_count; i++) {
            const struct ps_unit_tensor *t = &u->tensor[i];
            const struct ps_param_info *p = &o->table.param[t->param_idx];
            const struct ps_st_tensor *st;
            const struct ps_st_file *file;
            assert_int_equal(ps_weights_find(o->files, "m", p, &st, &file, &err), 0);
            assert_int_equal((int)t->src_dtype, st->dtype);
            size_t e = ps_dtype_size(t->near_dtype);
            unsigned char *want = malloc(p->elements * e);
            assert_non_null(want);
            assert_int_equal(ps_weights_read(file, st, want, t->near_dtype, NULL, NULL, &err), 0);
            size_t skip = p->role == PS_ROLE_EMBED ? (size_t)(u->row_begin * p->shape[1]) * e : 0;
            assert_memory_equal(near + t->near_offset, want + skip, t->elements * e);
            if (u->direct) /* used where it lies */
                assert_memory_equal(raw + t->near_offset, want + skip, t->elements * e);
            free(want);
        }
        for (size_t i = 0; i < 64; i++)
            assert_int_equal(near[u->near_bytes + i], 0xcc);
        free(near);
        free(raw);
    }
}

static void check_all(const struct unit_model *m, const struct ps_unit_options *opt)
{
    struct opened o;
    open_model(&o, m, opt);
    check_plan(&o);
    check_weights(&o);
    close_model(&o);
}

static const struct ps_unit_options bf16 = {.dtype = PS_DTYPE_BF16};
static const struct ps_unit_options fp32 = {.dtype = PS_DTYPE_F32};

static void every_layout_gives_the_weights_of_the_files(void **state)
{
    (void)state;
    static const enum ps_dtype mix[][3] = {{PS_DTYPE_BF16, PS_DTYPE_BF16, PS_DTYPE_BF16},
                                           {PS_DTYPE_F32, PS_DTYPE_F32, PS_DTYPE_F32},
                                           {PS_DTYPE_F16, PS_DTYPE_F16, PS_DTYPE_F16},
                                           {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16}};
    for (unsigned i = 0; i < 4 * 2 * 2 * 2 * 2 * 2; i++) {
        struct unit_model m = plain;
        memcpy(m.dtype, mix[i % 4], sizeof m.dtype);
        m.shards = i & 4 ? 2 : 1;
        m.shuffle = m.shards == 2;
        m.tied = i & 8;
        m.bias = m.tied;
        m.header_pad = i & 16 ? 1 + 2 * (i % 5) : 8;
        struct ps_unit_options opt = i & 32 ? bf16 : fp32;
        opt.force_staged = i & 64;
        opt.embed_block_max = i & 32 ? 700 : 0;
        check_all(&m, &opt);
    }
}

/* Where the first tensor's data begin in the only file. */
static uint64_t data_begin(const struct opened *o)
{
    return ps_st_at(ps_st_set_file(o->files, 0), 0)->offset;
}

static void odd_header_lengths_are_staged_and_even_ones_direct(void **state)
{
    (void)state;
    for (size_t pad = 0; pad < 8; pad++) {
        struct opened o;
        struct unit_model m = plain;
        m.header_pad = pad;
        open_model(&o, &m, &bf16);
        bool odd = data_begin(&o) % 2;
        for (uint32_t k = 0; k < o.s.unit_count; k++)
            assert_int_equal(o.s.unit[k].direct, !odd);
        assert_int_equal(o.s.all_direct, !odd);
        check_weights(&o);
        close_model(&o);
    }
}

static void a_small_dtype_before_it_makes_an_fp32_tensor_staged(void **state)
{
    (void)state;
    struct opened o;
    struct unit_model m = plain;
    /* F32 tensors behind BF16 ones of odd element counts: offsets of 2 mod 4 */
    m.bias = true;
    m.dtype[1] = PS_DTYPE_F32;
    m.filler = 2;
    m.header_pad = 0;
    open_model(&o, &m, &fp32);
    check_plan(&o);
    unsigned staged = 0;
    for (uint32_t k = 0; k < o.s.unit_count; k++)
        for (uint32_t i = 0; i < o.s.unit[k].tensor_count; i++) {
            const struct ps_unit_tensor *t = &o.s.unit[k].tensor[i];
            if (t->raw_offset % ps_dtype_size(t->src_dtype)) {
                assert_false(o.s.unit[k].direct);
                staged++;
            }
        }
    assert_true(staged > 0);
    check_weights(&o);
    close_model(&o);
}

static void near_dtypes_are_those_of_the_resident_plan(void **state)
{
    (void)state;
    struct opened o;
    struct unit_model m = plain;
    bool trained[64] = {false};
    m.dtype[0] = PS_DTYPE_F32;
    m.dtype[2] = PS_DTYPE_F16;
    trained[4] = true; /* a BF16 one */
    open_model(&o, &m, &bf16);
    for (uint32_t k = 0; k < o.s.unit_count; k++)
        for (uint32_t i = 0; i < o.s.unit[k].tensor_count; i++)
            assert_int_equal(o.s.unit[k].tensor[i].near_dtype, PS_DTYPE_BF16);
    close_model(&o);
    struct ps_unit_options opt = fp32;
    opt.trained = trained;
    open_model(&o, &m, &opt);
    assert_true(o.table.count <= 64);
    for (uint32_t k = 0; k < o.s.unit_count; k++)
        for (uint32_t i = 0; i < o.s.unit[k].tensor_count; i++) {
            const struct ps_unit_tensor *t = &o.s.unit[k].tensor[i];
            assert_int_equal(t->near_dtype,
                             t->param_idx == 4 ? PS_DTYPE_F32 : m.dtype[t->param_idx % 3]);
        }
    check_weights(&o);
    close_model(&o);
}

static void forced_staging_packs_near_slots(void **state)
{
    (void)state;
    struct opened direct, staged;
    struct ps_unit_options opt = bf16;
    struct unit_model m = plain;
    m.filler = 3000; /* even: still direct, but with waste inside */
    open_model(&direct, &m, &opt);
    opt.force_staged = true;
    open_model(&staged, &m, &opt);
    assert_false(staged.s.all_direct);
    for (uint32_t k = 0; k < staged.s.unit_count; k++) {
        const struct ps_unit_source *u = &staged.s.unit[k];
        uint64_t packed = 0;
        for (uint32_t i = 0; i < u->tensor_count; i++)
            packed += (u->tensor[i].elements * 2 + 63) & ~(uint64_t)63;
        assert_false(u->direct);
        assert_int_equal(u->near_bytes, packed);
        assert_int_equal(u->raw_bytes, direct.s.unit[k].raw_bytes);
    }
    check_weights(&staged);
    close_model(&direct);
    close_model(&staged);
}

static void a_gap_of_64_KiB_splits_an_extent_and_a_smaller_one_does_not(void **state)
{
    (void)state;
    static const struct {
        size_t filler;
        bool split;
    } cases[] = {{1, false}, {4096, false}, {60000, false}, {80000, true}, {200001, true}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct opened o;
        struct unit_model m = plain;
        m.filler = cases[i].filler;
        open_model(&o, &m, &bf16);
        check_plan(&o);
        check_weights(&o);
        const struct ps_unit_source *layer = &o.s.unit[1];
        if (cases[i].split)
            assert_true(layer->extent_count > 1);
        else
            assert_int_equal(layer->extent_count, 1);
        close_model(&o);
    }
}

static void the_last_extent_ends_at_the_end_of_the_file(void **state)
{
    (void)state;
    struct opened o;
    open_model(&o, &plain, &bf16);
    const struct ps_unit_source *head = &o.s.unit[o.s.unit_count - 1];
    const struct ps_extent *e = &head->extent[head->extent_count - 1];
    uint64_t size = size_of_file(&o, 0);
    assert_int_not_equal(size % 4096, 0); /* else this proves nothing */
    assert_true(e->expect < e->bytes);
    assert_int_equal(e->offset + e->expect, size);
    assert_true(head->read_bytes < head->raw_bytes);
    close_model(&o);
}

static void row_blocks_cover_every_row_once(void **state)
{
    (void)state;
    /* rows of 24 bytes in the file: bound in bytes -> rows of a block */
    static const struct {
        uint64_t max;
        int64_t rows;
    } cases[] = {{0, 101}, {1, 1},    {23, 1},     {24, 1},     {47, 1},
                 {48, 2},  {240, 10}, {2423, 100}, {2424, 101}, {1 << 30, 101}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct opened o;
        struct ps_unit_options opt = bf16;
        opt.embed_block_max = cases[i].max;
        open_model(&o, &plain, &opt);
        check_plan(&o);
        check_weights(&o);
        assert_int_equal(o.s.embed_block_count, (101 + cases[i].rows - 1) / cases[i].rows);
        for (uint32_t k = 0; k < o.s.embed_block_count; k++)
            assert_true(o.s.unit[k].row_end - o.s.unit[k].row_begin <= cases[i].rows);
        close_model(&o);
    }
}

static void row_blocks_count_bytes_of_the_file(void **state)
{
    (void)state;
    struct opened o;
    struct unit_model m = plain;
    struct ps_unit_options opt = bf16;
    m.dtype[0] = PS_DTYPE_F32;
    opt.embed_block_max = 480; /* 10 rows of 48 bytes, though near they have 24 */
    open_model(&o, &m, &opt);
    assert_int_equal(o.s.unit[0].row_end, 10);
    check_weights(&o);
    close_model(&o);
}

static void a_tied_head_is_the_final_norm_alone(void **state)
{
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        struct opened o;
        struct unit_model m = plain;
        m.tied = tied;
        open_model(&o, &m, &bf16);
        const struct ps_unit_source *head = &o.s.unit[o.s.unit_count - 1];
        assert_int_equal(head->tensor_count, tied ? 1 : 2);
        assert_int_equal(o.table.param[head->tensor[0].param_idx].role, PS_ROLE_FINAL_NORM);
        if (!tied)
            assert_int_equal(o.table.param[head->tensor[1].param_idx].role, PS_ROLE_HEAD);
        close_model(&o);
    }
}

static void files_behind_symbolic_links_are_read(void **state)
{
    (void)state;
    struct unit_model m = plain;
    m.link_dir = "blobs";
    m.shards = 2;
    check_all(&m, &bf16);
    m.shards = 1;
    check_all(&m, &fp32);
}

static void a_plan_from_the_configuration_has_the_sizes_of_a_file(void **state)
{
    (void)state;
    struct ps_error err = {0};
    for (int i = 0; i < 8; i++) {
        struct opened o;
        struct ps_unit_sources s;
        struct unit_model m = plain;
        struct ps_unit_options opt = i & 1 ? fp32 : bf16;
        opt.embed_block_max = i & 2 ? 500 : 0;
        opt.force_staged = i & 4;
        open_model(&o, &m, &opt);
        assert_int_equal(ps_unit_sources_create(&s, &o.table, NULL, "config.json", &opt, &err), 0);
        assert_int_equal(s.unit_count, o.s.unit_count);
        assert_int_equal(s.embed_block_count, o.s.embed_block_count);
        for (uint32_t k = 0; k < s.unit_count; k++) {
            const struct ps_unit_source *a = &s.unit[k], *b = &o.s.unit[k];
            assert_int_equal(a->unit, b->unit);
            assert_int_equal(a->row_end, b->row_end);
            assert_int_equal(a->tensor_count, b->tensor_count);
            assert_int_equal(a->extent_count, 1);
            assert_int_equal(a->direct, !opt.force_staged);
            /* the header moves the data against pages: a page at most */
            assert_true(llabs((long long)(a->raw_bytes - b->raw_bytes)) <= 4096);
            assert_true(a->raw_bytes < (uint64_t)1 << 20);
            if (opt.force_staged && !b->direct)
                assert_int_equal(a->near_bytes, b->near_bytes);
            for (uint32_t t = 0; t < a->tensor_count; t++) {
                assert_int_equal(a->tensor[t].src_dtype, PS_DTYPE_BF16);
                assert_int_equal(a->tensor[t].near_dtype, PS_DTYPE_BF16);
            }
        }
        ps_unit_sources_fini(&s);
        close_model(&o);
    }
}

static void a_missing_tensor_or_a_wrong_shape_is_named(void **state)
{
    (void)state;
    struct opened o;
    struct ps_unit_sources s;
    struct ps_error err = {0};
    struct ps_param_table table;
    struct unit_model larger = plain;
    open_model(&o, &plain, &bf16);
    larger.n_layer++;
    unit_model_table(&larger, &table);
    assert_int_equal(ps_unit_sources_create(&s, &table, o.files, "m", &bf16, &err), PS_EFORMAT);
    assert_non_null(strstr(err.field, "layers.3"));
    assert_string_equal(err.file, "m");
    ps_param_table_fini(&table);
    larger = plain;
    larger.vocab++;
    unit_model_table(&larger, &table);
    assert_int_equal(ps_unit_sources_create(&s, &table, o.files, "m", &bf16, &err), PS_EFORMAT);
    assert_string_equal(err.field, "model.embed_tokens.weight");
    ps_param_table_fini(&table);
    close_model(&o);
}

static void an_unsupported_dtype_is_named(void **state)
{
    (void)state;
    struct ps_param_table table;
    struct ps_st_set *files;
    struct ps_unit_sources s;
    struct ps_error err = {0};
    struct unit_model m = plain;
    m.dtype[1] = PS_DTYPE_I32; /* written by hand below: the fill knows floats only */
    unit_model_table(&m, &table);
    struct ps_st_spec spec[64];
    struct ps_st_writer *w;
    assert_int_equal(ps_file_make_dirs("i", &err), 0);
    for (size_t i = 0; i < table.count; i++)
        spec[i] = (struct ps_st_spec){.name = table.param[i].name,
                                      .dtype = m.dtype[i % 3],
                                      .rank = table.param[i].rank,
                                      .shape = {table.param[i].shape[0], table.param[i].shape[1]}};
    assert_int_equal(ps_st_writer_create(&w, "i/model.safetensors", spec, table.count, &err), 0);
    for (size_t i = 0; i < table.count; i++) {
        size_t n = table.param[i].elements * ps_dtype_size(m.dtype[i % 3]);
        void *zero = calloc(1, n);
        assert_int_equal(ps_st_writer_append(w, zero, n, &err), 0);
        free(zero);
    }
    assert_int_equal(ps_st_writer_close(w, &err), 0);
    assert_int_equal(ps_st_set_open(&files, "i", &err), 0);
    assert_int_equal(ps_unit_sources_create(&s, &table, files, "i", &bf16, &err), PS_EUNSUPPORTED);
    assert_string_equal(err.field, table.param[1].name);
    ps_st_set_close(files);
    ps_param_table_fini(&table);
}

/* One tensor of n elements at raw_offset 3. */
static struct ps_unit_source one_tensor(struct ps_unit_tensor *t, enum ps_dtype src,
                                        enum ps_dtype near, size_t n)
{
    *t = (struct ps_unit_tensor){
        .src_dtype = src, .near_dtype = near, .elements = n, .raw_offset = 3};
    return (struct ps_unit_source){.tensor = t, .tensor_count = 1};
}

static int finite(enum ps_dtype src, enum ps_dtype near, size_t n, size_t at, uint32_t bits)
{
    unsigned char raw[3 + 4 * 37 + 8];
    struct ps_param_info info = {.name = "the.tensor"};
    struct ps_param_table table = {.param = &info, .count = 1};
    struct ps_unit_tensor t;
    struct ps_error err = {0};
    struct ps_unit_source u = one_tensor(&t, src, near, n);
    size_t size = ps_dtype_size(src);
    assert_true(n <= 37);
    memset(raw, 0xff, sizeof raw); /* NaN around the tensor must not be seen */
    memset(raw + 3, 0, n * size);
    memcpy(raw + 3 + at * size, &bits, size); /* little-endian */
    int ret = ps_unit_check_finite(&u, raw, &table, "the.file", &err);
    if (ret) {
        assert_string_equal(err.file, "the.file");
        assert_string_equal(err.field, "the.tensor");
    }
    return ret;
}

static void a_non_finite_value_is_found_wherever_it_is(void **state)
{
    (void)state;
    static const struct {
        enum ps_dtype src, near;
        uint32_t bits;
        int want;
    } cases[] = {
        {PS_DTYPE_BF16, PS_DTYPE_BF16, 0x7f80, PS_EFORMAT},
        {PS_DTYPE_BF16, PS_DTYPE_BF16, 0xff80, PS_EFORMAT},
        {PS_DTYPE_BF16, PS_DTYPE_BF16, 0x7fc0, PS_EFORMAT},
        {PS_DTYPE_BF16, PS_DTYPE_BF16, 0xffff, PS_EFORMAT},
        {PS_DTYPE_BF16, PS_DTYPE_BF16, 0x7f7f, 0},
        {PS_DTYPE_BF16, PS_DTYPE_BF16, 0xff7f, 0},
        {PS_DTYPE_BF16, PS_DTYPE_BF16, 0x8000, 0},
        {PS_DTYPE_F16, PS_DTYPE_BF16, 0x7c00, PS_EFORMAT},
        {PS_DTYPE_F16, PS_DTYPE_F16, 0xfe01, PS_EFORMAT},
        {PS_DTYPE_F16, PS_DTYPE_F16, 0xfbff, 0},
        {PS_DTYPE_F32, PS_DTYPE_F32, 0x7f800000, PS_EFORMAT},
        {PS_DTYPE_F32, PS_DTYPE_F32, 0xff800001, PS_EFORMAT},
        {PS_DTYPE_F32, PS_DTYPE_F32, 0xffc00000, PS_EFORMAT},
        {PS_DTYPE_F32, PS_DTYPE_F32, 0x7f7fffff, 0},
        {PS_DTYPE_F32, PS_DTYPE_BF16, 0x7f7fffff, PS_EFORMAT}, /* rounds to Inf */
        {PS_DTYPE_F32, PS_DTYPE_BF16, 0xff7f8000, PS_EFORMAT},
        {PS_DTYPE_F32, PS_DTYPE_BF16, 0x7f7f7fff, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (size_t n = 1; n <= 37; n += 4)
            for (size_t at = 0; at < n; at++)
                assert_int_equal(finite(cases[i].src, cases[i].near, n, at, cases[i].bits),
                                 cases[i].want);
}

/* Every binary16 number and fp32 numbers of every sign, exponent and rounding case, at odd
 * addresses, between normal numbers and among their like. */
static void conversion_is_that_of_ps_dtype_convert(void **state)
{
    (void)state;
    const size_t n = 3 * 65536 + 7;
    unsigned char *raw = malloc(3 + 4 * n), *near = malloc(2 * n + 2), *want = malloc(2 * n + 2);
    assert_true(raw && near && want);
    for (int f16 = 0; f16 < 2; f16++) {
        struct ps_unit_tensor t;
        enum ps_dtype src = f16 ? PS_DTYPE_F16 : PS_DTYPE_F32;
        struct ps_unit_source u = one_tensor(&t, src, PS_DTYPE_BF16, n);
        for (size_t i = 0; i < n; i++) {
            uint32_t k = (uint32_t)(i % 65536);
            uint32_t low[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x4000};
            uint32_t wide = k << 16 | low[i % 7];
            uint32_t half = i < 65536 ? k : i < 131072 ? (i % 50 ? 0x3c01 : k) : k * 7919 % 65536;
            if (f16)
                memcpy(raw + 3 + 2 * i, &half, 2);
            else
                memcpy(raw + 3 + 4 * i, &wide, 4);
        }
        near[2 * n] = want[2 * n] = 0x77;
        ps_unit_convert(&u, near, raw);
        ps_dtype_convert(want, PS_DTYPE_BF16, raw + 3, src, n);
        assert_memory_equal(near, want, 2 * n + 1);
    }
    free(raw);
    free(near);
    free(want);
}

static void memory_that_runs_out_is_told_and_leaks_nothing(void **state)
{
    (void)state;
    struct opened o;
    struct ps_unit_sources s;
    struct ps_error err = {0};
    if (!FAIL_ALLOC) {
        print_message("skip: the sanitizer brings its own malloc\n");
        skip();
    }
    open_model(&o, &plain, &bf16);
    int ret = -1;
    for (long n = 1; ret; n++) {
        long live = fail_alloc_live;
        fail_alloc_in = n;
        ret = ps_unit_sources_create(&s, &o.table, o.files, "m", &bf16, &err);
        fail_alloc_in = 0;
        if (ret == 0) {
            assert_int_equal(n, 6); /* five blocks */
            ps_unit_sources_fini(&s);
        } else {
            assert_int_equal(ret, -ENOMEM);
            assert_string_equal(err.file, "m");
        }
        assert_int_equal(fail_alloc_live, live);
    }
    close_model(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_gives_the_weights_of_the_files),
        cmocka_unit_test(odd_header_lengths_are_staged_and_even_ones_direct),
        cmocka_unit_test(a_small_dtype_before_it_makes_an_fp32_tensor_staged),
        cmocka_unit_test(near_dtypes_are_those_of_the_resident_plan),
        cmocka_unit_test(forced_staging_packs_near_slots),
        cmocka_unit_test(a_gap_of_64_KiB_splits_an_extent_and_a_smaller_one_does_not),
        cmocka_unit_test(the_last_extent_ends_at_the_end_of_the_file),
        cmocka_unit_test(row_blocks_cover_every_row_once),
        cmocka_unit_test(row_blocks_count_bytes_of_the_file),
        cmocka_unit_test(a_tied_head_is_the_final_norm_alone),
        cmocka_unit_test(files_behind_symbolic_links_are_read),
        cmocka_unit_test(a_plan_from_the_configuration_has_the_sizes_of_a_file),
        cmocka_unit_test(a_missing_tensor_or_a_wrong_shape_is_named),
        cmocka_unit_test(an_unsupported_dtype_is_named),
        cmocka_unit_test(a_non_finite_value_is_found_wherever_it_is),
        cmocka_unit_test(conversion_is_that_of_ps_dtype_convert),
        cmocka_unit_test(memory_that_runs_out_is_told_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
