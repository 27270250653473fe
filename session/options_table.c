/* The table of options: see options.h. Each row is one option of one or more commands. */
#include "session/options_internal.h"

#include <assert.h>

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"

#define PLAN (1u << PS_CMD_PLAN)
#define TRAIN (1u << PS_CMD_TRAIN | PLAN) /* what trains can be planned */
#define EVAL (1u << PS_CMD_EVAL)
#define GENERATE (1u << PS_CMD_GENERATE)
#define EXPORT (1u << PS_CMD_EXPORT)
#define INIT (1u << PS_CMD_INIT)
#define INSPECT (1u << PS_CMD_INSPECT)
#define LIST (1u << PS_CMD_LIST)
#define DATA_INSPECT (1u << PS_CMD_DATA_INSPECT)
#define DATA_TOKENIZE (1u << PS_CMD_DATA_TOKENIZE)
#define DATA_RENDER (1u << PS_CMD_DATA_RENDER)
#define BENCH (1u << PS_CMD_BENCH)
#define DOCTOR (1u << PS_CMD_DOCTOR)
#define ALL ((1u << PS_CMD_COUNT) - 1u)
#define RUN (TRAIN | EVAL | GENERATE)
#define MEMORY (RUN | EXPORT)
#define ROWS (TRAIN | EVAL | DATA_INSPECT)

#define AT(member) .offset = offsetof(struct ps_options, member)
#define COUNT_MAX 1e15

static const int dtype_values[] = {PS_DTYPE_BF16, PS_DTYPE_F32};
static const int isa_values[] = {-1, PS_ISA_PORTABLE, PS_ISA_AVX2, PS_ISA_AVX512,
                                 PS_ISA_AVX512_BF16};
static const int act_values[] = {PS_ACT_AUTO, PS_ACT_DEVICE, PS_ACT_HOST, PS_ACT_DISK,
                                 PS_ACT_RECOMPUTE};
static const int tier_values[] = {-1, PS_TIER_DEVICE, PS_TIER_HOST, PS_TIER_DISK};
static const int optimizer_tier_values[] = {-1, PS_TIER_HOST};

