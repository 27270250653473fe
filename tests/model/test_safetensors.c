/* safetensors: every rule broken by a file of its own, truncation, flipped bytes, round trips,
 * sets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/file.h"
#include "runtime/model/safetensors.h"

#define BAD "bad.safetensors"
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void put_prefix(unsigned char *p, uint64_t n)
{
    for (int i = 0; i < 8; i++)
        p[i] = (unsigned char)(n >> (8 * i));
}

/* Not atomic and not synced: hundreds of small files. */
static void write_bytes(const char *path, const void *data, size_t len)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

/* A file with this header and data_len bytes of data, 0, 1, 2, ... */
static void write_raw(const char *path, const char *header, size_t header_len, size_t data_len)
{
    unsigned char *buf = malloc(8 + header_len + data_len + 1);
    assert_non_null(buf);
    put_prefix(buf, header_len);
    memcpy(buf + 8, header, header_len);
    for (size_t i = 0; i < data_len; i++)
        buf[8 + header_len + i] = (unsigned char)i;
    write_bytes(path, buf, 8 + header_len + data_len);
    free(buf);
}

static int open_file(const char *path, struct ps_error *err)
{
    struct ps_st_file *f = NULL;
    memset(err, 0, sizeof *err);
    int ret = ps_st_open(&f, path, err);
    if (ret)
        assert_null(f);
    ps_st_close(f);
    return ret;
}

#define T(name, dtype, shape, off)                                                                 \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" off "]}"

struct bad {
    const char *header;
    size_t data_len;
    const char *message; /* part of it */
    const char *field;   /* the tensor, or "" */
};

