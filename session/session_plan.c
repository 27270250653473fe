/* The plan of a run, from its options alone: see plan_report.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session/plan_report_internal.h"

#define HOST_SHARE 0.8
#define DEVICE_SHARE 0.95

static int adopt(struct ps_options *opt, const char *name, uint64_t bytes, double share,
                 struct ps_error *err)
{
    char value[32];
    if (bytes == 0 || ps_options_given(opt, name))
        return 0;
    snprintf(value, sizeof value, "%" PRIu64 "MiB", (uint64_t)((double)bytes * share) >> 20);
    return ps_options_set(opt, name, value, "--hardware", err);
}

int ps_plan_adopt_machine(struct ps_options *opt, struct ps_error *err)
{
    if (!opt->hardware)
        return 0;
    struct ps_profile *p = malloc(sizeof *p);
    if (!p)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = ps_profile_load(p, opt->hardware, err);
    if (ret == 0)
        ret = adopt(opt, "host-mem", p->host_memory, HOST_SHARE, err);
    if (ret == 0 && strcmp(p->device, "cuda") == 0 && !strcmp(opt->device, "auto"))
        ret = adopt(opt, "gpu-mem", p->device_memory, DEVICE_SHARE, err);
    free(p);
    return ret;
}

/* Time of evaluation passes in the steady state. */
static int measure_eval(struct ps__plan_facts *f, struct ps_error *err)
{
    const struct ps_session *s = f->s;
    const struct ps_schedule *eval = ps_trainer_schedule(s->trainer, PS_SEGMENT_EVAL);
    struct ps_sim_segment segment = {.schedule = eval, .repeat = 2};
    struct ps_sim_options o = {
        .model = &f->plan->cost, .segment = &segment, .segment_count = 1, .rounds = 2};
    struct ps_sim_result r;
    int ret = ps_simulate(&r, &o, err);
    if (ret < 0)
        return ret;
    double pass_s = r.seconds / 2;
    double sequences = f->plan->layout.eval_group;
    double tokens = sequences * s->trainer_options.n_tok_max;
    f->eval_tokens_per_s = pass_s > 0 ? tokens / pass_s : 0;
    f->eval_rows = s->eval_data.row_count;
    if (f->eval_rows > 0)
        f->eval_s = f->eval_tokens_per_s > 0
                        ? (double)s->eval_data.row_begin[f->eval_rows] / f->eval_tokens_per_s
                        : 0;
    return 0;
}

static int gather(struct ps__plan_facts *f, const struct ps_session *s, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    const char *where;
    struct ps_profile *p = malloc(sizeof *p);
    if (!p)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = ps__profile_find(o, p, &where, err);
    if (ret == 0)
        snprintf(f->machine, sizeof f->machine, "%s", p->machine);
    free(p);
    if (ret < 0)
        return ret;
    f->s = s;
    f->plan = &s->chosen;
    f->micro_count = s->trainer_options.micro_max;
    f->tokens_per_step = (double)f->micro_count * s->trainer_options.n_tok_max;
    f->disk_read = s->chosen.cost.byte_rate[PS_LANE_DISK_WEIGHTS];
    f->disk_write = s->chosen.cost.byte_rate[PS_LANE_DISK_WRITE];
    f->steps = s->batcher ? ps_batcher_step_count(s->batcher) : (uint64_t)o->max_steps;
    return measure_eval(f, err);
}

/* Budgets that suffice, in whole MiB; a process of the same plan may be a little larger the next
 * time.
 */
static json_t *budget_for(uint64_t bytes)
{
    return json_integer((json_int_t)(bytes ? ((bytes >> 20) + 2) << 20 : 0));
}

static char *needs_json(const struct ps_session *s)
{
    json_t *o =
        json_pack("{s:b,s:{s:o,s:o,s:o}}", "fits", 0, "needs", "device", budget_for(s->device_need),
                  "host", budget_for(s->host_need), "disk", budget_for(s->chosen.disk_bytes));
    if (o && s->chosen.needs_write_limit > 0 &&
        json_object_set_new(json_object_get(o, "needs"), "write_per_day",
                            json_integer((json_int_t)s->chosen.needs_write_limit)) < 0) {
        json_decref(o);
        o = NULL;
    }
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    return text;
}

/* The text with a newline; takes over and frees *text. */
static char *end_line(char *text)
{
    size_t len = text ? strlen(text) : 0;
    char *line = text ? realloc(text, len + 2) : NULL;
    if (!line) {
        free(text);
        return NULL;
    }
    memcpy(line + len, "\n", 2);
    return line;
}

static char *report(const struct ps__plan_facts *f, bool json)
{
    if (!json)
        return ps__plan_text(f);
    json_t *o = ps__plan_json(f);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    return end_line(text);
}

int ps_session_plan(const struct ps_options *opt, const struct ps_log *log, char **text,
                    struct ps_error *err)
{
    struct ps_session *s;
    struct ps__plan_facts f = {0};
    *text = NULL;
    int ret = ps__session_open(&s, opt, log, err);
    bool fits = ret != PS_ENOFIT;
    if (ret == 0)
        ret = gather(&f, s, err);
    if (ret == 0)
        *text = report(&f, opt->json);
    else if (!fits && opt->json)
        *text = end_line(needs_json(s));
    ps_session_close(s);
    if (!*text && (ret == 0 || (!fits && opt->json)))
        return ps_error_set(err, -ENOMEM, "out of memory");
    return ret;
}
