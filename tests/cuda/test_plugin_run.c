/* Steps of a trainer on the CUDA device through the plug-in: the same bits streamed and resident,
 * what the steady state may not do, and that a removed event wait is caught. The last two need the
 * emulation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdatomic.h>
#include <unistd.h>

#include "optim/optimizers.h"
#include "peft/lora.h"
#include "tests/cuda/plugin_check.h"
#include "tests/helpers/stream_io.h"
#include "tests/helpers/tiny_model.h"

enum { STEPS = 3, LAYERS = 6 };

struct outcome {
    double loss[STEPS], norm[STEPS];
    float *weight;
    size_t n;
    struct ps_emu_counts before, after; /* the last step */
};

static const struct stream_plan resident = {.name = "resident",
                                            .weights = "nnnnnnnn",
                                            .boundary = "nnnnnn",
                                            .keep = "kkkkkk",
                                            .group = 1,
                                            .eval_group = 1,
                                            .x_ring = 1,
                                            .emu = true};

static const struct stream_plan streamed[] = {{.name = "from the disk, two slots",
                                               .weights = "dddddddn",
                                               .boundary = "hhhhhh",
                                               .keep = "rrrrrr",
                                               .group = 2,
                                               .eval_group = 1,
                                               .near_slots = 2,
                                               .raw_slots = 2,
                                               .x_ring = 3,
                                               .host_ring = 2,
                                               .emu = true},
                                              {.name = "from host memory, one slot",
                                               .weights = "nhhhhhhn",
                                               .boundary = "hnhnhn",
                                               .keep = "rkrkrk",
                                               .group = 2,
                                               .eval_group = 1,
                                               .near_slots = 1,
                                               .raw_slots = 0,
                                               .x_ring = 3,
                                               .host_ring = 2,
                                               .emu = true},
                                              {.name = "boundaries through the disk, three slots",
                                               .weights = "dhdhdhdn",
                                               .boundary = "hdhdhd",
                                               .keep = "rrrrrr",
                                               .group = 2,
                                               .eval_group = 1,
                                               .near_slots = 3,
                                               .raw_slots = 1,
                                               .x_ring = 3,
                                               .host_ring = 2,
                                               .emu = true}};

static void counts_of(const struct emulation *emu, struct ps_emu_counts *out)
{
    if (emu && emu->get_counts)
        emu->get_counts(out);
}

static void steps(struct ps_trainer *t, const struct emulation *emu, struct outcome *out)
{
    struct tiny_rows rows;
    struct ps_batcher *b = NULL;
    struct ps_error err = {0};
    struct ps_batch_options o = {.batch_size = 1, .grad_accum = 2, .max_seq_len = 16, .epochs = 1};
    tiny_rows_make(&rows, 2 * STEPS);
    assert_int_equal(ps_batcher_create(&b, &rows.ds, &o, &err), 0);
    for (uint64_t i = 0; i < STEPS; i++) {
        struct ps_trainer_stats s;
        counts_of(emu, &out->before);
        if (ps_trainer_step(t, b, i, &s, &err) < 0)
            fail_msg("%s", err.message);
        counts_of(emu, &out->after);
        out->loss[i] = s.loss;
        out->norm[i] = s.grad_norm;
    }
    assert_int_equal(ps_trainer_pull(t, &err), 0);
    out->n = (size_t)ps_trainer_trainable_elements(t);
    out->weight = malloc(out->n * sizeof(float));
    assert_non_null(out->weight);
    size_t at = 0;
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        memcpy(out->weight + at, x->weight, x->n * sizeof(float));
        at += x->n;
    }
    ps_batcher_destroy(b);
}

