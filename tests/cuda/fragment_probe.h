/* One instruction of runtime/kernels/gpu.cuh at a time, its registers in memory: what
 * test_fragment_layout.c holds against NVIDIA's documentation. From C; for the emulation and for a
 * GPU.
 *
 * Each launcher runs `count` warps on `stream` and returns 0 or PS_ECUDA. Pointers are device
 * memory; lane l of warp w has its registers at [w][l]. */
#ifndef PS_TESTS_CUDA_FRAGMENT_PROBE_H
#define PS_TESTS_CUDA_FRAGMENT_PROBE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ps_gpu_mma_bf16: d (count, 32, 4) += a (count, 32, 4) b (count, 32, 2) */
int probe_mma(void *stream, int count, float *d, const uint32_t *a, const uint32_t *b);
/* ps_gpu_ldmatrix4, or _trans: lane l gives the address of element at[l] (a multiple of 8) of the
 * shared copy of x (1024 elements); r (count, 32, 4), at (count, 32). */
int probe_ldmatrix(void *stream, int count, uint32_t *r, const uint16_t *x, const int32_t *at,
                   int trans);
/* ps_gpu_cp_async16: lane l copies bytes[l] of the 16 bytes x[l] to its place y[l]; x, y (32, 16)
 */
int probe_cp_async(void *stream, unsigned char *y, const unsigned char *x, const int32_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
