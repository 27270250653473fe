/* The system's LAPACK, for full decompositions.
 *
 * It is loaded when a run asks for one, so that a program that does not needs no LAPACK, starts
 * none of its threads and holds none of its memory. Any LAPACK with the standard names will do
 * (Debian: libopenblas0 or liblapack3). OpenBLAS is held to one thread: its results depend on how
 * many there are. What it computes is then a function of its version and the processor. */
#ifndef PS_OPTIM_LAPACK_H
#define PS_OPTIM_LAPACK_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Can it be loaded? 0, or PS_EUSAGE with the remedy. Loads it; later calls find it loaded. */
int ps_lapack_check(struct ps_error *err) PS_WARN_UNUSED;

/* Bytes of scratch for ps_lapack_gram_eigen. */
size_t ps_lapack_gram_eigen_bytes(size_t n, size_t count);

/* A symmetric eigenvalue problem by blocks: gram (n, n) += x x^T of x (n, k), column-major, lower
 * triangle (dsyrk). Returns 0 or PS_EUSAGE (no LAPACK). */
int ps_lapack_gram_add(double *gram, size_t n, const double *x, size_t k,
                       struct ps_error *err) PS_WARN_UNUSED;

/* The `count` largest eigenvalues' eigenvectors of the lower triangle of gram (n, n; destroyed) by
 * dsyevr, ascending, as rows of `vector` (count, n). Workspace 64-byte aligned. Returns 0,
 * PS_EUSAGE (no LAPACK) or PS_ENUMERIC (LAPACK gave up). */
int ps_lapack_gram_eigen(double *gram, size_t n, size_t count, double *vector, void *workspace,
                         struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
