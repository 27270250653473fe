/* From a few choices to a layout that uses the budgets: see strategy_internal.h.
 *
 * A layout is described by a handful of counts ("knobs"), each of which takes more memory the
 * larger it is. They begin at their least and are raised one after the other, each to the largest
 * value that still fits: first what the choice cannot do without (slots to read ahead, buffers on
 * the way), then boundaries and kept activations, then the cache of weights. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "offload/choice_internal.h"

/* Ring buffers beyond the group: one is needed, more let writes and reads lag a little. */
#define RING_EXTRA 3
#define HOST_RING 4
#define SAVED_RING 3
/* Micro-batches of a pass times layers: larger schedules take seconds to build. */
#define GROUP_LAYERS_MAX 16384

static int32_t needed_x(const struct ps_step_shape *p)
{
    return p->trains ? p->n_layer - p->first_trained : 0;
}

bool ps__unit_streamable(const struct ps_planner_request *req, int32_t unit_idx)
{
    const struct ps_step_shape *p = req->shape;
    if (unit_idx > p->n_layer)
        return p->trains && !p->frozen && !p->tied;
    return unit_idx > 0 || !p->tied;
}

/* Does the unit leave the device? One whose states are in memory lies where they are updated. */
static bool streamed_off(const struct ps__fill *f, int32_t unit_idx)
{
    if (!f->choice->stream || !ps__unit_streamable(f->req, unit_idx))
        return false;
    if (!f->req->discrete && ps__fill_state_in_memory(f, unit_idx))
        return false;
    return unit_idx == 0 ? !f->k.embed_pinned
           : unit_idx > f->req->shape->n_layer
               ? !f->k.head_pinned
               : !ps__chosen(unit_idx - 1, f->k.pins, f->req->shape->n_layer);
}

static void assemble_weights(const struct ps__fill *f)
{
    const struct ps_step_shape *p = f->req->shape;
    const struct ps__knobs *k = &f->k;
    struct ps_step_layout *l = f->l;
    int32_t n = p->n_layer;
    int32_t streamed = 0;
    for (int32_t i = 1; i <= n; i++)
        streamed += streamed_off(f, i);
    int32_t at = 0;
    bool raw = false;
    for (int32_t i = 0; i < n + 2; i++) {
        bool off = streamed_off(f, i);
        bool memory = ps__fill_state_in_memory(f, i);
        bool end = i == 0 || i == n + 1;
        bool host =
            off &&
            (memory || (end ? k->embed_host
                            : ps__chosen(at, ps__least_of(k->host_units, streamed), streamed)));
        at += off && !end;
        l->weight[i] = !off ? PS_TIER_DEVICE : host ? PS_TIER_HOST : PS_TIER_DISK;
        raw |= off && !host && (f->req->discrete || !p->source->all_direct);
        /* updated on the host, from the store and back */
        raw |= f->req->discrete && ps__fill_streams_updates(f) && !host && !memory;
    }
    int32_t sources = streamed + streamed_off(f, n + 1) +
                      (streamed_off(f, 0) ? (int32_t)p->source->embed_block_count : 0);
    l->near_slots = ps__least_of(k->slots, sources);
    l->raw_slots = raw ? k->raw_slots : 0;
}

static void assemble(const struct ps__fill *f)
{
    const struct ps_planner_request *req = f->req;
    const struct ps_step_shape *p = req->shape;
    const struct ps__knobs *k = &f->k;
    struct ps_step_layout *l = f->l;
    int32_t n = needed_x(p);
    int32_t moved = n - k->near_x;
    int32_t at = 0;
    assemble_weights(f);
    bool disk = ps__assemble_saved(f, n);
    for (int32_t i = 0; i < p->n_layer; i++) {
        int32_t x = i - p->first_trained;
        bool near = !p->trains || x < 0 || ps__chosen(x, k->near_x, n);
        bool host = !near && ps__chosen(at, ps__least_of(k->host_x, moved), moved);
        at += !near;
        l->boundary[i] = near ? PS_TIER_DEVICE : host ? PS_TIER_HOST : PS_TIER_DISK;
        disk |= !near && !host;
    }
    if (ps__fill_streams_updates(f))
        ps__assemble_updates(f);
    l->x_ring = l->group + (moved > 0 ? k->ring_extra : 0);
    l->image_pairs = p->zeroth ? k->image_pairs : 0;
    l->host_ring = req->discrete && disk ? k->host_ring : 0;
}