static const struct bad bad_headers[] = {
    /* rule 2: first byte, padding, UTF-8 */
    {" {}", 0, "must begin with", ""},
    {"[]", 0, "must begin with", ""},
    {"\xef\xbb\xbf{}", 0, "must begin with", ""},
    {"{}\n", 0, "only spaces", ""},
    {"{} x", 0, "only spaces", ""},
    {"{}{}", 0, "only spaces", ""},
    {"{\"a\xff\":1}", 0, "UTF-8", ""},
    {"{\"a\xc0\xaf\":1}", 0, "UTF-8", ""},
    {"{\"a\xe0\x80\xaf\":1}", 0, "UTF-8", ""},
    {"{\"a\xed\xa0\x80\":1}", 0, "UTF-8", ""},
    {"{\"a\xf4\x90\x80\x80\":1}", 0, "UTF-8", ""},
    {"{\"a\xf0\x80\x80\x80\":1}", 0, "UTF-8", ""},
    {"{\"a\xe2\x82\":1}", 0, "UTF-8", ""},
    {"{\"a\\u0000b\":1}", 0, "NUL", ""},
    {"{\"a\\ud800\":1}", 0, "bad escape", ""},
    {"{\"a\\udc00\":1}", 0, "bad escape", ""},
    {"{\"a\\ud800\\u0041\":1}", 0, "bad escape", ""},
    {"{\"a\\x41\":1}", 0, "bad escape", ""},
    {"{\"a\\u00g1\":1}", 0, "bad escape", ""},
    {"{\"a\tb\":1}", 0, "control character", ""},
    /* rule 3: strict JSON */
    {"{\"a\":", 0, "must be an object", "a"},
    {"{\"a\"", 0, "ends where", "a"},
    {"{\"a", 0, "inside a string", ""},
    {"{\"a\\", 0, "bad escape", ""},
    {"{,}", 0, "expected a string", ""},
    {"{" T("a", "U8", "1", "0,1") ",}", 1, "expected a string", ""},
    {"{" T("a", "U8", "1", "0,1") " " T("b", "U8", "1", "1,2") "}", 2, "expected \",\"", ""},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,],\"data_offsets\":[0,1]}}", 1, "plain decimal", "a"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[[[[[[[[[1]]]]]]]]],\"data_offsets\":[0,1]}}", 1,
     "plain decimal", "a"},
    {"{\"a\":[]}", 0, "must be an object", "a"},
    {"{\"a\":null}", 0, "must be an object", "a"},
    {"{'a':1}", 0, "expected a string", ""},
    {"{\"a\"/**/:1}", 0, "expected \":\"", "a"},
    /* rule 4: duplicates at every level, after unescaping */
    {"{" T("a", "U8", "1", "0,1") "," T("a", "U8", "1", "0,1") "}", 1, "appears twice", "a"},
    {"{" T("a", "U8", "1", "0,1") "," T("\\u0061", "U8", "1", "1,2") "}", 2, "appears twice", "a"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "\"dtype\" appears twice", "a"},
    {"{\"a\":{\"shape\":[1],\"dtype\":\"U8\",\"sh\\u0061pe\":[1],\"data_offsets\":[0,1]}}", 1,
     "\"shape\" appears twice", "a"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ appears twice", ""},
    {"{\"__metadata__\":{\"k\":\"1\",\"\\u006b\":\"2\"}}", 0, "\"k\" appears twice", ""},
    /* rule 5: metadata is string to string */
    {"{\"__metadata__\":{\"k\":1}}", 0, "\"k\" must be a string", ""},
    {"{\"__metadata__\":{\"k\":null}}", 0, "\"k\" must be a string", ""},
    {"{\"__metadata__\":{\"k\":{\"l\":\"m\"}}}", 0, "\"k\" must be a string", ""},
    {"{\"__metadata__\":[]}", 0, "expected \"{\"", ""},
    /* rule 6: fields and types */
    {"{\"a\":{}}", 0, "\"dtype\" is missing", "a"},
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}", 0, "\"shape\" is missing", "a"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0, "\"data_offsets\" is missing", "a"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"extra\":1}}", 0,
     "unknown field \"extra\"", "a"},
    {"{" T("a", "U9", "1", "0,1") "}", 1, "unknown dtype \"U9\"", "a"},
    {"{" T("a", "f32", "1", "0,4") "}", 4, "unknown dtype \"f32\"", "a"},
    {"{\"a\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype must be a string",
     "a"},
    /* rule 7: integers and rank */
    {"{" T("a", "U8", "-1", "0,1") "}", 1, "plain decimal", "a"},
    {"{" T("a", "U8", "-0", "0,0") "}", 0, "plain decimal", "a"},
    {"{" T("a", "U8", "+1", "0,1") "}", 1, "plain decimal", "a"},
    {"{" T("a", "U8", "1.0", "0,1") "}", 1, "plain decimal", "a"},
    {"{" T("a", "U8", "1e0", "0,1") "}", 1, "plain decimal", "a"},
    {"{" T("a", "U8", "01", "0,1") "}", 1, "plain decimal", "a"},
    {"{" T("a", "U8", "\\\"1\\\"", "0,1") "}", 1, "plain decimal", "a"},
    {"{" T("a", "U8", "true", "0,1") "}", 1, "plain decimal", "a"},
    {"{" T("a", "U8", "9007199254740993", "0,1") "}", 1, "above 2^53", "a"},
    {"{" T("a", "U8", "18446744073709551617", "0,1") "}", 1, "above 2^53", "a"},
    {"{" T("a", "U8", "1", "0,99999999999999999999999") "}", 1, "above 2^53", "a"},
    {"{" T("a", "U8", "1,1,1,1,1,1,1,1,1", "0,1") "}", 1, "more than 8", "a"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1, "array of integers", "a"},
    {"{" T("a", "U8", "1", "0") "}", 1, "two integers", "a"},
    {"{" T("a", "U8", "1", "0,1,1") "}", 1, "more than 2", "a"},
    {"{" T("a", "U8", "1", "") "}", 1, "two integers", "a"},
    {"{" T("a", "U8", "1", "0.0,1") "}", 1, "plain decimal", "a"},
    /* rule 8: products that wrap, also to zero or to the right size */
    {"{" T("a", "U8", "4294967296,4294967296", "0,0") "}", 0, "overflows", "a"},
    {"{" T("a", "U8", "4194305,4194305,211106198978564", "0,4") "}", 4, "overflows", "a"},
    {"{" T("a", "F64", "2305843009213693952", "0,0") "}", 0, "above 2^53", "a"},
    {"{" T("a", "F64", "4503599627370496,512", "0,0") "}", 0, "overflows", "a"},
    {"{" T("a", "F32", "4503599627370496,1024", "0,0") "}", 0, "overflows", "a"},
    {"{" T("a", "U8", "4503599627370496,4503599627370496,0", "0,0") "}", 0, "overflows", "a"},
    /* rule 9: offsets, holes, overlap, polyglot */
    {"{" T("a", "U8", "2", "2,0") "}", 2, "end before they begin", "a"},
    {"{" T("a", "U8", "4", "0,4") "}", 3, "but the file has 3 bytes", "a"},
    {"{" T("a", "U8", "2", "0,3") "}", 3, "span 3 bytes", "a"},
    {"{" T("a", "F32", "2", "0,4") "}", 4, "need 8", "a"},
    {"{" T("a", "U8", "", "0,0") "}", 0, "need 1", "a"},
    {"{" T("a", "U8", "2", "1,3") "}", 3, "belong to no tensor", "a"},
    {"{" T("a", "U8", "2", "0,2") "," T("b", "U8", "2", "3,5") "}", 5, "belong to no tensor", "b"},
    {"{" T("a", "U8", "2", "0,2") "," T("b", "U8", "2", "1,3") "}", 3, "to another tensor", "b"},
    {"{" T("a", "U8", "2", "0,2") "," T("b", "U8", "2", "0,2") "}", 2, "to another tensor", "b"},
    {"{" T("a", "U8", "2", "0,2") "}", 3, "after the last tensor", ""},
    {"{}", 1, "after the last tensor", ""},
    {"{" T("a", "U8", "2", "0,2") "," T("z", "U8", "0", "1,1") "}", 2, "to another tensor", "z"},
    {"{" T("a", "U8", "2", "0,2") "," T("z", "U8", "0", "3,3") "}", 2, "but the file has", "z"},
    {"{" T("a", "U8", "0", "0,1") "}", 1, "need 0", "a"},
    /* rule 11: names */
    {"{" T("", "U8", "1", "0,1") "}", 1, "empty name", ""},
    {"{" T("a\\nb", "U8", "1", "0,1") "}", 1, "control character in the name", "a?b"},
    {"{" T("a\x7f", "U8", "1", "0,1") "}", 1, "control character in the name", "a?"},
};

