/* Devices: where compute happens and how bytes get there.
 *
 * A device has one arena. Addresses in it that the host holds ("device addresses") may be
 * unreadable to the host: only ps_device_ops.map gives an address that the device's own threads may
 * use. On `cpu` the arena is host memory and map is the identity. */
#ifndef PS_DEVICE_DEVICE_H
#define PS_DEVICE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_device;

struct ps_device_ops {
    const char *name; /* "cpu", "emu" */
    bool discrete;    /* has memory of its own: weights and batches are copied there */
    /* One arena of `bytes` (a multiple of 2 MiB), zero-filled (cpu) or poisoned (emu). *base
     * receives its device address, 2 MiB aligned. -ENOMEM or -errno. */
    int (*open)(struct ps_device **out, size_t bytes, struct ps_error *err);
    void (*close)(struct ps_device *d);
    void *(*base)(const struct ps_device *d);
    /* Address for the device's threads of a device address; NULL for NULL. */
    void *(*map)(const struct ps_device *d, const void *device_address);
    /* Copies, complete on return; called by the thread of a copy lane, or by the host between runs.
     */
    int (*copy_h2d)(struct ps_device *d, void *dst_device, const void *src_host, size_t bytes,
                    struct ps_error *err);
    int (*copy_d2h)(struct ps_device *d, void *dst_host, const void *src_device, size_t bytes,
                    struct ps_error *err);
    /* Copies that are queued behind those of their direction and complete when a mark that is set
     * after them is passed (device_queue.h); pinned host memory, which stays as it is until then.
     * NULL on devices without queues. */
    int (*queue_h2d)(struct ps_device *d, void *dst_device, const void *src_host, size_t bytes,
                     struct ps_error *err);
    int (*queue_d2h)(struct ps_device *d, void *dst_host, const void *src_device, size_t bytes,
                     struct ps_error *err);
    /* Fill with a poison pattern (emu); nothing on cpu. A buffer that is given up. */
    void (*poison)(struct ps_device *d, void *device_address, size_t bytes);
    /* What pages the arena lies on ("transparent huge pages", ...); NULL: none, or not known. */
    const char *(*pages)(const struct ps_device *d);
};

struct ps_device {
    const struct ps_device_ops *ops;
};

extern const struct ps_device_ops ps_device_cpu;
extern const struct ps_device_ops ps_device_emu;

/* "cpu" or "emu"; NULL for any other name. */
const struct ps_device_ops *ps_device_find(const char *name);

#ifdef __cplusplus
}
#endif
#endif
