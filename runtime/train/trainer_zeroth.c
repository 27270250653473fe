/* A step without gradients: the loss at two points along a random direction. See optimizer.h
 * (perturb).
 *
 * The weights that the model computes with are perturbed in place, from a copy of them in the
 * memory of the gradients, which such a method does not need; the copy comes back before the
 * update. The masters' remainders are not touched. */
#include <assert.h>
#include <math.h>
#include <string.h>
#include <time.h>

#include "runtime/device/virtual_clock.h"
#include "runtime/train/trainer_internal.h"

static double now_s(const struct ps_trainer *t)
{
    if (t->opt.vclock)
        return ps_vclock_now_s(t->opt.vclock);
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static struct ps_update update_of(const struct ps_trainer *t, size_t i)
{
    const struct ps_trainable *x = &t->trainable_device[i];
    return (struct ps_update){.pool = t->pool,
                              .isa = t->cx.isa,
                              .hyper = &t->opt.hyper,
                              .tensor = &x->tensor,
                              .layout = &x->layout,
                              .weight = x->weight,
                              .remainder = x->remainder,
                              .n = x->n,
                              .t = t->trainable[i].t + 1,
                              .step = t->updates,
                              .lr = t->now.lr * x->rate,
                              .decay = x->decay,
                              .grad_scale = 1};
}

static size_t weight_bytes(const struct ps_trainable *x)
{
    return x->n * ps_dtype_size(x->dtype);
}

/* Keep the weights in the memory of the gradients, or bring them back. */
static void keep(struct ps_trainer *t, bool back)
{
    for (size_t i = 0; i < t->trainable_count; i++) {
        const struct ps_trainable *x = &t->trainable_device[i];
        memcpy(back ? x->weight : (void *)x->grad, back ? (void *)x->grad : x->weight,
               weight_bytes(x));
    }
}

/* The mean loss `scale` steps away. */
static int loss_at(struct ps_trainer *t, struct ps_batcher *b, double scale, double *loss,
                   struct ps_trainer_stats *stats, struct ps_error *err)
{
    for (size_t i = 0; i < t->trainable_count; i++) {
        struct ps_update u = update_of(t, i);
        t->opt.optimizer->perturb(&u, t->trainable_device[i].grad, scale);
    }
    int ret = ps__trainer_window_loss(t, b, stats, err);
    *loss = t->label_count > 0 ? t->loss_sum / (double)t->label_count : 0;
    return ret;
}

static int update(struct ps_trainer *t, double slope, struct ps_error *err)
{
    for (size_t i = 0; i < t->trainable_count; i++) {
        struct ps_update u = update_of(t, i);
        u.grad_scale = (float)slope;
        int ret = t->opt.optimizer->update(&u, err);
        if (ret < 0)
            return ret;
        t->trainable[i].t++;
    }
    t->updates++;
    return 0;
}

int ps__trainer_zeroth_step(struct ps_trainer *t, struct ps_batcher *b, uint64_t step,
                            struct ps_trainer_stats *stats, struct ps_error *err)
{
    assert(!ps__trainer_streams(t));
    double start = now_s(t), up = 0, down = 0;
    uint64_t read;
    uint64_t written;
    memset(stats, 0, sizeof *stats);
    ps__trainer_io_bytes(t, &read, &written);
    ps_executor_stats_reset(t->ex);
    ps_batcher_seek(b, step);
    t->step = step;
    ps__trainer_begin_order(t);
    keep(t, false);
    int ret = loss_at(t, b, 1, &up, stats, err);
    uint64_t tokens = (uint64_t)stats->tokens;
    if (ret == 0)
        ret = loss_at(t, b, -1, &down, stats, err);
    keep(t, true);
    stats->tokens = (int64_t)tokens; /* the second pass sees the same ones */
    double computed = now_s(t), slope = (up - down) / (2 * t->opt.hyper.zo_eps);
    t->now.go = isfinite(slope) && isfinite((float)slope);
    t->now.coef = 1;
    t->norm = fabs(slope);
    if (ret == 0 && t->now.go)
        ret = update(t, slope, err);
    if (ret < 0)
        return ret;
    double end = now_s(t);
    stats->compute_s = computed - start;
    stats->update_s = end - computed;
    stats->seconds = end - start;
    stats->loss = (up + down) / 2;
    stats->labels = t->label_count;
    stats->grad_norm = t->norm;
    stats->clip_coef = 1;
    stats->learning_rate = t->now.lr;
    stats->skipped = !t->now.go;
    ps_executor_stats(t->ex, stats->lane);
    ps__trainer_io_bytes(t, &stats->read_bytes, &stats->write_bytes);
    stats->read_bytes -= read;
    stats->write_bytes -= written;
    return 0;
}
