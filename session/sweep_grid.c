/* The grid's file: see sweep.h. */
#include "session/sweep_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yaml.h>

#include "runtime/base/file.h"
#include "session/options.h"

#define GRID_BYTES_MAX ((size_t)1 << 20)
#define KEY_MAX 64

struct reader {
    yaml_parser_t parser;
    const char *file;
    size_t line;
    struct ps__sweep_grid *grid;
    struct ps_error *err;
};

static int reject(struct reader *r, const char *field, const char *message)
{
    char where[600];
    PS_IGNORE(snprintf(where, sizeof where, "%.512s:%zu", r->file, r->line) < 0, "fits");
    return ps_error_full(r->err, PS_EUSAGE, where, field,
                         "write `name: value` lines, a value or a list of values", "%s", message);
}

static int next(struct reader *r, yaml_event_t *e)
{
    if (!yaml_parser_parse(&r->parser, e)) {
        r->line = r->parser.problem_mark.line + 1;
        if (r->parser.error == YAML_MEMORY_ERROR)
            return ps_error_set(r->err, -ENOMEM, "out of memory");
        return reject(r, NULL, "not valid YAML");
    }
    r->line = e->start_mark.line + 1;
    if (e->type != YAML_ALIAS_EVENT)
        return 0;
    yaml_event_delete(e);
    return reject(r, NULL, "anchors and aliases are not accepted");
}

/* A scalar as a new string, NULL with *ret set otherwise. */
static char *scalar(struct reader *r, const yaml_event_t *e, int *ret)
{
    const char *v = (const char *)e->data.scalar.value;
    if (strlen(v) != e->data.scalar.length) {
        *ret = reject(r, NULL, "a NUL character is not accepted");
        return NULL;
    }
    char *s = strdup(v);
    if (!s)
        *ret = ps_error_set(r->err, -ENOMEM, "out of memory");
    return s;
}

static int add_value(struct reader *r, struct ps__sweep_axis *a, const yaml_event_t *e)
{
    int ret = 0;
    if (a->count == PS__SWEEP_VALUE_MAX)
        return reject(r, a->name, "too many values");
    char *v = scalar(r, e, &ret);
    if (v)
        a->value[a->count++] = v;
    return ret;
}

/* The value or the list of values of one key. */
static int read_values(struct reader *r, struct ps__sweep_axis *a)
{
    yaml_event_t e;
    int ret = next(r, &e);
    if (ret)
        return ret;
    yaml_event_type_t type = e.type;
    if (type == YAML_SCALAR_EVENT)
        ret = add_value(r, a, &e);
    else if (type != YAML_SEQUENCE_START_EVENT)
        ret = reject(r, a->name, "nested values are not accepted");
    yaml_event_delete(&e);
    while (ret == 0 && type == YAML_SEQUENCE_START_EVENT) {
        ret = next(r, &e);
        if (ret)
            return ret;
        bool end = e.type == YAML_SEQUENCE_END_EVENT;
        if (!end)
            ret = e.type == YAML_SCALAR_EVENT
                      ? add_value(r, a, &e)
                      : reject(r, a->name, "a list of lists is not accepted");
        yaml_event_delete(&e);
        if (end)
            return a->count ? 0 : reject(r, a->name, "the list is empty");
    }
    return ret;
}

static bool same_name(const char *a, const char *b)
{
    for (; *a && *b; a++, b++)
        if ((*a == '_' ? '-' : *a) != (*b == '_' ? '-' : *b))
            return false;
    return *a == *b;
}

/* The sweep's own keys: 1 when it was one, 0 when not. The axis then is not kept. */
static int own_key(struct reader *r, const struct ps__sweep_axis *a)
{
    static const char *const reserved[] = {"output", "output-dir", "resume", "progress",
                                           "json",   "dry-run",    "trace",  "dump-grads"};
    for (size_t i = 0; i < sizeof reserved / sizeof reserved[0]; i++)
        if (same_name(a->name, reserved[i]))
            return reject(r, a->name, "this option belongs to the sweep itself");
    bool repeat = same_name(a->name, "repeat"), keep = same_name(a->name, "keep-runs");
    if (!repeat && !keep)
        return 0;
    if (a->count != 1)
        return reject(r, a->name, "this key takes one value");
    if (keep) {
        r->grid->keep_runs = !strcmp(a->value[0], "true");
        return r->grid->keep_runs || !strcmp(a->value[0], "false")
                   ? 1
                   : reject(r, a->name, "expected true or false");
    }
    char *end;
    long n = strtol(a->value[0], &end, 10);
    if (*end || n < 3 || n > 1000)
        return reject(r, a->name, "each cell is run 3 to 1000 times");
    r->grid->repeat = (int)n;
    return 1;
}

static void free_axis(struct ps__sweep_axis *a)
{
    for (size_t i = 0; i < a->count; i++)
        free(a->value[i]);
    free(a->name);
    memset(a, 0, sizeof *a);
}

