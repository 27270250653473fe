/* What a run left behind: see sweep_internal.h. */
#include "session/sweep_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"

#define FILE_BYTES_MAX ((size_t)64 << 20)
#define STEP_MAX 65536

static double number(const json_t *o, const char *key, double fallback)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : fallback;
}

static uint64_t count(const json_t *o, const char *key, uint64_t fallback)
{
    double v = number(o, key, -1);
    return v >= 0 && v < 1.8e19 ? (uint64_t)v : fallback;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, size_t n)
{
    if (n == 0)
        return NAN;
    qsort(v, n, sizeof *v, compare);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* Add a value's text to the hash. */
static void add_hash(XXH64_hash_t *hash, const json_t *v, bool *any)
{
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY) : NULL;
    if (text) {
        *hash = XXH3_64bits_withSeed(text, strlen(text) + 1, *hash);
        *any = true;
    }
    free(text);
}

/* What the process itself takes besides the buffers is measured, and differs from call to call. */
static bool is_measured(const json_t *item)
{
    const char *name = json_string_value(json_object_get(item, "class"));
    return name && !strncmp(name, "process", 7);
}

/* Strategy, placement and traffic: what was planned, without what differs from call to call. */
static void hash_plan(struct ps__sweep_row *row, const json_t *plan)
{
    XXH64_hash_t hash = 0;
    bool any = false;
    const json_t *memory = json_object_get(plan, "memory");
    add_hash(&hash, json_object_get(plan, "strategy"), &any);
    add_hash(&hash, json_object_get(plan, "traffic_bytes"), &any);
    add_hash(&hash, json_object_get(plan, "placement"), &any);
    for (size_t i = 0; i < json_array_size(memory); i++) /* 0 for what is no array */
        if (!is_measured(json_array_get(memory, i)))
            add_hash(&hash, json_array_get(memory, i), &any);
    if (any)
        PS_IGNORE(snprintf(row->plan_hash, sizeof row->plan_hash, "%016llx",
                           (unsigned long long)hash) < 0,
                  "fits");
}

static void take_plan(struct ps__sweep_row *row, const json_t *plan)
{
    const json_t *peak = json_object_get(plan, "peak_bytes");
    const json_t *needs = json_object_get(plan, "needs");
    const json_t *traffic = json_object_get(plan, "traffic_bytes");
    const char *strategy = json_string_value(json_object_get(plan, "strategy"));
    if (json_is_false(json_object_get(plan, "fits")) && needs)
        peak = needs;
    if (strategy)
        PS_IGNORE(snprintf(row->strategy, sizeof row->strategy, "%s", strategy) < 0, "cut");
    row->predicted_step_s = number(plan, "step_s", row->predicted_step_s);
    if (isnan(row->tokens_per_s) && isnan(row->step_s))
        row->tokens_per_s = number(plan, "tokens_per_s", NAN);
    row->plan_device_bytes = count(peak, "device", 0);
    row->plan_host_bytes = count(peak, "host", 0);
    row->plan_disk_bytes = count(peak, "disk", 0);
    row->disk_read_bytes = count(traffic, "disk_read", row->disk_read_bytes);
    row->disk_write_bytes = count(traffic, "disk_write", row->disk_write_bytes);
    hash_plan(row, plan);
}

void ps__sweep_read_plan(struct ps__sweep_row *row, const char *path)
{
    char *text;
    size_t len;
    json_t *plan;
    if (ps_file_read(path, FILE_BYTES_MAX, &text, &len, NULL))
        return;
    if (ps_json_parse(text, len, PS_JSON_PLAIN, path, &plan, NULL) == 0) {
        if (json_is_object(plan))
            take_plan(row, plan);
        json_decref(plan);
    }
    free(text);
}

/* One line of metrics.jsonl; a training step's values are added to the two lists. */
static void take_line(struct ps__sweep_row *row, const json_t *o, double *step_s, double *tokens,
                      size_t *n)
{
    if (!json_is_number(json_object_get(o, "step_s")) || json_object_get(o, "event"))
        return;
    row->steps++;
    row->loss = number(o, "loss", row->loss);
    row->disk_read_bytes = count(o, "disk_read_bytes", row->disk_read_bytes);
    row->disk_write_bytes = count(o, "disk_write_bytes", row->disk_write_bytes);
    row->predicted_step_s = number(o, "predicted_step_s", row->predicted_step_s);
    if (*n < STEP_MAX) {
        step_s[*n] = number(o, "step_s", 0);
        tokens[*n] = number(o, "tokens_per_s", 0);
        ++*n;
    }
}

static void read_metrics(struct ps__sweep_row *row, const char *path)
{
    char *text;
    size_t len, n = 0;
    if (ps_file_read(path, FILE_BYTES_MAX, &text, &len, NULL))
        return;
    double *step_s = malloc(2 * STEP_MAX * sizeof *step_s);
    for (size_t at = 0; step_s && at < len;) {
        const char *end = memchr(text + at, '\n', len - at);
        size_t size = end ? (size_t)(end - (text + at)) : len - at;
        json_t *o;
        if (ps_json_parse(text + at, size, PS_JSON_PLAIN, path, &o, NULL) == 0) {
            if (json_is_object(o))
                take_line(row, o, step_s, step_s + STEP_MAX, &n);
            json_decref(o);
        }
        at += size + 1;
    }
    size_t first = n > 1; /* the first step starts threads and touches memory */
    if (n > 0) {
        row->step_s = median(step_s + first, n - first);
        row->tokens_per_s = median(step_s + STEP_MAX + first, n - first);
    }
    free(step_s);
    free(text);
}

void ps__sweep_read_run(struct ps__sweep_row *row, const char *dir)
{
    char path[4096];
    /* the plan first: what the run itself says counts more */
    if (ps_path_join(path, sizeof path, dir, "plan.json"))
        ps__sweep_read_plan(row, path);
    if (ps_path_join(path, sizeof path, dir, "metrics.jsonl"))
        read_metrics(row, path);
}

void ps__sweep_read_error(struct ps__sweep_row *row, const char *path)
{
    char *text;
    size_t len;
    if (ps_file_read(path, FILE_BYTES_MAX, &text, &len, NULL))
        return;
    while (len > 0 && text[len - 1] == '\n')
        text[--len] = '\0';
    const char *line = strrchr(text, '\n');
    line = line ? line + 1 : text;
    json_t *o;
    const char *file = "", *message = line, *advice = "";
    if (ps_json_parse(line, strlen(line), PS_JSON_PLAIN, path, &o, NULL))
        o = NULL;
    const json_t *error = json_object_get(o, "error");
    if (json_is_string(json_object_get(error, "message")))
        message = json_string_value(json_object_get(error, "message"));
    if (json_is_string(json_object_get(error, "advice")))
        advice = json_string_value(json_object_get(error, "advice"));
    if (json_is_string(json_object_get(error, "file")))
        file = json_string_value(json_object_get(error, "file"));
    PS_IGNORE(snprintf(row->message, sizeof row->message, "%s%s%s%s%s", file, file[0] ? ": " : "",
                       message, advice[0] ? "; " : "", advice) < 0,
              "cut if need be");
    json_decref(o);
    free(text);
}