int ps__layout_bytes(const struct ps_planner_request *req, const struct ps_step_layout *l,
                     uint64_t bytes[PS_TIER_COUNT], struct ps_error *err)
{
    struct ps_step_map map;
    int ret = ps_step_map_create(&map, req->shape, l, err);
    if (ret < 0)
        return ret;
    for (int t = 0; t < PS_TIER_COUNT; t++)
        bytes[t] = ps_step_map_tier_bytes(&map, (enum ps_tier)t);
    if (l->update != PS_UPDATE_RESIDENT && req->shape->trains)
        bytes[PS_TIER_DISK] +=
            req->store_bytes ? req->store_bytes : 2 * ps_step_map_store_bytes(&map);
    ps_step_map_fini(&map);
    if (!req->discrete) {
        bytes[PS_TIER_DEVICE] += bytes[PS_TIER_HOST];
        bytes[PS_TIER_HOST] = 0;
    }
    return 0;
}

bool ps__bytes_fit(const struct ps_planner_request *req, const uint64_t bytes[PS_TIER_COUNT])
{
    return bytes[PS_TIER_DEVICE] <= req->device_budget && bytes[PS_TIER_HOST] <= req->host_budget &&
           bytes[PS_TIER_DISK] <= req->disk_budget;
}

int ps__fill_fits(const struct ps__fill *f)
{
    uint64_t bytes[PS_TIER_COUNT];
    assemble(f);
    int ret = ps__layout_bytes(f->req, f->l, bytes, f->err);
    return ret < 0 ? ret : ps__bytes_fit(f->req, bytes);
}

int ps__fill_raise(const struct ps__fill *f, int32_t *knob, int32_t max)
{
    int32_t low = *knob;
    int32_t high = max;
    while (low < high) {
        *knob = low + (high - low + 1) / 2;
        int ret = ps__fill_fits(f);
        if (ret < 0)
            return ret;
        if (ret)
            low = *knob;
        else
            high = *knob - 1;
    }
    *knob = low;
    return 0;
}

int ps__fill_turn_on(const struct ps__fill *f, bool *knob)
{
    *knob = true;
    int ret = ps__fill_fits(f);
    if (ret <= 0)
        *knob = false;
    return ret;
}

static bool pins_allowed(const struct ps__fill *f)
{
    /* what the host updates and moves a discrete device has only images of */
    bool images = f->req->shape->zeroth && f->req->discrete && ps__fill_streams_updates(f);
    return f->choice->stream && f->req->offload_weights < 0 && !images;
}

/* Does the choice pin the embedding before anything else? */
static bool embed_first(const struct ps__fill *f)
{
    if (!pins_allowed(f))
        return false;
    enum ps__cache_choice c = f->choice->cache;
    return c == PS__CACHE_EMBED_SLOTS || c == PS__CACHE_EMBED_PINS;
}

static bool caches_slots(const struct ps__fill *f)
{
    enum ps__cache_choice c = f->choice->cache;
    return c == PS__CACHE_SLOTS || c == PS__CACHE_EMBED_SLOTS || !pins_allowed(f);
}

static int32_t slots_wanted(const struct ps__fill *f)
{
    if (f->choice->cache == PS__CACHE_LEAST)
        return 1;
    if (f->req->prefetch_depth > 0)
        return f->req->prefetch_depth + 1;
    if (f->choice->cache == PS__CACHE_PINS_1)
        return 1;
    int32_t slots = f->choice->cache == PS__CACHE_PINS_2 || caches_slots(f) ? 2 : 3;
    /* a unit stays while it is updated and written */
    bool held =
        f->choice->update == PS_UPDATE_INSIDE || f->choice->update == PS_UPDATE_NEXT_FORWARD;
    return slots + (held ? 1 : 0);
}

