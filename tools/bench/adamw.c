/* AdamW's bandwidth beside the memory's.
 *
 *   adamw [--threads N] [--elems N] [--reps N]
 *
 * Envelope: the update is element-wise and reads and writes each state once: fp32 weight and
 * gradient 16 + 12 = 28 bytes a parameter, bf16 weight with remainder and bf16 gradient 14 + 12
 * = 26. Beside it, before each repetition: an in-place loop (x += 1, reads and writes one array)
 * and a triad (a = b + 0.5 c) over the same bytes on the same threads. Prints medians, and the
 * median of the ratios to the better of the two neighbours. */
#include <emmintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "optim/adamw.h"

#define REPS_MAX 64
#define TASK 16384

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int less(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, less);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

struct loop {
    float *a, *b, *c;
    size_t n;
};

static void run_inplace(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct loop *l = arg;
    size_t end = (task + 1) * TASK < l->n ? (task + 1) * TASK : l->n;
    __m128 one = _mm_set1_ps(1);
    for (size_t i = task * TASK; i + 4 <= end; i += 4)
        _mm_storeu_ps(l->a + i, _mm_add_ps(_mm_loadu_ps(l->a + i), one));
}

static void run_triad(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct loop *l = arg;
    size_t end = (task + 1) * TASK < l->n ? (task + 1) * TASK : l->n;
    __m128 half = _mm_set1_ps(0.5f);
    for (size_t i = task * TASK; i + 4 <= end; i += 4)
        _mm_storeu_ps(l->a + i,
                      _mm_add_ps(_mm_loadu_ps(l->b + i), _mm_mul_ps(half, _mm_loadu_ps(l->c + i))));
}

static void *touch(size_t bytes)
{
    unsigned char *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!p) {
        fprintf(stderr, "adamw: cannot allocate %zu bytes\n", bytes);
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

struct config {
    enum ps_dtype weight, grad;
    enum ps_isa isa;
};

static void bench(struct ps_pool *pool, const struct config *c, size_t n, int reps,
                  const struct loop *loop)
{
    struct ps_adamw_slice s = {.weight_dtype = c->weight, .grad_dtype = c->grad, .n = n};
    size_t w = ps_dtype_size(c->weight), g = ps_dtype_size(c->grad);
    s.weight = touch(n * w);
    s.grad = touch(n * g);
    memset((void *)(size_t)s.grad, 0x3c, n * g); /* 0.0115 or so */
    s.remainder = w == 2 ? touch(n * 2) : NULL;
    s.exp_avg = touch(n * 4);
    s.exp_avg_sq = touch(n * 4);
    size_t bytes = n * (4 + g + 8) + n * 12;
    size_t tasks = (loop->n + TASK - 1) / TASK;
    double gbs[REPS_MAX], inplace[REPS_MAX], triad[REPS_MAX], share[REPS_MAX];
    for (int r = -1; r < reps; r++) { /* the first is for warming up */
        struct ps_adamw_scalars k;
        ps_adamw_prepare(&k, 1e-4, 0.9, 0.999, 1e-8, 0.01, (uint64_t)(r + 2), 1);
        double t0 = now();
        ps_pool_run(pool, run_inplace, (void *)(size_t)loop, tasks);
        double t1 = now();
        ps_pool_run(pool, run_triad, (void *)(size_t)loop, tasks);
        double t2 = now();
        ps_adamw_update(pool, c->isa, &k, &s);
        double t3 = now();
        if (r < 0)
            continue;
        inplace[r] = 8e-9 * (double)loop->n / (t1 - t0);
        triad[r] = 12e-9 * (double)loop->n / (t2 - t1);
        gbs[r] = 1e-9 * (double)bytes / (t3 - t2);
        share[r] = gbs[r] / (inplace[r] > triad[r] ? inplace[r] : triad[r]);
    }
    printf("%-8s weight %-4s grad %-4s %2zu B/param  %6.2f GB/s  in-place %6.2f  triad %6.2f  "
           "share %.2f  %6.3f ns/param\n",
           ps_isa_name(c->isa), ps_dtype_name(c->weight), ps_dtype_name(c->grad), bytes / n,
           median(gbs, reps), median(inplace, reps), median(triad, reps), median(share, reps),
           (double)bytes / (double)n / median(gbs, reps));
    free(s.weight);
    free((void *)(size_t)s.grad);
    free(s.remainder);
    free(s.exp_avg);
    free(s.exp_avg_sq);
}

int main(int argc, char **argv)
{
    int threads = 2, reps = 9;
    size_t n = 8u << 20;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--threads"))
            threads = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--elems"))
            n = strtoull(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--reps"))
            reps = atoi(argv[i + 1]);
    }
    if (threads < 1 || reps < 1 || reps > REPS_MAX || n < 1) {
        fprintf(stderr, "usage: adamw [--threads N] [--elems N] [--reps 1..%d]\n", REPS_MAX);
        return 2;
    }
    struct ps_pool *pool;
    if (ps_pool_create(&pool, threads))
        return 1;
    struct loop loop = {.n = n * 2};
    loop.a = touch(loop.n * 4);
    loop.b = touch(loop.n * 4);
    loop.c = touch(loop.n * 4);
    printf("adamw: %zu parameters, %d threads, %d repetitions, medians\n", n, threads, reps);
    for (enum ps_isa isa = PS_ISA_PORTABLE; isa <= ps_isa_detect() && isa <= PS_ISA_AVX512; isa++) {
        const struct config c[3] = {{PS_DTYPE_F32, PS_DTYPE_F32, isa},
                                    {PS_DTYPE_BF16, PS_DTYPE_F32, isa},
                                    {PS_DTYPE_BF16, PS_DTYPE_BF16, isa}};
        for (int i = 0; i < 3; i++)
            bench(pool, &c[i], n, isa == PS_ISA_PORTABLE ? 2 : reps, &loop);
    }
    free(loop.a);
    free(loop.b);
    free(loop.c);
    ps_pool_destroy(pool);
    return 0;
}
