/* RMSNorm on the device against the fp64 reference. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/rmsnorm.h"
#include "tests/cuda/cuda_check.h"

struct shape {
    size_t n_tok, rows_per_tok, n, gap, off;
};

/* Warp rows (n <= 1024) and block rows; one off a chunk, a warp's and a block's share; 63, 64, 65
 * and more rows for the partial sums; heads; rows aligned and not. */
static const struct shape shapes[] = {
    {1, 1, 1, 0, 0},    {3, 1, 2, 5, 0},    {2, 1, 15, 0, 0},    {64, 1, 16, 0, 0},
    {65, 1, 17, 8, 1},  {63, 3, 64, 0, 0},  {7, 2, 64, 16, 0},   {5, 4, 80, 8, 0},
    {9, 3, 63, 5, 0},   {130, 1, 65, 7, 2}, {3, 1, 256, 0, 0},   {3, 1, 257, 7, 0},
    {2, 1, 1023, 1, 0}, {9, 1, 1024, 0, 0}, {2, 1, 1025, 7, 0},  {3, 1, 2048, 8, 0},
    {3, 1, 2048, 8, 3}, {2, 1, 2049, 0, 0}, {2, 1, 8191, 1, 0},  {1200, 1, 40, 0, 0},
    {1, 1, 4096, 0, 0}, {2, 2, 1032, 0, 0}, {300, 4, 16, 16, 0}, {4, 2, 60, 8, 0},
    {3, 2, 63, 2, 0},
};
#define SHAPES (sizeof shapes / sizeof *shapes)

static const enum ps_dtype weight_types[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};

struct fixture {
    struct ps_rmsnorm_args cpu, gpu;
    struct twin x, w, y, rstd, dy, dx, add, dw;
    struct device_buffer work;
    size_t rows, n, ld;
};

static void *f32(void *p)
{
    return p;
}

static void fixture_make(cudaStream_t s, struct fixture *f, struct shape p, enum ps_dtype t,
                         enum ps_dtype wt)
{
    size_t rows = p.n_tok * p.rows_per_tok, used = p.rows_per_tok * p.n, ld = used + p.gap;
    size_t count = p.n_tok * ld - p.gap;
    *f = (struct fixture){.x = twin_make(s, t, count, p.off, 1.5, 1),
                          .w = twin_make(s, wt, p.n, p.off, 1, 2),
                          .y = twin_make(s, t, count, p.off, 0, 0),
                          .rstd = twin_make(s, PS_DTYPE_F32, rows, p.off, 0, 0),
                          .dy = twin_make(s, t, count, p.off, 0.7, 3),
                          .dx = twin_make(s, t, count, p.off, 0, 0),
                          .add = twin_make(s, t, count, p.off, 0.5, 4),
                          .dw = twin_make(s, PS_DTYPE_F32, p.n, p.off, 1, 5),
                          .work = device_make(s, ps_rmsnorm_workspace_bytes(rows, p.n), 0, NULL),
                          .rows = rows,
                          .n = used,
                          .ld = ld};
    f->cpu = (struct ps_rmsnorm_args){.n_tok = p.n_tok,
                                      .rows_per_tok = p.rows_per_tok,
                                      .n = p.n,
                                      .eps = 1e-5f,
                                      .dtype = t,
                                      .weight_dtype = wt,
                                      .x_ld = ld,
                                      .y_ld = ld,
                                      .dy_ld = ld,
                                      .dx_ld = ld,
                                      .dx_add_ld = ld};
    f->gpu = f->cpu;
    f->cpu.x = f->x.cpu.data, f->gpu.x = f->x.gpu.data;
    f->cpu.weight = f->w.cpu.data, f->gpu.weight = f->w.gpu.data;
    f->cpu.y = f->y.cpu.data, f->gpu.y = f->y.gpu.data;
    f->cpu.rstd = f32(f->rstd.cpu.data), f->gpu.rstd = f32(f->rstd.gpu.data);
    f->cpu.dy = f->dy.cpu.data, f->gpu.dy = f->dy.gpu.data;
    f->cpu.dx = f->dx.cpu.data, f->gpu.dx = f->dx.gpu.data;
    f->cpu.dx_add = f->add.cpu.data, f->gpu.dx_add = f->add.gpu.data;
    f->cpu.dweight = f32(f->dw.cpu.data), f->gpu.dweight = f32(f->dw.gpu.data);
}

