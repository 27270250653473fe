/* Schedules as files: what is written is read back, what is broken is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "runtime/train/schedule_json.h"
#include "runtime/train/step.h"
#include "tests/helpers/random_schedule.h"

/* Memory that runs out at the n-th call. The sanitizers bring allocators of their own. */
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CAN_FAIL 1
void *__libc_malloc(size_t n);
void *__libc_realloc(void *p, size_t n);
void *__libc_calloc(size_t a, size_t b);
static int calls_left = -1;

static int out_of_memory(void)
{
    return calls_left >= 0 && calls_left-- == 0;
}

void *malloc(size_t n)
{
    return out_of_memory() ? NULL : __libc_malloc(n);
}

void *realloc(void *p, size_t n)
{
    return out_of_memory() ? NULL : __libc_realloc(p, n);
}

void *calloc(size_t a, size_t b)
{
    return out_of_memory() ? NULL : __libc_calloc(a, b);
}
#else
#define CAN_FAIL 0
static int calls_left = -1;
#endif

static void make(struct ps_schedule *s, enum ps_segment segment, uint64_t seed, uint32_t tasks_max)
{
    struct ps_error err = {0};
    random_schedule(s, ps_segment_name(segment), &seed, tasks_max);
    assert_int_equal(ps_schedule_derive(s, &err), 0);
}

static size_t next_access(const struct ps_schedule *s, const struct ps_task *t, bool write,
                          size_t from)
{
    while (from < t->access_count && s->access[t->access_begin + from].write != write)
        from++;
    return from;
}

/* Ranges: reads in order, then writes in order. */
static void assert_same_ranges(const struct ps_schedule *a, const struct ps_schedule *b, uint32_t i)
{
    const struct ps_task *x = &a->task[i], *y = &b->task[i];
    assert_int_equal(x->access_count, y->access_count);
    for (int write = 0; write < 2; write++)
        for (size_t k = next_access(a, x, write, 0), m = next_access(b, y, write, 0);
             k < x->access_count;
             k = next_access(a, x, write, k + 1), m = next_access(b, y, write, m + 1)) {
            const struct ps_access *r = &a->access[x->access_begin + k];
            const struct ps_access *q = &b->access[y->access_begin + m];
            assert_true(m < y->access_count);
            assert_int_equal(r->buffer, q->buffer);
            assert_int_equal(r->write, q->write);
            assert_int_equal(r->offset, q->offset);
            assert_int_equal(r->bytes, q->bytes);
        }
}

static void assert_same(const struct ps_schedule *a, const struct ps_schedule *b)
{
    assert_ptr_equal(a->name, b->name);
    assert_int_equal(a->buffer_count, b->buffer_count);
    for (uint32_t i = 0; i < a->buffer_count; i++) {
        assert_string_equal(a->buffer[i].name, b->buffer[i].name);
        assert_int_equal(a->buffer[i].tier, b->buffer[i].tier);
        assert_int_equal(a->buffer[i].bytes, b->buffer[i].bytes);
    }
    assert_int_equal(a->task_count, b->task_count);
    for (uint32_t i = 0; i < a->task_count; i++) {
        const struct ps_task *x = &a->task[i], *y = &b->task[i];
        assert_int_equal(x->id, y->id);
        assert_int_equal(x->kind, y->kind);
        assert_int_equal(x->lane, y->lane);
        assert_int_equal(x->unit, y->unit);
        assert_int_equal(x->micro, y->micro);
        assert_memory_equal(x->arg, y->arg, sizeof x->arg);
        assert_int_equal(x->flags, y->flags);
        assert_memory_equal(&x->flops, &y->flops, sizeof x->flops);
        assert_int_equal(x->bytes, y->bytes);
        assert_int_equal(x->dep_count, y->dep_count);
        for (uint32_t k = 0; k < x->dep_count; k++) {
            assert_int_equal(a->dep[x->dep_begin + k].task, b->dep[y->dep_begin + k].task);
            assert_int_equal(a->dep[x->dep_begin + k].distance, b->dep[y->dep_begin + k].distance);
        }
        assert_same_ranges(a, b, i);
    }
}