static const struct ps__option table[] = {
    /* model and output */
    {"model", PS__STRING, AT(model), .arg = "DIR", .aliases = "model_name_or_path",
     .commands = RUN | EXPORT | DATA_INSPECT | DATA_TOKENIZE | DATA_RENDER,
     .help = "Hugging Face model directory"},
    {"output", PS__STRING, AT(output), .arg = "DIR", .aliases = "output_dir",
     .commands = TRAIN | EXPORT | INIT, .help = "directory to write"},
    {"output", PS__STRING, AT(output), .arg = "FILE", .commands = BENCH,
     .shown = "~/.config/penstock/hardware.json", .help = "hardware profile, or CSV, to write"},
    {"adapter", PS__STRING, AT(adapter), .arg = "DIR", .commands = RUN | EXPORT,
     .help = "PEFT adapter directory; train goes on from it"},
    {"resume", PS__STRING, AT(resume), .arg = "[auto|DIR]", .commands = TRAIN, .transient = true,
     .help = "go on from the newest checkpoint in --output, or from DIR"},
    {"dtype", PS__ENUM, AT(dtype), .choices = "bf16|fp32", .values = dtype_values, .shown = "bf16",
     .commands = RUN, .numerical = true, .help = "type of weights and activations"},
    {"dtype", PS__ENUM, AT(dtype), .choices = "bf16|fp32", .values = dtype_values,
     .shown = "the config's, else bf16", .commands = INIT, .help = "type of the weights"},
    {"device", PS__CHOICE, AT(device), .fallback = "auto", .choices = "auto|cpu|cuda|emu",
     .commands = RUN | EXPORT,
     .help = "cpu, cuda, or emu: a discrete device made of threads and memory, to try plans on"},
    {"threads", PS__INT, AT(threads), .fallback = "0", .shown = "physical cores", .arg = "N",
     .min = 0, .max = 1024, .commands = RUN | EXPORT | INIT | BENCH, .help = "worker threads"},
    {"seed", PS__UINT64, AT(seed), .fallback = "42", .arg = "N", .min = 0, .max = 1.8e19,
     .commands = TRAIN | GENERATE | INIT, .numerical = true, .help = "key of all random numbers"},
    {"isa", PS__ENUM, AT(isa), .fallback = "auto",
     .choices = "auto|portable|avx2|avx512|avx512_bf16", .values = isa_values,
     .commands = RUN | EXPORT, .numerical = true, .help = "highest instruction set to use"},
    /* memory */
    {"host-mem", PS__SIZE, AT(host_mem), .fallback = "auto", .shown = "auto: 80% of what is free",
     .arg = "SIZE", .planned = true, .commands = MEMORY,
     .help = "memory budget: 512MiB, 24GiB, 80%, auto"},
    {"gpu-mem", PS__BYTES, AT(gpu_mem), .fallback = "auto", .arg = "SIZE", .planned = true,
     .commands = MEMORY,
     .help = "budget of a discrete device's memory; plan: also of another machine's"},
    {"nvme-mem", PS__BYTES, AT(nvme_mem), .fallback = "auto", .arg = "SIZE", .planned = true,
     .commands = MEMORY, .help = "budget of spilled and imported bytes on disk"},
    {"nvme-path", PS__LIST, AT(nvme_path), .arg = "DIR", .shown = "OUTPUT/spill",
     .commands = MEMORY | BENCH | DOCTOR,
     .help = "directory on a fast disk; several (repeat it) are striped"},
    {"strategy", PS__STRING, AT(strategy), .fallback = "auto", .arg = "auto|NAME", .planned = true,
     .commands = MEMORY, .help = "how the step is laid out, see `penstock list strategies`"},
    {"import", PS__CHOICE, AT(import), .fallback = "auto", .choices = "auto|never|always",
     .commands = RUN, .transient = true,
     .help = "stream frozen weights from a compressed bf16 copy in --nvme-path; auto: if it pays"},
    {"offload-weights", PS__ENUM, AT(offload_weights), .fallback = "auto",
     .choices = "auto|device|host|disk", .values = tier_values, .planned = true, .commands = MEMORY,
     .help = "where frozen weights live; on cpu host or disk"},
    {"offload-activations", PS__ENUM, AT(offload_activations), .fallback = "auto",
     .choices = "auto|device|host|disk|recompute", .values = act_values, .planned = true,
     .commands = TRAIN,
     .help = "where activations wait for the backward pass, or recompute them per layer"},
    {"offload-optimizer", PS__ENUM, AT(offload_optimizer), .fallback = "auto",
     .choices = "auto|host", .values = optimizer_tier_values, .not_yet = "device|disk",
     .planned = true, .commands = TRAIN, .help = "where optimizer states live"},
    {"prefetch-depth", PS__INT, AT(prefetch_depth), .fallback = "0", .shown = "auto", .arg = "N",
     .min = 1, .max = 4096, .planned = true, .commands = RUN,
     .help = "weight slots that are read ahead"},
    {"hardware", PS__STRING, AT(hardware), .arg = "FILE",
     .shown = "~/.config/penstock/hardware.json", .commands = RUN,
     .help = "hardware profile, as `penstock bench` writes it"},
    {"placement", PS__STRING, AT(placement), .arg = "FILE", .commands = RUN,
     .help = "take this placement instead of planning"},
    {"schedule", PS__STRING, AT(schedule), .arg = "FILE", .commands = TRAIN,
     .help = "run this order of tasks instead of the strategy's"},
    {"export-schedule", PS__STRING, AT(export_schedule), .arg = "FILE", .commands = PLAN,
     .help = "write the planned schedule, for --schedule of train"},
    {"export-placement", PS__STRING, AT(export_placement), .arg = "FILE", .commands = PLAN,
     .help = "write the planned placement, for --placement"},
    {"throttle", PS__THROTTLE, AT(throttle), .arg = "LANE=RATE,...", .commands = RUN,
     .help = "slow lanes down: disk_weights=200MiB (a second), compute=5e9 (FLOP/s)"},
    {"ablate", PS__ABLATE, AT(ablate), .arg = "NAME,...", .commands = RUN,
     .help = "switch off prefetch, turns, cross-step, forwarding or layer-major, to measure it"},
    {"serial", PS__BOOL, AT(serial), .fallback = "false", .planned = true, .commands = RUN,
     .help = "run the same schedule one task at a time, to measure what overlap gains"},
    {"storage", PS__CHOICE, AT(storage), .fallback = "auto",
     .choices = "auto|io_uring|threads|ram|null", .planned = true, .commands = RUN,
     .help = "disk back end; null reads nothing (the result is worthless, the time is not)"},
    {"queue-depth", PS__INT, AT(queue_depth), .fallback = "0", .shown = "auto", .arg = "N",
     .min = 1, .max = 64, .planned = true, .commands = RUN, .help = "disk requests in flight"},
    {"delay-seed", PS__UINT64, AT(delay_seed), .fallback = "0", .arg = "N", .commands = RUN,
     .transient = true},
    {"emu-clock", PS__CHOICE, AT(emu_clock), .fallback = "real", .choices = "real|virtual",
     .planned = true, .commands = RUN,
     .help = "time of --device emu: virtual counts what the profile says"},
    /* method */
    {"method", PS__CHOICE, AT(method), .fallback = "lora", .choices = "lora|full",
     .not_yet = "dora|pissa|olora", .commands = TRAIN, .numerical = true,
     .help = "train a LoRA adapter, or the weights themselves"},
    {"lora-r", PS__INT, AT(lora_r), .fallback = "16", .arg = "N", .min = 1, .max = 4096,
     .aliases = "lora_rank", .commands = TRAIN, .numerical = true, .help = "rank of the adapter"},
    {"lora-alpha", PS__REAL, AT(lora_alpha), .fallback = "32", .arg = "F", .min = PS__ABOVE_0,
     .max = 1e6, .commands = TRAIN, .numerical = true,
     .help = "scale of the adapter times its rank"},
    {"lora-dropout", PS__REAL, AT(lora_dropout), .fallback = "0", .arg = "F", .min = 0,
     .max = PS__BELOW_1, .commands = TRAIN, .numerical = true,
     .help = "dropout probability before A"},
    {"lora-target", PS__STRING, AT(lora_target), .fallback = "all", .arg = "all|attn|LIST|REGEX",
     .aliases = "lora_target_modules", .commands = TRAIN, .numerical = true,
     .help = "linears that get an adapter, as q_proj,v_proj"},
    {"lora-layers", PS__STRING, AT(lora_layers), .fallback = "all", .arg = "all|last:N|A-B",
     .commands = TRAIN, .numerical = true, .help = "layers that get an adapter"},
    {"adapter-dtype", PS__CHOICE, AT(adapter_dtype), .fallback = "fp32", .choices = "fp32|bf16",
     .commands = TRAIN | EXPORT, .help = "type of the saved adapter"},
    {"train-layers", PS__STRING, AT(train_layers), .fallback = "all", .arg = "all|last:N|A-B",
     .commands = TRAIN, .numerical = true, .help = "layers trained by --method full"},
    /* data */
    {"data", PS__STRING, AT(data), .arg = "FILE|DIR",
     .commands = ROWS | DATA_TOKENIZE | DATA_RENDER, .help = "JSONL or JSON rows"},
    {"eval-data", PS__STRING, AT(eval_data), .arg = "FILE", .commands = TRAIN,
     .help = "rows for evaluation during training"},
    {"val-split", PS__REAL, AT(val_split), .fallback = "0", .arg = "F", .min = 0,
     .max = PS__BELOW_1, .commands = TRAIN, .numerical = true,
     .help = "share of --data that is kept for evaluation"},
    {"format", PS__CHOICE, AT(format), .fallback = "auto",
     .choices = "auto|messages|sharegpt|alpaca|completion|text|tokens", .commands = ROWS,
     .numerical = true, .help = "kind of rows"},
    {"format", PS__CHOICE, AT(format), .choices = "peft|hf", .commands = EXPORT,
     .help = "an adapter directory, or the base with the adapter merged in"},
    {"field-map", PS__STRING, AT(field_map), .arg = "NAME=FIELD,...", .commands = ROWS,
     .numerical = true, .help = "other names of fields, as prompt=question,completion=answer"},
    {"chat-template", PS__STRING, AT(chat_template), .fallback = "auto", .arg = "NAME",
     .commands = ROWS | DATA_RENDER, .numerical = true,
     .help = "chatml, llama3, mistral, gemma, phi3, zephyr or alpaca"},
    {"loss-on", PS__CHOICE, AT(loss_on), .fallback = "auto",
     .choices = "auto|assistant|completion|all", .commands = ROWS, .numerical = true,
     .help = "tokens that count in the loss"},
    {"max-seq-len", PS__INT, AT(max_seq_len), .fallback = "2048", .arg = "N", .min = 2,
     .max = 1 << 20, .aliases = "sequence_len max_seq_length cutoff_len",
     .commands = ROWS | GENERATE, .numerical = true, .help = "longest sequence in tokens"},
    {"packing", PS__BOOL, AT(packing), .fallback = "true", .aliases = "sample_packing",
     .commands = TRAIN | DATA_INSPECT, .numerical = true,
     .help = "put several rows into one sequence, each attending to itself only"},
    {"overlength", PS__CHOICE, AT(overlength), .fallback = "truncate",
     .choices = "drop|truncate|split|error", .commands = ROWS, .numerical = true,
     .help = "what to do with rows longer than --max-seq-len"},
    {"shuffle", PS__BOOL, AT(shuffle), .fallback = "true", .commands = TRAIN, .numerical = true,
     .help = "new row order in each epoch"},
    /* optimisation */
    {"epochs", PS__REAL, AT(epochs), .fallback = "1", .arg = "F", .min = PS__ABOVE_0, .max = 1e6,
     .aliases = "num_train_epochs num_epochs", .commands = TRAIN, .numerical = true,
     .help = "passes over the data"},
    {"max-steps", PS__INT64, AT(max_steps), .fallback = "0", .shown = "from --epochs", .arg = "N",
     .min = 1, .max = COUNT_MAX, .commands = TRAIN, .numerical = true,
     .help = "optimizer steps, instead of --epochs"},
    {"batch-size", PS__INT, AT(batch_size), .fallback = "1", .arg = "N", .min = 1, .max = 65536,
     .aliases = "per_device_train_batch_size micro_batch_size", .commands = TRAIN,
     .numerical = true, .help = "sequences of a micro-batch"},
    {"grad-accum", PS__INT, AT(grad_accum), .fallback = "8", .arg = "N", .min = 1, .max = 65536,
     .aliases = "gradient_accumulation_steps", .commands = TRAIN, .numerical = true,
     .help = "micro-batches of a step"},
    {"learning-rate", PS__REAL, AT(learning_rate), .shown = "2e-4 lora, 1e-5 full", .arg = "F",
     .min = 0, .max = 100, .commands = TRAIN, .numerical = true, .help = "peak learning rate"},
    {"lr-scheduler", PS__CHOICE, AT(lr_scheduler), .fallback = "cosine",
     .choices = "constant|cosine|linear|wsd", .aliases = "lr_scheduler_type", .commands = TRAIN,
     .numerical = true, .help = "learning rate after the warm-up"},
    {"warmup-steps", PS__INT64, AT(warmup_steps), .shown = "from --warmup-ratio", .arg = "N",
     .min = 0, .max = COUNT_MAX, .commands = TRAIN, .numerical = true, .help = "warm-up in steps"},
    {"warmup-ratio", PS__REAL, AT(warmup_ratio), .shown = "0.03", .arg = "F", .min = 0, .max = 1,
     .commands = TRAIN, .numerical = true, .help = "warm-up as a share of all steps"},
    {"min-lr-ratio", PS__REAL, AT(min_lr_ratio), .fallback = "0", .arg = "F", .min = 0, .max = 1,
     .commands = TRAIN, .numerical = true, .help = "last learning rate over the peak"},
    {"wsd-decay-ratio", PS__REAL, AT(wsd_decay_ratio), .fallback = "0.1", .arg = "F", .min = 0,
     .max = 1, .commands = TRAIN, .numerical = true,
     .help = "share of the steps in which wsd decays"},
    {"weight-decay", PS__REAL, AT(weight_decay), .shown = "0 lora, 0.01 full", .arg = "F", .min = 0,
     .max = 100, .commands = TRAIN, .numerical = true, .help = "decoupled decay of matrices"},
    {"max-grad-norm", PS__REAL, AT(max_grad_norm), .fallback = "1", .arg = "F", .min = PS__ABOVE_0,
     .max = 1e30, .commands = TRAIN, .numerical = true, .help = "clip the gradient to this norm"},
    {"clip", PS__CHOICE, AT(clip), .fallback = "exact", .choices = "exact|none",
     .not_yet = "delayed|per-tensor", .commands = TRAIN, .numerical = true,
     .help = "clip by the norm of the whole gradient, or not at all"},
    {"optimizer", PS__OPTIMIZER, AT(optimizer), .fallback = "adamw", .arg = "NAME",
     .commands = TRAIN, .numerical = true,
     .help = "update rule, see `penstock list optimizers`; the following are those of some"},
    {"optim-state", PS__CHOICE, AT(optim_state), .choices = "fp32|bf16|8bit", .shown = "fp32",
     .commands = TRAIN, .numerical = true, .help = "type of the moments"},
    {"stochastic-rounding", PS__BOOL, AT(stochastic_rounding), .fallback = "false",
     .commands = TRAIN, .numerical = true,
     .help = "round bf16 weights at random instead of keeping an exact master"},
    {"beta1", PS__REAL, AT(beta1), .shown = "0.9 adamw", .arg = "F", .min = 0, .max = PS__BELOW_1,
     .commands = TRAIN, .numerical = true, .help = "decay of the first moment"},
    {"beta2", PS__REAL, AT(beta2), .shown = "0.999 adamw, 0.99 lion", .arg = "F", .min = 0,
     .max = PS__BELOW_1, .commands = TRAIN, .numerical = true,
     .help = "decay of the second moment"},
    {"eps", PS__REAL, AT(eps), .shown = "1e-08 adamw", .arg = "F", .min = PS__ABOVE_0, .max = 1,
     .commands = TRAIN, .numerical = true, .help = "added to the root of the second moment"},
    {"momentum", PS__REAL, AT(momentum), .shown = "0 sgd", .arg = "F", .min = 0,
     .max = PS__BELOW_1, .commands = TRAIN, .numerical = true, .help = "decay of the momentum"},
    {"dampening", PS__REAL, AT(dampening), .shown = "0", .arg = "F", .min = 0, .max = 1,
     .commands = TRAIN, .numerical = true, .help = "sgd: share of a gradient kept off its momentum"},
    {"nesterov", PS__BOOL, AT(nesterov), .shown = "false sgd", .commands = TRAIN,
     .numerical = true, .help = "look ahead along the momentum"},
    {"optim-rank", PS__INT, AT(optim_rank), .arg = "N", .min = 1, .max = 65536,
     .shown = "the method's", .commands = TRAIN, .numerical = true,
     .help = "rank of the low-rank gradient"},
    {"optim-update-gap", PS__INT, AT(optim_update_gap), .arg = "N", .min = 1, .max = 1000000000,
     .shown = "the method's", .commands = TRAIN, .numerical = true,
     .help = "steps between two projections"},
    {"optim-scale", PS__REAL, AT(optim_scale), .arg = "F", .min = PS__ABOVE_0, .max = 1e9,
     .shown = "the method's", .commands = TRAIN, .numerical = true,
     .help = "scale of the low-rank update"},
    /* running */
    {"eval-steps", PS__INT64, AT(eval_steps), .fallback = "0", .shown = "0: at the end", .arg = "N",
     .min = 0, .max = COUNT_MAX, .commands = TRAIN, .help = "evaluate every N steps"},
    {"early-stopping-patience", PS__INT, AT(early_stopping_patience), .fallback = "0",
     .shown = "0: off", .arg = "N", .min = 0, .max = 1000000, .commands = TRAIN,
     .help = "stop after N evaluations without a better loss"},
    {"save-steps", PS__INT64, AT(save_steps), .fallback = "0", .shown = "0: at the end", .arg = "N",
     .min = 0, .max = COUNT_MAX, .commands = TRAIN, .help = "write a checkpoint every N steps"},
    {"save-total-limit", PS__INT, AT(save_total_limit), .fallback = "2", .arg = "N", .min = 1,
     .max = 1000000, .commands = TRAIN, .help = "checkpoints to keep"},
    {"save-best", PS__BOOL, AT(save_best), .fallback = "false", .commands = TRAIN,
     .help = "the result is the checkpoint with the best evaluation loss"},
    {"logging-steps", PS__INT64, AT(logging_steps), .fallback = "1", .arg = "N", .min = 1,
     .max = COUNT_MAX, .commands = TRAIN, .help = "log every N steps"},
    {"progress", PS__CHOICE, AT(progress), .fallback = "auto", .choices = "auto|plain|json|none",
     .commands = TRAIN, .help = "progress on standard output"},
    {"trace", PS__STRING, AT(trace), .arg = "FILE", .shown = "OUTPUT/trace.json", .commands = TRAIN,
     .help = "Chrome trace of the first steps, predicted beside actual (for Perfetto)"},
    {"dump-grads", PS__STRING, AT(dump_grads), .arg = "FILE", .commands = TRAIN,
     .help = "write the gradients of the first step (before clipping) as safetensors"},
    {"dry-run", PS__BOOL, AT(dry_run), .fallback = "false", .commands = TRAIN & ~PLAN,
     .transient = true, .help = "read the rows, print the plan and stop"},
    {"logits", PS__STRING, AT(logits), .arg = "FILE", .commands = EVAL,
     .help = "write the logits of each row as safetensors"},
    /* generate */
    {"prompt", PS__STRING, AT(prompt), .arg = "TEXT", .commands = GENERATE,
     .help = "text to continue"},
    {"prompts", PS__STRING, AT(prompts), .arg = "FILE", .commands = GENERATE,
     .help = "one prompt a line, or JSONL rows with \"prompt\""},
    {"max-new-tokens", PS__INT, AT(max_new_tokens), .fallback = "128", .arg = "N", .min = 1,
     .max = 1 << 20, .commands = GENERATE, .help = "longest continuation"},
    {"temperature", PS__REAL, AT(temperature), .fallback = "1", .arg = "F", .min = 0, .max = 1000,
     .commands = GENERATE, .help = "0 always takes the most probable token"},
    {"top-k", PS__INT, AT(top_k), .fallback = "0", .shown = "0: off", .arg = "N", .min = 0,
     .max = 1 << 24, .commands = GENERATE, .help = "sample from the K most probable tokens"},
    {"top-p", PS__REAL, AT(top_p), .fallback = "1", .shown = "1: off", .arg = "F",
     .min = PS__ABOVE_0, .max = 1, .commands = GENERATE,
     .help = "sample from the smallest set with probability P"},
    /* export, init, data, inspect, list */
    {"checkpoint", PS__STRING, AT(checkpoint), .arg = "DIR", .commands = EXPORT,
     .help = "checkpoint-N directory to export from"},
    {"config", PS__STRING, AT(config), .arg = "FILE", .commands = INIT,
     .help = "config.json of the model to make"},
    {"tokenizer", PS__STRING, AT(tokenizer), .arg = "DIR", .commands = INIT,
     .help = "directory whose tokenizer files are copied"},
    {"text", PS__STRING, AT(text), .arg = "TEXT", .commands = DATA_TOKENIZE,
     .help = "text to encode"},
    {"add-special-tokens", PS__BOOL, AT(add_special_tokens), .fallback = "false",
     .commands = DATA_TOKENIZE, .help = "add BOS and EOS as the tokenizer's file says"},
    {"show-mask", PS__INT, AT(show_mask), .fallback = "0", .arg = "N", .min = 0, .max = 1000000,
     .commands = DATA_INSPECT, .help = "show which tokens of N rows are trained"},
    {"target", PS__STRING, AT(target), .arg = "TARGET", .commands = INSPECT | LIST,
     .transient = true, .help = "what to look at (the argument without a flag)"},
    {"parts", PS__LIST, AT(bench_parts), .arg = "PART", .commands = BENCH, .transient = true,
     .help = "what to measure (the arguments without a flag)"},
    {"grid", PS__STRING, AT(grid), .arg = "FILE", .commands = BENCH, .transient = true,
     .help = "cells of `bench sweep` (the .yaml argument)"},
    {"disk-size", PS__BYTES, AT(disk_size), .fallback = "auto", .arg = "SIZE", .commands = BENCH,
     .help = "size of the file that `bench disk` writes and reads"},
    {"disk-seconds", PS__INT, AT(disk_seconds), .fallback = "-1",
     .shown = "120 for `bench disk`, else 5", .arg = "N", .min = 0, .max = 86400, .commands = BENCH,
     .help = "length of the sustained measurement of a disk; 0: none"},
    {"quick", PS__BOOL, AT(quick), .fallback = "false", .commands = BENCH,
     .help = "small sizes and short times: a first look in seconds, too rough for plans"},
    {"simulate-only", PS__BOOL, AT(simulate_only), .fallback = "false", .commands = BENCH,
     .help = "`bench sweep` predicts every cell and runs none"},
    {"json", PS__BOOL, AT(json), .fallback = "false", .commands = ALL, .transient = true,
     .help = "report, and errors, as JSON"},
};

static const char *const not_yet[] = {"nvme-write-limit", "commit-interval",  "spill-mode",
                                      "use-rslora",       "use-dora",         "init",
                                      "base-quant",       "loraplus-ratio",   "peft-exact",       NULL};

static_assert(sizeof table / sizeof table[0] <= 256, "struct ps_options has 256 given bits");

const struct ps__option *ps__options_table(size_t *count)
{
    *count = sizeof table / sizeof table[0];
    return table;
}

const char *const *ps__options_not_yet(void)
{
    return not_yet;
}

const char *ps__command_name(enum ps_command command)
{
    static const char *const name[PS_CMD_COUNT] = {
        "train",   "eval",         "generate",      "export",      "init", "inspect", "list",
        "version", "data inspect", "data tokenize", "data render", "plan", "bench",   "doctor"};
    return name[command];
}
