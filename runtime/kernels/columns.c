/* Scaled columns and their products: see columns.h. */
#include "runtime/kernels/columns.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define ROW_BLOCK ((size_t)16)
#define COLUMN_BLOCK ((size_t)128)

static size_t ceil_div(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static const void *at(const void *base, enum ps_dtype dtype, size_t i)
{
    return (const unsigned char *)base + i * ps_dtype_size(dtype);
}

/* n values as fp32, in place where they are that already. */
static const float *load(float *buf, const void *base, enum ps_dtype dtype, size_t i, size_t n)
{
    if (dtype == PS_DTYPE_F32)
        return (const float *)base + i;
    ps_dtype_convert(buf, PS_DTYPE_F32, at(base, dtype, i), dtype, n);
    return buf;
}

static void scale_piece(const struct ps_scale_columns_args *a, size_t t, size_t j, size_t n)
{
    float xs[COLUMN_BLOCK];
    float rs[COLUMN_BLOCK];
    float bs[COLUMN_BLOCK];
    float ys[COLUMN_BLOCK];
    size_t first = t * a->n + j;
    const float *x = load(xs, a->x, a->dtype, first, n);
    for (size_t i = 0; i < n; i++)
        ys[i] = a->scale[j + i] * x[i];
    if (a->bias) {
        const float *b = load(bs, a->bias, a->bias_dtype, j, n);
        for (size_t i = 0; i < n; i++)
            ys[i] += b[i];
    }
    if (a->residual) {
        const float *r = load(rs, a->residual, a->dtype, first, n);
        for (size_t i = 0; i < n; i++)
            ys[i] += r[i];
    }
    ps_dtype_convert((unsigned char *)a->y + first * ps_dtype_size(a->dtype), a->dtype, ys,
                     PS_DTYPE_F32, n);
}

static void run_scale_columns(void *arg, size_t block, int thread)
{
    const struct ps_scale_columns_args *a = arg;
    (void)thread;
    size_t end = least(a->n_tok, (block + 1) * ROW_BLOCK);
    for (size_t t = block * ROW_BLOCK; t < end; t++)
        for (size_t j = 0; j < a->n; j += COLUMN_BLOCK)
            scale_piece(a, t, j, least(COLUMN_BLOCK, a->n - j));
}

void ps_scale_columns(struct ps_pool *pool, const struct ps_scale_columns_args *a)
{
    struct ps_scale_columns_args job = *a;
    ps_pool_run(pool, run_scale_columns, &job, ceil_div(a->n_tok, ROW_BLOCK));
}

struct dot_job {
    float *out;
    const void *a, *b;
    enum ps_dtype dtype;
    const float *divisor;
    size_t n_tok, n;
    int accumulate;
};

static void run_column_dot(void *arg, size_t block, int thread)
{
    const struct dot_job *d = arg;
    (void)thread;
    size_t j = block * COLUMN_BLOCK;
    size_t n = least(COLUMN_BLOCK, d->n - j);
    double sum[COLUMN_BLOCK] = {0};
    float as[COLUMN_BLOCK];
    float bs[COLUMN_BLOCK];
    for (size_t t = 0; t < d->n_tok; t++) {
        const float *a = load(as, d->a, d->dtype, t * d->n + j, n);
        const float *b = load(bs, d->b, d->dtype, t * d->n + j, n);
        for (size_t i = 0; i < n; i++)
            sum[i] += (double)a[i] * (double)b[i];
    }
    for (size_t i = 0; i < n; i++) {
        double v = d->divisor ? sum[i] / (double)d->divisor[j + i] : sum[i];
        d->out[j + i] = (float)v + (d->accumulate ? d->out[j + i] : 0);
    }
}

void ps_column_dot(struct ps_pool *pool, float *out, const void *a, const void *b,
                   enum ps_dtype dtype, const float *divisor, size_t n_tok, size_t n,
                   int accumulate)
{
    struct dot_job job = {out, a, b, dtype, divisor, n_tok, n, accumulate};
    ps_pool_run(pool, run_column_dot, &job, ceil_div(n, COLUMN_BLOCK));
}

struct matrix_job {
    float *y;
    const float *x, *row, *col;
    size_t rows, cols;
};

static void run_scale_matrix(void *arg, size_t block, int thread)
{
    const struct matrix_job *m = arg;
    (void)thread;
    size_t end = least(m->rows, (block + 1) * ROW_BLOCK);
    for (size_t i = block * ROW_BLOCK; i < end; i++)
        for (size_t k = 0; k < m->cols; k++)
            m->y[i * m->cols + k] = m->row[i] * m->x[i * m->cols + k] * m->col[k];
}

void ps_scale_matrix(struct ps_pool *pool, float *y, const float *x, const float *row,
                     const float *col, size_t rows, size_t cols)
{
    struct matrix_job job = {y, x, row, col, rows, cols};
    ps_pool_run(pool, run_scale_matrix, &job, ceil_div(rows, ROW_BLOCK));
}

static void run_row_dots(void *arg, size_t block, int thread)
{
    const struct ps_matrix_dots_args *a = arg;
    (void)thread;
    size_t end = least(a->rows, (block + 1) * ROW_BLOCK);
    for (size_t i = block * ROW_BLOCK; i < end; i++) {
        double sum = 0;
        for (size_t k = 0; k < a->cols; k++)
            sum +=
                (double)a->g[i * a->cols + k] * (double)a->b[i * a->cols + k] * (double)a->col[k];
        a->row_out[i] = (float)sum + (a->accumulate ? a->row_out[i] : 0);
    }
}

static void run_column_dots(void *arg, size_t block, int thread)
{
    const struct ps_matrix_dots_args *a = arg;
    (void)thread;
    size_t k = block * COLUMN_BLOCK;
    size_t n = least(COLUMN_BLOCK, a->cols - k);
    double sum[COLUMN_BLOCK] = {0};
    for (size_t i = 0; i < a->rows; i++) {
        const float *g = a->g + i * a->cols + k;
        const float *b = a->b + i * a->cols + k;
        for (size_t j = 0; j < n; j++)
            sum[j] += (double)a->row[i] * (double)g[j] * (double)b[j];
    }
    for (size_t j = 0; j < n; j++)
        a->col_out[k + j] = (float)sum[j] + (a->accumulate ? a->col_out[k + j] : 0);
}

void ps_matrix_dots(struct ps_pool *pool, const struct ps_matrix_dots_args *a)
{
    struct ps_matrix_dots_args job = *a;
    ps_pool_run(pool, run_row_dots, &job, ceil_div(a->rows, ROW_BLOCK));
    ps_pool_run(pool, run_column_dots, &job, ceil_div(a->cols, COLUMN_BLOCK));
}

static void run_row_norms(void *arg, size_t block, int thread)
{
    const struct ps_row_norms_args *a = arg;
    (void)thread;
    float buf[COLUMN_BLOCK];
    size_t end = least(a->out, (block + 1) * ROW_BLOCK);
    for (size_t i = block * ROW_BLOCK; i < end; i++) {
        double square = 0;
        for (size_t j = 0; j < a->in; j += COLUMN_BLOCK) {
            size_t n = least(COLUMN_BLOCK, a->in - j);
            const float *w = load(buf, a->w, a->w_dtype, i * a->in + j, n);
            for (size_t k = 0; k < n; k++)
                square += (double)w[k] * (double)w[k];
        }
        double low = 0;
        for (size_t k = 0; k < a->r; k++) {
            size_t x = i * a->r + k;
            low += (double)a->b[x] * (2 * (double)a->q[x] + (double)a->s * (double)a->bg[x]);
        }
        square += (double)a->s * low;
        double norm = sqrt(square > (double)FLT_MIN || isnan(square) ? square : (double)FLT_MIN);
        if (a->n)
            a->n[i] = (float)norm;
        if (a->c)
            a->c[i] = a->m[i] / (float)norm;
    }
}

void ps_row_norms(struct ps_pool *pool, const struct ps_row_norms_args *a)
{
    struct ps_row_norms_args job = *a;
    ps_pool_run(pool, run_row_norms, &job, ceil_div(a->out, ROW_BLOCK));
}