static void what_is_exported_is_imported_again(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct ps_error err = {0};
        struct ps_schedule s, back;
        size_t n = 0;
        make(&s, (enum ps_segment)(seed % PS_SEGMENT_COUNT), seed, 60);
        s.task[0].flops = 1.0 / 3 * 1e18;
        s.task[0].bytes = INT64_MAX;
        assert_int_equal(ps_schedule_export(&s, "one.json", &err), 0);
        if (ps_schedule_import_set(&back, 1, &n, "one.json", &err) != 0)
            fail_msg("seed %d: %s", (int)seed, err.message);
        assert_int_equal(n, 1);
        assert_same(&s, &back);
        /* and the text is the same when written once more */
        char *first, *second;
        size_t first_len, second_len;
        assert_int_equal(ps_schedule_export(&back, "two.json", &err), 0);
        assert_int_equal(ps_file_read("one.json", 1 << 20, &first, &first_len, &err), 0);
        assert_int_equal(ps_file_read("two.json", 1 << 20, &second, &second_len, &err), 0);
        assert_int_equal(first_len, second_len);
        assert_memory_equal(first, second, first_len);
        free(first);
        free(second);
        ps_schedule_fini(&s);
        ps_schedule_fini(&back);
    }
}

static void a_set_keeps_its_segments(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_schedule s[PS_SEGMENT_COUNT], back[PS_SEGMENT_COUNT];
    const struct ps_schedule *set[PS_SEGMENT_COUNT];
    size_t n = 0;
    for (int i = 0; i < PS_SEGMENT_COUNT; i++) {
        make(&s[i], (enum ps_segment)i, (uint64_t)i + 77, 20);
        set[i] = &s[i];
    }
    assert_int_equal(ps_schedule_export_set(set, PS_SEGMENT_COUNT, "set.json", &err), 0);
    assert_int_equal(ps_schedule_import_set(back, PS_SEGMENT_COUNT, &n, "set.json", &err), 0);
    assert_int_equal(n, PS_SEGMENT_COUNT);
    for (int i = 0; i < PS_SEGMENT_COUNT; i++) {
        assert_same(&s[i], &back[i]);
        ps_schedule_fini(&s[i]);
        ps_schedule_fini(&back[i]);
    }
    n = 99;
    assert_int_equal(ps_schedule_import_set(back, PS_SEGMENT_COUNT - 1, &n, "set.json", &err),
                     PS_EFORMAT);
    assert_string_equal(err.field, "segments");
    assert_int_equal(n, 99);
}

static void an_empty_schedule_goes_through(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_schedule s, back;
    size_t n = 0;
    ps_schedule_init(&s, ps_segment_name(PS_SEGMENT_UPDATE));
    assert_int_equal(ps_schedule_export(&s, "empty.json", &err), 0);
    assert_int_equal(ps_schedule_import_set(&back, 1, &n, "empty.json", &err), 0);
    assert_int_equal(back.task_count, 0);
    ps_schedule_fini(&back);
}

static void numbers_that_json_cannot_hold_are_not_written(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_schedule s;
    make(&s, PS_SEGMENT_TRAIN, 5, 5);
    s.task[0].bytes = (uint64_t)INT64_MAX + 1;
    assert_int_equal(ps_schedule_export(&s, "large.json", &err), PS_EUSAGE);
    ps_schedule_fini(&s);
}

static void a_directory_that_is_not_there_is_named(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_schedule s;
    size_t n;
    make(&s, PS_SEGMENT_TRAIN, 5, 5);
    assert_int_equal(ps_schedule_export(&s, "absent/x.json", &err), -ENOENT);
    assert_non_null(strstr(err.file, "absent"));
    ps_schedule_fini(&s);
    assert_int_equal(ps_schedule_import_set(&s, 1, &n, "absent.json", &err), -ENOENT);
    assert_string_equal(err.file, "absent.json");
}

