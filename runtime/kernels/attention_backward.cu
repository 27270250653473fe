/* Backward pass of causal attention on tensor cores, and its launcher. See attention.h for the
 * contract, attention_tile_internal.cuh for tiles.
 *
 * Design: three kernels, no atomics, no gradient in fp32 in memory.
 *   stat   D = rowsum(dO o O) and lse in base 2: the workspace, (n_head, n_tok, 2) fp32
 *   key    a block owns keys of a key-value head and walks over the queries of its heads:
 *          S^T = K Q^T, dP^T = V dO^T, dV += bf16(P)^T dO, dK += bf16(dS)^T Q
 *   query  a block owns queries of a head and walks over the keys:
 *          S and dP again, dQ += bf16(dS) K
 * with P = exp2(S s2 - lse2) and dS = P (dP - D); dK and dQ take the scale at the end.
 *
 * S and dP are computed twice, seven products instead of five; in exchange P and dS go from
 * accumulators into the next product as they stand, and the sum over a group's heads is in
 * registers. At head_dim 256 dV and dK do not fit the registers together: the key kernel runs once
 * for each.
 *
 * Accumulators grow by 16 keys or queries at a time, counted from the document's start: tile sizes
 * change no bit here.
 *
 * nvcc 13.0 -ftz=true, registers on sm_80 / 86 / 90, bytes spilled 0 everywhere (sm_89, 120 too):
 *   head_dim  kernel     owned x walked  warps  stages  shared bytes  registers
 *         64  key              128 x 32      4       2        49,664  254 252 253
 *             query            128 x 32      4       2        50,176  192 192 202
 *         80  key              128 x 32      8       2        68,096  166 166 169
 *             query            128 x 32      4       2        68,608  196 196 210
 *         96  key              128 x 32      8       2        80,384  196 196 212
 *             query            128 x 32      4       2        80,896  212 212 226
 *        128  key              128 x 32      8       2        98,816  242 242 247
 *             query            128 x 32      4       2        99,328  254 254 254
 *        256  key, dV           64 x 32      4       2        98,816  247 247 248
 *             key, dK           64 x 32      4       1        98,560  242 242 244
 *             query             64 x 32      4       1        98,816  238 238 246
 * stat takes 40, 40, 35 registers. No GPU has run this yet. */
#include <assert.h>
#include <errno.h>

#include "runtime/kernels/attention_tile_internal.cuh"
#include "runtime/kernels/kernels_cuda.h"

enum { STAT_THREADS = 128, STAT_LANES = 8 };

/* Eight products of bf16 pairs, summed in order. */
static __device__ __forceinline__ float dot8(const uint4 &a, const uint4 &b)
{
    const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum += __uint_as_float(x[i] << 16) * __uint_as_float(y[i] << 16);
        sum += __uint_as_float(x[i] & 0xffff0000u) * __uint_as_float(y[i] & 0xffff0000u);
    }
    return sum;
}

/* stat[h][i] = (lse log2(e), sum over c of dO[i][h d + c] O[i][h d + c]); a block a token, eight
 * lanes a head. */
static __global__ void __launch_bounds__(STAT_THREADS)
    attention_stat_kernel(const struct ps_attention_args a, float2 *stat, int32_t n_tok)
{
    const int lane = (int)threadIdx.x % STAT_LANES;
    const size_t row = blockIdx.x, n_head = (size_t)a.n_head;
    const __nv_bfloat16 *out = (const __nv_bfloat16 *)a.out + row * a.out_ld;
    const __nv_bfloat16 *dout = (const __nv_bfloat16 *)a.dout + row * a.dout_ld;
    for (int base = 0; base < a.n_head; base += STAT_THREADS / STAT_LANES) {
        const int mine = base + (int)threadIdx.x / STAT_LANES;
        const size_t head = (size_t)(mine < a.n_head ? mine : a.n_head - 1); /* whole warps */
        float sum = 0;
        for (int c = lane * 8; c < a.head_dim; c += STAT_LANES * 8) {
            const size_t at = head * (size_t)a.head_dim + (size_t)c;
            sum += dot8(*reinterpret_cast<const uint4 *>(out + at),
                        *reinterpret_cast<const uint4 *>(dout + at));
        }
        sum += __shfl_xor_sync(PS__ATTENTION_FULL_WARP, sum, 4);
        sum += __shfl_xor_sync(PS__ATTENTION_FULL_WARP, sum, 2);
        sum += __shfl_xor_sync(PS__ATTENTION_FULL_WARP, sum, 1);
        if (lane == 0 && mine < a.n_head)
            stat[head * (size_t)n_tok + row] =
                make_float2(a.lse[row * n_head + head] * PS__ATTENTION_LOG2E_F, sum);
    }
}

