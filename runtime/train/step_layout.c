/* Layouts and where things lie in the buffers: see step.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/step_internal.h"

#define PAGE ((uint64_t)4096)

static const struct {
    const char *name;
    unsigned bit;
} ablation[] = {{"prefetch", PS_ABLATE_PREFETCH},
                {"turns", PS_ABLATE_TURNS},
                {"cross-step", PS_ABLATE_CROSS_STEP},
                {"forwarding", PS_ABLATE_FORWARDING},
                {"layer-major", PS_ABLATE_LAYER_MAJOR}};

unsigned ps_ablation_find(const char *name)
{
    for (size_t i = 0; i < sizeof ablation / sizeof *ablation; i++)
        if (strcmp(ablation[i].name, name) == 0)
            return ablation[i].bit;
    return 0;
}

const char *ps_ablation_name(unsigned bit)
{
    for (size_t i = 0; i < sizeof ablation / sizeof *ablation; i++)
        if (ablation[i].bit == bit)
            return ablation[i].name;
    return "";
}

const char *ps_segment_name(enum ps_segment s)
{
    static const char *const name[PS_SEGMENT_COUNT] = {
        "train", "update", "eval", "prologue_train", "prologue_eval", "train_inner"};
    assert(s < PS_SEGMENT_COUNT);
    return name[s];
}

const char *ps_update_when_name(enum ps_update_when w)
{
    static const char *const name[PS_UPDATE_WHEN_COUNT] = {"resident", "after-backward",
                                                           "inside-backward", "next-forward"};
    assert(w < PS_UPDATE_WHEN_COUNT);
    return name[w];
}

int ps_step_layout_init(struct ps_step_layout *l, const struct ps_step_shape *shape)
{
    size_t layers = (size_t)shape->n_layer;
    memset(l, 0, sizeof *l);
    l->strategy = "resident";
    l->group = 1;
    l->eval_group = 1;
    l->x_ring = 1;
    l->weight = calloc(layers + 2, sizeof *l->weight);
    l->recompute = calloc(layers + 1, sizeof *l->recompute);
    l->boundary = calloc(layers + 1, sizeof *l->boundary);
    l->saved = calloc(layers + 1, sizeof *l->saved);
    l->state = calloc(layers + 2, sizeof *l->state);
    l->grad = calloc(layers + 2, sizeof *l->grad);
    if (!l->weight || !l->recompute || !l->boundary || !l->saved || !l->state || !l->grad) {
        ps_step_layout_fini(l);
        return -ENOMEM;
    }
    for (size_t i = 0; i < layers; i++)
        l->recompute[i] = PS_RECOMPUTE_R4;
    return 0;
}

int ps_step_layout_copy(struct ps_step_layout *to, const struct ps_step_layout *from,
                        const struct ps_step_shape *shape)
{
    size_t layers = (size_t)shape->n_layer;
    struct ps_step_layout made;
    int ret = ps_step_layout_init(&made, shape);
    if (ret < 0)
        return ret;
    memcpy(made.weight, from->weight, (layers + 2) * sizeof *made.weight);
    memcpy(made.recompute, from->recompute, layers * sizeof *made.recompute);
    memcpy(made.boundary, from->boundary, layers * sizeof *made.boundary);
    memcpy(made.saved, from->saved, layers * sizeof *made.saved);
    memcpy(made.state, from->state, (layers + 2) * sizeof *made.state);
    memcpy(made.grad, from->grad, (layers + 2) * sizeof *made.grad);
    *to = *from;
    to->state = made.state;
    to->grad = made.grad;
    to->weight = made.weight;
    to->recompute = made.recompute;
    to->boundary = made.boundary;
    to->saved = made.saved;
    return 0;
}

void ps_step_layout_fini(struct ps_step_layout *l)
{
    free(l->weight);
    free(l->recompute);
    free(l->boundary);
    free(l->saved);
    free(l->state);
    free(l->grad);
    memset(l, 0, sizeof *l);
}

static uint64_t page_up(uint64_t bytes)
{
    return (bytes + PAGE - 1) & ~(PAGE - 1);
}

static uint64_t at_least(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Offsets of the units of one class, each on pages of its own; returns the sum. */
static uint64_t place_units(uint64_t *offset, const uint64_t *bytes, int32_t units)
{
    uint64_t at = 0;
    for (int32_t i = 0; i < units; i++) {
        offset[i] = at;
        at += bytes ? page_up(bytes[i]) : 0;
    }
    return at;
}

