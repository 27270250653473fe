/* LoRA on one linear: identity at step 0, forward and gradients against double, dropout, merging.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "peft/lora.h"
#include "runtime/kernels/elementwise.h"

enum { T = 37, IN = 29, OUT = 21, R = 5 };

/* One linear with everything that it needs; activations of dtype, adapter fp32. */
struct bench {
    struct ps_pool *pool;
    struct ps_compute cx;
    struct ps_adapter_config config;
    struct ps_adapter_site site;
    struct ps_weight weight, bias;
    struct ps_linear_call call;
    float w[OUT * IN], b[OUT], a_mat[R * IN], b_mat[OUT * R], ga[R * IN], gb[OUT * R];
    float x[T * IN], residual[T * OUT], dy[T * OUT];
    unsigned char xs[4 * T * IN], rs[4 * T * OUT], ys[4 * T * OUT], dys[4 * T * OUT],
        dxs[4 * T * IN], ws[4 * OUT * IN];
    void *saved, *scratch;
};

static void fill(float *v, size_t n, uint64_t seed, float width, enum ps_dtype grid)
{
    struct ps_rng_key key = {.seed = seed};
    for (size_t i = 0; i < n; i++) {
        v[i] = width * (2.0f * ps_rng_uniform(&key, i) - 1.0f);
        if (grid == PS_DTYPE_BF16)
            v[i] = ps_bf16_to_f32(ps_f32_to_bf16(v[i]));
    }
}

static struct bench *bench_create(enum ps_dtype dtype, double dropout, int threads)
{
    struct bench *s = calloc(1, sizeof *s);
    assert_non_null(s);
    assert_int_equal(ps_pool_create(&s->pool, threads), 0);
    s->cx = (struct ps_compute){
        .k = &ps_kernels_cpu,
        .pool = s->pool,
        .isa = ps_isa_detect(),
        .dtype = dtype,
        .math = dtype == PS_DTYPE_BF16 ? PS_GEMM_BF16 : PS_GEMM_F32,
        .gemm_workspace = aligned_alloc(64, (ps_gemm_workspace_bytes(threads) + 63) & ~(size_t)63)};
    s->config = (struct ps_adapter_config){
        .method = "lora", .r = R, .alpha = 8, .dropout = dropout, .seed = 11};
    fill(s->w, OUT * IN, 1, 0.5f, dtype);
    fill(s->b, OUT, 2, 0.5f, PS_DTYPE_F32);
    fill(s->x, T * IN, 3, 1.0f, dtype);
    fill(s->residual, T * OUT, 4, 1.0f, dtype);
    fill(s->dy, T * OUT, 5, 1.0f, dtype);
    /* bf16 rounds the operands: values on its grid keep that out of the comparison */
    fill(s->a_mat, R * IN, 6, 0.5f, dtype);
    fill(s->b_mat, OUT * R, 7, 0.5f, dtype);
    ps_dtype_convert(s->ws, dtype, s->w, PS_DTYPE_F32, OUT * IN);
    ps_dtype_convert(s->xs, dtype, s->x, PS_DTYPE_F32, T * IN);
    ps_dtype_convert(s->rs, dtype, s->residual, PS_DTYPE_F32, T * OUT);
    ps_dtype_convert(s->dys, dtype, s->dy, PS_DTYPE_F32, T * OUT);
    s->weight = (struct ps_weight){.data = s->ws, .dtype = dtype};
    s->bias = (struct ps_weight){.data = s->b, .dtype = PS_DTYPE_F32};
    s->site = (struct ps_adapter_site){.ops = &ps_lora_ops,
                                       .config = &s->config,
                                       .layer = 3,
                                       .role = PS_ROLE_V,
                                       .out = OUT,
                                       .in = IN,
                                       .tensor_count = 2,
                                       .tensor = {s->a_mat, s->b_mat},
                                       .grad = {s->ga, s->gb},
                                       .site_idx = 23};
    s->saved = calloc(1, ps_lora_ops.saved_bytes(&s->site, T, dtype) + 64);
    s->scratch = calloc(1, ps_lora_ops.scratch_bytes(&s->site, T, dtype) + 64);
    s->call = (struct ps_linear_call){.cx = &s->cx,
                                      .n_tok = T,
                                      .out = OUT,
                                      .in = IN,
                                      .weight = &s->weight,
                                      .bias = &s->bias,
                                      .site = &s->site,
                                      .saved = s->saved,
                                      .scratch = s->scratch,
                                      .training = true,
                                      .key = {.seed = 5, .step = 9, .micro_batch = 1},
                                      .x = s->xs,
                                      .y = s->ys,
                                      .residual = s->rs,
                                      .dy = s->dys,
                                      .dx = s->dxs};
    return s;
}

