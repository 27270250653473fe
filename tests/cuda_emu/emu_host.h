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
    /* Reads of eight rows of 16 bytes (a quarter of an ldmatrix), and how often one would have to
     * be repeated because rows lie in the same four banks. */
    uint64_t ldmatrix_phases, bank_conflicts;
};
void ps_emu_get_counts(struct ps_emu_counts *out);

/* The n-th fallible CUDA call from now (1: the next) returns cudaErrorUnknown and does nothing; 0:
 * none. ps_emu_fail_pending() says whether that call is still to come. */
void ps_emu_fail_call(uint64_t n);
int ps_emu_fail_pending(void);

/* Sites: the source lines at which kernels meet, wait for copies and read or multiply fragments. A
 * test that passes with a site broken does not see what the site is for. */
enum ps_emu_site_kind {
    PS_EMU_BARRIER,   /* __syncthreads: left out */
    PS_EMU_SYNCWARP,  /* __syncwarp: left out */
    PS_EMU_COPY_WAIT, /* ps_gpu_cp_wait<N>: left out, or N + 1 */
    PS_EMU_LDMATRIX,  /* registers 1 and 2 exchanged */
    PS_EMU_MMA        /* the registers of B exchanged */
};
struct ps_emu_site {
    enum ps_emu_site_kind kind;
    int line;
    const char *file;
};
enum ps_emu_break { PS_EMU_WHOLE, PS_EMU_BROKEN, PS_EMU_ONE_GROUP_FEWER };

/* Copy up to `max` sites met since the last call, in the order of their first meeting; returns
 * their number. While no operation is under way. */
size_t ps_emu_take_sites(struct ps_emu_site *out, size_t max);
/* Kernels that start from now on run with this site as `how` says; one site at a time. */
void ps_emu_break_site(const struct ps_emu_site *site, enum ps_emu_break how);

/* A host address for [device_address, + bytes), which a test may read and write while no operation
 * is under way: canaries, comparisons. Ends the process when it is not device memory. */
void *ps_emu_view(const void *device_address, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
