/* Adapter directories in PEFT's format: tensors. See adapters.h; adapter_config.c has the
 * configuration.
 *
 * The file for PEFT holds the adapter's own tensors, or, for methods that PEFT lacks, those of a
 * plain LoRA with the same function; then a second file keeps the method's own in fp32, from which
 * training goes on. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peft/adapter_config.h"
#include "peft/adapters.h"
#include "peft/lowrank.h"
#include "runtime/base/file.h"
#include "runtime/model/safetensors.h"

static int join(char *buf, size_t size, const char *dir, const char *name, struct ps_error *err)
{
    if (ps_path_join(buf, size, dir, name))
        return 0;
    return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
}

#define KEY_PREFIX "base_model.model."

/* "base_model.model.<module path>.suffix" -> layer and role of the site. */
static bool parse_key(const char *key, int32_t n_layer, int32_t *layer, enum ps_role *role)
{
    static const char layers[] = KEY_PREFIX "model.layers.";
    for (size_t i = ps_site_idx(n_layer, -1, PS_ROLE_EMBED); i < ps_site_count(n_layer); i++) {
        char path[PS_SITE_PATH_MAX];
        ps_site_at(n_layer, i, layer, role);
        ps_site_path(path, *layer, *role);
        size_t n = sizeof KEY_PREFIX - 1;
        if (strncmp(key, KEY_PREFIX, n) == 0 && strncmp(key + n, path, strlen(path)) == 0 &&
            strncmp(key + n + strlen(path), ".lora_", 6) == 0)
            return true;
    }
    if (strncmp(key, layers, sizeof layers - 1) != 0)
        return false;
    const char *at = key + sizeof layers - 1;
    if (*at < '0' || *at > '9')
        return false;
    char *end;
    long l = strtol(at, &end, 10);
    if (l < 0 || l >= n_layer || *end != '.')
        return false;
    for (int r = 0; r < PS_LINEAR_COUNT; r++) {
        char part[48];
        int len = snprintf(part, sizeof part, ".%s.%s.", ps_linear_parent((enum ps_role)r),
                           ps_linear_name((enum ps_role)r));
        if (strncmp(end, part, (size_t)len) == 0) {
            *layer = (int32_t)l;
            *role = (enum ps_role)r;
            return true;
        }
    }
    return false;
}

static int stray_tensor(struct ps_error *err, const char *path, const char *name)
{
    return ps_error_full(
        err, PS_EFORMAT, path, name,
        "keys must be base_model.model.model.layers.N.<module>.lora_A.weight; is the "
        "adapter for another model?",
        "the tensor %s fits no linear of this model", name);
}

/* Where PEFT adapts the embedding or the head it also writes their base weights. */
static const char *const base_copy[] = {KEY_PREFIX "model.embed_tokens.base_layer.weight",
                                        KEY_PREFIX "lm_head.base_layer.weight"};

static bool is_base_copy(const char *name)
{
    return strcmp(name, base_copy[0]) == 0 || strcmp(name, base_copy[1]) == 0;
}

/* What a file holds beside tensors of linears. */
static bool outside_layers(const char *name, const struct ps_adapter_config *c)
{
    if (strcmp(name, "base_model.vera_A") == 0 || strcmp(name, "base_model.vera_B") == 0)
        return strcmp(c->method, "vera") == 0;
    if (strcmp(name, "base_model.model.lm_head.weight") == 0)
        return c->save_head;
    return c->save_embed && strcmp(name, "base_model.model.model.embed_tokens.weight") == 0;
}

/* A bias beside the adapter: of an adapted linear, or of another. */
static bool is_bias(const char *name)
{
    size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, ".bias") == 0 && !strstr(name, "lora_");
}

static int find_sites(const char *path, const struct ps_model_config *model,
                      const struct ps_adapter_config *cfg, bool *site_on, struct ps_error *err)
{
    struct ps_st_file *f = NULL;
    int ret = ps_st_open(&f, path, err);
    if (ret < 0)
        return ret;
    for (size_t i = 0; ret == 0 && i < ps_st_count(f); i++) {
        int32_t layer;
        enum ps_role role;
        const char *name = ps_st_at(f, i)->name;
        if (outside_layers(name, cfg) || is_base_copy(name) ||
            (cfg->bias != PS_ADAPTER_BIAS_NONE && is_bias(name)))
            continue;
        if (parse_key(name, model->n_layer, &layer, &role))
            site_on[ps_site_idx(model->n_layer, layer, role)] = true;
        else
            ret = stray_tensor(err, path, name);
    }
    ps_st_close(f);
    return ret;
}

