/* Writing what a session produced: PEFT adapters, Hugging Face model directories, gradient dumps.
 *
 * A model directory keeps the split, names, order and dtypes of the base's files; side files are
 * copied byte for byte. Trained tensors come from the trainer, merged ones are base (from its file)
 * plus adapter in fp32 with one rounding, all others are copied raw. */
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "peft/adapter_blend.h"
#include "peft/adapters.h"
#include "runtime/base/file.h"
#include "runtime/model/safetensors.h"
#include "session/session_internal.h"

#define PIECE_BYTES ((size_t)1 << 20)

int ps__write_adapter(struct ps_session *s, const char *dir, enum ps_dtype dtype,
                      struct ps_error *err)
{
    return ps_adapter_dir_save(dir, s->trainer, s->opt->model, dtype, err);
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name);
    size_t e = strlen(end);
    return n >= e && strcmp(name + n - e, end) == 0;
}

/* Weights in any format, the files of a run directory or checkpoint, and hidden files are not side
 * files. */
static bool is_side_file(const char *name)
{
    static const char *const weights[] = {".safetensors", ".safetensors.index.json",
                                          ".bin",         ".bin.index.json",
                                          ".pth",         ".pt",
                                          ".gguf",        ".h5",
                                          ".msgpack",     ".onnx"};
    static const char *const ours[] = {"trainer_state.json",   "manifest.json", "plan.json",
                                       "config.resolved.yaml", "metrics.jsonl", "run.json"};
    if (name[0] == '.')
        return false;
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        if (strcmp(name, ours[i]) == 0)
            return false;
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++)
        if (ends_with(name, weights[i]))
            return false;
    return true;
}

static int copy_side_files(const char *from, const char *to, struct ps_error *err)
{
    DIR *d = opendir(from);
    if (!d) {
        int ret = -errno;
        return ps_error_full(err, ret, from, NULL, NULL, "cannot list the directory: %s",
                             ps_status_text(ret));
    }
    int ret = 0;
    const struct dirent *e;
    while (ret == 0 && (e = readdir(d))) {
        char src[4096];
        char dst[4096];
        struct stat st;
        if (!is_side_file(e->d_name) || !ps_path_join(src, sizeof src, from, e->d_name) ||
            !ps_path_join(dst, sizeof dst, to, e->d_name) || stat(src, &st) < 0 ||
            !S_ISREG(st.st_mode))
            continue;
        ret = ps_file_copy(src, dst, err);
    }
    closedir(d);
    return ret;
}

/* Where the value of a parameter comes from. */
struct source {
    const struct ps_st_tensor *tensor;
    const struct ps_st_file *file;
    const struct ps_trainable *trained; /* from the trainer */
    size_t trained_idx;
    const struct ps_adapter_site *merged;  /* base plus adapter */
    const struct ps_adapter_entry *vector; /* trained in its place, fp32 */
    bool bias;                             /* of a merged linear */
    const struct ps_adapter_blend *blend;  /* several adapters; param_idx says what of them */
    int32_t param_idx;
    enum ps_dtype dtype; /* written */
};

static const struct ps_trainable *find_trainable(struct ps_session *s, const char *name,
                                                 size_t *idx)
{
    for (size_t i = 0; i < ps_trainer_trainable_count(s->trainer); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(s->trainer, i);
        *idx = i;
        if (strcmp(x->name, name) == 0)
            return x;
    }
    return NULL;
}

/* What an adapter makes of a parameter of the base. */
static void describe_adapted(struct ps_session *s, const struct ps_param_info *p, int32_t param_idx,
                             struct source *out)
{
    out->param_idx = param_idx;
    if (s->blend) {
        out->blend = ps_adapter_blend_touches(s->blend, param_idx) ? s->blend : NULL;
        return;
    }
    for (size_t i = 0; i < ps_trainer_adapter_count(s->trainer); i++)
        if (ps_trainer_adapter_at(s->trainer, i)->param_idx == param_idx)
            out->vector = ps_trainer_adapter_at(s->trainer, i);
    int role = (int)p->role;
    if (role < PS_LINEAR_COUNT || role == PS_ROLE_EMBED || role == PS_ROLE_HEAD)
        out->merged = ps_trainer_site(s->trainer, p->layer, p->role);
    if (p->layer < 0 || role < PS_ROLE_Q_BIAS || role > PS_ROLE_DOWN_BIAS)
        return;
    const struct ps_adapter_site *site =
        ps_trainer_site(s->trainer, p->layer, (enum ps_role)(role - PS_ROLE_Q_BIAS));
    out->bias = site && site->ops->merge_bias;
    out->merged = out->bias ? site : NULL;
}

