/* Matrix products on the CUDA device: what ps_gemm computes, queued on a stream.
 *
 * Behind it lies cuBLASLt (runtime/device/cuda/blas*.c), in tests an emulated one
 * (tests/cuda_emu/emu_cublaslt.cpp). */
#ifndef PS_DEVICE_CUDA_BLAS_H
#define PS_DEVICE_CUDA_BLAS_H

#include <stddef.h>

#include "runtime/base/status.h"
#include "runtime/kernels/gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_cuda_blas;

/* Bytes of device memory for products whose m * n is at most mn_max: the library's workspace, and
 * room for one fp32 (m, n) accumulator where the output cannot hold it. */
size_t ps_cuda_blas_workspace_bytes(size_t mn_max);

/* `workspace`: device memory, 256-byte aligned, of ps_cuda_blas_workspace_bytes(mn_max), borrowed
 * until close; used by one stream at a time. Returns 0, -ENOMEM or PS_ECUDA. */
int ps_cuda_blas_open(struct ps_cuda_blas **out, void *workspace, size_t workspace_bytes,
                      struct ps_error *err) PS_WARN_UNUSED;

/* After the stream has passed the last product. NULL is legal. */
void ps_cuda_blas_close(struct ps_cuda_blas *b);

/* Queue args as in gemm.h, all addresses in device memory, on `stream` (a cudaStream_t, not the
 * default stream). args is read before it returns; the operands must live until the stream has
 * passed. Results agree with ps_gemm within tolerance and are the same from run to run for one
 * shape, device and library version. Returns 0, -EINVAL for a shape that it does not take, or
 * PS_ECUDA. Allocates nothing on the device; the first call of a shape may choose an algorithm, so
 * warm up every shape once. */
int ps_cuda_gemm(struct ps_cuda_blas *b, void *stream,
                 const struct ps_gemm_args *args) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
