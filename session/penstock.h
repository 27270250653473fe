/* Penstock: fine-tune language models that are too large for their machine.
 *
 * The public interface of the library. One session holds one model with everything that training,
 * evaluating or sampling it needs; all memory is planned and allocated in ps_session_open. Not
 * thread-safe: one thread at a time per session. Errors: see runtime/base/status.h; on failure the
 * session stays closable. */
#ifndef PS_SESSION_PENSTOCK_H
#define PS_SESSION_PENSTOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "session/options.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_VERSION "0.1.0"

struct ps_session;

/* One line of the memory plan. */
struct ps_plan_item {
    const char *name; /* "weights", "gradients", "optimizer state", "activations", ... */
    const char *tier; /* "device", "host", "disk" */
    uint64_t bytes;
};

struct ps_session_info {
    const char *model_type;
    const char *method, *optimizer;
    const char *data_path, *data_format, *loss_on; /* "" outside training and evaluation */
    uint64_t parameters, trainable_parameters;
    uint64_t step_count; /* of the whole run */
    uint64_t step;       /* committed so far (resume) */
    uint64_t rows, rows_dropped, rows_truncated, eval_rows;
    uint64_t tokens_per_epoch, labels_per_epoch;
    uint64_t dropped_per_epoch; /* tokens that training leaves out (--drop-unlabelled) */
    double packing_efficiency;
    int threads;
    const char *isa;
    bool recompute;        /* some layer is computed twice */
    const char *plan_note; /* the layout in words */
    uint64_t host_bytes;   /* the whole process, as planned */
    uint64_t host_budget;
    const char *strategy;
    uint64_t device_bytes, device_budget; /* of a discrete device; 0: there is none */
    uint64_t disk_bytes;                  /* spill file */
    double predicted_step_s;              /* 0: not known */
    const struct ps_plan_item *plan;      /* lives as long as the session */
    size_t plan_count;
    const char *device;   /* "cpu" or "emu"; NULL: cpu */
    uint64_t disk_budget; /* 0: none was set */
};

struct ps_step_stats {
    uint64_t step; /* 1-based, after the step */
    uint64_t step_count;
    double epoch, loss, grad_norm, learning_rate, clip_coef;
    uint64_t tokens, label_tokens, dropped_tokens; /* of this step */
    double step_s, tokens_per_s;
    double compute_s, data_s, update_s;
    uint64_t host_bytes;
    bool skipped; /* non-finite loss or gradient: nothing was updated */
    /* of this step; 0 when nothing was moved */
    uint64_t disk_read_bytes, disk_write_bytes, h2d_bytes, d2h_bytes;
    uint64_t redo_bytes; /* moved because an update inside the backward pass was taken back */
    uint64_t device_bytes, disk_bytes; /* in use: the device's arena, spill and imports */
    double stall_s;                    /* compute was ready and waited for other lanes */
    double predicted_step_s;           /* 0: not known */
};

struct ps_eval_stats {
    double loss, perplexity;
    uint64_t rows, tokens, label_tokens;
    double tokens_per_s, seconds;
};

/* Called by ps_session_train on the calling thread; any may be NULL. */
struct ps_train_hooks {
    void *arg;
    void (*on_step)(void *arg, const struct ps_step_stats *s);
    void (*on_eval)(void *arg, uint64_t step, const struct ps_eval_stats *e);
    void (*on_checkpoint)(void *arg, const char *path);
    /* once, after the last step: what the lanes did beside what was predicted, lines for a person
     */
    void (*on_report)(void *arg, const char *text);
};

/* Open what opt->command needs (train: model, data, optimizer; eval: model, data; generate: model;
 * export: model). opt must have been resolved (ps_options_resolve) and live until close. `log` may
 * be NULL. */
int ps_session_open(struct ps_session **out, const struct ps_options *opt, const struct ps_log *log,
                    struct ps_error *err) PS_WARN_UNUSED;
void ps_session_close(struct ps_session *s);

void ps_session_info(const struct ps_session *s, struct ps_session_info *out);

/* One optimizer step. Returns 1 while steps remain after it, 0 when it was the last, or an error.
 */
int ps_session_step(struct ps_session *s, struct ps_step_stats *out,
                    struct ps_error *err) PS_WARN_UNUSED;

/* The whole run: steps, evaluation, metrics.jsonl, checkpoints, signals (those that
 * ps_session_request_stop announced), early stopping, the result in opt->output. Returns 0,
 * PS_ESTOPPED after a clean stop, or an error. */
int ps_session_train(struct ps_session *s, const struct ps_train_hooks *hooks,
                     struct ps_error *err) PS_WARN_UNUSED;

/* Ask the running ps_session_train to stop after the current step, or to save a checkpoint and go
 * on. Async-signal-safe. */
void ps_session_request_stop(struct ps_session *s, int signal_number);
void ps_session_request_save(struct ps_session *s);

/* Mean loss over the labelled tokens of the evaluation rows (train: --eval-data or the split; eval:
 * --data). */
int ps_session_eval(struct ps_session *s, struct ps_eval_stats *out,
                    struct ps_error *err) PS_WARN_UNUSED;

/* Write fp32 logits of every evaluation row as safetensors, one tensor row.N (tokens, vocab). */
int ps_session_write_logits(struct ps_session *s, const char *path,
                            struct ps_error *err) PS_WARN_UNUSED;

struct ps_generation {
    int32_t *prompt_ids, *ids; /* ids: the new part only */
    size_t prompt_count, count;
    char *text; /* of the new part, special tokens skipped */
};
/* A text, or token ids (text NULL). */
struct ps_prompt {
    const char *text;
    const int32_t *ids;
    size_t id_count;
};
/* Continue prompts (greedy at temperature 0), each until EOS or max_new_tokens. As many go in
 * lockstep, one pass over the weights giving each its next token, as the plan has room for
 * (ps_session_prompts_per_pass); the tokens do not depend on which go together. prompt_idx of the
 * first keys its random numbers, the others follow. out (count,) is filled, or on an error empty.
 */
int ps_session_generate_many(struct ps_session *s, const struct ps_prompt *prompt, size_t count,
                             uint32_t prompt_idx, struct ps_generation *out,
                             struct ps_error *err) PS_WARN_UNUSED;
/* Prompts in lockstep, and whether the weights are streamed for every token. */
size_t ps_session_prompts_per_pass(const struct ps_session *s, bool *streamed);
/* Predicted seconds of one pass over streamed weights: of one token of every prompt in the group.
 */
double ps_session_token_seconds(const struct ps_session *s);
/* One prompt. */
int ps_session_generate(struct ps_session *s, const char *prompt, uint32_t prompt_idx,
                        struct ps_generation *out, struct ps_error *err) PS_WARN_UNUSED;
int ps_session_generate_ids(struct ps_session *s, const int32_t *ids, size_t count,
                            uint32_t prompt_idx, struct ps_generation *out,
                            struct ps_error *err) PS_WARN_UNUSED;
void ps_generation_fini(struct ps_generation *g);

/* Write the adapter (peft) or the merged model (hf) to a new directory, then re-open and verify it.
 */
int ps_session_export(struct ps_session *s, const char *format, const char *dir,
                      struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
