/* What every kernel is made of, exactly: barriers, shuffles, rings of cp.async, a product through
 * ldmatrix and mma, an event between two streams (single instructions: test_fragment_layout.c). The
 * kernels are those of emu_controls.cu without a bug; the inputs are small whole numbers, so that
 * sums are exact in any order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/cuda/cuda_check.h"
#include "tests/cuda/emu_controls.h"

enum { BLOCKS = 300, TILES = 7, SIDE = 16, COUNT = 100000 };

static float value(size_t i)
{
    return (float)((i * 2654435761u >> 7) % 64) - 20.0f;
}

static float *values(size_t n)
{
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = value(i);
    return x;
}

/* out, n numbers with guards around them, is want. */
static void expect(cudaStream_t s, struct device_buffer *out, const float *want, size_t n)
{
    const float *got = device_get(s, out);
    for (size_t i = 0; i < n; i++)
        if (!(got[i] == want[i]))
            fail_msg("[%zu]: got %.9g, want %.9g", i, (double)got[i], (double)want[i]);
    device_free(s, out);
}

static void barriers_order_shared_memory(void **state)
{
    cudaStream_t s = *state;
    enum { N = BLOCKS * CONTROL_THREADS };
    float *x = values(N), want[BLOCKS] = {0};
    for (int i = 0; i < N; i++)
        want[i / CONTROL_THREADS] += x[i];
    struct device_buffer in = device_make(s, N * sizeof *x, 0, x);
    struct device_buffer out = device_make(s, sizeof want, 0, NULL);
    assert_int_equal(control_block_sum(s, BUG_NONE, (float *)out.data, (float *)in.data, BLOCKS),
                     0);
    expect(s, &out, want, BLOCKS);
    device_free(s, &in);
    free(x);
}

static void shuffles_sum_a_warp(void **state)
{
    cudaStream_t s = *state;
    float *x = values(BLOCKS * 32), want[BLOCKS] = {0};
    for (int i = 0; i < BLOCKS * 32; i++)
        want[i / 32] += x[i];
    struct device_buffer in = device_make(s, BLOCKS * 32 * sizeof *x, 0, x);
    struct device_buffer out = device_make(s, sizeof want, 0, NULL);
    assert_int_equal(control_warp_sum(s, BUG_NONE, (float *)out.data, (float *)in.data, BLOCKS), 0);
    expect(s, &out, want, BLOCKS);
    device_free(s, &in);
    free(x);
}

static void async_copies_arrive_in_order(void **state)
{
    cudaStream_t s = *state;
    float *x = values(TILES * 512), want[512] = {0};
    for (size_t t = 0; t < TILES; t++)
        for (size_t i = 0; i < 512; i++)
            want[i] += x[t * 512 + 511 - i];
    struct device_buffer in = device_make(s, TILES * 512 * sizeof *x, 0, x);
    struct device_buffer out = device_make(s, sizeof want, 0, NULL);
    assert_int_equal(control_pipeline(s, BUG_NONE, (float *)out.data, (float *)in.data, TILES), 0);
    expect(s, &out, want, 512);
    device_free(s, &in);
    free(x);
}

static void fragments_multiply(void **state)
{
    cudaStream_t s = *state;
    uint16_t a[SIDE * SIDE], b[SIDE * SIDE];
    float want[SIDE * SIDE] = {0};
    for (size_t i = 0; i < SIDE * SIDE; i++) {
        a[i] = ps_f32_to_bf16(value(i));
        b[i] = ps_f32_to_bf16(value(i + 1000));
    }
    for (size_t i = 0; i < SIDE; i++)
        for (size_t j = 0; j < SIDE; j++)
            for (size_t k = 0; k < SIDE; k++)
                want[i * SIDE + j] +=
                    ps_bf16_to_f32(a[i * SIDE + k]) * ps_bf16_to_f32(b[j * SIDE + k]);
    struct device_buffer da = device_make(s, sizeof a, 0, a), db = device_make(s, sizeof b, 0, b);
    struct device_buffer out = device_make(s, sizeof want, 0, NULL);
    assert_int_equal(
        control_matmul(s, BUG_NONE, (float *)out.data, (uint16_t *)da.data, (uint16_t *)db.data),
        0);
    expect(s, &out, want, SIDE * SIDE);
    device_free(s, &da);
    device_free(s, &db);
}

static void an_event_orders_two_streams(void **state)
{
    cudaStream_t s = *state, other;
    cudaEvent_t up, computed;
    float *pinned, *x = values(COUNT);
    CUDA_OK(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    CUDA_OK(cudaEventCreateWithFlags(&up, cudaEventDisableTiming));
    CUDA_OK(cudaEventCreateWithFlags(&computed, cudaEventDisableTiming));
    CUDA_OK(cudaMallocHost((void **)&pinned, 2 * COUNT * sizeof *pinned));
    memcpy(pinned, x, COUNT * sizeof *x);
    struct device_buffer in = device_make(s, COUNT * sizeof *x, 0, NULL);
    struct device_buffer out = device_make(s, COUNT * sizeof *x, 0, NULL);
    CUDA_OK(cudaMemcpyAsync(in.data, pinned, COUNT * sizeof *x, cudaMemcpyHostToDevice, other));
    CUDA_OK(cudaEventRecord(up, other));
    CUDA_OK(cudaStreamWaitEvent(s, up, 0));
    assert_int_equal(control_double(s, BUG_NONE, (float *)out.data, (float *)in.data, COUNT), 0);
    CUDA_OK(cudaEventRecord(computed, s));
    CUDA_OK(cudaStreamWaitEvent(other, computed, 0));
    CUDA_OK(cudaMemcpyAsync(pinned + COUNT, out.data, COUNT * sizeof *x, cudaMemcpyDeviceToHost,
                            other));
    CUDA_OK(cudaStreamSynchronize(other));
    for (size_t i = 0; i < COUNT; i++)
        if (!(pinned[COUNT + i] == 2 * x[i]))
            fail_msg("[%zu]: got %.9g, want %.9g", i, (double)pinned[COUNT + i],
                     (double)(2 * x[i]));
    CUDA_OK(cudaFreeHost(pinned));
    CUDA_OK(cudaEventDestroy(up));
    CUDA_OK(cudaEventDestroy(computed));
    CUDA_OK(cudaStreamDestroy(other));
    device_free(s, &in);
    device_free(s, &out);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(barriers_order_shared_memory), cmocka_unit_test(shuffles_sum_a_warp),
        cmocka_unit_test(async_copies_arrive_in_order), cmocka_unit_test(fragments_multiply),
        cmocka_unit_test(an_event_orders_two_streams),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
