/* Choices of full fine-tuning: where states and gradients lie and how many buffers they have on
 * their ways. See choice.c. */
#include <stdio.h>

#include "offload/choice_internal.h"

/* Buffers that let reading, updating and writing go on beside one another, and those that even out
 * what they differ by. */
#define STATE_SLOTS 3
#define STATE_SLOTS_MORE 6
#define STATE_SLOTS_MOST 256
#define GRAD_SLOTS 2
#define GRAD_SLOTS_MORE 4
#define GRAD_RING 3
#define GRAD_RING_MORE 48

static bool is_trained(const struct ps_step_shape *p, int32_t unit_idx)
{
    return p->grad_bytes && p->grad_bytes[unit_idx] > 0;
}

static bool is_layer(const struct ps_step_shape *p, int32_t unit_idx)
{
    return unit_idx > 0 && unit_idx <= p->n_layer;
}

/* Number of a layer among the trained ones. */
static int32_t trained_rank(const struct ps_step_shape *p, int32_t unit_idx)
{
    int32_t rank = 0;
    for (int32_t i = 1; i < unit_idx; i++)
        rank += is_trained(p, i);
    return rank;
}

static int32_t trained_layers(const struct ps_step_shape *p)
{
    return trained_rank(p, p->n_layer + 1);
}

bool ps__fill_state_in_memory(const struct ps__fill *f, int32_t unit_idx)
{
    const struct ps_step_shape *p = f->req->shape;
    if (!ps__fill_streams_updates(f) || !is_trained(p, unit_idx))
        return false;
    if (f->choice->state != PS__STATE_MIXED)
        return f->choice->state == PS__STATE_MEMORY;
    if (!is_layer(p, unit_idx))
        return f->k.memory_ends;
    return ps__chosen(trained_rank(p, unit_idx), f->k.memory_states, trained_layers(p));
}

/* Do the gradients of embedding and head wait elsewhere, as those of layers do? In a pass of a step
 * but the last they are added to where they are; see ps_step_grad_shared. */
static bool ends_move(const struct ps__fill *f, int32_t unit_idx)
{
    const struct ps_step_shape *p = f->req->shape;
    return f->choice->grad == PS__GRAD_MIXED && is_trained(p, unit_idx) &&
           p->micro_max <= f->l->group && !(unit_idx == 0 && p->tied);
}

/* Does the gradient of a layer go into its update at once and nowhere else? */
static bool dropped(const struct ps__fill *f, int32_t unit_idx)
{
    return f->choice->grad == PS__GRAD_DROPPED &&
           ps_step_unit_update(f->req->shape, f->l, unit_idx) == PS_UPDATE_INSIDE;
}

/* Those that are deferred wait as others do. */
static enum ps__grad_choice keeps(const struct ps__fill *f)
{
    return f->choice->grad == PS__GRAD_DROPPED ? PS__GRAD_MIXED : f->choice->grad;
}

/* Trained layers whose gradients wait, in memory or on disk. */
static int32_t kept_layers(const struct ps__fill *f)
{
    int32_t kept = 0;
    for (int32_t i = 1; i <= f->req->shape->n_layer; i++)
        kept += is_trained(f->req->shape, i) && !dropped(f, i);
    return kept;
}

/* With embedding and head, where theirs may. */
static int32_t kept_units(const struct ps__fill *f)
{
    return kept_layers(f) + (f->choice->grad == PS__GRAD_DROPPED ? 0 : 2);
}

/* Where a layer's gradient waits. */
static enum ps_tier layer_grad(const struct ps__fill *f, int32_t unit_idx)
{
    switch (dropped(f, unit_idx) ? PS__GRAD_DROPPED : keeps(f)) {
    case PS__GRAD_OWN:
        return f->req->discrete ? PS_TIER_HOST : PS_TIER_DEVICE;
    case PS__GRAD_DROPPED:
        return PS_TIER_DEVICE;
    case PS__GRAD_MEMORY:
        return PS_TIER_HOST;
    case PS__GRAD_MIXED:
        break;
    }
    int32_t rank = 0;
    for (int32_t i = 1; i < unit_idx; i++)
        rank += is_trained(f->req->shape, i) && !dropped(f, i);
    int32_t kept = kept_layers(f);
    return ps__chosen(rank, ps__least_of(f->k.host_grads, kept), kept) ? PS_TIER_HOST
                                                                       : PS_TIER_DISK;
}

void ps__assemble_updates(const struct ps__fill *f)
{
    const struct ps_step_shape *p = f->req->shape;
    const bool discrete = f->req->discrete;
    struct ps_step_layout *l = f->l;
    int32_t layers = trained_layers(p);
    bool disk_state = false;
    bool disk_grad = false;
    for (int32_t i = 0; i < p->n_layer + 2; i++) {
        bool layer = is_layer(p, i);
        bool memory = ps__fill_state_in_memory(f, i);
        enum ps_tier near = discrete ? PS_TIER_HOST : PS_TIER_DEVICE;
        l->state[i] = memory || !is_trained(p, i) ? near : PS_TIER_DISK;
        bool waits = is_trained(p, i) && !p->zeroth;
        l->grad[i] = layer && waits ? layer_grad(f, i) : near;
        if (!layer && waits && ends_move(f, i)) /* the last to stay in memory: the largest */
            l->grad[i] = f->k.host_grads > layers + (i > 0) ? PS_TIER_HOST : PS_TIER_DISK;
        disk_state |= l->state[i] == PS_TIER_DISK;
        disk_grad |= l->grad[i] == PS_TIER_DISK;
    }
    l->ends_own = f->k.ends_own;
    l->grad_slots =
        f->choice->grad == PS__GRAD_OWN || p->zeroth ? 0 : ps__least_of(f->k.grad_slots, layers);
    l->grad_ring = disk_grad ? f->k.grad_ring : 0;
    l->state_slots = disk_state ? f->k.state_slots : 0;
}