static bool describe(struct ps_session *s, const struct ps_st_file *file,
                     const struct ps_st_tensor *t, struct source *out)
{
    const struct ps_param_table *p = ps_trainer_params(s->trainer);
    for (size_t i = 0; i < p->count; i++) {
        const struct ps_param_info *info = &p->param[i];
        if (strcmp(info->name, t->name) != 0)
            continue;
        *out = (struct source){.tensor = t, .file = file, .dtype = (enum ps_dtype)t->dtype};
        out->trained = find_trainable(s, t->name, &out->trained_idx);
        if (out->trained)
            out->dtype = out->trained->dtype;
        else
            describe_adapted(s, info, (int32_t)i, out);
        return true;
    }
    return false;
}

static int append_raw(struct ps_st_writer *w, const struct source *src, void *piece,
                      struct ps_error *err)
{
    for (uint64_t at = 0; at < src->tensor->bytes;) {
        uint64_t n = src->tensor->bytes - at < PIECE_BYTES ? src->tensor->bytes - at : PIECE_BYTES;
        int ret = ps_st_read(src->file, src->tensor, at, n, piece, err);
        if (ret == 0)
            ret = ps_st_writer_append(w, piece, (size_t)n, err);
        if (ret < 0)
            return ret;
        at += n;
    }
    return 0;
}

/* Rounding to a narrower type must not make an infinity. */
static int check_merged(const struct source *src, const void *raw, float *value, size_t n,
                        struct ps_error *err)
{
    ps_dtype_convert(value, PS_DTYPE_F32, raw, src->dtype, n);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(value[i]))
            return ps_error_full(err, PS_ENUMERIC, ps_st_path(src->file), src->tensor->name,
                                 "export the adapter itself (--format peft)",
                                 "base plus adapter of tensor %s is too large for %s",
                                 src->tensor->name, src->tensor->dtype_text);
    return 0;
}

static int append_merged(struct ps_st_writer *w, const struct source *src, struct ps_error *err)
{
    int64_t out = src->tensor->shape[0];
    size_t in = src->tensor->rank == 2 ? (size_t)src->tensor->shape[1] : 1;
    int64_t rows = (int64_t)(PIECE_BYTES / (in * sizeof(float)));
    rows = rows < 1 ? 1 : rows;
    size_t e = ps_dtype_size(src->dtype);
    float *value = malloc((size_t)rows * in * sizeof *value);
    unsigned char *raw = malloc((size_t)rows * in * e);
    int ret = value && raw ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    for (int64_t at = 0; ret == 0 && at < out; at += rows) {
        int64_t count = out - at < rows ? out - at : rows;
        size_t n = (size_t)count * in;
        ret = ps_st_read(src->file, src->tensor, (uint64_t)at * in * e, n * e, raw, err);
        if (ret < 0)
            break;
        ps_dtype_convert(value, PS_DTYPE_F32, raw, src->dtype, n);
        int merged = src->blend
                         ? ps_adapter_blend_apply(src->blend, src->param_idx, at, count, value)
                         : src->merged->ops->merge(src->merged, at, count, value);
        if (merged < 0)
            ret = ps_error_set(err, -ENOMEM, "out of memory");
        ps_dtype_convert(raw, src->dtype, value, PS_DTYPE_F32, n);
        if (ret == 0)
            ret = check_merged(src, raw, value, n, err);
        if (ret == 0)
            ret = ps_st_writer_append(w, raw, n * e, err);
    }
    free(raw);
    free(value);
    return ret;
}

