/* The builder of segments: emits tasks in program order; dependencies are derived from their
 * ranges. See step.h. Boundaries and saved sets that are moved: step_moves.c; updates:
 * step_update.c.
 *
 * Slots are mapped directly (streamed unit j uses slot j mod near_slots): what a slot holds at the
 * end of a pass is then the same in every pass, and in the sawtooth forward-backward the last
 * near_slots units are still there at each turn.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/step_build_internal.h"

uint32_t ps__emit(struct ps__build *b, enum ps_task_kind kind, enum ps_lane lane, int32_t unit,
                  int32_t micro)
{
    uint32_t id = ps_schedule_task(b->s, kind, lane, unit);
    if (b->s->fault)
        return 0;
    b->s->task[id].micro = micro;
    b->s->task[id].flags = b->flags;
    return id;
}

void ps__arg(struct ps__build *b, enum ps_task_arg a, int32_t value)
{
    if (!b->s->fault)
        b->s->task[b->s->task_count - 1].arg[a] = value;
}

void ps__cost(struct ps__build *b, double flops, uint64_t bytes)
{
    if (b->s->fault)
        return;
    b->s->task[b->s->task_count - 1].flops = flops;
    b->s->task[b->s->task_count - 1].bytes = bytes;
}

/* The task is complete: declare what it touches. */
void ps__done(struct ps__build *b)
{
    if (b->s->fault)
        return;
    const struct ps_task *t = &b->s->task[b->s->task_count - 1];
    if (t->lane == PS_LANE_COMPUTE)
        b->last_compute = t->id;
    ps_step_declare(b->s, t, b->segment, b->p, b->l, b->m);
}

/* --- weights --- */

static void load_unit(struct ps__build *b, int32_t number, int32_t slot)
{
    const struct ps_unit_source *u = &b->p->source->unit[number];
    bool host = b->m->host_offset[number] != UINT64_MAX;
    bool copied = host || b->l->discrete || !u->direct;
    int32_t raw = -1;
    if (copied && !host)
        raw = b->raw_next++ % b->l->raw_slots;
    if (!host) {
        int64_t after = b->last_compute;
        ps__emit(b, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, u->unit, -1);
        ps__arg(b, PS_ARG_BLOCK, u->block);
        ps__arg(b, copied ? PS_ARG_RAW : PS_ARG_SLOT, copied ? raw : slot);
        ps__cost(b, 0, u->read_bytes);
        ps__done(b);
        if ((b->l->ablate & PS_ABLATE_PREFETCH) && after >= 0)
            ps_schedule_dep(b->s, (uint32_t)after, 0);
    }
    if (copied) {
        ps__emit(b, PS_TASK_COPY_WEIGHTS, PS_LANE_H2D, u->unit, -1);
        ps__arg(b, PS_ARG_BLOCK, u->block);
        ps__arg(b, PS_ARG_SLOT, slot);
        ps__arg(b, PS_ARG_RAW, raw);
        ps__cost(b, 0, u->near_bytes);
        ps__done(b);
    }
}

int32_t ps__use_unit(struct ps__build *b, int32_t unit, int32_t block)
{
    int32_t number = (int32_t)ps__source_number(b->p, unit, block);
    int32_t j = b->m->stream_idx[number];
    if (j < 0)
        return -1;
    int32_t slot = j % b->l->near_slots;
    if (b->content[slot] != number)
        load_unit(b, number, slot);
    b->content[slot] = number;
    return slot;
}

static void forget_slots(struct ps__build *b)
{
    for (int32_t i = 0; i < b->l->near_slots; i++)
        b->content[i] = -1;
}

static bool evaluates(const struct ps__build *b)
{
    return b->segment == PS_SEGMENT_EVAL || b->segment == PS_SEGMENT_PROLOGUE_EVAL;
}

