/* The options of every command: one table gives each its name, type, default, range, help text, aliases and
 * the commands in which it has an effect. Values come from a YAML file and from flags (a flag beats the
 * file); `-` and `_` are the same letter. An unknown name is an error with a suggestion, an option without
 * effect in the chosen command or mode is an error, not ignored. */
#ifndef PS_SESSION_OPTIONS_H
#define PS_SESSION_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_command {
    PS_CMD_TRAIN,
    PS_CMD_EVAL,
    PS_CMD_GENERATE,
    PS_CMD_EXPORT,
    PS_CMD_INIT,
    PS_CMD_INSPECT,
    PS_CMD_LIST,
    PS_CMD_VERSION,
    PS_CMD_DATA_INSPECT,
    PS_CMD_DATA_TOKENIZE,
    PS_CMD_DATA_RENDER,
    PS_CMD_COUNT,
};

/* Typed values after parsing. Strings are owned by the struct; NULL means not given. Enumerations are kept
 * as the small integers of their own headers (named in the comment). Numbers that mean "not given" are -1 where
 * the comment says so and are replaced by the mode's default in ps_options_resolve. */
struct ps_options {
    enum ps_command command;
    /* model and output */
    char *model, *output, *adapter, *resume; /* resume: "auto" or a directory; NULL: no */
    int dtype;                               /* enum ps_dtype: F32 or BF16; -1: not given (BF16) */
    char *device;                            /* "auto" or "cpu" */
    int threads;                             /* 0: physical cores */
    uint64_t seed;
    int isa;                                 /* enum ps_isa cap; -1: auto */
    /* memory */
    int64_t host_mem;                        /* bytes; -1: auto (80% of what is free) */
    int offload_activations;                 /* enum ps_act_mode below */
    /* method */
    char *method;                            /* "lora" or "full" */
    int lora_r;
    double lora_alpha, lora_dropout;
    char *lora_target;                       /* "all", "attn", list or regex */
    char *lora_layers;                       /* "all", "last:16", "0-15" */
    char *adapter_dtype;                     /* "fp32" or "bf16" */
    bool peft_exact;
    char *train_layers;                      /* method full: "all", "last:4", "0-15" */
    /* data */
    char *data, *eval_data, *format, *field_map, *chat_template, *loss_on, *overlength;
    double val_split;
    int max_seq_len;
    bool packing, shuffle;
    /* optimisation */
    double epochs;
    int64_t max_steps;                       /* 0: from epochs */
    int batch_size, grad_accum;
    double learning_rate;                    /* -1: 2e-4 adapters, 1e-5 full */
    char *lr_scheduler;                      /* "cosine", "linear", "constant", "wsd" */
    int64_t warmup_steps;                    /* -1: from warmup_ratio */
    double warmup_ratio;                     /* -1: 0.03 */
    double min_lr_ratio, wsd_decay_ratio;
    double weight_decay;                     /* -1: 0 adapters, 0.01 full */
    double max_grad_norm;
    char *clip;                              /* "exact" or "none" */
    char *optimizer;                         /* "adamw" */
    double beta1, beta2, eps;
    /* running */
    int64_t eval_steps, save_steps, logging_steps;
    int save_total_limit, early_stopping_patience;
    bool save_best, dry_run, json;
    char *progress;                          /* "auto", "plain", "json", "none" */
    char *dump_grads, *logits;
    /* generate */
    char *prompt, *prompts;
    int max_new_tokens, top_k;
    double temperature, top_p;
    /* export, init, data, inspect, list */
    char *checkpoint, *config, *tokenizer, *text, *target;
    int show_mask;
    bool add_special_tokens;
    /* what was given, for the resolved configuration and for the resume check */
    uint64_t given[4]; /* bit i: entry i of the table was set by flag or file */
};

enum ps_act_mode { PS_ACT_AUTO, PS_ACT_KEEP, PS_ACT_RECOMPUTE };

/* Fill with the table's defaults. */
void ps_options_init(struct ps_options *opt, enum ps_command command);
void ps_options_fini(struct ps_options *opt);

/* Set one option. `name` is a flag name or alias, `source` says where it came from ("--lora-r", "run.yaml:7").
 * Returns 0 or PS_EUSAGE (unknown name with a suggestion, bad value with the accepted form). */
int ps_options_set(struct ps_options *opt, const char *name, const char *value, const char *source,
                   struct ps_error *err) PS_WARN_UNUSED;

/* Read a YAML file: a mapping of scalars (lists of scalars are joined with commas). Options already set by a
 * flag keep the flag's value. */
int ps_options_load_yaml(struct ps_options *opt, const char *path,
                         struct ps_error *err) PS_WARN_UNUSED;

/* True if the option was given by flag or file. */
bool ps_options_given(const struct ps_options *opt, const char *name);

/* Is the named option a flag without value (bool)? Needed by the argument parser. */
bool ps_options_is_bool(const char *name);

/* Check combinations (an option without effect in this command or mode is PS_EUSAGE; required ones missing)
 * and fill in the defaults that depend on the mode. */
int ps_options_resolve(struct ps_options *opt, struct ps_error *err) PS_WARN_UNUSED;

/* Write every option that has an effect as YAML, in the table's order: config.resolved.yaml. The text is a valid
 * configuration file. Returns a new string (free()), or NULL when out of memory. */
char *ps_options_to_yaml(const struct ps_options *opt);

/* XXH3-64 over the options that are numerical (change the bits of the result), for the resume check. */
uint64_t ps_options_numerical_hash(const struct ps_options *opt);

/* Compare the numerical options of two texts of ps_options_to_yaml (command train). Returns how many differ, and
 * in text[0, size) "lora-r (8 then, 16 now), ..." (truncated if need be), or a negative code when a text cannot be
 * read. */
int ps_options_numerical_diff(const char *then, const char *now, char *text, size_t size,
                              struct ps_error *err) PS_WARN_UNUSED;

/* Read the arguments of a command (without program and command names): `[CONFIG.yaml] [--flag value ...]`, flags as
 * `--name value`, `--name=value`, and for bool ones also `--name` alone. For inspect and list the argument without
 * a flag is the target instead of a configuration file. The file is read last, so a flag beats it wherever it
 * stands; of two equal flags the last counts. `--help` or `-h` sets *help and stops. Nothing is resolved yet.
 * Returns 0 or PS_EUSAGE. */
int ps_options_parse_args(struct ps_options *opt, int argc, char **argv, bool *help,
                          struct ps_error *err) PS_WARN_UNUSED;

/* Help text of a command, one line an option with default, as printed by --help. */
void ps_options_print_help(FILE *to, enum ps_command command);

#ifdef __cplusplus
}
#endif
#endif
