/* Between the tiles of a product (blas.c) and the library's calls (blas_lt.c). Private to the
 * plug-in. */
#ifndef PS_DEVICE_CUDA_BLAS_INTERNAL_H
#define PS_DEVICE_CUDA_BLAS_INTERNAL_H

#include <stddef.h>

#include "runtime/device/cuda_blas.h"

struct ps__blas_lt;

/* Device memory that a call of the library may use. */
#define PS__BLAS_LT_BYTES ((size_t)32 << 20)

/* One call of the library, row-major: d (m, n) = alpha op(a) op(b) + beta c + bias, rounded once.
 */
struct ps__product {
    size_t m, n, k;
    struct ps_gemm_mat a, b; /* both F32, or both BF16 */
    float alpha, beta;
    const void *c; /* d when beta is 0 */
    void *d;
    size_t ld;           /* of c and d */
    enum ps_dtype dtype; /* of c, d and bias: F32, or BF16 where a and b are */
    const void *bias;    /* (n,) or NULL */
};

/* `workspace`: PS__BLAS_LT_BYTES of device memory, borrowed. 0, -ENOMEM or PS_ECUDA. */
int ps__blas_lt_open(struct ps__blas_lt **out, void *workspace, struct ps_error *err);
void ps__blas_lt_close(struct ps__blas_lt *lt);

/* Queue one call. 0 or PS_ECUDA. */
int ps__blas_lt_multiply(struct ps__blas_lt *lt, void *stream, const struct ps__product *p);

#endif
