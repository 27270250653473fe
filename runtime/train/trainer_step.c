/* A training step, evaluation and generation as runs of segments: see trainer.h. */
#include <assert.h>
#include <errno.h>
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

/* What fill has put into the host's batch, told to the one that the device's threads see. */
void ps__trainer_batch_filled(struct ps_trainer *t, int32_t i)
{
    const struct ps_batch *h = &t->batch_host[i];
    assert(h->n_tok <= t->opt.n_tok_max);
    struct ps__batch_extra *e = &t->extra_host[i];
    e->rows = 0;
    for (int32_t k = 0; k < h->n_tok && t->head_mode == PS__HEAD_LOSS; k++)
        if (h->target[k] >= 0) {
            e->row[e->rows] = k;
            e->target[e->rows++] = h->target[k];
        }
    for (int32_t d = 0; d < h->doc_count; d++)
        for (int32_t k = h->doc_start[d]; k < h->doc_start[d + 1]; k++) {
            e->doc[2 * k] = h->doc_start[d];
            e->doc[2 * k + 1] = h->doc_start[d + 1];
        }
    t->extra[i].rows = e->rows;
    t->batch[i].n_tok = h->n_tok;
    t->batch[i].doc_count = h->doc_count;
    t->batch[i].label_count = h->label_count;
}

/* Make the slots hold what a segment expects. Inner and last passes expect the same. */
static int enter(struct ps_trainer *t, enum ps_segment segment, struct ps_error *err)
{
    if (t->loaded == segment)
        return 0;
    int ret = ps_executor_drain(t->ex, err);
    if (ret < 0)
        return ret;
    bool train = segment == PS_SEGMENT_TRAIN || segment == PS_SEGMENT_TRAIN_INNER;
    bool there = train && (t->loaded == PS_SEGMENT_TRAIN || t->loaded == PS_SEGMENT_TRAIN_INNER);
    enum ps_segment prologue = train ? PS_SEGMENT_PROLOGUE_TRAIN : PS_SEGMENT_PROLOGUE_EVAL;
    t->loaded = PS_SEGMENT_COUNT;
    ps_executor_restart(t->ex, t->handle[segment]);
    ps_executor_restart(t->ex, t->handle[prologue]);
    if (!there && t->segment[prologue].task_count > 0)
        ret = ps_executor_run(t->ex, t->handle[prologue], err);
    if (ret == 0)
        t->loaded = segment;
    return ret;
}

int ps__trainer_run_segment(struct ps_trainer *t, enum ps_segment segment, struct ps_error *err)
{
    int ret = enter(t, segment, err);
    return ret < 0 ? ret : ps_executor_run(t->ex, t->handle[segment], err);
}

/* --- streamed updates --- */

/* Tensors that the update `o` has changed have one more behind them. at_once: those that are not
 * deferred; later: those that are. */
static void count_updates(struct ps_trainer *t, const struct ps__order *o, bool at_once, bool later)
{
    for (size_t i = 0; i < t->trainable_count; i++) {
        int32_t unit_idx = ps_step_unit_idx(&t->shape, t->trainable[i].unit);
        bool deferred =
            ps_step_unit_update(&t->shape, &t->layout, unit_idx) == PS_UPDATE_NEXT_FORWARD;
        if ((deferred ? later : at_once) &&
            (!t->opt.optimizer->active ||
             t->opt.optimizer->active(&t->opt.hyper, &t->trainable[i].tensor, o->step)))
            t->trainable[i].t++;
    }
}

void ps__trainer_decided(struct ps_trainer *t)
{
    if (!ps__trainer_streams(t) || !t->map.commits)
        return;
    struct ps_run_point p = {.step = t->step,
                             .updates = t->updates + (t->now.go ? 1 : 0),
                             .tokens = t->tokens,
                             .labels = t->label_count,
                             .loss = t->label_count > 0 ? t->loss_sum / (double)t->label_count : 0,
                             .grad_norm = t->norm,
                             .learning_rate = t->now.lr,
                             .clip_coef = t->now.coef,
                             .skipped = !t->now.go};
    if (t->opt.run_state)
        t->run_state_bytes =
            t->opt.run_state(t->opt.run_state_arg, &p, t->run_state, PS_TRAINER_RUN_STATE_MAX);
    t->commit_due = !t->revoked;
}

