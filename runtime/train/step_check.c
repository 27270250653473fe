/* Does a segment compute the right thing? Runs it symbolically, in program order, over two periods:
 * each buffer holds the name of a value, each task wants certain values and makes others. Race
 * freedom (ps_schedule_validate) then says that every order which the schedule allows gives the
 * same. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/step_internal.h"

/* Values: a boundary (layer, micro), a unit's weights, a saved set, a gradient of a boundary. */
#define NOTHING (-1)

struct flow {
    const struct ps_step_shape *p;
    const struct ps_step_layout *l;
    const struct ps_step_map *m;
    enum ps_segment segment;
    struct ps_error *err;
    /* boundary numbers: layer * micros + micro */
    int64_t *x, *host_x, *disk_x, *saved, *dx;
    int64_t *host_saved, *disk_saved;
    int64_t rest;        /* the set whose rest the shared piece holds */
    int64_t *slot, *raw; /* source numbers */
    int64_t *batch;      /* (micros) discrete: period whose micro-batch the device has */
    int64_t *state;      /* granules */
    int64_t *image;      /* (2, pairs + 1) without gradients: whose images are there (the second
                            half: on the host) ... */
    uint32_t *parts;     /* ... and how many parts of them */
    int64_t *embedded;   /* (micros) blocks of the embedding that have been looked up */
    int64_t micros, period;
};

static int64_t boundary(const struct flow *f, int32_t layer, int32_t micro)
{
    return (int64_t)layer * f->micros + micro;
}

static int wrong(const struct flow *f, const struct ps_task *t, const char *what)
{
    return ps_error_full(f->err, PS_EUSAGE, NULL, "tasks", "keep producers before their consumers",
                         "task %u (%s, unit %d, micro-batch %d) finds another %s than it needs",
                         t->id, ps_task_kind_name(t->kind), t->unit, t->micro, what);
}

static int in_range(const struct flow *f, const struct ps_task *t)
{
    const int64_t limit[PS_ARG_COUNT] = {[PS_ARG_SLOT] = f->l->near_slots,
                                         [PS_ARG_RAW] = f->l->raw_slots,
                                         [PS_ARG_BLOCK] = f->p->source->embed_block_count,
                                         [PS_ARG_X_IN] = f->m->x_count,
                                         [PS_ARG_X_OUT] = f->m->x_count,
                                         [PS_ARG_SAVED] = f->m->saved_count,
                                         [PS_ARG_DX] = f->l->group,
                                         [PS_ARG_HOST_X] = f->m->host_x_count,
                                         [PS_ARG_GRAD] = f->l->grad_slots,
                                         [PS_ARG_GRAD_HOST] = f->l->grad_ring,
                                         [PS_ARG_STATE] = f->l->state_slots,
                                         [PS_ARG_GRANULE] = INT32_MAX,
                                         [PS_ARG_LEVEL] = PS_RECOMPUTE_COUNT,
                                         [PS_ARG_HOST_SAVED] = f->m->host_saved_count,
                                         [PS_ARG_IMAGE] =
                                             f->m->image_pairs + (f->m->image_own_bytes > 0)};
    for (int a = 0; a < PS_ARG_COUNT; a++)
        if (t->arg[a] < -1 || t->arg[a] >= limit[a])
            return ps_error_full(f->err, PS_EUSAGE, NULL, ps_task_arg_name((enum ps_task_arg)a),
                                 NULL, "task %u: %s %d does not exist", t->id,
                                 ps_task_arg_name((enum ps_task_arg)a), t->arg[a]);
    return 0;
}

/* A name for the images of a unit in this period. */
static int64_t image_name(const struct flow *f, int32_t unit)
{
    return f->period * (f->p->n_layer + 2) + ps_step_unit_idx(f->p, unit);
}

/* A part of a unit's images is made, a granule's, or (of -1) all; or they are copied. */
static void make_image(struct flow *f, const struct ps_task *t)
{
    int32_t host = f->m->image_pairs + 1;
    int32_t pair = t->arg[PS_ARG_IMAGE] + (f->l->discrete ? host : 0);
    int64_t name = image_name(f, t->unit);
    if (t->arg[PS_ARG_IMAGE] < 0)
        return;
    if (t->kind == PS_TASK_COPY_PERTURBED) {
        f->image[pair - host] = f->image[pair];
        f->parts[pair - host] = f->parts[pair];
        return;
    }
    f->parts[pair] = f->image[pair] == name ? f->parts[pair] : 0;
    f->image[pair] = name;
    int32_t i = ps_step_unit_idx(f->p, t->unit);
    uint32_t all = f->p->granule_begin ? f->p->granule_begin[i + 1] - f->p->granule_begin[i] : 1;
    f->parts[pair] += t->arg[PS_ARG_GRANULE] < 0 ? all : 1;
}