static void every_broken_rule_has_a_message_with_file_and_tensor(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(bad_headers); i++) {
        const struct bad *b = &bad_headers[i];
        struct ps_error err;
        write_raw(BAD, b->header, strlen(b->header), b->data_len);
        int ret = open_file(BAD, &err);
        if (ret != PS_EFORMAT || !strstr(err.message, b->message) ||
            strcmp(err.field, b->field) != 0 || strcmp(err.file, BAD) != 0)
            fail_msg("%s: %d \"%s\" field \"%s\" file \"%s\", wanted \"%s\" of \"%s\"", b->header,
                     ret, err.message, err.field, err.file, b->message, b->field);
        assert_true(!b->field[0] || strstr(err.message, b->field));
    }
}

static void sizes_of_prefix_and_header_are_checked(void **state)
{
    (void)state;
    struct ps_error err;
    unsigned char buf[64] = {0};
    static const struct {
        size_t file;
        uint64_t n;
        const char *message;
    } t[] = {
        {0, 0, "less than the 8"},
        {7, 0, "less than the 8"},
        {8, 0, "between 2"},
        {9, 1, "between 2"},
        {10, 3, "only 10"},
        {10, 100000000, "only 10"},
        {10, 100000001, "between 2"},
        {10, UINT64_MAX, "between 2"},
        {10, UINT64_MAX - 7, "between 2"},
    };
    for (size_t i = 0; i < COUNT(t); i++) {
        memcpy(buf + 8, "{}", 2);
        put_prefix(buf, t[i].n);
        write_bytes(BAD, buf, t[i].file);
        assert_int_equal(open_file(BAD, &err), PS_EFORMAT);
        assert_non_null(strstr(err.message, t[i].message));
        assert_string_equal(err.file, BAD);
    }
    /* a sparse file may have a header of 100 MB, not a byte more */
    put_prefix(buf, 100000001);
    write_bytes(BAD, buf, 10);
    assert_int_equal(truncate(BAD, 200000000), 0);
    assert_int_equal(open_file(BAD, &err), PS_EFORMAT);
    assert_non_null(strstr(err.message, "between 2"));
}

static void types_below_a_byte_are_refused_as_unsupported(void **state)
{
    (void)state;
    struct ps_error err;
    static const char *const names[] = {"F4", "F6_E2M3", "F6_E3M2"};
    for (size_t i = 0; i < COUNT(names); i++) {
        char header[200];
        int n = snprintf(header, sizeof header,
                         "{\"a.w\":{\"dtype\":\"%s\",\"shape\":[8],\"data_offsets\":[0,%d]}}",
                         names[i], i ? 6 : 4);
        write_raw(BAD, header, (size_t)n, i ? 6 : 4);
        assert_int_equal(open_file(BAD, &err), PS_EUNSUPPORTED);
        assert_string_equal(err.field, "a.w");
        assert_non_null(strstr(err.message, names[i]));
    }
}

