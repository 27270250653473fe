/* Learning-rate schedule and what else counts in tokens of a step: see session_internal.h. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "optim/lr_schedule.h"
#include "session/session_internal.h"

double ps__tokens_per_step(const struct ps_session *s)
{
    const struct ps_options *o = s->opt;
    uint64_t steps = s->batcher ? ps_batcher_step_count(s->batcher) : 0;
    if (steps == 0)
        return (double)o->batch_size * o->grad_accum * o->max_seq_len;
    double tokens = (double)s->data.row_begin[s->data.row_count];
    return tokens * ps_batcher_epoch_at(s->batcher, steps - 1) / (double)steps;
}

double ps__beta2_by_half_life(const struct ps_session *s)
{
    return pow(0.5, ps__tokens_per_step(s) / s->opt->beta2_half_life);
}

/* Gradient norms of the steps in a metrics.jsonl, in order; free() them. */
static int read_norms(const char *path, double **out, uint64_t *count, struct ps_error *err)
{
    FILE *f = fopen(path, "r");
    if (!f)
        return ps_error_full(err, -errno, path, "lr-refine-from", NULL, "cannot open the file");
    char *line = NULL;
    size_t size = 0, capacity = 0;
    int ret = 0;
    *out = NULL;
    *count = 0;
    while (ret == 0 && getline(&line, &size, f) >= 0) {
        json_t *row = json_loads(line, 0, NULL);
        const json_t *norm = json_object_get(row, "grad_norm");
        if (json_is_number(norm)) {
            if (*count == capacity) {
                capacity = capacity ? capacity * 2 : 1024;
                double *more = reallocarray(*out, capacity, sizeof *more);
                if (!more)
                    ret = ps_error_set(err, -ENOMEM, "out of memory");
                else
                    *out = more;
            }
            if (ret == 0)
                (*out)[(*count)++] = json_number_value(norm);
        }
        json_decref(row);
    }
    free(line);
    if (ret == 0 && ferror(f))
        ret = ps_error_full(err, -EIO, path, "lr-refine-from", NULL, "cannot read the file");
    PS_IGNORE(fclose(f) != 0, "was only read");
    return ret;
}

static int refine(struct ps_session *s, struct ps_error *err)
{
    const char *path = s->opt->lr_refine_from;
    uint64_t steps = s->schedule.total_steps, count = 0;
    double *norm = NULL;
    int ret = read_norms(path, &norm, &count, err);
    s->lr_table = calloc(steps + 1, sizeof *s->lr_table);
    double *scratch = calloc(steps + 1, sizeof *scratch);
    if (ret == 0 && (!s->lr_table || !scratch))
        ret = ps_error_set(err, -ENOMEM, "out of memory");
    if (ret == 0)
        ret = ps_lr_refine(s->lr_table, steps, norm, count, !strcmp(s->opt->optimizer, "sgd"),
                           scratch, err);
    if (ret < 0)
        ret = ps_error_file(err, ret, path);
    s->schedule.table = s->lr_table;
    s->schedule.table_count = steps;
    free(norm);
    free(scratch);
    return ret;
}

int ps__schedule_make(struct ps_session *s, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    uint64_t total = ps_batcher_step_count(s->batcher);
    double ratio = o->warmup_ratio >= 0 ? o->warmup_ratio : 0.03;
    uint64_t warmup =
        o->warmup_steps >= 0 ? (uint64_t)o->warmup_steps : (uint64_t)(ratio * (double)total + 0.5);
    double sequences = (double)o->batch_size * o->grad_accum;
    s->schedule =
        (struct ps_lr_schedule){.peak = o->learning_rate,
                                .min_ratio = o->min_lr_ratio,
                                .warmup_steps = warmup,
                                .total_steps = total,
                                .wsd_decay_ratio = o->wsd_decay_ratio,
                                .wsd_decay = (enum ps_wsd_decay)o->wsd_decay,
                                .cycles = (uint32_t)o->lr_cycles,
                                .timescale = o->lr_timescale > 0 ? (uint64_t)o->lr_timescale : 0,
                                .power_a = o->lr_power_a >= 0 ? o->lr_power_a : 4 * sequences,
                                .power_b = o->lr_power_b,
                                .tokens_per_step = ps__tokens_per_step(s)};
    int ret = ps_lr_schedule_from_name(o->lr_scheduler, &s->schedule.kind, err);
    if (ret < 0 || s->schedule.kind != PS_LR_REFINED)
        return ret;
    return refine(s, err);
}
