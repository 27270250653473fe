/* Tiny models, rows and trainers for tests. Include after cmocka.h. Everything is a function of
 * the arguments: fixed seeds. */
#ifndef PS_TESTS_HELPERS_TINY_MODEL_H
#define PS_TESTS_HELPERS_TINY_MODEL_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "optim/adamw.h"
#include "optim/grad_clip.h"
#include "runtime/base/file.h"
#include "runtime/model/safetensors.h"
#include "runtime/train/trainer.h"

struct tiny_model {
    const char *dir;
    const char *type; /* "llama" or "qwen3" */
    bool tied, bias;  /* bias: attention; with llama the feed-forward part too */
    enum ps_dtype dtype;
    int n_layer;
};

#define TINY_VOCAB 23
#define TINY_HIDDEN 12
#define TINY_INTER 20

static inline void tiny_fill(float *x, size_t n, uint64_t seed, float centre, float width)
{
    struct ps_rng_key key = {.seed = seed};
    for (size_t i = 0; i < n; i++)
        x[i] = centre + width * (2.0f * ps_rng_uniform(&key, i) - 1.0f);
}

static inline void tiny_config(const struct tiny_model *m, char *text, size_t size)
{
    int len = snprintf(text, size,
                       "{\"model_type\":\"%s\",\"hidden_size\":%d,\"intermediate_size\":%d,"
                       "\"num_hidden_layers\":%d,\"num_attention_heads\":4,"
                       "\"num_key_value_heads\":2,\"head_dim\":4,\"vocab_size\":%d,"
                       "\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":%s,\"attention_bias\":%s,"
                       "\"mlp_bias\":%s,\"hidden_act\":\"silu\",\"bos_token_id\":1,"
                       "\"eos_token_id\":2,\"max_position_embeddings\":64,\"rope_theta\":100.0}",
                       m->type, TINY_HIDDEN, TINY_INTER, m->n_layer, TINY_VOCAB,
                       m->tied ? "true" : "false", m->bias ? "true" : "false",
                       m->bias && strcmp(m->type, "llama") == 0 ? "true" : "false");
    assert_true(len > 0 && (size_t)len < size);
}

