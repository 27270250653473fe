/* GEMM kernel for AVX2 with FMA and F16C: see gemm_internal.h. fp32 units; bf16 math is the same on
 * operands rounded to bf16. 6 x 16 tiles: 12 accumulators, 2 loads and 6 broadcasts a unit. */
#include <immintrin.h>

#include <assert.h>
#include <string.h>

#include "runtime/kernels/gemm_internal.h"

#define MR 6
#define NR 16

struct packing {
    float *dst;
    size_t panel_stride, width;
    const void *data;
    size_t r_stride, k_stride;
    struct ps__gemm_range range;
};

/* ---- packing -------------------------------------------------------------------------------- */

/* Nearest even, as ps_f32_to_bf16, NaN included; kept as fp32. */
PS__INLINE __m256 round_to_bf16(__m256 f)
{
    __m256i u = _mm256_castps_si256(f);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q));
    __m256i r = _mm256_blendv_epi8(up, quiet, nan);
    return _mm256_castsi256_ps(_mm256_and_si256(r, _mm256_set1_epi32((int)0xffff0000u)));
}

PS__INLINE __m256 load_full(const void *p, enum ps_dtype dtype)
{
    if (dtype == PS_DTYPE_F32)
        return _mm256_loadu_ps(p);
    __m128i h = _mm_loadu_si128(p);
    if (dtype == PS_DTYPE_F16)
        return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* Elements [idx, idx + 8) of data, those before `count`, the others 0. */
PS__INLINE __m256 load_units(const void *data, enum ps_dtype dtype, int round_bf16, size_t idx,
                             size_t count)
{
    size_t size = dtype == PS_DTYPE_F32 ? 4 : 2;
    const unsigned char *p = (const unsigned char *)data + idx * size;
    __m256 f;
    if (count >= 8) {
        f = load_full(p, dtype);
    } else {
        unsigned char part[32] = {0};
        memcpy(part, p, count * size);
        f = load_full(part, dtype);
    }
    return round_bf16 ? round_to_bf16(f) : f;
}

/* The lowest n of 8 lanes; n may exceed 8. */
PS__INLINE __m256i lanes(size_t n)
{
    __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n >= 8 ? 8 : (int)n), index);
}

PS__INLINE void transpose_8x8(__m256 r[8])
{
    __m256 t[8];
    PS__UNROLL
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    PS__UNROLL
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    PS__UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    PS__UNROLL
    for (int i = 0; i < 8; i++)
        r[i] = t[i];
}

/* k contiguous: rows [r, r + width), width at most 8, 8 units at a time. */
PS__INLINE void pack_k(const struct packing *p, enum ps_dtype dtype, int round_bf16, size_t r,
                       float *dst, size_t width)
{
    size_t rows = p->range.r_count - r < width ? p->range.r_count - r : width;
    __m256i store = lanes(width);
    for (size_t k = 0; k < p->range.k_count; k += 8) {
        size_t units = p->range.k_count - k < 8 ? p->range.k_count - k : 8;
        size_t at = (p->range.r0 + r) * p->r_stride + p->range.k0 + k;
        __m256 x[8];
        PS__UNROLL
        for (size_t i = 0; i < 8; i++)
            x[i] = i < rows ? load_units(p->data, dtype, round_bf16, at + i * p->r_stride, units)
                            : _mm256_setzero_ps();
        transpose_8x8(x);
        PS__UNROLL
        for (size_t i = 0; i < 8; i++)
            if (i < units)
                _mm256_maskstore_ps(dst + (k + i) * p->width, store, x[i]);
    }
}

PS__INLINE void pack_typed(const struct packing *p, enum ps_dtype dtype, int round_bf16)
{
    if (p->k_stride == 1) {
        float *panel = p->dst;
        for (size_t r = 0; r < p->range.r_count; r += p->width, panel += p->panel_stride) {
            size_t part = p->width < 8 ? p->width : 8;
            for (size_t g = 0; g < p->width; g += part) {
                /* a group past the end packs zeros: r_count - r - g would be negative */
                size_t row = r + g < p->range.r_count ? r + g : p->range.r_count;
                pack_k(p, dtype, round_bf16, row, panel + g, part);
            }
        }
        return;
    }
    for (size_t k = 0; k < p->range.k_count; k++) {
        size_t at = (p->range.k0 + k) * p->k_stride + p->range.r0;
        float *panel = p->dst + k * p->width;
        for (size_t r = 0; r < p->range.r_count; r += p->width, panel += p->panel_stride) {
            for (size_t g = 0; g < p->width; g += 8) {
                size_t left = r + g < p->range.r_count ? p->range.r_count - r - g : 0;
                __m256 x = load_units(p->data, dtype, round_bf16, left ? at + r + g : 0, left);
                _mm256_maskstore_ps(panel + g, lanes(p->width - g), x);
            }
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
    __m256 c[MR][2];
    PS__UNROLL
    for (int i = 0; i < rows; i++) {
        PS__UNROLL
        for (int j = 0; j < vectors; j++)
            c[i][j] = first ? _mm256_setzero_ps() : _mm256_loadu_ps(acc + i * NR + j * 8);
    }
    for (size_t u = 0; u < unit_count; u++, a += MR, b += NR) {
        __m256 b0 = _mm256_loadu_ps(b);
        __m256 b1 = vectors > 1 ? _mm256_loadu_ps(b + 8) : b0;
        PS__UNROLL
        for (int i = 0; i < rows; i++) {
            __m256 x = _mm256_broadcast_ss(a + i);
            c[i][0] = _mm256_fmadd_ps(x, b0, c[i][0]);
            if (vectors > 1)
                c[i][1] = _mm256_fmadd_ps(x, b1, c[i][1]);
        }
    }
    PS__UNROLL
    for (int i = 0; i < rows; i++) {
        PS__UNROLL
        for (int j = 0; j < vectors; j++)
            _mm256_storeu_ps(acc + i * NR + j * 8, c[i][j]);
    }
}

#define CASE(n)                                                                                    \
    case n:                                                                                        \
        if (cols > 8)                                                                              \
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
    default:
        assert(rows <= MR);
    }
}

static void finish(const struct ps_gemm_args *args, const float *acc, size_t i0, size_t j0,
                   size_t rows, size_t cols)
{
    ps__gemm_finish(args, acc, NR, i0, j0, rows, cols);
}

const struct ps__gemm_kernel ps__gemm_avx2 = {
    .mr = MR, .nr = NR, .k_per_unit = 1, .pack = pack, .multiply = multiply, .finish = finish};
