/* The placement file: see planner.h.
 *
 * What is read is another person's file: every member is checked by type and range, the lengths of
 * the lists against the model, unknown members are refused by name. What the parts mean together
 * (x_ring against group, slots for streamed weights) is checked where every layout is, in
 * ps_step_map_create. */
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "offload/planner.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"

#define PLACEMENT_VERSION 1
#define FILE_BYTES_MAX ((size_t)4 << 20)
#define COUNT_MAX (1 << 16) /* times any number of layers, buffers are still counted in 32 bits */

struct reader {
    const char *path;
    const struct ps_step_shape *shape;
    bool discrete;
    struct ps_error *err;
};

static int bad(const struct reader *r, const char *field, const char *fmt, ...) PS_PRINTF(3, 4);
static int bad(const struct reader *r, const char *field, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return ps_error_full(r->err, PS_EFORMAT, r->path, field,
                         "`penstock plan --json` prints a placement of the right form", "%s", text);
}

static int known_keys(const struct reader *r, const json_t *obj, const char *const *key,
                      const char *where)
{
    const char *name;
    const json_t *value;
    json_object_foreach((json_t *)obj, name, value)
    {
        int i = 0;
        while (key[i] && strcmp(key[i], name) != 0)
            i++;
        if (!key[i])
            return bad(r, where, "'%.64s' is no member of a placement", name);
    }
    return 0;
}

/* A tier's name as it stands. */
static int read_name(const struct reader *r, const json_t *v, const char *field, enum ps_tier *out)
{
    const char *name = json_string_value(v);
    for (int t = 0; name && t < PS_TIER_COUNT; t++) {
        if (strcmp(name, ps_tier_name((enum ps_tier)t)) != 0)
            continue;
        *out = (enum ps_tier)t;
        return 0;
    }
    return name ? bad(r, field, "'%.32s' is no tier: device, host or disk", name)
                : bad(r, field, "a tier must be a string: device, host or disk");
}

/* One that the device has: of one memory, where compute reads is the host. */
static int read_tier(const struct reader *r, const json_t *v, const char *field, enum ps_tier *out)
{
    int ret = read_name(r, v, field, out);
    if (ret == 0 && *out == PS_TIER_HOST && !r->discrete)
        *out = PS_TIER_DEVICE;
    return ret;
}

static int read_list(const struct reader *r, const json_t *obj, const char *key, const json_t **out)
{
    const json_t *list = json_object_get(obj, key);
    if (!json_is_array(list))
        return bad(r, key, "'%s' must be a list with one element a layer", key);
    if (json_array_size(list) != (size_t)r->shape->n_layer)
        return bad(r, key, "'%s' has %zu elements, but the model has %d layers", key,
                   json_array_size(list), r->shape->n_layer);
    *out = list;
    return 0;
}

typedef int (*read_tier_fn)(const struct reader *r, const json_t *v, const char *field,
                            enum ps_tier *out);

/* A tier a unit: {"embed":..,"layers":[..],"head":..}. */
static int read_units(const struct reader *r, const json_t *root, const char *key,
                      read_tier_fn read, enum ps_tier *tier)
{
    static const char *const keys[] = {"embed", "layers", "head", NULL};
    const json_t *w = json_object_get(root, key);
    const json_t *layers;
    int32_t n = r->shape->n_layer;
    char field[48];
    if (!json_is_object(w))
        return bad(r, key, "'%s' must be an object", key);
    int ret = known_keys(r, w, keys, key);
    snprintf(field, sizeof field, "%s.embed", key);
    if (ret == 0)
        ret = read(r, json_object_get(w, "embed"), field, &tier[0]);
    snprintf(field, sizeof field, "%s.head", key);
    if (ret == 0)
        ret = read(r, json_object_get(w, "head"), field, &tier[n + 1]);
    if (ret == 0)
        ret = read_list(r, w, "layers", &layers);
    for (int32_t i = 0; ret == 0 && i < n; i++) {
        snprintf(field, sizeof field, "%s.layers[%d]", key, i);
        ret = read(r, json_array_get(layers, (size_t)i), field, &tier[i + 1]);
    }
    return ret;
}

