/* exp in fp32 for the portable kernels: plain C without branches, so that loops vectorise, and the
 * same bits on every machine (libm's expf picks a variant by processor).
 *
 * x = k ln 2 + r with |r| <= ln 2 / 2; exp(x) = 2^k P(r), P of degree 6. Error at most 1.5 ulp over
 * the normal range (test_cross_entropy measures it); overflow gives Inf, underflow rounds through
 * the subnormals to 0, NaN stays NaN. The AVX-512 twin is vexp_avx512.h. Private to
 * runtime/kernels. */
#ifndef PS_KERNELS_EXP_INTERNAL_H
#define PS_KERNELS_EXP_INTERNAL_H

#include <stdint.h>
#include <string.h>

/* ln 2 in two parts: the first has 9 trailing zero bits, so k * hi is exact for |k| < 2^9. */
#define PS__EXP_LN2_HI 0.693145751953125f
#define PS__EXP_LN2_LO 1.42860677e-6f
#define PS__EXP_LOG2E 1.44269504f
/* Beyond these the result is 0 or Inf whatever the argument. */
#define PS__EXP_X_MIN (-104.0f)
#define PS__EXP_X_MAX 89.0f
/* exp(r) = 1 + r + r^2 (C2 + C3 r + ... + C6 r^4): minimax fit, relative error 3.7e-9. */
#define PS__EXP_C6 1.38145406e-3f
#define PS__EXP_C5 8.36874545e-3f
#define PS__EXP_C4 4.16683890e-2f
#define PS__EXP_C3 1.66665211e-1f
#define PS__EXP_C2 4.99999940e-1f

static inline float ps__exp_pow2(int32_t k)
{
    uint32_t bits = (uint32_t)(k + 127) << 23;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline float ps__exp(float x)
{
    x = x < PS__EXP_X_MIN ? PS__EXP_X_MIN : x;
    x = x > PS__EXP_X_MAX ? PS__EXP_X_MAX : x;
    /* adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits */
    float shifted = x * PS__EXP_LOG2E + 12582912.0f;
    float k = shifted - 12582912.0f;
    float r = (x - k * PS__EXP_LN2_HI) - k * PS__EXP_LN2_LO;
    float p = PS__EXP_C6;
    p = p * r + PS__EXP_C5;
    p = p * r + PS__EXP_C4;
    p = p * r + PS__EXP_C3;
    p = p * r + PS__EXP_C2;
    p = p * (r * r) + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    int32_t ki = (int32_t)(bits & 0x7fffffu) - 0x400000;
    ki = ki < -160 ? -160 : ki; /* garbage of a NaN: any finite power will do */
    ki = ki > 160 ? 160 : ki;
    /* two factors, so that subnormal results and k = 128 work */
    int32_t half = ki / 2;
    return p * ps__exp_pow2(half) * ps__exp_pow2(ki - half);
}

#endif
