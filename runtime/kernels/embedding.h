/* Token embedding: y[t,:] = table[id[t],:], and its gradient. */
#ifndef PS_KERNELS_EMBEDDING_H
#define PS_KERNELS_EMBEDDING_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"

#ifdef __cplusplus
extern "C" {
#endif

/* table (row_end - row_begin, n) F32, BF16 or F16: rows [row_begin, row_end) of the embedding (a streamed
 * block; the whole of it: 0 and the vocabulary). Tokens with other ids are left alone. y (n_tok, n) F32
 * or BF16 (rounded once). */
void ps_embedding_forward(struct ps_pool *pool, enum ps_isa isa, const void *table,
                          enum ps_dtype table_dtype, size_t n, int64_t row_begin, int64_t row_end,
                          const int32_t *ids, size_t n_tok, void *y, enum ps_dtype dtype);

/* dtable[id[t],:] += dy[t,:] in ascending t, fp32 (vocab, n); threads split the columns, so the
 * order of additions is fixed. The caller zeroes dtable where it starts. */
void ps_embedding_backward(struct ps_pool *pool, enum ps_isa isa, float *dtable, size_t n,
                           const int32_t *ids, size_t n_tok, const void *dy, enum ps_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif
