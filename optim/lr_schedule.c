/* Learning-rate schedules: see lr_schedule.h. */
#include "optim/lr_schedule.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define PI 3.141592653589793238462643383279502884

static const char *const kind_name[] = {"constant",        "linear",       "cosine", "wsd",
                                        "cosine-restarts", "inverse-sqrt", "power",  "refined"};
static_assert(sizeof kind_name / sizeof *kind_name == PS_LR_KIND_COUNT, "a name each");

/* min(1, (s - begin) / length), 0 before begin, 1 for a length of 0. */
static double progress(uint64_t s, uint64_t begin, uint64_t length)
{
    if (s < begin)
        return 0;
    if (s - begin >= length)
        return 1;
    return (double)(s - begin) / (double)length;
}

/* Steps of the final decay of a schedule whose warm-up leaves `left` steps. */
static uint64_t wsd_decay_steps(const struct ps_lr_schedule *c, uint64_t left)
{
    double share = c->wsd_decay_ratio > 0 ? c->wsd_decay_ratio : 0.1;
    double steps = floor(share * (double)c->total_steps + 0.5);
    if (steps < 1)
        steps = 1;
    return steps < (double)left ? (uint64_t)steps : left;
}

/* What is left of 1 in the final decay of a schedule. */
static double final_decay(const struct ps_lr_schedule *c, uint64_t s, uint64_t left)
{
    uint64_t d = wsd_decay_steps(c, left);
    double y = progress(s, c->warmup_steps + left - d, d);
    if (c->wsd_decay == PS_WSD_COSINE)
        y = 0.5 * (1 - cos(PI * y));
    else if (c->wsd_decay == PS_WSD_SQRT)
        y = sqrt(y);
    return 1 - (1 - c->min_ratio) * y;
}

static double inverse_sqrt(const struct ps_lr_schedule *c, uint64_t s)
{
    uint64_t w = c->warmup_steps;
    double tau = (double)(c->timescale ? c->timescale : w ? w : 10000);
    return 1 / sqrt(((double)(s - w) + tau) / tau);
}

static double power(const struct ps_lr_schedule *c, uint64_t s)
{
    double rate = c->power_a * pow((double)(s + 1) * c->tokens_per_step, -c->power_b);
    return c->peak > 0 && rate < c->peak ? rate / c->peak : 1;
}

/* At and after the end of the warm-up, as a share of the peak. */
static double after_warmup(const struct ps_lr_schedule *c, uint64_t s)
{
    uint64_t w = c->warmup_steps;
    uint64_t left = c->total_steps > w ? c->total_steps - w : 0;
    double x = progress(s, w, left), r = c->min_ratio;
    double cycle = x * (c->cycles ? c->cycles : 1);
    switch (c->kind) {
    case PS_LR_CONSTANT:
        return 1;
    case PS_LR_LINEAR:
        return 1 - (1 - r) * x;
    case PS_LR_COSINE:
        return r + (1 - r) * 0.5 * (1 + cos(PI * x));
    case PS_LR_COSINE_RESTARTS:
        return x >= 1 ? r : r + (1 - r) * 0.5 * (1 + cos(PI * (cycle - floor(cycle))));
    case PS_LR_INVERSE_SQRT:
        return inverse_sqrt(c, s);
    case PS_LR_POWER:
        return power(c, s) * final_decay(c, s, left);
    case PS_LR_REFINED:
        return s < c->table_count ? c->table[s] : 0;
    case PS_LR_WSD:
    case PS_LR_KIND_COUNT:
        break;
    }
    assert(c->kind == PS_LR_WSD);
    return final_decay(c, s, left);
}

double ps_lr_at(const struct ps_lr_schedule *c, uint64_t s)
{
    uint64_t w = c->warmup_steps;
    bool own_peak = c->kind != PS_LR_POWER && c->kind != PS_LR_REFINED;
    if (s < w) /* the peak, unless the schedule has passed it by then */
        return c->peak * ((double)(s + 1) / (double)w) * (own_peak ? 1 : after_warmup(c, w));
    return c->peak * after_warmup(c, s);
}

/* The median of (size,), an odd number; sorts it. */
static double median(double *v, uint64_t size)
{
    for (uint64_t i = 1; i < size; i++) {
        double x = v[i];
        uint64_t k = i;
        for (; k > 0 && v[k - 1] > x; k--)
            v[k] = v[k - 1];
        v[k] = x;
    }
    return v[size / 2];
}

/* Index i, reflected at both ends, of n values (the end itself not repeated). */
static uint64_t reflect(int64_t i, int64_t n)
{
    int64_t period = n > 1 ? 2 * (n - 1) : 1;
    i = i % period + (i % period < 0 ? period : 0);
    return (uint64_t)(i < n ? i : period - i);
}

#define WINDOW_MAX 1001

int ps_lr_refine(double *factor, uint64_t steps, const double *norm, uint64_t count, bool square,
                 double *scratch, struct ps_error *err)
{
    uint64_t window = steps / 10 | 1;
    double sorted[WINDOW_MAX], after = 0, most = 0;
    window = window > WINDOW_MAX ? WINDOW_MAX : window;
    for (uint64_t s = 0; count > 0 && s < steps; s++) {
        for (uint64_t k = 0; k < window; k++) {
            uint64_t at = reflect((int64_t)(s + k) - (int64_t)(window / 2), (int64_t)steps);
            sorted[k] = norm[(uint64_t)((double)at * (double)count / (double)steps)];
        }
        scratch[s] = median(sorted, window);
        if (!isfinite(scratch[s]) || scratch[s] <= 0)
            count = 0;
        scratch[s] = square ? 1 / (scratch[s] * scratch[s]) : 1 / scratch[s];
    }
    if (count == 0)
        return ps_error_full(err, PS_EFORMAT, NULL, "lr-refine-from",
                             "take the metrics.jsonl of a run that went well",
                             "there are no gradient norms to refine a schedule by");
    for (uint64_t s = steps; s-- > 0;) {
        factor[s] = scratch[s] * after;
        after += scratch[s];
        most = factor[s] > most ? factor[s] : most;
    }
    for (uint64_t s = 0; most > 0 && s < steps; s++)
        factor[s] /= most;
    return 0;
}
int ps_lr_schedule_from_name(const char *name, enum ps_lr_schedule_kind *kind, struct ps_error *err)
{
    for (size_t i = 0; i < sizeof kind_name / sizeof *kind_name; i++) {
        if (strcmp(name, kind_name[i]) == 0) {
            *kind = (enum ps_lr_schedule_kind)i;
            return 0;
        }
    }
    return ps_error_full(err, PS_EUSAGE, NULL, "lr-schedule",
                         "`penstock list schedules` lists them",
                         "unknown learning-rate schedule '%.64s'", name);
}

const char *ps_lr_schedule_name(enum ps_lr_schedule_kind kind)
{
    assert((size_t)kind < sizeof kind_name / sizeof *kind_name);
    return kind_name[kind];
}
