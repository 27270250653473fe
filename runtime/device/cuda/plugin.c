/* The table of the CUDA plug-in: see cuda_plugin.h. The only state of its own is what belongs to
 * the process: how much the context took, and what is pinned. */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/device/cuda/cuda_internal.h"

#define MIB ((uint64_t)1 << 20)
/* A context that cannot be measured; kernels that are loaded when they are first launched. */
#ifdef PS_CUDA_EMU
#define CONTEXT_GUESS (8 * MIB)
#define MODULES_LATER (8 * MIB)
#else
#define CONTEXT_GUESS (512 * MIB)
#define MODULES_LATER (128 * MIB)
#endif
/* One registration of 512 GiB or more is refused. */
#define PIN_CHUNK ((size_t)64 << 30)
#define PINS_MAX 64

static struct {
    pthread_mutex_t lock;
    bool ready; /* the context exists */
    uint64_t context_bytes;
    struct {
        unsigned char *base;
        size_t bytes;
    } pin[PINS_MAX];
} process = {.lock = PTHREAD_MUTEX_INITIALIZER};

int ps__cuda_error(struct ps_error *err, cudaError_t e, const char *what)
{
    PS_IGNORE(cudaGetLastError(), "said here");
    return ps_error_set(err, PS_ECUDA, "%s: %s (error %d: %s)", what, cudaGetErrorName(e), (int)e,
                        cudaGetErrorString(e));
}

int ps__cuda_event_create(cudaEvent_t *out, struct ps_error *err)
{
    cudaError_t e = cudaEventCreateWithFlags(out, cudaEventDisableTiming | cudaEventBlockingSync);
    return e ? ps__cuda_error(err, e, "cudaEventCreateWithFlags") : 0;
}

int ps__cuda_stream_create(cudaStream_t *out, struct ps_error *err)
{
    cudaError_t e = cudaStreamCreateWithFlags(out, cudaStreamNonBlocking);
    return e ? ps__cuda_error(err, e, "cudaStreamCreateWithFlags") : 0;
}

/* Bytes in use on the card by anybody, through the driver's management library, which needs no
 * context; 0: not known. */
static uint64_t used_on_card(const char *bus_id)
{
#ifdef PS_CUDA_EMU
    (void)bus_id;
    return 0;
#else
    struct {
        unsigned long long total, free, used;
    } memory = {0};
    void *card = NULL;
    void *lib = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        return 0;
    int (*init)(void), (*shutdown)(void), (*by_bus)(const char *, void **), (*info)(void *, void *);
    *(void **)&init = dlsym(lib, "nvmlInit_v2");
    *(void **)&shutdown = dlsym(lib, "nvmlShutdown");
    *(void **)&by_bus = dlsym(lib, "nvmlDeviceGetHandleByPciBusId_v2");
    *(void **)&info = dlsym(lib, "nvmlDeviceGetMemoryInfo");
    uint64_t used = 0;
    if (init && shutdown && by_bus && info && init() == 0) {
        if (by_bus(bus_id, &card) == 0 && info(card, &memory) == 0)
            used = memory.used;
        shutdown();
    }
    return used;
#endif
}

static int no_device(cudaError_t e, int count, struct ps_error *err)
{
    int version = 0;
    PS_IGNORE(cudaDriverGetVersion(&version), "0 then: no driver");
    PS_IGNORE(cudaGetLastError(), "said here");
    if (e == cudaErrorInsufficientDriver && version == 0)
        return ps_error_set(err, PS_ECUDA, "no NVIDIA driver (error %d: %s)", (int)e,
                            cudaGetErrorString(e));
    if (e == cudaErrorInsufficientDriver)
        return ps_error_set(err, PS_ECUDA,
                            "the NVIDIA driver knows CUDA %d.%d and CUDA %d.%d is needed "
                            "(error %d: %s)",
                            version / 1000, version % 1000 / 10, CUDART_VERSION / 1000,
                            CUDART_VERSION % 1000 / 10, (int)e, cudaGetErrorString(e));
    if (e == cudaErrorNoDevice || (e == cudaSuccess && count == 0))
        return ps_error_set(err, PS_ECUDA, "the NVIDIA driver shows no GPU");
    return ps__cuda_error(err, e, "cudaGetDeviceCount");
}

