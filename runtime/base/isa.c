/* Instruction-set levels: see isa.h. */
#include "runtime/base/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdbool.h>

/* clang 14 does not know "f16c" in __builtin_cpu_supports. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

enum ps_isa ps_isa_detect(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512)
        return __builtin_cpu_supports("avx512bf16") ? PS_ISA_AVX512_BF16 : PS_ISA_AVX512;
    if (avx2)
        return PS_ISA_AVX2;
#endif
    return PS_ISA_PORTABLE;
}

const char *ps_isa_name(enum ps_isa isa)
{
    static const char *const name[] = {"portable", "avx2", "avx512", "avx512_bf16"};
    return name[isa];
}
