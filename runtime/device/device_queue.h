/* Queues of a device: what is launched on one runs in the order of its launch, beside what the
 * others hold; the host goes on. A mark is a place in a queue that another queue can be made to
 * wait for, or the host, asleep. Neither allocates nor waits for the device as a whole.
 *
 * A queue is launched on by one thread at a time; any thread may wait for a mark. */
#ifndef PS_DEVICE_DEVICE_QUEUE_H
#define PS_DEVICE_DEVICE_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_compute;
struct ps_device;
struct ps_queues;

enum ps_queue {
    PS_QUEUE_COMPUTE,
    PS_QUEUE_H2D,
    PS_QUEUE_D2H,
    PS_QUEUE_COUNT,
};

/* All return 0, or a negative code with its cause in *err. `mark` is one of mark_count of a queue;
 * setting one again forgets where it was. */
struct ps_queue_ops {
    /* Of a device and what computes on it, which must outlive the queues. `timed`: sync tells
     * durations. */
    int (*open)(struct ps_queues **out, struct ps_device *d, const struct ps_compute *cx,
                uint32_t mark_count, bool timed, struct ps_error *err);
    /* Nothing may be in a queue any more. NULL is legal. */
    void (*close)(struct ps_queues *q);
    /* Around what is launched for one task: the duration of `mark` counts from begin; end sets it.
     */
    int (*begin)(struct ps_queues *q, enum ps_queue queue, uint32_t mark, struct ps_error *err);
    int (*end)(struct ps_queues *q, enum ps_queue queue, uint32_t mark, struct ps_error *err);
    /* What is launched on `queue` from now on runs after `mark` of queue `on`, where it is now. */
    int (*wait)(struct ps_queues *q, enum ps_queue queue, enum ps_queue on, uint32_t mark,
                struct ps_error *err);
    /* Sleep until the queue has passed the mark. Where durations are told, *ns is the time from
     * begin to end on the device; else it is left alone. */
    int (*sync)(struct ps_queues *q, enum ps_queue queue, uint32_t mark, uint64_t *ns,
                struct ps_error *err);
};

#ifdef __cplusplus
}
#endif
#endif
