/* Softmax cross-entropy, and the error of the exponential under it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/cross_entropy.h"
#include "runtime/kernels/cross_entropy_internal.h"
#include "runtime/kernels/exp_internal.h"
#include "tests/kernels/kernel_check.h"

struct shape {
    size_t rows, vocab;
};

static const struct shape shapes[] = {{1, 1},    {3, 2},    {70, 15},   {5, 16},
                                      {4, 17},   {2, 1000}, {3, 4095},  {3, 4096},
                                      {3, 4097}, {2, 8192}, {3, 49152}, {2, 151936}};

#define SHAPES (sizeof shapes / sizeof *shapes)
#define GAP 3

struct fixture {
    struct guarded z;
    float *original;
    int32_t target[70];
    double loss[71];
    struct shape s;
    size_t ld, count;
};

static void fixture_make(struct fixture *f, struct shape s, double scale)
{
    f->s = s;
    f->ld = s.vocab + GAP;
    f->count = s.rows * f->ld - GAP;
    f->z = guarded_make(f->count * 4, 4);
    f->original = malloc(f->count * 4);
    assert_non_null(f->original);
    fill(f->original, PS_DTYPE_F32, f->count, scale, s.vocab);
    for (size_t r = 0; r < s.rows; r++)
        f->target[r] = (int32_t)((r * 7919 + s.vocab - 1) % s.vocab);
}

static void fixture_free(struct fixture *f)
{
    guarded_free(&f->z);
    free(f->original);
}

static void run(struct fixture *f, struct ps_pool *pool, enum ps_isa isa, float dscale, int grad)
{
    memcpy(f->z.data, f->original, f->z.bytes);
    for (size_t r = 0; r <= f->s.rows; r++)
        f->loss[r] = -1e300;
    ps_cross_entropy(pool, isa, (float *)(void *)f->z.data, f->ld, f->s.rows, f->s.vocab, f->target,
                     f->loss, dscale, grad);
    assert_true(f->loss[f->s.rows] == -1e300);
}

static void check(const struct fixture *f, double dscale)
{
    for (size_t r = 0; r < f->s.rows; r++) {
        const float *z = f->original + r * f->ld;
        const float *dz = (const float *)(const void *)f->z.data + r * f->ld;
        double max = -INFINITY, sum = 0;
        for (size_t j = 0; j < f->s.vocab; j++)
            max = fmax(max, (double)z[j]);
        for (size_t j = 0; j < f->s.vocab; j++)
            sum += exp((double)z[j] - max);
        /* exp errs by 1.5 ulp plus half an ulp of its argument (up to 60: 2e-6), both of random
         * sign over the sum */
        close_to("loss", r, f->loss[r], log(sum) + max - (double)z[f->target[r]], 1e-6, 1e-6);
        for (size_t j = 0; j < f->s.vocab; j++) {
            double want = exp((double)z[j] - max) / sum - ((int32_t)j == f->target[r]);
            /* the target's p - 1 cancels: there the error of the sum (2e-7) is absolute */
            double atol = (int32_t)j == f->target[r] ? 2e-7 * dscale : 1e-38;
            close_to("dz", j, (double)dz[j], want * dscale, atol, 6e-6);
        }
        for (size_t j = f->s.vocab; j < f->ld && r + 1 < f->s.rows; j++)
            assert_memory_equal(z + j, dz + j, 4);
    }
}

static void matches_double_and_ignores_thread_count(void **state)
{
    struct pools *pools = *state;
    for (size_t i = 0; i < SHAPES; i++) {
        struct fixture f;
        fixture_make(&f, shapes[i], i % 2 ? 8 : 2);
        FOR_EACH_ISA(isa)
        {
            double loss[70];
            float *first = malloc(f.z.bytes);
            assert_non_null(first);
            for (int p = 0; p < THREADS_MAX; p++) {
                run(&f, pools->pool[p], isa, 0.125f, 1);
                if (p == 0) {
                    check(&f, 0.125);
                    memcpy(first, f.z.data, f.z.bytes);
                    memcpy(loss, f.loss, sizeof loss);
                }
                assert_memory_equal(first, f.z.data, f.z.bytes);
                assert_memory_equal(loss, f.loss, f.s.rows * sizeof *loss);
            }
            free(first);
        }
        fixture_free(&f);
    }
}

