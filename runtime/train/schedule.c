/* Schedules: building and deriving dependencies. See schedule.h; the independent check is in
 * schedule_validate.c.
 *
 * Derive keeps, for each task, a vector clock: how many tasks of each lane are known to have ended
 * when it starts (and when it ends). A candidate that the clock covers needs no dependency. */
#include "runtime/train/schedule.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const lane_name[PS_LANE_COUNT] = {
    "compute", "h2d", "d2h", "disk_weights", "disk_state", "disk_write", "commit", "cpu_optim"};
static const char *const kind_name[PS_TASK_KIND_COUNT] = {
    "embed",          "forward",      "head",        "recompute",     "backward",
    "embed_backward", "grad_norm",    "clip",        "update",        "copy_batch",
    "read_weights",   "copy_weights", "spill_out",   "spill_write",   "spill_read",
    "spill_in",       "grad_out",     "grad_in",     "grad_write",    "grad_read",
    "read_state",     "update_host",  "write_state", "write_weights", "commit",
    "perturb",        "copy_perturbed"};
static const char *const tier_name[PS_TIER_COUNT] = {"device", "host", "disk"};
static const char *const arg_name[PS_ARG_COUNT] = {"slot",  "raw",       "block", "x_in",
                                                   "x_out", "saved",     "dx",    "host_x",
                                                   "grad",  "grad_host", "state", "granule",
                                                   "level", "host_saved", "image"};

const char *ps_lane_name(enum ps_lane l)
{
    assert(l < PS_LANE_COUNT);
    return lane_name[l];
}

const char *ps_task_kind_name(enum ps_task_kind k)
{
    assert(k < PS_TASK_KIND_COUNT);
    return kind_name[k];
}

const char *ps_tier_name(enum ps_tier t)
{
    assert(t < PS_TIER_COUNT);
    return tier_name[t];
}

const char *ps_task_arg_name(enum ps_task_arg a)
{
    assert(a < PS_ARG_COUNT);
    return arg_name[a];
}

static int find_name(const char *const *table, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(table[i], name) == 0)
            return i;
    return -1;
}

int ps_lane_find(const char *name)
{
    return find_name(lane_name, PS_LANE_COUNT, name);
}

int ps_task_kind_find(const char *name)
{
    return find_name(kind_name, PS_TASK_KIND_COUNT, name);
}

