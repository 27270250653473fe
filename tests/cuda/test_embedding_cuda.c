/* Token embedding on the device against the CPU's, bit for bit: conversions round once, and the
 * gradient's additions have the same order. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/embedding.h"
#include "tests/cuda/cuda_check.h"

struct shape {
    size_t vocab, n, n_tok, off;
};

/* Columns one off a chunk and a block of 64 threads; tokens one off the eight that are read ahead;
 * few ids, so that rows repeat. */
static const struct shape shapes[] = {
    {1, 1, 1, 0},    {3, 7, 8, 0},      {5, 8, 7, 0},    {2, 9, 9, 1},
    {11, 63, 40, 0}, {4, 64, 65, 0},    {7, 65, 16, 2},  {40, 128, 3, 0},
    {3, 256, 0, 0},  {300, 24, 200, 0}, {6, 1000, 5, 0}, {2, 16, 31, 0},
};
#define SHAPES (sizeof shapes / sizeof *shapes)

static const enum ps_dtype table_types[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};

/* Ids with runs and repeats. */
static int32_t *make_ids(size_t n_tok, size_t vocab)
{
    int32_t *ids = malloc((n_tok + 1) * sizeof *ids);
    assert_non_null(ids);
    uint32_t s = 12345;
    for (size_t t = 0; t < n_tok; t++) {
        s = s * 1664525u + 1013904223u;
        ids[t] = t && s >> 30 == 0 ? ids[t - 1] : (int32_t)((s >> 8) % vocab);
    }
    return ids;
}

static void forward_gives_the_bits_of_the_cpu(void **state)
{
    for (size_t i = 0; i < SHAPES * 3; i++) {
        FOR_EACH_TYPE(t)
        {
            struct shape p = shapes[i / 3];
            enum ps_dtype tt = table_types[i % 3];
            struct twin table = twin_make(*state, tt, p.vocab * p.n, p.off, 1, 1);
            struct twin y = twin_make(*state, t, p.n_tok * p.n, p.off, 0, 0);
            int32_t *ids = make_ids(p.n_tok, p.vocab);
            struct device_buffer d = device_make(*state, p.n_tok * 4, 0, ids);
            ps_embedding_forward(NULL, PS_ISA_PORTABLE, table.cpu.data, tt, p.n, 0, INT32_MAX, ids,
                                 p.n_tok, y.cpu.data, t);
            assert_int_equal(ps_embedding_forward_cuda(*state, table.gpu.data, tt, p.n, 0,
                                                       (int64_t)p.vocab, (int32_t *)(void *)d.data,
                                                       p.n_tok, y.gpu.data, t),
                             0);
            twin_check_bits(*state, &y, "y");
            twin_free(*state, &table);
            twin_free(*state, &y);
            device_free(*state, &d);
            free(ids);
        }
    }
}

/* A table that arrives in blocks of rows: each call writes the tokens of its rows alone. */
static void blocks_of_rows_write_their_tokens_alone(void **state)
{
    enum { VOCAB = 50, N = 24, TOKENS = 90, ROWS = 13 };
    int32_t *ids = make_ids(TOKENS, VOCAB);
    struct device_buffer d = device_make(*state, TOKENS * 4, 0, ids);
    struct twin table = twin_make(*state, PS_DTYPE_BF16, VOCAB * N, 0, 1, 1);
    struct twin y = twin_make(*state, PS_DTYPE_F32, TOKENS * N, 0, 0, 0);
    struct twin part = twin_make(*state, PS_DTYPE_BF16, ROWS * N, 0, 0, 0);
    float *want = (float *)(void *)y.cpu.data;
    for (int64_t begin = 0; begin < VOCAB; begin += ROWS) {
        int64_t end = begin + ROWS < VOCAB ? begin + ROWS : VOCAB;
        memset(part.cpu.data, GUARD_BYTE, part.cpu.bytes);
        memcpy(part.cpu.data, table.cpu.data + begin * N * 2, (size_t)(end - begin) * N * 2);
        twin_upload(*state, &part);
        assert_int_equal(ps_embedding_forward_cuda(*state, part.gpu.data, PS_DTYPE_BF16, N, begin,
                                                   end, (int32_t *)(void *)d.data, TOKENS,
                                                   y.gpu.data, PS_DTYPE_F32),
                         0);
        for (size_t t = 0; t < TOKENS; t++)
            for (size_t j = 0; ids[t] >= begin && ids[t] < end && j < N; j++)
                want[t * N + j] = (float)get(table.cpu.data, PS_DTYPE_BF16, (size_t)ids[t] * N + j);
        twin_check_bits(*state, &y, "y");
    }
    twin_free(*state, &table);
    twin_free(*state, &part);
    twin_free(*state, &y);
    device_free(*state, &d);
    free(ids);
}

