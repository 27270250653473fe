/* A lower bound of a step's time from the layout alone: see strategy_internal.h.
 *
 * The weights that a pass reads follow from the slots: streamed unit j always uses slot j mod
 * near_slots and is read unless it is still there, so a pass is walked unit by unit, as the builder
 * does it (runtime/train/step_build.c, step_update.c). Shares of a resource add up: tasks that
 * together ask for more than all of it slow down until they do not. */
#include <errno.h>
#include <stdlib.h>

#include "offload/strategy_internal.h"

/* Of the work that is hidden behind other work, what shows all the same. */
#define HIDDEN_SHARE 0.02

/* Lanes overlap within a phase, and little beyond. */
enum phase { FORWARD, BACKWARD, UPDATE, PHASE_COUNT };

struct walk {
    const struct ps_planner_request *req;
    const struct ps_step_layout *l;
    int32_t *in_slot; /* (near_slots) streamed unit number, -1: none */
    int32_t *number;  /* (source units) among the streamed, -1: pinned */
    int32_t *live_in; /* (near_slots) what a pass expects there */
    int32_t slots;
    enum phase phase; /* of the pass that is walked */
    struct {
        uint64_t disk, copied; /* bytes */
        uint32_t disk_reads, copies;
    } sum[PHASE_COUNT];
};

static bool is_trained(const struct ps_step_shape *p, int32_t unit_idx)
{
    return p->trains && p->grad_bytes && p->grad_bytes[unit_idx] > 0;
}

static bool streams_updates(const struct ps_step_shape *p, const struct ps_step_layout *l)
{
    return p->trains && l->update != PS_UPDATE_RESIDENT;
}

static uint32_t source_of(const struct ps_step_shape *p, int32_t unit_idx)
{
    return unit_idx == 0 ? 0 : p->source->embed_block_count + (uint32_t)unit_idx - 1;
}

static void count_read(struct walk *w, uint64_t bytes)
{
    w->sum[w->phase].disk += bytes;
    w->sum[w->phase].disk_reads++;
}

static void count_copy(struct walk *w, uint64_t bytes)
{
    w->sum[w->phase].copied += bytes;
    w->sum[w->phase].copies++;
}

static void visit(struct walk *w, uint32_t source_idx)
{
    const struct ps_unit_source *u = &w->req->shape->source->unit[source_idx];
    int32_t j = w->number[source_idx];
    if (j < 0)
        return;
    int32_t *slot = &w->in_slot[j % w->slots];
    if (*slot == j)
        return;
    *slot = j;
    enum ps_tier tier = w->l->weight[ps_step_unit_idx(w->req->shape, u->unit)];
    if (tier == PS_TIER_DISK)
        count_read(w, u->read_bytes);
    if (w->l->discrete || !u->direct)
        count_copy(w, u->near_bytes);
}

/* A unit is updated on the host: its weights come to where that is, and back to the device. */
static void visit_update(struct walk *w, int32_t unit_idx)
{
    const struct ps_step_shape *p = w->req->shape;
    const struct ps_step_layout *l = w->l;
    if (!is_trained(p, unit_idx))
        return;
    uint32_t source_idx = source_of(p, unit_idx);
    uint64_t bytes = p->source->unit[source_idx].near_bytes;
    int32_t j = w->number[source_idx];
    if (!l->discrete) {
        visit(w, source_idx);
        return;
    }
    if (p->zeroth)
        count_copy(w, 2 * ps_step_image_bytes(p, unit_idx));
    if (l->weight[unit_idx] == PS_TIER_DISK ||
        (l->weight[unit_idx] == PS_TIER_DEVICE && l->state[unit_idx] == PS_TIER_DISK))
        count_read(w, bytes);
    int32_t *slot = j < 0 ? NULL : &w->in_slot[j % w->slots];
    bool wanted = ps_step_unit_update(p, l, unit_idx) == PS_UPDATE_NEXT_FORWARD && !p->zeroth;
    if (slot && *slot == j)
        *slot = -1;
    if (!slot || wanted)
        count_copy(w, bytes);
    if (slot && wanted)
        *slot = j;
}

