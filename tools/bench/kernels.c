/* Bandwidth of the small kernels beside the memory's.
 *
 *   kernels [--threads N] [--reps N] [--isa NAME] [--only TEXT]
 *
 * Envelope: every kernel here reads its inputs and writes its outputs once (cross-entropy reads the
 * logits twice and writes them once; embedding_backward also reads what it adds to), and the figure
 * counts those bytes alone. Tensors are larger than the last-level cache. Before each repetition an
 * in-place loop (x += 1) and a copy loop run on the same threads; the share is the median of the
 * ratios to the loop of the kernel's own kind: a copy's stores cost reads that are not counted.
 */
#include <emmintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/kernels/cross_entropy.h"
#include "runtime/kernels/elementwise.h"
#include "runtime/kernels/embedding.h"
#include "runtime/kernels/rmsnorm.h"
#include "runtime/kernels/rope.h"
#include "runtime/kernels/swiglu.h"

#define REPS_MAX 64
#define TASK 16384
#define TENSORS 5
#define TENSOR_ELEMS ((size_t)16 << 20) /* of fp32; bf16 kernels use twice as many */
#define N 2048                          /* row length of norms and embeddings */
#define N_FF 5632                       /* of SwiGLU */
#define VOCAB 32000
#define VOCAB_LARGE 128256
#define POSITIONS 4096

struct bench {
    struct ps_pool *pool;
    enum ps_isa isa;
    enum ps_dtype dtype;
    size_t elems; /* of one tensor, in dtype */
    void *t[TENSORS];
    float *small; /* weights, tables, workspace */
    int32_t *ids;
    double *out;
};