/* Kept pieces that are moved. */
static int check_saved(const struct ps_step_shape *p, const struct ps_step_layout *l,
                       struct ps_error *err)
{
    for (int32_t i = p->first_trained; p->trains && i < p->n_layer; i++) {
        if (l->saved[i] == PS_TIER_DEVICE)
            continue;
        if (l->recompute[i] == PS_RECOMPUTE_R4)
            return ps_error_full(err, PS_EUSAGE, NULL, "placement", "give it a level below R4",
                                 "layer %d keeps nothing that could be moved", i);
        if (l->saved[i] == PS_TIER_HOST && !l->discrete)
            return ps_error_full(err, PS_EUSAGE, NULL, "placement", "use device or disk",
                                 "what layer %d keeps is placed on the host, which this device has "
                                 "no tier for",
                                 i);
        if (l->saved_ring < 1 || (l->saved[i] == PS_TIER_DISK && l->discrete && l->host_ring < 1))
            return ps_error_full(err, PS_EUSAGE, NULL, "placement",
                                 "give saved_ring >= 1, and on a device with memory of its own "
                                 "host_ring >= 2",
                                 "what layer %d keeps is moved, but there is no buffer on its way",
                                 i);
    }
    return 0;
}

static int check_layout(const struct ps_step_shape *p, const struct ps_step_layout *l,
                        struct ps_error *err)
{
    bool moves = false;
    for (int32_t i = 0; i < p->n_layer; i++) {
        moves |= i >= p->first_trained && l->boundary[i] != PS_TIER_DEVICE;
        if (i >= p->first_trained && l->boundary[i] == PS_TIER_DISK && l->discrete &&
            l->host_ring < 1)
            return ps_error_full(err, PS_EUSAGE, NULL, "placement", "give host_ring >= 2",
                                 "activations go to the disk, but there is no host buffer on "
                                 "their way");
        if (l->boundary[i] == PS_TIER_HOST && !l->discrete)
            return ps_error_full(err, PS_EUSAGE, NULL, "placement", "use device or disk",
                                 "the activations of layer %d are placed on the host, which this "
                                 "device has no tier for",
                                 i);
    }
    for (int32_t i = 0; i < p->n_layer + 2; i++) {
        bool off = l->weight[i] != PS_TIER_DEVICE;
        if (off && !p->frozen && l->update == PS_UPDATE_RESIDENT)
            return ps_error_full(err, PS_EUSAGE, NULL, "strategy",
                                 "use a strategy that updates on the host (see penstock list "
                                 "strategies), or --strategy resident",
                                 "weights that are trained cannot be streamed and updated near");
        if (l->weight[i] == PS_TIER_HOST && !l->discrete)
            return ps_error_full(err, PS_EUSAGE, NULL, "placement", "use device or disk",
                                 "weights are placed on the host, which this device has no tier "
                                 "for");
        if (off && l->near_slots < 1)
            return ps_error_full(err, PS_EUSAGE, NULL, "placement", "give near_slots >= 1",
                                 "weights are streamed but there is no slot for them");
    }
    bool head_moves = l->weight[p->n_layer + 1] != PS_TIER_DEVICE;
    if (head_moves && (p->frozen || !p->trains || p->tied))
        return ps_error_full(err, PS_EUSAGE, NULL, "placement", "place it on the device",
                             "the output head is streamed only where it is trained and no other "
                             "than the embedding");
    if (p->tied && l->weight[0] != PS_TIER_DEVICE)
        return ps_error_full(err, PS_EUSAGE, NULL, "placement", "place it on the device",
                             "an embedding that is the output head too is always pinned");
    int32_t lot = ps__layout_lot(l);
    int32_t ring = lot < l->group ? 2 * lot + 1 : l->group + (moves ? 1 : 0);
    if (l->group < 1 || l->eval_group < 1 || l->interleave < 0 || l->x_ring < ring)
        return ps_error_full(err, PS_EUSAGE, NULL, "placement",
                             "x_ring is at least group, and more when boundaries move; with "
                             "interleave twice that and one",
                             "group %d, eval_group %d and x_ring %d do not go together", l->group,
                             l->eval_group, l->x_ring);
    if (p->zeroth && l->group % 2 != 0)
        return ps_error_full(err, PS_EUSAGE, NULL, "placement", "give an even group",
                             "without gradients every micro-batch goes through a pass twice, and "
                             "group %d is odd",
                             l->group);
    return 0;
}

