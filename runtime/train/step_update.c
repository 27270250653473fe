/* Streamed updates of full fine-tuning: where gradients go, and the tasks that update a unit on the
 * host, granule by granule. See step.h. */
#include <assert.h>

#include "runtime/train/step_build_internal.h"

static enum ps_tier grad_tier(const struct ps__build *b, int32_t unit)
{
    return b->l->grad[ps_step_unit_idx(b->p, unit)];
}

static uint64_t keep_bytes(const struct ps__build *b, int32_t unit)
{
    return ps_step_keep_bytes(b->p, b->m, ps_step_unit_idx(b->p, unit));
}

static void grad_move(struct ps__build *b, enum ps_task_kind kind, enum ps_lane lane, int32_t unit,
                      int32_t near_slot, int32_t ring)
{
    ps__emit(b, kind, lane, unit, -1);
    ps__arg(b, PS_ARG_GRAD, near_slot);
    ps__arg(b, PS_ARG_GRAD_HOST, ring);
    ps__cost(b, 0, keep_bytes(b, unit));
    ps__done(b);
}

/* Host ring buffer for a gradient that waits on disk; -1 for others. */
static int32_t ring_for(struct ps__build *b, int32_t unit)
{
    return grad_tier(b, unit) == PS_TIER_DISK ? b->grad_host_next++ % b->l->grad_ring : -1;
}

int32_t ps__begin_gradient(struct ps__build *b, int32_t unit)
{
    bool own = b->m->grad_offset[ps_step_unit_idx(b->p, unit)] != UINT64_MAX;
    int32_t slot = own ? -1 : b->grad_next++ % b->l->grad_slots;
    if (own || !b->m->several_passes)
        return slot; /* made anew, or added to where it is */
    int32_t ring = ring_for(b, unit);
    if (ring >= 0)
        grad_move(b, PS_TASK_GRAD_READ, PS_LANE_DISK_STATE, unit, slot, ring);
    grad_move(b, PS_TASK_GRAD_IN, b->l->discrete ? PS_LANE_H2D : PS_LANE_CPU_OPTIM, unit, slot,
              ring);
    return slot;
}

/* One granule, or (granule < 0) a whole unit with its states in memory. */
static void update_granule(struct ps__build *b, int32_t unit, int32_t granule, int32_t slot,
                           int32_t raw, int32_t near_slot, int32_t ring)
{
    const struct ps_granule *g = granule < 0 ? NULL : &b->p->granule[granule];
    int32_t state = -1;
    double params = 0;
    double flops = 0;
    int32_t i = ps_step_unit_idx(b->p, unit);
    for (uint32_t k = b->p->granule_begin[i]; !g && k < b->p->granule_begin[i + 1]; k++) {
        params += (double)b->p->granule[k].params;
        flops += b->p->granule[k].flops;
    }
    if (g) {
        params = (double)g->params;
        flops = g->flops;
        state = b->state_next++ % b->l->state_slots;
        ps__emit(b, PS_TASK_READ_STATE, PS_LANE_DISK_STATE, unit, -1);
        ps__arg(b, PS_ARG_STATE, state);
        ps__arg(b, PS_ARG_GRANULE, granule);
        ps__cost(b, 0, g->state_bytes);
        ps__done(b);
    }
    ps__emit(b, PS_TASK_UPDATE_HOST, PS_LANE_CPU_OPTIM, unit, -1);
    ps__arg(b, PS_ARG_STATE, state);
    ps__arg(b, PS_ARG_GRANULE, granule);
    ps__arg(b, PS_ARG_SLOT, slot);
    ps__arg(b, PS_ARG_RAW, raw);
    ps__arg(b, PS_ARG_GRAD, near_slot);
    ps__arg(b, PS_ARG_GRAD_HOST, ring);
    ps__cost(b, flops, (uint64_t)params); /* the lane's rates are in parameters */
    ps__done(b);
    if (!g)
        return;
    uint32_t flags = b->flags;
    if (b->l->update != PS_UPDATE_NEXT_FORWARD && b->segment == PS_SEGMENT_TRAIN)
        b->flags |= PS_TASK_TRAILS;
    /* Weights first: whoever waits for the states' write then knows that both have ended. */
    ps__emit(b, PS_TASK_WRITE_WEIGHTS, PS_LANE_DISK_WRITE, unit, -1);
    ps__arg(b, PS_ARG_GRANULE, granule);
    ps__arg(b, PS_ARG_SLOT, slot);
    ps__arg(b, PS_ARG_RAW, raw);
    ps__cost(b, 0, g->weight_bytes);
    ps__done(b);
    ps__emit(b, PS_TASK_WRITE_STATE, PS_LANE_DISK_WRITE, unit, -1);
    ps__arg(b, PS_ARG_STATE, state);
    ps__arg(b, PS_ARG_GRANULE, granule);
    ps__cost(b, 0, g->state_bytes);
    ps__done(b);
    b->flags = flags;
}

