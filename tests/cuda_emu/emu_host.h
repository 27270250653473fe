/* What tests may ask of the emulation beyond the CUDA runtime. From C and C++.
 *
 * Environment, read at the first call: PS_EMU_SEED (1), PS_EMU_HOLD_MS (20: operations are held up
 * to this long when nothing demands them; 0: never), PS_EMU_GPU_MIB (8192: device memory),
 * PS_EMU_SMEM_OPTIN (101376: bytes of shared memory a block may ask for). */
#ifndef PS_TESTS_CUDA_EMU_HOST_H
#define PS_TESTS_CUDA_EMU_HOST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Start the random numbers anew: order of threads and blocks, holding times. */
void ps_emu_seed(uint32_t seed);
void ps_emu_hold_ms(double ms);

/* Since the start of the process. */
struct ps_emu_counts {
    uint64_t launches, gemms, copies, memsets;
    uint64_t pageable_copies; /* copies from or to memory that is not pinned: they block */
    uint64_t allocations;     /* cudaMalloc, cudaMallocHost, cudaHostAlloc, cudaHostRegister */
    uint64_t device_syncs; /* cudaDeviceSynchronize, cudaFree, cudaFreeHost, cudaHostUnregister */
    uint64_t device_bytes, device_bytes_max; /* allocated now, and at most */
    uint64_t pinned_bytes;
};
void ps_emu_get_counts(struct ps_emu_counts *out);

/* The n-th fallible CUDA call from now (1: the next) returns cudaErrorUnknown and does nothing; 0:
 * none. ps_emu_fail_pending() says whether that call is still to come. */
void ps_emu_fail_call(uint64_t n);
int ps_emu_fail_pending(void);

/* A host address for [device_address, + bytes), which a test may read and write while no operation
 * is under way: canaries, comparisons. Ends the process when it is not device memory. */
void *ps_emu_view(const void *device_address, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
