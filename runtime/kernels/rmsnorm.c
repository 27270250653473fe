/* RMSNorm: see rmsnorm.h.
 *
 * A task is a block of 64 rows. Sums along a row run in 16 lanes (element i in lane i % 16), which
 * are added in a fixed tree, so that a row's result depends on nothing else. */
#include "runtime/kernels/rmsnorm.h"

#include <math.h>
#include <string.h>

#include "runtime/kernels/fp32_block_internal.h"
#include "runtime/kernels/rmsnorm_internal.h"

static void forward_row(const struct ps_rmsnorm_args *a, size_t r)
{
    size_t x_at = ps__rmsnorm_row(a, a->x_ld, r), y_at = ps__rmsnorm_row(a, a->y_ld, r);
    float x[PS__BLOCK] = {0}, w[PS__BLOCK], lane[16] = {0};
    for (size_t j = 0; j < a->n; j += PS__BLOCK) {
        size_t n = ps__min_size(PS__BLOCK, a->n - j);
        ps__block_load(x, a->x, a->dtype, x_at + j, n);
        for (size_t i = n; i % 16; i++)
            x[i] = 0;
        for (size_t i = 0; i < n; i += 16)
            for (size_t l = 0; l < 16; l++)
                lane[l] += x[i + l] * x[i + l];
    }
    float rstd = 1.0f / sqrtf(ps__sum_lanes16(lane) / (float)a->n + a->eps);
    if (a->rstd)
        a->rstd[r] = rstd;
    for (size_t j = 0; j < a->n; j += PS__BLOCK) {
        size_t n = ps__min_size(PS__BLOCK, a->n - j);
        ps__block_load(x, a->x, a->dtype, x_at + j, n);
        ps__block_load(w, a->weight, a->weight_dtype, j, n);
        for (size_t i = 0; i < n; i++)
            x[i] = x[i] * rstd * w[i];
        ps__block_store(a->y, a->dtype, y_at + j, x, n);
    }
}

static void forward_rows(const struct ps_rmsnorm_args *a, size_t begin, size_t end)
{
    for (size_t r = begin; r < end; r++)
        forward_row(a, r);
}

/* mean(xhat * w * dy) of one row. */
static float row_mean(const struct ps_rmsnorm_args *a, size_t r)
{
    size_t x_at = ps__rmsnorm_row(a, a->x_ld, r), dy_at = ps__rmsnorm_row(a, a->dy_ld, r);
    float x[PS__BLOCK] = {0}, w[PS__BLOCK] = {0}, dy[PS__BLOCK] = {0}, lane[16] = {0};
    float rstd = a->rstd[r];
    for (size_t j = 0; j < a->n; j += PS__BLOCK) {
        size_t n = ps__min_size(PS__BLOCK, a->n - j);
        ps__block_load(x, a->x, a->dtype, x_at + j, n);
        ps__block_load(w, a->weight, a->weight_dtype, j, n);
        ps__block_load(dy, a->dy, a->dtype, dy_at + j, n);
        for (size_t i = n; i % 16; i++)
            x[i] = w[i] = dy[i] = 0;
        for (size_t i = 0; i < n; i += 16)
            for (size_t l = 0; l < 16; l++)
                lane[l] += x[i + l] * rstd * (w[i + l] * dy[i + l]);
    }
    return ps__sum_lanes16(lane) / (float)a->n;
}

static void backward_row(const struct ps_rmsnorm_args *a, size_t r, float *partial)
{
    size_t x_at = ps__rmsnorm_row(a, a->x_ld, r), dy_at = ps__rmsnorm_row(a, a->dy_ld, r);
    size_t dx_at = ps__rmsnorm_row(a, a->dx_ld, r), add_at = ps__rmsnorm_row(a, a->dx_add_ld, r);
    float mean = row_mean(a, r), rstd = a->rstd[r];
    float x[PS__BLOCK], w[PS__BLOCK], dy[PS__BLOCK], dx[PS__BLOCK];
    for (size_t j = 0; j < a->n; j += PS__BLOCK) {
        size_t n = ps__min_size(PS__BLOCK, a->n - j);
        ps__block_load(x, a->x, a->dtype, x_at + j, n);
        ps__block_load(w, a->weight, a->weight_dtype, j, n);
        ps__block_load(dy, a->dy, a->dtype, dy_at + j, n);
        for (size_t i = 0; i < n; i++) {
            float xhat = x[i] * rstd;
            dx[i] = rstd * (w[i] * dy[i] - xhat * mean);
            dy[i] *= xhat;
        }
        if (partial)
            for (size_t i = 0; i < n; i++)
                partial[j + i] += dy[i];
        if (a->dx_add) {
            ps__block_load(x, a->dx_add, a->dtype, add_at + j, n);
            for (size_t i = 0; i < n; i++)
                dx[i] += x[i];
        }
        ps__block_store(a->dx, a->dtype, dx_at + j, dx, n);
    }
}

static void backward_rows(const struct ps_rmsnorm_args *a, size_t begin, size_t end, float *partial)
{
    if (partial)
        memset(partial, 0, a->n * sizeof(float));
    for (size_t r = begin; r < end; r++)
        backward_row(a, r, partial);
}

struct job {
    const struct ps_rmsnorm_args *args;
    size_t row_count;
    void (*forward)(const struct ps_rmsnorm_args *, size_t, size_t);
    void (*backward)(const struct ps_rmsnorm_args *, size_t, size_t, float *);
    float *partial; /* (blocks, n) or NULL */
};

static void run_forward(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t begin = task * PS__RMSNORM_ROWS;
    job->forward(job->args, begin, ps__min_size(begin + PS__RMSNORM_ROWS, job->row_count));
}

