/* The average of the weights beside a method: its recursion in double, and that the method does not
 * notice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/optim/golden_steps.h"

static void random_grad(struct subject *s, uint64_t t)
{
    for (size_t i = 0; i < s->tensor.n; i++)
        put(s->grad.data, PS_DTYPE_F32, i, (double)golden_grad((uint32_t)i, 3, (uint32_t)t));
}

/* 20 updates of `ops` with the average beside another subject without it. */
static void check(const struct ps_optimizer_ops *ops, enum ps_dtype dtype, bool rounded, size_t cut)
{
    struct ps_optimizer_hyper h = hyper_of(ops);
    h.stochastic_rounding = rounded;
    h.rank = h.rank ? 8 : 0;
    struct ps_optimizer_hyper a = h;
    a.ema_decay = 0.9;
    a.averaged = ops;
    struct subject plain, with;
    struct ps_opt_tensor x = tensor_of(64, 70, dtype);
    subject_make(&plain, ops, &h, x, 0.1);
    subject_make(&with, &ps_weight_average_ops, &a, x, 0.1);
    int last = plain.layout.state_count;
    assert_int_equal(with.layout.state_count, last + 1);
    assert_string_equal(with.layout.state[last].name, "ema");
    double *mean = calloc(x.n, sizeof *mean);
    assert_non_null(mean);
    for (uint64_t t = 1; t <= 20; t++) {
        struct how how = {.isa = ps_isa_detect(), .lr = 1e-2, .decay = true, .cut = cut};
        random_grad(&plain, t);
        random_grad(&with, t);
        subject_update(&plain, &how);
        subject_update(&with, &how);
        for (size_t i = 0; i < x.n; i++) {
            double w = master(&plain, i);
            mean[i] = t == 1 ? w : 0.9 * mean[i] + 0.1 * w;
            close_to("average", i, get(with.state[last].data, PS_DTYPE_F32, i), mean[i], 1e-6, 0);
        }
    }
    assert_memory_equal(plain.weight.data, with.weight.data, plain.weight.bytes);
    for (int k = 0; k < last; k++)
        assert_memory_equal(plain.state[k].data, with.state[k].data, plain.state[k].bytes);
    free(mean);
    subject_free(&plain);
    subject_free(&with);
}

static void follows_the_masters_and_changes_nothing(void **state)
{
    (void)state;
    check(&ps_adamw_ops, PS_DTYPE_F32, false, 0);
    check(&ps_adamw_ops, PS_DTYPE_BF16, false, 0);
    check(&ps_adamw_ops, PS_DTYPE_BF16, true, 0);
    check(&ps_sgd_ops, PS_DTYPE_F32, false, 0);
    check(&ps_adafactor_ops, PS_DTYPE_F32, false, 0);
    check(&ps_microadam_ops, PS_DTYPE_BF16, false, 0);
    check(&ps_apollo_mini_ops, PS_DTYPE_F32, false, 0);
    check(&ps_muon_ops, PS_DTYPE_BF16, false, 0);
}

static void slices_make_no_difference(void **state)
{
    (void)state;
    check(&ps_adamw8bit_ops, PS_DTYPE_F32, false, 1);
    check(&ps_lion_ops, PS_DTYPE_BF16, false, 700);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(follows_the_masters_and_changes_nothing),
        cmocka_unit_test(slices_make_no_difference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