/* A bias of an adapted linear. */
static int append_bias(struct ps_st_writer *w, const struct source *src, struct ps_error *err)
{
    size_t n = (size_t)src->tensor->elements;
    size_t e = ps_dtype_size(src->dtype);
    float *value = malloc(n * sizeof *value);
    unsigned char *raw = malloc(n * e);
    int ret = value && raw ? ps_st_read_as(src->file, src->tensor, PS_DTYPE_F32, value, err)
                           : ps_error_set(err, -ENOMEM, "out of memory");
    if (ret == 0) {
        src->merged->ops->merge_bias(src->merged, value);
        ps_dtype_convert(raw, src->dtype, value, PS_DTYPE_F32, n);
        ret = check_merged(src, raw, value, n, err);
    }
    if (ret == 0)
        ret = ps_st_writer_append(w, raw, n * e, err);
    free(raw);
    free(value);
    return ret;
}

/* A trained tensor, wherever it lies. */
static int append_trained(struct ps_session *s, struct ps_st_writer *w, const struct source *src,
                          void *piece, struct ps_error *err)
{
    size_t size = ps_dtype_size(src->dtype);
    size_t most = PIECE_BYTES / size;
    int ret = 0;
    for (size_t at = 0; ret == 0 && at < src->trained->n; at += most) {
        size_t n = src->trained->n - at < most ? src->trained->n - at : most;
        ret = ps_trainer_part_read(s->trainer, src->trained_idx, PS_PART_WEIGHT, at, n, piece, err);
        if (ret == 0)
            ret = ps_st_writer_append(w, piece, n * size, err);
    }
    return ret;
}

/* What was trained in the base's place. */
static int append_vector(struct ps_st_writer *w, const struct source *src, struct ps_error *err)
{
    size_t n = src->vector->n;
    size_t most = PIECE_BYTES / sizeof(float);
    size_t e = ps_dtype_size(src->dtype);
    float *value = malloc(most * sizeof *value);
    unsigned char *raw = malloc(most * e);
    int ret = value && raw ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    for (size_t at = 0; ret == 0 && at < n; at += most) {
        size_t count = n - at < most ? n - at : most;
        ps_dtype_convert(raw, src->dtype, src->vector->value + at, PS_DTYPE_F32, count);
        ret = check_merged(src, raw, value, count, err);
        if (ret == 0)
            ret = ps_st_writer_append(w, raw, count * e, err);
    }
    free(raw);
    free(value);
    return ret;
}

static int write_file(struct ps_session *s, const struct ps_st_file *file, const char *path,
                      json_t *map, uint64_t *total, struct ps_error *err)
{
    size_t count = ps_st_count(file);
    struct source *src = calloc(count + 1, sizeof *src);
    struct ps_st_spec *spec = calloc(count + 1, sizeof *spec);
    void *piece = malloc(PIECE_BYTES);
    size_t kept = 0;
    struct ps_st_writer *w = NULL;
    int ret = src && spec && piece ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; ret == 0 && i < count; i++) {
        const struct ps_st_tensor *t = ps_st_at(file, i);
        if (!describe(s, file, t, &src[kept])) {
            ps_log(&s->log, PS_LOG_WARN, "%s: tensor %s is not part of the model and is left out",
                   ps_st_path(file), t->name);
            continue;
        }
        spec[kept] =
            (struct ps_st_spec){.name = t->name, .dtype = src[kept].dtype, .rank = t->rank};
        memcpy(spec[kept].shape, t->shape, sizeof spec[kept].shape);
        *total += (uint64_t)t->elements * ps_dtype_size(src[kept].dtype);
        if (map)
            json_object_set_new(map, t->name, json_string(strrchr(path, '/') + 1));
        kept++;
    }
    if (ret == 0)
        ret = ps_st_writer_create(&w, path, spec, kept, err);
    for (size_t i = 0; ret == 0 && i < kept; i++) {
        if (src[i].trained)
            ret = append_trained(s, w, &src[i], piece, err);
        else if (src[i].vector)
            ret = append_vector(w, &src[i], err);
        else if (src[i].bias)
            ret = append_bias(w, &src[i], err);
        else if (src[i].merged || src[i].blend)
            ret = append_merged(w, &src[i], err);
        else
            ret = append_raw(w, &src[i], piece, err);
    }
    if (ret == 0)
        ret = ps_st_check_unchanged(file, err);
    uint64_t want = w ? ps_st_writer_hash(w) : 0;
    if (ret == 0)
        ret = ps_st_writer_close(w, err);
    else
        ps_st_writer_abort(w);
    uint64_t got = 0;
    if (ret == 0)
        ret = ps_file_hash(path, &got, err);
    if (ret == 0 && got != want)
        ret = ps_error_full(err, PS_ECHECKSUM, path, NULL, "check the disk and export again",
                            "the file does not read back as it was written");
    free(piece);
    free(spec);
    free(src);
    return ret;
}

