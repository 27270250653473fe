/* `penstock plan`: what a training run would need and how fast it would go, without weights, data
 * or the machine itself. */
#ifndef PS_SESSION_PLAN_REPORT_H
#define PS_SESSION_PLAN_REPORT_H

#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "session/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Before ps_options_resolve: where --hardware describes another machine, its memory stands for
 * budgets that were not given: --host-mem 80% of its RAM, and, on a machine with a GPU, --gpu-mem
 * 95% of the GPU's memory. Errors of ps_profile_load. */
int ps_plan_adopt_machine(struct ps_options *opt, struct ps_error *err) PS_WARN_UNUSED;

/* Plan the run that the resolved options (command plan) describe. *text (free it) is a report for a
 * person, or with opt->json one object and a newline:
 *
 *   {"fits":true, "strategy", "step_s", "tokens_per_s", "peak_bytes":{"device","host","disk"},
 *    "traffic_bytes":{"disk_read","disk_write","h2d","d2h"}, "tokens_per_pass",
 * "break_even_tokens", "bottleneck", "placement":{..}}, and more, described in the guide:
 * "serial_s", "slowdown", "why", "hardware", "hours_per_10m_tokens",
 * "ssd_bytes_per_day":{"read","write"}, "steps", "tokens_per_step", "hours",
 * "evaluation":{"tokens_per_s","rows","minutes"}, "memory":[{"class","tier","bytes"}],
 *   "budgets":{..}, "candidates":[{"strategy","step_s","device","host","disk","fits","note"}]
 *
 * Peaks count the whole process, as the budgets do; traffic is that of one step. Where nothing
 * fits: PS_ENOFIT, and *text is {"fits":false, "needs":{"device","host","disk"}}, the budgets of
 * the smallest layout (NULL without opt->json: the error says it). On other errors *text is NULL.
 */
int ps_session_plan(const struct ps_options *opt, const struct ps_log *log, char **text,
                    struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
