/* What the process learns about its machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "session/host_cores.h"
#include "session/host_memory.h"

static void free_memory_is_below_all_memory(void **state)
{
    (void)state;
    int64_t all = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    int64_t left = ps_host_memory_free();
    assert_true(left > 0);
    assert_true(left <= all);
}

static void cores_are_at_most_the_allowed_cpus(void **state)
{
    (void)state;
    cpu_set_t before;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    int all = ps_host_core_count();
    assert_in_range(all, 1, CPU_COUNT(&before));
    /* one CPU is one core */
    cpu_set_t one;
    CPU_ZERO(&one);
    for (size_t i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &before)) {
            CPU_SET(i, &one);
            break;
        }
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    int narrowed = ps_host_core_count();
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
    assert_int_equal(narrowed, 1);
    assert_int_equal(ps_host_core_count(), all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(free_memory_is_below_all_memory),
        cmocka_unit_test(cores_are_at_most_the_allowed_cpus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
