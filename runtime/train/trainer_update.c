/* The tasks of streamed updates: gradients to where they are kept and back, optimizer states and
 * weights between store, host memory and the update, and the commit. See step.h, trainer.h. */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include <xxhash.h>

#include "runtime/train/trainer_internal.h"

static int32_t unit_index(const struct ps_trainer *t, const struct ps_task *task)
{
    return ps_step_unit_idx(&t->shape, task->unit);
}

static uint32_t weight_extent(int32_t i)
{
    return 2 * (uint32_t)i;
}

static uint32_t state_extent(int32_t i)
{
    return 2 * (uint32_t)i + 1;
}

static enum ps_update_when when(const struct ps_trainer *t, const struct ps_task *task)
{
    return ps_step_unit_update(&t->shape, &t->layout, unit_index(t, task));
}

/* What a task's update goes by: in the next forward pass the decision of the step before. */
static const struct ps__order *order_of(const struct ps_trainer *t, const struct ps_task *task)
{
    bool before = t->pending && when(t, task) == PS_UPDATE_NEXT_FORWARD;
    return before ? &t->pending_order : &t->now;
}

/* Will there be an update, as far as is known before the end of the backward pass? While segment
 * update runs: of what waits (pending), else of everything. */
static bool may_update(const struct ps_trainer *t, const struct ps_task *task)
{
    if (when(t, task) == PS_UPDATE_NEXT_FORWARD)
        return t->pending || t->redoing;
    return !(t->redoing && t->pending);
}

/* Is there an update to make now? */
static bool updates(const struct ps_trainer *t, const struct ps_task *task)
{
    enum ps_update_when w = when(t, task);
    if (!may_update(t, task))
        return false;
    if (w == PS_UPDATE_NEXT_FORWARD && t->pending)
        return true;
    bool early = w == PS_UPDATE_INSIDE && !t->redoing;
    return early || (t->now.go && !t->revoked);
}

static bool unit_active(const struct ps_trainer *t, int32_t unit, uint64_t step)
{
    if (!t->opt.optimizer->active)
        return true;
    for (size_t i = 0; i < t->trainable_count; i++)
        if (t->trainable[i].unit == unit)
            return t->opt.optimizer->active(&t->opt.hyper, &t->trainable[i].tensor, step);
    return false;
}

float *ps__trainer_grad(const struct ps_trainer *t, size_t idx, int32_t near_slot)
{
    const struct ps_trainable *x = &t->trainable[idx];
    uint64_t at = t->map.grad_offset[ps_step_unit_idx(&t->shape, x->unit)];
    if (at == UINT64_MAX) {
        assert(near_slot >= 0);
        at = t->map.grad_slot_base + (uint64_t)near_slot * t->map.grad_slot_bytes;
    }
    return (float *)(void *)(t->buffer[PS_BUF_GRAD] + at + t->home[idx].grad_offset);
}

unsigned char *ps__trainer_host_weights(const struct ps_trainer *t, int32_t unit, int32_t slot,
                                        int32_t raw)
{
    if (raw >= 0)
        return t->buffer[PS_BUF_RAW] + (size_t)raw * t->map.raw_slot_bytes;
    if (t->opt.device->discrete)
        return t->buffer[PS_BUF_HOST_UNITS] +
               t->map.host_offset[ps__source_number(&t->shape, unit, 0)];
    if (slot >= 0)
        return t->buffer[PS_BUF_SLOTS] + (size_t)slot * t->map.slot_bytes;
    return t->buffer[PS_BUF_PINNED] + t->map.pinned_offset[ps_step_unit_idx(&t->shape, unit)];
}

/* Kept gradient in host memory: the unit's, or the granule's in a ring buffer. */
static unsigned char *kept(const struct ps_trainer *t, const struct ps_task *task)
{
    int32_t ring = task->arg[PS_ARG_GRAD_HOST];
    return t->buffer[PS_BUF_GRAD_HOST] +
           (ring < 0 ? t->map.keep_offset[unit_index(t, task)]
                     : t->map.grad_ring_base + (uint64_t)ring * t->map.grad_ring_bytes);
}