static void fixture_free(cudaStream_t s, struct fixture *f)
{
    twin_free(s, &f->x);
    twin_free(s, &f->w);
    twin_free(s, &f->y);
    twin_free(s, &f->rstd);
    twin_free(s, &f->dy);
    twin_free(s, &f->dx);
    twin_free(s, &f->add);
    twin_free(s, &f->dw);
    device_free(s, &f->work);
}

/* The reference's rstd on both sides, as backward reads it. */
static void give_rstd(cudaStream_t s, struct fixture *f)
{
    ps_rmsnorm_forward_reference(&f->cpu);
    twin_upload(s, &f->rstd);
    memset(f->y.cpu.data, GUARD_BYTE, f->y.cpu.bytes);
}

/* fp32 sums of up to 8191 terms in 32 or 256 lanes err by about 2^-24 times the root of a lane's
 * length; 2e-6 has room. bf16 outputs may round the other way. */
static double rtol_of(enum ps_dtype t)
{
    return t == PS_DTYPE_F32 ? 2e-6 : spacing(t);
}

static void forward_matches_reference(void **state)
{
    for (size_t i = 0; i < SHAPES * 3; i++) {
        FOR_EACH_TYPE(t)
        {
            struct fixture f;
            fixture_make(*state, &f, shapes[i / 3], t, weight_types[i % 3]);
            ps_rmsnorm_forward_reference(&f.cpu);
            assert_int_equal(ps_rmsnorm_forward_cuda(*state, &f.gpu), 0);
            twin_check_rows(*state, &f.y, "y", f.n, f.ld, 1e-6, rtol_of(t));
            twin_check(*state, &f.rstd, "rstd", 0, 1e-6);
            fixture_free(*state, &f);
        }
    }
}

static void forward_in_place_and_without_rstd(void **state)
{
    for (size_t i = 0; i < SHAPES; i++) {
        FOR_EACH_TYPE(t)
        {
            struct fixture f;
            fixture_make(*state, &f, shapes[i], t, PS_DTYPE_F32);
            f.cpu.y = f.x.cpu.data;
            f.gpu.y = f.x.gpu.data;
            f.gpu.rstd = NULL;
            ps_rmsnorm_forward_reference(&f.cpu);
            assert_int_equal(ps_rmsnorm_forward_cuda(*state, &f.gpu), 0);
            twin_check_rows(*state, &f.x, "y", f.n, f.ld, 1e-6, rtol_of(t));
            fixture_free(*state, &f);
        }
    }
}

/* dweight: `rows` fp32 additions of values of size 1. */
static void check_backward(cudaStream_t s, struct fixture *f, struct twin *dx)
{
    twin_check_rows(s, dx, "dx", f->n, f->ld, 4e-6, rtol_of(dx->type));
    twin_check(s, &f->dw, "dweight", 1e-6 * (double)f->rows + 1e-6, 2e-6);
}

static void backward_matches_reference(void **state)
{
    for (size_t i = 0; i < SHAPES * 3; i++) {
        FOR_EACH_TYPE(t)
        {
            struct fixture f;
            fixture_make(*state, &f, shapes[i / 3], t, weight_types[i % 3]);
            give_rstd(*state, &f);
            f.cpu.accumulate = f.gpu.accumulate = i % 2;
            if (i % 5 == 1)
                f.cpu.dx_add = f.gpu.dx_add = NULL;
            ps_rmsnorm_backward_reference(&f.cpu);
            assert_int_equal(ps_rmsnorm_backward_cuda(*state, &f.gpu, f.work.data), 0);
            check_backward(*state, &f, &f.dx);
            fixture_free(*state, &f);
        }
    }
}

