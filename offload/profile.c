/* Reading and writing hardware profiles: see profile.h. One table of members serves both.
 *
 * Members that are not known are refused: a misspelt figure would silently become its default. */
#include "offload/profile.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"

#define FILE_BYTES_MAX ((size_t)1 << 20)
#define RATE_MAX 1e19
#define BYTES_MAX ((int64_t)1 << 60)
#define DIM_MAX INT32_MAX
#define ADVICE "measure this machine with `penstock bench`, or see examples/hardware/"

/* A real member of an object `group` of the profile ("" : of the profile itself, or of a disk). */
struct member {
    const char *group, *key;
    size_t offset;
    double min, max, fallback; /* fallback < 0: must be there */
};

#define MUST (-1.0)
#define RATE_MIN 1e-3

static const struct member profile_members[] = {
    {"attention", "flops", offsetof(struct ps_profile, attention_flops), 0, RATE_MAX, 0},
    {"copy", "host", offsetof(struct ps_profile, copy_host), RATE_MIN, RATE_MAX, MUST},
    {"copy", "h2d", offsetof(struct ps_profile, copy_h2d), 0, RATE_MAX, 0},
    {"copy", "d2h", offsetof(struct ps_profile, copy_d2h), 0, RATE_MAX, 0},
    {"copy", "memory", offsetof(struct ps_profile, memory), RATE_MIN, RATE_MAX, MUST},
    {"cpu_optim", "params", offsetof(struct ps_profile, cpu_optim_params), RATE_MIN, RATE_MAX,
     MUST},
    {"interference", "compute_by_disk", offsetof(struct ps_profile, compute_by_disk), 1, 1000, 1},
    {"interference", "compute_by_optim", offsetof(struct ps_profile, compute_by_optim), 1, 1000, 1},
    {"interference", "compute_by_copy", offsetof(struct ps_profile, compute_by_copy), 1, 1000, 1},
    {"interference", "disk_by_compute", offsetof(struct ps_profile, disk_by_compute), 1, 1000, 1},
    {"interference", "optim_by_compute", offsetof(struct ps_profile, optim_by_compute), 1, 1000, 1},
    {"interference", "copy_by_compute", offsetof(struct ps_profile, copy_by_compute), 1, 1000, 1},
    {"overhead", "task_s", offsetof(struct ps_profile, step_overhead_s), 0, 1, 0},
};

static const struct member disk_members[] = {
    {"", "read", offsetof(struct ps_profile_disk, read), RATE_MIN, RATE_MAX, MUST},
    {"", "write", offsetof(struct ps_profile_disk, write), RATE_MIN, RATE_MAX, MUST},
    {"mixed", "read", offsetof(struct ps_profile_disk, mixed_read), 0, RATE_MAX, 0},
    {"mixed", "write", offsetof(struct ps_profile_disk, mixed_write), 0, RATE_MAX, 0},
    {"sustained", "read", offsetof(struct ps_profile_disk, sustained_read), 0, RATE_MAX, 0},
    {"sustained", "write", offsetof(struct ps_profile_disk, sustained_write), 0, RATE_MAX, 0},
    {"", "latency_s", offsetof(struct ps_profile_disk, latency_s), 0, 100, 0},
};

static const struct member gemm_members[] = {
    {"", "flops", offsetof(struct ps_profile_gemm, flops), RATE_MIN, RATE_MAX, MUST},
};

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* --- reading --- */

struct reader {
    const char *path;
    struct ps_error *err;
};

/* Fail at `where`.`key` (where may be ""). */
static int bad(const struct reader *r, const char *where, const char *key, const char *what)
{
    char field[128];
    PS_IGNORE(snprintf(field, sizeof field, "%s%s%s", where, *where ? "." : "", key) < 0,
              "a cut name still helps");
    return ps_error_full(r->err, PS_EFORMAT, r->path, field, ADVICE, "hardware profile: %s %s",
                         field, what);
}

/* An error of the JSON helpers, with the field's whole name. */
static int within(const struct reader *r, const char *where, const char *key, int ret)
{
    if (ret >= 0 || !r->err)
        return ret;
    char was[400], field[128];
    PS_IGNORE(snprintf(was, sizeof was, "%.399s", r->err->message) < 0, "a cut message helps");
    PS_IGNORE(snprintf(field, sizeof field, "%s%s%s", where, *where ? "." : "", key) < 0,
              "a cut name still helps");
    return ps_error_full(r->err, ret, r->path, field, ADVICE, "hardware profile: %s: %s", field,
                         was);
}

