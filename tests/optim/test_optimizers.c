/* What the registry's contract asks of every optimizer, whatever it computes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/optim/optim_check.h"

/* Weights: fp32, bf16 with remainder, bf16 rounded at random. */
static const struct form {
    const char *name;
    enum ps_dtype dtype;
    bool stochastic;
} forms[] = {{"fp32", PS_DTYPE_F32, false},
             {"bf16 with remainder", PS_DTYPE_BF16, false},
             {"bf16", PS_DTYPE_BF16, true}};
enum { FORMS = 3 };

static const struct shape {
    int64_t rows, cols;
} shapes[] = {{1, 0}, {37, 0}, {24, 40}, {83, 77}};
enum { SHAPES = 4 };

static void make(struct subject *s, const struct ps_optimizer_ops *ops, int form, int shape,
                 enum ps_dtype state)
{
    struct ps_optimizer_hyper h = hyper_of(ops);
    h.weight_decay = 0.1;
    h.stochastic_rounding = forms[form].stochastic;
    if (h.state_dtype == PS_DTYPE_F32)
        h.state_dtype = state;
    if (ops == &ps_adafactor_ops && h.state_dtype == PS_DTYPE_BF16)
        h.beta1 = 0.9; /* bf16 is for its momentum */
    if (h.rank > 4)
        h.rank = 4;
    if (h.update_gap > 3)
        h.update_gap = 3;
    if (h.interval > 3)
        h.interval = 3;
    subject_make(s, ops, &h, tensor_of(shapes[shape].rows, shapes[shape].cols, forms[form].dtype),
                 0.05);
}

static bool has_bf16(const struct ps_optimizer_ops *ops)
{
    return ops->states && strstr(ops->states, "bf16");
}

static void fill_grad(struct subject *s, uint64_t t)
{
    for (size_t i = 0; i < s->tensor.n; i++)
        put(s->grad.data, PS_DTYPE_F32, i, (double)golden_grad((uint32_t)i, 1, (uint32_t)t));
}

enum { STEPS = 7 };

static void run(struct subject *s, struct ps_pool *pool, enum ps_isa isa, size_t cut)
{
    for (uint64_t t = 1; t <= STEPS; t++) {
        fill_grad(s, t);
        subject_update(s, &(struct how){.pool = pool,
                                        .isa = isa,
                                        .lr = 1e-3 * (double)t,
                                        .decay = true,
                                        .grad_scale = t % 2 ? 1 : 0.37f,
                                        .cut = cut});
    }
}

/* Slices of any size, threads, instruction sets: element- and block-wise methods give the same
 * bits. Methods that want whole tensors are held to threads alone (linear algebra may differ over
 * instruction sets, which are part of a run's identity). */
static void slices_threads_and_isa_change_no_bit(void **state)
{
    struct pools *pools = *state;
    for (const struct ps_optimizer_ops *const *o = ps_optimizers(); *o; o++)
        for (int form = 0; form < FORMS; form++)
            for (int shape = 0; shape < SHAPES; shape++)
                for (int b = 0; b <= has_bf16(*o); b++) {
                    enum ps_dtype sd = b ? PS_DTYPE_BF16 : PS_DTYPE_F32;
                    struct subject whole;
                    make(&whole, *o, form, shape, sd);
                    run(&whole, NULL, ps_isa_detect(), 0);
                    for (int k = 0; k < (whole.layout.granule > 0 ? 6 : 2); k++) {
                        static const size_t cut[] = {0, 1, 3, 0, 7, 2};
                        enum ps_isa isa = ps_isa_detect();
                        if (whole.layout.granule > 0)
                            isa = (enum ps_isa)(k % (int)(isa + 1));
                        size_t c = cut[k];
                        if (whole.layout.granule == 1 && whole.tensor.n > 1000 && c > 0)
                            c += 331;
                        struct subject s;
                        make(&s, *o, form, shape, sd);
                        run(&s, pools->pool[k % THREADS_MAX], isa, c);
                        assert_same_subject(&whole, &s, forms[form].name);
                        subject_free(&s);
                    }
                    subject_free(&whole);
                }
}

