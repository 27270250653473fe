/* The sweep with a stand-in for the program: a script that leaves behind what a run would. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/file.h"
#include "session/sweep.h"

static void write_file(const char *path, const char *text, mode_t mode)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(path, mode), 0);
}

/* A program that notes its arguments and then runs `body` with $out (of --output) and $seq set. */
static void write_program(const char *body)
{
    char text[4096];
    snprintf(text, sizeof text,
             "#!/bin/sh\n"
             "echo \"$*\" >>calls\n"
             "for a in \"$@\"; do case $a in --output=*) out=${a#*=} ;; "
             "--max-seq-len=*) seq=${a#*=} ;; esac; done\n"
             "%s\n",
             body);
    write_file("program", text, 0755);
}

static const char metrics[] =
    "mkdir -p \"$out\"\n"
    "echo '{\"step\":1,\"loss\":9,\"tokens_per_s\":1,\"step_s\":50}' >\"$out/metrics.jsonl\"\n"
    "echo '{\"step\":2,\"loss\":8,\"tokens_per_s\":10,\"step_s\":5}' >>\"$out/metrics.jsonl\"\n"
    "echo '{\"step\":2,\"eval_loss\":3}' >>\"$out/metrics.jsonl\"\n"
    "echo '{\"step\":3,\"loss\":7.5,\"tokens_per_s\":30,\"step_s\":7,\"disk_read_bytes\":4096}' "
    ">>\"$out/metrics.jsonl\"\n"
    "echo '{\"event\":\"end\",\"step_s\":99}' >>\"$out/metrics.jsonl\"\n"
    "echo '{\"fits\":true,\"strategy\":\"resident\",\"step_s\":6.5,"
    "\"peak_bytes\":{\"device\":0,\"host\":1000,\"disk\":7}}' >\"$out/plan.json\"\n";

static char *read_file(const char *path)
{
    char *text;
    size_t len;
    struct ps_error err = {0};
    assert_int_equal(ps_file_read(path, 1 << 20, &text, &len, &err), 0);
    return text;
}

static size_t count_of(const char *text, const char *part)
{
    size_t n = 0;
    for (const char *p = text; (p = strstr(p, part)); p += strlen(part))
        n++;
    return n;
}

static int sweep(const char *grid, bool simulate, struct ps_sweep_summary *s, struct ps_error *err)
{
    write_file("grid.yaml", grid, 0644);
    unlink("calls");
    struct ps_sweep_options o = {
        .grid = "grid.yaml", .output = "x.csv", .program = "./program", .simulate_only = simulate};
    return ps_sweep(s, &o, err);
}

static void rows_hold_medians_without_the_first_step(void **state)
{
    (void)state;
    struct ps_sweep_summary s;
    struct ps_error err = {0};
    write_program(metrics);
    assert_int_equal(sweep("model: m\ndata: d\nmax_seq_len: [16, 32]\n", false, &s, &err), 0);
    assert_int_equal(s.cells, 2);
    assert_int_equal(s.runs, 6);
    assert_int_equal(s.failed + s.infeasible + s.refused, 0);
    char *csv = read_file("x.csv");
    assert_int_equal(count_of(csv, "\n"), 7);
    /* strategy, hash; predicted, median of 5 and 7, of 10 and 30; steps, last loss */
    assert_int_equal(count_of(csv, ",6.5,6,20,3,7.5,"), 6);
    assert_int_equal(count_of(csv, ",4096,,,1000,7,"), 6); /* read, written, device, host, disk */
    free(csv);
    char *page = read_file("x.md");
    assert_non_null(strstr(page, "| 1 | 32 | ok | 3 | resident |"));
    free(page);
    assert_int_equal(access("x.runs", F_OK), -1);
}

static void runs_go_round_the_cells(void **state)
{
    (void)state;
    struct ps_sweep_summary s;
    struct ps_error err = {0};
    write_program("echo $seq >>order");
    unlink("order");
    assert_int_equal(
        sweep("model: m\ndata: d\nmax_seq_len: [16, 32]\nrepeat: 4\n", false, &s, &err), 0);
    char *order = read_file("order");
    assert_string_equal(order, "16\n32\n16\n32\n16\n32\n16\n32\n");
    free(order);
}

static void what_does_not_fit_is_run_once_and_what_fails_each_time(void **state)
{
    (void)state;
    struct ps_sweep_summary s;
    struct ps_error err = {0};
    write_program("case $seq in 16) echo '{\"error\":{\"code\":3,\"message\":\"too large, by far\","
                  "\"advice\":\"buy\"}}' >&2; exit 3 ;; 32) exit 1 ;; esac");
    assert_int_equal(sweep("model: m\ndata: d\nmax_seq_len: [16, 32, 64]\n", false, &s, &err), 0);
    assert_int_equal(s.runs, 1 + 3 + 3);
    assert_int_equal(s.infeasible, 1);
    assert_int_equal(s.failed, 3);
    char *csv = read_file("x.csv");
    assert_int_equal(count_of(csv, ",infeasible,3,"), 1);
    assert_non_null(strstr(csv, "\"too large, by far; buy\""));
    assert_int_equal(count_of(csv, ",failed,1,"), 3);
    free(csv);
}

