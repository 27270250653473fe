/* The training core on tiny models: gradients against finite differences, and what must not change
 * a bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "optim/optimizers.h"
#include "peft/lora.h"
#include "tests/helpers/tiny_model.h"

static struct ps_batcher *batcher(const struct tiny_rows *r, int batch, int accum, bool packing)
{
    struct ps_batch_options o = {.batch_size = batch,
                                 .grad_accum = accum,
                                 .max_seq_len = 16,
                                 .packing = packing,
                                 .epochs = 1};
    struct ps_batcher *b = NULL;
    struct ps_error err = {0};
    if (ps_batcher_create(&b, &r->ds, &o, &err) < 0)
        fail_msg("%s", err.message);
    return b;
}

static struct ps_trainer_stats step(struct ps_trainer *t, struct ps_batcher *b, uint64_t idx)
{
    struct ps_trainer_stats s;
    struct ps_error err = {0};
    assert_int_equal(ps_trainer_step(t, b, idx, &s, &err), 0);
    return s;
}

static double loss(struct ps_trainer *t, struct ps_batcher *b)
{
    double sum;
    int64_t labels;
    int64_t tokens;
    struct ps_error err = {0};
    assert_int_equal(ps_trainer_eval(t, b, &sum, &labels, &tokens, &err), 0);
    assert_true(labels > 0);
    return sum / (double)labels;
}

/* Loss with the tensor moved by h along dir. */
static double loss_at(struct ps_trainer *t, struct ps_batcher *b, const struct ps_trainable *x,
                      const float *base, const double *dir, double h)
{
    float *w = x->weight;
    for (size_t i = 0; i < x->n; i++)
        w[i] = (float)((double)base[i] + h * dir[i]);
    double l = loss(t, b);
    memcpy(w, base, x->n * sizeof *w);
    return l;
}

/* Central difference of fourth order. Three step sizes: the best one counts, since rounding of the
 * fp32 forward pass (about 1e-7 of the loss over h) and truncation (h^4) pull apart. */
static void check_direction(struct ps_trainer *t, struct ps_batcher *b,
                            const struct ps_trainable *x, const double *dir)
{
    float *base = malloc(x->n * sizeof *base);
    assert_non_null(base);
    memcpy(base, x->weight, x->n * sizeof *base);
    double want = 0;
    for (size_t i = 0; i < x->n; i++)
        want += dir[i] * (double)x->grad[i];
    double best = INFINITY;
    static const double step_size[] = {0.04, 0.012, 0.004};
    for (int k = 0; k < 3; k++) {
        double h = step_size[k];
        double got = (8 * (loss_at(t, b, x, base, dir, h) - loss_at(t, b, x, base, dir, -h)) -
                      (loss_at(t, b, x, base, dir, 2 * h) - loss_at(t, b, x, base, dir, -2 * h))) /
                     (12 * h);
        best = fabs(got - want) < fabs(best) ? got - want : best;
    }
    free(base);
    if (fabs(best) > 1e-4 + 1e-3 * fabs(want))
        fail_msg("%s: gradient %.8g, finite difference %.8g", x->name, want, want + best);
}

/* Every tensor: along its own gradient (all elements at once), and its largest and middle
 * elements. */
static void check_gradients(struct ps_trainer *t, const struct tiny_rows *rows)
{
    struct ps_batcher *b = batcher(rows, 1, 4, true);
    assert_int_equal(ps_batcher_step_count(b), 1);
    struct ps_trainer_stats s = step(t, b, 0);
    assert_true(fabs(s.loss - loss(t, b)) < 1e-6 * s.loss);
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        double *dir = calloc(x->n, sizeof *dir);
        assert_non_null(dir);
        double norm = 0;
        size_t largest = 0;
        for (size_t j = 0; j < x->n; j++) {
            norm += (double)x->grad[j] * (double)x->grad[j];
            largest = fabsf(x->grad[j]) > fabsf(x->grad[largest]) ? j : largest;
        }
        if (norm < 1e-8)
            fail_msg("%s: the gradient is zero", x->name);
        size_t pick[] = {largest, x->n / 2};
        for (int k = 0; k < 2; k++) {
            memset(dir, 0, x->n * sizeof *dir);
            dir[pick[k]] = 1;
            check_direction(t, b, x, dir);
        }
        for (size_t j = 0; norm > 1e-12 && j < x->n; j++)
            dir[j] = (double)x->grad[j] / sqrt(norm);
        check_direction(t, b, x, dir);
        free(dir);
    }
    ps_batcher_destroy(b);
}

