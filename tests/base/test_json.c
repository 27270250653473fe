/* JSON: JSONTestSuite, depth, duplicates, NUL, typed access, quoting, locale. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <limits.h>
#include <locale.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"

static int parse(const char *text, enum ps_json_mode mode, json_t **out, struct ps_error *err)
{
    memset(err, 0, sizeof *err);
    *out = NULL;
    return ps_json_parse(text, strlen(text), mode, "some.json", out, err);
}

/* Parse every file of the suite whose name begins with `kind`; count what parses and what not. */
static bool run_suite(char kind, int *accepted, int *rejected)
{
    const char *root = getenv("PENSTOCK_ROOT");
    char dir[PATH_MAX];
    char path[PATH_MAX + 300];
    *accepted = *rejected = 0;
    PS_IGNORE(snprintf(dir, sizeof dir, "%s/../shared/data/JSONTestSuite/test_parsing",
                       root ? root : ".") < 0,
              "fits");
    DIR *d = opendir(dir);
    if (!d) {
        print_message("skip: no JSONTestSuite at %s\n", dir);
        return false;
    }
    struct dirent *e;
    while ((e = readdir(d))) {
        if (e->d_name[0] != kind || e->d_name[1] != '_')
            continue;
        PS_IGNORE(snprintf(path, sizeof path, "%s/%s", dir, e->d_name) < 0, "fits");
        char *text;
        size_t len;
        struct ps_error err = {0};
        assert_int_equal(ps_file_read(path, 1 << 24, &text, &len, &err), 0);
        json_t *root_value;
        int ret = ps_json_parse(text, len, PS_JSON_PLAIN, path, &root_value, &err);
        free(text);
        if (ret == 0)
            json_decref(root_value);
        else
            assert_true(ret == PS_EFORMAT && strstr(err.message, "line"));
        *(ret ? rejected : accepted) += 1;
        if ((kind == 'y' && ret) || (kind == 'n' && !ret))
            print_message("wrong: %s: %s\n", e->d_name, ret ? err.message : "accepted");
    }
    closedir(d);
    return true;
}

static void plain_mode_accepts_all_95_valid_files_of_the_suite(void **state)
{
    (void)state;
    int accepted, rejected;
    if (!run_suite('y', &accepted, &rejected))
        skip();
    assert_int_equal(accepted, 95);
    assert_int_equal(rejected, 0);
}

static void plain_mode_rejects_all_188_invalid_files_of_the_suite(void **state)
{
    (void)state;
    int accepted, rejected;
    if (!run_suite('n', &accepted, &rejected))
        skip();
    assert_int_equal(accepted, 0);
    assert_int_equal(rejected, 188);
}

static void undefined_files_of_the_suite_never_crash(void **state)
{
    (void)state;
    int accepted, rejected;
    if (!run_suite('i', &accepted, &rejected))
        skip();
    assert_int_equal(accepted + rejected, 35);
}

static void strict_mode_limits_depth_before_parsing(void **state)
{
    (void)state;
    struct ps_error err;
    json_t *v;
    char text[2 * PS_JSON_DEPTH_MAX + 8];
    for (int extra = 0; extra < 2; extra++) {
        size_t n = PS_JSON_DEPTH_MAX + (size_t)extra;
        memset(text, '[', n);
        memset(text + n, ']', n);
        text[2 * n] = '\0';
        int ret = parse(text, PS_JSON_STRICT, &v, &err);
        assert_int_equal(ret, extra ? PS_EFORMAT : 0);
        if (extra)
            assert_non_null(strstr(err.message, "deeper"));
        json_decref(v);
        assert_int_equal(parse(text, PS_JSON_PLAIN, &v, &err), 0);
        json_decref(v);
    }
    /* brackets in strings do not count, escaped quotes do not end a string */
    char quoted[600] = "\"\\\"";
    memset(quoted + 3, '{', 200);
    strcpy(quoted + 203, "\\\\\"");
    assert_int_equal(parse(quoted, PS_JSON_STRICT, &v, &err), 0);
    json_decref(v);
}

