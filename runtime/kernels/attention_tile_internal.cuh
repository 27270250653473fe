/* Tiles of attention on tensor cores: what attention_forward.cu and attention_backward.cu share.
 *
 * Design. A warp owns 16 MT rows of the dimension that is not summed over and the block's warps
 * never add into one another, so no sum crosses a warp and none is atomic. Tiles that are summed
 * over start at multiples of their size from the start of their document, and places that the mask
 * hides contribute exact zeros: a row's bits depend on its document alone, not on the grid, on what
 * else is in the stream nor on the document's place in it.
 *
 * Tiles of D columns of bf16 lie in shared memory as rows of 16-byte chunks. ldmatrix reads eight
 * rows at a time; they must fall into eight different groups of banks. D a multiple of 64: chunk c
 * of row r lies at c ^ (r % 8). Others (80, 96): rows are padded by one chunk, which makes their
 * number of chunks odd.
 *
 * Fragments of mma.m16n8k16, g = lane / 4, t = lane % 4: an accumulator c[0..1] is row g, columns
 * 2t and 2t + 1, c[2..3] row g + 8. Two neighbouring accumulators, packed to bf16, are the A
 * operand of the next product as they stand. */
#ifndef PS_KERNELS_ATTENTION_TILE_INTERNAL_CUH
#define PS_KERNELS_ATTENTION_TILE_INTERNAL_CUH

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/kernels/attention.h"
#include "runtime/kernels/gpu.cuh"

#define PS__ATTENTION_LOG2E_F 1.44269504f
#define PS__ATTENTION_FULL_WARP 0xffffffffu

enum {
    PS__ATTENTION_SHARED_MAX = 101376, /* bytes a block may ask for on sm_86, 89 and 120 */
    PS__ATTENTION_WINDOW_NONE = 1 << 30,
    PS__ATTENTION_TOKENS_MAX = 65535 * 64 /* a grid's second dimension, tiles of 64 */
};

/* Where the chunks of a row are. Everything but the lane's part is known at compile time, so that
 * addresses are a register and an immediate. */
template <int D> struct ps__tile {
    static_assert(D % 16 == 0, "products take 16 columns at a time");
    static constexpr int CHUNKS = D / 8;
    static constexpr bool SWIZZLED = D % 64 == 0;
    static constexpr int STRIDE = SWIZZLED ? D : D + 8;                  /* elements */
    static constexpr int LANES = SWIZZLED ? 8 : CHUNKS % 4 == 0 ? 4 : 2; /* that copy one row */
    static_assert(CHUNKS % LANES == 0, "whole rows");

    /* Offset of chunk `chunk` (even, compile time) + `odd` (0 or 1) in a row r with r % 8 == row7.
     */
    static __device__ __forceinline__ int column(int chunk, int odd, int row7)
    {
        return SWIZZLED ? (chunk & ~7) * 8 + ((odd ^ row7) ^ (chunk & 7)) * 8 : (chunk + odd) * 8;
    }
};

/* Start copying rows [row, row + ROWS) of src to the tile; rows from row_end on become zero. row is
 * a valid row. */
template <int D, int ROWS, int THREADS>
static __device__ __forceinline__ void ps__tile_load(__nv_bfloat16 *tile, const __nv_bfloat16 *src,
                                                     size_t ld, int32_t row, int32_t row_end)
{
    constexpr int LANES = ps__tile<D>::LANES, STEP = THREADS / LANES;
    static_assert(STEP % 8 == 0, "the swizzle of a thread's rows is one");
    const int r0 = (int)threadIdx.x / LANES, c0 = (int)threadIdx.x % LANES;
    __nv_bfloat16 *to =
        tile + r0 * ps__tile<D>::STRIDE + (ps__tile<D>::SWIZZLED ? c0 ^ (r0 & 7) : c0) * 8;
#pragma unroll
    for (int r = 0; r < ROWS; r += STEP) {
        if (ROWS % STEP == 0 || r + r0 < ROWS) {
            const int32_t at = row + r0 + r;
            const __nv_bfloat16 *from =
                src + (size_t)(at < row_end ? at : row_end - 1) * ld + c0 * 8;
#pragma unroll
            for (int c = 0; c < ps__tile<D>::CHUNKS; c += LANES)
                ps_gpu_cp_async16(to + r * ps__tile<D>::STRIDE + c * 8, from + c * 8,
                                  at < row_end ? 16 : 0);
        }
    }
}

/* Two fp32 as bf16, nearest even, the first in the low half. */
static __device__ __forceinline__ uint32_t ps__pack_bf16(float low, float high)
{
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&both);
}

/* acc (16 MT, 8 NT) += A B^T: A rows [a_row, a_row + 16 MT) (a multiple of 8) of tile a, B rows [0,
 * 8 NT) of tile b, both with D columns. Both operands and those of ps__tile_multiply_nn are
 * addressed by the same lane pattern, which saves registers: matrices 0 and 2 are rows 0-7, 1 and 3
 * rows 8-15. */
