/* RMSNorm forward and backward. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/rmsnorm.h"
#include "tests/kernels/kernel_check.h"

#define GAP 5 /* elements between rows: leading dimensions that align nothing */

struct shape {
    size_t n_tok, rows_per_tok, n;
};

static const struct shape shapes[] = {
    {1, 1, 1},  {3, 1, 2},    {2, 1, 15},  {65, 1, 16}, {64, 1, 17},    {5, 3, 63},
    {7, 2, 64}, {130, 1, 65}, {3, 4, 255}, {3, 1, 257}, {200, 1, 1000}, {2, 1, 8191},
};

struct fixture {
    struct ps_rmsnorm_args a;
    struct guarded x, w, y, rstd, dy, dx, add, dw, work;
    size_t rows, ld;
};

static void fixture_make(struct fixture *f, struct shape s, enum ps_dtype t, enum ps_dtype wt)
{
    size_t es = ps_dtype_size(t);
    f->rows = s.n_tok * s.rows_per_tok;
    f->ld = s.rows_per_tok * s.n + GAP;
    size_t bytes = (s.n_tok * f->ld - GAP) * es; /* the last row ends at the guard */
    f->x = guarded_make(bytes, es);
    f->y = guarded_make(bytes, es);
    f->dy = guarded_make(bytes, 2 * es);
    f->dx = guarded_make(bytes, 3 * es);
    f->add = guarded_make(bytes, es);
    f->w = guarded_make(s.n * ps_dtype_size(wt), ps_dtype_size(wt));
    f->rstd = guarded_make(f->rows * 4, 4);
    f->dw = guarded_make(s.n * 4, 4);
    f->work = guarded_make(ps_rmsnorm_workspace_bytes(f->rows, s.n), 0);
    size_t count = bytes / es;
    fill(f->x.data, t, count, 1.5, 1);
    fill(f->dy.data, t, count, 0.7, 2);
    fill(f->add.data, t, count, 0.5, 3);
    fill(f->w.data, wt, s.n, 1.0, 4);
    fill(f->dw.data, PS_DTYPE_F32, s.n, 1.0, 5);
    f->a = (struct ps_rmsnorm_args){
        .n_tok = s.n_tok,
        .rows_per_tok = s.rows_per_tok,
        .n = s.n,
        .eps = 1e-5f,
        .dtype = t,
        .x = f->x.data,
        .x_ld = f->ld,
        .weight = f->w.data,
        .weight_dtype = wt,
        .y = f->y.data,
        .y_ld = f->ld,
        .rstd = (float *)(void *)f->rstd.data,
        .dy = f->dy.data,
        .dy_ld = f->ld,
        .dx = f->dx.data,
        .dx_ld = f->ld,
        .dx_add = f->add.data,
        .dx_add_ld = f->ld,
        .dweight = (float *)(void *)f->dw.data,
    };
}

static void fixture_free(struct fixture *f)
{
    guarded_free(&f->x);
    guarded_free(&f->w);
    guarded_free(&f->y);
    guarded_free(&f->rstd);
    guarded_free(&f->dy);
    guarded_free(&f->dx);
    guarded_free(&f->add);
    guarded_free(&f->dw);
    guarded_free(&f->work);
}

/* Copy of a buffer's bytes. */
static void *copy_of(const struct guarded *g)
{
    void *c = malloc(g->bytes);
    assert_non_null(c);
    memcpy(c, g->data, g->bytes);
    return c;
}

/* Compare rows; what lies between them must be as it was filled: 0xA5. */
static void check_rows(const char *what, const struct fixture *f, const void *got, const void *ref,
                       double atol, double rtol)
{
    enum ps_dtype t = f->a.dtype;
    size_t used = f->a.rows_per_tok * f->a.n, es = ps_dtype_size(t);
    for (size_t tok = 0; tok < f->a.n_tok; tok++) {
        for (size_t j = 0; j < used; j++)
            close_to(what, tok * f->ld + j, get(got, t, tok * f->ld + j),
                     get(ref, t, tok * f->ld + j), atol, rtol);
        const unsigned char *gap = (const unsigned char *)got + (tok * f->ld + used) * es;
        for (size_t b = 0; tok + 1 < f->a.n_tok && b < GAP * es; b++)
            assert_int_equal(gap[b], GUARD_BYTE);
    }
}

