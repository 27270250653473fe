/* What a task costs: plain data that the simulator (offload/) and the virtual clock (runtime/device/)
 * both read, each with its own code.
 *
 * Every task has a solo time: overhead[kind] + flops / flop_rate[kind] + bytes / byte_rate[lane],
 * stretched to amount / throttle[lane] where a throttle asks for more (amount: flops on the compute
 * lane, bytes elsewhere). While it runs it takes the share use[lane][r] of each resource r. When the
 * shares of the running tasks on a resource add up to more than 1, each of them that uses it slows down
 * by that sum; a task goes at the pace of its slowest resource. Time that a throttle adds takes no
 * resource, but the task stays as long. */
#ifndef PS_TRAIN_COST_H
#define PS_TRAIN_COST_H

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
    double byte_rate[PS_LANE_COUNT];      /* bytes/s; 0: bytes cost nothing */
    double throttle[PS_LANE_COUNT];       /* FLOP/s or bytes/s; 0: none */
    double use[PS_LANE_COUNT][PS_RESOURCE_COUNT]; /* 0..1 */
};

/* Solo seconds of the task's own work, and how long it lasts at least because of the throttle. */
static inline double ps_cost_solo_s(const struct ps_cost_model *m, const struct ps_task *t)
{
    double s = m->overhead_s[t->kind];
    if (m->flop_rate[t->kind] > 0)
        s += t->flops / m->flop_rate[t->kind];
    if (m->byte_rate[t->lane] > 0)
        s += (double)t->bytes / m->byte_rate[t->lane];
    return s;
}

static inline double ps_cost_throttle_s(const struct ps_cost_model *m, const struct ps_task *t)
{
    double rate = m->throttle[t->lane];
    return rate > 0 ? (t->lane == PS_LANE_COMPUTE ? t->flops : (double)t->bytes) / rate : 0;
}

#ifdef __cplusplus
}
#endif
#endif
