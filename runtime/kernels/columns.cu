/* Scaled columns and products summed over rows or columns on the device: see columns.h. CPU
 * reference: columns.c.
 *
 * Bytes moved per element: scaled columns x + y and what is added; column dots both operands;
 * scaled matrix 8; matrix dots 16 (g and b twice); row norms the weight's.
 *
 * Design: sums are fp64 in a fixed order that depends on the shape alone, but not the CPU's: over
 * rows, slice s of 16 takes rows s, s + 16, ... ascending and the slices are added in order; along
 * a row, lane l takes chunks l, l + 32, ... and the lanes are added as a butterfly. */
#include <float.h>
#include <math.h>

#include "runtime/kernels/gpu_vec_internal.cuh"
#include "runtime/kernels/kernels_cuda.h"

#define THREADS 256
#define COLUMNS 32 /* of a block of the sums over rows */
#define SLICES 16

/* ---- scaled columns ---- */

struct scale_args {
    const void *x, *bias, *residual;
    const float *scale;
    void *y;
    enum ps_dtype bias_dtype;
    size_t n;
    unsigned chunks, items; /* of a row, of all */
};

template <class T, bool vec>
static __global__ void __launch_bounds__(THREADS) scale_columns_kernel(scale_args a)
{
    constexpr int N = ps__chunk<T>::elems;
    unsigned item = blockIdx.x * THREADS + threadIdx.x;
    if (item >= a.items)
        return;
    size_t j = (size_t)(item % a.chunks) * N, at = item / a.chunks * a.n + j;
    unsigned count = ps__chunk_count<N>(a.n, j);
    float v[N], w[N];
    ps__load<N, vec>(v, static_cast<const T *>(a.x) + at, count);
    ps__load<N, vec>(w, a.scale + j, count);
#pragma unroll
    for (int i = 0; i < N; i++)
        v[i] = w[i] * v[i];
    if (a.bias) {
        ps__load_any<N, vec>(w, a.bias, a.bias_dtype, j, count);
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] += w[i];
    }
    if (a.residual) {
        ps__load<N, vec>(w, static_cast<const T *>(a.residual) + at, count);
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] += w[i];
    }
    ps__store<N, vec>(static_cast<T *>(a.y) + at, v, count);
}

int ps_scale_columns_cuda(void *stream, const struct ps_scale_columns_args *args)
{
    const enum ps_dtype t = args->dtype;
    if (!ps__is_compute(t) || (args->bias && !ps__is_float(args->bias_dtype)))
        return -EINVAL;
    const int elems = t == PS_DTYPE_F32 ? 4 : 8;
    const size_t chunks = ps__chunks_per_row(args->n, elems), n = args->n;
    if (chunks > 0x7fffffff || !ps__chunks_fit(args->n_tok, chunks))
        return -EINVAL;
    scale_args a = {args->x,     args->bias,       args->residual,
                    args->scale, args->y,          args->bias_dtype,
                    n,           (unsigned)chunks, (unsigned)(args->n_tok * chunks)};
    if (!a.items)
        return 0;
    const bool vec = ps__rows_aligned(a.x, n, t, elems) && ps__rows_aligned(a.y, n, t, elems) &&
                     ps__rows_aligned(a.residual, n, t, elems) &&
                     ps__rows_aligned(a.scale, 0, PS_DTYPE_F32, elems) &&
                     ps__rows_aligned(a.bias, 0, a.bias_dtype, elems);
    const unsigned grid = ps__grid(a.items, THREADS);
    if (t == PS_DTYPE_F32 && vec)
        PS_LAUNCH((scale_columns_kernel<float, true>), grid, THREADS, 0, stream, a);
    else if (t == PS_DTYPE_F32)
        PS_LAUNCH((scale_columns_kernel<float, false>), grid, THREADS, 0, stream, a);
    else if (vec)
        PS_LAUNCH((scale_columns_kernel<ps__bf16, true>), grid, THREADS, 0, stream, a);
    else
        PS_LAUNCH((scale_columns_kernel<ps__bf16, false>), grid, THREADS, 0, stream, a);
    return ps_gpu_check_launch();
}

/* ---- sums over rows ---- */

struct dot_args {
    const void *a, *b;
    const float *row, *divisor; /* factor of a row, NULL: 1; divisor of a column, NULL: 1 */
    float *out;
    size_t rows, n;
    int accumulate;
};

template <class T>
static __global__ void __launch_bounds__(COLUMNS *SLICES) column_dot_kernel(dot_args d)
{
    __shared__ double part[SLICES][COLUMNS];
    const unsigned lane = threadIdx.x % COLUMNS, slice = threadIdx.x / COLUMNS;
    const size_t j = (size_t)blockIdx.x * COLUMNS + lane;
    const T *a = static_cast<const T *>(d.a) + j, *b = static_cast<const T *>(d.b) + j;
    double sum = 0;
    if (j < d.n) {
#pragma unroll 4
        for (size_t t = slice; t < d.rows; t += SLICES) {
            const double x = (double)ps__to_f32(a[t * d.n]);
            const double y = (double)ps__to_f32(b[t * d.n]);
            sum += d.row ? (double)d.row[t] * x * y : x * y;
        }
    }
    part[slice][lane] = sum;
    __syncthreads();
    if (slice || j >= d.n)
        return;
#pragma unroll
    for (int s = 1; s < SLICES; s++)
        sum += part[s][lane];
    const float v = (float)(d.divisor ? sum / (double)d.divisor[j] : sum);
    d.out[j] = d.accumulate ? v + d.out[j] : v;
}