/* ---- hostile files ---- */

#define BUFFERS "\"buffers\":[{\"name\":\"b\",\"tier\":\"host\",\"bytes\":8}]"
#define HEAD "{\"version\":1,\"name\":\"train\"," BUFFERS ",\"tasks\":["
#define TASK0 "{\"id\":0,\"lane\":\"compute\",\"kind\":\"embed\",\"unit\":-1"
#define WITH(members) HEAD TASK0 "," members "}]}"

static const struct {
    const char *text;
    int want;
    const char *field, *message;
} broken_files[] = {
    {HEAD "]}", 0, NULL, NULL},
    {HEAD TASK0 "}]}", 0, NULL, NULL},
    {"{\"version\":1,\"segments\":[{\"name\":\"eval\",\"buffers\":[],\"tasks\":[]}]}", 0, NULL,
     NULL},
    {"", PS_EFORMAT, "", "not valid JSON"},
    {"[]", PS_EFORMAT, "", "is an object"},
    {"{}", PS_EFORMAT, "version", "missing"},
    {"{\"version\":2}", PS_EFORMAT, "version", "between 1 and 1"},
    {"{\"version\":1.0}", PS_EFORMAT, "version", "integer"},
    {"{\"version\":1}", PS_EFORMAT, "name", "missing"},
    {"{\"version\":1,\"x\":1}", PS_EFORMAT, "", "the file has an unknown member \"x\""},
    {"{\"version\":1,\"segments\":7}", PS_EFORMAT, "segments", "array"},
    {"{\"version\":1,\"segments\":[]}", PS_EFORMAT, "segments", "0 segments"},
    {"{\"version\":1,\"segments\":[7]}", PS_EFORMAT, "segments[0]", "object"},
    {"{\"version\":1,\"segments\":[1,2,3,4,5]}", PS_EFORMAT, "segments", "5 segments"},
    {"{\"version\":1,\"segments\":[{\"name\":\"train\",\"buffers\":[],\"tasks\":[]},"
     "{\"name\":\"train\",\"buffers\":[],\"tasks\":[]}]}",
     PS_EFORMAT, "segments[1].name", "twice"},
    {"{\"version\":1,\"segments\":[{\"name\":\"train\",\"buffers\":[],\"tasks\":[]},"
     "{\"name\":\"eval\",\"buffers\":[],\"tasks\":[3]}]}",
     PS_EFORMAT, "segments[1].tasks[0]", "object"},
    {"{\"version\":1,\"segments\":[{\"name\":\"train\",\"version\":1,\"buffers\":[],\"tasks\":[]}]"
     "}",
     PS_EFORMAT, "segments[0]", "unknown member \"version\""},
    {"{\"version\":1,\"name\":\"tr\\u0001in\",\"buffers\":[],\"tasks\":[]}", PS_EFORMAT, "name",
     "no segment: \"tr?in\""},
    {"{\"version\":1,\"name\":3,\"buffers\":[],\"tasks\":[]}", PS_EFORMAT, "name", "string"},
    {"{\"version\":1,\"name\":\"train\",\"tasks\":[]}", PS_EFORMAT, "buffers", "missing"},
    {"{\"version\":1,\"name\":\"train\",\"buffers\":[]}", PS_EFORMAT, "tasks", "missing"},
    {"{\"version\":1,\"name\":\"train\",\"buffers\":{},\"tasks\":[]}", PS_EFORMAT, "buffers",
     "array"},
    {"{\"version\":1,\"name\":\"train\",\"buffers\":[0],\"tasks\":[]}", PS_EFORMAT, "buffers[0]",
     "object"},
    {"{\"version\":1,\"name\":\"train\",\"buffers\":[{\"name\":\"b\",\"tier\":\"tape\","
     "\"bytes\":1}],\"tasks\":[]}",
     PS_EFORMAT, "buffers[0].tier", "device, host or disk"},
    {"{\"version\":1,\"name\":\"train\",\"buffers\":[{\"name\":\"b\",\"tier\":\"host\"}],"
     "\"tasks\":[]}",
     PS_EFORMAT, "buffers[0].bytes", "missing"},
    {"{\"version\":1,\"name\":\"train\",\"buffers\":[{\"name\":\"b\",\"tier\":\"host\","
     "\"bytes\":-1}],\"tasks\":[]}",
     PS_EFORMAT, "buffers[0].bytes", "between"},
    {"{\"version\":1,\"name\":\"train\",\"buffers\":[{\"name\":"
     "\"01234567890123456789012345678901\",\"tier\":\"host\",\"bytes\":1}],\"tasks\":[]}",
     PS_EFORMAT, "buffers[0].name", "31 bytes"},
    {HEAD "{}]}", PS_EFORMAT, "tasks[0].id", "missing"},
    {HEAD "{\"id\":1,\"lane\":\"compute\",\"kind\":\"embed\",\"unit\":0}]}", PS_EFORMAT,
     "tasks[0].id", "must be its place, 0"},
    {HEAD "{\"id\":0,\"lane\":\"gpu\",\"kind\":\"embed\",\"unit\":0}]}", PS_EFORMAT,
     "tasks[0].lane", "no lane: \"gpu\""},
    {HEAD "{\"id\":0,\"lane\":0,\"kind\":\"embed\",\"unit\":0}]}", PS_EFORMAT, "tasks[0].lane",
     "string"},
    {HEAD "{\"id\":0,\"lane\":\"compute\",\"kind\":\"dance\",\"unit\":0}]}", PS_EFORMAT,
     "tasks[0].kind", "dance"},
    {HEAD "{\"id\":0,\"lane\":\"disk_weights\",\"kind\":\"embed\",\"unit\":0}]}", PS_EFORMAT,
     "tasks[0].lane", "does not run"},
    {HEAD "{\"id\":0,\"lane\":\"h2d\",\"kind\":\"read_weights\",\"unit\":0}]}", PS_EFORMAT,
     "tasks[0].lane", "does not run"},
    {HEAD "{\"id\":0,\"lane\":\"compute\",\"kind\":\"embed\"}]}", PS_EFORMAT, "tasks[0].unit",
     "missing"},
    {HEAD "{\"id\":0,\"lane\":\"compute\",\"kind\":\"embed\",\"unit\":-4}]}", PS_EFORMAT,
     "tasks[0].unit", "between"},
    {HEAD "{\"id\":0,\"lane\":\"compute\",\"kind\":\"embed\",\"unit\":2147483648}]}", PS_EFORMAT,
     "tasks[0].unit", "between"},
    {WITH("\"unit\":0"), PS_EFORMAT, "", "duplicate"},
    {WITH("\"micro\":-2"), PS_EFORMAT, "tasks[0].micro", "between"},
    {WITH("\"colour\":1"), PS_EFORMAT, "tasks[0]", "unknown member \"colour\""},
    {WITH("\"args\":[]"), PS_EFORMAT, "tasks[0].args", "object"},
    {WITH("\"args\":{\"seat\":1}"), PS_EFORMAT, "tasks[0].args", "seat"},
    {WITH("\"args\":{\"slot\":-2}"), PS_EFORMAT, "tasks[0].args", "between"},
    {WITH("\"args\":{\"slot\":true}"), PS_EFORMAT, "tasks[0].args", "integer"},
    {WITH("\"deps\":{}"), PS_EFORMAT, "tasks[0].deps", "array"},
    {WITH("\"deps\":[1]"), PS_EFORMAT, "tasks[0].deps[0]", "2 integers"},
    {WITH("\"deps\":[[0,1,2]]"), PS_EFORMAT, "tasks[0].deps[0]", "2 integers"},
    {WITH("\"deps\":[[0,1],[1,1]]"), PS_EFORMAT, "tasks[0].deps[1]", "between 0 and 0"},
    {WITH("\"deps\":[[0,2]]"), PS_EFORMAT, "tasks[0].deps[0]", "between 0 and 1"},
    {WITH("\"deps\":[[0,\"1\"]]"), PS_EFORMAT, "tasks[0].deps[0]", "integer"},
    {WITH("\"deps\":[[0,0]]"), PS_EUSAGE, "", "depends on itself"},
    {WITH("\"deps\":[[0,1]]"), 0, NULL, NULL},
    {WITH("\"reads\":[[0,0]]"), PS_EFORMAT, "tasks[0].reads[0]", "3 integers"},
    {WITH("\"reads\":[[1,0,1]]"), PS_EFORMAT, "tasks[0].reads[0]", "between 0 and 0"},
    {WITH("\"writes\":[[0,0,0]]"), PS_EFORMAT, "tasks[0].writes", "0 bytes"},
    {WITH("\"writes\":[[0,-1,1]]"), PS_EFORMAT, "tasks[0].writes[0]", "between"},
    {WITH("\"writes\":[[0,0,9223372036854775808]]"), PS_EFORMAT, "", "not valid JSON"},
    {WITH("\"writes\":[[0,1,8]]"), PS_EUSAGE, "", "outside buffer b of 8 bytes"},
    {WITH("\"writes\":[[0,9223372036854775807,9223372036854775807]]"), PS_EUSAGE, "", "outside"},
    {WITH("\"writes\":[[0,0,8]]"), 0, NULL, NULL},
    {WITH("\"bytes\":-1"), PS_EFORMAT, "tasks[0].bytes", "between"},
    {WITH("\"bytes\":null"), PS_EFORMAT, "tasks[0].bytes", "integer"},
    {WITH("\"flops\":-1"), PS_EFORMAT, "tasks[0].flops", "negative"},
    {WITH("\"flops\":1e999"), PS_EFORMAT, "", "not valid JSON"},
    {WITH("\"flops\":\"1\""), PS_EFORMAT, "tasks[0].flops", "number"},
    {WITH("\"trails\":1"), PS_EFORMAT, "tasks[0].trails", "true or false"},
    {HEAD TASK0 ",\"writes\":[[0,0,8]]},{\"id\":1,\"lane\":\"h2d\",\"kind\":\"copy_batch\","
                "\"unit\":0,\"reads\":[[0,7,1]]}]}",
     PS_EUSAGE, "", "both touch bytes [7, 8) of buffer b"},
};

