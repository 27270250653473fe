/* Thread pool: every task once, thread numbers unique at a time, results visible, no threads left.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/base/thread_pool.h"

#define TASK_MAX 1000
#define THREAD_MAX 8

struct work {
    int times[TASK_MAX];                    /* plain: only the task's own thread writes it */
    _Atomic int in_use[THREAD_MAX];         /* atomic */
    _Atomic int clashes, bad_thread, calls; /* atomic */
    int thread_count;
};

static void count_task(void *arg, size_t task_idx, int thread_idx)
{
    struct work *w = arg;
    if (thread_idx < 0 || thread_idx >= w->thread_count) {
        atomic_fetch_add(&w->bad_thread, 1);
        return;
    }
    if (atomic_exchange(&w->in_use[thread_idx], 1))
        atomic_fetch_add(&w->clashes, 1);
    w->times[task_idx]++;
    atomic_fetch_add(&w->calls, 1);
    atomic_store(&w->in_use[thread_idx], 0);
}

static void every_task_runs_once_for_any_count_of_threads_and_tasks(void **state)
{
    (void)state;
    static const size_t counts[] = {0, 1, 2, 3, 7, 64, TASK_MAX};
    static struct work w;
    for (int threads = 1; threads <= THREAD_MAX;
         threads = threads < 4 ? threads + 1 : 2 * threads) {
        struct ps_pool *pool = NULL;
        assert_int_equal(ps_pool_create(&pool, threads), 0);
        assert_int_equal(ps_pool_thread_count(pool), threads);
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            memset(&w, 0, sizeof w);
            w.thread_count = threads;
            ps_pool_run(pool, count_task, &w, counts[c]);
            for (size_t i = 0; i < TASK_MAX; i++)
                assert_int_equal(w.times[i], i < counts[c]);
            assert_int_equal(w.clashes, 0);
            assert_int_equal(w.bad_thread, 0);
        }
        ps_pool_destroy(pool);
    }
}

static void no_pool_means_that_the_caller_runs_all(void **state)
{
    (void)state;
    static struct work w;
    memset(&w, 0, sizeof w);
    w.thread_count = 1;
    assert_int_equal(ps_pool_thread_count(NULL), 1);
    ps_pool_run(NULL, count_task, &w, 17);
    assert_int_equal(w.calls, 17);
    assert_int_equal(w.bad_thread, 0);
    ps_pool_destroy(NULL);
}

static void create_refuses_no_threads(void **state)
{
    (void)state;
    struct ps_pool *pool = NULL;
    assert_int_equal(ps_pool_create(&pool, 0), -EINVAL);
    assert_int_equal(ps_pool_create(&pool, -3), -EINVAL);
    assert_null(pool);
}

/* Thousands of short jobs, with pauses that let the workers fall asleep: a lost wake-up hangs. */
static void many_short_jobs_with_pauses_all_finish(void **state)
{
    (void)state;
    static struct work w;
    memset(&w, 0, sizeof w);
    w.thread_count = 4;
    struct ps_pool *pool = NULL;
    assert_int_equal(ps_pool_create(&pool, 4), 0);
    for (int i = 0; i < 3000; i++) {
        ps_pool_run(pool, count_task, &w, 5);
        if (i % 100 == 0) {
            struct timespec t = {0, 1000000};
            nanosleep(&t, NULL);
        }
    }
    assert_int_equal(w.calls, 15000);
    for (int i = 0; i < 5; i++)
        assert_int_equal(w.times[i], 3000);
    ps_pool_destroy(pool);
}

static void pools_that_never_ran_are_destroyed(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        struct ps_pool *pool = NULL;
        assert_int_equal(ps_pool_create(&pool, 3), 0);
        ps_pool_destroy(pool);
    }
}

struct sum {
    double part[64];
};

static void sum_task(void *arg, size_t task_idx, int thread_idx)
{
    (void)thread_idx;
    struct sum *s = arg;
    double x = 0;
    for (int i = 1; i < 2000; i++)
        x += 1.0 / ((double)task_idx * 7 + i);
    s->part[task_idx] = x;
}

static void results_do_not_depend_on_the_thread_count(void **state)
{
    (void)state;
    struct sum one, many;
    ps_pool_run(NULL, sum_task, &one, 64);
    for (int threads = 2; threads <= 4; threads++) {
        struct ps_pool *pool = NULL;
        assert_int_equal(ps_pool_create(&pool, threads), 0);
        memset(&many, 0, sizeof many);
        ps_pool_run(pool, sum_task, &many, 64);
        assert_memory_equal(&one, &many, sizeof one);
        ps_pool_destroy(pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once_for_any_count_of_threads_and_tasks),
        cmocka_unit_test(no_pool_means_that_the_caller_runs_all),
        cmocka_unit_test(create_refuses_no_threads),
        cmocka_unit_test(many_short_jobs_with_pauses_all_finish),
        cmocka_unit_test(pools_that_never_ran_are_destroyed),
        cmocka_unit_test(results_do_not_depend_on_the_thread_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
