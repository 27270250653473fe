/* The storage back ends: the same bytes from each, whatever the depth and the chunk; the ends of
 * files; files that are not what was planned; kernels that refuse io_uring or registered memory. */
#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/offload/storage_check.h"

enum { PAGE = 4096 };

/* Ends neither at a block nor at a sector. */
#define FILE_BYTES (((uint64_t)1 << 20) + 4196)
#define ASKED ((FILE_BYTES + PAGE - 1) / PAGE * PAGE)

static void every_back_end_reads_the_same_bytes_at_every_depth(void **state)
{
    (void)state;
    static const uint32_t depth[] = {1, 2, 3, 8, 64};
    static const uint32_t chunk[] = {4096, 3 * 4096, 65536, 4 << 20};
    char *to = aligned(ASKED + PAGE);
    make_file("a.bin", FILE_BYTES, 1);
    for (int n = 0; n < NAMES; n++) {
        for (int d = 0; d < 5; d++) {
            for (int c = 0; c < 4; c++) {
                struct ps_storage_options opt = {.depth = depth[d], .chunk_bytes = chunk[c]};
                struct ps_storage *st = open_named(names[n], &opt);
                int f = st->ops->add_file(st, "a.bin", false, NULL, NULL);
                assert_int_equal(f, 0);
                memset(to, 0xa5, ASKED + PAGE);
                struct ps_error err = {0};
                assert_int_equal(read_once(st, f, 0, ASKED, FILE_BYTES, to, &err), 0);
                assert_true(holds_file(to, 0, FILE_BYTES, 1));
                assert_true(holds_byte(to + ASKED, PAGE, 0xa5));
                struct ps_storage_counters k;
                st->ops->counters(st, &k);
                assert_int_equal(k.read_bytes, FILE_BYTES);
                assert_int_equal(k.write_bytes, 0);
                assert_int_equal(k.requests, (ASKED + chunk[c] - 1) / chunk[c]);
                assert_int_equal(k.short_transfers, 0);
                assert_int_equal(k.retries, 0);
                st->ops->close(st);
            }
        }
    }
    free(to);
}

/* Supersets of odd ranges, as the planner asks for them; some reach past the end of the file. */
static void many_odd_ranges_in_flight_arrive_and_may_be_waited_for_in_any_order(void **state)
{
    (void)state;
    enum { RANGES = 200, SLOT = 40 * PAGE };
    char *to = aligned((size_t)RANGES * SLOT);
    make_file("a.bin", FILE_BYTES, 2);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage_options opt = {
            .depth = 16, .chunk_bytes = 2 * PAGE, .arena = to, .arena_bytes = RANGES * SLOT};
        struct ps_storage *st = open_named(names[n], &opt);
        assert_int_equal(st->ops->add_file(st, "a.bin", false, NULL, NULL), 0);
        memset(to, 0xa5, (size_t)RANGES * SLOT);
        struct ps_transfer x[RANGES];
        uint64_t ticket[RANGES], total = 0, r = 12345;
        for (int i = 0; i < RANGES; i++) {
            r = r * 6364136223846793005ULL + 1442695040888963407ULL;
            uint64_t begin = (r >> 33) % FILE_BYTES, end = begin + 1 + (r >> 20) % (38 * PAGE);
            begin = begin / PAGE * PAGE;
            end = (end + PAGE - 1) / PAGE * PAGE;
            uint64_t expect = (end < FILE_BYTES ? end : FILE_BYTES) - begin;
            x[i] = (struct ps_transfer){.offset = begin,
                                        .bytes = end - begin,
                                        .expect = expect,
                                        .memory = to + (size_t)i * SLOT};
            total += expect;
            assert_int_equal(st->ops->submit(st, &x[i], &ticket[i], NULL), 0);
            assert_int_equal(ticket[i], i + 1);
        }
        for (int i = 0; i < RANGES; i++) {
            int k = (i * 77 + 13) % RANGES;
            assert_int_equal(st->ops->wait(st, ticket[k], NULL), 0);
            assert_true(holds_file(x[k].memory, x[k].offset, x[k].expect, 2));
            char *rest = (char *)x[k].memory + x[k].bytes;
            assert_true(holds_byte(rest, SLOT - x[k].bytes, 0xa5));
        }
        struct ps_storage_counters c;
        st->ops->counters(st, &c);
        assert_int_equal(c.read_bytes, total);
        st->ops->close(st);
    }
    free(to);
}

