/* Shared by the tests of the emulation: cases that run in a child process each, with a seed.
 * Include after cmocka.h.
 *
 * Built with ThreadSanitizer, a report counts as caught and what is right must give none. */
#ifndef PS_TESTS_CUDA_EMU_CHILD_H
#define PS_TESTS_CUDA_EMU_CHILD_H

#include <cuda_runtime_api.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/dtype.h"
#include "tests/cuda/emu_controls.h"
#include "tests/cuda_emu/emu_host.h"

/* Read by ThreadSanitizer alone: a child ends at its first report, and at once. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "halt_on_error=1:atexit_sleep_ms=0";
}

#define SEED_COUNT 6
#define RIGHT 0
#define STOPPED 3 /* by the emulation */
#define WRONG 11
#define CALL_FAILED 12
#define FAULTED 13 /* an access that the memory management refused */
#define RACED 14   /* ThreadSanitizer's word */
#define TEXT_BYTES (64 << 10)

static cudaStream_t stream, other;

/* In the child: a call that must succeed. */
#define MUST(call)                                                                                 \
    do {                                                                                           \
        if (call)                                                                                  \
            _exit(CALL_FAILED);                                                                    \
    } while (0)

static inline void *device_alloc(size_t bytes)
{
    void *p;
    MUST(cudaMalloc(&p, bytes));
    return p;
}

static inline void *upload(const void *host, size_t bytes)
{
    void *p = device_alloc(bytes);
    MUST(cudaMemcpyAsync(p, host, bytes, cudaMemcpyHostToDevice, stream));
    return p;
}

static inline void download(void *host, const void *device, size_t bytes)
{
    MUST(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream));
    MUST(cudaStreamSynchronize(stream));
}

/* Small whole numbers: sums are exact in any order. */
static inline float value(size_t i)
{
    return (float)((i * 2654435761u >> 7) % 64) - 20.0f;
}

static inline float *values(size_t n)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = value(i);
    MUST(x == NULL);
    return x;
}

static inline int compare(const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(got[i] == want[i]))
            return WRONG;
    return RIGHT;
}

/* ---- children ---- */

struct outcome {
    int right, wrong, stopped, faulted, raced;
};
static char said[TEXT_BYTES]; /* the last child's words */

typedef int (*case_fn)(int arg);

/* Run fn(arg) with a seed: what came of it. */
static inline int run_child(case_fn fn, int arg, uint32_t seed)
{
    int fd[2], status;
    assert_int_equal(pipe(fd), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        dup2(fd[1], STDERR_FILENO);
        ps_emu_seed(seed);
        MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        MUST(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
        _exit(fn(arg));
    }
    close(fd[1]);
    size_t at = 0;
    char rest[4096];
    for (ssize_t n; (n = read(fd[0], rest, sizeof rest)) > 0;) {
        size_t keep = (size_t)n < TEXT_BYTES - 1 - at ? (size_t)n : TEXT_BYTES - 1 - at;
        memcpy(said + at, rest, keep);
        at += keep;
    }
    said[at] = '\0';
    close(fd[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (strstr(said, "data race"))
        return RACED;
    if (strstr(said, "Sanitizer:DEADLYSIGNAL") ||
        (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV))
        return FAULTED;
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static inline struct outcome run_seeds(case_fn fn, int arg)
{
    struct outcome o = {0};
    for (uint32_t seed = 1; seed <= SEED_COUNT; seed++) {
        int code = run_child(fn, arg, seed);
        o.right += code == RIGHT;
        o.wrong += code == WRONG;
        o.stopped += code == STOPPED;
        o.faulted += code == FAULTED;
        o.raced += code == RACED;
    }
    int known = o.right + o.wrong + o.stopped + o.faulted + o.raced;
    if (known != SEED_COUNT)
        print_message("%s\n", said);
    assert_int_equal(known, SEED_COUNT);
    return o;
}

static inline void expect_right(case_fn fn)
{
    struct outcome o = run_seeds(fn, BUG_NONE);
    if (o.right != SEED_COUNT)
        print_message("%s\n", said);
    assert_int_equal(o.right, SEED_COUNT);
}

/* Every seed stops, and says why. */
static inline void expect_stopped(case_fn fn, int arg, const char *words)
{
    struct outcome o = run_seeds(fn, arg);
    if (o.raced == 0 && !strstr(said, words))
        print_message("said: %s\n", said);
    assert_true(o.raced > 0 || strstr(said, words));
    assert_int_equal(o.stopped + o.raced, SEED_COUNT);
}

/* At least `at_least` of the seeds give a wrong result. */
static inline void expect_wrong(case_fn fn, int arg, int at_least)
{
    struct outcome o = run_seeds(fn, arg);
    assert_int_equal(o.wrong + o.raced + o.right, SEED_COUNT);
    assert_in_range(o.wrong + o.raced, at_least, SEED_COUNT);
}

#endif