void ps__update_note(const struct ps_step_shape *p, const struct ps_step_layout *l, char *note,
                     size_t size)
{
    static const char *const when[PS_UPDATE_WHEN_COUNT] = {"", "after", "inside", "next"};
    int32_t units = 0;
    int32_t states = 0;
    int32_t grads = 0;
    for (int32_t i = 0; i < p->n_layer + 2; i++) {
        units += is_trained(p, i);
        states += is_trained(p, i) && l->state[i] == PS_TIER_DISK;
        grads += is_trained(p, i) && !p->zeroth && l->grad[i] == PS_TIER_DISK;
    }
    int n = snprintf(note, size, "update %s, %d of %d states", when[l->update], states, units);
    if (n > 0 && (size_t)n < size && l->deferred > 0)
        n += snprintf(note + n, size - (size_t)n, ", %d layers in the next pass", l->deferred);
    if (n > 0 && (size_t)n < size && grads > 0)
        n += snprintf(note + n, size - (size_t)n, ", %d gradients", grads);
    if (n > 0 && (size_t)n < size)
        snprintf(note + n, size - (size_t)n, " on disk");
}

void ps__begin_updates(struct ps__fill *f)
{
    f->k.grad_slots = 1;
    f->k.ends_own = false;
    f->k.grad_ring = 2;
    f->k.state_slots = 1;
    f->k.host_grads_base = 0;
    /* updated in one while the next is read */
    if (f->req->discrete && f->choice->state != PS__STATE_MEMORY)
        f->k.raw_slots = 2;
    ps__reset_update_cache(f);
}

int ps__relieve_updates(struct ps__fill *f)
{
    if (keeps(f) != PS__GRAD_MIXED || f->req->shape->zeroth)
        return 0;
    int ret = ps__fill_relieve_disk(f, &f->k.host_grads, kept_units(f));
    f->k.host_grads_base = f->k.host_grads;
    return ret;
}

int ps__widen_updates(struct ps__fill *f)
{
    int ret = ps__fill_raise(f, &f->k.state_slots, STATE_SLOTS);
    if (ret >= 0)
        ret = ps__fill_raise(f, &f->k.grad_slots, GRAD_SLOTS);
    if (ret >= 0)
        ret = ps__fill_raise(f, &f->k.grad_ring, GRAD_RING);
    return ret;
}

/* A near slot is free for the next layer when the last granule of its gradient is in the ring. */
int ps__widen_updates_more(struct ps__fill *f)
{
    const struct ps_step_shape *p = f->req->shape;
    uint32_t most = 0;
    for (int32_t i = 1; i <= p->n_layer; i++)
        most = p->granule_begin[i + 1] - p->granule_begin[i] > most
                   ? p->granule_begin[i + 1] - p->granule_begin[i]
                   : most;
    int32_t ring = most < GRAD_RING_MORE ? (int32_t)most : GRAD_RING_MORE;
    int ret = ps__fill_raise(f, &f->k.state_slots, STATE_SLOTS_MORE);
    if (ret >= 0 && ring > f->k.grad_ring)
        ret = ps__fill_raise(f, &f->k.grad_ring, ring);
    if (ret >= 0 && f->l->update == PS_UPDATE_INSIDE && f->choice->order == PS__ORDER_GRADS)
        ret = ps__fill_raise(f, &f->k.grad_slots, GRAD_SLOTS_MORE);
    if (ret >= 0 && f->l->update == PS_UPDATE_INSIDE && f->choice->order == PS__ORDER_GRADS)
        ret = ps__fill_turn_on(f, &f->k.ends_own);
    return ret < 0 ? ret : 0;
}

void ps__reset_update_cache(struct ps__fill *f)
{
    f->k.state_slots = ps__least_of(f->k.state_slots, STATE_SLOTS_MORE);
    f->k.host_grads = f->k.host_grads_base;
    f->k.memory_states = 0;
    f->k.memory_ends = false;
}

static int grads_to_memory(struct ps__fill *f)
{
    if (keeps(f) != PS__GRAD_MIXED || f->req->shape->zeroth)
        return 0;
    return ps__fill_raise(f, &f->k.host_grads, kept_units(f));
}

/* Something stays on disk: that all of it fits is what zero-offload says. */
static int states_to_memory(struct ps__fill *f)
{
    if (f->choice->state != PS__STATE_MIXED || f->req->offload_optimizer == PS_TIER_DISK ||
        f->req->offload_weights == PS_TIER_DISK)
        return 0;
    int ret = ps__fill_turn_on(f, &f->k.memory_ends);
    return ret < 0 ? ret
                   : ps__fill_raise(f, &f->k.memory_states, trained_layers(f->req->shape) - 1);
}

int ps__fill_update_cache(struct ps__fill *f, bool first)
{
    if (first != (f->choice->order != PS__ORDER_WEIGHTS))
        return 0;
    bool states_first = f->choice->order == PS__ORDER_STATES;
    int ret = 0;
    if (f->choice->order == PS__ORDER_SLOTS)
        ret = ps__fill_raise(f, &f->k.state_slots, STATE_SLOTS_MOST);
    if (ret < 0)
        return ret;
    ret = states_first ? states_to_memory(f) : grads_to_memory(f);
    if (ret >= 0)
        ret = states_first ? grads_to_memory(f) : states_to_memory(f);
    return ret < 0 ? ret : 0;
}
