/* The training run: steps, metrics, evaluation, checkpoints, signals, the result. See penstock.h.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "peft/adapters.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/train/lane_report.h"
#include "session/plan_report_internal.h"

#define NONFINITE_RUN_MAX 10
#define WAIT_SAID_S 1.0
#define PATH_BYTES 4096

static double now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static bool is_full(const struct ps_session *s)
{
    return strcmp(s->opt->method, "full") == 0;
}

/* What the lanes did, for the summary at the end. */
static void sum_lanes(struct ps_session *s, const struct ps_trainer_stats *st)
{
    ps_lane_stats_add(s->lane_sum, st->lane);
    s->lane_steps++;
    s->lane_seconds += st->seconds;
    s->lane_read_bytes += st->read_bytes;
    s->lane_write_bytes += st->write_bytes;
}

int ps_session_step(struct ps_session *s, struct ps_step_stats *out, struct ps_error *err)
{
    struct ps_trainer_stats st;
    uint64_t count = ps_batcher_step_count(s->batcher);
    if (s->step >= count)
        return ps_error_set(err, -EINVAL, "the run is already complete");
    int ret = ps_trainer_step(s->trainer, s->batcher, s->step, &st, err);
    if (ret < 0)
        return ret;
    s->step++;
    s->nonfinite_run = st.skipped ? s->nonfinite_run + 1 : 0;
    s->skipped += st.skipped;
    s->clipped += !st.skipped && st.clip_coef < 1;
    s->total_tokens += (uint64_t)st.tokens;
    s->total_labels += (uint64_t)st.labels;
    s->total_dropped += (uint64_t)st.dropped;
    s->total_seconds += st.seconds;
    s->total_read_bytes += st.read_bytes;
    s->total_write_bytes += st.write_bytes;
    *out = (struct ps_step_stats){
        .step = s->step,
        .step_count = count,
        .epoch = ps_batcher_epoch_at(s->batcher, s->step - 1),
        .loss = st.loss,
        .grad_norm = st.grad_norm,
        .learning_rate = st.learning_rate,
        .clip_coef = (double)st.clip_coef,
        .tokens = (uint64_t)st.tokens,
        .label_tokens = (uint64_t)st.labels,
        .dropped_tokens = (uint64_t)st.dropped,
        .step_s = st.seconds,
        .tokens_per_s = st.seconds > 0 ? (double)st.tokens / st.seconds : 0,
        .compute_s = st.compute_s,
        .data_s = st.data_s,
        .update_s = st.update_s,
        .host_bytes = ps__rss_bytes(s),
        .skipped = st.skipped,
        .disk_read_bytes = st.read_bytes,
        .disk_write_bytes = st.write_bytes,
        .h2d_bytes = st.lane[PS_LANE_H2D].bytes,
        .d2h_bytes = st.lane[PS_LANE_D2H].bytes,
        .redo_bytes = st.redo_bytes,
        .device_bytes = s->device_need,
        .disk_bytes = s->disk_need,
        .stall_s = ps_lane_stall_s(&st.lane[PS_LANE_COMPUTE]),
        .predicted_step_s = s->chosen.step_s,
    };
    s->peak_rss = out->host_bytes > s->peak_rss ? out->host_bytes : s->peak_rss;
    memcpy(s->lane, st.lane, sizeof s->lane);
    ps__trace_step(s);
    if (s->step > s->first_step + 1 || s->step == count) /* the first step fills the slots */
        sum_lanes(s, &st);
    return s->step < count;
}

/* A number as JSON: null where it is not finite. */
static const char *real(char *buf, size_t size, double x)
{
    if (!isfinite(x))
        return "null";
    PS_IGNORE(snprintf(buf, size, "%.9g", x) < 0, "cannot fail");
    return buf;
}

static int flush_metrics(struct ps_session *s, struct ps_error *err)
{
    if (fflush(s->metrics) == 0 && !ferror(s->metrics))
        return 0;
    int ret = errno ? -errno : -EIO;
    clearerr(s->metrics);
    return ps_error_full(err, ret, s->opt->output, "metrics.jsonl", NULL,
                         "cannot write metrics.jsonl: %s", ps_status_text(ret));
}

