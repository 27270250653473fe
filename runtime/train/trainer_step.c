/* The tasks of a training step, evaluation and generation: see trainer.h. */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

#include "runtime/kernels/elementwise.h"
#include "runtime/kernels/embedding.h"
#include "runtime/train/trainer_internal.h"

#define ROUND_BLOCK ((size_t)65536)

static double now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static struct ps_block_run block_run(const struct ps_trainer *t)
{
    return (struct ps_block_run){
        .cx = &t->cx,
        .n_tok = (size_t)t->batch.n_tok,
        .doc_start = t->batch.doc_start,
        .doc_count = t->batch.doc_count,
        .position = t->batch.position,
        .cos_sin = t->cos_sin,
        .training = t->training,
        .key = {.seed = t->opt.seed, .step = t->step, .micro_batch = (uint32_t)t->micro_idx},
        .accumulate = t->micro_idx > 0,
        .scratch = &t->scratch,
    };
}

/* Layer boundary l: training keeps them all, evaluation passes one buffer through. */
static void *boundary(const struct ps_trainer *t, int32_t l)
{
    return t->x + (t->training ? (size_t)l * t->x_stride : 0);
}

static struct ps_block_saved saved_set(const struct ps_trainer *t, int32_t l)
{
    struct ps_block_saved s;
    bool keep = t->training && !t->opt.recompute;
    ps_block_saved_carve(&s, t->saved + (keep ? (size_t)l * t->saved_stride : 0), &t->block[l],
                         t->opt.dtype, (size_t)t->opt.n_tok_max);
    return s;
}

static int task_embed(void *ctx, const struct ps_task *task)
{
    struct ps_trainer *t = ctx;
    (void)task;
    int32_t i = ps_param_find(&t->params, -1, PS_ROLE_EMBED);
    ps_embedding_forward(t->pool, t->cx.isa, t->weight[i].data, t->weight[i].dtype,
                         (size_t)t->cfg.hidden_size, t->batch.ids, (size_t)t->batch.n_tok,
                         boundary(t, 0), t->cx.dtype);
    return 0;
}

static int task_forward(void *ctx, const struct ps_task *task)
{
    struct ps_trainer *t = ctx;
    struct ps_block_run run = block_run(t);
    struct ps_block_saved saved = saved_set(t, task->unit);
    ps_block_forward(&t->block[task->unit], &run, boundary(t, task->unit),
                     boundary(t, task->unit + 1), &saved);
    return 0;
}

static int task_recompute(void *ctx, const struct ps_task *task)
{
    struct ps_trainer *t = ctx;
    struct ps_block_run run = block_run(t);
    struct ps_block_saved saved = saved_set(t, task->unit);
    ps_block_forward(&t->block[task->unit], &run, boundary(t, task->unit), NULL, &saved);
    return 0;
}

static int task_head(void *ctx, const struct ps_task *task)
{
    struct ps_trainer *t = ctx;
    (void)task;
    struct ps_head_call call = {
        .cx = &t->cx,
        .scratch = &t->head_scratch,
        .n_tok = (size_t)t->batch.n_tok,
        .x = boundary(t, t->cfg.n_layer),
        .target = t->batch.target,
        .dscale = t->dscale,
        .dx = t->training ? t->dx : NULL,
        .accumulate = t->micro_idx > 0,
    };
    int64_t labels;
    t->loss_sum += ps_head_loss(&t->head, &call, &labels);
    t->label_count += labels;
    return 0;
}

static int task_backward(void *ctx, const struct ps_task *task)
{
    struct ps_trainer *t = ctx;
    struct ps_block_run run = block_run(t);
    struct ps_block_saved saved = saved_set(t, task->unit);
    bool need_dx = task->unit > t->shape.first_trained || t->shape.embed_trained;
    ps_block_backward(&t->block[task->unit], &run, boundary(t, task->unit), &saved, t->dx, need_dx);
    return 0;
}

static int task_embed_backward(void *ctx, const struct ps_task *task)
{
    struct ps_trainer *t = ctx;
    (void)task;
    int32_t i = ps_param_find(&t->params, -1, PS_ROLE_EMBED);
    const struct ps_param_info *p = &t->params.param[i];
    /* With a tied head its gradient is already in the buffer. */
    if (t->micro_idx == 0 && !t->cfg.tie_word_embeddings)
        memset(t->grad[i], 0, p->elements * sizeof(float));
    ps_embedding_backward(t->pool, t->cx.isa, t->grad[i], (size_t)t->cfg.hidden_size, t->batch.ids,
                          (size_t)t->batch.n_tok, t->dx, t->cx.dtype);
    return 0;
}