static void zero_gradients_make_no_nan(void **state)
{
    struct pools *pools = *state;
    for (const struct ps_optimizer_ops *const *o = ps_optimizers(); *o; o++)
        for (int form = 0; form < FORMS; form++)
            for (int shape = 0; shape < SHAPES; shape++)
                for (int later = 0; later < 2; later++) {
                    struct subject s;
                    make(&s, *o, form, shape, PS_DTYPE_F32);
                    if (later)
                        run(&s, pools->pool[1], ps_isa_detect(), 0);
                    memset(s.grad.data, 0, s.grad.bytes);
                    for (int t = 0; t < 10; t++)
                        subject_update(&s, &(struct how){.pool = pools->pool[1],
                                                         .isa = ps_isa_detect(),
                                                         .lr = 1e-3});
                    for (size_t i = 0; i < s.tensor.n; i++)
                        if (!isfinite(master(&s, i)))
                            fail_msg("%s: weight %zu is %g", (*o)->name, i, master(&s, i));
                    for (int k = 0; k < s.layout.state_count; k++) {
                        const struct ps_opt_state *x = &s.layout.state[k];
                        if (x->dtype != PS_DTYPE_F32 && x->dtype != PS_DTYPE_BF16)
                            continue;
                        size_t n = s.state[k].bytes / ps_dtype_size(x->dtype);
                        for (size_t i = 0; i < n; i++)
                            if (!isfinite(get(s.state[k].data, x->dtype, i)))
                                fail_msg("%s: %s[%zu]", (*o)->name, x->name, i);
                    }
                    subject_free(&s);
                }
}

/* States say it all: after so many steps a copy of weights and states goes on as the original. The
 * workspace holds nothing. */
static void weights_and_states_are_all_that_is_kept(void **state)
{
    struct pools *pools = *state;
    for (const struct ps_optimizer_ops *const *o = ps_optimizers(); *o; o++)
        for (int form = 0; form < FORMS; form++)
            for (int shape = 0; shape < SHAPES; shape++) {
                struct subject a, b;
                make(&a, *o, form, shape, PS_DTYPE_F32);
                make(&b, *o, form, shape, PS_DTYPE_F32);
                run(&a, pools->pool[1], ps_isa_detect(), 0);
                memcpy(b.weight.data, a.weight.data, a.weight.bytes);
                if (a.remainder.base)
                    memcpy(b.remainder.data, a.remainder.data, a.remainder.bytes);
                for (int k = 0; k < a.layout.state_count; k++)
                    memcpy(b.state[k].data, a.state[k].data, a.state[k].bytes);
                b.t = a.t;
                run(&a, pools->pool[0], ps_isa_detect(), 0);
                run(&b, pools->pool[2], ps_isa_detect(), 0);
                assert_same_subject(&a, &b, "a copy");
                subject_free(&a);
                subject_free(&b);
            }
}

static void layouts_keep_the_contract(void **state)
{
    (void)state;
    for (const struct ps_optimizer_ops *const *o = ps_optimizers(); *o; o++) {
        assert_ptr_equal(ps_optimizer_find((*o)->name), *o);
        for (int shape = 0; shape < SHAPES; shape++) {
            struct subject s;
            make(&s, *o, 0, shape, PS_DTYPE_F32);
            const struct ps_opt_layout *l = &s.layout;
            assert_in_range(l->state_count, 0, PS_OPTIMIZER_STATE_MAX);
            assert_true(l->granule == 0 || (65536 % l->granule == 0));
            for (int k = 0; k < l->state_count; k++) {
                assert_non_null(l->state[k].name);
                /* a slice begins where an entry begins */
                assert_true(l->granule == 0 ||
                            (l->state[k].per > 0 && l->granule % l->state[k].per == 0));
                for (int j = 0; j < k; j++)
                    assert_string_not_equal(l->state[k].name, l->state[j].name);
            }
            subject_free(&s);
        }
    }
    assert_null(ps_optimizer_find("no such"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts_keep_the_contract),
        cmocka_unit_test(slices_threads_and_isa_change_no_bit),
        cmocka_unit_test(zero_gradients_make_no_nan),
        cmocka_unit_test(weights_and_states_are_all_that_is_kept),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
