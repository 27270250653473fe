/* The device `emu`: a discrete device of threads and memory. See device.h.
 *
 * Design: one memory file, mapped twice. The addresses that the host holds lie in the first
 * mapping, which nobody may read or write, so that a host access to device memory faults instead of
 * working by accident. Copies and the device's own threads use the second. Memory that nobody has
 * written, or that was given up, holds 0xFF bytes: a NaN as fp32, bf16 and fp16, and -1 as an
 * index. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/checked.h"
#include "runtime/device/device.h"

#define ARENA_ALIGN ((size_t)2 << 20)
#define POISON_BYTE 0xFF

struct emu_device {
    struct ps_device device; /* first: the two pointers are one */
    unsigned char *base;     /* device addresses: PROT_NONE */
    unsigned char *view;     /* the same memory for the device's threads */
    size_t bytes;
    void *map[2];
    size_t map_bytes;
};

static void emu_close(struct ps_device *d)
{
    struct emu_device *e = (struct emu_device *)d;
    if (!e)
        return;
    for (int i = 0; i < 2; i++)
        if (e->map[i])
            munmap(e->map[i], e->map_bytes);
    free(e);
}

/* Map the file, 2 MiB aligned, inside a range that is reserved for it. NULL and errno on failure.
 */
static unsigned char *map_file(struct emu_device *e, int fd, int which, int protection)
{
    void *range =
        mmap(NULL, e->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
        return NULL;
    e->map[which] = range;
    unsigned char *at = (unsigned char *)ps_align_up((size_t)range, ARENA_ALIGN);
    if (e->bytes > 0 && mmap(at, e->bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        return NULL;
    return at;
}

static int map_both(struct emu_device *e)
{
    int ret = 0;
    int fd = memfd_create("penstock-emu", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)e->bytes) < 0 || !(e->base = map_file(e, fd, 0, PROT_NONE)) ||
        !(e->view = map_file(e, fd, 1, PROT_READ | PROT_WRITE)))
        ret = -errno;
    close(fd);
    return ret;
}

static int emu_open(struct ps_device **out, size_t bytes, struct ps_error *err)
{
    assert(bytes % ARENA_ALIGN == 0);
    struct emu_device *e = calloc(1, sizeof *e);
    if (!e)
        return ps_error_set(err, -ENOMEM, "no memory for the device emu");
    e->device.ops = &ps_device_emu;
    e->bytes = bytes;
    int ret = -ENOMEM;
    if (bytes <= INT64_MAX && ps_add_size(bytes, ARENA_ALIGN, &e->map_bytes))
        ret = map_both(e);
    if (ret < 0) {
        emu_close(&e->device);
        return ps_error_full(err, ret, NULL, "gpu-mem", "lower --gpu-mem",
                             "cannot map %zu MiB for the device emu: %s", bytes >> 20,
                             ps_status_text(ret));
    }
    if (bytes > 0)
        memset(e->view, POISON_BYTE, bytes);
    *out = &e->device;
    return 0;
}

static void *emu_base(const struct ps_device *d)
{
    return ((const struct emu_device *)d)->base;
}

/* The device's own address of [device_address, + bytes), which must lie in the arena. */
static unsigned char *view_of(const struct ps_device *d, const void *device_address, size_t bytes)
{
    const struct emu_device *e = (const struct emu_device *)d;
    uintptr_t first = (uintptr_t)e->base, at = (uintptr_t)device_address;
    assert(at >= first);
    assert(at - first <= e->bytes);
    assert(bytes <= e->bytes - (at - first));
    return e->view + (at - first);
}

static void *emu_map(const struct ps_device *d, const void *device_address)
{
    return device_address ? view_of(d, device_address, 0) : NULL;
}

static int emu_copy_h2d(struct ps_device *d, void *dst_device, const void *src_host, size_t bytes,
                        struct ps_error *err)
{
    (void)err;
    unsigned char *dst = view_of(d, dst_device, bytes);
    if (bytes > 0)
        memcpy(dst, src_host, bytes);
    return 0;
}

static int emu_copy_d2h(struct ps_device *d, void *dst_host, const void *src_device, size_t bytes,
                        struct ps_error *err)
{
    (void)err;
    const unsigned char *src = view_of(d, src_device, bytes);
    if (bytes > 0)
        memcpy(dst_host, src, bytes);
    return 0;
}

static void emu_poison(struct ps_device *d, void *device_address, size_t bytes)
{
    unsigned char *at = view_of(d, device_address, bytes);
    if (bytes > 0)
        memset(at, POISON_BYTE, bytes);
}

static const char *emu_pages(const struct ps_device *d)
{
    (void)d;
    return NULL;
}

const struct ps_device_ops ps_device_emu = {
    .name = "emu",
    .discrete = true,
    .open = emu_open,
    .close = emu_close,
    .base = emu_base,
    .map = emu_map,
    .copy_h2d = emu_copy_h2d,
    .copy_d2h = emu_copy_d2h,
    .poison = emu_poison,
    .pages = emu_pages,
};