/* The statistics of a query; of none beyond `end`: P becomes 0. */
static __device__ __forceinline__ float2 stat_of(const float2 *stat, int32_t row, int32_t end)
{
    return row < end ? stat[row] : make_float2(INFINITY, 0.0f);
}

/* What a block of the key kernel works on. */
struct key_block {
    const float2 *stat; /* (n_head, n_tok) */
    int32_t n_tok;
    int kv; /* key-value head */
};

/* smem: K (BK), V (BK, only with DK), then STAGES times Q (BQ), dO (BQ), then STAGES times
 * statistics (BQ). Sizes in bytes. */
template <int D, int BK, int BQ, int STAGES, bool DK> struct key_layout {
    static constexpr int KEYS = BK * ps__tile<D>::STRIDE, QUERIES = BQ * ps__tile<D>::STRIDE;
    static constexpr int STAGE_AT = (DK ? 2 : 1) * KEYS;                  /* elements */
    static constexpr int STAT_AT = (STAGE_AT + STAGES * 2 * QUERIES) * 2; /* bytes */
    static constexpr int BYTES = STAT_AT + STAGES * BQ * (int)sizeof(float2);
    static_assert(BYTES <= PS__ATTENTION_SHARED_MAX, "does not fit sm_86");
    static_assert(STAT_AT % 16 == 0, "alignment");
};

/* s (keys, queries) becomes P. stat: of the lane's first query; key, query: the
 * lane's first. */
template <int MT, int NT, bool MASK>
static __device__ __forceinline__ void key_gradients(float (&s)[MT][NT][4], const float2 *stat,
                                                     float scale2, int32_t key, int32_t query,
                                                     int32_t window)
{
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const float4 two = *reinterpret_cast<const float4 *>(stat + n * 8);
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float p = exp2f(fmaf(s[mt][n][e], scale2, -(e & 1 ? two.z : two.x)));
                if (MASK) {
                    const int32_t behind = query + n * 8 + (e & 1) - key - mt * 16 - (e >> 1) * 8;
                    p = behind < 0 || behind >= window ? 0.0f : p;
                }
                s[mt][n][e] = p;
            }
        }
    }
}

/* One tile of queries. */
template <int D, int MT, int BQ, bool DV, bool DK>
static __device__ __forceinline__ void
key_tile(float (&dv)[MT][DV ? D / 8 : 1][4], float (&dk)[MT][DK ? D / 8 : 1][4],
         const __nv_bfloat16 *k_tile, const __nv_bfloat16 *v_tile, int warp_row,
         const __nv_bfloat16 *q_tile, const __nv_bfloat16 *do_tile, const float2 *stat,
         float scale2, int32_t first, int32_t q0, int32_t window)
{
    constexpr int NT = BQ / 8;
    const int lane = (int)threadIdx.x % 32;
    const int32_t key = first + lane / 4, query = q0 + lane % 4 * 2;
    float p[MT][NT][4] = {};
    uint32_t packed[MT][NT][2];
    ps__tile_multiply_nt<D, MT, NT>(p, k_tile, warp_row, q_tile);
    stat += lane % 4 * 2;
    if (q0 < first + MT * 16 - 1 || q0 + BQ - 1 - first >= window)
        key_gradients<MT, NT, true>(p, stat, scale2, key, query, window);
    else
        key_gradients<MT, NT, false>(p, stat, scale2, key, query, window);
    if constexpr (DV) {
        ps__tile_pack<MT, NT>(packed, p);
        ps__tile_multiply_nn<D, MT, NT>(dv, packed, do_tile);
    }
    if constexpr (DK) {
        float dp[MT][NT][4] = {};
        ps__tile_multiply_nt<D, MT, NT>(dp, v_tile, warp_row, do_tile);
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const float4 two = *reinterpret_cast<const float4 *>(stat + n * 8);
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    p[mt][n][e] *= dp[mt][n][e] - (e & 1 ? two.w : two.y);
            }
        }
        ps__tile_pack<MT, NT>(packed, p);
        ps__tile_multiply_nn<D, MT, NT>(dk, packed, q_tile);
    }
}

