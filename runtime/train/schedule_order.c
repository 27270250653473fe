/* The order of a schedule's tasks: its fields, its clocks, its reduction. See
 * schedule_order_internal.h.
 *
 * Design. Two periods are unrolled; instance p * n + t is task t of period p. Since lane order is
 * program order and a dependency of distance 0 may only point to an earlier id, every edge leads
 * from a lower instance to a higher one: that is the proof that the two relations together are
 * acyclic, and one pass in instance order suffices. Each instance starts and ends; the edges are
 *
 *   a before b on a lane that is no disk lane:   end(a) -> start(b)
 *   a before b on a disk lane:                   start(a) -> start(b), end(a) -> end(b)
 *   b depends on a:                              end(a) -> start(b)
 *   always:                                      start(a) -> end(a)
 *
 * Tasks of one lane end in lane order, so what is known to have ended of a lane is a prefix of it
 * and one number a lane says it: a vector clock for the start and one for the end of each instance.
 * A lane whose edge is left out falls into pieces that keep this property: clocks count chains, not
 * lanes. */
#include "runtime/train/schedule_order_internal.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Keeps all sums in 32 bits. */
#define COUNT_MAX ((uint32_t)1 << 28)

/* ---- naming tasks ---- */

static const char *describe(char *buf, size_t size, const struct ps_schedule *s, uint32_t task)
{
    const struct ps_task *t = &s->task[task];
    char unit[24], micro[32] = "";
    const char *special = t->unit == PS_UNIT_EMBED  ? "embed"
                          : t->unit == PS_UNIT_HEAD ? "head"
                                                    : "all";
    if (t->unit >= 0)
        snprintf(unit, sizeof unit, "%d", t->unit);
    else
        snprintf(unit, sizeof unit, "%s", special);
    if (t->micro >= 0)
        snprintf(micro, sizeof micro, ", micro-batch %d", t->micro);
    snprintf(buf, size, "%u (%s, unit %s%s, %s)", task, ps_task_kind_name(t->kind), unit, micro,
             ps_lane_name(t->lane));
    return buf;
}

const char *ps__order_describe(char *buf, size_t size, const struct ps_order *o, uint32_t a,
                               uint32_t b)
{
    char ta[128], tb[128];
    snprintf(buf, size, "tasks %s and %s%s", describe(ta, sizeof ta, o->s, a % o->n),
             describe(tb, sizeof tb, o->s, b % o->n),
             a < o->n && b >= o->n ? " of the next period" : "");
    return buf;
}

/* ---- fields ---- */

static int bad_task(const struct ps_schedule *s, uint32_t i, struct ps_error *err, const char *what)
{
    return ps_error_set(err, PS_EUSAGE, "schedule %s: task %u: %s", s->name, i, what);
}

static int check_fields(const struct ps_schedule *s, uint32_t i, struct ps_error *err)
{
    const struct ps_task *t = &s->task[i];
    if (t->id != i)
        return bad_task(s, i, err, "its id is not its place");
    if ((unsigned)t->kind >= PS_TASK_KIND_COUNT)
        return bad_task(s, i, err, "no such kind");
    if ((unsigned)t->lane >= PS_LANE_COUNT)
        return bad_task(s, i, err, "no such lane");
    if (t->unit < PS_UNIT_ALL)
        return bad_task(s, i, err, "no such unit");
    if (t->micro < -1)
        return bad_task(s, i, err, "negative micro-batch");
    for (int a = 0; a < PS_ARG_COUNT; a++)
        if (t->arg[a] < -1)
            return bad_task(s, i, err, "negative argument");
    if (t->flags & ~PS_TASK_TRAILS)
        return bad_task(s, i, err, "unknown flags");
    if (!isfinite(t->flops) || t->flops < 0)
        return bad_task(s, i, err, "flops must be finite and not negative");
    if (t->dep_begin > s->dep_count || t->dep_count > s->dep_count - t->dep_begin)
        return bad_task(s, i, err, "its dependencies lie outside the schedule");
    if (t->access_begin > s->access_count || t->access_count > s->access_count - t->access_begin)
        return bad_task(s, i, err, "its ranges lie outside the schedule");
    return 0;
}

static int check_deps(const struct ps_schedule *s, uint32_t i, struct ps_error *err)
{
    char name[128], on[128];
    const struct ps_task *t = &s->task[i];
    for (uint32_t k = 0; k < t->dep_count; k++) {
        const struct ps_dep *d = &s->dep[t->dep_begin + k];
        if (d->task >= s->task_count)
            return ps_error_set(err, PS_EUSAGE,
                                "schedule %s: task %s depends on task %u, which does not exist",
                                s->name, describe(name, sizeof name, s, i), d->task);
        if (d->distance > 1)
            return ps_error_set(
                err, PS_EUSAGE,
                "schedule %s: task %s: a dependency's distance is %u, must be 0 or 1", s->name,
                describe(name, sizeof name, s, i), d->distance);
        if (d->distance == 0 && d->task >= i)
            return ps_error_set(
                err, PS_EUSAGE,
                "schedule %s: task %s depends on %s task %s: a cycle with the order "
                "of tasks",
                s->name, describe(name, sizeof name, s, i), d->task == i ? "itself," : "the later",
                describe(on, sizeof on, s, d->task));
    }
    return 0;
}