/* Member `key` as an object; NULL in *out when it is absent. */
static int get_object(const struct reader *r, const json_t *obj, const char *where, const char *key,
                      const json_t **out)
{
    const json_t *v = json_object_get(obj, key);
    if (v && json_is_null(v))
        v = NULL;
    if (v && !json_is_object(v))
        return bad(r, where, key, "is not an object");
    *out = v;
    return 0;
}

static int read_member(const struct reader *r, const json_t *obj, const char *where,
                       const struct member *m, void *out)
{
    const json_t *group = obj;
    char name[96];
    PS_IGNORE(
        snprintf(name, sizeof name, "%s%s%s", where, *where && *m->group ? "." : "", m->group) < 0,
        "short names");
    if (*m->group) {
        int ret = get_object(r, obj, where, m->group, &group);
        if (ret < 0)
            return ret;
    }
    const json_t *v = group ? json_object_get(group, m->key) : NULL;
    if (m->fallback < 0 && (!v || json_is_null(v)))
        return bad(r, name, m->key, "is missing");
    double value = m->fallback;
    int ret = group ? ps_json_get_real(group, m->key, m->min, m->max, m->fallback, r->path, &value,
                                       r->err)
                    : 0;
    memcpy((char *)out + m->offset, &value, sizeof value);
    return within(r, name, m->key, ret);
}

/* Every key of the object is one of `known` (NULL-terminated) or a group or key of the table. */
static int check_keys(const struct reader *r, const json_t *obj, const char *where,
                      const char *group, const char *const *known, const struct member *table,
                      size_t count)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)obj, key, value)
    {
        bool found = false;
        for (size_t i = 0; known && known[i]; i++)
            found |= strcmp(key, known[i]) == 0;
        for (size_t i = 0; i < count; i++)
            found |= *group ? strcmp(table[i].group, group) == 0 && strcmp(key, table[i].key) == 0
                            : strcmp(key, *table[i].group ? table[i].group : table[i].key) == 0;
        if (!found)
            return bad(r, where, key, "is not a member of a hardware profile");
    }
    return 0;
}

static int read_members(const struct reader *r, const json_t *obj, const char *where,
                        const char *const *known, const struct member *table, size_t count,
                        void *out)
{
    int ret = check_keys(r, obj, where, "", known, table, count);
    for (size_t i = 0; i < count && ret == 0; i++) {
        const json_t *group = NULL;
        ret = read_member(r, obj, where, &table[i], out);
        if (ret < 0 || !*table[i].group)
            continue;
        char name[96];
        PS_IGNORE(snprintf(name, sizeof name, "%s%s%s", where, *where ? "." : "", table[i].group) <
                      0,
                  "short names");
        ret = get_object(r, obj, where, table[i].group, &group);
        if (ret == 0 && group)
            ret = check_keys(r, group, name, table[i].group, NULL, table, count);
    }
    return ret;
}

static int read_int(const struct reader *r, const json_t *obj, const char *where, const char *key,
                    int64_t min, int64_t max, int64_t fallback, int64_t *out)
{
    return within(r, where, key,
                  ps_json_get_int(obj, key, min, max, fallback, r->path, out, r->err));
}

/* A text member; "" when it is absent. */
static int read_text(const struct reader *r, const json_t *obj, const char *where, const char *key,
                     char *out, size_t size)
{
    const char *text;
    int ret = within(r, where, key, ps_json_get_string(obj, key, "", r->path, &text, r->err));
    if (ret < 0)
        return ret;
    if (strlen(text) >= size)
        return bad(r, where, key, "is too long");
    memcpy(out, text, strlen(text) + 1);
    return 0;
}

