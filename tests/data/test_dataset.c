/* Rows of every format to ids and labels, checked by hand; every class of data error with
 * file:line.
 *
 * The tokenizer is golden/byte_tokenizer: the id of a byte is the byte, "ab" merges to one token
 * and BOS is added in front. So expected ids can be read off the text. */
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

#include "runtime/data/dataset.h"

enum { AB = 256, BOS = 257, EOS = 258, IM_START = 259, IM_END = 260, VOCAB = 261 };

static struct ps_tokenizer *make_tokenizer(void)
{
    char path[512];
    struct ps_tokenizer *tok;
    struct ps_error err = {0};
    assert_non_null(getenv("PENSTOCK_ROOT"));
    snprintf(path, sizeof path, "%s/tests/golden/byte_tokenizer", getenv("PENSTOCK_ROOT"));
    int ret = ps_tokenizer_open(&tok, path, &err);
    if (ret < 0)
        print_message("%s: %s\n", err.file, err.message);
    assert_int_equal(ret, 0);
    return tok;
}

static int set_up(void **state)
{
    *state = make_tokenizer();
    return 0;
}

static int tear_down(void **state)
{
    ps_tokenizer_close(*state);
    return 0;
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

static const struct ps_dataset_options base = {
    .path = "d.jsonl", .vocab_size = VOCAB, .eos_token_id = EOS};

static int load(struct ps_dataset *ds, const struct ps_dataset_options *opt, const char *text,
                struct ps_tokenizer *tok, struct ps_error *err)
{
    *err = (struct ps_error){0};
    write_file("d.jsonl", text);
    return ps_dataset_load(ds, opt, tok, err);
}

static struct ps_dataset load_ok(const struct ps_dataset_options *opt, const char *text,
                                 struct ps_tokenizer *tok)
{
    struct ps_dataset ds;
    struct ps_error err;
    int ret = load(&ds, opt, text, tok, &err);
    if (ret < 0)
        print_message("%s: %s\n", err.file, err.message);
    assert_int_equal(ret, 0);
    return ds;
}

/* Compare a row with a picture: characters are bytes, trained ones inside [ ]; B, E, S, T and M
 * stand for BOS, EOS, <|im_start|>, <|im_end|> and the merged "ab". */
static void assert_row(const struct ps_dataset *ds, uint64_t row, const char *picture)
{
    uint64_t at = ds->row_begin[row];
    bool trained = false;
    for (const char *p = picture; *p; p++) {
        if (*p == '[' || *p == ']') {
            trained = *p == '[';
            continue;
        }
        int32_t id = *p == 'B'   ? BOS
                     : *p == 'E' ? EOS
                     : *p == 'S' ? IM_START
                     : *p == 'T' ? IM_END
                     : *p == 'M' ? AB
                                 : (int32_t)(unsigned char)*p;
        assert_true(at < ds->row_begin[row + 1]);
        if (ds->ids[at] != id || ds->labels[at] != (trained ? id : PS_LABEL_IGNORE))
            print_message("row %d, \"%s\" at %d: id %d label %d\n", (int)row, picture,
                          (int)(p - picture), ds->ids[at], ds->labels[at]);
        assert_int_equal(ds->ids[at], id);
        assert_int_equal(ds->labels[at], trained ? id : PS_LABEL_IGNORE);
        at++;
    }
    assert_int_equal(at, ds->row_begin[row + 1]);
}

static void text_rows_train_all_but_bos_and_end_in_eos(void **state)
{
    struct ps_dataset ds = load_ok(&base,
                                   "\xEF\xBB\xBF{\"text\":\"cab\",\"id\":1}\r\n\r\n"
                                   "{\"text\":\"\\u00e9\"}\r\n{\"text\":\"<s>x</s>\"}",
                                   *state);
    assert_int_equal(ds.format, PS_DATA_TEXT);
    assert_int_equal(ds.loss_on, PS_LOSS_ALL);
    assert_int_equal(ds.row_count, 3);
    assert_row(&ds, 0, "B[cME]");
    assert_row(&ds, 1,
               "B[\xC3\xA9"
               "E]");
    assert_row(&ds, 2, "B[xE]"); /* neither BOS nor EOS is doubled */
    assert_int_equal(ds.row_line[0], 1);
    assert_int_equal(ds.row_line[1], 3);
    assert_int_equal(ds.row_line[2], 4);
    assert_int_equal(ds.token_count, 4 + 4 + 3);
    assert_int_equal(ds.label_count, 3 + 3 + 2);
    assert_string_equal(ds.path, "d.jsonl");
    ps_dataset_fini(&ds);
}

static void completion_rows_train_the_completion_and_eos(void **state)
{
    struct ps_dataset ds = load_ok(&base,
                                   "{\"prompt\":\"xy\",\"completion\":\"zab\"}\n"
                                   "{\"prompt\":\"xa\",\"completion\":\"bz\"}\n"
                                   "{\"prompt\":\"\",\"completion\":\"q\"}\n"
                                   "{\"prompt\":\"q\",\"completion\":\"\"}\n"
                                   "{\"prompt\":\"<s>q\",\"completion\":\"r</s>\"}\n",
                                   *state);
    assert_int_equal(ds.format, PS_DATA_COMPLETION);
    assert_int_equal(ds.loss_on, PS_LOSS_COMPLETION);
    assert_row(&ds, 0, "Bxy[zME]");
    assert_row(&ds, 1, "Bx[MzE]"); /* the straddling token belongs to the completion */
    assert_row(&ds, 2, "B[qE]");
    assert_row(&ds, 3, "Bq[E]");
    assert_row(&ds, 4, "Bq[rE]");
    ps_dataset_fini(&ds);
    struct ps_dataset_options o = base;
    o.loss_on = PS_LOSS_ALL;
    ds = load_ok(&o, "{\"prompt\":\"xy\",\"completion\":\"z\"}", *state);
    assert_row(&ds, 0, "B[xyzE]");
    ps_dataset_fini(&ds);
    o = base;
    o.eos_token_id = -1;
    ds = load_ok(&o, "{\"prompt\":\"xy\",\"completion\":\"z\"}", *state);
    assert_row(&ds, 0, "Bxy[z]");
    ps_dataset_fini(&ds);
}

static void alpaca_rows_are_the_stanford_prompts(void **state)
{
    struct ps_dataset ds =
        load_ok(&base,
                "[{\"instruction\":\"Add.\",\"input\":\"1 1\",\"output\":\"2\"},\n\n"
                "{\"instruction\":\"Hi.\",\"input\":\"\",\"output\":\"Ho.\",\"history\":[]},\n"
                "{\"instruction\":\"Hi.\",\"output\":\"Ho.\"}]",
                *state);
    assert_int_equal(ds.format, PS_DATA_ALPACA);
    assert_int_equal(ds.row_line[1], 2); /* array: index + 1 */
    static const char short_prompt[] =
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nHi.\n\n### Response:Ho.";
    static const char long_prompt[] =
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Add.\n\n### Input:\n1 1\n\n### Response:2";
    for (uint64_t r = 0; r < 3; r++) {
        const char *text = r == 0 ? long_prompt : short_prompt;
        uint64_t at = ds.row_begin[r], n = strlen(text), trained = r == 0 ? 1 : 3;
        assert_int_equal(ds.row_begin[r + 1] - at, n + 2);
        assert_int_equal(ds.ids[at], BOS);
        for (uint64_t i = 0; i < n; i++) {
            assert_int_equal(ds.ids[at + 1 + i], text[i]);
            assert_int_equal(ds.labels[at + 1 + i], i < n - trained ? PS_LABEL_IGNORE : text[i]);
        }
        assert_int_equal(ds.labels[at + 1 + n], EOS);
    }
    ps_dataset_fini(&ds);
}

static void messages_train_assistant_turns_with_their_terminator(void **state)
{
    struct ps_dataset_options o = base;
    o.chat_template = "chatml";
    static const char text[] =
        "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":"
        "\"u\"}"
        ",{\"role\":\"assistant\",\"content\":\"ab\"},{\"role\":\"user\",\"content\":\"v\"},"
        "{\"role\":\"assistant\",\"content\":\"x\"}]}";
    struct ps_dataset ds = load_ok(&o, text, *state);
    assert_int_equal(ds.loss_on, PS_LOSS_ASSISTANT);
    assert_row(&ds, 0, "Ssystem\nsT\nSuser\nuT\nSassistant\n[MT]\nSuser\nvT\nSassistant\n[xT]\n");
    ps_dataset_fini(&ds);
    o.loss_on = PS_LOSS_ALL;
    ds = load_ok(&o, "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"}]}", *state);
    assert_row(&ds, 0, "[Suser\nuT\n]");
    ps_dataset_fini(&ds);
    o.loss_on = PS_LOSS_AUTO;
    o.chat_template = "mistral"; /* BOS comes from the template alone */
    ds = load_ok(&o,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},"
                 "{\"role\":\"assistant\",\"content\":\"v\"}]}",
                 *state);
    uint64_t n = ds.row_begin[1];
    assert_int_equal(ds.ids[0], BOS);
    assert_int_equal(ds.ids[1], '[');
    assert_int_equal(ds.labels[n - 2], EOS);
    assert_int_equal(ds.labels[n - 1], PS_LABEL_IGNORE); /* the space after </s> */
    assert_int_equal(ds.label_count, 2);
    ps_dataset_fini(&ds);
}

