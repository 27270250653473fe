/* Importing a base as compressed byte planes: every bit comes back, an import is found again by its
 * content, anything damaged or half made is found, and the formula says when it pays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <xxhash.h>

#include "offload/import_internal.h"
#include "tests/helpers/fail_alloc.h"
#include "tests/helpers/unit_model.h"

#define CHUNK ((size_t)PS_IMPORT_CHUNK_BYTES)

/* ---- models ---- */

/* The embedding and the head have 2 chunks each, a layer 1. */
static const struct unit_model model = {.dir = "m",
                                        .n_layer = 2,
                                        .hidden = 256,
                                        .vocab = 4501,
                                        .shards = 1,
                                        .dtype = {PS_DTYPE_BF16, PS_DTYPE_BF16, PS_DTYPE_BF16}};
static const struct unit_model tiny = {.dir = "t",
                                       .tied = true,
                                       .n_layer = 2,
                                       .hidden = 12,
                                       .vocab = 50,
                                       .shards = 2,
                                       .dtype = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16}};
static const struct ps_unit_options staged = {.dtype = PS_DTYPE_BF16, .force_staged = true};

struct opened {
    struct ps_param_table table;
    struct ps_st_set *files;
    struct ps_unit_sources s;
};

static void reopen(struct opened *o, const struct unit_model *m, const struct ps_unit_options *opt)
{
    struct ps_error err = {0};
    unit_model_table(m, &o->table);
    assert_int_equal(ps_st_set_open(&o->files, m->dir, &err), 0);
    assert_int_equal(ps_unit_sources_create(&o->s, &o->table, o->files, m->dir, opt, &err), 0);
}

static void open_new(struct opened *o, const struct unit_model *m)
{
    struct ps_param_table table;
    struct ps_error err = {0};
    unit_model_write(m, &table);
    ps_param_table_fini(&table);
    reopen(o, m, &staged);
    assert_int_equal(ps_file_remove_tree("nvme", &err), 0);
    assert_int_equal(ps_file_make_dirs("nvme", &err), 0);
}

static void shut(struct opened *o)
{
    ps_unit_sources_fini(&o->s);
    ps_st_set_close(o->files);
    ps_param_table_fini(&o->table);
}

/* Names in nvme/ but ., .. and the lock. */
static int entries(void)
{
    DIR *d = opendir("nvme");
    int count = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        count += e->d_name[0] != '.' && strcmp(e->d_name, "penstock-import.lock") != 0;
    closedir(d);
    return count;
}

static struct ps_import *build(struct opened *o, struct ps_pool *pool)
{
    struct ps_import *im = NULL;
    struct ps_error err = {0};
    struct ps_import_options opt = {.path = "nvme", .pool = pool};
    if (ps_import_build(&im, &o->s, &o->table, o->files, &opt, &err) < 0)
        fail_msg("%s (%s)", err.message, err.file);
    return im;
}

static unsigned char *read_extent(const struct ps_import *im, const struct ps_extent *e)
{
    unsigned char *raw = aligned_alloc(4096, (size_t)e->bytes);
    int fd = open(ps_import_path(im), O_RDONLY);
    assert_non_null(raw);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, raw, (size_t)e->bytes, (off_t)e->offset), e->expect);
    close(fd);
    return raw;
}

/* Every tensor of every unit has the bits that converting the files gives. */
static void check_bits(const struct opened *o, const struct ps_import *im, struct ps_pool *pool)
{
    struct ps_import_decoder *d;
    struct ps_error err = {0};
    assert_int_equal(ps_import_decoder_create(&d, ps_pool_thread_count(pool)), 0);
    for (uint32_t k = 0; k < o->s.unit_count; k++) {
        const struct ps_unit_source *u = &o->s.unit[k];
        struct ps_extent e;
        ps_import_unit_extent(im, k, &e);
        unsigned char *packed = read_extent(im, &e);
        unsigned char *raw = unit_model_read(u, o->files);
        unsigned char *want = calloc(1, (size_t)u->near_bytes);
        unsigned char *near = malloc((size_t)u->near_bytes + 64);
        assert_true(want && near);
        memset(near, 0xcc, (size_t)u->near_bytes + 64);
        ps_unit_convert(u, want, raw);
        assert_int_equal(ps_import_decode_unit(im, d, pool, k, near, packed, &err), 0);
        assert_memory_equal(near, want, u->near_bytes); /* gaps between tensors are 0 */
        for (size_t i = 0; i < 64; i++)
            assert_int_equal(near[u->near_bytes + i], 0xcc);
        free(near);
        free(want);
        free(raw);
        free(packed);
    }
    ps_import_decoder_destroy(d);
}

