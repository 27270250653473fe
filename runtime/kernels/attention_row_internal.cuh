/* Attention of one query by one warp, for any head_dim up to 512 and both dtypes: what
 * attention_plain.cu and attention_decode.cu share.
 *
 * Design: 32 keys at a time. A lane computes the score of one key; the probabilities go through
 * shared memory; then a lane owns every 32nd column and adds the 32 keys' values to it in ascending
 * order. */
#ifndef PS_KERNELS_ATTENTION_ROW_INTERNAL_CUH
#define PS_KERNELS_ATTENTION_ROW_INTERNAL_CUH

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/kernels/attention.h"
#include "runtime/kernels/gpu.cuh"

enum { PS__ROW_DIM_MAX = 512, PS__ROW_COLS = PS__ROW_DIM_MAX / 32 };

static __device__ __forceinline__ float ps__row_get(const float *x)
{
    return *x;
}
static __device__ __forceinline__ float ps__row_get(const __nv_bfloat16 *x)
{
    return __bfloat162float(*x);
}
static __device__ __forceinline__ void ps__row_put(float *x, float v)
{
    *x = v;
}
static __device__ __forceinline__ void ps__row_put(__nv_bfloat16 *x, float v)
{
    *x = __float2bfloat16_rn(v);
}

/* v as an operand of a product with tensors of T. */
template <class T> static __device__ __forceinline__ float ps__row_operand(float v)
{
    T x;
    ps__row_put(&x, v);
    return ps__row_get(&x);
}

/* sum over c of x[c] y[c], ascending; x fp32 in shared memory. 16 bytes of y at a time where they
 * are aligned: every lane reads a row of its own. */
template <class T>
static __device__ __forceinline__ float ps__row_dot(const float *x, const T *y, int dim)
{
    constexpr int N = 16 / (int)sizeof(T);
    float sum = 0;
    int c = 0;
    for (; (uintptr_t)y % 16 == 0 && c + N <= dim; c += N) {
        const uint4 chunk = *reinterpret_cast<const uint4 *>(y + c);
        const T *of = reinterpret_cast<const T *>(&chunk);
#pragma unroll
        for (int i = 0; i < N; i++)
            sum = fmaf(x[c + i], ps__row_get(of + i), sum);
    }
    for (; c < dim; c++)
        sum = fmaf(x[c], ps__row_get(y + c), sum);
    return sum;
}

/* A row of T to fp32 in shared memory, by one warp. */
template <class T>
static __device__ __forceinline__ void ps__row_fetch(float *to, const T *from, int dim)
{
    for (int c = (int)threadIdx.x % 32; c < dim; c += 32)
        to[c] = ps__row_get(from + c);
}

/* acc[i] += w[j] x[j][lane + 32 i] for the rows j < count, ascending; w in shared memory. */
template <class T>
static __device__ __forceinline__ void ps__row_add(float (&acc)[PS__ROW_COLS], const float *w,
                                                   const T *x, size_t ld, int count, int dim)
{
    const int lane = (int)threadIdx.x % 32;
    for (int j = 0; j < count; j++) {
#pragma unroll
        for (int i = 0; i < PS__ROW_COLS; i++) {
            if (lane + 32 * i < dim)
                acc[i] = fmaf(w[j], ps__row_get(x + (size_t)j * ld + lane + 32 * i), acc[i]);
        }
    }
}

/* Running softmax of a query: the same m and l in all lanes, o[i] is column lane + 32 i. */
struct ps__row {
    float m, l, o[PS__ROW_COLS];
};

/* Add the keys [begin, end), of every `step` times 32 the first 32. k, v: the head's columns of key
 * 0; q (dim,) and p (32,) in shared memory, the warp's own; whole warps. */
template <class T>
static __device__ __forceinline__ void
ps__row_attend(struct ps__row *r, const float *q, float *p, const struct ps_attention_args &a,
               const T *k, const T *v, int32_t begin, int32_t end, int step)
{
    const int lane = (int)threadIdx.x % 32;
    for (int32_t key = begin; key < end; key += 32 * step) {
        float s = -INFINITY;
        if (key + lane < end)
            s = a.scale * ps__row_dot(q, k + (size_t)(key + lane) * a.k_ld, a.head_dim);
        const float top = fmaxf(r->m, ps_gpu_warp_max(s));
        const float from = top == -INFINITY ? 0.0f : top, alpha = expf(r->m - from);
        const float mine = expf(s - from);
        r->m = top;
        r->l = r->l * alpha + ps_gpu_warp_sum(mine);
        __syncwarp(); /* nobody reads the last 32 probabilities any more */
        p[lane] = ps__row_operand<T>(mine);
        __syncwarp(); /* all are there */
#pragma unroll
        for (int i = 0; i < PS__ROW_COLS; i++)
            r->o[i] *= alpha;
        ps__row_add(r->o, p, v + (size_t)key * a.v_ld, a.v_ld, end - key < 32 ? end - key : 32,
                    a.head_dim);
    }
}

#endif
