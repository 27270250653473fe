/* Options: names, values, combinations, YAML and its round trip. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "session/options.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const char *const train_args[] = {"--model", "m", "--data", "d.jsonl", "--output", "o"};

/* Parse a NULL-terminated list of arguments after `base`. */
static int parse(struct ps_options *opt, enum ps_command c, const char *const *base,
                 size_t base_count, const char *const *more, struct ps_error *err)
{
    char *argv[64];
    int argc = 0;
    for (size_t i = 0; i < base_count; i++)
        argv[argc++] = (char *)(uintptr_t)base[i];
    for (; more && *more; more++)
        argv[argc++] = (char *)(uintptr_t)*more;
    bool help;
    memset(err, 0, sizeof *err);
    ps_options_init(opt, c);
    return ps_options_parse_args(opt, argc, argv, &help, err);
}

static int parse_train(struct ps_options *opt, const char *const *more, struct ps_error *err)
{
    int ret = parse(opt, PS_CMD_TRAIN, train_args, COUNT(train_args), more, err);
    return ret ? ret : ps_options_resolve(opt, err);
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" does not contain \"%s\"", text, part);
}

static void defaults_are_those_of_the_contract(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(parse_train(&o, NULL, &err), 0);
    assert_string_equal(o.model, "m");
    assert_string_equal(o.method, "lora");
    assert_string_equal(o.device, "auto");
    assert_string_equal(o.optimizer, "adamw");
    assert_string_equal(o.lr_scheduler, "cosine");
    assert_string_equal(o.clip, "exact");
    assert_string_equal(o.overlength, "truncate");
    assert_string_equal(o.format, "auto");
    assert_string_equal(o.progress, "auto");
    assert_string_equal(o.lora_target, "all");
    assert_null(o.adapter);
    assert_null(o.resume);
    assert_int_equal(o.dtype, PS_DTYPE_BF16);
    assert_int_equal(o.isa, -1);
    assert_int_equal(o.threads, 0);
    assert_int_equal(o.host_mem, -1);
    assert_int_equal(o.offload_activations, PS_ACT_AUTO);
    assert_int_equal(o.seed, 42);
    assert_int_equal(o.lora_r, 16);
    assert_true(o.lora_alpha == 32 && o.lora_dropout == 0);
    assert_true(o.epochs == 1 && o.max_steps == 0);
    assert_int_equal(o.batch_size, 1);
    assert_int_equal(o.grad_accum, 8);
    assert_int_equal(o.max_seq_len, 2048);
    assert_int_equal(o.logging_steps, 1);
    assert_int_equal(o.save_steps, 0);
    assert_int_equal(o.save_total_limit, 2);
    assert_int_equal(o.eval_steps, 0);
    assert_true(o.packing && o.shuffle && !o.save_best && !o.dry_run && !o.json);
    assert_true(o.learning_rate == 2e-4 && o.weight_decay == 0 && o.warmup_ratio == 0.03);
    assert_true(o.beta1 == 0.9 && o.beta2 == 0.999 && o.eps == 1e-8 && o.max_grad_norm == 1.0);
    assert_int_equal(o.warmup_steps, -1);
    assert_false(ps_options_given(&o, "lora-r"));
    assert_true(ps_options_given(&o, "model"));
    ps_options_fini(&o);
}

static void method_full_has_its_own_defaults(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(parse_train(&o, (const char *[]){"--method", "full", NULL}, &err), 0);
    assert_true(o.learning_rate == 1e-5 && o.weight_decay == 0.01);
    assert_string_equal(o.train_layers, "all");
    ps_options_fini(&o);
}