int ps_adapter_dir_config(const char *dir, const struct ps_model_config *model,
                          struct ps_adapter_config *cfg, bool *site_on,
                          struct ps_adapter_config *site_config, struct ps_error *err)
{
    struct ps_adapter_file f;
    char path[1024];
    size_t sites = ps_site_count(model->n_layer);
    uint64_t seed = cfg->seed;
    memset(site_on, 0, sites * sizeof *site_on);
    int ret = ps_adapter_file_read(&f, dir, err);
    *cfg = f.config;
    cfg->seed = seed;
    if (ret == 0)
        ret = join(path, sizeof path, dir, PS_ADAPTER_WEIGHTS_NAME, err);
    if (ret == 0 && !ps_adapter_find(cfg->method)->vector)
        ret = find_sites(path, model, cfg, site_on, err);
    for (size_t i = 0; ret == 0 && site_config && i < sites; i++)
        site_config[i] = *cfg;
    if (ret == 0 && site_config)
        ret = ps_patterns_apply(site_config, model->n_layer, f.rank, f.rank_count, false,
                                "rank_pattern", err);
    if (ret == 0 && site_config)
        ret = ps_patterns_apply(site_config, model->n_layer, f.alpha, f.alpha_count, true,
                                "alpha_pattern", err);
    if (ret == PS_EUSAGE)
        ret = ps_error_full(err, PS_EFORMAT, dir, err ? err->field : NULL, NULL, "%s",
                            err ? err->message : "");
    ps_adapter_file_fini(&f);
    return ret;
}

static void transpose(float *out, const float *in, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            out[j * rows + i] = in[i * cols + j];
}

/* The file has (shape[1], shape[0]). */
static int read_transposed(const struct ps_st_file *f, const struct ps_st_tensor *t,
                           const struct ps_adapter_entry *x, struct ps_error *err)
{
    float *turned = malloc(x->n * sizeof *turned);
    int ret = turned ? ps_st_read_as(f, t, PS_DTYPE_F32, turned, err)
                     : ps_error_set(err, -ENOMEM, "out of memory");
    if (ret == 0)
        transpose(x->value, turned, x->shape[1], x->shape[0]);
    free(turned);
    return ret;
}

static int load_tensor(const struct ps_st_file *f, const struct ps_adapter_entry *x,
                       struct ps_error *err)
{
    const char *path = ps_st_path(f);
    const struct ps_st_tensor *t = ps_st_find(f, x->name);
    if (!t)
        return ps_error_full(err, PS_EFORMAT, path, x->name, "the adapter is incomplete",
                             "the adapter has no tensor %s", x->name);
    int64_t rows = x->shape[x->transposed ? 1 : 0];
    int64_t cols = x->shape[x->transposed ? 0 : 1];
    if (t->rank != x->rank || t->shape[0] != rows || t->shape[1] != cols)
        return ps_error_full(err, PS_EFORMAT, path, x->name, "is the adapter for another model?",
                             "tensor %s has shape [%lld, %lld], the model needs [%lld, %lld]",
                             x->name, (long long)t->shape[0], (long long)t->shape[1],
                             (long long)rows, (long long)cols);
    if (t->dtype < 0 || t->dtype > PS_DTYPE_F16)
        return ps_error_full(err, PS_EUNSUPPORTED, path, x->name, NULL, "tensor %s has dtype %s",
                             x->name, t->dtype_text);
    int ret = x->transposed ? read_transposed(f, t, x, err)
                            : ps_st_read_as(f, t, PS_DTYPE_F32, x->value, err);
    for (size_t i = 0; ret == 0 && i < x->n; i++)
        if (!isfinite(x->value[i]))
            ret = ps_error_full(err, PS_EFORMAT, path, x->name, "the adapter's training diverged",
                                "tensor %s holds NaN or Inf", x->name);
    return ret;
}

