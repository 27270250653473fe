/* Blocks: CUDA threads as fibers, the barrier, order, shared memory.
 *
 * Design: a fiber that ends starts the next thread on its own stack, so a block that never meets a
 * barrier costs one call a thread and one stack. A switch saves six registers and the stack
 * pointer. Under ThreadSanitizer each thread has a stack and a TSan fiber of its own, as stack
 * addresses would else be shared by threads that nothing orders. */
#include "tests/cuda_emu/emu_internal.h"

#include <sys/mman.h>

#ifndef __x86_64__
#error "the emulation's switch of fibers is written for x86-64"
#endif

extern "C" void ps_emu_switch(void **save, void *to);
asm(".text\n.globl ps_emu_switch\n.hidden ps_emu_switch\n.type ps_emu_switch,@function\n"
    "ps_emu_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size ps_emu_switch,.-ps_emu_switch\n");

namespace emu
{

thread_index *cur;
block_index blk;
struct block_state now;
const char *kernel_name = "-";

namespace
{
const size_t STACK_BYTES = 256 << 10;
const size_t SMEM_MAX = 256 << 10;
const size_t CANARY_ALIGN = 128;

std::mutex device_lock;
unsigned char *smem_end;     /* a page nobody may touch follows */
unsigned char *stacks[1024]; /* lowest address, mapped when first used */
int stack_free[1024];
int stack_free_count;
void *main_sp, *main_tsan;
const std::function<void()> *block_body;
char tsan_start, tsan_end, tsan_barrier[2];
bool own_stacks; /* ThreadSanitizer */

void map_stack(int i)
{
    void *p = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        die("no memory for a stack");
    mprotect(p, 4096, PROT_NONE);
    stacks[i] = static_cast<unsigned char *>(p);
}

void set_up()
{
    if (now.fibers)
        return;
    now.fibers = new fiber[1024]();
    now.warps = new warp[32]();
    own_stacks = __tsan_create_fiber != nullptr;
    void *p = mmap(nullptr, 4096 + SMEM_MAX + 4096, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        die("no memory for shared memory");
    smem_end = static_cast<unsigned char *>(p) + 4096 + SMEM_MAX;
    mprotect(smem_end, 4096, PROT_NONE);
    shared_static_find();
}

void thread_loop();

/* A fresh frame for a thread that has not started. Stacks begin at different cache sets. */
void prepare(fiber *f, uint32_t thread)
{
    int s = own_stacks ? (int)thread : stack_free[--stack_free_count];
    if (!stacks[s])
        map_stack(s);
    if (__asan_unpoison_memory_region)
        __asan_unpoison_memory_region(stacks[s] + 4096, STACK_BYTES - 4096);
    f->stack = s;
    void **sp = reinterpret_cast<void **>(stacks[s] + STACK_BYTES - 64 - (size_t)(s % 61) * 64);
    *--sp = nullptr;
    *--sp = reinterpret_cast<void *>(thread_loop);
    for (int k = 0; k < 6; k++)
        *--sp = nullptr;
    f->sp = sp; /* at entry rsp % 16 == 8, as after a call */
}

[[noreturn]] void deadlock()
{
    for (uint32_t i = 0; i < now.threads; i++) {
        fiber *x = &now.fibers[i];
        if (x->state == FIBER_AT_BARRIER || x->state == FIBER_IN_WARP)
            die("deadlock: %u of %u threads ended, thread %u waits in %s at %s:%d", now.done,
                now.threads, i, x->state == FIBER_AT_BARRIER ? "a barrier" : "a warp operation",
                x->file, x->line);
    }
    die("deadlock without a waiting thread");
}

uint32_t pick()
{
    uint32_t at = now.random.below(now.ready_count);
    uint32_t thread = now.ready[at];
    now.ready[at] = now.ready[--now.ready_count];
    return thread;
}

void tsan_switch(void *to)
{
    if (own_stacks)
        __tsan_switch_to_fiber(to, 1);
}

void jump(void **save, uint32_t thread)
{
    fiber *f = &now.fibers[thread];
    if (f->state == FIBER_NEW)
        prepare(f, thread);
    f->state = FIBER_READY;
    cur = f;
    tsan_switch(f->tsan);
    ps_emu_switch(save, f->sp);
}

/* Run threads on this stack until the next one to run has a stack already. */
void thread_loop()
{
    for (;;) {
        tsan_acquire(&tsan_start);
        (*block_body)();
        fiber *f = self();
        if (uint32_t left = copies_left(&f->copies))
            die("thread %u ended with %u cp.async copies that it never waited for",
                (uint32_t)(f - now.fibers), left);
        f->state = FIBER_DONE;
        now.done++;
        tsan_release(&tsan_end);
        int stack = f->stack;
        void *nowhere;
        if (now.ready_count == 0) {
            if (now.done < now.threads)
                deadlock();
            tsan_switch(main_tsan);
            ps_emu_switch(&nowhere, main_sp);
        }
        uint32_t next = pick();
        fiber *n = &now.fibers[next];
        if (n->state == FIBER_NEW && !own_stacks) {
            n->stack = stack;
            n->state = FIBER_READY;
            cur = n;
            continue;
        }
        if (!own_stacks)
            stack_free[stack_free_count++] = stack;
        jump(&nowhere, next);
    }
}

void start_threads(dim3 b)
{
    now.threads = b.x * b.y * b.z;
    now.done = now.ready_count = now.at_barrier = now.generation = now.barrier_count = 0;
    stack_free_count = 0;
    for (int i = 1023; i >= 0; i--)
        stack_free[stack_free_count++] = i;
    for (uint32_t w = 0; w * 32 < now.threads; w++) {
        uint32_t n = now.threads - w * 32;
        now.warps[w].lanes = n >= 32 ? ~0u : (1u << n) - 1;
        now.warps[w].generation = 0;
        for (auto &s : now.warps[w].slot)
            s.arrived = 0;
    }
    uint32_t i = 0;
    for (uint32_t z = 0; z < b.z; z++)
        for (uint32_t y = 0; y < b.y; y++)
            for (uint32_t x = 0; x < b.x; x++, i++) {
                fiber *f = &now.fibers[i];
                f->tid = {x, y, z};
                f->state = FIBER_NEW;
                f->lane = i & 31;
                f->warp = i >> 5;
                copies_reset(&f->copies);
                if (own_stacks && !f->tsan)
                    f->tsan = __tsan_create_fiber(0);
                now.ready[now.ready_count++] = i;
            }
}

void run_block(dim3 b, size_t smem, const std::vector<shared_range> &shared,
               const std::function<void()> &body)
{
    size_t room = (smem + CANARY_ALIGN - 1) / CANARY_ALIGN * CANARY_ALIGN;
    unsigned char *dyn = smem_end - room;
    memset(dyn - CANARY_ALIGN, 0xFF, room + CANARY_ALIGN);
    for (const auto &v : shared)
        memset(v.begin, 0xFF, v.bytes);
    blk.dyn = dyn;
    now.smem = smem;
    block_body = &body;
    start_threads(b);
    main_tsan = own_stacks ? __tsan_get_current_fiber() : nullptr;
    tsan_release(&tsan_start);
    jump(&main_sp, pick());
    tsan_acquire(&tsan_end);
    cur = nullptr;
    for (size_t i = smem; i < room; i++)
        if (dyn[i] != 0xFF)
            die("dynamic shared memory written past its %zu bytes", smem);
    for (size_t i = 1; i <= CANARY_ALIGN; i++)
        if (dyn[-(ptrdiff_t)i] != 0xFF)
            die("dynamic shared memory written %zu bytes before its start", i);
}

} // namespace

void make_ready(uint32_t thread)
{
    now.fibers[thread].state = FIBER_READY;
    now.ready[now.ready_count++] = thread;
}

void yield_fiber()
{
    fiber *f = self();
    if (now.ready_count == 0)
        deadlock();
    uint32_t next = pick();
    if (&now.fibers[next] != f)
        jump(&f->sp, next);
}

int block_barrier(int pred, const char *file, int line)
{
    fiber *f = self();
    uint32_t me = (uint32_t)(f - now.fibers);
    if (site(PS_EMU_BARRIER, file, line) != PS_EMU_WHOLE)
        return pred;
    const fiber *o = &now.fibers[now.barrier_first];
    if (!now.at_barrier)
        now.barrier_first = me;
    else if (o->line != line || (o->file != file && strcmp(o->file, file) != 0))
        die("divergent barrier: thread %u at %s:%d, thread %u at %s:%d", me, file, line,
            now.barrier_first, o->file, o->line);
    f->file = file;
    f->line = line;
    char *order = &tsan_barrier[now.generation & 1];
    tsan_release(order);
    now.barrier_count += pred ? 1u : 0u;
    if (++now.at_barrier == now.threads) {
        now.barrier_result = (int)now.barrier_count;
        now.at_barrier = now.barrier_count = 0;
        now.generation++;
        for (uint32_t i = 0; i < now.threads; i++)
            if (now.fibers[i].state == FIBER_AT_BARRIER)
                make_ready(i);
        make_ready(me);
    } else {
        f->state = FIBER_AT_BARRIER;
    }
    yield_fiber();
    tsan_acquire(order);
    return now.barrier_result;
}

void check_shared(const void *p, size_t n, const char *what, const char *file, int line)
{
    auto c = static_cast<const unsigned char *>(p);
    auto dyn = static_cast<const unsigned char *>(blk.dyn);
    if (reinterpret_cast<uintptr_t>(p) & 15)
        die("%s: shared address is not 16-byte aligned, %s:%d", what, file, line);
    if (c >= dyn && c + n <= dyn + now.smem)
        return;
    if (!shared_static_holds(p, n))
        die("%s: address outside shared memory (byte %ld of %zu), %s:%d", what, (long)(c - dyn),
            now.smem, file, line);
}

void run_grid(const char *name, const void *kernel, dim3 grid, dim3 block, size_t smem,
              const std::function<void()> &body)
{
    uint32_t n = grid.x * grid.y * grid.z;
    std::vector<uint32_t> order(n);
    fast_random random;
    random.reseed();
    for (uint32_t i = 0; i < n; i++) {
        order[i] = i;
        std::swap(order[i], order[random.below(i + 1)]);
    }
    std::vector<shared_range> shared;
    for (uint32_t i : order) {
        ignore_sync(true);
        device_lock.lock();
        ignore_sync(false);
        set_up();
        if (i == order[0])
            shared = shared_static_of(kernel);
        now.random.reseed();
        kernel_name = name;
        blk.bid = uint3{i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
        blk.bdim = block;
        blk.gdim = grid;
        run_block(block, smem, shared, body);
        kernel_name = "-";
        ignore_sync(true);
        device_lock.unlock();
        ignore_sync(false);
    }
}

} // namespace emu