static int write_index(const char *dir, json_t *map, uint64_t total, struct ps_error *err)
{
    char path[4096];
    if (!ps_path_join(path, sizeof path, dir, "model.safetensors.index.json"))
        return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
    json_t *root =
        json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    json_decref(root);
    if (!text)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = ps_file_write(path, text, strlen(text), err);
    free(text);
    return ret;
}

int ps__write_model(struct ps_session *s, const char *dir, struct ps_error *err)
{
    struct ps_st_set *set = NULL;
    int ret = ps_st_set_open(&set, s->opt->model, err);
    if (ret < 0)
        return ret;
    json_t *map = json_object();
    uint64_t total = 0;
    size_t files = ps_st_set_file_count(set);
    bool indexed = files > 1;
    for (size_t i = 0; ret == 0 && i < files; i++) {
        const struct ps_st_file *f = ps_st_set_file(set, i);
        const char *name = strrchr(ps_st_path(f), '/');
        name = name ? name + 1 : ps_st_path(f);
        char path[4096];
        /* one shard under an index keeps its name and so needs the index */
        indexed |= strcmp(name, "model.safetensors") != 0;
        if (!ps_path_join(path, sizeof path, dir, name))
            ret = ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
        else
            ret = write_file(s, f, path, map, &total, err);
    }
    if (ret == 0)
        ret = copy_side_files(s->opt->model, dir, err);
    if (ret == 0 && indexed)
        ret = write_index(dir, map, total, err);
    json_decref(map);
    ps_st_set_close(set);
    return ret < 0 ? ret : ps__verify_model(s, dir, err);
}

int ps__verify_model(struct ps_session *s, const char *dir, struct ps_error *err)
{
    struct ps_model_config cfg;
    int ret = ps_model_config_load(&cfg, dir, err);
    struct ps_st_set *set = NULL;
    if (ret == 0)
        ret = ps_st_set_open(&set, dir, err);
    const struct ps_param_table *p = ps_trainer_params(s->trainer);
    for (size_t i = 0; ret == 0 && i < p->count; i++) {
        const struct ps_st_file *f;
        const struct ps_st_tensor *t = ps_st_set_find(set, p->param[i].name, &f);
        if (!t || (size_t)t->elements != p->param[i].elements)
            ret = ps_error_full(err, PS_ECHECKSUM, dir, p->param[i].name, "export again",
                                "the written model has no whole tensor %s", p->param[i].name);
    }
    ps_st_set_close(set);
    return ret;
}

/* A debugging aid: it takes the memory that it needs beside the budget. */
void ps__keep_grad(void *arg, size_t idx, const float *grad, size_t n)
{
    struct ps_session *s = arg;
    if (s->step > s->first_step)
        return;
    if (!s->dumped)
        s->dumped = calloc(ps_trainer_trainable_count(s->trainer), sizeof *s->dumped);
    if (s->dumped && !s->dumped[idx])
        s->dumped[idx] = malloc(n * sizeof(float));
    if (s->dumped && s->dumped[idx])
        memcpy(s->dumped[idx], grad, n * sizeof(float));
}

/* The files of the adapter hold the transpose of this trained tensor. */
static bool is_transposed(const struct ps_session *s, size_t trainable)
{
    for (size_t i = 0; i < ps_trainer_adapter_count(s->trainer); i++) {
        const struct ps_adapter_entry *e = ps_trainer_adapter_at(s->trainer, i);
        if (e->trainable == (int32_t)trainable)
            return e->transposed;
    }
    return false;
}

