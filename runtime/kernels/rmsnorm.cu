/* RMSNorm on the device: see rmsnorm.h. CPU reference: rmsnorm.c.
 *
 * Bytes moved per element of BF16 (F32: twice that): forward 4 (x, y; the second look at x hits the
 * first-level cache), backward 6 (x, dy, dx), with dx_add 8, with dweight 4 more (x and dy again,
 * before dx may overwrite dy).
 *
 * Design: rows of up to 1024 elements (per-head norms) have a warp each, longer ones a block of 256
 * threads. Sums are fp32 in a fixed order that depends on n alone. dweight in two stages: sums over
 * 64 rows in ascending order, then over these blocks: 16 interleaved sums, added in order. */
#include "runtime/kernels/gpu_vec_internal.cuh"
#include "runtime/kernels/kernels_cuda.h"

#define ROW_THREADS 256
#define WARP_ROW_MAX 1024 /* elements of a row that a warp handles */
#define PARTIAL_ROWS 64   /* rows of one partial sum of dweight: as on the CPU */
#define COMBINE_COLUMNS 32
#define COMBINE_SLICES 16

struct norm_args {
    unsigned rows, rows_per_tok;
    size_t n;
    float eps;
    const void *x, *weight, *dy, *dx_add;
    void *y, *dx;
    size_t x_ld, y_ld, dy_ld, dx_ld, dx_add_ld;
    enum ps_dtype weight_dtype;
    float *rstd;
};

static __device__ __forceinline__ size_t row_at(const norm_args &a, size_t ld, unsigned r)
{
    return (size_t)(r / a.rows_per_tok) * ld + (size_t)(r % a.rows_per_tok) * a.n;
}

/* Sum over the threads of a row, the same bits in all of them. */
template <int threads> static __device__ __forceinline__ float row_sum(float v)
{
    v = ps_gpu_warp_sum(v);
    if (threads == 32)
        return v;
    __shared__ float part[ROW_THREADS / 32];
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
#pragma unroll
    for (int w = 1; w < threads / 32; w++)
        v += part[w];
    return v;
}

/* A block has blockDim.x / threads rows. */
template <class T, bool vec, int threads>
static __global__ void __launch_bounds__(ROW_THREADS) rmsnorm_forward_kernel(norm_args a)
{
    constexpr int N = ps__chunk<T>::elems;
    unsigned r = blockIdx.x * (ROW_THREADS / threads) + threadIdx.x / threads;
    if (r >= a.rows) /* a whole warp; with one row a block never */
        return;
    unsigned t = threadIdx.x % threads;
    const T *x = static_cast<const T *>(a.x) + row_at(a, a.x_ld, r);
    T *y = static_cast<T *>(a.y) + row_at(a, a.y_ld, r);
    float v[N], w[N], sum = 0;
    for (size_t j = (size_t)t * N; j < a.n; j += threads * N) {
        ps__load<N, vec>(v, x + j, ps__chunk_count<N>(a.n, j));
#pragma unroll
        for (int i = 0; i < N; i++)
            sum = fmaf(v[i], v[i], sum);
    }
    float rstd = 1.0f / sqrtf(row_sum<threads>(sum) / (float)a.n + a.eps);
    if (a.rstd && t == 0)
        a.rstd[r] = rstd;
    for (size_t j = (size_t)t * N; j < a.n; j += threads * N) {
        unsigned count = ps__chunk_count<N>(a.n, j);
        ps__load<N, vec>(v, x + j, count);
        ps__load_any<N, vec>(w, a.weight, a.weight_dtype, j, count);
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] = v[i] * rstd * w[i];
        ps__store<N, vec>(y + j, v, count);
    }
}

template <class T, bool vec, int threads>
static __global__ void __launch_bounds__(ROW_THREADS) rmsnorm_backward_kernel(norm_args a)
{
    constexpr int N = ps__chunk<T>::elems;
    unsigned r = blockIdx.x * (ROW_THREADS / threads) + threadIdx.x / threads;
    if (r >= a.rows)
        return;
    unsigned t = threadIdx.x % threads;
    const T *x = static_cast<const T *>(a.x) + row_at(a, a.x_ld, r);
    const T *dy = static_cast<const T *>(a.dy) + row_at(a, a.dy_ld, r);
    T *dx = static_cast<T *>(a.dx) + row_at(a, a.dx_ld, r);
    float rstd = a.rstd[r], v[N], w[N], d[N], sum = 0;
    for (size_t j = (size_t)t * N; j < a.n; j += threads * N) {
        unsigned count = ps__chunk_count<N>(a.n, j);
        ps__load<N, vec>(v, x + j, count);
        ps__load<N, vec>(d, dy + j, count);
        ps__load_any<N, vec>(w, a.weight, a.weight_dtype, j, count);
#pragma unroll
        for (int i = 0; i < N; i++)
            sum = fmaf(v[i] * rstd, w[i] * d[i], sum);
    }
    float mean = row_sum<threads>(sum) / (float)a.n;
    for (size_t j = (size_t)t * N; j < a.n; j += threads * N) {
        unsigned count = ps__chunk_count<N>(a.n, j);
        ps__load<N, vec>(v, x + j, count);
        ps__load<N, vec>(d, dy + j, count);
        ps__load_any<N, vec>(w, a.weight, a.weight_dtype, j, count);
#pragma unroll
        for (int i = 0; i < N; i++)
            d[i] = rstd * (w[i] * d[i] - v[i] * rstd * mean);
        if (a.dx_add) {
            const T *add = static_cast<const T *>(a.dx_add) + row_at(a, a.dx_add_ld, r);
            ps__load<N, vec>(v, add + j, count);
#pragma unroll
            for (int i = 0; i < N; i++)
                d[i] += v[i];
        }
        ps__store<N, vec>(dx + j, d, count);
    }
}

