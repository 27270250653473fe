/* The arena: planned sizes, addresses, contents, overflow. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "runtime/train/arena.h"

#define MIB2 ((size_t)2 << 20)

static struct ps_arena *create(void)
{
    struct ps_arena *a = NULL;
    assert_int_equal(ps_arena_create(&a), 0);
    assert_int_equal(ps_arena_bytes(a), 0);
    assert_null(ps_arena_base(a));
    return a;
}

static void entries_are_aligned_in_order_and_do_not_overlap(void **state)
{
    (void)state;
    enum { N = 700 };
    void *slot[N];
    size_t bytes[N];
    struct ps_error err = {0};
    struct ps_arena *a = create();
    size_t sum = 0;
    for (size_t i = 0; i < N; i++) {
        bytes[i] = i % 131;
        ps_arena_add(a, (enum ps_arena_class)(i % PS_ARENA_CLASS_COUNT), &slot[i], bytes[i]);
        sum += (bytes[i] + 63) / 64 * 64;
    }
    size_t by_class = 0;
    for (int c = 0; c < PS_ARENA_CLASS_COUNT; c++)
        by_class += ps_arena_class_bytes(a, (enum ps_arena_class)c);
    assert_int_equal(by_class, sum);
    assert_int_equal(ps_arena_bytes(a), (sum + MIB2 - 1) / MIB2 * MIB2);
    assert_int_equal(ps_arena_commit(a, &err), 0);
    unsigned char *base = ps_arena_base(a);
    assert_int_equal((uintptr_t)base % MIB2, 0);
    unsigned char *at = base;
    for (size_t i = 0; i < N; i++) {
        if (bytes[i] == 0) {
            assert_null(slot[i]);
            continue;
        }
        assert_ptr_equal(slot[i], at);
        assert_int_equal((uintptr_t)slot[i] % 64, 0);
        at += (bytes[i] + 63) / 64 * 64;
    }
    ps_arena_destroy(a);
}

static void memory_is_zero_and_writable_to_the_end(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_arena *a = create();
    unsigned char *x;
    size_t n = 3 * MIB2 + 1;
    ps_arena_add(a, PS_ARENA_WEIGHTS, (void **)&x, n);
    assert_int_equal(ps_arena_bytes(a), 4 * MIB2);
    assert_int_equal(ps_arena_commit(a, &err), 0);
    for (size_t i = 0; i < n; i++)
        if (x[i])
            fail_msg("byte %zu is not zero", i);
    memset(x, 0x5a, n);
    ((unsigned char *)ps_arena_base(a))[4 * MIB2 - 1] = 1;
    ps_arena_destroy(a);
}

static void overflow_is_reported_at_commit(void **state)
{
    (void)state;
    static const size_t pair[][2] = {{SIZE_MAX, 1},
                                     {SIZE_MAX - 63, 1},
                                     {SIZE_MAX / 2 + 1, 1},
                                     {SIZE_MAX / 4, SIZE_MAX / 4},
                                     {64, SIZE_MAX - 64}};
    for (size_t i = 0; i < sizeof pair / sizeof pair[0]; i++) {
        struct ps_error err = {0};
        struct ps_arena *a = create();
        void *x = a;
        void *y = a;
        ps_arena_add(a, PS_ARENA_WEIGHTS, &x, pair[i][0]);
        ps_arena_add(a, PS_ARENA_WEIGHTS, &y, pair[i][1]);
        assert_int_equal(ps_arena_commit(a, &err), -EOVERFLOW);
        assert_int_equal(err.code, -EOVERFLOW);
        assert_null(ps_arena_base(a));
        assert_null(x);
        assert_null(y);
        ps_arena_destroy(a);
    }
}

static void more_than_the_address_space_is_an_error_not_a_crash(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_arena *a = create();
    void *x;
    ps_arena_add(a, PS_ARENA_WEIGHTS, &x, (size_t)1 << 60);
    assert_int_equal(ps_arena_commit(a, &err), -ENOMEM);
    assert_string_equal(err.field, "host-mem");
    assert_null(x);
    ps_arena_destroy(a);
}

static void reset_forgets_entries_and_faults(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_arena *a = create();
    void *old = NULL;
    void *x;
    ps_arena_add(a, PS_ARENA_BATCH, &old, 100);
    ps_arena_add(a, PS_ARENA_BATCH, &old, SIZE_MAX);
    ps_arena_reset(a);
    assert_int_equal(ps_arena_bytes(a), 0);
    assert_int_equal(ps_arena_class_bytes(a, PS_ARENA_BATCH), 0);
    ps_arena_add(a, PS_ARENA_ADAPTER, &x, 1);
    assert_int_equal(ps_arena_class_bytes(a, PS_ARENA_ADAPTER), 64);
    assert_int_equal(ps_arena_commit(a, &err), 0);
    assert_ptr_equal(x, ps_arena_base(a));
    assert_null(old);
    ps_arena_destroy(a);
}

static void an_empty_arena_commits_and_null_is_destroyed(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_arena *a = create();
    void *x = a;
    ps_arena_add(a, PS_ARENA_WORKSPACE, &x, 0);
    assert_int_equal(ps_arena_commit(a, &err), 0);
    assert_null(x);
    ps_arena_destroy(a);
    ps_arena_destroy(NULL);
}

static void every_class_has_its_own_name(void **state)
{
    (void)state;
    for (int i = 0; i < PS_ARENA_CLASS_COUNT; i++)
        for (int j = 0; j < i; j++)
            assert_string_not_equal(ps_arena_class_name((enum ps_arena_class)i),
                                    ps_arena_class_name((enum ps_arena_class)j));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_are_aligned_in_order_and_do_not_overlap),
        cmocka_unit_test(memory_is_zero_and_writable_to_the_end),
        cmocka_unit_test(overflow_is_reported_at_commit),
        cmocka_unit_test(more_than_the_address_space_is_an_error_not_a_crash),
        cmocka_unit_test(reset_forgets_entries_and_faults),
        cmocka_unit_test(an_empty_arena_commits_and_null_is_destroyed),
        cmocka_unit_test(every_class_has_its_own_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
