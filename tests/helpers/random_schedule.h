/* Small random schedules from a seed, for tests: a few tasks on a few lanes that read and write
 * ranges of a few small buffers, without dependencies. */
#ifndef PS_TESTS_RANDOM_SCHEDULE_H
#define PS_TESTS_RANDOM_SCHEDULE_H

#include <stdint.h>

#include "runtime/train/schedule.h"

/* splitmix64 */
static inline uint32_t random_below(uint64_t *seed, uint32_t n)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(((z ^ (z >> 31)) >> 32) % n);
}

/* A kind of task that the lane runs: disk requests on disk lanes, nothing else there. */
static inline enum ps_task_kind random_kind(uint64_t *seed, enum ps_lane lane)
{
    static const enum ps_task_kind disk[] = {PS_TASK_READ_WEIGHTS, PS_TASK_SPILL_WRITE,
                                             PS_TASK_SPILL_READ};
    static const enum ps_task_kind other[] = {PS_TASK_EMBED,        PS_TASK_LAYER_FORWARD,
                                              PS_TASK_HEAD,         PS_TASK_UPDATE,
                                              PS_TASK_COPY_WEIGHTS, PS_TASK_SPILL_OUT};
    return ps_lane_is_async(lane) ? disk[random_below(seed, 3)] : other[random_below(seed, 6)];
}

/* Of 1 .. tasks_max tasks. */
static inline void random_schedule(struct ps_schedule *s, const char *name, uint64_t *seed,
                                   uint32_t tasks_max)
{
    ps_schedule_init(s, name);
    enum ps_lane lanes[3];
    for (int i = 0; i < 3; i++)
        lanes[i] = (enum ps_lane)random_below(seed, PS_LANE_COUNT);
    uint32_t buffers = 1 + random_below(seed, 3);
    uint32_t bytes = 1 + random_below(seed, 24);
    for (uint32_t b = 0; b < buffers; b++)
        ps_schedule_buffer(s, (enum ps_tier)random_below(seed, PS_TIER_COUNT), bytes, "buffer %u",
                           b);
    uint32_t tasks = 1 + random_below(seed, tasks_max);
    for (uint32_t i = 0; i < tasks; i++) {
        enum ps_lane lane = lanes[random_below(seed, 3)];
        uint32_t t = ps_schedule_task(s, random_kind(seed, lane), lane,
                                      (int32_t)random_below(seed, 6) + PS_UNIT_ALL);
        if (s->fault)
            return;
        s->task[t].micro = (int32_t)random_below(seed, 4) - 1;
        s->task[t].arg[random_below(seed, PS_ARG_COUNT)] = (int32_t)random_below(seed, 9);
        s->task[t].flags = random_below(seed, 8) ? 0 : PS_TASK_TRAILS;
        s->task[t].flops = random_below(seed, 1000) / 7.0;
        s->task[t].bytes = random_below(seed, 1000);
        uint32_t accesses = random_below(seed, 4);
        for (uint32_t k = 0; k < accesses; k++) {
            uint32_t offset = random_below(seed, bytes);
            ps_schedule_access(s, random_below(seed, buffers), random_below(seed, 5) < 2, offset,
                               1 + random_below(seed, bytes - offset));
        }
    }
}

#endif
