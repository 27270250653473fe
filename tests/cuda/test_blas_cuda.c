/* Products of the CUDA device against ps_gemm_reference: what is told to cuBLASLt (here an emulated
 * one, column-major as its manual has it), copies of operands, tiles, the project's own epilogue.
 * On a GPU the same cases run with the real library, less what only the emulation can say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>

#include "runtime/device/cuda_blas.h"
#include "tests/cuda/cuda_check.h"
#include "tests/cuda_emu/emu_cublaslt.h"

/* The emulated library's; not there on a GPU. */
#pragma weak ps_emu_lt_get_counts
#pragma weak ps_emu_lt_fail_product

#define F PS_DTYPE_F32
#define B PS_DTYPE_BF16
#define H PS_DTYPE_F16

struct gemm_case {
    size_t m, n, k, k2;
    int trans[4]; /* a, b, a2, b2 */
    enum ps_dtype type[4], c, bias, residual;
    enum ps_gemm_math math;
    float alpha;
    int with_bias, with_residual; /* residual 2: C itself; 3: another leading dimension */
    int accumulate;
    size_t gap; /* elements between rows, and past an aligned address */
    int only;   /* 0: the gap is everyone's; 1 a, 2 b, 5 C: its alone */
};

struct fixture {
    cudaStream_t stream;
    void *workspace;
    struct ps_cuda_blas *blas;
};

static int blas_open(struct fixture *f, size_t bytes)
{
    struct ps_error err = {0};
    int ret = ps_cuda_blas_open(&f->blas, f->workspace, bytes, &err);
    if (ret)
        print_message("%s\n", err.message);
    return ret;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    void *s = NULL;
    if (!f || stream_setup(&s) ||
        cudaMalloc(&f->workspace, ps_cuda_blas_workspace_bytes(0)) != cudaSuccess)
        return -1;
    f->stream = s;
    *state = f;
    return blas_open(f, ps_cuda_blas_workspace_bytes(0));
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    ps_cuda_blas_close(f->blas);
    ps_cuda_blas_close(NULL);
    void *s = f->stream;
    if (cudaFree(f->workspace) != cudaSuccess)
        return -1;
    free(f);
    return stream_teardown(&s);
}

static size_t gap_of(const struct gemm_case *t, int who)
{
    return t->only == 0 || t->only == who ? t->gap : 0;
}

/* op(X) with r rows and c columns. */
static struct twin operand_make(struct fixture *f, const struct gemm_case *t, int which, size_t r,
                                size_t c, struct ps_gemm_mat mat[2])
{
    size_t gap = gap_of(t, which + 1);
    size_t rows = t->trans[which] ? c : r, cols = t->trans[which] ? r : c, ld = cols + gap;
    struct twin x = twin_make(f->stream, t->type[which], rows * ld, gap, 1,
                              10 + (uint64_t)which + t->m * 31 + t->n);
    mat[0] = (struct ps_gemm_mat){x.cpu.data, ld, t->type[which], t->trans[which]};
    mat[1] = (struct ps_gemm_mat){x.gpu.data, ld, t->type[which], t->trans[which]};
    return x;
}

