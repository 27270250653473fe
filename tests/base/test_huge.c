/* Arena memory: zeros, aligned, present, and gone when released. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/base/huge.h"

static void memory_is_zero_aligned_and_present(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 4096, PS_HUGE_PAGE - 1, PS_HUGE_PAGE,
                                   5 * PS_HUGE_PAGE + 4097};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        void *p = NULL;
        const char *kind = NULL;
        struct ps_error err = {0};
        assert_int_equal(ps_huge_reserve(&p, sizes[i], &kind, &err), 0);
        assert_non_null(kind);
        assert_int_equal((uintptr_t)p % PS_HUGE_PAGE, 0);
        const unsigned char *m = p;
        for (size_t at = 0; at < sizes[i]; at++)
            assert_int_equal(m[at], 0);
        unsigned char present[6 * PS_HUGE_PAGE / 4096];
        size_t pages = (sizes[i] + 4095) / 4096;
        assert_int_equal(mincore(p, pages * 4096, present), 0);
        for (size_t at = 0; at < pages; at++)
            assert_int_equal(present[at] & 1, 1);
        memset(p, 0x5a, sizes[i]);
        ps_huge_release(p, sizes[i]);
        assert_int_equal(mincore(p, 4096, present), -1);
        assert_int_equal(errno, ENOMEM);
    }
}

static void a_child_process_does_not_inherit_the_memory(void **state)
{
    (void)state;
    void *p = NULL;
    assert_int_equal(ps_huge_reserve(&p, 8192, NULL, NULL), 0);
    pid_t pid = fork();
    if (pid == 0) {
        unsigned char present[2];
        _exit(mincore(p, 8192, present) == -1 && errno == ENOMEM ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    ps_huge_release(p, 8192);
}

static void impossible_sizes_are_refused(void **state)
{
    (void)state;
    void *p = NULL;
    struct ps_error err = {0};
    assert_int_equal(ps_huge_reserve(&p, 0, NULL, &err), -EOVERFLOW);
    assert_int_equal(ps_huge_reserve(&p, SIZE_MAX - 5, NULL, &err), -EOVERFLOW);
    assert_int_equal(ps_huge_reserve(&p, SIZE_MAX / 2, NULL, &err), -ENOMEM);
    assert_null(p);
    ps_huge_release(NULL, 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zero_aligned_and_present),
        cmocka_unit_test(a_child_process_does_not_inherit_the_memory),
        cmocka_unit_test(impossible_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