/* true: all is kept (R0), false: nothing (R4), or a level by its name. */
static int read_keep(const struct reader *r, const json_t *v, const char *field,
                     enum ps_recompute *out)
{
    const char *name = json_string_value(v);
    int level = 0;
    while (name && level < PS_RECOMPUTE_COUNT &&
           strcmp(name, ps_recompute_name((enum ps_recompute)level)) != 0)
        level++;
    if (json_is_boolean(v))
        level = json_is_true(v) ? PS_RECOMPUTE_R0 : PS_RECOMPUTE_R4;
    else if (!name || level == PS_RECOMPUTE_COUNT)
        return bad(r, field, "'keep' must be true, false, or a level: R0, R1, R2, R3 or R4");
    *out = (enum ps_recompute)level;
    return 0;
}

static json_t *keep_json(enum ps_recompute level)
{
    if (level == PS_RECOMPUTE_R0 || level == PS_RECOMPUTE_R4)
        return json_boolean(level == PS_RECOMPUTE_R0);
    return json_string(ps_recompute_name(level));
}

static int read_activations(const struct reader *r, const json_t *root, struct ps_step_layout *l)
{
    static const char *const keys[] = {"keep", "saved", "boundary", NULL};
    const json_t *list;
    int ret = read_list(r, root, "activations", &list);
    for (int32_t i = 0; ret == 0 && i < r->shape->n_layer; i++) {
        const json_t *a = json_array_get(list, (size_t)i);
        char field[48];
        snprintf(field, sizeof field, "activations[%d]", i);
        if (!json_is_object(a))
            return bad(r, field, "must be an object with keep and boundary");
        ret = known_keys(r, a, keys, field);
        if (ret == 0)
            ret = read_keep(r, json_object_get(a, "keep"), field, &l->recompute[i]);
        if (ret == 0 && json_object_get(a, "saved"))
            ret = read_tier(r, json_object_get(a, "saved"), field, &l->saved[i]);
        if (ret == 0)
            ret = read_tier(r, json_object_get(a, "boundary"), field, &l->boundary[i]);
    }
    return ret;
}

static int read_count(const struct reader *r, const json_t *root, const char *key, int32_t min,
                      int32_t fallback, int32_t *out)
{
    int64_t v;
    int ret = ps_json_get_int(root, key, min, COUNT_MAX, fallback, r->path, &v, r->err);
    if (ret == 0)
        *out = (int32_t)v;
    return ret;
}

/* On the host states are updated where compute reads, without a device memory; gradients are made
 * near and may be kept on the host there too. */
static int read_update(const struct reader *r, const json_t *root, struct ps_step_layout *l)
{
    const char *name;
    int ret = ps_json_get_string(root, "update", ps_update_when_name(PS_UPDATE_RESIDENT), r->path,
                                 &name, r->err);
    int when = 0;
    while (ret == 0 && when < PS_UPDATE_WHEN_COUNT &&
           strcmp(name, ps_update_when_name((enum ps_update_when)when)) != 0)
        when++;
    if (ret < 0)
        return ret;
    if (when == PS_UPDATE_WHEN_COUNT)
        return bad(r, "update", "there is no time of update '%.64s'", name);
    l->update = (enum ps_update_when)when;
    ret = read_count(r, root, "image_pairs", 0, 0, &l->image_pairs);
    if (ret < 0 || l->update == PS_UPDATE_RESIDENT)
        return ret;
    ret = read_count(r, root, "deferred", 0, 0, &l->deferred);
    if (ret == 0)
        ret = ps_json_get_bool(root, "ends_own", false, r->path, &l->ends_own, r->err);
    if (ret == 0)
        ret = read_units(r, root, "optimizer", read_tier, l->state);
    if (ret == 0)
        ret = read_units(r, root, "gradients", read_name, l->grad);
    if (ret == 0)
        ret = read_count(r, root, "grad_slots", 0, 0, &l->grad_slots);
    if (ret == 0)
        ret = read_count(r, root, "grad_ring", 0, 0, &l->grad_ring);
    if (ret == 0)
        ret = read_count(r, root, "state_slots", 0, 0, &l->state_slots);
    return ret;
}

