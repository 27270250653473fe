/* GEMM throughput beside the register peak.
 *
 *   gemm [--threads N] [--math f32|bf16] [--isa NAME] [--group llama|small|skinny|decode|peak]
 * [--reps N]
 *
 * For each shape: best and median GFLOP/s of ps_gemm; its share of the register peak (a loop of
 * independent products on the same number of threads, measured before each repetition), by wall
 * time (best over best) and by processor time (median of the ratios, all threads' time counted,
 * waiting included); and the bytes of A, B and C over the best time. On a machine that others use,
 * only the share by processor time means something. */
#include <immintrin.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "runtime/kernels/gemm.h"

#define REPS_MAX 64

struct shape {
    const char *group, *name;
    size_t m, n, k, k2;
    int a_trans, b_trans;
};

static const struct shape shapes[] = {
    {"llama", "NT 2048 q_proj", 2048, 2048, 2048, 0, 0, 1},
    {"llama", "NN 2048 q_proj", 2048, 2048, 2048, 0, 0, 0},
    {"llama", "TN 2048 q_proj", 2048, 2048, 2048, 0, 1, 0},
    {"llama", "NT 2048 up_proj", 2048, 5632, 2048, 0, 0, 1},
    {"llama", "NN 2048 up_proj", 2048, 2048, 5632, 0, 0, 0},
    {"llama", "TN 2048 up_proj", 5632, 2048, 2048, 0, 1, 0},
    {"llama", "NT 2048 down_proj", 2048, 2048, 5632, 0, 0, 1},
    {"llama", "NT 2048 kv_proj", 2048, 256, 2048, 0, 0, 1},
    {"llama", "NT 256 head", 256, 32000, 2048, 0, 0, 1},
    {"llama", "NN 256 head", 256, 2048, 32000, 0, 0, 0},
    {"small", "NT 512 q_proj", 512, 576, 576, 0, 0, 1},
    {"small", "NN 512 q_proj", 512, 576, 576, 0, 0, 0},
    {"small", "TN 512 q_proj", 576, 576, 512, 0, 1, 0},
    {"small", "NT 512 kv_proj", 512, 192, 576, 0, 0, 1},
    {"small", "NT 512 up_proj", 512, 1536, 576, 0, 0, 1},
    {"small", "NN 512 up_proj", 512, 576, 1536, 0, 0, 0},
    {"small", "TN 512 up_proj", 1536, 576, 512, 0, 1, 0},
    {"small", "NT 2048 up_proj", 2048, 1536, 576, 0, 0, 1},
    {"skinny", "NT 2048 q_proj", 2048, 2048, 2048, 0, 0, 1},
    {"skinny", "NT 2048 q_proj + k2 16", 2048, 2048, 2048, 16, 0, 1},
    {"skinny", "NT 2048 q_proj + k2 64", 2048, 2048, 2048, 64, 0, 1},
    {"skinny", "X A^T: NT n 16", 2048, 16, 2048, 0, 0, 1},
    {"skinny", "dY B: NN n 16", 2048, 16, 2048, 0, 0, 0},
    {"skinny", "dB: TN n 16", 2048, 16, 2048, 0, 1, 0},
    {"skinny", "dA: TN m 16", 16, 2048, 2048, 0, 1, 0},
    {"skinny", "X A^T: NT n 64", 2048, 64, 2048, 0, 0, 1},
    {"skinny", "dA: TN m 64", 64, 2048, 2048, 0, 1, 0},
    {"decode", "NT m 1 up_proj", 1, 5632, 2048, 0, 0, 1},
    {"decode", "NT m 1 down_proj", 1, 2048, 5632, 0, 0, 1},
    {"decode", "NT m 8 up_proj", 8, 5632, 2048, 0, 0, 1},
    {"decode", "NT m 1 head", 1, 32000, 2048, 0, 0, 1},
};

struct options {
    int threads;
    const char *math, *group;
    int reps;
    enum ps_isa isa;
};

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* GFLOP/s by wall time, and by the process's processor time a thread. */
struct rate {
    double wall, cpu;
};

static struct rate rate_start(void)
{
    struct rate start = {seconds(CLOCK_MONOTONIC), seconds(CLOCK_PROCESS_CPUTIME_ID)};
    return start;
}

static struct rate rate_stop(struct rate start, double flop, int threads)
{
    double wall = seconds(CLOCK_MONOTONIC) - start.wall;
    double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - start.cpu;
    struct rate r = {1e-9 * flop / wall, 1e-9 * flop / cpu * threads};
    return r;
}

/* ---- register peak -------------------------------------------------------------------------- */

#define PEAK_STEPS 400000
#define PEAK_REPS 31
#define ACC_COUNT 12
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define DECLARE(i) __m512 c##i = _mm512_set1_ps(0.1f * i);
#define DECLARE_YMM(i) __m256 c##i = _mm256_set1_ps(0.1f * i);
#define FMA(i) __asm__ volatile("vfmadd231ps %1, %2, %0" : "+v"(c##i) : "v"(x), "v"(y));
#define DOT(i) __asm__ volatile("vdpbf16ps %1, %2, %0" : "+v"(c##i) : "v"(x), "v"(y));