/* What every slot holds when a pass begins: the first unit that will use it. */
static void find_live_in(struct ps__build *b)
{
    for (int32_t i = 0; i < b->l->near_slots; i++)
        b->live_in[i] = -1;
    if (b->l->ablate & PS_ABLATE_CROSS_STEP)
        return;
    /* without gradients a discrete device has only images of what is updated on the host */
    bool images = b->p->zeroth && b->streams && b->l->discrete && !evaluates(b);
    for (uint32_t n = 0; n < b->p->source->unit_count; n++) {
        int32_t j = b->m->stream_idx[n];
        if (images && ps__trained(b, b->p->source->unit[n].unit))
            continue;
        if (j >= 0 && b->live_in[j % b->l->near_slots] < 0)
            b->live_in[j % b->l->near_slots] = (int32_t)n;
    }
}

/* Bring the live-in into the slots that hold something else, in the order of use. */
static void restore_live_in(struct ps__build *b, uint32_t flags)
{
    b->flags = flags;
    for (uint32_t n = 0; n < b->p->source->unit_count; n++) {
        int32_t j = b->m->stream_idx[n];
        if (j < 0)
            continue;
        int32_t slot = j % b->l->near_slots;
        if (b->live_in[slot] == (int32_t)n && b->content[slot] != (int32_t)n) {
            load_unit(b, (int32_t)n, slot);
            b->content[slot] = (int32_t)n;
        }
    }
    b->flags = 0;
}

/* --- the passes --- */

static void copy_batches(struct ps__build *b, int32_t group)
{
    for (int32_t m = 0; b->l->discrete && m < group; m++) {
        ps__emit(b, PS_TASK_COPY_BATCH, PS_LANE_H2D, PS_UNIT_ALL, m);
        ps__cost(b, 0, b->p->batch_bytes);
        ps__done(b);
    }
}

static void embed(struct ps__build *b, int32_t begin, int32_t end)
{
    bool pinned = b->m->stream_idx[ps__source_number(b->p, PS_UNIT_EMBED, 0)] < 0;
    int32_t blocks = pinned ? 1 : (int32_t)b->p->source->embed_block_count;
    for (int32_t block = 0; block < blocks; block++) {
        int32_t slot = ps__use_unit(b, PS_UNIT_EMBED, block);
        for (int32_t m = begin; m < end; m++) {
            ps__emit(b, PS_TASK_EMBED, PS_LANE_COMPUTE, PS_UNIT_EMBED, m);
            ps__arg(b, PS_ARG_SLOT, slot);
            ps__arg(b, PS_ARG_BLOCK, pinned ? -1 : block);
            ps__arg(b, PS_ARG_X_OUT, b->cur[m]);
            ps__done(b);
        }
    }
}

static double layer_cost(const struct ps__build *b, enum ps_task_kind kind, int32_t l)
{
    if (kind == PS_TASK_LAYER_BACKWARD)
        return b->p->layer_backward_flops;
    return kind == PS_TASK_LAYER_FORWARD ? b->p->layer_flops
                                         : b->p->recompute_flops[b->l->recompute[l]];
}

/* Where a task on a layer finds its things. */
struct layer_args {
    int32_t slot, x_in, x_out, saved, grad_slot;
};

static void layer_task(struct ps__build *b, enum ps_task_kind kind, int32_t l, int32_t micro,
                       const struct layer_args *a)
{
    ps__emit(b, kind, PS_LANE_COMPUTE, l, micro);
    ps__arg(b, PS_ARG_SLOT, a->slot);
    ps__arg(b, PS_ARG_X_IN, a->x_in);
    ps__arg(b, PS_ARG_X_OUT, a->x_out);
    ps__arg(b, PS_ARG_SAVED, a->saved);
    if (kind == PS_TASK_LAYER_BACKWARD) {
        ps__arg(b, PS_ARG_DX, micro);
        ps__arg(b, PS_ARG_GRAD, a->grad_slot);
    }
    if (kind == PS_TASK_LAYER_RECOMPUTE)
        ps__arg(b, PS_ARG_LEVEL, (int32_t)b->l->recompute[l]);
    b->rest_layer = kind == PS_TASK_LAYER_BACKWARD ? -1 : l;
    b->rest_micro = micro;
    ps__cost(b, layer_cost(b, kind, l), 0);
    ps__done(b);
}

