/* Scaled columns, column and matrix dots, row norms on the device against the CPU's. What has no
 * sum has the CPU's bits; sums are fp64 in another order, rounded once to fp32. */
#include <errno.h>
#include <float.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/columns.h"
#include "tests/cuda/cuda_check.h"

/* fp32 of two fp64 sums that differ in their last bits, added to a number near 1: a unit in the
 * last place of either. */
static const double SUM_ATOL = 2.5e-7, SUM_RTOL = 1.3e-7;

/* One off a chunk, a warp, a slice and a block; off: elements past an aligned address. */
static const struct shape {
    size_t rows, n, off;
} shapes[] = {
    {1, 1, 0},   {3, 7, 0},   {2, 8, 0},   {15, 31, 1}, {16, 32, 0},  {17, 33, 0},  {64, 64, 0},
    {65, 65, 2}, {1, 255, 0}, {5, 256, 0}, {9, 257, 3}, {100, 40, 0}, {3, 2050, 0}, {300, 5, 1},
};
#define SHAPES (sizeof shapes / sizeof *shapes)

static float *f32(void *p)
{
    return p;
}

/* which: bit 0 bias, bit 1 residual, bit 2 the residual is y, bit 3 x is y. */
static void check_scale(cudaStream_t s, const struct shape *p, enum ps_dtype t,
                        enum ps_dtype bias_type, int which)
{
    struct twin x = twin_make(s, t, p->rows * p->n, p->off, 1, 1);
    struct twin residual = twin_make(s, t, p->rows * p->n, p->off, 1, 2);
    struct twin y = twin_make(s, t, p->rows * p->n, p->off, 1, 3);
    struct twin scale = twin_make(s, PS_DTYPE_F32, p->n, p->off, 1, 4);
    struct twin bias = twin_make(s, bias_type, p->n, p->off, 1, 5);
    struct ps_scale_columns_args cpu = {.n_tok = p->rows,
                                        .n = p->n,
                                        .dtype = t,
                                        .y = y.cpu.data,
                                        .x = which & 8 ? y.cpu.data : x.cpu.data,
                                        .scale = f32(scale.cpu.data),
                                        .bias_dtype = bias_type};
    struct ps_scale_columns_args gpu = cpu;
    gpu.y = y.gpu.data;
    gpu.x = which & 8 ? y.gpu.data : x.gpu.data;
    gpu.scale = f32(scale.gpu.data);
    if (which & 1)
        cpu.bias = bias.cpu.data, gpu.bias = bias.gpu.data;
    if (which & 4)
        cpu.residual = y.cpu.data, gpu.residual = y.gpu.data;
    else if (which & 2)
        cpu.residual = residual.cpu.data, gpu.residual = residual.gpu.data;
    ps_scale_columns(NULL, &cpu);
    assert_int_equal(ps_scale_columns_cuda(s, &gpu), 0);
    twin_check_bits(s, &y, "y");
    twin_free(s, &x);
    twin_free(s, &residual);
    twin_free(s, &y);
    twin_free(s, &scale);
    twin_free(s, &bias);
}

static void scaled_columns_have_the_bits_of_the_cpu(void **state)
{
    static const enum ps_dtype types[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};
    for (size_t i = 0; i < SHAPES; i++) {
        FOR_EACH_TYPE(t)
        {
            for (int which = 0; which < 16; which += 1 + (int)(i % 3))
                check_scale(*state, &shapes[i], t, types[(i + (size_t)which) % 3], which);
        }
    }
}

static void column_dots_match_the_cpu(void **state)
{
    for (size_t k = 0; k < SHAPES * 4; k++) {
        FOR_EACH_TYPE(t)
        {
            const struct shape *p = &shapes[k / 4];
            const int accumulate = (int)(k & 1), divide = (int)(k >> 1 & 1);
            struct twin a = twin_make(*state, t, p->rows * p->n, p->off, 1, 1);
            struct twin b = twin_make(*state, t, p->rows * p->n, p->off, 1, 2);
            struct twin divisor = twin_make(*state, PS_DTYPE_F32, p->n, p->off, 1, 3);
            struct twin out = twin_make(*state, PS_DTYPE_F32, p->n, p->off, 1, 4);
            for (size_t j = 0; j < p->n; j++)
                f32(divisor.cpu.data)[j] = 1.5f + (float)(j % 7);
            twin_upload(*state, &divisor);
            ps_column_dot(NULL, f32(out.cpu.data), a.cpu.data, b.cpu.data, t,
                          divide ? f32(divisor.cpu.data) : NULL, p->rows, p->n, accumulate);
            assert_int_equal(ps_column_dot_cuda(*state, f32(out.gpu.data), a.gpu.data, b.gpu.data,
                                                t, divide ? f32(divisor.gpu.data) : NULL, p->rows,
                                                p->n, accumulate),
                             0);
            twin_check(*state, &out, "out", SUM_ATOL, SUM_RTOL);
            twin_free(*state, &a);
            twin_free(*state, &b);
            twin_free(*state, &divisor);
            twin_free(*state, &out);
        }
    }
}

