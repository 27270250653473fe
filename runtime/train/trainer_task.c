/* The tasks that compute: see trainer.h. All addresses here are those of the device's threads. */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/trainer_internal.h"

typedef int (*ps__task_fn)(void *ctx, const struct ps_task *task, struct ps_error *err);

void *ps__trainer_x(const struct ps_trainer *t, int32_t idx)
{
    return idx < 0 ? NULL : t->buffer[PS_BUF_X] + (size_t)idx * t->map.x_stride;
}

static void *dx_of(const struct ps_trainer *t, const struct ps_task *task)
{
    int32_t idx = task->arg[PS_ARG_DX];
    return idx < 0 ? NULL : t->buffer[PS_BUF_DX] + (size_t)idx * t->map.x_stride;
}

/* A window or a group of prompts may lack the last micro-batches of the pass. */
static bool absent(const struct ps_trainer *t, const struct ps_task *task)
{
    return task->micro >= t->present || t->batch[task->micro].n_tok == 0;
}

static bool accumulate(const struct ps_trainer *t, const struct ps_task *task)
{
    return t->micro_base + task->micro > 0;
}

static struct ps_rng_key random_key(const struct ps_trainer *t, const struct ps_task *task)
{
    return (struct ps_rng_key){.seed = t->opt.seed,
                               .step = t->step,
                               .micro_batch = (uint32_t)(t->micro_base + task->micro)};
}

static struct ps_block_run block_run(const struct ps_trainer *t, const struct ps_task *task)
{
    const struct ps_batch *batch = &t->batch[task->micro];
    unsigned char *rope = t->buffer[PS_BUF_ROPE];
    size_t half = (size_t)t->cfg.head_dim / 2;
    struct ps_block_run run = {
        .cx = &t->cx,
        .n_tok = (size_t)batch->n_tok,
        .doc_start = t->opt.cuda ? t->batch_host[task->micro].doc_start : batch->doc_start,
        .doc_count = batch->doc_count,
        .position = batch->position,
        .doc = t->extra[task->micro].doc,
        .cos_sin = (const float *)(rope + ((half * sizeof(float) + 63) & ~(size_t)63)),
        .training = t->training,
        .key = random_key(t, task),
        .accumulate = accumulate(t, task),
        .scratch = &t->scratch,
    };
    if (t->head_mode == PS__HEAD_LAST && !t->training) {
        size_t place = (size_t)task->micro * (size_t)t->cfg.n_layer + (size_t)task->unit;
        unsigned char *cache = t->buffer[PS_BUF_CACHE] + place * ps__page_up(t->shape.cache_bytes);
        run.k_cache = cache;
        run.v_cache = cache + t->cache_half;
        run.n_past = t->n_past[task->micro];
    }
    return run;
}

static struct ps_block_saved saved_set(const struct ps_trainer *t, const struct ps_task *task,
                                       const struct ps_block *b)
{
    struct ps_block_saved s;
    struct ps__saved_place at =
        ps__saved_place(&t->shape, &t->layout, &t->map, task->unit, task->arg[PS_ARG_SAVED]);
    struct ps_block_saved_place place = {.level = at.level,
                                         .kept = t->buffer[PS_BUF_SAVED] + at.kept,
                                         .rest = t->buffer[PS_BUF_SAVED] + at.rest};
    ps_block_saved_carve(&s, &place, b, t->opt.dtype, (size_t)t->opt.n_tok_max);
    return s;
}

static const struct ps_adapter_site *embed_site(const struct ps_trainer *t)
{
    const struct ps_adapter_site *s = &t->site[ps_site_idx(t->cfg.n_layer, -1, PS_ROLE_EMBED)];
    return s->ops ? s : NULL;
}

static struct ps_embed_call embed_call(const struct ps_trainer *t, const struct ps_task *task)
{
    const struct ps_batch *batch = &t->batch[task->micro];
    return (struct ps_embed_call){.cx = &t->cx,
                                  .site = embed_site(t),
                                  .n_tok = (size_t)batch->n_tok,
                                  .ids = batch->ids,
                                  .scratch = t->scratch.adapter,
                                  .accumulate = accumulate(t, task)};
}

