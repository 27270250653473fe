/* Small element-wise and reduction operations: see elementwise.h. */
#include "runtime/kernels/elementwise.h"

#include <string.h>

#include "runtime/kernels/elementwise_internal.h"
#include "runtime/kernels/fp32_block_internal.h"

/* Rows of one fp32 partial sum of ps_column_sum, and elements of one sum of ps_square_sum. */
#define SUM_ROWS 64
#define SQUARE_ELEMS 65536

struct job {
    enum ps_isa isa;
    void *y;
    const void *a, *b;
    enum ps_dtype dtype, src_dtype;
    size_t n, row_count, ld;
    const int32_t *row;
    double *square;
    float *sum;
    int accumulate;
    const struct ps__dropout_args *dropout;
};

static size_t ceil_div(size_t n, size_t d)
{
    return (n + d - 1) / d;
}

/* Convert */

void ps__convert(enum ps_isa isa, void *dst, enum ps_dtype dst_dtype, const void *src,
                 enum ps_dtype src_dtype, size_t n)
{
    if (dst_dtype == src_dtype) {
        if (dst != src)
            memcpy(dst, src, n * ps_dtype_size(dst_dtype));
        return;
    }
    if (isa >= PS_ISA_AVX512) {
        ps__convert_avx512(dst, dst_dtype, src, src_dtype, n);
        return;
    }
    float v[PS__BLOCK];
    for (size_t j = 0; j < n; j += PS__BLOCK) {
        size_t m = ps__min_size(PS__BLOCK, n - j);
        ps__block_load(v, src, src_dtype, j, m);
        ps__block_store(dst, dst_dtype, j, v, m);
    }
}

static void run_convert(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t at = task * PS__TASK_ELEMS;
    ps__convert(job->isa, ps__at(job->y, job->dtype, at), job->dtype,
                ps__const_at(job->a, job->src_dtype, at), job->src_dtype,
                ps__min_size(PS__TASK_ELEMS, job->n - at));
}

void ps_convert(struct ps_pool *pool, enum ps_isa isa, void *dst, enum ps_dtype dst_dtype,
                const void *src, enum ps_dtype src_dtype, size_t n)
{
    struct job job = {
        .isa = isa, .y = dst, .a = src, .dtype = dst_dtype, .src_dtype = src_dtype, .n = n};
    ps_pool_run(pool, run_convert, &job, ceil_div(n, PS__TASK_ELEMS));
}

/* Add */

static void add_piece(void *y, const void *a, const void *b, enum ps_dtype dtype, size_t n)
{
    float u[PS__BLOCK], v[PS__BLOCK];
    for (size_t j = 0; j < n; j += PS__BLOCK) {
        size_t m = ps__min_size(PS__BLOCK, n - j);
        ps__block_load(u, a, dtype, j, m);
        ps__block_load(v, b, dtype, j, m);
        for (size_t i = 0; i < m; i++)
            u[i] += v[i];
        ps__block_store(y, dtype, j, u, m);
    }
}

static void run_add(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t at = task * PS__TASK_ELEMS, n = ps__min_size(PS__TASK_ELEMS, job->n - at);
    void (*add)(void *, const void *, const void *, enum ps_dtype, size_t) =
        job->isa >= PS_ISA_AVX512 ? ps__add_avx512 : add_piece;
    add(ps__at(job->y, job->dtype, at), ps__const_at(job->a, job->dtype, at),
        ps__const_at(job->b, job->dtype, at), job->dtype, n);
}

void ps_add(struct ps_pool *pool, enum ps_isa isa, void *y, const void *a, const void *b,
            enum ps_dtype dtype, size_t n)
{
    struct job job = {.isa = isa, .y = y, .a = a, .b = b, .dtype = dtype, .n = n};
    ps_pool_run(pool, run_add, &job, ceil_div(n, PS__TASK_ELEMS));
}

/* Rows */

static void run_gather(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t rows = ps__task_rows(job->n), bytes = job->n * ps_dtype_size(job->dtype);
    size_t end = ps__min_size((task + 1) * rows, job->row_count);
    for (size_t i = task * rows; i < end; i++)
        memcpy(ps__at(job->y, job->dtype, i * job->n),
               ps__const_at(job->a, job->dtype, (size_t)job->row[i] * job->n), bytes);
}

static void run_scatter(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t rows = ps__task_rows(job->n), bytes = job->n * ps_dtype_size(job->dtype);
    size_t end = ps__min_size((task + 1) * rows, job->row_count);
    for (size_t i = task * rows; i < end; i++)
        memcpy(ps__at(job->y, job->dtype, (size_t)job->row[i] * job->n),
               ps__const_at(job->a, job->dtype, i * job->n), bytes);
}

void ps_gather_rows(struct ps_pool *pool, void *y, const void *x, const int32_t *row,
                    size_t row_count, size_t n, enum ps_dtype dtype)
{
    struct job job = {.y = y, .a = x, .row = row, .row_count = row_count, .n = n, .dtype = dtype};
    ps_pool_run(pool, run_gather, &job, ceil_div(row_count, ps__task_rows(n)));
}

void ps_scatter_rows(struct ps_pool *pool, void *y, const void *x, const int32_t *row,
                     size_t row_count, size_t n, enum ps_dtype dtype)
{
    struct job job = {.y = y, .a = x, .row = row, .row_count = row_count, .n = n, .dtype = dtype};
    ps_pool_run(pool, run_scatter, &job, ceil_div(row_count, ps__task_rows(n)));
}