static void backward_overwrites_dy_or_the_residual(void **state)
{
    for (size_t i = 0; i < SHAPES * 2; i++) {
        FOR_EACH_TYPE(t)
        {
            struct fixture f;
            fixture_make(*state, &f, shapes[i / 2], t, PS_DTYPE_BF16);
            give_rstd(*state, &f);
            struct twin *dx = i % 2 ? &f.dy : &f.add;
            f.cpu.dx = dx->cpu.data;
            f.gpu.dx = dx->gpu.data;
            ps_rmsnorm_backward_reference(&f.cpu);
            assert_int_equal(ps_rmsnorm_backward_cuda(*state, &f.gpu, f.work.data), 0);
            check_backward(*state, &f, dx);
            fixture_free(*state, &f);
        }
    }
}

static void backward_without_dweight_needs_no_workspace(void **state)
{
    struct fixture f;
    fixture_make(*state, &f, (struct shape){70, 1, 96, 0, 0}, PS_DTYPE_BF16, PS_DTYPE_BF16);
    give_rstd(*state, &f);
    ps_rmsnorm_backward_reference(&f.cpu);
    f.gpu.dweight = NULL;
    assert_int_equal(ps_rmsnorm_backward_cuda(*state, &f.gpu, NULL), 0);
    twin_check(*state, &f.dx, "dx", 4e-6, rtol_of(PS_DTYPE_BF16));
    fixture_free(*state, &f);
}

/* y, rstd, dx and dweight, one after the other; the caller frees. */
static unsigned char *run_all(cudaStream_t s, struct shape p, enum ps_dtype t, size_t *bytes)
{
    struct fixture f;
    fixture_make(s, &f, p, t, PS_DTYPE_BF16);
    assert_int_equal(ps_rmsnorm_forward_cuda(s, &f.gpu), 0);
    assert_int_equal(ps_rmsnorm_backward_cuda(s, &f.gpu, f.work.data), 0);
    struct twin *out[] = {&f.y, &f.rstd, &f.dx, &f.dw};
    unsigned char *all = malloc(f.y.gpu.bytes + f.rstd.gpu.bytes + f.dx.gpu.bytes + f.dw.gpu.bytes);
    assert_non_null(all);
    *bytes = 0;
    for (size_t i = 0; i < 4; i++) {
        memcpy(all + *bytes, device_get(s, &out[i]->gpu), out[i]->gpu.bytes);
        *bytes += out[i]->gpu.bytes;
    }
    fixture_free(s, &f);
    return all;
}

static void bits_do_not_depend_on_alignment_or_run(void **state)
{
    static const struct shape some[] = {{70, 1, 96, 0, 0}, {3, 1, 2048, 0, 0}, {20, 4, 64, 0, 0}};
    for (size_t i = 0; i < 3; i++) {
        FOR_EACH_TYPE(t)
        {
            size_t bytes, again_bytes;
            struct shape p = some[i];
            unsigned char *first = run_all(*state, p, t, &bytes);
            for (p.off = 0; p.off < 3; p.off++) {
                unsigned char *again = run_all(*state, p, t, &again_bytes);
                assert_int_equal(again_bytes, bytes);
                assert_memory_equal(again, first, bytes);
                free(again);
            }
            free(first);
        }
    }
}

static void a_row_does_not_depend_on_the_others(void **state)
{
    struct fixture f;
    fixture_make(*state, &f, (struct shape){37, 1, 72, 0, 0}, PS_DTYPE_BF16, PS_DTYPE_F32);
    f.gpu.dweight = NULL;
    assert_int_equal(ps_rmsnorm_forward_cuda(*state, &f.gpu), 0);
    assert_int_equal(ps_rmsnorm_backward_cuda(*state, &f.gpu, NULL), 0);
    unsigned char *y = host_copy(device_get(*state, &f.y.gpu), f.y.gpu.bytes);
    unsigned char *dx = host_copy(device_get(*state, &f.dx.gpu), f.dx.gpu.bytes);
    for (size_t r = 0; r < 37; r++) {
        struct ps_rmsnorm_args one = f.gpu;
        size_t at = r * 72 * 2;
        one.n_tok = 1;
        one.x = f.x.gpu.data + at;
        one.y = f.y.gpu.data + at;
        one.dy = f.dy.gpu.data + at;
        one.dx = f.dx.gpu.data + at;
        one.dx_add = f.add.gpu.data + at;
        one.rstd = f.gpu.rstd + r;
        assert_int_equal(ps_rmsnorm_forward_cuda(*state, &one), 0);
        assert_int_equal(ps_rmsnorm_backward_cuda(*state, &one, NULL), 0);
    }
    assert_memory_equal(device_get(*state, &f.y.gpu), y, f.y.gpu.bytes);
    assert_memory_equal(device_get(*state, &f.dx.gpu), dx, f.dx.gpu.bytes);
    free(y);
    free(dx);
    fixture_free(*state, &f);
}

