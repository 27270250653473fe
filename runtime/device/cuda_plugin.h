/* The CUDA device as a plug-in: libpenstock_cuda.so, beside the program or in LIBDIR/penstock/. The
 * program has no CUDA dependency; it loads the plug-in when a CUDA run is asked for (or `auto`
 * finds a driver) and says in one line why not otherwise. Never unloaded.
 *
 * The tests load the same sources compiled against the emulation (build/libpenstock_cuda_emu.so, by
 * the environment variable PENSTOCK_CUDA_PLUGIN): the device then calls itself "cuda" all the same.
 */
#ifndef PS_DEVICE_CUDA_PLUGIN_H
#define PS_DEVICE_CUDA_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/device/device.h"
#include "runtime/device/device_queue.h"
#include "runtime/kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_CUDA_PLUGIN_VERSION 2

struct ps_cuda_info {
    char name[128]; /* of the card */
    int major, minor;
    uint64_t total_bytes, free_bytes; /* now, other users of the card counted */
    uint64_t reserved_bytes; /* context and modules of this process, those loaded later included */
    uint64_t later_bytes;    /* of these, what is not taken yet: a part of free_bytes still */
    int copy_engines;
    size_t shared_bytes_max; /* opt-in shared memory of a block */
};

struct ps_cuda_plugin {
    int version;
    bool emulated;
    /* Is there a driver and a card that can run this? 0, or PS_ECUDA with one line in err. Creates
     * the context; fills *info. */
    int (*probe)(struct ps_cuda_info *info, struct ps_error *err);
    /* The device: one cudaMalloc; map is the identity; copies run on a stream of their own
     * direction and are complete on return (the calling lane sleeps on an event). */
    const struct ps_device_ops *device;
    /* The kernels, for cx->stream and cx->blas that compute_open made. Products need
     * cx->gemm_workspace, 256-byte aligned device memory, before the first of them. */
    const struct ps_kernels *kernels;
    /* Sets stream and blas, and fault when it is NULL. */
    int (*compute_open)(struct ps_compute *cx, struct ps_error *err);
    void (*compute_close)(struct ps_compute *cx);
    /* Page-lock host memory that transfers use; released by unpin. A refusal is not fatal: copies
     * are then slower; the caller logs it. */
    int (*pin)(void *base, size_t bytes, struct ps_error *err);
    void (*unpin)(void *base);
    /* Its streams: that of compute_open and those on which the device's copies are queued. */
    const struct ps_queue_ops *queues;
    /* The first failure behind *cx->fault in words, "" while there is none. Until compute_close. */
    const char *(*fault_text)(const struct ps_compute *cx);
};

/* Symbol "ps_cuda_plugin" of the shared object. */
typedef const struct ps_cuda_plugin *(*ps_cuda_plugin_fn)(void);

/* Load (once; later calls give the same). NULL with one line in why[256]: no plug-in, no driver
 * library, wrong version. Looks at PENSTOCK_CUDA_PLUGIN, then beside the program, then in
 * LIBDIR/penstock. */
const struct ps_cuda_plugin *ps_cuda_plugin_load(char why[256]);
/* For `--device auto`: the plug-in when it has a card to run on, else NULL with one line in
 * why[256] (may be NULL). Probes once. Never the emulation, which is used when it is named alone.
 */
const struct ps_cuda_plugin *ps_cuda_plugin_auto(char why[256]);

#ifdef __cplusplus
}
#endif
#endif