static int log_step(struct ps_session *s, const struct ps_step_stats *st, struct ps_error *err)
{
    char loss[32];
    char norm[32];
    char predicted[32];
    char lanes[PS_LANE_JSON_BYTES];
    if (s->history_count < s->history_capacity)
        s->history[s->history_count++] = (struct ps_log_entry){.step = st->step,
                                                               .epoch = st->epoch,
                                                               .loss = st->loss,
                                                               .grad_norm = st->grad_norm,
                                                               .learning_rate = st->learning_rate};
    double guess = st->predicted_step_s > 0 ? st->predicted_step_s : (double)NAN;
    fprintf(
        s->metrics,
        "{\"step\":%" PRIu64 ",\"epoch\":%.6g,\"loss\":%s,\"grad_norm\":%s,\"learning_rate\":%.9g,"
        "\"tokens\":%" PRIu64 ",\"label_tokens\":%" PRIu64
        ",\"tokens_per_s\":%.2f,\"step_s\":%.6f,\"compute_s\":%.6f,\"data_s\":%.6f,"
        "\"update_s\":%.6f,\"stall_s\":%.6f,\"device_bytes\":%" PRIu64 ",\"host_bytes\":%" PRIu64
        ",\"disk_bytes\":%" PRIu64 ",\"disk_read_bytes\":%" PRIu64 ",\"disk_write_bytes\":%" PRIu64
        ",\"h2d_bytes\":%" PRIu64 ",\"d2h_bytes\":%" PRIu64 ",\"clip_coef\":%.9g,"
        "\"redo_bytes\":%" PRIu64
        ",\"predicted_step_s\":%s,\"skipped\":%s,\"dropped_tokens\":%" PRIu64 ",%s}\n",
        st->step, st->epoch, real(loss, sizeof loss, st->loss),
        real(norm, sizeof norm, st->grad_norm), st->learning_rate, st->tokens, st->label_tokens,
        st->tokens_per_s, st->step_s, st->compute_s, st->data_s, st->update_s, st->stall_s,
        st->device_bytes, st->host_bytes, st->disk_bytes, st->disk_read_bytes, st->disk_write_bytes,
        st->h2d_bytes, st->d2h_bytes, st->clip_coef, st->redo_bytes,
        real(predicted, sizeof predicted, guess), st->skipped ? "true" : "false",
        st->dropped_tokens, ps_lane_report_json(s->lane, lanes));
    return flush_metrics(s, err);
}

/* Keep the lines of metrics.jsonl up to the step that the run goes on from; an evaluation that its
 * commit does not know is made again. *logged: that step has its line. */
static int trim_metrics(struct ps_session *s, const char *path, bool *logged, struct ps_error *err)
{
    *logged = false;
    if (s->step == 0 || access(path, F_OK) != 0)
        return 0;
    char *text;
    size_t len;
    int ret = ps_file_read(path, (size_t)1 << 31, &text, &len, err);
    if (ret < 0)
        return ret;
    size_t kept = 0;
    for (size_t at = 0; at < len;) {
        const char *end = memchr(text + at, '\n', len - at);
        size_t n = end ? (size_t)(end - (text + at)) + 1 : len - at;
        unsigned long long step;
        bool line = end && sscanf(text + at, "{\"step\":%llu,", &step) == 1 && step <= s->step;
        bool again = line && step == s->step && ps__store_resumed(s) && s->eval_step != step &&
                     memmem(text + at, n, "\"eval_loss\"", 11);
        if (line && step == s->step && memmem(text + at, n, "\"loss\"", 6))
            *logged = true;
        if (line && !again) {
            memmove(text + kept, text + at, n);
            kept += n;
        }
        at += n;
    }
    ret = ps_file_write(path, text, kept, err);
    free(text);
    return ret;
}

/* The line of the step that the run goes on from, out of its commit, where a kill came between the
 * two: what it took is not known any more. */
