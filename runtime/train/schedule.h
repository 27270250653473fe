/* The static schedule: tasks on lanes, each declaring the byte ranges that it reads and writes, with
 * explicit dependencies. A segment (training pass, update, evaluation pass, prologue) is one schedule.
 *
 * A builder (one a strategy) emits the tasks in program order, the order in which a single thread
 * would run them; ps_schedule_derive then adds exactly the dependencies that the declared ranges ask
 * for. The simulator, the executor and the checker read the result.
 *
 * Order. Two relations order tasks: dependencies, and the lane: on a lane that is not a disk lane a task
 * starts when the one before it has ended; on a disk lane (ps_lane_is_async) it starts when the one
 * before it has started, and tasks end in lane order. A task is done when it has ended.
 *
 * Periods. A segment is repeated: task i of period p is one run of it. A dependency of distance 1 is on
 * the task of the period before; in the first period it counts as satisfied (what the segment needs
 * from before, its live-in, is made by the prologue). */
#ifndef PS_TRAIN_SCHEDULE_H
#define PS_TRAIN_SCHEDULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_lane {
    PS_LANE_COMPUTE,
    PS_LANE_H2D,
    PS_LANE_D2H,
    PS_LANE_DISK_WEIGHTS,
    PS_LANE_DISK_STATE,
    PS_LANE_DISK_WRITE,
    PS_LANE_COMMIT,
    PS_LANE_CPU_OPTIM,
    PS_LANE_COUNT,
};

/* True for the lanes whose tasks are disk requests: several may be in flight. */
bool ps_lane_is_async(enum ps_lane l);

enum ps_tier {
    PS_TIER_DEVICE, /* where compute reads and writes: device memory; on `cpu` the host arena */
    PS_TIER_HOST,
    PS_TIER_DISK,
    PS_TIER_COUNT,
};

enum ps_task_kind {
    PS_TASK_EMBED,         /* ids -> x[0] (rows of one block of the embedding) */
    PS_TASK_LAYER_FORWARD, /* x[l] -> x[l+1], saved[l] */
    PS_TASK_HEAD, /* x[L] -> loss, dx, head gradients (training) or loss only (evaluation) */
    PS_TASK_LAYER_RECOMPUTE, /* x[l], what is kept of saved[l] -> the rest of it */
    PS_TASK_LAYER_BACKWARD,  /* dx, x[l], saved[l] -> dx, gradients of l */
    PS_TASK_EMBED_BACKWARD,  /* dx -> embedding gradient */
    PS_TASK_GRAD_NORM,       /* gradients of a unit -> partial square sums */
    PS_TASK_CLIP,            /* partial sums -> norm, coefficient, finite or not */
    PS_TASK_UPDATE,          /* gradients, states, weights of a unit -> states, weights */
    PS_TASK_COPY_BATCH,      /* h2d: a micro-batch's ids, targets, positions */
    PS_TASK_READ_WEIGHTS,    /* disk_weights: a unit from the model files into a slot */
    PS_TASK_COPY_WEIGHTS,    /* h2d: a unit from host memory into a slot, converted where needed */
    PS_TASK_SPILL_OUT,       /* d2h: a layer boundary or kept piece of a saved set to host memory */
    PS_TASK_SPILL_WRITE,     /* disk_write: one to the spill file */
    PS_TASK_SPILL_READ,      /* disk_state: and back */
    PS_TASK_SPILL_IN,        /* h2d: and back */
    /* Full fine-tuning through the tiers: step.h says when each comes. */
    PS_TASK_GRAD_OUT,      /* d2h (cpu_optim without a device memory): a unit's gradient to where it is kept */
    PS_TASK_GRAD_IN,       /* h2d (cpu_optim): and back, to be added to by the next pass */
    PS_TASK_GRAD_WRITE,    /* disk_write: a kept gradient to the spill file */
    PS_TASK_GRAD_READ,     /* disk_state: and back */
    PS_TASK_READ_STATE,    /* disk_state: optimizer states of a granule from the store */
    PS_TASK_UPDATE_HOST,   /* cpu_optim: gradient, states, weights of a granule (or a unit) */
    PS_TASK_WRITE_STATE,   /* disk_write: states of a granule to the store */
    PS_TASK_WRITE_WEIGHTS, /* disk_write: weights of a granule to the store */
    PS_TASK_COMMIT,        /* commit: all of it becomes the committed generation */
    /* Methods without gradients: see step.h. */
    PS_TASK_PERTURB,        /* compute (cpu_optim on discrete devices): a unit's trained weights, moved
                               both ways, into a pair of images */
    PS_TASK_COPY_PERTURBED, /* h2d: such a pair to the device */
    PS_TASK_KIND_COUNT,
};

/* Units: layer index, or one of these. */
#define PS_UNIT_EMBED (-1)
#define PS_UNIT_HEAD (-2)
#define PS_UNIT_ALL (-3)

/* What the numbers in ps_task.arg mean; -1: not used by this task. */
enum ps_task_arg {
    PS_ARG_SLOT,  /* weight slot; -1: the unit is pinned */
    PS_ARG_RAW,   /* host slot that holds the unit as it is in the files */
    PS_ARG_BLOCK, /* row block of the embedding */
    PS_ARG_X_IN,  /* buffer of layer boundaries */
    PS_ARG_X_OUT,
    PS_ARG_SAVED, /* kept piece of a saved set; -1: all of it lies in the shared one */
    PS_ARG_DX,
    PS_ARG_HOST_X, /* host buffer of a layer boundary; PS_TASK_SPILL_*: see step.h */
    PS_ARG_GRAD,   /* near slot that the unit's gradient is made in; -1: a place of its own */
    PS_ARG_GRAD_HOST, /* ring buffer of a kept gradient; -1: a place of its own */
    PS_ARG_STATE,  /* ring buffer of a granule's states */
    PS_ARG_GRANULE, /* update granule, counted over all units; -1: the whole unit */
    PS_ARG_LEVEL, /* PS_TASK_LAYER_RECOMPUTE: enum ps_recompute */
    PS_ARG_HOST_SAVED, /* host buffer of a kept piece; PS_TASK_SPILL_* with it or PS_ARG_SAVED move
                          that instead of a boundary */
    PS_ARG_IMAGE,   /* pair of perturbed images of the unit; -1: its weights as they are */
    PS_ARG_COUNT,
};