static void full_gradients(const struct tiny_model *m, bool recompute)
{
    struct tiny_rows rows;
    tiny_rows_make(&rows, 6);
    tiny_model_write(m);
    struct ps_trainer_options o = tiny_options(m->dir, PS_MODE_FULL);
    struct ps_trainer *t = tiny_trainer_resident(&o, recompute);
    assert_int_equal(ps_trainer_trainable_count(t), ps_trainer_params(t)->count);
    check_gradients(t, &rows);
    ps_trainer_destroy(t);
}

static void full_gradients_match_differences_untied_with_biases(void **state)
{
    (void)state;
    struct tiny_model m = {.dir = "m", .type = "llama", .bias = true, .n_layer = 2};
    full_gradients(&m, false);
}

static void full_gradients_match_differences_tied_with_head_norms(void **state)
{
    (void)state;
    struct tiny_model m = {.dir = "m", .type = "qwen3", .tied = true, .n_layer = 2};
    full_gradients(&m, true);
}

static void lora_gradients_match_differences(void **state)
{
    (void)state;
    struct tiny_rows rows;
    tiny_rows_make(&rows, 6);
    for (int i = 0; i < 2; i++) {
        struct tiny_model m = {
            .dir = "m", .type = i ? "qwen3" : "llama", .tied = i, .bias = true, .n_layer = 2};
        tiny_model_write(&m);
        struct ps_trainer_options o = tiny_options(m.dir, PS_MODE_ADAPTER);
        o.adapter = &ps_lora_ops;
        o.adapter_config = (struct ps_adapter_config){.method = "lora", .r = 3, .alpha = 5};
        struct ps_trainer *t = tiny_trainer_resident(&o, i == 0);
        assert_int_equal(ps_trainer_trainable_count(t), 2 * 7 * 2);
        tiny_randomise_adapters(t);
        check_gradients(t, &rows);
        ps_trainer_destroy(t);
    }
}

/* All gradients of one step, end to end; the caller frees. */
static float *gradients(struct ps_trainer *t, struct ps_batcher *b, size_t *n)
{
    step(t, b, 0);
    *n = ps_trainer_trainable_elements(t);
    float *out = malloc(*n * sizeof *out);
    assert_non_null(out);
    size_t at = 0;
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        memcpy(out + at, x->grad, x->n * sizeof *out);
        at += x->n;
    }
    return out;
}

static void two_micro_batches_equal_one_of_both(void **state)
{
    (void)state;
    struct tiny_rows rows;
    tiny_rows_make(&rows, 4);
    struct tiny_model m = {.dir = "m", .type = "qwen3", .tied = true, .n_layer = 2};
    tiny_model_write(&m);
    struct ps_trainer_options o = tiny_options(m.dir, PS_MODE_FULL);
    struct ps_trainer *t = tiny_trainer(&o);
    struct ps_batcher *one = batcher(&rows, 4, 1, false);
    struct ps_batcher *two = batcher(&rows, 2, 2, false);
    size_t n;
    float *a = gradients(t, one, &n);
    float *b = gradients(t, two, &n);
    double diff = 0;
    double norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += pow((double)a[i] - (double)b[i], 2);
        norm += pow((double)a[i], 2);
    }
    assert_true(norm > 0);
    assert_true(sqrt(diff / norm) < 1e-6);
    /* and the second window of the same batcher starts anew */
    float *again = gradients(t, two, &n);
    assert_memory_equal(again, b, n * sizeof *b);
    free(a);
    free(b);
    free(again);
    ps_batcher_destroy(one);
    ps_batcher_destroy(two);
    ps_trainer_destroy(t);
}

