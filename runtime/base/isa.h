/* Instruction-set levels and their detection. A level is part of the numerical identity of a run:
 * results are bit-identical within one level, and agree within tolerance across levels. */
#ifndef PS_BASE_ISA_H
#define PS_BASE_ISA_H

#ifdef __cplusplus
extern "C" {
#endif

enum ps_isa {
    PS_ISA_PORTABLE = 0,
    PS_ISA_AVX2 = 1,       /* AVX2 + FMA + F16C */
    PS_ISA_AVX512 = 2,     /* AVX-512 F, BW, DQ, VL; bf16 products as fp32 FMA */
    PS_ISA_AVX512_BF16 = 3 /* AVX512 + vdpbf16ps */
};

/* Best level of this CPU and operating system. */
enum ps_isa ps_isa_detect(void);

/* "portable", "avx2", "avx512", "avx512_bf16". Static storage. */
const char *ps_isa_name(enum ps_isa isa);

#ifdef __cplusplus
}
#endif
#endif
