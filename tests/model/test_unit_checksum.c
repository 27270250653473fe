/* Checksums of the model's files: any flipped bit is found and named, the table survives a round
 * trip, a changed file, layout or table is noticed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "tests/helpers/unit_model.h"

static const struct unit_model small = {.dir = "m",
                                        .n_layer = 2,
                                        .hidden = 12,
                                        .vocab = 50,
                                        .shards = 2,
                                        .dtype = {PS_DTYPE_BF16, PS_DTYPE_BF16, PS_DTYPE_BF16}};
static const struct ps_unit_options bf16 = {.dtype = PS_DTYPE_BF16};

struct opened {
    struct ps_param_table table;
    struct ps_st_set *files;
    struct ps_unit_sources s;
};

static void reopen(struct opened *o, const struct ps_unit_options *opt)
{
    struct ps_error err = {0};
    assert_int_equal(ps_st_set_open(&o->files, small.dir, &err), 0);
    assert_int_equal(ps_unit_sources_create(&o->s, &o->table, o->files, small.dir, opt, &err), 0);
}

static void shut(struct opened *o)
{
    ps_unit_sources_fini(&o->s);
    ps_st_set_close(o->files);
}

/* Verify every extent of every unit; the first error. */
static int verify_all(struct opened *o, struct ps_error *err)
{
    int ret = 0;
    for (uint32_t k = 0; k < o->s.unit_count && !ret; k++) {
        const struct ps_unit_source *u = &o->s.unit[k];
        unsigned char *raw = unit_model_read(u, o->files);
        for (uint32_t i = 0; i < u->extent_count && !ret; i++)
            ret = ps_unit_verify(&o->s, &u->extent[i], raw + u->extent[i].raw_offset, "the.file",
                                 err);
        free(raw);
    }
    return ret;
}

static void open_new(struct opened *o, const struct ps_unit_options *opt)
{
    unit_model_write(&small, &o->table);
    reopen(o, opt);
}

static void the_first_pass_remembers_and_the_second_agrees(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err = {0};
    open_new(&o, &bf16);
    for (uint64_t i = 0; i < o.s.checksum_count; i++)
        assert_int_equal(o.s.checksum[i], 0);
    assert_int_equal(verify_all(&o, &err), 0);
    for (uint64_t i = 0; i < o.s.checksum_count; i++)
        assert_int_not_equal(o.s.checksum[i], 0);
    assert_int_equal(verify_all(&o, &err), 0);
    shut(&o);
    ps_param_table_fini(&o.table);
}

/* One extent of 5 MiB and a bit, in the middle of a raw slot. */
static void any_flipped_bit_is_found_and_named(void **state)
{
    (void)state;
    const size_t chunk = PS_UNIT_CHUNK_BYTES, expect = 2 * chunk + chunk / 2 + 77;
    const size_t raw_offset = 8192;
    uint64_t sums[5] = {7, 0, 0, 0, 9}; /* 7 and 9 belong to others */
    struct ps_unit_sources s = {.checksum = sums, .checksum_count = 5};
    struct ps_extent e = {.offset = 40960,
                          .bytes = (expect + 4095) & ~(size_t)4095,
                          .expect = expect,
                          .raw_offset = raw_offset,
                          .checksum_idx = 1};
    unsigned char *raw = malloc(raw_offset + e.bytes);
    struct ps_rng_key key = {.seed = 5};
    struct ps_error err = {0};
    assert_non_null(raw);
    for (size_t i = 0; i < raw_offset + e.bytes; i++)
        raw[i] = (unsigned char)ps_rng_u32(&key, i);
    assert_int_equal(ps_unit_verify(&s, &e, raw + raw_offset, "the.file", &err), 0);
    for (int i = 0; i < 300; i++) {
        /* the first and last bits of chunks and the extent, then random ones */
        size_t bit = i == 0   ? 0
                     : i == 1 ? 8 * chunk - 1
                     : i == 2 ? 8 * chunk
                     : i == 3 ? 8 * expect - 1
                              : ps_rng_u32(&key, 1000000000u + (uint64_t)i) % (8 * expect);
        unsigned char *at = &raw[raw_offset + bit / 8];
        unsigned char mask = (unsigned char)(1u << bit % 8);
        *at ^= mask;
        assert_int_equal(ps_unit_verify(&s, &e, raw + raw_offset, "the.file", &err), PS_ECHECKSUM);
        assert_string_equal(err.file, "the.file");
        assert_true(strlen(err.advice) > 0);
        char want[64]; /* the chunk's offset in the file */
        snprintf(want, sizeof want, "bytes %zu to", (size_t)e.offset + bit / 8 / chunk * chunk);
        assert_non_null(strstr(err.message, want));
        *at ^= mask;
    }
    /* bytes outside the expected ones do not matter */
    raw[raw_offset + expect] ^= 1;
    raw[raw_offset - 1] ^= 1;
    assert_int_equal(ps_unit_verify(&s, &e, raw + raw_offset, "the.file", &err), 0);
    assert_int_equal(sums[0], 7);
    assert_int_equal(sums[4], 9);
    free(raw);
}

