/* The report of a plan, as text and as JSON: see plan_report.h. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session/plan_report_internal.h"

#define DAY_S 86400.0
#define TEN_MILLION 1e7

static const struct ps_plan_item *item_of(const struct ps_session *s, const char *name,
                                          const char *tier)
{
    for (size_t i = 0; i < s->plan_count; i++)
        if (!strcmp(s->plan[i].name, name) && !strcmp(s->plan[i].tier, tier))
            return &s->plan[i];
    return NULL;
}

static double per_day(const struct ps__plan_facts *f, uint64_t bytes)
{
    return f->plan->step_s > 0 ? (double)bytes * DAY_S / f->plan->step_s : 0;
}

static double hours_per_10m(const struct ps__plan_facts *f)
{
    return f->plan->tokens_per_s > 0 ? TEN_MILLION / f->plan->tokens_per_s / 3600 : 0;
}

/* What is committed, how often at most, and what that writes. */
struct commits {
    bool every_step;
    uint64_t bytes; /* beside what the steps write */
    double interval_s, day_bytes;
};

/* --- text --- */

static const char *bytes_text(char buf[32], double bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t u = 0;
    while (bytes >= 1024 && u + 1 < sizeof unit / sizeof *unit) {
        bytes /= 1024;
        u++;
    }
    snprintf(buf, 32, u && bytes < 100 ? "%.2f %s" : "%.0f %s", bytes, unit[u]);
    return buf;
}

/* "8.03 billion", "41.94 million", "260032" */
static const char *count_text(char buf[32], uint64_t n)
{
    double v = (double)n;
    if (n < 1000000)
        snprintf(buf, 32, "%llu", (unsigned long long)n);
    else
        snprintf(buf, 32, n < 1000000000 ? "%.4g million" : "%.4g billion",
                 n < 1000000000 ? v / 1e6 : v / 1e9);
    return buf;
}

static void put_head(FILE *to, const struct ps__plan_facts *f)
{
    const struct ps_session *s = f->s;
    const struct ps_options *o = s->opt;
    char a[32];
    char b[32];
    fprintf(to, "model     %s: %s, %s parameters, %s trained (%s)\n", o->model, s->cfg.model_type,
            count_text(a, ps_trainer_params(s->trainer)->elements),
            count_text(b, ps_trainer_trainable_elements(s->trainer)), o->method);
    fprintf(to, "hardware  %s\n          %s\n", s->profile_where, f->machine);
    if (s->device_budget)
        fprintf(to, "budgets   %s on the device, %s on the host\n",
                bytes_text(a, (double)s->device_budget), bytes_text(b, (double)s->host_budget));
    else
        fprintf(to, "budget    %s of memory\n", bytes_text(a, (double)s->host_budget));
    fprintf(to, "step      %d micro-batch%s of %d tokens", f->micro_count,
            f->micro_count == 1 ? "" : "es", s->trainer_options.n_tok_max);
    if (s->batcher)
        fprintf(to, " at most (from the data)\n");
    else
        fprintf(to, " (%d x %d)\n", o->batch_size, o->max_seq_len);
}

/* A line a statement. */
static void put_why(FILE *to, const char *why)
{
    fprintf(to, "\nstrategy  ");
    for (const char *end; (end = strstr(why, "; ")); why = end + 2)
        fprintf(to, "%.*s\n          ", (int)(end - why), why);
    fprintf(to, "%s\n", why);
}

static struct commits commits_of(const struct ps__plan_facts *f)
{
    struct commits c = {.every_step = f->plan->commits};
    if (c.every_step)
        return c;
    uint64_t steps;
    c.bytes = ps__commit_bytes(f->s);
    ps__commit_interval(f->s, &steps, &c.interval_s);
    double rate = f->plan->cost.byte_rate[PS_LANE_COMMIT];
    if (steps > 0)
        c.interval_s = (double)steps * f->plan->step_s;
    else if (c.interval_s <= 0)
        c.interval_s = ps__auto_interval_s(f->s, rate > 0 ? (double)c.bytes / rate : 0);
    /* a step is not interrupted for one */
    c.interval_s = fmax(c.interval_s, f->plan->step_s);
    c.day_bytes = c.interval_s > 0 ? (double)c.bytes * DAY_S / c.interval_s : 0;
    return c;
}