static int find_image(const struct flow *f, const struct ps_task *t, int32_t unit, int32_t pair)
{
    int32_t i = ps_step_unit_idx(f->p, unit);
    uint32_t all = f->p->granule_begin ? f->p->granule_begin[i + 1] - f->p->granule_begin[i] : 1;
    return f->image[pair] == image_name(f, unit) && f->parts[pair] >= all
               ? 0
               : wrong(f, t, "perturbed weights");
}

static int weights(const struct flow *f, const struct ps_task *t)
{
    int ret = t->arg[PS_ARG_IMAGE] >= 0 ? find_image(f, t, t->unit, t->arg[PS_ARG_IMAGE]) : 0;
    if (ret < 0 || (t->arg[PS_ARG_IMAGE] >= 0 && !f->p->frozen))
        return ret;
    uint32_t number = ps__source_number(f->p, t->unit, t->arg[PS_ARG_BLOCK]);
    bool streamed = f->m->stream_idx[number] >= 0;
    int32_t slot = t->arg[PS_ARG_SLOT];
    if (!streamed)
        return slot < 0 ? 0 : wrong(f, t, "weights");
    return slot >= 0 && f->slot[slot] == (int64_t)number ? 0 : wrong(f, t, "weights");
}

/* The two pieces of a saved set: forward makes both, recomputation one from the other, backward
 * wants both and spoils what it has done with. */
static int saved(struct flow *f, const struct ps_task *t)
{
    int64_t here = boundary(f, t->unit, t->micro);
    int32_t number = t->arg[PS_ARG_SAVED];
    enum ps_recompute level = ps__saved_place(f->p, f->l, f->m, t->unit, number).level;
    int64_t none = here;
    int64_t *kept = number >= 0 ? &f->saved[number] : &none;
    bool eval = f->segment == PS_SEGMENT_EVAL;
    bool drops = level != PS_RECOMPUTE_R0;
    bool again = t->kind == PS_TASK_LAYER_RECOMPUTE;
    if (!eval && f->l->recompute[t->unit] != level && t->unit >= f->p->first_trained)
        return wrong(f, t, "saved set");
    if (again && t->arg[PS_ARG_LEVEL] != (int32_t)level)
        return wrong(f, t, "level");
    if (t->kind != PS_TASK_LAYER_FORWARD && *kept != here)
        return wrong(f, t, "saved set");
    if (t->kind == PS_TASK_LAYER_BACKWARD && drops && f->rest != here)
        return wrong(f, t, "saved set");
    *kept = t->kind == PS_TASK_LAYER_BACKWARD && !drops ? NOTHING : here;
    if (drops)
        f->rest = t->kind == PS_TASK_LAYER_BACKWARD ? NOTHING : here;
    return 0;
}

static int layer(struct flow *f, const struct ps_task *t)
{
    int64_t here = boundary(f, t->unit, t->micro);
    int32_t in = t->arg[PS_ARG_X_IN];
    int ret = weights(f, t);
    if (ret < 0)
        return ret;
    if (in < 0 || f->x[in] != here)
        return wrong(f, t, "input");
    ret = saved(f, t);
    if (ret < 0)
        return ret;
    if (t->kind == PS_TASK_LAYER_BACKWARD) {
        if (t->arg[PS_ARG_DX] < 0 || f->dx[t->arg[PS_ARG_DX]] != boundary(f, t->unit + 1, t->micro))
            return wrong(f, t, "gradient");
        f->dx[t->arg[PS_ARG_DX]] = here;
        return 0;
    }
    if (t->kind == PS_TASK_LAYER_FORWARD) {
        if (t->arg[PS_ARG_X_OUT] < 0)
            return wrong(f, t, "output");
        f->x[t->arg[PS_ARG_X_OUT]] = boundary(f, t->unit + 1, t->micro);
    }
    return 0;
}

/* Complete when every block of the embedding has given its rows. */
static int embed(struct flow *f, const struct ps_task *t)
{
    int64_t *x = &f->x[t->arg[PS_ARG_X_OUT]];
    int64_t *count = &f->embedded[t->micro];
    int64_t partial = NOTHING - 1 - t->micro;
    uint32_t blocks = t->arg[PS_ARG_BLOCK] < 0 ? 1 : f->p->source->embed_block_count;
    if (*count > 0 && *x != partial)
        return wrong(f, t, "input");
    *x = partial;
    if (++*count == (int64_t)blocks) {
        *x = boundary(f, 0, t->micro);
        *count = 0;
    }
    return weights(f, t);
}

