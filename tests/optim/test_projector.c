/* Projections: side rule, bases against one another, reconstruction, refreshes, rotation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "optim/lapack.h"
#include "optim/orthonormal.h"
#include "optim/projector.h"
#include "tests/optim/matrix_method.h"

struct set_up {
    struct ps_projector p;
    struct ps_matrix_cx cx;
    struct guarded gemm, refresh, basis;
};

static void set_up(struct set_up *s, const struct ps_optimizer_hyper *h, int64_t rows, int64_t cols,
                   struct ps_pool *pool, enum ps_isa isa)
{
    struct ps_opt_tensor t = {.name = "x.weight",
                              .id = 11,
                              .rank = 2,
                              .rows = rows,
                              .cols = cols,
                              .n = (size_t)(rows * cols),
                              .hidden = true};
    struct ps_error err = {0};
    assert_int_equal(ps_projector_plan(h, &t, 128, 200, &s->p, &err), 0);
    s->gemm = guarded_make(ps_gemm_workspace_bytes(THREADS_MAX), 0);
    s->refresh = guarded_make(ps_projector_refresh_bytes(&s->p), 0);
    s->basis = guarded_make(s->p.rank * s->p.dim * sizeof(float), 0);
    s->cx = (struct ps_matrix_cx){.pool = pool, .isa = isa, .gemm_workspace = s->gemm.data};
}

static void tear_down(struct set_up *s)
{
    guarded_free(&s->gemm);
    guarded_free(&s->refresh);
    guarded_free(&s->basis);
}

static float *refresh(struct set_up *s, const float *g)
{
    struct ps_error err = {0};
    float *basis = (float *)(void *)s->basis.data;
    memset(s->refresh.data, 0xff, s->refresh.bytes);
    if (ps_projector_refresh(&s->p, &s->cx, 1, g, PS_DTYPE_F32, basis, s->refresh.data, &err) < 0)
        fail_msg("%s", err.message);
    return basis;
}

static void the_shorter_side_is_projected(void **state)
{
    (void)state;
    static const struct {
        int64_t rows, cols;
        enum ps_projection side;
        bool right;
    } c[] = {{20, 10, PS_PROJECTION_STD, true},         {10, 20, PS_PROJECTION_STD, false},
             {10, 10, PS_PROJECTION_STD, true},         {20, 10, PS_PROJECTION_REVERSE_STD, false},
             {10, 20, PS_PROJECTION_REVERSE_STD, true}, {10, 10, PS_PROJECTION_REVERSE_STD, false},
             {20, 10, PS_PROJECTION_LEFT, false},       {10, 20, PS_PROJECTION_RIGHT, true}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        struct ps_optimizer_hyper h = {.projection = c[i].side, .rank = 3};
        struct ps_opt_tensor t = {.name = "x", .rank = 2, .rows = c[i].rows, .cols = c[i].cols};
        struct ps_projector p;
        assert_int_equal(ps_projector_plan(&h, &t, 1, 1, &p, NULL), 0);
        assert_int_equal(p.right, c[i].right);
        assert_int_equal(p.dim, c[i].right ? c[i].cols : c[i].rows);
        assert_int_equal(p.length, c[i].right ? c[i].rows : c[i].cols);
    }
}

static void a_rank_over_the_matrix_is_an_error_a_default_is_cut(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = {.rank = 11};
    struct ps_opt_tensor t = {.name = "layers.3.k_proj", .rank = 2, .rows = 10, .cols = 20};
    struct ps_projector p;
    struct ps_error err = {0};
    assert_int_equal(ps_projector_plan(&h, &t, 1, 1, &p, &err), PS_EUSAGE);
    assert_string_equal(err.field, "optim-rank");
    assert_non_null(strstr(err.message, "layers.3.k_proj"));
    assert_true(err.advice[0] != '\0');
    h.rank = 10;
    assert_int_equal(ps_projector_plan(&h, &t, 1, 1, &p, &err), 0);
    h.rank = 0;
    assert_int_equal(ps_projector_plan(&h, &t, 128, 200, &p, &err), 0);
    assert_int_equal(p.rank, 10);
    assert_int_equal(p.gap, 200);
}

/* A gradient of that rank comes back whole. */
static void what_has_the_rank_of_the_basis_is_reconstructed(void **state)
{
    struct pools *pools = *state;
    const int64_t shape[3][2] = {{70, 33}, {33, 70}, {48, 48}};
    for (int k = 0; k < 3 * 2 * 2; k++) {
        struct ps_optimizer_hyper h = {.rank = 6,
                                       .basis = k % 2 ? last_basis() : PS_BASIS_RANDOMIZED,
                                       .projection = k / 2 % 2 ? PS_PROJECTION_REVERSE_STD
                                                               : PS_PROJECTION_STD};
        int64_t rows = shape[k / 4][0], cols = shape[k / 4][1];
        size_t n = (size_t)(rows * cols);
        float *g = calloc(n, sizeof *g), *back = calloc(n, sizeof *g), low[6 * 70];
        assert_true(g && back);
        matrix_gradient(g, (size_t)rows, (size_t)cols, 5);
        struct normals r = normals_of(5); /* without its noise: six directions */
        for (int t = 0; t < 6; t++) {
            double a[70], b[70];
            for (int64_t i = 0; i < rows; i++)
                a[i] = normals_next(&r);
            for (int64_t i = 0; i < cols; i++)
                b[i] = normals_next(&r);
            for (size_t i = 0; i < n; i++)
                g[i] = (t ? g[i] : 0) +
                       (float)(pow(0.5, t) * a[i / (size_t)cols] * b[i % (size_t)cols]);
        }
        FOR_EACH_ISA(isa)
        {
            struct set_up s;
            set_up(&s, &h, rows, cols, pools->pool[1], isa);
            float *basis = refresh(&s, g);
            ps_projector_project(&s.p, &s.cx, basis, g, PS_DTYPE_F32, 1, low);
            /* in two parts: rows may come in any number */
            size_t half = (size_t)rows / 3;
            ps_projector_back(&s.p, &s.cx, basis, low, 0, half, back);
            ps_projector_back(&s.p, &s.cx, basis, low, half, (size_t)rows - half,
                              back + half * (size_t)cols);
            double off = 0, all = 0;
            for (size_t i = 0; i < n; i++) {
                off += pow((double)back[i] - (double)g[i], 2);
                all += pow((double)g[i], 2);
            }
            assert_true(sqrt(off / all) <= 1e-5);
            tear_down(&s);
        }
        free(g);
        free(back);
    }
}