static void names_end_at_1024_bytes_and_raw_nul_is_refused(void **state)
{
    (void)state;
    struct ps_error err;
    char header[2000];
    for (int len = 1024; len <= 1025; len++) {
        int n =
            snprintf(header, sizeof header,
                     "{\"%0*d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", len, 7);
        write_raw(BAD, header, (size_t)n, 1);
        assert_int_equal(open_file(BAD, &err), len == 1024 ? 0 : PS_EFORMAT);
    }
    assert_non_null(strstr(err.message, "longer than 1024"));
    write_raw(BAD, "{\"a\0b\":1}", 9, 0);
    assert_int_equal(open_file(BAD, &err), PS_EFORMAT);
    write_raw(BAD, "{}\0", 3, 0);
    assert_int_equal(open_file(BAD, &err), PS_EFORMAT);
}

static void more_than_a_million_tensors_are_refused(void **state)
{
    (void)state;
    size_t cap = (size_t)64 << 20, n = 1;
    char *header = malloc(cap);
    assert_non_null(header);
    header[0] = '{';
    for (int i = 0; i <= 1000000; i++)
        n += (size_t)snprintf(header + n, cap - n,
                              "%s\"%x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                              i ? "," : "", i);
    header[n++] = '}';
    write_raw(BAD, header, n, 0);
    free(header);
    struct ps_error err;
    assert_int_equal(open_file(BAD, &err), PS_EFORMAT);
    assert_non_null(strstr(err.message, "more than 1000000"));
    unlink(BAD);
}

static void what_is_no_regular_file_is_refused(void **state)
{
    (void)state;
    struct ps_error err;
    assert_int_equal(mkfifo("fifo.safetensors", 0666), 0);
    assert_int_equal(open_file("fifo.safetensors", &err), PS_EFORMAT);
    assert_string_equal(err.file, "fifo.safetensors");
    assert_int_equal(mkdir("dir.safetensors", 0777), 0);
    assert_int_equal(open_file("dir.safetensors", &err), PS_EFORMAT);
    assert_int_equal(open_file("absent.safetensors", &err), -ENOENT);
    assert_string_equal(err.file, "absent.safetensors");
}

static const char good_header[] =
    "{ \"__metadata__\" : {\"format\":\"pt\",\"k\":\"v\\u00e9\"},\n" T(
        "b\\\"", "I16", "1,1", "4,6") "," T("a", "BF16", "2",
                                            "0,4") "," T("none", "F32", "0,7",
                                                         "6,6") "," T("scalar", "BOOL", "",
                                                                      "6,7") "}   ";

static void valid_headers_of_every_form_are_read(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_st_file *f;
    write_raw("good.safetensors", good_header, strlen(good_header), 7);
    assert_int_equal(symlink("good.safetensors", "link.safetensors"), 0);
    assert_int_equal(ps_st_open(&f, "link.safetensors", &err), 0);
    assert_int_equal(ps_st_count(f), 4);
    assert_string_equal(ps_st_path(f), "link.safetensors");
    assert_string_equal(ps_st_metadata(f, "format"), "pt");
    assert_string_equal(ps_st_metadata(f, "k"), "v\xc3\xa9");
    assert_null(ps_st_metadata(f, "absent"));
    assert_string_equal(ps_st_at(f, 0)->name, "a");
    assert_string_equal(ps_st_at(f, 1)->name, "b\"");
    assert_string_equal(ps_st_at(f, 2)->name, "none");
    assert_string_equal(ps_st_at(f, 3)->name, "scalar");
    const struct ps_st_tensor *b = ps_st_find(f, "b\"");
    assert_ptr_equal(b, ps_st_at(f, 1));
    assert_int_equal(b->dtype, -1);
    assert_string_equal(b->dtype_text, "I16");
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->offset, 8 + strlen(good_header) + 4);
    assert_int_equal(ps_st_at(f, 2)->elements, 0);
    assert_int_equal(ps_st_at(f, 3)->elements, 1);
    assert_null(ps_st_find(f, "c"));
    unsigned char data[4] = {0xcc, 0xcc, 0xcc, 0xcc};
    assert_int_equal(ps_st_read(f, b, 1, 1, data, &err), 0);
    assert_int_equal(data[0], 5);
    assert_int_equal(data[1], 0xcc);
    assert_int_equal(ps_st_read_as(f, b, PS_DTYPE_F32, data, &err), PS_EUNSUPPORTED);
    assert_string_equal(err.field, "b\"");
    assert_int_equal(ps_st_check_unchanged(f, &err), 0);
    ps_st_close(f);
    ps_st_close(NULL);
    write_raw("empty.safetensors", "{}", 2, 0);
    assert_int_equal(open_file("empty.safetensors", &err), 0);
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    struct ps_error err;
    size_t header_len = strlen(good_header), total = 8 + header_len + 7;
    unsigned char buf[1024];
    assert_true(total <= sizeof buf);
    put_prefix(buf, header_len);
    memcpy(buf + 8, good_header, header_len);
    memset(buf + 8 + header_len, 0, 7);
    for (size_t n = 0; n < total; n++) {
        write_bytes(BAD, buf, n);
        assert_int_equal(open_file(BAD, &err), PS_EFORMAT);
        assert_string_equal(err.file, BAD);
        assert_true(err.message[0]);
    }
    write_bytes(BAD, buf, total);
    assert_int_equal(open_file(BAD, &err), 0);
}

