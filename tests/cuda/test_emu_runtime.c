/* The runtime calls of the emulation: misuse is caught, limits and counts are kept, products are
 * those of the CPU. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "runtime/device/cuda_blas.h"
#include "tests/cuda/emu_child.h"

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
        cmocka_unit_test(misuse_of_addresses_and_streams_is_caught),
        cmocka_unit_test(runtime_keeps_its_limits_and_counts),
        cmocka_unit_test(products_equal_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
