/* Streamed updates of full fine-tuning: where gradients go, and the tasks that update a unit on the
 * host, granule by granule. See step.h. */
#include <assert.h>

#include "runtime/train/step_build_internal.h"

static enum ps_tier grad_tier(const struct ps__build *b, int32_t unit)
{
    if (b->p->zeroth)
        return PS_TIER_DEVICE; /* there is none */
    return b->l->grad[ps_step_unit_idx(b->p, unit)];
}

static enum ps_update_when when(const struct ps__build *b, int32_t unit)
{
    return ps_step_unit_update(b->p, b->l, ps_step_unit_idx(b->p, unit));
}

/* Moves a unit's gradient, or that of one granule (granule >= 0), through ring buffer `ring`. */
static void grad_move(struct ps__build *b, enum ps_task_kind kind, enum ps_lane lane, int32_t unit,
                      int32_t granule, int32_t near_slot, int32_t ring)
{
    ps__emit(b, kind, lane, unit, -1);
    ps__arg(b, PS_ARG_GRAD, near_slot);
    ps__arg(b, PS_ARG_GRAD_HOST, ring);
    ps__arg(b, PS_ARG_GRANULE, granule);
    ps__cost(b, 0,
             granule < 0 ? ps_step_keep_bytes(b->p, b->m, ps_step_unit_idx(b->p, unit))
                         : ps_step_piece_bytes(b->p, b->m, granule));
    ps__done(b);
}

static int32_t next_ring(struct ps__build *b)
{
    return b->grad_host_next++ % b->l->grad_ring;
}

/* From where it is made to where it is kept; returns the ring buffer that it has passed. */
static int32_t grad_out(struct ps__build *b, int32_t unit, int32_t granule, int32_t near_slot)
{
    int32_t ring = granule < 0 ? -1 : next_ring(b);
    /* not on cpu_optim: it would wait there for updates, and compute for its slot */
    grad_move(b, PS_TASK_GRAD_OUT, PS_LANE_D2H, unit, granule, near_slot, ring);
    if (ring >= 0)
        grad_move(b, PS_TASK_GRAD_WRITE, PS_LANE_DISK_WRITE, unit, granule, -1, ring);
    return ring;
}

/* The other way, to be added to. */
static void grad_in(struct ps__build *b, int32_t unit, int32_t granule, int32_t near_slot)
{
    int32_t ring = granule < 0 ? -1 : next_ring(b);
    if (ring >= 0)
        grad_move(b, PS_TASK_GRAD_READ, PS_LANE_DISK_STATE, unit, granule, near_slot, ring);
    grad_move(b, PS_TASK_GRAD_IN, b->l->discrete ? PS_LANE_H2D : PS_LANE_CPU_OPTIM, unit, granule,
              near_slot, ring);
}

int32_t ps__begin_gradient(struct ps__build *b, int32_t unit)
{
    int32_t i = ps_step_unit_idx(b->p, unit);
    bool own = b->m->grad_offset[i] != UINT64_MAX;
    int32_t slot = own ? -1 : b->grad_next++ % b->l->grad_slots;
    if (own || !b->m->several_passes)
        return slot; /* made anew, or added to where it is */
    if (grad_tier(b, unit) != PS_TIER_DISK)
        grad_in(b, unit, -1, slot);
    else
        for (uint32_t g = b->p->granule_begin[i]; g < b->p->granule_begin[i + 1]; g++)
            grad_in(b, unit, (int32_t)g, slot);
    return slot;
}

/* Where the host updates a unit's weights. */
struct home {
    int32_t slot, raw;
};

static void read_state(struct ps__build *b, int32_t unit, int32_t granule, int32_t state)
{
    ps__emit(b, PS_TASK_READ_STATE, PS_LANE_DISK_STATE, unit, -1);
    ps__arg(b, PS_ARG_STATE, state);
    ps__arg(b, PS_ARG_GRANULE, granule);
    ps__cost(b, 0, b->p->granule[granule].state_bytes);
    ps__done(b);
}

