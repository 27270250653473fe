/* Each entry of the CUDA table of kernels against the CPU's, once and on a small shape: what the
 * table adds to the launchers are arguments in their places. The launchers have tests of their own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "optim/optimizers.h"
#include "runtime/kernels/rope.h"
#include "tests/cuda/plugin_check.h"

#define FOR_EACH_TYPE(type)                                                                        \
    for (const enum ps_dtype *p_##type = both_types; p_##type < both_types + 2; p_##type++)        \
        for (enum ps_dtype type = *p_##type, *once = &type; once; once = NULL)
#define FOR_BOTH(cx_, side_)                                                                       \
    for (int side_ = CPU; side_ <= GPU; side_++)                                                   \
        for (const struct ps_compute *cx_ = &w->cx[side_]; cx_; cx_ = NULL)

static void rmsnorm_agrees(void **state)
{
    struct world *w = *state;
    enum { TOK = 70, N = 96 };
    FOR_EACH_TYPE(type)
    {
        compute_in(w, type);
        struct two x = two_make(w, type, TOK * N, 1, 1), weight = two_make(w, type, N, 1, 2);
        struct two y = two_make(w, type, TOK * N, 0, 0), dy = two_make(w, type, TOK * N, 1, 3);
        struct two dx = two_make(w, type, TOK * N, 0, 0), add = two_make(w, type, TOK * N, 1, 4);
        struct two rstd = two_make(w, PS_DTYPE_F32, TOK, 0, 0);
        struct two dweight = two_make(w, PS_DTYPE_F32, N, 1, 5);
        struct two scratch = two_bytes(w, NULL, ps_rmsnorm_workspace_bytes(TOK, N));
        FOR_BOTH(cx, i)
        {
            struct ps_rmsnorm_args a = {.n_tok = TOK,
                                        .rows_per_tok = 1,
                                        .n = N,
                                        .eps = 1e-5f,
                                        .dtype = type,
                                        .x = x.at[i],
                                        .x_ld = N,
                                        .weight = weight.at[i],
                                        .weight_dtype = type,
                                        .y = y.at[i],
                                        .y_ld = N,
                                        .rstd = rstd.at[i],
                                        .dy = dy.at[i],
                                        .dy_ld = N,
                                        .dx = dx.at[i],
                                        .dx_ld = N,
                                        .dx_add = add.at[i],
                                        .dx_add_ld = N,
                                        .dweight = dweight.at[i],
                                        .accumulate = 1};
            cx->k->rmsnorm_forward(cx, &a);
            cx->k->rmsnorm_backward(cx, &a, scratch.at[i]);
        }
        two_check(w, &y, "y", 1e-6, rounding(type));
        two_check(w, &rstd, "rstd", 1e-6, 1e-5);
        two_check(w, &dx, "dx", 1e-5, rounding(type));
        two_check(w, &dweight, "dweight", 1e-4, 1e-4);
    }
}

static void rope_and_swiglu_agree(void **state)
{
    struct world *w = *state;
    enum { TOK = 9, HEADS = 3, DIM = 16, N = HEADS * DIM };
    float inv_freq[DIM / 2], table[TOK * DIM];
    for (int i = 0; i < DIM / 2; i++)
        inv_freq[i] = powf(10000, -(float)i / (DIM / 2));
    ps_rope_table(table, inv_freq, TOK, DIM / 2);
    int32_t position[TOK] = {0, 1, 2, 3, 0, 1, 2, 3, 8};
    struct two cos_sin = two_bytes(w, table, sizeof table);
    struct two at = two_bytes(w, position, sizeof position);
    FOR_EACH_TYPE(type)
    {
        compute_in(w, type);
        struct two x = two_make(w, type, TOK * N, 1, 6), z = two_make(w, type, TOK * N, 1, 7);
        struct two up = two_make(w, type, TOK * N, 1, 8), dy = two_make(w, type, TOK * N, 1, 9);
        struct two y = two_make(w, type, TOK * N, 0, 0), gate = two_make(w, type, TOK * N, 1, 10);
        FOR_BOTH(cx, i)
        {
            cx->k->rope_apply(cx, x.at[i], TOK, HEADS, DIM, at.at[i], cos_sin.at[i], 0);
            cx->k->rope_apply(cx, z.at[i], TOK, HEADS, DIM, at.at[i], cos_sin.at[i], 1);
            cx->k->swiglu_forward(cx, TOK, N, gate.at[i], up.at[i], y.at[i]);
            cx->k->swiglu_backward(cx, TOK, N, gate.at[i], up.at[i], dy.at[i], gate.at[i],
                                   up.at[i]);
        }
        two_check(w, &x, "rope", 1e-6, rounding(type));
        two_check(w, &z, "inverse rope", 1e-6, rounding(type));
        two_check(w, &y, "swiglu", 1e-6, rounding(type));
        two_check(w, &gate, "dgate", 1e-6, rounding(type));
        two_check(w, &up, "dup", 1e-6, rounding(type));
    }
}

/* Two documents, grouped heads, a window. */
static void attention_agrees(void **state)
{
    struct world *w = *state;
    enum { TOK = 50, HEADS = 4, KV = 2, DIM = 64, Q = HEADS * DIM, K = KV * DIM };
    static const int32_t start[] = {0, 31, TOK};
    int32_t doc[TOK][2];
    for (int t = 0; t < TOK; t++) {
        doc[t][0] = start[t >= 31];
        doc[t][1] = start[1 + (t >= 31)];
    }
    struct two docs = two_bytes(w, doc, sizeof doc);
    FOR_EACH_TYPE(type)
    {
        compute_in(w, type);
        struct two q = two_make(w, type, TOK * Q, 1, 11), k = two_make(w, type, TOK * K, 1, 12);
        struct two v = two_make(w, type, TOK * K, 1, 13), out = two_make(w, type, TOK * Q, 0, 0);
        struct two dout = two_make(w, type, TOK * Q, 1, 14), dq = two_make(w, type, TOK * Q, 0, 0);
        struct two dk = two_make(w, type, TOK * K, 0, 0), dv = two_make(w, type, TOK * K, 0, 0);
        struct two lse = two_make(w, PS_DTYPE_F32, TOK * HEADS, 0, 0);
        struct two last = two_make(w, type, Q, 0, 0);
        FOR_BOTH(cx, i)
        {
            struct ps_attention_args a = {.doc_start = start,
                                          .doc_count = 2,
                                          .n_head = HEADS,
                                          .n_kv_head = KV,
                                          .head_dim = DIM,
                                          .sliding_window = 20,
                                          .scale = 0.125f,
                                          .dtype = type,
                                          .q = q.at[i],
                                          .k = k.at[i],
                                          .v = v.at[i],
                                          .q_ld = Q,
                                          .k_ld = K,
                                          .v_ld = K,
                                          .out = out.at[i],
                                          .out_ld = Q,
                                          .lse = lse.at[i],
                                          .dout = dout.at[i],
                                          .dout_ld = Q,
                                          .dq = dq.at[i],
                                          .dk = dk.at[i],
                                          .dv = dv.at[i],
                                          .dq_ld = Q,
                                          .dk_ld = K,
                                          .dv_ld = K};
            size_t bytes = cx->k->attention_workspace_bytes(cx, TOK, HEADS, KV, DIM);
            void *scratch =
                i == GPU ? device_take(w, bytes) : aligned_alloc(64, (bytes + 63) / 64 * 64);
            cx->k->attention_forward(cx, &a, docs.at[i], scratch);
            cx->k->attention_backward(cx, &a, docs.at[i], scratch);
            struct ps_attention_args d = a;
            d.out = last.at[i];
            d.lse = NULL;
            cx->k->attention_decode(cx, &d, TOK - 1, scratch);
            if (i == CPU)
                free(scratch);
        }
        double atol = type == PS_DTYPE_BF16 ? 2e-2 : 1e-4,
               rtol = type == PS_DTYPE_BF16 ? 2e-2 : 1e-4;
        two_check(w, &out, "out", atol, rtol);
        two_check(w, &lse, "lse", 1e-3, 1e-3);
        two_check(w, &dq, "dq", atol, rtol);
        two_check(w, &dk, "dk", atol, rtol);
        two_check(w, &dv, "dv", atol, rtol);
        two_check(w, &last, "decode", atol, rtol);
    }
}

