/* SwiGLU on the device against the CPU's. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/swiglu.h"
#include "tests/cuda/cuda_check.h"

struct shape {
    size_t n_tok, n, gap, off; /* elements between rows, elements past an aligned address */
};

/* 1, odd, one off a chunk and a block of 256 threads; rows aligned and not. */
static const struct shape shapes[] = {
    {1, 1, 0, 0},    {3, 7, 0, 0},  {2, 8, 0, 0},    {5, 9, 7, 0},     {4, 64, 8, 0},
    {4, 64, 8, 1},   {3, 63, 1, 0}, {1, 2047, 1, 0}, {1, 2049, 7, 3},  {7, 256, 0, 0},
    {17, 130, 6, 0}, {2, 33, 0, 0}, {257, 16, 0, 0}, {40, 1000, 0, 0},
};
#define SHAPES (sizeof shapes / sizeof *shapes)

/* Relative error of the toolkit's expf and the CPU's polynomial: 2 ulp each; bf16 results may round
 * the other way. */
static double rtol_of(enum ps_dtype t)
{
    return t == PS_DTYPE_F32 ? 2e-6 : spacing(t);
}

struct fixture {
    struct twin gate, up, dy, a, b; /* a, b: outputs */
    size_t ld;
};

static struct fixture fixture_make(cudaStream_t s, struct shape p, enum ps_dtype t)
{
    size_t ld = p.n + p.gap, count = p.n_tok * ld - p.gap;
    return (struct fixture){.gate = twin_make(s, t, count, p.off, 3, 1),
                            .up = twin_make(s, t, count, p.off, 1, 2),
                            .dy = twin_make(s, t, count, p.off, 1, 3),
                            .a = twin_make(s, t, count, p.off, 0, 0),
                            .b = twin_make(s, t, count, p.off, 0, 0),
                            .ld = ld};
}

static void fixture_free(cudaStream_t s, struct fixture *f)
{
    twin_free(s, &f->gate);
    twin_free(s, &f->up);
    twin_free(s, &f->dy);
    twin_free(s, &f->a);
    twin_free(s, &f->b);
}

static void forward_both(cudaStream_t s, struct fixture *f, size_t n_tok, size_t n)
{
    enum ps_dtype t = f->gate.type;
    ps_swiglu_forward(NULL, PS_ISA_PORTABLE, t, n_tok, n, f->gate.cpu.data, f->ld, f->up.cpu.data,
                      f->ld, f->a.cpu.data, f->ld);
    assert_int_equal(ps_swiglu_forward_cuda(s, t, n_tok, n, f->gate.gpu.data, f->ld, f->up.gpu.data,
                                            f->ld, f->a.gpu.data, f->ld),
                     0);
}

static void backward_both(cudaStream_t s, struct fixture *f, size_t n_tok, size_t n,
                          struct twin *dgate, struct twin *dup)
{
    enum ps_dtype t = f->gate.type;
    ps_swiglu_backward(NULL, PS_ISA_PORTABLE, t, n_tok, n, f->gate.cpu.data, f->ld, f->up.cpu.data,
                       f->ld, f->dy.cpu.data, f->ld, dgate->cpu.data, f->ld, dup->cpu.data, f->ld);
    assert_int_equal(ps_swiglu_backward_cuda(s, t, n_tok, n, f->gate.gpu.data, f->ld,
                                             f->up.gpu.data, f->ld, f->dy.gpu.data, f->ld,
                                             dgate->gpu.data, f->ld, dup->gpu.data, f->ld),
                     0);
}

static void forward_matches_cpu(void **state)
{
    for (size_t i = 0; i < SHAPES; i++) {
        FOR_EACH_TYPE(t)
        {
            struct fixture f = fixture_make(*state, shapes[i], t);
            forward_both(*state, &f, shapes[i].n_tok, shapes[i].n);
            twin_check_rows(*state, &f.a, "y", shapes[i].n, f.ld, 1e-6, rtol_of(t));
            fixture_free(*state, &f);
        }
    }
}

static void backward_matches_cpu(void **state)
{
    for (size_t i = 0; i < SHAPES; i++) {
        FOR_EACH_TYPE(t)
        {
            struct fixture f = fixture_make(*state, shapes[i], t);
            backward_both(*state, &f, shapes[i].n_tok, shapes[i].n, &f.a, &f.b);
            twin_check_rows(*state, &f.a, "dgate", shapes[i].n, f.ld, 2e-6, rtol_of(t));
            twin_check_rows(*state, &f.b, "dup", shapes[i].n, f.ld, 1e-6, rtol_of(t));
            fixture_free(*state, &f);
        }
    }
}

