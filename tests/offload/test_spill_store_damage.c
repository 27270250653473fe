/* A spill store that was damaged: torn superblocks, flipped bits, stale, swapped, missing and
 * foreign pieces. Each is found and named, or was of no use to anybody. */
#include "tests/offload/spill_check.h"

/* Offsets of docs/spill-store.md. */
enum { MIB = 1 << 20, BLOCK = 4096, PIECE = 512, TABLE_FIELD = 104, LAYOUT_FIELD = 80 };

static int teardown(void **state)
{
    (void)state;
    remove_store();
    return 0;
}

static uint64_t u64_at(const unsigned char *p)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

/* Open, compare with `step`, close. */
static void assert_recovers(uint32_t paths, uint64_t step)
{
    struct ps_spill_store_options opt = spill_options(paths);
    struct spill_run r;
    uint64_t found = 0;
    OK(run_open(&r, &opt, &found, err));
    assert_int_equal(found, step);
    OK(holds_step(&r, step, PS_COPY_COMMITTED, err));
    run_close(&r);
}

static int open_error(uint32_t paths, struct ps_error *e)
{
    struct ps_spill_store_options opt = spill_options(paths);
    struct spill_run r;
    uint64_t found = 0;
    memset(e, 0, sizeof *e);
    int rc = run_open(&r, &opt, &found, e);
    if (rc == 0)
        run_close(&r);
    return rc;
}

/* --- torn superblocks --- */

enum tear { TEAR_ZEROS, TEAR_INVERTED, TEAR_OLD, TEARS };

static void any_torn_superblock_leaves_the_one_before(void **state)
{
    (void)state;
    unsigned char old[BLOCK], whole[BLOCK], torn[BLOCK];
    make_store(1, 3); /* generation 3 lies in superblock 0, where 1 was */
    poke(STORE "/data-0", MIB, old, BLOCK, false);
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    uint64_t step;
    OK(run_open(&r, &opt, &step, err));
    OK(do_step(&r, 4, err));
    OK(do_step(&r, 5, err));
    run_close(&r);
    poke(STORE "/data-0", MIB, whole, BLOCK, false);
    assert_memory_not_equal(old, whole, BLOCK);
    int same = 0, refused = 0;
    for (int mask = 0; mask < 256; mask++) {
        for (int k = 0; k < count_of(1, TEARS); k++) {
            enum tear t = (enum tear)((mask + k) % TEARS);
            memcpy(torn, whole, BLOCK);
            for (int i = 0; i < BLOCK; i++) {
                if (mask >> (i / PIECE) & 1)
                    torn[i] = t == TEAR_ZEROS ? 0
                              : t == TEAR_OLD ? old[i]
                                              : (unsigned char)~whole[i];
            }
            bool unchanged = memcmp(torn, whole, BLOCK) == 0;
            same += unchanged;
            refused += !unchanged;
            poke(STORE "/data-0", MIB, torn, BLOCK, true);
            assert_recovers(1, unchanged ? 5 : 4);
        }
    }
    assert_int_equal(same + refused, 256 * count_of(1, TEARS));
    assert_true(refused > 200);
}

static void the_commit_after_a_torn_superblock_repairs_it(void **state)
{
    (void)state;
    unsigned char junk[PIECE];
    memset(junk, 0x5a, sizeof junk);
    make_store(1, 3);
    poke(STORE "/data-0", MIB, junk, PIECE, true);
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    struct heard heard;
    uint64_t step;
    heard_init(&heard);
    opt.log = &heard.log;
    OK(run_open(&r, &opt, &step, err));
    assert_int_equal(step, 2);
    assert_int_equal(heard_count(&heard, "superblock 0 is damaged"), 1);
    OK(do_step(&r, 3, err));
    run_close(&r);
    assert_recovers(1, 3);
    assert_int_equal(ps_spill_verify(STORE, NULL, NULL, NULL), 0);
}