static void walk_backward(struct walk *w, bool updates)
{
    const struct ps_step_shape *p = w->req->shape;
    const struct ps_step_layout *l = w->l;
    w->phase = BACKWARD;
    if (l->ablate & PS_ABLATE_TURNS)
        for (int32_t i = 0; i < w->slots; i++)
            w->in_slot[i] = -1;
    int32_t lowest = p->embed_trained ? 0 : p->first_trained;
    for (int32_t i = p->n_layer - 1; i >= lowest; i--) {
        visit(w, source_of(p, i + 1));
        if (ps_step_unit_update(p, l, i + 1) == PS_UPDATE_INSIDE)
            visit_update(w, i + 1);
    }
    w->phase = UPDATE;
    for (int32_t i = p->n_layer + 1; updates && i >= 0; i--)
        if (ps_step_unit_update(p, l, i) == PS_UPDATE_AFTER)
            visit_update(w, i);
}

/* Before the forward pass uses it. */
static void visit_deferred(struct walk *w, int32_t unit_idx, bool updates)
{
    if (updates && ps_step_unit_update(w->req->shape, w->l, unit_idx) == PS_UPDATE_NEXT_FORWARD)
        visit_update(w, unit_idx);
}

/* One pass, from what it expects in the slots to what the next one does. */
static void walk_pass(struct walk *w, bool updates)
{
    const struct ps_step_shape *p = w->req->shape;
    uint32_t embeds = p->source->embed_block_count;
    for (int32_t i = 0; i < w->slots; i++)
        w->in_slot[i] = w->live_in[i];
    for (int i = 0; i < PHASE_COUNT; i++)
        w->sum[i].disk = w->sum[i].copied = w->sum[i].disk_reads = w->sum[i].copies = 0;
    w->phase = FORWARD;
    /* without gradients a discrete device has only images of what is trained */
    bool images = updates && p->zeroth && w->l->discrete;
    visit_deferred(w, 0, updates);
    for (uint32_t i = 0; i < embeds && !(images && is_trained(p, 0)); i++)
        visit(w, i);
    for (int32_t i = 1; i <= p->n_layer; i++) {
        visit_deferred(w, i, updates);
        if (!images || !is_trained(p, i))
            visit(w, source_of(p, i));
    }
    visit_deferred(w, p->n_layer + 1, updates);
    visit(w, source_of(p, p->n_layer + 1));
    if (p->trains)
        walk_backward(w, updates);
    if (p->trains && (w->l->ablate & PS_ABLATE_TURNS))
        for (int32_t i = 0; i < w->slots; i++)
            w->in_slot[i] = -1;
    w->phase = FORWARD; /* read ahead for the next pass */
    for (uint32_t n = 0; n < p->source->unit_count; n++)
        if (w->number[n] >= 0 && w->live_in[w->number[n] % w->slots] == w->number[n])
            visit(w, n);
}

static int walk_open(struct walk *w)
{
    const struct ps_step_shape *p = w->req->shape;
    uint32_t units = p->source->unit_count;
    w->slots = w->l->near_slots > 0 ? w->l->near_slots : 1;
    w->number = malloc((units + 2 * (size_t)w->slots) * sizeof *w->number);
    if (!w->number)
        return -ENOMEM;
    w->in_slot = w->number + units;
    w->live_in = w->in_slot + w->slots;
    for (int32_t i = 0; i < w->slots; i++)
        w->live_in[i] = -1;
    int32_t streamed = 0;
    for (uint32_t i = 0; i < units; i++) {
        int32_t idx = ps_step_unit_idx(p, p->source->unit[i].unit);
        w->number[i] = w->l->weight[idx] == PS_TIER_DEVICE ? -1 : streamed++;
        int32_t *first = w->number[i] < 0 ? NULL : &w->live_in[w->number[i] % w->slots];
        if (first && *first < 0 && !(w->l->ablate & PS_ABLATE_CROSS_STEP))
            *first = w->number[i];
    }
    return 0;
}

