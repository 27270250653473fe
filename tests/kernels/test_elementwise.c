/* Conversion, addition, rows, dropout, column sums, sums of squares. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/elementwise.h"
#include "runtime/kernels/elementwise_internal.h"
#include "tests/kernels/kernel_check.h"

static const size_t sizes[] = {1, 2, 15, 16, 17, 255, 256, 257, 1000, 32767, 32768, 32769, 100001};
#define SIZES (sizeof sizes / sizeof *sizes)

static const enum ps_dtype types[3] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};

/* Every bit pattern of a 16-bit type; every upper half of fp32 with lower halves on and beside the
 * ties of rounding to bf16 and F16. */
static void hostile(void *p, enum ps_dtype t, size_t i)
{
    if (t == PS_DTYPE_F32) {
        const uint32_t low[8] = {0, 0x7fff, 0x8000, 0x8001, 0x0fff, 0x1000, 0x1001, 0x3000};
        uint32_t u = (uint32_t)(i / 8) << 16 | low[i % 8];
        memcpy((unsigned char *)p + 4 * i, &u, 4);
    } else {
        uint16_t h = (uint16_t)i;
        memcpy((unsigned char *)p + 2 * i, &h, 2);
    }
}

static void convert_equals_the_scalar_conversion_for_hostile_bits(void **state)
{
    struct pools *pools = *state;
    const size_t n = 8 * 65536;
    for (int k = 0; k < 9; k++) {
        enum ps_dtype st = types[k / 3], dt = types[k % 3];
        struct guarded src = guarded_make(n * ps_dtype_size(st), ps_dtype_size(st));
        struct guarded want = guarded_make(n * ps_dtype_size(dt), ps_dtype_size(dt));
        for (size_t i = 0; i < n; i++)
            hostile(src.data, st, i);
        ps_dtype_convert(want.data, dt, src.data, st, n);
        FOR_EACH_ISA(isa)
        {
            struct guarded dst = guarded_make(n * ps_dtype_size(dt), ps_dtype_size(dt));
            ps_convert(pools->pool[1], isa, dst.data, dt, src.data, st, n);
            for (size_t i = 0; i < n; i++) {
                double a = get(dst.data, dt, i), b = get(want.data, dt, i);
                /* a NaN stays a NaN; its payload is not promised */
                if (!isnan(b) || !isnan(a))
                    assert_memory_equal(dst.data + i * ps_dtype_size(dt),
                                        want.data + i * ps_dtype_size(dt), ps_dtype_size(dt));
            }
            guarded_free(&dst);
        }
        guarded_free(&src);
        guarded_free(&want);
    }
}

static void convert_handles_every_size_and_thread_count(void **state)
{
    struct pools *pools = *state;
    for (size_t s = 0; s < SIZES * 9; s++) {
        size_t n = sizes[s / 9];
        enum ps_dtype st = types[s % 9 / 3], dt = types[s % 3];
        struct guarded src = guarded_make(n * ps_dtype_size(st), ps_dtype_size(st));
        struct guarded want = guarded_make(n * ps_dtype_size(dt), ps_dtype_size(dt));
        fill(src.data, st, n, 1, s);
        ps_dtype_convert(want.data, dt, src.data, st, n);
        FOR_EACH_ISA(isa)
        {
            struct guarded dst = guarded_make(n * ps_dtype_size(dt), ps_dtype_size(dt));
            ps_convert(pools->pool[s % 3], isa, dst.data, dt, src.data, st, n);
            assert_memory_equal(dst.data, want.data, want.bytes);
            guarded_free(&dst);
        }
        guarded_free(&src);
        guarded_free(&want);
    }
}

