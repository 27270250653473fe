/* The spill store of a training run: where it is (run.json), when it is made, what a commit
 * carries, and going on from the last one. See offload/spill_store.h.
 *
 * Runs whose states lie on disk have it from the beginning and commit every step. Others make it
 * when their first commit is due (--commit-interval) and lose at most that long. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "offload/spill_store.h"
#include "offload/storage_backends.h"
#include "offload/stripe.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "session/session_io.h"
#include "session/session_internal.h"

#define PATH_BYTES 4096
#define RUN_JSON_MAX ((size_t)1 << 20)

struct ps__store {
    struct ps_spill_store *store; /* NULL: not made yet */
    char uuid[37];
    bool known;            /* run.json names it */
    bool resumed;          /* the run goes on from it */
    bool off;              /* it cannot be made; said once */
    bool done;             /* the run is complete: remove it */
    json_t *state;         /* of the commit that the run goes on from */
    double last_s, took_s; /* of the last commit: when, and how long it took */
    uint64_t last_step;
};

enum ps_clip_mode ps__clip_mode(const struct ps_options *o)
{
    const char *c = o->clip ? o->clip : "exact";
    return strcmp(c, "delayed") == 0      ? PS_CLIP_DELAYED
           : strcmp(c, "per-tensor") == 0 ? PS_CLIP_PER_TENSOR
           : strcmp(c, "none") == 0       ? PS_CLIP_NONE
                                          : PS_CLIP_EXACT;
}

static double now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* --- the state of a run --- */

static int put_real(char *out, size_t size, double x)
{
    return isfinite(x) ? snprintf(out, size, "%.17g", x) : snprintf(out, size, "null");
}

/* The counters after a step. */
struct run_counters {
    uint64_t step, updates, skipped, tokens, labels;
    uint32_t nonfinite_run;
    double norm_before;
};

/* What the step's line in metrics.jsonl must say again when the run is killed before it is written.
 */
static void put_last(char *out, size_t size, const struct ps_run_point *p)
{
    char loss[32];
    char norm[32];
    char coef[32];
    PS_IGNORE(put_real(loss, sizeof loss, p->loss) < 0, "cannot fail");
    PS_IGNORE(put_real(norm, sizeof norm, p->grad_norm) < 0, "cannot fail");
    PS_IGNORE(put_real(coef, sizeof coef, (double)p->clip_coef) < 0, "cannot fail");
    PS_IGNORE(snprintf(out, size,
                       ",\"last\":{\"loss\":%s,\"grad_norm\":%s,\"learning_rate\":%.17g,"
                       "\"tokens\":%" PRId64 ",\"label_tokens\":%" PRId64
                       ",\"clip_coef\":%s,\"skipped\":%s}",
                       loss, norm, p->learning_rate, p->tokens, p->labels, coef,
                       p->skipped ? "true" : "false") < 0,
              "cannot fail");
}

/* What trainer_state.json holds too, but for the history, which metrics.jsonl has; and what that
 * says of the last step (NULL: it has been written). */
static size_t put_state(const struct ps_session *s, const struct run_counters *c,
                        const struct ps_run_point *last, char *out, size_t max)
{
    char best[32];
    char eval[32];
    char norm[32];
    char line[512] = "";
    PS_IGNORE(put_real(best, sizeof best, s->best_eval) < 0, "cannot fail");
    PS_IGNORE(put_real(eval, sizeof eval, s->last_eval_loss) < 0, "cannot fail");
    PS_IGNORE(put_real(norm, sizeof norm, c->norm_before) < 0, "cannot fail");
    if (last)
        put_last(line, sizeof line, last);
    int len = snprintf(
        out, max,
        "{\"version\":1,\"global_step\":%" PRIu64 ",\"updates\":%" PRIu64 ",\"max_steps\":%" PRIu64
        ",\"best_metric\":%s,\"last_metric\":%s,\"best_step\":%" PRIu64
        ",\"evals_without_gain\":%" PRIu32 ",\"nonfinite_run\":%" PRIu32 ",\"skipped\":%" PRIu64
        ",\"data_hash\":\"%016" PRIx64 "\",\"isa\":\"%s\",\"total_tokens\":%" PRIu64
        ",\"total_labels\":%" PRIu64 ",\"norm_before\":%s,\"eval_step\":%" PRIu64 "%s}",
        c->step, c->updates, s->batcher ? ps_batcher_step_count(s->batcher) : 0, best, eval,
        s->best_step, s->evals_without_gain, c->nonfinite_run, c->skipped, s->data_hash,
        ps_isa_name(s->isa), c->tokens, c->labels, norm, s->eval_step, line);
    assert(len > 0 && (size_t)len < max);
    return (size_t)len;
}