/* The block of rows [10, 30) of a table of 40. */
static void embedding_agrees(void **state)
{
    struct world *w = *state;
    enum { TOK = 12, VOCAB = 40, N = 24 };
    static const int32_t id[TOK] = {0, 10, 29, 30, 11, 10, 39, 20, 20, 9, 15, 28};
    struct two ids = two_bytes(w, id, sizeof id);
    FOR_EACH_TYPE(type)
    {
        compute_in(w, type);
        struct two table = two_make(w, PS_DTYPE_BF16, 20 * N, 1, 15);
        struct two y = two_make(w, type, TOK * N, 1, 16), dy = two_make(w, type, TOK * N, 1, 17);
        struct two dtable = two_make(w, PS_DTYPE_F32, VOCAB * N, 1, 18);
        FOR_BOTH(cx, i)
        {
            cx->k->embedding_forward(cx, table.at[i], PS_DTYPE_BF16, N, 10, 30, ids.at[i], TOK,
                                     y.at[i]);
            cx->k->embedding_backward(cx, dtable.at[i], N, ids.at[i], TOK, dy.at[i]);
        }
        two_check(w, &y, "y", 0, 0);
        two_check(w, &dtable, "dtable", 0, 0);
    }
}

static void cross_entropy_agrees(void **state)
{
    struct world *w = *state;
    enum { ROWS = 5, VOCAB = 301 };
    static const int32_t target[ROWS] = {0, 300, 1, 7, 150};
    struct two logits = two_make(w, PS_DTYPE_F32, ROWS * VOCAB, 3, 19);
    struct two want = two_bytes(w, target, sizeof target);
    struct two loss = two_bytes(w, NULL, ROWS * sizeof(double));
    struct two sum = two_bytes(w, NULL, sizeof(double));
    FOR_BOTH(cx, i)
    {
        cx->k->cross_entropy(cx, logits.at[i], ROWS, VOCAB, want.at[i], loss.at[i], 0.25f, 1);
        cx->k->sum_f64(cx, sum.at[i], loss.at[i], ROWS);
    }
    two_check_f64(w, &loss, "loss", ROWS, 1e-5);
    two_check_f64(w, &sum, "sum", 1, 1e-5);
    two_check(w, &logits, "dlogits", 1e-7, 1e-4);
}

