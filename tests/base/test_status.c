/* Status codes, error details, log lines, checked arithmetic. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "runtime/base/checked.h"
#include "runtime/base/isa.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"

static void errors_carry_all_their_parts_and_return_the_code(void **state)
{
    (void)state;
    struct ps_error e;
    memset(&e, 0xcc, sizeof e);
    assert_int_equal(ps_error_full(&e, PS_EFORMAT, "f", "k", "do", "%s %d", "bad", 7), PS_EFORMAT);
    assert_int_equal(e.code, PS_EFORMAT);
    assert_string_equal(e.message, "bad 7");
    assert_string_equal(e.file, "f");
    assert_string_equal(e.field, "k");
    assert_string_equal(e.advice, "do");
    assert_int_equal(ps_error_set(&e, -EIO, "other"), -EIO);
    assert_string_equal(e.file, "");
    assert_int_equal(ps_error_file(&e, -1, "g"), -EIO);
    assert_int_equal(ps_error_file(&e, -1, "h"), -EIO);
    assert_string_equal(e.file, "g");
    assert_int_equal(ps_error_field(&e, -1, "x"), -EIO);
    assert_int_equal(ps_error_advice(&e, -1, "y"), -EIO);
    assert_string_equal(e.field, "x");
    assert_string_equal(e.advice, "y");
    assert_int_equal(ps_error_set(NULL, -5, "x"), -5);
    assert_int_equal(ps_error_full(NULL, -5, "a", "b", "c", "x"), -5);
    assert_int_equal(ps_error_file(NULL, -5, "x"), -5);
}

static void an_error_may_be_built_from_its_own_parts(void **state)
{
    (void)state;
    struct ps_error e = {0};
    assert_int_equal(ps_error_full(&e, -1, "file", "field", "advice", "first"), -1);
    assert_int_equal(ps_error_full(&e, -2, e.field, e.file, e.message, "<%s>", e.message), -2);
    assert_string_equal(e.message, "<first>");
    assert_string_equal(e.file, "field");
    assert_string_equal(e.field, "file");
    assert_string_equal(e.advice, "first");
}

static void texts_hold_no_control_characters(void **state)
{
    (void)state;
    struct ps_error e;
    ps_error_full(&e, -1, "a\x1b[31m", "b\nc", "d\x7f", "%s", "m\t\x01n");
    assert_string_equal(e.message, "m  n");
    assert_string_equal(e.file, "a [31m");
    assert_string_equal(e.field, "b c");
    assert_string_equal(e.advice, "d ");
}

/* The field holds 127 bytes: 1 to 4 bytes of a 4-byte character cross its end in turn. */
static void truncation_never_cuts_a_character_in_half(void **state)
{
    (void)state;
    static const char *const ch[] = {"\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
    for (size_t c = 0; c < 3; c++) {
        for (size_t lead = 110; lead <= 128; lead++) {
            char text[300];
            size_t n = strlen(ch[c]), len = lead;
            memset(text, 'x', lead);
            for (int i = 0; i < 20; i++, len += n)
                memcpy(text + len, ch[c], n);
            text[len] = '\0';
            struct ps_error e;
            ps_error_full(&e, -1, NULL, text, NULL, "m");
            size_t got = strlen(e.field);
            size_t whole = lead >= 127 ? 127 : lead + (127 - lead) / n * n;
            assert_int_equal(got, whole);
            assert_memory_equal(e.field, text, got);
        }
    }
}

static void exit_codes_are_those_of_the_command_line(void **state)
{
    (void)state;
    static const struct {
        int status, code;
    } t[] = {{0, 0},
             {3, 0},
             {-EIO, 1},
             {-ENOENT, 1},
             {PS_EUSAGE, 2},
             {PS_ENOFIT, 3},
             {PS_EFORMAT, 4},
             {PS_EUNSUPPORTED, 4},
             {PS_EDATA, 4},
             {PS_ECHECKSUM, 4},
             {PS_EDIVERGED, 5},
             {PS_ENUMERIC, 1}};
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++)
        assert_int_equal(ps_status_exit_code(t[i].status), t[i].code);
    assert_string_equal(ps_status_text(-ENOENT), strerror(ENOENT));
    for (int s = PS_EUSAGE; s >= PS_ENUMERIC; s--)
        assert_null(strstr(ps_status_text(s), "Unknown"));
}

struct lines {
    int count;
    enum ps_log_level level;
    char last[2000];
};

static void keep(void *arg, enum ps_log_level level, const char *message)
{
    struct lines *l = arg;
    l->count++;
    l->level = level;
    PS_IGNORE(snprintf(l->last, sizeof l->last, "%s", message) < 0, "fits");
}

static void log_lines_reach_the_callback_or_nobody(void **state)
{
    (void)state;
    struct lines l = {0};
    struct ps_log log = {keep, &l}, silent = {NULL, &l};
    ps_log(&log, PS_LOG_WARN, "%d%%", 50);
    assert_string_equal(l.last, "50%");
    assert_int_equal(l.level, PS_LOG_WARN);
    ps_log(&log, PS_LOG_INFO, "%1500d", 7);
    assert_int_equal(strlen(l.last), 1023);
    ps_log(&silent, PS_LOG_ERROR, "x");
    ps_log(NULL, PS_LOG_ERROR, "x");
    assert_int_equal(l.count, 2);
}

static void checked_sizes_report_overflow_and_leave_the_result(void **state)
{
    (void)state;
    size_t r = 1;
    assert_true(ps_mul_size((size_t)1 << 32, ((size_t)1 << 32) - 1, &r));
    assert_true(r == SIZE_MAX - (((size_t)1 << 32) - 1));
    assert_false(ps_mul_size((size_t)1 << 32, (size_t)1 << 32, &r));
    assert_false(ps_add_size(SIZE_MAX, 1, &r));
    assert_true(r == SIZE_MAX - (((size_t)1 << 32) - 1));
    assert_true(ps_add_size(SIZE_MAX, 0, &r) && r == SIZE_MAX);
    assert_int_equal(ps_align_up(65, 64), 128);
    assert_int_equal(ps_align_up(64, 64), 64);
    assert_int_equal(ps_align_up(0, 64), 0);
}

static void the_instruction_set_of_this_machine_has_a_name(void **state)
{
    (void)state;
    enum ps_isa isa = ps_isa_detect();
    assert_in_range(isa, PS_ISA_PORTABLE, PS_ISA_AVX512_BF16);
    assert_string_equal(ps_isa_name(PS_ISA_AVX512_BF16), "avx512_bf16");
    assert_string_equal(ps_isa_name(PS_ISA_PORTABLE), "portable");
    assert_int_equal(isa, ps_isa_detect());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_carry_all_their_parts_and_return_the_code),
        cmocka_unit_test(an_error_may_be_built_from_its_own_parts),
        cmocka_unit_test(texts_hold_no_control_characters),
        cmocka_unit_test(truncation_never_cuts_a_character_in_half),
        cmocka_unit_test(exit_codes_are_those_of_the_command_line),
        cmocka_unit_test(log_lines_reach_the_callback_or_nobody),
        cmocka_unit_test(checked_sizes_report_overflow_and_leave_the_result),
        cmocka_unit_test(the_instruction_set_of_this_machine_has_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
