/* Low-rank projections: see projector.h. */
#include "optim/projector.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "optim/lapack.h"
#include "optim/orthonormal.h"
#include "runtime/base/rng.h"

#define OVERSAMPLE 8
#define POWER_ITERATIONS 2
/* Columns of a block of the Gram matrix, converted to fp64 at a time. */
#define GRAM_BLOCK 256
#define RANDOM_TASK 4096
#define ALIGN 64

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t align_up(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

/* Takes pieces of scratch; base NULL only measures. */
struct carve {
    unsigned char *base;
    size_t used;
};

static void *take(struct carve *c, size_t count, size_t size)
{
    void *at = c->base ? c->base + c->used : NULL;
    c->used += align_up(count * size);
    return at;
}

int ps_projector_plan(const struct ps_optimizer_hyper *hyper, const struct ps_opt_tensor *tensor,
                      int32_t rank_default, int32_t gap_default, struct ps_projector *out,
                      struct ps_error *err)
{
    assert(tensor->rank == 2);
    size_t rows = (size_t)tensor->rows, cols = (size_t)tensor->cols, least = min_size(rows, cols);
    if (hyper->rank > 0 && (size_t)hyper->rank > least)
        return ps_error_full(err, PS_EUSAGE, NULL, "optim-rank",
                             "lower --optim-rank to the least side of the trained matrices",
                             "--optim-rank %d is over the matrix %s of %zu x %zu", hyper->rank,
                             tensor->name, rows, cols);
    bool right = rows >= cols;
    if (hyper->projection == PS_PROJECTION_REVERSE_STD)
        right = rows < cols;
    else if (hyper->projection != PS_PROJECTION_STD)
        right = hyper->projection == PS_PROJECTION_RIGHT;
    uint64_t gap = (uint64_t)(hyper->update_gap > 0 ? hyper->update_gap : gap_default);
    *out = (struct ps_projector){
        .name = tensor->name,
        .seed = hyper->seed,
        .id = tensor->id,
        .kind = hyper->basis,
        .right = right,
        .rows = rows,
        .cols = cols,
        .rank = hyper->rank > 0 ? (size_t)hyper->rank : min_size((size_t)rank_default, least),
        .dim = right ? cols : rows,
        .length = right ? rows : cols,
        .gap = gap,
        /* multiples of the golden ratio fill an interval evenly, whichever of them are taken */
        .phase = hyper->refresh_together ? 0 : (uint64_t)(tensor->id * 2654435769u) * gap >> 32,
    };
    return 0;
}

bool ps_projector_refreshes(const struct ps_projector *p, uint64_t t)
{
    return ps_projector_age(p, t) == 1;
}

uint64_t ps_projector_age(const struct ps_projector *p, uint64_t t)
{
    assert(t >= 1);
    uint64_t since_multiple = (t - 1 + p->phase) % p->gap;
    return since_multiple < t - 1 ? since_multiple + 1 : t;
}

/* ---- products ------------------------------------------------------------------------------- */

/* c (m, n) = alpha op(a) op(b), all dense by rows. */
static void multiply(const struct ps_matrix_cx *cx, size_t m, size_t n, size_t k,
                     struct ps_gemm_mat a, struct ps_gemm_mat b, float alpha, float *c)
{
    struct ps_gemm_args g = {.m = m,
                             .n = n,
                             .k = k,
                             .a = a,
                             .b = b,
                             .alpha = alpha,
                             .c = c,
                             .c_ld = n,
                             .c_dtype = PS_DTYPE_F32,
                             .math = PS_GEMM_F32};
    ps_gemm(cx->pool, cx->isa, &g, cx->gemm_workspace);
}

static struct ps_gemm_mat mat(const void *data, size_t ld, enum ps_dtype dtype, bool trans)
{
    return (struct ps_gemm_mat){.data = data, .ld = ld, .dtype = dtype, .trans = trans};
}

static struct ps_gemm_mat mat_f32(const float *data, size_t ld, bool trans)
{
    return mat(data, ld, PS_DTYPE_F32, trans);
}

/* With A (dim, length) the gradient seen from the basis's side (A = G left, G^T right):
 * out (k, length) = x A of x (k, dim), and out (k, dim) = y A^T of y (k, length). */
static void times_a(const struct ps_projector *p, const struct ps_matrix_cx *cx, size_t k,
                    const float *x, const void *grad, enum ps_dtype dtype, float *out)
{
    multiply(cx, k, p->length, p->dim, mat_f32(x, p->dim, false),
             mat(grad, p->cols, dtype, p->right), 1, out);
}

static void times_a_transposed(const struct ps_projector *p, const struct ps_matrix_cx *cx,
                               size_t k, const float *y, const void *grad, enum ps_dtype dtype,
                               float *out)
{
    multiply(cx, k, p->dim, p->length, mat_f32(y, p->length, false),
             mat(grad, p->cols, dtype, !p->right), 1, out);
}

void ps_projector_project(const struct ps_projector *p, const struct ps_matrix_cx *cx,
                          const float *basis, const void *grad, enum ps_dtype grad_dtype,
                          float scale, float *low)
{
    struct ps_gemm_mat g = mat(grad, p->cols, grad_dtype, false);
    if (scale == 0) { /* which the product would take for 1 */
        memset(low, 0, p->rank * p->length * sizeof *low);
        return;
    }
    if (p->right)
        multiply(cx, p->rows, p->rank, p->cols, g, mat_f32(basis, p->dim, true), scale, low);
    else
        multiply(cx, p->rank, p->cols, p->rows, mat_f32(basis, p->dim, false), g, scale, low);
}

void ps_projector_back(const struct ps_projector *p, const struct ps_matrix_cx *cx,
                       const float *basis, const float *low, size_t row, size_t count, float *out)
{
    if (p->right)
        multiply(cx, count, p->cols, p->rank, mat_f32(low + row * p->rank, p->rank, false),
                 mat_f32(basis, p->dim, false), 1, out);
    else
        multiply(cx, count, p->cols, p->rank, mat_f32(basis + row, p->dim, true),
                 mat_f32(low, p->cols, false), 1, out);
}

void ps_projector_rotate(const struct ps_projector *p, const struct ps_matrix_cx *cx,
                         const float *old_basis, const float *new_basis, float *m, float *v,
                         float *scratch)
{
    size_t r = p->rank, low = r * p->length;
    float *turn = scratch, *moved = scratch + r * r;
    multiply(cx, r, r, p->dim, mat_f32(new_basis, p->dim, false), mat_f32(old_basis, p->dim, true),
             1, turn);
    for (int square = 0; square < 2; square++) {
        float *x = square ? v : m;
        for (size_t i = 0; square && i < r * r; i++)
            turn[i] *= turn[i];
        if (p->right)
            multiply(cx, p->length, r, r, mat_f32(x, r, false), mat_f32(turn, r, true), 1, moved);
        else
            multiply(cx, r, p->length, r, mat_f32(turn, r, false), mat_f32(x, p->length, false), 1,
                     moved);
        memcpy(x, moved, low * sizeof *x);
    }
}

/* ---- random numbers ------------------------------------------------------------------------- */

struct random_job {
    struct ps_rng_key key;
    float *out;
    size_t n;
    double scale;
};

static void random_task(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct random_job *job = arg;
    size_t end = min_size(job->n, (task + 1) * RANDOM_TASK);
    for (size_t i = task * RANDOM_TASK; i < end; i += 2) { /* ps_rng_normal, two of a block */
        uint32_t w[4];
        ps_rng_block(&job->key, i / 2, w);
        for (size_t k = 0; k < 2 && i + k < end; k++) {
            double u = ((double)w[2 * k] + 0.5) * 0x1p-32;
            double v = ((double)w[2 * k + 1] + 0.5) * 0x1p-32;
            double normal = sqrt(-2.0 * log(u)) * cos(6.283185307179586476925286766559 * v);
            job->out[i + k] = (float)(job->scale * normal);
        }
    }
}

static void random_normal(const struct ps_projector *p, const struct ps_matrix_cx *cx,
                          uint32_t site, uint64_t t, double scale, float *out, size_t n)
{
    struct random_job job = {
        {.seed = p->seed, .step = t, .layer = p->id, .site = site}, out, n, scale};
    ps_pool_run(cx->pool, random_task, &job, (n + RANDOM_TASK - 1) / RANDOM_TASK);
}

void ps_projector_random(const struct ps_projector *p, const struct ps_matrix_cx *cx, uint64_t t,
                         float *basis)
{
    random_normal(p, cx, PS_RNG_PROJECTION, t, 1 / sqrt((double)p->rank), basis, p->rank * p->dim);
}

/* ---- randomized subspace iteration ---------------------------------------------------------- */

/* Bring the largest magnitude near 1 by a power of two, so that products of products neither
 * underflow nor overflow. */
static void normalise(float *x, size_t n)
{
    float most = 0;
    int exponent;
    for (size_t i = 0; i < n; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    if (!(most > 0) || !isfinite(most))
        return;
    frexpf(most, &exponent);
    float half = ldexpf(1, -exponent / 2), rest = ldexpf(1, -exponent - -exponent / 2);
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] * half * rest;
}

/* Scratch: k vectors of each side, and the small problem. */
struct sketch {
    size_t k;
    float *tall, *wide, *tau, *mix;
    double *gram, *value, *vector;
    void *eigen;
};

static size_t carve_sketch(const struct ps_projector *p, struct sketch *s, void *workspace)
{
    struct carve c = {.base = workspace};
    s->k = min_size(p->rank + OVERSAMPLE, min_size(p->dim, p->length));
    s->tall = take(&c, s->k * p->dim, sizeof(float));
    s->wide = take(&c, s->k * p->length, sizeof(float));
    s->tau = take(&c, s->k, sizeof(float));
    s->mix = take(&c, p->rank * s->k, sizeof(float));
    s->gram = take(&c, s->k * s->k, sizeof(double));
    s->value = take(&c, p->rank, sizeof(double));
    s->vector = take(&c, p->rank * s->k, sizeof(double));
    s->eigen = take(&c, 1, ps_symmetric_eigen_bytes(s->k));
    return c.used;
}

static int refresh_randomized(const struct ps_projector *p, const struct ps_matrix_cx *cx,
                              uint64_t t, const void *grad, enum ps_dtype dtype, float *basis,
                              void *workspace, struct ps_error *err)
{
    struct sketch s;
    carve_sketch(p, &s, workspace);
    assert(p->rank <= s.k);
    random_normal(p, cx, PS_RNG_BASIS, t, 1, s.wide, s.k * p->length);
    for (int i = 0;; i++) {
        times_a_transposed(p, cx, s.k, s.wide, grad, dtype, s.tall);
        ps_orthonormal_rows(cx->pool, s.tall, s.k, p->dim, s.tau);
        times_a(p, cx, s.k, s.tall, grad, dtype, s.wide);
        normalise(s.wide, s.k * p->length);
        if (i == POWER_ITERATIONS)
            break;
    }
    /* tall holds an orthonormal Q, wide Q A: its left singular vectors turn Q into A's */
    ps_row_gram(cx->pool, s.wide, s.k, p->length, s.gram);
    int ret = ps_symmetric_eigen(s.gram, s.k, p->rank, s.value, s.vector, s.eigen);
    if (ret < 0)
        return ps_error_full(err, ret, NULL, p->name, "lower the learning rate",
                             "the gradient of %s has no decomposition: it is too large", p->name);
    for (size_t i = 0; i < p->rank * s.k; i++)
        s.mix[i] = (float)s.vector[i];
    multiply(cx, p->rank, p->dim, s.k, mat_f32(s.mix, s.k, false), mat_f32(s.tall, p->dim, false),
             1, basis);
    return 0;
}

/* ---- full decomposition --------------------------------------------------------------------- */

/* The Gram matrix is that of the shorter side; for a basis of the longer one the vectors are taken
 * across by A. */
struct full {
    size_t side, other;
    double *gram, *vector, *block;
    float *across, *tau;
    void *eigen;
};

static size_t carve_full(const struct ps_projector *p, struct full *f, void *workspace)
{
    struct carve c = {.base = workspace};
    f->side = min_size(p->dim, p->length);
    f->other = p->dim + p->length - f->side;
    f->gram = take(&c, f->side * f->side, sizeof(double));
    f->vector = take(&c, p->rank * f->side, sizeof(double));
    f->block = take(&c, f->side * GRAM_BLOCK, sizeof(double));
    f->across = take(&c, p->rank * p->length, sizeof(float));
    f->tau = take(&c, p->rank, sizeof(float));
    f->eigen = take(&c, 1, ps_lapack_gram_eigen_bytes(f->side, p->rank));
    return c.used;
}

static double element(const void *grad, enum ps_dtype dtype, size_t at)
{
    return dtype == PS_DTYPE_F32 ? (double)((const float *)grad)[at]
                                 : (double)ps_bf16_to_f32(((const uint16_t *)grad)[at]);
}

/* Columns [first, first + count) of the shorter side's matrix (side, other), column-major. */
static void gather_block(const struct ps_projector *p, const struct full *f, const void *grad,
                         enum ps_dtype dtype, size_t first, size_t count)
{
    bool of_cols = f->side == p->dim ? p->right : !p->right; /* whose Gram matrix it is */
    for (size_t j = 0; j < count; j++) {
        double *out = f->block + j * f->side;
        for (size_t i = 0; i < f->side; i++)
            out[i] =
                element(grad, dtype, of_cols ? (first + j) * p->cols + i : i * p->cols + first + j);
    }
}

static int refresh_svd(const struct ps_projector *p, const struct ps_matrix_cx *cx,
                       const void *grad, enum ps_dtype dtype, float *basis, void *workspace,
                       struct ps_error *err)
{
    struct full f;
    carve_full(p, &f, workspace);
    memset(f.gram, 0, f.side * f.side * sizeof *f.gram);
    for (size_t at = 0; at < f.other; at += GRAM_BLOCK) {
        size_t count = min_size(GRAM_BLOCK, f.other - at);
        gather_block(p, &f, grad, dtype, at, count);
        int ret = ps_lapack_gram_add(f.gram, f.side, f.block, count, err);
        if (ret < 0)
            return ret;
    }
    int ret = ps_lapack_gram_eigen(f.gram, f.side, p->rank, f.vector, f.eigen, err);
    if (ret < 0)
        return ps_error_field(err, ret, p->name);
    float *to = f.side == p->dim ? basis : f.across;
    for (size_t j = 0; j < p->rank; j++) /* ascending to descending */
        for (size_t i = 0; i < f.side; i++)
            to[j * f.side + i] = (float)f.vector[(p->rank - 1 - j) * f.side + i];
    if (to != basis)
        times_a_transposed(p, cx, p->rank, f.across, grad, dtype, basis);
    /* rounding, and vectors of equal values, left them only nearly so */
    ps_orthonormal_rows(cx->pool, basis, p->rank, p->dim, f.tau);
    return 0;
}

size_t ps_projector_refresh_bytes(const struct ps_projector *p)
{
    struct sketch s;
    struct full f;
    return p->kind == PS_BASIS_SVD ? carve_full(p, &f, NULL) : carve_sketch(p, &s, NULL);
}

int ps_projector_refresh(const struct ps_projector *p, const struct ps_matrix_cx *cx, uint64_t t,
                         const void *grad, enum ps_dtype grad_dtype, float *basis, void *workspace,
                         struct ps_error *err)
{
    int ret = p->kind == PS_BASIS_SVD
                  ? refresh_svd(p, cx, grad, grad_dtype, basis, workspace, err)
                  : refresh_randomized(p, cx, t, grad, grad_dtype, basis, workspace, err);
    if (ret == 0)
        ps_canonical_signs(basis, p->rank, p->dim);
    return ret;
}