static int attribute(int *out, enum cudaDeviceAttr a, struct ps_error *err)
{
    cudaError_t e = cudaDeviceGetAttribute(out, a, 0);
    return e ? ps__cuda_error(err, e, "cudaDeviceGetAttribute") : 0;
}

/* The context, and what it takes. */
static int make_context(struct ps_error *err)
{
    char bus_id[32] = "";
    if (process.ready)
        return 0;
    cudaError_t e = cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, 0);
    if (e)
        return ps__cuda_error(err, e, "cudaDeviceGetPCIBusId");
    uint64_t before = used_on_card(bus_id);
    e = cudaInitDevice(0, cudaDeviceScheduleBlockingSync, cudaInitDeviceFlagsAreValid);
    if (!e)
        e = cudaSetDevice(0);
    if (e)
        return ps__cuda_error(err, e, "no context on the GPU");
    e = (cudaError_t)ps__cuda_code_check();
    if (e == cudaErrorNoKernelImageForDevice)
        return ps_error_set(err, PS_ECUDA, "the plug-in has no code for this GPU");
    if (e)
        return ps__cuda_error(err, e, "kernels cannot be loaded");
    uint64_t after = used_on_card(bus_id);
    process.context_bytes = before > 0 && after > before ? after - before : CONTEXT_GUESS;
    process.ready = true;
    return 0;
}

static int describe(struct ps_cuda_info *info, struct ps_error *err)
{
    struct cudaDeviceProp p;
    size_t free_bytes = 0, total = 0;
    int shared = 0;
    int ret = attribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, err);
    if (!ret)
        ret = attribute(&info->copy_engines, cudaDevAttrAsyncEngineCount, err);
    if (ret)
        return ret;
    info->shared_bytes_max = (size_t)shared;
    cudaError_t e = cudaGetDeviceProperties(&p, 0);
    if (e)
        return ps__cuda_error(err, e, "cudaGetDeviceProperties");
    snprintf(info->name, sizeof info->name, "%.127s", p.name);
    e = cudaMemGetInfo(&free_bytes, &total);
    if (e)
        return ps__cuda_error(err, e, "cudaMemGetInfo");
    info->free_bytes = free_bytes;
    info->total_bytes = total;
    info->later_bytes = MODULES_LATER;
    info->reserved_bytes = process.context_bytes + MODULES_LATER;
    return 0;
}

static int probe(struct ps_cuda_info *info, struct ps_error *err)
{
    int count = 0;
    memset(info, 0, sizeof *info);
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e || count == 0)
        return no_device(e, count, err);
    int ret = attribute(&info->major, cudaDevAttrComputeCapabilityMajor, err);
    if (!ret)
        ret = attribute(&info->minor, cudaDevAttrComputeCapabilityMinor, err);
    if (ret)
        return ret;
    if (info->major < 8)
        return ps_error_set(err, PS_ECUDA,
                            "the GPU has compute capability %d.%d; 8.0 or newer is needed",
                            info->major, info->minor);
    pthread_mutex_lock(&process.lock);
    ret = make_context(err);
    if (!ret)
        ret = describe(info, err);
    pthread_mutex_unlock(&process.lock);
    return ret;
}