/* The units that have something to train, and whether their gradients wait elsewhere. */
static bool trained(const struct ps_step_shape *p, int32_t i)
{
    return p->grad_bytes && p->grad_bytes[i] > 0;
}

/* Do embedding and head (unit index i) have a gradient that is not wanted when the next is made? */
static bool passes_by(const struct ps_step_shape *p, const struct ps_step_layout *l, int32_t i)
{
    bool layer = i > 0 && i <= p->n_layer;
    bool whole_step = p->micro_max <= (l->group > 0 ? l->group : 1);
    bool held = i == 0 && p->tied; /* begun by the head, completed at the end */
    if (layer || held || !whole_step || l->grad_slots == 0 || !trained(p, i))
        return false;
    return l->grad[i] != PS_TIER_DEVICE ||
           (l->update == PS_UPDATE_INSIDE && l->clip != PS_CLIP_EXACT);
}

bool ps_step_grad_shared(const struct ps_step_shape *p, const struct ps_step_layout *l, int32_t i)
{
    return !l->ends_own && passes_by(p, l, i);
}

enum ps_update_when ps_step_unit_update(const struct ps_step_shape *p,
                                        const struct ps_step_layout *l, int32_t i)
{
    if (l->update != PS_UPDATE_INSIDE)
        return l->update;
    if (i > 0 && i <= p->n_layer) {
        int64_t from_last = p->n_layer - i; /* the first layer begins the last share */
        bool deferred = (from_last + 1) * l->deferred / p->n_layer !=
                        from_last * l->deferred / p->n_layer;
        return deferred ? PS_UPDATE_NEXT_FORWARD : PS_UPDATE_INSIDE;
    }
    bool waits = i == 0 && l->ends_own && l->deferred > 0;
    if (l->grad[i] == PS_TIER_DEVICE && passes_by(p, l, i) && !waits)
        return PS_UPDATE_INSIDE;
    return l->deferred > 0 ? PS_UPDATE_NEXT_FORWARD : PS_UPDATE_AFTER;
}

static int bad_update(struct ps_error *err, const char *what, const char *remedy)
{
    return ps_error_full(err, PS_EUSAGE, NULL, "placement", remedy, "%s", what);
}

static int check_update_unit(const struct ps_step_shape *p, const struct ps_step_layout *l,
                             int32_t i, struct ps_error *err)
{
    bool layer = i > 0 && i <= p->n_layer;
    enum ps_tier near = l->discrete ? PS_TIER_HOST : PS_TIER_DEVICE;
    if (l->state[i] != near && l->state[i] != PS_TIER_DISK)
        return bad_update(err, "optimizer states are placed where updates on the host cannot be",
                          "place them on the host or on disk");
    if (l->weight[i] == PS_TIER_DISK && l->state[i] != PS_TIER_DISK)
        return bad_update(err, "weights are on disk, but the optimizer states are in memory",
                          "place the states on disk too");
    if (p->zeroth)
        return 0; /* without gradients */
    if (l->discrete && l->grad[i] == PS_TIER_DEVICE)
        return bad_update(err, "gradients stay on the device, but updates run on the host",
                          "place the gradients on the host");
    bool slot = layer && l->grad_slots > 0;
    bool redone =
        ps_step_unit_update(p, l, i) != PS_UPDATE_INSIDE || l->clip == PS_CLIP_EXACT;
    if (slot && l->grad[i] == PS_TIER_DEVICE && redone)
        return bad_update(err,
                          "gradients are made in shared slots and must wait, but are kept "
                          "nowhere",
                          "place the gradients on the host or on disk, or give grad_slots 0");
    if (l->update == PS_UPDATE_INSIDE && l->state[i] != PS_TIER_DISK)
        return bad_update(err,
                          "updates inside the backward pass must be revocable, but states are "
                          "in memory",
                          "place all optimizer states on disk, or use another strategy");
    return 0;
}