static void put_commits(FILE *to, const struct ps__plan_facts *f)
{
    struct commits c = commits_of(f);
    char a[32];
    char b[32];
    if (c.every_step) {
        fprintf(to, "commits   every step\n");
        return;
    }
    fprintf(to, "commits   %s, at least %s apart; ", bytes_text(a, (double)c.bytes),
            ps_plan_time_text(b, c.interval_s));
    fprintf(to, "%s a day at most\n", bytes_text(a, c.day_bytes));
}

static void put_speed(FILE *to, const struct ps__plan_facts *f)
{
    const struct ps_plan *p = f->plan;
    char a[32];
    char b[32];
    put_why(to, p->why);
    fprintf(to,
            p->tokens_per_s < 1000
                ? "speed     %s a step, %.4g tokens/s; %s with one task at a time\n"
                : "speed     %s a step, %.0f tokens/s; %s with one task at a time\n",
            ps_plan_time_text(a, p->step_s), p->tokens_per_s, ps_plan_time_text(b, p->serial_s));
    if (p->break_even_tokens > 0) {
        double share = p->tokens_per_pass / p->break_even_tokens;
        fprintf(
            to,
            "          N* is %.0f tokens a pass over the weights; this job has %.0f:\n          ",
            p->break_even_tokens, p->tokens_per_pass);
        const char *end =
            share < 1 ? "the step takes as long as its reads; more tokens a pass, up to N*, "
                        "cost no time"
            : p->layout.near_slots == 1 ? "enough, but one slot leaves no room to read ahead"
                                        : "compute hides the reads";
        fprintf(to, "%s; %.2f x the time of compute alone\n", end, p->slowdown);
    }
    fprintf(to, "          10M tokens in %s", ps_plan_time_text(a, hours_per_10m(f) * 3600));
    if (f->steps > 0)
        fprintf(to, "; %llu steps in %s", (unsigned long long)f->steps,
                ps_plan_time_text(b, (double)f->steps * p->step_s));
    if (f->eval_rows > 0)
        fprintf(to, "; an evaluation of %llu rows in %s", (unsigned long long)f->eval_rows,
                ps_plan_time_text(b, f->eval_s));
    else if (f->eval_tokens_per_s > 0 && !f->s->opt->data)
        fprintf(to, "; an evaluation of 1M tokens in %s",
                ps_plan_time_text(b, 1e6 / f->eval_tokens_per_s));
    fprintf(to, "\n");
    const struct ps__import_facts *import = ps__import_facts(f->s);
    if (import->why[0] && (import->used || ps_options_given(f->s->opt, "import")))
        fprintf(to, "import    %s\n", import->why);
    fprintf(to, "traffic   a step: %s read from disk, ", bytes_text(a, (double)p->disk_read));
    fprintf(to, "%s written", bytes_text(a, (double)p->disk_write));
    if (p->layout.discrete) {
        fprintf(to, "; %s to the device, ", bytes_text(a, (double)p->h2d));
        fprintf(to, "%s back", bytes_text(a, (double)p->d2h));
    }
    fprintf(to, "\n          a day: %s read, ", bytes_text(a, per_day(f, p->disk_read)));
    fprintf(to, "%s written to the SSD", bytes_text(a, per_day(f, p->disk_write)));
    if (p->redo_write_bytes > 0)
        fprintf(to, ", %s if every step is clipped",
                bytes_text(a, (double)(p->disk_write + p->redo_write_bytes) * DAY_S /
                                  (p->step_s + p->redo_s)));
    fprintf(to, "\n");
    if (ps_trainer_shape(f->s->trainer)->trains && f->s->opt->output)
        put_commits(to, f);
}

static void put_cell(FILE *to, const struct ps_plan_item *i)
{
    char a[32];
    if (i)
        fprintf(to, "  %12s", bytes_text(a, (double)i->bytes));
    else
        fprintf(to, "  %12s", "-");
}