static void broken_files_are_named_with_their_field(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof broken_files / sizeof broken_files[0]; i++) {
        const char *text = broken_files[i].text;
        struct ps_error err = {0};
        struct ps_schedule s[4];
        size_t n = 99;
        int ret = ps_schedule_parse_set(s, 4, &n, text, strlen(text), "plan.json", &err);
        if (ret != broken_files[i].want)
            fail_msg("%s: %d instead of %d: %s", text, ret, broken_files[i].want, err.message);
        if (ret == 0) {
            assert_int_equal(n, 1);
            ps_schedule_fini(&s[0]);
            continue;
        }
        assert_int_equal(n, 99);
        assert_int_equal(err.code, ret);
        assert_string_equal(err.file, "plan.json");
        if (!strstr(err.message, broken_files[i].message))
            fail_msg("%s: \"%s\" does not say \"%s\"", text, err.message, broken_files[i].message);
        if (strcmp(err.field, broken_files[i].field) != 0)
            fail_msg("%s: field \"%s\" instead of \"%s\"", text, err.field, broken_files[i].field);
    }
}

/* Any one byte wrong or missing: refused or a schedule that validates. */
static void damaged_files_are_refused_or_valid(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_schedule s, back[2];
    char *text;
    size_t len, n, refused = 0;
    make(&s, PS_SEGMENT_TRAIN, 3, 6);
    assert_int_equal(ps_schedule_export(&s, "whole.json", &err), 0);
    ps_schedule_fini(&s);
    assert_int_equal(ps_file_read("whole.json", 1 << 20, &text, &len, &err), 0);
    assert_in_range(len, 500, 5000);
    for (size_t at = 0; at < len; at++)
        for (int what = 0; what < 4; what++) {
            const char was = text[at];
            static const char damage[] = {0, '9', '-'};
            text[at] = what == 3 ? (char)(was ^ 1) : damage[what];
            int ret = ps_schedule_parse_set(back, 2, &n, text, what ? len : at, "damaged", &err);
            text[at] = was;
            if (ret == 0) {
                assert_int_equal(n, 1);
                assert_int_equal(ps_schedule_validate(&back[0], &err), 0);
                ps_schedule_fini(&back[0]);
            } else {
                assert_true(ret == PS_EFORMAT || ret == PS_EUSAGE);
                assert_true(err.message[0] != '\0');
                refused++;
            }
        }
    assert_true(refused > len);
    free(text);
}

