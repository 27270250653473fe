/* The emulation of CUDA on the host, as device code sees it. Included by runtime/kernels/gpu.cuh
 * with -DPS_CUDA_EMU; tests and the plug-in see the toolkit's own cuda_runtime_api.h, whose
 * functions the emulation implements, and tests/cuda_emu/emu_host.h.
 *
 * Build: g++ -x c++ -std=c++17 -DPS_CUDA_EMU -I. -I$CUDA/include -fno-strict-aliasing
 * -Wno-unknown-pragmas x.cu; link tests/cuda_emu/emu_*.cpp, -lstdc++ -lpthread; do not strip (the
 * symbol table tells what is __shared__).
 *
 * Threads of a block are fibers that switch only at barriers and warp operations, in random order;
 * blocks run one at a time in random order. Shared memory holds 0xFF before each block, device
 * memory when it is allocated. cp.async poisons its destination and delivers at the wait. The last
 * lane to come to a warp operation computes it for all. A stream is a thread that holds an
 * operation back until something demands it, or for a random time. What breaks a rule prints a line
 * "emu: ..." with the kernel, the block and the seed, and ends the process with code 3.
 *
 * Rules that are checked: barriers and warp operations met at one source line by all their threads;
 * no thread ends while others wait; full masks; source lanes inside the mask; whole warps for mma
 * and ldmatrix; cp.async and ldmatrix addresses in shared memory, aligned; no copy left unwaited;
 * bounds of dynamic shared memory; bounds of device allocations (a guard page at the end, a canary
 * inside); kernel pointers are device or pinned memory; no default stream; launch limits; no CUDA
 * call in a host function. Device addresses cannot be read or written by host code: kernels run on
 * a second mapping, and launches translate their pointer arguments and the pointers inside struct
 * arguments. Device memory must therefore hold no pointers.
 *
 * Not modelled: preemption between synchronisation points (ThreadSanitizer sees those races), the
 * order of additions inside an mma, weak memory order, registers, approximate
 * functions' rounding, several blocks at once, graphs, bounds between neighbours inside one
 * allocation. */
#ifndef PS_TESTS_CUDA_EMU_H
#define PS_TESTS_CUDA_EMU_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <tuple>
#include <type_traits>

/* The toolkit's headers define these only where nobody did. */
#define __device__
#define __host__
#define __global__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static
#include <cuda_runtime_api.h>
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#undef __launch_bounds__
#define __launch_bounds__(...)

/* Hidden: the plug-in and a test program may hold an emulation each. */
#pragma GCC visibility push(hidden)
namespace emu
{

struct thread_index {
    uint3 tid;
};

struct block_index {
    uint3 bid;
    dim3 bdim, gdim;
    void *dyn; /* dynamic shared memory */
};

extern thread_index *cur; /* the running thread; one block runs at a time */
extern block_index blk;

enum warp_kind {
    SHFL_IDX,
    SHFL_UP,
    SHFL_DOWN,
    SHFL_XOR,
    WARP_SYNC,
    WARP_VOTE,
    WARP_LDMATRIX,
    WARP_LDMATRIX_TRANS,
    WARP_MMA
};

/* Returns the number of threads of the block whose pred is not 0. */
int block_barrier(int pred, const char *file, int line);
void warp_sync(uint32_t mask, const char *file, int line);
uint64_t warp_shuffle(uint32_t mask, uint64_t v, warp_kind kind, int arg, int width,
                      const char *file, int line);
uint32_t warp_ballot(uint32_t mask, int pred, const char *file, int line);
void cp_async16(void *shared, const void *global, int bytes, const char *file, int line);
void cp_commit();
void cp_wait(int n, const char *file, int line);
void ldmatrix4(uint32_t r[4], const void *shared, bool trans, const char *file, int line);
void mma_bf16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1, const char *file,
              int line);
[[noreturn]] void trap(const char *file, int line);

/* The kernel's address for a pointer argument: device memory in the second mapping, pinned
 * memory and NULL as they are; anything else ends the process. */
void *argument_pointer(const char *kernel, const void *p);
/* Translates every 8-byte word of a struct argument that is a device address. */
void argument_words(void *words, size_t bytes);

cudaError_t launch(const char *name, const void *kernel, dim3 grid, dim3 block, size_t smem,
                   void *stream, std::function<void()> body);

