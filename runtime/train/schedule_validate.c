/* The checker of schedules: see schedule.h. It shares no code with derive, which it checks; the
 * clocks that say what has ended when a task starts are those of schedule_order.c.
 *
 * Design. Conflicts are found per buffer. The ranges' ends cut the buffer into segments; a tree
 * over the segments keeps, for each chain, the last instance that touched and the last that wrote
 * below each node. Because of the prefix property those are the only ones to compare with the
 * clock: no pair is missed, and the work is accesses * log(segments) * chains.
 *
 * The caller's wait at the end of a period is not counted on: dependencies of distance 1 must
 * suffice. */
#include "runtime/train/schedule_order_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Neighbours of a lane whose edge is left out: only an end before a start orders them without it
 * (the start of a task leads nowhere else than to its end and to the next start of its lane). */
static int check_cuts(const struct ps_order *o, struct ps_error *err)
{
    char two[300];
    for (uint32_t k = 0; k < o->cut_count; k++) {
        uint32_t b = o->cut[k], a = o->lane_pred[b];
        if (!ps__order_ended(o, a, b))
            return ps_error_set(err, PS_EUSAGE, "schedule %s: %s share a lane and are not ordered",
                                o->s->name, ps__order_describe(two, sizeof two, o, a, b));
    }
    return 0;
}

/* ---- conflicts ---- */

/* One declared range of the buffer in work, as segments [lo, hi) of it. */
struct item {
    uint32_t task, access;
    uint32_t lo, hi;
};

/* Last instances over the segments of one buffer: a complete binary tree, leaves at [leaves,
 * 2 * leaves). best: over the node and all below it; mark: set for the whole node at once.
 * (Instances come in rising order, so a mark never has to be pushed down.) */
struct last_users {
    uint32_t leaves, column_count;
    uint8_t column[PS_ORDER_CHAINS_MAX]; /* by chain */
    uint8_t chain[PS_ORDER_CHAINS_MAX];  /* by column */
    uint32_t *best[2], *mark[2]; /* [1]: writes alone; (2 * leaves, column_count): instance + 1 */
};

static void touch_node(struct last_users *u, uint32_t node, uint32_t column, bool write,
                       uint32_t value)
{
    size_t at = (size_t)node * u->column_count + column;
    for (int kind = 0; kind <= (write ? 1 : 0); kind++)
        u->best[kind][at] = u->mark[kind][at] = value;
}

static void touch(struct last_users *u, const struct item *it, uint32_t column, bool write,
                  uint32_t value)
{
    uint32_t lo = it->lo + u->leaves, hi = it->hi + u->leaves;
    for (uint32_t l = lo, h = hi; l < h; l >>= 1, h >>= 1) {
        if (l & 1)
            touch_node(u, l++, column, write, value);
        if (h & 1)
            touch_node(u, --h, column, write, value);
    }
    for (int kind = 0; kind <= (write ? 1 : 0); kind++) {
        for (uint32_t node = lo >> 1; node; node >>= 1)
            u->best[kind][(size_t)node * u->column_count + column] = value;
        for (uint32_t node = (hi - 1) >> 1; node; node >>= 1)
            u->best[kind][(size_t)node * u->column_count + column] = value;
    }
}

/* The instance of a row that has not ended by `clock`, or PS_ORDER_NONE. */
static uint32_t not_ended(const struct last_users *u, const uint32_t *table, uint32_t node,
                          const uint32_t *clock)
{
    const uint32_t *row = table + (size_t)node * u->column_count;
    for (uint32_t c = 0; c < u->column_count; c++)
        if (row[c] > clock[u->chain[c]])
            return row[c] - 1;
    return PS_ORDER_NONE;
}

static uint32_t find_conflict(const struct last_users *u, const struct item *it, bool write,
                              const uint32_t *clock)
{
    const uint32_t *best = u->best[!write], *mark = u->mark[!write];
    uint32_t lo = it->lo + u->leaves, hi = it->hi + u->leaves, found = PS_ORDER_NONE;
    for (uint32_t l = lo, h = hi; l < h && found == PS_ORDER_NONE; l >>= 1, h >>= 1) {
        if (l & 1)
            found = not_ended(u, best, l++, clock);
        if ((h & 1) && found == PS_ORDER_NONE)
            found = not_ended(u, best, --h, clock);
    }
    for (uint32_t node = lo >> 1; node && found == PS_ORDER_NONE; node >>= 1)
        found = not_ended(u, mark, node, clock);
    for (uint32_t node = (hi - 1) >> 1; node && found == PS_ORDER_NONE; node >>= 1)
        found = not_ended(u, mark, node, clock);
    return found;
}

