/* Rotary position embedding on the device: see rope.h. CPU reference: rope.c.
 *
 * Bytes moved per element of BF16: 4 (read and written in place); the table's rows are shared by
 * the heads of a token.
 *
 * Design: a thread has one chunk of the first half of a head and the same chunk of the second half.
 */
#include "runtime/kernels/gpu_vec_internal.cuh"
#include "runtime/kernels/kernels_cuda.h"

#define THREADS 256

struct rope_args {
    void *x;
    size_t ld;
    unsigned n_head, half, chunks; /* chunks of half a head */
    unsigned items;
    const int32_t *position;
    const float *cos_sin;
    float sign;
};

template <class T, bool vec>
static __global__ void __launch_bounds__(THREADS) rope_kernel(rope_args a)
{
    constexpr int N = ps__chunk<T>::elems;
    unsigned item = blockIdx.x * THREADS + threadIdx.x;
    if (item >= a.items)
        return;
    unsigned j = item % a.chunks * N, head = item / a.chunks % a.n_head;
    unsigned tok = item / a.chunks / a.n_head, count = ps__chunk_count<N>(a.half, j);
    const float *cosine = a.cos_sin + (size_t)a.position[tok] * 2 * a.half + j;
    T *lo = static_cast<T *>(a.x) + tok * a.ld + (size_t)head * 2 * a.half + j;
    T *hi = lo + a.half;
    float x[N], y[N], c[N], s[N];
    ps__load<N, vec>(x, lo, count);
    ps__load<N, vec>(y, hi, count);
    ps__load<N, vec>(c, cosine, count);
    ps__load<N, vec>(s, cosine + a.half, count);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float sine = a.sign * s[i], first = x[i] * c[i] - y[i] * sine;
        y[i] = y[i] * c[i] + x[i] * sine;
        x[i] = first;
    }
    ps__store<N, vec>(lo, x, count);
    ps__store<N, vec>(hi, y, count);
}

int ps_rope_apply_cuda(void *stream, void *x, size_t ld, enum ps_dtype dtype, size_t n_tok,
                       size_t n_head, size_t head_dim, const int32_t *position,
                       const float *cos_sin, int inverse)
{
    if (!ps__is_compute(dtype) || head_dim % 2 || !head_dim || head_dim > 1u << 20 || !n_head)
        return -EINVAL;
    int elems = dtype == PS_DTYPE_F32 ? 4 : 8;
    size_t half = head_dim / 2, chunks = ps__chunks_per_row(half, elems);
    if (!ps__chunks_fit(n_head, chunks) || !ps__chunks_fit(n_tok, n_head * chunks))
        return -EINVAL;
    if (!n_tok)
        return 0;
    rope_args a = {x,
                   ld,
                   (unsigned)n_head,
                   (unsigned)half,
                   (unsigned)chunks,
                   (unsigned)(n_tok * n_head * chunks),
                   position,
                   cos_sin,
                   inverse ? -1.0f : 1.0f};
    bool vec = ps__rows_aligned(x, ld, dtype, elems) && ps__rows_aligned(x, half, dtype, elems) &&
               ps__rows_aligned(cos_sin, half, PS_DTYPE_F32, elems);
    unsigned grid = ps__grid(a.items, THREADS);
    if (dtype == PS_DTYPE_F32 && vec)
        PS_LAUNCH((rope_kernel<float, true>), grid, THREADS, 0, stream, a);
    else if (dtype == PS_DTYPE_F32)
        PS_LAUNCH((rope_kernel<float, false>), grid, THREADS, 0, stream, a);
    else if (vec)
        PS_LAUNCH((rope_kernel<ps__bf16, true>), grid, THREADS, 0, stream, a);
    else
        PS_LAUNCH((rope_kernel<ps__bf16, false>), grid, THREADS, 0, stream, a);
    return ps_gpu_check_launch();
}