static void flipped_header_bytes_never_crash(void **state)
{
    (void)state;
    struct ps_error err;
    size_t header_len = strlen(good_header), total = 8 + header_len + 7;
    unsigned char buf[1024];
    put_prefix(buf, header_len);
    memcpy(buf + 8, good_header, header_len);
    memset(buf + 8 + header_len, 0, 7);
    int refused = 0, accepted = 0;
    for (size_t i = 0; i < 8 + header_len; i++) {
        for (int kind = 0; kind < 3; kind++) {
            unsigned char keep = buf[i];
            buf[i] = kind == 0 ? keep ^ 1 : kind == 1 ? keep ^ 0x80 : 0xff;
            write_bytes(BAD, buf, total);
            int ret = open_file(BAD, &err);
            buf[i] = keep;
            assert_true(ret == 0 || ret == PS_EFORMAT || ret == PS_EUNSUPPORTED);
            *(ret ? &refused : &accepted) += 1;
            /* only letters of names and metadata may change unnoticed */
            if (ret == 0)
                assert_int_equal(kind, 0);
        }
    }
    assert_int_equal(refused + accepted, 3 * (8 + (int)header_len));
    assert_true(accepted < 60);
}

static void a_file_that_shrinks_or_changes_is_noticed(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_st_file *f;
    write_raw("shrink.safetensors", good_header, strlen(good_header), 7);
    assert_int_equal(ps_st_open(&f, "shrink.safetensors", &err), 0);
    assert_int_equal(truncate("shrink.safetensors", 8 + (off_t)strlen(good_header) + 5), 0);
    unsigned char data[8];
    const struct ps_st_tensor *t = ps_st_find(f, "b\"");
    assert_int_equal(ps_st_read(f, t, 0, 2, data, &err), PS_EFORMAT);
    assert_non_null(strstr(err.message, "shorter"));
    assert_string_equal(err.field, "b\"");
    assert_int_equal(ps_st_check_unchanged(f, &err), PS_EFORMAT);
    ps_st_close(f);
}

static const struct ps_st_spec specs[] = {
    {"model.embed.weight", PS_DTYPE_F32, 2, {301, 1000}},
    {"scalar", PS_DTYPE_I64, 0, {0}},
    {"empty", PS_DTYPE_F16, 2, {0, 3}},
    {"half \"quoted\" \xc3\xa9", PS_DTYPE_F16, 1, {5}},
    {"brain", PS_DTYPE_BF16, 1, {300000}},
};

/* Write `specs` in pieces of `piece` bytes; data bytes follow a pattern of small positive floats.
 */
static void write_specs(const char *path, size_t piece)
{
    struct ps_error err = {0};
    struct ps_st_writer *w;
    assert_int_equal(ps_st_writer_create(&w, path, specs, COUNT(specs), &err), 0);
    size_t total = 301000 * 4 + 8 + 10 + 600000;
    unsigned char *data = malloc(total);
    assert_non_null(data);
    for (size_t i = 0; i < total; i++)
        data[i] = (unsigned char)(i % 4 == 3 ? 0x3f : i % 4 == 1 ? 0x3c : i * 7 / 4);
    for (size_t at = 0; at < total; at += piece)
        assert_int_equal(
            ps_st_writer_append(w, data + at, total - at < piece ? total - at : piece, &err), 0);
    free(data);
    assert_int_equal(access(path, F_OK), -1);
    uint64_t hash = ps_st_writer_hash(w), real = 0;
    assert_int_equal(ps_st_writer_close(w, &err), 0);
    assert_int_equal(ps_file_hash(path, &real, &err), 0);
    assert_true(hash == real);
}

