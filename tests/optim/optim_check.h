/* Shared by the tests of optimizers: a tensor with its states, updated through the registry's entry
 * in slices of any size. Include after cmocka.h. */
#ifndef PS_TESTS_OPTIM_CHECK_H
#define PS_TESTS_OPTIM_CHECK_H

#include "optim/adamw.h"
#include "optim/optimizers.h"
#include "tests/kernels/kernel_check.h"

/* Hyper-parameters as the session sets them when nothing is given. */
static inline struct ps_optimizer_hyper hyper_of(const struct ps_optimizer_ops *ops)
{
    struct ps_optimizer_hyper h = {.seed = 42, .n_layer = 4};
    if (ops->states && !strncmp(ops->states, "8bit", 4))
        h.state_dtype = PS_DTYPE_U8;
    static const struct {
        const char *flag;
        size_t offset;
        char kind;
    } row[] = {
#define ROW(flag, member, kind) {flag, offsetof(struct ps_optimizer_hyper, member), kind}
        ROW("beta1", beta1, 'd'),
        ROW("beta2", beta2, 'd'),
        ROW("eps", eps, 'd'),
        ROW("momentum", momentum, 'd'),
        ROW("dampening", dampening, 'd'),
        ROW("nesterov", nesterov, 'b'),
        ROW("optim-rank", rank, 'i'),
        ROW("optim-update-gap", update_gap, 'i'),
        ROW("optim-scale", scale, 'd'),
        ROW("optim-history", history, 'i'),
        ROW("optim-damping", damping, 'd'),
        ROW("norm-growth-max", norm_growth_max, 'd'),
        ROW("ns-steps", ns_steps, 'i'),
        ROW("aux-lr-ratio", aux_lr_ratio, 'd'),
        ROW("eps2", eps2, 'd'),
        ROW("clip-threshold", clip_threshold, 'd'),
        ROW("decay-rate", decay_rate, 'd'),
        ROW("scale-parameter", scale_parameter, 'b'),
        ROW("relative-step", relative_step, 'b'),
        ROW("warmup-init", warmup_init, 'b'),
        ROW("microadam-window", window, 'i'),
        ROW("microadam-density", density, 'd'),
        ROW("quant-block-size", quant_block, 'i'),
        ROW("lisa-activated-layers", active_layers, 'i'),
        ROW("lisa-interval-steps", interval, 'i'),
        ROW("switch-block-every", interval, 'i'),
        ROW("zo-eps", zo_eps, 'd'),
#undef ROW
    };
    for (const struct ps_optimizer_option *o = ops->options; o && o->flag; o++)
        for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
            if (strcmp(o->flag, row[i].flag) != 0)
                continue;
            void *to = (char *)&h + row[i].offset;
            if (row[i].kind == 'd')
                *(double *)to = o->fallback;
            else if (row[i].kind == 'i')
                *(int32_t *)to = (int32_t)o->fallback;
            else
                *(bool *)to = o->fallback != 0;
        }
    return h;
}

struct subject {
    const struct ps_optimizer_ops *ops;
    struct ps_optimizer_hyper hyper;
    struct ps_opt_tensor tensor;
    struct ps_opt_layout layout;
    struct guarded weight, remainder, grad, state[PS_OPTIMIZER_STATE_MAX];
    unsigned char *workspace;
    uint64_t t;
};

/* A matrix, or a vector when cols is 0, of a middle layer. */
static inline struct ps_opt_tensor tensor_of(int64_t rows, int64_t cols, enum ps_dtype dtype)
{
    return (struct ps_opt_tensor){.name = "x",
                                  .id = 7,
                                  .layer = 1,
                                  .rank = cols ? 2 : 1,
                                  .rows = rows,
                                  .cols = cols ? cols : 1,
                                  .n = (size_t)rows * (size_t)(cols ? cols : 1),
                                  .hidden = cols != 0,
                                  .dtype = dtype};
}

static inline void subject_make(struct subject *s, const struct ps_optimizer_ops *ops,
                                const struct ps_optimizer_hyper *h, struct ps_opt_tensor tensor,
                                double size)
{
    struct ps_error err = {0};
    size_t n = tensor.n;
    memset(s, 0, sizeof *s);
    s->ops = ops;
    s->hyper = *h;
    s->tensor = tensor;
    if (ops->layout(&s->hyper, &s->tensor, &s->layout, &err) != 0)
        fail_msg("%s: %s", ops->name, err.message);
    s->weight = guarded_make(n * ps_dtype_size(tensor.dtype), ps_dtype_size(tensor.dtype));
    s->grad = guarded_make(n * 4, 4);
    if (tensor.dtype == PS_DTYPE_BF16 && s->layout.remainder) {
        s->remainder = guarded_make(n * 2, 2);
        memset(s->remainder.data, 0, n * 2);
    }
    for (int k = 0; k < s->layout.state_count; k++) {
        size_t bytes = (size_t)ps_opt_state_bytes(&s->layout.state[k], n);
        s->state[k] = guarded_make(bytes, ps_dtype_size(s->layout.state[k].dtype));
        memset(s->state[k].data, 0, bytes);
    }
    if (s->layout.workspace_bytes > 0) {
        size_t bytes = ((size_t)s->layout.workspace_bytes + 63) / 64 * 64;
        s->workspace = aligned_alloc(64, bytes);
        assert_non_null(s->workspace);
        memset(s->workspace, 0xff, bytes);
    }
    fill(s->weight.data, tensor.dtype, n, size, tensor.id + 1);
}

