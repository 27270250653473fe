/* The store from the caller's thread: filling it, loading from it, single parts of tensors, and
 * commits of runs that keep their states in memory. No lane works meanwhile. See trainer.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/checked.h"
#include "runtime/model/weights.h"
#include "runtime/train/trainer_internal.h"

#define PAGE ((size_t)4096)

const struct ps_store_extent *ps_trainer_store_extents(const struct ps_trainer *t, uint32_t *count)
{
    *count = 2 * ((uint32_t)t->cfg.n_layer + 2);
    return t->extent;
}

void ps_trainer_set_store(struct ps_trainer *t, struct ps_state_store *store)
{
    assert(!t->committed || !t->map.stored); /* nothing of the steps is there */
    t->store = store;
}

static bool state_on_disk(const struct ps_trainer *t, int32_t i)
{
    return ps__trainer_streams(t) && t->layout.state[i] == PS_TIER_DISK;
}

bool ps__trainer_from_store(const struct ps_trainer *t)
{
    if (!ps__trainer_streams(t) || !t->store)
        return false;
    if (t->store->ops->generation(t->store) > 0)
        return true;
    for (int32_t i = 0; i < t->cfg.n_layer + 2; i++)
        if (t->layout.state[i] == PS_TIER_DISK || t->layout.weight[i] == PS_TIER_DISK)
            return true;
    return false;
}

/* Does the unit take part in the store? Its weights where they are trained or read from there. */
static bool stored(const struct ps_trainer *t, int32_t i)
{
    return t->extent[2 * i].bytes > 0 &&
           (t->granule_begin[i + 1] > t->granule_begin[i] || ps__trainer_streams(t));
}

static uint64_t chunk_bytes(const struct ps_store_extent *e, uint32_t chunk)
{
    return e->chunk_offset[chunk + 1] - e->chunk_offset[chunk];
}

static int open_lane(struct ps_trainer *t, enum ps_lane lane, struct ps_error *err)
{
    enum ps_step_buffer first = t->opt.device->discrete ? PS_BUF_BATCH_HOST : PS_BUF_BATCH;
    enum ps_tier tier = t->opt.device->discrete ? PS_TIER_HOST : PS_TIER_DEVICE;
    bool arena = lane != PS_LANE_COMMIT;
    struct ps_storage_options o = {.depth = t->opt.io.depth,
                                   .chunk_bytes = t->opt.io.chunk_bytes,
                                   .arena = arena ? t->buffer[first] : NULL,
                                   .arena_bytes = arena ? ps_step_map_tier_bytes(&t->map, tier) : 0,
                                   .log = t->opt.log};
    int ret = t->opt.io.open(t->opt.io.arg, &t->store_storage[lane], &o, err);
    if (ret < 0)
        return ret;
    t->store_cut[lane] = calloc((size_t)t->store_cut_max, sizeof *t->store_cut[0]);
    if (!t->store_cut[lane])
        return ps_error_set(err, -ENOMEM, "out of memory");
    /* writable for all: a back end in RAM then maps the file, and sees what others write */
    return t->store->ops->attach(t->store, t->store_storage[lane], true, err);
}

/* One chunk of weights and one of states: checkpoints of streamed runs go through them too. */
static int bounce_create(struct ps_trainer *t, struct ps_error *err)
{
    uint64_t weight = 0;
    uint64_t state = 0;
    uint32_t count;
    const struct ps_store_extent *e = ps_trainer_store_extents(t, &count);
    for (uint32_t k = 0; k < count; k++) {
        uint64_t *most = k % 2 ? &state : &weight;
        for (uint32_t c = 0; c < e[k].chunk_count; c++)
            *most = chunk_bytes(&e[k], c) > *most ? chunk_bytes(&e[k], c) : *most;
    }
    t->bounce_weight_bytes = (size_t)weight;
    t->bounce_state_bytes = (size_t)state;
    t->bounce_weight = aligned_alloc(PAGE, (size_t)weight + PAGE);
    t->bounce_state = aligned_alloc(PAGE, (size_t)state + PAGE);
    return t->bounce_weight && t->bounce_state ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
}