static bool folds(const struct ps_trainer *t)
{
    return ps_peft_method_of(ps_trainer_adapter_ops(t))->folds;
}

int ps_adapter_dir_entries(const char *dir, const struct ps_adapter_ops *ops,
                           const struct ps_adapter_entry *entry, size_t count, struct ps_error *err)
{
    char path[1024];
    struct ps_st_file *f = NULL;
    bool own = ps_peft_method_of(ops)->folds;
    int ret = join(path, sizeof path, dir,
                   own ? PS_ADAPTER_OWN_WEIGHTS_NAME : PS_ADAPTER_WEIGHTS_NAME, err);
    if (ret == 0)
        ret = ps_st_open(&f, path, err);
    if (ret < 0)
        return ret;
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = load_tensor(f, &entry[i], err);
    for (size_t i = 0; ret == 0 && ps_st_count(f) != count && i < ps_st_count(f); i++) {
        bool known = is_base_copy(ps_st_at(f, i)->name);
        for (size_t j = 0; j < count && !known; j++)
            known = strcmp(entry[j].name, ps_st_at(f, i)->name) == 0;
        if (!known)
            ret = stray_tensor(err, path, ps_st_at(f, i)->name);
    }
    if (ret == 0)
        ret = ps_st_check_unchanged(f, err);
    ps_st_close(f);
    return ret;
}

/* A copy of a base weight in the file is the base's, at the precision in which it is used. */
static int check_copy(const struct ps_st_file *f, const struct ps_st_tensor *x,
                      const struct ps_trainer *t, enum ps_role role, struct ps_error *err)
{
    int32_t idx = ps_param_find(ps_trainer_params(t), -1, role);
    const struct ps_param_info *p = &ps_trainer_params(t)->param[idx];
    enum ps_dtype dtype = ps_trainer_param(t, idx)->dtype;
    size_t e = ps_dtype_size((enum ps_dtype)x->dtype);
    size_t n = (size_t)p->shape[1];
    bool same = x->rank == 2 && x->shape[0] == p->shape[0] && x->shape[1] == p->shape[1];
    float *row = malloc(2 * n * sizeof *row);
    void *raw = malloc(n * sizeof(float));
    int ret = row && raw ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; ret == 0 && same && i < (size_t)p->shape[0]; i++) {
        ret = ps_st_read(f, x, i * n * e, n * e, raw, err);
        if (ret == 0)
            ret = ps_trainer_param_read(t, idx, i * n, n, row, err);
        if (ret < 0)
            break;
        ps_dtype_convert(row + n, PS_DTYPE_F32, raw, (enum ps_dtype)x->dtype, n);
        for (size_t j = 0; j < n; j++)
            same &= row[j] == (dtype == PS_DTYPE_BF16 ? ps_bf16_to_f32(ps_f32_to_bf16(row[n + j]))
                                                      : row[n + j]);
    }
    free(raw);
    free(row);
    if (ret < 0 || same)
        return ret;
    return ps_error_full(err, PS_EUNSUPPORTED, ps_st_path(f), x->name,
                         "use the model that it was trained on, or save it again with "
                         "save_embedding_layers=False",
                         "the adapter's file holds base weights that are not this model's");
}

static int check_copies(const char *dir, const struct ps_trainer *t, struct ps_error *err)
{
    char path[1024];
    struct ps_st_file *f = NULL;
    int ret = join(path, sizeof path, dir, PS_ADAPTER_WEIGHTS_NAME, err);
    if (ret == 0)
        ret = ps_st_open(&f, path, err);
    for (int k = 0; ret == 0 && k < 2; k++) {
        const struct ps_st_tensor *x = ps_st_find(f, base_copy[k]);
        if (x && x->dtype >= 0 && x->dtype <= PS_DTYPE_F16)
            ret = check_copy(f, x, t, k ? PS_ROLE_HEAD : PS_ROLE_EMBED, err);
    }
    ps_st_close(f);
    return ret;
}

int ps_adapter_dir_load(const char *dir, struct ps_trainer *t, struct ps_error *err)
{
    size_t count = ps_trainer_adapter_count(t);
    int ret = ps_adapter_dir_entries(dir, ps_trainer_adapter_ops(t),
                                     count > 0 ? ps_trainer_adapter_at(t, 0) : NULL, count, err);
    return ret < 0 ? ret : check_copies(dir, t, err);
}

