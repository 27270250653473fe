/* What the lanes did, for metrics.jsonl and for the summary at the end of a run. Nothing here allocates. */
#ifndef PS_TRAIN_LANE_REPORT_H
#define PS_TRAIN_LANE_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/train/executor.h"
#include "runtime/train/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Room for every text below, the NUL included. */
#define PS_LANE_JSON_BYTES 4096
#define PS_LANE_TEXT_BYTES 4096

/* The fragment of metrics.jsonl, without a comma around it:
 *
 *   "lanes":{"compute":{"busy_s":1.250000,"stall_on":{"disk_weights":0.300000}},...}
 *
 * for compute and every lane that had tasks; stall_on has the lanes that it waited for. Returns buf. */
const char *ps_lane_report_json(const struct ps_lane_stats stats[PS_LANE_COUNT],
                                char buf[PS_LANE_JSON_BYTES]);

/* total += part, every field. */
void ps_lane_stats_add(struct ps_lane_stats total[PS_LANE_COUNT],
                       const struct ps_lane_stats part[PS_LANE_COUNT]);

/* Seconds that the lane was ready and waited for others. */
double ps_lane_stall_s(const struct ps_lane_stats *lane);

/* The lane that was busy longest: no order of the same work is shorter than that. */
enum ps_lane ps_lane_bottleneck(const struct ps_lane_stats stats[PS_LANE_COUNT]);

struct ps_lane_report {
    uint64_t steps;  /* that stats, seconds and bytes are of; 0: the text is empty */
    double seconds;  /* of those steps */
    const struct ps_lane_stats *stats;    /* (PS_LANE_COUNT) sums */
    uint64_t disk_read_bytes, disk_write_bytes; /* as storage counted them, sums */
    /* predicted, a step; 0 or NULL: unknown */
    double predicted_step_s;
    const double *predicted_busy_s;        /* (PS_LANE_COUNT) */
    uint64_t predicted_read_bytes, predicted_write_bytes;
};

/* A few lines for a person: step time beside the prediction, each lane's busy time, share and rate,
 * what compute waited for, the bottleneck, bytes of the disk. Each ends with a newline. Returns buf. */
const char *ps_lane_report_text(const struct ps_lane_report *r, char buf[PS_LANE_TEXT_BYTES]);

#ifdef __cplusplus
}
#endif
#endif
