/* Every method of the table that adapts linears, on one linear: output, gradients, merged weight
 * and folded LoRA at random states against the method's formula in double; the gradient of each
 * parameter is a central difference of that formula, which is linear in it. Initial values leave
 * the base. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "peft/adapters.h"
#include "peft/lowrank.h"
#include "runtime/kernels/elementwise.h"

enum { T = 23, IN = 29, OUT = 21, R = 5, IN_MAX = 33, OUT_MAX = 40, TENSOR_MAX = 4096 };

struct bench {
    struct ps_pool *pool;
    struct ps_compute cx;
    struct ps_adapter_config config;
    struct ps_adapter_site site;
    struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX];
    size_t size[PS_ADAPTER_TENSOR_MAX];
    struct ps_weight weight, bias;
    struct ps_linear_call call;
    float value[PS_ADAPTER_TENSOR_MAX][TENSOR_MAX], grad[PS_ADAPTER_TENSOR_MAX][TENSOR_MAX];
    float w[OUT * IN], b[OUT], x[T * IN], residual[T * OUT], add[T * IN], dy[T * OUT];
    unsigned char ws[4 * OUT * IN], xs[4 * T * IN], rs[4 * T * OUT], adds[4 * T * IN],
        ys[4 * T * OUT], dys[4 * T * OUT], dxs[4 * T * IN];
    double mask[T * IN];
    double norm[OUT]; /* DoRA's, held fixed while parameters are moved */
    unsigned char *saved, *scratch;
    size_t saved_bytes;
};

static void fill(float *v, size_t n, uint64_t seed, float width, enum ps_dtype grid)
{
    struct ps_rng_key key = {.seed = seed};
    for (size_t i = 0; i < n; i++)
        v[i] = width * (2.0f * ps_rng_uniform(&key, i) - 1.0f);
    if (grid == PS_DTYPE_BF16)
        for (size_t i = 0; i < n; i++)
            v[i] = ps_bf16_to_f32(ps_f32_to_bf16(v[i]));
}

static void find_mask(struct bench *s)
{
    float ones[T * IN];
    float out[T * IN];
    for (size_t i = 0; i < T * IN; i++)
        s->mask[i] = ones[i] = 1;
    if (!(s->config.dropout > 0))
        return;
    struct ps_rng_key key = ps_lowrank_dropout_key(&s->call);
    ps_dropout(s->pool, s->cx.isa, out, ones, PS_DTYPE_F32, T, IN, (float)s->config.dropout, &key,
               0);
    for (size_t i = 0; i < T * IN; i++)
        s->mask[i] = (double)out[i];
}

static bool is_low(const struct bench *s)
{
    return ps_peft_method_of(s->site.ops)->view != NULL;
}

