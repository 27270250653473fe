/* Learning-rate schedules. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "optim/lr_schedule.h"

static const enum ps_lr_schedule_kind kinds[4] = {PS_LR_CONSTANT, PS_LR_LINEAR, PS_LR_COSINE,
                                                  PS_LR_WSD};

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-15 + 1e-12 * fabs(want)))
        fail_msg("got %.17g, want %.17g", got, want);
}

static struct ps_lr_schedule make(enum ps_lr_schedule_kind kind)
{
    return (struct ps_lr_schedule){
        .kind = kind, .peak = 2e-4, .min_ratio = 0.1, .warmup_steps = 10, .total_steps = 110};
}

static void warm_up_starts_above_zero_and_reaches_the_peak(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        struct ps_lr_schedule c = make(kinds[k]);
        near(ps_lr_at(&c, 0), 2e-5);
        near(ps_lr_at(&c, 4), 1e-4);
        near(ps_lr_at(&c, 9), 2e-4);
        near(ps_lr_at(&c, 10), 2e-4);
    }
}

static void hand_computed_points(void **state)
{
    (void)state;
    struct ps_lr_schedule c = make(PS_LR_LINEAR);
    near(ps_lr_at(&c, 60), 2e-4 * 0.55);
    near(ps_lr_at(&c, 35), 2e-4 * 0.775);
    c = make(PS_LR_COSINE);
    near(ps_lr_at(&c, 60), 2e-4 * 0.55);
    near(ps_lr_at(&c, 35), 2e-4 * (0.1 + 0.45 * (1 + sqrt(0.5))));
    c = make(PS_LR_WSD); /* D = 0.1 * 110 = 11 */
    near(ps_lr_at(&c, 99), 2e-4);
    near(ps_lr_at(&c, 100), 2e-4 * (1 - 0.9 / 11));
    near(ps_lr_at(&c, 109), 2e-4 * (1 - 0.9 * 10 / 11));
    c.wsd_decay_ratio = 0.5; /* D = 55 */
    near(ps_lr_at(&c, 55), 2e-4);
    near(ps_lr_at(&c, 66), 2e-4 * (1 - 0.9 * 0.2));
}

static void end_is_the_floor_and_stays_there(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        struct ps_lr_schedule c = make(kinds[k]);
        double want = kinds[k] == PS_LR_CONSTANT ? 2e-4 : 2e-5;
        near(ps_lr_at(&c, 110), want);
        near(ps_lr_at(&c, 111), want);
        near(ps_lr_at(&c, 1000000), want);
        near(ps_lr_at(&c, UINT64_MAX), want);
        c.min_ratio = 0;
        near(ps_lr_at(&c, 110), kinds[k] == PS_LR_CONSTANT ? 2e-4 : 0);
    }
}

static void falls_monotonically_and_without_jumps_after_warm_up(void **state)
{
    (void)state;
    const uint64_t totals[] = {12, 50, 110, 1000};
    for (int k = 0; k < 16; k++) {
        struct ps_lr_schedule c = make(kinds[k % 4]);
        c.total_steps = totals[k / 4];
        uint64_t span = c.total_steps - c.warmup_steps;
        if (c.kind == PS_LR_WSD) {
            span = (uint64_t)floor(0.1 * (double)c.total_steps + 0.5);
            span = span ? span : 1;
        }
        /* steepest: cosine, pi / 2 over its span */
        double step_max = c.peak * 0.9 * 1.5708 / (double)span + 1e-18;
        for (uint64_t s = 0; s < c.total_steps + 5; s++) {
            double a = ps_lr_at(&c, s), b = ps_lr_at(&c, s + 1);
            assert_true(a > 0 && a <= c.peak * (1 + 1e-12));
            if (s < c.warmup_steps)
                assert_true(b >= a && b - a <= c.peak / 10 + 1e-18);
            else
                assert_true(b <= a && a - b <= step_max);
        }
    }
}

static void is_a_pure_function_of_the_step(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        struct ps_lr_schedule c = make(kinds[k]), d = c;
        double late = ps_lr_at(&c, 90);
        for (uint64_t s = 0; s < 120; s++)
            (void)ps_lr_at(&d, s);
        assert_true(ps_lr_at(&d, 90) == late);
        assert_memory_equal(&c, &d, sizeof c);
    }
}

static void degenerate_lengths_are_harmless(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        struct ps_lr_schedule c = {.kind = kinds[k], .peak = 1};
        double floor_rate = kinds[k] == PS_LR_CONSTANT ? 1 : 0;
        near(ps_lr_at(&c, 0), floor_rate); /* no steps at all */
        c.total_steps = 1;
        near(ps_lr_at(&c, 0), 1);
        near(ps_lr_at(&c, 1), floor_rate);
        c.warmup_steps = 5; /* longer than the run */
        near(ps_lr_at(&c, 0), 0.2);
        near(ps_lr_at(&c, 4), 1);
        near(ps_lr_at(&c, 5), floor_rate);
        c = (struct ps_lr_schedule){
            .kind = kinds[k], .peak = 1, .total_steps = 10, .warmup_steps = 8};
        c.wsd_decay_ratio = 1; /* decay cannot eat the warm-up */
        near(ps_lr_at(&c, 7), 1);
        near(ps_lr_at(&c, 8), 1);
    }
}

static void names_round_trip_and_unknown_ones_are_refused(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        enum ps_lr_schedule_kind kind = PS_LR_CONSTANT;
        assert_int_equal(ps_lr_schedule_from_name(ps_lr_schedule_name(kinds[k]), &kind, NULL), 0);
        assert_int_equal(kind, kinds[k]);
    }
    struct ps_error err = {0};
    enum ps_lr_schedule_kind kind = PS_LR_WSD;
    assert_int_equal(ps_lr_schedule_from_name("Cosine", &kind, &err), PS_EUSAGE);
    assert_int_equal(kind, PS_LR_WSD);
    assert_non_null(strstr(err.message, "Cosine"));
    assert_non_null(strstr(err.advice, "cosine"));
    assert_int_equal(ps_lr_schedule_from_name("", &kind, NULL), PS_EUSAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warm_up_starts_above_zero_and_reaches_the_peak),
        cmocka_unit_test(hand_computed_points),
        cmocka_unit_test(end_is_the_floor_and_stays_there),
        cmocka_unit_test(falls_monotonically_and_without_jumps_after_warm_up),
        cmocka_unit_test(is_a_pure_function_of_the_step),
        cmocka_unit_test(degenerate_lengths_are_harmless),
        cmocka_unit_test(names_round_trip_and_unknown_ones_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
