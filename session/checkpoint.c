/* checkpoint-N directories: everything that resuming needs, whole or absent.
 *
 * Written under a temporary name, synced, then renamed; manifest.json with an XXH3 of each file is
 * written last. Older checkpoints are deleted only after the new one stands. The state is a
 * function of the number of consumed windows and completed updates (data order, schedule, random
 * numbers are all keyed), so besides tensors only counters are stored. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "optim/optimizers.h"
#include "peft/adapters.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/model/safetensors.h"
#include "session/session_internal.h"

#define STATE_BYTES_MAX ((size_t)1 << 30)
#define PATH_BYTES 4096

static bool is_full(const struct ps_session *s)
{
    return strcmp(s->opt->method, "full") == 0;
}

static int path_in(char *buf, const char *dir, const char *name, struct ps_error *err)
{
    if (ps_path_join(buf, PATH_BYTES, dir, name))
        return 0;
    return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
}

static json_t *history_json(const struct ps_session *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->history_count; i++) {
        const struct ps_log_entry *h = &s->history[i];
        bool finite = isfinite(h->loss) && isfinite(h->grad_norm);
        if (json_array_append_new(
                list, json_pack("{s:I, s:f, s:o, s:o, s:f}", "step", (json_int_t)h->step, "epoch",
                                h->epoch, "loss", finite ? json_real(h->loss) : json_null(),
                                "grad_norm", finite ? json_real(h->grad_norm) : json_null(),
                                "learning_rate", h->learning_rate)) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static int write_state(struct ps_session *s, const char *dir, struct ps_error *err)
{
    char path[PATH_BYTES];
    char hash[24];
    int ret = path_in(path, dir, "trainer_state.json", err);
    if (ret < 0)
        return ret;
    PS_IGNORE(snprintf(hash, sizeof hash, "%016" PRIx64, s->data_hash) < 0, "cannot fail");
    bool best = isfinite(s->best_eval);
    json_t *root = json_pack(
        "{s:i, s:I, s:I, s:f, s:I, s:o, s:o, s:I, s:I, s:I, s:I, s:s, s:s, s:I, s:I, s:f, s:o}",
        "version", 1, "global_step", (json_int_t)s->step, "updates",
        (json_int_t)ps_trainer_updates(s->trainer), "epoch",
        s->step > 0 ? ps_batcher_epoch_at(s->batcher, s->step - 1) : 0.0, "max_steps",
        (json_int_t)ps_batcher_step_count(s->batcher), "best_metric",
        best ? json_real(s->best_eval) : json_null(), "last_metric",
        isfinite(s->last_eval_loss) ? json_real(s->last_eval_loss) : json_null(), "best_step",
        (json_int_t)s->best_step, "evals_without_gain", (json_int_t)s->evals_without_gain,
        "nonfinite_run", (json_int_t)s->nonfinite_run, "skipped", (json_int_t)s->skipped,
        "data_hash", hash, "isa", ps_isa_name(s->isa), "total_tokens", (json_int_t)s->total_tokens,
        "total_labels", (json_int_t)s->total_labels, "norm_before",
        ps_trainer_norm_before(s->trainer), "log_history", history_json(s));
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(root);
    if (!text)
        return ps_error_set(err, -ENOMEM, "out of memory");
    ret = ps_file_write(path, text, strlen(text), err);
    free(text);
    return ret;
}

/* Number N of "checkpoint-N", or -1. */
static int64_t checkpoint_number(const char *name)
{
    static const char prefix[] = "checkpoint-";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return -1;
    const char *at = name + sizeof prefix - 1;
    if (*at < '0' || *at > '9')
        return -1;
    char *end;
    errno = 0;
    long long n = strtoll(at, &end, 10);
    return *end || errno ? -1 : (int64_t)n;
}

