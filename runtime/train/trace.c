/* The Chrome trace: see trace.h. Format: "Trace Event Format" (JSON array form); times are
 * microseconds, written from integers so that no locale meets them.
 *
 * An arrow must begin and end inside the events that it connects: it begins one nanosecond before
 * the end of its task, and no event is shorter than that. */
#include "runtime/train/trace.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"

#define BUFFER_BYTES 65536
#define EVENT_BYTES_MAX 1024
#define SEGMENT_TRACK 0 /* thread id of the segments; lane l is l + 1 */

struct change {
    uint64_t ns;
    enum ps_tier tier;
    int64_t bytes;
};

struct span {
    uint64_t begin, end; /* ns as drawn; end 0: not drawn */
};

/* What is kept of a schedule between its periods. */
struct known {
    const struct ps_schedule *s;
    struct ps_live_range *range;
    uint32_t range_count;
    struct change *change; /* (2 * range_count) scratch */
    struct span *span;     /* (task_count) of the period at hand */
    uint64_t *before[2];   /* (task_count) by process: end in the period before, 0: not drawn */
    uint64_t last_end;     /* of the last actual period, as recorded */
};

/* What is kept of a process (0 actual, 1 predicted). */
struct process {
    bool named;
    uint32_t tracks;                  /* bit: thread id named */
    uint64_t lane_end[PS_LANE_COUNT]; /* ns as drawn */
    uint64_t segment_end;
};

struct ps_trace {
    char *path;
    char temp[PS_FILE_TEMP_MAX];
    int fd;
    int failed;
    struct ps_error error;
    char buffer[BUFFER_BYTES];
    size_t len;
    bool any; /* an event was written */
    uint64_t arrow_count;
    struct process process[2];
    bool has_base;
    uint64_t base;         /* recorded time that is time 0 */
    uint64_t actual_begin; /* of the last actual period, as drawn */
    bool actual_is_new;    /* since the last predicted period */
    struct known known[PS_TRACE_SCHEDULE_MAX];
    int known_count;
};

const char *ps_task_label(const struct ps_task *task, char *buf, size_t size)
{
    const char *kind = ps_task_kind_name(task->kind);
    const char *unit = task->unit == PS_UNIT_EMBED  ? "embed"
                       : task->unit == PS_UNIT_HEAD ? "head"
                                                    : "all";
    char number[16];
    if (task->unit >= 0) {
        PS_IGNORE(snprintf(number, sizeof number, "%" PRId32, task->unit) < 0, "fits");
        unit = number;
    }
    bool same = !strncmp(kind, unit, strlen(unit)) || task->unit == PS_UNIT_ALL;
    char micro[16] = "";
    if (task->micro >= 0)
        PS_IGNORE(snprintf(micro, sizeof micro, "%s%" PRId32, task->unit >= 0 ? "." : " #",
                           task->micro) < 0,
                  "fits");
    PS_IGNORE(snprintf(buf, size, "%s%s%s%s", kind, same ? "" : " ", same ? "" : unit, micro) < 0,
              "truncation is fine");
    return buf;
}

static int flush(struct ps_trace *t)
{
    if (!t->failed && t->len)
        t->failed = ps_file_write_all(t->fd, t->buffer, t->len, t->path, &t->error);
    t->len = 0;
    return t->failed;
}

static void PS_PRINTF(2, 3) put(struct ps_trace *t, const char *fmt, ...)
{
    if (t->failed || (t->len + EVENT_BYTES_MAX > sizeof t->buffer && flush(t)))
        return;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(t->buffer + t->len, sizeof t->buffer - t->len, fmt, ap);
    va_end(ap);
    assert(n >= 0);
    assert((size_t)n < sizeof t->buffer - t->len);
    t->len += (size_t)n;
}

/* Begin an event. Names are our own words and need no escapes. */
static void put_head(struct ps_trace *t, const char *phase, const char *name, int process,
                     uint64_t ns)
{
    put(t, "%s{\"ph\":\"%s\",\"name\":\"%s\",\"pid\":%d,\"ts\":%" PRIu64 ".%03" PRIu64,
        t->any ? ",\n" : "[\n", phase, name, process + 1, ns / 1000, ns % 1000);
    t->any = true;
}

static void put_us(struct ps_trace *t, const char *key, uint64_t ns)
{
    put(t, ",\"%s\":%" PRIu64 ".%03" PRIu64, key, ns / 1000, ns % 1000);
}

