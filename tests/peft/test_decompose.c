/* Decompositions of a weight read in blocks: energies against an exact decomposition,
 * orthogonality, the residual, pseudo-inverses, and what a read that fails does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "peft/decompose.h"

enum { OUT = 90, IN = 61, R = 7 };

struct matrix {
    float w[OUT * IN];
    size_t out, in;
    int reads_left; /* then they fail; negative: never */
};

static int read_rows(void *arg, int64_t row_begin, int64_t rows, float *out, struct ps_error *err)
{
    struct matrix *m = arg;
    if (m->reads_left == 0)
        return ps_error_set(err, -EIO, "read fails");
    m->reads_left--;
    memcpy(out, m->w + (size_t)row_begin * m->in, (size_t)rows * m->in * sizeof *out);
    return 0;
}

/* Random, with singular values that fall off. */
static struct matrix make(size_t out, size_t in)
{
    struct matrix m = {.out = out, .in = in, .reads_left = -1};
    struct ps_rng_key key = {.seed = 31};
    for (size_t i = 0; i < out * in; i++)
        m.w[i] = (float)(ps_rng_normal(&key, i) * exp(-0.07 * (double)(i % in)));
    return m;
}

static struct ps_adapter_base base_of(struct matrix *m)
{
    return (struct ps_adapter_base){.read = read_rows, .arg = m, .isa = ps_isa_detect()};
}

/* Singular values of W, descending: roots of those of W^T W. */
static void exact_values(const struct matrix *m, double *s)
{
    static double g[IN * IN];
    static double v[IN * IN];
    for (size_t i = 0; i < m->in; i++)
        for (size_t j = 0; j < m->in; j++) {
            double sum = 0;
            for (size_t k = 0; k < m->out; k++)
                sum += (double)m->w[k * m->in + i] * (double)m->w[k * m->in + j];
            g[i * m->in + j] = sum;
        }
    ps_jacobi_svd(g, v, s, m->in);
    for (size_t i = 0; i < m->in; i++)
        s[i] = sqrt(s[i]);
}

static double square_norm(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

static void jacobi_factors_are_orthogonal_and_multiply_to_the_matrix(void **state)
{
    (void)state;
    enum { N = 13 };
    double a[N * N];
    double u[N * N];
    double v[N * N];
    double s[N];
    struct ps_rng_key key = {.seed = 3};
    for (size_t i = 0; i < N * N; i++)
        u[i] = a[i] = i / N == 5 ? a[i - N] : ps_rng_normal(&key, i); /* rank 12 */
    ps_jacobi_svd(u, v, s, N);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++) {
            double vv = 0;
            double uu = 0;
            double usv = 0;
            for (size_t k = 0; k < N; k++) {
                vv += v[k * N + i] * v[k * N + j];
                uu += u[k * N + i] * u[k * N + j];
                usv += u[i * N + k] * s[k] * v[j * N + k];
            }
            assert_true(fabs(vv - (i == j)) < 1e-12);
            if (i < N - 1 && j < N - 1)
                assert_true(fabs(uu - (i == j)) < 1e-12);
            assert_true(fabs(usv - a[i * N + j]) < 1e-12);
        }
    for (size_t i = 1; i < N; i++)
        assert_true(s[i] <= s[i - 1]);
    assert_true(s[N - 1] < 1e-12 && s[N - 2] > 1e-3);
}

static void the_randomized_triplets_have_the_energy_of_the_exact_ones(void **state)
{
    (void)state;
    for (int shape = 0; shape < 2; shape++) {
        static struct matrix m;
        m = make(shape ? 40 : OUT, IN);
        double s[IN];
        exact_values(&m, s);
        float a[R * IN];
        float b[OUT * R];
        struct ps_adapter_base base = base_of(&m);
        struct ps_rng_key key = {.seed = 5};
        assert_int_equal(ps_decompose_svd(&base, (int64_t)m.out, IN, R, 4, &key, a, b, NULL), 0);
        double want = 0;
        for (int i = 0; i < R; i++)
            want += s[i] * s[i];
        /* |W|^2 - |W - BA|^2 is the energy that BA takes */
        static float rest[OUT * IN];
        for (size_t i = 0; i < m.out * IN; i++) {
            double sum = (double)m.w[i];
            for (size_t k = 0; k < R; k++)
                sum -= (double)b[i / IN * R + k] * (double)a[k * IN + i % IN];
            rest[i] = (float)sum;
        }
        double got = square_norm(m.w, m.out * IN) - square_norm(rest, m.out * IN);
        assert_true(got > 0.999 * want && got < 1.00001 * want);
        for (size_t k = 0; k < R; k++) { /* split evenly */
            double na = square_norm(a + k * IN, IN);
            double nb = 0;
            for (size_t i = 0; i < m.out; i++)
                nb += pow((double)b[i * R + k], 2);
            assert_true(fabs(na - nb) < 1e-4 * na && fabs(na - s[k]) < 0.01 * s[k]);
        }
    }
}