/* Newest checkpoint with number < below that has a manifest; -1: none. */
static int64_t newest_below(const char *dir, int64_t below)
{
    DIR *d = opendir(dir);
    int64_t best = -1;
    const struct dirent *e;
    while (d && (e = readdir(d))) {
        char sub[PATH_BYTES];
        char path[PATH_BYTES];
        int64_t n = checkpoint_number(e->d_name);
        if (n > best && n < below && ps_path_join(sub, sizeof sub, dir, e->d_name) &&
            ps_path_join(path, sizeof path, sub, "manifest.json") && access(path, R_OK) == 0)
            best = n;
    }
    if (d)
        closedir(d);
    return best;
}

/* Delete all but the newest save_total_limit and the best one. Those of later steps, which a run
 * that resumed from an older checkpoint finds, stay until it has reached them. */
static void prune(struct ps_session *s)
{
    int64_t at = (int64_t)s->step + 1;
    for (int kept = 0; (at = newest_below(s->opt->output, at)) >= 0; kept++) {
        char name[64];
        char path[PATH_BYTES];
        struct ps_error ignored;
        bool best = s->opt->save_best && (uint64_t)at == s->best_step && isfinite(s->best_eval);
        if (kept < s->opt->save_total_limit || best)
            continue;
        PS_IGNORE(snprintf(name, sizeof name, "checkpoint-%" PRId64, at) < 0, "cannot fail");
        if (ps_path_join(path, sizeof path, s->opt->output, name) &&
            ps_file_remove_tree(path, &ignored) < 0)
            ps_log(&s->log, PS_LOG_WARN, "cannot delete the old checkpoint %s: %s", path,
                   ignored.message);
    }
}

static int write_parts(struct ps_session *s, const char *dir, struct ps_error *err)
{
    char path[PATH_BYTES];
    int ret = ps_trainer_settle(s->trainer, err);
    if (ret == 0)
        ret = ps_trainer_pull(s->trainer, err);
    if (ret == 0)
        ret = is_full(s) ? ps__write_model(s, dir, err)
                         : ps__write_adapter(s, dir, PS_DTYPE_F32, err);
    if (ret == 0)
        ret = ps__write_optimizer(s, dir, err);
    if (ret == 0)
        ret = write_state(s, dir, err);
    if (ret == 0)
        ret = path_in(path, dir, "config.resolved.yaml", err);
    if (ret == 0)
        ret = ps_file_write(path, s->config_text, strlen(s->config_text), err);
    if (ret == 0)
        ret = ps__manifest_write(dir, err);
    return ret == 0 ? ps_file_sync_dir(dir, err) : ret;
}

/* Put the new checkpoint under its name. One that is there (of the same step, from before a resume)
 * is exchanged, so that at every moment a whole one stands. */
static int put_in_place(const char *output, const char *tmp, const char *path, struct ps_error *err)
{
    int ret = 0;
    if (access(path, F_OK) == 0) {
        if (renameat2(AT_FDCWD, tmp, AT_FDCWD, path, RENAME_EXCHANGE) == 0) {
            ret = ps_file_sync_dir(output, err);
            return ret == 0 ? ps_file_remove_tree(tmp, err) : ret;
        }
        ret = ps_file_remove_tree(path, err); /* this file system cannot exchange */
    }
    if (ret == 0 && rename(tmp, path) < 0) {
        ret = -errno;
        return ps_error_full(err, ret, path, NULL, NULL, "cannot rename the checkpoint: %s",
                             ps_status_text(ret));
    }
    return ret == 0 ? ps_file_sync_dir(output, err) : ret;
}

/* In place of what a lower level, which knows no checkpoints, advised. */
static int replace_advice(struct ps_error *err, int code, const char *text)
{
    if (err)
        err->advice[0] = '\0';
    return ps_error_advice(err, code, text);
}