int ps__trainer_store_open(struct ps_trainer *t, struct ps_error *err)
{
    int made = 0;
    if (!t->bounce_weight && (t->store || ps__trainer_streams(t)))
        made = bounce_create(t, err);
    if (made < 0)
        return made;
    if (!t->store)
        return !t->map.stored
                   ? 0
                   : ps_error_full(err, PS_EUSAGE, NULL, "offload-optimizer",
                                   "keep the optimizer states in memory",
                                   "optimizer states are placed on disk, but the run has no store");
    t->store_cut_max = t->store->ops->map_max(t->store);
    int ret = open_lane(t, PS_LANE_COMMIT, err);
    static const enum ps_lane lane[] = {PS_LANE_DISK_WEIGHTS, PS_LANE_DISK_STATE,
                                        PS_LANE_DISK_WRITE};
    for (int i = 0; ret >= 0 && i < 3 && ps__trainer_streams(t); i++)
        ret = open_lane(t, lane[i], err);
    return ret < 0 ? ret : 0;
}

void ps__trainer_store_close(struct ps_trainer *t)
{
    for (int l = 0; l < PS_LANE_COUNT; l++) {
        if (t->store_storage[l])
            t->store_storage[l]->ops->close(t->store_storage[l]);
        free(t->store_cut[l]);
    }
    free(t->bounce_weight);
    free(t->bounce_state);
}

int ps__trainer_store_submit(struct ps_trainer *t, enum ps_lane lane, uint32_t extent,
                             uint32_t chunk, bool write, void *memory, uint64_t *first,
                             uint64_t *last, struct ps_error *err)
{
    struct ps_transfer *x = t->store_cut[lane];
    struct ps_storage *st = t->store_storage[lane];
    int count = write
                    ? t->store->ops->map_write(t->store, extent, chunk, memory, x, t->store_cut_max)
                    : t->store->ops->map_read(t->store, extent, chunk, PS_COPY_LATEST, memory, x,
                                              t->store_cut_max);
    *first = 1;
    *last = 0;
    int ret = 0;
    for (int i = 0; ret == 0 && i < count; i++) {
        ret = st->ops->submit(st, &x[i], last, err);
        if (i == 0)
            *first = *last;
    }
    return ret;
}

static int wait_all(struct ps_trainer *t, uint64_t first, uint64_t last, struct ps_error *err)
{
    struct ps_storage *st = t->store_storage[PS_LANE_COMMIT];
    int ret = 0;
    for (uint64_t k = first; ret == 0 && k <= last; k++)
        ret = st->ops->wait(st, k, err);
    return ret;
}

static int get_chunk(struct ps_trainer *t, uint32_t extent, uint32_t chunk, void *memory,
                     struct ps_error *err)
{
    t->held_weight = t->held_state = 0; /* the bounce buffers change */
    uint64_t first;
    uint64_t last;
    int ret = ps__trainer_store_submit(t, PS_LANE_COMMIT, extent, chunk, false, memory, &first,
                                       &last, err);
    if (ret == 0)
        ret = wait_all(t, first, last, err);
    if (ret == 0 && !t->opt.io.moves_nothing)
        ret = t->store->ops->check(t->store, extent, chunk, PS_COPY_LATEST, memory, err);
    return ret;
}

static int put_chunk(struct ps_trainer *t, uint32_t extent, uint32_t chunk, void *memory,
                     struct ps_error *err)
{
    t->held_weight = t->held_state = 0; /* the bounce buffers change */
    uint64_t first;
    uint64_t last;
    t->store->ops->seal(t->store, extent, chunk, memory);
    int ret = ps__trainer_store_submit(t, PS_LANE_COMMIT, extent, chunk, true, memory, &first,
                                       &last, err);
    return ret < 0 ? ret : wait_all(t, first, last, err);
}

/* --- memory to store and back, granule by granule --- */

