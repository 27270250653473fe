/* Small element-wise and reduction operations on the device: see elementwise.h, and gemm.h for the
 * end of a GEMM. CPU reference: elementwise.c, gemm_portable.c.
 *
 * Bytes moved per element: convert, gather and scatter source plus destination; dropout of BF16 4,
 * with add 6; column and square sums one read; round_bf16 8; the GEMM's end 4 + destination + what
 * it adds.
 *
 * Column and square sums have the CPU's order of additions, lane by lane and block by block, and
 * its bits with it: where a gradient's norm is computed does not matter. */
#include "runtime/kernels/elementwise.h"
#include "runtime/kernels/gpu_vec_internal.cuh"
#include "runtime/kernels/kernels_cuda.h"

#define THREADS 256
#define COLUMNS 32         /* of a block of the column sums */
#define SLICES 16          /* row blocks that it sums at a time */
#define SUM_ROWS 64        /* rows of one fp32 partial sum, as on the CPU */
#define SQUARE_ELEMS 65536 /* elements of one fp64 partial sum, as on the CPU */
#define SQUARE_LANES 32    /* element i goes to lane i % 32 */
#define SQUARE_TILE 8192
#define SUM_TILE 1024

/* Blocks of a grid over n elements of a dense tensor; 0 when there are too many. */
static unsigned dense_grid(size_t n, int elems)
{
    size_t per_block = (size_t)THREADS * (size_t)elems;
    size_t blocks = (n + per_block - 1) / per_block;
    return blocks > 0x7fffffff ? 0 : (unsigned)blocks;
}

/* ---- convert ---- */

