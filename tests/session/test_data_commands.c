/* data inspect, data tokenize, data render: the library side. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session/data_commands.h"

static char model[512];

static int set_up(void **state)
{
    (void)state;
    const char *root = getenv("PENSTOCK_ROOT");
    if (!root)
        return -1;
    snprintf(model, sizeof model, "%s/tests/golden/byte_tokenizer", root);
    return 0;
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

/* Run a command with options "name", "value", ..., NULL; the output lands in *out (free it). */
static int run(enum ps_command command, char **out, struct ps_error *err, ...)
{
    struct ps_options opt;
    ps_options_init(&opt, command);
    va_list ap;
    va_start(ap, err);
    const char *name;
    while ((name = va_arg(ap, const char *))) {
        const char *value = va_arg(ap, const char *);
        assert_int_equal(ps_options_set(&opt, name, value, "test", NULL), 0);
    }
    va_end(ap);
    *err = (struct ps_error){0};
    size_t len;
    *out = NULL;
    FILE *to = open_memstream(out, &len);
    assert_non_null(to);
    int ret = ps_options_resolve(&opt, err);
    if (ret == 0)
        ret = command == PS_CMD_DATA_INSPECT    ? ps_data_inspect(&opt, NULL, to, err)
              : command == PS_CMD_DATA_TOKENIZE ? ps_data_tokenize(&opt, to, err)
                                                : ps_data_render(&opt, to, err);
    fclose(to);
    ps_options_fini(&opt);
    return ret;
}

#define RUN(command, out, err, ...) run(command, out, err, __VA_ARGS__, (const char *)NULL)

static void tokenize_prints_one_array_a_text(void **state)
{
    (void)state;
    char *out;
    struct ps_error err;
    assert_int_equal(RUN(PS_CMD_DATA_TOKENIZE, &out, &err, "model", model, "text", "cab"), 0);
    assert_string_equal(out, "[99,256]\n");
    free(out);
    assert_int_equal(RUN(PS_CMD_DATA_TOKENIZE, &out, &err, "model", model, "text", "cab</s>",
                         "add-special-tokens", "true"),
                     0);
    assert_string_equal(out, "[257,99,256,258]\n");
    free(out);
    assert_int_equal(RUN(PS_CMD_DATA_TOKENIZE, &out, &err, "model", model, "text", ""), 0);
    assert_string_equal(out, "[]\n");
    free(out);
}

static void tokenize_reads_text_rows(void **state)
{
    (void)state;
    char *out;
    struct ps_error err;
    write_file("t.jsonl", "{\"text\":\"ab\"}\r\n\r\n{\"text\":\"\\u00e9\"}\n{\"text\":\"\"}");
    assert_int_equal(RUN(PS_CMD_DATA_TOKENIZE, &out, &err, "model", model, "data", "t.jsonl"), 0);
    assert_string_equal(out, "[256]\n[195,169]\n[]\n");
    free(out);
    write_file("t.jsonl", "{\"text\":\"ab\"}\n\n{\"txt\":\"ab\"}\n");
    assert_int_equal(RUN(PS_CMD_DATA_TOKENIZE, &out, &err, "model", model, "data", "t.jsonl"),
                     PS_EDATA);
    assert_string_equal(err.file, "t.jsonl:3");
    assert_string_equal(err.field, "text");
    free(out);
    write_file("t.jsonl", "{\"text\":\"ab\"}\n[]\n");
    assert_int_equal(RUN(PS_CMD_DATA_TOKENIZE, &out, &err, "model", model, "data", "t.jsonl"),
                     PS_EDATA);
    assert_string_equal(err.file, "t.jsonl:2");
    free(out);
    assert_int_equal(RUN(PS_CMD_DATA_TOKENIZE, &out, &err, "model", model, "data", "absent"),
                     -ENOENT);
    free(out);
}

static void render_prints_one_json_string_a_row(void **state)
{
    (void)state;
    char *out;
    struct ps_error err;
    write_file("m.jsonl",
               "{\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9\\n\"}],"
               "\"add_generation_prompt\":true}\n"
               "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
               "{\"type\":\"text\",\"value\":\"b\"}]}],\"tools\":[]}\n");
    assert_int_equal(
        RUN(PS_CMD_DATA_RENDER, &out, &err, "data", "m.jsonl", "chat-template", "chatml"), 0);
    assert_string_equal(out, "\"<|im_start|>user\\n\xC3\xA9\\n<|im_end|>\\n"
                             "<|im_start|>assistant\\n\"\n"
                             "\"<|im_start|>user\\nab<|im_end|>\\n\"\n");
    free(out);
}