/* rstd: a sum of n fp32 squares in 16 or more lanes errs by about n/16 * 2^-24 at worst, in
 * practice by its root; 2e-6 has room. bf16 outputs may round the other way. */
static double rtol_of(enum ps_dtype t)
{
    return t == PS_DTYPE_F32 ? 2e-6 : spacing(t);
}

static const enum ps_dtype type_pair[][2] = {
    {PS_DTYPE_F32, PS_DTYPE_F32},  {PS_DTYPE_F32, PS_DTYPE_BF16},  {PS_DTYPE_F32, PS_DTYPE_F16},
    {PS_DTYPE_BF16, PS_DTYPE_F32}, {PS_DTYPE_BF16, PS_DTYPE_BF16}, {PS_DTYPE_BF16, PS_DTYPE_F16},
};

#define SHAPES (sizeof shapes / sizeof *shapes)
#define PAIRS (sizeof type_pair / sizeof *type_pair)

static void forward_matches_reference_and_ignores_thread_count(void **state)
{
    struct pools *pools = *state;
    for (size_t i = 0; i < SHAPES * PAIRS; i++) {
        struct fixture f;
        fixture_make(&f, shapes[i / PAIRS], type_pair[i % PAIRS][0], type_pair[i % PAIRS][1]);
        ps_rmsnorm_forward_reference(&f.a);
        void *ref = copy_of(&f.y), *ref_rstd = copy_of(&f.rstd);
        FOR_EACH_ISA(isa)
        {
            void *first = NULL, *first_rstd = NULL;
            for (int p = 0; p < THREADS_MAX; p++) {
                memset(f.y.data, GUARD_BYTE, f.y.bytes);
                memset(f.rstd.data, GUARD_BYTE, f.rstd.bytes);
                ps_rmsnorm_forward(pools->pool[p], isa, &f.a);
                check_rows("y", &f, f.y.data, ref, 1e-6, rtol_of(f.a.dtype));
                for (size_t r = 0; r < f.rows; r++)
                    close_to("rstd", r, get(f.rstd.data, PS_DTYPE_F32, r),
                             get(ref_rstd, PS_DTYPE_F32, r), 0, 2e-6);
                if (p == 0) {
                    first = copy_of(&f.y);
                    first_rstd = copy_of(&f.rstd);
                }
                assert_memory_equal(first, f.y.data, f.y.bytes);
                assert_memory_equal(first_rstd, f.rstd.data, f.rstd.bytes);
            }
            free(first);
            free(first_rstd);
        }
        free(ref);
        free(ref_rstd);
        fixture_free(&f);
    }
}