/* Slots or pins, then the host tier. */
static int fill_weight_cache(struct ps__fill *f)
{
    const struct ps_step_shape *p = f->req->shape;
    bool host_ok = f->req->discrete;
    int ret = ps__fill_fits(f);
    /* Of a frozen base something is always streamed: that all of it fits is what resident says. */
    int32_t pins_max = ps__fill_streams_updates(f) ? p->n_layer : p->n_layer - f->k.slots - 1;
    int32_t blocks = ps__unit_streamable(f->req, 0) && !f->k.embed_pinned
                         ? (int32_t)p->source->embed_block_count
                         : 0;
    blocks += ps__unit_streamable(f->req, p->n_layer + 1) && !f->k.head_pinned;
    if (ret > 0 && caches_slots(f) && f->req->prefetch_depth == 0)
        ret = ps__fill_raise(f, &f->k.slots, p->n_layer + blocks - 1);
    else if (ret > 0 && pins_allowed(f))
        ret = ps__fill_raise(f, &f->k.pins, pins_max);
    if (ret >= 0 && pins_allowed(f) && !f->k.embed_pinned)
        ret = ps__fill_turn_on(f, &f->k.embed_pinned);
    if (ret >= 0 && pins_allowed(f) && !f->k.head_pinned)
        ret = ps__fill_turn_on(f, &f->k.head_pinned);
    if (ret >= 0 && host_ok && f->req->offload_weights < 0)
        ret = ps__fill_raise(f, &f->k.host_units, p->n_layer);
    if (ret >= 0 && host_ok && f->req->offload_weights < 0)
        ret = ps__fill_turn_on(f, &f->k.embed_host);
    return ret < 0 ? ret : 0;
}

/* What is left of the memory: for weights, gradients and states. */
static int fill_cache(struct ps__fill *f)
{
    bool host_ok = f->req->discrete && f->choice->stream;
    int ret = 0;
    f->k.pins = 0;
    f->k.embed_host = host_ok && f->req->offload_weights == PS_TIER_HOST;
    f->k.host_units = f->k.embed_host ? f->req->shape->n_layer : 0;
    f->k.embed_pinned = f->k.head_pinned = embed_first(f);
    ps__reset_update_cache(f);
    if (f->choice->cache == PS__CACHE_LEAST)
        return 0;
    if (f->choice->stream) {
        f->k.slots = slots_wanted(f);
        ret = ps__fill_fits(f);
        f->k.slots = ret == 0 ? 1 : f->k.slots;
    }
    if (ret >= 0 && ps__fill_streams_updates(f)) {
        ret = ps__fill_update_cache(f, true);
        if (ret < 0)
            return ret;
    }
    if (ret >= 0 && f->choice->stream)
        ret = fill_weight_cache(f);
    if (ret >= 0 && ps__fill_streams_updates(f))
        ret = ps__fill_update_cache(f, false);
    return ret < 0 ? ret : 0;
}

/* Compute takes no longer than the slowest other lane. */
static int compute_hides(const struct ps__fill *f)
{
    struct ps__estimate e;
    assemble(f);
    int ret = ps__estimate_layout(&e, f->req, &f->cost, f->l);
    if (ret < 0)
        return ps_error_set(f->err, ret, "out of memory");
    double most = 0;
    for (int i = 0; i < PS_LANE_COUNT; i++)
        if (i != PS_LANE_COMPUTE && e.lane_s[i] > most)
            most = e.lane_s[i];
    return e.lane_s[PS_LANE_COMPUTE] <= most;
}

/* Of the steps of a knob around one, `by` apart, the one of the best guess. */
static int best_near(struct ps__fill *f, int32_t *knob, int32_t around, int32_t by, int32_t most)
{
    int32_t best = around;
    double best_s = INFINITY;
    for (int32_t i = -2; i <= 2; i++) {
        struct ps__estimate e;
        int32_t k = around + i * by;
        if (k < 0 || k > most)
            continue;
        *knob = k;
        int ret = fill_cache(f);
        if (ret < 0)
            return ret;
        assemble(f);
        ret = ps__estimate_layout(&e, f->req, &f->cost, f->l);
        if (ret < 0)
            return ps_error_set(f->err, ret, "out of memory");
        if (e.guess_s < best_s) {
            best_s = e.guess_s;
            best = k;
        }
    }
    *knob = best;
    return 0;
}

/* As few steps of a knob as make compute no longer the slowest, all that fit (`most`) if it always
 * is; or what is better near that. */
