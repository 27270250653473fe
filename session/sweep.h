/* A grid of training runs: `penstock bench sweep GRID.yaml`.
 *
 * The grid is a flat YAML mapping of options of `train`; a value may be a list, and the cells are
 * all combinations (the first key changes slowest). Two keys are the sweep's own:
 *
 *   repeat     runs of each cell, at least 3 [3]
 *   keep_runs  true: leave the run directories (OUTPUT.runs/) [false]
 *
 * `output`, `resume`, `progress`, `json` and `dry_run` belong to the sweep. Each run is the program
 * itself as a child process, so that memory is measured from outside; the runs go round the cells,
 * so that a drift of the machine meets all of them. A cell that does not fit (exit 3) or that the
 * options forbid (exit 2) is a row too, once.
 *
 * The CSV has one row a run, columns by name: `version` (1), `machine`, `commit`, `cell`, `run`,
 * `status` (ok, infeasible, refused, failed, simulated), `exit_code`, then the grid's own keys,
 * then `strategy_chosen`, `plan_hash` (of strategy, placement and traffic), `predicted_step_s`,
 * `step_s` (median without the first step), `tokens_per_s` (median likewise), `steps`, `loss`
 * (last), `wall_s`, `disk_read_bytes`, `disk_write_bytes` (last step's), `plan_device_bytes`,
 * `plan_host_bytes`, `plan_disk_bytes`, `peak_rss_bytes` (of the child, as the kernel counts it),
 * `peak_cgroup_bytes` (with the page cache; empty where no group can be made), `message`. It is
 * rewritten after each run. Beside it a page
 * (.md) with medians and ranges. */
#ifndef PS_SESSION_SWEEP_H
#define PS_SESSION_SWEEP_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/log.h"
#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_sweep_options {
    const char *grid;         /* GRID.yaml */
    const char *output;       /* CSV; NULL: sweep.csv */
    const char *program;      /* the program to run; NULL: /proc/self/exe */
    bool simulate_only;       /* `plan` for each cell instead of runs */
    const struct ps_log *log; /* a line (PS_LOG_INFO) a run; may be NULL */
};

struct ps_sweep_summary {
    size_t cells, runs;
    size_t infeasible, refused, failed; /* cells, cells, runs */
    char csv[4096], page[4096];
};

/* Run the grid. Returns 0 also when runs failed (see the summary); PS_EUSAGE for a grid that is
 * wrong (file and line in err) or of which every cell is refused; -errno for files. */
int ps_sweep(struct ps_sweep_summary *out, const struct ps_sweep_options *opt,
             struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
