/* Full fine-tuning through the tiers on the CUDA device: the bits of the resident run, whose
 * updates the device makes itself, under layouts whose updates the host makes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "optim/optimizers.h"
#include "tests/cuda/plugin_check.h"
#include "tests/helpers/full_plan.h"
#include "tests/helpers/tiny_model.h"

enum { LAYERS = 3, STEPS = 3 };

struct outcome {
    double loss[STEPS], norm[STEPS], eval;
    unsigned char *bytes; /* weights, remainders, states of all trained tensors */
    size_t n;
};

static const struct full_plan resident = {.name = "resident",
                                          .weights = "nnnnn",
                                          .states = "nnnnn",
                                          .grads = "nnnnn",
                                          .boundary = "nnn",
                                          .keep = "kkk",
                                          .group = 1,
                                          .x_ring = 1,
                                          .emu = true};

static const struct full_plan streamed[] = {{.name = "after, states in host memory",
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
                                            {.name = "after, all over",
                                             .weights = "nhddd",
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
                                            {.name = "inside",
                                             .weights = "nddnd",
                                             .states = "ddddd",
                                             .grads = "dhdhd",
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
                                            {.name = "some inside, some next forward",
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
                                            {.name = "next forward",
                                             .weights = "dhddd",
                                             .states = "dhddd",
                                             .grads = "dhdhh",
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
                                             .emu = true}};

static void write_model(const char *dir, enum ps_dtype dtype)
{
    static const char text[] =
        "{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":96,"
        "\"num_hidden_layers\":3,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
        "\"vocab_size\":23,\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":false,"
        "\"hidden_act\":\"silu\",\"bos_token_id\":1,\"eos_token_id\":2,"
        "\"max_position_embeddings\":64,\"rope_theta\":100.0}";
    struct tiny_model m = {.dir = dir, .dtype = dtype};
    tiny_model_write_config(&m, text, dtype);
}

static void collect(struct ps_trainer *t, struct outcome *out)
{
    struct ps_error err = {0};
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

static struct outcome run(const struct ps_cuda_plugin *plugin, const char *model,
                          enum ps_dtype dtype, double max_norm, const struct full_plan *p,
                          uint64_t delay_seed)
{
    struct outcome out = {0};
    struct stream_io io = {.backend = "threads", .dir = "spill"};
    struct ps_error err = {0};
    struct tiny_rows rows;
    struct ps_batcher *b = NULL;
    struct ps_batch_options bo = {.batch_size = 1, .grad_accum = 3, .max_seq_len = 16, .epochs = 4};
    struct ps_trainer_options o = tiny_options(model, PS_MODE_FULL);
    struct ps_trainer *t = NULL;
    int64_t labels;
    int64_t tokens;
    o.dtype = dtype;
    o.optimizer = &ps_adamw_ops;
    o.hyper.weight_decay = 0.01;
    o.n_tok_max = 16;
    o.micro_max = 3;
    o.max_grad_norm = max_norm;
    o.granule_elements = 4096;
    o.cuda = plugin;
    o.device = plugin->device;
    o.io = stream_io_ops(&io);
    o.delay_seed = delay_seed;
    o.delay_max_ns = delay_seed ? 500000 : 0;
    tiny_rows_make(&rows, 5); /* the last window of an epoch is smaller */
    assert_int_equal(ps_batcher_create(&b, &rows.ds, &bo, &err), 0);
    if (ps_trainer_create(&t, &o, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    full_plan_set(t, p);
    struct ps_spill_store *store = full_store_create(t, "store", PS_SPILL_SHADOW);
    if (ps_trainer_commit(t, &err) < 0)
        fail_msg("%s: %s (%s)", p->name, err.message, err.field);
    for (int i = 0; i < STEPS; i++) {
        struct ps_trainer_stats st;
        if (ps_trainer_step(t, b, (uint64_t)i, &st, &err) < 0)
            fail_msg("%s: %s", p->name, err.message);
        out.loss[i] = st.loss;
        out.norm[i] = st.grad_norm;
        if (i == 1)
            assert_int_equal(ps_trainer_eval(t, b, &out.eval, &labels, &tokens, &err), 0);
    }
    assert_int_equal(ps_trainer_settle(t, &err), 0);
    if (p == &resident)
        assert_int_equal(ps_trainer_pull(t, &err), 0);
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
        if (got->loss[i] != want->loss[i] || got->norm[i] != want->norm[i])
            fail_msg("%s: step %d: loss %.17g, norm %.17g; resident %.17g, %.17g", name, i,
                     got->loss[i], got->norm[i], want->loss[i], want->norm[i]);
    assert_true(got->eval == want->eval);
    assert_int_equal(got->n, want->n);
    for (size_t i = 0; i < got->n; i++)
        if (got->bytes[i] != want->bytes[i])
            fail_msg("%s: byte %zu of %zu of weights and states differs", name, i, got->n);
}

static void all_layouts(struct world *w, enum ps_dtype dtype, double max_norm)
{
    write_model("model", dtype);
    struct outcome want = run(w->plugin, "model", dtype, max_norm, &resident, 0);
    assert_true(want.loss[0] > 0 && want.norm[0] > 0);
    for (size_t i = 0; i < sizeof streamed / sizeof *streamed; i++) {
        struct outcome got = run(w->plugin, "model", dtype, max_norm, &streamed[i], i % 2 ? i : 0);
        compare(&want, &got, streamed[i].name);
        free(got.bytes);
    }
    free(want.bytes);
}

static void updates_of_the_host_give_the_bits_of_the_devices_in_bf16(void **state)
{
    all_layouts(*state, PS_DTYPE_BF16, 1e6);
}

static void and_with_clipping_that_bites_in_fp32(void **state)
{
    all_layouts(*state, PS_DTYPE_F32, 0.05);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(updates_of_the_host_give_the_bits_of_the_devices_in_bf16),
        cmocka_unit_test(and_with_clipping_that_bites_in_fp32),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
