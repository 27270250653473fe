/* A clock that does not pass: running tasks finish in the order and at the times that a cost model
 * gives, whatever the host does meanwhile. The executor's lane threads really run; each, after its
 * real work, hands its task to the clock and sleeps; when no lane can go on, the executor asks the
 * clock which task ends next. See runtime/train/cost.h for the rules of contention.
 *
 * Not thread-safe: the executor calls it under its own lock. Written independently of the simulator
 * in offload/, which must predict it exactly. */
#ifndef PS_DEVICE_VIRTUAL_CLOCK_H
#define PS_DEVICE_VIRTUAL_CLOCK_H

#include "runtime/train/cost.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_vclock;

int ps_vclock_create(struct ps_vclock **out, const struct ps_cost_model *model) PS_WARN_UNUSED;
void ps_vclock_destroy(struct ps_vclock *c);

/* Virtual time in ns since creation (rounded); exact seconds. */
uint64_t ps_vclock_now_ns(const struct ps_vclock *c);
double ps_vclock_now_s(const struct ps_vclock *c);

/* A task begins now. At most 64 run at a time; token is the caller's name for it (unique among the
 * running). */
void ps_vclock_begin(struct ps_vclock *c, const struct ps_task *task, uint64_t token);

/* Number of tasks that run. */
int ps_vclock_running(const struct ps_vclock *c);

/* Let time pass until the next task ends; returns its token. Ties: the lower lane first, then the
 * earlier begun. Asserts that some task runs. */
uint64_t ps_vclock_next(struct ps_vclock *c);

/* Of the task that ps_vclock_next returned last: how long it stayed after its own work was done,
 * because of a throttle. */
uint64_t ps_vclock_throttle_ns(const struct ps_vclock *c);

#ifdef __cplusplus
}
#endif
#endif