static void what_was_written_is_read_back_whatever_the_pieces(void **state)
{
    (void)state;
    static const size_t pieces[] = {4001, 1 << 20, 1 << 30};
    struct ps_error err = {0};
    uint64_t first = 0;
    for (size_t p = 0; p < COUNT(pieces); p++) {
        struct ps_st_file *f;
        uint64_t hash;
        unlink("rt.safetensors");
        write_specs("rt.safetensors", pieces[p]);
        assert_int_equal(ps_file_hash("rt.safetensors", &hash, &err), 0);
        if (p == 0)
            first = hash;
        assert_true(hash == first);
        assert_int_equal(ps_st_open(&f, "rt.safetensors", &err), 0);
        assert_int_equal(ps_st_count(f), COUNT(specs));
        assert_string_equal(ps_st_metadata(f, "format"), "pt");
        for (size_t i = 0; i < COUNT(specs); i++) {
            const struct ps_st_tensor *t = ps_st_at(f, i); /* the caller's order is kept */
            assert_string_equal(t->name, specs[i].name);
            assert_int_equal(t->dtype, specs[i].dtype);
            assert_int_equal(t->rank, specs[i].rank);
            for (int d = 0; d < t->rank; d++)
                assert_int_equal(t->shape[d], specs[i].shape[d]);
        }
        assert_int_equal(ps_st_at(f, 0)->offset % 8, 0);
        ps_st_close(f);
    }
}

static void conversions_while_reading_equal_those_of_the_whole_tensor(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_st_file *f;
    write_specs("cv.safetensors", 1 << 20);
    assert_int_equal(ps_st_open(&f, "cv.safetensors", &err), 0);
    static const char *const names[] = {"model.embed.weight", "brain", "empty"};
    for (size_t i = 0; i < COUNT(names); i++) {
        const struct ps_st_tensor *t = ps_st_find(f, names[i]);
        size_t n = (size_t)t->elements;
        unsigned char *raw = malloc(n * 4 + 1), *got = malloc(n * 4 + 1), *want = malloc(n * 4 + 1);
        assert_int_equal(ps_st_read(f, t, 0, t->bytes, raw, &err), 0);
        for (int d = 0; d < 3; d++) {
            enum ps_dtype type = (enum ps_dtype)d;
            size_t bytes = n * ps_dtype_size(type);
            got[bytes] = 0xcc;
            assert_int_equal(ps_st_read_as(f, t, type, got, &err), 0);
            ps_dtype_convert(want, type, raw, (enum ps_dtype)t->dtype, n);
            assert_int_equal(got[bytes], 0xcc);
            assert_memory_equal(got, want, bytes);
        }
        free(raw);
        free(got);
        free(want);
    }
    ps_st_close(f);
}

static int create(const struct ps_st_spec *s, size_t n, struct ps_error *err)
{
    struct ps_st_writer *w = NULL;
    int ret = ps_st_writer_create(&w, "cr.safetensors", s, n, err);
    ps_st_writer_abort(w);
    return ret;
}

static void writer_refuses_specs_that_cannot_be_read_back(void **state)
{
    (void)state;
    struct ps_error err = {0};
    const struct ps_st_spec twice[] = {{"a", PS_DTYPE_U8, 1, {1}}, {"a", PS_DTYPE_U8, 1, {1}}};
    assert_int_equal(create(twice, 2, &err), -EINVAL);
    assert_string_equal(err.field, "a");
    const struct ps_st_spec bad[] = {
        {"", PS_DTYPE_U8, 1, {1}},       {"__metadata__", PS_DTYPE_U8, 1, {1}},
        {"r", PS_DTYPE_U8, 9, {1}},      {"n", PS_DTYPE_U8, 1, {-1}},
        {"t", PS_DTYPE_COUNT, 1, {1}},   {"o", PS_DTYPE_F32, 2, {INT64_MAX, INT64_MAX}},
        {"l", PS_DTYPE_F32, -1, {1, 1}},
    };
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_int_equal(create(&bad[i], 1, &err), -EINVAL);
    assert_int_equal(create(NULL, 0, &err), 0);
    assert_int_equal(access("cr.safetensors", F_OK), -1);
}

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

static void unfinished_files_vanish_and_keep_the_older_one(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_st_writer *w;
    const struct ps_st_spec s = {"a", PS_DTYPE_F32, 1, {2}};
    float data[3] = {1, 2, 3};
    assert_int_equal(mkdir("un", 0777), 0);
    write_bytes("un/f", "old", 3);
    assert_int_equal(ps_st_writer_create(&w, "un/f", &s, 1, &err), 0);
    assert_int_equal(ps_st_writer_append(w, data, 4, &err), 0);
    assert_int_equal(ps_st_writer_close(w, &err), PS_EFORMAT);
    assert_non_null(strstr(err.message, "4 of 8 bytes"));
    assert_int_equal(ps_st_writer_create(&w, "un/f", &s, 1, &err), 0);
    assert_int_equal(ps_st_writer_append(w, data, 12, &err), PS_EFORMAT);
    assert_int_equal(ps_st_writer_close(w, &err), PS_EFORMAT);
    assert_int_equal(ps_st_writer_create(&w, "un/f", &s, 1, &err), 0);
    ps_st_writer_abort(w);
    ps_st_writer_abort(NULL);
    assert_int_equal(count_entries("un"), 1);
    char *text;
    size_t len;
    assert_int_equal(ps_file_read("un/f", 100, &text, &len, &err), 0);
    assert_string_equal(text, "old");
    free(text);
}

