/* Scaled columns and their products on the device: see columns.h. CPU reference: columns.c.
 *
 * Bytes moved per element: scaled columns x, y and what is added; column dots both matrices once; row
 * norms W once. Sums in fp64, in an order that the shape alone decides (not the CPU's). */
#include "runtime/kernels/columns.h"
#include "runtime/kernels/gpu_vec_internal.cuh"
#include "runtime/kernels/kernels_cuda.h"

#define THREADS 256
#define COLUMNS 32 /* of a block of column dots */
#define SLICES 8   /* rows that it reads at a time */
#define ROW_THREADS 128

static unsigned blocks_for(size_t n, size_t per_block)
{
    size_t blocks = (n + per_block - 1) / per_block;
    return blocks > 0x7fffffff ? 0 : (unsigned)blocks;
}

template <class T, class B>
static __global__ void __launch_bounds__(THREADS)
    scale_kernel(T *y, const T *x, const float *scale, const B *bias, const T *residual,
                 size_t elements, size_t n)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= elements)
        return;
    size_t j = i % n;
    float v = scale[j] * ps__to_f32(x[i]);
    if (bias)
        v += ps__to_f32(bias[j]);
    if (residual)
        v += ps__to_f32(residual[i]);
    y[i] = ps__from_f32<T>(v);
}

template <class T, class B>
static int scale_columns(void *stream, const struct ps_scale_columns_args *a)
{
    size_t elements = a->n_tok * a->n;
    unsigned grid = blocks_for(elements, THREADS);
    if (!elements)
        return 0;
    if (!grid)
        return -EINVAL;
    PS_LAUNCH((scale_kernel<T, B>), grid, THREADS, 0, stream, static_cast<T *>(a->y),
              static_cast<const T *>(a->x), a->scale, static_cast<const B *>(a->bias),
              static_cast<const T *>(a->residual), elements, a->n);
    return ps_gpu_check_launch();
}

template <class T> static int scale_columns_of(void *stream, const struct ps_scale_columns_args *a)
{
    if (a->bias && a->bias_dtype == PS_DTYPE_BF16)
        return scale_columns<T, ps__bf16>(stream, a);
    if (a->bias && a->bias_dtype == PS_DTYPE_F16)
        return scale_columns<T, ps__f16>(stream, a);
    return a->bias && a->bias_dtype != PS_DTYPE_F32 ? -EINVAL : scale_columns<T, float>(stream, a);
}

int ps_scale_columns_cuda(void *stream, const struct ps_scale_columns_args *a)
{
    if (!ps__is_compute(a->dtype))
        return -EINVAL;
    return a->dtype == PS_DTYPE_F32 ? scale_columns_of<float>(stream, a)
                                    : scale_columns_of<ps__bf16>(stream, a);
}

/* A block has 32 columns; slice s sums the rows s, s + 8, ..., then the first adds the slices. */
template <class T>
static __global__ void __launch_bounds__(COLUMNS *SLICES)
    column_dot_kernel(float *out, const T *a, const T *b, const float *row, const float *divisor,
                      size_t n_tok, size_t n, int accumulate)
{
    __shared__ double part[SLICES][COLUMNS];
    unsigned lane = threadIdx.x % COLUMNS, slice = threadIdx.x / COLUMNS;
    size_t j = (size_t)blockIdx.x * COLUMNS + lane;
    double sum = 0;
    for (size_t t = slice; j < n && t < n_tok; t += SLICES) {
        double f = row ? (double)row[t] : 1.0;
        sum += f * (double)ps__to_f32(a[t * n + j]) * (double)ps__to_f32(b[t * n + j]);
    }
    part[slice][lane] = sum;
    __syncthreads();
    if (slice != 0 || j >= n)
        return;
    for (unsigned s = 1; s < SLICES; s++)
        sum += part[s][lane];
    float v = (float)(divisor ? sum / (double)divisor[j] : sum);
    out[j] = accumulate ? out[j] + v : v;
}

template <class T>
static int column_dot(void *stream, float *out, const void *a, const void *b, const float *row,
                      const float *divisor, size_t n_tok, size_t n, int accumulate)
{
    unsigned grid = blocks_for(n, COLUMNS);
    if (!n)
        return 0;
    if (!grid)
        return -EINVAL;
    PS_LAUNCH((column_dot_kernel<T>), grid, COLUMNS * SLICES, 0, stream, out,
              static_cast<const T *>(a), static_cast<const T *>(b), row, divisor, n_tok, n,
              accumulate);
    return ps_gpu_check_launch();
}