static const char *save_advice(int code)
{
    switch (code) {
    case -ENOSPC:
    case -EDQUOT:
        return "free space on that disk, then go on with --resume; older checkpoints are untouched";
    case -EROFS:
        return "the file system is read-only: mount it writable, then go on with --resume; older "
               "checkpoints are untouched";
    case -EFBIG:
        return "raise the limit on file sizes (ulimit -f), then go on with --resume; older "
               "checkpoints are untouched";
    default:
        return "older checkpoints are untouched; go on with --resume";
    }
}

int ps__checkpoint_save(struct ps_session *s, char *path, size_t size, struct ps_error *err)
{
    char name[64];
    char tmp_name[80];
    char tmp[PATH_BYTES];
    PS_IGNORE(snprintf(name, sizeof name, "checkpoint-%" PRIu64, s->step) < 0, "cannot fail");
    PS_IGNORE(snprintf(tmp_name, sizeof tmp_name, ".%s.tmp", name) < 0, "cannot fail");
    int ret = path_in(tmp, s->opt->output, tmp_name, err);
    if (ret == 0 && !ps_path_join(path, size, s->opt->output, name))
        ret = ps_error_full(err, -ENAMETOOLONG, s->opt->output, NULL, NULL, "the path is too long");
    if (ret == 0)
        ret = ps_file_remove_tree(tmp, err);
    if (ret == 0)
        ret = ps_file_make_dirs(tmp, err);
    if (ret < 0)
        return ret;
    ret = write_parts(s, tmp, err);
    if (ret == 0)
        ret = put_in_place(s->opt->output, tmp, path, err);
    if (ret < 0) {
        PS_IGNORE(ps_file_remove_tree(tmp, NULL) < 0, "the first error is the one to report");
        return replace_advice(err, ret, save_advice(ret));
    }
    prune(s);
    return 0;
}

int ps__check_same_config(struct ps_session *s, const char *path, struct ps_error *err)
{
    char *text = NULL;
    size_t len;
    char diff[512];
    int ret = ps_file_read(path, (size_t)1 << 20, &text, &len, err);
    if (ret < 0)
        return ret;
    ret = ps_options_numerical_diff(text, s->config_text, diff, sizeof diff, err);
    free(text);
    if (ret > 0)
        return ps_error_full(
            err, PS_EUSAGE, path, NULL,
            "resume with the options of the run, or start a new one in another --output",
            "these options differ from those of the run: %s", diff);
    return ret;
}

static int check_same_run(struct ps_session *s, const char *dir, struct ps_error *err)
{
    char path[PATH_BYTES];
    int ret = path_in(path, dir, "config.resolved.yaml", err);
    return ret < 0 ? ret : ps__check_same_config(s, path, err);
}

static int restore_history(struct ps_session *s, const json_t *root)
{
    const json_t *list = json_object_get(root, "log_history");
    for (size_t i = 0; i < json_array_size(list) && s->history_count < s->history_capacity; i++) {
        const json_t *e = json_array_get(list, i);
        const json_t *loss = json_object_get(e, "loss");
        const json_t *norm = json_object_get(e, "grad_norm");
        s->history[s->history_count++] = (struct ps_log_entry){
            .step = (uint64_t)json_integer_value(json_object_get(e, "step")),
            .epoch = json_number_value(json_object_get(e, "epoch")),
            .loss = json_is_number(loss) ? json_number_value(loss) : (double)NAN,
            .grad_norm = json_is_number(norm) ? json_number_value(norm) : (double)NAN,
            .learning_rate = json_number_value(json_object_get(e, "learning_rate"))};
    }
    return 0;
}

