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
#include "runtime/train/schedule.h"

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
    PS_CMD_PLAN, /* the options of train; --data and --output may be left out */
    PS_CMD_BENCH,
    PS_CMD_DOCTOR,
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
    char *device;                            /* "auto", "cpu", "cuda" or "emu"; see ps_options_discrete */
    int threads;                             /* 0: physical cores */
    uint64_t seed;
    int isa;                                 /* enum ps_isa cap; -1: auto */
    /* memory: budgets in bytes, -1: auto (host: 80% of what is free, or of the cgroup's limit) */
    int64_t host_mem;                        /* the whole process, without the page cache */
    int64_t gpu_mem;                         /* of a discrete device; given on cpu: an error */
    int64_t nvme_mem;                        /* spill files, imports; not the user's model files */
    char *nvme_path;                         /* directories, joined by commas (ps_options_list_item);
                                                NULL: `output`/spill */
    /* where things live; what cannot be together is PS_EUSAGE in ps_options_resolve */
    char *strategy;                          /* "auto" or a name of offload/planner.h */
    int offload_weights;                     /* -1 auto, else enum ps_tier; never DEVICE on cpu (where
                                                HOST means: not streamed) */
    int offload_activations;                 /* enum ps_act_mode below */
    int offload_optimizer;                   /* -1 auto, else enum ps_tier */
    int64_t nvme_write_limit;                /* bytes a day; -1: any */
    char *import;                            /* "auto", "never" or "always": compressed weights */
    int prefetch_depth;                      /* weight slots read ahead; 0: the planner chooses */
    char *hardware;                          /* profile file; NULL: the user's own, else conservative */
    char *placement, *schedule;              /* files to take instead of planning; NULL: none */
    char *export_placement, *export_schedule; /* files that `plan` writes; NULL: none */
    /* experiments */
    double throttle[PS_LANE_COUNT];          /* bytes/s; FLOP/s on compute, parameters/s on cpu_optim;
                                                0: none */
    unsigned ablate;                         /* bits of enum ps_ablation */
    bool serial;                             /* one task at a time */
    char *storage;                           /* "auto", "io_uring", "threads", "ram" or "null" */
    int queue_depth;                         /* disk requests in flight, 1..64; 0: auto */
    uint64_t delay_seed;                     /* not 0: random waits around tasks and requests */
    char *emu_clock;                         /* "real" or "virtual"; of --device emu */
    char *trace;                             /* Chrome trace to write; NULL: none */
    /* method */
    char *method;                            /* "full", or an adapter's as given: see
                                                ps_options_method */
    int lora_r;
    double lora_alpha, lora_dropout;
    char *lora_target;                       /* "all", "attn", list or regex */
    char *lora_layers;                       /* "all", "last:16", "0-15" */
    bool use_rslora, use_dora;
    char *init;                              /* "default", "pissa" or "olora": --method lora */
    double loraplus_ratio;                   /* learning rate of B over that of A */
    char *lora_bias;                         /* "none", "all" or "lora_only" */
    char *modules_to_save;                   /* "lm_head,embed_tokens"; NULL: none */
    char *weights;                           /* export: of several adapters, "0.7,0.3" */
    char *rank_pattern, *alpha_pattern;      /* "q_proj=8,down_proj=4"; NULL: none */
    char *adapter_dtype;                     /* "fp32" or "bf16" */
    bool peft_exact;
    char *train_layers;                      /* method full: "all", "last:4", "0-15" */
    /* data */
    char *data, *eval_data, *format, *field_map, *chat_template, *loss_on, *overlength;
    double val_split;
    int max_seq_len;
    bool packing, shuffle, drop_unlabelled;
    /* optimisation */
    double epochs;
    int64_t max_steps;                       /* 0: from epochs */
    int batch_size, grad_accum;
    double learning_rate;                    /* -1: 2e-4 adapters, 1e-5 full */
    char *lr_scheduler;                      /* "cosine", "linear", "constant", "wsd" */
    int64_t warmup_steps;                    /* -1: from warmup_ratio */
    double warmup_ratio;                     /* -1: 0.03 */
    double min_lr_ratio, wsd_decay_ratio;
    int wsd_decay;                           /* enum ps_wsd_decay */
    int lr_cycles;
    int64_t lr_timescale;                    /* -1: the warm-up's steps, or 10000 */
    double lr_power_a, lr_power_b;           /* a: -1: 4 times the sequences of a step */
    char *lr_refine_from;                    /* metrics.jsonl of an earlier run */
    double beta2_half_life;                  /* tokens; 0: beta2 is what it is */
    double weight_decay;                     /* -1: 0 adapters, 0.01 full */
    double max_grad_norm;
    char *clip;                              /* "exact", "delayed", "per-tensor" or "none" */
    double expected_clipping;                /* share of steps, 0 .. 1 */
    char *commit_interval;                   /* "auto", steps, or seconds with `s` */
    char *spill_mode;                        /* "shadow" or "inplace" */
    char *optimizer;                         /* a name of optim/optimizers.h */
    char *optim_state;                       /* "fp32", "bf16" or "8bit"; NULL: the method's */
    bool stochastic_rounding;                /* of bf16 weights, instead of an exact master */
    double ema_decay;                        /* of an average of the weights; 0: none */
    double beta1, beta2, eps;                /* these and the next: -1 or false until resolved, and
                                                after it where the method does not read them */
    double momentum, dampening, optim_scale, optim_damping, norm_growth_max, aux_lr_ratio;
    double eps2, clip_threshold, decay_rate, microadam_density, zo_eps;
    bool nesterov, optim_refresh_together, scale_front, match_rms_adamw;
    bool scale_parameter, relative_step, warmup_init, keep_state;
    int optim_rank, optim_update_gap, optim_history, ns_steps;
    int optim_proj_type, optim_basis, optim_moments, switch_mode; /* enums of train/optimizer.h */
    int microadam_window, quant_block_size, lisa_activated_layers, lisa_interval_steps;
    int switch_block_every;
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
    int prompt_count;                        /* no flag: prompts that will be asked together; 0: one */
    /* export, init, data, inspect, list */
    char *checkpoint, *config, *tokenizer, *text, *target;
    int show_mask;
    bool add_special_tokens;
    /* bench */
    char *bench_parts;                       /* names of session/bench.h, or "sweep", joined by commas;
                                                resolved: never NULL (all that cli.md names) */
    char *grid;                              /* GRID.yaml of sweep */
    int64_t disk_size;                       /* bytes of the test file; -1: auto */
    int disk_seconds;                        /* of the sustained measurement; 0: none; -1: default */
    bool quick;                              /* small sizes, short times */
    bool simulate_only;                      /* sweep: no runs */
    /* what was given, for the resolved configuration and for the resume check */
    uint64_t given[4]; /* bit i: entry i of the table was set by flag or file */
};

