/* Final norm, head and loss in chunks, against a direct computation in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model/head.h"

enum { H = 8 };

/* The smallest chunk (64 rows) comes with the largest vocabularies only; 1024 rows with small ones.
 */
enum { VOCAB = 13, T = 1500 };

struct bench {
    struct ps_pool *pool;
    struct ps_compute cx;
    struct ps_model_config cfg;
    struct ps_head head;
    struct ps_head_scratch scratch;
    unsigned char *memory;
    size_t memory_bytes;
    float norm[H], w[VOCAB * H], dnorm[H], dw[VOCAB * H];
    float x[T * H], dx[T * H];
    int32_t target[T];
};

static void fill(float *v, size_t n, uint64_t seed, float centre, float width)
{
    struct ps_rng_key key = {.seed = seed};
    for (size_t i = 0; i < n; i++)
        v[i] = centre + width * (2.0f * ps_rng_uniform(&key, i) - 1.0f);
}

/* Every `every`-th token has no label; 0: all have one; 1: none has. */
static struct bench *bench_create(int every, int threads)
{
    struct bench *s = calloc(1, sizeof *s);
    assert_non_null(s);
    assert_int_equal(ps_pool_create(&s->pool, threads), 0);
    s->cfg = (struct ps_model_config){.hidden_size = H, .vocab_size = VOCAB, .rms_norm_eps = 1e-5f};
    size_t gemm = (ps_gemm_workspace_bytes(threads) + 63) & ~(size_t)63;
    s->cx = (struct ps_compute){.k = &ps_kernels_cpu,
                                .pool = s->pool,
                                .isa = ps_isa_detect(),
                                .dtype = PS_DTYPE_F32,
                                .math = PS_GEMM_F32,
                                .gemm_workspace = aligned_alloc(64, gemm + 64)};
    fill(s->norm, H, 1, 1, 0.4f);
    fill(s->w, VOCAB * H, 2, 0, 1);
    fill(s->x, T * H, 3, 0, 2);
    for (int i = 0; i < T; i++)
        s->target[i] = every && i % every == 0 ? -100 : i * 7 % VOCAB;
    s->head = (struct ps_head){.cfg = &s->cfg,
                               .norm = {.data = s->norm, .dtype = PS_DTYPE_F32},
                               .head = {.data = s->w, .dtype = PS_DTYPE_F32},
                               .dnorm = s->dnorm,
                               .dhead = s->dw};
    s->memory_bytes =
        ps_head_scratch_carve(&s->scratch, NULL, &s->cfg, NULL, PS_DTYPE_F32, T, true);
    s->memory = aligned_alloc(64, s->memory_bytes + 64);
    assert_non_null(s->memory);
    memset(s->memory, 0xa5, s->memory_bytes + 64);
    assert_int_equal(
        ps_head_scratch_carve(&s->scratch, s->memory, &s->cfg, NULL, PS_DTYPE_F32, T, true),
        s->memory_bytes);
    memset(s->dx, 0xff, sizeof s->dx);
    memset(s->dnorm, 0xff, sizeof s->dnorm);
    memset(s->dw, 0xff, sizeof s->dw);
    return s;
}

static void bench_destroy(struct bench *s)
{
    for (size_t i = 0; i < 64; i++) /* canary */
        assert_int_equal(s->memory[s->memory_bytes + i], 0xa5);
    free(s->cx.gemm_workspace);
    free(s->memory);
    ps_pool_destroy(s->pool);
    free(s);
}

struct expected {
    double loss, dx[T * H], dnorm[H], dw[VOCAB * H];
    int64_t labels;
};

