/* mma.m16n8k16, ldmatrix and cp.async as NVIDIA documents them, formula by formula: each element of
 * A, B and C alone gives the product that it must, and each register of ldmatrix holds the elements
 * that it must. The first thing to run on a GPU; on the emulation it checks the emulation.
 *
 * Source: NVIDIA, Parallel Thread Execution ISA 9.0, "Warp Level Matrix Multiply-Accumulate
 * Instructions": Matrix Fragments for mma.m16n8k16 with floating point type (9.7.14.5.8 there,
 * #warp-level-matrix-fragment-mma-16816-float), ldmatrix (9.7.14.5.15,
 * #warp-level-matrix-instructions-ldmatrix); "Data Movement and Conversion Instructions": cp.async
 * (#data-movement-and-conversion-instructions-cp-async). Section numbers move between versions, the
 * formulas have not. They are written here from the documentation, element by element, and share
 * nothing with the emulation's or the kernels'. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/cuda/cuda_check.h"
#include "tests/cuda/fragment_probe.h"

enum { M = 16, N = 8, K = 16, LANES = 32 };

static int group_id(int lane)
{
    return lane >> 2;
}
static int thread_in_group(int lane)
{
    return lane % 4;
}

/* Element a_i of a lane, i in [0, 8). */
static int a_row(int lane, int i)
{
    return (0 <= i && i < 2) || (4 <= i && i < 6) ? group_id(lane) : group_id(lane) + 8;
}
static int a_col(int lane, int i)
{
    return i < 4 ? thread_in_group(lane) * 2 + (i & 1) : thread_in_group(lane) * 2 + (i & 1) + 8;
}

/* Element b_i, i in [0, 4). */
static int b_row(int lane, int i)
{
    return i < 2 ? thread_in_group(lane) * 2 + (i & 1) : thread_in_group(lane) * 2 + (i & 1) + 8;
}
static int b_col(int lane, int i)
{
    (void)i;
    return group_id(lane);
}

/* Element c_i or d_i, i in [0, 4). */
static int c_row(int lane, int i)
{
    return i < 2 ? group_id(lane) : group_id(lane) + 8;
}
static int c_col(int lane, int i)
{
    return thread_in_group(lane) * 2 + (i & 1);
}

/* Two elements a register, the one of the lower index in the lower half. */
static void put_half(uint32_t *registers, int i, float x)
{
    const int shift = i % 2 * 16;
    registers[i / 2] &= ~(0xffffu << shift);
    registers[i / 2] |= (uint32_t)ps_f32_to_bf16(x) << shift;
}

struct product {
    float a[M][K], b[K][N], c[M][N];
};

/* The registers of all lanes. */
struct fragments {
    uint32_t a[LANES][4], b[LANES][2];
    float c[LANES][4];
};

static void distribute(struct fragments *f, const struct product *p)
{
    for (int lane = 0; lane < LANES; lane++) {
        for (int i = 0; i < 8; i++)
            put_half(f->a[lane], i, p->a[a_row(lane, i)][a_col(lane, i)]);
        for (int i = 0; i < 4; i++)
            put_half(f->b[lane], i, p->b[b_row(lane, i)][b_col(lane, i)]);
        for (int i = 0; i < 4; i++)
            f->c[lane][i] = p->c[c_row(lane, i)][c_col(lane, i)];
    }
}

/* All numbers are whole and small: every order of additions gives the same. */
static void multiply(cudaStream_t s, struct product *p, int count)
{
    uint32_t(*a)[LANES][4] = calloc((size_t)count, sizeof *a);
    uint32_t(*b)[LANES][2] = calloc((size_t)count, sizeof *b);
    float(*c)[LANES][4] = calloc((size_t)count, sizeof *c);
    assert_true(a && b && c);
    for (int w = 0; w < count; w++) {
        struct fragments f = {0};
        distribute(&f, &p[w]);
        memcpy(a[w], f.a, sizeof f.a);
        memcpy(b[w], f.b, sizeof f.b);
        memcpy(c[w], f.c, sizeof f.c);
    }
    struct device_buffer da = device_make(s, (size_t)count * sizeof *a, 0, a);
    struct device_buffer db = device_make(s, (size_t)count * sizeof *b, 0, b);
    struct device_buffer dc = device_make(s, (size_t)count * sizeof *c, 0, c);
    assert_int_equal(probe_mma(s, count, (float *)(void *)dc.data, (uint32_t *)(void *)da.data,
                               (uint32_t *)(void *)db.data),
                     0);
    memcpy(c, device_get(s, &dc), (size_t)count * sizeof *c);
    for (int w = 0; w < count; w++)
        for (int lane = 0; lane < LANES; lane++)
            for (int i = 0; i < 4; i++) {
                const int m = c_row(lane, i), n = c_col(lane, i);
                float want = p[w].c[m][n];
                for (int k = 0; k < K; k++)
                    want += p[w].a[m][k] * p[w].b[k][n];
                if (c[w][lane][i] != want)
                    fail_msg("product %d, lane %d, d%d (row %d, column %d): %g, expected %g", w,
                             lane, i, m, n, (double)c[w][lane][i], (double)want);
            }
    device_free(s, &da);
    device_free(s, &db);
    device_free(s, &dc);
    free(a);
    free(b);
    free(c);
}

