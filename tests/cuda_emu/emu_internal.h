/* What the parts of the emulation share. The random numbers, the error exit, hooks of the
 * sanitizers, queues and memory. None of these files is instrumented by ThreadSanitizer. */
#ifndef PS_TESTS_CUDA_EMU_INTERNAL_H
#define PS_TESTS_CUDA_EMU_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

#include "runtime/kernels/gpu.cuh"
#include "tests/cuda_emu/emu_host.h"

#define EMU_WEAK extern "C" __attribute__((weak))
EMU_WEAK void __asan_unpoison_memory_region(void const volatile *, size_t);
EMU_WEAK void __tsan_acquire(void *);
EMU_WEAK void __tsan_release(void *);
EMU_WEAK void *__tsan_get_current_fiber();
EMU_WEAK void *__tsan_create_fiber(unsigned);
EMU_WEAK void __tsan_switch_to_fiber(void *, unsigned);
EMU_WEAK void __tsan_read_range(void *, unsigned long);
EMU_WEAK void __tsan_write_range(void *, unsigned long);
EMU_WEAK void AnnotateIgnoreSyncBegin(const char *, int);
EMU_WEAK void AnnotateIgnoreSyncEnd(const char *, int);

#pragma GCC visibility push(hidden)
namespace emu
{

/* An object that is never destroyed: streams still run when the process exits. */
template <class T> union lasting {
    T value;
    lasting() : value()
    {
    }
    ~lasting()
    {
    }
};

static inline void tsan_acquire(void *p)
{
    if (__tsan_acquire)
        __tsan_acquire(p);
}
static inline void tsan_release(void *p)
{
    if (__tsan_release)
        __tsan_release(p);
}
static inline void tsan_read(const void *p, size_t n)
{
    if (__tsan_read_range && n)
        __tsan_read_range(const_cast<void *>(p), n);
}
static inline void tsan_write(void *p, size_t n)
{
    if (__tsan_write_range && n)
        __tsan_write_range(p, n);
}

/* Print "emu: ..." with the kernel, block and seed, and end the process with code 3. */
[[noreturn]] void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- random numbers: settings are read from the environment once ---- */
struct settings {
    uint32_t seed;
    double hold_ms;
    size_t gpu_bytes;     /* of the card */
    size_t context_bytes; /* of them taken by the context and by others */
    size_t smem_optin;
};
settings &config();
uint32_t random_u32(); /* any thread */
/* In [0, n), for the thread that runs a block. */
struct fast_random {
    uint32_t state;
    void reseed()
    {
        state = random_u32() | 1u;
    }
    uint32_t below(uint32_t n)
    {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return (uint32_t)(((uint64_t)state * n) >> 32);
    }
};

/* ---- blocks (emu_fiber.cpp) ---- */
void run_grid(const char *name, const void *kernel, dim3 grid, dim3 block, size_t smem,
              const std::function<void()> &body);
extern const char *kernel_name; /* of the block that runs, or "-" */

/* Copies of cp.async of one thread: those of the open group last. */
struct pending_copy {
    void *to;
    const void *from;
    int bytes;
};
#define EMU_GROUPS_MAX 64
struct copy_queue {
    struct pending_copy *copy;
    uint32_t first, count, capacity;
    uint32_t end[EMU_GROUPS_MAX]; /* end[g % MAX]: index one past the last copy of group g */
    uint32_t group_first, group_count;
};

/* A CUDA thread. */
enum fiber_state { FIBER_NEW, FIBER_READY, FIBER_AT_BARRIER, FIBER_IN_WARP, FIBER_DONE };
struct fiber : thread_index {
    void *sp;
    int stack; /* index of the stack that it runs on, -1: none */
    fiber_state state;
    uint32_t lane, warp;
    const char *file; /* where it last met others */
    int line;
    void *tsan;
    struct copy_queue copies;
};

/* What lanes of a warp bring to an operation and take from it. */
struct warp_slot {
    uint32_t mask, arrived;
    warp_kind kind;
    int line;
    const char *file;
};
struct warp_lane {
    uint64_t in, out;
    int arg, width, pred;
    float *d;
    const uint32_t *a;
    uint32_t b[2];
    uint32_t row[4];
    const void *row_at;
    uint32_t *r;
};
struct warp {
    struct warp_slot slot[4];
    struct warp_lane lane[32];
    uint32_t lanes; /* that exist */
    uint32_t generation;
    char sync[2];
};

struct block_state {
    struct fiber *fibers; /* 1024 */
    struct warp *warps;   /* 32 */
    uint32_t threads, done;
    uint32_t ready[1024], ready_count;
    uint32_t at_barrier, barrier_first, barrier_count, generation;
    int barrier_result;
    size_t smem;
    fast_random random;
};
extern struct block_state now; /* guarded by the lock of the device: one block at a time */

static inline struct fiber *self()
{
    return static_cast<struct fiber *>(cur);
}
/* Others run until somebody makes this fiber ready. */
void yield_fiber();
void make_ready(uint32_t thread);
/* [p, p + n) inside dynamic or static shared memory, p 16-byte aligned; else ends the process.
 */
void check_shared(const void *p, size_t n, const char *what, const char *file, int line);
void copies_reset(struct copy_queue *q);
uint32_t copies_left(const struct copy_queue *q);

/* ---- sites (emu_site.cpp) ---- */
/* Remember the site, and say how it shall be. */
enum ps_emu_break site(enum ps_emu_site_kind kind, const char *file, int line);
/* Times that a read of 16 bytes at each of these shared addresses is repeated: 32 banks of 4 bytes.
 */
uint32_t bank_conflicts(const void *const row[8]);

/* ---- static shared memory (emu_shared.cpp): found in the symbol table ---- */
struct shared_range {
    unsigned char *begin;
    size_t bytes;
};
void shared_static_find();
/* What must be poisoned before each block of this kernel. */
std::vector<shared_range> shared_static_of(const void *kernel);
bool shared_static_holds(const void *p, size_t n);

/* ---- memory (emu_memory.cpp) ---- */
/* Kernel-side address of device memory, or p itself for pinned memory; NULL when it is neither,
 * or when [p, p + n) leaves its allocation. */
void *device_view(const void *p, size_t n);
bool is_device(const void *p);

/* ---- streams (emu_stream.cpp) ---- */
/* Queue `op` on a stream; ends the process for the default stream. Returns its number, to wait
 * for.
 */
uint64_t enqueue(void *stream, std::function<void()> op);
void wait_stream(void *stream, uint64_t seq);
void wait_device();
extern struct ps_emu_counts counts; /* atomic adds */
static inline void count(uint64_t *c, uint64_t n = 1)
{
    __atomic_fetch_add(c, n, __ATOMIC_RELAXED);
}
/* Set the error that cudaGetLastError gives back, and return it. */
cudaError_t fail(cudaError_t e);
/* Called first by every fallible CUDA function: whether it must fail (ps_emu_fail_call). Ends
 * the process inside a host function. */
bool injected();
extern __thread bool in_host_function;

static inline void ignore_sync(bool on)
{
    if (on && AnnotateIgnoreSyncBegin)
        AnnotateIgnoreSyncBegin("", 0);
    if (!on && AnnotateIgnoreSyncEnd)
        AnnotateIgnoreSyncEnd("", 0);
}

/* The emulation's own locks must not order the accesses of what it runs. */
struct quiet_lock {
    std::unique_lock<std::mutex> lock;
    explicit quiet_lock(std::mutex &m)
    {
        ignore_sync(true);
        lock = std::unique_lock<std::mutex>(m);
    }
    ~quiet_lock()
    {
        lock.unlock();
        ignore_sync(false);
    }
    void order(void (*hook)(void *), void *p)
    {
        ignore_sync(false);
        hook(p);
        ignore_sync(true);
    }
};

} // namespace emu
#pragma GCC visibility pop

#endif