/* Where part `part` of a slice lies in its granule's states. */
static unsigned char *in_states(const struct ps_trainable *x, const struct ps_slice *s,
                                unsigned char *states, int part, size_t *bytes)
{
    unsigned char *at = states + s->state_offset;
    if (ps__trainer_has_remainder(x)) {
        *bytes = (size_t)s->n * sizeof(uint16_t);
        if (part == PS_PART_REMAINDER)
            return at;
        at += ps_align_up(*bytes, 64);
    }
    for (int k = 0;; k++) {
        *bytes = (size_t)ps_opt_state_bytes(&x->layout.state[k], s->n);
        if (k == part)
            return at;
        at += ps_align_up(*bytes, 64);
    }
}

/* The same in memory, of a tensor whose states are there. */
static unsigned char *in_memory(const struct ps_trainable *x, const struct ps_slice *s, int part)
{
    if (part == PS_PART_REMAINDER)
        return (unsigned char *)(x->remainder + s->begin);
    const struct ps_opt_state *st = &x->layout.state[part];
    size_t skip = st->per > 0 ? (size_t)(s->begin / st->per) * ps_dtype_size(st->dtype) : 0;
    return (unsigned char *)x->state[part] + skip;
}

/* States of a granule between bounce buffer and memory. */
static void move_states(struct ps_trainer *t, const struct ps_granule *g, bool to_memory)
{
    for (uint32_t k = 0; k < g->slice_count; k++) {
        const struct ps_slice *s = &t->slice[g->slice_begin + k];
        const struct ps_trainable *x = &t->trainable[s->tensor];
        int first = ps__trainer_has_remainder(x) ? PS_PART_REMAINDER : 0;
        for (int part = first; part < x->layout.state_count; part++) {
            size_t bytes;
            unsigned char *a = in_states(x, s, t->bounce_state, part, &bytes);
            unsigned char *b = in_memory(x, s, part);
            if (bytes > 0)
                memcpy(to_memory ? b : a, to_memory ? a : b, bytes);
        }
    }
}

/* Host memory that holds the weights of a unit between steps; NULL: they are on disk alone. */
static unsigned char *weights_in_memory(const struct ps_trainer *t, int32_t i, int32_t unit)
{
    if (t->opt.mode != PS_MODE_FULL) {
        for (size_t k = 0; k < t->trainable_count; k++)
            if (t->trainable[k].unit == unit)
                return (unsigned char *)t->trainable[k].weight - t->home[k].weight_offset;
        return NULL;
    }
    if (!ps__trainer_streams(t)) {
        for (size_t k = 0; k < t->trainable_count; k++)
            if (t->trainable[k].unit == unit)
                return (unsigned char *)t->trainable[k].weight - t->home[k].weight_offset;
        return NULL;
    }
    if (t->opt.device->discrete) {
        uint64_t at = t->map.host_offset[ps__source_number(&t->shape, unit, 0)];
        return at == UINT64_MAX ? NULL : t->buffer[PS_BUF_HOST_UNITS] + at;
    }
    uint64_t at = t->map.pinned_offset[i];
    return at == UINT64_MAX ? NULL : t->buffer[PS_BUF_PINNED] + at;
}

/* Bytes of a unit's image that memory holds. */
static uint64_t image_bytes(const struct ps_trainer *t, int32_t i)
{
    return t->opt.mode == PS_MODE_FULL ? t->shape.pinned_bytes[i] : t->shape.adapter_bytes[i];
}

static int32_t unit_of(const struct ps_trainer *t, int32_t i)
{
    return i == 0 ? PS_UNIT_EMBED : i == t->cfg.n_layer + 1 ? PS_UNIT_HEAD : i - 1;
}

