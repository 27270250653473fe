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

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session/session_import_internal.h"

/* The disk lane must be busy so much longer than the others. */
#define MARGIN 1.05
/* A plan with an import must be so much faster. */
#define FASTER 0.98
#define SAMPLE_BYTES ((uint64_t)16 << 20)
#define SAMPLE_LEAST ((uint64_t)4 << 20)

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

/* --- what is asked for --- */

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
    bool said = s->import->facts.used || ps_options_given(s->opt, "import");
    ps_log(&s->log, said ? PS_LOG_INFO : PS_LOG_DEBUG, "import: %s", s->import->facts.why);
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

/* Compress a sample. 1: done; 0: no memory for it. */
static int measure(struct ps_session *s, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    uint64_t bytes = ps__import_memory_left(s) / 4;
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
    double files = (double)ps__import_file_bytes(&im->staged),
           near = (double)ps__import_near_bytes(&im->staged);
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
    im->facts.bytes = im->im ? ps_import_bytes(im->im) : ps__import_file_bytes(&im->source);
    im->facts.near_bytes = ps__import_near_bytes(&im->staged);
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
    bool found = im->im != NULL;
    int ret = ps__import_check_room(s, err);
    if (ret == 0 && !found && !ps__import_makes_nothing(s))
        ret = ps__import_make(s, err);
    if (ret == 0)
        ret = prepare_codec(s, err);
    if (ret == 0 && im->im)
        ret = start_decoder(im, err);
    if (ret == 0)
        ret = choose_layout(s, true, err);
    if (ret < 0)
        return ret;
    return decide(s, "%s %s: %.1f MiB instead of %.1f MiB, %.1f MiB read a step instead of %.1f",
                  found    ? "reused, in"
                  : im->im ? "made, in"
                           : "would be made in",
                  im->dir, (double)im->facts.bytes / 1048576.0,
                  (double)ps__import_file_bytes(&im->staged) / 1048576.0,
                  (double)s->chosen.disk_read / 1048576.0,
                  (double)im->facts.plain_read_bytes / 1048576.0);
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
    ret = ps__import_find(s, false, err);
    if (ret < 0)
        return ret;
    ask(s, &a);
    if (!a.pays && isinf(a.passes_needed))
        return decide(s, "no: %.3g s a step with one, %.3g s without (ratio %.2f)", a.import_s,
                      a.plain_s, im->sample.ratio);
    if (!a.pays)
        return decide(s, "no: making one takes %.3g s, which pays after %.0f steps; there are %.0f",
                      a.build_s, a.passes_needed, passes(s));
    ret = ps__import_find(s, true, err);
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
        ret = ps__import_find(s, true, err);
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
    if (!ps__import_find_directory(im, o))
        return always ? ps_error_full(err, PS_EUSAGE, NULL, "nvme-path", "give --nvme-path DIR",
                                      "there is no directory for the import")
                      : decide(s, "no: without --nvme-path there is no directory for one");
    ret = ps__import_name_table(im, ps_trainer_files(s->trainer));
    if (ret < 0)
        return ps_error_full(err, ret, im->dir, NULL, NULL, "cannot name the import: %s",
                             ps_status_text(ret));
    ret = ps__import_load_checksums(s, err);
    if (ret < 0)
        return ret;
    return always ? insist(s, err) : consider(s, err);
}
