/* What `penstock list` names is what the options accept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "session/catalog.h"
#include "session/options.h"

static bool accepted(const char *option, const char *value)
{
    struct ps_options o;
    struct ps_error err;
    ps_options_init(&o, PS_CMD_TRAIN);
    int ret = ps_options_set(&o, option, value, "--x", &err);
    ps_options_fini(&o);
    return ret == 0;
}

static void every_kind_has_names(void **state)
{
    (void)state;
    for (const char *const *kind = ps_catalog_kinds(); *kind; kind++) {
        const char *names[PS_CATALOG_MAX];
        size_t count = 0;
        struct ps_error err;
        assert_int_equal(ps_catalog_list(*kind, names, &count, &err), 0);
        assert_in_range(count, 1, PS_CATALOG_MAX);
        for (size_t i = 0; i < count; i++)
            assert_true(names[i] && names[i][0]);
    }
}

static void listed_names_are_accepted_by_their_option(void **state)
{
    (void)state;
    static const char *const pair[][2] = {{"optimizers", "optimizer"},
                                          {"schedules", "lr-scheduler"},
                                          {"methods", "method"},
                                          {"adapters", "method"}};
    for (size_t p = 0; p < sizeof pair / sizeof pair[0]; p++) {
        const char *names[PS_CATALOG_MAX];
        size_t count;
        struct ps_error err;
        assert_int_equal(ps_catalog_list(pair[p][0], names, &count, &err), 0);
        for (size_t i = 0; i < count; i++)
            if (!accepted(pair[p][1], names[i]))
                fail_msg("--%s %s", pair[p][1], names[i]);
    }
}

static void unknown_kinds_get_a_suggestion(void **state)
{
    (void)state;
    const char *names[PS_CATALOG_MAX];
    size_t count = 99;
    struct ps_error err = {0};
    assert_int_equal(ps_catalog_list("modles", names, &count, &err), PS_EUSAGE);
    assert_non_null(strstr(err.advice, "`models`"));
    assert_int_equal(ps_catalog_list("qqqqqqqqqqqq", names, &count, &err), PS_EUSAGE);
    assert_non_null(strstr(err.advice, "optimizers"));
    assert_int_equal(count, 99);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_has_names),
        cmocka_unit_test(listed_names_are_accepted_by_their_option),
        cmocka_unit_test(unknown_kinds_get_a_suggestion),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
