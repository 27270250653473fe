/* See emu_controls.h. A bug is a template parameter, so that the kernel without it is what ships.
 */
#include "runtime/kernels/gpu.cuh"
#include "tests/cuda/emu_controls.h"

template <int BUG> static __global__ void block_sum_kernel(float *out, const float *x)
{
    __shared__ float part[CONTROL_THREADS];
    const int t = (int)threadIdx.x;
    part[t] = x[blockIdx.x * CONTROL_THREADS + t];
    if (BUG != BUG_UNINITIALISED)
        __syncthreads();
    else if (t == 5)
        part[t] = part[(t + 1) % CONTROL_THREADS];
    if (BUG == BUG_TWO_BARRIERS) {
        if (t < 64)
            __syncthreads();
        else
            __syncthreads();
    }
    for (int o = CONTROL_THREADS / 2; o > 0; o >>= 1) {
        if (t < o) {
            part[t] += part[t + o];
            if (BUG == BUG_DIVERGENT)
                __syncthreads();
        }
        if (BUG != BUG_DIVERGENT && !(BUG == BUG_NO_BARRIER && o == 32))
            __syncthreads();
    }
    if (t == 0)
        out[(int)blockIdx.x + (BUG == BUG_GLOBAL_OVERRUN) - (BUG == BUG_GLOBAL_UNDERRUN)] = part[0];
}

template <int BUG> static __global__ void warp_sum_kernel(float *out, const float *x)
{
    const int lane = (int)threadIdx.x % 32;
    float v = x[blockIdx.x * 32 + lane];
    if (BUG == BUG_PARTIAL_SHUFFLE && lane >= 16)
        return;
    v = ps_gpu_warp_sum(v);
    if (lane == 0)
        out[blockIdx.x] = v;
}

/* 128 threads, each copies 16 bytes of a tile of 512 floats and reads what others copied. */
template <int BUG> static __global__ void pipeline_kernel(float *out, const float *x, int tiles)
{
    PS_DYN_SHARED(float, stage);
    const int t = (int)threadIdx.x;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (BUG == BUG_SHARED_PAST && t == 0)
        stage[2 * 512] = 1.0f;
    if (BUG == BUG_SHARED_BEFORE && t == 0)
        stage[-1] = 1.0f;
    ps_gpu_cp_async16(stage + t * 4, x + t * 4, 16);
    ps_gpu_cp_commit();
    for (int i = 0; i < tiles; i++) {
        const int next = i + 1 < tiles ? i + 1 : i;
        ps_gpu_cp_async16(stage + ((i + 1) & 1) * 512 + t * 4, x + next * 512 + t * 4,
                          i + 1 < tiles ? 16 : 0);
        ps_gpu_cp_commit();
        if (BUG == BUG_ONE_GROUP_FEWER)
            ps_gpu_cp_wait<2>();
        else if (BUG != BUG_NO_COPY_WAIT)
            ps_gpu_cp_wait<1>();
        __syncthreads();
        for (int k = 0; k < 4; k++)
            sum[k] += stage[(i & 1) * 512 + 511 - (t * 4 + k)];
        if (BUG != BUG_NO_BARRIER)
            __syncthreads();
    }
    if (BUG != BUG_COPY_LEFT)
        ps_gpu_cp_wait<0>();
    for (int k = 0; k < 4; k++)
        out[t * 4 + k] = sum[k];
}

template <int BUG>
static __global__ void matmul_kernel(float *d, const uint16_t *a, const uint16_t *b)
{
    constexpr int LD = BUG == BUG_BANK_CONFLICT ? 32 : 24; /* rows 3 chunks apart: none */
    __shared__ __align__(16) uint16_t sa[16 * LD];
    __shared__ __align__(16) uint16_t sb[16 * LD];
    const int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    for (int i = lane; i < 256; i += 32) {
        sa[i / 16 * LD + i % 16] = a[i];
        sb[i / 16 * LD + i % 16] = b[i];
    }
    if (BUG != BUG_NO_SYNCWARP)
        __syncwarp();
    uint32_t ra[4], rb[4];
    ps_gpu_ldmatrix4(ra, sa + (lane & 15) * LD + (lane >> 4) * 8);
    ps_gpu_ldmatrix4(rb, sb + ((lane & 7) + ((lane >> 4) << 3)) * LD + ((lane >> 3) & 1) * 8);
    for (int n = 0; n < 2; n++) {
        float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (BUG == BUG_SWAPPED_FRAGMENT)
            ps_gpu_mma_bf16(c, ra, rb[n], rb[n + 2]);
        else
            ps_gpu_mma_bf16(c, ra, rb[n * 2], rb[n * 2 + 1]);
        for (int e = 0; e < 4; e++)
            d[(g + e / 2 * 8) * 16 + n * 8 + t * 2 + e % 2] = c[e];
    }
}

struct double_args {
    float *y;
    const float *x;
    int n;
};

static __global__ void double_kernel(struct double_args p)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < p.n)
        p.y[i] = 2.0f * p.x[i];
}