/* --- gradients --- */

/* Elements [begin, end) in one of both directions. */
struct pack {
    const struct ps_trainer *t;
    unsigned char *to;
    const unsigned char *from;
    enum ps_dtype to_type, from_type;
    size_t n;
};

#define PACK_PIECE ((size_t)1 << 18)

static void pack_piece(void *arg, size_t i, int thread_idx)
{
    const struct pack *p = arg;
    (void)thread_idx;
    size_t begin = i * PACK_PIECE;
    size_t n = p->n - begin < PACK_PIECE ? p->n - begin : PACK_PIECE;
    ps_dtype_convert(p->to + begin * ps_dtype_size(p->to_type), p->to_type,
                     p->from + begin * ps_dtype_size(p->from_type), p->from_type, n);
}

static const struct ps_granule *granule_of(const struct ps_trainer *t, const struct ps_task *task)
{
    int32_t g = task->arg[PS_ARG_GRANULE];
    return g < 0 ? NULL : &t->granule[g];
}

/* Between a near gradient and the host. Rounded gradients are bf16 values already: packing them is
 * exact. */
static int move_gradient(struct ps_trainer *t, const struct ps_task *task, bool out,
                         struct ps_error *err)
{
    int32_t i = unit_index(t, task);
    const struct ps_granule *g = granule_of(t, task);
    size_t n = g ? (size_t)g->grad_n : (size_t)t->shape.grad_bytes[i] / sizeof(float);
    uint64_t at = t->map.grad_offset[i];
    if (at == UINT64_MAX)
        at = t->map.grad_slot_base + (uint64_t)task->arg[PS_ARG_GRAD] * t->map.grad_slot_bytes;
    unsigned char *near =
        t->buffer[PS_BUF_GRAD] + at + (g ? (size_t)g->grad_begin * sizeof(float) : 0);
    unsigned char *host = kept(t, task);
    enum ps_dtype type = t->map.keep_dtype;
    if (!t->opt.device->discrete) {
        struct pack p = {.t = t,
                         .to = out ? host : near,
                         .from = out ? near : host,
                         .to_type = out ? type : PS_DTYPE_F32,
                         .from_type = out ? PS_DTYPE_F32 : type,
                         .n = n};
        size_t pieces = (n + PACK_PIECE - 1) / PACK_PIECE;
        if (!out) /* on cpu_optim, whose pool it is */
            ps_pool_run(t->optim_pool, pack_piece, &p, pieces);
        for (size_t k = 0; out && k < pieces; k++)
            pack_piece(&p, k, 0);
        return 0;
    }
    assert(type == PS_DTYPE_F32);
    return out ? ps__trainer_to_host(t, host, near, n * sizeof(float), err)
               : ps__trainer_to_device(t, near, host, n * sizeof(float), err);
}

static int grad_out(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    return move_gradient(ctx, task, true, err);
}

/* The first pass of a step makes gradients anew. */
static int grad_in(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    return t->micro_base == 0 ? 0 : move_gradient(t, task, false, err);
}

/* A read for adding up (it names a near slot) in the first pass of a step, or for an update that
 * does not come: there is nothing. */
static bool nothing_kept(const struct ps_trainer *t, const struct ps_task *task)
{
    bool adds_up = task->arg[PS_ARG_GRAD] >= 0;
    return task->kind == PS_TASK_GRAD_READ && (adds_up ? t->micro_base == 0 : !may_update(t, task));
}

static int grad_disk_start(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    bool write = task->kind == PS_TASK_GRAD_WRITE;
    struct ps_storage *st = t->storage[task->lane];
    int32_t g = task->arg[PS_ARG_GRANULE];
    if (nothing_kept(t, task)) {
        ps__trainer_push_tickets(t, task->lane, st, 1, 0);
        return 0;
    }
    uint64_t bytes = ps__page_up(ps_step_piece_bytes(&t->shape, &t->map, g));
    unsigned char *memory = kept(t, task);
    if (write)
        t->grad_sum[g] = XXH3_64bits(memory, (size_t)bytes);
    struct ps_transfer *cut = t->cut[task->lane];
    int count =
        t->opt.io.spill_map(t->opt.io.arg, t->map.bytes[PS_BUF_DISK_X] + t->map.piece_offset[g],
                            bytes, cut, t->cut_max);
    if (count < 0)
        return ps_error_set(err, count, "the spill file cannot be addressed");
    uint64_t first = 1;
    uint64_t last = 0;
    int ret = 0;
    for (int k = 0; ret == 0 && k < count; k++) {
        cut[k].write = write;
        cut[k].memory = memory;
        cut[k].expect = cut[k].bytes;
        memory += cut[k].bytes;
        ret = st->ops->submit(st, &cut[k], &last, err);
        if (k == 0)
            first = last;
    }
    if (ret == 0)
        ps__trainer_push_tickets(t, task->lane, st, first, last);
    return ret;
}

static int grad_disk_finish(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    int32_t g = task->arg[PS_ARG_GRANULE];
    int ret = ps__trainer_wait_tickets(t, task->lane, err);
    if (ret < 0 || task->kind == PS_TASK_GRAD_WRITE || nothing_kept(t, task) ||
        t->opt.io.moves_nothing)
        return ret;
    uint64_t bytes = ps__page_up(ps_step_piece_bytes(&t->shape, &t->map, g));
    if (XXH3_64bits(kept(t, task), (size_t)bytes) == t->grad_sum[g])
        return 0;
    return ps_error_full(err, PS_ECHECKSUM, NULL, NULL,
                         "the disk or the memory damaged them: look into the kernel log (dmesg) "
                         "and the disk's health (smartctl -a)",
                         "the gradient of unit %d that was read from the spill file is not the one "
                         "that was written",
                         task->unit);
}

/* --- states and weights --- */

static unsigned char *state_slot(const struct ps_trainer *t, const struct ps_task *task)
{
    return t->buffer[PS_BUF_STATE_RING] + (size_t)task->arg[PS_ARG_STATE] * t->map.state_slot_bytes;
}

/* The task's chunk of its unit's extents. */
static uint32_t chunk_of(const struct ps_trainer *t, const struct ps_task *task)
{
    return (uint32_t)task->arg[PS_ARG_GRANULE] - t->granule_begin[unit_index(t, task)];
}

/* Read at the end of a pass for the update that the next one will make, if the step turns out to
 * have one. */
static bool reads_ahead(const struct ps_task *task)
{
    return task->kind == PS_TASK_READ_STATE && (task->flags & PS_TASK_TRAILS) != 0;
}

static bool active_now(const struct ps_trainer *t, const struct ps_task *task)
{
    return unit_active(t, task->unit, order_of(t, task)->step);
}

static int submit(struct ps_trainer *t, const struct ps_task *task, uint32_t extent, bool write,
                  void *memory, struct ps_error *err)
{
    uint64_t first;
    uint64_t last;
    int ret = ps__trainer_store_submit(t, task->lane, extent, chunk_of(t, task), write, memory,
                                       &first, &last, err);
    if (ret == 0)
        ps__trainer_push_tickets(t, task->lane, t->store_storage[task->lane], first, last);
    return ret;
}

static int nothing_started(struct ps_trainer *t, const struct ps_task *task)
{
    ps__trainer_push_tickets(t, task->lane, t->store_storage[task->lane], 1, 0);
    return 0;
}

/* While what was read ahead is on its way, the next step may begin: its number is not asked for. */
static bool wants_state(const struct ps_trainer *t, const struct ps_task *task)
{
    int32_t g = task->arg[PS_ARG_GRANULE];
    if (granule_of(t, task)->state_bytes == 0)
        return false;
    if (reads_ahead(task))
        return unit_active(t, task->unit, t->ahead_step[g]);
    /* without gradients the masters' remainders are wanted in every pass */
    bool perturbs = t->shape.zeroth && !t->redoing;
    return (perturbs || may_update(t, task)) && active_now(t, task);
}