static void name_track(struct ps_trace *t, int process, int track)
{
    struct process *p = &t->process[process];
    if (!p->named) {
        put_head(t, "M", "process_name", process, 0);
        put(t, ",\"tid\":0,\"args\":{\"name\":\"%s\"}}", process ? "predicted" : "actual");
    }
    p->named = true;
    if (p->tracks >> track & 1u)
        return;
    p->tracks |= 1u << track;
    put_head(t, "M", "thread_name", process, 0);
    put(t, ",\"tid\":%d,\"args\":{\"name\":\"%s\"}}", track,
        track == SEGMENT_TRACK ? "segments" : ps_lane_name((enum ps_lane)(track - 1)));
    put_head(t, "M", "thread_sort_index", process, 0);
    put(t, ",\"tid\":%d,\"args\":{\"sort_index\":%d}}", track, track);
}

int ps_trace_open(struct ps_trace **out, const char *path, struct ps_error *err)
{
    struct ps_trace *t = calloc(1, sizeof *t);
    char *copy = strdup(path);
    if (!t || !copy) {
        free(t);
        free(copy);
        return ps_error_set(err, -ENOMEM, "no memory for the trace");
    }
    t->path = copy;
    int ret = ps_file_temp_open(path, t->temp, &t->fd, err);
    if (ret) {
        free(copy);
        free(t);
        return ret;
    }
    *out = t;
    return 0;
}

static void known_fini(struct known *k)
{
    free(k->range);
    free(k->change);
    free(k->span);
    free(k->before[0]);
    free(k->before[1]);
}

static int known_init(struct known *k, const struct ps_schedule *s)
{
    size_t n = s->task_count ? s->task_count : 1;
    *k = (struct known){.s = s};
    int ret = ps_schedule_live_ranges(s, &k->range, &k->range_count);
    k->change = ret ? NULL : calloc(2 * (size_t)k->range_count + 1, sizeof *k->change);
    k->span = calloc(n, sizeof *k->span);
    k->before[0] = calloc(n, sizeof *k->before[0]);
    k->before[1] = calloc(n, sizeof *k->before[1]);
    if (k->change && k->span && k->before[0] && k->before[1])
        return 0;
    known_fini(k);
    return -ENOMEM;
}

static int find_known(struct ps_trace *t, const struct ps_schedule *s, struct known **out)
{
    for (int i = 0; i < t->known_count; i++)
        if (t->known[i].s == s) {
            *out = &t->known[i];
            return 0;
        }
    assert(t->known_count < PS_TRACE_SCHEDULE_MAX);
    *out = &t->known[t->known_count];
    int ret = known_init(*out, s);
    t->known_count += ret == 0;
    return ret;
}

static bool was_run(const struct ps_task_record *r)
{
    return r->end_ns > 0 && r->end_ns >= r->start_ns;
}

/* Recorded times of the period: first start, last end; false when nothing was run. */
static bool extent(const struct ps_schedule *s, const struct ps_task_record *record,
                   struct span *out)
{
    *out = (struct span){UINT64_MAX, 0};
    for (uint32_t i = 0; i < s->task_count; i++) {
        if (!was_run(&record[i]))
            continue;
        if (record[i].start_ns < out->begin)
            out->begin = record[i].start_ns;
        if (record[i].end_ns > out->end)
            out->end = record[i].end_ns;
    }
    return out->begin != UINT64_MAX;
}

/* Recorded -> drawn times: move by the difference, never below 0. */
static uint64_t moved(uint64_t ns, uint64_t from, uint64_t to)
{
    return ns >= from ? to + (ns - from) : to > from - ns ? to - (from - ns) : 0;
}

/* Where the tasks of the period are drawn; *period is from the first to the last that does not
 * trail. */
static void place(struct known *k, struct process *p, const struct ps_task_record *record,
                  uint64_t from, uint64_t to, struct span *period)
{
    *period = (struct span){UINT64_MAX, 0};
    for (uint32_t i = 0; i < k->s->task_count; i++) {
        const struct ps_task *task = &k->s->task[i];
        k->span[i] = (struct span){0, 0};
        if (!was_run(&record[i]))
            continue;
        uint64_t begin = moved(record[i].start_ns, from, to);
        uint64_t end = moved(record[i].end_ns, from, to);
        uint64_t *lane_end = &p->lane_end[task->lane];
        begin = begin > *lane_end ? begin : *lane_end;
        end = end > begin ? end : begin + 1;
        *lane_end = end;
        k->span[i] = (struct span){begin, end};
        if (begin < period->begin)
            period->begin = begin;
        if (!(task->flags & PS_TASK_TRAILS) && end > period->end)
            period->end = end;
    }
    if (period->end <= period->begin)
        period->end = period->begin + 1;
}

