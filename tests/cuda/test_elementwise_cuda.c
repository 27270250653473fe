/* Element-wise operations and sums on the device against the CPU's: the same bits but for NaNs. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/elementwise.h"
#include "tests/cuda/cuda_check.h"

/* One off a chunk and a block; off: elements past an aligned address. */
static const size_t sizes[] = {0, 1, 7, 8, 9, 255, 257, 2047, 2048, 2049, 5000};
#define SIZES (sizeof sizes / sizeof *sizes)

static float *f32(void *p)
{
    return p;
}

/* ---- conversions ---- */

static const enum ps_dtype float_types[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};

/* Ties, subnormals, overflow, infinities and NaN among ordinary values. */
static void fill_odd(void *p, enum ps_dtype t, size_t n)
{
    static const double odd[] = {0.0,        -0.0,   INFINITY,  -INFINITY, NAN,     1.00390625,
                                 1.01171875, 65504,  65519.996, 65520,     6e-8,    2.98e-8,
                                 1e-40,      3.4e38, -3.39e38,  1e-45,     0x1p-14, 0x1.ffcp-15};
    fill(p, t, n, 1, 9);
    for (size_t i = 0; i < n; i += 3)
        put(p, t, i, odd[i / 3 % (sizeof odd / sizeof *odd)]);
}

static void convert_rounds_as_the_cpu(void **state)
{
    for (size_t k = 0; k < SIZES * 9 * 2; k++) {
        size_t n = sizes[k / 18];
        enum ps_dtype from = float_types[k / 2 % 3], to = float_types[k / 6 % 3];
        struct twin src = twin_make(*state, from, n, k % 2, 1, 1);
        struct twin dst = twin_make(*state, to, n, k % 2, 0, 0);
        fill_odd(src.cpu.data, from, n);
        twin_upload(*state, &src);
        ps_convert(NULL, PS_ISA_PORTABLE, dst.cpu.data, to, src.cpu.data, from, n);
        assert_int_equal(ps_convert_cuda(*state, dst.gpu.data, to, src.gpu.data, from, n), 0);
        if (from == to)
            twin_check_bits(*state, &dst, "dst");
        else
            twin_check(*state, &dst, "dst", 0, 0); /* equal, NaN for NaN */
        twin_free(*state, &src);
        twin_free(*state, &dst);
    }
}

static void convert_refuses_integers_and_allows_itself(void **state)
{
    assert_int_equal(ps_convert_cuda(*state, NULL, PS_DTYPE_I32, NULL, PS_DTYPE_F32, 1), -EINVAL);
    struct twin x = twin_make(*state, PS_DTYPE_BF16, 100, 0, 1, 1);
    assert_int_equal(
        ps_convert_cuda(*state, x.gpu.data, PS_DTYPE_BF16, x.gpu.data, PS_DTYPE_BF16, 100), 0);
    twin_check_bits(*state, &x, "x");
    twin_free(*state, &x);
}

static void round_bf16_is_there_and_back(void **state)
{
    for (size_t k = 0; k < SIZES * 2; k++) {
        size_t n = sizes[k / 2];
        struct twin x = twin_make(*state, PS_DTYPE_F32, n, k % 2, 1, 1);
        fill_odd(x.cpu.data, PS_DTYPE_F32, n);
        twin_upload(*state, &x);
        for (size_t i = 0; i < n; i++)
            f32(x.cpu.data)[i] = ps_bf16_to_f32(ps_f32_to_bf16(f32(x.cpu.data)[i]));
        assert_int_equal(ps_round_bf16_cuda(*state, f32(x.gpu.data), n), 0);
        twin_check(*state, &x, "x", 0, 0);
        twin_free(*state, &x);
    }
}

static void add_f32_adds_each_element_once(void **state)
{
    for (size_t k = 0; k < SIZES * 2; k++) {
        size_t n = sizes[k / 2];
        struct twin y = twin_make(*state, PS_DTYPE_F32, n, k % 2, 1, 1);
        struct twin x = twin_make(*state, PS_DTYPE_F32, n, 0, 2, 1);
        for (size_t i = 0; i < n; i++)
            f32(y.cpu.data)[i] += f32(x.cpu.data)[i];
        assert_int_equal(ps_add_f32_cuda(*state, f32(y.gpu.data), f32(x.gpu.data), n), 0);
        twin_check_bits(*state, &y, "y");
        twin_check_bits(*state, &x, "x");
        twin_free(*state, &y);
        twin_free(*state, &x);
    }
}

