/* The doctor and what it knows about disks and the machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "session/doctor.h"
#include "session/host_disk.h"
#include "session/host_machine.h"

static struct ps_doctor_report report;

static const struct ps_doctor_check *check(const char *name, size_t nth)
{
    for (size_t i = 0; i < report.count; i++)
        if (!strcmp(report.check[i].name, name) && nth-- == 0)
            return &report.check[i];
    fail_msg("no check %s", name);
    return NULL;
}

static void examine(const char *const *paths, size_t count, const char *hardware)
{
    struct ps_doctor_options o = {.paths = paths, .path_count = count, .hardware = hardware};
    struct ps_error err = {0};
    assert_int_equal(ps_doctor(&report, &o, &err), 0);
}

static void only_what_prevents_running_makes_it_fail(void **state)
{
    (void)state;
    const char *here[] = {"."}, *both[] = {".", "not/there"};
    examine(here, 1, "no/profile.json");
    assert_int_equal(check("hardware_profile", 0)->state, PS_DOCTOR_WARN);
    assert_true(report.ok);
    examine(both, 2, "no/profile.json");
    assert_int_equal(check("filesystem", 1)->state, PS_DOCTOR_BAD);
    assert_non_null(strstr(check("filesystem", 1)->found, "not/there"));
    assert_false(report.ok);
}

static void what_is_not_right_has_advice(void **state)
{
    (void)state;
    const char *paths[] = {".", "not/there", "/dev/shm"};
    examine(paths, 3, "no/profile.json");
    for (size_t i = 0; i < report.count; i++) {
        assert_true(report.check[i].found[0] != '\0');
        if (report.check[i].state != PS_DOCTOR_OK)
            assert_true(report.check[i].advice[0] != '\0');
    }
}

static void without_paths_the_current_directory_prevents_nothing(void **state)
{
    (void)state;
    char old[4096];
    assert_non_null(getcwd(old, sizeof old));
    assert_int_equal(chdir("/proc"), 0); /* where nothing can be written */
    examine(NULL, 0, "no/profile.json");
    assert_int_equal(chdir(old), 0);
    assert_int_equal(check("o_direct", 0)->state, PS_DOCTOR_WARN);
    assert_true(report.ok);
}

static void json_counts_warnings_as_not_ok_but_the_report_as_usable(void **state)
{
    (void)state;
    const char *here[] = {"."};
    struct ps_error err = {0};
    char *text;
    examine(here, 1, "no/profile.json");
    assert_int_equal(ps_doctor_print(&report, true, &text, &err), 0);
    json_t *o = json_loads(text, 0, NULL);
    free(text);
    assert_non_null(o);
    assert_true(json_is_true(json_object_get(o, "ok")));
    const json_t *checks = json_object_get(o, "checks");
    assert_int_equal(json_array_size(checks), report.count);
    for (size_t i = 0; i < report.count; i++) {
        const json_t *c = json_array_get(checks, i);
        assert_int_equal(json_object_size(c), 4);
        assert_string_equal(json_string_value(json_object_get(c, "name")), report.check[i].name);
        assert_int_equal(json_is_true(json_object_get(c, "ok")),
                         report.check[i].state == PS_DOCTOR_OK);
        assert_true(json_is_string(json_object_get(c, "found")));
        assert_true(json_is_string(json_object_get(c, "advice")));
    }
    json_decref(o);
}

static void too_many_paths_are_an_error(void **state)
{
    (void)state;
    const char *paths[PS_DOCTOR_PATH_MAX + 1];
    for (size_t i = 0; i <= PS_DOCTOR_PATH_MAX; i++)
        paths[i] = ".";
    struct ps_doctor_options o = {.paths = paths, .path_count = PS_DOCTOR_PATH_MAX + 1};
    struct ps_error err = {0};
    assert_int_equal(ps_doctor(&report, &o, &err), PS_EUSAGE);
    o.path_count = PS_DOCTOR_PATH_MAX;
    assert_int_equal(ps_doctor(&report, &o, &err), 0);
}

static void file_systems_are_told_apart(void **state)
{
    (void)state;
    struct ps_host_disk d;
    struct ps_error err = {0};
    assert_int_equal(ps_host_disk(&d, ".", &err), 0);
    assert_true(d.total_bytes > 0);
    assert_true(d.free_bytes <= d.total_bytes);
    assert_true(d.name[0] != '\0');
    assert_int_equal(ps_host_disk(&d, "not/there", &err), -ENOENT);
    assert_string_equal(err.file, "not/there");
    if (access("/dev/shm", F_OK) == 0) {
        assert_int_equal(ps_host_disk(&d, "/dev/shm", &err), 0);
        assert_string_equal(d.name, "tmpfs");
        assert_int_equal(d.kind, PS_FS_MEMORY);
    }
}

static void the_machine_has_a_steady_name(void **state)
{
    (void)state;
    char a[256], b[256], cut[12];
    ps_host_machine(a, sizeof a);
    ps_host_machine(b, sizeof b);
    assert_string_equal(a, b);
    assert_non_null(strstr(a, "GiB"));
    ps_host_machine(cut, sizeof cut);
    assert_int_equal(strlen(cut), sizeof cut - 1);
    assert_true(ps_host_memory_total() > 0);
}

static void the_profile_lies_in_the_home_directory(void **state)
{
    (void)state;
    char path[4096], small[8];
    struct ps_error err = {0};
    assert_int_equal(setenv("HOME", "/some/where", 1), 0);
    assert_int_equal(ps_host_profile_path(path, sizeof path, &err), 0);
    assert_string_equal(path, "/some/where/.config/penstock/hardware.json");
    assert_int_equal(ps_host_profile_path(small, sizeof small, &err), -ENAMETOOLONG);
    assert_int_equal(unsetenv("HOME"), 0);
    assert_int_equal(ps_host_profile_path(path, sizeof path, &err), -ENOENT);
    assert_string_equal(err.field, "HOME");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_prevents_running_makes_it_fail),
        cmocka_unit_test(what_is_not_right_has_advice),
        cmocka_unit_test(without_paths_the_current_directory_prevents_nothing),
        cmocka_unit_test(json_counts_warnings_as_not_ok_but_the_report_as_usable),
        cmocka_unit_test(too_many_paths_are_an_error),
        cmocka_unit_test(file_systems_are_told_apart),
        cmocka_unit_test(the_machine_has_a_steady_name),
        cmocka_unit_test(the_profile_lies_in_the_home_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