static void forward_layer(struct ps__build *b, int32_t l, int32_t begin, int32_t end)
{
    if (b->streams)
        ps__update_before(b, l);
    struct layer_args a = {.slot = ps__use_unit(b, l, 0), .grad_slot = -1};
    for (int32_t m = begin; m < end; m++) {
        a.x_in = b->cur[m];
        a.x_out = ps__pass_boundary(b, l, m, a.x_in);
        a.saved = ps__place_saved(b, l, m);
        layer_task(b, PS_TASK_LAYER_FORWARD, l, m, &a);
        if (a.x_out != a.x_in)
            ps__release_boundary(b, a.x_in, !ps__boundary_moved(b, l));
        ps__release_saved(b, a.saved, false);
        b->cur[m] = a.x_out;
        ps__spill_saved(b, l, m, a.saved);
        if (l + 1 < b->p->n_layer)
            ps__spill_boundary(b, l + 1, m, a.x_out);
    }
}

static void backward_layer(struct ps__build *b, int32_t l, int32_t begin, int32_t end)
{
    struct layer_args a = {.slot = ps__use_unit(b, l, 0), .x_out = -1};
    a.grad_slot = b->streams && ps__trained(b, l) ? ps__begin_gradient(b, l) : -1;
    for (int32_t m = begin; m < end; m++) {
        a.x_in = ps__fetch_boundary(b, l, m);
        a.saved = ps__fetch_saved(b, l, m);
        bool there = b->rest_layer == l && b->rest_micro == m; /* at the turn: forward left it */
        if (b->l->recompute[l] != PS_RECOMPUTE_R0 && !there)
            layer_task(b, PS_TASK_LAYER_RECOMPUTE, l, m, &a);
        layer_task(b, PS_TASK_LAYER_BACKWARD, l, m, &a);
        ps__release_boundary(b, a.x_in, true);
        ps__release_saved(b, a.saved, true);
    }
    if (b->streams && ps__trained(b, l))
        ps__finish_gradient(b, l, a.grad_slot);
    if (b->streams)
        ps__read_states_ahead(b, l);
}

static void head(struct ps__build *b, int32_t micro, int32_t slot, int32_t x, bool backward)
{
    ps__emit(b, PS_TASK_HEAD, PS_LANE_COMPUTE, PS_UNIT_HEAD, micro);
    ps__arg(b, PS_ARG_SLOT, slot);
    ps__arg(b, PS_ARG_X_IN, x);
    ps__arg(b, PS_ARG_DX, backward ? micro : -1);
    ps__cost(b, b->p->head_flops + (backward ? b->p->head_backward_flops : 0), 0);
    ps__done(b);
}

static void emit_zeroth(struct ps__build *b)
{
    memcpy(b->content, b->live_in, (size_t)b->l->near_slots * sizeof *b->content);
    copy_batches(b, b->l->group);
    ps__zeroth_pass(b);
    restore_live_in(b, PS_TASK_TRAILS);
}

/* Lots of micro-batches: the backward pass of one runs layer by layer beside the forward pass of
 * the next. One lot, the whole group, is plain forward and backward. */
