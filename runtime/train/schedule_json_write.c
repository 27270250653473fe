/* Schedules to JSON: see schedule_json.h.
 *
 * Design. Plain text, a task a line: readable and comparable, and a schedule of a million ranges is
 * not built as objects first. */
#include "runtime/train/schedule_json.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"

#define VERSION 1

/* Text that grows; once memory is short nothing more is added. */
struct text {
    char *bytes;
    size_t len, cap;
    bool failed;
};

static void put(struct text *f, const char *fmt, ...) PS_PRINTF(2, 3);
static void put(struct text *f, const char *fmt, ...)
{
    enum { PIECE_MAX = 512 }; /* every call here needs less */
    if (!f->failed && f->cap - f->len < PIECE_MAX) {
        size_t cap = 2 * f->cap + 16 * PIECE_MAX;
        char *grown = realloc(f->bytes, cap);
        f->failed = !grown;
        if (grown) {
            f->bytes = grown;
            f->cap = cap;
        }
    }
    if (f->failed)
        return;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(f->bytes + f->len, PIECE_MAX, fmt, args);
    va_end(args);
    assert(n >= 0);
    assert(n < PIECE_MAX);
    f->len += (size_t)n;
}

/* Every count and offset fits JSON's integers as readers have them. */
static bool numbers_fit(const struct ps_schedule *s)
{
    for (uint32_t i = 0; i < s->buffer_count; i++)
        if (s->buffer[i].bytes > INT64_MAX)
            return false;
    for (uint32_t i = 0; i < s->task_count; i++)
        if (s->task[i].bytes > INT64_MAX || !isfinite(s->task[i].flops))
            return false;
    for (uint32_t i = 0; i < s->access_count; i++)
        if (s->access[i].offset > INT64_MAX || s->access[i].bytes > INT64_MAX)
            return false;
    return true;
}

static void write_string(struct text *f, const char *text)
{
    char quoted[256];
    size_t len = 0;
    PS_IGNORE(!ps_json_quote(quoted, sizeof quoted, &len, text, strnlen(text, 32)),
              "32 characters fit, each escaped to 6");
    put(f, "%.*s", (int)len, quoted);
}

/* The locale may have put a comma where JSON wants a point. */
static void write_real(struct text *f, double x)
{
    char text[40];
    snprintf(text, sizeof text, "%.17g", x);
    for (char *p = text; *p; p++)
        if (*p == ',')
            *p = '.';
    put(f, "%s", text);
}

static void write_ranges(struct text *f, const struct ps_schedule *s, const struct ps_task *t,
                         bool write)
{
    const char *comma = "";
    put(f, ", \"%s\": [", write ? "writes" : "reads");
    for (uint32_t k = 0; k < t->access_count; k++) {
        const struct ps_access *a = &s->access[t->access_begin + k];
        if (a->write != write)
            continue;
        put(f, "%s[%" PRIu32 ", %" PRIu64 ", %" PRIu64 "]", comma, a->buffer, a->offset, a->bytes);
        comma = ", ";
    }
    put(f, "]");
}

static void write_task(struct text *f, const struct ps_schedule *s, const struct ps_task *t)
{
    const char *comma = "";
    put(f,
        "  {\"id\": %" PRIu32 ", \"lane\": \"%s\", \"kind\": \"%s\", \"unit\": %" PRId32
        ", \"micro\": %" PRId32 ", \"args\": {",
        t->id, ps_lane_name(t->lane), ps_task_kind_name(t->kind), t->unit, t->micro);
    for (int a = 0; a < PS_ARG_COUNT; a++)
        if (t->arg[a] != -1) {
            put(f, "%s\"%s\": %" PRId32, comma, ps_task_arg_name((enum ps_task_arg)a), t->arg[a]);
            comma = ", ";
        }
    put(f, "}, \"deps\": [");
    for (uint32_t k = 0; k < t->dep_count; k++)
        put(f, "%s[%" PRIu32 ", %" PRIu32 "]", k ? ", " : "", s->dep[t->dep_begin + k].task,
            s->dep[t->dep_begin + k].distance);
    put(f, "]");
    write_ranges(f, s, t, false);
    write_ranges(f, s, t, true);
    put(f, ", \"bytes\": %" PRIu64 ", \"flops\": ", t->bytes);
    write_real(f, t->flops);
    put(f, ", \"trails\": %s}", t->flags & PS_TASK_TRAILS ? "true" : "false");
}

static void write_segment(struct text *f, const struct ps_schedule *s)
{
    put(f, "\"name\": ");
    write_string(f, s->name);
    put(f, "%s", ",\n \"buffers\": [");
    for (uint32_t i = 0; i < s->buffer_count; i++) {
        put(f, "%s", i ? ",\n  {\"name\": " : "\n  {\"name\": ");
        write_string(f, s->buffer[i].name);
        put(f, ", \"tier\": \"%s\", \"bytes\": %" PRIu64 "}", ps_tier_name(s->buffer[i].tier),
            s->buffer[i].bytes);
    }
    put(f, "%s", "],\n \"tasks\": [");
    for (uint32_t i = 0; i < s->task_count; i++) {
        put(f, "%s", i ? ",\n" : "\n");
        write_task(f, s, &s->task[i]);
    }
    put(f, "]}");
}

static int write_file(const struct ps_schedule *const *s, size_t n, bool set, const char *path,
                      struct ps_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (!numbers_fit(s[i]))
            return ps_error_full(err, PS_EUSAGE, path, NULL, NULL,
                                 "schedule %s holds numbers too large for JSON", s[i]->name);
    struct text text = {0};
    put(&text, "{\"version\": %d, %s", VERSION, set ? "\"segments\": [" : "");
    for (size_t i = 0; i < n; i++) {
        put(&text, "%s", !set ? "" : i ? ",\n{" : "\n{");
        write_segment(&text, s[i]);
    }
    put(&text, "%s", set ? "]}\n" : "\n");
    int ret = 0;
    if (text.failed)
        ret = ps_error_full(err, -ENOMEM, path, NULL, NULL, "not enough memory to write schedules");
    else
        ret = ps_file_write(path, text.bytes, text.len, err);
    free(text.bytes);
    return ret;
}

int ps_schedule_export(const struct ps_schedule *s, const char *path, struct ps_error *err)
{
    return write_file(&s, 1, false, path, err);
}

int ps_schedule_export_set(const struct ps_schedule *const *s, size_t n, const char *path,
                           struct ps_error *err)
{
    return write_file(s, n, true, path, err);
}
