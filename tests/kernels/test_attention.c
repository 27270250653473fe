/* Tests of runtime/kernels/attention.h. Expected values come from the double references, which are
 * themselves tested against finite differences. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/kernels/attention.h"
#include "runtime/kernels/attention_internal.h"

enum { CANARY = 64, DOC_MAX = 24, WORKSPACE_GUARD = 4096 };

struct shape {
    int32_t len[DOC_MAX]; /* documents, 0 ends the list; -1 is an empty document */
    int32_t n_head, n_kv_head, head_dim, window;
};

/* Index of a tensor. */
enum { Q, K, V, DOUT, OUT, DQ, DK, DV, TENSORS };

struct problem {
    struct ps_attention_args args;
    int32_t doc_start[DOC_MAX + 1];
    int32_t n_tok;
    size_t cols[TENSORS], ld[TENSORS];
    unsigned char
        *tensor[TENSORS];   /* n_tok rows of ld, then CANARY bytes; gaps hold canaries too */
    double *exact[TENSORS]; /* (n_tok, cols) in double: inputs, or expected outputs */
    float *lse, *lse_exact;
};

static uint64_t rng = 1;

static double uniform(void)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng >> 11) * 0x1p-53;
}

static double normal(void)
{
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += uniform();
    return sum - 6;
}

static void *allocate(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    assert_non_null(p);
    memset(p, 0xA5, (bytes + 63) / 64 * 64 + 64);
    return p;
}

static double value(const struct problem *p, int which, size_t row, size_t col)
{
    size_t at = row * p->ld[which] + col;
    if (p->args.dtype == PS_DTYPE_BF16)
        return (double)ps_bf16_to_f32(((const uint16_t *)(const void *)p->tensor[which])[at]);
    return (double)((const float *)(const void *)p->tensor[which])[at];
}

static void set(const struct problem *p, int which, size_t row, size_t col, double x)
{
    size_t at = row * p->ld[which] + col;
    if (p->args.dtype == PS_DTYPE_BF16)
        ((uint16_t *)(void *)p->tensor[which])[at] = ps_f32_to_bf16((float)x);
    else
        ((float *)(void *)p->tensor[which])[at] = (float)x;
    p->exact[which][row * p->cols[which] + col] = value(p, which, row, col);
}

/* Point the arguments at the tensors. */
static void bind(struct problem *p)
{
    struct ps_attention_args *a = &p->args;
    a->q = p->tensor[Q], a->k = p->tensor[K], a->v = p->tensor[V];
    a->out = p->tensor[OUT], a->dout = p->tensor[DOUT];
    a->dq = p->tensor[DQ], a->dk = p->tensor[DK], a->dv = p->tensor[DV];
    a->q_ld = p->ld[Q], a->k_ld = p->ld[K], a->v_ld = p->ld[V];
    a->out_ld = p->ld[OUT], a->dout_ld = p->ld[DOUT];
    a->dq_ld = p->ld[DQ], a->dk_ld = p->ld[DK], a->dv_ld = p->ld[DV];
    a->lse = p->lse;
    a->doc_start = p->doc_start;
}

static size_t tensor_bytes(const struct problem *p, int which)
{
    return (size_t)p->n_tok * p->ld[which] * ps_dtype_size(p->args.dtype);
}