static void backward_matches_reference_and_ignores_thread_count(void **state)
{
    struct pools *pools = *state;
    for (size_t i = 0; i < SHAPES * PAIRS; i++) {
        struct fixture f;
        fixture_make(&f, shapes[i / PAIRS], type_pair[i % PAIRS][0], type_pair[i % PAIRS][1]);
        f.a.accumulate = (int)(i % 2);
        f.a.dx_add = i % 3 ? f.add.data : NULL;
        ps_rmsnorm_forward_reference(&f.a);
        void *dw0 = copy_of(&f.dw);
        ps_rmsnorm_backward_reference(&f.a);
        void *ref = copy_of(&f.dx), *ref_dw = copy_of(&f.dw);
        FOR_EACH_ISA(isa)
        {
            void *first = NULL, *first_dw = NULL;
            for (int p = 0; p < THREADS_MAX; p++) {
                memset(f.dx.data, GUARD_BYTE, f.dx.bytes);
                memcpy(f.dw.data, dw0, f.dw.bytes);
                ps_rmsnorm_backward(pools->pool[p], isa, &f.a, f.work.data);
                /* dx is a difference of terms of size 1 * rstd (rstd < 320 at n = 1); the tiny rows
                 * with large rstd get their room from it */
                double size = 1;
                for (size_t r = 0; r < f.rows; r++)
                    size = fmax(size, get(f.rstd.data, PS_DTYPE_F32, r));
                check_rows("dx", &f, f.dx.data, ref, 4e-6 * size, rtol_of(f.a.dtype));
                /* sums of up to 600 products of size 1 */
                for (size_t j = 0; j < f.a.n; j++)
                    close_to("dweight", j, get(f.dw.data, PS_DTYPE_F32, j),
                             get(ref_dw, PS_DTYPE_F32, j), 2e-5, 2e-6);
                if (p == 0) {
                    first = copy_of(&f.dx);
                    first_dw = copy_of(&f.dw);
                }
                assert_memory_equal(first, f.dx.data, f.dx.bytes);
                assert_memory_equal(first_dw, f.dw.data, f.dw.bytes);
            }
            free(first);
            free(first_dw);
        }
        free(ref);
        free(ref_dw);
        free(dw0);
        fixture_free(&f);
    }
}

static void in_place_gives_the_same_bits(void **state)
{
    struct pools *pools = *state;
    for (size_t i = 0; i < SHAPES; i++) {
        FOR_EACH_ISA(isa)
        {
            struct fixture f;
            fixture_make(&f, shapes[i], i % 2 ? PS_DTYPE_F32 : PS_DTYPE_BF16, PS_DTYPE_F32);
            ps_rmsnorm_forward(pools->pool[1], isa, &f.a);
            ps_rmsnorm_backward(pools->pool[1], isa, &f.a, f.work.data);
            void *y = copy_of(&f.y), *dx = copy_of(&f.dx), *dy = copy_of(&f.dy);
            f.a.dx = f.dy.data;
            ps_rmsnorm_backward(pools->pool[1], isa, &f.a, f.work.data);
            check_rows("dx in dy", &(struct fixture){.a = f.a, .ld = f.ld}, dx, f.dy.data, 0, 0);
            memcpy(f.dy.data, dy, f.dy.bytes);
            f.a.dx = f.add.data;
            ps_rmsnorm_backward(pools->pool[1], isa, &f.a, f.work.data);
            check_rows("dx in dx_add", &(struct fixture){.a = f.a, .ld = f.ld}, dx, f.add.data, 0,
                       0);
            f.a.y = f.x.data;
            ps_rmsnorm_forward(pools->pool[1], isa, &f.a);
            check_rows("y in x", &(struct fixture){.a = f.a, .ld = f.ld}, y, f.x.data, 0, 0);
            free(y);
            free(dx);
            free(dy);
            fixture_free(&f);
        }
    }
}

static void row_does_not_depend_on_other_rows(void **state)
{
    struct pools *pools = *state;
    FOR_EACH_ISA(isa)
    {
        struct fixture f;
        fixture_make(&f, (struct shape){70, 1, 333}, PS_DTYPE_F32, PS_DTYPE_F32);
        ps_rmsnorm_forward(pools->pool[0], isa, &f.a);
        ps_rmsnorm_backward(pools->pool[0], isa, &f.a, f.work.data);
        for (size_t r = 0; r < 70; r += 23) {
            float y[333], dx[333], rstd;
            struct ps_rmsnorm_args one = f.a;
            one.n_tok = 1;
            one.x = (const float *)f.a.x + r * f.ld;
            one.dy = (const float *)f.a.dy + r * f.ld;
            one.dx_add = (const float *)f.a.dx_add + r * f.ld;
            one.y = y;
            one.dx = dx;
            one.rstd = &rstd;
            one.dweight = NULL;
            ps_rmsnorm_forward(NULL, isa, &one);
            ps_rmsnorm_backward(NULL, isa, &one, NULL);
            assert_memory_equal(y, (float *)f.a.y + r * f.ld, sizeof y);
            assert_memory_equal(dx, (float *)f.a.dx + r * f.ld, sizeof dx);
        }
        fixture_free(&f);
    }
}

