/* Walks schedules with a cost model: time, traffic, stalls. The fluid model of runtime/train/cost.h,
 * event by event. */
#ifndef PS_OFFLOAD_SIMULATOR_H
#define PS_OFFLOAD_SIMULATOR_H

#include "runtime/base/status.h"
#include "runtime/train/cost.h"
#include "runtime/train/executor.h"
#include "runtime/train/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One segment run `repeat` times in a row (periods): trailing tasks of a period overlap what
 * follows, but where the next segment is `drained`: it begins when everything before has ended. */
struct ps_sim_segment {
    const struct ps_schedule *schedule;
    uint32_t repeat;
    bool drained;
};

/* The last round. busy_s and stall_s count what lies between its begin and its end: also work of the round
 * before that trails into it, not what trails past its end. bytes are those of the round's own tasks. Time
 * that a throttle adds is busy time. A lane that waits for the end of a period does not stall; in a
 * serial simulation nothing stalls. */
struct ps_sim_result {
    double seconds; /* of the whole sequence, until the last task that does not trail has ended */
    double busy_s[PS_LANE_COUNT];
    double stall_s[PS_LANE_COUNT][PS_LANE_COUNT]; /* lane ready, waiting for a task of that lane */
    uint64_t bytes[PS_LANE_COUNT];
};

/* Simulate the sequence `rounds` times (steps) with what trails carried over, and report the last round
 * (steady state) alone. record, or NULL, receives for segment `record_segment` the last period's start and
 * end of each task in ns from the beginning of the last round (task_count of them); start_ns is when the
 * task is served, also on disk lanes, where the executor may have queued it before. What trails past
 * the end is recorded as if nothing came after it.
 *
 * Returns 0, -ENOMEM, or PS_EUSAGE when a schedule cannot go on (a dependency on a later task, a task of
 * no finite duration); *out is then untouched. Work: tasks * lanes, plus the dependencies. */
struct ps_sim_options {
    const struct ps_cost_model *model;
    const struct ps_sim_segment *segment;
    int segment_count;
    uint32_t rounds; /* >= 1; 2 gives the steady state */
    bool serial;     /* one task at a time */
    int record_segment;
    struct ps_task_record *record;
};
int ps_simulate(struct ps_sim_result *out, const struct ps_sim_options *opt,
                struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
