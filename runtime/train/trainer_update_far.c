/* Updates of tensors that lie in the memory of a CUDA device by a method that has no kernel there:
 * weight, remainder, gradient and states come to the host's mirror, are updated and go back. Right
 * with every method, at the price of these copies in each step. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/checked.h"
#include "runtime/train/trainer_internal.h"

#define WORKSPACE_ALIGN ((size_t)64)

bool ps__trainer_updates_far(const struct ps_trainer *t, const struct ps_opt_layout *layout)
{
    const struct ps_optimizer_ops *o = t->opt.optimizer;
    if (t->shape.zeroth) /* the host's copy is what is perturbed */
        return t->opt.device->discrete && !ps__trainer_streams(t);
    return t->opt.cuda && !ps__trainer_streams(t) &&
           !(o->on_device && o->on_device(&t->cx, layout));
}

int ps__trainer_open_far(struct ps_trainer *t, struct ps_error *err)
{
    size_t bytes = 0;
    bool any = false;
    for (size_t i = 0; ps__trainer_trains(t) && i < t->trainable_count; i++) {
        const struct ps_opt_layout *l = &t->trainable[i].layout;
        if (!ps__trainer_updates_far(t, l))
            continue;
        any = true;
        bytes = l->workspace_bytes > bytes ? (size_t)l->workspace_bytes : bytes;
    }
    if (any && !t->shape.zeroth)
        ps_log(t->opt.log, PS_LOG_INFO,
               "%s has no kernels on the device: tensors are copied to the host and back to be "
               "updated, with %zu MiB of scratch memory there",
               t->opt.optimizer->name, bytes >> 20);
    if (bytes == 0)
        return 0;
    t->far_workspace = aligned_alloc(WORKSPACE_ALIGN, ps_align_up(bytes, WORKSPACE_ALIGN));
    return t->far_workspace ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
}

/* Bytes of a tensor between the device and their mirror. */
static int move(struct ps_trainer *t, void *device, void *host, size_t bytes, bool to_host,
                struct ps_error *err)
{
    const struct ps_device_ops *ops = t->near->ops;
    if (!device || bytes == 0)
        return 0;
    assert(host);
    unsigned char *base = ops->base(t->near);
    unsigned char *seen = ops->map(t->near, base);
    unsigned char *at = base + ((unsigned char *)device - seen);
    return to_host ? ops->copy_d2h(t->near, host, at, bytes, err)
                   : ops->copy_h2d(t->near, at, host, bytes, err);
}

/* All that an update reads, or all that it writes. */
static int move_tensor(struct ps_trainer *t, size_t i, bool to_host, struct ps_error *err)
{
    const struct ps_trainable *x = &t->trainable[i];
    const struct ps_trainable *d = &t->trainable_device[i];
    int ret = move(t, d->weight, x->weight, x->n * ps_dtype_size(x->dtype), to_host, err);
    if (ret == 0)
        ret = move(t, d->remainder, x->remainder, x->n * sizeof(uint16_t), to_host, err);
    if (ret == 0 && to_host)
        ret = move(t, d->grad, x->grad, x->n * sizeof(float), true, err);
    for (int k = 0; ret == 0 && k < x->layout.state_count; k++)
        ret = move(t, d->state[k], x->state[k],
                   (size_t)ps_opt_state_bytes(&x->layout.state[k], x->n), to_host, err);
    return ret;
}

int ps__trainer_update_far(struct ps_trainer *t, size_t i, const struct ps_update *near,
                           struct ps_error *err)
{
    const struct ps_trainable *x = &t->trainable[i];
    struct ps_update u = *near;
    int ret = t->cx.k->finish ? t->cx.k->finish(&t->cx) : 0; /* the gradient is there */
    if (ret < 0)
        return ps_error_set(err, ret, "the device failed before the update of %s", x->name);
    ret = move_tensor(t, i, true, err);
    if (ret < 0)
        return ret;
    u.cx = NULL;
    u.weight = x->weight;
    u.remainder = x->remainder;
    u.grad = x->grad;
    u.workspace = t->far_workspace;
    memcpy(u.state, x->state, sizeof u.state);
    ret = t->opt.optimizer->update(&u, err);
    return ret < 0 ? ret : move_tensor(t, i, false, err);
}
