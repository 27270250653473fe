/* What the element-wise variants share, and conversion of one piece for other kernels. Private to
 * runtime/kernels. */
#ifndef PS_KERNELS_ELEMENTWISE_INTERNAL_H
#define PS_KERNELS_ELEMENTWISE_INTERNAL_H

#include "runtime/kernels/elementwise.h"

/* Convert n elements on the calling thread: ps_convert without a pool. */
void ps__convert(enum ps_isa isa, void *dst, enum ps_dtype dst_dtype, const void *src,
                 enum ps_dtype src_dtype, size_t n);
void ps__convert_avx512(void *dst, enum ps_dtype dst_dtype, const void *src,
                        enum ps_dtype src_dtype, size_t n);

void ps__add_avx512(void *y, const void *a, const void *b, enum ps_dtype dtype, size_t n);

struct ps__dropout_args {
    void *y;
    const void *x;
    enum ps_dtype dtype;
    float p;
    const struct ps_rng_key *key;
    int how;
};

/* Elements [begin, end) of the dense tensor; begin % 4 == 0. */
void ps__dropout_avx512(const struct ps__dropout_args *a, size_t begin, size_t end);

/* Fill lane[32] with the sums of squares of x[at + i], i in [0, n), element i in lane i % 32, and
 * zeros where there is none. Squares of fp32 values are exact in double, so fused and separate
 * additions agree, and so do all variants. */
void ps__square_sum_avx512(double lane[32], const void *x, enum ps_dtype dtype, size_t at,
                           size_t n);

/* sum[j] += x[t * ld + at + j] for t in [begin, end), j in [0, n), t ascending from sum = 0 (=). */
void ps__column_sum_avx512(float *sum, const void *x, enum ps_dtype dtype, size_t ld, size_t begin,
                           size_t end, size_t at, size_t n);

#endif