/* RLIMIT_FSIZE stands for a disk that fills while the data are written: no root needed. */
static void a_failing_disk_leaves_the_older_file_whole(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_st_writer *w = NULL;
    const struct ps_st_spec s = {"a", PS_DTYPE_U8, 1, {8 << 20}};
    char *data = calloc(1, 8 << 20);
    struct rlimit old;
    assert_non_null(data);
    assert_int_equal(mkdir("lim", 0777), 0);
    write_bytes("lim/f", "old", 3);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit small = {.rlim_cur = 3 << 20, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int create_ret = ps_st_writer_create(&w, "lim/f", &s, 1, &err);
    int append_ret = w ? ps_st_writer_append(w, data, 8 << 20, &err) : create_ret;
    int again_ret = w ? ps_st_writer_append(w, data, 1, NULL) : append_ret;
    int close_ret = w ? ps_st_writer_close(w, NULL) : append_ret;
    struct rlimit back = {.rlim_cur = old.rlim_max, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &back), 0);
    free(data);
    assert_int_equal(append_ret, -EFBIG);
    assert_string_equal(err.file, "lim/f");
    assert_int_equal(again_ret, -EFBIG);
    assert_int_equal(close_ret, -EFBIG);
    assert_int_equal(count_entries("lim"), 1);
}

/* ---- model directories ---- */

static void write_shard(const char *path, const char *a, const char *b)
{
    char header[400];
    int n = snprintf(header, sizeof header,
                     "{\"%s\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                     "\"%s\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
                     a, b);
    write_raw(path, header, (size_t)n, 8);
}

static int open_set(const char *dir, const char *index, struct ps_error *err)
{
    char path[PATH_MAX];
    struct ps_st_set *set = NULL;
    assert_non_null(ps_path_join(path, sizeof path, dir, "model.safetensors.index.json"));
    write_bytes(path, index, strlen(index));
    memset(err, 0, sizeof *err);
    int ret = ps_st_set_open(&set, dir, err);
    ps_st_set_close(set);
    return ret;
}

static void a_sharded_set_finds_each_mapped_tensor_in_its_file(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_st_set *set;
    assert_int_equal(mkdir("sh", 0777), 0);
    write_shard("sh/one.safetensors", "w1", "w2");
    write_shard("sh/two.safetensors", "w3", "w1");
    const char *index = "{\"metadata\":{\"total_size\":-5},\"weight_map\":{\"w1\":"
                        "\"two.safetensors\",\"w2\":\"one.safetensors\",\"w3\":"
                        "\"two.safetensors\"}}";
    write_bytes("sh/model.safetensors.index.json", index, strlen(index));
    assert_int_equal(ps_st_set_open(&set, "sh", &err), 0);
    assert_int_equal(ps_st_set_file_count(set), 2);
    assert_int_equal(ps_st_set_unmapped_count(set), 1);
    const struct ps_st_file *file = NULL;
    const struct ps_st_tensor *t = ps_st_set_find(set, "w1", &file);
    assert_non_null(t);
    assert_string_equal(ps_st_path(file), "sh/two.safetensors");
    assert_ptr_equal(ps_st_find(file, "w1"), t);
    assert_non_null(ps_st_set_find(set, "w2", NULL));
    assert_null(ps_st_set_find(set, "w4", &file));
    ps_st_set_close(set);
    ps_st_set_close(NULL);
}

static void a_single_file_wins_over_an_index(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_st_set *set;
    assert_int_equal(mkdir("si", 0777), 0);
    write_shard("si/model.safetensors", "w1", "w2");
    write_bytes("si/model.safetensors.index.json", "garbage", 7);
    assert_int_equal(ps_st_set_open(&set, "si/", &err), 0);
    assert_int_equal(ps_st_set_file_count(set), 1);
    assert_non_null(ps_st_set_find(set, "w2", NULL));
    assert_ptr_equal(ps_st_set_file(set, 0), ps_st_set_file(set, 0));
    ps_st_set_close(set);
}