/* All updates by themselves; the slots hold anything afterwards. */
static int update_all(struct ps_trainer *t, struct ps_error *err)
{
    t->redoing = true;
    int ret = ps_executor_run(t->ex, t->handle[PS_SEGMENT_UPDATE], err);
    if (ret == 0)
        ret = ps_executor_drain(t->ex, err);
    t->redoing = false;
    t->loaded = PS_SEGMENT_COUNT;
    return ret;
}

/* Updates inside the backward pass went by a wrong coefficient, or should not have been: take the
 * copies from before, and do the step's update again where there is one. */
static int revoke(struct ps_trainer *t, struct ps_trainer_stats *stats, struct ps_error *err)
{
    int ret = ps_executor_drain(t->ex, err);
    if (ret < 0)
        return ret;
    uint64_t read;
    uint64_t written;
    ps__trainer_io_bytes(t, &read, &written);
    stats->redo_bytes -= read + written;
    t->store->ops->revert(t->store);
    t->loaded = PS_SEGMENT_COUNT;
    t->revoked = false;
    t->commit_due = true;
    ret = ps__trainer_store_reload_pinned(t, err);
    if (ret == 0 && t->now.go)
        ret = update_all(t, err);
    if (ret == 0 && t->commit_due) {
        t->commit_due = false;
        ret = t->store->ops->commit(t->store, t->run_state, t->run_state_bytes, err);
    }
    ps__trainer_io_bytes(t, &read, &written);
    stats->redo_bytes += read + written;
    return ret;
}

void ps__trainer_pending_done(struct ps_trainer *t)
{
    if (!t->pending)
        return;
    count_updates(t, &t->pending_order, false, true);
    t->pending = false;
}

/* Bytes since the mark, which moves here. */
static void bytes_since(struct ps_trainer *t, uint64_t bytes[2])
{
    uint64_t now[2];
    ps__trainer_io_bytes(t, &now[0], &now[1]);
    for (int i = 0; i < 2; i++) {
        bytes[i] = now[i] - t->io_mark[i];
        t->io_mark[i] = now[i];
    }
}

void ps_trainer_rest_bytes(struct ps_trainer *t, uint64_t *read, uint64_t *written)
{
    uint64_t bytes[2] = {0};
    if (!t->settled)
        bytes_since(t, bytes);
    *read = t->io_rest[0] + bytes[0];
    *written = t->io_rest[1] + bytes[1];
    t->io_rest[0] = t->io_rest[1] = 0;
}

int ps_trainer_settle(struct ps_trainer *t, struct ps_error *err)
{
    int ret = t->ex ? ps_executor_drain(t->ex, err) : 0;
    bool stepped = !t->settled;
    if (stepped)
        t->held_weight = t->held_state = 0; /* a step may have written since */
    t->settled = true;
    if (ret == 0 && t->pending) {
        ret = update_all(t, err);
        if (ret == 0)
            ps__trainer_pending_done(t);
    }
    if (stepped) {
        uint64_t bytes[2];
        bytes_since(t, bytes);
        t->io_rest[0] += bytes[0];
        t->io_rest[1] += bytes[1];
    }
    return ret;
}

/* The step stands whether that succeeds or not. */
void ps__trainer_keep_checksums(struct ps_trainer *t)
{
    const char *path = t->opt.io.checksum_path;
    struct ps_error err = {0};
    if (!path || t->checksums_kept || !t->unit_seen || t->opt.io.moves_nothing)
        return;
    t->checksums_kept = true;
    int ret = ps_executor_drain(t->ex, &err);
    if (ret == 0)
        ret = ps_unit_checksums_save(&t->source, t->files, path, &err);
    if (ret < 0)
        ps_log(t->opt.log, PS_LOG_WARN, "the checksums of the model are not kept: %s", err.message);
}

