/* A lower bound of a step's time from the layout alone: see strategy_internal.h.
 *
 * The weights that a pass reads follow from the slots: streamed unit j always uses slot j mod
 * near_slots and is read unless it is still there, so the passes are walked unit by unit. Shares of
 * a resource add up: tasks that together ask for more than all of it slow down until they do not.
 */
#include <errno.h>
#include <stdlib.h>

#include "offload/strategy_internal.h"

/* Of the work that is hidden behind other work, what shows all the same. */
#define HIDDEN_SHARE 0.02

struct walk {
    const struct ps_planner_request *req;
    const struct ps_step_layout *l;
    int32_t *in_slot;            /* (near_slots) streamed unit number, -1: none */
    int32_t *number;             /* (source units) among the streamed, -1: pinned */
    int phase;                   /* of the pass that is walked: 0 forward, 1 backward */
    uint64_t disk[2], copied[2]; /* bytes by phase */
    uint32_t disk_reads[2], copies[2];
};

static void visit(struct walk *w, uint32_t source_idx)
{
    const struct ps_unit_source *u = &w->req->shape->source->unit[source_idx];
    int32_t j = w->number[source_idx];
    if (j < 0)
        return;
    int32_t *slot = &w->in_slot[j % w->l->near_slots];
    if (*slot == j)
        return;
    *slot = j;
    enum ps_tier tier = w->l->weight[ps_step_unit_idx(w->req->shape, u->unit)];
    if (tier == PS_TIER_DISK) {
        w->disk[w->phase] += u->read_bytes;
        w->disk_reads[w->phase]++;
    }
    if (w->l->discrete || !u->direct) {
        w->copied[w->phase] += u->near_bytes;
        w->copies[w->phase]++;
    }
}

static void walk_pass(struct walk *w)
{
    const struct ps_step_shape *p = w->req->shape;
    uint32_t embeds = p->source->embed_block_count;
    for (int i = 0; i < 2; i++) {
        w->disk[i] = w->copied[i] = 0;
        w->disk_reads[i] = w->copies[i] = 0;
    }
    w->phase = 0;
    for (uint32_t i = 0; i < embeds + (uint32_t)p->n_layer; i++)
        visit(w, i);
    w->phase = 1;
    for (int32_t i = p->n_layer - 1; p->trains && i >= p->first_trained; i--)
        visit(w, embeds + (uint32_t)i);
}

/* Reads of a pass in the steady state. */
static int walk_weights(struct walk *w)
{
    const struct ps_step_shape *p = w->req->shape;
    uint32_t units = p->source->unit_count;
    int32_t slots = w->l->near_slots > 0 ? w->l->near_slots : 1;
    w->number = malloc((units + (size_t)slots) * sizeof *w->number);
    if (!w->number)
        return -ENOMEM;
    w->in_slot = w->number + units;
    int32_t streamed = 0;
    for (uint32_t i = 0; i < units; i++) {
        int32_t idx = ps_step_unit_idx(p, p->source->unit[i].unit);
        w->number[i] = w->l->weight[idx] == PS_TIER_DEVICE ? -1 : streamed++;
    }
    for (int32_t i = 0; i < slots; i++)
        w->in_slot[i] = -1;
    walk_pass(w);
    walk_pass(w);
    free(w->number);
    return 0;
}

/* Seconds by phase (0 forward, 1 backward) and lane. */
struct sums {
    const struct ps_cost_model *cost;
    double solo[2][PS_LANE_COUNT], stay[2][PS_LANE_COUNT];
};

/* `count` tasks with `flops` or `bytes` together. */
static void add(struct sums *s, int phase, enum ps_task_kind kind, enum ps_lane lane, double count,
                double flops, double bytes)
{
    const struct ps_cost_model *m = s->cost;
    double solo = count * m->overhead_s[kind];
    if (m->flop_rate[kind] > 0)
        solo += flops / m->flop_rate[kind];
    if (m->byte_rate[lane] > 0)
        solo += bytes / m->byte_rate[lane];
    double stay = 0;
    if (m->throttle[lane] > 0)
        stay = (lane == PS_LANE_COMPUTE ? flops : bytes) / m->throttle[lane];
    s->solo[phase][lane] += solo;
    s->stay[phase][lane] += stay > solo ? stay : solo;
}

