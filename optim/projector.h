/* Low-rank projections of a matrix gradient G (rows m, columns n), as GaLore, Fira, Natural GaLore
 * and APOLLO use them.
 *
 *   right side: basis P (rank, n), low = G P^T (m, rank), back = low P   (m, n)
 *   left side:  basis P (rank, m), low = P G   (rank, n), back = P^T low (m, n)
 *
 * The basis is kept by rows for both sides; GaLore's own left matrix is its transpose. The side
 * rule `std` projects the shorter side: right where m >= n.
 *
 * Bases: `svd`, the leading singular vectors, by the eigenvectors of the fp64 Gram matrix of the
 * basis's side (dsyrk, dsyevr; squaring costs nothing visible in fp64 for fp32 data); `randomized`,
 * subspace iteration from Gaussian numbers with 8 vectors more than the rank and two power
 * iterations (Halko, Martinsson & Tropp 2011, algorithm 4.4), Householder orthonormalisation and a
 * small eigenvalue problem that orders and cuts. Both end orthonormal to fp32 rounding, with the
 * entry of largest magnitude of each vector positive, so that a basis is a function of G alone.
 * For data with slow decay the randomized basis is a good subspace, not the best one.
 *
 * Refreshes: when update t (1-based, of this tensor) is the first, or (t - 1 + phase) is a multiple
 * of the gap. The phase spreads tensors over the gap by the golden ratio, so that no step but the
 * first refreshes more than its share; phase 0 for all (refresh_together) is what the official
 * codes do, and the two differ in when, not in how, a tensor is refreshed.
 *
 * Everything is a function of (build, instruction set), never of threads. Sources: Zhao et al.
 * 2024, arXiv:2403.03507; Chen et al. 2024, arXiv:2410.01623; Zhu et al. 2024, arXiv:2412.05270. */
#ifndef PS_OPTIM_PROJECTOR_H
#define PS_OPTIM_PROJECTOR_H

#include "runtime/train/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_projector {
    const char *name; /* of the tensor, for errors */
    uint64_t seed;
    uint32_t id;
    enum ps_basis kind;
    bool right;
    size_t rows, cols;
    size_t rank;
    size_t dim;    /* length of basis vectors */
    size_t length; /* the other side: low has rank * length elements */
    uint64_t gap, phase;
};

/* Where products run. The GEMM's scratch is for the pool's threads. */
struct ps_matrix_cx {
    struct ps_pool *pool;
    enum ps_isa isa;
    void *gemm_workspace;
};

/* The projection of a matrix; rank_default (cut to the matrix) and gap_default are for a hyper of
 * 0. Returns 0 or PS_EUSAGE: the rank is over the matrix, names tensor and option. */
int ps_projector_plan(const struct ps_optimizer_hyper *hyper, const struct ps_opt_tensor *tensor,
                      int32_t rank_default, int32_t gap_default, struct ps_projector *out,
                      struct ps_error *err) PS_WARN_UNUSED;

/* Is the basis refreshed at update t, and how many updates (this one counted) has it served? */
bool ps_projector_refreshes(const struct ps_projector *p, uint64_t t);
uint64_t ps_projector_age(const struct ps_projector *p, uint64_t t);

/* Scratch of ps_projector_refresh. */
size_t ps_projector_refresh_bytes(const struct ps_projector *p);

/* The basis (rank, dim) of this gradient, (rows, cols) dense, F32 or BF16. t keys the random
 * numbers. Returns 0, PS_EUSAGE (no LAPACK) or PS_ENUMERIC. */
int ps_projector_refresh(const struct ps_projector *p, const struct ps_matrix_cx *cx, uint64_t t,
                         const void *grad, enum ps_dtype grad_dtype, float *basis, void *workspace,
                         struct ps_error *err) PS_WARN_UNUSED;

/* A random basis: entries N(0, 1) / sqrt(rank), not orthonormal, keyed (seed, tensor, t of its
 * refresh). */
void ps_projector_random(const struct ps_projector *p, const struct ps_matrix_cx *cx, uint64_t t,
                         float *basis);

/* low = scale * projection of grad. */
void ps_projector_project(const struct ps_projector *p, const struct ps_matrix_cx *cx,
                          const float *basis, const void *grad, enum ps_dtype grad_dtype,
                          float scale, float *low);

/* Rows [row, row + count) of the back projection: out (count, cols). */
void ps_projector_back(const struct ps_projector *p, const struct ps_matrix_cx *cx,
                       const float *basis, const float *low, size_t row, size_t count, float *out);

/* Take moments (second: their squares) from the old basis to the new: with T = new old^T,
 * left: m <- T m, v <- (T o T) v; right: m <- m T^T, v <- v (T o T)^T. `scratch` holds
 * rank * rank + rank * length floats. */
void ps_projector_rotate(const struct ps_projector *p, const struct ps_matrix_cx *cx,
                         const float *old_basis, const float *new_basis, float *m, float *v,
                         float *scratch);

#ifdef __cplusplus
}
#endif
#endif
