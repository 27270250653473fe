/* Recompute levels R0-R4: the same bits at each, whatever is trained, and the bytes that they keep.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "peft/adapters.h"
#include "runtime/train/trainer_internal.h"
#include "tests/helpers/stream_io.h"
#include "tests/helpers/tiny_model.h"

enum { LAYERS = 3, ROWS = 6, GRAD_MAX = 1 << 14 };

/* What is trained of which model. */
struct subject {
    const char *name, *type, *method; /* method NULL: full */
    bool tied, bias;
    enum ps_dtype dtype;
    double dropout;
};

static const struct subject subjects[] = {
    {"full, fp32, biases", "llama", NULL, .bias = true, .dtype = PS_DTYPE_F32},
    {"full, bf16, norms per head, tied", "qwen3", NULL, .tied = true, .dtype = PS_DTYPE_BF16},
    {"LoRA with dropout, biases", "llama", "lora", .bias = true, .dtype = PS_DTYPE_F32,
     .dropout = 0.3},
    {"LoRA in bf16, norms per head", "qwen3", "lora", .tied = true, .dtype = PS_DTYPE_BF16},
    {"DoRA, norms per head", "qwen3", "dora", .tied = true, .dtype = PS_DTYPE_F32},
    {"PiSSA with dropout", "llama", "pissa", .dtype = PS_DTYPE_F32, .dropout = 0.2},
    {"VeRA", "llama", "vera", .dtype = PS_DTYPE_BF16},
    {"(IA)3", "llama", "ia3", .dtype = PS_DTYPE_F32},
};
#define COUNT(a) (sizeof(a) / sizeof *(a))

static struct ps_batcher *batcher(const struct tiny_rows *r)
{
    struct ps_batch_options o = {.batch_size = 2, .grad_accum = 3, .max_seq_len = 16, .epochs = 1};
    struct ps_batcher *b = NULL;
    struct ps_error err = {0};
    if (ps_batcher_create(&b, &r->ds, &o, &err) < 0)
        fail_msg("%s", err.message);
    return b;
}

static struct ps_trainer *open_subject(const struct subject *s, struct stream_io *io, bool emu)
{
    struct tiny_model m = {.dir = "m",
                           .type = s->type,
                           .tied = s->tied,
                           .bias = s->bias,
                           .dtype = s->dtype,
                           .n_layer = LAYERS};
    struct ps_trainer_options o = tiny_options(m.dir, s->method ? PS_MODE_ADAPTER : PS_MODE_FULL);
    struct ps_trainer *t = NULL;
    struct ps_error err = {0};
    tiny_model_write(&m);
    o.dtype = s->dtype;
    o.micro_max = 3;
    o.device = ps_device_find(emu ? "emu" : "cpu");
    if (io)
        o.io = stream_io_ops(io);
    if (s->method)
        o.adapter = ps_adapter_find(s->method);
    o.adapter_config = (struct ps_adapter_config){
        .method = s->method, .r = 3, .alpha = 6, .dropout = s->dropout, .seed = 5};
    if (ps_trainer_create(&t, &o, &err) < 0)
        fail_msg("%s: %s (%s)", s->name, err.message, err.field);
    return t;
}

static struct stream_plan plan_of(const char *levels, int32_t group)
{
    return (struct stream_plan){.name = levels,
                                .weights = "nnnnn",
                                .boundary = "nnn",
                                .keep = levels,
                                .group = group,
                                .eval_group = 2,
                                .x_ring = group};
}

/* Gradients of one window of three micro-batches, then the loss of an evaluation. */
static size_t run(const struct subject *s, const struct stream_plan *p, float *grad, double *eval)
{
    struct tiny_rows rows;
    struct ps_error err = {0};
    struct ps_trainer_stats stats;
    int64_t labels, tokens;
    size_t at = 0;
    struct stream_io io = {.backend = "threads", .dir = "spill"};
    struct ps_trainer *t = open_subject(s, &io, p->emu);
    tiny_rows_make(&rows, ROWS);
    stream_plan_commit(t, p);
    struct ps_batcher *b = batcher(&rows);
    assert_int_equal(ps_trainer_pull(t, &err), 0);
    for (size_t i = 0; s->method && i < ps_trainer_trainable_count(t); i++) {
        struct ps_trainable *x = ps_trainer_trainable(t, i);
        tiny_fill(x->weight, x->n, 10 + i, 0.1f, 0.4f);
    }
    assert_int_equal(ps_trainer_push(t, &err), 0);
    if (ps_trainer_step(t, b, 0, &stats, &err) < 0)
        fail_msg("%s, %s: %s", s->name, p->name, err.message);
    assert_int_equal(ps_trainer_pull(t, &err), 0);
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        assert_true(at + x->n <= GRAD_MAX);
        memcpy(grad + at, x->grad, x->n * sizeof *grad);
        at += x->n;
    }
    assert_int_equal(ps_trainer_eval(t, b, eval, &labels, &tokens, &err), 0);
    ps_batcher_destroy(b);
    ps_trainer_destroy(t);
    stream_io_close(&io);
    return at;
}

