/* Decompositions of a streamed weight: see decompose.h. */
#include "peft/decompose.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)4 << 20)
#define OVERSAMPLE 8
#define SWEEPS 40

/* Row vectors (q, out) and (q, in), a block of W, and what products need. */
struct work {
    const struct ps_adapter_base *base;
    size_t out, in, q, block_rows;
    float *left, *right, *block;
    void *gemm;
    double *low; /* 3 * q * q + q */
};

static void work_fini(struct work *w)
{
    free(w->left);
    free(w->right);
    free(w->block);
    free(w->gemm);
    free(w->low);
}

static int work_init(struct work *w, const struct ps_adapter_base *base, int64_t out, int64_t in,
                     size_t q, struct ps_error *err)
{
    *w = (struct work){.base = base, .out = (size_t)out, .in = (size_t)in, .q = q};
    w->block_rows = BLOCK_BYTES / (w->in * sizeof(float));
    w->block_rows = w->block_rows < 1 ? 1 : w->block_rows;
    w->block_rows = w->block_rows > w->out ? w->out : w->block_rows;
    size_t gemm = (ps_gemm_workspace_bytes(ps_pool_thread_count(base->pool)) + 63) & ~(size_t)63;
    w->left = malloc(q * w->out * sizeof *w->left);
    w->right = malloc(q * w->in * sizeof *w->right);
    w->block = malloc(w->block_rows * w->in * sizeof *w->block);
    w->gemm = aligned_alloc(64, gemm);
    w->low = malloc((3 * q * q + q) * sizeof *w->low);
    if (w->left && w->right && w->block && w->gemm && w->low)
        return 0;
    work_fini(w);
    return ps_error_set(err, -ENOMEM, "out of memory");
}

static struct ps_gemm_mat mat(const float *data, size_t ld, int trans)
{
    return (struct ps_gemm_mat){.data = data, .ld = ld, .dtype = PS_DTYPE_F32, .trans = trans};
}

/* left (q, out) = right W^T, or right (q, in) = left W. */
static int multiply(struct work *w, bool transposed, struct ps_error *err)
{
    for (size_t at = 0; at < w->out; at += w->block_rows) {
        size_t rows = w->out - at < w->block_rows ? w->out - at : w->block_rows;
        int ret = w->base->read(w->base->arg, (int64_t)at, (int64_t)rows, w->block, err);
        if (ret < 0)
            return ret;
        struct ps_gemm_args g = {.m = w->q, .c_dtype = PS_DTYPE_F32, .math = PS_GEMM_F32};
        g.n = transposed ? w->in : rows;
        g.k = transposed ? rows : w->in;
        g.a = transposed ? mat(w->left + at, w->out, 0) : mat(w->right, w->in, 0);
        g.b = mat(w->block, w->in, !transposed);
        g.c = transposed ? w->right : w->left + at;
        g.c_ld = transposed ? w->in : w->out;
        g.accumulate = transposed && at > 0;
        ps_gemm(w->base->pool, w->base->isa, &g, w->gemm);
    }
    return 0;
}

