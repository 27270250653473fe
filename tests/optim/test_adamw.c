/* AdamW: formula, bit equality of all variants, master encoding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "optim/adamw.h"
#include "tests/kernels/kernel_check.h"

struct state {
    struct guarded weight, remainder, grad, m, v;
    struct ps_adamw_slice slice;
};

static void state_make(struct state *s, size_t n, enum ps_dtype wt, enum ps_dtype gt, uint64_t seed)
{
    s->weight = guarded_make(n * ps_dtype_size(wt), ps_dtype_size(wt));
    s->remainder = guarded_make(n * 2, 2);
    s->grad = guarded_make(n * ps_dtype_size(gt), ps_dtype_size(gt));
    s->m = guarded_make(n * 4, 4);
    s->v = guarded_make(n * 4, 8);
    fill(s->weight.data, wt, n, 0.05, seed);
    for (size_t i = 0; i < n; i++) {
        uint16_t r = (uint16_t)(i * 40503u);
        memcpy(s->remainder.data + 2 * i, &r, 2);
    }
    memset(s->m.data, 0, n * 4);
    memset(s->v.data, 0, n * 4);
    s->slice = (struct ps_adamw_slice){
        .weight = s->weight.data,
        .remainder = wt == PS_DTYPE_BF16 ? (uint16_t *)(void *)s->remainder.data : NULL,
        .grad = s->grad.data,
        .exp_avg = (float *)(void *)s->m.data,
        .exp_avg_sq = (float *)(void *)s->v.data,
        .weight_dtype = wt,
        .grad_dtype = gt,
        .n = n,
    };
}

static void state_free(struct state *s)
{
    guarded_free(&s->weight);
    guarded_free(&s->remainder);
    guarded_free(&s->grad);
    guarded_free(&s->m);
    guarded_free(&s->v);
}

/* Gradients of very different sizes, a few zeros and subnormals. */
static void fill_grad(struct state *s, uint64_t seed)
{
    size_t n = s->slice.n;
    enum ps_dtype t = s->slice.grad_dtype;
    const double scale[8] = {1, 1e-3, 1e-6, 30, 1e-12, 1e4, 1e-40, 0};
    fill(s->grad.data, t, n, 1, seed);
    for (size_t i = 0; i < n; i++)
        put(s->grad.data, t, i, get(s->grad.data, t, i) * scale[i % 8]);
}

static void assert_same(const struct state *a, const struct state *b)
{
    assert_memory_equal(a->weight.data, b->weight.data, a->weight.bytes);
    assert_memory_equal(a->remainder.data, b->remainder.data, a->remainder.bytes);
    assert_memory_equal(a->m.data, b->m.data, a->m.bytes);
    assert_memory_equal(a->v.data, b->v.data, a->v.bytes);
}

static const enum ps_dtype type_pair[4][2] = {{PS_DTYPE_F32, PS_DTYPE_F32},
                                              {PS_DTYPE_F32, PS_DTYPE_BF16},
                                              {PS_DTYPE_BF16, PS_DTYPE_F32},
                                              {PS_DTYPE_BF16, PS_DTYPE_BF16}};

/* Reference and fast variants must agree in every bit: one operation sequence. */
static void every_variant_and_thread_count_gives_the_same_bits(void **state)
{
    struct pools *pools = *state;
    const size_t sizes[] = {1, 7, 8, 9, 15, 16, 17, 31, 33, 1000, 16383, 16384, 16385, 40001};
    for (size_t k = 0; k < 4 * sizeof sizes / sizeof *sizes; k++) {
        size_t n = sizes[k / 4];
        struct state ref;
        FOR_EACH_ISA(isa)
        {
            for (int p = 0; p < THREADS_MAX; p++) {
                struct state s;
                state_make(&s, n, type_pair[k % 4][0], type_pair[k % 4][1], k);
                for (uint64_t t = 1; t <= 3; t++) {
                    struct ps_adamw_scalars c;
                    ps_adamw_prepare(&c, 1e-3, 0.9, 0.999, 1e-8, 0.1, t, t == 2 ? 0.37f : 1.0f);
                    fill_grad(&s, t);
                    ps_adamw_update(pools->pool[p], isa, &c, &s.slice);
                }
                if (isa == PS_ISA_PORTABLE && p == 0) {
                    ref = s;
                    continue;
                }
                assert_same(&ref, &s);
                state_free(&s);
            }
        }
        state_free(&ref);
    }
}