template <int D, int MT, int NT>
static __device__ __forceinline__ void ps__tile_multiply_nt(float (&acc)[MT][NT][4],
                                                            const __nv_bfloat16 *a, int a_row,
                                                            const __nv_bfloat16 *b)
{
    constexpr int STRIDE = ps__tile<D>::STRIDE;
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
        const int at = (lane & 15) * STRIDE + ps__tile<D>::column(kk * 2, lane >> 4, lane & 7);
        uint32_t fa[MT][4];
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
            ps_gpu_ldmatrix4(fa[mt], a + (a_row + mt * 16) * STRIDE + at);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t fb[4];
            ps_gpu_ldmatrix4(fb, b + n * 8 * STRIDE + at);
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
                ps_gpu_mma_bf16(acc[mt][n], fa[mt], fb[0], fb[2]);
                ps_gpu_mma_bf16(acc[mt][n + 1], fa[mt], fb[1], fb[3]);
            }
        }
    }
}

/* Accumulators rounded to bf16, two columns a register. */
template <int MT, int NT>
static __device__ __forceinline__ void ps__tile_pack(uint32_t (&to)[MT][NT][2],
                                                     const float (&from)[MT][NT][4])
{
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            to[mt][n][0] = ps__pack_bf16(from[mt][n][0], from[mt][n][1]);
            to[mt][n][1] = ps__pack_bf16(from[mt][n][2], from[mt][n][3]);
        }
    }
}

/* acc (16 MT, D) += P B: P (16 MT, 8 NT) packed accumulators, B rows [0, 8 NT) of tile b. */
template <int D, int MT, int NT>
static __device__ __forceinline__ void ps__tile_multiply_nn(float (&acc)[MT][D / 8][4],
                                                            const uint32_t (&p)[MT][NT][2],
                                                            const __nv_bfloat16 *b)
{
    constexpr int STRIDE = ps__tile<D>::STRIDE;
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int kk = 0; kk < NT / 2; kk++) {
        uint32_t fa[MT][4];
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            fa[mt][0] = p[mt][2 * kk][0], fa[mt][1] = p[mt][2 * kk][1];
            fa[mt][2] = p[mt][2 * kk + 1][0], fa[mt][3] = p[mt][2 * kk + 1][1];
        }
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t fb[4];
            ps_gpu_ldmatrix4_trans(fb, b + kk * 16 * STRIDE + (lane & 15) * STRIDE +
                                           ps__tile<D>::column(n, lane >> 4, lane & 7));
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
                ps_gpu_mma_bf16(acc[mt][n], fa[mt], fb[0], fb[1]);
                ps_gpu_mma_bf16(acc[mt][n + 1], fa[mt], fb[2], fb[3]);
            }
        }
    }
}

/* Rows [row, row + 16 MT) of a head of dst, below row_end, = acc * f[mt][half], one rounding. */
template <int D, int MT>
static __device__ __forceinline__ void
ps__tile_store(__nv_bfloat16 *dst, size_t ld, int32_t row, int32_t row_end,
               const float (&acc)[MT][D / 8][4], const float (&f)[MT][2])
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int32_t r = row + mt * 16 + half * 8 + lane / 4;
            if (r < row_end) {
                __nv_bfloat16 *to = dst + (size_t)r * ld + lane % 4 * 2;
#pragma unroll
                for (int n = 0; n < D / 8; n++)
                    *reinterpret_cast<uint32_t *>(to + n * 8) = ps__pack_bf16(
                        acc[mt][n][half * 2] * f[mt][half], acc[mt][n][half * 2 + 1] * f[mt][half]);
            }
        }
    }
}

/* A part of one document: rows [row, row_end) of the tokens [begin, end). */
struct ps__segment {
    int32_t begin, end;
    int32_t row, row_end;
};

/* The part of token `row`'s document in [row, tile_end). */
static __device__ __forceinline__ struct ps__segment ps__segment_at(const int32_t *doc, int32_t row,
                                                                    int32_t tile_end)
{
    struct ps__segment s;
    s.begin = doc[2 * (size_t)row];
    s.end = doc[2 * (size_t)row + 1];
    s.row = row;
    s.row_end = s.end < tile_end ? s.end : tile_end;
    return s;
}

/* First key, rounded down to a multiple of `step` from the document's start, that token row sees.
 */
static __device__ __forceinline__ int32_t ps__first_key(const struct ps__segment *s, int32_t window,
                                                        int32_t step)
{
    const int32_t lo = s->row - window + 1;
    return lo <= s->begin ? s->begin : s->begin + (lo - s->begin) / step * step;
}

static inline __host__ __device__ int32_t ps__window(const struct ps_attention_args *args)
{
    return args->sliding_window > 0 ? args->sliding_window : (int32_t)PS__ATTENTION_WINDOW_NONE;
}

/* Whether 16-byte copies can read (or write) the tensor. */
static inline bool ps__rows_aligned(const void *data, size_t ld)
{
    return (uintptr_t)data % 16 == 0 && ld % 8 == 0;
}

/* attention_plain.cu: any head_dim up to 512, F32 and BF16, any alignment and scale. delta: (n_tok,
 * n_head), scratch. */
int ps__attention_forward_plain(void *stream, const struct ps_attention_args *args,
                                const int32_t *doc, int32_t n_tok);
int ps__attention_backward_plain(void *stream, const struct ps_attention_args *args,
                                 const int32_t *doc, int32_t n_tok, float *delta);

/* What all launchers ask of their arguments: 0 or -EINVAL. */
int ps__attention_check(const struct ps_attention_args *args, const int32_t *doc, int32_t n_tok);

#endif
