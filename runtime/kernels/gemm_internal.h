/* What the GEMM's driver (gemm.c) and its instruction sets share.
 *
 * Packed form. K is cut into units of 4 bytes: one fp32 value (k_per_unit 1), or two bf16 values
 * (k_per_unit 2, the even k in the low half; a missing odd k is +0). A panel holds `width`
 * neighbouring rows of op(A), or columns of op(B), as units[unit][width]; rows past the end are +0.
 * The driver lays panels one after the other, `panel_stride` units apart.
 *
 * Accumulator tiles are (mr, nr) fp32, dense. A tile's chain is carried from one block of K to the
 * next in fp32, so cutting K anywhere between units does not change a bit. */
#ifndef PS_KERNELS_GEMM_INTERNAL_H
#define PS_KERNELS_GEMM_INTERNAL_H

#include "runtime/kernels/gemm.h"

/* One operand as the kernels see it: element (r, k) is data[r * r_stride + k * k_stride], r being a
 * row of op(A) or a column of op(B). One of the strides is 1. */
struct ps__gemm_view {
    const void *data;
    size_t r_stride, k_stride;
    enum ps_dtype dtype;
};

/* Rows [r0, r0 + r_count) and depths [k0, k0 + k_count) of a view. */
struct ps__gemm_range {
    size_t r0, r_count, k0, k_count;
};

struct ps__gemm_kernel {
    size_t mr, nr; /* tile; multiples of nothing, at most PS__GEMM_TILE_MAX together */
    size_t k_per_unit;

    /* Pack a range into panels of `width` (mr or nr) at dst, rounding to bf16 (nearest even) when
     * round_bf16. Writes ceil(k_count / k_per_unit) units of every panel, nothing else. */
    void (*pack)(void *dst, size_t panel_stride, size_t width, const struct ps__gemm_view *v,
                 const struct ps__gemm_range *range, int round_bf16);

    /* acc[i, j] (+)= sum over the units of a[., i] b[., j], rows < mr and cols < nr; `first` starts
     * from +0. a and b: one panel each. Entries past rows or cols may be written with anything. */
    void (*multiply)(size_t unit_count, const void *a, const void *b, float *acc, size_t rows,
                     size_t cols, int first);

    /* The epilogue of gemm.h on the tile whose first element is C[i0, j0]. */
    void (*finish)(const struct ps_gemm_args *args, const float *acc, size_t i0, size_t j0,
                   size_t rows, size_t cols);
};

/* Before a loop of constant length: unroll it wholly, so that arrays of vectors become registers.
 */
#ifdef __clang__
#define PS__UNROLL _Pragma("clang loop unroll(full)")
#else
#define PS__UNROLL _Pragma("GCC unroll 16")
#endif
#define PS__INLINE static inline __attribute__((always_inline))

#define PS__GEMM_TILE_MAX 512 /* mr * nr at most */

extern const struct ps__gemm_kernel ps__gemm_portable;
extern const struct ps__gemm_kernel ps__gemm_avx2;
extern const struct ps__gemm_kernel ps__gemm_avx512;
extern const struct ps__gemm_kernel ps__gemm_avx512_bf16; /* PS_GEMM_BF16 only */

/* finish() of the sets that have none of their own: scalar fp32, nr as given. */
void ps__gemm_finish(const struct ps_gemm_args *args, const float *acc, size_t nr, size_t i0,
                     size_t j0, size_t rows, size_t cols);

/* finish() of both AVX-512 sets; their tiles are 32 wide. */
void ps__gemm_finish_avx512(const struct ps_gemm_args *args, const float *acc, size_t i0, size_t j0,
                            size_t rows, size_t cols);

#endif
