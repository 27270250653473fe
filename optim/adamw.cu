/* AdamW on the device: see adamw.h for the formula. CPU reference: adamw.c, whose operation
 * sequence this repeats; the bits are equal. Built with --fmad=false (emulated: -ffp-contract=off):
 * fused where fmaf is written and nowhere else; division and square root are IEEE.
 *
 * Bytes moved per element: F32 28 (gradient read; weight and moments read and written), BF16 with
 * remainder 28 as well. One pass, 4 elements a thread (BF16: 8). */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/kernels/gpu.cuh"
#include "runtime/kernels/kernels_cuda.h"

#define THREADS 256

/* Several elements in one access. */
template <class T, int N> struct alignas(sizeof(T) * N) pack {
    T v[N];
};

/* v[i] = p[i] for i < count, 16 bytes at a time where vec and N elements are there. */
template <int N, bool vec, class T>
static __device__ __forceinline__ void load(T v[N], const T *p, unsigned count)
{
    constexpr int piece = sizeof(T) * N > 16 ? 16 / (int)sizeof(T) : N;
    if (vec && count == (unsigned)N) {
#pragma unroll
        for (int k = 0; k < N; k += piece) {
            pack<T, piece> x = *reinterpret_cast<const pack<T, piece> *>(p + k);
#pragma unroll
            for (int i = 0; i < piece; i++)
                v[k + i] = x.v[i];
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        v[i] = (unsigned)i < count ? p[i] : (T)0;
}

template <int N, bool vec, class T>
static __device__ __forceinline__ void store(T *p, const T v[N], unsigned count)
{
    constexpr int piece = sizeof(T) * N > 16 ? 16 / (int)sizeof(T) : N;
    if (vec && count == (unsigned)N) {
#pragma unroll
        for (int k = 0; k < N; k += piece) {
            pack<T, piece> x;
#pragma unroll
            for (int i = 0; i < piece; i++)
                x.v[i] = v[k + i];
            *reinterpret_cast<pack<T, piece> *>(p + k) = x;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        if ((unsigned)i < count)
            p[i] = v[i];
}

/* ps_master_join and ps_master_split of adamw.c. */
static __device__ __forceinline__ float master_join(uint16_t weight, uint16_t remainder)
{
    uint32_t hi = (uint16_t)(weight - (remainder >= 0x8000u));
    return __uint_as_float(hi << 16 | remainder);
}

static __device__ __forceinline__ void master_split(float master, uint16_t *weight,
                                                    uint16_t *remainder)
{
    uint32_t u = __float_as_uint(master);
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    uint32_t lo = u & 0xffffu;
    *weight = (uint16_t)(nan ? u >> 16 | 0x40u : (u >> 16) + (lo >= 0x8000u));
    *remainder = (uint16_t)(nan ? 0 : lo);
}

static __device__ __forceinline__ float update_element(const ps_adamw_cuda_args &a, float p,
                                                       float g, float *m, float *v)
{
    g = g * a.grad_scale;
    p = fmaf(-a.decay, p, p);
    float m_new = fmaf(a.beta1, *m, a.one_minus_beta1 * g);
    float v_new = fmaf(a.beta2, *v, (a.one_minus_beta2 * g) * g);
    float denominator = fmaf(sqrtf(v_new), a.rsqrt_c2, a.eps);
    *m = m_new;
    *v = v_new;
    return fmaf(-a.step_size, m_new / denominator, p);
}

/* split: the weight is BF16 with remainder. N elements a thread. */
template <bool split, bool vec, int N>
static __global__ void __launch_bounds__(THREADS) adamw_kernel(ps_adamw_cuda_args a)
{
    size_t at = ((size_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (at >= a.n)
        return;
    unsigned count = a.n - at < (size_t)N ? (unsigned)(a.n - at) : (unsigned)N;
    float g[N], m[N], v[N], p[N];
    uint16_t hi[N], lo[N];
    load<N, vec>(g, a.grad + at, count);
    load<N, vec>(m, a.exp_avg + at, count);
    load<N, vec>(v, a.exp_avg_sq + at, count);
    if (split) {
        load<N, vec>(hi, static_cast<const uint16_t *>(a.weight) + at, count);
        load<N, vec>(lo, a.remainder + at, count);
    } else {
        load<N, vec>(p, static_cast<const float *>(a.weight) + at, count);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (split)
            p[i] = master_join(hi[i], lo[i]);
        p[i] = update_element(a, p[i], g[i], &m[i], &v[i]);
        if (split)
            master_split(p[i], &hi[i], &lo[i]);
    }
    store<N, vec>(a.exp_avg + at, m, count);
    store<N, vec>(a.exp_avg_sq + at, v, count);
    if (split) {
        store<N, vec>(static_cast<uint16_t *>(a.weight) + at, hi, count);
        store<N, vec>(a.remainder + at, lo, count);
    } else {
        store<N, vec>(static_cast<float *>(a.weight) + at, p, count);
    }
}

template <bool split, int N> static int launch(void *stream, const struct ps_adamw_cuda_args *a)
{
    uintptr_t all = (uintptr_t)a->weight | (uintptr_t)a->grad | (uintptr_t)a->exp_avg |
                    (uintptr_t)a->exp_avg_sq | (split ? (uintptr_t)a->remainder : 0);
    size_t blocks = (a->n + (size_t)THREADS * N - 1) / ((size_t)THREADS * N);
    if (blocks > 0x7fffffff)
        return -EINVAL;
    if (all % 16 == 0)
        PS_LAUNCH((adamw_kernel<split, true, N>), (unsigned)blocks, THREADS, 0, stream, *a);
    else
        PS_LAUNCH((adamw_kernel<split, false, N>), (unsigned)blocks, THREADS, 0, stream, *a);
    return ps_gpu_check_launch();
}

int ps_adamw_update_cuda(void *stream, const struct ps_adamw_cuda_args *args)
{
    if (args->weight_dtype != PS_DTYPE_F32 &&
        (args->weight_dtype != PS_DTYPE_BF16 || !args->remainder))
        return -EINVAL;
    if (!args->n)
        return 0;
    return args->weight_dtype == PS_DTYPE_F32 ? launch<false, 4>(stream, args)
                                              : launch<true, 8>(stream, args);
}
