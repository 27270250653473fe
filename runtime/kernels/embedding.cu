/* Token embedding on the device: see embedding.h. CPU reference: embedding.c.
 *
 * Bytes moved per element: forward the table's and y's; backward dy's and 8 (fp32 row read and
 * written).
 *
 * Design of backward: a thread has one column and walks the tokens in ascending order, so the order
 * of additions into a row is fixed without sorting. Eight tokens are read ahead; where a row comes
 * twice among them, the later addition takes the earlier result instead of what was read. */
#include "runtime/kernels/gpu_vec_internal.cuh"
#include "runtime/kernels/kernels_cuda.h"

#define THREADS 256
#define COLUMN_THREADS 64 /* few, so that the columns spread over the multiprocessors */
#define TOKENS_AHEAD 8

struct embedding_args {
    const void *table;
    enum ps_dtype table_dtype;
    size_t n;
    int64_t row_begin, row_end;
    const int32_t *ids;
    void *y;
    unsigned chunks, items; /* of a row, of all */
};

/* copy: the table has the type of y, whose bits are kept (NaNs too). */
template <class T, bool vec, bool copy>
static __global__ void __launch_bounds__(THREADS) embedding_forward_kernel(embedding_args a)
{
    constexpr int N = ps__chunk<T>::elems;
    unsigned item = blockIdx.x * THREADS + threadIdx.x;
    if (item >= a.items)
        return;
    size_t t = item / a.chunks, j = (size_t)(item % a.chunks) * N;
    int64_t id = a.ids[t];
    if (id < a.row_begin || id >= a.row_end)
        return;
    unsigned count = ps__chunk_count<N>(a.n, j);
    size_t at = (size_t)(id - a.row_begin) * a.n + j;
    T *y = static_cast<T *>(a.y) + t * a.n + j;
    if (copy) {
        const T *x = static_cast<const T *>(a.table) + at;
        if (vec && count == (unsigned)N) {
            *reinterpret_cast<uint4 *>(y) = *reinterpret_cast<const uint4 *>(x);
            return;
        }
        for (unsigned i = 0; i < count; i++)
            y[i] = x[i];
        return;
    }
    float v[N];
    ps__load_any<N, vec>(v, a.table, a.table_dtype, at, count);
    ps__store<N, vec>(y, v, count);
}

template <class T>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    embedding_backward_kernel(float *dtable, size_t n, const int32_t *ids, size_t n_tok,
                              const T *dy)
{
    size_t j = (size_t)blockIdx.x * COLUMN_THREADS + threadIdx.x;
    if (j >= n)
        return;
    size_t t = 0;
    for (; t + TOKENS_AHEAD <= n_tok; t += TOKENS_AHEAD) {
        int32_t id[TOKENS_AHEAD];
        float d[TOKENS_AHEAD], v[TOKENS_AHEAD];
#pragma unroll
        for (int k = 0; k < TOKENS_AHEAD; k++) {
            id[k] = ids[t + (size_t)k];
            d[k] = ps__to_f32(dy[(t + (size_t)k) * n + j]);
            v[k] = dtable[(size_t)id[k] * n + j];
        }
#pragma unroll
        for (int k = 0; k < TOKENS_AHEAD; k++) {
#pragma unroll
            for (int e = 0; e < k; e++) /* the latest of the same row stands */
                v[k] = id[e] == id[k] ? v[e] : v[k];
            v[k] += d[k];
        }
#pragma unroll
        for (int k = 0; k < TOKENS_AHEAD; k++)
            dtable[(size_t)id[k] * n + j] = v[k];
    }
    for (; t < n_tok; t++)
        dtable[(size_t)ids[t] * n + j] += ps__to_f32(dy[t * n + j]);
}

template <class T, bool copy> static void forward(void *stream, const embedding_args &a, bool vec)
{
    unsigned grid = ps__grid(a.items, THREADS);
    if (vec)
        PS_LAUNCH((embedding_forward_kernel<T, true, copy>), grid, THREADS, 0, stream, a);
    else
        PS_LAUNCH((embedding_forward_kernel<T, false, copy>), grid, THREADS, 0, stream, a);
}

int ps_embedding_forward_cuda(void *stream, const void *table, enum ps_dtype table_dtype, size_t n,
                              int64_t row_begin, int64_t row_end, const int32_t *ids, size_t n_tok,
                              void *y, enum ps_dtype dtype)
{
    if (!ps__is_compute(dtype) || !ps__is_float(table_dtype))
        return -EINVAL;
    int elems = dtype == PS_DTYPE_F32 ? 4 : 8;
    size_t chunks = ps__chunks_per_row(n, elems);
    if (chunks > 0x7fffffff || !ps__chunks_fit(n_tok, chunks))
        return -EINVAL;
    embedding_args a = {table,     table_dtype,      n,
                        row_begin, row_end,          ids,
                        y,         (unsigned)chunks, (unsigned)(n_tok * chunks)};
    if (!a.items || row_begin >= row_end)
        return 0;
    bool vec =
             ps__rows_aligned(table, n, table_dtype, elems) && ps__rows_aligned(y, n, dtype, elems),
         same = table_dtype == dtype;
    if (dtype == PS_DTYPE_F32)
        same ? forward<float, true>(stream, a, vec) : forward<float, false>(stream, a, vec);
    else
        same ? forward<ps__bf16, true>(stream, a, vec) : forward<ps__bf16, false>(stream, a, vec);
    return ps_gpu_check_launch();
}

int ps_embedding_backward_cuda(void *stream, float *dtable, size_t n, const int32_t *ids,
                               size_t n_tok, const void *dy, enum ps_dtype dtype)
{
    if (!ps__is_compute(dtype) || n > 0x7fffffff)
        return -EINVAL;
    if (!n || !n_tok)
        return 0;
    unsigned grid = ps__grid(n, COLUMN_THREADS);
    if (dtype == PS_DTYPE_F32)
        PS_LAUNCH(embedding_backward_kernel<float>, grid, COLUMN_THREADS, 0, stream, dtable, n, ids,
                  n_tok, static_cast<const float *>(dy));
    else
        PS_LAUNCH(embedding_backward_kernel<ps__bf16>, grid, COLUMN_THREADS, 0, stream, dtable, n,
                  ids, n_tok, static_cast<const ps__bf16 *>(dy));
    return ps_gpu_check_launch();
}
