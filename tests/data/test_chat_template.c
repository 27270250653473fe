/* Built-in chat templates against transformers' renderings, and their trained spans. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/status.h"
#include "runtime/data/chat_template.h"

#define MESSAGES_MAX 16

static const char *text_of(const json_t *obj, const char *key)
{
    const char *s = json_string_value(json_object_get(obj, key));
    return s ? s : "";
}

static size_t read_messages(const json_t *list, struct ps_message *out)
{
    size_t n = json_array_size(list);
    assert_in_range(n, 1, MESSAGES_MAX);
    for (size_t i = 0; i < n; i++) {
        out[i].role = text_of(json_array_get(list, i), "role");
        out[i].content = text_of(json_array_get(list, i), "content");
    }
    return n;
}

static void renders_what_transformers_renders(void **state)
{
    (void)state;
    char path[512], line[1 << 14];
    assert_non_null(getenv("PENSTOCK_ROOT"));
    snprintf(path, sizeof path, "%s/tests/golden/chat_templates.jsonl", getenv("PENSTOCK_ROOT"));
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    int equal = 0, refused = 0;
    while (fgets(line, sizeof line, f)) {
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        struct ps_message m[MESSAGES_MAX];
        size_t n = read_messages(json_object_get(row, "messages"), m);
        struct ps_rendering r;
        struct ps_error err = {0};
        int ret = ps_chat_render(&r, text_of(row, "template"), m, n,
                                 json_is_true(json_object_get(row, "add_generation_prompt")),
                                 text_of(row, "bos"), text_of(row, "eos"), &err);
        if (json_object_get(row, "error")) {
            assert_int_equal(ret, PS_EDATA);
            refused++;
        } else {
            assert_int_equal(ret, 0);
            assert_string_equal(r.text, text_of(row, "text"));
            assert_int_equal(r.len, strlen(r.text));
            ps_rendering_fini(&r);
            equal++;
        }
        json_decref(row);
    }
    fclose(f);
    assert_int_equal(equal, 144);
    assert_int_equal(refused, 12);
}

static void renders_the_model_makers_own_cases(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"default", "_base", "chatml"},
        {"custom", "TheBloke/Mistral-7B-Instruct-v0.1-GPTQ", "mistral"},
        {"custom", "HuggingFaceH4/zephyr-7b-beta (add_generation_prompt=false)", "zephyr"},
    };
    char path[512];
    snprintf(path, sizeof path, "%s/../shared/data/chat/templates.json", getenv("PENSTOCK_ROOT"));
    json_t *all = json_load_file(path, 0, NULL);
    if (!all) {
        print_message("skip: no %s\n", path);
        skip();
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *one = json_object_get(json_object_get(all, cases[i][0]), cases[i][1]);
        json_t *data = json_object_get(one, "data");
        struct ps_message m[MESSAGES_MAX];
        size_t n = read_messages(json_object_get(data, "messages"), m);
        struct ps_rendering r;
        assert_int_equal(ps_chat_render(&r, cases[i][2], m, n, false, text_of(data, "bos_token"),
                                        text_of(data, "eos_token"), NULL),
                         0);
        assert_string_equal(r.text, text_of(one, "target"));
        ps_rendering_fini(&r);
    }
    json_decref(all);
}

static const struct ps_message four[] = {
    {"user", " What? "}, {"assistant", " This.\n"}, {"user", "And?"}, {"assistant", "That."}};

static void spans_are_assistant_turns_with_their_terminator(void **state)
{
    (void)state;
    static const char *const want[][3] = {
        {"chatml", " This.\n<|im_end|>", "That.<|im_end|>"},
        {"llama3", "This.<|eot_id|>", "That.<|eot_id|>"},
        {"mistral", " This.\n</s>", "That.</s>"},
        {"gemma", "This.<end_of_turn>", "That.<end_of_turn>"},
        {"phi3", " This.\n<|end|>", "That.<|end|>"},
        {"zephyr", " This.\n</s>", "That.</s>"},
        {"alpaca", " This.\n</s>", "That.</s>"},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct ps_rendering r;
        assert_int_equal(ps_chat_render(&r, want[i][0], four, 4, false, "<s>", "</s>", NULL), 0);
        assert_int_equal(r.span_count, 2);
        for (size_t k = 0; k < 2; k++) {
            size_t begin = r.span[2 * k], end = r.span[2 * k + 1];
            assert_true(end <= r.len && end - begin == strlen(want[i][k + 1]));
            assert_memory_equal(r.text + begin, want[i][k + 1], end - begin);
        }
        assert_true(r.span[1] <= r.span[2]);
        ps_rendering_fini(&r);
    }
}

/* A span begins where the prompt of the turns before it ends: what generation continues from is
 * what training has seen. */