/* Rows of the whole table, or of one streamed block of it. The adapter follows the last of them. */
static int task_embed(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    (void)err;
    if (absent(t, task))
        return 0;
    const struct ps_batch *batch = &t->batch[task->micro];
    size_t hidden = (size_t)t->cfg.hidden_size;
    void *out = ps__trainer_x(t, task->arg[PS_ARG_X_OUT]);
    struct ps_embed_call adapter = embed_call(t, task);
    struct ps_adapter_site site;
    adapter.x = out;
    adapter.site = ps__trainer_move_site(t, task, adapter.site, &site);
    int32_t embed = ps_param_find(&t->params, -1, PS_ROLE_EMBED);
    struct ps_weight own = t->vector[embed]; /* trained beside adapters */
    struct ps_weight all = own.data ? own : t->weight[embed];
    void *moved = ps__trainer_moved(t, task, embed);
    if (moved)
        own.data = all.data = moved;
    if (task->arg[PS_ARG_BLOCK] < 0 || (moved && !t->shape.frozen)) {
        t->cx.k->embedding_forward(&t->cx, all.data, all.dtype, hidden, 0, t->cfg.vocab_size,
                                   batch->ids, (size_t)batch->n_tok, out);
        if (adapter.site)
            adapter.site->ops->embed_forward(&adapter);
        return 0;
    }
    const struct ps_unit_source *u = &t->shape.source->unit[task->arg[PS_ARG_BLOCK]];
    if (own.data) {
        const float *from = (const float *)own.data + (size_t)u->row_begin * hidden;
        t->cx.k->embedding_forward(&t->cx, from, own.dtype, hidden, u->row_begin, u->row_end,
                                   batch->ids, (size_t)batch->n_tok, out);
        return 0;
    }
    const struct ps_unit_tensor *x = &u->tensor[0];
    const unsigned char *rows = t->buffer[PS_BUF_SLOTS] +
                                (size_t)task->arg[PS_ARG_SLOT] * t->map.slot_bytes + x->near_offset;
    t->cx.k->embedding_forward(&t->cx, rows, x->near_dtype, hidden, u->row_begin, u->row_end,
                               batch->ids, (size_t)batch->n_tok, out);
    if (adapter.site && u->row_end == t->cfg.vocab_size)
        adapter.site->ops->embed_forward(&adapter);
    return 0;
}

/* Forward, or, without x_out, recomputation. */
static int task_forward(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    (void)err;
    if (absent(t, task))
        return 0;
    struct ps_block b;
    struct ps_adapter_site site[PS_LINEAR_COUNT];
    ps__trainer_block(t, task->unit, task->arg[PS_ARG_SLOT], &b);
    ps__trainer_move_block(t, task, &b, site);
    struct ps_block_run run = block_run(t, task);
    struct ps_block_saved saved = saved_set(t, task, &b);
    ps_block_forward(&b, &run, ps__trainer_x(t, task->arg[PS_ARG_X_IN]),
                     ps__trainer_x(t, task->arg[PS_ARG_X_OUT]), &saved);
    return 0;
}

static int task_backward(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    (void)err;
    if (absent(t, task))
        return 0;
    struct ps_block b;
    ps__trainer_block(t, task->unit, task->arg[PS_ARG_SLOT], &b);
    struct ps_block_run run = block_run(t, task);
    struct ps_block_saved saved = saved_set(t, task, &b);
    ps__trainer_block_grads(t, &b, task->arg[PS_ARG_GRAD]);
    bool need_dx = task->unit > t->shape.first_trained || t->shape.embed_trained;
    ps_block_backward(&b, &run, ps__trainer_x(t, task->arg[PS_ARG_X_IN]), &saved, dx_of(t, task),
                      need_dx);
    return 0;
}

static int task_head(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    (void)err;
    if (absent(t, task) || t->head_mode == PS__HEAD_NOTHING)
        return 0;
    const struct ps_batch *batch = &t->batch[task->micro];
    void *x = ps__trainer_x(t, task->arg[PS_ARG_X_IN]);
    if (t->head_mode == PS__HEAD_LAST && !t->training) {
        float *out = (float *)(t->buffer[PS_BUF_LOGITS] +
                               (size_t)task->micro * ps__page_up(t->shape.logits_bytes));
        ps_head_logits(&t->head, &t->cx, &t->head_scratch, x, (size_t)batch->n_tok - 1, 1, out);
        return 0;
    }
    const struct ps__batch_extra *labels = &t->extra[task->micro];
    struct ps_head head;
    struct ps_adapter_site site;
    ps__trainer_head(t, task->arg[PS_ARG_SLOT], &head);
    ps__trainer_move_head(t, task, &head, &site);
    struct ps_head_call call = {
        .cx = &t->cx,
        .scratch = &t->head_scratch,
        .n_tok = (size_t)batch->n_tok,
        .x = x,
        .row = labels->row,
        .target = labels->target,
        .rows = labels->rows,
        .dscale = t->dscale,
        .dx = t->training ? dx_of(t, task) : NULL,
        .accumulate = accumulate(t, task),
        .training = t->training,
        .key = random_key(t, task),
        .loss = (double *)(void *)(t->buffer[PS_BUF_LOSS] + (size_t)task->micro * 64),
    };
    ps_head_loss(&head, &call);
    return 0;
}