static void an_import_gives_the_bits_of_the_files(void **state)
{
    (void)state;
    struct ps_pool *pool;
    assert_int_equal(ps_pool_create(&pool, 3), 0);
    for (int i = 0; i < 4; i++) {
        struct opened o;
        struct unit_model m = i < 3 ? tiny : model;
        m.shuffle = i == 1;
        m.header_pad = (size_t)i;
        m.filler = i == 2 ? 70001 : 0;
        m.tied = i == 0;
        open_new(&o, &m);
        struct ps_import *im = build(&o, i % 2 ? pool : NULL);
        assert_int_equal(entries(), 1);
        check_bits(&o, im, i % 2 ? NULL : pool);
        check_bits(&o, im, i % 2 ? pool : NULL);
        ps_import_close(im);
        shut(&o);
    }
    ps_pool_destroy(pool);
}

/* More chunks than the build packs at a time. */
static void a_unit_of_many_chunks_keeps_its_bits(void **state)
{
    (void)state;
    struct opened o;
    struct ps_pool *pool;
    struct unit_model m = model;
    m.tied = true;
    m.n_layer = 1;
    m.hidden = 32;
    m.vocab = 17 * 32768 + 1;
    assert_int_equal(ps_pool_create(&pool, 2), 0);
    open_new(&o, &m);
    struct ps_import *im = build(&o, pool);
    assert_int_equal(ps_import_chunk_count(im, 0), 18);
    check_bits(&o, im, pool);
    ps_import_close(im);
    shut(&o);
    ps_pool_destroy(pool);
}

static void two_builds_write_the_same_bytes(void **state)
{
    (void)state;
    struct ps_pool *pool;
    struct ps_error err = {0};
    uint64_t hash[2];
    assert_int_equal(ps_pool_create(&pool, 3), 0);
    for (int i = 0; i < 2; i++) {
        struct opened o;
        open_new(&o, &model);
        struct ps_import *im = build(&o, i ? pool : NULL);
        assert_int_equal(ps_file_hash(ps_import_path(im), &hash[i], &err), 0);
        ps_import_close(im);
        shut(&o);
    }
    assert_int_equal(hash[0], hash[1]);
    ps_pool_destroy(pool);
}

