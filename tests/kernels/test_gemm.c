/* GEMM: agreement with the reference, and the contract that an element depends on nothing but its
 * row, its column, K, the dtypes, the math and the instruction set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/kernels/gemm.h"

#define SEED 0x5eed1234u
#define CANARY 0xa5
#define ROOM (1u << 22)
#define COUNT(a) (sizeof(a) / sizeof *(a))

static const int thread_counts[] = {1, 2, 3, 5};

static struct {
    struct ps_pool *pool[COUNT(thread_counts)];
    void *workspace;
    uint32_t random;
    unsigned char *operand[4]; /* a, b, a2, b2 */
    unsigned char *bias, *residual, *c, *want;
} t;

static uint32_t random_bits(void)
{
    t.random = t.random * 1664525u + 1013904223u;
    return t.random >> 8;
}

static size_t random_size(size_t lo, size_t hi)
{
    return lo + random_bits() % (hi - lo + 1);
}

static float random_float(void)
{
    return (float)((int)(random_bits() % 4001) - 2000) / 1000.0f;
}

static void store(void *data, enum ps_dtype dtype, size_t idx, float f)
{
    if (dtype == PS_DTYPE_F32)
        ((float *)data)[idx] = f;
    else
        ((uint16_t *)data)[idx] = dtype == PS_DTYPE_BF16 ? ps_f32_to_bf16(f) : ps_f32_to_f16(f);
}

static float load(const void *data, enum ps_dtype dtype, size_t idx)
{
    if (dtype == PS_DTYPE_F32)
        return ((const float *)data)[idx];
    uint16_t h = ((const uint16_t *)data)[idx];
    return dtype == PS_DTYPE_BF16 ? ps_bf16_to_f32(h) : ps_f16_to_f32(h);
}

static void *room(void)
{
    void *p = malloc(ROOM);
    assert_non_null(p);
    return p;
}

static int set_up(void **state)
{
    (void)state;
    t.random = SEED;
    for (size_t i = 0; i < COUNT(thread_counts); i++)
        assert_int_equal(ps_pool_create(&t.pool[i], thread_counts[i]), 0);
    size_t bytes = ps_gemm_workspace_bytes(5);
    t.workspace = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_non_null(t.workspace);
    memset(t.workspace, 0xff, bytes); /* NaN everywhere: scratch must not leak into results */
    for (int i = 0; i < 4; i++)
        t.operand[i] = room();
    t.bias = room();
    t.residual = room();
    t.c = room();
    t.want = room();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(thread_counts); i++)
        ps_pool_destroy(t.pool[i]);
    free(t.workspace);
    for (int i = 0; i < 4; i++)
        free(t.operand[i]);
    free(t.bias);
    free(t.residual);
    free(t.c);
    free(t.want);
    return 0;
}

/* A matrix of random values in slot `slot`; what its leading dimension skips is NaN. */
static struct ps_gemm_mat fill(int slot, size_t rows, size_t cols, enum ps_dtype dtype, int trans)
{
    size_t outer = trans ? cols : rows;
    size_t inner = trans ? rows : cols;
    size_t ld = inner + random_size(0, 3);
    size_t size = ps_dtype_size(dtype);
    size_t offset = random_size(0, 5); /* any alignment of an element */
    struct ps_gemm_mat m = {t.operand[slot] + offset * size, ld, dtype, trans};
    assert_true((offset + outer * ld + 64) * size <= ROOM);
    memset(t.operand[slot], 0xff, (offset + outer * ld + 64) * size);
    for (size_t o = 0; o < outer; o++)
        for (size_t i = 0; i < inner; i++)
            store(t.operand[slot] + offset * size, dtype, o * ld + i, random_float());
    return m;
}

static enum ps_dtype random_dtype(size_t count)
{
    static const enum ps_dtype dtypes[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};
    return dtypes[random_bits() % count];
}

