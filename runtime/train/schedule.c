/* The static schedule, its checks and its executor: see schedule.h. */
#include "runtime/train/schedule.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *ps_task_kind_name(enum ps_task_kind k)
{
    static const char *const name[PS_TASK_KIND_COUNT] = {
        "embed",          "layer_forward", "head", "layer_recompute", "layer_backward",
        "embed_backward", "grad_norm",     "clip", "update"};
    assert(k < PS_TASK_KIND_COUNT);
    return name[k];
}

const char *ps_lane_name(enum ps_lane l)
{
    static const char *const name[PS_LANE_COUNT] = {
        "compute", "h2d", "d2h", "disk_weights", "disk_state", "disk_write", "commit", "cpu_optim"};
    assert(l < PS_LANE_COUNT);
    return name[l];
}

void ps_schedule_init(struct ps_schedule *s, const char *name)
{
    memset(s, 0, sizeof *s);
    s->name = name;
}

void ps_schedule_fini(struct ps_schedule *s)
{
    free(s->task);
    free(s->dep);
    free(s->access);
    free(s->buffer);
    memset(s, 0, sizeof *s);
}

/* Room for one more element; false (and a fault) when there is none. */
static bool grow(struct ps_schedule *s, void **array, uint32_t count, uint32_t *capacity,
                 size_t size)
{
    if (count < *capacity)
        return true;
    uint32_t next = *capacity ? 2 * *capacity : 64;
    void *grown = realloc(*array, (size_t)next * size);
    if (!grown) {
        s->fault = -ENOMEM;
        return false;
    }
    *array = grown;
    *capacity = next;
    return true;
}

uint32_t ps_schedule_buffer(struct ps_schedule *s, uint64_t bytes, const char *fmt, ...)
{
    if (!grow(s, (void **)&s->buffer, s->buffer_count, &s->buffer_capacity, sizeof *s->buffer))
        return 0;
    struct ps_buffer *b = &s->buffer[s->buffer_count];
    b->bytes = bytes;
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(b->name, sizeof b->name, fmt, ap) < 0, "a label");
    va_end(ap);
    return s->buffer_count++;
}

uint32_t ps_schedule_task(struct ps_schedule *s, enum ps_task_kind kind, enum ps_lane lane,
                          int32_t unit, double flops)
{
    if (!grow(s, (void **)&s->task, s->task_count, &s->task_capacity, sizeof *s->task))
        return 0;
    s->task[s->task_count] = (struct ps_task){.id = s->task_count,
                                              .kind = kind,
                                              .lane = lane,
                                              .unit = unit,
                                              .dep_begin = s->dep_count,
                                              .access_begin = s->access_count,
                                              .flops = flops};
    return s->task_count++;
}

void ps_schedule_dep(struct ps_schedule *s, uint32_t on_task)
{
    if (s->fault || !grow(s, (void **)&s->dep, s->dep_count, &s->dep_capacity, sizeof *s->dep))
        return;
    assert(s->task_count > 0);
    s->dep[s->dep_count++] = on_task;
    s->task[s->task_count - 1].dep_count++;
}

void ps_schedule_access(struct ps_schedule *s, uint32_t buffer, bool write, uint64_t offset,
                        uint64_t bytes)
{
    if (bytes == 0 || s->fault ||
        !grow(s, (void **)&s->access, s->access_count, &s->access_capacity, sizeof *s->access))
        return;
    assert(s->task_count > 0);
    s->access[s->access_count++] =
        (struct ps_access){.buffer = buffer, .write = write, .offset = offset, .bytes = bytes};
    s->task[s->task_count - 1].access_count++;
}

static bool conflict(const struct ps_schedule *s, const struct ps_task *a, const struct ps_task *b)
{
    for (uint32_t i = 0; i < a->access_count; i++) {
        const struct ps_access *x = &s->access[a->access_begin + i];
        for (uint32_t j = 0; j < b->access_count; j++) {
            const struct ps_access *y = &s->access[b->access_begin + j];
            if (x->buffer == y->buffer && (x->write || y->write) &&
                x->offset < y->offset + y->bytes && y->offset < x->offset + x->bytes)
                return true;
        }
    }
    return false;
}

