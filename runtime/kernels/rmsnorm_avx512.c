/* RMSNorm with AVX-512: see rmsnorm.h. Sums along a row run in four vectors (element i in vector
 * i / 16 % 4, the tail in the next vector), which are added in a fixed tree. */
#include <math.h>
#include <string.h>

#include "runtime/kernels/lane_avx512.h"
#include "runtime/kernels/rmsnorm_internal.h"

PS__LANE_INLINE float row_rstd(const struct ps_rmsnorm_args *a, enum ps_dtype t, size_t at)
{
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    size_t j = 0, n = a->n;
    for (; j + 64 <= n; j += 64) {
        __m512 x0 = ps__lane_load(a->x, t, at + j, PS__LANE_FULL);
        __m512 x1 = ps__lane_load(a->x, t, at + j + 16, PS__LANE_FULL);
        __m512 x2 = ps__lane_load(a->x, t, at + j + 32, PS__LANE_FULL);
        __m512 x3 = ps__lane_load(a->x, t, at + j + 48, PS__LANE_FULL);
        s0 = _mm512_fmadd_ps(x0, x0, s0);
        s1 = _mm512_fmadd_ps(x1, x1, s1);
        s2 = _mm512_fmadd_ps(x2, x2, s2);
        s3 = _mm512_fmadd_ps(x3, x3, s3);
    }
    for (; j + 16 <= n; j += 16) {
        __m512 x = ps__lane_load(a->x, t, at + j, PS__LANE_FULL);
        s0 = _mm512_fmadd_ps(x, x, s0);
    }
    if (j < n) {
        __m512 x = ps__lane_load(a->x, t, at + j, ps__lane_mask(n - j));
        s1 = _mm512_fmadd_ps(x, x, s1);
    }
    float sum = ps__lane_sum(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
    return 1.0f / sqrtf(sum / (float)n + a->eps);
}

PS__LANE_INLINE void forward_step(const struct ps_rmsnorm_args *a, enum ps_dtype t,
                                  enum ps_dtype wt, size_t x_at, size_t y_at, size_t j, __mmask16 k,
                                  __m512 rstd)
{
    __m512 x = ps__lane_load(a->x, t, x_at + j, k);
    __m512 w = ps__lane_load(a->weight, wt, j, k);
    ps__lane_store(a->y, t, y_at + j, k, _mm512_mul_ps(_mm512_mul_ps(x, rstd), w));
}

PS__LANE_INLINE void forward(const struct ps_rmsnorm_args *a, enum ps_dtype t, enum ps_dtype wt,
                             size_t begin, size_t end)
{
    for (size_t r = begin; r < end; r++) {
        size_t x_at = ps__rmsnorm_row(a, a->x_ld, r), y_at = ps__rmsnorm_row(a, a->y_ld, r);
        float rstd = row_rstd(a, t, x_at);
        __m512 scale = _mm512_set1_ps(rstd);
        size_t j = 0;
        for (; j + 16 <= a->n; j += 16)
            forward_step(a, t, wt, x_at, y_at, j, PS__LANE_FULL, scale);
        if (j < a->n)
            forward_step(a, t, wt, x_at, y_at, j, ps__lane_mask(a->n - j), scale);
        if (a->rstd)
            a->rstd[r] = rstd;
    }
}

void ps__rmsnorm_forward_avx512(const struct ps_rmsnorm_args *a, size_t begin, size_t end)
{
    if (a->dtype == PS_DTYPE_F32) {
        if (a->weight_dtype == PS_DTYPE_F32)
            forward(a, PS_DTYPE_F32, PS_DTYPE_F32, begin, end);
        else if (a->weight_dtype == PS_DTYPE_BF16)
            forward(a, PS_DTYPE_F32, PS_DTYPE_BF16, begin, end);
        else
            forward(a, PS_DTYPE_F32, PS_DTYPE_F16, begin, end);
    } else {
        if (a->weight_dtype == PS_DTYPE_F32)
            forward(a, PS_DTYPE_BF16, PS_DTYPE_F32, begin, end);
        else if (a->weight_dtype == PS_DTYPE_BF16)
            forward(a, PS_DTYPE_BF16, PS_DTYPE_BF16, begin, end);
        else
            forward(a, PS_DTYPE_BF16, PS_DTYPE_F16, begin, end);
    }
}

struct row {
    size_t x_at, dy_at, dx_at, add_at;
    __m512 rstd, mean;
};

PS__LANE_INLINE __m512 mean_step(const struct ps_rmsnorm_args *a, enum ps_dtype t, enum ps_dtype wt,
                                 const struct row *row, size_t j, __mmask16 k, __m512 sum)
{
    __m512 x = ps__lane_load(a->x, t, row->x_at + j, k);
    __m512 dy = ps__lane_load(a->dy, t, row->dy_at + j, k);
    __m512 w = ps__lane_load(a->weight, wt, j, k);
    return _mm512_fmadd_ps(_mm512_mul_ps(x, row->rstd), _mm512_mul_ps(w, dy), sum);
}

PS__LANE_INLINE float row_mean(const struct ps_rmsnorm_args *a, enum ps_dtype t, enum ps_dtype wt,
                               const struct row *row)
{
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    size_t j = 0, n = a->n;
    for (; j + 64 <= n; j += 64) {
        s0 = mean_step(a, t, wt, row, j, PS__LANE_FULL, s0);
        s1 = mean_step(a, t, wt, row, j + 16, PS__LANE_FULL, s1);
        s2 = mean_step(a, t, wt, row, j + 32, PS__LANE_FULL, s2);
        s3 = mean_step(a, t, wt, row, j + 48, PS__LANE_FULL, s3);
    }
    for (; j + 16 <= n; j += 16)
        s0 = mean_step(a, t, wt, row, j, PS__LANE_FULL, s0);
    if (j < n)
        s1 = mean_step(a, t, wt, row, j, ps__lane_mask(n - j), s1);
    __m512 sum = _mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3));
    return ps__lane_sum(sum) / (float)n;
}