static void without_gradient_logits_stay_and_loss_is_the_same(void **state)
{
    (void)state;
    struct fixture f;
    fixture_make(&f, (struct shape){5, 5000}, 3);
    FOR_EACH_ISA(isa)
    {
        double loss[5];
        run(&f, NULL, isa, 1, 1);
        memcpy(loss, f.loss, sizeof loss);
        run(&f, NULL, isa, 1, 0);
        assert_memory_equal(loss, f.loss, sizeof loss);
        assert_memory_equal(f.original, f.z.data, f.z.bytes);
    }
    fixture_free(&f);
}

static void row_does_not_depend_on_other_rows(void **state)
{
    (void)state;
    struct fixture f;
    fixture_make(&f, (struct shape){9, 777}, 3);
    FOR_EACH_ISA(isa)
    {
        run(&f, NULL, isa, 1, 1);
        for (size_t r = 0; r < 9; r++) {
            float z[777];
            double loss;
            memcpy(z, f.original + r * f.ld, sizeof z);
            ps_cross_entropy(NULL, isa, z, 777, 1, 777, f.target + r, &loss, 1, 1);
            assert_true(loss == f.loss[r]);
            assert_memory_equal(z, f.z.data + r * f.ld * 4, sizeof z);
        }
    }
    fixture_free(&f);
}

static void gradient_agrees_with_finite_differences(void **state)
{
    (void)state;
    const float h = 1e-2f; /* loss is fp64 of fp32 exponentials: 1e-7 / h = 1e-5; h^2 = 1e-4 */
    FOR_EACH_ISA(isa)
    {
        float z[19], dz[19];
        const int32_t target = 4;
        double loss;
        fill(z, PS_DTYPE_F32, 19, 2, 6);
        memcpy(dz, z, sizeof z);
        ps_cross_entropy(NULL, isa, dz, 19, 1, 19, &target, &loss, 1, 1);
        for (size_t j = 0; j < 19; j++) {
            double side[2];
            for (int k = 0; k < 2; k++) {
                float keep = z[j];
                z[j] += k ? h : -h;
                ps_cross_entropy(NULL, isa, z, 19, 1, 19, &target, side + k, 1, 0);
                z[j] = keep;
            }
            close_to("dz", j, (side[1] - side[0]) / (2 * (double)h), (double)dz[j], 1e-4, 1e-4);
        }
    }
}

/* Blocks of very different height: the running maximum has to rescale in both directions. */
static void blocks_of_different_height_join(void **state)
{
    (void)state;
    struct fixture f;
    fixture_make(&f, (struct shape){4, 3 * 4096 + 5}, 1);
    for (size_t r = 0; r < 4; r++)
        for (size_t j = 0; j < f.s.vocab; j++) {
            const double height[4][4] = {
                {0, 50, 10, -20}, {90, 0, -90, 0}, {-1000, -1010, -990, -2000}, {0, 0, 1000, 5}};
            f.original[r * f.ld + j] += (float)height[r][j / 4096];
        }
    f.target[0] = 5000;
    f.target[1] = 3;
    f.target[2] = 8200;
    f.target[3] = 8193;
    FOR_EACH_ISA(isa)
    {
        run(&f, NULL, isa, 1, 1);
        for (size_t r = 0; r < 4; r++) {
            const float *z = f.original + r * f.ld;
            double max = -INFINITY, sum = 0;
            for (size_t j = 0; j < f.s.vocab; j++)
                max = fmax(max, (double)z[j]);
            for (size_t j = 0; j < f.s.vocab; j++)
                sum += exp((double)z[j] - max);
            close_to("loss", r, f.loss[r], log(sum) + max - (double)z[f.target[r]], 1e-6, 1e-6);
        }
    }
    fixture_free(&f);
}

static void masked_logits_get_zero_probability(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        size_t vocab = 4096 * 2 + 9;
        float *z = malloc(vocab * 4);
        assert_non_null(z);
        const int32_t target = 5000;
        double loss;
        for (size_t j = 0; j < vocab; j++)
            z[j] = j / 4096 == 1 ? -3.0f : -INFINITY; /* whole blocks of -Inf on both sides */
        ps_cross_entropy(NULL, isa, z, vocab, 1, vocab, &target, &loss, 1, 1);
        close_to("loss", 0, loss, log(4096), 1e-9, 1e-9);
        assert_true(z[0] == 0 && z[vocab - 1] == 0);
        close_to("dz", 1, (double)z[4097], 1.0 / 4096, 0, 1e-6);
        free(z);
    }
}

