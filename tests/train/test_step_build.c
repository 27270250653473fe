/* Segments of random layouts, run in thought: every task must find in its slot and buffers what it
 * is to work on, in every order that the schedule allows. (The checker shows that all these orders
 * do the same as program order; this test follows that one.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "runtime/train/schedule_json.h"
#include "runtime/train/step.h"
#include "tests/helpers/random_schedule.h"

enum { LAYERS_MAX = 5, GROUP_MAX = 3, BLOCKS_MAX = 3, COUNT_MAX = 128 };

/* One random model and layout. */
struct setting {
    struct ps_step_shape p;
    struct ps_step_layout l;
    struct ps_step_map m;
    struct ps_unit_sources source;
    struct ps_unit_source unit[LAYERS_MAX + BLOCKS_MAX + 1];
    uint64_t adapter[LAYERS_MAX + 2], grad[LAYERS_MAX + 2], state[LAYERS_MAX + 2];
    uint64_t pinned[LAYERS_MAX + 2];
};

static bool coin(uint64_t *seed)
{
    return random_below(seed, 2);
}

static void random_sources(struct setting *c, uint64_t *seed)
{
    bool all_direct = coin(seed);
    uint32_t blocks = 1 + random_below(seed, BLOCKS_MAX);
    c->source = (struct ps_unit_sources){.unit = c->unit,
                                         .unit_count = blocks + (uint32_t)c->p.n_layer + 1,
                                         .embed_block_count = blocks,
                                         .all_direct = all_direct};
    for (uint32_t i = 0; i < c->source.unit_count; i++) {
        struct ps_unit_source *u = &c->unit[i];
        int32_t layer = (int32_t)i - (int32_t)blocks;
        u->unit = layer < 0 ? PS_UNIT_EMBED : layer == c->p.n_layer ? PS_UNIT_HEAD : layer;
        u->block = layer < 0 ? (int32_t)i : 0;
        u->direct = all_direct || coin(seed);
        u->raw_bytes = 4096 * (1 + random_below(seed, 3));
        u->near_bytes = u->direct ? u->raw_bytes : 64 * (1 + random_below(seed, 200));
        u->read_bytes = u->raw_bytes - random_below(seed, 4096);
    }
    c->p.source = &c->source;
}

static void random_shape(struct setting *c, uint64_t *seed)
{
    struct ps_step_shape *p = &c->p;
    p->n_layer = 1 + (int32_t)random_below(seed, LAYERS_MAX);
    p->first_trained = (int32_t)random_below(seed, (uint32_t)p->n_layer + 1);
    p->trains = random_below(seed, 8) > 0;
    p->frozen = !p->trains || random_below(seed, 4) > 0;
    p->tied = coin(seed);
    p->embed_trained = p->trains && !p->frozen && coin(seed);
    p->head_trained = p->trains && !p->frozen && coin(seed);
    if (p->embed_trained) /* as all layers are then: the builder keeps no boundaries below */
        p->first_trained = 0;
    p->x_bytes = 1 + random_below(seed, 9000);
    for (int level = 0; level < PS_RECOMPUTE_COUNT; level++) {
        p->kept_bytes[level] = level == PS_RECOMPUTE_R4 ? 0 : 1 + random_below(seed, 9000);
        p->rest_bytes[level] = level == PS_RECOMPUTE_R0 ? 0 : 1 + random_below(seed, 9000);
    }
    for (int level = PS_RECOMPUTE_R3; level >= 0; level--)
        p->kept_bytes[level] += p->kept_bytes[level + 1];
    for (int level = 1; level < PS_RECOMPUTE_COUNT; level++)
        p->rest_bytes[level] += p->rest_bytes[level - 1];
    p->scratch_bytes = p->head_bytes = p->batch_bytes = p->rope_bytes = p->gemm_bytes = 64;
    p->cache_bytes = coin(seed) ? 100 : 0;
    p->logits_bytes = coin(seed) ? 100 : 0;
    p->partial_bytes = 64;
    for (int32_t i = 0; i < p->n_layer + 2; i++) {
        bool trained = i == 0                ? p->embed_trained
                       : i == p->n_layer + 1 ? p->head_trained
                                             : p->trains && i - 1 >= p->first_trained;
        c->pinned[i] = 1 + random_below(seed, 9000);
        c->adapter[i] = trained && p->frozen ? 100 : 0;
        c->grad[i] = trained ? 100 : 0;
        c->state[i] = trained ? 300 : 0;
    }
    p->adapter_bytes = c->adapter;
    p->grad_bytes = c->grad;
    p->state_bytes = c->state;
    p->pinned_bytes = c->pinned;
    p->layer_flops = p->layer_backward_flops = p->head_flops = p->head_backward_flops = 1;
    random_sources(c, seed);
}

