/* The benchmark, on sizes that take a moment: figures are positive, the profile reads back, nothing
 * is left behind, errors are clear. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "session/bench.h"
#include "session/host_machine.h"

static struct ps_bench_report report;

static void positive(double v)
{
    assert_true(isfinite(v) && v > 0);
}

static int run(unsigned parts, const char *path, const char *output, struct ps_error *err)
{
    struct ps_bench_options opt = {
        .parts = parts,
        .paths = &path,
        .path_count = path ? 1 : 0,
        .threads = 2,
        .disk_bytes = (uint64_t)16 << 20,
        .disk_seconds = 0.1,
        .quick = true,
        .output = output,
    };
    return ps_bench_run(&report, &opt, err);
}

/* Entries of the directory besides `.` and `..`. */
static int entries(const char *dir)
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    int n = 0;
    for (const struct dirent *e; (e = readdir(d));)
        n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(d);
    return n;
}

static void assert_range(double v, double low, double high)
{
    assert_true(v >= low && v <= high);
}

static void every_part_gives_positive_figures_and_a_profile_that_reads_back(void **state)
{
    (void)state;
    struct ps_error err = {0};
    assert_int_equal(mkdir("disk", 0700), 0);
    assert_int_equal(run(PS_BENCH_ALL, "disk", "new/dir/hardware.json", &err), 0);
    assert_int_equal(entries("disk"), 0); /* the test file is gone */
    assert_int_equal(entries("new/dir"), 1);

    const struct ps_profile *p = &report.profile;
    assert_in_range(p->gemm_count, 2, PS_PROFILE_GEMM_MAX);
    for (int i = 0; i < p->gemm_count; i++)
        positive(p->gemm[i].flops);
    positive(p->attention_flops);
    positive(p->step_overhead_s);
    positive(p->copy_host);
    positive(p->memory);
    positive(p->cpu_optim_params);
    positive(report.copy);
    positive(report.read);
    positive(report.add);
    positive(report.convert);
    assert_int_equal(p->disk_count, 1);
    const struct ps_profile_disk *d = &p->disk[0];
    positive(d->read);
    positive(d->write);
    positive(d->mixed_read);
    positive(d->mixed_write);
    positive(d->sustained_read);
    positive(d->sustained_write);
    positive(d->latency_s);
    assert_true(d->depth >= 1 && d->chunk_bytes >= 4096);
    assert_true(report.disk[0].written_bytes >= report.disk[0].file_bytes);
    assert_true(d->path[0] == '/');
    assert_range(p->compute_by_disk, 1, 100);
    assert_range(p->compute_by_optim, 1, 100);
    assert_range(p->compute_by_copy, 1, 100);
    assert_range(p->disk_by_compute, 1, 100);
    assert_range(p->optim_by_compute, 1, 100);
    assert_range(p->copy_by_compute, 1, 100);
    assert_int_equal(p->threads, 2);
    assert_true(p->host_memory > 0);

    struct ps_profile again;
    assert_int_equal(ps_profile_load(&again, report.output, &err), 0);
    assert_string_equal(again.machine, p->machine);
    assert_int_equal(again.gemm_count, p->gemm_count);
    assert_int_equal(again.disk_count, 1);
    assert_string_equal(again.disk[0].path, d->path);
    assert_true(fabs(again.cpu_optim_params / p->cpu_optim_params - 1) < 1e-9);
    assert_true(fabs(again.disk[0].read / d->read - 1) < 1e-9);
    assert_true(fabs(again.compute_by_optim / p->compute_by_optim - 1) < 1e-9);
}

static void the_best_rate_is_that_of_a_measured_cell(void **state)
{
    (void)state;
    struct ps_error err = {0};
    assert_int_equal(run(PS_BENCH_DISK, NULL, "disk.json", &err), 0);
    double best[2] = {0, 0};
    for (int i = 0; i < report.disk[0].cell_count; i++) {
        const struct ps_bench_cell *c = &report.disk[0].cell[i];
        positive(c->rate);
        best[c->write] = fmax(best[c->write], c->rate);
    }
    assert_true(best[0] == report.profile.disk[0].read);
    assert_true(best[1] == report.profile.disk[0].write);
    assert_int_equal(report.disk[0].file_bytes, 16 << 20);
}