static struct ps_trainer *open_trainer(const struct ps_cuda_plugin *plugin, const char *model,
                                       const struct stream_plan *p, struct stream_io *io)
{
    struct ps_trainer *t = NULL;
    struct ps_error err = {0};
    struct ps_trainer_options o = tiny_options(model, PS_MODE_ADAPTER);
    o.dtype = PS_DTYPE_BF16;
    o.adapter = &ps_lora_ops;
    o.adapter_config = (struct ps_adapter_config){.method = "lora", .r = 8, .alpha = 16};
    o.optimizer = &ps_adamw_ops;
    o.n_tok_max = 16;
    o.micro_max = 2;
    o.cuda = plugin;
    o.device = plugin->device;
    o.io = stream_io_ops(io);
    if (ps_trainer_create(&t, &o, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    stream_plan_commit(t, p);
    return t;
}

static struct outcome run(const struct ps_cuda_plugin *plugin, const struct emulation *emu,
                          const char *model, const struct stream_plan *p)
{
    struct outcome out = {0};
    struct stream_io io = {.backend = "threads", .dir = "spill"};
    struct ps_trainer *t = open_trainer(plugin, model, p, &io);
    steps(t, emu, &out);
    ps_trainer_destroy(t);
    stream_io_close(&io);
    return out;
}

static bool same(const struct outcome *a, const struct outcome *b)
{
    return memcmp(a->loss, b->loss, sizeof a->loss) == 0 &&
           memcmp(a->norm, b->norm, sizeof a->norm) == 0 && a->n == b->n &&
           memcmp(a->weight, b->weight, a->n * sizeof(float)) == 0;
}

static void write_tiny(const char *dir)
{
    struct tiny_model m = {.dir = dir, .type = "llama", .dtype = PS_DTYPE_BF16, .n_layer = LAYERS};
    tiny_model_write(&m);
}

static void
streamed_runs_have_the_bits_of_the_resident_one_and_a_step_allocates_nothing(void **state)
{
    struct world *w = *state;
    write_tiny("tiny");
    struct outcome want = run(w->plugin, NULL, "tiny", &resident);
    assert_true(want.loss[0] > 0 && want.norm[0] > 0);
    for (size_t i = 0; i < sizeof streamed / sizeof *streamed; i++) {
        struct outcome got = run(w->plugin, &w->emu, "tiny", &streamed[i]);
        if (w->emu.get_counts) {
            assert_true(got.after.launches > got.before.launches);
            assert_true(got.after.copies > got.before.copies);
            assert_int_equal(got.after.allocations, got.before.allocations);
            assert_int_equal(got.after.device_syncs, got.before.device_syncs);
            assert_int_equal(got.after.pageable_copies, got.before.pageable_copies);
        }
        if (!same(&got, &want))
            fail_msg("%s: losses %.9g %.9g %.9g where %.9g %.9g %.9g were due", streamed[i].name,
                     got.loss[0], got.loss[1], got.loss[2], want.loss[0], want.loss[1],
                     want.loss[2]);
        free(got.weight);
    }
    free(want.weight);
}

/* --- a removed event wait --- */

/* The queues of the plug-in, one of whose kinds of wait can be taken out. A queue that is `late` is
 * asked for its marks by the host late, so that the emulation holds its work back until a wait of
 * another queue, if there is one, demands it. */
static struct {
    const struct ps_queue_ops *real;
    bool broken;
    enum ps_queue queue, on, late;
    useconds_t late_us;
    _Atomic uint64_t waits[PS_QUEUE_COUNT][PS_QUEUE_COUNT];
} control;

static int control_wait(struct ps_queues *q, enum ps_queue queue, enum ps_queue on, uint32_t mark,
                        struct ps_error *err)
{
    atomic_fetch_add(&control.waits[queue][on], 1);
    if (control.broken && queue == control.queue && on == control.on)
        return 0;
    return control.real->wait(q, queue, on, mark, err);
}

static int control_sync(struct ps_queues *q, enum ps_queue queue, uint32_t mark, uint64_t *ns,
                        struct ps_error *err)
{
    if (queue == control.late)
        usleep(control.late_us);
    return control.real->sync(q, queue, mark, ns, err);
}

/* Are these the bits? */
static bool control_run(const struct ps_cuda_plugin *plugin, const struct stream_plan *p,
                        enum ps_queue late, const struct outcome *want)
{
    control.late = late;
    struct outcome got = run(plugin, NULL, "tiny", p);
    bool equal = same(&got, want);
    free(got.weight);
    return equal;
}

static void a_removed_event_wait_is_caught(void **state)
{
    struct world *w = *state;
    static const char *const name[] = {"compute", "h2d", "d2h"};
    if (!w->emu.get_counts)
        skip();
    write_tiny("tiny");
    struct outcome want = run(w->plugin, NULL, "tiny", &resident);
    struct ps_cuda_plugin plugin = *w->plugin;
    struct ps_queue_ops queues = *w->plugin->queues;
    control.real = w->plugin->queues;
    control.late_us = 700;
    queues.wait = control_wait;
    queues.sync = control_sync;
    plugin.queues = &queues;
    assert_true(control_run(&plugin, &streamed[0], PS_QUEUE_COUNT, &want)); /* counts the waits */
    size_t caught = 0;
    for (int queue = 0; queue < PS_QUEUE_COUNT; queue++)
        for (int on = 0; on < PS_QUEUE_COUNT; on++) {
            if (atomic_load(&control.waits[queue][on]) == 0)
                continue;
            control.queue = (enum ps_queue)queue;
            control.on = (enum ps_queue)on;
            control.broken = false;
            if (!control_run(&plugin, &streamed[0], control.on, &want))
                fail_msg("with %s late: other bits", name[on]);
            control.broken = true;
            bool seen = false;
            for (control.late_us = 700; !seen && control.late_us < 50000; control.late_us *= 4)
                for (int i = 0; !seen && i < 2; i++)
                    seen = !control_run(&plugin, &streamed[i], control.on, &want);
            control.late_us = 700;
            control.broken = false;
            if (!seen)
                fail_msg("%s does not wait for %s: not caught", name[queue], name[on]);
            caught++;
        }
    /* compute after both directions, each direction after compute */
    assert_int_equal(caught, 4);
    free(want.weight);
}

/* --- failures --- */

/* The n-th call of the runtime fails: whatever it was, the step says so, and nothing hangs. */
static void a_call_that_fails_ends_the_step(void **state)
{
    struct world *w = *state;
    static const uint64_t nth[] = {1, 3, 8, 34, 144, 500, 901, 1300};
    struct tiny_rows rows;
    struct ps_batcher *b = NULL;
    struct ps_error err = {0};
    struct ps_batch_options o = {.batch_size = 1, .grad_accum = 2, .max_seq_len = 16, .epochs = 1};
    if (!w->emu.fail_call)
        skip();
    write_tiny("tiny");
    tiny_rows_make(&rows, 2);
    assert_int_equal(ps_batcher_create(&b, &rows.ds, &o, &err), 0);
    size_t failed = 0;
    for (size_t i = 0; i < sizeof nth / sizeof *nth; i++) {
        struct stream_io io = {.backend = "threads", .dir = "spill"};
        struct ps_trainer *t = open_trainer(w->plugin, "tiny", &streamed[0], &io);
        struct ps_trainer_stats s;
        w->emu.fail_call(nth[i]);
        memset(&err, 0, sizeof err);
        int ret = ps_trainer_step(t, b, 0, &s, &err);
        bool met = !w->emu.fail_pending();
        w->emu.fail_call(0);
        if (met != (ret < 0))
            fail_msg("call %llu: %s, the step returned %d", (unsigned long long)nth[i],
                     met ? "failed" : "did not come", ret);
        if (ret < 0)
            assert_true(strlen(err.message) > 0);
        failed += met;
        ps_trainer_destroy(t);
        stream_io_close(&io);
    }
    assert_true(failed >= 6);
    ps_batcher_destroy(b);
}

/* --- launches --- */

static void write_aligned(const char *dir, int n_layer)
{
    char text[1024];
    snprintf(text, sizeof text,
             "{\"model_type\":\"llama\",\"hidden_size\":128,\"intermediate_size\":256,"
             "\"num_hidden_layers\":%d,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
             "\"head_dim\":64,\"vocab_size\":64,\"rms_norm_eps\":1e-5,"
             "\"tie_word_embeddings\":false,\"hidden_act\":\"silu\",\"bos_token_id\":1,"
             "\"eos_token_id\":2,\"max_position_embeddings\":64,\"rope_theta\":100.0}",
             n_layer);
    struct tiny_model m = {.dir = dir, .dtype = PS_DTYPE_BF16};
    tiny_model_write_config(&m, text, PS_DTYPE_BF16);
}

/* What a launch costs the host times this must stay far below a layer's time on the device: see
 * docs/architecture.md. */
static void launches_of_a_layer_are_few(void **state)
{
    struct world *w = *state;
    struct outcome got[2];
    static const int layers[2] = {2, LAYERS};
    if (!w->emu.get_counts)
        skip();
    for (int i = 0; i < 2; i++) {
        struct stream_plan p = resident;
        char name[16];
        char weights[LAYERS + 3];
        snprintf(name, sizeof name, "aligned-%d", layers[i]);
        snprintf(weights, sizeof weights, "%.*s", layers[i] + 2, resident.weights);
        p.weights = weights;
        write_aligned(name, layers[i]);
        got[i] = run(w->plugin, &w->emu, name, &p);
        free(got[i].weight);
    }
    double each = 2.0 * (layers[1] - layers[0]); /* micro-batches times layers */
    double kernels = (double)(got[1].after.launches - got[1].before.launches -
                              (got[0].after.launches - got[0].before.launches)) /
                     each;
    double products = (double)(got[1].after.gemms - got[1].before.gemms -
                               (got[0].after.gemms - got[0].before.gemms)) /
                      each;
    print_message("LoRA on all linears, forward, backward, norms and update of a layer and "
                  "micro-batch: %.1f kernels, %.1f products\n",
                  kernels, products);
    assert_true(kernels + products > 20);
    assert_true(kernels + products < 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            streamed_runs_have_the_bits_of_the_resident_one_and_a_step_allocates_nothing),
        cmocka_unit_test(a_removed_event_wait_is_caught),
        cmocka_unit_test(a_call_that_fails_ends_the_step),
        cmocka_unit_test(launches_of_a_layer_are_few),
    };
    setenv("PS_EMU_HOLD_MS", "100", 0);
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