static void strict_mode_rejects_duplicates_after_unescaping(void **state)
{
    (void)state;
    struct ps_error err;
    json_t *v;
    const char *text = "{\"a\":1,\"b\":{\"k\":1,\"\\u006b\":2}}";
    assert_int_equal(parse(text, PS_JSON_STRICT, &v, &err), PS_EFORMAT);
    assert_string_equal(err.file, "some.json");
    assert_int_equal(parse(text, PS_JSON_PLAIN, &v, &err), 0);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(v, "b"), "k")), 2);
    json_decref(v);
}

static void nul_is_for_plain_mode_and_only_escaped(void **state)
{
    (void)state;
    struct ps_error err;
    json_t *v;
    assert_int_equal(parse("[\"a\\u0000b\"]", PS_JSON_STRICT, &v, &err), PS_EFORMAT);
    assert_int_equal(parse("{\"a\\u0000\":1}", PS_JSON_STRICT, &v, &err), PS_EFORMAT);
    assert_int_equal(parse("[\"a\\u0000b\"]", PS_JSON_PLAIN, &v, &err), 0);
    assert_int_equal(json_string_length(json_array_get(v, 0)), 3);
    json_decref(v);
    /* in a key, beside a value and an escaped backslash that only look like it */
    assert_int_equal(
        parse("{\"x\\u0000\" : \"v\\u0000\", \"\\\\u0000\":2}", PS_JSON_PLAIN, &v, &err), 0);
    assert_int_equal(json_string_length(json_object_get(v, "x\xef\xbf\xbd")), 2);
    assert_int_equal(json_integer_value(json_object_get(v, "\\u0000")), 2);
    json_decref(v);
    memset(&err, 0, sizeof err);
    assert_int_equal(ps_json_parse("12\0", 3, PS_JSON_PLAIN, NULL, &v, &err), PS_EFORMAT);
    assert_int_equal(ps_json_parse("", 0, PS_JSON_PLAIN, NULL, &v, &err), PS_EFORMAT);
}

static void errors_have_line_and_column_and_stay_printable(void **state)
{
    (void)state;
    struct ps_error err;
    json_t *v;
    assert_int_equal(parse("{\n  \"a\": \x01\xff}", PS_JSON_STRICT, &v, &err), PS_EFORMAT);
    assert_non_null(strstr(err.message, "line 2"));
    for (const char *p = err.message; *p; p++)
        assert_in_range((unsigned char)*p, 0x20, 0x7e);
}

static void typed_access_checks_type_and_range_and_names_the_field(void **state)
{
    (void)state;
    struct ps_error err;
    json_t *v;
    int64_t n;
    double x;
    bool b;
    const char *s;
    assert_int_equal(parse("{\"i\":7,\"r\":2.5,\"b\":true,\"s\":\"t\",\"z\":null,\"f\":4.0}",
                           PS_JSON_STRICT, &v, &err),
                     0);
    assert_int_equal(ps_json_get_int(v, "i", 0, 7, 1, "f", &n, &err), 0);
    assert_int_equal(n, 7);
    assert_int_equal(ps_json_get_int(v, "z", 0, 7, 3, "f", &n, &err), 0);
    assert_int_equal(n, 3);
    assert_int_equal(ps_json_get_int(v, "absent", 0, 7, 4, "f", &n, &err), 0);
    assert_int_equal(n, 4);
    assert_int_equal(ps_json_get_int(v, "i", 0, 6, 1, "file.json", &n, &err), PS_EFORMAT);
    assert_string_equal(err.field, "i");
    assert_string_equal(err.file, "file.json");
    assert_int_equal(n, 4);
    assert_int_equal(ps_json_get_int(v, "f", 0, 9, 1, "f", &n, &err), PS_EFORMAT);
    assert_int_equal(ps_json_get_int(v, "b", 0, 9, 1, "f", &n, &err), PS_EFORMAT);
    assert_int_equal(ps_json_get_real(v, "r", 0, 3, 1, "f", &x, &err), 0);
    assert_true(x == 2.5);
    assert_int_equal(ps_json_get_real(v, "i", 0, 9, 1, "f", &x, &err), 0);
    assert_true(x == 7);
    assert_int_equal(ps_json_get_real(v, "r", 0, 2, 1, "f", &x, &err), PS_EFORMAT);
    assert_int_equal(ps_json_get_bool(v, "b", false, "f", &b, &err), 0);
    assert_true(b);
    assert_int_equal(ps_json_get_bool(v, "i", false, "f", &b, &err), PS_EFORMAT);
    assert_int_equal(ps_json_get_string(v, "s", NULL, "f", &s, &err), 0);
    assert_string_equal(s, "t");
    assert_int_equal(ps_json_get_string(v, "absent", "d", "f", &s, &err), 0);
    assert_string_equal(s, "d");
    assert_int_equal(ps_json_get_string(v, "i", NULL, "f", &s, &err), PS_EFORMAT);
    json_decref(v);
}

