/* Shared by the tests of CUDA kernels: guarded device buffers, a stream, comparisons with the CPU's
 * references. They know the CUDA runtime alone and run on a GPU as well as on the emulation.
 * Include after cmocka.h. */
#ifndef PS_TESTS_CUDA_CHECK_H
#define PS_TESTS_CUDA_CHECK_H

#include <cuda_runtime_api.h>

#include "runtime/kernels/kernels_cuda.h"
#include "tests/kernels/kernel_check.h"

#define DEVICE_GUARD_BYTES 512

/* A device buffer with guard bytes on both sides and the host's copy of it; `data` sits off bytes
 * past a 256-byte boundary. */
struct device_buffer {
    unsigned char *base, *data;
    size_t bytes, total, off;
    unsigned char *host; /* guards included */
};

static inline void cuda_ok(cudaError_t e, const char *what)
{
    if (e != cudaSuccess)
        fail_msg("%s: %s", what, cudaGetErrorString(e));
}
#define CUDA_OK(call) cuda_ok(call, #call)

/* Device buffer of `bytes`, a copy of src; src NULL: all GUARD_BYTE. */
static inline struct device_buffer device_make(cudaStream_t s, size_t bytes, size_t off,
                                               const void *src)
{
    struct device_buffer d = {
        .bytes = bytes, .total = bytes + off + 2 * DEVICE_GUARD_BYTES, .off = off};
    void *p = NULL;
    CUDA_OK(cudaMalloc(&p, d.total));
    d.base = p;
    d.data = d.base + DEVICE_GUARD_BYTES + off;
    d.host = malloc(d.total);
    assert_non_null(d.host);
    memset(d.host, GUARD_BYTE, d.total);
    if (src && bytes)
        memcpy(d.host + DEVICE_GUARD_BYTES + off, src, bytes);
    CUDA_OK(cudaMemcpyAsync(d.base, d.host, d.total, cudaMemcpyHostToDevice, s));
    CUDA_OK(cudaStreamSynchronize(s));
    return d;
}

/* Write new contents (src NULL: GUARD_BYTE). */
static inline void device_put(cudaStream_t s, struct device_buffer *d, const void *src)
{
    unsigned char *h = d->host + DEVICE_GUARD_BYTES + d->off;
    if (src)
        memcpy(h, src, d->bytes);
    else
        memset(h, GUARD_BYTE, d->bytes);
    CUDA_OK(cudaMemcpyAsync(d->data, h, d->bytes, cudaMemcpyHostToDevice, s));
    CUDA_OK(cudaStreamSynchronize(s));
}

/* Wait for the stream and fetch; the guards must stand. The result lives until the next call. */
static inline void *device_get(cudaStream_t s, struct device_buffer *d)
{
    CUDA_OK(cudaMemcpyAsync(d->host, d->base, d->total, cudaMemcpyDeviceToHost, s));
    CUDA_OK(cudaStreamSynchronize(s));
    size_t begin = DEVICE_GUARD_BYTES + d->off;
    for (size_t i = 0; i < begin; i++)
        assert_int_equal(d->host[i], GUARD_BYTE);
    for (size_t i = begin + d->bytes; i < d->total; i++)
        assert_int_equal(d->host[i], GUARD_BYTE);
    return d->host + begin;
}

static inline void device_free(cudaStream_t s, struct device_buffer *d)
{
    if (!d->base)
        return;
    device_get(s, d);
    CUDA_OK(cudaFree(d->base));
    free(d->host);
    memset(d, 0, sizeof *d);
}

static inline void *host_copy(const void *p, size_t bytes)
{
    void *c = malloc(bytes ? bytes : 1);
    assert_non_null(c);
    memcpy(c, p, bytes);
    return c;
}

/* The same tensor twice: host memory for the CPU's reference, device memory for the kernel. */
struct twin {
    enum ps_dtype type;
    size_t count; /* elements */
    struct guarded cpu;
    struct device_buffer gpu;
};

/* count elements, off elements past an aligned address; seed 0: all GUARD_BYTE, for outputs. */
static inline struct twin twin_make(cudaStream_t s, enum ps_dtype type, size_t count, size_t off,
                                    double scale, uint64_t seed)
{
    size_t es = ps_dtype_size(type);
    struct twin t = {.type = type, .count = count, .cpu = guarded_make(count * es, 0)};
    if (seed)
        fill(t.cpu.data, type, count, scale, seed);
    t.gpu = device_make(s, count * es, off * es, t.cpu.data);
    return t;
}

/* Give the device what the host's side holds. */
static inline void twin_upload(cudaStream_t s, struct twin *t)
{
    device_put(s, &t->gpu, t->cpu.data);
}

static inline void twin_free(cudaStream_t s, struct twin *t)
{
    if (!t->cpu.base)
        return;
    device_free(s, &t->gpu);
    guarded_free(&t->cpu);
    memset(t, 0, sizeof *t);
}

/* Rows of n elements, ld apart, within tolerance; what lies between them bit for bit. */
static inline void twin_check_rows(cudaStream_t s, struct twin *t, const char *what, size_t n,
                                   size_t ld, double atol, double rtol)
{
    const unsigned char *got = device_get(s, &t->gpu);
    size_t es = ps_dtype_size(t->type);
    for (size_t i = 0; i < t->count; i++)
        if (i % ld < n)
            close_to(what, i, get(got, t->type, i), get(t->cpu.data, t->type, i), atol, rtol);
        else if (memcmp(got + i * es, t->cpu.data + i * es, es) != 0)
            fail_msg("%s[%zu]: between the rows, yet written", what, i);
}

static inline void twin_check(cudaStream_t s, struct twin *t, const char *what, double atol,
                              double rtol)
{
    twin_check_rows(s, t, what, t->count, t->count ? t->count : 1, atol, rtol);
}

/* Bit for bit. */
static inline void twin_check_bits(cudaStream_t s, struct twin *t, const char *what)
{
    const unsigned char *got = device_get(s, &t->gpu);
    size_t es = ps_dtype_size(t->type);
    for (size_t i = 0; i < t->count; i++)
        if (memcmp(got + i * es, t->cpu.data + i * es, es) != 0)
            fail_msg("%s[%zu]: got %.9g, want the bits of %.9g", what, i, get(got, t->type, i),
                     get(t->cpu.data, t->type, i));
}

/* Group set-up and tear-down: one stream. */
static inline int stream_setup(void **state)
{
    cudaStream_t s;
    if (cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) != cudaSuccess)
        return -1;
    *state = s;
    return 0;
}

static inline int stream_teardown(void **state)
{
    cudaStream_t s = *state;
    return cudaStreamSynchronize(s) == cudaSuccess && cudaStreamDestroy(s) == cudaSuccess ? 0 : -1;
}

static const enum ps_dtype compute_types[] = {PS_DTYPE_F32, PS_DTYPE_BF16};
#define FOR_EACH_TYPE(t)                                                                           \
    for (size_t t##_i = 0; t##_i < 2; t##_i++)                                                     \
        for (enum ps_dtype t = compute_types[t##_i], *t##_once = &t; t##_once; t##_once = NULL)

#endif