PS__LANE_INLINE void backward_step(const struct ps_rmsnorm_args *a, enum ps_dtype t,
                                   enum ps_dtype wt, const struct row *row, size_t j, __mmask16 k,
                                   float *partial)
{
    __m512 x = ps__lane_load(a->x, t, row->x_at + j, k);
    __m512 dy = ps__lane_load(a->dy, t, row->dy_at + j, k);
    __m512 w = ps__lane_load(a->weight, wt, j, k);
    __m512 xhat = _mm512_mul_ps(x, row->rstd);
    __m512 dx = _mm512_fnmadd_ps(xhat, row->mean, _mm512_mul_ps(w, dy));
    dx = _mm512_mul_ps(dx, row->rstd);
    if (a->dx_add)
        dx = _mm512_add_ps(dx, ps__lane_load(a->dx_add, t, row->add_at + j, k));
    if (partial) {
        __m512 sum = ps__lane_load(partial, PS_DTYPE_F32, j, k);
        ps__lane_store(partial, PS_DTYPE_F32, j, k, _mm512_fmadd_ps(dy, xhat, sum));
    }
    ps__lane_store(a->dx, t, row->dx_at + j, k, dx);
}

PS__LANE_INLINE void backward(const struct ps_rmsnorm_args *a, enum ps_dtype t, enum ps_dtype wt,
                              size_t begin, size_t end, float *partial)
{
    for (size_t r = begin; r < end; r++) {
        struct row row = {.x_at = ps__rmsnorm_row(a, a->x_ld, r),
                          .dy_at = ps__rmsnorm_row(a, a->dy_ld, r),
                          .dx_at = ps__rmsnorm_row(a, a->dx_ld, r),
                          .add_at = ps__rmsnorm_row(a, a->dx_add_ld, r),
                          .rstd = _mm512_set1_ps(a->rstd[r])};
        row.mean = _mm512_set1_ps(row_mean(a, t, wt, &row));
        size_t j = 0;
        for (; j + 16 <= a->n; j += 16)
            backward_step(a, t, wt, &row, j, PS__LANE_FULL, partial);
        if (j < a->n)
            backward_step(a, t, wt, &row, j, ps__lane_mask(a->n - j), partial);
    }
}

void ps__rmsnorm_backward_avx512(const struct ps_rmsnorm_args *a, size_t begin, size_t end,
                                 float *partial)
{
    if (partial)
        memset(partial, 0, a->n * sizeof(float));
    if (a->dtype == PS_DTYPE_F32) {
        if (a->weight_dtype == PS_DTYPE_F32)
            backward(a, PS_DTYPE_F32, PS_DTYPE_F32, begin, end, partial);
        else if (a->weight_dtype == PS_DTYPE_BF16)
            backward(a, PS_DTYPE_F32, PS_DTYPE_BF16, begin, end, partial);
        else
            backward(a, PS_DTYPE_F32, PS_DTYPE_F16, begin, end, partial);
    } else {
        if (a->weight_dtype == PS_DTYPE_F32)
            backward(a, PS_DTYPE_BF16, PS_DTYPE_F32, begin, end, partial);
        else if (a->weight_dtype == PS_DTYPE_BF16)
            backward(a, PS_DTYPE_BF16, PS_DTYPE_BF16, begin, end, partial);
        else
            backward(a, PS_DTYPE_BF16, PS_DTYPE_F16, begin, end, partial);
    }
}