static void add_rounds_once_and_works_in_place(void **state)
{
    struct pools *pools = *state;
    for (size_t s = 0; s < SIZES * 2; s++) {
        size_t n = sizes[s / 2];
        enum ps_dtype t = types[s % 2];
        size_t es = ps_dtype_size(t);
        struct guarded a = guarded_make(n * es, es), b = guarded_make(n * es, 2 * es);
        unsigned char *want = malloc(n * es);
        assert_non_null(want);
        fill(a.data, t, n, 1, 1);
        fill(b.data, t, n, 100, 2);
        put(a.data, t, n - 1, (double)NAN);
        for (size_t i = 0; i < n; i++)
            put(want, t, i, (double)((float)get(a.data, t, i) + (float)get(b.data, t, i)));
        FOR_EACH_ISA(isa)
        {
            for (int p = 0; p < THREADS_MAX; p++) {
                struct guarded y = guarded_make(n * es, es);
                ps_add(pools->pool[p], isa, y.data, a.data, b.data, t, n);
                assert_memory_equal(y.data, want, (n - 1) * es);
                assert_true(isnan(get(y.data, t, n - 1)));
                memcpy(y.data, a.data, n * es);
                ps_add(pools->pool[p], isa, y.data, y.data, b.data, t, n);
                assert_memory_equal(y.data, want, (n - 1) * es);
                memcpy(y.data, b.data, n * es);
                ps_add(pools->pool[p], isa, y.data, a.data, y.data, t, n);
                assert_memory_equal(y.data, want, (n - 1) * es);
                guarded_free(&y);
            }
        }
        free(want);
        guarded_free(&a);
        guarded_free(&b);
    }
}

static void gather_then_scatter_returns_the_rows(void **state)
{
    struct pools *pools = *state;
    for (size_t k = 0; k < 6; k++) {
        const size_t width[3] = {1, 33, 40000};
        size_t n = width[k % 3], rows = 11, picked = 6;
        enum ps_dtype t = types[k / 3];
        size_t es = ps_dtype_size(t);
        const int32_t row[6] = {10, 0, 3, 7, 1, 5};
        struct guarded x = guarded_make(rows * n * es, es), y = guarded_make(picked * n * es, es);
        struct guarded z = guarded_make(rows * n * es, es);
        fill(x.data, t, rows * n, 1, k);
        ps_gather_rows(pools->pool[2], y.data, x.data, row, picked, n, t);
        for (size_t i = 0; i < picked; i++)
            assert_memory_equal(y.data + i * n * es, x.data + (size_t)row[i] * n * es, n * es);
        ps_scatter_rows(pools->pool[2], z.data, y.data, row, picked, n, t);
        for (size_t r = 0; r < rows; r++) {
            int hit = 0;
            for (size_t i = 0; i < picked; i++)
                hit |= row[i] == (int32_t)r;
            if (hit)
                assert_memory_equal(z.data + r * n * es, x.data + r * n * es, n * es);
            for (size_t b = 0; b < n * es && !hit; b++)
                assert_int_equal(z.data[r * n * es + b], GUARD_BYTE);
        }
        guarded_free(&x);
        guarded_free(&y);
        guarded_free(&z);
    }
}

static const struct ps_rng_key key = {
    .seed = 0x123456789abcdef0u, .step = 77, .micro_batch = 3, .layer = 21, .site = PS_RNG_DROPOUT};

static void dropout_follows_the_counter_based_stream(void **state)
{
    struct pools *pools = *state;
    for (size_t s = 0; s < SIZES * 8; s++) {
        size_t n = sizes[s / 8], rows = n % 3 == 0 ? 3 : 1;
        enum ps_dtype t = types[s % 2];
        int how = (int)(s % 8) / 2;
        int add = how & PS_DROPOUT_ADD;
        size_t es = ps_dtype_size(t);
        const float p = 0.3f;
        struct guarded x = guarded_make(n * es, es);
        unsigned char *want = malloc(n * es), *y0 = malloc(n * es);
        assert_non_null(want);
        assert_non_null(y0);
        fill(x.data, t, n, 1, 1);
        fill(y0, t, n, 1, 2);
        for (size_t i = 0; i < n; i++) {
            float v = (float)get(x.data, t, i) / (1.0f - p);
            v = ps_rng_uniform(&key, i) >= p ? v : 0;
            v = how & PS_DROPOUT_REST ? (float)get(x.data, t, i) - v : v;
            put(want, t, i, (double)(add ? v + (float)get(y0, t, i) : v));
        }
        FOR_EACH_ISA(isa)
        {
            for (int k = 0; k < THREADS_MAX; k++) {
                struct guarded y = guarded_make(n * es, es);
                memcpy(y.data, y0, n * es);
                ps_dropout(pools->pool[k], isa, y.data, x.data, t, rows, n / rows, p, &key, how);
                assert_memory_equal(y.data, want, n * es);
                if (!add) {
                    memcpy(y.data, x.data, n * es);
                    ps_dropout(pools->pool[k], isa, y.data, y.data, t, 1, n, p, &key, how);
                    assert_memory_equal(y.data, want, n * es);
                }
                guarded_free(&y);
            }
        }
        free(want);
        free(y0);
        guarded_free(&x);
    }
}