static void nan_and_inf_stay_in_their_row(void **state)
{
    static const double odd[] = {NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < 6; k++) {
        FOR_EACH_TYPE(t)
        {
            size_t n = k % 2 ? 1100 : 72;
            struct fixture f;
            fixture_make(*state, &f, (struct shape){5, 1, n, 0, 0}, t, PS_DTYPE_F32);
            put(f.x.cpu.data, t, 2 * n + n - 1, odd[k / 2]);
            twin_upload(*state, &f.x);
            f.cpu.dweight = f.gpu.dweight = NULL;
            ps_rmsnorm_forward_reference(&f.cpu);
            assert_int_equal(ps_rmsnorm_forward_cuda(*state, &f.gpu), 0);
            twin_check(*state, &f.y, "y", 1e-6, rtol_of(t));
            ps_rmsnorm_backward_reference(&f.cpu);
            assert_int_equal(ps_rmsnorm_backward_cuda(*state, &f.gpu, NULL), 0);
            twin_check(*state, &f.dx, "dx", 4e-6, rtol_of(t));
            fixture_free(*state, &f);
        }
    }
}

static void refuses_what_it_does_not_take(void **state)
{
    struct ps_rmsnorm_args a = {.n_tok = 1, .rows_per_tok = 1, .n = 8, .dtype = PS_DTYPE_F16};
    assert_int_equal(ps_rmsnorm_forward_cuda(*state, &a), -EINVAL);
    a.dtype = PS_DTYPE_F32;
    a.weight_dtype = PS_DTYPE_I32;
    assert_int_equal(ps_rmsnorm_backward_cuda(*state, &a, NULL), -EINVAL);
    a.weight_dtype = PS_DTYPE_F32;
    a.n_tok = 0;
    assert_int_equal(ps_rmsnorm_forward_cuda(*state, &a), 0);
    assert_int_equal(ps_rmsnorm_backward_cuda(*state, &a, NULL), 0);
    a.n = 0;
    assert_int_equal(ps_rmsnorm_forward_cuda(*state, &a), -EINVAL);
}

static void no_rows_give_a_dweight_of_zero(void **state)
{
    struct twin dw = twin_make(*state, PS_DTYPE_F32, 40, 0, 1, 1);
    struct ps_rmsnorm_args a = {.rows_per_tok = 1, .n = 40, .dweight = f32(dw.gpu.data)};
    assert_int_equal(ps_rmsnorm_backward_cuda(*state, &a, dw.gpu.data), 0);
    memset(dw.cpu.data, 0, dw.cpu.bytes);
    twin_check_bits(*state, &dw, "dweight");
    twin_free(*state, &dw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_matches_reference),
        cmocka_unit_test(forward_in_place_and_without_rstd),
        cmocka_unit_test(backward_matches_reference),
        cmocka_unit_test(backward_overwrites_dy_or_the_residual),
        cmocka_unit_test(backward_without_dweight_needs_no_workspace),
        cmocka_unit_test(bits_do_not_depend_on_alignment_or_run),
        cmocka_unit_test(a_row_does_not_depend_on_the_others),
        cmocka_unit_test(nan_and_inf_stay_in_their_row),
        cmocka_unit_test(refuses_what_it_does_not_take),
        cmocka_unit_test(no_rows_give_a_dweight_of_zero),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
