/* The storage back ends and the kernel: limits and refusals of its own making, and its counters. */
#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/offload/storage_check.h"

enum { PAGE = 4096 };

/* Ends neither at a block nor at a sector. */
#define FILE_BYTES (((uint64_t)1 << 20) + 4196)
#define ASKED ((FILE_BYTES + PAGE - 1) / PAGE * PAGE)

/* Run fn in a child; its result (0: well) is the exit status. */
static int in_child(int (*fn)(const void *), const void *arg)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(fn(arg));
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status))
        return 1000 + WTERMSIG(status);
    return WEXITSTATUS(status);
}

struct read_case {
    const char *backend;
    int inject; /* errno of io_uring_setup, 0: none */
};

/* What a child checks: exit status 1, 2, ... says which claim failed. */
static int child_limited_write(const void *arg)
{
    const struct read_case *c = arg;
    enum { BYTES = 8 * PAGE };
    struct rlimit lim = {3 * PAGE, 3 * PAGE};
    bool ring = strcmp(c->backend, "io_uring") == 0; /* the threads take no signals */
    if ((ring && signal(SIGXFSZ, SIG_IGN) == SIG_ERR) || setrlimit(RLIMIT_FSIZE, &lim) != 0)
        return 1;
    struct ps_storage_options opt = {.depth = 2, .chunk_bytes = BYTES};
    struct ps_storage *st = NULL;
    struct ps_error err = {0};
    if (ps_storage_open_auto(&st, c->backend, &opt, NULL, &err) != 0)
        return 2;
    int f = st->ops->add_file(st, "limit.bin", true, NULL, &err);
    void *m = NULL;
    if (f < 0 || posix_memalign(&m, PAGE, BYTES) != 0)
        return 3;
    memset(m, 0x5a, BYTES);
    if (write_once(st, f, 0, BYTES, m, &err) != -EFBIG)
        return 4;
    if (!strstr(err.message, "RLIMIT_FSIZE") || strcmp(err.file, "limit.bin") != 0)
        return 5;
    struct ps_storage_counters k;
    st->ops->counters(st, &k);
    if (k.short_transfers != 1 || k.write_bytes != 3 * PAGE)
        return 6;
    if (write_once(st, f, 0, PAGE, m, &err) != -EFBIG) /* sticky */
        return 7;
    st->ops->close(st);
    free(m);
    return 0;
}

static void a_real_short_write_goes_on_and_the_file_size_limit_is_named(void **state)
{
    (void)state;
    for (int n = 0; n < 2; n++) {
        make_file("limit.bin", 8 * PAGE, 1);
        struct read_case c = {.backend = names[n]};
        assert_int_equal(in_child(child_limited_write, &c), 0);
    }
}