/* ---- rows ---- */

static void gather_and_scatter_move_rows(void **state)
{
    static const size_t columns[] = {1, 5, 8, 16, 63, 64, 520};
    static const int32_t row[] = {7, 0, 3, 11, 4};
    struct device_buffer d = device_make(*state, sizeof row, 0, row);
    const int32_t *rows = (int32_t *)(void *)d.data;
    for (size_t k = 0; k < 7 * 2 * 2; k++) {
        FOR_EACH_TYPE(t)
        {
            size_t n = columns[k / 4], off = k % 2;
            int scatter = (int)(k / 2 % 2);
            struct twin x = twin_make(*state, t, 12 * n, off, 1, 1);
            struct twin y = twin_make(*state, t, 12 * n, off, 0, 0);
            if (scatter) {
                ps_scatter_rows(NULL, y.cpu.data, x.cpu.data, row, 5, n, t);
                assert_int_equal(
                    ps_scatter_rows_cuda(*state, y.gpu.data, x.gpu.data, rows, 5, n, t), 0);
            } else {
                ps_gather_rows(NULL, y.cpu.data, x.cpu.data, row, 5, n, t);
                assert_int_equal(ps_gather_rows_cuda(*state, y.gpu.data, x.gpu.data, rows, 5, n, t),
                                 0);
            }
            twin_check_bits(*state, &y, scatter ? "scattered" : "gathered");
            twin_free(*state, &x);
            twin_free(*state, &y);
        }
    }
    device_free(*state, &d);
}

/* ---- dropout ---- */

static void dropout_gives_the_bits_of_the_cpu(void **state)
{
    static const float p[] = {0.0f, 0.1f, 0.5f, 0.999f};
    for (size_t k = 0; k < SIZES * 4 * 4; k++) {
        FOR_EACH_TYPE(t)
        {
            size_t n = sizes[k / 16], off = k % 3;
            struct ps_rng_key key = {.seed = 0x123456789abcdef0u + k,
                                     .step = 5000000000u,
                                     .micro_batch = 3,
                                     .layer = 71,
                                     .site = PS_RNG_DROPOUT};
            int how = (int)(k % 4);
            struct twin x = twin_make(*state, t, n, off, 1, 1);
            struct twin y = twin_make(*state, t, n, off, 1, how & PS_DROPOUT_ADD ? 2 : 0);
            ps_dropout(NULL, PS_ISA_PORTABLE, y.cpu.data, x.cpu.data, t, 1, n, p[k / 4 % 4], &key,
                       how);
            assert_int_equal(
                ps_dropout_cuda(*state, y.gpu.data, x.gpu.data, t, 1, n, p[k / 4 % 4], &key, how),
                0);
            twin_check_bits(*state, &y, "y");
            ps_dropout(NULL, PS_ISA_PORTABLE, x.cpu.data, x.cpu.data, t, 1, n, 0.3f, &key, 0);
            assert_int_equal(
                ps_dropout_cuda(*state, x.gpu.data, x.gpu.data, t, 1, n, 0.3f, &key, 0), 0);
            twin_check_bits(*state, &x, "x in place");
            twin_free(*state, &x);
            twin_free(*state, &y);
        }
    }
}

/* uniform >= p: an element whose number is p itself stays. */
static void dropout_keeps_the_number_that_is_p(void **state)
{
    struct ps_rng_key key = {.seed = 11, .site = PS_RNG_DROPOUT};
    struct twin x = twin_make(*state, PS_DTYPE_F32, 40, 0, 1, 1);
    for (size_t i = 0; i < 40; i++) {
        struct twin y = twin_make(*state, PS_DTYPE_F32, 40, 0, 0, 0);
        float p = ps_rng_uniform(&key, i);
        assert_int_equal(
            ps_dropout_cuda(*state, y.gpu.data, x.gpu.data, PS_DTYPE_F32, 1, 40, p, &key, 0), 0);
        const float *got = device_get(*state, &y.gpu);
        assert_true(got[i] == f32(x.cpu.data)[i] / (1.0f - p));
        twin_free(*state, &y);
    }
    twin_free(*state, &x);
}