template <class D, class S, bool vec>
static __global__ void __launch_bounds__(THREADS) convert_kernel(D *dst, const S *src, size_t n)
{
    constexpr int N = 8;
    size_t at = ((size_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (at >= n)
        return;
    float v[N];
    ps__load<N, vec>(v, src + at, ps__chunk_count<N>(n, at));
    ps__store<N, vec>(dst + at, v, ps__chunk_count<N>(n, at));
}

template <class D, class S> static void convert(void *stream, void *dst, const void *src, size_t n)
{
    unsigned grid = dense_grid(n, 8);
    D *d = static_cast<D *>(dst);
    const S *s = static_cast<const S *>(src);
    if (((uintptr_t)dst | (uintptr_t)src) % 16 == 0)
        PS_LAUNCH((convert_kernel<D, S, true>), grid, THREADS, 0, stream, d, s, n);
    else
        PS_LAUNCH((convert_kernel<D, S, false>), grid, THREADS, 0, stream, d, s, n);
}

int ps_convert_cuda(void *stream, void *dst, enum ps_dtype dst_dtype, const void *src,
                    enum ps_dtype src_dtype, size_t n)
{
    if (!ps__is_float(dst_dtype) || !ps__is_float(src_dtype) || (n && !dense_grid(n, 8)))
        return -EINVAL;
    if (!n || (dst_dtype == src_dtype && dst == src))
        return 0;
    if (dst_dtype == src_dtype) { /* bits are kept, NaNs' too */
        (void)cudaMemcpyAsync(dst, src, n * ps__elem_bytes(dst_dtype), cudaMemcpyDefault,
                              (cudaStream_t)stream);
        return ps_gpu_check_launch(); /* an error stays until it is asked for */
    }
    if (dst_dtype == PS_DTYPE_F32)
        src_dtype == PS_DTYPE_BF16 ? convert<float, ps__bf16>(stream, dst, src, n)
                                   : convert<float, ps__f16>(stream, dst, src, n);
    else if (dst_dtype == PS_DTYPE_BF16)
        src_dtype == PS_DTYPE_F32 ? convert<ps__bf16, float>(stream, dst, src, n)
                                  : convert<ps__bf16, ps__f16>(stream, dst, src, n);
    else
        src_dtype == PS_DTYPE_F32 ? convert<ps__f16, float>(stream, dst, src, n)
                                  : convert<ps__f16, ps__bf16>(stream, dst, src, n);
    return ps_gpu_check_launch();
}

template <bool vec>
static __global__ void __launch_bounds__(THREADS) round_bf16_kernel(float *x, size_t n)
{
    constexpr int N = 4;
    size_t at = ((size_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (at >= n)
        return;
    float v[N];
    ps__load<N, vec>(v, x + at, ps__chunk_count<N>(n, at));
#pragma unroll
    for (int i = 0; i < N; i++)
        v[i] = ps__to_f32(ps__from_f32<ps__bf16>(v[i]));
    ps__store<N, vec>(x + at, v, ps__chunk_count<N>(n, at));
}

int ps_round_bf16_cuda(void *stream, float *x, size_t n)
{
    unsigned grid = dense_grid(n, 4);
    if (!n)
        return 0;
    if (!grid)
        return -EINVAL;
    if ((uintptr_t)x % 16 == 0)
        PS_LAUNCH(round_bf16_kernel<true>, grid, THREADS, 0, stream, x, n);
    else
        PS_LAUNCH(round_bf16_kernel<false>, grid, THREADS, 0, stream, x, n);
    return ps_gpu_check_launch();
}

template <bool vec>
static __global__ void __launch_bounds__(THREADS) add_f32_kernel(float *y, const float *x, size_t n)
{
    constexpr int N = 4;
    size_t at = ((size_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (at >= n)
        return;
    float v[N], w[N];
    ps__load<N, vec>(v, y + at, ps__chunk_count<N>(n, at));
    ps__load<N, vec>(w, x + at, ps__chunk_count<N>(n, at));
#pragma unroll
    for (int i = 0; i < N; i++)
        v[i] += w[i];
    ps__store<N, vec>(y + at, v, ps__chunk_count<N>(n, at));
}

int ps_add_f32_cuda(void *stream, float *y, const float *x, size_t n)
{
    unsigned grid = dense_grid(n, 4);
    if (!n)
        return 0;
    if (!grid)
        return -EINVAL;
    if (((uintptr_t)x | (uintptr_t)y) % 16 == 0)
        PS_LAUNCH(add_f32_kernel<true>, grid, THREADS, 0, stream, y, x, n);
    else
        PS_LAUNCH(add_f32_kernel<false>, grid, THREADS, 0, stream, y, x, n);
    return ps_gpu_check_launch();
}

/* ---- rows ---- */

/* T stands for the element's bits. scatter: row[i] is the destination's row, else the source's. */
template <class T, bool vec, bool scatter>
static __global__ void __launch_bounds__(THREADS)
    rows_kernel(T *y, const T *x, const int32_t *row, size_t n, unsigned chunks, unsigned items)
{
    constexpr int N = ps__chunk<T>::elems;
    unsigned item = blockIdx.x * THREADS + threadIdx.x;
    if (item >= items)
        return;
    size_t i = item / chunks, j = (size_t)(item % chunks) * N, other = (size_t)row[i];
    y += (scatter ? other : i) * n + j;
    x += (scatter ? i : other) * n + j;
    unsigned count = ps__chunk_count<N>(n, j);
    if (vec && count == (unsigned)N) {
        *reinterpret_cast<uint4 *>(y) = *reinterpret_cast<const uint4 *>(x);
        return;
    }
    for (unsigned k = 0; k < count; k++)
        y[k] = x[k];
}

template <class T, bool scatter>
static int move_rows(void *stream, void *y, const void *x, const int32_t *row, size_t row_count,
                     size_t n)
{
    size_t chunks = ps__chunks_per_row(n, ps__chunk<T>::elems);
    if (chunks > 0x7fffffff || !ps__chunks_fit(row_count, chunks))
        return -EINVAL;
    unsigned items = (unsigned)(row_count * chunks), grid = ps__grid(items, THREADS);
    if (!items)
        return 0;
    T *to = static_cast<T *>(y);
    const T *from = static_cast<const T *>(x);
    if (((uintptr_t)x | (uintptr_t)y | n * sizeof(T)) % 16 == 0)
        PS_LAUNCH((rows_kernel<T, true, scatter>), grid, THREADS, 0, stream, to, from, row, n,
                  (unsigned)chunks, items);
    else
        PS_LAUNCH((rows_kernel<T, false, scatter>), grid, THREADS, 0, stream, to, from, row, n,
                  (unsigned)chunks, items);
    return ps_gpu_check_launch();
}

int ps_gather_rows_cuda(void *stream, void *y, const void *x, const int32_t *row, size_t row_count,
                        size_t n, enum ps_dtype dtype)
{
    if (!ps__is_float(dtype))
        return -EINVAL;
    return dtype == PS_DTYPE_F32 ? move_rows<uint32_t, false>(stream, y, x, row, row_count, n)
                                 : move_rows<uint16_t, false>(stream, y, x, row, row_count, n);
}

int ps_scatter_rows_cuda(void *stream, void *y, const void *x, const int32_t *row, size_t row_count,
                         size_t n, enum ps_dtype dtype)
{
    if (!ps__is_float(dtype))
        return -EINVAL;
    return dtype == PS_DTYPE_F32 ? move_rows<uint32_t, true>(stream, y, x, row, row_count, n)
                                 : move_rows<uint16_t, true>(stream, y, x, row, row_count, n);
}

/* ---- dropout ---- */

/* ps_rng_philox and ps_rng_block of rng.c, in two parts: what depends on the stream alone is done
 * once by the host. */
static __host__ __device__ inline void philox(uint32_t c[4], uint32_t k0, uint32_t k1)
{
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0];
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)p1;
        c[3] = (uint32_t)p0;
        c[0] = n0;
        c[2] = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

struct stream_key {
    uint32_t c2, c3, k0, k1; /* upper half of the counter, key */
};

static stream_key fold(const struct ps_rng_key *key)
{
    uint32_t k0 = (uint32_t)key->seed, k1 = (uint32_t)(key->seed >> 32);
    uint32_t s[4] = {(uint32_t)key->step, (uint32_t)(key->step >> 32), key->micro_batch,
                     key->layer};
    philox(s, k0 ^ (key->site * 0x85EBCA6Bu), k1 ^ key->site);
    stream_key out = {s[0], s[1], k0 ^ s[2], k1 ^ s[3]};
    return out;
}

template <class T, bool vec>
static __global__ void __launch_bounds__(THREADS)
    dropout_kernel(T *y, const T *x, size_t n, float p, stream_key key, int how)
{
    constexpr int N = ps__chunk<T>::elems; /* one or two blocks of four words */
    size_t at = ((size_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (at >= n)
        return;
    unsigned count = ps__chunk_count<N>(n, at);
    float v[N], old[N], keep_share = 1.0f - p;
    ps__load<N, vec>(v, x + at, count);
#pragma unroll
    for (int k = 0; k < N; k += 4) {
        uint64_t block = (at + (size_t)k) / 4;
        uint32_t w[4] = {(uint32_t)block, (uint32_t)(block >> 32), key.c2, key.c3};
        philox(w, key.k0, key.k1);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float uniform = (float)(w[i] >> 8) * 0x1p-24f; /* as ps_rng_uniform */
            float dropped = uniform >= p ? v[k + i] / keep_share : 0.0f;
            v[k + i] = how & PS_DROPOUT_REST ? v[k + i] - dropped : dropped;
        }
    }
    if (how & PS_DROPOUT_ADD) {
        ps__load<N, vec>(old, y + at, count);
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] += old[i];
    }
    ps__store<N, vec>(y + at, v, count);
}

template <class T>
static int dropout(void *stream, void *y, const void *x, size_t n, float p, const stream_key &key,
                   int how)
{
    unsigned grid = dense_grid(n, ps__chunk<T>::elems);
    if (!n)
        return 0;
    if (!grid)
        return -EINVAL;
    T *to = static_cast<T *>(y);
    const T *from = static_cast<const T *>(x);
    if (((uintptr_t)x | (uintptr_t)y) % 16 == 0)
        PS_LAUNCH((dropout_kernel<T, true>), grid, THREADS, 0, stream, to, from, n, p, key, how);
    else
        PS_LAUNCH((dropout_kernel<T, false>), grid, THREADS, 0, stream, to, from, n, p, key, how);
    return ps_gpu_check_launch();
}

int ps_dropout_cuda(void *stream, void *y, const void *x, enum ps_dtype dtype, size_t n_tok,
                    size_t n, float p, const struct ps_rng_key *key, int how)
{
    if (!ps__is_compute(dtype))
        return -EINVAL;
    stream_key k = fold(key);
    return dtype == PS_DTYPE_F32 ? dropout<float>(stream, y, x, n_tok * n, p, k, how)
                                 : dropout<ps__bf16>(stream, y, x, n_tok * n, p, k, how);
}

/* ---- sums ---- */

/* A block has 32 columns; its slices sum 16 blocks of 64 rows at a time, then the first slice adds
 * these in ascending order. */
template <class T>
static __global__ void __launch_bounds__(COLUMNS *SLICES)
    column_sum_kernel(float *out, const T *x, size_t ld, size_t n_tok, size_t n, int accumulate)
{
    __shared__ float part[SLICES][COLUMNS];
    unsigned lane = threadIdx.x % COLUMNS, slice = threadIdx.x / COLUMNS;
    size_t j = (size_t)blockIdx.x * COLUMNS + lane;
    float total = 0;
    for (size_t base = 0; base < n_tok; base += SLICES * SUM_ROWS) {
        size_t begin = base + slice * SUM_ROWS, end = min(begin + SUM_ROWS, n_tok);
        float sum = 0;
        if (j < n) {
#pragma unroll 8
            for (size_t t = begin; t < end; t++)
                sum += ps__to_f32(x[t * ld + j]);
        }
        part[slice][lane] = sum;
        __syncthreads();
        if (slice == 0)
            for (unsigned s = 0; s < SLICES && base + s * SUM_ROWS < n_tok; s++)
                total += part[s][lane];
        __syncthreads();
    }
    if (slice == 0 && j < n)
        out[j] = accumulate ? out[j] + total : total;
}

int ps_column_sum_cuda(void *stream, float *out, const void *x, size_t ld, enum ps_dtype dtype,
                       size_t n_tok, size_t n, int accumulate)
{
    if (!ps__is_compute(dtype) || n > 0x7fffffff)
        return -EINVAL;
    if (!n)
        return 0;
    unsigned grid = ps__grid(n, COLUMNS);
    if (dtype == PS_DTYPE_F32)
        PS_LAUNCH(column_sum_kernel<float>, grid, COLUMNS * SLICES, 0, stream, out,
                  static_cast<const float *>(x), ld, n_tok, n, accumulate);
    else
        PS_LAUNCH(column_sum_kernel<ps__bf16>, grid, COLUMNS * SLICES, 0, stream, out,
                  static_cast<const ps__bf16 *>(x), ld, n_tok, n, accumulate);
    return ps_gpu_check_launch();
}

/* All threads bring a tile into shared memory, one warp sums it: lane l the elements l, l + 32, ...
 * The squares are exact in fp64, so fused and separate additions agree. */
template <class T, bool vec>
static __global__ void __launch_bounds__(THREADS)
    square_sum_kernel(double *out, const T *x, size_t n)
{
    constexpr int N = ps__chunk<T>::elems;
    alignas(16) __shared__ float tile[SQUARE_TILE];
    size_t begin = (size_t)blockIdx.x * SQUARE_ELEMS, end = min(begin + SQUARE_ELEMS, n);
    double sum = 0;
    for (size_t base = begin; base < end; base += SQUARE_TILE) {
        for (unsigned k = threadIdx.x * N; k < SQUARE_TILE; k += THREADS * N) {
            size_t at = base + k;
            float v[N];
            ps__load<N, vec>(v, x + at, at < end ? ps__chunk_count<N>(end, at) : 0);
#pragma unroll
            for (int i = 0; i < N; i++)
                tile[k + (unsigned)i] = v[i];
        }
        __syncthreads();
        if (threadIdx.x < SQUARE_LANES) {
#pragma unroll 16
            for (unsigned k = threadIdx.x; k < SQUARE_TILE; k += SQUARE_LANES)
                sum += (double)tile[k] * (double)tile[k];
        }
        __syncthreads();
    }
    if (threadIdx.x >= SQUARE_LANES)
        return;
    sum = ps_gpu_warp_sum(sum);
    if (threadIdx.x == 0)
        out[blockIdx.x] = sum;
}

int ps_square_sum_cuda(void *stream, double *out, const void *x, enum ps_dtype dtype, size_t n)
{
    if (!ps__is_compute(dtype) || n / SQUARE_ELEMS >= 0x7fffffff)
        return -EINVAL;
    if (!n)
        return 0;
    unsigned grid = ps__grid(n, SQUARE_ELEMS);
    bool vec = (uintptr_t)x % 16 == 0;
    const float *f = static_cast<const float *>(x);
    const ps__bf16 *b = static_cast<const ps__bf16 *>(x);
    if (dtype == PS_DTYPE_F32 && vec)
        PS_LAUNCH((square_sum_kernel<float, true>), grid, THREADS, 0, stream, out, f, n);
    else if (dtype == PS_DTYPE_F32)
        PS_LAUNCH((square_sum_kernel<float, false>), grid, THREADS, 0, stream, out, f, n);
    else if (vec)
        PS_LAUNCH((square_sum_kernel<ps__bf16, true>), grid, THREADS, 0, stream, out, b, n);
    else
        PS_LAUNCH((square_sum_kernel<ps__bf16, false>), grid, THREADS, 0, stream, out, b, n);
    return ps_gpu_check_launch();
}

/* One block: all threads bring a tile, one adds it. */
static __global__ void __launch_bounds__(THREADS)
    sum_f64_kernel(double *out, const double *x, size_t n)
{
    __shared__ double tile[SUM_TILE];
    double sum = 0;
    for (size_t base = 0; base < n; base += SUM_TILE) {
        unsigned count = n - base < SUM_TILE ? (unsigned)(n - base) : SUM_TILE;
        for (unsigned k = threadIdx.x; k < count; k += THREADS)
            tile[k] = x[base + k];
        __syncthreads();
        if (threadIdx.x == 0) {
#pragma unroll 8
            for (unsigned k = 0; k < count; k++)
                sum += tile[k];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0)
        out[0] = sum;
}

int ps_sum_f64_cuda(void *stream, double *out, const double *x, size_t n)
{
    PS_LAUNCH(sum_f64_kernel, 1, THREADS, 0, stream, out, x, n);
    return ps_gpu_check_launch();
}

/* ---- the end of a GEMM ---- */

struct epilogue_args {
    const float *acc;
    size_t n;
    unsigned chunks, items; /* of a row, of all */
    const void *bias, *residual;
    enum ps_dtype bias_dtype, residual_dtype;
    size_t residual_ld;
    void *c;
    size_t c_ld;
    int accumulate;
};

template <class T, bool vec>
static __global__ void __launch_bounds__(THREADS) gemm_epilogue_kernel(epilogue_args a)
{
    constexpr int N = ps__chunk<T>::elems;
    unsigned item = blockIdx.x * THREADS + threadIdx.x;
    if (item >= a.items)
        return;
    size_t i = item / a.chunks, j = (size_t)(item % a.chunks) * N;
    unsigned count = ps__chunk_count<N>(a.n, j);
    T *c = static_cast<T *>(a.c) + i * a.c_ld + j;
    float v[N], w[N];
    ps__load<N, vec>(v, a.acc + i * a.n + j, count);
    if (a.bias) {
        ps__load_any<N, vec>(w, a.bias, a.bias_dtype, j, count);
#pragma unroll
        for (int k = 0; k < N; k++)
            v[k] += w[k];
    }
    if (a.residual) {
        ps__load_any<N, vec>(w, a.residual, a.residual_dtype, i * a.residual_ld + j, count);
#pragma unroll
        for (int k = 0; k < N; k++)
            v[k] += w[k];
    }
    if (a.accumulate) {
        ps__load<N, vec>(w, c, count);
#pragma unroll
        for (int k = 0; k < N; k++)
            v[k] += w[k];
    }
    ps__store<N, vec>(c, v, count);
}

int ps_gemm_epilogue_cuda(void *stream, const struct ps_gemm_args *args, const float *acc)
{
    const struct ps_gemm_args *g = args;
    if (!ps__is_compute(g->c_dtype) || (g->accumulate && g->c_dtype != PS_DTYPE_F32) ||
        (g->bias && !ps__is_float(g->bias_dtype)) ||
        (g->residual && !ps__is_compute(g->residual_dtype)))
        return -EINVAL;
    int elems = g->c_dtype == PS_DTYPE_F32 ? 4 : 8;
    size_t chunks = ps__chunks_per_row(g->n, elems);
    if (chunks > 0x7fffffff || !ps__chunks_fit(g->m, chunks))
        return -EINVAL;
    epilogue_args a = {acc,
                       g->n,
                       (unsigned)chunks,
                       (unsigned)(g->m * chunks),
                       g->bias,
                       g->residual,
                       g->bias_dtype,
                       g->residual_dtype,
                       g->residual_ld,
                       g->c,
                       g->c_ld,
                       g->accumulate};
    if (!a.items)
        return 0;
    bool vec = ps__rows_aligned(acc, g->n, PS_DTYPE_F32, elems) &&
               ps__rows_aligned(g->bias, 0, g->bias_dtype, elems) &&
               ps__rows_aligned(g->residual, g->residual_ld, g->residual_dtype, elems) &&
               ps__rows_aligned(g->c, g->c_ld, g->c_dtype, elems);
    unsigned grid = ps__grid(a.items, THREADS);
    if (g->c_dtype == PS_DTYPE_F32 && vec)
        PS_LAUNCH((gemm_epilogue_kernel<float, true>), grid, THREADS, 0, stream, a);
    else if (g->c_dtype == PS_DTYPE_F32)
        PS_LAUNCH((gemm_epilogue_kernel<float, false>), grid, THREADS, 0, stream, a);
    else if (vec)
        PS_LAUNCH((gemm_epilogue_kernel<ps__bf16, true>), grid, THREADS, 0, stream, a);
    else
        PS_LAUNCH((gemm_epilogue_kernel<ps__bf16, false>), grid, THREADS, 0, stream, a);
    return ps_gpu_check_launch();
}
