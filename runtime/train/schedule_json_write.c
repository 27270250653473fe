/* Schedules to JSON: see schedule_json.h.
 *
 * Design. Plain text, a task a line: readable and comparable, and a schedule of a million ranges is
 * not built as objects first. */
#include "runtime/train/schedule_json.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"

#define VERSION 1

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

static void write_string(FILE *f, const char *text)
{
    char quoted[256];
    size_t len = 0;
    PS_IGNORE(!ps_json_quote(quoted, sizeof quoted, &len, text, strnlen(text, 32)),
              "32 characters fit, each escaped to 6");
    fwrite(quoted, 1, len, f);
}

/* The locale may have put a comma where JSON wants a point. */
static void write_real(FILE *f, double x)
{
    char text[40];
    snprintf(text, sizeof text, "%.17g", x);
    for (char *p = text; *p; p++)
        if (*p == ',')
            *p = '.';
    fputs(text, f);
}

static void write_ranges(FILE *f, const struct ps_schedule *s, const struct ps_task *t, bool write)
{
    const char *comma = "";
    fprintf(f, ", \"%s\": [", write ? "writes" : "reads");
    for (uint32_t k = 0; k < t->access_count; k++) {
        const struct ps_access *a = &s->access[t->access_begin + k];
        if (a->write != write)
            continue;
        fprintf(f, "%s[%" PRIu32 ", %" PRIu64 ", %" PRIu64 "]", comma, a->buffer, a->offset,
                a->bytes);
        comma = ", ";
    }
    fputc(']', f);
}

static void write_task(FILE *f, const struct ps_schedule *s, const struct ps_task *t)
{
    const char *comma = "";
    fprintf(f,
            "  {\"id\": %" PRIu32 ", \"lane\": \"%s\", \"kind\": \"%s\", \"unit\": %" PRId32
            ", \"micro\": %" PRId32 ", \"args\": {",
            t->id, ps_lane_name(t->lane), ps_task_kind_name(t->kind), t->unit, t->micro);
    for (int a = 0; a < PS_ARG_COUNT; a++)
        if (t->arg[a] != -1) {
            fprintf(f, "%s\"%s\": %" PRId32, comma, ps_task_arg_name((enum ps_task_arg)a),
                    t->arg[a]);
            comma = ", ";
        }
    fputs("}, \"deps\": [", f);
    for (uint32_t k = 0; k < t->dep_count; k++)
        fprintf(f, "%s[%" PRIu32 ", %" PRIu32 "]", k ? ", " : "", s->dep[t->dep_begin + k].task,
                s->dep[t->dep_begin + k].distance);
    fputc(']', f);
    write_ranges(f, s, t, false);
    write_ranges(f, s, t, true);
    fprintf(f, ", \"bytes\": %" PRIu64 ", \"flops\": ", t->bytes);
    write_real(f, t->flops);
    fprintf(f, ", \"trails\": %s}", t->flags & PS_TASK_TRAILS ? "true" : "false");
}

static void write_segment(FILE *f, const struct ps_schedule *s)
{
    fputs("\"name\": ", f);
    write_string(f, s->name);
    fputs(",\n \"buffers\": [", f);
    for (uint32_t i = 0; i < s->buffer_count; i++) {
        fputs(i ? ",\n  {\"name\": " : "\n  {\"name\": ", f);
        write_string(f, s->buffer[i].name);
        fprintf(f, ", \"tier\": \"%s\", \"bytes\": %" PRIu64 "}", ps_tier_name(s->buffer[i].tier),
                s->buffer[i].bytes);
    }
    fputs("],\n \"tasks\": [", f);
    for (uint32_t i = 0; i < s->task_count; i++) {
        fputs(i ? ",\n" : "\n", f);
        write_task(f, s, &s->task[i]);
    }
    fputs("]}", f);
}

static int write_file(const struct ps_schedule *const *s, size_t n, bool set, const char *path,
                      struct ps_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (!numbers_fit(s[i]))
            return ps_error_full(err, PS_EUSAGE, path, NULL, NULL,
                                 "schedule %s holds numbers too large for JSON", s[i]->name);
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return ps_error_full(err, -ENOMEM, path, NULL, NULL, "not enough memory");
    fprintf(f, "{\"version\": %d, ", VERSION);
    if (set)
        fputs("\"segments\": [", f);
    for (size_t i = 0; i < n; i++) {
        if (set)
            fputs(i ? ",\n{" : "\n{", f);
        write_segment(f, s[i]);
    }
    fputs(set ? "]}\n" : "\n", f);
    int failed = ferror(f);
    int ret = 0;
    if (fclose(f) != 0 || failed)
        ret = ps_error_full(err, -ENOMEM, path, NULL, NULL, "not enough memory");
    if (!ret)
        ret = ps_file_write(path, text, len, err);
    free(text);
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
