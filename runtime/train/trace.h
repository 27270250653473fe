/* Writes what a schedule's periods did, or were predicted to do, as a Chrome trace (JSON; opens in
 * Perfetto and in chrome://tracing).
 *
 * Two processes, 1 "actual" and 2 "predicted", have one track a lane, and one of the segments. A task is a
 * complete event "forward 3.1" (layer 3, micro-batch 1) with kind, unit, micro-batch, bytes, FLOPs and
 * what it waited for; dependencies between lanes are flow arrows; a counter a tier shows the bytes that
 * hold something which is still needed.
 *
 * On a disk lane a task is drawn from the end of the one before it, not from when it was queued (that is
 * its argument queued_us): the requests of several overlap, what is drawn does not.
 *
 * Memory: a buffer, and for each schedule what does not change from period to period; allocated when a
 * schedule is seen first. The file grows by about 400 bytes a task:
 * the caller bounds the number of periods. */
#ifndef PS_TRAIN_TRACE_H
#define PS_TRAIN_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/train/executor.h"
#include "runtime/train/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_TRACE_SCHEDULE_MAX 16

struct ps_trace;

/* Begin a trace that will appear as `path` when it is closed. -errno of the file, or -ENOMEM. */
int ps_trace_open(struct ps_trace **out, const char *path, struct ps_error *err) PS_WARN_UNUSED;

/* Add one period: `record` has s->task_count entries (NULL: no period is complete yet, nothing is
 * added); those whose end_ns is 0 (still running: they trail) or before their start_ns are left out. The
 * schedule must live until the trace is closed; at most PS_TRACE_SCHEDULE_MAX different ones. The same
 * actual records given twice are written once.
 *
 * Time 0 of the trace is the earliest time of its first actual period. A predicted period is moved so that
 * it begins where the last actual period began, or, without a new actual one since, where the predicted
 * one before it ended.
 *
 * Returns 0, -ENOMEM, or -errno of the file; after an error the trace takes no more. */
int ps_trace_period(struct ps_trace *t, const struct ps_schedule *s,
                    const struct ps_task_record *record, uint64_t step, bool predicted,
                    struct ps_error *err) PS_WARN_UNUSED;

/* Allocate now what ps_trace_period would allocate when it sees this schedule first. 0 or -ENOMEM. */
int ps_trace_announce(struct ps_trace *t, const struct ps_schedule *s,
                      struct ps_error *err) PS_WARN_UNUSED;

/* Complete the file and give it its name; on an error, also an earlier one, there is no file. The trace
 * is gone in any case. NULL is legal. */
int ps_trace_close(struct ps_trace *t, struct ps_error *err) PS_WARN_UNUSED;
/* Without a file. NULL is legal. */
void ps_trace_discard(struct ps_trace *t);

/* "forward 3.1", "read_weights head", "update 3", "clip", "head #0" into buf. Returns buf. */
const char *ps_task_label(const struct ps_task *task, char *buf, size_t size);

/* From when to when some bytes of a tier hold what is still needed: from the start of a task (UINT32_MAX:
 * from the beginning of the period) to the end of a task (UINT32_MAX: to the end of the period). */
struct ps_live_range {
    uint32_t from, to;
    enum ps_tier tier;
    uint64_t bytes;
};

/* The live ranges of a schedule as its declared accesses imply them, periods repeating: bytes live from
 * a task that produces them (reads, copies, spills, forward and recompute write without reading what was
 * there) to the last task that touches them before they are produced again; bytes that no task of the
 * period produces live throughout. *out is malloc'd; free it. 0 or -ENOMEM. */
int ps_schedule_live_ranges(const struct ps_schedule *s, struct ps_live_range **out,
                            uint32_t *count) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
