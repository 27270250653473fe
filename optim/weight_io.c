/* Tiles of masters, gradients and states: see weight_io.h. The loops are in tile_internal.h. */
#include "optim/weight_io.h"

#include "optim/tile_internal.h"

/* What one call moves. */
struct move {
    float *to;
    const float *from;
    int state;
};

PS__INLINE void load_weight(PS__TILE_ARGS)
{
    ps__weight_load(u, at, n, ((const struct move *)arg)->to);
}
PS__TILE_VARIANTS(load_weight)

PS__INLINE void store_weight(PS__TILE_ARGS)
{
    const float *from = ((const struct move *)arg)->from;
    for (size_t i = 0; i < n; i += PS_TILE)
        ps__weight_store(u, at + i, n - i < PS_TILE ? n - i : PS_TILE, from + i);
}
PS__TILE_VARIANTS(store_weight)

PS__INLINE void load_grad(PS__TILE_ARGS)
{
    ps__grad_load(u, at, n, ((const struct move *)arg)->to);
}
PS__TILE_VARIANTS(load_grad)

PS__INLINE void load_state(PS__TILE_ARGS)
{
    const struct move *m = arg;
    ps__state_load(u, m->state, at, n, m->to);
}
PS__TILE_VARIANTS(load_state)

PS__INLINE void store_state(PS__TILE_ARGS)
{
    const struct move *m = arg;
    for (size_t i = 0; i < n; i += PS_TILE)
        ps__state_store(u, m->state, at + i, n - i < PS_TILE ? n - i : PS_TILE, m->from + i);
}
PS__TILE_VARIANTS(store_state)

void ps_weight_load(const struct ps_update *u, size_t at, size_t n, float *w)
{
    struct move m = {.to = w};
    load_weight_for(u->isa)(u, &m, at, n);
}

void ps_weight_store(const struct ps_update *u, size_t at, size_t n, const float *w)
{
    struct move m = {.from = w};
    store_weight_for(u->isa)(u, &m, at, n);
}

void ps_grad_load(const struct ps_update *u, size_t at, size_t n, float *g)
{
    struct move m = {.to = g};
    load_grad_for(u->isa)(u, &m, at, n);
}

void ps_state_load(const struct ps_update *u, int state, size_t at, size_t n, float *x)
{
    struct move m = {.to = x, .state = state};
    load_state_for(u->isa)(u, &m, at, n);
}

void ps_state_store(const struct ps_update *u, int state, size_t at, size_t n, const float *x)
{
    struct move m = {.from = x, .state = state};
    store_state_for(u->isa)(u, &m, at, n);
}

uint16_t ps_round_stochastic(float x, uint16_t r)
{
    return ps__round(x, r);
}

struct tiles {
    const struct ps_update *u;
    ps__tile_fn body;
    const void *arg;
    size_t tile, group; /* elements of a tile, of a task */
};

static void run_task(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct tiles *t = arg;
    size_t n = t->u->n, end = (task + 1) * t->group < n ? (task + 1) * t->group : n;
    for (size_t at = task * t->group; at < end; at += t->tile)
        t->body(t->u, t->arg, at, end - at < t->tile ? end - at : t->tile);
}

void ps_update_tiles(const struct ps_update *u, size_t tile, ps__tile_fn body, const void *arg)
{
    size_t group = tile * (tile < 16384 ? 16384 / tile : 1);
    struct tiles t = {.u = u, .body = body, .arg = arg, .tile = tile, .group = group};
    ps_pool_run(u->pool, run_task, &t, (u->n + group - 1) / group);
}
