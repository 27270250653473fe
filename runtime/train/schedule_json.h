/* Schedules as JSON files, for people and scripts: --schedule FILE and the planner's export.
 *
 *   {"version": 1, "segments": [
 *     {"name": "train",                                     what ps_segment_name says
 *      "buffers": [{"name": "slots", "tier": "device", "bytes": 4096}, ...],
 *      "tasks": [{"id": 0,                                  its place: program order
 *                 "lane": "disk_weights", "kind": "read_weights", "unit": 3, "micro": -1,
 *                 "args": {"slot": 1},                      ps_task_arg_name; absent: -1
 *                 "deps": [[TASK, DISTANCE], ...],
 *                 "reads": [[BUFFER, OFFSET, BYTES], ...],  BUFFER: its place in buffers
 *                 "writes": [[BUFFER, OFFSET, BYTES], ...],
 *                 "bytes": 4096, "flops": 0, "trails": false}, ...]}, ...]}
 *
 * A file of one segment may also be that segment's object with "version" in it. Of a task, id,
 * lane, kind and unit must be there; what is absent of the others is -1, empty, 0 or false. */
#ifndef PS_TRAIN_SCHEDULE_JSON_H
#define PS_TRAIN_SCHEDULE_JSON_H

#include <stddef.h>

#include "runtime/base/status.h"
#include "runtime/train/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Write one schedule, or the n segments of a set, one task a line. Within a task, reads stand
 * before writes; otherwise the order is kept, and importing gives the same schedule. The file
 * appears when it is whole. Returns 0, -errno, or PS_EUSAGE for a number that JSON readers cannot
 * hold (>= 2^63). */
int ps_schedule_export(const struct ps_schedule *s, const char *path,
                       struct ps_error *err) PS_WARN_UNUSED;
int ps_schedule_export_set(const struct ps_schedule *const *s, size_t n, const char *path,
                           struct ps_error *err) PS_WARN_UNUSED;

/* Read a file of at most n_max segments, each of another name, into s[0 .. *n) (uninitialised
 * before; release each with ps_schedule_fini). Their names are the static strings of
 * ps_segment_name. Dependencies are taken as they stand and each segment must pass
 * ps_schedule_validate; disk lanes hold disk requests and nothing else does. Whether the ranges are
 * the right ones for a model is the caller's question (ps_step_declare).
 *
 * Returns 0; PS_EFORMAT for a broken file (err names file and field); PS_EUSAGE for a schedule that
 * does not validate; -errno. After an error nothing has to be released. */
int ps_schedule_import_set(struct ps_schedule *s, size_t n_max, size_t *n, const char *path,
                           struct ps_error *err) PS_WARN_UNUSED;

/* The same from text in memory; `path` is for messages. */
int ps_schedule_parse_set(struct ps_schedule *s, size_t n_max, size_t *n, const char *text,
                          size_t len, const char *path, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