static int task_embed_backward(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    (void)err;
    if (absent(t, task))
        return 0;
    struct ps_embed_call adapter = embed_call(t, task);
    if (adapter.site) {
        adapter.dx = dx_of(t, task);
        adapter.site->ops->embed_backward(&adapter);
        return 0;
    }
    int32_t i = ps_param_find(&t->params, -1, PS_ROLE_EMBED);
    const struct ps_param_info *p = &t->params.param[i];
    const struct ps_batch *batch = &t->batch[task->micro];
    float *grad =
        t->cfg.tie_word_embeddings ? ps__trainer_lookup_part(t->grad[i], p->elements) : t->grad[i];
    if (!accumulate(t, task))
        t->cx.k->zero(&t->cx, grad, p->elements * sizeof(float));
    t->cx.k->embedding_backward(&t->cx, grad, (size_t)t->cfg.hidden_size, batch->ids,
                                (size_t)batch->n_tok, dx_of(t, task));
    return 0;
}

static double *partials(const struct ps_trainer *t)
{
    return (double *)(void *)t->buffer[PS_BUF_NORM];
}

/* Clipping by a tensor's own norm: its share of the whole is 1 / sqrt(tensors). */
static int clip_tensor(struct ps_trainer *t, size_t i)
{
    const struct ps_trainable *x = &t->trainable[i];
    double *part = t->partial_host + x->partial_begin;
    int ret = t->cx.k->fetch(&t->cx, part, partials(t) + x->partial_begin,
                             x->partial_count * sizeof *part);
    double norm;
    double most = t->opt.max_grad_norm / sqrt((double)t->trainable_count);
    if (ret == 0 && !t->opt.clip(part, x->partial_count, most, &norm, &t->tensor_coef[i]))
        t->tensor_coef[i] = 1;
    return ret;
}

static int show_gradient(struct ps_trainer *t, size_t i, const float *grad)
{
    size_t n = t->trainable[i].n;
    float *copy = malloc(n * sizeof *copy);
    if (!copy)
        return -ENOMEM;
    int ret = t->cx.k->fetch(&t->cx, copy, grad, n * sizeof *copy);
    if (ret == 0)
        t->opt.grad_sink(t->opt.grad_sink_arg, i, copy, n);
    free(copy);
    return ret;
}

static int task_grad_norm(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    (void)err;
    bool inside =
        t->opt.clip_mode == PS_CLIP_PER_TENSOR && ps__trainer_streams(t) &&
        ps_step_unit_update(&t->shape, &t->layout, ps_step_unit_idx(&t->shape, task->unit)) ==
            PS_UPDATE_INSIDE;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < t->trainable_count; i++) {
        struct ps_trainable *x = &t->trainable_device[i];
        if (x->unit != task->unit)
            continue;
        float *grad =
            ps__trainer_streams(t) ? ps__trainer_grad(t, i, task->arg[PS_ARG_GRAD]) : x->grad;
        if (ps__trainer_two_parts(t, x)) { /* emptied: another run of this task adds nothing */
            float *lookup = ps__trainer_lookup_part(grad, x->n);
            t->cx.k->add_f32(&t->cx, grad, lookup, x->n);
            t->cx.k->zero(&t->cx, lookup, x->n * sizeof(float));
        }
        if (t->shape.grad_rounds)
            t->cx.k->round_bf16(&t->cx, grad, x->n);
        t->cx.k->square_sum(&t->cx, partials(t) + x->partial_begin, grad, x->n);
        if (inside)
            ret = clip_tensor(t, i);
        if (ret == 0 && t->opt.grad_sink && ps__trainer_streams(t))
            ret = show_gradient(t, i, grad);
    }
    return ret;
}

/* The coefficient of every gradient, from the norm of this step, or of the one before. */
static float coefficient(const struct ps_trainer *t, float exact)
{
    if (t->opt.clip_mode == PS_CLIP_EXACT)
        return exact;
    if (t->opt.clip_mode != PS_CLIP_DELAYED || t->norm_before < 0 || t->opt.max_grad_norm <= 0)
        return 1;
    double coef = t->opt.max_grad_norm / (t->norm_before + 1e-6);
    return coef < 1 ? (float)coef : 1;
}

