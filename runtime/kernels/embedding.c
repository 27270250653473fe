/* Token embedding: see embedding.h. */
#include "runtime/kernels/embedding.h"

#include <string.h>

#include "runtime/kernels/elementwise_internal.h"
#include "runtime/kernels/embedding_internal.h"
#include "runtime/kernels/fp32_block_internal.h"

/* Columns of one task of the backward pass, and tokens between a prefetch and its use: the rows of
 * the table come in no order that hardware could foresee. */
#define COLUMNS 256
#define TOKENS_AHEAD 4

struct job {
    enum ps_isa isa;
    const void *table;
    enum ps_dtype table_dtype, dtype;
    size_t n, n_tok;
    int64_t row_begin, row_end;
    const int32_t *ids;
    void *y;
    float *dtable;
    const void *dy;
    void (*add)(float *, const void *, enum ps_dtype, size_t, size_t);
};

static void run_forward(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t rows = ps__task_rows(job->n);
    size_t end = ps__min_size((task + 1) * rows, job->n_tok);
    for (size_t t = task * rows; t < end; t++) {
        int64_t id = job->ids[t];
        if (id < job->row_begin || id >= job->row_end)
            continue;
        size_t row = (size_t)(id - job->row_begin);
        ps__convert(job->isa, ps__at(job->y, job->dtype, t * job->n), job->dtype,
                    ps__const_at(job->table, job->table_dtype, row * job->n), job->table_dtype,
                    job->n);
    }
}

void ps_embedding_forward(struct ps_pool *pool, enum ps_isa isa, const void *table,
                          enum ps_dtype table_dtype, size_t n, int64_t row_begin, int64_t row_end,
                          const int32_t *ids, size_t n_tok, void *y, enum ps_dtype dtype)
{
    struct job job = {.isa = isa,
                      .table = table,
                      .table_dtype = table_dtype,
                      .dtype = dtype,
                      .n = n,
                      .n_tok = n_tok,
                      .row_begin = row_begin,
                      .row_end = row_end,
                      .ids = ids,
                      .y = y};
    size_t rows = ps__task_rows(n);
    ps_pool_run(pool, run_forward, &job, (n_tok + rows - 1) / rows);
}

static void add_row(float *dst, const void *dy, enum ps_dtype dtype, size_t at, size_t n)
{
    float v[PS__BLOCK];
    for (size_t j = 0; j < n; j += PS__BLOCK) {
        size_t m = ps__min_size(PS__BLOCK, n - j);
        ps__block_load(v, dy, dtype, at + j, m);
        for (size_t i = 0; i < m; i++)
            dst[j + i] += v[i];
    }
}

static void prefetch(const void *p, size_t bytes)
{
    for (size_t b = 0; b < bytes; b += 64)
        __builtin_prefetch((const unsigned char *)p + b);
}

static void run_backward(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t j = task * COLUMNS, n = ps__min_size(COLUMNS, job->n - j);
    for (size_t t = 0; t < job->n_tok; t++) {
        size_t ahead = ps__min_size(t + TOKENS_AHEAD, job->n_tok - 1);
        prefetch(job->dtable + (size_t)job->ids[ahead] * job->n + j, n * sizeof(float));
        prefetch(ps__const_at(job->dy, job->dtype, ahead * job->n + j),
                 n * ps_dtype_size(job->dtype));
        job->add(job->dtable + (size_t)job->ids[t] * job->n + j, job->dy, job->dtype,
                 t * job->n + j, n);
    }
}

void ps_embedding_backward(struct ps_pool *pool, enum ps_isa isa, float *dtable, size_t n,
                           const int32_t *ids, size_t n_tok, const void *dy, enum ps_dtype dtype)
{
    struct job job = {.dtype = dtype, .n = n, .n_tok = n_tok, .ids = ids};
    job.dtable = dtable;
    job.dy = dy;
    job.add = isa >= PS_ISA_AVX512 ? ps__embedding_add_avx512 : add_row;
    ps_pool_run(pool, run_backward, &job, (n + COLUMNS - 1) / COLUMNS);
}