/* Seconds by phase and lane. */
struct sums {
    const struct ps_cost_model *cost;
    double solo[PHASE_COUNT][PS_LANE_COUNT], stay[PHASE_COUNT][PS_LANE_COUNT];
    double written, weights_read; /* bytes */
    double after_read_s,
        after_host; /* updates AFTER: what can begin only when backward has ended */
};

/* `count` tasks whose flops and bytes are given together. */
static void add_tasks(struct sums *s, enum phase phase, const struct ps_task *all, double count)
{
    const struct ps_cost_model *m = s->cost;
    double solo = ps_cost_solo_s(m, all) + (count - 1) * ps_cost_overhead_s(m, all);
    double stay = ps_cost_throttle_s(m, all);
    if (count <= 0)
        return;
    s->solo[phase][all->lane] += solo;
    s->stay[phase][all->lane] += stay > solo ? stay : solo;
    if (all->lane == PS_LANE_DISK_WRITE)
        s->written += (double)all->bytes;
}

static void add(struct sums *s, enum phase phase, enum ps_task_kind kind, enum ps_lane lane,
                double count, double flops, double bytes)
{
    struct ps_task all = {.kind = kind, .lane = lane, .flops = flops, .bytes = (uint64_t)bytes};
    add_tasks(s, phase, &all, count);
}

static void add_recompute(struct sums *s, const struct ps_step_shape *p,
                          const struct ps_step_layout *l, double micros)
{
    double layers[PS_RECOMPUTE_COUNT] = {0};
    for (int32_t i = p->embed_trained ? 0 : p->first_trained; p->trains && i < p->n_layer; i++)
        layers[l->recompute[i]]++;
    if (p->trains && l->group == 1 && p->n_layer > p->first_trained) /* the last one's is there */
        layers[l->recompute[p->n_layer - 1]]--;
    for (int level = PS_RECOMPUTE_R1; level < PS_RECOMPUTE_COUNT; level++) {
        struct ps_task all = {.kind = PS_TASK_LAYER_RECOMPUTE,
                              .lane = PS_LANE_COMPUTE,
                              .flops = micros * layers[level] * p->recompute_flops[level]};
        all.arg[PS_ARG_LEVEL] = level;
        add_tasks(s, BACKWARD, &all, micros * layers[level]);
    }
}

static void add_weights(struct sums *s, const struct walk *w, double passes)
{
    for (int i = 0; i < PHASE_COUNT; i++) {
        add(s, (enum phase)i, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS,
            passes * w->sum[i].disk_reads, 0, passes * (double)w->sum[i].disk);
        add(s, (enum phase)i, PS_TASK_COPY_WEIGHTS, PS_LANE_H2D, passes * w->sum[i].copies, 0,
            passes * (double)w->sum[i].copied);
        s->weights_read += passes * (double)w->sum[i].disk;
    }
}

/* The images of a unit that is updated where it lies; params: of all passes. */
static void add_perturb(struct sums *s, const struct ps_planner_request *req,
                        const struct ps_step_layout *l, int32_t unit_idx, double params)
{
    const struct ps_step_shape *p = req->shape;
    double times = PS_ZEROTH_PASSES * params;
    double bytes = 2.0 * (double)ps_step_image_bytes(p, unit_idx);
    if (!l->discrete) {
        add(s, FORWARD, PS_TASK_PERTURB, PS_LANE_COMPUTE, 1, times, 0);
        return;
    }
    add(s, FORWARD, PS_TASK_PERTURB, PS_LANE_CPU_OPTIM, 1, 0, times);
    add(s, FORWARD, PS_TASK_COPY_PERTURBED, PS_LANE_H2D, 1, 0, bytes);
}