/* Largest angle between the spans of rows a and b (k, d): its sine is that of the part of b that a
 * leaves out. */
static double largest_angle(const float *a, const float *b, size_t k, size_t d)
{
    double *gram = calloc(k * k, sizeof *gram), *vector = calloc(k * k, sizeof *gram), value[64];
    float *rest = calloc(k * d, sizeof *rest);
    void *scratch = malloc(ps_symmetric_eigen_bytes(k));
    assert_true(gram && vector && rest && scratch && k <= 64);
    for (size_t i = 0; i < k; i++)
        for (size_t c = 0; c < d; c++) {
            double x = (double)b[i * d + c];
            for (size_t j = 0; j < k; j++) {
                double in = 0;
                for (size_t e = 0; e < d; e++)
                    in += (double)a[j * d + e] * (double)b[i * d + e];
                x -= in * (double)a[j * d + c];
            }
            rest[i * d + c] = (float)x;
        }
    ps_row_gram(NULL, rest, k, d, gram);
    assert_int_equal(ps_symmetric_eigen(gram, k, 1, value, vector, scratch), 0);
    free(gram);
    free(vector);
    free(rest);
    free(scratch);
    return asin(sqrt(value[0] < 0 ? 0 : value[0] > 1 ? 1 : value[0]));
}