static struct product *products(int count)
{
    struct product *p = calloc((size_t)count, sizeof *p);
    assert_non_null(p);
    return p;
}

/* One element of A is 1: a row of the product is a row of B, whose numbers differ. */
static void each_element_of_a_is_where_the_documentation_says(void **state)
{
    struct product *p = products(M * K);
    for (int e = 0; e < M * K; e++) {
        p[e].a[e / K][e % K] = 1;
        for (int i = 0; i < K * N; i++)
            p[e].b[i / N][i % N] = (float)(1 + i);
    }
    multiply(*state, p, M * K);
    free(p);
}

static void each_element_of_b_is_where_the_documentation_says(void **state)
{
    struct product *p = products(K * N);
    for (int e = 0; e < K * N; e++) {
        p[e].b[e / N][e % N] = 1;
        for (int i = 0; i < M * K; i++)
            p[e].a[i / K][i % K] = (float)(1 + i);
    }
    multiply(*state, p, K * N);
    free(p);
}

static void each_element_of_c_is_where_the_documentation_says(void **state)
{
    struct product *p = products(M * N);
    for (int e = 0; e < M * N; e++)
        p[e].c[e / N][e % N] = 1;
    multiply(*state, p, M * N);
    free(p);
}

/* ---- ldmatrix ---- */

enum { ROWS = 16, STRIDE = 24 }; /* of a tile: 16 x 16 elements, the rows 24 apart */

static uint16_t element(int row, int col)
{
    return (uint16_t)(1000 + row * 100 + col);
}

/* r[lane][register] of one warp whose lane l gives the address of element at[l]. */
static void load(cudaStream_t s, uint32_t r[LANES][4], const int32_t at[LANES], int trans)
{
    uint16_t x[1024] = {0};
    for (int row = 0; row < ROWS; row++)
        for (int col = 0; col < 16; col++)
            x[row * STRIDE + col] = element(row, col);
    struct device_buffer dx = device_make(s, sizeof x, 0, x);
    struct device_buffer dat = device_make(s, LANES * sizeof *at, 0, at);
    struct device_buffer dr = device_make(s, LANES * sizeof *r, 0, NULL);
    assert_int_equal(probe_ldmatrix(s, 1, (uint32_t *)(void *)dr.data, (uint16_t *)(void *)dx.data,
                                    (int32_t *)(void *)dat.data, trans),
                     0);
    memcpy(r, device_get(s, &dr), LANES * sizeof *r);
    device_free(s, &dx);
    device_free(s, &dat);
    device_free(s, &dr);
}

/* Threads 8 i to 8 i + 7 give the rows of matrix i; four threads receive a row, thread 0 its first
 * elements, matrix i in register i; .trans: as if the matrix were stored by columns. */
static void ldmatrix_gives_each_thread_its_elements(void **state)
{
    uint32_t r[LANES][4];
    for (int trans = 0; trans < 2; trans++) {
        int32_t at[LANES];
        int row_of[LANES], col_of[LANES];
        for (int l = 0; l < LANES; l++) { /* rows in no order, of matrices side by side */
            row_of[l] = l * 5 % ROWS;
            col_of[l] = l / 8 % 2 * 8;
            at[l] = row_of[l] * STRIDE + col_of[l];
        }
        load(*state, r, at, trans);
        for (int lane = 0; lane < LANES; lane++)
            for (int i = 0; i < 4; i++)
                for (int e = 0; e < 2; e++) {
                    const int major = lane / 4, minor = lane % 4 * 2 + e;
                    const int giver = i * 8 + (trans ? minor : major);
                    const uint16_t got = (uint16_t)(r[lane][i] >> (16 * e));
                    assert_int_equal(
                        got, element(row_of[giver], col_of[giver] + (trans ? major : minor)));
                }
    }
}