/* Instances a and b, b by way of access y, are not ordered: say where they meet. */
static int report_conflict(const struct ps_order *o, uint32_t a, uint32_t b,
                           const struct ps_access *y, struct ps_error *err)
{
    char two[300], advice[160];
    const struct ps_schedule *s = o->s;
    const struct ps_task *t = &s->task[a % o->n];
    uint64_t begin = y->offset, end = y->offset + y->bytes;
    for (uint32_t k = 0; k < t->access_count; k++) {
        const struct ps_access *x = &s->access[t->access_begin + k];
        if (x->buffer != y->buffer || !(x->write || y->write) || x->offset >= end ||
            x->offset + x->bytes <= begin)
            continue;
        begin = begin > x->offset ? begin : x->offset;
        end = end < x->offset + x->bytes ? end : x->offset + x->bytes;
        break;
    }
    snprintf(advice, sizeof advice, "task %u needs a dependency on task %u, distance %d", b % o->n,
             a % o->n, a < o->n && b >= o->n);
    return ps_error_full(err, PS_EUSAGE, NULL, NULL, advice,
                         "schedule %s: %s both touch bytes [%llu, %llu) of buffer %s, one of them "
                         "writes, and nothing orders them",
                         s->name, ps__order_describe(two, sizeof two, o, a, b),
                         (unsigned long long)begin, (unsigned long long)end,
                         s->buffer[y->buffer].name);
}

/* Check and enter the items of one task, item[0 .. count), as instance i. */
static int visit_task(const struct ps_order *o, struct last_users *u, const struct item *item,
                      uint32_t count, uint32_t i, struct ps_error *err)
{
    const uint32_t *clock = ps__order_start(o, i);
    for (uint32_t k = 0; k < count; k++) {
        const struct ps_access *a = &o->s->access[item[k].access];
        uint32_t other = find_conflict(u, &item[k], a->write, clock);
        if (other != PS_ORDER_NONE)
            return report_conflict(o, other, i, a, err);
    }
    for (uint32_t k = 0; k < count; k++)
        touch(u, &item[k], u->column[o->chain[i]], o->s->access[item[k].access].write, i + 1);
    return 0;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint32_t segment_of(const uint64_t *bound, uint32_t count, uint64_t offset)
{
    const uint64_t *at = bsearch(&offset, bound, count, sizeof *bound, compare_u64);
    assert(at);
    return (uint32_t)(at - bound);
}

/* Cut the buffer at its ranges' ends and number the items' segments. Returns the segment count;
 * bound has room for 2 * count offsets. */
static uint32_t cut_segments(const struct ps_schedule *s, struct item *item, uint32_t count,
                             uint64_t *bound)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < count; k++) {
        const struct ps_access *a = &s->access[item[k].access];
        bound[n++] = a->offset;
        bound[n++] = a->offset + a->bytes;
    }
    qsort(bound, n, sizeof *bound, compare_u64);
    uint32_t unique = 0;
    for (uint32_t k = 0; k < n; k++)
        if (unique == 0 || bound[unique - 1] != bound[k])
            bound[unique++] = bound[k];
    for (uint32_t k = 0; k < count; k++) {
        const struct ps_access *a = &s->access[item[k].access];
        item[k].lo = segment_of(bound, unique, a->offset);
        item[k].hi = segment_of(bound, unique, a->offset + a->bytes);
    }
    return unique - 1;
}