bool ps_lane_is_async(enum ps_lane l)
{
    return l == PS_LANE_DISK_WEIGHTS || l == PS_LANE_DISK_STATE || l == PS_LANE_DISK_WRITE;
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

/* Room for one more element; false remembers the fault. */
static bool grow(struct ps_schedule *s, void **array, uint32_t count, uint32_t *capacity,
                 size_t element)
{
    if (s->fault)
        return false;
    if (count < *capacity)
        return true;
    uint32_t wanted = *capacity ? 2 * *capacity : 64;
    void *grown = wanted > *capacity ? realloc(*array, wanted * element) : NULL;
    if (!grown) {
        s->fault = -ENOMEM;
        return false;
    }
    *array = grown;
    *capacity = wanted;
    return true;
}

uint32_t ps_schedule_buffer(struct ps_schedule *s, enum ps_tier tier, uint64_t bytes,
                            const char *fmt, ...)
{
    if (!grow(s, (void **)&s->buffer, s->buffer_count, &s->buffer_capacity, sizeof *s->buffer))
        return 0;
    struct ps_buffer *b = &s->buffer[s->buffer_count];
    memset(b, 0, sizeof *b);
    b->tier = tier;
    b->bytes = bytes;
    va_list args;
    va_start(args, fmt);
    PS_IGNORE(vsnprintf(b->name, sizeof b->name, fmt, args) < 0, "a cut name is still a name");
    va_end(args);
    return s->buffer_count++;
}

uint32_t ps_schedule_task(struct ps_schedule *s, enum ps_task_kind kind, enum ps_lane lane,
                          int32_t unit)
{
    if (!grow(s, (void **)&s->task, s->task_count, &s->task_capacity, sizeof *s->task))
        return 0;
    struct ps_task *t = &s->task[s->task_count];
    *t = (struct ps_task){.id = s->task_count,
                          .kind = kind,
                          .lane = lane,
                          .unit = unit,
                          .micro = -1,
                          .dep_begin = s->dep_count,
                          .access_begin = s->access_count};
    for (int a = 0; a < PS_ARG_COUNT; a++)
        t->arg[a] = -1;
    return s->task_count++;
}

void ps_schedule_access(struct ps_schedule *s, uint32_t buffer, bool write, uint64_t offset,
                        uint64_t bytes)
{
    if (bytes == 0 || s->task_count == 0 ||
        !grow(s, (void **)&s->access, s->access_count, &s->access_capacity, sizeof *s->access))
        return;
    s->access[s->access_count++] =
        (struct ps_access){.buffer = buffer, .write = write, .offset = offset, .bytes = bytes};
    s->task[s->task_count - 1].access_count++;
}

void ps_schedule_dep(struct ps_schedule *s, uint32_t on_task, uint32_t distance)
{
    if (s->task_count == 0 ||
        !grow(s, (void **)&s->dep, s->dep_count, &s->dep_capacity, sizeof *s->dep))
        return;
    s->dep[s->dep_count++] = (struct ps_dep){.task = on_task, .distance = distance};
    s->task[s->task_count - 1].dep_count++;
}

uint64_t ps_schedule_kind_bytes(const struct ps_schedule *s, enum ps_task_kind kind)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < s->task_count; i++)
        sum += s->task[i].kind == kind ? s->task[i].bytes : 0;
    return sum;
}

uint64_t ps_schedule_tier_bytes(const struct ps_schedule *s, enum ps_tier tier)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < s->buffer_count; i++)
        if (s->buffer[i].tier == tier)
            sum += (s->buffer[i].bytes + 4095) & ~(uint64_t)4095;
    return sum;
}

/* --- derive --- */

struct clock {
    uint32_t ended[PS_LANE_COUNT]; /* tasks of each lane that have ended, both periods counted */
};

/* One elementary range of a buffer: who wrote it last, who has read it since (latest of each lane).
 * Values are unrolled task numbers + 1; 0: nobody. */
struct range {
    uint32_t writer;
    uint32_t reader[PS_LANE_COUNT];
};

struct derive {
    struct ps_schedule *s;
    uint32_t n;    /* tasks of one period */
    uint32_t *pos; /* (n,) position of a task on its lane */
    uint32_t lane_tasks[PS_LANE_COUNT];
    struct clock *start, *end; /* (2 n,) */
    uint64_t *bound;           /* all boundaries, buffer by buffer, ascending */
    size_t *first, *last;      /* (buffers + 2,) boundaries [first, last) of each buffer */
    struct range *range;       /* one per boundary */
    uint32_t *candidate;
    uint32_t candidate_count, candidate_capacity;
    struct ps_dep *dep;
    uint32_t dep_count, dep_capacity;
    int fault;
};

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int descending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;
    return x > y ? -1 : x < y;
}

