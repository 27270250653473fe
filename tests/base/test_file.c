/* Files: whole reads, atomic writes that survive a full disk, trees, hashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "runtime/base/file.h"

/* Entries of a directory besides . and .. */
static int count_entries(const char *dir)
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    int n = 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static void assert_content(const char *path, const void *data, size_t len)
{
    struct ps_error err = {0};
    char *text;
    size_t got;
    assert_int_equal(ps_file_read(path, 1 << 26, &text, &got, &err), 0);
    assert_int_equal(got, len);
    assert_memory_equal(text, data, len);
    assert_int_equal(text[got], '\0');
    free(text);
}

static void write_replaces_the_file_and_leaves_nothing_beside_it(void **state)
{
    (void)state;
    struct ps_error err = {0};
    assert_int_equal(mkdir("w", 0777), 0);
    assert_int_equal(ps_file_write("w/f", "first", 5, &err), 0);
    assert_int_equal(ps_file_write("w/f", "2nd", 3, &err), 0);
    assert_content("w/f", "2nd", 3);
    assert_int_equal(ps_file_write("w/empty", NULL, 0, &err), 0);
    assert_content("w/empty", "", 0);
    assert_int_equal(count_entries("w"), 2);
    struct stat st;
    mode_t mask = umask(0);
    umask(mask);
    assert_int_equal(stat("w/f", &st), 0);
    assert_int_equal(st.st_mode & 0777, 0666 & ~mask);
}

static void write_into_an_absent_directory_names_the_file(void **state)
{
    (void)state;
    struct ps_error err = {0};
    assert_int_equal(ps_file_write("nowhere/f", "x", 1, &err), -ENOENT);
    assert_string_equal(err.file, "nowhere/f");
}

/* With RLIMIT_FSIZE below the size, a write fails midway as on a full disk: no root needed. */
static void failed_write_keeps_the_old_file_and_removes_the_new(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct rlimit old;
    assert_int_equal(mkdir("limit", 0777), 0);
    assert_int_equal(ps_file_write("limit/f", "old", 3, &err), 0);
    char *big = calloc(1, 1 << 20);
    assert_non_null(big);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    struct rlimit small = {.rlim_cur = 300000, .rlim_max = old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int ret = ps_file_write("limit/f", big, 1 << 20, &err);
    struct rlimit back = {.rlim_cur = old.rlim_max, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &back), 0);
    free(big);
    assert_int_equal(ret, -EFBIG);
    assert_string_equal(err.file, "limit/f");
    assert_content("limit/f", "old", 3);
    assert_int_equal(count_entries("limit"), 1);
}

static void full_disk_is_reported_with_the_bytes_needed(void **state)
{
    (void)state;
    struct ps_error err = {0};
    assert_int_equal(mkdir("full", 0777), 0);
    if (mount("tmpfs", "full", "tmpfs", 0, "size=256k") < 0) {
        print_message("skip: cannot mount a tmpfs here: %s\n", strerror(errno));
        skip();
    }
    char *big = calloc(1, 1 << 20);
    int first = big ? ps_file_write("full/f", "old", 3, &err) : -ENOMEM;
    int ret = big ? ps_file_write("full/f", big, 1 << 20, &err) : -ENOMEM;
    int copy = ps_file_copy("full/f", "full/g", NULL);
    int entries = count_entries("full");
    umount("full");
    free(big);
    assert_int_equal(first, 0);
    assert_int_equal(ret, -ENOSPC);
    assert_non_null(strstr(err.message, "bytes needed"));
    assert_true(err.advice[0]);
    assert_int_equal(copy, 0);
    assert_int_equal(entries, 2);
}

static void read_refuses_what_is_no_regular_file_without_waiting(void **state)
{
    (void)state;
    struct ps_error err = {0};
    char *text;
    size_t len;
    assert_int_equal(mkfifo("fifo", 0666), 0);
    assert_int_equal(ps_file_read("fifo", 100, &text, &len, &err), PS_EFORMAT);
    assert_string_equal(err.file, "fifo");
    assert_int_equal(mkdir("dir", 0777), 0);
    assert_int_equal(ps_file_read("dir", 100, &text, &len, &err), PS_EFORMAT);
    assert_int_equal(ps_file_read("/dev/zero", 100, &text, &len, &err), PS_EFORMAT);
    assert_int_equal(ps_file_read("absent", 100, &text, &len, &err), -ENOENT);
    assert_int_equal(ps_file_write("real", "abc", 3, &err), 0);
    assert_int_equal(symlink("real", "link"), 0);
    assert_content("link", "abc", 3);
}

