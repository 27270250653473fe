/* LISA and BAdam: who trains when, and that it is AdamW then. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "optim/active_layers.h"
#include "tests/optim/optim_check.h"

static struct ps_opt_tensor in_layer(int32_t layer)
{
    struct ps_opt_tensor x = tensor_of(20, 30, PS_DTYPE_BF16);
    x.layer = layer;
    return x;
}

static void lisa_draws_each_layer_as_often(void **state)
{
    (void)state;
    enum { LAYERS = 7, COUNT = 3, DRAWS = 10000 };
    int hits[LAYERS] = {0};
    struct ps_optimizer_hyper h = {
        .seed = 5, .n_layer = LAYERS, .active_layers = COUNT, .interval = 4};
    for (uint64_t k = 0; k < DRAWS; k++) {
        int now = 0;
        for (int32_t l = 0; l < LAYERS; l++) {
            struct ps_opt_tensor x = in_layer(l);
            bool on = ps_lisa_ops.active(&h, &x, 4 * k);
            /* the same through the interval */
            assert_int_equal(on, ps_lisa_ops.active(&h, &x, 4 * k + 3));
            hits[l] += on;
            now += on;
        }
        assert_int_equal(now, COUNT);
    }
    double p = (double)COUNT / LAYERS, sigma = sqrt(DRAWS * p * (1 - p));
    for (int l = 0; l < LAYERS; l++)
        if (fabs(hits[l] - DRAWS * p) > 3 * sigma)
            fail_msg("layer %d: %d of %d", l, hits[l], DRAWS);
    struct ps_opt_tensor head = in_layer(-1);
    assert_true(ps_lisa_ops.active(&h, &head, 9));
}

static int badam_now(enum ps_switch_mode mode, uint64_t step, int32_t layers)
{
    struct ps_optimizer_hyper h = {
        .seed = 5, .n_layer = layers, .switch_mode = mode, .interval = 10};
    int found = -1;
    for (int32_t l = -1; l < layers; l++) {
        struct ps_opt_tensor x = in_layer(l);
        if (!ps_badam_ops.active(&h, &x, step))
            continue;
        assert_int_equal(found, -1); /* one at a time */
        found = l;
    }
    assert_true(found >= 0);
    return found;
}

static void badam_visits_one_layer_a_turn_in_its_order(void **state)
{
    (void)state;
    for (uint64_t turn = 0; turn < 12; turn++)
        for (uint64_t in = 0; in < 10; in += 9) {
            uint64_t step = turn * 10 + in;
            assert_int_equal(badam_now(PS_SWITCH_DESCENDING, step, 4), 3 - (int)(turn % 4));
            assert_int_equal(badam_now(PS_SWITCH_ASCENDING, step, 4), (int)(turn % 4));
            assert_int_equal(badam_now(PS_SWITCH_FIXED, step, 4), 3);
        }
    int orders = 0;
    for (uint64_t round = 0; round < 20; round++) {
        unsigned seen = 0;
        int order = 0;
        for (uint64_t k = 0; k < 4; k++) {
            int l = badam_now(PS_SWITCH_RANDOM, (round * 4 + k) * 10, 4);
            seen |= 1u << l;
            order = order * 4 + l;
        }
        assert_int_equal(seen, 15); /* each once a round */
        orders += order != 0 * 64 + 1 * 16 + 2 * 4 + 3;
    }
    assert_true(orders > 10);
}

static void badam_has_no_state_for_what_never_trains(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_of(&ps_badam_ops);
    struct ps_opt_layout l;
    struct ps_error err = {0};
    struct ps_opt_tensor x = in_layer(-1);
    assert_int_equal(ps_badam_ops.layout(&h, &x, &l, &err), 0);
    assert_int_equal(l.state_count, 0);
}

/* `method` beside AdamW for `steps` steps, moments of AdamW begun anew every `anew` steps. */
static void equals_adamw(const struct ps_optimizer_ops *ops, struct ps_optimizer_hyper h,
                         uint64_t anew, uint64_t steps)
{
    struct subject a, b;
    struct ps_opt_tensor x = in_layer(0);
    subject_make(&a, ops, &h, x, 0.05);
    subject_make(&b, &ps_adamw_ops, &h, x, 0.05);
    for (uint64_t step = 0; step < steps; step++) {
        for (size_t i = 0; i < x.n; i++) {
            float g = golden_grad((uint32_t)i, 1, (uint32_t)step);
            memcpy(a.grad.data + 4 * i, &g, 4);
            memcpy(b.grad.data + 4 * i, &g, 4);
        }
        if (anew && step % anew == 0) {
            b.t = 0;
            memset(b.state[0].data, 0, b.state[0].bytes);
            memset(b.state[1].data, 0, b.state[1].bytes);
        }
        struct how how = {.isa = ps_isa_detect(), .lr = 1e-3, .decay = true, .cut = 77};
        subject_update(&a, &how);
        subject_update(&b, &how);
        assert_memory_equal(a.weight.data, b.weight.data, a.weight.bytes);
        assert_memory_equal(a.remainder.data, b.remainder.data, a.remainder.bytes);
    }
    subject_free(&a);
    subject_free(&b);
}

static void all_layers_at_once_is_adamw(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_of(&ps_lisa_ops);
    h.weight_decay = 0.1;
    h.active_layers = h.n_layer;
    h.interval = 3;
    equals_adamw(&ps_lisa_ops, h, 3, 10); /* moments begin anew */
    h.keep_state = true;
    equals_adamw(&ps_lisa_ops, h, 0, 10);
    h = hyper_of(&ps_badam_ops);
    h.n_layer = 1;
    h.interval = 4;
    equals_adamw(&ps_badam_ops, h, 4, 10);
}

static void more_layers_than_there_are_is_refused(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = hyper_of(&ps_lisa_ops);
    struct ps_opt_layout l;
    struct ps_error err = {0};
    struct ps_opt_tensor x = in_layer(0);
    h.active_layers = h.n_layer + 1;
    assert_int_equal(ps_lisa_ops.layout(&h, &x, &l, &err), PS_EUSAGE);
    assert_string_equal(err.field, "lisa-activated-layers");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lisa_draws_each_layer_as_often),
        cmocka_unit_test(badam_visits_one_layer_a_turn_in_its_order),
        cmocka_unit_test(badam_has_no_state_for_what_never_trains),
        cmocka_unit_test(all_layers_at_once_is_adamw),
        cmocka_unit_test(more_layers_than_there_are_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