static void cutting_a_tensor_into_slices_changes_no_bit(void **state)
{
    struct pools *pools = *state;
    const size_t n = 40001, cut[] = {0, 1, 8, 23, 4096, 20001, 40000, 40001};
    for (size_t k = 0; k < 4; k++) {
        FOR_EACH_ISA(isa)
        {
            struct state whole, cuts;
            state_make(&whole, n, type_pair[k][0], type_pair[k][1], 5);
            state_make(&cuts, n, type_pair[k][0], type_pair[k][1], 5);
            struct ps_adamw_scalars c;
            ps_adamw_prepare(&c, 1e-3, 0.9, 0.95, 1e-8, 0.1, 4, 0.9f);
            fill_grad(&whole, 3);
            fill_grad(&cuts, 3);
            ps_adamw_update(pools->pool[1], isa, &c, &whole.slice);
            for (size_t i = 0; i + 1 < sizeof cut / sizeof *cut; i++) {
                struct ps_adamw_slice s = cuts.slice;
                s.weight = cuts.weight.data + cut[i] * ps_dtype_size(s.weight_dtype);
                s.grad = cuts.grad.data + cut[i] * ps_dtype_size(s.grad_dtype);
                s.remainder = s.remainder ? s.remainder + cut[i] : NULL;
                s.exp_avg += cut[i];
                s.exp_avg_sq += cut[i];
                s.n = cut[i + 1] - cut[i];
                ps_adamw_update(pools->pool[i % 3], isa, &c, &s);
            }
            assert_same(&whole, &cuts);
            state_free(&whole);
            state_free(&cuts);
        }
    }
}

static void first_step_moves_by_the_rate_times_the_damped_sign(void **state)
{
    (void)state;
    const float g[9] = {1, -1, 1e-3f, -1e-6f, 1e-8f, -3e-9f, 1e4f, 0, 7};
    FOR_EACH_ISA(isa)
    {
        float p[9] = {0}, m[9] = {0}, v[9] = {0};
        struct ps_adamw_slice s = {.weight = p, .grad = g, .exp_avg = m, .exp_avg_sq = v, .n = 9};
        struct ps_adamw_scalars c;
        ps_adamw_prepare(&c, 2e-4, 0.9, 0.999, 1e-8, 0, 1, 1);
        ps_adamw_update(NULL, isa, &c, &s);
        for (size_t i = 0; i < 9; i++) {
            double size = fabs((double)g[i]);
            /* ten roundings of 6e-8, some of them halved by the root */
            close_to("step", i, fabs((double)p[i]), 2e-4 * size / (size + 1e-8), 0, 6e-7);
            assert_true(g[i] == 0 || signbit(p[i]) != signbit(g[i]));
        }
    }
}

static void hundred_steps_stay_near_a_double_reference(void **state)
{
    (void)state;
    const size_t n = 512;
    const double lr = 1e-3, b1 = 0.9, b2 = 0.999, eps = 1e-8, wd = 0.01;
    FOR_EACH_ISA(isa)
    {
        struct state s;
        state_make(&s, n, PS_DTYPE_F32, PS_DTYPE_F32, 8);
        double p[512], m[512] = {0}, v[512] = {0}, ulp[512] = {0};
        for (size_t i = 0; i < n; i++)
            p[i] = get(s.weight.data, PS_DTYPE_F32, i);
        for (uint64_t t = 1; t <= 100; t++) {
            struct ps_adamw_scalars c;
            ps_adamw_prepare(&c, lr, b1, b2, eps, wd, t, 1);
            fill_grad(&s, t);
            ps_adamw_update(NULL, isa, &c, &s.slice);
            for (size_t i = 0; i < n; i++) {
                double g = get(s.grad.data, PS_DTYPE_F32, i);
                p[i] -= lr * wd * p[i];
                m[i] = b1 * m[i] + (1 - b1) * g;
                v[i] = b2 * v[i] + (1 - b2) * g * g;
                p[i] -= lr * (m[i] / (1 - pow(b1, (double)t))) /
                        (sqrt(v[i] / (1 - pow(b2, (double)t))) + eps);
                ulp[i] += fabs(p[i]) * 0x1p-23;
            }
        }
        /* specs: 2e-6 lr a step plus one spacing of the weight a step */
        for (size_t i = 0; i < n; i++)
            close_to("weight", i, get(s.weight.data, PS_DTYPE_F32, i), p[i],
                     2e-6 * lr * 100 + ulp[i], 0);
        state_free(&s);
    }
}