static int read_state_start(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    if (!wants_state(t, task))
        return nothing_started(t, task);
    return submit(t, task, state_extent(unit_index(t, task)), false, state_slot(t, task), err);
}

static int read_state_finish(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    int ret = ps__trainer_wait_tickets(t, task->lane, err);
    if (ret < 0 || t->opt.io.moves_nothing || !wants_state(t, task))
        return ret;
    return t->store->ops->check(t->store, state_extent(unit_index(t, task)), chunk_of(t, task),
                                PS_COPY_LATEST, state_slot(t, task), err);
}

/* Where in the unit's gradient that begins which is kept there: elements. */
static uint64_t kept_begin(const struct ps_trainer *t, const struct ps_task *task)
{
    return task->arg[PS_ARG_GRAD_HOST] < 0 ? 0 : granule_of(t, task)->grad_begin;
}

/* Update one slice of a tensor, if there is an update to make, and perturb it where the task does:
 * weights, gradient and states begin there. */
static int update_slice(struct ps_trainer *t, const struct ps_task *task,
                        const struct ps_slice *slice, unsigned char *weights, unsigned char *states,
                        struct ps_error *err)
{
    bool go = t->unit_updated[unit_index(t, task)];
    const struct ps__order *o = order_of(t, task);
    const struct ps_trainable *x = &t->trainable[slice->tensor];
    bool near = t->layout.grad[unit_index(t, task)] == PS_TIER_DEVICE;
    struct ps_update u = {.pool = t->optim_pool,
                          .isa = t->cx.isa,
                          .hyper = &t->opt.hyper,
                          .tensor = &x->tensor,
                          .layout = &x->layout,
                          .begin = (size_t)slice->begin,
                          .n = (size_t)slice->n,
                          .weight = weights + slice->weight_offset,
                          .grad_dtype = near ? PS_DTYPE_F32 : t->map.keep_dtype,
                          .workspace = t->buffer[PS_BUF_WORKSPACE],
                          .t = x->t + 1,
                          .step = o->step,
                          .lr = o->lr * x->rate,
                          .decay = x->decay,
                          .grad_scale = t->opt.clip_mode == PS_CLIP_PER_TENSOR
                                            ? t->tensor_coef[slice->tensor]
                                            : o->coef};
    if (t->shape.zeroth)
        u.grad = NULL;
    else if (near)
        u.grad = ps__trainer_grad(t, slice->tensor, task->arg[PS_ARG_GRAD]) + slice->begin;
    else
        u.grad = kept(t, task) +
                 (slice->grad_offset - kept_begin(t, task)) * ps_dtype_size(t->map.keep_dtype);
    if (states) {
        unsigned char *at = states + slice->state_offset;
        if (ps__trainer_has_remainder(x)) {
            u.remainder = (uint16_t *)(void *)at;
            at += (slice->n * sizeof(uint16_t) + 63) & ~(uint64_t)63;
        }
        for (int k = 0; k < x->layout.state_count; k++) {
            u.state[k] = at;
            at += (ps_opt_state_bytes(&x->layout.state[k], slice->n) + 63) & ~(uint64_t)63;
        }
    } else { /* states in memory, whole tensors */
        u.remainder = x->remainder ? x->remainder + slice->begin : NULL;
        for (int k = 0; k < x->layout.state_count; k++) {
            const struct ps_opt_state *s = &x->layout.state[k];
            size_t skip =
                s->per > 0 ? (size_t)(slice->begin / s->per) * ps_dtype_size(s->dtype) : 0;
            u.state[k] = (unsigned char *)x->state[k] + skip;
        }
    }
    int ret = go ? t->opt.optimizer->update(&u, err) : 0;
    if (ret == 0 && task->arg[PS_ARG_IMAGE] >= 0)
        ps__trainer_perturb(t, task, &u, slice->weight_offset);
    return ret;
}