/* Where the host updates a unit's weights. */
struct home {
    int32_t slot, raw;
};

static struct home find_home(struct ps__build *b, int32_t unit)
{
    struct home h = {-1, -1};
    uint32_t number = ps__source_number(b->p, unit, 0);
    if (!b->l->discrete) {
        h.slot = ps__use_unit(b, unit, 0);
    } else if (b->m->host_offset[number] == UINT64_MAX) {
        h.raw = b->raw_next++ % b->l->raw_slots;
        ps__emit(b, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, unit, -1);
        ps__arg(b, PS_ARG_BLOCK, 0);
        ps__arg(b, PS_ARG_RAW, h.raw);
        ps__cost(b, 0, b->p->source->unit[number].near_bytes);
        ps__done(b);
    }
    return h;
}

/* The device's copy of weights that the host has updated: anew where it is pinned or needed at
 * once, forgotten where it lies in a slot. */
static void refresh_near(struct ps__build *b, int32_t unit, struct home h)
{
    uint32_t number = ps__source_number(b->p, unit, 0);
    int32_t j = b->m->stream_idx[number];
    int32_t slot = j < 0 ? -1 : j % b->l->near_slots;
    bool wanted = b->l->update == PS_UPDATE_NEXT_FORWARD && b->segment == PS_SEGMENT_TRAIN;
    if (slot >= 0 && b->content[slot] == (int32_t)number)
        b->content[slot] = -1;
    if (slot >= 0 && !wanted)
        return;
    ps__emit(b, PS_TASK_COPY_WEIGHTS, PS_LANE_H2D, unit, -1);
    ps__arg(b, PS_ARG_BLOCK, 0);
    ps__arg(b, PS_ARG_SLOT, slot);
    ps__arg(b, PS_ARG_RAW, h.raw);
    ps__cost(b, 0, b->p->source->unit[number].near_bytes);
    ps__done(b);
    if (slot >= 0)
        b->content[slot] = (int32_t)number;
}

/* near_slot, ring: where the gradient is now (ring -1: bring it from the disk first, if it is
 * there).
 */
static void update_unit(struct ps__build *b, int32_t unit, int32_t near_slot, int32_t ring)
{
    int32_t i = ps_step_unit_idx(b->p, unit);
    struct home h = find_home(b, unit);
    if (ring < 0 && grad_tier(b, unit) == PS_TIER_DISK) {
        ring = ring_for(b, unit);
        grad_move(b, PS_TASK_GRAD_READ, PS_LANE_DISK_STATE, unit, -1, ring);
    }
    if (b->l->state[i] == PS_TIER_DISK)
        for (uint32_t g = b->p->granule_begin[i]; g < b->p->granule_begin[i + 1]; g++)
            update_granule(b, unit, (int32_t)g, h.slot, h.raw, near_slot, ring);
    else
        update_granule(b, unit, -1, h.slot, h.raw, near_slot, ring);
    if (b->l->discrete)
        refresh_near(b, unit, h);
}