/* Streamed updates: does the layout hold together? */
static int check_update(const struct ps_step_shape *p, const struct ps_step_layout *l,
                        struct ps_error *err)
{
    if (l->update == PS_UPDATE_RESIDENT || !p->trains)
        return 0;
    if (p->frozen)
        return bad_update(err, "adapters are updated where they lie", "use update resident");
    if (p->zeroth && l->update != PS_UPDATE_NEXT_FORWARD)
        return bad_update(
            err,
            "this strategy updates in or after a backward pass, which the method does "
            "not have",
            "use update next-forward (--strategy update-next-forward), or resident");
    bool disk_state = false;
    bool disk_grad = false;
    for (int32_t i = 0; i < p->n_layer + 2; i++) {
        int ret = trained(p, i) ? check_update_unit(p, l, i, err) : 0;
        if (ret < 0)
            return ret;
        disk_state |= trained(p, i) && l->state[i] == PS_TIER_DISK;
        disk_grad |= trained(p, i) && !p->zeroth && l->grad[i] == PS_TIER_DISK;
    }
    if (disk_state && l->state_slots < 1)
        return bad_update(err, "optimizer states are on disk without a buffer", "give state_slots");
    if (disk_grad && l->grad_ring < 1)
        return bad_update(err, "gradients are on disk without a buffer", "give grad_ring");
    if (l->deferred < 0 || l->deferred > p->n_layer ||
        (l->deferred > 0 && l->update != PS_UPDATE_INSIDE))
        return bad_update(err, "deferred layers are part of updates inside the backward pass",
                          "give deferred 0, or at most the number of layers");
    if (l->interleave > 0)
        return bad_update(err, "interleave does not go with streamed updates", "leave it out");
    if (l->update != PS_UPDATE_AFTER && l->group < p->micro_max)
        return bad_update(err,
                          "this strategy takes all micro-batches of a step in one pass, but the "
                          "group is smaller",
                          "raise the memory budget, lower --grad-accum, or use --strategy "
                          "zero-infinity");
    return 0;
}

/* Which units are streamed, and the sizes of slots. */
static int place_weights(struct ps_step_map *m, const struct ps_step_shape *p,
                         const struct ps_step_layout *l, struct ps_error *err)
{
    uint64_t pinned = 0;
    uint64_t host = 0;
    for (int32_t i = 0; i < p->n_layer + 2; i++) {
        m->pinned_offset[i] = l->weight[i] == PS_TIER_DEVICE ? pinned : UINT64_MAX;
        if (l->weight[i] == PS_TIER_DEVICE)
            pinned += page_up(p->pinned_bytes[i]);
    }
    for (uint32_t i = 0; i < p->source->unit_count; i++) {
        const struct ps_unit_source *u = &p->source->unit[i];
        enum ps_tier tier = l->weight[ps_step_unit_idx(p, u->unit)];
        m->stream_idx[i] = tier == PS_TIER_DEVICE ? -1 : m->stream_count++;
        m->host_offset[i] = UINT64_MAX;
        /* updated on the host while the device computes with its own copy */
        int32_t unit = ps_step_unit_idx(p, u->unit);
        bool imaged = l->discrete && l->update != PS_UPDATE_RESIDENT && trained(p, unit) &&
                      tier == PS_TIER_DEVICE;
        if (imaged && l->state[unit] == PS_TIER_HOST) {
            m->host_offset[i] = host;
            host += page_up(u->raw_bytes);
        } else if (imaged) {
            m->raw_slot_bytes = at_least(m->raw_slot_bytes, page_up(u->raw_bytes));
        }
        if (tier == PS_TIER_DEVICE)
            continue;
        m->slot_bytes = at_least(m->slot_bytes, page_up(u->near_bytes));
        if (tier == PS_TIER_HOST) {
            m->host_offset[i] = host;
            host += page_up(u->raw_bytes);
        } else if (l->discrete || !u->direct) {
            m->raw_slot_bytes = at_least(m->raw_slot_bytes, page_up(u->raw_bytes));
        }
    }
    if (m->raw_slot_bytes > 0 && l->raw_slots < 1)
        return ps_error_full(err, PS_EUSAGE, NULL, "placement", "give raw_slots >= 1",
                             "weights must be copied or converted on their way, but there is no "
                             "raw slot for them");
    m->bytes[PS_BUF_PINNED] = pinned;
    m->bytes[PS_BUF_HOST_UNITS] = host;
    m->bytes[PS_BUF_SLOTS] = m->slot_bytes * (uint64_t)l->near_slots;
    m->bytes[PS_BUF_RAW] = m->raw_slot_bytes * (uint64_t)l->raw_slots;
    return 0;
}

