/* Layouts of full fine-tuning in letters, and a spill store for it. Include after stream_io.h. */
#ifndef PS_TESTS_HELPERS_FULL_PLAN_H
#define PS_TESTS_HELPERS_FULL_PLAN_H

#include "offload/spill_store.h"
#include "tests/helpers/stream_io.h"

struct full_plan {
    const char *name;
    const char *weights, *states, *grads; /* by unit: n near, h host, d disk; tied: the head near */
    const char *boundary, *keep;
    const char *saved; /* NULL: near */
    int32_t saved_ring;
    int32_t group, near_slots, raw_slots, x_ring, host_ring, grad_slots, grad_ring, state_slots,
        deferred, image_pairs;
    bool ends_own;
    enum ps_update_when update;
    bool emu;
};

static inline void full_plan_set(struct ps_trainer *t, const struct full_plan *p)
{
    const struct ps_step_shape *shape = ps_trainer_shape(t);
    struct ps_step_layout l;
    struct ps_error err = {0};
    assert_int_equal(ps_step_layout_init(&l, shape), 0);
    l.discrete = p->emu;
    l.group = p->group;
    l.eval_group = 2;
    l.near_slots = p->near_slots;
    l.raw_slots = p->raw_slots;
    l.x_ring = p->x_ring;
    l.host_ring = p->host_ring;
    l.saved_ring = p->saved_ring;
    l.grad_slots = p->grad_slots;
    l.grad_ring = p->grad_ring;
    l.state_slots = p->state_slots;
    l.deferred = p->deferred;
    l.ends_own = p->ends_own;
    l.image_pairs = p->image_pairs;
    l.update = p->update;
    for (int32_t i = 0; i < shape->n_layer + 2; i++) {
        bool pinned = shape->tied && i == shape->n_layer + 1;
        l.weight[i] = pinned ? PS_TIER_DEVICE : stream_plan_tier(p->weights[i]);
        l.state[i] = stream_plan_tier(p->states[i]);
        l.grad[i] = stream_plan_tier(p->grads[i]);
    }
    for (int32_t i = 0; i < shape->n_layer; i++) {
        l.boundary[i] = stream_plan_tier(p->boundary[i]);
        l.recompute[i] = stream_plan_level(p->keep[i]);
        l.saved[i] = p->saved ? stream_plan_tier(p->saved[i]) : PS_TIER_DEVICE;
    }
    if (ps_trainer_set_layout(t, &l, &err) < 0)
        fail_msg("%s: %s (%s)", p->name, err.message, err.field);
    ps_step_layout_fini(&l);
}

/* A fresh store in `dir` for the trainer. */
static inline struct ps_spill_store *full_store_create(struct ps_trainer *t, const char *dir,
                                                       enum ps_spill_mode mode)
{
    struct ps_error err = {0};
    uint32_t count;
    const struct ps_store_extent *e = ps_trainer_store_extents(t, &count);
    assert_int_equal(ps_file_make_dirs(dir, &err), 0);
    struct ps_spill_store *s = NULL;
    struct ps_spill_store_options o = {.path = &dir,
                                       .path_count = 1,
                                       .run_uuid = "01234567-89ab-cdef-0123-456789abcdef",
                                       .mode = mode,
                                       .extent = e,
                                       .extent_count = count,
                                       .open = ps_storage_open_threads};
    if (ps_spill_store_create(&s, &o, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    ps_trainer_set_store(t, ps_spill_store_state(s));
    return s;
}

#endif
