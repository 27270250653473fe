/* A compressed import in a run: see session_import.h.
 *
 * Design: the layout without an import comes first; it says what is streamed and which lane is the
 * bottleneck. Only where the disk is (by MARGIN), a sample of the weights is compressed,
 * ps_import_pays asked, and a layout with an import of the expected size chosen and simulated: one
 * more answer, which knows budgets and overlap. Then it is made, and the layout chosen for what it
 * really is.
 *
 * Decoding has threads of its own, few where compute runs on the same cores: the pool belongs to
 * the compute lane. */
#include "session/session_import.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "offload/import.h"
#include "runtime/base/file.h"
#include "session/session_internal.h"

/* The disk lane must be busy so much longer than the others. */
#define MARGIN 1.05
/* A plan with an import must be so much faster. */
#define FASTER 0.98
#define SAMPLE_BYTES ((uint64_t)16 << 20)
#define SAMPLE_LEAST ((uint64_t)4 << 20)
#define PROGRESS_S 10.0

struct ps_session_import {
    struct ps__import_facts facts;
    struct ps_unit_sources staged; /* in the model's files */
    struct ps_unit_sources source; /* in the import */
    bool has_source;
    struct ps_import *im; /* NULL: there is none, or not yet */
    struct ps_import_decoder *decoder;
    struct ps_pool *pool; /* NULL: the lane's thread decodes alone */
    struct ps_unit_codec codec;
    struct ps_import_sample sample;
    int decode_threads;
    bool in_use; /* the trainer has the codec */
    char dir[PATH_MAX];
    char table[PATH_MAX]; /* the model's checksums */
};

static const struct ps__import_facts nothing;

const struct ps__import_facts *ps__import_facts(const struct ps_session *s)
{
    return s->import ? &s->import->facts : &nothing;
}

static void drop_source(struct ps_session_import *im)
{
    if (im->has_source)
        ps_unit_sources_fini(&im->source);
    im->has_source = false;
}

void ps__import_destroy(struct ps_session_import *im)
{
    if (!im)
        return;
    drop_source(im);
    ps_unit_sources_fini(&im->staged);
    ps_import_decoder_destroy(im->decoder);
    ps_pool_destroy(im->pool);
    ps_import_close(im->im);
    free(im);
}

struct ps__import_needs ps__import_needs(const struct ps_session *s)
{
    const struct ps_session_import *im = s->import;
    if (!im || !im->in_use)
        return (struct ps__import_needs){0};
    uint64_t pieces = s->trainer_options.device->discrete ? im->codec.piece_bytes : 0;
    return (struct ps__import_needs){
        .host_bytes = ps_import_decoder_bytes(im->decode_threads) + pieces,
        .disk_bytes = im->facts.bytes,
        .decode_rate = im->facts.decode_rate,
        .decode_share = fmin(1, (double)im->decode_threads / s->thread_count)};
}

json_t *ps__import_json(const struct ps_session *s)
{
    const struct ps__import_facts *f = ps__import_facts(s);
    if (!f->why[0])
        return json_null();
    if (!f->used)
        return json_pack("{s:b,s:s}", "used", 0, "why", f->why);
    return json_pack("{s:b,s:s,s:b,s:s,s:I,s:I,s:f,s:I,s:I}", "used", 1, "why", f->why, "exists",
                     f->exists, "path", f->path, "bytes", (json_int_t)f->bytes, "decoded_bytes",
                     (json_int_t)f->near_bytes, "decode_rate", f->decode_rate, "read_bytes",
                     (json_int_t)s->chosen.disk_read, "plain_read_bytes",
                     (json_int_t)f->plain_read_bytes);
}

int ps__import_keep_checksums(const struct ps_session *s, struct ps_error *err)
{
    if (!s->import || !s->import->in_use || !s->checksum_path)
        return 0;
    return ps_unit_checksums_save(&s->import->staged, ps_trainer_files(s->trainer),
                                  s->checksum_path, err);
}

/* --- what there is --- */

static bool is_always(const struct ps_session *s)
{
    return strcmp(s->opt->import, "always") == 0;
}