static int update_host(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    int32_t i = unit_index(t, task);
    bool go = updates(t, task) && active_now(t, task);
    if (granule_of(t, task))
        t->ahead_step[task->arg[PS_ARG_GRANULE]] = t->now.step;
    t->unit_updated[i] = go;
    if (!go && task->arg[PS_ARG_IMAGE] < 0)
        return 0;
    const struct ps_granule *one = granule_of(t, task);
    uint32_t begin = one ? (uint32_t)task->arg[PS_ARG_GRANULE] : t->granule_begin[i];
    uint32_t end = one ? begin + 1 : t->granule_begin[i + 1];
    unsigned char *weights =
        ps__trainer_host_weights(t, task->unit, task->arg[PS_ARG_SLOT], task->arg[PS_ARG_RAW]);
    unsigned char *states = task->arg[PS_ARG_STATE] >= 0 ? state_slot(t, task) : NULL;
    for (uint32_t g = begin; g < end; g++) {
        for (uint32_t k = 0; k < t->granule[g].slice_count; k++) {
            int ret = update_slice(t, task, &t->slice[t->granule[g].slice_begin + k], weights,
                                   states, err);
            if (ret < 0)
                return ret;
        }
    }
    return 0;
}

static int write_start(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    int32_t i = unit_index(t, task);
    const struct ps_granule *g = granule_of(t, task);
    bool state = task->kind == PS_TASK_WRITE_STATE;
    if (!t->unit_updated[i] || (state && g->state_bytes == 0))
        return nothing_started(t, task);
    unsigned char *memory = state ? state_slot(t, task)
                                  : ps__trainer_host_weights(t, task->unit, task->arg[PS_ARG_SLOT],
                                                             task->arg[PS_ARG_RAW]) +
                                        g->weight_offset;
    uint32_t extent = state ? state_extent(i) : weight_extent(i);
    t->store->ops->seal(t->store, extent, chunk_of(t, task), memory);
    return submit(t, task, extent, true, memory, err);
}

static int write_finish(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    int32_t i = unit_index(t, task);
    int ret = ps__trainer_wait_tickets(t, task->lane, err);
    bool last = (uint32_t)task->arg[PS_ARG_GRANULE] + 1 == t->granule_begin[i + 1];
    if (ret < 0 || !t->unit_updated[i] || !last)
        return ret;
    bool state = task->kind == PS_TASK_WRITE_STATE;
    if (!state || t->state_image_bytes[i] > 0)
        t->store->ops->note_written(t->store, state ? state_extent(i) : weight_extent(i));
    return 0;
}

static int commit(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    (void)task;
    if (!t->commit_due)
        return 0;
    t->commit_due = false;
    return t->store->ops->commit(t->store, t->run_state, t->run_state_bytes, err);
}

void ps__trainer_update_ops(struct ps_task_ops ops[PS_TASK_KIND_COUNT])
{
    ops[PS_TASK_GRAD_OUT].run = grad_out;
    ops[PS_TASK_GRAD_IN].run = grad_in;
    ops[PS_TASK_GRAD_WRITE].start = grad_disk_start;
    ops[PS_TASK_GRAD_WRITE].finish = grad_disk_finish;
    ops[PS_TASK_GRAD_READ].start = grad_disk_start;
    ops[PS_TASK_GRAD_READ].finish = grad_disk_finish;
    ops[PS_TASK_READ_STATE].start = read_state_start;
    ops[PS_TASK_READ_STATE].finish = read_state_finish;
    ops[PS_TASK_UPDATE_HOST].run = update_host;
    ops[PS_TASK_WRITE_STATE].start = write_start;
    ops[PS_TASK_WRITE_STATE].finish = write_finish;
    ops[PS_TASK_WRITE_WEIGHTS].start = write_start;
    ops[PS_TASK_WRITE_WEIGHTS].finish = write_finish;
    ops[PS_TASK_COMMIT].run = commit;
}