static int column_dot(void *stream, const dot_args &d, enum ps_dtype dtype)
{
    if (!ps__is_compute(dtype) || d.n > 0x7fffffff)
        return -EINVAL;
    if (!d.n)
        return 0;
    const unsigned grid = ps__grid(d.n, COLUMNS);
    if (dtype == PS_DTYPE_F32)
        PS_LAUNCH(column_dot_kernel<float>, grid, COLUMNS * SLICES, 0, stream, d);
    else
        PS_LAUNCH(column_dot_kernel<ps__bf16>, grid, COLUMNS * SLICES, 0, stream, d);
    return ps_gpu_check_launch();
}

int ps_column_dot_cuda(void *stream, float *out, const void *a, const void *b, enum ps_dtype dtype,
                       const float *divisor, size_t n_tok, size_t n, int accumulate)
{
    const dot_args d = {a, b, NULL, divisor, out, n_tok, n, accumulate};
    return column_dot(stream, d, dtype);
}

/* ---- matrices ---- */

static __global__ void __launch_bounds__(THREADS)
    scale_matrix_kernel(float *y, const float *x, const float *row, const float *col, size_t cols,
                        size_t count)
{
    const size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at < count)
        y[at] = row[at / cols] * x[at] * col[at % cols];
}

int ps_scale_matrix_cuda(void *stream, float *y, const float *x, const float *row, const float *col,
                         size_t rows, size_t cols)
{
    if (!ps__chunks_fit(rows, cols))
        return -EINVAL;
    const size_t count = rows * cols;
    if (!count)
        return 0;
    PS_LAUNCH(scale_matrix_kernel, ps__grid(count, THREADS), THREADS, 0, stream, y, x, row, col,
              cols, count);
    return ps_gpu_check_launch();
}

/* A warp a row: out[i] (+)= sum over k of g[i,k] b[i,k] col[k]. */
static __global__ void __launch_bounds__(THREADS)
    row_dot_kernel(float *out, const float *g, const float *b, const float *col, size_t rows,
                   size_t cols, int accumulate)
{
    const size_t i = (size_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (i >= rows) /* a whole warp */
        return;
    double sum = 0;
    for (size_t k = threadIdx.x % 32; k < cols; k += 32)
        sum += (double)g[i * cols + k] * (double)b[i * cols + k] * (double)col[k];
    sum = ps_gpu_warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        out[i] = accumulate ? (float)sum + out[i] : (float)sum;
}

int ps_matrix_dots_cuda(void *stream, const struct ps_matrix_dots_args *a)
{
    if (!ps__chunks_fit(a->rows, a->cols))
        return -EINVAL;
    if (a->rows)
        PS_LAUNCH(row_dot_kernel, ps__grid(a->rows, THREADS / 32), THREADS, 0, stream, a->row_out,
                  a->g, a->b, a->col, a->rows, a->cols, a->accumulate);
    const dot_args d = {a->g, a->b, a->row, NULL, a->col_out, a->rows, a->cols, a->accumulate};
    const int ret = column_dot(stream, d, PS_DTYPE_F32);
    return ret < 0 ? ret : ps_gpu_check_launch();
}

/* ---- row norms ---- */

/* A warp a row. */
template <class T, bool vec>
static __global__ void __launch_bounds__(THREADS) row_norms_kernel(struct ps_row_norms_args a)
{
    constexpr int N = ps__chunk<T>::elems;
    const unsigned lane = threadIdx.x % 32;
    const size_t i = (size_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (i >= a.out) /* a whole warp */
        return;
    const T *w = static_cast<const T *>(a.w) + i * a.in;
    double square = 0, low = 0;
    for (size_t j = (size_t)lane * N; j < a.in; j += 32 * N) {
        float v[N];
        ps__load<N, vec>(v, w + j, ps__chunk_count<N>(a.in, j));
#pragma unroll
        for (int k = 0; k < N; k++)
            square += (double)v[k] * (double)v[k];
    }
    for (size_t k = lane; k < a.r; k += 32) {
        const size_t x = i * a.r + k;
        low += (double)a.b[x] * (2 * (double)a.q[x] + (double)a.s * (double)a.bg[x]);
    }
    square = ps_gpu_warp_sum(square) + (double)a.s * ps_gpu_warp_sum(low);
    const double norm = sqrt(square > (double)FLT_MIN || isnan(square) ? square : (double)FLT_MIN);
    if (lane == 0 && a.n)
        a.n[i] = (float)norm;
    if (lane == 0 && a.c)
        a.c[i] = a.m[i] / (float)norm;
}

template <class T>
static void row_norms(void *stream, const struct ps_row_norms_args &a, enum ps_dtype dtype)
{
    const unsigned grid = ps__grid(a.out, THREADS / 32);
    if (ps__rows_aligned(a.w, a.in, dtype, ps__chunk<T>::elems))
        PS_LAUNCH((row_norms_kernel<T, true>), grid, THREADS, 0, stream, a);
    else
        PS_LAUNCH((row_norms_kernel<T, false>), grid, THREADS, 0, stream, a);
}

int ps_row_norms_cuda(void *stream, const struct ps_row_norms_args *args)
{
    if (!ps__is_float(args->w_dtype) || args->out > 0x7fffffff)
        return -EINVAL;
    if (!args->out)
        return 0;
    if (args->w_dtype == PS_DTYPE_F32)
        row_norms<float>(stream, *args, args->w_dtype);
    else if (args->w_dtype == PS_DTYPE_BF16)
        row_norms<ps__bf16>(stream, *args, args->w_dtype);
    else
        row_norms<ps__f16>(stream, *args, args->w_dtype);
    return ps_gpu_check_launch();
}
