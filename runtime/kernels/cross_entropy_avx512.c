/* Softmax cross-entropy with AVX-512: see cross_entropy.h and the design note in cross_entropy.c.
 */
#include <math.h>

#include "runtime/kernels/cross_entropy_internal.h"
#include "runtime/kernels/lane_avx512.h"
#include "runtime/kernels/vexp_avx512.h"

/* Maximum with NaN ignored: vmaxps returns its second operand where one is NaN. */
static float block_max(const float *z, size_t n)
{
    __m512 m0 = _mm512_set1_ps(-INFINITY), m1 = m0, m2 = m0, m3 = m0;
    size_t j = 0;
    for (; j + 64 <= n; j += 64) {
        m0 = _mm512_max_ps(_mm512_loadu_ps(z + j), m0);
        m1 = _mm512_max_ps(_mm512_loadu_ps(z + j + 16), m1);
        m2 = _mm512_max_ps(_mm512_loadu_ps(z + j + 32), m2);
        m3 = _mm512_max_ps(_mm512_loadu_ps(z + j + 48), m3);
    }
    for (; j < n; j += 16) {
        __mmask16 k = n - j < 16 ? ps__lane_mask(n - j) : PS__LANE_FULL;
        m0 = _mm512_mask_max_ps(m0, k, _mm512_maskz_loadu_ps(k, z + j), m0);
    }
    m0 = _mm512_max_ps(_mm512_max_ps(m0, m1), _mm512_max_ps(m2, m3));
    return _mm512_reduce_max_ps(m0);
}

void ps__cross_entropy_block_avx512(const float *z, size_t n, float *max, float *sum)
{
    float m = block_max(z, n);
    m = isfinite(m) ? m : 0;
    __m512 vm = _mm512_set1_ps(m);
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    size_t j = 0;
    for (; j + 64 <= n; j += 64) {
        /* the next block, whose maximum comes first; harmless past the end */
        const char *next = (const char *)((uintptr_t)(z + j) + 4 * PS__CROSS_ENTROPY_COLUMNS);
        for (int line = 0; line < 4; line++)
            _mm_prefetch(next + 64 * line, _MM_HINT_T0);
        s0 = _mm512_add_ps(s0, ps__vexp_avx512(_mm512_sub_ps(_mm512_loadu_ps(z + j), vm)));
        s1 = _mm512_add_ps(s1, ps__vexp_avx512(_mm512_sub_ps(_mm512_loadu_ps(z + j + 16), vm)));
        s2 = _mm512_add_ps(s2, ps__vexp_avx512(_mm512_sub_ps(_mm512_loadu_ps(z + j + 32), vm)));
        s3 = _mm512_add_ps(s3, ps__vexp_avx512(_mm512_sub_ps(_mm512_loadu_ps(z + j + 48), vm)));
    }
    for (; j < n; j += 16) {
        __mmask16 k = n - j < 16 ? ps__lane_mask(n - j) : PS__LANE_FULL;
        __m512 e = ps__vexp_avx512(_mm512_sub_ps(_mm512_maskz_loadu_ps(k, z + j), vm));
        s0 = _mm512_mask_add_ps(s0, k, s0, e);
    }
    *max = m;
    *sum = ps__lane_sum(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
}

void ps__cross_entropy_scale_avx512(float *z, size_t n, float max, float scale)
{
    __m512 vm = _mm512_set1_ps(max), vs = _mm512_set1_ps(scale);
    size_t j = 0;
    for (; j + 16 <= n; j += 16) {
        __m512 e = ps__vexp_avx512(_mm512_sub_ps(_mm512_loadu_ps(z + j), vm));
        _mm512_storeu_ps(z + j, _mm512_mul_ps(e, vs));
    }
    if (j < n) {
        __mmask16 k = ps__lane_mask(n - j);
        __m512 e = ps__vexp_avx512(_mm512_sub_ps(_mm512_maskz_loadu_ps(k, z + j), vm));
        _mm512_mask_storeu_ps(z + j, k, _mm512_mul_ps(e, vs));
    }
}