static void units_are_extents_of_one_aligned_file(void **state)
{
    (void)state;
    struct opened o;
    struct ps_unit_sources s;
    struct ps_error err = {0};
    struct stat st;
    uint64_t at = 0, near = 0;
    open_new(&o, &model);
    struct ps_import *im = build(&o, NULL);
    assert_int_equal(ps_import_sources(im, &o.s, &s, &err), 0);
    assert_int_equal(stat(ps_import_path(im), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(s.unit_count, o.s.unit_count);
    assert_int_equal(s.embed_block_count, o.s.embed_block_count);
    assert_false(s.all_direct);
    for (uint32_t k = 0; k < s.unit_count; k++) {
        const struct ps_unit_source *u = &s.unit[k];
        struct ps_extent e;
        ps_import_unit_extent(im, k, &e);
        assert_int_equal(u->unit, o.s.unit[k].unit);
        assert_int_equal(u->near_bytes, o.s.unit[k].near_bytes);
        assert_int_equal(u->tensor_count, o.s.unit[k].tensor_count);
        for (uint32_t i = 0; i < u->tensor_count; i++)
            assert_int_equal(u->tensor[i].near_offset, o.s.unit[k].tensor[i].near_offset);
        assert_false(u->direct);
        assert_int_equal(u->extent_count, 1);
        assert_memory_equal(&e, u->extent, sizeof e);
        assert_int_equal(e.offset, at);
        assert_int_equal(e.bytes % 4096, 0);
        assert_int_equal(e.expect, e.bytes);
        assert_int_equal(u->raw_bytes, e.bytes);
        assert_int_equal(u->read_bytes, e.bytes);
        at += e.bytes;
        near += u->near_bytes;
        /* the checksums of a first pass work on it */
        unsigned char *raw = read_extent(im, &e);
        assert_int_equal(ps_unit_verify(&s, u->extent, raw, "w", &err), 0);
        raw[e.bytes - 1] ^= 4;
        assert_int_equal(ps_unit_verify(&s, u->extent, raw, "w", &err), PS_ECHECKSUM);
        free(raw);
    }
    assert_int_equal(at, st.st_size);
    assert_int_equal(ps_import_bytes(im), st.st_size);
    assert_true(at < near * 8 / 10); /* uniform weights: 16 bits in about 10.2 */
    assert_true(ps_import_disk_bytes(&o.s, 1) >= at);
    assert_true(ps_import_disk_bytes(&o.s, (double)near / (double)at) >= at * 99 / 100);
    ps_unit_sources_fini(&s);
    ps_import_close(im);
    shut(&o);
}

/* ---- reuse ---- */

static int try_open(struct opened *o, char why[256])
{
    struct ps_import *im = NULL;
    struct ps_error err = {0};
    int ret = ps_import_open(&im, "nvme", &o->s, o->files, why, &err);
    if (ret == 1)
        ps_import_close(im);
    return ret;
}

/* What a first pass does. */
static void learn_checksums(struct opened *o)
{
    struct ps_error err = {0};
    for (uint32_t k = 0; k < o->s.unit_count; k++) {
        const struct ps_unit_source *u = &o->s.unit[k];
        unsigned char *raw = unit_model_read(u, o->files);
        for (uint32_t i = 0; i < u->extent_count; i++)
            assert_int_equal(
                ps_unit_verify(&o->s, &u->extent[i], raw + u->extent[i].raw_offset, "f", &err), 0);
        free(raw);
    }
}

static void an_import_is_found_again_by_content_alone(void **state)
{
    (void)state;
    static const struct timespec when[2] = {{1000, 1}, {1000, 1}};
    struct opened o;
    char why[256];
    open_new(&o, &tiny);
    ps_import_close(build(&o, NULL));
    shut(&o);
    reopen(&o, &tiny, &staged);
    assert_int_equal(try_open(&o, why), 0); /* the content is not known yet */
    assert_non_null(strstr(why, "not been read"));
    learn_checksums(&o);
    assert_int_equal(try_open(&o, why), 1);
    assert_string_equal(why, "");
    shut(&o);
    /* another time, the same content */
    assert_int_equal(utimensat(AT_FDCWD, "t/part-0.safetensors", when, 0), 0);
    reopen(&o, &tiny, &staged);
    learn_checksums(&o);
    assert_int_equal(try_open(&o, why), 1);
    shut(&o);
}

static void another_content_or_layout_is_another_import(void **state)
{
    (void)state;
    struct opened o;
    char why[256];
    open_new(&o, &tiny);
    ps_import_close(build(&o, NULL));
    shut(&o);
    /* rows in blocks */
    struct ps_unit_options blocks = staged;
    blocks.embed_block_max = 480;
    reopen(&o, &tiny, &blocks);
    learn_checksums(&o);
    assert_int_equal(try_open(&o, why), 0);
    assert_non_null(strstr(why, "no import"));
    ps_import_close(build(&o, NULL));
    assert_int_equal(try_open(&o, why), 1);
    assert_int_equal(entries(), 2);
    shut(&o);
    /* one bit of a weight */
    int fd = open("t/part-1.safetensors", O_RDWR);
    struct stat st;
    unsigned char byte;
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(pread(fd, &byte, 1, st.st_size - 2), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, st.st_size - 2), 1);
    close(fd);
    reopen(&o, &tiny, &staged);
    learn_checksums(&o);
    assert_int_equal(try_open(&o, why), 0);
    assert_non_null(strstr(why, "no import"));
    shut(&o);
}

static void an_open_directory_of_others_is_not_believed(void **state)
{
    (void)state;
    struct opened o;
    char why[256], dir[512];
    open_new(&o, &tiny);
    struct ps_import *im = build(&o, NULL);
    snprintf(dir, sizeof dir, "%s", ps_import_path(im));
    *strrchr(dir, '/') = '\0';
    ps_import_close(im);
    struct stat st;
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(chmod(dir, 0777), 0);
    assert_int_equal(try_open(&o, why), 0);
    assert_int_equal(chmod(dir, 0700), 0);
    assert_int_equal(try_open(&o, why), 1);
    assert_int_equal(rename(dir, "elsewhere"), 0);
    assert_int_equal(symlink("../elsewhere", dir), 0);
    assert_int_equal(try_open(&o, why), 0);
    assert_non_null(strstr(why, "link"));
    shut(&o);
}

/* ---- damage ---- */

static void write_file(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void index_path(const struct ps_import *im, char path[512])
{
    snprintf(path, 512, "%s", ps_import_path(im));
    snprintf(strrchr(path, '/'), 16, "/index.bin");
}

static void a_damaged_index_is_found_and_made_again(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err = {0};
    char path[512], *index, why[256];
    size_t len;
    open_new(&o, &tiny);
    struct ps_import *im = build(&o, NULL);
    index_path(im, path);
    ps_import_close(im);
    assert_int_equal(ps_file_read(path, 1 << 20, &index, &len, &err), 0);
    for (size_t i = 0; i < len; i++) {
        index[i] ^= (char)(1 << i % 8);
        write_file(path, index, len);
        assert_int_equal(try_open(&o, why), 0);
        index[i] ^= (char)(1 << i % 8);
    }
    for (size_t cut = 0; cut < len; cut += 7) {
        write_file(path, index, cut);
        assert_int_equal(try_open(&o, why), 0);
        assert_non_null(strstr(why, "damaged"));
    }
    assert_int_equal(unlink(path), 0);
    assert_int_equal(try_open(&o, why), 0);
    im = build(&o, NULL);
    assert_int_equal(entries(), 1);
    check_bits(&o, im, NULL);
    ps_import_close(im);
    free(index);
    shut(&o);
}

/* Numbers that would leave the file, under a checksum that is right. */
static void a_false_index_cannot_leave_its_file(void **state)
{
    (void)state;
    static const uint64_t bad[] = {0,
                                   1,
                                   64,
                                   4095,
                                   4096,
                                   1u << 31,
                                   UINT32_MAX,
                                   UINT64_MAX,
                                   UINT64_MAX - 4095,
                                   (uint64_t)1 << 63};
    struct opened o;
    struct ps_error err = {0};
    char path[512], *index;
    size_t len;
    unsigned taken = 0, refused = 0;
    open_new(&o, &tiny);
    struct ps_import *im = build(&o, NULL);
    index_path(im, path);
    assert_int_equal(ps_file_read(path, 1 << 20, &index, &len, &err), 0);
    ps_import_close(im);
    for (size_t at = sizeof(struct ps__import_header); at < len - 8; at += 4)
        for (size_t b = 0; b < sizeof bad / sizeof bad[0]; b++) {
            char was[8];
            size_t n = at + 8 <= len - 8 && at % 8 == 0 ? 8 : 4;
            memcpy(was, index + at, 8);
            memcpy(index + at, &bad[b], n);
            uint64_t own = XXH3_64bits(index, len - 8);
            memcpy(index + len - 8, &own, 8);
            write_file(path, index, len);
            if (ps_import_open(&im, "nvme", &o.s, o.files, NULL, &err) == 1) {
                /* offsets and sizes within the file: the chunk's own checksum judges */
                struct ps_import_decoder *d;
                assert_int_equal(ps_import_decoder_create(&d, 1), 0);
                for (uint32_t k = 0; k < o.s.unit_count; k++) {
                    struct ps_extent e;
                    ps_import_unit_extent(im, k, &e);
                    unsigned char *raw = read_extent(im, &e);
                    unsigned char *near = malloc((size_t)o.s.unit[k].near_bytes);
                    int ret = ps_import_decode_unit(im, d, NULL, k, near, raw, &err);
                    assert_true(ret == 0 || ret == PS_ECHECKSUM);
                    free(near);
                    free(raw);
                }
                ps_import_decoder_destroy(d);
                ps_import_close(im);
                taken++;
            } else {
                refused++;
            }
            memcpy(index + at, was, 8);
        }
    assert_true(taken > 0);
    assert_true(refused > taken);
    free(index);
    shut(&o);
}

static void weights_cut_short_are_found_at_once(void **state)
{
    (void)state;
    struct opened o;
    char path[512], why[256];
    open_new(&o, &tiny);
    struct ps_import *im = build(&o, NULL);
    snprintf(path, sizeof path, "%s", ps_import_path(im));
    off_t size = (off_t)ps_import_bytes(im);
    ps_import_close(im);
    assert_int_equal(truncate(path, size - 1), 0);
    assert_int_equal(try_open(&o, why), 0);
    assert_non_null(strstr(why, "cut short"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(try_open(&o, why), 0);
    shut(&o);
}

static void a_flipped_bit_of_the_weights_is_found_and_named(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err = {0};
    struct ps_pool *pool;
    struct ps_import_decoder *d;
    struct ps_rng_key key = {.seed = 3};
    open_new(&o, &model);
    assert_int_equal(ps_pool_create(&pool, 2), 0);
    struct ps_import *im = build(&o, pool);
    assert_int_equal(ps_import_decoder_create(&d, 2), 0);
    for (uint32_t k = 0; k < o.s.unit_count; k++) {
        struct ps_extent e;
        ps_import_unit_extent(im, k, &e);
        unsigned char *raw = read_extent(im, &e);
        unsigned char *near = malloc((size_t)o.s.unit[k].near_bytes);
        assert_non_null(near);
        unsigned found = 0;
        for (uint64_t i = 0; i < 24; i++) {
            size_t bit = ((size_t)ps_rng_u32(&key, k * 100 + i) << 8) % (8 * e.bytes);
            raw[bit / 8] ^= (unsigned char)(1u << bit % 8);
            memset(&err, 0, sizeof err);
            int ret = ps_import_decode_unit(im, d, pool, k, near, raw, &err);
            raw[bit / 8] ^= (unsigned char)(1u << bit % 8);
            if (ret == 0)
                continue; /* in the zeros at a chunk's or the unit's end */
            found++;
            assert_int_equal(ret, PS_ECHECKSUM);
            assert_string_equal(err.file, ps_import_path(im));
            assert_non_null(strstr(err.message, "bytes "));
            unsigned long long from = strtoull(strstr(err.message, "bytes ") + 6, NULL, 10);
            assert_true(from <= e.offset + bit / 8);
            assert_true(e.offset + bit / 8 < from + CHUNK);
            assert_non_null(strstr(err.advice, "penstock-import-"));
        }
        assert_true(found >= 20 || e.bytes < 16384);
        assert_int_equal(ps_import_decode_unit(im, d, pool, k, near, raw, &err), 0);
        free(near);
        free(raw);
    }
    ps_import_decoder_destroy(d);
    ps_pool_destroy(pool);
    ps_import_close(im);
    shut(&o);
}

static void ranges_of_a_unit_have_its_bits(void **state)
{
    (void)state;
    struct opened o;
    struct ps_pool *pool;
    struct ps_import_decoder *d;
    struct ps_error err = {0};
    open_new(&o, &model);
    assert_int_equal(ps_pool_create(&pool, 2), 0);
    struct ps_import *im = build(&o, pool);
    assert_int_equal(ps_import_decoder_create(&d, 2), 0);
    int many = 0;
    for (uint32_t k = 0; k < o.s.unit_count; k++) {
        size_t n = (size_t)o.s.unit[k].near_bytes;
        struct ps_extent e;
        ps_import_unit_extent(im, k, &e);
        unsigned char *raw = read_extent(im, &e), *want = malloc(n), *got = malloc(n + 64);
        assert_true(want && got);
        assert_int_equal(ps_import_decode_unit(im, d, pool, k, want, raw, &err), 0);
        for (size_t begin = 0; begin < n; begin += CHUNK) {
            size_t to_end = n - begin, piece = to_end < CHUNK ? to_end : CHUNK;
            for (int i = 0; i < 2; i++) { /* one chunk; all that is left */
                size_t bytes = i ? to_end : piece;
                memset(got, 0xcc, n + 64);
                assert_int_equal(
                    ps_import_decode_range(im, d, pool, k, begin, bytes, got, raw, &err), 0);
                assert_memory_equal(got, want + begin, bytes);
                for (size_t c = bytes; c < n + 64; c++)
                    assert_int_equal(got[c], 0xcc);
            }
            many += begin > 0;
        }
        /* only a range that holds the damage fails, and the message has its place */
        raw[8] ^= 1;
        int ret = ps_import_decode_range(im, d, pool, k, 0, n < CHUNK ? n : CHUNK, got, raw, &err);
        assert_int_equal(ret, PS_ECHECKSUM);
        assert_non_null(strstr(err.message, "bytes "));
        if (n > CHUNK)
            assert_int_equal(
                ps_import_decode_range(im, d, pool, k, CHUNK, n - CHUNK, got, raw, &err), 0);
        free(got);
        free(want);
        free(raw);
    }
    assert_true(many > 0);
    ps_import_decoder_destroy(d);
    ps_import_close(im);
    ps_pool_destroy(pool);
    shut(&o);
}

static void an_expected_plan_is_as_large_as_the_import_will_be(void **state)
{
    (void)state;
    struct opened o;
    struct ps_import_sample sample;
    struct ps_unit_sources expected, real;
    struct ps_error err = {0};
    open_new(&o, &model);
    assert_int_equal(ps_import_measure(&sample, &o.s, o.files, NULL, 0, &err), 0);
    assert_int_equal(ps_import_expect_sources(&o.s, sample.ratio, &expected, &err), 0);
    struct ps_import *im = build(&o, NULL);
    assert_int_equal(ps_import_sources(im, &o.s, &real, &err), 0);
    assert_int_equal(expected.unit_count, real.unit_count);
    assert_int_equal(expected.embed_block_count, real.embed_block_count);
    assert_false(expected.all_direct);
    uint64_t at = 0;
    for (uint32_t k = 0; k < real.unit_count; k++) {
        const struct ps_unit_source *x = &expected.unit[k], *r = &real.unit[k];
        assert_int_equal(x->near_bytes, r->near_bytes);
        assert_int_equal(x->tensor_count, r->tensor_count);
        assert_int_equal(x->extent_count, 1);
        assert_int_equal(x->extent[0].offset, at);
        assert_int_equal(x->raw_bytes % 4096, 0);
        /* random weights compress alike everywhere; a page more or less for small units */
        double want = (double)r->raw_bytes, got = (double)x->raw_bytes;
        assert_true(fabs(got - want) < 0.02 * want + 4096);
        at += x->raw_bytes;
    }
    ps_unit_sources_fini(&expected);
    ps_unit_sources_fini(&real);
    ps_import_close(im);
    shut(&o);
}

static void a_scan_learns_what_a_build_learns(void **state)
{
    (void)state;
    struct opened built, scanned;
    struct ps_import *im, *again;
    struct ps_error err = {0};
    char why[256];
    open_new(&built, &tiny);
    reopen(&scanned, &tiny, &staged);
    assert_int_equal(ps_import_open(&again, "nvme", &scanned.s, scanned.files, why, &err), 0);
    im = build(&built, NULL);
    assert_int_equal(ps_import_scan(&scanned.s, scanned.files, &err), 0);
    assert_int_equal(scanned.s.checksum_count, built.s.checksum_count);
    assert_memory_equal(scanned.s.checksum, built.s.checksum,
                        built.s.checksum_count * sizeof(uint64_t));
    assert_int_equal(ps_import_open(&again, "nvme", &scanned.s, scanned.files, why, &err), 1);
    ps_import_close(again);
    /* what is known is compared */
    scanned.s.checksum[0] ^= 1;
    assert_int_equal(ps_import_scan(&scanned.s, scanned.files, &err), PS_ECHECKSUM);
    ps_import_close(im);
    shut(&built);
    shut(&scanned);
}

/* ---- builds that fail ---- */

static int build_code(struct opened *o, const struct ps_import_options *opt, struct ps_error *err)
{
    struct ps_import *im = NULL;
    memset(err, 0, sizeof *err);
    int ret = ps_import_build(&im, &o->s, &o->table, o->files, opt, err);
    if (ret == 0)
        ps_import_close(im);
    else
        assert_true(strlen(err->message) > 0);
    return ret;
}

static const struct ps_import_options here = {.path = "nvme"};

static void what_is_not_bf16_or_lies_direct_is_refused(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err;
    const char *why;
    struct ps_unit_options wide = {.dtype = PS_DTYPE_F32, .force_staged = true};
    open_new(&o, &tiny);
    assert_true(ps_import_possible(&o.s, &why));
    shut(&o);
    reopen(&o, &tiny, &wide);
    assert_false(ps_import_possible(&o.s, &why));
    assert_int_equal(build_code(&o, &here, &err), PS_EUSAGE);
    assert_int_equal(try_open(&o, NULL), PS_EUSAGE);
    shut(&o);
    struct unit_model direct = model;
    direct.dir = "d";
    direct.hidden = 16;
    direct.vocab = 32;
    direct.header_pad = 0;
    open_new(&o, &direct);
    shut(&o);
    struct ps_unit_options in_place = {.dtype = PS_DTYPE_BF16};
    for (direct.header_pad = 0; direct.header_pad < 2; direct.header_pad++) {
        struct ps_param_table table;
        unit_model_write(&direct, &table);
        ps_param_table_fini(&table);
        reopen(&o, &direct, &in_place);
        assert_int_equal(ps_import_possible(&o.s, NULL), !o.s.all_direct);
        shut(&o);
    }
    assert_int_equal(entries(), 0);
}

static bool count_progress(void *arg, uint64_t done, uint64_t total)
{
    uint64_t *seen = arg; /* calls, last done, total, calls allowed */
    assert(done > seen[1]);
    assert(done <= total);
    seen[0]++;
    seen[1] = done;
    seen[2] = total;
    return seen[0] < seen[3];
}

static void a_stopped_build_leaves_nothing(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err;
    open_new(&o, &tiny);
    uint64_t seen[4] = {0, 0, 0, 100};
    struct ps_import_options opt = here;
    opt.progress = count_progress;
    opt.arg = seen;
    for (uint64_t stop = 1; stop <= o.s.unit_count; stop++) {
        memset(seen, 0, sizeof seen);
        seen[3] = stop;
        assert_int_equal(build_code(&o, &opt, &err), PS_ESTOPPED);
        assert_int_equal(seen[0], stop);
        assert_int_equal(entries(), 0);
    }
    memset(seen, 0, sizeof seen);
    seen[3] = 100;
    assert_int_equal(build_code(&o, &opt, &err), 0);
    assert_int_equal(seen[0], o.s.unit_count);
    assert_int_equal(seen[1], seen[2]);
    shut(&o);
}

static void a_failed_write_leaves_nothing(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err;
    struct rlimit was, small;
    open_new(&o, &tiny);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    signal(SIGXFSZ, SIG_IGN);
    int ret = -1, failures = 0;
    for (rlim_t limit = 0; ret; limit += 2048) {
        small = was;
        small.rlim_cur = limit;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        ret = build_code(&o, &here, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
        if (ret == 0)
            continue;
        failures++;
        assert_int_equal(ret, -EFBIG);
        assert_true(strlen(err.file) > 0);
        assert_int_equal(entries(), 0);
    }
    assert_true(failures >= 3);
    assert_int_equal(entries(), 1);
    shut(&o);
}

static void a_disk_that_is_too_small_is_found_before_writing(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err;
    open_new(&o, &tiny);
    /* a plan of more bytes than any disk has; nothing of it is read before the check */
    uint64_t near = o.s.unit[0].near_bytes;
    o.s.unit[0].near_bytes = (uint64_t)1 << 53;
    assert_true(ps_import_disk_bytes(&o.s, 1) > (uint64_t)1 << 53);
    assert_true(ps_import_disk_bytes(&o.s, 1.5) < (uint64_t)1 << 53);
    assert_int_equal(build_code(&o, &here, &err), -ENOSPC);
    assert_non_null(strstr(err.message, "are free"));
    assert_int_equal(entries(), 0);
    o.s.unit[0].near_bytes = near;
    struct ps_import_options absent = {.path = "absent"};
    assert_int_equal(build_code(&o, &absent, &err), -ENOENT);
    shut(&o);
}

static void a_second_builder_is_told_to_wait(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err;
    open_new(&o, &tiny);
    int fd = open("nvme/penstock-import.lock", O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    assert_int_equal(build_code(&o, &here, &err), -EBUSY);
    close(fd);
    assert_int_equal(build_code(&o, &here, &err), 0);
    shut(&o);
}

static void what_a_killed_build_left_is_removed(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err;
    open_new(&o, &tiny);
    assert_int_equal(ps_file_make_dirs("nvme/penstock-import-tmp", &err), 0);
    write_file("nvme/penstock-import-tmp/weights.bin", "x", 1);
    write_file("nvme/other", "y", 1);
    assert_int_equal(build_code(&o, &here, &err), 0);
    assert_int_equal(entries(), 2); /* the import and what is not ours */
    shut(&o);
}

static void damaged_or_non_finite_weights_are_not_imported(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err;
    struct stat st;
    open_new(&o, &tiny);
    learn_checksums(&o);
    int fd = open("t/part-0.safetensors", O_RDWR);
    static const unsigned char inf[8] = {0x80, 0x7f, 0x80, 0x7f, 0x80, 0x7f, 0x80, 0x7f};
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(pwrite(fd, inf, 8, st.st_size - 8), 8);
    assert_int_equal(build_code(&o, &here, &err), PS_ECHECKSUM);
    assert_string_equal(err.file, "t/part-0.safetensors");
    assert_int_equal(entries(), 0);
    shut(&o);
    reopen(&o, &tiny, &staged);
    assert_int_equal(build_code(&o, &here, &err), PS_EFORMAT);
    assert_non_null(strstr(err.message, "NaN or Inf"));
    assert_int_equal(entries(), 0);
    assert_int_equal(ftruncate(fd, st.st_size - 4096), 0);
    assert_int_equal(build_code(&o, &here, &err), PS_EFORMAT);
    assert_non_null(strstr(err.message, "shorter"));
    assert_int_equal(entries(), 0);
    close(fd);
    shut(&o);
}

static void memory_that_runs_out_leaves_nothing(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err;
    struct ps_import_sample sample;
    if (!FAIL_ALLOC) {
        print_message("skip: the sanitizer brings its own malloc\n");
        skip();
    }
    open_new(&o, &tiny);
    int ret = -1;
    for (long n = 1; ret; n++) {
        long live = fail_alloc_live;
        fail_alloc_in = n;
        ret = build_code(&o, &here, &err);
        fail_alloc_in = 0;
        assert_int_equal(fail_alloc_live, live);
        if (ret) {
            assert_int_equal(ret, -ENOMEM);
            /* when only opening it failed, a whole one is there */
            if (entries() > 0)
                assert_int_equal(try_open(&o, NULL), 1);
            assert_int_equal(access("nvme/penstock-import-tmp", F_OK), -1);
        } else {
            assert_true(n > 8);
        }
    }
    ret = -1;
    for (long n = 1; ret; n++) {
        long live = fail_alloc_live;
        struct ps_import *im = NULL;
        struct ps_import_decoder *d = NULL;
        struct ps_unit_sources s;
        fail_alloc_in = n;
        ret = ps_import_open(&im, "nvme", &o.s, o.files, NULL, &err);
        ret = ret == 1 ? ps_import_sources(im, &o.s, &s, &err) : ret ? ret : -EIO;
        if (!ret) {
            ret = ps_import_decoder_create(&d, 2);
            ps_unit_sources_fini(&s);
        }
        fail_alloc_in = 0;
        ps_import_decoder_destroy(d);
        ps_import_close(im);
        assert_true(ret == 0 || ret == -ENOMEM);
        assert_int_equal(fail_alloc_live, live);
    }
    ret = -1;
    for (long n = 1; ret; n++) {
        long live = fail_alloc_live;
        fail_alloc_in = n;
        ret = ps_import_measure(&sample, &o.s, o.files, NULL, 0, &err);
        fail_alloc_in = 0;
        assert_true(ret == 0 || ret == -ENOMEM);
        assert_int_equal(fail_alloc_live, live);
    }
    shut(&o);
}

/* ---- does it pay ---- */

static void a_sample_predicts_the_size_of_the_import(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err = {0};
    struct ps_import_sample sample;
    struct ps_pool *pool;
    assert_int_equal(ps_pool_create(&pool, 2), 0);
    open_new(&o, &model);
    uint64_t near = 0;
    for (uint32_t k = 0; k < o.s.unit_count; k++)
        near += o.s.unit[k].near_bytes;
    assert_int_equal(ps_import_measure(&sample, &o.s, o.files, pool, 2 * CHUNK, &err), 0);
    assert_true(sample.near_bytes > 0);
    assert_true(sample.near_bytes <= 2 * CHUNK);
    assert_int_equal(ps_import_measure(&sample, &o.s, o.files, pool, UINT64_C(1) << 40, &err), 0);
    assert_int_equal(sample.near_bytes, near); /* all there is */
    struct ps_import *im = build(&o, pool);
    double ratio = (double)near / (double)ps_import_bytes(im);
    assert_true(fabs(sample.ratio / ratio - 1) < 0.01);
    assert_true(sample.encode_rate > 1e6 && sample.encode_rate < 1e12);
    assert_true(sample.decode_rate > sample.encode_rate);
    ps_import_close(im);
    shut(&o);
    ps_pool_destroy(pool);
}

static void a_sample_of_wide_files_is_measured_as_bf16(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err = {0};
    struct ps_import_sample sample;
    struct unit_model m = tiny;
    uint64_t near = 0;
    m.dtype[1] = m.dtype[2] = PS_DTYPE_F32;
    open_new(&o, &m);
    for (uint32_t k = 0; k < o.s.unit_count; k++)
        near += o.s.unit[k].near_bytes;
    assert_int_equal(ps_import_measure(&sample, &o.s, o.files, NULL, 0, &err), 0);
    assert_int_equal(sample.near_bytes, near);
    assert_true(sample.ratio >= 1);
    shut(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_import_gives_the_bits_of_the_files),
        cmocka_unit_test(a_unit_of_many_chunks_keeps_its_bits),
        cmocka_unit_test(two_builds_write_the_same_bytes),
        cmocka_unit_test(units_are_extents_of_one_aligned_file),
        cmocka_unit_test(an_import_is_found_again_by_content_alone),
        cmocka_unit_test(another_content_or_layout_is_another_import),
        cmocka_unit_test(an_open_directory_of_others_is_not_believed),
        cmocka_unit_test(a_damaged_index_is_found_and_made_again),
        cmocka_unit_test(a_false_index_cannot_leave_its_file),
        cmocka_unit_test(weights_cut_short_are_found_at_once),
        cmocka_unit_test(a_flipped_bit_of_the_weights_is_found_and_named),
        cmocka_unit_test(ranges_of_a_unit_have_its_bits),
        cmocka_unit_test(an_expected_plan_is_as_large_as_the_import_will_be),
        cmocka_unit_test(a_scan_learns_what_a_build_learns),
        cmocka_unit_test(what_is_not_bf16_or_lies_direct_is_refused),
        cmocka_unit_test(a_stopped_build_leaves_nothing),
        cmocka_unit_test(a_failed_write_leaves_nothing),
        cmocka_unit_test(a_disk_that_is_too_small_is_found_before_writing),
        cmocka_unit_test(a_second_builder_is_told_to_wait),
        cmocka_unit_test(what_a_killed_build_left_is_removed),
        cmocka_unit_test(damaged_or_non_finite_weights_are_not_imported),
        cmocka_unit_test(memory_that_runs_out_leaves_nothing),
        cmocka_unit_test(a_sample_predicts_the_size_of_the_import),
        cmocka_unit_test(a_sample_of_wide_files_is_measured_as_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
