/* A model directory with random weights: see init_model.h.
 *
 * Design: the weights are made and appended in pieces of PIECE elements, each piece by all threads;
 * every element depends on its own counter only, so neither the pieces nor the threads show in the
 * file. */
#include "session/init_model.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <jansson.h>

#include "runtime/base/dtype.h"
#include "runtime/base/file.h"
#include "runtime/base/rng.h"
#include "runtime/base/thread_pool.h"
#include "runtime/data/tokenizer.h"
#include "runtime/model/config.h"
#include "runtime/model/params.h"
#include "runtime/model/safetensors.h"
#include "session/host_cores.h"
#include "session/init_model_internal.h"

#define PIECE ((size_t)1 << 22)
#define TASK ((size_t)1 << 15)
#define SHARD_BYTES ((uint64_t)4 << 30)
static_assert(PIECE % TASK == 0 && TASK % 4 == 0, "tasks begin at whole blocks");
#define DISK_MARGIN ((uint64_t)16 << 20)

struct maker {
    const struct ps_init_options *opt;
    struct ps_init_result result;
    struct ps_model_config cfg;
    struct ps_param_table params;
    enum ps_dtype dtype;
    size_t *file_begin; /* (file_count + 1,) parameter indices */
    size_t file_count;
    struct ps_pool *pool;
    void *piece; /* (PIECE,) of dtype */
    struct ps_error *err;
};

struct fill {
    struct ps_rng_key key;
    double scale;   /* of the normal numbers; 0: constant */
    float constant; /* norms 1, biases 0 */
    enum ps_dtype dtype;
    size_t begin, count; /* elements of the tensor in this piece */
    void *out;
};

static void store(const struct fill *f, size_t i, float v)
{
    if (f->dtype == PS_DTYPE_BF16)
        ((uint16_t *)f->out)[i] = ps_f32_to_bf16(v);
    else
        ((float *)f->out)[i] = v;
}

/* Four normal numbers of one block of random words: two of Box and Muller's pairs. */
static void normal_block(const struct ps_rng_key *key, uint64_t block, double out[4])
{
    uint32_t w[4];
    ps_rng_block(key, block, w);
    for (size_t k = 0; k < 4; k += 2) {
        double radius = sqrt(-2.0 * log(((double)w[k] + 0.5) * 0x1p-32));
        double angle = 6.283185307179586476925286766559 * (((double)w[k + 1] + 0.5) * 0x1p-32);
        sincos(angle, &out[k + 1], &out[k]);
        out[k] *= radius;
        out[k + 1] *= radius;
    }
}

static void fill_task(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct fill *f = arg;
    size_t from = task * TASK;
    size_t to = from + TASK < f->count ? from + TASK : f->count;
    if (f->scale == 0.0) {
        for (size_t i = from; i < to; i++)
            store(f, i, f->constant);
        return;
    }
    for (size_t i = from; i < to; i += 4) {
        double z[4];
        normal_block(&f->key, (f->begin + i) / 4, z);
        for (size_t k = 0; k < 4 && i + k < to; k++)
            store(f, i + k, (float)(z[k] * f->scale));
    }
}

static bool is_norm(enum ps_role role)
{
    return (role >= PS_ROLE_ATTN_NORM && role <= PS_ROLE_K_NORM) || role == PS_ROLE_FINAL_NORM;
}

static int write_tensor(struct maker *m, struct ps_st_writer *w, size_t p)
{
    const struct ps_param_info *info = &m->params.param[p];
    struct fill f = {
        .key = {.seed = m->opt->seed, .layer = (uint32_t)p, .site = PS_RNG_INIT_WEIGHT},
        .scale = info->rank == 2 ? m->cfg.initializer_range : 0.0,
        .constant = is_norm(info->role) ? 1.0f : 0.0f,
        .dtype = m->dtype,
        .out = m->piece,
    };
    for (f.begin = 0; f.begin < info->elements; f.begin += f.count) {
        size_t left = info->elements - f.begin;
        f.count = left < PIECE ? left : PIECE;
        ps_pool_run(m->pool, fill_task, &f, (f.count + TASK - 1) / TASK);
        int ret = ps_st_writer_append(w, m->piece, f.count * ps_dtype_size(m->dtype), m->err);
        if (ret)
            return ret;
    }
    return 0;
}

