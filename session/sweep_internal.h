/* What the files of the sweep share: the grid, a child process, rows. */
#ifndef PS_SESSION_SWEEP_INTERNAL_H
#define PS_SESSION_SWEEP_INTERNAL_H

#include <stdint.h>

#include "session/sweep.h"

#define PS__SWEEP_AXIS_MAX 48
#define PS__SWEEP_VALUE_MAX 64
#define PS__SWEEP_CELL_MAX 4096

struct ps__sweep_axis {
    char *name; /* option of train, flag spelling */
    char *value[PS__SWEEP_VALUE_MAX];
    size_t count;
};

struct ps__sweep_grid {
    struct ps__sweep_axis axis[PS__SWEEP_AXIS_MAX];
    size_t axis_count, cell_count;
    int repeat;
    bool keep_runs;
};

/* Read and check names, values and the number of cells. fini is legal after a failure. */
int ps__sweep_grid_load(struct ps__sweep_grid *g, const char *path,
                        struct ps_error *err) PS_WARN_UNUSED;
void ps__sweep_grid_fini(struct ps__sweep_grid *g);

/* Value of an axis in a cell. */
const char *ps__sweep_value(const struct ps__sweep_grid *g, size_t cell, size_t axis);

/* Would `train` (or `plan`) take the options of this cell? 0, PS_EUSAGE with the reason, -ENOMEM.
 */
int ps__sweep_check(const struct ps__sweep_grid *g, size_t cell, bool plan,
                    struct ps_error *err) PS_WARN_UNUSED;

/* A finished child process. */
struct ps__child {
    int exit_code; /* 128 + number when a signal ended it */
    double wall_s;
    uint64_t peak_rss_bytes;
    uint64_t peak_group_bytes; /* 0: not measured */
};

/* Run argv (NULL-terminated, argv[0] the program's path) with its output in two files; it ends when
 * this process does. Returns 0 when it ran, or -errno. */
int ps__child_run(struct ps__child *out, char *const argv[], const char *out_path,
                  const char *err_path, struct ps_error *err) PS_WARN_UNUSED;

enum ps__sweep_status {
    PS__SWEEP_OK,
    PS__SWEEP_INFEASIBLE,
    PS__SWEEP_REFUSED,
    PS__SWEEP_FAILED,
    PS__SWEEP_SIMULATED,
};

/* Not measured: NaN or 0. */
struct ps__sweep_row {
    size_t cell;
    int run; /* 1, 2, ... */
    enum ps__sweep_status status;
    int exit_code;
    char strategy[32], plan_hash[20];
    double predicted_step_s, step_s, tokens_per_s, loss, wall_s;
    uint64_t steps, disk_read_bytes, disk_write_bytes;
    uint64_t plan_device_bytes, plan_host_bytes, plan_disk_bytes;
    uint64_t peak_rss_bytes, peak_group_bytes;
    char message[512];
};

/* Fill a row from what a run left behind: metrics.jsonl and plan.json in `dir`, or the output of
 * `plan
 * --json`; and the message of an error from its --json error. Absent files leave the row as it is.
 */
void ps__sweep_read_run(struct ps__sweep_row *row, const char *dir);
void ps__sweep_read_plan(struct ps__sweep_row *row, const char *path);
void ps__sweep_read_error(struct ps__sweep_row *row, const char *path);

/* Write the CSV and the page (atomically). */
int ps__sweep_write(const struct ps__sweep_grid *g, const struct ps__sweep_row *row, size_t count,
                    const struct ps_sweep_summary *s, struct ps_error *err) PS_WARN_UNUSED;

#endif