struct round_job {
    float *x;
    size_t n;
};

static void round_block(void *arg, size_t block, int thread_idx)
{
    struct round_job *job = arg;
    (void)thread_idx;
    size_t begin = block * ROUND_BLOCK;
    size_t end = begin + ROUND_BLOCK < job->n ? begin + ROUND_BLOCK : job->n;
    for (size_t i = begin; i < end; i++)
        job->x[i] = ps_bf16_to_f32(ps_f32_to_bf16(job->x[i]));
}

static int task_grad_norm(void *ctx, const struct ps_task *task)
{
    struct ps_trainer *t = ctx;
    bool rounds = t->opt.mode == PS_MODE_FULL && t->opt.dtype == PS_DTYPE_BF16;
    for (size_t i = 0; i < t->trainable_count; i++) {
        struct ps_trainable *x = &t->trainable[i];
        if (x->unit != task->unit)
            continue;
        if (rounds) {
            struct round_job job = {.x = x->grad, .n = x->n};
            ps_pool_run(t->pool, round_block, &job, (x->n + ROUND_BLOCK - 1) / ROUND_BLOCK);
        }
        ps_square_sum(t->pool, t->cx.isa, x->partial, x->grad, PS_DTYPE_F32, x->n);
    }
    return 0;
}

static int task_clip(void *ctx, const struct ps_task *task)
{
    struct ps_trainer *t = ctx;
    (void)task;
    bool finite =
        t->opt.clip(t->partials, t->partial_count, t->opt.max_grad_norm, &t->norm, &t->clip_coef);
    t->skip = !finite || !isfinite(t->loss_sum);
    t->lr = t->opt.lr_at(t->opt.lr_arg, t->updates);
    return 0;
}

static int task_update(void *ctx, const struct ps_task *task)
{
    struct ps_trainer *t = ctx;
    if (t->skip)
        return 0;
    for (size_t i = 0; i < t->trainable_count; i++) {
        struct ps_trainable *x = &t->trainable[i];
        if (x->unit != task->unit)
            continue;
        x->t++;
        struct ps_update u = {.pool = t->pool,
                              .isa = t->cx.isa,
                              .hyper = &t->opt.hyper,
                              .weight = x->weight,
                              .weight_dtype = x->dtype,
                              .remainder = x->remainder,
                              .grad = x->grad,
                              .n = x->n,
                              .t = x->t,
                              .lr = t->lr,
                              .decay = x->decay,
                              .grad_scale = t->clip_coef};
        memcpy(u.state, x->state, sizeof u.state);
        t->opt.optimizer->update(&u);
    }
    return 0;
}

static const ps_task_fn task_fn[PS_TASK_KIND_COUNT] = {
    [PS_TASK_EMBED] = task_embed,
    [PS_TASK_LAYER_FORWARD] = task_forward,
    [PS_TASK_HEAD] = task_head,
    [PS_TASK_LAYER_RECOMPUTE] = task_recompute,
    [PS_TASK_LAYER_BACKWARD] = task_backward,
    [PS_TASK_EMBED_BACKWARD] = task_embed_backward,
    [PS_TASK_GRAD_NORM] = task_grad_norm,
    [PS_TASK_CLIP] = task_clip,
    [PS_TASK_UPDATE] = task_update,
};

int ps_trainer_step(struct ps_trainer *t, struct ps_batcher *b, uint64_t step,
                    struct ps_trainer_stats *stats, struct ps_error *err)
{
    assert(t->committed && ps__trainer_trains(t));
    double start = now_s();
    memset(stats, 0, sizeof *stats);
    ps_batcher_seek(b, step);
    int32_t micros = ps_batcher_micro_count(b);
    int64_t labels = ps_batcher_window_labels(b);
    t->training = true;
    t->step = step;
    t->dscale = labels > 0 ? (float)(1.0 / (double)labels) : 0.0f;
    t->loss_sum = 0;
    t->label_count = 0;
    for (int32_t m = 0; m < micros; m++) {
        double before = now_s();
        ps_batcher_fill(b, m, &t->batch);
        assert(t->batch.n_tok <= t->opt.n_tok_max);
        double filled = now_s();
        stats->data_s += filled - before;
        t->micro_idx = m;
        int ret = ps_executor_run(&t->micro, task_fn, t, NULL);
        if (ret < 0)
            return ps_error_set(err, ret, "step %llu failed", (unsigned long long)step + 1);
        stats->compute_s += now_s() - filled;
        stats->tokens += t->batch.n_tok;
    }
    double computed = now_s();
    int ret = ps_executor_run(&t->update, task_fn, t, NULL);
    if (ret < 0)
        return ps_error_set(err, ret, "the update of step %llu failed",
                            (unsigned long long)step + 1);
    if (!t->skip)
        t->updates++;
    t->training = false;
    double end = now_s();
    stats->update_s = end - computed;
    stats->seconds = end - start;
    stats->loss = t->label_count > 0 ? t->loss_sum / (double)t->label_count : 0;
    stats->labels = t->label_count;
    stats->grad_norm = t->norm;
    stats->clip_coef = t->clip_coef;
    stats->learning_rate = t->lr;
    stats->skipped = t->skip;
    return 0;
}

