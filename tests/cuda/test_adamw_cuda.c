/* The update on the device gives the bits of the CPU's portable one. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "optim/adamw.h"
#include "tests/cuda/cuda_check.h"

static const size_t sizes[] = {0, 1, 3, 4, 5, 7, 8, 9, 1023, 1025, 2047, 2048, 2049, 10007};
#define SIZES (sizeof sizes / sizeof *sizes)

struct fixture {
    struct twin weight, remainder, grad, m, v;
    struct ps_adamw_scalars scalars;
};

static void fixture_make(cudaStream_t s, struct fixture *f, enum ps_dtype t, size_t n, size_t off)
{
    *f = (struct fixture){.weight = twin_make(s, t, n, off, 1, 1),
                          .remainder = twin_make(s, PS_DTYPE_BF16, n, off, 0, 0),
                          .grad = twin_make(s, PS_DTYPE_F32, n, off, 1e-2, 2),
                          .m = twin_make(s, PS_DTYPE_F32, n, off, 1e-2, 3),
                          .v = twin_make(s, PS_DTYPE_F32, n, off, 1e-2, 4)};
    float *v = (float *)(void *)f->v.cpu.data;
    uint16_t *lo = (uint16_t *)(void *)f->remainder.cpu.data;
    for (size_t i = 0; i < n; i++) {
        v[i] = v[i] * v[i];
        lo[i] = (uint16_t)(i * 40503u);
    }
    twin_upload(s, &f->v);
    twin_upload(s, &f->remainder);
    ps_adamw_prepare(&f->scalars, 3e-4, 0.9, 0.999, 1e-8, 0.1, 7, 0.73f);
}

static void fixture_free(cudaStream_t s, struct fixture *f)
{
    twin_free(s, &f->weight);
    twin_free(s, &f->remainder);
    twin_free(s, &f->grad);
    twin_free(s, &f->m);
    twin_free(s, &f->v);
}

static struct ps_adamw_cuda_args args_of(const struct fixture *f, size_t n)
{
    const struct ps_adamw_scalars *c = &f->scalars;
    return (struct ps_adamw_cuda_args){
        .weight = f->weight.gpu.data,
        .weight_dtype = f->weight.type,
        .remainder =
            f->weight.type == PS_DTYPE_BF16 ? (uint16_t *)(void *)f->remainder.gpu.data : NULL,
        .grad = (float *)(void *)f->grad.gpu.data,
        .exp_avg = (float *)(void *)f->m.gpu.data,
        .exp_avg_sq = (float *)(void *)f->v.gpu.data,
        .n = n,
        .beta1 = c->beta1,
        .beta2 = c->beta2,
        .one_minus_beta1 = c->one_minus_beta1,
        .one_minus_beta2 = c->one_minus_beta2,
        .step_size = c->step_size,
        .rsqrt_c2 = c->rsqrt_c2,
        .eps = c->eps,
        .decay = c->decay,
        .grad_scale = c->grad_scale,
    };
}

static void update_both(cudaStream_t s, struct fixture *f, size_t n)
{
    struct ps_adamw_slice slice = {.weight = f->weight.cpu.data,
                                   .remainder = f->weight.type == PS_DTYPE_BF16
                                                    ? (uint16_t *)(void *)f->remainder.cpu.data
                                                    : NULL,
                                   .grad = f->grad.cpu.data,
                                   .exp_avg = (float *)(void *)f->m.cpu.data,
                                   .exp_avg_sq = (float *)(void *)f->v.cpu.data,
                                   .weight_dtype = f->weight.type,
                                   .grad_dtype = PS_DTYPE_F32,
                                   .n = n};
    ps_adamw_update(NULL, PS_ISA_PORTABLE, &f->scalars, &slice);
    struct ps_adamw_cuda_args a = args_of(f, n);
    assert_int_equal(ps_adamw_update_cuda(s, &a), 0);
}

static void check_bits(cudaStream_t s, struct fixture *f)
{
    twin_check_bits(s, &f->weight, "weight");
    twin_check_bits(s, &f->remainder, "remainder");
    twin_check_bits(s, &f->m, "exp_avg");
    twin_check_bits(s, &f->v, "exp_avg_sq");
    twin_check_bits(s, &f->grad, "grad");
}

static void twenty_steps_give_the_bits_of_the_cpu(void **state)
{
    for (size_t k = 0; k < SIZES * 2; k++) {
        FOR_EACH_TYPE(t)
        {
            struct fixture f;
            fixture_make(*state, &f, t, sizes[k / 2], k % 2);
            for (uint64_t step = 1; step <= 20; step++) {
                ps_adamw_prepare(&f.scalars, 1e-3 / (double)step, 0.9, 0.999, 1e-8,
                                 step % 2 ? 0.1 : 0, step, step % 3 ? 1.0f : 0.321f);
                update_both(*state, &f, sizes[k / 2]);
            }
            check_bits(*state, &f);
            fixture_free(*state, &f);
        }
    }
}

/* All pairs of odd gradients and moments, on weights of any size. */
static void odd_values_give_the_bits_of_the_cpu(void **state)
{
    static const float odd[] = {0.0f, -0.0f,    1e-45f,  -1e-40f, 1.17549435e-38f, 1e-20f,
                                1.0f, -65504.f, 3.4e38f, 1e19f,   -1.9e19f,        0.1f};
    enum { N = 12, ALL = N * N * N };
    FOR_EACH_TYPE(t)
    {
        struct fixture f;
        fixture_make(*state, &f, t, ALL, 0);
        float *g = (float *)(void *)f.grad.cpu.data, *m = (float *)(void *)f.m.cpu.data;
        float *v = (float *)(void *)f.v.cpu.data;
        for (size_t i = 0; i < ALL; i++) {
            g[i] = odd[i % N];
            m[i] = odd[i / N % N];
            v[i] = fabsf(odd[i / N / N]);
            put(f.weight.cpu.data, t, i, (double)odd[(i * 5 + 1) % N] * 0.5);
        }
        twin_upload(*state, &f.grad);
        twin_upload(*state, &f.m);
        twin_upload(*state, &f.v);
        twin_upload(*state, &f.weight);
        for (int step = 0; step < 3; step++)
            update_both(*state, &f, ALL);
        /* -Inf - -Inf and Inf / Inf make NaNs, whose sign bit differs between machines */
        twin_check(*state, &f.m, "exp_avg", 0, 0);
        twin_check(*state, &f.v, "exp_avg_sq", 0, 0);
        twin_check(*state, &f.weight, "weight", 0, 0);
        const uint16_t *lo = device_get(*state, &f.remainder.gpu);
        assert_memory_equal(lo, f.remainder.cpu.data, ALL * 2);
        fixture_free(*state, &f);
    }
}

