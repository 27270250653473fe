/* The resident strategy: weights, states, gradients and activations in the host arena, one compute
 * lane.
 *
 * Invariants: (1) x[l] is written once by the layer below and read by layer l forward and backward;
 * (2) with recompute all layers share one saved set, which a recompute task fills just before the
 * backward task; (3) dx is one buffer, updated in place from the head down to the lowest trained
 * unit. */
#include "runtime/train/schedule.h"

struct ids {
    uint32_t batch, x, saved, scratch, head, dx, weight, grad, state;
};

/* Byte offsets of the units in the weight, gradient and state buffers: embedding, layers, head. */
static uint64_t unit_range(const struct ps_resident_shape *p, const uint64_t *layer, uint64_t embed,
                           uint64_t head, int32_t unit, uint64_t *bytes)
{
    uint64_t at = embed;
    if (unit == PS_UNIT_EMBED) {
        *bytes = embed;
        return 0;
    }
    int32_t stop = unit == PS_UNIT_HEAD ? p->n_layer : unit;
    for (int32_t l = 0; l < stop; l++)
        at += layer[l];
    *bytes = unit == PS_UNIT_HEAD ? head : layer[unit];
    return at;
}

static uint64_t total(const struct ps_resident_shape *p, const uint64_t *layer, uint64_t embed,
                      uint64_t head)
{
    uint64_t bytes;
    uint64_t at = unit_range(p, layer, embed, head, PS_UNIT_HEAD, &bytes);
    return at + bytes;
}

static struct ids add_buffers(struct ps_schedule *s, const struct ps_resident_shape *p)
{
    struct ids b;
    uint64_t saved_count = p->recompute ? 1 : (uint64_t)p->n_layer;
    uint64_t x_count = p->eval_only ? 1 : (uint64_t)p->n_layer + 1;
    b.batch = ps_schedule_buffer(s, p->batch_bytes, "batch");
    b.x = ps_schedule_buffer(s, p->x_bytes * x_count, "x");
    b.saved = ps_schedule_buffer(s, p->saved_bytes * saved_count, "saved");
    b.scratch = ps_schedule_buffer(s, p->scratch_bytes, "scratch");
    b.head = ps_schedule_buffer(s, p->head_bytes, "head");
    b.dx = ps_schedule_buffer(s, p->x_bytes, "dx");
    b.weight = ps_schedule_buffer(
        s, total(p, p->layer_weight_bytes, p->embed_weight_bytes, p->head_weight_bytes), "weights");
    b.grad = ps_schedule_buffer(
        s, total(p, p->layer_grad_bytes, p->embed_grad_bytes, p->head_grad_bytes), "gradients");
    b.state = ps_schedule_buffer(
        s, total(p, p->layer_state_bytes, p->embed_state_bytes, p->head_state_bytes), "states");
    return b;
}

static void touch_weight(struct ps_schedule *s, const struct ps_resident_shape *p, struct ids b,
                         int32_t unit, bool write)
{
    uint64_t bytes;
    uint64_t at = unit_range(p, p->layer_weight_bytes, p->embed_weight_bytes, p->head_weight_bytes,
                             unit, &bytes);
    ps_schedule_access(s, b.weight, write, at, bytes);
}

static void touch_grad(struct ps_schedule *s, const struct ps_resident_shape *p, struct ids b,
                       int32_t unit, bool write)
{
    uint64_t bytes;
    uint64_t at =
        unit_range(p, p->layer_grad_bytes, p->embed_grad_bytes, p->head_grad_bytes, unit, &bytes);
    ps_schedule_access(s, b.grad, write, at, bytes);
}

static void touch_state(struct ps_schedule *s, const struct ps_resident_shape *p, struct ids b,
                        int32_t unit)
{
    uint64_t bytes;
    uint64_t at = unit_range(p, p->layer_state_bytes, p->embed_state_bytes, p->head_state_bytes,
                             unit, &bytes);
    ps_schedule_access(s, b.state, true, at, bytes);
}

static void after_last(struct ps_schedule *s, uint32_t task)
{
    if (task > 0)
        ps_schedule_dep(s, task - 1);
}

/* in_place: evaluation, where one x buffer passes through all layers. */
static void forward_part(struct ps_schedule *s, const struct ps_resident_shape *p, struct ids b,
                         bool keep, bool in_place)
{
    uint32_t t = ps_schedule_task(s, PS_TASK_EMBED, PS_LANE_COMPUTE, PS_UNIT_EMBED, 0);
    ps_schedule_access(s, b.batch, false, 0, p->batch_bytes);
    touch_weight(s, p, b, PS_UNIT_EMBED, false);
    ps_schedule_access(s, b.x, true, 0, p->x_bytes);
    for (int32_t l = 0; l < p->n_layer; l++) {
        uint64_t slot = keep ? (uint64_t)l : 0;
        t = ps_schedule_task(s, PS_TASK_LAYER_FORWARD, PS_LANE_COMPUTE, l, p->layer_flops);
        after_last(s, t);
        touch_weight(s, p, b, l, false);
        ps_schedule_access(s, b.batch, false, 0, p->batch_bytes);
        uint64_t from = in_place ? 0 : (uint64_t)l;
        uint64_t to = in_place ? 0 : (uint64_t)l + 1;
        ps_schedule_access(s, b.x, false, from * p->x_bytes, p->x_bytes);
        ps_schedule_access(s, b.x, true, to * p->x_bytes, p->x_bytes);
        ps_schedule_access(s, b.saved, true, slot * p->saved_bytes, p->saved_bytes);
        ps_schedule_access(s, b.scratch, true, 0, p->scratch_bytes);
    }
}