/* The losses of the pass that has just run, in the order of the micro-batches. */
int ps__trainer_add_losses(struct ps_trainer *t, struct ps_error *err)
{
    for (int32_t i = 0; i < t->present; i++) {
        double sum = 0;
        size_t rows = t->extra_host[i].rows;
        const void *at = t->buffer[PS_BUF_LOSS] + (size_t)i * 64;
        if (rows > 0 && t->cx.k->fetch(&t->cx, &sum, at, sizeof sum) < 0)
            return ps_error_set(err, PS_ECUDA, "the losses cannot be read back");
        t->loss_sum += sum;
        t->label_count += (int64_t)rows;
    }
    return 0;
}

static int train_passes(struct ps_trainer *t, struct ps_batcher *b, struct ps_trainer_stats *stats,
                        struct ps_error *err)
{
    int32_t micros = ps_batcher_micro_count(b);
    assert(micros <= (t->opt.micro_max > 0 ? t->opt.micro_max : micros));
    bool streams = ps__trainer_streams(t);
    bool first_inner = streams && t->map.several_passes && t->layout.group < micros;
    int ret = enter(t, first_inner ? PS_SEGMENT_TRAIN_INNER : PS_SEGMENT_TRAIN, err);
    for (int32_t begin = 0; ret == 0 && begin < micros; begin += t->layout.group) {
        double before = now_s(t);
        t->micro_base = begin;
        t->present = micros - begin < t->layout.group ? micros - begin : t->layout.group;
        for (int32_t i = 0; i < t->present; i++) {
            ps_batcher_fill(b, begin + i, &t->batch_host[i]);
            stats->tokens += t->batch_host[i].n_tok;
            t->tokens += t->batch_host[i].n_tok;
            if (t->opt.drop_unlabelled)
                stats->dropped += ps_batch_drop_unlabelled(&t->batch_host[i]);
            ps__trainer_batch_filled(t, i);
        }
        double filled = now_s(t);
        stats->data_s += filled - before;
        bool inner = streams && t->map.several_passes && begin + t->layout.group < micros;
        ret = ps__trainer_run_segment(t, inner ? PS_SEGMENT_TRAIN_INNER : PS_SEGMENT_TRAIN, err);
        if (ret == 0 && (!streams || inner))
            ret = ps__trainer_add_losses(t, err);
        if (ret == 0)
            ps__trainer_pending_done(t);
        stats->compute_s += now_s(t) - filled;
    }
    return ret;
}

void ps__trainer_count_step(struct ps_trainer *t, bool redone)
{
    if (!t->now.go)
        return;
    t->updates++;
    t->norm_before = t->norm;
    t->pending = ps__trainer_streams(t) && ps_step_defers(&t->layout) && !redone;
    t->pending_order = t->now;
    count_updates(t, &t->now, true, !t->pending);
}

void ps__trainer_begin_stats(struct ps_trainer *t, struct ps_trainer_stats *stats)
{
    uint64_t bytes[2];
    memset(stats, 0, sizeof *stats);
    if (t->settled) /* since then they were not for a step */
        bytes_since(t, bytes);
    ps_executor_stats_reset(t->ex);
}

void ps__trainer_end_stats(struct ps_trainer *t, struct ps_trainer_stats *stats)
{
    uint64_t bytes[2];
    stats->labels = t->label_count;
    stats->grad_norm = t->norm;
    stats->learning_rate = t->now.lr;
    stats->skipped = !t->now.go;
    ps_executor_stats(t->ex, stats->lane);
    bytes_since(t, bytes);
    stats->read_bytes = bytes[0] + t->io_rest[0];
    stats->write_bytes = bytes[1] + t->io_rest[1];
    t->io_rest[0] = t->io_rest[1] = 0;
}