/* A value that is finite as fp32 and too large for bf16 counts as non-finite when that is written.
 */
static int check_finite(const char *name, const float *w, size_t n, enum ps_dtype dtype,
                        struct ps_error *err)
{
    for (size_t j = 0; j < n; j++)
        if (!isfinite(dtype == PS_DTYPE_BF16 ? ps_bf16_to_f32(ps_f32_to_bf16(w[j])) : w[j]))
            return ps_error_full(err, PS_ENUMERIC, NULL, name, "lower the learning rate",
                                 "the adapter tensor %s holds NaN or Inf and is not saved", name);
    return 0;
}

/* One tensor of a file that is to be written: an entry as it is, a factor of a folded site, or,
 * with neither, zeros. */
struct piece {
    char name[192];
    int32_t rank;
    int64_t shape[2];
    size_t n;
    const struct ps_adapter_entry *entry;
    const struct ps_adapter_site *site; /* not NULL: folded, `factor` 0 is A, 1 is B */
    int factor;
};

struct pieces {
    struct piece *item;
    size_t count;
    float *fold[2];    /* both factors of the last site asked for */
    float *want, *got; /* of the largest piece each */
    float *turned;     /* of the largest that is transposed */
    const struct ps_adapter_entry *in_turned;
    const struct ps_adapter_site *folded;
};

static void add_entry(struct pieces *p, const struct ps_adapter_entry *e)
{
    struct piece *x = &p->item[p->count++];
    *x =
        (struct piece){.rank = e->rank, .shape = {e->shape[0], e->shape[1]}, .n = e->n, .entry = e};
    if (e->transposed) {
        x->shape[0] = e->shape[1];
        x->shape[1] = e->shape[0];
    }
    PS_IGNORE(snprintf(x->name, sizeof x->name, "%s", e->name) < 0, "fits");
}

static void add_factors(struct pieces *p, const struct ps_adapter_site *s)
{
    struct ps_lowrank v = ps_peft_method_of(s->ops)->view(s);
    int64_t r = (int64_t)ps_lowrank_fold_rank(&v);
    for (int f = 0; f < 2; f++) {
        struct piece *x = &p->item[p->count++];
        *x = (struct piece){.rank = 2, .site = s, .factor = f};
        x->shape[0] = f ? s->out : r;
        x->shape[1] = f ? r : s->in;
        x->n = (size_t)x->shape[0] * (size_t)x->shape[1];
        char path[PS_SITE_PATH_MAX];
        ps_site_path(path, s->layer, s->role);
        PS_IGNORE(snprintf(x->name, sizeof x->name, KEY_PREFIX "%s.lora_%c.weight", path,
                           f ? 'B' : 'A') < 0,
                  "fits");
    }
}

/* PEFT takes biases only beside a LoRA: one of rank 1 that adds nothing. */
static void add_zeros(struct pieces *p, const struct ps_trainer *t,
                      const struct ps_adapter_entry *e)
{
    const struct ps_param_info *info = &ps_trainer_params(t)->param[e->param_idx];
    enum ps_role role = (enum ps_role)((int)info->role - (int)PS_ROLE_Q_BIAS);
    int64_t out;
    int64_t in;
    ps_linear_shape(ps_trainer_config(t), role, &out, &in);
    for (int f = 0; f < 2; f++) {
        struct piece *x = &p->item[p->count++];
        *x = (struct piece){.rank = 2, .n = (size_t)(f ? out : in)};
        x->shape[0] = f ? out : 1;
        x->shape[1] = f ? 1 : in;
        char path[PS_SITE_PATH_MAX];
        ps_site_path(path, info->layer, role);
        PS_IGNORE(snprintf(x->name, sizeof x->name, KEY_PREFIX "%s.lora_%c.weight", path,
                           f ? 'B' : 'A') < 0,
                  "fits");
    }
}

static void pieces_fini(struct pieces *p)
{
    free(p->item);
    free(p->fold[0]);
    free(p->fold[1]);
    free(p->want);
    free(p->got);
    free(p->turned);
}