__attribute__((target("avx512f"))) static void peak_fma_512(void *arg, size_t task, int thread)
{
    (void)arg, (void)task, (void)thread;
    __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-6f);
    EACH(DECLARE)
    for (long i = 0; i < PEAK_STEPS; i++) {
        EACH(FMA)
    }
}

__attribute__((target("avx512f,avx512bf16"))) static void peak_dot_512(void *arg, size_t task,
                                                                       int thread)
{
    (void)arg, (void)task, (void)thread;
    __m512i x = _mm512_set1_epi32(0x3c003c00), y = _mm512_set1_epi32(0x34003400);
    EACH(DECLARE)
    for (long i = 0; i < PEAK_STEPS; i++) {
        EACH(DOT)
    }
}

__attribute__((target("avx2,fma"))) static void peak_fma_256(void *arg, size_t task, int thread)
{
    (void)arg, (void)task, (void)thread;
    __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-6f);
    EACH(DECLARE_YMM)
    for (long i = 0; i < PEAK_STEPS; i++) {
        EACH(FMA)
    }
}

/* Independent products held in registers. */
static struct rate peak_rate(struct ps_pool *pool, const struct options *o, bool bf16)
{
    ps_pool_fn fn = peak_fma_256;
    double flop = 16;
    if (o->isa == PS_ISA_AVX512_BF16 && bf16) {
        fn = peak_dot_512;
        flop = 64;
    } else if (o->isa >= PS_ISA_AVX512) {
        fn = peak_fma_512;
        flop = 32;
    }
    struct rate start = rate_start();
    ps_pool_run(pool, fn, NULL, (size_t)o->threads);
    return rate_stop(start, flop * ACC_COUNT * PEAK_STEPS * o->threads, o->threads);
}

/* ---- shapes --------------------------------------------------------------------------------- */

static void *map(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("gemm: mmap");
        exit(1);
    }
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void *filled(size_t n, enum ps_dtype dtype, uint32_t seed)
{
    size_t size = ps_dtype_size(dtype);
    unsigned char *p = map(n * size);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        float f = (float)(int32_t)seed / 2147483648.0f;
        uint16_t h = ps_f32_to_bf16(f);
        if (dtype == PS_DTYPE_F32)
            memcpy(p + i * size, &f, size);
        else
            memcpy(p + i * size, &h, size);
    }
    return p;
}

static struct ps_gemm_mat matrix(size_t rows, size_t cols, int trans, enum ps_dtype dtype)
{
    size_t n = rows * cols;
    struct ps_gemm_mat m = {filled(n, dtype, (uint32_t)(rows * 2654435761u + cols * 97u)),
                            trans ? rows : cols, dtype, trans};
    return m;
}