/* Kept pieces by layer and micro-batch in the tier where they wait, buffers for those that are
 * moved, and one rest for all: as much as any layer drops. */
static void place_saved(struct ps_step_map *m, const struct ps_step_shape *p,
                        const struct ps_step_layout *l)
{
    uint64_t at[PS_TIER_COUNT] = {0};
    int32_t count[PS_TIER_COUNT] = {0};
    uint64_t rest = p->trains ? 0 : p->rest_bytes[PS_RECOMPUTE_R4];
    for (int32_t i = 0; i < p->n_layer; i++) {
        int32_t *idx[PS_TIER_COUNT] = {&m->saved_idx[i], &m->saved_host_idx[i],
                                       &m->saved_disk_idx[i]};
        bool needed = p->trains && i >= p->first_trained;
        enum ps_recompute level = needed ? l->recompute[i] : PS_RECOMPUTE_R4;
        enum ps_tier tier = l->saved[i];
        uint64_t bytes = page_up(p->kept_bytes[level]);
        for (int t = 0; t < PS_TIER_COUNT; t++)
            *idx[t] = level < PS_RECOMPUTE_R4 && t == (int)tier ? count[t]++ : -1;
        rest = at_least(rest, p->rest_bytes[level]);
        m->saved_offset[i] = at[tier];
        at[tier] += bytes * (uint64_t)l->group;
        if (tier != PS_TIER_DEVICE)
            m->saved_slot_bytes = at_least(m->saved_slot_bytes, bytes);
    }
    bool disk = count[PS_TIER_DISK] > 0;
    m->saved_kept = count[PS_TIER_DEVICE] * l->group;
    m->saved_count = m->saved_kept + (m->saved_slot_bytes > 0 ? l->saved_ring : 0);
    m->host_saved_kept = count[PS_TIER_HOST] * l->group;
    m->host_saved_count = m->host_saved_kept + (l->discrete && disk ? l->host_ring : 0);
    m->saved_ring_offset = at[PS_TIER_DEVICE];
    m->rest_offset =
        m->saved_ring_offset + m->saved_slot_bytes * (uint64_t)(m->saved_count - m->saved_kept);
    m->host_saved_ring_offset = at[PS_TIER_HOST];
    m->bytes[PS_BUF_SAVED] = m->rest_offset + page_up(rest);
    m->bytes[PS_BUF_HOST_SAVED] =
        m->host_saved_ring_offset +
        m->saved_slot_bytes * (uint64_t)(m->host_saved_count - m->host_saved_kept);
    m->bytes[PS_BUF_DISK_SAVED] = at[PS_TIER_DISK];
}

static void place_activations(struct ps_step_map *m, const struct ps_step_shape *p,
                              const struct ps_step_layout *l)
{
    int32_t host = 0;
    int32_t disk = 0;
    place_saved(m, p, l);
    for (int32_t i = 0; i < p->n_layer; i++) {
        bool needed = p->trains && i >= p->first_trained;
        m->x_kept_idx[i] = needed && l->boundary[i] == PS_TIER_DEVICE ? m->x_kept++ : -1;
        m->x_host_idx[i] = needed && l->boundary[i] == PS_TIER_HOST ? host++ : -1;
        m->x_disk_idx[i] = needed && l->boundary[i] == PS_TIER_DISK ? disk++ : -1;
    }
    m->x_stride = page_up(p->x_bytes);
    m->x_kept *= l->group;
    m->x_count = m->x_kept + (p->trains ? l->x_ring : 0);
    if (m->x_count < l->eval_group)
        m->x_count = l->eval_group;
    m->host_x_count = host * l->group + (l->discrete && disk > 0 ? l->host_ring : 0);
    m->batch_count = l->group > l->eval_group ? l->group : l->eval_group;
    if (!p->trains)
        m->batch_count = l->eval_group;
    m->bytes[PS_BUF_X] = m->x_stride * (uint64_t)m->x_count;
    m->bytes[PS_BUF_DX] = p->trains && !p->zeroth ? m->x_stride * (uint64_t)l->group : 0;
    m->bytes[PS_BUF_HOST_X] = m->x_stride * (uint64_t)m->host_x_count;
    m->bytes[PS_BUF_DISK_X] = m->x_stride * (uint64_t)disk * (uint64_t)l->group;
    m->bytes[PS_BUF_BATCH] = page_up(p->batch_bytes) * (uint64_t)m->batch_count;
    m->bytes[PS_BUF_LOSS] = (uint64_t)m->batch_count * 64;
    m->bytes[PS_BUF_BATCH_HOST] = l->discrete ? m->bytes[PS_BUF_BATCH] : 0;
    m->bytes[PS_BUF_CACHE] =
        page_up(p->cache_bytes) * (uint64_t)p->n_layer * (uint64_t)l->eval_group;
    m->bytes[PS_BUF_LOGITS] = page_up(p->logits_bytes) * (uint64_t)l->eval_group;
}