static int read_root(const struct reader *r, const json_t *root, struct ps_step_layout *l)
{
    static const char *const keys[] = {
        "version",   "strategy",  "group",       "eval_group", "near_slots",  "raw_slots",
        "x_ring",    "host_ring", "interleave",  "weights",    "activations", "update",
        "optimizer", "gradients", "grad_slots",  "grad_ring",  "state_slots", "saved_ring",
        "deferred",  "ends_own",  "image_pairs", NULL};
    int64_t version;
    const char *name;
    if (!json_is_object(root))
        return bad(r, NULL, "a placement must be an object");
    int ret = ps_json_get_int(root, "version", 1, INT32_MAX, 0, r->path, &version, r->err);
    if (ret < 0)
        return ret;
    if (version != PLACEMENT_VERSION)
        return bad(r, "version", "version %lld of the placement file is not known to this program",
                   (long long)version);
    ret = known_keys(r, root, keys, NULL);
    if (ret == 0)
        ret = ps_json_get_string(root, "strategy", "", r->path, &name, r->err);
    const struct ps_strategy *s = ret == 0 ? ps_strategy_find(name) : NULL;
    if (ret == 0 && !s)
        return bad(r, "strategy", "there is no strategy '%.64s'", name);
    if (ret == 0) {
        l->strategy = s->name;
        ret = read_count(r, root, "group", 1, 1, &l->group);
    }
    if (ret == 0)
        ret = read_count(r, root, "eval_group", 1, 1, &l->eval_group);
    if (ret == 0)
        ret = read_count(r, root, "near_slots", 0, 0, &l->near_slots);
    if (ret == 0)
        ret = read_count(r, root, "raw_slots", 0, 0, &l->raw_slots);
    if (ret == 0)
        ret = read_count(r, root, "interleave", 0, 0, &l->interleave);
    if (ret == 0)
        ret = read_count(r, root, "x_ring", 1, l->group, &l->x_ring);
    if (ret == 0)
        ret = read_count(r, root, "host_ring", 0, r->discrete ? 2 : 0, &l->host_ring);
    if (ret == 0)
        ret = read_count(r, root, "saved_ring", 0, 0, &l->saved_ring);
    if (ret == 0)
        ret = read_units(r, root, "weights", read_tier, l->weight);
    if (ret == 0)
        ret = read_activations(r, root, l);
    return ret == 0 ? read_update(r, root, l) : ret;
}

int ps_placement_parse(struct ps_step_layout *out, const char *text, size_t len, const char *file,
                       const struct ps_step_shape *shape, bool discrete, struct ps_error *err)
{
    struct reader r = {file, shape, discrete, err};
    struct ps_step_layout l;
    struct ps_step_map map;
    json_t *root = NULL;
    int ret = ps_json_parse(text, len, PS_JSON_STRICT, file, &root, err);
    if (ret < 0)
        return ret;
    ret = ps_step_layout_init(&l, shape);
    if (ret < 0) {
        json_decref(root);
        return ps_error_set(err, ret, "out of memory");
    }
    l.discrete = discrete;
    /* what holds a placement: plan.json, or what plan --json prints */
    const json_t *inner = json_object_get(root, "placement");
    ret = read_root(&r, inner ? inner : root, &l);
    json_decref(root);
    if (ret == 0) {
        l.clip = PS_CLIP_NONE; /* asks the least; the planner knows which it is */
        ret = ps_step_map_create(&map, shape, &l, err); /* what the parts mean together */
        l.clip = PS_CLIP_EXACT;
        if (ret == 0)
            ps_step_map_fini(&map);
        else
            ps_error_file(err, ret, file);
    }
    if (ret < 0)
        ps_step_layout_fini(&l);
    else
        *out = l;
    return ret;
}

int ps_placement_load(struct ps_step_layout *out, const char *path,
                      const struct ps_step_shape *shape, bool discrete, struct ps_error *err)
{
    char *text;
    size_t len;
    int ret = ps_file_read(path, FILE_BYTES_MAX, &text, &len, err);
    if (ret < 0)
        return ret;
    ret = ps_placement_parse(out, text, len, path, shape, discrete, err);
    free(text);
    return ret;
}