static void sizes_are_read_with_their_units(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t bytes; /* 0: rejected */
    } cases[] = {
        {"512MiB", 512LL << 20},
        {"24GiB", 24LL << 30},
        {"1.5TB", 1500000000000LL},
        {"auto", -1},
        {"1TiB", 1LL << 40},
        {"4096B", 4096},
        {"2000000", 2000000},
        {"24", 0},
        {"1048575", 0},
        {"10KB", 10000},
        {"0.5GiB", 1LL << 29},
        {"24G", 0},
        {"GiB", 0},
        {"-1GiB", 0},
        {"0", 0},
        {"1e30GB", 0},
        {"1..2GB", 0},
        {"0%", 0},
        {"101%", 0},
        {"x%", 0},
        {"24 GiB", 0},
        {"", 0},
        {"99999999TiB", 0},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ps_options o;
        struct ps_error err;
        ps_options_init(&o, PS_CMD_TRAIN);
        int ret = ps_options_set(&o, "host-mem", cases[i].text, "--host-mem", &err);
        if (ret != (cases[i].bytes ? 0 : PS_EUSAGE))
            fail_msg("%s: %d", cases[i].text, ret);
        if (cases[i].bytes)
            assert_int_equal(o.host_mem, cases[i].bytes);
        else
            assert_int_equal(o.host_mem, -1);
        ps_options_fini(&o);
    }
}

static void percentages_are_of_free_memory(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    ps_options_init(&o, PS_CMD_TRAIN);
    assert_int_equal(ps_options_set(&o, "host_mem", "80%", "--host-mem", &err), 0);
    int64_t most = o.host_mem;
    assert_true(most > 1 << 20);
    assert_int_equal(ps_options_set(&o, "host_mem", "1%", "--host-mem", &err), 0);
    assert_true(o.host_mem > 0 && o.host_mem < most / 8);
    ps_options_fini(&o);
}

static void aliases_reach_their_option(void **state)
{
    (void)state;
    static const char *const alias[][3] = {
        {"model_name_or_path", "model", "x"},
        {"output_dir", "output", "x"},
        {"per_device_train_batch_size", "batch-size", "3"},
        {"micro_batch_size", "batch-size", "3"},
        {"gradient_accumulation_steps", "grad-accum", "3"},
        {"num_train_epochs", "epochs", "3"},
        {"num_epochs", "epochs", "3"},
        {"sequence_len", "max-seq-len", "3"},
        {"max_seq_length", "max-seq-len", "3"},
        {"cutoff_len", "max-seq-len", "3"},
        {"lr_scheduler_type", "lr-scheduler", "linear"},
        {"lora_rank", "lora-r", "3"},
        {"lora_target_modules", "lora-target", "attn"},
        {"sample_packing", "packing", "false"},
        {"lora-rank", "lora_r", "3"},
        {"learning_rate", "learning-rate", "3"},
    };
    for (size_t i = 0; i < COUNT(alias); i++) {
        struct ps_options o;
        struct ps_error err = {0};
        ps_options_init(&o, PS_CMD_TRAIN);
        if (ps_options_set(&o, alias[i][0], alias[i][2], "--x", &err))
            fail_msg("%s: %s", alias[i][0], err.message);
        if (!ps_options_given(&o, alias[i][1]))
            fail_msg("%s did not set %s", alias[i][0], alias[i][1]);
        ps_options_fini(&o);
    }
}

static void mistakes_get_a_suggestion(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"lora-rnk", "`lora-r`"},
        {"learnig-rate", "`learning-rate`"},
        {"lerning_rate", "`learning-rate`"},
        {"batchsize", "`batch-size`"},
        {"ouptut", "`output`"},
        {"max-step", "`max-steps`"},
        {"modle", "`model`"},
        {"gradient_acumulation_steps", "`grad-accum`"},
        {"zzzzzzzzzzzz", "--help"},
    };
    for (size_t i = 0; i < COUNT(wrong); i++) {
        struct ps_options o;
        struct ps_error err = {0};
        ps_options_init(&o, PS_CMD_TRAIN);
        assert_int_equal(ps_options_set(&o, wrong[i][0], "1", "--x", &err), PS_EUSAGE);
        assert_contains(err.message, "unknown option");
        assert_contains(err.advice, wrong[i][1]);
        ps_options_fini(&o);
    }
}