static void no_rows_give_zeros_or_leave_what_is_there(void **state)
{
    struct twin out = twin_make(*state, PS_DTYPE_F32, 40, 0, 1, 1);
    assert_int_equal(
        ps_column_dot_cuda(*state, f32(out.gpu.data), NULL, NULL, PS_DTYPE_F32, NULL, 0, 40, 1), 0);
    twin_check_bits(*state, &out, "kept");
    memset(out.cpu.data, 0, 40 * sizeof(float));
    assert_int_equal(
        ps_column_dot_cuda(*state, f32(out.gpu.data), NULL, NULL, PS_DTYPE_F32, NULL, 0, 40, 0), 0);
    twin_check_bits(*state, &out, "zeros");
    twin_free(*state, &out);
}

static void scaled_matrices_have_the_bits_of_the_cpu(void **state)
{
    for (size_t i = 0; i < SHAPES; i++) {
        const struct shape *p = &shapes[i];
        struct twin x = twin_make(*state, PS_DTYPE_F32, p->rows * p->n, p->off, 1, 1);
        struct twin y = twin_make(*state, PS_DTYPE_F32, p->rows * p->n, p->off, 0, 0);
        struct twin row = twin_make(*state, PS_DTYPE_F32, p->rows, p->off, 1, 2);
        struct twin col = twin_make(*state, PS_DTYPE_F32, p->n, p->off, 1, 3);
        ps_scale_matrix(NULL, f32(y.cpu.data), f32(x.cpu.data), f32(row.cpu.data),
                        f32(col.cpu.data), p->rows, p->n);
        assert_int_equal(ps_scale_matrix_cuda(*state, f32(y.gpu.data), f32(x.gpu.data),
                                              f32(row.gpu.data), f32(col.gpu.data), p->rows, p->n),
                         0);
        twin_check_bits(*state, &y, "y");
        twin_free(*state, &x);
        twin_free(*state, &y);
        twin_free(*state, &row);
        twin_free(*state, &col);
    }
}

static void matrix_dots_match_the_cpu(void **state)
{
    for (size_t i = 0; i < SHAPES * 2; i++) {
        const struct shape *p = &shapes[i / 2];
        const size_t sizes[] = {p->rows * p->n, p->rows * p->n, p->rows, p->n, p->rows, p->n};
        struct twin t[6]; /* g, b, row, col, row_out, col_out */
        float *at[2][6];
        for (int k = 0; k < 6; k++) {
            t[k] = twin_make(*state, PS_DTYPE_F32, sizes[k], p->off, 1, (uint64_t)k + 1);
            at[0][k] = f32(t[k].cpu.data);
            at[1][k] = f32(t[k].gpu.data);
        }
        for (int side = 0; side < 2; side++) {
            float *const *f = at[side];
            struct ps_matrix_dots_args a = {p->rows, p->n, f[0], f[1],        f[2],
                                            f[3],    f[4], f[5], (int)(i % 2)};
            if (side == 0)
                ps_matrix_dots(NULL, &a);
            else
                assert_int_equal(ps_matrix_dots_cuda(*state, &a), 0);
        }
        twin_check(*state, &t[4], "row_out", SUM_ATOL, SUM_RTOL);
        twin_check(*state, &t[5], "col_out", SUM_ATOL, SUM_RTOL);
        for (int k = 0; k < 6; k++)
            twin_free(*state, &t[k]);
    }
}

