/* Running a grid: see sweep.h. */
#include "session/sweep.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/file.h"
#include "session/sweep_internal.h"

#define ARG_MAX_COUNT (PS__SWEEP_AXIS_MAX + 8)

struct sweep {
    const struct ps_sweep_options *opt;
    struct ps_sweep_summary *out;
    struct ps__sweep_grid grid;
    struct ps__sweep_row *row;
    size_t row_count;
    bool done[PS__SWEEP_CELL_MAX]; /* one row is all there will be */
    char program[4096], runs[4096];
};

static int choose_paths(struct sweep *s, struct ps_error *err)
{
    const char *csv = s->opt->output ? s->opt->output : "sweep.csv";
    size_t stem = strlen(csv);
    if (stem > 4 && !strcmp(csv + stem - 4, ".csv"))
        stem -= 4;
    struct ps_sweep_summary *o = s->out;
    int a = snprintf(o->csv, sizeof o->csv, "%s", csv);
    int b = snprintf(o->page, sizeof o->page, "%.*s.md", (int)stem, csv);
    int c = snprintf(s->runs, sizeof s->runs, "%.*s.runs", (int)stem, csv);
    if (a < 0 || b < 0 || c < 0 || (size_t)a >= sizeof o->csv || (size_t)b >= sizeof o->page ||
        (size_t)c + 64 >= sizeof s->runs)
        return ps_error_full(err, -ENAMETOOLONG, NULL, "output", NULL, "the path is too long");
    if (s->opt->program) {
        PS_IGNORE(snprintf(s->program, sizeof s->program, "%s", s->opt->program) < 0, "cut");
        return 0;
    }
    ssize_t n = readlink("/proc/self/exe", s->program, sizeof s->program - 1);
    if (n < 0)
        return ps_error_set(err, -errno, "cannot tell where this program lies: %s",
                            strerror(errno));
    s->program[n] = '\0';
    return 0;
}

/* "--name=value" of every option of the cell, and the sweep's own. free() each. */
static int make_args(const struct sweep *s, size_t cell, const char *dir, char **argv,
                     struct ps_error *err)
{
    size_t n = 0;
    bool ok = (argv[n++] = strdup(s->program)) != NULL;
    ok = ok && (argv[n++] = strdup(s->opt->simulate_only ? "plan" : "train"));
    ok = ok && (argv[n++] = strdup("--json"));
    for (size_t i = 0; ok && i < s->grid.axis_count; i++)
        ok = asprintf(&argv[n++], "--%s=%s", s->grid.axis[i].name,
                      ps__sweep_value(&s->grid, cell, i)) >= 0;
    if (ok && !s->opt->simulate_only) {
        ok = (argv[n++] = strdup("--progress=none")) != NULL;
        ok = ok && asprintf(&argv[n++], "--output=%s", dir) >= 0;
    }
    if (ok)
        return 0;
    argv[n - 1] = NULL; /* asprintf leaves it undefined */
    return ps_error_set(err, -ENOMEM, "out of memory");
}

static struct ps__sweep_row *new_row(struct sweep *s, size_t cell, int run)
{
    struct ps__sweep_row *r = &s->row[s->row_count++];
    memset(r, 0, sizeof *r);
    r->cell = cell;
    r->run = run;
    r->predicted_step_s = r->step_s = r->tokens_per_s = r->loss = r->wall_s = NAN;
    return r;
}

static void judge(struct sweep *s, struct ps__sweep_row *r)
{
    switch (r->exit_code) {
    case 0:
        r->status = s->opt->simulate_only ? PS__SWEEP_SIMULATED : PS__SWEEP_OK;
        break;
    case 2:
        r->status = PS__SWEEP_REFUSED;
        s->out->refused++;
        break;
    case 3:
        r->status = PS__SWEEP_INFEASIBLE;
        s->out->infeasible++;
        break;
    default:
        r->status = PS__SWEEP_FAILED;
        s->out->failed++;
    }
    s->done[r->cell] = s->done[r->cell] || s->opt->simulate_only ||
                       r->status == PS__SWEEP_REFUSED || r->status == PS__SWEEP_INFEASIBLE;
}

static void announce(const struct sweep *s, size_t cell, int run)
{
    char text[512] = "";
    size_t len = 0;
    for (size_t i = 0; i < s->grid.axis_count && len + 1 < sizeof text; i++) {
        if (s->grid.axis[i].count < 2)
            continue;
        int n = snprintf(text + len, sizeof text - len, " %s=%s", s->grid.axis[i].name,
                         ps__sweep_value(&s->grid, cell, i));
        len += n > 0 ? (size_t)n : 0;
    }
    ps_log(s->opt->log, PS_LOG_INFO, "sweep: run %d, cell %zu of %zu:%s", run, cell + 1,
           s->grid.cell_count, text);
}