/* Gradients of the tensors of `layer`, one after another. */
static size_t layer_gradients(struct ps_trainer *t, int32_t layer, float *out, size_t max)
{
    size_t at = 0;
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        if (x->unit != layer)
            continue;
        assert_true(at + x->n <= max);
        memcpy(out + at, x->grad, x->n * sizeof *out);
        at += x->n;
    }
    return at;
}

#define LAYER_MAX 4096

static void training_the_last_layer_alone_gives_its_gradients_bit_for_bit(void **state)
{
    (void)state;
    static float grad[2][LAYER_MAX];
    struct tiny_rows rows;
    tiny_rows_make(&rows, 5);
    struct tiny_model m = {.dir = "m", .type = "llama", .bias = true, .n_layer = 3};
    tiny_model_write(&m);
    for (int lora = 0; lora < 2; lora++) {
        size_t n[2];
        for (int part = 0; part < 2; part++) {
            bool layer_on[3] = {false, false, true};
            bool site_on[23] = {false};
            for (int i = 0; i < 21; i++)
                site_on[i] = !part || i >= 14;
            struct ps_trainer_options o =
                tiny_options(m.dir, lora ? PS_MODE_ADAPTER : PS_MODE_FULL);
            o.adapter = lora ? &ps_lora_ops : NULL;
            o.adapter_config = (struct ps_adapter_config){.method = "lora", .r = 2, .alpha = 4};
            o.site_on = site_on;
            o.layer_on = part ? layer_on : NULL;
            struct ps_trainer *t = tiny_trainer(&o);
            struct ps_batcher *b = batcher(&rows, 2, 2, true);
            for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
                const struct ps_trainable *x = ps_trainer_trainable(t, i);
                if (x->unit == 2 && lora)
                    tiny_fill(x->weight, x->n, x->n, 0.0f, 0.3f);
                else
                    assert_true(!part || x->unit == 2);
            }
            step(t, b, 0);
            n[part] = layer_gradients(t, 2, grad[part], LAYER_MAX);
            ps_batcher_destroy(b);
            ps_trainer_destroy(t);
        }
        assert_int_equal(n[0], n[1]);
        assert_true(n[0] > 100);
        assert_memory_equal(grad[0], grad[1], n[0] * sizeof(float));
    }
}

static void recompute_and_keep_and_threads_give_the_same_bits(void **state)
{
    (void)state;
    struct tiny_rows rows;
    tiny_rows_make(&rows, 6);
    struct tiny_model m = {.dir = "m", .type = "qwen3", .tied = true, .n_layer = 2};
    tiny_model_write(&m);
    float *want = NULL;
    for (int i = 0; i < 4; i++) {
        struct ps_trainer_options o = tiny_options(m.dir, PS_MODE_ADAPTER);
        o.adapter = &ps_lora_ops;
        o.adapter_config = (struct ps_adapter_config){
            .method = "lora", .r = 3, .alpha = 6, .dropout = i == 3 ? 0 : 0.3};
        o.thread_count = i == 2 ? 3 : 1;
        struct ps_trainer *t = tiny_trainer_resident(&o, i == 1);
        tiny_randomise_adapters(t);
        struct ps_batcher *b = batcher(&rows, 1, 4, true);
        size_t n;
        float *got = gradients(t, b, &n);
        if (i == 0)
            want = got;
        else if (i < 3)
            assert_memory_equal(got, want, n * sizeof *got);
        else /* without dropout they differ: it was on */
            assert_memory_not_equal(got, want, n * sizeof *got);
        if (i > 0)
            free(got);
        ps_batcher_destroy(b);
        ps_trainer_destroy(t);
    }
    free(want);
}

static size_t tensor_bytes(const struct ps_trainable *x)
{
    return x->n * ps_dtype_size(x->dtype);
}