/* Dropout */

static void dropout_piece(const struct ps__dropout_args *a, size_t begin, size_t end)
{
    float x[PS__BLOCK], y[PS__BLOCK], keep_share = 1.0f - a->p;
    for (size_t j = begin; j < end; j += PS__BLOCK) {
        size_t m = ps__min_size(PS__BLOCK, end - j);
        ps__block_load(x, a->x, a->dtype, j, m);
        for (size_t i = 0; i < m; i += 4) {
            uint32_t w[4];
            ps_rng_block(a->key, (j + i) / 4, w);
            for (size_t l = 0; l < 4 && i + l < m; l++) {
                float uniform = (float)(w[l] >> 8) * 0x1p-24f; /* as ps_rng_uniform */
                float v = uniform >= a->p ? x[i + l] / keep_share : 0;
                x[i + l] = a->how & PS_DROPOUT_REST ? x[i + l] - v : v;
            }
        }
        if (a->how & PS_DROPOUT_ADD) {
            ps__block_load(y, a->y, a->dtype, j, m);
            for (size_t i = 0; i < m; i++)
                x[i] += y[i];
        }
        ps__block_store(a->y, a->dtype, j, x, m);
    }
}

static void run_dropout(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t begin = task * PS__TASK_ELEMS, end = ps__min_size(begin + PS__TASK_ELEMS, job->n);
    if (job->isa >= PS_ISA_AVX512)
        ps__dropout_avx512(job->dropout, begin, end);
    else
        dropout_piece(job->dropout, begin, end);
}

void ps_dropout(struct ps_pool *pool, enum ps_isa isa, void *y, const void *x, enum ps_dtype dtype,
                size_t n_tok, size_t n, float p, const struct ps_rng_key *key, int how)
{
    struct ps__dropout_args a = {.y = y, .x = x, .dtype = dtype, .p = p, .key = key, .how = how};
    struct job job = {.isa = isa, .n = n_tok * n, .dropout = &a};
    ps_pool_run(pool, run_dropout, &job, ceil_div(job.n, PS__TASK_ELEMS));
}

/* Column sums */

static void column_sum_block(float *sum, const void *x, enum ps_dtype dtype, size_t ld,
                             size_t begin, size_t end, size_t at, size_t n)
{
    float v[PS__BLOCK];
    memset(sum, 0, n * sizeof *sum);
    for (size_t t = begin; t < end; t++) {
        ps__block_load(v, x, dtype, t * ld + at, n);
        for (size_t i = 0; i < n; i++)
            sum[i] += v[i];
    }
}

static void run_column_sum(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t at = task * PS__BLOCK, n = ps__min_size(PS__BLOCK, job->n - at);
    float total[PS__BLOCK] = {0}, part[PS__BLOCK];
    for (size_t t = 0; t < job->row_count; t += SUM_ROWS) {
        size_t end = ps__min_size(t + SUM_ROWS, job->row_count);
        if (job->isa >= PS_ISA_AVX512)
            ps__column_sum_avx512(part, job->a, job->dtype, job->ld, t, end, at, n);
        else
            column_sum_block(part, job->a, job->dtype, job->ld, t, end, at, n);
        for (size_t i = 0; i < n; i++)
            total[i] += part[i];
    }
    for (size_t i = 0; i < n; i++)
        job->sum[at + i] = job->accumulate ? job->sum[at + i] + total[i] : total[i];
}

void ps_column_sum(struct ps_pool *pool, enum ps_isa isa, float *out, const void *x, size_t ld,
                   enum ps_dtype dtype, size_t n_tok, size_t n, int accumulate)
{
    struct job job = {.isa = isa,
                      .a = x,
                      .ld = ld,
                      .dtype = dtype,
                      .row_count = n_tok,
                      .n = n,
                      .sum = out,
                      .accumulate = accumulate};
    ps_pool_run(pool, run_column_sum, &job, ceil_div(n, PS__BLOCK));
}

/* Sums of squares */

static void square_sum_piece(double lane[32], const void *x, enum ps_dtype dtype, size_t at,
                             size_t n)
{
    float v[PS__BLOCK];
    memset(lane, 0, 32 * sizeof *lane);
    for (size_t j = 0; j < n; j += PS__BLOCK) {
        size_t m = ps__min_size(PS__BLOCK, n - j);
        ps__block_load(v, x, dtype, at + j, m);
        for (size_t i = m; i % 32; i++)
            v[i] = 0;
        for (size_t i = 0; i < m; i += 32)
            for (size_t l = 0; l < 32; l++)
                lane[l] += (double)v[i + l] * (double)v[i + l];
    }
}

static void run_square_sum(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t at = task * SQUARE_ELEMS, n = ps__min_size(SQUARE_ELEMS, job->n - at);
    double lane[32];
    if (job->isa >= PS_ISA_AVX512)
        ps__square_sum_avx512(lane, job->a, job->dtype, at, n);
    else
        square_sum_piece(lane, job->a, job->dtype, at, n);
    for (int width = 16; width; width /= 2)
        for (int i = 0; i < width; i++)
            lane[i] += lane[i + width];
    job->square[task] = lane[0];
}

void ps_square_sum(struct ps_pool *pool, enum ps_isa isa, double *out, const void *x,
                   enum ps_dtype dtype, size_t n)
{
    struct job job = {.isa = isa, .a = x, .dtype = dtype, .n = n, .square = out};
    ps_pool_run(pool, run_square_sum, &job, ceil_div(n, SQUARE_ELEMS));
}
