/* Clipping by the global norm. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "optim/grad_clip.h"

static void large_norm_is_scaled_down_to_the_limit(void **state)
{
    (void)state;
    const double part[3] = {9, 0, 16};
    struct ps_grad_clip c;
    ps_grad_clip(&c, part, 3, 1.0);
    assert_true(c.norm == 5);
    assert_true(c.finite);
    assert_true(c.coef == (float)(1.0 / (5.0 + 1e-6)));
    ps_grad_clip(&c, part, 3, 2.5);
    assert_true(c.coef == (float)(2.5 / (5.0 + 1e-6)));
}

static void small_norm_leaves_gradients_bit_for_bit(void **state)
{
    (void)state;
    const double part[2] = {0.09, 0.16};
    struct ps_grad_clip c;
    ps_grad_clip(&c, part, 2, 1.0);
    assert_true(fabs(c.norm - 0.5) < 1e-15);
    assert_true(c.coef == 1.0f);
    ps_grad_clip(&c, part, 0, 1.0);
    assert_true(c.norm == 0 && c.coef == 1.0f && c.finite);
    ps_grad_clip(&c, NULL, 0, 1.0);
    assert_true(c.norm == 0 && c.coef == 1.0f && c.finite);
}

/* As in torch: the 1e-6 makes a norm equal to the limit a tiny clip. */
static void norm_at_the_limit_is_clipped_by_a_millionth(void **state)
{
    (void)state;
    const double part[1] = {1};
    struct ps_grad_clip c;
    ps_grad_clip(&c, part, 1, 1.0);
    assert_true(c.coef == (float)(1 / 1.000001) && c.coef < 1);
}

static void no_limit_computes_the_norm_and_clips_nothing(void **state)
{
    (void)state;
    const double part[2] = {1e10, 1};
    const double limit[4] = {0, -1, -INFINITY, NAN};
    for (int i = 0; i < 4; i++) {
        struct ps_grad_clip c;
        ps_grad_clip(&c, part, 2, limit[i]);
        assert_true(c.coef == 1.0f && c.finite && c.norm > 1e5);
    }
    struct ps_grad_clip c;
    ps_grad_clip(&c, part, 2, INFINITY);
    assert_true(c.coef == 1.0f && c.finite);
}

static void non_finite_parts_are_flagged_and_apply_nothing(void **state)
{
    (void)state;
    const double bad[3] = {NAN, INFINITY, 1.7e308};
    for (int i = 0; i < 3; i++) {
        double part[4] = {1, bad[i], i == 2 ? bad[i] : 2, 3};
        struct ps_grad_clip c;
        ps_grad_clip(&c, part, 4, 1.0);
        assert_false(c.finite);
        assert_true(c.coef == 1.0f);
        assert_true(!isfinite(c.norm));
        ps_grad_clip(&c, part, 4, 0);
        assert_false(c.finite);
    }
}

static void parts_are_added_in_ascending_order(void **state)
{
    (void)state;
    /* 2^53 + 1 + 1 loses both ones, 1 + 1 + 2^53 keeps them */
    const double up[3] = {1, 1, 0x1p53}, down[3] = {0x1p53, 1, 1};
    struct ps_grad_clip a, b;
    ps_grad_clip(&a, up, 3, 0);
    ps_grad_clip(&b, down, 3, 0);
    assert_true(a.norm == sqrt(0x1p53 + 2));
    assert_true(b.norm == sqrt(0x1p53));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(large_norm_is_scaled_down_to_the_limit),
        cmocka_unit_test(small_norm_leaves_gradients_bit_for_bit),
        cmocka_unit_test(norm_at_the_limit_is_clipped_by_a_millionth),
        cmocka_unit_test(no_limit_computes_the_norm_and_clips_nothing),
        cmocka_unit_test(non_finite_parts_are_flagged_and_apply_nothing),
        cmocka_unit_test(parts_are_added_in_ascending_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