template <int D, int BK, int BQ, int WARPS, int STAGES, bool DV, bool DK>
static __device__ __forceinline__ void key_segment(const struct ps_attention_args &a,
                                                   const struct key_block &block,
                                                   const struct ps__segment &s, __nv_bfloat16 *smem)
{
    using layout = key_layout<D, BK, BQ, STAGES, DK>;
    constexpr int MT = BK / WARPS / 16, THREADS = WARPS * 32;
    static_assert(BQ <= THREADS, "a thread fetches the statistics of a query");
    const int group = a.n_head / a.n_kv_head, tid = (int)threadIdx.x;
    const size_t kv = (size_t)block.kv * D;
    __nv_bfloat16 *v_tile = smem + layout::KEYS;
    float2 *stat_tile = reinterpret_cast<float2 *>(smem + layout::STAT_AT / 2);
    const int warp_row = tid / 32 * MT * 16;
    const int32_t window = ps__window(&a), first = s.row + warp_row;
    /* queries that see a key of the block: [begin, end) */
    const int32_t begin = s.begin + (s.row - s.begin) / BQ * BQ;
    const int32_t end = s.end - s.row_end < window ? s.end : s.row_end - 1 + window;
    const int32_t tiles = (end - begin + BQ - 1) / BQ, count = tiles * group;
    const float scale2 = a.scale * PS__ATTENTION_LOG2E_F;
    float dv[MT][DV ? D / 8 : 1][4] = {}, dk[MT][DK ? D / 8 : 1][4] = {};
    float2 stat = make_float2(0.0f, 0.0f); /* of this thread's query of the tile copied last */

    auto issue = [&](int32_t it) {
        const int32_t q0 = begin + it % tiles * BQ;
        const size_t head = (size_t)(block.kv * group + it / tiles);
        __nv_bfloat16 *to = smem + layout::STAGE_AT + it % STAGES * 2 * layout::QUERIES;
        ps__tile_load<D, BQ, THREADS>(to, (const __nv_bfloat16 *)a.q + head * D, a.q_ld, q0, end);
        ps__tile_load<D, BQ, THREADS>(to + layout::QUERIES,
                                      (const __nv_bfloat16 *)a.dout + head * D, a.dout_ld, q0, end);
        if (tid < BQ)
            stat = stat_of(block.stat + head * (size_t)block.n_tok, q0 + tid, end);
    };

    ps__tile_load<D, BK, THREADS>(smem, (const __nv_bfloat16 *)a.k + kv, a.k_ld, s.row, s.row_end);
    if constexpr (DK)
        ps__tile_load<D, BK, THREADS>(v_tile, (const __nv_bfloat16 *)a.v + kv, a.v_ld, s.row,
                                      s.row_end);
    if constexpr (STAGES == 2)
        issue(0);
    ps_gpu_cp_commit();
    for (int32_t it = 0; it < count; it++) {
        const int32_t q0 = begin + it % tiles * BQ;
        float2 *const stat_stage = stat_tile + it % STAGES * BQ;
        if constexpr (STAGES == 1)
            issue(it);
        if (tid < BQ)
            stat_stage[tid] = stat;
        if (STAGES == 2 && it + 1 < count)
            issue(it + 1);
        ps_gpu_cp_commit();
        ps_gpu_cp_wait<STAGES - 1>();
        __syncthreads(); /* the tile and its statistics are there for all */
        if (first < s.row_end && q0 + BQ > first && q0 < first + MT * 16 - 1 + window) {
            const __nv_bfloat16 *stage =
                smem + layout::STAGE_AT + it % STAGES * 2 * layout::QUERIES;
            key_tile<D, MT, BQ, DV, DK>(dv, dk, smem, v_tile, warp_row, stage,
                                        stage + layout::QUERIES, stat_stage, scale2, first, q0,
                                        window);
        }
        __syncthreads(); /* nobody reads it any more */
    }
    float one[MT][2], scale[MT][2];
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
        one[mt][0] = one[mt][1] = 1.0f;
        scale[mt][0] = scale[mt][1] = a.scale;
    }
    if constexpr (DV)
        ps__tile_store<D, MT>((__nv_bfloat16 *)a.dv + kv, a.dv_ld, first, s.row_end, dv, one);
    if constexpr (DK)
        ps__tile_store<D, MT>((__nv_bfloat16 *)a.dk + kv, a.dk_ld, first, s.row_end, dk, scale);
}

