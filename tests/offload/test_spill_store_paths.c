/* Where a spill store may be made, who may use it, and what it never touches. */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/offload/spill_check.h"

static int teardown(void **state)
{
    (void)state;
    remove_store();
    return 0;
}

static int create_error(const struct ps_spill_store_options *opt, struct ps_error *e)
{
    struct ps_spill_store *s = NULL;
    memset(e, 0, sizeof *e);
    int rc = ps_spill_store_create(&s, opt, e);
    if (rc == 0)
        ps_spill_store_close(s);
    return rc;
}

static unsigned mode_of(const char *path)
{
    struct stat sb;
    assert_int_equal(stat(path, &sb), 0);
    return sb.st_mode & 07777;
}

static void directory_and_files_are_private(void **state)
{
    (void)state;
    mode_t old = umask(0);
    make_store(1, 1);
    umask(old);
    assert_int_equal(mode_of(STORE), 0700);
    assert_int_equal(mode_of(STORE "/data-0"), 0600);
    assert_int_equal(mode_of(STORE "/lock"), 0600);
}

static void symlinks_and_open_directories_are_refused(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_error e;
    static const char *const link_path[] = {"link/"};
    assert_int_equal(symlink("p0", "link"), 0);
    opt.path = link_path;
    assert_int_equal(create_error(&opt, &e), PS_EUSAGE);
    assert_non_null(strstr(e.message, "symlink"));
    assert_int_equal(unlink("link"), 0);
    opt.path = one_path;
    assert_int_equal(chmod("p0", 0777), 0);
    assert_int_equal(create_error(&opt, &e), PS_EUSAGE);
    assert_non_null(strstr(e.advice, "chmod o-w"));
    assert_int_equal(chmod("p0", 01777), 0); /* as /tmp */
    assert_int_equal(create_error(&opt, &e), 0);
    remove_store();
    opt = spill_options(1); /* something else has the store's name */
    assert_int_equal(mkdir("elsewhere", 0700), 0);
    assert_int_equal(symlink("../elsewhere", STORE), 0);
    assert_true(create_error(&opt, &e) < 0);
    assert_true(e.advice[0] != '\0');
    assert_int_equal(rmdir("elsewhere"), 0);
    static const char *const absent[] = {"absent"}, *const twice[] = {"p0", "p0/."};
    opt.path = absent;
    assert_int_equal(create_error(&opt, &e), -ENOENT);
    opt.path = twice;
    opt.path_count = 2;
    assert_int_equal(create_error(&opt, &e), PS_EUSAGE);
    opt.path_count = 1;
    opt.run_uuid = "../../etc/passwd-0000-0000-0000-0000";
    assert_int_equal(create_error(&opt, &e), PS_EUSAGE);
}

static void what_is_not_ours_is_never_touched(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_error e;
    static char mine[8192] = "my thesis";
    assert_int_equal(mkdir(STORE, 0755), 0);
    make_file(STORE "/notes.txt", 100, 1);
    FILE *f = fopen(STORE "/data-0", "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(mine, 1, sizeof mine, f), sizeof mine);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(create_error(&opt, &e), -EEXIST);
    assert_string_equal(e.field, "data-0");
    char back[sizeof mine];
    poke(STORE "/data-0", 0, back, sizeof back, false);
    assert_memory_equal(back, mine, sizeof mine);
    assert_int_equal(rename(STORE "/data-0", STORE "/data-1"), 0); /* a name that is not needed */
    struct ps_spill_store *s = NULL;
    OK(ps_spill_store_create(&s, &opt, err));
    OK(ps_spill_store_remove(s, err));
    assert_int_equal(access(STORE "/notes.txt", F_OK), 0);
    assert_int_equal(access(STORE "/data-1", F_OK), 0);
    assert_int_not_equal(access(STORE "/data-0", F_OK), 0);
}

static void a_store_of_another_run_in_the_same_path_stays(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_spill_store *s = NULL;
    make_store(1, 2);
    opt.run_uuid = OTHER_UUID;
    OK(ps_spill_store_create(&s, &opt, err));
    OK(ps_spill_store_remove(s, err));
    assert_int_equal(ps_spill_verify(STORE, NULL, NULL, NULL), 0);
}

static void a_committed_store_is_never_made_anew(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_error e;
    char junk[512];
    memset(junk, 0x5a, sizeof junk);
    make_store(1, 0); /* nothing committed: in nobody's way */
    make_store(1, 0);
    poke(STORE "/data-0", 1 << 20, junk, sizeof junk, true); /* a torn first commit: nor is that */
    make_store(1, 1);
    assert_int_equal(create_error(&opt, &e), -EEXIST);
    assert_non_null(strstr(e.advice, "resume"));
    assert_int_equal(ps_spill_verify(STORE, NULL, NULL, NULL), 0);
}

static void two_processes_never_share_a_store(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    struct ps_error e = {0};
    uint64_t step = 0;
    int ready[2], status = 0;
    char c = 0;
    make_store(1, 2);
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (run_open(&r, &opt, &step, &e) == 0 && write(ready[1], "x", 1) == 1)
            pause();
        _exit(1);
    }
    assert_int_equal(read(ready[0], &c, 1), 1);
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    assert_int_equal(run_open(&r, &opt, &step, &e), -EBUSY);
    clock_gettime(CLOCK_MONOTONIC, &b);
    assert_true((double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec) < 1.0);
    char holder[32];
    snprintf(holder, sizeof holder, "process, %ld", (long)pid);
    assert_non_null(strstr(e.message, holder));
    assert_true(e.advice[0] != '\0');
    assert_int_equal(create_error(&opt, &e), -EBUSY);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    OK(run_open(&r, &opt, &step, err)); /* the kernel has dropped the lock */
    assert_int_equal(step, 2);
    run_close(&r);
    close(ready[0]);
    close(ready[1]);
}

