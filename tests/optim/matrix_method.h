/* What the tests of methods that need whole matrices share: the tensors and gradients of
 * tests/golden/low_rank/common.py, a run of a method over them, and its golden file.
 * Include after cmocka.h. */
#ifndef PS_TESTS_OPTIM_MATRIX_METHOD_H
#define PS_TESTS_OPTIM_MATRIX_METHOD_H

#include "optim/adamw.h"
#include "optim/lapack.h"
#include "optim/optimizers.h"
#include "tests/kernels/kernel_check.h"

enum { TENSORS = 5, STEPS = 20 };

static const int64_t tensor_shape[TENSORS][2] = {{24, 10}, {10, 24}, {12, 12}, {9, 1}, {16, 1}};

/* Of what can be tested here: test_projector skips, with the reason, what needs LAPACK. */
static inline enum ps_basis last_basis(void)
{
    return ps_lapack_check(NULL) == 0 ? PS_BASIS_SVD : PS_BASIS_RANDOMIZED;
}

struct normals {
    uint64_t s;
};

static inline struct normals normals_of(uint64_t seed)
{
    return (struct normals){seed * 0x9E3779B97F4A7C15u + 1};
}

static inline double normals_next(struct normals *r)
{
    double sum = 0;
    for (int k = 0; k < 4; k++) {
        r->s = r->s * 6364136223846793005u + 1442695040888963407u;
        sum += (double)(r->s >> 40) * 0x1p-24 - 0.5;
    }
    return 1.7320508 * sum;
}

/* A gradient with leading singular values 1, 1/2, ... and a floor of noise. */
static inline void matrix_gradient(float *out, size_t rows, size_t cols, uint64_t seed)
{
    struct normals r = normals_of(seed);
    double *g = calloc(rows * cols, sizeof *g), *a = calloc(rows + cols, sizeof *a), scale = 1;
    double *b = a + rows;
    assert_non_null(g);
    assert_non_null(a);
    for (int k = 0; k < 6; k++) {
        for (size_t i = 0; i < rows + cols; i++)
            a[i] = normals_next(&r);
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < cols; j++)
                g[i * cols + j] = g[i * cols + j] + scale * a[i] * b[j];
        scale *= 0.5;
    }
    for (size_t i = 0; i < rows * cols; i++)
        out[i] = (float)(g[i] + 0.002 * normals_next(&r));
    free(g);
    free(a);
}

static inline void tensor_gradient(float *out, int tensor, uint64_t step)
{
    size_t rows = (size_t)tensor_shape[tensor][0], cols = (size_t)tensor_shape[tensor][1];
    if (cols > 1) {
        matrix_gradient(out, rows, cols, step * 16 + (uint64_t)tensor);
        return;
    }
    struct normals r = normals_of(step * 16 + (uint64_t)tensor);
    for (size_t i = 0; i < rows; i++)
        out[i] = (float)normals_next(&r);
}

/* One tensor under a method, all memory guarded. */
struct subject {
    struct ps_opt_tensor tensor;
    struct ps_opt_layout layout;
    struct guarded weight, remainder, grad, state[PS_OPTIMIZER_STATE_MAX], workspace;
    uint64_t t;
};

static inline void subject_make(struct subject *s, const struct ps_optimizer_ops *ops,
                                const struct ps_optimizer_hyper *h, uint32_t id, int64_t rows,
                                int64_t cols, enum ps_dtype dtype)
{
    struct ps_error err = {0};
    memset(s, 0, sizeof *s);
    size_t n = (size_t)rows * (size_t)cols;
    s->tensor = (struct ps_opt_tensor){.name = "x.weight",
                                       .id = id,
                                       .layer = 0,
                                       .rank = cols > 1 ? 2 : 1,
                                       .rows = rows,
                                       .cols = cols,
                                       .n = n,
                                       .hidden = cols > 1,
                                       .dtype = dtype};
    int ret = ops->layout(h, &s->tensor, &s->layout, &err);
    if (ret < 0)
        fail_msg("layout: %s", err.message);
    s->weight = guarded_make(n * ps_dtype_size(dtype), 0);
    s->remainder = guarded_make(n * 2, 0);
    s->grad = guarded_make(n * 4, 0);
    memset(s->remainder.data, 0, n * 2);
    for (int i = 0; i < s->layout.state_count; i++) {
        s->state[i] = guarded_make((size_t)ps_opt_state_bytes(&s->layout.state[i], n), 0);
        memset(s->state[i].data, 0, s->state[i].bytes);
    }
    s->workspace = guarded_make((size_t)s->layout.workspace_bytes, 0);
    memset(s->workspace.data, 0xff, s->workspace.bytes);
}

static inline void subject_free(struct subject *s)
{
    guarded_free(&s->weight);
    guarded_free(&s->remainder);
    guarded_free(&s->grad);
    for (int i = 0; i < s->layout.state_count; i++)
        guarded_free(&s->state[i]);
    guarded_free(&s->workspace);
}