static int balance(struct ps__fill *f, int32_t *knob, int32_t by)
{
    const int32_t most = *knob;
    int32_t low = 0;
    int32_t high = most;
    while (low < high) {
        *knob = low + (high - low) / 2;
        int ret = fill_cache(f);
        if (ret == 0)
            ret = compute_hides(f);
        if (ret < 0)
            return ret;
        if (ret)
            high = *knob;
        else
            low = *knob + 1;
    }
    return best_near(f, knob, low, by, most);
}

/* What layers keep goes to the disk, and to host memory as far as there is room; or, where the disk
 * has none, to host memory alone. */
static int fill_swapped(struct ps__fill *f)
{
    struct ps__knobs *k = &f->k;
    int32_t n = needed_x(f->req->shape);
    int32_t most = ps__swap_steps(f, n);
    int ret = ps__fill_raise(f, &k->swap, most);
    if (ret == 0 && f->req->discrete && k->swap > 0)
        ret = ps__fill_raise(f, &k->host_saved, n);
    if (ret == 0 && f->req->discrete && k->swap == 0) {
        k->host_saved = n;
        ret = ps__fill_raise(f, &k->swap, most);
    }
    if (ret == 0 && k->swap > 0)
        ret = ps__fill_raise(f, &k->saved_ring, SAVED_RING);
    if (ret == 0)
        ret = balance(f, &k->swap, 1);
    /* the last layers need not go where memory has no other use */
    if (ret == 0 && !f->choice->stream)
        ret = ps__fill_raise(f, &k->keep, ps__recompute_steps(n));
    return ret;
}

static bool keeps_all(const struct ps_planner_request *req)
{
    return req->offload_activations == PS_TIER_DEVICE ||
           (!req->discrete && req->offload_activations == PS_TIER_HOST);
}

/* What the request says of the activations; returns whether the choice of keep still counts. */
static bool begin_activations(struct ps__fill *f)
{
    const struct ps_planner_request *req = f->req;
    int32_t n = needed_x(req->shape);
    int act = req->offload_activations;
    bool moved = act == PS_TIER_DISK || (act == PS_TIER_HOST && req->discrete);
    f->k.near_x = (f->choice->x == PS__X_NEAR || keeps_all(req)) && !moved ? n : 0;
    f->k.host_x = act == PS_TIER_HOST && req->discrete ? n : 0;
    f->k.keep = keeps_all(req) ? ps__recompute_steps(n) : 0;
    return act < 0;
}

int ps__fill_relieve_disk(struct ps__fill *f, int32_t *knob, int32_t max)
{
    int32_t low = *knob;
    int32_t high = max + 1;
    const int32_t before = *knob;
    while (low < high) {
        uint64_t bytes[PS_TIER_COUNT];
        *knob = low + (high - low) / 2;
        assemble(f);
        int ret = ps__layout_bytes(f->req, f->l, bytes, f->err);
        if (ret < 0)
            return ret;
        if (*knob <= max && bytes[PS_TIER_DISK] <= f->req->disk_budget)
            high = *knob;
        else
            low = *knob + 1;
    }
    *knob = low <= max ? low : before;
    return low <= max;
}

/* The least memory, but no more on disk than its budget: the fewest boundaries and gradients
 * elsewhere. */
static int relieve_disk(struct ps__fill *f, bool free_x)
{
    int32_t *x = f->req->discrete ? &f->k.host_x : &f->k.near_x;
    int32_t n = needed_x(f->req->shape);
    int32_t before = *x;
    bool updates = ps__fill_streams_updates(f);
    int ret = free_x ? ps__fill_relieve_disk(f, x, n) : 0;
    if (ret != 0 || (!updates && !free_x))
        return ret;
    *x = free_x ? n : *x; /* not enough: all of them, and gradients too */
    if (!updates)
        return 0;
    ret = ps__relieve_updates(f);
    if (ret == 0 && free_x) /* it does not help */
        *x = before;
    return ret;
}

