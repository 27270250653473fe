/* What the parts of the CUDA plug-in share. Private to the plug-in: nothing of it is in the
 * library. */
#ifndef PS_DEVICE_CUDA_INTERNAL_H
#define PS_DEVICE_CUDA_INTERNAL_H

#include <stddef.h>

#include <cuda_runtime_api.h>

#include "runtime/device/cuda_blas.h"
#include "runtime/device/cuda_plugin.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS__CUDA_STAGING ((size_t)64 << 10)

/* cx->blas: what the kernels table needs beside the stream. */
struct ps__cuda_state {
    struct ps_cuda_blas *blas; /* opened by the first product, in cx->gemm_workspace */
    cudaEvent_t event;         /* of finish and fetch; its waiter sleeps */
    void *staging;             /* PS__CUDA_STAGING bytes, pinned */
    int fault;                 /* where cx->fault points when the caller has none */
    char text[256];            /* the first fault in words, "" while there is none */
};

extern const struct ps_device_ops ps__cuda_device;
extern const struct ps_kernels ps__cuda_kernels;
extern const struct ps_queue_ops ps__cuda_queues;

/* The stream on which an open device copies to the host (d2h) or from it. */
cudaStream_t ps__cuda_device_stream(struct ps_device *d, bool d2h);

/* "what: name (text)", in *err; forgets the pending error of this thread. Returns PS_ECUDA. */
int ps__cuda_error(struct ps_error *err, cudaError_t e, const char *what);

/* An event without timing whose waiter sleeps; a stream that the default stream does not touch. 0
 * or PS_ECUDA. */
int ps__cuda_event_create(cudaEvent_t *out, struct ps_error *err);
int ps__cuda_stream_create(cudaStream_t *out, struct ps_error *err);

/* Queue dst[r * dst_ld + c] = src[r * src_ld + c] for rows x cols elements, converted to nearest
 * even: src F32, BF16 or F16, dst F32 or BF16. 0, -EINVAL or PS_ECUDA. */
int ps__cuda_pack(void *stream, void *dst, size_t dst_ld, enum ps_dtype dst_dtype, const void *src,
                  size_t src_ld, enum ps_dtype src_dtype, size_t rows, size_t cols);

/* Whether the plug-in has code for the current device: a cudaError_t. */
int ps__cuda_code_check(void);

#ifdef __cplusplus
}
#endif
#endif
