/* The device `cuda`: one allocation, a stream for each direction of copies. See device.h.
 *
 * The thread that copies sleeps on an event of its stream; copies that are queued return at once,
 * and marks order them with compute, which has a stream of its own (queues.c). */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "runtime/base/checked.h"
#include "runtime/device/cuda/cuda_internal.h"

#define ARENA_ALIGN ((size_t)2 << 20)
#define POISON_BYTE 0xFF

/* One direction. */
struct way {
    cudaStream_t stream;
    cudaEvent_t event;
    pthread_mutex_t lock; /* one copy at a time: guards event */
};

struct cuda_device {
    struct ps_device device; /* first: the two pointers are one */
    void *allocation;
    unsigned char *base;
    size_t bytes;
    struct way h2d, d2h;
};

static int way_open(struct way *w, struct ps_error *err)
{
    int ret = ps__cuda_stream_create(&w->stream, err);
    return ret ? ret : ps__cuda_event_create(&w->event, err);
}

static void way_close(struct way *w)
{
    if (w->stream)
        PS_IGNORE(cudaStreamDestroy(w->stream), "the device is going away");
    if (w->event)
        PS_IGNORE(cudaEventDestroy(w->event), "the device is going away");
    pthread_mutex_destroy(&w->lock);
}

/* Wait for what the stream holds, asleep. The lock is held. */
static cudaError_t way_wait(struct way *w)
{
    cudaError_t e = cudaEventRecord(w->event, w->stream);
    return e ? e : cudaEventSynchronize(w->event);
}

static void cuda_close(struct ps_device *d)
{
    struct cuda_device *c = (struct cuda_device *)d;
    if (!c)
        return;
    way_close(&c->h2d);
    way_close(&c->d2h);
    if (c->allocation)
        PS_IGNORE(cudaFree(c->allocation), "the device is going away");
    PS_IGNORE(cudaGetLastError(), "nothing later shall trip over it");
    free(c);
}

/* 2 MiB aligned: what cudaMalloc gives for large blocks, though nobody promises it. */
static int allocate(struct cuda_device *c, struct ps_error *err)
{
    size_t free_bytes = 0, total = 0, more = 0;
    if (c->bytes == 0)
        return 0;
    if (cudaMemGetInfo(&free_bytes, &total)) /* only for the message */
        PS_IGNORE(cudaGetLastError(), "the allocation will tell");
    cudaError_t e = cudaMalloc(&c->allocation, c->bytes);
    if (!e && (uintptr_t)c->allocation % ARENA_ALIGN != 0) {
        PS_IGNORE(cudaFree(c->allocation), "of no use");
        c->allocation = NULL;
        e = ps_add_size(c->bytes, ARENA_ALIGN, &more) ? cudaMalloc(&c->allocation, more)
                                                      : cudaErrorMemoryAllocation;
    }
    if (e) {
        c->allocation = NULL;
        int ret = ps__cuda_error(err, e, "cudaMalloc");
        if (e != cudaErrorMemoryAllocation)
            return ret;
        return ps_error_full(
            err, -ENOMEM, NULL, "gpu-mem",
            "lower --gpu-mem, or end what else uses the card (nvidia-smi lists it)",
            "cannot allocate %zu MiB on the GPU: %zu of %zu MiB are free", c->bytes >> 20,
            free_bytes >> 20, total >> 20);
    }
    uintptr_t at = (uintptr_t)c->allocation;
    c->base = (unsigned char *)c->allocation + (ARENA_ALIGN - at % ARENA_ALIGN) % ARENA_ALIGN;
    return 0;
}

static cudaError_t fill(struct cuda_device *c, void *at, size_t bytes)
{
    pthread_mutex_lock(&c->h2d.lock);
    cudaError_t e = cudaMemsetAsync(at, POISON_BYTE, bytes, c->h2d.stream);
    if (!e)
        e = way_wait(&c->h2d);
    pthread_mutex_unlock(&c->h2d.lock);
    return e;
}

static int cuda_open(struct ps_device **out, size_t bytes, struct ps_error *err)
{
    assert(bytes % ARENA_ALIGN == 0);
    struct cuda_device *c = calloc(1, sizeof *c);
    if (!c)
        return ps_error_set(err, -ENOMEM, "no memory for the device cuda");
    c->device.ops = &ps__cuda_device;
    c->bytes = bytes;
    pthread_mutex_init(&c->h2d.lock, NULL);
    pthread_mutex_init(&c->d2h.lock, NULL);
    int ret = way_open(&c->h2d, err);
    if (!ret)
        ret = way_open(&c->d2h, err);
    if (!ret)
        ret = allocate(c, err);
    if (!ret && bytes > 0) {
        cudaError_t e = fill(c, c->base, bytes);
        ret = e ? ps__cuda_error(err, e, "cudaMemsetAsync") : 0;
    }
    if (ret) {
        cuda_close(&c->device);
        return ret;
    }
    *out = &c->device;
    return 0;
}