static void make(struct problem *p, const struct shape *s, enum ps_dtype dtype)
{
    memset(p, 0, sizeof *p);
    int32_t docs = 0;
    for (; docs < DOC_MAX && s->len[docs]; docs++)
        p->doc_start[docs + 1] = p->doc_start[docs] + (s->len[docs] > 0 ? s->len[docs] : 0);
    p->n_tok = p->doc_start[docs];
    p->args.doc_count = docs;
    p->args.n_head = s->n_head;
    p->args.n_kv_head = s->n_kv_head;
    p->args.head_dim = s->head_dim;
    p->args.sliding_window = s->window;
    p->args.scale = (float)(1 / sqrt(s->head_dim));
    p->args.dtype = dtype;
    for (int t = 0; t < TENSORS; t++) {
        int kv = t == K || t == V || t == DK || t == DV;
        p->cols[t] = (size_t)(kv ? s->n_kv_head : s->n_head) * (size_t)s->head_dim;
        p->ld[t] = p->cols[t] + (size_t)(t * 3); /* odd gaps */
        p->tensor[t] = allocate(tensor_bytes(p, t) + CANARY);
        p->exact[t] = allocate((size_t)p->n_tok * p->cols[t] * sizeof(double));
        for (size_t i = 0; t <= DOUT && i < (size_t)p->n_tok; i++) {
            for (size_t c = 0; c < p->cols[t]; c++)
                set(p, t, i, c, normal());
        }
    }
    size_t lse_bytes = (size_t)p->n_tok * (size_t)s->n_head * sizeof(float);
    p->lse = allocate(lse_bytes + CANARY);
    p->lse_exact = allocate(lse_bytes);
    bind(p);
}

static void drop(struct problem *p)
{
    for (int t = 0; t < TENSORS; t++) {
        free(p->tensor[t]);
        free(p->exact[t]);
    }
    free(p->lse);
    free(p->lse_exact);
}

/* The same problem for the reference: double, dense. */
static struct ps_attention_args in_double(struct problem *p)
{
    struct ps_attention_args a = p->args;
    a.dtype = PS_DTYPE_F64;
    a.q = p->exact[Q], a.k = p->exact[K], a.v = p->exact[V], a.dout = p->exact[DOUT];
    a.out = p->exact[OUT], a.dq = p->exact[DQ], a.dk = p->exact[DK], a.dv = p->exact[DV];
    a.q_ld = a.dq_ld = a.out_ld = a.dout_ld = p->cols[Q];
    a.k_ld = a.v_ld = a.dk_ld = a.dv_ld = p->cols[K];
    a.lse = p->lse_exact;
    return a;
}

/* Run forward, backward or both with a workspace of exactly the documented size between guards. */
static void run(struct problem *p, enum ps_isa isa, int threads, int forward, int backward)
{
    struct ps_pool *pool = NULL;
    if (threads > 1)
        assert_int_equal(ps_pool_create(&pool, threads), 0);
    size_t bytes = ps_attention_workspace_bytes(p->n_tok, p->args.n_head, p->args.n_kv_head,
                                                p->args.head_dim, threads);
    unsigned char *w = aligned_alloc(64, (bytes + 63) / 64 * 64 + 2 * WORKSPACE_GUARD);
    assert_non_null(w);
    memset(w, 0xFF, WORKSPACE_GUARD + bytes + WORKSPACE_GUARD); /* stale NaN */
    if (forward)
        ps_attention_forward(pool, isa, &p->args, w + WORKSPACE_GUARD);
    if (backward)
        ps_attention_backward(pool, isa, &p->args, w + WORKSPACE_GUARD);
    for (size_t i = 0; i < WORKSPACE_GUARD; i++) {
        assert_int_equal(w[i], 0xFF);
        assert_int_equal(w[WORKSPACE_GUARD + bytes + i], 0xFF);
    }
    free(w);
    ps_pool_destroy(pool);
}

static void check_canaries(const struct problem *p)
{
    size_t size = ps_dtype_size(p->args.dtype);
    for (int t = 0; t < TENSORS; t++) {
        for (size_t i = 0; i < (size_t)p->n_tok; i++) {
            for (size_t b = p->cols[t] * size; b < p->ld[t] * size; b++)
                assert_int_equal(p->tensor[t][i * p->ld[t] * size + b], 0xA5);
        }
        for (size_t b = 0; b < CANARY; b++)
            assert_int_equal(p->tensor[t][tensor_bytes(p, t) + b], 0xA5);
    }
    const unsigned char *end =
        (const unsigned char *)(p->lse + (size_t)p->n_tok * (size_t)p->args.n_head);
    for (size_t b = 0; b < CANARY; b++)
        assert_int_equal(end[b], 0xA5);
}

