/* Rotary embedding on the device against the CPU's. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/rope.h"
#include "tests/cuda/cuda_check.h"

#define POSITIONS 100

struct shape {
    size_t n_tok, n_head, head_dim, gap, off;
};

/* The head sizes of attention and odd halves; one off a block of 256 threads. */
static const struct shape shapes[] = {
    {1, 1, 2, 0, 0},  {3, 2, 6, 5, 0},   {2, 3, 16, 0, 0},  {5, 2, 18, 0, 1},  {4, 4, 64, 0, 0},
    {4, 4, 64, 8, 1}, {3, 5, 80, 16, 0}, {7, 3, 96, 0, 0},  {2, 2, 128, 8, 0}, {17, 1, 256, 0, 0},
    {9, 3, 66, 3, 2}, {33, 8, 64, 0, 0}, {257, 1, 8, 0, 0}, {2, 1, 514, 0, 0},
};
#define SHAPES (sizeof shapes / sizeof *shapes)

struct fixture {
    struct twin x, table;
    struct device_buffer position;
    int32_t *pos;
    size_t ld;
};

static void fixture_make(cudaStream_t s, struct fixture *f, struct shape p, enum ps_dtype t)
{
    size_t half = p.head_dim / 2;
    f->ld = p.n_head * p.head_dim + p.gap;
    f->x = twin_make(s, t, p.n_tok * f->ld - p.gap, p.off, 1, 1);
    f->table = twin_make(s, PS_DTYPE_F32, POSITIONS * p.head_dim, 0, 0, 0);
    float *freq = malloc(half * sizeof *freq);
    f->pos = malloc(p.n_tok * sizeof *f->pos);
    assert_non_null(freq);
    assert_non_null(f->pos);
    for (size_t i = 0; i < half; i++)
        freq[i] = (float)pow(10000, -(double)i / (double)half);
    ps_rope_table((float *)(void *)f->table.cpu.data, freq, POSITIONS, half);
    twin_upload(s, &f->table);
    for (size_t i = 0; i < p.n_tok; i++)
        f->pos[i] = (int32_t)(i * 37 % POSITIONS);
    f->position = device_make(s, p.n_tok * 4, 0, f->pos);
    free(freq);
}

static void fixture_free(cudaStream_t s, struct fixture *f)
{
    twin_free(s, &f->x);
    twin_free(s, &f->table);
    device_free(s, &f->position);
    free(f->pos);
}

static void on_cpu(struct fixture *f, struct shape p, int inverse)
{
    ps_rope_apply(NULL, PS_ISA_PORTABLE, f->x.cpu.data, f->ld, f->x.type, p.n_tok, p.n_head,
                  p.head_dim, f->pos, (float *)(void *)f->table.cpu.data, inverse);
}

static void on_gpu(cudaStream_t s, struct fixture *f, struct shape p, int inverse)
{
    assert_int_equal(ps_rope_apply_cuda(s, f->x.gpu.data, f->ld, f->x.type, p.n_tok, p.n_head,
                                        p.head_dim, (int32_t *)(void *)f->position.data,
                                        (float *)(void *)f->table.gpu.data, inverse),
                     0);
}

/* Two products and a sum, which a fused operation rounds once less. */
static void both_directions_match_the_cpu(void **state)
{
    for (size_t i = 0; i < SHAPES * 2; i++) {
        FOR_EACH_TYPE(t)
        {
            struct shape p = shapes[i / 2];
            struct fixture f;
            fixture_make(*state, &f, p, t);
            on_cpu(&f, p, (int)(i % 2));
            on_gpu(*state, &f, p, (int)(i % 2));
            twin_check_rows(*state, &f.x, "x", p.n_head * p.head_dim, f.ld, 1e-6,
                            t == PS_DTYPE_F32 ? 2e-6 : spacing(t));
            fixture_free(*state, &f);
        }
    }
}

static void inverse_undoes_it(void **state)
{
    for (size_t i = 0; i < SHAPES; i++) {
        struct fixture f;
        fixture_make(*state, &f, shapes[i], PS_DTYPE_F32);
        on_gpu(*state, &f, shapes[i], 0);
        on_gpu(*state, &f, shapes[i], 1);
        twin_check_rows(*state, &f.x, "x", shapes[i].n_head * shapes[i].head_dim, f.ld, 2e-6, 2e-6);
        fixture_free(*state, &f);
    }
}

static void bits_do_not_depend_on_alignment(void **state)
{
    FOR_EACH_TYPE(t)
    {
        void *first = NULL;
        for (size_t off = 0; off < 3; off++) {
            struct shape p = {9, 3, 64, 0, off};
            struct fixture f;
            fixture_make(*state, &f, p, t);
            on_gpu(*state, &f, p, 0);
            void *x = device_get(*state, &f.x.gpu);
            if (first)
                assert_memory_equal(x, first, f.x.gpu.bytes);
            else
                first = host_copy(x, f.x.gpu.bytes);
            fixture_free(*state, &f);
        }
        free(first);
    }
}

static void nan_stays_in_its_pair(void **state)
{
    struct shape p = {3, 2, 64, 0, 0};
    FOR_EACH_TYPE(t)
    {
        struct fixture f;
        fixture_make(*state, &f, p, t);
        put(f.x.cpu.data, t, 130, NAN);
        put(f.x.cpu.data, t, 200, INFINITY);
        twin_upload(*state, &f.x);
        on_cpu(&f, p, 0);
        on_gpu(*state, &f, p, 0);
        twin_check(*state, &f.x, "x", 1e-6, t == PS_DTYPE_F32 ? 2e-6 : spacing(t));
        fixture_free(*state, &f);
    }
}

static void refuses_odd_heads_and_other_types(void **state)
{
    assert_int_equal(ps_rope_apply_cuda(*state, NULL, 7, PS_DTYPE_F32, 1, 1, 7, NULL, NULL, 0),
                     -EINVAL);
    assert_int_equal(ps_rope_apply_cuda(*state, NULL, 8, PS_DTYPE_F16, 1, 1, 8, NULL, NULL, 0),
                     -EINVAL);
    assert_int_equal(ps_rope_apply_cuda(*state, NULL, 8, PS_DTYPE_F32, 0, 1, 8, NULL, NULL, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_directions_match_the_cpu),
        cmocka_unit_test(inverse_undoes_it),
        cmocka_unit_test(bits_do_not_depend_on_alignment),
        cmocka_unit_test(nan_stays_in_its_pair),
        cmocka_unit_test(refuses_odd_heads_and_other_types),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