static int recover_line(struct ps_session *s, struct ps_error *err)
{
    const json_t *last = ps__store_resumed(s) ? json_object_get(ps__store_state(s), "last") : NULL;
    const json_t *loss = json_object_get(last, "loss");
    const json_t *norm = json_object_get(last, "grad_norm");
    bool skipped = json_is_true(json_object_get(last, "skipped"));
    char loss_text[32];
    char norm_text[32];
    if (!last || s->step == 0 ||
        (s->step % (uint64_t)s->opt->logging_steps != 0 && !skipped &&
         s->step != ps_batcher_step_count(s->batcher)))
        return 0;
    struct ps_log_entry e = {
        .step = s->step,
        .epoch = ps_batcher_epoch_at(s->batcher, s->step - 1),
        .loss = json_is_number(loss) ? json_number_value(loss) : (double)NAN,
        .grad_norm = json_is_number(norm) ? json_number_value(norm) : (double)NAN,
        .learning_rate = json_number_value(json_object_get(last, "learning_rate"))};
    if (s->history_count < s->history_capacity)
        s->history[s->history_count++] = e;
    fprintf(s->metrics,
            "{\"step\":%" PRIu64 ",\"epoch\":%.6g,\"loss\":%s,\"grad_norm\":%s,"
            "\"learning_rate\":%.9g,\"tokens\":%lld,\"label_tokens\":%lld,"
            "\"clip_coef\":%.9g,\"recovered\":true,\"skipped\":%s}\n",
            e.step, e.epoch, real(loss_text, sizeof loss_text, e.loss),
            real(norm_text, sizeof norm_text, e.grad_norm), e.learning_rate,
            (long long)json_integer_value(json_object_get(last, "tokens")),
            (long long)json_integer_value(json_object_get(last, "label_tokens")),
            json_number_value(json_object_get(last, "clip_coef")), skipped ? "true" : "false");
    return flush_metrics(s, err);
}

static int write_text(const char *dir, const char *name, const char *text, struct ps_error *err)
{
    char path[PATH_BYTES];
    if (!ps_path_join(path, sizeof path, dir, name))
        return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
    return ps_file_write(path, text, strlen(text), err);
}

/* What `plan --json` says too, but for what only a plan is asked. */
static int write_plan(struct ps_session *s, struct ps_error *err)
{
    uint64_t budget = s->host_budget < INT64_MAX ? s->host_budget : INT64_MAX;
    json_t *root = ps__plan_contract_json(s);
    json_t *more = json_pack("{s:i,s:I,s:o,s:o}", "version", 1, "host_budget", (json_int_t)budget,
                             "memory", ps__plan_memory_json(s), "import", ps__import_json(s));
    bool whole = root && more && json_object_update(root, more) == 0;
    char *text = whole ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    json_decref(more);
    if (!text)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = write_text(s->opt->output, "plan.json", text, err);
    free(text);
    return ret;
}

/* What a killed process leaves behind: ".checkpoint-N.tmp" and the "NAME.tmp-PID-N" of
 * ps_file_write. */
static bool is_left_over(const char *name)
{
    const char *at = strrchr(name, '.');
    unsigned long a;
    unsigned b;
    int n = 0;
    if (!at)
        return false;
    if (strncmp(name, ".checkpoint-", 12) == 0)
        return strcmp(at, ".tmp") == 0;
    return sscanf(at, ".tmp-%lu-%u%n", &a, &b, &n) == 2 && at[n] == '\0';
}

/* A new run must not write into the directory of another one, nor over a model. */
int ps__output_check(const struct ps_session *s, struct ps_error *err)
{
    const char *out = s->opt->output;
    DIR *d = opendir(out);
    const struct dirent *e;
    bool run = false;
    bool model = false;
    while (d && (e = readdir(d))) {
        run |= strncmp(e->d_name, "checkpoint-", 11) == 0;
        model |= strcmp(e->d_name, "config.json") == 0;
        model |= strcmp(e->d_name, "adapter_config.json") == 0;
    }
    if (d)
        closedir(d);
    if (run && !s->opt->resume)
        return ps_error_full(err, PS_EUSAGE, out, "output",
                             "go on with --resume, or choose another --output",
                             "the output directory already holds the checkpoints of a run");
    if (model && s->step == 0)
        return ps_error_full(err, PS_EUSAGE, out, "output", "choose another --output",
                             "the output directory already holds a model or an adapter");
    return 0;
}

