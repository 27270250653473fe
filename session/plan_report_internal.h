/* What session_plan.c and plan_report.c share. */
#ifndef PS_SESSION_PLAN_REPORT_INTERNAL_H
#define PS_SESSION_PLAN_REPORT_INTERNAL_H

#include <jansson.h>

#include "session/plan_report.h"
#include "session/session_internal.h"

/* What a report tells beside the plan. */
struct ps__plan_facts {
    const struct ps_session *s;
    const struct ps_plan *plan;
    char machine[256];            /* of the profile */
    double disk_read, disk_write; /* bytes/s that the plan counts with; 0: nothing is streamed */
    int32_t micro_count;
    double tokens_per_step;
    uint64_t steps; /* of the run; 0: not known */
    double eval_tokens_per_s;
    uint64_t eval_rows; /* 0: not known */
    double eval_s;      /* of those rows */
};

/* A new string, NULL when out of memory. */
char *ps__plan_text(const struct ps__plan_facts *f);
json_t *ps__plan_json(const struct ps__plan_facts *f);

/* Of the chosen plan: what the contract of plan --json names, and the list "memory". plan.json has
 * both too. New references, NULL when out of memory. */
json_t *ps__plan_contract_json(const struct ps_session *s);
json_t *ps__plan_memory_json(const struct ps_session *s);

#endif
