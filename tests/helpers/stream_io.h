/* What a trainer needs to stream, from offload/, for tests: a storage back end by name and a spill
 * file in a directory. Include after cmocka.h. */
#ifndef PS_TESTS_HELPERS_STREAM_IO_H
#define PS_TESTS_HELPERS_STREAM_IO_H

#include "offload/storage_backends.h"
#include "offload/stripe.h"
#include "runtime/base/file.h"
#include "runtime/train/trainer.h"

struct stream_io {
    const char *backend;
    const char *dir; /* of the spill file; made when it is not there */
    struct ps_stripe *stripe;
};

static inline int stream_io_open(void *arg, struct ps_storage **out,
                                 const struct ps_storage_options *opt, struct ps_error *err)
{
    struct stream_io *io = arg;
    return ps_storage_open_auto(out, io->backend, opt, NULL, err);
}

static inline int stream_io_create(void *arg, uint64_t bytes, struct ps_error *err)
{
    struct stream_io *io = arg;
    struct ps_stripe_options o = {
        .path = &io->dir, .path_count = 1, .bytes = bytes, .skip_zeros = true};
    int ret = ps_file_make_dirs(io->dir, err);
    return ret < 0 ? ret : ps_stripe_open(&io->stripe, &o, err);
}

static inline int stream_io_attach(void *arg, struct ps_storage *st, struct ps_error *err)
{
    struct stream_io *io = arg;
    uint32_t base;
    return ps_stripe_add_files(io->stripe, st, &base, err);
}

static inline int stream_io_map(void *arg, uint64_t offset, uint64_t bytes, struct ps_transfer *out,
                                int max)
{
    struct stream_io *io = arg;
    struct ps_stripe_layout l = ps_stripe_get_layout(io->stripe);
    assert_true(ps_stripe_map_max(&l, bytes) <= (uint32_t)max);
    return (int)ps_stripe_map(&l, 0, false, offset, bytes, NULL, out);
}

static inline struct ps_trainer_io stream_io_ops(struct stream_io *io)
{
    return (struct ps_trainer_io){.open = stream_io_open,
                                  .arg = io,
                                  .spill_create = stream_io_create,
                                  .spill_attach = stream_io_attach,
                                  .spill_map = stream_io_map};
}

/* After the trainer is destroyed. */
static inline void stream_io_close(struct stream_io *io)
{
    ps_stripe_close(io->stripe);
    io->stripe = NULL;
}

/* Where things lie, in letters, one a unit or layer: n near, h host, d disk. */
struct stream_plan {
    const char *name;
    const char *weights;  /* embedding, layers, head */
    const char *boundary; /* layers */
    const char *keep;     /* layers: k keep, r recompute; 0 .. 4: by level */
    const char *saved;    /* layers: where that waits; NULL: near */
    int32_t saved_ring;
    int32_t group, eval_group, near_slots, raw_slots, x_ring, host_ring;
    int32_t interleave;
    unsigned ablate;
    bool emu;
};

static inline enum ps_tier stream_plan_tier(char c)
{
    return c == 'd' ? PS_TIER_DISK : c == 'h' ? PS_TIER_HOST : PS_TIER_DEVICE;
}

static inline enum ps_recompute stream_plan_level(char c)
{
    return c == 'k' ? PS_RECOMPUTE_R0 : c == 'r' ? PS_RECOMPUTE_R4 : (enum ps_recompute)(c - '0');
}

/* Give a created trainer this layout. */
static inline void stream_plan_set(struct ps_trainer *t, const struct stream_plan *p)
{
    const struct ps_step_shape *shape = ps_trainer_shape(t);
    struct ps_step_layout l;
    struct ps_error err = {0};
    assert_int_equal(ps_step_layout_init(&l, shape), 0);
    l.discrete = p->emu;
    l.group = p->group;
    l.eval_group = p->eval_group;
    l.near_slots = p->near_slots;
    l.raw_slots = p->raw_slots;
    l.x_ring = p->x_ring;
    l.host_ring = p->host_ring;
    l.saved_ring = p->saved_ring;
    l.interleave = p->interleave;
    l.ablate = p->ablate;
    for (int32_t i = 0; i < shape->n_layer + 2; i++)
        l.weight[i] = stream_plan_tier(p->weights[i]);
    for (int32_t i = 0; i < shape->n_layer; i++) {
        l.boundary[i] = stream_plan_tier(p->boundary[i]);
        l.recompute[i] = stream_plan_level(p->keep[i]);
        l.saved[i] = p->saved ? stream_plan_tier(p->saved[i]) : PS_TIER_DEVICE;
    }
    if (ps_trainer_set_layout(t, &l, &err) < 0)
        fail_msg("%s: %s (%s)", p->name, err.message, err.field);
    ps_step_layout_fini(&l);
}

/* And memory. */
static inline void stream_plan_commit(struct ps_trainer *t, const struct stream_plan *p)
{
    struct ps_error err = {0};
    stream_plan_set(t, p);
    if (ps_trainer_commit(t, &err) < 0)
        fail_msg("%s: %s (%s)", p->name, err.message, err.field);
}

#endif
