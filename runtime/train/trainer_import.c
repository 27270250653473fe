/* Imported schedules: the same work in another order, or with other dependencies. See trainer.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/trainer_internal.h"

/* What a task does, whenever it is done. */
static int compare_work(const struct ps_task *a, const struct ps_task *b)
{
    int64_t x[] = {a->kind, a->lane, a->unit, a->micro, (int64_t)a->flags};
    int64_t y[] = {b->kind, b->lane, b->unit, b->micro, (int64_t)b->flags};
    for (int i = 0; i < 5; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    for (int i = 0; i < PS_ARG_COUNT; i++)
        if (a->arg[i] != b->arg[i])
            return a->arg[i] < b->arg[i] ? -1 : 1;
    return 0;
}

static int by_work(const void *a, const void *b)
{
    return compare_work(*(const struct ps_task *const *)a, *(const struct ps_task *const *)b);
}

static const struct ps_task **sorted(const struct ps_schedule *s)
{
    const struct ps_task **list = malloc(((size_t)s->task_count + 1) * sizeof *list);
    for (uint32_t i = 0; list && i < s->task_count; i++)
        list[i] = &s->task[i];
    if (list)
        qsort(list, s->task_count, sizeof *list, by_work);
    return list;
}

static bool same_buffers(const struct ps_schedule *a, const struct ps_schedule *b)
{
    bool same = a->buffer_count == b->buffer_count;
    for (uint32_t i = 0; same && i < a->buffer_count; i++)
        same = a->buffer[i].bytes == b->buffer[i].bytes && a->buffer[i].tier == b->buffer[i].tier;
    return same;
}

/* Ranges as the args imply them, in place of what the file says: a file cannot understate them. */
static int declare_anew(struct ps_trainer *t, enum ps_segment segment, struct ps_schedule *s)
{
    s->access_count = 0;
    uint32_t count = s->task_count;
    for (uint32_t i = 0; i < count; i++) {
        s->task[i].access_begin = s->access_count;
        s->task[i].access_count = 0;
        s->task_count = i + 1; /* ranges go to the last task */
        ps_step_declare(s, &s->task[i], segment, &t->shape, &t->layout, &t->map);
    }
    s->task_count = count;
    return s->fault;
}

static int check_work(const struct ps_schedule *mine, const struct ps_schedule *s, const char *path,
                      struct ps_error *err)
{
    if (!same_buffers(mine, s))
        return ps_error_full(err, PS_EUSAGE, path, "buffers",
                             "export it again with the same model, data, budgets and strategy",
                             "the %s segment of the schedule was made for another layout",
                             mine->name);
    const struct ps_task **a = sorted(mine);
    const struct ps_task **b = sorted(s);
    int ret = a && b ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    if (ret == 0 && mine->task_count != s->task_count)
        ret = ps_error_full(err, PS_EUSAGE, path, "tasks",
                            "reorder tasks and change dependencies only",
                            "the %s segment has %u tasks where this run has %u", mine->name,
                            s->task_count, mine->task_count);
    for (uint32_t i = 0; ret == 0 && i < mine->task_count; i++)
        if (compare_work(a[i], b[i]) != 0)
            ret = ps_error_full(
                err, PS_EUSAGE, path, "tasks", "reorder tasks and change dependencies only",
                "task %u of the %s segment (%s, unit %d, micro-batch %d) is not "
                "part of this run",
                b[i]->id, mine->name, ps_task_kind_name(b[i]->kind), b[i]->unit, b[i]->micro);
    free(a);
    free(b);
    return ret;
}

/* Gradients and losses are added in ascending micro-batch order: that order is part of the numbers,
 * and two tasks that add to the same sums may not be exchanged. */
static int check_order(const struct ps_trainer *t, const struct ps_schedule *s, const char *path,
                       struct ps_error *err)
{
    int32_t units = t->shape.n_layer + 2;
    int32_t *last = malloc((size_t)units * PS_TASK_KIND_COUNT * sizeof *last);
    if (!last)
        return ps_error_set(err, -ENOMEM, "out of memory");
    for (int32_t i = 0; i < units * PS_TASK_KIND_COUNT; i++)
        last[i] = -1;
    int ret = 0;
    for (uint32_t i = 0; ret == 0 && i < s->task_count; i++) {
        const struct ps_task *x = &s->task[i];
        bool sums = x->kind == PS_TASK_HEAD || x->kind == PS_TASK_LAYER_BACKWARD ||
                    x->kind == PS_TASK_EMBED_BACKWARD;
        int32_t *before =
            &last[ps_step_unit_idx(&t->shape, x->unit) * PS_TASK_KIND_COUNT + (int32_t)x->kind];
        if (sums && x->micro < *before)
            ret = ps_error_full(err, PS_EUSAGE, path, "tasks", "keep that order",
                                "the %s tasks of unit %d must run in ascending micro-batch order: "
                                "their sums depend on it",
                                ps_task_kind_name(x->kind), x->unit);
        if (sums)
            *before = x->micro;
    }
    free(last);
    return ret;
}

static const struct ps_schedule *prologue_of(const struct ps_trainer *t, enum ps_segment segment)
{
    if (segment == PS_SEGMENT_TRAIN)
        return &t->segment[PS_SEGMENT_PROLOGUE_TRAIN];
    return segment == PS_SEGMENT_EVAL ? &t->segment[PS_SEGMENT_PROLOGUE_EVAL] : NULL;
}

int ps_trainer_import_schedule(struct ps_trainer *t, enum ps_segment segment, struct ps_schedule *s,
                               const char *path, struct ps_error *err)
{
    struct ps_schedule *mine = &t->segment[segment];
    int ret = check_work(mine, s, path, err);
    if (ret == 0)
        ret = check_order(t, s, path, err);
    if (ret == 0)
        ret = declare_anew(t, segment, s);
    if (ret == 0)
        ret = ps_schedule_validate(s, err);
    if (ret == 0)
        ret =
            ps_step_check(s, prologue_of(t, segment), segment, &t->shape, &t->layout, &t->map, err);
    if (ret < 0) {
        ps_schedule_fini(s);
        return ps_error_file(err, ret, path);
    }
    for (uint32_t i = 0; i < s->buffer_count; i++) /* names are ours */
        memcpy(s->buffer[i].name, mine->buffer[i].name, sizeof mine->buffer[i].name);
    ps_schedule_fini(mine);
    *mine = *s;
    memset(s, 0, sizeof *s);
    return 0;
}