/* Slots to read ahead, and room on the ways. */
static int widen_ways(struct ps__fill *f)
{
    struct ps__knobs *k = &f->k;
    int ret = ps__fill_streams_updates(f) ? ps__widen_updates(f) : 0;
    if (ret >= 0)
        ret = ps__fill_raise(f, &k->slots, slots_wanted(f));
    if (ret >= 0)
        ret = ps__fill_raise(f, &k->raw_slots, f->choice->cache == PS__CACHE_PINS_3 ? 3 : 2);
    /* a unit is moved while the one before it computes */
    if (ret >= 0 && f->req->shape->zeroth && (f->req->discrete || ps__fill_streams_updates(f)))
        ret = ps__fill_raise(f, &k->image_pairs, 2);
    if (ret >= 0)
        ret = ps__fill_raise(f, &k->ring_extra, RING_EXTRA);
    if (ret >= 0)
        ret = ps__fill_raise(f, &k->host_ring, HOST_RING);
    if (ret >= 0 && ps__fill_streams_updates(f))
        ret = ps__widen_updates_more(f);
    return ret;
}

/* Everything but kept activations and weights. 1: goes on, 0: nothing more fits. */
static int fill_ways(struct ps__fill *f)
{
    struct ps__knobs *k = &f->k;
    int32_t n = needed_x(f->req->shape);
    int act = f->req->offload_activations;
    bool free_x = f->choice->x != PS__X_NEAR && (act < 0 || act == PS_PLAN_RECOMPUTE);
    int ret = 0;
    ret = relieve_disk(f, free_x);
    if (ret < 0 || f->choice->cache == PS__CACHE_LEAST)
        return ret;
    ret = ps__fill_fits(f);
    if (ret <= 0)
        return ret;
    if (free_x && f->req->discrete && f->choice->x == PS__X_MOVED)
        ret = ps__fill_raise(f, &k->host_x, n);
    if (ret >= 0)
        ret = widen_ways(f);
    if (ret >= 0 && free_x && f->choice->x == PS__X_MIXED) {
        ret = ps__fill_raise(f, &k->near_x, n);
        k->host_x = ps__least_of(k->host_x, n - k->near_x);
        if (ret >= 0 && f->req->discrete)
            ret = ps__fill_raise(f, &k->host_x, n - k->near_x);
    }
    return ret < 0 ? ret : 1;
}

static int fill(struct ps__fill *f)
{
    bool free_keep = begin_activations(f);
    f->k.slots = f->choice->stream ? 1 : 0;
    f->k.raw_slots = 1;
    f->k.image_pairs = 1;
    f->k.ring_extra = 1;
    f->k.host_ring = 2;
    f->k.saved_ring = 2;
    f->k.embed_pinned = f->k.head_pinned = embed_first(f);
    if (f->choice->stream && f->req->discrete && f->req->offload_weights == PS_TIER_HOST) {
        f->k.host_units = f->req->shape->n_layer;
        f->k.embed_host = true;
    }
    if (ps__fill_streams_updates(f))
        ps__begin_updates(f);
    int ret = fill_ways(f);
    if (ret <= 0)
        return ret;
    if (free_keep && f->choice->keep == PS__KEEP_SWAPPED) {
        ret = fill_swapped(f);
        if (ret < 0)
            return ret;
    } else if (free_keep && f->choice->keep != PS__KEEP_NONE) {
        ret = ps__fill_raise(f, &f->k.keep, ps__recompute_steps(needed_x(f->req->shape)));
        if (ret >= 0 && f->choice->keep == PS__KEEP_BALANCED)
            ret = balance(f, &f->k.keep, PS_RECOMPUTE_COUNT - 1); /* a layer through all levels */
        if (ret < 0)
            return ret;
    }
    return fill_cache(f);
}

int ps__choice_layout(const struct ps_planner_request *req, const struct ps__choice *choice,
                      struct ps_step_layout *out, struct ps_error *err)
{
    struct ps__choice made = *choice;
    struct ps__fill f = {.req = req, .choice = &made, .l = out, .err = err};
    /* updates on the host do not need weights that are streamed */
    if (choice->update != PS_UPDATE_RESIDENT &&
        (req->offload_weights == PS_TIER_DEVICE ||
         (req->offload_weights == PS_TIER_HOST && !req->discrete)))
        made.stream = false;
    int ret = ps_step_layout_init(out, req->shape);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    ps_profile_cost(req->profile, &req->cost, &f.cost);
    ps__recompute_order(&f);
    out->strategy = choice->strategy;
    out->discrete = req->discrete;
    out->ablate = req->ablate;
    out->clip = req->clip;
    out->update = req->shape->trains ? choice->update : PS_UPDATE_RESIDENT;
    if (out->update == PS_UPDATE_INSIDE && choice->deferred > 0)
        out->deferred = (req->shape->n_layer * choice->deferred + 15) / 16;
    out->group = req->shape->trains ? choice->group : 1;
    out->group += req->shape->zeroth ? out->group % 2 : 0; /* both halves of it */
    out->eval_group =
        req->shape->trains ? ps__least_of(choice->group, req->eval_max) : choice->group;
    if (out->eval_group < 1)
        out->eval_group = 1;
    ret = fill(&f);
    if (ret < 0) {
        ps_step_layout_fini(out);
        return ret;
    }
    assemble(&f);
    return 0;
}