static void what_one_back_end_writes_another_reads(void **state)
{
    (void)state;
    enum { BYTES = 64 * PAGE };
    char *from = aligned(BYTES), *to = aligned(BYTES);
    for (uint64_t i = 0; i < BYTES; i++)
        from[i] = (char)file_byte(i, 3);
    for (int w = 0; w < 2; w++) {
        make_file("w.bin", BYTES, 99);
        struct ps_storage_options opt = {.depth = 4, .chunk_bytes = 3 * PAGE};
        struct ps_storage *st = open_named(names[w], &opt);
        int f = st->ops->add_file(st, "w.bin", true, NULL, NULL);
        struct ps_error err = {0};
        assert_int_equal(write_once(st, f, PAGE, BYTES - 2 * PAGE, from + PAGE, &err), 0);
        assert_int_equal(st->ops->flush(st, (uint32_t)f, &err), 0);
        struct ps_storage_counters k;
        st->ops->counters(st, &k);
        assert_int_equal(k.write_bytes, BYTES - 2 * PAGE);
        assert_int_equal(k.read_bytes, 0);
        st->ops->close(st);
        for (int r = 0; r < NAMES; r++) {
            st = open_named(names[r], &opt);
            f = st->ops->add_file(st, "w.bin", false, NULL, NULL);
            assert_int_equal(read_once(st, f, 0, BYTES, BYTES, to, &err), 0);
            assert_true(holds_file(to, 0, PAGE, 99));
            assert_true(holds_file(to + PAGE, PAGE, BYTES - 2 * PAGE, 3));
            assert_true(holds_file(to + BYTES - PAGE, BYTES - PAGE, PAGE, 99));
            st->ops->close(st);
        }
    }
    free(from);
    free(to);
}

static void the_ram_back_end_reads_its_own_writes_and_leaves_the_file_alone(void **state)
{
    (void)state;
    make_file("r.bin", 4 * PAGE, 4);
    char *m = aligned(4 * PAGE);
    struct ps_storage *st = open_named("ram", NULL);
    int f = st->ops->add_file(st, "r.bin", true, NULL, NULL);
    struct ps_error err = {0};
    memset(m, 0x11, PAGE);
    assert_int_equal(write_once(st, f, PAGE, PAGE, m, &err), 0);
    assert_int_equal(st->ops->flush(st, (uint32_t)f, &err), 0);
    assert_int_equal(read_once(st, f, 0, 4 * PAGE, 4 * PAGE, m, &err), 0);
    assert_true(holds_file(m, 0, PAGE, 4));
    assert_true(holds_byte(m + PAGE, PAGE, 0x11));
    assert_int_equal(write_once(st, f, 4 * PAGE, PAGE, m, &err), -ENOSPC);
    st->ops->close(st);
    st = open_named("threads", NULL);
    f = st->ops->add_file(st, "r.bin", false, NULL, NULL);
    assert_int_equal(read_once(st, f, 0, 4 * PAGE, 4 * PAGE, m, &err), 0);
    assert_true(holds_file(m, 0, 4 * PAGE, 4));
    st->ops->close(st);
    free(m);
}

static void the_null_back_end_counts_and_leaves_memory_alone(void **state)
{
    (void)state;
    char *m = aligned(16 * PAGE);
    struct ps_storage_options opt = {.depth = 2, .chunk_bytes = PAGE};
    struct ps_storage *st = open_named("null", &opt);
    int f = st->ops->add_file(st, "no such file", true, NULL, NULL);
    assert_int_equal(f, 0);
    assert_int_equal(read_once(st, f, 1 << 20, 16 * PAGE, 16 * PAGE, m, NULL), 0);
    assert_int_equal(write_once(st, f, 0, 4 * PAGE, m, NULL), 0);
    assert_int_equal(st->ops->flush(st, 0, NULL), 0);
    assert_true(holds_byte(m, 16 * PAGE, 0xa5));
    struct ps_storage_counters k;
    st->ops->counters(st, &k);
    assert_int_equal(k.read_bytes, 16 * PAGE);
    assert_int_equal(k.write_bytes, 4 * PAGE);
    assert_int_equal(k.requests, 21);
    st->ops->close(st);
    free(m);
}

