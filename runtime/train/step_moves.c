/* Layer boundaries and kept pieces of saved sets between near memory, host memory and the spill
 * file: see step.h.
 *
 * Ring buffers are chosen when a thing is made or fetched: first one that nobody will want again,
 * else the one whose content the backward pass will want last. Only one kept piece and a boundary a
 * micro-batch are in use at a time, so that rings of that many never run out. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "runtime/train/step_build_internal.h"

static int rings_open(struct ps__rings *r, size_t things)
{
    r->ring = calloc((size_t)r->count + 1, sizeof *r->ring);
    r->served = calloc(things + 1, sizeof *r->served);
    return r->ring && r->served ? 0 : -ENOMEM;
}

int ps__moves_open(struct ps__build *b)
{
    size_t things = (size_t)b->p->n_layer * (size_t)b->l->group;
    int ret = rings_open(&b->x, things);
    return ret < 0 ? ret : rings_open(&b->saved, things);
}

void ps__moves_close(struct ps__build *b)
{
    free(b->x.ring);
    free(b->x.served);
    free(b->saved.ring);
    free(b->saved.served);
}

static void forget(struct ps__rings *r)
{
    for (int32_t i = 0; i < r->count; i++)
        r->ring[i] = (struct ps__ring){.layer = -1};
    r->releases = 0;
    r->host_next = 0;
}

void ps__forget_moves(struct ps__build *b)
{
    forget(&b->x);
    forget(&b->saved);
}

/* Is ring buffer i worth less than ring buffer j? */
static bool cheaper(const struct ps__ring *i, const struct ps__ring *j)
{
    if (i->layer != j->layer)
        return i->layer < j->layer;
    /* of those that hold nothing the one free for longest: its last task has ended soonest */
    return i->layer < 0 ? i->freed < j->freed : i->micro > j->micro;
}

/* Returns the buffer's number. */
static int32_t take(struct ps__rings *r, int32_t layer, int32_t micro)
{
    int32_t best = -1;
    for (int32_t i = 0; i < r->count; i++)
        if (!r->ring[i].busy && (best < 0 || cheaper(&r->ring[i], &r->ring[best])))
            best = i;
    assert(best >= 0); /* rings are large enough: checked with the layout */
    r->ring[best] = (struct ps__ring){.layer = layer, .micro = micro, .busy = true};
    return r->first + best;
}

/* Buffers that are not of the ring stay as they are. */
static void release(struct ps__rings *r, int32_t number, bool nobody_wants_it)
{
    int32_t i = number - r->first;
    if (number < 0 || i < 0)
        return;
    r->ring[i].busy = false;
    r->ring[i].freed = ++r->releases;
    if (nobody_wants_it)
        r->ring[i].layer = -1;
}

/* What is still near is served from there, once the dry walk has found out. Returns its number, or
 * -1: it must be fetched into one that is taken. */
static int32_t serve(struct ps__build *b, struct ps__rings *r, int32_t l, int32_t micro)
{
    size_t at = (size_t)l * (size_t)b->l->group + (size_t)micro;
    int32_t near = -1;
    for (int32_t i = 0; near < 0 && i < r->count; i++)
        if (r->ring[i].layer == l && r->ring[i].micro == micro)
            near = i;
    if (b->dry)
        r->served[at] = near >= 0 && !(b->l->ablate & PS_ABLATE_FORWARDING);
    if (r->served[at]) {
        assert(near >= 0);
        r->ring[near].busy = true;
        return r->first + near;
    }
    if (near >= 0)
        r->ring[near].layer = -1;
    return -1;
}

static bool goes_out(const struct ps__build *b, const struct ps__rings *r, int32_t l, int32_t micro)
{
    return b->dry || !r->served[(size_t)l * (size_t)b->l->group + (size_t)micro];
}

/* A thing on its way: its near buffer is argument `in` or `out` of a task, its host buffer (-1:
 * none) argument `host_arg`. */
struct move {
    int32_t unit, micro, near, host;
    enum ps_task_arg in, out, host_arg;
    bool disk;
    uint64_t bytes;
};

static void one_way(struct ps__build *b, const struct move *v, enum ps_task_kind kind,
                    enum ps_lane lane, enum ps_task_arg near_arg)
{
    ps__emit(b, kind, lane, v->unit, v->micro);
    if (near_arg != PS_ARG_COUNT)
        ps__arg(b, near_arg, v->near);
    if (v->host >= 0)
        ps__arg(b, v->host_arg, v->host);
    ps__cost(b, 0, v->bytes);
    ps__done(b);
}

static void send(struct ps__build *b, const struct move *v)
{
    bool copied = b->l->discrete;
    if (copied)
        one_way(b, v, PS_TASK_SPILL_OUT, PS_LANE_D2H, v->in);
    if (v->disk)
        one_way(b, v, PS_TASK_SPILL_WRITE, PS_LANE_DISK_WRITE, copied ? PS_ARG_COUNT : v->in);
}

static void bring(struct ps__build *b, const struct move *v)
{
    bool copied = b->l->discrete;
    if (v->disk)
        one_way(b, v, PS_TASK_SPILL_READ, PS_LANE_DISK_STATE, copied ? PS_ARG_COUNT : v->out);
    if (copied)
        one_way(b, v, PS_TASK_SPILL_IN, PS_LANE_H2D, v->out);
}