static void messages_may_have_parts_and_weights(void **state)
{
    struct ps_dataset_options o = base;
    o.chat_template = "chatml";
    struct ps_dataset ds =
        load_ok(&o,
                "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"u\"},"
                "{\"type\":\"text\",\"value\":\"w\"}],\"loss_weight\":0.0},"
                "{\"role\":\"assistant\",\"content\":\"x\",\"train\":false},"
                "{\"role\":\"assistant\",\"content\":\"y\",\"weight\":1}],\"tools\":[]}",
                *state);
    assert_row(&ds, 0, "Suser\nuwT\nSassistant\nxT\nSassistant\n[yT]\n");
    ps_dataset_fini(&ds);
}

static void sharegpt_roles_are_mapped(void **state)
{
    struct ps_dataset_options o = base;
    o.chat_template = "chatml";
    struct ps_dataset ds = load_ok(&o,
                                   "{\"conversations\":[{\"from\":\"human\",\"value\":\"u\"},"
                                   "{\"from\":\"gpt\",\"value\":\"x\"}],\"system\":\"s\"}",
                                   *state);
    assert_int_equal(ds.format, PS_DATA_SHAREGPT);
    assert_row(&ds, 0, "Ssystem\nsT\nSuser\nuT\nSassistant\n[xT]\n");
    ps_dataset_fini(&ds);
}

