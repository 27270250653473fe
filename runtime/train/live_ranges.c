/* When which bytes of a schedule are in use: see trace.h.
 *
 * Each buffer is cut at every begin and end of its accesses; within a piece every access touches
 * all of it, so that a piece lives and dies as a whole. Pieces that live from the same task to the
 * same task are added up. */
#include "runtime/train/trace.h"

#include <errno.h>
#include <stdlib.h>

#define EDGE UINT32_MAX /* the beginning or the end of the period */

struct touch {
    uint64_t begin, end;
    uint32_t task;
    bool produces;
};

struct work {
    struct touch *touch; /* of one buffer, in program order */
    uint64_t *cut;       /* sorted, each once */
    size_t touch_count, cut_count;
    struct ps_live_range *range;
    uint32_t range_count, range_capacity;
};

/* Does a task of this kind write without reading what was there? */
static bool produces(enum ps_task_kind kind)
{
    switch (kind) {
    case PS_TASK_EMBED:
    case PS_TASK_LAYER_FORWARD:
    case PS_TASK_LAYER_RECOMPUTE:
    case PS_TASK_COPY_BATCH:
    case PS_TASK_READ_WEIGHTS:
    case PS_TASK_COPY_WEIGHTS:
    case PS_TASK_SPILL_OUT:
    case PS_TASK_SPILL_WRITE:
    case PS_TASK_SPILL_READ:
    case PS_TASK_SPILL_IN:
    case PS_TASK_GRAD_OUT:
    case PS_TASK_GRAD_IN:
    case PS_TASK_GRAD_WRITE:
    case PS_TASK_GRAD_READ:
    case PS_TASK_READ_STATE:
    case PS_TASK_WRITE_STATE:
    case PS_TASK_WRITE_WEIGHTS:
    case PS_TASK_PERTURB:
    case PS_TASK_COPY_PERTURBED:
        return true;
    default:
        return false;
    }
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int compare_range(const void *a, const void *b)
{
    const struct ps_live_range *x = a;
    const struct ps_live_range *y = b;
    if (x->tier != y->tier)
        return x->tier < y->tier ? -1 : 1;
    if (x->from != y->from)
        return x->from < y->from ? -1 : 1;
    return (x->to > y->to) - (x->to < y->to);
}

static int add_range(struct work *w, uint32_t from, uint32_t to, enum ps_tier tier, uint64_t bytes)
{
    if (w->range_count == w->range_capacity) {
        uint32_t wanted = w->range_capacity ? 2 * w->range_capacity : 256;
        void *grown = realloc(w->range, wanted * sizeof *w->range);
        if (!grown)
            return -ENOMEM;
        w->range = grown;
        w->range_capacity = wanted;
    }
    w->range[w->range_count++] = (struct ps_live_range){from, to, tier, bytes};
    return 0;
}

/* Add up ranges between the same tasks. */
static void merge(struct work *w)
{
    if (w->range_count == 0)
        return;
    qsort(w->range, w->range_count, sizeof *w->range, compare_range);
    uint32_t kept = 0;
    for (uint32_t i = 1; i < w->range_count; i++) {
        if (compare_range(&w->range[kept], &w->range[i]) == 0)
            w->range[kept].bytes += w->range[i].bytes;
        else
            w->range[++kept] = w->range[i];
    }
    w->range_count = kept + 1;
}

/* The life of the piece [begin, end). */
static int add_piece(struct work *w, uint64_t begin, uint64_t end, enum ps_tier tier)
{
    uint32_t from = EDGE;     /* of the current life */
    uint32_t last = EDGE;     /* last touch, EDGE: none yet */
    bool from_before = false; /* what the period before left is touched */
    for (size_t i = 0; i < w->touch_count; i++) {
        const struct touch *t = &w->touch[i];
        if (t->begin > begin || t->end < end)
            continue;
        if (last == EDGE)
            from_before = !t->produces;
        /* a task may declare several ranges: its own write after its own read is one touch */
        if (t->produces && t->task != last) {
            if (last != EDGE && add_range(w, from, last, tier, end - begin))
                return -ENOMEM;
            from = t->task;
        }
        last = t->task;
    }
    if (last == EDGE)
        return 0;
    return add_range(w, from, from_before ? EDGE : last, tier, end - begin);
}

static void collect(struct work *w, const struct ps_schedule *s, uint32_t buffer)
{
    w->touch_count = 0;
    w->cut_count = 0;
    for (uint32_t i = 0; i < s->task_count; i++) {
        const struct ps_task *task = &s->task[i];
        for (uint32_t k = 0; k < task->access_count; k++) {
            const struct ps_access *a = &s->access[task->access_begin + k];
            if (a->buffer != buffer || a->bytes == 0)
                continue;
            w->touch[w->touch_count++] = (struct touch){a->offset, a->offset + a->bytes, i,
                                                        a->write && produces(task->kind)};
            w->cut[w->cut_count++] = a->offset;
            w->cut[w->cut_count++] = a->offset + a->bytes;
        }
    }
    if (w->cut_count == 0)
        return;
    qsort(w->cut, w->cut_count, sizeof *w->cut, compare_u64);
    size_t kept = 0;
    for (size_t i = 1; i < w->cut_count; i++)
        if (w->cut[i] != w->cut[kept])
            w->cut[++kept] = w->cut[i];
    w->cut_count = kept + 1;
}

int ps_schedule_live_ranges(const struct ps_schedule *s, struct ps_live_range **out,
                            uint32_t *count)
{
    size_t accesses = s->access_count ? s->access_count : 1;
    struct work w = {.touch = malloc(accesses * sizeof *w.touch),
                     .cut = malloc(2 * accesses * sizeof *w.cut)};
    int ret = w.touch && w.cut ? 0 : -ENOMEM;
    for (uint32_t b = 0; ret == 0 && b < s->buffer_count; b++) {
        collect(&w, s, b);
        for (size_t i = 0; ret == 0 && i + 1 < w.cut_count; i++)
            ret = add_piece(&w, w.cut[i], w.cut[i + 1], s->buffer[b].tier);
        merge(&w);
    }
    free(w.touch);
    free(w.cut);
    if (ret) {
        free(w.range);
        return ret;
    }
    *out = w.range; /* NULL when nothing is touched */
    *count = w.range_count;
    return 0;
}