static void split_master_equals_fp32_master_for_a_thousand_steps(void **state)
{
    struct pools *pools = *state;
    const size_t n = 331;
    FOR_EACH_ISA(isa)
    {
        struct state split, full;
        state_make(&split, n, PS_DTYPE_BF16, PS_DTYPE_BF16, 3);
        state_make(&full, n, PS_DTYPE_F32, PS_DTYPE_BF16, 3);
        uint16_t *hi = split.slice.weight, *lo = split.slice.remainder;
        float *p = full.slice.weight;
        for (size_t i = 0; i < n; i++)
            p[i] = ps_master_join(hi[i], lo[i]);
        for (uint64_t t = 1; t <= 1000; t++) {
            struct ps_adamw_scalars c;
            ps_adamw_prepare(&c, 1e-3, 0.9, 0.999, 1e-8, 0.1, t, 0.5f);
            fill_grad(&split, t);
            memcpy(full.grad.data, split.grad.data, n * 2);
            ps_adamw_update(pools->pool[0], isa, &c, &split.slice);
            ps_adamw_update(pools->pool[0], isa, &c, &full.slice);
        }
        for (size_t i = 0; i < n; i++) {
            float joined = ps_master_join(hi[i], lo[i]);
            assert_memory_equal(&joined, p + i, 4);
            /* the weight is the master rounded half away from zero */
            assert_true(fabs(get(hi, PS_DTYPE_BF16, i) - (double)p[i]) <=
                        0x1p-8 * fabs((double)p[i]));
        }
        assert_memory_equal(split.m.data, full.m.data, n * 4);
        assert_memory_equal(split.v.data, full.v.data, n * 4);
        state_free(&split);
        state_free(&full);
    }
}

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static void split_and_join_lose_no_finite_master(void **state)
{
    (void)state;
    const uint32_t low[6] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    for (uint32_t i = 0; i < 65536 * 6; i++) {
        uint32_t u = i / 6 << 16 | low[i % 6];
        uint16_t hi, lo;
        ps_master_split(from_bits(u), &hi, &lo);
        float back = ps_master_join(hi, lo);
        if ((u & 0x7fffffff) > 0x7f800000) {
            assert_true(isnan(ps_bf16_to_f32(hi)));
            assert_true(isnan(back));
        } else {
            assert_memory_equal(&back, &u, 4);
        }
    }
    uint16_t hi, lo;
    ps_master_split(from_bits(0x3F808000), &hi, &lo); /* a tie: away from zero, not to even */
    assert_int_equal(hi, 0x3F81);
    assert_int_equal(lo, 0x8000);
    assert_true(ps_master_join(0x3F80, 0) == 1.0f); /* a plain bf16 checkpoint has remainder 0 */
}

static void gradient_scale_equals_scaling_the_gradient(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        struct state a, b;
        state_make(&a, 100, PS_DTYPE_F32, PS_DTYPE_F32, 1);
        state_make(&b, 100, PS_DTYPE_F32, PS_DTYPE_F32, 1);
        fill_grad(&a, 2);
        for (size_t i = 0; i < 100; i++)
            ((float *)(void *)b.grad.data)[i] = ((float *)(void *)a.grad.data)[i] * 0.123f;
        struct ps_adamw_scalars c;
        ps_adamw_prepare(&c, 1e-3, 0.9, 0.999, 1e-8, 0, 2, 0.123f);
        ps_adamw_update(NULL, isa, &c, &a.slice);
        ps_adamw_prepare(&c, 1e-3, 0.9, 0.999, 1e-8, 0, 2, 1);
        ps_adamw_update(NULL, isa, &c, &b.slice);
        assert_same(&a, &b);
        state_free(&a);
        state_free(&b);
    }
}

static void rate_zero_moves_moments_and_no_weight(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        FOR_EACH_ISA(isa)
        {
            struct state a, b;
            state_make(&a, 50, type_pair[k][0], type_pair[k][1], 1);
            state_make(&b, 50, type_pair[k][0], type_pair[k][1], 1);
            fill_grad(&a, 2);
            struct ps_adamw_scalars c;
            ps_adamw_prepare(&c, 0, 0.9, 0.999, 1e-8, 0.1, 1, 1);
            ps_adamw_update(NULL, isa, &c, &a.slice);
            assert_memory_equal(a.weight.data, b.weight.data, a.weight.bytes);
            assert_memory_equal(a.remainder.data, b.remainder.data, a.remainder.bytes);
            assert_memory_not_equal(a.m.data, b.m.data, a.m.bytes);
            assert_memory_not_equal(a.v.data, b.v.data, a.v.bytes);
            state_free(&a);
            state_free(&b);
        }
    }
}

static void zero_gradient_makes_no_nan_and_only_decays(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        struct state s;
        state_make(&s, 20, PS_DTYPE_F32, PS_DTYPE_F32, 1);
        float before[20];
        memcpy(before, s.weight.data, sizeof before);
        memset(s.grad.data, 0, s.grad.bytes);
        for (uint64_t t = 1; t <= 10; t++) {
            struct ps_adamw_scalars c;
            ps_adamw_prepare(&c, 1e-2, 0.9, 0.999, 1e-8, 0.5, t, 1);
            ps_adamw_update(NULL, isa, &c, &s.slice);
        }
        for (size_t i = 0; i < 20; i++)
            close_to("weight", i, get(s.weight.data, PS_DTYPE_F32, i),
                     (double)before[i] * pow(1 - 5e-3, 10), 0, 1e-6);
        state_free(&s);
    }
}