static void spans_begin_where_the_generation_prompt_ends(void **state)
{
    (void)state;
    for (const char *const *name = ps_chat_template_names(); *name; name++) {
        struct ps_rendering whole, prompt;
        assert_int_equal(ps_chat_render(&whole, *name, four, 4, false, "<s>", "</s>", NULL), 0);
        for (size_t k = 0; k < 2; k++) {
            assert_int_equal(
                ps_chat_render(&prompt, *name, four, 2 * k + 1, true, "<s>", "</s>", NULL), 0);
            assert_int_equal(prompt.span_count, k);
            assert_int_equal(prompt.len, whole.span[2 * k]);
            assert_memory_equal(prompt.text, whole.text, prompt.len);
            ps_rendering_fini(&prompt);
        }
        ps_rendering_fini(&whole);
    }
}

static void alpaca_is_the_stanford_prompt(void **state)
{
    (void)state;
    const struct ps_message m[] = {
        {"system", " Be terse. "}, {"user", "Add 1 and 1."}, {"assistant", "2"}, {"user", "Why?"}};
    struct ps_rendering r;
    assert_int_equal(ps_chat_render(&r, "alpaca", m + 1, 2, false, "<s>", "</s>", NULL), 0);
    assert_string_equal(r.text,
                        "<s>Below is an instruction that describes a task. Write a response that "
                        "appropriately completes the request.\n\n### Instruction:\nAdd 1 and "
                        "1.\n\n### Response:2</s>");
    ps_rendering_fini(&r);
    assert_int_equal(ps_chat_render(&r, "alpaca", m, 4, true, "", "</s>", NULL), 0);
    assert_string_equal(r.text, "Be terse.\n\n### Instruction:\nAdd 1 and 1.\n\n### Response:2</s>"
                                "\n\n### Instruction:\nWhy?\n\n### Response:");
    ps_rendering_fini(&r);
}

static void assert_refused(const char *name, const struct ps_message *m, size_t n,
                           const char *message)
{
    struct ps_error err = {0};
    struct ps_rendering r;
    assert_int_equal(ps_chat_render(&r, name, m, n, false, "", "", &err), PS_EDATA);
    assert_non_null(strstr(err.message, message));
}

static void roles_and_orders_that_a_template_cannot_express_are_refused(void **state)
{
    (void)state;
    const struct ps_message tool[] = {{"user", "u"}, {"tool", "t"}};
    const struct ps_message late[] = {{"user", "u"}, {"system", "s"}, {"user", "v"}};
    const struct ps_message system[] = {{"system", "s"}, {"user", "u"}};
    const struct ps_message twice[] = {{"user", "u"}, {"user", "v"}};
    const struct ps_message first[] = {{"assistant", "a"}};
    for (const char *const *name = ps_chat_template_names(); *name; name++) {
        assert_refused(*name, tool, 2, "message 2");
        assert_refused(*name, tool, 2, "\"tool\"");
        assert_refused(*name, tool, 0, "empty");
    }
    assert_refused("mistral", system, 2, "no system messages");
    assert_refused("gemma", late, 3, "message 2");
    assert_refused("alpaca", late, 3, "message 2");
    assert_refused("gemma", system, 1, "needs a user message");
    assert_refused("alpaca", system, 1, "needs a user message");
    assert_refused("mistral", twice, 2, "alternate");
    assert_refused("gemma", first, 1, "alternate");
}

static void unknown_names_are_usage_errors_that_list_the_names(void **state)
{
    (void)state;
    struct ps_rendering r;
    static const char *const bad[] = {"auto", "llama2", "", "ChatML"};
    for (size_t i = 0; i < 4; i++) {
        struct ps_error err = {0};
        assert_int_equal(ps_chat_render(&r, bad[i], four, 4, false, "", "", &err), PS_EUSAGE);
        for (const char *const *name = ps_chat_template_names(); *name; name++)
            assert_non_null(strstr(err.advice, *name));
    }
}

static void long_conversations_grow_text_and_spans(void **state)
{
    (void)state;
    enum { TURNS = 2000 };
    struct ps_message *m = malloc(TURNS * sizeof *m);
    for (size_t i = 0; i < TURNS; i++)
        m[i] = (struct ps_message){i % 2 ? "assistant" : "user", i % 2 ? "yes" : "no?"};
    struct ps_rendering r;
    assert_int_equal(ps_chat_render(&r, "chatml", m, TURNS, false, "", "", NULL), 0);
    assert_int_equal(r.span_count, TURNS / 2);
    for (size_t k = 0; k < r.span_count; k++)
        assert_memory_equal(r.text + r.span[2 * k], "yes<|im_end|>", 13);
    ps_rendering_fini(&r);
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(renders_what_transformers_renders),
        cmocka_unit_test(renders_the_model_makers_own_cases),
        cmocka_unit_test(spans_are_assistant_turns_with_their_terminator),
        cmocka_unit_test(spans_begin_where_the_generation_prompt_ends),
        cmocka_unit_test(alpaca_is_the_stanford_prompt),
        cmocka_unit_test(roles_and_orders_that_a_template_cannot_express_are_refused),
        cmocka_unit_test(unknown_names_are_usage_errors_that_list_the_names),
        cmocka_unit_test(long_conversations_grow_text_and_spans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
