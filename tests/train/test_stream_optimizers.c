/* Every optimizer of the registry under streamed layouts, against the resident trainer: losses,
 * norms, weights and remainders, bit for bit. States are seen through the weights of later steps.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <unistd.h>

#include "tests/helpers/stream_io.h"
#include "tests/helpers/tiny_model.h"
#include "tests/optim/optim_check.h"

#include "tests/helpers/full_plan.h"

enum { LAYERS = 3, STEPS = 4 };

static const struct full_plan plans[] = {
    {.name = "resident",
     .weights = "nnnnn",
     .states = "nnnnn",
     .grads = "nnnnn",
     .boundary = "nnn",
     .keep = "kkk",
     .group = 1,
     .x_ring = 1},
    {.name = "horizontal, all on disk",
     .weights = "ndddn",
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
    {.name = "next forward",
     .weights = "ddddn",
     .states = "ddddd",
     .grads = "ndhdn",
     .boundary = "nnn",
     .keep = "rkr",
     .group = 3,
     .near_slots = 2,
     .x_ring = 3,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 3,
     .update = PS_UPDATE_NEXT_FORWARD},
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
};
enum { PLANS = sizeof plans / sizeof plans[0] };

/* Methods without gradients: every micro-batch counts twice. */
static const struct full_plan zeroth_plans[] = {
    {.name = "resident",
     .weights = "nnnnn",
     .states = "nnnnn",
     .grads = "nnnnn",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 2,
     .x_ring = 2},
    {.name = "all on disk",
     .weights = "ddddn",
     .states = "ddddd",
     .grads = "nnnnn",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 4,
     .near_slots = 1,
     .x_ring = 4,
     .state_slots = 1,
     .update = PS_UPDATE_NEXT_FORWARD},
    {.name = "resident, both micro-batches in one pass",
     .weights = "nnnnn",
     .states = "nnnnn",
     .grads = "nnnnn",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 4,
     .x_ring = 4},
    {.name = "mixed, two pairs of images",
     .weights = "ndndn",
     .states = "ndddn",
     .grads = "nnnnn",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 6,
     .near_slots = 2,
     .x_ring = 6,
     .state_slots = 3,
     .image_pairs = 2,
     .update = PS_UPDATE_NEXT_FORWARD},
    {.name = "emu: resident",
     .weights = "nnnnn",
     .states = "nnnnn",
     .grads = "nnnnn",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 2,
     .x_ring = 2,
     .image_pairs = 2,
     .emu = true},
    {.name = "emu: all over",
     .weights = "dhnhn",
     .states = "dhdhd",
     .grads = "hhhhh",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 4,
     .near_slots = 2,
     .raw_slots = 2,
     .x_ring = 4,
     .state_slots = 2,
     .image_pairs = 2,
     .update = PS_UPDATE_NEXT_FORWARD,
     .emu = true},
};
enum { ZEROTH_PLANS = sizeof zeroth_plans / sizeof zeroth_plans[0] };

struct outcome {
    double loss[STEPS], norm[STEPS];
    unsigned char *bytes;
    size_t n;
};

static void write_model(void)
{
    const struct tiny_model m = {.dir = "model", .dtype = PS_DTYPE_BF16, .n_layer = LAYERS};
    char text[1024];
    snprintf(text, sizeof text,
             "{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":96,"
             "\"num_hidden_layers\":%d,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
             "\"vocab_size\":%d,\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":false,"
             "\"hidden_act\":\"silu\",\"max_position_embeddings\":64,\"rope_theta\":100.0}",
             LAYERS, TINY_VOCAB);
    tiny_model_write_config(&m, text, PS_DTYPE_BF16);
}

static void collect(struct ps_trainer *t, struct outcome *out)
{
    struct ps_error err = {0};
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        for (int part = PS_PART_WEIGHT; part <= PS_PART_REMAINDER; part++) {
            if (part == PS_PART_REMAINDER && !x->layout.remainder)
                continue;
            out->bytes = realloc(out->bytes, out->n + 2 * x->n);
            assert_non_null(out->bytes);
            if (ps_trainer_part_read(t, i, part, 0, x->n, out->bytes + out->n, &err) < 0)
                fail_msg("%s: %s", x->name, err.message);
            out->n += 2 * x->n;
        }
    }
}

