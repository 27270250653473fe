/* SwiGLU: see swiglu.h. */
#include "runtime/kernels/swiglu.h"

#include "runtime/kernels/exp_internal.h"
#include "runtime/kernels/fp32_block_internal.h"
#include "runtime/kernels/swiglu_internal.h"

static void forward_row(const struct ps__swiglu_args *a, size_t t)
{
    float g[PS__BLOCK], u[PS__BLOCK];
    for (size_t j = 0; j < a->n; j += PS__BLOCK) {
        size_t n = ps__min_size(PS__BLOCK, a->n - j);
        ps__block_load(g, a->gate, a->dtype, t * a->gate_ld + j, n);
        ps__block_load(u, a->up, a->dtype, t * a->up_ld + j, n);
        for (size_t i = 0; i < n; i++)
            g[i] = g[i] / (1.0f + ps__exp(-g[i])) * u[i];
        ps__block_store(a->y, a->dtype, t * a->y_ld + j, g, n);
    }
}

static void backward_row(const struct ps__swiglu_args *a, size_t t)
{
    float g[PS__BLOCK], u[PS__BLOCK], dy[PS__BLOCK];
    for (size_t j = 0; j < a->n; j += PS__BLOCK) {
        size_t n = ps__min_size(PS__BLOCK, a->n - j);
        ps__block_load(g, a->gate, a->dtype, t * a->gate_ld + j, n);
        ps__block_load(u, a->up, a->dtype, t * a->up_ld + j, n);
        ps__block_load(dy, a->dy, a->dtype, t * a->dy_ld + j, n);
        for (size_t i = 0; i < n; i++) {
            float sig = 1.0f / (1.0f + ps__exp(-g[i]));
            float dg = dy[i] * u[i] * sig * (1.0f + g[i] * (1.0f - sig));
            u[i] = dy[i] * (g[i] * sig);
            g[i] = dg;
        }
        ps__block_store(a->dgate, a->dtype, t * a->dgate_ld + j, g, n);
        ps__block_store(a->dup, a->dtype, t * a->dup_ld + j, u, n);
    }
}

struct job {
    const struct ps__swiglu_args *args;
    void (*row)(const struct ps__swiglu_args *, size_t);
};

static void run_rows(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t rows = ps__task_rows(job->args->n);
    size_t end = ps__min_size((task + 1) * rows, job->args->n_tok);
    for (size_t t = task * rows; t < end; t++)
        job->row(job->args, t);
}

static void run(struct ps_pool *pool, const struct ps__swiglu_args *args,
                void (*row)(const struct ps__swiglu_args *, size_t))
{
    struct job job = {.args = args, .row = row};
    size_t rows = ps__task_rows(args->n);
    ps_pool_run(pool, run_rows, &job, (args->n_tok + rows - 1) / rows);
}

void ps_swiglu_forward(struct ps_pool *pool, enum ps_isa isa, enum ps_dtype dtype, size_t n_tok,
                       size_t n, const void *gate, size_t gate_ld, const void *up, size_t up_ld,
                       void *y, size_t y_ld)
{
    struct ps__swiglu_args a = {.dtype = dtype,
                                .n_tok = n_tok,
                                .n = n,
                                .gate = gate,
                                .gate_ld = gate_ld,
                                .up = up,
                                .up_ld = up_ld,
                                .y = y,
                                .y_ld = y_ld};
    run(pool, &a, isa >= PS_ISA_AVX512 ? ps__swiglu_forward_avx512 : forward_row);
}

void ps_swiglu_backward(struct ps_pool *pool, enum ps_isa isa, enum ps_dtype dtype, size_t n_tok,
                        size_t n, const void *gate, size_t gate_ld, const void *up, size_t up_ld,
                        const void *dy, size_t dy_ld, void *dgate, size_t dgate_ld, void *dup,
                        size_t dup_ld)
{
    struct ps__swiglu_args a = {.dtype = dtype,
                                .n_tok = n_tok,
                                .n = n,
                                .gate = gate,
                                .gate_ld = gate_ld,
                                .up = up,
                                .up_ld = up_ld,
                                .dy = dy,
                                .dy_ld = dy_ld,
                                .dgate = dgate,
                                .dgate_ld = dgate_ld,
                                .dup = dup,
                                .dup_ld = dup_ld};
    run(pool, &a, isa >= PS_ISA_AVX512 ? ps__swiglu_backward_avx512 : backward_row);
}