/* Say it and remember it; returns 0. */
PS_PRINTF(2, 3) static int decide(struct ps_session *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s->import->facts.why, sizeof s->import->facts.why, fmt, ap);
    va_end(ap);
    ps_log(&s->log, PS_LOG_INFO, "import: %s", s->import->facts.why);
    return 0;
}

static bool streams_from_disk(const struct ps_session *s)
{
    const struct ps_step_layout *l = &s->chosen.layout;
    for (int32_t i = 0; i < s->cfg.n_layer + 2; i++)
        if (l->weight[i] == PS_TIER_DISK)
            return true;
    return false;
}

static bool makes_nothing(const struct ps_session *s)
{
    return s->opt->command == PS_CMD_PLAN || s->opt->dry_run;
}

static bool find_directory(struct ps_session_import *im, const struct ps_options *o)
{
    if (ps_options_list_item(o->nvme_path, 0, im->dir, sizeof im->dir))
        return true;
    return !o->nvme_path && o->output && ps_path_join(im->dir, sizeof im->dir, o->output, "spill");
}

/* Name of the table of checksums: of what tells these files from all others. */
static int name_table(struct ps_session_import *im, const struct ps_st_set *files)
{
    char name[64];
    uint64_t key = 0;
    for (size_t i = 0; i < ps_st_set_file_count(files); i++) {
        const struct ps_st_file *f = ps_st_set_file(files, i);
        char path[PATH_MAX] = "";
        struct stat st;
        if (fstat(ps_st_fd(f), &st) < 0)
            return -errno;
        if (!realpath(ps_st_path(f), path))
            path[0] = '\0';
        int64_t id[7] = {(int64_t)st.st_dev, (int64_t)st.st_ino, (int64_t)st.st_size,
                         st.st_mtim.tv_sec,  st.st_mtim.tv_nsec, st.st_ctim.tv_sec,
                         st.st_ctim.tv_nsec};
        key = XXH3_64bits_withSeed(path, strlen(path), key);
        key = XXH3_64bits_withSeed(id, sizeof id, key);
    }
    snprintf(name, sizeof name, "penstock-model-%016" PRIx64 ".checksums", key);
    return ps_path_join(im->table, sizeof im->table, im->dir, name) ? 0 : -ENAMETOOLONG;
}

static bool all_known(const struct ps_unit_sources *plan)
{
    for (uint64_t i = 0; i < plan->checksum_count; i++)
        if (plan->checksum[i] == 0)
            return false;
    return true;
}

/* Checksums from the run that goes on, or from the table in the directory. */
static int load_checksums(struct ps_session *s, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    const struct ps_st_set *files = ps_trainer_files(s->trainer);
    char why[256] = "";
    int ret = 0;
    if (s->opt->resume && s->checksum_path && access(s->checksum_path, F_OK) == 0)
        ret = ps_unit_checksums_load(&im->staged, files, s->checksum_path, why, err);
    if (ret == 0 && why[0])
        ps_log(&s->log, PS_LOG_WARN, "the model is not the one that this run began with: %s", why);
    if (ret < 0 || all_known(&im->staged))
        return ret < 0 ? ret : 0;
    ret = ps_unit_checksums_load(&im->staged, files, im->table, why, err);
    return ret < 0 ? ret : 0;
}

/* Some import is there, of this model or another. */
static bool has_imports(const char *dir)
{
    DIR *d = opendir(dir);
    const struct dirent *e;
    bool found = false;
    while (d && !found && (e = readdir(d)))
        found = strncmp(e->d_name, "penstock-import-", 16) == 0 && strlen(e->d_name) == 16 + 32;
    if (d)
        closedir(d);
    return found;
}