static int run_child(struct sweep *s, struct ps__sweep_row *r, const char *dir, const char *out,
                     const char *error, struct ps_error *err)
{
    char *argv[ARG_MAX_COUNT] = {NULL};
    struct ps__child child;
    int ret = make_args(s, r->cell, dir, argv, err);
    if (ret == 0)
        ret = ps__child_run(&child, argv, out, error, err);
    for (size_t i = 0; i < ARG_MAX_COUNT; i++)
        free(argv[i]);
    if (ret)
        return ret;
    r->exit_code = child.exit_code;
    r->wall_s = child.wall_s;
    r->peak_rss_bytes = child.peak_rss_bytes;
    r->peak_group_bytes = child.peak_group_bytes;
    return 0;
}

/* Run one cell once and add its row. */
static int run_cell(struct sweep *s, size_t cell, int run, struct ps_error *err)
{
    char dir[4200], out[4224], error[4224];
    PS_IGNORE(snprintf(dir, sizeof dir, "%s/cell-%zu-run-%d", s->runs, cell, run) < 0, "fits");
    PS_IGNORE(snprintf(out, sizeof out, "%s.out", dir) < 0, "fits");
    PS_IGNORE(snprintf(error, sizeof error, "%s.err", dir) < 0, "fits");
    announce(s, cell, run);
    int ret = ps_file_remove_tree(dir, err);
    if (ret)
        return ret;
    struct ps__sweep_row *r = new_row(s, cell, run);
    ret = run_child(s, r, dir, out, error, err);
    if (ret)
        return ret;
    s->out->runs++;
    judge(s, r);
    if (s->opt->simulate_only)
        ps__sweep_read_plan(r, out);
    else
        ps__sweep_read_run(r, dir);
    if (r->exit_code != 0)
        ps__sweep_read_error(r, error);
    if (!s->grid.keep_runs) {
        PS_IGNORE(ps_file_remove_tree(dir, NULL), "the next sweep removes it");
        PS_IGNORE(unlink(out), "the next sweep overwrites it");
        PS_IGNORE(unlink(error), "the next sweep overwrites it");
    }
    return ps__sweep_write(&s->grid, s->row, s->row_count, s->out, err);
}

/* A row for each cell that the options forbid; PS_EUSAGE where that is every cell. */
static int refuse_cells(struct sweep *s, struct ps_error *err)
{
    struct ps_error why = {0};
    for (size_t c = 0; c < s->grid.cell_count; c++) {
        struct ps_error e = {0};
        int ret = ps__sweep_check(&s->grid, c, s->opt->simulate_only, &e);
        if (ret == 0)
            continue;
        if (ret == -ENOMEM)
            return ps_error_set(err, ret, "out of memory");
        struct ps__sweep_row *r = new_row(s, c, 1);
        r->exit_code = 2;
        judge(s, r);
        PS_IGNORE(snprintf(r->message, sizeof r->message, "%.500s", e.message) < 0, "cut");
        why = e;
    }
    if (s->out->refused < s->grid.cell_count)
        return 0;
    if (err)
        *err = why;
    return ps_error_file(err, PS_EUSAGE, s->opt->grid);
}

static int run_grid(struct sweep *s, struct ps_error *err)
{
    int ret = ps_file_make_dirs(s->runs, err);
    if (ret == 0)
        ret = ps__sweep_write(&s->grid, s->row, s->row_count, s->out, err);
    for (int run = 1; ret == 0 && run <= s->grid.repeat; run++)
        for (size_t c = 0; ret == 0 && c < s->grid.cell_count; c++)
            if (!s->done[c])
                ret = run_cell(s, c, run, err);
    if (!s->grid.keep_runs)
        PS_IGNORE(rmdir(s->runs), "kept where something of it is left");
    return ret;
}

int ps_sweep(struct ps_sweep_summary *out, const struct ps_sweep_options *opt, struct ps_error *err)
{
    memset(out, 0, sizeof *out);
    struct sweep *s = calloc(1, sizeof *s);
    if (!s)
        return ps_error_set(err, -ENOMEM, "out of memory");
    s->opt = opt;
    s->out = out;
    int ret = choose_paths(s, err);
    if (ret == 0)
        ret = ps__sweep_grid_load(&s->grid, opt->grid, err);
    if (ret == 0) {
        out->cells = s->grid.cell_count;
        s->row = calloc(s->grid.cell_count * (size_t)s->grid.repeat, sizeof *s->row);
        ret = s->row ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    }
    if (ret == 0)
        ret = refuse_cells(s, err);
    if (ret == 0)
        ret = run_grid(s, err);
    free(s->row);
    ps__sweep_grid_fini(&s->grid);
    free(s);
    return ret;
}
