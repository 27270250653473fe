/* Schedules from JSON: see schedule_json.h. Every field is checked: a file is as hostile as any. */
#include "runtime/train/schedule_json.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/json.h"
#include "runtime/train/step.h"

#define FILE_BYTES_MAX ((size_t)512 << 20)
#define VERSION 1

/* Where the reader is: for messages. */
struct reader {
    const char *path;
    struct ps_error *err;
    char where[80]; /* "segments[0].tasks[3].", or "" */
};

static void enter(struct reader *r, const char *fmt, ...) PS_PRINTF(2, 3);
static void enter(struct reader *r, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    PS_IGNORE(vsnprintf(r->where, sizeof r->where, fmt, args) < 0, "a cut place is still a place");
    va_end(args);
}

static int broken(const struct reader *r, const char *key, const char *fmt, ...) PS_PRINTF(3, 4);
static int broken(const struct reader *r, const char *key, const char *fmt, ...)
{
    char field[128], what[256];
    snprintf(field, sizeof field, "%s%s", r->where, key);
    if (!*key && *field) /* the object itself */
        field[strlen(field) - 1] = '\0';
    va_list args;
    va_start(args, fmt);
    PS_IGNORE(vsnprintf(what, sizeof what, fmt, args) < 0, "a cut message is still one");
    va_end(args);
    for (char *p = what; *p; p++) /* it may quote the file */
        if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7f)
            *p = '?';
    return ps_error_full(r->err, PS_EFORMAT, r->path, field, NULL, "%s%s%s %s",
                         *field ? "\"" : "the file", field, *field ? "\"" : "", what);
}

static int no_memory(const struct reader *r)
{
    return ps_error_full(r->err, -ENOMEM, r->path, NULL, NULL, "not enough memory for a schedule");
}

/* An object with no members but those named. */
static int check_members(const struct reader *r, json_t *obj, const char *const *known, size_t n)
{
    const char *key;
    json_t *value;
    if (!json_is_object(obj))
        return broken(r, "", "must be an object");
    json_object_foreach(obj, key, value)
    {
        bool found = false;
        for (size_t i = 0; i < n && !found; i++)
            found = strcmp(key, known[i]) == 0;
        if (!found)
            return broken(r, "", "has an unknown member \"%.60s\"", key);
    }
    return 0;
}

static int get_string(const struct reader *r, const json_t *obj, const char *key, const char **out)
{
    const json_t *v = json_object_get(obj, key);
    if (!json_is_string(v))
        return broken(r, key, v ? "must be a string" : "is missing");
    *out = json_string_value(v);
    return 0;
}

static int read_int(const struct reader *r, const json_t *v, const char *key, int64_t min,
                    int64_t max, int64_t *out)
{
    if (!json_is_integer(v))
        return broken(r, key, v ? "must be an integer" : "is missing");
    int64_t n = json_integer_value(v);
    if (n < min || n > max)
        return broken(r, key, "is %" PRId64 ", must be between %" PRId64 " and %" PRId64, n, min,
                      max);
    *out = n;
    return 0;
}

/* An absent member leaves *out. */
static int get_int(const struct reader *r, const json_t *obj, const char *key, int64_t min,
                   int64_t max, int64_t *out)
{
    const json_t *v = json_object_get(obj, key);
    return v ? read_int(r, v, key, min, max, out) : 0;
}

/* A member that is an array, or NULL in *out where it is absent. */
static int get_array(const struct reader *r, const json_t *obj, const char *key, json_t **out)
{
    *out = json_object_get(obj, key);
    return *out && !json_is_array(*out) ? broken(r, key, "must be an array") : 0;
}

/* Row `idx` of an array of rows of n integers, each in [0, max]. */
static int read_row(const struct reader *r, const json_t *rows, size_t idx, const char *key,
                    size_t n, const int64_t *max, int64_t *out)
{
    char field[40];
    const json_t *row = json_array_get(rows, idx);
    snprintf(field, sizeof field, "%s[%zu]", key, idx);
    if (!json_is_array(row) || json_array_size(row) != n)
        return broken(r, field, "must be an array of %zu integers", n);
    for (size_t k = 0; k < n; k++) {
        int ret = read_int(r, json_array_get(row, k), field, 0, max[k], &out[k]);
        if (ret)
            return ret;
    }
    return 0;
}