/* With one thread, its processor time: other processes then disturb less. */
static double now(const struct bench *b)
{
    struct timespec t;
    int one = ps_pool_thread_count(b->pool) == 1;
    clock_gettime(one ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
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

static void run_inplace(void *arg, size_t task, int thread)
{
    (void)thread;
    float *x = (float *)((struct bench *)arg)->t[4] + task * TASK;
    __m128 one = _mm_set1_ps(1);
    for (size_t i = 0; i < TASK; i += 4)
        _mm_storeu_ps(x + i, _mm_add_ps(_mm_loadu_ps(x + i), one));
}

static void run_copy(void *arg, size_t task, int thread)
{
    (void)thread;
    struct bench *b = arg;
    const float *x = (float *)b->t[3] + task * TASK;
    float *y = (float *)b->t[4] + task * TASK;
    for (size_t i = 0; i < TASK; i += 4)
        _mm_storeu_ps(y + i, _mm_loadu_ps(x + i));
}

/* Each case runs once and returns the bytes that it must move. */

static double es(const struct bench *b)
{
    return (double)ps_dtype_size(b->dtype);
}

static struct ps_rmsnorm_args norm_args(struct bench *b)
{
    size_t rows = b->elems / N;
    return (struct ps_rmsnorm_args){.n_tok = rows,
                                    .rows_per_tok = 1,
                                    .n = N,
                                    .eps = 1e-5f,
                                    .dtype = b->dtype,
                                    .x = b->t[0],
                                    .x_ld = N,
                                    .weight = b->small,
                                    .weight_dtype = PS_DTYPE_F32,
                                    .y = b->t[1],
                                    .y_ld = N,
                                    .rstd = b->small + N,
                                    .dy = b->t[1],
                                    .dy_ld = N,
                                    .dx = b->t[2],
                                    .dx_ld = N,
                                    .dx_add = b->t[2],
                                    .dx_add_ld = N};
}

static double rmsnorm_forward(struct bench *b)
{
    struct ps_rmsnorm_args a = norm_args(b);
    ps_rmsnorm_forward(b->pool, b->isa, &a);
    return 2 * es(b) * (double)b->elems;
}

static double rmsnorm_backward(struct bench *b)
{
    struct ps_rmsnorm_args a = norm_args(b);
    ps_rmsnorm_backward(b->pool, b->isa, &a, NULL);
    return 4 * es(b) * (double)b->elems;
}

static double rmsnorm_backward_dweight(struct bench *b)
{
    struct ps_rmsnorm_args a = norm_args(b);
    a.dweight = b->small;
    a.accumulate = 1;
    ps_rmsnorm_backward(b->pool, b->isa, &a, b->small + N + a.n_tok);
    return 4 * es(b) * (double)b->elems;
}

static double head_norm_forward(struct bench *b)
{
    struct ps_rmsnorm_args a = norm_args(b);
    a.rows_per_tok = N / 128;
    a.n = 128;
    a.rstd = NULL;
    ps_rmsnorm_forward(b->pool, b->isa, &a);
    return 2 * es(b) * (double)b->elems;
}

static double swiglu_forward(struct bench *b)
{
    size_t rows = b->elems / N_FF;
    ps_swiglu_forward(b->pool, b->isa, b->dtype, rows, N_FF, b->t[0], N_FF, b->t[1], N_FF, b->t[2],
                      N_FF);
    return 3 * es(b) * (double)(rows * N_FF);
}

static double swiglu_backward(struct bench *b)
{
    size_t rows = b->elems / N_FF;
    ps_swiglu_backward(b->pool, b->isa, b->dtype, rows, N_FF, b->t[0], N_FF, b->t[1], N_FF, b->t[2],
                       N_FF, b->t[3], N_FF, b->t[4], N_FF);
    return 5 * es(b) * (double)(rows * N_FF);
}

static double rope(struct bench *b)
{
    ps_rope_apply(b->pool, b->isa, b->t[0], N, b->dtype, b->elems / N, N / 64, 64, b->ids, b->small,
                  0);
    return 2 * es(b) * (double)b->elems;
}

static double embedding_forward(struct bench *b)
{
    size_t rows = b->elems / N;
    ps_embedding_forward(b->pool, b->isa, b->t[0], b->dtype, N, 0, INT32_MAX, b->ids, rows, b->t[1],
                         b->dtype);
    return 2 * es(b) * (double)(rows * N);
}

static double embedding_backward(struct bench *b)
{
    size_t rows = TENSOR_ELEMS / N;
    ps_embedding_backward(b->pool, b->isa, b->t[0], N, b->ids, rows, b->t[1], b->dtype);
    return (8 + es(b)) * (double)(rows * N);
}

static double cross_entropy_of(struct bench *b, size_t vocab, int grad)
{
    size_t rows = TENSOR_ELEMS / vocab;
    ps_cross_entropy(b->pool, b->isa, b->t[0], vocab, rows, vocab, b->ids, b->out, 1e-3f, grad);
    return (grad ? 12.0 : 4.0) * (double)(rows * vocab);
}

static double cross_entropy(struct bench *b)
{
    return cross_entropy_of(b, VOCAB, 1);
}

static double cross_entropy_large(struct bench *b)
{
    return cross_entropy_of(b, VOCAB_LARGE, 1);
}

static double cross_entropy_loss_only(struct bench *b)
{
    return cross_entropy_of(b, VOCAB_LARGE, 0);
}

static double convert_to_bf16(struct bench *b)
{
    ps_convert(b->pool, b->isa, b->t[1], PS_DTYPE_BF16, b->t[0], PS_DTYPE_F32, TENSOR_ELEMS);
    return 6.0 * (double)TENSOR_ELEMS;
}

static double convert_to_f32(struct bench *b)
{
    ps_convert(b->pool, b->isa, b->t[1], PS_DTYPE_F32, b->t[0], PS_DTYPE_BF16, TENSOR_ELEMS);
    return 6.0 * (double)TENSOR_ELEMS;
}

static double add(struct bench *b)
{
    ps_add(b->pool, b->isa, b->t[2], b->t[0], b->t[2], b->dtype, b->elems);
    return 3 * es(b) * (double)b->elems;
}

static double dropout(struct bench *b)
{
    const struct ps_rng_key key = {.seed = 1, .site = PS_RNG_DROPOUT};
    ps_dropout(b->pool, b->isa, b->t[0], b->t[0], b->dtype, b->elems / N, N, 0.1f, &key, 0);
    return 2 * es(b) * (double)b->elems;
}

static double column_sum(struct bench *b)
{
    ps_column_sum(b->pool, b->isa, b->small, b->t[0], N, b->dtype, b->elems / N, N, 0);
    return es(b) * (double)b->elems;
}

static double square_sum(struct bench *b)
{
    ps_square_sum(b->pool, b->isa, b->out, b->t[0], b->dtype, b->elems);
    return es(b) * (double)b->elems;
}

static const struct {
    const char *name;
    double (*run)(struct bench *);
    int f32_only;
    int in_place; /* or reads only */
} cases[] = {
    {"rmsnorm_forward", rmsnorm_forward, 0, 0},
    {"rmsnorm_forward heads of 128", head_norm_forward, 0, 0},
    {"rmsnorm_backward", rmsnorm_backward, 0, 1},
    {"rmsnorm_backward dweight", rmsnorm_backward_dweight, 0, 1},
    {"swiglu_forward", swiglu_forward, 0, 0},
    {"swiglu_backward", swiglu_backward, 0, 0},
    {"rope", rope, 0, 1},
    {"embedding_forward", embedding_forward, 0, 0},
    {"embedding_backward", embedding_backward, 0, 1},
    {"cross_entropy 32000", cross_entropy, 1, 1},
    {"cross_entropy 128256", cross_entropy_large, 1, 1},
    {"cross_entropy no gradient", cross_entropy_loss_only, 1, 1},
    {"convert f32 to bf16", convert_to_bf16, 1, 0},
    {"convert bf16 to f32", convert_to_f32, 1, 0},
    {"add", add, 0, 1},
    {"dropout", dropout, 0, 1},
    {"column_sum", column_sum, 0, 1},
    {"square_sum", square_sum, 0, 1},
};

/* Fresh data: kernels that work in place would drift to zeros, Inf or subnormals. */
static void refill(struct bench *b)
{
    uint32_t s = 1;
    for (int t = 0; t < TENSORS; t++) {
        uint16_t *h = b->t[t];
        float *f = b->t[t];
        for (size_t i = 0; i < TENSOR_ELEMS; i++) {
            s = s * 1664525u + 1013904223u;
            float v = (float)(int32_t)s * 0x1p-30f;
            if (b->dtype == PS_DTYPE_F32)
                f[i] = v;
            else
                h[2 * i] = h[2 * i + 1] = ps_f32_to_bf16(v);
        }
    }
    for (size_t i = 0; i < 2 * N; i++)
        b->small[i] = 1;
    ps_rope_table(b->small, b->small, POSITIONS, 32);
    for (size_t i = 0; i < 2 * TENSOR_ELEMS / N; i++)
        b->ids[i] = (int32_t)(i % POSITIONS);
}

static void measure(struct bench *b, size_t c, int reps)
{
    double gbs[REPS_MAX], inplace[REPS_MAX], copy[REPS_MAX], share[REPS_MAX];
    size_t tasks = TENSOR_ELEMS / TASK;
    for (int r = -1; r < reps; r++) { /* the first is for warming up */
        double t0 = now(b);
        ps_pool_run(b->pool, run_inplace, b, tasks);
        double t1 = now(b);
        ps_pool_run(b->pool, run_copy, b, tasks);
        double t2 = now(b);
        double bytes = cases[c].run(b);
        double t3 = now(b);
        if (r < 0)
            continue;
        inplace[r] = 8e-9 * (double)TENSOR_ELEMS / (t1 - t0);
        copy[r] = 8e-9 * (double)TENSOR_ELEMS / (t2 - t1);
        gbs[r] = 1e-9 * bytes / (t3 - t2);
        share[r] = gbs[r] / (cases[c].in_place ? inplace[r] : copy[r]);
    }
    printf("%-9s %-4s %-29s %7.2f GB/s  in-place %6.2f  copy %6.2f  share %.2f\n",
           ps_isa_name(b->isa), ps_dtype_name(b->dtype), cases[c].name, median(gbs, reps),
           median(inplace, reps), median(copy, reps), median(share, reps));
    fflush(stdout);
}

static void *touch(size_t bytes)
{
    void *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!p) {
        fprintf(stderr, "kernels: cannot allocate %zu bytes\n", bytes);
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

int main(int argc, char **argv)
{
    int threads = 2, reps = 7;
    const char *only = "", *isa_name = "avx512";
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--threads"))
            threads = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--reps"))
            reps = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--only"))
            only = argv[i + 1];
        else if (!strcmp(argv[i], "--isa"))
            isa_name = argv[i + 1];
    }
    struct bench b = {.isa = PS_ISA_PORTABLE};
    for (enum ps_isa isa = PS_ISA_PORTABLE; isa <= ps_isa_detect(); isa++)
        if (!strcmp(ps_isa_name(isa), isa_name))
            b.isa = isa;
    if (threads < 1 || reps < 1 || reps > REPS_MAX || ps_pool_create(&b.pool, threads)) {
        fprintf(stderr, "usage: kernels [--threads N] [--reps 1..%d] [--isa NAME] [--only TEXT]\n",
                REPS_MAX);
        return 2;
    }
    for (int t = 0; t < TENSORS; t++)
        b.t[t] = touch(TENSOR_ELEMS * 4);
    b.small = touch(TENSOR_ELEMS);
    b.ids = touch(2 * TENSOR_ELEMS / N * sizeof *b.ids);
    b.out = touch(TENSOR_ELEMS / 1000);
    printf("kernels: %d threads, %d repetitions, medians\n", threads, reps);
    for (int d = 0; d < 2; d++) {
        b.dtype = d ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        b.elems = d ? 2 * TENSOR_ELEMS : TENSOR_ELEMS;
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            if (!strstr(cases[c].name, only) || (d && cases[c].f32_only))
                continue;
            refill(&b);
            measure(&b, c, reps);
        }
    }
    for (int t = 0; t < TENSORS; t++)
        free(b.t[t]);
    free(b.small);
    free(b.ids);
    free(b.out);
    ps_pool_destroy(b.pool);
    return 0;
}