int32_t ps__choice_group(const struct ps_planner_request *req, int i)
{
    static const int32_t passes[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256};
    const int count = (int)(sizeof passes / sizeof *passes);
    int32_t total = req->shape->trains ? req->micro_count : req->eval_max;
    int32_t most = GROUP_LAYERS_MAX / req->shape->n_layer;
    int32_t last = 0;
    for (int k = 0; k <= count; k++) {
        int32_t group = k < count ? (total + passes[k] - 1) / passes[k] : 1;
        group = group > most && most > 0 ? most : group;
        if (group == last || group < 1 || (k == count && last == 1))
            continue;
        last = group;
        if (i-- == 0)
            return group;
    }
    return 0;
}

int32_t ps__choice_whole_step(const struct ps_planner_request *req)
{
    return req->shape->micro_max > req->micro_count ? req->shape->micro_max : req->micro_count;
}

enum ps__grad_choice ps__choice_inside_grad(const struct ps_planner_request *req)
{
    return req->clip == PS_CLIP_EXACT || req->discrete ? PS__GRAD_MIXED : PS__GRAD_DROPPED;
}

int ps__choice_pick(int i, int count, int *index)
{
    *index = i % count;
    return i / count;
}

void ps__layout_note(const struct ps_step_shape *p, const struct ps_step_layout *l, char *note,
                     size_t size)
{
    int32_t pinned = 0, host = 0, x_host = 0, x_disk = 0, host_saved = 0, disk_saved = 0;
    char kept[64];
    for (int32_t i = 0; i < p->n_layer; i++) {
        bool needed = p->trains && i >= p->first_trained;
        pinned += l->weight[i + 1] == PS_TIER_DEVICE;
        host += l->weight[i + 1] == PS_TIER_HOST;
        x_host += needed && l->boundary[i] == PS_TIER_HOST;
        x_disk += needed && l->boundary[i] == PS_TIER_DISK;
        host_saved += needed && l->saved[i] == PS_TIER_HOST;
        disk_saved += needed && l->saved[i] == PS_TIER_DISK;
    }
    size_t len = 0;
    note[0] = '\0';
#define ADD(...)                                                                                   \
    do {                                                                                           \
        int n = snprintf(note + len, size - len, __VA_ARGS__);                                     \
        len += n < 0 ? 0 : (size_t)n < size - len ? (size_t)n : size - len - 1;                    \
    } while (0)
    int32_t needed = needed_x(p);
    ADD("group %d", p->trains ? l->group : l->eval_group);
    if (l->near_slots > 0)
        ADD(", %d slot%s, %d of %d layers pinned", l->near_slots, l->near_slots == 1 ? "" : "s",
            pinned, p->n_layer);
    if (host > 0)
        ADD(", %d in RAM", host);
    ps__recompute_note(p, l, kept, sizeof kept);
    if (needed > 0)
        ADD(", %s", kept);
    if (host_saved + disk_saved > 0)
        ADD(" (");
    if (host_saved > 0)
        ADD("%d to RAM%s", host_saved, disk_saved ? ", " : ")");
    if (disk_saved > 0)
        ADD("%d to disk)", disk_saved);
    if (x_host + x_disk > 0)
        ADD(", boundaries:");
    if (x_host > 0)
        ADD(" %d to RAM", x_host);
    if (x_disk > 0)
        ADD("%s %d to disk", x_host ? "," : "", x_disk);
    if (p->trains && l->update != PS_UPDATE_RESIDENT) {
        char text[64];
        ps__update_note(p, l, text, sizeof text);
        ADD(", %s", text);
    }
#undef ADD
}
