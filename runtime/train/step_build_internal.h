/* What step_build.c (passes) and step_update.c (streamed updates) share: see step.h. */
#ifndef PS_TRAIN_STEP_BUILD_INTERNAL_H
#define PS_TRAIN_STEP_BUILD_INTERNAL_H

#include "runtime/train/step_internal.h"

/* What a ring buffer holds: boundary or kept piece `layer` of micro-batch `micro`; layer -1:
 * nothing of use. */
struct ps__ring {
    int32_t layer, micro;
    bool busy;      /* in use by the tasks being emitted */
    uint32_t freed; /* when it was released: the order of releases */
};

/* Near buffers of things that are moved. */
struct ps__rings {
    struct ps__ring *ring;
    int32_t count;
    int32_t first;     /* number of the first buffer */
    bool *served;      /* (n_layer, group) one that is still near when backward wants it */
    int32_t host_next; /* position in the host's ring */
    uint32_t releases;
};

struct ps__build {
    struct ps_schedule *s;
    enum ps_segment segment;
    const struct ps_step_shape *p;
    const struct ps_step_layout *l;
    const struct ps_step_map *m;
    int32_t *content; /* (near_slots) source number in the slot now, -1: none */
    int32_t *live_in; /* (near_slots) what it holds at the beginning and end of every pass */
    int32_t *cur;     /* (group) x buffer of each micro-batch's boundary */
    struct ps__rings x, saved; /* boundaries, kept pieces of saved sets */
    bool dry;                  /* first walk: find what is served, emit nothing that counts */
    int32_t raw_next;
    int32_t grad_next, grad_host_next, state_next; /* ring positions of streamed updates */
    int32_t state_ahead; /* so many states of deferred updates the pass before has read */
    bool inside_begun;   /* updates inside the backward pass take their places after the deferred */
    int32_t ahead_next;  /* so many has this one read for the next */
    int32_t rest_layer, rest_micro; /* whose saved set the shared piece completes; layer -1: none */
    int64_t last_compute;           /* -1: none */
    uint32_t flags;
    bool streams; /* updates run on the host, in granules */
    /* without gradients: the pair that the tasks emitted next compute with, -1: none; the ring */
    int32_t image, image_next;
};

/* Add a task with a micro-batch and the present flags; set an argument of the task added last; its
 * cost; declare what it touches: in this order. */
uint32_t ps__emit(struct ps__build *b, enum ps_task_kind kind, enum ps_lane lane, int32_t unit,
                  int32_t micro);
void ps__arg(struct ps__build *b, enum ps_task_arg a, int32_t value);
void ps__cost(struct ps__build *b, double flops, uint64_t bytes);
void ps__done(struct ps__build *b);

/* Make a unit's weights available to the tasks emitted next; returns the slot, -1: pinned. */
int32_t ps__use_unit(struct ps__build *b, int32_t unit, int32_t block);

/* step_moves.c. 0 or -ENOMEM; close after either. Before a pass nothing is near. */
int ps__moves_open(struct ps__build *b);
void ps__moves_close(struct ps__build *b);
void ps__forget_moves(struct ps__build *b);

/* Where boundary l of a micro-batch is written: a buffer of its own, or one of the ring. */
int32_t ps__place_boundary(struct ps__build *b, int32_t l, int32_t micro);
/* Where the boundary after layer l is written, its input being in buffer x; maybe there too. */
int32_t ps__pass_boundary(struct ps__build *b, int32_t l, int32_t micro, int32_t x);
bool ps__boundary_moved(const struct ps__build *b, int32_t l);
/* It has just been made in buffer x: send it where it waits for the backward pass. */
void ps__spill_boundary(struct ps__build *b, int32_t l, int32_t micro, int32_t x);
/* For the backward pass: where it was kept, where it still is, or fetched. */
int32_t ps__fetch_boundary(struct ps__build *b, int32_t l, int32_t micro);
/* forget: nobody wants what it holds. */
void ps__release_boundary(struct ps__build *b, int32_t x, bool forget);

/* The same of what a layer keeps of its saved set; -1: nothing. */
int32_t ps__place_saved(struct ps__build *b, int32_t l, int32_t micro);
void ps__spill_saved(struct ps__build *b, int32_t l, int32_t micro, int32_t saved);
int32_t ps__fetch_saved(struct ps__build *b, int32_t l, int32_t micro);
void ps__release_saved(struct ps__build *b, int32_t saved, bool forget);
/* Any one for layer l, in evaluation: the shared rest is no whole set. */
int32_t ps__eval_saved(const struct ps__build *b, int32_t l);

/* step_update.c. The gradient of a unit is complete but for this pass's part: bring the sum of the
 * passes before into the near slot that is returned (-1: a place of its own). */
int32_t ps__begin_gradient(struct ps__build *b, int32_t unit);
/* This pass's part is there too: norm (in the last pass), to where it is kept, and with INSIDE the
 * update. */
void ps__finish_gradient(struct ps__build *b, int32_t unit, int32_t near_slot);
/* Updates before the forward pass uses a unit (NEXT_FORWARD); of every unit after the backward pass
 * (AFTER), or of those that are left (INSIDE), with clipping and commit; of all, by themselves. */
void ps__update_before(struct ps__build *b, int32_t unit);
/* Ring positions for a pass; the backward pass has left a layer: read states for the next pass. */
void ps__begin_states(struct ps__build *b);
void ps__read_states_ahead(struct ps__build *b, int32_t layer);
void ps__update_after(struct ps__build *b);
void ps__update_all(struct ps__build *b);

/* step_zeroth.c: the tasks between the first copies and the reads for the next pass. */
void ps__zeroth_pass(struct ps__build *b);

static inline bool ps__trained(const struct ps__build *b, int32_t unit)
{
    return b->p->grad_bytes && b->p->grad_bytes[ps_step_unit_idx(b->p, unit)] > 0;
}

#endif
