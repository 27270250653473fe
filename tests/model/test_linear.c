/* One linear without adapter: forward and backward against double, in every combination of parts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model/linear.h"

enum { T_MAX = 130, IN = 35, OUT = 27 };

struct bench {
    struct ps_compute cx;
    struct ps_weight weight, bias;
    struct ps_linear_call call;
    float w[OUT * IN], b[OUT], x[T_MAX * IN], r[T_MAX * OUT], dy[T_MAX * OUT], add[T_MAX * IN];
    unsigned char ws[4 * OUT * IN], bs[4 * OUT], xs[4 * T_MAX * IN], rs[4 * T_MAX * OUT];
    unsigned char dys[4 * T_MAX * OUT], adds[4 * T_MAX * IN];
    unsigned char ys[4 * T_MAX * OUT + 64], dxs[4 * T_MAX * IN + 64];
    float dw[OUT * IN + 16], db[OUT + 16];
};

static void put(float *v, void *stored, size_t n, uint64_t seed, enum ps_dtype dtype)
{
    struct ps_rng_key key = {.seed = seed};
    for (size_t i = 0; i < n; i++)
        v[i] = 2.0f * ps_rng_uniform(&key, i) - 1.0f;
    ps_dtype_convert(stored, dtype, v, PS_DTYPE_F32, n);
    ps_dtype_convert(v, PS_DTYPE_F32, stored, dtype, n);
}

static void start(struct bench *s, struct ps_pool *pool, enum ps_dtype dtype, enum ps_dtype wtype,
                  size_t n_tok)
{
    memset(s, 0, sizeof *s);
    size_t bytes = (ps_gemm_workspace_bytes(ps_pool_thread_count(pool)) + 127) & ~(size_t)63;
    s->cx = (struct ps_compute){.k = &ps_kernels_cpu,
                                .pool = pool,
                                .isa = ps_isa_detect(),
                                .dtype = dtype,
                                .math = dtype == PS_DTYPE_BF16 ? PS_GEMM_BF16 : PS_GEMM_F32,
                                .gemm_workspace = aligned_alloc(64, bytes)};
    put(s->w, s->ws, OUT * IN, 1, wtype);
    put(s->b, s->bs, OUT, 2, wtype);
    put(s->x, s->xs, n_tok * IN, 3, dtype);
    put(s->r, s->rs, n_tok * OUT, 4, dtype);
    put(s->dy, s->dys, n_tok * OUT, 5, dtype);
    put(s->add, s->adds, n_tok * IN, 6, dtype);
    s->weight = (struct ps_weight){.data = s->ws, .dtype = wtype};
    s->bias = (struct ps_weight){.data = s->bs, .dtype = wtype};
    memset(s->ys, 0xa5, sizeof s->ys);
    memset(s->dxs, 0xa5, sizeof s->dxs);
    s->call = (struct ps_linear_call){.cx = &s->cx,
                                      .n_tok = n_tok,
                                      .out = OUT,
                                      .in = IN,
                                      .weight = &s->weight,
                                      .x = s->xs,
                                      .y = s->ys,
                                      .dy = s->dys,
                                      .dx = s->dxs,
                                      .dweight = s->dw,
                                      .dbias = s->db};
}

static double value(const void *p, enum ps_dtype dtype, size_t i)
{
    return dtype == PS_DTYPE_F32 ? (double)((const float *)p)[i]
                                 : (double)ps_bf16_to_f32(((const uint16_t *)p)[i]);
}

/* fp32: sums of at most 130 products below 1; bf16: exact products, fp32 sums, one rounding. */
static void near_enough(const char *what, double got, double want, enum ps_dtype dtype, size_t i)
{
    double tol = dtype == PS_DTYPE_F32 ? 1e-5 : 1e-5 + fabs(want) / 255;
    if (!(fabs(got - want) <= tol))
        fail_msg("%s[%zu]: %.9g, expected %.9g", what, i, got, want);
}

static void check_forward(const struct bench *s, bool bias, bool residual)
{
    size_t n = s->call.n_tok;
    for (size_t t = 0; t < n; t++)
        for (size_t o = 0; o < OUT; o++) {
            double want = bias ? (double)s->b[o] : 0;
            want += residual ? (double)s->r[t * OUT + o] : 0;
            for (size_t i = 0; i < IN; i++)
                want += (double)s->x[t * IN + i] * (double)s->w[o * IN + i];
            near_enough("y", value(s->ys, s->cx.dtype, t * OUT + o), want, s->cx.dtype,
                        t * OUT + o);
        }
    assert_int_equal(s->ys[n * OUT * ps_dtype_size(s->cx.dtype)], 0xa5);
}