static int read_gemm(const struct reader *r, const json_t *v, size_t i, struct ps_profile_gemm *g)
{
    static const char *const known[] = {"m", "n", "k", "dtype", NULL};
    char where[32], dtype[8];
    PS_IGNORE(snprintf(where, sizeof where, "gemm[%zu]", i) < 0, "fits");
    if (!json_is_object(v))
        return bad(r, where, "m", "is missing: the entry is not an object");
    int ret = read_members(r, v, where, known, gemm_members, COUNT(gemm_members), g);
    int64_t *const dim[] = {&g->m, &g->n, &g->k};
    for (int d = 0; d < 3 && ret == 0; d++) {
        ret = read_int(r, v, where, known[d], 1, DIM_MAX, 0, dim[d]);
        if (ret == 0 && *dim[d] == 0)
            ret = bad(r, where, known[d], "is missing");
    }
    if (ret == 0)
        ret = read_text(r, v, where, "dtype", dtype, sizeof dtype);
    if (ret < 0)
        return ret;
    if (strcmp(dtype, "bf16") == 0)
        g->dtype = PS_DTYPE_BF16;
    else if (strcmp(dtype, "f32") == 0)
        g->dtype = PS_DTYPE_F32;
    else if (strcmp(dtype, "f16") == 0)
        g->dtype = PS_DTYPE_F16;
    else
        return bad(r, where, "dtype", "is none of bf16, f16, f32");
    return 0;
}

static int read_disk(const struct reader *r, const json_t *v, size_t i, struct ps_profile_disk *d)
{
    static const char *const known[] = {"path", "depth", "chunk_bytes", NULL};
    char where[32];
    int64_t n = 0;
    PS_IGNORE(snprintf(where, sizeof where, "disk[%zu]", i) < 0, "fits");
    if (!json_is_object(v))
        return bad(r, where, "read", "is missing: the entry is not an object");
    int ret = read_members(r, v, where, known, disk_members, COUNT(disk_members), d);
    if (ret == 0)
        ret = read_text(r, v, where, "path", d->path, sizeof d->path);
    if (ret == 0)
        ret = read_int(r, v, where, "depth", 0, 4096, 0, &n);
    d->depth = (uint32_t)n;
    if (ret == 0)
        ret = read_int(r, v, where, "chunk_bytes", 0, 1 << 30, 0, &n);
    d->chunk_bytes = (uint32_t)n;
    return ret;
}

static int get_array(const struct reader *r, const json_t *root, const char *key, size_t min,
                     size_t max, const json_t **out)
{
    const json_t *v = json_object_get(root, key);
    if (!json_is_array(v))
        return bad(r, "", key, v ? "is not an array" : "is missing");
    if (json_array_size(v) < min)
        return bad(r, "", key, "has no entry");
    if (json_array_size(v) > max)
        return bad(r, "", key, "has too many entries");
    *out = v;
    return 0;
}

static int read_memory(const struct reader *r, const json_t *root, struct ps_profile *p)
{
    static const char *const known[] = {"host", "device", NULL};
    const json_t *m = NULL;
    int64_t host = 0, device = 0;
    int ret = get_object(r, root, "", "memory", &m);
    if (ret < 0 || !m)
        return ret;
    ret = check_keys(r, m, "memory", "", known, NULL, 0);
    if (ret == 0)
        ret = read_int(r, m, "memory", "host", 0, BYTES_MAX, 0, &host);
    if (ret == 0)
        ret = read_int(r, m, "memory", "device", 0, BYTES_MAX, 0, &device);
    p->host_memory = (uint64_t)host;
    p->device_memory = (uint64_t)device;
    return ret;
}

static int read_head(const struct reader *r, const json_t *root, struct ps_profile *p)
{
    int64_t n = 0;
    if (!json_is_object(root))
        return bad(r, "", "version", "is missing: the file is not a JSON object");
    int ret = read_int(r, root, "", "version", 0, INT32_MAX, 0, &n);
    if (ret < 0)
        return ret;
    if (n != 1)
        return bad(r, "", "version",
                   n ? "is not 1, the one that this program reads" : "is missing");
    p->version = 1;
    ret = read_text(r, root, "", "machine", p->machine, sizeof p->machine);
    if (ret == 0)
        ret = read_text(r, root, "", "device", p->device, sizeof p->device);
    if (ret == 0 && !*p->device)
        memcpy(p->device, "cpu", sizeof "cpu");
    if (ret == 0 && strcmp(p->device, "cpu") != 0 && strcmp(p->device, "cuda") != 0)
        ret = bad(r, "", "device", "is neither cpu nor cuda");
    if (ret == 0)
        ret = read_int(r, root, "", "threads", 1, 65536, 1, &n);
    p->threads = (int)n;
    return ret;
}

