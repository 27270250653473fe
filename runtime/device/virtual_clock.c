/* The fluid model of runtime/train/cost.h as a clock: see virtual_clock.h.
 *
 * Between two events every task works at a constant pace. An event is the end of a task's own work
 * (it gives its resources back) or, for a task that a throttle holds, the end of its stay. Times
 * that differ by less than rounding are one event, so that ties are decided by lane and not by
 * noise. */
#include "runtime/device/virtual_clock.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#define RUNNING_MAX 64

struct running {
    enum ps_lane lane;
    uint64_t token;
    bool working;      /* its own work is not done: it takes resources */
    double left_s;     /* solo seconds of own work that are left */
    double floor_s;    /* it ends at this time or later */
    double work_end_s; /* when its own work was done */
};

struct ps_vclock {
    struct ps_cost_model model; /* constant after init */
    double now_s;
    double throttle_s;
    int count;
    struct running run[RUNNING_MAX]; /* by lane, then in the order begun */
};

int ps_vclock_create(struct ps_vclock **out, const struct ps_cost_model *model)
{
    struct ps_vclock *c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    c->model = *model;
    *out = c;
    return 0;
}

void ps_vclock_destroy(struct ps_vclock *c)
{
    free(c);
}

static uint64_t rounded_ns(double s)
{
    return (uint64_t)llround(s * 1e9);
}

uint64_t ps_vclock_now_ns(const struct ps_vclock *c)
{
    return rounded_ns(c->now_s);
}

double ps_vclock_now_s(const struct ps_vclock *c)
{
    return c->now_s;
}

int ps_vclock_running(const struct ps_vclock *c)
{
    return c->count;
}

uint64_t ps_vclock_throttle_ns(const struct ps_vclock *c)
{
    return rounded_ns(c->throttle_s);
}

/* What counts as the same time: far below 1 ns, above the rounding of a sum of that size. */
static double same_s(const struct ps_vclock *c)
{
    return 1e-12 * (c->now_s > 1 ? c->now_s : 1);
}

void ps_vclock_begin(struct ps_vclock *c, const struct ps_task *task, uint64_t token)
{
    assert(c->count < RUNNING_MAX);
    int at = c->count++;
    for (int i = 0; i < at; i++)
        assert(c->run[i].token != token);
    for (; at > 0 && c->run[at - 1].lane > task->lane; at--)
        c->run[at] = c->run[at - 1];
    double solo_s = ps_cost_solo_s(&c->model, task);
    c->run[at] = (struct running){.lane = task->lane,
                                  .token = token,
                                  .working = solo_s > 0,
                                  .left_s = solo_s,
                                  .floor_s = c->now_s + ps_cost_throttle_s(&c->model, task),
                                  .work_end_s = c->now_s};
}

/* How many times longer than alone each running task's work takes now. */
static void slowdowns(const struct ps_vclock *c, double slow[RUNNING_MAX])
{
    double load[PS_RESOURCE_COUNT] = {0};
    for (int i = 0; i < c->count; i++)
        for (int r = 0; r < PS_RESOURCE_COUNT && c->run[i].working; r++)
            load[r] += c->model.use[c->run[i].lane][r];
    for (int i = 0; i < c->count; i++) {
        slow[i] = 1;
        for (int r = 0; r < PS_RESOURCE_COUNT; r++)
            if (c->model.use[c->run[i].lane][r] > 0 && load[r] > slow[i])
                slow[i] = load[r];
    }
}

/* Let time pass until the next event. */
static void advance(struct ps_vclock *c)
{
    double slow[RUNNING_MAX];
    slowdowns(c, slow);
    double step_s = INFINITY;
    for (int i = 0; i < c->count; i++) {
        const struct running *t = &c->run[i];
        double s = t->working ? t->left_s * slow[i] : t->floor_s - c->now_s;
        step_s = s < step_s ? s : step_s;
    }
    assert(step_s >= 0);
    c->now_s += step_s;
    for (int i = 0; i < c->count; i++) {
        struct running *t = &c->run[i];
        if (!t->working)
            continue;
        if (t->left_s * slow[i] <= step_s + same_s(c)) {
            t->working = false;
            t->left_s = 0;
            t->work_end_s = c->now_s;
        } else {
            t->left_s -= step_s / slow[i];
        }
    }
}

uint64_t ps_vclock_next(struct ps_vclock *c)
{
    assert(c->count > 0);
    for (;; advance(c)) {
        for (int i = 0; i < c->count; i++) {
            struct running t = c->run[i];
            if (t.working || t.floor_s > c->now_s + same_s(c))
                continue;
            c->throttle_s = c->now_s - t.work_end_s;
            c->count--;
            for (int j = i; j < c->count; j++)
                c->run[j] = c->run[j + 1];
            return t.token;
        }
    }
}
