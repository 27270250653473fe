/* MeZO: its normal numbers, its slope, and that a log of slopes replays a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "optim/mezo.h"
#include "runtime/base/rng.h"
#include "tests/optim/optim_check.h"

static struct ps_update update_of(struct subject *s, uint64_t step)
{
    return (struct ps_update){.isa = ps_isa_detect(),
                              .hyper = &s->hyper,
                              .tensor = &s->tensor,
                              .layout = &s->layout,
                              .n = s->tensor.n,
                              .weight = s->weight.data,
                              .remainder = (uint16_t *)(void *)s->remainder.data,
                              .t = step + 1,
                              .step = step};
}

static void make(struct subject *s, size_t n, enum ps_dtype dtype, double size)
{
    struct ps_optimizer_hyper h = hyper_of(&ps_mezo_ops);
    subject_make(s, &ps_mezo_ops, &h, tensor_of((int64_t)n, 0, dtype), size);
}

static void directions_are_standard_normal_and_independent(void **state)
{
    (void)state;
    enum { N = 1000000 };
    struct subject s;
    make(&s, N, PS_DTYPE_F32, 0);
    float *z = malloc(N * sizeof *z), *y = malloc(N * sizeof *y);
    struct ps_update u = update_of(&s, 3), v = update_of(&s, 4);
    ps_mezo_direction(&u, z);
    ps_mezo_direction(&v, y);
    double sum = 0, square = 0, fourth = 0, neighbour = 0, other = 0, tail = 0;
    for (size_t i = 0; i < N; i++) {
        double a = (double)z[i];
        assert_true(isfinite(a) && fabs(a) < 6.5);
        sum += a;
        square += a * a;
        fourth += a * a * a * a;
        neighbour += i ? a * (double)z[i - 1] : 0;
        other += a * (double)y[i];
        tail += fabs(a) > 1.959964;
    }
    /* five standard errors each */
    close_to("mean", 0, sum / N, 0, 5 / sqrt(N), 0);
    close_to("variance", 0, square / N, 1, 5 * sqrt(2.0 / N), 0);
    close_to("fourth moment", 0, fourth / N, 3, 5 * sqrt(96.0 / N), 0);
    close_to("neighbours", 0, neighbour / N, 0, 5 / sqrt(N), 0);
    close_to("another step", 0, other / N, 0, 5 / sqrt(N), 0);
    close_to("beyond 1.96", 0, tail / N, 0.05, 5 * sqrt(0.05 * 0.95 / N), 0);
    free(z);
    free(y);
    subject_free(&s);
}

static void numbers_are_those_of_box_and_muller(void **state)
{
    (void)state;
    enum { N = 4003 };
    struct subject s;
    make(&s, N, PS_DTYPE_F32, 0);
    float z[N];
    FOR_EACH_ISA(isa)
    {
        struct ps_update u = update_of(&s, 9);
        u.isa = isa;
        ps_mezo_direction(&u, z);
        struct ps_rng_key key = {.seed = 42, .step = 9, .layer = 7, .site = PS_RNG_PERTURB};
        for (size_t i = 0; i < N; i++) {
            uint32_t w[4];
            ps_rng_block(&key, i / 4, w);
            double length = ((w[i % 4 / 2 * 2] >> 8) + 0.5) * 0x1p-24;
            double angle = (w[i % 4 / 2 * 2 + 1] >> 8) * 0x1p-24 * 2 * acos(-1);
            double want = sqrt(-2 * log(length)) * (i % 2 ? sin(angle) : cos(angle));
            close_to("z", i, (double)z[i], want, 3e-6, 0);
        }
    }
    subject_free(&s);
}

static double quadratic(const struct subject *s)
{
    double f = 0;
    for (size_t i = 0; i < s->tensor.n; i++) {
        double w = master(s, i);
        f += 0.5 * (1 + (double)(i % 5)) * w * w + 0.3 * w;
    }
    return f;
}

static void slope_of_a_quadratic_is_its_gradient_along_z(void **state)
{
    (void)state;
    enum { N = 777 };
    struct subject s;
    make(&s, N, PS_DTYPE_F32, 0.5);
    float z[N], from[N];
    struct ps_update u = update_of(&s, 0);
    ps_mezo_direction(&u, z);
    memcpy(from, s.weight.data, sizeof from);
    ps_mezo_ops.perturb(&u, from, 1);
    double up = quadratic(&s);
    ps_mezo_ops.perturb(&u, from, -1);
    double down = quadratic(&s), want = 0;
    for (size_t i = 0; i < N; i++)
        want += (double)z[i] * ((1 + (double)(i % 5)) * (double)from[i] + 0.3);
    close_to("slope", 0, (up - down) / (2 * 1e-3), want, 0, 1e-3);
    subject_free(&s);
}