/* Make the directory, and remove what kills have left half-written in it. */
static int prepare_directory(struct ps_session *s, struct ps_error *err)
{
    int ret = ps__output_check(s, err);
    if (ret < 0)
        return ret;
    DIR *d = opendir(s->opt->output);
    const struct dirent *e;
    while (ret == 0 && d && (e = readdir(d))) {
        char path[PATH_BYTES];
        if (is_left_over(e->d_name) && ps_path_join(path, sizeof path, s->opt->output, e->d_name))
            ret = ps_file_remove_tree(path, err);
    }
    if (d)
        closedir(d);
    return ret == 0 ? ps_file_make_dirs(s->opt->output, err) : ret;
}

static int prepare_output(struct ps_session *s, struct ps_error *err)
{
    char path[PATH_BYTES];
    bool logged = false;
    int ret = prepare_directory(s, err);
    if (ret == 0)
        ret = write_text(s->opt->output, "config.resolved.yaml", s->config_text, err);
    if (ret == 0)
        ret = write_plan(s, err);
    if (ret == 0)
        ret = ps__import_keep_checksums(s, err);
    if (ret == 0 && !ps_path_join(path, sizeof path, s->opt->output, "metrics.jsonl"))
        ret = ps_error_full(err, -ENAMETOOLONG, s->opt->output, NULL, NULL, "the path is too long");
    if (ret == 0)
        ret = trim_metrics(s, path, &logged, err);
    if (ret < 0)
        return ret;
    s->metrics = fopen(path, s->step > 0 ? "ae" : "we");
    if (!s->metrics) {
        ret = -errno;
        return ps_error_full(err, ret, path, NULL, NULL, "cannot open: %s", ps_status_text(ret));
    }
    return logged ? 0 : recover_line(s, err);
}

static int save_checkpoint(struct ps_session *s, const struct ps_train_hooks *hooks,
                           struct ps_error *err)
{
    char path[PATH_BYTES];
    if (s->saved_step == s->step) /* --save-best has just done it */
        return 0;
    double begin = now_s();
    int ret = ps__checkpoint_save(s, path, sizeof path, err);
    if (ret < 0)
        return ret;
    s->saved_step = s->step;
    double took = now_s() - begin;
    s->save_seconds += took;
    if (took >= WAIT_SAID_S)
        ps_log(&s->log, PS_LOG_INFO, "the run stood %.1f s while %s was written", took, path);
    if (hooks && hooks->on_checkpoint)
        hooks->on_checkpoint(hooks->arg, path);
    return 0;
}

static bool out_of_patience(const struct ps_session *s)
{
    int patience = s->opt->early_stopping_patience;
    return patience > 0 && s->evals_without_gain >= (uint32_t)patience;
}

/* Evaluate, log, and keep score for --save-best and --early-stopping-patience. *stop: patience is
 * used up. */
static int evaluate(struct ps_session *s, const struct ps_train_hooks *hooks, bool *stop,
                    struct ps_error *err)
{
    struct ps_eval_stats e;
    char loss[32];
    int ret = ps__eval(s, &e, err);
    if (ret < 0)
        return ret;
    s->last_eval_loss = e.loss;
    s->eval_step = s->step;
    fprintf(s->metrics,
            "{\"step\":%" PRIu64 ",\"eval_loss\":%s,\"eval_rows\":%" PRIu64
            ",\"eval_label_tokens\":%" PRIu64 ",\"eval_s\":%.6f}\n",
            s->step, real(loss, sizeof loss, e.loss), e.rows, e.label_tokens, e.seconds);
    if (e.loss < s->best_eval) {
        s->best_eval = e.loss;
        s->best_step = s->step;
        s->evals_without_gain = 0;
    } else {
        s->evals_without_gain++;
    }
    *stop = out_of_patience(s);
    if (hooks && hooks->on_eval)
        hooks->on_eval(hooks->arg, s->step, &e);
    ret = flush_metrics(s, err);
    if (ret == 0 && s->opt->save_best && s->best_step == s->step)
        ret = save_checkpoint(s, hooks, err);
    return ret;
}