/* Compute of a step. */
static void add_compute(struct sums *s, const struct ps_planner_request *req,
                        const struct ps_step_layout *l, double micros)
{
    const struct ps_step_shape *p = req->shape;
    double layers = p->n_layer;
    int32_t lowest = p->embed_trained ? 0 : p->first_trained;
    double trained = p->trains ? p->n_layer - lowest : 0;
    const enum ps_lane lane = PS_LANE_COMPUTE;
    add(s, FORWARD, PS_TASK_EMBED, lane, micros, 0, 0);
    add(s, FORWARD, PS_TASK_LAYER_FORWARD, lane, micros * layers, micros * layers * p->layer_flops,
        0);
    double head = p->head_flops + (p->trains ? p->head_backward_flops : 0);
    add(s, BACKWARD, PS_TASK_HEAD, lane, micros, micros * head, 0);
    add_recompute(s, p, l, micros);
    add(s, BACKWARD, PS_TASK_LAYER_BACKWARD, lane, micros * trained,
        micros * trained * p->layer_backward_flops, 0);
    bool streams = streams_updates(p, l);
    if (l->discrete)
        add(s, FORWARD, PS_TASK_COPY_BATCH, PS_LANE_H2D, micros, 0,
            micros * (double)p->batch_bytes);
    add(s, BACKWARD, PS_TASK_EMBED_BACKWARD, lane, p->embed_trained ? micros : 0, 0, 0);
    add(s, UPDATE, PS_TASK_CLIP, lane, p->trains && !p->zeroth, 0, 0);
    for (int32_t i = 0; i < p->n_layer + 2; i++) {
        if (!is_trained(p, i))
            continue;
        double params = (double)(p->grad_bytes[i] / sizeof(float));
        if (p->zeroth && !streams)
            add_perturb(s, req, l, i, params * micros / l->group);
        else if (!p->zeroth)
            add(s, streams ? BACKWARD : UPDATE, PS_TASK_GRAD_NORM, lane, 1, params, 0);
        if (!streams)
            add(s, UPDATE, PS_TASK_UPDATE, lane, 1, params * (p->zeroth ? PS_ZEROTH_PASSES : 1), 0);
    }
}

/* Bytes of what moves out of layer i and back: its input, or (saved) what it keeps of its saved
 * set; 0: it stays near. */
static double moved_bytes(const struct ps_step_shape *p, const struct ps_step_layout *l, bool saved,
                          int32_t i)
{
    if (!saved)
        return l->boundary[i] == PS_TIER_DEVICE ? 0 : (double)p->x_bytes;
    return l->saved[i] == PS_TIER_DEVICE ? 0 : (double)p->kept_bytes[l->recompute[i]];
}

/* What the ring still holds at the turn is neither written nor read. */
static void add_moved(struct sums *s, const struct ps_planner_request *req,
                      const struct ps_step_layout *l, double passes, bool saved)
{
    const struct ps_step_shape *p = req->shape;
    const enum ps_tier *tier = saved ? l->saved : l->boundary;
    double count[PS_TIER_COUNT] = {0};
    double bytes[PS_TIER_COUNT] = {0};
    double held = l->ablate & PS_ABLATE_FORWARDING ? 0 : saved ? l->saved_ring : l->x_ring;
    for (int32_t i = p->n_layer - 1; p->trains && i >= p->first_trained; i--) {
        double each = moved_bytes(p, l, saved, i);
        double kept = each <= 0 ? 0 : held < l->group ? held : l->group;
        held -= kept;
        count[tier[i]] += l->group - kept;
        bytes[tier[i]] += (l->group - kept) * each;
    }
    bool both = l->discrete; /* what goes to the disk passes the host */
    double disk = passes * count[PS_TIER_DISK];
    double written = passes * bytes[PS_TIER_DISK];
    double copies = passes * count[PS_TIER_HOST] + (both ? disk : 0);
    double copied = passes * bytes[PS_TIER_HOST] + (both ? written : 0);
    add(s, FORWARD, PS_TASK_SPILL_OUT, PS_LANE_D2H, copies, 0, copied);
    add(s, BACKWARD, PS_TASK_SPILL_IN, PS_LANE_H2D, copies, 0, copied);
    add(s, FORWARD, PS_TASK_SPILL_WRITE, PS_LANE_DISK_WRITE, disk, 0, written);
    add(s, BACKWARD, PS_TASK_SPILL_READ, PS_LANE_DISK_STATE, disk, 0, written);
}

