/* Softmax cross-entropy on the device: see cross_entropy.h. CPU reference: cross_entropy.c.
 *
 * Bytes moved per logit: 4 for the loss alone, 12 with the gradient (read twice, written once; the
 * second pass goes backwards, for the end of the row is what the second-level cache still holds).
 *
 * Design: a block a row. A thread takes groups of 16 logits, each with its own maximum and an fp32
 * sum of exponentials, and joins them in fp64 under a running maximum, as the CPU joins its blocks;
 * the threads' sums are joined in fp64 in a fixed tree. Which thread has which logit depends on
 * vocab alone. */
#include <math.h>

#include "runtime/kernels/gpu_vec_internal.cuh"
#include "runtime/kernels/kernels_cuda.h"

#define THREADS 512
#define WARPS (THREADS / 32)
#define N 4     /* logits of a chunk */
#define GROUP 4 /* chunks of a group */

/* Exponential sum of some logits: sum of exp(z - max). max is -Inf while nothing but -Inf was seen.
 */
struct exp_sum {
    float max;
    double sum;
};

/* z as the CPU's block has it: a maximum that is no finite number becomes 0, NaN is ignored by it.
 */
static __device__ __forceinline__ void add_group(exp_sum *s, const float *z)
{
    float max = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < GROUP * N; i++)
        max = fmaxf(max, z[i]);
    max = isfinite(max) ? max : 0.0f;
#pragma unroll
    for (int i = 0; i < GROUP * N; i++)
        sum += expf(z[i] - max);
    if (sum == 0) /* nothing but -Inf */
        return;
    if (max > s->max) {
        s->sum *= (double)expf(s->max - max); /* 0 * exp(-Inf) the first time */
        s->max = max;
    }
    s->sum += (double)sum * (double)expf(max - s->max);
}

/* Join the sums of all threads; the result is the same in each. */
static __device__ __forceinline__ exp_sum join(exp_sum s)
{
    __shared__ float part_max[WARPS];
    __shared__ double part_sum[WARPS];
    unsigned warp = threadIdx.x / 32;
    float max = ps_gpu_warp_max(s.max);
    if (threadIdx.x % 32 == 0)
        part_max[warp] = max;
    __syncthreads();
    max = part_max[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++)
        max = fmaxf(max, part_max[w]);
    /* s.max is -Inf only where s.sum is 0 */
    double sum = s.sum == 0 ? 0 : s.sum * exp((double)s.max - (double)max);
    sum = ps_gpu_warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        part_sum[warp] = sum;
    __syncthreads();
    sum = part_sum[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++)
        sum += part_sum[w];
    exp_sum all = {max, sum};
    return all;
}

template <bool vec>
static __device__ __forceinline__ void write_gradient(float *z, size_t vocab, float max,
                                                      float scale, int32_t target, float at_target)
{
    size_t passes = (vocab + THREADS * N - 1) / (THREADS * N);
    for (size_t p = passes; p-- > 0;) {
        size_t j = p * (THREADS * N) + (size_t)threadIdx.x * N;
        if (j >= vocab)
            continue;
        unsigned count = ps__chunk_count<N>(vocab, j);
        float v[N];
        ps__load<N, vec>(v, z + j, count);
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] = j + (size_t)i == (size_t)target ? at_target : expf(v[i] - max) * scale;
        ps__store<N, vec>(z + j, v, count);
    }
}

template <bool vec>
static __global__ void __launch_bounds__(THREADS)
    cross_entropy_kernel(float *logits, size_t ld, size_t vocab, const int32_t *targets,
                         double *loss, float dscale, int write_grad)
{
    float *z = logits + blockIdx.x * ld;
    int32_t target = targets[blockIdx.x];
    if (target < 0) { /* the whole block */
        if (threadIdx.x == 0)
            loss[blockIdx.x] = 0;
        const float zero[N] = {0};
        for (size_t j = (size_t)threadIdx.x * N; write_grad && j < vocab; j += THREADS * N)
            ps__store<N, vec>(z + j, zero, ps__chunk_count<N>(vocab, j));
        return;
    }
    float z_target = z[target]; /* read by all before the barriers, overwritten after them */
    exp_sum s = {-INFINITY, 0};
    for (size_t base = (size_t)threadIdx.x * N; base < vocab; base += THREADS * N * GROUP) {
        float v[GROUP * N];
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            size_t j = base + (size_t)g * (THREADS * N);
            unsigned count = j < vocab ? ps__chunk_count<N>(vocab, j) : 0;
            ps__load<N, vec>(v + g * N, z + j, count);
#pragma unroll
            for (int i = 0; i < N; i++)
                v[g * N + i] = (unsigned)i < count ? v[g * N + i] : -INFINITY;
        }
        add_group(&s, v);
    }
    s = join(s);
    if (threadIdx.x == 0)
        loss[blockIdx.x] = log(s.sum) + ((double)s.max - (double)z_target);
    if (!write_grad)
        return;
    /* the target's p - 1 cancels where training succeeds: in double */
    double p = exp((double)z_target - (double)s.max) / s.sum;
    write_gradient<vec>(z, vocab, s.max, (float)((double)dscale / s.sum), target,
                        (float)((p - 1) * (double)dscale));
}

int ps_cross_entropy_cuda(void *stream, float *logits, size_t ld, size_t rows, size_t vocab,
                          const int32_t *target, double *loss, float dscale, int write_grad)
{
    if (!vocab || rows > 0x7fffffff)
        return -EINVAL;
    if (!rows)
        return 0;
    if (ps__rows_aligned(logits, ld, PS_DTYPE_F32, N))
        PS_LAUNCH(cross_entropy_kernel<true>, (unsigned)rows, THREADS, 0, stream, logits, ld, vocab,
                  target, loss, dscale, write_grad);
    else
        PS_LAUNCH(cross_entropy_kernel<false>, (unsigned)rows, THREADS, 0, stream, logits, ld,
                  vocab, target, loss, dscale, write_grad);
    return ps_gpu_check_launch();
}