static void backward_in_place_gives_the_same_bits(void **state)
{
    for (size_t i = 0; i < SHAPES; i++) {
        FOR_EACH_TYPE(t)
        {
            struct fixture f = fixture_make(*state, shapes[i], t);
            backward_both(*state, &f, shapes[i].n_tok, shapes[i].n, &f.a, &f.b);
            size_t es = ps_dtype_size(t);
            unsigned char *apart = host_copy(device_get(*state, &f.a.gpu), f.a.gpu.bytes);
            backward_both(*state, &f, shapes[i].n_tok, shapes[i].n, &f.gate, &f.up);
            const unsigned char *got = device_get(*state, &f.gate.gpu);
            for (size_t r = 0; r < shapes[i].n_tok; r++)
                assert_memory_equal(got + r * f.ld * es, apart + r * f.ld * es, shapes[i].n * es);
            twin_check_rows(*state, &f.gate, "dgate", shapes[i].n, f.ld, 2e-6, rtol_of(t));
            twin_check_rows(*state, &f.up, "dup", shapes[i].n, f.ld, 1e-6, rtol_of(t));
            free(apart);
            fixture_free(*state, &f);
        }
    }
}

static void bits_do_not_depend_on_alignment(void **state)
{
    FOR_EACH_TYPE(t)
    {
        void *first = NULL;
        for (size_t off = 0; off < 3; off++) {
            struct fixture f = fixture_make(*state, (struct shape){5, 200, 0, off}, t);
            forward_both(*state, &f, 5, 200);
            void *y = host_copy(device_get(*state, &f.a.gpu), f.a.gpu.bytes);
            if (first)
                assert_memory_equal(y, first, f.a.gpu.bytes);
            else
                first = host_copy(y, f.a.gpu.bytes);
            free(y);
            fixture_free(*state, &f);
        }
        free(first);
    }
}

static void non_finite_values_go_where_the_cpu_sends_them(void **state)
{
    static const double odd[] = {NAN, INFINITY, -INFINITY, 0.0, -0.0, 1e30, -1e30, 88.8, -88.8, 1};
    FOR_EACH_TYPE(t)
    {
        struct fixture f = fixture_make(*state, (struct shape){1, 1000, 0, 0}, t);
        for (size_t i = 0; i < 1000; i++) {
            put(f.gate.cpu.data, t, i, odd[i % 10]);
            put(f.up.cpu.data, t, i, odd[i / 10 % 10]);
            put(f.dy.cpu.data, t, i, odd[i / 100]);
        }
        twin_upload(*state, &f.gate);
        twin_upload(*state, &f.up);
        twin_upload(*state, &f.dy);
        forward_both(*state, &f, 1, 1000);
        twin_check(*state, &f.a, "y", 1e-6, rtol_of(t));
        backward_both(*state, &f, 1, 1000, &f.a, &f.b);
        /* at |g| = 88.8 the sigmoid is subnormal or its exponential nearly overflows */
        twin_check(*state, &f.a, "dgate", 1e-5, 4 * rtol_of(t));
        twin_check(*state, &f.b, "dup", 1e-5, 4 * rtol_of(t));
        fixture_free(*state, &f);
    }
}

static void refuses_other_types_and_takes_nothing(void **state)
{
    assert_int_equal(ps_swiglu_forward_cuda(*state, PS_DTYPE_F16, 1, 1, NULL, 1, NULL, 1, NULL, 1),
                     -EINVAL);
    assert_int_equal(ps_swiglu_forward_cuda(*state, PS_DTYPE_F32, 0, 5, NULL, 5, NULL, 5, NULL, 5),
                     0);
    assert_int_equal(ps_swiglu_backward_cuda(*state, PS_DTYPE_BF16, 3, 0, NULL, 1, NULL, 1, NULL, 1,
                                             NULL, 1, NULL, 1),
                     0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_matches_cpu),
        cmocka_unit_test(backward_matches_cpu),
        cmocka_unit_test(backward_in_place_gives_the_same_bits),
        cmocka_unit_test(bits_do_not_depend_on_alignment),
        cmocka_unit_test(non_finite_values_go_where_the_cpu_sends_them),
        cmocka_unit_test(refuses_other_types_and_takes_nothing),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
