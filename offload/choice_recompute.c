/* Choices of what each layer keeps of its activations: see choice.c and runtime/model/recompute.h.
 *
 * Each level costs bytes and saves time. All layers are alike, so the memory that there is is best
 * used along the lower convex hull of the points (bytes kept, seconds of recomputation): all layers
 * at one of its corners, the last ones at the next (recompute FLOPs over bytes; Fuyou,
 * arXiv:2403.06504, and the ladder R0-R4). Where attention is dear that makes R3, which keeps only
 * its result, the first corner; where every product saves as much for its bytes there are none
 * between R4 and R0. What is left over holds one layer at a level between.
 *
 * The same order serves what is moved to host or disk and back (swapped), with bandwidth in place
 * of memory; those layers are spread evenly, so that the lanes have work all the time. */
#include <stdio.h>

#include "offload/choice_internal.h"

#define LEVELS (PS_RECOMPUTE_COUNT - 1)
/* A corner that saves less than this share more than the line past it is none. */
#define CORNER 0.02

static double seconds(const struct ps__fill *f, enum ps_recompute level)
{
    struct ps_task t = {.kind = PS_TASK_LAYER_RECOMPUTE,
                        .lane = PS_LANE_COMPUTE,
                        .flops = f->req->shape->recompute_flops[level]};
    t.arg[PS_ARG_LEVEL] = (int32_t)level;
    double solo = ps_cost_solo_s(&f->cost, &t);
    double stay = ps_cost_throttle_s(&f->cost, &t);
    return level == PS_RECOMPUTE_R0 ? 0 : stay > solo ? stay : solo;
}

/* Seconds saved for a byte from one level to a lower one. */
static double gain(const struct ps__fill *f, enum ps_recompute from, enum ps_recompute to)
{
    const uint64_t *bytes = f->req->shape->kept_bytes;
    double more = (double)bytes[to] - (double)bytes[from];
    return (seconds(f, from) - seconds(f, to)) / (more > 1 ? more : 1);
}

void ps__recompute_order(struct ps__fill *f)
{
    enum ps_recompute at = PS_RECOMPUTE_R4;
    int count = 0;
    f->order[count++] = at;
    while (at != PS_RECOMPUTE_R0) {
        enum ps_recompute best = PS_RECOMPUTE_R0;
        for (int to = PS_RECOMPUTE_R1; to < (int)at; to++)
            if (gain(f, at, (enum ps_recompute)to) > (1 + CORNER) * gain(f, at, best))
                best = (enum ps_recompute)to;
        at = best;
        f->order[count++] = at;
    }
}

int32_t ps__recompute_steps(int32_t n)
{
    return LEVELS * n;
}

/* The level of layer n - 1 - rank at the knob's step: the last layers reach the next level of the
 * order first, through the levels between, then all others; then the level after it. */
static enum ps_recompute recompute_level(const struct ps__fill *f, int32_t rank, int32_t n)
{
    int32_t steps = f->k.keep;
    for (int i = 0; f->order[i] != PS_RECOMPUTE_R0; i++) {
        int32_t from = (int32_t)f->order[i];
        int32_t span = from - (int32_t)f->order[i + 1];
        if (steps < n * span) {
            int32_t raised = steps - rank * span;
            raised = raised < 0 ? 0 : raised > span ? span : raised;
            return (enum ps_recompute)(from - raised);
        }
        steps -= n * span;
    }
    return PS_RECOMPUTE_R0;
}

/* Layers of n that may compute something again: with one micro-batch a pass the last one finds all
 * that forward made (step_build.c). */
static int32_t recomputing(const struct ps__fill *f, int32_t n)
{
    return n > 0 && f->l->group == 1 ? n - 1 : n;
}

int32_t ps__swap_steps(const struct ps__fill *f, int32_t n)
{
    int32_t corners = 0;
    while (f->order[corners] != PS_RECOMPUTE_R0)
        corners++;
    return corners * recomputing(f, n);
}

/* Corner by corner: what is moved has no use for levels between. */
static enum ps_recompute swap_level(const struct ps__fill *f, int32_t x, int32_t n)
{
    const int32_t steps = ps__swap_steps(f, n);
    n = recomputing(f, n);
    if (x < 0 || x >= n)
        return PS_RECOMPUTE_R4;
    if (f->k.swap >= steps)
        return PS_RECOMPUTE_R0;
    int32_t corner = f->k.swap / n;
    return f->order[corner + ps__chosen(x, f->k.swap % n, n)];
}

/* The level that the knob of keeping gives layer x of n. One that computes nothing again is raised
 * when all others keep everything. */
static enum ps_recompute keep_level(const struct ps__fill *f, int32_t x, int32_t n)
{
    const int32_t first = recomputing(f, n);
    int32_t more = f->k.keep - ps__recompute_steps(first);
    if (x < 0)
        return PS_RECOMPUTE_R4;
    if (x < first)
        return recompute_level(f, first - 1 - x, first);
    return (enum ps_recompute)(PS_RECOMPUTE_R4 - (more < 0 ? 0 : more));
}

bool ps__assemble_saved(const struct ps__fill *f, int32_t n)
{
    const struct ps_step_shape *p = f->req->shape;
    struct ps_step_layout *l = f->l;
    int32_t moved = 0;
    int32_t at = 0;
    bool disk = false;
    for (int32_t i = 0; i < p->n_layer; i++) {
        int32_t x = n - (p->n_layer - i); /* < 0: below all that is trained */
        enum ps_recompute near = keep_level(f, x, n);
        enum ps_recompute far = swap_level(f, x, n);
        l->recompute[i] = far < near ? far : near;
        l->saved[i] = far < near ? PS_TIER_DISK : PS_TIER_DEVICE;
        moved += far < near;
    }
    for (int32_t i = 0; moved > 0 && i < p->n_layer; i++) {
        if (l->saved[i] == PS_TIER_DEVICE)
            continue;
        if (ps__chosen(at++, ps__least_of(f->k.host_saved, moved), moved))
            l->saved[i] = PS_TIER_HOST;
        disk |= l->saved[i] == PS_TIER_DISK;
    }
    l->saved_ring = moved > 0 ? f->k.saved_ring : 0;
    return disk;
}

void ps__recompute_note(const struct ps_step_shape *p, const struct ps_step_layout *l, char *note,
                        size_t size)
{
    static const char *const all[PS_RECOMPUTE_COUNT] = {
        "keep", "recompute gate/up", "recompute q-v, gate/up", "keep attention", "recompute"};
    int32_t count[PS_RECOMPUTE_COUNT] = {0};
    int32_t needed = 0;
    size_t len = 0;
    for (int32_t i = p->first_trained; p->trains && i < p->n_layer; i++, needed++)
        count[l->recompute[i]]++;
    note[0] = '\0';
    for (int level = 0; level < PS_RECOMPUTE_COUNT; level++) {
        if (count[level] == 0 || len >= size)
            continue;
        int n =
            count[level] == needed
                ? snprintf(note, size, "%s", all[level])
                : snprintf(note + len, size - len, "%s%s %d", len ? ", " : "",
                           level == PS_RECOMPUTE_R0   ? "keep"
                           : level == PS_RECOMPUTE_R4 ? "recompute"
                                                      : ps_recompute_name((enum ps_recompute)level),
                           count[level]);
        len += n > 0 ? (size_t)n : 0;
    }
}
