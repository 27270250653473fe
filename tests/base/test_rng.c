/* Random numbers: known answers, distinct streams, distributions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/rng.h"

/* The published known-answer vectors of Philox-4x32-10. */
static void philox_gives_the_published_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t c[4], k[2], out[4];
    } t[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        uint32_t c[4];
        memcpy(c, t[i].c, sizeof c);
        ps_rng_philox(c, t[i].k[0], t[i].k[1]);
        assert_memory_equal(c, t[i].out, sizeof c);
    }
}

/* Values never change between versions: resumed runs depend on them. Computed apart from this code,
 * by a Philox in Python that was checked against the vectors above. */
static void blocks_of_a_key_are_frozen(void **state)
{
    (void)state;
    static const struct {
        struct ps_rng_key key;
        uint64_t block;
        uint32_t out[4];
    } t[] = {
        {{42, 0, 0, 0, 1}, 0, {0xa15dd529, 0x3c422f0b, 0x0e7949b2, 0x8ae76e54}},
        {{42, 7, 3, 11, 4}, 5, {0x44310e02, 0x537136d1, 0xb768e920, 0x7809c103}},
        {{0x123456789abcdef0, (uint64_t)1 << 40, 0xffffffff, 2, 6},
         ((uint64_t)1 << 33) + 1,
         {0xc182f829, 0x54d82cee, 0x990165ea, 0x7bd9b684}},
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        uint32_t w[4];
        ps_rng_block(&t[i].key, t[i].block, w);
        assert_memory_equal(w, t[i].out, sizeof w);
    }
}

static void words_are_those_of_the_blocks(void **state)
{
    (void)state;
    struct ps_rng_key key = {.seed = 5, .step = 6, .site = PS_RNG_DROPOUT};
    for (uint64_t i = 0; i < 40; i++) {
        uint32_t w[4];
        ps_rng_block(&key, i / 4, w);
        assert_int_equal(ps_rng_u32(&key, i), w[i % 4]);
        uint64_t u = ps_rng_u64(&key, i);
        assert_int_equal((uint32_t)(u >> 32), ps_rng_u32(&key, 2 * i));
        assert_int_equal((uint32_t)u, ps_rng_u32(&key, 2 * i + 1));
    }
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x < y ? -1 : x > y;
}

/* 3^5 keys that differ in single fields, 8 values each: 64-bit values collide with p < 1e-12. */
static void every_field_of_the_key_makes_a_stream_of_its_own(void **state)
{
    (void)state;
    enum { KEYS = 243, EACH = 8 };
    static uint64_t v[KEYS * EACH];
    static const uint64_t at[3] = {0, 1, (uint64_t)1 << 31};
    size_t n = 0;
    for (int k = 0; k < KEYS; k++) {
        struct ps_rng_key key = {at[k % 3], at[k / 3 % 3], (uint32_t)at[k / 9 % 3],
                                 (uint32_t)at[k / 27 % 3], (uint32_t)at[k / 81]};
        for (uint64_t i = 0; i < EACH; i++)
            v[n++] = ps_rng_u64(&key, i);
    }
    qsort(v, n, sizeof v[0], compare_u64);
    for (size_t i = 1; i < n; i++)
        assert_true(v[i - 1] != v[i]);
}

static void the_upper_halves_of_seed_and_step_count(void **state)
{
    (void)state;
    struct ps_rng_key a = {.seed = 1, .step = 1, .site = 1}, b = a, c = a;
    b.seed |= (uint64_t)1 << 40;
    c.step |= (uint64_t)1 << 40;
    assert_true(ps_rng_u64(&a, 0) != ps_rng_u64(&b, 0));
    assert_true(ps_rng_u64(&a, 0) != ps_rng_u64(&c, 0));
    assert_true(ps_rng_u64(&a, 0) != ps_rng_u64(&a, (uint64_t)1 << 40));
}

/* n = 2^18: the mean of uniforms has sigma 1/sqrt(12 n) = 5.6e-4, so 5 sigma are 2.8e-3; each of 16
 * bins holds n/16 with sigma 124, 5 sigma are 620. */
static void uniforms_fill_the_unit_interval_evenly(void **state)
{
    (void)state;
    struct ps_rng_key key = {.seed = 7, .site = PS_RNG_SAMPLE};
    enum { N = 1 << 18 };
    double sum = 0;
    int bin[16] = {0};
    for (uint64_t i = 0; i < N; i++) {
        float u = ps_rng_uniform(&key, i);
        assert_true(u >= 0 && u < 1);
        sum += (double)u;
        bin[(int)(u * 16)]++;
    }
    assert_true(fabs(sum / N - 0.5) < 2.8e-3);
    for (int b = 0; b < 16; b++)
        assert_in_range(bin[b], N / 16 - 620, N / 16 + 620);
}

/* sigma of the mean 1/sqrt(n) = 2e-3, of the variance sqrt(2/n) = 2.8e-3, of the fourth moment
 * sqrt(96/n) = 0.019; 5 sigma each. */
static void normals_have_the_moments_of_a_normal(void **state)
{
    (void)state;
    struct ps_rng_key key = {.seed = 7, .site = PS_RNG_INIT_WEIGHT};
    enum { N = 1 << 18 };
    double s1 = 0, s2 = 0, s4 = 0;
    for (uint64_t i = 0; i < N; i++) {
        double x = ps_rng_normal(&key, i);
        assert_true(isfinite(x));
        s1 += x;
        s2 += x * x;
        s4 += x * x * x * x;
    }
    assert_true(fabs(s1 / N) < 0.01);
    assert_true(fabs(s2 / N - 1) < 0.014);
    assert_true(fabs(s4 / N - 3) < 0.1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_known_answers),
        cmocka_unit_test(blocks_of_a_key_are_frozen),
        cmocka_unit_test(words_are_those_of_the_blocks),
        cmocka_unit_test(every_field_of_the_key_makes_a_stream_of_its_own),
        cmocka_unit_test(the_upper_halves_of_seed_and_step_count),
        cmocka_unit_test(uniforms_fill_the_unit_interval_evenly),
        cmocka_unit_test(normals_have_the_moments_of_a_normal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
