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
    assert_non_null(strstr(err.advice, "schedules"));
    assert_int_equal(ps_lr_schedule_from_name("", &kind, NULL), PS_EUSAGE);
}

static void new_schedules_at_hand_computed_points(void **state)
{
    (void)state;
    struct ps_lr_schedule c = make(PS_LR_COSINE_RESTARTS);
    c.cycles = 4; /* of 25 steps */
    near(ps_lr_at(&c, 10), 2e-4);
    near(ps_lr_at(&c, 35), 2e-4);
    near(ps_lr_at(&c, 60), 2e-4);
    near(ps_lr_at(&c, 20), 2e-4 * (0.1 + 0.45 * (1 + cos(acos(-1) * 0.4))));
    near(ps_lr_at(&c, 110), 2e-5);
    c.cycles = 1;
    struct ps_lr_schedule plain = make(PS_LR_COSINE);
    for (uint64_t s = 0; s <= 120; s++)
        near(ps_lr_at(&c, s), ps_lr_at(&plain, s));
    c = make(PS_LR_INVERSE_SQRT); /* tau = 10: fairseq's sqrt(W / s) */
    near(ps_lr_at(&c, 10), 2e-4);
    near(ps_lr_at(&c, 40), 2e-4 * 0.5);
    near(ps_lr_at(&c, 1000), 2e-4 * 0.1);
    c.timescale = 30;
    near(ps_lr_at(&c, 40), 2e-4 / sqrt(2));
    c.timescale = 0;
    c.warmup_steps = 0;
    near(ps_lr_at(&c, 30000), 2e-4 * 0.5);
    c = make(PS_LR_WSD);
    c.wsd_decay_ratio = 0.5; /* from 55 on */
    c.wsd_decay = PS_WSD_COSINE;
    near(ps_lr_at(&c, 55), 2e-4);
    near(ps_lr_at(&c, 66), 2e-4 * (1 - 0.9 * 0.5 * (1 - cos(acos(-1) * 0.2))));
    c.wsd_decay = PS_WSD_SQRT;
    near(ps_lr_at(&c, 66), 2e-4 * (1 - 0.9 * sqrt(0.2)));
    near(ps_lr_at(&c, 110), 2e-5);
}

static void power_follows_the_tokens(void **state)
{
    (void)state;
    struct ps_lr_schedule c = make(PS_LR_POWER);
    c.power_a = 0.02;
    c.power_b = 0.51;
    c.tokens_per_step = 1000;
    for (uint64_t s = 10; s < 99; s++) {
        double rate = 0.02 * pow(1000.0 * (double)(s + 1), -0.51);
        near(ps_lr_at(&c, s), rate < 2e-4 ? rate : 2e-4);
    }
    near(ps_lr_at(&c, 4), ps_lr_at(&c, 10) * 0.5); /* up to its own value */
    near(ps_lr_at(&c, 110), 0.1 * 0.02 * pow(111e3, -0.51));
}

static void refining_constant_norms_gives_the_line(void **state)
{
    (void)state;
    enum { T = 100 };
    double norm[T], factor[T], scratch[T];
    for (int square = 0; square < 2; square++) {
        for (int s = 0; s < T; s++)
            norm[s] = 3;
        assert_int_equal(ps_lr_refine(factor, T, norm, T, square, scratch, NULL), 0);
        for (int s = 0; s < T; s++)
            near(factor[s] * (1 - 1.0 / T), 1 - (s + 1.0) / T); /* its first value is the maximum */
        norm[40] = 1e9;                                         /* one spike is filtered away */
        double before = factor[40];
        assert_int_equal(ps_lr_refine(factor, T, norm, T, square, scratch, NULL), 0);
        near(factor[40], before);
    }
    /* a gradient four times as large in the second half: a fourth of the weight there */
    for (int s = 0; s < T; s++)
        norm[s] = s < 50 ? 1 : 4;
    assert_int_equal(ps_lr_refine(factor, T, norm, T, false, scratch, NULL), 0);
    near(factor[0], 1);
    near(factor[80], 19 * 0.25 * 0.25 / (49 + 50 * 0.25));
    /* of a run of half the length */
    assert_int_equal(ps_lr_refine(factor, T, norm + 25, 50, false, scratch, NULL), 0);
    near(factor[80], 19 * 0.25 * 0.25 / (49 + 50 * 0.25));
    struct ps_lr_schedule c = make(PS_LR_REFINED);
    c.table = factor;
    c.table_count = T;
    near(ps_lr_at(&c, 80), 2e-4 * factor[80]);
    near(ps_lr_at(&c, 4), 2e-4 * 0.5 * factor[10]);
    near(ps_lr_at(&c, T - 1), 0);
    near(ps_lr_at(&c, T), 0);
    struct ps_error err = {0};
    assert_int_equal(ps_lr_refine(factor, T, norm, 0, false, scratch, &err), PS_EFORMAT);
    for (int s = 0; s < T; s++)
        norm[s] = s < 60 ? 1 : (double)NAN;
    assert_int_equal(ps_lr_refine(factor, T, norm, T, false, scratch, &err), PS_EFORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(new_schedules_at_hand_computed_points),
        cmocka_unit_test(power_follows_the_tokens),
        cmocka_unit_test(refining_constant_norms_gives_the_line),
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