static void a_skipped_step_leaves_weights_moments_and_counts(void **state)
{
    (void)state;
    struct tiny_rows rows;
    tiny_rows_make(&rows, 4);
    struct tiny_model m = {.dir = "m", .type = "llama", .n_layer = 1};
    tiny_model_write(&m);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct ps_trainer_options o = tiny_options(m.dir, PS_MODE_FULL);
        o.optimizer = &ps_adamw_ops;
        o.dtype = bf16 ? PS_DTYPE_BF16 : PS_DTYPE_F32;
        struct ps_trainer *t = tiny_trainer(&o);
        struct ps_batcher *b = batcher(&rows, 4, 1, false);
        assert_false(step(t, b, 0).skipped);
        assert_int_equal(ps_trainer_updates(t), 1);
        /* the final norm: finite, and far too large */
        size_t count = ps_trainer_trainable_count(t);
        for (size_t i = 0; i < count; i++) {
            struct ps_trainable *x = ps_trainer_trainable(t, i);
            if (strcmp(x->name, "model.norm.weight") != 0)
                continue;
            for (size_t j = 0; j < x->n; j++)
                if (bf16)
                    ((uint16_t *)x->weight)[j] = 0x7f7f;
                else
                    ((float *)x->weight)[j] = 3e38f;
        }
        unsigned char *before[64][4];
        assert_true(count <= 64);
        for (size_t i = 0; i < count; i++) {
            const struct ps_trainable *x = ps_trainer_trainable(t, i);
            const void *part[4] = {x->weight, x->remainder, x->state[0], x->state[1]};
            size_t bytes[4] = {tensor_bytes(x), 2 * x->n, 4 * x->n, 4 * x->n};
            for (int k = 0; k < 4; k++) {
                before[i][k] = part[k] ? malloc(bytes[k]) : NULL;
                if (part[k])
                    memcpy(before[i][k], part[k], bytes[k]);
            }
            assert_true((x->remainder != NULL) == (bf16 == 1));
            assert_int_equal(x->t, 1);
        }
        struct ps_trainer_stats s = step(t, b, 0);
        assert_true(s.skipped);
        assert_int_equal(ps_trainer_updates(t), 1);
        for (size_t i = 0; i < count; i++) {
            const struct ps_trainable *x = ps_trainer_trainable(t, i);
            const void *part[4] = {x->weight, x->remainder, x->state[0], x->state[1]};
            size_t bytes[4] = {tensor_bytes(x), 2 * x->n, 4 * x->n, 4 * x->n};
            assert_int_equal(x->t, 1);
            for (int k = 0; k < 4; k++) {
                if (part[k])
                    assert_memory_equal(part[k], before[i][k], bytes[k]);
                free(before[i][k]);
            }
        }
        ps_batcher_destroy(b);
        ps_trainer_destroy(t);
    }
}

static void a_step_moves_every_tensor_and_counts(void **state)
{
    (void)state;
    struct tiny_rows rows;
    tiny_rows_make(&rows, 4);
    struct tiny_model m = {.dir = "m", .type = "qwen3", .tied = true, .n_layer = 1};
    tiny_model_write(&m);
    struct ps_trainer_options o = tiny_options(m.dir, PS_MODE_FULL);
    o.optimizer = &ps_adamw_ops;
    struct ps_trainer *t = tiny_trainer(&o);
    struct ps_batcher *b = batcher(&rows, 4, 1, false);
    double before = loss(t, b);
    float first[64];
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++)
        first[i] = *(const float *)ps_trainer_trainable(t, i)->weight;
    for (uint64_t i = 0; i < 5; i++)
        step(t, b, 0);
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        assert_true(first[i] != *(const float *)x->weight);
        assert_int_equal(x->t, 5);
    }
    assert_int_equal(ps_trainer_updates(t), 5);
    assert_true(loss(t, b) < before);
    ps_batcher_destroy(b);
    ps_trainer_destroy(t);
}

