/* A fixed set of threads for data-parallel loops: see thread_pool.h.
 *
 * Design: workers spin for a few microseconds on the job generation, then sleep on a condition
 * variable. Tasks are claimed with one atomic counter. A training step launches thousands of small
 * loops, so the wake-up path matters more than fairness. */
#include "runtime/base/thread_pool.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#define SPIN_COUNT 4000

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
    int sleeping;                     /* guarded by m */
    bool quit;                        /* guarded by m; read after a generation change */
    _Atomic unsigned long generation; /* atomic: bumped under m when a job is posted */
    _Atomic size_t next_task;         /* atomic */
    _Atomic int busy;                 /* atomic: workers that have not finished this job */
    ps_pool_fn fn;                    /* written before generation is bumped (release) */
    void *arg;                        /* likewise */
    size_t task_count;                /* likewise */
    struct worker worker[];
};

static void relax(void)
{
#if defined(__x86_64__)
    ps_pause();
#endif
}

static void run_tasks(struct ps_pool *p, int thread_idx)
{
    for (;;) {
        size_t i = atomic_fetch_add_explicit(&p->next_task, 1, memory_order_relaxed);
        if (i >= p->task_count)
            return;
        p->fn(p->arg, i, thread_idx);
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct ps_pool *p = w->pool;
    unsigned long seen = 0;
    for (;;) {
        unsigned long now = seen;
        for (int s = 0; s < SPIN_COUNT && now == seen; s++) {
            /* acquire: orders the job's fields, written before the release in ps_pool_run */
            now = atomic_load_explicit(&p->generation, memory_order_acquire);
            relax();
        }
        if (now == seen) {
            pthread_mutex_lock(&p->m);
            p->sleeping++;
            while ((now = atomic_load_explicit(&p->generation, memory_order_acquire)) == seen)
                pthread_cond_wait(&p->wake, &p->m);
            p->sleeping--;
            pthread_mutex_unlock(&p->m);
        }
        seen = now;
        if (p->quit)
            return NULL;
        run_tasks(p, w->thread_idx);
        /* release: orders this worker's results before the caller's acquire of busy == 0 */
        atomic_fetch_sub_explicit(&p->busy, 1, memory_order_release);
    }
}

static void post(struct ps_pool *p)
{
    pthread_mutex_lock(&p->m);
    atomic_fetch_add_explicit(&p->generation, 1, memory_order_release);
    if (p->sleeping)
        pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->m);
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
    pthread_mutex_lock(&p->m);
    p->quit = true;
    pthread_mutex_unlock(&p->m);
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
    p->fn = fn;
    p->arg = arg;
    p->task_count = task_count;
    atomic_store_explicit(&p->next_task, 0, memory_order_relaxed);
    atomic_store_explicit(&p->busy, p->started, memory_order_relaxed);
    post(p);
    run_tasks(p, 0);
    /* acquire: pairs with the workers' release, so that their results are visible here */
    for (int s = 0; atomic_load_explicit(&p->busy, memory_order_acquire) > 0; s++) {
        relax();
        if (s >= SPIN_COUNT) { /* more threads than cores: let the worker have this one */
            sched_yield();
            s = 0;
        }
    }
}