template <int D, int BK, int BQ, int WARPS, int STAGES, bool DV, bool DK>
__global__ void __launch_bounds__(WARPS * 32)
    attention_backward_key_kernel(const struct ps_attention_args args, const int32_t *doc,
                                  const float2 *stat, int32_t n_tok)
{
    PS_DYN_SHARED(__nv_bfloat16, smem);
    const int32_t tile = (int32_t)blockIdx.y * BK;
    const int32_t tile_end = n_tok - tile < BK ? n_tok : tile + BK;
    const struct key_block block = {stat, n_tok, (int)blockIdx.x};
    for (int32_t row = tile; row < tile_end;) {
        const struct ps__segment s = ps__segment_at(doc, row, tile_end);
        key_segment<D, BK, BQ, WARPS, STAGES, DV, DK>(args, block, s, smem);
        row = s.row_end; /* the loop over queries ended with a barrier */
    }
}

/* smem: Q (BR), dO (BR), then STAGES times K (BC), V (BC), then the queries' statistics (BR). */
template <int D, int BR, int BC, int STAGES> struct query_layout {
    static constexpr int QUERIES = BR * ps__tile<D>::STRIDE, KEYS = BC * ps__tile<D>::STRIDE;
    static constexpr int STAGE_AT = 2 * QUERIES;                       /* elements */
    static constexpr int STAT_AT = (STAGE_AT + STAGES * 2 * KEYS) * 2; /* bytes */
    static constexpr int BYTES = STAT_AT + BR * (int)sizeof(float2);
    static_assert(BYTES <= PS__ATTENTION_SHARED_MAX, "does not fit sm_86");
};

/* s becomes dS. stat: of the lane's first query; row, key: the lane's first. */
template <int MT, int NT, bool MASK>
static __device__ __forceinline__ void
query_gradients(float (&s)[MT][NT][4], const float (&dp)[MT][NT][4], const float2 *stat,
                float scale2, int32_t row, int32_t key, int32_t window)
{
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
        const float2 of[2] = {stat[mt * 16], stat[mt * 16 + 8]};
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float p = exp2f(fmaf(s[mt][n][e], scale2, -of[e >> 1].x));
                if (MASK) {
                    const int32_t behind = row + mt * 16 + (e >> 1) * 8 - key - n * 8 - (e & 1);
                    p = behind < 0 || behind >= window ? 0.0f : p;
                }
                s[mt][n][e] = p * (dp[mt][n][e] - of[e >> 1].y);
            }
        }
    }
}

