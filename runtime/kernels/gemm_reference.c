/* The readable GEMM: see gemm.h. Operands are rounded as the kernels round them, sums are fp64. */
#include "runtime/kernels/gemm.h"

static double load(const void *data, enum ps_dtype dtype, size_t idx)
{
    const uint16_t *h = data;
    if (dtype == PS_DTYPE_F32)
        return (double)((const float *)data)[idx];
    return (double)(dtype == PS_DTYPE_BF16 ? ps_bf16_to_f32(h[idx]) : ps_f16_to_f32(h[idx]));
}

static double operand(const struct ps_gemm_mat *mat, enum ps_gemm_math math, size_t r, size_t c)
{
    double v = load(mat->data, mat->dtype, mat->trans ? c * mat->ld + r : r * mat->ld + c);
    return math == PS_GEMM_BF16 ? (double)ps_bf16_to_f32(ps_f32_to_bf16((float)v)) : v;
}

static double dot(const struct ps_gemm_args *args, size_t i, size_t j)
{
    double sum = 0;
    for (size_t k = 0; k < args->k; k++)
        sum += operand(&args->a, args->math, i, k) * operand(&args->b, args->math, k, j);
    for (size_t k = 0; k < args->k2; k++)
        sum += operand(&args->a2, args->math, i, k) * operand(&args->b2, args->math, k, j);
    return sum;
}

void ps_gemm_reference(const struct ps_gemm_args *args)
{
    double alpha = args->alpha == 0.0f ? 1.0 : (double)args->alpha;
    for (size_t i = 0; i < args->m; i++) {
        for (size_t j = 0; j < args->n; j++) {
            double v = alpha * dot(args, i, j);
            size_t at = i * args->c_ld + j;
            if (args->bias)
                v += load(args->bias, args->bias_dtype, j);
            if (args->residual)
                v += load(args->residual, args->residual_dtype, i * args->residual_ld + j);
            if (args->accumulate)
                v += load(args->c, args->c_dtype, at);
            if (args->c_dtype == PS_DTYPE_F32)
                ((float *)args->c)[at] = (float)v;
            else
                ((uint16_t *)args->c)[at] = ps_f32_to_bf16((float)v);
        }
    }
}