static enum ps_tier random_tier(uint64_t *seed, bool discrete)
{
    uint32_t r = random_below(seed, 3);
    return r == 0 ? PS_TIER_DEVICE : r == 1 || !discrete ? PS_TIER_DISK : PS_TIER_HOST;
}

static void random_setting(struct setting *c, uint64_t *seed)
{
    struct ps_error err = {0};
    memset(c, 0, sizeof *c);
    random_shape(c, seed);
    struct ps_step_layout *l = &c->l;
    assert_int_equal(ps_step_layout_init(l, &c->p), 0);
    l->discrete = coin(seed);
    l->group = 1 + (int32_t)random_below(seed, GROUP_MAX);
    l->eval_group = 1 + (int32_t)random_below(seed, GROUP_MAX);
    for (int32_t i = 0; c->p.frozen && i <= c->p.n_layer; i++)
        l->weight[i] = i == 0 && c->p.tied ? PS_TIER_DEVICE : random_tier(seed, l->discrete);
    for (int32_t i = 0; i < c->p.n_layer; i++) {
        l->recompute[i] = (enum ps_recompute)random_below(seed, PS_RECOMPUTE_COUNT);
        l->boundary[i] = random_tier(seed, l->discrete);
    }
    for (int32_t i = 0; i < c->p.n_layer; i++)
        if (l->recompute[i] != PS_RECOMPUTE_R4)
            l->saved[i] = random_tier(seed, l->discrete);
    l->saved_ring = 1 + (int32_t)random_below(seed, 4);
    l->near_slots = 1 + (int32_t)random_below(seed, LAYERS_MAX + 2);
    l->raw_slots = 1 + (int32_t)random_below(seed, 3);
    l->x_ring = l->group + 1 + (int32_t)random_below(seed, 4);
    l->host_ring = 2 + (int32_t)random_below(seed, 3);
    l->ablate = random_below(seed, 3) ? 0 : random_below(seed, 16);
    if (ps_step_map_create(&c->m, &c->p, l, &err) != 0)
        fail_msg("%s", err.message);
}

static void setting_fini(struct setting *c)
{
    ps_step_map_fini(&c->m);
    ps_step_layout_fini(&c->l);
}

/* ---- a run in thought ---- */

/* What a buffer holds: boundary `layer` (or saved set, or gradient of that boundary) of a
 * micro-batch, made in that pass. */
struct held {
    int32_t layer, micro, pass;
};

struct world {
    const struct setting *c;
    const struct ps_schedule *s;
    uint64_t seed; /* for messages */
    int32_t pass;
    bool eval;
    int32_t slot[COUNT_MAX], raw[COUNT_MAX]; /* source number; -1: nothing */
    struct held x[COUNT_MAX], dx[COUNT_MAX], saved[COUNT_MAX], host_x[COUNT_MAX], disk_x[COUNT_MAX];
    struct held host_saved[COUNT_MAX], disk_saved[COUNT_MAX];
    struct held rest;         /* of the saved sets, shared */
    int32_t batch[COUNT_MAX]; /* pass */
    int32_t forward[LAYERS_MAX], recompute[LAYERS_MAX], backward[LAYERS_MAX], heads, embeds;
    uint64_t read_bytes;
};

static void wrong(const struct world *w, const struct ps_task *t, const char *what)
{
    fail_msg("seed %d, %s, pass %d, task %u (%s, unit %d, micro-batch %d): %s", (int)w->seed,
             w->s->name, w->pass, t->id, ps_task_kind_name(t->kind), t->unit, t->micro, what);
}