static void read_takes_exactly_the_limit_and_no_byte_more(void **state)
{
    (void)state;
    struct ps_error err = {0};
    char *text;
    size_t len;
    assert_int_equal(ps_file_write("ten", "0123456789", 10, &err), 0);
    assert_int_equal(ps_file_read("ten", 10, &text, &len, &err), 0);
    free(text);
    assert_int_equal(ps_file_read("ten", 9, &text, &len, &err), PS_EFORMAT);
    assert_int_equal(ps_file_read("ten", SIZE_MAX, &text, &len, &err), 0);
    assert_int_equal(len, 10);
    free(text);
    /* files of /proc say that they have no bytes */
    assert_int_equal(ps_file_read("/proc/self/limits", 1 << 20, &text, &len, &err), 0);
    assert_true(len > 200);
    free(text);
    assert_int_equal(ps_file_read("/proc/self/limits", 5, &text, &len, &err), PS_EFORMAT);
}

static void copy_and_hash_agree_with_the_bytes(void **state)
{
    (void)state;
    struct ps_error err = {0};
    size_t n = (3u << 20) + 17; /* several pieces and a rest */
    unsigned char *data = malloc(n);
    assert_non_null(data);
    for (size_t i = 0; i < n; i++)
        data[i] = (unsigned char)(i * 31 >> 3);
    assert_int_equal(ps_file_write("src", data, n, &err), 0);
    assert_int_equal(ps_file_copy("src", "dst", &err), 0);
    assert_content("dst", data, n);
    uint64_t hash = 0;
    assert_int_equal(ps_file_hash("dst", &hash, &err), 0);
    assert_true(hash == XXH3_64bits(data, n));
    free(data);
    assert_int_equal(ps_file_copy("absent", "dst2", &err), -ENOENT);
    assert_int_equal(access("dst2", F_OK), -1);
}

static void trees_are_made_and_removed_without_following_links(void **state)
{
    (void)state;
    struct ps_error err = {0};
    assert_int_equal(ps_file_make_dirs("t/a/b//c/", &err), 0);
    assert_int_equal(ps_file_make_dirs("t/a/b/c", &err), 0);
    assert_int_equal(ps_file_write("t/a/file", "x", 1, &err), 0);
    assert_int_equal(ps_file_make_dirs("t/a/file/d", &err), -ENOTDIR);
    assert_int_equal(mkdir("keep", 0777), 0);
    assert_int_equal(ps_file_write("keep/f", "x", 1, &err), 0);
    assert_int_equal(symlink("../../keep", "t/a/link"), 0);
    assert_int_equal(ps_file_remove_tree("t", &err), 0);
    assert_int_equal(access("t", F_OK), -1);
    assert_content("keep/f", "x", 1);
    assert_int_equal(ps_file_remove_tree("t", &err), 0);
}

static void temporary_names_do_not_collide(void **state)
{
    (void)state;
    struct ps_error err = {0};
    char one[PS_FILE_TEMP_MAX], two[PS_FILE_TEMP_MAX];
    int fd1, fd2;
    assert_int_equal(mkdir("tmp", 0777), 0);
    assert_int_equal(ps_file_temp_open("tmp/f", one, &fd1, &err), 0);
    assert_int_equal(ps_file_temp_open("tmp/f", two, &fd2, &err), 0);
    assert_string_not_equal(one, two);
    assert_int_equal(ps_file_write_all(fd1, "one", 3, "tmp/f", &err), 0);
    assert_int_equal(ps_file_temp_commit(fd1, one, "tmp/f", &err), 0);
    ps_file_temp_discard(fd2, two);
    assert_content("tmp/f", "one", 3);
    assert_int_equal(count_entries("tmp"), 1);
}

static void path_join_never_cuts(void **state)
{
    (void)state;
    char buf[8];
    assert_string_equal(ps_path_join(buf, sizeof buf, "abc", "def"), "abc/def");
    assert_string_equal(ps_path_join(buf, sizeof buf, "abc/", "def"), "abc/def");
    assert_null(ps_path_join(buf, sizeof buf, "abcd", "def"));
    assert_string_equal(ps_path_join(buf, sizeof buf, "", "def"), "def");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(write_replaces_the_file_and_leaves_nothing_beside_it),
        cmocka_unit_test(write_into_an_absent_directory_names_the_file),
        cmocka_unit_test(failed_write_keeps_the_old_file_and_removes_the_new),
        cmocka_unit_test(full_disk_is_reported_with_the_bytes_needed),
        cmocka_unit_test(read_refuses_what_is_no_regular_file_without_waiting),
        cmocka_unit_test(read_takes_exactly_the_limit_and_no_byte_more),
        cmocka_unit_test(copy_and_hash_agree_with_the_bytes),
        cmocka_unit_test(trees_are_made_and_removed_without_following_links),
        cmocka_unit_test(temporary_names_do_not_collide),
        cmocka_unit_test(path_join_never_cuts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