/* Where every byte lives: classes down, tiers across. */
static void put_memory(FILE *to, const struct ps__plan_facts *f)
{
    static const char *const tier[] = {"device", "host", "disk"};
    const struct ps_session *s = f->s;
    const uint64_t sum[] = {s->device_need, s->host_need, s->disk_need};
    char a[32];
    fprintf(to, "\n%-24s", "where it lives");
    for (int t = 0; t < 3; t++)
        fprintf(to, "  %12s", tier[t]);
    fprintf(to, "\n");
    for (size_t i = 0; i < s->plan_count; i++) {
        bool seen = false;
        for (size_t k = 0; k < i; k++)
            seen |= !strcmp(s->plan[k].name, s->plan[i].name);
        if (seen)
            continue;
        fprintf(to, "  %-22s", s->plan[i].name);
        for (int t = 0; t < 3; t++)
            put_cell(to, item_of(s, s->plan[i].name, tier[t]));
        fprintf(to, "\n");
    }
    fprintf(to, "  %-22s", "together");
    for (int t = 0; t < 3; t++)
        fprintf(to, "  %12s", sum[t] ? bytes_text(a, (double)sum[t]) : "-");
    fprintf(to, "\n");
}

/* Without a device memory of its own all memory is the host's. */
static uint64_t on_device(const struct ps_plan *p, const struct ps_plan_candidate *c)
{
    return p->layout.discrete ? c->device_bytes : 0;
}

static uint64_t on_host(const struct ps_plan *p, const struct ps_plan_candidate *c)
{
    return p->layout.discrete ? c->host_bytes : c->device_bytes + c->host_bytes;
}

static void put_candidates(FILE *to, const struct ps_plan *p, int most)
{
    char a[3][32];
    int wide = 12;
    for (int i = 0; i < p->candidate_count && i < most; i++)
        if ((int)strlen(p->candidate[i].strategy) > wide)
            wide = (int)strlen(p->candidate[i].strategy);
    fprintf(to, "\n%-*s %10s  %10s %10s %10s  layout\n", wide, "tried", "step", "device", "host",
            "disk");
    for (int i = 0; i < p->candidate_count && i < most; i++) {
        const struct ps_plan_candidate *c = &p->candidate[i];
        char step[32] = "too large";
        if (c->fits)
            ps_plan_time_text(step, c->step_s);
        fprintf(to, "%-*s %10s  %10s %10s %10s  %s\n", wide, c->strategy, step,
                bytes_text(a[0], (double)on_device(p, c)), bytes_text(a[1], (double)on_host(p, c)),
                bytes_text(a[2], (double)c->disk_bytes), c->note);
    }
    if (p->candidate_count > most)
        fprintf(to, "and %d more; --json lists them\n", p->candidate_count - most);
    fprintf(to, "memory here is that of the buffers, without the process itself");
    bool beaten = false;
    for (int i = 1; i < p->candidate_count; i++)
        beaten |= p->candidate[i].fits && p->candidate[i].step_s < p->candidate[0].step_s;
    fprintf(to, beaten ? "; the first row is chosen although another looks\n"
                         "faster: where times hardly differ, writing less and needing less memory "
                         "count more\n(and writing to the disk in each step counts as 5%% of it, "
                         "optimizer states or kept activations as 25%%)\n"
                       : "; the first row is chosen\n");
}

