/* Striped spill files: layout, modes, space, what is left behind. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "offload/stripe.h"
#include "tests/offload/storage_check.h"

enum { PAGE = 4096, MIB = 1 << 20 };

static int entries(const char *dir)
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    int n = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void fresh_dir(const char *name)
{
    PS_IGNORE(mkdir(name, 0755) != 0, "it is there from another test");
    assert_int_equal(chmod(name, 0755), 0);
    assert_int_equal(entries(name), 0);
}

/* Every byte of a small logical file has one place, and places do not collide. */
static void the_map_is_one_to_one_and_within_the_files(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {PAGE, MIB, MIB + PAGE, 7 * MIB, 13 * MIB + 3 * PAGE};
    for (uint32_t k = 1; k <= 4; k++) {
        for (int s = 0; s < 5; s++) {
            struct ps_stripe_layout l = {k, (uint64_t)(s % 2 + 1) * MIB};
            uint64_t pages = sizes[s] / PAGE, sum = 0;
            char *taken[4];
            for (uint32_t i = 0; i < k; i++) {
                uint64_t bytes = ps_stripe_layout_file_bytes(&l, sizes[s], i);
                sum += bytes;
                taken[i] = calloc(bytes / PAGE + 1, 1);
                assert_non_null(taken[i]);
            }
            assert_int_equal(sum, sizes[s]);
            for (uint64_t p = 0; p < pages; p++) {
                struct ps_transfer x;
                assert_int_equal(ps_stripe_map(&l, 5, false, p * PAGE, PAGE, NULL, &x), 1);
                uint32_t i = x.file - 5;
                assert_true(i < k);
                uint64_t bytes = ps_stripe_layout_file_bytes(&l, sizes[s], i);
                assert_true(x.offset + PAGE <= bytes);
                assert_int_equal(x.offset % PAGE, 0);
                assert_int_equal(taken[i][x.offset / PAGE], 0);
                taken[i][x.offset / PAGE] = 1;
            }
            for (uint32_t i = 0; i < k; i++)
                free(taken[i]);
        }
    }
}

static void a_range_is_cut_at_the_units_into_no_more_than_it_said(void **state)
{
    (void)state;
    struct ps_stripe_layout l = {3, 2 * MIB};
    static char memory[1];
    for (uint64_t at = 0; at < 5 * MIB; at += 17 * PAGE) {
        for (uint64_t len = 0; len < 9 * MIB; len += 301 * PAGE) {
            struct ps_transfer x[16];
            uint32_t max = ps_stripe_map_max(&l, len);
            assert_true(max <= 16);
            uint32_t n = ps_stripe_map(&l, 0, true, at, len, memory, x);
            assert_true(n <= max);
            uint64_t done = 0;
            for (uint32_t i = 0; i < n; i++) {
                assert_true(x[i].write);
                assert_int_equal((char *)x[i].memory - memory, done);
                assert_int_equal(x[i].bytes, x[i].expect);
                assert_int_equal(x[i].file, (at + done) / l.unit_bytes % 3);
                assert_int_equal(x[i].offset % l.unit_bytes, (at + done) % l.unit_bytes);
                done += x[i].bytes;
            }
            assert_int_equal(done, len);
        }
    }
    struct ps_stripe_layout one = {1, MIB};
    struct ps_transfer x;
    assert_int_equal(ps_stripe_map_max(&one, 40 * MIB), 1);
    assert_int_equal(ps_stripe_map(&one, 0, false, PAGE, 40 * MIB, memory, &x), 1);
    assert_int_equal(x.bytes, 40 * MIB);
}

static struct ps_stripe *open_stripe(const char *const *path, uint32_t n, uint64_t bytes)
{
    struct ps_stripe_options opt = {
        .path = path, .path_count = n, .bytes = bytes, .unit_bytes = MIB};
    struct ps_stripe *s = NULL;
    struct ps_error err = {0};
    int rc = ps_stripe_open(&s, &opt, &err);
    if (rc != 0)
        print_error("%s\n", err.message);
    assert_int_equal(rc, 0);
    return s;
}