static void token_rows_are_used_as_they_are(void **state)
{
    (void)state;
    struct ps_dataset ds = load_ok(&base,
                                   "{\"input_ids\":[5,6,260],\"labels\":[-100,6,0]}\n"
                                   "{\"input_ids\":[1,2]}\n",
                                   NULL);
    static const int32_t ids[] = {5, 6, 260, 1, 2}, labels[] = {-100, 6, 0, 1, 2};
    assert_int_equal(ds.format, PS_DATA_TOKENS);
    assert_int_equal(ds.token_count, 5);
    assert_memory_equal(ds.ids, ids, sizeof ids);
    assert_memory_equal(ds.labels, labels, sizeof labels);
    assert_int_equal(ds.label_count, 3);
    ps_dataset_fini(&ds);
}

static void field_map_renames_fields_of_any_format(void **state)
{
    struct ps_dataset_options o = base;
    o.field_map = "prompt=question,completion=answer";
    struct ps_dataset ds =
        load_ok(&o, "{\"question\":\"q\",\"answer\":\"r\",\"text\":\"t\",\"prompt\":7}", *state);
    assert_int_equal(ds.format, PS_DATA_COMPLETION);
    assert_row(&ds, 0, "Bq[rE]");
    ps_dataset_fini(&ds);
    o.field_map = "text=story";
    ds = load_ok(&o, "{\"story\":\"t\",\"text\":null}", *state);
    assert_row(&ds, 0, "B[tE]");
    ps_dataset_fini(&ds);
    o.field_map = "messages=chat,role=who,content=says";
    o.chat_template = "chatml";
    ds = load_ok(&o, "{\"chat\":[{\"who\":\"assistant\",\"says\":\"t\"}]}", *state);
    assert_row(&ds, 0, "Sassistant\n[tT]\n");
    ps_dataset_fini(&ds);
    o.chat_template = NULL;
    o.field_map = "input_ids=ids";
    ds = load_ok(&o, "{\"ids\":[1,2]}", NULL);
    assert_int_equal(ds.row_count, 1);
    ps_dataset_fini(&ds);
}

static void rows_without_labels_that_count_are_dropped_and_counted(void **state)
{
    (void)state;
    static const char text[] = "{\"input_ids\":[1,2],\"labels\":[1,-100]}\n"
                               "{\"input_ids\":[7]}\n"
                               "{\"input_ids\":[]}\n"
                               "{\"input_ids\":[3,4]}\n";
    struct ps_dataset ds = load_ok(&base, text, NULL);
    assert_int_equal(ds.rows_read, 4);
    assert_int_equal(ds.row_count, 1);
    assert_int_equal(ds.rows_unlabelled, 3);
    assert_int_equal(ds.row_line[0], 4);
    ps_dataset_fini(&ds);
    struct ps_dataset_options o = base;
    o.keep_unlabelled = true;
    ds = load_ok(&o, text, NULL);
    assert_int_equal(ds.row_count, 4);
    assert_int_equal(ds.rows_unlabelled, 3);
    assert_int_equal(ds.label_count, 1);
    ps_dataset_fini(&ds);
    o.rows_max = 3;
    ds = load_ok(&o, text, NULL);
    assert_int_equal(ds.rows_read, 3);
    ps_dataset_fini(&ds);
}

