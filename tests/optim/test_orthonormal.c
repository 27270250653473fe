/* Orthonormal rows, Gram matrices and the symmetric eigenvalue problem. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "optim/orthonormal.h"
#include "tests/kernels/kernel_check.h"

static double dot(const float *a, const float *b, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)a[i] * (double)b[i];
    return s;
}

/* |Q Q^T - I| and how far rows of y lie from the span of as many rows of q. */
static void check_basis(const float *q, const float *y, size_t k, size_t d)
{
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j <= i; j++)
            close_to("product", i * k + j, dot(q + i * d, q + j * d, d), i == j, 2e-6, 0);
    for (size_t i = 0; i < k; i++) {
        double norm = dot(y + i * d, y + i * d, d), in = 0;
        for (size_t j = 0; j <= i; j++)
            in += pow(dot(q + j * d, y + i * d, d), 2);
        assert_true(norm - in <= 4e-6 * norm);
    }
}

static void rows_become_an_orthonormal_basis_of_their_span(void **state)
{
    struct pools *pools = *state;
    const size_t shape[][2] = {{1, 1}, {1, 7}, {3, 3}, {5, 16}, {17, 33}, {40, 300}, {64, 1100}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        size_t k = shape[s][0], d = shape[s][1];
        struct guarded y = guarded_make(k * d * 4, 4), tau = guarded_make(k * 4, 4);
        float *first = malloc(k * d * 4), *q = (float *)(void *)y.data, *before = malloc(k * d * 4);
        assert_non_null(first);
        assert_non_null(before);
        for (int p = 0; p < THREADS_MAX; p++) {
            fill(q, PS_DTYPE_F32, k * d, 3, s);
            memcpy(before, q, k * d * 4);
            ps_orthonormal_rows(pools->pool[p], q, k, d, (float *)(void *)tau.data);
            if (p == 0) {
                check_basis(q, before, k, d);
                memcpy(first, q, k * d * 4);
            }
            assert_memory_equal(first, q, k * d * 4);
        }
        free(first);
        free(before);
        guarded_free(&y);
        guarded_free(&tau);
    }
}

/* Zero, equal and nearly equal rows, tiny and huge ones: still an orthonormal basis. */
static void dependent_rows_get_a_completion(void **state)
{
    (void)state;
    enum { K = 6, D = 20 };
    float y[K * D], before[K * D], tau[K];
    for (int kind = 0; kind < 4; kind++) {
        fill(y, PS_DTYPE_F32, K * D, 1, 3);
        for (size_t i = 0; i < D; i++) {
            if (kind == 0) { /* 1 = 0, 2 = zero */
                y[D + i] = y[i];
                y[2 * D + i] = 0;
            } else if (kind == 1) {
                y[D + i] = y[i] * (1 + 1e-7f * (float)i);
            } else if (kind == 2) {
                y[i] *= 1e-25f;
                y[D + i] *= 1e15f;
            }
        }
        if (kind == 3)
            memset(y, 0, sizeof y);
        memcpy(before, y, sizeof y);
        ps_orthonormal_rows(NULL, y, K, D, tau);
        for (size_t i = 0; i < K; i++)
            for (size_t j = 0; j <= i; j++)
                close_to("product", i * K + j, dot(y + i * D, y + j * D, D), i == j, 2e-6, 0);
        if (kind != 1 && kind != 0)
            check_basis(y, before, K, D);
    }
}

static void signs_make_the_largest_entry_positive(void **state)
{
    (void)state;
    float y[8] = {1, -3, 3, 0, -2, 1, 1.5f, -1};
    const float want[8] = {-1, 3, -3, 0, 2, -1, -1.5f, 1};
    ps_canonical_signs(y, 2, 4);
    for (size_t i = 0; i < 8; i++)
        assert_true(y[i] == want[i]);
}

/* A v = value v, orthonormal vectors, descending, whatever the spectrum. */
static void eigenvectors_solve_the_problem(void **state)
{
    (void)state;
    const size_t sizes[] = {1, 2, 3, 10, 37, 90};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int kind = 0; kind < 3; kind++) {
            size_t n = sizes[s];
            double *a = calloc(n * n, sizeof *a), *gone = calloc(n * n, sizeof *a);
            double *value = calloc(n, sizeof *a), *vector = calloc(n * n, sizeof *a);
            float *b = calloc(n * n, sizeof *b);
            void *scratch = malloc(ps_symmetric_eigen_bytes(n));
            assert_true(a && gone && value && vector && b && scratch);
            fill(b, PS_DTYPE_F32, n * n, 1, s + 1);
            if (kind == 0) { /* rank one half */
                memset(b + n / 2 * n, 0, (n - n / 2) * n * sizeof *b);
                ps_row_gram(NULL, b, n, n, a);
            } else if (kind == 1) { /* indefinite, with a spread of 1e10 */
                for (size_t i = 0; i < n * n; i++)
                    a[i] = (double)(b[i] + b[i % n * n + i / n]) *
                           pow(10, -5 * ((double)(i % n) + (double)(i / n)) / (double)n);
            } else { /* diagonal, with equal values */
                for (size_t i = 0; i < n; i++)
                    a[i * n + i] = (double)(i % 3);
            }
            double norm = 0;
            for (size_t i = 0; i < n * n; i++)
                norm += a[i] * a[i];
            norm = sqrt(norm);
            memcpy(gone, a, n * n * sizeof *a);
            assert_int_equal(ps_symmetric_eigen(gone, n, n, value, vector, scratch), 0);
            for (size_t j = 0; j < n; j++) {
                assert_true(j == 0 || value[j] <= value[j - 1]);
                for (size_t i = 0; i < n; i++) {
                    double av = 0;
                    for (size_t k = 0; k < n; k++)
                        av += a[i * n + k] * vector[j * n + k];
                    close_to("A v", i, av, value[j] * vector[j * n + i], 1e-13 * (double)n * norm,
                             0);
                }
                for (size_t i = 0; i <= j; i++) {
                    double s2 = 0;
                    for (size_t k = 0; k < n; k++)
                        s2 += vector[i * n + k] * vector[j * n + k];
                    close_to("v v", i, s2, i == j, 1e-12, 0);
                }
            }
            free(a);
            free(gone);
            free(value);
            free(vector);
            free(b);
            free(scratch);
        }
}

static void nan_ends_without_convergence(void **state)
{
    (void)state;
    double a[9] = {(double)NAN, 1, 2, 1, 3, 4, 2, 4, 5}, value[3], vector[9];
    unsigned char scratch[4096] __attribute__((aligned(64)));
    int ret = ps_symmetric_eigen(a, 3, 3, value, vector, scratch);
    assert_true(ret == 0 || ret == PS_ENUMERIC); /* and comes back at all */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_become_an_orthonormal_basis_of_their_span),
        cmocka_unit_test(dependent_rows_get_a_completion),
        cmocka_unit_test(signs_make_the_largest_entry_positive),
        cmocka_unit_test(eigenvectors_solve_the_problem),
        cmocka_unit_test(nan_ends_without_convergence),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
