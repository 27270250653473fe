/* Memory that runs out in a whole program: loaded before the C library (LD_PRELOAD), its functions
 * take the place of the allocator's and fail once.
 *
 *   FAIL_ALLOC=N         the N-th allocation of the process, over all threads, fails; 0: none
 *   FAIL_ALLOC_FILE=PATH receives at the end of the process how many there were; nothing is written
 *                        by a process that does not end by itself
 *
 * malloc, calloc, realloc, memalign, aligned_alloc, posix_memalign and anonymous mmap count. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t count, size_t n);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void *memalign(size_t align, size_t n);

static long fail_at = -1; /* atomic; -1: not read yet */
static long count;        /* atomic */

/* getenv does not allocate; the environment is there before the first allocation of the program. */
static int now(void)
{
    long at = __atomic_load_n(&fail_at, __ATOMIC_RELAXED);
    if (at < 0) {
        const char *text = getenv("FAIL_ALLOC");
        at = text ? strtol(text, NULL, 10) : 0;
        __atomic_store_n(&fail_at, at, __ATOMIC_RELAXED);
    }
    if (__atomic_add_fetch(&count, 1, __ATOMIC_RELAXED) != at)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n)
{
    return now() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return now() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return now() ? NULL : __libc_realloc(p, n);
}

void *memalign(size_t align, size_t n)
{
    return now() ? NULL : __libc_memalign(align, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    return now() ? NULL : __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    void *p = now() ? NULL : __libc_memalign(align, n);
    if (!p)
        return ENOMEM;
    *out = p;
    return 0;
}

void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
    if ((flags & MAP_ANONYMOUS) && now())
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, len, prot, flags, fd, offset); /* NOLINT */
}

static void __attribute__((destructor)) tell(void)
{
    const char *path = getenv("FAIL_ALLOC_FILE");
    if (!path)
        return;
    char text[32];
    int n = snprintf(text, sizeof text, "%ld\n", __atomic_load_n(&count, __ATOMIC_RELAXED));
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, text, (size_t)n) != n)
        abort();
    close(fd);
}