static void the_nth_failed_allocation_is_reported(void **state)
{
    (void)state;
    if (!CAN_FAIL) {
        print_message("skip: the sanitizer's allocator cannot be made to fail here\n");
        skip();
    }
    struct ps_error err = {0};
    struct ps_schedule s, back;
    make(&s, PS_SEGMENT_TRAIN, 8, 60);
    int failures = 0;
    bool spent = true; /* the n-th call was reached */
    for (int n = 0; spent; n++) {
        calls_left = n;
        int ret = ps_schedule_export(&s, "memory.json", &err);
        spent = calls_left < 0;
        calls_left = -1;
        failures += ret == -ENOMEM;
        if (ret) {
            assert_int_equal(ret, -ENOMEM);
            continue;
        }
        /* what is not needed may fail; what is written is whole */
        size_t count;
        assert_int_equal(ps_schedule_import_set(&back, 1, &count, "memory.json", &err), 0);
        assert_same(&s, &back);
        ps_schedule_fini(&back);
    }
    assert_true(failures >= 2);
    char *text;
    size_t len;
    assert_int_equal(ps_file_read("memory.json", 1 << 20, &text, &len, &err), 0);
    failures = 0;
    spent = true;
    for (int n = 0; spent; n++) {
        size_t count = 0;
        calls_left = n;
        int ret = ps_schedule_parse_set(&back, 1, &count, text, len, "memory", &err);
        spent = calls_left < 0;
        calls_left = -1;
        if (!ret) {
            /* jansson drops characters of long numbers when memory runs out inside of them: the
             * schedule is valid, but not always the same */
            assert_int_equal(ps_schedule_validate(&back, &err), 0);
            if (!spent)
                assert_same(&s, &back);
            ps_schedule_fini(&back);
        } else if (ret != PS_EFORMAT || !strstr(err.message, "not valid JSON")) {
            /* nor does it always tell a lack of memory from a syntax error */
            assert_int_equal(ret, -ENOMEM);
            failures++;
        }
    }
    assert_true(failures >= 10);
    free(text);
    ps_schedule_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_exported_is_imported_again),
        cmocka_unit_test(a_set_keeps_its_segments),
        cmocka_unit_test(an_empty_schedule_goes_through),
        cmocka_unit_test(numbers_that_json_cannot_hold_are_not_written),
        cmocka_unit_test(a_directory_that_is_not_there_is_named),
        cmocka_unit_test(broken_files_are_named_with_their_field),
        cmocka_unit_test(damaged_files_are_refused_or_valid),
        cmocka_unit_test(the_nth_failed_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