static void bench_destroy(struct bench *s)
{
    free(s->cx.gemm_workspace);
    free(s->saved);
    free(s->scratch);
    ps_pool_destroy(s->pool);
    free(s);
}

static double value(const void *p, enum ps_dtype dtype, size_t i)
{
    return dtype == PS_DTYPE_F32 ? (double)((const float *)p)[i]
                                 : (double)ps_bf16_to_f32(((const uint16_t *)p)[i]);
}

/* Results in double for dropped inputs xd and mask (NULL: none). */
struct expected {
    double y[T * OUT], dx[T * IN], da[R * IN], db[OUT * R];
};

static void expect(const struct bench *s, const double *mask, struct expected *e)
{
    static double h[T * R];
    static double p[T * R];
    double scale = ps_lora_scale(&s->config);
    memset(e, 0, sizeof *e);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) {
            h[t * R + r] = p[t * R + r] = 0;
            for (int i = 0; i < IN; i++)
                h[t * R + r] += scale * (double)s->x[t * IN + i] * (mask ? mask[t * IN + i] : 1.0) *
                                (double)s->a_mat[r * IN + i];
            for (int o = 0; o < OUT; o++)
                p[t * R + r] += scale * (double)s->dy[t * OUT + o] * (double)s->b_mat[o * R + r];
        }
    for (int t = 0; t < T; t++) {
        for (int o = 0; o < OUT; o++) {
            double sum = (double)s->b[o] + (double)s->residual[t * OUT + o];
            for (int i = 0; i < IN; i++)
                sum += (double)s->x[t * IN + i] * (double)s->w[o * IN + i];
            for (int r = 0; r < R; r++) {
                sum += h[t * R + r] * (double)s->b_mat[o * R + r];
                e->db[o * R + r] += (double)s->dy[t * OUT + o] * h[t * R + r];
            }
            e->y[t * OUT + o] = sum;
        }
        for (int i = 0; i < IN; i++) {
            double m = mask ? mask[t * IN + i] : 1.0;
            double sum = 0;
            for (int o = 0; o < OUT; o++)
                sum += (double)s->dy[t * OUT + o] * (double)s->w[o * IN + i];
            for (int r = 0; r < R; r++) {
                sum += m * p[t * R + r] * (double)s->a_mat[r * IN + i];
                e->da[r * IN + i] += p[t * R + r] * m * (double)s->x[t * IN + i];
            }
            e->dx[t * IN + i] = sum;
        }
    }
}

static void compare(const char *what, const void *got, enum ps_dtype dtype, const double *want,
                    size_t n, double tol)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(want[i]));
    for (size_t i = 0; i < n; i++)
        if (!(fabs(value(got, dtype, i) - want[i]) <= tol * largest))
            fail_msg("%s[%zu]: %.9g, expected %.9g", what, i, value(got, dtype, i), want[i]);
}

static struct expected want;

/* fp32: sums of about 40 products. bf16: H and P are rounded to 8 bits (2^-9 each), and so are the
 * outputs; sums of R or T of them in random directions. */
static double tolerance(enum ps_dtype dtype)
{
    return dtype == PS_DTYPE_F32 ? 2e-6 : 8e-3;
}

static void forward_and_gradients_equal_double(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        enum ps_dtype dtype = i & 1 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        struct bench *s = bench_create(dtype, 0, i & 2 ? 3 : 1);
        s->config.use_rslora = i & 2;
        expect(s, NULL, &want);
        double tol = tolerance(dtype);
        ps_linear_forward(&s->call);
        compare("y", s->ys, dtype, want.y, T * OUT, tol);
        ps_linear_backward(&s->call);
        compare("dx", s->dxs, dtype, want.dx, T * IN, tol);
        compare("dA", s->ga, PS_DTYPE_F32, want.da, R * IN, tol);
        compare("dB", s->gb, PS_DTYPE_F32, want.db, OUT * R, tol);
        /* a second micro-batch adds */
        s->call.accumulate = true;
        s->call.dx = NULL;
        ps_linear_backward(&s->call);
        for (size_t k = 0; k < R * IN; k++)
            want.da[k] *= 2;
        for (size_t k = 0; k < OUT * R; k++)
            want.db[k] *= 2;
        compare("2 dA", s->ga, PS_DTYPE_F32, want.da, R * IN, tol);
        compare("2 dB", s->gb, PS_DTYPE_F32, want.db, OUT * R, tol);
        bench_destroy(s);
    }
}