void ps__finish_gradient(struct ps__build *b, int32_t unit, int32_t near_slot)
{
    int32_t ring = -1;
    if (b->segment == PS_SEGMENT_TRAIN) {
        ps__emit(b, PS_TASK_GRAD_NORM, PS_LANE_COMPUTE, unit, -1);
        ps__arg(b, PS_ARG_GRAD, near_slot);
        uint64_t bytes = b->p->grad_bytes[ps_step_unit_idx(b->p, unit)];
        ps__cost(b, (double)(bytes / sizeof(float)), 0); /* parameters */
        ps__done(b);
    }
    bool own = b->m->grad_offset[ps_step_unit_idx(b->p, unit)] != UINT64_MAX;
    bool adds_up = own && b->segment == PS_SEGMENT_TRAIN_INNER; /* stays for the next pass */
    if (grad_tier(b, unit) != PS_TIER_DEVICE && !adds_up) {
        ring = ring_for(b, unit);
        grad_move(b, PS_TASK_GRAD_OUT, b->l->discrete ? PS_LANE_D2H : PS_LANE_CPU_OPTIM, unit,
                  near_slot, ring);
        if (ring >= 0)
            grad_move(b, PS_TASK_GRAD_WRITE, PS_LANE_DISK_WRITE, unit, -1, ring);
    }
    if (ps_step_updates_inside(b->p, b->l, ps_step_unit_idx(b->p, unit)))
        update_unit(b, unit, near_slot, ring);
}

void ps__update_before(struct ps__build *b, int32_t unit)
{
    if (b->l->update != PS_UPDATE_NEXT_FORWARD)
        return;
    if (ps__trained(b, unit))
        update_unit(b, unit, -1, -1);
    if (unit == PS_UNIT_HEAD && b->m->commits) {
        ps__emit(b, PS_TASK_COMMIT, PS_LANE_COMMIT, PS_UNIT_ALL, -1);
        ps__done(b);
    }
}

static void commit(struct ps__build *b, uint32_t flags)
{
    if (!b->m->commits)
        return;
    b->flags = flags;
    ps__emit(b, PS_TASK_COMMIT, PS_LANE_COMMIT, PS_UNIT_ALL, -1);
    ps__done(b);
    b->flags = 0;
}

/* Is there still an update to make when the pass is done? */
static bool left(const struct ps__build *b, int32_t unit)
{
    return ps__trained(b, unit) &&
           !ps_step_updates_inside(b->p, b->l, ps_step_unit_idx(b->p, unit));
}

/* Last layer first: what the next forward pass needs first is updated last and still there. */
void ps__update_after(struct ps__build *b)
{
    ps__emit(b, PS_TASK_CLIP, PS_LANE_COMPUTE, PS_UNIT_ALL, -1);
    ps__done(b);
    if (b->l->update == PS_UPDATE_NEXT_FORWARD)
        return;
    if (left(b, PS_UNIT_HEAD))
        update_unit(b, PS_UNIT_HEAD, -1, -1);
    for (int32_t l = b->p->n_layer - 1; l >= 0; l--)
        if (left(b, l))
            update_unit(b, l, -1, -1);
    if (left(b, PS_UNIT_EMBED))
        update_unit(b, PS_UNIT_EMBED, -1, -1);
    commit(b, PS_TASK_TRAILS);
}

void ps__update_all(struct ps__build *b)
{
    bool again = b->l->update == PS_UPDATE_INSIDE && b->l->clip == PS_CLIP_EXACT;
    if (b->l->update != PS_UPDATE_NEXT_FORWARD && !again)
        return;
    for (int32_t i = 0; i < b->p->n_layer + 2; i++) {
        int32_t unit = i == 0 ? PS_UNIT_EMBED : i == b->p->n_layer + 1 ? PS_UNIT_HEAD : i - 1;
        if (ps__trained(b, unit))
            update_unit(b, unit, -1, -1);
    }
    commit(b, 0);
}