static void files_are_private_allocated_and_gone_after_close(void **state)
{
    (void)state;
    static const char *const path[] = {"d0", "d1//"};
    fresh_dir("d0");
    fresh_dir("d1");
    struct ps_stripe *s = open_stripe(path, 2, 5 * MIB + 100);
    assert_int_equal(ps_stripe_bytes(s), 5 * MIB + PAGE);
    assert_int_equal(ps_stripe_file_count(s), 2);
    for (uint32_t i = 0; i < 2; i++) {
        struct stat sb;
        char dir[4096];
        assert_int_equal(lstat(ps_stripe_file_path(s, i), &sb), 0);
        assert_true(S_ISREG(sb.st_mode));
        assert_int_equal(sb.st_mode & 07777, 0600);
        assert_int_equal(sb.st_size, ps_stripe_file_bytes(s, i));
        assert_true((uint64_t)sb.st_blocks * 512 >= ps_stripe_file_bytes(s, i));
        snprintf(dir, sizeof dir, "%s", ps_stripe_file_path(s, i));
        *strrchr(dir, '/') = '\0';
        assert_int_equal(lstat(dir, &sb), 0);
        assert_int_equal(sb.st_mode & 07777, 0700);
    }
    ps_stripe_close(s);
    assert_int_equal(entries("d0"), 0);
    assert_int_equal(entries("d1"), 0);
    ps_stripe_close(NULL);
}

static void data_come_back_through_the_stripe_also_when_the_names_are_gone(void **state)
{
    (void)state;
    static const char *const path[] = {"d0", "d1", "d0"};
    enum { BYTES = 5 * MIB };
    fresh_dir("d0");
    fresh_dir("d1");
    char *m = aligned(BYTES);
    for (int n = 0; n < 2; n++) {
        struct ps_stripe *s = open_stripe(path, 3, BYTES);
        struct ps_storage *st = open_named(names[n], NULL);
        uint32_t base = 99;
        assert_int_equal(ps_stripe_add_files(s, st, &base, NULL), 0);
        assert_int_equal(base, 0);
        ps_stripe_unlink(s);
        assert_int_equal(entries("d0") + entries("d1"), 0);
        struct ps_stripe_layout l = ps_stripe_get_layout(s);
        for (uint64_t i = 0; i < BYTES; i++)
            m[i] = (char)file_byte(i, 42);
        for (int w = 1; w >= 0; w--) {
            struct ps_transfer x[8];
            uint64_t ticket[8];
            uint32_t count = ps_stripe_map(&l, base, w, 0, BYTES, m, x);
            for (uint32_t i = 0; i < count; i++)
                assert_int_equal(st->ops->submit(st, &x[i], &ticket[i], NULL), 0);
            for (uint32_t i = 0; i < count; i++)
                assert_int_equal(st->ops->wait(st, ticket[i], NULL), 0);
            if (w)
                memset(m, 0xa5, BYTES);
        }
        assert_true(holds_file(m, 0, BYTES, 42));
        st->ops->close(st);
        ps_stripe_close(s);
    }
    free(m);
}

static int refused(const char *path, uint64_t bytes, uint64_t unit, struct ps_error *err)
{
    const char *const paths[] = {path};
    struct ps_stripe_options opt = {
        .path = paths, .path_count = 1, .bytes = bytes, .unit_bytes = unit};
    struct ps_stripe *s = NULL;
    int rc = ps_stripe_open(&s, &opt, err);
    assert_null(s);
    return rc;
}

static void symlinks_open_directories_and_bad_options_are_refused(void **state)
{
    (void)state;
    struct ps_error err = {0};
    fresh_dir("d0");
    unlink("ln");
    assert_int_equal(symlink("d0", "ln"), 0);
    assert_int_equal(refused("ln", MIB, 0, &err), PS_EUSAGE);
    assert_non_null(strstr(err.message, "symlink"));
    assert_string_equal(err.file, "ln");
    assert_int_equal(refused("ln/", MIB, 0, &err), PS_EUSAGE);
    assert_int_equal(refused("absent", MIB, 0, &err), -ENOENT);
    assert_int_equal(chmod("d0", 0777), 0);
    assert_int_equal(refused("d0", MIB, 0, &err), PS_EUSAGE);
    assert_int_equal(chmod("d0", 0755), 0);
    assert_int_equal(refused("d0", 0, 0, &err), PS_EUSAGE);
    assert_int_equal(refused("d0", MIB, MIB + PAGE, &err), PS_EUSAGE);
    assert_int_equal(refused("", MIB, 0, &err), PS_EUSAGE);
    assert_int_equal(entries("d0"), 0);
}