static void after_initialisation_the_linear_is_the_base_bit_for_bit(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        enum ps_dtype dtype = i & 1 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        struct bench *s = bench_create(dtype, i & 2 ? 0.25 : 0, 1);
        assert_int_equal(ps_lora_ops.init(&s->site, NULL, NULL), 0);
        for (size_t k = 0; k < OUT * R; k++)
            assert_true(s->b_mat[k] == 0);
        ps_linear_forward(&s->call);
        size_t bytes = T * OUT * ps_dtype_size(dtype);
        unsigned char *adapted = malloc(bytes);
        assert_non_null(adapted);
        memcpy(adapted, s->ys, bytes);
        s->call.site = NULL;
        memset(s->ys, 0, sizeof s->ys);
        ps_linear_forward(&s->call);
        assert_memory_equal(adapted, s->ys, bytes);
        free(adapted);
        bench_destroy(s);
    }
}

static void initial_values_are_uniform_and_differ_between_sites(void **state)
{
    (void)state;
    struct bench *s = bench_create(PS_DTYPE_F32, 0, 1);
    assert_int_equal(ps_lora_ops.init(&s->site, NULL, NULL), 0);
    double bound = 1.0 / sqrt((double)IN);
    double square = 0;
    for (size_t i = 0; i < R * IN; i++) {
        assert_true(fabs((double)s->a_mat[i]) <= bound);
        square += pow((double)s->a_mat[i] / bound, 2);
    }
    square /= R * IN; /* 1/3, standard deviation sqrt(4/45 / 145) = 0.025 */
    assert_true(fabs(square - 1.0 / 3.0) < 0.1);
    float first = s->a_mat[0];
    s->site.site_idx++;
    assert_int_equal(ps_lora_ops.init(&s->site, NULL, NULL), 0);
    assert_true(s->a_mat[0] != first);
    bench_destroy(s);
}

/* The mask that dropout applies, found by sending ones through. */
static void find_mask(const struct bench *s, double *mask)
{
    float ones[T * IN];
    float out[T * IN];
    for (size_t i = 0; i < T * IN; i++)
        ones[i] = 1;
    struct ps_rng_key key = s->call.key;
    key.layer = (uint32_t)s->site.layer * 16 + (uint32_t)s->site.role;
    key.site = PS_RNG_DROPOUT;
    ps_dropout(s->pool, s->cx.isa, out, ones, PS_DTYPE_F32, T, IN, (float)s->config.dropout, &key,
               0);
    for (size_t i = 0; i < T * IN; i++)
        mask[i] = (double)out[i];
}

static void dropout_masks_forward_and_backward_alike(void **state)
{
    (void)state;
    static double mask[T * IN];
    for (int i = 0; i < 2; i++) {
        enum ps_dtype dtype = i ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        struct bench *s = bench_create(dtype, 0.25, 1);
        find_mask(s, mask);
        size_t kept = 0;
        for (size_t k = 0; k < T * IN; k++) {
            kept += mask[k] != 0;
            assert_true(mask[k] == 0 || fabs(mask[k] - 4.0 / 3.0) < 1e-6);
        }
        /* 1073 elements: three quarters, standard deviation 14 */
        assert_true(abs((int)kept - 805) < 60);
        expect(s, mask, &want);
        double tol = tolerance(dtype);
        ps_linear_forward(&s->call);
        compare("y", s->ys, dtype, want.y, T * OUT, tol);
        ps_linear_backward(&s->call);
        compare("dx", s->dxs, dtype, want.dx, T * IN, tol);
        compare("dA", s->ga, PS_DTYPE_F32, want.da, R * IN, tol);
        compare("dB", s->gb, PS_DTYPE_F32, want.db, OUT * R, tol);
        /* none in evaluation */
        s->call.training = false;
        expect(s, NULL, &want);
        ps_linear_forward(&s->call);
        compare("y in evaluation", s->ys, dtype, want.y, T * OUT, tol);
        bench_destroy(s);
    }
}

static void dropout_keeps_the_expectation(void **state)
{
    (void)state;
    struct bench *s = bench_create(PS_DTYPE_F32, 0.5, 1);
    static double mean[T * OUT];
    memset(mean, 0, sizeof mean);
    enum { N = 600 };
    expect(s, NULL, &want);
    for (int i = 0; i < N; i++) {
        s->call.key.step = (uint64_t)i;
        ps_linear_forward(&s->call);
        for (size_t k = 0; k < T * OUT; k++)
            mean[k] += (double)((const float *)s->ys)[k] / N;
    }
    double error = 0;
    double adapter = 0;
    s->call.site = NULL;
    ps_linear_forward(&s->call);
    for (size_t k = 0; k < T * OUT; k++) {
        error += pow(mean[k] - want.y[k], 2);
        adapter += pow((double)((const float *)s->ys)[k] - want.y[k], 2);
    }
    /* each draw is off by about the adapter's own part; the mean by 1 / sqrt(600) of that */
    assert_true(adapter > 1);
    assert_true(sqrt(error / adapter) < 0.1);
    bench_destroy(s);
}

