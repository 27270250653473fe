/* The device `cpu`: its arena is host memory, its addresses are the host's. See device.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/huge.h"
#include "runtime/device/device.h"

#define ARENA_ALIGN ((size_t)2 << 20)

struct cpu_device {
    struct ps_device device; /* first: the two pointers are one */
    unsigned char *base;
    size_t bytes;
    const char *kind; /* of pages; static storage */
};

static void cpu_close(struct ps_device *d)
{
    struct cpu_device *c = (struct cpu_device *)d;
    if (!c)
        return;
    ps_huge_release(c->base, c->bytes);
    free(c);
}

static int cpu_open(struct ps_device **out, size_t bytes, struct ps_error *err)
{
    assert(bytes % ARENA_ALIGN == 0);
    struct cpu_device *c = calloc(1, sizeof *c);
    if (!c)
        return ps_error_set(err, -ENOMEM, "no memory for the device cpu");
    c->device.ops = &ps_device_cpu;
    c->bytes = bytes;
    void *base = NULL;
    int ret = bytes > 0 ? ps_huge_reserve(&base, bytes, &c->kind, err) : 0;
    if (ret < 0) {
        free(c);
        ps_error_advice(err, ret, "lower --host-mem");
        return ps_error_field(err, ret, "host-mem");
    }
    c->base = base;
    *out = &c->device;
    return 0;
}

static void *cpu_base(const struct ps_device *d)
{
    return ((const struct cpu_device *)d)->base;
}

static bool holds(const struct ps_device *d, const void *at, size_t bytes)
{
    const struct cpu_device *c = (const struct cpu_device *)d;
    uintptr_t first = (uintptr_t)c->base, a = (uintptr_t)at;
    return a >= first && a - first <= c->bytes && bytes <= c->bytes - (a - first);
}

static void *cpu_map(const struct ps_device *d, const void *device_address)
{
    if (!device_address)
        return NULL;
    assert(holds(d, device_address, 0));
    return (void *)device_address;
}

static int cpu_copy_h2d(struct ps_device *d, void *dst_device, const void *src_host, size_t bytes,
                        struct ps_error *err)
{
    (void)err;
    assert(holds(d, dst_device, bytes));
    if (bytes > 0)
        memmove(dst_device, src_host, bytes);
    return 0;
}

static int cpu_copy_d2h(struct ps_device *d, void *dst_host, const void *src_device, size_t bytes,
                        struct ps_error *err)
{
    (void)err;
    assert(holds(d, src_device, bytes));
    if (bytes > 0)
        memmove(dst_host, src_device, bytes);
    return 0;
}

static void cpu_poison(struct ps_device *d, void *device_address, size_t bytes)
{
    assert(holds(d, device_address, bytes));
}

static const char *cpu_pages(const struct ps_device *d)
{
    return ((const struct cpu_device *)d)->kind;
}

const struct ps_device_ops ps_device_cpu = {
    .name = "cpu",
    .discrete = false,
    .open = cpu_open,
    .close = cpu_close,
    .base = cpu_base,
    .map = cpu_map,
    .copy_h2d = cpu_copy_h2d,
    .copy_d2h = cpu_copy_d2h,
    .poison = cpu_poison,
    .pages = cpu_pages,
};