static void put_task(struct ps_trace *t, const struct known *k, const struct ps_task *task,
                     const struct ps_task_record *r, uint64_t step, int process)
{
    char name[80];
    const struct span *at = &k->span[task->id];
    int track = (int)task->lane + 1;
    name_track(t, process, track);
    put_head(t, "X", ps_task_label(task, name, sizeof name), process, at->begin);
    put_us(t, "dur", at->end - at->begin);
    put(t, ",\"tid\":%d,\"cat\":\"%s\",\"args\":{\"kind\":\"%s\",\"unit\":%" PRId32, track,
        ps_lane_name(task->lane), ps_task_kind_name(task->kind), task->unit);
    if (task->micro >= 0)
        put(t, ",\"micro\":%" PRId32, task->micro);
    put(t, ",\"task\":%" PRIu32 ",\"step\":%" PRIu64, task->id, step);
    if (task->bytes)
        put(t, ",\"bytes\":%" PRIu64, task->bytes);
    if (task->flops > 0)
        put(t, ",\"flops\":%.0f", task->flops);
    if (r->start_ns > r->ready_ns && r->ready_ns > 0)
        put_us(t, "wait_us", r->start_ns - r->ready_ns);
    if (r->waited_on >= 0 && (uint32_t)r->waited_on < k->s->task_count) {
        const struct ps_task *other = &k->s->task[r->waited_on];
        put(t, ",\"waited_for\":\"%s\",\"waited_lane\":\"%s\"",
            ps_task_label(other, name, sizeof name), ps_lane_name(other->lane));
    }
    if (r->throttle_ns)
        put_us(t, "throttle_us", r->throttle_ns);
    uint64_t drawn = at->end - at->begin;
    if (ps_lane_is_async(task->lane) && r->end_ns - r->start_ns > drawn)
        put_us(t, "queued_us", r->end_ns - r->start_ns - drawn);
    put(t, "}}");
}

/* From the end of task `from`, drawn at end_ns, to the beginning of task `to`. */
static void put_arrow(struct ps_trace *t, const struct known *k, uint32_t from, uint64_t end_ns,
                      uint32_t to, int process)
{
    const struct ps_task *task = k->s->task;
    uint64_t id = ++t->arrow_count;
    put_head(t, "s", "needs", process, end_ns - 1);
    put(t, ",\"tid\":%d,\"cat\":\"dependency\",\"id\":%" PRIu64 "}", (int)task[from].lane + 1, id);
    put_head(t, "f", "needs", process, k->span[to].begin);
    put(t, ",\"tid\":%d,\"cat\":\"dependency\",\"bp\":\"e\",\"id\":%" PRIu64 "}",
        (int)task[to].lane + 1, id);
}

static void put_arrows(struct ps_trace *t, struct known *k, int process)
{
    const struct ps_schedule *s = k->s;
    for (uint32_t i = 0; i < s->task_count; i++) {
        if (!k->span[i].end)
            continue;
        for (uint32_t d = 0; d < s->task[i].dep_count; d++) {
            const struct ps_dep *dep = &s->dep[s->task[i].dep_begin + d];
            uint64_t end = dep->distance ? k->before[process][dep->task] : k->span[dep->task].end;
            if (s->task[dep->task].lane != s->task[i].lane && end)
                put_arrow(t, k, dep->task, end, i, process);
        }
    }
    for (uint32_t i = 0; i < s->task_count; i++)
        k->before[process][i] = k->span[i].end;
}

static int compare_change(const void *a, const void *b)
{
    const struct change *x = a;
    const struct change *y = b;
    if (x->tier != y->tier)
        return x->tier < y->tier ? -1 : 1;
    return (x->ns > y->ns) - (x->ns < y->ns);
}

static void put_level(struct ps_trace *t, enum ps_tier tier, uint64_t ns, int64_t bytes,
                      int process)
{
    char name[32];
    PS_IGNORE(snprintf(name, sizeof name, "bytes %s", ps_tier_name(tier)) < 0, "fits");
    put_head(t, "C", name, process, ns);
    put(t, ",\"args\":{\"bytes\":%" PRId64 "}}", bytes);
}

/* What lies outside the period (work that trails) counts at its end. */
static uint64_t clipped(uint64_t ns, const struct span *period)
{
    return ns < period->begin ? period->begin : ns > period->end ? period->end : ns;
}

/* Begin or end of a task as drawn; `edge` where there is none, `late` where it was not drawn: it
 * trails. */