/* The micro-batch that a task looks at is that of this period. */
static int batch(const struct flow *f, const struct ps_task *t)
{
    bool looks = t->kind == PS_TASK_EMBED || t->kind == PS_TASK_LAYER_FORWARD ||
                 t->kind == PS_TASK_LAYER_RECOMPUTE || t->kind == PS_TASK_LAYER_BACKWARD ||
                 t->kind == PS_TASK_HEAD || t->kind == PS_TASK_EMBED_BACKWARD;
    bool here = t->micro >= 0 && t->micro < f->micros;
    if ((looks || t->kind == PS_TASK_COPY_BATCH) && !here)
        return wrong(f, t, "micro-batch");
    if (t->kind == PS_TASK_COPY_BATCH)
        f->batch[t->micro] = f->period;
    if (looks && f->l->discrete && f->batch[t->micro] != f->period)
        return wrong(f, t, "micro-batch");
    return 0;
}

static int64_t *value(int64_t *array, const struct ps_task *t, enum ps_task_arg a)
{
    return t->arg[a] >= 0 ? &array[t->arg[a]] : NULL;
}

/* From one place of a boundary or kept piece to another. */
static int spill(struct flow *f, const struct ps_task *t)
{
    int64_t here = boundary(f, t->unit, t->micro);
    bool kept = ps__moves_saved(t);
    int64_t *host =
        kept ? value(f->host_saved, t, PS_ARG_HOST_SAVED) : value(f->host_x, t, PS_ARG_HOST_X);
    int64_t *in = kept ? value(f->saved, t, PS_ARG_SAVED) : value(f->x, t, PS_ARG_X_IN);
    int64_t *out = kept ? in : value(f->x, t, PS_ARG_X_OUT);
    int64_t *disk = kept ? f->disk_saved : f->disk_x;
    int64_t *from;
    int64_t *to;
    switch (t->kind) {
    case PS_TASK_SPILL_OUT:
        from = in;
        to = host;
        break;
    case PS_TASK_SPILL_WRITE:
        from = host ? host : in;
        to = &disk[here];
        break;
    case PS_TASK_SPILL_READ:
        from = &disk[here];
        to = host ? host : out;
        break;
    default:
        from = host;
        to = out;
    }
    if (!from || !to || *from != here)
        return wrong(f, t, kept ? "saved set" : "boundary");
    *to = here;
    return 0;
}

static int move_weights(struct flow *f, const struct ps_task *t)
{
    int64_t number = ps__source_number(f->p, t->unit, t->arg[PS_ARG_BLOCK]);
    int32_t raw = t->arg[PS_ARG_RAW];
    int32_t slot = t->arg[PS_ARG_SLOT];
    bool copy = t->kind == PS_TASK_COPY_WEIGHTS;
    if (copy && raw >= 0 && f->raw[raw] != number)
        return wrong(f, t, "weights");
    if (!copy && raw >= 0)
        f->raw[raw] = number;
    else if (slot >= 0)
        f->slot[slot] = number;
    else if (!copy || f->m->stream_idx[number] >= 0) /* a pinned unit is copied after its update */
        return wrong(f, t, "weights");
    return 0;
}

/* States of the first updates in a pass are those that the pass before has read. */
static int update(struct flow *f, const struct ps_task *t)
{
    int32_t place = t->arg[PS_ARG_STATE];
    if (t->kind == PS_TASK_UPDATE_HOST)
        make_image(f, t);
    if (place < 0)
        return 0;
    bool first = f->period == 0 && f->state[place] == NOTHING;
    return first || f->state[place] == t->arg[PS_ARG_GRANULE] ? 0 : wrong(f, t, "optimizer state");
}

/* The head's own images, and those of an embedding that it shares. */
static int head_images(const struct flow *f, const struct ps_task *t)
{
    int ret = t->arg[PS_ARG_IMAGE] >= 0 ? find_image(f, t, t->unit, t->arg[PS_ARG_IMAGE]) : 0;
    if (ret == 0 && f->m->image_own_bytes > 0)
        ret = find_image(f, t, PS_UNIT_EMBED, f->m->image_pairs);
    return ret;
}