/* Random dtypes, transpositions and epilogue for a shape. */
static struct ps_gemm_args random_args(size_t m, size_t n, size_t k, size_t k2)
{
    struct ps_gemm_args args = {.m = m, .n = n, .k = k, .k2 = k2};
    args.a = fill(0, m, k, random_dtype(3), random_bits() & 1);
    args.b = fill(1, k, n, random_dtype(3), random_bits() & 1);
    if (k2) {
        args.a2 = fill(2, m, k2, random_dtype(3), random_bits() & 1);
        args.b2 = fill(3, k2, n, random_dtype(3), random_bits() & 1);
    }
    args.math = random_bits() & 1 ? PS_GEMM_BF16 : PS_GEMM_F32;
    args.alpha = random_bits() & 1 ? 0.0f : 1.0f + random_float();
    args.c_dtype = random_dtype(2);
    args.c = t.c;
    args.c_ld = n + random_size(0, 7);
    args.accumulate = args.c_dtype == PS_DTYPE_F32 && (random_bits() & 1);
    if (random_bits() & 1) {
        args.bias = t.bias;
        args.bias_dtype = random_dtype(3);
        for (size_t j = 0; j < n; j++)
            store(t.bias, args.bias_dtype, j, random_float());
    }
    if (random_bits() & 1) {
        args.residual = t.residual;
        args.residual_dtype = random_dtype(2);
        args.residual_ld = n + random_size(0, 3);
        for (size_t i = 0; i < m * args.residual_ld; i++)
            store(t.residual, args.residual_dtype, i, random_float());
    }
    return args;
}

static size_t c_bytes(const struct ps_gemm_args *args)
{
    size_t bytes = args->m * args->c_ld * ps_dtype_size(args->c_dtype);
    assert_true(bytes + 64 <= ROOM);
    return bytes;
}

/* Canaries everywhere in C; where C is read, values that do not depend on the call. */
static void prepare_c(const struct ps_gemm_args *args, void *c)
{
    memset(c, CANARY, c_bytes(args) + 64);
    for (size_t i = 0; args->accumulate && i < args->m; i++)
        for (size_t j = 0; j < args->n; j++)
            ((float *)c)[i * args->c_ld + j] = (float)((i * 7 + j * 3) % 11) - 5.0f;
}

static void check_canaries(const struct ps_gemm_args *args, const unsigned char *c)
{
    size_t size = ps_dtype_size(args->c_dtype);
    for (size_t i = 0; i < args->m; i++)
        for (size_t b = args->n * size; b < args->c_ld * size; b++)
            assert_int_equal(c[i * args->c_ld * size + b], CANARY);
    for (size_t b = 0; b < 64; b++)
        assert_int_equal(c[c_bytes(args) + b], CANARY);
}

static void run(const struct ps_gemm_args *args, enum ps_isa isa, size_t pool_idx)
{
    ps_gemm(t.pool[pool_idx], isa, args, t.workspace);
}

/* Error of an fp32 chain of K products below 4: 2^-24 times the partial sums, which stay below
 * 4 sqrt(K) mostly and 4 K always; bf16 output adds half a unit in its last place (2^-9). */
static void check_against_reference(struct ps_gemm_args *args, enum ps_isa isa, size_t pool_idx)
{
    prepare_c(args, t.c);
    run(args, isa, pool_idx);
    check_canaries(args, t.c);
    prepare_c(args, t.want);
    args->c = t.want;
    ps_gemm_reference(args);
    args->c = t.c;
    double alpha = args->alpha == 0.0f ? 1.0 : fabs((double)args->alpha);
    double atol = alpha * 1e-6 * (double)(args->k + args->k2 + 16);
    double rtol = args->c_dtype == PS_DTYPE_BF16 ? 0x1p-7 : 1e-6;
    for (size_t i = 0; i < args->m; i++) {
        for (size_t j = 0; j < args->n; j++) {
            double got = (double)load(t.c, args->c_dtype, i * args->c_ld + j);
            double want = (double)load(t.want, args->c_dtype, i * args->c_ld + j);
            if (!(fabs(got - want) <= atol + rtol * fabs(want)))
                fail_msg("%s: m %zu n %zu k %zu k2 %zu: C[%zu,%zu] is %.9g, not %.9g",
                         ps_isa_name(isa), args->m, args->n, args->k, args->k2, i, j, got, want);
        }
    }
}

static void results_agree_with_the_reference_for_small_shapes_on_every_isa(void **state)
{
    (void)state;
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++) {
        for (int i = 0; i < 400; i++) {
            size_t k2 = random_bits() & 1 ? random_size(1, 20) : 0;
            struct ps_gemm_args args =
                random_args(random_size(1, 40), random_size(1, 80), random_size(1, 70), k2);
            check_against_reference(&args, (enum ps_isa)isa, (size_t)i % 4);
        }
    }
}

