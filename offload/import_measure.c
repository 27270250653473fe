/* Whether an import pays: the codec's ratio and rates on weights of this model, and the formula.
 * See import.h. */
#include "offload/import_internal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SAMPLE_BYTES ((uint64_t)16 << 20)
#define DECODE_ROUNDS 3

struct sample_chunk {
    const struct ps_unit_source *u;
    uint64_t begin;
    size_t n;
    struct ps__import_chunk x;
    unsigned char *near, *record;
    int failed;
};

struct sample {
    int thread_count;
    struct ps__import_coder **coder; /* (thread_count,) */
    struct sample_chunk *chunk;      /* (count,) */
    size_t count;
    unsigned char *memory; /* (count, 2, chunk) */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Chunk number idx among all chunks of the plan. */
static void locate(struct sample_chunk *c, const struct ps_unit_sources *plan, uint64_t idx)
{
    uint32_t k = 0;
    while (idx >= ps__import_chunks(plan->unit[k].near_bytes))
        idx -= ps__import_chunks(plan->unit[k++].near_bytes);
    c->u = &plan->unit[k];
    c->begin = idx * PS_IMPORT_CHUNK_BYTES;
    c->n = ps__import_chunk_near(c->u->near_bytes, idx);
}

static int prepare(struct sample *s, const struct ps_unit_sources *plan, struct ps_pool *pool,
                   uint64_t bytes)
{
    uint64_t all = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++)
        all += ps__import_chunks(plan->unit[k].near_bytes);
    uint64_t want =
        ((bytes ? bytes : SAMPLE_BYTES) + PS_IMPORT_CHUNK_BYTES - 1) / PS_IMPORT_CHUNK_BYTES;
    s->count = (size_t)(want < all ? want : all);
    s->thread_count = ps_pool_thread_count(pool);
    s->coder = calloc((size_t)s->thread_count, sizeof(struct ps__import_coder *));
    s->chunk = calloc(s->count, sizeof *s->chunk);
    s->memory = malloc(s->count * 2 * PS_IMPORT_CHUNK_BYTES);
    if (!s->coder || !s->chunk || !s->memory)
        return -ENOMEM;
    memset(s->memory, 0, s->count * 2 * PS_IMPORT_CHUNK_BYTES); /* page faults are not measured */
    for (int i = 0; i < s->thread_count; i++) {
        s->coder[i] = ps__import_coder_create(true);
        if (!s->coder[i])
            return -ENOMEM;
    }
    for (size_t i = 0; i < s->count; i++) {
        struct sample_chunk *c = &s->chunk[i];
        locate(c, plan, (2 * i + 1) * all / (2 * s->count));
        c->near = s->memory + 2 * i * PS_IMPORT_CHUNK_BYTES;
        c->record = c->near + PS_IMPORT_CHUNK_BYTES;
    }
    return 0;
}

static void release(struct sample *s)
{
    for (int i = 0; s->coder && i < s->thread_count; i++)
        ps__import_coder_destroy(s->coder[i]);
    free(s->coder);
    free(s->chunk);
    free(s->memory);
}

static void encode_task(void *arg, size_t task_idx, int thread_idx)
{
    struct sample *s = arg;
    struct sample_chunk *c = &s->chunk[task_idx];
    c->failed = ps__import_encode(s->coder[thread_idx], c->near, c->n, c->record, &c->x);
}

static void decode_task(void *arg, size_t task_idx, int thread_idx)
{
    struct sample *s = arg;
    struct sample_chunk *c = &s->chunk[task_idx];
    c->failed = ps__import_decode(s->coder[thread_idx], c->record, &c->x, c->near, c->n);
}

static int first_failure(const struct sample *s)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->chunk[i].failed)
            return s->chunk[i].failed;
    return 0;
}

static int measure(struct ps_import_sample *out, struct sample *s, struct ps_pool *pool)
{
    double begin = now();
    ps_pool_run(pool, encode_task, s, s->count);
    double encode_s = now() - begin, decode_s = HUGE_VAL;
    int ret = first_failure(s);
    for (int i = 0; !ret && i < DECODE_ROUNDS; i++) {
        begin = now();
        ps_pool_run(pool, decode_task, s, s->count);
        double took = now() - begin;
        decode_s = took < decode_s ? took : decode_s;
        ret = first_failure(s);
    }
    if (ret)
        return ret;
    uint64_t near = 0, stored = 0;
    for (size_t i = 0; i < s->count; i++) {
        near += s->chunk[i].n;
        stored += (uint64_t)s->chunk[i].x.exponent_bytes + s->chunk[i].x.mantissa_bytes;
    }
    *out = (struct ps_import_sample){.near_bytes = near,
                                     .ratio = (double)near / (double)stored,
                                     .encode_rate = (double)near / fmax(encode_s, 1e-9),
                                     .decode_rate = (double)near / fmax(decode_s, 1e-9)};
    return 0;
}

int ps_import_measure(struct ps_import_sample *out, const struct ps_unit_sources *plan,
                      const struct ps_st_set *files, struct ps_pool *pool, uint64_t bytes,
                      struct ps_error *err)
{
    struct sample s = {0};
    int ret = ps__import_require(plan, err);
    if (ret)
        return ret;
    ret = prepare(&s, plan, pool, bytes);
    if (ret)
        ret = ps_error_set(err, ret, "not enough memory to measure the compression of weights");
    for (size_t i = 0; !ret && i < s.count; i++)
        ret = ps__import_window_read(s.chunk[i].u, files, s.chunk[i].begin, s.chunk[i].n,
                                     s.chunk[i].near, err);
    if (!ret) {
        ret = measure(out, &s, pool);
        if (ret)
            ret = ps_error_set(err, ret, "cannot compress a sample of the weights: %s",
                               ps_status_text(ret));
    }
    release(&s);
    return ret;
}

void ps_import_pays(struct ps_import_answer *out, const struct ps_import_question *q)
{
    double r = q->sample.ratio;
    double convert = q->convert_rate > 0 ? q->near_bytes / q->convert_rate : 0;
    double decode = q->near_bytes / q->sample.decode_rate;
    double disk = q->file_bytes / q->disk_read;
    double disk_import = q->near_bytes / (r * q->disk_read);
    struct ps_import_answer a = {0};
    if (q->cores_shared) {
        a.plain_s = fmax(q->compute_s + convert, disk);
        a.import_s = fmax(q->compute_s + decode, disk_import);
    } else {
        a.plain_s = fmax(fmax(q->compute_s, convert), disk);
        a.import_s = fmax(fmax(q->compute_s, decode), disk_import);
    }
    if (!q->exists)
        a.build_s =
            q->total_file_bytes / q->disk_read + fmax(q->total_near_bytes / q->sample.encode_rate,
                                                      q->total_near_bytes / (r * q->disk_write));
    bool faster = a.import_s < 0.98 * a.plain_s;
    a.passes_needed = faster ? a.build_s / (a.plain_s - a.import_s) : HUGE_VAL;
    a.pays = faster && q->passes > a.passes_needed;
    *out = a;
}