/* A model of this config: values on the grid of `grid`, stored as m->dtype. */
static inline void tiny_model_write_config(const struct tiny_model *m, const char *text,
                                           enum ps_dtype grid)
{
    char path[256];
    struct ps_error err = {0};
    struct ps_model_config cfg;
    struct ps_param_table table;
    assert_int_equal(ps_file_make_dirs(m->dir, &err), 0);
    snprintf(path, sizeof path, "%s/config.json", m->dir);
    assert_int_equal(ps_file_write(path, text, strlen(text), &err), 0);
    if (ps_model_config_parse(&cfg, text, strlen(text), path, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(ps_param_table_create(&table, &cfg), 0);
    struct ps_st_spec *spec = calloc(table.count, sizeof *spec);
    assert_non_null(spec);
    for (size_t i = 0; i < table.count; i++) {
        const struct ps_param_info *p = &table.param[i];
        spec[i] = (struct ps_st_spec){.name = p->name,
                                      .dtype = m->dtype,
                                      .rank = p->rank,
                                      .shape = {p->shape[0], p->shape[1]}};
    }
    struct ps_st_writer *w;
    snprintf(path, sizeof path, "%s/model.safetensors", m->dir);
    assert_int_equal(ps_st_writer_create(&w, path, spec, table.count, &err), 0);
    for (size_t i = 0; i < table.count; i++) {
        const struct ps_param_info *p = &table.param[i];
        bool norm = p->rank == 1 && strstr(p->name, "norm");
        float *x = malloc(p->elements * sizeof *x);
        void *raw = malloc(p->elements * sizeof *x);
        assert_non_null(x);
        assert_non_null(raw);
        tiny_fill(x, p->elements, 100 + i, norm ? 1.0f : 0.0f, norm ? 0.3f : 0.4f);
        ps_dtype_convert(raw, grid, x, PS_DTYPE_F32, p->elements);
        ps_dtype_convert(x, PS_DTYPE_F32, raw, grid, p->elements);
        ps_dtype_convert(raw, m->dtype, x, PS_DTYPE_F32, p->elements);
        assert_int_equal(ps_st_writer_append(w, raw, p->elements * ps_dtype_size(m->dtype), &err),
                         0);
        free(raw);
        free(x);
    }
    assert_int_equal(ps_st_writer_close(w, &err), 0);
    free(spec);
    ps_param_table_fini(&table);
}

static inline void tiny_model_write_grid(const struct tiny_model *m, enum ps_dtype grid)
{
    char text[1024];
    tiny_config(m, text, sizeof text);
    tiny_model_write_config(m, text, grid);
}

static inline void tiny_model_write(const struct tiny_model *m)
{
    tiny_model_write_grid(m, m->dtype);
}

/* Rows of 5, 9, 3, 7, ... tokens; every third label is ignored. */
struct tiny_rows {
    struct ps_dataset ds;
    uint64_t begin[9], line[8];
    int32_t ids[64], labels[64];
};

static inline void tiny_rows_make(struct tiny_rows *r, int rows)
{
    static const int len[] = {5, 9, 3, 7, 6, 4, 8, 5};
    struct ps_rng_key key = {.seed = 7};
    memset(r, 0, sizeof *r);
    assert_true(rows <= 8);
    for (int i = 0; i < rows; i++)
        r->begin[i + 1] = r->begin[i] + (uint64_t)len[i];
    for (uint64_t i = 0; i < r->begin[rows]; i++) {
        r->ids[i] = (int32_t)(ps_rng_u32(&key, i) % TINY_VOCAB);
        r->labels[i] = i % 3 == 2 ? PS_LABEL_IGNORE : r->ids[i];
    }
    r->ds = (struct ps_dataset){.row_count = (uint64_t)rows,
                                .row_begin = r->begin,
                                .ids = r->ids,
                                .labels = r->labels,
                                .row_line = r->line,
                                .format = PS_DATA_TOKENS,
                                .token_count = r->begin[rows]};
}

static inline bool tiny_clip(const double *partial, size_t count, double max_norm, double *norm,
                             float *coef)
{
    struct ps_grad_clip c;
    ps_grad_clip(&c, partial, count, max_norm);
    *norm = c.norm;
    *coef = c.coef;
    return c.finite;
}

static inline double tiny_lr(const void *arg, uint64_t completed)
{
    (void)arg;
    (void)completed;
    return 0.01;
}

static inline int tiny_no_state(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *x,
                                struct ps_opt_layout *out, struct ps_error *err)
{
    (void)h;
    (void)x;
    (void)err;
    *out = (struct ps_opt_layout){.granule = 1, .remainder = true};
    return 0;
}

static inline int tiny_no_update(const struct ps_update *u, struct ps_error *err)
{
    (void)u;
    (void)err;
    return 0;
}

/* Leaves weights alone, so that a step is a gradient. */
static const struct ps_optimizer_ops tiny_still = {
    .name = "still", .layout = tiny_no_state, .update = tiny_no_update};

static inline struct ps_trainer_options tiny_options(const char *dir, enum ps_train_mode mode)
{
    return (struct ps_trainer_options){.model_dir = dir,
                                       .mode = mode,
                                       .dtype = PS_DTYPE_F32,
                                       .isa = ps_isa_detect(),
                                       .thread_count = 1,
                                       .seed = 3,
                                       .optimizer = &tiny_still,
                                       .hyper = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8},
                                       .clip = tiny_clip,
                                       .lr_at = tiny_lr,
                                       .master_split = ps_master_split,
                                       .master_join = ps_master_join,
                                       .n_tok_max = 64,
                                       .doc_max = 16,
                                       .position_max = 32};
}

/* Everything resident; the saved sets kept, or recomputed. */
static inline struct ps_trainer *tiny_trainer_resident(const struct ps_trainer_options *opt,
                                                       bool recompute)
{
    struct ps_trainer *t = NULL;
    struct ps_error err = {0};
    struct ps_step_layout l = {0};
    if (ps_trainer_create(&t, opt, &err) < 0 || ps_step_layout_init(&l, ps_trainer_shape(t)) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    for (int32_t i = 0; i < ps_trainer_config(t)->n_layer; i++)
        l.recompute[i] = recompute ? PS_RECOMPUTE_R4 : PS_RECOMPUTE_R0;
    if (ps_trainer_set_layout(t, &l, &err) < 0 || ps_trainer_commit(t, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    ps_step_layout_fini(&l);
    return t;
}

static inline struct ps_trainer *tiny_trainer(const struct ps_trainer_options *opt)
{
    return tiny_trainer_resident(opt, false);
}

/* Random values in every adapter tensor: B too. */
static inline void tiny_randomise_adapters(struct ps_trainer *t)
{
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        if (strstr(x->name, ".lora_"))
            tiny_fill(x->weight, x->n, 900 + i, 0.0f, 0.4f);
    }
}

#endif
