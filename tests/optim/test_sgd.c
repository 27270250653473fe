/* SGD against torch, and the closed forms of its momentum. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/optim/golden_steps.h"

static void agrees_with_torch(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double momentum, dampening, decay;
        bool nesterov;
    } c[] = {{"sgd", 0, 0, 0.01, false},
             {"sgd momentum", 0.9, 0, 0.01, false},
             {"sgd nesterov", 0.9, 0, 0.01, true},
             {"sgd dampening", 0.8, 0.3, 0, false}};
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        struct golden g = {.name = c[i].name,
                           .ops = &ps_sgd_ops,
                           .hyper = {.momentum = c[i].momentum,
                                     .dampening = c[i].dampening,
                                     .nesterov = c[i].nesterov,
                                     .weight_decay = c[i].decay},
                           .lr = 0.1,
                           /* torch ran in double: a rounding of the weight a step, and those of
                              up to ten gradients of size 1 in the momentum */
                           .atol = 0.1 * 10 * 0x1p-23,
                           .rtol = 0x1p-23};
        golden_check(&g);
    }
}

static void without_momentum_it_is_one_product_and_one_difference(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        struct ps_optimizer_hyper h = {0};
        struct subject s;
        subject_make(&s, &ps_sgd_ops, &h, tensor_of(5001, 0, PS_DTYPE_F32), 1);
        assert_int_equal(s.layout.state_count, 0);
        float *w = (float *)(void *)s.weight.data, *g = (float *)(void *)s.grad.data;
        float *before = malloc(s.weight.bytes);
        memcpy(before, w, s.weight.bytes);
        fill(g, PS_DTYPE_F32, s.tensor.n, 1, 5);
        subject_update(&s, &(struct how){.isa = isa, .lr = 0.37});
        for (size_t i = 0; i < s.tensor.n; i++) {
            volatile float product = 0.37f * g[i]; /* rounded on its own */
            float want = before[i] - product;
            assert_memory_equal(&w[i], &want, 4);
        }
        free(before);
        subject_free(&s);
    }
}

static void a_constant_gradient_sums_the_geometric_series(void **state)
{
    (void)state;
    const double mu = 0.9, lr = 0.01;
    struct ps_optimizer_hyper h = {.momentum = mu};
    struct subject s;
    subject_make(&s, &ps_sgd_ops, &h, tensor_of(40, 30, PS_DTYPE_F32), 0);
    for (size_t i = 0; i < s.tensor.n; i++)
        put(s.grad.data, PS_DTYPE_F32, i, 0.5 + (double)i * 0x1p-8);
    double sum = 0;
    for (int t = 0; t < 30; t++) {
        subject_update(&s, &(struct how){.isa = ps_isa_detect(), .lr = lr});
        sum += (1 - pow(mu, t + 1)) / (1 - mu);
        for (size_t i = 0; i < s.tensor.n; i++)
            close_to("weight", i, master(&s, i), -lr * sum * get(s.grad.data, PS_DTYPE_F32, i), 0,
                     2e-6);
    }
    subject_free(&s);
}

static void refused(struct ps_optimizer_hyper h, const char *field)
{
    struct ps_opt_tensor x = tensor_of(4, 4, PS_DTYPE_F32);
    struct ps_opt_layout l;
    struct ps_error err = {0};
    assert_int_equal(ps_sgd_ops.layout(&h, &x, &l, &err), PS_EUSAGE);
    assert_string_equal(err.field, field);
    assert_true(err.advice[0] != '\0');
}

static void combinations_without_effect_are_refused(void **state)
{
    (void)state;
    refused((struct ps_optimizer_hyper){.nesterov = true}, "nesterov");
    refused((struct ps_optimizer_hyper){.dampening = 0.5}, "dampening");
    refused((struct ps_optimizer_hyper){.nesterov = true, .momentum = 0.9, .dampening = 0.5},
            "dampening");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_torch),
        cmocka_unit_test(without_momentum_it_is_one_product_and_one_difference),
        cmocka_unit_test(a_constant_gradient_sums_the_geometric_series),
        cmocka_unit_test(combinations_without_effect_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