static void *cuda_base(const struct ps_device *d)
{
    return ((const struct cuda_device *)d)->base;
}

static bool holds(const struct ps_device *d, const void *at, size_t bytes)
{
    const struct cuda_device *c = (const struct cuda_device *)d;
    uintptr_t first = (uintptr_t)c->base, a = (uintptr_t)at;
    return a >= first && a - first <= c->bytes && bytes <= c->bytes - (a - first);
}

static void *cuda_map(const struct ps_device *d, const void *device_address)
{
    if (!device_address)
        return NULL;
    assert(holds(d, device_address, 0));
    return (void *)device_address;
}

static int copy(struct way *w, void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,
                struct ps_error *err)
{
    if (bytes == 0)
        return 0;
    pthread_mutex_lock(&w->lock);
    cudaError_t e = cudaMemcpyAsync(dst, src, bytes, kind, w->stream);
    if (!e)
        e = way_wait(w);
    pthread_mutex_unlock(&w->lock);
    if (e)
        return ps__cuda_error(
            err, e, kind == cudaMemcpyHostToDevice ? "copy to the GPU" : "copy from the GPU");
    return 0;
}

static int cuda_copy_h2d(struct ps_device *d, void *dst_device, const void *src_host, size_t bytes,
                         struct ps_error *err)
{
    assert(holds(d, dst_device, bytes));
    return copy(&((struct cuda_device *)d)->h2d, dst_device, src_host, bytes,
                cudaMemcpyHostToDevice, err);
}

static int cuda_copy_d2h(struct ps_device *d, void *dst_host, const void *src_device, size_t bytes,
                         struct ps_error *err)
{
    assert(holds(d, src_device, bytes));
    return copy(&((struct cuda_device *)d)->d2h, dst_host, src_device, bytes,
                cudaMemcpyDeviceToHost, err);
}

static int queue_copy(const struct way *w, void *dst, const void *src, size_t bytes,
                      enum cudaMemcpyKind kind, struct ps_error *err)
{
    cudaError_t e = bytes > 0 ? cudaMemcpyAsync(dst, src, bytes, kind, w->stream) : cudaSuccess;
    return e ? ps__cuda_error(err, e, "cudaMemcpyAsync") : 0;
}

static int cuda_queue_h2d(struct ps_device *d, void *dst_device, const void *src_host, size_t bytes,
                          struct ps_error *err)
{
    assert(holds(d, dst_device, bytes));
    return queue_copy(&((struct cuda_device *)d)->h2d, dst_device, src_host, bytes,
                      cudaMemcpyHostToDevice, err);
}

static int cuda_queue_d2h(struct ps_device *d, void *dst_host, const void *src_device, size_t bytes,
                          struct ps_error *err)
{
    assert(holds(d, src_device, bytes));
    return queue_copy(&((struct cuda_device *)d)->d2h, dst_host, src_device, bytes,
                      cudaMemcpyDeviceToHost, err);
}

cudaStream_t ps__cuda_device_stream(struct ps_device *d, bool d2h)
{
    const struct cuda_device *c = (const struct cuda_device *)d;
    return d2h ? c->d2h.stream : c->h2d.stream;
}

/* A failure is sticky or harmless: the next call tells. */
static void cuda_poison(struct ps_device *d, void *device_address, size_t bytes)
{
    assert(holds(d, device_address, bytes));
    if (bytes > 0)
        PS_IGNORE(fill((struct cuda_device *)d, device_address, bytes), "debugging aid");
}

static const char *cuda_pages(const struct ps_device *d)
{
    (void)d;
    return NULL;
}

const struct ps_device_ops ps__cuda_device = {
    .name = "cuda",
    .discrete = true,
    .open = cuda_open,
    .close = cuda_close,
    .base = cuda_base,
    .map = cuda_map,
    .copy_h2d = cuda_copy_h2d,
    .copy_d2h = cuda_copy_d2h,
    .queue_h2d = cuda_queue_h2d,
    .queue_d2h = cuda_queue_d2h,
    .poison = cuda_poison,
    .pages = cuda_pages,
};