int ps_trainer_step(struct ps_trainer *t, struct ps_batcher *b, uint64_t step,
                    struct ps_trainer_stats *stats, struct ps_error *err)
{
    assert(t->committed && ps__trainer_trains(t));
    if (t->opt.optimizer->perturb)
        return ps__trainer_zeroth_step(t, b, step, stats, err);
    double start = now_s(t);
    ps__trainer_begin_stats(t, stats);
    ps_batcher_seek(b, step);
    int64_t labels = ps_batcher_window_labels(b);
    t->training = true;
    t->head_mode = PS__HEAD_LOSS;
    t->step = step;
    t->dscale = labels > 0 ? (float)(1.0 / (double)labels) : 0.0f;
    t->loss_sum = 0;
    t->label_count = 0;
    t->tokens = 0;
    ps__trainer_begin_order(t);
    t->settled = false;
    int ret = train_passes(t, b, stats, err);
    if (ret < 0)
        return ret;
    double computed = now_s(t);
    bool redone = ps__trainer_streams(t) && t->revoked;
    if (!ps__trainer_streams(t))
        ret = ps_executor_run(t->ex, t->handle[PS_SEGMENT_UPDATE], err);
    else if (redone)
        ret = revoke(t, stats, err);
    if (ret < 0)
        return ret;
    ps__trainer_count_step(t, redone);
    t->training = false;
    ps__trainer_keep_checksums(t);
    double end = now_s(t);
    stats->update_s = end - computed;
    stats->seconds = end - start;
    stats->loss = t->label_count > 0 ? t->loss_sum / (double)t->label_count : 0;
    stats->clip_coef = t->now.coef;
    ps__trainer_end_stats(t, stats);
    return ret;
}

/* Windows of one micro-batch each, as many as a pass takes at a time. */
int ps_trainer_eval(struct ps_trainer *t, struct ps_batcher *b, double *loss_sum, int64_t *labels,
                    int64_t *tokens, struct ps_error *err)
{
    assert(t->committed);
    int settled = ps_trainer_settle(t, err);
    if (settled < 0)
        return settled;
    t->training = false;
    t->head_mode = PS__HEAD_LOSS;
    t->loss_sum = 0;
    t->label_count = 0;
    t->micro_base = 0;
    *tokens = 0;
    int ret = 0;
    int32_t count = 0;
    uint64_t steps = ps_batcher_step_count(b);
    for (uint64_t step = 0; ret == 0 && step < steps; step++) {
        ps_batcher_seek(b, step);
        for (int32_t m = 0; ret == 0 && m < ps_batcher_micro_count(b); m++) {
            ps_batcher_fill(b, m, &t->batch_host[count]);
            ps__trainer_batch_filled(t, count);
            *tokens += t->batch[count++].n_tok;
            bool last = step + 1 == steps && m + 1 == ps_batcher_micro_count(b);
            if (count < t->layout.eval_group && !last)
                continue;
            t->present = count;
            count = 0;
            ret = ps__trainer_run_segment(t, PS_SEGMENT_EVAL, err);
            if (ret == 0)
                ret = ps__trainer_add_losses(t, err);
        }
    }
    *loss_sum = t->loss_sum;
    *labels = t->label_count;
    return ret;
}

int32_t ps_trainer_seq_max(const struct ps_trainer *t)
{
    return t->layout.eval_group;
}

static void one_document(struct ps_trainer *t, int32_t place, const struct ps_trainer_seq *seq)
{
    struct ps_batch *b = &t->batch_host[place];
    assert(seq->n_tok <= t->opt.n_tok_max);
    assert(seq->n_past + seq->n_tok <= t->opt.position_max);
    b->n_tok = seq->n_tok;
    b->doc_count = 1;
    b->doc_start[0] = 0;
    b->doc_start[1] = seq->n_tok;
    if (seq->n_tok > 0)
        memcpy(b->ids, seq->ids, (size_t)seq->n_tok * sizeof *seq->ids);
    for (int32_t i = 0; i < seq->n_tok; i++)
        b->position[i] = seq->n_past + i;
    t->n_past[place] = seq->n_past;
    ps__trainer_batch_filled(t, place);
}