static int diverged(struct ps_session *s, const struct ps_train_hooks *hooks, struct ps_error *err)
{
    int ret = save_checkpoint(s, hooks, err);
    if (ret < 0)
        return ret;
    return ps_error_full(
        err, PS_EDIVERGED, s->opt->output, "learning-rate",
        "lower --learning-rate, check the data, or go on from an older checkpoint",
        "loss or gradient was not finite in %d steps in a row (up to step %llu); no weight "
        "was changed by them",
        NONFINITE_RUN_MAX, (unsigned long long)s->step);
}

/* After one step: logs, evaluation, checkpoint, requests. 1: stop early, 0: go on. */
static int after_step(struct ps_session *s, const struct ps_step_stats *st,
                      const struct ps_train_hooks *hooks, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    bool last = s->step == st->step_count;
    bool stop = false;
    int ret = 0;
    if (s->step % (uint64_t)o->logging_steps == 0 || last || st->skipped)
        ret = log_step(s, st, err);
    if (ret == 0 && hooks && hooks->on_step)
        hooks->on_step(hooks->arg, st);
    if (ret == 0 && s->nonfinite_run >= NONFINITE_RUN_MAX)
        return diverged(s, hooks, err);
    bool eval_now = o->eval_steps > 0 && s->step % (uint64_t)o->eval_steps == 0;
    if (ret == 0 && s->eval_batcher && (eval_now || last))
        ret = evaluate(s, hooks, &stop, err);
    bool asked = atomic_exchange_explicit(&s->save_wanted, 0, memory_order_relaxed) != 0;
    bool due = o->save_steps > 0 && s->step % (uint64_t)o->save_steps == 0;
    int signal_number = atomic_load_explicit(&s->stop_signal, memory_order_relaxed);
    if (ret == 0 && (asked || due || last || stop || signal_number))
        ret = save_checkpoint(s, hooks, err);
    if (ret == 0)
        ret = ps__store_after_step(s, err);
    if (ret < 0)
        return ret;
    if (signal_number && !last)
        return ps_error_full(err, PS_ESTOPPED, o->output, NULL, "go on with --resume",
                             "stopped by signal %d after step %llu; the checkpoint is saved",
                             signal_number, (unsigned long long)s->step);
    return stop ? 1 : 0;
}

/* A commit is made before the evaluation and the checkpoint of its step: what a run was killed
 * before is made up for. 1: stop early. */
static int catch_up(struct ps_session *s, const struct ps_train_hooks *hooks, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    bool last = s->step == ps_batcher_step_count(s->batcher);
    bool eval_due = last || (o->eval_steps > 0 && s->step % (uint64_t)o->eval_steps == 0);
    bool save_due = last || (o->save_steps > 0 && s->step % (uint64_t)o->save_steps == 0);
    bool stop = false;
    int ret = 0;
    if (!ps__store_resumed(s) || s->step == 0)
        return 0;
    if (s->eval_batcher && eval_due && s->eval_step != s->step)
        ret = evaluate(s, hooks, &stop, err);
    if (ret == 0 && (save_due || stop) && ps__checkpoint_newest(s) != (int64_t)s->step)
        ret = save_checkpoint(s, hooks, err);
    return ret < 0 ? ret : stop ? 1 : 0;
}

/* With --save-best the result is that of the best evaluation. */
static int load_best(struct ps_session *s, struct ps_error *err)
{
    if (!s->opt->save_best || !isfinite(s->best_eval) || s->best_step == s->step)
        return 0;
    char dir[PATH_BYTES];
    if (snprintf(dir, sizeof dir, "%s/checkpoint-%" PRIu64, s->opt->output, s->best_step) >=
        (int)sizeof dir)
        return ps_error_full(err, -ENAMETOOLONG, s->opt->output, NULL, NULL,
                             "the path is too long");
    if (access(dir, F_OK) != 0) {
        ps_log(&s->log, PS_LOG_WARN,
               "%s, the best evaluation, is gone: the result is that of the last step", dir);
        return 0;
    }
    ps_log(&s->log, PS_LOG_INFO, "the result is that of step %llu, the best evaluation",
           (unsigned long long)s->best_step);
    return ps__checkpoint_load_tensors(s, dir, err);
}