static int check_ranges(const struct ps_schedule *s, uint32_t i, struct ps_error *err)
{
    char name[128];
    const struct ps_task *t = &s->task[i];
    for (uint32_t k = 0; k < t->access_count; k++) {
        const struct ps_access *a = &s->access[t->access_begin + k];
        if (a->buffer >= s->buffer_count)
            return ps_error_set(err, PS_EUSAGE,
                                "schedule %s: task %s uses buffer %u, which does not exist",
                                s->name, describe(name, sizeof name, s, i), a->buffer);
        const struct ps_buffer *b = &s->buffer[a->buffer];
        if (a->offset > b->bytes || a->bytes > b->bytes - a->offset)
            return ps_error_set(
                err, PS_EUSAGE,
                "schedule %s: task %s: %llu bytes at offset %llu lie outside buffer "
                "%s of %llu bytes",
                s->name, describe(name, sizeof name, s, i), (unsigned long long)a->bytes,
                (unsigned long long)a->offset, b->name, (unsigned long long)b->bytes);
    }
    return 0;
}

int ps__schedule_check_fields(const struct ps_schedule *s, struct ps_error *err)
{
    if (s->fault)
        return ps_error_set(err, s->fault, "schedule %s: %s", s->name, ps_status_text(s->fault));
    if (s->task_count > COUNT_MAX || s->access_count > COUNT_MAX || s->dep_count > COUNT_MAX)
        return ps_error_set(err, PS_EUSAGE, "schedule %s: too many tasks", s->name);
    for (uint32_t b = 0; b < s->buffer_count; b++)
        if ((unsigned)s->buffer[b].tier >= PS_TIER_COUNT ||
            !memchr(s->buffer[b].name, '\0', sizeof s->buffer[b].name))
            return ps_error_set(err, PS_EUSAGE,
                                "schedule %s: buffer %u has no such tier or no name", s->name, b);
    for (uint32_t i = 0; i < s->task_count; i++) {
        int ret = check_fields(s, i, err);
        if (ret)
            return ret;
    }
    /* what names a task in the messages is checked by now */
    uint64_t deps = 0, accesses = 0;
    for (uint32_t i = 0; i < s->task_count; i++) {
        int ret = check_deps(s, i, err);
        if (!ret)
            ret = check_ranges(s, i, err);
        if (ret)
            return ret;
        deps += s->task[i].dep_count;
        accesses += s->task[i].access_count;
    }
    if (deps > s->dep_count || accesses > s->access_count)
        return ps_error_set(err, PS_EUSAGE, "schedule %s: tasks share dependencies or ranges",
                            s->name);
    return 0;
}

/* ---- order ---- */

static void join(uint32_t *to, const uint32_t *from)
{
    for (int c = 0; c < PS_ORDER_CHAINS_MAX; c++)
        if (to[c] < from[c])
            to[c] = from[c];
}

/* The chain of an instance; its lane's last instance and chain so far are updated. */
static void place_on_lane(struct ps_order *o, uint32_t i, uint32_t last[PS_LANE_COUNT],
                          uint8_t chain[PS_LANE_COUNT])
{
    enum ps_lane lane = o->s->task[i % o->n].lane;
    uint32_t pred = last[lane];
    bool left_out = false;
    if (pred != PS_ORDER_NONE && ps__is_lane_edge(o->without)) {
        uint32_t distance = i / o->n - pred / o->n;
        left_out = o->without->from == pred % o->n && o->without->to == i % o->n &&
                   o->without->distance == distance;
    }
    if (pred == PS_ORDER_NONE || left_out) {
        assert(o->chain_count < PS_ORDER_CHAINS_MAX);
        chain[lane] = (uint8_t)o->chain_count++;
    }
    if (left_out) {
        assert(o->cut_count < 2);
        o->cut[o->cut_count++] = i;
    }
    o->chain[i] = chain[lane];
    o->lane_pred[i] = pred;
    last[lane] = i;
}

/* The source instance of a dependency of instance i; PS_ORDER_NONE in the first period where it is
 * satisfied. */
static uint32_t dep_source(const struct ps_order *o, uint32_t i, const struct ps_dep *d)
{
    if (d->distance == 0)
        return i - i % o->n + d->task;
    return i >= o->n ? d->task : PS_ORDER_NONE;
}