static int read_profile(const struct reader *r, const json_t *root, struct ps_profile *p)
{
    static const char *const known[] = {"version", "machine", "device", "threads",
                                        "memory",  "gemm",    "disk",   NULL};
    const json_t *list = NULL;
    int ret = read_head(r, root, p);
    if (ret == 0)
        ret = read_members(r, root, "", known, profile_members, COUNT(profile_members), p);
    if (ret == 0)
        ret = read_memory(r, root, p);
    if (ret == 0)
        ret = get_array(r, root, "gemm", 1, PS_PROFILE_GEMM_MAX, &list);
    for (size_t i = 0; ret == 0 && i < json_array_size(list); i++, p->gemm_count++)
        ret = read_gemm(r, json_array_get(list, i), i, &p->gemm[i]);
    if (ret == 0)
        ret = get_array(r, root, "disk", 1, PS_PROFILE_DISK_MAX, &list);
    for (size_t i = 0; ret == 0 && i < json_array_size(list); i++, p->disk_count++)
        ret = read_disk(r, json_array_get(list, i), i, &p->disk[i]);
    if (ret == 0 && strcmp(p->device, "cuda") == 0 && !(p->copy_h2d > 0 && p->copy_d2h > 0))
        ret = bad(r, "copy", p->copy_h2d > 0 ? "d2h" : "h2d", "is missing: the device is cuda");
    return ret;
}

static int read_root(struct ps_profile *out, const json_t *root, const char *file,
                     struct ps_error *err)
{
    struct reader r = {.path = file, .err = err};
    struct ps_profile *p = calloc(1, sizeof *p);
    int ret = p ? read_profile(&r, root, p) : ps_error_set(err, -ENOMEM, "out of memory");
    if (ret == 0)
        *out = *p;
    free(p);
    return ret;
}

int ps_profile_parse(struct ps_profile *out, const char *text, size_t len, const char *file,
                     struct ps_error *err)
{
    json_t *root;
    int ret = ps_json_parse(text, len, PS_JSON_STRICT, file, &root, err);
    if (ret < 0)
        return ps_error_advice(err, ret, ADVICE);
    ret = read_root(out, root, file, err);
    json_decref(root);
    return ret;
}

int ps_profile_load(struct ps_profile *out, const char *path, struct ps_error *err)
{
    json_t *root;
    int ret = ps_json_load(path, FILE_BYTES_MAX, &root, err);
    if (ret < 0)
        return ps_error_advice(err, ret, ADVICE);
    ret = read_root(out, root, path, err);
    json_decref(root);
    return ret;
}

/* --- writing --- */

/* The shortest decimal that reads back as the same number. */
static void put_real(FILE *f, double value)
{
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        PS_IGNORE(snprintf(text, sizeof text, "%.*g", digits, value) < 0, "fits");
        if (strtod(text, NULL) == value)
            break;
    }
    for (char *c = text; *c; c++)
        if (!strchr("+-.0123456789einfa", *c))
            *c = '.'; /* the locale's decimal point */
    PS_IGNORE(fputs(text, f) < 0, "memory stream: ferror tells");
}

static void put_text(FILE *f, const char *text)
{
    char quoted[6 * 256 + 2];
    size_t len = 0;
    bool fits = ps_json_quote(quoted, sizeof quoted, &len, text, strlen(text));
    PS_IGNORE(fits && fwrite(quoted, 1, len, f) != len, "memory stream: ferror tells");
}

/* `, "key": value` for the members of a group that lie in the struct. */
static void put_group(FILE *f, const char *group, const struct member *table, size_t count,
                      const void *in)
{
    const char *comma = "";
    for (size_t i = 0; i < count; i++) {
        if (strcmp(table[i].group, group) != 0)
            continue;
        double value;
        memcpy(&value, (const char *)in + table[i].offset, sizeof value);
        fprintf(f, "%s\"%s\": ", comma, table[i].key);
        put_real(f, value);
        comma = ", ";
    }
}

