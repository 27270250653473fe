/* Adam on projected gradients: see low_rank_adam.h.
 *
 * Design: moments are left to `adamw` and `adamw8bit`, whatever their type. Their T-form is the
 * H-form when eps is taken for eps / sqrt(c2); decay after the step is decay before it with a rate
 * smaller by (1 - lr decay); and R is a tensor of their own to them, whose weight begins as zeros
 * and becomes the direction. Back projections are made some rows at a time, so that scratch stays
 * far below the matrix. */
#include "optim/low_rank_adam.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "optim/lapack.h"
#include "optim/optimizers.h"

#define ALIGN 64
/* Elements of a back projection made at a time. */
#define BACK_ELEMS ((size_t)1 << 20)

static size_t align_up(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t low_count(const struct ps_projector *p)
{
    return p->rank * p->length;
}

static int32_t thread_count(const struct ps_optimizer_hyper *h)
{
    return h->thread_count > 0 ? h->thread_count : 1;
}

static bool rotates(const struct ps_optimizer_hyper *h)
{
    return h->moments == PS_MOMENTS_ROTATE;
}

bool ps_low_rank_projects(const struct ps_opt_tensor *tensor)
{
    return tensor->hidden && tensor->rank == 2;
}

/* ---- memory --------------------------------------------------------------------------------- */

struct carve {
    unsigned char *base;
    size_t used;
};

static void *take(struct carve *c, size_t bytes)
{
    void *at = c->base ? c->base + c->used : NULL;
    c->used += align_up(bytes);
    return at;
}

/* What a refresh needs lies where low, direction and so on come to lie after it. */
struct scratch {
    void *gemm, *refresh;
    float *old_basis;
};

static size_t carve_scratch(const struct ps_low_rank_method *method,
                            const struct ps_optimizer_hyper *h, struct ps_low_rank *l,
                            struct scratch *s, void *workspace)
{
    const struct ps_projector *p = &l->p;
    struct carve c = {.base = workspace};
    size_t basis = p->rank * p->dim * sizeof(float), low = low_count(p) * sizeof(float);
    s->gemm = take(&c, ps_gemm_workspace_bytes(thread_count(h)));
    s->old_basis = take(&c, rotates(h) ? basis : 0);
    l->basis = take(&c, method->random ? basis : 0);
    struct carve r = c;
    s->refresh = take(&r, method->random ? 0 : ps_projector_refresh_bytes(p));
    struct carve turn = c;
    take(&turn, rotates(h) ? p->rank * p->rank * sizeof(float) + low : 0);
    l->low = take(&c, low);
    l->direction = take(&c, low);
    l->back_rows = max_size(1, BACK_ELEMS / p->cols);
    if (l->back_rows > p->rows)
        l->back_rows = p->rows;
    l->back = take(&c, l->back_rows * p->cols * sizeof(float));
    l->channel = take(&c, p->length * sizeof(float));
    l->row_sum = take(&c, p->rows * sizeof(double));
    l->task_sum = take(&c, 2 * (p->length / PS_LOW_RANK_CHANNELS + 1) * sizeof(double));
    return max_size(c.used, max_size(r.used, turn.used));
}

/* ---- Adam ----------------------------------------------------------------------------------- */

static const struct ps_optimizer_ops *inner(const struct ps_optimizer_hyper *h)
{
    return h->state_dtype == PS_DTYPE_U8 ? &ps_adamw8bit_ops : &ps_adamw_ops;
}

/* R as a tensor of its own: fp32, dense. */
static struct ps_opt_tensor low_tensor(const struct ps_projector *p,
                                       const struct ps_opt_tensor *tensor)
{
    struct ps_opt_tensor low = *tensor;
    low.rows = (int64_t)p->rank;
    low.cols = (int64_t)p->length;
    low.n = low_count(p);
    low.dtype = PS_DTYPE_F32;
    return low;
}

int ps_low_rank_layout(const struct ps_low_rank_method *method,
                       const struct ps_optimizer_hyper *hyper, const struct ps_opt_tensor *tensor,
                       const struct ps_opt_state *own, int own_count, struct ps_opt_layout *out,
                       struct ps_error *err)
{
    if (!ps_low_rank_projects(tensor))
        return inner(hyper)->layout(hyper, tensor, out, err);
    struct ps_low_rank l;
    struct scratch s;
    if (rotates(hyper) && hyper->state_dtype != PS_DTYPE_F32)
        return ps_error_full(err, PS_EUSAGE, NULL, "optim-moments",
                             "take --optim-moments keep, or --optim-state fp32",
                             "moments that are rotated must be fp32");
    int ret = ps_projector_plan(hyper, tensor, method->rank, method->update_gap, &l.p, err);
    if (ret == 0 && !method->random && hyper->basis == PS_BASIS_SVD)
        ret = ps_lapack_check(err);
    if (ret < 0)
        return ret;
    struct ps_opt_tensor low = low_tensor(&l.p, tensor);
    ret = inner(hyper)->layout(hyper, &low, out, err);
    if (ret < 0)
        return ret;
    out->granule = 0;
    for (int i = 0; i < out->state_count; i++) {
        struct ps_opt_state *x = &out->state[i];
        x->count = (low.n + x->per - 1) / x->per;
        x->per = 0;
    }
    if (!method->random)
        out->state[out->state_count++] = (struct ps_opt_state){
            .name = "projection", .dtype = PS_DTYPE_F32, .count = l.p.rank * l.p.dim};
    for (int i = 0; i < own_count; i++)
        out->state[out->state_count++] = own[i];
    assert(out->state_count <= PS_OPTIMIZER_STATE_MAX);
    double mn = (double)tensor->n, rank = (double)l.p.rank;
    out->flops = 2 * mn * rank * method->products;
    if (!method->random) /* a share of a refresh: six products of a few vectors more */
        out->flops += 2 * mn * (rank + 8) * 6 / (double)l.p.gap;
    out->workspace_bytes = carve_scratch(method, hyper, &l, &s, NULL);
    return 0;
}

static double c1_of(const struct ps_optimizer_hyper *h, uint64_t t)
{
    return -expm1((double)t * log(h->beta1));
}

static double sqrt_c2_of(const struct ps_optimizer_hyper *h, uint64_t t)
{
    return sqrt(-expm1((double)t * log(h->beta2)));
}

static double decay_of(const struct ps_update *u)
{
    return u->decay ? u->lr * u->hyper->weight_decay : 0;
}

/* H-form by the method that has the T-form. */
static int h_form(struct ps_update *u, uint64_t t, double lr, double decay, struct ps_error *err)
{
    struct ps_optimizer_hyper h = *u->hyper;
    h.eps /= sqrt_c2_of(&h, t);
    h.weight_decay = decay > 0 ? decay / lr : 0;
    u->cx = NULL;
    u->hyper = &h;
    u->t = t;
    u->lr = lr;
    u->decay = decay > 0;
    return inner(&h)->update(u, err);
}

int ps_low_rank_plain(const struct ps_update *u, struct ps_error *err)
{
    struct ps_update plain = *u;
    double decay = decay_of(u);
    return h_form(&plain, u->t, u->lr * (1 - decay), decay, err);
}

/* States of the moments, before those that ps_low_rank_layout adds. */
static int moment_count(const struct ps_update *u)
{
    int count = 0;
    while (count < u->layout->state_count && !strncmp(u->layout->state[count].name, "exp_avg", 7))
        count++;
    return count;
}

/* Updates that the moments have seen since they were zero. */
static uint64_t moment_age(const struct ps_update *u, const struct ps_projector *p)
{
    return u->hyper->moments == PS_MOMENTS_RESET ? ps_projector_age(p, u->t) : u->t;
}

static int refresh(const struct ps_low_rank_method *method, const struct ps_update *u,
                   struct ps_low_rank *l, const struct scratch *s, struct ps_error *err)
{
    const struct ps_projector *p = &l->p;
    l->refreshed = ps_projector_refreshes(p, u->t);
    l->own = moment_count(u);
    if (method->random) {
        ps_projector_random(p, &l->cx, u->t + 1 - ps_projector_age(p, u->t), l->basis);
        return 0;
    }
    l->basis = u->state[l->own++];
    if (!l->refreshed)
        return 0;
    bool turns = rotates(u->hyper) && u->t > 1;
    if (turns)
        memcpy(s->old_basis, l->basis, p->rank * p->dim * sizeof(float));
    int ret =
        ps_projector_refresh(p, &l->cx, u->t, u->grad, u->grad_dtype, l->basis, s->refresh, err);
    if (ret == 0 && turns)
        ps_projector_rotate(p, &l->cx, s->old_basis, l->basis, u->state[0], u->state[1],
                            s->refresh);
    return ret;
}

int ps_low_rank_begin(const struct ps_low_rank_method *method, const struct ps_update *u,
                      struct ps_low_rank *out, struct ps_error *err)
{
    const struct ps_optimizer_hyper *h = u->hyper;
    struct scratch s;
    int ret = ps_projector_plan(h, u->tensor, method->rank, method->update_gap, &out->p, err);
    if (ret < 0)
        return ret;
    assert(u->begin == 0 && u->n == u->tensor->n);
    carve_scratch(method, h, out, &s, u->workspace);
    out->cx = (struct ps_matrix_cx){.pool = u->pool, .isa = u->isa, .gemm_workspace = s.gemm};
    if (ps_pool_thread_count(u->pool) > thread_count(h))
        out->cx.pool = NULL; /* the scratch is for fewer */
    ret = refresh(method, u, out, &s, err);
    if (ret < 0)
        return ret;
    for (int i = 0; h->moments == PS_MOMENTS_RESET && out->refreshed && i < moment_count(u); i++)
        memset(u->state[i], 0, (size_t)ps_opt_state_bytes(&u->layout->state[i], u->n));
    uint64_t age = moment_age(u, &out->p);
    out->rate = u->lr * sqrt_c2_of(h, age) / c1_of(h, age);
    out->decay = (float)decay_of(u);
    ps_projector_project(&out->p, &out->cx, out->basis, u->grad, u->grad_dtype, u->grad_scale,
                         out->low);
    return 0;
}

int ps_low_rank_adam(const struct ps_update *u, const struct ps_low_rank *l, struct ps_error *err)
{
    struct ps_opt_tensor tensor = low_tensor(&l->p, u->tensor);
    struct ps_opt_layout layout;
    struct ps_update low = *u;
    uint64_t age = moment_age(u, &l->p);
    int ret = inner(u->hyper)->layout(u->hyper, &tensor, &layout, err);
    if (ret < 0)
        return ret;
    memset(l->direction, 0, tensor.n * sizeof(float));
    low.tensor = &tensor;
    low.layout = &layout;
    low.n = tensor.n;
    low.weight = l->direction;
    low.remainder = NULL;
    low.grad = l->low;
    low.grad_dtype = PS_DTYPE_F32;
    low.grad_scale = 1; /* is in R */
    /* this rate takes the bias correction out again */
    return h_form(&low, age, c1_of(u->hyper, age) / sqrt_c2_of(u->hyper, age), 0, err);
}