static void a_run_ended_by_a_signal_is_a_failed_one(void **state)
{
    (void)state;
    struct ps_sweep_summary s;
    struct ps_error err = {0};
    write_program("kill -9 $$");
    assert_int_equal(sweep("model: m\ndata: d\n", false, &s, &err), 0);
    assert_int_equal(s.failed, 3);
    char *csv = read_file("x.csv");
    assert_int_equal(count_of(csv, ",failed,137,"), 3);
    free(csv);
}

static void a_simulation_asks_for_plans_once(void **state)
{
    (void)state;
    struct ps_sweep_summary s;
    struct ps_error err = {0};
    write_program("case $seq in 16) echo '{\"fits\":false,\"needs\":{\"device\":0,\"host\":5000,"
                  "\"disk\":0}}'; exit 3 ;; esac; echo '{\"fits\":true,\"strategy\":\"resident\","
                  "\"step_s\":2.5,\"tokens_per_s\":400,\"peak_bytes\":{\"host\":1000}}'");
    assert_int_equal(sweep("model: m\nmax_seq_len: [16, 32]\n", true, &s, &err), 0);
    assert_int_equal(s.runs, 2);
    char *calls = read_file("calls");
    assert_int_equal(count_of(calls, "plan --json --model=m --max-seq-len="), 2);
    assert_int_equal(count_of(calls, "--output"), 0);
    free(calls);
    char *csv = read_file("x.csv");
    assert_int_equal(count_of(csv, ",simulated,0,m,32,resident,"), 1);
    assert_int_equal(count_of(csv, ",2.5,,400,"), 1);
    assert_int_equal(count_of(csv, ",infeasible,3,m,16,"), 1);
    assert_int_equal(count_of(csv, ",5000,"), 1);
    free(csv);
}

static void memory_is_measured_from_outside(void **state)
{
    (void)state;
    struct ps_sweep_summary s;
    struct ps_error err = {0};
    /* a shell that holds 16 MiB of text */
    write_program("x=$(head -c 16777216 /dev/zero | tr '\\0' 'x'); : \"$x\"");
    assert_int_equal(sweep("model: m\ndata: d\n", false, &s, &err), 0);
    char *csv = read_file("x.csv");
    /* the message is empty: the last two numbers are the peaks of process and group */
    size_t at = strlen(csv) - 1;
    for (int commas = 0; commas < 3; commas += csv[at] == ',')
        at--;
    unsigned long long peak = strtoull(&csv[at + 1], NULL, 10);
    assert_in_range(peak, 16 << 20, 512 << 20);
    free(csv);
}

static void a_program_that_is_not_there_is_an_error(void **state)
{
    (void)state;
    struct ps_sweep_summary s;
    struct ps_error err = {0};
    unlink("program");
    assert_int_equal(sweep("model: m\ndata: d\n", false, &s, &err), -ENOEXEC);
    assert_string_equal(err.file, "./program");
}

static void a_wrong_grid_names_file_and_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *where;
    } bad[] = {
        {"model: m\nlora_rank: x\n", "grid.yaml:2"},
        {"model: m\nmodel: n\n", "grid.yaml:2"},
        {"model: m\nlora_r: []\n", "grid.yaml:2"},
        {"model: m\nlora_r: [[1]]\n", "grid.yaml:2"},
        {"model: &a m\ndata: *a\n", "grid.yaml:2"},
        {"- model\n", "grid.yaml:1"},
        {"just a text\n", "grid.yaml:1"},
        {"", "grid.yaml:"},
    };
    struct ps_sweep_summary s;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct ps_error err = {0};
        assert_int_equal(sweep(bad[i].text, false, &s, &err), PS_EUSAGE);
        if (!strstr(err.file, bad[i].where))
            fail_msg("case %zu: %s, not %s", i, err.file, bad[i].where);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_hold_medians_without_the_first_step),
        cmocka_unit_test(runs_go_round_the_cells),
        cmocka_unit_test(what_does_not_fit_is_run_once_and_what_fails_each_time),
        cmocka_unit_test(a_run_ended_by_a_signal_is_a_failed_one),
        cmocka_unit_test(a_simulation_asks_for_plans_once),
        cmocka_unit_test(memory_is_measured_from_outside),
        cmocka_unit_test(a_program_that_is_not_there_is_an_error),
        cmocka_unit_test(a_wrong_grid_names_file_and_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