uint64_t ps_step_keep_bytes(const struct ps_step_shape *p, const struct ps_step_map *m, int32_t i)
{
    return p->grad_bytes[i] / sizeof(float) * ps_dtype_size(m->keep_dtype);
}

uint64_t ps_step_piece_bytes(const struct ps_step_shape *p, const struct ps_step_map *m, int32_t g)
{
    return p->granule[g].grad_n * ps_dtype_size(m->keep_dtype);
}

/* The gradient of a unit on disk, granule by granule, each on pages of its own; where it ends. */
static uint64_t place_pieces(struct ps_step_map *m, const struct ps_step_shape *p, int32_t i,
                             uint64_t at)
{
    for (uint32_t g = p->granule_begin[i]; g < p->granule_begin[i + 1]; g++) {
        uint64_t bytes = page_up(ps_step_piece_bytes(p, m, (int32_t)g));
        m->piece_offset[g] = at;
        m->grad_ring_bytes = at_least(m->grad_ring_bytes, bytes);
        at += bytes;
    }
    return at;
}

/* Where a unit's gradient is made, and where it waits; behind those before, by tier. */
static void place_gradient(struct ps_step_map *m, const struct ps_step_shape *p,
                           const struct ps_step_layout *l, int32_t i, uint64_t bytes[PS_TIER_COUNT],
                           uint64_t *shared)
{
    bool slot = i > 0 && i <= p->n_layer && l->grad_slots > 0;
    uint64_t keep = page_up(ps_step_keep_bytes(p, m, i));
    if (ps_step_grad_shared(p, l, i)) {
        *shared = at_least(*shared, page_up(p->grad_bytes[i]));
    } else if (slot) {
        m->grad_slot_bytes = at_least(m->grad_slot_bytes, page_up(p->grad_bytes[i]));
    } else {
        m->grad_offset[i] = bytes[PS_TIER_DEVICE];
        bytes[PS_TIER_DEVICE] += page_up(p->grad_bytes[i]);
    }
    if (l->grad[i] == PS_TIER_DEVICE)
        return;
    uint64_t at = bytes[l->grad[i]];
    m->keep_offset[i] = at;
    bytes[l->grad[i]] = l->grad[i] == PS_TIER_DISK ? place_pieces(m, p, i, at) : at + keep;
}