static inline void subject_free(struct subject *s)
{
    guarded_free(&s->weight);
    guarded_free(&s->grad);
    if (s->remainder.base)
        guarded_free(&s->remainder);
    for (int k = 0; k < s->layout.state_count; k++)
        guarded_free(&s->state[k]);
    free(s->workspace);
}

static inline double master(const struct subject *s, size_t i)
{
    if (!s->remainder.base)
        return get(s->weight.data, s->tensor.dtype, i);
    uint16_t hi, lo;
    memcpy(&hi, s->weight.data + 2 * i, 2);
    memcpy(&lo, s->remainder.data + 2 * i, 2);
    return (double)ps_master_join(hi, lo);
}

/* One update; `cut` is the size of slices in granules, 0: whole. */
struct how {
    struct ps_pool *pool;
    enum ps_isa isa;
    double lr;
    bool decay;
    float grad_scale;
    size_t cut;
};

static inline void subject_update(struct subject *s, const struct how *how)
{
    struct ps_error err = {0};
    size_t n = s->tensor.n, cut = n;
    if (how->cut > 0 && s->layout.granule > 0)
        cut = how->cut * (size_t)s->layout.granule;
    s->t++;
    for (size_t begin = 0; begin < n; begin += cut) {
        struct ps_update u = {.pool = how->pool,
                              .isa = how->isa,
                              .hyper = &s->hyper,
                              .tensor = &s->tensor,
                              .layout = &s->layout,
                              .begin = begin,
                              .n = n - begin < cut ? n - begin : cut,
                              .weight = s->weight.data + begin * ps_dtype_size(s->tensor.dtype),
                              .grad = s->grad.data + begin * 4,
                              .grad_dtype = PS_DTYPE_F32,
                              .workspace = s->workspace,
                              .t = s->t,
                              .step = s->t - 1,
                              .lr = how->lr,
                              .decay = how->decay,
                              .grad_scale = how->grad_scale > 0 ? how->grad_scale : 1};
        if (s->remainder.base)
            u.remainder = (uint16_t *)(void *)(s->remainder.data + 2 * begin);
        for (int k = 0; k < s->layout.state_count; k++) {
            const struct ps_opt_state *state = &s->layout.state[k];
            size_t at = state->per ? begin / state->per * ps_dtype_size(state->dtype) : 0;
            u.state[k] = s->state[k].data + at;
        }
        if (s->ops->update(&u, &err) != 0)
            fail_msg("%s: %s", s->ops->name, err.message);
    }
}

static inline void assert_same_subject(const struct subject *a, const struct subject *b,
                                       const char *what)
{
    if (memcmp(a->weight.data, b->weight.data, a->weight.bytes) != 0)
        fail_msg("%s, %s: another weight", a->ops->name, what);
    if (a->remainder.base && memcmp(a->remainder.data, b->remainder.data, a->remainder.bytes) != 0)
        fail_msg("%s, %s: another remainder", a->ops->name, what);
    for (int k = 0; k < a->layout.state_count; k++)
        if (memcmp(a->state[k].data, b->state[k].data, a->state[k].bytes) != 0)
            fail_msg("%s, %s: another %s", a->ops->name, what, a->layout.state[k].name);
}

/* The gradients of the golden files: the same formula as in make_optimizers.py. In [-1, 1). */
static inline float golden_value(uint32_t i, uint32_t stream)
{
    uint32_t k = i * 2654435761u + stream * 0x9E3779B9u + 12345u;
    k ^= k >> 16;
    k *= 0x7feb352du;
    k ^= k >> 15;
    k *= 0x846ca68bu;
    k ^= k >> 16;
    return (float)(k >> 8) * 0x1p-23f - 1.0f;
}

static inline float golden_grad(uint32_t i, uint32_t tensor, uint32_t t)
{
    float steady = golden_value(i, 100 + tensor), noise = golden_value(i, 1000 * t + tensor);
    float size = 0x1p-6f * (float)(1u << (i % 7));
    return (steady * 0.5f + noise) * size;
}

#endif