static void check_backward(const struct bench *s, double times, bool add)
{
    size_t n = s->call.n_tok;
    for (size_t t = 0; s->call.dx && t < n; t++)
        for (size_t i = 0; i < IN; i++) {
            double want = add ? (double)s->add[t * IN + i] : 0;
            for (size_t o = 0; o < OUT; o++)
                want += (double)s->dy[t * OUT + o] * (double)s->w[o * IN + i];
            near_enough("dx", value(s->dxs, s->cx.dtype, t * IN + i), want, s->cx.dtype,
                        t * IN + i);
        }
    for (size_t o = 0; o < OUT; o++) {
        double db = 0;
        for (size_t t = 0; t < n; t++)
            db += (double)s->dy[t * OUT + o];
        near_enough("db", (double)s->db[o], times * db, PS_DTYPE_F32, o);
        for (size_t i = 0; i < IN; i++) {
            double want = 0;
            for (size_t t = 0; t < n; t++)
                want += (double)s->dy[t * OUT + o] * (double)s->x[t * IN + i];
            near_enough("dW", (double)s->dw[o * IN + i], times * want, PS_DTYPE_F32, o * IN + i);
        }
    }
    assert_int_equal(s->dxs[n * IN * ps_dtype_size(s->cx.dtype)], 0xa5);
    assert_true(s->dw[OUT * IN] == 0);
    assert_true(s->db[OUT] == 0);
}

static const size_t tokens[] = {1, 3, 64, 65, T_MAX};

static void forward_equals_double_with_every_weight_type(void **state)
{
    (void)state;
    static struct bench s;
    static const enum ps_dtype pair[][2] = {{PS_DTYPE_F32, PS_DTYPE_F32},
                                            {PS_DTYPE_F32, PS_DTYPE_BF16},
                                            {PS_DTYPE_F32, PS_DTYPE_F16},
                                            {PS_DTYPE_BF16, PS_DTYPE_BF16}};
    struct ps_pool *pool;
    assert_int_equal(ps_pool_create(&pool, 2), 0);
    for (size_t k = 0; k < sizeof pair / sizeof pair[0]; k++)
        for (size_t n = 0; n < sizeof tokens / sizeof tokens[0]; n++)
            for (int part = 0; part < 4; part++) {
                start(&s, pool, pair[k][0], pair[k][1], tokens[n]);
                s.call.bias = part & 1 ? &s.bias : NULL;
                s.call.residual = part & 2 ? s.rs : NULL;
                ps_linear_forward(&s.call);
                check_forward(&s, part & 1, part & 2);
                free(s.cx.gemm_workspace);
            }
    ps_pool_destroy(pool);
}

static void the_residual_may_be_the_output(void **state)
{
    (void)state;
    static struct bench s;
    struct ps_pool *pool;
    assert_int_equal(ps_pool_create(&pool, 1), 0);
    start(&s, pool, PS_DTYPE_F32, PS_DTYPE_F32, 65);
    memcpy(s.ys, s.rs, 65 * OUT * sizeof(float));
    s.call.residual = s.ys;
    ps_linear_forward(&s.call);
    check_forward(&s, false, true);
    free(s.cx.gemm_workspace);
    ps_pool_destroy(pool);
}

static void backward_equals_double_and_accumulates(void **state)
{
    (void)state;
    static struct bench s;
    struct ps_pool *pool;
    assert_int_equal(ps_pool_create(&pool, 2), 0);
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (size_t n = 0; n < sizeof tokens / sizeof tokens[0]; n++)
            for (int add = 0; add < 2; add++) {
                enum ps_dtype d = bf16 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
                start(&s, pool, d, d, tokens[n]);
                s.call.dx_add = add ? s.adds : NULL;
                ps_linear_backward(&s.call);
                check_backward(&s, 1, add);
                s.call.accumulate = true;
                if (add) { /* dx_add may be dx */
                    memcpy(s.dxs, s.adds, tokens[n] * IN * ps_dtype_size(d));
                    s.call.dx_add = s.dxs;
                }
                ps_linear_backward(&s.call);
                check_backward(&s, 2, add);
                free(s.cx.gemm_workspace);
            }
    ps_pool_destroy(pool);
}

static void what_is_not_wanted_is_not_touched(void **state)
{
    (void)state;
    static struct bench s;
    struct ps_pool *pool;
    assert_int_equal(ps_pool_create(&pool, 1), 0);
    start(&s, pool, PS_DTYPE_F32, PS_DTYPE_F32, 10);
    s.call.dx = NULL;
    ps_linear_backward(&s.call);
    check_backward(&s, 1, false);
    for (size_t i = 0; i < sizeof s.dxs; i++)
        assert_int_equal(s.dxs[i], 0xa5);
    s.call.dx = s.dxs;
    s.call.dweight = s.call.dbias = NULL;
    s.dw[0] = 42;
    s.db[0] = 43;
    ps_linear_backward(&s.call);
    assert_true(s.dw[0] == 42);
    assert_true(s.db[0] == 43);
    free(s.cx.gemm_workspace);
    ps_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_equals_double_with_every_weight_type),
        cmocka_unit_test(the_residual_may_be_the_output),
        cmocka_unit_test(backward_equals_double_and_accumulates),
        cmocka_unit_test(what_is_not_wanted_is_not_touched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
