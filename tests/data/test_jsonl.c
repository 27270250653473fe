/* The row reader: JSONL and JSON arrays, hostile files, file:line in every error. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/base/status.h"
#include "runtime/data/jsonl.h"

struct expected {
    const char *text;
    uint64_t line;
};

/* Read `text` from memory and compare every row. */
static void assert_rows(const char *text, size_t len, const struct expected *want, size_t count)
{
    struct ps_error err = {0};
    struct ps_jsonl *r;
    assert_int_equal(ps_jsonl_open_memory(&r, text, len, "m", &err), 0);
    struct ps_jsonl_row row;
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(ps_jsonl_next(r, &row, &err), 1);
        assert_int_equal(row.len, strlen(want[i].text));
        assert_memory_equal(row.text, want[i].text, row.len);
        assert_int_equal(row.line, want[i].line);
        assert_int_equal(row.index, i);
    }
    assert_int_equal(ps_jsonl_next(r, &row, &err), 0);
    assert_int_equal(ps_jsonl_next(r, &row, &err), 0);
    ps_jsonl_close(r);
}

#define ROWS(text, ...)                                                                            \
    do {                                                                                           \
        const struct expected want[] = {__VA_ARGS__};                                              \
        assert_rows(text, sizeof text - 1, want, sizeof want / sizeof *want);                      \
    } while (0)

static void assert_fails(const char *text, size_t len, int code, const char *file)
{
    struct ps_error err = {0};
    struct ps_jsonl *r;
    struct ps_jsonl_row row;
    assert_int_equal(ps_jsonl_open_memory(&r, text, len, "m", &err), 0);
    int ret;
    do {
        ret = ps_jsonl_next(r, &row, &err);
    } while (ret == 1);
    assert_int_equal(ret, code);
    assert_int_equal(err.code, code);
    assert_string_equal(err.file, file);
    assert_true(err.message[0] != 0);
    ps_jsonl_close(r);
}

static void reads_lines_with_crlf_bom_blanks_and_no_final_newline(void **state)
{
    (void)state;
    ROWS("{}\n{\"a\":1}\n", {"{}", 1}, {"{\"a\":1}", 2});
    ROWS("\xEF\xBB\xBF{}\r\n\r\n  \t\r\n{\"a\":1}\r\n{\"b\":2}", {"{}", 1}, {"{\"a\":1}", 4},
         {"{\"b\":2}", 5});
    ROWS("\n\n\n{}", {"{}", 4});
    ROWS("  {}  \n", {"{}  ", 1});
    ROWS("1\n\"x\"\nnull\n", {"1", 1}, {"\"x\"", 2}, {"null", 3});
}

static void empty_files_have_no_rows(void **state)
{
    (void)state;
    assert_rows("", 0, NULL, 0);
    assert_rows("\xEF\xBB\xBF", 3, NULL, 0);
    assert_rows(" \r\n\n\t", 5, NULL, 0);
    assert_rows("[]", 2, NULL, 0);
    assert_rows(" [ \n ] \n", 8, NULL, 0);
}

static void reads_array_elements_with_their_lines(void **state)
{
    (void)state;
    ROWS("[{},{}]", {"{}", 1}, {"{}", 1});
    ROWS("\xEF\xBB\xBF\n[\n  {\"a\": \"],}{[\\\"\\\\\"},\r\n  {\"b\":\n [1,\n{}]} \n]\n",
         {"{\"a\": \"],}{[\\\"\\\\\"}", 3}, {"{\"b\":\n [1,\n{}]}", 4});
    ROWS("[1, \"a\" ,[2]]", {"1", 1}, {"\"a\"", 1}, {"[2]", 1});
}