static void options_of_later_versions_are_named_as_such(void **state)
{
    (void)state;
    static const char *const later[] = {"peft-exact", "base_quant"};
    for (size_t i = 0; i < COUNT(later); i++) {
        struct ps_options o;
        struct ps_error err = {0};
        ps_options_init(&o, PS_CMD_TRAIN);
        assert_int_equal(ps_options_set(&o, later[i], "1", "--x", &err), PS_EUSAGE);
        assert_contains(err.message, "not in this version");
        ps_options_fini(&o);
    }
}

static void values_are_checked(void **state)
{
    (void)state;
    static const char *const bad[][3] = {
        {"lora-r", "0", "from 1 to"},
        {"lora-r", "2.5", "whole number"},
        {"lora-r", "", "whole number"},
        {"lora-r", "16x", "whole number"},
        {"lora-dropout", "1", "below 1"},
        {"lora-dropout", "nan", "number"},
        {"epochs", "0", "above 0"},
        {"epochs", "inf", "number"},
        {"epochs", "0x10", "number"},
        {"learning-rate", "-1", "from 0"},
        {"seed", "-1", "whole number"},
        {"seed", "18446744073709551616", "whole number"},
        {"max-steps", "9999999999999999999999", "whole number"},
        {"packing", "maybe", "true or false"},
        {"device", "tpu", "accepts auto/cpu"},
        {"offload-activations", "tape", "accepts auto/device/host/disk/recompute"},
        {"offload-weights", "recompute", "accepts auto/device/host/disk"},
        {"offload-optimizer", "recompute", "accepts auto/device/host/disk"},
        {"nvme-write-limit", "much", "accepts a size"},
        {"gpu-mem", "80%", "accepts a size such as 512MiB, 24GiB, 1.5TB or auto"},
        {"nvme-mem", "lots", "accepts a size"},
        {"gpu-mem", "24", "lacks a unit: `24GiB` or `24MiB`?"},
        {"nvme-path", "", "not empty"},
        {"prefetch-depth", "-1", "from 1 to"},
        {"queue-depth", "65", "from 1 to 64"},
        {"storage", "floppy", "accepts auto/io_uring/threads/ram/null"},
        {"emu-clock", "slow", "accepts real/virtual"},
        {"serial", "yes", "true or false"},
        {"method", "qlora", "accepts lora"},
        {"clip", "late", "accepts exact/delayed/per-tensor/none"},
        {"spill-mode", "fast", "accepts shadow/inplace"},
        {"optimizer", "adagrad", "accepts adamw/adamw8bit"},
        {"dtype", "fp16", "accepts bf16/fp32"},
        {"output", "", "not empty"},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        struct ps_options o;
        struct ps_error err = {0};
        ps_options_init(&o, PS_CMD_TRAIN);
        if (ps_options_set(&o, bad[i][0], bad[i][1], "--x", &err) != PS_EUSAGE)
            fail_msg("%s accepted %s", bad[i][0], bad[i][1]);
        assert_contains(err.message, bad[i][2]);
        assert_string_equal(err.field, "--x");
        assert_false(ps_options_given(&o, bad[i][0]));
        ps_options_fini(&o);
    }
}

static void good_values_arrive_typed(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    static const char *const args[] = {"--packing",
                                       "--save-best",
                                       "false",
                                       "--shuffle=false",
                                       "--seed=18446744073709551615",
                                       "--isa",
                                       "avx2",
                                       "--offload-activations=host",
                                       "--dtype",
                                       "fp32",
                                       "--max_steps=1e3",
                                       "--learning-rate",
                                       "3e-5",
                                       "--resume",
                                       "--lora_target=q_proj,v_proj",
                                       NULL};
    assert_int_equal(parse_train(&o, args, &err), PS_EUSAGE); /* save-best needs eval-steps */
    assert_string_equal(err.field, "save-best");
    assert_true(o.packing && !o.save_best && !o.shuffle);
    assert_true(o.seed == UINT64_MAX);
    assert_int_equal(o.isa, PS_ISA_AVX2);
    assert_int_equal(o.offload_activations, PS_ACT_KEEP);
    assert_int_equal(o.dtype, PS_DTYPE_F32);
    assert_int_equal(o.max_steps, 1000);
    assert_true(o.learning_rate == 3e-5);
    assert_string_equal(o.resume, "auto");
    assert_string_equal(o.lora_target, "q_proj,v_proj");
    ps_options_fini(&o);
}

