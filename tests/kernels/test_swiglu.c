/* SwiGLU forward and backward. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/swiglu.h"
#include "tests/kernels/kernel_check.h"

struct shape {
    size_t n_tok, n;
};

static const struct shape shapes[] = {{1, 1},   {1, 7},   {3, 15},   {2, 16},   {5, 17},
                                      {4, 255}, {3, 256}, {2, 1001}, {70, 600}, {1, 40000}};

#define SHAPES (sizeof shapes / sizeof *shapes)

enum { GATE, UP, DY, Y, DGATE, DUP, TENSORS };

struct fixture {
    struct guarded b[TENSORS];
    size_t ld[TENSORS];
    struct shape s;
    enum ps_dtype t;
};

static void fixture_make(struct fixture *f, struct shape s, enum ps_dtype t)
{
    f->s = s;
    f->t = t;
    for (size_t i = 0; i < TENSORS; i++) {
        f->ld[i] = s.n + 1 + i;
        size_t count = (s.n_tok - 1) * f->ld[i] + s.n;
        f->b[i] = guarded_make(count * ps_dtype_size(t), (i + 1) * ps_dtype_size(t));
        if (i <= DY)
            fill(f->b[i].data, t, count, i == GATE ? 4 : 1, 10 + i);
    }
    /* far ends of the gate */
    const double special[] = {0, -0.0, 30, -30, 80, -80, 200, -200};
    for (size_t i = 0; i < 8 && i < s.n; i++)
        put(f->b[GATE].data, t, i, special[i]);
}

static void fixture_free(struct fixture *f)
{
    for (size_t i = 0; i < TENSORS; i++)
        guarded_free(&f->b[i]);
}

static void forward(struct fixture *f, struct ps_pool *pool, enum ps_isa isa)
{
    ps_swiglu_forward(pool, isa, f->t, f->s.n_tok, f->s.n, f->b[GATE].data, f->ld[GATE],
                      f->b[UP].data, f->ld[UP], f->b[Y].data, f->ld[Y]);
}

static void backward(struct fixture *f, struct ps_pool *pool, enum ps_isa isa)
{
    ps_swiglu_backward(pool, isa, f->t, f->s.n_tok, f->s.n, f->b[GATE].data, f->ld[GATE],
                       f->b[UP].data, f->ld[UP], f->b[DY].data, f->ld[DY], f->b[DGATE].data,
                       f->ld[DGATE], f->b[DUP].data, f->ld[DUP]);
}

static double at(const struct fixture *f, int tensor, size_t row, size_t j)
{
    return get(f->b[tensor].data, f->t, row * f->ld[tensor] + j);
}

static void check(const struct fixture *f)
{
    /* exp 1.5 ulp, then four roundings; the slope of dg cancels near g = -1.28, so its tolerance is
     * absolute: 1e-6 of |dy u| (up to 12 here). Below g = -88 silu is 0 instead of 1e-37. */
    double rtol = f->t == PS_DTYPE_F32 ? 6e-7 : spacing(f->t);
    for (size_t r = 0; r < f->s.n_tok; r++) {
        for (size_t j = 0; j < f->s.n; j++) {
            double g = at(f, GATE, r, j), u = at(f, UP, r, j), dy = at(f, DY, r, j);
            double sig = 1 / (1 + exp(-g));
            close_to("y", j, at(f, Y, r, j), g * sig * u, 1e-35, rtol);
            close_to("dup", j, at(f, DUP, r, j), dy * g * sig, 1e-35, rtol);
            close_to("dgate", j, at(f, DGATE, r, j), dy * u * sig * (1 + g * (1 - sig)),
                     2e-6 * fabs(dy * u), rtol);
        }
        for (int t = Y; t < TENSORS && r + 1 < f->s.n_tok; t++)
            for (size_t j = f->s.n; j < f->ld[t]; j++) {
                const unsigned char *p = f->b[t].data + (r * f->ld[t] + j) * ps_dtype_size(f->t);
                assert_int_equal(p[0], GUARD_BYTE);
                assert_int_equal(p[1], GUARD_BYTE);
            }
    }
}

static void matches_double_and_ignores_thread_count(void **state)
{
    struct pools *pools = *state;
    for (size_t i = 0; i < SHAPES * 2; i++) {
        FOR_EACH_ISA(isa)
        {
            unsigned char *first[TENSORS] = {0};
            for (int p = 0; p < THREADS_MAX; p++) {
                struct fixture f;
                fixture_make(&f, shapes[i / 2], i % 2 ? PS_DTYPE_BF16 : PS_DTYPE_F32);
                forward(&f, pools->pool[p], isa);
                backward(&f, pools->pool[p], isa);
                if (p == 0)
                    check(&f);
                for (int t = Y; t < TENSORS; t++) {
                    if (p == 0) {
                        first[t] = malloc(f.b[t].bytes);
                        assert_non_null(first[t]);
                        memcpy(first[t], f.b[t].data, f.b[t].bytes);
                    }
                    assert_memory_equal(first[t], f.b[t].data, f.b[t].bytes);
                }
                fixture_free(&f);
            }
            for (int t = Y; t < TENSORS; t++)
                free(first[t]);
        }
    }
}