static int last_users_init(struct last_users *u, const struct ps_order *o, const struct item *item,
                           uint32_t count, uint32_t segment_count)
{
    bool used[PS_ORDER_CHAINS_MAX] = {false};
    for (uint32_t k = 0; k < count; k++)
        used[o->chain[item[k].task]] = used[o->chain[item[k].task + o->n]] = true;
    memset(u, 0, sizeof *u);
    for (uint8_t c = 0; c < PS_ORDER_CHAINS_MAX; c++)
        if (used[c]) {
            u->column[c] = (uint8_t)u->column_count;
            u->chain[u->column_count++] = c;
        }
    for (u->leaves = 1; u->leaves < segment_count;)
        u->leaves *= 2;
    const size_t cells = 2 * (size_t)u->leaves * u->column_count;
    uint32_t *all = calloc(4 * cells, sizeof *all);
    if (!all)
        return -ENOMEM;
    u->best[0] = all;
    u->best[1] = all + cells;
    u->mark[0] = all + 2 * cells;
    u->mark[1] = all + 3 * cells;
    return 0;
}

/* All items of one buffer, in task order, over both periods. */
static int check_buffer(const struct ps_order *o, struct item *item, uint32_t count,
                        uint64_t *bound, struct ps_error *err)
{
    struct last_users u;
    int ret = last_users_init(&u, o, item, count, cut_segments(o->s, item, count, bound));
    if (ret)
        return ps_error_set(err, ret, "not enough memory to check schedule %s", o->s->name);
    for (uint32_t period = 0; period < 2 && !ret; period++)
        for (uint32_t k = 0, next; k < count && !ret; k = next) {
            for (next = k + 1; next < count && item[next].task == item[k].task;)
                next++;
            ret = visit_task(o, &u, item + k, next - k, period * o->n + item[k].task, err);
        }
    free(u.best[0]);
    return ret;
}

/* The accesses, sorted by buffer and in task order within each: item[first[b] .. first[b + 1]). */
static void sort_items(const struct ps_schedule *s, struct item *item, uint32_t *first)
{
    memset(first, 0, ((size_t)s->buffer_count + 2) * sizeof *first);
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t t = 0; t < s->task_count; t++)
            for (uint32_t k = 0; k < s->task[t].access_count; k++) {
                uint32_t idx = s->task[t].access_begin + k;
                const struct ps_access *a = &s->access[idx];
                if (a->bytes == 0)
                    continue;
                if (pass == 0)
                    first[a->buffer + 2]++;
                else
                    item[first[a->buffer + 1]++] = (struct item){.task = t, .access = idx};
            }
        if (pass == 0)
            for (uint32_t b = 0; b < s->buffer_count; b++)
                first[b + 2] += first[b + 1];
    }
}

static int check_conflicts(const struct ps_order *o, struct ps_error *err)
{
    const struct ps_schedule *s = o->s;
    struct item *item = malloc(((size_t)s->access_count + 1) * sizeof *item);
    uint32_t *first = malloc(((size_t)s->buffer_count + 2) * sizeof *first);
    uint64_t *bound = malloc((2 * (size_t)s->access_count + 1) * sizeof *bound);
    int ret = 0;
    if (!item || !first || !bound) {
        ret = ps_error_set(err, -ENOMEM, "not enough memory to check schedule %s", s->name);
        goto out;
    }
    sort_items(s, item, first);
    for (uint32_t b = 0; b < s->buffer_count && !ret; b++)
        if (first[b + 1] > first[b])
            ret = check_buffer(o, item + first[b], first[b + 1] - first[b], bound, err);
out:
    free(item);
    free(first);
    free(bound);
    return ret;
}

int ps_schedule_validate_without(const struct ps_schedule *s, const struct ps_edge *without,
                                 struct ps_error *err)
{
    int ret = ps__schedule_check_fields(s, err);
    if (ret)
        return ret;
    struct ps_order o;
    ret = ps__order_init(&o, s, without);
    if (ret)
        ret = ps_error_set(err, ret, "not enough memory to check schedule %s", s->name);
    else if (without &&
             (ps__is_lane_edge(without) ? o.cut_count == 0 : without->dep_idx >= s->dep_count))
        ret = ps_error_set(err, -EINVAL, "schedule %s has no such edge to leave out", s->name);
    if (!ret)
        ret = check_cuts(&o, err);
    if (!ret)
        ret = check_conflicts(&o, err);
    ps__order_fini(&o);
    return ret;
}

int ps_schedule_validate(const struct ps_schedule *s, struct ps_error *err)
{
    return ps_schedule_validate_without(s, NULL, err);
}
