/* Time of one matrix's update by the methods that need whole matrices, beside AdamW's.
 *
 *   matrix_updates [--rows N] [--cols N] [--rank N] [--threads N] [--reps N] [--basis
 * randomized|svd]
 *                  [--optimizer NAME] [--clock wall|cpu]
 *
 * bf16 weights with remainder, bf16 gradients. Each repetition runs AdamW and the method one after
 * the other, so that the ratio is of the same moments of a shared machine; with --clock cpu times
 * are those of the process, all threads together. The first update makes a new basis. Prints
 * medians, states and scratch. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "optim/optimizers.h"
#include "runtime/base/rng.h"

#define REPS_MAX 64

static double now(clockid_t clock_id)
{
    struct timespec t;
    clock_gettime(clock_id, &t);
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

static void *zeros(size_t bytes)
{
    unsigned char *p = aligned_alloc(4096, (bytes + 8191) / 4096 * 4096);
    if (!p) {
        fprintf(stderr, "matrix_updates: cannot allocate %zu bytes\n", bytes);
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

/* What all methods are measured with. */
struct setting {
    struct ps_opt_tensor tensor;
    struct ps_pool *pool;
    clockid_t clock;
    uint16_t *grad, *weight, *remainder;
};

struct subject {
    const struct ps_optimizer_ops *ops;
    struct ps_optimizer_hyper hyper;
    struct ps_opt_layout layout;
    struct ps_update u;
    size_t state_bytes;
    clockid_t clock;
};

static void make(struct subject *s, const char *name, struct ps_optimizer_hyper h,
                 const struct setting *set)
{
    const struct ps_opt_tensor *t = &set->tensor;
    struct ps_error err = {0};
    s->clock = set->clock;
    s->ops = ps_optimizer_find(name);
    for (const struct ps_optimizer_option *o = s->ops ? s->ops->options : NULL; o && o->flag; o++) {
        if (!strcmp(o->flag, "momentum"))
            h.momentum = o->fallback;
        if (!strcmp(o->flag, "optim-scale"))
            h.scale = o->fallback;
    }
    s->hyper = h;
    if (!s->ops || s->ops->layout(&s->hyper, t, &s->layout, &err) < 0) {
        fprintf(stderr, "matrix_updates: %s: %s\n", name, s->ops ? err.message : "no such method");
        exit(2);
    }
    s->u = (struct ps_update){.pool = set->pool,
                              .isa = ps_isa_detect(),
                              .hyper = &s->hyper,
                              .tensor = t,
                              .layout = &s->layout,
                              .n = t->n,
                              .weight = set->weight,
                              .remainder = set->remainder,
                              .grad = set->grad,
                              .grad_dtype = PS_DTYPE_BF16,
                              .workspace = zeros((size_t)s->layout.workspace_bytes),
                              .lr = 1e-4,
                              .grad_scale = 0.5f};
    for (int i = 0; i < s->layout.state_count; i++) {
        size_t bytes = (size_t)ps_opt_state_bytes(&s->layout.state[i], t->n);
        s->u.state[i] = zeros(bytes);
        s->state_bytes += bytes;
    }
}

static double update(struct subject *s)
{
    struct ps_error err = {0};
    double start = now(s->clock);
    s->u.t++;
    if (s->ops->update(&s->u, &err) < 0) {
        fprintf(stderr, "matrix_updates: %s\n", err.message);
        exit(1);
    }
    return now(s->clock) - start;
}