static int32_t number_of(const struct world *w, int32_t unit, int32_t block)
{
    for (uint32_t i = 0; i < w->c->source.unit_count; i++)
        if (w->c->unit[i].unit == unit && w->c->unit[i].block == (block < 0 ? 0 : block))
            return (int32_t)i;
    return -1;
}

static struct held *at(const struct world *w, const struct ps_task *t, struct held *array,
                       int32_t idx, int32_t count)
{
    if (idx < 0 || idx >= count || idx >= COUNT_MAX)
        wrong(w, t, "a buffer that does not exist");
    return &array[idx];
}

static void need(const struct world *w, const struct ps_task *t, const struct held *h,
                 int32_t layer, const char *what)
{
    if (h->layer != layer || h->micro != t->micro || h->pass != w->pass)
        wrong(w, t, what);
}

static void need_weights(const struct world *w, const struct ps_task *t, int32_t unit)
{
    int32_t slot = t->arg[PS_ARG_SLOT];
    bool pinned = w->c->l.weight[ps_step_unit_idx(&w->c->p, unit)] == PS_TIER_DEVICE;
    if (pinned != (slot < 0))
        wrong(w, t, "pinned and in a slot, or neither");
    if (slot >= 0 && w->slot[slot] != number_of(w, unit, t->arg[PS_ARG_BLOCK]))
        wrong(w, t, "its weights are not in the slot");
}

static void run_weights(struct world *w, const struct ps_task *t)
{
    int32_t number = number_of(w, t->unit, t->arg[PS_ARG_BLOCK]);
    int32_t slot = t->arg[PS_ARG_SLOT], raw = t->arg[PS_ARG_RAW];
    enum ps_tier tier = w->c->l.weight[ps_step_unit_idx(&w->c->p, t->unit)];
    if (number < 0 || slot >= w->c->l.near_slots || raw >= w->c->l.raw_slots)
        wrong(w, t, "a unit or slot that does not exist");
    if (t->kind == PS_TASK_READ_WEIGHTS) {
        if (tier != PS_TIER_DISK || (raw >= 0) == (slot >= 0))
            wrong(w, t, "reads a unit that is not on disk, or not into one slot");
        if (slot >= 0 && (w->c->l.discrete || !w->c->unit[number].direct))
            wrong(w, t, "reads into a slot that files cannot be read into");
        *(raw >= 0 ? &w->raw[raw] : &w->slot[slot]) = number;
        w->read_bytes += t->bytes;
    } else {
        if (slot < 0 || (raw >= 0 ? w->raw[raw] != number : tier != PS_TIER_HOST))
            wrong(w, t, "copies what is not there");
        w->slot[slot] = number;
    }
}

static void run_layer(struct world *w, const struct ps_task *t)
{
    const struct ps_step_map *m = &w->c->m;
    const struct held made = {t->unit, t->micro, w->pass};
    need_weights(w, t, t->unit);
    struct held *in = at(w, t, w->x, t->arg[PS_ARG_X_IN], m->x_count);
    enum ps_recompute level = w->c->l.recompute[t->unit];
    bool trained = !w->eval && w->c->p.trains && t->unit >= w->c->p.first_trained;
    if (trained && (t->arg[PS_ARG_SAVED] < 0) != (level == PS_RECOMPUTE_R4))
        wrong(w, t, "a kept piece where nothing is kept, or none");
    struct held none = made;
    struct held *kept =
        t->arg[PS_ARG_SAVED] < 0 ? &none : at(w, t, w->saved, t->arg[PS_ARG_SAVED], m->saved_count);
    struct held *rest = level == PS_RECOMPUTE_R0 ? kept : &w->rest;
    need(w, t, in, t->unit, "its input is not there");
    if (t->kind == PS_TASK_LAYER_BACKWARD) {
        struct held *dx = at(w, t, w->dx, t->arg[PS_ARG_DX], w->c->l.group);
        need(w, t, kept, t->unit, "what it kept is not there");
        need(w, t, rest, t->unit, "the rest of its saved set is not there");
        need(w, t, dx, t->unit + 1, "its gradient is not there");
        *dx = made;
        w->backward[t->unit]++;
        return;
    }
    if (t->kind == PS_TASK_LAYER_RECOMPUTE) {
        need(w, t, kept, t->unit, "what it kept is not there");
        if (t->arg[PS_ARG_LEVEL] != (int32_t)level)
            wrong(w, t, "computes another part of the saved set");
        w->recompute[t->unit]++;
    }
    *kept = *rest = made;
    if (t->kind == PS_TASK_LAYER_FORWARD) {
        *at(w, t, w->x, t->arg[PS_ARG_X_OUT], m->x_count) =
            (struct held){t->unit + 1, t->micro, w->pass};
        w->forward[t->unit]++;
    }
}