static void two_torn_superblocks_are_refused(void **state)
{
    (void)state;
    struct ps_error e;
    unsigned char junk[PIECE];
    memset(junk, 0x5a, sizeof junk);
    make_store(1, 3);
    poke(STORE "/data-0", MIB, junk, PIECE, true);
    poke(STORE "/data-0", 2 * MIB + 3 * PIECE, junk, PIECE, true);
    assert_int_equal(open_error(1, &e), PS_ECHECKSUM);
    assert_non_null(strstr(e.message, "0 is damaged, 1 is damaged"));
    assert_true(e.advice[0] != '\0');
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_spill_store *s;
    assert_int_equal(ps_spill_store_create(&s, &opt, &e), -EEXIST); /* and is not removed */
    struct ps_spill_info i;
    OK(ps_spill_info_read(&i, STORE, err));
    assert_int_equal(i.damage.code, PS_ECHECKSUM);
    assert_false(i.superblock_ok[0] || i.superblock_ok[1]);
    ps_spill_info_fini(&i);
}

/* --- flipped bits --- */

struct range {
    int file;
    uint64_t at, bytes;
};

/* What a reader of the newest generation needs, of each file. */
static int used_ranges(struct range *out, uint32_t paths)
{
    struct ps_spill_store_options opt = spill_options(paths);
    struct spill_run r;
    unsigned char b[2][BLOCK];
    uint64_t step;
    int n = 0;
    for (int i = 0; i < 2; i++) {
        poke(STORE "/data-0", (uint64_t)MIB * (unsigned)(i + 1), b[i], BLOCK, false);
        out[n++] = (struct range){0, (uint64_t)MIB * (unsigned)(i + 1), BLOCK};
    }
    const unsigned char *newest = u64_at(b[0] + 32) > u64_at(b[1] + 32) ? b[0] : b[1];
    out[n++] = (struct range){0, u64_at(newest + TABLE_FIELD), u64_at(newest + TABLE_FIELD + 8)};
    out[n++] = (struct range){0, u64_at(newest + LAYOUT_FIELD), u64_at(newest + LAYOUT_FIELD + 8)};
    for (uint32_t i = 0; i < paths; i++)
        out[n++] = (struct range){(int)i, 0, BLOCK};
    OK(run_open(&r, &opt, &step, err));
    for (uint32_t e = 0; e < EXTENTS; e++) {
        for (uint32_t c = 0; c < extents[e].chunk_count; c++) {
            struct ps_transfer x[PIECES];
            int k = r.state->ops->map_read(r.state, e, c, PS_COPY_COMMITTED, r.memory, x, PIECES);
            for (int i = 0; i < k; i++)
                out[n++] = (struct range){(int)x[i].file, x[i].offset, x[i].bytes};
        }
    }
    run_close(&r);
    return n;
}

static void a_flipped_bit_is_found_or_of_no_use(void **state)
{
    (void)state;
    enum { PATHS = 2 };
    static const char *const path[PATHS] = {STORE "/data-0", "p1/penstock-" UUID "/data-1"};
    struct range used[64];
    struct stat sb;
    uint64_t x = 12345;
    int found = 0, harmless = 0, flips = count_of(150, 1000);
    make_store(PATHS, 5);
    int n = used_ranges(used, PATHS);
    for (int i = 0; i < flips; i++) {
        x = x * 6364136223846793005ULL + 1442695040888963407ULL;
        uint64_t a = x >> 33, bit = x >> 20 & 7;
        int file;
        uint64_t at;
        if (i % 2) { /* somewhere that matters */
            const struct range *u = &used[(a >> 8) % (uint64_t)n];
            file = u->file;
            at = u->at + a * 2654435761ULL % u->bytes;
        } else { /* anywhere */
            file = (int)(a & 1);
            assert_int_equal(stat(path[file], &sb), 0);
            at = a * 2654435761ULL % (uint64_t)sb.st_size;
        }
        bool matters = false;
        for (int k = 0; k < n; k++)
            matters |= used[k].file == file && at >= used[k].at && at < used[k].at + used[k].bytes;
        unsigned char byte;
        poke(path[file], at, &byte, 1, false);
        byte ^= (unsigned char)(1U << bit);
        poke(path[file], at, &byte, 1, true);
        int rc = ps_spill_verify(STORE, NULL, NULL, NULL);
        if ((rc != 0) != matters)
            print_error("bit %d of byte %llu of file %d: %d\n", (int)bit, (unsigned long long)at,
                        file, rc);
        assert_int_equal(rc != 0, matters);
        found += matters;
        harmless += !matters;
        byte ^= (unsigned char)(1U << bit);
        poke(path[file], at, &byte, 1, true);
    }
    assert_true(found >= flips / 2);
    assert_true(harmless > flips / 10);
    assert_int_equal(ps_spill_verify(STORE, NULL, NULL, NULL), 0);
    assert_recovers(PATHS, 5);
}

