/* The emulation of CUDA catches the bugs that it exists for, and passes what is right.
 *
 * Every case runs in a child process with a seed of its own. Built with ThreadSanitizer, a report
 * counts as caught and what is right must give none. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <cuda_runtime_api.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/dtype.h"
#include "runtime/device/cuda_blas.h"
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

static void *device_alloc(size_t bytes)
{
    void *p;
    MUST(cudaMalloc(&p, bytes));
    return p;
}

static void *upload(const void *host, size_t bytes)
{
    void *p = device_alloc(bytes);
    MUST(cudaMemcpyAsync(p, host, bytes, cudaMemcpyHostToDevice, stream));
    return p;
}

static void download(void *host, const void *device, size_t bytes)
{
    MUST(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream));
    MUST(cudaStreamSynchronize(stream));
}

/* Small whole numbers: sums are exact in any order. */
static float value(size_t i)
{
    return (float)((i * 2654435761u >> 7) % 64) - 20.0f;
}

static float *values(size_t n)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = value(i);
    MUST(x == NULL);
    return x;
}

static int compare(const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(got[i] == want[i]))
            return WRONG;
    return RIGHT;
}

enum { BLOCKS = 3 };

static int block_sum(enum control_bug bug)
{
    float *x = values(BLOCKS * CONTROL_THREADS), want[BLOCKS] = {0}, got[BLOCKS];
    for (int i = 0; i < BLOCKS * CONTROL_THREADS; i++)
        want[i / CONTROL_THREADS] += x[i];
    float *dx = upload(x, BLOCKS * CONTROL_THREADS * sizeof *x), *out = device_alloc(sizeof got);
    MUST(control_block_sum(stream, bug, out, dx, BLOCKS));
    download(got, out, sizeof got);
    MUST(cudaFree(out));
    return compare(got, want, BLOCKS);
}

static int warp_sum(enum control_bug bug)
{
    float *x = values(BLOCKS * 32), want[BLOCKS] = {0}, got[BLOCKS];
    for (int i = 0; i < BLOCKS * 32; i++)
        want[i / 32] += x[i];
    float *dx = upload(x, BLOCKS * 32 * sizeof *x), *out = device_alloc(sizeof got);
    MUST(control_warp_sum(stream, bug, out, dx, BLOCKS));
    download(got, out, sizeof got);
    return compare(got, want, BLOCKS);
}

static int pipeline(enum control_bug bug)
{
    enum { TILES = 5 };
    float *x = values(TILES * 512), want[512] = {0}, got[512];
    for (size_t t = 0; t < TILES; t++)
        for (size_t i = 0; i < 512; i++)
            want[i] += x[t * 512 + 511 - i];
    float *dx = upload(x, TILES * 512 * sizeof *x), *out = device_alloc(sizeof got);
    MUST(control_pipeline(stream, bug, out, dx, TILES));
    download(got, out, sizeof got);
    return compare(got, want, 512);
}

static int matmul(enum control_bug bug)
{
    uint16_t a[256], b[256];
    float want[256] = {0}, got[256];
    for (size_t i = 0; i < 256; i++) {
        a[i] = ps_f32_to_bf16(value(i));
        b[i] = ps_f32_to_bf16(value(i + 1000));
    }
    for (size_t i = 0; i < 16; i++)
        for (size_t j = 0; j < 16; j++)
            for (size_t k = 0; k < 16; k++)
                want[i * 16 + j] += ps_bf16_to_f32(a[i * 16 + k]) * ps_bf16_to_f32(b[j * 16 + k]);
    uint16_t *da = upload(a, sizeof a), *db = upload(b, sizeof b);
    float *d = device_alloc(sizeof got);
    MUST(control_matmul(stream, bug, d, da, db));
    download(got, d, sizeof got);
    return compare(got, want, 256);
}

/* Copy on one stream, double on another, copy back on the first, with an event at each crossing. */
static int cross_streams(int without)
{
    enum { N = 1000 };
    float *pinned, *x = device_alloc(N * sizeof *x), *y = device_alloc(N * sizeof *y), want[N];
    cudaEvent_t up, computed;
    MUST(cudaMallocHost((void **)&pinned, 2 * N * sizeof *pinned));
    MUST(cudaEventCreateWithFlags(&up, cudaEventDisableTiming));
    MUST(cudaEventCreateWithFlags(&computed, cudaEventDisableTiming));
    for (size_t i = 0; i < N; i++) {
        pinned[i] = value(i);
        want[i] = 2.0f * value(i);
    }
    MUST(cudaMemcpyAsync(x, pinned, N * sizeof *x, cudaMemcpyHostToDevice, other));
    MUST(cudaEventRecord(up, other));
    if (without != 1)
        MUST(cudaStreamWaitEvent(stream, up, 0));
    MUST(control_double(stream, BUG_NONE, y, x, N));
    MUST(cudaEventRecord(computed, stream));
    if (without != 2)
        MUST(cudaStreamWaitEvent(other, computed, 0));
    MUST(cudaMemcpyAsync(pinned + N, y, N * sizeof *y, cudaMemcpyDeviceToHost, other));
    if (without == 1)
        MUST(cudaStreamSynchronize(stream));
    if (without != 3)
        MUST(cudaStreamSynchronize(other));
    return compare(pinned + N, want, N);
}

