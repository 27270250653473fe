/* Portable GEMM kernel: see gemm_internal.h. fp32 units, separate multiply and add (this folder is
 * compiled without contraction, so that every compiler gives the same bits). */
#include "runtime/kernels/gemm_internal.h"

#include <string.h>

#define MR 4
#define NR 8

PS__INLINE float load(const void *data, enum ps_dtype dtype, size_t idx)
{
    if (dtype == PS_DTYPE_F32)
        return ((const float *)data)[idx];
    uint16_t h = ((const uint16_t *)data)[idx];
    return dtype == PS_DTYPE_BF16 ? ps_bf16_to_f32(h) : ps_f16_to_f32(h);
}

/* dtype and round_bf16 are constants where this is inlined. */
PS__INLINE void pack_typed(float *panel, size_t panel_stride, size_t width,
                           const struct ps__gemm_view *v, const struct ps__gemm_range *range,
                           enum ps_dtype dtype, int round_bf16)
{
    for (size_t r = 0; r < range->r_count; r += width, panel += panel_stride) {
        for (size_t i = 0; i < width; i++) {
            size_t at = (range->r0 + r + i) * v->r_stride + range->k0 * v->k_stride;
            int inside = r + i < range->r_count;
            for (size_t k = 0; k < range->k_count; k++, at += v->k_stride) {
                float f = inside ? load(v->data, dtype, at) : 0.0f;
                panel[k * width + i] = round_bf16 ? ps_bf16_to_f32(ps_f32_to_bf16(f)) : f;
            }
        }
    }
}

static void pack(void *dst, size_t panel_stride, size_t width, const struct ps__gemm_view *v,
                 const struct ps__gemm_range *range, int round_bf16)
{
    if (v->dtype == PS_DTYPE_BF16)
        pack_typed(dst, panel_stride, width, v, range, PS_DTYPE_BF16, 0); /* already rounded */
    else if (v->dtype == PS_DTYPE_F32)
        pack_typed(dst, panel_stride, width, v, range, PS_DTYPE_F32, round_bf16);
    else
        pack_typed(dst, panel_stride, width, v, range, PS_DTYPE_F16, round_bf16);
}

/* All rows and columns, whatever is asked for: constant lengths are what makes this fast. */
static void multiply(size_t unit_count, const void *a, const void *b, float *acc, size_t rows,
                     size_t cols, int first)
{
    (void)rows;
    (void)cols;
    const float *pa = a;
    const float *pb = b;
    float sum[MR][NR];
    if (first)
        memset(sum, 0, sizeof sum);
    else
        memcpy(sum, acc, sizeof sum);
    for (size_t u = 0; u < unit_count; u++, pa += MR, pb += NR) {
        PS__UNROLL
        for (size_t i = 0; i < MR; i++) {
            PS__UNROLL
            for (size_t j = 0; j < NR; j++)
                sum[i][j] += pa[i] * pb[j];
        }
    }
    memcpy(acc, sum, sizeof sum);
}

/* In row passes, one operation each, so that the loops vectorise without branches. */
static void finish_row(const struct ps_gemm_args *args, const float *acc, size_t i, size_t j0,
                       size_t cols)
{
    float v[PS__GEMM_TILE_MAX];
    size_t at = i * args->c_ld + j0;
    float alpha = args->alpha == 0.0f ? 1.0f : args->alpha;
    for (size_t j = 0; j < cols; j++)
        v[j] = alpha * acc[j];
    for (size_t j = 0; args->bias && j < cols; j++)
        v[j] += load(args->bias, args->bias_dtype, j0 + j);
    for (size_t j = 0; args->residual && j < cols; j++)
        v[j] += load(args->residual, args->residual_dtype, i * args->residual_ld + j0 + j);
    for (size_t j = 0; args->accumulate && j < cols; j++)
        v[j] += ((const float *)args->c)[at + j];
    if (args->c_dtype == PS_DTYPE_F32) {
        memcpy((float *)args->c + at, v, cols * sizeof(float));
    } else {
        uint16_t *c = (uint16_t *)args->c + at;
        for (size_t j = 0; j < cols; j++)
            c[j] = ps_f32_to_bf16(v[j]);
    }
}

void ps__gemm_finish(const struct ps_gemm_args *args, const float *acc, size_t nr, size_t i0,
                     size_t j0, size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i++)
        finish_row(args, acc + i * nr, i0 + i, j0, cols);
}

static void finish(const struct ps_gemm_args *args, const float *acc, size_t i0, size_t j0,
                   size_t rows, size_t cols)
{
    ps__gemm_finish(args, acc, NR, i0, j0, rows, cols);
}

const struct ps__gemm_kernel ps__gemm_portable = {
    .mr = MR, .nr = NR, .k_per_unit = 1, .pack = pack, .multiply = multiply, .finish = finish};
