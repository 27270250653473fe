/* Why a plan is as it is, in words. See planner.h. */
#include <stdarg.h>
#include <stdio.h>

#include "offload/planner_internal.h"

#define GIB 1073741824.0
#define DAY_S 86400.0
/* Slower than this is said in words. */
#define TIMES_MAX 100

const char *ps_plan_time_text(char buf[32], double s)
{
    if (s < 120)
        snprintf(buf, 32, "%.3g s", s);
    else if (s < 7200)
        snprintf(buf, 32, "%.3g min", s / 60);
    else if (s < 2 * DAY_S)
        snprintf(buf, 32, "%.3g h", s / 3600);
    else
        snprintf(buf, 32, s < 100 * DAY_S ? "%.3g days" : "%.0f days", s / DAY_S);
    return buf;
}

struct text {
    char *at;
    size_t size, len;
};

static void say(struct text *t, const char *fmt, ...) PS_PRINTF(2, 3);
static void say(struct text *t, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(t->at + t->len, t->size - t->len, fmt, args);
    va_end(args);
    if (n > 0)
        t->len += (size_t)n < t->size - t->len ? (size_t)n : t->size - t->len - 1;
}

static void say_rival(struct text *w, const struct ps__trials *t,
                      const struct ps_planner_request *req, int strategy, double step_s)
{
    const struct ps__trial *best = NULL;
    for (int i = 0; i < t->count; i++) {
        const struct ps__trial *c = &t->trial[i];
        if (c->strategy == strategy && c->simulated && !c->wears &&
            (!best || c->step_s < best->step_s))
            best = c;
    }
    const char *name = ps_strategy_at(strategy)->name;
    const struct ps__trial *least = ps__plan_smallest(t, strategy, req);
    char time[32];
    double more = best && step_s > 0 ? best->step_s / step_s : 1;
    if (best && more > TIMES_MAX)
        say(w, "; %s would take %s, more than %d times as long", name,
            ps_plan_time_text(time, best->step_s), TIMES_MAX);
    else if (best)
        say(w, "; %s would take %s (%+.0f%%)", name, ps_plan_time_text(time, best->step_s),
            100 * (more - 1));
    else if (least && req->discrete)
        say(w, "; %s needs %.2f GiB on the device and %.2f GiB on the host", name,
            (double)least->bytes[PS_TIER_DEVICE] / GIB, (double)least->bytes[PS_TIER_HOST] / GIB);
    else if (least)
        say(w, "; %s needs %.2f GiB", name, (double)least->bytes[PS_TIER_DEVICE] / GIB);
    if (best && best->redo_s > 0)
        say(w, ", a clipped step %s more", ps_plan_time_text(time, best->redo_s));
}

void ps__plan_explain(struct ps_plan *out, const struct ps__trials *t,
                      const struct ps_planner_request *req, int strategy)
{
    struct text w = {out->why, sizeof out->why, 0};
    char note[160];
    ps__layout_note(req->shape, &out->layout, note, sizeof note);
    say(&w, "%s: %s; ", out->layout.strategy, note);
    if (out->commits)
        say(&w, "every step is a checkpoint; ");
    char time[32];
    if (out->redo_s > 0)
        say(&w, "a step that is clipped is updated again, in %s more; ",
            ps_plan_time_text(time, out->redo_s));
    double busy = out->step_s > 0 ? 100 * out->step.busy_s[out->bottleneck] / out->step_s : 0;
    say(&w, "%s is the bottleneck, busy %.0f%% of the step", ps_lane_name(out->bottleneck), busy);
    if (out->break_even_tokens > 0)
        say(&w, "; a pass has %.0f tokens and needs %.0f to hide its reads", out->tokens_per_pass,
            out->break_even_tokens);
    for (int i = 0; ps_strategy_at(i); i++)
        if (i != strategy)
            say_rival(&w, t, req, i, out->step_s);
}
