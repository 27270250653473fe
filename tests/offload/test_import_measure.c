/* When an import pays: the formula against sums by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "offload/import.h"

/* 8 GB in bf16, ratio 1.5, decoded at 3 GB/s. */
static struct ps_import_question question(double disk_read, double compute_s, bool shared)
{
    return (struct ps_import_question){
        .file_bytes = 8e9,
        .near_bytes = 8e9,
        .total_file_bytes = 9e9,
        .total_near_bytes = 9e9,
        .passes = 1000,
        .compute_s = compute_s,
        .cores_shared = shared,
        .disk_read = disk_read,
        .disk_write = 1e9,
        .sample = {.ratio = 1.5, .encode_rate = 1e9, .decode_rate = 3e9}};
}

static void the_formula_pays_where_the_disk_is_the_bottleneck(void **state)
{
    (void)state;
    struct ps_import_answer a;
    struct ps_import_question q = question(1e9, 1, true);
    ps_import_pays(&a, &q);
    assert_true(a.pays);
    assert_true(fabs(a.plain_s - 8) < 1e-9);           /* the disk */
    assert_true(fabs(a.import_s - 8 / 1.5) < 1e-9);    /* 5.33: the disk again, not 1 + 8/3 */
    assert_true(fabs(a.build_s - (9.0 + 9.0)) < 1e-9); /* read, then encode at 1 GB/s */
    assert_true(fabs(a.passes_needed - 18 / (8 - 8 / 1.5)) < 1e-9);
    q.passes = 6; /* 16 s saved, 18 s to make it */
    ps_import_pays(&a, &q);
    assert_false(a.pays);
    q.exists = true;
    ps_import_pays(&a, &q);
    assert_true(a.pays);
    assert_true(a.build_s == 0);
}

static void the_formula_counts_the_cores_that_decode(void **state)
{
    (void)state;
    struct ps_import_answer a;
    /* 7 s of computing next to 8 s of disk: decoding (2.67 s) does not fit on the same cores */
    struct ps_import_question q = question(1e9, 7, true);
    ps_import_pays(&a, &q);
    assert_false(a.pays);
    assert_true(fabs(a.import_s - (7 + 8.0 / 3)) < 1e-9);
    assert_true(a.passes_needed == HUGE_VAL);
    q.cores_shared = false; /* a device computes: the cores are idle */
    ps_import_pays(&a, &q);
    assert_true(a.pays);
    assert_true(fabs(a.import_s - 7) < 1e-9);
    /* a disk faster than the decoder */
    q = question(7e9, 0.1, false);
    ps_import_pays(&a, &q);
    assert_false(a.pays);
    assert_true(fabs(a.import_s - 8.0 / 3) < 1e-9);
    /* bound by compute: nothing to gain */
    q = question(1e9, 20, false);
    ps_import_pays(&a, &q);
    assert_false(a.pays);
}

static void the_formula_knows_wide_files_and_their_conversion(void **state)
{
    (void)state;
    struct ps_import_answer a;
    struct ps_import_question q = question(2e9, 3, true);
    q.file_bytes = 16e9; /* F32 */
    q.total_file_bytes = 18e9;
    q.convert_rate = 4e9;
    ps_import_pays(&a, &q);
    assert_true(fabs(a.plain_s - 8) < 1e-9);              /* 16 GB at 2 */
    assert_true(fabs(a.import_s - (3 + 8.0 / 3)) < 1e-9); /* 8 / 1.5 at 2 takes less */
    assert_true(a.pays);
    q.file_bytes = 8e9;
    q.compute_s = 6;
    ps_import_pays(&a, &q);
    assert_true(fabs(a.plain_s - 8) < 1e-9); /* 6 + 8/4 of converting, 4 of disk */
    assert_false(a.pays);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_formula_pays_where_the_disk_is_the_bottleneck),
        cmocka_unit_test(the_formula_counts_the_cores_that_decode),
        cmocka_unit_test(the_formula_knows_wide_files_and_their_conversion),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