static void emit_train(struct ps__build *b)
{
    const struct ps_step_shape *p = b->p;
    ps__forget_moves(b);
    b->rest_layer = -1;
    memcpy(b->content, b->live_in, (size_t)b->l->near_slots * sizeof *b->content);
    if (b->streams)
        ps__begin_states(b);
    copy_batches(b, b->l->group);
    int32_t sub = ps__layout_lot(b->l);
    int32_t lowest = p->embed_trained ? 0 : p->first_trained;
    int32_t subs = (b->l->group + sub - 1) / sub;
    for (int32_t k = 0; k <= subs; k++) {
        int32_t begin = k * sub;
        int32_t end = begin + sub < b->l->group ? begin + sub : b->l->group;
        if (k < subs) {
            for (int32_t m = begin; m < end; m++)
                b->cur[m] = ps__place_boundary(b, 0, m);
            if (b->streams)
                ps__update_before(b, PS_UNIT_EMBED);
            embed(b, begin, end);
            for (int32_t m = begin; m < end; m++)
                ps__spill_boundary(b, 0, m, b->cur[m]);
        }
        if (k == subs && (b->l->ablate & PS_ABLATE_TURNS))
            forget_slots(b);
        for (int32_t i = 0; i < p->n_layer; i++) {
            int32_t l = p->n_layer - 1 - i;
            if (k > 0 && l >= lowest)
                backward_layer(b, l, begin - sub, begin < b->l->group ? begin : b->l->group);
            if (k < subs)
                forward_layer(b, i, begin, end);
        }
        if (k < subs && b->streams)
            ps__update_before(b, PS_UNIT_HEAD);
        int32_t slot = k < subs ? ps__use_unit(b, PS_UNIT_HEAD, 0) : -1;
        for (int32_t m = begin; k < subs && m < end; m++) {
            head(b, m, slot, b->cur[m], true);
            ps__release_boundary(b, b->cur[m], true);
        }
        if (k < subs && b->streams && ps__trained(b, PS_UNIT_HEAD))
            ps__finish_gradient(b, PS_UNIT_HEAD, ps__begin_gradient(b, PS_UNIT_HEAD));
    }
    for (int32_t m = 0; p->embed_trained && m < b->l->group; m++) {
        ps__emit(b, PS_TASK_EMBED_BACKWARD, PS_LANE_COMPUTE, PS_UNIT_EMBED, m);
        ps__arg(b, PS_ARG_DX, m);
        ps__done(b);
    }
    if (b->streams && p->embed_trained)
        ps__finish_gradient(b, PS_UNIT_EMBED, ps__begin_gradient(b, PS_UNIT_EMBED));
    if (b->streams)
        ps__read_states_ahead(b, PS_UNIT_EMBED);
    if (b->streams && b->segment == PS_SEGMENT_TRAIN)
        ps__update_after(b);
    if (b->l->ablate & PS_ABLATE_TURNS)
        forget_slots(b);
    restore_live_in(b, PS_TASK_TRAILS);
}

static void emit_eval(struct ps__build *b)
{
    int32_t group = b->l->eval_group;
    memcpy(b->content, b->live_in, (size_t)b->l->near_slots * sizeof *b->content);
    copy_batches(b, group);
    for (int32_t m = 0; m < group; m++)
        b->cur[m] = m;
    embed(b, 0, group);
    for (int32_t l = 0; l < b->p->n_layer; l++) {
        struct layer_args a = {.slot = ps__use_unit(b, l, 0), .grad_slot = -1};
        a.saved = ps__eval_saved(b, l);
        for (int32_t m = 0; m < group; m++) {
            a.x_in = a.x_out = m;
            layer_task(b, PS_TASK_LAYER_FORWARD, l, m, &a);
        }
    }
    int32_t slot = ps__use_unit(b, PS_UNIT_HEAD, 0);
    for (int32_t m = 0; m < group; m++)
        head(b, m, slot, m, false);
    restore_live_in(b, PS_TASK_TRAILS);
}

static void emit_update(struct ps__build *b)
{
    const struct ps_step_shape *p = b->p;
    for (int pass = p->zeroth ? 2 : 0; pass < 3; pass++) {
        if (pass == 1) {
            ps__emit(b, PS_TASK_CLIP, PS_LANE_COMPUTE, PS_UNIT_ALL, -1);
            ps__done(b);
            continue;
        }
        for (int32_t i = 0; i < p->n_layer + 2; i++) {
            if (p->grad_bytes[i] == 0)
                continue;
            int32_t unit = i == 0 ? PS_UNIT_EMBED : i == p->n_layer + 1 ? PS_UNIT_HEAD : i - 1;
            ps__emit(b, pass == 0 ? PS_TASK_GRAD_NORM : PS_TASK_UPDATE, PS_LANE_COMPUTE, unit, -1);
            double params = (double)(p->grad_bytes[i] / sizeof(float));
            ps__cost(b, params * (p->zeroth ? PS_ZEROTH_PASSES : 1), 0);
            ps__done(b);
        }
    }
}