/* Cut every buffer at the begin and end of each access. */
static int cut_ranges(struct derive *d)
{
    const struct ps_schedule *s = d->s;
    size_t buffers = s->buffer_count;
    d->first = calloc(buffers + 2, sizeof *d->first);
    d->last = calloc(buffers + 2, sizeof *d->last);
    d->bound = malloc((2 * (size_t)s->access_count + 1) * sizeof *d->bound);
    if (!d->first || !d->last || !d->bound)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->access_count; i++) {
        assert(s->access[i].buffer < buffers);
        d->first[s->access[i].buffer + 2] += 2;
    }
    for (size_t b = 2; b < buffers + 2; b++)
        d->first[b] += d->first[b - 1];
    for (uint32_t i = 0; i < s->access_count; i++) {
        const struct ps_access *a = &s->access[i];
        size_t *at = &d->first[a->buffer + 1];
        d->bound[(*at)++] = a->offset;
        d->bound[(*at)++] = a->offset + a->bytes;
    }
    /* first[b] is where buffer b begins now */
    for (size_t b = 0; b < buffers; b++) {
        size_t begin = d->first[b];
        size_t end = d->first[b + 1];
        qsort(d->bound + begin, end - begin, sizeof *d->bound, by_value);
        size_t kept = begin;
        for (size_t i = begin; i < end; i++)
            if (i == begin || d->bound[i] != d->bound[kept - 1])
                d->bound[kept++] = d->bound[i];
        d->last[b] = kept;
    }
    d->range = calloc(2 * (size_t)s->access_count + 1, sizeof *d->range);
    return d->range ? 0 : -ENOMEM;
}

