/* One arena a tier: sizes are added up by name first, printed as the plan, then allocated once.
 *
 *   base                                                                       base + bytes
 *   | entry 0 (64-byte aligned) | entry 1 | ... | entry n-1 | pad to 2 MiB     |
 *
 * Nothing is allocated or freed between commit and destroy. */
#ifndef PS_TRAIN_ARENA_H
#define PS_TRAIN_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_arena_class {
    PS_ARENA_WEIGHTS,
    PS_ARENA_ADAPTER,
    PS_ARENA_GRADIENTS,
    PS_ARENA_OPTIMIZER,
    PS_ARENA_ACTIVATIONS,
    PS_ARENA_WORKSPACE,
    PS_ARENA_BATCH,
    PS_ARENA_CLASS_COUNT,
};

/* "weights", "adapter", ... Static storage. */
const char *ps_arena_class_name(enum ps_arena_class c);

struct ps_arena;

int ps_arena_create(struct ps_arena **out) PS_WARN_UNUSED;
void ps_arena_destroy(struct ps_arena *a);

/* Add an entry of `bytes` (0 is legal). *slot, which must stay where it is until commit, then
 * receives the 64-byte aligned address (NULL for 0 bytes). An overflow or an out-of-memory is
 * remembered and reported by commit. Never after commit. */
void ps_arena_add(struct ps_arena *a, enum ps_arena_class c, void **slot, size_t bytes);

/* Bytes planned so far, in all and by class. */
size_t ps_arena_bytes(const struct ps_arena *a);
size_t ps_arena_class_bytes(const struct ps_arena *a, enum ps_arena_class c);

/* Forget every entry (to plan anew); only before commit. */
void ps_arena_reset(struct ps_arena *a);

/* Map the memory (zero-filled, transparent huge pages asked for) and fill the slots. 0, -ENOMEM or
 * -EOVERFLOW. */
int ps_arena_commit(struct ps_arena *a, struct ps_error *err) PS_WARN_UNUSED;

/* First byte; NULL before commit. */
void *ps_arena_base(const struct ps_arena *a);

#ifdef __cplusplus
}
#endif
#endif
