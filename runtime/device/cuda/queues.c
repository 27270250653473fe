/* Queues of the CUDA device: the stream of compute and the two of copies; marks are events. See
 * device_queue.h. */
#include <errno.h>
#include <stdlib.h>

#include "runtime/device/cuda/cuda_internal.h"

struct queue {
    cudaStream_t stream; /* borrowed */
    cudaEvent_t *begin;  /* (mark_count,) with timing, or NULL */
    cudaEvent_t *end;    /* (mark_count,) */
};

struct ps_queues {
    uint32_t mark_count;
    bool timed;
    struct queue queue[PS_QUEUE_COUNT];
};

static void close_events(cudaEvent_t *event, uint32_t count)
{
    for (uint32_t i = 0; event && i < count; i++)
        if (event[i])
            PS_IGNORE(cudaEventDestroy(event[i]), "the device is going away");
    free(event);
}

static void queues_close(struct ps_queues *q)
{
    if (!q)
        return;
    for (int i = 0; i < PS_QUEUE_COUNT; i++) {
        close_events(q->queue[i].begin, q->mark_count);
        close_events(q->queue[i].end, q->mark_count);
    }
    PS_IGNORE(cudaGetLastError(), "nothing later shall trip over it");
    free(q);
}

static int open_events(cudaEvent_t **out, uint32_t count, unsigned flags, struct ps_error *err)
{
    cudaEvent_t *event = calloc(count, sizeof *event);
    if (!event)
        return ps_error_set(err, -ENOMEM, "no memory for the device cuda");
    *out = event;
    for (uint32_t i = 0; i < count; i++) {
        cudaError_t e = cudaEventCreateWithFlags(&event[i], flags);
        if (e)
            return ps__cuda_error(err, e, "cudaEventCreateWithFlags");
    }
    return 0;
}

static int queues_open(struct ps_queues **out, struct ps_device *d, const struct ps_compute *cx,
                       uint32_t mark_count, bool timed, struct ps_error *err)
{
    struct ps_queues *q = calloc(1, sizeof *q);
    if (!q)
        return ps_error_set(err, -ENOMEM, "no memory for the device cuda");
    q->mark_count = mark_count;
    q->timed = timed;
    q->queue[PS_QUEUE_COMPUTE].stream = cx->stream;
    q->queue[PS_QUEUE_H2D].stream = ps__cuda_device_stream(d, false);
    q->queue[PS_QUEUE_D2H].stream = ps__cuda_device_stream(d, true);
    unsigned end = cudaEventBlockingSync | (timed ? 0 : cudaEventDisableTiming);
    int ret = 0;
    for (int i = 0; ret == 0 && i < PS_QUEUE_COUNT; i++) {
        ret = open_events(&q->queue[i].end, mark_count, end, err);
        if (ret == 0 && timed)
            ret = open_events(&q->queue[i].begin, mark_count, cudaEventDefault, err);
    }
    if (ret) {
        queues_close(q);
        return ret;
    }
    *out = q;
    return 0;
}

static int queues_begin(struct ps_queues *q, enum ps_queue queue, uint32_t mark,
                        struct ps_error *err)
{
    const struct queue *x = &q->queue[queue];
    cudaError_t e = q->timed ? cudaEventRecord(x->begin[mark], x->stream) : cudaSuccess;
    return e ? ps__cuda_error(err, e, "cudaEventRecord") : 0;
}

static int queues_end(struct ps_queues *q, enum ps_queue queue, uint32_t mark, struct ps_error *err)
{
    const struct queue *x = &q->queue[queue];
    cudaError_t e = cudaEventRecord(x->end[mark], x->stream);
    return e ? ps__cuda_error(err, e, "cudaEventRecord") : 0;
}

static int queues_wait(struct ps_queues *q, enum ps_queue queue, enum ps_queue on, uint32_t mark,
                       struct ps_error *err)
{
    cudaError_t e = cudaStreamWaitEvent(q->queue[queue].stream, q->queue[on].end[mark], 0);
    return e ? ps__cuda_error(err, e, "cudaStreamWaitEvent") : 0;
}

static int queues_sync(struct ps_queues *q, enum ps_queue queue, uint32_t mark, uint64_t *ns,
                       struct ps_error *err)
{
    const struct queue *x = &q->queue[queue];
    float ms = 0;
    cudaError_t e = cudaEventSynchronize(x->end[mark]);
    if (!e && q->timed)
        e = cudaEventElapsedTime(&ms, x->begin[mark], x->end[mark]);
    if (e)
        return ps__cuda_error(err, e, "waiting for an event");
    if (q->timed)
        *ns = ms > 0 ? (uint64_t)((double)ms * 1e6) : 0;
    return 0;
}

const struct ps_queue_ops ps__cuda_queues = {
    .open = queues_open,
    .close = queues_close,
    .begin = queues_begin,
    .end = queues_end,
    .wait = queues_wait,
    .sync = queues_sync,
};