static void damage_on_disk_is_found_on_the_next_pass(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err = {0};
    open_new(&o, &bf16);
    assert_int_equal(verify_all(&o, &err), 0);
    struct stat st;
    int fd = open("m/part-1.safetensors", O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    unsigned char byte;
    assert_int_equal(pread(fd, &byte, 1, st.st_size - 1), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, st.st_size - 1), 1);
    assert_int_equal(verify_all(&o, &err), PS_ECHECKSUM);
    close(fd);
    shut(&o);
    ps_param_table_fini(&o.table);
}

static void the_table_survives_a_round_trip(void **state)
{
    (void)state;
    struct opened o, again;
    struct ps_error err = {0};
    char why[256];
    open_new(&o, &bf16);
    assert_int_equal(verify_all(&o, &err), 0);
    o.s.checksum[1] = 0; /* not yet known stays not yet known */
    assert_int_equal(ps_unit_checksums_save(&o.s, o.files, "table", &err), 0);
    again.table = o.table;
    reopen(&again, &bf16);
    assert_int_equal(ps_unit_checksums_load(&again.s, again.files, "table", why, &err), 1);
    assert_string_equal(why, "");
    assert_int_equal(again.s.checksum_count, o.s.checksum_count);
    assert_memory_equal(again.s.checksum, o.s.checksum, o.s.checksum_count * sizeof(uint64_t));
    assert_int_equal(verify_all(&again, &err), 0);
    shut(&again);
    shut(&o);
    ps_param_table_fini(&o.table);
}

static void save_table(void)
{
    struct opened o;
    struct ps_error err = {0};
    open_new(&o, &bf16);
    assert_int_equal(verify_all(&o, &err), 0);
    assert_int_equal(ps_unit_checksums_save(&o.s, o.files, "table", &err), 0);
    shut(&o);
    ps_param_table_fini(&o.table);
}

/* Load "table" with these options; nothing of it may be taken. */
static void expect_refused(const struct ps_unit_options *opt, const char *text)
{
    struct opened o;
    struct ps_error err = {0};
    char why[256];
    unit_model_table(&small, &o.table);
    reopen(&o, opt);
    assert_int_equal(ps_unit_checksums_load(&o.s, o.files, "table", why, &err), 0);
    if (!strstr(why, text))
        fail_msg("\"%s\" does not say \"%s\"", why, text);
    assert_int_equal(ps_unit_checksums_load(&o.s, o.files, "table", NULL, &err), 0);
    for (uint64_t i = 0; i < o.s.checksum_count; i++)
        assert_int_equal(o.s.checksum[i], 0);
    shut(&o);
    ps_param_table_fini(&o.table);
}

static void a_changed_file_is_named_and_its_table_not_used(void **state)
{
    (void)state;
    static const struct timespec when[2] = {{1000, 1}, {1000, 1}};
    save_table();
    struct stat st;
    assert_int_equal(stat("m/part-1.safetensors", &st), 0);
    /* same bytes, another time */
    assert_int_equal(utimensat(AT_FDCWD, "m/part-1.safetensors", when, 0), 0);
    expect_refused(&bf16, "part-1.safetensors has another modification time");
    /* another nanosecond only */
    struct timespec shifted[2] = {st.st_atim, st.st_mtim};
    shifted[1].tv_nsec = (shifted[1].tv_nsec + 1) % 1000000000;
    assert_int_equal(utimensat(AT_FDCWD, "m/part-1.safetensors", shifted, 0), 0);
    expect_refused(&bf16, "part-1.safetensors has another modification time");
    /* the time restored: used again */
    struct timespec old[2] = {st.st_atim, st.st_mtim};
    assert_int_equal(utimensat(AT_FDCWD, "m/part-1.safetensors", old, 0), 0);
    struct opened o;
    struct ps_error err = {0};
    unit_model_table(&small, &o.table);
    reopen(&o, &bf16);
    assert_int_equal(ps_unit_checksums_load(&o.s, o.files, "table", NULL, &err), 1);
    shut(&o);
    ps_param_table_fini(&o.table);
}