static struct bench *create(const struct ps_adapter_ops *ops, enum ps_dtype dtype, double dropout,
                            enum ps_role role, int threads)
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
    s->config = (struct ps_adapter_config){.method = ops->name,
                                           .r = R,
                                           .alpha = 8,
                                           .dropout = dropout,
                                           .seed = 11,
                                           .out_max = OUT_MAX,
                                           .in_max = IN_MAX};
    s->site = (struct ps_adapter_site){.ops = ops,
                                       .config = &s->config,
                                       .layer = 3,
                                       .role = role,
                                       .out = OUT,
                                       .in = IN,
                                       .site_idx = 23,
                                       .first = true};
    s->site.tensor_count = ops->tensors(&s->site, s->tensor, NULL);
    assert_true(s->site.tensor_count > 0);
    for (int k = 0; k < s->site.tensor_count; k++) {
        const struct ps_adapter_tensor *t = &s->tensor[k];
        s->size[k] = (size_t)t->shape[0] * (size_t)(t->rank == 2 ? t->shape[1] : 1);
        assert_true(s->size[k] < TENSOR_MAX);
        fill(s->value[k], s->size[k], 100 + (uint64_t)k, 0.5f, dtype);
        s->value[k][s->size[k]] = s->grad[k][s->size[k]] = 77; /* canaries */
        s->site.tensor[k] = s->value[k];
        s->site.grad[k] = t->frozen ? NULL : s->grad[k];
    }
    fill(s->w, OUT * IN, 1, 0.5f, dtype);
    fill(s->b, OUT, 2, 0.5f, PS_DTYPE_F32);
    fill(s->x, T * IN, 3, 1.0f, dtype);
    fill(s->residual, T * OUT, 4, 1.0f, dtype);
    fill(s->dy, T * OUT, 5, 1.0f, dtype);
    fill(s->add, T * IN, 6, 1.0f, dtype);
    ps_dtype_convert(s->ws, dtype, s->w, PS_DTYPE_F32, OUT * IN);
    ps_dtype_convert(s->xs, dtype, s->x, PS_DTYPE_F32, T * IN);
    ps_dtype_convert(s->rs, dtype, s->residual, PS_DTYPE_F32, T * OUT);
    ps_dtype_convert(s->dys, dtype, s->dy, PS_DTYPE_F32, T * OUT);
    ps_dtype_convert(s->adds, dtype, s->add, PS_DTYPE_F32, T * IN);
    s->weight = (struct ps_weight){.data = s->ws, .dtype = dtype};
    s->bias = (struct ps_weight){.data = s->b, .dtype = PS_DTYPE_F32};
    s->saved_bytes = ops->saved_bytes(&s->site, T, dtype);
    size_t scratch = ops->scratch_bytes(&s->site, T, dtype);
    s->saved = aligned_alloc(64, (s->saved_bytes + 127) & ~(size_t)63);
    s->scratch = aligned_alloc(64, (scratch + 127) & ~(size_t)63);
    assert_true(s->saved && s->scratch);
    memset(s->saved + s->saved_bytes, 0x5a, 32);
    memset(s->scratch + scratch, 0x5a, 32);
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
                                      .dx = s->dxs,
                                      .dx_add = s->adds};
    find_mask(s);
    return s;
}

static void destroy(struct bench *s)
{
    size_t scratch = s->site.ops->scratch_bytes(&s->site, T, s->cx.dtype);
    for (int i = 0; i < 32; i++) {
        assert_int_equal(s->saved[s->saved_bytes + (size_t)i], 0x5a);
        assert_int_equal(s->scratch[scratch + (size_t)i], 0x5a);
    }
    for (int k = 0; k < s->site.tensor_count; k++)
        assert_true(s->value[k][s->size[k]] == 77 && s->grad[k][s->size[k]] == 77);
    free(s->cx.gemm_workspace);
    free(s->saved);
    free(s->scratch);
    ps_pool_destroy(s->pool);
    free(s);
}

static int find(const struct bench *s, const char *suffix)
{
    for (int k = 0; k < s->site.tensor_count; k++)
        if (strcmp(s->tensor[k].suffix, suffix) == 0)
            return k;
    return -1;
}

/* Element i of the tensor of that name, `offset` further when it is the one that is moved. */
struct move {
    int tensor;
    size_t at;
    double by;
};

static double get(const struct bench *s, const struct move *m, const char *suffix, size_t i)
{
    int k = find(s, suffix);
    assert_true(k >= 0);
    return (double)s->value[k][i] + (m && m->tensor == k && m->at == i ? m->by : 0);
}

/* y = x' keep^T + masked(x') train^T + bias; keep (OUT, IN) has the base and what dropout spares.
 */
struct formula {
    double keep[OUT * IN], train[OUT * IN], bias[OUT];
};

static void low_rank(const struct bench *s, const struct move *m, struct formula *f)
{
    double scale = s->config.use_rslora ? 8 / sqrt(R) : 8.0 / R;
    bool mid = find(s, "lora_N.weight") >= 0;
    bool mid0 = find(s, "lora_N0.weight") >= 0;
    bool pair = find(s, "lora_A0.weight") >= 0;
    double na[R * IN];
    for (size_t k = 0; k < R; k++)
        for (size_t j = 0; j < IN; j++) {
            double sum = 0;
            for (size_t l = 0; mid && l < R; l++) {
                double n = get(s, m, "lora_N.weight", k * R + l);
                n -= mid0 ? get(s, m, "lora_N0.weight", k * R + l) : 0;
                sum += n * get(s, m, "lora_A.weight", l * IN + j);
            }
            na[k * IN + j] = mid ? sum : get(s, m, "lora_A.weight", k * IN + j);
        }
    for (size_t i = 0; i < OUT; i++)
        for (size_t j = 0; j < IN; j++)
            for (size_t k = 0; k < R; k++) {
                f->train[i * IN + j] +=
                    scale * get(s, m, "lora_B.weight", i * R + k) * na[k * IN + j];
                if (pair)
                    f->keep[i * IN + j] -= scale * get(s, m, "lora_B0.weight", i * R + k) *
                                           get(s, m, "lora_A0.weight", k * IN + j);
            }
}

