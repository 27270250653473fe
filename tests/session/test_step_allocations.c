/* A training step allocates nothing: the C library's allocator is replaced by one that counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session/penstock.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define COUNTS 0
#endif
#endif
#ifndef COUNTS
#define COUNTS 1
#endif

static atomic_size_t call_count; /* atomic: any thread allocates */

#if COUNTS
/* glibc's own entry points under the names that a replacement may call. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

static void count_call(void)
{
    atomic_fetch_add_explicit(&call_count, 1, memory_order_relaxed);
}

void *malloc(size_t n)
{
    count_call();
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    count_call();
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    count_call();
    return __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    count_call();
    return __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    count_call();
    void *p = __libc_memalign(align, n);
    if (p == NULL)
        return ENOMEM;
    *out = p;
    return 0;
}
#endif

static void step_allocates_nothing(const char *model, const char *const *more)
{
    if (!COUNTS) {
        print_message("allocation counter: a sanitizer owns the allocator\n");
        skip();
    }
    const char *root = getenv("PENSTOCK_ROOT");
    assert_non_null(root);
    char dir[512], data[600];
    snprintf(dir, sizeof dir, "%s/tests/golden/models/%s/model", root, model);
    snprintf(data, sizeof data, "%s/tests/golden/models/%s/rows.jsonl", root, model);
    const char *base[] = {"--model",      dir,      "--data",       data, "--output",      "run",
                          "--format",     "tokens", "--threads",    "2",  "--max-steps",   "12",
                          "--batch-size", "2",      "--grad-accum", "2",  "--max-seq-len", "160"};
    char *argv[64];
    int argc = 0;
    for (size_t i = 0; i < sizeof base / sizeof base[0]; i++)
        argv[argc++] = (char *)(uintptr_t)base[i];
    for (; *more != NULL; more++)
        argv[argc++] = (char *)(uintptr_t)*more;
    struct ps_options opt;
    struct ps_error err = {0};
    struct ps_session *s = NULL;
    bool help = false;
    ps_options_init(&opt, PS_CMD_TRAIN);
    assert_int_equal(ps_options_parse_args(&opt, argc, argv, &help, &err), 0);
    assert_int_equal(ps_options_resolve(&opt, &err), 0);
    size_t before_open = atomic_load(&call_count);
    assert_int_equal(ps_session_open(&s, &opt, NULL, &err), 0);
    assert_true(atomic_load(&call_count) > before_open); /* the counter counts */
    struct ps_step_stats stats;
    assert_int_equal(ps_session_step(s, &stats, &err), 1);
    for (int step = 2; step <= 10; step++) { /* several epochs: their order is drawn in here too */
        size_t before = atomic_load(&call_count);
        int rc = ps_session_step(s, &stats, &err);
        size_t calls = atomic_load(&call_count) - before;
        assert_int_equal(rc, 1);
        assert_int_equal(stats.step, step);
        assert_int_equal(calls, 0);
    }
    ps_session_close(s);
    ps_options_fini(&opt);
}

static void lora_step_allocates_nothing(void **state)
{
    (void)state;
    const char *more[] = {"--method", "lora", "--dtype", "bf16", "--lora-dropout", "0.1", NULL};
    step_allocates_nothing("llama3_tied", more);
}

static void full_fp32_step_allocates_nothing(void **state)
{
    (void)state;
    const char *more[] = {"--method", "full", "--dtype", "fp32", "--packing", "false", NULL};
    step_allocates_nothing("mistral_window", more);
}

static void full_bf16_recomputed_step_allocates_nothing(void **state)
{
    (void)state;
    const char *more[] = {"--method",  "full", "--dtype", "bf16", "--offload-activations",
                          "recompute", NULL};
    step_allocates_nothing("qwen2_tied", more);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lora_step_allocates_nothing),
        cmocka_unit_test(full_fp32_step_allocates_nothing),
        cmocka_unit_test(full_bf16_recomputed_step_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
