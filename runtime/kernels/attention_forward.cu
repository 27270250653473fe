/* Forward pass of causal attention on tensor cores, and its launcher. See attention.h for the
 * contract, attention_tile_internal.cuh for tiles and for what makes results independent of the
 * grid.
 *
 * Design: a block owns BR queries of one head and walks over tiles of BC keys with an online
 * softmax. Documents in its rows are taken one after the other, each with its own accumulators. K
 * of the next tile is copied while the softmax and P V run, V of this one while Q K^T runs: one
 * buffer each, two barriers a tile. With 32 rows a warp (MT = 2) a fragment of K or V read from
 * shared memory feeds four products, not two; shared memory would otherwise be the limit. Blocks
 * with the longest walk come first.
 *
 * Invariant: a row's maximum changes only where it grows, and exp2((m - m) * s) is exactly 1, so a
 * tile that a row does not see changes nothing, whether it is skipped or computed.
 *
 * nvcc 13.0 -ftz=true, registers on sm_80 / 86 / 90, bytes spilled 0 everywhere (sm_89, 120 too):
 *   head_dim  BR x BC   warps  shared bytes  registers
 *         64  128 x 64      4        32,768  200 202 208
 *         80  128 x 64      4        45,056  208 210 216
 *         96  128 x 64      4        53,248  224 226 232
 *        128  128 x 32      4        49,152  239 241 240
 *        256   64 x 32      4        65,536  239 237 245
 * BC = 64 spilled 40 bytes at 128 and 36 at 256. No GPU has run this yet. */
#include <errno.h>

#include "runtime/kernels/attention_tile_internal.cuh"
#include "runtime/kernels/kernels_cuda.h"

/* Places that the mask hides become -inf. row: the lane's first query; key: its first key. */
template <int MT, int NT>
static __device__ __forceinline__ void mask_scores(float (&s)[MT][NT][4], int32_t row, int32_t key,
                                                   int32_t window)
{
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int32_t behind = row + mt * 16 + (e >> 1) * 8 - key - n * 8 - (e & 1);
                if (behind < 0 || behind >= window)
                    s[mt][n][e] = -INFINITY;
            }
        }
    }
}

/* One step of the online softmax: p = bf16(P); m (unscaled maxima), l (the lane's part of the sums)
 * and o are brought up to date. */
template <int D, int MT, int NT>
static __device__ __forceinline__ void softmax_step(uint32_t (&p)[MT][NT][2], float (&s)[MT][NT][4],
                                                    float (&m)[MT][2], float (&l)[MT][2],
                                                    float (&o)[MT][D / 8][4], float scale2)
{
    float alpha[MT][2];
    bool grown = false;
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = m[mt][half];
#pragma unroll
            for (int n = 0; n < NT; n++)
                top = fmaxf(top, fmaxf(s[mt][n][half * 2], s[mt][n][half * 2 + 1]));
            top = fmaxf(top, __shfl_xor_sync(PS__ATTENTION_FULL_WARP, top, 1));
            top = fmaxf(top, __shfl_xor_sync(PS__ATTENTION_FULL_WARP, top, 2));
            /* A row that has seen no key yet: -inf - -inf would be NaN. */
            const float from = top == -INFINITY ? 0.0f : top, sub = from * scale2;
            alpha[mt][half] = exp2f((m[mt][half] - from) * scale2);
            grown = grown || alpha[mt][half] != 1.0f;
            m[mt][half] = top;
            float sum = l[mt][half] * alpha[mt][half];
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const float p0 = exp2f(fmaf(s[mt][n][half * 2], scale2, -sub));
                const float p1 = exp2f(fmaf(s[mt][n][half * 2 + 1], scale2, -sub));
                sum += p0 + p1;
                p[mt][n][half] = ps__pack_bf16(p0, p1);
            }
            l[mt][half] = sum;
        }
    }
    if (!__any_sync(PS__ATTENTION_FULL_WARP, grown))
        return;
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[mt][n][e] *= alpha[mt][e >> 1];
        }
    }
}