/* Singular values that fall by 1.5 each: specs, at most 1e-2. The vectors themselves agree too. */
static void randomized_and_full_bases_agree(void **state)
{
    struct pools *pools = *state;
    const int64_t shape[3][2] = {{90, 41}, {41, 90}, {50, 50}};
    enum { RANK = 8 };
    if (ps_lapack_check(NULL) < 0) {
        print_message(
            "no LAPACK (libopenblas.so.0 or liblapack.so.3): full bases are not tested\n");
        skip();
    }
    for (int k = 0; k < 3; k++) {
        int64_t rows = shape[k][0], cols = shape[k][1];
        size_t n = (size_t)(rows * cols), least = (size_t)(rows < cols ? rows : cols);
        float *g = calloc(n, sizeof *g), *u = calloc(least * 90, 4), *v = calloc(least * 90, 4);
        float tau[90];
        assert_true(g && u && v);
        fill(u, PS_DTYPE_F32, least * (size_t)rows, 1, 1);
        fill(v, PS_DTYPE_F32, least * (size_t)cols, 1, 2);
        ps_orthonormal_rows(NULL, u, least, (size_t)rows, tau);
        ps_orthonormal_rows(NULL, v, least, (size_t)cols, tau);
        for (size_t i = 0; i < n; i++) {
            double x = 0;
            for (size_t j = 0; j < least; j++)
                x += pow(1.5, -(double)j) * (double)u[j * (size_t)rows + i / (size_t)cols] *
                     (double)v[j * (size_t)cols + i % (size_t)cols];
            g[i] = (float)x;
        }
        struct ps_optimizer_hyper h = {.rank = RANK, .basis = PS_BASIS_SVD};
        struct set_up a, b;
        set_up(&a, &h, rows, cols, pools->pool[0], ps_isa_detect());
        h.basis = PS_BASIS_RANDOMIZED;
        set_up(&b, &h, rows, cols, pools->pool[2], ps_isa_detect());
        const float *full = refresh(&a, g), *random = refresh(&b, g);
        assert_true(largest_angle(full, random, RANK, a.p.dim) <= 1e-2);
        /* the planted vectors, up to sign */
        const float *planted = a.p.right ? v : u;
        assert_true(largest_angle(full, planted, RANK, a.p.dim) <= 1e-4);
        for (size_t j = 0; j < RANK; j++) {
            double product = 0;
            for (size_t i = 0; i < a.p.dim; i++)
                product += (double)full[j * a.p.dim + i] * (double)planted[j * a.p.dim + i];
            close_to("vector", j, fabs(product), 1, 1e-4, 0);
        }
        for (size_t i = 0; i < RANK * a.p.dim; i++)
            close_to("entry", i, (double)random[i], (double)full[i], 2e-2, 0);
        tear_down(&a);
        tear_down(&b);
        free(g);
        free(u);
        free(v);
    }
}

/* Sizes of gradients: products of products must not lose them. */
static void tiny_huge_and_zero_gradients_have_a_basis(void **state)
{
    (void)state;
    const float size[] = {1e-25f, 1e15f, 0};
    for (int k = 0; k < 6; k++) {
        struct ps_optimizer_hyper h = {.rank = 4,
                                       .basis = k % 2 ? last_basis() : PS_BASIS_RANDOMIZED};
        float g[24 * 10];
        struct set_up s;
        set_up(&s, &h, 24, 10, NULL, ps_isa_detect());
        matrix_gradient(g, 24, 10, 3);
        float *basis = refresh(&s, g), want[40];
        memcpy(want, basis, sizeof want);
        for (size_t i = 0; i < 240; i++)
            g[i] *= size[k / 2];
        refresh(&s, g);
        for (size_t i = 0; i < 4; i++)
            for (size_t j = 0; j <= i; j++) {
                double product = 0;
                for (size_t c = 0; c < 10; c++)
                    product += (double)basis[i * 10 + c] * (double)basis[j * 10 + c];
                close_to("product", i * 4 + j, product, i == j, 2e-6, 0);
            }
        for (size_t i = 0; i < 40 && size[k / 2] > 0; i++)
            close_to("entry", i, (double)basis[i], (double)want[i], 1e-4, 0);
        tear_down(&s);
    }
}

static void bases_do_not_depend_on_threads(void **state)
{
    struct pools *pools = *state;
    float *g = calloc(300 * 200, sizeof *g), *want = calloc(40 * 200, sizeof *want);
    assert_true(g && want);
    matrix_gradient(g, 300, 200, 3);
    for (int k = 0; k <= (int)last_basis(); k++)
        FOR_EACH_ISA(isa)
        {
            for (int p = 0; p < THREADS_MAX; p++) {
                struct ps_optimizer_hyper h = {.rank = 40, .basis = (enum ps_basis)k};
                struct set_up s;
                set_up(&s, &h, 300, 200, pools->pool[p], isa);
                const float *basis = refresh(&s, g);
                if (p == 0)
                    memcpy(want, basis, 40 * 200 * sizeof *want);
                assert_memory_equal(want, basis, 40 * 200 * sizeof *want);
                tear_down(&s);
            }
        }
    free(g);
    free(want);
}