/* Gradients: near places and slots, and where they are kept; rings; the store's images. */
static void place_updates(struct ps_step_map *m, const struct ps_step_shape *p,
                          const struct ps_step_layout *l)
{
    uint64_t bytes[PS_TIER_COUNT] = {0};
    uint64_t shared = 0;
    int32_t group = l->group > 0 ? l->group : 1;
    m->several_passes = p->micro_max > group;
    /* a device copies gradients as they are */
    m->keep_dtype =
        p->grad_rounds && !m->several_passes && !l->discrete ? PS_DTYPE_BF16 : PS_DTYPE_F32;
    m->commits = true;
    for (int32_t i = 0; i < p->n_layer + 2; i++) {
        m->grad_offset[i] = UINT64_MAX;
        m->keep_offset[i] = UINT64_MAX;
        if (!trained(p, i))
            continue;
        if (!p->zeroth)
            place_gradient(m, p, l, i, bytes, &shared);
        m->commits &= l->state[i] == PS_TIER_DISK;
        m->stored |= l->state[i] == PS_TIER_DISK;
        for (uint32_t g = p->granule_begin[i]; g < p->granule_begin[i + 1]; g++)
            if (l->state[i] == PS_TIER_DISK)
                m->state_slot_bytes = at_least(m->state_slot_bytes, p->granule[g].state_bytes);
    }
    m->grad_slot_base = bytes[PS_TIER_DEVICE];
    m->grad_ring_base = bytes[PS_TIER_HOST];
    for (int32_t i = 0; !p->zeroth && i < p->n_layer + 2; i++)
        if (ps_step_grad_shared(p, l, i))
            m->grad_offset[i] = m->grad_slot_base;
    m->bytes[PS_BUF_GRAD] =
        m->grad_slot_base + at_least(shared, m->grad_slot_bytes * (uint64_t)l->grad_slots);
    m->bytes[PS_BUF_GRAD_HOST] = m->grad_ring_base + m->grad_ring_bytes * (uint64_t)l->grad_ring;
    m->bytes[PS_BUF_DISK_GRAD] = bytes[PS_TIER_DISK];
    m->bytes[PS_BUF_STATE_RING] = m->state_slot_bytes * (uint64_t)l->state_slots;
    m->bytes[PS_BUF_DISK_WEIGHTS] =
        place_units(m->weight_image_offset, p->pinned_bytes, p->n_layer + 2);
    m->bytes[PS_BUF_DISK_STATE] =
        place_units(m->state_image_offset, p->state_image_bytes, p->n_layer + 2);
    uint64_t state = 0;
    for (int32_t i = 0; i < p->n_layer + 2; i++) {
        m->state_offset[i] = l->state[i] == PS_TIER_DISK ? UINT64_MAX : state;
        state += l->state[i] == PS_TIER_DISK ? 0 : page_up(p->state_bytes[i]);
    }
    m->bytes[PS_BUF_STATE] = state;
}

/* Pairs of perturbed images that units take in turn; of a tied embedding one that waits for the
 * head. */
static void place_images(struct ps_step_map *m, const struct ps_step_shape *p,
                         const struct ps_step_layout *l)
{
    bool own = p->tied && !p->frozen && trained(p, 0);
    m->image_pairs = l->image_pairs > 0 ? l->image_pairs : 1;
    for (int32_t i = own ? 1 : 0; i < p->n_layer + 2; i++)
        if (trained(p, i))
            m->image_bytes = at_least(m->image_bytes, page_up(ps_step_image_bytes(p, i)));
    m->image_own_bytes = own ? page_up(p->pinned_bytes[0]) : 0;
    m->bytes[PS_BUF_PERTURBED] =
        2 * ((uint64_t)m->image_pairs * m->image_bytes + m->image_own_bytes);
    m->bytes[PS_BUF_PERTURBED_HOST] = l->discrete ? m->bytes[PS_BUF_PERTURBED] : 0;
}

static void place_rest(struct ps_step_map *m, const struct ps_step_shape *p,
                       const struct ps_step_layout *l)
{
    bool discrete = l->discrete;
    bool streams = l->update != PS_UPDATE_RESIDENT;
    int32_t units = p->n_layer + 2;
    m->bytes[PS_BUF_ROPE] = p->rope_bytes;
    m->bytes[PS_BUF_SCRATCH] = p->scratch_bytes;
    m->bytes[PS_BUF_HEAD_SCRATCH] = p->head_bytes;
    m->bytes[PS_BUF_GEMM] = p->gemm_bytes;
    m->bytes[PS_BUF_ADAPTER] = place_units(m->adapter_offset, p->adapter_bytes, units);
    if (p->zeroth)
        place_images(m, p, l);
    if (streams && p->trains) {
        place_updates(m, p, l);
    } else {
        m->bytes[PS_BUF_GRAD] =
            place_units(m->grad_offset, p->zeroth ? NULL : p->grad_bytes, units);
        for (int32_t i = 0; p->zeroth && i < units; i++)
            m->grad_offset[i] = UINT64_MAX;
        m->bytes[PS_BUF_STATE] = place_units(m->state_offset, p->state_bytes, units);
    }
    m->bytes[PS_BUF_WORKSPACE] = p->workspace_bytes;
    m->bytes[PS_BUF_NORM] = p->trains ? page_up(p->partial_bytes) + PAGE : 0;
    if (discrete && !streams)
        m->bytes[PS_BUF_MIRROR] = m->bytes[PS_BUF_ADAPTER] + m->bytes[PS_BUF_STATE] +
                                  m->bytes[PS_BUF_GRAD] + (p->frozen ? 0 : m->bytes[PS_BUF_PINNED]);
    for (int b = 0; b < PS_BUF_COUNT; b++)
        m->tier[b] = PS_TIER_DEVICE;
    static const enum ps_step_buffer disk[] = {PS_BUF_DISK_X, PS_BUF_DISK_GRAD, PS_BUF_DISK_WEIGHTS,
                                               PS_BUF_DISK_STATE, PS_BUF_DISK_SAVED};
    for (size_t i = 0; i < sizeof disk / sizeof *disk; i++)
        m->tier[disk[i]] = PS_TIER_DISK;
    /* without a device memory of its own there is one tier for all */
    static const enum ps_step_buffer host[] = {
        PS_BUF_BATCH_HOST, PS_BUF_RAW,       PS_BUF_HOST_UNITS, PS_BUF_HOST_X,        PS_BUF_MIRROR,
        PS_BUF_STATE_RING, PS_BUF_GRAD_HOST, PS_BUF_HOST_SAVED, PS_BUF_PERTURBED_HOST};
    for (size_t i = 0; discrete && i < sizeof host / sizeof *host; i++)
        m->tier[host[i]] = PS_TIER_HOST;
    if (discrete && streams) {
        m->tier[PS_BUF_STATE] = PS_TIER_HOST;
        m->tier[PS_BUF_WORKSPACE] = PS_TIER_HOST;
    }
}

