/* The CUDA plug-in beside its kernels: the probe, the device, pinned memory, what happens after a
 * failure. Tests that make the emulation fail are skipped on a real device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>

#include "tests/cuda/plugin_check.h"

#define MIB ((size_t)1 << 20)
#define PAGE ((size_t)4096)

static bool emulated(const struct world *w)
{
    if (!w->emu.fail_call)
        print_message("skip: needs the emulation\n");
    return w->emu.fail_call != NULL;
}

static struct ps_emu_counts counts(const struct world *w)
{
    struct ps_emu_counts c;
    w->emu.get_counts(&c);
    return c;
}

static void probe_describes_the_card(void **state)
{
    struct world *w = *state;
    struct ps_cuda_info info;
    struct ps_error err = {0};
    assert_int_equal(w->plugin->version, PS_CUDA_PLUGIN_VERSION);
    assert_int_equal(w->plugin->probe(&info, &err), 0);
    assert_true(strlen(info.name) > 0);
    assert_true(info.major >= 8);
    assert_true(info.copy_engines >= 1);
    assert_true(info.shared_bytes_max > 48 << 10);
    assert_true(info.reserved_bytes > 0);
    assert_true(info.reserved_bytes < info.total_bytes);
    assert_true(info.free_bytes <= info.total_bytes - ARENA_BYTES);
}

static void probe_says_what_fails(void **state)
{
    struct world *w = *state;
    struct ps_cuda_info info;
    if (!emulated(w))
        skip();
    for (uint64_t n = 1;; n++) {
        struct ps_error err = {0};
        w->emu.fail_call(n);
        int ret = w->plugin->probe(&info, &err);
        if (w->emu.fail_pending()) {
            assert_true(n > 3);
            break;
        }
        assert_int_equal(ret, PS_ECUDA);
        assert_non_null(strstr(err.message, "error 999"));
    }
    w->emu.fail_call(0);
}

static void an_arena_is_aligned_and_poisoned(void **state)
{
    struct world *w = *state;
    const struct ps_device_ops *ops = w->plugin->device;
    struct ps_device *d = NULL;
    struct ps_error err = {0};
    assert_string_equal(ops->name, "cuda");
    assert_true(ops->discrete);
    assert_int_equal(ops->open(&d, 4 * MIB, &err), 0);
    assert_ptr_equal(d->ops, ops);
    unsigned char *base = ops->base(d), *got = malloc(4 * MIB);
    assert_int_equal((uintptr_t)base % (2 * MIB), 0);
    assert_ptr_equal(ops->map(d, base + 12345), base + 12345);
    assert_null(ops->map(d, NULL));
    memset(got, 0, 4 * MIB);
    assert_int_equal(ops->copy_d2h(d, got, base, 4 * MIB, &err), 0);
    for (size_t i = 0; i < 4 * MIB; i++)
        if (got[i] != 0xFF)
            fail_msg("byte %zu is %u", i, got[i]);
    memset(got, 1, 3);
    assert_int_equal(ops->copy_h2d(d, base + MIB, got, 3, &err), 0);
    ops->poison(d, base + MIB + 1, 1);
    assert_int_equal(ops->copy_d2h(d, got, base + MIB, 4, &err), 0);
    assert_memory_equal(got, ((unsigned char[]){1, 0xFF, 1, 0xFF}), 4);
    free(got);
    ops->close(d);
    assert_int_equal(ops->open(&d, 0, &err), 0);
    ops->close(d);
    ops->close(NULL);
}

static void an_arena_over_the_cards_memory_is_refused(void **state)
{
    struct world *w = *state;
    const struct ps_device_ops *ops = w->plugin->device;
    struct ps_cuda_info info;
    struct ps_device *d = NULL;
    struct ps_error err = {0};
    assert_int_equal(w->plugin->probe(&info, &err), 0);
    size_t over = (size_t)info.total_bytes / (2 * MIB) * (2 * MIB);
    assert_int_equal(ops->open(&d, over, &err), -ENOMEM);
    assert_null(d);
    assert_string_equal(err.field, "gpu-mem");
    assert_non_null(strstr(err.advice, "lower --gpu-mem"));
    assert_non_null(strstr(err.message, "MiB"));
    /* the refusal is forgotten: nothing later trips over it */
    two_make(w, PS_DTYPE_F32, 10, 1, 1);
    done(w);
    assert_int_equal(ops->open(&d, 2 * MIB, &err), 0);
    ops->close(d);
}

