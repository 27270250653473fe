/* What the parts of the benchmark share: time, memory, repeated measurement. */
#ifndef PS_SESSION_BENCH_INTERNAL_H
#define PS_SESSION_BENCH_INTERNAL_H

#include <stdatomic.h>

#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"
#include "session/bench.h"

struct ps_storage;

/* The nameless test file and the two back ends on it (reader and writer each have their own). */
struct ps__bench_file {
    char path[4096]; /* directory */
    int fd;
    uint64_t bytes; /* filled, whole multiples of 8 MiB */
    uint64_t written_bytes;
    struct ps__bench_stream {
        struct ps_storage *st;
        uint32_t file;
        unsigned char *memory;
        size_t memory_bytes;
        uint64_t position; /* next offset, in steps of the chunk */
    } reader, writer;
    bool direct;
    char backend[32], why[128], fs[32];
};
struct ps__bench {
    const struct ps_bench_options *opt;
    struct ps_bench_report *out;
    struct ps_pool *pool;  /* of `threads` */
    struct ps_pool *other; /* as many again, for what runs at the same time */
    enum ps_isa isa;
    int threads;
    uint64_t memory_bytes; /* that one measurement may use */
    bool quick;
    struct ps__bench_file file; /* of the first path, kept for the interference part */
    bool file_open;
};

double ps__bench_now(void);

/* Page-aligned memory, huge pages asked for, every page touched and filled with small finite
 * numbers (as f32 and as bf16 alike). NULL when out of memory. */
void *ps__bench_alloc(size_t bytes);
void ps__bench_free(void *p, size_t bytes);

/* Call fn(arg), each call worth `amount`, for about `seconds` (once to warm up when a call is
 * short) and return the median of amount per second. */
typedef void (*ps__bench_fn)(void *arg);
double ps__bench_rate(ps__bench_fn fn, void *arg, double amount, double seconds);

/* One product of a shape, to be repeated. */
struct ps__bench_product {
    struct ps_pool *pool;
    enum ps_isa isa;
    int64_t m, n, k;
    enum ps_dtype dtype;
    void *a, *b, *c, *workspace;
    size_t a_bytes, b_bytes, c_bytes, workspace_bytes;
};
int ps__bench_product_init(struct ps__bench_product *p, const struct ps__bench *b, int64_t m,
                           int64_t n, int64_t k, enum ps_dtype dtype,
                           struct ps_error *err) PS_WARN_UNUSED;
void ps__bench_product_fini(struct ps__bench_product *p);
void ps__bench_product_run(void *product);
double ps__bench_product_flops(const struct ps__bench_product *p);

/* One fused update of n parameters, to be repeated. */
struct ps__bench_update {
    struct ps_pool *pool;
    enum ps_isa isa;
    size_t n;
    void *memory;
    size_t bytes;
};
int ps__bench_update_init(struct ps__bench_update *u, const struct ps__bench *b,
                          struct ps_pool *pool, struct ps_error *err) PS_WARN_UNUSED;
void ps__bench_update_fini(struct ps__bench_update *u);
void ps__bench_update_run(void *update);

/* One copy of n bytes by all threads, to be repeated. */
struct ps__bench_copy {
    struct ps_pool *pool;
    unsigned char *to, *from;
    size_t n;
};
void ps__bench_copy_run(void *copy);

int ps__bench_file_open(struct ps__bench_file *f, const struct ps__bench *b, const char *dir,
                        double *fill_rate, struct ps_error *err) PS_WARN_UNUSED;
void ps__bench_file_close(struct ps__bench_file *f);

/* Stream for `seconds` (or until *stop, where stop is not NULL) with `depth` requests of
 * `chunk` bytes in flight, in order through the file, round and round. *rate receives bytes/s. If
 * `moved` is not NULL it counts up while the stream runs (atomically). */
struct ps__bench_flow {
    bool write;
    uint32_t chunk_bytes, depth;
    double seconds;
    atomic_bool *stop;
    _Atomic uint64_t *moved;
};
int ps__bench_stream(struct ps__bench_file *f, const struct ps__bench_flow *flow, double *rate,
                     struct ps_error *err) PS_WARN_UNUSED;

int ps__bench_gemm(struct ps__bench *b, struct ps_error *err) PS_WARN_UNUSED;
int ps__bench_copying(struct ps__bench *b, struct ps_error *err) PS_WARN_UNUSED;
int ps__bench_optim(struct ps__bench *b, struct ps_error *err) PS_WARN_UNUSED;
int ps__bench_disks(struct ps__bench *b, struct ps_error *err) PS_WARN_UNUSED;
int ps__bench_interference(struct ps__bench *b, struct ps_error *err) PS_WARN_UNUSED;

#endif