static void overlength_rows_are_truncated_dropped_split_or_refused(void **state)
{
    struct ps_dataset_options o = base;
    o.max_seq_len = 4;
    static const char text[] = "{\"text\":\"12345678\"}\n{\"text\":\"12\"}\n";
    struct ps_dataset ds = load_ok(&o, text, *state);
    assert_row(&ds, 0, "B[123]");
    assert_row(&ds, 1, "B[12E]");
    assert_int_equal(ds.rows_truncated, 1);
    ps_dataset_fini(&ds);
    o.overlength = PS_OVERLENGTH_DROP;
    ds = load_ok(&o, text, *state);
    assert_row(&ds, 0, "B[12E]");
    assert_int_equal(ds.row_count, 1);
    assert_int_equal(ds.rows_dropped, 1);
    ps_dataset_fini(&ds);
    o.overlength = PS_OVERLENGTH_SPLIT;
    ds = load_ok(&o, text, *state);
    assert_row(&ds, 0, "B[123]");
    assert_row(&ds, 1, "[4567]");
    assert_row(&ds, 2, "[8E]");
    assert_row(&ds, 3, "B[12E]");
    assert_int_equal(ds.rows_split, 1);
    assert_int_equal(ds.row_line[2], 1);
    assert_int_equal(ds.row_line[3], 2);
    ps_dataset_fini(&ds);
    struct ps_error err;
    o.overlength = PS_OVERLENGTH_ERROR;
    assert_int_equal(load(&ds, &o, "{\"text\":\"1\"}\n{\"text\":\"12345678\"}\n", *state, &err),
                     PS_EDATA);
    assert_string_equal(err.file, "d.jsonl:2");
    assert_non_null(strstr(err.message, "10 tokens"));
    assert_true(err.advice[0] != 0);
    /* truncation may take all labels away */
    o.overlength = PS_OVERLENGTH_TRUNCATE;
    assert_int_equal(load(&ds, &o, "{\"prompt\":\"12345678\",\"completion\":\"9\"}", *state, &err),
                     PS_EDATA);
    assert_non_null(strstr(err.advice, "--max-seq-len"));
}

static void rows_with_a_prompt_cannot_be_split(void **state)
{
    struct ps_dataset_options o = base;
    struct ps_dataset ds;
    struct ps_error err;
    o.max_seq_len = 2;
    o.overlength = PS_OVERLENGTH_SPLIT;
    assert_int_equal(load(&ds, &o, "{\"prompt\":\"1\",\"completion\":\"9\"}", *state, &err),
                     PS_EUSAGE);
    assert_string_equal(err.field, "overlength");
    assert_int_equal(load(&ds, &o, "{\"input_ids\":[1,2,3],\"labels\":[1,-100,3]}", NULL, &err),
                     PS_EUSAGE);
    assert_string_equal(err.file, "d.jsonl:1");
    ds = load_ok(&o, "{\"input_ids\":[1,2,3],\"labels\":[-100,2,3]}", NULL);
    assert_int_equal(ds.row_count, 1); /* the piece of one token cannot count */
    assert_int_equal(ds.rows_unlabelled, 1);
    ps_dataset_fini(&ds);
}

struct bad {
    const char *text;
    int code;
    const char *file, *field, *says;
};

static void assert_all_bad(const struct bad *bad, size_t count,
                           const struct ps_dataset_options *opt, struct ps_tokenizer *tok)
{
    for (size_t i = 0; i < count; i++) {
        struct ps_dataset ds;
        struct ps_error err;
        int ret = load(&ds, opt, bad[i].text, tok, &err);
        if (ret != bad[i].code || !strstr(err.message, bad[i].says) ||
            strcmp(err.file, bad[i].file) != 0 || strcmp(err.field, bad[i].field) != 0)
            print_message("%s: %d, \"%s\", \"%s\", \"%s\"\n", bad[i].text, ret, err.file, err.field,
                          err.message);
        assert_int_equal(ret, bad[i].code);
        assert_int_equal(err.code, bad[i].code);
        assert_string_equal(err.file, bad[i].file);
        assert_string_equal(err.field, bad[i].field);
        assert_non_null(strstr(err.message, bad[i].says));
    }
}

#define COUNT(a) (sizeof a / sizeof *a)

