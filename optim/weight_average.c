/* An exponential moving average of the weights, one more fp32 state beside those of any method.
 *
 *   first update of the tensor:  a <- w             w: the fp32 master after the method's update
 *   later:                       a <- d a + (1 - d) w
 *
 * Each operator is rounded once, nothing is fused. Training never reads a; the session writes its
 * result from it. Methods that leave tensors alone at some steps cannot be averaged so (a frozen
 * weight would have to be averaged too); the session refuses them.
 * Source: torch.optim.swa_utils.AveragedModel with get_ema_avg_fn; Polyak and Juditsky 1992. */
#include <assert.h>

#include "optim/optimizers.h"
#include "optim/weight_io.h"

static int average_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                          struct ps_opt_layout *out, struct ps_error *err)
{
    int ret = h->averaged->layout(h, tensor, out, err);
    if (ret < 0)
        return ret;
    assert(out->state_count < PS_OPTIMIZER_STATE_MAX && !h->averaged->active);
    out->state[out->state_count++] =
        (struct ps_opt_state){.name = "ema", .dtype = PS_DTYPE_F32, .per = 1};
    return 0;
}

struct average {
    int state;
    bool first;
    float decay, rest;
};

static void average_tile(const struct ps_update *u, const void *arg, size_t at, size_t n)
{
    const struct average *a = arg;
    float *mean = (float *)u->state[a->state] + at;
    float w[PS_TILE];
    ps_weight_load(u, at, n, w);
    for (size_t i = 0; i < n; i++)
        mean[i] = a->first ? w[i] : a->decay * mean[i] + a->rest * w[i];
}

static int average_update(const struct ps_update *u, struct ps_error *err)
{
    const struct ps_optimizer_hyper *h = u->hyper;
    struct ps_opt_layout own = *u->layout;
    struct ps_update inner = *u;
    own.state_count--;
    inner.layout = &own;
    int ret = h->averaged->update(&inner, err);
    if (ret < 0)
        return ret;
    struct average a = {.state = own.state_count,
                        .first = u->t == 1,
                        .decay = (float)h->ema_decay,
                        .rest = (float)(1 - h->ema_decay)};
    ps_update_tiles(u, PS_TILE, average_tile, &a);
    return 0;
}

static void average_perturb_pair(const struct ps_update *u, const void *from, void *up, void *down)
{
    u->hyper->averaged->perturb_pair(u, from, up, down);
}

static void average_perturb(const struct ps_update *u, const void *from, double scale)
{
    u->hyper->averaged->perturb(u, from, scale);
}

const struct ps_optimizer_ops ps_weight_average_zeroth_ops = {
    .name = "weight average",
    .layout = average_layout,
    .update = average_update,
    .perturb = average_perturb,
    .perturb_pair = average_perturb_pair,
};

const struct ps_optimizer_ops ps_weight_average_ops = {
    .name = "weight average",
    .layout = average_layout,
    .update = average_update,
};