/* One granule, or (granule < 0) a whole unit, whose states are then in memory. */
static void update_granule(struct ps__build *b, int32_t unit, int32_t granule, struct home h,
                           int32_t near_slot, int32_t ring)
{
    const struct ps_granule *g = granule < 0 ? NULL : &b->p->granule[granule];
    bool stored = b->l->state[ps_step_unit_idx(b->p, unit)] == PS_TIER_DISK;
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
    }
    if (stored) {
        bool there = b->state_next < b->state_ahead;
        state = b->state_next++ % b->l->state_slots;
        if (!there)
            read_state(b, unit, granule, state);
    }
    ps__emit(b, PS_TASK_UPDATE_HOST, PS_LANE_CPU_OPTIM, unit, -1);
    ps__arg(b, PS_ARG_STATE, state);
    ps__arg(b, PS_ARG_GRANULE, granule);
    ps__arg(b, PS_ARG_SLOT, h.slot);
    ps__arg(b, PS_ARG_RAW, h.raw);
    ps__arg(b, PS_ARG_GRAD, near_slot);
    ps__arg(b, PS_ARG_GRAD_HOST, ring);
    ps__arg(b, PS_ARG_IMAGE, b->image);
    if (b->p->zeroth)
        params *= (b->image < 0 ? 1 : 2) * PS_ZEROTH_PASSES;
    ps__cost(b, flops, (uint64_t)params); /* the lane's rates are in parameters */
    ps__done(b);
    if (!stored)
        return;
    uint32_t flags = b->flags;
    if (when(b, unit) != PS_UPDATE_NEXT_FORWARD && b->segment == PS_SEGMENT_TRAIN)
        b->flags |= PS_TASK_TRAILS;
    /* Weights first: whoever waits for the states' write then knows that both have ended. */
    ps__emit(b, PS_TASK_WRITE_WEIGHTS, PS_LANE_DISK_WRITE, unit, -1);
    ps__arg(b, PS_ARG_GRANULE, granule);
    ps__arg(b, PS_ARG_SLOT, h.slot);
    ps__arg(b, PS_ARG_RAW, h.raw);
    ps__cost(b, 0, g->weight_bytes);
    ps__done(b);
    ps__emit(b, PS_TASK_WRITE_STATE, PS_LANE_DISK_WRITE, unit, -1);
    ps__arg(b, PS_ARG_STATE, state);
    ps__arg(b, PS_ARG_GRANULE, granule);
    ps__cost(b, 0, g->state_bytes);
    ps__done(b);
    b->flags = flags;
}

static int32_t unit_at(const struct ps__build *b, int32_t unit_idx)
{
    if (unit_idx == 0)
        return PS_UNIT_EMBED;
    return unit_idx > b->p->n_layer ? PS_UNIT_HEAD : unit_idx - 1;
}

/* Granules with states on disk of the units that are updated at a time. */
static int32_t state_granules(const struct ps__build *b, enum ps_update_when at)
{
    int32_t n = 0;
    for (int32_t i = 0; i < b->p->n_layer + 2; i++)
        if (b->l->state[i] == PS_TIER_DISK && ps_step_unit_update(b->p, b->l, i) == at)
            n += (int32_t)(b->p->granule_begin[i + 1] - b->p->granule_begin[i]);
    return n;
}

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
    bool wanted =
        when(b, unit) == PS_UPDATE_NEXT_FORWARD && b->segment == PS_SEGMENT_TRAIN && !b->p->zeroth;
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

/* near_slot: where the gradient has been made; `made`: just now, and it is still to go where it is
 * kept, if that is the disk. */
static void update_unit(struct ps__build *b, int32_t unit, int32_t near_slot, bool made)
{
    int32_t i = ps_step_unit_idx(b->p, unit);
    struct home h = find_home(b, unit);
    bool kept = grad_tier(b, unit) == PS_TIER_DISK;
    if (b->state_ahead > 0 && when(b, unit) == PS_UPDATE_INSIDE && !b->inside_begun) {
        /* so that the ring comes to its end with the last of them: what is read for the next pass
         * then takes the places that have long been free */
        int32_t inside = state_granules(b, PS_UPDATE_INSIDE);
        int32_t places = b->l->state_slots;
        b->state_next += (places - (b->state_next + inside) % places) % places;
        b->inside_begun = true;
    }
    if (!kept && b->l->state[i] != PS_TIER_DISK) {
        update_granule(b, unit, -1, h, near_slot, -1);
    } else {
        for (uint32_t k = b->p->granule_begin[i]; k < b->p->granule_begin[i + 1]; k++) {
            int32_t g = (int32_t)k;
            int32_t ring = !kept ? -1 : made ? grad_out(b, unit, g, near_slot) : next_ring(b);
            if (kept && !made)
                grad_move(b, PS_TASK_GRAD_READ, PS_LANE_DISK_STATE, unit, g, -1, ring);
            update_granule(b, unit, g, h, near_slot, ring);
        }
    }
    if (b->l->discrete)
        refresh_near(b, unit, h);
}

