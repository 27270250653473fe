/* The training step allocates nothing: malloc and its family, and mmap, are counted.
 *
 * The functions below take the place of the C library's in this program, libraries included, and
 * pass everything on. Under a sanitizer, which brings its own malloc, nothing would be counted: the
 * first test sees to it that the counter counts, and skips there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "session/penstock.h"

#ifndef __has_feature /* clang's way to ask */
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define COUNTED 0
#else
#define COUNTED 1
#endif

static atomic_ulong heap_count, map_count; /* atomic: any thread allocates */

#if COUNTED
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t count, size_t n);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void __libc_free(void *p);

static void count(atomic_ulong *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

void *malloc(size_t n)
{
    count(&heap_count);
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    count(&heap_count);
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    count(&heap_count);
    return __libc_realloc(p, n);
}

void free(void *p)
{
    if (p)
        count(&heap_count);
    __libc_free(p);
}

void *memalign(size_t align, size_t n);
void *memalign(size_t align, size_t n)
{
    count(&heap_count);
    return __libc_memalign(align, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    count(&heap_count);
    return __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    count(&heap_count);
    *out = __libc_memalign(align, n);
    return *out ? 0 : 12; /* ENOMEM */
}

void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
    count(&map_count);
    return (void *)syscall(SYS_mmap, at, len, prot, flags, fd, offset); /* NOLINT */
}
#endif

struct seen {
    unsigned long at_step[16]; /* counter after the step */
    uint64_t steps;
};

static unsigned long total(void)
{
    return atomic_load(&heap_count) + atomic_load(&map_count);
}

static void the_counter_counts(void **state)
{
    (void)state;
    if (!COUNTED)
        skip();
    unsigned long before = total();
    void *p = malloc(100);
    snprintf(p, 100, "used, or the compiler leaves it out");
    free(p);
    assert_int_equal(posix_memalign(&p, 64, 100), 0);
    snprintf(p, 100, "used");
    free(p);
    p = aligned_alloc(64, 128);
    snprintf(p, 100, "used");
    free(p);
    p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    munmap(p, 4096);
    assert_int_equal(total() - before, 7);
    before = total();
    FILE *f = fopen("/proc/self/status", "re"); /* the libraries' calls count too */
    assert_non_null(f);
    fclose(f);
    assert_true(total() > before);
}

static void set(struct ps_options *o, const char *name, const char *value)
{
    struct ps_error err;
    if (ps_options_set(o, name, value, "test", &err) != 0)
        fail_msg("%s=%s: %s", name, value, err.message);
}

static struct ps_session *open_session(struct ps_options *opt, const char *method,
                                       const char *dtype, const char *activations,
                                       const char *output)
{
    struct ps_session *s = NULL;
    struct ps_error err;
    char path[4096];
    const char *root = getenv("PENSTOCK_ROOT");
    ps_options_init(opt, PS_CMD_TRAIN);
    snprintf(path, sizeof path, "%s/tests/golden/models/llama_untied/model", root);
    set(opt, "model", path);
    snprintf(path, sizeof path, "%s/tests/golden/models/curves/llama_untied.jsonl", root);
    set(opt, "data", path);
    set(opt, "output", output);
    set(opt, "format", "tokens");
    set(opt, "method", method);
    set(opt, "dtype", dtype);
    set(opt, "threads", "2");
    set(opt, "max-steps", "11"); /* more than one epoch: the shuffling between them counts too */
    set(opt, "offload-activations", activations);
    set(opt, "val-split", "0.1");
    set(opt, "grad-accum", "16");
    if (strcmp(method, "lora") == 0)
        set(opt, "lora-dropout", "0.1");
    if (ps_options_resolve(opt, &err) != 0)
        fail_msg("%s", err.message);
    if (ps_session_open(&s, opt, NULL, &err) != 0)
        fail_msg("%s: %s", err.file, err.message);
    return s;
}

static void check_steps(const char *method, const char *dtype, const char *activations)
{
    struct ps_options opt;
    struct ps_error err;
    struct ps_eval_stats e;
    struct ps_session *s = open_session(&opt, method, dtype, activations, "unused");
    double epoch = 0;
    for (int i = 1; i <= 10; i++) {
        struct ps_step_stats st;
        unsigned long before = total();
        int ret = ps_session_step(s, &st, &err);
        unsigned long after = total();
        assert_int_equal(ret, 1);
        if (i > 1 && after != before)
            fail_msg("%s %s: %lu calls in step %d", method, dtype, after - before, i);
        if (i == 2) { /* neither does an evaluation */
            before = total();
            assert_int_equal(ps_session_eval(s, &e, &err), 0);
            assert_int_equal(total() - before, 0);
        }
        epoch = st.epoch;
    }
    assert_true(epoch > 1);
    ps_session_close(s);
    ps_options_fini(&opt);
}

static void steps_2_to_10_of_lora_allocate_nothing(void **state)
{
    (void)state;
    if (!COUNTED)
        skip();
    check_steps("lora", "fp32", "host");
    check_steps("lora", "bf16", "recompute");
}

static void steps_2_to_10_of_full_allocate_nothing(void **state)
{
    (void)state;
    if (!COUNTED)
        skip();
    check_steps("full", "fp32", "recompute");
    check_steps("full", "bf16", "host");
}

static void on_step(void *arg, const struct ps_step_stats *s)
{
    struct seen *seen = arg;
    if (s->step < 16)
        seen->at_step[s->step] = total();
    seen->steps = s->step;
}

static void check_train(const char *method, const char *dtype, const char *output)
{
    struct ps_options opt;
    struct ps_error err;
    struct seen seen = {0};
    struct ps_session *s = open_session(&opt, method, dtype, "auto", output);
    struct ps_train_hooks hooks = {.arg = &seen, .on_step = on_step};
    assert_int_equal(ps_session_train(s, &hooks, &err), 0);
    ps_session_close(s);
    ps_options_fini(&opt);
    assert_int_equal(seen.steps, 11);
    for (int i = 2; i <= 10; i++)
        assert_int_equal(seen.at_step[i] - seen.at_step[i - 1], 0);
}

static void the_training_loop_with_metrics_allocates_nothing(void **state)
{
    (void)state;
    if (!COUNTED)
        skip();
    check_train("lora", "bf16", "run_lora");
    check_train("full", "bf16", "run_full");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_counter_counts),
        cmocka_unit_test(steps_2_to_10_of_lora_allocate_nothing),
        cmocka_unit_test(steps_2_to_10_of_full_allocate_nothing),
        cmocka_unit_test(the_training_loop_with_metrics_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
