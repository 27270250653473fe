/* A fixed set of threads for data-parallel loops.
 *
 * Work is cut into tasks by the caller; which thread runs which task is not determined, so a task's
 * result must depend on its index only. Nothing is allocated after creation. */
#ifndef PS_BASE_THREAD_POOL_H
#define PS_BASE_THREAD_POOL_H

#include <stddef.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_pool;

/* Runs one task. `thread_idx` is in [0, thread_count) and unique among the threads that run at the
 * same time: use it to pick scratch memory, never to decide what to compute. */
typedef void (*ps_pool_fn)(void *arg, size_t task_idx, int thread_idx);

/* Create a pool of `thread_count` >= 1 threads, the caller of ps_pool_run counted as one of them.
 * Returns 0, -EINVAL, -ENOMEM or the error of pthread_create. */
int ps_pool_create(struct ps_pool **out, int thread_count) PS_WARN_UNUSED;

/* Join the threads and free the pool; NULL is legal. */
void ps_pool_destroy(struct ps_pool *pool);

/* Threads of the pool; 1 for NULL. */
int ps_pool_thread_count(const struct ps_pool *pool);

/* Run fn(arg, i, thread) for each i in [0, task_count) and return when all are done. One caller at
 * a time; not from inside a task. pool may be NULL: the caller runs every task itself. */
void ps_pool_run(struct ps_pool *pool, ps_pool_fn fn, void *arg, size_t task_count);

#ifdef __cplusplus
}
#endif
#endif
