/* One sequence of operations in every instruction set: updates, rounding and the 8-bit map give the
 * bits of the portable code, for any form of weights, gradients and states, any slice and length.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "optim/dynamic_map_variants.h"
#include "optim/weight_io.h"
#include "runtime/base/rng.h"
#include "tests/optim/optim_check.h"

enum { STEPS = 3 };

struct form {
    const char *name;
    enum ps_dtype weight, grad, state;
    bool stochastic;
};

static const struct form forms[] = {
    {"fp32", PS_DTYPE_F32, PS_DTYPE_F32, PS_DTYPE_F32, false},
    {"fp32, bf16 gradient", PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F32, false},
    {"remainder", PS_DTYPE_BF16, PS_DTYPE_F32, PS_DTYPE_F32, false},
    {"remainder, bf16 gradient", PS_DTYPE_BF16, PS_DTYPE_BF16, PS_DTYPE_F32, false},
    {"rounded", PS_DTYPE_BF16, PS_DTYPE_F32, PS_DTYPE_F32, true},
    {"rounded, bf16 gradient", PS_DTYPE_BF16, PS_DTYPE_BF16, PS_DTYPE_F32, true},
    {"fp32, bf16 states", PS_DTYPE_F32, PS_DTYPE_F32, PS_DTYPE_BF16, false},
    {"remainder, bf16 states and gradient", PS_DTYPE_BF16, PS_DTYPE_BF16, PS_DTYPE_BF16, false},
    {"rounded, bf16 states", PS_DTYPE_BF16, PS_DTYPE_F32, PS_DTYPE_BF16, true},
    {"rounded, bf16 states and gradient", PS_DTYPE_BF16, PS_DTYPE_BF16, PS_DTYPE_BF16, true},
};

/* One method with options of its own. */
struct method {
    const struct ps_optimizer_ops *ops;
    void (*set)(struct ps_optimizer_hyper *h);
};

static void nothing(struct ps_optimizer_hyper *h)
{
    (void)h;
}

static void momentum(struct ps_optimizer_hyper *h)
{
    h->momentum = 0.9;
    h->dampening = 0.1;
}

static void nesterov(struct ps_optimizer_hyper *h)
{
    h->momentum = 0.9;
    h->nesterov = true;
}

static void first_moment(struct ps_optimizer_hyper *h)
{
    h->beta1 = 0.9;
    h->scale_parameter = true;
}

/* Gradients of very different sizes, some zero, some subnormal. */
static void fill_grad(void *grad, enum ps_dtype dtype, size_t n, uint64_t t)
{
    static const double size[8] = {1, 1e-3, 1e-6, 30, 1e-12, 100, 1e-39, 0};
    for (size_t i = 0; i < n; i++)
        put(grad, dtype, i, (double)golden_grad((uint32_t)i, 1, (uint32_t)t) * size[(i / 3) % 8]);
}

struct run {
    enum ps_isa isa;
    struct ps_pool *pool;
    size_t cut; /* elements of a slice but the last, 0: whole */
};

static void update(struct subject *s, const struct form *f, const struct guarded *grad,
                   const struct run *r)
{
    size_t n = s->tensor.n, cut = r->cut > 0 ? r->cut : n;
    struct ps_error err = {0};
    s->t++;
    for (size_t begin = 0; begin < n; begin += cut) {
        struct ps_update u = {.pool = r->pool,
                              .isa = r->isa,
                              .hyper = &s->hyper,
                              .tensor = &s->tensor,
                              .layout = &s->layout,
                              .begin = begin,
                              .n = n - begin < cut ? n - begin : cut,
                              .weight = s->weight.data + begin * ps_dtype_size(s->tensor.dtype),
                              .grad = grad->data + begin * ps_dtype_size(f->grad),
                              .grad_dtype = f->grad,
                              .workspace = s->workspace,
                              .t = s->t,
                              .step = s->t - 1,
                              .lr = 1e-3,
                              .decay = true,
                              .grad_scale = s->t % 2 ? 1 : 0.37f};
        if (s->remainder.base)
            u.remainder = (uint16_t *)(void *)(s->remainder.data + 2 * begin);
        for (int k = 0; k < s->layout.state_count; k++) {
            const struct ps_opt_state *state = &s->layout.state[k];
            size_t at = state->per ? begin / state->per * ps_dtype_size(state->dtype) : 0;
            u.state[k] = s->state[k].data + at;
        }
        assert_int_equal(s->ops->update(&u, &err), 0);
    }
}