/* The tier as the file says it: on a device without memory of its own, all memory is the host's. */
static const char *tier_text(const struct ps_step_layout *l, enum ps_tier t)
{
    return ps_tier_name(t == PS_TIER_DEVICE && !l->discrete ? PS_TIER_HOST : t);
}

/* {"embed":..,"layers":[..],"head":..}; near: what tier DEVICE is called. */
static json_t *units_json(const struct ps_step_shape *shape, const enum ps_tier *tier,
                          const char *near)
{
    json_t *layers = json_array();
    int failed = 0;
    const char *name[PS_TIER_COUNT] = {near, ps_tier_name(PS_TIER_HOST),
                                       ps_tier_name(PS_TIER_DISK)};
    for (int32_t i = 0; i < shape->n_layer; i++)
        failed |= json_array_append_new(layers, json_string(name[tier[i + 1]]));
    json_t *o = json_pack("{s:s,s:o,s:s}", "embed", name[tier[0]], "layers", layers, "head",
                          name[tier[shape->n_layer + 1]]);
    if (failed) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static int add_update_json(json_t *root, const struct ps_step_layout *l,
                           const struct ps_step_shape *shape)
{
    const char *near = tier_text(l, PS_TIER_DEVICE);
    int failed = json_object_set_new(root, "update", json_string(ps_update_when_name(l->update)));
    if (shape->zeroth)
        failed |= json_object_set_new(root, "image_pairs", json_integer(l->image_pairs));
    if (l->update == PS_UPDATE_RESIDENT)
        return failed;
    failed |= json_object_set_new(root, "deferred", json_integer(l->deferred));
    failed |= json_object_set_new(root, "ends_own", json_boolean(l->ends_own));
    failed |= json_object_set_new(root, "optimizer", units_json(shape, l->state, near));
    failed |= json_object_set_new(root, "gradients", units_json(shape, l->grad, "device"));
    failed |= json_object_set_new(root, "grad_slots", json_integer(l->grad_slots));
    failed |= json_object_set_new(root, "grad_ring", json_integer(l->grad_ring));
    return failed | json_object_set_new(root, "state_slots", json_integer(l->state_slots));
}

/* {"keep":..,"boundary":..}, and "saved" where what is kept is moved. */
static json_t *activation_json(const struct ps_step_layout *l, int32_t layer)
{
    json_t *o = json_pack("{s:o,s:s}", "keep", keep_json(l->recompute[layer]), "boundary",
                          tier_text(l, l->boundary[layer]));
    if (o && l->saved[layer] != PS_TIER_DEVICE &&
        json_object_set_new(o, "saved", json_string(tier_text(l, l->saved[layer])))) {
        json_decref(o);
        return NULL;
    }
    return o;
}

json_t *ps_placement_json(const struct ps_step_layout *l, const struct ps_step_shape *shape)
{
    json_t *activations = json_array();
    int failed = 0;
    for (int32_t i = 0; i < shape->n_layer; i++)
        failed |= json_array_append_new(activations, activation_json(l, i));
    json_t *root = json_pack(
        "{s:i,s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:o,s:o}", "version", PLACEMENT_VERSION, "strategy",
        l->strategy, "group", l->group, "eval_group", l->eval_group, "near_slots", l->near_slots,
        "raw_slots", l->raw_slots, "x_ring", l->x_ring, "host_ring", l->host_ring, "interleave",
        l->interleave, "weights", units_json(shape, l->weight, tier_text(l, PS_TIER_DEVICE)),
        "activations", activations);
    if (root && l->saved_ring > 0)
        failed |= json_object_set_new(root, "saved_ring", json_integer(l->saved_ring));
    if (root)
        failed |= add_update_json(root, l, shape);
    if (failed) {
        json_decref(root);
        return NULL;
    }
    return root;
}

int ps_placement_save(const struct ps_step_layout *l, const struct ps_step_shape *shape,
                      const char *path, struct ps_error *err)
{
    json_t *root = ps_placement_json(l, shape);
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (!text)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = ps_file_write(path, text, strlen(text), err);
    free(text);
    return ret;
}
