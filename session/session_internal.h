/* What the files of the session share: see penstock.h. */
#ifndef PS_SESSION_SESSION_INTERNAL_H
#define PS_SESSION_SESSION_INTERNAL_H

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>

#include "offload/planner.h"
#include "optim/lr_schedule.h"
#include <jansson.h>

#include "runtime/data/batch.h"
#include "runtime/data/dataset.h"
#include "runtime/data/tokenizer.h"
#include "runtime/train/trainer.h"
#include "session/penstock.h"
#include "session/session_import.h"
#include "session/session_io.h"

/* One logged step, kept for trainer_state.json. */
struct ps_log_entry {
    uint64_t step;
    double epoch, loss, grad_norm, learning_rate;
};

#define PS_PLAN_ITEM_MAX 24

struct ps_adapter_blend;
struct ps_session {
    const struct ps_options *opt; /* borrowed until close */
    struct ps_log log;
    struct ps_model_config cfg;
    struct ps_tokenizer *tok; /* NULL when the data are token ids and the model has none */
    struct ps_encoding enc;
    int32_t eos[PS_EOS_MAX + 1]; /* ids that end a generation */
    int eos_count;

    struct ps_dataset data, eval_data; /* row_count 0: none */
    struct ps_batcher *batcher, *eval_batcher;
    uint64_t data_hash; /* XXH3 of the training rows' ids and labels */

    bool *site_on, *layer_on;
    struct ps_adapter_config adapter_config, *site_config; /* (ps_site_count,) */
    struct ps_adapter_blend *blend; /* export of several adapters; NULL: none */
    struct ps_lr_schedule schedule;
    double *lr_table; /* of the refined schedule */
    struct ps_trainer *trainer;
    struct ps_trainer_options trainer_options;
    struct ps_cuda_info cuda; /* of the CUDA device */
    bool device_limited;      /* --gpu-mem is more than the card has left */
    struct ps_session_io *io;
    struct ps__store *store;             /* session_store.c; training alone */
    struct ps_session_import *import;    /* NULL: not considered */
    struct ps_vclock *clock;             /* NULL: real time */
    struct ps_plan chosen;               /* layout and prediction */
    const char *profile_where;           /* where the hardware profile came from */
    uint64_t process_bytes;              /* beside the arenas */
    uint64_t ram_copy_bytes;             /* of these the files that --storage ram loads */
    uint64_t host_budget, host_need;     /* of the whole process */
    uint64_t device_budget, device_need; /* of a discrete device */
    uint64_t disk_need;   /* spilled and imported, the store included */
    uint64_t output_need; /* the result and its checkpoints */
    struct ps_plan_item plan[PS_PLAN_ITEM_MAX];
    size_t plan_count;
    char *checksum_path;
    int32_t context_max; /* tokens of prompt and continuation together (generate) */
    int thread_count;
    enum ps_isa isa;

    /* training state */
    uint64_t step;       /* data cursor: windows consumed */
    uint64_t saved_step; /* of the newest checkpoint, 0: none */
    uint32_t nonfinite_run;
    uint64_t skipped;
    double best_eval;
    uint64_t best_step;
    uint32_t evals_without_gain;
    struct ps_log_entry *history; /* (history_capacity,) allocated at open */
    size_t history_count, history_capacity;
    char *config_text; /* config.resolved.yaml */
    FILE *metrics;
    float **dumped; /* (trainable_count,) --dump-grads of a run whose updates are streamed */
    uint64_t total_tokens, total_labels;
    uint64_t total_dropped; /* of this process */
    double total_seconds, last_eval_loss;
    double save_seconds; /* in which the run stood while checkpoints were written */
    uint64_t eval_step; /* of the last evaluation */
    uint64_t peak_rss;                            /* largest of the steps */
    uint64_t total_read_bytes, total_write_bytes; /* of the disk, by this process */
    uint64_t first_step;                          /* that this process began with */
    struct ps_lane_stats lane[PS_LANE_COUNT];     /* of the last step */
    struct ps_lane_stats lane_sum[PS_LANE_COUNT]; /* of all but the first */
    uint64_t clipped; /* steps of this process */
    uint64_t lane_steps, lane_read_bytes, lane_write_bytes;
    double lane_seconds;
    struct ps_trace *trace;           /* NULL: none, or complete */
    struct ps_task_record *predicted; /* of the train segment, for the trace */

