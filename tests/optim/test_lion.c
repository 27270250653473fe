/* Lion against the authors' package, and what its sign makes of scales. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/optim/golden_steps.h"

static void agrees_with_the_authors_package(void **state)
{
    (void)state;
    struct golden g = {.name = "lion",
                       .ops = &ps_lion_ops,
                       .hyper = {.beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1},
                       .lr = 1e-3,
                       .atol = 1e-3 * 0x1p-22, /* the rate as fp32; a wrong sign would be 2e-3 */
                       .rtol = 0x1p-23};
    golden_check(&g);
}

static void random_grad(struct subject *s, uint64_t t, double size)
{
    for (size_t i = 0; i < s->tensor.n; i++)
        put(s->grad.data, PS_DTYPE_F32, i,
            i % 50 == 7 ? 0 : size * (double)golden_grad((uint32_t)i, 3, (uint32_t)t));
}

static void every_step_is_the_rate_or_nothing(void **state)
{
    (void)state;
    const double lr = 0x1p-7;
    struct ps_optimizer_hyper h = hyper_of(&ps_lion_ops);
    struct subject s;
    subject_make(&s, &ps_lion_ops, &h, tensor_of(3000, 0, PS_DTYPE_F32), 0);
    double last[3000] = {0};
    for (uint64_t t = 1; t <= 12; t++) {
        random_grad(&s, t, 1);
        subject_update(&s, &(struct how){.isa = ps_isa_detect(), .lr = lr});
        for (size_t i = 0; i < s.tensor.n; i++) {
            double step = fabs(master(&s, i) - last[i]);
            assert_true(i % 50 == 7 ? step == 0 : step == lr);
            last[i] = master(&s, i);
        }
    }
    subject_free(&s);
}

static void gradients_times_a_power_of_two_move_weights_alike(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_of(&ps_lion_ops);
    h.weight_decay = 0.3;
    struct subject a, b;
    subject_make(&a, &ps_lion_ops, &h, tensor_of(33, 65, PS_DTYPE_BF16), 1);
    subject_make(&b, &ps_lion_ops, &h, tensor_of(33, 65, PS_DTYPE_BF16), 1);
    for (uint64_t t = 1; t <= 20; t++) {
        random_grad(&a, t, 1);
        random_grad(&b, t, 0x1p-20);
        subject_update(&a, &(struct how){.isa = ps_isa_detect(), .lr = 1e-3, .decay = true});
        subject_update(&b, &(struct how){.isa = ps_isa_detect(), .lr = 1e-3, .decay = true});
    }
    assert_memory_equal(a.weight.data, b.weight.data, a.weight.bytes);
    assert_memory_equal(a.remainder.data, b.remainder.data, a.remainder.bytes);
    subject_free(&a);
    subject_free(&b);
}

static void weights_use_the_momentum_from_before_the_step(void **state)
{
    (void)state;
    /* m = 1 (kept), g = -1: beta1 m + (1 - beta1) g = 0.8 > 0; with the new m (0.98) likewise; with
       beta1 = 0.5 the sum is 0 and nothing moves, with the new m it would be below 0 */
    struct ps_optimizer_hyper h = {.beta1 = 0.5, .beta2 = 0.9};
    struct subject s;
    subject_make(&s, &ps_lion_ops, &h, tensor_of(16, 0, PS_DTYPE_F32), 0);
    for (size_t i = 0; i < 16; i++) {
        put(s.state[0].data, PS_DTYPE_F32, i, 1);
        put(s.grad.data, PS_DTYPE_F32, i, -1);
    }
    subject_update(&s, &(struct how){.isa = ps_isa_detect(), .lr = 0.5});
    for (size_t i = 0; i < 16; i++) {
        assert_true(master(&s, i) == 0);
        close_to("momentum", i, get(s.state[0].data, PS_DTYPE_F32, i), 0.8, 1e-7, 0);
    }
    subject_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_authors_package),
        cmocka_unit_test(every_step_is_the_rate_or_nothing),
        cmocka_unit_test(gradients_times_a_power_of_two_move_weights_alike),
        cmocka_unit_test(weights_use_the_momentum_from_before_the_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
