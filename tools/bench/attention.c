/* Attention throughput beside the register peak.
 *
 *   attention [--threads N] [--dtype f32|bf16] [--isa NAME] [--heads NAME] [--seq T] [--docs N]
 *             [--reps N]
 *
 * For each head configuration and length: GFLOP/s of the forward and of the backward pass, counting
 * the 4 (backward: 10) floating-point operations of every visible pair of tokens, head and channel,
 * and the share of the register peak: a loop of independent products on the same threads, run
 * directly before each repetition. The second share compares processor time instead of elapsed
 * time: on a machine shared with other work it is the one that means something (a thread that
 * sleeps for want of work does not count against it). Medians. --docs cuts the stream into equal
 * documents. */
#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/kernels/attention.h"

enum { REPS_MAX = 99, PEAK_STEPS = 1000000, CHAINS = 12 };

struct heads {
    const char *name;
    int32_t n_head, n_kv_head, head_dim;
};

static const struct heads all_heads[] = {
    {"tinyllama", 32, 4, 64},
    {"smollm2", 9, 3, 64},
    {"llama3-8b", 32, 8, 128},
};

struct options {
    int threads, reps;
    int32_t seq_len, docs;
    enum ps_isa isa;
    const char *dtype, *heads;
};

/* Seconds elapsed, and seconds of processor time of all threads. */
struct clocks {
    double wall, cpu;
};

static double seconds_of(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct clocks start(void)
{
    return (struct clocks){seconds_of(CLOCK_MONOTONIC), seconds_of(CLOCK_PROCESS_CPUTIME_ID)};
}

static struct clocks since(struct clocks from)
{
    struct clocks to = start();
    return (struct clocks){to.wall - from.wall, to.cpu - from.cpu};
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, ascending);
    return x[n / 2];
}

#define CHAIN_EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define CHAIN_512(i) __m512 c##i = _mm512_set1_ps(0.5f + i);
#define CHAIN_256(i) __m256 c##i = _mm256_set1_ps(0.5f + i);
#define CHAIN_FMA(i) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(c##i) : "v"(x));
#define CHAIN_DOT(i) __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(c##i) : "v"(x));

__attribute__((target("avx512f"))) static void fma_512(void *arg, size_t task, int thread)
{
    (void)arg, (void)task, (void)thread;
    __m512 x = _mm512_set1_ps(1e-4f);
    CHAIN_EACH(CHAIN_512)
    for (int i = 0; i < PEAK_STEPS; i++) {
        CHAIN_EACH(CHAIN_FMA)
    }
}

__attribute__((target("avx512f,avx512bf16"))) static void dot_512(void *arg, size_t task,
                                                                  int thread)
{
    (void)arg, (void)task, (void)thread;
    __m512 x = _mm512_castsi512_ps(_mm512_set1_epi32(0x3c003c00));
    CHAIN_EACH(CHAIN_512)
    for (int i = 0; i < PEAK_STEPS; i++) {
        CHAIN_EACH(CHAIN_DOT)
    }
}

__attribute__((target("avx2,fma"))) static void fma_256(void *arg, size_t task, int thread)
{
    (void)arg, (void)task, (void)thread;
    __m256 x = _mm256_set1_ps(1e-4f);
    CHAIN_EACH(CHAIN_256)
    for (int i = 0; i < PEAK_STEPS; i++) {
        CHAIN_EACH(CHAIN_FMA)
    }
}

/* Operations of the peak loop in 10^9, and how long it took. */
static double peak_gflop(struct ps_pool *pool, enum ps_isa isa, enum ps_dtype dtype,
                         struct clocks *took)
{
    int dot = isa == PS_ISA_AVX512_BF16 && dtype == PS_DTYPE_BF16;
    double flop = dot ? 64 : isa >= PS_ISA_AVX512 ? 32 : 16;
    int threads = ps_pool_thread_count(pool);
    struct clocks from = start();
    ps_pool_run(pool,
                dot                    ? dot_512
                : isa >= PS_ISA_AVX512 ? fma_512
                                       : fma_256,
                NULL, (size_t)threads);
    *took = since(from);
    return flop * CHAINS * PEAK_STEPS * threads * 1e-9;
}