int ps_trainer_eval(struct ps_trainer *t, struct ps_batcher *b, double *loss_sum, int64_t *labels,
                    int64_t *tokens, struct ps_error *err)
{
    assert(t->committed);
    t->training = false;
    t->loss_sum = 0;
    t->label_count = 0;
    *tokens = 0;
    for (uint64_t step = 0; step < ps_batcher_step_count(b); step++) {
        ps_batcher_seek(b, step);
        for (int32_t m = 0; m < ps_batcher_micro_count(b); m++) {
            ps_batcher_fill(b, m, &t->batch);
            assert(t->batch.n_tok <= t->opt.n_tok_max);
            t->micro_idx = m;
            int ret = ps_executor_run(&t->eval, task_fn, t, NULL);
            if (ret < 0)
                return ps_error_set(err, ret, "the evaluation failed");
            *tokens += t->batch.n_tok;
        }
    }
    *loss_sum = t->loss_sum;
    *labels = t->label_count;
    return 0;
}

static void one_document(struct ps_trainer *t, const int32_t *ids, int32_t n_tok, int32_t first)
{
    assert(n_tok <= t->opt.n_tok_max);
    assert(first + n_tok <= t->opt.position_max);
    t->training = false;
    t->micro_idx = 0;
    t->batch.n_tok = n_tok;
    t->batch.doc_count = 1;
    t->batch.doc_start[0] = 0;
    t->batch.doc_start[1] = n_tok;
    memcpy(t->batch.ids, ids, (size_t)n_tok * sizeof *ids);
    for (int32_t i = 0; i < n_tok; i++)
        t->batch.position[i] = first + i;
}

static int no_head(void *ctx, const struct ps_task *task)
{
    (void)ctx;
    (void)task;
    return 0;
}

int ps_trainer_logits(struct ps_trainer *t, const int32_t *ids, int32_t n_tok,
                      int (*emit)(void *arg, const float *logits, int32_t row_begin, int32_t rows),
                      void *arg)
{
    one_document(t, ids, n_tok, 0);
    ps_task_fn fn[PS_TASK_KIND_COUNT];
    memcpy(fn, task_fn, sizeof fn);
    fn[PS_TASK_HEAD] = no_head;
    int ret = ps_executor_run(&t->eval, fn, t, NULL);
    int32_t chunk = (int32_t)ps_head_chunk_rows(&t->cfg);
    for (int32_t begin = 0; ret >= 0 && begin < n_tok; begin += chunk) {
        int32_t rows = n_tok - begin < chunk ? n_tok - begin : chunk;
        ps_head_logits(&t->head, &t->cx, &t->head_scratch, boundary(t, 0), (size_t)begin,
                       (size_t)rows, t->head_scratch.logits);
        ret = emit(arg, t->head_scratch.logits, begin, rows);
    }
    return ret;
}

const float *ps_trainer_decode(struct ps_trainer *t, const int32_t *ids, int32_t n_tok,
                               int32_t n_past)
{
    assert(n_past + n_tok <= t->opt.cache_tok_max);
    assert(n_past == 0 || n_tok == 1);
    one_document(t, ids, n_tok, n_past);
    task_embed(t, NULL);
    struct ps_block_run run = block_run(t);
    run.n_past = n_past;
    for (int32_t l = 0; l < t->cfg.n_layer; l++) {
        run.k_cache = t->cache + (size_t)(2 * l) * t->cache_stride;
        run.v_cache = t->cache + (size_t)(2 * l + 1) * t->cache_stride;
        struct ps_block_saved saved = saved_set(t, l);
        ps_block_forward(&t->block[l], &run, boundary(t, 0), boundary(t, 0), &saved);
    }
    ps_head_logits(&t->head, &t->cx, &t->head_scratch, boundary(t, 0), (size_t)n_tok - 1, 1,
                   t->decode_logits);
    return t->decode_logits;
}
