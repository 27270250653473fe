/* RMSNorm with AVX-512: see rmsnorm.h. Sums along a row run in several vectors, which are
 * added in a fixed tree: the order depends on n and the types alone. Software prefetch of the next
 * row was tried and gained nothing. */
#include <math.h>
#include <string.h>

#include "runtime/kernels/lane_avx512.h"
#include "runtime/kernels/rmsnorm_internal.h"

PS__LANE_INLINE float row_rstd(const struct ps_rmsnorm_args *a, enum ps_dtype t, size_t at)
{
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    size_t j = 0, n = a->n;
    for (; j + 64 <= n; j += 64) {
        struct ps__pair x0 = ps__pair_load(a->x, t, at + j, t);
        struct ps__pair x1 = ps__pair_load(a->x, t, at + j + 32, t);
        s0 = _mm512_fmadd_ps(x0.a, x0.a, s0);
        s1 = _mm512_fmadd_ps(x0.b, x0.b, s1);
        s2 = _mm512_fmadd_ps(x1.a, x1.a, s2);
        s3 = _mm512_fmadd_ps(x1.b, x1.b, s3);
    }
    for (; j < n; j += 16) {
        __m512 x = ps__lane_load(a->x, t, at + j, ps__lane_mask(n - j < 16 ? n - j : 16));
        s0 = _mm512_fmadd_ps(x, x, s0);
    }
    float sum = ps__lane_sum(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
    return 1.0f / sqrtf(sum / (float)n + a->eps);
}

PS__LANE_INLINE __m512 forward_lanes(__m512 x, __m512 w, __m512 rstd)
{
    return _mm512_mul_ps(_mm512_mul_ps(x, rstd), w);
}

PS__LANE_INLINE void forward(const struct ps_rmsnorm_args *a, enum ps_dtype t, enum ps_dtype wt,
                             size_t begin, size_t end)
{
    for (size_t r = begin; r < end; r++) {
        size_t x_at = ps__rmsnorm_row(a, a->x_ld, r), y_at = ps__rmsnorm_row(a, a->y_ld, r);
        size_t j = 0;
        float rstd = row_rstd(a, t, x_at);
        __m512 scale = _mm512_set1_ps(rstd);
        for (; j + 32 <= a->n; j += 32) {
            struct ps__pair x = ps__pair_load(a->x, t, x_at + j, t);
            struct ps__pair w = ps__pair_load(a->weight, wt, j, t);
            x.a = forward_lanes(x.a, w.a, scale);
            x.b = forward_lanes(x.b, w.b, scale);
            ps__pair_store(a->y, t, y_at + j, x, t);
        }
        for (; j < a->n; j += 16) {
            __mmask16 k = ps__lane_mask(a->n - j < 16 ? a->n - j : 16);
            __m512 x = ps__lane_load(a->x, t, x_at + j, k), w = ps__lane_load(a->weight, wt, j, k);
            ps__lane_store(a->y, t, y_at + j, k, forward_lanes(x, w, scale));
        }
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

PS__LANE_INLINE __m512 mean_lanes(__m512 x, __m512 w, __m512 dy, __m512 rstd, __m512 sum)
{
    return _mm512_fmadd_ps(_mm512_mul_ps(x, rstd), _mm512_mul_ps(w, dy), sum);
}

/* mean(xhat * w * dy) of one row. */
PS__LANE_INLINE float row_mean(const struct ps_rmsnorm_args *a, enum ps_dtype t, enum ps_dtype wt,
                               const struct row *row)
{
    __m512 s0 = _mm512_setzero_ps(), s1 = s0;
    size_t j = 0, n = a->n;
    for (; j + 32 <= n; j += 32) {
        struct ps__pair x = ps__pair_load(a->x, t, row->x_at + j, t);
        struct ps__pair dy = ps__pair_load(a->dy, t, row->dy_at + j, t);
        struct ps__pair w = ps__pair_load(a->weight, wt, j, t);
        s0 = mean_lanes(x.a, w.a, dy.a, row->rstd, s0);
        s1 = mean_lanes(x.b, w.b, dy.b, row->rstd, s1);
    }
    for (; j < n; j += 16) {
        __mmask16 k = ps__lane_mask(n - j < 16 ? n - j : 16);
        s0 =
            mean_lanes(ps__lane_load(a->x, t, row->x_at + j, k), ps__lane_load(a->weight, wt, j, k),
                       ps__lane_load(a->dy, t, row->dy_at + j, k), row->rstd, s0);
    }
    return ps__lane_sum(_mm512_add_ps(s0, s1)) / (float)n;
}

/* rstd (w dy - xhat mean) */
PS__LANE_INLINE __m512 dx_lanes(__m512 xhat, __m512 w, __m512 dy, const struct row *row)
{
    __m512 dx = _mm512_fnmadd_ps(xhat, row->mean, _mm512_mul_ps(w, dy));
    return _mm512_mul_ps(dx, row->rstd);
}

PS__LANE_INLINE void backward_pair(const struct ps_rmsnorm_args *a, enum ps_dtype t,
                                   enum ps_dtype wt, const struct row *row, size_t j,
                                   float *partial)
{
    struct ps__pair x = ps__pair_load(a->x, t, row->x_at + j, t), dx;
    struct ps__pair dy = ps__pair_load(a->dy, t, row->dy_at + j, t);
    struct ps__pair w = ps__pair_load(a->weight, wt, j, t);
    x.a = _mm512_mul_ps(x.a, row->rstd);
    x.b = _mm512_mul_ps(x.b, row->rstd);
    dx.a = dx_lanes(x.a, w.a, dy.a, row);
    dx.b = dx_lanes(x.b, w.b, dy.b, row);
    if (a->dx_add) {
        struct ps__pair add = ps__pair_load(a->dx_add, t, row->add_at + j, t);
        dx.a = _mm512_add_ps(dx.a, add.a);
        dx.b = _mm512_add_ps(dx.b, add.b);
    }
    if (partial) {
        struct ps__pair sum = ps__pair_load(partial, PS_DTYPE_F32, j, t);
        sum.a = _mm512_fmadd_ps(dy.a, x.a, sum.a);
        sum.b = _mm512_fmadd_ps(dy.b, x.b, sum.b);
        ps__pair_store(partial, PS_DTYPE_F32, j, sum, t);
    }
    ps__pair_store(a->dx, t, row->dx_at + j, dx, t);
}

PS__LANE_INLINE void backward_tail(const struct ps_rmsnorm_args *a, enum ps_dtype t,
                                   enum ps_dtype wt, const struct row *row, size_t j, __mmask16 k,
                                   float *partial)
{
    __m512 x = ps__lane_load(a->x, t, row->x_at + j, k);
    __m512 dy = ps__lane_load(a->dy, t, row->dy_at + j, k);
    __m512 xhat = _mm512_mul_ps(x, row->rstd);
    __m512 dx = dx_lanes(xhat, ps__lane_load(a->weight, wt, j, k), dy, row);
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
        size_t j = 0;
        struct row row = {.x_at = ps__rmsnorm_row(a, a->x_ld, r),
                          .dy_at = ps__rmsnorm_row(a, a->dy_ld, r),
                          .dx_at = ps__rmsnorm_row(a, a->dx_ld, r),
                          .add_at = ps__rmsnorm_row(a, a->dx_add_ld, r),
                          .rstd = _mm512_set1_ps(a->rstd[r])};
        row.mean = _mm512_set1_ps(row_mean(a, t, wt, &row));
        for (; j + 32 <= a->n; j += 32)
            backward_pair(a, t, wt, &row, j, partial);
        for (; j < a->n; j += 16)
            backward_tail(a, t, wt, &row, j, ps__lane_mask(a->n - j < 16 ? a->n - j : 16), partial);
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
