/* --help of each command, from the table of options. */
#include "session/options_internal.h"

#include <string.h>

static const struct {
    const char *summary;
    const char *arguments;
    const char *example;
} command_help[PS_CMD_COUNT] = {
    [PS_CMD_TRAIN] = {"Fine-tune a model.", "[CONFIG.yaml] [--flag value ...]",
                      "penstock train --model SmolLM2-135M --data rows.jsonl --output run"},
    [PS_CMD_EVAL] = {"Mean loss and perplexity over the labelled tokens of a data set.",
                     "[CONFIG.yaml] [--flag value ...]",
                     "penstock eval --model SmolLM2-135M --adapter run --data held_out.jsonl"},
    [PS_CMD_GENERATE] =
        {"Continue prompts with a model and its adapter.", "[CONFIG.yaml] [--flag value ...]",
         "penstock generate --model SmolLM2-135M --adapter run --prompt 'Two and two'"},
    [PS_CMD_EXPORT] =
        {"Write an adapter, or the model with the adapter merged in.",
         "[CONFIG.yaml] [--flag value ...]",
         "penstock export --model SmolLM2-135M --adapter run --format hf --output merged"},
    [PS_CMD_INIT] = {"Write a model directory with random weights.",
                     "[CONFIG.yaml] [--flag value ...]",
                     "penstock init --config config.json --output tiny --seed 1 --dtype fp32"},
    [PS_CMD_INSPECT] =
        {"Say what a model, safetensors file, adapter, checkpoint or spill store holds.",
         "PATH [--json]", "penstock inspect SmolLM2-135M"},
    [PS_CMD_LIST] = {"Names of what this version has.",
                     "optimizers|adapters|strategies|models|schedules|quant|methods [--json]",
                     "penstock list models"},
    [PS_CMD_VERSION] = {"Version, commit and build.", "[--json]", "penstock version"},
    [PS_CMD_DATA_INSPECT] =
        {"What a data set holds, and which tokens are trained.", "[CONFIG.yaml] [--flag value ...]",
         "penstock data inspect --model SmolLM2-135M --data rows.jsonl --show-mask 2"},
    [PS_CMD_DATA_TOKENIZE] = {"Token ids of texts, one JSON array a row.",
                              "[CONFIG.yaml] [--flag value ...]",
                              "penstock data tokenize --model SmolLM2-135M --text 'Hello there'"},
    [PS_CMD_DATA_RENDER] = {"Conversations as text, one JSON string a row.",
                            "[CONFIG.yaml] [--flag value ...]",
                            "penstock data render --chat-template chatml --data chats.jsonl"},
    [PS_CMD_PLAN] = {"Where every byte of a run would live, and how fast it would go.",
                     "[CONFIG.yaml] [--flag value ...]",
                     "penstock plan --model Llama-3-8B --gpu-mem 24GiB --host-mem 64GiB"},
    [PS_CMD_BENCH] = {"Measure this machine, for the planner; or run a grid of configurations.",
                      "[gemm] [copy] [disk] [cpu-optim] | sweep GRID.yaml [--flag value ...]",
                      "penstock bench --nvme-path /mnt/nvme"},
    [PS_CMD_DOCTOR] =
        {"What of this machine is right for streaming, and what to do about the rest.",
         "[--nvme-path DIR] [--json]", "penstock doctor --nvme-path /mnt/nvme"},
};

static void print_option(FILE *to, const struct ps__option *o)
{
    char left[96];
    bool plain_bool = o->type == PS__BOOL;
    const char *value = o->arg ? o->arg : plain_bool ? "true|false" : o->choices;
    PS_IGNORE(snprintf(left, sizeof left, "--%s %s", o->name, value) < 0, "fits");
    const char *shown = o->shown ? o->shown : o->fallback;
    bool later = plain_bool && o->fallback && !strcmp(o->fallback, "false");
    fprintf(to, "  %-36s%s%s", left,
            strlen(left) > 35 ? "\n                                      " : "", o->help);
    if (shown && !later)
        fprintf(to, " [%s]", shown);
    fputc('\n', to);
}

void ps_options_print_help(FILE *to, enum ps_command command)
{
    fprintf(to, "%s\n\n  penstock %s %s\n\nExample:\n  %s\n", command_help[command].summary,
            ps__command_name(command), command_help[command].arguments,
            command_help[command].example);
    size_t count;
    const struct ps__option *t = ps__options_table(&count);
    fprintf(to, "\nOptions [default]:\n");
    for (size_t i = 0; i < count; i++)
        if ((t[i].commands >> command & 1u) && t[i].help && strcmp(t[i].name, "target") &&
            strcmp(t[i].name, "parts") && strcmp(t[i].name, "grid"))
            print_option(to, &t[i]);
    fprintf(to, "  %-36s%s\n", "--help", "this text");
}
