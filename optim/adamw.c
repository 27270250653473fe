/* AdamW: see adamw.h for the formula and the operation sequence that every variant follows. */
#include "optim/adamw.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "optim/adamw_internal.h"

/* Elements of one task. The result does not depend on it: the update is element-wise. */
#define TASK_ELEMS 16384

void ps_adamw_prepare(struct ps_adamw_scalars *out, double lr, double beta1, double beta2,
                      double eps, double weight_decay, uint64_t t, float grad_scale)
{
    assert(t >= 1);
    /* 1 - beta^t without cancellation; log(0) = -Inf gives 1 */
    double c1 = -expm1((double)t * log(beta1));
    double c2 = -expm1((double)t * log(beta2));
    out->beta1 = (float)beta1;
    out->beta2 = (float)beta2;
    out->one_minus_beta1 = (float)(1 - beta1);
    out->one_minus_beta2 = (float)(1 - beta2);
    out->step_size = (float)(lr / c1);
    out->rsqrt_c2 = (float)(1 / sqrt(c2));
    out->eps = (float)eps;
    out->decay = (float)(lr * weight_decay);
    out->grad_scale = grad_scale;
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float ps_master_join(uint16_t weight, uint16_t remainder)
{
    uint32_t hi = (uint16_t)(weight - (remainder >= 0x8000u));
    uint32_t u = hi << 16 | remainder;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

void ps_master_split(float master, uint16_t *weight, uint16_t *remainder)
{
    uint32_t u = bits_of(master);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        /* rounding up could carry a NaN into a zero */
        *weight = (uint16_t)(u >> 16 | 0x40u);
        *remainder = 0;
        return;
    }
    uint16_t lo = (uint16_t)u;
    *weight = (uint16_t)((u >> 16) + (lo >= 0x8000u));
    *remainder = lo;
}

static float update_element(const struct ps_adamw_scalars *s, float p, float g, float *m, float *v)
{
    g = g * s->grad_scale;
    p = fmaf(-s->decay, p, p);
    float m_new = fmaf(s->beta1, *m, s->one_minus_beta1 * g);
    float v_new = fmaf(s->beta2, *v, (s->one_minus_beta2 * g) * g);
    float denominator = fmaf(sqrtf(v_new), s->rsqrt_c2, s->eps);
    *m = m_new;
    *v = v_new;
    return fmaf(-s->step_size, m_new / denominator, p);
}

void ps__adamw_update_portable(const struct ps_adamw_scalars *s, const struct ps_adamw_slice *slice,
                               size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        float g = slice->grad_dtype == PS_DTYPE_F32
                      ? ((const float *)slice->grad)[i]
                      : ps_bf16_to_f32(((const uint16_t *)slice->grad)[i]);
        if (slice->weight_dtype == PS_DTYPE_F32) {
            float *p = (float *)slice->weight + i;
            *p = update_element(s, *p, g, slice->exp_avg + i, slice->exp_avg_sq + i);
        } else {
            uint16_t *hi = (uint16_t *)slice->weight + i, *lo = slice->remainder + i;
            float p = ps_master_join(*hi, *lo);
            p = update_element(s, p, g, slice->exp_avg + i, slice->exp_avg_sq + i);
            ps_master_split(p, hi, lo);
        }
    }
}

struct job {
    const struct ps_adamw_scalars *s;
    const struct ps_adamw_slice *slice;
    void (*update)(const struct ps_adamw_scalars *, const struct ps_adamw_slice *, size_t, size_t);
};

static void run_task(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t begin = task * TASK_ELEMS, left = job->slice->n - begin;
    job->update(job->s, job->slice, begin, begin + (left < TASK_ELEMS ? left : TASK_ELEMS));
}

void ps_adamw_update(struct ps_pool *pool, enum ps_isa isa, const struct ps_adamw_scalars *s,
                     const struct ps_adamw_slice *slice)
{
    struct job job = {.s = s, .slice = slice, .update = ps__adamw_update_portable};
    assert(slice->weight_dtype == PS_DTYPE_F32 || slice->remainder);
    if (isa >= PS_ISA_AVX512)
        job.update = ps__adamw_update_avx512;
    else if (isa == PS_ISA_AVX2)
        job.update = ps__adamw_update_avx2;
    ps_pool_run(pool, run_task, &job, (slice->n + TASK_ELEMS - 1) / TASK_ELEMS);
}