static void nan_and_inf_propagate_into_the_loss_of_their_row(void **state)
{
    (void)state;
    const float bad[2] = {NAN, INFINITY};
    FOR_EACH_ISA(isa)
    {
        for (int k = 0; k < 2; k++) {
            /* first, last, within the vector part; in the first and the last block */
            const size_t where[4] = {0, 100, 4096, 8198};
            for (int w = 0; w < 4; w++) {
                struct fixture f;
                fixture_make(&f, (struct shape){3, 8199}, 1);
                f.original[f.ld + where[w]] = bad[k];
                f.target[1] = 7;
                run(&f, NULL, isa, 1, 1);
                assert_true(isfinite(f.loss[0]) && isfinite(f.loss[2]));
                assert_true(k ? isinf(f.loss[1]) : isnan(f.loss[1]));
                assert_true(isnan(*((float *)(void *)f.z.data + f.ld + where[w])));
                fixture_free(&f);
            }
        }
        float z[3] = {-INFINITY, -INFINITY, -INFINITY};
        const int32_t target = 1;
        double loss;
        ps_cross_entropy(NULL, isa, z, 3, 1, 3, &target, &loss, 1, 0);
        assert_true(isnan(loss));
    }
}

static double ulps(float got, double ref)
{
    int e;
    frexp(ref, &e);
    return fabs((double)got - ref) / ldexp(1, e - 24 < -149 ? -149 : e - 24);
}

static void exponential_errs_by_at_most_1_5_ulp(void **state)
{
    (void)state;
    double worst[2] = {0, 0};
    int fast = ps_isa_detect() >= PS_ISA_AVX512;
    for (int i = -1040000; i < 887000; i += 16) {
        float x[16], y[16];
        for (int l = 0; l < 16; l++) {
            x[l] = y[l] = (float)((i + l) * 1e-4);
            double e = exp((double)x[l]);
            worst[0] = fmax(worst[0], ulps(ps__exp(x[l]), e));
        }
        if (fast)
            ps__cross_entropy_scale_avx512(y, 16, 0, 1);
        for (int l = 0; l < 16 && fast; l++)
            worst[1] = fmax(worst[1], ulps(y[l], exp((double)x[l])));
    }
    print_message("exp: portable %.3f ulp, AVX-512 %.3f ulp\n", worst[0], worst[1]);
    assert_true(worst[0] <= 1.5);
    assert_true(worst[1] <= 1.5);
}

static void exponential_has_the_right_ends(void **state)
{
    (void)state;
    const float x[8] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e30f, -1e30f, 88.8f};
    float y[8];
    memcpy(y, x, sizeof x);
    if (ps_isa_detect() >= PS_ISA_AVX512)
        ps__cross_entropy_scale_avx512(y, 8, 0, 1);
    for (int k = 0; k < 2; k++) {
        assert_true(y[0] == 1 && y[1] == 1);
        assert_true(isinf(y[2]) && y[2] > 0);
        assert_true(y[3] == 0);
        assert_true(isnan(y[4]));
        assert_true(isinf(y[5]) && y[6] == 0 && isinf(y[7]));
        for (int i = 0; i < 8; i++)
            y[i] = ps__exp(x[i]);
    }
    assert_true(ps__exp(-103.0f) > 0); /* subnormal */
    assert_true(isfinite(ps__exp(88.7f)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_double_and_ignores_thread_count),
        cmocka_unit_test(without_gradient_logits_stay_and_loss_is_the_same),
        cmocka_unit_test(row_does_not_depend_on_other_rows),
        cmocka_unit_test(gradient_agrees_with_finite_differences),
        cmocka_unit_test(blocks_of_different_height_join),
        cmocka_unit_test(masked_logits_get_zero_probability),
        cmocka_unit_test(nan_and_inf_propagate_into_the_loss_of_their_row),
        cmocka_unit_test(exponential_errs_by_at_most_1_5_ulp),
        cmocka_unit_test(exponential_has_the_right_ends),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
