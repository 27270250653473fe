/* Learning-rate schedules: see lr_schedule.h. */
#include "optim/lr_schedule.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define PI 3.141592653589793238462643383279502884

static const char *const kind_name[] = {"constant", "linear", "cosine", "wsd"};

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

double ps_lr_at(const struct ps_lr_schedule *c, uint64_t s)
{
    uint64_t w = c->warmup_steps;
    if (s < w)
        return c->peak * ((double)(s + 1) / (double)w);
    uint64_t left = c->total_steps > w ? c->total_steps - w : 0;
    double x = progress(s, w, left), r = c->min_ratio;
    switch (c->kind) {
    case PS_LR_CONSTANT:
        return c->peak;
    case PS_LR_LINEAR:
        return c->peak * (1 - (1 - r) * x);
    case PS_LR_COSINE:
        return c->peak * (r + (1 - r) * 0.5 * (1 + cos(PI * x)));
    case PS_LR_WSD:
        break;
    }
    assert(c->kind == PS_LR_WSD);
    uint64_t d = wsd_decay_steps(c, left);
    return c->peak * (1 - (1 - r) * progress(s, w + left - d, d));
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
                         "choose constant, linear, cosine or wsd",
                         "unknown learning-rate schedule '%.64s'", name);
}

const char *ps_lr_schedule_name(enum ps_lr_schedule_kind kind)
{
    assert((size_t)kind < sizeof kind_name / sizeof *kind_name);
    return kind_name[kind];
}