/* ---- children ---- */

struct outcome {
    int right, wrong, stopped, faulted, raced;
};
static char said[TEXT_BYTES]; /* the last child's words */

typedef int (*case_fn)(int arg);

/* Run fn(arg) with a seed: what came of it. */
static int run_child(case_fn fn, int arg, uint32_t seed)
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

static struct outcome run_seeds(case_fn fn, int arg)
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

static int f_block_sum(int bug)
{
    return block_sum((enum control_bug)bug);
}
static int f_warp_sum(int bug)
{
    return warp_sum((enum control_bug)bug);
}
static int f_pipeline(int bug)
{
    return pipeline((enum control_bug)bug);
}
static int f_matmul(int bug)
{
    return matmul((enum control_bug)bug);
}

static void expect_right(case_fn fn)
{
    struct outcome o = run_seeds(fn, BUG_NONE);
    if (o.right != SEED_COUNT)
        print_message("%s\n", said);
    assert_int_equal(o.right, SEED_COUNT);
}

/* Every seed stops, and says why. */
static void expect_stopped(case_fn fn, int arg, const char *words)
{
    struct outcome o = run_seeds(fn, arg);
    if (o.raced == 0 && !strstr(said, words))
        print_message("said: %s\n", said);
    assert_true(o.raced > 0 || strstr(said, words));
    assert_int_equal(o.stopped + o.raced, SEED_COUNT);
}

/* At least `at_least` of the seeds give a wrong result. */
static void expect_wrong(case_fn fn, int arg, int at_least)
{
    struct outcome o = run_seeds(fn, arg);
    assert_int_equal(o.wrong + o.raced + o.right, SEED_COUNT);
    assert_in_range(o.wrong + o.raced, at_least, SEED_COUNT);
}

static void kernels_without_bugs_pass(void **state)
{
    (void)state;
    expect_right(f_block_sum);
    expect_right(f_warp_sum);
    expect_right(f_pipeline);
    expect_right(f_matmul);
    expect_right(cross_streams);
}

static void removed_barrier_is_caught(void **state)
{
    (void)state;
    expect_wrong(f_block_sum, BUG_NO_BARRIER, SEED_COUNT);
    expect_wrong(f_pipeline, BUG_NO_BARRIER, SEED_COUNT);
}

static void barrier_in_divergent_branch_is_caught(void **state)
{
    (void)state;
    expect_stopped(f_block_sum, BUG_DIVERGENT, "barrier");
    expect_stopped(f_block_sum, BUG_TWO_BARRIERS, "divergent barrier");
}

static void shuffle_in_partial_warp_is_caught(void **state)
{
    (void)state;
    expect_stopped(f_warp_sum, BUG_PARTIAL_SHUFFLE, "a warp operation");
}

static void removed_copy_wait_is_caught(void **state)
{
    (void)state;
    expect_wrong(f_pipeline, BUG_NO_COPY_WAIT, SEED_COUNT);
}

static void wait_for_one_group_fewer_is_caught(void **state)
{
    (void)state;
    expect_wrong(f_pipeline, BUG_ONE_GROUP_FEWER, SEED_COUNT);
}

static void copy_left_under_way_is_caught(void **state)
{
    (void)state;
    expect_stopped(f_pipeline, BUG_COPY_LEFT, "never waited for");
}

static void swapped_fragment_is_caught(void **state)
{
    (void)state;
    expect_wrong(f_matmul, BUG_SWAPPED_FRAGMENT, SEED_COUNT);
}

static void short_shared_memory_is_caught(void **state)
{
    (void)state;
    expect_stopped(f_pipeline, BUG_SHARED_SHORT, "outside shared memory");
}

static void uninitialised_shared_memory_is_caught(void **state)
{
    (void)state;
    expect_wrong(f_block_sum, BUG_UNINITIALISED, SEED_COUNT - 2);
}

static void write_past_allocation_is_caught(void **state)
{
    (void)state;
    expect_stopped(f_block_sum, BUG_GLOBAL_OVERRUN, "past the end of an allocation");
}

