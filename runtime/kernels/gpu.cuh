/* What every .cu file includes: the toolkit, or with -DPS_CUDA_EMU the host emulation.
 *
 * Rules that keep one source compiling with both nvcc and a host C++ compiler:
 *  - kernels are launched by PS_LAUNCH alone, never on the default stream; a template with several
 *    arguments is put into parentheses: PS_LAUNCH((k<64, true>), grid, block, 0, stream, x)
 *  - dynamic shared memory through PS_DYN_SHARED, more than 48 KiB after cudaFuncSetAttribute
 *  - __shared__ only inside functions, uninitialised; no other static variable inside a function
 *  - functions with __shared__ variables are static
 *  - inline assembly only here; no cooperative groups, no float atomics, no spin-waits
 * The instructions below are held against NVIDIA's Parallel Thread Execution ISA, formula by formula,
 * by tests/cuda/test_fragment_layout.c: Matrix Fragments for mma.m16n8k16 with floating point type
 * (#warp-level-matrix-fragment-mma-16816-float), ldmatrix (#warp-level-matrix-instructions-ldmatrix),
 * cp.async (#data-movement-and-conversion-instructions-cp-async).
 * After the launches: `return ps_gpu_check_launch();`. */
#ifndef PS_KERNELS_GPU_H
#define PS_KERNELS_GPU_H

#include <stdint.h>

#include "runtime/base/status.h"

#ifdef PS_CUDA_EMU
#include "tests/cuda_emu/emu.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* Queue kernel(...) on `stream`, a cudaStream_t or void *. smem: bytes of dynamic shared memory. */
#define PS_LAUNCH(kernel, grid, block, smem, stream, ...)                                          \
    (kernel)<<<(grid), (block), (smem), (cudaStream_t)(stream)>>>(__VA_ARGS__)

/* T *const name: the block's dynamic shared memory, 16-byte aligned, uninitialised. */
#define PS_DYN_SHARED(T, name)                                                                     \
    extern __shared__ __align__(16) unsigned char ps_gpu_dyn_shared[];                             \
    T *const name = reinterpret_cast<T *>(ps_gpu_dyn_shared)

/* cp.async.cg: start copying 16 bytes from global to shared memory, both 16-byte aligned; only the
 * first `bytes` (0 to 16) are read, the others become zero. The address must be valid even for 0.
 */
__device__ __forceinline__ void ps_gpu_cp_async16(void *shared, const void *global, int bytes)
{
    const unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(global),
                 "r"(bytes)
                 : "memory");
}

/* Close this thread's group of copies; a group may be empty. */
__device__ __forceinline__ void ps_gpu_cp_commit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/* Wait until at most N of this thread's newest groups are under way. Others see the bytes only
 * after a barrier. */
template <int N> __device__ __forceinline__ void ps_gpu_cp_wait()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

/* ldmatrix.x4: four 8 x 8 matrices of 16 bits. Lane l gives the address of row l % 8 of matrix
 * l / 8 (16 bytes, aligned, shared); r[i] receives of matrix i: row l / 4, columns 2 (l % 4), + 1.
 * All 32 lanes, converged. */
__device__ __forceinline__ void ps_gpu_ldmatrix4(uint32_t r[4], const void *shared)
{
    const unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* The same with each matrix transposed: r[i] receives rows 2 (l % 4), + 1 of column l / 4. */
__device__ __forceinline__ void ps_gpu_ldmatrix4_trans(uint32_t r[4], const void *shared)
{
    const unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* mma.m16n8k16, bf16, fp32 accumulators: D (16, 8) += A (16, 16) B (16, 8). With g = lane / 4 and
 * t = lane % 4, the lower k (or n) in the low half of a register:
 *   a[0] A[g][2t..], a[1] A[g+8][2t..], a[2] A[g][2t+8..], a[3] A[g+8][2t+8..]
 *   b0 B[2t..][g], b1 B[2t+8..][g];  d[0..1] D[g][2t..], d[2..3] D[g+8][2t..]
 * All 32 lanes, converged. */
__device__ __forceinline__ void ps_gpu_mma_bf16(float d[4], const uint32_t a[4], uint32_t b0,
                                                uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

/* Sum and maximum over the 32 lanes of a warp, the same bits in every lane; all lanes converged. A
 * butterfly: the order of additions is fixed. */
template <class T> __device__ __forceinline__ T ps_gpu_warp_sum(T v)
{
#pragma unroll
    for (int o = 16; o > 0; o >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}

__device__ __forceinline__ float ps_gpu_warp_max(float v)
{
#pragma unroll
    for (int o = 16; o > 0; o >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}

/* Whether the launches since the last check of this host thread were accepted: 0 or PS_ECUDA. */
static inline int ps_gpu_check_launch()
{
    return cudaGetLastError() == cudaSuccess ? 0 : PS_ECUDA;
}

#endif