/* The gradient of a unit between where it is made and where it is kept. */
static void add_gradient(struct sums *s, const struct ps_step_shape *p,
                         const struct ps_step_layout *l, const struct ps_step_map *m,
                         int32_t unit_idx, double passes)
{
    double bytes = 0;
    double count = 0; /* of tasks: by granule where it goes to the disk */
    bool own = m->grad_offset[unit_idx] != UINT64_MAX;
    bool disk = l->grad[unit_idx] == PS_TIER_DISK;
    for (uint32_t g = p->granule_begin[unit_idx]; disk && g < p->granule_begin[unit_idx + 1]; g++) {
        bytes += (double)ps_step_piece_bytes(p, m, (int32_t)g);
        count++;
    }
    if (!disk) {
        bytes = (double)ps_step_keep_bytes(p, m, unit_idx);
        count = 1;
    }
    double in = !own && m->several_passes ? passes : 0;
    double out = l->grad[unit_idx] == PS_TIER_DEVICE ? 0 : own ? 1 : passes;
    enum ps_update_when when = ps_step_unit_update(p, l, unit_idx);
    enum phase again = when == PS_UPDATE_NEXT_FORWARD ? FORWARD : UPDATE;
    add(s, BACKWARD, PS_TASK_GRAD_IN, l->discrete ? PS_LANE_H2D : PS_LANE_CPU_OPTIM, in * count, 0,
        in * bytes);
    add(s, BACKWARD, PS_TASK_GRAD_OUT, PS_LANE_D2H, out * count, 0, out * bytes);
    if (!disk)
        return;
    add(s, BACKWARD, PS_TASK_GRAD_READ, PS_LANE_DISK_STATE, in * count, 0, in * bytes);
    add(s, BACKWARD, PS_TASK_GRAD_WRITE, PS_LANE_DISK_WRITE, out * count, 0, out * bytes);
    if (when != PS_UPDATE_INSIDE)
        add(s, again, PS_TASK_GRAD_READ, PS_LANE_DISK_STATE, count, 0, bytes);
}

static double read_s(const struct ps_cost_model *m, double bytes)
{
    double rate = m->byte_rate[PS_LANE_DISK_STATE];
    return rate > 0 ? bytes / rate : 0;
}

/* States and parameters of a unit. */
static void add_update(struct sums *s, const struct ps_step_shape *p,
                       const struct ps_step_layout *l, int32_t unit_idx)
{
    enum ps_update_when when = ps_step_unit_update(p, l, unit_idx);
    enum phase phase = when == PS_UPDATE_NEXT_FORWARD ? FORWARD
                       : when == PS_UPDATE_INSIDE     ? BACKWARD
                                                      : UPDATE;
    double params = 0;
    double flops = 0;
    double state = 0;
    double weight = 0;
    uint32_t count = p->granule_begin[unit_idx + 1] - p->granule_begin[unit_idx];
    for (uint32_t g = p->granule_begin[unit_idx]; g < p->granule_begin[unit_idx + 1]; g++) {
        params += (double)p->granule[g].params;
        flops += p->granule[g].flops;
        state += (double)p->granule[g].state_bytes;
        weight += (double)p->granule[g].weight_bytes;
    }
    double before = s->stay[UPDATE][PS_LANE_CPU_OPTIM];
    bool disk = l->state[unit_idx] == PS_TIER_DISK;
    params *= p->zeroth ? 2 * PS_ZEROTH_PASSES : 1;
    add(s, phase, PS_TASK_UPDATE_HOST, PS_LANE_CPU_OPTIM,
        disk || l->grad[unit_idx] == PS_TIER_DISK ? count : 1, flops, params);
    s->after_host += s->stay[UPDATE][PS_LANE_CPU_OPTIM] - before;
    if (!disk)
        return;
    add(s, phase, PS_TASK_READ_STATE, PS_LANE_DISK_STATE, count, 0, state);
    add(s, phase, PS_TASK_WRITE_WEIGHTS, PS_LANE_DISK_WRITE, count, 0, weight);
    add(s, phase, PS_TASK_WRITE_STATE, PS_LANE_DISK_WRITE, count, 0, state);
    if (phase == UPDATE)
        s->after_read_s += read_s(s->cost, state);
}