static const char *const tensor_name[TENSORS] = {"q", "k", "v", "dout", "out", "dq", "dk", "dv"};

/* |x - exact| <= atol + rtol |exact|, and the error in norm at most `norm` of the tensor's and of a
 * tensor of ones. */
static void compare(const struct problem *p, int t, double atol, double rtol, double norm)
{
    double error2 = 0, exact2 = 0;
    for (size_t i = 0; i < (size_t)p->n_tok; i++) {
        for (size_t c = 0; c < p->cols[t]; c++) {
            double x = value(p, t, i, c), y = p->exact[t][i * p->cols[t] + c];
            error2 += (x - y) * (x - y);
            exact2 += y * y;
            if (!(fabs(x - y) <= atol + rtol * fabs(y))) {
                fail_msg("%s[%zu][%zu] = %.9g, expected %.9g (heads %d/%d, dim %d, window %d)",
                         tensor_name[t], i, c, x, y, p->args.n_head, p->args.n_kv_head,
                         p->args.head_dim, p->args.sliding_window);
            }
        }
    }
    if (getenv("PRINT_ERRORS"))
        printf("%s %g\n", tensor_name[t], sqrt(error2 / (exact2 + 1e-300)));
    double count = (double)p->n_tok * (double)p->cols[t]; /* the gradient may be exactly 0 */
    if (!(sqrt(error2) <= norm * sqrt(exact2 + count)))
        fail_msg("%s: error %g of the norm (head_dim %d)", tensor_name[t], sqrt(error2 / exact2),
                 p->args.head_dim);
}

/* fp32: sums of up to some hundred terms near 1, each rounded at 6e-8, random signs; 4e-6 leaves
 * room for the exponents of scores near 5. bf16: P and dS carry 2^-9 each, the outputs another
 * 2^-9; a sum may cancel, hence the absolute part, about 2^-7 of a typical value; 2^-8 in norm. */
static void check_results(const struct problem *p)
{
    int bf16 = p->args.dtype == PS_DTYPE_BF16;
    for (int t = OUT; t < TENSORS; t++)
        compare(p, t, bf16 ? 3e-2 : 8e-6, bf16 ? 2e-2 : 4e-6, bf16 ? 5e-3 : 2e-6);
    for (size_t i = 0; i < (size_t)p->n_tok * (size_t)p->args.n_head; i++)
        assert_true(fabsf(p->lse[i] - p->lse_exact[i]) <= 2e-6f * (1 + fabsf(p->lse_exact[i])));
}