static void every_level_gives_the_same_bits(void **state)
{
    static const char *const levels[] = {"111", "222", "333", "444", "012", "341", "204"};
    static float want[GRAD_MAX], got[GRAD_MAX];
    (void)state;
    for (size_t k = 0; k < COUNT(subjects); k++) {
        struct stream_plan kept = plan_of("000", 1);
        double loss, again;
        size_t n = run(&subjects[k], &kept, want, &loss);
        double sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += fabs((double)want[i]);
        assert_true(sum > 1e-3);
        for (size_t i = 0; i < COUNT(levels); i++) {
            struct stream_plan p = plan_of(levels[i], 1 + (int32_t)i % 3);
            assert_int_equal(run(&subjects[k], &p, got, &again), n);
            if (memcmp(got, want, n * sizeof *got) != 0 || again != loss)
                fail_msg("%s, levels %s: other bits", subjects[k].name, levels[i]);
        }
    }
}

/* Elements and FLOPs of a token, by level (Llama, without adapters): all of x1, q, k, v, o, gate,
 * up, two norms and the log-sum-exp; without gate, up and norms; without q, k, v; without x1;
 * nothing.
 */
static void each_level_keeps_what_the_table_says(void **state)
{
    (void)state;
    const struct subject plain = {"full", "llama", NULL, .dtype = PS_DTYPE_F32};
    struct ps_trainer *t = open_subject(&plain, NULL, false);
    const struct ps_step_shape *p = ps_trainer_shape(t);
    const uint64_t h = TINY_HIDDEN, a = 16, kv = 8, f = TINY_INTER, heads = 4, n = 64, e = 4;
    const uint64_t kept[PS_RECOMPUTE_COUNT] = {
        n * (e * (h + 2 * a + 2 * kv + 2 * f) + 8 + 4 * heads),
        n * (e * (h + 2 * a + 2 * kv) + 4 * heads), n * (e * (h + a) + 4 * heads),
        n * (e * a + 4 * heads), 0};
    for (int level = 0; level < PS_RECOMPUTE_COUNT; level++) {
        assert_int_equal(p->kept_bytes[level], kept[level]);
        assert_int_equal(p->rest_bytes[level], kept[0] - kept[level]);
    }
    const double flops[PS_RECOMPUTE_COUNT] = {
        0, (double)(4 * n * h * f), (double)(n * (4 * h * f + 2 * h * (a + 2 * kv))),
        (double)(n * (4 * h * f + 2 * h * (a + 2 * kv) + 2 * a * h)), 0};
    for (int level = 0; level < PS_RECOMPUTE_R4; level++)
        assert_true(p->recompute_flops[level] == flops[level]);
    assert_true(p->recompute_flops[PS_RECOMPUTE_R4] > flops[PS_RECOMPUTE_R3]);
    ps_trainer_destroy(t);
}

/* Moved to the spill file and back, with one buffer or more, forwarded or not. */
static void moved_pieces_give_the_same_bits(void **state)
{
    static const struct {
        const char *levels, *saved;
        int32_t group, ring;
        unsigned ablate;
        bool emu;
    } cases[] = {{"000", "ddd", 1, 1, 0, false},
                 {"012", "dnd", 3, 2, 0, false},
                 {"321", "ddd", 2, 1, PS_ABLATE_FORWARDING, false},
                 {"104", "ddn", 3, 7, 0, false},
                 {"012", "dhd", 3, 1, 0, true},
                 {"230", "hhn", 2, 3, PS_ABLATE_FORWARDING, true}};
    static float want[GRAD_MAX], got[GRAD_MAX];
    (void)state;
    for (size_t k = 1; k < COUNT(subjects); k += 3) {
        struct stream_plan kept = plan_of("000", 1);
        double loss, again;
        size_t n = run(&subjects[k], &kept, want, &loss);
        for (size_t i = 0; i < COUNT(cases); i++) {
            struct stream_plan p = plan_of(cases[i].levels, cases[i].group);
            p.saved = cases[i].saved;
            p.saved_ring = cases[i].ring;
            p.ablate = cases[i].ablate;
            p.emu = cases[i].emu;
            p.host_ring = 2;
            assert_int_equal(run(&subjects[k], &p, got, &again), n);
            if (memcmp(got, want, n * sizeof *got) != 0 || again != loss)
                fail_msg("%s, levels %s, moved %s: other bits", subjects[k].name, cases[i].levels,
                         cases[i].saved);
        }
    }
}

static uint64_t page_up(uint64_t bytes)
{
    return (bytes + 4095) & ~(uint64_t)4095;
}

/* Pieces a micro-batch, and one rest for all. */
static void memory_is_the_kept_pieces_and_the_largest_rest(void **state)
{
    static const char *const levels[] = {"000", "111", "444", "013", "240"};
    (void)state;
    for (size_t i = 0; i < COUNT(levels); i++) {
        const struct subject *s = &subjects[3];
        struct ps_trainer *t = open_subject(s, NULL, false);
        const struct ps_step_shape *shape = ps_trainer_shape(t);
        struct stream_plan p = plan_of(levels[i], 2);
        uint64_t want = 0, rest = 0;
        stream_plan_commit(t, &p);
        for (int l = 0; l < LAYERS; l++) {
            int level = levels[i][l] - '0';
            want += 2 * page_up(shape->kept_bytes[level]);
            rest = shape->rest_bytes[level] > rest ? shape->rest_bytes[level] : rest;
        }
        assert_int_equal(t->map.bytes[PS_BUF_SAVED], want + page_up(rest));
        ps_trainer_destroy(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_level_gives_the_same_bits),
        cmocka_unit_test(moved_pieces_give_the_same_bits),
        cmocka_unit_test(each_level_keeps_what_the_table_says),
        cmocka_unit_test(memory_is_the_kept_pieces_and_the_largest_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