static void too_little_space_is_said_in_bytes_before_anything_is_made(void **state)
{
    (void)state;
    struct ps_error err = {0};
    fresh_dir("d0");
    assert_int_equal(refused("d0", (uint64_t)1 << 60, 0, &err), PS_ENOFIT);
    assert_non_null(strstr(err.message, "need 1152921504606846976 bytes"));
    assert_non_null(strstr(err.message, "are free"));
    assert_string_equal(err.file, "d0");
    assert_int_equal(entries("d0"), 0);
}

static void a_full_file_system_leaves_nothing_behind(void **state)
{
    (void)state;
    struct ps_error err = {0};
    fresh_dir("tiny");
    if (mount("none", "tiny", "tmpfs", 0, "size=8m,mode=0755") != 0) {
        print_message("cannot mount a tmpfs: %s\n", strerror(errno));
        skip();
    }
    int small = refused("tiny", 16 * MIB, 0, &err);
    int left = entries("tiny");
    const char *const both[] = {"tiny", "tiny"}; /* 6 + 6 MiB on the same 8 */
    struct ps_stripe_options opt = {.path = both, .path_count = 2, .bytes = 12 * MIB};
    struct ps_stripe *s = NULL;
    int shared = ps_stripe_open(&s, &opt, &err);
    left += entries("tiny");
    const char *const one[] = {"tiny"};
    opt = (struct ps_stripe_options){.path = one, .path_count = 1, .bytes = 7 * MIB};
    int fits = ps_stripe_open(&s, &opt, &err);
    if (fits == 0)
        ps_stripe_close(s);
    left += entries("tiny");
    umount("tiny");
    assert_int_equal(small, PS_ENOFIT);
    assert_int_equal(shared, PS_ENOFIT);
    assert_int_equal(fits, 0);
    assert_int_equal(left, 0);
}

static void a_killed_run_is_swept_up_and_a_running_one_is_not(void **state)
{
    (void)state;
    static const char *const path[] = {"d0"};
    fresh_dir("d0");
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct ps_stripe_options opt = {.path = path, .path_count = 1, .bytes = MIB};
        struct ps_stripe *s = NULL;
        int rc = ps_stripe_open(&s, &opt, NULL);
        if (write(ready[1], rc == 0 ? "y" : "n", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    char ok = 0;
    assert_int_equal(read(ready[0], &ok, 1), 1);
    assert_int_equal(ok, 'y');
    assert_int_equal(entries("d0"), 1);
    struct ps_stripe *s = open_stripe(path, 1, MIB);
    assert_int_equal(entries("d0"), 2); /* the other one runs */
    ps_stripe_close(s);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(entries("d0"), 1);
    assert_int_equal(mkdir("d0/penstock-spill-mine", 0700), 0); /* not the form of a name of ours */
    assert_int_equal(mkdir("d0/penstock-spill-abcdef", 0700), 0);
    FILE *f = fopen("d0/penstock-spill-abcdef/thesis.txt", "w");
    assert_non_null(f);
    fclose(f);
    s = open_stripe(path, 1, MIB);
    assert_int_equal(entries("d0"), 3); /* new one, mine, the one with a thesis in it */
    ps_stripe_close(s);
    assert_int_equal(unlink("d0/penstock-spill-abcdef/thesis.txt"), 0);
    assert_int_equal(rmdir("d0/penstock-spill-abcdef"), 0);
    assert_int_equal(rmdir("d0/penstock-spill-mine"), 0);
    assert_int_equal(entries("d0"), 0);
    close(ready[0]);
    close(ready[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_map_is_one_to_one_and_within_the_files),
        cmocka_unit_test(a_range_is_cut_at_the_units_into_no_more_than_it_said),
        cmocka_unit_test(files_are_private_allocated_and_gone_after_close),
        cmocka_unit_test(data_come_back_through_the_stripe_also_when_the_names_are_gone),
        cmocka_unit_test(symlinks_open_directories_and_bad_options_are_refused),
        cmocka_unit_test(too_little_space_is_said_in_bytes_before_anything_is_made),
        cmocka_unit_test(a_full_file_system_leaves_nothing_behind),
        cmocka_unit_test(a_killed_run_is_swept_up_and_a_running_one_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