static void run_backward(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t begin = task * PS__RMSNORM_ROWS;
    float *partial = job->partial ? job->partial + task * job->args->n : NULL;
    job->backward(job->args, begin, ps__min_size(begin + PS__RMSNORM_ROWS, job->row_count),
                  partial);
}

/* Add the partial sums of PS__BLOCK columns in ascending order of the row blocks. */
static void run_combine(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    const struct ps_rmsnorm_args *a = job->args;
    size_t j = task * PS__BLOCK, n = ps__min_size(PS__BLOCK, a->n - j);
    size_t blocks = (job->row_count + PS__RMSNORM_ROWS - 1) / PS__RMSNORM_ROWS;
    float sum[PS__BLOCK] = {0};
    for (size_t b = 0; b < blocks; b++)
        for (size_t i = 0; i < n; i++)
            sum[i] += job->partial[b * a->n + j + i];
    for (size_t i = 0; i < n; i++)
        a->dweight[j + i] = a->accumulate ? a->dweight[j + i] + sum[i] : sum[i];
}

void ps_rmsnorm_forward(struct ps_pool *pool, enum ps_isa isa, const struct ps_rmsnorm_args *args)
{
    struct job job = {.args = args, .row_count = args->n_tok * args->rows_per_tok};
    job.forward = isa >= PS_ISA_AVX512 ? ps__rmsnorm_forward_avx512 : forward_rows;
    size_t tasks = (job.row_count + PS__RMSNORM_ROWS - 1) / PS__RMSNORM_ROWS;
    ps_pool_run(pool, run_forward, &job, tasks);
}

size_t ps_rmsnorm_workspace_bytes(size_t row_count_max, size_t n)
{
    size_t blocks = (row_count_max + PS__RMSNORM_ROWS - 1) / PS__RMSNORM_ROWS;
    return blocks * n * sizeof(float);
}

void ps_rmsnorm_backward(struct ps_pool *pool, enum ps_isa isa, const struct ps_rmsnorm_args *args,
                         void *workspace)
{
    struct job job = {.args = args, .row_count = args->n_tok * args->rows_per_tok};
    job.backward = isa >= PS_ISA_AVX512 ? ps__rmsnorm_backward_avx512 : backward_rows;
    job.partial = args->dweight ? workspace : NULL;
    size_t tasks = (job.row_count + PS__RMSNORM_ROWS - 1) / PS__RMSNORM_ROWS;
    ps_pool_run(pool, run_backward, &job, tasks);
    if (args->dweight)
        ps_pool_run(pool, run_combine, &job, (args->n + PS__BLOCK - 1) / PS__BLOCK);
}

static double element(const void *p, enum ps_dtype dtype, size_t at)
{
    float f;
    ps__block_load(&f, p, dtype, at, 1);
    return (double)f;
}

static double reference_rstd(const struct ps_rmsnorm_args *a, size_t r)
{
    double sum = 0;
    for (size_t j = 0; j < a->n; j++) {
        double x = element(a->x, a->dtype, ps__rmsnorm_row(a, a->x_ld, r) + j);
        sum += x * x;
    }
    return 1.0 / sqrt(sum / (double)a->n + (double)a->eps);
}

void ps_rmsnorm_forward_reference(const struct ps_rmsnorm_args *a)
{
    for (size_t r = 0; r < a->n_tok * a->rows_per_tok; r++) {
        double rstd = reference_rstd(a, r);
        a->rstd[r] = (float)rstd;
        for (size_t j = 0; j < a->n; j++) {
            double x = element(a->x, a->dtype, ps__rmsnorm_row(a, a->x_ld, r) + j);
            float y = (float)(x * rstd * element(a->weight, a->weight_dtype, j));
            ps__block_store(a->y, a->dtype, ps__rmsnorm_row(a, a->y_ld, r) + j, &y, 1);
        }
    }
}

void ps_rmsnorm_backward_reference(const struct ps_rmsnorm_args *a)
{
    size_t rows = a->n_tok * a->rows_per_tok;
    /* before dx, which may overwrite dy */
    for (size_t j = 0; a->dweight && j < a->n; j++) {
        double sum = a->accumulate ? (double)a->dweight[j] : 0;
        for (size_t r = 0; r < rows; r++)
            sum += element(a->dy, a->dtype, ps__rmsnorm_row(a, a->dy_ld, r) + j) *
                   element(a->x, a->dtype, ps__rmsnorm_row(a, a->x_ld, r) + j) * (double)a->rstd[r];
        a->dweight[j] = (float)sum;
    }
    for (size_t r = 0; r < rows; r++) {
        size_t x_at = ps__rmsnorm_row(a, a->x_ld, r), dy_at = ps__rmsnorm_row(a, a->dy_ld, r);
        double rstd = reference_rstd(a, r), mean = 0;
        for (size_t j = 0; j < a->n; j++)
            mean += element(a->x, a->dtype, x_at + j) * rstd *
                    element(a->weight, a->weight_dtype, j) * element(a->dy, a->dtype, dy_at + j);
        mean /= (double)a->n;
        for (size_t j = 0; j < a->n; j++) {
            double wdy =
                element(a->weight, a->weight_dtype, j) * element(a->dy, a->dtype, dy_at + j);
            double dx = rstd * (wdy - element(a->x, a->dtype, x_at + j) * rstd * mean);
            if (a->dx_add)
                dx += element(a->dx_add, a->dtype, ps__rmsnorm_row(a, a->dx_add_ld, r) + j);
            float out = (float)dx;
            ps__block_store(a->dx, a->dtype, ps__rmsnorm_row(a, a->dx_ld, r) + j, &out, 1);
        }
    }
}
