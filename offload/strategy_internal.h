/* What strategies and planner share: turning a few choices into a layout that fills the budgets,
 * and a quick estimate of what a layout costs. See planner.h. */
#ifndef PS_OFFLOAD_STRATEGY_INTERNAL_H
#define PS_OFFLOAD_STRATEGY_INTERNAL_H

#include "offload/planner.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where layer boundaries wait for the backward pass. */
enum ps__x_choice {
    PS__X_NEAR,  /* all near */
    PS__X_MOVED, /* all to host memory (discrete devices, as far as the budget goes), the rest to
                    disk */
    PS__X_MIXED, /* as many near as fit, spread evenly, the rest moved */
};

enum ps__keep_choice {
    PS__KEEP_NONE,     /* recompute every layer */
    PS__KEEP_BALANCED, /* keep the last ones until compute takes no longer than the transfers */
    PS__KEEP_MOST,     /* keep as many of the last layers as fit */
    PS__KEEP_SWAPPED,  /* move what layers keep out and back, until compute takes no longer than the
                          transfers */
};

/* What the memory that is left is used for. */
enum ps__cache_choice {
    PS__CACHE_SLOTS,       /* as many slots as fit, nothing pinned */
    PS__CACHE_PINS_2,      /* two slots, as many layers pinned as fit, spread evenly */
    PS__CACHE_PINS_1,      /* the same with one slot: enough where raw slots are read ahead */
    PS__CACHE_PINS_3,      /* the same with three slots, and three raw ones */
    PS__CACHE_EMBED_SLOTS, /* the embedding pinned, then as many slots as fit */
    PS__CACHE_EMBED_PINS,  /* the embedding pinned, three slots, then layers */
    PS__CACHE_LEAST,       /* one slot, nothing pinned */
    PS__CACHE_COUNT,
};

/* Full fine-tuning: where the optimizer states lie. */
enum ps__state_choice {
    PS__STATE_DISK,   /* all: every step is a checkpoint */
    PS__STATE_MEMORY, /* all, and the weights where they are updated */
    PS__STATE_MIXED,  /* as many units as fit in memory */
};

/* Where gradients wait for the update. */
enum ps__grad_choice {
    PS__GRAD_MIXED,   /* layers in shared slots, kept in memory as far as they fit, the rest on disk
                       */
    PS__GRAD_MEMORY,  /* the same, all in memory */
    PS__GRAD_OWN,     /* each in a place of its own */
    PS__GRAD_DROPPED, /* in shared slots and nowhere else */
};

/* What of an update gets memory first. */
enum ps__order_choice {
    PS__ORDER_WEIGHTS,
    PS__ORDER_GRADS,
    PS__ORDER_STATES,
    PS__ORDER_SLOTS, /* of states: reads run ahead and writes fall behind into the forward pass */
};

struct ps__choice {
    const char *strategy; /* static storage */
    bool stream;          /* false: every unit is pinned */
    int32_t group;        /* micro-batches (training) or sequences (else) a pass */
    enum ps__x_choice x;
    enum ps__keep_choice keep;
    enum ps__cache_choice cache;
    enum ps_update_when update; /* not RESIDENT: full fine-tuning, updated on the host */
    enum ps__state_choice state;
    enum ps__grad_choice grad;
    enum ps__order_choice order;
    int32_t deferred; /* INSIDE: so many layers in sixteen in the next forward pass */
};

/* Fill a layout for the choice, using the budgets of the request; what does not fit at all is
 * filled with the least memory that the choice allows. The caller releases it. 0 or a negative
 * status. */
int ps__choice_layout(const struct ps_planner_request *req, const struct ps__choice *choice,
                      struct ps_step_layout *out, struct ps_error *err) PS_WARN_UNUSED;

/* The i-th group size worth trying, the largest first; 0 past the end. */
int32_t ps__choice_group(const struct ps_planner_request *req, int i);

/* All micro-batches of a step, in one pass. */
int32_t ps__choice_whole_step(const struct ps_planner_request *req);

/* What an update inside the backward pass asks of gradients: kept for a redo where that can come.
 */
enum ps__grad_choice ps__choice_inside_grad(const struct ps_planner_request *req);

/* Number i in lists of choices: index % count of each in turn, the first the fastest; what is left
 * of i is returned. */
int ps__choice_pick(int i, int count, int *index);

/* Units that may leave the device where weights are streamed: layers, and an embedding that is not
 * the head too. */
bool ps__unit_streamable(const struct ps_planner_request *req, int32_t unit_idx);

/* Bytes by tier as the budgets count them: without a device memory of its own all memory is that of
 * tier DEVICE, where compute reads and writes. 0 or a negative status. */
int ps__layout_bytes(const struct ps_planner_request *req, const struct ps_step_layout *l,
                     uint64_t bytes[PS_TIER_COUNT], struct ps_error *err) PS_WARN_UNUSED;
bool ps__bytes_fit(const struct ps_planner_request *req, const uint64_t bytes[PS_TIER_COUNT]);

/* A lower bound of the time of a step and what it moves, without building a schedule: each lane's
 * own work, and each resource's share of it. */
struct ps__estimate {
    double lane_s[PS_LANE_COUNT];
    double bound_s;       /* no schedule of the layout is faster, but for parts in a hundred */
    double guess_s;       /* more likely: the phases of a pass overlap little; orders proposals */
    uint64_t read_bytes;  /* weights from disk, a step */
    uint64_t write_bytes; /* to the disk, a step */
    double serial_s;      /* one task after the other: no schedule is slower */
};
int ps__estimate_layout(struct ps__estimate *out, const struct ps_planner_request *req,
                        const struct ps_cost_model *cost,
                        const struct ps_step_layout *l) PS_WARN_UNUSED;

/* "group 8, 3 slots, 5 of 22 layers pinned, ..." into note. */
void ps__layout_note(const struct ps_step_shape *shape, const struct ps_step_layout *l, char *note,
                     size_t size);

#ifdef __cplusplus
}
#endif
#endif