/* Compute of one micro-batch. */
static void add_compute(struct sums *s, const struct ps_planner_request *req,
                        const struct ps_step_layout *l, double micros)
{
    const struct ps_step_shape *p = req->shape;
    double layers = p->n_layer;
    double trained = p->trains ? p->n_layer - p->first_trained : 0;
    double recomputed = 0;
    for (int32_t i = p->first_trained; p->trains && i < p->n_layer; i++)
        recomputed += l->keep[i] ? 0 : 1;
    const enum ps_lane lane = PS_LANE_COMPUTE;
    add(s, 0, PS_TASK_EMBED, lane, micros, 0, 0);
    add(s, 0, PS_TASK_LAYER_FORWARD, lane, micros * layers, micros * layers * p->layer_flops, 0);
    double head = p->head_flops + (p->trains ? p->head_backward_flops : 0);
    add(s, 1, PS_TASK_HEAD, lane, micros, micros * head, 0);
    add(s, 1, PS_TASK_LAYER_RECOMPUTE, lane, micros * recomputed,
        micros * recomputed * p->layer_flops, 0);
    add(s, 1, PS_TASK_LAYER_BACKWARD, lane, micros * trained,
        micros * trained * p->layer_backward_flops, 0);
}

/* Boundaries that are moved out and back; those that the ring still holds at the turn are not. */
static void add_boundaries(struct sums *s, const struct ps_planner_request *req,
                           const struct ps_step_layout *l, double passes)
{
    const struct ps_step_shape *p = req->shape;
    double host = 0;
    double disk = 0;
    double held = l->x_ring;
    for (int32_t i = p->n_layer - 1; p->trains && i >= p->first_trained; i--) {
        double moved = l->boundary[i] == PS_TIER_DEVICE ? 0 : l->group;
        if (moved > 0 && !(l->ablate & PS_ABLATE_FORWARDING)) {
            double kept = held < moved ? held : moved;
            held -= kept;
            moved -= kept;
        }
        host += l->boundary[i] == PS_TIER_HOST ? moved : 0;
        disk += l->boundary[i] == PS_TIER_DISK ? moved : 0;
    }
    double copies = passes * (host + (l->discrete ? disk : 0));
    double x = (double)p->x_bytes;
    add(s, 0, PS_TASK_SPILL_OUT, PS_LANE_D2H, copies, 0, copies * x);
    add(s, 1, PS_TASK_SPILL_IN, PS_LANE_H2D, copies, 0, copies * x);
    add(s, 0, PS_TASK_SPILL_WRITE, PS_LANE_DISK_WRITE, passes * disk, 0, passes * disk * x);
    add(s, 1, PS_TASK_SPILL_READ, PS_LANE_DISK_STATE, passes * disk, 0, passes * disk * x);
}

/* No lane can be done before its own work, no resource before its share of all of it. */
static double bound(const struct sums *s, double *lane_s)
{
    double most = 0;
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        lane_s[i] = s->stay[0][i] + s->stay[1][i];
        most = lane_s[i] > most ? lane_s[i] : most;
    }
    for (int r = 0; r < PS_RESOURCE_COUNT; r++) {
        double share = 0;
        for (int i = 0; i < PS_LANE_COUNT; i++)
            share += (s->solo[0][i] + s->solo[1][i]) * s->cost->use[i][r];
        most = share > most ? share : most;
    }
    return most;
}

/* What is read in a phase must be used in it: lanes overlap within each, and little beyond. */
static double guess(const struct sums *s)
{
    double sum = 0;
    for (int phase = 0; phase < 2; phase++) {
        double most = 0;
        double all = 0;
        for (int i = 0; i < PS_LANE_COUNT; i++) {
            all += s->stay[phase][i];
            most = s->stay[phase][i] > most ? s->stay[phase][i] : most;
        }
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
    struct walk w = {.req = req, .l = l};
    struct sums s = {.cost = cost};
    int ret = walk_weights(&w);
    if (ret < 0)
        return ret;
    add_compute(&s, req, l, micros);
    for (int i = 0; i < 2; i++) {
        add(&s, i, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, passes * w.disk_reads[i], 0,
            passes * (double)w.disk[i]);
        add(&s, i, PS_TASK_COPY_WEIGHTS, PS_LANE_H2D, passes * w.copies[i], 0,
            passes * (double)w.copied[i]);
    }
    add_boundaries(&s, req, l, passes);
    *out = (struct ps__estimate){.read_bytes = (uint64_t)passes * (w.disk[0] + w.disk[1])};
    out->bound_s = bound(&s, out->lane_s);
    double guessed = guess(&s);
    out->guess_s = guessed > out->bound_s ? guessed : out->bound_s;
    return 0;
}