static void dropout_of_rows_is_that_of_the_dense_tensor(void **state)
{
    struct ps_rng_key key = {.seed = 7, .step = 1, .site = PS_RNG_DROPOUT};
    struct twin x = twin_make(*state, PS_DTYPE_BF16, 31 * 33, 0, 1, 1);
    struct twin y = twin_make(*state, PS_DTYPE_BF16, 31 * 33, 0, 0, 0);
    ps_dropout(NULL, PS_ISA_PORTABLE, y.cpu.data, x.cpu.data, PS_DTYPE_BF16, 31, 33, 0.2f, &key, 0);
    assert_int_equal(
        ps_dropout_cuda(*state, y.gpu.data, x.gpu.data, PS_DTYPE_BF16, 31, 33, 0.2f, &key, 0), 0);
    twin_check_bits(*state, &y, "y");
    assert_int_equal(
        ps_dropout_cuda(*state, y.gpu.data, x.gpu.data, PS_DTYPE_F16, 1, 1, 0.2f, &key, 0),
        -EINVAL);
    twin_free(*state, &x);
    twin_free(*state, &y);
}

/* ---- sums ---- */

static void column_sum_gives_the_bits_of_the_cpu(void **state)
{
    static const size_t shapes[][3] = {{1, 1, 0},    {3, 31, 5},   {63, 32, 0},   {64, 33, 3},
                                       {65, 8, 0},   {1023, 3, 1}, {1025, 40, 0}, {2200, 35, 2},
                                       {129, 64, 8}, {0, 10, 0}};
    for (size_t k = 0; k < 10 * 2; k++) {
        FOR_EACH_TYPE(t)
        {
            size_t rows = shapes[k / 2][0], n = shapes[k / 2][1], ld = n + shapes[k / 2][2];
            struct twin x = twin_make(*state, t, rows ? rows * ld - shapes[k / 2][2] : 0, 1, 1, 1);
            struct twin out = twin_make(*state, PS_DTYPE_F32, n, 1, 1, 2);
            ps_column_sum(NULL, PS_ISA_PORTABLE, f32(out.cpu.data), x.cpu.data, ld, t, rows, n,
                          (int)(k % 2));
            assert_int_equal(ps_column_sum_cuda(*state, f32(out.gpu.data), x.gpu.data, ld, t, rows,
                                                n, (int)(k % 2)),
                             0);
            twin_check_bits(*state, &out, "sum");
            twin_free(*state, &x);
            twin_free(*state, &out);
        }
    }
}

static void square_sum_gives_the_bits_of_the_cpu(void **state)
{
    static const size_t counts[] = {1, 31, 33, 8191, 8193, 65535, 65536, 65537, 200003};
    for (size_t k = 0; k < 9 * 2; k++) {
        FOR_EACH_TYPE(t)
        {
            size_t n = counts[k / 2], parts = (n + 65535) / 65536;
            struct twin x = twin_make(*state, t, n + 8, k % 2, 1e-3, 3);
            for (size_t i = n; i < n + 8; i++) /* nobody's */
                put(x.cpu.data, t, i, NAN);
            twin_upload(*state, &x);
            double want[8];
            struct device_buffer d = device_make(*state, parts * 8, 0, NULL);
            ps_square_sum(NULL, PS_ISA_PORTABLE, want, x.cpu.data, t, n);
            assert_int_equal(ps_square_sum_cuda(*state, (double *)(void *)d.data, x.gpu.data, t, n),
                             0);
            assert_memory_equal(device_get(*state, &d), want, parts * 8);
            device_free(*state, &d);
            twin_free(*state, &x);
        }
    }
}