template <class T> void translate_argument(const char *kernel, T &v)
{
    if constexpr (std::is_pointer_v<T>)
        v = reinterpret_cast<T>(
            argument_pointer(kernel, reinterpret_cast<const void *>(const_cast<const void *>(
                                         static_cast<const volatile void *>(v)))));
    else if constexpr (std::is_class_v<T>) {
        static_assert(std::is_trivially_copyable_v<T>, "kernel argument");
        argument_words(&v, sizeof v);
    }
}

/* Arguments are evaluated, converted and translated now, as a launch does. */
template <class... P, class... A>
cudaError_t launch_kernel(const char *name, void (*k)(P...), dim3 grid, dim3 block, size_t smem,
                          const void *stream, A... a)
{
    std::tuple<std::remove_cv_t<P>...> args(static_cast<P>(a)...);
    std::apply([&](auto &...p) { (translate_argument(name, p), ...); }, args);
    return launch(name, reinterpret_cast<const void *>(k), grid, block, smem,
                  const_cast<void *>(stream), [k, args] { std::apply(k, args); });
}

template <class T>
T shuffle(uint32_t mask, T v, warp_kind kind, int arg, int width, const char *file, int line)
{
    static_assert(sizeof(T) <= 8, "shuffles move 4 or 8 bytes");
    uint64_t u = 0;
    memcpy(&u, &v, sizeof v);
    u = warp_shuffle(mask, u, kind, arg, width, file, line);
    memcpy(&v, &u, sizeof v);
    return v;
}

static inline uint32_t mask_or_full(uint32_t m = 0xffffffffu)
{
    return m;
}
static inline int width_or_warp(int w = 32)
{
    return w;
}

} // namespace emu
#pragma GCC visibility pop

#define threadIdx (emu::cur->tid)
#define blockIdx (emu::blk.bid)
#define blockDim (emu::blk.bdim)
#define gridDim (emu::blk.gdim)
#define warpSize 32

#define PS_LAUNCH(kernel, grid, block, smem, stream, ...)                                          \
    ((void)emu::launch_kernel(#kernel, kernel, grid, block, smem, stream, ##__VA_ARGS__))
#define PS_DYN_SHARED(T, name) T *const name = reinterpret_cast<T *>(emu::blk.dyn)

#define EMU_HERE __FILE__, __LINE__
#define __syncthreads() ((void)emu::block_barrier(0, EMU_HERE))
#define __syncthreads_count(p) emu::block_barrier(!!(p), EMU_HERE)
#define __syncthreads_or(p) (emu::block_barrier(!!(p), EMU_HERE) != 0)
#define __syncthreads_and(p) (emu::block_barrier(!(p), EMU_HERE) == 0)
#define __syncwarp(...) emu::warp_sync(emu::mask_or_full(__VA_ARGS__), EMU_HERE)
#define EMU_SHUFFLE(kind, m, v, a, ...)                                                            \
    emu::shuffle(m, v, emu::kind, (int)(a), emu::width_or_warp(__VA_ARGS__), EMU_HERE)
#define __shfl_sync(m, v, a, ...) EMU_SHUFFLE(SHFL_IDX, m, v, a, ##__VA_ARGS__)
#define __shfl_up_sync(m, v, a, ...) EMU_SHUFFLE(SHFL_UP, m, v, a, ##__VA_ARGS__)
#define __shfl_down_sync(m, v, a, ...) EMU_SHUFFLE(SHFL_DOWN, m, v, a, ##__VA_ARGS__)
#define __shfl_xor_sync(m, v, a, ...) EMU_SHUFFLE(SHFL_XOR, m, v, a, ##__VA_ARGS__)
#define __ballot_sync(m, p) emu::warp_ballot(m, !!(p), EMU_HERE)
#define __any_sync(m, p) (emu::warp_ballot(m, !!(p), EMU_HERE) != 0)
#define __all_sync(m, p) (emu::warp_ballot(m, !(p), EMU_HERE) == 0)
#define ps_gpu_cp_async16(s, g, n) emu::cp_async16(s, g, n, EMU_HERE)
#define ps_gpu_cp_commit() emu::cp_commit()
template <int N>
inline void ps_gpu_cp_wait(const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    emu::cp_wait(N, file, line);
}
#define ps_gpu_ldmatrix4(r, s) emu::ldmatrix4(r, s, false, EMU_HERE)
#define ps_gpu_ldmatrix4_trans(r, s) emu::ldmatrix4(r, s, true, EMU_HERE)
#define ps_gpu_mma_bf16(d, a, b0, b1) emu::mma_bf16(d, a, b0, b1, EMU_HERE)
#define __trap() emu::trap(EMU_HERE)

#include "tests/cuda_emu/emu_math.h"

#endif