static int add_updates(struct sums *s, const struct ps_planner_request *req,
                       const struct ps_step_layout *l, double passes)
{
    const struct ps_step_shape *p = req->shape;
    struct ps_step_map m;
    int ret = ps_step_map_create(&m, p, l, NULL);
    if (ret < 0)
        return ret;
    for (int32_t i = 0; i < p->n_layer + 2; i++) {
        if (!is_trained(p, i))
            continue;
        if (!p->zeroth)
            add_gradient(s, p, l, &m, i, passes);
        add_update(s, p, l, i);
    }
    /* as many as have a slot are read ahead */
    s->after_read_s -= read_s(s->cost, (double)m.state_slot_bytes * l->state_slots);
    if (m.commits)
        add(s, UPDATE, PS_TASK_COMMIT, PS_LANE_COMMIT, 1, 0, 0);
    ps_step_map_fini(&m);
    return 0;
}

/* No lane can be done before its own work, no resource before its share of all of it; an update
 * after the backward pass not before it is done on top of all other compute. */
static double bound(const struct sums *s, double *lane_s)
{
    double most = 0;
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        lane_s[i] = 0;
        for (int k = 0; k < PHASE_COUNT; k++)
            lane_s[i] += s->stay[k][i];
        most = lane_s[i] > most ? lane_s[i] : most;
    }
    for (int r = 0; r < PS_RESOURCE_COUNT; r++) {
        double share = 0;
        for (int i = 0; i < PS_LANE_COUNT; i++)
            for (int k = 0; k < PHASE_COUNT; k++)
                share += s->solo[k][i] * s->cost->use[i][r];
        most = share > most ? share : most;
    }
    double after = s->after_host > s->after_read_s ? s->after_host : s->after_read_s;
    double compute = lane_s[PS_LANE_COMPUTE] + (after > 0 ? after : 0);
    return compute > most ? compute : most;
}

/* What is read in a phase must be used in it: lanes overlap within each, and little beyond. Reads
 * and writes of the disk may share it. */
static double guess(const struct sums *s)
{
    double sum = 0;
    for (int phase = 0; phase < PHASE_COUNT; phase++) {
        double most = 0;
        double all = 0;
        double disk = 0;
        for (int i = 0; i < PS_LANE_COUNT; i++) {
            all += s->stay[phase][i];
            most = s->stay[phase][i] > most ? s->stay[phase][i] : most;
            disk += s->solo[phase][i] * s->cost->use[i][PS_RESOURCE_DISK];
        }
        most = disk > most ? disk : most;
        sum += most + HIDDEN_SHARE * (all - most);
    }
    return sum;
}

int ps__estimate_layout(struct ps__estimate *out, const struct ps_planner_request *req,
                        const struct ps_cost_model *cost, const struct ps_step_layout *l)
{
    const struct ps_step_shape *p = req->shape;
    int32_t group = p->trains ? l->group : l->eval_group;
    int32_t micros = p->trains ? req->micro_count : req->eval_max;
    double passes = (micros + group - 1) / group;
    bool streams = streams_updates(p, l);
    struct walk w = {.req = req, .l = l};
    struct sums s = {.cost = cost};
    int ret = walk_open(&w);
    if (ret < 0)
        return ret;
    walk_pass(&w, false);
    add_weights(&s, &w, streams ? passes - 1 : passes);
    if (streams) {
        walk_pass(&w, true);
        add_weights(&s, &w, 1);
    }
    free(w.number);
    add_compute(&s, req, l, micros);
    add_moved(&s, req, l, passes, false);
    add_moved(&s, req, l, passes, true);
    if (streams) {
        ret = add_updates(&s, req, l, passes);
        if (ret < 0)
            return ret;
    }
    *out = (struct ps__estimate){.read_bytes = (uint64_t)s.weights_read,
                                 .write_bytes = (uint64_t)s.written};
    out->bound_s = bound(&s, out->lane_s);
    double guessed = guess(&s);
    out->guess_s = guessed > out->bound_s ? guessed : out->bound_s;
    for (int i = 0; i < PS_LANE_COUNT; i++)
        out->serial_s += out->lane_s[i];
    return 0;
}