/* One unit out of memory into the store. */
static int save_unit(struct ps_trainer *t, int32_t i, struct ps_error *err)
{
    const struct ps_store_extent *w = &t->extent[2 * i];
    const struct ps_store_extent *s = &t->extent[2 * i + 1];
    const unsigned char *from = weights_in_memory(t, i, unit_of(t, i));
    int ret = 0;
    for (uint32_t c = 0; ret == 0 && from && c < w->chunk_count; c++) {
        uint64_t at = w->chunk_offset[c];
        uint64_t bytes = chunk_bytes(w, c);
        uint64_t have = image_bytes(t, i) - at < bytes ? image_bytes(t, i) - at : bytes;
        memcpy(t->bounce_weight, from + at, (size_t)have);
        memset(t->bounce_weight + have, 0, (size_t)(bytes - have));
        ret = put_chunk(t, 2 * (uint32_t)i, c, t->bounce_weight, err);
    }
    for (uint32_t c = 0; ret == 0 && c < s->chunk_count; c++) {
        const struct ps_granule *g = &t->granule[t->granule_begin[i] + c];
        memset(t->bounce_state, 0, (size_t)g->state_bytes);
        move_states(t, g, false);
        ret = put_chunk(t, 2 * (uint32_t)i + 1, c, t->bounce_state, err);
    }
    if (ret == 0 && from && w->bytes > 0)
        t->store->ops->note_written(t->store, 2 * (uint32_t)i);
    if (ret == 0 && s->bytes > 0)
        t->store->ops->note_written(t->store, 2 * (uint32_t)i + 1);
    return ret;
}

/* Weights of a unit to the near memory that compute uses. */
static int put_near(struct ps_trainer *t, unsigned char *near, const void *values, size_t bytes,
                    struct ps_error *err)
{
    if (!t->opt.device->discrete) {
        memcpy(near, values, bytes);
        return 0;
    }
    return t->near->ops->copy_h2d(t->near, ps__trainer_device_address(t, near), values, bytes, err);
}

/* Of a unit under full fine-tuning; NULL: it comes through slots. */
static unsigned char *weights_near(const struct ps_trainer *t, int32_t i)
{
    return t->opt.mode == PS_MODE_FULL && t->map.pinned_offset[i] != UINT64_MAX
               ? t->buffer[PS_BUF_PINNED] + t->map.pinned_offset[i]
               : NULL;
}

static int load_weights(struct ps_trainer *t, int32_t i, struct ps_error *err)
{
    const struct ps_store_extent *w = &t->extent[2 * i];
    unsigned char *host = weights_in_memory(t, i, unit_of(t, i));
    unsigned char *near = weights_near(t, i);
    int ret = 0;
    for (uint32_t c = 0; ret == 0 && (host || near) && c < w->chunk_count; c++) {
        uint64_t at = w->chunk_offset[c];
        uint64_t left = image_bytes(t, i) - at;
        size_t have = (size_t)(left < chunk_bytes(w, c) ? left : chunk_bytes(w, c));
        ret = get_chunk(t, 2 * (uint32_t)i, c, t->bounce_weight, err);
        if (ret == 0 && host)
            memcpy(host + at, t->bounce_weight, have);
        if (ret == 0 && near && near != host)
            ret = put_near(t, near + at, t->bounce_weight, have, err);
    }
    return ret;
}

static int load_unit(struct ps_trainer *t, int32_t i, struct ps_error *err)
{
    const struct ps_store_extent *s = &t->extent[2 * i + 1];
    int ret = load_weights(t, i, err);
    for (uint32_t c = 0; ret == 0 && !state_on_disk(t, i) && c < s->chunk_count; c++) {
        ret = get_chunk(t, 2 * (uint32_t)i + 1, c, t->bounce_state, err);
        if (ret == 0)
            move_states(t, &t->granule[t->granule_begin[i] + c], true);
    }
    return ret;
}

/* --- an empty store --- */

/* Receives a unit's tensors in the order of its image and writes each granule when it is full. */
struct fill {
    struct ps_trainer *t;
    int32_t i;
    uint32_t chunk; /* of both extents */
    size_t tensor;  /* number of the trainable, SIZE_MAX: none */
    uint64_t offset, element;
    struct ps_error *err;
};