static int forward_pass(struct ps_trainer *t, const struct ps_trainer_seq *seq, int32_t count,
                        enum ps__head_mode mode, struct ps_error *err)
{
    assert(t->committed && count <= t->layout.eval_group);
    int settled = ps_trainer_settle(t, err);
    if (settled < 0)
        return settled;
    t->training = false;
    t->head_mode = mode;
    t->micro_base = 0;
    t->present = count;
    for (int32_t i = 0; i < count; i++)
        one_document(t, i, &seq[i]);
    return ps__trainer_run_segment(t, PS_SEGMENT_EVAL, err);
}

typedef int (*emit_fn)(void *arg, int32_t seq, const float *logits, int32_t row_begin,
                       int32_t rows);

/* Hand out the chunk of logits that has been computed, row by row where the host cannot read it. */
static int emit_rows(struct ps_trainer *t, int32_t seq, int32_t begin, int32_t rows, emit_fn emit,
                     void *arg)
{
    size_t vocab = (size_t)t->cfg.vocab_size;
    if (!t->row_host)
        return emit(arg, seq, t->head_scratch.logits, begin, rows);
    int ret = 0;
    for (int32_t r = 0; ret >= 0 && r < rows; r++) {
        ret = t->cx.k->fetch(&t->cx, t->row_host, t->head_scratch.logits + (size_t)r * vocab,
                             vocab * sizeof(float));
        if (ret == 0)
            ret = emit(arg, seq, t->row_host, begin + r, 1);
    }
    return ret;
}

/* Between the runs the calling thread queues work for the device here. */
int ps_trainer_logits(struct ps_trainer *t, const struct ps_trainer_seq *seq, int32_t count,
                      int (*emit)(void *arg, int32_t seq, const float *logits, int32_t row_begin,
                                  int32_t rows),
                      void *arg, struct ps_error *err)
{
    int ret = forward_pass(t, seq, count, PS__HEAD_NOTHING, err);
    assert(t->head.head.data); /* not streamed: nothing is trained */
    int32_t chunk = (int32_t)ps_head_chunk_rows(&t->cfg);
    for (int32_t i = 0; ret >= 0 && i < count; i++) {
        for (int32_t begin = 0; ret >= 0 && begin < seq[i].n_tok; begin += chunk) {
            int32_t rows = seq[i].n_tok - begin < chunk ? seq[i].n_tok - begin : chunk;
            ps_head_logits(&t->head, &t->cx, &t->head_scratch, ps__trainer_x(t, i), (size_t)begin,
                           (size_t)rows, t->head_scratch.logits);
            ret = emit_rows(t, i, begin, rows, emit, arg);
        }
    }
    return ret;
}

int ps_trainer_decode(struct ps_trainer *t, const struct ps_trainer_seq *seq, int32_t count,
                      struct ps_error *err)
{
    for (int32_t i = 0; i < count; i++) {
        assert(seq[i].n_past + seq[i].n_tok <= t->opt.cache_tok_max);
        assert(seq[i].n_past == 0 || seq[i].n_tok <= 1);
    }
    return forward_pass(t, seq, count, PS__HEAD_LAST, err);
}

const float *ps_trainer_last_logits(struct ps_trainer *t, int32_t seq)
{
    const void *at = t->buffer[PS_BUF_LOGITS] + (size_t)seq * ps__page_up(t->shape.logits_bytes);
    if (!t->row_host)
        return at;
    PS_IGNORE(t->cx.k->fetch(&t->cx, t->row_host, at, (size_t)t->shape.logits_bytes) < 0,
              "the next pass reports a device that has failed");
    return t->row_host;
}
