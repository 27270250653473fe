/* Token embedding and its gradient. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/embedding.h"
#include "tests/kernels/kernel_check.h"

#define VOCAB 23

struct shape {
    size_t n_tok, n;
};

static const struct shape shapes[] = {{1, 1},   {4, 15},  {9, 16},   {30, 17},   {5, 127},
                                      {3, 128}, {8, 129}, {40, 300}, {300, 1000}};

#define SHAPES (sizeof shapes / sizeof *shapes)

static void make_ids(int32_t *ids, size_t n)
{
    uint32_t s = 7;
    for (size_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        ids[i] = (int32_t)((s >> 8) % VOCAB);
    }
    ids[0] = VOCAB - 1;
}

static void forward_gathers_rows_and_rounds_once(void **state)
{
    struct pools *pools = *state;
    const enum ps_dtype table_type[3] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};
    for (size_t i = 0; i < SHAPES * 6; i++) {
        struct shape s = shapes[i / 6];
        enum ps_dtype tt = table_type[i % 3], t = i % 6 < 3 ? PS_DTYPE_F32 : PS_DTYPE_BF16;
        int32_t ids[300];
        make_ids(ids, s.n_tok);
        struct guarded table = guarded_make(VOCAB * s.n * ps_dtype_size(tt), ps_dtype_size(tt));
        fill(table.data, tt, VOCAB * s.n, 1, i);
        FOR_EACH_ISA(isa)
        {
            for (int p = 0; p < THREADS_MAX; p++) {
                struct guarded y = guarded_make(s.n_tok * s.n * ps_dtype_size(t), ps_dtype_size(t));
                ps_embedding_forward(pools->pool[p], isa, table.data, tt, s.n, 0, INT32_MAX, ids,
                                     s.n_tok, y.data, t);
                for (size_t k = 0; k < s.n_tok * s.n; k++) {
                    float want = (float)get(table.data, tt, (size_t)ids[k / s.n] * s.n + k % s.n);
                    if (t == PS_DTYPE_BF16)
                        want = ps_bf16_to_f32(ps_f32_to_bf16(want));
                    close_to("y", k, get(y.data, t, k), (double)want, 0, 0);
                }
                guarded_free(&y);
            }
        }
        guarded_free(&table);
    }
}

static void backward_adds_in_ascending_order_of_tokens(void **state)
{
    struct pools *pools = *state;
    for (size_t i = 0; i < SHAPES * 2; i++) {
        struct shape s = shapes[i / 2];
        enum ps_dtype t = i % 2 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        int32_t ids[300];
        make_ids(ids, s.n_tok);
        struct guarded dy = guarded_make(s.n_tok * s.n * ps_dtype_size(t), ps_dtype_size(t));
        fill(dy.data, t, s.n_tok * s.n, 1, i);
        float *want = malloc(VOCAB * s.n * 4);
        assert_non_null(want);
        fill(want, PS_DTYPE_F32, VOCAB * s.n, 1, 99);
        for (size_t k = 0; k < s.n_tok * s.n; k++)
            want[(size_t)ids[k / s.n] * s.n + k % s.n] += (float)get(dy.data, t, k);
        FOR_EACH_ISA(isa)
        {
            for (int p = 0; p < THREADS_MAX; p++) {
                struct guarded d = guarded_make(VOCAB * s.n * 4, 4);
                fill(d.data, PS_DTYPE_F32, VOCAB * s.n, 1, 99);
                ps_embedding_backward(pools->pool[p], isa, (float *)(void *)d.data, s.n, ids,
                                      s.n_tok, dy.data, t);
                /* the same additions in the same order: the same bits */
                assert_memory_equal(d.data, want, d.bytes);
                guarded_free(&d);
            }
        }
        free(want);
        guarded_free(&dy);
    }
}

static void nan_reaches_its_element_only(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        float dy[2 * 20] = {0}, d[3 * 20] = {0}, y[20];
        const int32_t ids[2] = {2, 0}, first = 2;
        dy[17] = NAN;
        dy[20] = INFINITY;
        ps_embedding_backward(NULL, isa, d, 20, ids, 2, dy, PS_DTYPE_F32);
        for (int i = 0; i < 60; i++) {
            assert_int_equal(isnan(d[i]), i == 57);
            assert_int_equal(isinf(d[i]), i == 0);
        }
        ps_embedding_forward(NULL, isa, d, PS_DTYPE_F32, 20, 0, 1000, &first, 1, y, PS_DTYPE_F32);
        assert_true(isnan(y[17]));
    }
}

static void a_block_of_rows_serves_its_own_tokens_and_leaves_the_others_alone(void **state)
{
    (void)state;
    static const float block[2 * 3] = {1, 2, 3, 4, 5, 6}; /* rows 5 and 6 of a table */
    static const int32_t ids[] = {4, 5, 7, 6, 5};
    static const float want[5 * 3] = {-1, -1, -1, 1, 2, 3, -1, -1, -1, 4, 5, 6, 1, 2, 3};
    FOR_EACH_ISA(isa)
    {
        float y[5 * 3];
        for (int i = 0; i < 15; i++)
            y[i] = -1;
        ps_embedding_forward(NULL, isa, block, PS_DTYPE_F32, 3, 5, 7, ids, 5, y, PS_DTYPE_F32);
        assert_memory_equal(y, want, sizeof want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_gathers_rows_and_rounds_once),
        cmocka_unit_test(backward_adds_in_ascending_order_of_tokens),
        cmocka_unit_test(nan_reaches_its_element_only),
        cmocka_unit_test(a_block_of_rows_serves_its_own_tokens_and_leaves_the_others_alone),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
