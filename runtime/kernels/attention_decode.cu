/* Attention of one new token against a cache, and its launcher. See attention.h for the contract.
 *
 * Design: a block a head; its warps take 32 keys each in turn and keep their own softmax; the first
 * to the last warp's results are then joined in that order. The bits depend on the number of
 * visible keys and on WARPS, not on the device. Memory-bound: heads of one group read the same
 * keys, through L2. */
#include <errno.h>

#include "runtime/kernels/attention_row_internal.cuh"
#include "runtime/kernels/kernels_cuda.h"

enum { WARPS = 8 };

template <class T>
static __global__ void __launch_bounds__(WARPS * 32)
    attention_decode_kernel(const struct ps_attention_args a, int32_t begin, int32_t end)
{
    __shared__ float q[PS__ROW_DIM_MAX], o[WARPS][PS__ROW_DIM_MAX], p[WARPS][32];
    __shared__ float m[WARPS], l[WARPS];
    const int head = (int)blockIdx.x, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const size_t dim = (size_t)a.head_dim, kv = (size_t)(head / (a.n_head / a.n_kv_head)) * dim;
    struct ps__row row = {};
    row.m = -INFINITY;
    if (warp == 0)
        ps__row_fetch(q, (const T *)a.q + (size_t)head * dim, a.head_dim);
    __syncthreads(); /* q is there */
    ps__row_attend(&row, q, p[warp], a, (const T *)a.k + kv, (const T *)a.v + kv, begin + warp * 32,
                   end, WARPS);
    if (lane == 0) {
        m[warp] = row.m;
        l[warp] = row.l;
    }
#pragma unroll
    for (int i = 0; i < PS__ROW_COLS; i++)
        o[warp][lane + 32 * i] = row.o[i];
    __syncthreads(); /* the warps' results are there */
    float top = -INFINITY, sum = 0;
    for (int w = 0; w < WARPS; w++)
        top = fmaxf(top, m[w]);
    top = top == -INFINITY ? 0.0f : top;
    for (int w = 0; w < WARPS; w++)
        sum += l[w] * expf(m[w] - top);
    for (int c = (int)threadIdx.x; c < a.head_dim; c += WARPS * 32) {
        float x = 0;
        for (int w = 0; w < WARPS; w++)
            x += o[w][c] * expf(m[w] - top);
        ps__row_put((T *)a.out + (size_t)head * dim + c, x / sum);
    }
}

extern "C" int ps_attention_decode_cuda(void *stream, const struct ps_attention_args *args,
                                        int32_t n_past)
{
    if (!args || n_past < 0 || n_past >= INT32_MAX - WARPS * 32)
        return -EINVAL;
    if (args->n_head < 1 || args->n_kv_head < 1 || args->n_head % args->n_kv_head != 0)
        return -EINVAL;
    if (args->head_dim < 1 || args->head_dim > PS__ROW_DIM_MAX || args->sliding_window < 0)
        return -EINVAL;
    const int32_t end = n_past + 1, window = args->sliding_window;
    const int32_t begin = window > 0 && window < end ? end - window : 0;
    if (args->dtype == PS_DTYPE_BF16)
        PS_LAUNCH(attention_decode_kernel<__nv_bfloat16>, (unsigned)args->n_head, WARPS * 32, 0,
                  stream, *args, begin, end);
    else if (args->dtype == PS_DTYPE_F32)
        PS_LAUNCH(attention_decode_kernel<float>, (unsigned)args->n_head, WARPS * 32, 0, stream,
                  *args, begin, end);
    else
        return -EINVAL;
    return ps_gpu_check_launch();
}