static const struct shape shapes[] = {
    {{1}, 1, 1, 1, 0},
    {{1}, 2, 1, 64, 0},
    {{2, 1, 3}, 2, 2, 3, 0},
    {{63}, 1, 1, 8, 0},
    {{64}, 3, 1, 16, 0},
    {{65}, 1, 1, 20, 0},
    {{5, -1, 70, 1, 1, 130, -1}, 4, 2, 24, 0},
    {{257, 40}, 2, 1, 64, 0},
    {{300}, 4, 4, 64, 0},
    {{1, 17, 33, 129}, 8, 1, 80, 0},
    {{100, 77}, 3, 1, 96, 0},
    {{321}, 4, 2, 128, 0},
    {{90, 150}, 2, 1, 256, 0},
    {{70}, 2, 1, 512, 0},
    {{67}, 2, 1, 511, 3},
    {{200}, 2, 1, 65, 1},
    {{200, 300}, 3, 1, 16, 7},
    {{400}, 2, 2, 33, 64},
    {{500, 90}, 2, 1, 48, 100},
    {{513}, 2, 1, 8, 300},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void match_shape(const struct shape *s, enum ps_dtype dtype, int threads)
{
    struct problem p;
    make(&p, s, dtype);
    struct ps_attention_args ref = in_double(&p);
    ps_attention_forward_reference(&ref);
    ps_attention_backward_reference(&ref);
    for (int isa = 0; isa <= (int)ps_isa_detect(); isa++) {
        run(&p, (enum ps_isa)isa, threads, 1, 1);
        check_results(&p);
        check_canaries(&p);
    }
    drop(&p);
}

static void match_reference(enum ps_dtype dtype)
{
    for (size_t i = 0; i < SHAPES; i++) {
        rng = 100 + i;
        match_shape(&shapes[i], dtype, 1);
    }
}

static void fp32_matches_the_reference_for_odd_shapes(void **state)
{
    (void)state;
    match_reference(PS_DTYPE_F32);
}

static void bf16_matches_the_reference_for_odd_shapes(void **state)
{
    (void)state;
    match_reference(PS_DTYPE_BF16);
}

static void random_shapes_match_the_reference(void **state)
{
    (void)state;
    const char *more = getenv("ATTENTION_SHAPES"); /* a longer hunt by hand */
    int count = more ? atoi(more) : 12;
    for (int i = 0; i < count; i++) {
        rng = 1000 + (uint64_t)i;
        struct shape s = {.n_kv_head = 1 + (int32_t)(3 * uniform()),
                          .head_dim = 1 + (int32_t)(exp(4.9 * uniform())),
                          .window = uniform() < 0.5 ? 0 : 1 + (int32_t)(150 * uniform())};
        s.n_head = s.n_kv_head * (1 + (int32_t)(4 * uniform()));
        int docs = 1 + (int)(6 * uniform());
        for (int d = 0; d < docs; d++)
            s.len[d] = 1 + (int32_t)(exp(5.5 * uniform()));
        match_shape(&s, i & 1 ? PS_DTYPE_BF16 : PS_DTYPE_F32, 1 + i % 3);
    }
}

/* The gradient tile with c = 1 and lse2 = 0 returns 2^s. */
static void exponential_is_within_2_ulp_and_exact_at_0(void **state)
{
    (void)state;
    enum { N = PS__ATTENTION_TILE * PS__ATTENTION_TILE };
    float *s = allocate(4 * N), *zero = allocate(4 * N), *p = allocate(4 * N),
          *ds = allocate(4 * N);
    memset(zero, 0, 4 * N);
    struct ps__attention_scores t = {.s = s,
                                     .ld = PS__ATTENTION_TILE,
                                     .rows = PS__ATTENTION_TILE,
                                     .cols = PS__ATTENTION_TILE,
                                     .lo = -PS__ATTENTION_TILE,
                                     .hi = PS__ATTENTION_TILE,
                                     .c = 1};
    int isa_max = ps_isa_detect() < PS_ISA_AVX512 ? (int)ps_isa_detect() : PS_ISA_AVX512;
    for (int isa = 0; isa <= isa_max; isa++) {
        struct ps__attention_ops ops;
        ps__attention_ops_select(&ops, (enum ps_isa)isa, PS_DTYPE_F32);
        rng = 31;
        for (int round = 0; round < 60; round++) {
            double range = round < 30 ? 1 : 126; /* most weight on the polynomial's interval */
            for (int i = 0; i < N; i++)
                s[i] = (float)(range * (round < 30 ? uniform() - 0.5 : -uniform()));
            s[0] = 0, s[1] = -126, s[2] = -126.5f, s[3] = -1e30f, s[4] = -INFINITY, s[5] = NAN;
            s[6] = 127.25f, s[7] = 200;
            ops.grad(&t, zero, zero, zero, p, ds, ds, 0);
            for (int i = 8; i < N; i++) {
                double exact = exp2((double)s[i]);
                int exponent;
                (void)frexp(exact, &exponent);
                assert_true(fabs((double)p[i] - exact) <= 2 * ldexp(1, exponent - 24));
            }
            assert_true(p[0] == 1 && p[1] == 0x1p-126f);
            assert_true(p[2] == 0 && p[3] == 0 && p[4] == 0 && isnan(p[5]));
            assert_true(fabs((double)p[6] / exp2(127.25) - 1) < 3e-7 && isinf(p[7]));
        }
    }
    free(s);
    free(zero);
    free(p);
    free(ds);
}

static double weighted_output(struct ps_attention_args *ref, const struct problem *p)
{
    ps_attention_forward_reference(ref);
    double sum = 0;
    for (size_t i = 0; i < (size_t)p->n_tok * p->cols[OUT]; i++)
        sum += p->exact[OUT][i] * p->exact[DOUT][i];
    return sum;
}

static void reference_gradient_matches_finite_differences(void **state)
{
    (void)state;
    static const struct shape s = {{5, 1, 9}, 4, 2, 3, 4};
    struct problem p;
    rng = 7;
    make(&p, &s, PS_DTYPE_F32);
    struct ps_attention_args ref = in_double(&p);
    ps_attention_backward_reference(&ref);
    for (int t = Q; t <= V; t++) {
        int grad = t == Q ? DQ : t == K ? DK : DV;
        for (size_t i = 0; i < (size_t)p.n_tok * p.cols[t]; i++) {
            double *x = &p.exact[t][i], keep = *x, h = 1e-5;
            *x = keep + h;
            double up = weighted_output(&ref, &p);
            *x = keep - h;
            double down = weighted_output(&ref, &p);
            *x = keep;
            double slope = (up - down) / (2 * h); /* truncation h^2, rounding 1e-15 / h */
            assert_true(fabs(slope - p.exact[grad][i]) < 1e-8);
        }
    }
    drop(&p);
}

/* Bytes of rows [row, row + rows) of tensor t are equal in p and q (from q_row on). */
static int same_rows(const struct problem *p, size_t row, const struct problem *q, size_t q_row,
                     size_t rows, int t)
{
    size_t size = ps_dtype_size(p->args.dtype);
    for (size_t i = 0; i < rows; i++) {
        if (memcmp(p->tensor[t] + (row + i) * p->ld[t] * size,
                   q->tensor[t] + (q_row + i) * q->ld[t] * size, p->cols[t] * size) != 0)
            return 0;
    }
    return 1;
}

static void same_results(const struct problem *p, size_t row, const struct problem *q, size_t q_row,
                         size_t rows)
{
    for (int t = OUT; t < TENSORS; t++) {
        if (!same_rows(p, row, q, q_row, rows, t))
            fail_msg("%s differs (dtype %d)", tensor_name[t], p->args.dtype);
    }
    size_t n_head = (size_t)p->args.n_head;
    assert_memory_equal(p->lse + row * n_head, q->lse + q_row * n_head,
                        rows * n_head * sizeof(float));
}

static void packed_documents_equal_separate_ones_bit_for_bit(void **state)
{
    (void)state;
    static const struct shape s = {{130, 1, 64, 299, 65, 7, 3}, 4, 2, 20, 0};
    for (int variant = 0; variant < 4; variant++) {
        struct shape packed = s;
        packed.window = variant & 1 ? 50 : 0;
        enum ps_dtype dtype = variant & 2 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        struct problem p;
        rng = 9;
        make(&p, &packed, dtype);
        for (int isa = 0; isa <= (int)ps_isa_detect(); isa++) {
            run(&p, (enum ps_isa)isa, 2, 1, 1);
            for (int32_t d = 0; d < p.args.doc_count; d++) {
                struct shape one = packed;
                memset(one.len, 0, sizeof one.len);
                one.len[0] = s.len[d];
                struct problem q;
                make(&q, &one, dtype);
                size_t row = (size_t)p.doc_start[d], rows = (size_t)q.n_tok;
                for (int t = Q; t <= DOUT; t++) {
                    for (size_t i = 0; i < rows; i++) {
                        for (size_t c = 0; c < q.cols[t]; c++)
                            set(&q, t, i, c, value(&p, t, row + i, c));
                    }
                }
                run(&q, (enum ps_isa)isa, 1, 1, 1);
                same_results(&p, row, &q, 0, rows);
                drop(&q);
            }
        }
        drop(&p);
    }
}

static void thread_count_does_not_change_a_bit(void **state)
{
    (void)state;
    /* Several blocks of key tiles, several waves of heads (n_tok * n_kv_head > 4096). */
    static const struct shape cases[] = {{{1100, 300, 1}, 8, 4, 16, 0},
                                         {{700, 90, 520}, 3, 3, 16, 200}};
    for (int variant = 0; variant < 4; variant++) {
        enum ps_dtype dtype = variant & 2 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        for (int isa = 0; isa <= (int)ps_isa_detect(); isa++) {
            struct problem p, q;
            rng = 11;
            make(&p, &cases[variant & 1], dtype);
            rng = 11;
            make(&q, &cases[variant & 1], dtype);
            run(&p, (enum ps_isa)isa, 1, 1, 1);
            for (int threads = 2; threads <= 4; threads++) {
                run(&q, (enum ps_isa)isa, threads, 1, 1);
                same_results(&p, 0, &q, 0, (size_t)p.n_tok);
            }
            drop(&p);
            drop(&q);
        }
    }
}

static void negative_and_zero_scale_match_the_reference(void **state)
{
    (void)state;
    static const struct shape s = {{100}, 2, 1, 8, 0};
    for (int i = 0; i < 2; i++) {
        for (int isa = 0; isa <= (int)ps_isa_detect(); isa++) {
            struct problem p;
            rng = 13;
            make(&p, &s, PS_DTYPE_F32);
            p.args.scale = i ? 0.0f : -0.5f;
            struct ps_attention_args ref = in_double(&p);
            ps_attention_forward_reference(&ref);
            ps_attention_backward_reference(&ref);
            run(&p, (enum ps_isa)isa, 1, 1, 1);
            check_results(&p);
            drop(&p);
        }
    }
}

static void large_scores_neither_overflow_nor_lose_the_maximum(void **state)
{
    (void)state;
    static const struct shape s = {{150}, 1, 1, 16, 0};
    for (int isa = 0; isa <= (int)ps_isa_detect(); isa++) {
        struct problem p;
        rng = 17;
        make(&p, &s, PS_DTYPE_F32);
        p.args.scale = 60.0f; /* scores of some hundreds: a softmax that is nearly one-hot */
        struct ps_attention_args ref = in_double(&p);
        ps_attention_forward_reference(&ref);
        run(&p, (enum ps_isa)isa, 1, 1, 0);
        /* A score of 1000 is known to 6e-5: so is its exponential. */
        compare(&p, OUT, 2e-3, 2e-3, 1e-3);
        drop(&p);
    }
}

static int row_has_nan(const struct problem *p, int t, size_t row)
{
    for (size_t c = 0; c < p->cols[t]; c++) {
        if (isnan(value(p, t, row, c)))
            return 1;
    }
    return 0;
}

static void nan_reaches_all_later_tokens_and_no_other_document(void **state)
{
    (void)state;
    static const struct shape s = {{100, 200, 100}, 2, 1, 8, 0};
    for (int dtype = 0; dtype <= 1; dtype++) {
        for (int isa = 0; isa <= (int)ps_isa_detect(); isa++) {
            for (int t = Q; t <= DOUT; t++) {
                struct problem p;
                rng = 19;
                make(&p, &s, dtype ? PS_DTYPE_BF16 : PS_DTYPE_F32);
                set(&p, t, 180, 3, (double)NAN);
                run(&p, (enum ps_isa)isa, 1, 1, 1);
                for (size_t i = 0; i < 400; i++) {
                    int own = i >= 100 && i < 300;
                    for (int out = OUT; !own && out < TENSORS; out++)
                        assert_false(row_has_nan(&p, out, i));
                    if (own && i >= 180 && (t == K || t == V))
                        assert_true(row_has_nan(&p, OUT, i));
                }
                if (t == Q || t == K || t == V)
                    assert_true(row_has_nan(&p, OUT, 180));
                assert_true(row_has_nan(&p, DK, 180));
                if (t != V)
                    assert_true(row_has_nan(&p, DQ, 180));
                drop(&p);
            }
        }
    }
}

static void nan_does_not_reach_earlier_tiles(void **state)
{
    (void)state;
    static const struct shape s = {{200}, 1, 1, 8, 0};
    for (int isa = 0; isa <= (int)ps_isa_detect(); isa++) {
        struct problem p;
        rng = 23;
        make(&p, &s, PS_DTYPE_F32);
        set(&p, V, 150, 0, (double)NAN);
        run(&p, (enum ps_isa)isa, 1, 1, 0);
        for (size_t i = 0; i < 128; i++)
            assert_false(row_has_nan(&p, OUT, i));
        drop(&p);
    }
}

static void decoding_equals_the_last_row_of_forward(void **state)
{
    (void)state;
    static const struct shape cases[] = {{{1}, 2, 1, 8, 0},    {{200}, 9, 3, 64, 0},
                                         {{64}, 4, 4, 33, 0},  {{130}, 8, 1, 128, 50},
                                         {{65}, 70, 1, 16, 0}, {{300}, 2, 2, 80, 64}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int dtype = 0; dtype <= 1; dtype++) {
            for (int isa = 0; isa <= (int)ps_isa_detect(); isa++) {
                struct problem p;
                rng = 29 + i;
                make(&p, &cases[i], dtype ? PS_DTYPE_BF16 : PS_DTYPE_F32);
                run(&p, (enum ps_isa)isa, 1, 1, 0);
                size_t last = (size_t)p.n_tok - 1, size = ps_dtype_size(p.args.dtype);
                unsigned char *out = allocate(p.cols[OUT] * size + CANARY);
                size_t bytes = ps_attention_workspace_bytes(1, p.args.n_head, p.args.n_kv_head,
                                                            p.args.head_dim, 2);
                void *w = allocate(bytes);
                struct ps_pool *pool = NULL;
                assert_int_equal(ps_pool_create(&pool, 2), 0);
                struct ps_attention_args a = p.args;
                a.q = p.tensor[Q] + last * p.ld[Q] * size;
                a.out = out;
                a.lse = NULL;
                a.doc_start = NULL;
                ps_attention_decode(pool, (enum ps_isa)isa, &a, (int32_t)last, w);
                for (size_t c = 0; c < p.cols[OUT]; c++) {
                    double x = dtype ? (double)ps_bf16_to_f32(((uint16_t *)(void *)out)[c])
                                     : (double)((float *)(void *)out)[c];
                    double y = value(&p, OUT, last, c);
                    assert_true(fabs(x - y) <= (dtype ? 2e-2 : 4e-6) * (1 + fabs(y)));
                }
                for (size_t b = 0; b < CANARY; b++)
                    assert_int_equal(out[p.cols[OUT] * size + b], 0xA5);
                ps_pool_destroy(pool);
                free(w);
                free(out);
                drop(&p);
            }
        }
    }
}