/* In the middle of a step, of which the session knows nothing yet. */
size_t ps__run_state(void *arg, const struct ps_run_point *p, void *out, size_t max)
{
    const struct ps_session *s = arg;
    bool started = p->tokens > 0 || p->updates > 0;
    double norm = p->skipped ? ps_trainer_norm_before(s->trainer) : p->grad_norm;
    struct run_counters c = {.step = started ? p->step + 1 : 0,
                             .updates = p->updates,
                             .skipped = s->skipped + (p->skipped ? 1 : 0),
                             .tokens = s->total_tokens + (uint64_t)p->tokens,
                             .labels = s->total_labels + (uint64_t)p->labels,
                             .nonfinite_run = p->skipped ? s->nonfinite_run + 1 : 0,
                             .norm_before = started ? norm : -1.0};
    return put_state(s, &c, started ? p : NULL, out, max);
}

/* Between steps. */
static size_t state_now(struct ps_session *s, char *out, size_t max)
{
    struct run_counters c = {.step = s->step,
                             .updates = ps_trainer_updates(s->trainer),
                             .skipped = s->skipped,
                             .tokens = s->total_tokens,
                             .labels = s->total_labels,
                             .nonfinite_run = s->nonfinite_run,
                             .norm_before = ps_trainer_norm_before(s->trainer)};
    return put_state(s, &c, NULL, out, max);
}

/* --- run.json --- */

static int run_json_path(const struct ps_session *s, char path[PATH_BYTES], struct ps_error *err)
{
    if (ps_path_join(path, PATH_BYTES, s->opt->output, "run.json"))
        return 0;
    return ps_error_full(err, -ENAMETOOLONG, s->opt->output, NULL, NULL, "the path is too long");
}

static int write_run_json(struct ps_session *s, const char *const *path, uint32_t count,
                          struct ps_error *err)
{
    char file[PATH_BYTES];
    int ret = run_json_path(s, file, err);
    json_t *dirs = json_array();
    bool whole = dirs != NULL;
    for (uint32_t i = 0; ret == 0 && whole && i < count; i++) {
        char *real = realpath(path[i], NULL);
        whole = json_array_append_new(dirs, json_string(real ? real : path[i])) == 0;
        free(real);
    }
    json_t *root =
        json_pack("{s:i, s:s, s:o}", "version", 1, "run_uuid", s->store->uuid, "spill_paths", dirs);
    char *text = root && whole ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (ret == 0 && !text)
        ret = ps_error_set(err, -ENOMEM, "out of memory");
    if (ret == 0)
        ret = ps_file_write(file, text, strlen(text), err);
    free(text);
    return ret;
}

/* Directories that hold the store's own directory: --nvme-path where it is given, else those of
 * run.json. The strings live in *root or in the session's io. */
static int store_paths(struct ps_session *s, json_t *root, const char *path[PS_STRIPE_PATHS_MAX],
                       uint32_t *count, struct ps_error *err)
{
    json_t *dirs = root ? json_object_get(root, "spill_paths") : NULL;
    if (!dirs || s->opt->nvme_path)
        return ps_session_io_paths(s->io, path, count, err);
    *count = 0;
    for (size_t i = 0; i < json_array_size(dirs) && i < PS_STRIPE_PATHS_MAX; i++) {
        const char *p = json_string_value(json_array_get(dirs, i));
        if (p)
            path[(*count)++] = p;
    }
    return 0;
}

static void new_uuid(char out[37])
{
    uint8_t b[16] = {0};
    if (getrandom(b, sizeof b, 0) != (ssize_t)sizeof b) {
        uint64_t seed[2] = {(uint64_t)getpid(), (uint64_t)(now_s() * 1e9)};
        memcpy(b, seed, sizeof b);
    }
    b[6] = (uint8_t)((b[6] & 15) | 0x40);
    b[8] = (uint8_t)((b[8] & 63) | 0x80);
    PS_IGNORE(snprintf(out, 37,
                       "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
                       b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12],
                       b[13], b[14], b[15]) < 0,
              "fits");
}