static int read_buffer(struct reader *r, struct ps_schedule *s, json_t *obj)
{
    static const char *const known[] = {"name", "tier", "bytes"};
    const char *name = "", *tier = "";
    int64_t bytes = 0;
    int ret = check_members(r, obj, known, 3);
    if (!ret)
        ret = get_string(r, obj, "name", &name);
    if (!ret)
        ret = get_string(r, obj, "tier", &tier);
    if (!ret)
        ret = read_int(r, json_object_get(obj, "bytes"), "bytes", 0, INT64_MAX, &bytes);
    if (ret)
        return ret;
    if (!*name || strlen(name) >= sizeof s->buffer->name)
        return broken(r, "name", "must have 1 to %zu bytes", sizeof s->buffer->name - 1);
    for (int t = 0; t < PS_TIER_COUNT; t++)
        if (strcmp(tier, ps_tier_name((enum ps_tier)t)) == 0) {
            ps_schedule_buffer(s, (enum ps_tier)t, (uint64_t)bytes, "%s", name);
            return s->fault ? no_memory(r) : 0;
        }
    return broken(r, "tier", "must be device, host or disk");
}

static int read_args(const struct reader *r, const json_t *obj, struct ps_task *t)
{
    const char *key;
    json_t *value;
    json_t *args = json_object_get(obj, "args");
    if (args && !json_is_object(args))
        return broken(r, "args", "must be an object");
    json_object_foreach(args, key, value)
    {
        int a = 0;
        while (a < PS_ARG_COUNT && strcmp(key, ps_task_arg_name((enum ps_task_arg)a)) != 0)
            a++;
        if (a == PS_ARG_COUNT)
            return broken(r, "args", "has an unknown member \"%.60s\"", key);
        int64_t n = 0;
        int ret = read_int(r, value, "args", -1, INT32_MAX, &n);
        if (ret)
            return ret;
        t->arg[a] = (int32_t)n;
    }
    return 0;
}

static int read_deps(const struct reader *r, struct ps_schedule *s, const json_t *obj, size_t tasks)
{
    json_t *rows;
    const int64_t max[2] = {(int64_t)tasks - 1, 1};
    int ret = get_array(r, obj, "deps", &rows);
    for (size_t i = 0; !ret && i < json_array_size(rows); i++) {
        int64_t v[2];
        ret = read_row(r, rows, i, "deps", 2, max, v);
        if (!ret)
            ps_schedule_dep(s, (uint32_t)v[0], (uint32_t)v[1]);
    }
    return ret;
}

static int read_ranges(const struct reader *r, struct ps_schedule *s, const json_t *obj, bool write)
{
    const char *key = write ? "writes" : "reads";
    json_t *rows;
    const int64_t max[3] = {(int64_t)s->buffer_count - 1, INT64_MAX, INT64_MAX};
    int ret = get_array(r, obj, key, &rows);
    for (size_t i = 0; !ret && i < json_array_size(rows); i++) {
        int64_t v[3];
        ret = read_row(r, rows, i, key, 3, max, v);
        if (!ret && v[2] == 0)
            ret = broken(r, key, "[%zu] is a range of 0 bytes", i);
        if (!ret)
            ps_schedule_access(s, (uint32_t)v[0], write, (uint64_t)v[1], (uint64_t)v[2]);
    }
    return ret;
}

/* Disk lanes call a task's start and finish, the others its run. */
static bool is_disk_request(enum ps_task_kind kind)
{
    return kind == PS_TASK_READ_WEIGHTS || kind == PS_TASK_SPILL_WRITE ||
           kind == PS_TASK_SPILL_READ || kind == PS_TASK_GRAD_WRITE || kind == PS_TASK_GRAD_READ ||
           kind == PS_TASK_READ_STATE || kind == PS_TASK_WRITE_STATE ||
           kind == PS_TASK_WRITE_WEIGHTS;
}