static int step(struct flow *f, const struct ps_task *t)
{
    int ret = in_range(f, t);
    if (ret == 0)
        ret = batch(f, t);
    if (ret < 0)
        return ret;
    switch (t->kind) {
    case PS_TASK_EMBED:
        return embed(f, t);
    case PS_TASK_LAYER_FORWARD:
    case PS_TASK_LAYER_RECOMPUTE:
    case PS_TASK_LAYER_BACKWARD:
        return layer(f, t);
    case PS_TASK_HEAD:
        if (f->x[t->arg[PS_ARG_X_IN]] != boundary(f, f->p->n_layer, t->micro))
            return wrong(f, t, "input");
        if (f->p->zeroth && f->segment == PS_SEGMENT_TRAIN)
            return head_images(f, t);
        if (f->segment != PS_SEGMENT_EVAL)
            f->dx[t->arg[PS_ARG_DX]] = boundary(f, f->p->n_layer, t->micro);
        return weights(f, t);
    case PS_TASK_EMBED_BACKWARD:
        return f->dx[t->arg[PS_ARG_DX]] == boundary(f, 0, t->micro) ? 0 : wrong(f, t, "gradient");
    case PS_TASK_READ_STATE:
        if (t->arg[PS_ARG_STATE] < 0)
            return wrong(f, t, "place for an optimizer state");
        f->state[t->arg[PS_ARG_STATE]] = t->arg[PS_ARG_GRANULE];
        return 0;
    case PS_TASK_UPDATE_HOST:
    case PS_TASK_WRITE_STATE:
        return update(f, t);
    case PS_TASK_READ_WEIGHTS:
    case PS_TASK_COPY_WEIGHTS:
        return move_weights(f, t);
    case PS_TASK_SPILL_OUT:
    case PS_TASK_SPILL_WRITE:
    case PS_TASK_SPILL_READ:
    case PS_TASK_SPILL_IN:
        return spill(f, t);
    case PS_TASK_PERTURB:
    case PS_TASK_COPY_PERTURBED:
        make_image(f, t);
        return 0;
    default:
        return 0;
    }
}

static int64_t *values(size_t count)
{
    int64_t *v = malloc((count + 1) * sizeof *v);
    for (size_t i = 0; v && i < count; i++)
        v[i] = NOTHING;
    return v;
}

/* What the slots hold when the first period begins comes from the prologue; then two periods. */
static int run(struct flow *f, const struct ps_schedule *s, const struct ps_schedule *prologue)
{
    int ret = 0;
    for (uint32_t i = 0; ret == 0 && prologue && i < prologue->task_count; i++)
        ret = step(f, &prologue->task[i]);
    for (f->period = 0; f->period < 2; f->period++)
        for (uint32_t i = 0; ret == 0 && i < s->task_count; i++)
            ret = step(f, &s->task[i]);
    return ret;
}

int ps_step_check(const struct ps_schedule *s, const struct ps_schedule *prologue,
                  enum ps_segment segment, const struct ps_step_shape *shape,
                  const struct ps_step_layout *layout, const struct ps_step_map *map,
                  struct ps_error *err)
{
    struct flow f = {.p = shape,
                     .l = layout,
                     .m = map,
                     .segment = segment,
                     .err = err,
                     .micros = layout->group,
                     .rest = NOTHING};
    if (layout->eval_group > layout->group)
        f.micros = layout->eval_group;
    size_t boundaries = ((size_t)shape->n_layer + 1) * (size_t)f.micros;
    f.x = values((size_t)map->x_count);
    f.host_x = values((size_t)map->host_x_count);
    f.disk_x = values(boundaries);
    f.saved = values((size_t)map->saved_count);
    f.host_saved = values((size_t)map->host_saved_count);
    f.disk_saved = values(boundaries);
    f.dx = values((size_t)layout->group);
    f.slot = values((size_t)layout->near_slots);
    f.raw = values((size_t)layout->raw_slots);
    f.state = values((size_t)layout->state_slots);
    f.batch = values((size_t)f.micros);
    f.image = values(2 * ((size_t)map->image_pairs + 1));
    f.parts = calloc(2 * ((size_t)map->image_pairs + 1), sizeof *f.parts);
    f.embedded = calloc((size_t)f.micros + 1, sizeof *f.embedded);
    int ret = -ENOMEM;
    if (f.x && f.host_x && f.disk_x && f.saved && f.host_saved && f.disk_saved && f.dx && f.slot &&
        f.raw && f.batch && f.state && f.embedded && f.image && f.parts)
        ret = run(&f, s, prologue);
    else
        ps_error_set(err, ret, "out of memory");
    free(f.x);
    free(f.host_x);
    free(f.disk_x);
    free(f.saved);
    free(f.host_saved);
    free(f.disk_saved);
    free(f.dx);
    free(f.slot);
    free(f.raw);
    free(f.state);
    free(f.batch);
    free(f.embedded);
    free(f.image);
    free(f.parts);
    return ret;
}