static void a_file_cut_after_planning_is_an_error_that_names_it(void **state)
{
    (void)state;
    static const uint64_t left[] = {0, 100, PAGE, 5 * PAGE, 5 * PAGE + 4196, 8 * PAGE - 1};
    char *m = aligned(8 * PAGE);
    for (int n = 0; n < 2; n++) {
        for (int i = 0; i < 6; i++) {
            make_file("cut.bin", 8 * PAGE, 5);
            struct ps_storage_options opt = {.depth = 2, .chunk_bytes = 4 * PAGE};
            struct ps_storage *st = open_named(names[n], &opt);
            int f = st->ops->add_file(st, "cut.bin", false, NULL, NULL);
            assert_int_equal(truncate("cut.bin", (off_t)left[i]), 0);
            struct ps_error err = {0};
            assert_int_equal(read_once(st, f, 0, 8 * PAGE, 8 * PAGE, m, &err), PS_EFORMAT);
            assert_string_equal(err.file, "cut.bin");
            assert_non_null(strstr(err.message, "file shorter than planned"));
            assert_non_null(strstr(err.message, "32768"));
            st->ops->close(st);
        }
    }
    free(m);
}

static void an_empty_range_needs_no_request(void **state)
{
    (void)state;
    make_file("e.bin", 0, 1);
    char *m = aligned(PAGE);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage *st = open_named(names[n], NULL);
        int f = st->ops->add_file(st, "e.bin", false, NULL, NULL);
        assert_int_equal(f, 0);
        assert_int_equal(read_once(st, f, 0, PAGE, 0, m, NULL), 0);
        struct ps_storage_counters k;
        st->ops->counters(st, &k);
        assert_int_equal(k.requests, 0);
        struct ps_error err = {0};
        assert_int_equal(read_once(st, f, 0, PAGE, 1, m, &err), PS_EFORMAT);
        st->ops->close(st);
    }
    free(m);
}

static void symlinks_are_followed_for_reading_and_refused_for_writing(void **state)
{
    (void)state;
    make_file("real.bin", PAGE, 6);
    unlink("link.bin");
    assert_int_equal(symlink("real.bin", "link.bin"), 0);
    char *m = aligned(PAGE);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage *st = open_named(names[n], NULL);
        struct ps_error err = {0};
        int f = st->ops->add_file(st, "link.bin", false, NULL, &err);
        assert_int_equal(f, 0);
        assert_int_equal(read_once(st, f, 0, PAGE, PAGE, m, &err), 0);
        assert_true(holds_file(m, 0, PAGE, 6));
        assert_int_equal(st->ops->add_file(st, "link.bin", true, NULL, &err), -ELOOP);
        assert_string_equal(err.file, "link.bin");
        st->ops->close(st);
    }
    free(m);
}

static void what_is_no_file_is_refused_by_name(void **state)
{
    (void)state;
    unlink("pipe");
    assert_int_equal(mkfifo("pipe", 0600), 0);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage *st = open_named(names[n], NULL);
        struct ps_error err = {0};
        assert_int_equal(st->ops->add_file(st, "absent", false, NULL, &err), -ENOENT);
        assert_string_equal(err.file, "absent");
        assert_int_equal(st->ops->add_file(st, "pipe", false, NULL, &err), PS_EFORMAT);
        assert_int_equal(st->ops->add_file(st, ".", false, NULL, &err), PS_EFORMAT);
        assert_string_equal(err.file, ".");
        st->ops->close(st);
    }
}

static void transfers_that_break_the_contract_are_refused(void **state)
{
    (void)state;
    make_file("a.bin", 4 * PAGE, 1);
    char *m = aligned(4 * PAGE);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage *st = open_named(names[n], NULL);
        assert_int_equal(st->ops->add_file(st, "a.bin", false, NULL, NULL), 0);
        const struct ps_transfer bad[] = {
            {.offset = 512, .bytes = PAGE, .expect = PAGE, .memory = m},
            {.offset = 0, .bytes = 512, .expect = 512, .memory = m},
            {.offset = 0, .bytes = PAGE, .expect = PAGE, .memory = m + 512},
            {.offset = 0, .bytes = PAGE, .expect = PAGE + 1, .memory = m},
            {.offset = 0, .bytes = PAGE, .expect = PAGE, .memory = NULL},
            {.offset = UINT64_MAX / PAGE * PAGE, .bytes = PAGE, .expect = PAGE, .memory = m},
            {.file = 1, .bytes = PAGE, .expect = PAGE, .memory = m},
            {.write = true, .bytes = PAGE, .expect = PAGE, .memory = m},
        };
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            struct ps_error err = {0};
            uint64_t ticket = 0;
            assert_int_equal(st->ops->submit(st, &bad[i], &ticket, &err), -EINVAL);
            assert_int_equal(ticket, 0);
            assert_true(err.message[0] != '\0');
        }
        assert_int_equal(st->ops->wait(st, 0, NULL), -EINVAL);
        assert_int_equal(st->ops->wait(st, 1, NULL), -EINVAL);
        assert_int_equal(st->ops->flush(st, 1, NULL), -EINVAL);
        st->ops->close(st);
    }
    free(m);
    struct ps_storage *st = NULL;
    const struct ps_storage_options odd[] = {{.chunk_bytes = 1000}, {.depth = 100000}};
    assert_int_equal(ps_storage_open_threads(&st, &odd[0], NULL), -EINVAL);
    assert_int_equal(ps_storage_open_threads(&st, &odd[1], NULL), -EINVAL);
    assert_int_equal(ps_storage_open_auto(&st, "tape", NULL, NULL, NULL), PS_EUSAGE);
    assert_null(ps_storage_find("tape"));
    assert_true(ps_storage_find("threads") == ps_storage_open_threads);
}