static void dropout_keeps_the_expected_share_and_mean(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        const size_t n = 200000;
        float *x = malloc(n * 4);
        assert_non_null(x);
        for (size_t i = 0; i < n; i++)
            x[i] = 1;
        ps_dropout(NULL, isa, x, x, PS_DTYPE_F32, n, 1, 0.1f, &key, 0);
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            assert_true(x[i] == 0 || x[i] == 1.0f / 0.9f);
            sum += (double)x[i];
        }
        /* standard deviation of the mean: sqrt(0.1 / 0.9 / n) = 7.5e-4; five of them */
        close_to("mean", 0, sum / (double)n, 1, 4e-3, 0);
        ps_dropout(NULL, isa, x, x, PS_DTYPE_F32, n, 1, 0.0f, &key, 0);
        double again = 0;
        for (size_t i = 0; i < n; i++)
            again += (double)x[i];
        assert_true(again == sum); /* p = 0 keeps every bit */
        x[0] = NAN;
        x[40] = NAN;
        ps_dropout(NULL, isa, x, x, PS_DTYPE_F32, n, 1, 0.0f, &key, 0);
        assert_true(isnan(x[0]) && isnan(x[40]));
        free(x);
    }
}

static void dropout_keeps_an_element_whose_number_equals_p(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        for (size_t at = 0; at < 80; at += 13) {
            float x[80], p = ps_rng_uniform(&key, at);
            for (size_t i = 0; i < 80; i++)
                x[i] = 1;
            ps_dropout(NULL, isa, x, x, PS_DTYPE_F32, 1, 80, p, &key, 0);
            for (size_t i = 0; i < 80; i++)
                assert_int_equal(x[i] != 0, ps_rng_uniform(&key, i) >= p);
            assert_true(x[at] != 0);
        }
    }
}

/* Indices past 2^34, where the block number leaves 32 bits within one vector. The tensor is not
 * there: only the elements around the end of `x` are touched. */
static void dropout_index_is_64_bit(void **state)
{
    (void)state;
    if (ps_isa_detect() < PS_ISA_AVX512) {
        print_message("skip: no AVX-512\n");
        skip();
    }
    const size_t begin = ((size_t)1 << 34) - 48;
    float x[128];
    for (size_t i = 0; i < 128; i++)
        x[i] = 1;
    void *base = (void *)((uintptr_t)x - begin * sizeof *x);
    const struct ps__dropout_args a = {
        .y = base, .x = base, .dtype = PS_DTYPE_F32, .p = 0.5f, .key = &key};
    ps__dropout_avx512(&a, begin, begin + 128);
    for (size_t i = 0; i < 128; i++)
        assert_int_equal(x[i] != 0, ps_rng_uniform(&key, begin + i) >= 0.5f);
}