/* The tensors of a file; `folded` those for PEFT where the method has none of its own there. */
static int pieces_init(struct pieces *p, const struct ps_trainer *t, bool folded,
                       struct ps_error *err)
{
    int32_t n_layer = ps_trainer_config(t)->n_layer;
    size_t sites = ps_site_count(n_layer);
    size_t entries = ps_trainer_adapter_count(t);
    memset(p, 0, sizeof *p);
    const struct ps_adapter_ops *ops = ps_trainer_adapter_ops(t);
    p->item = calloc(3 * entries + 2 * sites, sizeof *p->item);
    if (!p->item)
        return ps_error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < entries; i++) {
        const struct ps_adapter_entry *e = ps_trainer_adapter_at(t, i);
        if (!folded || e->param_idx >= 0)
            add_entry(p, e);
        if (folded && ops->vector)
            add_zeros(p, t, e);
    }
    for (size_t i = 0; folded && i < sites; i++) {
        int32_t layer;
        enum ps_role role;
        ps_site_at(n_layer, i, &layer, &role);
        const struct ps_adapter_site *s = ps_trainer_site(t, layer, role);
        if (s)
            add_factors(p, s);
    }
    size_t most[3] = {1, 1, 1};
    size_t turned = 0;
    for (size_t i = 0; i < p->count; i++) {
        const struct piece *x = &p->item[i];
        int kind = x->site ? x->factor : x->entry ? 2 : 0;
        most[kind] = x->n > most[kind] ? x->n : most[kind];
        most[2] = x->n > most[2] ? x->n : most[2];
        turned = x->entry && x->entry->transposed && x->n > turned ? x->n : turned;
    }
    for (int f = 0; folded && f < 2; f++)
        p->fold[f] = calloc(most[f], sizeof(float));
    p->want = malloc(most[2] * sizeof(float));
    p->got = malloc(most[2] * sizeof(float));
    p->turned = malloc((turned + 1) * sizeof(float));
    bool ok = p->want && p->got && p->turned && (!folded || (p->fold[0] && p->fold[1]));
    return ok ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
}

/* Its value as fp32. */
static const float *piece_value(struct pieces *p, const struct piece *x)
{
    if (x->entry && !x->entry->transposed)
        return x->entry->value;
    if (x->entry) {
        if (p->in_turned != x->entry)
            transpose(p->turned, x->entry->value, x->entry->shape[0], x->entry->shape[1]);
        p->in_turned = x->entry;
        return p->turned;
    }
    if (x->site && p->folded != x->site) {
        struct ps_lowrank v = ps_peft_method_of(x->site->ops)->view(x->site);
        ps_lowrank_fold(x->site, &v, p->fold[0], p->fold[1]);
        p->folded = x->site;
    }
    return p->fold[x->factor];
}

static int write_pieces(const char *path, struct pieces *p, enum ps_dtype dtype,
                        struct ps_error *err)
{
    struct ps_st_spec *spec = calloc(p->count, sizeof *spec);
    if (!spec)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < p->count; i++) {
        const struct piece *x = &p->item[i];
        spec[i] = (struct ps_st_spec){
            .name = x->name, .dtype = dtype, .rank = x->rank, .shape = {x->shape[0], x->shape[1]}};
        ret = check_finite(x->name, piece_value(p, x), x->n, dtype, err);
    }
    struct ps_st_writer *w = NULL;
    if (ret == 0)
        ret = ps_st_writer_create(&w, path, spec, p->count, err);
    free(spec);
    for (size_t i = 0; ret == 0 && i < p->count; i++) {
        const struct piece *x = &p->item[i];
        ps_dtype_convert(p->want, dtype, piece_value(p, x), PS_DTYPE_F32, x->n);
        ret = ps_st_writer_append(w, p->want, x->n * ps_dtype_size(dtype), err);
    }
    if (ret == 0)
        return ps_st_writer_close(w, err);
    ps_st_writer_abort(w);
    return ret;
}

static int not_as_written(const char *path, struct ps_error *err)
{
    return ps_error_full(err, PS_ECHECKSUM, path, NULL, "check the disk and save again",
                         "the saved adapter does not read back as it was written");
}