/* --- pieces in the wrong place --- */

static uint32_t bad_extent, bad_chunk;

static void remember(void *arg, uint32_t extent, uint32_t chunk, const struct ps_error *err)
{
    int *n = arg;
    bad_extent = extent;
    bad_chunk = chunk;
    assert_int_equal(err->code, PS_ECHECKSUM);
    assert_true(err->message[0] && err->advice[0] && err->file[0]);
    ++*n;
}

/* Where a chunk's copy lies in data-0. */
static uint64_t place_of(struct spill_run *r, uint32_t e, uint32_t c, bool write)
{
    struct ps_transfer x[PIECES];
    int n = write
                ? r->state->ops->map_write(r->state, e, c, r->memory, x, PIECES)
                : r->state->ops->map_read(r->state, e, c, PS_COPY_COMMITTED, r->memory, x, PIECES);
    assert_int_equal(n, 1);
    return x[0].offset;
}

static void stale_and_swapped_chunks_are_found(void **state)
{
    (void)state;
    static char a[CHUNK_MAX], b[CHUNK_MAX];
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    uint64_t step;
    make_store(1, 6);
    for (uint32_t e = 0; e < EXTENTS; e++) {
        for (uint32_t c = 0; c < extents[e].chunk_count; c++) {
            OK(run_open(&r, &opt, &step, err));
            uint64_t now = place_of(&r, e, c, false), before = place_of(&r, e, c, true);
            size_t bytes = (size_t)chunk_bytes(e, c);
            run_close(&r);
            assert_true(now != before);
            poke(STORE "/data-0", now, a, bytes, false);
            poke(STORE "/data-0", before, b, bytes, false); /* a generation before */
            assert_memory_not_equal(a, b, bytes);
            poke(STORE "/data-0", now, b, bytes, true);
            int n = 0;
            assert_int_equal(ps_spill_verify(STORE, remember, &n, NULL), 1);
            assert_int_equal(n, 1);
            assert_int_equal(bad_extent, e);
            assert_int_equal(bad_chunk, c);
            poke(STORE "/data-0", now, a, bytes, true);
        }
    }
    OK(run_open(&r, &opt, &step, err)); /* two chunks of one size, exchanged */
    uint64_t x = place_of(&r, 4, 0, false), y = place_of(&r, 4, 1, false);
    run_close(&r);
    poke(STORE "/data-0", x, a, 16384, false);
    poke(STORE "/data-0", y, b, 16384, false);
    poke(STORE "/data-0", x, b, 16384, true);
    poke(STORE "/data-0", y, a, 16384, true);
    assert_int_equal(ps_spill_verify(STORE, NULL, NULL, NULL), 2);
}

/* The same bytes, but another chunk's, generation's or run's: a seed apart. Written through the
 * store with equal contents, their checksums must differ. */
static void equal_bytes_have_other_checksums_elsewhere(void **state)
{
    (void)state;
    static char table[3][BLOCK];
    const char *const uuid[] = {UUID, OTHER_UUID};
    for (int k = 0; k < 2; k++) {
        struct ps_spill_store_options opt = spill_options(1);
        struct spill_run r;
        opt.run_uuid = uuid[k];
        OK(run_create(&r, &opt, err));
        for (int g = 0; g < 2 - k; g++) {
            for (uint32_t c = 0; c < 4; c++) {
                memset(r.memory, 0x11, 16384);
                r.state->ops->seal(r.state, 4, c, r.memory);
                OK(lane_move(&r, true, 4, c, PS_COPY_LATEST, err));
            }
            r.state->ops->seal(r.state, 0, 2, r.memory); /* as long, and another extent's */
            r.state->ops->note_written(r.state, 4);
            r.state->ops->note_written(r.state, 0);
            OK(r.state->ops->commit(r.state, NULL, 0, err));
            unsigned char super[BLOCK];
            char path[128];
            snprintf(path, sizeof path, "p0/penstock-%s/data-0", uuid[k]);
            poke(path, (uint64_t)MIB * (unsigned)(g + 1), super, BLOCK, false);
            poke(path, u64_at(super + TABLE_FIELD), table[k ? 2 : g], BLOCK, false);
        }
        run_close(&r);
    }
    uint64_t sum[15];
    for (int t = 0; t < 3; t++) { /* after head and slots; extent 4 is behind 7 chunks */
        for (int c = 0; c < 5; c++)
            sum[t * 5 + c] =
                u64_at((unsigned char *)table[t] + 64 + 8 * EXTENTS + 16 * (c == 4 ? 2 : 7 + c));
    }
    for (int i = 0; i < 15; i++) {
        assert_true(sum[i] != 0);
        for (int j = 0; j < i; j++)
            assert_true(sum[i] != sum[j]);
    }
}

