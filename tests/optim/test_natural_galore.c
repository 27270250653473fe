/* Natural GaLore: trajectories from the equations, the preconditioner, its history. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/optim/matrix_method.h"

static struct ps_optimizer_hyper hyper_make(void)
{
    return (struct ps_optimizer_hyper){.beta1 = 0.9,
                                       .beta2 = 0.95,
                                       .eps = 1e-6,
                                       .weight_decay = 0.1,
                                       .rank = 4,
                                       .update_gap = 7,
                                       .scale = 0.25,
                                       .seed = 42,
                                       .history = 5,
                                       .damping = 0.5,
                                       .thread_count = THREADS_MAX,
                                       .refresh_together = true};
}

static void agrees_with_the_equations_in_double(void **state)
{
    struct pools *pools = *state;
    FOR_EACH_ISA(isa)
    {
        struct ps_optimizer_hyper h = hyper_make();
        golden_check(&ps_natural_galore_ops, &h, pools->pool[1], isa, "natural_galore.txt", "a",
                     1e-2, 2e-6);
        h.update_gap = 50;
        h.scale = 1;
        h.history = 0;
        h.damping = 2;
        golden_check(&ps_natural_galore_ops, &h, pools->pool[1], isa, "natural_galore.txt", "none",
                     1e-2, 2e-6);
    }
}

/* One remembered gradient: g / (damping + |g|^2). The first moment shows it. */
static void history_of_one_divides_by_damping_plus_square_norm(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_make(), plain = h;
    struct subject s, g;
    h.history = 1;
    subject_make(&s, &ps_natural_galore_ops, &h, 3, 24, 10, PS_DTYPE_F32);
    subject_make(&g, &ps_galore_ops, &plain, 3, 24, 10, PS_DTYPE_F32);
    for (uint64_t t = 1; t <= 1; t++) {
        tensor_gradient(subject_grad(&s), 0, t);
        tensor_gradient(subject_grad(&g), 0, t);
        subject_update(&s, &ps_natural_galore_ops, &h, NULL, ps_isa_detect(), 1e-2);
        subject_update(&g, &ps_galore_ops, &plain, NULL, ps_isa_detect(), 1e-2);
    }
    const float *m = (const float *)(const void *)s.state[0].data;
    const float *r = (const float *)(const void *)g.state[0].data; /* 0.1 R */
    double norm = 0;
    for (size_t i = 0; i < 96; i++)
        norm += 100 * (double)r[i] * (double)r[i];
    for (size_t i = 0; i < 96; i++)
        close_to("moment", i, (double)m[i], (double)r[i] / (0.5 + norm), 0, 1e-6);
    subject_free(&s);
    subject_free(&g);
}

/* Without history g' = g / damping, and Adam does not see a factor as eps vanishes. */
static void without_history_it_is_galore(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_make();
    h.history = 0;
    h.eps = 1e-30;
    struct subject a, b;
    subject_make(&a, &ps_natural_galore_ops, &h, 0, 24, 10, PS_DTYPE_F32);
    subject_make(&b, &ps_galore_ops, &h, 0, 24, 10, PS_DTYPE_F32);
    subject_fill(&a, 0);
    subject_fill(&b, 0);
    for (uint64_t t = 1; t <= STEPS; t++) {
        tensor_gradient(subject_grad(&a), 0, t);
        tensor_gradient(subject_grad(&b), 0, t);
        subject_update(&a, &ps_natural_galore_ops, &h, NULL, ps_isa_detect(), 1e-2);
        subject_update(&b, &ps_galore_ops, &h, NULL, ps_isa_detect(), 1e-2);
    }
    for (size_t k = 0; k < a.tensor.n; k++)
        close_to("weight", k, (double)subject_weight(&a)[k], (double)subject_weight(&b)[k], 1e-6,
                 0);
    subject_free(&a);
    subject_free(&b);
}

static void too_long_a_history_is_refused(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_make();
    struct ps_opt_tensor t = {
        .name = "x.weight", .rank = 2, .rows = 24, .cols = 10, .n = 240, .hidden = true};
    struct ps_opt_layout out;
    struct ps_error err = {0};
    h.history = 65;
    assert_int_equal(ps_natural_galore_ops.layout(&h, &t, &out, &err), PS_EUSAGE);
    assert_string_equal(err.field, "optim-history");
    assert_true(err.advice[0] != '\0');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_equations_in_double),
        cmocka_unit_test(history_of_one_divides_by_damping_plus_square_norm),
        cmocka_unit_test(without_history_it_is_galore),
        cmocka_unit_test(too_long_a_history_is_refused),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