static void backward_in_place_gives_the_same_bits(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        struct fixture f;
        fixture_make(&f, (struct shape){3, 300}, PS_DTYPE_BF16);
        backward(&f, NULL, isa);
        ps_swiglu_backward(NULL, isa, f.t, 3, 300, f.b[GATE].data, f.ld[GATE], f.b[UP].data,
                           f.ld[UP], f.b[DY].data, f.ld[DY], f.b[GATE].data, f.ld[GATE],
                           f.b[UP].data, f.ld[UP]);
        for (size_t r = 0; r < 3; r++) {
            assert_memory_equal(f.b[GATE].data + 2 * r * f.ld[GATE],
                                f.b[DGATE].data + 2 * r * f.ld[DGATE], 600);
            assert_memory_equal(f.b[UP].data + 2 * r * f.ld[UP], f.b[DUP].data + 2 * r * f.ld[DUP],
                                600);
        }
        fixture_free(&f);
    }
}

static void element_depends_on_its_inputs_alone(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        float g[37], u[37], y[37], one;
        fill(g, PS_DTYPE_F32, 37, 5, 1);
        fill(u, PS_DTYPE_F32, 37, 1, 2);
        ps_swiglu_forward(NULL, isa, PS_DTYPE_F32, 1, 37, g, 37, u, 37, y, 37);
        for (size_t i = 0; i < 37; i++) {
            ps_swiglu_forward(NULL, isa, PS_DTYPE_F32, 1, 1, g + i, 1, u + i, 1, &one, 1);
            assert_memory_equal(&one, y + i, 4);
        }
    }
}

static void backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    const float h = 1e-2f; /* truncation h^2 / 6, rounding 6e-8 * 9 / h = 5e-5 */
    FOR_EACH_ISA(isa)
    {
        for (float g = -9; g < 9; g += 0.37f) {
            float u = 1.3f, dy = 1, dg, du, y[2], gs[2] = {g - h, g + h}, us[2] = {u, u};
            ps_swiglu_backward(NULL, isa, PS_DTYPE_F32, 1, 1, &g, 1, &u, 1, &dy, 1, &dg, 1, &du, 1);
            ps_swiglu_forward(NULL, isa, PS_DTYPE_F32, 1, 2, gs, 2, us, 2, y, 2);
            close_to("dgate", 0, ((double)y[1] - (double)y[0]) / (2 * (double)h), (double)dg, 2e-4,
                     2e-4);
            float gg[2] = {g, g}, uu[2] = {u - h, u + h};
            ps_swiglu_forward(NULL, isa, PS_DTYPE_F32, 1, 2, gg, 2, uu, 2, y, 2);
            close_to("dup", 0, ((double)y[1] - (double)y[0]) / (2 * (double)h), (double)du, 2e-4,
                     2e-4);
        }
    }
}

static void nan_and_inf_propagate(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        float g[20], u[20], dy[20], y[20], dg[20], du[20];
        for (int i = 0; i < 20; i++)
            g[i] = u[i] = dy[i] = 1;
        g[1] = NAN;
        u[2] = NAN;
        g[3] = INFINITY;
        u[18] = INFINITY;
        dy[19] = NAN;
        ps_swiglu_forward(NULL, isa, PS_DTYPE_F32, 1, 20, g, 20, u, 20, y, 20);
        ps_swiglu_backward(NULL, isa, PS_DTYPE_F32, 1, 20, g, 20, u, 20, dy, 20, dg, 20, du, 20);
        assert_true(isnan(y[1]) && isnan(dg[1]) && isnan(du[1]));
        assert_true(isnan(y[2]) && isnan(dg[2]) && !isnan(du[2]));
        assert_true(isinf(y[3]) && isinf(du[3]));
        assert_true(isinf(y[18]) && isinf(dg[18]));
        assert_true(isnan(dg[19]) && isnan(du[19]));
        assert_true(isfinite(y[0]) && isfinite(y[4]) && isfinite(dg[17]) && isfinite(du[17]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_double_and_ignores_thread_count),
        cmocka_unit_test(backward_in_place_gives_the_same_bits),
        cmocka_unit_test(element_depends_on_its_inputs_alone),
        cmocka_unit_test(backward_agrees_with_finite_differences),
        cmocka_unit_test(nan_and_inf_propagate),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
