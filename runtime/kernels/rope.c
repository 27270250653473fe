/* Rotary position embedding: see rope.h. */
#include "runtime/kernels/rope.h"

#include <math.h>

#include "runtime/kernels/fp32_block_internal.h"
#include "runtime/kernels/rope_internal.h"

void ps_rope_table(float *cos_sin, const float *inv_freq, size_t position_count, size_t half)
{
    for (size_t t = 0; t < position_count; t++) {
        float *row = cos_sin + t * 2 * half;
        for (size_t i = 0; i < half; i++) {
            float angle = (float)t * inv_freq[i];
            /* rounded once from double: the fp32 functions differ between C libraries */
            row[i] = (float)cos((double)angle);
            row[half + i] = (float)sin((double)angle);
        }
    }
}

static void rotate_head(void *x, enum ps_dtype dtype, size_t half, const float *cosine,
                        const float *sine, float sign)
{
    float a[PS__BLOCK], b[PS__BLOCK];
    for (size_t j = 0; j < half; j += PS__BLOCK) {
        size_t n = ps__min_size(PS__BLOCK, half - j);
        ps__block_load(a, x, dtype, j, n);
        ps__block_load(b, x, dtype, half + j, n);
        for (size_t i = 0; i < n; i++) {
            float c = cosine[j + i], s = sign * sine[j + i];
            float lo = a[i] * c - b[i] * s;
            b[i] = b[i] * c + a[i] * s;
            a[i] = lo;
        }
        ps__block_store(x, dtype, j, a, n);
        ps__block_store(x, dtype, half + j, b, n);
    }
}

struct job {
    void *x;
    size_t ld, n_tok, n_head, head_dim;
    enum ps_dtype dtype;
    const int32_t *position;
    const float *cos_sin;
    float sign;
    void (*head)(void *, enum ps_dtype, size_t, const float *, const float *, float);
};

static void run_rows(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t rows = ps__task_rows(job->n_head * job->head_dim), half = job->head_dim / 2;
    size_t end = ps__min_size((task + 1) * rows, job->n_tok);
    for (size_t t = task * rows; t < end; t++) {
        const float *cosine = job->cos_sin + (size_t)job->position[t] * job->head_dim;
        for (size_t h = 0; h < job->n_head; h++)
            job->head(ps__at(job->x, job->dtype, t * job->ld + h * job->head_dim), job->dtype, half,
                      cosine, cosine + half, job->sign);
    }
}

void ps_rope_apply(struct ps_pool *pool, enum ps_isa isa, void *x, size_t ld, enum ps_dtype dtype,
                   size_t n_tok, size_t n_head, size_t head_dim, const int32_t *position,
                   const float *cos_sin, int inverse)
{
    struct job job = {.x = x,
                      .ld = ld,
                      .n_tok = n_tok,
                      .n_head = n_head,
                      .head_dim = head_dim,
                      .dtype = dtype,
                      .position = position,
                      .cos_sin = cos_sin,
                      .sign = inverse ? -1.0f : 1.0f,
                      .head = isa >= PS_ISA_AVX512 ? ps__rope_head_avx512 : rotate_head};
    size_t rows = ps__task_rows(n_head * head_dim);
    ps_pool_run(pool, run_rows, &job, (n_tok + rows - 1) / rows);
}