static void compute_close(struct ps_compute *cx)
{
    struct ps__cuda_state *s = cx->blas;
    if (cx->stream)
        PS_IGNORE(cudaStreamSynchronize(cx->stream), "the stream is going away");
    if (s) {
        ps_cuda_blas_close(s->blas);
        if (s->event)
            PS_IGNORE(cudaEventDestroy(s->event), "the stream is going away");
        if (s->staging)
            PS_IGNORE(cudaFreeHost(s->staging), "the stream is going away");
        if (cx->fault == &s->fault)
            cx->fault = NULL;
        free(s);
    }
    if (cx->stream)
        PS_IGNORE(cudaStreamDestroy(cx->stream), "the stream is going away");
    PS_IGNORE(cudaGetLastError(), "nothing later shall trip over it");
    cx->blas = NULL;
    cx->stream = NULL;
}

static int compute_open(struct ps_compute *cx, struct ps_error *err)
{
    struct ps__cuda_state *s = calloc(1, sizeof *s);
    cudaStream_t stream = NULL;
    if (!s)
        return ps_error_set(err, -ENOMEM, "no memory for the device cuda");
    cx->blas = s;
    if (!cx->fault)
        cx->fault = &s->fault;
    int ret = ps__cuda_stream_create(&stream, err);
    cx->stream = stream;
    if (!ret)
        ret = ps__cuda_event_create(&s->event, err);
    cudaError_t e = ret ? cudaSuccess : cudaMallocHost(&s->staging, PS__CUDA_STAGING);
    if (e)
        ret = ps__cuda_error(err, e, "cudaMallocHost");
    if (ret)
        compute_close(cx);
    return ret;
}

static const char *fault_text(const struct ps_compute *cx)
{
    const struct ps__cuda_state *s = cx->blas;
    return s ? s->text : "";
}

/* Unlock the first `bytes` of what was locked chunk by chunk. */
static void unregister(unsigned char *base, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += PIN_CHUNK)
        if (cudaHostUnregister(base + at))
            PS_IGNORE(cudaGetLastError(), "the memory is going away");
}

static int pin_locked(unsigned char *base, size_t bytes, struct ps_error *err)
{
    size_t i = 0;
    while (i < PINS_MAX && process.pin[i].base)
        i++;
    if (i == PINS_MAX)
        return ps_error_set(err, -ENOMEM, "too many pieces of pinned memory");
    for (size_t at = 0; at < bytes; at += PIN_CHUNK) {
        size_t n = bytes - at < PIN_CHUNK ? bytes - at : PIN_CHUNK;
        cudaError_t e = cudaHostRegister(base + at, n, cudaHostRegisterPortable);
        if (e) {
            int ret = ps__cuda_error(err, e, "cudaHostRegister");
            unregister(base, at);
            return ret;
        }
    }
    process.pin[i].base = base;
    process.pin[i].bytes = bytes;
    return 0;
}

static int pin(void *base, size_t bytes, struct ps_error *err)
{
    if (!base || bytes == 0)
        return 0;
    pthread_mutex_lock(&process.lock);
    int ret = pin_locked(base, bytes, err);
    pthread_mutex_unlock(&process.lock);
    return ret;
}

static void unpin(void *base)
{
    pthread_mutex_lock(&process.lock);
    for (size_t i = 0; i < PINS_MAX && base; i++)
        if (process.pin[i].base == base) {
            unregister(base, process.pin[i].bytes);
            process.pin[i].base = NULL;
            break;
        }
    pthread_mutex_unlock(&process.lock);
}

__attribute__((visibility("default"))) const struct ps_cuda_plugin *ps_cuda_plugin(void);

const struct ps_cuda_plugin *ps_cuda_plugin(void)
{
    static const struct ps_cuda_plugin table = {
        .version = PS_CUDA_PLUGIN_VERSION,
#ifdef PS_CUDA_EMU
        .emulated = true,
#endif
        .probe = probe,
        .device = &ps__cuda_device,
        .kernels = &ps__cuda_kernels,
        .queues = &ps__cuda_queues,
        .compute_open = compute_open,
        .compute_close = compute_close,
        .pin = pin,
        .unpin = unpin,
        .fault_text = fault_text,
    };
    return &table;
}
