/* The tensors of a checkpoint: optimizer.safetensors (NAME.exp_avg, NAME.remainder, ...), and
 * weights, adapters and states back into the trainer, wherever they lie. See checkpoint.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "optim/adamw.h"
#include "peft/adapters.h"
#include "runtime/base/file.h"
#include "runtime/model/safetensors.h"
#include "session/session_internal.h"

#define PATH_BYTES 4096
#define PIECE_ENTRIES ((size_t)1 << 20)

/* One entry of optimizer.safetensors. */
struct slot {
    char name[256];
    size_t idx; /* of the trained tensor */
    int part;
    enum ps_dtype dtype;
    int rank; /* that of the tensor where every element has its own, else 1 */
    int64_t shape[2];
    size_t n;
};

static bool is_full(const struct ps_session *s)
{
    return strcmp(s->opt->method, "full") == 0;
}

static int path_in(char path[PATH_BYTES], const char *dir, const char *name, struct ps_error *err)
{
    if (ps_path_join(path, PATH_BYTES, dir, name))
        return 0;
    return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
}

static bool has_remainder(const struct ps_trainable *x)
{
    return x->dtype == PS_DTYPE_BF16 && x->layout.remainder;
}

static struct slot *list_slots(struct ps_session *s, size_t *count)
{
    size_t n = ps_trainer_trainable_count(s->trainer);
    struct slot *list = calloc(n * (PS_OPTIMIZER_STATE_MAX + 1), sizeof *list);
    *count = 0;
    for (size_t i = 0; list && i < n; i++) {
        const struct ps_trainable *x = ps_trainer_trainable(s->trainer, i);
        for (int k = 0; k <= x->layout.state_count; k++) {
            bool rest = k == x->layout.state_count;
            if (rest && !has_remainder(x))
                continue;
            const struct ps_opt_state *state = &x->layout.state[k];
            struct slot *e = &list[(*count)++];
            e->idx = i;
            e->part = rest ? PS_PART_REMAINDER : k;
            e->dtype = rest ? PS_DTYPE_U16 : state->dtype;
            e->n = rest ? x->n : (size_t)ps_opt_state_bytes(state, x->n) / ps_dtype_size(e->dtype);
            bool each = rest || state->per == 1;
            e->rank = each ? x->rank : 1;
            e->shape[0] = each ? x->shape[0] : (int64_t)e->n;
            e->shape[1] = each ? x->shape[1] : 0;
            PS_IGNORE(snprintf(e->name, sizeof e->name, "%s.%s", x->name,
                               rest ? "remainder" : state->name) < 0,
                      "names are short");
        }
    }
    return list;
}

/* A part in pieces; one by block or by tensor whole, since it is small. */
static int append(struct ps_session *s, struct ps_st_writer *w, const struct slot *e,
                  struct ps_error *err)
{
    size_t size = ps_dtype_size(e->dtype);
    size_t most = e->n < PIECE_ENTRIES ? e->n : PIECE_ENTRIES;
    unsigned char *piece = malloc(most * size + 1);
    int ret = piece ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    for (size_t at = 0; ret == 0 && at < e->n; at += most) {
        size_t n = e->n - at < most ? e->n - at : most;
        ret = ps_trainer_part_read(s->trainer, e->idx, e->part, at, n, piece, err);
        if (ret == 0)
            ret = ps_st_writer_append(w, piece, n * size, err);
    }
    free(piece);
    return ret;
}

int ps__write_optimizer(struct ps_session *s, const char *dir, struct ps_error *err)
{
    char path[PATH_BYTES];
    int ret = path_in(path, dir, "optimizer.safetensors", err);
    if (ret < 0)
        return ret;
    size_t count;
    struct slot *list = list_slots(s, &count);
    struct ps_st_spec *spec = calloc(count + 1, sizeof *spec);
    struct ps_st_writer *w = NULL;
    ret = list && spec ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; ret == 0 && i < count; i++)
        spec[i] = (struct ps_st_spec){.name = list[i].name,
                                      .dtype = list[i].dtype,
                                      .rank = list[i].rank,
                                      .shape = {list[i].shape[0], list[i].shape[1]}};
    if (ret == 0)
        ret = ps_st_writer_create(&w, path, spec, count, err);
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = append(s, w, &list[i], err);
    if (ret == 0)
        ret = ps_st_writer_close(w, err);
    else
        ps_st_writer_abort(w);
    free(spec);
    free(list);
    return ret;
}

/* --- back --- */

struct source {
    struct ps_session *s;
    const char *dir;
    struct ps_st_file *optimizer;
    struct ps_st_set *model; /* full training; else NULL: adapters are read apart */
    bool average;            /* NAME.ema in place of weights */
};