/* One, odd, and one off the blocks: 12 and 32 (micro-tile), 480 and 512 (tile), 192 units (K). */
static void results_agree_with_the_reference_around_block_edges(void **state)
{
    (void)state;
    static const size_t shapes[][4] = {{1, 1, 1, 0},      {1, 513, 383, 0},  {12, 32, 384, 16},
                                       {13, 33, 385, 17}, {11, 31, 383, 1},  {481, 9, 100, 8},
                                       {479, 17, 33, 0},  {480, 16, 191, 2}, {9, 511, 193, 3},
                                       {16, 520, 192, 4}, {130, 140, 800, 0}};
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++)
        for (size_t s = 0; s < COUNT(shapes); s++) {
            struct ps_gemm_args args =
                random_args(shapes[s][0], shapes[s][1], shapes[s][2], shapes[s][3]);
            check_against_reference(&args, (enum ps_isa)isa, s % 4);
        }
}

static void every_dtype_and_transposition_agrees_with_the_reference(void **state)
{
    (void)state;
    static const enum ps_dtype dtypes[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++)
        for (int which = 0; which < 72; which++) {
            struct ps_gemm_args args = random_args(29, 50, 77, 0);
            args.math = which & 1 ? PS_GEMM_BF16 : PS_GEMM_F32;
            args.a = fill(0, 29, 77, dtypes[which / 8 % 3], which >> 1 & 1);
            args.b = fill(1, 77, 50, dtypes[which / 24], which >> 2 & 1);
            check_against_reference(&args, (enum ps_isa)isa, 0);
        }
}

/* A call of another shape: results must not depend on what ran before. */
static void disturb(enum ps_isa isa)
{
    static float x[64 * 64], c[64 * 64];
    size_t n = random_size(1, 64);
    struct ps_gemm_args args = {.m = random_size(1, 64), .n = n, .k = random_size(1, 64)};
    for (size_t i = 0; i < COUNT(x); i++)
        x[i] = random_float();
    args.a = (struct ps_gemm_mat){x, 64, PS_DTYPE_F32, random_bits() & 1};
    args.b = (struct ps_gemm_mat){x, 64, PS_DTYPE_F32, random_bits() & 1};
    args.c = c;
    args.c_ld = n;
    args.math = random_bits() & 1 ? PS_GEMM_BF16 : PS_GEMM_F32;
    run(&args, isa, random_size(0, 3));
}

/* Row and column window of `from`, copied to another place with another leading dimension and
 * alignment; transposed in memory when `trans` differs. */
static struct ps_gemm_mat window(const struct ps_gemm_mat *from, size_t r0, size_t rows, size_t c0,
                                 size_t cols, unsigned char *to, int trans)
{
    size_t size = ps_dtype_size(from->dtype);
    size_t ld = (trans ? rows : cols) + random_size(0, 9);
    struct ps_gemm_mat m = {to + random_size(0, 31) * size, ld, from->dtype, trans};
    const unsigned char *src = from->data;
    unsigned char *dst = (unsigned char *)(uintptr_t)m.data;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) {
            size_t at = from->trans ? (c0 + c) * from->ld + r0 + r : (r0 + r) * from->ld + c0 + c;
            memcpy(dst + (trans ? c * ld + r : r * ld + c) * size, src + at * size, size);
        }
    return m;
}

static void an_element_has_the_same_bits_inside_every_shape(void **state)
{
    (void)state;
    static const size_t depth[][2] = {{77, 0}, {385, 16}, {1100, 7}};
    unsigned char *copy[4];
    for (int i = 0; i < 4; i++)
        copy[i] = room();
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++) {
        for (int round = 0; round < 24; round++) {
            size_t k = depth[round % 3][0], k2 = depth[round % 3][1];
            size_t m = round < 12 ? 70 : random_size(1, 500), n = random_size(40, 560);
            struct ps_gemm_args all = random_args(m, n, k, k2);
            all.accumulate = 0;
            prepare_c(&all, t.c);
            run(&all, (enum ps_isa)isa, (size_t)round % 4);
            for (int part = 0; part < 6; part++) {
                struct ps_gemm_args one = all;
                size_t i0 = random_size(0, m - 1), j0 = random_size(0, n - 1);
                one.m = random_size(1, part < 3 ? (m - i0 < 16 ? m - i0 : 16) : m - i0);
                one.n = random_size(1, part & 1 ? (n - j0 < 16 ? n - j0 : 16) : n - j0);
                one.a = window(&all.a, i0, one.m, 0, k, copy[0], random_bits() & 1);
                one.b = window(&all.b, 0, k, j0, one.n, copy[1], random_bits() & 1);
                if (k2) {
                    one.a2 = window(&all.a2, i0, one.m, 0, k2, copy[2], random_bits() & 1);
                    one.b2 = window(&all.b2, 0, k2, j0, one.n, copy[3], random_bits() & 1);
                }
                if (one.bias)
                    one.bias = t.bias + j0 * ps_dtype_size(all.bias_dtype);
                if (one.residual)
                    one.residual = t.residual +
                                   (i0 * all.residual_ld + j0) * ps_dtype_size(all.residual_dtype);
                one.c = t.want;
                one.c_ld = one.n + random_size(0, 5);
                disturb((enum ps_isa)isa);
                run(&one, (enum ps_isa)isa, random_size(0, 3));
                size_t size = ps_dtype_size(all.c_dtype);
                for (size_t i = 0; i < one.m; i++)
                    assert_memory_equal(t.want + i * one.c_ld * size,
                                        t.c + ((i0 + i) * all.c_ld + j0) * size, one.n * size);
            }
        }
    }
    for (int i = 0; i < 4; i++)
        free(copy[i]);
}

