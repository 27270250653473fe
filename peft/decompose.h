/* Decompositions of a base weight that is read in row blocks, as often as needed: it need not fit
 * into memory. Products in fp32, orthogonalisation and small matrices in fp64; the result depends
 * on the shape, the key and the instruction set alone. */
#ifndef PS_PEFT_DECOMPOSE_H
#define PS_PEFT_DECOMPOSE_H

#include "runtime/base/rng.h"
#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* W (out, in) ~ B A with A (r, in) = diag(sqrt(S)) V^T and B (out, r) = U diag(sqrt(S)): the
 * largest r singular triplets by subspace iteration with 8 more directions (Halko, Martinsson,
 * Tropp 2011, arXiv:0909.4061, algorithm 4.4), `iterations` times W^T and W. */
int ps_decompose_svd(const struct ps_adapter_base *base, int64_t out, int64_t in, int32_t r,
                     int iterations, const struct ps_rng_key *key, float *a, float *b,
                     struct ps_error *err) PS_WARN_UNUSED;

/* B (out, r) = the first r columns of Q, A (r, in) = the first r rows of R of W = Q R, up to the
 * signs of columns and rows. */
int ps_decompose_qr(const struct ps_adapter_base *base, int64_t out, int64_t in, int32_t r,
                    float *a, float *b, struct ps_error *err) PS_WARN_UNUSED;

/* A (r, in) = the first rows of W, B (out, r) = its first columns, N (r, r) = the pseudo-inverse of
 * its first block, singular values below rcond times the largest left out (Nystroem: W ~ B N A). */
int ps_decompose_nystroem(const struct ps_adapter_base *base, int64_t out, int64_t in, int32_t r,
                          double rcond, float *a, float *n, float *b,
                          struct ps_error *err) PS_WARN_UNUSED;

/* One-sided Jacobi: M (n, n) row-major = U diag(s) V^T, s descending; m becomes U, v gets V, both
 * row-major. Columns of U to a zero singular value are zero. Source: Hestenes 1958. */
void ps_jacobi_svd(double *m, double *v, double *s, size_t n);

#ifdef __cplusplus
}
#endif
#endif