int ps_step_map_create(struct ps_step_map *m, const struct ps_step_shape *p,
                       const struct ps_step_layout *l, struct ps_error *err)
{
    size_t units = (size_t)p->n_layer + 2;
    size_t sources = p->source->unit_count;
    memset(m, 0, sizeof *m);
    int ret = check_layout(p, l, err);
    if (ret == 0)
        ret = check_saved(p, l, err);
    if (ret == 0)
        ret = check_update(p, l, err);
    if (ret < 0)
        return ret;
    m->pinned_offset = calloc(8 * units, sizeof *m->pinned_offset);
    m->host_offset = calloc(sources + 1, sizeof *m->host_offset);
    m->stream_idx = calloc(sources + 6 * (size_t)p->n_layer + 1, sizeof *m->stream_idx);
    m->piece_offset = calloc((p->granule_begin ? p->granule_begin[units] : 0) + (size_t)1,
                             sizeof *m->piece_offset);
    if (!m->pinned_offset || !m->host_offset || !m->stream_idx || !m->piece_offset) {
        ps_step_map_fini(m);
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    m->adapter_offset = m->pinned_offset + units;
    m->grad_offset = m->adapter_offset + units;
    m->state_offset = m->grad_offset + units;
    m->keep_offset = m->state_offset + units;
    m->weight_image_offset = m->keep_offset + units;
    m->state_image_offset = m->weight_image_offset + units;
    m->saved_offset = m->state_image_offset + units;
    m->x_kept_idx = m->stream_idx + sources;
    m->x_host_idx = m->x_kept_idx + p->n_layer;
    m->x_disk_idx = m->x_host_idx + p->n_layer;
    m->saved_idx = m->x_disk_idx + p->n_layer;
    m->saved_host_idx = m->saved_idx + p->n_layer;
    m->saved_disk_idx = m->saved_host_idx + p->n_layer;
    ret = place_weights(m, p, l, err);
    if (ret < 0) {
        ps_step_map_fini(m);
        return ret;
    }
    place_activations(m, p, l);
    place_rest(m, p, l);
    return 0;
}

void ps_step_map_fini(struct ps_step_map *m)
{
    free(m->pinned_offset);
    free(m->host_offset);
    free(m->stream_idx);
    free(m->piece_offset);
    memset(m, 0, sizeof *m);
}

uint64_t ps_step_map_tier_bytes(const struct ps_step_map *m, enum ps_tier tier)
{
    uint64_t sum = 0;
    for (int b = 0; b < PS_BUF_COUNT; b++)
        if (m->tier[b] == tier && b != PS_BUF_DISK_WEIGHTS && b != PS_BUF_DISK_STATE)
            sum += page_up(m->bytes[b]);
    return sum;
}

uint64_t ps_step_map_store_bytes(const struct ps_step_map *m)
{
    return m->bytes[PS_BUF_DISK_WEIGHTS] + m->bytes[PS_BUF_DISK_STATE];
}
