/* 8-bit AdamW: the map, the blocks, torchao's steps, and what keeps it from exploding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "optim/dynamic_map.h"
#include "tests/optim/golden_steps.h"

/* By the paper, in double: ascending. */
static void make_map(double map[256], bool is_signed)
{
    int count = 0;
    double positive[256];
    positive[count++] = 0;
    for (int i = 0; i < 7; i++) {
        int parts = 1 << (is_signed ? i : i + 1);
        for (int k = 0; k < parts; k++)
            positive[count++] = (0.1 + 0.9 * (k + 0.5) / parts) * pow(10, i - 6);
    }
    positive[count++] = 1;
    int below = is_signed ? count - 2 : 0; /* -1 is not there */
    for (int i = 0; i < below; i++)
        map[i] = -positive[below - i];
    for (int i = 0; i < count; i++)
        map[below + i] = positive[i];
    assert_int_equal(below + count, 256);
}

static void map_is_that_of_the_paper(void **state)
{
    (void)state;
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        double map[256];
        make_map(map, is_signed);
        for (int c = 0; c < 256; c++)
            close_to("value", (size_t)c, (double)ps_dynamic_value((uint8_t)c, is_signed), map[c], 0,
                     4e-7);
    }
    close_to("signed", 0, (double)ps_dynamic_value(0, true), -0.99296875, 0, 1e-7);
    close_to("signed", 128, (double)ps_dynamic_value(128, true), 5.5e-7, 0, 1e-6);
    close_to("unsigned", 1, (double)ps_dynamic_value(1, false), 3.25e-7, 0, 1e-6);
    assert_true(ps_dynamic_value(127, true) == 0 && ps_dynamic_value(0, false) == 0);
    assert_true(ps_dynamic_value(255, true) == 1 && ps_dynamic_value(255, false) == 1);
}

static void encoding_takes_the_nearest_value(void **state)
{
    (void)state;
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        double map[256];
        make_map(map, is_signed);
        float x[PS_BLOCK8], back[PS_BLOCK8], scale;
        uint8_t code[PS_BLOCK8];
        for (int round = 0; round < 300; round++) {
            double size = pow(10, round % 13 - 9);
            for (size_t i = 0; i < PS_BLOCK8; i++) {
                double u = (double)golden_value((uint32_t)i, (uint32_t)round), e;
                e = pow(10, -7.5 * fabs((double)golden_value((uint32_t)i, (uint32_t)round + 5000)));
                x[i] = (float)((is_signed ? u : fabs(u)) * e * size);
            }
            ps_block8_encode(x, PS_BLOCK8, is_signed, code, &scale);
            ps_block8_decode(code, scale, PS_BLOCK8, is_signed, back);
            for (size_t i = 0; i < PS_BLOCK8; i++) {
                double v = (double)x[i] / (double)scale, best = 9;
                for (int c = is_signed || v == 0 ? 0 : 1; c < 256; c++)
                    best = fabs(map[c] - v) < best ? fabs(map[c] - v) : best;
                if (fabs((double)back[i] / (double)scale - v) > best + 2e-7)
                    fail_msg("%g became %g: %g away, nearest %g", v,
                             (double)back[i] / (double)scale,
                             fabs((double)back[i] / (double)scale - v), best);
            }
        }
    }
}

static void codes_come_back_with_the_scale_held(void **state)
{
    (void)state;
    for (int is_signed = 0; is_signed < 2; is_signed++)
        for (int exponent = -140; exponent <= 120; exponent += 20) {
            float x[PS_BLOCK8], scale = ldexpf(1, exponent), again;
            uint8_t code[PS_BLOCK8], back[PS_BLOCK8];
            for (int c = 0; c < 256; c++)
                code[c] = (uint8_t)c;
            ps_block8_decode(code, scale, PS_BLOCK8, is_signed, x);
            ps_block8_encode(x, PS_BLOCK8, is_signed, back, &again);
            assert_true(again == scale); /* code 255 is the maximum */
            if (exponent >= -100)        /* below, subnormal products lose bits */
                assert_memory_equal(code, back, 256);
        }
}

static void zeros_and_short_blocks_are_blocks_too(void **state)
{
    (void)state;
    float x[5] = {0}, scale = 9;
    uint8_t code[5];
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        ps_block8_encode(x, 5, is_signed, code, &scale);
        assert_true(scale == 0);
        ps_block8_decode(code, scale, 5, is_signed, x);
        for (int i = 0; i < 5; i++)
            assert_true(x[i] == 0);
        assert_int_equal(code[0], is_signed ? 127 : 0);
    }
    float tiny[3] = {1, 1e-30f, 0};
    ps_block8_encode(tiny, 3, false, code, &scale);
    assert_int_equal(code[1], 1); /* above 0: never code 0 */
    assert_int_equal(code[2], 0);
}

static struct ps_optimizer_hyper usual(void)
{
    return hyper_of(&ps_adamw8bit_ops);
}

static void agrees_with_torchao(void **state)
{
    (void)state;
    struct golden g = {.name = "adamw8bit",
                       .ops = &ps_adamw8bit_ops,
                       .hyper = usual(),
                       .lr = 1e-3,
                       /* torchao has 1 - beta2^t in fp32: 3e-5 of it at first */
                       .atol = 1e-3 * 2e-5,
                       .rtol = 0x1p-22,
                       /* a moment halfway between two codes: less than a fiftieth of the rate */
                       .flips = 3,
                       .flip_size = 2e-5};

    g.hyper.weight_decay = 0.01;
    golden_check(&g);
}