/* L = sum of dy * y through the shipped forward pass. */
static double loss_of(const struct fixture *f, enum ps_isa isa)
{
    double sum = 0;
    ps_rmsnorm_forward(NULL, isa, &f->a);
    for (size_t t = 0; t < f->a.n_tok; t++)
        for (size_t j = 0; j < f->a.n; j++)
            sum += get(f->a.y, PS_DTYPE_F32, t * f->ld + j) *
                   get(f->a.dy, PS_DTYPE_F32, t * f->ld + j);
    return sum;
}

static void backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        struct fixture f;
        fixture_make(&f, (struct shape){3, 1, 21}, PS_DTYPE_F32, PS_DTYPE_F32);
        f.a.dx_add = NULL;
        ps_rmsnorm_forward(NULL, isa, &f.a);
        ps_rmsnorm_backward(NULL, isa, &f.a, f.work.data);
        /* central differences, h = 1e-2: truncation h^2 = 1e-4 of third derivatives of size 1,
         * rounding 63 * 6e-8 / h = 4e-4 */
        const float h = 1e-2f;
        float *param[2] = {(float *)(void *)f.x.data, (float *)(void *)f.w.data};
        for (size_t j = 0; j < 2 * f.ld + 21; j++) {
            if (j % f.ld >= 21)
                continue;
            for (int k = 0; k < (j < 21 ? 2 : 1); k++) {
                float keep = param[k][j];
                param[k][j] = keep + h;
                double up = loss_of(&f, isa);
                param[k][j] = keep - h;
                double down = loss_of(&f, isa);
                param[k][j] = keep;
                close_to(k ? "dweight" : "dx", j, (up - down) / (2 * (double)h),
                         k ? (double)f.a.dweight[j] : get(f.a.dx, PS_DTYPE_F32, j), 2e-3, 2e-3);
            }
        }
        fixture_free(&f);
    }
}

static void nan_and_inf_reach_their_own_row_only(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
    {
        for (int k = 0; k < 2; k++) {
            struct fixture f;
            fixture_make(&f, (struct shape){3, 1, 40}, PS_DTYPE_BF16, PS_DTYPE_F32);
            put(f.x.data, PS_DTYPE_BF16, f.ld + 39, k ? (double)NAN : (double)INFINITY);
            ps_rmsnorm_forward(NULL, isa, &f.a);
            ps_rmsnorm_backward(NULL, isa, &f.a, f.work.data);
            for (size_t t = 0; t < 3; t++) {
                /* Inf: rstd 0, Inf * 0 is NaN at the element itself */
                assert_int_equal(isnan(get(f.y.data, PS_DTYPE_BF16, t * f.ld + 39)), t == 1);
                assert_int_equal(isnan(get(f.dx.data, PS_DTYPE_BF16, t * f.ld + 39)), t == 1);
                assert_int_equal(isnan(get(f.y.data, PS_DTYPE_BF16, t * f.ld)), t == 1 && k);
            }
            assert_true(isnan(f.a.dweight[39]));
            fixture_free(&f);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_matches_reference_and_ignores_thread_count),
        cmocka_unit_test(backward_matches_reference_and_ignores_thread_count),
        cmocka_unit_test(in_place_gives_the_same_bits),
        cmocka_unit_test(row_does_not_depend_on_other_rows),
        cmocka_unit_test(backward_agrees_with_finite_differences),
        cmocka_unit_test(nan_and_inf_reach_their_own_row_only),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