static void expect(const struct bench *s, size_t n_tok, double dscale, struct expected *e)
{
    memset(e, 0, sizeof *e);
    for (size_t t = 0; t < n_tok; t++) {
        if (s->target[t] < 0)
            continue;
        e->labels++;
        const float *x = s->x + t * H;
        double square = 0;
        double logit[VOCAB];
        double dn[H] = {0};
        double total = 0;
        for (int i = 0; i < H; i++)
            square += (double)x[i] * (double)x[i];
        double rstd = 1 / sqrt(square / H + (double)s->cfg.rms_norm_eps);
        for (int v = 0; v < VOCAB; v++) {
            logit[v] = 0;
            for (int i = 0; i < H; i++)
                logit[v] += (double)x[i] * rstd * (double)s->norm[i] * (double)s->w[v * H + i];
            total += exp(logit[v]);
        }
        e->loss += log(total) - logit[s->target[t]];
        for (int v = 0; v < VOCAB; v++) {
            double d = dscale * (exp(logit[v]) / total - (v == s->target[t]));
            for (int i = 0; i < H; i++) {
                e->dw[v * H + i] += d * (double)x[i] * rstd * (double)s->norm[i];
                dn[i] += d * (double)s->w[v * H + i];
            }
        }
        double mean = 0;
        for (int i = 0; i < H; i++) {
            e->dnorm[i] += dn[i] * (double)x[i] * rstd;
            mean += dn[i] * (double)s->norm[i] * (double)x[i] * rstd / H;
        }
        for (int i = 0; i < H; i++)
            e->dx[t * H + (size_t)i] =
                rstd * (dn[i] * (double)s->norm[i] - (double)x[i] * rstd * mean);
    }
}

static void compare(const char *what, const float *got, const double *want, size_t n)
{
    double largest = 1e-12;
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(want[i]));
    for (size_t i = 0; i < n; i++) /* fp32, sums of up to 1500 terms in blocks */
        if (!(fabs((double)got[i] - want[i]) <= 1e-5 * largest))
            fail_msg("%s[%zu]: %.9g, expected %.9g", what, i, (double)got[i], want[i]);
}

static struct expected want;

static double run(struct bench *s, size_t n_tok, float dscale, bool backward, bool accumulate,
                  int64_t *labels)
{
    int32_t row[T];
    int32_t target[T];
    double loss = 0;
    size_t rows = 0;
    for (size_t i = 0; i < n_tok; i++) {
        if (s->target[i] < 0)
            continue;
        row[rows] = (int32_t)i;
        target[rows++] = s->target[i];
    }
    struct ps_head_call c = {.cx = &s->cx,
                             .scratch = &s->scratch,
                             .n_tok = n_tok,
                             .x = s->x,
                             .row = row,
                             .target = target,
                             .rows = rows,
                             .dscale = dscale,
                             .dx = backward ? s->dx : NULL,
                             .accumulate = accumulate,
                             .loss = &loss};
    ps_head_loss(&s->head, &c);
    *labels = (int64_t)rows;
    return loss;
}

static void loss_and_gradients_equal_double_over_several_chunks(void **state)
{
    (void)state;
    struct ps_model_config cfg = {.vocab_size = VOCAB};
    assert_int_equal(ps_head_chunk_rows(&cfg), 1024);
    static const struct {
        int every, threads;
        size_t n_tok;
    } c[] = {{0, 1, T}, {0, 3, 1024}, {0, 1, 1025}, {3, 2, T}, {2, 1, 7}, {0, 1, 1}};
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        struct bench *s = bench_create(c[i].every, c[i].threads);
        float dscale = 1.0f / 512;
        int64_t labels;
        expect(s, c[i].n_tok, (double)dscale, &want);
        double loss = run(s, c[i].n_tok, dscale, true, false, &labels);
        assert_int_equal(labels, want.labels);
        assert_true(fabs(loss - want.loss) <= 1e-6 * want.loss);
        compare("dx", s->dx, want.dx, c[i].n_tok * H);
        compare("dnorm", s->dnorm, want.dnorm, H);
        compare("dhead", s->dw, want.dw, VOCAB * H);
        /* loss alone: the same bits, and the gradients stay */
        float before = s->dw[0];
        assert_true(run(s, c[i].n_tok, dscale, false, false, &labels) == loss);
        assert_true(s->dw[0] == before);
        /* once more, added */
        assert_true(run(s, c[i].n_tok, dscale, true, true, &labels) == loss);
        for (int k = 0; k < VOCAB * H; k++)
            want.dw[k] *= 2;
        for (int k = 0; k < H; k++)
            want.dnorm[k] *= 2;
        compare("dx again", s->dx, want.dx, c[i].n_tok * H);
        compare("2 dnorm", s->dnorm, want.dnorm, H);
        compare("2 dhead", s->dw, want.dw, VOCAB * H);
        bench_destroy(s);
    }
}