static void nan_gradient_reaches_its_element_only_and_stays_nan(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        FOR_EACH_ISA(isa)
        {
            struct state s;
            state_make(&s, 40, type_pair[k][0], type_pair[k][1], 1);
            fill_grad(&s, 2);
            put(s.grad.data, type_pair[k][1], 21, (double)NAN);
            put(s.grad.data, type_pair[k][1], 39, (double)-NAN);
            struct ps_adamw_scalars c;
            ps_adamw_prepare(&c, 1e-3, 0.9, 0.999, 1e-8, 0.1, 1, 1);
            ps_adamw_update(NULL, isa, &c, &s.slice);
            for (size_t i = 0; i < 40; i++)
                assert_int_equal(isnan(get(s.weight.data, type_pair[k][0], i)), i == 21 || i == 39);
            state_free(&s);
        }
    }
}

static void bias_correction_is_exact_for_the_first_and_a_late_step(void **state)
{
    (void)state;
    struct ps_adamw_scalars c;
    ps_adamw_prepare(&c, 1e-3, 0.9, 0.999, 1e-8, 0.1, 1, 1);
    close_to("step_size", 0, (double)c.step_size, 1e-3 / 0.1, 0, 1e-7);
    close_to("rsqrt_c2", 0, (double)c.rsqrt_c2, 1 / sqrt(0.001), 0, 1e-7);
    assert_true(c.one_minus_beta2 == (float)(1 - 0.999)); /* not 1 - (float)0.999 */
    ps_adamw_prepare(&c, 1e-3, 0, 0.999, 1e-8, 0.1, 1000000000, 1);
    assert_true(c.step_size == 1e-3f && c.rsqrt_c2 == 1.0f && c.beta1 == 0);
}

static void read_line(FILE *f, double *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert_int_equal(fscanf(f, "%la", out + i), 1);
}

static void agrees_with_torch_adamw(void **state)
{
    (void)state;
    const char *root = getenv("PENSTOCK_ROOT");
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/golden/adamw/adamw.txt", root ? root : ".");
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    double h[5], g[16], want[16];
    size_t n, steps;
    int cases = 0;
    while (fscanf(f, " case %la %la %la %la %la %zu %zu", h, h + 1, h + 2, h + 3, h + 4, &n,
                  &steps) == 7) {
        float p[4][16], m[4][16] = {{0}}, v[4][16] = {{0}}, gf[16];
        assert_true(n <= 16);
        read_line(f, want, n);
        for (size_t i = 0; i < 4 * n; i++)
            p[i / n][i % n] = (float)want[i % n];
        for (uint64_t t = 1; t <= steps; t++) {
            read_line(f, g, n);
            read_line(f, want, n);
            for (size_t i = 0; i < n; i++)
                gf[i] = (float)g[i];
            struct ps_adamw_scalars c;
            ps_adamw_prepare(&c, h[0], h[1], h[2], h[3], h[4], t, 1);
            FOR_EACH_ISA(isa)
            {
                struct ps_adamw_slice s = {
                    .weight = p[isa], .grad = gf, .exp_avg = m[isa], .exp_avg_sq = v[isa], .n = n};
                ps_adamw_update(NULL, isa, &c, &s);
                /* torch ran in double: 2e-6 of the rate and one spacing of the weight a step */
                for (size_t i = 0; i < n; i++)
                    close_to("weight", i, (double)p[isa][i], want[i], 2e-6 * h[0] * (double)t,
                             0x1p-23 * (double)t);
            }
        }
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_variant_and_thread_count_gives_the_same_bits),
        cmocka_unit_test(cutting_a_tensor_into_slices_changes_no_bit),
        cmocka_unit_test(first_step_moves_by_the_rate_times_the_damped_sign),
        cmocka_unit_test(hundred_steps_stay_near_a_double_reference),
        cmocka_unit_test(split_master_equals_fp32_master_for_a_thousand_steps),
        cmocka_unit_test(split_and_join_lose_no_finite_master),
        cmocka_unit_test(gradient_scale_equals_scaling_the_gradient),
        cmocka_unit_test(rate_zero_moves_moments_and_no_weight),
        cmocka_unit_test(zero_gradient_makes_no_nan_and_only_decays),
        cmocka_unit_test(nan_gradient_reaches_its_element_only_and_stays_nan),
        cmocka_unit_test(bias_correction_is_exact_for_the_first_and_a_late_step),
        cmocka_unit_test(agrees_with_torch_adamw),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