/* o / l to the output, the log of the sums to lse. */
template <int D, int MT>
static __device__ __forceinline__ void
store_rows(const struct ps_attention_args &a, int head, int32_t row, int32_t row_end,
           const float (&m)[MT][2], const float (&l)[MT][2], const float (&o)[MT][D / 8][4])
{
    const int lane = (int)threadIdx.x % 32;
    float inverse[MT][2];
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = l[mt][half];
            sum += __shfl_xor_sync(PS__ATTENTION_FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(PS__ATTENTION_FULL_WARP, sum, 2);
            inverse[mt][half] = 1.0f / sum;
            const int32_t r = row + mt * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0 && r < row_end && a.lse)
                a.lse[(size_t)r * (size_t)a.n_head + (size_t)head] =
                    m[mt][half] * a.scale + logf(sum);
        }
    }
    ps__tile_store<D, MT>((__nv_bfloat16 *)a.out + (size_t)head * D, a.out_ld, row, row_end, o,
                          inverse);
}

/* smem: Q (BR), K (BC), V (BC) as tiles. */
template <int D, int BR, int BC, int WARPS>
static __device__ __forceinline__ void forward_segment(const struct ps_attention_args &a, int head,
                                                       struct ps__segment s, __nv_bfloat16 *smem)
{
    constexpr int MT = BR / WARPS / 16, NT = BC / 8, THREADS = WARPS * 32;
    const size_t kv = (size_t)(head / (a.n_head / a.n_kv_head)) * D;
    const __nv_bfloat16 *k = (const __nv_bfloat16 *)a.k + kv, *v = (const __nv_bfloat16 *)a.v + kv;
    __nv_bfloat16 *q_tile = smem, *k_tile = q_tile + BR * ps__tile<D>::STRIDE;
    __nv_bfloat16 *v_tile = k_tile + BC * ps__tile<D>::STRIDE;
    const int lane = (int)threadIdx.x % 32, warp_row = (int)threadIdx.x / 32 * MT * 16;
    const int32_t window = ps__window(&a);
    const int32_t first = s.row + warp_row; /* of the warp's queries */
    const float scale2 = a.scale * PS__ATTENTION_LOG2E_F;
    float o[MT][D / 8][4] = {}, m[MT][2], l[MT][2] = {};
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
        m[mt][0] = m[mt][1] = -INFINITY;

    const int32_t begin = ps__first_key(&s, window, BC);
    ps__tile_load<D, BR, THREADS>(q_tile, (const __nv_bfloat16 *)a.q + (size_t)head * D, a.q_ld,
                                  s.row, s.row_end);
    ps__tile_load<D, BC, THREADS>(k_tile, k, a.k_ld, begin, s.row_end);
    ps_gpu_cp_commit();
    for (int32_t key = begin; key < s.row_end; key += BC) {
        const bool seen =
            first < s.row_end && key < first + MT * 16 && key + BC > first - window + 1;
        float scores[MT][NT][4] = {};
        ps_gpu_cp_wait<0>();
        __syncthreads(); /* K is there for all, and nobody reads the old V */
        ps__tile_load<D, BC, THREADS>(v_tile, v, a.v_ld, key, s.row_end);
        ps_gpu_cp_commit();
        if (seen)
            ps__tile_multiply_nt<D, MT, NT>(scores, q_tile, warp_row, k_tile);
        ps_gpu_cp_wait<0>();
        __syncthreads(); /* V is there for all, and nobody reads this K any more */
        if (key + BC < s.row_end)
            ps__tile_load<D, BC, THREADS>(k_tile, k, a.k_ld, key + BC, s.row_end);
        ps_gpu_cp_commit();
        if (seen) {
            if (key + BC - 1 > first || key < first + MT * 16 - window)
                mask_scores<MT, NT>(scores, first + lane / 4, key + lane % 4 * 2, window);
            uint32_t p[MT][NT][2];
            softmax_step<D, MT, NT>(p, scores, m, l, o, scale2);
            ps__tile_multiply_nn<D, MT, NT>(o, p, v_tile);
        }
    }
    store_rows<D, MT>(a, head, first, s.row_end, m, l, o);
}