static void render_takes_bos_and_eos_from_the_row_or_the_model(void **state)
{
    (void)state;
    char *out;
    struct ps_error err;
    write_file("m.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},"
                          "{\"role\":\"assistant\",\"content\":\"a\"}]}\n"
                          "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"}],"
                          "\"bos_token\":\"<B>\"}\n");
    assert_int_equal(
        RUN(PS_CMD_DATA_RENDER, &out, &err, "data", "m.jsonl", "chat-template", "mistral"), 0);
    assert_string_equal(out, "\"[INST] u [/INST]a \"\n\"<B>[INST] u [/INST]\"\n");
    free(out);
    assert_int_equal(RUN(PS_CMD_DATA_RENDER, &out, &err, "data", "m.jsonl", "chat-template",
                         "mistral", "model", model),
                     0);
    assert_string_equal(out, "\"<s>[INST] u [/INST]a</s> \"\n\"<B>[INST] u [/INST]\"\n");
    free(out);
}

static void render_errors_name_file_and_line(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"{\"messages\":3}", "messages"},
        {"{}", "messages"},
        {"{\"messages\":[{\"content\":\"x\"}]}", "role"},
        {"{\"messages\":[{\"role\":\"user\"}]}", "content"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]}", "value"},
        {"{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}]}", "role"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":[{}]}", "tools"},
    };
    char *out;
    struct ps_error err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[256];
        snprintf(text, sizeof text, "\n%s\n", bad[i][0]);
        write_file("m.jsonl", text);
        assert_int_equal(
            RUN(PS_CMD_DATA_RENDER, &out, &err, "data", "m.jsonl", "chat-template", "mistral"),
            PS_EDATA);
        assert_string_equal(err.file, "m.jsonl:2");
        assert_string_equal(err.field, bad[i][1]);
        free(out);
    }
    assert_int_equal(RUN(PS_CMD_DATA_RENDER, &out, &err, "data", "m.jsonl"), PS_EUSAGE);
    assert_non_null(strstr(err.advice, "chatml"));
    free(out);
}

static void inspect_counts_what_training_makes_of_the_rows(void **state)
{
    (void)state;
    char *out;
    struct ps_error err;
    write_file("p.jsonl", "{\"prompt\":\"xy\",\"completion\":\"zab\"}\n"     /* B x y z M E */
                          "{\"prompt\":\"12345678\",\"completion\":\"9\"}\n" /* 11 tokens */
                          "{\"prompt\":\"1\",\"completion\":\"23456789\"}\n");
    assert_int_equal(RUN(PS_CMD_DATA_INSPECT, &out, &err, "model", model, "data", "p.jsonl",
                         "max-seq-len", "8", "show-mask", "3", "json", "true"),
                     0);
    json_t *o = json_loads(out, 0, NULL);
    assert_non_null(o);
    free(out);
    int version, rows, tokens, labels, too_long, min, max, median;
    const char *format, *loss;
    json_t *trained, *mask, *packing, *histogram;
    assert_int_equal(json_unpack(o, "{s:i,s:s,s:s,s:i,s:i,s:i,s:i,s:{s:i,s:i,s:i},s:o,s:o,s:o,s:o}",
                                 "version", &version, "format", &format, "loss_on", &loss, "rows",
                                 &rows, "tokens", &tokens, "label_tokens", &labels, "rows_too_long",
                                 &too_long, "length", "min", &min, "median", &median, "max", &max,
                                 "trained", &trained, "mask", &mask, "packing", &packing,
                                 "histogram", &histogram),
                     0);
    assert_int_equal(version, 1);
    assert_string_equal(format, "completion");
    assert_string_equal(loss, "completion");
    assert_int_equal(rows, 3);
    assert_int_equal(tokens, 6 + 11 + 11);
    assert_int_equal(labels, 3 + 2 + 9);
    assert_int_equal(too_long, 2);
    assert_int_equal(min, 6);
    assert_int_equal(median, 11);
    assert_int_equal(max, 11);
    int t_rows, truncated, unlabelled, t_tokens, t_labels, sequences;
    double share, full, bare;
    assert_int_equal(json_unpack(trained, "{s:i,s:i,s:i,s:i,s:i,s:F}", "rows", &t_rows,
                                 "rows_truncated", &truncated, "rows_unlabelled", &unlabelled,
                                 "tokens", &t_tokens, "label_tokens", &t_labels, "label_share",
                                 &share),
                     0);
    assert_int_equal(t_rows, 2); /* the second row loses its labels to truncation */
    assert_int_equal(truncated, 2);
    assert_int_equal(unlabelled, 1);
    assert_int_equal(t_tokens, 6 + 8);
    assert_int_equal(t_labels, 3 + 6);
    assert_true(share == 9.0 / 14);
    assert_int_equal(json_unpack(packing, "{s:i,s:F,s:F}", "sequences", &sequences, "efficiency",
                                 &full, "efficiency_unpacked", &bare),
                     0);
    assert_int_equal(sequences, 2);
    assert_true(full == 14.0 / 16 && bare == 14.0 / 16);
    int in_bins = 0;
    for (size_t i = 0; i < json_array_size(histogram); i++)
        in_bins += (int)json_integer_value(json_object_get(json_array_get(histogram, i), "rows"));
    assert_int_equal(in_bins, 3);
    assert_int_equal(json_array_size(mask), 3);
    json_t *segments = json_object_get(json_array_get(mask, 0), "segments");
    assert_int_equal(json_array_size(segments), 2);
    json_t *last = json_array_get(segments, 1);
    assert_true(json_is_true(json_object_get(last, "trained")));
    assert_string_equal(json_string_value(json_object_get(last, "text")), "zab</s>");
    assert_int_equal(json_integer_value(json_object_get(last, "begin")), 3);
    assert_int_equal(json_integer_value(json_object_get(last, "end")), 6);
    json_decref(o);
}

