/* The hardware profile: what this machine, or another, was measured to do.
 *
 * File, in bytes/s, FLOP/s, parameters/s and seconds (+: must be there; 0: not known):
 *
 * - version+ 1, machine, device "cpu" or "cuda", threads
 * - memory {host, device}: bytes
 * - gemm+ [{m+, n+, k+, dtype+, flops+}]: 1 to 64 shapes, dtype "bf16", "f16" or "f32"
 * - disk+ [{path, read+, write+, mixed: {read, write}, sustained: {read, write}, latency_s, depth,
 *   chunk_bytes}]: 1 to 8
 * - attention {flops}
 * - copy+ {host+, h2d, d2h, memory+}: with cuda h2d and d2h must be there
 * - cpu_optim+ {params+}
 * - interference {compute_by_disk, ...}: factors, 1 to 1000
 * - overhead {task_s}: step_overhead_s
 *
 * Other members are refused. `penstock bench` writes it, `plan` and `auto` read it. */
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
    double read, write;                     /* bytes/s, the best size and depth, alone */
    double mixed_read, mixed_write;         /* both at once */
    double sustained_read, sustained_write; /* past the fast cache; 0: not measured */
    double latency_s;                       /* one small read */
    uint32_t depth, chunk_bytes;            /* best */
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
    /* interference: factor (>= 1) by which the first slows down while the second runs at full speed
     */
    double compute_by_disk, compute_by_optim, compute_by_copy;
    double disk_by_compute, optim_by_compute, copy_by_compute;
    double step_overhead_s; /* per compute task: launch, thread hand-over, small operations */
};

/* Read and check a profile. PS_EFORMAT names the field; -errno of opening or reading, -ENOMEM. *out
 * is then untouched. */
int ps_profile_load(struct ps_profile *out, const char *path, struct ps_error *err) PS_WARN_UNUSED;
/* The same from text; `file` is for messages. */
int ps_profile_parse(struct ps_profile *out, const char *text, size_t len, const char *file,
                     struct ps_error *err) PS_WARN_UNUSED;
/* As the text of a file: *text, NUL-terminated, `len` bytes, is to be freed with free(). -ENOMEM.
 */
int ps_profile_print(const struct ps_profile *p, char **text, size_t *len,
                     struct ps_error *err) PS_WARN_UNUSED;
/* Write it atomically; numbers read back as the same bits. PS_ENUMERIC names a figure that load
 * would refuse; -errno of writing, -ENOMEM. The old file is then untouched. */
int ps_profile_save(const struct ps_profile *p, const char *path,
                    struct ps_error *err) PS_WARN_UNUSED;

/* Careful built-in figures for a machine that nobody has measured (the same as
 * examples/hardware/conservative.json). */
void ps_profile_conservative(struct ps_profile *out);

/* FLOP/s for a product (m, k) x (k, n): seconds per FLOP of the three nearest measured shapes of
 * the dtype, weighted by 1 / distance^2, distance in (log m, log n, log k); a measured shape gives
 * its own figure, and none gives more than the best. A dtype that was not measured: bf16 and f16
 * stand for each other, then f32 for either; f32 is half the rate of those. > 0. */
double ps_profile_gemm_flops(const struct ps_profile *p, enum ps_dtype dtype, int64_t m, int64_t n,
                             int64_t k);

/* What the cost model is made for. */
struct ps_cost_query {
    enum ps_dtype dtype; /* of compute */
    int64_t tokens;      /* of one micro-batch */
    int64_t hidden_size, intermediate_size;
    bool discrete;                  /* the device has memory of its own */
    bool sustained;                 /* use the sustained disk rates where known (and lower) */
    double throttle[PS_LANE_COUNT]; /* as in the cost model */
    double decode_rate;  /* near bytes/s at which weights are decoded on the h2d lane; 0: they are
                            copied or converted */
    double decode_share; /* of the cores, while they are decoded */
    int64_t vocab_size;  /* 0: the head runs as the layers */
    double attention_share; /* of a layer's forward FLOPs; for callers that do not give them: */
    /* FLOPs of one layer forward, for the planned tokens: what a task's flops count is linear_flops
     * + attention_flops; 0: attention_share, and the rest below is not used */
    double linear_flops, attention_flops;
    double down_flops;    /* the part of linear_flops that recomputation leaves out */
    double recompute_flops[PS_RECOMPUTE_COUNT]; /* of linears, by level; 0: not known */
    double adapter_flops; /* not counted by the tasks */
    bool full;            /* gradients of the weights too: backward counts linear_flops twice */
};

/* Fill tokens, sizes and FLOPs for a model: micro-batches of `tokens` tokens in rows of at most
 * `row_tokens`, adapters with `adapter_params` parameters a layer (0: none), gradients of the
 * weights
 * (`full`) or not. The other members stay. */
struct ps_model_config;
void ps_cost_query_model(struct ps_cost_query *q, const struct ps_model_config *cfg, int64_t tokens,
                         int64_t row_tokens, double adapter_params, bool full);

/* The cost model of a run on this machine.
 *
 * Rates. A layer's FLOPs run at the rate of its linears, products (tokens, hidden, hidden),
 * (tokens, intermediate, hidden) and (tokens, hidden, intermediate), each weighted with its time;
 * backward with the last two swapped; attention at its own rate, backward 2.5 times its forward;
 * adapters, narrow products, at a third of the linears' rate, backward twice. A rate is that of the
 * FLOPs that tasks count, so it contains what they count too much (the down projection, which
 * recomputation leaves out) or not (adapters). The head is a product (tokens, vocab, hidden). The
 * `flops` of updates and norms are parameters, and so are the bytes of updates on cpu_optim; on a
 * card, whose own memory's rate a profile does not say, updates and norms cost nothing. On a CPU
 * the element-wise operations of a block, which have no FLOPs, are added as time at memory
 * bandwidth. Each compute task has step_overhead_s on top, each disk task the latency of a small
 * read, a commit a few of them. Disk lanes have the rates of disk 0 (of the careful figures when
 * there is none). Copies run at h2d and d2h; where those are not known, or the device has no memory
 * of its own, at copy_host; with a decode_rate one after the other on the h2d lane.
 *
 * Shares. Two works that slow each other down by a and b (alone / together) do 1/a + 1/b of a
 * second's work in a second. A shared resource slows both by one factor f, the sum of their shares,
 * so the f that does as much work is f = 2 / (1/a + 1/b), at most 2 (one after the other). Hence
 *
 * - compute takes all of CORES (cuda: DEVICE), and a lane that interferes with it f - 1 of that;
 * - reads take all of DISK, two kinds of reads then half the rate each, and writes f - 1, from the
 * rates of reading and writing alone and mixed: 1 where they are one resource or nobody measured, 0
 * on a drive that does both at full speed;
 * - each direction of a cuda link takes 2/3 of LINK;
 * - HOST_MEMORY is taken by what a lane moves in it (copies inside host memory twice). */
void ps_profile_cost(const struct ps_profile *p, const struct ps_cost_query *q,
                     struct ps_cost_model *out);

#ifdef __cplusplus
}
#endif
#endif