/* With --ema-decay the result is the average of the weights, which is evaluated too: the last line
 * of metrics with an eval_loss. The checkpoint of this step keeps both. */
static int take_average(struct ps_session *s, const struct ps_train_hooks *hooks,
                        struct ps_error *err)
{
    if (s->opt->ema_decay <= 0 || ps_trainer_updates(s->trainer) == 0)
        return 0;
    char dir[PATH_BYTES];
    if (snprintf(dir, sizeof dir, "%s/checkpoint-%" PRIu64, s->opt->output, s->step) >=
        (int)sizeof dir)
        return ps_error_full(err, -ENAMETOOLONG, s->opt->output, NULL, NULL,
                             "the path is too long");
    ps_log(&s->log, PS_LOG_INFO, "the result is the average of the weights (--ema-decay %g)",
           s->opt->ema_decay);
    int ret = ps__read_average(s, dir, err);
    bool stop;
    if (ret == 0 && s->eval_batcher)
        ret = evaluate(s, hooks, &stop, err);
    return ret;
}

static int write_end(struct ps_session *s, struct ps_error *err)
{
    char eval[32];
    char measured[32];
    double rate = s->total_seconds > 0 ? (double)s->total_tokens / s->total_seconds : 0;
    double step_s = s->lane_steps > 0 ? s->lane_seconds / (double)s->lane_steps : (double)NAN;
    uint64_t read;
    uint64_t written;
    ps_trainer_rest_bytes(s->trainer, &read, &written);
    s->total_read_bytes += read;
    s->total_write_bytes += written;
    fprintf(s->metrics,
            "{\"event\":\"end\",\"steps\":%" PRIu64 ",\"updates\":%" PRIu64 ",\"skipped\":%" PRIu64
            ",\"tokens\":%" PRIu64 ",\"label_tokens\":%" PRIu64 ",\"dropped_tokens\":%" PRIu64
            ",\"train_s\":%.6f,\"save_s\":%.6f,\"tokens_per_s\":%.2f,\"eval_loss\":%s,\"peak_"
            "bytes\":{\"device\":"
            "%" PRIu64 ",\"host\":%" PRIu64 ",\"disk\":%" PRIu64
            "},\"predicted_peak_bytes\":{\"device\":%" PRIu64 ",\"host\":%" PRIu64
            ",\"disk\":%" PRIu64
            "},\"step_s\":%s,\"predicted_step_s\":%.9g,\"disk_read_bytes\":%" PRIu64
            ",\"disk_write_bytes\":%" PRIu64 "}\n",
            s->step, ps_trainer_updates(s->trainer), s->skipped, s->total_tokens, s->total_labels,
            s->total_dropped, s->total_seconds, s->save_seconds, rate,
            s->eval_batcher ? real(eval, sizeof eval, s->last_eval_loss) : "null", s->device_need,
            ps__rss_peak_bytes(s), s->disk_need, s->device_need, s->host_need, s->disk_need,
            real(measured, sizeof measured, step_s), s->chosen.step_s, s->total_read_bytes,
            s->total_write_bytes);
    return flush_metrics(s, err);
}

static int write_result(struct ps_session *s, const struct ps_train_hooks *hooks,
                        struct ps_error *err)
{
    int ret = load_best(s, err);
    if (ret == 0)
        ret = take_average(s, hooks, err);
    if (ret == 0)
        ret = ps_trainer_pull(s->trainer, err);
    bool half = s->opt->adapter_dtype && strcmp(s->opt->adapter_dtype, "bf16") == 0;
    if (ret == 0)
        ret = is_full(s)
                  ? ps__write_model(s, s->opt->output, err)
                  : ps__write_adapter(s, s->opt->output, half ? PS_DTYPE_BF16 : PS_DTYPE_F32, err);
    return ret == 0 ? write_end(s, err) : ret;
}