void ps__finish_gradient(struct ps__build *b, int32_t unit, int32_t near_slot)
{
    int32_t i = ps_step_unit_idx(b->p, unit);
    if (b->segment == PS_SEGMENT_TRAIN) {
        ps__emit(b, PS_TASK_GRAD_NORM, PS_LANE_COMPUTE, unit, -1);
        ps__arg(b, PS_ARG_GRAD, near_slot);
        ps__cost(b, (double)(b->p->grad_bytes[i] / sizeof(float)), 0); /* parameters */
        ps__done(b);
    }
    bool own = b->m->grad_offset[i] != UINT64_MAX;
    bool adds_up = own && b->segment == PS_SEGMENT_TRAIN_INNER; /* stays for the next pass */
    bool inside = when(b, unit) == PS_UPDATE_INSIDE;
    enum ps_tier tier = adds_up ? PS_TIER_DEVICE : grad_tier(b, unit);
    if (tier == PS_TIER_HOST)
        PS_IGNORE(grad_out(b, unit, -1, near_slot), "no ring buffer");
    for (uint32_t g = b->p->granule_begin[i];
         tier == PS_TIER_DISK && !inside && g < b->p->granule_begin[i + 1]; g++)
        PS_IGNORE(grad_out(b, unit, (int32_t)g, near_slot), "the buffer is not read here");
    if (inside)
        update_unit(b, unit, near_slot, true);
}

void ps__update_before(struct ps__build *b, int32_t unit)
{
    if (ps__trained(b, unit) && when(b, unit) == PS_UPDATE_NEXT_FORWARD)
        update_unit(b, unit, -1, false);
    if (unit == PS_UNIT_HEAD && b->m->commits && ps_step_defers(b->l)) {
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

void ps__begin_states(struct ps__build *b)
{
    b->state_next = b->state_ahead = b->ahead_next = 0;
    b->inside_begun = false;
    if (b->segment != PS_SEGMENT_TRAIN || !ps_step_defers(b->l) || b->l->state_slots < 1 ||
        (b->l->ablate & (PS_ABLATE_CROSS_STEP | PS_ABLATE_PREFETCH)))
        return;
    int32_t all = state_granules(b, PS_UPDATE_NEXT_FORWARD);
    b->state_ahead = all < b->l->state_slots ? all : b->l->state_slots;
}

/* Those of deferred updates, in the order in which they will be wanted. When updates inside the
 * backward pass have all taken their places; then in shares, so that what the backward pass reads
 * itself is not held up. */
void ps__read_states_ahead(struct ps__build *b, int32_t layer)
{
    const int32_t n = b->p->n_layer;
    int32_t inside = PS_UNIT_EMBED; /* the last unit that is updated inside the backward pass */
    if (!ps__trained(b, PS_UNIT_EMBED) || when(b, PS_UNIT_EMBED) != PS_UPDATE_INSIDE)
        for (inside = 0; inside < n; inside++)
            if (ps__trained(b, inside) && when(b, inside) == PS_UPDATE_INSIDE)
                break;
    if (layer > inside)
        return;
    int32_t lowest = b->p->embed_trained ? 0 : b->p->first_trained;
    int32_t shares = inside >= lowest ? (inside < n ? inside : n - 1) - lowest + 1 : 1;
    int32_t done = inside >= lowest ? shares - (layer - lowest) : 1;
    int32_t goal = (int32_t)((int64_t)b->state_ahead * (done < shares ? done : shares) / shares);
    int32_t at = 0;
    uint32_t flags = b->flags;
    b->flags |= PS_TASK_TRAILS;
    for (int32_t i = 0; i < n + 2 && b->ahead_next < goal; i++) {
        if (b->l->state[i] != PS_TIER_DISK ||
            ps_step_unit_update(b->p, b->l, i) != PS_UPDATE_NEXT_FORWARD)
            continue;
        for (uint32_t g = b->p->granule_begin[i];
             g < b->p->granule_begin[i + 1] && b->ahead_next < goal; g++, at++)
            if (at == b->ahead_next)
                read_state(b, unit_at(b, i), (int32_t)g, b->ahead_next++);
    }
    b->flags = flags;
}

/* Last layer first: what the next forward pass needs first is updated last and still there. */
void ps__update_after(struct ps__build *b)
{
    ps__emit(b, PS_TASK_CLIP, PS_LANE_COMPUTE, PS_UNIT_ALL, -1);
    ps__done(b);
    for (int32_t i = b->p->n_layer + 1; i >= 0; i--) {
        int32_t unit = unit_at(b, i);
        if (ps__trained(b, unit) && when(b, unit) == PS_UPDATE_AFTER)
            update_unit(b, unit, -1, false);
    }
    if (!ps_step_defers(b->l))
        commit(b, PS_TASK_TRAILS);
}

void ps__update_all(struct ps__build *b)
{
    bool again = b->l->update == PS_UPDATE_INSIDE && b->l->clip == PS_CLIP_EXACT;
    if (!ps_step_defers(b->l) && !again)
        return;
    for (int32_t i = 0; i < b->p->n_layer + 2; i++) {
        int32_t unit = unit_at(b, i);
        if (ps__trained(b, unit) && (again || when(b, unit) == PS_UPDATE_NEXT_FORWARD))
            update_unit(b, unit, -1, false);
    }
    commit(b, 0);
}