static bool stop_now(void *arg)
{
    return --*(int *)arg < 0;
}

static void a_creation_can_be_stopped(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_error e;
    int left = 1;
    opt.stop = stop_now;
    opt.stop_arg = &left;
    assert_int_equal(create_error(&opt, &e), PS_ESTOPPED);
    assert_int_not_equal(access(STORE, F_OK), 0);
}

static void a_file_size_limit_is_named(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit limit = {2 << 20, 2 << 20};
        struct ps_error e;
        signal(SIGXFSZ, SIG_IGN);
        bool ok = setrlimit(RLIMIT_FSIZE, &limit) == 0 && create_error(&opt, &e) == -EFBIG &&
                  strstr(e.advice, "RLIMIT_FSIZE") && access(STORE, F_OK) != 0;
        _exit(ok ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* --- with mounts of our own: root only --- */

/* Run fn in a child with a mount namespace of its own; false: not allowed here. */
static bool in_namespace(int (*fn)(void))
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
            _exit(77);
        _exit(fn());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("skip: mounting is not allowed here (run as root)\n");
        return false;
    }
    if (WEXITSTATUS(status) != 0)
        print_error("failed at check %d of the child\n", WEXITSTATUS(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    return true;
}

#define CHECK(n, condition)                                                                        \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return n;                                                                              \
    } while (0)

static int small_disk(void)
{
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_error e;
    if (mount("none", "p0", "tmpfs", 0, "size=2m") != 0)
        return 77;
    CHECK(1, create_error(&opt, &e) == PS_ENOFIT);
    CHECK(2, strstr(e.message, "bytes on this disk, ") && strstr(e.advice, "--nvme-path"));
    CHECK(3, access(STORE, F_OK) != 0);
    CHECK(4, mount("none", "p0", "tmpfs", MS_REMOUNT, "size=16m") == 0);
    CHECK(5, create_error(&opt, &e) == 0);
    CHECK(6, umount2("p0", MNT_DETACH) == 0);
    return 0;
}

static void too_small_a_disk_is_said_beforehand(void **state)
{
    (void)state;
    assert_int_equal(mkdir("p0", 0700), 0);
    if (!in_namespace(small_disk))
        skip();
}

static int read_only_disk(void)
{
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_error e;
    struct spill_run r;
    uint64_t step;
    if (mount("none", "p0", "tmpfs", 0, "size=32m") != 0)
        return 77;
    CHECK(1, run_create(&r, &opt, &e) == 0 && do_step(&r, 1, &e) == 0);
    run_close(&r);
    CHECK(2, mount("none", "p0", "tmpfs", MS_REMOUNT | MS_RDONLY, NULL) == 0);
    CHECK(3, run_open(&r, &opt, &step, &e) == -EROFS);
    CHECK(4, strstr(e.advice, "read-only"));
    opt.run_uuid = OTHER_UUID;
    CHECK(5, create_error(&opt, &e) == -EROFS && strstr(e.advice, "read-only"));
    CHECK(6, ps_spill_verify(STORE, NULL, NULL, &e) == 0); /* looking is allowed */
    return 0;
}

static void a_read_only_disk_is_said(void **state)
{
    (void)state;
    assert_int_equal(mkdir("p0", 0700), 0);
    if (!in_namespace(read_only_disk))
        skip();
}

/* A disk that promises more than it has: a sparse image on a memory disk that is too small. */
static int thin_disk(void)
{
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_error e;
    if (mount("none", "p0", "tmpfs", 0, "size=4m") != 0)
        return 77;
    if (system("truncate -s 64M p0/img && mkfs.ext4 -qF -E nodiscard,lazy_itable_init=1 p0/img "
               "2>/dev/null && mkdir m && mount -o loop p0/img m") != 0)
        return 77;
    static const char *const path[] = {"m"};
    opt.path = path;
    int rc = create_error(&opt, &e);
    CHECK(1, rc < 0);
    CHECK(2, e.message[0] && e.advice[0] && e.file[0]);
    CHECK(3, system("umount -l m; rmdir m") == 0);
    return 0;
}

static void a_disk_that_runs_full_meanwhile_is_a_clean_error(void **state)
{
    (void)state;
    assert_int_equal(mkdir("p0", 0700), 0);
    if (!in_namespace(thin_disk))
        skip();
}

/* --- the file system dies under the run --- */

#define EXT4_SHUTDOWN _IOR('X', 125, __u32)

static int shutdowns(void)
{
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    struct ps_error e = {0};
    uint64_t step = 0, seed = 9;
    static const char *const path[] = {"m"};
    opt.path = path;
    if (system("mkdir m && truncate -s 48M img && mkfs.ext4 -qF img 2>/dev/null && mount -o loop "
               "img m") != 0)
        return 77;
    CHECK(1, run_create(&r, &opt, &e) == 0 && do_step(&r, 1, &e) == 0);
    run_close(&r);
    for (int i = 0; i < count_of(2, 50); i++) {
        int ack[2];
        uint64_t acked = 0, x;
        __u32 nolog = 2;
        CHECK(2, pipe(ack) == 0);
        pid_t pid = fork();
        if (pid == 0) {
            int rc = run_open(&r, &opt, &step, &e);
            while (rc == 0 && (rc = do_step(&r, ++step, &e)) == 0) {
                if (write(ack[1], &step, sizeof step) != (ssize_t)sizeof step)
                    break;
            }
            _exit(rc < 0 && e.message[0] ? 0 : 1);
        }
        close(ack[1]);
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        struct timespec t = {0, 5000000L + (long)(seed >> 33) % 50000000L};
        nanosleep(&t, NULL);
        int fd = open("m", O_RDONLY), status = 0;
        CHECK(3, fd >= 0 && ioctl(fd, EXT4_SHUTDOWN, &nolog) == 0);
        close(fd);
        CHECK(4, waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        while (read(ack[0], &x, sizeof x) == (ssize_t)sizeof x)
            acked = x;
        close(ack[0]);
        CHECK(5, system("umount m && mount -o loop img m") == 0);
        CHECK(6, run_open(&r, &opt, &step, &e) == 0);
        CHECK(7, step >= acked);
        CHECK(8, holds_step(&r, step, PS_COPY_COMMITTED, &e) == 0);
        run_close(&r);
    }
    CHECK(9, system("umount m && rm -r m img") == 0);
    return 0;
}

static void no_shutdown_of_the_file_system_loses_a_step(void **state)
{
    (void)state;
    assert_int_equal(mkdir("p0", 0700), 0);
    if (!in_namespace(shutdowns))
        skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(directory_and_files_are_private, teardown),
        cmocka_unit_test_teardown(symlinks_and_open_directories_are_refused, teardown),
        cmocka_unit_test_teardown(what_is_not_ours_is_never_touched, teardown),
        cmocka_unit_test_teardown(a_store_of_another_run_in_the_same_path_stays, teardown),
        cmocka_unit_test_teardown(a_committed_store_is_never_made_anew, teardown),
        cmocka_unit_test_teardown(two_processes_never_share_a_store, teardown),
        cmocka_unit_test_teardown(a_creation_can_be_stopped, teardown),
        cmocka_unit_test_teardown(a_file_size_limit_is_named, teardown),
        cmocka_unit_test_teardown(too_small_a_disk_is_said_beforehand, teardown),
        cmocka_unit_test_teardown(a_read_only_disk_is_said, teardown),
        cmocka_unit_test_teardown(a_disk_that_runs_full_meanwhile_is_a_clean_error, teardown),
        cmocka_unit_test_teardown(no_shutdown_of_the_file_system_loses_a_step, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
