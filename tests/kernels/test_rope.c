/* Rotary position embedding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/rope.h"
#include "tests/kernels/kernel_check.h"

#define POSITIONS 700

struct shape {
    size_t n_tok, n_head, head_dim;
};

static const struct shape shapes[] = {{1, 1, 2},  {3, 2, 6},   {5, 3, 32},  {2, 1, 34}, {7, 2, 64},
                                      {3, 5, 80}, {70, 9, 64}, {2, 2, 128}, {1, 1, 600}};

#define SHAPES (sizeof shapes / sizeof *shapes)

static float *make_table(size_t half)
{
    float *inv_freq = malloc(half * sizeof *inv_freq);
    float *table = malloc(POSITIONS * 2 * half * sizeof *table);
    assert_non_null(inv_freq);
    assert_non_null(table);
    for (size_t i = 0; i < half; i++)
        inv_freq[i] = (float)pow(10000.0, -(double)i / (double)half);
    ps_rope_table(table, inv_freq, POSITIONS, half);
    free(inv_freq);
    return table;
}

static void table_holds_cosines_then_sines_of_the_fp32_angle(void **state)
{
    (void)state;
    const float inv_freq[3] = {1.0f, 0.1f, 0.003f};
    float table[1000 * 6];
    ps_rope_table(table, inv_freq, 1000, 3);
    for (size_t t = 0; t < 1000; t++) {
        for (size_t i = 0; i < 3; i++) {
            float angle = (float)t * inv_freq[i];
            close_to("cos", t, (double)table[6 * t + i], cos((double)angle), 6e-8, 0);
            close_to("sin", t, (double)table[6 * t + 3 + i], sin((double)angle), 6e-8, 0);
        }
    }
}

static void matches_double_and_ignores_thread_count(void **state)
{
    struct pools *pools = *state;
    for (size_t i = 0; i < SHAPES * 2; i++) {
        struct shape s = shapes[i / 2];
        enum ps_dtype t = i % 2 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        size_t d = s.head_dim, half = d / 2, used = s.n_head * d, ld = used + 3;
        size_t es = ps_dtype_size(t), bytes = ((s.n_tok - 1) * ld + used) * es;
        float *table = make_table(half);
        int32_t position[70];
        for (size_t k = 0; k < s.n_tok; k++)
            position[k] = (int32_t)((k * 131 + 699) % POSITIONS);
        unsigned char *x = malloc(bytes), *first = malloc(bytes);
        assert_non_null(x);
        assert_non_null(first);
        fill(x, t, bytes / es, 1, i);
        FOR_EACH_ISA(isa)
        {
            for (int p = 0; p < 2 * THREADS_MAX; p++) {
                int inverse = p >= THREADS_MAX;
                struct guarded y = guarded_make(bytes, es);
                memcpy(y.data, x, bytes);
                ps_rope_apply(pools->pool[p % THREADS_MAX], isa, y.data, ld, t, s.n_tok, s.n_head,
                              d, position, table, inverse);
                if (p % THREADS_MAX == 0)
                    memcpy(first, y.data, bytes);
                assert_memory_equal(first, y.data, bytes);
                /* two products and a sum of values of size 4: 3 * 4 * 2^-24 */
                double atol = 8e-7, rtol = t == PS_DTYPE_F32 ? 0 : spacing(t);
                for (size_t k = 0; k < bytes / es && p % THREADS_MAX == 0; k++) {
                    size_t tok = k / ld, j = k % ld;
                    if (j >= used) { /* between rows: untouched */
                        assert_memory_equal(y.data + k * es, x + k * es, es);
                        continue;
                    }
                    size_t e = j % d, pair = tok * ld + j - e + e % half;
                    const float *row = table + (size_t)position[tok] * d;
                    double c = (double)row[e % half], sn = (double)row[half + e % half];
                    double a = get(x, t, pair), b = get(x, t, pair + half);
                    sn = inverse ? -sn : sn;
                    double ref = e < half ? a * c - b * sn : b * c + a * sn;
                    close_to("y", k, get(y.data, t, k), ref, atol, rtol);
                }
                guarded_free(&y);
            }
        }
        free(x);
        free(first);
        free(table);
    }
}

static void inverse_is_the_transpose(void **state)
{
    (void)state;
    /* <R x, w> = <x, R^T w>: what the backward pass needs */
    float *table = make_table(32), x[64], y[64], w[64], v[64];
    const int32_t position = 77;
    FOR_EACH_ISA(isa)
    {
        fill(x, PS_DTYPE_F32, 64, 1, 1);
        fill(w, PS_DTYPE_F32, 64, 1, 2);
        memcpy(y, x, sizeof x);
        memcpy(v, w, sizeof w);
        ps_rope_apply(NULL, isa, y, 64, PS_DTYPE_F32, 1, 1, 64, &position, table, 0);
        ps_rope_apply(NULL, isa, v, 64, PS_DTYPE_F32, 1, 1, 64, &position, table, 1);
        double left = 0, right = 0;
        for (int i = 0; i < 64; i++) {
            left += (double)y[i] * (double)w[i];
            right += (double)x[i] * (double)v[i];
        }
        close_to("inner product", 0, left, right, 1e-5, 1e-6);
        ps_rope_apply(NULL, isa, y, 64, PS_DTYPE_F32, 1, 1, 64, &position, table, 1);
        for (size_t i = 0; i < 64; i++)
            close_to("there and back", i, (double)y[i], (double)x[i], 1e-6, 0);
    }
    free(table);
}

static void position_zero_changes_nothing(void **state)
{
    (void)state;
    float *table = make_table(20), x[40], y[40];
    const int32_t position = 0;
    FOR_EACH_ISA(isa)
    {
        fill(x, PS_DTYPE_F32, 40, 1, 3);
        memcpy(y, x, sizeof x);
        ps_rope_apply(NULL, isa, y, 40, PS_DTYPE_F32, 1, 1, 40, &position, table, 0);
        assert_memory_equal(x, y, sizeof x);
    }
    free(table);
}

static void nan_reaches_its_pair_only(void **state)
{
    (void)state;
    float *table = make_table(20), x[40];
    const int32_t position = 5;
    FOR_EACH_ISA(isa)
    {
        fill(x, PS_DTYPE_F32, 40, 1, 3);
        x[19] = NAN;
        ps_rope_apply(NULL, isa, x, 40, PS_DTYPE_F32, 1, 1, 40, &position, table, 0);
        for (int i = 0; i < 40; i++)
            assert_int_equal(isnan(x[i]), i == 19 || i == 39);
    }
    free(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_holds_cosines_then_sines_of_the_fp32_angle),
        cmocka_unit_test(matches_double_and_ignores_thread_count),
        cmocka_unit_test(inverse_is_the_transpose),
        cmocka_unit_test(position_zero_changes_nothing),
        cmocka_unit_test(nan_reaches_its_pair_only),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