static struct ps_spill_store_options store_options(struct ps_session *s, const char *const *path,
                                                   uint32_t count)
{
    uint32_t extents;
    const struct ps_store_extent *e = ps_trainer_store_extents(s->trainer, &extents);
    bool one = s->opt->spill_mode && strcmp(s->opt->spill_mode, "inplace") == 0;
    return (struct ps_spill_store_options){.path = path,
                                           .path_count = count,
                                           .run_uuid = s->store->uuid,
                                           .mode = one ? PS_SPILL_INPLACE : PS_SPILL_SHADOW,
                                           .extent = e,
                                           .extent_count = extents,
                                           .open = ps_storage_open_threads,
                                           .log = &s->log};
}

/* --- making and finding it --- */

static int create_store(struct ps_session *s, struct ps_error *err)
{
    const char *path[PS_STRIPE_PATHS_MAX];
    uint32_t count;
    int ret = ps_file_make_dirs(s->opt->output, err);
    if (ret == 0)
        ret = ps_session_io_paths(s->io, path, &count, err);
    if (ret < 0)
        return ret;
    new_uuid(s->store->uuid);
    ret = write_run_json(s, path, count, err); /* first: what a kill leaves can then be found */
    if (ret < 0)
        return ret;
    struct ps_spill_store_options o = store_options(s, path, count);
    ret = ps_spill_store_create(&s->store->store, &o, err);
    if (ret < 0)
        return ret;
    s->store->known = true;
    ps_trainer_set_store(s->trainer, ps_spill_store_state(s->store->store));
    return 0;
}

/* The state of the run in a store; *step: of its last commit. */
static int stored_step(const struct ps_spill_info *info, const char *dir, int64_t *step,
                       struct ps_error *err)
{
    json_t *state = NULL;
    if (info->generation == 0 && info->damage.code == PS_EFORMAT)
        return 0; /* nothing has been committed: its creation was interrupted */
    if (info->generation == 0) {
        *err = info->damage;
        return err->code;
    }
    int ret =
        ps_json_parse(info->run_state, info->run_state_bytes, PS_JSON_STRICT, dir, &state, err);
    const json_t *at = json_object_get(state, "global_step");
    *step = json_is_integer(at) ? (int64_t)json_integer_value(at) : -1;
    json_decref(state);
    return ret;
}

/* Does a directory of the store hold any file of it but the first? */
static bool holds_others(const char *dir)
{
    char path[PATH_BYTES];
    for (int i = 1; i < PS_STRIPE_PATHS_MAX; i++)
        if (snprintf(path, sizeof path, "%s/data-%d", dir, i) < (int)sizeof path &&
            access(path, F_OK) == 0)
            return true;
    return false;
}

/* Look for the store in the directories, in any order: the one with its first file knows the rest.
 * What is unfinished is none; what cannot be read may be whole, and is an error. */
static int look_for_store(struct ps_session *s, const char *const *path, uint32_t count,
                          int64_t *step, struct ps_error *err)
{
    struct ps_error others = {0};
    for (uint32_t i = 0; i < count; i++) {
        char dir[PATH_BYTES];
        struct stat st;
        if (snprintf(dir, sizeof dir, "%s/penstock-%s", path[i], s->store->uuid) >= (int)sizeof dir)
            continue;
        if (stat(dir, &st) < 0 && (errno == ENOENT || errno == ENOTDIR))
            continue;
        s->store->known = true;
        struct ps_spill_info info = {0};
        int ret = ps_spill_info_read(&info, dir, err);
        if (ret == 0) {
            ret = stored_step(&info, dir, step, err);
            ps_spill_info_fini(&info);
            return ret;
        }
        if (ret == -ENOENT && holds_others(dir))
            others = *err;
        if (ret != -ENOENT && ret != PS_EFORMAT)
            return ret;
    }
    if (others.code) {
        *err = others;
        return others.code;
    }
    return 0;
}

/* The step of the last commit of the store that run.json names; -1: there is none. *root: run.json.
 */