static void *tensor(size_t n, enum ps_dtype dtype, uint32_t seed)
{
    size_t bytes = (n * ps_dtype_size(dtype) + 63) / 64 * 64;
    void *p = aligned_alloc(64, bytes);
    if (!p) {
        fprintf(stderr, "attention: out of memory\n");
        exit(1);
    }
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        float x = ((float)(seed >> 8) * 0x1p-24f - 0.5f) * 3;
        if (dtype == PS_DTYPE_BF16)
            ((uint16_t *)p)[i] = ps_f32_to_bf16(x);
        else
            ((float *)p)[i] = x;
    }
    return p;
}

struct bench {
    struct ps_attention_args args;
    void *tensor[8];
    int32_t *doc_start;
    void *workspace;
    size_t workspace_bytes;
    double pairs; /* visible pairs of tokens */
};

static void make(struct bench *b, const struct heads *h, int32_t seq_len, int32_t docs, int threads,
                 enum ps_dtype dtype)
{
    size_t q_cols = (size_t)(h->n_head * h->head_dim),
           kv_cols = (size_t)(h->n_kv_head * h->head_dim);
    size_t n = (size_t)seq_len;
    memset(b, 0, sizeof *b);
    for (int i = 0; i < 8; i++) {
        int kv = i == 1 || i == 2 || i == 6 || i == 7;
        b->tensor[i] = tensor(n * (kv ? kv_cols : q_cols), dtype, (uint32_t)i + 1);
    }
    b->doc_start = calloc((size_t)docs + 1, sizeof *b->doc_start);
    for (int32_t d = 0; d <= docs; d++) {
        b->doc_start[d] = (int32_t)((int64_t)seq_len * d / docs);
        double len = d ? b->doc_start[d] - b->doc_start[d - 1] : 0;
        b->pairs += len * (len + 1) / 2;
    }
    struct ps_attention_args *a = &b->args;
    a->doc_start = b->doc_start, a->doc_count = docs;
    a->n_head = h->n_head, a->n_kv_head = h->n_kv_head, a->head_dim = h->head_dim;
    a->scale = 1 / sqrtf((float)h->head_dim);
    a->dtype = dtype;
    a->q = b->tensor[0], a->k = b->tensor[1], a->v = b->tensor[2];
    a->out = b->tensor[3], a->dout = b->tensor[4];
    a->dq = b->tensor[5], a->dk = b->tensor[6], a->dv = b->tensor[7];
    a->q_ld = a->out_ld = a->dout_ld = a->dq_ld = q_cols;
    a->k_ld = a->v_ld = a->dk_ld = a->dv_ld = kv_cols;
    a->lse = tensor(n * (size_t)h->n_head, PS_DTYPE_F32, 9);
    b->workspace_bytes =
        ps_attention_workspace_bytes(seq_len, h->n_head, h->n_kv_head, h->head_dim, threads);
    b->workspace = tensor(b->workspace_bytes / 4 + 16, PS_DTYPE_F32, 10);
}

static void drop(struct bench *b)
{
    for (int i = 0; i < 8; i++)
        free(b->tensor[i]);
    free(b->args.lse);
    free(b->doc_start);
    free(b->workspace);
}

struct result {
    double wall[REPS_MAX], share[REPS_MAX], cpu_share[REPS_MAX];
};

static void report(const char *name, struct result *r, double gflop, int reps)
{
    double wall = median(r->wall, reps);
    printf("  %s %9.3f ms %7.1f GFLOP/s %5.1f%% (cpu %5.1f%%)", name, wall * 1e3, gflop / wall,
           100 * median(r->share, reps), 100 * median(r->cpu_share, reps));
}

