/* What this machine can do, measured: `penstock bench`. The result is the hardware profile that the
 * planner reads, and more detail for a person.
 *
 * Parts:
 *   gemm          FLOP/s of matrix products C = A B^T of Llama-like shapes in bf16 and f32,
 * attention forward and backward, the cost of handing a task to threads copy          bytes/s of
 * memory: copying, reading, adding arrays, bf16 to f32 disk          bytes/s of direct reads and
 * writes over sizes and depths, both at once, latency, and over a longer time (sustained) cpu-optim
 * parameters/s of the fused AdamW (bf16 weight, remainder, bf16 gradient, fp32 moments)
 *   interference  how much each slows down the others: products beside disk reads, beside updates,
 *                 beside copies
 *
 * The test file of the disk part has no name while it is used: nothing is left behind, however the
 * program ends. */
#ifndef PS_SESSION_BENCH_H
#define PS_SESSION_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "offload/profile.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_bench_part {
    PS_BENCH_GEMM = 1,
    PS_BENCH_COPY = 2,
    PS_BENCH_DISK = 4,
    PS_BENCH_CPU_OPTIM = 8,
    PS_BENCH_INTERFERENCE = 16,
    PS_BENCH_ALL = 31,
};

/* Part by name ("gemm", ..., "all" for every part); 0 for another name. */
unsigned ps_bench_part_find(const char *name);
/* NULL-terminated list of the names, for suggestions. Static storage. */
const char *const *ps_bench_part_names(void);

struct ps_bench_options {
    unsigned parts;           /* of enum ps_bench_part; 0: all */
    const char *const *paths; /* (path_count,) directories to measure; none: the current one */
    size_t path_count;        /* at most PS_PROFILE_DISK_MAX */
    int threads;              /* 0: physical cores */
    uint64_t disk_bytes;      /* of the test file; 0: 8 GiB or a quarter of the free space */
    double disk_seconds;      /* of sustained writing, then reading; < 0: 120 where the disk is the
                                 only part, 5 otherwise; 0: none */
    bool quick;         /* small shapes, little memory, short times: for a first look and tests */
    const char *output; /* profile to write; NULL: ps_host_profile_path */
    const struct ps_log *log; /* a line (PS_LOG_INFO) before each measurement; may be NULL */
};

#define PS_BENCH_CELL_MAX 64
struct ps_bench_cell {
    uint32_t chunk_bytes, depth;
    bool write;
    double rate; /* bytes/s */
};

struct ps_bench_disk {
    char backend[32]; /* of the storage engine */
    char why[128];    /* why that back end was chosen; "" for the first choice */
    bool direct;      /* past the page cache */
    char fs[32];      /* file system */
    uint64_t file_bytes, written_bytes;
    struct ps_bench_cell cell[PS_BENCH_CELL_MAX];
    int cell_count;
    double fill_rate;               /* first writing of the file, bytes/s */
    double sustained_s;             /* seconds of each of the two; 0: not measured */
    double first_read, first_write; /* bytes/s in the first twentieth of the sustained time */
};

struct ps_bench_report {
    unsigned parts;            /* that were measured now */
    struct ps_profile profile; /* as written: older figures where a part was not measured */
    char output[4096];         /* where it was written */
    bool kept; /* an older profile of this machine gave the figures not measured now */
    char isa[32];
    double copy, read, add, convert; /* bytes/s of memory, read and written bytes both counted */
    struct ps_bench_disk disk[PS_PROFILE_DISK_MAX]; /* beside profile.disk[i] */
    double seconds;                                 /* that it took */
};

/* Measure and write the profile (atomically). Figures of parts that are not asked for are those of
 * the older profile at `output` if it is of this machine, else the careful built-in ones. Returns
 * 0; PS_EUSAGE (a path that is no directory); -ENOSPC, -EACCES and kin for the test file or the
 * profile, naming file and remedy; -ENOMEM; errors of the storage back end. The older profile is
 * untouched on failure. */
int ps_bench_run(struct ps_bench_report *out, const struct ps_bench_options *opt,
                 struct ps_error *err) PS_WARN_UNUSED;

/* The report as lines for a person, or as one JSON object: the profile's own members with "output",
 * "parts", "seconds" and "details" {memory, disk} added. *text is to be freed with free(). -ENOMEM,
 * or errors of reading the profile back. */
int ps_bench_print(const struct ps_bench_report *r, bool json, char **text,
                   struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
