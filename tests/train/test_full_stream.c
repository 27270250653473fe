/* Full fine-tuning with updates streamed through the tiers, against the resident trainer, bit for
 * bit: losses, norms, weights, remainders and moments, whatever the layout; with clipping that
 * bites and one that does not, a step that is not finite, windows of several micro-batches with an
 * uneven last one, tied weights, evaluation in the middle, and going on from the store. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "optim/optimizers.h"
#include "tests/helpers/stream_io.h"
#include "tests/helpers/tiny_model.h"

#include "tests/helpers/full_plan.h"

enum { LAYERS = 3, HIDDEN = 64, INTER = 96, VOCAB = TINY_VOCAB, STEPS = 4 };

struct model {
    const char *dir;
    bool tied;
    enum ps_dtype stored, run;
};

static void write_model(const struct model *m)
{
    char text[1024];
    char path[256];
    struct ps_error err = {0};
    struct ps_model_config cfg;
    struct ps_param_table table;
    struct ps_st_writer *w;
    int len = snprintf(text, sizeof text,
                       "{\"model_type\":\"llama\",\"hidden_size\":%d,\"intermediate_size\":%d,"
                       "\"num_hidden_layers\":%d,\"num_attention_heads\":4,"
                       "\"num_key_value_heads\":2,\"vocab_size\":%d,\"rms_norm_eps\":1e-5,"
                       "\"tie_word_embeddings\":%s,\"hidden_act\":\"silu\",\"bos_token_id\":1,"
                       "\"eos_token_id\":2,\"max_position_embeddings\":64,\"rope_theta\":100.0}",
                       HIDDEN, INTER, LAYERS, VOCAB, m->tied ? "true" : "false");
    assert_int_equal(ps_file_make_dirs(m->dir, &err), 0);
    snprintf(path, sizeof path, "%s/config.json", m->dir);
    assert_int_equal(ps_file_write(path, text, (size_t)len, &err), 0);
    assert_int_equal(ps_model_config_parse(&cfg, text, (size_t)len, path, &err), 0);
    assert_int_equal(ps_param_table_create(&table, &cfg), 0);
    struct ps_st_spec *spec = calloc(table.count, sizeof *spec);
    assert_non_null(spec);
    for (size_t i = 0; i < table.count; i++)
        spec[i] = (struct ps_st_spec){.name = table.param[i].name,
                                      .dtype = m->stored,
                                      .rank = table.param[i].rank,
                                      .shape = {table.param[i].shape[0], table.param[i].shape[1]}};
    snprintf(path, sizeof path, "%s/model.safetensors", m->dir);
    assert_int_equal(ps_st_writer_create(&w, path, spec, table.count, &err), 0);
    for (size_t i = 0; i < table.count; i++) {
        const struct ps_param_info *p = &table.param[i];
        float *x = malloc(p->elements * sizeof *x);
        void *raw = malloc(p->elements * sizeof *x);
        assert_true(x && raw);
        tiny_fill(x, p->elements, 100 + i, p->rank == 1 ? 1.0f : 0.0f, p->rank == 1 ? 0.3f : 0.15f);
        ps_dtype_convert(raw, m->stored, x, PS_DTYPE_F32, p->elements);
        assert_int_equal(ps_st_writer_append(w, raw, p->elements * ps_dtype_size(m->stored), &err),
                         0);
        free(raw);
        free(x);
    }
    assert_int_equal(ps_st_writer_close(w, &err), 0);
    free(spec);
    ps_param_table_fini(&table);
}

/* A run: what it shows and what it leaves. */
struct outcome {
    double loss[STEPS], norm[STEPS], eval;
    float coef[STEPS];
    uint64_t redo;
    unsigned char *bytes; /* weights, remainders, states of all trained tensors */
    size_t n;
};

struct setting {
    const struct model *m;
    double max_norm;
    enum ps_clip_mode clip;
    int nan_step; /* < 0: none */
    int stop;     /* steps before the run is left and gone on with from its store; 0: never */
    int grad_accum;
};

/* Set: some gradient is not finite, as far as the norm can tell. */
static bool poisoned;

static bool clip_with_nan(const double *partial, size_t count, double max_norm, double *norm,
                          float *coef)
{
    bool finite = tiny_clip(partial, count, max_norm, norm, coef);
    return finite && !poisoned;
}