    _Atomic int stop_signal; /* atomic: set by a signal handler */
    _Atomic int save_wanted; /* atomic: set by a signal handler */
};

/* As ps_session_open, but on failure *out is what there is so far (close it), NULL without memory.
 * The error must be given and empty. */
int ps__session_open(struct ps_session **out, const struct ps_options *opt,
                     const struct ps_log *log, struct ps_error *err) PS_WARN_UNUSED;

/* session_lr.c: fill in s->schedule (the batcher exists). */
int ps__schedule_make(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
/* Mean tokens of a step; without rows, those of full sequences. */
double ps__tokens_per_step(const struct ps_session *s);
/* 0.5^(tokens of a step / --beta2-half-life). */
double ps__beta2_by_half_life(const struct ps_session *s);

/* session_layout.c: choose the layout (s->trainer exists, s->trainer_options are its own), set it, and
 * fill in needs and budgets. PS_ENOFIT names the smallest sufficient budget. */
int ps__layout_choose(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
/* The request behind it, and the profile (caller's memory) that it points to. */
int ps__planner_request(struct ps_session *s, struct ps_planner_request *r,
                        struct ps_profile *profile, struct ps_error *err) PS_WARN_UNUSED;
/* --hardware, else the user's own profile, else the built-in one; *where says which. */
int ps__profile_find(const struct ps_options *o, struct ps_profile *out, const char **where,
                     struct ps_error *err) PS_WARN_UNUSED;
/* session_trace.c: trace.json (and --trace FILE) of the first steps. A trace that cannot be written
 * is a warning while the run goes on. */
int ps__trace_begin(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
void ps__trace_step(struct ps_session *s);
int ps__trace_end(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;

/* --schedule FILE: take the segments of the file in place of the builder's; after the layout is
 * set. */
int ps__schedule_import(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
/* Write the segments of the chosen layout. */
int ps__schedule_export(struct ps_session *s, const char *path,
                        struct ps_error *err) PS_WARN_UNUSED;

/* Fill s->plan. */
void ps__layout_describe(struct ps_session *s);

/* RSS of this process in bytes, without the arena of an emulated device, which is shared memory. 0
 * when the system does not say. */
uint64_t ps__rss_bytes(const struct ps_session *s);
/* Its peak: the kernel's high-water mark, or, where that counts a device's arena too, the largest
 * of the steps and now. */
uint64_t ps__rss_peak_bytes(const struct ps_session *s);

/* Write the trained thing into the existing directory `dir`: a PEFT adapter, or a Hugging Face
 * model (base with adapter merged, or the trained weights). dtype of adapters F32 or BF16. */
int ps__write_adapter(struct ps_session *s, const char *dir, enum ps_dtype dtype,
                      struct ps_error *err) PS_WARN_UNUSED;
int ps__write_model(struct ps_session *s, const char *dir, struct ps_error *err) PS_WARN_UNUSED;
/* Re-open a model directory and compare it with what this session would write. */
int ps__verify_model(struct ps_session *s, const char *dir, struct ps_error *err) PS_WARN_UNUSED;

/* Write manifest.json, an XXH3 of each file of the checkpoint directory `dir`; compare the files
 * with it (PS_ECHECKSUM, PS_EFORMAT when one is missing). See manifest.c. */
int ps__manifest_write(const char *dir, struct ps_error *err) PS_WARN_UNUSED;
int ps__manifest_check(const char *dir, struct ps_error *err) PS_WARN_UNUSED;

/* checkpoint-N of the current state under opt->output; prunes older ones. path (size) receives its
 * name. */
int ps__checkpoint_save(struct ps_session *s, char *path, size_t size,
                        struct ps_error *err) PS_WARN_UNUSED;
/* Load the state of a checkpoint directory ("auto": the newest whole one under opt->output; none
 * there is no error and returns 0; otherwise 1 after loading). */
int ps__checkpoint_load(struct ps_session *s, const char *which,
                        struct ps_error *err) PS_WARN_UNUSED;

/* Load the trained tensors of a checkpoint alone, after checking its hashes; counters stay. */
int ps__checkpoint_load_tensors(struct ps_session *s, const char *dir,
                                struct ps_error *err) PS_WARN_UNUSED;

/* checkpoint_tensors.c: optimizer.safetensors, and all tensors of a checkpoint back (weights or
 * adapters, remainders, states). */
int ps__write_optimizer(struct ps_session *s, const char *dir, struct ps_error *err) PS_WARN_UNUSED;
int ps__read_tensors(struct ps_session *s, const char *dir, struct ps_error *err) PS_WARN_UNUSED;
/* The same, with the averages (--ema-decay) of the checkpoint in the weights' places. */
int ps__read_average(struct ps_session *s, const char *dir, struct ps_error *err) PS_WARN_UNUSED;

/* Number of the newest whole checkpoint under opt->output; -1: none. */
int64_t ps__checkpoint_newest(const struct ps_session *s);
/* PS_EUSAGE when numerical options differ from those of a config.resolved.yaml. */
int ps__check_same_config(struct ps_session *s, const char *path,
                          struct ps_error *err) PS_WARN_UNUSED;

/* session_store.c: before the trainer's memory is committed find the store that the run goes on
 * from, or make the one that it needs; counters of a run that goes on from it; a commit when one is
 * due; the run is complete: remove it on close. */
/* session_space.c: bytes of the store on disk, all slots; is there room for all that a run writes? */
uint64_t ps__store_bytes(const struct ps_session *s);
/* Memory that the trainer takes beside its arenas to fill the store: one chunk of weights, one of
 * states. */
uint64_t ps__store_buffer_bytes(const struct ps_session *s);
int ps__space_check(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
/* What a commit of a run with states in memory writes; --commit-interval, both 0 for auto; the
 * seconds that auto means where a commit takes took_s. */
uint64_t ps__commit_bytes(const struct ps_session *s);
void ps__commit_interval(const struct ps_session *s, uint64_t *steps, double *seconds);
double ps__auto_interval_s(const struct ps_session *s, double took_s);
int ps__store_open(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
/* Is there a run.json, so that the run may go on from a commit? */
bool ps__store_named(const struct ps_session *s);
bool ps__store_resumed(const struct ps_session *s);
const json_t *ps__store_state(const struct ps_session *s);
int ps__store_after_step(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
/* Commit what a checkpoint has put into a new store: the first step can then be taken back. */
int ps__store_after_load(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
void ps__store_done(struct ps_session *s);
void ps__store_close(struct ps_session *s);
enum ps_clip_mode ps__clip_mode(const struct ps_options *o);
/* struct ps_trainer_options.run_state; arg: the session. */
size_t ps__run_state(void *arg, const struct ps_run_point *p, void *out, size_t max);

/* Labelled mean of the evaluation rows. */
int ps__eval(struct ps_session *s, struct ps_eval_stats *out, struct ps_error *err) PS_WARN_UNUSED;

/* Refuse (PS_EUSAGE) an output directory that holds another run, a model or an adapter. */
int ps__output_check(const struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;

/* Keeps the gradients of the first step for --dump-grads (struct ps_trainer_options.grad_sink). */
void ps__keep_grad(void *arg, size_t idx, const float *grad, size_t n);
/* Dump the gradients of the last step (fp32, before clipping) as safetensors. */
int ps__dump_grads(struct ps_session *s, const char *path, struct ps_error *err) PS_WARN_UNUSED;

#endif
