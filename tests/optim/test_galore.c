/* GaLore: the official trajectories, what its parts promise, bits, errors. */
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
                                       .rank = 4,
                                       .update_gap = 7,
                                       .scale = 0.25,
                                       .seed = 42,
                                       .thread_count = THREADS_MAX,
                                       .refresh_together = true};
}

/* 20 steps of size 1e-2: fp32 weights round by 1e-8 each time, directions are good to 1e-6. */
#define GOLDEN_ATOL 5e-7

static void agrees_with_the_official_code(void **state)
{
    struct pools *pools = *state;
    for (int basis = PS_BASIS_RANDOMIZED; basis <= (int)last_basis(); basis++) {
        FOR_EACH_ISA(isa)
        {
            struct ps_optimizer_hyper h = hyper_make();
            h.basis = (enum ps_basis)basis;
            golden_check(&ps_galore_ops, &h, pools->pool[1], isa, "galore.txt", "std", 1e-2,
                         GOLDEN_ATOL);
            h.update_gap = 50;
            h.scale = 1;
            h.weight_decay = 0.1;
            golden_check(&ps_galore_ops, &h, pools->pool[1], isa, "galore.txt", "decay", 1e-2,
                         GOLDEN_ATOL);
            h.rank = 3;
            h.update_gap = 6;
            h.scale = 0.5;
            h.weight_decay = 0.01;
            h.projection = PS_PROJECTION_REVERSE_STD;
            golden_check(&ps_galore_ops, &h, pools->pool[1], isa, "galore.txt", "reverse_std", 1e-2,
                         GOLDEN_ATOL);
        }
    }
}

/* What GaLore is by its parts, in double, from the basis that the state holds. */
static void update_is_the_back_projection_of_adam_in_the_subspace(void **state)
{
    (void)state;
    const double lr = 1e-2;
    for (int i = 0; i < 3; i++) {
        struct ps_optimizer_hyper h = hyper_make();
        int64_t rows = tensor_shape[i][0], cols = tensor_shape[i][1];
        size_t n = (size_t)(rows * cols), least = (size_t)(rows < cols ? rows : cols);
        size_t length = n / least;
        bool right = rows >= cols;
        h.rank = (int32_t)least;
        h.update_gap = 1000;
        h.scale = 1;
        struct subject s;
        subject_make(&s, &ps_galore_ops, &h, 0, rows, cols, PS_DTYPE_F32);
        subject_fill(&s, i);
        double w[24 * 24], m[24 * 24] = {0}, v[24 * 24] = {0}, d[24 * 24], start[24 * 24];
        for (size_t k = 0; k < n; k++)
            start[k] = w[k] = (double)subject_weight(&s)[k];
        const float *p = (const float *)(const void *)s.state[2].data;
        for (uint64_t t = 1; t <= STEPS; t++) {
            fill(subject_grad(&s), PS_DTYPE_F32, n, 1, t);
            subject_update(&s, &ps_galore_ops, &h, NULL, ps_isa_detect(), lr);
            const float *g = subject_grad(&s);
            double rate = lr * sqrt(1 - pow(0.95, (double)t)) / (1 - pow(0.9, (double)t));
            for (size_t a = 0; a < length; a++)
                for (size_t b = 0; b < least; b++) {
                    double r = 0;
                    for (size_t k = 0; k < least; k++)
                        r += (double)p[b * least + k] *
                             (double)(right ? g[a * least + k] : g[k * length + a]);
                    size_t at = a * least + b;
                    m[at] = 0.9 * m[at] + 0.1 * r;
                    v[at] = 0.95 * v[at] + 0.05 * r * r;
                    d[at] = m[at] / (sqrt(v[at]) + 1e-6);
                }
            for (size_t a = 0; a < length; a++)
                for (size_t k = 0; k < least; k++) {
                    double back = 0;
                    for (size_t b = 0; b < least; b++)
                        back += d[a * least + b] * (double)p[b * least + k];
                    w[right ? a * least + k : k * length + a] -= rate * back;
                }
        }
        double off = 0, all = 0;
        for (size_t k = 0; k < n; k++) {
            off += pow((double)subject_weight(&s)[k] - w[k], 2);
            all += pow(w[k] - start[k], 2);
        }
        assert_true(sqrt(off / all) <= 1e-5);
        subject_free(&s);
    }
}

/* reset: after a refresh all is as at the first update; rotate: with the same gradient again and
 * again the basis does not change, and rotation changes nothing. */
