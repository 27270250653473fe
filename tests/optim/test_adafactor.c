/* Adafactor against transformers, and its two bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/optim/golden_steps.h"

static struct ps_optimizer_hyper usual(void)
{
    return hyper_of(&ps_adafactor_ops);
}

static void agrees_with_transformers(void **state)
{
    (void)state;
    struct golden g[5];
    for (int i = 0; i < 5; i++)
        g[i] = (struct golden){.ops = &ps_adafactor_ops,
                               .hyper = usual(),
                               .lr = 1e-3,
                               /* transformers computes in fp32 too: its own roundings */
                               .atol = 1e-3 * 4e-6,
                               .rtol = 0x1p-23};
    g[0].name = "adafactor";
    g[0].hyper.weight_decay = 0.01;
    g[1].name = "adafactor momentum";
    g[1].hyper.weight_decay = 0.01;
    g[1].hyper.beta1 = 0.9;
    g[1].hyper.clip_threshold = 0.5;
    g[2].name = "adafactor scale";
    g[2].hyper.scale_parameter = true;
    g[2].lr = 1e-2;
    g[3].name = "adafactor relative";
    g[3].hyper.scale_parameter = true;
    g[3].hyper.relative_step = true;
    g[4].name = "adafactor warmup";
    g[4].hyper.relative_step = true;
    g[4].hyper.warmup_init = true;
    for (int i = 0; i < 5; i++)
        golden_check(&g[i]);
}

/* |G| = a b^T: one row and one column say it all. */
static void a_rank_one_gradient_loses_nothing(void **state)
{
    (void)state;
    enum { M = 30, N = 40 };
    struct ps_optimizer_hyper h = usual();
    struct subject s;
    subject_make(&s, &ps_adafactor_ops, &h, tensor_of(M, N, PS_DTYPE_F32), 0);
    double v[M * N] = {0}, w[M * N] = {0};
    for (int t = 1; t <= 10; t++) {
        double beta2 = 1 - pow(t, -0.8), rms = 0, u[M * N];
        for (size_t i = 0; i < M * N; i++) {
            double g = (1 + (double)(i / N) * 0.1) * (0.2 + (double)(i % N) * 0.05) * (1.0 / t);
            g = golden_value((uint32_t)i, (uint32_t)t) < 0 ? -g : g;
            put(s.grad.data, PS_DTYPE_F32, i, g);
            v[i] = beta2 * v[i] + (1 - beta2) * (g * g + 1e-30);
            u[i] = g / sqrt(v[i]);
            rms += u[i] * u[i] / (M * N);
        }
        subject_update(&s, &(struct how){.isa = ps_isa_detect(), .lr = 1e-2});
        for (size_t i = 0; i < M * N; i++) {
            w[i] -= 1e-2 * u[i] / (sqrt(rms) > 1 ? sqrt(rms) : 1);
            close_to("weight", i, master(&s, i), w[i], 1e-2 * 1e-5 * t, 0);
        }
    }
    subject_free(&s);
}

static void updates_stay_below_the_threshold(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = usual();
    h.clip_threshold = 0.7;
    struct subject s;
    subject_make(&s, &ps_adafactor_ops, &h, tensor_of(50, 70, PS_DTYPE_F32), 0);
    double last[3500] = {0};
    for (int t = 1; t <= 20; t++) {
        for (size_t i = 0; i < s.tensor.n; i++)
            put(s.grad.data, PS_DTYPE_F32, i,
                (double)golden_grad((uint32_t)i, 2, (uint32_t)t) * (t == 12 ? 1000 : 1));
        subject_update(&s, &(struct how){.isa = ps_isa_detect(), .lr = 0x1p-6});
        double sum = 0;
        for (size_t i = 0; i < s.tensor.n; i++) {
            double step = (master(&s, i) - last[i]) * 64;
            sum += step * step;
            last[i] = master(&s, i);
        }
        assert_true(sqrt(sum / 3500) <= 0.7 * (1 + 1e-5));
        if (t == 12)
            assert_true(sqrt(sum / 3500) > 0.69); /* and reach it */
    }
    subject_free(&s);
}

static void states_are_a_row_and_a_column(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = usual();
    struct ps_opt_tensor x = tensor_of(50, 70, PS_DTYPE_BF16);
    struct ps_opt_layout l;
    struct ps_error err = {0};
    assert_int_equal(ps_adafactor_ops.layout(&h, &x, &l, &err), 0);
    assert_int_equal(l.state_count, 2);
    assert_int_equal(ps_opt_state_bytes(&l.state[0], x.n) + ps_opt_state_bytes(&l.state[1], x.n),
                     120 * 4);
    h.warmup_init = true;
    assert_int_equal(ps_adafactor_ops.layout(&h, &x, &l, &err), PS_EUSAGE);
    h = usual();
    h.state_dtype = PS_DTYPE_BF16;
    assert_int_equal(ps_adafactor_ops.layout(&h, &x, &l, &err), PS_EUSAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_transformers),
        cmocka_unit_test(a_rank_one_gradient_loses_nothing),
        cmocka_unit_test(updates_stay_below_the_threshold),
        cmocka_unit_test(states_are_a_row_and_a_column),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
