/* Devices: what the host may touch, what copies and poison do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/device/device.h"

#define MIB2 ((size_t)2 << 20)

static struct ps_device *open_device(const char *name, size_t bytes)
{
    const struct ps_device_ops *ops = ps_device_find(name);
    assert_non_null(ops);
    struct ps_device *d = NULL;
    struct ps_error err = {0};
    assert_int_equal(ops->open(&d, bytes, &err), 0);
    assert_ptr_equal(d->ops, ops);
    return d;
}

/* Signal that ends a child which reads or writes `at`; 0: it lives. */
static int signal_of_access(volatile unsigned char *at, bool write_it)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit none = {0, 0};
        if (setrlimit(RLIMIT_CORE, &none) < 0)
            _exit(2);
        if (signal(SIGSEGV, SIG_DFL) == SIG_ERR || signal(SIGABRT, SIG_DFL) == SIG_ERR)
            _exit(2);
        if (write_it)
            *at = 1;
        else
            (void)*at;
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status))
        assert_int_equal(WEXITSTATUS(status), 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void find_knows_two_devices_and_no_other(void **state)
{
    (void)state;
    assert_ptr_equal(ps_device_find("cpu"), &ps_device_cpu);
    assert_ptr_equal(ps_device_find("emu"), &ps_device_emu);
    assert_null(ps_device_find("cuda"));
    assert_null(ps_device_find(""));
    assert_false(ps_device_cpu.discrete);
    assert_true(ps_device_emu.discrete);
}

static void host_access_to_emu_memory_faults_and_the_mapped_view_does_not(void **state)
{
    (void)state;
    struct ps_device *d = open_device("emu", 2 * MIB2);
    unsigned char *base = d->ops->base(d);
    size_t at[] = {0, 4095, MIB2, 2 * MIB2 - 1};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        assert_int_equal(signal_of_access(base + at[i], false), SIGSEGV);
        assert_int_equal(signal_of_access(base + at[i], true), SIGSEGV);
        assert_int_equal(signal_of_access(d->ops->map(d, base + at[i]), false), 0);
    }
    d->ops->close(d);
}

static void map_keeps_offsets_and_null(void **state)
{
    (void)state;
    const char *name[] = {"cpu", "emu"};
    for (int i = 0; i < 2; i++) {
        struct ps_device *d = open_device(name[i], 2 * MIB2);
        unsigned char *base = d->ops->base(d), *view = d->ops->map(d, base);
        assert_int_equal((uintptr_t)base % MIB2, 0);
        assert_int_equal((uintptr_t)view % MIB2, 0);
        assert_ptr_equal(d->ops->map(d, base + 12345), view + 12345);
        assert_ptr_equal(d->ops->map(d, base + 2 * MIB2), view + 2 * MIB2);
        assert_null(d->ops->map(d, NULL));
        if (i == 0)
            assert_ptr_equal(view, base);
        else
            assert_ptr_not_equal(view, base);
        d->ops->close(d);
    }
}

static void copies_go_to_the_byte_and_touch_nothing_else(void **state)
{
    (void)state;
    const char *name[] = {"cpu", "emu"};
    enum { N = 10007 };
    unsigned char *in = malloc(N), *out = malloc(N + 2);
    for (int i = 0; i < N; i++)
        in[i] = (unsigned char)(i * 31 + i / 256);
    for (int i = 0; i < 2; i++) {
        struct ps_device *d = open_device(name[i], MIB2);
        unsigned char *base = d->ops->base(d), *view = d->ops->map(d, base);
        struct ps_error err = {0};
        size_t offset[] = {1, 4093, MIB2 - N};
        for (int k = 0; k < 3; k++) {
            size_t o = offset[k];
            unsigned char before = view[o - 1];
            assert_int_equal(d->ops->copy_h2d(d, base + o, in, N, &err), 0);
            assert_memory_equal(view + o, in, N);
            assert_int_equal(view[o - 1], before);
            memset(out, 0x5A, N + 2);
            assert_int_equal(d->ops->copy_d2h(d, out + 1, base + o, N, &err), 0);
            assert_memory_equal(out + 1, in, N);
            assert_int_equal(out[0], 0x5A);
            assert_int_equal(out[N + 1], 0x5A);
            assert_int_equal(d->ops->copy_h2d(d, base + o, NULL, 0, &err), 0);
        }
        d->ops->close(d);
    }
    free(in);
    free(out);
}

