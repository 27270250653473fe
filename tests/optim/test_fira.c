/* Fira: trajectories from the equations, the limiter, its relation to GaLore. */
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
                                       .norm_growth_max = 1.01,
                                       .thread_count = THREADS_MAX,
                                       .refresh_together = true};
}

static void agrees_with_the_equations_in_double(void **state)
{
    struct pools *pools = *state;
    for (int basis = PS_BASIS_RANDOMIZED; basis <= (int)last_basis(); basis++) {
        FOR_EACH_ISA(isa)
        {
            struct ps_optimizer_hyper h = hyper_make();
            h.basis = (enum ps_basis)basis;
            golden_check(&ps_fira_ops, &h, pools->pool[2], isa, "fira.txt", "a", 1e-2, 1e-6);
            h.rank = 3;
            h.update_gap = 50;
            h.scale = 1;
            h.norm_growth_max = 0;
            golden_check(&ps_fira_ops, &h, pools->pool[2], isa, "fira.txt", "free", 1e-2, 1e-6);
        }
    }
}

/* With rank = least side and scale 1 the subspace leaves nothing out. */
static void full_rank_and_scale_one_is_galore(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_make();
    h.scale = 1;
    h.rank = 10;
    for (int i = 0; i < 2; i++) {
        struct subject a, b;
        int64_t rows = tensor_shape[i][0], cols = tensor_shape[i][1];
        subject_make(&a, &ps_fira_ops, &h, 0, rows, cols, PS_DTYPE_F32);
        subject_make(&b, &ps_galore_ops, &h, 0, rows, cols, PS_DTYPE_F32);
        subject_fill(&a, i);
        subject_fill(&b, i);
        for (uint64_t t = 1; t <= STEPS; t++) {
            tensor_gradient(subject_grad(&a), i, t);
            tensor_gradient(subject_grad(&b), i, t);
            subject_update(&a, &ps_fira_ops, &h, NULL, ps_isa_detect(), 1e-2);
            subject_update(&b, &ps_galore_ops, &h, NULL, ps_isa_detect(), 1e-2);
        }
        /* steps of 1e-2: 1e-5 of them */
        for (size_t k = 0; k < a.tensor.n; k++)
            close_to("weight", k, (double)subject_weight(&a)[k], (double)subject_weight(&b)[k],
                     1e-7 * STEPS, 0);
        subject_free(&a);
        subject_free(&b);
    }
}

static void norm_of_the_residual_grows_by_at_most_one_percent(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_make();
    struct subject s;
    subject_make(&s, &ps_fira_ops, &h, 0, 24, 10, PS_DTYPE_F32);
    const float *norm = (const float *)(const void *)s.state[3].data;
    double before = 0;
    for (uint64_t t = 1; t <= 40; t++) {
        tensor_gradient(subject_grad(&s), 0, t);
        for (size_t i = 0; i < s.tensor.n; i++) /* bursts */
            subject_grad(&s)[i] *= t % 5 ? 1e-3f : 10;
        if (t == 13)
            memset(s.grad.data, 0, s.grad.bytes);
        subject_update(&s, &ps_fira_ops, &h, NULL, ps_isa_detect(), 1e-2);
        assert_true(*norm > 0);
        if (t > 1)
            assert_true((double)*norm <= 1.01 * (before + 1e-8) * (1 + 1e-6));
        if (t == 13) /* a zero gradient: the norm of the step before stays */
            assert_true((double)*norm == before);
        before = (double)*norm;
    }
    subject_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_equations_in_double),
        cmocka_unit_test(full_rank_and_scale_one_is_galore),
        cmocka_unit_test(norm_of_the_residual_grows_by_at_most_one_percent),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