/* A range of bytes [offset, offset + bytes) of a buffer. */
struct ps_access {
    uint32_t buffer;
    bool write; /* reads and writes: a write access orders as both */
    uint64_t offset, bytes;
};

struct ps_dep {
    uint32_t task;
    uint32_t distance; /* 0: of the same period (then task < the dependent's id), 1: of the one before */
};

#define PS_TASK_TRAILS 1u /* the end of the period does not wait for it (reads for the next one) */

struct ps_task {
    uint32_t id; /* its index: program order */
    enum ps_task_kind kind;
    enum ps_lane lane;
    int32_t unit;
    int32_t micro; /* micro-batch of the pass; -1: none */
    int32_t arg[PS_ARG_COUNT];
    uint32_t flags;
    uint32_t dep_begin, dep_count;       /* in ps_schedule.dep */
    uint32_t access_begin, access_count; /* in ps_schedule.access */
    double flops;                        /* of the planned tokens; 0 outside compute */
    uint64_t bytes;                      /* moved by copies and disk requests; 0 elsewhere */
};

struct ps_buffer {
    char name[32];
    enum ps_tier tier;
    uint64_t bytes;
};

struct ps_schedule {
    const char *name; /* static storage */
    struct ps_task *task;
    uint32_t task_count, task_capacity;
    struct ps_dep *dep;
    uint32_t dep_count, dep_capacity;
    struct ps_access *access;
    uint32_t access_count, access_capacity;
    struct ps_buffer *buffer;
    uint32_t buffer_count, buffer_capacity;
    int fault; /* first error while building: -ENOMEM */
};

void ps_schedule_init(struct ps_schedule *s, const char *name);
void ps_schedule_fini(struct ps_schedule *s);

/* Building. Errors are remembered in fault and reported by ps_schedule_derive and _validate. */
uint32_t ps_schedule_buffer(struct ps_schedule *s, enum ps_tier tier, uint64_t bytes,
                            const char *fmt, ...) PS_PRINTF(4, 5);
/* Adds a task with micro -1, args -1; returns its id. */
uint32_t ps_schedule_task(struct ps_schedule *s, enum ps_task_kind kind, enum ps_lane lane,
                          int32_t unit);
/* Of the task added last: a declared range (0 bytes: ignored), a dependency. */
void ps_schedule_access(struct ps_schedule *s, uint32_t buffer, bool write, uint64_t offset,
                        uint64_t bytes);
void ps_schedule_dep(struct ps_schedule *s, uint32_t on_task, uint32_t distance);

/* Add to each task the dependencies that its ranges ask for, over two unrolled periods: on the last
 * writer of every byte that it touches and, where it writes, on the readers since; none that lane order
 * and other dependencies imply already. Dependencies that were there stay. Each task keeps its own
 * contiguous piece of s->dep. Returns 0, -ENOMEM or the fault. */
int ps_schedule_derive(struct ps_schedule *s, struct ps_error *err) PS_WARN_UNUSED;

/* An ordering edge: dep_idx < dep_count: that dependency; else lane order between task and its
 * predecessor on its lane, `distance` 1 when the predecessor is the last of the period before. */
struct ps_edge {
    uint32_t from, to, distance;
    uint32_t dep_idx; /* UINT32_MAX: lane order */
};

/* Check, over two unrolled periods, independently of derive: dependencies of distance 0 point to earlier
 * ids, the two relations together are acyclic, ranges lie in their buffers, every two tasks of one lane
 * are ordered, and every two tasks that touch the same bytes, one of them writing, are ordered (first
 * ended before second starts). `without`, or NULL, is an edge to leave out. PS_EUSAGE names the two
 * tasks and the buffer. */
int ps_schedule_validate_without(const struct ps_schedule *s, const struct ps_edge *without,
                                 struct ps_error *err) PS_WARN_UNUSED;
int ps_schedule_validate(const struct ps_schedule *s, struct ps_error *err) PS_WARN_UNUSED;

/* The edges of the transitive reduction, lane order included, in *out (malloc'd; free it): those that
 * no path of others replaces. Of two edges that say the same (a dependency on the task before on a lane
 * that is not a disk lane, a dependency given twice) neither is among them. 0, -ENOMEM or what
 * ps_schedule_validate says of broken fields. */
int ps_schedule_reduction(const struct ps_schedule *s, struct ps_edge **out,
                          size_t *count) PS_WARN_UNUSED;

/* Sum of `bytes` over the tasks of a kind. */
uint64_t ps_schedule_kind_bytes(const struct ps_schedule *s, enum ps_task_kind kind);
/* Sum of the buffers of a tier, each rounded up to 4096 bytes. */
uint64_t ps_schedule_tier_bytes(const struct ps_schedule *s, enum ps_tier tier);

const char *ps_task_kind_name(enum ps_task_kind k);
const char *ps_lane_name(enum ps_lane l);
const char *ps_tier_name(enum ps_tier t);
const char *ps_task_arg_name(enum ps_task_arg a);
/* By name; -1 when there is none. */
int ps_lane_find(const char *name);
int ps_task_kind_find(const char *name);

#ifdef __cplusplus
}
#endif
#endif