static void rows_dropout_and_sums_agree(void **state)
{
    struct world *w = *state;
    enum { TOK = 70, N = 40, PART = 3 * 65536 / N };
    static const int32_t row[] = {69, 0, 13};
    struct ps_rng_key key = {.seed = 5, .step = 2, .layer = 3, .site = PS_RNG_DROPOUT};
    struct two rows = two_bytes(w, row, sizeof row);
    FOR_EACH_TYPE(type)
    {
        compute_in(w, type);
        struct two x = two_make(w, type, TOK * N, 1, 20), y = two_make(w, type, 3 * N, 0, 0);
        struct two z = two_make(w, type, TOK * N, 1, 21), d = two_make(w, type, TOK * N, 1, 22);
        struct two sum = two_make(w, PS_DTYPE_F32, N, 1, 23);
        FOR_BOTH(cx, i)
        {
            cx->k->gather_rows(cx, y.at[i], x.at[i], rows.at[i], 3, N);
            cx->k->scatter_rows(cx, z.at[i], y.at[i], rows.at[i], 3, N);
            cx->k->dropout(cx, d.at[i], x.at[i], TOK, N, 0.3f, &key, 1);
            cx->k->column_sum(cx, sum.at[i], x.at[i], N, TOK, N, 1);
        }
        two_check(w, &y, "gather", 0, 0);
        two_check(w, &z, "scatter", 0, 0);
        two_check(w, &d, "dropout", 0, rounding(type));
        two_check(w, &sum, "column sum", 1e-5, 1e-5);
    }
    struct two big = two_make(w, PS_DTYPE_F32, (size_t)PART * N + 7, 1, 24);
    struct two parts = two_bytes(w, NULL, 4 * sizeof(double));
    struct two round = two_make(w, PS_DTYPE_F32, 1001, 1, 25);
    struct two zero = two_make(w, PS_DTYPE_F32, 1001, 1, 26);
    FOR_BOTH(cx, i)
    {
        cx->k->square_sum(cx, parts.at[i], big.at[i], big.count);
        cx->k->round_bf16(cx, round.at[i], 1001);
        cx->k->zero(cx, zero.at[i], 1000 * sizeof(float));
    }
    two_check_f64(w, &parts, "square sum", (big.count + 65535) / 65536, 1e-6);
    two_check_bytes(w, &round, "round", 1001 * sizeof(float));
    two_check_bytes(w, &zero, "zero", 1001 * sizeof(float));
}

