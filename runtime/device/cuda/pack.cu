/* Copies of a matrix in another element type, for operands that the matrix library does not take:
 * see cuda_internal.h. */
#include "runtime/kernels/gpu.cuh"

#include <errno.h>

#include <cuda_fp16.h>

#include "runtime/device/cuda/cuda_internal.h"

#define THREADS 256
#define PER_THREAD 4
#define GRID_Y 32768

static __device__ __forceinline__ float to_f32(float v)
{
    return v;
}
static __device__ __forceinline__ float to_f32(__nv_bfloat16 v)
{
    return __bfloat162float(v);
}
static __device__ __forceinline__ float to_f32(__half v)
{
    return __half2float(v);
}
static __device__ __forceinline__ void store(float *p, float v)
{
    *p = v;
}
static __device__ __forceinline__ void store(__nv_bfloat16 *p, float v)
{
    *p = __float2bfloat16_rn(v);
}

/* grid (blocks of columns, rows, 1); rows beyond the grid in further turns */
template <class D, class S>
__global__ void __launch_bounds__(THREADS)
    pack_kernel(D *dst, size_t dst_ld, const S *src, size_t src_ld, size_t rows, size_t cols)
{
    const size_t first = (size_t)blockIdx.x * THREADS * PER_THREAD + threadIdx.x;
    for (size_t r = blockIdx.y; r < rows; r += gridDim.y) {
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            const size_t c = first + (size_t)i * THREADS;
            if (c < cols)
                store(dst + r * dst_ld + c, to_f32(src[r * src_ld + c]));
        }
    }
}

template <class D, class S>
static int launch(void *stream, void *dst, size_t dst_ld, const void *src, size_t src_ld,
                  size_t rows, size_t cols)
{
    const dim3 grid((unsigned)((cols + THREADS * PER_THREAD - 1) / (THREADS * PER_THREAD)),
                    (unsigned)(rows < GRID_Y ? rows : GRID_Y));
    PS_LAUNCH((pack_kernel<D, S>), grid, dim3(THREADS), 0, stream, static_cast<D *>(dst), dst_ld,
              static_cast<const S *>(src), src_ld, rows, cols);
    return ps_gpu_check_launch();
}

template <class D>
static int launch_to(void *stream, void *dst, size_t dst_ld, const void *src, size_t src_ld,
                     enum ps_dtype src_dtype, size_t rows, size_t cols)
{
    switch (src_dtype) {
    case PS_DTYPE_F32:
        return launch<D, float>(stream, dst, dst_ld, src, src_ld, rows, cols);
    case PS_DTYPE_BF16:
        return launch<D, __nv_bfloat16>(stream, dst, dst_ld, src, src_ld, rows, cols);
    case PS_DTYPE_F16:
        return launch<D, __half>(stream, dst, dst_ld, src, src_ld, rows, cols);
    default:
        return -EINVAL;
    }
}

extern "C" int ps__cuda_pack(void *stream, void *dst, size_t dst_ld, enum ps_dtype dst_dtype,
                             const void *src, size_t src_ld, enum ps_dtype src_dtype, size_t rows,
                             size_t cols)
{
    if (rows == 0 || cols == 0)
        return 0;
    if (src_ld == cols && dst_ld == cols) {
        cols *= rows;
        src_ld = dst_ld = cols;
        rows = 1;
    }
    if ((cols + THREADS * PER_THREAD - 1) / (THREADS * PER_THREAD) > 0x7FFFFFFFu)
        return -EINVAL;
    if (dst_dtype == PS_DTYPE_F32)
        return launch_to<float>(stream, dst, dst_ld, src, src_ld, src_dtype, rows, cols);
    if (dst_dtype == PS_DTYPE_BF16)
        return launch_to<__nv_bfloat16>(stream, dst, dst_ld, src, src_ld, src_dtype, rows, cols);
    return -EINVAL;
}

extern "C" int ps__cuda_code_check(void)
{
    cudaFuncAttributes a;
    return (int)cudaFuncGetAttributes(&a, (const void *)pack_kernel<__nv_bfloat16, float>);
}
