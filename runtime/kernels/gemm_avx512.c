/* GEMM kernel for AVX-512: see gemm_internal.h. fp32 units and fused multiply-add; bf16 math is the
 * same on operands rounded to bf16.
 *
 * Design: 12 x 32 tiles, 24 accumulators; 2 loads and 12 broadcasts feed 24 products, so that the
 * multiplier and not the load unit is the limit even with B in the second-level cache. */
#include "runtime/kernels/gemm_avx512_internal.h"

#include <assert.h>

#define MR PS__GEMM_MR
#define NR PS__GEMM_NR

/* ---- packing -------------------------------------------------------------------------------- */

struct packing {
    float *dst;
    size_t panel_stride, width;
    const void *data;
    size_t r_stride, k_stride;
    struct ps__gemm_range range;
};

PS__INLINE __m512i load_units(const void *data, enum ps_dtype dtype, int round_bf16, size_t idx,
                              __mmask16 mask)
{
    __m512 f = ps__load_f32(data, dtype, idx, mask);
    return round_bf16 ? ps__round_bf16(f) : _mm512_castps_si512(f);
}

/* k contiguous: `rows` of `width` (at most 16) rows, the `count` values at `at` of each through a
 * transposition. Constants where speed matters. */
PS__INLINE void pack_square(const struct packing *p, enum ps_dtype dtype, int round_bf16, size_t at,
                            size_t rows, size_t count, float *dst, size_t width)
{
    __m512i x[16];
    PS__UNROLL
    for (size_t i = 0; i < 16; i++)
        x[i] = i < rows
                   ? load_units(p->data, dtype, round_bf16, at + i * p->r_stride, ps__lanes(count))
                   : _mm512_setzero_si512();
    ps__transpose_16x16(x);
    PS__UNROLL
    for (size_t i = 0; i < 16; i++)
        if (i < count)
            _mm512_mask_storeu_epi32(dst + i * p->width, ps__lanes(width), x[i]);
}

PS__INLINE void pack_k(const struct packing *p, enum ps_dtype dtype, int round_bf16, size_t r,
                       float *dst, size_t width)
{
    size_t rows = p->range.r_count - r < width ? p->range.r_count - r : width;
    size_t at = (p->range.r0 + r) * p->r_stride + p->range.k0;
    size_t count = p->range.k_count;
    size_t k = 0;
    for (; rows == width && k + 16 <= count; k += 16)
        pack_square(p, dtype, round_bf16, at + k, width, 16, dst + k * p->width, width);
    for (; k < count; k += 16)
        pack_square(p, dtype, round_bf16, at + k, rows, count - k, dst + k * p->width, width);
}

/* Rows contiguous: a copy, walked along memory; groups of 16 or `width` rows. */
PS__INLINE void pack_r(const struct packing *p, enum ps_dtype dtype, int round_bf16, size_t width)
{
    size_t step = width < 16 ? width : 16;
    for (size_t k = 0; k < p->range.k_count; k++) {
        size_t at = (p->range.k0 + k) * p->k_stride + p->range.r0;
        float *panel = p->dst + k * width;
        size_t in_panel = 0;
        for (size_t left = p->range.r_count; left; at += step) {
            size_t count = left < step ? left : step;
            __m512i x = load_units(p->data, dtype, round_bf16, at, ps__lanes(count));
            _mm512_mask_storeu_epi32(panel + in_panel, ps__lanes(step), x);
            left -= count;
            in_panel += step;
            if (in_panel >= width) {
                in_panel = 0;
                panel += p->panel_stride;
            }
        }
    }
}

PS__INLINE void pack_typed(const struct packing *p, enum ps_dtype dtype, int round_bf16)
{
    float *panel = p->dst;
    if (p->k_stride != 1 && p->width == MR) {
        pack_r(p, dtype, round_bf16, MR);
    } else if (p->k_stride != 1) {
        pack_r(p, dtype, round_bf16, NR);
    } else if (p->width == MR) {
        for (size_t r = 0; r < p->range.r_count; r += MR, panel += p->panel_stride)
            pack_k(p, dtype, round_bf16, r, panel, MR);
    } else {
        for (size_t r = 0; r < p->range.r_count; r += 16) {
            pack_k(p, dtype, round_bf16, r, panel + r % NR, 16);
            if (r % NR)
                panel += p->panel_stride;
        }
    }
}

