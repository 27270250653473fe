/* What the embedding variants share. Private to runtime/kernels. */
#ifndef PS_KERNELS_EMBEDDING_INTERNAL_H
#define PS_KERNELS_EMBEDDING_INTERNAL_H

#include "runtime/kernels/embedding.h"

/* dst[j] += dy[at + j], j in [0, n). */
void ps__embedding_add_avx512(float *dst, const void *dy, enum ps_dtype dtype, size_t at, size_t n);

#endif