static void broken_rows_name_file_line_and_field(void **state)
{
    static const struct bad bad[] = {
        {"{\"text\":\"a\"}\n{\"text\":\n", PS_EFORMAT, "d.jsonl:2", "", "not valid JSON"},
        {"{\"text\":\"a\"}\n{\"text\":NaN}\n", PS_EFORMAT, "d.jsonl:2", "", "not valid JSON"},
        {"{\"text\":\"a\",\"w\":-Infinity}\n", PS_EFORMAT, "d.jsonl:1", "", "not valid JSON"},
        {"{\"text\":\"a\"}x\n", PS_EFORMAT, "d.jsonl:1", "", "not valid JSON"},
        {"{\"text\":\"a\",\"text\":\"b\"}\n", PS_EFORMAT, "d.jsonl:1", "", "not valid JSON"},
        {"{\"text\":\"a\\u0000\"}\n", PS_EFORMAT, "d.jsonl:1", "", "not valid JSON"},
        {"{\"text\":\"a\\ud800\"}\n", PS_EFORMAT, "d.jsonl:1", "", "not valid JSON"},
        {"\n\n{\"text\":\"\xC3\"}\n", PS_EDATA, "d.jsonl:3", "", "invalid UTF-8"},
        {"{\"text\":\"a\"}\n\"text\"\n", PS_EDATA, "d.jsonl:2", "", "not a JSON object"},
        {"{\"text\":\"a\"}\r\n\r\n{\"txt\":\"a\"}\n", PS_EDATA, "d.jsonl:3", "text", "is missing"},
        {"{\"text\":\"a\"}\n{\"text\":null}\n", PS_EDATA, "d.jsonl:2", "text", "is null"},
        {"{\"text\":7}\n", PS_EDATA, "d.jsonl:1", "text", "must be a string"},
        {"{\"prompt\":\"a\",\"completion\":[]}\n", PS_EDATA, "d.jsonl:1", "completion", "string"},
        {"{\"question\":\"a\",\"answer\":\"b\"}\n", PS_EDATA, "d.jsonl:1", "", "question, answer"},
        {"{}\n", PS_EDATA, "d.jsonl:1", "", "no known row format"},
        {"{\"instruction\":\"a\",\"output\":\"b\",\"input\":null}", PS_EDATA, "d.jsonl:1", "input",
         "is null"},
        {"{\"instruction\":\"a\",\"output\":\"b\",\"history\":[[\"c\",\"d\"]]}", PS_EDATA,
         "d.jsonl:1", "history", "cannot express"},
        {"[{\"text\":\"a\"},\n\n{\"text\":5}]", PS_EDATA, "d.jsonl:3", "text", "string"},
        {"[{\"text\":\"a\"},\n\n{\"text\":}]", PS_EFORMAT, "d.jsonl:3", "", "not valid JSON"},
        {"", PS_EDATA, "d.jsonl", "", "no rows"},
        {"[]", PS_EDATA, "d.jsonl", "", "no rows"},
        {"{\"text\":\"\"}\n\n", PS_EDATA, "d.jsonl", "", "none of the 1 rows"},
    };
    struct ps_dataset_options o = base;
    assert_all_bad(bad, COUNT(bad) - 1, &o, *state);
    o.eos_token_id = -1; /* BOS alone */
    assert_all_bad(bad + COUNT(bad) - 1, 1, &o, *state);
}

static void broken_token_rows_name_file_line_and_field(void **state)
{
    (void)state;
    static const struct bad bad[] = {
        {"{\"input_ids\":[1,2],\"labels\":[1]}", PS_EDATA, "d.jsonl:1", "labels", "1 elements"},
        {"{\"input_ids\":[1,2]}\n{\"input_ids\":[1,261]}", PS_EDATA, "d.jsonl:2", "input_ids",
         "input_ids[1] is 261, must be in [0, 261)"},
        {"{\"input_ids\":[1,-1]}", PS_EDATA, "d.jsonl:1", "input_ids", "is -1"},
        {"{\"input_ids\":[1,-100]}", PS_EDATA, "d.jsonl:1", "input_ids", "is -100"},
        {"{\"input_ids\":[1,2.0]}", PS_EDATA, "d.jsonl:1", "input_ids", "not an integer"},
        {"{\"input_ids\":[1,9223372036854775807]}", PS_EDATA, "d.jsonl:1", "input_ids", "must be"},
        {"{\"input_ids\":[1,2],\"labels\":[1,-99]}", PS_EDATA, "d.jsonl:1", "labels", "or -100"},
        {"{\"input_ids\":[1,2],\"labels\":[1,null]}", PS_EDATA, "d.jsonl:1", "labels", "integer"},
        {"{\"input_ids\":[1,2],\"labels\":null}", PS_EDATA, "d.jsonl:1", "labels", "is null"},
        {"{\"input_ids\":\"1\"}", PS_EDATA, "d.jsonl:1", "input_ids", "must be an array"},
        {"{\"input_ids\":[1,2]}\n{\"labels\":[1,2]}", PS_EDATA, "d.jsonl:2", "input_ids",
         "missing"},
        {"{\"input_ids\":[1]}\n{\"input_ids\":[]}", PS_EDATA, "d.jsonl", "", "none of the 2 rows"},
        {"{\"text\":\"a\"}", PS_EUSAGE, "d.jsonl", "model", "tokenizer"},
    };
    assert_all_bad(bad, COUNT(bad), &base, NULL);
}