static struct outcome run(const struct ps_optimizer_ops *ops, const struct full_plan *p,
                          bool stochastic)
{
    struct outcome out = {0};
    struct stream_io io = {.backend = "threads", .dir = "spill"};
    struct ps_error err = {0};
    struct tiny_rows rows;
    struct ps_batcher *b = NULL;
    struct ps_batch_options bo = {.batch_size = 1, .grad_accum = 2, .max_seq_len = 16, .epochs = 4};
    tiny_rows_make(&rows, 5);
    assert_int_equal(ps_batcher_create(&b, &rows.ds, &bo, &err), 0);
    struct ps_trainer_options o = tiny_options("model", PS_MODE_FULL);
    o.dtype = PS_DTYPE_BF16;
    o.optimizer = ops;
    o.hyper = hyper_of(ops);
    o.hyper.weight_decay = 0.01;
    o.hyper.n_layer = LAYERS;
    o.hyper.stochastic_rounding = stochastic;
    o.hyper.rank = o.hyper.rank ? o.hyper.rank : 4;
    o.hyper.update_gap = 2; /* new subspaces, layers and blocks within the run */
    o.hyper.interval = 2;
    o.hyper.thread_count = 2;
    o.n_tok_max = 16;
    o.micro_max = 2;
    o.max_grad_norm = 0.05;
    o.thread_count = 2;
    o.granule_elements = 4096;
    o.device = ps_device_find(p->emu ? "emu" : "cpu");
    o.io = stream_io_ops(&io);
    struct ps_trainer *t = NULL;
    if (ps_trainer_create(&t, &o, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    full_plan_set(t, p);
    struct ps_spill_store *store = full_store_create(t, "store", PS_SPILL_SHADOW);
    if (ps_trainer_commit(t, &err) < 0)
        fail_msg("%s, %s: %s (%s)", ops->name, p->name, err.message, err.field);
    for (int i = 0; i < STEPS; i++) {
        struct ps_trainer_stats st;
        if (ps_trainer_step(t, b, (uint64_t)i, &st, &err) < 0)
            fail_msg("%s, %s: %s", ops->name, p->name, err.message);
        out.loss[i] = st.loss;
        out.norm[i] = st.grad_norm;
    }
    assert_int_equal(ps_trainer_settle(t, &err), 0);
    collect(t, &out);
    ps_trainer_destroy(t);
    assert_int_equal(ps_spill_store_remove(store, &err), 0);
    stream_io_close(&io);
    ps_batcher_destroy(b);
    return out;
}

static void every_optimizer_streams_with_the_bits_of_a_resident_run(void **state)
{
    (void)state;
    write_model();
    for (const struct ps_optimizer_ops *const *ops = ps_optimizers(); *ops; ops++) {
        const struct full_plan *plan = (*ops)->perturb ? zeroth_plans : plans;
        int count = (*ops)->perturb ? ZEROTH_PLANS : PLANS;
        for (int stochastic = 0; stochastic < 2; stochastic++) {
            struct outcome want = run(*ops, &plan[0], stochastic);
            for (int k = 1; k < (stochastic ? 2 : count); k++) {
                struct outcome got = run(*ops, &plan[k], stochastic);
                for (int i = 0; i < STEPS; i++)
                    if (got.loss[i] != want.loss[i] || got.norm[i] != want.norm[i])
                        fail_msg("%s, %s: step %d: loss %.17g, norm %.17g; resident %.17g, %.17g",
                                 (*ops)->name, plan[k].name, i, got.loss[i], got.norm[i],
                                 want.loss[i], want.norm[i]);
                assert_int_equal(got.n, want.n);
                if (memcmp(got.bytes, want.bytes, want.n) != 0)
                    fail_msg("%s, %s: other weights", (*ops)->name, plan[k].name);
                free(got.bytes);
            }
            free(want.bytes);
        }
    }
}

/* Commits wait for the disk, which is not what is tested: in memory where that can be. */
static char place[] = "/dev/shm/penstock.XXXXXX";

static int enter(void **state)
{
    (void)state;
    if (!mkdtemp(place) || chdir(place) < 0)
        place[0] = '\0';
    return 0;
}

static int leave(void **state)
{
    (void)state;
    if (!place[0])
        return 0;
    bool gone = unlink("model/config.json") == 0 && unlink("model/model.safetensors") == 0;
    PS_IGNORE(rmdir("model") + rmdir("store") + rmdir("spill") < 0, "some are not there");
    return gone && chdir("/") == 0 && rmdir(place) == 0 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_optimizer_streams_with_the_bits_of_a_resident_run),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