/* A host buffer of one's own, or the next of the ring. */
static int32_t host_buffer(const struct ps__build *b, struct ps__rings *r, int32_t own_idx,
                           int32_t ring_base, int32_t micro)
{
    if (!b->l->discrete)
        return -1;
    if (own_idx >= 0)
        return own_idx * b->l->group + micro;
    return ring_base + r->host_next++ % b->l->host_ring;
}

/* --- layer boundaries --- */

bool ps__boundary_moved(const struct ps__build *b, int32_t l)
{
    return b->m->x_host_idx[l] >= 0 || b->m->x_disk_idx[l] >= 0;
}

static struct move boundary_move(struct ps__build *b, int32_t l, int32_t micro, int32_t x)
{
    const struct ps_step_map *m = b->m;
    return (struct move){
        .unit = l,
        .micro = micro,
        .near = x,
        .host = host_buffer(b, &b->x, m->x_host_idx[l], m->host_x_count - b->l->host_ring, micro),
        .in = PS_ARG_X_IN,
        .out = PS_ARG_X_OUT,
        .host_arg = PS_ARG_HOST_X,
        .disk = m->x_disk_idx[l] >= 0,
        .bytes = m->x_stride};
}

int32_t ps__place_boundary(struct ps__build *b, int32_t l, int32_t micro)
{
    if (l < b->p->n_layer && b->m->x_kept_idx[l] >= 0)
        return b->m->x_kept_idx[l] * b->l->group + micro;
    return take(&b->x, l, micro);
}

int32_t ps__pass_boundary(struct ps__build *b, int32_t l, int32_t micro, int32_t x)
{
    bool in_ring = x >= b->m->x_kept;
    bool next_kept = l + 1 < b->p->n_layer && b->m->x_kept_idx[l + 1] >= 0;
    if (!in_ring || ps__boundary_moved(b, l) || next_kept)
        return ps__place_boundary(b, l + 1, micro);
    b->x.ring[x - b->m->x_kept].layer = l + 1; /* nobody wants boundary l again: in place */
    return x;
}

void ps__spill_boundary(struct ps__build *b, int32_t l, int32_t micro, int32_t x)
{
    if (!ps__boundary_moved(b, l) || !goes_out(b, &b->x, l, micro))
        return;
    struct move v = boundary_move(b, l, micro, x);
    send(b, &v);
}

int32_t ps__fetch_boundary(struct ps__build *b, int32_t l, int32_t micro)
{
    if (b->m->x_kept_idx[l] >= 0)
        return b->m->x_kept_idx[l] * b->l->group + micro;
    int32_t near = serve(b, &b->x, l, micro);
    if (near >= 0)
        return near;
    struct move v = boundary_move(b, l, micro, take(&b->x, l, micro));
    bring(b, &v);
    return v.near;
}

void ps__release_boundary(struct ps__build *b, int32_t x, bool nobody_wants_it)
{
    release(&b->x, x, nobody_wants_it);
}

/* --- kept pieces of saved sets --- */

static bool saved_moved(const struct ps__build *b, int32_t l)
{
    return b->m->saved_host_idx[l] >= 0 || b->m->saved_disk_idx[l] >= 0;
}

static struct move saved_move(struct ps__build *b, int32_t l, int32_t micro, int32_t saved)
{
    const struct ps_step_map *m = b->m;
    return (struct move){
        .unit = l,
        .micro = micro,
        .near = saved,
        .host = host_buffer(b, &b->saved, m->saved_host_idx[l], m->host_saved_kept, micro),
        .in = PS_ARG_SAVED,
        .out = PS_ARG_SAVED,
        .host_arg = PS_ARG_HOST_SAVED,
        .disk = m->saved_disk_idx[l] >= 0,
        .bytes = ps__saved_moved_bytes(b->p, b->l, l)};
}

int32_t ps__place_saved(struct ps__build *b, int32_t l, int32_t micro)
{
    if (b->m->saved_idx[l] >= 0)
        return b->m->saved_idx[l] * b->l->group + micro;
    return saved_moved(b, l) ? take(&b->saved, l, micro) : -1;
}

void ps__spill_saved(struct ps__build *b, int32_t l, int32_t micro, int32_t saved)
{
    if (!saved_moved(b, l) || !goes_out(b, &b->saved, l, micro))
        return;
    struct move v = saved_move(b, l, micro, saved);
    send(b, &v);
}

int32_t ps__fetch_saved(struct ps__build *b, int32_t l, int32_t micro)
{
    if (!saved_moved(b, l))
        return ps__place_saved(b, l, micro);
    int32_t near = serve(b, &b->saved, l, micro);
    if (near >= 0)
        return near;
    struct move v = saved_move(b, l, micro, take(&b->saved, l, micro));
    bring(b, &v);
    return v.near;
}

void ps__release_saved(struct ps__build *b, int32_t saved, bool nobody_wants_it)
{
    release(&b->saved, saved, nobody_wants_it);
}

int32_t ps__eval_saved(const struct ps__build *b, int32_t l)
{
    if (b->m->saved_idx[l] >= 0)
        return b->m->saved_idx[l] * b->l->group;
    return saved_moved(b, l) ? b->m->saved_kept : -1;
}