static void a_single_part_keeps_the_figures_of_an_earlier_run(void **state)
{
    (void)state;
    struct ps_error err = {0};
    assert_int_equal(run(PS_BENCH_CPU_OPTIM, NULL, "kept.json", &err), 0);
    assert_false(report.kept);
    double params = report.profile.cpu_optim_params;
    positive(params);
    assert_int_equal(run(PS_BENCH_COPY, NULL, "kept.json", &err), 0);
    assert_true(report.kept);
    assert_true(fabs(report.profile.cpu_optim_params / params - 1) < 1e-9);
    positive(report.copy);
}

static void the_profile_of_another_machine_is_not_kept(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_profile p;
    ps_profile_conservative(&p);
    p.version = 1;
    snprintf(p.machine, sizeof p.machine, "another machine");
    p.cpu_optim_params = 12345;
    assert_int_equal(ps_profile_save(&p, "other.json", &err), 0);
    assert_int_equal(run(PS_BENCH_COPY, NULL, "other.json", &err), 0);
    assert_false(report.kept);
    assert_true(report.profile.cpu_optim_params != 12345);
    char machine[256];
    assert_string_equal(report.profile.machine, ps_host_machine(machine, sizeof machine));
}

static void the_report_prints_as_text_and_as_json(void **state)
{
    (void)state;
    struct ps_error err = {0};
    char *text;
    assert_int_equal(run(PS_BENCH_DISK | PS_BENCH_COPY, NULL, "print.json", &err), 0);
    assert_int_equal(ps_bench_print(&report, false, &text, &err), 0);
    assert_non_null(strstr(text, "print.json"));
    assert_non_null(strstr(text, "sustained over 0.1 s"));
    free(text);
    assert_int_equal(ps_bench_print(&report, true, &text, &err), 0);
    json_t *o = json_loads(text, 0, NULL);
    free(text);
    assert_non_null(o);
    assert_int_equal(json_integer_value(json_object_get(o, "version")), 1);
    assert_true(json_is_array(json_object_get(o, "gemm")));
    assert_int_equal(json_array_size(json_object_get(o, "parts")), 2);
    json_t *disk = json_array_get(json_object_get(json_object_get(o, "details"), "disk"), 0);
    assert_true(json_real_value(json_object_get(disk, "sustained_seconds")) == 0.1);
    assert_true(json_array_size(json_object_get(disk, "cells")) >= 4);
    json_decref(o);
}

static void errors_name_what_is_wrong_and_leave_no_profile(void **state)
{
    (void)state;
    struct ps_error err = {0};
    assert_int_equal(run(PS_BENCH_DISK, "no/such/dir", "never.json", &err), PS_EUSAGE);
    assert_non_null(strstr(err.file, "no/such/dir"));
    assert_string_equal(err.field, "nvme-path");
    assert_int_equal(access("never.json", F_OK), -1);

    FILE *f = fopen("plain", "w");
    assert_non_null(f);
    fclose(f);
    memset(&err, 0, sizeof err);
    assert_int_equal(run(PS_BENCH_COPY, NULL, "plain/hardware.json", &err), -ENOTDIR);
    assert_true(err.message[0] != '\0');

    struct ps_bench_options opt = {.parts = PS_BENCH_DISK,
                                   .quick = true,
                                   .output = "never.json",
                                   .disk_bytes = (uint64_t)1 << 56};
    memset(&err, 0, sizeof err);
    assert_int_equal(ps_bench_run(&report, &opt, &err), -ENOSPC);
    assert_non_null(strstr(err.message, "are free"));
    assert_non_null(strstr(err.advice, "--disk-size"));
    assert_int_equal(access("never.json", F_OK), -1);
}

static void parts_have_names(void **state)
{
    (void)state;
    assert_int_equal(ps_bench_part_find("gemm"), PS_BENCH_GEMM);
    assert_int_equal(ps_bench_part_find("cpu-optim"), PS_BENCH_CPU_OPTIM);
    assert_int_equal(ps_bench_part_find("all"), PS_BENCH_ALL);
    assert_int_equal(ps_bench_part_find("gem"), 0);
    unsigned all = 0;
    for (const char *const *n = ps_bench_part_names(); *n; n++)
        all |= ps_bench_part_find(*n);
    assert_int_equal(all, PS_BENCH_ALL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_part_gives_positive_figures_and_a_profile_that_reads_back),
        cmocka_unit_test(the_best_rate_is_that_of_a_measured_cell),
        cmocka_unit_test(a_single_part_keeps_the_figures_of_an_earlier_run),
        cmocka_unit_test(the_profile_of_another_machine_is_not_kept),
        cmocka_unit_test(the_report_prints_as_text_and_as_json),
        cmocka_unit_test(errors_name_what_is_wrong_and_leave_no_profile),
        cmocka_unit_test(parts_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