static void nan_and_inf_reach_the_sums(void **state)
{
    static const double odd[] = {NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < 3; k++) {
        FOR_EACH_TYPE(t)
        {
            struct twin x = twin_make(*state, t, 70000, 0, 1, 3);
            put(x.cpu.data, t, 69999, odd[k]);
            twin_upload(*state, &x);
            struct device_buffer d = device_make(*state, 2 * 8, 0, NULL);
            assert_int_equal(
                ps_square_sum_cuda(*state, (double *)(void *)d.data, x.gpu.data, t, 70000), 0);
            const double *got = device_get(*state, &d);
            assert_true(isfinite(got[0]));
            assert_true(k ? got[1] == INFINITY : isnan(got[1]));
            /* the last of 4 columns */
            const unsigned char *at = x.gpu.data + 69996 * ps_dtype_size(t);
            assert_int_equal(ps_column_sum_cuda(*state, f32(d.data), at, 4, t, 1, 4, 0), 0);
            const float *sum = device_get(*state, &d);
            assert_true(isfinite(sum[0]) && isfinite(sum[1]) && isfinite(sum[2]));
            assert_true(k ? (double)sum[3] == odd[k] : isnan(sum[3]));
            device_free(*state, &d);
            twin_free(*state, &x);
        }
    }
}

static void sum_f64_adds_in_ascending_order(void **state)
{
    static const size_t counts[] = {0, 1, 2, 255, 1023, 1024, 1025, 4000};
    for (size_t k = 0; k < 8; k++) {
        size_t n = counts[k];
        double *x = malloc((n + 1) * sizeof *x), want = 0;
        assert_non_null(x);
        for (size_t i = 0; i < n; i++) {
            x[i] = (i % 3 ? 1.0 : 1e17) / (double)(i + 1);
            want += x[i];
        }
        struct device_buffer d = device_make(*state, n * 8, 0, x);
        struct device_buffer out = device_make(*state, 8, 0, NULL);
        assert_int_equal(
            ps_sum_f64_cuda(*state, (double *)(void *)out.data, (double *)(void *)d.data, n), 0);
        assert_memory_equal(device_get(*state, &out), &want, 8);
        device_free(*state, &d);
        device_free(*state, &out);
        free(x);
    }
}

/* ---- the end of a GEMM ---- */

struct epilogue {
    size_t m, n, c_gap, residual_gap, off;
    int bias; /* type + 1 or 0 */
    int residual;
    int accumulate;
};

static void finish_on_cpu(const struct ps_gemm_args *g, const float *acc)
{
    for (size_t i = 0; i < g->m; i++)
        for (size_t j = 0; j < g->n; j++) {
            float v = acc[i * g->n + j];
            if (g->bias)
                v += (float)get(g->bias, g->bias_dtype, j);
            if (g->residual)
                v += (float)get(g->residual, g->residual_dtype, i * g->residual_ld + j);
            if (g->accumulate)
                v += (float)get(g->c, g->c_dtype, i * g->c_ld + j);
            put(g->c, g->c_dtype, i * g->c_ld + j, (double)v);
        }
}

static void check_epilogue(cudaStream_t s, const struct epilogue *e, enum ps_dtype t)
{
    size_t c_ld = e->n + e->c_gap, r_ld = e->n + e->residual_gap;
    enum ps_dtype bt = e->bias ? (enum ps_dtype)(e->bias - 1) : PS_DTYPE_F32;
    enum ps_dtype rt = e->residual ? (enum ps_dtype)(e->residual - 1) : PS_DTYPE_F32;
    struct twin acc = twin_make(s, PS_DTYPE_F32, e->m * e->n, e->off, 1, 1);
    struct twin bias = twin_make(s, bt, e->n, e->off, 1, 2);
    struct twin residual = twin_make(s, rt, e->m * r_ld - e->residual_gap, e->off, 1, 3);
    struct twin c = twin_make(s, t, e->m * c_ld - e->c_gap, e->off, 1, 4);
    struct ps_gemm_args cpu = {.m = e->m,
                               .n = e->n,
                               .bias_dtype = bt,
                               .residual_ld = r_ld,
                               .residual_dtype = rt,
                               .c_ld = c_ld,
                               .c_dtype = t,
                               .accumulate = e->accumulate};
    struct ps_gemm_args gpu = cpu;
    cpu.c = c.cpu.data, gpu.c = c.gpu.data;
    if (e->bias)
        cpu.bias = bias.cpu.data, gpu.bias = bias.gpu.data;
    if (e->residual)
        cpu.residual = residual.cpu.data, gpu.residual = residual.gpu.data;
    finish_on_cpu(&cpu, (const float *)(const void *)acc.cpu.data);
    assert_int_equal(ps_gemm_epilogue_cuda(s, &gpu, (const float *)(const void *)acc.gpu.data), 0);
    twin_check_bits(s, &c, "c");
    twin_free(s, &acc);
    twin_free(s, &bias);
    twin_free(s, &residual);
    twin_free(s, &c);
}

