/* Short fp32 blocks: portable kernels load a block of any element type, compute in fp32 loops that
 * the compiler vectorises, and store it with one rounding. Private to runtime/kernels. */
#ifndef PS_KERNELS_FP32_BLOCK_INTERNAL_H
#define PS_KERNELS_FP32_BLOCK_INTERNAL_H

#include <stddef.h>

#include "runtime/base/dtype.h"

/* Elements of a block: 1 KiB of fp32, so that a handful of blocks stays in the first-level cache.
 */
#define PS__BLOCK 256

/* Elements that one task of a pool handles in element-wise loops. A constant: where a task begins
 * never depends on the thread count. */
#define PS__TASK_ELEMS 32768

/* dst[i] = src[at + i], i in [0, n); src of dtype F32, BF16 or F16. */
void ps__block_load(float *dst, const void *src, enum ps_dtype dtype, size_t at, size_t n);

/* dst[at + i] = src[i], i in [0, n), rounded to nearest even; dst of dtype F32, BF16 or F16. */
void ps__block_store(void *dst, enum ps_dtype dtype, size_t at, const float *src, size_t n);

/* Address of element `at`. */
static inline void *ps__at(void *p, enum ps_dtype dtype, size_t at)
{
    return (unsigned char *)p + at * ps_dtype_size(dtype);
}

static inline const void *ps__const_at(const void *p, enum ps_dtype dtype, size_t at)
{
    return (const unsigned char *)p + at * ps_dtype_size(dtype);
}

static inline size_t ps__min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Rows of n elements that make one task, at least one. */
static inline size_t ps__task_rows(size_t n)
{
    return n < PS__TASK_ELEMS ? PS__TASK_ELEMS / (n ? n : 1) : 1;
}

/* Sum of 16 lanes in a fixed tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1. Overwrites the lanes. */
static inline float ps__sum_lanes16(float *lane)
{
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++)
            lane[i] += lane[i + width];
    return lane[0];
}

#endif