static void evaluate(struct bench *s, const struct move *m, struct formula *f)
{
    const char *name = s->site.ops->name;
    memset(f, 0, sizeof *f);
    for (size_t i = 0; i < OUT * IN; i++)
        f->keep[i] = (double)s->w[i];
    for (size_t i = 0; i < OUT; i++)
        f->bias[i] = (double)s->b[i];
    if (is_low(s))
        low_rank(s, m, f);
    for (size_t i = 0; i < OUT && strcmp(name, "dora") == 0; i++) {
        double square = 0;
        for (size_t j = 0; j < IN; j++)
            square += pow(f->keep[i * IN + j] + f->train[i * IN + j], 2);
        if (!m)
            s->norm[i] = sqrt(square);
        /* PEFT adds (c - 1) W drop(x) + c s B A drop(x) to W x */
        double c = get(s, m, "lora_magnitude_vector", i) / s->norm[i];
        for (size_t j = 0; j < IN; j++)
            f->train[i * IN + j] = (c - 1) * f->keep[i * IN + j] + c * f->train[i * IN + j];
    }
    for (size_t i = 0; i < OUT && strcmp(name, "vera") == 0; i++)
        for (size_t j = 0; j < IN; j++)
            for (size_t k = 0; k < R; k++)
                f->train[i * IN + j] +=
                    get(s, m, "vera_lambda_b", i) * get(s, m, "base_model.vera_B", i * R + k) *
                    get(s, m, "vera_lambda_d", k) * get(s, m, "base_model.vera_A", k * IN_MAX + j);
    for (size_t i = 0; i < OUT && strcmp(name, "ia3") == 0; i++) {
        bool input = s->site.role == PS_ROLE_DOWN;
        f->bias[i] *= input ? 1 : get(s, m, "ia3_l", i);
        for (size_t j = 0; j < IN; j++)
            f->keep[i * IN + j] *= get(s, m, "ia3_l", input ? j : i);
    }
}

/* Sum of dy (.) y; y, unless NULL, with the residual. */
static double loss(const struct bench *s, const struct formula *f, double *y)
{
    double total = 0;
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < OUT; i++) {
            double sum = f->bias[i];
            for (size_t j = 0; j < IN; j++)
                sum += (double)s->x[t * IN + j] *
                       (f->keep[i * IN + j] + s->mask[t * IN + j] * f->train[i * IN + j]);
            total += sum * (double)s->dy[t * OUT + i];
            if (y)
                y[t * OUT + i] = sum + (double)s->residual[t * OUT + i];
        }
    return total;
}

static void compare(const struct bench *s, const char *what, const void *got, enum ps_dtype dtype,
                    const double *want, size_t n, double tol)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(want[i]));
    for (size_t i = 0; i < n; i++) {
        double v = dtype == PS_DTYPE_F32 ? (double)((const float *)got)[i]
                                         : (double)ps_bf16_to_f32(((const uint16_t *)got)[i]);
        if (!(fabs(v - want[i]) <= tol * largest))
            fail_msg("%s, %s[%zu]: %.9g, expected %.9g", s->site.ops->name, what, i, v, want[i]);
    }
}

static double want_y[T * OUT], want_dx[T * IN], want_grad[TENSOR_MAX], want_w[OUT * IN];
static struct formula at, moved;

