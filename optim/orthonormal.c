/* Householder QR of rows and a symmetric eigenvalue problem: see orthonormal.h.
 *
 * Design: matrices are kept by rows, so that each reflection is dots and updates of contiguous
 * memory; threads take whole rows. Sums run in LANES partial sums, added in one order. */
#include "optim/orthonormal.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define LANES 16
/* Below this many elements handing rows to threads costs more than it gains. */
#define PARALLEL_ELEMS_MIN 32768
#define QL_SWEEPS_MAX 80

static float dot_f32(const float *a, const float *b, size_t n)
{
    float lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            lane[l] += a[i + l] * b[i + l];
    for (size_t l = 0; i + l < n; l++)
        lane[l] += a[i + l] * b[i + l];
    for (size_t width = LANES / 2; width > 0; width /= 2)
        for (size_t l = 0; l < width; l++)
            lane[l] += lane[l + width];
    return lane[0];
}

static double dot_f64(const float *a, const float *b, size_t n)
{
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            lane[l] += (double)a[i + l] * (double)b[i + l];
    for (size_t l = 0; i + l < n; l++)
        lane[l] += (double)a[i + l] * (double)b[i + l];
    for (size_t width = LANES / 2; width > 0; width /= 2)
        for (size_t l = 0; l < width; l++)
            lane[l] += lane[l + width];
    return lane[0];
}

/* ---- Householder QR ------------------------------------------------------------------------- */

/* Turn x (n,) into v with v[0] = 1 (stored), such that (I - tau v v^T) x = beta e_0. */
static float reflector(float *x, size_t n)
{
    double tail = n > 1 ? dot_f64(x + 1, x + 1, n - 1) : 0;
    double alpha = (double)x[0];
    if (tail == 0) {
        memset(x, 0, n * sizeof *x);
        x[0] = 1;
        return 0;
    }
    double norm = sqrt(alpha * alpha + tail);
    double beta = alpha > 0 ? -norm : norm;
    float scale = (float)(1 / (alpha - beta));
    if (!isfinite(scale)) { /* subnormal: nothing that could be a direction */
        memset(x, 0, n * sizeof *x);
        x[0] = 1;
        return 0;
    }
    for (size_t i = 1; i < n; i++)
        x[i] *= scale;
    x[0] = 1;
    return (float)((beta - alpha) / beta);
}

static void reflect(float *y, const float *v, float tau, size_t n)
{
    float s = -tau * dot_f32(y, v, n);
    for (size_t i = 0; i < n; i++)
        y[i] += s * v[i];
}

struct reflect_job {
    float *y;
    const float *v;
    size_t d, from, n; /* rows from `from` on; the last n of d columns */
    float tau;
    bool fresh; /* the first of these columns holds no value of the row yet */
};

static void reflect_row(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct reflect_job *job = arg;
    float *row = job->y + (job->from + task) * job->d + (job->d - job->n);
    if (job->fresh)
        row[0] = 0;
    reflect(row, job->v, job->tau, job->n);
}

static void reflect_rows(struct ps_pool *pool, struct reflect_job *job, size_t rows)
{
    if (rows * job->n < PARALLEL_ELEMS_MIN)
        pool = NULL;
    ps_pool_run(pool, reflect_row, job, rows);
}

void ps_orthonormal_rows(struct ps_pool *pool, float *y, size_t k, size_t d, float *tau)
{
    assert(k <= d);
    for (size_t j = 0; j < k; j++) {
        float *v = y + j * d + j;
        tau[j] = reflector(v, d - j);
        struct reflect_job job = {.y = y, .v = v, .d = d, .from = j + 1, .n = d - j, .tau = tau[j]};
        reflect_rows(pool, &job, k - j - 1);
    }
    /* Row i of the basis is H_0 ... H_i e_i: what lies before column i is filled on the way. */
    for (size_t j = k; j-- > 0;) {
        float *v = y + j * d + j;
        struct reflect_job job = {
            .y = y, .v = v, .d = d, .from = j + 1, .n = d - j, .tau = tau[j], .fresh = true};
        reflect_rows(pool, &job, k - j - 1);
        for (size_t i = 1; i < d - j; i++)
            v[i] *= -tau[j];
        v[0] = 1 - tau[j];
    }
}

void ps_canonical_signs(float *y, size_t k, size_t d)
{
    for (size_t j = 0; j < k; j++) {
        float *row = y + j * d;
        size_t most = 0;
        for (size_t i = 1; i < d; i++)
            if (fabsf(row[i]) > fabsf(row[most]))
                most = i;
        if (row[most] < 0)
            for (size_t i = 0; i < d; i++)
                row[i] = -row[i];
    }
}

/* ---- Gram matrix ---------------------------------------------------------------------------- */

struct gram_job {
    const float *b;
    size_t k, d;
    double *gram;
};

static void gram_row(void *arg, size_t i, int thread)
{
    (void)thread;
    const struct gram_job *job = arg;
    for (size_t j = 0; j <= i; j++) {
        double s = dot_f64(job->b + i * job->d, job->b + j * job->d, job->d);
        job->gram[i * job->k + j] = s;
        job->gram[j * job->k + i] = s;
    }
}

void ps_row_gram(struct ps_pool *pool, const float *b, size_t k, size_t d, double *gram)
{
    struct gram_job job = {b, k, d, gram};
    ps_pool_run(pool, gram_row, &job, k);
}

/* ---- symmetric eigenvalue problem ----------------------------------------------------------- */

