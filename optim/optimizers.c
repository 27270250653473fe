/* The registry of optimizers: see optimizers.h. */
#include "optim/optimizers.h"

#include <string.h>

#include "optim/adamw.h"

static int adamw_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                        struct ps_opt_layout *out, struct ps_error *err)
{
    (void)tensor;
    (void)err;
    *out = (struct ps_opt_layout){
        .state_count = 2,
        .state = {{.name = "exp_avg", .dtype = PS_DTYPE_F32, .per = 1},
                  {.name = "exp_avg_sq", .dtype = PS_DTYPE_F32, .per = 1}},
        .granule = 1,
        .remainder = !h->stochastic_rounding,
    };
    return 0;
}

static bool adamw_can_on_device(const struct ps_compute *cx, const struct ps_opt_layout *layout)
{
    (void)layout;
    return cx->k->adamw != NULL;
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

static int adamw_update(const struct ps_update *u, struct ps_error *err)
{
    (void)err;
    struct ps_adamw_scalars s;
    const struct ps_optimizer_hyper *h = u->hyper;
    ps_adamw_prepare(&s, u->lr, h->beta1, h->beta2, h->eps, u->decay ? h->weight_decay : 0, u->t,
                     u->grad_scale);
    if (u->cx && u->cx->k->adamw) {
        adamw_on_device(u, &s);
        return 0;
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
    return 0;
}

static const struct ps_optimizer_option adamw_options[] = {
    {"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {NULL, 0}};

const struct ps_optimizer_ops ps_adamw_ops = {
    .name = "adamw",
    .options = adamw_options,
    .layout = adamw_layout,
    .update = adamw_update,
    .on_device = adamw_can_on_device,
};

const struct ps_optimizer_ops *const *ps_optimizers(void)
{
    static const struct ps_optimizer_ops *const all[] = {&ps_adamw_ops, NULL};
    return all;
}

const struct ps_optimizer_ops *ps_optimizer_find(const char *name)
{
    const struct ps_optimizer_ops *const *all = ps_optimizers();
    for (; *all; all++)
        if (strcmp((*all)->name, name) == 0)
            return *all;
    return NULL;
}