static int bad(const struct source *f, const char *name, struct ps_error *err)
{
    return ps_error_full(err, PS_EFORMAT, f->dir, name, "resume from another checkpoint",
                         "the checkpoint has no tensor %s of the right size and type", name);
}

/* Weights from the average, rounded as the master is; a remainder that belongs to them. */
static int get_average(const struct source *f, size_t idx, int part, size_t begin, size_t n,
                       void *out, struct ps_error *err)
{
    const struct ps_trainable *x = ps_trainer_trainable(f->s->trainer, idx);
    char name[256];
    PS_IGNORE(snprintf(name, sizeof name, "%s.ema", x->name) < 0, "names are short");
    const struct ps_st_tensor *t = ps_st_find(f->optimizer, name);
    if (!t || (size_t)t->elements != x->n || t->dtype != PS_DTYPE_F32)
        return bad(f, name, err);
    size_t most = n < PIECE_ENTRIES ? n : PIECE_ENTRIES;
    float *piece = malloc(most * sizeof *piece + 1);
    int ret = piece ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    for (size_t at = 0; ret == 0 && at < n; at += most) {
        size_t count = n - at < most ? n - at : most;
        ret = ps_st_read(f->optimizer, t, (begin + at) * sizeof *piece, count * sizeof *piece,
                         piece, err);
        if (ret == 0 && part == PS_PART_WEIGHT && !has_remainder(x))
            ps_dtype_convert((char *)out + at * ps_dtype_size(x->dtype), x->dtype, piece,
                             PS_DTYPE_F32, count);
        for (size_t i = 0; ret == 0 && has_remainder(x) && i < count; i++) {
            uint16_t split[2];
            ps_master_split(piece[i], &split[0], &split[1]);
            ((uint16_t *)out)[at + i] = split[part == PS_PART_REMAINDER];
        }
    }
    free(piece);
    return ret;
}

static int get_part(void *arg, size_t idx, int part, size_t begin, size_t n, void *out,
                    struct ps_error *err)
{
    const struct source *f = arg;
    const struct ps_trainable *x = ps_trainer_trainable(f->s->trainer, idx);
    const struct ps_st_file *file = f->optimizer;
    const struct ps_st_tensor *t;
    char name[256];
    enum ps_dtype dtype = part >= 0                   ? x->layout.state[part].dtype
                          : part == PS_PART_REMAINDER ? PS_DTYPE_U16
                                                      : x->dtype;
    size_t all =
        part >= 0 ? (size_t)ps_opt_state_bytes(&x->layout.state[part], x->n) / ps_dtype_size(dtype)
                  : x->n;
    if (f->average && part < 0)
        return get_average(f, idx, part, begin, n, out, err);
    if (part == PS_PART_WEIGHT && !f->model)
        return 0;
    PS_IGNORE(snprintf(name, sizeof name, "%s%s%s", x->name, part == PS_PART_WEIGHT ? "" : ".",
                       part == PS_PART_WEIGHT      ? ""
                       : part == PS_PART_REMAINDER ? "remainder"
                                                   : x->layout.state[part].name) < 0,
              "names are short");
    t = part == PS_PART_WEIGHT ? ps_st_set_find(f->model, name, &file)
                               : ps_st_find(f->optimizer, name);
    if (!t || (size_t)t->elements != all || t->dtype != (int)dtype)
        return bad(f, name, err);
    size_t size = ps_dtype_size(dtype);
    return ps_st_read(file, t, begin * size, n * size, out, err);
}

static int read_tensors(struct ps_session *s, const char *dir, bool average, struct ps_error *err)
{
    char path[PATH_BYTES];
    struct source f = {.s = s, .dir = dir, .average = average};
    int ret = ps_trainer_pull(s->trainer, err);
    if (ret == 0)
        ret = path_in(path, dir, "optimizer.safetensors", err);
    if (ret == 0 && !is_full(s))
        ret = ps_adapter_dir_load(dir, s->trainer, err);
    if (ret == 0)
        ret = ps_st_open(&f.optimizer, path, err);
    if (ret == 0 && is_full(s))
        ret = ps_st_set_open(&f.model, dir, err);
    if (ret == 0)
        ret = ps_trainer_put_parts(s->trainer, get_part, &f, err);
    ps_st_set_close(f.model);
    ps_st_close(f.optimizer);
    return ret;
}

int ps__read_tensors(struct ps_session *s, const char *dir, struct ps_error *err)
{
    return read_tensors(s, dir, false, err);
}

int ps__read_average(struct ps_session *s, const char *dir, struct ps_error *err)
{
    return read_tensors(s, dir, true, err);
}
