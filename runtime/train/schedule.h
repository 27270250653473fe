/* The static schedule: tasks with explicit dependencies, each on one lane, each declaring the byte
 * ranges that it reads and writes. A segment (training micro-batch, update, evaluation) is one
 * schedule.
 *
 * A builder (one a strategy) makes it before step 1; the executor walks it. */
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

enum ps_task_kind {
    PS_TASK_EMBED,         /* ids -> x[0] */
    PS_TASK_LAYER_FORWARD, /* x[l] -> x[l+1], saved[l] */
    PS_TASK_HEAD, /* x[L] -> loss, dx, head gradients (training) or loss only (evaluation) */
    PS_TASK_LAYER_RECOMPUTE, /* x[l] -> saved[l] */
    PS_TASK_LAYER_BACKWARD,  /* dx, x[l], saved[l] -> dx, gradients of l */
    PS_TASK_EMBED_BACKWARD,  /* dx -> embedding gradient */
    PS_TASK_GRAD_NORM,       /* gradients of a unit -> partial square sums */
    PS_TASK_CLIP,            /* partial sums -> norm, coefficient, finite or not */
    PS_TASK_UPDATE,          /* gradients, states, weights of a unit -> states, weights */
    PS_TASK_KIND_COUNT,
};

/* Units: layer index, or one of these. */
#define PS_UNIT_EMBED (-1)
#define PS_UNIT_HEAD (-2)
#define PS_UNIT_ALL (-3)

/* A range of bytes [offset, offset + bytes) of a buffer. */
struct ps_access {
    uint32_t buffer;
    bool write;
    uint64_t offset, bytes;
};

struct ps_task {
    uint32_t id;
    enum ps_task_kind kind;
    enum ps_lane lane;
    int32_t unit;
    uint32_t dep_begin, dep_count;       /* in ps_schedule.dep */
    uint32_t access_begin, access_count; /* in ps_schedule.access */
    double flops;                        /* per token of the stream */
};

struct ps_buffer {
    char name[32];
    uint64_t bytes;
};

struct ps_schedule {
    const char *name; /* static storage */
    struct ps_task *task;
    uint32_t task_count, task_capacity;
    uint32_t *dep;
    uint32_t dep_count, dep_capacity;
    struct ps_access *access;
    uint32_t access_count, access_capacity;
    struct ps_buffer *buffer;
    uint32_t buffer_count, buffer_capacity;
    int fault; /* first error while building: -ENOMEM */
};

void ps_schedule_init(struct ps_schedule *s, const char *name);
void ps_schedule_fini(struct ps_schedule *s);

/* Building. Errors are remembered in fault and reported by ps_schedule_validate. */
uint32_t ps_schedule_buffer(struct ps_schedule *s, uint64_t bytes, const char *fmt, ...)
    PS_PRINTF(3, 4);
uint32_t ps_schedule_task(struct ps_schedule *s, enum ps_task_kind kind, enum ps_lane lane,
                          int32_t unit, double flops);
/* Of the task added last: a dependency on an earlier task, and a declared range. */
void ps_schedule_dep(struct ps_schedule *s, uint32_t on_task);
void ps_schedule_access(struct ps_schedule *s, uint32_t buffer, bool write, uint64_t offset,
                        uint64_t bytes);

/* Check: dependencies point to earlier tasks, ranges lie in their buffers, and every two tasks that
 * touch the same bytes, one of them writing, are ordered by lane order and dependencies. PS_EUSAGE
 * names the two tasks. */
int ps_schedule_validate(const struct ps_schedule *s, struct ps_error *err) PS_WARN_UNUSED;

const char *ps_task_kind_name(enum ps_task_kind k);
const char *ps_lane_name(enum ps_lane l);

/* What the resident builder needs to know: sizes in bytes for the planned stream of tokens. */
struct ps_resident_shape {
    int32_t n_layer;
    int32_t first_trained; /* lowest layer with something to train; n_layer: none */
    bool embed_trained, head_trained;
    bool recompute;
    bool eval_only;       /* one x buffer, one saved set (recompute must be set), no dx */
    uint64_t x_bytes;     /* one layer boundary */
    uint64_t saved_bytes; /* one layer's saved set */
    uint64_t scratch_bytes, head_bytes, batch_bytes;
    const uint64_t *layer_weight_bytes; /* (n_layer,) */
    const uint64_t *layer_grad_bytes;   /* (n_layer,) */
    const uint64_t *layer_state_bytes;  /* (n_layer,) */
    uint64_t embed_weight_bytes, embed_grad_bytes, embed_state_bytes;
    uint64_t head_weight_bytes, head_grad_bytes, head_state_bytes;
    bool tied;
    double layer_flops; /* forward, per token */
};

/* The resident strategy's segments: everything lies in the host arena, one lane computes. */
int ps_resident_build_micro(struct ps_schedule *s, const struct ps_resident_shape *shape,
                            struct ps_error *err) PS_WARN_UNUSED;
int ps_resident_build_update(struct ps_schedule *s, const struct ps_resident_shape *shape,
                             struct ps_error *err) PS_WARN_UNUSED;
int ps_resident_build_eval(struct ps_schedule *s, const struct ps_resident_shape *shape,
                           struct ps_error *err) PS_WARN_UNUSED;

/* Walk a schedule: fn[kind](ctx, task) for each task, in an order that its dependencies allow
 * (lanes that run at the same time come with the streaming strategies; the resident segments have
 * one lane). busy_ns, or NULL, receives the time spent by kind (PS_TASK_KIND_COUNT values, added).
 * Stops at the first error and returns it. Allocates nothing. */
typedef int (*ps_task_fn)(void *ctx, const struct ps_task *task);
int ps_executor_run(const struct ps_schedule *s, const ps_task_fn fn[PS_TASK_KIND_COUNT], void *ctx,
                    uint64_t busy_ns[PS_TASK_KIND_COUNT]) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
