/* AdamW, decoupled decay before the step, T-form direction:
 *
 *   p <- p - (lr * decay) * p
 *   m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2        (g = grad * grad_scale)
 *   p <- p - lr * (m / c1) / (sqrt(v / c2) + eps)       c1 = 1 - beta1^t, c2 = 1 - beta2^t
 *
 * The operation sequence, each line one rounding an operator, fma(a, b, c) = a b + c rounded once:
 *
 *   g = grad * grad_scale
 *   p = fma(-decay, p, p)
 *   m = fma(beta1, m, one_minus_beta1 * g)
 *   v = fma(beta2, v, (one_minus_beta2 * g) * g)
 *   p = fma(-step_size, m / fma(sqrt(v), rsqrt_c2, eps), p)
 *
 * One IEEE operation sequence for every instruction set and device (explicit fma, correctly rounded
 * division and square root; c1, c2 computed in double on the host by the caller through
 * ps_adamw_prepare), so that the result does not depend on where or in what pieces a tensor is
 * updated. Source: Loshchilov & Hutter 2019, arXiv:1711.05101; torch.optim.AdamW. */
#ifndef PS_OPTIM_ADAMW_H
#define PS_OPTIM_ADAMW_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"
#include "runtime/train/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Scalars of one step, all fp32 except where they are derived in double. */
struct ps_adamw_scalars {
    float beta1, beta2, one_minus_beta1, one_minus_beta2;
    float step_size; /* lr / c1 */
    float rsqrt_c2;  /* 1 / sqrt(c2) */
    float eps;
    float decay;      /* lr * weight_decay */
    float grad_scale; /* clip coefficient; 1 leaves g untouched bit for bit */
};

/* t is the 1-based per-tensor update count. */
void ps_adamw_prepare(struct ps_adamw_scalars *out, double lr, double beta1, double beta2,
                      double eps, double weight_decay, uint64_t t, float grad_scale);

/* A slice of one tensor. Weight dtype F32: the weight is the master, remainder is NULL. Weight
 * dtype BF16: the master is the bf16 weight plus 16-bit remainder, rounded encoding: p = hi16 + (lo
 * >= 0x8000), lo = low16 (the weight is then round-half-away of the master). All (n,), host,
 * element alignment. */
struct ps_adamw_slice {
    void *weight;
    uint16_t *remainder;
    const void *grad;
    float *exp_avg;
    float *exp_avg_sq;
    enum ps_dtype weight_dtype; /* F32 or BF16 */
    enum ps_dtype grad_dtype;   /* F32 or BF16 */
    size_t n;
};

/* Update in place; threads split the elements. */
void ps_adamw_update(struct ps_pool *pool, enum ps_isa isa, const struct ps_adamw_scalars *s,
                     const struct ps_adamw_slice *slice);

/* The update of the registry's entry, with t updates of the moments instead of u->t (which stays
 * the key of random numbers): for methods that begin them anew. State 0 and 1: ps_adamw_ops.layout.
 */
void ps_adamw_step(const struct ps_update *u, uint64_t t);

/* Join bf16 weight and remainder into the fp32 master, and split a finite fp32 master (a NaN keeps
 * a NaN weight). */
float ps_master_join(uint16_t weight, uint16_t remainder);
void ps_master_split(float master, uint16_t *weight, uint16_t *remainder);

#ifdef __cplusplus
}
#endif
#endif