static void column_sum_adds_blocks_of_64_rows_in_order(void **state)
{
    struct pools *pools = *state;
    const size_t row_counts[] = {1, 63, 64, 65, 300};
    const size_t widths[] = {1, 17, 255, 256, 257, 700};
    for (size_t s = 0; s < 5 * 6 * 4; s++) {
        size_t rows = row_counts[s / 24], n = widths[s / 4 % 6], ld = n + 3;
        enum ps_dtype t = types[s % 2];
        int accumulate = s % 4 >= 2;
        size_t es = ps_dtype_size(t);
        struct guarded x = guarded_make(((rows - 1) * ld + n) * es, es);
        fill(x.data, t, (rows - 1) * ld + n, 1, s);
        float want[700];
        fill(want, PS_DTYPE_F32, n, 1, 9);
        for (size_t j = 0; j < n; j++) {
            float total = 0;
            for (size_t b = 0; b < rows; b += 64) {
                float part = 0;
                for (size_t i = b; i < rows && i < b + 64; i++)
                    part += (float)get(x.data, t, i * ld + j);
                total += part;
            }
            want[j] = accumulate ? want[j] + total : total;
        }
        FOR_EACH_ISA(isa)
        {
            for (int k = 0; k < THREADS_MAX; k++) {
                struct guarded out = guarded_make(n * 4, 4);
                fill(out.data, PS_DTYPE_F32, n, 1, 9);
                ps_column_sum(pools->pool[k], isa, (float *)(void *)out.data, x.data, ld, t, rows,
                              n, accumulate);
                assert_memory_equal(out.data, want, n * 4);
                guarded_free(&out);
            }
        }
        guarded_free(&x);
    }
}

static void square_sum_is_exact_to_double_and_the_same_everywhere(void **state)
{
    struct pools *pools = *state;
    const size_t counts[] = {1, 31, 32, 33, 65535, 65536, 65537, 200001};
    for (size_t s = 0; s < 16; s++) {
        size_t n = counts[s / 2], parts = (n + 65535) / 65536;
        enum ps_dtype t = types[s % 2];
        size_t es = ps_dtype_size(t);
        struct guarded x = guarded_make(n * es, es);
        fill(x.data, t, n, 3, s);
        double first[4];
        for (int k = 0; k < THREADS_MAX; k++) {
            FOR_EACH_ISA(isa)
            {
                struct guarded out = guarded_make(parts * 8, 8);
                ps_square_sum(pools->pool[k], isa, (double *)(void *)out.data, x.data, t, n);
                if (k == 0 && isa == PS_ISA_PORTABLE)
                    memcpy(first, out.data, out.bytes);
                assert_memory_equal(first, out.data, out.bytes);
                guarded_free(&out);
            }
        }
        for (size_t b = 0; b < parts; b++) {
            long double sum = 0;
            for (size_t i = b * 65536; i < n && i < (b + 1) * 65536; i++)
                sum += (long double)get(x.data, t, i) * (long double)get(x.data, t, i);
            close_to("part", b, first[b], (double)sum, 0, 1e-14);
        }
        guarded_free(&x);
    }
}

static void square_sum_propagates_nan_and_inf(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        for (size_t at = 0; at < 70; at += 23) {
            float x[70] = {0};
            double out;
            x[at] = NAN;
            ps_square_sum(NULL, isa, &out, x, PS_DTYPE_F32, 70);
            assert_true(isnan(out));
            x[at] = -INFINITY;
            ps_square_sum(NULL, isa, &out, x, PS_DTYPE_F32, 70);
            assert_true(isinf(out));
            x[at] = 3e38f; /* its square overflows fp32 only */
            ps_square_sum(NULL, isa, &out, x, PS_DTYPE_F32, 70);
            assert_true(isfinite(out));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convert_equals_the_scalar_conversion_for_hostile_bits),
        cmocka_unit_test(convert_handles_every_size_and_thread_count),
        cmocka_unit_test(add_rounds_once_and_works_in_place),
        cmocka_unit_test(gather_then_scatter_returns_the_rows),
        cmocka_unit_test(dropout_follows_the_counter_based_stream),
        cmocka_unit_test(dropout_keeps_the_expected_share_and_mean),
        cmocka_unit_test(dropout_keeps_an_element_whose_number_equals_p),
        cmocka_unit_test(dropout_index_is_64_bit),
        cmocka_unit_test(column_sum_adds_blocks_of_64_rows_in_order),
        cmocka_unit_test(square_sum_is_exact_to_double_and_the_same_everywhere),
        cmocka_unit_test(square_sum_propagates_nan_and_inf),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