static void check_gradients(struct bench *s, double factor, double tol)
{
    for (int k = 0; k < s->site.tensor_count; k++) {
        if (s->tensor[k].frozen)
            continue;
        size_t step = s->size[k] > R * R ? 13 : 1; /* some of the large ones */
        for (size_t i = 0; i < s->size[k]; i++) {
            want_grad[i] = (double)s->grad[k][i];
            if (i % step != s->saved_bytes % step)
                continue;
            struct move up = {k, i, 1};
            struct move down = {k, i, -1};
            evaluate(s, &up, &moved);
            double high = loss(s, &moved, NULL);
            evaluate(s, &down, &moved);
            want_grad[i] = factor * (high - loss(s, &moved, NULL)) / 2;
        }
        compare(s, s->tensor[k].suffix, s->grad[k], PS_DTYPE_F32, want_grad, s->size[k], tol);
    }
}

static void check_method(const struct ps_adapter_ops *ops, enum ps_dtype dtype, double dropout,
                         enum ps_role role, bool rslora)
{
    /* fp32: sums of up to 40 products. bf16: what is kept and the outputs are rounded to 8 bits. */
    double tol = dtype == PS_DTYPE_F32 ? 1e-5 : 2e-2;
    struct bench *s = create(ops, dtype, dropout, role, rslora ? 3 : 1);
    s->config.use_rslora = rslora && is_low(s);
    evaluate(s, NULL, &at);
    loss(s, &at, want_y);
    ps_linear_forward(&s->call);
    compare(s, "y", s->ys, dtype, want_y, T * OUT, tol);
    for (size_t t = 0; t < T; t++)
        for (size_t j = 0; j < IN; j++) {
            double sum = (double)s->add[t * IN + j];
            for (size_t i = 0; i < OUT; i++)
                sum += (double)s->dy[t * OUT + i] *
                       (at.keep[i * IN + j] + s->mask[t * IN + j] * at.train[i * IN + j]);
            want_dx[t * IN + j] = sum;
        }
    ps_linear_backward(&s->call);
    compare(s, "dx", s->dxs, dtype, want_dx, T * IN, tol);
    check_gradients(s, 1, tol);
    s->call.accumulate = true; /* a second micro-batch adds, also where nothing is below */
    s->call.dx = NULL;
    ps_linear_backward(&s->call);
    check_gradients(s, 2, tol);
    destroy(s);
}

static bool linear(const struct ps_adapter_ops *ops)
{
    return !ops->vector;
}

static void outputs_and_gradients_equal_the_formula(void **state)
{
    (void)state;
    for (const struct ps_adapter_ops *const *o = ps_adapters(); *o; o++) {
        bool drops = strcmp((*o)->name, "ia3") != 0;
        for (int i = 0; linear(*o) && i < 16; i++)
            if (drops || !(i & 4))
                check_method(*o, i & 1 ? PS_DTYPE_BF16 : PS_DTYPE_F32, i & 4 ? 0.25 : 0,
                             i & 2 ? PS_ROLE_DOWN : PS_ROLE_K, i & 8);
    }
}

static void recomputing_keeps_the_same_bits(void **state)
{
    (void)state;
    for (const struct ps_adapter_ops *const *o = ps_adapters(); *o; o++) {
        if (!linear(*o))
            continue;
        bool drops = strcmp((*o)->name, "ia3") != 0;
        struct bench *s = create(*o, PS_DTYPE_BF16, drops ? 0.25 : 0, PS_ROLE_K, 1);
        unsigned char *first = malloc(s->saved_bytes);
        assert_non_null(first);
        memset(s->saved, 0, s->saved_bytes);
        ps_linear_forward(&s->call);
        memcpy(first, s->saved, s->saved_bytes);
        memset(s->saved, 0, s->saved_bytes);
        s->call.y = NULL;
        s->site.ops->save(&s->call);
        assert_memory_equal(first, s->saved, s->saved_bytes);
        free(first);
        destroy(s);
    }
}