static void thread_count_changes_no_bit(void **state)
{
    (void)state;
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++) {
        for (int round = 0; round < 4; round++) {
            struct ps_gemm_args args =
                random_args(random_size(1, 600), random_size(1, 600), random_size(300, 500), 16);
            prepare_c(&args, t.want);
            args.c = t.want;
            run(&args, (enum ps_isa)isa, 0);
            args.c = t.c;
            for (size_t pool = 0; pool < COUNT(thread_counts); pool++) {
                prepare_c(&args, t.c);
                run(&args, (enum ps_isa)isa, pool);
                assert_memory_equal(t.c, t.want, c_bytes(&args));
            }
            prepare_c(&args, t.c);
            ps_gemm(NULL, (enum ps_isa)isa, &args, t.workspace);
            assert_memory_equal(t.c, t.want, c_bytes(&args));
        }
    }
}

static void second_pair_continues_the_chain_of_the_first(void **state)
{
    (void)state;
    /* even k, so that pairs of bf16 fall together; across and at the edges of a block of K */
    static const size_t depth[][2] = {{64, 16}, {384, 8}, {376, 16}, {1000, 64}, {2, 1}};
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++) {
        for (size_t d = 0; d < COUNT(depth); d++) {
            for (int math = 0; math < 2; math++) {
                size_t m = 23, n = 71, k = depth[d][0], k2 = depth[d][1];
                struct ps_gemm_args one = {.m = m, .n = n, .k = k + k2};
                one.a = fill(0, m, k + k2, PS_DTYPE_BF16, 0);
                one.b = fill(1, k + k2, n, PS_DTYPE_F32, 0);
                one.c = t.want;
                one.c_ld = n;
                one.math = math ? PS_GEMM_BF16 : PS_GEMM_F32;
                struct ps_gemm_args two = one;
                two.k = k;
                two.k2 = k2;
                two.a2 = one.a;
                two.a2.data = (const uint16_t *)one.a.data + k;
                two.b2 = one.b;
                two.b2.data = (const float *)one.b.data + k * one.b.ld;
                two.c = t.c;
                run(&one, (enum ps_isa)isa, 0);
                run(&two, (enum ps_isa)isa, 1);
                assert_memory_equal(t.c, t.want, m * n * sizeof(float));
            }
        }
    }
}

static void nan_and_inf_reach_their_row_and_column_and_nothing_else(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++) {
        for (int round = 0; round < 60; round++) {
            size_t m = random_size(1, 30), n = random_size(1, 70), k = random_size(1, 60);
            struct ps_gemm_args args = random_args(m, n, k, 0);
            args.c_dtype = round & 1 ? PS_DTYPE_F32 : PS_DTYPE_BF16;
            args.accumulate = 0;
            float f = bad[round % 3];
            size_t i = random_size(0, m - 1), j = random_size(0, n - 1), p = random_size(0, k - 1);
            int in_b = round / 3 & 1;
            struct ps_gemm_mat *mat = in_b ? &args.b : &args.a;
            size_t r = in_b ? p : i, c = in_b ? j : p;
            store((void *)(uintptr_t)mat->data, mat->dtype,
                  mat->trans ? c * mat->ld + r : r * mat->ld + c, f);
            run(&args, (enum ps_isa)isa, 0);
            args.c = t.want;
            ps_gemm_reference(&args);
            for (size_t x = 0; x < m; x++)
                for (size_t y = 0; y < n; y++) {
                    float got = load(t.c, args.c_dtype, x * args.c_ld + y);
                    float want = load(t.want, args.c_dtype, x * args.c_ld + y);
                    assert_int_equal(isnan(got), isnan(want));
                    assert_int_equal(isinf(got), isinf(want));
                    assert_int_equal(isfinite(got), in_b ? y != j : x != i);
                }
        }
    }
}