static void run_all(struct subject *s, const struct method *m, const struct form *f, int64_t rows,
                    int64_t cols, const struct run *r)
{
    struct ps_optimizer_hyper h = hyper_of(m->ops);
    h.weight_decay = 0.1;
    h.stochastic_rounding = f->stochastic;
    if (h.state_dtype == PS_DTYPE_F32)
        h.state_dtype = f->state;
    m->set(&h);
    subject_make(s, m->ops, &h, tensor_of(rows, cols, f->weight), 0.05);
    struct guarded grad = guarded_make(s->tensor.n * ps_dtype_size(f->grad), 4);
    for (uint64_t t = 1; t <= STEPS; t++) {
        fill_grad(grad.data, f->grad, s->tensor.n, t);
        update(s, f, &grad, r);
    }
    guarded_free(&grad);
}

/* Every instruction set, in slices where the method has them, beside the portable code on the whole
 * tensor. */
static void check(const struct method *m, int64_t rows, int64_t cols, struct pools *pools,
                  const size_t *cuts, size_t cut_count)
{
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        const struct form *f = &forms[i];
        bool has_bf16 = m->ops->states && strstr(m->ops->states, "bf16");
        if (f->state == PS_DTYPE_BF16 &&
            (!has_bf16 || (m->ops == &ps_adafactor_ops && m->set != first_moment)))
            continue;
        struct subject ref;
        run_all(&ref, m, f, rows, cols, &(struct run){.isa = PS_ISA_PORTABLE});
        for (enum ps_isa isa = PS_ISA_AVX2; isa <= ps_isa_detect(); isa++)
            for (size_t c = 0; c < (ref.layout.granule ? cut_count : 1); c++) {
                size_t granule = (size_t)ref.layout.granule;
                size_t cut = cuts[c] > 0 ? (cuts[c] + granule - 1) / granule * granule : 0;
                char what[160];
                snprintf(what, sizeof what, "%s, %s, %d x %d, slices of %d", f->name,
                         ps_isa_name(isa), (int)rows, (int)cols, (int)cut);
                struct subject s;
                run_all(&s, m, f, rows, cols,
                        &(struct run){isa, pools->pool[c % THREADS_MAX], cut});
                assert_same_subject(&ref, &s, what);
                subject_free(&s);
            }
        subject_free(&ref);
    }
}

static const size_t some_cuts[] = {0, 1009, 64, 333};

/* Vectors of every length about the sizes of registers and groups, and one of several tasks. */
static void vectors(const struct method *m, struct pools *pools)
{
    static const int64_t length[] = {1, 15, 16, 17, 31, 32, 33, 65, 127, 128, 129, 300};
    for (size_t i = 0; i < sizeof length / sizeof length[0]; i++)
        check(m, length[i], 0, pools, (const size_t[]){0, 7}, 2);
    check(m, 3 * 16384 + 77, 0, pools, some_cuts, 2);
    check(m, 2500, 0, pools, some_cuts, 4);
}

static void sgd_is_the_same_everywhere(void **state)
{
    vectors(&(struct method){&ps_sgd_ops, nothing}, *state);
    vectors(&(struct method){&ps_sgd_ops, momentum}, *state);
    check(&(struct method){&ps_sgd_ops, nesterov}, 1001, 0, *state, some_cuts, 4);
}