template <int D, int BR, int BC, int WARPS, int STAGES>
static __device__ __forceinline__ void
query_segment(const struct ps_attention_args &a, int head, const float2 *stat_head,
              const struct ps__segment &s, __nv_bfloat16 *smem)
{
    using layout = query_layout<D, BR, BC, STAGES>;
    constexpr int MT = BR / WARPS / 16, NT = BC / 8, THREADS = WARPS * 32;
    const size_t kv = (size_t)(head / (a.n_head / a.n_kv_head)) * D, q = (size_t)head * D;
    __nv_bfloat16 *do_tile = smem + layout::QUERIES;
    float2 *stat_tile = reinterpret_cast<float2 *>(smem + layout::STAT_AT / 2);
    const int lane = (int)threadIdx.x % 32, warp_row = (int)threadIdx.x / 32 * MT * 16;
    const int32_t window = ps__window(&a), first = s.row + warp_row;
    const int32_t begin = ps__first_key(&s, window, BC);
    const float scale2 = a.scale * PS__ATTENTION_LOG2E_F;
    float dq[MT][D / 8][4] = {};
    for (int i = (int)threadIdx.x; i < BR; i += THREADS)
        stat_tile[i] = stat_of(stat_head, s.row + i, s.row_end);

    auto issue = [&](int32_t key, int stage) {
        __nv_bfloat16 *to = smem + layout::STAGE_AT + stage * 2 * layout::KEYS;
        ps__tile_load<D, BC, THREADS>(to, (const __nv_bfloat16 *)a.k + kv, a.k_ld, key, s.row_end);
        ps__tile_load<D, BC, THREADS>(to + layout::KEYS, (const __nv_bfloat16 *)a.v + kv, a.v_ld,
                                      key, s.row_end);
    };

    ps__tile_load<D, BR, THREADS>(smem, (const __nv_bfloat16 *)a.q + q, a.q_ld, s.row, s.row_end);
    ps__tile_load<D, BR, THREADS>(do_tile, (const __nv_bfloat16 *)a.dout + q, a.dout_ld, s.row,
                                  s.row_end);
    if constexpr (STAGES == 2)
        issue(begin, 0);
    ps_gpu_cp_commit();
    int now = 0;
    for (int32_t key = begin; key < s.row_end; key += BC) {
        if (STAGES == 1)
            issue(key, 0);
        else if (key + BC < s.row_end)
            issue(key + BC, now ^ 1);
        ps_gpu_cp_commit();
        ps_gpu_cp_wait<STAGES - 1>();
        __syncthreads(); /* the tile is there for all */
        if (first < s.row_end && key < first + MT * 16 && key + BC > first - window + 1) {
            const __nv_bfloat16 *stage = smem + layout::STAGE_AT + now * 2 * layout::KEYS;
            float scores[MT][NT][4] = {}, dp[MT][NT][4] = {};
            uint32_t ds[MT][NT][2];
            const float2 *const stat = stat_tile + warp_row + lane / 4;
            ps__tile_multiply_nt<D, MT, NT>(scores, smem, warp_row, stage);
            ps__tile_multiply_nt<D, MT, NT>(dp, do_tile, warp_row, stage + layout::KEYS);
            if (key + BC - 1 > first || key < first + MT * 16 - window)
                query_gradients<MT, NT, true>(scores, dp, stat, scale2, first + lane / 4,
                                              key + lane % 4 * 2, window);
            else
                query_gradients<MT, NT, false>(scores, dp, stat, scale2, 0, 0, 0);
            ps__tile_pack<MT, NT>(ds, scores);
            ps__tile_multiply_nn<D, MT, NT>(dq, ds, stage);
        }
        __syncthreads(); /* nobody reads it any more */
        now ^= STAGES - 1;
    }
    float scale[MT][2];
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
        scale[mt][0] = scale[mt][1] = a.scale;
    ps__tile_store<D, MT>((__nv_bfloat16 *)a.dq + q, a.dq_ld, first, s.row_end, dq, scale);
}

template <int D, int BR, int BC, int WARPS, int STAGES>
__global__ void __launch_bounds__(WARPS * 32)
    attention_backward_query_kernel(const struct ps_attention_args args, const int32_t *doc,
                                    const float2 *stat, int32_t n_tok)
{
    PS_DYN_SHARED(__nv_bfloat16, smem);
    const int32_t tile = (int32_t)(gridDim.y - 1 - blockIdx.y) * BR;
    const int32_t tile_end = n_tok - tile < BR ? n_tok : tile + BR;
    const int head = (int)blockIdx.x;
    for (int32_t row = tile; row < tile_end;) {
        const struct ps__segment s = ps__segment_at(doc, row, tile_end);
        query_segment<D, BR, BC, WARPS, STAGES>(args, head, stat + (size_t)head * (size_t)n_tok, s,
                                                smem);
        row = s.row_end; /* the loop over keys ended with a barrier */
    }
}

/* What the launchers hand on. */
struct backward_call {
    void *stream;
    const struct ps_attention_args *args;
    const int32_t *doc;
    const float2 *stat;
    int32_t n_tok;
};

template <int D, int BK, int BQ, int WARPS, int STAGES, bool DV, bool DK>
static int launch_key(const struct backward_call &call)
{
    static_assert(BK % (WARPS * 16) == 0 && BQ % 16 == 0, "whole fragments");
    constexpr int SHARED = key_layout<D, BK, BQ, STAGES, DK>::BYTES;
    const dim3 grid((unsigned)call.args->n_kv_head, (unsigned)((call.n_tok + BK - 1) / BK));
    if (cudaFuncSetAttribute(
            (const void *)attention_backward_key_kernel<D, BK, BQ, WARPS, STAGES, DV, DK>,
            cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED) != cudaSuccess)
        return ps_gpu_check_launch();
    PS_LAUNCH((attention_backward_key_kernel<D, BK, BQ, WARPS, STAGES, DV, DK>), grid, WARPS * 32,
              SHARED, call.stream, *call.args, call.doc, call.stat, call.n_tok);
    return ps_gpu_check_launch();
}

