/* General matrix multiplication under the numerical contract.
 *
 *   acc[i,j] = sum over k ascending of op(A)[i,k] op(B)[k,j]
 *            + sum over k2 ascending of op(A2)[i,k2] op(B2)[k2,j]      (k2 may be 0)
 *   v = alpha * acc;  v += bias[j];  v += residual[i,j];  if accumulate: v += C[i,j];  C[i,j] = v
 *
 * One fp32 accumulator chain per element, one rounding to c_dtype at the end. C[i,j] depends only on
 * row i of A (A2), column j of B (B2), K, K2, the dtypes, the math and the instruction set: never on
 * M, N, the tile position, alignment, leading dimension, thread count or call history.
 *
 * Math: PS_GEMM_F32 converts operands to fp32 (exact for BF16 and F16) and uses fused multiply-add
 * (PS_ISA_PORTABLE: multiply, then add);
 * PS_GEMM_BF16 rounds F32 operands to bf16 (nearest even; F16 through fp32) while packing, products
 * accumulate in fp32. With PS_ISA_AVX512_BF16 the latter is vdpbf16ps: denormal operands and sums
 * count as zero, two values of k are added in one step; the other instruction sets keep denormals.
 * NaN and Inf propagate. */
#ifndef PS_KERNELS_GEMM_H
#define PS_KERNELS_GEMM_H

#include <stddef.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_gemm_math { PS_GEMM_F32, PS_GEMM_BF16 };

/* op(M)[r,c] = trans ? data[c * ld + r] : data[r * ld + c]; dtype F32, BF16 or F16; no alignment
 * beyond the element's is needed. ld in elements. */
struct ps_gemm_mat {
    const void *data;
    size_t ld;
    enum ps_dtype dtype;
    int trans;
};

struct ps_gemm_args {
    size_t m, n, k, k2;         /* any may be small or odd; m, n, k >= 1 */
    struct ps_gemm_mat a, b;    /* op(A) (m,k), op(B) (k,n) */
    struct ps_gemm_mat a2, b2;  /* op(A2) (m,k2), op(B2) (k2,n); ignored when k2 == 0 */
    float alpha;                /* 0 means 1 */
    const void *bias;           /* (n,) or NULL */
    enum ps_dtype bias_dtype;   /* F32, BF16 or F16 */
    const void *residual;       /* (m,n) or NULL; may be C itself when the dtypes agree */
    size_t residual_ld;
    enum ps_dtype residual_dtype; /* F32 or BF16 */
    void *c;                    /* (m,n); overlaps no operand */
    size_t c_ld;
    enum ps_dtype c_dtype;      /* F32 or BF16 */
    int accumulate;             /* C must then be F32 */
    enum ps_gemm_math math;
};

/* Bytes of scratch that ps_gemm needs, for any shape. */
size_t ps_gemm_workspace_bytes(int thread_count);

/* Compute. `workspace` is 64-byte aligned, of ps_gemm_workspace_bytes(ps_pool_thread_count(pool)).
 * Blocks until done; allocates nothing. isa must be at most ps_isa_detect(). */
void ps_gemm(struct ps_pool *pool, enum ps_isa isa, const struct ps_gemm_args *args,
             void *workspace);

/* The readable reference (double loop, same rounding of operands, fp64 sum): for tests. */
void ps_gemm_reference(const struct ps_gemm_args *args);

#ifdef __cplusplus
}
#endif
#endif
