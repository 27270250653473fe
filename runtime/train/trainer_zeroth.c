/* Methods without gradients: perturbed weights, and a step by forward passes alone. See step.h and
 * optimizer.h (perturb).
 *
 * An image is written from the weights each time and never turned back into them, so the weights
 * are exact whatever the steps that have been taken along the way (adding and taking off again
 * rounds two or three times a step). On discrete devices the host makes the images, from its own
 * copy of what is trained. */
#include <assert.h>
#include <math.h>
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

/* --- images --- */

static unsigned char *image(const struct ps_trainer *t, enum ps_step_buffer b, int32_t pair,
                            int32_t side)
{
    return t->buffer[b] + ps__image_offset(&t->map, pair, side);
}

/* A trained tensor in the image that a task of a micro-batch computes with. */
static unsigned char *moved(const struct ps_trainer *t, const struct ps_task *task, size_t k)
{
    bool own = t->map.image_own_bytes > 0 && t->trainable[k].unit == PS_UNIT_EMBED;
    int32_t pair = own ? t->map.image_pairs : task->arg[PS_ARG_IMAGE];
    return image(t, PS_BUF_PERTURBED, pair, ps__side(&t->layout, task->micro)) +
           t->home[k].weight_offset;
}

void *ps__trainer_moved(const struct ps_trainer *t, const struct ps_task *task, int32_t param_idx)
{
    if (task->arg[PS_ARG_IMAGE] < 0)
        return NULL;
    for (size_t i = 0; t->shape.frozen && i < t->entry_count; i++)
        if (t->entry[i].param_idx == param_idx && t->entry[i].trainable >= 0)
            return moved(t, task, (size_t)t->entry[i].trainable);
    for (size_t k = 0; !t->shape.frozen && k < t->trainable_count; k++)
        if (t->trainable_param[k] == param_idx)
            return moved(t, task, k);
    return NULL;
}

const struct ps_adapter_site *ps__trainer_move_site(const struct ps_trainer *t,
                                                    const struct ps_task *task,
                                                    const struct ps_adapter_site *site,
                                                    struct ps_adapter_site *room)
{
    if (!site || task->arg[PS_ARG_IMAGE] < 0)
        return site;
    *room = *site;
    for (int j = 0; j < site->tensor_count; j++) {
        const struct ps_adapter_entry *e = &t->entry[site->entry[j]];
        assert(e->trainable < 0 || e->unit == task->unit); /* what layers share is not trained */
        if (e->trainable >= 0)
            room->tensor[j] = (void *)moved(t, task, (size_t)e->trainable);
    }
    return room;
}

/* Tensors that are trained in place of, or are, a unit's own. */
static void move_vectors(const struct ps_trainer *t, const struct ps_task *task, struct ps_block *b)
{
    for (size_t k = 0; !t->shape.frozen && k < t->trainable_count; k++)
        if (t->trainable[k].unit == b->layer)
            b->weight[t->params.param[t->trainable_param[k]].role].data = moved(t, task, k);
    for (size_t i = 0; t->shape.frozen && i < t->entry_count; i++) {
        const struct ps_adapter_entry *e = &t->entry[i];
        if (e->unit == b->layer && e->trainable >= 0 && e->param_idx >= 0)
            b->weight[t->params.param[e->param_idx].role].data =
                moved(t, task, (size_t)e->trainable);
    }
}

void ps__trainer_move_block(const struct ps_trainer *t, const struct ps_task *task,
                            struct ps_block *b, struct ps_adapter_site *site)
{
    if (task->arg[PS_ARG_IMAGE] < 0)
        return;
    move_vectors(t, task, b);
    for (int r = 0; r < PS_LINEAR_COUNT; r++)
        b->site[r] = ps__trainer_move_site(t, task, b->site[r], &site[r]);
}

void ps__trainer_move_head(const struct ps_trainer *t, const struct ps_task *task,
                           struct ps_head *head, struct ps_adapter_site *site)
{
    void *norm = ps__trainer_moved(t, task, ps_param_find(&t->params, -1, PS_ROLE_FINAL_NORM));
    void *out = ps__trainer_moved(t, task, ps_param_find(&t->params, -1, PS_ROLE_HEAD));
    head->norm.data = norm ? norm : head->norm.data;
    head->head.data = out ? out : head->head.data;
    head->site = ps__trainer_move_site(t, task, head->site, site);
}

void ps__trainer_perturb(const struct ps_trainer *t, const struct ps_task *task,
                         const struct ps_update *u, uint64_t weight_offset)
{
    enum ps_step_buffer b = t->opt.device->discrete ? PS_BUF_PERTURBED_HOST : PS_BUF_PERTURBED;
    int32_t pair = task->arg[PS_ARG_IMAGE];
    struct ps_update to = *u;
    to.step = t->now.step;
    t->opt.optimizer->perturb_pair(&to, u->weight, image(t, b, pair, 0) + weight_offset,
                                   image(t, b, pair, 1) + weight_offset);
}

static int perturb(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    bool discrete = t->opt.device->discrete;
    (void)err;
    for (size_t k = 0; k < t->trainable_count; k++) {
        const struct ps_trainable *x = discrete ? &t->trainable[k] : &t->trainable_device[k];
        if (x->unit != task->unit)
            continue;
        struct ps_update u = {.pool = discrete ? t->optim_pool : t->pool,
                              .isa = t->cx.isa,
                              .hyper = &t->opt.hyper,
                              .tensor = &x->tensor,
                              .layout = &x->layout,
                              .weight = x->weight,
                              .remainder = x->remainder,
                              .n = x->n};
        ps__trainer_perturb(t, task, &u, t->home[k].weight_offset);
    }
    return 0;
}