/* partial[b][j] = sum of dy * xhat over rows [64 b, 64 b + 64). A thread has one chunk of columns.
 */
template <class T, bool vec>
static __global__ void __launch_bounds__(ROW_THREADS)
    rmsnorm_dweight_kernel(norm_args a, float *partial, unsigned chunks, unsigned items)
{
    constexpr int N = ps__chunk<T>::elems;
    unsigned item = blockIdx.x * ROW_THREADS + threadIdx.x;
    if (item >= items)
        return;
    unsigned begin = item / chunks * PARTIAL_ROWS, end = min(begin + PARTIAL_ROWS, a.rows);
    size_t j = (size_t)(item % chunks) * N;
    unsigned count = ps__chunk_count<N>(a.n, j);
    float sum[N] = {0}, v[N], d[N];
#pragma unroll 4
    for (unsigned r = begin; r < end; r++) {
        float rstd = a.rstd[r];
        ps__load<N, vec>(v, static_cast<const T *>(a.x) + row_at(a, a.x_ld, r) + j, count);
        ps__load<N, vec>(d, static_cast<const T *>(a.dy) + row_at(a, a.dy_ld, r) + j, count);
#pragma unroll
        for (int i = 0; i < N; i++)
            sum[i] = fmaf(d[i], v[i] * rstd, sum[i]);
    }
    ps__store<N, vec>(partial + (size_t)(item / chunks) * a.n + j, sum, count);
}

/* dweight[j] (+)= sum over b of partial[b][j]: slice s adds b = s, s + 16, ... ascending, then the
 * slices are added in order. */
static __global__ void __launch_bounds__(COMBINE_COLUMNS *COMBINE_SLICES)
    rmsnorm_combine_kernel(float *dweight, const float *partial, size_t n, unsigned blocks,
                           int accumulate)
{
    __shared__ float part[COMBINE_SLICES][COMBINE_COLUMNS];
    unsigned lane = threadIdx.x % COMBINE_COLUMNS, slice = threadIdx.x / COMBINE_COLUMNS;
    size_t j = (size_t)blockIdx.x * COMBINE_COLUMNS + lane;
    float sum = 0;
    if (j < n) {
#pragma unroll 8
        for (unsigned b = slice; b < blocks; b += COMBINE_SLICES)
            sum += partial[(size_t)b * n + j];
    }
    part[slice][lane] = sum;
    __syncthreads();
    if (slice || j >= n)
        return;
#pragma unroll
    for (int s = 1; s < COMBINE_SLICES; s++)
        sum += part[s][lane];
    dweight[j] = accumulate ? dweight[j] + sum : sum;
}

static norm_args pack(const struct ps_rmsnorm_args *a)
{
    norm_args out = {};
    out.rows = (unsigned)(a->n_tok * a->rows_per_tok);
    out.rows_per_tok = (unsigned)a->rows_per_tok;
    out.n = a->n;
    out.eps = a->eps;
    out.x = a->x;
    out.x_ld = a->x_ld;
    out.weight = a->weight;
    out.weight_dtype = a->weight_dtype;
    out.rstd = a->rstd;
    return out;
}

static int check(const struct ps_rmsnorm_args *a)
{
    if (!ps__is_compute(a->dtype) || !ps__is_float(a->weight_dtype) || !a->n || !a->rows_per_tok)
        return -EINVAL;
    return ps__chunks_fit(a->n_tok, a->rows_per_tok) ? 0 : -EINVAL;
}

/* Whether rows of dtype t begin aligned, heads inside a token included. */
static int aligned(const struct ps_rmsnorm_args *a, const void *p, size_t ld)
{
    int elems = a->dtype == PS_DTYPE_F32 ? 4 : 8;
    return ps__rows_aligned(p, ld, a->dtype, elems) &&
           (a->rows_per_tok == 1 || ps__rows_aligned(p, a->n, a->dtype, elems));
}