int control_block_sum(void *stream, enum control_bug bug, float *out, const float *x, int blocks)
{
    switch (bug) {
    case BUG_NO_BARRIER:
        PS_LAUNCH(block_sum_kernel<BUG_NO_BARRIER>, blocks, CONTROL_THREADS, 0, stream, out, x);
        break;
    case BUG_DIVERGENT:
        PS_LAUNCH(block_sum_kernel<BUG_DIVERGENT>, blocks, CONTROL_THREADS, 0, stream, out, x);
        break;
    case BUG_TWO_BARRIERS:
        PS_LAUNCH(block_sum_kernel<BUG_TWO_BARRIERS>, blocks, CONTROL_THREADS, 0, stream, out, x);
        break;
    case BUG_GLOBAL_OVERRUN:
        PS_LAUNCH(block_sum_kernel<BUG_GLOBAL_OVERRUN>, blocks, CONTROL_THREADS, 0, stream, out, x);
        break;
    case BUG_GLOBAL_UNDERRUN:
        PS_LAUNCH(block_sum_kernel<BUG_GLOBAL_UNDERRUN>, blocks, CONTROL_THREADS, 0, stream, out,
                  x);
        break;
    case BUG_UNINITIALISED:
        PS_LAUNCH(block_sum_kernel<BUG_UNINITIALISED>, blocks, CONTROL_THREADS, 0, stream, out, x);
        break;
    default:
        PS_LAUNCH(block_sum_kernel<BUG_NONE>, blocks, CONTROL_THREADS, 0, stream, out, x);
    }
    return ps_gpu_check_launch();
}

int control_warp_sum(void *stream, enum control_bug bug, float *out, const float *x, int warps)
{
    if (bug == BUG_PARTIAL_SHUFFLE)
        PS_LAUNCH(warp_sum_kernel<BUG_PARTIAL_SHUFFLE>, warps, 32, 0, stream, out, x);
    else
        PS_LAUNCH(warp_sum_kernel<BUG_NONE>, warps, 32, 0, stream, out, x);
    return ps_gpu_check_launch();
}

int control_pipeline(void *stream, enum control_bug bug, float *out, const float *x, int tiles)
{
    const int smem = 2 * 512 * 4 - (bug == BUG_SHARED_SHORT ? 32 : 0);
    switch (bug) {
    case BUG_NO_BARRIER:
        PS_LAUNCH(pipeline_kernel<BUG_NO_BARRIER>, 1, CONTROL_THREADS, smem, stream, out, x, tiles);
        break;
    case BUG_NO_COPY_WAIT:
        PS_LAUNCH(pipeline_kernel<BUG_NO_COPY_WAIT>, 1, CONTROL_THREADS, smem, stream, out, x,
                  tiles);
        break;
    case BUG_ONE_GROUP_FEWER:
        PS_LAUNCH(pipeline_kernel<BUG_ONE_GROUP_FEWER>, 1, CONTROL_THREADS, smem, stream, out, x,
                  tiles);
        break;
    case BUG_SHARED_PAST:
        PS_LAUNCH(pipeline_kernel<BUG_SHARED_PAST>, 1, CONTROL_THREADS, smem, stream, out, x,
                  tiles);
        break;
    case BUG_SHARED_BEFORE:
        PS_LAUNCH(pipeline_kernel<BUG_SHARED_BEFORE>, 1, CONTROL_THREADS, smem, stream, out, x,
                  tiles);
        break;
    case BUG_COPY_LEFT:
        PS_LAUNCH(pipeline_kernel<BUG_COPY_LEFT>, 1, CONTROL_THREADS, smem, stream, out, x, tiles);
        break;
    default:
        PS_LAUNCH(pipeline_kernel<BUG_NONE>, 1, CONTROL_THREADS, smem, stream, out, x, tiles);
    }
    return ps_gpu_check_launch();
}

int control_matmul(void *stream, enum control_bug bug, float *d, const uint16_t *a,
                   const uint16_t *b)
{
    if (bug == BUG_SWAPPED_FRAGMENT)
        PS_LAUNCH(matmul_kernel<BUG_SWAPPED_FRAGMENT>, 1, 32, 0, stream, d, a, b);
    else if (bug == BUG_NO_SYNCWARP)
        PS_LAUNCH(matmul_kernel<BUG_NO_SYNCWARP>, 1, 32, 0, stream, d, a, b);
    else if (bug == BUG_BANK_CONFLICT)
        PS_LAUNCH(matmul_kernel<BUG_BANK_CONFLICT>, 1, 32, 0, stream, d, a, b);
    else
        PS_LAUNCH(matmul_kernel<BUG_NONE>, 1, 32, 0, stream, d, a, b);
    return ps_gpu_check_launch();
}

int control_double(void *stream, enum control_bug bug, float *y, const float *x, int n)
{
    (void)bug;
    const struct double_args p = {y, x, n};
    PS_LAUNCH(double_kernel, (n + 255) / 256, 256, 0, stream, p);
    return ps_gpu_check_launch();
}