static void collect(struct ps_trainer *t, struct outcome *out)
{
    struct ps_error err = {0};
    out->n = 0;
    out->bytes = NULL;
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        for (int part = PS_PART_WEIGHT; part < x->layout.state_count; part++) {
            if (part == PS_PART_REMAINDER && x->dtype != PS_DTYPE_BF16)
                continue;
            size_t size = part >= 0 ? 4 : part == PS_PART_REMAINDER ? 2 : ps_dtype_size(x->dtype);
            out->bytes = realloc(out->bytes, out->n + x->n * size);
            assert_non_null(out->bytes);
            if (ps_trainer_part_read(t, i, part, 0, x->n, out->bytes + out->n, &err) < 0)
                fail_msg("%s: %s", x->name, err.message);
            out->n += x->n * size;
        }
    }
}

static struct ps_trainer *open_trainer(const struct setting *s, const struct full_plan *p,
                                       struct stream_io *io)
{
    struct ps_trainer *t = NULL;
    struct ps_error err = {0};
    struct ps_trainer_options o = tiny_options(s->m->dir, PS_MODE_FULL);
    o.dtype = s->m->run;
    o.optimizer = &ps_adamw_ops;
    o.hyper.weight_decay = 0.01;
    o.n_tok_max = 16;
    o.micro_max = s->grad_accum;
    o.max_grad_norm = s->max_norm;
    o.clip_mode = s->clip;
    o.clip = clip_with_nan;
    o.thread_count = 2;
    o.granule_elements = 4096;
    o.device = ps_device_find(p->emu ? "emu" : "cpu");
    o.io = stream_io_ops(io);
    if (ps_trainer_create(&t, &o, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    full_plan_set(t, p);
    return t;
}

static void commit(struct ps_trainer *t, const struct full_plan *p)
{
    struct ps_error err = {0};
    if (ps_trainer_commit(t, &err) < 0)
        fail_msg("%s: %s (%s)", p->name, err.message, err.field);
}

/* Leave the run as a kill after a commit would, and go on under another layout. */
static struct ps_trainer *go_on(const struct setting *s, const struct full_plan *p,
                                struct stream_io *io, struct ps_trainer *t,
                                struct ps_spill_store **store, int done)
{
    struct ps_error err = {0};
    const char *dir = "store";
    uint64_t updates = ps_trainer_updates(t);
    double norm = ps_trainer_norm_before(t);
    void *state = NULL;
    size_t bytes;
    if (ps_trainer_map(t)->commits)
        assert_int_equal(ps_trainer_settle(t, &err), 0);
    else
        assert_int_equal(ps_trainer_store_commit(t, "x", 1, &err), 0);
    assert_true((int)ps_spill_store_state(*store)->ops->generation(ps_spill_store_state(*store)) >=
                (ps_trainer_map(t)->commits ? done : 1));
    ps_trainer_destroy(t);
    ps_spill_store_close(*store);
    stream_io_close(io);
    t = open_trainer(s, p, io);
    uint32_t count;
    const struct ps_store_extent *e = ps_trainer_store_extents(t, &count);
    struct ps_spill_store_options o = {.path = &dir,
                                       .path_count = 1,
                                       .run_uuid = "01234567-89ab-cdef-0123-456789abcdef",
                                       .extent = e,
                                       .extent_count = count,
                                       .open = ps_storage_open_threads};
    if (ps_spill_store_open(store, &o, &state, &bytes, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    free(state);
    ps_trainer_set_store(t, ps_spill_store_state(*store));
    commit(t, p);
    ps_trainer_set_updates(t, updates);
    ps_trainer_set_norm_before(t, norm);
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++)
        ps_trainer_trainable(t, i)->t = updates;
    return t;
}

/* `then`: the layout to go on with after s->stop steps. */
static struct outcome run(const struct setting *s, const struct full_plan *p,
                          const struct full_plan *then)
{
    struct outcome out = {0};
    struct stream_io io = {.backend = "threads", .dir = "spill"};
    struct ps_error err = {0};
    struct tiny_rows rows;
    struct ps_batcher *b = NULL;
    struct ps_batch_options o = {
        .batch_size = 1, .grad_accum = s->grad_accum, .max_seq_len = 16, .epochs = 4};
    int64_t labels;
    int64_t tokens;
    tiny_rows_make(&rows, 5); /* 5 rows by 2 or 3: the last window of an epoch is smaller */
    assert_int_equal(ps_batcher_create(&b, &rows.ds, &o, &err), 0);
    struct ps_trainer *t = open_trainer(s, p, &io);
    struct ps_spill_store *store = full_store_create(t, "store", PS_SPILL_SHADOW);
    commit(t, p);
    for (int i = 0; i < STEPS; i++) {
        struct ps_trainer_stats st;
        poisoned = i == s->nan_step;
        if (s->stop > 0 && i == s->stop && then)
            t = go_on(s, then, &io, t, &store, i);
        if (ps_trainer_step(t, b, (uint64_t)i, &st, &err) < 0)
            fail_msg("%s: %s", p->name, err.message);
        out.loss[i] = st.loss;
        out.norm[i] = st.grad_norm;
        out.coef[i] = st.clip_coef;
        assert_int_equal(st.skipped, i == s->nan_step);
        out.redo += st.redo_bytes;
        if (i == 1)
            assert_int_equal(ps_trainer_eval(t, b, &out.eval, &labels, &tokens, &err), 0);
    }
    assert_int_equal(ps_trainer_settle(t, &err), 0);
    collect(t, &out);
    ps_trainer_destroy(t);
    assert_int_equal(ps_spill_store_remove(store, &err), 0);
    stream_io_close(&io);
    ps_batcher_destroy(b);
    return out;
}

static void compare(const struct outcome *want, const struct outcome *got, const char *name)
{
    for (int i = 0; i < STEPS; i++)
        if (got->loss[i] != want->loss[i] || got->norm[i] != want->norm[i] ||
            got->coef[i] != want->coef[i])
            fail_msg("%s: step %d: loss %.17g, norm %.17g, coef %.9g; resident %.17g, %.17g, %.9g",
                     name, i, got->loss[i], got->norm[i], (double)got->coef[i], want->loss[i],
                     want->norm[i], (double)want->coef[i]);
    assert_true(got->eval == want->eval);
    assert_int_equal(got->n, want->n);
    for (size_t i = 0; i < got->n; i++)
        if (got->bytes[i] != want->bytes[i])
            fail_msg("%s: byte %zu of %zu of weights and states differs", name, i, got->n);
}

static const struct full_plan resident = {.name = "resident",
                                          .weights = "nnnnn",
                                          .states = "nnnnn",
                                          .grads = "nnnnn",
                                          .boundary = "nnn",
                                          .keep = "kkk",
                                          .group = 1,
                                          .x_ring = 1};

static const struct full_plan streamed[] = {
    {.name = "after, all in memory",
     .weights = "nnnnn",
     .states = "nnnnn",
     .grads = "nnnnn",
     .boundary = "nnn",
     .keep = "kkk",
     .group = 1,
     .x_ring = 1,
     .update = PS_UPDATE_AFTER},
    {.name = "after, states on disk",
     .weights = "nnnnn",
     .states = "ddddd",
     .grads = "nnnnn",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 1,
     .x_ring = 1,
     .state_slots = 2,
     .update = PS_UPDATE_AFTER},
    {.name = "horizontal, all on disk",
     .weights = "ndddd",
     .states = "ddddd",
     .grads = "ndddn",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 1,
     .near_slots = 1,
     .x_ring = 1,
     .grad_slots = 1,
     .grad_ring = 2,
     .state_slots = 1,
     .update = PS_UPDATE_AFTER},
    {.name = "layer-major, all on disk, embedding and head too",
     .weights = "ddddd",
     .states = "ddddd",
     .grads = "ddhdd",
     .boundary = "dnd",
     .keep = "1k2",
     .saved = "ddd",
     .saved_ring = 3,
     .group = 3,
     .near_slots = 2,
     .x_ring = 5,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 3,
     .update = PS_UPDATE_AFTER},
    {.name = "inside",
     .weights = "ndddn",
     .states = "ddddd",
     .grads = "hhdhd",
     .boundary = "dnn",
     .keep = "3k1",
     .saved = "ndn",
     .saved_ring = 1,
     .group = 3,
     .near_slots = 2,
     .x_ring = 5,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 3,
     .update = PS_UPDATE_INSIDE},
    {.name = "inside, weights near",
     .weights = "nnnnn",
     .states = "ddddd",
     .grads = "nnnnn",
     .boundary = "nnn",
     .keep = "21r",
     .group = 3,
     .x_ring = 3,
     .state_slots = 2,
     .update = PS_UPDATE_INSIDE},
    {.name = "some inside, some next forward",
     .weights = "ddddn",
     .states = "ddddd",
     .grads = "ndhdn",
     .boundary = "dnn",
     .keep = "rkr",
     .group = 3,
     .near_slots = 2,
     .x_ring = 6,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 3,
     .update = PS_UPDATE_INSIDE,
     .deferred = 1},
    {.name = "one inside, the others next forward",
     .weights = "nnnnn",
     .states = "ddddd",
     .grads = "ddhdh",
     .boundary = "dnn",
     .keep = "rkr",
     .group = 3,
     .x_ring = 6,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 40,
     .update = PS_UPDATE_INSIDE,
     .deferred = 2},
    {.name = "inside, gradients kept nowhere",
     .weights = "ndddd",
     .states = "ddddd",
     .grads = "nnnnn",
     .boundary = "dnn",
     .keep = "rkr",
     .group = 3,
     .near_slots = 2,
     .x_ring = 5,
     .grad_slots = 2,
     .state_slots = 3,
     .update = PS_UPDATE_INSIDE},
    {.name = "inside, kept nowhere but where deferred",
     .weights = "ndddd",
     .states = "ddddd",
     .grads = "nhnnn",
     .boundary = "dnn",
     .keep = "rkr",
     .group = 3,
     .near_slots = 2,
     .x_ring = 5,
     .grad_slots = 2,
     .state_slots = 3,
     .update = PS_UPDATE_INSIDE,
     .deferred = 1,
     .ends_own = true},
    {.name = "next forward",
     .weights = "ddddd",
     .states = "ddddd",
     .grads = "ddhdn",
     .boundary = "nnn",
     .keep = "k3r",
     .group = 3,
     .near_slots = 2,
     .x_ring = 3,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 3,
     .update = PS_UPDATE_NEXT_FORWARD},
    {.name = "next forward, states in memory",
     .weights = "nnnnn",
     .states = "nnnnn",
     .grads = "hhhhh",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 3,
     .x_ring = 3,
     .grad_slots = 1,
     .update = PS_UPDATE_NEXT_FORWARD},
    {.name = "emu: after, states in host memory",
     .weights = "nnnnn",
     .states = "hhhhh",
     .grads = "hhhhh",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 1,
     .x_ring = 1,
     .grad_slots = 1,
     .update = PS_UPDATE_AFTER,
     .emu = true},
    {.name = "emu: after, all over",
     .weights = "nhddn",
     .states = "dhddd",
     .grads = "hhdhh",
     .boundary = "hdn",
     .keep = "rkr",
     .group = 2,
     .near_slots = 2,
     .raw_slots = 2,
     .x_ring = 4,
     .host_ring = 2,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 2,
     .update = PS_UPDATE_AFTER,
     .emu = true},
    {.name = "emu: inside",
     .weights = "nddnd",
     .states = "ddddd",
     .grads = "hhdhh",
     .boundary = "hdn",
     .keep = "rkr",
     .group = 3,
     .near_slots = 1,
     .raw_slots = 2,
     .x_ring = 5,
     .host_ring = 2,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 2,
     .update = PS_UPDATE_INSIDE,
     .emu = true},
    {.name = "emu: some inside, some next forward",
     .weights = "nddnn",
     .states = "ddddd",
     .grads = "hhdhh",
     .boundary = "hdn",
     .keep = "rkr",
     .group = 3,
     .near_slots = 1,
     .raw_slots = 2,
     .x_ring = 5,
     .host_ring = 2,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 5,
     .update = PS_UPDATE_INSIDE,
     .deferred = 1,
     .emu = true},
    {.name = "emu: next forward",
     .weights = "dhddd",
     .states = "dhddd",
     .grads = "dhdhd",
     .boundary = "nnn",
     .keep = "rkr",
     .group = 3,
     .near_slots = 2,
     .raw_slots = 2,
     .x_ring = 3,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 2,
     .update = PS_UPDATE_NEXT_FORWARD,
     .emu = true},
};

/* Layouts that take a step in one pass need a group as large as its micro-batches. */
static bool fits(const struct full_plan *p, const struct setting *s)
{
    bool pinned = p->weights[0] == 'n' || !s->m->tied;
    bool dropped = p->grad_slots > 0 && p->grads[LAYERS] == 'n';
    if (dropped && (s->clip == PS_CLIP_EXACT || s->m->tied))
        return false; /* nothing to do it again from */
    return pinned && (p->update == PS_UPDATE_AFTER || p->group >= s->grad_accum);
}

static void all_layouts(const struct setting *s)
{
    write_model(s->m);
    struct outcome want = run(s, &resident, NULL);
    assert_true(want.loss[0] > 0 && want.norm[0] > 0);
    for (size_t i = 0; i < sizeof streamed / sizeof *streamed; i++) {
        if (!fits(&streamed[i], s))
            continue;
        size_t next = (i + 5) % (sizeof streamed / sizeof *streamed);
        while (!fits(&streamed[next], s) || streamed[next].emu != streamed[i].emu)
            next = (next + 1) % (sizeof streamed / sizeof *streamed);
        struct outcome got = run(s, &streamed[i], &streamed[next]);
        compare(&want, &got, streamed[i].name);
        bool inside = streamed[i].update == PS_UPDATE_INSIDE;
        bool taken_back = inside && s->clip == PS_CLIP_EXACT && want.coef[0] < 1;
        if (s->stop == 0 && s->nan_step < 0)
            assert_int_equal(got.redo > 0, taken_back);
        free(got.bytes);
    }
    free(want.bytes);
}

static const struct model bf16 = {"bf16", false, PS_DTYPE_BF16, PS_DTYPE_BF16};
static const struct model tied = {"tied", true, PS_DTYPE_F32, PS_DTYPE_BF16};
static const struct model tied32 = {"tied32", true, PS_DTYPE_F32, PS_DTYPE_F32};
static const struct model fp32 = {"fp32", false, PS_DTYPE_F32, PS_DTYPE_F32};

static void streamed_updates_give_the_bits_of_resident_ones(void **state)
{
    (void)state;
    all_layouts(&(struct setting){.m = &bf16, .max_norm = 1e6, .nan_step = -1, .grad_accum = 3});
}

static void clipping_that_bites_gives_the_same_bits(void **state)
{
    (void)state;
    all_layouts(&(struct setting){.m = &bf16, .max_norm = 0.05, .nan_step = -1, .grad_accum = 2});
}

static void tied_weights_give_the_same_bits(void **state)
{
    (void)state;
    all_layouts(&(struct setting){.m = &tied, .max_norm = 0.05, .nan_step = -1, .grad_accum = 3});
}

/* No rounding hides in what order the head's part and that of looking up were added. */
static void tied_weights_in_fp32_give_the_same_bits(void **state)
{
    (void)state;
    all_layouts(&(struct setting){.m = &tied32, .max_norm = 1, .nan_step = -1, .grad_accum = 3});
}

static void fp32_gives_the_same_bits(void **state)
{
    (void)state;
    all_layouts(&(struct setting){.m = &fp32, .max_norm = 1, .nan_step = -1, .grad_accum = 1});
}

static void a_step_that_is_not_finite_changes_nothing(void **state)
{
    (void)state;
    all_layouts(&(struct setting){.m = &bf16, .max_norm = 0.05, .nan_step = 2, .grad_accum = 2});
    all_layouts(&(struct setting){
        .m = &bf16, .max_norm = 1, .clip = PS_CLIP_NONE, .nan_step = 1, .grad_accum = 2});
}

static void delayed_clipping_gives_the_same_bits(void **state)
{
    (void)state;
    all_layouts(&(struct setting){
        .m = &bf16, .max_norm = 0.05, .clip = PS_CLIP_DELAYED, .nan_step = 2, .grad_accum = 2});
}

static void clipping_by_tensor_gives_the_same_bits(void **state)
{
    (void)state;
    all_layouts(&(struct setting){
        .m = &fp32, .max_norm = 0.05, .clip = PS_CLIP_PER_TENSOR, .nan_step = -1, .grad_accum = 2});
}

static void a_run_goes_on_from_its_store_under_any_other_layout(void **state)
{
    (void)state;
    all_layouts(
        &(struct setting){.m = &bf16, .max_norm = 0.05, .nan_step = 3, .stop = 2, .grad_accum = 2});
    all_layouts(
        &(struct setting){.m = &tied, .max_norm = 1e6, .nan_step = -1, .stop = 1, .grad_accum = 3});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streamed_updates_give_the_bits_of_resident_ones),
        cmocka_unit_test(clipping_that_bites_gives_the_same_bits),
        cmocka_unit_test(tied_weights_give_the_same_bits),
        cmocka_unit_test(tied_weights_in_fp32_give_the_same_bits),
        cmocka_unit_test(fp32_gives_the_same_bits),
        cmocka_unit_test(a_step_that_is_not_finite_changes_nothing),
        cmocka_unit_test(delayed_clipping_gives_the_same_bits),
        cmocka_unit_test(clipping_by_tensor_gives_the_same_bits),
        cmocka_unit_test(a_run_goes_on_from_its_store_under_any_other_layout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
