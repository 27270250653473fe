/* Device functions of the emulation: integer atomics, fences, IEEE operations by name, fast
 * approximations (exact here), bit tricks. Float atomics are left out on purpose. Included by
 * emu.h. */
#ifndef PS_TESTS_CUDA_EMU_MATH_H
#define PS_TESTS_CUDA_EMU_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define EMU_FN static inline __attribute__((unused))

/* ---- atomics and fences ---- */
template <class T> EMU_FN T emu_atomic_add(T *p, T v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
EMU_FN int atomicAdd(int *p, int v)
{
    return emu_atomic_add(p, v);
}
EMU_FN unsigned atomicAdd(unsigned *p, unsigned v)
{
    return emu_atomic_add(p, v);
}
EMU_FN unsigned long long atomicAdd(unsigned long long *p, unsigned long long v)
{
    return emu_atomic_add(p, v);
}
EMU_FN unsigned atomicOr(unsigned *p, unsigned v)
{
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
EMU_FN int atomicMax(int *p, int v)
{
    int o = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (o < v &&
           !__atomic_compare_exchange_n(p, &o, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return o;
}
EMU_FN unsigned atomicCAS(unsigned *p, unsigned expected, unsigned v)
{
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
EMU_FN void __threadfence()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
EMU_FN void __threadfence_block()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* ---- loads and stores with a cache hint ---- */
template <class T> EMU_FN T __ldg(const T *p)
{
    return *p;
}
template <class T> EMU_FN T __ldcs(const T *p)
{
    return *p;
}
template <class T> EMU_FN T __ldcg(const T *p)
{
    return *p;
}
template <class T> EMU_FN void __stcs(T *p, T v)
{
    *p = v;
}
template <class T> EMU_FN void __stcg(T *p, T v)
{
    *p = v;
}

/* ---- one IEEE operation each ---- */
EMU_FN float __fadd_rn(float a, float b)
{
    return a + b;
}
EMU_FN float __fsub_rn(float a, float b)
{
    return a - b;
}
EMU_FN float __fmul_rn(float a, float b)
{
    return a * b;
}
EMU_FN float __fdiv_rn(float a, float b)
{
    return a / b;
}
EMU_FN float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
EMU_FN float __frcp_rn(float a)
{
    return 1.0f / a;
}
EMU_FN float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
EMU_FN double __dadd_rn(double a, double b)
{
    return a + b;
}
EMU_FN double __dsub_rn(double a, double b)
{
    return a - b;
}
EMU_FN double __dmul_rn(double a, double b)
{
    return a * b;
}
EMU_FN double __fma_rn(double a, double b, double c)
{
    return fma(a, b, c);
}

/* ---- approximate functions: as good as the host's ---- */
EMU_FN float emu_rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
EMU_FN double emu_rsqrt(double x)
{
    return 1.0 / sqrt(x);
}
#define rsqrtf emu_rsqrtf
#define rsqrt emu_rsqrt
#define __frsqrt_rn emu_rsqrtf
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __sinf sinf
#define __cosf cosf
#define __powf powf
EMU_FN float __fdividef(float a, float b)
{
    return a / b;
}
EMU_FN float __saturatef(float x)
{
    return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}

/* ---- bits ---- */
template <class T, class F> EMU_FN T emu_bits(F f)
{
    static_assert(sizeof(T) == sizeof(F), "same size");
    T t;
    memcpy(&t, &f, sizeof t);
    return t;
}
EMU_FN float __uint_as_float(unsigned u)
{
    return emu_bits<float>(u);
}
EMU_FN unsigned __float_as_uint(float f)
{
    return emu_bits<unsigned>(f);
}
EMU_FN float __int_as_float(int i)
{
    return emu_bits<float>(i);
}
EMU_FN int __float_as_int(float f)
{
    return emu_bits<int>(f);
}
EMU_FN int __popc(unsigned u)
{
    return __builtin_popcount(u);
}
EMU_FN int __clz(int i)
{
    return i ? __builtin_clz((unsigned)i) : 32;
}
EMU_FN int __ffs(int i)
{
    return __builtin_ffs(i);
}
EMU_FN unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)(((uint64_t)a * b) >> 32);
}
EMU_FN unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

/* ---- conversions ---- */
EMU_FN float __double2float_rn(double d)
{
    return (float)d;
}
EMU_FN float __int2float_rn(int i)
{
    return (float)i;
}
EMU_FN float __uint2float_rn(unsigned u)
{
    return (float)u;
}
EMU_FN int __float2int_rn(float f)
{
    return (int)rintf(f);
}
EMU_FN int __float2int_rz(float f)
{
    return (int)f;
}
EMU_FN unsigned __float2uint_rz(float f)
{
    return (unsigned)f;
}

/* ---- min and max of CUDA's overload set ---- */
#define EMU_MIN_MAX(T)                                                                             \
    EMU_FN T min(T a, T b)                                                                         \
    {                                                                                              \
        return a < b ? a : b;                                                                      \
    }                                                                                              \
    EMU_FN T max(T a, T b)                                                                         \
    {                                                                                              \
        return a > b ? a : b;                                                                      \
    }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
EMU_FN float min(float a, float b)
{
    return fminf(a, b);
}
EMU_FN float max(float a, float b)
{
    return fmaxf(a, b);
}
EMU_FN double min(double a, double b)
{
    return fmin(a, b);
}
EMU_FN double max(double a, double b)
{
    return fmax(a, b);
}
/* CUDA's mixed signedness: the unsigned type wins. */
EMU_FN unsigned min(int a, unsigned b)
{
    return min((unsigned)a, b);
}
EMU_FN unsigned min(unsigned a, int b)
{
    return min(a, (unsigned)b);
}
EMU_FN unsigned max(int a, unsigned b)
{
    return max((unsigned)a, b);
}
EMU_FN unsigned max(unsigned a, int b)
{
    return max(a, (unsigned)b);
}

#endif