static void measure(struct ps_pool *pool, const struct options *o, const struct heads *h,
                    int32_t seq_len, enum ps_dtype dtype)
{
    struct bench b;
    struct result result[2];
    double peaks[2 * REPS_MAX];
    make(&b, h, seq_len, o->docs, ps_pool_thread_count(pool), dtype);
    double unit = 1e-9 * b.pairs * h->n_head * h->head_dim, gflop[2] = {4 * unit, 10 * unit};
    for (int r = -1; r < o->reps; r++) {
        for (int back = 0; back < 2; back++) {
            struct clocks peak, took;
            double peak_work = peak_gflop(pool, o->isa, dtype, &peak);
            struct clocks from = start();
            if (back)
                ps_attention_backward(pool, o->isa, &b.args, b.workspace);
            else
                ps_attention_forward(pool, o->isa, &b.args, b.workspace);
            took = since(from);
            if (r < 0)
                continue; /* warm-up */
            result[back].wall[r] = took.wall;
            result[back].share[r] = gflop[back] / took.wall * peak.wall / peak_work;
            result[back].cpu_share[r] = gflop[back] / took.cpu * peak.cpu / peak_work;
            peaks[2 * r + back] = peak_work / peak.wall;
        }
    }
    printf("%-10s %-4s T %5d docs %3d", h->name, ps_dtype_name(dtype), seq_len, o->docs);
    report("forward", &result[0], gflop[0], o->reps);
    report("backward", &result[1], gflop[1], o->reps);
    printf("  peak %6.1f  scratch %.1f MiB\n", median(peaks, 2 * o->reps),
           (double)b.workspace_bytes / 1048576);
    fflush(stdout);
    drop(&b);
}

static int parse(struct options *o, int argc, char **argv)
{
    *o = (struct options){.threads = 2, .reps = 5, .docs = 1, .isa = ps_isa_detect()};
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!value)
            return -1;
        if (!strcmp(argv[i], "--threads"))
            o->threads = atoi(value);
        else if (!strcmp(argv[i], "--reps"))
            o->reps = atoi(value);
        else if (!strcmp(argv[i], "--seq"))
            o->seq_len = atoi(value);
        else if (!strcmp(argv[i], "--docs"))
            o->docs = atoi(value);
        else if (!strcmp(argv[i], "--dtype"))
            o->dtype = value;
        else if (!strcmp(argv[i], "--heads"))
            o->heads = value;
        else if (strcmp(argv[i], "--isa"))
            return -1;
        for (int isa = 0; !strcmp(argv[i], "--isa") && isa <= (int)ps_isa_detect(); isa++) {
            if (!strcmp(value, ps_isa_name((enum ps_isa)isa)))
                o->isa = (enum ps_isa)isa;
        }
    }
    return o->threads < 1 || o->reps < 1 || o->reps > REPS_MAX || o->docs < 1 ? -1 : 0;
}

int main(int argc, char **argv)
{
    static const int32_t lengths[] = {512, 2048, 8192};
    struct options o;
    struct ps_pool *pool;
    if (parse(&o, argc, argv) < 0) {
        fprintf(stderr, "usage: attention [--threads N] [--dtype f32|bf16] [--isa NAME]"
                        " [--heads NAME] [--seq T] [--docs N] [--reps N]\n");
        return 2;
    }
    if (ps_pool_create(&pool, o.threads) < 0)
        return 1;
    printf("isa %s, %d threads, %d repetitions\n", ps_isa_name(o.isa), o.threads, o.reps);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        if (o.dtype && strcmp(o.dtype, bf16 ? "bf16" : "f32"))
            continue;
        for (size_t i = 0; i < sizeof all_heads / sizeof all_heads[0]; i++) {
            if (o.heads && strcmp(o.heads, all_heads[i].name))
                continue;
            for (size_t l = 0; l < 3; l++) {
                if (!o.seq_len || l == 0)
                    measure(pool, &o, &all_heads[i], o.seq_len ? o.seq_len : lengths[l],
                            bf16 ? PS_DTYPE_BF16 : PS_DTYPE_F32);
            }
        }
    }
    ps_pool_destroy(pool);
    return 0;
}
