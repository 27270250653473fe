/* The registry of optimizers: see optimizers.h. */
#include "optim/optimizers.h"

#include <string.h>

#include "optim/adamw.h"

static size_t adamw_state_bytes(int state_idx, size_t n)
{
    (void)state_idx;
    return n * sizeof(float);
}

static void adamw_update(const struct ps_update *u)
{
    struct ps_adamw_scalars s;
    const struct ps_optimizer_hyper *h = u->hyper;
    ps_adamw_prepare(&s, u->lr, h->beta1, h->beta2, h->eps, u->decay ? h->weight_decay : 0, u->t,
                     u->grad_scale);
    struct ps_adamw_slice slice = {.weight = u->weight,
                                   .remainder = u->remainder,
                                   .grad = u->grad,
                                   .exp_avg = u->state[0],
                                   .exp_avg_sq = u->state[1],
                                   .weight_dtype = u->weight_dtype,
                                   .grad_dtype = PS_DTYPE_F32,
                                   .n = u->n};
    ps_adamw_update(u->pool, u->isa, &s, &slice);
}

const struct ps_optimizer_ops ps_adamw_ops = {
    .name = "adamw",
    .state_count = 2,
    .state_name = {"exp_avg", "exp_avg_sq"},
    .state_bytes = adamw_state_bytes,
    .update = adamw_update,
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
