/* Softmax cross-entropy on the device against an fp64 reference and the CPU's. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/cross_entropy.h"
#include "tests/cuda/cuda_check.h"

#define DSCALE 0.37f

struct shape {
    size_t rows, vocab, gap, off;
};

/* One off a chunk, a pass of 512 threads (2048 logits) and a group (8192); vocabularies of models.
 */
static const struct shape shapes[] = {
    {1, 1, 0, 0},    {3, 2, 3, 0},     {2, 3, 0, 1},     {5, 63, 1, 0},     {4, 64, 0, 0},
    {3, 2047, 1, 0}, {2, 2048, 4, 0},  {2, 2049, 7, 2},  {1, 8191, 0, 0},   {1, 8193, 3, 0},
    {40, 33, 0, 0},  {2, 32003, 1, 0}, {1, 49152, 0, 0}, {1, 151936, 0, 0},
};
#define SHAPES (sizeof shapes / sizeof *shapes)

struct fixture {
    struct twin z, loss;
    struct device_buffer targets;
    int32_t *target;
    size_t ld;
};

static void fixture_make(cudaStream_t s, struct fixture *f, struct shape p)
{
    f->ld = p.vocab + p.gap;
    f->z = twin_make(s, PS_DTYPE_F32, p.rows * f->ld - p.gap, p.off, 4, 1);
    f->loss = twin_make(s, PS_DTYPE_F32, p.rows * 2, 0, 0, 0); /* doubles */
    f->target = malloc(p.rows * sizeof *f->target);
    assert_non_null(f->target);
    for (size_t i = 0; i < p.rows; i++)
        f->target[i] = (int32_t)((i * 7919 + p.vocab - 1) % p.vocab);
    f->targets = device_make(s, p.rows * 4, 0, f->target);
}

static void fixture_free(cudaStream_t s, struct fixture *f)
{
    twin_free(s, &f->z);
    twin_free(s, &f->loss);
    device_free(s, &f->targets);
    free(f->target);
}

static void on_gpu(cudaStream_t s, struct fixture *f, struct shape p, int write_grad)
{
    assert_int_equal(ps_cross_entropy_cuda(s, (float *)(void *)f->z.gpu.data, f->ld, p.rows,
                                           p.vocab, (int32_t *)(void *)f->targets.data,
                                           (double *)(void *)f->loss.gpu.data, DSCALE, write_grad),
                     0);
}

/* In fp64; ignored rows as the contract has them. */
static void reference(struct fixture *f, struct shape p, int write_grad)
{
    for (size_t r = 0; r < p.rows; r++) {
        float *z = (float *)(void *)f->z.cpu.data + r * f->ld;
        double *loss = (double *)(void *)f->loss.cpu.data + r, max = -INFINITY, sum = 0;
        if (f->target[r] < 0) {
            *loss = 0;
            for (size_t j = 0; write_grad && j < p.vocab; j++)
                z[j] = 0;
            continue;
        }
        for (size_t j = 0; j < p.vocab; j++)
            max = (double)z[j] > max ? (double)z[j] : max;
        for (size_t j = 0; j < p.vocab; j++)
            sum += exp((double)z[j] - max);
        *loss = log(sum) + (max - (double)z[f->target[r]]);
        for (size_t j = 0; write_grad && j < p.vocab; j++) {
            double d = exp((double)z[j] - max) / sum - ((int32_t)j == f->target[r] ? 1 : 0);
            z[j] = (float)(d * (double)DSCALE);
        }
    }
}

/* Loss: fp32 sums of 16 terms, fp64 beyond, expf within 2 ulp: 4e-7 relative in the sum, which the
 * logarithm makes absolute. Gradient: 2 ulp of expf and one more rounding. */
static void check(cudaStream_t s, struct fixture *f, struct shape p)
{
    const double *want = (const double *)(const void *)f->loss.cpu.data;
    const double *got = device_get(s, &f->loss.gpu);
    for (size_t r = 0; r < p.rows; r++)
        close_to("loss", r, got[r], want[r], 5e-7, 1e-7);
    twin_check_rows(s, &f->z, "z", p.vocab, f->ld, 1e-12, 2e-6);
}

static void loss_and_gradient_match_reference(void **state)
{
    for (size_t i = 0; i < SHAPES; i++) {
        struct fixture f;
        fixture_make(*state, &f, shapes[i]);
        reference(&f, shapes[i], 1);
        on_gpu(*state, &f, shapes[i], 1);
        check(*state, &f, shapes[i]);
        fixture_free(*state, &f);
    }
}

static void loss_alone_leaves_the_logits(void **state)
{
    for (size_t i = 0; i < SHAPES; i++) {
        struct fixture f;
        fixture_make(*state, &f, shapes[i]);
        reference(&f, shapes[i], 0);
        on_gpu(*state, &f, shapes[i], 0);
        check(*state, &f, shapes[i]);
        twin_check_bits(*state, &f.z, "z");
        fixture_free(*state, &f);
    }
}