static void pieces_of_another_run_are_refused(void **state)
{
    (void)state;
    static char area[64 << 10];
    struct ps_error e;
    make_store(2, 3);
    assert_int_equal(rename("p0", "q0"), 0);
    assert_int_equal(rename("p1", "q1"), 0);
    make_store(2, 3); /* the same run's UUID, another store */
    assert_int_equal(system("cp -r p0 s0 && cp -r p1 s1"), 0);
    /* its second file */
    assert_int_equal(system("cp q1/penstock-" UUID "/data-1 p1/penstock-" UUID "/data-1"), 0);
    assert_int_equal(open_error(2, &e), PS_ECHECKSUM);
    assert_non_null(strstr(e.message, "data-1 is of another store of this run"));
    /* its first */
    assert_int_equal(system("rm -r p1 && cp -r s1 p1"), 0);
    assert_int_equal(system("cp q0/penstock-" UUID "/data-0 p0/penstock-" UUID "/data-0"), 0);
    assert_int_equal(open_error(2, &e), PS_ECHECKSUM);
    /* its superblocks and tables alone */
    assert_int_equal(system("rm -r p0 && cp -r s0 p0"), 0);
    poke("q0/penstock-" UUID "/data-0", MIB, area, sizeof area, false);
    poke(STORE "/data-0", MIB, area, sizeof area, true);
    poke("q0/penstock-" UUID "/data-0", 2 * MIB, area, sizeof area, false);
    poke(STORE "/data-0", 2 * MIB, area, sizeof area, true);
    assert_int_equal(open_error(2, &e), PS_ECHECKSUM);
    assert_non_null(strstr(e.message, "of another run"));
    assert_int_equal(system("rm -rf q0 q1 s0 s1"), 0);
}

static void swapped_and_missing_files_are_named(void **state)
{
    (void)state;
    struct ps_error e;
    struct ps_spill_info i;
    make_store(2, 2);
    assert_int_equal(system("mv p1/penstock-" UUID "/data-1 kept"), 0);
    assert_int_equal(open_error(2, &e), -ENOENT);
    assert_string_equal(e.field, "data-1");
    assert_non_null(strstr(e.message, "/p1)"));
    assert_non_null(strstr(e.advice, "--nvme-path"));
    OK(ps_spill_info_read(&i, STORE, err));
    assert_int_equal(i.damage.code, -ENOENT);
    assert_int_equal(i.generation, 2);
    ps_spill_info_fini(&i);
    assert_int_equal(system("cp " STORE "/data-0 p1/penstock-" UUID "/data-1"), 0);
    assert_int_equal(open_error(2, &e), PS_ECHECKSUM);
    assert_non_null(strstr(e.message, "is file 0 of the store"));
    assert_int_equal(truncate("kept", 8192), 0);
    assert_int_equal(system("mv kept p1/penstock-" UUID "/data-1"), 0);
    assert_int_equal(open_error(2, &e), PS_EFORMAT);
    assert_non_null(strstr(e.message, "shorter"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(any_torn_superblock_leaves_the_one_before, teardown),
        cmocka_unit_test_teardown(the_commit_after_a_torn_superblock_repairs_it, teardown),
        cmocka_unit_test_teardown(two_torn_superblocks_are_refused, teardown),
        cmocka_unit_test_teardown(a_flipped_bit_is_found_or_of_no_use, teardown),
        cmocka_unit_test_teardown(stale_and_swapped_chunks_are_found, teardown),
        cmocka_unit_test_teardown(equal_bytes_have_other_checksums_elsewhere, teardown),
        cmocka_unit_test_teardown(pieces_of_another_run_are_refused, teardown),
        cmocka_unit_test_teardown(swapped_and_missing_files_are_named, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