static void emit_prologue(struct ps__build *b)
{
    forget_slots(b);
    restore_live_in(b, 0);
}

static int emit_segment(struct ps__build *b)
{
    find_live_in(b);
    switch (b->segment) {
    case PS_SEGMENT_TRAIN:
    case PS_SEGMENT_TRAIN_INNER:
        if (b->segment == PS_SEGMENT_TRAIN_INNER && !(b->streams && b->m->several_passes))
            break;
        if (b->p->zeroth) {
            emit_zeroth(b);
            break;
        }
        b->dry = true;
        emit_train(b);
        b->dry = false;
        b->s->task_count = 0;
        b->s->access_count = 0;
        b->s->dep_count = 0;
        b->raw_next = 0;
        b->last_compute = -1;
        b->grad_next = b->grad_host_next = 0;
        emit_train(b);
        break;
    case PS_SEGMENT_UPDATE:
        forget_slots(b);
        if (b->streams)
            ps__update_all(b);
        else
            emit_update(b);
        break;
    case PS_SEGMENT_EVAL:
        emit_eval(b);
        break;
    case PS_SEGMENT_PROLOGUE_TRAIN:
    case PS_SEGMENT_PROLOGUE_EVAL:
        emit_prologue(b);
        break;
    case PS_SEGMENT_COUNT:
        return -EINVAL;
    }
    return b->s->fault;
}

static void add_buffers(struct ps_schedule *s, const struct ps_step_map *m)
{
    static const char *const name[PS_BUF_COUNT] = {
        "batch",      "batch_host", "rope",          "x",          "dx",         "saved",
        "scratch",    "head",       "gemm",          "pinned",     "slots",      "raw",
        "host_units", "host_x",     "disk_x",        "adapter",    "gradients",  "states",
        "workspace",  "norm",       "loss",          "cache",      "logits",     "state_ring",
        "grad_host",  "disk_grad",  "disk_weights",  "disk_state", "host_saved", "disk_saved",
        "mirror",     "perturbed",  "perturbed_host"};
    for (int b = 0; b < PS_BUF_COUNT; b++)
        ps_schedule_buffer(s, m->tier[b], m->bytes[b], "%s", name[b]);
}

int ps_step_build(struct ps_schedule *s, enum ps_segment segment, const struct ps_step_shape *shape,
                  const struct ps_step_layout *layout, const struct ps_step_map *map,
                  struct ps_error *err)
{
    size_t slots = (size_t)layout->near_slots;
    size_t group =
        (size_t)(layout->group > layout->eval_group ? layout->group : layout->eval_group);
    struct ps__build b = {
        .s = s,
        .segment = segment,
        .p = shape,
        .l = layout,
        .m = map,
        .last_compute = -1,
        .image = -1,
        .streams = layout->update != PS_UPDATE_RESIDENT && shape->trains,
        .content = calloc(slots + 1, sizeof *b.content),
        .live_in = calloc(slots + 1, sizeof *b.live_in),
        .cur = calloc(group + 1, sizeof *b.cur),
        .x = {.count = layout->x_ring, .first = map->x_kept},
        .saved = {.count = map->saved_count - map->saved_kept, .first = map->saved_kept}};
    ps_schedule_init(s, ps_segment_name(segment));
    int ret = -ENOMEM;
    if (b.content && b.live_in && b.cur && ps__moves_open(&b) == 0) {
        add_buffers(s, map);
        ret = emit_segment(&b);
    }
    free(b.content);
    free(b.live_in);
    free(b.cur);
    ps__moves_close(&b);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory while planning the schedule");
    ret = ps_schedule_derive(s, err);
    return ret < 0 ? ret : ps_schedule_validate(s, err);
}
