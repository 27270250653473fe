/* What the planner's files share: the layouts that were proposed and what came of them. */
#ifndef PS_OFFLOAD_PLANNER_INTERNAL_H
#define PS_OFFLOAD_PLANNER_INTERNAL_H

#include "offload/strategy_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS__STRATEGY_MAX 16

struct ps__trial {
    struct ps_step_layout layout;
    uint64_t bytes[PS_TIER_COUNT]; /* as the budgets count */
    struct ps__estimate estimate;
    struct ps_sim_result sim;
    double step_s; /* 0 until simulated */
    int strategy;
    bool fits, writes, simulated; /* writes: boundaries to the disk */
};

static inline uint64_t ps__trial_memory(const struct ps__trial *t)
{
    return t->bytes[PS_TIER_DEVICE] + t->bytes[PS_TIER_HOST];
}

struct ps__trials {
    struct ps__trial *trial;
    int count, capacity;
};

/* The schedules of a layout; release with ps__schedules_fini. */
struct ps__schedules {
    struct ps_step_map map;
    struct ps_schedule pass, update; /* update: empty without training */
    struct ps_sim_segment segment[2];
    int segment_count;
};
int ps__schedules_build(struct ps__schedules *s, const struct ps_planner_request *req,
                        const struct ps_step_layout *l, struct ps_error *err) PS_WARN_UNUSED;
void ps__schedules_fini(struct ps__schedules *s);

/* Fill sim, step_s, simulated; adds the tasks walked to *tasks. */
int ps__trial_simulate(struct ps__trial *t, const struct ps_planner_request *req,
                       const struct ps_cost_model *cost, uint64_t *tasks,
                       struct ps_error *err) PS_WARN_UNUSED;

/* Let evaluation passes of a streamed base take as many sequences as its reads need to be hidden,
 * as far as the budgets go. */
int ps__grow_eval_group(struct ps__trial *t, const struct ps_planner_request *req,
                        const struct ps_cost_model *cost, struct ps_error *err) PS_WARN_UNUSED;

/* PS_ENOFIT: the smallest layout's bytes and the message. */
int ps__plan_no_fit(struct ps_plan *out, const struct ps__trials *t,
                    const struct ps_planner_request *req, struct ps_error *err) PS_WARN_UNUSED;

/* Everything of the plan; takes the best trial's layout over. */
int ps__plan_describe(struct ps_plan *out, struct ps__trials *t, int best,
                      const struct ps_planner_request *req, const struct ps_cost_model *cost,
                      struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