void ps__trainer_begin_order(struct ps_trainer *t)
{
    t->now = (struct ps__order){.go = false,
                                .coef = coefficient(t, 1),
                                .lr = t->opt.lr_at(t->opt.lr_arg, t->updates),
                                .step = t->updates};
    t->revoked = false;
}

static int task_clip(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    (void)task;
    int ret =
        t->cx.k->fetch(&t->cx, t->partial_host, partials(t), t->partial_count * sizeof(double));
    if (ret == 0 && ps__trainer_streams(t))
        ret = ps__trainer_add_losses(t, err); /* of the last pass, which this task ends */
    if (ret < 0)
        return ret;
    float exact;
    bool finite =
        t->opt.clip(t->partial_host, t->partial_count, t->opt.max_grad_norm, &t->norm, &exact);
    t->now.go = finite && isfinite(t->loss_sum);
    t->now.coef = coefficient(t, exact);
    for (size_t i = 0;
         ret == 0 && t->opt.clip_mode == PS_CLIP_PER_TENSOR && t->now.go && i < t->trainable_count;
         i++)
        ret = clip_tensor(t, i);
    bool early = t->layout.update == PS_UPDATE_INSIDE && ps__trainer_streams(t);
    t->revoked =
        early && (!t->now.go || (t->opt.clip_mode == PS_CLIP_EXACT && t->now.coef != 1.0f));
    if (ret == 0)
        ps__trainer_decided(t);
    return ret;
}

static int task_update(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    if (!t->now.go)
        return 0;
    for (size_t i = 0; i < t->trainable_count; i++) {
        const struct ps_trainable *x = &t->trainable_device[i];
        if (x->unit != task->unit)
            continue;
        if (t->opt.optimizer->active &&
            !t->opt.optimizer->active(&t->opt.hyper, &x->tensor, t->now.step))
            continue;
        struct ps_update u = {
            .cx = &t->cx,
            .pool = t->pool,
            .isa = t->cx.isa,
            .hyper = &t->opt.hyper,
            .tensor = &x->tensor,
            .layout = &x->layout,
            .weight = x->weight,
            .remainder = x->remainder,
            .grad = x->grad,
            .grad_dtype = PS_DTYPE_F32,
            .n = x->n,
            .workspace = t->buffer[PS_BUF_WORKSPACE],
            .t = t->trainable[i].t + 1,
            .step = t->now.step,
            .lr = t->now.lr * x->rate,
            .decay = x->decay,
            .grad_scale = t->opt.clip_mode == PS_CLIP_PER_TENSOR ? t->tensor_coef[i] : t->now.coef};
        memcpy(u.state, x->state, sizeof u.state);
        int ret = ps__trainer_updates_far(t, &x->layout) ? ps__trainer_update_far(t, i, &u, err)
                                                         : t->opt.optimizer->update(&u, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* What a task launches on a device's queue the executor waits for; what could not be launched is a
 * fault. */
static int launched(struct ps_trainer *t, const struct ps_task *task, struct ps_error *err)
{
    int ret = t->cx.fault ? *t->cx.fault : 0;
    if (ret == 0)
        return 0;
    return ps_error_full(err, ret, NULL, NULL, "see --gpu-mem, and the driver's log (dmesg)",
                         "the device failed in %s of unit %d: %s", ps_task_kind_name(task->kind),
                         task->unit,
                         t->opt.cuda ? t->opt.cuda->fault_text(&t->cx) : ps_status_text(ret));
}

static int run_task(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    static const ps__task_fn fn[PS_TASK_KIND_COUNT] = {
        [PS_TASK_EMBED] = task_embed,
        [PS_TASK_LAYER_FORWARD] = task_forward,
        [PS_TASK_LAYER_RECOMPUTE] = task_forward,
        [PS_TASK_LAYER_BACKWARD] = task_backward,
        [PS_TASK_HEAD] = task_head,
        [PS_TASK_EMBED_BACKWARD] = task_embed_backward,
        [PS_TASK_GRAD_NORM] = task_grad_norm,
        [PS_TASK_CLIP] = task_clip,
        [PS_TASK_UPDATE] = task_update,
    };
    int ret = fn[task->kind](ctx, task, err);
    return ret < 0 ? ret : launched(ctx, task, err);
}

void ps__trainer_task_ops(struct ps_task_ops ops[PS_TASK_KIND_COUNT])
{
    for (int kind = PS_TASK_EMBED; kind <= PS_TASK_UPDATE; kind++)
        ops[kind].run = run_task;
}