static void workspace_grows_at_most_linearly_with_tokens(void **state)
{
    (void)state;
    for (int32_t n = 512; n <= 65536; n *= 2) {
        size_t small = ps_attention_workspace_bytes(n, 32, 8, 128, 2);
        size_t large = ps_attention_workspace_bytes(2 * n, 32, 8, 128, 2);
        assert_true(large >= small);
        assert_true(large <= 2 * small);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_gradient_matches_finite_differences),
        cmocka_unit_test(fp32_matches_the_reference_for_odd_shapes),
        cmocka_unit_test(bf16_matches_the_reference_for_odd_shapes),
        cmocka_unit_test(random_shapes_match_the_reference),
        cmocka_unit_test(exponential_is_within_2_ulp_and_exact_at_0),
        cmocka_unit_test(packed_documents_equal_separate_ones_bit_for_bit),
        cmocka_unit_test(thread_count_does_not_change_a_bit),
        cmocka_unit_test(negative_and_zero_scale_match_the_reference),
        cmocka_unit_test(large_scores_neither_overflow_nor_lose_the_maximum),
        cmocka_unit_test(nan_reaches_all_later_tokens_and_no_other_document),
        cmocka_unit_test(nan_does_not_reach_earlier_tiles),
        cmocka_unit_test(decoding_equals_the_last_row_of_forward),
        cmocka_unit_test(workspace_grows_at_most_linearly_with_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