static int find_store(struct ps_session *s, json_t **root, int64_t *step, struct ps_error *err)
{
    char file[PATH_BYTES];
    *root = NULL;
    *step = -1;
    int ret = run_json_path(s, file, err);
    if (ret < 0 || access(file, F_OK) != 0)
        return ret;
    ret = ps_json_load(file, RUN_JSON_MAX, root, err);
    if (ret < 0)
        return ret;
    const char *uuid = json_string_value(json_object_get(*root, "run_uuid"));
    if (!uuid || strlen(uuid) != 36)
        return ps_error_full(err, PS_EFORMAT, file, "run_uuid", "delete the file to start anew",
                             "this is no run.json of a run");
    memcpy(s->store->uuid, uuid, 37);
    const char *path[PS_STRIPE_PATHS_MAX];
    uint32_t count;
    ret = store_paths(s, *root, path, &count, err);
    if (ret < 0)
        return ret;
    struct ps_error why = {0};
    ret = look_for_store(s, path, count, step, &why);
    if (ret == 0)
        return 0;
    const char *resume = s->opt->resume;
    if (resume && strcmp(resume, "auto") != 0) { /* from a checkpoint: the store is given up */
        ps_log(&s->log, PS_LOG_WARN, "the spill store cannot be used: %s", why.message);
        return 0;
    }
    *err = why;
    err->advice[0] = '\0';
    return ps_error_advice(err, ret,
                           "see to the disk, then --resume; or give the commits up: go on from a "
                           "checkpoint (--resume DIR/checkpoint-N) or choose another --output");
}

static int open_store(struct ps_session *s, json_t *root, struct ps_error *err)
{
    const char *path[PS_STRIPE_PATHS_MAX];
    uint32_t count;
    void *state = NULL;
    size_t bytes = 0;
    int ret = store_paths(s, root, path, &count, err);
    if (ret < 0)
        return ret;
    struct ps_spill_store_options o = store_options(s, path, count);
    ret = ps_spill_store_open(&s->store->store, &o, &state, &bytes, err);
    if (ret < 0)
        return ret;
    ret = ps_json_parse(state, bytes, PS_JSON_STRICT, path[0], &s->store->state, err);
    free(state);
    if (ret < 0)
        return ps_error_advice(err, ret, "resume from a checkpoint directory");
    ps_trainer_set_store(s->trainer, ps_spill_store_state(s->store->store));
    return 0;
}

/* A store that the run does not go on from makes room. */
static int remove_store(struct ps_session *s, json_t *root, struct ps_error *err)
{
    const char *path[PS_STRIPE_PATHS_MAX];
    uint32_t count;
    int ret = store_paths(s, root, path, &count, err);
    for (uint32_t i = 0; ret == 0 && i < count; i++)
        ret = ps_spill_store_discard(path[i], s->store->uuid, err);
    return ret;
}

/* Are states or weights of the run on disk? */
static bool lives_on_disk(const struct ps_session *s)
{
    return ps_trainer_map(s->trainer)->stored;
}

static int check_same_config(struct ps_session *s, struct ps_error *err)
{
    char path[PATH_BYTES];
    if (!ps_path_join(path, sizeof path, s->opt->output, "config.resolved.yaml"))
        return ps_error_full(err, -ENAMETOOLONG, s->opt->output, NULL, NULL,
                             "the path is too long");
    return ps__check_same_config(s, path, err);
}

/* A run killed before it wrote its configuration has made no step: it begins anew. */
static bool was_begun(const struct ps_session *s, int64_t stored)
{
    char path[PATH_BYTES];
    return stored > 0 || (stored == 0 &&
                          ps_path_join(path, sizeof path, s->opt->output, "config.resolved.yaml") &&
                          access(path, F_OK) == 0);
}

static int choose_start(struct ps_session *s, struct ps_error *err)
{
    json_t *root = NULL;
    int64_t stored = -1;
    const char *resume = s->opt->resume;
    int ret = find_store(s, &root, &stored, err);
    if (ret == 0 && !resume && stored > 0)
        ret = ps_error_full(err, PS_EUSAGE, s->opt->output, "output",
                            "go on with --resume, or choose another --output",
                            "the output directory already holds a run, committed up to step "
                            "%" PRId64,
                            stored);
    bool newer = resume && strcmp(resume, "auto") == 0 && was_begun(s, stored) &&
                 stored >= ps__checkpoint_newest(s);
    if (ret == 0 && newer) {
        ret = check_same_config(s, err);
        if (ret == 0)
            ret = open_store(s, root, err);
        s->store->resumed = ret == 0;
    } else if (ret == 0 && s->store->known) {
        ret = remove_store(s, root, err);
        s->store->known = false;
    }
    json_decref(root);
    return ret;
}