static void check_case(struct fixture *f, const struct gemm_case *t)
{
    size_t c_gap = gap_of(t, 5), c_ld = t->n + c_gap,
           r_ld = t->with_residual == 3 ? t->n + 5 : c_ld;
    struct ps_gemm_mat a[2], b[2], a2[2] = {{0}}, b2[2] = {{0}};
    struct twin x[7] = {{0}};
    x[0] = operand_make(f, t, 0, t->m, t->k, a);
    x[1] = operand_make(f, t, 1, t->k, t->n, b);
    if (t->k2 > 0) {
        x[2] = operand_make(f, t, 2, t->m, t->k2, a2);
        x[3] = operand_make(f, t, 3, t->k2, t->n, b2);
    }
    x[4] = twin_make(f->stream, t->c, t->m * c_ld, c_gap, 1, 7);
    if (t->with_bias)
        x[5] = twin_make(f->stream, t->bias, t->n, t->gap, 1, 8);
    if (t->with_residual && t->with_residual != 2)
        x[6] = twin_make(f->stream, t->residual, t->m * r_ld, t->gap, 1, 9);
    for (int i = 0; i < 2; i++) {
        struct ps_gemm_args g = {.m = t->m,
                                 .n = t->n,
                                 .k = t->k,
                                 .k2 = t->k2,
                                 .a = a[i],
                                 .b = b[i],
                                 .a2 = a2[i],
                                 .b2 = b2[i],
                                 .alpha = t->alpha,
                                 .bias_dtype = t->bias,
                                 .residual_dtype = t->residual,
                                 .residual_ld = r_ld,
                                 .c = i ? (void *)x[4].gpu.data : x[4].cpu.data,
                                 .c_ld = c_ld,
                                 .c_dtype = t->c,
                                 .accumulate = t->accumulate,
                                 .math = t->math};
        if (t->with_bias)
            g.bias = i ? x[5].gpu.data : x[5].cpu.data;
        if (t->with_residual == 2)
            g.residual = g.c;
        else if (t->with_residual)
            g.residual = i ? x[6].gpu.data : x[6].cpu.data;
        if (i == 0)
            ps_gemm_reference(&g);
        else
            assert_int_equal(ps_cuda_gemm(f->blas, f->stream, &g), 0);
    }
    char what[128];
    snprintf(what, sizeof what, "%zux%zux%zu+%zu trans %d%d%d%d C", t->m, t->n, t->k, t->k2,
             t->trans[0], t->trans[1], t->trans[2], t->trans[3]);
    double atol = 4e-7 * (double)(t->k + t->k2) + 1e-6;
    twin_check_rows(f->stream, &x[4], what, t->n, c_ld, atol, t->c == F ? 1e-5 : spacing(t->c));
    for (int i = 0; i < 7; i++)
        twin_free(f->stream, &x[i]);
}

static void every_layout_of_operands_is_told_right(void **state)
{
    for (int trans = 0; trans < 16; trans++)
        for (size_t gap = 0; gap <= 3; gap += 3) {
            struct gemm_case t = {5,
                                  7,
                                  11,
                                  3,
                                  {trans & 1, trans >> 1 & 1, trans >> 2 & 1, trans >> 3},
                                  {F, F, F, F},
                                  F,
                                  F,
                                  F,
                                  PS_GEMM_F32,
                                  .gap = gap};
            check_case(*state, &t);
            t.k2 = 0;
            check_case(*state, &t);
            for (int i = 0; i < 4; i++)
                t.type[i] = B;
            t.math = PS_GEMM_BF16;
            t.c = B;
            check_case(*state, &t);
            t.k2 = 3;
            check_case(*state, &t);
            t.type[3] = F; /* an adapter's weight */
            check_case(*state, &t);
            t.type[0] = F; /* a gradient of logits */
            t.type[1] = H;
            check_case(*state, &t);
        }
}

/* Every operand's own address and leading dimension are promised to the library. */
static void alignment_is_each_operands_own(void **state)
{
    for (int only = 1; only <= 5; only++)
        for (int with_residual = 0; with_residual < 2; with_residual++) {
            struct gemm_case t = {
                8, 16, 24, 0, {0, 1, 0, 0}, {B, B, B, B}, B, B, B, .math = PS_GEMM_BF16};
            t.gap = 1;
            t.only = only;
            t.with_residual = with_residual;
            check_case(*state, &t);
        }
}

static void single_rows_columns_and_steps_work(void **state)
{
    const size_t shape[][4] = {{1, 1, 1, 0}, {1, 1, 1, 1}, {1, 9, 4, 1},
                               {9, 1, 4, 1}, {6, 5, 1, 0}, {130, 3, 2, 0}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        struct gemm_case t = {shape[i][0],  shape[i][1], shape[i][2], shape[i][3], {0, 1, 0, 1},
                              {B, B, B, F}, B,           F,           F,           PS_GEMM_BF16,
                              .alpha = 0.5f};
        check_case(*state, &t);
        t.c = F;
        check_case(*state, &t);
    }
}

