/* APOLLO and APOLLO-Mini: trajectories from the equations, invariance, the projection. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "optim/projector.h"
#include "tests/optim/matrix_method.h"

static struct ps_optimizer_hyper hyper_make(void)
{
    return (struct ps_optimizer_hyper){.beta1 = 0.9,
                                       .beta2 = 0.95,
                                       .eps = 1e-6,
                                       .weight_decay = 0.1,
                                       .rank = 4,
                                       .update_gap = 7,
                                       .scale = 1,
                                       .seed = 42,
                                       .norm_growth_max = 1.01,
                                       .thread_count = THREADS_MAX,
                                       .refresh_together = true};
}

static void agrees_with_the_equations_in_double(void **state)
{
    struct pools *pools = *state;
    FOR_EACH_ISA(isa)
    {
        struct ps_optimizer_hyper h = hyper_make();
        golden_check(&ps_apollo_ops, &h, pools->pool[2], isa, "apollo.txt", "a", 1e-2, 1e-6);
        h.rank = 1;
        h.scale = 128;
        golden_check(&ps_apollo_mini_ops, &h, pools->pool[2], isa, "apollo.txt", "mini", 1e-2,
                     1e-5); /* sqrt(128) times larger */
        h.rank = 3;
        h.update_gap = 50;
        h.scale = 2;
        h.scale_front = true;
        golden_check(&ps_apollo_ops, &h, pools->pool[2], isa, "apollo.txt", "front", 1e-2, 2e-6);
    }
}

/* phi is inverse to the gradient's size. */
static void first_step_does_not_change_when_the_gradient_is_scaled(void **state)
{
    (void)state;
    const struct ps_optimizer_ops *const ops[] = {&ps_apollo_ops, &ps_apollo_mini_ops};
    struct ps_optimizer_hyper h = hyper_make();
    h.eps = 1e-12;
    h.weight_decay = 0;
    for (int k = 0; k < 2; k++) {
        float want[240] = {0};
        for (int scale = 0; scale < 3; scale++) {
            struct subject s;
            subject_make(&s, ops[k], &h, 0, 24, 10, PS_DTYPE_F32);
            memset(s.weight.data, 0, s.weight.bytes);
            tensor_gradient(subject_grad(&s), 0, 1);
            for (size_t i = 0; i < 240; i++)
                subject_grad(&s)[i] *= scale == 0 ? 1.0f : scale == 1 ? 1e3f : 1e-2f;
            subject_update(&s, ops[k], &h, NULL, ps_isa_detect(), 1e-2);
            for (size_t i = 0; i < 240 && scale > 0; i++)
                close_to("weight", i, (double)subject_weight(&s)[i], (double)want[i], 1e-9, 1e-5);
            if (scale == 0)
                memcpy(want, s.weight.data, sizeof want);
            subject_free(&s);
        }
    }
}

/* Nothing of the projection is stored, and it is the same whoever computes it. */
static void the_projection_is_made_anew_bit_by_bit(void **state)
{
    struct pools *pools = *state;
    struct ps_optimizer_hyper h = hyper_make();
    struct ps_opt_tensor t = {.name = "x", .id = 7, .rank = 2, .rows = 500, .cols = 300};
    struct ps_projector p;
    struct ps_error err = {0};
    h.rank = 30;
    assert_int_equal(ps_projector_plan(&h, &t, 1, 1, &p, &err), 0);
    float *a = calloc(9000, sizeof *a), *b = calloc(9000, sizeof *b);
    assert_non_null(a);
    assert_non_null(b);
    struct ps_matrix_cx one = {.pool = pools->pool[0]}, three = {.pool = pools->pool[2]};
    ps_projector_random(&p, &one, 8, a);
    ps_projector_random(&p, &three, 8, b);
    assert_memory_equal(a, b, 9000 * sizeof *a);
    ps_projector_random(&p, &one, 15, b);
    assert_memory_not_equal(a, b, 9000 * sizeof *a);
    double sum = 0, square = 0;
    for (size_t i = 0; i < 9000; i++) {
        sum += (double)a[i];
        square += (double)a[i] * (double)a[i];
    }
    /* N(0, 1 / 30): three standard deviations of mean and variance */
    assert_true(fabs(sum / 9000) < 3 * sqrt(1.0 / 30 / 9000));
    assert_true(fabs(square / 9000 * 30 - 1) < 3 * sqrt(2.0 / 9000));
    free(a);
    free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_equations_in_double),
        cmocka_unit_test(first_step_does_not_change_when_the_gradient_is_scaled),
        cmocka_unit_test(the_projection_is_made_anew_bit_by_bit),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