static void release(const struct ps_gemm_mat *m, size_t n)
{
    munmap((void *)(uintptr_t)m->data, n * ps_dtype_size(m->dtype));
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One output element against a double sum: a wrong kernel's speed is of no interest. */
static void check(const struct ps_gemm_args *args)
{
    struct ps_gemm_args one = *args;
    float c, want;
    size_t i = args->m - 1, j = args->n - 1;
    one.m = one.n = 1;
    struct ps_gemm_mat *rows[] = {&one.a, &one.a2}, *cols[] = {&one.b, &one.b2};
    for (int s = 0; s < (args->k2 ? 2 : 1); s++) {
        size_t size = ps_dtype_size(rows[s]->dtype);
        rows[s]->data = (const char *)rows[s]->data + size * (rows[s]->trans ? i : i * rows[s]->ld);
        cols[s]->data = (const char *)cols[s]->data + size * (cols[s]->trans ? j * cols[s]->ld : j);
    }
    one.c = &want;
    one.c_dtype = PS_DTYPE_F32;
    ps_gemm_reference(&one);
    size_t at = i * args->c_ld + j;
    c = args->c_dtype == PS_DTYPE_F32 ? ((const float *)args->c)[at]
                                      : ps_bf16_to_f32(((const uint16_t *)args->c)[at]);
    float off = c > want ? c - want : want - c;
    if (!(off <= 0.05f + 0.01f * (want < 0 ? -want : want))) {
        fprintf(stderr, "gemm: wrong result, %g instead of %g\n", (double)c, (double)want);
        exit(1);
    }
}

static void measure(struct ps_pool *pool, const struct options *o, const struct shape *s, bool bf16,
                    void *workspace)
{
    enum ps_dtype dtype = bf16 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
    struct ps_gemm_args args = {.m = s->m, .n = s->n, .k = s->k, .k2 = s->k2};
    args.a = matrix(s->m, s->k, s->a_trans, dtype);
    args.b = matrix(s->k, s->n, s->b_trans, dtype);
    if (s->k2) {
        args.a2 = matrix(s->m, s->k2, 0, PS_DTYPE_F32);
        args.b2 = matrix(s->k2, s->n, 1, PS_DTYPE_F32);
    }
    /* weight gradients are fp32 */
    args.c_dtype = s->a_trans ? PS_DTYPE_F32 : dtype;
    args.c = map(s->m * s->n * sizeof(float));
    args.c_ld = s->n;
    args.math = bf16 ? PS_GEMM_BF16 : PS_GEMM_F32;

    double flop = 2.0 * (double)s->m * (double)s->n * (double)(s->k + s->k2);
    ps_gemm(pool, o->isa, &args, workspace);
    check(&args);
    double gflops[REPS_MAX], share[REPS_MAX], peak_best = 0;
    int runs = 1 + (int)(2e9 / flop);
    for (int r = 0; r < o->reps; r++) {
        struct rate peak = peak_rate(pool, o, bf16);
        struct rate start = rate_start();
        for (int i = 0; i < runs; i++)
            ps_gemm(pool, o->isa, &args, workspace);
        struct rate rate = rate_stop(start, flop * runs, o->threads);
        gflops[r] = rate.wall;
        share[r] = rate.cpu / peak.cpu;
        peak_best = peak.wall > peak_best ? peak.wall : peak_best;
    }
    qsort(gflops, (size_t)o->reps, sizeof *gflops, compare);
    qsort(share, (size_t)o->reps, sizeof *share, compare);
    double best = gflops[o->reps - 1], median = gflops[o->reps / 2];
    size_t size = ps_dtype_size(dtype);
    double bytes =
        (double)((s->m * s->k + s->k * s->n) * size + s->m * s->n * ps_dtype_size(args.c_dtype));
    printf("%-4s %d thr  %-24s %5zu x %5zu x %5zu  %6.1f GFLOP/s (median %6.1f)  peak %6.1f  wall "
           "%5.1f%%  cpu %5.1f%%  %5.1f GB/s\n",
           bf16 ? "bf16" : "f32", o->threads, s->name, s->m, s->n, s->k, best, median, peak_best,
           100 * best / peak_best, 100 * share[o->reps / 2], bytes * best / flop);
    fflush(stdout);
    release(&args.a, s->m * s->k);
    release(&args.b, s->k * s->n);
    if (s->k2) {
        release(&args.a2, s->m * s->k2);
        release(&args.b2, s->k2 * s->n);
    }
    munmap(args.c, s->m * s->n * sizeof(float));
}

static void run_all(const struct options *o)
{
    struct ps_pool *pool;
    if (ps_pool_create(&pool, o->threads) < 0) {
        fprintf(stderr, "gemm: no threads\n");
        exit(1);
    }
    if (o->group && !strcmp(o->group, "peak")) { /* median of the register peak alone, one number */
        double rate[PEAK_REPS];
        for (int i = 0; i < PEAK_REPS; i++)
            rate[i] = peak_rate(pool, o, o->math && !strcmp(o->math, "bf16")).wall;
        qsort(rate, PEAK_REPS, sizeof *rate, compare);
        printf("%.1f\n", rate[PEAK_REPS / 2]);
        ps_pool_destroy(pool);
        return;
    }
    void *workspace = map(ps_gemm_workspace_bytes(o->threads));
    for (int bf16 = 1; bf16 >= 0; bf16--) {
        if (o->math && strcmp(o->math, bf16 ? "bf16" : "f32") != 0)
            continue;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if (!o->group || !strcmp(o->group, shapes[i].group))
                measure(pool, o, &shapes[i], bf16, workspace);
    }
    munmap(workspace, ps_gemm_workspace_bytes(o->threads));
    ps_pool_destroy(pool);
}

static enum ps_isa parse_isa(const char *name)
{
    for (int isa = PS_ISA_PORTABLE; isa <= (int)ps_isa_detect(); isa++)
        if (!strcmp(name, ps_isa_name((enum ps_isa)isa)))
            return (enum ps_isa)isa;
    fprintf(stderr, "gemm: this machine has no instruction set '%s'\n", name);
    exit(2);
}

int main(int argc, char **argv)
{
    struct options o = {0, NULL, NULL, 7, ps_isa_detect()};
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--threads"))
            o.threads = atoi(value);
        else if (!strcmp(argv[i], "--math"))
            o.math = value;
        else if (!strcmp(argv[i], "--group"))
            o.group = value;
        else if (!strcmp(argv[i], "--isa"))
            o.isa = parse_isa(value);
        else if (!strcmp(argv[i], "--reps") && atoi(value) > 0 && atoi(value) <= REPS_MAX)
            o.reps = atoi(value);
        else {
            fprintf(stderr, "gemm: unknown option or bad value: %s %s\n", argv[i], value);
            return 2;
        }
    }
    if (o.isa < PS_ISA_AVX2)
        printf("note: the peak is that of AVX2\n");
    for (int threads = 1; threads <= 2; threads++) {
        struct options one = o;
        one.threads = o.threads ? o.threads : threads;
        run_all(&one);
        if (o.threads)
            break;
    }
    return 0;
}
