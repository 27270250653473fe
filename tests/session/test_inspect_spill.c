/* inspect of a spill store: what recovery would find, and what is in its way. */
#include "runtime/base/json.h"
#include "session/inspect.h"
#include "tests/offload/spill_check.h"

static int teardown(void **state)
{
    (void)state;
    remove_store();
    return 0;
}

static json_t *inspect(const char *path)
{
    char *text = NULL;
    json_t *v = NULL;
    OK(ps_inspect(path, true, &text, err));
    OK(ps_json_parse(text, strlen(text), PS_JSON_STRICT, NULL, &v, err));
    free(text);
    assert_string_equal(json_string_value(json_object_get(v, "kind")), "spill");
    return v;
}

static int64_t number(json_t *v, const char *key)
{
    json_t *x = json_object_get(json_object_get(v, "details"), key);
    assert_true(json_is_integer(x));
    return json_integer_value(x);
}

static const char *why(json_t *v)
{
    return json_string_value(json_object_get(v, "why_not"));
}

static void a_store_shows_step_generation_and_slots(void **state)
{
    (void)state;
    make_store(2, 3);
    json_t *v = inspect(STORE);
    assert_true(json_is_true(json_object_get(v, "supported")));
    assert_int_equal(number(v, "generation"), 3);
    assert_int_equal(number(v, "step"), 3);
    assert_int_equal(number(v, "files"), 2);
    json_t *d = json_object_get(v, "details"), *list = json_object_get(d, "extents");
    assert_string_equal(json_string_value(json_object_get(d, "run_uuid")), UUID);
    assert_string_equal(json_string_value(json_object_get(d, "mode")), "shadow");
    assert_true(json_is_false(json_object_get(d, "locked")));
    assert_int_equal(json_array_size(list), EXTENTS);
    json_t *e = json_array_get(list, 4);
    assert_string_equal(json_string_value(json_object_get(e, "name")), "embed.state");
    assert_int_equal(json_integer_value(json_object_get(e, "bytes")), 65536);
    assert_int_equal(json_integer_value(json_object_get(e, "chunks")), 4);
    assert_true(json_is_integer(json_object_get(e, "slot")));
    json_decref(v);
    char *text = NULL;
    OK(ps_inspect(STORE, false, &text, err));
    assert_non_null(strstr(text, "generation               3\n"));
    assert_non_null(strstr(text, "embed.state"));
    free(text);
}

static void what_hinders_recovery_is_said(void **state)
{
    (void)state;
    char junk[512];
    memset(junk, 0x5a, sizeof junk);
    make_store(2, 0);
    json_t *v = inspect(STORE);
    assert_non_null(strstr(why(v), "nothing has been committed"));
    json_decref(v);
    remove_store();
    make_store(2, 3);
    poke(STORE "/data-0", 1 << 20, junk, sizeof junk,
         true); /* the newest superblock: step 2 is left */
    v = inspect(STORE);
    assert_null(why(v));
    assert_int_equal(number(v, "step"), 2);
    json_t *d = json_object_get(v, "details");
    assert_non_null(strstr(json_string_value(json_object_get(d, "warning")), "superblock 0"));
    json_decref(v);
    assert_int_equal(system("rm -r p1"), 0);
    v = inspect(STORE);
    assert_non_null(strstr(why(v), "data-1 of the spill store is missing"));
    json_decref(v);
}

static void a_run_state_that_is_no_json_is_left_out(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    OK(run_create(&r, &opt, err));
    OK(r.state->ops->commit(r.state, "\xff\x00\x01", 3, err));
    json_t *v = inspect(STORE);
    assert_int_equal(number(v, "run_state_bytes"), 3);
    assert_null(json_object_get(json_object_get(v, "details"), "step"));
    assert_true(json_is_true(json_object_get(json_object_get(v, "details"), "locked")));
    json_decref(v);
    run_close(&r);
}

static void a_file_that_only_has_the_name_is_an_error(void **state)
{
    (void)state;
    char *text = NULL;
    struct ps_error e = {0};
    assert_int_equal(mkdir("p0", 0700), 0);
    make_file("p0/data-0", 10000, 1);
    assert_int_equal(ps_inspect("p0", true, &text, &e), PS_ECHECKSUM);
    assert_string_equal(e.file, "p0");
    assert_string_equal(e.field, "data-0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_store_shows_step_generation_and_slots, teardown),
        cmocka_unit_test_teardown(what_hinders_recovery_is_said, teardown),
        cmocka_unit_test_teardown(a_run_state_that_is_no_json_is_left_out, teardown),
        cmocka_unit_test_teardown(a_file_that_only_has_the_name_is_an_error, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