static void advance_clocks(struct ps_order *o, uint32_t i, bool lane_edge)
{
    const struct ps_task *t = &o->s->task[i % o->n];
    uint32_t *start = o->start + (size_t)i * PS_ORDER_CHAINS_MAX;
    uint32_t *end = o->end + (size_t)i * PS_ORDER_CHAINS_MAX;
    for (uint32_t k = 0; k < t->dep_count; k++) {
        uint32_t idx = t->dep_begin + k;
        if (o->without && o->without->dep_idx == idx)
            continue;
        uint32_t from = dep_source(o, i, &o->s->dep[idx]);
        if (from != PS_ORDER_NONE)
            join(start, o->end + (size_t)from * PS_ORDER_CHAINS_MAX);
    }
    if (lane_edge)
        join(start, (ps_lane_is_async(t->lane) ? o->start : o->end) +
                        (size_t)o->lane_pred[i] * PS_ORDER_CHAINS_MAX);
    /* the end of the one before tells no more than its start did, but for ends of this very chain
     */
    memcpy(end, start, PS_ORDER_CHAINS_MAX * sizeof *end);
    end[o->chain[i]] = i + 1;
}

void ps__order_fini(struct ps_order *o)
{
    free(o->chain);
    free(o->lane_pred);
    free(o->start);
    free(o->end);
}

int ps__order_init(struct ps_order *o, const struct ps_schedule *s, const struct ps_edge *without)
{
    *o = (struct ps_order){.s = s, .without = without, .n = s->task_count};
    const size_t n = 2 * (size_t)o->n;
    o->chain = malloc(n + 1);
    o->lane_pred = malloc((n + 1) * sizeof *o->lane_pred);
    o->start = calloc(n + 1, PS_ORDER_CHAINS_MAX * sizeof *o->start);
    o->end = calloc(n + 1, PS_ORDER_CHAINS_MAX * sizeof *o->end);
    if (!o->chain || !o->lane_pred || !o->start || !o->end)
        return -ENOMEM;
    uint32_t last[PS_LANE_COUNT];
    uint8_t chain[PS_LANE_COUNT];
    for (int l = 0; l < PS_LANE_COUNT; l++)
        last[l] = PS_ORDER_NONE;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t cuts = o->cut_count;
        place_on_lane(o, i, last, chain);
        advance_clocks(o, i, o->lane_pred[i] != PS_ORDER_NONE && o->cut_count == cuts);
    }
    return 0;
}

/* ---- reduction ---- */

/* An edge into one instance: what is known to have ended once it is honoured. */
struct in_edge {
    struct ps_edge edge;
    uint32_t from; /* instance */
    const uint32_t *ended;
};

/* The edges into instance i of the second period, lane order first. */
static uint32_t in_edges(const struct ps_order *o, uint32_t i, struct in_edge *in)
{
    const struct ps_task *t = &o->s->task[i - o->n];
    const uint32_t pred = o->lane_pred[i];
    in[0] = (struct in_edge){
        .edge = {.from = pred % o->n, .to = t->id, .distance = pred < o->n, .dep_idx = UINT32_MAX},
        .from = pred,
        .ended =
            (ps_lane_is_async(t->lane) ? o->start : o->end) + (size_t)pred * PS_ORDER_CHAINS_MAX};
    for (uint32_t k = 0; k < t->dep_count; k++) {
        const struct ps_dep *d = &o->s->dep[t->dep_begin + k];
        uint32_t from = dep_source(o, i, d);
        in[k + 1] = (struct in_edge){.edge = {.from = d->task,
                                              .to = t->id,
                                              .distance = d->distance,
                                              .dep_idx = t->dep_begin + k},
                                     .from = from,
                                     .ended = o->end + (size_t)from * PS_ORDER_CHAINS_MAX};
    }
    return t->dep_count + 1;
}

int ps_schedule_reduction(const struct ps_schedule *s, struct ps_edge **out, size_t *count)
{
    int ret = ps__schedule_check_fields(s, NULL);
    if (ret)
        return ret;
    struct ps_order o;
    const size_t edges_max = (size_t)s->task_count + s->dep_count + 1;
    struct ps_edge *edge = malloc(edges_max * sizeof *edge);
    struct in_edge *in = malloc(((size_t)s->dep_count + 1) * sizeof *in);
    size_t n = 0;
    ret = ps__order_init(&o, s, NULL);
    if (!edge || !in || ret) {
        free(edge);
        ret = -ENOMEM;
        goto out;
    }
    for (uint32_t i = o.n; i < 2 * o.n; i++) {
        uint32_t in_count = in_edges(&o, i, in);
        for (uint32_t e = 0; e < in_count; e++) {
            bool implied = false;
            for (uint32_t g = 0; g < in_count && !implied; g++)
                implied = g != e && in[g].ended[o.chain[in[e].from]] > in[e].from;
            if (!implied)
                edge[n++] = in[e].edge;
        }
    }
    assert(n < edges_max);
    *out = edge;
    *count = n;
out:
    free(in);
    ps__order_fini(&o);
    return ret;
}