static void cpu_memory_is_zero_and_poison_leaves_it(void **state)
{
    (void)state;
    struct ps_device *d = open_device("cpu", MIB2);
    unsigned char *base = d->ops->base(d);
    for (size_t i = 0; i < MIB2; i++)
        assert_int_equal(base[i], 0);
    memset(base, 7, 100);
    d->ops->poison(d, base, 100);
    for (size_t i = 0; i < 100; i++)
        assert_int_equal(base[i], 7);
    d->ops->close(d);
}

static void emu_memory_is_nan_until_written_and_after_poison(void **state)
{
    (void)state;
    struct ps_device *d = open_device("emu", MIB2);
    unsigned char *base = d->ops->base(d);
    float *f = d->ops->map(d, base);
    uint16_t *h = d->ops->map(d, base);
    for (size_t i = 0; i < MIB2 / 4; i++)
        assert_true(isnan(f[i]));
    for (size_t i = 0; i < MIB2 / 2; i++) { /* a bf16 is the upper half of a float */
        uint32_t bits = (uint32_t)h[i] << 16;
        float v;
        memcpy(&v, &bits, sizeof v);
        assert_true(isnan(v));
    }
    for (int i = 0; i < 64; i++)
        f[i] = 1;
    d->ops->poison(d, base + 64, 128);
    for (int i = 0; i < 64; i++)
        assert_true(i >= 16 && i < 48 ? isnan(f[i]) : f[i] == 1);
    d->ops->poison(d, base + MIB2, 0);
    d->ops->close(d);
}

static void access_outside_the_arena_is_our_bug(void **state)
{
    (void)state;
    const char *name[] = {"cpu", "emu"};
    for (int i = 0; i < 2; i++) {
        struct ps_device *d = open_device(name[i], MIB2);
        unsigned char *base = d->ops->base(d);
        char host[2] = {0};
        for (int what = 0; what < 5; what++) {
            (void)fflush(NULL);
            pid_t pid = fork();
            assert_true(pid >= 0);
            if (pid == 0) {
                struct rlimit none = {0, 0};
                if (setrlimit(RLIMIT_CORE, &none) < 0 || !freopen("/dev/null", "w", stderr))
                    _exit(2);
                if (signal(SIGABRT, SIG_DFL) == SIG_ERR)
                    _exit(2);
                struct ps_error err = {0};
                int ret = 0;
                if (what == 0)
                    ret = d->ops->copy_h2d(d, base + MIB2 - 1, host, 2, &err);
                if (what == 1)
                    ret = d->ops->copy_d2h(d, host, base - 1, 1, &err);
                if (what == 2)
                    ret = d->ops->copy_d2h(d, host, base + 1, SIZE_MAX, &err);
                if (what == 3)
                    d->ops->poison(d, base + 1, MIB2);
                if (what == 4)
                    ret = d->ops->map(d, base + MIB2 + 1) != NULL;
                _exit(ret ? 3 : 0);
            }
            int status = 0;
            assert_int_equal(waitpid(pid, &status, 0), pid);
            assert_true(WIFSIGNALED(status));
            assert_int_equal(WTERMSIG(status), SIGABRT);
        }
        d->ops->close(d);
    }
}

static void impossible_sizes_are_refused_with_the_option_to_lower(void **state)
{
    (void)state;
    const char *name[] = {"cpu", "emu"};
    const char *field[] = {"host-mem", "gpu-mem"};
    for (int i = 0; i < 2; i++) {
        struct ps_device *d = NULL;
        struct ps_error err = {0};
        assert_true(ps_device_find(name[i])->open(&d, (size_t)1 << 62, &err) < 0);
        assert_null(d);
        assert_string_equal(err.field, field[i]);
        ps_device_find(name[i])->close(NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(find_knows_two_devices_and_no_other),
        cmocka_unit_test(host_access_to_emu_memory_faults_and_the_mapped_view_does_not),
        cmocka_unit_test(map_keeps_offsets_and_null),
        cmocka_unit_test(copies_go_to_the_byte_and_touch_nothing_else),
        cmocka_unit_test(cpu_memory_is_zero_and_poison_leaves_it),
        cmocka_unit_test(emu_memory_is_nan_until_written_and_after_poison),
        cmocka_unit_test(access_outside_the_arena_is_our_bug),
        cmocka_unit_test(impossible_sizes_are_refused_with_the_option_to_lower),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