static void gemm_epilogue_rounds_once(void **state)
{
    static const struct epilogue cases[] = {
        {1, 1, 0, 0, 0, 0, 0, 0},    {3, 7, 1, 2, 0, 1, 1, 0},    {5, 64, 0, 0, 0, 2, 2, 0},
        {5, 64, 8, 8, 0, 3, 1, 0},   {4, 63, 0, 0, 1, 2, 2, 0},   {2, 1030, 2, 0, 0, 0, 1, 0},
        {9, 256, 0, 64, 0, 3, 0, 0}, {3, 2056, 0, 0, 0, 1, 2, 0}, {7, 12, 4, 0, 0, 0, 2, 0},
        {130, 20, 0, 4, 2, 2, 1, 0},
    };
    for (size_t k = 0; k < 10; k++) {
        FOR_EACH_TYPE(t)
        {
            check_epilogue(*state, &cases[k], t);
        }
        struct epilogue more = cases[k];
        more.accumulate = 1;
        check_epilogue(*state, &more, PS_DTYPE_F32);
    }
}

static void gemm_epilogue_adds_the_residual_that_is_c(void **state)
{
    FOR_EACH_TYPE(t)
    {
        struct twin acc = twin_make(*state, PS_DTYPE_F32, 5 * 40, 0, 1, 1);
        struct twin c = twin_make(*state, t, 5 * 48, 0, 1, 2);
        struct ps_gemm_args cpu = {
            .m = 5, .n = 40, .residual_ld = 48, .residual_dtype = t, .c_ld = 48, .c_dtype = t};
        struct ps_gemm_args gpu = cpu;
        cpu.residual = cpu.c = c.cpu.data;
        gpu.residual = gpu.c = c.gpu.data;
        finish_on_cpu(&cpu, f32(acc.cpu.data));
        assert_int_equal(ps_gemm_epilogue_cuda(*state, &gpu, f32(acc.gpu.data)), 0);
        twin_check_bits(*state, &c, "c");
        twin_free(*state, &acc);
        twin_free(*state, &c);
    }
    struct ps_gemm_args bad = {.m = 1, .n = 1, .c_dtype = PS_DTYPE_BF16, .accumulate = 1};
    assert_int_equal(ps_gemm_epilogue_cuda(*state, &bad, NULL), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convert_rounds_as_the_cpu),
        cmocka_unit_test(convert_refuses_integers_and_allows_itself),
        cmocka_unit_test(round_bf16_is_there_and_back),
        cmocka_unit_test(add_f32_adds_each_element_once),
        cmocka_unit_test(gather_and_scatter_move_rows),
        cmocka_unit_test(dropout_gives_the_bits_of_the_cpu),
        cmocka_unit_test(dropout_keeps_the_number_that_is_p),
        cmocka_unit_test(dropout_of_rows_is_that_of_the_dense_tensor),
        cmocka_unit_test(column_sum_gives_the_bits_of_the_cpu),
        cmocka_unit_test(square_sum_gives_the_bits_of_the_cpu),
        cmocka_unit_test(nan_and_inf_reach_the_sums),
        cmocka_unit_test(sum_f64_adds_in_ascending_order),
        cmocka_unit_test(gemm_epilogue_rounds_once),
        cmocka_unit_test(gemm_epilogue_adds_the_residual_that_is_c),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