static void head_task(struct ps_schedule *s, const struct ps_resident_shape *p, struct ids b,
                      bool backward)
{
    uint64_t from = backward ? (uint64_t)p->n_layer * p->x_bytes : 0;
    uint32_t t = ps_schedule_task(s, PS_TASK_HEAD, PS_LANE_COMPUTE, PS_UNIT_HEAD, 0);
    after_last(s, t);
    touch_weight(s, p, b, PS_UNIT_HEAD, false);
    if (p->tied)
        touch_weight(s, p, b, PS_UNIT_EMBED, false);
    ps_schedule_access(s, b.batch, false, 0, p->batch_bytes);
    ps_schedule_access(s, b.x, false, from, p->x_bytes);
    ps_schedule_access(s, b.head, true, 0, p->head_bytes);
    if (!backward)
        return;
    ps_schedule_access(s, b.dx, true, 0, p->x_bytes);
    touch_grad(s, p, b, PS_UNIT_HEAD, true);
    if (p->tied)
        touch_grad(s, p, b, PS_UNIT_EMBED, true);
}

static void layer_backward(struct ps_schedule *s, const struct ps_resident_shape *p, struct ids b,
                           int32_t l)
{
    uint64_t slot = p->recompute ? 0 : (uint64_t)l;
    for (int kind = p->recompute ? 0 : 1; kind < 2; kind++) {
        uint32_t t =
            ps_schedule_task(s, kind == 0 ? PS_TASK_LAYER_RECOMPUTE : PS_TASK_LAYER_BACKWARD,
                             PS_LANE_COMPUTE, l, kind == 0 ? p->layer_flops : 2 * p->layer_flops);
        after_last(s, t);
        touch_weight(s, p, b, l, false);
        ps_schedule_access(s, b.batch, false, 0, p->batch_bytes);
        ps_schedule_access(s, b.x, false, (uint64_t)l * p->x_bytes, p->x_bytes);
        ps_schedule_access(s, b.saved, true, slot * p->saved_bytes, p->saved_bytes);
        ps_schedule_access(s, b.scratch, true, 0, p->scratch_bytes);
        if (kind == 1) {
            ps_schedule_access(s, b.dx, true, 0, p->x_bytes);
            touch_grad(s, p, b, l, true);
        }
    }
}

int ps_resident_build_micro(struct ps_schedule *s, const struct ps_resident_shape *p,
                            struct ps_error *err)
{
    ps_schedule_init(s, "resident.micro");
    struct ids b = add_buffers(s, p);
    forward_part(s, p, b, !p->recompute, false);
    head_task(s, p, b, true);
    int32_t lowest = p->embed_trained ? 0 : p->first_trained;
    for (int32_t l = p->n_layer - 1; l >= lowest; l--)
        layer_backward(s, p, b, l);
    if (p->embed_trained) {
        uint32_t t = ps_schedule_task(s, PS_TASK_EMBED_BACKWARD, PS_LANE_COMPUTE, PS_UNIT_EMBED, 0);
        after_last(s, t);
        ps_schedule_access(s, b.batch, false, 0, p->batch_bytes);
        ps_schedule_access(s, b.dx, false, 0, p->x_bytes);
        touch_grad(s, p, b, PS_UNIT_EMBED, true);
    }
    return ps_schedule_validate(s, err);
}

int ps_resident_build_update(struct ps_schedule *s, const struct ps_resident_shape *p,
                             struct ps_error *err)
{
    ps_schedule_init(s, "resident.update");
    struct ids b = add_buffers(s, p);
    uint64_t units = (uint64_t)p->n_layer + 2;
    /* one byte stands for each unit's partial sums, the last for the coefficient */
    uint32_t norm = ps_schedule_buffer(s, units + 1, "norm");
    for (int pass = 0; pass < 2; pass++) {
        for (int32_t u = PS_UNIT_EMBED; u <= p->n_layer; u++) {
            int32_t unit = u == p->n_layer ? PS_UNIT_HEAD : u;
            uint64_t bytes;
            unit_range(p, p->layer_grad_bytes, p->embed_grad_bytes, p->head_grad_bytes, unit,
                       &bytes);
            if (bytes == 0)
                continue;
            uint32_t t = ps_schedule_task(s, pass == 0 ? PS_TASK_GRAD_NORM : PS_TASK_UPDATE,
                                          PS_LANE_COMPUTE, unit, 0);
            after_last(s, t);
            /* bf16 training rounds the gradient in the norm pass */
            touch_grad(s, p, b, unit, pass == 0);
            ps_schedule_access(s, norm, pass == 0,
                               pass == 0 ? (uint64_t)(u - PS_UNIT_EMBED) : units, 1);
            if (pass == 1) {
                touch_weight(s, p, b, unit, true);
                touch_state(s, p, b, unit);
            }
        }
        if (pass == 0) {
            uint32_t t = ps_schedule_task(s, PS_TASK_CLIP, PS_LANE_COMPUTE, PS_UNIT_ALL, 0);
            after_last(s, t);
            ps_schedule_access(s, norm, false, 0, units);
            ps_schedule_access(s, norm, true, units, 1);
        }
    }
    return ps_schedule_validate(s, err);
}

int ps_resident_build_eval(struct ps_schedule *s, const struct ps_resident_shape *p,
                           struct ps_error *err)
{
    ps_schedule_init(s, "resident.eval");
    struct ids b = add_buffers(s, p);
    forward_part(s, p, b, false, true);
    head_task(s, p, b, false);
    return ps_schedule_validate(s, err);
}