static void qr_columns_are_orthonormal_and_span_the_first_ones(void **state)
{
    (void)state;
    static struct matrix m;
    m = make(OUT, IN);
    float a[R * IN];
    float b[OUT * R];
    struct ps_adapter_base base = base_of(&m);
    assert_int_equal(ps_decompose_qr(&base, OUT, IN, R, a, b, NULL), 0);
    for (size_t i = 0; i < R; i++)
        for (size_t j = 0; j < R; j++) {
            double sum = 0;
            for (size_t k = 0; k < OUT; k++)
                sum += (double)b[k * R + i] * (double)b[k * R + j];
            assert_true(fabs(sum - (i == j)) < 1e-5);
            if (j < i) /* R is upper triangular */
                assert_true(fabs((double)a[i * IN + j]) < 1e-4);
        }
    for (size_t i = 0; i < OUT; i++)
        for (size_t j = 0; j < R; j++) { /* Q R has W's first columns */
            double sum = 0;
            for (size_t k = 0; k < R; k++)
                sum += (double)b[i * R + k] * (double)a[k * IN + j];
            assert_true(fabs(sum - (double)m.w[i * IN + j]) < 1e-4);
        }
}

static void nystroem_takes_rows_columns_and_a_truncated_inverse(void **state)
{
    (void)state;
    static struct matrix m;
    m = make(OUT, IN);
    for (size_t j = 0; j < IN; j++)
        m.w[3 * IN + j] = m.w[2 * IN + j]; /* a block without inverse */
    float a[R * IN];
    float n[R * R];
    float b[OUT * R];
    struct ps_adapter_base base = base_of(&m);
    assert_int_equal(ps_decompose_nystroem(&base, OUT, IN, R, 1e-3, a, n, b, NULL), 0);
    assert_memory_equal(a, m.w, sizeof a);
    for (size_t i = 0; i < OUT; i++)
        assert_memory_equal(b + i * R, m.w + i * IN, R * sizeof *b);
    double largest = 0;
    for (size_t i = 0; i < R; i++) /* P N P = P for the block P */
        for (size_t j = 0; j < R; j++) {
            double sum = 0;
            for (size_t k = 0; k < R; k++)
                for (size_t l = 0; l < R; l++)
                    sum += (double)a[i * IN + k] * (double)n[k * R + l] * (double)a[l * IN + j];
            assert_true(fabs(sum - (double)a[i * IN + j]) < 1e-3);
            largest = fmax(largest, fabs((double)n[i * R + j]));
        }
    assert_true(largest < 1e3);
}

static void a_zero_weight_gives_finite_factors(void **state)
{
    (void)state;
    static struct matrix m;
    m = (struct matrix){.out = OUT, .in = IN, .reads_left = -1};
    float a[R * IN];
    float n[R * R];
    float b[OUT * R];
    struct ps_adapter_base base = base_of(&m);
    struct ps_rng_key key = {.seed = 5};
    for (int kind = 0; kind < 3; kind++) {
        int ret = kind == 0   ? ps_decompose_svd(&base, OUT, IN, R, 2, &key, a, b, NULL)
                  : kind == 1 ? ps_decompose_qr(&base, OUT, IN, R, a, b, NULL)
                              : ps_decompose_nystroem(&base, OUT, IN, R, 1e-3, a, n, b, NULL);
        assert_int_equal(ret, 0);
        assert_true(square_norm(a, R * IN) == 0 && isfinite(square_norm(b, OUT * R)));
    }
    assert_true(square_norm(n, R * R) == 0);
}

static void a_read_that_fails_is_passed_on(void **state)
{
    (void)state;
    static struct matrix m;
    float a[R * IN];
    float n[R * R];
    float b[OUT * R];
    struct ps_rng_key key = {.seed = 5};
    for (int reads = 0; reads < 4; reads++) {
        m = make(OUT, IN);
        struct ps_adapter_base base = base_of(&m);
        m.reads_left = reads;
        assert_int_equal(ps_decompose_svd(&base, OUT, IN, R, 2, &key, a, b, NULL), -EIO);
        m.reads_left = reads < 2 ? reads : 0;
        assert_int_equal(ps_decompose_qr(&base, OUT, IN, R, a, b, NULL), -EIO);
        m.reads_left = reads < 2 ? reads : 0;
        assert_int_equal(ps_decompose_nystroem(&base, OUT, IN, R, 1e-3, a, n, b, NULL), -EIO);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jacobi_factors_are_orthogonal_and_multiply_to_the_matrix),
        cmocka_unit_test(the_randomized_triplets_have_the_energy_of_the_exact_ones),
        cmocka_unit_test(qr_columns_are_orthonormal_and_span_the_first_ones),
        cmocka_unit_test(nystroem_takes_rows_columns_and_a_truncated_inverse),
        cmocka_unit_test(a_zero_weight_gives_finite_factors),
        cmocka_unit_test(a_read_that_fails_is_passed_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