/* Add the task with id, lane, kind and unit; the rest is for read_task. */
static int add_task(struct reader *r, struct ps_schedule *s, const json_t *obj)
{
    const char *lane_name = "", *kind_name = "";
    int64_t id = 0, unit = 0;
    int ret = read_int(r, json_object_get(obj, "id"), "id", 0, INT32_MAX, &id);
    if (!ret)
        ret = get_string(r, obj, "lane", &lane_name);
    if (!ret)
        ret = get_string(r, obj, "kind", &kind_name);
    if (!ret)
        ret = read_int(r, json_object_get(obj, "unit"), "unit", PS_UNIT_ALL, INT32_MAX, &unit);
    if (ret)
        return ret;
    if (id != (int64_t)s->task_count)
        return broken(r, "id", "is %" PRId64 ", must be its place, %" PRIu32, id, s->task_count);
    int lane = ps_lane_find(lane_name), kind = ps_task_kind_find(kind_name);
    if (lane < 0)
        return broken(r, "lane", "is no lane: \"%.60s\"", lane_name);
    if (kind < 0)
        return broken(r, "kind", "is no kind of task: \"%.60s\"", kind_name);
    if (ps_lane_is_async((enum ps_lane)lane) != is_disk_request((enum ps_task_kind)kind))
        return broken(r, "lane", "is %s, which does not run tasks of kind %s", lane_name,
                      kind_name);
    ps_schedule_task(s, (enum ps_task_kind)kind, (enum ps_lane)lane, (int32_t)unit);
    return s->fault ? no_memory(r) : 0;
}

static int read_task(struct reader *r, struct ps_schedule *s, json_t *obj, size_t tasks)
{
    static const char *const known[] = {"id",   "lane",  "kind",   "unit",  "micro", "args",
                                        "deps", "reads", "writes", "bytes", "flops", "trails"};
    int64_t micro = -1, bytes = 0;
    int ret = check_members(r, obj, known, sizeof known / sizeof known[0]);
    if (!ret)
        ret = add_task(r, s, obj);
    if (!ret)
        ret = get_int(r, obj, "micro", -1, INT32_MAX, &micro);
    if (!ret)
        ret = get_int(r, obj, "bytes", 0, INT64_MAX, &bytes);
    if (ret)
        return ret;
    struct ps_task *t = &s->task[s->task_count - 1];
    t->micro = (int32_t)micro;
    t->bytes = (uint64_t)bytes;
    const json_t *flops = json_object_get(obj, "flops"), *trails = json_object_get(obj, "trails");
    if (flops && !json_is_number(flops))
        return broken(r, "flops", "must be a number");
    t->flops = flops ? json_number_value(flops) : 0;
    if (!isfinite(t->flops) || t->flops < 0)
        return broken(r, "flops", "must not be negative");
    if (trails && !json_is_boolean(trails))
        return broken(r, "trails", "must be true or false");
    t->flags = json_is_true(trails) ? PS_TASK_TRAILS : 0;
    ret = read_args(r, obj, t);
    if (!ret)
        ret = read_deps(r, s, obj, tasks);
    if (!ret)
        ret = read_ranges(r, s, obj, false);
    if (!ret)
        ret = read_ranges(r, s, obj, true);
    return ret ? ret : s->fault ? no_memory(r) : 0;
}