static int copy_perturbed(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    int32_t pair = task->arg[PS_ARG_IMAGE];
    size_t bytes = (size_t)ps_step_image_bytes(&t->shape, ps_step_unit_idx(&t->shape, task->unit));
    int ret = 0;
    for (int32_t side = 0; ret == 0 && side < 2; side++)
        ret = ps__trainer_to_device(t, image(t, PS_BUF_PERTURBED, pair, side),
                                    image(t, PS_BUF_PERTURBED_HOST, pair, side), bytes, err);
    return ret;
}

void ps__trainer_zeroth_ops(struct ps_task_ops ops[PS_TASK_KIND_COUNT])
{
    ops[PS_TASK_PERTURB].run = perturb;
    ops[PS_TASK_COPY_PERTURBED].run = copy_perturbed;
}

/* --- a step --- */

/* Sums of a step's losses. */
struct sums {
    double side[2];
    int64_t labels;
};

/* The losses of both halves of the pass that has just run, each in the order of the micro-batches.
 */
static int add_losses(struct ps_trainer *t, struct sums *sums, int32_t count, struct ps_error *err)
{
    int32_t half = t->layout.group / 2;
    for (int32_t i = 0; i < 2 * count; i++) {
        double sum = 0;
        int32_t at = i < count ? i : half + i - count;
        size_t rows = t->extra_host[at].rows;
        const void *from = t->buffer[PS_BUF_LOSS] + (size_t)at * 64;
        if (rows > 0 && t->cx.k->fetch(&t->cx, &sum, from, sizeof sum) < 0)
            return ps_error_set(err, PS_ECUDA, "the losses cannot be read back");
        sums->side[i < count ? 0 : 1] += sum;
        sums->labels += i < count ? (int64_t)rows : 0;
    }
    return 0;
}

/* Micro-batches [begin, begin + count) of the window, in both halves. */
static void fill(struct ps_trainer *t, struct ps_batcher *b, int32_t begin, int32_t count,
                 struct ps_trainer_stats *stats)
{
    int32_t half = t->layout.group / 2;
    for (int32_t i = 0; i < t->layout.group; i++) {
        int32_t micro = i % half;
        int64_t dropped = 0;
        t->batch_host[i].n_tok = t->batch_host[i].doc_count = 0;
        if (micro < count)
            ps_batcher_fill(b, begin + micro, &t->batch_host[i]);
        t->tokens += i < half ? t->batch_host[i].n_tok : 0;
        if (micro < count && t->opt.drop_unlabelled)
            dropped = ps_batch_drop_unlabelled(&t->batch_host[i]);
        stats->dropped += i < half ? dropped : 0;
        ps__trainer_batch_filled(t, i);
    }
    t->present = t->layout.group;
    t->micro_base = begin;
}

static int passes(struct ps_trainer *t, struct ps_batcher *b, struct sums *sums,
                  struct ps_trainer_stats *stats, struct ps_error *err)
{
    int32_t micros = ps_batcher_micro_count(b);
    int32_t half = t->layout.group / 2;
    int ret = 0;
    for (int32_t begin = 0; ret == 0 && begin < micros; begin += half) {
        int32_t count = micros - begin < half ? micros - begin : half;
        double before = now_s(t);
        fill(t, b, begin, count, stats);
        double filled = now_s(t);
        ret = ps__trainer_run_segment(t, PS_SEGMENT_TRAIN, err);
        if (ret == 0)
            ret = add_losses(t, sums, count, err);
        if (ret == 0)
            ps__trainer_pending_done(t);
        stats->data_s += filled - before;
        stats->compute_s += now_s(t) - filled;
    }
    return ret;
}

/* From the losses at both points to the order of the update. */
static void decide(struct ps_trainer *t, const struct sums *sums)
{
    double labels = sums->labels > 0 ? (double)sums->labels : 1;
    double slope = (sums->side[0] / labels - sums->side[1] / labels) / (2 * t->opt.hyper.zo_eps);
    t->loss_sum = (sums->side[0] + sums->side[1]) / 2;
    t->label_count = sums->labels;
    t->norm = fabs(slope);
    t->now.go = isfinite(slope) && isfinite((float)slope);
    t->now.coef = (float)slope;
    ps__trainer_decided(t);
}

int ps__trainer_zeroth_step(struct ps_trainer *t, struct ps_batcher *b, uint64_t step,
                            struct ps_trainer_stats *stats, struct ps_error *err)
{
    double start = now_s(t);
    struct sums sums = {{0, 0}, 0};
    ps__trainer_begin_stats(t, stats);
    ps_batcher_seek(b, step);
    t->training = false; /* dropout would be noise of its own */
    t->head_mode = PS__HEAD_LOSS;
    t->step = step;
    t->tokens = 0;
    t->settled = false;
    ps__trainer_begin_order(t);
    int ret = passes(t, b, &sums, stats, err);
    if (ret < 0)
        return ret;
    double computed = now_s(t);
    decide(t, &sums);
    if (!ps__trainer_streams(t))
        ret = ps_executor_run(t->ex, t->handle[PS_SEGMENT_UPDATE], err);
    if (ret < 0)
        return ret;
    ps__trainer_count_step(t, false);
    ps__trainer_keep_checksums(t);
    double end = now_s(t);
    double labels = sums.labels > 0 ? (double)sums.labels : 1;
    stats->update_s = end - computed;
    stats->seconds = end - start;
    stats->loss = (sums.side[0] / labels + sums.side[1] / labels) / 2;
    stats->tokens = t->tokens;
    stats->clip_coef = 1;
    ps__trainer_end_stats(t, stats);
    return 0;
}