static void run_embed(struct world *w, const struct ps_task *t)
{
    int32_t blocks = (int32_t)w->c->source.embed_block_count;
    int32_t block = t->arg[PS_ARG_BLOCK];
    need_weights(w, t, PS_UNIT_EMBED);
    if ((block < 0) != (t->arg[PS_ARG_SLOT] < 0))
        wrong(w, t, "all rows of a slot, or a block of what is pinned");
    struct held *out = at(w, t, w->x, t->arg[PS_ARG_X_OUT], w->c->m.x_count);
    if (block > 0) /* -2 - k: rows of blocks up to k are there */
        need(w, t, out, -1 - block, "rows of the blocks before are not there");
    *out = (struct held){block >= 0 && block + 1 < blocks ? -2 - block : 0, t->micro, w->pass};
    w->embeds++;
}

static void run_head(struct world *w, const struct ps_task *t)
{
    need(w, t, at(w, t, w->x, t->arg[PS_ARG_X_IN], w->c->m.x_count), w->c->p.n_layer,
         "its input is not there");
    if ((t->arg[PS_ARG_DX] >= 0) == w->eval)
        wrong(w, t, "gradients in evaluation, or none in training");
    if (!w->eval)
        *at(w, t, w->dx, t->arg[PS_ARG_DX], w->c->l.group) =
            (struct held){w->c->p.n_layer, t->micro, w->pass};
    w->heads++;
}

static void run_spill(struct world *w, const struct ps_task *t)
{
    const struct setting *c = w->c;
    bool disk = t->kind == PS_TASK_SPILL_WRITE || t->kind == PS_TASK_SPILL_READ;
    bool out = t->kind == PS_TASK_SPILL_OUT || t->kind == PS_TASK_SPILL_WRITE;
    bool kept = t->arg[PS_ARG_SAVED] >= 0 || t->arg[PS_ARG_HOST_SAVED] >= 0;
    struct held *host = NULL, *x = NULL, *file = NULL;
    if (t->arg[PS_ARG_HOST_X] >= 0)
        host = at(w, t, w->host_x, t->arg[PS_ARG_HOST_X], c->m.host_x_count);
    if (t->arg[PS_ARG_HOST_SAVED] >= 0)
        host = at(w, t, w->host_saved, t->arg[PS_ARG_HOST_SAVED], c->m.host_saved_count);
    if (t->arg[PS_ARG_SAVED] >= 0)
        x = at(w, t, w->saved, t->arg[PS_ARG_SAVED], c->m.saved_count);
    else if (t->arg[out ? PS_ARG_X_IN : PS_ARG_X_OUT] >= 0)
        x = at(w, t, w->x, t->arg[out ? PS_ARG_X_IN : PS_ARG_X_OUT], c->m.x_count);
    if (disk && kept)
        file = at(w, t, w->disk_saved, c->m.saved_disk_idx[t->unit] * c->l.group + t->micro,
                  COUNT_MAX);
    else if (disk)
        file = at(w, t, w->disk_x, c->m.x_disk_idx[t->unit] * c->l.group + t->micro, COUNT_MAX);
    struct held *near = x ? x : host, *far = disk ? file : host;
    if (!near || !far || near == far)
        wrong(w, t, "moves nothing");
    struct held *from = out ? near : far, *to = out ? far : near;
    need(w, t, from, t->unit, "the boundary is not there");
    *to = *from;
}

