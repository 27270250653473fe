/* What a task costs: plain data that the simulator (offload/) and the virtual clock
 * (runtime/device/) both read, each with its own code.
 *
 * Every task has a solo time: overhead[kind] + flops / flop_rate[kind] + bytes / byte_rate[lane],
 * stretched to amount / throttle[lane] where a throttle asks for more (ps_task_amount). While it
 * runs it takes the share use[lane][r] of each resource r. When the shares of the running tasks on
 * a resource add up to more than 1, each of them that uses it slows down by that sum; a task goes
 * at the pace of its slowest resource. Time that a throttle adds takes no resource, but the task
 * stays as long. */
#ifndef PS_TRAIN_COST_H
#define PS_TRAIN_COST_H

#include "runtime/model/recompute.h"
#include "runtime/train/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_resource {
    PS_RESOURCE_CORES,
    PS_RESOURCE_HOST_MEMORY, /* bandwidth */
    PS_RESOURCE_DISK,
    PS_RESOURCE_LINK, /* between host and device, where both directions share it */
    PS_RESOURCE_DEVICE,
    PS_RESOURCE_COUNT,
};

struct ps_cost_model {
    double overhead_s[PS_TASK_KIND_COUNT];
    double flop_rate[PS_TASK_KIND_COUNT]; /* FLOP/s; 0: flops cost nothing */
    /* the same of PS_TASK_LAYER_RECOMPUTE by its level; rate 0: as the kind's */
    double recompute_overhead_s[PS_RECOMPUTE_COUNT], recompute_rate[PS_RECOMPUTE_COUNT];
    double byte_rate[PS_LANE_COUNT];      /* bytes/s (cpu_optim: parameters/s); 0: cost nothing */
    double host_copy_rate; /* bytes/s of what cpu_optim moves beside its updates; 0: cost nothing */
    double throttle[PS_LANE_COUNT];               /* FLOP/s or bytes/s; 0: none */
    double use[PS_LANE_COUNT][PS_RESOURCE_COUNT]; /* 0..1 */
};

/* What a task counts on its lane: FLOPs on compute, parameters on cpu_optim (an update's FLOPs take
 * time besides), where gradients that
 * are only moved count nothing, bytes elsewhere. */
static inline double ps_task_amount(const struct ps_task *t)
{
    if (t->lane == PS_LANE_COMPUTE)
        return t->flops;
    bool moves = t->kind != PS_TASK_UPDATE_HOST && t->kind != PS_TASK_PERTURB;
    return t->lane == PS_LANE_CPU_OPTIM && moves ? 0 : (double)t->bytes;
}

/* Rate of a task's bytes on its lane. */
static inline double ps_cost_byte_rate(const struct ps_cost_model *m, enum ps_lane lane,
                                       enum ps_task_kind kind)
{
    bool moves = kind != PS_TASK_UPDATE_HOST && kind != PS_TASK_PERTURB;
    return lane == PS_LANE_CPU_OPTIM && moves ? m->host_copy_rate : m->byte_rate[lane];
}

/* Has the task a level with figures of its own? */
static inline bool ps_cost_by_level(const struct ps_cost_model *m, const struct ps_task *t)
{
    int32_t level = t->arg[PS_ARG_LEVEL];
    return t->kind == PS_TASK_LAYER_RECOMPUTE && level >= 0 && level < PS_RECOMPUTE_COUNT &&
           m->recompute_rate[level] > 0;
}

static inline double ps_cost_overhead_s(const struct ps_cost_model *m, const struct ps_task *t)
{
    return ps_cost_by_level(m, t) ? m->recompute_overhead_s[t->arg[PS_ARG_LEVEL]]
                                  : m->overhead_s[t->kind];
}

static inline double ps_cost_flop_rate(const struct ps_cost_model *m, const struct ps_task *t)
{
    return ps_cost_by_level(m, t) ? m->recompute_rate[t->arg[PS_ARG_LEVEL]] : m->flop_rate[t->kind];
}

/* Solo seconds of the task's own work, and how long it lasts at least because of the throttle. */
static inline double ps_cost_solo_s(const struct ps_cost_model *m, const struct ps_task *t)
{
    double s = ps_cost_overhead_s(m, t);
    double flops = ps_cost_flop_rate(m, t);
    if (flops > 0)
        s += t->flops / flops;
    double rate = ps_cost_byte_rate(m, t->lane, t->kind);
    if (rate > 0)
        s += (double)t->bytes / rate;
    return s;
}

static inline double ps_cost_throttle_s(const struct ps_cost_model *m, const struct ps_task *t)
{
    double rate = m->throttle[t->lane];
    return rate > 0 ? ps_task_amount(t) / rate : 0;
}

#ifdef __cplusplus
}
#endif
#endif