/* One segment: `place` is "segments[0]." or "". s has been initialised with its name. */
static int read_segment(struct reader *r, struct ps_schedule *s, const json_t *obj,
                        const char *place)
{
    json_t *buffers, *tasks;
    int ret = get_array(r, obj, "buffers", &buffers);
    if (!ret)
        ret = get_array(r, obj, "tasks", &tasks);
    if (ret)
        return ret;
    if (!buffers || !tasks)
        return broken(r, buffers ? "tasks" : "buffers", "is missing");
    for (size_t i = 0; !ret && i < json_array_size(buffers); i++) {
        enter(r, "%sbuffers[%zu].", place, i);
        ret = read_buffer(r, s, json_array_get(buffers, i));
    }
    for (size_t i = 0; !ret && i < json_array_size(tasks); i++) {
        enter(r, "%stasks[%zu].", place, i);
        ret = read_task(r, s, json_array_get(tasks, i), json_array_size(tasks));
    }
    if (ret)
        return ret;
    ret = ps_schedule_validate(s, r->err);
    return ret ? ps_error_file(r->err, ret, r->path) : 0;
}

static int find_segment(const struct reader *r, const json_t *obj, const char **out)
{
    const char *name = "";
    int ret = get_string(r, obj, "name", &name);
    if (ret)
        return ret;
    for (int i = 0; i < PS_SEGMENT_COUNT; i++) {
        *out = ps_segment_name((enum ps_segment)i);
        if (strcmp(*out, name) == 0)
            return 0;
    }
    return broken(r, "name", "is no segment: \"%.60s\"", name);
}

static int read_root(struct reader *r, struct ps_schedule *s, size_t n_max, size_t *n, json_t *root)
{
    static const char *const set_members[] = {"version", "segments"};
    static const char *const own_members[] = {"name", "buffers", "tasks", "version"};
    int64_t version = 0;
    if (!json_is_object(root))
        return ps_error_full(r->err, PS_EFORMAT, r->path, NULL, NULL, "a schedule is an object");
    int ret = read_int(r, json_object_get(root, "version"), "version", VERSION, VERSION, &version);
    json_t *set = json_object_get(root, "segments");
    if (!ret && set)
        ret = check_members(r, root, set_members, 2);
    if (!ret && set && !json_is_array(set))
        ret = broken(r, "segments", "must be an array");
    if (ret)
        return ret;
    const size_t count = set ? json_array_size(set) : 1;
    if (count == 0 || count > n_max)
        return broken(r, "segments", "has %zu segments, must have 1 to %zu", count, n_max);
    for (size_t i = 0; i < count; i++) {
        char place[40] = "";
        json_t *obj = set ? json_array_get(set, i) : root;
        const char *name = NULL;
        if (set)
            snprintf(place, sizeof place, "segments[%zu].", i);
        enter(r, "%s", place);
        ret = check_members(r, obj, own_members, set ? 3 : 4);
        if (!ret)
            ret = find_segment(r, obj, &name);
        for (size_t k = 0; k < i && !ret; k++)
            if (s[k].name == name)
                ret = broken(r, "name", "\"%s\" stands twice", name);
        if (ret)
            return ret;
        ps_schedule_init(&s[(*n)++], name);
        ret = read_segment(r, &s[i], obj, place);
        if (ret)
            return ret;
    }
    return 0;
}

/* Takes over root. */
static int read_set(struct ps_schedule *s, size_t n_max, size_t *n, json_t *root, const char *path,
                    struct ps_error *err)
{
    struct reader r = {.path = path, .err = err};
    size_t done = 0;
    int ret = read_root(&r, s, n_max, &done, root);
    json_decref(root);
    if (ret) {
        for (size_t i = 0; i < done; i++)
            ps_schedule_fini(&s[i]);
        return ret;
    }
    *n = done;
    return 0;
}

int ps_schedule_parse_set(struct ps_schedule *s, size_t n_max, size_t *n, const char *text,
                          size_t len, const char *path, struct ps_error *err)
{
    json_t *root;
    int ret = ps_json_parse(text, len, PS_JSON_STRICT, path, &root, err);
    return ret ? ret : read_set(s, n_max, n, root, path, err);
}

int ps_schedule_import_set(struct ps_schedule *s, size_t n_max, size_t *n, const char *path,
                           struct ps_error *err)
{
    json_t *root;
    int ret = ps_json_load(path, FILE_BYTES_MAX, &root, err);
    return ret ? ret : read_set(s, n_max, n, root, path, err);
}