/* What adapters with vectors need; odd sizes, every type of bias and weight. */
static void columns_agree(void **state)
{
    struct world *w = *state;
    enum { TOK = 71, N = 43, R = 5, IN = 150 };
    static const enum ps_dtype stored[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};
    struct two f = two_make(w, PS_DTYPE_F32, N, 1, 42);
    struct two g = two_make(w, PS_DTYPE_F32, N * R, 1, 44);
    struct two b = two_make(w, PS_DTYPE_F32, N * R, 1, 45);
    struct two norm = two_make(w, PS_DTYPE_F32, N, 0, 0), c = two_make(w, PS_DTYPE_F32, N, 0, 0);
    for (int s = 0; s < 3; s++) {
        enum ps_dtype type = both_types[s % 2];
        compute_in(w, type);
        struct two x = two_make(w, type, TOK * N, 1, 40), y = two_make(w, type, TOK * N, 0, 0);
        struct two add = two_make(w, type, TOK * N, 1, 41);
        struct two bias = two_make(w, stored[s], N, 1, 49);
        struct two weight = two_make(w, stored[s], N * IN, 1, 50);
        FOR_BOTH(cx, i)
        {
            struct ps_scale_columns_args a = {.n_tok = TOK,
                                              .n = N,
                                              .dtype = type,
                                              .y = y.at[i],
                                              .x = x.at[i],
                                              .scale = f.at[i],
                                              .bias = bias.at[i],
                                              .bias_dtype = stored[s],
                                              .residual = s ? add.at[i] : NULL};
            cx->k->scale_columns(cx, &a);
            struct ps_row_norms_args n = {.out = N,
                                          .in = IN,
                                          .r = R,
                                          .w = weight.at[i],
                                          .w_dtype = stored[s],
                                          .b = b.at[i],
                                          .q = g.at[i],
                                          .bg = b.at[i],
                                          .s = 0.5f,
                                          .m = f.at[i],
                                          .n = norm.at[i],
                                          .c = c.at[i]};
            cx->k->row_norms(cx, &n);
        }
        two_check(w, &y, "scaled columns", 1e-6, rounding(type));
        two_check(w, &norm, "norms", 1e-6, 1e-6);
        two_check(w, &c, "factors", 1e-6, 1e-6);
    }
}

static void column_and_matrix_dots_agree(void **state)
{
    struct world *w = *state;
    enum { TOK = 71, N = 43, R = 5 };
    struct two f = two_make(w, PS_DTYPE_F32, N, 1, 42), d = two_make(w, PS_DTYPE_F32, R, 1, 46);
    struct two g = two_make(w, PS_DTYPE_F32, N * R, 1, 44);
    struct two b = two_make(w, PS_DTYPE_F32, N * R, 1, 45),
               m = two_make(w, PS_DTYPE_F32, N * R, 0, 0);
    struct two row = two_make(w, PS_DTYPE_F32, N, 1, 47), col = two_make(w, PS_DTYPE_F32, R, 1, 48);
    FOR_EACH_TYPE(type)
    {
        compute_in(w, type);
        struct two x = two_make(w, type, TOK * N, 1, 40), y = two_make(w, type, TOK * N, 1, 41);
        struct two dot = two_make(w, PS_DTYPE_F32, N, 1, 43);
        FOR_BOTH(cx, i)
        {
            cx->k->column_dot(cx, dot.at[i], x.at[i], y.at[i], f.at[i], TOK, N, 1);
            cx->k->scale_matrix(cx, m.at[i], g.at[i], f.at[i], d.at[i], N, R);
            struct ps_matrix_dots_args a = {.rows = N,
                                            .cols = R,
                                            .g = g.at[i],
                                            .b = b.at[i],
                                            .row = f.at[i],
                                            .col = d.at[i],
                                            .row_out = row.at[i],
                                            .col_out = col.at[i],
                                            .accumulate = 1};
            cx->k->matrix_dots(cx, &a);
        }
        two_check(w, &dot, "column dot", 1e-6, 1e-6);
        two_check(w, &m, "scaled matrix", 1e-7, 1e-6);
        two_check(w, &row, "row dots", 1e-6, 1e-6);
        two_check(w, &col, "column dots", 1e-6, 1e-6);
    }
}

