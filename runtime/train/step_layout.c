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
    static const char *const name[PS_SEGMENT_COUNT] = {"train", "update", "eval", "prologue_train",
                                                       "prologue_eval"};
    assert(s < PS_SEGMENT_COUNT);
    return name[s];
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
    l->keep = calloc(layers + 1, sizeof *l->keep);
    l->boundary = calloc(layers + 1, sizeof *l->boundary);
    if (l->weight && l->keep && l->boundary)
        return 0;
    ps_step_layout_fini(l);
    return -ENOMEM;
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
    memcpy(made.keep, from->keep, layers * sizeof *made.keep);
    memcpy(made.boundary, from->boundary, layers * sizeof *made.boundary);
    *to = *from;
    to->weight = made.weight;
    to->keep = made.keep;
    to->boundary = made.boundary;
    return 0;
}

void ps_step_layout_fini(struct ps_step_layout *l)
{
    free(l->weight);
    free(l->keep);
    free(l->boundary);
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
        if (off && !p->frozen)
            return ps_error_full(err, PS_EUSAGE, NULL, "strategy",
                                 "use --strategy resident, or train an adapter",
                                 "weights that are trained cannot be streamed in this version");
        if (l->weight[i] == PS_TIER_HOST && !l->discrete)
            return ps_error_full(err, PS_EUSAGE, NULL, "placement", "use device or disk",
                                 "weights are placed on the host, which this device has no tier "
                                 "for");
        if (off && l->near_slots < 1)
            return ps_error_full(err, PS_EUSAGE, NULL, "placement", "give near_slots >= 1",
                                 "weights are streamed but there is no slot for them");
    }
    if (l->weight[p->n_layer + 1] != PS_TIER_DEVICE || (p->tied && l->weight[0] != PS_TIER_DEVICE))
        return ps_error_full(err, PS_EUSAGE, NULL, "placement", "place it on the device",
                             "the output head (and a tied embedding) is always pinned");
    int32_t lot = ps__layout_lot(l);
    int32_t ring = lot < l->group ? 2 * lot + 1 : l->group + (moves ? 1 : 0);
    if (l->group < 1 || l->eval_group < 1 || l->interleave < 0 || l->x_ring < ring)
        return ps_error_full(err, PS_EUSAGE, NULL, "placement",
                             "x_ring is at least group, and more when boundaries move; with "
                             "interleave twice that and one",
                             "group %d, eval_group %d and x_ring %d do not go together", l->group,
                             l->eval_group, l->x_ring);
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

static void place_activations(struct ps_step_map *m, const struct ps_step_shape *p,
                              const struct ps_step_layout *l)
{
    int32_t saved = 0;
    int32_t host = 0;
    int32_t disk = 0;
    bool all_kept = p->trains;
    for (int32_t i = 0; i < p->n_layer; i++) {
        bool needed = p->trains && i >= p->first_trained;
        bool keep = needed && l->keep[i];
        m->x_kept_idx[i] = needed && l->boundary[i] == PS_TIER_DEVICE ? m->x_kept++ : -1;
        m->x_host_idx[i] = needed && l->boundary[i] == PS_TIER_HOST ? host++ : -1;
        m->x_disk_idx[i] = needed && l->boundary[i] == PS_TIER_DISK ? disk++ : -1;
        m->saved_idx[i] = keep ? saved++ : -1;
        all_kept &= keep;
    }
    m->x_stride = page_up(p->x_bytes);
    m->x_kept *= l->group;
    m->x_count = m->x_kept + (p->trains ? l->x_ring : 0);
    if (m->x_count < l->eval_group)
        m->x_count = l->eval_group;
    m->saved_count = saved * l->group + (all_kept ? 0 : 1);
    m->host_x_count = host * l->group + (l->discrete && disk > 0 ? l->host_ring : 0);
    m->batch_count = l->group > l->eval_group ? l->group : l->eval_group;
    if (!p->trains)
        m->batch_count = l->eval_group;
    m->bytes[PS_BUF_X] = m->x_stride * (uint64_t)m->x_count;
    m->bytes[PS_BUF_DX] = p->trains ? m->x_stride * (uint64_t)l->group : 0;
    m->bytes[PS_BUF_SAVED] = page_up(p->saved_bytes) * (uint64_t)m->saved_count;
    m->bytes[PS_BUF_HOST_X] = m->x_stride * (uint64_t)m->host_x_count;
    m->bytes[PS_BUF_DISK_X] = m->x_stride * (uint64_t)disk * (uint64_t)l->group;
    m->bytes[PS_BUF_BATCH] = page_up(p->batch_bytes) * (uint64_t)m->batch_count;
    m->bytes[PS_BUF_LOSS] = (uint64_t)m->batch_count * 64;
    m->bytes[PS_BUF_BATCH_HOST] = l->discrete ? m->bytes[PS_BUF_BATCH] : 0;
    m->bytes[PS_BUF_CACHE] =
        page_up(p->cache_bytes) * (uint64_t)p->n_layer * (uint64_t)l->eval_group;
    m->bytes[PS_BUF_LOGITS] = page_up(p->logits_bytes) * (uint64_t)l->eval_group;
}

