/* Scaled columns, column and matrix dots, row norms: against sums in double, at sizes off every
 * block, whatever the number of threads; NaN propagates; nothing beside the outputs is written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/rng.h"
#include "runtime/kernels/columns.h"

enum { TOK = 37, N = 131, R = 5, IN = 259, PAD = 8 };
#define CANARY 77.0f

struct buffer {
    float v[TOK * IN + PAD];         /* values, on the grid of dtype */
    unsigned char raw[4 * TOK * IN]; /* the same, stored */
    enum ps_dtype dtype;
};

static struct buffer *make(enum ps_dtype dtype, size_t n, uint64_t seed)
{
    struct buffer *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->dtype = dtype;
    struct ps_rng_key key = {.seed = seed};
    for (size_t i = 0; i < n; i++)
        b->v[i] = 2 * ps_rng_uniform(&key, i) - 1;
    ps_dtype_convert(b->raw, dtype, b->v, PS_DTYPE_F32, n);
    ps_dtype_convert(b->v, PS_DTYPE_F32, b->raw, dtype, n);
    return b;
}

static void near(const char *what, size_t i, double got, double want, double tol)
{
    if (!(fabs(got - want) <= tol * (1 + fabs(want))))
        fail_msg("%s[%zu]: %.9g, expected %.9g", what, i, got, want);
}

static void scaled_columns_equal_double(void **state)
{
    (void)state;
    for (int i = 0; i < 16; i++) {
        enum ps_dtype dtype = i & 1 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        bool biased = i & 2;
        bool added = i & 4;
        struct ps_pool *pool;
        assert_int_equal(ps_pool_create(&pool, i & 8 ? 3 : 1), 0);
        struct buffer *x = make(dtype, TOK * N, 1);
        struct buffer *r = make(dtype, TOK * N, 2);
        struct buffer *s = make(PS_DTYPE_F32, N, 3);
        struct buffer *b = make(PS_DTYPE_F16, N, 4);
        struct ps_scale_columns_args a = {.n_tok = TOK,
                                          .n = N,
                                          .dtype = dtype,
                                          .y = r->raw, /* in place of what is added */
                                          .x = x->raw,
                                          .scale = s->v,
                                          .bias = biased ? b->raw : NULL,
                                          .bias_dtype = PS_DTYPE_F16,
                                          .residual = added ? r->raw : NULL};
        ps_scale_columns(pool, &a);
        static float y[TOK * N];
        ps_dtype_convert(y, PS_DTYPE_F32, r->raw, dtype, TOK * N);
        for (size_t k = 0; k < TOK * N; k++) {
            double want = (double)s->v[k % N] * (double)x->v[k];
            want += biased ? (double)b->v[k % N] : 0;
            want += added ? (double)r->v[k] : 0;
            near("y", k, (double)y[k], want, dtype == PS_DTYPE_F32 ? 3e-7 : 4e-3);
        }
        for (size_t k = TOK * N * ps_dtype_size(dtype); k < sizeof r->raw; k++)
            assert_int_equal(r->raw[k], 0);
        free(x);
        free(r);
        free(s);
        free(b);
        ps_pool_destroy(pool);
    }
}

static void column_dots_equal_double_and_add(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        enum ps_dtype dtype = i & 1 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        struct buffer *a = make(dtype, TOK * N, 5);
        struct buffer *b = make(dtype, TOK * N, 6);
        struct buffer *d = make(PS_DTYPE_F32, N, 7);
        float out[N + 1];
        for (int j = 0; j <= N; j++)
            out[j] = CANARY;
        ps_column_dot(NULL, out, a->raw, b->raw, dtype, i & 2 ? d->v : NULL, TOK, N, i & 2);
        for (size_t j = 0; j < N; j++) {
            double want = 0;
            for (size_t t = 0; t < TOK; t++)
                want += (double)a->v[t * N + j] * (double)b->v[t * N + j];
            if (i & 2)
                want = want / (double)d->v[j] + (double)CANARY;
            near("dot", j, (double)out[j], want, 2e-6);
        }
        assert_true(out[N] == CANARY);
        free(a);
        free(b);
        free(d);
    }
}