static void an_arena_that_fails_half_way_leaves_nothing(void **state)
{
    struct world *w = *state;
    const struct ps_device_ops *ops = w->plugin->device;
    if (!emulated(w))
        skip();
    uint64_t before = counts(w).device_bytes;
    for (uint64_t n = 1;; n++) {
        struct ps_device *d = NULL;
        struct ps_error err = {0};
        w->emu.fail_call(n);
        int ret = ops->open(&d, 2 * MIB, &err);
        if (w->emu.fail_pending()) {
            w->emu.fail_call(0);
            ops->close(d);
            assert_true(n > 4);
            break;
        }
        if (ret == 0) { /* the call that only tells how much is free */
            ops->close(d);
            continue;
        }
        assert_int_equal(ret, PS_ECUDA);
        assert_null(d);
    }
    assert_int_equal(counts(w).device_bytes, before);
}

static void copies_go_to_the_byte(void **state)
{
    struct world *w = *state;
    enum { N = 10007 };
    unsigned char *in = malloc(N), *out = malloc(N + 4);
    for (int i = 0; i < N; i++)
        in[i] = (unsigned char)(i * 31 + i / 256);
    unsigned char *at = device_take(w, N + 8), edge[2] = {0x11, 0x22};
    size_t offset[] = {1, 3};
    for (int k = 0; k < 2; k++) {
        upload(w, at + offset[k] - 1, edge, 1);
        upload(w, at + offset[k] + N, edge + 1, 1);
        upload(w, at + offset[k], in, N);
        upload(w, at, NULL, 0);
        memset(out, 0x5A, N + 4);
        download(w, out + 1, at + offset[k] - 1, N + 2);
        assert_int_equal(out[0], 0x5A);
        assert_int_equal(out[1], 0x11);
        assert_memory_equal(out + 2, in, N);
        assert_int_equal(out[N + 2], 0x22);
        assert_int_equal(out[N + 3], 0x5A);
    }
    free(in);
    free(out);
}

struct direction {
    struct world *w;
    unsigned char *device, *host;
    size_t bytes;
    bool up;
};

static void *copy_often(void *arg)
{
    struct direction *d = arg;
    const struct ps_device_ops *ops = d->w->device->ops;
    struct ps_error err = {0};
    for (int i = 0; i < 20; i++) {
        if (d->up) {
            memset(d->host, i, d->bytes);
            if (ops->copy_h2d(d->w->device, d->device, d->host, d->bytes, &err))
                return "h2d";
        } else {
            memset(d->host, 0, d->bytes);
            if (ops->copy_d2h(d->w->device, d->host, d->device, d->bytes, &err))
                return "d2h";
            for (size_t k = 0; k < d->bytes; k++)
                if (d->host[k] != 7)
                    return "a copy that is not complete on return";
        }
    }
    return NULL;
}

/* Four threads, two a direction, from pinned memory: nothing waits for the device as a whole. */
static void lanes_copy_at_the_same_time_and_wait_for_events_alone(void **state)
{
    struct world *w = *state;
    enum { BYTES = 3 * 4096 };
    struct ps_error err = {0};
    unsigned char *host = aligned_alloc(PAGE, 4 * BYTES);
    assert_int_equal(w->plugin->pin(host, 4 * BYTES, &err), 0);
    struct ps_emu_counts before = {0};
    if (w->emu.get_counts)
        before = counts(w);
    struct direction d[4];
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) {
        d[i] = (struct direction){w, device_take(w, BYTES), host + i * BYTES, BYTES, i < 2};
        memset(d[i].host, 7, BYTES);
        upload(w, d[i].device, d[i].host, BYTES);
    }
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, copy_often, &d[i]), 0);
    for (int i = 0; i < 4; i++) {
        void *what = NULL;
        pthread_join(thread[i], &what);
        if (what)
            fail_msg("%s", (const char *)what);
    }
    if (w->emu.get_counts) {
        assert_int_equal(counts(w).copies - before.copies, 84);
        assert_int_equal(counts(w).pageable_copies, before.pageable_copies);
        assert_int_equal(counts(w).device_syncs, before.device_syncs);
        assert_int_equal(counts(w).allocations, before.allocations);
    }
    w->plugin->unpin(host);
    free(host);
}