static void place_rest(struct ps_step_map *m, const struct ps_step_shape *p, bool discrete)
{
    int32_t units = p->n_layer + 2;
    m->bytes[PS_BUF_ROPE] = p->rope_bytes;
    m->bytes[PS_BUF_SCRATCH] = p->scratch_bytes;
    m->bytes[PS_BUF_HEAD_SCRATCH] = p->head_bytes;
    m->bytes[PS_BUF_GEMM] = p->gemm_bytes;
    m->bytes[PS_BUF_ADAPTER] = place_units(m->adapter_offset, p->adapter_bytes, units);
    m->bytes[PS_BUF_GRAD] = place_units(m->grad_offset, p->grad_bytes, units);
    m->bytes[PS_BUF_STATE] = place_units(m->state_offset, p->state_bytes, units);
    m->bytes[PS_BUF_WORKSPACE] = p->workspace_bytes;
    m->bytes[PS_BUF_NORM] = p->trains ? page_up(p->partial_bytes) + PAGE : 0;
    if (discrete)
        m->bytes[PS_BUF_MIRROR] = m->bytes[PS_BUF_ADAPTER] + m->bytes[PS_BUF_STATE] +
                                  m->bytes[PS_BUF_GRAD] + (p->frozen ? 0 : m->bytes[PS_BUF_PINNED]);
    for (int b = 0; b < PS_BUF_COUNT; b++)
        m->tier[b] = PS_TIER_DEVICE;
    m->tier[PS_BUF_DISK_X] = PS_TIER_DISK;
    /* without a device memory of its own there is one tier for all */
    static const enum ps_step_buffer host[] = {PS_BUF_BATCH_HOST, PS_BUF_RAW, PS_BUF_HOST_UNITS,
                                               PS_BUF_HOST_X, PS_BUF_MIRROR};
    for (size_t i = 0; discrete && i < sizeof host / sizeof *host; i++)
        m->tier[host[i]] = PS_TIER_HOST;
}

int ps_step_map_create(struct ps_step_map *m, const struct ps_step_shape *p,
                       const struct ps_step_layout *l, struct ps_error *err)
{
    size_t units = (size_t)p->n_layer + 2;
    size_t sources = p->source->unit_count;
    memset(m, 0, sizeof *m);
    int ret = check_layout(p, l, err);
    if (ret < 0)
        return ret;
    m->pinned_offset = calloc(4 * units, sizeof *m->pinned_offset);
    m->host_offset = calloc(sources + 1, sizeof *m->host_offset);
    m->stream_idx = calloc(sources + 4 * (size_t)p->n_layer + 1, sizeof *m->stream_idx);
    if (!m->pinned_offset || !m->host_offset || !m->stream_idx) {
        ps_step_map_fini(m);
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    m->adapter_offset = m->pinned_offset + units;
    m->grad_offset = m->adapter_offset + units;
    m->state_offset = m->grad_offset + units;
    m->x_kept_idx = m->stream_idx + sources;
    m->x_host_idx = m->x_kept_idx + p->n_layer;
    m->x_disk_idx = m->x_host_idx + p->n_layer;
    m->saved_idx = m->x_disk_idx + p->n_layer;
    ret = place_weights(m, p, l, err);
    if (ret < 0) {
        ps_step_map_fini(m);
        return ret;
    }
    place_activations(m, p, l);
    place_rest(m, p, l->discrete);
    return 0;
}

void ps_step_map_fini(struct ps_step_map *m)
{
    free(m->pinned_offset);
    free(m->host_offset);
    free(m->stream_idx);
    memset(m, 0, sizeof *m);
}

uint64_t ps_step_map_tier_bytes(const struct ps_step_map *m, enum ps_tier tier)
{
    uint64_t sum = 0;
    for (int b = 0; b < PS_BUF_COUNT; b++)
        if (m->tier[b] == tier)
            sum += page_up(m->bytes[b]);
    return sum;
}