int ps_column_dot_cuda(void *stream, float *out, const void *a, const void *b, enum ps_dtype dtype,
                       const float *divisor, size_t n_tok, size_t n, int accumulate)
{
    if (!ps__is_compute(dtype))
        return -EINVAL;
    return dtype == PS_DTYPE_F32
               ? column_dot<float>(stream, out, a, b, NULL, divisor, n_tok, n, accumulate)
               : column_dot<ps__bf16>(stream, out, a, b, NULL, divisor, n_tok, n, accumulate);
}

static __global__ void __launch_bounds__(THREADS)
    scale_matrix_kernel(float *y, const float *x, const float *row, const float *col,
                        size_t elements, size_t cols)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < elements)
        y[i] = row[i / cols] * x[i] * col[i % cols];
}

int ps_scale_matrix_cuda(void *stream, float *y, const float *x, const float *row, const float *col,
                         size_t rows, size_t cols)
{
    unsigned grid = blocks_for(rows * cols, THREADS);
    if (!rows || !cols)
        return 0;
    if (!grid)
        return -EINVAL;
    PS_LAUNCH(scale_matrix_kernel, grid, THREADS, 0, stream, y, x, row, col, rows * cols, cols);
    return ps_gpu_check_launch();
}

/* Sum over the threads of a block, the same for every thread. */
static __device__ __forceinline__ double block_sum(double v, double *part)
{
    part[threadIdx.x] = v;
    __syncthreads();
    for (unsigned half = ROW_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    return part[0];
}

static __global__ void __launch_bounds__(ROW_THREADS)
    row_dot_kernel(float *out, const float *g, const float *b, const float *col, size_t cols,
                   int accumulate)
{
    __shared__ double part[ROW_THREADS];
    size_t i = blockIdx.x;
    double sum = 0;
    for (size_t k = threadIdx.x; k < cols; k += ROW_THREADS)
        sum += (double)g[i * cols + k] * (double)b[i * cols + k] * (double)col[k];
    sum = block_sum(sum, part);
    if (threadIdx.x == 0)
        out[i] = accumulate ? out[i] + (float)sum : (float)sum;
}

int ps_matrix_dots_cuda(void *stream, const struct ps_matrix_dots_args *a)
{
    if (a->rows > 0x7fffffff)
        return -EINVAL;
    if (!a->rows || !a->cols)
        return 0;
    PS_LAUNCH(row_dot_kernel, (unsigned)a->rows, ROW_THREADS, 0, stream, a->row_out, a->g, a->b,
              a->col, a->cols, a->accumulate);
    int ret = ps_gpu_check_launch();
    return ret ? ret
               : column_dot<float>(stream, a->col_out, a->g, a->b, a->row, NULL, a->rows, a->cols,
                                   a->accumulate);
}

template <class T>
static __global__ void __launch_bounds__(ROW_THREADS) row_norms_kernel(struct ps_row_norms_args a)
{
    __shared__ double part[ROW_THREADS];
    const T *w = static_cast<const T *>(a.w);
    size_t i = blockIdx.x;
    double square = 0;
    for (size_t j = threadIdx.x; j < a.in; j += ROW_THREADS) {
        double v = (double)ps__to_f32(w[i * a.in + j]);
        square += v * v;
    }
    for (size_t k = threadIdx.x; k < a.r; k += ROW_THREADS) {
        size_t x = i * a.r + k;
        square += (double)a.s * (double)a.b[x] *
                  (2 * (double)a.q[x] + (double)a.s * (double)a.bg[x]);
    }
    square = block_sum(square, part);
    if (threadIdx.x != 0)
        return;
    const double least = 1.17549435082228750797e-38;
    float norm = (float)sqrt(square < least ? least : square);
    if (a.n)
        a.n[i] = norm;
    if (a.c)
        a.c[i] = a.m[i] / norm;
}

int ps_row_norms_cuda(void *stream, const struct ps_row_norms_args *a)
{
    if (!ps__is_float(a->w_dtype) || a->out > 0x7fffffff)
        return -EINVAL;
    if (!a->out)
        return 0;
    unsigned grid = (unsigned)a->out;
    if (a->w_dtype == PS_DTYPE_F32)
        PS_LAUNCH(row_norms_kernel<float>, grid, ROW_THREADS, 0, stream, *a);
    else if (a->w_dtype == PS_DTYPE_BF16)
        PS_LAUNCH(row_norms_kernel<ps__bf16>, grid, ROW_THREADS, 0, stream, *a);
    else
        PS_LAUNCH(row_norms_kernel<ps__f16>, grid, ROW_THREADS, 0, stream, *a);
    return ps_gpu_check_launch();
}
