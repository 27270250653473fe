/* The hardware profile: what this machine, or another, was measured to do.
 *
 * File: {version, machine, gemm:[{m,n,k,dtype,flops}], copy:{..}, disk:[{path,read,write,mixed,sustained}],
 * cpu_optim:{..}, interference:{..}} in bytes/s, FLOP/s and parameters/s; see cli.md. `penstock bench`
 * writes it, `plan` and `auto` read it. */
#ifndef PS_OFFLOAD_PROFILE_H
#define PS_OFFLOAD_PROFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"
#include "runtime/train/cost.h"
#include "runtime/train/step.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_PROFILE_GEMM_MAX 64
#define PS_PROFILE_DISK_MAX 8

struct ps_profile_gemm {
    int64_t m, n, k;
    enum ps_dtype dtype;
    double flops; /* FLOP/s */
};

struct ps_profile_disk {
    char path[256];
    double read, write;            /* bytes/s, the best size and depth, alone */
    double mixed_read, mixed_write; /* both at once */
    double sustained_read, sustained_write; /* past the fast cache; 0: not measured */
    double latency_s;              /* one small read */
    uint32_t depth, chunk_bytes;   /* best */
};

struct ps_profile {
    int version; /* 1 */
    char machine[256];
    char device[32]; /* "cpu", "cuda" */
    int threads;
    uint64_t host_memory, device_memory; /* bytes; 0: not known */
    struct ps_profile_gemm gemm[PS_PROFILE_GEMM_MAX];
    int gemm_count;
    double attention_flops; /* FLOP/s, forward and backward together; 0: as the GEMMs */
    double copy_host, copy_h2d, copy_d2h; /* bytes/s; h2d and d2h are 0 on cpu */
    double memory;                        /* host memory bandwidth, read + written bytes/s */
    struct ps_profile_disk disk[PS_PROFILE_DISK_MAX];
    int disk_count;
    double cpu_optim_params; /* parameters/s of the fused AdamW */
    /* interference: factor (>= 1) by which the first slows down while the second runs at full speed */
    double compute_by_disk, compute_by_optim, compute_by_copy;
    double disk_by_compute, optim_by_compute, copy_by_compute;
    double step_overhead_s; /* per compute task: launch, thread hand-over, small operations */
};

/* Read and check a profile; PS_EFORMAT names the field. */
int ps_profile_load(struct ps_profile *out, const char *path, struct ps_error *err) PS_WARN_UNUSED;
int ps_profile_save(const struct ps_profile *p, const char *path, struct ps_error *err) PS_WARN_UNUSED;

/* Careful built-in figures for a machine that nobody has measured (the same as
 * examples/hardware/conservative.json). */
void ps_profile_conservative(struct ps_profile *out);

/* FLOP/s for a GEMM of a shape: the nearest measured shapes of the dtype, never above the best. */
double ps_profile_gemm_flops(const struct ps_profile *p, enum ps_dtype dtype, int64_t m, int64_t n,
                             int64_t k);

/* The cost model of a run on this machine: rates by task kind and lane, shares of the resources from the
 * measured interference. `sustained`: use the sustained disk rates where known. */
struct ps_cost_query {
    enum ps_dtype dtype;
    int64_t tokens, hidden_size, intermediate_size;
    bool discrete, sustained;
    double throttle[PS_LANE_COUNT];
};
void ps_profile_cost(const struct ps_profile *p, const struct ps_cost_query *q,
                     struct ps_cost_model *out);

#ifdef __cplusplus
}
#endif
#endif