/* Counters of the run; `path`, `from` for messages. */
static int apply_state(struct ps_session *s, const json_t *root, const char *path, const char *from,
                       struct ps_error *err)
{
    int ret = 0;
    const struct {
        const char *key;
        int64_t value;
    } absent[] = {{"global_step", 0},        {"updates", 0},       {"best_step", 0},
                  {"evals_without_gain", 0}, {"nonfinite_run", 0}, {"skipped", 0},
                  {"total_tokens", 0},       {"total_labels", 0},  {"eval_step", 0}};
    int64_t v[sizeof absent / sizeof absent[0]];
    for (size_t i = 0; ret == 0 && i < sizeof absent / sizeof absent[0]; i++)
        ret = ps_json_get_int(root, absent[i].key, 0, INT64_MAX, 0, path, &v[i], err);
    const char *hash;
    if (ret == 0)
        ret = ps_json_get_string(root, "data_hash", "", path, &hash, err);
    char now[24];
    PS_IGNORE(snprintf(now, sizeof now, "%016" PRIx64, s->data_hash) < 0, "cannot fail");
    if (ret == 0 && strcmp(hash, now) != 0)
        ret = ps_error_full(err, PS_EUSAGE, s->opt->data, "data",
                            "resume with the data, tokenizer and template of the run",
                            "the training rows are not those of %s", from);
    const char *isa;
    if (ret == 0)
        ret = ps_json_get_string(root, "isa", ps_isa_name(s->isa), path, &isa, err);
    if (ret == 0 && strcmp(isa, ps_isa_name(s->isa)) != 0)
        ps_log(&s->log, PS_LOG_WARN,
               "%s was computed with %s, this run computes with %s: it will not be bit-identical",
               from, isa, ps_isa_name(s->isa));
    if (ret == 0) {
        s->step = (uint64_t)v[0];
        ps_trainer_set_updates(s->trainer, (uint64_t)v[1]);
        for (size_t i = 0; i < ps_trainer_trainable_count(s->trainer); i++)
            ps_trainer_trainable(s->trainer, i)->t = (uint64_t)v[1];
        s->best_step = (uint64_t)v[2];
        s->evals_without_gain = (uint32_t)v[3];
        s->nonfinite_run = (uint32_t)v[4];
        s->skipped = (uint64_t)v[5];
        s->total_tokens = (uint64_t)v[6];
        s->total_labels = (uint64_t)v[7];
        s->eval_step = (uint64_t)v[8];
        const json_t *best = json_object_get(root, "best_metric");
        const json_t *last = json_object_get(root, "last_metric");
        s->best_eval = json_is_number(best) ? json_number_value(best) : (double)INFINITY;
        s->last_eval_loss = json_is_number(last) ? json_number_value(last) : (double)NAN;
        const json_t *norm = json_object_get(root, "norm_before");
        if (json_is_number(norm))
            ps_trainer_set_norm_before(s->trainer, json_number_value(norm));
        ret = restore_history(s, root);
    }
    return ret;
}

static int read_state(struct ps_session *s, const char *dir, struct ps_error *err)
{
    char path[PATH_BYTES];
    json_t *root = NULL;
    int ret = path_in(path, dir, "trainer_state.json", err);
    if (ret == 0)
        ret = ps_json_load(path, STATE_BYTES_MAX, &root, err);
    if (ret < 0)
        return ret;
    ret = apply_state(s, root, path, dir, err);
    json_decref(root);
    return ret;
}

int ps__checkpoint_load_tensors(struct ps_session *s, const char *dir, struct ps_error *err)
{
    int ret = ps__manifest_check(dir, err);
    return ret < 0 ? ret : ps__read_tensors(s, dir, err);
}

/* With --resume auto a damaged checkpoint is not passed over: that is for the user to decide. */
static int advise_older(struct ps_session *s, int64_t n, int ret, struct ps_error *err)
{
    char text[sizeof err->advice];
    int64_t older = newest_below(s->opt->output, n);
    int len =
        older < 0
            ? snprintf(text, sizeof text,
                       "delete %s/checkpoint-%" PRId64 "; there is no older one: the run then "
                       "starts from the beginning",
                       s->opt->output, n)
            : snprintf(text, sizeof text,
                       "delete %s/checkpoint-%" PRId64 "; --resume then goes on from step %" PRId64,
                       s->opt->output, n, older);
    return len < 0 ? ret : replace_advice(err, ret, text);
}