static void moments_are_reset_or_rotated_when_asked(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct ps_optimizer_hyper h = hyper_make();
        struct subject a, b;
        int64_t rows = tensor_shape[i][0], cols = tensor_shape[i][1];
        h.moments = PS_MOMENTS_RESET;
        h.update_gap = 3;
        subject_make(&a, &ps_galore_ops, &h, 0, rows, cols, PS_DTYPE_F32);
        subject_make(&b, &ps_galore_ops, &h, 0, rows, cols, PS_DTYPE_F32);
        for (uint64_t t = 1; t <= 5; t++) {
            tensor_gradient(subject_grad(&a), i, t);
            subject_fill(&a, i);
            subject_update(&a, &ps_galore_ops, &h, NULL, PS_ISA_PORTABLE, 1e-2);
        }
        for (uint64_t t = 4; t <= 5; t++) {
            /* t = 4 is a refresh of a, t = 1 of b: keep the keys of random numbers apart from it */
            tensor_gradient(subject_grad(&b), i, t);
            subject_fill(&b, i);
            subject_update(&b, &ps_galore_ops, &h, NULL, PS_ISA_PORTABLE, 1e-2);
        }
        for (size_t k = 0; k < a.tensor.n; k++)
            close_to("reset", k, (double)subject_weight(&a)[k], (double)subject_weight(&b)[k], 1e-7,
                     0);
        subject_free(&a);
        subject_free(&b);
        struct ps_optimizer_hyper keep = hyper_make(), rotate = keep;
        keep.update_gap = 3;
        rotate.update_gap = 3;
        rotate.moments = PS_MOMENTS_ROTATE;
        subject_make(&a, &ps_galore_ops, &keep, 0, rows, cols, PS_DTYPE_F32);
        subject_make(&b, &ps_galore_ops, &rotate, 0, rows, cols, PS_DTYPE_F32);
        tensor_gradient(subject_grad(&a), i, 1);
        tensor_gradient(subject_grad(&b), i, 1);
        subject_fill(&a, i);
        subject_fill(&b, i);
        for (uint64_t t = 1; t <= 9; t++) {
            subject_update(&a, &ps_galore_ops, &keep, NULL, ps_isa_detect(), 1e-2);
            subject_update(&b, &ps_galore_ops, &rotate, NULL, ps_isa_detect(), 1e-2);
        }
        for (size_t k = 0; k < a.tensor.n; k++)
            close_to("rotate", k, (double)subject_weight(&b)[k], (double)subject_weight(&a)[k],
                     1e-5, 0);
        subject_free(&a);
        subject_free(&b);
    }
}

/* With gradients that turn, rotation and keeping must differ: the test above is not empty. */
static void rotation_matters_when_the_subspace_turns(void **state)
{
    (void)state;
    struct ps_optimizer_hyper keep = hyper_make(), rotate = keep;
    struct subject a, b;
    rotate.moments = PS_MOMENTS_ROTATE;
    subject_make(&a, &ps_galore_ops, &keep, 0, 24, 10, PS_DTYPE_F32);
    subject_make(&b, &ps_galore_ops, &rotate, 0, 24, 10, PS_DTYPE_F32);
    double most = 0;
    memset(a.weight.data, 0, a.weight.bytes);
    memset(b.weight.data, 0, b.weight.bytes);
    for (uint64_t t = 1; t <= 9; t++) {
        tensor_gradient(subject_grad(&a), 0, t);
        tensor_gradient(subject_grad(&b), 0, t);
        subject_update(&a, &ps_galore_ops, &keep, NULL, ps_isa_detect(), 1e-2);
        subject_update(&b, &ps_galore_ops, &rotate, NULL, ps_isa_detect(), 1e-2);
    }
    for (size_t k = 0; k < a.tensor.n; k++)
        most = fmax(most, fabs((double)subject_weight(&a)[k] - (double)subject_weight(&b)[k]));
    assert_true(most > 1e-4);
    subject_free(&a);
    subject_free(&b);
}

/* Clipping is a factor of the gradient, also of what is projected. */
static void gradient_scale_equals_scaling_the_gradient(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_make();
    struct subject a, b;
    struct ps_error err = {0};
    subject_make(&a, &ps_galore_ops, &h, 0, 24, 10, PS_DTYPE_F32);
    subject_make(&b, &ps_galore_ops, &h, 0, 24, 10, PS_DTYPE_F32);
    subject_fill(&a, 0);
    subject_fill(&b, 0);
    for (uint64_t t = 1; t <= 8; t++) {
        tensor_gradient(subject_grad(&a), 0, t);
        tensor_gradient(subject_grad(&b), 0, t);
        for (size_t i = 0; i < 240; i++)
            subject_grad(&b)[i] *= 0.25f;
        assert_int_equal(
            subject_try(&a, &ps_galore_ops, &h, NULL, PS_ISA_PORTABLE, 1e-2, 0.25f, &err), 0);
        subject_update(&b, &ps_galore_ops, &h, NULL, PS_ISA_PORTABLE, 1e-2);
    }
    subject_same(&a, &b);
    subject_free(&a);
    subject_free(&b);
}

/* bf16 and 8-bit moments end near fp32 ones, in the space of states that they promise, and whatever
 * the threads. */