static void broken_messages_name_file_line_and_field(void **state)
{
#define MSG(x) "{\"messages\":[" x "]}"
    static const struct bad bad[] = {
        {"{\"messages\":{}}", PS_EDATA, "d.jsonl:1", "messages", "must be an array"},
        {MSG(""), PS_EDATA, "d.jsonl:1", "messages", "empty"},
        {MSG("3"), PS_EDATA, "d.jsonl:1", "messages", "not an object"},
        {MSG("{\"role\":\"user\"}"), PS_EDATA, "d.jsonl:1", "content", "missing"},
        {MSG("{\"content\":\"x\"}"), PS_EDATA, "d.jsonl:1", "role", "missing"},
        {MSG("{\"role\":\"user\",\"content\":null}"), PS_EDATA, "d.jsonl:1", "content", "is null"},
        {MSG("{\"role\":\"tool\",\"content\":\"x\"}"), PS_EDATA, "d.jsonl:1", "role", "\"tool\""},
        {MSG("{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}"), PS_EDATA, "d.jsonl:1",
         "content", "part"},
        {MSG("{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]}"), PS_EDATA,
         "d.jsonl:1", "tool_calls", "cannot express"},
        {MSG("{\"role\":\"assistant\",\"content\":\"\",\"weight\":0.5}"), PS_EDATA, "d.jsonl:1",
         "weight", "0 or 1"},
        {MSG("{\"role\":\"user\",\"content\":\"\",\"train\":true}"), PS_EDATA, "d.jsonl:1", "train",
         "only assistant"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"\"}],\"tools\":[{}]}", PS_EDATA,
         "d.jsonl:1", "tools", "cannot express"},
        {"{\"conversations\":[],\"system\":3}", PS_EDATA, "d.jsonl:1", "system", "string"},
        {MSG("{\"role\":\"user\",\"content\":\"no answer\"}"), PS_EDATA, "d.jsonl", "",
         "none of the 1 rows"},
    };
#undef MSG
    struct ps_dataset_options o = base;
    o.chat_template = "chatml";
    assert_all_bad(bad, COUNT(bad), &o, *state);
}

static void options_that_do_not_fit_the_rows_are_usage_errors(void **state)
{
    static const char text[] = "{\"text\":\"a\"}";
    static const char pair[] = "{\"prompt\":\"a\",\"completion\":\"b\"}";
    static const char chat[] = "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\"}]}";
    static const char ids[] = "{\"input_ids\":[1,2]}";
    static const struct {
        const char *text, *field, *field_map, *chat_template;
        enum ps_loss_on loss_on;
        enum ps_data_format format;
    } bad[] = {
        {.text = text, .loss_on = PS_LOSS_COMPLETION, .field = "loss-on"},
        {.text = text, .loss_on = PS_LOSS_ASSISTANT, .field = "loss-on"},
        {.text = pair, .loss_on = PS_LOSS_ASSISTANT, .field = "loss-on"},
        {.text = ids, .loss_on = PS_LOSS_ALL, .field = "loss-on"},
        {.text = chat, .loss_on = PS_LOSS_COMPLETION, .field = "loss-on", .chat_template = "phi3"},
        {.text = chat, .field = "chat-template"},
        {.text = chat, .field = "chat-template", .chat_template = "auto"},
        {.text = chat, .field = "chat-template", .chat_template = "llama2"},
        {.text = text, .field = "chat-template", .chat_template = "chatml"},
        {.text = text, .field = "field-map", .field_map = "text"},
        {.text = text, .field = "field-map", .field_map = ""},
        {.text = text, .field = "field-map", .field_map = "text=a,"},
        {.text = text, .field = "field-map", .field_map = "text=,prompt=b"},
        {.text = text, .field = "field-map", .field_map = "txt=a"},
        {.text = text, .field = "field-map", .field_map = "text=a,text=b"},
        {.text = text, .field = "field-map", .field_map = "prompt=a", .format = PS_DATA_TEXT},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        struct ps_dataset_options o = base;
        struct ps_dataset ds;
        struct ps_error err;
        o.loss_on = bad[i].loss_on;
        o.field_map = bad[i].field_map;
        o.chat_template = bad[i].chat_template;
        o.format = bad[i].format;
        assert_int_equal(load(&ds, &o, bad[i].text, *state, &err), PS_EUSAGE);
        assert_string_equal(err.field, bad[i].field);
        if (strcmp(err.field, "chat-template") == 0 && bad[i].text == chat)
            for (const char *const *n = (const char *const[]){"chatml", "llama3", "alpaca", NULL};
                 *n; n++)
                assert_non_null(strstr(err.advice, *n));
    }
}