/* Where what a layer keeps for the backward pass waits: layer boundaries and, unless recomputed, the
 * saved sets. */
enum ps_act_mode {
    PS_ACT_AUTO,
    PS_ACT_KEEP, /* `host`: in host memory; on cpu that is where they arise: nothing is moved */
    PS_ACT_RECOMPUTE,
    PS_ACT_DEVICE, /* in the memory of a discrete device; never on cpu */
    PS_ACT_DISK,   /* boundaries in the spill file, layers recomputed */
    PS_ACT_HOST = PS_ACT_KEEP,
};

/* Fill with the table's defaults. */
void ps_options_init(struct ps_options *opt, enum ps_command command);
void ps_options_fini(struct ps_options *opt);

/* Does the run have a device with memory of its own? `--device cuda` or `emu`, `auto` where there is a
 * card, and in `plan` also a `--gpu-mem` without `--device` (planning for another machine). */
bool ps_options_discrete(const struct ps_options *opt);

/* The method that is trained: --use-dora and --init make lora another one. */
const char *ps_options_method(const struct ps_options *opt);

/* Item number i of a list joined by commas (nvme_path, bench_parts) in buf; false past the end (NULL has
 * no items) or when it does not fit. */
bool ps_options_list_item(const char *list, size_t i, char *buf, size_t size);

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
 * a flag is the target instead of a configuration file; for bench those are its parts, and a .yaml file the grid.
 * The file is read last, so a flag beats it wherever it stands; of two equal flags the last counts (those of a
 * list add up). `--help` or `-h` sets *help and stops. Nothing is resolved yet.
 * Returns 0 or PS_EUSAGE. */
int ps_options_parse_args(struct ps_options *opt, int argc, char **argv, bool *help,
                          struct ps_error *err) PS_WARN_UNUSED;

/* Help text of a command, one line an option with default, as printed by --help. */
void ps_options_print_help(FILE *to, enum ps_command command);

#ifdef __cplusplus
}
#endif
#endif