static int join(struct maker *m, char path[PATH_MAX], const char *dir, const char *name)
{
    if (ps_path_join(path, PATH_MAX, dir, name))
        return 0;
    return ps_error_full(m->err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
}

static void file_name(const struct maker *m, size_t file, char *buf, size_t size)
{
    if (m->file_count == 1)
        PS_IGNORE(snprintf(buf, size, "model.safetensors") < 0, "fits");
    else
        PS_IGNORE(snprintf(buf, size, "model-%05zu-of-%05zu.safetensors", file + 1, m->file_count) <
                      0,
                  "fits");
}

static int write_file(struct maker *m, size_t file)
{
    size_t begin = m->file_begin[file];
    size_t count = m->file_begin[file + 1] - begin;
    char name[64];
    char path[PATH_MAX];
    file_name(m, file, name, sizeof name);
    int ret = join(m, path, m->opt->output, name);
    if (ret)
        return ret;
    struct ps_st_spec *spec = calloc(count, sizeof *spec);
    if (!spec)
        return ps_error_set(m->err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        const struct ps_param_info *p = &m->params.param[begin + i];
        spec[i] = (struct ps_st_spec){.name = p->name, .dtype = m->dtype, .rank = p->rank};
        for (int d = 0; d < p->rank; d++)
            spec[i].shape[d] = p->shape[d];
    }
    struct ps_st_writer *w;
    ret = ps_st_writer_create(&w, path, spec, count, m->err);
    if (ret)
        goto fail_create;
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = write_tensor(m, w, begin + i);
    if (ret)
        ps_st_writer_abort(w);
    else
        ret = ps_st_writer_close(w, m->err);

fail_create:
    free(spec);
    return ret;
}

/* Cut the parameters into files: a new one when the next tensor would pass the limit. */
static int lay_out_files(struct maker *m)
{
    uint64_t limit = m->opt->shard_bytes ? m->opt->shard_bytes : SHARD_BYTES;
    m->file_begin = malloc((m->params.count + 1) * sizeof *m->file_begin);
    if (!m->file_begin)
        return ps_error_set(m->err, -ENOMEM, "out of memory");
    uint64_t used = 0;
    m->file_begin[0] = 0;
    m->file_count = 1;
    for (size_t i = 0; i < m->params.count; i++) {
        uint64_t bytes = (uint64_t)m->params.param[i].elements * ps_dtype_size(m->dtype);
        if (used && used + bytes > limit) {
            m->file_begin[m->file_count++] = i;
            used = 0;
        }
        used += bytes;
        m->result.bytes += bytes;
    }
    m->file_begin[m->file_count] = m->params.count;
    m->result.files = m->file_count;
    m->result.tensors = m->params.count;
    m->result.parameters = m->params.elements;
    return 0;
}

static int write_index(struct maker *m)
{
    json_t *map = json_object();
    bool ok = map != NULL;
    for (size_t f = 0; ok && f < m->file_count; f++) {
        char name[64];
        file_name(m, f, name, sizeof name);
        for (size_t i = m->file_begin[f]; ok && i < m->file_begin[f + 1]; i++)
            ok = json_object_set_new(map, m->params.param[i].name, json_string(name)) == 0;
    }
    json_t *index = json_pack("{s:{s:I,s:I},s:o}", "metadata", "total_parameters",
                              (json_int_t)m->result.parameters, "total_size",
                              (json_int_t)m->result.bytes, "weight_map", map);
    char *text = ok && index ? json_dumps(index, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    json_decref(index);
    if (!text)
        return ps_error_set(m->err, -ENOMEM, "out of memory");
    char path[PATH_MAX];
    int ret = join(m, path, m->opt->output, "model.safetensors.index.json");
    if (ret == 0)
        ret = ps_file_write(path, text, strlen(text), m->err);
    free(text);
    return ret;
}

/* The output directory: new, or without a model. */
static int prepare_output(struct maker *m)
{
    char path[PATH_MAX];
    int ret = join(m, path, m->opt->output, "config.json");
    if (ret)
        return ret;
    if (access(path, F_OK) == 0)
        return ps_error_full(m->err, PS_EUSAGE, path, "output", "choose another --output",
                             "the output directory holds a model already");
    ret = ps_file_make_dirs(m->opt->output, m->err);
    if (ret)
        return ret;
    struct statvfs fs;
    if (statvfs(m->opt->output, &fs))
        return ps_error_full(m->err, -errno, m->opt->output, NULL, NULL,
                             "cannot tell the free space: %s", strerror(errno));
    uint64_t have = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (have < m->result.bytes + DISK_MARGIN)
        return ps_error_full(m->err, -ENOSPC, m->opt->output, NULL, NULL,
                             "the weights need %llu bytes, %llu are free",
                             (unsigned long long)(m->result.bytes + DISK_MARGIN),
                             (unsigned long long)have);
    return 0;
}

static int check_tokenizer(struct maker *m)
{
    if (!m->opt->tokenizer)
        return 0;
    struct ps_tokenizer *tok;
    int ret = ps_tokenizer_open(&tok, m->opt->tokenizer, m->err);
    if (ret)
        return ret;
    size_t ids = ps_tokenizer_vocab_size(tok);
    ps_tokenizer_close(tok);
    if (ids > (size_t)m->cfg.vocab_size)
        return ps_error_full(m->err, PS_EUSAGE, m->opt->tokenizer, "tokenizer",
                             "raise vocab_size in the configuration",
                             "the tokenizer has %zu ids, the model's vocab_size is %d", ids,
                             m->cfg.vocab_size);
    return 0;
}

static int make(struct maker *m, const struct ps__init_config *config)
{
    int threads = m->opt->threads > 0 ? m->opt->threads : ps_host_core_count();
    int ret = ps_param_table_create(&m->params, &m->cfg);
    if (ret)
        return ps_error_set(m->err, ret, "out of memory");
    ret = lay_out_files(m);
    if (ret == 0)
        ret = check_tokenizer(m);
    if (ret == 0)
        ret = prepare_output(m);
    if (ret)
        return ret;
    m->piece = malloc(PIECE * ps_dtype_size(m->dtype));
    if (!m->piece)
        return ps_error_set(m->err, -ENOMEM, "out of memory");
    ret = ps_pool_create(&m->pool, threads);
    if (ret)
        return ps_error_set(m->err, ret, "cannot start %d threads", threads);
    for (size_t f = 0; ret == 0 && f < m->file_count; f++)
        ret = write_file(m, f);
    if (ret == 0 && m->file_count > 1)
        ret = write_index(m);
    return ret ? ret : ps__init_write_side_files(m->opt, config, &m->cfg, m->dtype, m->err);
}

int ps_init_model(const struct ps_init_options *opt, struct ps_init_result *out,
                  struct ps_error *err)
{
    struct maker m = {.opt = opt, .err = err};
    struct ps__init_config config = {0};
    int ret = ps__init_read_config(opt, &config, &m.cfg, err);
    if (ret)
        return ret;
    m.dtype = PS_DTYPE_BF16;
    if (opt->dtype >= 0)
        m.dtype = (enum ps_dtype)opt->dtype;
    else if (m.cfg.torch_dtype == PS_DTYPE_F32)
        m.dtype = PS_DTYPE_F32;
    assert(m.dtype == PS_DTYPE_F32 || m.dtype == PS_DTYPE_BF16);
    ret = make(&m, &config);
    ps_pool_destroy(m.pool);
    free(m.piece);
    free(m.file_begin);
    ps_param_table_fini(&m.params);
    ps__init_config_fini(&config);
    if (ret == 0)
        *out = m.result;
    return ret;
}