static void merged_and_folded_weights_equal_the_formula(void **state)
{
    (void)state;
    for (const struct ps_adapter_ops *const *o = ps_adapters(); *o; o++) {
        if (!linear(*o))
            continue;
        struct bench *s = create(*o, PS_DTYPE_F32, 0, PS_ROLE_K, 1);
        evaluate(s, NULL, &at);
        for (size_t i = 0; i < OUT * IN; i++)
            want_w[i] = at.keep[i] + at.train[i];
        static float w[OUT * IN];
        memcpy(w, s->w, sizeof w);
        assert_int_equal((*o)->merge(&s->site, 0, 8, w), 0);
        assert_int_equal((*o)->merge(&s->site, 8, OUT - 8, w + 8 * IN), 0);
        compare(s, "merged", w, PS_DTYPE_F32, want_w, OUT * IN, 1e-6);
        if ((*o)->merge_bias) {
            float b[OUT];
            memcpy(b, s->b, sizeof b);
            (*o)->merge_bias(&s->site, b);
            compare(s, "merged bias", b, PS_DTYPE_F32, at.bias, OUT, 1e-6);
        }
        if (is_low(s) && strcmp((*o)->name, "dora") != 0) {
            static float a[2 * R * IN];
            static float b[OUT * 2 * R];
            struct ps_lowrank v = ps_peft_method_of(*o)->view(&s->site);
            size_t rank = ps_lowrank_fold_rank(&v);
            assert_int_equal(rank, find(s, "lora_A0.weight") >= 0 ? 2 * R : R);
            ps_lowrank_fold(&s->site, &v, a, b);
            for (size_t i = 0; i < OUT * IN; i++) {
                double sum = (double)s->w[i];
                for (size_t k = 0; k < rank; k++)
                    sum += (double)b[i / IN * rank + k] * (double)a[k * IN + i % IN];
                w[i] = (float)sum;
            }
            compare(s, "folded", w, PS_DTYPE_F32, want_w, OUT * IN, 1e-6);
        }
        destroy(s);
    }
}

static int read_rows(void *arg, int64_t row_begin, int64_t rows, float *out, struct ps_error *err)
{
    (void)err;
    memcpy(out, (const float *)arg + row_begin * IN, (size_t)(rows * IN) * sizeof *out);
    return 0;
}

static void initial_values_leave_the_base_and_learn(void **state)
{
    (void)state;
    for (const struct ps_adapter_ops *const *o = ps_adapters(); *o; o++) {
        if (!linear(*o))
            continue;
        struct bench *s = create(*o, PS_DTYPE_F32, 0, PS_ROLE_K, 1);
        struct ps_adapter_base base = {
            .read = read_rows, .arg = s->w, .pool = s->pool, .isa = s->cx.isa};
        assert_int_equal((*o)->init(&s->site, &base, NULL), 0);
        evaluate(s, NULL, &at);
        for (size_t i = 0; i < OUT * IN; i++)
            if (!(fabs(at.keep[i] + at.train[i] - (double)s->w[i]) < 2e-6))
                fail_msg("%s moves the base at %zu by %g", (*o)->name, i,
                         at.keep[i] + at.train[i] - (double)s->w[i]);
        ps_linear_forward(&s->call);
        ps_linear_backward(&s->call);
        bool learns = false;
        for (int k = 0; k < s->site.tensor_count; k++)
            for (size_t i = 0; i < s->size[k]; i++)
                learns |= !s->tensor[k].frozen && s->grad[k][i] != 0;
        assert_true(learns);
        destroy(s);
    }
}

static void ranks_over_the_matrix_are_refused(void **state)
{
    (void)state;
    for (const struct ps_adapter_ops *const *o = ps_adapters(); *o; o++) {
        if (!linear(*o) || !ps_peft_method_of(*o)->view)
            continue;
        struct ps_adapter_tensor t[PS_ADAPTER_TENSOR_MAX];
        struct ps_adapter_config c = {.method = (*o)->name, .r = OUT + 1, .alpha = 1};
        struct ps_adapter_site site = {.ops = *o, .config = &c, .out = OUT, .in = IN};
        struct ps_error err = {0};
        assert_int_equal((*o)->tensors(&site, t, &err), PS_EUSAGE);
        assert_string_equal(err.field, "lora-r");
        c.r = OUT;
        assert_true((*o)->tensors(&site, t, &err) > 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_and_gradients_equal_the_formula),
        cmocka_unit_test(recomputing_keeps_the_same_bits),
        cmocka_unit_test(merged_and_folded_weights_equal_the_formula),
        cmocka_unit_test(initial_values_leave_the_base_and_learn),
        cmocka_unit_test(ranks_over_the_matrix_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
