/* The codec of an import: every word comes back, structure shrinks, false records are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "offload/import_internal.h"
#include "runtime/base/dtype.h"
#include "runtime/base/rng.h"

#define CHUNK ((size_t)PS_IMPORT_CHUNK_BYTES)

enum fill { RANDOM, ZERO, ONE_VALUE, WEIGHTS, EVERY_WORD, RUNS, FILL_COUNT };

static void fill_words(uint16_t *w, size_t n, enum fill how)
{
    struct ps_rng_key key = {.seed = 11 + (uint64_t)how};
    for (size_t i = 0; i < n; i++) {
        uint32_t r = ps_rng_u32(&key, i);
        float f = (ps_rng_uniform(&key, i) - 0.5f) * 0.1f;
        w[i] = how == RANDOM       ? (uint16_t)r
               : how == ZERO       ? 0
               : how == ONE_VALUE  ? 0xbf81
               : how == WEIGHTS    ? ps_f32_to_bf16(f)
               : how == EVERY_WORD ? (uint16_t)i
                                   : (uint16_t)(i / 1000 * 77);
    }
}

static void every_word_survives_the_codec(void **state)
{
    (void)state;
    static const size_t sizes[] = {2, 62, 64, 126, 128, 130, 4096, 196608 + 2, CHUNK - 64, CHUNK};
    struct ps__import_coder *c = ps__import_coder_create(true);
    unsigned char *near = malloc(CHUNK + 64), *record = malloc(CHUNK + 64);
    unsigned char *again = malloc(CHUNK + 64);
    assert_non_null(c);
    assert_true(near && record && again);
    for (int how = 0; how < FILL_COUNT; how++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            size_t n = sizes[s];
            struct ps__import_chunk x = {0};
            fill_words((uint16_t *)(void *)near, n / 2, (enum fill)how);
            memset(record, 0xa5, CHUNK + 64);
            memset(again, 0x5a, CHUNK + 64);
            assert_int_equal(ps__import_encode(c, near, n, record, &x), 0);
            assert_true((size_t)x.exponent_bytes + x.mantissa_bytes <= n);
            for (size_t i = 0; i < 64; i++)
                assert_int_equal(record[n + i], 0xa5);
            assert_int_equal(ps__import_decode(c, record, &x, again, n), 0);
            assert_memory_equal(again, near, n);
            for (size_t i = 0; i < 64; i++)
                assert_int_equal(again[n + i], 0x5a);
        }
    free(near);
    free(record);
    free(again);
    ps__import_coder_destroy(c);
}

static void planes_shrink_where_there_is_structure_and_are_kept_where_not(void **state)
{
    (void)state;
    struct ps__import_coder *c = ps__import_coder_create(true);
    uint16_t *near = malloc(CHUNK);
    unsigned char *record = malloc(CHUNK);
    struct ps__import_chunk x = {0};
    assert_true(c && near && record);
    fill_words(near, CHUNK / 2, RANDOM);
    assert_int_equal(ps__import_encode(c, near, CHUNK, record, &x), 0);
    assert_int_equal(x.exponent_bytes, CHUNK / 2);
    assert_int_equal(x.mantissa_bytes, CHUNK / 2);
    fill_words(near, CHUNK / 2, WEIGHTS); /* the exponent of a uniform value: 2 bits of 8 */
    assert_int_equal(ps__import_encode(c, near, CHUNK, record, &x), 0);
    assert_true(x.exponent_bytes < CHUNK / 2 * 3 / 10);
    assert_int_equal(x.mantissa_bytes, CHUNK / 2);
    fill_words(near, CHUNK / 2, ZERO);
    assert_int_equal(ps__import_encode(c, near, CHUNK, record, &x), 0);
    assert_true(x.exponent_bytes + x.mantissa_bytes < 1000);
    fill_words(near, CHUNK / 2, RUNS);
    assert_int_equal(ps__import_encode(c, near, CHUNK, record, &x), 0);
    assert_true(x.exponent_bytes + x.mantissa_bytes < CHUNK / 20);
    free(near);
    free(record);
    ps__import_coder_destroy(c);
}

/* A record that fits its checksum but is no zstd frame: the sizes are believed, the content is not.
 */
static void a_false_record_is_refused_by_the_decoder(void **state)
{
    (void)state;
    struct ps__import_coder *c = ps__import_coder_create(true);
    uint16_t near[2048], again[2048];
    unsigned char record[4096];
    struct ps__import_chunk x = {0};
    assert_non_null(c);
    fill_words(near, 2048, WEIGHTS);
    assert_int_equal(ps__import_encode(c, near, sizeof near, record, &x), 0);
    assert_true(x.exponent_bytes < 2048);
    struct ps__import_chunk bad = x;
    bad.exponent_bytes--;
    bad.checksum = XXH3_64bits(record, (size_t)bad.exponent_bytes + bad.mantissa_bytes);
    assert_int_equal(ps__import_decode(c, record, &bad, again, sizeof again), PS_ECHECKSUM);
    bad = x;
    record[0] ^= 1; /* zstd's magic */
    bad.checksum = XXH3_64bits(record, (size_t)bad.exponent_bytes + bad.mantissa_bytes);
    assert_int_equal(ps__import_decode(c, record, &bad, again, sizeof again), PS_ECHECKSUM);
    record[0] ^= 1;
    assert_int_equal(ps__import_decode(c, record, &x, again, sizeof again), 0);
    /* a frame that decodes to fewer words than the chunk has */
    assert_int_equal(ps__import_decode(c, record, &x, again, sizeof again - 64), PS_ECHECKSUM);
    ps__import_coder_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_word_survives_the_codec),
        cmocka_unit_test(planes_shrink_where_there_is_structure_and_are_kept_where_not),
        cmocka_unit_test(a_false_record_is_refused_by_the_decoder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