/* Lane l's address as attention_tile_internal.cuh has it: row l % 16, columns from l / 16 * 8. */
static void load_tile(cudaStream_t s, uint32_t r[LANES][4], int trans)
{
    int32_t at[LANES];
    for (int l = 0; l < LANES; l++)
        at[l] = (l & 15) * STRIDE + (l >> 4) * 8;
    load(s, r, at, trans);
}

static uint16_t half(const uint32_t *registers, int i)
{
    return (uint16_t)(registers[i / 2] >> (i % 2 * 16));
}

static void ldmatrix_of_a_tile_gives_the_fragments_of_a_and_b(void **state)
{
    uint32_t r[LANES][4], t[LANES][4];
    load_tile(*state, r, 0);
    load_tile(*state, t, 1);
    for (int lane = 0; lane < LANES; lane++) {
        /* A from rows of A: the registers as they are */
        for (int i = 0; i < 8; i++)
            assert_int_equal(half(r[lane], i), element(a_row(lane, i), a_col(lane, i)));
        for (int n = 0; n < 2; n++) {
            /* B from rows of B^T, n = 0: columns 0-7 of B, registers 0 and 2; else 1 and 3 */
            const uint32_t nt[2] = {r[lane][n], r[lane][n + 2]};
            /* B from rows of B, transposed: registers 0 and 1, 2 and 3 */
            const uint32_t nn[2] = {t[lane][2 * n], t[lane][2 * n + 1]};
            for (int i = 0; i < 4; i++) {
                const int k = b_row(lane, i), col = b_col(lane, i) + 8 * n;
                assert_int_equal(half(nt, i), element(col, k));
                assert_int_equal(half(nn, i), element(k, col));
            }
        }
    }
}

/* Accumulators of two neighbouring products, packed, are the A of the next. */
static void packed_accumulators_are_the_fragments_of_a(void **state)
{
    (void)state;
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 8; i++) {
            /* a register of A: tile i / 4, its c0 c1 for registers 0 and 2, c2 c3 for 1 and 3 */
            const int reg = i / 2, tile = reg / 2, c = reg % 2 * 2 + i % 2;
            assert_int_equal(a_row(lane, i), c_row(lane, c));
            assert_int_equal(a_col(lane, i), tile * 8 + c_col(lane, c));
        }
}

/* ---- cp.async ---- */

static void cp_async_copies_the_first_bytes_and_zeros(void **state)
{
    unsigned char x[LANES][16];
    int32_t bytes[LANES];
    for (int l = 0; l < LANES; l++) {
        bytes[l] = l % 17;
        for (int i = 0; i < 16; i++)
            x[l][i] = (unsigned char)(1 + (l * 16 + i) % 255);
    }
    struct device_buffer dx = device_make(*state, sizeof x, 0, x);
    struct device_buffer db = device_make(*state, sizeof bytes, 0, bytes);
    struct device_buffer dy = device_make(*state, sizeof x, 0, NULL);
    assert_int_equal(probe_cp_async(*state, dy.data, dx.data, (int32_t *)(void *)db.data), 0);
    const unsigned char *y = device_get(*state, &dy);
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 16; i++)
            assert_int_equal(y[l * 16 + i], i < bytes[l] ? x[l][i] : 0);
    device_free(*state, &dx);
    device_free(*state, &db);
    device_free(*state, &dy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_element_of_a_is_where_the_documentation_says),
        cmocka_unit_test(each_element_of_b_is_where_the_documentation_says),
        cmocka_unit_test(each_element_of_c_is_where_the_documentation_says),
        cmocka_unit_test(ldmatrix_gives_each_thread_its_elements),
        cmocka_unit_test(ldmatrix_of_a_tile_gives_the_fragments_of_a_and_b),
        cmocka_unit_test(packed_accumulators_are_the_fragments_of_a),
        cmocka_unit_test(cp_async_copies_the_first_bytes_and_zeros),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
