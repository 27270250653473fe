/* Memory that runs out: the functions below take the place of the C library's in this program and
 * fail once, when told to. Include in one file of a test program. Under a sanitizer, which brings
 * its own malloc, FAIL_ALLOC is 0 and tests skip. */
#ifndef PS_TESTS_HELPERS_FAIL_ALLOC_H
#define PS_TESTS_HELPERS_FAIL_ALLOC_H

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#ifndef __has_feature /* clang's way to ask */
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define FAIL_ALLOC 0
#else
#define FAIL_ALLOC 1
#endif

/* Allocations until one fails; 0: none will. Main thread only: what other threads allocate counts
 * too. */
static long fail_alloc_in;
static long fail_alloc_live; /* blocks that were allocated and not yet freed */

#if FAIL_ALLOC
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t count, size_t n);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void __libc_free(void *p);

static void *fail_alloc_pass(void *p)
{
    if (p)
        __atomic_fetch_add(&fail_alloc_live, 1, __ATOMIC_RELAXED);
    return p;
}

static int fail_alloc_now(void)
{
    if (__atomic_load_n(&fail_alloc_in, __ATOMIC_RELAXED) <= 0 ||
        __atomic_sub_fetch(&fail_alloc_in, 1, __ATOMIC_RELAXED) != 0)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n)
{
    return fail_alloc_now() ? NULL : fail_alloc_pass(__libc_malloc(n));
}

void *calloc(size_t n, size_t size)
{
    return fail_alloc_now() ? NULL : fail_alloc_pass(__libc_calloc(n, size));
}

void *realloc(void *p, size_t n)
{
    if (fail_alloc_now())
        return NULL;
    void *q = __libc_realloc(p, n);
    return p ? q : fail_alloc_pass(q);
}

void *aligned_alloc(size_t align, size_t n)
{
    return fail_alloc_now() ? NULL : fail_alloc_pass(__libc_memalign(align, n));
}

void free(void *p)
{
    if (p)
        __atomic_fetch_sub(&fail_alloc_live, 1, __ATOMIC_RELAXED);
    __libc_free(p);
}
#endif

#endif