static int flush_chunk(struct fill *f)
{
    struct ps_trainer *t = f->t;
    int ret = put_chunk(t, 2 * (uint32_t)f->i, f->chunk, t->bounce_weight, f->err);
    if (ret == 0 && f->chunk < t->extent[2 * f->i + 1].chunk_count)
        ret = put_chunk(t, 2 * (uint32_t)f->i + 1, f->chunk, t->bounce_state, f->err);
    memset(t->bounce_weight, 0, t->bounce_weight_bytes);
    memset(t->bounce_state, 0, t->bounce_state_bytes);
    f->chunk++;
    return ret;
}

/* Remainders [begin, begin + n) of the tensor in the chunk's states. */
static void put_remainder(struct fill *f, size_t begin, size_t n, const uint16_t *remainder)
{
    struct ps_trainer *t = f->t;
    const struct ps_granule *g = &t->granule[t->granule_begin[f->i] + f->chunk];
    for (uint32_t k = 0; k < g->slice_count; k++) {
        const struct ps_slice *s = &t->slice[g->slice_begin + k];
        if (s->tensor != f->tensor || begin < s->begin || begin >= s->begin + s->n)
            continue;
        memcpy(t->bounce_state + s->state_offset + (begin - s->begin) * sizeof *remainder,
               remainder, n * sizeof *remainder);
    }
}

static int fill_pieces(void *arg, size_t begin, size_t count, const void *values,
                       const uint16_t *remainder)
{
    struct fill *f = arg;
    struct ps_trainer *t = f->t;
    const struct ps_store_extent *w = &t->extent[2 * f->i];
    int ret = 0;
    while (ret == 0 && count > 0) {
        uint64_t at = f->offset + begin * f->element;
        while (ret == 0 && at >= w->chunk_offset[f->chunk + 1])
            ret = flush_chunk(f);
        uint64_t room = (w->chunk_offset[f->chunk + 1] - at) / f->element;
        size_t n = count < room ? count : (size_t)room;
        memcpy(t->bounce_weight + (at - w->chunk_offset[f->chunk]), values, n * f->element);
        if (remainder && f->tensor != SIZE_MAX &&
            ps__trainer_has_remainder(&t->trainable[f->tensor]))
            put_remainder(f, begin, n, remainder);
        values = (const unsigned char *)values + n * f->element;
        remainder = remainder ? remainder + n : NULL;
        begin += n;
        count -= n;
    }
    return ret;
}

static size_t trainable_of(const struct ps_trainer *t, const char *name)
{
    for (size_t k = 0; k < t->trainable_count; k++)
        if (strcmp(t->trainable[k].name, name) == 0)
            return k;
    return SIZE_MAX;
}

static int fill_unit(struct ps_trainer *t, int32_t i, struct ps_error *err)
{
    struct fill f = {.t = t, .i = i, .err = err};
    const struct ps_store_extent *w = &t->extent[2 * i];
    memset(t->bounce_weight, 0, t->bounce_weight_bytes);
    memset(t->bounce_state, 0, t->bounce_state_bytes);
    int ret = 0;
    for (size_t k = 0; ret == 0 && k < t->params.count; k++) {
        const struct ps_param_info *p = &t->params.param[k];
        const struct ps_st_tensor *tensor;
        const struct ps_st_file *file;
        if (ps__trainer_param_unit(p) != unit_of(t, i))
            continue;
        f.tensor = trainable_of(t, p->name);
        f.offset = t->param_offset[k];
        f.element = ps_dtype_size(t->weight[k].dtype);
        ret = ps_weights_find(t->files, t->opt.model_dir, p, &tensor, &file, err);
        bool split = t->weight[k].dtype == PS_DTYPE_BF16 && f.tensor != SIZE_MAX;
        if (ret == 0)
            ret = ps_weights_read_pieces(file, tensor, t->weight[k].dtype,
                                         split ? t->opt.master_split : NULL, fill_pieces, &f, err);
    }
    while (ret == 0 && f.chunk < w->chunk_count)
        ret = flush_chunk(&f);
    if (ret == 0)
        t->store->ops->note_written(t->store, 2 * (uint32_t)i);
    if (ret == 0 && t->extent[2 * i + 1].bytes > 0)
        t->store->ops->note_written(t->store, 2 * (uint32_t)i + 1);
    return ret;
}

