/* The sweep's CSV and page: see sweep.h. */
#include "session/sweep_internal.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "session/catalog.h"
#include "session/host_machine.h"

static const char *const status_names[] = {"ok", "infeasible", "refused", "failed", "simulated"};

/* A field, quoted where it must be (RFC 4180). */
static void put(FILE *f, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, f);
        return;
    }
    fputc('"', f);
    for (const char *p = text; *p; p++) {
        if (*p == '"')
            fputc('"', f);
        fputc(*p == '\n' || *p == '\r' ? ' ' : *p, f);
    }
    fputc('"', f);
}

static void put_real(FILE *f, double v)
{
    fputc(',', f);
    if (isfinite(v))
        fprintf(f, "%.9g", v);
}

static void put_count(FILE *f, uint64_t v)
{
    fputc(',', f);
    if (v)
        fprintf(f, "%llu", (unsigned long long)v);
}

static void csv_head(FILE *f, const struct ps__sweep_grid *g)
{
    fputs("version,machine,commit,cell,run,status,exit_code", f);
    for (size_t i = 0; i < g->axis_count; i++) {
        fputc(',', f);
        for (const char *p = g->axis[i].name; *p; p++)
            fputc(*p == '-' ? '_' : *p, f);
    }
    fputs(",strategy_chosen,plan_hash,predicted_step_s,step_s,tokens_per_s,steps,loss,wall_s,"
          "disk_read_bytes,disk_write_bytes,plan_device_bytes,plan_host_bytes,plan_disk_bytes,"
          "peak_rss_bytes,peak_cgroup_bytes,message\n",
          f);
}

static void csv_row(FILE *f, const struct ps__sweep_grid *g, const struct ps__sweep_row *r,
                    const char *machine)
{
    fputs("1,", f);
    put(f, machine);
    fprintf(f, ",%s,%zu,%d,%s,%d", ps_catalog_commit(), r->cell, r->run, status_names[r->status],
            r->exit_code);
    for (size_t i = 0; i < g->axis_count; i++) {
        fputc(',', f);
        put(f, ps__sweep_value(g, r->cell, i));
    }
    fprintf(f, ",%s,%s", r->strategy, r->plan_hash);
    put_real(f, r->predicted_step_s);
    put_real(f, r->step_s);
    put_real(f, r->tokens_per_s);
    put_count(f, r->steps);
    put_real(f, r->loss);
    put_real(f, r->wall_s);
    put_count(f, r->disk_read_bytes);
    put_count(f, r->disk_write_bytes);
    put_count(f, r->plan_device_bytes);
    put_count(f, r->plan_host_bytes);
    put_count(f, r->plan_disk_bytes);
    put_count(f, r->peak_rss_bytes);
    put_count(f, r->peak_group_bytes);
    fputc(',', f);
    put(f, r->message);
    fputc('\n', f);
}

/* ---- page ----------------------------------------------------------------------------------- */

