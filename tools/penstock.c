/* The command-line program: finds the command, reads its arguments, runs it, reports errors. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "session/catalog.h"
#include "tools/tool.h"

static const struct {
    const char *name;
    const char *sub; /* second word, or NULL */
    enum ps_command command;
    int (*run)(struct ps_options *opt, struct ps_error *err);
    const char *summary;
} commands[] = {
    {"train", NULL, PS_CMD_TRAIN, cmd_train, "fine-tune a model"},
    {"plan", NULL, PS_CMD_PLAN, cmd_plan, "what a run would need, and how fast it would go"},
    {"eval", NULL, PS_CMD_EVAL, cmd_eval, "mean loss and perplexity on a data set"},
    {"generate", NULL, PS_CMD_GENERATE, cmd_generate, "continue prompts"},
    {"export", NULL, PS_CMD_EXPORT, cmd_export, "write an adapter, or the merged model"},
    {"init", NULL, PS_CMD_INIT, cmd_init, "write a model with random weights"},
    {"data", "inspect", PS_CMD_DATA_INSPECT, cmd_data_inspect,
     "what a data set holds and which tokens are trained"},
    {"data", "tokenize", PS_CMD_DATA_TOKENIZE, cmd_data_tokenize, "token ids of texts"},
    {"data", "render", PS_CMD_DATA_RENDER, cmd_data_render, "conversations as text"},
    {"inspect", NULL, PS_CMD_INSPECT, cmd_inspect,
     "what a model, adapter, checkpoint or spill store holds"},
    {"bench", NULL, PS_CMD_BENCH, cmd_bench, "measure this machine, for plan"},
    {"doctor", NULL, PS_CMD_DOCTOR, cmd_doctor, "what to set right on this machine"},
    {"list", NULL, PS_CMD_LIST, cmd_list, "names of optimizers, models, schedules, ..."},
    {"version", NULL, PS_CMD_VERSION, cmd_version, "version, commit and build"},
};
#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

static void print_usage(FILE *to)
{
    fprintf(to, "penstock fine-tunes language models on small machines.\n\n"
                "  penstock COMMAND [CONFIG.yaml] [--flag value ...]\n\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        char name[32];
        PS_IGNORE(snprintf(name, sizeof name, "%s%s%s", commands[i].name,
                           commands[i].sub ? " " : "", commands[i].sub ? commands[i].sub : "") < 0,
                  "fits");
        fprintf(to, "  %-15s %s\n", name, commands[i].summary);
    }
    fprintf(to, "\n`penstock COMMAND --help` lists the options of a command.\n"
                "Example:\n  penstock train --model SmolLM2-135M --data rows.jsonl --output run\n");
}

/* Errors must be JSON even when the arguments cannot be parsed. */
static bool wants_json(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if ((!strcmp(argv[i], "--json") && (i + 1 == argc || strcmp(argv[i + 1], "false"))) ||
            !strcmp(argv[i], "--json=true"))
            return true;
    return false;
}

static int unknown_command(const char *name, const char *sub, struct ps_error *err)
{
    const char *words[COMMAND_COUNT + 1] = {NULL};
    char advice[96] = "`penstock --help` lists the commands";
    if (!strcmp(name, "data"))
        return ps_error_full(err, PS_EUSAGE, NULL, NULL, "use data inspect, tokenize or render",
                             sub ? "there is no command `data %.64s`"
                                 : "`penstock data` needs a second word%s",
                             sub ? sub : "");
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        words[i] = commands[i].name;
    const char *near = ps_catalog_nearest(name, words);
    if (near)
        PS_IGNORE(snprintf(advice, sizeof advice, "did you mean `%s`?", near) < 0, "fits");
    return ps_error_full(err, PS_EUSAGE, NULL, NULL, advice, "there is no command `%.64s`", name);
}

static int find_command(int argc, char **argv, int *taken, struct ps_error *err)
{
    const char *name = argv[1];
    const char *sub = argc > 2 ? argv[2] : NULL;
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(name, commands[i].name))
            continue;
        if (commands[i].sub && (!sub || strcmp(sub, commands[i].sub)))
            continue;
        *taken = commands[i].sub ? 3 : 2;
        return (int)i;
    }
    return unknown_command(name, sub, err);
}

static bool is_help(const char *arg)
{
    return !strcmp(arg, "--help") || !strcmp(arg, "-h") || !strcmp(arg, "help");
}

static int run(int argc, char **argv, bool *json, struct ps_error *err)
{
    if (argc == 3 && !strcmp(argv[1], "data") && is_help(argv[2])) {
        print_usage(stdout);
        return 0;
    }
    int taken = 0;
    int found = find_command(argc, argv, &taken, err);
    if (found < 0)
        return found;
    struct ps_options opt;
    bool help = false;
    ps_options_init(&opt, commands[found].command);
    int ret = ps_options_parse_args(&opt, argc - taken, argv + taken, &help, err);
    *json = *json || opt.json;
    if (ret == 0 && help)
        ps_options_print_help(stdout, commands[found].command);
    else if (ret == 0)
        ret = commands[found].run(&opt, err);
    int flushed = tool_flush(ret ? NULL : err);
    ps_options_fini(&opt);
    return ret ? ret : flushed;
}

int main(int argc, char **argv)
{
    struct ps_error err = {0};
    bool json = wants_json(argc, argv);
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    if (is_help(argv[1])) {
        print_usage(stdout);
        return 0;
    }
    char version[] = "version";
    if (!strcmp(argv[1], "--version"))
        argv[1] = version;
    int ret = run(argc, argv, &json, &err);
    if (ret == 0)
        return 0;
    if (ret == PS_ESTOPPED)
        return 128 + (tool_signal() ? tool_signal() : 15);
    int code = ps_status_exit_code(ret);
    if (!err.message[0])
        ps_error_set(&err, ret, "%s", ps_status_text(ret));
    tool_print_error(&err, code, json);
    return code;
}