static int commit_point(struct ps_trainer *t, const struct ps_run_point *p, struct ps_error *err)
{
    if (t->opt.run_state)
        t->run_state_bytes =
            t->opt.run_state(t->opt.run_state_arg, p, t->run_state, PS_TRAINER_RUN_STATE_MAX);
    return t->store->ops->commit(t->store, t->run_state, t->run_state_bytes, err);
}

int ps__trainer_store_load(struct ps_trainer *t, struct ps_error *err)
{
    if (!t->store)
        return 0;
    bool fresh = t->store->ops->generation(t->store) == 0;
    bool streams = ps__trainer_streams(t);
    int ret = 0;
    if (fresh && !ps__trainer_from_store(t))
        return 0; /* memory holds the model; the first commit stores it */
    if (fresh)
        ps_log(t->opt.log, PS_LOG_INFO, "writing the model into the store ...");
    for (int32_t i = 0; ret == 0 && fresh && i < t->cfg.n_layer + 2; i++)
        if (stored(t, i))
            ret = fill_unit(t, i, err);
    if (ret == 0 && fresh)
        ret = commit_point(t, &(struct ps_run_point){0}, err);
    for (int32_t i = 0; ret == 0 && i < t->cfg.n_layer + 2; i++)
        if (stored(t, i))
            ret = load_unit(t, i, err);
    if (ret == 0 && !streams && t->opt.device->discrete)
        ret = ps_trainer_push(t, err);
    return ret;
}

int ps__trainer_store_reload_pinned(struct ps_trainer *t, struct ps_error *err)
{
    int ret = 0;
    for (int32_t i = 0; ret == 0 && i < t->cfg.n_layer + 2; i++)
        if (stored(t, i))
            ret = load_weights(t, i, err);
    return ret;
}

int ps_trainer_store_commit(struct ps_trainer *t, const void *run_state, size_t bytes,
                            struct ps_error *err)
{
    assert(t->store && bytes <= PS_TRAINER_RUN_STATE_MAX);
    int ret = ps_trainer_settle(t, err);
    if (ret == 0 && !t->store_storage[PS_LANE_COMMIT])
        ret = ps__trainer_store_open(t, err);
    if (ret == 0)
        ret = ps_trainer_pull(t, err);
    for (int32_t i = 0; ret == 0 && i < t->cfg.n_layer + 2; i++)
        if (stored(t, i) && !state_on_disk(t, i))
            ret = save_unit(t, i, err);
    if (ret < 0)
        return ret;
    return t->store->ops->commit(t->store, run_state, bytes, err);
}

/* --- parts of tensors --- */

/* One slice's part [begin, begin + n) (entries of the tensor) between `memory` and where it lies.
 */
static int move_part(struct ps_trainer *t, uint32_t granule, const struct ps_slice *s, int part,
                     size_t begin, size_t n, unsigned char *memory, struct ps_error *err)
{
    const struct ps_trainable *x = &t->trainable[s->tensor];
    int32_t i = ps_step_unit_idx(&t->shape, x->unit);
    uint32_t chunk = granule - t->granule_begin[i];
    uint32_t extent = 2 * (uint32_t)i + (part == PS_PART_WEIGHT ? 0 : 1);
    unsigned char *bounce = part == PS_PART_WEIGHT ? t->bounce_weight : t->bounce_state;
    uint64_t *held = part == PS_PART_WEIGHT ? &t->held_weight : &t->held_state;
    uint64_t wanted = (uint64_t)extent << 32 | (chunk + 1);
    int ret = *held == wanted ? 0 : get_chunk(t, extent, chunk, bounce, err);
    if (ret < 0)
        return ret;
    *held = wanted; /* reads come in order: the next one is often of the same chunk */
    unsigned char *at;
    size_t size;
    size_t skip = begin;
    if (part == PS_PART_WEIGHT) {
        size = ps_dtype_size(x->dtype);
        at = bounce + (s->weight_offset - t->granule[granule].weight_offset);
        skip -= (size_t)s->begin;
    } else {
        size_t bytes;
        at = in_states(x, s, bounce, part, &bytes);
        const struct ps_opt_state *st = part >= 0 ? &x->layout.state[part] : NULL;
        size = st ? ps_dtype_size(st->dtype) : sizeof(uint16_t);
        skip -= !st ? (size_t)s->begin : st->per > 0 ? (size_t)(s->begin / st->per) : 0;
    }
    at += skip * size;
    memcpy(memory, at, n * size);
    return 0;
}