struct spread {
    double median, least, most;
    int n;
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of one value over the runs of a cell; n is 0 where it was not measured. */
static struct spread spread_of(const struct ps__sweep_row *row, size_t count, size_t cell,
                               double (*get)(const struct ps__sweep_row *r))
{
    enum { MOST = 1000 };
    double v[MOST];
    struct spread s = {0};
    for (size_t i = 0; i < count && s.n < MOST; i++)
        if (row[i].cell == cell && isfinite(get(&row[i])))
            v[s.n++] = get(&row[i]);
    if (s.n == 0)
        return s;
    qsort(v, (size_t)s.n, sizeof v[0], compare);
    s.least = v[0];
    s.most = v[s.n - 1];
    s.median = s.n % 2 ? v[s.n / 2] : (v[s.n / 2 - 1] + v[s.n / 2]) / 2;
    return s;
}

static double get_step(const struct ps__sweep_row *r)
{
    return r->step_s;
}

static double get_tokens(const struct ps__sweep_row *r)
{
    return r->tokens_per_s;
}

static double get_predicted(const struct ps__sweep_row *r)
{
    return r->predicted_step_s;
}

static double get_rss(const struct ps__sweep_row *r)
{
    return r->peak_rss_bytes ? (double)r->peak_rss_bytes / (1 << 20) : NAN;
}

/* A cell of a Markdown table: no bar, no line break. */
static void put_cell(FILE *f, const char *text)
{
    fputs(" ", f);
    for (const char *p = text; *p; p++) {
        if (*p == '|')
            fputc('\\', f);
        fputc(*p == '\n' ? ' ' : *p, f);
    }
    fputs(" |", f);
}

static void put_spread(FILE *f, struct spread s, bool range)
{
    if (s.n == 0)
        fputs(" |", f);
    else if (range && s.n > 1)
        fprintf(f, " %.4g (%.4g to %.4g) |", s.median, s.least, s.most);
    else
        fprintf(f, " %.4g |", s.median);
}

static void page_cell(FILE *f, const struct ps__sweep_grid *g, const struct ps__sweep_row *row,
                      size_t count, size_t cell)
{
    const struct ps__sweep_row *last = NULL;
    int runs = 0;
    for (size_t i = 0; i < count; i++)
        if (row[i].cell == cell) {
            last = &row[i];
            runs++;
        }
    if (!last)
        return;
    fprintf(f, "| %zu |", cell);
    for (size_t i = 0; i < g->axis_count; i++)
        if (g->axis[i].count > 1)
            put_cell(f, ps__sweep_value(g, cell, i));
    struct spread step = spread_of(row, count, cell, get_step);
    struct spread predicted = spread_of(row, count, cell, get_predicted);
    fprintf(f, " %s | %d |", status_names[last->status], runs);
    put_cell(f, last->strategy);
    put_spread(f, step, true);
    put_spread(f, predicted, false);
    if (step.n > 0 && predicted.n > 0 && step.median > 0)
        fprintf(f, " %.3f |", predicted.median / step.median);
    else
        fputs(" |", f);
    put_spread(f, spread_of(row, count, cell, get_tokens), false);
    put_spread(f, spread_of(row, count, cell, get_rss), false);
    put_cell(f, last->message);
    fputc('\n', f);
}

static void page(FILE *f, const struct ps__sweep_grid *g, const struct ps__sweep_row *row,
                 size_t count, const char *machine)
{
    fprintf(f, "# Sweep\n\n%s; commit %s; %zu cells, %d runs of each.\n\n", machine,
            ps_catalog_commit(), g->cell_count, g->repeat);
    fputs("The same in every cell:\n\n", f);
    for (size_t i = 0; i < g->axis_count; i++)
        if (g->axis[i].count == 1)
            fprintf(f, "- `%s: %s`\n", g->axis[i].name, g->axis[i].value[0]);
    fputs(
        "\nMedians over the runs (least to most); s/step is a run's median without its first "
        "step; predicted/measured is the plan's over the clock's; rss is the peak of the process, "
        "MiB.\n\n| cell |",
        f);
    size_t columns = 9;
    for (size_t i = 0; i < g->axis_count; i++)
        if (g->axis[i].count > 1) {
            put_cell(f, g->axis[i].name);
            columns++;
        }
    fputs(" status | runs | strategy | s/step | predicted | predicted/measured | tokens/s | rss | "
          "message |\n|",
          f);
    for (size_t i = 0; i < columns + 1; i++)
        fputs("---|", f);
    fputc('\n', f);
    for (size_t cell = 0; cell < g->cell_count; cell++)
        page_cell(f, g, row, count, cell);
}

static int save(FILE *f, char **text, const size_t *len, const char *path, struct ps_error *err)
{
    int failed = ferror(f);
    failed |= fclose(f);
    int ret = failed ? ps_error_set(err, -ENOMEM, "out of memory")
                     : ps_file_write(path, *text, *len, err);
    free(*text);
    return ret;
}

int ps__sweep_write(const struct ps__sweep_grid *g, const struct ps__sweep_row *row, size_t count,
                    const struct ps_sweep_summary *s, struct ps_error *err)
{
    char machine[256];
    ps_host_machine(machine, sizeof machine);
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return ps_error_set(err, -ENOMEM, "out of memory");
    csv_head(f, g);
    for (size_t i = 0; i < count; i++)
        csv_row(f, g, &row[i], machine);
    int ret = save(f, &text, &len, s->csv, err);
    if (ret)
        return ret;
    f = open_memstream(&text, &len);
    if (!f)
        return ps_error_set(err, -ENOMEM, "out of memory");
    page(f, g, row, count, machine);
    return save(f, &text, &len, s->page, err);
}
