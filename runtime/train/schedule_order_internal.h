/* Which tasks of a schedule have ended when another starts: vector clocks over two periods. Shared
 * by the checker (schedule_validate.c) and the reduction (schedule_order.c); derive does not use
 * it. */
#ifndef PS_TRAIN_SCHEDULE_ORDER_INTERNAL_H
#define PS_TRAIN_SCHEDULE_ORDER_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/train/schedule.h"

/* No instance. */
#define PS_ORDER_NONE UINT32_MAX
/* An edge left out splits its lane once in each of the two periods. */
#define PS_ORDER_CHAINS_MAX (PS_LANE_COUNT + 2)

struct ps_order {
    const struct ps_schedule *s;
    const struct ps_edge *without; /* or NULL */
    uint32_t n;                    /* tasks of one period */
    uint8_t *chain;                /* (2n) */
    uint32_t *lane_pred;           /* (2n) instance, or NONE: first of its lane */
    /* (2n, CHAINS_MAX): 1 + the last instance of the chain that has ended by then; 0: none */
    uint32_t *start, *end;
    uint32_t chain_count;
    uint32_t cut[2]; /* instances whose lane edge was left out */
    uint32_t cut_count;
};

/* Every field of the schedule is in range, every dependency points back. 0, the fault or PS_EUSAGE.
 */
int ps__schedule_check_fields(const struct ps_schedule *s, struct ps_error *err) PS_WARN_UNUSED;

/* Clocks of a schedule whose fields are good. 0 or -ENOMEM; ps__order_fini in either case. */
int ps__order_init(struct ps_order *o, const struct ps_schedule *s,
                   const struct ps_edge *without) PS_WARN_UNUSED;
void ps__order_fini(struct ps_order *o);

/* "tasks 1 (...) and 2 (...)", with the period where the instances are of different ones. */
const char *ps__order_describe(char *buf, size_t size, const struct ps_order *o, uint32_t a,
                               uint32_t b);

static inline const uint32_t *ps__order_start(const struct ps_order *o, uint32_t i)
{
    return o->start + (size_t)i * PS_ORDER_CHAINS_MAX;
}

/* Instance a has ended before b starts. */
static inline bool ps__order_ended(const struct ps_order *o, uint32_t a, uint32_t b)
{
    return ps__order_start(o, b)[o->chain[a]] > a;
}

static inline bool ps__is_lane_edge(const struct ps_edge *e)
{
    return e && e->dep_idx == UINT32_MAX;
}

#endif