/* Bias and residual of the output's type and of another, C itself as residual, C accumulated. */
static void what_is_added_is_added_once_and_rounded_once(void **state)
{
    const enum ps_dtype types[] = {F, B, H};
    for (size_t k2 = 0; k2 <= 4; k2 += 4)
        for (int c = 0; c < 2; c++)
            for (int with = 0; with < 16; with++)
                for (int bias = 0; bias < (with & 1 ? 3 : 1); bias++) {
                    struct gemm_case t = {6,
                                          10,
                                          12,
                                          k2,
                                          {0, 1, 0, 1},
                                          {B, B, B, B},
                                          types[c],
                                          types[bias],
                                          types[with >> 3],
                                          PS_GEMM_BF16,
                                          2.0f,
                                          with & 1,
                                          with >> 1 & 3,
                                          0,
                                          (size_t)(with & 1),
                                          0};
                    if (t.with_residual == 2)
                        t.residual = t.c;
                    check_case(*state, &t);
                    t.accumulate = t.c == F && t.with_residual != 2;
                    if (t.accumulate)
                        check_case(*state, &t);
                }
}

static void fp32_math_keeps_all_bits_of_half_types(void **state)
{
    struct gemm_case t = {9, 8, 20, 4, {0, 1, 0, 1}, {F, B, F, H}, F, F, F, .math = PS_GEMM_F32};
    check_case(*state, &t);
    t.c = B;
    check_case(*state, &t);
}

/* Scratch of 4 MiB: a product of 30 MiB of operands and accumulators in many tiles, cut in columns
 * too. */
static void what_does_not_fit_is_cut_into_tiles(void **state)
{
    struct gemm_case wide = {
        3, 3000, 1100, 0, {0, 1, 0, 0}, {B, F, B, B}, F, F, F, .math = PS_GEMM_BF16};
    check_case(*state, &wide);
    wide.trans[1] = 0;
    wide.c = B;
    wide.k2 = 2;
    wide.with_bias = 1;
    wide.bias = B;
    check_case(*state, &wide);
    struct gemm_case tall = {
        2500, 3, 1000, 0, {0, 1, 0, 1}, {F, B, B, B}, F, F, F, PS_GEMM_BF16, .with_residual = 1};
    check_case(*state, &tall);
    tall.trans[0] = 1;
    tall.accumulate = 1;
    tall.with_residual = 0;
    check_case(*state, &tall);
    struct gemm_case big = {1100,
                            1300,
                            5,
                            3,
                            {0, 1, 0, 1},
                            {B, B, B, F},
                            B,
                            B,
                            B,
                            PS_GEMM_BF16,
                            .with_bias = 1,
                            .with_residual = 2,
                            .gap = 1};
    check_case(*state, &big);
    struct gemm_case deep = {
        3, 3, 300000, 0, {0, 1, 0, 1}, {F, F, B, B}, F, F, F, .math = PS_GEMM_BF16};
    check_case(*state, &deep);
}

static void wrong_arguments_are_refused(void **state)
{
    struct fixture *f = *state;
    struct ps_cuda_blas *b = NULL;
    struct ps_error err = {0};
    struct ps_gemm_args g = {.m = 1, .n = 1, .k = 0, .c_dtype = F};
    assert_int_equal(ps_cuda_gemm(f->blas, f->stream, &g), -EINVAL);
    g = (struct ps_gemm_args){.m = 1, .n = 1, .k = 1, .c_dtype = B, .accumulate = 1};
    assert_int_equal(ps_cuda_gemm(f->blas, f->stream, &g), -EINVAL);
    /* one column of op(B) alone is over 4 MiB in bf16 */
    g = (struct ps_gemm_args){.m = 1, .n = 1, .k = 4 << 20, .c_dtype = F, .math = PS_GEMM_BF16};
    assert_int_equal(ps_cuda_gemm(f->blas, f->stream, &g), -EINVAL);
    size_t bytes = ps_cuda_blas_workspace_bytes(0);
    assert_int_equal(ps_cuda_blas_open(&b, NULL, bytes, &err), PS_ECUDA);
    assert_int_equal(ps_cuda_blas_open(&b, f->workspace, bytes - 1, &err), PS_ECUDA);
    assert_int_equal(ps_cuda_blas_open(&b, (char *)f->workspace + 16, bytes, &err), PS_ECUDA);
    assert_null(b);
}

