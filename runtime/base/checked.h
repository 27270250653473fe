/* Checked size arithmetic: every product or sum of numbers that come from files goes through here.
 * Each returns true and stores the result when it fits, false (result untouched) when it does not. */
#ifndef PS_BASE_CHECKED_H
#define PS_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline bool ps_mul_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

static inline bool ps_add_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

/* Round n up to a multiple of align (a power of two). The caller knows that it cannot overflow. */
static inline size_t ps_align_up(size_t n, size_t align)
{
    return (n + align - 1) & ~(align - 1);
}

#ifdef __cplusplus
}
#endif
#endif
