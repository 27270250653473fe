/* One arena a tier: see arena.h. */
#include "runtime/train/arena.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/base/checked.h"

#define ENTRY_ALIGN ((size_t)64)
#define ARENA_ALIGN ((size_t)2 << 20)

struct entry {
    void **slot;
    size_t offset;
    size_t bytes;
};

struct ps_arena {
    struct entry *entry;
    size_t count, capacity;
    size_t bytes;
    size_t class_bytes[PS_ARENA_CLASS_COUNT];
    int fault; /* first planning error */
    unsigned char *base;
    void *map;
    size_t map_bytes;
};

const char *ps_arena_class_name(enum ps_arena_class c)
{
    static const char *const name[PS_ARENA_CLASS_COUNT] = {
        "weights", "adapter", "gradients", "optimizer state", "activations", "workspace", "batch"};
    assert(c < PS_ARENA_CLASS_COUNT);
    return name[c];
}

int ps_arena_create(struct ps_arena **out)
{
    struct ps_arena *a = calloc(1, sizeof *a);
    if (!a)
        return -ENOMEM;
    *out = a;
    return 0;
}

void ps_arena_destroy(struct ps_arena *a)
{
    if (!a)
        return;
    if (a->map)
        munmap(a->map, a->map_bytes);
    free(a->entry);
    free(a);
}

void ps_arena_add(struct ps_arena *a, enum ps_arena_class c, void **slot, size_t bytes)
{
    assert(!a->base);
    *slot = NULL;
    if (a->count == a->capacity) {
        size_t capacity = a->capacity ? 2 * a->capacity : 256;
        struct entry *grown = realloc(a->entry, capacity * sizeof *grown);
        if (!grown) {
            a->fault = -ENOMEM;
            return;
        }
        a->entry = grown;
        a->capacity = capacity;
    }
    size_t room;
    if (!ps_add_size(bytes, ENTRY_ALIGN, &room) || !ps_add_size(a->bytes, room, &room) ||
        room > SIZE_MAX / 2) {
        a->fault = -EOVERFLOW;
        return;
    }
    size_t padded = ps_align_up(bytes, ENTRY_ALIGN);
    a->entry[a->count++] = (struct entry){.slot = slot, .offset = a->bytes, .bytes = bytes};
    a->bytes += padded;
    a->class_bytes[c] += padded;
}

size_t ps_arena_bytes(const struct ps_arena *a)
{
    return ps_align_up(a->bytes, ARENA_ALIGN);
}

size_t ps_arena_class_bytes(const struct ps_arena *a, enum ps_arena_class c)
{
    assert(c < PS_ARENA_CLASS_COUNT);
    return a->class_bytes[c];
}

void ps_arena_reset(struct ps_arena *a)
{
    assert(!a->base);
    a->count = 0;
    a->bytes = 0;
    a->fault = 0;
    memset(a->class_bytes, 0, sizeof a->class_bytes);
}

int ps_arena_commit(struct ps_arena *a, struct ps_error *err)
{
    assert(!a->base);
    if (a->fault)
        return ps_error_set(err, a->fault, "cannot plan the memory: %s", ps_status_text(a->fault));
    a->map_bytes = ps_arena_bytes(a) + ARENA_ALIGN;
    void *map = mmap(NULL, a->map_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        int ret = -errno;
        return ps_error_full(err, ret, NULL, "host-mem", "lower --max-seq-len or --batch-size",
                             "cannot map %zu MiB of memory: %s", a->map_bytes >> 20,
                             ps_status_text(ret));
    }
    a->map = map;
    a->base = (unsigned char *)ps_align_up((size_t)map, ARENA_ALIGN);
    PS_IGNORE(madvise(a->base, ps_arena_bytes(a), MADV_HUGEPAGE), "huge pages are a bonus");
    PS_IGNORE(madvise(a->base, ps_arena_bytes(a), MADV_DONTFORK), "a hint");
    for (size_t i = 0; i < a->count; i++)
        *a->entry[i].slot = a->entry[i].bytes ? a->base + a->entry[i].offset : NULL;
    return 0;
}

void *ps_arena_base(const struct ps_arena *a)
{
    return a->base;
}
