/* What tests may ask of the emulated cuBLASLt. From C and C++. */
#ifndef PS_TESTS_CUDA_EMU_CUBLASLT_H
#define PS_TESTS_CUDA_EMU_CUBLASLT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Since the start of the process. */
struct ps_emu_lt_counts {
    uint64_t heuristics, products, refused; /* refused: by an algorithm that does not run */
    uint64_t handles;                       /* open now */
};
void ps_emu_lt_get_counts(struct ps_emu_lt_counts *out);

/* The n-th product from now (1: the next) fails with a status that is no question of the algorithm.
 */
void ps_emu_lt_fail_product(uint64_t n);

#ifdef __cplusplus
}
#endif
#endif