/* Every remainder under weights that round up, down and across powers of two. */
static void remainders_join_and_split_as_on_the_cpu(void **state)
{
    static const uint16_t weights[] = {0x3f80, 0x3f7f, 0xbf80, 0x0000,
                                       0x8000, 0x0080, 0x7f7f, 0x4000};
    enum { N = 8 * 4096 };
    struct fixture f;
    fixture_make(*state, &f, PS_DTYPE_BF16, N, 0);
    uint16_t *hi = (uint16_t *)(void *)f.weight.cpu.data;
    uint16_t *lo = (uint16_t *)(void *)f.remainder.cpu.data;
    for (size_t i = 0; i < N; i++) {
        hi[i] = weights[i % 8];
        lo[i] = (uint16_t)(i / 8 * 16 + i % 16);
    }
    twin_upload(*state, &f.weight);
    twin_upload(*state, &f.remainder);
    update_both(*state, &f, N);
    check_bits(*state, &f);
    fixture_free(*state, &f);
}

static void a_nan_gradient_makes_nan_weights_there_alone(void **state)
{
    FOR_EACH_TYPE(t)
    {
        struct fixture f;
        fixture_make(*state, &f, t, 100, 0);
        put(f.grad.cpu.data, PS_DTYPE_F32, 5, NAN);
        put(f.grad.cpu.data, PS_DTYPE_F32, 77, INFINITY);
        twin_upload(*state, &f.grad);
        update_both(*state, &f, 100);
        const void *w = device_get(*state, &f.weight.gpu);
        for (size_t i = 0; i < 100; i++)
            assert_int_equal(isnan(get(w, t, i)) != 0, i == 5 || i == 77);
        twin_check(*state, &f.weight, "weight", 0, 0);
        fixture_free(*state, &f);
    }
}

static void pieces_give_the_bits_of_the_whole(void **state)
{
    struct fixture f;
    fixture_make(*state, &f, PS_DTYPE_BF16, 1000, 0);
    struct ps_adamw_cuda_args whole = args_of(&f, 1000);
    static const size_t cut[] = {0, 1, 14, 333, 334, 1000};
    for (size_t k = 0; k < 5; k++) {
        struct ps_adamw_cuda_args a = whole;
        a.weight = (uint16_t *)whole.weight + cut[k];
        a.remainder += cut[k];
        a.grad += cut[k];
        a.exp_avg += cut[k];
        a.exp_avg_sq += cut[k];
        a.n = cut[k + 1] - cut[k];
        assert_int_equal(ps_adamw_update_cuda(*state, &a), 0);
    }
    struct fixture again;
    fixture_make(*state, &again, PS_DTYPE_BF16, 1000, 0);
    update_both(*state, &again, 1000);
    check_bits(*state, &again);
    const void *w = device_get(*state, &f.weight.gpu);
    assert_memory_equal(w, again.weight.cpu.data, 2000);
    assert_memory_equal(device_get(*state, &f.remainder.gpu), again.remainder.cpu.data, 2000);
    fixture_free(*state, &f);
    fixture_free(*state, &again);
}

static void refuses_other_weights(void **state)
{
    struct ps_adamw_cuda_args a = {.weight_dtype = PS_DTYPE_F16, .n = 1};
    assert_int_equal(ps_adamw_update_cuda(*state, &a), -EINVAL);
    a.weight_dtype = PS_DTYPE_BF16; /* without remainder */
    assert_int_equal(ps_adamw_update_cuda(*state, &a), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(twenty_steps_give_the_bits_of_the_cpu),
        cmocka_unit_test(odd_values_give_the_bits_of_the_cpu),
        cmocka_unit_test(remainders_join_and_split_as_on_the_cpu),
        cmocka_unit_test(a_nan_gradient_makes_nan_weights_there_alone),
        cmocka_unit_test(pieces_give_the_bits_of_the_whole),
        cmocka_unit_test(refuses_other_weights),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