static void broken_arrays_are_refused_with_the_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *file;
    } bad[] = {
        {"[", "m:1"},     {"[\n{}", "m:2"},       {"[{}\n,\n]", "m:3"},    {"[{},,{}]", "m:1"},
        {"[,{}]", "m:1"}, {"[{}]\n{}", "m:2"},    {"[{}]]", "m:1"},        {"[\n\n\"a", "m:3"},
        {"[{}}]", "m:1"}, {"[{\"a\":[1}", "m:1"}, {"[{},\n{\"a\"", "m:2"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_fails(bad[i].text, strlen(bad[i].text), PS_EFORMAT, bad[i].file);
}

static void invalid_utf8_is_refused_with_the_line(void **state)
{
    (void)state;
    static const char *const bad[] = {"\xFF",
                                      "\xC0\x80",
                                      "\xC1\xBF",
                                      "\xE0\x80\x80",
                                      "\xED\xA0\x80",
                                      "\xF0\x80\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\xF4\x90\x80\x80",
                                      "\x80",
                                      "\xC3",
                                      "\xE2\x82",
                                      "\xF0\x9F\x98"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[64];
        int n = snprintf(text, sizeof text, "{}\n\n{\"a\":\"%s\"}\n", bad[i]);
        assert_fails(text, (size_t)n, PS_EDATA, "m:3");
        n = snprintf(text, sizeof text, "[{},\n{\"a\":\"%s\"}]", bad[i]);
        assert_fails(text, (size_t)n, PS_EDATA, "m:2");
        n = snprintf(text, sizeof text, "{}\n%s", bad[i]); /* cut off by the end of the file */
        assert_fails(text, (size_t)n, PS_EDATA, "m:2");
    }
    ROWS("\"\xC2\x80\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\"",
         {"\"\xC2\x80\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\"", 1});
}

/* A row of exactly `len` bytes, a string, between two small ones. */
static char *with_huge_row(size_t len, const char *before, const char *after, size_t *total)
{
    size_t b = strlen(before), a = strlen(after);
    char *text = malloc(b + len + a + 1);
    assert_non_null(text);
    memcpy(text, before, b);
    memset(text + b, 'x', len);
    text[b] = text[b + len - 1] = '"';
    memcpy(text + b + len, after, a + 1);
    *total = b + len + a;
    return text;
}

static void rows_of_16_mib_are_read_and_longer_ones_refused(void **state)
{
    (void)state;
    static const char *const around[][2] = {
        {"{}\n", "\r\n{}"}, {"{}\n", "\n{}\n"}, {"{}\n", ""}, {"[{},\n", ",{}]"}, {"[{},\n", "]"}};
    for (size_t i = 0; i < sizeof around / sizeof *around; i++) {
        size_t total;
        char *text = with_huge_row(PS_JSONL_ROW_BYTES_MAX, around[i][0], around[i][1], &total);
        struct ps_error err = {0};
        struct ps_jsonl *r;
        struct ps_jsonl_row row;
        assert_int_equal(ps_jsonl_open_memory(&r, text, total, "m", &err), 0);
        assert_int_equal(ps_jsonl_next(r, &row, &err), 1);
        assert_int_equal(ps_jsonl_next(r, &row, &err), 1);
        assert_int_equal(row.len, PS_JSONL_ROW_BYTES_MAX);
        assert_int_equal(row.line, 2);
        assert_int_equal(row.text[0], '"');
        assert_int_equal(row.text[row.len - 1], '"');
        assert_int_equal(ps_jsonl_next(r, &row, &err), strstr(around[i][1], "{}") ? 1 : 0);
        ps_jsonl_close(r);
        free(text);
        text = with_huge_row(PS_JSONL_ROW_BYTES_MAX + 1, around[i][0], around[i][1], &total);
        assert_fails(text, total, PS_EFORMAT, "m:2");
        free(text);
    }
}

static void files_and_memory_read_alike(void **state)
{
    (void)state;
    /* rows of many lengths around the buffer's first size */
    FILE *f = fopen("rows.jsonl", "wb");
    assert_non_null(f);
    for (int i = 0; i < 200; i++) {
        fputc('"', f);
        for (int k = 0; k < i * i * 7 % 9001; k++)
            fputc('a' + k % 26, f);
        fputs(i % 3 ? "\"\r\n" : "\"\n\n", f);
    }
    fclose(f);
    f = fopen("rows.jsonl", "rb");
    static char text[1 << 21];
    size_t len = fread(text, 1, sizeof text, f);
    fclose(f);
    struct ps_jsonl *a, *b;
    assert_int_equal(ps_jsonl_open(&a, "rows.jsonl", NULL), 0);
    assert_int_equal(ps_jsonl_open_memory(&b, text, len, "m", NULL), 0);
    for (int i = 0; i < 200; i++) {
        struct ps_jsonl_row x, y;
        assert_int_equal(ps_jsonl_next(a, &x, NULL), 1);
        assert_int_equal(ps_jsonl_next(b, &y, NULL), 1);
        assert_int_equal(x.len, i * i * 7 % 9001 + 2);
        assert_int_equal(x.len, y.len);
        assert_memory_equal(x.text, y.text, x.len);
        assert_int_equal(x.line, y.line);
    }
    struct ps_jsonl_row row;
    assert_int_equal(ps_jsonl_next(a, &row, NULL), 0);
    ps_jsonl_close(a);
    ps_jsonl_close(b);
    ps_jsonl_close(NULL);
}

static void missing_files_directories_and_fifos_are_errors(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_jsonl *r;
    assert_int_equal(ps_jsonl_open(&r, "absent.jsonl", &err), -ENOENT);
    assert_string_equal(err.file, "absent.jsonl");
    assert_int_equal(mkdir("dir", 0700), 0);
    assert_int_equal(ps_jsonl_open(&r, "dir", &err), PS_EFORMAT);
    assert_int_equal(mkfifo("fifo", 0600), 0);
    assert_int_equal(ps_jsonl_open(&r, "fifo", &err), PS_EFORMAT);
    assert_string_equal(err.file, "fifo");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_lines_with_crlf_bom_blanks_and_no_final_newline),
        cmocka_unit_test(empty_files_have_no_rows),
        cmocka_unit_test(reads_array_elements_with_their_lines),
        cmocka_unit_test(broken_arrays_are_refused_with_the_line),
        cmocka_unit_test(invalid_utf8_is_refused_with_the_line),
        cmocka_unit_test(rows_of_16_mib_are_read_and_longer_ones_refused),
        cmocka_unit_test(files_and_memory_read_alike),
        cmocka_unit_test(missing_files_directories_and_fifos_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
