/* Softmax cross-entropy: see cross_entropy.h.
 *
 * Design: one pass over memory for the sum of exponentials: each block of 4096 columns takes its
 * own maximum (the block is then in cache) and the blocks are joined in double with a running
 * maximum. A second pass writes the gradient as exp(z - max) * (dscale / sum); the target's element
 * is done apart in double, for its p - 1 cancels where training succeeds. */
#include "runtime/kernels/cross_entropy.h"

#include <math.h>

#include "runtime/kernels/cross_entropy_internal.h"
#include "runtime/kernels/exp_internal.h"
#include "runtime/kernels/fp32_block_internal.h"

static void block_sum(const float *z, size_t n, float *max, float *sum)
{
    float m = -INFINITY, lane[16] = {0};
    for (size_t j = 0; j < n; j++)
        m = z[j] > m ? z[j] : m;
    m = isfinite(m) ? m : 0;
    size_t whole = n - n % 16;
    for (size_t j = 0; j < whole; j += 16)
        for (size_t l = 0; l < 16; l++)
            lane[l] += ps__exp(z[j + l] - m);
    for (size_t j = whole; j < n; j++)
        lane[j - whole] += ps__exp(z[j] - m);
    *max = m;
    *sum = ps__sum_lanes16(lane);
}

static void scale_exp(float *z, size_t n, float max, float scale)
{
    for (size_t j = 0; j < n; j++)
        z[j] = ps__exp(z[j] - max) * scale;
}

struct job {
    float *logits;
    size_t ld, rows, vocab;
    const int32_t *target;
    double *loss;
    float dscale;
    int write_grad;
    void (*block)(const float *, size_t, float *, float *);
    void (*scale)(float *, size_t, float, float);
};

static void do_row(const struct job *job, size_t r)
{
    float *z = job->logits + r * job->ld;
    float z_target = z[job->target[r]];
    double sum = 0;
    float max = -INFINITY;
    for (size_t j = 0; j < job->vocab; j += PS__CROSS_ENTROPY_COLUMNS) {
        float block_max, block;
        job->block(z + j, ps__min_size(PS__CROSS_ENTROPY_COLUMNS, job->vocab - j), &block_max,
                   &block);
        if (block == 0) /* nothing but -Inf */
            continue;
        if (block_max > max) {
            sum *= exp((double)max - (double)block_max); /* 0 * exp(-Inf) the first time */
            max = block_max;
        }
        sum += (double)block * exp((double)block_max - (double)max);
    }
    job->loss[r] = log(sum) + ((double)max - (double)z_target);
    if (!job->write_grad)
        return;
    job->scale(z, job->vocab, max, (float)((double)job->dscale / sum));
    double p = exp((double)z_target - (double)max) / sum;
    z[job->target[r]] = (float)((p - 1) * (double)job->dscale);
}

static void run_rows(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t rows = ps__task_rows(job->vocab);
    size_t end = ps__min_size((task + 1) * rows, job->rows);
    for (size_t r = task * rows; r < end; r++)
        do_row(job, r);
}

void ps_cross_entropy(struct ps_pool *pool, enum ps_isa isa, float *logits, size_t ld, size_t rows,
                      size_t vocab, const int32_t *target, double *loss, float dscale,
                      int write_grad)
{
    int fast = isa >= PS_ISA_AVX512;
    struct job job = {.logits = logits,
                      .ld = ld,
                      .rows = rows,
                      .vocab = vocab,
                      .target = target,
                      .loss = loss,
                      .dscale = dscale,
                      .write_grad = write_grad,
                      .block = fast ? ps__cross_entropy_block_avx512 : block_sum,
                      .scale = fast ? ps__cross_entropy_scale_avx512 : scale_exp};
    size_t task_rows = ps__task_rows(vocab);
    ps_pool_run(pool, run_rows, &job, (rows + task_rows - 1) / task_rows);
}
