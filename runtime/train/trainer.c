/* The training core, creation and access: see trainer.h. */
#include "runtime/train/trainer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/kernels/rope.h"
#include "runtime/model/weights.h"
#include "runtime/train/trainer_internal.h"

int ps_trainer_create(struct ps_trainer **out, const struct ps_trainer_options *opt,
                      struct ps_error *err)
{
    struct ps_trainer *t = calloc(1, sizeof *t);
    if (!t)
        return ps_error_set(err, -ENOMEM, "out of memory");
    t->opt = *opt;
    int ret = ps_model_config_load(&t->cfg, opt->model_dir, err);
    if (ret < 0)
        goto fail;
    ret = ps_param_table_create(&t->params, &t->cfg);
    if (ret < 0) {
        ps_error_set(err, ret, "out of memory");
        goto fail;
    }
    ret = ps_st_set_open(&t->files, opt->model_dir, err);
    if (ret < 0)
        goto fail;
    ret = ps_pool_create(&t->pool, opt->thread_count);
    if (ret < 0) {
        ps_error_full(err, ret, NULL, "threads", "lower --threads", "cannot start %d threads: %s",
                      opt->thread_count, ps_status_text(ret));
        goto fail;
    }
    t->cx = (struct ps_compute){.pool = t->pool,
                                .isa = opt->isa,
                                .dtype = opt->dtype,
                                .math = opt->dtype == PS_DTYPE_BF16 ? PS_GEMM_BF16 : PS_GEMM_F32};
    ret = ps_arena_create(&t->arena);
    if (ret < 0) {
        ps_error_set(err, ret, "out of memory");
        goto fail;
    }
    ret = ps__trainer_plan(t, err);
    if (ret < 0)
        goto fail;
    *out = t;
    return 0;

fail:
    ps_trainer_destroy(t);
    return ret;
}

static int load_weights(struct ps_trainer *t, struct ps_error *err)
{
    for (size_t i = 0; i < t->params.count; i++) {
        const struct ps_st_tensor *tensor;
        const struct ps_st_file *file;
        int ret =
            ps_weights_find(t->files, t->opt.model_dir, &t->params.param[i], &tensor, &file, err);
        if (ret < 0)
            return ret;
        ret = ps_weights_read(file, tensor, t->weight[i].data, t->weight[i].dtype, t->remainder[i],
                              t->opt.master_split, err);
        if (ret < 0)
            return ret;
    }
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < ps_st_set_file_count(t->files); i++)
        ret = ps_st_check_unchanged(ps_st_set_file(t->files, i), err);
    return ret;
}

int ps_trainer_commit(struct ps_trainer *t, struct ps_error *err)
{
    assert(!t->committed);
    int ret = ps_arena_commit(t->arena, err);
    if (ret < 0)
        return ret;
    t->committed = true;
    ps__trainer_bind(t);
    ret = load_weights(t, err);
    if (ret < 0)
        return ret;
    ps_st_set_close(t->files);
    t->files = NULL;
    size_t half = (size_t)t->cfg.head_dim / 2;
    ps_model_rope_inv_freq(&t->cfg, t->inv_freq);
    ps_rope_table(t->cos_sin, t->inv_freq, (size_t)t->opt.position_max, half);
    size_t sites = (size_t)t->cfg.n_layer * PS_LINEAR_COUNT;
    for (size_t i = 0; i < sites; i++)
        if (t->site[i].ops)
            t->site[i].ops->init(&t->site[i]);
    return 0;
}

void ps_trainer_destroy(struct ps_trainer *t)
{
    if (!t)
        return;
    ps_schedule_fini(&t->micro);
    ps_schedule_fini(&t->update);
    ps_schedule_fini(&t->eval);
    ps_arena_destroy(t->arena);
    ps_pool_destroy(t->pool);
    ps_st_set_close(t->files);
    ps_param_table_fini(&t->params);
    free(t->weight);
    free(t->remainder);
    free(t->grad);
    free(t->block);
    free(t->site);
    free(t->site_name);
    free(t->trainable);
    free(t->unit_bytes);
    free(t);
}

const struct ps_model_config *ps_trainer_config(const struct ps_trainer *t)
{
    return &t->cfg;
}

const struct ps_param_table *ps_trainer_params(const struct ps_trainer *t)
{
    return &t->params;
}

const struct ps_arena *ps_trainer_arena(const struct ps_trainer *t)
{
    return t->arena;
}

struct ps_pool *ps_trainer_pool(const struct ps_trainer *t)
{
    return t->pool;
}

const struct ps_adapter_config *ps_trainer_adapter_config(const struct ps_trainer *t)
{
    return &t->opt.adapter_config;
}

size_t ps_trainer_trainable_count(const struct ps_trainer *t)
{
    return t->trainable_count;
}

struct ps_trainable *ps_trainer_trainable(struct ps_trainer *t, size_t idx)
{
    assert(idx < t->trainable_count);
    return &t->trainable[idx];
}

uint64_t ps_trainer_trainable_elements(const struct ps_trainer *t)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < t->trainable_count; i++)
        sum += t->trainable[i].n;
    return sum;
}

const struct ps_adapter_site *ps_trainer_site(const struct ps_trainer *t, int32_t layer,
                                              enum ps_role role)
{
    assert((int)role < PS_LINEAR_COUNT);
    const struct ps_adapter_site *s = &t->site[(size_t)layer * PS_LINEAR_COUNT + (size_t)role];
    return s->ops ? s : NULL;
}

void ps_trainer_param_read(const struct ps_trainer *t, int32_t param_idx, size_t begin, size_t n,
                           float *out)
{
    const struct ps_weight *w = &t->weight[param_idx];
    const uint16_t *rest = t->remainder[param_idx];
    const unsigned char *from = (const unsigned char *)w->data + begin * ps_dtype_size(w->dtype);
    if (!rest) {
        ps_dtype_convert(out, PS_DTYPE_F32, from, w->dtype, n);
        return;
    }
    const uint16_t *hi = (const uint16_t *)w->data + begin;
    for (size_t i = 0; i < n; i++)
        out[i] = t->opt.master_join(hi[i], rest[begin + i]);
}

const struct ps_weight *ps_trainer_param(const struct ps_trainer *t, int32_t param_idx)
{
    return &t->weight[param_idx];
}

uint64_t ps_trainer_updates(const struct ps_trainer *t)
{
    return t->updates;
}

void ps_trainer_set_updates(struct ps_trainer *t, uint64_t updates)
{
    t->updates = updates;
}

bool ps__trainer_trains(const struct ps_trainer *t)
{
    return t->opt.mode != PS_MODE_NONE;
}