static void pack(void *dst, size_t panel_stride, size_t width, const struct ps__gemm_view *v,
                 const struct ps__gemm_range *range, int round_bf16)
{
    struct packing p = {dst, panel_stride, width, v->data, v->r_stride, v->k_stride, *range};
    if (v->dtype == PS_DTYPE_BF16)
        pack_typed(&p, PS_DTYPE_BF16, 0); /* rounding bf16 changes nothing */
    else if (v->dtype == PS_DTYPE_F32 && round_bf16)
        pack_typed(&p, PS_DTYPE_F32, 1);
    else if (v->dtype == PS_DTYPE_F32)
        pack_typed(&p, PS_DTYPE_F32, 0);
    else if (round_bf16)
        pack_typed(&p, PS_DTYPE_F16, 1);
    else
        pack_typed(&p, PS_DTYPE_F16, 0);
}

/* ---- multiplication ------------------------------------------------------------------------- */

/* rows and vectors are constants where this is inlined. */
PS__INLINE void multiply_tile(int rows, int vectors, size_t unit_count, const float *a,
                              const float *b, float *acc, int first)
{
    __m512 c[MR][2];
    PS__UNROLL
    for (int i = 0; i < rows; i++) {
        PS__UNROLL
        for (int j = 0; j < vectors; j++)
            c[i][j] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(acc + i * NR + j * 16);
    }
    for (size_t u = 0; u < unit_count; u++, a += MR, b += NR) {
        __m512 b0 = _mm512_loadu_ps(b);
        __m512 b1 = vectors > 1 ? _mm512_loadu_ps(b + 16) : _mm512_setzero_ps();
        PS__UNROLL
        for (int i = 0; i < rows; i++) {
            __m512 x = _mm512_set1_ps(a[i]);
            c[i][0] = _mm512_fmadd_ps(x, b0, c[i][0]);
            if (vectors > 1)
                c[i][1] = _mm512_fmadd_ps(x, b1, c[i][1]);
        }
    }
    PS__UNROLL
    for (int i = 0; i < rows; i++) {
        PS__UNROLL
        for (int j = 0; j < vectors; j++)
            _mm512_storeu_ps(acc + i * NR + j * 16, c[i][j]);
    }
}

#define CASE(n)                                                                                    \
    case n:                                                                                        \
        if (cols > 16)                                                                             \
            multiply_tile(n, 2, unit_count, a, b, acc, first);                                     \
        else                                                                                       \
            multiply_tile(n, 1, unit_count, a, b, acc, first);                                     \
        break;

static void multiply(size_t unit_count, const void *a, const void *b, float *acc, size_t rows,
                     size_t cols, int first)
{
    switch (rows) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
        CASE(5)
        CASE(6)
        CASE(7)
        CASE(8)
        CASE(9)
        CASE(10)
        CASE(11)
        CASE(12)
    default:
        assert(rows <= MR);
    }
}

/* ---- epilogue ------------------------------------------------------------------------------- */

PS__INLINE __m512 finish_vector(const struct ps_gemm_args *args, __m512 v, size_t i, size_t j,
                                __mmask16 mask)
{
    if (args->alpha != 0.0f)
        v = _mm512_mul_ps(v, _mm512_set1_ps(args->alpha));
    if (args->bias)
        v = _mm512_add_ps(v, ps__load_f32(args->bias, args->bias_dtype, j, mask));
    if (args->residual)
        v = _mm512_add_ps(
            v, ps__load_f32(args->residual, args->residual_dtype, i * args->residual_ld + j, mask));
    if (args->accumulate)
        v = _mm512_add_ps(v, ps__load_f32(args->c, PS_DTYPE_F32, i * args->c_ld + j, mask));
    return v;
}

void ps__gemm_finish_avx512(const struct ps_gemm_args *args, const float *acc, size_t i0, size_t j0,
                            size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i++) {
        size_t at = (i0 + i) * args->c_ld + j0;
        for (size_t j = 0; j < cols; j += 16) {
            __mmask16 mask = ps__lanes(cols - j);
            __m512 v = finish_vector(args, _mm512_loadu_ps(acc + i * NR + j), i0 + i, j0 + j, mask);
            if (args->c_dtype == PS_DTYPE_F32) {
                _mm512_mask_storeu_ps((float *)args->c + at + j, mask, v);
            } else {
                __m256i h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(ps__round_bf16(v), 16));
                _mm256_mask_storeu_epi16((uint16_t *)args->c + at + j, mask, h);
            }
        }
    }
}

const struct ps__gemm_kernel ps__gemm_avx512 = {.mr = MR,
                                                .nr = NR,
                                                .k_per_unit = 1,
                                                .pack = pack,
                                                .multiply = multiply,
                                                .finish = ps__gemm_finish_avx512};