static int aligned_in(const struct ps_rmsnorm_args *a)
{
    return aligned(a, a->x, a->x_ld) &&
           ps__rows_aligned(a->weight, 0, a->weight_dtype, a->dtype == PS_DTYPE_F32 ? 4 : 8);
}

#define ROW_GRID(a) ps__grid((a).rows, short_row ? ROW_THREADS / 32 : 1)

template <class T, bool vec> static void forward(void *stream, const norm_args &a)
{
    bool short_row = a.n <= WARP_ROW_MAX;
    if (short_row)
        PS_LAUNCH((rmsnorm_forward_kernel<T, vec, 32>), ROW_GRID(a), ROW_THREADS, 0, stream, a);
    else
        PS_LAUNCH((rmsnorm_forward_kernel<T, vec, ROW_THREADS>), ROW_GRID(a), ROW_THREADS, 0,
                  stream, a);
}

int ps_rmsnorm_forward_cuda(void *stream, const struct ps_rmsnorm_args *args)
{
    if (check(args))
        return -EINVAL;
    norm_args a = pack(args);
    a.y = args->y;
    a.y_ld = args->y_ld;
    if (!a.rows)
        return 0;
    bool vec = aligned_in(args) && aligned(args, args->y, args->y_ld);
    if (args->dtype == PS_DTYPE_F32)
        vec ? forward<float, true>(stream, a) : forward<float, false>(stream, a);
    else
        vec ? forward<ps__bf16, true>(stream, a) : forward<ps__bf16, false>(stream, a);
    return ps_gpu_check_launch();
}

struct dweight_args {
    float *dweight, *partial;
    int accumulate;
};

template <class T, bool vec>
static void backward(void *stream, const norm_args &a, const dweight_args &d)
{
    bool short_row = a.n <= WARP_ROW_MAX;
    if (d.dweight) {
        unsigned chunks = (unsigned)ps__chunks_per_row(a.n, ps__chunk<T>::elems);
        unsigned blocks = ps__grid(a.rows, PARTIAL_ROWS), items = blocks * chunks;
        PS_LAUNCH((rmsnorm_dweight_kernel<T, vec>), ps__grid(items, ROW_THREADS), ROW_THREADS, 0,
                  stream, a, d.partial, chunks, items);
        PS_LAUNCH(rmsnorm_combine_kernel, ps__grid(a.n, COMBINE_COLUMNS),
                  COMBINE_COLUMNS * COMBINE_SLICES, 0, stream, d.dweight, d.partial, a.n, blocks,
                  d.accumulate);
    }
    if (short_row)
        PS_LAUNCH((rmsnorm_backward_kernel<T, vec, 32>), ROW_GRID(a), ROW_THREADS, 0, stream, a);
    else
        PS_LAUNCH((rmsnorm_backward_kernel<T, vec, ROW_THREADS>), ROW_GRID(a), ROW_THREADS, 0,
                  stream, a);
}

int ps_rmsnorm_backward_cuda(void *stream, const struct ps_rmsnorm_args *args, void *workspace)
{
    if (check(args) || (args->dweight && !workspace))
        return -EINVAL;
    if (!ps__chunks_fit(ps__grid(args->n_tok * args->rows_per_tok, PARTIAL_ROWS), args->n))
        return -EINVAL;
    norm_args a = pack(args);
    a.dy = args->dy;
    a.dy_ld = args->dy_ld;
    a.dx = args->dx;
    a.dx_ld = args->dx_ld;
    a.dx_add = args->dx_add;
    a.dx_add_ld = args->dx_add_ld;
    dweight_args d = {args->dweight, static_cast<float *>(workspace), args->accumulate};
    if (!a.rows) {
        if (d.dweight && !d.accumulate)
            PS_LAUNCH(rmsnorm_combine_kernel, ps__grid(a.n, COMBINE_COLUMNS),
                      COMBINE_COLUMNS * COMBINE_SLICES, 0, stream, d.dweight, d.partial, a.n, 0, 0);
        return ps_gpu_check_launch();
    }
    bool vec = aligned_in(args) && aligned(args, args->dy, args->dy_ld) &&
               aligned(args, args->dx, args->dx_ld) &&
               aligned(args, args->dx_add, args->dx_add_ld) &&
               (!d.dweight || ps__rows_aligned(d.partial, a.n, PS_DTYPE_F32, 4));
    if (args->dtype == PS_DTYPE_F32)
        vec ? backward<float, true>(stream, a, d) : backward<float, false>(stream, a, d);
    else
        vec ? backward<ps__bf16, true>(stream, a, d) : backward<ps__bf16, false>(stream, a, d);
    return ps_gpu_check_launch();
}