template <int D, int BR, int BC, int WARPS>
__global__ void __launch_bounds__(WARPS * 32)
    attention_forward_kernel(const struct ps_attention_args args, const int32_t *doc, int32_t n_tok)
{
    PS_DYN_SHARED(__nv_bfloat16, smem);
    const int32_t tile = (int32_t)(gridDim.y - 1 - blockIdx.y) * BR;
    const int32_t tile_end = n_tok - tile < BR ? n_tok : tile + BR;
    for (int32_t row = tile; row < tile_end;) {
        const struct ps__segment s = ps__segment_at(doc, row, tile_end);
        forward_segment<D, BR, BC, WARPS>(args, (int)blockIdx.x, s, smem);
        row = s.row_end; /* no barrier: Q and K were read before the last one, V is written after
                            one */
    }
}

template <int D, int BR, int BC, int WARPS>
static int launch_forward(void *stream, const struct ps_attention_args *args, const int32_t *doc,
                          int32_t n_tok)
{
    constexpr int SHARED = (BR + 2 * BC) * ps__tile<D>::STRIDE * (int)sizeof(__nv_bfloat16);
    static_assert(SHARED <= PS__ATTENTION_SHARED_MAX, "does not fit sm_86");
    static_assert(BR % (WARPS * 16) == 0 && BC % 16 == 0, "whole fragments");
    const dim3 grid((unsigned)args->n_head, (unsigned)((n_tok + BR - 1) / BR));
    if (cudaFuncSetAttribute((const void *)attention_forward_kernel<D, BR, BC, WARPS>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED) != cudaSuccess)
        return ps_gpu_check_launch();
    PS_LAUNCH((attention_forward_kernel<D, BR, BC, WARPS>), grid, WARPS * 32, SHARED, stream, *args,
              doc, n_tok);
    return ps_gpu_check_launch();
}

int ps__attention_check(const struct ps_attention_args *args, const int32_t *doc, int32_t n_tok)
{
    if (!args || !doc || n_tok < 0 || n_tok > PS__ATTENTION_TOKENS_MAX)
        return -EINVAL;
    if (args->dtype != PS_DTYPE_BF16 && args->dtype != PS_DTYPE_F32)
        return -EINVAL;
    if (args->n_head < 1 || args->n_kv_head < 1 || args->n_head % args->n_kv_head != 0)
        return -EINVAL;
    return args->head_dim < 1 || args->head_dim > 512 || args->sliding_window < 0 ? -EINVAL : 0;
}

extern "C" int ps_attention_forward_cuda(void *stream, const struct ps_attention_args *args,
                                         const int32_t *doc, int32_t n_tok)
{
    const int ret = ps__attention_check(args, doc, n_tok);
    if (ret < 0 || n_tok == 0)
        return ret;
    const bool tiles =
        args->dtype == PS_DTYPE_BF16 && args->scale > 0 && ps__rows_aligned(args->q, args->q_ld) &&
        ps__rows_aligned(args->k, args->k_ld) && ps__rows_aligned(args->v, args->v_ld) &&
        ps__rows_aligned(args->out, args->out_ld);
    switch (tiles ? args->head_dim : 0) {
    case 64:
        return launch_forward<64, 128, 64, 4>(stream, args, doc, n_tok);
    case 80:
        return launch_forward<80, 128, 64, 4>(stream, args, doc, n_tok);
    case 96:
        return launch_forward<96, 128, 64, 4>(stream, args, doc, n_tok);
    case 128:
        return launch_forward<128, 128, 32, 4>(stream, args, doc, n_tok);
    case 256:
        return launch_forward<256, 64, 32, 4>(stream, args, doc, n_tok);
    default:
        return ps__attention_forward_plain(stream, args, doc, n_tok);
    }
}