/* Streamed updates are planned by how often the gradient is clipped. */
static void report_clipping(const struct ps_session *s)
{
    const struct ps_step_layout *l = &s->chosen.layout;
    if (l->update == PS_UPDATE_RESIDENT || l->clip != PS_CLIP_EXACT || s->lane_steps < 20)
        return;
    double share = (double)s->clipped / (double)(s->lane_steps + 1);
    if (share > s->opt->expected_clipping + 0.2 || share < s->opt->expected_clipping - 0.2)
        ps_log(&s->log, PS_LOG_INFO,
               "the gradient was clipped in %.0f%% of these steps, the plan expected %.0f%%: with "
               "--expected-clipping %.2g another plan may be faster",
               100 * share, 100 * s->opt->expected_clipping, share);
}

/* The summary: predicted beside measured. The first step, which fills slots and caches, is left
 * out. */
static void report(struct ps_session *s, const struct ps_train_hooks *hooks)
{
    char text[PS_LANE_TEXT_BYTES];
    struct ps_lane_report r = {.steps = s->lane_steps,
                               .seconds = s->lane_seconds,
                               .stats = s->lane_sum,
                               .disk_read_bytes = s->lane_read_bytes,
                               .disk_write_bytes = s->lane_write_bytes,
                               .predicted_step_s = s->chosen.step_s,
                               .predicted_busy_s = s->chosen.step.busy_s,
                               .predicted_read_bytes = s->chosen.disk_read,
                               .predicted_write_bytes = s->chosen.disk_write};
    if (hooks && hooks->on_report && s->lane_steps > 0)
        hooks->on_report(hooks->arg, ps_lane_report_text(&r, text));
    report_clipping(s);
}

/* In place of what a lower level, which knows of no run, advised about a disk. */
static int advise_resume(struct ps_error *err, int code)
{
    const char *text = NULL;
    switch (code) {
    case -ENOSPC:
    case -EDQUOT:
        text = "free space on that disk, then go on with --resume";
        break;
    case -EROFS:
        text = "the file system is read-only: mount it writable, then go on with --resume";
        break;
    case -EIO:
        text = "see to the disk (dmesg), then go on with --resume: what was committed is untouched";
        break;
    default:
        break;
    }
    if (!text || strstr(err->advice, "--resume"))
        return code;
    err->advice[0] = '\0';
    return ps_error_advice(err, code, text);
}

static int train(struct ps_session *s, const struct ps_train_hooks *hooks, struct ps_error *err)
{
    int ret = prepare_output(s, err);
    if (ret == 0)
        ret = ps__trace_begin(s, err);
    if (ret == 0)
        ret = catch_up(s, hooks, err);
    ret = ret > 0 ? 0 : ret; /* a run that stops early is out of patience */
    s->first_step = s->step;
    bool first = true;
    bool stop = out_of_patience(s); /* resumed after the last step of a run that stopped early */
    while (ret == 0 && !stop && s->step < ps_batcher_step_count(s->batcher)) {
        struct ps_step_stats st;
        ret = ps_session_step(s, &st, err);
        if (ret >= 0 && first && s->opt->dump_grads)
            ret = ps__dump_grads(s, s->opt->dump_grads, err);
        first = false;
        if (ret >= 0)
            ret = after_step(s, &st, hooks, err);
    }
    if (ret >= 0)
        ret = ps__trace_end(s, err);
    if (ret >= 0)
        report(s, hooks);
    if (ret >= 0)
        ret = write_result(s, hooks, err);
    if (ret == 0)
        ps__store_done(s);
    return ret;
}

int ps_session_train(struct ps_session *s, const struct ps_train_hooks *hooks, struct ps_error *err)
{
    struct ps_error local = {0};
    if (!err)
        err = &local;
    int ret = train(s, hooks, err);
    return ret < 0 ? advise_resume(err, ret) : ret;
}