static int check_task(const struct ps_schedule *s, const struct ps_task *t, struct ps_error *err)
{
    for (uint32_t i = 0; i < t->dep_count; i++)
        if (s->dep[t->dep_begin + i] >= t->id)
            return ps_error_set(err, PS_EUSAGE, "schedule %s: task %u depends on the later task %u",
                                s->name, t->id, s->dep[t->dep_begin + i]);
    for (uint32_t i = 0; i < t->access_count; i++) {
        const struct ps_access *x = &s->access[t->access_begin + i];
        if (x->buffer >= s->buffer_count || x->offset > s->buffer[x->buffer].bytes ||
            x->bytes > s->buffer[x->buffer].bytes - x->offset)
            return ps_error_set(err, PS_EUSAGE, "schedule %s: task %u leaves its buffer", s->name,
                                t->id);
    }
    return 0;
}

/* before[i] bit j: task j runs before task i. */
static void close_order(const struct ps_schedule *s, uint64_t *before, size_t words)
{
    int64_t last[PS_LANE_COUNT];
    for (int l = 0; l < PS_LANE_COUNT; l++)
        last[l] = -1;
    for (uint32_t i = 0; i < s->task_count; i++) {
        const struct ps_task *t = &s->task[i];
        uint64_t *row = before + (size_t)i * words;
        for (uint32_t d = 0; d <= t->dep_count; d++) {
            int64_t on = d < t->dep_count ? (int64_t)s->dep[t->dep_begin + d] : last[t->lane];
            if (on < 0)
                continue;
            row[on / 64] |= (uint64_t)1 << (on % 64);
            for (size_t w = 0; w < words; w++)
                row[w] |= before[(size_t)on * words + w];
        }
        last[t->lane] = i;
    }
}

int ps_schedule_validate(const struct ps_schedule *s, struct ps_error *err)
{
    if (s->fault)
        return ps_error_set(err, s->fault, "out of memory while building the schedule %s", s->name);
    size_t words = (s->task_count + 63) / 64;
    uint64_t *before = calloc((size_t)s->task_count * words + 1, sizeof *before);
    if (!before)
        return ps_error_set(err, -ENOMEM, "out of memory while checking the schedule %s", s->name);
    int ret = 0;
    for (uint32_t i = 0; i < s->task_count && !ret; i++)
        ret = check_task(s, &s->task[i], err);
    if (!ret)
        close_order(s, before, words);
    for (uint32_t i = 0; i < s->task_count && !ret; i++)
        for (uint32_t j = 0; j < i && !ret; j++)
            if (!(before[(size_t)i * words + j / 64] >> (j % 64) & 1) &&
                conflict(s, &s->task[i], &s->task[j]))
                ret =
                    ps_error_set(err, PS_EUSAGE,
                                 "schedule %s: tasks %u (%s) and %u (%s) touch the same bytes and "
                                 "are not ordered",
                                 s->name, j, ps_task_kind_name(s->task[j].kind), i,
                                 ps_task_kind_name(s->task[i].kind));
    free(before);
    return ret;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int ps_executor_run(const struct ps_schedule *s, const ps_task_fn fn[PS_TASK_KIND_COUNT], void *ctx,
                    uint64_t busy_ns[PS_TASK_KIND_COUNT])
{
    /* Dependencies point to earlier tasks (validated), so the order of ids is a legal one. */
    for (uint32_t i = 0; i < s->task_count; i++) {
        const struct ps_task *t = &s->task[i];
        assert(fn[t->kind]);
        uint64_t start = now_ns();
        int ret = fn[t->kind](ctx, t);
        if (ret < 0)
            return ret;
        if (busy_ns)
            busy_ns[t->kind] += now_ns() - start;
    }
    return 0;
}
