/* GEMM kernel for AVX-512 with vdpbf16ps: see gemm_internal.h. Units are pairs of bf16 values.
 *
 * Numerics: the instruction takes and gives denormals as zero and rounds to nearest even whatever
 * MXCSR says; an element's chain is acc = acc + a1 b1 (fused), then + a0 b0, as the hardware orders
 * it, the same in every lane. fp32 operands are rounded by vcvtne2ps2bf16, which also takes
 * denormals as zero. Tile shape and blocking as in gemm_avx512.c. */
#include "runtime/kernels/gemm_avx512_internal.h"

#include <assert.h>

#define MR PS__GEMM_MR
#define NR PS__GEMM_NR

/* ---- packing -------------------------------------------------------------------------------- */

struct packing {
    uint32_t *dst;
    size_t panel_stride, width;
    const void *data;
    size_t r_stride, k_stride;
    struct ps__gemm_range range;
};

/* 32 consecutive values, those before `count`, as 16 units. */
PS__INLINE __m512i load_units_k(const void *data, enum ps_dtype dtype, size_t idx, size_t count)
{
    if (dtype == PS_DTYPE_BF16) {
        __mmask32 mask = count >= 32 ? 0xffffffffu : (1u << count) - 1u;
        return _mm512_maskz_loadu_epi16(mask, (const uint16_t *)data + idx);
    }
    __m512 lo = ps__load_f32(data, dtype, idx, ps__lanes(count));
    __m512 hi = _mm512_setzero_ps();
    if (count > 16)
        hi = ps__load_f32(data, dtype, idx + 16, ps__lanes(count - 16));
    return (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
}

/* 16 units from 16 values at idx (even k) and 16 at idx + next (odd k; none when next is 0). */
PS__INLINE __m512i load_units_r(const void *data, enum ps_dtype dtype, size_t idx, size_t next,
                                __mmask16 mask)
{
    /* lane i from lane i of the first and of the second source */
    const __m512i one_by_one = _mm512_add_epi32(
        _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                           _mm512_set1_epi32(0x10001)),
        _mm512_set1_epi32(dtype == PS_DTYPE_BF16 ? 32 << 16 : 16 << 16));
    __mmask16 odd = next ? mask : 0;
    if (dtype == PS_DTYPE_BF16) {
        const uint16_t *h = (const uint16_t *)data + idx;
        __m512i lo = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(mask, h));
        __m512i hi = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(odd, h + next));
        return _mm512_permutex2var_epi16(lo, one_by_one, hi);
    }
    __m512 lo = ps__load_f32(data, dtype, idx, mask);
    __m512 hi = ps__load_f32(data, dtype, idx + next, odd);
    return _mm512_permutexvar_epi16(one_by_one, (__m512i)_mm512_cvtne2ps_pbh(hi, lo));
}

/* k contiguous: `rows` of `width` (at most 16) rows, the `count` values at `at` of each as units
 * through a transposition. Constants where speed matters. */
PS__INLINE void pack_square(const struct packing *p, enum ps_dtype dtype, size_t at, size_t rows,
                            size_t count, uint32_t *dst, size_t width)
{
    size_t units = count < 32 ? (count + 1) / 2 : 16;
    __m512i x[16];
    PS__UNROLL
    for (size_t i = 0; i < 16; i++)
        x[i] = i < rows ? load_units_k(p->data, dtype, at + i * p->r_stride, count)
                        : _mm512_setzero_si512();
    ps__transpose_16x16(x);
    PS__UNROLL
    for (size_t i = 0; i < 16; i++)
        if (i < units)
            _mm512_mask_storeu_epi32(dst + i * p->width, ps__lanes(width), x[i]);
}