static void names_that_leave_the_directory_are_refused(void **state)
{
    (void)state;
    struct ps_error err;
    assert_int_equal(mkdir("tr", 0777), 0);
    write_shard("outside.safetensors", "w1", "w2");
    static const char *const names[] = {
        "../outside.safetensors", "/etc/passwd", "a/b", "..", ".hidden", "", "a\\\\b"};
    for (size_t i = 0; i < COUNT(names); i++) {
        char index[200];
        PS_IGNORE(snprintf(index, sizeof index, "{\"weight_map\":{\"w1\":\"%s\"}}", names[i]) < 0,
                  "fits");
        assert_int_equal(open_set("tr", index, &err), PS_EFORMAT);
        assert_non_null(strstr(err.message, "bare file name"));
        assert_string_equal(err.field, "w1");
        assert_string_equal(err.file, "tr/model.safetensors.index.json");
    }
    assert_int_equal(open_set("tr", "{\"weight_map\":{\"w1\":\"a\\u0000\"}}", &err), PS_EFORMAT);
}

static void broken_indexes_name_what_is_wrong(void **state)
{
    (void)state;
    struct ps_error err;
    assert_int_equal(mkdir("br", 0777), 0);
    write_shard("br/one.safetensors", "w1", "w2");
    assert_int_equal(mkfifo("br/fifo", 0666), 0);
    static const struct {
        const char *index, *message;
        int code;
    } t[] = {
        {"{}", "weight_map", PS_EFORMAT},
        {"[]", "weight_map", PS_EFORMAT},
        {"{\"weight_map\":{}}", "weight_map", PS_EFORMAT},
        {"{\"weight_map\":[\"one.safetensors\"]}", "weight_map", PS_EFORMAT},
        {"{\"weight_map\":{\"w1\":7}}", "bare file name", PS_EFORMAT},
        {"{\"weight_map\":{\"w1\":\"one.safetensors\",\"w1\":\"one.safetensors\"}}", "JSON",
         PS_EFORMAT},
        {"{\"weight_map\":{\"w9\":\"one.safetensors\"}}", "\"w9\" is mapped to one.safetensors",
         PS_EFORMAT},
        {"{\"weight_map\":{\"w1\":\"three.safetensors\"}}", "open", -ENOENT},
        {"{\"weight_map\":{\"w1\":\"fifo\"}}", "FIFO", PS_EFORMAT},
        {"{\"weight_map\":{\"w1\":\"one.safetensors\"}", "JSON", PS_EFORMAT},
    };
    for (size_t i = 0; i < COUNT(t); i++) {
        assert_int_equal(open_set("br", t[i].index, &err), t[i].code);
        assert_non_null(strstr(err.message, t[i].message));
        assert_non_null(strstr(err.file, "br/"));
    }
}

static void a_directory_without_weights_says_what_is_read(void **state)
{
    (void)state;
    struct ps_error err = {0};
    struct ps_st_set *set;
    assert_int_equal(mkdir("nw", 0777), 0);
    write_bytes("nw/pytorch_model.bin", "x", 1);
    assert_int_equal(ps_st_set_open(&set, "nw", &err), PS_EFORMAT);
    assert_non_null(strstr(err.message, "model.safetensors"));
    assert_non_null(strstr(err.advice, "safetensors"));
    assert_int_equal(ps_st_set_open(&set, "absent", &err), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_broken_rule_has_a_message_with_file_and_tensor),
        cmocka_unit_test(sizes_of_prefix_and_header_are_checked),
        cmocka_unit_test(types_below_a_byte_are_refused_as_unsupported),
        cmocka_unit_test(names_end_at_1024_bytes_and_raw_nul_is_refused),
        cmocka_unit_test(more_than_a_million_tensors_are_refused),
        cmocka_unit_test(what_is_no_regular_file_is_refused),
        cmocka_unit_test(valid_headers_of_every_form_are_read),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(flipped_header_bytes_never_crash),
        cmocka_unit_test(a_file_that_shrinks_or_changes_is_noticed),
        cmocka_unit_test(what_was_written_is_read_back_whatever_the_pieces),
        cmocka_unit_test(conversions_while_reading_equal_those_of_the_whole_tensor),
        cmocka_unit_test(writer_refuses_specs_that_cannot_be_read_back),
        cmocka_unit_test(unfinished_files_vanish_and_keep_the_older_one),
        cmocka_unit_test(a_failing_disk_leaves_the_older_file_whole),
        cmocka_unit_test(a_sharded_set_finds_each_mapped_tensor_in_its_file),
        cmocka_unit_test(a_single_file_wins_over_an_index),
        cmocka_unit_test(names_that_leave_the_directory_are_refused),
        cmocka_unit_test(broken_indexes_name_what_is_wrong),
        cmocka_unit_test(a_directory_without_weights_says_what_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