/* Open the import of this model if there is one; reads the model where its content is not known. */
static int find_import(struct ps_session *s, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    const struct ps_st_set *files = ps_trainer_files(s->trainer);
    char why[256] = "";
    if (!has_imports(im->dir))
        return 0;
    int ret = 0;
    if (!all_known(&im->staged) && !makes_nothing(s)) {
        ps_log(&s->log, PS_LOG_INFO,
               "import: reading the model to compare it with the imports in %s", im->dir);
        ret = ps_import_scan(&im->staged, files, err);
        if (ret == 0)
            ret = ps_unit_checksums_save(&im->staged, files, im->table, err);
    }
    if (ret == 0)
        ret = ps_import_open(&im->im, im->dir, &im->staged, files, why, err);
    if (ret == 0 && why[0] && strstr(why, "there is no import") == NULL)
        ps_log(&s->log, PS_LOG_WARN, "import: %s", why);
    return ret < 0 ? ret : 0;
}

static uint64_t near_bytes(const struct ps_unit_sources *plan)
{
    uint64_t sum = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++)
        sum += plan->unit[k].near_bytes;
    return sum;
}

static uint64_t file_bytes(const struct ps_unit_sources *plan)
{
    uint64_t sum = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++)
        sum += plan->unit[k].read_bytes;
    return sum;
}

/* Memory that may be taken now, before the arenas are there. */
static uint64_t memory_left(const struct ps_session *s)
{
    uint64_t used = ps__rss_bytes();
    return s->host_budget > used ? s->host_budget - used : 0;
}

/* Compress a sample. 1: done; 0: no memory for it. */
static int measure(struct ps_session *s, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    uint64_t bytes = memory_left(s) / 4;
    bytes = bytes < SAMPLE_BYTES ? bytes : SAMPLE_BYTES;
    if (bytes < SAMPLE_LEAST)
        return 0;
    struct ps_pool *pool = ps_trainer_pool(s->trainer);
    int ret =
        ps_import_measure(&im->sample, &im->staged, ps_trainer_files(s->trainer), pool, bytes, err);
    if (ret < 0)
        return ret;
    im->decode_threads =
        s->thread_count / (s->chosen.cost.use[PS_LANE_COMPUTE][PS_RESOURCE_CORES] > 0 ? 4 : 2);
    if (im->decode_threads < 1)
        im->decode_threads = 1;
    im->sample.decode_rate *=
        fmin(1, (double)im->decode_threads / (double)ps_pool_thread_count(pool));
    im->facts.decode_rate = im->sample.decode_rate;
    return 1;
}

/* --- does it pay? --- */

static double rate_of(const struct ps_cost_model *m, enum ps_lane lane)
{
    double rate = m->byte_rate[lane];
    return m->throttle[lane] > 0 && m->throttle[lane] < rate ? m->throttle[lane] : rate;
}

/* Bytes of weights that a step reads from the disk. */
static double step_weights(const struct ps_session *s)
{
    bool train = ps_trainer_shape(s->trainer)->trains;
    const struct ps_schedule *sched =
        ps_trainer_schedule(s->trainer, train ? PS_SEGMENT_TRAIN : PS_SEGMENT_EVAL);
    double bytes = 0;
    for (uint32_t i = 0; i < sched->task_count; i++)
        if (sched->task[i].kind == PS_TASK_READ_WEIGHTS)
            bytes += (double)sched->task[i].bytes;
    int32_t micros = s->trainer_options.micro_max, group = s->chosen.layout.group;
    return bytes * (train ? (micros + group - 1) / group : 1);
}

static double passes(const struct ps_session *s)
{
    if (s->batcher)
        return (double)ps_batcher_step_count(s->batcher);
    if (!ps_trainer_shape(s->trainer)->trains)
        return 1; /* too few to make one for */
    return s->opt->max_steps > 0 ? (double)s->opt->max_steps : HUGE_VAL;
}

