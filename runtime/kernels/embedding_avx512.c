/* Token embedding with AVX-512: see embedding.h. */
#include "runtime/kernels/embedding_internal.h"
#include "runtime/kernels/lane_avx512.h"

PS__LANE_INLINE void step(float *dst, const void *dy, enum ps_dtype d, size_t at, size_t j,
                          __mmask16 k)
{
    __m512 sum =
        _mm512_add_ps(ps__lane_load(dst, PS_DTYPE_F32, j, k), ps__lane_load(dy, d, at + j, k));
    ps__lane_store(dst, PS_DTYPE_F32, j, k, sum);
}

PS__LANE_INLINE void add(float *dst, const void *dy, enum ps_dtype d, size_t at, size_t n)
{
    size_t j = 0;
    for (; j + 16 <= n; j += 16)
        step(dst, dy, d, at, j, PS__LANE_FULL);
    if (j < n)
        step(dst, dy, d, at, j, ps__lane_mask(n - j));
}

void ps__embedding_add_avx512(float *dst, const void *dy, enum ps_dtype dtype, size_t at, size_t n)
{
    if (dtype == PS_DTYPE_F32)
        add(dst, dy, PS_DTYPE_F32, at, n);
    else
        add(dst, dy, PS_DTYPE_BF16, at, n);
}