static void run_task(struct world *w, const struct ps_task *t)
{
    bool uses_batch = t->kind == PS_TASK_EMBED || t->kind == PS_TASK_HEAD ||
                      t->kind == PS_TASK_LAYER_FORWARD || t->kind == PS_TASK_LAYER_BACKWARD;
    if (uses_batch && (t->micro < 0 || w->batch[t->micro] != w->pass))
        wrong(w, t, "its rows are not there");
    switch (t->kind) {
    case PS_TASK_READ_WEIGHTS:
    case PS_TASK_COPY_WEIGHTS:
        run_weights(w, t);
        break;
    case PS_TASK_LAYER_FORWARD:
    case PS_TASK_LAYER_RECOMPUTE:
    case PS_TASK_LAYER_BACKWARD:
        run_layer(w, t);
        break;
    case PS_TASK_EMBED:
        run_embed(w, t);
        break;
    case PS_TASK_HEAD:
        run_head(w, t);
        break;
    case PS_TASK_EMBED_BACKWARD:
        need(w, t, &w->dx[t->arg[PS_ARG_DX]], 0, "its gradient is not there");
        break;
    case PS_TASK_COPY_BATCH:
        w->batch[t->micro] = w->pass;
        break;
    case PS_TASK_SPILL_OUT:
    case PS_TASK_SPILL_WRITE:
    case PS_TASK_SPILL_READ:
    case PS_TASK_SPILL_IN:
        run_spill(w, t);
        break;
    default:
        break;
    }
}

static void build(struct ps_schedule *s, enum ps_segment segment, const struct setting *c,
                  uint64_t seed)
{
    struct ps_error err = {0};
    if (ps_step_build(s, segment, &c->p, &c->l, &c->m, &err) != 0)
        fail_msg("seed %d: %s", (int)seed, err.message);
}

static void run_segment(struct world *w, const struct ps_schedule *s, bool eval)
{
    const struct setting *c = w->c;
    w->s = s;
    w->eval = eval;
    w->pass++;
    for (int32_t m = 0; !c->l.discrete && m < COUNT_MAX; m++)
        w->batch[m] = w->pass; /* filled by the caller */
    memset(w->forward, 0, sizeof w->forward);
    memset(w->recompute, 0, sizeof w->recompute);
    memset(w->backward, 0, sizeof w->backward);
    w->heads = w->embeds = 0;
    for (uint32_t i = 0; i < s->task_count; i++)
        run_task(w, &s->task[i]);
}

/* Every layer once for every micro-batch, forward and where something is trained backward. */
static void check_counts(const struct world *w)
{
    const struct setting *c = w->c;
    int32_t group = w->eval ? c->l.eval_group : c->l.group;
    int32_t blocks = c->l.weight[0] == PS_TIER_DEVICE ? 1 : (int32_t)c->source.embed_block_count;
    int32_t lowest = c->p.embed_trained ? 0 : c->p.first_trained;
    assert_int_equal(w->embeds, group * blocks);
    assert_int_equal(w->heads, group);
    for (int32_t l = 0; l < c->p.n_layer; l++) {
        assert_int_equal(w->forward[l], group);
        bool back = !w->eval && l >= lowest;
        assert_int_equal(w->backward[l], back ? group : 0);
        /* what the last task of the forward pass made is still there */
        bool there = l == c->p.n_layer - 1 && group == 1;
        bool again = back && c->l.recompute[l] != PS_RECOMPUTE_R0 && !there;
        assert_int_equal(w->recompute[l], again ? group : 0);
    }
}

static struct world *new_world(const struct setting *c, uint64_t seed)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->c = c;
    w->seed = seed;
    for (int i = 0; i < COUNT_MAX; i++)
        w->slot[i] = w->raw[i] = -1;
    return w;
}