static void ignored_rows_give_no_loss_and_zeros(void **state)
{
    for (size_t i = 0; i < SHAPES * 2; i++) {
        struct shape p = shapes[i / 2];
        struct fixture f;
        fixture_make(*state, &f, p);
        for (size_t r = 0; r < p.rows; r += 2)
            f.target[r] = r % 4 ? -1 : -100;
        device_put(*state, &f.targets, f.target);
        reference(&f, p, (int)(i % 2));
        on_gpu(*state, &f, p, (int)(i % 2));
        check(*state, &f, p);
        fixture_free(*state, &f);
    }
}

/* The maxima rise, fall, lie at the end; certain rows; rows of one value. */
static void orders_of_magnitude_do_not_matter(void **state)
{
    struct shape p = {6, 9001, 0, 0};
    struct fixture f;
    fixture_make(*state, &f, p);
    float *z = (float *)(void *)f.z.cpu.data;
    for (size_t j = 0; j < p.vocab; j++) {
        z[0 * p.vocab + j] = (float)j * 0.01f;
        z[1 * p.vocab + j] = (float)(p.vocab - j) * 0.5f;
        z[2 * p.vocab + j] = j + 1 == p.vocab ? 1e4f : -1e4f;
        z[3 * p.vocab + j] = -7e30f;
        z[4 * p.vocab + j] = (int32_t)j == f.target[4] ? 60.0f : 0.0f;
        z[5 * p.vocab + j] = (float)((j * 2654435761u >> 7) % 200) - 100.0f;
    }
    twin_upload(*state, &f.z);
    reference(&f, p, 1);
    on_gpu(*state, &f, p, 1);
    check(*state, &f, p);
    fixture_free(*state, &f);
}

/* Same kinds of value as the CPU's kernel: NaN, Inf and -Inf in the row, at the target or not. */
static void non_finite_logits_act_as_on_the_cpu(void **state)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    struct shape p = {12, 5000, 0, 0};
    struct fixture f;
    fixture_make(*state, &f, p);
    float *z = (float *)(void *)f.z.cpu.data;
    for (size_t r = 0; r < 9; r++)
        z[r * p.vocab + (r < 3 ? (size_t)f.target[r] : r < 6 ? 17 : 4999)] = odd[r % 3];
    for (size_t j = 0; j < p.vocab; j++) {
        z[9 * p.vocab + j] = -INFINITY;
        z[10 * p.vocab + j] = (int32_t)j == f.target[10] ? 3.0f : -INFINITY;
        z[11 * p.vocab + j] = NAN;
    }
    twin_upload(*state, &f.z);
    ps_cross_entropy(NULL, PS_ISA_PORTABLE, z, f.ld, p.rows, p.vocab, f.target,
                     (double *)(void *)f.loss.cpu.data, DSCALE, 1);
    on_gpu(*state, &f, p, 1);
    check(*state, &f, p);
    fixture_free(*state, &f);
}

static void bits_do_not_depend_on_alignment_rows_or_run(void **state)
{
    enum { VOCAB = 10000 };
    unsigned char *first = NULL;
    for (size_t k = 0; k < 6; k++) {
        struct shape p = {k % 2 ? 3 : 1, VOCAB, 0, k / 2};
        struct fixture f;
        fixture_make(*state, &f, p);
        on_gpu(*state, &f, p, 1);
        unsigned char now[8 + VOCAB * 4];
        memcpy(now, device_get(*state, &f.loss.gpu), 8);
        memcpy(now + 8, device_get(*state, &f.z.gpu), VOCAB * 4);
        if (first)
            assert_memory_equal(now, first, sizeof now);
        else
            first = host_copy(now, sizeof now);
        fixture_free(*state, &f);
    }
    free(first);
}

static void no_rows_are_nothing_to_do(void **state)
{
    assert_int_equal(ps_cross_entropy_cuda(*state, NULL, 8, 0, 8, NULL, NULL, 1, 1), 0);
    assert_int_equal(ps_cross_entropy_cuda(*state, NULL, 0, 1, 0, NULL, NULL, 1, 1), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_and_gradient_match_reference),
        cmocka_unit_test(loss_alone_leaves_the_logits),
        cmocka_unit_test(ignored_rows_give_no_loss_and_zeros),
        cmocka_unit_test(orders_of_magnitude_do_not_matter),
        cmocka_unit_test(non_finite_logits_act_as_on_the_cpu),
        cmocka_unit_test(bits_do_not_depend_on_alignment_rows_or_run),
        cmocka_unit_test(no_rows_are_nothing_to_do),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