/* bf16 weights with remainder: what the model computes with is moved, the master is not. */
static void perturbed_planes_leave_the_master_alone(void **state)
{
    (void)state;
    enum { N = 5000 };
    struct subject s;
    make(&s, N, PS_DTYPE_BF16, 0.02);
    fill(s.remainder.data, PS_DTYPE_BF16, N, 1, 3);
    uint16_t from[N], rest[N];
    float z[N];
    struct ps_update u = update_of(&s, 0);
    memcpy(from, s.weight.data, sizeof from);
    memcpy(rest, s.remainder.data, sizeof rest);
    ps_mezo_direction(&u, z);
    ps_mezo_ops.perturb(&u, from, 1);
    assert_memory_equal(rest, s.remainder.data, sizeof rest);
    for (size_t i = 0; i < N; i++) {
        uint16_t want = ps_f32_to_bf16(ps_master_join(from[i], rest[i]) + 1e-3f * z[i]);
        assert_memory_equal(s.weight.data + 2 * i, &want, 2);
    }
    subject_free(&s);
}

static void a_log_of_slopes_replays_the_run(void **state)
{
    (void)state;
    struct subject a, b;
    make(&a, 3000, PS_DTYPE_F32, 0.5);
    make(&b, 3000, PS_DTYPE_F32, 0.5);
    double slope[20], first = quadratic(&a);
    unsigned char *from = malloc(a.weight.bytes);
    for (uint64_t step = 0; step < 20; step++) {
        struct ps_update u = update_of(&a, step);
        struct ps_error err = {0};
        memcpy(from, a.weight.data, a.weight.bytes);
        ps_mezo_ops.perturb(&u, from, 1);
        double up = quadratic(&a);
        ps_mezo_ops.perturb(&u, from, -1);
        slope[step] = (up - quadratic(&a)) / 2e-3;
        memcpy(a.weight.data, from, a.weight.bytes);
        u.lr = 1e-5;
        u.grad_scale = (float)slope[step];
        assert_int_equal(ps_mezo_ops.update(&u, &err), 0);
    }
    for (uint64_t step = 0; step < 20; step++) {
        struct ps_update u = update_of(&b, step);
        struct ps_error err = {0};
        u.isa = PS_ISA_PORTABLE;
        u.lr = 1e-5;
        u.grad_scale = (float)slope[step];
        assert_int_equal(ps_mezo_ops.update(&u, &err), 0);
    }
    assert_memory_equal(a.weight.data, b.weight.data, a.weight.bytes);
    assert_true(quadratic(&a) < first);
    free(from);
    subject_free(&a);
    subject_free(&b);
}

static void the_mean_of_slope_times_z_is_the_gradient(void **state)
{
    (void)state;
    enum { N = 10, DRAWS = 100000 };
    struct subject s;
    make(&s, N, PS_DTYPE_F32, 0);
    double gradient[N], sum[N] = {0}, size = 0, error = 0;
    float z[N];
    for (size_t i = 0; i < N; i++)
        gradient[i] = 1 + (double)i;
    for (uint64_t step = 0; step < DRAWS; step++) {
        struct ps_update u = update_of(&s, step);
        ps_mezo_direction(&u, z);
        double slope = 0;
        for (size_t i = 0; i < N; i++)
            slope += gradient[i] * (double)z[i];
        for (size_t i = 0; i < N; i++)
            sum[i] += slope * (double)z[i] / DRAWS;
    }
    for (size_t i = 0; i < N; i++) {
        error += (sum[i] - gradient[i]) * (sum[i] - gradient[i]);
        size += gradient[i] * gradient[i];
    }
    assert_true(sqrt(error / size) < 0.02);
    subject_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(directions_are_standard_normal_and_independent),
        cmocka_unit_test(numbers_are_those_of_box_and_muller),
        cmocka_unit_test(slope_of_a_quadratic_is_its_gradient_along_z),
        cmocka_unit_test(perturbed_planes_leave_the_master_alone),
        cmocka_unit_test(a_log_of_slopes_replays_the_run),
        cmocka_unit_test(the_mean_of_slope_times_z_is_the_gradient),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
