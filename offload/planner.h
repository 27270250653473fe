/* The planner: which layout, from shape, budgets and profile, by simulating candidates. */
#ifndef PS_OFFLOAD_PLANNER_H
#define PS_OFFLOAD_PLANNER_H

#include <jansson.h>

#include "offload/profile.h"
#include "offload/simulator.h"
#include "runtime/train/step.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_planner_request {
    const struct ps_step_shape *shape;
    const struct ps_profile *profile;
    struct ps_cost_query cost;
    bool discrete;
    int32_t micro_count; /* micro-batches of a step */
    int32_t eval_max;    /* most sequences that an evaluation or generation pass could use */
    int64_t tokens;      /* planned tokens of one micro-batch */
    /* Bytes for the buffers; UINT64_MAX: no limit. Not discrete: all memory is the device's tier, and
     * host_budget counts nothing. */
    uint64_t device_budget, host_budget, disk_budget;
    const char *strategy;        /* "auto" or a name */
    int32_t prefetch_depth;      /* slots read ahead; 0: the planner chooses */
    int offload_weights;         /* -1 auto, else enum ps_tier */
    int offload_activations;     /* -1 auto, PS_TIER_*, or PS_PLAN_RECOMPUTE */
    int offload_optimizer;       /* -1 auto, else enum ps_tier: where optimizer states live */
    enum ps_clip_mode clip;
    double clip_share; /* of steps, 0 .. 1: how often updates are expected to be taken back */
    /* Bytes on disk of the store that layouts with streamed updates need, all its slots; 0: twice
     * what the layout says. */
    uint64_t store_bytes;
    uint64_t write_limit;        /* bytes that may be written to the disk in a day; 0: any */
    unsigned ablate;
    const struct ps_step_layout *placement; /* not NULL: take it as it is (--placement) */
};
#define PS_PLAN_RECOMPUTE 100

struct ps_plan_candidate {
    const char *strategy;
    double step_s;
    uint64_t device_bytes, host_bytes, disk_bytes;
    uint64_t write_bytes; /* to the disk, a step */
    bool fits;
    bool wears;           /* fits, but writes more a day than it may */
    char note[160]; /* "3 slots, 5 of 22 layers pinned, recompute" */
};

#define PS_PLAN_CANDIDATE_MAX 64

struct ps_plan {
    struct ps_step_layout layout;
    struct ps_cost_model cost;
    struct ps_sim_result step; /* one optimizer step in the steady state */
    double step_s, serial_s, tokens_per_s;
    bool commits; /* every step is a checkpoint */
    double redo_s; /* more in a step that is clipped: its updates inside the backward pass are made
                      again; 0: never */
    uint64_t redo_write_bytes; /* written more in it */
    uint64_t needs_write_limit; /* PS_ENOFIT for the write limit alone: the least that would do */
    uint64_t device_bytes, host_bytes, disk_bytes; /* buffers; not discrete: host_bytes is 0 */
    uint64_t disk_read, disk_write, h2d, d2h;      /* bytes a step */
    double tokens_per_pass, break_even_tokens;     /* N*; 0 when nothing is streamed */
    double slowdown; /* step time over that of the compute lane alone */
    enum ps_lane bottleneck;
    struct ps_plan_candidate candidate[PS_PLAN_CANDIDATE_MAX]; /* tried, best first */
    int candidate_count;
    char why[1024]; /* in words */
};

/* Choose. What is planned is an optimizer step, or, of a shape that does not train, a pass over eval_max
 * sequences (generation, with a key-value cache: over one token of each). PS_ENOFIT when nothing fits: then out->device_bytes, host_bytes, disk_bytes are those of the
 * smallest sufficient layout (out->layout is empty) and err says it. PS_EUSAGE for a strategy that the
 * method or device cannot have. */
int ps_planner_choose(struct ps_plan *out, const struct ps_planner_request *req,
                      struct ps_error *err) PS_WARN_UNUSED;
void ps_plan_fini(struct ps_plan *p);

/* A time as reports say it: "40 s", "11.8 min", "7.66 h", "2.3 days". */
const char *ps_plan_time_text(char buf[32], double s);

/* One strategy: fills candidate layouts for the request. One file each, one line in strategies.c. */
struct ps_strategy {
    const char *name;
    const char *help;
    bool frozen, full; /* for frozen bases, with adapters or without; for full fine-tuning */
    bool memory_states, disk_states; /* of full fine-tuning: where it can have optimizer states */
    /* Candidate number i (0, 1, ...), best guesses first; 0: filled, 1: no more, negative: error. */
    int (*candidate)(const struct ps_planner_request *req, int i, struct ps_step_layout *out,
                     struct ps_error *err);
    /* A layout that needs the least memory, for the message when nothing fits. */
    int (*smallest)(const struct ps_planner_request *req, struct ps_step_layout *out,
                    struct ps_error *err);
};
extern const struct ps_strategy ps_strategy_resident, ps_strategy_stream_lora,
    ps_strategy_horizontal, ps_strategy_zero_offload, ps_strategy_zero_infinity, ps_strategy_fuyou,
    ps_strategy_vertical, ps_strategy_update_next_forward;
const struct ps_strategy *ps_strategy_find(const char *name);
const struct ps_strategy *ps_strategy_at(int i); /* NULL past the end */

/* The placement file (--placement), JSON: {"version":1,"strategy":..,"group":..,"eval_group":..,
 * "near_slots":..,"raw_slots":..,"x_ring":..,"interleave":..,"host_ring":..,
 * "weights":{"embed":TIER,"layers":[TIER,..],"head":TIER},
 * "activations":[{"keep":KEEP,"saved":TIER,"boundary":TIER},..],"saved_ring":..,"update":WHEN} (KEEP: true,
 * false, or a level "R0" .. "R4" of runtime/model/recompute.h, true R0 and false R4; saved: where what is kept
 * waits, near when left out), and where WHEN (a name of
 * ps_update_when_name) is not "resident" "optimizer":{..},"gradients":{..} (like weights; of gradients
 * "device" is where they are made),"grad_slots":..,"grad_ring":..,"state_slots":.., and without gradients
 * "image_pairs":..; written by plan, read back here. TIER is "device",
 * "host" or "disk"; on a device without memory of its own device and host are the same, written as
 * "host". An object with a member "placement" (plan.json of a run, the output of plan --json) stands for
 * that member. Reading: PS_EFORMAT (a member of the wrong type, range, name or number of layers), PS_EUSAGE
 * (a layout that cannot be), or -errno; each names file and member. */
int ps_placement_load(struct ps_step_layout *out, const char *path, const struct ps_step_shape *shape,
                      bool discrete, struct ps_error *err) PS_WARN_UNUSED;
/* From the text of a file; `file` is for messages. */
int ps_placement_parse(struct ps_step_layout *out, const char *text, size_t len, const char *file,
                       const struct ps_step_shape *shape, bool discrete,
                       struct ps_error *err) PS_WARN_UNUSED;
int ps_placement_save(const struct ps_step_layout *l, const struct ps_step_shape *shape,
                      const char *path, struct ps_error *err) PS_WARN_UNUSED;
/* The same as a JSON value (a new reference); NULL when out of memory. */
json_t *ps_placement_json(const struct ps_step_layout *l, const struct ps_step_shape *shape);

#ifdef __cplusplus
}
#endif
#endif
