/* The report of `penstock inspect` for a person. */
#include "session/inspect_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put_shape(FILE *out, const json_t *shape)
{
    fputc('[', out);
    for (size_t i = 0; i < json_array_size(shape); i++)
        fprintf(out, "%s%" JSON_INTEGER_FORMAT, i ? ", " : "",
                json_integer_value(json_array_get(shape, i)));
    fputc(']', out);
}

static void put_details(FILE *out, json_t *details)
{
    const char *key;
    json_t *v;
    json_object_foreach(details, key, v)
    {
        if (json_is_null(v) || strcmp(key, "extents") == 0)
            continue;
        char *text = json_is_string(v) ? NULL : json_dumps(v, JSON_ENCODE_ANY);
        const char *shown = json_is_string(v) ? json_string_value(v) : text;
        fprintf(out, "%-24s %s\n", key, shown ? shown : "?");
        free(text);
    }
}

/* Columns as wide as the longest name and type. */
static void put_tensors(FILE *out, const json_t *tensors)
{
    size_t i;
    int name_width = 0, dtype_width = 0;
    json_t *t;
    json_array_foreach(tensors, i, t)
    {
        size_t n = json_string_length(json_object_get(t, "name"));
        size_t d = json_string_length(json_object_get(t, "dtype"));
        name_width = n < 100 && (int)n > name_width ? (int)n : name_width;
        dtype_width = d < 100 && (int)d > dtype_width ? (int)d : dtype_width;
    }
    const char *file = "";
    json_array_foreach(tensors, i, t)
    {
        const char *own = json_string_value(json_object_get(t, "file"));
        if (own && strcmp(own, file) != 0)
            fprintf(out, "%s:\n", file = own);
        fprintf(out, "  %-*s  %-*s  ", name_width, json_string_value(json_object_get(t, "name")),
                dtype_width, json_string_value(json_object_get(t, "dtype")));
        put_shape(out, json_object_get(t, "shape"));
        fputc('\n', out);
    }
}

/* A spill store's extents: where the committed copy lies. */
static void put_extents(FILE *out, const json_t *extents)
{
    size_t i;
    json_t *e;
    json_array_foreach(extents, i, e)
    {
        json_t *slot = json_object_get(e, "slot");
        fprintf(out, "  %-32s %14" JSON_INTEGER_FORMAT " bytes  %6" JSON_INTEGER_FORMAT " chunks  ",
                json_string_value(json_object_get(e, "name")),
                json_integer_value(json_object_get(e, "bytes")),
                json_integer_value(json_object_get(e, "chunks")));
        if (json_is_integer(slot))
            fprintf(out, "slot %" JSON_INTEGER_FORMAT "\n", json_integer_value(slot));
        else
            fputs("never written\n", out);
    }
}

char *ps__inspect_text(const struct ps_inspect_report *r)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (!out)
        return NULL;
    fprintf(out, "%-24s %s\n", r->kind, r->path);
    if (r->why_not[0])
        fprintf(out, "%-24s no: %s\n", "supported", r->why_not);
    else
        fprintf(out, "%-24s yes\n", "supported");
    const json_t *extents = json_object_get(r->details, "extents");
    if (!extents)
        fprintf(out, "%-24s %" PRIu64 "\n", "parameters", r->parameters);
    put_details(out, r->details);
    if (extents) {
        put_extents(out, extents);
    } else {
        fprintf(out, "%-24s %zu\n", "tensors", json_array_size(r->tensors));
        put_tensors(out, r->tensors);
    }
    bool bad = ferror(out) != 0;
    if (fclose(out) != 0 || bad) {
        free(text);
        return NULL;
    }
    return text;
}