/* Entries of a part before element e of its tensor. */
static size_t entries(const struct ps_trainable *x, int part, uint64_t e)
{
    if (part < 0 || x->layout.state[part].per == 1)
        return (size_t)e;
    const struct ps_opt_state *s = &x->layout.state[part];
    if (s->per == 0)
        return e == 0 ? 0 : (size_t)s->count;
    return (size_t)((e + s->per - 1) / s->per);
}

static int disk_part(struct ps_trainer *t, size_t idx, int part, size_t begin, size_t n,
                     unsigned char *memory, struct ps_error *err)
{
    const struct ps_trainable *x = &t->trainable[idx];
    int32_t i = ps_step_unit_idx(&t->shape, x->unit);
    size_t size = part >= 0                   ? ps_dtype_size(x->layout.state[part].dtype)
                  : part == PS_PART_REMAINDER ? sizeof(uint16_t)
                                              : ps_dtype_size(x->dtype);
    int ret = 0;
    for (uint32_t g = t->granule_begin[i]; ret == 0 && g < t->granule_begin[i + 1]; g++) {
        for (uint32_t k = 0; ret == 0 && k < t->granule[g].slice_count; k++) {
            const struct ps_slice *s = &t->slice[t->granule[g].slice_begin + k];
            if (s->tensor != idx)
                continue;
            size_t from = entries(x, part, s->begin);
            size_t to = entries(x, part, s->begin + s->n);
            from = from > begin ? from : begin;
            to = to < begin + n ? to : begin + n;
            if (from < to)
                ret =
                    move_part(t, g, s, part, from, to - from, memory + (from - begin) * size, err);
        }
    }
    return ret;
}

/* Does this part lie in the store alone? */
static bool part_on_disk(const struct ps_trainer *t, size_t idx, int part)
{
    const struct ps_trainable *x = &t->trainable[idx];
    int32_t i = ps_step_unit_idx(&t->shape, x->unit);
    if (part == PS_PART_WEIGHT)
        return ps__trainer_streams(t) && state_on_disk(t, i);
    return state_on_disk(t, i);
}

/* Where it lies in memory. */
static unsigned char *part_in_memory(const struct ps_trainer *t, size_t idx, int part, size_t *size)
{
    const struct ps_trainable *x = &t->trainable[idx];
    if (part >= 0) {
        *size = ps_dtype_size(x->layout.state[part].dtype);
        return x->state[part];
    }
    *size = part == PS_PART_REMAINDER ? sizeof(uint16_t) : ps_dtype_size(x->dtype);
    if (part == PS_PART_REMAINDER)
        return (unsigned char *)x->remainder;
    if (!ps__trainer_streams(t))
        return x->weight;
    return weights_in_memory(t, ps_step_unit_idx(&t->shape, x->unit), x->unit) +
           t->home[idx].weight_offset;
}

int ps_trainer_part_read(struct ps_trainer *t, size_t idx, int part, size_t begin, size_t n,
                         void *out, struct ps_error *err)
{
    if (part_on_disk(t, idx, part))
        return disk_part(t, idx, part, begin, n, out, err);
    size_t size;
    const unsigned char *from = part_in_memory(t, idx, part, &size);
    memcpy(out, from + begin * size, n * size);
    return 0;
}