static void the_workspace_grows_to_a_limit(void **state)
{
    (void)state;
    size_t least = ps_cuda_blas_workspace_bytes(0), most = ps_cuda_blas_workspace_bytes(SIZE_MAX);
    assert_true(ps_cuda_blas_workspace_bytes(1 << 20) >= least + (4 << 20));
    assert_true(most <= (size_t)128 << 20);
    assert_int_equal(least % 256, 0);
    assert_int_equal(ps_cuda_blas_workspace_bytes(12345) % 256, 0);
}

static struct ps_emu_lt_counts lt_counts(void)
{
    struct ps_emu_lt_counts c;
    ps_emu_lt_get_counts(&c);
    return c;
}

/* A shape, its alignment or a further addend each have an algorithm of their own, chosen once; the
 * table holds more shapes than it has slots. */
static void an_algorithm_is_chosen_once_for_a_shape(void **state)
{
    struct gemm_case t = {4, 6, 8, 0, {0, 1, 0, 0}, {B, B, B, B}, B, B, B, .math = PS_GEMM_BF16};
    if (!ps_emu_lt_get_counts)
        skip();
    check_case(*state, &t);
    uint64_t before = lt_counts().heuristics;
    check_case(*state, &t);
    check_case(*state, &t);
    assert_int_equal(lt_counts().heuristics, before);
    t.gap = 1;
    check_case(*state, &t);
    assert_int_equal(lt_counts().heuristics, before + 1);
    t.with_bias = 1;
    check_case(*state, &t);
    t.with_residual = 1;
    check_case(*state, &t);
    assert_int_equal(lt_counts().heuristics, before + 3);
    uint64_t last = lt_counts().heuristics;
    for (int only = 1; only <= 5; only += only == 2 ? 3 : 1) {
        struct gemm_case u = {
            4, 6, 8, 0, {0, 1, 0, 0}, {B, B, B, B}, B, B, B, .math = PS_GEMM_BF16};
        u.gap = 128; /* the same alignment */
        u.only = only;
        check_case(*state, &u);
        assert_int_equal(lt_counts().heuristics, ++last);
    }
    for (size_t m = 1; m <= 600; m++) {
        struct gemm_case u = {
            m, 2, 2, 0, {0, 1, 0, 0}, {B, B, B, B}, B, B, B, .math = PS_GEMM_BF16};
        check_case(*state, &u);
    }
    assert_true(lt_counts().heuristics >= before + 603);
}

static void a_product_that_fails_is_an_error_and_the_next_works(void **state)
{
    struct fixture *f = *state;
    if (!ps_emu_lt_fail_product)
        skip();
    struct twin x = twin_make(f->stream, F, 64, 0, 1, 1), y = twin_make(f->stream, F, 64, 0, 0, 0);
    struct ps_gemm_mat m = {x.gpu.data, 8, F, 0};
    struct ps_gemm_args g = {
        .m = 8, .n = 8, .k = 8, .a = m, .b = m, .c = y.gpu.data, .c_ld = 8, .c_dtype = F};
    for (int known = 0; known < 2; known++) {
        ps_emu_lt_fail_product(1);
        assert_int_equal(ps_cuda_gemm(f->blas, f->stream, &g), PS_ECUDA);
        assert_int_equal(ps_cuda_gemm(f->blas, f->stream, &g), 0);
    }
    twin_check_bits(f->stream, &x, "operand");
    twin_free(f->stream, &x);
    twin_free(f->stream, &y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_of_operands_is_told_right),
        cmocka_unit_test(alignment_is_each_operands_own),
        cmocka_unit_test(single_rows_columns_and_steps_work),
        cmocka_unit_test(what_is_added_is_added_once_and_rounded_once),
        cmocka_unit_test(fp32_math_keeps_all_bits_of_half_types),
        cmocka_unit_test(what_does_not_fit_is_cut_into_tiles),
        cmocka_unit_test(wrong_arguments_are_refused),
        cmocka_unit_test(the_workspace_grows_to_a_limit),
        cmocka_unit_test(an_algorithm_is_chosen_once_for_a_shape),
        cmocka_unit_test(a_product_that_fails_is_an_error_and_the_next_works),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