/* From here on this system call fails with this errno. */
static int refuse_call(unsigned call, int code)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)code),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {sizeof filter / sizeof filter[0], filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

static int child_refused(const void *arg)
{
    const struct read_case *c = arg;
    if (refuse_call(__NR_io_uring_setup, c->inject) != 0)
        return 99;
    struct heard heard;
    heard_init(&heard);
    struct ps_storage_options opt = {.log = &heard.log};
    struct ps_storage *st = NULL;
    char why[128] = "";
    struct ps_error err = {0};
    if (ps_storage_open_auto(&st, "io_uring", &opt, why, &err) != -c->inject || !err.advice[0])
        return 1;
    int rc = ps_storage_open_auto(&st, NULL, &opt, why, &err);
    if (c->inject == EINVAL)
        return rc == -EINVAL ? 0 : 2;
    if (rc != 0 || strcmp(st->ops->name, "threads") != 0)
        return 3;
    if (!strstr(why, "threads") || !strstr(why, strerror(c->inject)))
        return 4;
    if (heard_count(&heard, "threads") != 1 || !strstr(heard.text, strerror(c->inject)))
        return 5;
    int f = st->ops->add_file(st, "a.bin", false, NULL, &err);
    void *m = NULL;
    if (f < 0 || posix_memalign(&m, PAGE, ASKED) != 0)
        return 6;
    if (read_once(st, f, 0, ASKED, FILE_BYTES, m, &err) != 0 || !holds_file(m, 0, FILE_BYTES, 8))
        return 7;
    st->ops->close(st);
    free(m);
    return 0;
}

static void where_io_uring_is_refused_threads_are_used_and_it_says_so(void **state)
{
    (void)state;
    static const int code[] = {ENOSYS, EPERM, EACCES, ENOMEM, EINVAL};
    make_file("a.bin", FILE_BYTES, 8);
    for (int i = 0; i < 5; i++) {
        struct read_case c = {.inject = code[i]};
        int rc = in_child(child_refused, &c);
        if (rc == 99) {
            print_message("no seccomp filters here\n");
            skip();
        }
        assert_int_equal(rc, 0);
    }
}

static int child_never_accepted(const void *arg)
{
    const struct read_case *c = arg;
    struct heard heard;
    heard_init(&heard);
    struct ps_storage_options opt = {
        .depth = 2, .chunk_bytes = PAGE, .warn_s = 0.03, .abort_s = 0.1, .log = &heard.log};
    struct ps_storage *st = NULL;
    struct ps_error err = {0};
    void *m = NULL;
    if (ps_storage_open_uring(&st, &opt, &err) != 0 || posix_memalign(&m, PAGE, ASKED) != 0)
        return 98;
    int f = st->ops->add_file(st, "a.bin", false, NULL, &err);
    if (f < 0)
        return 1;
    if (refuse_call(__NR_io_uring_enter, c->inject) != 0)
        return 99;
    int rc = read_once(st, f, 0, ASKED, FILE_BYTES, m, &err);
    if (c->inject == EFAULT)
        return rc == -EFAULT && strstr(err.message, "io_uring") ? 0 : 2;
    if (rc != -ETIMEDOUT || heard_count(&heard, "in flight: read a.bin offset") != 2)
        return 3;
    st->ops->close(st);
    return 0;
}

static void a_kernel_that_never_takes_the_requests_is_given_up(void **state)
{
    (void)state;
    static const int code[] = {EAGAIN, EBUSY, EINTR, EFAULT};
    make_file("a.bin", FILE_BYTES, 8);
    for (int i = 0; i < 4; i++) {
        struct read_case c = {.inject = code[i]};
        int rc = in_child(child_never_accepted, &c);
        if (rc >= 98) {
            print_message("no io_uring or no seccomp filters here\n");
            skip();
        }
        assert_int_equal(rc, 0);
    }
}

/* Without CAP_IPC_LOCK, as an ordinary user has it. */
static int drop_capabilities(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    memset(data, 0, sizeof data);
    if (geteuid() == 0)
        data[0].effective = data[0].permitted = 1U << CAP_DAC_OVERRIDE;
    return (int)syscall(SYS_capset, &head, data);
}

static int child_memlock(const void *arg)
{
    rlim_t limit = *(const rlim_t *)arg;
    struct rlimit lim = {limit, limit};
    void *m = NULL;
    if (setrlimit(RLIMIT_MEMLOCK, &lim) != 0 || drop_capabilities() != 0 ||
        posix_memalign(&m, PAGE, ASKED) != 0)
        return 99;
    struct heard heard;
    heard_init(&heard);
    struct ps_storage_options opt = {.log = &heard.log, .arena = m, .arena_bytes = ASKED};
    struct ps_storage *st = NULL;
    struct ps_error err = {0};
    if (ps_storage_open_auto(&st, NULL, &opt, NULL, &err) != 0)
        return 1;
    bool ring = strcmp(st->ops->name, "io_uring") == 0;
    if (heard_count(&heard, "\n") != 1)
        return 2;
    if (ring && (!strstr(heard.text, "not registered") || !strstr(heard.text, "RLIMIT_MEMLOCK")))
        return 3;
    if (!ring && !strstr(heard.text, "threads"))
        return 4;
    int f = st->ops->add_file(st, "a.bin", false, NULL, &err);
    if (f < 0 || read_once(st, f, 0, ASKED, FILE_BYTES, m, &err) != 0 ||
        !holds_file(m, 0, FILE_BYTES, 9))
        return 5;
    st->ops->close(st);
    free(m);
    return 0;
}

static void little_lockable_memory_is_said_and_does_not_stop_the_run(void **state)
{
    (void)state;
    static const rlim_t limit[] = {0, 65536};
    make_file("a.bin", FILE_BYTES, 9);
    for (int i = 0; i < 2; i++)
        assert_int_equal(in_child(child_memlock, &limit[i]), 0);
}

static void direct_reads_show_up_in_the_kernels_own_counter(void **state)
{
    (void)state;
    enum { BYTES = 4 << 20 };
    make_file("io.bin", BYTES, 10);
    char *m = aligned(BYTES);
    for (int n = 0; n < 2; n++) {
        bool direct = false;
        struct ps_storage_options opt = {.chunk_bytes = 1 << 20};
        struct ps_storage *st = open_named(names[n], &opt);
        int f = st->ops->add_file(st, "io.bin", false, &direct, NULL);
        unsigned long long before = kernel_read_bytes();
        assert_int_equal(read_once(st, f, 0, BYTES, BYTES, m, NULL), 0);
        unsigned long long after = kernel_read_bytes();
        st->ops->close(st);
        if (!direct || after == before) {
            print_message("no direct reads from a disk here\n");
            free(m);
            skip();
        }
        assert_true(after - before >= BYTES);
        assert_true(after - before <= BYTES + BYTES / 100);
    }
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_real_short_write_goes_on_and_the_file_size_limit_is_named),
        cmocka_unit_test(where_io_uring_is_refused_threads_are_used_and_it_says_so),
        cmocka_unit_test(a_kernel_that_never_takes_the_requests_is_given_up),
        cmocka_unit_test(little_lockable_memory_is_said_and_does_not_stop_the_run),
        cmocka_unit_test(direct_reads_show_up_in_the_kernels_own_counter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
