/* Elements of F32, BF16 and F16 in device code: fp32 in registers, 16 bytes at a time in memory.
 * Private to the .cu files of runtime/kernels.
 *
 * A chunk is the 16 bytes of consecutive elements that one thread handles: 4 of F32, 8 of BF16 and
 * F16; the last chunk of a row may be short. Which thread has which chunk, and hence the order of
 * every sum, depends on the row length alone; whether a chunk moves as vectors (vec: all its
 * addresses are aligned) or element by element changes no bit. */
#ifndef PS_KERNELS_GPU_VEC_INTERNAL_H
#define PS_KERNELS_GPU_VEC_INTERNAL_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "runtime/base/dtype.h"
#include "runtime/kernels/gpu.cuh"

#include <cuda_fp16.h>

typedef __nv_bfloat16 ps__bf16;
typedef __half ps__f16;

#define PS__CHUNK_BYTES 16

template <class T> struct ps__chunk {
    static constexpr int elems = PS__CHUNK_BYTES / (int)sizeof(T);
};

/* What one access moves. */
template <int bytes> struct ps__word;
template <> struct ps__word<16> {
    typedef uint4 type;
};
template <> struct ps__word<8> {
    typedef uint2 type;
};

static __device__ __forceinline__ float ps__to_f32(float v)
{
    return v;
}
static __device__ __forceinline__ float ps__to_f32(ps__bf16 v)
{
    return __bfloat162float(v);
}
static __device__ __forceinline__ float ps__to_f32(ps__f16 v)
{
    return __half2float(v);
}

/* Nearest even; a NaN stays one. */
template <class T> __device__ __forceinline__ T ps__from_f32(float v);
template <> __device__ __forceinline__ float ps__from_f32<float>(float v)
{
    return v;
}
template <> __device__ __forceinline__ ps__bf16 ps__from_f32<ps__bf16>(float v)
{
    return __float2bfloat16_rn(v);
}
template <> __device__ __forceinline__ ps__f16 ps__from_f32<ps__f16>(float v)
{
    return __float2half_rn(v);
}

/* v[i] = p[i], i in [0, count), the others 0. vec: p is aligned to the smaller of 16 bytes and the
 * N elements, and a whole chunk moves at once. */
template <int N, bool vec, class T>
__device__ __forceinline__ void ps__load(float v[N], const T *p, unsigned count)
{
    if (vec && count >= (unsigned)N) {
        constexpr int piece = (int)sizeof(T) * N > 16 ? 16 / (int)sizeof(T) : N;
        typedef typename ps__word<piece *(int)sizeof(T)>::type word;
#pragma unroll
        for (int k = 0; k < N; k += piece) {
            word w = *reinterpret_cast<const word *>(p + k);
            T x[piece];
            memcpy(static_cast<void *>(x), &w, sizeof w);
#pragma unroll
            for (int i = 0; i < piece; i++)
                v[k + i] = ps__to_f32(x[i]);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        v[i] = (unsigned)i < count ? ps__to_f32(p[i]) : 0.0f;
}

/* p[i] = v[i], i in [0, count), rounded; p is global memory. The store is spelled as an intrinsic
 * because the compiler splits plain vector stores again where a scalar branch stands beside them.
 */
template <int N, bool vec, class T>
__device__ __forceinline__ void ps__store(T *p, const float v[N], unsigned count)
{
    if (vec && count >= (unsigned)N) {
        constexpr int piece = (int)sizeof(T) * N > 16 ? 16 / (int)sizeof(T) : N;
        typedef typename ps__word<piece *(int)sizeof(T)>::type word;
#pragma unroll
        for (int k = 0; k < N; k += piece) {
            T x[piece];
#pragma unroll
            for (int i = 0; i < piece; i++)
                x[i] = ps__from_f32<T>(v[k + i]);
            word w;
            memcpy(&w, x, sizeof w);
            __stcg(reinterpret_cast<word *>(p + k), w);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        if ((unsigned)i < count)
            p[i] = ps__from_f32<T>(v[i]);
}

/* As ps__load from element `at` of a tensor whose dtype (F32, BF16 or F16) is known at run time. */
template <int N, bool vec>
__device__ __forceinline__ void ps__load_any(float v[N], const void *p, enum ps_dtype dtype,
                                             size_t at, unsigned count)
{
    if (dtype == PS_DTYPE_F32)
        ps__load<N, vec>(v, static_cast<const float *>(p) + at, count);
    else if (dtype == PS_DTYPE_BF16)
        ps__load<N, vec>(v, static_cast<const ps__bf16 *>(p) + at, count);
    else
        ps__load<N, vec>(v, static_cast<const ps__f16 *>(p) + at, count);
}

/* Elements of the chunk that begins at `at` of a row of n. */
template <int N> __device__ __forceinline__ unsigned ps__chunk_count(size_t n, size_t at)
{
    return n - at < (size_t)N ? (unsigned)(n - at) : (unsigned)N;
}

/* ---- host side ---- */

static inline int ps__is_float(enum ps_dtype t)
{
    return t == PS_DTYPE_F32 || t == PS_DTYPE_BF16 || t == PS_DTYPE_F16;
}

static inline int ps__is_compute(enum ps_dtype t)
{
    return t == PS_DTYPE_F32 || t == PS_DTYPE_BF16;
}

static inline size_t ps__elem_bytes(enum ps_dtype t)
{
    return t == PS_DTYPE_F32 ? 4 : 2;
}

/* Whether every row of a tensor (first element at p, rows ld elements apart; NULL: yes) begins
 * where a chunk of `elems` elements of dtype t may be accessed as vectors. */
static inline int ps__rows_aligned(const void *p, size_t ld, enum ps_dtype t, int elems)
{
    size_t bytes = (size_t)elems * ps__elem_bytes(t);
    size_t align = bytes < 16 ? bytes : 16;
    return !p || ((uintptr_t)p % align == 0 && ld * ps__elem_bytes(t) % align == 0);
}

/* Chunks of a row of n elements. */
static inline size_t ps__chunks_per_row(size_t n, int elems)
{
    return (n + (size_t)elems - 1) / (size_t)elems;
}

/* Whether a 32-bit index counts the chunks of all rows. */
static inline int ps__chunks_fit(size_t rows, size_t per_row)
{
    return per_row == 0 || rows <= (size_t)0x7fffffff / per_row;
}

static inline unsigned ps__grid(size_t items, unsigned threads)
{
    return (unsigned)((items + threads - 1) / threads);
}

#endif