static void a_table_of_the_same_type_is_copied_bit_for_bit(void **state)
{
    static const uint16_t bits[] = {0x7f81, 0xffc3, 0x7f80, 0xff80, 0x8000, 0x0001, 0x7fff, 0x3f80};
    struct twin table = twin_make(*state, PS_DTYPE_BF16, 8, 0, 0, 0);
    struct twin y = twin_make(*state, PS_DTYPE_BF16, 8, 0, 0, 0);
    int32_t id = 0;
    struct device_buffer d = device_make(*state, 4, 0, &id);
    memcpy(table.cpu.data, bits, sizeof bits);
    memcpy(y.cpu.data, bits, sizeof bits);
    twin_upload(*state, &table);
    assert_int_equal(ps_embedding_forward_cuda(*state, table.gpu.data, PS_DTYPE_BF16, 8, 0, 1,
                                               (int32_t *)(void *)d.data, 1, y.gpu.data,
                                               PS_DTYPE_BF16),
                     0);
    twin_check_bits(*state, &y, "y");
    twin_free(*state, &table);
    twin_free(*state, &y);
    device_free(*state, &d);
}

static void backward_gives_the_bits_of_the_cpu(void **state)
{
    for (size_t i = 0; i < SHAPES; i++) {
        FOR_EACH_TYPE(t)
        {
            struct shape p = shapes[i];
            struct twin dtable = twin_make(*state, PS_DTYPE_F32, p.vocab * p.n, p.off, 1, 1);
            struct twin dy = twin_make(*state, t, p.n_tok * p.n, p.off, 1, 2);
            int32_t *ids = make_ids(p.n_tok, p.vocab);
            struct device_buffer d = device_make(*state, p.n_tok * 4, 0, ids);
            if (p.n_tok)
                ps_embedding_backward(NULL, PS_ISA_PORTABLE, (float *)(void *)dtable.cpu.data, p.n,
                                      ids, p.n_tok, dy.cpu.data, t);
            assert_int_equal(ps_embedding_backward_cuda(*state, (float *)(void *)dtable.gpu.data,
                                                        p.n, (int32_t *)(void *)d.data, p.n_tok,
                                                        dy.gpu.data, t),
                             0);
            twin_check_bits(*state, &dtable, "dtable");
            twin_free(*state, &dtable);
            twin_free(*state, &dy);
            device_free(*state, &d);
            free(ids);
        }
    }
}

static void nan_and_inf_reach_their_row_alone(void **state)
{
    struct twin dtable = twin_make(*state, PS_DTYPE_F32, 4 * 3, 0, 1, 1);
    struct twin dy = twin_make(*state, PS_DTYPE_BF16, 5 * 3, 0, 1, 2);
    static const int32_t ids[] = {0, 2, 3, 2, 0};
    struct device_buffer d = device_make(*state, sizeof ids, 0, ids);
    put(dy.cpu.data, PS_DTYPE_BF16, 1 * 3 + 1, NAN);
    put(dy.cpu.data, PS_DTYPE_BF16, 2 * 3 + 2, -INFINITY);
    twin_upload(*state, &dy);
    ps_embedding_backward(NULL, PS_ISA_PORTABLE, (float *)(void *)dtable.cpu.data, 3, ids, 5,
                          dy.cpu.data, PS_DTYPE_BF16);
    assert_int_equal(ps_embedding_backward_cuda(*state, (float *)(void *)dtable.gpu.data, 3,
                                                (int32_t *)(void *)d.data, 5, dy.gpu.data,
                                                PS_DTYPE_BF16),
                     0);
    twin_check(*state, &dtable, "dtable", 0, 0);
    twin_free(*state, &dtable);
    twin_free(*state, &dy);
    device_free(*state, &d);
}

static void refuses_other_types(void **state)
{
    assert_int_equal(
        ps_embedding_forward_cuda(*state, NULL, PS_DTYPE_I32, 1, 0, 1, NULL, 1, NULL, PS_DTYPE_F32),
        -EINVAL);
    assert_int_equal(
        ps_embedding_forward_cuda(*state, NULL, PS_DTYPE_F32, 1, 0, 1, NULL, 1, NULL, PS_DTYPE_F16),
        -EINVAL);
    assert_int_equal(ps_embedding_backward_cuda(*state, NULL, 1, NULL, 1, NULL, PS_DTYPE_F16),
                     -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_gives_the_bits_of_the_cpu),
        cmocka_unit_test(blocks_of_rows_write_their_tokens_alone),
        cmocka_unit_test(a_table_of_the_same_type_is_copied_bit_for_bit),
        cmocka_unit_test(backward_gives_the_bits_of_the_cpu),
        cmocka_unit_test(nan_and_inf_reach_their_row_alone),
        cmocka_unit_test(refuses_other_types),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
