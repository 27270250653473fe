/* Memory of the emulated device, pinned host memory, copies.
 *
 * Design: one memory file. The addresses that the host holds lie in a range that nobody may touch;
 * the device's threads use a second range, a constant distance away (a multiple of 4 GiB, so that
 * translating a word that only looks like an address, as an int beside stale padding does, leaves
 * its lower half alone), where each allocation ends at a page boundary (less than 256 bytes of
 * canary) and a page without access follows. What the first page holds before it is canary too. */
#include "tests/cuda_emu/emu_internal.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <map>

namespace emu
{

namespace
{

const size_t PAGE = 4096, ALIGN = 256, BIG_ALIGN = (size_t)2 << 20, FOUR_GIB = (size_t)1 << 32;
/* Where the range is put when it is free: not among addresses whose upper half looks like a size.
 */
void *const REGION_HINT = reinterpret_cast<void *>(0x6b6d00000000);

struct allocation {
    size_t bytes;                 /* asked for */
    size_t first_page, pages_end; /* offsets in the region */
};

std::mutex memory_lock; /* guards all below */
int memory_file = -1;
unsigned char *region, *view; /* host addresses and device addresses of the same bytes */
size_t region_bytes;
struct tables {
    std::map<size_t, allocation> device; /* by offset of the first byte */
    std::map<uintptr_t, size_t> pinned;  /* cudaMallocHost and cudaHostRegister */
    std::map<uintptr_t, size_t> owned;   /* cudaMallocHost alone: bytes mapped */
};
lasting<tables> all_tables;
auto &device = all_tables.value.device;
auto &pinned = all_tables.value.pinned, &owned = all_tables.value.owned;

void set_up()
{
    if (region)
        return;
    region_bytes = 2 * config().gpu_bytes + ((size_t)64 << 20);
    memory_file = memfd_create("penstock-cuda-emu", MFD_CLOEXEC);
    if (memory_file < 0 || ftruncate(memory_file, (off_t)region_bytes) < 0)
        die("no memory file for the device");
    const size_t distance = (region_bytes + FOUR_GIB - 1) / FOUR_GIB * FOUR_GIB;
    void *p = mmap(REGION_HINT, 2 * distance + BIG_ALIGN, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        die("no address range for the device");
    region = reinterpret_cast<unsigned char *>((reinterpret_cast<uintptr_t>(p) + BIG_ALIGN - 1) /
                                               BIG_ALIGN * BIG_ALIGN);
    view = region + distance;
}

/* Where `need` bytes of pages fit behind a guard page, first fit; `align` of the start. */
size_t find_room(size_t need, size_t align)
{
    size_t at = 0;
    for (const auto &d : device) {
        size_t start = (at + align - 1) / align * align;
        if (start + need <= d.second.first_page)
            return start;
        at = d.second.pages_end + PAGE;
    }
    return (at + align - 1) / align * align;
}

void check_canary(size_t at, const allocation &a)
{
    for (size_t i = at + a.bytes; i < a.pages_end; i++)
        if (view[i] != 0xFF)
            die("device memory written %zu bytes past the end of an allocation of %zu",
                i - at - a.bytes, a.bytes);
    for (size_t i = a.first_page; i < at; i++)
        if (view[i] != 0xFF)
            die("device memory written %zu bytes before an allocation of %zu", at - i, a.bytes);
}

const std::pair<const size_t, allocation> *find(const void *p)
{
    size_t at = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(region);
    auto i = device.upper_bound(at);
    if (i == device.begin())
        return nullptr;
    --i;
    return at <= i->first + i->second.bytes ? &*i : nullptr;
}

bool is_pinned_locked(const void *p, size_t n)
{
    auto at = reinterpret_cast<uintptr_t>(p);
    auto i = pinned.upper_bound(at);
    if (i == pinned.begin())
        return false;
    --i;
    return at + n <= i->first + i->second;
}

bool in_region(const void *p)
{
    return region &&
           reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(region) < region_bytes;
}

} // namespace

bool is_device(const void *p)
{
    return in_region(p);
}

void *device_view(const void *p, size_t n)
{
    quiet_lock l(memory_lock);
    auto c = static_cast<const unsigned char *>(p);
    if (!in_region(p))
        return is_pinned_locked(p, n) ? const_cast<void *>(p) : nullptr;
    auto a = find(p);
    if (!a || (size_t)(c - region) + n > a->first + a->second.bytes)
        return nullptr;
    return view + (c - region);
}

void *argument_pointer(const char *kernel, const void *p)
{
    if (!p)
        return nullptr;
    void *v = device_view(p, 0);
    if (!v)
        die("kernel %s gets the pointer %p, which is neither device nor pinned memory", kernel, p);
    return v;
}

void argument_words(void *words, size_t bytes)
{
    for (size_t i = 0; i + sizeof(void *) <= bytes; i += sizeof(void *)) {
        auto at = static_cast<unsigned char *>(words) + i;
        void *p;
        memcpy(&p, at, sizeof p);
        void *v = in_region(p) ? device_view(p, 0) : nullptr;
        if (v)
            memcpy(at, &v, sizeof v);
    }
}

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t cudaMalloc(void **out, size_t n)
{
    if (injected())
        return fail(cudaErrorUnknown);
    count(&counts.allocations);
    quiet_lock l(memory_lock);
    set_up();
    *out = nullptr;
    if (n == 0)
        return cudaSuccess;
    const settings &c = config();
    if (n > c.gpu_bytes || counts.device_bytes + c.context_bytes + n > c.gpu_bytes)
        return fail(cudaErrorMemoryAllocation);
    size_t inner = (n + ALIGN - 1) / ALIGN * ALIGN, pages = (inner + PAGE - 1) / PAGE * PAGE;
    bool big = n >= BIG_ALIGN / 2;
    size_t first = find_room(pages, big ? BIG_ALIGN : PAGE);
    if (first + pages + PAGE > region_bytes)
        return fail(cudaErrorMemoryAllocation);
    size_t at = big ? first : first + pages - inner;
    if (mmap(view + first, pages, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory_file,
             (off_t)first) == MAP_FAILED)
        return fail(cudaErrorMemoryAllocation);
    memset(view + first, 0xFF, pages);
    device[at] = allocation{n, first, first + pages};
    counts.device_bytes += n;
    if (counts.device_bytes > counts.device_bytes_max)
        counts.device_bytes_max = counts.device_bytes;
    *out = region + at;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (injected())
        return fail(cudaErrorUnknown);
    if (!p)
        return cudaSuccess;
    wait_device();
    quiet_lock l(memory_lock);
    auto i = device.find((size_t)(static_cast<unsigned char *>(p) - region));
    if (!in_region(p) || i == device.end())
        return fail(cudaErrorInvalidValue);
    check_canary(i->first, i->second);
    const allocation &a = i->second;
    if (mmap(view + a.first_page, a.pages_end - a.first_page, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        die("cannot unmap device memory");
    fallocate(memory_file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)a.first_page,
              (off_t)(a.pages_end - a.first_page));
    counts.device_bytes -= a.bytes;
    device.erase(i);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    if (injected())
        return fail(cudaErrorUnknown);
    quiet_lock l(memory_lock);
    *total_bytes = config().gpu_bytes;
    *free_bytes = config().gpu_bytes - config().context_bytes - counts.device_bytes;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **out, size_t n, unsigned)
{
    if (injected())
        return fail(cudaErrorUnknown);
    count(&counts.allocations);
    if (n == 0)
        return fail(cudaErrorInvalidValue);
    size_t pages = (n + PAGE - 1) / PAGE * PAGE;
    void *p = mmap(nullptr, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return fail(cudaErrorMemoryAllocation);
    memset(p, 0xFF, pages);
    quiet_lock l(memory_lock);
    pinned[reinterpret_cast<uintptr_t>(p)] = n;
    owned[reinterpret_cast<uintptr_t>(p)] = pages;
    counts.pinned_bytes += n;
    *out = p;
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t n)
{
    return cudaHostAlloc(out, n, 0);
}

cudaError_t cudaFreeHost(void *p)
{
    if (injected())
        return fail(cudaErrorUnknown);
    if (!p)
        return cudaSuccess;
    wait_device();
    quiet_lock l(memory_lock);
    auto i = owned.find(reinterpret_cast<uintptr_t>(p));
    if (i == owned.end())
        return fail(cudaErrorInvalidValue);
    munmap(p, i->second);
    counts.pinned_bytes -= pinned[i->first];
    pinned.erase(i->first);
    owned.erase(i);
    return cudaSuccess;
}

/* Registrations may not share a page. */
cudaError_t cudaHostRegister(void *p, size_t n, unsigned)
{
    if (injected())
        return fail(cudaErrorUnknown);
    count(&counts.allocations);
    if (!p || n == 0)
        return fail(cudaErrorInvalidValue);
    auto at = reinterpret_cast<uintptr_t>(p);
    quiet_lock l(memory_lock);
    auto i = pinned.lower_bound((at + n + PAGE - 1) / PAGE * PAGE);
    if (i != pinned.begin() && (--i, i->first + i->second > at / PAGE * PAGE))
        return fail(cudaErrorHostMemoryAlreadyRegistered);
    pinned[at] = n;
    counts.pinned_bytes += n;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    if (injected())
        return fail(cudaErrorUnknown);
    wait_device();
    quiet_lock l(memory_lock);
    auto at = reinterpret_cast<uintptr_t>(p);
    auto i = pinned.find(at);
    if (i == pinned.end() || owned.count(at))
        return fail(cudaErrorHostMemoryNotRegistered);
    counts.pinned_bytes -= i->second;
    pinned.erase(i);
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **out, void *p, unsigned)
{
    quiet_lock l(memory_lock);
    if (!is_pinned_locked(p, 1))
        return fail(cudaErrorInvalidValue);
    *out = p;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *p)
{
    memset(out, 0, sizeof *out);
    void *v = device_view(p, 0);
    out->type = is_device(p) && v ? cudaMemoryTypeDevice
                : v               ? cudaMemoryTypeHost
                                  : cudaMemoryTypeUnregistered;
    out->devicePointer = v ? const_cast<void *>(p) : nullptr;
    out->hostPointer = out->type == cudaMemoryTypeHost ? const_cast<void *>(p) : nullptr;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    if (injected())
        return fail(cudaErrorUnknown);
    count(&counts.copies);
    bool to_device = is_device(d), from_device = is_device(s);
    if (kind != cudaMemcpyDefault &&
        (to_device != (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
         from_device != (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice)))
        return fail(cudaErrorInvalidMemcpyDirection);
    if (n == 0)
        return cudaSuccess;
    void *to = device_view(d, n);
    const void *from = device_view(s, n);
    if ((to_device && !to) || (from_device && !from))
        return fail(cudaErrorInvalidValue);
    bool pageable = !to || !from;
    if (pageable) {
        count(&counts.pageable_copies);
        to = to ? to : d;
        from = from ? from : s;
    }
    uint64_t seq = enqueue(stream, [to, from, n] {
        tsan_read(from, n);
        tsan_write(to, n);
        memmove(to, from, n);
    });
    if (pageable)
        wait_stream(stream, seq);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *d, size_t d_pitch, const void *s, size_t s_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    for (size_t r = 0; r < height; r++) {
        cudaError_t e =
            cudaMemcpyAsync(static_cast<char *>(d) + r * d_pitch,
                            static_cast<const char *>(s) + r * s_pitch, width, kind, stream);
        if (e)
            return e;
    }
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *d, int value, size_t n, cudaStream_t stream)
{
    if (injected())
        return fail(cudaErrorUnknown);
    count(&counts.memsets);
    if (n == 0)
        return cudaSuccess;
    void *to = device_view(d, n);
    if (!to)
        return fail(cudaErrorInvalidValue);
    enqueue(stream, [to, value, n] {
        tsan_write(to, n);
        memset(to, value, n);
    });
    return cudaSuccess;
}

void *ps_emu_view(const void *device_address, size_t bytes)
{
    void *v = is_device(device_address) ? device_view(device_address, bytes) : nullptr;
    if (!v)
        die("ps_emu_view: %zu bytes at %p are not device memory", bytes, device_address);
    return v;
}

} // extern "C"