/* The LoRA forward product: an fp32 operand under bf16 math, two pairs, bias and residual. */
static void products_agree(void **state)
{
    struct world *w = *state;
    enum { M = 33, N = 40, K = 48, R = 4 };
    FOR_EACH_TYPE(type)
    {
        compute_in(w, type);
        struct two a = two_make(w, type, M * K, 1, 27), b = two_make(w, type, N * K, 1, 28);
        struct two h = two_make(w, type, M * R, 1, 29), l = two_make(w, PS_DTYPE_F32, N * R, 1, 30);
        struct two bias = two_make(w, type, N, 1, 31), c = two_make(w, type, M * N, 1, 32);
        FOR_BOTH(cx, i)
        {
            struct ps_gemm_args g = {
                .m = M,
                .n = N,
                .k = K,
                .k2 = R,
                .a = {.data = a.at[i], .ld = K, .dtype = type},
                .b = {.data = b.at[i], .ld = K, .dtype = type, .trans = 1},
                .a2 = {.data = h.at[i], .ld = R, .dtype = type},
                .b2 = {.data = l.at[i], .ld = R, .dtype = PS_DTYPE_F32, .trans = 1},
                .alpha = 0.5f,
                .bias = bias.at[i],
                .bias_dtype = type,
                .residual = c.at[i],
                .residual_ld = N,
                .residual_dtype = type,
                .c = c.at[i],
                .c_ld = N,
                .c_dtype = type,
                .math = cx->math};
            cx->k->gemm(cx, &g);
        }
        two_check(w, &c, "c", 1e-4, 2 * rounding(type));
    }
}

/* Through the optimizer's entry, which finds the device's kernel by itself; bits equal. */
static void adamw_agrees_bit_for_bit(void **state)
{
    struct world *w = *state;
    enum { N = 5000 };
    struct ps_optimizer_hyper hyper = {
        .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.1};
    FOR_EACH_TYPE(type)
    {
        struct two p = two_make(w, type, N, 1, 33), g = two_make(w, PS_DTYPE_F32, N, 1, 34);
        struct two m = two_make(w, PS_DTYPE_F32, N, 0, 0), v = two_make(w, PS_DTYPE_F32, N, 0, 0);
        struct two rest = two_bytes(w, NULL, N * sizeof(uint16_t));
        FOR_BOTH(cx, i)
        {
            struct ps_opt_tensor tensor = {
                .name = "w", .rank = 1, .rows = N, .cols = 1, .n = N, .dtype = type};
            struct ps_opt_layout layout;
            assert_int_equal(ps_adamw_ops.layout(&hyper, &tensor, &layout, NULL), 0);
            struct ps_update u = {.cx = cx,
                                  .tensor = &tensor,
                                  .pool = w->cx[CPU].pool,
                                  .isa = PS_ISA_PORTABLE,
                                  .hyper = &hyper,
                                  .layout = &layout,
                                  .weight = p.at[i],
                                  .remainder = type == PS_DTYPE_BF16 ? rest.at[i] : NULL,
                                  .grad = g.at[i],
                                  .state = {m.at[i], v.at[i]},
                                  .n = N,
                                  .lr = 1e-2,
                                  .decay = true,
                                  .grad_scale = 0.75f};
            for (u.t = 1; u.t <= 3; u.t++)
                assert_int_equal(ps_adamw_ops.update(&u, NULL), 0);
        }
        two_check_bytes(w, &p, "weight", N * ps_dtype_size(type));
        two_check_bytes(w, &rest, "remainder", N * sizeof(uint16_t));
        two_check_bytes(w, &m, "exp_avg", N * sizeof(float));
        two_check_bytes(w, &v, "exp_avg_sq", N * sizeof(float));
    }
}

/* Larger than the staging buffer, of bytes that are written after the call before. */
static void fetch_waits_for_what_was_queued(void **state)
{
    struct world *w = *state;
    enum { N = 100003 };
    struct ps_compute *cx = &w->cx[GPU];
    struct two x = two_make(w, PS_DTYPE_F32, N, 1, 35);
    float *got = malloc(N * sizeof *got);
    assert_non_null(got);
    ps_kernels_cpu.round_bf16(&w->cx[CPU], x.at[CPU], N);
    cx->k->round_bf16(cx, x.at[GPU], N);
    assert_int_equal(cx->k->fetch(cx, got, x.at[GPU], N * sizeof *got), 0);
    assert_memory_equal(got, x.at[CPU], N * sizeof *got);
    free(got);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, world_fresh, world_clear)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(rmsnorm_agrees),
        TEST(rope_and_swiglu_agree),
        TEST(attention_agrees),
        TEST(embedding_agrees),
        TEST(cross_entropy_agrees),
        TEST(rows_dropout_and_sums_agree),
        TEST(columns_agree),
        TEST(column_and_matrix_dots_agree),
        TEST(products_agree),
        TEST(adamw_agrees_bit_for_bit),
        TEST(fetch_waits_for_what_was_queued),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