static void another_size_is_named(void **state)
{
    (void)state;
    struct unit_model padded = small;
    struct ps_param_table table;
    save_table();
    padded.header_pad = 2;
    unit_model_write(&padded, &table);
    ps_param_table_fini(&table);
    expect_refused(&bf16, "part-0.safetensors has another size");
}

static void another_layout_is_not_used(void **state)
{
    (void)state;
    save_table();
    struct ps_unit_options blocks = bf16;
    blocks.embed_block_max = 480;
    expect_refused(&blocks, "other pieces");
    /* what does not change the extents does not matter */
    struct ps_unit_options staged = bf16;
    staged.force_staged = true;
    struct opened o;
    struct ps_error err = {0};
    unit_model_table(&small, &o.table);
    reopen(&o, &staged);
    assert_int_equal(ps_unit_checksums_load(&o.s, o.files, "table", NULL, &err), 1);
    shut(&o);
    ps_param_table_fini(&o.table);
}

static void an_absent_table_is_no_error(void **state)
{
    (void)state;
    save_table();
    assert_int_equal(unlink("table"), 0);
    expect_refused(&bf16, "no table");
}

static void a_damaged_table_is_not_used(void **state)
{
    (void)state;
    char *table;
    size_t len;
    struct ps_error err = {0};
    save_table();
    assert_int_equal(ps_file_read("table", 1 << 20, &table, &len, &err), 0);
    struct opened o;
    unit_model_table(&small, &o.table);
    reopen(&o, &bf16);
    for (size_t i = 0; i < len; i++) {
        table[i] ^= (char)(1 << i % 8);
        FILE *f = fopen("table", "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(table, 1, len, f), len);
        assert_int_equal(fclose(f), 0);
        assert_int_equal(ps_unit_checksums_load(&o.s, o.files, "table", NULL, &err), 0);
        table[i] ^= (char)(1 << i % 8);
    }
    for (size_t cut = 0; cut < len; cut += 13) {
        FILE *f = fopen("table", "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(table, 1, cut, f), cut);
        assert_int_equal(fclose(f), 0);
        assert_int_equal(ps_unit_checksums_load(&o.s, o.files, "table", NULL, &err), 0);
    }
    for (uint64_t i = 0; i < o.s.checksum_count; i++)
        assert_int_equal(o.s.checksum[i], 0);
    free(table);
    shut(&o);
    ps_param_table_fini(&o.table);
}

static void a_table_that_cannot_be_read_is_an_error(void **state)
{
    (void)state;
    struct opened o;
    struct ps_error err = {0};
    open_new(&o, &bf16);
    assert_int_equal(ps_unit_checksums_load(&o.s, o.files, "m/part-0.safetensors/x", NULL, &err),
                     -ENOTDIR);
    assert_string_equal(err.file, "m/part-0.safetensors/x");
    assert_int_equal(ps_unit_checksums_save(&o.s, o.files, "absent/table", &err), -ENOENT);
    shut(&o);
    ps_param_table_fini(&o.table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_pass_remembers_and_the_second_agrees),
        cmocka_unit_test(any_flipped_bit_is_found_and_named),
        cmocka_unit_test(damage_on_disk_is_found_on_the_next_pass),
        cmocka_unit_test(the_table_survives_a_round_trip),
        cmocka_unit_test(a_changed_file_is_named_and_its_table_not_used),
        cmocka_unit_test(another_size_is_named),
        cmocka_unit_test(another_layout_is_not_used),
        cmocka_unit_test(an_absent_table_is_no_error),
        cmocka_unit_test(a_damaged_table_is_not_used),
        cmocka_unit_test(a_table_that_cannot_be_read_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