static int append_transposed(struct ps_st_writer *w, const float *value, const int64_t shape[2],
                             struct ps_error *err)
{
    float *column = malloc((size_t)shape[0] * sizeof *column);
    int ret = column ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    for (int64_t j = 0; ret == 0 && j < shape[1]; j++) {
        for (int64_t i = 0; i < shape[0]; i++)
            column[i] = value[i * shape[1] + j];
        ret = ps_st_writer_append(w, column, (size_t)shape[0] * sizeof *column, err);
    }
    free(column);
    return ret;
}

int ps__dump_grads(struct ps_session *s, const char *path, struct ps_error *err)
{
    size_t count = ps_trainer_trainable_count(s->trainer);
    struct ps_st_spec *spec = calloc(count, sizeof *spec);
    if (!spec)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = ps_trainer_pull(s->trainer, err);
    for (size_t i = 0; i < count; i++) {
        const struct ps_trainable *x = ps_trainer_trainable(s->trainer, i);
        bool turn = is_transposed(s, i);
        spec[i] = (struct ps_st_spec){.name = x->name,
                                      .dtype = PS_DTYPE_F32,
                                      .rank = x->rank,
                                      .shape = {x->shape[turn ? 1 : 0], x->shape[turn ? 0 : 1]}};
    }
    struct ps_st_writer *w = NULL;
    if (ret == 0)
        ret = ps_st_writer_create(&w, path, spec, count, err);
    free(spec);
    for (size_t i = 0; ret == 0 && i < count; i++) {
        const struct ps_trainable *x = ps_trainer_trainable(s->trainer, i);
        const float *grad = s->dumped ? s->dumped[i] : x->grad;
        if (!grad)
            ret = ps_error_set(err, -ENOMEM, "out of memory for the gradients to dump");
        else if (is_transposed(s, i))
            ret = append_transposed(w, grad, x->shape, err);
        else
            ret = ps_st_writer_append(w, grad, x->n * sizeof(float), err);
    }
    if (ret == 0)
        return ps_st_writer_close(w, err);
    ps_st_writer_abort(w);
    return ret;
}

static bool embedding_adapted(struct ps_session *s)
{
    int32_t embed = ps_param_find(ps_trainer_params(s->trainer), -1, PS_ROLE_EMBED);
    return s->blend ? ps_adapter_blend_touches(s->blend, embed)
                    : ps_trainer_site(s->trainer, -1, PS_ROLE_EMBED) != NULL;
}

int ps_session_export(struct ps_session *s, const char *format, const char *dir,
                      struct ps_error *err)
{
    bool peft = strcmp(format, "peft") == 0;
    if (peft && ps_trainer_trainable_count(s->trainer) == 0)
        return ps_error_full(err, PS_EUSAGE, NULL, "adapter", "give --adapter DIR",
                             "there is no adapter to export");
    if (!peft && s->cfg.tie_word_embeddings && embedding_adapted(s))
        return ps_error_full(err, PS_EUNSUPPORTED, NULL, "format", "use `--format peft`",
                             "the adapter is on lookups of the embedding alone, which is the head "
                             "of this model too: no one tensor has both values");
    struct stat st;
    char probe[4096];
    const char *mark = peft ? "adapter_config.json" : "config.json";
    if (ps_path_join(probe, sizeof probe, dir, mark) && stat(probe, &st) == 0)
        return ps_error_full(err, PS_EUSAGE, dir, "output", "choose another --output",
                             "the directory already holds a model or an adapter (%s)", mark);
    int ret = ps_file_make_dirs(dir, err);
    if (ret < 0)
        return ret;
    if (!peft)
        return ps__write_model(s, dir, err);
    bool half = s->opt->adapter_dtype && strcmp(s->opt->adapter_dtype, "bf16") == 0;
    return ps__write_adapter(s, dir, half ? PS_DTYPE_BF16 : PS_DTYPE_F32, err);
}
