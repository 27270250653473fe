/* Arena memory on huge pages. */
#include "runtime/base/huge.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

static size_t rounded(size_t bytes)
{
    return (bytes + PS_HUGE_PAGE - 1) & ~(PS_HUGE_PAGE - 1);
}

/* Make every page present. MADV_POPULATE_WRITE reports a lack of memory instead of raising a
 * signal; kernels without it get a write to each page. */
static int populate(char *p, size_t bytes)
{
    int rc;
    do
        rc = madvise(p, bytes, MADV_POPULATE_WRITE);
    while (rc != 0 && (errno == EINTR || errno == EAGAIN));
    if (rc == 0)
        return 0;
    if (errno != EINVAL)
        return -ENOMEM;
    for (size_t at = 0; at < bytes; at += 4096)
        __atomic_store_n(p + at, 0, __ATOMIC_RELAXED); /* atomic: it must not be optimised away */
    return 0;
}

static void *try_hugetlb(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (populate(p, bytes) == 0)
        return p;
    munmap(p, bytes);
    return NULL;
}

/* Anonymous memory aligned to 2 MiB: a larger mapping, cut at both ends. */
static char *map_aligned(size_t bytes)
{
    size_t larger = bytes + PS_HUGE_PAGE;
    char *p = mmap(NULL, larger, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    size_t head = (PS_HUGE_PAGE - (uintptr_t)p % PS_HUGE_PAGE) % PS_HUGE_PAGE;
    if (head > 0)
        munmap(p, head);
    munmap(p + head + bytes, larger - head - bytes);
    return p + head;
}

/* Bytes of this process on transparent huge pages; 0 when the kernel does not say. */
static size_t thp_bytes(void)
{
    FILE *f = fopen("/proc/self/smaps_rollup", "re");
    if (!f)
        return 0;
    char line[256];
    size_t kib = 0;
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "AnonHugePages: %zu kB", &kib) == 1)
            break;
    }
    fclose(f);
    return kib << 10;
}

static const char *thp_kind(size_t got, size_t bytes)
{
    if (got >= bytes / 10 * 9)
        return "transparent huge pages";
    return got > 0 ? "transparent huge pages in part" : "4 KiB pages";
}

int ps_huge_reserve(void **base, size_t bytes, const char **kind, struct ps_error *err)
{
    if (bytes == 0 || bytes > SIZE_MAX - 2 * PS_HUGE_PAGE)
        return ps_error_set(err, -EOVERFLOW, "arena of %zu bytes", bytes);
    size_t size = rounded(bytes);
    const char *what = "hugetlb";
    char *p = try_hugetlb(size);
    if (!p) {
        p = map_aligned(size);
        if (!p)
            return ps_error_set(err, -ENOMEM, "cannot map %zu bytes: %s", bytes, strerror(errno));
        size_t before = thp_bytes();
        bool thp = madvise(p, size, MADV_HUGEPAGE) == 0;
        if (populate(p, size) < 0) {
            munmap(p, size);
            return ps_error_set(err, -ENOMEM, "no memory for %zu bytes", bytes);
        }
        size_t after = thp ? thp_bytes() : 0;
        what = thp_kind(after > before ? after - before : 0, size);
    }
    PS_IGNORE(madvise(p, size, MADV_DONTFORK) != 0, "nothing forks while a transfer is under way");
    *base = p;
    if (kind)
        *kind = what;
    return 0;
}

void ps_huge_release(void *base, size_t bytes)
{
    if (base)
        munmap(base, rounded(bytes));
}