static void numbers_do_not_depend_on_the_locale(void **state)
{
    (void)state;
    static const char *const comma[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "fr_FR.utf8"};
    const char *got = NULL;
    for (size_t i = 0; i < sizeof comma / sizeof comma[0] && !got; i++)
        got = setlocale(LC_NUMERIC, comma[i]);
    if (!got) {
        print_message("skip: no locale with a decimal comma is installed\n");
        skip();
    }
    struct ps_error err;
    json_t *v;
    double x = 0;
    int ret = parse("{\"x\":1.5e1}", PS_JSON_STRICT, &v, &err);
    int get = ret ? ret : ps_json_get_real(v, "x", 0, 99, 0, NULL, &x, &err);
    setlocale(LC_NUMERIC, "C");
    json_decref(v);
    assert_int_equal(get, 0);
    assert_true(x == 15);
}

static void quote_round_trips_every_byte_and_stops_at_the_end(void **state)
{
    (void)state;
    char text[160];
    size_t n = 0;
    for (int c = 1; c < 128; c++)
        text[n++] = (char)c;
    memcpy(text + n, "\xc3\xa9\xf0\x9f\x98\x80", 6);
    n += 6;
    char buf[1000];
    size_t len = 0;
    assert_true(ps_json_quote(buf, sizeof buf, &len, text, n));
    struct ps_error err = {0};
    json_t *v;
    assert_int_equal(ps_json_parse(buf, len, PS_JSON_STRICT, NULL, &v, &err), 0);
    assert_int_equal(json_string_length(v), n);
    assert_memory_equal(json_string_value(v), text, n);
    json_decref(v);
    for (size_t cap = 0; cap < len; cap++) {
        char *exact = malloc(cap + 1);
        exact[cap] = 'C';
        size_t at = 0;
        assert_false(ps_json_quote(exact, cap, &at, text, n));
        assert_int_equal(exact[cap], 'C');
        free(exact);
    }
}

static void load_refuses_large_files_and_names_them(void **state)
{
    (void)state;
    struct ps_error err = {0};
    json_t *v;
    assert_int_equal(ps_file_write("a.json", "{\"k\":[1]}", 9, &err), 0);
    assert_int_equal(ps_json_load("a.json", 9, &v, &err), 0);
    json_decref(v);
    assert_int_equal(ps_json_load("a.json", 8, &v, &err), PS_EFORMAT);
    assert_string_equal(err.file, "a.json");
    assert_int_equal(ps_json_load("absent.json", 8, &v, &err), -2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_mode_accepts_all_95_valid_files_of_the_suite),
        cmocka_unit_test(plain_mode_rejects_all_188_invalid_files_of_the_suite),
        cmocka_unit_test(undefined_files_of_the_suite_never_crash),
        cmocka_unit_test(strict_mode_limits_depth_before_parsing),
        cmocka_unit_test(strict_mode_rejects_duplicates_after_unescaping),
        cmocka_unit_test(nul_is_for_plain_mode_and_only_escaped),
        cmocka_unit_test(errors_have_line_and_column_and_stay_printable),
        cmocka_unit_test(typed_access_checks_type_and_range_and_names_the_field),
        cmocka_unit_test(numbers_do_not_depend_on_the_locale),
        cmocka_unit_test(quote_round_trips_every_byte_and_stops_at_the_end),
        cmocka_unit_test(load_refuses_large_files_and_names_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