static void small_tensors_vectors_and_the_head_have_fp32_moments(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = usual();
    struct ps_opt_layout l;
    struct ps_error err = {0};
    struct ps_opt_tensor x = tensor_of(64, 64, PS_DTYPE_BF16);
    assert_int_equal(ps_adamw8bit_ops.layout(&h, &x, &l, &err), 0);
    assert_int_equal(l.state[0].dtype, PS_DTYPE_U8);
    assert_int_equal(l.granule, 256);
    uint64_t bytes = 0;
    for (int k = 0; k < l.state_count; k++)
        bytes += ps_opt_state_bytes(&l.state[k], x.n);
    assert_int_equal(bytes, 2 * (4096 + 16 * 4));
    x.layer = -1; /* embedding or head */
    assert_int_equal(ps_adamw8bit_ops.layout(&h, &x, &l, &err), 0);
    assert_int_equal(l.state[0].dtype, PS_DTYPE_F32);
    x = tensor_of(63, 65, PS_DTYPE_BF16); /* 4095 */
    assert_int_equal(ps_adamw8bit_ops.layout(&h, &x, &l, &err), 0);
    assert_int_equal(l.state[0].dtype, PS_DTYPE_F32);
    x = tensor_of(5000, 0, PS_DTYPE_BF16);
    assert_int_equal(ps_adamw8bit_ops.layout(&h, &x, &l, &err), 0);
    assert_int_equal(l.state[0].dtype, PS_DTYPE_F32);
}

/* A noisy diagonal quadratic: gradient c_i (w - target) + noise, c_i log-normal within each block.
 * Fills relative distance and cosine of the displacements of 8-bit and fp32; returns the largest
 * step of 8-bit in rates. */
static double quadratic(double sigma, double *distance, double *cosine)
{
    enum { N = 16384, STEPS = 300 };
    const double lr = 1e-5;
    const struct ps_optimizer_ops *ops[2] = {&ps_adamw8bit_ops, &ps_adamw_ops};
    struct subject s[2];
    double *start = malloc(N * sizeof *start), most = 0;
    for (int k = 0; k < 2; k++) {
        struct ps_optimizer_hyper h = hyper_of(ops[k]);
        subject_make(&s[k], ops[k], &h, tensor_of(128, 128, PS_DTYPE_F32), 0.02);
    }
    for (size_t i = 0; i < N; i++)
        start[i] = master(&s[0], i);
    double *curve = malloc(N * sizeof *curve);
    fill(s[0].grad.data, PS_DTYPE_F32, N, 1, 77);
    for (size_t i = 0; i < N; i++)
        curve[i] = exp(sigma * get(s[0].grad.data, PS_DTYPE_F32, i));
    for (uint64_t t = 1; t <= STEPS; t++) {
        for (int k = 0; k < 2; k++) {
            for (size_t i = 0; i < N; i++) {
                double noise = (double)golden_value((uint32_t)i, (uint32_t)t);
                put(s[k].grad.data, PS_DTYPE_F32, i, curve[i] * (master(&s[k], i) + 0.03 * noise));
            }
            float *w = (float *)(void *)s[k].weight.data;
            float *before = malloc(N * sizeof *before);
            memcpy(before, w, N * sizeof *before);
            subject_update(&s[k], &(struct how){.isa = ps_isa_detect(), .lr = lr});
            for (size_t i = 0; k == 0 && i < N; i++) {
                double step = fabs((double)w[i] - (double)before[i]) / lr;
                most = step > most ? step : most;
            }
            free(before);
        }
    }
    double d2 = 0, a2 = 0, b2 = 0, ab = 0;
    for (size_t i = 0; i < N; i++) {
        double a = master(&s[0], i) - start[i], b = master(&s[1], i) - start[i];
        d2 += (a - b) * (a - b);
        a2 += a * a;
        b2 += b * b;
        ab += a * b;
    }
    *distance = sqrt(d2 / b2);
    *cosine = ab / sqrt(a2 * b2);
    free(start);
    free(curve);
    subject_free(&s[0]);
    subject_free(&s[1]);
    return most;
}

static void homogeneous_blocks_follow_fp32(void **state)
{
    (void)state;
    double distance, cosine;
    quadratic(0, &distance, &cosine);
    if (!(distance <= 0.08 && cosine >= 0.998))
        fail_msg("distance %g, cosine %g", distance, cosine);
}

static void blocks_of_very_different_gradients_do_not_explode(void **state)
{
    (void)state;
    double distance, cosine;
    double most = quadratic(1.5, &distance, &cosine);
    if (!(most <= 10))
        fail_msg("a step of %g rates", most);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(map_is_that_of_the_paper),
        cmocka_unit_test(encoding_takes_the_nearest_value),
        cmocka_unit_test(codes_come_back_with_the_scale_held),
        cmocka_unit_test(zeros_and_short_blocks_are_blocks_too),
        cmocka_unit_test(agrees_with_torchao),
        cmocka_unit_test(small_tensors_vectors_and_the_head_have_fp32_moments),
        cmocka_unit_test(homogeneous_blocks_follow_fp32),
        cmocka_unit_test(blocks_of_very_different_gradients_do_not_explode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