static void a_named_format_is_not_detected(void **state)
{
    struct ps_dataset_options o = base;
    o.format = PS_DATA_TEXT;
    struct ps_dataset ds = load_ok(
        &o, "{\"text\":\"t\",\"prompt\":\"p\",\"completion\":\"c\",\"messages\":[]}", *state);
    assert_row(&ds, 0, "B[tE]");
    ps_dataset_fini(&ds);
    struct ps_error err;
    assert_int_equal(load(&ds, &o, "{\"prompt\":\"p\",\"completion\":\"c\"}", *state, &err),
                     PS_EDATA);
    assert_string_equal(err.file, "d.jsonl:1");
    assert_string_equal(err.field, "text");
}

static void ids_of_a_foreign_tokenizer_are_refused(void **state)
{
    struct ps_dataset_options o = base;
    struct ps_dataset ds;
    struct ps_error err;
    o.vocab_size = 256;
    assert_int_equal(load(&ds, &o, "{\"text\":\"x\"}", *state, &err), PS_EDATA);
    assert_string_equal(err.file, "d.jsonl:1");
    assert_non_null(strstr(err.message, "257"));
}

static void directories_hold_the_splits(void **state)
{
    (void)state;
    struct ps_dataset_options o = base;
    struct ps_dataset ds;
    struct ps_error err = {0};
    assert_int_equal(mkdir("set", 0700), 0);
    o.path = "set";
    assert_int_equal(ps_dataset_load(&ds, &o, NULL, &err), -ENOENT);
    write_file("set/train.jsonl", "{\"input_ids\":[1,2]}");
    static const char *const names[] = {"eval.json", "val.jsonl", "validation.jsonl",
                                        "valid.jsonl"};
    for (size_t i = 0; i < 4; i++) { /* in rising order of preference */
        char path[64], row[64];
        snprintf(path, sizeof path, "set/%s", names[i]);
        snprintf(row, sizeof row, "[{\"input_ids\":[%d,2]}]", (int)i + 3);
        write_file(path, row);
        o.split = i % 2 ? "valid" : "validation";
        assert_int_equal(ps_dataset_load(&ds, &o, NULL, &err), 0);
        assert_string_equal(ds.path, path);
        assert_int_equal(ds.ids[0], (int)i + 3);
        ps_dataset_fini(&ds);
    }
    o.split = NULL;
    assert_int_equal(ps_dataset_load(&ds, &o, NULL, &err), 0);
    assert_string_equal(ds.path, "set/train.jsonl");
    ps_dataset_fini(&ds);
    o.path = "nowhere.jsonl";
    assert_int_equal(ps_dataset_load(&ds, &o, NULL, &err), -ENOENT);
    assert_string_equal(err.file, "nowhere.jsonl");
}

struct logged {
    char text[4096];
};

static void log_line(void *arg, enum ps_log_level level, const char *message)
{
    struct logged *l = arg;
    (void)level;
    strncat(l->text, message, sizeof l->text - strlen(l->text) - 2);
    strcat(l->text, "\n");
}

static void format_loss_and_counts_are_logged(void **state)
{
    struct logged l = {{0}};
    struct ps_log log = {.fn = log_line, .arg = &l};
    struct ps_dataset_options o = base;
    o.log = &log;
    o.max_seq_len = 4;
    struct ps_dataset ds = load_ok(&o,
                                   "{\"prompt\":\"a\",\"completion\":\"b\"}\n"
                                   "{\"prompt\":\"a\",\"completion\":\"bcdef\"}\n"
                                   "{\"prompt\":\"123456\",\"completion\":\"b\"}\n",
                                   *state);
    ps_dataset_fini(&ds);
    assert_non_null(strstr(l.text, "d.jsonl: rows are completion, loss on completion\n"));
    assert_non_null(strstr(l.text, "d.jsonl: 2 rows, 7 tokens, 5 labels\n"));
    assert_non_null(strstr(l.text, "2 rows truncated, 0 dropped, 0 split"));
    assert_non_null(strstr(l.text, "1 rows have no label to train on and were dropped"));
}