static inline float *subject_grad(struct subject *s)
{
    return (float *)(void *)s->grad.data;
}

static inline float *subject_weight(struct subject *s)
{
    return (float *)(void *)s->weight.data;
}

static inline int subject_try(struct subject *s, const struct ps_optimizer_ops *ops,
                              const struct ps_optimizer_hyper *h, struct ps_pool *pool,
                              enum ps_isa isa, double lr, float grad_scale, struct ps_error *err)
{
    bool split = s->tensor.dtype == PS_DTYPE_BF16 && s->layout.remainder;
    struct ps_update u = {.pool = pool,
                          .isa = isa,
                          .hyper = h,
                          .tensor = &s->tensor,
                          .layout = &s->layout,
                          .n = s->tensor.n,
                          .weight = s->weight.data,
                          .remainder = split ? (uint16_t *)(void *)s->remainder.data : NULL,
                          .grad = s->grad.data,
                          .workspace = s->layout.workspace_bytes ? s->workspace.data : NULL,
                          .t = ++s->t,
                          .lr = lr,
                          .decay = s->tensor.rank == 2,
                          .grad_scale = grad_scale};
    u.step = u.t - 1;
    for (int i = 0; i < s->layout.state_count; i++)
        u.state[i] = s->state[i].data;
    /* whatever the scratch held before must not matter */
    memset(s->workspace.data, s->t % 2 ? 0xff : 0x3f, s->workspace.bytes);
    return ops->update(&u, err);
}

static inline void subject_update(struct subject *s, const struct ps_optimizer_ops *ops,
                                  const struct ps_optimizer_hyper *h, struct ps_pool *pool,
                                  enum ps_isa isa, double lr)
{
    struct ps_error err = {0};
    if (subject_try(s, ops, h, pool, isa, lr, 1, &err) < 0)
        fail_msg("update: %s", err.message);
}

static inline void subject_fill(struct subject *s, int tensor)
{
    struct normals r = normals_of(1000 + (uint64_t)tensor);
    for (size_t i = 0; i < s->tensor.n; i++)
        put(s->weight.data, s->tensor.dtype, i, 0.1 * normals_next(&r));
}

static inline void subject_same(const struct subject *a, const struct subject *b)
{
    assert_memory_equal(a->weight.data, b->weight.data, a->weight.bytes);
    assert_memory_equal(a->remainder.data, b->remainder.data, a->remainder.bytes);
    for (int i = 0; i < a->layout.state_count; i++)
        assert_memory_equal(a->state[i].data, b->state[i].data, a->state[i].bytes);
}

/* Weights of case `name` after `step` updates of `tensor`, from tests/golden/low_rank/file. */
static inline bool golden_read(const char *file, const char *name, uint64_t step, int tensor,
                               double *out)
{
    const char *root = getenv("PENSTOCK_ROOT");
    char path[4096], at[32];
    unsigned long long s;
    int i;
    size_t n = (size_t)(tensor_shape[tensor][0] * tensor_shape[tensor][1]);
    snprintf(path, sizeof path, "%s/tests/golden/low_rank/%s", root ? root : ".", file);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fscanf(f, " at %31s %llu %d", at, &s, &i) == 3) {
        if (strcmp(at, name) == 0 && s == step && i == tensor) {
            for (size_t k = 0; k < n; k++)
                assert_int_equal(fscanf(f, "%lf", out + k), 1);
            fclose(f);
            return true;
        }
        if (fscanf(f, "%*[^\n]") < 0)
            break;
    }
    fclose(f);
    return false;
}

/* The method's trajectory stays within atol of the golden one. lr is the golden file's. */
static inline void golden_check(const struct ps_optimizer_ops *ops,
                                const struct ps_optimizer_hyper *h, struct ps_pool *pool,
                                enum ps_isa isa, const char *file, const char *name, double lr,
                                double atol)
{
    double want[24 * 24];
    int compared = 0;
    for (int i = 0; i < TENSORS; i++) {
        struct subject s;
        subject_make(&s, ops, h, (uint32_t)i, tensor_shape[i][0], tensor_shape[i][1], PS_DTYPE_F32);
        subject_fill(&s, i);
        for (uint64_t t = 1; t <= STEPS; t++) {
            tensor_gradient(subject_grad(&s), i, t);
            subject_update(&s, ops, h, pool, isa, lr);
            if (!golden_read(file, name, t, i, want))
                continue;
            compared++;
            for (size_t k = 0; k < s.tensor.n; k++)
                close_to(name, k, (double)subject_weight(&s)[k], want[k], atol, 1e-6);
        }
        subject_free(&s);
    }
    assert_int_equal(compared, 2 * TENSORS);
}

#endif