int64_t ps__checkpoint_newest(const struct ps_session *s)
{
    return s->opt->output ? newest_below(s->opt->output, INT64_MAX) : -1;
}

/* The lines of metrics.jsonl up to the step of the commit: the store does not hold the history. */
static int history_from_metrics(struct ps_session *s, struct ps_error *err)
{
    char path[PATH_BYTES];
    char *text;
    size_t len;
    int ret = path_in(path, s->opt->output, "metrics.jsonl", err);
    if (ret < 0 || access(path, R_OK) != 0)
        return ret;
    ret = ps_file_read(path, (size_t)1 << 31, &text, &len, err);
    if (ret < 0)
        return ret;
    for (size_t at = 0; ret == 0 && at < len;) {
        const char *end = memchr(text + at, '\n', len - at);
        size_t n = end ? (size_t)(end - (text + at)) : len - at;
        json_t *line = NULL;
        int parsed = ps_json_parse(text + at, n, PS_JSON_PLAIN, path, &line, NULL);
        if (parsed == -ENOMEM) /* a line that was cut off is none */
            ret = ps_error_set(err, parsed, "out of memory");
        const json_t *loss = json_object_get(line, "loss");
        const json_t *step = json_object_get(line, "step");
        const json_t *norm = json_object_get(line, "grad_norm");
        if (loss && json_is_integer(step) && (uint64_t)json_integer_value(step) <= s->step &&
            s->history_count < s->history_capacity)
            s->history[s->history_count++] = (struct ps_log_entry){
                .step = (uint64_t)json_integer_value(step),
                .epoch = json_number_value(json_object_get(line, "epoch")),
                .loss = json_is_number(loss) ? json_number_value(loss) : (double)NAN,
                .grad_norm = json_is_number(norm) ? json_number_value(norm) : (double)NAN,
                .learning_rate = json_number_value(json_object_get(line, "learning_rate"))};
        json_decref(line);
        at += n + 1;
    }
    free(text);
    return ret;
}

static int resume_from_store(struct ps_session *s, struct ps_error *err)
{
    int ret = apply_state(s, ps__store_state(s), "run state", "the last commit", err);
    if (ret == 0)
        ret = history_from_metrics(s, err);
    if (ret < 0)
        return ret;
    ps_log(&s->log, PS_LOG_INFO, "resuming from the last commit of the spill store at step %llu",
           (unsigned long long)s->step);
    return 1;
}

int ps__checkpoint_load(struct ps_session *s, const char *which, struct ps_error *err)
{
    if (ps__store_resumed(s))
        return resume_from_store(s, err);
    char name[64];
    char dir[PATH_BYTES];
    int ret = 0;
    int64_t n = -1;
    if (strcmp(which, "auto") == 0) {
        n = newest_below(s->opt->output, INT64_MAX);
        if (n < 0) {
            ps_log(&s->log, PS_LOG_INFO, "no checkpoint in %s: starting from the beginning",
                   s->opt->output);
            return 0;
        }
        PS_IGNORE(snprintf(name, sizeof name, "checkpoint-%" PRId64, n) < 0, "cannot fail");
        ret = path_in(dir, s->opt->output, name, err);
    } else if (snprintf(dir, sizeof dir, "%s", which) >= (int)sizeof dir) {
        ret = ps_error_full(err, -ENAMETOOLONG, which, "resume", NULL, "the path is too long");
    }
    if (ret == 0)
        ret = ps__manifest_check(dir, err);
    if (ret < 0 && n >= 0)
        return advise_older(s, n, ret, err);
    if (ret == 0)
        ret = check_same_run(s, dir, err);
    if (ret == 0)
        ret = read_state(s, dir, err);
    if (ret == 0)
        ret = ps__read_tensors(s, dir, err);
    if (ret < 0)
        return ret;
    ps_log(&s->log, PS_LOG_INFO, "resuming from %s at step %llu", dir, (unsigned long long)s->step);
    return 1;
}