static void ask(const struct ps_session *s, struct ps_import_answer *a)
{
    const struct ps_session_import *im = s->import;
    const struct ps_cost_model *m = &s->chosen.cost;
    double files = (double)file_bytes(&im->staged), near = (double)near_bytes(&im->staged);
    bool copies = s->chosen.layout.discrete || !ps_trainer_shape(s->trainer)->source->all_direct;
    struct ps_import_question q = {
        .file_bytes = step_weights(s),
        .total_file_bytes = files,
        .total_near_bytes = near,
        .passes = passes(s),
        .compute_s = s->chosen.step.busy_s[PS_LANE_COMPUTE],
        .cores_shared = m->use[PS_LANE_COMPUTE][PS_RESOURCE_CORES] > 0,
        .disk_read = rate_of(m, PS_LANE_DISK_WEIGHTS),
        .disk_write = m->byte_rate[PS_LANE_DISK_WRITE],
        .convert_rate = copies ? rate_of(m, PS_LANE_H2D) : 0,
        .sample = im->sample,
        .exists = im->im != NULL,
    };
    q.near_bytes = q.file_bytes * near / files;
    if (im->im)
        q.sample.ratio = near / (double)ps_import_bytes(im->im);
    ps_import_pays(a, &q);
}

/* --- using one --- */

/* The codec of an import that is open, or (plan) of one as it would be. */
static int prepare_codec(struct ps_session *s, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    uint64_t chunk = PS_IMPORT_CHUNK_BYTES;
    drop_source(im);
    int ret = im->im ? ps_import_sources(im->im, &im->staged, &im->source, err)
                     : ps_import_expect_sources(&im->staged, im->sample.ratio, &im->source, err);
    if (ret < 0)
        return ret;
    im->has_source = true;
    im->facts.bytes = im->im ? ps_import_bytes(im->im) : file_bytes(&im->source);
    im->facts.near_bytes = near_bytes(&im->staged);
    im->facts.exists = im->im != NULL;
    im->facts.path = im->dir;
    im->codec = (struct ps_unit_codec){.source = &im->source,
                                       .path = im->im ? ps_import_path(im->im) : NULL,
                                       .piece_bytes = chunk * (uint64_t)im->decode_threads};
    return 0;
}

static int decode(void *arg, uint32_t unit_idx, uint64_t begin, uint64_t bytes, void *near,
                  const void *raw, struct ps_error *err)
{
    const struct ps_session_import *im = arg;
    return ps_import_decode_range(im->im, im->decoder, im->pool, unit_idx, begin, bytes, near, raw,
                                  err);
}

static int start_decoder(struct ps_session_import *im, struct ps_error *err)
{
    int ret = ps_import_decoder_create(&im->decoder, im->decode_threads);
    if (ret == 0 && im->decode_threads > 1)
        ret = ps_pool_create(&im->pool, im->decode_threads);
    if (ret < 0)
        return ps_error_set(err, ret, "cannot start the threads that decode the import: %s",
                            ps_status_text(ret));
    im->codec.decode = decode;
    im->codec.arg = im;
    return 0;
}

/* The layout with, or without, the codec. */
static int choose_layout(struct ps_session *s, bool with, struct ps_error *err)
{
    ps_trainer_set_codec(s->trainer, with ? &s->import->codec : NULL);
    s->import->in_use = with;
    s->import->facts.used = with;
    ps_plan_fini(&s->chosen);
    memset(&s->chosen, 0, sizeof s->chosen);
    return ps__layout_choose(s, err);
}