static void frozen_weights_keep_their_stored_type_without_changing_the_loss(void **state)
{
    (void)state;
    struct tiny_rows rows;
    tiny_rows_make(&rows, 6);
    static const enum ps_dtype type[] = {PS_DTYPE_F16, PS_DTYPE_BF16};
    for (int i = 0; i < 2; i++) {
        double got[2];
        for (int k = 0; k < 2; k++) {
            struct tiny_model m = {.dir = k ? "small" : "wide",
                                   .type = "llama",
                                   .bias = true,
                                   .n_layer = 2,
                                   .dtype = k ? type[i] : PS_DTYPE_F32};
            tiny_model_write_grid(&m, type[i]);
            struct ps_trainer_options o = tiny_options(m.dir, PS_MODE_NONE);
            struct ps_trainer *t = tiny_trainer(&o);
            struct ps_batcher *b = batcher(&rows, 2, 1, true);
            assert_int_equal(ps_trainer_param(t, 0)->dtype, m.dtype);
            got[k] = loss(t, b);
            ps_batcher_destroy(b);
            ps_trainer_destroy(t);
        }
        assert_true(got[0] == got[1]);
    }
}

static void a_missing_model_is_an_error_and_leaves_nothing(void **state)
{
    (void)state;
    struct tiny_model m = {.dir = "m", .type = "llama", .n_layer = 2};
    tiny_model_write(&m);
    struct ps_error err = {0};
    struct ps_trainer_options o = tiny_options(m.dir, PS_MODE_FULL);
    o.model_dir = "absent";
    struct ps_trainer *t = NULL;
    assert_true(ps_trainer_create(&t, &o, &err) < 0);
    assert_null(t);
    assert_true(strlen(err.message) > 0);
    ps_trainer_destroy(NULL);
}

static int keep_rows(void *arg, int32_t seq, const float *logits, int32_t row_begin, int32_t rows)
{
    assert_int_equal(seq, 0);
    float *to = (float *)arg + (size_t)row_begin * TINY_VOCAB;
    memcpy(to, logits, (size_t)rows * TINY_VOCAB * sizeof *to);
    return 0;
}

static void logits_and_cached_decoding_agree(void **state)
{
    (void)state;
    static const int32_t ids[] = {3, 1, 4, 15, 9, 2, 6};
    enum { N = sizeof ids / sizeof ids[0] };
    float all[N * TINY_VOCAB];
    struct tiny_model m = {.dir = "m", .type = "qwen3", .tied = true, .n_layer = 2};
    tiny_model_write(&m);
    struct ps_trainer_options o = tiny_options(m.dir, PS_MODE_NONE);
    o.cache_tok_max = 16;
    struct ps_trainer *t = tiny_trainer(&o);
    struct ps_error err = {0};
    struct ps_trainer_seq whole = {.ids = ids, .n_tok = N};
    assert_int_equal(ps_trainer_logits(t, &whole, 1, keep_rows, all, &err), 0);
    for (int32_t past = 0; past < N; past += past ? 1 : 3) {
        int32_t n = past ? 1 : 3;
        struct ps_trainer_seq seq = {.ids = ids + past, .n_tok = n, .n_past = past};
        assert_int_equal(ps_trainer_decode(t, &seq, 1, &err), 0);
        const float *got = ps_trainer_last_logits(t, 0);
        const float *want = all + (size_t)(past + n - 1) * TINY_VOCAB;
        for (int v = 0; v < TINY_VOCAB; v++)
            assert_true(fabsf(got[v] - want[v]) < 1e-4f);
    }
    ps_trainer_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_gradients_match_differences_untied_with_biases),
        cmocka_unit_test(full_gradients_match_differences_tied_with_head_norms),
        cmocka_unit_test(lora_gradients_match_differences),
        cmocka_unit_test(two_micro_batches_equal_one_of_both),
        cmocka_unit_test(training_the_last_layer_alone_gives_its_gradients_bit_for_bit),
        cmocka_unit_test(recompute_and_keep_and_threads_give_the_same_bits),
        cmocka_unit_test(a_skipped_step_leaves_weights_moments_and_counts),
        cmocka_unit_test(a_step_moves_every_tensor_and_counts),
        cmocka_unit_test(frozen_weights_keep_their_stored_type_without_changing_the_loss),
        cmocka_unit_test(a_missing_model_is_an_error_and_leaves_nothing),
        cmocka_unit_test(logits_and_cached_decoding_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
