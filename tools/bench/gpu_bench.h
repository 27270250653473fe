/* What the GPU benchmarks share: the plug-in's device and kernels, memory, timing, lines of
 * results.
 *
 * A result is one JSON object a line, on standard output and, with --out FILE, at the end of FILE.
 * The plug-in is the one that PENSTOCK_CUDA_PLUGIN names, else the one that the loader finds. Not
 * part of the library: messages go to standard error and failures end the program. */
#ifndef PS_BENCH_GPU_BENCH_H
#define PS_BENCH_GPU_BENCH_H

#include <stdbool.h>
#include <stdio.h>

#include "runtime/device/cuda_plugin.h"

#define GPU_ALIGN ((size_t)256)

struct gpu_bench {
    const struct ps_cuda_plugin *plugin;
    struct ps_cuda_info info;
    struct ps_device *device;
    struct ps_compute cx; /* bf16 */
    int fault;
    size_t arena_bytes, used, seed;
    bool tiny;       /* a dry run: small sizes, two repetitions */
    double deadline; /* of --seconds, on gpu_now()'s clock */
    FILE *out;
    void *driver;                                                    /* libcuda.so.1, or NULL */
    int (*copy)(uint64_t dst, uint64_t src, size_t n, void *stream); /* of the driver */
    int32_t *row_zero;                                               /* of gpu_copy */
};

typedef void (*gpu_work_fn)(struct gpu_bench *g, void *arg);

/* Takes --out FILE, --seconds S and --tiny; `more`, which may be NULL, gets every other flag with
 * its value and says whether it knows it. Ends the program with exit code 2 on a wrong line. */
void gpu_parse(struct gpu_bench *g, int argc, char **argv,
               bool (*more)(void *arg, const char *flag, const char *value), void *arg);

/* Probe, arena, compute stream, workspace for products of mn_max elements. Ends the program with
 * exit code 77 and one line where there is no device. */
void gpu_open(struct gpu_bench *g, size_t arena_bytes, size_t mn_max);
void gpu_close(struct gpu_bench *g);

/* Ends the program with a message. */
_Noreturn void gpu_fail(const char *what, const char *why);

/* Memory of the arena; never given back. */
void *gpu_take(struct gpu_bench *g, size_t bytes);
/* Normal random numbers with this deviation, of bf16 or fp32, from a pattern of 2^20. */
void *gpu_random(struct gpu_bench *g, enum ps_dtype dtype, size_t count, float deviation);
/* A copy of host memory. */
void *gpu_upload(struct gpu_bench *g, const void *host, size_t bytes);

double gpu_now(void);
/* Wait for the compute stream; a fault ends the program. */
void gpu_finish(struct gpu_bench *g);
/* Median seconds of one call: batches of calls that are queued back to back and together take about
 * 20 ms, at least 3 batches, about `budget` seconds (at most half a second) in all. */
double gpu_time(struct gpu_bench *g, gpu_work_fn work, void *arg, double budget);
/* Copy inside device memory: the driver's copy, or without a driver the kernel that gathers rows.
 */
void gpu_copy(struct gpu_bench *g, void *dst, const void *src, size_t bytes);

void gpu_line(struct gpu_bench *g, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