static void splits_are_disjoint_whole_and_deterministic(void **state)
{
    (void)state;
    enum { ROWS = 500 };
    FILE *f = fopen("d.jsonl", "w");
    for (int i = 0; i < ROWS; i++)
        fprintf(f, "{\"input_ids\":[%d,%d%s],\"labels\":[0,%d%s]}\n", i % 256, i / 256,
                i % 3 ? ",9" : "", i % 256, i % 3 ? ",-100" : "");
    fclose(f);
    uint64_t first[2] = {0};
    for (int round = 0; round < 3; round++) {
        struct ps_dataset a, b;
        struct ps_error err = {0};
        assert_int_equal(ps_dataset_load(&a, &base, NULL, &err), 0);
        uint64_t tokens = a.token_count, labels = a.label_count;
        assert_int_equal(ps_dataset_split(&a, &b, 0.2, round < 2 ? 1 : 2, &err), 0);
        assert_int_equal(a.row_count + b.row_count, ROWS);
        assert_int_equal(a.token_count + b.token_count, tokens);
        assert_int_equal(a.label_count + b.label_count, labels);
        assert_in_range(b.row_count, 60, 140);
        int seen[ROWS] = {0};
        const struct ps_dataset *const both[] = {&a, &b};
        uint64_t hash = 0;
        for (int k = 0; k < 2; k++) {
            const struct ps_dataset *d = both[k];
            uint64_t line = 0;
            for (uint64_t r = 0; r < d->row_count; r++) {
                uint64_t at = d->row_begin[r];
                int i = d->ids[at] + 256 * d->ids[at + 1];
                assert_true(d->row_line[r] > line); /* file order */
                line = d->row_line[r];
                assert_int_equal(line, i + 1);
                assert_int_equal(d->row_begin[r + 1] - at, i % 3 ? 3 : 2);
                assert_int_equal(d->labels[at + 1], i % 256);
                seen[i]++;
                if (k)
                    hash = hash * 31 + line;
            }
            assert_int_equal(d->row_begin[d->row_count], d->token_count);
        }
        for (int i = 0; i < ROWS; i++)
            assert_int_equal(seen[i], 1);
        if (round == 0)
            first[0] = hash;
        assert_true(round == 2 ? hash != first[0] : hash == first[0]);
        ps_dataset_fini(&a);
        ps_dataset_fini(&b);
    }
}

static void a_split_leaves_rows_on_both_sides(void **state)
{
    (void)state;
    struct ps_dataset a = load_ok(&base, "{\"input_ids\":[1,2]}\n{\"input_ids\":[3,4]}\n", NULL), b;
    struct ps_error err = {0};
    assert_int_equal(ps_dataset_split(&a, &b, 0.0, 1, &err), PS_EDATA);
    assert_int_equal(ps_dataset_split(&a, &b, 1.0, 1, &err), PS_EDATA);
    assert_true(err.advice[0] != 0);
    assert_int_equal(a.row_count, 2); /* untouched */
    assert_int_equal(a.ids[3], 4);
    ps_dataset_fini(&a);
}

#define WITH_TOKENIZER(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_TOKENIZER(text_rows_train_all_but_bos_and_end_in_eos),
        WITH_TOKENIZER(completion_rows_train_the_completion_and_eos),
        WITH_TOKENIZER(alpaca_rows_are_the_stanford_prompts),
        WITH_TOKENIZER(messages_train_assistant_turns_with_their_terminator),
        WITH_TOKENIZER(messages_may_have_parts_and_weights),
        WITH_TOKENIZER(sharegpt_roles_are_mapped),
        cmocka_unit_test(token_rows_are_used_as_they_are),
        WITH_TOKENIZER(field_map_renames_fields_of_any_format),
        cmocka_unit_test(rows_without_labels_that_count_are_dropped_and_counted),
        WITH_TOKENIZER(overlength_rows_are_truncated_dropped_split_or_refused),
        WITH_TOKENIZER(rows_with_a_prompt_cannot_be_split),
        WITH_TOKENIZER(broken_rows_name_file_line_and_field),
        cmocka_unit_test(broken_token_rows_name_file_line_and_field),
        WITH_TOKENIZER(broken_messages_name_file_line_and_field),
        WITH_TOKENIZER(options_that_do_not_fit_the_rows_are_usage_errors),
        WITH_TOKENIZER(a_named_format_is_not_detected),
        WITH_TOKENIZER(ids_of_a_foreign_tokenizer_are_refused),
        cmocka_unit_test(directories_hold_the_splits),
        WITH_TOKENIZER(format_loss_and_counts_are_logged),
        cmocka_unit_test(splits_are_disjoint_whole_and_deterministic),
        cmocka_unit_test(a_split_leaves_rows_on_both_sides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
