/* Time, memory and repeated measurement: see bench_internal.h. */
#include "session/bench_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define REPS_MAX 64
#define WARM_UP_S 0.25 /* a first call that took longer counts */

double ps__bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Bit patterns that are small finite numbers as f32 and as pairs of bf16: no denormal, no Inf. */
static void fill(uint32_t *p, size_t n)
{
    uint32_t x = 0x9e3779b9u;
    for (size_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        /* each half: sign, 2^-4, seven bits behind the point */
        p[i] = (x & 0x80ff80ffu) | 0x3d803d80u;
    }
}

void *ps__bench_alloc(size_t bytes)
{
    size_t piece = (size_t)2 << 20;
    if (bytes == 0 || bytes > SIZE_MAX - piece)
        return NULL;
    bytes = (bytes + piece - 1) / piece * piece;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    PS_IGNORE(madvise(p, bytes, MADV_HUGEPAGE), "only makes it faster");
    fill(p, bytes / 4);
    return p;
}

void ps__bench_free(void *p, size_t bytes)
{
    size_t piece = (size_t)2 << 20;
    if (p)
        PS_IGNORE(munmap(p, (bytes + piece - 1) / piece * piece), "it was mapped with this size");
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double ps__bench_rate(ps__bench_fn fn, void *arg, double amount, double seconds)
{
    double time[REPS_MAX];
    int n = 0;
    double begin = ps__bench_now(), from = begin;
    for (int call = 0; n < REPS_MAX; call++) {
        fn(arg);
        double now = ps__bench_now();
        double took = now - from;
        from = now;
        if (call == 0 && took < WARM_UP_S && seconds > 0)
            continue;
        time[n++] = took > 1e-9 ? took : 1e-9;
        if (now - begin >= seconds && (n >= 3 || now - begin >= 4 * seconds))
            break;
    }
    qsort(time, (size_t)n, sizeof time[0], compare);
    double median = n % 2 ? time[n / 2] : (time[n / 2 - 1] + time[n / 2]) / 2;
    return amount / median;
}