template <int D, int BR, int BC, int WARPS, int STAGES>
static int launch_query(const struct backward_call &call)
{
    static_assert(BR % (WARPS * 16) == 0 && BC % 16 == 0, "whole fragments");
    constexpr int SHARED = query_layout<D, BR, BC, STAGES>::BYTES;
    const dim3 grid((unsigned)call.args->n_head, (unsigned)((call.n_tok + BR - 1) / BR));
    if (cudaFuncSetAttribute(
            (const void *)attention_backward_query_kernel<D, BR, BC, WARPS, STAGES>,
            cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED) != cudaSuccess)
        return ps_gpu_check_launch();
    PS_LAUNCH((attention_backward_query_kernel<D, BR, BC, WARPS, STAGES>), grid, WARPS * 32, SHARED,
              call.stream, *call.args, call.doc, call.stat, call.n_tok);
    return ps_gpu_check_launch();
}

static int launch_stat(const struct backward_call &call, float2 *stat)
{
    PS_LAUNCH(attention_stat_kernel, (unsigned)call.n_tok, STAT_THREADS, 0, call.stream, *call.args,
              stat, call.n_tok);
    return ps_gpu_check_launch();
}

static int launch_tiles(const struct backward_call &call)
{
    int ret;
    switch (call.args->head_dim) {
    case 64:
        ret = launch_key<64, 128, 32, 4, 2, true, true>(call);
        return ret < 0 ? ret : launch_query<64, 128, 32, 4, 2>(call);
    case 80:
        ret = launch_key<80, 128, 32, 8, 2, true, true>(call);
        return ret < 0 ? ret : launch_query<80, 128, 32, 4, 2>(call);
    case 96:
        ret = launch_key<96, 128, 32, 8, 2, true, true>(call);
        return ret < 0 ? ret : launch_query<96, 128, 32, 4, 2>(call);
    case 128:
        ret = launch_key<128, 128, 32, 8, 2, true, true>(call);
        return ret < 0 ? ret : launch_query<128, 128, 32, 4, 2>(call);
    default:
        assert(call.args->head_dim == 256);
        ret = launch_key<256, 64, 32, 4, 2, true, false>(call);
        if (ret == 0)
            ret = launch_key<256, 64, 32, 4, 1, false, true>(call);
        return ret < 0 ? ret : launch_query<256, 64, 32, 4, 1>(call);
    }
}

extern "C" size_t ps_attention_workspace_bytes_cuda(int32_t n_tok_max, int32_t n_head)
{
    return ((size_t)n_tok_max * (size_t)n_head * sizeof(float2) + 255) / 256 * 256;
}

extern "C" int ps_attention_backward_cuda(void *stream, const struct ps_attention_args *args,
                                          const int32_t *doc, int32_t n_tok, void *workspace)
{
    const int checked = ps__attention_check(args, doc, n_tok);
    if (checked < 0 || n_tok == 0)
        return checked;
    if (!workspace)
        return -EINVAL;
    const int dim = args->head_dim;
    const bool sizes = dim == 64 || dim == 80 || dim == 96 || dim == 128 || dim == 256;
    const bool tiles =
        sizes && args->dtype == PS_DTYPE_BF16 && args->scale > 0 &&
        ps__rows_aligned(args->q, args->q_ld) && ps__rows_aligned(args->k, args->k_ld) &&
        ps__rows_aligned(args->v, args->v_ld) && ps__rows_aligned(args->out, args->out_ld) &&
        ps__rows_aligned(args->dout, args->dout_ld) && ps__rows_aligned(args->dq, args->dq_ld) &&
        ps__rows_aligned(args->dk, args->dk_ld) && ps__rows_aligned(args->dv, args->dv_ld);
    if (!tiles)
        return ps__attention_backward_plain(stream, args, doc, n_tok, (float *)workspace);
    const struct backward_call call = {stream, args, doc, (const float2 *)workspace, n_tok};
    const int ret = launch_stat(call, (float2 *)workspace);
    return ret < 0 ? ret : launch_tiles(call);
}