static int verify_pieces(const char *path, struct pieces *p, enum ps_dtype dtype,
                         struct ps_error *err)
{
    struct ps_st_file *f = NULL;
    int ret = ps_st_open(&f, path, err);
    if (ret < 0)
        return ret;
    bool same = ps_st_count(f) == p->count;
    for (size_t i = 0; ret == 0 && same && i < p->count; i++) {
        const struct piece *x = &p->item[i];
        const struct ps_st_tensor *s = ps_st_find(f, x->name);
        same = s && (size_t)s->elements == x->n;
        if (!same)
            break;
        ret = ps_st_read_as(f, s, PS_DTYPE_F32, p->got, err);
        ps_dtype_convert(p->want, dtype, piece_value(p, x), PS_DTYPE_F32, x->n);
        if (dtype == PS_DTYPE_BF16) {
            const uint16_t *h = (const uint16_t *)p->want;
            for (size_t j = 0; j < x->n; j++)
                same &= ps_bf16_to_f32(h[j]) == p->got[j];
        } else {
            same = memcmp(p->want, p->got, x->n * sizeof(float)) == 0;
        }
    }
    ps_st_close(f);
    return ret == 0 && !same ? not_as_written(path, err) : ret;
}

static bool same_config(const struct ps_adapter_config *a, const struct ps_adapter_config *b)
{
    return a->r == b->r && fabs(a->alpha - b->alpha) <= 1e-6 * b->alpha &&
           a->use_rslora == b->use_rslora;
}

/* The configuration gives what is in memory. */
static int verify_config(const char *dir, const struct ps_trainer *t, struct ps_error *err)
{
    const struct ps_model_config *model = ps_trainer_config(t);
    const struct ps_adapter_ops *ops = ps_trainer_adapter_ops(t);
    struct ps_adapter_config cfg = {0};
    size_t sites = ps_site_count(model->n_layer);
    bool *on = calloc(sites, sizeof *on);
    struct ps_adapter_config *each = calloc(sites, sizeof *each);
    int ret = on && each ? ps_adapter_dir_config(dir, model, &cfg, on, each, err)
                         : ps_error_set(err, -ENOMEM, "out of memory");
    const struct ps_adapter_config *mine = ps_trainer_adapter_config(t);
    bool same = ret == 0 && strcmp(cfg.method, ops->name) == 0 &&
                cfg.save_embed == mine->save_embed && cfg.save_head == mine->save_head &&
                cfg.bias == mine->bias;
    bool ranked = ps_peft_method_of(ops)->view != NULL;
    for (size_t i = 0; same && i < sites; i++) {
        int32_t layer;
        enum ps_role role;
        ps_site_at(model->n_layer, i, &layer, &role);
        const struct ps_adapter_site *s = ps_trainer_site(t, layer, role);
        same &= on[i] == (s != NULL) && (!s || !ranked || same_config(&each[i], s->config));
    }
    free(each);
    free(on);
    return ret == 0 && !same ? not_as_written(dir, err) : ret;
}

static int save_file(const char *path, const struct ps_trainer *t, bool folded, enum ps_dtype dtype,
                     struct ps_error *err)
{
    struct pieces p;
    int ret = pieces_init(&p, t, folded, err);
    if (ret == 0)
        ret = write_pieces(path, &p, dtype, err);
    if (ret == 0)
        ret = verify_pieces(path, &p, dtype, err);
    pieces_fini(&p);
    return ret;
}

int ps_adapter_dir_save(const char *dir, struct ps_trainer *t, const char *base_name,
                        enum ps_dtype dtype, struct ps_error *err)
{
    char weights[1024];
    char own[1024];
    int ret = join(weights, sizeof weights, dir, PS_ADAPTER_WEIGHTS_NAME, err);
    if (ret == 0)
        ret = join(own, sizeof own, dir, PS_ADAPTER_OWN_WEIGHTS_NAME, err);
    if (ret == 0)
        ret = save_file(weights, t, folds(t), dtype, err);
    if (ret == 0 && folds(t))
        ret = save_file(own, t, false, PS_DTYPE_F32, err);
    if (ret == 0)
        ret = ps_adapter_config_write(dir, t, base_name, err);
    return ret < 0 ? ret : verify_config(dir, t, err);
}
