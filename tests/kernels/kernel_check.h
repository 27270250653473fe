/* Shared by the kernel tests: guarded buffers, fixed-seed data, element access and comparisons.
 * Include after cmocka.h. */
#ifndef PS_TESTS_KERNEL_CHECK_H
#define PS_TESTS_KERNEL_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/thread_pool.h"

#define GUARD_BYTES 64
#define GUARD_BYTE 0xA5
#define THREADS_MAX 3

/* A buffer with guard bytes on both sides; `data` sits off bytes past a 64-byte boundary. */
struct guarded {
    unsigned char *base;
    unsigned char *data;
    size_t bytes;
};

static inline struct guarded guarded_make(size_t bytes, size_t off)
{
    struct guarded g = {.bytes = bytes};
    size_t total = (bytes + off + 2 * GUARD_BYTES + 63) / 64 * 64;
    g.base = aligned_alloc(64, total);
    assert_non_null(g.base);
    memset(g.base, GUARD_BYTE, total);
    g.data = g.base + GUARD_BYTES + off;
    return g;
}

static inline void guarded_free(struct guarded *g)
{
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        assert_int_equal(g->data[g->bytes + i], GUARD_BYTE);
        assert_int_equal(*(g->data - 1 - i), GUARD_BYTE);
    }
    free(g->base);
    g->base = NULL;
}

static inline double get(const void *p, enum ps_dtype t, size_t i)
{
    float f;
    ps_dtype_convert(&f, PS_DTYPE_F32, (const unsigned char *)p + i * ps_dtype_size(t), t, 1);
    return (double)f;
}

static inline void put(void *p, enum ps_dtype t, size_t i, double v)
{
    float f = (float)v;
    ps_dtype_convert((unsigned char *)p + i * ps_dtype_size(t), t, &f, PS_DTYPE_F32, 1);
}

/* Roughly normal values with standard deviation `scale`, the same in every run. */
static inline void fill(void *p, enum ps_dtype t, size_t n, double scale, uint64_t seed)
{
    uint64_t s = seed * 0x9E3779B97F4A7C15u + 1;
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (int k = 0; k < 4; k++) {
            s = s * 6364136223846793005u + 1442695040888963407u;
            sum += (double)(s >> 40) * 0x1p-24 - 0.5;
        }
        put(p, t, i, scale * 1.7320508 * sum);
    }
}

/* |got - ref| <= atol + rtol |ref|; NaN matches NaN only, Inf itself only. */
static inline void close_to(const char *what, size_t at, double got, double ref, double atol,
                            double rtol)
{
    if (isnan(ref) ? isnan(got) : got == ref || fabs(got - ref) <= atol + rtol * fabs(ref))
        return;
    fail_msg("%s[%zu]: got %.9g, want %.9g (error %.3g, allowed %.3g)", what, at, got, ref,
             fabs(got - ref), atol + rtol * fabs(ref));
}

/* One more rounding to the type, which may fall the other way: its spacing relative to a value. */
static inline double spacing(enum ps_dtype t)
{
    return t == PS_DTYPE_BF16 ? 0x1p-7 : t == PS_DTYPE_F16 ? 0x1p-10 : 0x1p-23;
}

/* Pools of 1, 2 and 3 threads. */
struct pools {
    struct ps_pool *pool[THREADS_MAX];
};

static inline int pools_setup(void **state)
{
    struct pools *p = calloc(1, sizeof *p);
    if (!p)
        return -1;
    for (int i = 0; i < THREADS_MAX; i++)
        if (ps_pool_create(&p->pool[i], i + 1))
            return -1;
    *state = p;
    return 0;
}

static inline int pools_teardown(void **state)
{
    struct pools *p = *state;
    for (int i = 0; i < THREADS_MAX; i++)
        ps_pool_destroy(p->pool[i]);
    free(p);
    return 0;
}

#define FOR_EACH_ISA(isa) for (enum ps_isa isa = PS_ISA_PORTABLE; isa <= ps_isa_detect(); isa++)

#endif