static void the_queue_is_bounded_and_finished_tickets_need_no_wait(void **state)
{
    (void)state;
    make_file("a.bin", 64 * PAGE, 7);
    char *m = aligned(64 * PAGE);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage_options opt = {
            .depth = 1, .chunk_bytes = PAGE, .transfer_max = 4, .file_max = 1};
        struct ps_storage *st = open_named(names[n], &opt);
        assert_int_equal(st->ops->add_file(st, "a.bin", false, NULL, NULL), 0);
        assert_int_equal(st->ops->add_file(st, "a.bin", false, NULL, NULL), -EMFILE);
        uint64_t last = 0;
        int refused = 0;
        for (int i = 0; i < 16; i++) {
            uint64_t at = (uint64_t)i * 4 * PAGE;
            struct ps_transfer x = {
                .offset = at, .bytes = 4 * PAGE, .expect = 4 * PAGE, .memory = m + at};
            int rc;
            while ((rc = st->ops->submit(st, &x, &last, NULL)) == -EAGAIN) {
                refused++;
                assert_int_equal(st->ops->wait(st, last - 3, NULL), 0);
            }
            assert_int_equal(rc, 0);
            assert_int_equal(last, i + 1);
        }
        assert_int_equal(st->ops->wait(st, last, NULL), 0);
        for (uint64_t t = 1; t <= last; t++)
            assert_int_equal(st->ops->wait(st, t, NULL), 0);
        assert_true(holds_file(m, 0, 64 * PAGE, 7));
        if (n < 2)
            assert_true(refused > 0);
        st->ops->close(st);
    }
    free(m);
}

static void closing_with_transfers_under_way_is_legal(void **state)
{
    (void)state;
    make_file("a.bin", FILE_BYTES, 7);
    char *m = aligned(ASKED);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage_options opt = {.depth = 2, .chunk_bytes = PAGE};
        struct ps_storage *st = open_named(names[n], &opt);
        assert_int_equal(st->ops->add_file(st, "a.bin", false, NULL, NULL), 0);
        struct ps_transfer x = {.bytes = ASKED, .expect = FILE_BYTES, .memory = m};
        uint64_t ticket = 0;
        assert_int_equal(st->ops->submit(st, &x, &ticket, NULL), 0);
        st->ops->close(st);
        memset(m, 0x33, ASKED); /* ours again: nothing may arrive any more */
        usleep(2000);
        assert_true(holds_byte(m, ASKED, 0x33));
    }
    free(m);
}

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
        cmocka_unit_test(every_back_end_reads_the_same_bytes_at_every_depth),
        cmocka_unit_test(many_odd_ranges_in_flight_arrive_and_may_be_waited_for_in_any_order),
        cmocka_unit_test(what_one_back_end_writes_another_reads),
        cmocka_unit_test(the_ram_back_end_reads_its_own_writes_and_leaves_the_file_alone),
        cmocka_unit_test(the_null_back_end_counts_and_leaves_memory_alone),
        cmocka_unit_test(a_file_cut_after_planning_is_an_error_that_names_it),
        cmocka_unit_test(an_empty_range_needs_no_request),
        cmocka_unit_test(symlinks_are_followed_for_reading_and_refused_for_writing),
        cmocka_unit_test(what_is_no_file_is_refused_by_name),
        cmocka_unit_test(transfers_that_break_the_contract_are_refused),
        cmocka_unit_test(the_queue_is_bounded_and_finished_tickets_need_no_wait),
        cmocka_unit_test(closing_with_transfers_under_way_is_legal),
        cmocka_unit_test(a_real_short_write_goes_on_and_the_file_size_limit_is_named),
        cmocka_unit_test(where_io_uring_is_refused_threads_are_used_and_it_says_so),
        cmocka_unit_test(a_kernel_that_never_takes_the_requests_is_given_up),
        cmocka_unit_test(little_lockable_memory_is_said_and_does_not_stop_the_run),
        cmocka_unit_test(direct_reads_show_up_in_the_kernels_own_counter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