static void recomputing_saves_the_same_bits(void **state)
{
    (void)state;
    struct bench *s = bench_create(PS_DTYPE_BF16, 0.25, 1);
    size_t bytes = ps_lora_ops.saved_bytes(&s->site, T, PS_DTYPE_BF16);
    unsigned char *first = malloc(bytes);
    assert_non_null(first);
    ps_linear_forward(&s->call);
    memcpy(first, s->saved, bytes);
    memset(s->saved, 0xff, bytes);
    s->call.y = NULL;
    ps_lora_ops.save(&s->call);
    assert_memory_equal(first, s->saved, bytes);
    free(first);
    bench_destroy(s);
}

static void merging_equals_applying(void **state)
{
    (void)state;
    struct bench *s = bench_create(PS_DTYPE_F32, 0, 1);
    static float merged[OUT * IN + 1];
    memcpy(merged, s->weight.data, OUT * IN * sizeof(float));
    merged[OUT * IN] = 77; /* canary */
    assert_int_equal(ps_lora_ops.merge(&s->site, 0, 8, merged), 0);
    assert_int_equal(ps_lora_ops.merge(&s->site, 8, OUT - 8, merged + 8 * IN), 0);
    assert_true(merged[OUT * IN] == 77);
    static double adapted[T * OUT];
    ps_linear_forward(&s->call);
    for (size_t k = 0; k < T * OUT; k++)
        adapted[k] = (double)((const float *)s->ys)[k];
    s->weight.data = merged;
    s->call.site = NULL;
    ps_linear_forward(&s->call);
    compare("merged", s->ys, PS_DTYPE_F32, adapted, T * OUT, 1e-5);
    bench_destroy(s);
}

static void ranks_out_of_range_are_refused_and_shapes_described(void **state)
{
    (void)state;
    struct ps_adapter_tensor t[PS_ADAPTER_TENSOR_MAX];
    static const int32_t bad[] = {0, -1, 22, INT32_MAX};
    for (int i = 0; i < 4; i++) {
        struct ps_error err = {0};
        struct ps_adapter_config c = {.method = "lora", .r = bad[i], .alpha = 1};
        struct ps_adapter_site site = {.config = &c, .out = OUT, .in = IN};
        assert_int_equal(ps_lora_ops.tensors(&site, t, &err), PS_EUSAGE);
        assert_string_equal(err.field, "lora-r");
        assert_non_null(strstr(err.message, "1..21"));
    }
    struct ps_adapter_config c = {.method = "lora", .r = 21, .alpha = 1};
    struct ps_adapter_site site = {.config = &c, .out = OUT, .in = IN};
    assert_int_equal(ps_lora_ops.tensors(&site, t, NULL), 2);
    assert_string_equal(t[0].suffix, "lora_A.weight");
    assert_int_equal(t[0].shape[0], 21);
    assert_int_equal(t[0].shape[1], IN);
    assert_string_equal(t[1].suffix, "lora_B.weight");
    assert_int_equal(t[1].shape[0], OUT);
    assert_int_equal(t[1].shape[1], 21);
}

static void scale_is_alpha_over_rank_or_its_root(void **state)
{
    (void)state;
    struct ps_adapter_config c = {.r = 16, .alpha = 8};
    assert_true(ps_lora_scale(&c) == 0.5);
    c.use_rslora = true;
    assert_true(ps_lora_scale(&c) == 2.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_and_gradients_equal_double),
        cmocka_unit_test(after_initialisation_the_linear_is_the_base_bit_for_bit),
        cmocka_unit_test(initial_values_are_uniform_and_differ_between_sites),
        cmocka_unit_test(dropout_masks_forward_and_backward_alike),
        cmocka_unit_test(dropout_keeps_the_expectation),
        cmocka_unit_test(recomputing_saves_the_same_bits),
        cmocka_unit_test(merging_equals_applying),
        cmocka_unit_test(ranks_out_of_range_are_refused_and_shapes_described),
        cmocka_unit_test(scale_is_alpha_over_rank_or_its_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