static void memory_is_pinned_once_and_released(void **state)
{
    struct world *w = *state;
    struct ps_error err = {0};
    unsigned char *host = aligned_alloc(PAGE, 4 * PAGE);
    assert_int_equal(w->plugin->pin(host, 4 * PAGE, &err), 0);
    assert_int_equal(w->plugin->pin(host, 4 * PAGE, &err), PS_ECUDA);
    assert_true(strlen(err.message) > 0);
    done(w); /* the refusal is forgotten */
    w->plugin->unpin(host);
    w->plugin->unpin(host);
    w->plugin->unpin(NULL);
    assert_int_equal(w->plugin->pin(host, 4 * PAGE, &err), 0);
    w->plugin->unpin(host);
    assert_int_equal(w->plugin->pin(NULL, 0, &err), 0);
    if (w->emu.get_counts) /* what is left is the staging of fetch */
        assert_int_equal(counts(w).pinned_bytes, 64 << 10);
    free(host);
}

static void the_first_fault_stays_and_nothing_is_queued_after_it(void **state)
{
    struct world *w = *state;
    struct ps_compute *cx = &w->cx[GPU];
    float host = 3;
    if (!emulated(w))
        skip();
    struct two x = two_make(w, PS_DTYPE_F32, 100, 1, 2);
    done(w);
    w->emu.fail_call(1);
    cx->k->round_bf16(cx, x.at[GPU], 100);
    assert_int_equal(w->fault, PS_ECUDA);
    assert_non_null(strstr(w->plugin->fault_text(cx), "round_bf16"));
    struct ps_emu_counts before = counts(w);
    cx->k->zero(cx, x.at[GPU], 400);
    cx->k->round_bf16(cx, x.at[GPU], 100);
    struct ps_gemm_args nothing = {0};
    cx->k->gemm(cx, &nothing);
    assert_int_equal(cx->k->fetch(cx, &host, x.at[GPU], sizeof host), PS_ECUDA);
    assert_true(host == 3);
    assert_int_equal(cx->k->finish(cx), PS_ECUDA);
    assert_int_equal(counts(w).launches, before.launches);
    assert_int_equal(counts(w).copies, before.copies);
    assert_int_equal(counts(w).memsets, before.memsets);
    w->fault = 0;
    two_check(w, &x, "untouched", 0, 0);
}

static void a_product_that_is_refused_is_named(void **state)
{
    struct world *w = *state;
    struct ps_compute *cx = &w->cx[GPU];
    struct two x = two_make(w, PS_DTYPE_F32, 100, 1, 3);
    struct ps_gemm_mat m = {.data = x.at[GPU], .ld = 1, .dtype = PS_DTYPE_F32};
    struct ps_gemm_args g = {
        .m = 0, .n = 7, .k = 9, .a = m, .b = m, .c = x.at[GPU], .c_ld = 7, .c_dtype = PS_DTYPE_F32};
    cx->k->gemm(cx, &g);
    assert_int_equal(w->fault, -EINVAL);
    assert_non_null(strstr(w->plugin->fault_text(cx), "0 x 7 x 9"));
    assert_int_equal(cx->k->finish(cx), -EINVAL);
}