static double dot(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Rows of x (q, n) become orthonormal (Gram-Schmidt, each row twice); r (q, q), unless NULL,
 * row-major: x_j = sum over k of r[k,j] q_k. Rows that depend on those before become zero. */
static void orthonormalise(float *x, size_t q, size_t n, double *r)
{
    if (r)
        memset(r, 0, q * q * sizeof *r);
    for (size_t j = 0; j < q; j++) {
        float *v = x + j * n;
        double before = sqrt(dot(v, v, n));
        for (int pass = 0; pass < 2; pass++)
            for (size_t k = 0; k < j; k++) {
                const float *u = x + k * n;
                double c = dot(u, v, n);
                for (size_t i = 0; i < n; i++)
                    v[i] = (float)((double)v[i] - c * (double)u[i]);
                if (r)
                    r[k * q + j] += c;
            }
        double norm = sqrt(dot(v, v, n));
        bool depends = !(norm > 1e-6 * before);
        for (size_t i = 0; i < n; i++)
            v[i] = depends ? 0 : (float)((double)v[i] / norm);
        if (r)
            r[j * q + j] = depends ? 0 : norm;
    }
}

/* Turn columns i and j of m and v so that those of m become orthogonal; returns their cosine. */
static double rotate(double *m, double *v, size_t n, size_t i, size_t j)
{
    double aa = 0;
    double bb = 0;
    double ab = 0;
    for (size_t k = 0; k < n; k++) {
        aa += m[k * n + i] * m[k * n + i];
        bb += m[k * n + j] * m[k * n + j];
        ab += m[k * n + i] * m[k * n + j];
    }
    if (aa == 0 || bb == 0 || fabs(ab) <= 1e-15 * sqrt(aa * bb))
        return 0;
    double zeta = (bb - aa) / (2 * ab);
    double t = (zeta >= 0 ? 1 : -1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
    double c = 1 / sqrt(1 + t * t);
    double s = c * t;
    for (size_t k = 0; k < n; k++) {
        double x = m[k * n + i];
        m[k * n + i] = c * x - s * m[k * n + j];
        m[k * n + j] = s * x + c * m[k * n + j];
        x = v[k * n + i];
        v[k * n + i] = c * x - s * v[k * n + j];
        v[k * n + j] = s * x + c * v[k * n + j];
    }
    return fabs(ab) / sqrt(aa * bb);
}

static void swap_columns(double *m, size_t n, size_t i, size_t j)
{
    for (size_t k = 0; k < n; k++) {
        double x = m[k * n + i];
        m[k * n + i] = m[k * n + j];
        m[k * n + j] = x;
    }
}

void ps_jacobi_svd(double *m, double *v, double *s, size_t n)
{
    memset(v, 0, n * n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i * n + i] = 1;
    double worst = 1;
    for (int sweep = 0; sweep < SWEEPS && worst > 1e-14; sweep++) {
        worst = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t j = i + 1; j < n; j++)
                worst = fmax(worst, rotate(m, v, n, i, j));
    }
    for (size_t j = 0; j < n; j++) {
        double square = 0;
        for (size_t k = 0; k < n; k++)
            square += m[k * n + j] * m[k * n + j];
        s[j] = sqrt(square);
        for (size_t k = 0; k < n && s[j] > 0; k++)
            m[k * n + j] /= s[j];
    }
    for (size_t i = 0; i < n; i++) {
        size_t most = i;
        for (size_t j = i + 1; j < n; j++)
            most = s[j] > s[most] ? j : most;
        double x = s[i];
        s[i] = s[most];
        s[most] = x;
        swap_columns(m, n, i, most);
        swap_columns(v, n, i, most);
    }
}

/* W ~ left^T right with orthonormal left, right = R^T Q: the triplets of R^T give those of W. */
static void split(struct work *w, size_t r, float *a, float *b)
{
    size_t q = w->q;
    double *rr = w->low;
    double *m = rr + q * q;
    double *v = m + q * q;
    double *s = v + q * q;
    orthonormalise(w->right, q, w->in, rr);
    for (size_t i = 0; i < q; i++)
        for (size_t j = 0; j < q; j++)
            m[i * q + j] = rr[j * q + i];
    ps_jacobi_svd(m, v, s, q);
    for (size_t k = 0; k < r; k++) {
        double root = sqrt(s[k]);
        for (size_t j = 0; j < w->in; j++) {
            double sum = 0;
            for (size_t l = 0; l < q; l++)
                sum += v[l * q + k] * (double)w->right[l * w->in + j];
            a[k * w->in + j] = (float)(root * sum);
        }
        for (size_t i = 0; i < w->out; i++) {
            double sum = 0;
            for (size_t l = 0; l < q; l++)
                sum += m[l * q + k] * (double)w->left[l * w->out + i];
            b[i * r + k] = (float)(root * sum);
        }
    }
}

int ps_decompose_svd(const struct ps_adapter_base *base, int64_t out, int64_t in, int32_t r,
                     int iterations, const struct ps_rng_key *key, float *a, float *b,
                     struct ps_error *err)
{
    int64_t least = out < in ? out : in;
    int64_t q = r + OVERSAMPLE < least ? r + OVERSAMPLE : least;
    struct work w;
    int ret = work_init(&w, base, out, in, (size_t)q, err);
    if (ret < 0)
        return ret;
    for (size_t i = 0; i < w.q * w.in; i++)
        w.right[i] = (float)ps_rng_normal(key, i);
    ret = multiply(&w, false, err);
    for (int k = 0; ret == 0 && k < iterations; k++) {
        orthonormalise(w.left, w.q, w.out, NULL);
        ret = multiply(&w, true, err);
        orthonormalise(w.right, w.q, w.in, NULL);
        if (ret == 0)
            ret = multiply(&w, false, err);
    }
    orthonormalise(w.left, w.q, w.out, NULL);
    if (ret == 0)
        ret = multiply(&w, true, err);
    if (ret == 0)
        split(&w, (size_t)r, a, b);
    work_fini(&w);
    return ret;
}

/* left (q, out) = the first q columns of W */
static int first_columns(struct work *w, struct ps_error *err)
{
    for (size_t at = 0; at < w->out; at += w->block_rows) {
        size_t rows = w->out - at < w->block_rows ? w->out - at : w->block_rows;
        int ret = w->base->read(w->base->arg, (int64_t)at, (int64_t)rows, w->block, err);
        if (ret < 0)
            return ret;
        for (size_t i = 0; i < rows; i++)
            for (size_t k = 0; k < w->q; k++)
                w->left[k * w->out + at + i] = w->block[i * w->in + k];
    }
    return 0;
}

int ps_decompose_qr(const struct ps_adapter_base *base, int64_t out, int64_t in, int32_t r,
                    float *a, float *b, struct ps_error *err)
{
    struct work w;
    int ret = work_init(&w, base, out, in, (size_t)r, err);
    if (ret < 0)
        return ret;
    ret = first_columns(&w, err);
    if (ret == 0) {
        orthonormalise(w.left, w.q, w.out, NULL);
        ret = multiply(&w, true, err);
    }
    for (size_t k = 0; ret == 0 && k < w.q; k++)
        for (size_t i = 0; i < w.out; i++)
            b[i * w.q + k] = w.left[k * w.out + i];
    if (ret == 0)
        memcpy(a, w.right, w.q * w.in * sizeof *a);
    work_fini(&w);
    return ret;
}

int ps_decompose_nystroem(const struct ps_adapter_base *base, int64_t out, int64_t in, int32_t r,
                          double rcond, float *a, float *n, float *b, struct ps_error *err)
{
    struct work w;
    int ret = work_init(&w, base, out, in, (size_t)r, err);
    if (ret < 0)
        return ret;
    ret = base->read(base->arg, 0, r, a, err);
    if (ret == 0)
        ret = first_columns(&w, err);
    for (size_t k = 0; ret == 0 && k < w.q; k++)
        for (size_t i = 0; i < w.out; i++)
            b[i * w.q + k] = w.left[k * w.out + i];
    if (ret == 0) {
        double *m = w.low;
        double *v = m + w.q * w.q;
        double *s = v + w.q * w.q;
        for (size_t i = 0; i < w.q; i++)
            for (size_t j = 0; j < w.q; j++)
                m[i * w.q + j] = (double)a[i * w.in + j];
        ps_jacobi_svd(m, v, s, w.q);
        for (size_t i = 0; i < w.q; i++)
            for (size_t j = 0; j < w.q; j++) {
                double sum = 0;
                for (size_t k = 0; k < w.q && s[k] > rcond * s[0]; k++)
                    sum += v[i * w.q + k] * m[j * w.q + k] / s[k];
                n[i * w.q + j] = (float)sum;
            }
    }
    work_fini(&w);
    return ret;
}