PS__INLINE void pack_k(const struct packing *p, enum ps_dtype dtype, size_t r, uint32_t *dst,
                       size_t width)
{
    size_t rows = p->range.r_count - r < width ? p->range.r_count - r : width;
    size_t at = (p->range.r0 + r) * p->r_stride + p->range.k0;
    size_t k = 0;
    for (; rows == width && k + 32 <= p->range.k_count; k += 32)
        pack_square(p, dtype, at + k, width, 32, dst + k / 2 * p->width, width);
    for (; k < p->range.k_count; k += 32)
        pack_square(p, dtype, at + k, rows, p->range.k_count - k, dst + k / 2 * p->width, width);
}

/* Rows contiguous: two depths side by side, walked along memory; groups of 16 or `width` rows. */
PS__INLINE void pack_r(const struct packing *p, enum ps_dtype dtype, size_t width)
{
    size_t step = width < 16 ? width : 16;
    for (size_t k = 0; k < p->range.k_count; k += 2) {
        size_t at = (p->range.k0 + k) * p->k_stride + p->range.r0;
        size_t next = k + 1 < p->range.k_count ? p->k_stride : 0;
        uint32_t *panel = p->dst + k / 2 * width;
        size_t in_panel = 0;
        for (size_t left = p->range.r_count; left; at += step) {
            size_t count = left < step ? left : step;
            __m512i x = load_units_r(p->data, dtype, at, next, ps__lanes(count));
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

PS__INLINE void pack_typed(const struct packing *p, enum ps_dtype dtype)
{
    uint32_t *panel = p->dst;
    if (p->k_stride != 1 && p->width == MR) {
        pack_r(p, dtype, MR);
    } else if (p->k_stride != 1) {
        pack_r(p, dtype, NR);
    } else if (p->width == MR) {
        for (size_t r = 0; r < p->range.r_count; r += MR, panel += p->panel_stride)
            pack_k(p, dtype, r, panel, MR);
    } else {
        for (size_t r = 0; r < p->range.r_count; r += 16) {
            pack_k(p, dtype, r, panel + r % NR, 16);
            if (r % NR)
                panel += p->panel_stride;
        }
    }
}

static void pack(void *dst, size_t panel_stride, size_t width, const struct ps__gemm_view *v,
                 const struct ps__gemm_range *range, int round_bf16)
{
    assert(round_bf16);
    struct packing p = {dst, panel_stride, width, v->data, v->r_stride, v->k_stride, *range};
    if (v->dtype == PS_DTYPE_BF16)
        pack_typed(&p, PS_DTYPE_BF16);
    else if (v->dtype == PS_DTYPE_F32)
        pack_typed(&p, PS_DTYPE_F32);
    else
        pack_typed(&p, PS_DTYPE_F16);
}

/* ---- multiplication ------------------------------------------------------------------------- */

/* rows and vectors are constants where this is inlined. */
PS__INLINE void multiply_tile(int rows, int vectors, size_t unit_count, const uint32_t *a,
                              const uint32_t *b, float *acc, int first)
{
    __m512 c[MR][2];
    PS__UNROLL
    for (int i = 0; i < rows; i++) {
        PS__UNROLL
        for (int j = 0; j < vectors; j++)
            c[i][j] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(acc + i * NR + j * 16);
    }
    for (size_t u = 0; u < unit_count; u++, a += MR, b += NR) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b);
        __m512bh b1 = vectors > 1 ? (__m512bh)_mm512_loadu_si512(b + 16) : b0;
        PS__UNROLL
        for (int i = 0; i < rows; i++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[i]);
            c[i][0] = _mm512_dpbf16_ps(c[i][0], x, b0);
            if (vectors > 1)
                c[i][1] = _mm512_dpbf16_ps(c[i][1], x, b1);
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

const struct ps__gemm_kernel ps__gemm_avx512_bf16 = {.mr = MR,
                                                     .nr = NR,
                                                     .k_per_unit = 2,
                                                     .pack = pack,
                                                     .multiply = multiply,
                                                     .finish = ps__gemm_finish_avx512};