static void every_task_finds_what_it_works_on(void **state)
{
    (void)state;
    int spilled = 0, forwarded = 0, trained = 0;
    for (uint64_t seed = 1; seed <= 2000; seed++) {
        uint64_t random = seed;
        struct setting c;
        struct ps_schedule train, eval, prologue;
        random_setting(&c, &random);
        struct world *w = new_world(&c, seed);
        build(&prologue, c.p.trains ? PS_SEGMENT_PROLOGUE_TRAIN : PS_SEGMENT_PROLOGUE_EVAL, &c,
              seed);
        run_segment(w, &prologue, false);
        build(&eval, PS_SEGMENT_EVAL, &c, seed);
        if (c.p.trains) {
            struct ps_error err = {0};
            build(&train, PS_SEGMENT_TRAIN, &c, seed);
            if (ps_step_check(&train, &prologue, PS_SEGMENT_TRAIN, &c.p, &c.l, &c.m, &err) != 0)
                fail_msg("seed %d: %s", (int)seed, err.message);
            for (int k = 0; k < 3; k++) {
                run_segment(w, &train, false);
                check_counts(w);
                run_segment(w, k == 1 ? &eval : &train, k == 1);
                check_counts(w);
            }
            uint64_t out = ps_schedule_kind_bytes(&train, PS_TASK_SPILL_WRITE) +
                           ps_schedule_kind_bytes(&train, PS_TASK_SPILL_OUT);
            trained++;
            spilled += out > 0;
            forwarded += out == 0 && c.m.x_kept < (c.p.n_layer - c.p.first_trained) * c.l.group;
            ps_schedule_fini(&train);
        }
        for (int k = 0; k < 2; k++) {
            run_segment(w, &eval, true);
            check_counts(w);
        }
        ps_schedule_fini(&eval);
        ps_schedule_fini(&prologue);
        free(w);
        setting_fini(&c);
    }
    assert_true(trained > 1500);
    assert_true(spilled > 500);
    assert_true(forwarded > 50);
}

/* Leaving out any edge of the reduction breaks the declared order. The ablation of prefetching adds
 * dependencies that no range asks for: not there. */
static void deleting_each_edge_of_a_segment_is_noticed(void **state)
{
    (void)state;
    size_t edges = 0;
    for (uint64_t seed = 1; seed <= 150; seed++) {
        uint64_t random = seed * 77;
        struct setting c;
        random_setting(&c, &random);
        c.l.ablate &= ~(unsigned)PS_ABLATE_PREFETCH;
        for (int segment = 0; segment < PS_SEGMENT_COUNT; segment++) {
            if (!c.p.trains && (segment == PS_SEGMENT_TRAIN || segment == PS_SEGMENT_UPDATE ||
                                segment == PS_SEGMENT_PROLOGUE_TRAIN))
                continue;
            struct ps_schedule s;
            struct ps_error err = {0};
            build(&s, (enum ps_segment)segment, &c, seed);
            struct ps_edge *edge;
            size_t count;
            assert_int_equal(ps_schedule_reduction(&s, &edge, &count), 0);
            for (size_t i = 0; i < count; i++)
                if (ps_schedule_validate_without(&s, &edge[i], &err) != PS_EUSAGE)
                    fail_msg("seed %d, %s: edge %u (%s) -> %u (%s), distance %u may go unnoticed",
                             (int)seed, s.name, edge[i].from,
                             ps_task_kind_name(s.task[edge[i].from].kind), edge[i].to,
                             ps_task_kind_name(s.task[edge[i].to].kind), edge[i].distance);
            edges += count;
            free(edge);
            ps_schedule_fini(&s);
        }
        setting_fini(&c);
    }
    assert_true(edges > 5000);
}

/* All layers streamed through S of U slots: the S at each turn stay, the others are read twice. */
static void a_pass_reads_each_unit_twice_less_those_at_the_turns(void **state)
{
    (void)state;
    struct setting c;
    uint64_t random = 5;
    memset(&c, 0, sizeof c);
    random_shape(&c, &random);
    c.p.n_layer = LAYERS_MAX;
    c.p.first_trained = 0;
    c.p.trains = c.p.frozen = true;
    c.p.embed_trained = c.p.head_trained = c.p.tied = false;
    random_sources(&c, &random);
    for (int32_t slots = 1; slots <= LAYERS_MAX; slots++)
        for (unsigned ablate = 0; ablate <= PS_ABLATE_CROSS_STEP; ablate += PS_ABLATE_TURNS) {
            struct ps_error err = {0};
            assert_int_equal(ps_step_layout_init(&c.l, &c.p), 0);
            for (int32_t l = 0; l < LAYERS_MAX; l++)
                c.l.weight[l + 1] = PS_TIER_DISK;
            c.l.near_slots = slots;
            c.l.raw_slots = 2;
            c.l.ablate = ablate;
            assert_int_equal(ps_step_map_create(&c.m, &c.p, &c.l, &err), 0);
            struct ps_schedule s;
            build(&s, PS_SEGMENT_TRAIN, &c, 5);
            uint32_t reads = 0;
            for (uint32_t i = 0; i < s.task_count; i++)
                reads += s.task[i].kind == PS_TASK_READ_WEIGHTS;
            uint32_t kept = (uint32_t)slots * (ablate == 0 ? 2 : ablate == PS_ABLATE_TURNS ? 0 : 1);
            assert_int_equal(reads, 2 * LAYERS_MAX - kept);
            ps_schedule_fini(&s);
            setting_fini(&c);
        }
}

