/* A fixed set of threads for data-parallel loops: see thread_pool.h.
 *
 * Design: a training step launches thousands of small loops, so the wake-up path matters more than
 * fairness. Workers spin for a few microseconds, then sleep on a condition variable. Tasks are
 * claimed by compare-and-swap on one ticket that holds the job's generation and the next task, and
 * the caller waits for finished tasks, not for workers: a worker that the system does not schedule
 * in time is simply not missed.
 *
 * Invariants: (1) the job's fields change only while the ticket is closed; (2) a ticket value never
 * comes back, because the generation only grows; so (3) a successful claim proves that the fields
 * read between loading the ticket and claiming belong to that job. */
#include "runtime/base/thread_pool.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#define SPIN_COUNT 4000
#define CLOSED UINT32_MAX /* task number of a ticket that hands out nothing */

static inline void ps_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

struct worker {
    struct ps_pool *pool; /* constant after init */
    pthread_t thread;     /* constant after init */
    int thread_idx;       /* constant after init */
};

struct ps_pool {
    int thread_count; /* constant after init */
    int started;      /* constant after init */
    pthread_mutex_t m;
    pthread_cond_t wake;
    int sleeping;              /* guarded by m */
    _Atomic bool quit;         /* atomic: written before the last generation is posted */
    _Atomic uint64_t ticket;   /* atomic: generation << 32 | next task */
    _Atomic uint32_t finished; /* atomic: tasks of this job that are done */
    _Atomic(ps_pool_fn)
        fn; /* atomic: this and the next two change only while the ticket is closed */
    void *_Atomic arg;
    _Atomic uint32_t task_count;
    struct worker worker[];
};

static uint32_t generation_of(uint64_t ticket)
{
    return (uint32_t)(ticket >> 32);
}

/* Claim and run tasks of the job `generation` until none is left. */
static void run_tasks(struct ps_pool *p, uint32_t generation, int thread_idx)
{
    /* acquire: orders the job's fields, written before the release in ps_pool_run */
    uint64_t t = atomic_load_explicit(&p->ticket, memory_order_acquire);
    for (;;) {
        uint32_t task = (uint32_t)t;
        if (generation_of(t) != generation || task == CLOSED)
            return;
        ps_pool_fn fn = atomic_load_explicit(&p->fn, memory_order_relaxed);
        void *arg = atomic_load_explicit(&p->arg, memory_order_relaxed);
        if (task >= atomic_load_explicit(&p->task_count, memory_order_relaxed))
            return;
        if (!atomic_compare_exchange_weak_explicit(&p->ticket, &t, t + 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        fn(arg, task, thread_idx);
        /* release: orders this task's results before the caller's acquire of the full count */
        atomic_fetch_add_explicit(&p->finished, 1, memory_order_release);
        t = atomic_load_explicit(&p->ticket, memory_order_acquire);
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct ps_pool *p = w->pool;
    uint32_t seen = 0;
    for (;;) {
        uint32_t now = seen;
        for (int s = 0; s < SPIN_COUNT && now == seen; s++) {
            now = generation_of(atomic_load_explicit(&p->ticket, memory_order_acquire));
            ps_pause();
        }
        if (now == seen) {
            pthread_mutex_lock(&p->m);
            p->sleeping++;
            for (;;) {
                now = generation_of(atomic_load_explicit(&p->ticket, memory_order_acquire));
                if (now != seen)
                    break;
                pthread_cond_wait(&p->wake, &p->m);
            }
            p->sleeping--;
            pthread_mutex_unlock(&p->m);
        }
        seen = now;
        if (atomic_load_explicit(&p->quit, memory_order_acquire))
            return NULL;
        run_tasks(p, now, w->thread_idx);
    }
}

/* Open the next job; its fields are written. Returns its generation. */
static uint32_t post(struct ps_pool *p)
{
    uint64_t t = atomic_load_explicit(&p->ticket, memory_order_relaxed);
    uint32_t generation = generation_of(t) + 1;
    pthread_mutex_lock(&p->m);
    atomic_store_explicit(&p->ticket, (uint64_t)generation << 32, memory_order_release);
    if (p->sleeping)
        pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->m);
    return generation;
}

int ps_pool_create(struct ps_pool **out, int thread_count)
{
    if (thread_count < 1)
        return -EINVAL;
    size_t bytes = sizeof(struct ps_pool) + (size_t)thread_count * sizeof(struct worker);
    struct ps_pool *p = calloc(1, bytes);
    if (!p)
        return -ENOMEM;
    p->thread_count = thread_count;
    atomic_store_explicit(&p->ticket, CLOSED, memory_order_relaxed);
    int ret = pthread_mutex_init(&p->m, NULL);
    if (ret)
        goto fail_mutex;
    ret = pthread_cond_init(&p->wake, NULL);
    if (ret)
        goto fail_cond;
    for (int i = 1; i < thread_count; i++) {
        struct worker *w = &p->worker[i];
        w->pool = p;
        w->thread_idx = i;
        ret = pthread_create(&w->thread, NULL, worker_main, w);
        if (ret) {
            ps_pool_destroy(p);
            return -ret;
        }
        p->started++;
    }
    *out = p;
    return 0;

fail_cond:
    pthread_mutex_destroy(&p->m);
fail_mutex:
    free(p);
    return -ret;
}

void ps_pool_destroy(struct ps_pool *p)
{
    if (!p)
        return;
    atomic_store_explicit(&p->task_count, 0, memory_order_relaxed);
    atomic_store_explicit(&p->quit, true, memory_order_release);
    post(p);
    for (int i = 1; i <= p->started; i++)
        PS_IGNORE(pthread_join(p->worker[i].thread, NULL), "our own threads, joined once");
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->m);
    free(p);
}

int ps_pool_thread_count(const struct ps_pool *p)
{
    return p ? p->thread_count : 1;
}

void ps_pool_run(struct ps_pool *p, ps_pool_fn fn, void *arg, size_t task_count)
{
    if (!p || p->started == 0 || task_count <= 1) {
        for (size_t i = 0; i < task_count; i++)
            fn(arg, i, 0);
        return;
    }
    assert(task_count < CLOSED);
    uint32_t count = (uint32_t)task_count;
    atomic_store_explicit(&p->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&p->arg, arg, memory_order_relaxed);
    atomic_store_explicit(&p->task_count, count, memory_order_relaxed);
    atomic_store_explicit(&p->finished, 0, memory_order_relaxed);
    uint32_t generation = post(p);
    run_tasks(p, generation, 0);
    /* acquire: pairs with the workers' release, so that their results are visible here */
    for (int spins = 0; atomic_load_explicit(&p->finished, memory_order_acquire) < count; spins++) {
        if (spins < SPIN_COUNT)
            ps_pause();
        else
            sched_yield(); /* the machine is shared: let the worker that holds a task run */
    }
    /* Close the ticket before the next job's fields are written (invariant 1). */
    atomic_store_explicit(&p->ticket, (uint64_t)generation << 32 | CLOSED, memory_order_release);
}