static void removed_event_wait_is_caught(void **state)
{
    (void)state;
    expect_wrong(cross_streams, 1, SEED_COUNT / 2);
    expect_wrong(cross_streams, 2, SEED_COUNT / 2);
    expect_wrong(cross_streams, 3, SEED_COUNT / 2);
}

/* ---- the runtime ---- */

static int read_device_memory(int arg)
{
    (void)arg;
    float *x = upload(&(float){1.0f}, sizeof(float));
    MUST(cudaStreamSynchronize(stream));
    return *(volatile float *)x == 1.0f ? RIGHT : WRONG;
}

static int use_after_free(int arg)
{
    (void)arg;
    float *x = device_alloc(64), *y = device_alloc(64);
    MUST(cudaFree(x));
    MUST(control_block_sum(stream, BUG_NONE, y, x, 1));
    return WRONG;
}

static int read_past_end(int arg)
{
    (void)arg;
    float *x = device_alloc(4096), *y = device_alloc(8192);
    MUST(control_double(stream, BUG_NONE, y, x, 2048));
    MUST(cudaStreamSynchronize(stream));
    return WRONG;
}

static int default_stream(int arg)
{
    (void)arg;
    float *x = device_alloc(64);
    MUST(control_double(NULL, BUG_NONE, x, x, 16));
    return WRONG;
}

static int host_pointer(int arg)
{
    (void)arg;
    float x[CONTROL_THREADS], *y = device_alloc(64);
    MUST(control_block_sum(stream, BUG_NONE, y, x, 1));
    return WRONG;
}

static void calls_cuda(void *arg)
{
    PS_IGNORE(cudaStreamQuery(arg), "the call itself is the bug");
}

static int host_function(int arg)
{
    (void)arg;
    MUST(cudaLaunchHostFunc(stream, calls_cuda, other));
    MUST(cudaStreamSynchronize(stream));
    return WRONG;
}

static void misuse_of_addresses_and_streams_is_caught(void **state)
{
    (void)state;
    assert_int_equal(run_child(read_device_memory, 0, 1), FAULTED);
    assert_int_equal(run_child(read_past_end, 0, 1), FAULTED);
    expect_stopped(use_after_free, 0, "neither device nor pinned");
    expect_stopped(host_pointer, 0, "neither device nor pinned");
    expect_stopped(default_stream, 0, "default stream");
    expect_stopped(host_function, 0, "host function");
}

static int limits(int arg)
{
    (void)arg;
    void *p;
    static char host[3 * 4096] __attribute__((aligned(4096)));
    float *x = device_alloc(1 << 20);
    if (cudaMalloc(&p, (size_t)1 << 50) != cudaErrorMemoryAllocation ||
        cudaGetLastError() != cudaErrorMemoryAllocation || cudaGetLastError() != cudaSuccess)
        return WRONG;
    if (control_double(stream, BUG_NONE, x, x, 0) != PS_ECUDA) /* an empty grid */
        return WRONG;
    MUST(cudaHostRegister(host, 4096, cudaHostRegisterDefault));
    if (cudaHostRegister(host + 4000, 4096, cudaHostRegisterDefault) !=
            cudaErrorHostMemoryAlreadyRegistered ||
        cudaHostUnregister(host + 8) != cudaErrorHostMemoryNotRegistered)
        return WRONG;
    MUST(cudaHostRegister(host + 4096, 4096, cudaHostRegisterDefault));
    MUST(cudaHostUnregister(host));
    if (cudaMemcpyAsync(x, x, 4, cudaMemcpyHostToDevice, stream) !=
            cudaErrorInvalidMemcpyDirection ||
        cudaMemcpyAsync(x, host + 4096, (1 << 20) + 4, cudaMemcpyHostToDevice, stream) !=
            cudaErrorInvalidValue)
        return WRONG;
    ps_emu_fail_call(2);
    MUST(cudaStreamQuery(stream));
    if (control_double(stream, BUG_NONE, x, x, 16) != PS_ECUDA || ps_emu_fail_pending())
        return WRONG;
    return cudaStreamSynchronize(stream) ? WRONG : RIGHT;
}

static int counting(int arg)
{
    (void)arg;
    struct ps_emu_counts c;
    float *pinned, host[4] = {1, 2, 3, 4}, *x = device_alloc(sizeof host);
    MUST(cudaMallocHost((void **)&pinned, sizeof host));
    MUST(cudaMemcpyAsync(x, pinned, sizeof host, cudaMemcpyHostToDevice, stream));
    ps_emu_get_counts(&c);
    if (c.pageable_copies != 0 || c.copies != 1 || c.allocations != 2 || c.device_bytes != 16)
        return WRONG;
    MUST(cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, stream));
    memset(host, 0, sizeof host); /* a copy from pageable memory has read it by now */
    ps_emu_get_counts(&c);
    download(pinned, x, sizeof host);
    return c.pageable_copies == 1 && pinned[3] == 4.0f ? RIGHT : WRONG;
}

