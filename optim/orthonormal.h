/* Small dense linear algebra of the low-rank optimizers: orthonormal rows by Householder
 * reflections and a symmetric eigenvalue problem.
 *
 * Sums run in fixed lanes in plain IEEE arithmetic: the same bits for every thread count and
 * instruction set. Sources: Golub & Van Loan, Matrix Computations, 5.1-5.2 (Householder QR), 8.3
 * (tridiagonalisation, implicit QL with Wilkinson's shift). */
#ifndef PS_OPTIM_ORTHONORMAL_H
#define PS_OPTIM_ORTHONORMAL_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Replace the rows of y (k, d), k <= d, by an orthonormal basis whose first j rows span the first j
 * rows of y. Dependent rows give some orthonormal completion. `tau` is scratch (k,).
 * About 4 d k^2 FLOPs. */
void ps_orthonormal_rows(struct ps_pool *pool, float *y, size_t k, size_t d, float *tau);

/* Flip each row of y (k, d) so that its entry of largest magnitude (the first of equals) is
 * positive. */
void ps_canonical_signs(float *y, size_t k, size_t d);

/* gram (k, k) = b b^T of b (k, d), products and sums in fp64, both triangles. */
void ps_row_gram(struct ps_pool *pool, const float *b, size_t k, size_t d, double *gram);

/* Bytes of scratch for ps_symmetric_eigen. */
size_t ps_symmetric_eigen_bytes(size_t n);

/* The `count` largest eigenvalues of the symmetric a (n, n; destroyed), descending, and their unit
 * eigenvectors as rows of `vector` (count, n). O(n^3): for n up to about a thousand. Returns 0 or
 * PS_ENUMERIC: no convergence, which finite numbers do not cause. */
int ps_symmetric_eigen(double *a, size_t n, size_t count, double *value, double *vector,
                       void *workspace) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