/* Also an adapter that cancels the weight: the norm has a floor. */
static void row_norms_match_the_cpu(void **state)
{
    static const enum ps_dtype types[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};
    static const size_t ranks[] = {1, 8, 33};
    for (size_t i = 0; i < SHAPES * 3; i++) {
        const struct shape *p = &shapes[i / 3];
        const enum ps_dtype type = types[i % 3];
        const size_t r = ranks[i / 3 % 3], low = p->rows * r;
        struct twin w = twin_make(*state, type, p->rows * p->n, p->off, 1, 1);
        const size_t sizes[] = {low, low, low, p->rows, p->rows, p->rows};
        struct twin t[6]; /* b, q, bg, m, n, c */
        float *at[2][6];
        for (int k = 0; k < 6; k++) {
            t[k] =
                twin_make(*state, PS_DTYPE_F32, sizes[k], p->off, k < 3 ? 0.1 : 1, (uint64_t)k + 2);
            at[0][k] = f32(t[k].cpu.data);
            at[1][k] = f32(t[k].gpu.data);
        }
        put(w.cpu.data, type, 0, 0.0); /* row 0 of one column: 0 + s b (2 q + s bg) < 0 */
        f32(t[0].cpu.data)[0] = 1, f32(t[1].cpu.data)[0] = -5, f32(t[2].cpu.data)[0] = 0;
        twin_upload(*state, &w);
        for (int k = 0; k < 3; k++)
            twin_upload(*state, &t[k]);
        for (int side = 0; side < 2; side++) {
            float *const *f = at[side];
            struct ps_row_norms_args a = {.out = p->rows,
                                          .in = p->n,
                                          .r = r,
                                          .w = side ? w.gpu.data : w.cpu.data,
                                          .w_dtype = type,
                                          .b = f[0],
                                          .q = f[1],
                                          .bg = f[2],
                                          .s = 0.5f,
                                          .m = f[3],
                                          .n = f[4],
                                          .c = i % 2 ? f[5] : NULL};
            if (side == 0)
                ps_row_norms(NULL, &a);
            else
                assert_int_equal(ps_row_norms_cuda(*state, &a), 0);
        }
        twin_check(*state, &t[4], "n", 0, SUM_RTOL);
        twin_check(*state, &t[5], "c", 0, 2.5e-7);
        twin_free(*state, &w);
        for (int k = 0; k < 6; k++)
            twin_free(*state, &t[k]);
    }
}

static void nan_reaches_its_row_and_column_alone(void **state)
{
    enum { ROWS = 40, N = 70 };
    struct twin a = twin_make(*state, PS_DTYPE_BF16, ROWS * N, 0, 1, 1);
    struct twin out = twin_make(*state, PS_DTYPE_F32, N, 0, 0, 0);
    struct twin q = twin_make(*state, PS_DTYPE_F32, ROWS, 0, 1, 2);
    put(a.cpu.data, PS_DTYPE_BF16, 7 * N + 66, NAN);
    twin_upload(*state, &a);
    assert_int_equal(ps_column_dot_cuda(*state, f32(out.gpu.data), a.gpu.data, a.gpu.data,
                                        PS_DTYPE_BF16, NULL, ROWS, N, 0),
                     0);
    const float *got = device_get(*state, &out.gpu);
    for (int j = 0; j < N; j++)
        assert_true(isnan(got[j]) == (j == 66));
    struct ps_row_norms_args r = {.out = ROWS,
                                  .in = N,
                                  .r = 1,
                                  .w = a.gpu.data,
                                  .w_dtype = PS_DTYPE_BF16,
                                  .b = f32(q.gpu.data),
                                  .q = f32(q.gpu.data),
                                  .bg = f32(q.gpu.data),
                                  .n = f32(out.gpu.data)};
    assert_int_equal(ps_row_norms_cuda(*state, &r), 0);
    got = device_get(*state, &out.gpu);
    for (int i = 0; i < ROWS; i++)
        assert_true(isnan(got[i]) == (i == 7));
    twin_free(*state, &a);
    twin_free(*state, &out);
    twin_free(*state, &q);
}

static void refuses_other_types(void **state)
{
    struct ps_scale_columns_args s = {.n_tok = 1, .n = 1, .dtype = PS_DTYPE_F16};
    struct ps_row_norms_args r = {.out = 1, .w_dtype = PS_DTYPE_I32};
    assert_int_equal(ps_scale_columns_cuda(*state, &s), -EINVAL);
    assert_int_equal(ps_row_norms_cuda(*state, &r), -EINVAL);
    assert_int_equal(ps_column_dot_cuda(*state, NULL, NULL, NULL, PS_DTYPE_F16, NULL, 1, 1, 0),
                     -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scaled_columns_have_the_bits_of_the_cpu),
        cmocka_unit_test(column_dots_match_the_cpu),
        cmocka_unit_test(no_rows_give_zeros_or_leave_what_is_there),
        cmocka_unit_test(scaled_matrices_have_the_bits_of_the_cpu),
        cmocka_unit_test(matrix_dots_match_the_cpu),
        cmocka_unit_test(row_norms_match_the_cpu),
        cmocka_unit_test(nan_reaches_its_row_and_column_alone),
        cmocka_unit_test(refuses_other_types),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