/* A wait takes the state of the event when it is called, a record replaces it. */
static int events(int arg)
{
    (void)arg;
    cudaEvent_t e;
    float *x = device_alloc(64);
    MUST(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    MUST(cudaStreamWaitEvent(other, e, 0)); /* never recorded: no wait */
    MUST(cudaEventQuery(e));
    MUST(cudaMemsetAsync(x, 0, 64, stream));
    MUST(cudaEventRecord(e, stream));
    MUST(cudaStreamWaitEvent(other, e, 0));
    MUST(control_double(stream, BUG_NONE, x, x, 16));
    MUST(cudaEventRecord(e, stream));
    while (cudaEventQuery(e) == cudaErrorNotReady)
        usleep(10);
    MUST(cudaStreamQuery(stream));
    MUST(cudaStreamSynchronize(other));
    MUST(cudaStreamDestroy(other));
    MUST(cudaEventSynchronize(e));
    MUST(cudaEventDestroy(e));
    return RIGHT;
}

static void runtime_keeps_its_limits_and_counts(void **state)
{
    (void)state;
    assert_int_equal(run_child(limits, 0, 1), RIGHT);
    assert_int_equal(run_child(counting, 0, 1), RIGHT);
    assert_int_equal(run_child(events, 0, 1), RIGHT);
}

/* ---- products ---- */

static int product(int arg)
{
    enum { M = 5, N = 7, K = 9, K2 = 3, LD = 11 };
    float a[M * LD], b[N * LD], a2[M * K2], b2[K2 * N], residual[M * N], bias[N], c[M * N];
    float *fields[] = {a, b, a2, b2, residual, bias, c};
    const size_t sizes[] = {M * LD, N * LD, M * K2, K2 * N, M * N, N, M * N};
    float *device[7];
    for (size_t f = 0; f < 7; f++) {
        for (size_t i = 0; i < sizes[f]; i++)
            fields[f][i] = value(i * 3 + f * 1000);
        device[f] = upload(fields[f], sizes[f] * sizeof(float));
    }
    struct ps_gemm_args host = {
        .m = M,
        .n = N,
        .k = K,
        .k2 = K2,
        .alpha = 0.5f,
        .math = PS_GEMM_BF16,
        .a = {.data = a, .ld = LD},
        .b = {.data = b, .ld = LD, .trans = 1},
        .a2 = {.data = a2, .ld = K2},
        .b2 = {.data = b2, .ld = N},
        .bias = bias,
        .residual = residual,
        .residual_ld = N,
        .c = c,
        .c_ld = N,
        .accumulate = arg,
    };
    struct ps_gemm_args args = host;
    args.a.data = device[0];
    args.b.data = device[1];
    args.a2.data = device[2];
    args.b2.data = device[3];
    args.residual = device[4];
    args.bias = device[5];
    args.c = device[6];
    struct ps_cuda_blas *blas;
    MUST(ps_cuda_blas_open(&blas, device_alloc(ps_cuda_blas_workspace_bytes(M * N)),
                           ps_cuda_blas_workspace_bytes(M * N), NULL));
    MUST(ps_cuda_gemm(blas, stream, &args));
    float got[M * N];
    download(got, device[6], sizeof got);
    ps_gemm_reference(&host);
    ps_cuda_blas_close(blas);
    return compare(got, c, M * N);
}

static void products_equal_the_reference(void **state)
{
    (void)state;
    assert_int_equal(run_child(product, 0, 1), RIGHT);
    assert_int_equal(run_child(product, 1, 2), RIGHT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_without_bugs_pass),
        cmocka_unit_test(removed_barrier_is_caught),
        cmocka_unit_test(barrier_in_divergent_branch_is_caught),
        cmocka_unit_test(shuffle_in_partial_warp_is_caught),
        cmocka_unit_test(removed_copy_wait_is_caught),
        cmocka_unit_test(wait_for_one_group_fewer_is_caught),
        cmocka_unit_test(copy_left_under_way_is_caught),
        cmocka_unit_test(swapped_fragment_is_caught),
        cmocka_unit_test(short_shared_memory_is_caught),
        cmocka_unit_test(uninitialised_shared_memory_is_caught),
        cmocka_unit_test(write_past_allocation_is_caught),
        cmocka_unit_test(removed_event_wait_is_caught),
        cmocka_unit_test(misuse_of_addresses_and_streams_is_caught),
        cmocka_unit_test(runtime_keeps_its_limits_and_counts),
        cmocka_unit_test(products_equal_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
