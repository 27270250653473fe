/* AdamW: see adamw.h for the formula and the operation sequence that every variant follows. */
#include "optim/adamw.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "optim/adamw_internal.h"
#include "optim/update_lanes_internal.h"
#include "optim/optimizers.h"
#include "optim/weight_io.h"

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

typedef void (*update_fn)(const struct ps_adamw_scalars *, const struct ps_adamw_slice *, size_t,
                          size_t);

static update_fn update_for(enum ps_isa isa)
{
    return isa >= PS_ISA_AVX512 ? ps__adamw_update_avx512
           : isa == PS_ISA_AVX2 ? ps__adamw_update_avx2
                                : ps__adamw_update_portable;
}

void ps_adamw_update(struct ps_pool *pool, enum ps_isa isa, const struct ps_adamw_scalars *s,
                     const struct ps_adamw_slice *slice)
{
    struct job job = {.s = s, .slice = slice, .update = update_for(isa)};
    assert(slice->weight_dtype == PS_DTYPE_F32 || slice->remainder);
    ps_pool_run(pool, run_task, &job, (slice->n + TASK_ELEMS - 1) / TASK_ELEMS);
}

static int adamw_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                        struct ps_opt_layout *out, struct ps_error *err)
{
    (void)tensor;
    (void)err;
    enum ps_dtype dtype = h->state_dtype == PS_DTYPE_BF16 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
    *out = (struct ps_opt_layout){
        .state_count = 2,
        .state = {{.name = "exp_avg", .dtype = dtype, .per = 1},
                  {.name = "exp_avg_sq", .dtype = dtype, .per = 1}},
        .granule = 1,
        .remainder = !h->stochastic_rounding,
    };
    return 0;
}

/* fp32 moments and exact masters: what the kernels take without a detour. */
static bool is_plain(const struct ps_opt_layout *layout)
{
    return layout->remainder && layout->state[0].dtype == PS_DTYPE_F32;
}

static bool adamw_can_on_device(const struct ps_compute *cx, const struct ps_opt_layout *layout)
{
    return cx->k->adamw != NULL && is_plain(layout);
}

/* Rounded weights or moments: a tile at a time in fp32. */
static void update_tile(const struct ps_update *u, const void *arg, size_t at, size_t n)
{
    float w[PS_TILE], g[PS_TILE], m[PS_TILE], v[PS_TILE];
    struct ps_adamw_scalars s = *(const struct ps_adamw_scalars *)arg;
    ps_weight_load(u, at, n, w);
    ps_grad_load(u, at, n, g);
    ps_state_load(u, 0, at, n, m);
    ps_state_load(u, 1, at, n, v);
    s.grad_scale = 1; /* is in g */
    struct ps_adamw_slice slice = {.weight = w,
                                   .grad = g,
                                   .exp_avg = m,
                                   .exp_avg_sq = v,
                                   .weight_dtype = PS_DTYPE_F32,
                                   .grad_dtype = PS_DTYPE_F32,
                                   .n = n};
    update_for(u->isa)(&s, &slice, 0, n);
    ps_weight_store(u, at, n, w);
    ps_state_store(u, 0, at, n, m);
    ps_state_store(u, 1, at, n, v);
}

/* The same update by the device's own kernel. */
static void adamw_on_device(const struct ps_update *u, const struct ps_adamw_scalars *s)
{
    struct ps_adamw_cuda_args a = {.weight = u->weight,
                                   .weight_dtype = u->tensor->dtype,
                                   .remainder = u->remainder,
                                   .grad = u->grad,
                                   .exp_avg = u->state[0],
                                   .exp_avg_sq = u->state[1],
                                   .n = u->n,
                                   .beta1 = s->beta1,
                                   .beta2 = s->beta2,
                                   .one_minus_beta1 = s->one_minus_beta1,
                                   .one_minus_beta2 = s->one_minus_beta2,
                                   .step_size = s->step_size,
                                   .rsqrt_c2 = s->rsqrt_c2,
                                   .eps = s->eps,
                                   .decay = s->decay,
                                   .grad_scale = s->grad_scale};
    u->cx->k->adamw(u->cx, &a);
}

void ps_adamw_step(const struct ps_update *u, uint64_t t)
{
    struct ps_adamw_scalars s;
    const struct ps_optimizer_hyper *h = u->hyper;
    ps_adamw_prepare(&s, u->lr, h->beta1, h->beta2, h->eps, u->decay ? h->weight_decay : 0, t,
                     u->grad_scale);
    if (u->cx && u->cx->k->adamw && is_plain(u->layout)) {
        adamw_on_device(u, &s);
        return;
    }
    if (!is_plain(u->layout) && u->isa >= PS_ISA_AVX512) {
        s.grad_scale = 1; /* the loop has u's */
        ps_update_tiles(u, PS__LANE_TASK, ps__adamw_lanes_avx512, &s);
        return;
    }
    if (!is_plain(u->layout)) {
        ps_update_tiles(u, PS_TILE, update_tile, &s);
        return;
    }
    struct ps_adamw_slice slice = {.weight = u->weight,
                                   .remainder = u->remainder,
                                   .grad = u->grad,
                                   .exp_avg = u->state[0],
                                   .exp_avg_sq = u->state[1],
                                   .weight_dtype = u->tensor->dtype,
                                   .grad_dtype = u->grad_dtype,
                                   .n = u->n};
    ps_adamw_update(u->pool, u->isa, &s, &slice);
}

static int adamw_update(const struct ps_update *u, struct ps_error *err)
{
    (void)err;
    ps_adamw_step(u, u->t);
    return 0;
}

static const struct ps_optimizer_option adamw_options[] = {
    {"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {NULL, 0}};

const struct ps_optimizer_ops ps_adamw_ops = {
    .name = "adamw",
    .options = adamw_options,
    .states = "fp32|bf16",
    .layout = adamw_layout,
    .update = adamw_update,
    .on_device = adamw_can_on_device,
};