int ps__store_open(struct ps_session *s, struct ps_error *err)
{
    s->store = calloc(1, sizeof *s->store);
    if (!s->store)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = s->opt->resume ? 0 : ps__output_check(s, err);
    if (ret == 0)
        ret = choose_start(s, err);
    bool every = ps_trainer_map(s->trainer)->commits && lives_on_disk(s);
    const char *interval = s->opt->commit_interval;
    if (ret == 0 && every && interval && strcmp(interval, "auto") != 0)
        ret = ps_error_full(err, PS_EUSAGE, NULL, "commit-interval", "leave it out",
                            "all states are on disk: every step is committed");
    bool one = s->opt->spill_mode && strcmp(s->opt->spill_mode, "inplace") == 0;
    if (ret == 0 && one && s->chosen.layout.update == PS_UPDATE_INSIDE)
        ret = ps_error_full(err, PS_EUSAGE, NULL, "spill-mode",
                            "leave it out, or choose another strategy (vertical)",
                            "`spill-mode` inplace: updates inside the backward pass may have to be "
                            "taken back, for which there is no second copy");
    if (ret == 0 && !s->store->store && lives_on_disk(s))
        ret = create_store(s, err);
    s->store->last_s = now_s();
    return ret;
}

bool ps__store_named(const struct ps_session *s)
{
    char path[PATH_BYTES];
    return s->opt->output && ps_path_join(path, sizeof path, s->opt->output, "run.json") &&
           access(path, F_OK) == 0;
}

bool ps__store_resumed(const struct ps_session *s)
{
    return s->store && s->store->resumed;
}

const json_t *ps__store_state(const struct ps_session *s)
{
    return s->store->state;
}

/* --- commits of runs that keep their states in memory --- */

static bool commit_due(const struct ps_session *s)
{
    uint64_t steps;
    double seconds;
    ps__commit_interval(s, &steps, &seconds);
    double since = now_s() - s->store->last_s;
    if (steps > 0)
        return s->step - s->store->last_step >= steps;
    if (seconds <= 0)
        seconds = ps__auto_interval_s(s, s->store->took_s);
    return since >= seconds;
}

int ps__store_after_step(struct ps_session *s, struct ps_error *err)
{
    struct ps__store *st = s->store;
    bool every = ps_trainer_map(s->trainer)->commits && lives_on_disk(s);
    if (st->off || every || !commit_due(s))
        return 0;
    bool automatic = !s->opt->commit_interval || strcmp(s->opt->commit_interval, "auto") == 0;
    double begin = now_s();
    int ret = 0;
    if (!st->store) {
        struct ps_error why = {0};
        ret = create_store(s, &why);
        if (ret < 0 && automatic) {
            ps_log(&s->log, PS_LOG_WARN,
                   "the run is not committed between checkpoints: %s (see --nvme-path, "
                   "--save-steps)",
                   why.message);
            st->off = true;
            return 0;
        }
        if (ret < 0) {
            *err = why;
            return ret;
        }
    }
    char state[2048];
    ret = ps_trainer_store_commit(s->trainer, state, state_now(s, state, sizeof state), err);
    if (ret < 0)
        return ret;
    st->last_s = now_s();
    st->took_s = st->last_s - begin;
    st->last_step = s->step;
    return 0;
}

int ps__store_after_load(struct ps_session *s, struct ps_error *err)
{
    char state[2048];
    if (!s->store || !s->store->store || s->store->resumed)
        return 0;
    return ps_trainer_store_commit(s->trainer, state, state_now(s, state, sizeof state), err);
}

void ps__store_done(struct ps_session *s)
{
    s->store->done = true;
}

void ps__store_close(struct ps_session *s)
{
    struct ps__store *st = s->store;
    if (!st)
        return;
    struct ps_error err = {0};
    if (st->done && st->store) {
        if (ps_spill_store_remove(st->store, &err) < 0)
            ps_log(&s->log, PS_LOG_WARN, "the spill store stays: %s", err.message);
    } else {
        ps_spill_store_close(st->store);
    }
    char dir[PATH_BYTES];
    if (st->done && s->opt->output && ps_path_join(dir, sizeof dir, s->opt->output, "spill"))
        PS_IGNORE(rmdir(dir), "what is not empty, or not there, stays as it is");
    json_decref(st->state);
    free(st);
    s->store = NULL;
}