static void a_missing_value_is_an_error(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(parse_train(&o, (const char *[]){"--lora-r", NULL}, &err), PS_EUSAGE);
    assert_contains(err.message, "needs a value");
    ps_options_fini(&o);
    assert_int_equal(parse_train(&o, (const char *[]){"--adapter", "--json", NULL}, &err),
                     PS_EUSAGE);
    assert_contains(err.message, "needs a value");
    ps_options_fini(&o);
    assert_int_equal(parse_train(&o, (const char *[]){"-v", NULL}, &err), PS_EUSAGE);
    assert_contains(err.message, "unknown flag");
    ps_options_fini(&o);
}

/* Each case: arguments of one command, and what the message must name. */
static void options_without_effect_are_errors_that_say_why(void **state)
{
    (void)state;
    static const struct {
        enum ps_command command;
        const char *args[12];
        const char *names[2];
    } cases[] = {
        {PS_CMD_TRAIN, {"--method", "full", "--lora-r", "8"}, {"lora-r", "--method full"}},
        {PS_CMD_TRAIN, {"--method", "full", "--adapter", "a"}, {"adapter", "--method full"}},
        {PS_CMD_TRAIN, {"--train-layers", "last:2"}, {"train-layers", "--method lora"}},
        {PS_CMD_TRAIN, {"--adapter", "a", "--lora-alpha", "8"}, {"lora-alpha", "--adapter"}},
        {PS_CMD_TRAIN,
         {"--lr-scheduler", "constant", "--min-lr-ratio", "0.1"},
         {"min-lr-ratio", "constant"}},
        {PS_CMD_TRAIN, {"--wsd-decay-ratio", "0.2"}, {"wsd-decay-ratio", "wsd"}},
        {PS_CMD_TRAIN, {"--max-steps", "5", "--epochs", "2"}, {"epochs", "--max-steps"}},
        {PS_CMD_TRAIN,
         {"--warmup-steps", "5", "--warmup-ratio", "0.1"},
         {"warmup-ratio", "--warmup-steps"}},
        {PS_CMD_TRAIN,
         {"--clip", "none", "--max-grad-norm", "2"},
         {"max-grad-norm", "--clip none"}},
        {PS_CMD_TRAIN, {"--eval-data", "e", "--val-split", "0.1"}, {"val-split", "--eval-data"}},
        {PS_CMD_TRAIN, {"--eval-steps", "5"}, {"eval-steps", "--eval-data"}},
        {PS_CMD_TRAIN, {"--eval-data", "e", "--save-best"}, {"save-best", "--eval-steps"}},
        {PS_CMD_TRAIN,
         {"--format", "text", "--chat-template", "chatml"},
         {"chat-template", "--format"}},
        {PS_CMD_TRAIN, {"--format", "text", "--loss-on", "completion"}, {"text", "completion"}},
        {PS_CMD_TRAIN,
         {"--format", "completion", "--loss-on", "assistant"},
         {"completion", "assistant"}},
        {PS_CMD_TRAIN, {"--logits", "f"}, {"logits", "`train`"}},
        {PS_CMD_EVAL, {"--dump-grads", "f"}, {"dump-grads", "`eval`"}},
        {PS_CMD_EVAL, {"--lora-r", "8"}, {"lora-r", "`eval`"}},
        {PS_CMD_EXPORT,
         {"--model", "m", "--adapter", "a", "--format", "hf", "--output", "o", "--adapter-dtype",
          "bf16"},
         {"adapter-dtype", "--format hf"}},
        {PS_CMD_GENERATE,
         {"--model", "m", "--prompt", "p", "--temperature", "0", "--top-k", "5"},
         {"top-k", "--temperature 0"}},
        {PS_CMD_GENERATE,
         {"--model", "m", "--prompt", "p", "--prompts", "f"},
         {"prompt", "prompts"}},
        {PS_CMD_EXPORT,
         {"--model", "m", "--format", "hf", "--output", "o"},
         {"adapter", "checkpoint"}},
        {PS_CMD_EXPORT,
         {"--model", "m", "--adapter", "a", "--checkpoint", "c"},
         {"adapter", "checkpoint"}},
        {PS_CMD_EXPORT, {"--format", "text"}, {"format", "peft/hf"}},
        {PS_CMD_INIT, {"--model", "m"}, {"model", "`init`"}},
        {PS_CMD_LIST, {"models", "--threads", "2"}, {"threads", "`list`"}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ps_options o;
        struct ps_error err;
        bool train = cases[i].command == PS_CMD_TRAIN;
        int ret = parse(&o, cases[i].command, train_args, train ? COUNT(train_args) : 0,
                        cases[i].args, &err);
        if (ret == 0)
            ret = ps_options_resolve(&o, &err);
        if (ret != PS_EUSAGE)
            fail_msg("case %zu (%s %s): %d", i, cases[i].args[0], cases[i].args[1], ret);
        assert_contains(err.message, cases[i].names[0]);
        assert_contains(err.message, cases[i].names[1]);
        ps_options_fini(&o);
    }
}

static void what_a_command_needs_is_named(void **state)
{
    (void)state;
    static const struct {
        enum ps_command command;
        const char *args[8];
        const char *missing;
    } cases[] = {
        {PS_CMD_TRAIN, {NULL}, "--model"},
        {PS_CMD_TRAIN, {"--model", "m"}, "--data"},
        {PS_CMD_TRAIN, {"--model", "m", "--data", "d"}, "--output"},
        {PS_CMD_EVAL, {"--model", "m"}, "--data"},
        {PS_CMD_GENERATE, {"--model", "m"}, "--prompt"},
        {PS_CMD_EXPORT, {"--model", "m", "--adapter", "a"}, "--format"},
        {PS_CMD_EXPORT, {"--model", "m", "--adapter", "a", "--format", "hf"}, "--output"},
        {PS_CMD_INIT, {"--output", "o"}, "--config"},
        {PS_CMD_DATA_INSPECT, {NULL}, "--data"},
        {PS_CMD_DATA_TOKENIZE, {"--text", "x"}, "--model"},
        {PS_CMD_DATA_RENDER, {NULL}, "--data"},
        {PS_CMD_PLAN, {NULL}, "--model"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ps_options o;
        struct ps_error err;
        assert_int_equal(parse(&o, cases[i].command, NULL, 0, cases[i].args, &err), 0);
        assert_int_equal(ps_options_resolve(&o, &err), PS_EUSAGE);
        assert_contains(err.message, cases[i].missing);
        ps_options_fini(&o);
    }
}

static void unknown_templates_are_refused_with_the_names(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(parse_train(&o, (const char *[]){"--chat-template", "chat.jinja", NULL}, &err),
                     PS_EUSAGE);
    assert_contains(err.message, "chatml");
    ps_options_fini(&o);
    assert_int_equal(parse_train(&o, (const char *[]){"--chat-template", "llama3", NULL}, &err), 0);
    ps_options_fini(&o);
}

static void yaml_sets_options_and_flags_beat_it(void **state)
{
    (void)state;
    write_file("run.yaml", "# a comment\n"
                           "model: base\n"
                           "output_dir: 'out dir'\n"
                           "data: \"rows.jsonl\"\n"
                           "lora_r: 8\n"
                           "learning_rate: 1e-3\n"
                           "lora_target: [q_proj, v_proj]\n"
                           "field_map:\n"
                           "  prompt: question\n"
                           "  completion: answer\n"
                           "packing: false\n"
                           "adapter: null\n"
                           "eval_data: ~\n"
                           "lora-layers:\n"
                           "  last:2\n");
    struct ps_options o;
    struct ps_error err;
    /* the flag stands before the file, and still wins */
    static const char *const args[] = {"--lora-r", "4", "run.yaml", "--seed", "7", NULL};
    if (parse(&o, PS_CMD_TRAIN, NULL, 0, args, &err))
        fail_msg("%s (%s)", err.message, err.file);
    assert_int_equal(ps_options_resolve(&o, &err), 0);
    assert_string_equal(o.model, "base");
    assert_string_equal(o.output, "out dir");
    assert_int_equal(o.lora_r, 4);
    assert_int_equal(o.seed, 7);
    assert_true(o.learning_rate == 1e-3);
    assert_string_equal(o.lora_target, "q_proj,v_proj");
    assert_string_equal(o.field_map, "prompt=question,completion=answer");
    assert_string_equal(o.lora_layers, "last:2");
    assert_false(o.packing);
    assert_null(o.adapter);
    assert_null(o.eval_data);
    assert_false(ps_options_given(&o, "adapter"));
    ps_options_fini(&o);
}

static void yaml_errors_name_file_and_line(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *where;
        const char *message;
    } cases[] = {
        {"model: m\nlora_rnk: 8\n", "bad.yaml:2", "unknown option"},
        {"model: m\n\nlora_r: x\n", "bad.yaml:3", "whole number"},
        {"lora_r: 8\nlora_rank: 8\n", "bad.yaml:2", "set twice"},
        {"model: &a m\n", "bad.yaml:1", "anchors"},
        {"model: *a\n", "bad.yaml:1", "anchors"},
        {"model: !!str m\n", "bad.yaml:1", "anchors"},
        {"lora_r:\n  x: 1\n", "bad.yaml:2", "nested"},
        {"lora_target: [[a]]\n", "bad.yaml:1", "nested"},
        {"lora_target: []\n", "bad.yaml:1", "empty"},
        {"- a\n- b\n", "bad.yaml:1", "name: value"},
        {"just text\n", "bad.yaml:1", "name: value"},
        {"model: m\n---\nmodel: m\n", "bad.yaml:3", "more than one document"},
        {"model: \"m\n", "bad.yaml:2", "not valid YAML"},
        {"model: m\n\tlora_r: 8\n", "bad.yaml:2", "not valid YAML"},
        {"logits: f\n", "bad.yaml:1", "no effect in `train`"},
        {"peft-exact: 60s\n", "bad.yaml:1", "not in this version"},
        {"peft_exact:\n", "bad.yaml:1", "not in this version"},
        {"\"lora_r\\0x\": 8\n", "bad.yaml:1", "a key is a name"},
        {"model: \"a\\0b\"\n", "bad.yaml:1", "NUL"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        write_file("bad.yaml", cases[i].text);
        struct ps_options o;
        struct ps_error err = {0};
        ps_options_init(&o, PS_CMD_TRAIN);
        int ret = ps_options_load_yaml(&o, "bad.yaml", &err);
        if (ret != PS_EUSAGE)
            fail_msg("case %zu: %d", i, ret);
        assert_string_equal(err.file, cases[i].where);
        assert_contains(err.message, cases[i].message);
        ps_options_fini(&o);
    }
    struct ps_options o;
    struct ps_error err = {0};
    ps_options_init(&o, PS_CMD_TRAIN);
    assert_int_equal(ps_options_load_yaml(&o, "absent.yaml", &err), PS_EUSAGE);
    assert_string_equal(err.file, "absent.yaml");
    assert_int_equal(ps_status_exit_code(err.code), 2);
    ps_options_fini(&o);
}

static void an_empty_file_sets_nothing(void **state)
{
    (void)state;
    static const char *const text[] = {"", "# nothing\n", "---\n", "{}\n"};
    for (size_t i = 0; i < COUNT(text); i++) {
        write_file("empty.yaml", text[i]);
        struct ps_options o;
        struct ps_error err = {0};
        ps_options_init(&o, PS_CMD_TRAIN);
        assert_int_equal(ps_options_load_yaml(&o, "empty.yaml", &err), 0);
        assert_true(!o.given[0] && !o.given[1] && !o.given[2] && !o.given[3]);
        ps_options_fini(&o);
    }
}

static void a_resolved_configuration_gives_itself_again(void **state)
{
    (void)state;
    static const char *const runs[][28] = {
        {NULL},
        {"--method", "full", "--dtype", "fp32", "--train-layers", "last:2", "--threads", "2"},
        {"--max-steps", "100", "--warmup-steps", "7", "--lr-scheduler", "wsd", "--wsd-decay-ratio",
         "0.123456789012345678", "--learning-rate", "1e-300", "--beta2", "0.95"},
        {"--lr-scheduler", "constant", "--clip", "none", "--val-split", "0.1", "--eval-steps", "5",
         "--save-best", "--early-stopping-patience", "3", "--host-mem", "1.5GiB", "--nvme-mem",
         "512B"},
        {"--adapter", "an \"odd\" \\ näme: # x", "--lora-dropout", "0.05", "--seed",
         "18446744073709551615", "--resume", "auto", "--format", "completion", "--field-map",
         "prompt=question,completion=answer", "--isa", "avx512", "--offload-activations",
         "recompute"},
        {"--device",
         "emu",
         "--gpu-mem",
         "8GiB",
         "--nvme-path",
         "/a",
         "--nvme-path",
         "/b d",
         "--strategy",
         "stream-lora",
         "--offload-weights",
         "disk",
         "--prefetch-depth",
         "3",
         "--throttle",
         "h2d=2.5e8,disk_weights=200MiB",
         "--ablate",
         "turns,prefetch",
         "--serial",
         "--emu-clock",
         "virtual",
         "--queue-depth",
         "4",
         "--storage",
         "null"},
    };
    for (size_t i = 0; i < COUNT(runs); i++) {
        struct ps_options a;
        struct ps_options b;
        struct ps_error err;
        if (parse_train(&a, runs[i], &err))
            fail_msg("case %zu: %s", i, err.message);
        char *text = ps_options_to_yaml(&a);
        assert_non_null(text);
        write_file("config.resolved.yaml", text);
        if (parse(&b, PS_CMD_TRAIN, NULL, 0, (const char *[]){"config.resolved.yaml", NULL}, &err))
            fail_msg("case %zu: %s: %s\n%s", i, err.file, err.message, text);
        if (ps_options_resolve(&b, &err))
            fail_msg("case %zu: %s\n%s", i, err.message, text);
        char *again = ps_options_to_yaml(&b);
        assert_string_equal(text, again);
        assert_true(ps_options_numerical_hash(&a) == ps_options_numerical_hash(&b));
        char difference[256];
        assert_int_equal(
            ps_options_numerical_diff(text, again, difference, sizeof difference, &err), 0);
        assert_true(a.learning_rate == b.learning_rate && a.wsd_decay_ratio == b.wsd_decay_ratio);
        free(text);
        free(again);
        ps_options_fini(&a);
        ps_options_fini(&b);
    }
}

static void only_numerical_options_change_the_hash(void **state)
{
    (void)state;
    static const struct {
        const char *args[4];
        bool numerical;
        const char *name;
    } cases[] = {
        {{"--lora-r", "8"}, true, "lora-r (16 then, 8 now)"},
        {{"--dtype", "fp32"}, true, "dtype (bf16 then, fp32 now)"},
        {{"--seed", "1"}, true, "seed"},
        {{"--max-steps", "9"},
         true,
         "epochs (1 then, not set now), max-steps (not set then, 9 now)"},
        {{"--shuffle", "false"}, true, "shuffle"},
        {{"--loss-on", "all"}, true, "loss-on"},
        {{"--isa", "avx2"}, true, "isa"},
        {{"--learning-rate", "0.0002000001"}, true, "learning-rate"},
        {{"--threads", "2"}, false, ""},
        {{"--host-mem", "1GiB"}, false, ""},
        {{"--offload-activations", "recompute"}, false, ""},
        {{"--strategy", "horizontal"}, false, ""},
        {{"--offload-weights", "disk"}, false, ""},
        {{"--nvme-mem", "1GiB"}, false, ""},
        {{"--device", "emu"}, false, ""},
        {{"--serial"}, false, ""},
        {{"--ablate", "turns"}, false, ""},
        {{"--progress", "none"}, false, ""},
        {{"--save-steps", "5"}, false, ""},
        {{"--logging-steps", "5"}, false, ""},
        {{"--model", "elsewhere/m"}, false, ""},
        {{"--output", "elsewhere/o"}, false, ""},
        {{"--data", "elsewhere/d"}, false, ""},
        {{"--resume", "auto"}, false, ""},
    };
    struct ps_options base;
    struct ps_error err;
    assert_int_equal(parse_train(&base, NULL, &err), 0);
    char *then = ps_options_to_yaml(&base);
    assert_non_null(then);
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ps_options o;
        char text[256];
        assert_int_equal(parse_train(&o, cases[i].args, &err), 0);
        bool same = ps_options_numerical_hash(&o) == ps_options_numerical_hash(&base);
        if (same == cases[i].numerical)
            fail_msg("%s: hash", cases[i].args[0]);
        char *now = ps_options_to_yaml(&o);
        assert_non_null(now);
        int n = ps_options_numerical_diff(then, now, text, sizeof text, &err);
        if ((n > 0) != cases[i].numerical)
            fail_msg("%s: %d differences", cases[i].args[0], n);
        assert_contains(text, cases[i].name);
        free(now);
        ps_options_fini(&o);
    }
    free(then);
    ps_options_fini(&base);
}

static void numbers_do_not_depend_on_the_locale(void **state)
{
    (void)state;
    /* a locale with a decimal comma may be missing; the C locale then still checks the round trip
     */
    bool comma = setlocale(LC_NUMERIC, "de_DE.UTF-8") != NULL;
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(parse_train(&o, (const char *[]){"--beta1", "0.875", NULL}, &err), 0);
    assert_true(o.beta1 == 0.875);
    char *text = ps_options_to_yaml(&o);
    assert_non_null(text);
    assert_contains(text, "beta1: 0.875\n");
    free(text);
    ps_options_fini(&o);
    if (comma)
        setlocale(LC_NUMERIC, "C");
}

static void help_lists_each_option_of_the_command_only(void **state)
{
    (void)state;
    for (int c = 0; c < PS_CMD_COUNT; c++) {
        char *text = NULL;
        size_t len = 0;
        FILE *f = open_memstream(&text, &len);
        assert_non_null(f);
        ps_options_print_help(f, (enum ps_command)c);
        assert_int_equal(fclose(f), 0);
        assert_contains(text, "Example:\n  penstock ");
        assert_contains(text, "--json");
        assert_true(!!strstr(text, "--lora-r ") == (c == PS_CMD_TRAIN || c == PS_CMD_PLAN));
        assert_true(!!strstr(text, "--prompts ") == (c == PS_CMD_GENERATE));
        for (const char *line = text; line; line = strchr(line + 1, '\n'))
            assert_true(strcspn(line + 1, "\n") <= 130);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_contract),
        cmocka_unit_test(method_full_has_its_own_defaults),
        cmocka_unit_test(sizes_are_read_with_their_units),
        cmocka_unit_test(percentages_are_of_free_memory),
        cmocka_unit_test(aliases_reach_their_option),
        cmocka_unit_test(mistakes_get_a_suggestion),
        cmocka_unit_test(options_of_later_versions_are_named_as_such),
        cmocka_unit_test(values_are_checked),
        cmocka_unit_test(good_values_arrive_typed),
        cmocka_unit_test(a_missing_value_is_an_error),
        cmocka_unit_test(options_without_effect_are_errors_that_say_why),
        cmocka_unit_test(what_a_command_needs_is_named),
        cmocka_unit_test(unknown_templates_are_refused_with_the_names),
        cmocka_unit_test(yaml_sets_options_and_flags_beat_it),
        cmocka_unit_test(yaml_errors_name_file_and_line),
        cmocka_unit_test(an_empty_file_sets_nothing),
        cmocka_unit_test(a_resolved_configuration_gives_itself_again),
        cmocka_unit_test(only_numerical_options_change_the_hash),
        cmocka_unit_test(numbers_do_not_depend_on_the_locale),
        cmocka_unit_test(help_lists_each_option_of_the_command_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