char *ps__plan_text(const struct ps__plan_facts *f)
{
    char *text = NULL;
    size_t len;
    FILE *to = open_memstream(&text, &len);
    if (!to)
        return NULL;
    put_head(to, f);
    put_speed(to, f);
    put_memory(to, f);
    put_candidates(to, f->plan, 12);
    bool failed = ferror(to) != 0;
    if (fclose(to) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}

/* --- JSON --- */

static json_t *real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *size(uint64_t bytes)
{
    return json_integer((json_int_t)bytes);
}

json_t *ps__plan_memory_json(const struct ps_session *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->plan_count; i++)
        if (json_array_append_new(list,
                                  json_pack("{s:s,s:s,s:o}", "class", s->plan[i].name, "tier",
                                            s->plan[i].tier, "bytes", size(s->plan[i].bytes)))) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static json_t *candidates_json(const struct ps_plan *p)
{
    json_t *list = json_array();
    for (int i = 0; i < p->candidate_count; i++) {
        const struct ps_plan_candidate *c = &p->candidate[i];
        json_t *o = json_pack("{s:s,s:o,s:o,s:o,s:o,s:o,s:b,s:s}", "strategy", c->strategy,
                              "step_s", real(c->step_s), "device", size(on_device(p, c)), "host",
                              size(on_host(p, c)), "disk", size(c->disk_bytes), "disk_write",
                              size(c->write_bytes), "fits", c->fits, "note", c->note);
        if (json_array_append_new(list, o)) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *commits_json(const struct ps__plan_facts *f)
{
    struct commits c = commits_of(f);
    if (!ps_trainer_shape(f->s->trainer)->trains)
        return json_null();
    if (c.every_step)
        return json_pack("{s:b,s:i}", "every_step", 1, "bytes", 0);
    return json_pack("{s:b,s:o,s:o,s:o}", "every_step", 0, "interval_s", real(c.interval_s),
                     "bytes", size(c.bytes), "bytes_per_day", real(c.day_bytes));
}

/* Of the steady step, seconds: how long each lane is busy. */
static json_t *lanes_json(const struct ps_plan *p)
{
    json_t *o = json_object();
    for (int i = 0; o && i < PS_LANE_COUNT; i++) {
        if (p->step.busy_s[i] > 0 && json_object_set_new(o, ps_lane_name((enum ps_lane)i),
                                                         real(p->step.busy_s[i])) < 0) {
            json_decref(o);
            o = NULL;
        }
    }
    return o;
}

json_t *ps__plan_contract_json(const struct ps_session *s)
{
    const struct ps_plan *p = &s->chosen;
    return json_pack("{s:b,s:s,s:o,s:o,s:{s:o,s:o,s:o},s:{s:o,s:o,s:o,s:o},s:o,s:o,s:s,s:o}",
                     "fits", 1, "strategy", p->layout.strategy, "step_s", real(p->step_s),
                     "tokens_per_s", real(p->tokens_per_s), "peak_bytes", "device",
                     size(s->device_need), "host", size(s->host_need), "disk", size(s->disk_need),
                     "traffic_bytes", "disk_read", size(p->disk_read), "disk_write",
                     size(p->disk_write), "h2d", size(p->h2d), "d2h", size(p->d2h),
                     "tokens_per_pass", real(p->tokens_per_pass), "break_even_tokens",
                     real(p->break_even_tokens), "bottleneck", ps_lane_name(p->bottleneck),
                     "placement", ps_placement_json(&p->layout, ps_trainer_shape(s->trainer)));
}

json_t *ps__plan_json(const struct ps__plan_facts *f)
{
    const struct ps_plan *p = f->plan;
    const struct ps_session *s = f->s;
    json_t *o = ps__plan_contract_json(s);
    json_t *more = json_pack("{s:o,s:o,s:s,s:{s:s,s:s},s:o,s:{s:o,s:o},s:o,s:o,s:o,s:o,s:{s:o,s:o,"
                             "s:o},s:o,s:{s:o,s:o},s:o}",
                             "serial_s", real(p->serial_s), "slowdown", real(p->slowdown), "why",
                             p->why, "hardware", "profile", s->profile_where, "machine", f->machine,
                             "hours_per_10m_tokens", real(hours_per_10m(f)), "ssd_bytes_per_day",
                             "read", real(per_day(f, p->disk_read)), "write",
                             real(per_day(f, p->disk_write)), "commit", commits_json(f), "steps",
                             f->steps ? json_integer((json_int_t)f->steps) : json_null(),
                             "tokens_per_step", real(f->tokens_per_step), "hours",
                             f->steps ? real((double)f->steps * p->step_s / 3600) : json_null(),
                             "evaluation", "tokens_per_s", real(f->eval_tokens_per_s), "rows",
                             f->eval_rows ? json_integer((json_int_t)f->eval_rows) : json_null(),
                             "minutes", f->eval_rows ? real(f->eval_s / 60) : json_null(), "memory",
                             ps__plan_memory_json(s), "budgets", "device", size(s->device_budget),
                             "host", size(s->host_budget), "candidates", candidates_json(p));
    if (!o || !more || json_object_update(o, more) < 0) {
        json_decref(o);
        o = NULL;
    }
    json_decref(more);
    if (o && (json_object_set_new(o, "import", ps__import_json(s)) < 0 ||
              json_object_set_new(o, "redo_s", real(p->redo_s)) < 0 ||
              json_object_set_new(o, "redo_write_bytes",
                                  json_integer((json_int_t)p->redo_write_bytes)) < 0 ||
              json_object_set_new(o, "lanes_busy_s", lanes_json(p)) < 0)) {
        json_decref(o);
        o = NULL;
    }
    return o;
}