/* Of the boundaries that are moved, those in the ring at the turn are neither written nor read: all
 * its buffers but one a micro-batch, which holds the input of the head. */
static void the_last_boundaries_are_forwarded(void **state)
{
    (void)state;
    for (int32_t group = 1; group <= GROUP_MAX; group++)
        for (int32_t spare = 1; spare <= LAYERS_MAX * group; spare++) {
            struct setting c;
            struct ps_error err = {0};
            uint64_t random = 6;
            memset(&c, 0, sizeof c);
            random_shape(&c, &random);
            c.p.n_layer = LAYERS_MAX;
            c.p.first_trained = 0;
            c.p.trains = true;
            random_sources(&c, &random);
            assert_int_equal(ps_step_layout_init(&c.l, &c.p), 0);
            for (int32_t l = 0; l < LAYERS_MAX; l++)
                c.l.boundary[l] = PS_TIER_DISK;
            c.l.group = group;
            c.l.x_ring = group + spare;
            assert_int_equal(ps_step_map_create(&c.m, &c.p, &c.l, &err), 0);
            struct ps_schedule s;
            build(&s, PS_SEGMENT_TRAIN, &c, 6);
            uint64_t moved = (uint64_t)(LAYERS_MAX * group - spare) * c.m.x_stride;
            assert_int_equal(ps_schedule_kind_bytes(&s, PS_TASK_SPILL_WRITE), moved);
            assert_int_equal(ps_schedule_kind_bytes(&s, PS_TASK_SPILL_READ), moved);
            ps_schedule_fini(&s);
            setting_fini(&c);
        }
}

static void segments_go_through_files(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        uint64_t random = seed * 131;
        struct setting c;
        struct ps_schedule s[PS_SEGMENT_COUNT], back[PS_SEGMENT_COUNT];
        const struct ps_schedule *set[PS_SEGMENT_COUNT];
        struct ps_error err = {0};
        size_t n = 0, count = 0;
        random_setting(&c, &random);
        for (int segment = 0; segment < PS_SEGMENT_COUNT; segment++)
            if (c.p.trains || segment == PS_SEGMENT_EVAL || segment == PS_SEGMENT_PROLOGUE_EVAL) {
                build(&s[n], (enum ps_segment)segment, &c, seed);
                set[n] = &s[n];
                n++;
            }
        assert_int_equal(ps_schedule_export_set(set, n, "segments.json", &err), 0);
        if (ps_schedule_import_set(back, PS_SEGMENT_COUNT, &count, "segments.json", &err) != 0)
            fail_msg("seed %d: %s", (int)seed, err.message);
        assert_int_equal(count, n);
        for (size_t i = 0; i < n; i++) {
            assert_ptr_equal(back[i].name, s[i].name);
            assert_int_equal(back[i].task_count, s[i].task_count);
            assert_int_equal(back[i].dep_count, s[i].dep_count);
            assert_int_equal(back[i].access_count, s[i].access_count);
            ps_schedule_fini(&back[i]);
            ps_schedule_fini(&s[i]);
        }
        setting_fini(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_finds_what_it_works_on),
        cmocka_unit_test(deleting_each_edge_of_a_segment_is_noticed),
        cmocka_unit_test(a_pass_reads_each_unit_twice_less_those_at_the_turns),
        cmocka_unit_test(the_last_boundaries_are_forwarded),
        cmocka_unit_test(segments_go_through_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
