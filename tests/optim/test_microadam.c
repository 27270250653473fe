/* MicroAdam against the paper in float64, against Adam where it is Adam, and its 4-bit errors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/optim/golden_steps.h"

static struct ps_optimizer_hyper usual(void)
{
    return hyper_of(&ps_microadam_ops);
}

static void agrees_with_the_paper(void **state)
{
    (void)state;
    struct golden g = {.name = "microadam",
                       .ops = &ps_microadam_ops,
                       .hyper = usual(),
                       .lr = 1e-3,
                       .atol = 1e-3 * 2e-6,
                       .rtol = 0x1p-22,
                       /* a value or an error halfway between two codes, in fp32 and in double */
                       .flips = 8,
                       .flip_size = 2e-4};
    g.hyper.weight_decay = 0.1;
    golden_check(&g);
    g.name = "microadam dense";
    g.hyper.window = 4;
    g.hyper.density = 0.5;
    g.hyper.quant_block = 32;
    g.flips = 24; /* of 360; what falls otherwise once stays so, and another is kept */
    g.flip_size = 5e-3;
    golden_check(&g);
}

static void random_grad(struct subject *s, uint64_t t)
{
    for (size_t i = 0; i < s->tensor.n; i++)
        put(s->grad.data, PS_DTYPE_F32, i, (double)golden_grad((uint32_t)i, 3, (uint32_t)t));
}

static void everything_kept_is_adam_while_the_window_lasts(void **state)
{
    (void)state;
    enum { N = 20000 }; /* two blocks, the second one short */
    struct ps_optimizer_hyper h = usual();
    h.density = 1;
    struct subject s;
    subject_make(&s, &ps_microadam_ops, &h, tensor_of(N, 0, PS_DTYPE_F32), 0);
    double *m = calloc(N, sizeof *m), *v = calloc(N, sizeof *v), last = 0;
    for (uint64_t t = 1; t <= 10; t++) {
        random_grad(&s, t);
        double before[8];
        for (size_t k = 0; k < 8; k++)
            before[k] = master(&s, k * 2400);
        subject_update(&s, &(struct how){.isa = ps_isa_detect(), .lr = 1e-3});
        for (size_t i = 0; i < N; i++) {
            double g = get(s.grad.data, PS_DTYPE_F32, i);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
        }
        for (size_t k = 0; k < 8; k++) {
            size_t i = k * 2400;
            double c1 = 1 - pow(0.9, (double)t), c2 = 1 - pow(0.999, (double)t);
            double step = 1e-3 * (m[i] / c1) / (sqrt(v[i] / c2) + 1e-8);
            /* values are bf16: 2^-9 of each gradient */
            close_to("step", i, before[k] - master(&s, i), step, 1e-3 * 4e-3, 1e-2);
            last += fabs(step);
        }
    }
    assert_true(last > 0);
    /* nothing was left over */
    for (size_t i = 0; i < s.state[2].bytes; i++)
        assert_int_equal(s.state[2].data[i], 0);
    free(m);
    free(v);
    subject_free(&s);
}

/* Constant gradients of one size: after the window has filled, steps are those of the closed form.
 */
static void steady_steps_are_those_of_the_truncated_sums(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = usual();
    h.density = 1;
    struct subject s;
    subject_make(&s, &ps_microadam_ops, &h, tensor_of(100, 0, PS_DTYPE_F32), 0);
    for (size_t i = 0; i < 100; i++)
        put(s.grad.data, PS_DTYPE_F32, i, i % 3 ? 0.5 : -0.5);
    double before = 0;
    for (int t = 1; t <= 1000; t++) {
        before = master(&s, 1);
        subject_update(&s, &(struct how){.isa = ps_isa_detect(), .lr = 0x1p-10});
    }
    double c1 = 1 - pow(0.9, 1000), c2 = 1 - pow(0.999, 1000);
    double want = (1 - pow(0.9, 10)) / c1 / sqrt((1 - pow(0.999, 10)) / c2);
    close_to("step", 1, (before - master(&s, 1)) * 1024, want, 0, 1e-3);
    close_to("negative", 0, master(&s, 0), -master(&s, 1), 0, 1e-6);
    subject_free(&s);
}

/* What is not kept now is there later: sums of what left and what waits equal those of gradients.
 */
static void errors_stay_within_half_a_step(void **state)
{
    (void)state;
    enum { N = 5000 };
    struct ps_optimizer_hyper h = usual();
    struct subject s;
    subject_make(&s, &ps_microadam_ops, &h, tensor_of(N, 0, PS_DTYPE_F32), 0);
    random_grad(&s, 1);
    subject_update(&s, &(struct how){.isa = ps_isa_detect(), .lr = 1e-3});
    const uint16_t *index = (const uint16_t *)(const void *)s.state[0].data;
    int kept = 0;
    for (size_t i = 0; i < N; i++) {
        double lo = get(s.state[3].data, PS_DTYPE_BF16, i / 64);
        double step = (get(s.state[4].data, PS_DTYPE_BF16, i / 64) - lo) / 15;
        double error = lo + step * (s.state[2].data[i / 2] >> (i % 2 ? 0 : 4) & 15);
        double want = get(s.grad.data, PS_DTYPE_F32, i);
        for (int k = 0; k < 50; k++)
            if (index[k] == i) {
                want = 0;
                kept++;
            }
        close_to("error", i, error, want, step / 2 * (1 + 1e-5), 0);
    }
    assert_int_equal(kept, 50); /* 1 % */
    for (int k = 1; k < 50; k++)
        assert_true(index[k] > index[k - 1]);
    subject_free(&s);
}

static void state_is_nine_tenths_of_a_byte(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = usual();
    struct ps_opt_tensor x = tensor_of(1024, 1024, PS_DTYPE_BF16);
    struct ps_opt_layout l;
    struct ps_error err = {0};
    assert_int_equal(ps_microadam_ops.layout(&h, &x, &l, &err), 0);
    uint64_t bytes = 0;
    for (int k = 0; k < l.state_count; k++)
        bytes += ps_opt_state_bytes(&l.state[k], x.n);
    assert_true((double)bytes / (double)x.n < 0.97);
    h.quant_block = 48;
    assert_int_equal(ps_microadam_ops.layout(&h, &x, &l, &err), PS_EUSAGE);
    assert_string_equal(err.field, "quant-block-size");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_paper),
        cmocka_unit_test(everything_kept_is_adam_while_the_window_lasts),
        cmocka_unit_test(steady_steps_are_those_of_the_truncated_sums),
        cmocka_unit_test(errors_stay_within_half_a_step),
        cmocka_unit_test(state_is_nine_tenths_of_a_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