/* First boundary of the buffer that is >= offset. */
static size_t lower_bound(const struct derive *d, uint32_t buffer, uint64_t offset)
{
    size_t lo = d->first[buffer];
    size_t hi = d->last[buffer];
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (d->bound[mid] < offset)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static void add_candidate(struct derive *d, uint32_t number)
{
    if (number == 0 || d->fault)
        return;
    if (d->candidate_count == d->candidate_capacity) {
        uint32_t wanted = d->candidate_capacity ? 2 * d->candidate_capacity : 256;
        uint32_t *grown = realloc(d->candidate, wanted * sizeof *grown);
        if (!grown) {
            d->fault = -ENOMEM;
            return;
        }
        d->candidate = grown;
        d->candidate_capacity = wanted;
    }
    d->candidate[d->candidate_count++] = number - 1;
}

static void add_dep(struct derive *d, uint32_t task, uint32_t distance)
{
    if (d->dep_count == d->dep_capacity) {
        uint32_t wanted = d->dep_capacity ? 2 * d->dep_capacity : 256;
        struct ps_dep *grown = realloc(d->dep, wanted * sizeof *grown);
        if (!grown) {
            d->fault = -ENOMEM;
            return;
        }
        d->dep = grown;
        d->dep_capacity = wanted;
    }
    d->dep[d->dep_count++] = (struct ps_dep){.task = task, .distance = distance};
}

static void merge(struct clock *into, const struct clock *from)
{
    for (int l = 0; l < PS_LANE_COUNT; l++)
        if (from->ended[l] > into->ended[l])
            into->ended[l] = from->ended[l];
}

static uint32_t number_on_lane(const struct derive *d, uint32_t unrolled)
{
    uint32_t id = unrolled % d->n;
    return d->pos[id] + (unrolled >= d->n ? d->lane_tasks[d->s->task[id].lane] : 0);
}

/* Who must have ended before this task touches its ranges; then record the task there. */
static void visit_ranges(struct derive *d, const struct ps_task *t, uint32_t unrolled, bool record)
{
    for (uint32_t i = 0; i < t->access_count; i++) {
        const struct ps_access *a = &d->s->access[t->access_begin + i];
        uint64_t stop = a->offset + a->bytes;
        size_t end = d->last[a->buffer];
        for (size_t k = lower_bound(d, a->buffer, a->offset); k < end && d->bound[k] < stop; k++) {
            struct range *r = &d->range[k];
            if (record && a->write) {
                r->writer = unrolled + 1;
                memset(r->reader, 0, sizeof r->reader);
            } else if (record && r->writer != unrolled + 1) {
                r->reader[t->lane] = unrolled + 1;
            } else if (!record) {
                add_candidate(d, r->writer);
                for (int l = 0; a->write && l < PS_LANE_COUNT; l++)
                    add_candidate(d, r->reader[l]);
            }
        }
    }
}

static void derive_task(struct derive *d, uint32_t unrolled, uint32_t lane_prev[PS_LANE_COUNT])
{
    struct ps_schedule *s = d->s;
    bool second = unrolled >= d->n;
    struct ps_task *t = &s->task[unrolled % d->n];
    struct clock *start = &d->start[unrolled];
    uint32_t prev = lane_prev[t->lane];
    if (prev)
        merge(start, ps_lane_is_async(t->lane) ? &d->start[prev - 1] : &d->end[prev - 1]);
    d->candidate_count = 0;
    for (uint32_t i = 0; i < t->dep_count; i++) {
        const struct ps_dep *given = &s->dep[t->dep_begin + i];
        if (second || given->distance == 0)
            add_candidate(d, given->task + 1 + (second && given->distance == 0 ? d->n : 0));
    }
    visit_ranges(d, t, unrolled, false);
    if (d->candidate_count > 0)
        qsort(d->candidate, d->candidate_count, sizeof *d->candidate, descending);
    for (uint32_t i = 0; i < d->candidate_count; i++) {
        uint32_t c = d->candidate[i];
        if (c == unrolled || start->ended[s->task[c % d->n].lane] > number_on_lane(d, c))
            continue;
        merge(start, &d->end[c]);
        add_dep(d, c % d->n, second && c < d->n ? 1 : 0);
    }
    visit_ranges(d, t, unrolled, true);
    struct clock *end = &d->end[unrolled];
    *end = *start;
    if (prev)
        merge(end, &d->end[prev - 1]);
    end->ended[t->lane] = number_on_lane(d, unrolled) + 1;
    lane_prev[t->lane] = unrolled + 1;
}

static int derive_run(struct derive *d)
{
    struct ps_schedule *s = d->s;
    uint32_t lane_prev[PS_LANE_COUNT] = {0};
    uint32_t *begin = calloc(2 * (size_t)d->n + 1, sizeof *begin);
    if (!begin)
        return -ENOMEM;
    for (uint32_t u = 0; u < 2 * d->n && !d->fault; u++) {
        derive_task(d, u, lane_prev);
        begin[u + 1] = d->dep_count;
    }
    struct ps_dep *all = d->fault ? NULL : malloc(((size_t)d->dep_count + 1) * sizeof *all);
    if (!all) {
        free(begin);
        return -ENOMEM;
    }
    /* the first period gives the distance 0, the second the distance 1 */
    uint32_t count = 0;
    for (uint32_t id = 0; id < d->n; id++) {
        uint32_t from = count;
        for (uint32_t i = begin[id]; i < begin[id + 1]; i++)
            all[count++] = d->dep[i];
        for (uint32_t i = begin[d->n + id]; i < begin[d->n + id + 1]; i++)
            if (d->dep[i].distance == 1)
                all[count++] = d->dep[i];
        s->task[id].dep_begin = from;
        s->task[id].dep_count = count - from;
    }
    free(begin);
    free(s->dep);
    s->dep = all;
    s->dep_count = count;
    s->dep_capacity = d->dep_count + 1;
    return 0;
}

int ps_schedule_derive(struct ps_schedule *s, struct ps_error *err)
{
    struct derive d = {.s = s, .n = s->task_count, .fault = s->fault};
    if (!d.fault && d.n == 0)
        return 0;
    if (!d.fault) {
        d.pos = calloc(d.n, sizeof *d.pos);
        d.start = calloc(2 * (size_t)d.n, sizeof *d.start);
        d.end = calloc(2 * (size_t)d.n, sizeof *d.end);
        d.fault = d.pos && d.start && d.end ? cut_ranges(&d) : -ENOMEM;
    }
    for (uint32_t i = 0; i < d.n && !d.fault; i++)
        d.pos[i] = d.lane_tasks[s->task[i].lane]++;
    if (!d.fault)
        d.fault = derive_run(&d);
    free(d.pos);
    free(d.start);
    free(d.end);
    free(d.bound);
    free(d.first);
    free(d.last);
    free(d.range);
    free(d.candidate);
    free(d.dep);
    return d.fault ? ps_error_set(err, d.fault, "out of memory while planning the schedule") : 0;
}