static void refreshes_come_first_and_then_at_every_gap(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = {.rank = 1, .update_gap = 10, .refresh_together = true};
    struct ps_opt_tensor t = {.name = "x", .rank = 2, .rows = 4, .cols = 4};
    struct ps_projector p;
    for (uint32_t id = 0; id < 20; id++) {
        t.id = id;
        assert_int_equal(ps_projector_plan(&h, &t, 1, 1, &p, NULL), 0);
        for (uint64_t n = 1; n <= 35; n++)
            assert_int_equal(ps_projector_refreshes(&p, n), (n - 1) % 10 == 0);
        h.refresh_together = false;
        assert_int_equal(ps_projector_plan(&h, &t, 1, 1, &p, NULL), 0);
        h.refresh_together = true;
        uint64_t last = 1, count = 0;
        assert_true(ps_projector_refreshes(&p, 1));
        for (uint64_t n = 2; n <= 41; n++) {
            bool now = ps_projector_refreshes(&p, n);
            if (now) { /* the first interval may be shorter, none is longer */
                assert_true(count == 0 ? n - last <= 10 : n - last == 10);
                last = n;
                count++;
            }
            assert_int_equal(ps_projector_age(&p, n), n - last + 1);
        }
        assert_true(count >= 3);
    }
}

/* 154 matrices of a model whose other tensors are not projected, gap 200: no step but the first
 * refreshes more than two of them. */
static void refreshes_are_spread_over_the_gap(void **state)
{
    (void)state;
    struct ps_optimizer_hyper h = {.rank = 1, .update_gap = 200};
    int busy[200] = {0};
    for (uint32_t id = 0; id < 22 * 9; id++) {
        struct ps_opt_tensor t = {.name = "x", .id = id + 1, .rank = 2, .rows = 4, .cols = 4};
        struct ps_projector p;
        if (id % 9 == 0 || id % 9 == 5) /* norms */
            continue;
        assert_int_equal(ps_projector_plan(&h, &t, 1, 1, &p, NULL), 0);
        for (uint64_t n = 2; n <= 201; n++)
            busy[n - 2] += ps_projector_refreshes(&p, n);
    }
    int sum = 0;
    for (int i = 0; i < 200; i++) {
        assert_in_range(busy[i], 0, 2);
        sum += busy[i];
    }
    assert_int_equal(sum, 154);
}

/* To the same basis with other signs and order: moments follow exactly. */
static void rotation_takes_moments_along(void **state)
{
    (void)state;
    for (int right = 0; right < 2; right++) {
        struct ps_optimizer_hyper h = {
            .rank = 3, .projection = right ? PS_PROJECTION_RIGHT : PS_PROJECTION_LEFT};
        struct set_up s;
        set_up(&s, &h, 12, 12, NULL, ps_isa_detect());
        float old_basis[36], new_basis[36], tau[3], m[36], v[36], scratch[9 + 36], m0[36], v0[36];
        fill(old_basis, PS_DTYPE_F32, 36, 1, 1);
        ps_orthonormal_rows(NULL, old_basis, 3, 12, tau);
        const size_t from[3] = {2, 0, 1};
        for (size_t i = 0; i < 36; i++)
            new_basis[i] = (i / 12 == 1 ? -1.0f : 1.0f) * old_basis[from[i / 12] * 12 + i % 12];
        fill(m, PS_DTYPE_F32, 36, 1, 2);
        fill(v, PS_DTYPE_F32, 36, 1, 3);
        memcpy(m0, m, sizeof m);
        memcpy(v0, v, sizeof v);
        ps_projector_rotate(&s.p, &s.cx, old_basis, new_basis, m, v, scratch);
        for (size_t j = 0; j < 3; j++)
            for (size_t c = 0; c < 12; c++) {
                size_t to = right ? c * 3 + j : j * 12 + c;
                size_t at = right ? c * 3 + from[j] : from[j] * 12 + c;
                close_to("m", to, (double)m[to], (j == 1 ? -1 : 1) * (double)m0[at], 1e-5, 0);
                close_to("v", to, (double)v[to], (double)v0[at], 1e-5, 0);
            }
        tear_down(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_shorter_side_is_projected),
        cmocka_unit_test(a_rank_over_the_matrix_is_an_error_a_default_is_cut),
        cmocka_unit_test(what_has_the_rank_of_the_basis_is_reconstructed),
        cmocka_unit_test(randomized_and_full_bases_agree),
        cmocka_unit_test(tiny_huge_and_zero_gradients_have_a_basis),
        cmocka_unit_test(bases_do_not_depend_on_threads),
        cmocka_unit_test(refreshes_come_first_and_then_at_every_gap),
        cmocka_unit_test(refreshes_are_spread_over_the_gap),
        cmocka_unit_test(rotation_takes_moments_along),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}