static const char *gemm_dtype(enum ps_dtype t)
{
    return t == PS_DTYPE_BF16 ? "bf16" : t == PS_DTYPE_F16 ? "f16" : "f32";
}

static void put_profile(FILE *f, const struct ps_profile *p)
{
    static const char *const groups[] = {"attention", "copy", "cpu_optim", "interference",
                                         "overhead"};
    fprintf(f, "{\n  \"version\": 1,\n  \"machine\": ");
    put_text(f, p->machine);
    fprintf(f, ",\n  \"device\": ");
    put_text(f, p->device);
    fprintf(f, ",\n  \"threads\": %d,\n", p->threads);
    fprintf(f, "  \"memory\": {\"host\": %llu, \"device\": %llu},\n  \"gemm\": [",
            (unsigned long long)p->host_memory, (unsigned long long)p->device_memory);
    for (int i = 0; i < p->gemm_count; i++) {
        const struct ps_profile_gemm *g = &p->gemm[i];
        fprintf(f, "%s\n    {\"m\": %lld, \"n\": %lld, \"k\": %lld, \"dtype\": \"%s\", \"flops\": ",
                i ? "," : "", (long long)g->m, (long long)g->n, (long long)g->k,
                gemm_dtype(g->dtype));
        put_real(f, g->flops);
        fprintf(f, "}");
    }
    fprintf(f, "\n  ],\n  \"disk\": [");
    for (int i = 0; i < p->disk_count; i++) {
        const struct ps_profile_disk *d = &p->disk[i];
        fprintf(f, "%s\n    {\"path\": ", i ? "," : "");
        put_text(f, d->path);
        fprintf(f, ", ");
        put_group(f, "", disk_members, COUNT(disk_members), d);
        fprintf(f, ",\n     \"mixed\": {");
        put_group(f, "mixed", disk_members, COUNT(disk_members), d);
        fprintf(f, "}, \"sustained\": {");
        put_group(f, "sustained", disk_members, COUNT(disk_members), d);
        fprintf(f, "},\n     \"depth\": %u, \"chunk_bytes\": %u}", d->depth, d->chunk_bytes);
    }
    fprintf(f, "\n  ]");
    for (size_t i = 0; i < COUNT(groups); i++) {
        fprintf(f, ",\n  \"%s\": {", groups[i]);
        put_group(f, groups[i], profile_members, COUNT(profile_members), p);
        fprintf(f, "}");
    }
    fprintf(f, "\n}\n");
}

/* A figure that ps_profile_load would refuse is a mistake of whoever measured it. */
static int check_figures(const struct member *table, size_t count, const void *in, const char *path,
                         struct ps_error *err)
{
    for (size_t i = 0; i < count; i++) {
        double value;
        memcpy(&value, (const char *)in + table[i].offset, sizeof value);
        if (!(value >= table[i].min && value <= table[i].max))
            return ps_error_full(err, PS_ENUMERIC, path, table[i].key, NULL,
                                 "hardware profile: %s %s is %g, must be between %g and %g",
                                 table[i].group, table[i].key, value, table[i].min, table[i].max);
    }
    return 0;
}

int ps_profile_print(const struct ps_profile *p, char **text, size_t *len, struct ps_error *err)
{
    char *out = NULL;
    FILE *f = open_memstream(&out, len);
    if (!f)
        return ps_error_set(err, -ENOMEM, "out of memory");
    put_profile(f, p);
    int failed = ferror(f);
    failed |= fclose(f);
    if (failed) {
        free(out);
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    *text = out;
    return 0;
}

int ps_profile_save(const struct ps_profile *p, const char *path, struct ps_error *err)
{
    char *text;
    size_t len;
    int ret = check_figures(profile_members, COUNT(profile_members), p, path, err);
    for (int i = 0; i < p->disk_count && ret == 0; i++)
        ret = check_figures(disk_members, COUNT(disk_members), &p->disk[i], path, err);
    for (int i = 0; i < p->gemm_count && ret == 0; i++)
        ret = check_figures(gemm_members, COUNT(gemm_members), &p->gemm[i], path, err);
    if (ret == 0)
        ret = ps_profile_print(p, &text, &len, err);
    if (ret < 0)
        return ret;
    ret = ps_file_write(path, text, len, err);
    free(text);
    return ret;
}
