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
    double step_s;       /* 0 until simulated */
    double redo_share_s; /* redo_s times the share of steps that are expected to be clipped */
    double redo_s;       /* more in a step whose updates inside the backward pass are taken back */
    uint64_t redo_write_bytes; /* likewise: they are written again */
    int strategy;
    bool fits, simulated;
    bool writes, writes_states; /* to the disk, in every step */
    bool wears;                 /* more than the request allows in a day */
};

static inline uint64_t ps__trial_memory(const struct ps__trial *t)
{
    return t->bytes[PS_TIER_DEVICE] + t->bytes[PS_TIER_HOST];
}

/* Bytes that a step writes to the disk: the estimate guesses which boundaries are never moved. */
static inline uint64_t ps__trial_written(const struct ps__trial *t)
{
    return t->simulated ? t->sim.bytes[PS_LANE_DISK_WRITE] : t->estimate.write_bytes;
}

struct ps__trials {
    struct ps__trial *trial;
    int count, capacity;
};

/* The schedules of a layout; release with ps__schedules_fini. A step is pass_count runs of `pass`
 * and then the update, or, with streamed updates, pass_count - 1 runs of `inner` and one of `pass`,
 * which holds the updates. */
struct ps__schedules {
    struct ps_step_map map;
    struct ps_schedule pass, second; /* second: update or inner; may be empty */
    struct ps_sim_segment segment[2];
    int segment_count;
    int32_t pass_count;
    bool streams; /* updates */
};
int ps__schedules_build(struct ps__schedules *s, const struct ps_planner_request *req,
                        const struct ps_step_layout *l, bool exact,
                        struct ps_error *err) PS_WARN_UNUSED;
void ps__schedules_fini(struct ps__schedules *s);

/* Bytes that a step writes to the disk, in a day of steps. */
static inline double ps__per_day(uint64_t bytes, double step_s)
{
    return step_s > 0 ? (double)bytes * 86400.0 / step_s : 0;
}

/* The same of a trial that was simulated, where every step may be one whose updates are made again.
 * A step that is not clipped writes less, and is shorter too. */
static inline double ps__trial_day(const struct ps__trial *t)
{
    double day = ps__per_day(ps__trial_written(t), t->step_s);
    double redone = ps__per_day(ps__trial_written(t) + t->redo_write_bytes, t->step_s + t->redo_s);
    return day > redone ? day : redone;
}

/* A shape with fewer update granules where there are very many, neighbours taken together: for the
 * time of plans, not for their memory. Release with ps__coarse_fini. */
struct ps__coarse {
    struct ps_step_shape shape;
    struct ps_step_layout layout; /* with as many state slots as hold as much; borrows its arrays */
    struct ps_granule *granule;
    uint32_t *granule_begin;
};
/* exact: as they are. */
int ps__coarse_init(struct ps__coarse *c, const struct ps_step_shape *shape,
                    const struct ps_step_layout *l, bool exact) PS_WARN_UNUSED;
bool ps__coarse_differs(const struct ps_step_shape *shape);
void ps__coarse_fini(struct ps__coarse *c);

/* Fill sim, step_s, redo_s, simulated; adds the tasks walked to *tasks. */
int ps__trial_simulate(struct ps__trial *t, const struct ps_planner_request *req,
                       const struct ps_cost_model *cost, bool exact, uint64_t *tasks,
                       struct ps_error *err) PS_WARN_UNUSED;

/* Let evaluation passes of a streamed base take as many sequences as its reads need to be hidden,
 * as far as the budgets go. */
int ps__grow_eval_group(struct ps__trial *t, const struct ps_planner_request *req,
                        const struct ps_cost_model *cost, struct ps_error *err) PS_WARN_UNUSED;

/* PS_ENOFIT: the smallest layout's bytes, or what the write limit would have to be, and the
 * message. */
int ps__plan_no_fit(struct ps_plan *out, struct ps__trials *t, const struct ps_planner_request *req,
                    const struct ps_cost_model *cost, struct ps_error *err) PS_WARN_UNUSED;

/* The trial of least memory, of one strategy or (-1) of all; one that the disk has room for, if
 * any.
 */
const struct ps__trial *ps__plan_smallest(const struct ps__trials *t, int strategy,
                                          const struct ps_planner_request *req);

/* Fill out->why. */
void ps__plan_explain(struct ps_plan *out, const struct ps__trials *t,
                      const struct ps_planner_request *req, int strategy);

/* Everything of the plan; takes the best trial's layout over. */
int ps__plan_describe(struct ps_plan *out, struct ps__trials *t, int best,
                      const struct ps_planner_request *req, const struct ps_cost_model *cost,
                      struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
