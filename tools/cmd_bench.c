/* penstock bench: measure this machine and write the hardware profile. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session/bench.h"
#include "session/sweep.h"
#include "tools/tool.h"

#define PATH_BYTES 4096

/* Progress goes to standard error; with --json it must not. */
static void progress(void *arg, enum ps_log_level level, const char *message)
{
    (void)arg;
    static const char *const prefix[] = {"debug: ", "", "warning: ", "error: "};
    if (level != PS_LOG_DEBUG)
        fprintf(stderr, "penstock: %s%s\n", prefix[level], message);
}

static unsigned parts_of(const struct ps_options *opt)
{
    unsigned parts = 0;
    char name[32];
    for (size_t i = 0; ps_options_list_item(opt->bench_parts, i, name, sizeof name); i++)
        parts |= ps_bench_part_find(name);
    /* what runs at the same time can be measured where everything is */
    return (parts | PS_BENCH_INTERFERENCE) == PS_BENCH_ALL ? PS_BENCH_ALL : parts;
}

/* The directories of --nvme-path; free() each. */
static int split_paths(const struct ps_options *opt, const char *path[PS_PROFILE_DISK_MAX],
                       size_t *count, struct ps_error *err)
{
    char item[PATH_BYTES];
    *count = 0;
    for (size_t i = 0; ps_options_list_item(opt->nvme_path, i, item, sizeof item); i++) {
        if (*count == PS_PROFILE_DISK_MAX)
            return ps_error_full(err, PS_EUSAGE, NULL, "nvme-path", NULL,
                                 "at most %d directories can be measured", PS_PROFILE_DISK_MAX);
        path[*count] = strdup(item);
        if (!path[*count])
            return ps_error_set(err, -ENOMEM, "out of memory");
        ++*count;
    }
    return 0;
}

static int measure(struct ps_options *opt, const struct ps_bench_options *bench,
                   struct ps_error *err)
{
    struct ps_bench_report *report = malloc(sizeof *report);
    if (!report)
        return ps_error_set(err, -ENOMEM, "out of memory");
    char *text = NULL;
    int ret = ps_bench_run(report, bench, err);
    if (ret == 0)
        ret = ps_bench_print(report, opt->json, &text, err);
    if (ret == 0) {
        fputs(text, stdout);
        if (opt->json)
            putchar('\n');
    }
    free(text);
    free(report);
    return ret;
}

static int sweep(const struct ps_options *opt, const struct ps_log *log, struct ps_error *err)
{
    struct ps_sweep_summary *s = malloc(sizeof *s);
    if (!s)
        return ps_error_set(err, -ENOMEM, "out of memory");
    struct ps_sweep_options o = {
        .grid = opt->grid, .output = opt->output, .simulate_only = opt->simulate_only, .log = log};
    int ret = ps_sweep(s, &o, err);
    if (ret == 0 && opt->json)
        ret = tool_print_json(json_pack("{s:i,s:s,s:s,s:I,s:I,s:I,s:I,s:I}", "version", 1, "csv",
                                        s->csv, "page", s->page, "cells", (json_int_t)s->cells,
                                        "runs", (json_int_t)s->runs, "infeasible",
                                        (json_int_t)s->infeasible, "refused",
                                        (json_int_t)s->refused, "failed", (json_int_t)s->failed),
                              err);
    else if (ret == 0)
        printf("%zu cells, %zu runs: %zu cells do not fit, %zu are refused, %zu runs failed\n"
               "%s\n%s\n",
               s->cells, s->runs, s->infeasible, s->refused, s->failed, s->csv, s->page);
    if (ret == 0 && s->failed > 0)
        ret = ps_error_full(err, -EIO, s->csv, NULL, "see the column `message`",
                            "%zu of %zu runs failed", s->failed, s->runs);
    free(s);
    return ret;
}

int cmd_bench(struct ps_options *opt, struct ps_error *err)
{
    static const struct ps_log log = {progress, NULL};
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    tool_catch_signals(NULL);
    if (!strcmp(opt->bench_parts, "sweep"))
        return sweep(opt, opt->json ? tool_log(opt) : &log, err);
    const char *path[PS_PROFILE_DISK_MAX];
    size_t count;
    ret = split_paths(opt, path, &count, err);
    struct ps_bench_options bench = {
        .parts = parts_of(opt),
        .paths = path,
        .path_count = count,
        .threads = opt->threads,
        .disk_bytes = opt->disk_size > 0 ? (uint64_t)opt->disk_size : 0,
        .disk_seconds = opt->disk_seconds,
        .quick = opt->quick,
        .output = opt->output,
        .log = opt->json ? tool_log(opt) : &log,
    };
    if (ret == 0)
        ret = measure(opt, &bench, err);
    for (size_t i = 0; i < count; i++)
        free((void *)(size_t)path[i]);
    return ret;
}