struct progress {
    const struct ps_session *s;
    double begin, last;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool tell(void *arg, uint64_t done, uint64_t total)
{
    struct progress *p = arg;
    double t = now();
    if (t - p->last >= PROGRESS_S) {
        p->last = t;
        ps_log(&p->s->log, PS_LOG_INFO, "import: %.0f%% of %.1f GiB",
               100 * (double)done / (double)total, (double)total / 1073741824.0);
    }
    return true;
}

/* Room on the disk and in memory for making one. */
static int check_room(const struct ps_session *s, struct ps_error *err)
{
    const struct ps_session_import *im = s->import;
    uint64_t disk = ps_import_disk_bytes(&im->staged, im->sample.ratio) + s->chosen.disk_bytes;
    int64_t budget = s->opt->nvme_mem;
    if (budget >= 0 && disk > (uint64_t)budget)
        return ps_error_full(
            err, PS_ENOFIT, NULL, "nvme-mem", "raise the budget, or use --import never",
            "the import needs %.1f MiB of disk and the budget is %.1f MiB; the "
            "smallest sufficient budget is --nvme-mem %" PRIu64 "MiB",
            (double)disk / 1048576.0, (double)budget / 1048576.0, (disk + 1048575) >> 20);
    uint64_t host = ps_import_build_bytes(&im->staged, s->thread_count);
    if (host > memory_left(s))
        return ps_error_full(err, PS_ENOFIT, NULL, "host-mem",
                             "raise the budget, lower --threads, or use --import never",
                             "making an import takes %.0f MiB of memory and %.0f MiB of the "
                             "budget are left",
                             (double)host / 1048576.0, (double)memory_left(s) / 1048576.0);
    return 0;
}

static int make(struct ps_session *s, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    const struct ps_st_set *files = ps_trainer_files(s->trainer);
    struct progress p = {.s = s, .begin = now(), .last = now()};
    struct ps_import_options o = {.path = im->dir,
                                  .pool = ps_trainer_pool(s->trainer),
                                  .ratio = im->sample.ratio,
                                  .progress = tell,
                                  .arg = &p};
    int ret = check_room(s, err);
    if (ret == 0)
        ret = ps_file_make_dirs(im->dir, err);
    if (ret == 0)
        ret = ps_import_build(&im->im, &im->staged, ps_trainer_params(s->trainer), files, &o, err);
    if (ret == 0)
        ret = ps_unit_checksums_save(&im->staged, files, im->table, err);
    if (ret == 0)
        ps_log(&s->log, PS_LOG_INFO, "import: made in %.1f s: %s, %.1f MiB", now() - p.begin,
               ps_import_path(im->im), (double)ps_import_bytes(im->im) / 1048576.0);
    return ret;
}

/* A reason to go on without, where nobody insists. */
static bool is_about_room(int ret)
{
    return ret == PS_ENOFIT || ret == -ENOSPC || ret == -EDQUOT || ret == -EBUSY ||
           ret == -EACCES || ret == -EROFS || ret == -EPERM || ret == -ENOMEM;
}

/* Make it unless it is there, and choose the layout that streams from it. */
static int use(struct ps_session *s, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    int ret = 0;
    bool found = im->im != NULL;
    if (!found && !makes_nothing(s))
        ret = make(s, err);
    else if (!found)
        ret = check_room(s, err);
    if (ret == 0)
        ret = prepare_codec(s, err);
    if (ret == 0 && im->im)
        ret = start_decoder(im, err);
    if (ret == 0)
        ret = choose_layout(s, true, err);
    if (ret < 0)
        return ret;
    return decide(
        s, "%s %s: %.1f MiB instead of %.1f MiB, %.1f MiB read a step instead of %.1f",
        found    ? "reused, in"
        : im->im ? "made, in"
                 : "would be made in",
        im->dir, (double)im->facts.bytes / 1048576.0, (double)file_bytes(&im->staged) / 1048576.0,
        (double)s->chosen.disk_read / 1048576.0, (double)im->facts.plain_read_bytes / 1048576.0);
}

static int use_if_room(struct ps_session *s, struct ps_error *err)
{
    int ret = use(s, err);
    if (is_always(s) || !is_about_room(ret))
        return ret;
    ps_log(&s->log, PS_LOG_WARN, "import: none is made: %s", err->message);
    memset(err, 0, sizeof *err);
    ret = choose_layout(s, false, err);
    snprintf(s->import->facts.why, sizeof s->import->facts.why, "no room for one");
    return ret;
}

/* Would the layout with an import be faster? 1, 0, or an error. */
static int is_faster(struct ps_session *s, struct ps_error *err)
{
    double plain = s->chosen.step_s;
    int ret = prepare_codec(s, err);
    if (ret < 0)
        return ret;
    ret = choose_layout(s, true, err);
    double with = ret == 0 ? s->chosen.step_s : HUGE_VAL;
    if (ret < 0 && ret != PS_ENOFIT && ret != PS_EUSAGE)
        return ret;
    memset(err, 0, sizeof *err);
    ret = choose_layout(s, false, err);
    if (ret < 0 || with < FASTER * plain)
        return ret < 0 ? ret : 1;
    return isinf(with) ? decide(s, "no: no plan with one fits")
                       : decide(s, "no: the best plan with one takes %.3g s a step, without %.3g s",
                                with, plain);
}

static int consider(struct ps_session *s, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    const double *busy = s->chosen.step.busy_s;
    double disk = busy[PS_LANE_DISK_WEIGHTS], compute = busy[PS_LANE_COMPUTE];
    if (disk < MARGIN * compute)
        return decide(s, "no: reads take %.3g s a step, compute %.3g s, which hides them", disk,
                      compute);
    int ret = measure(s, err);
    if (ret <= 0)
        return ret < 0 ? ret : decide(s, "no: there is no memory to try it with");
    struct ps_import_answer a;
    ask(s, &a);
    if (!a.pays && !im->im && has_imports(im->dir)) {
        ret = find_import(s, err);
        if (ret == 0)
            ask(s, &a);
    }
    if (ret < 0)
        return ret;
    if (!a.pays && isinf(a.passes_needed))
        return decide(s, "no: %.3g s a step with one, %.3g s without (ratio %.2f)", a.import_s,
                      a.plain_s, im->sample.ratio);
    if (!a.pays)
        return decide(s, "no: making one takes %.3g s, which pays after %.0f steps; there are %.0f",
                      a.build_s, a.passes_needed, passes(s));
    ret = find_import(s, err);
    if (ret == 0)
        ret = is_faster(s, err);
    if (ret <= 0)
        return ret;
    ps_log(&s->log, PS_LOG_INFO,
           "import: yes: %.3g s a step with one, %.3g s without (ratio %.2f, decoded at %.2f GB/s)",
           a.import_s, a.plain_s, im->sample.ratio, im->sample.decode_rate / 1e9);
    return use_if_room(s, err);
}

static int insist(struct ps_session *s, struct ps_error *err)
{
    int ret = measure(s, err);
    if (ret == 0)
        return ps_error_full(err, PS_ENOFIT, NULL, "host-mem", "raise the budget",
                             "there is no memory to make an import with");
    if (ret > 0)
        ret = find_import(s, err);
    return ret < 0 ? ret : use(s, err);
}

int ps__import_choose(struct ps_session *s, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    if (!o->import || o->command == PS_CMD_EXPORT || strcmp(o->import, "never") == 0)
        return 0;
    bool always = is_always(s);
    if (!always && (!streams_from_disk(s) || s->trainer_options.plan_only || o->schedule ||
                    (o->storage && strcmp(o->storage, "null") == 0)))
        return 0;
    struct ps_session_import *im = s->import = calloc(1, sizeof *im);
    if (!im)
        return ps_error_set(err, -ENOMEM, "out of memory");
    im->facts.plain_read_bytes = s->chosen.disk_read;
    if (!streams_from_disk(s))
        return decide(s, "none: the chosen plan streams no weights from the disk");
    if (s->trainer_options.plan_only)
        return ps_error_full(
            err, PS_EUSAGE, o->model, "import", "use --import never",
            "without the model's weights nobody knows how an import would compress");
    const char *why;
    int ret = ps_trainer_staged_sources(s->trainer, &im->staged, err);
    if (ret < 0)
        return ret;
    if (!ps_import_possible(&im->staged, &why))
        return always ? ps_error_full(err, PS_EUSAGE, NULL, "import",
                                      "use --dtype bf16, or --import never", "%s", why)
                      : decide(s, "no: %s", why);
    if (!find_directory(im, o))
        return always ? ps_error_full(err, PS_EUSAGE, NULL, "nvme-path", "give --nvme-path DIR",
                                      "there is no directory for the import")
                      : decide(s, "no: without --nvme-path there is no directory for one");
    ret = name_table(im, ps_trainer_files(s->trainer));
    if (ret < 0)
        return ps_error_full(err, ret, im->dir, NULL, NULL, "cannot name the import: %s",
                             ps_status_text(ret));
    ret = load_checksums(s, err);
    if (ret < 0)
        return ret;
    return always ? insist(s, err) : consider(s, err);
}