size_t ps_symmetric_eigen_bytes(size_t n)
{
    return (n * n + 4 * n) * sizeof(double);
}

/* A = Q T Q^T: diagonal and off-diagonal of T; reflector k stays in row k of a, right of the
 * diagonal. */
static void tridiagonalise(double *a, size_t n, double *diagonal, double *off, double *tau,
                           double *p)
{
    for (size_t k = 0; k + 1 < n; k++) {
        double *v = a + k * n;
        double tail = 0;
        for (size_t i = k + 2; i < n; i++)
            tail += v[i] * v[i];
        off[k] = v[k + 1];
        tau[k] = 0;
        if (tail == 0)
            continue;
        double norm = sqrt(v[k + 1] * v[k + 1] + tail);
        double beta = v[k + 1] > 0 ? -norm : norm;
        double scale = 1 / (v[k + 1] - beta);
        tau[k] = (beta - v[k + 1]) / beta;
        off[k] = beta;
        v[k + 1] = 1;
        for (size_t i = k + 2; i < n; i++)
            v[i] *= scale;
        double pv = 0;
        for (size_t i = k + 1; i < n; i++) {
            const double *row = a + i * n;
            double s = 0;
            for (size_t j = k + 1; j < n; j++)
                s += row[j] * v[j];
            p[i] = tau[k] * s;
            pv += p[i] * v[i];
        }
        for (size_t i = k + 1; i < n; i++)
            p[i] -= 0.5 * tau[k] * pv * v[i];
        for (size_t i = k + 1; i < n; i++) {
            double *row = a + i * n;
            for (size_t j = k + 1; j < n; j++)
                row[j] -= v[i] * p[j] + p[i] * v[j];
        }
    }
    for (size_t i = 0; i < n; i++)
        diagonal[i] = a[i * n + i];
    off[n - 1] = 0;
}

static void rotate_rows(double *lower, double *upper, size_t n, double c, double s)
{
    for (size_t k = 0; k < n; k++) {
        double x = lower[k], y = upper[k];
        upper[k] = s * x + c * y;
        lower[k] = c * x - s * y;
    }
}

/* One implicit QL sweep over the unreduced block [l, m], chasing the bulge upwards. */
static void ql_sweep(double *diagonal, double *off, size_t l, size_t m, double *z, size_t n)
{
    double half = (diagonal[l + 1] - diagonal[l]) / (2 * off[l]);
    double shift = diagonal[l] - off[l] / (half + copysign(hypot(half, 1), half));
    double x = diagonal[m] - shift, s = 1, c = 1, moved = 0;
    for (size_t i = m; i-- > l;) {
        double bulge = s * off[i], b = c * off[i];
        double r = hypot(bulge, x);
        off[i + 1] = r;
        if (r == 0) { /* the block falls apart here */
            diagonal[i + 1] -= moved;
            off[m] = 0;
            return;
        }
        s = bulge / r;
        c = x / r;
        x = diagonal[i + 1] - moved;
        double t = (diagonal[i] - x) * s + 2 * c * b;
        moved = s * t;
        diagonal[i + 1] = x + moved;
        x = c * t - b;
        rotate_rows(z + i * n, z + (i + 1) * n, n, c, s);
    }
    diagonal[l] -= moved;
    off[l] = x;
    off[m] = 0;
}

/* Eigenvalues of T in `diagonal`, eigenvectors as rows of z, which begins as I. */
static int ql(double *diagonal, double *off, double *z, size_t n)
{
    for (size_t l = 0; l < n; l++) {
        for (int sweep = 0;; sweep++) {
            size_t m = l;
            while (m + 1 < n &&
                   fabs(off[m]) > DBL_EPSILON * (fabs(diagonal[m]) + fabs(diagonal[m + 1])))
                m++;
            if (m == l)
                break;
            if (sweep == QL_SWEEPS_MAX)
                return PS_ENUMERIC;
            ql_sweep(diagonal, off, l, m, z, n);
        }
    }
    return 0;
}

/* z <- Q z for one vector. */
static void apply_q(const double *a, size_t n, const double *tau, double *z)
{
    for (size_t k = n - 1; k-- > 0;) {
        const double *v = a + k * n;
        double s = 0;
        if (tau[k] == 0)
            continue;
        for (size_t i = k + 1; i < n; i++)
            s += v[i] * z[i];
        s *= tau[k];
        for (size_t i = k + 1; i < n; i++)
            z[i] -= s * v[i];
    }
}

int ps_symmetric_eigen(double *a, size_t n, size_t count, double *value, double *vector,
                       void *workspace)
{
    double *z = workspace, *diagonal = z + n * n, *off = diagonal + n, *tau = off + n, *p = tau + n;
    assert(n >= 1 && count <= n);
    tridiagonalise(a, n, diagonal, off, tau, p);
    memset(z, 0, n * n * sizeof *z);
    for (size_t i = 0; i < n; i++)
        z[i * n + i] = 1;
    int ret = ql(diagonal, off, z, n);
    if (ret < 0)
        return ret;
    /* p marks what is taken: the largest first, of equals the first */
    memset(p, 0, n * sizeof *p);
    for (size_t j = 0; j < count; j++) {
        size_t most = n;
        for (size_t i = 0; i < n; i++)
            if (p[i] == 0 && (most == n || diagonal[i] > diagonal[most]))
                most = i;
        p[most] = 1;
        value[j] = diagonal[most];
        memcpy(vector + j * n, z + most * n, n * sizeof *z);
        apply_q(a, n, tau, vector + j * n);
    }
    return 0;
}