static void narrow_moments_stay_near_fp32(void **state)
{
    struct pools *pools = *state;
    enum { ROWS = 300, COLS = 64, N = ROWS * COLS };
    float *want = calloc(N, sizeof *want), *first = calloc(N, sizeof *first);
    assert_true(want && first);
    for (int form = 0; form < 3; form++) {
        static const enum ps_dtype type[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_U8};
        /* two moments of 16 * 300, the basis of 16 * 64 in fp32 */
        static const size_t bytes[] = {38400, 19200, 9600 + 2 * 4 * 19};
        for (int p = 0; p < THREADS_MAX; p++) {
            struct ps_optimizer_hyper h = hyper_make();
            struct subject s;
            size_t used = 0;
            h.rank = 16;
            h.state_dtype = type[form];
            subject_make(&s, &ps_galore_ops, &h, 0, ROWS, COLS, PS_DTYPE_F32);
            memset(s.weight.data, 0, s.weight.bytes);
            for (int i = 0; i < s.layout.state_count; i++)
                used += s.state[i].bytes;
            assert_int_equal(used, bytes[form] + 4096);
            for (uint64_t t = 1; t <= STEPS; t++) {
                matrix_gradient(subject_grad(&s), ROWS, COLS, t);
                subject_update(&s, &ps_galore_ops, &h, pools->pool[p], ps_isa_detect(), 1e-2);
            }
            if (p == 0)
                memcpy(first, s.weight.data, N * sizeof *first);
            assert_memory_equal(first, s.weight.data, N * sizeof *first);
            subject_free(&s);
        }
        double off = 0, all = 0;
        if (form == 0)
            memcpy(want, first, N * sizeof *want);
        for (size_t i = 0; i < N; i++) {
            off += pow((double)first[i] - (double)want[i], 2);
            all += pow((double)want[i], 2);
        }
        /* bf16 rounds by 2^-9, at random; 8 bits: 0.08 of the displacement (specs) */
        assert_true(sqrt(off / all) < (form == 2 ? 0.08 : 0.004));
        assert_true(form == 0 || off > 0);
    }
    free(want);
    free(first);
}

static void narrow_moments_cannot_be_rotated(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_make();
    struct ps_opt_tensor t = {
        .name = "x.weight", .rank = 2, .rows = 24, .cols = 10, .n = 240, .hidden = true};
    struct ps_opt_layout out;
    struct ps_error err = {0};
    h.moments = PS_MOMENTS_ROTATE;
    h.state_dtype = PS_DTYPE_BF16;
    assert_int_equal(ps_galore_ops.layout(&h, &t, &out, &err), PS_EUSAGE);
    assert_string_equal(err.field, "optim-moments");
}

/* An embedding: AdamW, eps beside the uncorrected root, decay after the step. */
static void other_matrices_get_adamw_of_the_same_form(void **state)
{
    (void)state;
    const double lr = 1e-2, decay = 0.5, eps = 1e-3;
    enum { N = 240 };
    struct ps_optimizer_hyper h = hyper_make();
    struct subject s;
    h.weight_decay = decay;
    h.eps = eps;
    subject_make(&s, &ps_galore_ops, &h, 0, 24, 10, PS_DTYPE_F32);
    s.tensor.hidden = false;
    struct ps_error err = {0};
    double w[N], m[N] = {0}, v[N] = {0};
    struct ps_opt_layout layout;
    assert_int_equal(ps_galore_ops.layout(&h, &s.tensor, &layout, &err), 0);
    assert_int_equal(layout.granule, 1);
    subject_free(&s);
    subject_make(&s, &ps_adamw_ops, &h, 0, 24, 10, PS_DTYPE_F32); /* its states are AdamW's */
    assert_int_equal(s.layout.state_count, layout.state_count);
    s.tensor.hidden = false;
    subject_fill(&s, 0);
    for (size_t i = 0; i < N; i++)
        w[i] = (double)subject_weight(&s)[i];
    for (uint64_t t = 1; t <= STEPS; t++) {
        tensor_gradient(subject_grad(&s), 0, t);
        subject_update(&s, &ps_galore_ops, &h, NULL, ps_isa_detect(), lr);
        double rate = lr * sqrt(1 - pow(0.95, (double)t)) / (1 - pow(0.9, (double)t));
        for (size_t i = 0; i < N; i++) {
            double g = (double)subject_grad(&s)[i];
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.95 * v[i] + 0.05 * g * g;
            w[i] -= rate * m[i] / (sqrt(v[i]) + eps);
            w[i] -= lr * decay * w[i];
        }
    }
    for (size_t i = 0; i < N; i++)
        close_to("weight", i, (double)subject_weight(&s)[i], w[i], 5e-7, 1e-6);
    subject_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_official_code),
        cmocka_unit_test(update_is_the_back_projection_of_adam_in_the_subspace),
        cmocka_unit_test(moments_are_reset_or_rotated_when_asked),
        cmocka_unit_test(rotation_matters_when_the_subspace_turns),
        cmocka_unit_test(other_matrices_get_adamw_of_the_same_form),
        cmocka_unit_test(narrow_moments_stay_near_fp32),
        cmocka_unit_test(narrow_moments_cannot_be_rotated),
        cmocka_unit_test(gradient_scale_equals_scaling_the_gradient),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