static void lion_is_the_same_everywhere(void **state)
{
    vectors(&(struct method){&ps_lion_ops, nothing}, *state);
}

static void adamw_is_the_same_everywhere(void **state)
{
    vectors(&(struct method){&ps_adamw_ops, nothing}, *state);
}

static void adamw8bit_is_the_same_everywhere(void **state)
{
    const struct method m = {&ps_adamw8bit_ops, nothing};
    check(&m, 64, 64, *state, some_cuts, 3);
    check(&m, 67, 63, *state, some_cuts, 3);   /* the last block: 125 */
    check(&m, 131, 257, *state, some_cuts, 3); /* several tasks */
    check(&m, 1, 4097, *state, some_cuts, 2);  /* the last block: 1 */
}

static void adafactor_is_the_same_everywhere(void **state)
{
    static const int64_t shape[][2] = {{1, 1},   {3, 5},    {16, 16},  {17, 33},   {33, 31},
                                       {70, 15}, {37, 129}, {5, 1030}, {150, 257}, {2100, 9}};
    for (int k = 0; k < 2; k++) {
        const struct method m = {&ps_adafactor_ops, k ? first_moment : nothing};
        for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++)
            check(&m, shape[i][0], shape[i][1], *state, some_cuts, 1);
        check(&m, 1300, 0, *state, some_cuts, 1);
    }
}

/* Threads alone: sums are in the order of the shape. */
static void adafactor_does_not_depend_on_threads(void **state)
{
    struct pools *pools = *state;
    const struct method m = {&ps_adafactor_ops, first_moment};
    struct subject s[THREADS_MAX];
    for (int k = 0; k < THREADS_MAX; k++)
        run_all(&s[k], &m, &forms[4], 150, 257,
                &(struct run){.isa = ps_isa_detect(), .pool = pools->pool[k]});
    for (int k = 1; k < THREADS_MAX; k++)
        assert_same_subject(&s[0], &s[k], "threads");
    for (int k = 0; k < THREADS_MAX; k++)
        subject_free(&s[k]);
}

/* By the definition in weight_io.h, for any bits: NaN of every kind, infinities, subnormals. */
static void rounding_is_that_of_the_definition(void **state)
{
    (void)state;
    enum { N = 700 };
    static const size_t begin[] = {0, 1, 7, 8, 61, 128, 4294967291u};
    static const size_t length[] = {1, 31, 32, 33, 128, 129, N};
    struct ps_optimizer_hyper h = {.seed = 0x123456789abcdef0u};
    struct ps_opt_tensor x = tensor_of(N, 0, PS_DTYPE_BF16);
    struct ps_opt_layout layout = {.granule = 1};
    float value[N];
    for (uint32_t i = 0; i < N; i++) {
        static const uint32_t special[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001,
                                           0x7f800001, 0x7fbfffff, 0x7f7fffff, 0xff7fffff,
                                           1,          0x80000000};
        uint32_t bits = i % 7 == 3 ? special[i / 7 % 10] : i * 2654435761u;
        memcpy(&value[i], &bits, 4);
    }
    FOR_EACH_ISA(isa)
    for (size_t b = 0; b < sizeof begin / sizeof begin[0]; b++)
        for (size_t l = 0; l < sizeof length / sizeof length[0]; l++) {
            struct guarded out = guarded_make(2 * length[l], 2);
            struct ps_update u = {.isa = isa,
                                  .hyper = &h,
                                  .tensor = &x,
                                  .layout = &layout,
                                  .begin = begin[b],
                                  .n = length[l],
                                  .weight = out.data,
                                  .t = 0x100000005u};
            ps_weight_store(&u, 0, length[l], value);
            struct ps_rng_key key = {
                .seed = h.seed, .step = u.t, .layer = x.id, .site = PS_RNG_ROUND};
            for (size_t i = 0; i < length[l]; i++) {
                uint32_t word[4];
                uint64_t e = begin[b] + i;
                ps_rng_block(&key, e / 8, word);
                uint16_t r = (uint16_t)(word[e % 8 / 2] >> 16 * (e % 2)), got;
                memcpy(&got, out.data + 2 * i, 2);
                assert_int_equal(got, ps_round_stochastic(value[i], r));
            }
            guarded_free(&out);
        }
}