static void tokens_without_labels_get_exactly_no_gradient(void **state)
{
    (void)state;
    struct bench *s = bench_create(3, 1);
    int64_t labels;
    run(s, T, 1, true, false, &labels);
    assert_int_equal(labels, T - T / 3);
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < H; i++)
            assert_true((s->dx[t * H + i] == 0) == (t % 3 == 0));
    bench_destroy(s);
}

static void a_micro_batch_without_labels_has_no_loss_and_zero_gradients(void **state)
{
    (void)state;
    static const float zero[T * H];
    struct bench *s = bench_create(1, 1);
    int64_t labels = -1;
    assert_true(run(s, T, 1, true, false, &labels) == 0);
    assert_int_equal(labels, 0);
    assert_memory_equal(s->dx, zero, sizeof s->dx);
    assert_memory_equal(s->dnorm, zero, sizeof s->dnorm);
    assert_memory_equal(s->dw, zero, sizeof s->dw);
    /* and adds nothing */
    s->dw[5] = 3;
    s->dnorm[1] = 2;
    run(s, T, 1, true, true, &labels);
    assert_true(s->dw[5] == 3);
    assert_true(s->dnorm[1] == 2);
    bench_destroy(s);
}

static void frozen_norm_and_head_leave_dx_as_it_is(void **state)
{
    (void)state;
    static float dx[T * H];
    struct bench *s = bench_create(4, 1);
    int64_t labels;
    run(s, T, 0.5f, true, false, &labels);
    memcpy(dx, s->dx, sizeof dx);
    s->head.dnorm = NULL;
    s->head.dhead = NULL;
    memset(s->dx, 0xff, sizeof s->dx);
    run(s, T, 0.5f, true, false, &labels);
    assert_memory_equal(dx, s->dx, sizeof dx);
    bench_destroy(s);
}

static void logits_of_a_row_do_not_depend_on_the_others(void **state)
{
    (void)state;
    struct bench *s = bench_create(0, 2);
    static float all[1024 * VOCAB];
    float one[VOCAB];
    ps_head_logits(&s->head, &s->cx, &s->scratch, s->x, 10, 1024, all);
    for (size_t row = 0; row < 1024; row += 341) {
        ps_head_logits(&s->head, &s->cx, &s->scratch, s->x, 10 + row, 1, one);
        assert_memory_equal(one, all + row * VOCAB, sizeof one);
    }
    bench_destroy(s);
}

static void chunks_depend_on_the_vocabulary_alone(void **state)
{
    (void)state;
    static const struct {
        int32_t vocab;
        size_t rows;
    } c[] = {{1, 1024}, {16384, 1024}, {16385, 512}, {32000, 512}, {131072, 128}, {1 << 21, 64}};
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        struct ps_model_config cfg = {.vocab_size = c[i].vocab, .hidden_size = 4};
        assert_int_equal(ps_head_chunk_rows(&cfg), c[i].rows);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_and_gradients_equal_double_over_several_chunks),
        cmocka_unit_test(tokens_without_labels_get_exactly_no_gradient),
        cmocka_unit_test(a_micro_batch_without_labels_has_no_loss_and_zero_gradients),
        cmocka_unit_test(frozen_norm_and_head_leave_dx_as_it_is),
        cmocka_unit_test(logits_of_a_row_do_not_depend_on_the_others),
        cmocka_unit_test(chunks_depend_on_the_vocabulary_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
