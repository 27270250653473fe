/* Element types: exact conversions, rounding to nearest even, special values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/dtype.h"
#include "runtime/base/rng.h"

static uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Value of a half by its definition, in double: sign * (man or 1024 + man) * 2^e. */
static double half_value(uint16_t h)
{
    int exp = (h >> 10) & 31;
    double man = h & 1023;
    double v = exp ? ldexp(1024 + man, exp - 25) : ldexp(man, -24);
    return h & 0x8000 ? -v : v;
}

static void every_half_widens_exactly_and_comes_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = ps_f16_to_f32((uint16_t)h);
        bool special = ((h >> 10) & 31) == 31;
        if (special && (h & 1023)) {
            assert_true(isnan(f));
            assert_true((ps_f32_to_f16(f) & 0x7fff) > 0x7c00);
            continue;
        }
        if (special)
            assert_true(isinf(f) && !signbit(f) == !(h & 0x8000));
        else
            assert_true((double)f == half_value((uint16_t)h));
        assert_int_equal(ps_f32_to_f16(f), h);
    }
}

static void every_bf16_widens_exactly_and_comes_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = ps_bf16_to_f32((uint16_t)h);
        assert_int_equal(bits(f), h << 16);
        if (!isnan(f))
            assert_int_equal(ps_f32_to_bf16(f), h);
        else
            assert_int_equal(ps_f32_to_bf16(f), h | 0x40);
    }
}

/* Nearest of two neighbours a <= x <= b, the even one in the middle. */
static void narrowing_to_half_takes_the_nearest_and_the_even_in_the_middle(void **state)
{
    (void)state;
    struct ps_rng_key key = {.seed = 1, .site = 99};
    for (uint32_t h = 0; h < 0x7bff; h++) {
        double a = half_value((uint16_t)h), b = half_value((uint16_t)(h + 1));
        float mid = (float)((a + b) / 2); /* exact */
        assert_int_equal(ps_f32_to_f16(mid), h & 1 ? h + 1 : h);
        assert_int_equal(ps_f32_to_f16(nextafterf(mid, -1)), h);
        assert_int_equal(ps_f32_to_f16(-nextafterf(mid, INFINITY)), (h + 1) | 0x8000);
        float x = (float)(a + (b - a) * (double)ps_rng_uniform(&key, h));
        uint16_t got = ps_f32_to_f16(x);
        double err = fabs(half_value(got) - (double)x);
        assert_true(err <= fabs(a - (double)x) && err <= fabs(b - (double)x));
    }
}

static void halves_overflow_to_infinity_at_the_middle(void **state)
{
    (void)state;
    assert_int_equal(ps_f32_to_f16(65504.0f), 0x7bff);
    assert_int_equal(ps_f32_to_f16(nextafterf(65520.0f, 0)), 0x7bff);
    assert_int_equal(ps_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(ps_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(ps_f32_to_f16(0x1p-25f), 0);
    assert_int_equal(ps_f32_to_f16(nextafterf(0x1p-25f, 1)), 1);
    assert_int_equal(ps_f32_to_f16(-0.0f), 0x8000);
}

static void bf16_rounds_to_nearest_even_and_keeps_special_values(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7f80; h++) {
        uint32_t mid = (h << 16) | 0x8000;
        assert_int_equal(ps_f32_to_bf16(from_bits(mid)), h & 1 ? h + 1 : h);
        assert_int_equal(ps_f32_to_bf16(from_bits(mid - 1)), h);
        assert_int_equal(ps_f32_to_bf16(from_bits(mid + 1)), h + 1);
    }
    assert_int_equal(ps_f32_to_bf16(from_bits(0x7f7fffff)), 0x7f80);
    assert_int_equal(ps_f32_to_bf16(-INFINITY), 0xff80);
    assert_int_equal(ps_f32_to_bf16(from_bits(0x7f800001)), 0x7fc0);
    assert_int_equal(ps_f32_to_bf16(from_bits(0xffffffff)), 0xffff);
}

static void convert_works_between_all_three_types_and_stays_inside(void **state)
{
    (void)state;
    enum { N = 37 };
    static const float value[4] = {1.5f, -0.25f, 1024.0f, 0x1p-10f}; /* exact in all three */
    for (int s = 0; s < 3; s++) {
        for (int d = 0; d < 3; d++) {
            enum ps_dtype st = (enum ps_dtype)s, dt = (enum ps_dtype)d;
            unsigned char src[4 * N], dst[4 * N + 1], back[4 * N];
            float f[N];
            for (int i = 0; i < N; i++)
                f[i] = value[i % 4];
            ps_dtype_convert(src, st, f, PS_DTYPE_F32, N);
            size_t bytes = N * ps_dtype_size(dt);
            memset(dst, 0xcc, sizeof dst);
            ps_dtype_convert(dst, dt, src, st, N);
            assert_int_equal(dst[bytes], 0xcc);
            ps_dtype_convert(back, PS_DTYPE_F32, dst, dt, N);
            assert_memory_equal(back, f, sizeof f);
            ps_dtype_convert(dst, dt, dst, dt, N);
            ps_dtype_convert(dst, dt, src, st, 0);
        }
    }
    assert_string_equal(ps_dtype_name(PS_DTYPE_BF16), "BF16");
    assert_int_equal(ps_dtype_size(PS_DTYPE_I64), 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_widens_exactly_and_comes_back),
        cmocka_unit_test(every_bf16_widens_exactly_and_comes_back),
        cmocka_unit_test(narrowing_to_half_takes_the_nearest_and_the_even_in_the_middle),
        cmocka_unit_test(halves_overflow_to_infinity_at_the_middle),
        cmocka_unit_test(bf16_rounds_to_nearest_even_and_keeps_special_values),
        cmocka_unit_test(convert_works_between_all_three_types_and_stays_inside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
