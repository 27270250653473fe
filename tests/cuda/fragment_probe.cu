/* See fragment_probe.h. */
#include "tests/cuda/fragment_probe.h"
#include "runtime/kernels/gpu.cuh"

enum { TILE_ELEMS = 1024 };

static __global__ void mma_probe_kernel(float *d, const uint32_t *a, const uint32_t *b)
{
    const unsigned at = blockIdx.x * 32 + threadIdx.x;
    float rd[4];
    uint32_t ra[4];
    for (int i = 0; i < 4; i++) {
        rd[i] = d[at * 4 + i];
        ra[i] = a[at * 4 + i];
    }
    ps_gpu_mma_bf16(rd, ra, b[at * 2], b[at * 2 + 1]);
    for (int i = 0; i < 4; i++)
        d[at * 4 + i] = rd[i];
}

static __global__ void ldmatrix_probe_kernel(uint32_t *r, const uint16_t *x, const int32_t *at,
                                             int trans)
{
    __shared__ __align__(16) uint16_t tile[TILE_ELEMS];
    const unsigned lane = threadIdx.x, me = blockIdx.x * 32 + lane;
    uint32_t rr[4];
    for (unsigned i = lane; i < TILE_ELEMS; i += 32)
        tile[i] = x[i];
    __syncwarp();
    if (trans)
        ps_gpu_ldmatrix4_trans(rr, tile + at[me]);
    else
        ps_gpu_ldmatrix4(rr, tile + at[me]);
    for (int i = 0; i < 4; i++)
        r[me * 4 + i] = rr[i];
}

static __global__ void cp_async_probe_kernel(unsigned char *y, const unsigned char *x,
                                             const int32_t *bytes)
{
    __shared__ __align__(16) unsigned char tile[32 * 16];
    const unsigned lane = threadIdx.x, from = (lane + 1) % 32;
    ps_gpu_cp_async16(tile + lane * 16, x + lane * 16, bytes[lane]);
    ps_gpu_cp_commit();
    ps_gpu_cp_wait<0>();
    __syncwarp(); /* the neighbour's copy is read */
    for (int i = 0; i < 16; i++)
        y[from * 16 + i] = tile[from * 16 + i];
}

int probe_mma(void *stream, int count, float *d, const uint32_t *a, const uint32_t *b)
{
    PS_LAUNCH(mma_probe_kernel, count, 32, 0, stream, d, a, b);
    return ps_gpu_check_launch();
}

int probe_ldmatrix(void *stream, int count, uint32_t *r, const uint16_t *x, const int32_t *at,
                   int trans)
{
    PS_LAUNCH(ldmatrix_probe_kernel, count, 32, 0, stream, r, x, at, trans);
    return ps_gpu_check_launch();
}

int probe_cp_async(void *stream, unsigned char *y, const unsigned char *x, const int32_t *bytes)
{
    PS_LAUNCH(cp_async_probe_kernel, 1, 32, 0, stream, y, x, bytes);
    return ps_gpu_check_launch();
}