/* Every value by itself must be one that train takes. */
static int check_axis(struct reader *r, const struct ps__sweep_axis *a)
{
    char where[600];
    PS_IGNORE(snprintf(where, sizeof where, "%.512s:%zu", r->file, r->line) < 0, "fits");
    int ret = 0;
    for (size_t i = 0; i < a->count && ret == 0; i++) {
        struct ps_options o;
        ps_options_init(&o, PS_CMD_TRAIN);
        ret = ps_options_set(&o, a->name, a->value[i], where, r->err);
        ps_options_fini(&o);
    }
    return ret;
}

static int read_pair(struct reader *r, const yaml_event_t *key)
{
    struct ps__sweep_grid *g = r->grid;
    if (key->type != YAML_SCALAR_EVENT || key->data.scalar.length > KEY_MAX)
        return reject(r, NULL, "a key must be the name of an option of `train`");
    if (g->axis_count == PS__SWEEP_AXIS_MAX)
        return reject(r, NULL, "too many options");
    struct ps__sweep_axis *a = &g->axis[g->axis_count];
    int ret = 0;
    a->name = scalar(r, key, &ret);
    if (!a->name)
        return ret;
    g->axis_count++; /* fini frees it from here on */
    for (char *p = a->name; *p; p++)
        *p = *p == '_' ? '-' : *p;
    for (size_t i = 0; i + 1 < g->axis_count; i++)
        if (!strcmp(g->axis[i].name, a->name))
            return reject(r, a->name, "this option stands twice");
    ret = read_values(r, a);
    int own = ret ? ret : own_key(r, a);
    if (own < 0)
        return own;
    if (own) {
        free_axis(a);
        g->axis_count--;
        return 0;
    }
    return check_axis(r, a);
}

static int read_document(struct reader *r)
{
    bool inside = false;
    for (;;) {
        yaml_event_t e;
        int ret = next(r, &e);
        if (ret)
            return ret;
        yaml_event_type_t type = e.type;
        if (type == YAML_MAPPING_START_EVENT && !inside)
            inside = true;
        else if (inside && type == YAML_MAPPING_END_EVENT)
            type = YAML_STREAM_END_EVENT;
        else if (inside)
            ret = read_pair(r, &e);
        else if (type == YAML_SCALAR_EVENT || type == YAML_SEQUENCE_START_EVENT)
            ret = reject(r, NULL, "expected `name: value` lines");
        yaml_event_delete(&e);
        if (ret || type == YAML_STREAM_END_EVENT)
            return ret;
    }
}

static int count_cells(struct reader *r)
{
    struct ps__sweep_grid *g = r->grid;
    if (g->axis_count == 0)
        return reject(r, NULL, "the grid is empty");
    g->cell_count = 1;
    for (size_t i = 0; i < g->axis_count; i++) {
        g->cell_count *= g->axis[i].count; /* at most 4096 * 64 */
        if (g->cell_count > PS__SWEEP_CELL_MAX)
            return reject(r, NULL, "the grid has more than 4096 cells");
    }
    return 0;
}

int ps__sweep_grid_load(struct ps__sweep_grid *g, const char *path, struct ps_error *err)
{
    memset(g, 0, sizeof *g);
    g->repeat = 3;
    char *text;
    size_t len;
    int ret = ps_file_read(path, GRID_BYTES_MAX, &text, &len, err);
    if (ret) {
        if (err && ret != -ENOMEM)
            err->code = PS_EUSAGE; /* whatever is wrong with it, it is the configuration's file */
        return ret == -ENOMEM ? ret : PS_EUSAGE;
    }
    struct reader r = {.file = path, .line = 1, .grid = g, .err = err};
    if (!yaml_parser_initialize(&r.parser)) {
        free(text);
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, len);
    ret = read_document(&r);
    yaml_parser_delete(&r.parser);
    free(text);
    return ret ? ret : count_cells(&r);
}

void ps__sweep_grid_fini(struct ps__sweep_grid *g)
{
    for (size_t i = 0; i < g->axis_count; i++)
        free_axis(&g->axis[i]);
    g->axis_count = 0;
}

const char *ps__sweep_value(const struct ps__sweep_grid *g, size_t cell, size_t axis)
{
    for (size_t i = g->axis_count; i-- > axis + 1;)
        cell /= g->axis[i].count;
    return g->axis[axis].value[cell % g->axis[axis].count];
}

int ps__sweep_check(const struct ps__sweep_grid *g, size_t cell, bool plan, struct ps_error *err)
{
    struct ps_options o;
    ps_options_init(&o, plan ? PS_CMD_PLAN : PS_CMD_TRAIN);
    int ret = 0;
    for (size_t i = 0; i < g->axis_count && ret == 0; i++)
        ret =
            ps_options_set(&o, g->axis[i].name, ps__sweep_value(g, cell, i), g->axis[i].name, err);
    if (ret == 0 && !plan)
        ret = ps_options_set(&o, "output", "run", "output", err);
    if (ret == 0)
        ret = ps_options_resolve(&o, err);
    ps_options_fini(&o);
    return ret;
}