static void residual_may_be_the_output_itself(void **state)
{
    (void)state;
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++) {
        for (int bf16 = 0; bf16 < 2; bf16++) {
            size_t m = 37, n = 67;
            struct ps_gemm_args args = random_args(m, n, 90, 0);
            args.accumulate = 0;
            args.c_dtype = args.residual_dtype = bf16 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
            args.c_ld = args.residual_ld = n;
            args.residual = t.residual;
            for (size_t i = 0; i < m * n; i++)
                store(t.residual, args.residual_dtype, i, random_float());
            args.c = t.want;
            run(&args, (enum ps_isa)isa, 0);
            args.c = t.residual;
            run(&args, (enum ps_isa)isa, 1);
            assert_memory_equal(t.residual, t.want, m * n * ps_dtype_size(args.c_dtype));
        }
    }
}

/* fp32 operands are rounded to nearest even, ties included, before they are multiplied. */
static void bf16_math_rounds_fp32_operands_to_nearest_even(void **state)
{
    (void)state;
    static const uint32_t bits[] = {0x3f808000, 0x3f818000, 0x3f807fff, 0x3f808001,
                                    0xbf808000, 0xbf818000, 0x3fffffff, 0x7f7fffff};
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++) {
        for (int trans = 0; trans < 2; trans++) {
            float x[COUNT(bits)], one = 1.0f, c[COUNT(bits)];
            memcpy(x, bits, sizeof x);
            struct ps_gemm_args args = {.m = COUNT(bits), .n = 1, .k = 1, .math = PS_GEMM_BF16};
            args.a = (struct ps_gemm_mat){x, trans ? COUNT(bits) : 1, PS_DTYPE_F32, trans};
            args.b = (struct ps_gemm_mat){&one, 1, PS_DTYPE_F32, 0};
            args.c = c;
            args.c_ld = 1;
            run(&args, (enum ps_isa)isa, 0);
            for (size_t i = 0; i < COUNT(bits); i++)
                assert_true(c[i] == ps_bf16_to_f32(ps_f32_to_bf16(x[i])));
        }
    }
}

/* The chain itself: unit by unit, ascending, from +0, rounded once an fp32 product. */
static void fp32_math_is_one_ascending_chain(void **state)
{
    (void)state;
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++) {
        size_t m = 14, n = 35, k = 401;
        struct ps_gemm_args args = {.m = m, .n = n, .k = k, .c = t.c, .c_ld = n};
        args.a = fill(0, m, k, PS_DTYPE_F32, 0);
        args.b = fill(1, k, n, PS_DTYPE_F32, 1);
        run(&args, (enum ps_isa)isa, 0);
        const float *a = args.a.data, *b = args.b.data;
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++) {
                float sum = 0;
                for (size_t p = 0; p < k; p++) {
                    float x = a[i * args.a.ld + p], y = b[j * args.b.ld + p];
                    volatile float product = x * y;
                    sum = isa == PS_ISA_PORTABLE ? sum + product : fmaf(x, y, sum);
                }
                assert_true(sum == ((float *)t.c)[i * n + j]);
            }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_agree_with_the_reference_for_small_shapes_on_every_isa),
        cmocka_unit_test(results_agree_with_the_reference_around_block_edges),
        cmocka_unit_test(every_dtype_and_transposition_agrees_with_the_reference),
        cmocka_unit_test(an_element_has_the_same_bits_inside_every_shape),
        cmocka_unit_test(thread_count_changes_no_bit),
        cmocka_unit_test(second_pair_continues_the_chain_of_the_first),
        cmocka_unit_test(nan_and_inf_reach_their_row_and_column_and_nothing_else),
        cmocka_unit_test(residual_may_be_the_output_itself),
        cmocka_unit_test(bf16_math_rounds_fp32_operands_to_nearest_even),
        cmocka_unit_test(fp32_math_is_one_ascending_chain),
    };
    printf("seed %#x\n", SEED);
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