static void same_codes(const float *x, size_t n, bool is_signed)
{
    uint8_t want[PS_BLOCK8], got[PS_BLOCK8];
    float scale, other;
    ps_block8_encode(x, n, is_signed, want, &scale);
    FOR_EACH_ISA(isa)
    {
        ps__block8_encode_for(isa)(x, n, is_signed, got, &other);
        assert_memory_equal(&scale, &other, 4);
        for (size_t i = 0; i < n; i++)
            if (want[i] != got[i])
                fail_msg("%s: %a of %a: code %d, not %d", ps_isa_name(isa), (double)x[i],
                         (double)scale, got[i], want[i]);
    }
}

/* Values of every exponent, and those beside each place where the code changes. */
static void codes_are_the_same_everywhere(void **state)
{
    (void)state;
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        float x[PS_BLOCK8];
        for (uint32_t e = 0; e < 255; e++) {
            for (uint32_t i = 0; i < PS_BLOCK8; i++) {
                uint32_t bits = e << 23 | (i * 2654435761u >> 9);
                bits |= is_signed && i % 2 ? 0x80000000u : 0;
                memcpy(&x[i], &bits, 4);
            }
            x[7] = e < 128 ? 1 : x[7];
            x[9] = 0;
            same_codes(x, PS_BLOCK8, is_signed);
            same_codes(x, 1 + e % 40, is_signed);
        }
        for (int c = 0; c < 255; c++) {
            double middle = 0.5 * (double)ps_dynamic_value((uint8_t)c, is_signed) +
                            0.5 * (double)ps_dynamic_value((uint8_t)(c + 1), is_signed);
            float at = (float)middle;
            uint32_t bits;
            memcpy(&bits, &at, 4);
            for (uint32_t i = 0; i < PS_BLOCK8; i++) {
                uint32_t near = bits + i - PS_BLOCK8 / 2;
                memcpy(&x[i], &near, 4);
            }
            x[0] = 1;
            same_codes(x, PS_BLOCK8, is_signed);
        }
    }
}

static void values_are_the_same_everywhere(void **state)
{
    (void)state;
    static const float scale[] = {0, 0x1p-149f, 0x1p-130f, 1e-20f, 0.37f, 1, 3e38f};
    uint8_t code[PS_BLOCK8];
    float want[PS_BLOCK8], got[PS_BLOCK8];
    for (int c = 0; c < PS_BLOCK8; c++)
        code[c] = (uint8_t)c;
    for (int is_signed = 0; is_signed < 2; is_signed++)
        for (size_t k = 0; k < sizeof scale / sizeof scale[0]; k++) {
            ps_block8_decode(code, scale[k], PS_BLOCK8, is_signed, want);
            FOR_EACH_ISA(isa)
            {
                ps__block8_decode_for(isa)(code, scale[k], PS_BLOCK8, is_signed, got);
                assert_memory_equal(want, got, sizeof want);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sgd_is_the_same_everywhere),
        cmocka_unit_test(lion_is_the_same_everywhere),
        cmocka_unit_test(adamw_is_the_same_everywhere),
        cmocka_unit_test(adamw8bit_is_the_same_everywhere),
        cmocka_unit_test(adafactor_is_the_same_everywhere),
        cmocka_unit_test(adafactor_does_not_depend_on_threads),
        cmocka_unit_test(rounding_is_that_of_the_definition),
        cmocka_unit_test(codes_are_the_same_everywhere),
        cmocka_unit_test(values_are_the_same_everywhere),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
