/* The emulation of CUDA catches the bugs in kernels and streams that it exists for, and passes what
 * is right. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/cuda/emu_child.h"

enum { BLOCKS = 3 };

static int block_sum(enum control_bug bug)
{
    float *x = values(BLOCKS * CONTROL_THREADS), want[BLOCKS] = {0}, got[BLOCKS];
    for (int i = 0; i < BLOCKS * CONTROL_THREADS; i++)
        want[i / CONTROL_THREADS] += x[i];
    float *dx = upload(x, BLOCKS * CONTROL_THREADS * sizeof *x), *out = device_alloc(sizeof got);
    MUST(control_block_sum(stream, bug, out, dx, BLOCKS));
    download(got, out, sizeof got);
    MUST(cudaFree(out)); /* looks at what is around it */
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

static void removed_syncwarp_is_caught(void **state)
{
    (void)state;
    expect_wrong(f_matmul, BUG_NO_SYNCWARP, SEED_COUNT);
}

/* The product is right; what it costs is counted: rows 64 bytes apart, four to a group of banks. */
static int matmul_conflicts(int bug)
{
    struct ps_emu_counts c;
    if (matmul((enum control_bug)bug) != RIGHT)
        return CALL_FAILED;
    ps_emu_get_counts(&c);
    if (c.ldmatrix_phases != 8)
        return CALL_FAILED;
    return c.bank_conflicts == 0 ? RIGHT : c.bank_conflicts == 8 * 3 ? WRONG : CALL_FAILED;
}

static void bank_conflicts_are_counted(void **state)
{
    (void)state;
    assert_int_equal(run_child(matmul_conflicts, BUG_NONE, 1), RIGHT);
    assert_int_equal(run_child(matmul_conflicts, BUG_BANK_CONFLICT, 1), WRONG);
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

/* 4096 bytes end at a page that nobody may touch. */
static void stores_beside_shared_memory_are_caught(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= SEED_COUNT; seed++)
        assert_int_equal(run_child(f_pipeline, BUG_SHARED_PAST, seed), FAULTED);
    expect_stopped(f_pipeline, BUG_SHARED_BEFORE, "before its start");
}

static void uninitialised_shared_memory_is_caught(void **state)
{
    (void)state;
    expect_wrong(f_block_sum, BUG_UNINITIALISED, SEED_COUNT - 2);
}

static void write_beside_allocation_is_caught(void **state)
{
    (void)state;
    expect_stopped(f_block_sum, BUG_GLOBAL_OVERRUN, "past the end of an allocation");
    expect_stopped(f_block_sum, BUG_GLOBAL_UNDERRUN, "before an allocation");
}

static void removed_event_wait_is_caught(void **state)
{
    (void)state;
    expect_wrong(cross_streams, 1, SEED_COUNT / 2);
    expect_wrong(cross_streams, 2, SEED_COUNT / 2);
    expect_wrong(cross_streams, 3, SEED_COUNT / 2);
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
        cmocka_unit_test(removed_syncwarp_is_caught),
        cmocka_unit_test(swapped_fragment_is_caught),
        cmocka_unit_test(bank_conflicts_are_counted),
        cmocka_unit_test(short_shared_memory_is_caught),
        cmocka_unit_test(stores_beside_shared_memory_are_caught),
        cmocka_unit_test(uninitialised_shared_memory_is_caught),
        cmocka_unit_test(write_beside_allocation_is_caught),
        cmocka_unit_test(removed_event_wait_is_caught),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