static void compare(const char *name, const struct ps_optimizer_hyper *h, const struct setting *set,
                    int reps)
{
    struct subject adamw = {0}, s = {0};
    double base[REPS_MAX], time[REPS_MAX], ratio[REPS_MAX];
    make(&adamw, "adamw", *h, set);
    make(&s, name, *h, set);
    update(&adamw);
    double refresh = update(&s);
    s.u.t = 0; /* again, now that its memory is there */
    refresh = update(&s) < refresh ? (s.u.t = 0, update(&s)) : refresh;
    for (int i = 0; i < reps; i++) {
        base[i] = update(&adamw);
        time[i] = update(&s);
        ratio[i] = time[i] / base[i];
    }
    double n = (double)set->tensor.n;
    printf("%-15s update %8.2f ms, %5.2f x adamw's %6.2f ms; first %8.2f ms; states %6.3f bytes a "
           "parameter, scratch %6.1f MiB\n",
           name, 1e3 * median(time, reps), median(ratio, reps), 1e3 * median(base, reps),
           1e3 * refresh, (double)s.state_bytes / n, (double)s.layout.workspace_bytes / 0x1p20);
    for (int i = 0; i < PS_OPTIMIZER_STATE_MAX; i++) {
        free(s.u.state[i]);
        free(adamw.u.state[i]);
    }
    free(s.u.workspace);
    free(adamw.u.workspace);
}

int main(int argc, char **argv)
{
    int64_t rows = 2048, cols = 5632;
    int threads = 2, reps = 9, rank = 128;
    const char *only = NULL;
    clockid_t clock_id = CLOCK_MONOTONIC;
    struct ps_optimizer_hyper h = {.beta1 = 0.9,
                                   .beta2 = 0.999,
                                   .eps = 1e-6,
                                   .update_gap = 1000000,
                                   .seed = 1,
                                   .norm_growth_max = 1.01,
                                   .history = 20,
                                   .damping = 1e-3,
                                   .ns_steps = 5,
                                   .aux_lr_ratio = 1,
                                   .refresh_together = true};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *v = argv[i + 1];
        if (!strcmp(argv[i], "--rows"))
            rows = atoll(v);
        else if (!strcmp(argv[i], "--cols"))
            cols = atoll(v);
        else if (!strcmp(argv[i], "--rank"))
            rank = atoi(v);
        else if (!strcmp(argv[i], "--threads"))
            threads = atoi(v);
        else if (!strcmp(argv[i], "--reps"))
            reps = atoi(v) < REPS_MAX ? atoi(v) : REPS_MAX;
        else if (!strcmp(argv[i], "--basis"))
            h.basis = !strcmp(v, "svd") ? PS_BASIS_SVD : PS_BASIS_RANDOMIZED;
        else if (!strcmp(argv[i], "--clock"))
            clock_id = !strcmp(v, "cpu") ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
        else if (!strcmp(argv[i], "--optimizer"))
            only = v;
    }
    struct ps_pool *pool;
    if (ps_pool_create(&pool, threads) < 0)
        return 1;
    h.thread_count = threads;
    h.rank = rank;
    struct setting set = {.tensor = {.name = "x",
                                     .rank = 2,
                                     .rows = rows,
                                     .cols = cols,
                                     .n = (size_t)(rows * cols),
                                     .hidden = true,
                                     .dtype = PS_DTYPE_BF16},
                          .pool = pool,
                          .clock = clock_id};
    size_t n = set.tensor.n;
    set.grad = zeros(n * 2);
    set.weight = zeros(n * 2);
    set.remainder = zeros(n * 2);
    struct ps_rng_key key = {.seed = 1};
    for (size_t i = 0; i < n; i++)
        set.grad[i] = ps_f32_to_bf16(ps_rng_uniform(&key, i) - 0.5f);
    printf("%lld x %lld, rank %d, %d threads, %s basis\n", (long long)rows, (long long)cols, rank,
           threads, h.basis == PS_BASIS_SVD ? "svd" : "randomized");
    const char *const names[] = {"galore", "fira",        "natural-galore",
                                 "apollo", "apollo-mini", "muon"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct ps_optimizer_hyper hyper = h;
        if (!strcmp(names[i], "apollo-mini"))
            hyper.rank = 1;
        if (!only || !strcmp(only, names[i]))
            compare(names[i], &hyper, &set, strcmp(names[i], "muon") ? reps : 3);
    }
    free(set.grad);
    free(set.weight);
    free(set.remainder);
    ps_pool_destroy(pool);
    return 0;
}