static void inspect_marks_trained_tokens_in_brackets(void **state)
{
    (void)state;
    char *out;
    struct ps_error err;
    write_file("m.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"\\u001b[1m?\"},"
                          "{\"role\":\"assistant\",\"content\":\"\\u00e9\"}]}\n"
                          "{\"messages\":[{\"role\":\"user\",\"content\":\"nothing\"}]}\n");
    assert_int_equal(RUN(PS_CMD_DATA_INSPECT, &out, &err, "model", model, "data", "m.jsonl",
                         "chat-template", "chatml", "show-mask", "5"),
                     0);
    assert_non_null(strstr(out, "messages rows, loss on assistant"));
    assert_non_null(strstr(out, "<|im_start|>user\n\\x1b[1m?<|im_end|>\n<|im_start|>assistant\n"
                                "[[\xC3\xA9<|im_end|>]]\n"));
    assert_non_null(strstr(out, "row 2 (m.jsonl:2)"));
    assert_null(strchr(out, 0x1B));
    free(out);
}

static void inspect_reads_token_rows_without_a_model(void **state)
{
    (void)state;
    char *out;
    struct ps_error err;
    write_file("i.jsonl", "{\"input_ids\":[5,6,7,8],\"labels\":[-100,-100,7,-100]}\n");
    assert_int_equal(RUN(PS_CMD_DATA_INSPECT, &out, &err, "data", "i.jsonl", "show-mask", "1"), 0);
    assert_non_null(strstr(out, "tokens rows, loss on labels"));
    assert_non_null(strstr(out, "5 6 [[7]] 8"));
    free(out);
    write_file("t.jsonl", "{\"text\":\"a\"}\n");
    assert_int_equal(RUN(PS_CMD_DATA_INSPECT, &out, &err, "data", "t.jsonl"), PS_EUSAGE);
    assert_string_equal(err.field, "model");
    free(out);
}

static void inspect_reports_where_nothing_is_left(void **state)
{
    (void)state;
    char *out;
    struct ps_error err;
    write_file("p.jsonl", "{\"prompt\":\"12345678\",\"completion\":\"9\"}\n");
    assert_int_equal(
        RUN(PS_CMD_DATA_INSPECT, &out, &err, "model", model, "data", "p.jsonl", "max-seq-len", "4"),
        0);
    assert_non_null(strstr(out, "nothing is left to train on"));
    free(out);
    assert_int_equal(RUN(PS_CMD_DATA_INSPECT, &out, &err, "model", model, "data", "p.jsonl",
                         "max-seq-len", "4", "overlength", "drop", "json", "true"),
                     0);
    json_t *o = json_loads(out, 0, NULL);
    int rows, dropped;
    assert_int_equal(json_unpack(o, "{s:{s:i,s:i},s:n}", "trained", "rows", &rows, "rows_dropped",
                                 &dropped, "packing"),
                     0);
    assert_int_equal(rows, 0);
    assert_int_equal(dropped, 1);
    json_decref(o);
    free(out);
}

static void a_full_output_is_an_io_error(void **state)
{
    (void)state;
    FILE *full = fopen("/dev/full", "w");
    if (!full) {
        print_message("skip: no /dev/full\n");
        skip();
    }
    struct ps_options opt;
    struct ps_error err = {0};
    ps_options_init(&opt, PS_CMD_DATA_TOKENIZE);
    assert_int_equal(ps_options_set(&opt, "model", model, "test", NULL), 0);
    assert_int_equal(ps_options_set(&opt, "text", "cab", "test", NULL), 0);
    assert_int_equal(ps_options_resolve(&opt, &err), 0);
    assert_int_equal(ps_data_tokenize(&opt, full, &err), -EIO);
    ps_options_fini(&opt);
    fclose(full);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokenize_prints_one_array_a_text),
        cmocka_unit_test(tokenize_reads_text_rows),
        cmocka_unit_test(render_prints_one_json_string_a_row),
        cmocka_unit_test(render_takes_bos_and_eos_from_the_row_or_the_model),
        cmocka_unit_test(render_errors_name_file_and_line),
        cmocka_unit_test(inspect_counts_what_training_makes_of_the_rows),
        cmocka_unit_test(inspect_marks_trained_tokens_in_brackets),
        cmocka_unit_test(inspect_reads_token_rows_without_a_model),
        cmocka_unit_test(inspect_reports_where_nothing_is_left),
        cmocka_unit_test(a_full_output_is_an_io_error),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
