/* Bandwidth of the optimizers' updates beside the memory's.
 *
 *   optimizers [--only NAME] [--threads N] [--elems N] [--reps N] [--state fp32|bf16]
 *
 * Envelope: an update reads weight, remainder, gradient and states once and writes all but the
 * gradient: the bytes counted. Beside it, before each repetition, an in-place loop (x += 1) and a
 * triad (a = b + 0.5 c) on the same threads. Prints the median of the ratios to the better of the
 * two neighbours. Weights are bf16 with remainder, bf16 rounded at random, and fp32; gradients
 * fp32. A matrix is rows of 4096. */
#include <emmintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "optim/optimizers.h"

#define REPS_MAX 64
#define TASK 16384
#define COLS 4096

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
    unsigned char *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096 + 4096);
    if (!p) {
        fprintf(stderr, "optimizers: cannot allocate %zu bytes\n", bytes);
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

struct form {
    const char *name;
    enum ps_dtype dtype;
    bool stochastic;
};

static struct ps_optimizer_hyper hyper_of(const struct ps_optimizer_ops *ops, const struct form *f,
                                          enum ps_dtype state)
{
    struct ps_optimizer_hyper h = {.beta1 = 0.9,
                                   .beta2 = 0.99,
                                   .eps = 1e-8,
                                   .weight_decay = 0.01,
                                   .momentum = strcmp(ops->name, "sgd") ? 0 : 0.9,
                                   .seed = 1,
                                   .n_layer = 1,
                                   .active_layers = 1,
                                   .interval = 1000000,
                                   .eps2 = 1e-3,
                                   .clip_threshold = 1,
                                   .decay_rate = 0.8,
                                   .window = 10,
                                   .density = 0.01,
                                   .quant_block = 64,
                                   .stochastic_rounding = f->stochastic,
                                   .state_dtype = state};
    return h;
}

static void bench(struct ps_pool *pool, const struct ps_optimizer_ops *ops, const struct form *f,
                  enum ps_dtype state, size_t n, int reps, const struct loop *loop)
{
    struct ps_optimizer_hyper h = hyper_of(ops, f, state);
    struct ps_opt_tensor x = {.name = "x",
                              .rank = 2,
                              .rows = (int64_t)(n / COLS),
                              .cols = COLS,
                              .n = n,
                              .hidden = true,
                              .dtype = f->dtype};
    struct ps_opt_layout l;
    struct ps_error err = {0};
    if (ops->layout(&h, &x, &l, &err) != 0) {
        printf("%-16s %-10s %s\n", ops->name, f->name, err.message);
        return;
    }
    struct ps_update u = {.pool = pool,
                          .isa = ps_isa_detect(),
                          .hyper = &h,
                          .tensor = &x,
                          .layout = &l,
                          .n = n,
                          .lr = 1e-4,
                          .decay = true,
                          .grad_scale = 1};
    size_t w = ps_dtype_size(f->dtype), bytes = n * (2 * w + 4);
    float *grad = touch(n * 4);
    for (size_t i = 0; i < n; i++)
        grad[i] = (float)((i * 2654435761u) >> 16 & 1023) * 1e-5f - 5e-3f;
    u.weight = touch(n * w);
    u.grad = grad;
    if (l.remainder && f->dtype == PS_DTYPE_BF16) {
        u.remainder = touch(n * 2);
        bytes += n * 4;
    }
    for (int k = 0; k < l.state_count; k++) {
        size_t size = (size_t)ps_opt_state_bytes(&l.state[k], n);
        u.state[k] = touch(size);
        bytes += 2 * size;
    }
    u.workspace = touch((size_t)l.workspace_bytes);
    size_t tasks = (loop->n + TASK - 1) / TASK;
    double gbs[REPS_MAX], share[REPS_MAX], memory[REPS_MAX];
    for (int r = -1; r < reps; r++) {
        double t0 = now();
        ps_pool_run(pool, run_inplace, (void *)(size_t)loop, tasks);
        double t1 = now();
        ps_pool_run(pool, run_triad, (void *)(size_t)loop, tasks);
        double t2 = now();
        u.t++;
        int ret = ops->update(&u, &err);
        double t3 = now();
        u.step++;
        if (ret < 0 || r < 0)
            continue;
        double inplace = 8e-9 * (double)loop->n / (t1 - t0);
        double triad = 12e-9 * (double)loop->n / (t2 - t1);
        gbs[r] = 1e-9 * (double)bytes / (t3 - t2);
        memory[r] = inplace > triad ? inplace : triad;
        share[r] = gbs[r] / memory[r];
    }
    printf("%-16s %-10s %5.2f B/param  %6.2f GB/s  memory %6.2f  share %.2f  %6.3f ns/param\n",
           ops->name, f->name, (double)bytes / (double)n, median(gbs, reps), median(memory, reps),
           median(share, reps), (double)bytes / (double)n / median(gbs, reps));
    free(u.weight);
    free(u.remainder);
    free(grad);
    for (int k = 0; k < l.state_count; k++)
        free(u.state[k]);
    free(u.workspace);
}

int main(int argc, char **argv)
{
    static const struct form form[] = {{"bf16+rest", PS_DTYPE_BF16, false},
                                       {"bf16 sr", PS_DTYPE_BF16, true},
                                       {"fp32", PS_DTYPE_F32, false}};
    int threads = 2, reps = 7;
    size_t n = 16u << 20;
    const char *only = NULL;
    enum ps_dtype state = PS_DTYPE_F32;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--threads"))
            threads = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--elems"))
            n = strtoull(argv[i + 1], NULL, 10) / COLS * COLS;
        else if (!strcmp(argv[i], "--reps"))
            reps = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--only"))
            only = argv[i + 1];
        else if (!strcmp(argv[i], "--state"))
            state = strcmp(argv[i + 1], "bf16") ? PS_DTYPE_F32 : PS_DTYPE_BF16;
    }
    if (threads < 1 || reps < 1 || reps > REPS_MAX || n < COLS ||
        (only && !ps_optimizer_find(only))) {
        fprintf(stderr,
                "usage: optimizers [--only NAME] [--threads N] [--elems N] [--reps 1..%d] "
                "[--state fp32|bf16]\n",
                REPS_MAX);
        return 2;
    }
    struct ps_pool *pool;
    if (ps_pool_create(&pool, threads))
        return 1;
    struct loop loop = {.n = n * 2};
    loop.a = touch(loop.n * 4);
    loop.b = touch(loop.n * 4);
    loop.c = touch(loop.n * 4);
    static const char *const usual[] = {"sgd",  "adamw",     "adamw8bit",
                                        "lion", "adafactor", "microadam"};
    printf("optimizers: %zu parameters, %d threads, %d repetitions, medians\n", n, threads, reps);
    for (size_t i = 0; i < sizeof usual / sizeof usual[0]; i++)
        for (size_t k = 0; k < sizeof form / sizeof form[0]; k++)
            if (!only || !strcmp(only, usual[i]))
                bench(pool, ps_optimizer_find(usual[i]), &form[k], state, n, reps, &loop);
    free(loop.a);
    free(loop.b);
    free(loop.c);
    ps_pool_destroy(pool);
    return 0;
}