static uint64_t when(const struct known *k, uint32_t task, uint64_t edge, uint64_t late, bool begin)
{
    if (task == UINT32_MAX)
        return edge;
    const struct span *at = &k->span[task];
    return !at->end ? late : begin ? at->begin : at->end;
}

static void put_levels(struct ps_trace *t, struct known *k, const struct span *period, int process)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < k->range_count; i++) {
        const struct ps_live_range *r = &k->range[i];
        uint64_t from = when(k, r->from, period->begin, period->end, true);
        uint64_t to = when(k, r->to, period->end, period->end, false);
        from = clipped(from, period);
        to = clipped(to, period);
        k->change[n++] = (struct change){from, r->tier, (int64_t)r->bytes};
        if (r->to != UINT32_MAX)
            k->change[n++] = (struct change){to > from ? to : from, r->tier, -(int64_t)r->bytes};
    }
    qsort(k->change, n, sizeof *k->change, compare_change);
    int64_t level = 0;
    for (uint32_t i = 0; i < n; i++) {
        level += k->change[i].bytes;
        bool last = i + 1 == n || k->change[i + 1].tier != k->change[i].tier;
        if (last || k->change[i + 1].ns != k->change[i].ns)
            put_level(t, k->change[i].tier, k->change[i].ns, level, process);
        level = last ? 0 : level;
    }
}

static void put_segment(struct ps_trace *t, const struct ps_schedule *s, const struct span *period,
                        uint64_t step, int process)
{
    struct process *p = &t->process[process];
    uint64_t begin = period->begin > p->segment_end ? period->begin : p->segment_end;
    uint64_t end = period->end > begin ? period->end : begin + 1;
    p->segment_end = end;
    name_track(t, process, SEGMENT_TRACK);
    put_head(t, "X", s->name, process, begin);
    put_us(t, "dur", end - begin);
    put(t, ",\"tid\":%d,\"args\":{\"step\":%" PRIu64 "}}", SEGMENT_TRACK, step);
}

static void put_period(struct ps_trace *t, struct known *k, const struct ps_task_record *record,
                       const struct span *recorded, uint64_t step, int process)
{
    struct process *p = &t->process[process];
    uint64_t to;
    if (process == 0 && !t->has_base) {
        t->has_base = true;
        t->base = recorded->begin;
    }
    if (process == 0)
        to = moved(recorded->begin, t->base, 0);
    else
        to = t->actual_is_new ? t->actual_begin : p->segment_end;
    struct span period;
    place(k, p, record, recorded->begin, to, &period);
    if (process == 0)
        t->actual_begin = period.begin;
    t->actual_is_new = process == 0;
    put_segment(t, k->s, &period, step, process);
    for (uint32_t i = 0; i < k->s->task_count; i++)
        if (k->span[i].end)
            put_task(t, k, &k->s->task[i], &record[i], step, process);
    put_arrows(t, k, process);
    put_levels(t, k, &period, process);
}

int ps_trace_period(struct ps_trace *t, const struct ps_schedule *s,
                    const struct ps_task_record *record, uint64_t step, bool predicted,
                    struct ps_error *err)
{
    struct known *k = NULL;
    struct span recorded;
    if (!t->failed && record && extent(s, record, &recorded)) {
        int ret = find_known(t, s, &k);
        if (ret)
            t->failed = ps_error_set(&t->error, ret, "no memory for the trace");
        else if (predicted || recorded.end != k->last_end)
            put_period(t, k, record, &recorded, step, predicted);
        if (k && !predicted)
            k->last_end = recorded.end;
    }
    if (t->failed && err)
        *err = t->error;
    return t->failed;
}

int ps_trace_announce(struct ps_trace *t, const struct ps_schedule *s, struct ps_error *err)
{
    struct known *k = NULL;
    int ret = t->failed ? 0 : find_known(t, s, &k);
    return ret ? ps_error_set(err, ret, "no memory for the trace") : 0;
}

void ps_trace_discard(struct ps_trace *t)
{
    if (!t)
        return;
    if (t->fd >= 0)
        ps_file_temp_discard(t->fd, t->temp);
    for (int i = 0; i < t->known_count; i++)
        known_fini(&t->known[i]);
    free(t->path);
    free(t);
}

int ps_trace_close(struct ps_trace *t, struct ps_error *err)
{
    if (!t)
        return 0;
    put(t, "%s]\n", t->any ? "\n" : "[");
    int ret = flush(t);
    if (ret && err)
        *err = t->error;
    if (ret == 0) {
        ret = ps_file_temp_commit(t->fd, t->temp, t->path, err);
        t->fd = -1;
    }
    ps_trace_discard(t);
    return ret;
}