static void matrices_equal_double(void **state)
{
    (void)state;
    struct buffer *g = make(PS_DTYPE_F32, N * R, 8);
    struct buffer *b = make(PS_DTYPE_F32, N * R, 9);
    struct buffer *row = make(PS_DTYPE_F32, N, 10);
    struct buffer *col = make(PS_DTYPE_F32, R, 11);
    static float y[N * R + 1];
    y[N * R] = CANARY;
    ps_scale_matrix(NULL, y, g->v, row->v, col->v, N, R);
    assert_true(y[N * R] == CANARY);
    for (size_t i = 0; i < N * R; i++)
        near("y", i, (double)y[i], (double)row->v[i / R] * (double)g->v[i] * (double)col->v[i % R],
             3e-7);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float rows[N + 1];
        float cols[R + 1];
        for (int i = 0; i <= N; i++)
            rows[i] = CANARY;
        for (int i = 0; i <= R; i++)
            cols[i] = CANARY;
        struct ps_matrix_dots_args a = {.rows = N,
                                        .cols = R,
                                        .g = g->v,
                                        .b = b->v,
                                        .row = row->v,
                                        .col = col->v,
                                        .row_out = rows,
                                        .col_out = cols,
                                        .accumulate = accumulate};
        ps_matrix_dots(NULL, &a);
        double want_col[R] = {0};
        for (size_t i = 0; i < N; i++) {
            double want = accumulate ? (double)CANARY : 0;
            for (size_t k = 0; k < R; k++) {
                double p = (double)g->v[i * R + k] * (double)b->v[i * R + k];
                want += p * (double)col->v[k];
                want_col[k] += p * (double)row->v[i];
            }
            near("row", i, (double)rows[i], want, 1e-6);
        }
        for (size_t k = 0; k < R; k++)
            near("col", k, (double)cols[k], want_col[k] + (accumulate ? (double)CANARY : 0), 1e-6);
        assert_true(rows[N] == CANARY && cols[R] == CANARY);
    }
    free(g);
    free(b);
    free(row);
    free(col);
}

/* Q = W A^T and BG = B A A^T in double; the norms are those of the rows of W + s B A. */
static void row_norms_are_those_of_the_sum(void **state)
{
    (void)state;
    static const enum ps_dtype dtypes[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};
    enum { OUT = 19 };
    const double s = 0.7;
    for (int d = 0; d < 3; d++) {
        struct buffer *w = make(dtypes[d], OUT * IN, 12);
        struct buffer *a = make(PS_DTYPE_F32, R * IN, 13);
        struct buffer *b = make(PS_DTYPE_F32, OUT * R, 14);
        struct buffer *m = make(PS_DTYPE_F32, OUT, 15);
        float q[OUT * R];
        float bg[OUT * R];
        for (size_t i = 0; i < OUT; i++)
            for (size_t k = 0; k < R; k++) {
                double sum = 0;
                double low = 0;
                for (size_t j = 0; j < IN; j++) {
                    sum += (double)w->v[i * IN + j] * (double)a->v[k * IN + j];
                    for (size_t l = 0; l < R; l++)
                        low += (double)b->v[i * R + l] * (double)a->v[l * IN + j] *
                               (double)a->v[k * IN + j];
                }
                q[i * R + k] = (float)sum;
                bg[i * R + k] = (float)low;
            }
        float n[OUT + 1];
        float c[OUT + 1];
        n[OUT] = c[OUT] = CANARY;
        struct ps_row_norms_args args = {.out = OUT,
                                         .in = IN,
                                         .r = R,
                                         .w = w->raw,
                                         .w_dtype = dtypes[d],
                                         .b = b->v,
                                         .q = q,
                                         .bg = bg,
                                         .s = (float)s,
                                         .m = m->v,
                                         .n = n,
                                         .c = c};
        ps_row_norms(NULL, &args);
        for (size_t i = 0; i < OUT; i++) {
            double square = 0;
            for (size_t j = 0; j < IN; j++) {
                double v = (double)w->v[i * IN + j];
                for (size_t k = 0; k < R; k++)
                    v += s * (double)b->v[i * R + k] * (double)a->v[k * IN + j];
                square += v * v;
            }
            near("n", i, (double)n[i], sqrt(square), 1e-6);
            near("c", i, (double)c[i], (double)m->v[i] / sqrt(square), 1e-6);
        }
        assert_true(n[OUT] == CANARY && c[OUT] == CANARY);
        free(w);
        free(a);
        free(b);
        free(m);
    }
}

static void zero_rows_and_nan_are_told_apart(void **state)
{
    (void)state;
    float w[2 * 3] = {0, 0, 0, 1, (float)NAN, 2};
    float none[2] = {0};
    float n[2];
    struct ps_row_norms_args a = {.out = 2,
                                  .in = 3,
                                  .r = 1,
                                  .w = w,
                                  .w_dtype = PS_DTYPE_F32,
                                  .b = none,
                                  .q = none,
                                  .bg = none,
                                  .s = 1,
                                  .n = n};
    ps_row_norms(NULL, &a);
    assert_true(n[0] > 0 && isfinite(n[0]));
    assert_true(isnan(n[1]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scaled_columns_equal_double),
        cmocka_unit_test(column_dots_equal_double_and_add),
        cmocka_unit_test(matrices_equal_double),
        cmocka_unit_test(row_norms_are_those_of_the_sum),
        cmocka_unit_test(zero_rows_and_nan_are_told_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