static void failures_while_waiting_and_fetching_are_faults(void **state)
{
    struct world *w = *state;
    struct ps_compute *cx = &w->cx[GPU];
    float host[2];
    if (!emulated(w))
        skip();
    struct two x = two_make(w, PS_DTYPE_F32, 2, 1, 4);
    for (uint64_t n = 1; n <= 3; n++) {
        w->fault = 0;
        w->emu.fail_call(n);
        assert_int_equal(cx->k->fetch(cx, host, x.at[GPU], sizeof host), PS_ECUDA);
        assert_int_equal(w->emu.fail_pending(), 0);
    }
    for (uint64_t n = 1; n <= 2; n++) {
        w->fault = 0;
        w->emu.fail_call(n);
        assert_int_equal(cx->k->finish(cx), PS_ECUDA);
        assert_int_equal(w->emu.fail_pending(), 0);
    }
}

static void compute_opens_without_a_fault_of_the_caller_and_fails_cleanly(void **state)
{
    struct world *w = *state;
    struct ps_error err = {0};
    struct ps_compute cx = {.k = w->plugin->kernels};
    assert_int_equal(w->plugin->compute_open(&cx, &err), 0);
    assert_non_null(cx.stream);
    assert_non_null(cx.fault);
    assert_int_equal(cx.k->finish(&cx), 0);
    assert_string_equal(w->plugin->fault_text(&cx), "");
    w->plugin->compute_close(&cx);
    assert_null(cx.stream);
    assert_null(cx.fault);
    if (!emulated(w))
        skip();
    uint64_t pinned = counts(w).pinned_bytes;
    for (uint64_t n = 1; n <= 3; n++) {
        w->emu.fail_call(n);
        assert_int_equal(w->plugin->compute_open(&cx, &err), PS_ECUDA);
        assert_int_equal(w->emu.fail_pending(), 0);
        assert_null(cx.stream);
        assert_null(cx.blas);
    }
    assert_int_equal(counts(w).pinned_bytes, pinned);
}

/* Steady state: compute, wait and fetch allocate nothing and never wait for the whole device. */
static void a_step_allocates_nothing(void **state)
{
    struct world *w = *state;
    struct ps_compute *cx = &w->cx[GPU];
    if (!emulated(w))
        skip();
    struct two x = two_make(w, PS_DTYPE_F32, 1000, 1, 5), y = two_make(w, PS_DTYPE_F32, 1000, 0, 0);
    compute_in(w, PS_DTYPE_F32);
    struct ps_gemm_mat m = {.data = x.at[GPU], .ld = 10, .dtype = PS_DTYPE_F32};
    struct ps_gemm_args g = {.m = 10,
                             .n = 10,
                             .k = 10,
                             .a = m,
                             .b = m,
                             .c = y.at[GPU],
                             .c_ld = 10,
                             .c_dtype = PS_DTYPE_F32};
    struct ps_emu_counts before = {0};
    float host[4];
    for (int i = 0; i < 5; i++) {
        cx->k->gemm(cx, &g);
        cx->k->round_bf16(cx, x.at[GPU], 1000);
        assert_int_equal(cx->k->fetch(cx, host, x.at[GPU], sizeof host), 0);
        done(w);
        if (i == 0)
            before = counts(w);
    }
    assert_int_equal(counts(w).launches - before.launches, 4);
    assert_int_equal(counts(w).gemms - before.gemms, 4);
    assert_int_equal(counts(w).allocations, before.allocations);
    assert_int_equal(counts(w).device_syncs, before.device_syncs);
    assert_int_equal(counts(w).pageable_copies, before.pageable_copies);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, world_fresh, world_clear)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(probe_describes_the_card),
        TEST(probe_says_what_fails),
        TEST(an_arena_is_aligned_and_poisoned),
        TEST(an_arena_over_the_cards_memory_is_refused),
        TEST(an_arena_that_fails_half_way_leaves_nothing),
        TEST(copies_go_to_the_byte),
        TEST(lanes_copy_at_the_same_time_and_wait_for_events_alone),
        TEST(memory_is_pinned_once_and_released),
        TEST(the_first_fault_stays_and_nothing_is_queued_after_it),
        TEST(a_product_that_is_refused_is_named),
        TEST(failures_while_waiting_and_fetching_are_faults),
        TEST(compute_opens_without_a_fault_of_the_caller_and_fails_cleanly),
        TEST(a_step_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