/* A granule's weights and states as `get` gives them, into the bounce buffers. */
static int collect(struct ps_trainer *t, const struct ps_granule *g, ps_trainer_get_fn get,
                   void *arg, struct ps_error *err)
{
    memset(t->bounce_weight, 0, (size_t)g->weight_bytes);
    memset(t->bounce_state, 0, (size_t)g->state_bytes);
    for (uint32_t k = 0; k < g->slice_count; k++) {
        const struct ps_slice *s = &t->slice[g->slice_begin + k];
        const struct ps_trainable *x = &t->trainable[s->tensor];
        int ret = get(arg, s->tensor, PS_PART_WEIGHT, (size_t)s->begin, (size_t)s->n,
                      t->bounce_weight + (s->weight_offset - g->weight_offset), err);
        int first = ps__trainer_has_remainder(x) ? PS_PART_REMAINDER : 0;
        for (int part = first; ret == 0 && part < x->layout.state_count; part++) {
            size_t bytes;
            unsigned char *at = in_states(x, s, t->bounce_state, part, &bytes);
            size_t from = entries(x, part, s->begin);
            size_t to = entries(x, part, s->begin + s->n);
            if (bytes > 0)
                ret = get(arg, s->tensor, part, from, to - from, at, err);
        }
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int put_streamed(struct ps_trainer *t, int32_t i, ps_trainer_get_fn get, void *arg,
                        struct ps_error *err)
{
    unsigned char *host = weights_in_memory(t, i, unit_of(t, i));
    unsigned char *near = weights_near(t, i);
    uint32_t begin = t->granule_begin[i];
    int ret = 0;
    for (uint32_t g = begin; ret == 0 && g < t->granule_begin[i + 1]; g++) {
        const struct ps_granule *granule = &t->granule[g];
        ret = collect(t, granule, get, arg, err);
        uint64_t at = granule->weight_offset;
        uint64_t left = image_bytes(t, i) - at;
        size_t have = (size_t)(left < granule->weight_bytes ? left : granule->weight_bytes);
        if (ret == 0 && host)
            memcpy(host + at, t->bounce_weight, have);
        if (ret == 0 && near && near != host)
            ret = put_near(t, near + at, t->bounce_weight, have, err);
        if (ret == 0 && !state_on_disk(t, i))
            move_states(t, granule, true);
        if (ret == 0 && t->store)
            ret = put_chunk(t, 2 * (uint32_t)i, g - begin, t->bounce_weight, err);
        if (ret == 0 && t->store && granule->state_bytes > 0)
            ret = put_chunk(t, 2 * (uint32_t)i + 1, g - begin, t->bounce_state, err);
    }
    if (ret == 0 && t->store) {
        t->store->ops->note_written(t->store, 2 * (uint32_t)i);
        if (t->extent[2 * i + 1].bytes > 0)
            t->store->ops->note_written(t->store, 2 * (uint32_t)i + 1);
        ret = load_weights(t, i, err);
    }
    return ret;
}

int ps_trainer_put_parts(struct ps_trainer *t, ps_trainer_get_fn get, void *arg,
                         struct ps_error *err)
{
    int ret = ps_trainer_settle(t, err);
    t->loaded = PS_SEGMENT_COUNT;
    if (ps__trainer_streams(t)) {
        for (int32_t i = 0; ret == 0 && i < t->cfg.n_layer + 2; i++)
            if (t->granule_begin[i + 1] > t->granule_begin[i])
                ret = put_streamed(t, i, get, arg, err);
        return ret;
    }
    for (size_t k = 0; ret == 0 && k < t->trainable_count; k++) {
        struct ps_trainable *x = &t->trainable[k];
        int first = x->weight ? PS_PART_WEIGHT : 0;
        for (int part = first; ret == 0 && part < x->layout.state_count; part++) {
            size_t size;
            if (part == PS_PART_REMAINDER && !x->remainder)
                continue;
            unsigned char *to = part_in_memory(t, k, part, &size);
            ret = get(arg, k, part, 0, entries(x, part, x->n), to, err);
        }
    }
    return ret < 0 ? ret : ps_trainer_push(t, err);
}

double ps_trainer_norm_before(const struct ps_trainer *t)
{
    return t->norm_before;
}

void ps_trainer_set_norm_before(struct ps_trainer *t, double norm)
{
    t->norm_before = norm;
}
